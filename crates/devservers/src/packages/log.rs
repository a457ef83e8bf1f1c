//! The log of a program: new lines for progress, last lines for an error.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Maximum number of lines in an error.
const EXCERPT_LINES: usize = 20;
/// Number of bytes at the end of the log from which they are taken.
const EXCERPT_BYTES: u64 = 1024 * 1024;
/// The first line with one of these words is more useful than the last lines, which are about the
/// shutdown.
const TROUBLE: [&str; 3] = ["ERROR", "FATAL", "Exception"];

/// A log file, from its end when this value was created.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    path: PathBuf,
    start: u64,
    read: u64,
}

impl Log {
    pub(crate) fn at_end_of(path: &Path) -> Log {
        let start = path.metadata().map_or(0, |meta| meta.len());
        Log { path: path.to_owned(), start, read: start }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The complete lines since the last call.
    pub(crate) fn new_lines(&mut self) -> Vec<String> {
        let text = self.text_from(self.read);
        let Some(end) = text.iter().rposition(|byte| *byte == b'\n') else { return Vec::new() };
        self.read += end as u64 + 1;
        String::from_utf8_lossy(&text[..end]).lines().map(str::to_owned).collect()
    }

    /// The lines from the first error on, or the last lines.
    pub(crate) fn excerpt(&self) -> String {
        let length = self.path.metadata().map_or(0, |meta| meta.len());
        let text = self.text_from(self.start.max(length.saturating_sub(EXCERPT_BYTES)));
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.trim_end().lines().collect();
        let trouble = lines.iter().position(|line| TROUBLE.iter().any(|word| line.contains(word)));
        let start = trouble.unwrap_or(lines.len().saturating_sub(EXCERPT_LINES));
        lines[start..lines.len().min(start + EXCERPT_LINES)].join("\n")
    }

    fn text_from(&self, offset: u64) -> Vec<u8> {
        let mut text = Vec::new();
        // A log that cannot be read counts as empty: it is shown only beside another error.
        let file = std::fs::File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(offset))?;
            file.read_to_end(&mut text)
        });
        if let Err(error) = file {
            tracing::debug!(log = %self.path.display(), %error, "log not read");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn only_whole_new_lines_are_told_and_only_once() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "old").unwrap();
        let mut log = Log::at_end_of(file.path());
        write!(file, "one\ntwo\nhal").unwrap();
        assert_eq!(log.new_lines(), ["one", "two"]);
        writeln!(file, "f").unwrap();
        assert_eq!(log.new_lines(), ["half"]);
        assert_eq!(log.new_lines(), [""; 0]);
        assert_eq!(log.excerpt(), "one\ntwo\nhalf");
    }

    #[test]
    fn an_excerpt_starts_at_the_trouble_however_much_comes_after_it() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let log = Log::at_end_of(file.path());
        write!(file, "fine\nERROR no space\n{}", "shutting down\n".repeat(100)).unwrap();
        assert!(log.excerpt().starts_with("ERROR no space\nshutting down\n"), "{}", log.excerpt());
        assert_eq!(log.excerpt().lines().count(), EXCERPT_LINES);
    }
}
