//! What the producer's answer says of each event that was sent. Pure. What the answer leaves open counts as unknown,
//! never as refused.

use serde::Deserialize;
use service::json::{Object, object};

/// What an attempt did to an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// 202.
    Accepted(Place),
    /// Sending it again does not help.
    Refused,
    /// Nothing was stored, and sending it again may help.
    Later,
    /// It may or may not be stored.
    Unknown,
}

/// Where an event is kept, as far as the answer tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Place {
    /// Its id, as a check that the answer is about it.
    id: String,
    /// When the producer took it.
    pub ingested_at: Option<i64>,
    /// Topic.
    pub topic: Option<String>,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: Option<i64>,
}

/// What became of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The status that is about it.
    pub status: u16,
    /// What that means.
    pub outcome: Outcome,
}

/// A refusal's own words.
#[derive(Debug, Default, Deserialize)]
struct Problem {
    retryable: Option<bool>,
}

/// The answer to `POST /ingest` with the event `id`.
pub fn to_one(id: &str, status: u16, body: &[u8]) -> Told {
    let outcome = if status == 202 {
        accepted(id, object(body).ok())
    } else {
        refusal(status, object::<Problem>(body).unwrap_or_default().retryable)
    };
    Told { status, outcome }
}

/// One result of a batch.
#[derive(Debug, Deserialize)]
struct Entry {
    status: u16,
    id: Option<String>,
    partition: Option<i32>,
    offset: Option<i64>,
    retryable: Option<bool>,
}

/// The answer to `POST /ingest/batch` with the events `ids`: one for each, in their order.
pub fn to_batch(ids: &[&str], status: u16, body: &[u8]) -> Vec<Told> {
    #[derive(Default, Deserialize)]
    struct Body {
        results: Option<Vec<Object<Entry>>>,
        retryable: Option<bool>,
    }
    let body: Body = object(body).unwrap_or_default();
    let Some(entries) = body.results.filter(|entries| !entries.is_empty()) else {
        let outcome = refusal(status, body.retryable);
        return ids.iter().map(|_| Told { status, outcome: outcome.clone() }).collect();
    };
    // With fewer results than events the last one is about the body: from there on nothing was taken.
    let taken = if entries.len() < ids.len() { entries.len() - 1 } else { ids.len() };
    let rest = entries.get(taken).map(|Object(broken)| {
        let outcome = if taken > 0 { Outcome::Later } else { refusal(broken.status, broken.retryable) };
        Told { status: broken.status, outcome }
    });
    let own = entries.into_iter().zip(ids).take(taken).map(|(Object(entry), id)| told(entry, id));
    own.chain(rest.into_iter().cycle()).take(ids.len()).collect()
}

fn told(entry: Entry, id: &str) -> Told {
    let Entry { status, retryable, .. } = entry;
    let place = || {
        let (id, partition) = (entry.id?, entry.partition?);
        Some(Place { id, partition, offset: entry.offset, ..Place::default() })
    };
    let outcome = if status == 202 { accepted(id, place()) } else { refusal(status, retryable) };
    Told { status, outcome }
}

fn accepted(id: &str, place: Option<Place>) -> Outcome {
    place.filter(|place| place.id == id).map_or(Outcome::Unknown, Outcome::Accepted)
}

