//! Waits until the group has finished all records that the topics had when the wait began.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use kafka::BoxError;
use kafka::cluster::Cluster;
use service::plural::counted;
use tokio::time::{Instant, sleep};

use crate::options::Wait;
use crate::progress::Progress;

/// Period of the requests for the group's offsets.
const POLL_PERIOD: Duration = Duration::from_millis(200);
/// With `until-done`, how long to wait for records that the broker does not have.
const ABSENT_TIMEOUT: Duration = Duration::from_secs(10);
/// The rate is an average over this time.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// End offsets by topic and partition.
pub type EndOffsets = BTreeMap<(String, i32), i64>;

/// The records that the group has not finished.
#[derive(Debug, Clone, Default)]
pub struct Backlog {
    /// For each partition: the first unfinished offset, and the end offset that was waited for.
    partitions: BTreeMap<(String, i32), (i64, i64)>,
    /// Finished records per second; `None` if the group finished no record.
    pub per_second: Option<f64>,
}

impl Backlog {
    /// Number of unfinished records.
    pub fn records(&self) -> u64 {
        self.partitions.values().map(|(next, end)| u64::try_from(end - next).unwrap_or(0)).sum()
    }

    /// Whether the record at `offset` is unfinished.
    pub fn contains(&self, topic: &str, partition: i32, offset: i64) -> bool {
        let range = self.partitions.get(&(topic.to_owned(), partition));
        range.is_some_and(|(next, end)| (*next..*end).contains(&offset))
    }

    /// Whether the partition has an unfinished record.
    pub fn contains_partition(&self, topic: &str, partition: i32) -> bool {
        self.partitions.get(&(topic.to_owned(), partition)).is_some_and(|(next, end)| next < end)
    }
}

/// The rate at which the group finishes the backlog.
#[derive(Debug, Default)]
struct DrainRate(VecDeque<(Instant, u64)>);

impl DrainRate {
    /// Adds the size of the backlog at `now`.
    fn add(&mut self, now: Instant, backlog: u64) {
        self.0.push_back((now, backlog));
        while self.0.len() > 2 && self.0.front().is_some_and(|(at, _)| now.duration_since(*at) > RATE_WINDOW)
        {
            self.0.pop_front();
        }
    }

    /// Finished records per second; `None` if no record was finished.
    fn per_second(&self) -> Option<f64> {
        let ((started, before), (ended, now)) = (self.0.front()?, self.0.back()?);
        let seconds = ended.duration_since(*started).as_secs_f64();
        let finished = before.checked_sub(*now).filter(|finished| *finished > 0)?;
        (seconds > 0.0).then(|| finished as f64 / seconds)
    }
}

/// The time that `records` take at `per_second`, in seconds.
pub fn seconds_left(records: u64, per_second: Option<f64>) -> Option<f64> {
    per_second.map(|rate| records as f64 / rate)
}

/// The time that `records` take at `per_second`, as text.
pub fn estimate(records: u64, per_second: Option<f64>) -> String {
    match (seconds_left(records, per_second), per_second) {
        (Some(seconds), Some(rate)) => {
            format!("about {} at the current rate of {rate:.0} per second", duration_text(seconds))
        }
        _ => "no record was finished while verify waited".to_owned(),
    }
}

