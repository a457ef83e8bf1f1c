//! Requests of an operator to set a record aside, from the endpoint to the partition worker.

use std::collections::VecDeque;
use std::sync::Mutex;

use service::lock::lock;
use tokio::sync::{Notify, oneshot};

use crate::kafka::dead_letters::DeadLetterPosition;

/// The worker's reply to a request.
#[derive(Debug, PartialEq, Eq)]
pub enum SetAsideReply {
    /// The dead letter is written, and the record is finished.
    DeadLettered(DeadLetterPosition),
    /// The dead letter of the record is already being produced.
    InProgress,
    /// The current batch has no unfinished record with this offset.
    NotInBatch,
}

/// A request to set the record at `offset` aside.
#[derive(Debug)]
pub struct SetAsideRequest {
    pub offset: i64,
    /// The operator's reason.
    pub reason: String,
    pub reply: oneshot::Sender<SetAsideReply>,
}

impl SetAsideRequest {
    /// Sends the reply. The receiver may be gone.
    pub fn reply(self, reply: SetAsideReply) {
        _ = self.reply.send(reply);
    }
}

/// Requests that a worker has not handled yet.
#[derive(Debug, Default)]
pub struct SetAsideRequests {
    waiting: Mutex<VecDeque<SetAsideRequest>>,
    added: Notify,
}

impl SetAsideRequests {
    /// Adds a request. The receiver fails if the worker ends before it replies.
    pub fn add(&self, offset: i64, reason: String) -> oneshot::Receiver<SetAsideReply> {
        let (reply, receiver) = oneshot::channel();
        lock(&self.waiting).push_back(SetAsideRequest { offset, reason, reply });
        self.added.notify_one();
        receiver
    }

    /// Drops the waiting requests when the worker ends.
    pub fn clear(&self) {
        lock(&self.waiting).clear();
    }

    /// Waits for the next request. No request is lost if the future is dropped.
    pub async fn next(&self) -> SetAsideRequest {
        loop {
            let next = lock(&self.waiting).pop_front();
            match next {
                Some(request) => return request,
                None => self.added.notified().await,
            }
        }
    }
}
