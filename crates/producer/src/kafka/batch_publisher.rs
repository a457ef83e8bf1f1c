//! Many records of one request. Guarantees: they are handed over in order, in bounded memory; a full queue is waited
//! for until the delivery deadline; each has its own outcome, as true as that of a single record. A batch of
//! librdkafka that the broker refuses for its size is sent again record by record: only then can a record of a
//! request come behind a later one of the same id.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client::{Sender, Waiting};
use super::delivery::{NO_ACKNOWLEDGEMENT, Record, SendError, not_stored};
use super::delivery_error::Refusal;
use super::delivery_tracker::{Closed, Copied, Failed, Slot, Tally, Ticket};
use super::publisher::Kafka;

/// What a record takes in memory beside its value.
const OVERHEAD_BYTES: usize = 1024;
/// Between two attempts to hand a record to a queue that others have filled.
const QUEUE_PAUSE: Duration = Duration::from_millis(2);

/// The records of one request.
#[derive(Debug)]
pub struct Batch<'k> {
    kafka: &'k Kafka,
    stop: CancellationToken,
    traceparent: Option<&'k str>,
    tally: Arc<Tally>,
    failures: Vec<SendError>,
    sent_at: Instant,
}

/// Each record's outcome.
#[derive(Debug)]
pub struct Outcomes {
    /// The slots, in the order of sending, and how many were stored.
    pub closed: Closed,
    /// The failures that the slots name.
    pub failures: Vec<SendError>,
}

impl Outcomes {
    /// The failures that are some record's, and of how many.
    pub fn failed(&self) -> impl Iterator<Item = (&SendError, u64)> {
        let mut counts = vec![0; self.failures.len()];
        for slot in self.closed.pages.iter().flatten() {
            if let Slot::Failed(failure) = slot
                && let Some(count) = counts.get_mut(*failure as usize)
            {
                *count += 1;
            }
        }
        self.failures.iter().zip(counts).filter(|(_, count)| *count > 0)
    }
}

impl Kafka {
    /// Begins a batch. Once `stop` is cancelled, nothing more is sent.
    pub fn batch<'k>(
        &'k self,
        traceparent: Option<&'k str>,
        delivery_seconds: Histogram,
        stop: CancellationToken,
    ) -> Batch<'k> {
        let tally = Arc::new(Tally::new(delivery_seconds));
        Batch { kafka: self, stop, traceparent, tally, failures: Vec::new(), sent_at: Instant::now() }
    }
}

