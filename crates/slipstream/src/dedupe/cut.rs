//! Cuts a list into parts that fit into a command each.

/// Parts of `all` in their order, of at most `limit` bytes by `bytes`; what is larger alone is a part of its own.
pub fn cut<T>(all: Vec<T>, bytes: impl Fn(&T) -> usize, limit: usize) -> Vec<Vec<T>> {
    let (mut parts, mut used) = (Vec::<Vec<T>>::new(), 0);
    for one in all {
        let size = bytes(&one);
        used += size;
        match parts.last_mut() {
            Some(part) if used <= limit => part.push(one),
            _ => {
                used = size;
                parts.push(vec![one]);
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_part_fits_and_together_they_are_the_whole_in_order(
            all in prop::collection::vec(0_usize..15, 0..40), limit in 1_usize..30
        ) {
            let parts = cut(all.clone(), |size| *size, limit);
            prop_assert_eq!(parts.concat(), all);
            for part in &parts {
                prop_assert!(part.len() == 1 || part.iter().sum::<usize>() <= limit, "{:?}", part);
            }
            // No part could take the first of the next.
            for pair in parts.windows(2) {
                prop_assert!(pair[0].iter().sum::<usize>() + pair[1][0] > limit);
            }
        }
    }
}
