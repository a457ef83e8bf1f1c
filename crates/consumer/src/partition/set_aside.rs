//! Requests to set a record aside, on their way from the operator to the lane that has the record in hand.

use std::collections::VecDeque;
use std::sync::Mutex;

use service::lock::lock;
use tokio::sync::{Notify, oneshot};

use crate::kafka::dead_letters::Letter;

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// The dead letter is written, and the record is finished.
    Done(Letter),
    /// The record's dead letter was under way already.
    UnderWay,
    /// The lane has no such record in hand, or it is finished.
    NotInHand,
}

/// A request.
#[derive(Debug)]
pub struct SetAside {
    /// The record's offset.
    pub offset: i64,
    /// The operator's reason.
    pub reason: String,
    /// Who waits for the reply.
    pub reply: oneshot::Sender<Reply>,
}

impl SetAside {
    /// Replies; whoever asked may have gone.
    pub fn answer(self, reply: Reply) {
        _ = self.reply.send(reply);
    }
}

/// The requests that a lane has yet to answer.
#[derive(Debug, Default)]
pub struct Requests {
    waiting: Mutex<VecDeque<SetAside>>,
    arrived: Notify,
}

impl Requests {
    /// Asks that the record at `offset` be set aside. The receiver fails if the lane ends before it answers.
    pub fn ask(&self, offset: i64, reason: String) -> oneshot::Receiver<Reply> {
        let (reply, receiver) = oneshot::channel();
        lock(&self.waiting).push_back(SetAside { offset, reason, reply });
        self.arrived.notify_one();
        receiver
    }

    /// Drops those that wait, as the lane ends.
    pub fn end(&self) {
        lock(&self.waiting).clear();
    }

    /// The next request. No request is lost if the future is dropped.
    pub async fn next(&self) -> SetAside {
        loop {
            let next = lock(&self.waiting).pop_front();
            match next {
                Some(request) => return request,
                None => self.arrived.notified().await,
            }
        }
    }
}
