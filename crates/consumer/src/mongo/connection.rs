//! The connection to the server, and the state of the server for health and readiness. Every call
//! goes through the connection, has a deadline, and updates the [`StateTracker`]. A server that
//! replies but rejects writes is not ready. Each change of the state is one log line.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bson::raw::cstr;
use bson::{Document, RawBsonRef, RawDocument, RawDocumentBuf, doc, rawdoc};
use mongodb::error::ErrorKind;
use mongodb::options::{ClientOptions, WriteConcern};
use mongodb::{Client, Database};
use service::Secret;
use service::tasks::lock;
use service::time::SuspensionDetector;
use tokio::sync::{OnceCell, watch};
use tokio_util::sync::CancellationToken;

use super::error::{CallError, no_reply_within};
use super::uri;

/// Time between two `hello` commands of the watch, and the deadline of each.
const HELLO_INTERVAL: Duration = Duration::from_secs(1);
const HELLO_DEADLINE: Duration = Duration::from_secs(2);

/// The server's own time limit of an operation is this much longer than the client's deadline.
const SERVER_TIME_MARGIN: Duration = Duration::from_secs(1);

/// The server. The client connects at the first call.
#[derive(Debug)]
pub(super) struct Connection {
    uri: Secret,
    database: String,
    client: OnceCell<Client>,
    reads_extended_json: OnceCell<bool>,
    pub(super) state: StateTracker,
}

impl Connection {
    pub(super) fn new(uri: Secret, database: String) -> Self {
        Self {
            uri,
            database,
            client: OnceCell::new(),
            reads_extended_json: OnceCell::new(),
            state: StateTracker::new(),
        }
    }

    pub(super) fn database_name(&self) -> &str {
        &self.database
    }

    /// Runs a command that writes events.
    pub(super) async fn write(
        &self,
        command: RawDocumentBuf,
        deadline: Duration,
    ) -> Result<Document, CallError> {
        let reply = self.call(command, deadline).await?;
        self.state.write_accepted();
        Ok(reply)
    }

    /// Inserts documents outside the command's body, for a server that reads extended JSON there.
    pub(super) async fn insert_document_sequence(
        &self,
        collection: &str,
        documents: Vec<RawDocumentBuf>,
        write_concern: &RawDocument,
        deadline: Duration,
    ) -> Result<Document, CallError> {
        let insert =
            async { insert_with_driver(&self.database().await?, collection, documents, write_concern).await };
        let reply =
            self.with_deadline(deadline, insert).await.inspect_err(|error| self.record_error(error))?;
        self.state.write_accepted();
        Ok(reply)
    }

    /// Whether the server reads command bodies as extended JSON. Queried once.
    pub(super) async fn reads_extended_json(&self, deadline: Duration) -> Result<bool, CallError> {
        let run = || async {
            match self.run(rawdoc! { "buildInfo": 1 }, deadline).await {
                Ok(build_info) => Ok(build_info.contains_key("secantusVersion")),
                // A server that rejects the query is MongoDB.
                Err(CallError::Rejected(_) | CallError::Unauthorized(_)) => Ok(false),
                Err(error) => Err(error),
            }
        };
        self.reads_extended_json.get_or_try_init(run).await.copied()
    }

    /// Runs a command and records an error in the state.
    pub(super) async fn call(
        &self,
        command: RawDocumentBuf,
        deadline: Duration,
    ) -> Result<Document, CallError> {
        self.run(command, deadline).await.inspect_err(|error| self.record_error(error))
    }

    /// Updates the state if the error concerns the whole server.
    pub(super) fn record_error(&self, error: &CallError) {
        match error {
            CallError::Unreachable(reason) => self.state.set_server(StoreState::Unavailable(reason.clone())),
            CallError::Unauthorized(reason) => self.state.write_rejected(reason),
            _ => {}
        }
    }

    /// Runs a command without recording an error.
    pub(super) async fn run(
        &self,
        mut command: RawDocumentBuf,
        deadline: Duration,
    ) -> Result<Document, CallError> {
        limit_time(&mut command, deadline);
        self.with_deadline(deadline, async { Ok(self.database().await?.run_raw_command(command).await?) })
            .await
    }

