//! The expected document of an event, made with code that is independent of the pipeline's, and its
//! differences from the stored document.
//!
//! The versions of one id that were sent determine the version that its document may hold. An
//! accepted event must be stored unless a newer one is. An event with an unknown outcome, or a
//! dead-lettered one, may or may not be stored.

use std::collections::BTreeSet;

use bson::{Bson, Document};

/// Reserved names at the top level of a document.
const RESERVED: [&str; 9] = [
    "_id",
    "event_id",
    "event_timestamp",
    "ingested_at",
    "api_version",
    "event_timestamp_iso",
    "ingested_at_iso",
    "payload_conflicts",
    "envelope_extra",
];

/// The fields of a document besides the payload.
#[derive(Debug, Clone, Copy)]
pub struct Metadata<'a> {
    /// Event id.
    pub id: &'a str,
    /// Event timestamp.
    pub timestamp: i64,
    /// Time at which the producer received the event.
    pub ingested_at: i64,
    /// API_VERSION of the producer.
    pub api_version: &'a str,
}

/// The expected document of an event, without `_id`. `source_field` is the field that has the
/// source's name, and this name.
pub fn expected_document(
    payload: Document,
    metadata: Metadata<'_>,
    source_field: Option<(&str, &str)>,
) -> Document {
    let is_reserved =
        |name: &str| RESERVED.contains(&name) || source_field.is_some_and(|(field, _)| field == name);
    let (conflicts, mut document): (Document, Document) =
        payload.into_iter().partition(|(name, _)| is_reserved(name));
    if !conflicts.is_empty() {
        document.insert("payload_conflicts", conflicts);
    }
    document.insert("event_id", metadata.id);
    document.insert("event_timestamp", metadata.timestamp);
    document.insert("ingested_at", metadata.ingested_at);
    document.insert("api_version", metadata.api_version);
    document.insert("event_timestamp_iso", iso(metadata.timestamp));
    document.insert("ingested_at_iso", iso(metadata.ingested_at));
    if let Some((field, source)) = source_field {
        document.insert(field, source);
    }
    document
}

/// The names of the fields that differ in the stored document.
pub fn differences(expected: &Document, stored: &Document) -> Vec<String> {
    let names: BTreeSet<&String> = expected.keys().chain(stored.keys()).collect();
    let differs = |name: &&String| match (expected.get(name.as_str()), stored.get(name.as_str())) {
        (Some(expected), Some(stored)) => !is_equal(expected, stored),
        (None, Some(Bson::ObjectId(_))) => name.as_str() != "_id",
        _ => true,
    };
    names.into_iter().filter(differs).cloned().collect()
}

/// Whether two values are equal in type, value, order of fields and sign of zeros.
fn is_equal(one: &Bson, other: &Bson) -> bool {
    match (one, other) {
        (Bson::Double(one), Bson::Double(other)) => one.to_bits() == other.to_bits(),
        (Bson::Array(one), Bson::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_equal(one, other))
        }
        (Bson::Document(one), Bson::Document(other)) => {
            let fields = one.iter().zip(other);
            one.len() == other.len() && { fields }
                .all(|((a, one), (b, other))| a == b && is_equal(one, other))
        }
        (one, other) => one == other,
    }
}

fn iso(epoch_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(epoch_ms)
        .map_or_else(|_| "out of range".to_owned(), |time| format!("{time:.3}"))
}

/// An event that a document may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// Number of the event in the run.
    pub n: u64,
    /// Event timestamp; no other event of the id has the same.
    pub timestamp: i64,
    /// The `ingested_at` of the 202, if the response had it.
    pub ingested_at: Option<i64>,
    /// Whether the topic may have several records of the event, each with its own `ingested_at`,
    /// because an attempt has an unknown outcome.
    pub may_be_repeated: bool,
    /// Whether it deletes the document.
    pub deletes: bool,
}

/// The pair by which the consumer's guard orders the events of one id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct VersionTimes {
    /// Event timestamp.
    pub timestamp: i64,
    /// Time at which the producer received the event.
    pub ingested_at: i64,
}

