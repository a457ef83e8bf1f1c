//! Probes MongoDB: whether it answers and lets us in, what we may do there, and how safe a finished write is.

use bson::oid::ObjectId;
use bson::{Document, doc};
use consumer::mongo::{StoreState, ignored_options, read_hello, usable_uri, write_concern};
use events::Source;
use mongodb::Database;
use mongodb::options::ConnectionString;
use service::Secret;

use super::finding::Finding;
use loadtest::mongo::{
    self, CommandError, ErrorClass, LOGIN_REMEDY, REPLY_TIMEOUT, UNAVAILABLE_REMEDY, URI_REMEDY, address,
    majority,
};

const SUBJECT: &str = "mongodb";
const RIGHTS: &str = "mongodb rights";
/// The password of docker-compose.yml.
const DEFAULT_PASSWORD: &str = "mongopass";

pub(super) async fn run(database: &Database, command: Document) -> Result<Document, CommandError> {
    within(async { database.run_command(command).await.map_err(|error| CommandError::of(&error)) }).await
}

/// The driver has no time limit of its own for an answer.
pub(super) async fn within<T>(
    call: impl Future<Output = Result<T, CommandError>>,
) -> Result<T, CommandError> {
    tokio::time::timeout(REPLY_TIMEOUT, call).await.unwrap_or(Err(CommandError::timeout()))
}

/// The database; nothing is asked of it yet.
///
/// # Errors
/// The driver refuses the connection string, or its name cannot be looked up.
pub async fn open(config: &consumer::Config) -> Result<Database, Finding> {
    mongo::database(&config.store.uri, &config.store.database).await.map_err(|error| {
        Finding::fail(SUBJECT, format!("cannot be asked: {}", CommandError::of(&error).cause), URI_REMEDY)
    })
}

/// What the server says of itself.
///
/// # Errors
/// It does not answer, or does not let us in.
pub async fn hello(config: &consumer::Config, database: &Database) -> Result<Document, Finding> {
    run(database, doc! { "hello": 1 }).await.map_err(|fault| {
        let (address, why) = (address(&config.store.uri), &fault.cause);
        if fault.is_access_denied() {
            let cause = format!("at {address} refuses the credentials: {why}");
            return Finding::fail(SUBJECT, cause, LOGIN_REMEDY);
        }
        Finding::fail(
            SUBJECT,
            format!("does not answer at {address} (MONGODB_URI): {why}"),
            UNAVAILABLE_REMEDY,
        )
    })
}

/// Whether it is a server that we can use.
pub fn judge_hello(hello: &Document) -> Finding {
    match read_hello(hello) {
        StoreState::Unusable(reason) => Finding::fail(SUBJECT, reason, "upgrade it"),
        StoreState::Unavailable(reason) => Finding::fail(
            SUBJECT,
            reason,
            "name every member of the replica set in MONGODB_URI, and see why it has no primary",
        ),
        StoreState::Ready | StoreState::Unknown => Finding::ok(SUBJECT, "answers and takes writes"),
    }
}

