//! The servers of a fault test, and the proxies in front of them.

use std::net::SocketAddr;
use std::path::Path;

use devservers::{Broker, BrokerOptions, Credentials, Database, DatabaseOptions, Progress};
use tokio::net::TcpListener;

use crate::process::free_address;
use crate::servers::{self, MongoServer};
use crate::{Names, Proxy, Stack, mongo};

/// The servers that a fault test wants for itself. It shares the others with other tests and must
/// not stop them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServerSetup {
    /// Whether the test has its own broker, with a proxy in front of it.
    pub broker: bool,
    /// The test's own MongoDB server. A test that sets it needs `own_mongodb`.
    pub database: Option<DatabaseSetup>,
}

/// Options of a MongoDB server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DatabaseSetup {
    /// Whether an acknowledged write survives SIGKILL.
    pub sync_on_commit: bool,
    /// Whether clients must authenticate with [`credentials`].
    pub authentication: bool,
    /// The folder for its data; `None` is a temporary one.
    pub folder: Option<&'static Path>,
}

/// The user and password of a server with authentication.
pub fn credentials() -> Credentials {
    Credentials { user: "slipstream".into(), password: "s3cret".into() }
}

/// The servers and the proxies.
#[derive(Debug)]
pub struct Servers {
    /// The proxy in front of the test's own broker.
    pub kafka: Option<Proxy>,
    /// The proxy in front of MongoDB.
    pub mongodb: Proxy,
    /// The address for the test's producer.
    pub producer: SocketAddr,
    broker: Option<Broker>,
    database: Option<MongoServer>,
    shared: Option<&'static Stack>,
    _folder: tempfile::TempDir,
}

impl Servers {
    /// Starts the servers that the test wants for itself.
    pub async fn start(setup: ServerSetup) -> Self {
        let folder = servers::folder();
        let shared = if setup.broker && setup.database.is_some() {
            None
        } else {
            Some(Stack::shared_without_sync().await)
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let broker = async {
            let options = BrokerOptions::new(servers::broker_kind(), folder.path().join("kafka"));
            let options = BrokerOptions { relay: Some(port), ..options };
            let started = setup.broker.then(|| Broker::start(options, Progress::silent()));
            Some(started?.await.expect("a broker"))
        };
        let database = async {
            let DatabaseSetup { sync_on_commit, authentication, folder: named } = setup.database?;
            let options = DatabaseOptions::new(named.unwrap_or(folder.path()).join("mongodb"));
            let auth = authentication.then(credentials);
            let options = DatabaseOptions { sync_on_commit, auth, ..options };
            let database = Database::start(options, Progress::silent()).await.expect("a MongoDB server");
            Some(MongoServer::Started { database: Box::new(database), _folder: None })
        };
        let (broker, database) = tokio::join!(broker, database);
        let behind = broker.as_ref().and_then(Broker::behind_relay);
        let kafka = behind.map(|broker| Proxy::start_on(listener, broker));
        let uri = database.as_ref().or(shared.map(|stack| &stack.mongodb)).expect("a MongoDB server").uri();
        let mongodb = Proxy::start(mongo::address(&uri).await).await;
        let producer = free_address();
        Self { kafka, mongodb, producer, broker, database, shared, _folder: folder }
    }

    /// The broker.
    pub fn broker(&self) -> &Broker {
        self.broker.as_ref().or(self.shared.map(Stack::broker)).expect("a broker")
    }

    /// The MongoDB server.
    pub fn database(&self) -> &MongoServer {
        self.database.as_ref().or(self.shared.map(|stack| &stack.mongodb)).expect("a MongoDB server")
    }

    /// Unique names, with the addresses of the servers themselves.
    pub fn names(&self) -> Names {
        Names::new(self.broker().bootstrap(), self.database().uri())
    }

    /// The variables of a process that connects through the proxies.
    pub fn environment<'a>(&self, names: &Names, more: &[(&'a str, &str)]) -> Vec<(&'a str, String)> {
        let kafka = self.kafka.as_ref().map(|kafka| kafka.address.to_string());
        let mongodb = names.mongodb.replace(mongo::host(&names.mongodb), &self.mongodb.address.to_string());
        let names = names.clone();
        let proxied = Names { kafka: kafka.unwrap_or(names.kafka), mongodb, ..names };
        let all = proxied.for_every_source(more);
        all.into_iter().map(|(name, value)| (name, value.to_owned())).collect()
    }
}
