//! Holds what was sent against what is stored. Memory grows with the ids of the run, not with its events.

use std::collections::{HashMap, HashSet};

use bson::Document;

use super::catch_up::{Ends, Waiting};
use super::document::{Metadata, differences, expected};
use super::key_of;
use super::letters::Letters;
use super::report::{Ledgered, Report};
use super::sent::{Held, Sent, Times, Version};
use crate::Failure;
use crate::load::ledger::{Answer, Header, Line};
use crate::load::{hex, id_of};
use crate::scan::Place;

/// What was sent, by key.
#[derive(Debug)]
pub struct Judge {
    header: Header,
    sent: HashMap<u64, Sent>,
    /// Keys of which a record may wait: what is stored of them may change.
    undecided: HashSet<u64>,
    /// Documents that a newer event should have replaced.
    stale: Vec<Stale>,
    report: Report,
}

/// A document that a newer event should have replaced.
#[derive(Debug)]
struct Stale {
    key: u64,
    stored: Times,
    /// Its id and its times, in words.
    told: String,
}

/// The place after each partition's last accepted event, as far as the ledger tells it.
///
/// # Errors
/// A line that cannot be read.
pub fn ends(lines: impl Iterator<Item = Result<Line, Failure>>, topics: &[String]) -> Result<Ends, Failure> {
    let mut ends = Ends::new();
    for line in lines {
        if let Some(Place { topic, partition, offset }) = place_of(&line?, topics) {
            let end = ends.entry((topic, partition)).or_insert(0);
            *end = (*end).max(offset + 1);
        }
    }
    Ok(ends)
}

/// Where the record of an event is, if the answer said so; that to a batch does not name the topic.
pub fn place_of(line: &Line, topics: &[String]) -> Option<Place> {
    let only = if let [topic] = topics { Some(topic) } else { None };
    let topic = line.topic.as_ref().or(only)?.clone();
    Some(Place { topic, partition: line.partition?, offset: line.offset? })
}

/// Whether a record of the event may be among those that wait.
fn may_wait(line: &Line, (waiting, topics): (&Waiting, &[String])) -> bool {
    if waiting.records() == 0 || line.answer == Answer::Refused {
        return false;
    }
    let repeated = !(line.unconfirmed.is_empty() && line.cut.is_empty());
    match place_of(line, topics).filter(|_| line.answer == Answer::Accepted) {
        // Another attempt left its record anywhere in the partition, if it left one.
        Some(Place { topic, partition, .. }) if repeated => waiting.is_in(&topic, partition),
        Some(Place { topic, partition, offset }) => waiting.has(&topic, partition, offset),
        None => true,
    }
}

impl Judge {
    /// Of the run of this ledger; the dead letters come first, as they decide what must be stored. What `waiting` records
    /// of these topics may change is not judged.
    ///
    /// # Errors
    /// A line that cannot be read, or that is not of this run's events.
    pub fn new(
        header: Header,
        lines: impl Iterator<Item = Result<Line, Failure>>,
        letters: Letters,
        waiting: (&Waiting, &[String]),
    ) -> Result<Self, Failure> {
        let (mut sent, mut ledger) = (HashMap::<u64, Sent>::new(), Ledgered::default());
        let mut undecided = HashSet::new();
        for line in lines {
            let line = line?;
            check(&header, &line)?;
            ledger.events += 1;
            ledger.attempts += u64::from(line.attempts);
            ledger.unconfirmed += line.unconfirmed.len() as u64;
            let version = Version {
                n: line.n,
                timestamp: line.timestamp,
                ingested_at: line.ingested_at,
                repeated: !(line.unconfirmed.is_empty() && line.cut.is_empty()),
            };
            let key = header.mix.key(line.n);
            if may_wait(&line, waiting) {
                undecided.insert(key);
            }
            match line.answer {
                Answer::Accepted => {
                    ledger.accepted += 1;
                    let sent = sent.entry(key).or_default();
                    // Someone may have sent the dead letter's record again.
                    if letters.have(key, line.timestamp) {
                        sent.maybe(version);
                    } else {
                        sent.accepted(version);
                    }
                }
                Answer::Unknown => {
                    ledger.unknown += 1;
                    sent.entry(key).or_default().maybe(version);
                }
                Answer::Refused => ledger.refused += 1,
            }
        }
        let run = header.run.clone();
        let not_judged = undecided.len() as u64;
        let report = Report { run, ledger, not_judged, dead_lettered: letters.finding, ..Report::default() };
        Ok(Self { header, sent, undecided, stale: Vec::new(), report })
    }

