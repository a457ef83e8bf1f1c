//! A server with MongoDB's wire protocol whose replies a test scripts, for replies that a healthy
//! server does not give.

use std::io::Read;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bson::{Document, doc};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const OP_REPLY: i32 = 1;
const OP_QUERY: i32 = 2004;
const OP_COMPRESSED: i32 = 2012;
const OP_MSG: i32 = 2013;
const ZLIB: u8 = 2;

/// What the server does with a command.
pub enum Answer {
    /// Sends the reply of a healthy server.
    Usual,
    /// Sends this reply.
    Reply(Document),
    /// Closes the connection without a reply.
    Silence,
    /// Sends the reply of a healthy server after this future has completed.
    After(Pin<Box<dyn Future<Output = ()> + Send>>),
    /// Sends the reply that this future returns, or closes the connection.
    Later(Pin<Box<dyn Future<Output = Option<Document>> + Send>>),
}

impl Answer {
    /// Sends the reply of a healthy server after `condition`.
    pub fn after(condition: impl Future<Output = ()> + Send + 'static) -> Self {
        Self::After(Box::pin(condition))
    }
}

/// Completes when the sender of `gate` sets it to true or is dropped.
pub fn open(gate: &watch::Receiver<bool>) -> impl Future<Output = ()> + Send + 'static {
    let mut gate = gate.clone();
    async move { drop(gate.wait_for(|open| *open).await) }
}

/// A write that the server received.
#[derive(Debug, Clone)]
pub struct Write {
    /// The collection.
    pub collection: String,
    /// Number of documents or updates.
    pub records: usize,
    /// Size of the command.
    pub bytes: usize,
}

type Script = dyn Fn(&Document) -> Answer + Send + Sync;