fn duration_text(seconds: f64) -> String {
    let seconds = seconds.ceil().max(1.0) as u64;
    match (seconds / 3600, seconds / 60 % 60) {
        (0, 0) => format!("{seconds} s"),
        (0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    }
}

/// Waits, and returns the backlog at the end. `ledger_ends` are end offsets from the ledger: the
/// broker's own end offsets can be too low. A recreated topic never reaches them. Therefore the
/// wait also ends some time after the last backlog, even without a timeout.
pub async fn catch_up(
    config: &consumer::Config,
    ledger_ends: &EndOffsets,
    wait: Wait,
    mut progress: Progress,
) -> Result<Backlog, BoxError> {
    let cluster =
        Cluster::new(&config.kafka_broker, &config.properties, "slipstream-verify", &config.group_id)?;
    let (started, mut rate) = (Instant::now(), DrainRate::default());
    let mut ends = ledger_ends.clone();
    let (mut is_first, mut last_backlog) = (true, Instant::now());
    loop {
        let read = read_backlog(&cluster, &config.topics, &mut ends, is_first).await;
        let is_timeout = match wait {
            Wait::For(timeout) => started.elapsed() >= timeout,
            Wait::UntilDone => false,
        };
        match read {
            Ok((expected, backlog)) => {
                is_first = false;
                let records = backlog.records();
                rate.add(Instant::now(), records);
                let backlog = Backlog { per_second: rate.per_second(), ..backlog };
                if records > 0 {
                    last_backlog = Instant::now();
                    let estimate = estimate(records, backlog.per_second);
                    progress.show(0, &format!("waiting for {}: {estimate}", counted(records, "record")));
                }
                let is_absent = matches!(wait, Wait::UntilDone) && last_backlog.elapsed() > ABSENT_TIMEOUT;
                if expected == 0 || is_timeout || is_absent {
                    return Ok(backlog);
                }
            }
            Err(error) if is_timeout => return Err(error),
            Err(error) => progress.show(0, &format!("waiting: {error}")),
        }
        sleep(wait.limit(POLL_PERIOD)).await;
    }
}

/// Counts the unfinished records below `ends`. Also returns the backlog that the broker reports. With
/// `update_ends`, `ends` are first raised to the current end offsets of the broker.
async fn read_backlog(
    cluster: &Cluster,
    topics: &[String],
    ends: &mut EndOffsets,
    update_ends: bool,
) -> Result<(u64, Backlog), BoxError> {
    let existing = cluster.topics().await?;
    let (mut expected, mut backlog) = (0, Backlog::default());
    for topic in topics {
        let description = existing.get(topic).ok_or_else(|| format!("topic {topic} does not exist"))?;
        for position in cluster.positions(topic, description.partition_ids()).await? {
            let partition = (topic.clone(), position.partition);
            let end = ends.entry(partition.clone()).or_insert(0);
            if update_ends {
                *end = position.end.max(*end);
            }
            let next = position.committed.unwrap_or(position.first).max(position.first);
            expected += u64::try_from(*end - next).unwrap_or(0);
            backlog.partitions.insert(partition, (next, position.end.min(*end)));
        }
    }
    Ok((expected, backlog))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_contains_the_offsets_from_the_committed_one_to_the_end() {
        let at = |next, end| (("t".to_owned(), next as i32), (next, end));
        let backlog = Backlog { partitions: [at(0, 3), at(5, 5), at(9, 7)].into(), per_second: None };
        assert_eq!(backlog.records(), 3);
        assert!(backlog.contains("t", 0, 0) && backlog.contains("t", 0, 2) && !backlog.contains("t", 0, 3));
        assert!(!backlog.contains("t", 5, 4) && !backlog.contains("t", 5, 5) && !backlog.contains("u", 0, 0));
        assert!(backlog.contains_partition("t", 0));
        assert!(!backlog.contains_partition("t", 5) && !backlog.contains_partition("t", 9));
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let (mut rate, mut now) = (DrainRate::default(), Instant::now());
        assert_eq!(rate.per_second(), None);
        let mut add = |rate: &mut DrainRate, backlog| {
            rate.add(now, backlog);
            now += Duration::from_secs(1);
        };
        for backlog in [1_000, 1_000, 900, 800, 700] {
            add(&mut rate, backlog);
        }
        assert_eq!(rate.per_second(), Some(75.0));
        for _ in 0..20 {
            add(&mut rate, 700);
        }
        assert_eq!(rate.per_second(), None, "the consumer finishes nothing");
    }

    #[test]
    fn an_estimate_has_the_time_and_the_rate_unless_nothing_was_finished() {
        let rate = Some(2_500.0);
        assert_eq!(estimate(450_000, rate), "about 3 min 0 s at the current rate of 2500 per second");
        assert_eq!(estimate(1, rate), "about 1 s at the current rate of 2500 per second");
        assert_eq!(estimate(10_000_000, rate), "about 1 h 6 min at the current rate of 2500 per second");
        assert_eq!(estimate(7, None), "no record was finished while verify waited");
    }
}