/// `retryable` is there only if the producer itself answered, and not something between it and us.
fn refusal(status: u16, retryable: Option<bool>) -> Outcome {
    match (status, retryable) {
        (504, _) | (200..=299, _) => Outcome::Unknown,
        (_, Some(true)) => Outcome::Later,
        (_, Some(false)) => Outcome::Refused,
        (408 | 425 | 429, None) => Outcome::Later,
        (500.., None) => Outcome::Unknown,
        (_, None) => Outcome::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(status: u16, body: &str) -> Outcome {
        to_one("a", status, body.as_bytes()).outcome
    }

    #[test]
    fn only_a_202_about_the_very_event_is_an_acceptance() {
        let body = r#"{"id":"a","topic":"t","partition":3,"offset":7,"status":"enqueued","timestamp":1,"ingested_at":2}"#;
        let Outcome::Accepted(place) = one(202, body) else { panic!("accepted") };
        let right = (Some(2), Some("t".to_owned()), 3, Some(7));
        assert_eq!((place.ingested_at, place.topic, place.partition, place.offset), right);
        for (status, body) in [
            (202, r#"{"id":"b","partition":3}"#),
            (202, "<html>"),
            (202, ""),
            (200, body),
            (202, r#"["a",2,"t",3,7]"#),
        ] {
            assert_eq!(one(status, body), Outcome::Unknown, "{status} {body}");
        }
    }

    #[test]
    fn a_refusal_is_final_only_if_it_says_so_or_nothing_can_have_been_stored() {
        let (yes, no) = (r#"{"retryable":true}"#, r#"{"retryable":false}"#);
        for (status, body, outcome) in [
            (503, yes, Outcome::Later),
            (408, yes, Outcome::Later),
            (504, yes, Outcome::Unknown),
            (422, no, Outcome::Refused),
            (401, no, Outcome::Refused),
            // Of something between us and the producer.
            (502, "<html>", Outcome::Unknown),
            (503, "", Outcome::Unknown),
            (504, "", Outcome::Unknown),
            (429, "", Outcome::Later),
            (404, "", Outcome::Refused),
            (301, "", Outcome::Refused),
            (503, "[false]", Outcome::Unknown),
        ] {
            assert_eq!(one(status, body), outcome, "{status} {body}");
        }
    }

    fn batch(events: usize, status: u16, body: &str) -> Vec<(u16, Outcome)> {
        let ids = ["a", "b", "c", "d"];
        let told = to_batch(&ids[..events], status, body.as_bytes());
        told.into_iter().map(|told| (told.status, told.outcome)).collect()
    }

    #[test]
    fn each_event_of_a_batch_has_its_own_result() {
        let body = r#"{"accepted":1,"rejected":2,"results":[{"index":0,"status":202,"id":"a","partition":1,"offset":5},
            {"index":1,"status":422,"detail":"x","retryable":false},{"index":2,"status":504,"id":"c","detail":"x","retryable":true}]}"#;
        let told = batch(3, 207, body);
        assert!(matches!(&told[0], (202, Outcome::Accepted(place)) if place.offset == Some(5)), "{told:?}");
        assert_eq!(told[1..], [(422, Outcome::Refused), (504, Outcome::Unknown)]);
    }

    #[test]
    fn what_broke_the_body_is_about_all_events_from_there_on() {
        let body = r#"{"results":[{"index":0,"status":202,"id":"a","partition":1},{"index":1,"status":413,"detail":"x","retryable":false}]}"#;
        let told = batch(4, 207, body);
        assert_eq!(told.len(), 4);
        assert_eq!(told[1..], [(413, Outcome::Later), (413, Outcome::Later), (413, Outcome::Later)]);
        let nothing =
            r#"{"retryable":false,"results":[{"index":0,"status":413,"detail":"x","retryable":false}]}"#;
        assert_eq!(batch(2, 413, nothing), [(413, Outcome::Refused), (413, Outcome::Refused)]);
    }

    #[test]
    fn an_answer_without_results_is_about_every_event() {
        let refused = batch(2, 503, r#"{"retryable":true}"#);
        assert_eq!(refused, [(503, Outcome::Later), (503, Outcome::Later)]);
        assert_eq!(batch(2, 202, "{}"), [(202, Outcome::Unknown), (202, Outcome::Unknown)]);
        assert_eq!(batch(1, 401, r#"{"retryable":false}"#), [(401, Outcome::Refused)]);
        for array in
            [r#"{"results":[[202,"a",1,5,null]]}"#, r#"[[{"status":202,"id":"a","partition":1}],null]"#]
        {
            assert_eq!(batch(1, 202, array), [(202, Outcome::Unknown)], "{array}");
        }
    }
}
