//! Probes the collections that the consumer writes to: the rights on each, its indexes, and what is in their way.

use bson::{Document, doc};
use consumer::ExpectedSources;
use consumer::mongo::{IndexState, UpsertKeys, index_state};
use events::Source;
use mongodb::Database;
use tokio::time::error::Elapsed;

use super::finding::{Finding, Level};
use super::store::{granted, index_right, not_allowed, rights, run, within};
use crate::dedupe::{self, Indexes, Target};
use kafka::BoxError;
use loadtest::mongo::{CommandError, Mongo, REPLY_TIMEOUT, majority};
use service::plural::counted_with;

/// Where every source is ours, a collection counts as another's if so many of its documents have no `event_id`.
const SAMPLE: i32 = 1000;

/// The collections that the consumer writes to; with `*`, those that are there. Views and the like are none.
///
/// # Errors
/// They cannot be listed.
pub async fn collections(mongo: &Mongo, expected: &ExpectedSources) -> Result<Vec<Source>, BoxError> {
    listed(&mongo.database, expected).await.map_err(|fault| mongo.command_error(&fault))
}

async fn listed(database: &Database, expected: &ExpectedSources) -> Result<Vec<Source>, CommandError> {
    if let ExpectedSources::Listed(sources) = expected {
        return Ok(sources.iter().cloned().collect());
    }
    let names = database.list_collection_names().filter(doc! { "type": "collection" });
    let names = within(async { names.await.map_err(|error| CommandError::of(&error)) }).await?;
    Ok(names.into_iter().filter_map(|name| Source::new(name).ok()).collect())
}

/// Everything that there is to say of them.
pub async fn judge(config: &consumer::Config, database: &Database) -> Vec<Finding> {
    let listed = match listed(database, &config.expected).await {
        Ok(listed) => listed,
        Err(CommandError { cause: why, .. }) => {
            let cause = format!("the collections of {} cannot be listed: {why}", database.name());
            return vec![not_allowed(database, cause)];
        }
    };
    let any = matches!(config.expected, ExpectedSources::All);
    let (mut allowed, mut findings) = (Vec::new(), Vec::new());
    for collection in listed {
        if any && !is_ours(database, &collection).await {
            continue;
        }
        match rights(database, &collection).await {
            Ok(()) => allowed.push(collection),
            Err(lacking) => findings.push(lacking),
        }
    }
    if allowed.is_empty()
        && findings.is_empty()
        && let Ok(first) = Source::new("adsbdb")
    {
        // None is there yet: what we may do there shows on any.
        return vec![
            rights(database, &first).await.map_or_else(|lacking| lacking, |()| granted(database, &[first])),
        ];
    }
    if !allowed.is_empty() {
        findings.push(granted(database, &allowed));
    }
    for collection in allowed {
        let indexes = indexes(config, collection.clone()).await;
        if indexes.level != Level::Ok {
            findings.extend(index_right(database, &collection).await);
        }
        findings.push(indexes);
    }
    findings
}

/// Whether the consumer can have written it: whatever it writes has an `event_id`. What cannot be read is told by
/// [`rights`].
async fn is_ours(database: &Database, collection: &Source) -> bool {
    let sample = doc! {
        "find": collection.as_str(),
        "projection": { "_id": 0, "event_id": 1 },
        "limit": SAMPLE,
        "batchSize": SAMPLE,
        "singleBatch": true,
        "readConcern": majority(),
    };
    let Ok(reply) = run(database, sample).await else { return true };
    let documents = reply.get_document("cursor").and_then(|cursor| cursor.get_array("firstBatch"));
    let has_id = |document: &bson::Bson| document.as_document().is_some_and(|it| it.contains_key("event_id"));
    documents.map_or(true, |documents| documents.is_empty() || documents.iter().any(has_id))
}

/// The indexes of one collection, and what is in the way of the unique one.
async fn indexes(config: &consumer::Config, collection: Source) -> Finding {
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
    looked.await.unwrap_or_else(|error: BoxError| {
        Finding::fail(&subject, format!("its indexes cannot be read: {error}"), "see the findings above")
    })
}

