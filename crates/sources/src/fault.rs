//! Faults of a sources file. All faults of a file are collected, each with its position.

use std::fmt;

/// Maximum number of faults in a message. One more line counts the others.
const MAX_LISTED: usize = 100;

/// Line and column in the file, each from 1. Zero if the position is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// The line, from 1.
    pub line: u64,
    /// The column in characters, from 1.
    pub column: u64,
}

/// One fault of a sources file.
///
/// The message never contains a value of the file, because a secret may stand there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The position of the value, or of the name of an unknown field.
    pub at: Position,
    /// The location in the file's tree: `sources.quakes.event.id`. Empty for the whole file.
    pub path: String,
    /// What is wrong and what is right.
    pub message: String,
}

/// All faults of a sources file, in the order of their positions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults {
    file: String,
    list: Vec<Fault>,
}

impl Faults {
    pub(crate) fn new(file: String, mut list: Vec<Fault>) -> Self {
        list.sort();
        list.dedup();
        Self { file, list }
    }

    /// The faults.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.list.iter()
    }

    /// The number of faults, at least one.
    pub fn count(&self) -> usize {
        self.list.len()
    }
}

impl fmt::Display for Faults {
    /// Writes one line `FILE:LINE:COL: path: fault` for each fault.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.list.iter().take(MAX_LISTED).enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            let Position { line, column } = fault.at;
            f.write_str(&self.file)?;
            if line > 0 {
                write!(f, ":{line}:{column}")?;
            }
            if !fault.path.is_empty() {
                write!(f, ": {}", fault.path)?;
            }
            write!(f, ": {}", fault.message)?;
        }
        match self.list.len().checked_sub(MAX_LISTED) {
            None | Some(0) => Ok(()),
            Some(more) => write!(f, "\n{}: {more} more faults are not listed", self.file),
        }
    }
}

impl std::error::Error for Faults {}

#[cfg(test)]
mod tests {
    use super::{Fault, Faults, MAX_LISTED, Position};

    fn fault(line: u64, path: &str) -> Fault {
        Fault { at: Position { line, column: 3 }, path: path.into(), message: "is wrong".into() }
    }

    #[test]
    fn faults_are_displayed_in_the_order_of_their_positions() {
        let faults = Faults::new("s.yaml".into(), vec![fault(9, "b"), fault(2, "a"), fault(0, "")]);
        let lines = "s.yaml: is wrong\ns.yaml:2:3: a: is wrong\ns.yaml:9:3: b: is wrong";
        assert_eq!(faults.to_string(), lines);
    }

    #[test]
    fn the_list_in_a_message_is_limited() {
        let list = (0..MAX_LISTED as u64 + 5).map(|line| fault(line, "a")).collect();
        let text = Faults::new("s".into(), list).to_string();
        assert_eq!(text.lines().count(), MAX_LISTED + 1);
        assert!(text.ends_with("s: 5 more faults are not listed"));
    }
}
