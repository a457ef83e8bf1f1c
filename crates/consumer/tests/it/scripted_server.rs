//! A server that speaks MongoDB's wire protocol and answers as a test says: for answers that a healthy database does
//! not give when asked to.

use std::io::Read;
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

/// What a test has the server do with a command.
pub enum Answer {
    /// What a healthy server says.
    Usual,
    Reply(Document),
    /// The connection breaks before the answer.
    Silence,
    /// As usual, but only once this has come true.
    After(Pin<Box<dyn Future<Output = ()> + Send>>),
}

impl Answer {
    pub fn after(condition: impl Future<Output = ()> + Send + 'static) -> Self {
        Self::After(Box::pin(condition))
    }
}

/// Comes true when the gate is opened, or nobody is left to open it.
pub fn open(gate: &watch::Receiver<bool>) -> impl Future<Output = ()> + Send + 'static {
    let mut gate = gate.clone();
    async move { drop(gate.wait_for(|open| *open).await) }
}

/// A write that came.
#[derive(Debug, Clone)]
pub struct Write {
    pub collection: String,
    pub records: usize,
    /// Of the whole command.
    pub bytes: usize,
}

type Script = dyn Fn(&Document) -> Answer + Send + Sync;

/// Ends when it is dropped.
pub struct ScriptedServer {
    pub uri: String,
    commands: Arc<Mutex<Vec<Document>>>,
    greeting_limits: Arc<Mutex<Vec<i32>>>,
    compressed: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl ScriptedServer {
    pub async fn start(
        wire_version: i32,
        script: impl Fn(&Document) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start_as(wire_version, doc! {}, script).await
    }

    /// As [`ScriptedServer::start`]; `greeting` is added to the reply to hello.
    pub async fn start_as(
        wire_version: i32,
        greeting: Document,
        script: impl Fn(&Document) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let uri = format!("mongodb://{}/", listener.local_addr().expect("an address"));
        let commands = Arc::new(Mutex::new(Vec::new()));
        let greeting_limits = Arc::new(Mutex::new(Vec::new()));
        let script: Arc<Script> = Arc::new(script);
        let compressed = Arc::new(AtomicUsize::new(0));
        let log = Log {
            commands: Arc::clone(&commands),
            greeting_limits: Arc::clone(&greeting_limits),
            compressed: Arc::clone(&compressed),
        };
        let mut hello = usual("hello", &doc! {}, wire_version);
        hello.extend(greeting);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(converse(stream, hello.clone(), Arc::clone(&script), log.clone()));
            }
        });
        Self { uri, commands, greeting_limits, compressed, task }
    }

    /// The inserts and updates that came.
    pub fn writes(&self) -> Vec<Write> {
        let write = |command: &Document| {
            let lists = ["documents", "updates"];
            let records = lists.iter().find_map(|list| command.get_array(list).ok())?.len();
            let collection = command.values().next()?.as_str()?.to_owned();
            Some(Write { collection, records, bytes: bson::serialize_to_vec(command).ok()?.len() })
        };
        self.commands.lock().expect("no panic").iter().filter_map(write).collect()
    }

    /// The commands of this name that came.
    pub fn commands_named(&self, name: &str) -> Vec<Document> {
        let commands = self.commands.lock().expect("no panic");
        commands.iter().filter(|command| command.contains_key(name)).cloned().collect()
    }

    /// The commands that came, greetings excepted.
    pub fn sent(&self) -> Vec<Document> {
        self.commands.lock().expect("no panic").clone()
    }

    /// How many commands came compressed.
    pub fn compressed(&self) -> usize {
        self.compressed.load(Ordering::Relaxed)
    }

    /// The time limits of the greetings that came; the driver's own have none.
    pub fn greeting_limits(&self) -> Vec<i32> {
        self.greeting_limits.lock().expect("no panic").clone()
    }

    /// The names of the commands that came, greetings excepted.
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
    greeting_limits: Arc<Mutex<Vec<i32>>>,
    compressed: Arc<AtomicUsize>,
}

async fn converse(mut stream: TcpStream, hello: Document, script: Arc<Script>, log: Log) {
    let usual = |name: &str, command: &Document| match name {
        "hello" | "ismaster" | "isMaster" => hello.clone(),
        _ => usual(name, command, 0),
    };
    while let Some((request, operation, command)) = receive(&mut stream, &log.compressed).await {
        let name = command.keys().next().cloned().unwrap_or_default();
        let greeting = matches!(name.as_str(), "hello" | "ismaster" | "isMaster");
        if !greeting {
            log.commands.lock().expect("no panic").push(command.clone());
        } else if let Ok(limit) = command.get_i32("maxTimeMS") {
            log.greeting_limits.lock().expect("no panic").push(limit);
        }
        let answer = if greeting { Answer::Usual } else { script(&command) };
        let reply = match answer {
            Answer::Silence => return,
            Answer::Reply(reply) => reply,
            Answer::After(condition) => {
                condition.await;
                usual(&name, &command)
            }
            Answer::Usual => usual(&name, &command),
        };
        send(&mut stream, request, operation, &reply).await;
    }
}

/// The reply to listCollections, of one with these options.
pub fn collections(options: Document) -> Document {
    let collection = doc! { "name": "adsbdb", "type": "collection", "options": options };
    doc! { "ok": 1, "cursor": { "id": 0_i64, "ns": "d.$cmd.listCollections", "firstBatch": [collection] } }
}

/// The reply to listIndexes that has these indexes.
pub fn indexes(list: &[Document]) -> Document {
    doc! { "ok": 1, "cursor": { "id": 0_i64, "ns": "d.c", "firstBatch": list.to_vec() } }
}

fn usual(name: &str, command: &Document, wire_version: i32) -> Document {
    let sent = |list: &str| command.get_array(list).map_or(0, |list| i32::try_from(list.len()).unwrap_or(0));
    match name {
        "insert" => doc! { "ok": 1, "n": sent("documents") },
        "update" => doc! { "ok": 1, "n": sent("updates"), "nModified": sent("updates") },
        "listIndexes" => doc! { "ok": 0, "code": 26, "codeName": "NamespaceNotFound", "errmsg": "none" },
        // A collection with a rule: each event is sent.
        "listCollections" => collections(doc! { "validator": {} }),
        "find" => doc! { "ok": 1, "cursor": { "id": 0_i64, "ns": "d.c", "firstBatch": [] } },
        _ => doc! {
            "ok": 1, "helloOk": true, "ismaster": true, "isWritablePrimary": true, "minWireVersion": 0,
            "maxWireVersion": wire_version, "maxBsonObjectSize": 16 << 20, "maxMessageSizeBytes": 48_000_000,
            "maxWriteBatchSize": 100_000, "compression": ["zlib"],
        },
    }
}

/// The request's number, its operation and its command.
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
    // After the header: flags and the kind of the section, or flags, the collection's name and two numbers.
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
    // A client that is gone needs no answer.
    _ = stream.write_all(&message).await;
}
