//! Checks MongoDB: whether it answers and accepts the credentials, how safe a finished write is, and
//! the collections that the consumer writes to: rights, indexes, and duplicate documents.

use bson::oid::ObjectId;
use bson::{Document, doc};
use consumer::mongo::{
    IndexState, StoreState, UpsertKeys, ignored_options, index_state, missing_extra_indexes, read_hello,
    usable_uri, write_concern, written_under_other_keys,
};
use consumer::{ExpectedSources, SourceStore};
use events::Source;
use kafka::BoxError;
use loadtest::mongo::{
    CommandError, ErrorClass, LOGIN_REMEDY, Mongo, REPLY_TIMEOUT, UNAVAILABLE_REMEDY, URI_REMEDY, majority,
};
use mongodb::options::ConnectionString;
use service::Secret;
use service::plural::counted_with;
use sources::deletes_collection;
use tokio::time::error::Elapsed;

use super::finding::{Finding, Level};
use crate::dedupe::{self, Indexes, KeyedCollection};

const SUBJECT: &str = "mongodb";
const RIGHTS: &str = "mongodb rights";
/// The password of docker-compose.yml.
const DEFAULT_PASSWORD: &str = "mongopass";

/// Checks the server, its safety, the rights of the user, and the collections.
pub async fn check(config: &consumer::Config) -> Vec<Finding> {
    let uri = &config.store.uri;
    let connect = async {
        let mongo = open(config).await?;
        hello(&mongo).await.map(|hello| (mongo, hello))
    };
    match connect.await {
        Ok((mongo, hello)) => {
            let server = check_hello(&hello);
            let is_usable = server.level == Level::Ok;
            let mut findings = vec![server, check_write_concern(uri, Some(&hello))];
            findings.extend(check_options(uri).into_iter().chain(check_password(uri)));
            if is_usable {
                findings.extend(check_collections(config, &mongo).await);
                findings.extend(check_deletes(config, &mongo).await);
            }
            findings
        }
        Err(unavailable) => {
            let of_uri = check_options(uri).into_iter().chain(check_password(uri));
            [unavailable, check_write_concern(uri, None)].into_iter().chain(of_uri).collect()
        }
    }
}

async fn run(mongo: &Mongo, command: Document) -> Result<Document, CommandError> {
    mongo.reply(mongo.database.run_command(command)).await
}

/// Creates a client of the database without connecting.
async fn open(config: &consumer::Config) -> Result<Mongo, Finding> {
    Mongo::try_open(&config.store.uri, &config.store.database).await.map_err(|error| {
        Finding::fail(SUBJECT, format!("cannot be used: {}", CommandError::of(&error).cause), URI_REMEDY)
    })
}

/// Reads the server's `hello`.
async fn hello(mongo: &Mongo) -> Result<Document, Finding> {
    run(mongo, doc! { "hello": 1 }).await.map_err(|error| {
        let (address, cause) = (&mongo.address, &error.cause);
        if error.is_access_denied() {
            let cause = format!("at {address} rejects the credentials: {cause}");
            return Finding::fail(SUBJECT, cause, LOGIN_REMEDY);
        }
        Finding::fail(
            SUBJECT,
            format!("does not answer at {address} (MONGODB_URI): {cause}"),
            UNAVAILABLE_REMEDY,
        )
    })
}

/// Checks whether the server can be used.
fn check_hello(hello: &Document) -> Finding {
    match read_hello(hello) {
        StoreState::Unusable(reason) => Finding::fail(SUBJECT, reason, "upgrade it"),
        StoreState::Unavailable(reason) => Finding::fail(
            SUBJECT,
            reason,
            "list every member of the replica set in MONGODB_URI, and find out why it has no primary",
        ),
        StoreState::Ready | StoreState::Unknown => Finding::ok(SUBJECT, "answers and accepts writes"),
    }
}

