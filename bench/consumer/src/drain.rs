//! One side drains one topic into an empty collection, watched from outside: the clock runs from the moment at which the
//! first document is seen to the one at which every event is.

use std::time::{Duration, Instant};

use devservers::{peak_memory_bytes, processor_time};

use crate::Failure;
use crate::collection::Collection;
use crate::programs::Programs;
use crate::side::{Places, Side};
use crate::stage::Stage;
use crate::topic::{Last, Topic};

/// A JVM and a group's first join are slow.
const STARTED_WITHIN: Duration = Duration::from_secs(120);
/// Between two looks: at the start, which is short, and later, when looking must not cost the database much.
const LOOK_AT_THE_START: Duration = Duration::from_millis(2);
const LOOK: Duration = Duration::from_millis(25);

/// What a side took.
#[derive(Debug, Clone, Copy)]
pub struct Drain {
    /// Records that were stored while the clock ran.
    pub records: u32,
    /// How long the clock ran.
    pub clock: Duration,
    /// From the start of the process to the last document.
    pub whole: Duration,
    /// Processor time that the side's process used while the clock ran.
    pub processor: Duration,
    /// The most memory that it ever had.
    pub peak_memory_bytes: u64,
}

impl Drain {
    /// Records a second.
    pub fn rate(&self) -> f64 {
        f64::from(self.records) / self.clock.as_secs_f64()
    }

    /// Microseconds of processor time for each record.
    pub fn processor_us(&self) -> f64 {
        self.processor.as_secs_f64() * 1e6 / f64::from(self.records)
    }
}

/// Has `side` drain `topic`.
pub async fn drain(stage: &Stage, programs: &Programs, side: Side, topic: &Topic) -> Result<Drain, Failure> {
    let collection = Collection::make(stage).await?;
    let places = Places::new(stage, &topic.name, &collection)?;
    let launched = Instant::now();
    let running = side.start(programs, &places)?;
    let (pid, title) = (running.pid(), side.title());
    running.meanwhile(&title, STARTED_WITHIN, first_document(&collection)).await?;
    let before = collection.count().await?;
    let start = Moment::now(pid)?;
    // 500 records a second is less than the slowest side has ever come to.
    let limit = Duration::from_secs(60 + u64::from(topic.records) / 500);
    let end = running.meanwhile(&title, limit, every_event(&collection, topic, pid)).await?;
    let drain = Drain {
        records: topic.records.saturating_sub(before),
        clock: end.at - start.at,
        whole: end.at - launched,
        processor: end.processor.saturating_sub(start.processor),
        peak_memory_bytes: peak_memory_bytes(pid)?,
    };
    running.stop().await;
    Ok(drain)
}

/// A time, and what a process had used until then.
struct Moment {
    at: Instant,
    processor: Duration,
}

impl Moment {
    fn now(pid: u32) -> Result<Moment, Failure> {
        Ok(Moment { at: Instant::now(), processor: processor_time(pid)? })
    }
}

/// Returns once the collection has a document.
pub async fn first_document(collection: &Collection) -> Result<(), Failure> {
    let mut looks = interval(LOOK_AT_THE_START);
    while collection.count().await? == 0 {
        looks.tick().await;
    }
    Ok(())
}

/// Returns once the collection has what all these events come to. A partition is taken in order, so nothing can be
/// complete before the last event of each is there; from then on the whole collection is looked at.
async fn every_event(collection: &Collection, topic: &Topic, pid: u32) -> Result<Moment, Failure> {
    last_events(collection, &topic.last).await?;
    loop {
        // What is seen now was there now, whenever the answer comes.
        let now = Moment::now(pid)?;
        if collection.totals().await? == topic.totals {
            return Ok(now);
        }
    }
}

/// Returns once the collection has these events, or newer ones.
pub async fn last_events(collection: &Collection, last: &[Last]) -> Result<(), Failure> {
    let mut open: Vec<&Last> = last.iter().collect();
    let mut looks = interval(LOOK);
    loop {
        looks.tick().await;
        let ids: Vec<&str> = open.iter().map(|last| last.id.as_str()).collect();
        let seen = collection.timestamps(&ids).await?;
        open.retain(|last| seen.get(&last.id).is_none_or(|timestamp| *timestamp < last.timestamp));
        if open.is_empty() {
            return Ok(());
        }
    }
}

fn interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval
}
