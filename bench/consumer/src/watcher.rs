//! Tells when documents become visible: one thread that asks the database for all that are waited for, again and again
//! with hardly a pause, as long as any is.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::Failure;
use crate::collection::Collection;

/// Between an answer and the next question.
const PAUSE: Duration = Duration::from_micros(300);
/// A document that is not there by then never comes.
const VISIBLE_WITHIN: Duration = Duration::from_secs(60);

/// A thread that watches a collection.
#[derive(Debug)]
pub struct Watcher {
    sent: Sender<(String, Instant)>,
    thread: JoinHandle<Result<Seen, Failure>>,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// How long each document took to become visible, the shortest time first.
    pub ages: Vec<Duration>,
    /// From one question to the next, on average: no age is known better than that.
    pub resolution: Duration,
}

impl Watcher {
    /// Starts the thread.
    pub fn start(collection: Arc<Collection>) -> Result<Watcher, Failure> {
        let (sent, arrivals) = channel();
        let runtime = Handle::current();
        let watch = move || watch(&runtime, &collection, &arrivals);
        let thread = std::thread::Builder::new().name("watcher".to_owned()).spawn(watch)?;
        Ok(Watcher { sent, thread })
    }

    /// From now on, the document of this id is waited for.
    pub fn expect(&self, id: String, since: Instant) -> Result<(), Failure> {
        self.sent.send((id, since)).map_err(|_| "the watcher has given up".into())
    }

    /// Waits for all that are still expected.
    pub async fn finish(self) -> Result<Seen, Failure> {
        drop(self.sent);
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await?;
        joined.map_err(|_| "the watcher panicked")?
    }
}

fn watch(
    runtime: &Handle,
    collection: &Collection,
    arrivals: &Receiver<(String, Instant)>,
) -> Result<Seen, Failure> {
    let mut seen = Seen::default();
    let mut waiting: HashMap<String, Instant> = HashMap::new();
    let (mut rounds, mut watched) = (0_u32, Duration::ZERO);
    loop {
        if waiting.is_empty() {
            let Ok((id, since)) = arrivals.recv() else { break };
            waiting.insert(id, since);
        }
        waiting.extend(arrivals.try_iter());
        let began = Instant::now();
        let ids: Vec<&str> = waiting.keys().map(String::as_str).collect();
        let visible = runtime.block_on(collection.timestamps(&ids))?;
        for id in visible.keys() {
            seen.ages.extend(waiting.remove(id).map(|since| since.elapsed()));
        }
        if waiting.values().any(|since| since.elapsed() > VISIBLE_WITHIN) {
            return Err("a document did not become visible".into());
        }
        std::thread::park_timeout(PAUSE);
        rounds += 1;
        watched += began.elapsed();
    }
    seen.ages.sort_unstable();
    seen.resolution = watched.checked_div(rounds).unwrap_or_default();
    Ok(seen)
}