    /// Sends `hello`, updates the state, and returns the reply.
    pub(super) async fn hello(&self, deadline: Duration) -> Result<Document, CallError> {
        let (state, outcome) = match self.run(rawdoc! { "hello": 1 }, deadline).await {
            Ok(reply) => match read_hello(&reply) {
                StoreState::Unusable(reason) => {
                    (StoreState::Unusable(reason.clone()), Err(CallError::Other(reason)))
                }
                StoreState::Unavailable(reason) => {
                    (StoreState::Unavailable(reason.clone()), Err(CallError::Unreachable(reason)))
                }
                state => (state, Ok(reply)),
            },
            Err(error) => {
                let state = match &error {
                    CallError::Unauthorized(reason) => StoreState::Unusable(reason.clone()),
                    CallError::Unreachable(reason) => StoreState::Unavailable(reason.clone()),
                    CallError::TimedOut(deadline) => StoreState::Unavailable(no_reply_within(*deadline)),
                    error => StoreState::Unavailable(format!("{error:?}")),
                };
                (state, Err(error))
            }
        };
        self.state.set_server(state);
        outcome
    }

    /// Sends `hello` every second until `stop`.
    pub(super) async fn watch(&self, stop: CancellationToken) {
        // From now on, failures that were caused by a suspension of this process are ignored.
        self.state.suspension.get_or_init(SuspensionDetector::start);
        let mut tick = tokio::time::interval(HELLO_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let hellos = async {
            loop {
                tick.tick().await;
                // The result is in the state.
                _ = self.hello(HELLO_DEADLINE).await;
            }
        };
        stop.run_until_cancelled(hellos).await;
    }

    /// Connects if necessary. A `mongodb+srv` name is resolved here, so a failed resolution is
    /// retried like a failed call.
    async fn database(&self) -> Result<Database, CallError> {
        let connect = async {
            let mut options = ClientOptions::parse(uri::usable_uri(&self.uri).expose()).await?;
            uri::set_defaults(&mut options);
            Client::with_options(options)
        };
        let client = self.client.get_or_try_init(|| connect).await?;
        Ok(client.database(&self.database))
    }

    /// Runs `call` with a deadline. The driver has no time limit for a reply.
    async fn with_deadline<T>(
        &self,
        deadline: Duration,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        tokio::time::timeout(deadline, call).await.unwrap_or(Err(CallError::TimedOut(deadline)))
    }
}

/// The documents in the reply to the named command.
pub(super) fn first_batch(command: &str, reply: &Document) -> Result<Vec<Document>, CallError> {
    let batch = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    let batch = batch.map_err(|_| CallError::Other(format!("the reply to {command} has no firstBatch")))?;
    Ok(batch.iter().filter_map(|document| document.as_document().cloned()).collect())
}

/// Sets `maxTimeMS`. Without it the server continues an operation that the client abandoned, and
/// writes that wait for a missing majority pile up. `createIndexes` gets none, because a repeated
/// call waits for the same build.
fn limit_time(command: &mut RawDocumentBuf, deadline: Duration) {
    let name = command.iter().next().and_then(Result::ok).map(|(name, _)| name.as_str());
    if name != Some("createIndexes") {
        let limit = (deadline + SERVER_TIME_MARGIN).as_millis();
        command.append(cstr!("maxTimeMS"), i32::try_from(limit).unwrap_or(i32::MAX));
    }
}

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
    replies: Mutex<LastReplies>,
    /// Set while the server is watched.
    suspension: OnceLock<Arc<SuspensionDetector>>,
    published: watch::Sender<StoreState>,
}

#[derive(Debug)]
struct LastReplies {
    hello: StoreState,
    /// Set until a write is accepted. `hello` needs no rights, so its reply does not clear it.
    rejected_write: Option<String>,
}

