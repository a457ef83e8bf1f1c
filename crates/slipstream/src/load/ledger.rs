//! The ledger: what was sent and how it was answered, JSON Lines. The first line is the run, each further one an event
//! in its last state. An event's line is written once, when nothing more is done for it.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use service::ConfigErrors;
use service::json::object;
use service::lock::lock;

use super::event::Mix;
use crate::Failure;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// What every id of the run begins with, a `-` and the key's number follow.
    pub run: String,
    /// The source of its events.
    pub source: String,
    /// When it began, in epoch milliseconds.
    pub started_at: i64,
    /// What makes its events again.
    #[serde(flatten)]
    pub mix: Mix,
    /// API_VERSION of the producer, if it said so when the run began.
    pub api_version: Option<String>,
}

/// How an event was answered in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// With 202.
    Accepted,
    /// In no attempt can it have been stored.
    Refused,
    /// In at least one attempt it may have been stored (504, cut, no answer in time), and no attempt was accepted.
    Unknown,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its number in the run.
    pub n: u64,
    /// Its id.
    pub id: String,
    /// When it happened.
    pub timestamp: i64,
    /// As the 202 said; the answer to a batch does not say it.
    pub ingested_at: Option<i64>,
    /// SHA-256 of the payload's text, in hex.
    pub hash: String,
    /// How it was answered.
    pub answer: Answer,
    /// The last attempt's status, if it had one.
    pub status: Option<u16>,
    /// As the 202 said; the answer to a batch does not say it.
    pub topic: Option<String>,
    /// As the 202 said.
    pub partition: Option<i32>,
    /// As the 202 said, where the broker told it.
    pub offset: Option<i64>,
    /// How often it was sent.
    pub attempts: u32,
    /// When an attempt was answered with 504, in epoch milliseconds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unconfirmed: Vec<i64>,
    /// When an attempt ended without an answer that can be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cut: Vec<i64>,
}

/// The file while the run goes on; nothing where none was asked for.
#[derive(Debug)]
pub struct Ledger(Option<Mutex<BufWriter<File>>>);

impl Ledger {
    /// Makes the file.
    ///
    /// # Errors
    /// It exists already, or cannot be made.
    pub fn create(path: Option<&Path>, header: &Header) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(Self(None)) };
        let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(|error| {
            ConfigErrors(vec![("--ledger".into(), format!("cannot make {}: {error}", path.display()))])
        })?;
        let ledger = Self(Some(Mutex::new(BufWriter::new(file))));
        ledger.append(header)?;
        ledger.flush()?;
        Ok(ledger)
    }

    /// Adds an event.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, line: &Line) -> io::Result<()> {
        self.append(line)
    }

    /// Puts everything so far into the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn flush(&self) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |file| lock(file).flush())
    }

    fn append(&self, line: &impl Serialize) -> io::Result<()> {
        let Some(file) = &self.0 else { return Ok(()) };
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        lock(file).write_all(&text)
    }
}

/// Reads a ledger, a line at a time.
#[derive(Debug)]
pub struct Lines {
    lines: io::Lines<BufReader<File>>,
    number: u64,
}

impl Lines {
    /// The run, and its events.
    ///
    /// # Errors
    /// There is no such file, or it is no ledger.
    pub fn open(path: &Path) -> Result<(Header, Self), Failure> {
        let named = |error: &dyn std::fmt::Display| format!("ledger {}: {error}", path.display());
        let file = File::open(path).map_err(|error| named(&error))?;
        let mut lines = BufReader::new(file).lines();
        let first = lines.next().ok_or_else(|| named(&"it is empty"))??;
        let header = object(first.as_bytes()).map_err(|error| named(&error))?;
        Ok((header, Self { lines, number: 1 }))
    }
}

impl Iterator for Lines {
    type Item = Result<Line, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        self.number += 1;
        let line = self.lines.next()?;
        let read = line.map_err(Failure::from).and_then(|text| Ok(object(text.as_bytes())?));
        Some(read.map_err(|error| format!("line {} of the ledger: {error}", self.number).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let mix = Mix { seed: u64::MAX, keys: 7, stale_ppm: 1, hostile_ppm: 2 };
        Header { run: "r".into(), source: "s".into(), started_at: 5, mix, api_version: None }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let ledger = Ledger::create(Some(&path), &header()).unwrap();
        let line = Line {
            n: 3,
            id: "r-3".into(),
            timestamp: 8,
            ingested_at: None,
            hash: "00".into(),
            answer: Answer::Unknown,
            status: Some(504),
            topic: None,
            partition: None,
            offset: None,
            attempts: 2,
            unconfirmed: vec![9],
            cut: Vec::new(),
        };
        ledger.write(&line).unwrap();
        ledger.flush().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(r#""answer":"unknown","status":504,"topic":null"#), "{text}");
        assert!(!text.contains("cut"), "{text}");
        let (read, lines) = Lines::open(&path).unwrap();
        assert_eq!(read, header());
        assert_eq!(lines.map(Result::unwrap).collect::<Vec<_>>(), [line]);
    }

    #[test]
    fn a_file_that_exists_is_left_alone_and_one_that_is_no_ledger_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        std::fs::write(&path, "precious\n").unwrap();
        let refused = Ledger::create(Some(&path), &header()).unwrap_err();
        assert!(refused.downcast_ref::<ConfigErrors>().is_some(), "{refused}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious\n");
        assert!(Lines::open(&path).is_err());
        let text = serde_json::to_string(&header()).unwrap();
        std::fs::write(&path, format!("{text}\n{{\"n\":1")).unwrap();
        let (_, mut lines) = Lines::open(&path).unwrap();
        assert!(lines.next().unwrap().unwrap_err().to_string().contains("line 2"));
        // The fields of an event, in their order.
        let array = r#"[3,"r-3",8,null,"00","unknown",504,null,null,null,2,[],[]]"#;
        std::fs::write(&path, format!("{text}\n{array}\n")).unwrap();
        let (_, mut lines) = Lines::open(&path).unwrap();
        assert!(lines.next().unwrap().unwrap_err().to_string().contains("line 2"));
        std::fs::write(&path, r#"["r","s",5,1,7,1,2,null]"#).unwrap();
        assert!(Lines::open(&path).is_err());
    }
}
