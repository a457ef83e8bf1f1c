//! A workaround for SecantusDB, the database of `slipstream up`. It reads the body of a command as
//! extended JSON: the value `{"$numberLong": "5"}` becomes a number. It does not change documents
//! in a document sequence outside the body. The driver's own insert sends such a sequence, but
//! without `maxTimeMS` and without the whole reply. It is therefore used only for SecantusDB and
//! for documents with such values.

use bson::{Document, RawBsonRef, RawDocument, RawDocumentBuf, doc};
use mongodb::Database;
use mongodb::error::ErrorKind;
use mongodb::options::WriteConcern;

use super::error::CallError;

/// The first field of each form of extended JSON.
const FORMS: [&str; 20] = [
    "$binary",
    "$code",
    "$date",
    "$dbPointer",
    "$maxKey",
    "$minKey",
    "$numberDecimal",
    "$numberDouble",
    "$numberInt",
    "$numberLong",
    "$oid",
    "$options",
    "$regex",
    "$regularExpression",
    "$scope",
    "$symbol",
    "$timestamp",
    "$type",
    "$undefined",
    "$uuid",
];

/// Whether a reply to `buildInfo` comes from SecantusDB.
pub(super) fn is_secantus(build_info: &Document) -> bool {
    build_info.contains_key("secantusVersion")
}

/// Whether a value in `document` looks like extended JSON.
pub(super) fn is_in(document: &RawDocument) -> bool {
    document
        .iter()
        .filter_map(Result::ok)
        .any(|(name, value)| FORMS.contains(&name.as_str()) || is_value(value))
}

fn is_value(value: RawBsonRef<'_>) -> bool {
    match value {
        RawBsonRef::Document(document) => is_in(document),
        RawBsonRef::Array(array) => array.into_iter().filter_map(Result::ok).any(is_value),
        _ => false,
    }
}

/// Inserts `documents` unordered. The result has the fields of a reply to the `insert` command.
pub(super) async fn insert(
    database: &Database,
    collection: &str,
    documents: Vec<RawDocumentBuf>,
    write_concern: &RawDocument,
) -> Result<Document, CallError> {
    let sent = documents.len();
    let write_concern: WriteConcern = bson::deserialize_from_slice(write_concern.as_bytes())?;
    let collection = database.collection::<RawDocumentBuf>(collection);
    let inserted = collection.insert_many(documents).ordered(false).write_concern(write_concern).await;
    let error = match inserted {
        Ok(_) => return Ok(doc! { "n": sent as i64 }),
        Err(error) => error,
    };
    let ErrorKind::InsertMany(failed) = &*error.kind else { return Err(error.into()) };
    let errors = failed.write_errors.iter().flatten();
    let errors = errors.map(|e| doc! { "index": e.index as i64, "code": e.code, "errmsg": &e.message });
    let errors: Vec<Document> = errors.collect();
    let mut reply = doc! { "n": sent.saturating_sub(errors.len()) as i64, "writeErrors": errors };
    if let Some(unmet) = &failed.write_concern_error {
        reply.insert("writeConcernError", doc! { "code": unmet.code, "errmsg": &unmet.message });
    }
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn a_form_of_extended_json_is_found_at_any_depth() {
        for form in FORMS {
            let mut value = RawDocumentBuf::new();
            value.append(<&bson::raw::CStr>::try_from(form).expect("no NUL"), "x");
            assert!(is_in(&rawdoc! { "a": 1, "b": [1, { "c": [[value]] }] }), "{form}");
        }
        for plain in [rawdoc! {}, rawdoc! { "$x": { "date": "$date" }, "price$": ["$oid", { "$y": 1 }] }] {
            assert!(!is_in(&plain), "{plain:?}");
        }
    }
}