impl StateTracker {
    pub(super) fn new() -> Self {
        Self {
            replies: Mutex::new(LastReplies { hello: StoreState::Unknown, rejected_write: None }),
            suspension: OnceLock::new(),
            published: watch::Sender::new(StoreState::Unknown),
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<StoreState> {
        self.published.subscribe()
    }

    /// Whether the server replied to the last `hello`.
    pub(super) fn answers(&self) -> bool {
        lock(&self.replies).hello == StoreState::Ready
    }

    /// Sets the state after a `hello`, or after a call that did not reach the server.
    fn set_server(&self, server: StoreState) {
        let was_suspended = || self.suspension.get().is_some_and(|suspension| suspension.recently_resumed());
        if matches!(server, StoreState::Unavailable(_)) && was_suspended() {
            // The call failed because this process was suspended. That says nothing about the
            // server, so the state stays until the next `hello`.
            return;
        }
        lock(&self.replies).hello = server;
        self.publish();
    }

    /// Records a write that was rejected for missing credentials or rights.
    fn write_rejected(&self, reason: &str) {
        lock(&self.replies).rejected_write = Some(reason.to_owned());
        self.publish();
    }

    /// Records a write that got a reply.
    pub(super) fn write_accepted(&self) {
        let changed = {
            let mut replies = lock(&self.replies);
            let was_rejected = replies.rejected_write.take().is_some();
            was_rejected || replies.hello != StoreState::Ready
        };
        if changed {
            self.set_server(StoreState::Ready);
        }
    }

    fn publish(&self) {
        let replies = lock(&self.replies);
        let state = match (&replies.hello, &replies.rejected_write) {
            (StoreState::Ready | StoreState::Unknown, Some(reason)) => StoreState::Unusable(reason.clone()),
            (hello, _) => hello.clone(),
        };
        drop(replies);
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

// A workaround for SecantusDB, the database of `slipstream up`. It reads the body of a command as
// extended JSON: the value `{"$numberLong": "5"}` becomes a number. It does not change documents
// in a document sequence outside the body. The driver's own insert sends such a sequence, but
// without `maxTimeMS` and without the whole reply. It is therefore used only for SecantusDB and
// for documents that may have such values.

/// Whether a value in `document` may be extended JSON: the name of each form begins with `$`.
pub(super) fn contains_extended_json(document: &RawDocument) -> bool {
    document
        .iter()
        .filter_map(Result::ok)
        .any(|(name, value)| name.as_str().starts_with('$') || is_extended_json_value(value))
}

fn is_extended_json_value(value: RawBsonRef<'_>) -> bool {
    match value {
        RawBsonRef::Document(document) => contains_extended_json(document),
        RawBsonRef::Array(array) => array.into_iter().filter_map(Result::ok).any(is_extended_json_value),
        _ => false,
    }
}

/// Inserts `documents` unordered. The result has the fields of a reply to the `insert` command.
async fn insert_with_driver(
    database: &Database,
    collection: &str,
    documents: Vec<RawDocumentBuf>,
    write_concern: &RawDocument,
) -> Result<Document, CallError> {
    let sent = documents.len();
    let write_concern: WriteConcern = bson::deserialize_from_slice(write_concern.as_bytes())?;
    let collection = database.collection::<RawDocumentBuf>(collection);
    let inserted = collection.insert_many(documents).ordered(false).write_concern(write_concern).await;
    let error = match inserted {
        Ok(_) => return Ok(doc! { "n": sent as i64 }),
        Err(error) => error,
    };
    let ErrorKind::InsertMany(failed) = &*error.kind else { return Err(error.into()) };
    let errors = failed.write_errors.iter().flatten();
    let errors = errors.map(|e| doc! { "index": e.index as i64, "code": e.code, "errmsg": &e.message });
    let errors: Vec<Document> = errors.collect();
    let mut reply = doc! { "n": sent.saturating_sub(errors.len()) as i64, "writeErrors": errors };
    if let Some(unmet) = &failed.write_concern_error {
        reply.insert("writeConcernError", doc! { "code": unmet.code, "errmsg": &unmet.message });
    }
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;
    use bson::rawdoc;

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

    #[test]
    fn a_form_of_extended_json_is_found_at_any_depth() {
        for form in ["$binary", "$date", "$numberLong", "$oid", "$uuid"] {
            let mut value = RawDocumentBuf::new();
            value.append(<&bson::raw::CStr>::try_from(form).expect("no NUL"), "x");
            assert!(contains_extended_json(&rawdoc! { "a": 1, "b": [1, { "c": [[value]] }] }), "{form}");
        }
        for plain in [rawdoc! {}, rawdoc! { "x": { "date": "$date" }, "price$": ["$oid", { "y": 1 }] }] {
            assert!(!contains_extended_json(&plain), "{plain:?}");
        }
    }
}
