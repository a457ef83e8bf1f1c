//! Probes MongoDB: whether it answers and lets us in, what we may do there, how safe a finished write is, and the indexes
//! of each collection.

use bson::oid::ObjectId;
use bson::{Document, doc};
use consumer::Expected;
use consumer::store::{IndexState, StoreState, UpsertKeys, index_state, read_hello, write_concern};
use events::Source;
use mongodb::Database;
use mongodb::error::{Error, ErrorKind};
use mongodb::options::ConnectionString;
use service::Secret;

use super::finding::Finding;
use crate::Failure;
use crate::dedupe::{self, Target};

const SUBJECT: &str = "mongodb";
const UNAUTHORIZED: i32 = 13;
const AUTHENTICATION_FAILED: i32 = 18;
/// The password of docker-compose.yml.
const DEFAULT_PASSWORD: &str = "mongopass";

/// Whether the server answers, and is one that we can use; `false` if there is nothing more to ask.
pub async fn answers(database: &Database) -> (Finding, bool) {
    let finding = match database.run_command(doc! { "hello": 1 }).await {
        Ok(hello) => judge_hello(&hello),
        Err(error) if is_about_login(&error) => refused(&error),
        Err(error) => {
            let remedy =
                "start it, or correct the host in MONGODB_URI; from a container, localhost is the container";
            Finding::fail(SUBJECT, format!("does not answer: {}", error.kind), remedy)
        }
    };
    let goes_on = finding.remedy.is_none();
    (finding, goes_on)
}

fn judge_hello(hello: &Document) -> Finding {
    match read_hello(hello) {
        StoreState::Refused(reason) => Finding::fail(SUBJECT, reason, "upgrade it"),
        StoreState::Away(reason) => Finding::fail(
            SUBJECT,
            reason,
            "name every member of the replica set in MONGODB_URI, and see why it has no primary",
        ),
        StoreState::Ready | StoreState::Unknown => Finding::ok(SUBJECT, "answers and takes writes"),
    }
}

fn is_about_login(error: &Error) -> bool {
    match &*error.kind {
        ErrorKind::Authentication { .. } => true,
        ErrorKind::Command(error) => [UNAUTHORIZED, AUTHENTICATION_FAILED].contains(&error.code),
        _ => false,
    }
}

fn refused(error: &Error) -> Finding {
    let remedy = "correct user, password and authSource in MONGODB_URI";
    let what = error.to_string();
    let what = what.split(" to execute command").next().unwrap_or_default().to_owned();
    Finding::fail(SUBJECT, format!("refuses the credentials: {what}"), remedy)
}

/// Whether we may read, and write. The update finds nothing and changes nothing; an insert is not tried, as it would leave
/// a document behind.
pub async fn rights(database: &Database, collection: &Source) -> Finding {
    let name = collection.as_str();
    let update = doc! { "q": { "_id": ObjectId::new() }, "u": { "$set": { "x": 1 } } };
    let tries = [
        ("find", doc! { "find": name, "limit": 1, "singleBatch": true, "projection": { "_id": 1 } }),
        ("update", doc! { "update": name, "updates": [update] }),
    ];
    for (right, command) in tries {
        match database.run_command(command).await {
            Err(error) if is_about_login(&error) => {
                let cause = format!("does not allow {right} on {}.{name}", database.name());
                let remedy =
                    format!("grant the user of MONGODB_URI the role readWrite on {}", database.name());
                return Finding::fail("mongodb rights", cause, remedy);
            }
            Err(error) => {
                return Finding::fail("mongodb rights", error.kind.to_string(), "see the server's log");
            }
            Ok(_) => {}
        }
    }
    Finding::ok("mongodb rights", format!("find and update on {}.{name}", database.name()))
}

