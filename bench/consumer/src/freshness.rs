//! How long a single event takes from its acknowledgement until its document is visible: at low load, and while another
//! partition has much to catch up on.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use events::{Event, EventId};

use crate::Failure;
use crate::cli::Options;
use crate::collection::Collection;
use crate::drain::{first_document, last_events};
use crate::programs::Programs;
use crate::sample::Aircraft;
use crate::sender::Sender;
use crate::side::{Places, Side};
use crate::stage::Stage;
use crate::statistics::percentile;
use crate::topic::{self, Topic};
use crate::watcher::{Seen, Watcher};
use crate::workload::{self, Workload};

/// Ten a second.
const PERIOD: Duration = Duration::from_millis(100);
/// Sent at the same rate before what counts.
const WARM_UP: Duration = Duration::from_secs(5);
/// For starts and stragglers.
const SLACK: Duration = Duration::from_secs(180);
/// The partition that has the lag, and the one whose freshness is measured meanwhile.
const BEHIND: i32 = 0;
const FRESH: i32 = 1;

/// Measures what the options name on each side that reads a topic; the results as Markdown.
pub async fn measure(
    stage: &Stage,
    programs: &Programs,
    options: &Options,
    aircraft: &[Aircraft],
) -> Result<String, Failure> {
    let trial = Trial { stage, programs, options, aircraft };
    let mut text =
        "| load | side | events | p50, ms | p99, ms | most, ms | resolution, ms |\n|---|---|--:|--:|--:|--:|--:|\n"
            .to_owned();
    for side in Side::consumers(options) {
        if options.freshness {
            let seen = Box::pin(trial.at_low_load(side)).await?;
            text.push_str(&row("10 events/s", side, &seen));
        }
        if options.catching_up {
            let (seen, load) = Box::pin(trial.while_catching_up(side)).await?;
            text.push_str(&row(&load, side, &seen));
        }
    }
    Ok(text)
}

fn row(load: &str, side: Side, seen: &Seen) -> String {
    let ms = |time: Option<Duration>| {
        time.map_or_else(|| "–".to_owned(), |time| format!("{:.1}", time.as_secs_f64() * 1e3))
    };
    let ages = &seen.ages;
    let mut row = format!("| {load} | {} | {} |", side.title(), ages.len());
    for time in [percentile(ages, 50.0), percentile(ages, 99.0), ages.last().copied(), Some(seen.resolution)]
    {
        _ = write!(row, " {} |", ms(time));
    }
    crate::say(&row);
    row + "\n"
}

/// What every measurement needs.
struct Trial<'a> {
    stage: &'a Stage,
    programs: &'a Programs,
    options: &'a Options,
    aircraft: &'a [Aircraft],
}

impl Trial<'_> {
    fn seconds(&self) -> Duration {
        Duration::from_secs(self.options.seconds.into())
    }

    /// Events come one by one to an idle side.
    async fn at_low_load(&self, side: Side) -> Result<Seen, Failure> {
        let collection = Arc::new(Collection::make(self.stage).await?);
        let name = format!("fresh-{side:?}").replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        topic::create(&self.stage.kafka(), &name).await?;
        let places = Places::new(self.stage, &name, &collection)?;
        let sender = match side {
            Side::Slipstream => Sender::to_producer(self.stage, self.programs, &places).await?,
            _ => Sender::to_kafka(&places.kafka, &name, side, None)?,
        };
        let running = side.start(self.programs, &places)?;
        let measured = async {
            let watcher = Watcher::start(Arc::clone(&collection))?;
            self.send(&sender, &watcher, "first", Duration::ZERO).await?;
            watcher.finish().await?;
            let watcher = Watcher::start(Arc::clone(&collection))?;
            self.send(&sender, &watcher, "warm", WARM_UP).await?;
            watcher.finish().await?;
            let watcher = Watcher::start(Arc::clone(&collection))?;
            self.send(&sender, &watcher, "fresh", self.seconds()).await?;
            watcher.finish().await
        };
        let seen = running.meanwhile(&side.title(), self.seconds() + SLACK, measured).await?;
        running.stop().await;
        sender.stop().await;
        Ok(seen)
    }

    /// Events come one by one to one partition, while another has a lag; as long as that lasts, but not for ever.
    async fn while_catching_up(&self, side: Side) -> Result<(Seen, String), Failure> {
        let (lag, kafka) = (self.options.lag, self.stage.kafka());
        let name = format!("lag-{side:?}").replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let events = Workload::New.events(self.aircraft, lag)?;
        let behind = Topic::filled(&kafka, &name, &events, side.form(), Some(BEHIND)).await?;
        let collection = Arc::new(Collection::make(self.stage).await?);
        let places = Places::new(self.stage, &name, &collection)?;
        let sender = Sender::to_kafka(&kafka, &name, side, Some(FRESH))?;
        let running = side.start(self.programs, &places)?;
        let measured = async {
            first_document(&collection).await?;
            let (start, watcher) = (Instant::now(), Watcher::start(Arc::clone(&collection))?);
            let caught_up = tokio::select! {
                done = last_events(&collection, &behind.last) => done.map(|()| true),
                sent = self.send(&sender, &watcher, "fresh", self.seconds()) => sent.map(|()| false),
            }?;
            let took = start.elapsed().as_secs_f64();
            let end =
                if caught_up { format!("caught up after {took:.1} s") } else { "still behind".to_owned() };
            Ok((watcher.finish().await?, format!("10 events/s beside a lag of {lag}, {end}")))
        };
        let seen = running.meanwhile(&side.title(), self.seconds() + SLACK, measured).await?;
        running.stop().await;
        Ok(seen)
    }

    /// Sends events at a steady rate for a time, at least one.
    async fn send(
        &self,
        sender: &Sender,
        watcher: &Watcher,
        name: &str,
        time: Duration,
    ) -> Result<(), Failure> {
        let mut ticks = tokio::time::interval(PERIOD);
        let start = Instant::now();
        for (number, aircraft) in self.aircraft.iter().enumerate() {
            ticks.tick().await;
            if number > 0 && start.elapsed() >= time {
                break;
            }
            let event = event_now(aircraft, &format!("{name}-{number}"))?;
            let id = event.id.to_string();
            watcher.expect(id, sender.send(&event).await?)?;
        }
        Ok(())
    }
}

fn event_now(aircraft: &Aircraft, name: &str) -> Result<Event, Failure> {
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    workload::event(EventId::new(format!("{}-{name}", aircraft.id))?, aircraft, now)
}
