//! A run over one dead-letter topic: reads, sends, and commits what is acknowledged, once a second and at the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Message;
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::judge::{Judge, Verdict};
use super::member::Member;
use super::partition::Partition;
use super::report::{End, Report};
use super::sender::{Fate, Sender};
use crate::dead_letter::DeadLetter;
use kafka::BoxError;
use kafka::requests::REQUEST_TIMEOUT;
use kafka::topic_reader::{RecordPosition, is_transient};

/// Most records under way, and most bytes of them: memory.
const UNDER_WAY: usize = 500;
const UNDER_WAY_BYTES: usize = 16 << 20;
/// How often what is acknowledged is committed.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// A record that was sent, and how it fared.
struct Sent {
    place: RecordPosition,
    bytes: usize,
    fate: Fate,
}

/// What a run over a topic needs, and what it knows.
pub struct Run<'a> {
    /// Says what is to be done with each.
    pub judge: &'a Judge,
    /// Sends.
    pub sender: &'a Sender,
    /// Counts.
    pub report: &'a mut Report,
    /// How many may still be sent.
    pub left: &'a mut u64,
    partitions: BTreeMap<i32, Partition>,
    under_way: JoinSet<Sent>,
    bytes: usize,
    last_news: Instant,
    failure: Option<BoxError>,
}

impl<'a> Run<'a> {
    /// Over these partitions.
    pub fn new(
        judge: &'a Judge,
        sender: &'a Sender,
        (report, left): (&'a mut Report, &'a mut u64),
        partitions: BTreeMap<i32, Partition>,
    ) -> Self {
        Self {
            judge,
            sender,
            report,
            left,
            partitions,
            under_way: JoinSet::new(),
            bytes: 0,
            last_news: Instant::now(),
            failure: None,
        }
    }

    /// Until the end of the topic as it was at the start, the limit, or `stop`; in the end what is acknowledged is committed.
    ///
    /// # Errors
    /// Kafka does not answer, or another member came.
    pub async fn run(&mut self, member: &mut Member, stop: &CancellationToken) -> Result<(), BoxError> {
        let consumer = Arc::clone(&member.consumer);
        let broker = member.broker.clone();
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        let mut last_commit = Instant::now();
        while self.reads() || !self.under_way.is_empty() {
            tokio::select! {
                biased;
                () = stop.cancelled(), if self.reads() => self.close(End::Signal),
                why = member.replaced(), if self.failure.is_none() => self.fail(why),
                Some(sent) = self.under_way.join_next() => self.settle(sent),
                record = consumer.recv(), if self.reads() && self.has_room() => self.take(record),
                _ = tick.tick() => self.look(&broker),
            }
            if last_commit.elapsed() > COMMIT_EVERY {
                if let Err(why) = self.commit(member).await {
                    self.fail(why);
                }
                last_commit = Instant::now();
            }
        }
        let committed = self.commit(member).await;
        match self.failure.take() {
            Some(why) => Err(why),
            None => committed,
        }
    }

    fn reads(&self) -> bool {
        self.partitions.values().any(Partition::reads)
    }

    fn has_room(&self) -> bool {
        self.under_way.len() < UNDER_WAY && self.bytes < UNDER_WAY_BYTES
    }

    /// Reads no more; what is under way is waited for.
    fn close(&mut self, end: End) {
        self.partitions.values_mut().for_each(Partition::close);
        self.report.end = end;
    }

    fn fail(&mut self, why: BoxError) {
        self.close(End::Failure);
        self.failure.get_or_insert(why);
    }

    fn take(&mut self, record: Result<BorrowedMessage<'_>, KafkaError>) {
        match record {
            Ok(message) => {
                self.last_news = Instant::now();
                self.meet(&message);
            }
            Err(KafkaError::PartitionEOF(partition)) => {
                self.last_news = Instant::now();
                self.partitions.get_mut(&partition).into_iter().for_each(Partition::at_end);
            }
            Err(error) if is_transient(&error) => {}
            Err(error) => self.fail(error.into()),
        }
    }

    fn meet(&mut self, message: &BorrowedMessage<'_>) {
        let Some(partition) = self.partitions.get_mut(&message.partition()) else { return };
        if !partition.meets(message.offset()) {
            return;
        }
        let letter = DeadLetter::of(message);
        let target = match self.judge.judge(&letter) {
            Verdict::Send(target) => target,
            verdict => return self.report.leave(&letter, &verdict),
        };
        if !partition.has_room_for(message.offset()) {
            partition.close();
            return self.report.full(&letter.position);
        }
        partition.sent(message.offset());
        let bytes = message.key_len() + message.payload_len();
        let (fate, place) = (self.sender.send(message, target), letter.position);
        self.under_way.spawn(async move { Sent { place, bytes, fate: fate.await } });
        self.bytes += bytes;
        *self.left -= 1;
        if *self.left == 0 {
            self.close(End::Limit);
        }
    }

    fn settle(&mut self, sent: Result<Sent, JoinError>) {
        self.last_news = Instant::now();
        let Sent { place, bytes, fate } = match sent {
            Ok(sent) => sent,
            Err(error) => return self.fail(error.into()),
        };
        self.bytes -= bytes;
        match fate {
            Fate::Acknowledged => {
                self.report.replayed += 1;
                if let Some(partition) = self.partitions.get_mut(&place.partition) {
                    partition.acknowledged(place.offset);
                }
            }
            Fate::Refused(why) => self.report.refuse(&place, &why),
            Fate::Unknown(error) => {
                self.fail(format!("the replay of {place} was not acknowledged: {error}").into());
            }
        }
    }

    fn look(&mut self, broker: &str) {
        if self.reads() && self.under_way.is_empty() && self.last_news.elapsed() > REQUEST_TIMEOUT {
            let why = format!("kafka does not answer at {broker} (KAFKA_BROKER)");
            self.fail(format!("the dead letters cannot be read to their end: {why}").into());
        }
    }

    async fn commit(&mut self, member: &Member) -> Result<(), BoxError> {
        let changed = self.partitions.iter_mut();
        let changed: Vec<_> =
            changed.filter_map(|(id, partition)| Some((*id, partition.take_changed()?))).collect();
        if changed.is_empty() { Ok(()) } else { member.commit(changed).await }
    }
}