/// The name of a unique index that the server hides from queries.
fn hidden(indexes: &[Document]) -> Option<&str> {
    let is = |index: &Document, option: &str| index.get_bool(option).unwrap_or(false);
    let found = indexes.iter().find(|index| is(index, "unique") && is(index, "hidden"))?;
    Some(found.get_str("name").unwrap_or_default())
}

/// The finding about an index that is there in part only: it is being built, or hidden.
fn built_or_hidden(subject: &str, keys: &UpsertKeys, target: &Target, indexes: &Indexes) -> Option<Finding> {
    const WAIT: &str = "wait; if the build fails, the consumer's log says why";
    if let Some(name) = indexes.building(keys) {
        let cause = format!("its unique index {name} is being built, so nothing is written yet");
        return Some(Finding::warn(subject, cause, WAIT));
    }
    let missing = match index_state(keys, &indexes.ready) {
        IndexState::Complete => Vec::new(),
        IndexState::MissingLookups(names) => names,
        _ => return None,
    };
    if let Some(name) = hidden(&indexes.ready) {
        let (database, collection) = target.names();
        let cause = format!("unique index {name} is hidden: it refuses documents, but no query uses it");
        let remedy =
            format!("db.getSiblingDB({database:?}).getCollection({collection:?}).unhideIndex({name:?})");
        return Some(Finding::warn(subject, cause, remedy));
    }
    let are_built = !missing.is_empty() && missing.iter().all(|name| indexes.builds(name));
    let cause = format!("look-up indexes are being built: {}", missing.join(", "));
    are_built.then(|| Finding::warn(subject, cause, WAIT))
}

async fn judge_indexes(subject: &str, keys: &UpsertKeys, target: &Target) -> Result<Finding, BoxError> {
    let Some(indexes) = tokio::time::timeout(REPLY_TIMEOUT, target.indexes()).await?? else {
        return Ok(Finding::ok(subject, "is not there yet: it is made with the first event"));
    };
    let (database, collection) = target.names();
    let dedupe = format!("slipstream dedupe --collection {collection}");
    if let Some(finding) = built_or_hidden(subject, keys, target, &indexes) {
        return Ok(finding);
    }
    Ok(match index_state(keys, &indexes.ready) {
        IndexState::Complete => {
            Finding::ok(subject, format!("unique index on {keys}, and the look-up indexes"))
        }
        IndexState::MissingLookups(names) => {
            let cause = format!("look-up indexes are missing: {}", names.join(", "));
            Finding::warn(
                subject,
                cause,
                "the consumer makes them with the next event; see its log if it does not",
            )
        }
        IndexState::Conflicting(name) => {
            let cause = format!("index {name} is not the unique one on {keys}, so nothing is written");
            let remedy = format!(
                "{dedupe} --apply --out FILE, or \
                 db.getSiblingDB({database:?}).getCollection({collection:?}).dropIndex({name:?})"
            );
            Finding::fail(subject, cause, remedy)
        }
        IndexState::MissingUnique => match dedupe::in_the_way(target, REPLY_TIMEOUT).await {
            Ok(0) => Finding::warn(
                subject,
                format!("no unique index on {keys} yet"),
                "the consumer makes it with the next event",
            ),
            Ok(documents) => Finding::fail(
                subject,
                format!(
                    "{} in the way of the unique index on {keys}, so nothing is written",
                    counted_with(documents, "document", ["is", "are"])
                ),
                dedupe,
            ),
            // The server may be silent, or have more to sort than it can in that time.
            Err(error) if error.is::<Elapsed>() => Finding::fail(
                subject,
                format!(
                    "no unique index on {keys} yet, and no answer within {} s on what is in its way",
                    REPLY_TIMEOUT.as_secs()
                ),
                dedupe,
            ),
            Err(error) => return Err(error),
        },
    })
}
