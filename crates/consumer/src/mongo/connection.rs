//! The connection to the server. Every call goes through it, has a deadline, and updates the
//! [`StateTracker`].

use std::time::Duration;

use bson::raw::cstr;
use bson::{Document, RawDocument, RawDocumentBuf, rawdoc};
use mongodb::options::ClientOptions;
use mongodb::{Client, Database};
use service::Secret;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use super::error::{self, CallError};
use super::extended_json;
use super::server_state::{StateTracker, StoreState, read_hello};
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
        let insert = async {
            extended_json::insert(&self.database().await?, collection, documents, write_concern).await
        };
        let reply =
            self.with_deadline(deadline, insert).await.inspect_err(|error| self.record_error(error))?;
        self.state.write_accepted();
        Ok(reply)
    }

    /// Whether the server reads command bodies as extended JSON. Queried once.
    pub(super) async fn reads_extended_json(&self, deadline: Duration) -> Result<bool, CallError> {
        let run = || async {
            match self.run(rawdoc! { "buildInfo": 1 }, deadline).await {
                Ok(reply) => Ok(extended_json::is_secantus(&reply)),
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
                StoreState::Ready => (StoreState::Ready, Ok(reply)),
                StoreState::Unusable(reason) => {
                    (StoreState::Unusable(reason.clone()), Err(CallError::Other(reason)))
                }
                StoreState::Unavailable(reason) => {
                    (StoreState::Unavailable(reason.clone()), Err(CallError::Unreachable(reason)))
                }
                StoreState::Unknown => (StoreState::Unknown, Ok(reply)),
            },
            Err(CallError::Unauthorized(reason)) => {
                (StoreState::Unusable(reason.clone()), Err(CallError::Unauthorized(reason)))
            }
            Err(CallError::TimedOut(deadline)) => {
                let reason = error::no_reply_within(deadline);
                (StoreState::Unavailable(reason), Err(CallError::TimedOut(deadline)))
            }
            Err(CallError::Unreachable(reason)) => {
                (StoreState::Unavailable(reason.clone()), Err(CallError::Unreachable(reason)))
            }
            Err(error) => (StoreState::Unavailable(format!("{error:?}")), Err(error)),
        };
        self.state.set_server(state);
        outcome
    }

    /// Sends `hello` every second until `stop`.
    pub(super) async fn watch(&self, stop: CancellationToken) {
        self.state.watch_suspensions();
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

    /// The driver itself has no time limit for a reply.
    async fn with_deadline<T>(
        &self,
        deadline: Duration,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        tokio::time::timeout(deadline, call).await.unwrap_or(Err(CallError::TimedOut(deadline)))
    }
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
