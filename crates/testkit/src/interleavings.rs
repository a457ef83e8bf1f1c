//! All orders of the steps of several threads, for tests of shared state. If each step holds a lock
//! for its whole duration, these orders are all possible executions.

/// All orders of the steps. An order has for each step the index of its thread.
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