    /// A document of the collection whose id begins as the run's.
    pub fn document(&mut self, stored: &Document) {
        self.report.documents += 1;
        let id = stored.get_str("event_id").unwrap_or_default();
        let sent = key_of(&self.header.run, id).and_then(|key| Some((key, self.sent.get_mut(&key)?)));
        let Some((key, sent)) = sent else {
            return self.report.foreign.add(|| format!("{id}: was never sent, or was refused"));
        };
        sent.documents += 1;
        if sent.documents == 2 {
            self.report.duplicated.add(|| format!("{id}: has several documents"));
        }
        if self.undecided.contains(&key) {
            return;
        }
        let times = (stored.get_i64("event_timestamp"), stored.get_i64("ingested_at"));
        let (Ok(timestamp), Ok(ingested_at)) = times else {
            return self.report.altered.add(|| format!("{id}: event_timestamp or ingested_at is no int64"));
        };
        let told = format!("{id}: event_timestamp {timestamp}, ingested_at {ingested_at}");
        match sent.holds(timestamp, ingested_at) {
            Held::Older => self.stale.push(Stale { key, stored: Times { timestamp, ingested_at }, told }),
            Held::Nothing => self.report.altered.add(|| format!("{told}: no accepted event has these times")),
            Held::Event(n) => {
                // Where the producer did not tell its version, any text is right.
                let api_version = self.header.api_version.as_deref();
                let api_version = api_version.or(stored.get_str("api_version").ok()).unwrap_or("a text");
                let metadata = Metadata { id, timestamp, ingested_at, api_version };
                let wrong = differences(&expected(self.header.mix.payload(n).fields, metadata), stored);
                if !wrong.is_empty() {
                    self.report.altered.add(|| format!("{told}: differs in {}", wrong.join(", ")));
                }
            }
        }
    }

    /// The keys that lack an accepted event, nothing more being stored: each with the times of what is stored, which an
    /// event must exceed to replace it.
    pub fn owed(&self) -> HashMap<u64, Times> {
        let decided = self.sent.iter().filter(|(key, _)| !self.undecided.contains(key));
        let missing = decided.filter(|(_, sent)| sent.is_owed() && sent.documents == 0);
        let missing = missing.map(|(key, _)| (*key, Times::NOTHING));
        missing.chain(self.stale.iter().map(|stale| (stale.key, stale.stored))).collect()
    }

    /// The verdict; of the [`Judge::owed`], those in `gone` can get nothing any more.
    pub fn finish(mut self, gone: &HashSet<u64>) -> Report {
        for Stale { key, told, .. } in std::mem::take(&mut self.stale) {
            if gone.contains(&key) {
                let why = "newer events were accepted, and their records are not on the topic any more";
                self.report.gone.add(|| format!("{told}: {why}"));
            } else {
                self.report.stale.add(|| format!("{told}: a newer event was accepted"));
            }
        }
        let mut missing: Vec<u64> = self.owed().into_keys().collect();
        missing.sort_unstable();
        for key in missing {
            let id = id_of(&self.header.run, key);
            if gone.contains(&key) {
                self.report
                    .gone
                    .add(|| format!("{id}: was not stored, and its records are not on the topic any more"));
            } else {
                self.report.missing.add(|| format!("{id}: has no document"));
            }
        }
        self.report
    }
}

/// Whether the line is of an event that the run's seed makes.
fn check(header: &Header, line: &Line) -> Result<(), Failure> {
    let id = id_of(&header.run, header.mix.key(line.n));
    if line.id != id || line.hash != hex(&header.mix.payload(line.n).text) {
        return Err(format!(
            "the ledger's event {} ({}) is not the one that its seed makes: the ledger was changed, or is of another \
             version of slipstream, and cannot be judged",
            line.n, line.id
        )
        .into());
    }
    Ok(())
}