/// The server. It ends when it is dropped.
pub struct ScriptedServer {
    /// The value for MONGODB_URI.
    pub uri: String,
    /// The address on which it listens.
    pub address: SocketAddr,
    commands: Arc<Mutex<Vec<Document>>>,
    hello_timeouts: Arc<Mutex<Vec<i32>>>,
    compressed: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl ScriptedServer {
    /// Starts a standalone server of this wire version. `script` decides on each command but
    /// `hello`.
    pub async fn start(
        wire_version: i32,
        script: impl Fn(&Document) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start_as(wire_version, doc! {}, script).await
    }

    /// As [`ScriptedServer::start`], with the fields of `hello` added to the reply to `hello`.
    pub async fn start_as(
        wire_version: i32,
        hello: Document,
        script: impl Fn(&Document) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(wire_version, |_| hello, script).await
    }

    /// As [`ScriptedServer::start`], as the primary of a replica set.
    pub async fn start_replica_set(
        wire_version: i32,
        script: impl Fn(&Document) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let hello = |address: SocketAddr| {
            let address = address.to_string();
            doc! { "setName": "rs", "hosts": [&address], "me": &address, "primary": &address }
        };
        Self::start_with(wire_version, hello, script).await
    }

    async fn start_with(
        wire_version: i32,
        more: impl FnOnce(SocketAddr) -> Document,
        script: impl Fn(&Document) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let uri = format!("mongodb://{address}/");
        let commands = Arc::new(Mutex::new(Vec::new()));
        let hello_timeouts = Arc::new(Mutex::new(Vec::new()));
        let script: Arc<Script> = Arc::new(script);
        let compressed = Arc::new(AtomicUsize::new(0));
        let log = Log {
            commands: Arc::clone(&commands),
            hello_timeouts: Arc::clone(&hello_timeouts),
            compressed: Arc::clone(&compressed),
        };
        let mut hello = usual("hello", &doc! {}, wire_version);
        hello.extend(more(address));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, hello.clone(), Arc::clone(&script), log.clone()));
            }
        });
        Self { uri, address, commands, hello_timeouts, compressed, task }
    }

    /// The inserts and updates that it received.
    pub fn writes(&self) -> Vec<Write> {
        let write = |command: &Document| {
            let lists = ["documents", "updates"];
            let records = lists.iter().find_map(|list| command.get_array(list).ok())?.len();
            let collection = command.values().next()?.as_str()?.to_owned();
            Some(Write { collection, records, bytes: bson::serialize_to_vec(command).ok()?.len() })
        };
        self.commands.lock().expect("no panic").iter().filter_map(write).collect()
    }

    /// The commands of this name that it received.
    pub fn commands_named(&self, name: &str) -> Vec<Document> {
        let commands = self.commands.lock().expect("no panic");
        commands.iter().filter(|command| command.contains_key(name)).cloned().collect()
    }

    /// The commands that it received, without `hello`.
    pub fn sent(&self) -> Vec<Document> {
        self.commands.lock().expect("no panic").clone()
    }

    /// The number of compressed commands that it received.
    pub fn compressed(&self) -> usize {
        self.compressed.load(Ordering::Relaxed)
    }

    /// The `maxTimeMS` of each `hello` that has one. Those of the driver have none.
    pub fn hello_timeouts(&self) -> Vec<i32> {
        self.hello_timeouts.lock().expect("no panic").clone()
    }

    /// The names of the commands that it received, without `hello`.
    pub fn commands(&self) -> Vec<String> {
        let name = |command: &Document| command.keys().next().cloned().unwrap_or_default();
        self.commands.lock().expect("no panic").iter().map(name).collect()
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whether a command writes events.
pub fn is_write(command: &Document) -> bool {
    command.contains_key("insert") || command.contains_key("update")
}

#[derive(Clone)]
struct Log {
    commands: Arc<Mutex<Vec<Document>>>,
    hello_timeouts: Arc<Mutex<Vec<i32>>>,
    compressed: Arc<AtomicUsize>,
}

async fn serve(mut stream: TcpStream, hello: Document, script: Arc<Script>, log: Log) {
    let usual = |name: &str, command: &Document| match name {
        "hello" | "ismaster" | "isMaster" => {
            let mut hello = hello.clone();
            hello.entry("localTime".to_owned()).or_insert_with(|| bson::DateTime::now().into());
            hello
        }
        _ => usual(name, command, 0),
    };
    while let Some((request, operation, command)) = receive(&mut stream, &log.compressed).await {
        let name = command.keys().next().cloned().unwrap_or_default();
        let is_hello = matches!(name.as_str(), "hello" | "ismaster" | "isMaster");
        if !is_hello {
            log.commands.lock().expect("no panic").push(command.clone());
        } else if let Ok(timeout) = command.get_i32("maxTimeMS") {
            log.hello_timeouts.lock().expect("no panic").push(timeout);
        }
        let answer = if is_hello { Answer::Usual } else { script(&command) };
        let reply = match answer {
            Answer::Silence => return,
            Answer::Reply(reply) => reply,
            Answer::Later(reply) => match reply.await {
                Some(reply) => reply,
                None => return,
            },
            Answer::After(condition) => {
                condition.await;
                usual(&name, &command)
            }
            Answer::Usual => usual(&name, &command),
        };
        send(&mut stream, request, operation, &reply).await;
    }
}

/// A reply to listCollections with one collection that has these options.
pub fn collections(options: Document) -> Document {
    let collection = doc! { "name": "adsbdb", "type": "collection", "options": options };
    doc! { "ok": 1, "cursor": { "id": 0_i64, "ns": "d.$cmd.listCollections", "firstBatch": [collection] } }
}

/// A reply to listIndexes with these indexes.
pub fn indexes(list: &[Document]) -> Document {
    batch(list.to_vec())
}

/// A reply with a cursor that has only these documents.
pub fn batch(documents: Vec<Document>) -> Document {
    doc! { "ok": 1, "cursor": { "id": 0_i64, "ns": "d.c", "firstBatch": documents } }
}

/// An error reply.
pub fn error(code: i32, message: &str) -> Document {
    doc! { "ok": 0, "code": code, "codeName": "Refused", "errmsg": message }
}

fn usual(name: &str, command: &Document, wire_version: i32) -> Document {
    let sent = |list: &str| command.get_array(list).map_or(0, |list| i32::try_from(list.len()).unwrap_or(0));
    match name {
        "insert" => doc! { "ok": 1, "n": sent("documents") },
        "update" => doc! { "ok": 1, "n": sent("updates"), "nModified": sent("updates") },
        "listIndexes" => doc! { "ok": 0, "code": 26, "codeName": "NamespaceNotFound", "errmsg": "none" },
        // A collection with a validator, so that the consumer sends each event.
        "listCollections" => collections(doc! { "validator": {} }),
        "find" => doc! { "ok": 1, "cursor": { "id": 0_i64, "ns": "d.c", "firstBatch": [] } },
        _ => doc! {
            "ok": 1, "helloOk": true, "ismaster": true, "isWritablePrimary": true, "minWireVersion": 0,
            "maxWireVersion": wire_version, "maxBsonObjectSize": 16 << 20, "maxMessageSizeBytes": 48_000_000,
            "maxWriteBatchSize": 100_000, "compression": ["zlib"],
        },
    }
}

/// Reads a message: request id, operation code and command.
async fn receive(stream: &mut TcpStream, compressed: &AtomicUsize) -> Option<(i32, i32, Document)> {
    let length = usize::try_from(stream.read_i32_le().await.ok()?).ok()?;
    let mut message = vec![0; length - 4];
    stream.read_exact(&mut message).await.ok()?;
    let number_at =
        |message: &[u8], at: usize| i32::from_le_bytes(message[at..at + 4].try_into().expect("four bytes"));
    let mut operation = number_at(&message, 8);
    if operation == OP_COMPRESSED {
        compressed.fetch_add(1, Ordering::Relaxed);
        operation = number_at(&message, 12);
        assert_eq!(message[20], ZLIB);
        let mut inside = message[..12].to_vec();
        flate2::read::ZlibDecoder::new(&message[21..]).read_to_end(&mut inside).expect("zlib");
        message = inside;
    }
    // OP_MSG: flags and section kind. OP_QUERY: flags, collection name and two numbers.
    let body = match operation {
        OP_QUERY => 16 + message[16..].iter().position(|byte| *byte == 0)? + 1 + 8,
        _ => 17,
    };
    let command = Document::from_reader(&message[body..]).expect("a command");
    Some((number_at(&message, 0), operation, command))
}

async fn send(stream: &mut TcpStream, request: i32, operation: i32, reply: &Document) {
    let mut body = match operation {
        OP_QUERY => [8, 0, 0, 0, 1].iter().flat_map(|number: &i32| number.to_le_bytes()).collect(),
        _ => vec![0; 5],
    };
    reply.to_writer(&mut body).expect("BSON");
    let kind = if operation == OP_QUERY { OP_REPLY } else { OP_MSG };
    let length = i32::try_from(body.len() + 16).expect("a short reply");
    let mut message: Vec<u8> =
        [length, 0, request, kind].iter().flat_map(|number| number.to_le_bytes()).collect();
    message.extend(body);
    // The client may have closed the connection.
    _ = stream.write_all(&message).await;
}
