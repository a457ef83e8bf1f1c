//! MongoDB, as the operator's commands see it. They read from the primary and with read concern majority, whatever the URI
//! says: what a secondary has, or what an election can undo, is no fact to judge by.

use std::time::Duration;

use bson::{Document, doc};
use consumer::mongo::usable_uri;
use mongodb::error::{Error, ErrorKind};
use mongodb::options::{ClientOptions, ConnectionString, HostInfo, ReadConcern, ReadPreference};
use mongodb::{Client, Database};
use service::Secret;

use crate::Failure;

/// How long MongoDB may take for one reply.
pub const LIMIT: Duration = Duration::from_secs(10);

/// What an operator can do about a MongoDB that does not answer.
pub const REMEDY: &str =
    "start it, or correct the host in MONGODB_URI; inside a container, localhost is the container";
/// The same about credentials.
pub const LOGIN_REMEDY: &str = "correct user, password and authSource in MONGODB_URI";
/// The same about a URI that cannot be used.
pub const URI_REMEDY: &str =
    "correct the host and the options of MONGODB_URI; the files that it names must be there";

const UNAUTHORIZED: i32 = 13;
const AUTHENTICATION_FAILED: i32 = 18;

/// A database of the server that MONGODB_URI names.
#[derive(Debug, Clone)]
pub struct Mongo {
    /// The database.
    pub database: Database,
    address: String,
}

impl Mongo {
    /// Asks nothing yet, but looks up a `mongodb+srv` name.
    ///
    /// # Errors
    /// The driver refuses the connection string, or its name cannot be looked up.
    pub async fn open(uri: &Secret, name: &str) -> Result<Self, Failure> {
        Self::of(uri, database(uri, name).await)
    }

    /// As [`Mongo::open`], but an absent server is told within 2 s, whatever the URI says.
    ///
    /// # Errors
    /// As [`Mongo::open`].
    pub async fn open_quickly(uri: &Secret, name: &str) -> Result<Self, Failure> {
        let quick = options(uri).await.and_then(|mut options| {
            options.connect_timeout = Some(Duration::from_secs(2));
            options.server_selection_timeout = Some(Duration::from_secs(2));
            client(options, name)
        });
        Self::of(uri, quick)
    }

    fn of(uri: &Secret, database: Result<Database, Error>) -> Result<Self, Failure> {
        let address = address(uri);
        let database = database.map_err(|error| {
            let why = Fault::of(&error).why;
            format!("mongodb cannot be asked at {address} (MONGODB_URI): {why}; {URI_REMEDY}")
        })?;
        Ok(Self { database, address })
    }

    /// What a reply brings.
    ///
    /// # Errors
    /// MongoDB refuses, or does not answer in time.
    pub async fn in_time<T>(&self, reply: impl IntoFuture<Output = Result<T, Error>>) -> Result<T, Failure> {
        match tokio::time::timeout(LIMIT, reply.into_future()).await {
            Ok(reply) => reply.map_err(|error| self.failure(&error)),
            Err(_) => Err(self.told(&Fault::late())),
        }
    }

    /// What to tell of `error`.
    pub fn failure(&self, error: &Error) -> Failure {
        self.told(&Fault::of(error))
    }

    /// What to tell of `fault`.
    pub fn told(&self, fault: &Fault) -> Failure {
        fault.failure(&self.address)
    }
}

/// A call that brought no reply.
#[derive(Debug)]
pub struct Fault {
    /// Why, in words.
    pub why: String,
    /// What it is about.
    pub kind: FaultKind,
}

/// What a failed call is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// No server answers.
    Away,
    /// User and password.
    Login,
    /// The user's rights.
    Rights,
    /// Anything else: a server answers.
    Refused,
}

impl Fault {
    /// Of an error of the driver, without its debug text and without the command.
    pub fn of(error: &Error) -> Self {
        let kind = match &*error.kind {
            ErrorKind::Authentication { .. } => FaultKind::Login,
            ErrorKind::Command(error) if error.code == AUTHENTICATION_FAILED => FaultKind::Login,
            ErrorKind::Command(error) if error.code == UNAUTHORIZED => FaultKind::Rights,
            ErrorKind::Io(_)
            | ErrorKind::ServerSelection { .. }
            | ErrorKind::ConnectionPoolCleared { .. }
            | ErrorKind::DnsResolve { .. }
            | ErrorKind::InvalidTlsConfig { .. } => FaultKind::Away,
            _ => FaultKind::Refused,
        };
        let text = error.kind.to_string();
        let why = match &*error.kind {
            ErrorKind::ServerSelection { .. } => no_server(&text),
            // The rest of such a message quotes the command.
            _ => text.split(" to execute command").next().unwrap_or_default().to_owned(),
        };
        Self { why, kind }
    }

    /// No answer came in time.
    pub fn late() -> Self {
        Self { why: format!("no answer within {} s", LIMIT.as_secs()), kind: FaultKind::Away }
    }

    /// Whether it is about user or rights.
    pub fn is_login(&self) -> bool {
        matches!(self.kind, FaultKind::Login | FaultKind::Rights)
    }