impl Batch<'_> {
    /// Sends a record, once there is room for it. Its outcome is in the next slot in any case; `label` is a small
    /// number to count it by.
    pub async fn send(&mut self, record: Record<'_>, label: u32) {
        let room = self.prepare(record.value.len()).await;
        // Not before: what waits for all outcomes must not wait for this one.
        let slot = self.tally.open();
        let sent = match room {
            Ok(room) => self.try_send(record, slot, label, room).await,
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            let failure = self.failure(error);
            self.tally.fail(slot, failure, true);
        }
    }

    async fn prepare(&mut self, bytes: usize) -> Result<OwnedSemaphorePermit, SendError> {
        self.kafka.sendable()?;
        if self.tally.troubled() {
            self.mend().await;
        }
        self.room(bytes, Instant::now() + self.kafka.limit).await
    }

    async fn try_send(
        &mut self,
        record: Record<'_>,
        slot: u32,
        label: u32,
        room: OwnedSemaphorePermit,
    ) -> Result<(), SendError> {
        let sender = &self.kafka.sender;
        let ticket = Ticket {
            tally: Arc::clone(&self.tally),
            slot,
            label,
            timestamp_ms: record.timestamp_ms,
            alone: false,
            sent: sender.mark(),
            sent_at: std::time::Instant::now(),
            _room: room,
        };
        self.hand_over(sender, record, ticket).await
    }

    /// Room for a record of `bytes`. While there is none, refused records that hold some are dealt with.
    async fn room(&mut self, bytes: usize, deadline: Instant) -> Result<OwnedSemaphorePermit, SendError> {
        let bytes = u32::try_from(bytes + OVERHEAD_BYTES).unwrap_or(u32::MAX);
        loop {
            let room = self.kafka.sender.room().ok_or_else(stopping)?;
            if let Ok(permit) = Arc::clone(&room).try_acquire_many_owned(bytes) {
                return Ok(permit);
            }
            let tally = Arc::clone(&self.tally);
            tokio::select! {
                room = tokio::time::timeout_at(deadline, room.acquire_many_owned(bytes)) => return match room {
                    // Kafka may have gone meanwhile.
                    Ok(Ok(permit)) => self.kafka.sendable().map(|()| permit),
                    _ => Err(queue_full()),
                },
                () = tally.trouble() => self.mend().await,
                () = self.stop.cancelled() => return Err(stopping()),
            }
        }
    }

    async fn hand_over(
        &mut self,
        sender: &Sender,
        record: Record<'_>,
        ticket: Ticket,
    ) -> Result<(), SendError> {
        let deadline = Instant::now() + self.kafka.limit;
        let mut waiting = Waiting::Batch(ticket);
        loop {
            let (error, back) = match sender.enqueue(&self.kafka.topic, record, waiting) {
                Ok(()) => break,
                Err(refused) => *refused,
            };
            let full = matches!(error, SendError::NotStored { reason: "queue_full", .. });
            if !full || Instant::now() >= deadline || self.stop.is_cancelled() {
                return Err(error);
            }
            waiting = back;
            tokio::time::sleep(QUEUE_PAUSE).await;
        }
        self.sent_at = Instant::now();
        Ok(())
    }

    /// Judges what failed. Records that were refused with their whole batch are sent again, each alone, once what is
    /// in flight has its outcome.
    async fn mend(&mut self) {
        let mut refused = self.judge();
        if refused.is_empty() {
            return;
        }
        refused.extend(self.settle().await);
        refused.sort_by_key(|(failed, _)| failed.ticket.slot);
        for (failed, copy) in refused {
            let slot = failed.ticket.slot;
            if let Err(error) = self.send_alone(failed, &copy).await {
                let failure = self.failure(error);
                self.tally.fail(slot, failure, true);
            }
        }
        self.settle().await;
    }

    async fn send_alone(&mut self, failed: Failed, copy: &Copied) -> Result<(), SendError> {
        self.tally.again();
        self.kafka.sendable()?;
        let alone = self.kafka.alone()?;
        let record = Record {
            key: &copy.key,
            value: &copy.value,
            timestamp_ms: failed.ticket.timestamp_ms,
            traceparent: self.traceparent,
        };
        let ticket = Ticket { alone: true, sent: alone.mark(), ..failed.ticket };
        self.hand_over(alone, record, ticket).await
    }

    /// Waits for the outcome of what is in flight, at most until its deadline. Refused batches are given back.
    async fn settle(&mut self) -> Vec<(Failed, Copied)> {
        let mut refused = Vec::new();
        let deadline = self.sent_at + self.kafka.limit;
        while let Ok(true) = tokio::time::timeout_at(deadline, self.tally.settled()).await {
            refused.extend(self.judge());
        }
        refused
    }

    fn judge(&mut self) -> Vec<(Failed, Copied)> {
        let mut refused = Vec::new();
        for mut failed in self.tally.take_failed() {
            let sender = if failed.ticket.alone { self.kafka.alone.get() } else { None };
            let sender = sender.unwrap_or(&*self.kafka.sender);
            let error = match (
                sender.judge(failed.code, failed.never_stored, failed.ticket.sent),
                failed.copy.take(),
            ) {
                (Refusal::Batch, Some(copy)) => {
                    refused.push((failed, copy));
                    continue;
                }
                (Refusal::Batch, None) => SendError::TooLarge,
                (Refusal::Final(error), _) => error,
            };
            let failure = self.failure(error);
            self.tally.fail(failed.ticket.slot, failure, false);
        }
        refused
    }

    /// The number of a failure. Many records share one: the last comes first.
    fn failure(&mut self, error: SendError) -> u32 {
        let known = self.failures.iter().rposition(|known| *known == error);
        let number = known.unwrap_or_else(|| {
            self.failures.push(error);
            self.failures.len() - 1
        });
        u32::try_from(number).unwrap_or(u32::MAX)
    }

    /// Waits for every outcome, at most until the deadline of the last record.
    pub async fn finish(mut self) -> Outcomes {
        while let Ok(true) =
            tokio::time::timeout_at(self.sent_at + self.kafka.limit, self.tally.settled()).await
        {
            self.mend().await;
        }
        let late = self.failure(SendError::Unknown(NO_ACKNOWLEDGEMENT.into()));
        Outcomes { closed: self.tally.close(late), failures: self.failures }
    }
}

fn queue_full() -> SendError {
    not_stored("queue_full", "too many events wait for kafka")
}

fn stopping() -> SendError {
    not_stored("stopping", "the producer is stopping")
}

#[cfg(test)]
mod tests;