/// Whether we may read, and write. No document is changed: the update finds none, and MongoDB stores none whose `_id` has a
/// name with `$`. A server judges the right first.
///
/// # Errors
/// The right that we lack.
pub async fn rights(database: &Database, collection: &Source) -> Result<(), Finding> {
    let name = collection.as_str();
    let (nobody, change) = (doc! { "_id": ObjectId::new() }, doc! { "$set": { "x": 1 } });
    // A router refuses findAndModify for a collection whose shard key the query lacks. One that is not there has none, and
    // not every server leaves it so after an update.
    let update = match is_absent(database, collection).await {
        true => doc! { "findAndModify": name, "query": nobody, "update": change },
        false => doc! { "update": name, "updates": [{ "q": nobody, "u": change }] },
    };
    let refused = doc! { "_id": { "$slipstream": ObjectId::new() } };
    let tries = [
        (
            "find",
            doc! { "find": name, "limit": 1, "singleBatch": true, "projection": { "_id": 1 }, "readConcern": majority() },
        ),
        ("update", update),
        ("insert", doc! { "insert": name, "documents": [refused] }),
    ];
    for (right, command) in tries {
        match run(database, command).await {
            Err(fault) => return Err(lacks(database, collection, right, &fault)),
            // The insert is meant to be refused.
            Ok(reply) if right == "update" => {
                if let Some(fault) = refused_write(&reply) {
                    return Err(lacks(database, collection, right, &fault));
                }
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Whether the server says that there is no such collection.
async fn is_absent(database: &Database, collection: &Source) -> bool {
    let list = doc! {
        "listCollections": 1, "nameOnly": true, "authorizedCollections": true,
        "filter": { "name": collection.as_str() },
    };
    let Ok(reply) = run(database, list).await else { return false };
    let found = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    found.is_ok_and(Vec::is_empty)
}

/// The line for all collections on which nothing is lacking.
pub fn granted(database: &Database, collections: &[Source]) -> Finding {
    let on = match collections {
        [only] => format!("{}.{only}", database.name()),
        several => format!("{} collections of {}", several.len(), database.name()),
    };
    Finding::ok(RIGHTS, format!("find, update and insert on {on}"))
}

/// A reply that is well as a whole can still tell of a write that was refused.
fn refused_write(reply: &Document) -> Option<CommandError> {
    let error = reply.get_array("writeErrors").ok()?.first()?.as_document()?;
    let why = error.get_str("errmsg").unwrap_or("the server refused it").to_owned();
    Some(CommandError { cause: why, class: ErrorClass::Rejected })
}

/// The failure if we may not make the indexes that `collection`, which exists, lacks. It asks for none, which is refused for
/// another reason to those who may.
pub async fn index_right(database: &Database, collection: &Source) -> Option<Finding> {
    let none = doc! { "createIndexes": collection.as_str(), "indexes": [] };
    let fault = run(database, none).await.err()?;
    fault.is_access_denied().then(|| lacks(database, collection, "createIndex", &fault))
}

fn lacks(database: &Database, collection: &Source, right: &str, fault: &CommandError) -> Finding {
    not_allowed(database, format!("no {right} on {}.{collection}: {}", database.name(), fault.cause))
}

/// The failure for want of a right.
pub(super) fn not_allowed(database: &Database, cause: String) -> Finding {
    let remedy = format!("grant the user of MONGODB_URI the role readWrite on {}", database.name());
    Finding::fail(RIGHTS, cause, remedy)
}

/// How many servers hold the data, as far as they can be seen; a router does not say.
fn holders(hello: &Document) -> Option<usize> {
    let count = |list: &str| hello.get_array(list).map_or(0, |hosts| hosts.len());
    match hello.get_str("msg") {
        Ok("isdbgrid") => None,
        _ => Some((count("hosts") + count("passives")).max(1)),
    }
}

/// How safe a write is that counts as finished, and whether one can be; the server's `hello` may be missing.
pub fn safety(uri: &Secret, hello: Option<&Document>) -> Finding {
    let concern = write_concern(uri).unwrap_or_default();
    let w = concern.get("w").ok().flatten().and_then(|w| w.as_i32());
    let weak = w == Some(1);
    let unsynced = matches!(concern.get_bool("j"), Ok(false));
    let subject = "mongodb write concern";
    let remedy = "leave w and journal out of MONGODB_URI: majority is the default";
    if let (Some(w), Some(holders)) = (w.and_then(|w| usize::try_from(w).ok()), hello.and_then(holders))
        && w > holders
    {
        let cause = format!("w={w}, but servers with the data: {holders}; no write is ever finished");
        return Finding::fail(subject, cause, remedy);
    }
    if weak {
        return Finding::warn(subject, "w=1: an election can undo a write that counts as finished", remedy);
    }
    if unsynced {
        return Finding::warn(
            subject,
            "journal=false: a power cut can undo a write that counts as finished",
            remedy,
        );
    }
    let concern = Document::try_from(concern).unwrap_or_default();
    Finding::ok(subject, concern.to_string())
}

/// Names the options of MONGODB_URI that have no effect.
pub fn ignored(uri: &Secret) -> Option<Finding> {
    let ignored = ignored_options(uri);
    let remedy = "take them out; docs/operations.md says what holds instead";
    let cause = || format!("options without effect: {}", ignored.join(", "));
    (!ignored.is_empty()).then(|| Finding::warn("mongodb uri", cause(), remedy))
}

/// Whether everybody knows the password.
pub fn password(uri: &Secret) -> Option<Finding> {
    let parsed = ConnectionString::parse(usable_uri(uri).expose()).ok()?;
    let known = parsed.credential?.password? == DEFAULT_PASSWORD;
    let remedy = "change it with db.changeUserPassword, and in .env (MONGO_INITDB_ROOT_PASSWORD counts only while the \
                  volume is new)";
    known.then(|| {
        Finding::warn(
            "mongodb password",
            "is the one of docker-compose.yml, which everybody can read",
            remedy,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::Level;

    #[test]
    fn more_acknowledgements_than_there_are_servers_fail() {
        let three = doc! { "hosts": ["a:1", "b:1"], "passives": ["c:1"], "arbiters": ["d:1"] };
        let (router, alone) = (doc! { "msg": "isdbgrid" }, doc! {});
        let level = |w: &str, hello| safety(&Secret::new(format!("mongodb://h/?w={w}")), hello).level;
        assert_eq!(level("3", Some(&three)), Level::Ok);
        assert_eq!(level("4", Some(&three)), Level::Fail);
        assert_eq!(level("2", Some(&alone)), Level::Fail);
        assert_eq!(level("majority", Some(&alone)), Level::Ok);
        assert_eq!(level("4", Some(&router)), Level::Ok);
        assert_eq!(level("4", None), Level::Ok);
    }

    #[test]
    fn options_without_effect_are_named_in_a_warning() {
        let found = ignored(&Secret::new("mongodb://h/?foo=bar&w=1&compressors=snappy")).expect("a finding");
        assert_eq!(
            (found.level, found.cause.as_str()),
            (Level::Warn, "options without effect: foo, compressors=snappy")
        );
        assert_eq!(ignored(&Secret::new("mongodb://h/?w=1")), None);
        let password = password(&Secret::new("mongodb://u:mongopass@h/?foo=bar"));
        assert_eq!(password.map(|found| found.level), Some(Level::Warn));
    }

    // The servers of the tests are new enough, and each is a primary.
    #[test]
    fn a_server_that_is_too_old_or_takes_no_writes_fails() {
        let old = judge_hello(&doc! { "maxWireVersion": 9, "isWritablePrimary": true });
        assert!(old.level == Level::Fail && old.cause.contains("5.0"), "{old:?}");
        let secondary = judge_hello(&doc! { "maxWireVersion": 21, "isWritablePrimary": false });
        assert!(secondary.level == Level::Fail && secondary.cause.contains("primary"), "{secondary:?}");
    }
}
