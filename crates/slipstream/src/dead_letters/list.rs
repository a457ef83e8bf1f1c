//! `slipstream dead-letters list`: a line for each, written as it is read.

use std::io::{ErrorKind, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;

use serde_json::{Map, Value, json};

use super::filter::Filter;
use super::options::ListOptions;
use super::text::{escaped, line, member};
use super::{Deployment, now_ms};
use crate::Failure;
use crate::letter::{Letter, time};
use crate::scan::{NEXT, Place, Scan, Step};

/// Lists the dead letters that `options` mean.
pub async fn list(options: ListOptions, deployment: Deployment) -> Result<ExitCode, Failure> {
    let filter = Filter::new(options.filters, now_ms()?);
    let scan = Scan::new(&deployment.config, "slipstream-dead-letters");
    let topics: Vec<String> = deployment.letters.into_keys().collect();
    let mut lines = Lines { json: options.json, left: options.limit.unwrap_or(u64::MAX), count: 0 };
    let read = tokio::task::spawn_blocking(move || {
        for topic in topics {
            if lines.left > 0 {
                scan.read(&topic, filter.since_ms, |message| {
                    let letter = Letter::of(message);
                    if filter.takes(&letter) { lines.write(&letter) } else { NEXT }
                })?;
            }
        }
        lines.end()
    });
    match read.await? {
        Err(error) if is_closed(&error) => Ok(ExitCode::SUCCESS),
        outcome => outcome.map(|()| ExitCode::SUCCESS),
    }
}

/// Whoever read the lines has seen enough of them.
fn is_closed(error: &Failure) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

struct Lines {
    json: bool,
    left: u64,
    count: u64,
}

impl Lines {
    fn write(&mut self, letter: &Letter) -> Step {
        let text = if self.json { Value::Object(object(letter)).to_string() } else { text(letter) };
        writeln!(std::io::stdout(), "{text}")?;
        self.count += 1;
        self.left -= 1;
        if self.left == 0 { Ok(ControlFlow::Break(())) } else { NEXT }
    }

    fn end(&self) -> Result<(), Failure> {
        if !self.json {
            let limit = if self.left == 0 { "; the limit ends the list" } else { "" };
            writeln!(std::io::stdout(), "{} dead letters{limit}", self.count)?;
        }
        Ok(())
    }
}

/// A dead letter in a line.
pub fn text(letter: &Letter) -> String {
    let at = letter.record_ms.map_or_else(|| "no time".to_owned(), time);
    let key = letter.key.as_deref().map_or_else(|| "no key".to_owned(), |key| format!("key {}", line(key)));
    let origin = letter
        .origin
        .as_ref()
        .map_or_else(|| "an unknown place".to_owned(), |origin| escaped(&origin.to_string()));
    let replays = match letter.replays {
        0 => String::new(),
        replays => format!("  replays {replays}"),
    };
    format!("{}  {at}  {key}  of {origin}{replays}  {}", letter.place, reason(letter))
}

/// Why a record could not be stored, in a line.
pub fn reason(letter: &Letter) -> String {
    escaped(&letter.why())
}

/// A dead letter for programs, without headers and value.
pub fn object(letter: &Letter) -> Map<String, Value> {
    let place =
        |place: &Place| json!({"topic": place.topic, "partition": place.partition, "offset": place.offset});
    let mut object = Map::new();
    let members = [
        ("topic", json!(letter.place.topic)),
        ("partition", json!(letter.place.partition)),
        ("offset", json!(letter.place.offset)),
        ("timestamp", json!(letter.record_ms)),
        ("time", json!(letter.record_ms.map(time))),
        ("origin", json!(letter.origin.as_ref().map(place))),
        ("stage", json!(letter.stage)),
        ("class", json!(letter.class)),
        ("reason", json!(letter.reason)),
        ("source", json!(letter.source)),
        ("replays", json!(letter.replays)),
        ("value_bytes", json!(letter.value_bytes)),
    ];
    object.extend(members.map(|(name, value)| (name.to_owned(), value)));
    member(&mut object, "key", letter.key.as_deref());
    object
}