impl VersionTimes {
    /// The pair of an id without a document: any event is newer.
    pub const NONE: Self = Self { timestamp: i64::MIN, ingested_at: i64::MIN };
}

/// The versions of one id that can still matter.
#[derive(Debug, Clone, Default)]
pub struct SentVersions {
    newest_accepted: Option<Version>,
    possible: Vec<Version>,
    /// Number of documents of the id.
    pub documents: u32,
}

/// The version that a document holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldVersion {
    /// An event that the document must or may hold; its number.
    Event(u64),
    /// An event, or a repetition of one, that a newer one should have replaced.
    Superseded,
    /// An event that a newer delete should have removed.
    Resurrected,
    /// No event that was sent.
    NotSent,
}

impl SentVersions {
    /// Adds an event with a 202.
    pub fn add_accepted(&mut self, version: Version) {
        if self.newest_accepted.is_none_or(|newest| version.timestamp > newest.timestamp) {
            self.newest_accepted = Some(version);
            self.possible.retain(|possible| possible.timestamp > version.timestamp);
        }
    }

    /// Adds an event that may or may not be stored.
    pub fn add_possible(&mut self, version: Version) {
        if self.newest_accepted.is_none_or(|newest| version.timestamp > newest.timestamp) {
            self.possible.push(version);
        }
    }

    /// Whether the id must have a document.
    pub fn requires_document(&self) -> bool {
        let may_be_deleted = self.possible.iter().any(|possible| possible.deletes);
        self.newest_accepted.is_some_and(|newest| !newest.deletes) && !may_be_deleted
    }

    /// The timestamp of the newest event that must be stored.
    pub fn newest_timestamp(&self) -> Option<i64> {
        self.newest_accepted.map(|newest| newest.timestamp)
    }

    /// The version that a document with these times holds.
    pub fn held_by(&self, timestamp: i64, ingested_at: i64) -> HeldVersion {
        // A delete leaves no document.
        let has_timestamp = |version: &&Version| version.timestamp == timestamp && !version.deletes;
        if let Some(version) = self.newest_accepted.as_ref().filter(has_timestamp) {
            return version.held_with(ingested_at);
        }
        if let Some(possible) = self.possible.iter().find(has_timestamp) {
            return HeldVersion::Event(possible.n);
        }
        match &self.newest_accepted {
            Some(newest) if timestamp < newest.timestamp && newest.deletes => HeldVersion::Resurrected,
            Some(newest) if timestamp < newest.timestamp => HeldVersion::Superseded,
            _ => HeldVersion::NotSent,
        }
    }
}

impl Version {
    /// A repetition with a later `ingested_at` replaces the accepted record; the accepted record
    /// replaces one with an earlier `ingested_at`.
    fn held_with(&self, ingested_at: i64) -> HeldVersion {
        match self.ingested_at {
            Some(accepted) if ingested_at < accepted => HeldVersion::Superseded,
            Some(accepted) if ingested_at > accepted && !self.may_be_repeated => HeldVersion::NotSent,
            _ => HeldVersion::Event(self.n),
        }
    }
}

#[cfg(test)]
mod tests {
    use bson::doc;
    use bson::oid::ObjectId;
    use events::{Decoded, RecordView, decode};
    use proptest::prelude::*;

    use super::*;

    fn document(payload: Document) -> Document {
        let metadata = Metadata {
            id: "e",
            timestamp: 1_730_000_000_000,
            ingested_at: 1_730_000_000_120,
            api_version: "1",
        };
        expected_document(payload, metadata, None)
    }

