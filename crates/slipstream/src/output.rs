//! The output of a command: lines on stdout, and times as text.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

/// Writes a line. A closed pipe is no error: the result still determines the exit code.
pub fn write_line(text: impl Display) -> io::Result<()> {
    ignore_closed_pipe(writeln!(io::stdout(), "{text}"))
}

/// As [`write_line`], for bytes without a line end.
pub fn write_bytes(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout();
    ignore_closed_pipe(stdout.write_all(bytes).and_then(|()| stdout.flush()))
}

/// Writes a line about the progress; errors are ignored.
pub fn write_progress(text: &str) {
    _ = write_line(text);
}

/// Formats epoch milliseconds as RFC 3339.
pub fn rfc3339(epoch_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(epoch_ms)
        .map_or_else(|_| epoch_ms.to_string(), |time| format!("{time:.3}"))
}

fn ignore_closed_pipe(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_is_no_error_and_a_full_disk_is_one() {
        assert!(ignore_closed_pipe(Err(ErrorKind::BrokenPipe.into())).is_ok());
        assert!(ignore_closed_pipe(Err(ErrorKind::StorageFull.into())).is_err());
    }
}
