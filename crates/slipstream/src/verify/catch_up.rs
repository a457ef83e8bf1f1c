//! Waits until the group has finished everything that was on the topics when the wait began.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::options::Wait;
use super::progress::{Pace, Progress};
use crate::Failure;
use crate::check::Cluster;

/// How often the group is asked.
const PERIOD: Duration = Duration::from_millis(200);
/// How long records are waited for that the broker does not have, where there is no other limit.
const ABSENT_LIMIT: Duration = Duration::from_secs(10);

/// Offsets by topic and partition.
pub type Ends = BTreeMap<(String, i32), i64>;

/// What the group has finished, and what it has not.
#[derive(Debug, Clone, Default)]
pub struct Waiting {
    /// Of each partition the first offset that is not finished, and the end of what was waited for.
    partitions: BTreeMap<(String, i32), (i64, i64)>,
    /// How many records a second were finished at last; nothing where none was.
    pub per_second: Option<f64>,
}

impl Waiting {
    /// How many records are not finished.
    pub fn records(&self) -> u64 {
        self.partitions.values().map(|(next, end)| u64::try_from(end - next).unwrap_or(0)).sum()
    }

    /// Whether the record at `offset` is not finished.
    pub fn has(&self, topic: &str, partition: i32, offset: i64) -> bool {
        let at = self.partitions.get(&(topic.to_owned(), partition));
        at.is_some_and(|(next, end)| (*next..*end).contains(&offset))
    }

    /// Whether a record of the partition is not finished.
    pub fn is_in(&self, topic: &str, partition: i32) -> bool {
        self.partitions.get(&(topic.to_owned(), partition)).is_some_and(|(next, end)| next < end)
    }
}

/// Waits, and tells what is not finished then. `known` are ends that are waited for although the broker may not name them:
/// not every broker's are right. A topic that was made anew does not reach them; what the broker does not have when the
/// time is over is not waited for any longer.
///
/// # Errors
/// Kafka does not answer, or has no such topic.
pub async fn catch_up(
    config: &consumer::Config,
    known: &Ends,
    wait: Wait,
    mut progress: Progress,
) -> Result<Waiting, Failure> {
    let cluster = Cluster::new(config)?;
    let (begun, mut pace) = (Instant::now(), Pace::default());
    let mut ends = known.clone();
    let (mut first_time, mut last_there) = (true, Instant::now());
    loop {
        let asked = ask(&cluster, &config.topics, &mut ends, first_time).await;
        let is_over = match wait {
            Wait::For(limit) => begun.elapsed() >= limit,
            Wait::UntilDone => false,
        };
        match asked {
            Ok((known, waiting)) => {
                first_time = false;
                let there = waiting.records();
                pace.note(Instant::now(), there);
                let waiting = Waiting { per_second: pace.per_second(), ..waiting };
                if there > 0 {
                    last_there = Instant::now();
                    progress.show(there, waiting.per_second);
                }
                let is_absent = matches!(wait, Wait::UntilDone) && last_there.elapsed() > ABSENT_LIMIT;
                if known == 0 || is_over || is_absent {
                    return Ok(waiting);
                }
            }
            Err(error) if is_over => return Err(error),
            Err(error) => progress.unanswered(&error),
        }
        sleep(wait.at_most(PERIOD)).await;
    }
}

/// How many records are not finished up to the ends that are known, and what of that the broker has. With `learn` the
/// ends are those of now.
async fn ask(
    cluster: &Cluster,
    topics: &[String],
    ends: &mut Ends,
    learn: bool,
) -> Result<(u64, Waiting), Failure> {
    let existing = cluster.topics().await?;
    let (mut known, mut waiting) = (0, Waiting::default());
    for topic in topics {
        let ids = existing.get(topic).ok_or_else(|| format!("topic {topic} does not exist"))?.ids();
        for position in cluster.positions(topic, ids).await? {
            let place = (topic.clone(), position.partition);
            let end = ends.entry(place.clone()).or_insert(0);
            if learn {
                *end = position.end.max(*end);
            }
            let finished = position.committed.unwrap_or(position.first).max(position.first);
            known += u64::try_from(*end - finished).unwrap_or(0);
            waiting.partitions.insert(place, (finished, position.end.min(*end)));
        }
    }
    Ok((known, waiting))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_waits_from_the_group_s_offset_to_the_end_and_nowhere_else() {
        let at = |next, end| (("t".to_owned(), next as i32), (next, end));
        let waiting = Waiting { partitions: [at(0, 3), at(5, 5), at(9, 7)].into(), per_second: None };
        assert_eq!(waiting.records(), 3);
        assert!(waiting.has("t", 0, 0) && waiting.has("t", 0, 2) && !waiting.has("t", 0, 3));
        assert!(!waiting.has("t", 5, 4) && !waiting.has("t", 5, 5) && !waiting.has("u", 0, 0));
        assert!(waiting.is_in("t", 0) && !waiting.is_in("t", 5) && !waiting.is_in("t", 9));
    }
}
