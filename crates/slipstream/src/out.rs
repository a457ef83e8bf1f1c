//! What a command writes on stdout.

use std::fmt::{Arguments, Display};
use std::io::{self, ErrorKind, Write};

/// Writes a line, unless nobody reads any more: whoever closed the pipe has seen enough. What the command found
/// still decides its exit code.
///
/// # Errors
/// The line cannot be written for another reason.
pub fn line(text: impl Display) -> io::Result<()> {
    all(format_args!("{text}\n"))
}

/// As [`line()`], of text that brings its own ends of lines.
///
/// # Errors
/// As [`line()`].
pub fn all(text: Arguments<'_>) -> io::Result<()> {
    unless_closed(io::stdout().write_fmt(text))
}

/// As [`all()`], of bytes.
///
/// # Errors
/// As [`line()`].
pub fn bytes(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout();
    unless_closed(out.write_all(bytes).and_then(|()| out.flush()))
}

fn unless_closed(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// A number of things, as in `1 record` and `2 records`.
pub fn counted<N: Copy + Display + PartialEq + From<u8>>(number: N, noun: &str) -> String {
    let plural = if number == N::from(1) { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// The same with its verb, as in `1 record was` and `2 records were`; `verbs` are both forms.
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
    fn only_one_thing_is_in_the_singular() {
        assert_eq!(counted(0_u64, "record"), "0 records");
        assert_eq!(counted(1_u64, "record"), "1 record");
        assert_eq!(counted(-1_i64, "dead letter"), "-1 dead letters");
        assert_eq!(counted_with(1_u64, "record", ["was", "were"]), "1 record was");
        assert_eq!(counted_with(2_u64, "record", ["was", "were"]), "2 records were");
        assert_eq!(counted(21_usize, "dead letter"), "21 dead letters");
    }

    #[test]
    fn a_closed_pipe_is_no_failure_and_a_full_disk_is_one() {
        assert!(unless_closed(Err(ErrorKind::BrokenPipe.into())).is_ok());
        assert!(unless_closed(Err(ErrorKind::StorageFull.into())).is_err());
    }
}
