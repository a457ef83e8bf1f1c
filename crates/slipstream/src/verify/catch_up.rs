//! Waits until the group has finished everything that was on the topics when the wait began.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Failure;
use crate::check::Cluster;

/// How often the group is asked.
const PERIOD: Duration = Duration::from_millis(200);

/// Offsets by topic and partition.
pub type Ends = BTreeMap<(String, i32), i64>;

/// Waits, at most for `limit`; how many records are not finished then. `known` are ends that are waited for although the
/// broker may not name them: not every broker's are right. A topic that was made anew does not reach them; what the
/// broker does not have when the time is over is not waited for any longer.
///
/// # Errors
/// Kafka does not answer, or has no such topic.
pub async fn catch_up(config: &consumer::Config, known: &Ends, limit: Duration) -> Result<u64, Failure> {
    let cluster = Cluster::new(config)?;
    let begun = Instant::now();
    let mut ends = known.clone();
    let mut first_time = true;
    loop {
        let waiting = waiting(&cluster, &config.topics, &mut ends, first_time).await;
        match waiting {
            Ok(Waiting { known: 0, .. }) => return Ok(0),
            Ok(waiting) if begun.elapsed() >= limit => return Ok(waiting.there),
            Err(error) if begun.elapsed() >= limit => return Err(error),
            waiting => first_time &= waiting.is_err(),
        }
        sleep(PERIOD.min(limit)).await;
    }
}

/// Records that are not finished.
struct Waiting {
    /// Up to the ends that are known.
    known: u64,
    /// And up to those that the broker names.
    there: u64,
}

/// How many records are not finished. With `learn` the ends are those of now.
async fn waiting(
    cluster: &Cluster,
    topics: &[String],
    ends: &mut Ends,
    learn: bool,
) -> Result<Waiting, Failure> {
    let existing = cluster.topics().await?;
    let mut waiting = Waiting { known: 0, there: 0 };
    for topic in topics {
        let ids = existing.get(topic).ok_or_else(|| format!("topic {topic} does not exist"))?.ids();
        for position in cluster.positions(topic, ids).await? {
            let end = ends.entry((topic.clone(), position.partition)).or_insert(0);
            if learn {
                *end = position.end.max(*end);
            }
            let finished = position.committed.unwrap_or(position.first).max(position.first);
            waiting.known += u64::try_from(*end - finished).unwrap_or(0);
            waiting.there += u64::try_from(position.end.min(*end) - finished).unwrap_or(0);
        }
    }
    Ok(waiting)
}
