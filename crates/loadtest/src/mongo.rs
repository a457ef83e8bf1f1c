//! The MongoDB client of the operator's commands. They read from the primary with read concern
//! `majority`, whatever the URI sets: a secondary may be behind, and an election can undo a write
//! that is not on the majority.

use std::time::Duration;

use bson::{Document, doc};
use consumer::mongo::usable_uri;
use mongodb::error::{Error, ErrorKind};
use mongodb::options::{ClientOptions, ConnectionString, HostInfo, ReadConcern, ReadPreference};
use mongodb::{Client, Database};
use service::Secret;

use kafka::BoxError;

/// Maximum time for one reply.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// What an operator can do if MongoDB is unavailable.
pub const UNAVAILABLE_REMEDY: &str =
    "start it, or correct the host in MONGODB_URI; inside a container, localhost is the container";
/// What an operator can do if MongoDB rejects the credentials.
pub const LOGIN_REMEDY: &str = "correct user, password and authSource in MONGODB_URI";
/// What an operator can do if the URI cannot be used.
pub const URI_REMEDY: &str = "correct the host and the options of MONGODB_URI; its files must exist";

const UNAUTHORIZED: i32 = 13;
const AUTHENTICATION_FAILED: i32 = 18;

/// A database of the server that MONGODB_URI names.
#[derive(Debug, Clone)]
pub struct Mongo {
    /// The database.
    pub database: Database,
    /// The hosts of the URI.
    pub address: String,
}

impl Mongo {
    /// Creates the client without connecting; a `mongodb+srv` name is resolved.
    ///
    /// # Errors
    /// The driver rejects the connection string, or its name cannot be resolved.
    pub async fn open(uri: &Secret, name: &str) -> Result<Self, BoxError> {
        Self::try_open(uri, name).await.map_err(|error| unusable(uri, &error))
    }

    /// As [`Mongo::open`], with timeouts of 2 s, whatever the URI sets.
    ///
    /// # Errors
    /// As [`Mongo::open`].
    pub async fn open_with_short_timeouts(uri: &Secret, name: &str) -> Result<Self, BoxError> {
        let mut options = options(uri).await.map_err(|error| unusable(uri, &error))?;
        options.connect_timeout = Some(Duration::from_secs(2));
        options.server_selection_timeout = Some(Duration::from_secs(2));
        Self::new(uri, name, options).map_err(|error| unusable(uri, &error))
    }

    /// As [`Mongo::open`], with the driver's error.
    ///
    /// # Errors
    /// As [`Mongo::open`].
    pub async fn try_open(uri: &Secret, name: &str) -> Result<Self, Error> {
        Self::new(uri, name, options(uri).await?)
    }

    fn new(uri: &Secret, name: &str, options: ClientOptions) -> Result<Self, Error> {
        Ok(Self { database: Client::with_options(options)?.database(name), address: address(uri) })
    }

    /// Waits for a reply, at most for [`REPLY_TIMEOUT`]: the driver itself waits without a limit.
    ///
    /// # Errors
    /// MongoDB returns an error or no reply.
    pub async fn reply<T>(
        &self,
        reply: impl IntoFuture<Output = Result<T, Error>>,
    ) -> Result<T, CommandError> {
        match tokio::time::timeout(REPLY_TIMEOUT, reply.into_future()).await {
            Ok(reply) => reply.map_err(|error| CommandError::of(&error)),
            Err(_) => Err(CommandError::timeout()),
        }
    }

    /// As [`Mongo::reply`], with the error as text.
    ///
    /// # Errors
    /// As [`Mongo::reply`].
    pub async fn with_timeout<T>(
        &self,
        reply: impl IntoFuture<Output = Result<T, Error>>,
    ) -> Result<T, BoxError> {
        self.reply(reply).await.map_err(|error| self.command_error(&error))
    }

    /// The text of a driver error.
    pub fn driver_error(&self, error: &Error) -> BoxError {
        self.command_error(&CommandError::of(error))
    }

    /// The text of a command error.
    pub fn command_error(&self, error: &CommandError) -> BoxError {
        error.text(&self.address).into()
    }
}

/// A command that failed.
#[derive(Debug)]
pub struct CommandError {
    /// The cause, as text.
    pub cause: String,
    /// The class of the cause.
    pub class: ErrorClass,
}

/// The class of a command error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// No server is available.
    Unavailable,
    /// The server rejects user or password.
    Login,
    /// The user lacks a right.
    Rights,
    /// Any other error of a server.
    Rejected,
}

impl CommandError {
    /// Converts a driver error, without its debug text and without the command.
    pub fn of(error: &Error) -> Self {
        let class = match &*error.kind {
            ErrorKind::Authentication { .. } => ErrorClass::Login,
            ErrorKind::Command(error) if error.code == AUTHENTICATION_FAILED => ErrorClass::Login,
            ErrorKind::Command(error) if error.code == UNAUTHORIZED => ErrorClass::Rights,
            ErrorKind::Io(_)
            | ErrorKind::ServerSelection { .. }
            | ErrorKind::ConnectionPoolCleared { .. }
            | ErrorKind::DnsResolve { .. }
            | ErrorKind::InvalidTlsConfig { .. } => ErrorClass::Unavailable,
            _ => ErrorClass::Rejected,
        };
        let text = error.kind.to_string();
        let cause = match &*error.kind {
            ErrorKind::ServerSelection { .. } => server_errors(&text),
            // The rest of such a message quotes the command.
            _ => text.split(" to execute command").next().unwrap_or_default().to_owned(),
        };
        Self { cause, class }
    }

