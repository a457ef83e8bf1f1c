//! Which of the ids that lack an event cannot get it any more: its record is no longer on the topic, because that was
//! deleted, or kept it for less time than the consumer was away.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use rdkafka::Message;

use super::judge::place_of;
use super::sent::Times;
use crate::Failure;
use crate::load::id_of;
use crate::load::ledger::{Answer, Header, Lines};
use crate::scan::{NEXT, Place, Scan};

/// How far the clock of the load and that of the producer, which stamps records, may be apart.
const SKEW: Duration = Duration::from_secs(3600);

/// Those of `owed` of which no accepted record is left that is newer than what is stored; an id of which the ledger
/// cannot tell such a record's place is not one of them.
///
/// # Errors
/// Kafka does not answer, or the ledger cannot be read.
pub fn gone(
    config: &consumer::Config,
    header: &Header,
    lines: Lines,
    owed: &HashMap<u64, Times>,
) -> Result<HashSet<u64>, Failure> {
    if owed.is_empty() {
        return Ok(HashSet::new());
    }
    let (mut places, mut gone) = (HashMap::<Place, u64>::new(), owed.keys().copied().collect::<HashSet<_>>());
    for line in lines {
        let line = line?;
        let key = header.mix.key(line.n);
        let times = Times { timestamp: line.timestamp, ingested_at: line.ingested_at.unwrap_or(i64::MAX) };
        let counts = owed.get(&key).is_some_and(|stored| times > *stored);
        if line.answer != Answer::Accepted || !counts {
            continue;
        }
        match place_of(&line, &config.topics) {
            Some(place) => _ = places.insert(place, key),
            None => _ = gone.remove(&key),
        }
    }
    let since_ms = header.started_at - SKEW.as_millis() as i64;
    let scan = Scan::new(config, "slipstream-verify");
    for topic in &config.topics {
        scan.read(topic, Some(since_ms), |message| {
            if let Some(key) = places.get(&Place::of(message))
                && message.key() == Some(id_of(&header.run, *key).as_bytes())
            {
                gone.remove(key);
            }
            NEXT
        })?;
    }
    Ok(gone)
}
