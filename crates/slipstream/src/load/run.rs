//! A run: workers that take tickets and send until each event is answered for good. Guarantee: an event that was sent
//! at least once has exactly one line in the ledger when the run is over, and it was sent with the same id and the same
//! body each time.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use service::backoff::Backoff;
use service::lock::lock;
use tokio::time::{Instant, sleep, sleep_until};

use super::answer::{Outcome, Place};
use super::client::{Client, Ended};
use super::ending::Ending;
use super::ledger::{Answer, Header, Ledger};
use super::sending::Sending;
use super::tally::Tally;
use super::tickets::{Ticket, Tickets};

/// Most bytes of one request: half of what a producer takes (MAX_BATCH_BYTES).
const REQUEST_BYTES: usize = 8 << 20;

/// What the workers share.
#[derive(Debug)]
pub struct Run {
    /// The run, as the ledger's first line says it.
    pub header: Header,
    /// The producer.
    pub client: Client,
    /// The ledger.
    pub ledger: Ledger,
    /// What is to be sent.
    pub tickets: Mutex<Tickets>,
    /// How many events there will be, if that is known.
    pub planned: Option<u64>,
    /// What was done.
    pub tally: Mutex<Tally>,
    /// How far the end is.
    pub ending: Ending,
}

impl Run {
    /// Sends events until there are no more.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub async fn work(self: Arc<Self>) -> io::Result<()> {
        while let Some(Ticket { events, due }) = self.next_ticket() {
            if let Some(due) = due {
                tokio::select! {
                    biased;
                    () = self.ending.no_more.cancelled() => break,
                    () = sleep_until(due) => {}
                }
            }
            let due = due.unwrap_or_else(Instant::now);
            let mut request: Vec<Sending> = Vec::with_capacity(events.len());
            let mut bytes = 0;
            for event in events {
                let sending = Sending::new(&self.header, event);
                if bytes + sending.body.len() > REQUEST_BYTES && !request.is_empty() {
                    self.deliver(std::mem::take(&mut request), due).await?;
                    bytes = 0;
                }
                bytes += sending.body.len() + 1;
                request.push(sending);
            }
            self.deliver(request, due).await?;
        }
        Ok(())
    }

    fn next_ticket(&self) -> Option<Ticket> {
        if self.ending.no_more.is_cancelled() {
            return None;
        }
        lock(&self.tickets).next()
    }

    /// Sends the events of one request until each is answered for good, or the run is over.
    async fn deliver(&self, mut left: Vec<Sending>, due: Instant) -> io::Result<()> {
        self.count_new(&left);
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        while !left.is_empty() {
            let (ended, retry_after) = tokio::select! {
                sent = self.client.send(&left) => sent,
                () = self.ending.cut.cancelled() => (vec![Ended::Cut; left.len()], None),
            };
            let mut again = Vec::new();
            for (sending, ended) in left.into_iter().zip(ended) {
                again.extend(self.settle(sending, ended, due)?);
            }
            left = again;
            if left.is_empty() {
                break;
            }
            tokio::select! {
                biased;
                () = self.ending.give_up.cancelled() => {
                    for sending in left {
                        self.finish(sending, None, false)?;
                    }
                    break;
                }
                () = sleep(retry_after.unwrap_or_else(|| backoff.next_delay())) => {}
            }
        }
        Ok(())
    }

    fn count_new(&self, new: &[Sending]) {
        let mut tally = lock(&self.tally);
        for Sending { event, .. } in new {
            tally.events += 1;
            tally.stale += u64::from(event.stale);
            tally.hostile += u64::from(event.hostile);
        }
        if self.planned == Some(tally.events) {
            self.ending.exhausted.cancel();
        }
    }

    /// Notes an attempt; gives the event back if it is to be sent again.
    fn settle(&self, mut sending: Sending, ended: Ended, due: Instant) -> io::Result<Option<Sending>> {
        {
            let mut tally = lock(&self.tally);
            match &ended {
                Ended::Told(told) => *tally.answers.entry(told.status).or_default() += 1,
                Ended::Unreachable(why) => {
                    tally.unreachable += 1;
                    tally.unreachable_reason = Some(Arc::clone(why));
                }
                Ended::Cut => tally.cut += 1,
            }
        }
        let (status, outcome) = ended.split();
        sending.note(status, &outcome, now_ms());
        match outcome {
            Outcome::Later | Outcome::Unknown => return Ok(Some(sending)),
            Outcome::Refused => self.finish(sending, None, true)?,
            Outcome::Accepted(place) => {
                lock(&self.tally).latencies.add(due.elapsed());
                self.finish(sending, Some(place), true)?;
            }
        }
        Ok(None)
    }

    fn finish(&self, sending: Sending, place: Option<Place>, for_good: bool) -> io::Result<()> {
        let line = sending.finish(place);
        let mut tally = lock(&self.tally);
        match line.answer {
            Answer::Accepted => tally.accepted += 1,
            Answer::Refused => tally.refused += 1,
            Answer::Unknown => tally.unknown += 1,
        }
        tally.unanswered += u64::from(!for_good);
        drop(tally);
        self.ledger.write(&line)
    }
}

/// Milliseconds of the epoch.
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
