//! A primary of a replica set that answers as a test says, in MongoDB's wire protocol.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bson::{Document, doc};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const OP_REPLY: i32 = 1;
const OP_QUERY: i32 = 2004;
const OP_MSG: i32 = 2013;

/// What a test has the server answer; nothing is what a healthy server says.
type Script = dyn Fn(&Document) -> Option<Document> + Send + Sync;

/// It ends with the test's runtime.
pub struct ScriptedMongodb {
    pub address: SocketAddr,
    commands: Arc<Mutex<Vec<Document>>>,
}

impl ScriptedMongodb {
    pub async fn start(script: impl Fn(&Document) -> Option<Document> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, commands) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let (script, log): (Arc<Script>, _) = (Arc::new(script), Arc::clone(&commands));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(converse(stream, address, Arc::clone(&script), Arc::clone(&log)));
            }
        });
        Self { address, commands }
    }

    /// The commands of this name that came.
    pub fn commands(&self, name: &str) -> Vec<Document> {
        let commands = self.commands.lock().unwrap();
        commands
            .iter()
            .filter(|command| command.keys().next().is_some_and(|key| key == name))
            .cloned()
            .collect()
    }
}

/// A reply with these documents.
pub fn batch(documents: Vec<Document>) -> Document {
    doc! { "ok": 1, "cursor": { "id": 0_i64, "ns": "d.c", "firstBatch": documents } }
}

/// A refusal.
pub fn refusal(code: i32, why: &str) -> Document {
    doc! { "ok": 0, "code": code, "codeName": "Refused", "errmsg": why }
}

async fn converse(
    mut stream: TcpStream,
    address: SocketAddr,
    script: Arc<Script>,
    log: Arc<Mutex<Vec<Document>>>,
) -> Option<()> {
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head).await.ok()?;
        let number = |at: usize| i32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let mut body = vec![0; usize::try_from(number(0)).unwrap() - head.len()];
        stream.read_exact(&mut body).await.ok()?;
        let start = match number(12) {
            OP_MSG => 5,
            OP_QUERY => 4 + body[4..].iter().position(|byte| *byte == 0)? + 1 + 8,
            _ => return None,
        };
        let length = i32::from_le_bytes(body[start..start + 4].try_into().unwrap());
        let command = &body[start..start + usize::try_from(length).unwrap()];
        let command: Document = bson::deserialize_from_slice(command).unwrap();
        log.lock().unwrap().push(command.clone());
        let reply = script(&command).unwrap_or_else(|| usual(&command, address));
        let reply = bson::serialize_to_vec(&reply).unwrap();
        let (operation, before) =
            if number(12) == OP_MSG { (OP_MSG, vec![0; 5]) } else { (OP_REPLY, vec![0; 20]) };
        let mut answer = Vec::new();
        let length = i32::try_from(16 + before.len() + reply.len()).unwrap();
        for part in [length, 0, number(4), operation] {
            answer.extend(part.to_le_bytes());
        }
        if operation == OP_REPLY {
            let mut before = before;
            before[16] = 1;
            answer.extend(before);
        } else {
            answer.extend(before);
        }
        answer.extend(reply);
        stream.write_all(&answer).await.ok()?;
    }
}

fn usual(command: &Document, address: SocketAddr) -> Document {
    match command.keys().next().map(String::as_str) {
        Some("hello" | "ismaster" | "isMaster") => doc! {
            "ok": 1, "helloOk": true, "ismaster": true, "isWritablePrimary": true, "setName": "rs",
            "hosts": [address.to_string()], "me": address.to_string(), "primary": address.to_string(),
            "minWireVersion": 0, "maxWireVersion": 21, "maxBsonObjectSize": 16 << 20,
            "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000,
        },
        Some("find" | "aggregate" | "listIndexes") => batch(Vec::new()),
        _ => doc! { "ok": 1, "n": 0, "nModified": 0 },
    }
}