    fn failure(&self, address: &str) -> Failure {
        let why = &self.why;
        match self.kind {
            FaultKind::Away => format!("mongodb does not answer at {address} (MONGODB_URI): {why}; {REMEDY}"),
            FaultKind::Login => {
                format!("mongodb at {address} refuses the credentials (MONGODB_URI): {why}; {LOGIN_REMEDY}")
            }
            FaultKind::Rights => format!(
                "mongodb at {address} does not allow it (MONGODB_URI): {why}; grant the user the role readWrite"
            ),
            FaultKind::Refused => format!("mongodb at {address} (MONGODB_URI) refuses: {why}"),
        }
        .into()
    }
}

/// Why no server could be chosen: the reason for each, out of the driver's description of the deployment.
fn no_server(text: &str) -> String {
    let servers: Vec<(&str, &str)> = text
        .split("Address: ")
        .skip(1)
        .map(|server| {
            let address = server.split(", Type: ").next().unwrap_or_default();
            let state = match server.split_once("Error: Kind: ") {
                Some((_, error)) => error.split(", labels: ").next().unwrap_or_default(),
                None if server.to_ascii_lowercase().contains("type: rssecondary") => "is a secondary",
                None => "takes no writes",
            };
            (address, state.trim_start_matches("I/O error: "))
        })
        .collect();
    match servers.as_slice() {
        [] => text.split(". Topology: ").next().unwrap_or_default().to_owned(),
        [(_, state)] => (*state).to_owned(),
        several => {
            let each: Vec<String> =
                several.iter().map(|(address, state)| format!("{address}: {state}")).collect();
            each.join("; ")
        }
    }
}

/// The hosts of a URI, which a URI that was checked has.
pub fn address(uri: &Secret) -> String {
    match ConnectionString::parse(usable_uri(uri).expose()).map(|uri| uri.host_info) {
        Ok(HostInfo::HostIdentifiers(hosts)) => {
            hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
        }
        Ok(HostInfo::DnsRecord(name)) => name,
        _ => "an unknown address".to_owned(),
    }
}

/// The read concern of a command that is sent as it is.
pub fn majority() -> Document {
    doc! { "level": "majority" }
}

/// The database `name`; nothing is asked yet, but the look-up of a `mongodb+srv` name.
///
/// # Errors
/// The driver refuses the connection string, or its name cannot be looked up.
pub async fn database(uri: &Secret, name: &str) -> Result<Database, Error> {
    client(options(uri).await?, name)
}

async fn options(uri: &Secret) -> Result<ClientOptions, Error> {
    let mut options = ClientOptions::parse(usable_uri(uri).expose()).await?;
    // The operator waits at the terminal: an absent server is told within seconds, not within the driver's 30.
    options.connect_timeout.get_or_insert(Duration::from_secs(2));
    options.server_selection_timeout.get_or_insert(Duration::from_secs(5));
    options.app_name.get_or_insert_with(|| "slipstream".to_owned());
    options.selection_criteria = Some(ReadPreference::Primary.into());
    options.read_concern = Some(ReadConcern::majority());
    Ok(options)
}

fn client(options: ClientOptions, name: &str) -> Result<Database, Error> {
    Ok(Client::with_options(options)?.database(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_not_there_is_told_without_the_driver_s_debug_text() {
        let one = "Server selection timeout: No available servers. Topology: { Type: Unknown, Servers: [ { Address: \
                   127.0.0.1:9, Type: Unknown, Error: Kind: I/O error: Connection refused (os error 111), labels: \
                   {\"RetryableError\"}, source: None, server response: None } ] }";
        assert_eq!(no_server(one), "Connection refused (os error 111)");
        let two = "Server selection timeout: No available servers. Topology: { Type: ReplicaSetNoPrimary, Set Name: x, \
                   Servers: [ { Address: a:1, Type: Unknown, Error: Kind: I/O error: timed out, labels: {}, source: \
                   None, server response: None }, { Address: b:2, Type: RsSecondary, Set Name: x } ] }";
        assert_eq!(no_server(two), "a:1: timed out; b:2: is a secondary");
        assert_eq!(
            no_server("Server selection timeout: none. Topology: { }"),
            "Server selection timeout: none"
        );
    }

    #[test]
    fn an_address_has_every_host_and_no_password() {
        let shown = |uri: &str| address(&Secret::new(uri));
        assert_eq!(shown("mongodb://u:secret@a:1,b/?authSource=admin"), "a:1,b:27017");
        assert_eq!(shown("mongodb+srv://u:secret@cluster.example.net/"), "cluster.example.net");
    }

    #[tokio::test]
    async fn an_absent_server_is_told_with_variable_address_reason_and_remedy() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let mongo = Mongo::open(&Secret::new(format!("mongodb://u:secret@{address}")), "d").await.unwrap();
        let said =
            mongo.in_time(mongo.database.run_command(doc! { "ping": 1 })).await.unwrap_err().to_string();
        let wanted = format!(
            "mongodb does not answer at {address} (MONGODB_URI): Connection refused (os error 111); {REMEDY}"
        );
        assert_eq!(said, wanted);
    }
}
