//! The one place that calls the server. Every call has a deadline, and every call's outcome is known to [`State`].

use std::time::Duration;

use bson::raw::cstr;
use bson::{Document, RawDocument, RawDocumentBuf, rawdoc};
use mongodb::options::ClientOptions;
use mongodb::{Client, Database};
use service::Secret;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use super::error::Fault;
use super::extended_json;
use super::server_state::{State, StoreState, read_hello};
use super::uri;

/// Between two greetings, and the most that one may take.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
const WATCH_DEADLINE: Duration = Duration::from_secs(2);

/// The server's own time limit for an operation is this much longer than our wait for the reply.
const SERVER_GRACE: Duration = Duration::from_secs(1);

/// The server, reached when it is first needed.
#[derive(Debug)]
pub(super) struct Connection {
    uri: Secret,
    database: String,
    client: OnceCell<Client>,
    reads_extended_json: OnceCell<bool>,
    pub(super) state: State,
}

impl Connection {
    pub(super) fn new(uri: Secret, database: String) -> Self {
        Self {
            uri,
            database,
            client: OnceCell::new(),
            reads_extended_json: OnceCell::new(),
            state: State::new(),
        }
    }

    pub(super) fn database_name(&self) -> &str {
        &self.database
    }

    /// Runs a command that writes events on the database.
    pub(super) async fn write(&self, command: RawDocumentBuf, deadline: Duration) -> Result<Document, Fault> {
        let reply = self.call(command, deadline).await?;
        self.state.write_is_taken();
        Ok(reply)
    }

    /// Inserts documents that a server which reads extended JSON would change in a command.
    pub(super) async fn insert_sequence(
        &self,
        collection: &str,
        documents: Vec<RawDocumentBuf>,
        write_concern: &RawDocument,
        deadline: Duration,
    ) -> Result<Document, Fault> {
        let insert = async {
            extended_json::insert(&self.database().await?, collection, documents, write_concern).await
        };
        let reply = self.within(deadline, insert).await.inspect_err(|fault| self.note(fault))?;
        self.state.write_is_taken();
        Ok(reply)
    }

    /// Whether the server reads commands through extended JSON. It is asked once.
    pub(super) async fn reads_extended_json(&self, deadline: Duration) -> Result<bool, Fault> {
        let ask = || async {
            match self.ask(rawdoc! { "buildInfo": 1 }, deadline).await {
                Ok(reply) => Ok(extended_json::is_read_by_server(&reply)),
                // A server that does not say is MongoDB.
                Err(Fault::Refused(_) | Fault::NotAllowed(_)) => Ok(false),
                Err(fault) => Err(fault),
            }
        };
        self.reads_extended_json.get_or_try_init(ask).await.copied()
    }

    /// Runs any other command on the database.
    pub(super) async fn call(&self, command: RawDocumentBuf, deadline: Duration) -> Result<Document, Fault> {
        self.ask(command, deadline).await.inspect_err(|fault| self.note(fault))
    }

    /// Keeps what a fault says of the server.
    pub(super) fn note(&self, fault: &Fault) {
        match fault {
            Fault::Unreachable(reason) => self.state.server_is(StoreState::Away(reason.clone())),
            Fault::NotAllowed(reason) => self.state.write_is_refused(reason),
            _ => {}
        }
    }

    /// Runs a command that we can do without.
    pub(super) async fn ask(
        &self,
        mut command: RawDocumentBuf,
        deadline: Duration,
    ) -> Result<Document, Fault> {
        limit_time(&mut command, deadline);
        self.within(deadline, async { Ok(self.database().await?.run_raw_command(command).await?) }).await
    }

    /// Asks the server who it is, and keeps what that means. Returns its reply.
    pub(super) async fn greet(&self, deadline: Duration) -> Result<Document, Fault> {
        let (state, outcome) = match self.ask(rawdoc! { "hello": 1 }, deadline).await {
            Ok(reply) => match read_hello(&reply) {
                StoreState::Ready => (StoreState::Ready, Ok(reply)),
                StoreState::Refused(reason) => {
                    (StoreState::Refused(reason.clone()), Err(Fault::Other(reason)))
                }
                StoreState::Away(reason) => {
                    (StoreState::Away(reason.clone()), Err(Fault::Unreachable(reason)))
                }
                StoreState::Unknown => (StoreState::Unknown, Ok(reply)),
            },
            Err(Fault::NotAllowed(reason)) => {
                (StoreState::Refused(reason.clone()), Err(Fault::NotAllowed(reason)))
            }
            Err(Fault::TimedOut(deadline)) => {
                let reason = format!("no answer within {} ms", deadline.as_millis());
                (StoreState::Away(reason), Err(Fault::TimedOut(deadline)))
            }
            Err(Fault::Unreachable(reason)) => {
                (StoreState::Away(reason.clone()), Err(Fault::Unreachable(reason)))
            }
            Err(fault) => (StoreState::Away(format!("{fault:?}")), Err(fault)),
        };
        self.state.server_is(state);
        outcome
    }

    /// Greets the server every second until `stop`.
    pub(super) async fn watch(&self, stop: CancellationToken) {
        self.state.watch_standstills();
        let mut tick = tokio::time::interval(WATCH_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let greetings = async {
            loop {
                tick.tick().await;
                // What it found is in the state.
                _ = self.greet(WATCH_DEADLINE).await;
            }
        };
        stop.run_until_cancelled(greetings).await;
    }

    /// The look-up of a `mongodb+srv` name is part of connecting, so it is repeated like everything else.
    async fn database(&self) -> Result<Database, Fault> {
        let connect = async {
            let mut options = ClientOptions::parse(uri::usable_uri(&self.uri).expose()).await?;
            uri::set_defaults(&mut options);
            Client::with_options(options)
        };
        let client = self.client.get_or_try_init(|| connect).await?;
        Ok(client.database(&self.database))
    }

    /// The driver has no time limit of its own for an answer.
    async fn within<T>(
        &self,
        deadline: Duration,
        call: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        tokio::time::timeout(deadline, call).await.unwrap_or(Err(Fault::TimedOut(deadline)))
    }
}

/// Sets `maxTimeMS`. Without it the server goes on with an operation that we abandoned: writes that
/// wait for a missing majority would pile up there. `createIndexes` has none, because a repeated
/// call joins the build that is under way.
fn limit_time(command: &mut RawDocumentBuf, deadline: Duration) {
    let name = command.iter().next().and_then(Result::ok).map(|(name, _)| name.as_str());
    if name != Some("createIndexes") {
        let limit = (deadline + SERVER_GRACE).as_millis();
        command.append(cstr!("maxTimeMS"), i32::try_from(limit).unwrap_or(i32::MAX));
    }
}
