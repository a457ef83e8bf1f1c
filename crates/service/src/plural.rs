//! Numbers with their nouns, for texts that people read.

use std::fmt::Display;

/// A number with its noun: `1 record`, `2 records`.
pub fn counted<N: Copy + Display + PartialEq + From<u8>>(number: N, noun: &str) -> String {
    let plural = if number == N::from(1) { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// A number with its noun and its verb: `1 record was`, `2 records were`. `verbs` has both forms.
pub fn counted_with<N: Copy + Display + PartialEq + From<u8>>(
    number: N,
    noun: &str,
    verbs: [&str; 2],
) -> String {
    let [singular, plural] = verbs;
    let verb = if number == N::from(1) { singular } else { plural };
    format!("{} {verb}", counted(number, noun))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_number_1_has_the_singular() {
        assert_eq!(counted(0_u64, "record"), "0 records");
        assert_eq!(counted(1_u64, "record"), "1 record");
        assert_eq!(counted(-1_i64, "dead letter"), "-1 dead letters");
        assert_eq!(counted_with(1_u64, "record", ["was", "were"]), "1 record was");
        assert_eq!(counted_with(2_u64, "record", ["was", "were"]), "2 records were");
        assert_eq!(counted(21_usize, "dead letter"), "21 dead letters");
    }
}