    /// The error of a command without a reply in time.
    fn timeout() -> Self {
        let cause = format!("no reply within {} s", REPLY_TIMEOUT.as_secs());
        Self { cause, class: ErrorClass::Unavailable }
    }

    /// Whether user, password or rights are the cause.
    pub fn is_access_denied(&self) -> bool {
        matches!(self.class, ErrorClass::Login | ErrorClass::Rights)
    }

    fn text(&self, address: &str) -> String {
        let cause = &self.cause;
        match self.class {
            ErrorClass::Unavailable => {
                format!("mongodb does not answer at {address} (MONGODB_URI): {cause}; {UNAVAILABLE_REMEDY}")
            }
            ErrorClass::Login => {
                format!("mongodb at {address} rejects the credentials (MONGODB_URI): {cause}; {LOGIN_REMEDY}")
            }
            ErrorClass::Rights => format!(
                "mongodb at {address} denies access (MONGODB_URI): {cause}; grant the user the role readWrite"
            ),
            ErrorClass::Rejected => format!("mongodb at {address} (MONGODB_URI) returns an error: {cause}"),
        }
    }
}

/// The cause of a failed server selection: the error of each server, from the driver's description
/// of the deployment.
fn server_errors(text: &str) -> String {
    let servers: Vec<(&str, &str)> = text
        .split("Address: ")
        .skip(1)
        .map(|server| {
            let address = server.split(", Type: ").next().unwrap_or_default();
            let state = match server.split_once("Error: Kind: ") {
                Some((_, error)) => error.split(", labels: ").next().unwrap_or_default(),
                None if server.to_ascii_lowercase().contains("type: rssecondary") => "is a secondary",
                None => "accepts no writes",
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

/// The hosts of a valid URI.
pub fn address(uri: &Secret) -> String {
    match ConnectionString::parse(usable_uri(uri).expose()).map(|uri| uri.host_info) {
        Ok(HostInfo::HostIdentifiers(hosts)) => {
            hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
        }
        Ok(HostInfo::DnsRecord(name)) => name,
        _ => "an unknown address".to_owned(),
    }
}

/// The read concern for raw commands, to which the driver adds none.
pub fn majority() -> Document {
    doc! { "level": "majority" }
}

fn unusable(uri: &Secret, error: &Error) -> BoxError {
    let (address, cause) = (address(uri), CommandError::of(error).cause);
    format!("mongodb at {address} (MONGODB_URI) cannot be used: {cause}; {URI_REMEDY}").into()
}

async fn options(uri: &Secret) -> Result<ClientOptions, Error> {
    let mut options = ClientOptions::parse(usable_uri(uri).expose()).await?;
    // The operator waits at the terminal: an unavailable server is an error after 5 s. The driver's
    // default is 30 s.
    options.connect_timeout.get_or_insert(Duration::from_secs(2));
    options.server_selection_timeout.get_or_insert(Duration::from_secs(5));
    options.app_name.get_or_insert_with(|| "slipstream".to_owned());
    options.selection_criteria = Some(ReadPreference::Primary.into());
    options.read_concern = Some(ReadConcern::majority());
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_an_unavailable_server_has_no_debug_text() {
        let one = "Server selection timeout: No available servers. Topology: { Type: Unknown, Servers: [ { Address: \
                   127.0.0.1:9, Type: Unknown, Error: Kind: I/O error: Connection refused (os error 111), labels: \
                   {\"RetryableError\"}, source: None, server response: None } ] }";
        assert_eq!(server_errors(one), "Connection refused (os error 111)");
        let two = "Server selection timeout: No available servers. Topology: { Type: ReplicaSetNoPrimary, Set Name: x, \
                   Servers: [ { Address: a:1, Type: Unknown, Error: Kind: I/O error: timed out, labels: {}, source: \
                   None, server response: None }, { Address: b:2, Type: RsSecondary, Set Name: x } ] }";
        assert_eq!(server_errors(two), "a:1: timed out; b:2: is a secondary");
        assert_eq!(
            server_errors("Server selection timeout: none. Topology: { }"),
            "Server selection timeout: none"
        );
    }

    #[test]
    fn an_address_has_all_hosts_and_no_password() {
        let shown = |uri: &str| address(&Secret::new(uri));
        assert_eq!(shown("mongodb://u:secret@a:1,b/?authSource=admin"), "a:1,b:27017");
        assert_eq!(shown("mongodb+srv://u:secret@cluster.example.net/"), "cluster.example.net");
    }

    #[tokio::test]
    async fn the_error_of_an_unavailable_server_has_variable_address_and_remedy() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let mongo = Mongo::open(&Secret::new(format!("mongodb://u:secret@{address}")), "d").await.unwrap();
        let error =
            mongo.with_timeout(mongo.database.run_command(doc! { "ping": 1 })).await.unwrap_err().to_string();
        let wanted = format!(
            "mongodb does not answer at {address} (MONGODB_URI): Connection refused (os error 111); {UNAVAILABLE_REMEDY}"
        );
        assert_eq!(error, wanted);
    }
}