/// Checks the rights to read and write. No document changes: the update matches no document, and
/// MongoDB rejects an insert whose `_id` has a name with `$`. A server checks the right first.
async fn check_rights(mongo: &Mongo, name: &str) -> Result<(), Finding> {
    let (no_document, change) = (doc! { "_id": ObjectId::new() }, doc! { "$set": { "x": 1 } });
    // A router rejects findAndModify if the query lacks the collection's shard key. A missing
    // collection has no shard key, and some servers create it for an update.
    let update = match is_missing(mongo, name).await {
        true => doc! { "findAndModify": name, "query": no_document, "update": change },
        false => doc! { "update": name, "updates": [{ "q": no_document, "u": change }] },
    };
    let invalid = doc! { "_id": { "$slipstream": ObjectId::new() } };
    let probes = [
        (
            "find",
            doc! { "find": name, "limit": 1, "singleBatch": true, "projection": { "_id": 1 }, "readConcern": majority() },
        ),
        ("update", update),
        ("insert", doc! { "insert": name, "documents": [invalid] }),
    ];
    for (right, command) in probes {
        match run(mongo, command).await {
            Err(error) => return Err(missing_right(mongo, name, right, &error)),
            // The insert is expected to be rejected.
            Ok(reply) if right == "update" => {
                if let Some(error) = write_error(&reply) {
                    return Err(missing_right(mongo, name, right, &error));
                }
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Whether the server lists no such collection.
async fn is_missing(mongo: &Mongo, collection: &str) -> bool {
    let list = doc! {
        "listCollections": 1, "nameOnly": true, "authorizedCollections": true,
        "filter": { "name": collection },
    };
    let Ok(reply) = run(mongo, list).await else { return false };
    let found = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    found.is_ok_and(Vec::is_empty)
}

/// The finding for all collections with all rights.
fn granted(mongo: &Mongo, collections: &[Source]) -> Finding {
    let on = match collections {
        [only] => format!("{}.{only}", mongo.database.name()),
        several => format!("{} collections of {}", several.len(), mongo.database.name()),
    };
    Finding::ok(RIGHTS, format!("find, update and insert on {on}"))
}

/// The write error in a reply with `ok: 1`.
fn write_error(reply: &Document) -> Option<CommandError> {
    let error = reply.get_array("writeErrors").ok()?.first()?.as_document()?;
    let cause = error.get_str("errmsg").unwrap_or("the server rejected it").to_owned();
    Some(CommandError { cause, class: ErrorClass::Rejected })
}

/// The failure if the user may not create indexes on `collection`, which must exist. The command
/// has no indexes: a user with the right gets another error.
async fn index_right(mongo: &Mongo, collection: &str) -> Option<Finding> {
    let none = doc! { "createIndexes": collection, "indexes": [] };
    let error = run(mongo, none).await.err()?;
    error.is_access_denied().then(|| missing_right(mongo, collection, "createIndex", &error))
}

fn missing_right(mongo: &Mongo, collection: &str, right: &str, error: &CommandError) -> Finding {
    not_allowed(mongo, format!("no {right} on {}.{collection}: {}", mongo.database.name(), error.cause))
}

/// The failure because of a missing right.
fn not_allowed(mongo: &Mongo, cause: String) -> Finding {
    let remedy = format!("grant the user of MONGODB_URI the role readWrite on {}", mongo.database.name());
    Finding::fail(RIGHTS, cause, remedy)
}

/// The number of data-bearing members; a router does not list them.
fn data_members(hello: &Document) -> Option<usize> {
    let count = |list: &str| hello.get_array(list).map_or(0, |hosts| hosts.len());
    match hello.get_str("msg") {
        Ok("isdbgrid") => None,
        _ => Some((count("hosts") + count("passives")).max(1)),
    }
}

/// Checks how safe a finished write is, and whether a write can finish. `hello` is `None` if the
/// server is unavailable.
fn check_write_concern(uri: &Secret, hello: Option<&Document>) -> Finding {
    let concern = write_concern(uri).unwrap_or_default();
    let w = concern.get("w").ok().flatten().and_then(|w| w.as_i32());
    let is_weak = w == Some(1);
    let is_unjournaled = matches!(concern.get_bool("j"), Ok(false));
    let subject = "mongodb write concern";
    let remedy = "leave w and journal out of MONGODB_URI: majority is the default";
    if let (Some(w), Some(members)) = (w.and_then(|w| usize::try_from(w).ok()), hello.and_then(data_members))
        && w > members
    {
        let cause = format!("w={w}, but only {members} data-bearing members: no write is ever finished");
        return Finding::fail(subject, cause, remedy);
    }
    if is_weak {
        return Finding::warn(subject, "w=1: an election can undo a finished write", remedy);
    }
    if is_unjournaled {
        return Finding::warn(subject, "journal=false: a power failure can undo a finished write", remedy);
    }
    let concern = Document::try_from(concern).unwrap_or_default();
    Finding::ok(subject, concern.to_string())
}

/// Checks for options of MONGODB_URI that have no effect.
fn check_options(uri: &Secret) -> Option<Finding> {
    let ignored = ignored_options(uri);
    let remedy = "remove them; docs/operations.md has the values that apply instead";
    let cause = || format!("options without effect: {}", ignored.join(", "));
    (!ignored.is_empty()).then(|| Finding::warn("mongodb uri", cause(), remedy))
}

/// Checks for the well-known password.
fn check_password(uri: &Secret) -> Option<Finding> {
    let parsed = ConnectionString::parse(usable_uri(uri).expose()).ok()?;
    let known = parsed.credential?.password? == DEFAULT_PASSWORD;
    let remedy = "change it with db.changeUserPassword, and in .env (MONGO_INITDB_ROOT_PASSWORD applies only to a \
                  new volume)";
    known.then(|| {
        Finding::warn("mongodb password", "is the default of docker-compose.yml, which is public", remedy)
    })
}

/// With EXPECTED_SOURCE=`*`, a collection belongs to another application if none of this many
/// documents has an `event_id`.
const SAMPLE_DOCUMENTS: i32 = 1000;

/// The collections that the consumer writes to; with `*`, all existing collections except views.
pub async fn collections(mongo: &Mongo, expected: &ExpectedSources) -> Result<Vec<Source>, BoxError> {
    listed(mongo, expected).await.map_err(|error| mongo.command_error(&error))
}

async fn listed(mongo: &Mongo, expected: &ExpectedSources) -> Result<Vec<Source>, CommandError> {
    if let Some(sources) = expected.listed() {
        let keys = UpsertKeys::default();
        let collections = sources.iter().map(|source| expected.store_of(source, &keys).collection);
        return Ok(collections.filter_map(|name| Source::new(name).ok()).collect());
    }
    let names = mongo.database.list_collection_names().filter(doc! { "type": "collection" });
    let mut names = mongo.reply(names).await?;
    if let Some(configured) = expected.configured() {
        names.retain(|name| !configured.has_deletes(name));
    }
    Ok(names.into_iter().filter_map(|name| Source::new(name).ok()).collect())
}

/// Checks all collections.
async fn check_collections(config: &consumer::Config, mongo: &Mongo) -> Vec<Finding> {
    let listed = match listed(mongo, &config.expected).await {
        Ok(listed) => listed,
        Err(CommandError { cause, .. }) => {
            let cause = format!("the collections of {} cannot be listed: {cause}", mongo.database.name());
            return vec![not_allowed(mongo, cause)];
        }
    };
    let any = config.expected.listed().is_none();
    let (mut allowed, mut findings) = (Vec::new(), Vec::new());
    for collection in listed {
        if any && !is_ours(mongo, &collection).await {
            continue;
        }
        match check_rights(mongo, collection.as_str()).await {
            Ok(()) => allowed.push(collection),
            Err(finding) => findings.push(finding),
        }
    }
    if allowed.is_empty()
        && findings.is_empty()
        && let Ok(first) = Source::new("adsbdb")
    {
        // No collection exists yet: the rights on any name are the same.
        return vec![
            check_rights(mongo, first.as_str())
                .await
                .map_or_else(|finding| finding, |()| granted(mongo, &[first])),
        ];
    }
    if !allowed.is_empty() {
        findings.push(granted(mongo, &allowed));
    }
    for collection in allowed {
        let indexes = indexes_finding(config, collection.clone()).await;
        if indexes.level != Level::Ok {
            findings.extend(index_right(mongo, collection.as_str()).await);
        }
        findings.push(indexes);
    }
    findings
}

/// Checks the collections that remember deletes, and the right to delete documents.
async fn check_deletes(config: &consumer::Config, mongo: &Mongo) -> Vec<Finding> {
    let Some(configured) = config.expected.configured() else { return Vec::new() };
    let stores = configured.stored().filter_map(|source| configured.store(source.as_str()));
    let mut findings = Vec::new();
    for store in stores.filter(|store| store.tombstones.is_some()) {
        let deletes = deletes_collection(&store.collection);
        let missing = match check_rights(mongo, &deletes).await {
            Ok(()) => remove_right(mongo, &store.collection).await,
            Err(finding) => Some(finding),
        };
        findings.push(missing.unwrap_or_else(|| {
            let database = mongo.database.name();
            let collection = &store.collection;
            let rights =
                format!("find, update and insert on {database}.{deletes}, remove on {database}.{collection}");
            Finding::ok(RIGHTS, rights)
        }));
        findings.extend(check_expiry(mongo, &deletes).await);
    }
    findings
}

/// The failure if the user may not delete documents of `collection`. No document is deleted, because
/// the filter matches none. Some servers return an error if the collection does not exist.
async fn remove_right(mongo: &Mongo, collection: &str) -> Option<Finding> {
    let no_document = doc! { "q": { "_id": ObjectId::new() }, "limit": 1 };
    let error = match run(mongo, doc! { "delete": collection, "deletes": [no_document] }).await {
        Ok(reply) => write_error(&reply)?,
        Err(error) if error.is_access_denied() => error,
        Err(_) => return None,
    };
    Some(missing_right(mongo, collection, "remove", &error))
}

/// The findings if the deletes in this collection do not expire. A collection that does not exist
/// has no finding: the consumer creates it with the index.
async fn check_expiry(mongo: &Mongo, deletes: &str) -> Vec<Finding> {
    if is_missing(mongo, deletes).await {
        return Vec::new();
    }
    let subject = format!("collection {}.{deletes}", mongo.database.name());
    let indexes = match run(mongo, doc! { "listIndexes": deletes }).await {
        Ok(reply) => reply,
        Err(error) if error.is_access_denied() => {
            return vec![missing_right(mongo, deletes, "listIndexes", &error)];
        }
        Err(error) => {
            let cause = format!("its indexes cannot be read: {}", error.cause);
            return vec![Finding::fail(subject, cause, "see the findings above")];
        }
    };
    let indexes = indexes.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    let expires =
        |index: &bson::Bson| index.as_document().is_some_and(|it| it.contains_key("expireAfterSeconds"));
    if indexes.is_ok_and(|indexes| indexes.iter().any(expires)) {
        return vec![Finding::ok(subject, "deletes expire")];
    }
    let remedy = "the consumer creates the index when it starts; otherwise its log has the cause";
    let warning = Finding::warn(subject, "index expires_at_1 is missing: deletes do not expire", remedy);
    std::iter::once(warning).chain(index_right(mongo, deletes).await).collect()
}

/// Whether the consumer can have written the collection: its documents have an `event_id`. If the
/// collection cannot be read, [`check_rights`] reports it.
async fn is_ours(mongo: &Mongo, collection: &Source) -> bool {
    let sample = doc! {
        "find": collection.as_str(),
        "projection": { "_id": 0, "event_id": 1 },
        "limit": SAMPLE_DOCUMENTS,
        "batchSize": SAMPLE_DOCUMENTS,
        "singleBatch": true,
        "readConcern": majority(),
    };
    let Ok(reply) = run(mongo, sample).await else { return true };
    let documents = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    let has_id = |document: &bson::Bson| document.as_document().is_some_and(|it| it.contains_key("event_id"));
    documents.map_or(true, |documents| documents.is_empty() || documents.iter().any(has_id))
}

/// Checks the indexes of one collection, and for duplicates if the unique index is missing.
async fn indexes_finding(config: &consumer::Config, collection: Source) -> Finding {
    let subject = format!("collection {}.{collection}", config.store.database);
    let configured =
        config.expected.configured().and_then(|sources| sources.store_of_collection(collection.as_str()));
    let keys = configured.map_or_else(|| config.store.upsert_keys.clone(), |store| store.keys.clone());
    let check = async {
        let config = dedupe::Config {
            uri: config.store.uri.clone(),
            database: config.store.database.clone(),
            collection,
            upsert_keys: keys.clone(),
        };
        let collection = KeyedCollection::new(config).await?;
        if let Some(store) = configured
            && let Some(finding) = check_configured(&subject, store, &collection).await?
        {
            return Ok(finding);
        }
        check_indexes(&subject, &keys, &collection).await
    };
    check.await.unwrap_or_else(|error: BoxError| {
        Finding::fail(&subject, format!("its indexes cannot be read: {error}"), "see the findings above")
    })
}

/// The name of a unique index that is hidden from queries.
fn hidden_unique_index(indexes: &[Document]) -> Option<&str> {
    let is = |index: &Document, option: &str| index.get_bool(option).unwrap_or(false);
    let found = indexes.iter().find(|index| is(index, "unique") && is(index, "hidden"))?;
    Some(found.get_str("name").unwrap_or_default())
}

/// The finding about an index that is being built, or hidden.
fn building_or_hidden(
    subject: &str,
    keys: &UpsertKeys,
    collection: &KeyedCollection,
    indexes: &Indexes,
) -> Option<Finding> {
    const WAIT: &str = "wait; if the build fails, the consumer's log has the cause";
    if let Some(name) = indexes.building(keys) {
        let cause = format!("its unique index {name} is being built, so nothing is written yet");
        return Some(Finding::warn(subject, cause, WAIT));
    }
    let missing = match index_state(keys, &indexes.ready) {
        IndexState::Complete => Vec::new(),
        IndexState::MissingLookups(names) => names,
        _ => return None,
    };
    if let Some(index) = hidden_unique_index(&indexes.ready) {
        let (database, name) = collection.names();
        let cause = format!("unique index {index} is hidden: it rejects duplicates, but no query uses it");
        let remedy = format!("db.getSiblingDB({database:?}).getCollection({name:?}).unhideIndex({index:?})");
        return Some(Finding::warn(subject, cause, remedy));
    }
    let is_building = !missing.is_empty() && missing.iter().all(|name| indexes.is_building(name));
    let cause = format!("lookup indexes are being built: {}", missing.join(", "));
    is_building.then(|| Finding::warn(subject, cause, WAIT))
}

/// The finding about a collection that the sources file describes otherwise than it is.
async fn check_configured(
    subject: &str,
    store: &SourceStore,
    collection: &KeyedCollection,
) -> Result<Option<Finding>, BoxError> {
    let Some(indexes) = tokio::time::timeout(REPLY_TIMEOUT, collection.indexes()).await?? else {
        return Ok(None);
    };
    if let Some((index, fields)) = written_under_other_keys(store, &indexes.ready) {
        let (database, name) = collection.names();
        let written = fields.join(", ");
        let cause = format!(
            "was written under the keys {written}, and the sources file says {}, so nothing is written",
            store.keys
        );
        let remedy = format!(
            "set keys: [{written}] or another collection in the sources file; or \
             db.getSiblingDB({database:?}).getCollection({name:?}).dropIndex({index:?})"
        );
        return Ok(Some(Finding::fail(subject, cause, remedy)));
    }
    let mut missing = missing_extra_indexes(store, &indexes.ready);
    missing.retain(|name| !indexes.is_building(name));
    let cause = format!("indexes of the sources file are missing: {}", missing.join(", "));
    let remedy = "the consumer creates them when it starts; otherwise its log has the cause";
    Ok((!missing.is_empty()).then(|| Finding::warn(subject, cause, remedy)))
}

async fn check_indexes(
    subject: &str,
    keys: &UpsertKeys,
    collection: &KeyedCollection,
) -> Result<Finding, BoxError> {
    let Some(indexes) = tokio::time::timeout(REPLY_TIMEOUT, collection.indexes()).await?? else {
        return Ok(Finding::ok(subject, "does not exist yet: the consumer creates it with the first event"));
    };
    let (database, name) = collection.names();
    let dedupe = format!("slipstream dedupe --collection {name}");
    if let Some(finding) = building_or_hidden(subject, keys, collection, &indexes) {
        return Ok(finding);
    }
    Ok(match index_state(keys, &indexes.ready) {
        IndexState::Complete => {
            Finding::ok(subject, format!("unique index on {keys}, and the lookup indexes"))
        }
        IndexState::MissingLookups(names) => {
            let cause = format!("lookup indexes are missing: {}", names.join(", "));
            Finding::warn(
                subject,
                cause,
                "the consumer creates them with the next event; otherwise its log has the cause",
            )
        }
        IndexState::Conflicting(index) => {
            let cause = format!("index {index} prevents the unique index on {keys}, so nothing is written");
            let remedy = format!(
                "{dedupe} --apply --out FILE, or \
                 db.getSiblingDB({database:?}).getCollection({name:?}).dropIndex({index:?})"
            );
            Finding::fail(subject, cause, remedy)
        }
        IndexState::MissingUnique => match dedupe::count_duplicates(collection, REPLY_TIMEOUT).await {
            Ok(0) => Finding::warn(
                subject,
                format!("no unique index on {keys} yet"),
                "the consumer creates it with the next event",
            ),
            Ok(documents) => Finding::fail(
                subject,
                format!(
                    "{} the unique index on {keys}, so nothing is written",
                    counted_with(documents, "duplicate document", ["prevents", "prevent"])
                ),
                dedupe,
            ),
            // The server may be unresponsive, or the sort takes longer.
            Err(error) if error.is::<Elapsed>() => Finding::fail(
                subject,
                format!(
                    "no unique index on {keys} yet, and no reply within {} s to the search for duplicates",
                    REPLY_TIMEOUT.as_secs()
                ),
                dedupe,
            ),
            Err(error) => return Err(error),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::Level;

    #[test]
    fn a_w_above_the_number_of_members_fails() {
        let three = doc! { "hosts": ["a:1", "b:1"], "passives": ["c:1"], "arbiters": ["d:1"] };
        let (router, standalone) = (doc! { "msg": "isdbgrid" }, doc! {});
        let level =
            |w: &str, hello| check_write_concern(&Secret::new(format!("mongodb://h/?w={w}")), hello).level;
        assert_eq!(level("3", Some(&three)), Level::Ok);
        assert_eq!(level("4", Some(&three)), Level::Fail);
        assert_eq!(level("2", Some(&standalone)), Level::Fail);
        assert_eq!(level("majority", Some(&standalone)), Level::Ok);
        assert_eq!(level("4", Some(&router)), Level::Ok);
        assert_eq!(level("4", None), Level::Ok);
    }

    #[test]
    fn options_without_effect_are_a_warning_with_their_names() {
        let found =
            check_options(&Secret::new("mongodb://h/?foo=bar&w=1&compressors=snappy")).expect("a finding");
        assert_eq!(
            (found.level, found.cause.as_str()),
            (Level::Warn, "options without effect: foo, compressors=snappy")
        );
        assert_eq!(check_options(&Secret::new("mongodb://h/?w=1")), None);
        let password = check_password(&Secret::new("mongodb://u:mongopass@h/?foo=bar"));
        assert_eq!(password.map(|found| found.level), Some(Level::Warn));
    }

    // The real servers of the tests are new enough, and each is a primary.
    #[test]
    fn a_server_that_is_too_old_or_no_primary_fails() {
        let old = check_hello(&doc! { "maxWireVersion": 9, "isWritablePrimary": true });
        assert!(old.level == Level::Fail && old.cause.contains("5.0"), "{old:?}");
        let secondary = check_hello(&doc! { "maxWireVersion": 21, "isWritablePrimary": false });
        assert!(secondary.level == Level::Fail && secondary.cause.contains("primary"), "{secondary:?}");
    }
}