/// How safe a write is that counts as finished.
pub fn safety(uri: &Secret) -> Finding {
    let concern = write_concern(uri).unwrap_or_default();
    let weak = concern.get("w").ok().flatten().and_then(|w| w.as_i32()).is_some_and(|w| w == 1);
    let unsynced = matches!(concern.get_bool("j"), Ok(false));
    let subject = "mongodb write concern";
    let remedy = "leave w and journal out of MONGODB_URI: majority is the default";
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
    Finding::ok(subject, format!("{concern:?}").replace("RawDocumentBuf", "").trim().to_owned())
}

/// Whether everybody knows the password.
pub fn password(uri: &Secret) -> Option<Finding> {
    let parsed = ConnectionString::parse(uri.expose()).ok()?;
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

/// The collections that the consumer writes to; with `*`, those that are there.
///
/// # Errors
/// The server does not answer, or refuses.
pub async fn collections(database: &Database, expected: &Expected) -> Result<Vec<Source>, Failure> {
    match expected {
        Expected::Of(sources) => Ok(sources.iter().cloned().collect()),
        Expected::Any => {
            let names = database.list_collection_names().await?;
            Ok(names.into_iter().filter_map(|name| Source::new(name).ok()).collect())
        }
    }
}

/// The indexes of one collection, and what is in the way of the unique one.
pub async fn indexes(config: &consumer::Config, collection: Source) -> Finding {
    let subject = format!("collection {}.{collection}", config.store.database);
    let keys = config.store.upsert_keys.clone();
    let looked = async {
        let place = dedupe::Config {
            uri: config.store.uri.clone(),
            database: config.store.database.clone(),
            collection,
            upsert_keys: keys.clone(),
        };
        let target = Target::new(place).await?;
        judge_indexes(&subject, &keys, &target).await
    };
    looked.await.unwrap_or_else(|error: Failure| {
        Finding::fail(&subject, format!("its indexes cannot be read: {error}"), "see the findings above")
    })
}

async fn judge_indexes(subject: &str, keys: &UpsertKeys, target: &Target) -> Result<Finding, Failure> {
    let Some(existing) = target.indexes().await? else {
        return Ok(Finding::ok(subject, "is not there yet: it is made with the first event"));
    };
    let (database, collection) = target.names();
    let dedupe = format!("slipstream dedupe --collection {collection}");
    Ok(match index_state(keys, &existing) {
        IndexState::Complete => {
            Finding::ok(subject, format!("unique index on {keys}, and the look-up indexes"))
        }
        IndexState::WithoutLookups(names) => {
            let cause = format!("look-up indexes are missing: {}", names.join(", "));
            Finding::warn(
                subject,
                cause,
                "the consumer makes them with the next event; see its log if it does not",
            )
        }
        IndexState::InTheWay(name) => {
            let cause = format!("index {name} is not the unique one on {keys}, so nothing is written");
            let remedy = format!(
                "{dedupe} --apply --out FILE, or \
                 db.getSiblingDB({database:?}).getCollection({collection:?}).dropIndex({name:?})"
            );
            Finding::fail(subject, cause, remedy)
        }
        IndexState::NotUnique => match dedupe::in_the_way(target).await? {
            0 => Finding::warn(
                subject,
                format!("no unique index on {keys} yet"),
                "the consumer makes it with the next event",
            ),
            documents => Finding::fail(
                subject,
                format!(
                    "{documents} documents are in the way of the unique index on {keys}, so nothing is written"
                ),
                dedupe,
            ),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::Level;

    // The servers of the tests are new enough, and each is a primary.
    #[test]
    fn a_server_that_is_too_old_or_takes_no_writes_fails() {
        let old = judge_hello(&doc! { "maxWireVersion": 9, "isWritablePrimary": true });
        assert!(old.level == Level::Fail && old.cause.contains("5.0"), "{old:?}");
        let secondary = judge_hello(&doc! { "maxWireVersion": 21, "isWritablePrimary": false });
        assert!(secondary.level == Level::Fail && secondary.cause.contains("primary"), "{secondary:?}");
    }
}
