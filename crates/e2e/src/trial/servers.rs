//! The servers of a trial: its own where the fault needs that, else shared ones; and the relays before them.

use std::net::SocketAddr;
use std::path::Path;

use devservers::{Broker, BrokerKind, BrokerOptions, Credentials, Database, DatabaseOptions, Progress};
use tokio::net::TcpListener;

use crate::process::free_address;
use crate::{Names, Proxy, Stack};

/// Which servers a trial wants. What it does not own is shared with other tests, and so never to be harmed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// A broker of its own, with a relay before it.
    pub broker: bool,
    /// A database of its own.
    pub database: Option<Kept>,
}

/// What a database of a trial's own is like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Whether an acknowledged write survives SIGKILL.
    pub sync_on_commit: bool,
    /// Whether clients log in, as [`user`].
    pub log_in: bool,
    /// Where its data goes; `None` is a temporary folder.
    pub folder: Option<&'static Path>,
}

/// Who logs in.
pub fn user() -> Credentials {
    Credentials { user: "slipstream".into(), password: "s3cret".into() }
}

/// The servers.
#[derive(Debug)]
pub struct Servers {
    /// The relay before the trial's own broker.
    pub kafka: Option<Proxy>,
    /// The relay before the database.
    pub mongodb: Proxy,
    /// Where the trial's producer listens.
    pub producer: SocketAddr,
    broker: Option<Broker>,
    database: Option<Database>,
    shared: Option<&'static Stack>,
    _folder: tempfile::TempDir,
}

impl Servers {
    /// Starts what is wanted.
    pub async fn start(wanted: Wanted) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let shared =
            if wanted.broker && wanted.database.is_some() { None } else { Some(Stack::shared_quick().await) };
        let front = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = front.local_addr().expect("its address").port();
        let broker = async {
            let kind = BrokerKind::from_env().expect("SLIPSTREAM_BROKER names a broker");
            let options = BrokerOptions::new(kind, folder.path().join("kafka"));
            let options = BrokerOptions { relay: Some(port), ..options };
            let started = wanted.broker.then(|| Broker::start(options, Progress::silent()));
            Some(started?.await.expect("a broker"))
        };
        let database = async {
            let Kept { sync_on_commit, log_in, folder: named } = wanted.database?;
            let options = DatabaseOptions::new(named.unwrap_or(folder.path()).join("mongodb"));
            let options = DatabaseOptions { sync_on_commit, auth: log_in.then(user), ..options };
            Some(Database::start(options, Progress::silent()).await.expect("a database"))
        };
        let (broker, database) = tokio::join!(broker, database);
        let behind = broker.as_ref().and_then(Broker::behind_relay);
        let kafka = behind.map(|broker| Proxy::on(front, broker));
        let uri = database.as_ref().or(shared.map(|stack| &stack.database)).expect("a database").uri();
        let mongodb = Proxy::before(address(&uri)).await;
        let producer = free_address();
        Self { kafka, mongodb, producer, broker, database, shared, _folder: folder }
    }

    /// The broker, of its own or shared.
    pub fn broker(&self) -> &Broker {
        self.broker.as_ref().or(self.shared.map(|stack| &stack.broker)).expect("a broker")
    }

    /// The database, of its own or shared.
    pub fn database(&self) -> &Database {
        self.database.as_ref().or(self.shared.map(|stack| &stack.database)).expect("a database")
    }

    /// Names that no other test has, with the servers' own addresses.
    pub fn names(&self) -> Names {
        Names::new(self.broker().bootstrap(), self.database().uri())
    }

    /// The variables of a process that comes to the servers through the relays.
    pub fn environment<'a>(&self, names: &Names, more: &[(&'a str, &str)]) -> Vec<(&'a str, String)> {
        let kafka = self.kafka.as_ref().map(|kafka| kafka.address.to_string());
        let mongodb =
            names.mongodb.replace(&address(&names.mongodb).to_string(), &self.mongodb.address.to_string());
        let names = names.clone();
        let relayed = Names { kafka: kafka.unwrap_or(names.kafka), mongodb, ..names };
        let all = relayed.for_every_source(more);
        all.into_iter().map(|(name, value)| (name, value.to_owned())).collect()
    }
}

/// The server of a URI that names one.
fn address(uri: &str) -> SocketAddr {
    let rest = uri.strip_prefix("mongodb://").expect("a URI");
    let host = rest.split(['/', '?']).next().unwrap_or(rest);
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    host.parse().expect("an address")
}
