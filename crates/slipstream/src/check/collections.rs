//! Probes the collections that the consumer writes to: the rights on each, its indexes, and what is in their way.

use bson::doc;
use consumer::Expected;
use consumer::store::{IndexState, UpsertKeys, index_state};
use events::Source;
use mongodb::Database;
use tokio::time::error::Elapsed;

use super::finding::{Finding, Level};
use super::store::{Fault, LIMIT, fault, index_right, not_allowed, rights, run, within};
use crate::Failure;
use crate::dedupe::{self, Target};

/// Where every source is ours, a collection counts as another's if so many of its documents have no `event_id`.
const SAMPLE: i32 = 1000;

/// The collections that the consumer writes to; with `*`, those that are there. Views and the like are none.
///
/// # Errors
/// They cannot be listed.
pub async fn collections(database: &Database, expected: &Expected) -> Result<Vec<Source>, Finding> {
    if let Expected::Of(sources) = expected {
        return Ok(sources.iter().cloned().collect());
    }
    let names = database.list_collection_names().filter(doc! { "type": "collection" });
    match within(async { names.await.map_err(|error| fault(&error)) }).await {
        Ok(names) => Ok(names.into_iter().filter_map(|name| Source::new(name).ok()).collect()),
        Err(Fault { why, .. }) => {
            let cause = format!("the collections of {} cannot be listed: {why}", database.name());
            Err(not_allowed(database, cause))
        }
    }
}

/// Everything that there is to say of them.
pub async fn judge(config: &consumer::Config, database: &Database) -> Vec<Finding> {
    let listed = match collections(database, &config.expected).await {
        Ok(listed) => listed,
        Err(finding) => return vec![finding],
    };
    let any = matches!(config.expected, Expected::Any);
    let mut findings = Vec::new();
    for collection in listed {
        if any && !is_ours(database, &collection).await {
            continue;
        }
        let rights = rights(database, &collection).await;
        let allowed = rights.level == Level::Ok;
        findings.push(rights);
        if allowed {
            let indexes = indexes(config, collection.clone()).await;
            if indexes.level != Level::Ok {
                findings.extend(index_right(database, &collection).await);
            }
            findings.push(indexes);
        }
    }
    if findings.is_empty()
        && let Ok(first) = Source::new("adsbdb")
    {
        // None is there yet: what we may do there shows on any.
        findings.push(rights(database, &first).await);
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
    looked.await.unwrap_or_else(|error: Failure| {
        Finding::fail(&subject, format!("its indexes cannot be read: {error}"), "see the findings above")
    })
}

async fn judge_indexes(subject: &str, keys: &UpsertKeys, target: &Target) -> Result<Finding, Failure> {
    let Some(existing) = tokio::time::timeout(LIMIT, target.indexes()).await?? else {
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
        IndexState::NotUnique => match dedupe::in_the_way(target, LIMIT).await {
            Ok(0) => Finding::warn(
                subject,
                format!("no unique index on {keys} yet"),
                "the consumer makes it with the next event",
            ),
            Ok(documents) => Finding::fail(
                subject,
                format!(
                    "{documents} documents are in the way of the unique index on {keys}, so nothing is written"
                ),
                dedupe,
            ),
            // The server may be silent, or have more to sort than it can in that time.
            Err(error) if error.is::<Elapsed>() => Finding::fail(
                subject,
                format!(
                    "no unique index on {keys} yet, and no answer within {} s on what is in its way",
                    LIMIT.as_secs()
                ),
                dedupe,
            ),
            Err(error) => return Err(error),
        },
    })
}
