//! A handle on the counters of a consumer that runs in this process.

use std::sync::Arc;

use crate::metrics::{Metrics, Snapshot};
use crate::partition::workers::Workers;

/// The counters of one consumer. Clones share them.
#[derive(Clone)]
pub struct Counters {
    metrics: Metrics,
    workers: Arc<Workers>,
}

impl Counters {
    pub(crate) fn new(metrics: Metrics, workers: Arc<Workers>) -> Self {
        Self { metrics, workers }
    }

    /// Whether this process has finished the record at `offset`, committed or not. The result is
    /// right only for offsets that it may have read since its start.
    pub fn has_finished(&self, topic: &str, partition: i32, offset: i64) -> bool {
        self.workers.has_finished(topic, partition, offset)
    }

    /// The counters at this moment.
    pub fn snapshot(&self) -> Snapshot {
        let partitions = self.workers.views();
        let lag = match partitions.is_empty() {
            true => None,
            false => partitions.iter().map(|partition| partition.progress.lag()).sum(),
        };
        self.metrics.snapshot(lag)
    }
}
