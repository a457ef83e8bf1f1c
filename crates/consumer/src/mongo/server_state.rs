//! The state of the server for health and readiness. A server that replies but rejects writes is
//! not ready. Each change is one log line.

use std::sync::{Arc, Mutex, OnceLock};

use bson::Document;
use service::lock::lock;
use service::suspension::SuspensionDetector;
use tokio::sync::watch;

/// The wire version of MongoDB 5.0, the first version that stores every document of the consumer.
const MIN_WIRE_VERSION: i64 = 13;

/// The state of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreState {
    /// No reply yet.
    Unknown,
    /// It replies, and no write was rejected since the last accepted one.
    Ready,
    /// It does not reply, or has no primary. It recovers without an operator.
    Unavailable(String),
    /// It replies, but an operator has to correct credentials, rights or its version.
    Unusable(String),
}

/// Derives the state from the replies to `hello` and to writes.
#[derive(Debug)]
pub(super) struct StateTracker {
    observed: Mutex<Observed>,
    /// Set while the server is watched.
    suspension: OnceLock<Arc<SuspensionDetector>>,
    published: watch::Sender<StoreState>,
}

#[derive(Debug)]
struct Observed {
    server: StoreState,
    /// Set until a write is accepted. `hello` needs no rights, so its reply does not clear it.
    rejected_write: Option<String>,
}

impl StateTracker {
    pub(super) fn new() -> Self {
        let observed = Observed { server: StoreState::Unknown, rejected_write: None };
        Self {
            observed: Mutex::new(observed),
            suspension: OnceLock::new(),
            published: watch::Sender::new(StoreState::Unknown),
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<StoreState> {
        self.published.subscribe()
    }

    /// Ignores failures of the server that were caused by a suspension of this process from now on.
    pub(super) fn watch_suspensions(&self) {
        self.suspension.get_or_init(SuspensionDetector::start);
    }

    /// Whether the server replied to the last `hello`.
    pub(super) fn answers(&self) -> bool {
        self.with(|observed| observed.server == StoreState::Ready)
    }

    /// Sets the state after a `hello`, or after a call that did not reach the server.
    pub(super) fn set_server(&self, server: StoreState) {
        let was_suspended = || self.suspension.get().is_some_and(|suspension| suspension.recently_resumed());
        if matches!(server, StoreState::Unavailable(_)) && was_suspended() {
            // The call failed because this process was suspended. That says nothing about the
            // server, so the state stays until the next `hello`.
            return;
        }
        self.with(|observed| observed.server = server);
        self.publish();
    }

    /// Records a write that was rejected for missing credentials or rights.
    pub(super) fn write_rejected(&self, reason: &str) {
        self.with(|observed| observed.rejected_write = Some(reason.to_owned()));
        self.publish();
    }

    /// Records a write that got a reply.
    pub(super) fn write_accepted(&self) {
        let changed = self.with(|observed| {
            observed.rejected_write.take().is_some() | (observed.server != StoreState::Ready)
        });
        if changed {
            self.set_server(StoreState::Ready);
        }
    }

    fn with<T>(&self, access: impl FnOnce(&mut Observed) -> T) -> T {
        access(&mut lock(&self.observed))
    }

    fn publish(&self) {
        let state = self.with(|observed| match (&observed.server, &observed.rejected_write) {
            (StoreState::Ready | StoreState::Unknown, Some(reason)) => StoreState::Unusable(reason.clone()),
            (server, _) => server.clone(),
        });
        self.published.send_if_modified(|published| {
            let changed = std::mem::discriminant(published) != std::mem::discriminant(&state);
            if changed {
                log(&state);
            }
            *published = state;
            changed
        });
    }
}

fn log(state: &StoreState) {
    match state {
        StoreState::Unknown => {}
        StoreState::Ready => tracing::info!("mongodb is ready"),
        StoreState::Unavailable(reason) => tracing::warn!(reason, "mongodb is unavailable"),
        StoreState::Unusable(reason) => tracing::error!(reason, "mongodb cannot be used"),
    }
}

/// The state that a reply to `hello` means.
pub fn read_hello(reply: &Document) -> StoreState {
    let wire_version = match reply.get("maxWireVersion") {
        Some(bson::Bson::Int32(version)) => i64::from(*version),
        Some(bson::Bson::Int64(version)) => *version,
        _ => 0,
    };
    if wire_version < MIN_WIRE_VERSION {
        return StoreState::Unusable(format!(
            "MongoDB 5.0 or later is needed; this server is older (wire version {wire_version} is below {MIN_WIRE_VERSION})"
        ));
    }
    if !reply.get_bool("isWritablePrimary").unwrap_or(false) {
        return StoreState::Unavailable("the server is not a primary that accepts writes".into());
    }
    StoreState::Ready
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    #[test]
    fn a_server_before_5_0_is_unusable_and_a_secondary_unavailable() {
        let old = read_hello(&doc! { "maxWireVersion": 9, "isWritablePrimary": true });
        assert!(matches!(&old, StoreState::Unusable(reason) if reason.contains("5.0")), "{old:?}");
        assert!(matches!(read_hello(&doc! {}), StoreState::Unusable(_)));
        assert!(matches!(read_hello(&doc! { "maxWireVersion": 21 }), StoreState::Unavailable(_)));
        assert_eq!(read_hello(&doc! { "maxWireVersion": 13, "isWritablePrimary": true }), StoreState::Ready);
    }

    #[test]
    fn a_rejected_write_stays_reported_until_a_write_is_accepted() {
        let state = StateTracker::new();
        let published = state.subscribe();
        state.set_server(StoreState::Ready);
        state.write_rejected("no rights");
        state.set_server(StoreState::Ready);
        assert_eq!(*published.borrow(), StoreState::Unusable("no rights".into()));
        state.set_server(StoreState::Unavailable("gone".into()));
        assert_eq!(*published.borrow(), StoreState::Unavailable("gone".into()));
        state.write_accepted();
        assert_eq!(*published.borrow(), StoreState::Ready);
    }
}
