//! Checks the collections that the consumer writes to: rights, indexes, and duplicate documents.

use bson::{Document, doc};
use consumer::ExpectedSources;
use consumer::mongo::{IndexState, UpsertKeys, index_state};
use events::Source;
use mongodb::Database;
use tokio::time::error::Elapsed;

use super::finding::{Finding, Level};
use super::mongodb::{check_rights, granted, index_right, not_allowed, run, with_timeout};
use crate::dedupe::{self, Indexes, KeyedCollection};
use kafka::BoxError;
use loadtest::mongo::{CommandError, Mongo, REPLY_TIMEOUT, majority};
use service::plural::counted_with;

/// With EXPECTED_SOURCE=`*`, a collection belongs to another application if none of this many
/// documents has an `event_id`.
const SAMPLE_DOCUMENTS: i32 = 1000;

/// The collections that the consumer writes to; with `*`, all existing collections except views.
///
/// # Errors
/// The collections cannot be listed.
pub async fn collections(mongo: &Mongo, expected: &ExpectedSources) -> Result<Vec<Source>, BoxError> {
    listed(&mongo.database, expected).await.map_err(|error| mongo.command_error(&error))
}

async fn listed(database: &Database, expected: &ExpectedSources) -> Result<Vec<Source>, CommandError> {
    if let ExpectedSources::Listed(sources) = expected {
        return Ok(sources.iter().cloned().collect());
    }
    let names = database.list_collection_names().filter(doc! { "type": "collection" });
    let names = with_timeout(async { names.await.map_err(|error| CommandError::of(&error)) }).await?;
    Ok(names.into_iter().filter_map(|name| Source::new(name).ok()).collect())
}

/// Checks all collections.
pub async fn check(config: &consumer::Config, database: &Database) -> Vec<Finding> {
    let listed = match listed(database, &config.expected).await {
        Ok(listed) => listed,
        Err(CommandError { cause, .. }) => {
            let cause = format!("the collections of {} cannot be listed: {cause}", database.name());
            return vec![not_allowed(database, cause)];
        }
    };
    let any = matches!(config.expected, ExpectedSources::All);
    let (mut allowed, mut findings) = (Vec::new(), Vec::new());
    for collection in listed {
        if any && !is_ours(database, &collection).await {
            continue;
        }
        match check_rights(database, &collection).await {
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
            check_rights(database, &first)
                .await
                .map_or_else(|finding| finding, |()| granted(database, &[first])),
        ];
    }
    if !allowed.is_empty() {
        findings.push(granted(database, &allowed));
    }
    for collection in allowed {
        let indexes = indexes_finding(config, collection.clone()).await;
        if indexes.level != Level::Ok {
            findings.extend(index_right(database, &collection).await);
        }
        findings.push(indexes);
    }
    findings
}

/// Whether the consumer can have written the collection: its documents have an `event_id`. If the
/// collection cannot be read, [`check_rights`] reports it.
async fn is_ours(database: &Database, collection: &Source) -> bool {
    let sample = doc! {
        "find": collection.as_str(),
        "projection": { "_id": 0, "event_id": 1 },
        "limit": SAMPLE_DOCUMENTS,
        "batchSize": SAMPLE_DOCUMENTS,
        "singleBatch": true,
        "readConcern": majority(),
    };
    let Ok(reply) = run(database, sample).await else { return true };
    let documents = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    let has_id = |document: &bson::Bson| document.as_document().is_some_and(|it| it.contains_key("event_id"));
    documents.map_or(true, |documents| documents.is_empty() || documents.iter().any(has_id))
}

/// Checks the indexes of one collection, and for duplicates if the unique index is missing.
async fn indexes_finding(config: &consumer::Config, collection: Source) -> Finding {
    let subject = format!("collection {}.{collection}", config.store.database);
    let keys = config.store.upsert_keys.clone();
    let check = async {
        let config = dedupe::Config {
            uri: config.store.uri.clone(),
            database: config.store.database.clone(),
            collection,
            upsert_keys: keys.clone(),
        };
        let collection = KeyedCollection::new(config).await?;
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
