//! The ledger: the sent events and their outcomes, as JSON Lines. The first line describes the run;
//! each further line is an event in its final state, written once.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;

use kafka::BoxError;
use serde::{Deserialize, Serialize};
use service::ConfigErrors;
use service::http::object;
use service::tasks::lock;
use sha2::{Digest, Sha256};

use crate::payload::RecordForm;
use crate::workload::Workload;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The prefix of every id of the run; a `-` and the number of the key follow.
    pub run: String,
    /// The source of the events.
    pub source: String,
    /// Start of the run, in epoch milliseconds.
    pub started_at: i64,
    /// Generates the same events again.
    #[serde(flatten)]
    pub workload: Workload,
    /// The form of the records of a source that is pushed. Absent: events in envelopes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<RecordForm>,
    /// API_VERSION of the producer, if its `/health` answered at the start.
    pub api_version: Option<String>,
}

#[cfg(test)]
impl Header {
    /// The first line of a run `r` that sends events of the source `s` in envelopes.
    pub fn of_test(workload: Workload) -> Self {
        Self { run: "r".into(), source: "s".into(), started_at: 0, workload, record: None, api_version: None }
    }
}

/// The final outcome of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The response was 202.
    Accepted,
    /// No attempt can have stored the event.
    #[serde(rename = "refused")]
    Rejected,
    /// At least one attempt may have stored the event (504, interrupted, no response in time), and
    /// no attempt was accepted.
    Unknown,
}

/// The line of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Number of the event in the run.
    pub n: u64,
    /// Event id.
    pub id: String,
    /// Event timestamp, in epoch milliseconds.
    pub timestamp: i64,
    /// From the 202; a batch response does not have it.
    pub ingested_at: Option<i64>,
    /// SHA-256 of the payload's text, in hex. A delete has an empty text.
    pub hash: String,
    /// The final outcome.
    #[serde(rename = "answer")]
    pub outcome: Outcome,
    /// Status of the last attempt, if it got a response.
    pub status: Option<u16>,
    /// From the 202; a batch response does not have it.
    pub topic: Option<String>,
    /// From the 202.
    pub partition: Option<i32>,
    /// From the 202.
    pub offset: Option<i64>,
    /// Number of attempts.
    pub attempts: u32,
    /// Times of the attempts that got a 504, in epoch milliseconds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unconfirmed: Vec<i64>,
    /// Times of the attempts that ended without a readable response.
    #[serde(default, rename = "cut", skip_serializing_if = "Vec::is_empty")]
    pub interrupted: Vec<i64>,
}

impl Line {
    /// Whether an attempt with an unknown outcome may have left another record.
    pub fn may_be_repeated(&self) -> bool {
        !(self.unconfirmed.is_empty() && self.interrupted.is_empty())
    }
}

/// The event id of a key.
pub fn id_of(run: &str, key: u64) -> String {
    format!("{run}-{key}")
}

/// The key of an id of the run; `None` for any other id.
pub fn key_of(run: &str, id: &str) -> Option<u64> {
    let digits = id.strip_prefix(run)?.strip_prefix('-')?;
    let key: u64 = digits.parse().ok()?;
    (key.to_string() == digits).then_some(key)
}

/// SHA-256 of a payload's text, in hex.
pub fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes the ledger during a run; without a path it writes nothing.
#[derive(Debug)]
pub struct Ledger(Option<Mutex<BufWriter<File>>>);

impl Ledger {
    /// Creates the file.
    pub fn create(path: Option<&Path>, header: &Header) -> Result<Self, BoxError> {
        let Some(path) = path else { return Ok(Self(None)) };
        let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(|error| {
            ConfigErrors(vec![("--ledger".into(), format!("cannot create {}: {error}", path.display()))])
        })?;
        let ledger = Self(Some(Mutex::new(BufWriter::new(file))));
        ledger.write(header)?;
        ledger.flush()?;
        Ok(ledger)
    }

    /// Adds the header or the line of an event.
    pub fn write(&self, line: &impl Serialize) -> io::Result<()> {
        let Some(file) = &self.0 else { return Ok(()) };
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        lock(file).write_all(&text)
    }

