//! Whether the server can be used, as others see it: a server that answers but takes no write of ours is not ready.
//! Each change is one log line.

use std::sync::{Arc, Mutex, OnceLock};

use bson::Document;
use service::lock::lock;
use service::suspension::SuspensionDetector;
use tokio::sync::watch;

/// The first wire version that stores every document of ours: MongoDB 5.0.
const WIRE_VERSION_MIN: i64 = 13;

/// What is known of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreState {
    /// Nothing yet.
    Unknown,
    /// It answers, and no write was refused since the last that succeeded.
    Ready,
    /// It does not answer, or has no primary: it comes back by itself.
    Away(String),
    /// It answers, but an operator has to put something right: credentials, rights, or its version.
    Refused(String),
}

/// The state, fed by the watch and by the writes.
#[derive(Debug)]
pub(super) struct State {
    seen: Mutex<Seen>,
    /// There while the server is watched.
    standstill: OnceLock<Arc<SuspensionDetector>>,
    told: watch::Sender<StoreState>,
}

#[derive(Debug)]
struct Seen {
    server: StoreState,
    /// A greeting needs no rights, so a refused write stays the word until a write succeeds.
    write_refused: Option<String>,
}

impl State {
    pub(super) fn new() -> Self {
        let seen = Seen { server: StoreState::Unknown, write_refused: None };
        Self {
            seen: Mutex::new(seen),
            standstill: OnceLock::new(),
            told: watch::Sender::new(StoreState::Unknown),
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<StoreState> {
        self.told.subscribe()
    }

    /// From now on the server is not blamed for a standstill of ours.
    pub(super) fn watch_standstills(&self) {
        self.standstill.get_or_init(SuspensionDetector::start);
    }

    /// Whether the server answered when it was last asked.
    pub(super) fn answers(&self) -> bool {
        self.with(|seen| seen.server == StoreState::Ready)
    }

    /// The server was asked, or a call could not reach it.
    pub(super) fn server_is(&self, server: StoreState) {
        let stood_still = || self.standstill.get().is_some_and(|standstill| standstill.recently_resumed());
        if matches!(server, StoreState::Away(_)) && stood_still() {
            // It is not the server that was away. The next greeting tells.
            return;
        }
        self.with(|seen| seen.server = server);
        self.publish();
    }

    /// A write was refused for lack of credentials or rights.
    pub(super) fn write_is_refused(&self, reason: &str) {
        self.with(|seen| seen.write_refused = Some(reason.to_owned()));
        self.publish();
    }

    /// A write was answered.
    pub(super) fn write_is_taken(&self) {
        let news = self.with(|seen| seen.write_refused.take().is_some() | (seen.server != StoreState::Ready));
        if news {
            self.server_is(StoreState::Ready);
        }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut lock(&self.seen))
    }

    fn publish(&self) {
        let state = self.with(|seen| match (&seen.server, &seen.write_refused) {
            (StoreState::Ready | StoreState::Unknown, Some(reason)) => StoreState::Refused(reason.clone()),
            (server, _) => server.clone(),
        });
        self.told.send_if_modified(|told| {
            let changed = std::mem::discriminant(told) != std::mem::discriminant(&state);
            if changed {
                log(&state);
            }
            *told = state;
            changed
        });
    }
}

fn log(state: &StoreState) {
    match state {
        StoreState::Unknown => {}
        StoreState::Ready => tracing::info!("mongodb is ready"),
        StoreState::Away(reason) => tracing::warn!(reason, "mongodb is away"),
        StoreState::Refused(reason) => tracing::error!(reason, "mongodb cannot be used"),
    }
}

/// What a reply to `hello` says of the server.
pub fn read_hello(reply: &Document) -> StoreState {
    let wire_version = match reply.get("maxWireVersion") {
        Some(bson::Bson::Int32(version)) => i64::from(*version),
        Some(bson::Bson::Int64(version)) => *version,
        _ => 0,
    };
    if wire_version < WIRE_VERSION_MIN {
        return StoreState::Refused(format!(
            "MongoDB 5.0 or later is needed; this server is older (wire version {wire_version}, not {WIRE_VERSION_MIN})"
        ));
    }
    if !reply.get_bool("isWritablePrimary").unwrap_or(false) {
        return StoreState::Away("the server is no primary that takes writes".into());
    }
    StoreState::Ready
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    #[test]
    fn a_server_before_5_0_is_refused_and_a_secondary_is_away() {
        let old = read_hello(&doc! { "maxWireVersion": 9, "isWritablePrimary": true });
        assert!(matches!(&old, StoreState::Refused(reason) if reason.contains("5.0")), "{old:?}");
        assert!(matches!(read_hello(&doc! {}), StoreState::Refused(_)));
        assert!(matches!(read_hello(&doc! { "maxWireVersion": 21 }), StoreState::Away(_)));
        assert_eq!(read_hello(&doc! { "maxWireVersion": 13, "isWritablePrimary": true }), StoreState::Ready);
    }

    #[test]
    fn a_refused_write_outlasts_greetings_until_a_write_is_taken() {
        let state = State::new();
        let told = state.subscribe();
        state.server_is(StoreState::Ready);
        state.write_is_refused("no rights");
        state.server_is(StoreState::Ready);
        assert_eq!(*told.borrow(), StoreState::Refused("no rights".into()));
        state.server_is(StoreState::Away("gone".into()));
        assert_eq!(*told.borrow(), StoreState::Away("gone".into()));
        state.write_is_taken();
        assert_eq!(*told.borrow(), StoreState::Ready);
    }
}
