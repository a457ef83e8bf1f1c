//! MongoDB stand-in: start, commands, acknowledged writes survive a kill.

use std::io;

use devservers::{Credentials, Database, DatabaseKind, DatabaseOptions, Progress, ServerError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn options(folder: &tempfile::TempDir) -> DatabaseOptions {
    DatabaseOptions {
        kind: Some(DatabaseKind::SecantusDb),
        sync_on_commit: true,
        ..DatabaseOptions::new(folder.path().join("database"))
    }
}

/// Sends a command as `OP_MSG` and returns the bytes of the reply. `fields` is the document without
/// its length.
async fn ask(database: &Database, fields: &[u8]) -> io::Result<Vec<u8>> {
    let uri = database.uri();
    let address = uri.trim_start_matches("mongodb://").rsplit('@').next().unwrap().split('/').next().unwrap();
    let mut stream = TcpStream::connect(address).await?;
    let document = fields.len() as u32 + 5;
    let mut message = Vec::new();
    for number in [document + 21, 1, 0, 2013, 0] {
        message.extend(number.to_le_bytes());
    }
    message.push(0);
    message.extend(document.to_le_bytes());
    message.extend(fields);
    message.push(0);
    stream.write_all(&message).await?;
    let mut reply = vec![0; stream.read_u32_le().await? as usize - 4];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
}

fn has(reply: &[u8], part: &[u8]) -> bool {
    reply.windows(part.len()).any(|window| window == part)
}

/// `{insert: "kept", documents: [{n: n}], $db: "t"}`
async fn insert(database: &Database, n: i32) {
    let mut fields =
        b"\x02insert\0\x05\0\0\0kept\0\x04documents\0\x14\0\0\0\x030\0\x0c\0\0\0\x10n\0".to_vec();
    fields.extend(n.to_le_bytes());
    fields.extend(b"\0\0\x02$db\0\x02\0\0\0t\0");
    let reply = ask(database, &fields).await.unwrap();
    assert!(has(&reply, b"\x10n\0\x01\0\0\0"), "{}", String::from_utf8_lossy(&reply));
}

/// `{count: "kept", $db: "t"}`
async fn count(database: &Database) -> i32 {
    let reply = ask(database, b"\x02count\0\x05\0\0\0kept\0\x02$db\0\x02\0\0\0t\0").await.unwrap();
    let start = reply.windows(3).position(|window| window == b"\x10n\0").unwrap() + 3;
    i32::from_le_bytes(reply[start..start + 4].try_into().unwrap())
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill_and_a_restart_on_the_same_port() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::start(options(&folder), Progress::silent()).await.unwrap();
    let uri = database.uri();
    for n in 0..20 {
        insert(&database, n).await;
    }
    database.kill();
    assert_eq!(database.pid(), None);
    assert!(ask(&database, b"").await.is_err());
    database.restart().await.unwrap();
    assert_eq!((database.uri(), database.kind()), (uri, DatabaseKind::SecantusDb));
    assert_eq!(count(&database).await, 20);
    database.stop().await;
    assert!(ask(&database, b"").await.is_err());
}

#[tokio::test]
async fn a_paused_database_does_not_answer_until_it_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::start(options(&folder), Progress::silent()).await.unwrap();
    insert(&database, 1).await;
    database.pause();
    let silence = tokio::time::timeout(std::time::Duration::from_millis(300), count(&database)).await;
    assert!(silence.is_err());
    database.resume();
    assert_eq!(count(&database).await, 1);
}

#[tokio::test]
async fn with_credentials_nobody_else_gets_in_after_a_restart_either() {
    let folder = tempfile::tempdir().unwrap();
    let auth = Some(Credentials { user: "root".into(), password: "s/1".into() });
    let start =
        || Database::start(DatabaseOptions { auth: auth.clone(), ..options(&folder) }, Progress::silent());
    for _ in 0..2 {
        let database = start().await.unwrap();
        assert!(database.uri().starts_with("mongodb://root:s%2F1@127.0.0.1:"), "{}", database.uri());
        assert!(database.uri().ends_with("/?authSource=admin"));
        let reply = ask(&database, b"\x02count\0\x05\0\0\0kept\0\x02$db\0\x02\0\0\0t\0").await.unwrap();
        assert!(has(&reply, b"Unauthorized"), "{}", String::from_utf8_lossy(&reply));
    }
}

#[tokio::test]
async fn a_folder_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _database = Database::start(options(&folder), Progress::silent()).await.unwrap();
    let error = Database::start(options(&folder), Progress::silent()).await.unwrap_err();
    assert!(matches!(error, ServerError::InUse { .. }), "{error}");
}

#[tokio::test]
async fn a_port_in_use_ends_the_start_with_the_servers_own_words() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error =
        Database::start(DatabaseOptions { port, ..options(&folder) }, Progress::silent()).await.unwrap_err();
    assert!(error.to_string().starts_with("SecantusDB ended by itself"), "{error}");
    assert!(error.to_string().to_lowercase().contains("already in use"), "{error}");
}