    /// Writes the buffered lines to the file.
    pub fn flush(&self) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |file| lock(file).flush())
    }
}

/// Reads a ledger line by line.
#[derive(Debug)]
pub struct Lines {
    lines: io::Lines<BufReader<File>>,
    number: u64,
}

impl Lines {
    /// Opens a ledger and reads its header.
    pub fn open(path: &Path) -> Result<(Header, Self), BoxError> {
        let named = |error: &dyn std::fmt::Display| format!("ledger {}: {error}", path.display());
        let file = File::open(path).map_err(|error| named(&error))?;
        let mut lines = BufReader::new(file).lines();
        let first = lines.next().ok_or_else(|| named(&"it is empty"))??;
        let header = object(first.as_bytes()).map_err(|error| named(&error))?;
        Ok((header, Self { lines, number: 1 }))
    }
}

impl Iterator for Lines {
    type Item = Result<Line, BoxError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.number += 1;
        let line = self.lines.next()?;
        let read = line.map_err(BoxError::from).and_then(|text| Ok(object(text.as_bytes())?));
        Some(read.map_err(|error| format!("line {} of the ledger: {error}", self.number).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let workload =
            Workload { seed: u64::MAX, keys: 7, superseded_ppm: 1, hostile_ppm: 2, deletes_ppm: 0 };
        Header { started_at: 5, ..Header::of_test(workload) }
    }

    #[test]
    fn a_written_ledger_reads_back_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let ledger = Ledger::create(Some(&path), &header()).unwrap();
        let line = Line {
            n: 3,
            id: "r-3".into(),
            timestamp: 8,
            ingested_at: None,
            hash: "00".into(),
            outcome: Outcome::Unknown,
            status: Some(504),
            topic: None,
            partition: None,
            offset: None,
            attempts: 2,
            unconfirmed: vec![9],
            interrupted: Vec::new(),
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
    fn a_header_with_the_former_name_of_the_superseded_share_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let text = serde_json::to_string(&header()).unwrap();
        assert!(text.contains(r#""superseded_ppm":1"#), "{text}");
        std::fs::write(&path, text.replace("superseded_ppm", "stale_ppm") + "\n").unwrap();
        assert_eq!(Lines::open(&path).unwrap().0, header());
    }

    #[test]
    fn an_existing_file_is_not_changed_and_an_invalid_ledger_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        std::fs::write(&path, "precious\n").unwrap();
        let error = Ledger::create(Some(&path), &header()).unwrap_err();
        assert!(error.downcast_ref::<ConfigErrors>().is_some(), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious\n");
        assert!(Lines::open(&path).is_err());
        let text = serde_json::to_string(&header()).unwrap();
        std::fs::write(&path, format!("{text}\n{{\"n\":1")).unwrap();
        let (_, mut lines) = Lines::open(&path).unwrap();
        assert!(lines.next().unwrap().unwrap_err().to_string().contains("line 2"));
        // The fields of an event as an array, in their order.
        let array = r#"[3,"r-3",8,null,"00","unknown",504,null,null,null,2,[],[]]"#;
        std::fs::write(&path, format!("{text}\n{array}\n")).unwrap();
        let (_, mut lines) = Lines::open(&path).unwrap();
        assert!(lines.next().unwrap().unwrap_err().to_string().contains("line 2"));
        std::fs::write(&path, r#"["r","s",5,1,7,1,2,null]"#).unwrap();
        assert!(Lines::open(&path).is_err());
    }

    #[test]
    fn a_key_is_parsed_only_from_the_exact_form_of_an_id() {
        assert_eq!(key_of("load-1", "load-1-17"), Some(17));
        assert_eq!(key_of("load-1", "load-1-0"), Some(0));
        for other in ["load-1-017", "load-1-+17", "load-1-", "load-1-x", "load-1", "load-2-17", ""] {
            assert_eq!(key_of("load-1", other), None, "{other}");
        }
    }
}
