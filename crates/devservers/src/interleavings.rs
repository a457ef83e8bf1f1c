//! Every order in which the steps of several threads can follow each other, for tests of what they share: where each step
//! holds a lock from its beginning to its end, running them in each of these orders shows all that can happen.

/// All orders of so many steps of each thread; an order tells for each step which thread takes it.
///
/// There are `n! / (a! b! …)` of them for `n = a + b + …`: 924 for two threads of six steps.
pub fn interleavings(steps: &[usize]) -> Vec<Vec<usize>> {
    let (mut orders, mut left) = (Vec::new(), steps.to_vec());
    go_on(&mut left, &mut Vec::new(), &mut orders);
    orders
}

fn go_on(left: &mut [usize], order: &mut Vec<usize>, orders: &mut Vec<Vec<usize>>) {
    if left.iter().all(|steps| *steps == 0) {
        return orders.push(order.clone());
    }
    for thread in 0..left.len() {
        if left[thread] > 0 {
            left[thread] -= 1;
            order.push(thread);
            go_on(left, order, orders);
            order.pop();
            left[thread] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::interleavings;

    #[test]
    fn there_is_each_order_once() {
        assert_eq!(interleavings(&[2, 1]), [[0, 0, 1], [0, 1, 0], [1, 0, 0]]);
        let mut orders = interleavings(&[6, 6]);
        orders.sort();
        orders.dedup();
        assert_eq!(orders.len(), 924);
    }
}