    #[test]
    fn the_expected_document_equals_that_of_the_pipeline() {
        let value = br#"{"id":"e","timestamp":1730000000000,"source":"s","payload":{"a":1,"_id":[2],"payload_conflicts":3},
            "ingested_at":1730000000120,"api_version":"1"}"#;
        let view = RecordView { key: Some(b"e"), value, timestamp: Some(0) };
        let Ok(Decoded::Event(event)) = decode(&view, |_| true) else { panic!("an event") };
        let right = Document::try_from(event.document).unwrap();
        assert_eq!(document(doc! { "a": 1, "_id": [2], "payload_conflicts": 3 }), right);
    }

    #[test]
    fn a_difference_of_any_kind_has_the_name_of_its_field() {
        let payload = doc! { "i": 1, "zero": [0.0], "d": { "a": 1, "b": 2 } };
        let stored = |change: &dyn Fn(&mut Document)| {
            let mut stored = document(payload.clone());
            stored.insert("_id", ObjectId::new());
            change(&mut stored);
            differences(&document(payload.clone()), &stored).join(" ")
        };
        assert_eq!(stored(&|_| {}), "");
        assert_eq!(stored(&|stored| drop(stored.insert("i", 1_i64))), "i");
        assert_eq!(stored(&|stored| drop(stored.insert("zero", vec![-0.0]))), "zero");
        assert_eq!(stored(&|stored| drop(stored.insert("d", doc! { "b": 2, "a": 1 }))), "d");
        assert_eq!(stored(&|stored| drop(stored.insert("d", doc! { "a": 1 }))), "d");
        assert_eq!(stored(&|stored| drop(stored.remove("d"))), "d");
        assert_eq!(stored(&|stored| drop(stored.insert("new", 1))), "new");
        assert_eq!(stored(&|stored| drop(stored.insert("_id", "e"))), "_id");
        assert_eq!(stored(&|stored| drop(stored.insert("api_version", "2"))), "api_version");
        assert_eq!(stored(&|stored| drop(stored.insert("ingested_at_iso", "now"))), "ingested_at_iso");
    }

    /// The outcome of an event of the model.
    #[derive(Debug, Clone, Copy)]
    struct ModelOutcome {
        is_accepted: bool,
        /// Whether an attempt with an unknown outcome left a record too, and the distance of its
        /// `ingested_at`.
        repetition: Option<i64>,
        has_ingested_at: bool,
    }

    fn outcomes() -> impl Strategy<Value = Vec<ModelOutcome>> {
        let outcome = (any::<bool>(), prop::option::of(-3_i64..=3), any::<bool>());
        let outcome = outcome.prop_map(|(is_accepted, repetition, has_ingested_at)| ModelOutcome {
            is_accepted,
            repetition,
            has_ingested_at,
        });
        prop::collection::vec(outcome, 0..8)
    }

    /// The versions of the events with these `timestamps`, and the newest record of the topic.
    fn run(outcomes: &[ModelOutcome], timestamps: &[i64]) -> (SentVersions, Option<(i64, i64)>) {
        let (mut sent, mut records) = (SentVersions::default(), Vec::new());
        for (n, (outcome, &timestamp)) in outcomes.iter().zip(timestamps).enumerate() {
            let ingested_at = 100 + 10 * n as i64;
            let version = Version {
                n: n as u64,
                timestamp,
                ingested_at: (outcome.is_accepted && outcome.has_ingested_at).then_some(ingested_at),
                may_be_repeated: outcome.repetition.is_some(),
                deletes: false,
            };
            if outcome.is_accepted {
                records.push((timestamp, ingested_at));
                sent.add_accepted(version);
            } else {
                sent.add_possible(version);
            }
            records.extend(outcome.repetition.map(|distance| (timestamp, ingested_at + distance)));
        }
        (sent, records.into_iter().max())
    }

    proptest! {
        #[test]
        fn the_newest_record_of_the_topic_is_a_correct_document(
            outcomes in outcomes(), order in Just((0..8_i64).collect::<Vec<_>>()).prop_shuffle()
        ) {
            let (sent, stored) = run(&outcomes, &order);
            match stored {
                Some((timestamp, ingested_at)) => {
                    let event = order.iter().position(|at| *at == timestamp).unwrap() as u64;
                    prop_assert_eq!(sent.held_by(timestamp, ingested_at), HeldVersion::Event(event));
                }
                None => prop_assert!(!sent.requires_document()),
            }
        }

        #[test]
        fn an_older_document_than_the_newest_accepted_event_is_superseded(
            outcomes in outcomes(), order in Just((0..8_i64).collect::<Vec<_>>()).prop_shuffle()
        ) {
            let (sent, _) = run(&outcomes, &order);
            let accepted = outcomes.iter().zip(&order).filter(|(outcome, _)| outcome.is_accepted).map(|(_, at)| *at);
            let newest = accepted.max();
            prop_assert_eq!(sent.requires_document(), newest.is_some());
            for &at in order.iter().filter(|at| newest.is_some_and(|newest| **at < newest)) {
                prop_assert_eq!(sent.held_by(at, 1_000), HeldVersion::Superseded);
            }
            prop_assert_eq!(sent.held_by(99, 1_000), HeldVersion::NotSent);
        }
    }

    fn version(timestamp: i64, ingested_at: Option<i64>, may_be_repeated: bool) -> Version {
        Version { n: 1, timestamp, ingested_at, may_be_repeated, deletes: false }
    }

    fn delete(timestamp: i64) -> Version {
        Version { deletes: true, ..version(timestamp, Some(10), false) }
    }

    #[test]
    fn a_document_that_a_newer_delete_should_have_removed_is_resurrected() {
        let mut sent = SentVersions::default();
        sent.add_accepted(version(5, Some(10), false));
        sent.add_accepted(delete(6));
        assert!(!sent.requires_document());
        assert_eq!(sent.held_by(5, 10), HeldVersion::Resurrected);
        assert_eq!(sent.held_by(6, 10), HeldVersion::NotSent, "a delete has no document");
        sent.add_accepted(version(4, Some(10), false));
        assert!(!sent.requires_document(), "an older event changes nothing");
        sent.add_accepted(version(7, Some(10), false));
        assert!(sent.requires_document());
        assert_eq!(sent.held_by(5, 10), HeldVersion::Superseded);
    }

    #[test]
    fn a_delete_with_an_unknown_outcome_may_have_removed_the_document() {
        let mut sent = SentVersions::default();
        sent.add_accepted(version(5, Some(10), false));
        sent.add_possible(delete(6));
        assert!(!sent.requires_document());
        assert_eq!(sent.held_by(5, 10), HeldVersion::Event(1), "it may also still be there");
        sent.add_accepted(version(7, Some(10), false));
        assert!(sent.requires_document(), "a newer event is stored whatever the delete did");
    }

    #[test]
    fn an_event_that_was_sent_once_has_one_ingested_at() {
        let mut sent = SentVersions::default();
        sent.add_accepted(version(5, Some(10), false));
        assert_eq!(sent.held_by(5, 10), HeldVersion::Event(1));
        assert_eq!(sent.held_by(5, 9), HeldVersion::Superseded);
        assert_eq!(sent.held_by(5, 11), HeldVersion::NotSent);
    }

    #[test]
    fn a_repeated_event_may_have_a_later_ingested_at_but_no_earlier_one() {
        let mut sent = SentVersions::default();
        sent.add_accepted(version(5, Some(10), true));
        assert_eq!(sent.held_by(5, 11), HeldVersion::Event(1));
        assert_eq!(sent.held_by(5, 9), HeldVersion::Superseded);
        let mut batch = SentVersions::default();
        batch.add_accepted(version(5, None, false));
        assert_eq!(batch.held_by(5, 9), HeldVersion::Event(1));
    }

    #[test]
    fn versions_that_cannot_matter_are_not_kept() {
        let mut sent = SentVersions::default();
        for timestamp in 0..100 {
            sent.add_possible(version(timestamp, None, true));
        }
        sent.add_accepted(version(98, None, false));
        assert_eq!(sent.possible.len(), 1);
        sent.add_possible(version(97, None, true));
        assert_eq!(sent.possible.len(), 1);
    }
}
