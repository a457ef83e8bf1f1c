//! The id of an event from a record.

use std::borrow::Cow;

use events::{EventId, Payload, aircraft_id, unescape};

use crate::filter::Input;
use crate::kind::kind;
use crate::place::{Answer, Found, Place};

/// How the id of an event is made.
#[derive(Debug, PartialEq)]
pub struct IdRule {
    /// The first that is there is the id.
    pub candidates: Vec<IdCandidate>,
    /// Whether a record without any of them gets a UUID. If not, it is faulty.
    pub else_uuid: bool,
}

/// One way to make an id.
#[derive(Debug, PartialEq)]
pub enum IdCandidate {
    /// The value at a place.
    One(Place),
    /// The id of an aircraft of ADSBDB, as the contract states it.
    Aircraft,
    /// The values at several places, joined. It is there only if all of them are.
    Join {
        /// The places in their order.
        places: Vec<Place>,
        /// The text between two values.
        with: String,
    },
}

/// An id, and whether it was generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Id {
    pub(crate) id: EventId,
    pub(crate) generated: bool,
}

impl IdRule {
    pub(crate) fn apply(&self, input: &Input<'_>, answer: Option<&Answer<'_>>) -> Result<Id, String> {
        for candidate in &self.candidates {
            if let Some(text) = candidate.text(input, answer)? {
                let id = EventId::new(text).map_err(|reason| format!("{}: {reason}", candidate.name()))?;
                return Ok(Id { id, generated: false });
            }
        }
        if self.else_uuid {
            let id = EventId::new(uuid::Uuid::now_v7().to_string())?;
            return Ok(Id { id, generated: true });
        }
        let names: Vec<String> = self.candidates.iter().map(IdCandidate::name).collect();
        Err(format!("the record has no id: {} is absent, null or empty", names.join(" and ")))
    }
}

impl IdCandidate {
    fn text(&self, input: &Input<'_>, answer: Option<&Answer<'_>>) -> Result<Option<String>, String> {
        let text = |place: &Place| match place.find(input, answer)? {
            None => Ok(None),
            Some(found) => text(&found).map_err(|reason| format!("{} {reason}", place.name())),
        };
        match self {
            Self::One(place) => text(place),
            Self::Aircraft => {
                let payload = Payload::parse(input.text()).ok();
                Ok(payload.as_ref().and_then(aircraft_id).map(|id| id.to_string()))
            }
            Self::Join { places, with } => {
                let parts: Result<Option<Vec<String>>, String> = places.iter().map(text).collect();
                Ok(parts?.map(|parts| parts.join(with)))
            }
        }
    }

    fn name(&self) -> String {
        match self {
            Self::One(place) => place.name(),
            Self::Aircraft => "the id of the aircraft".into(),
            Self::Join { places, .. } => places.iter().map(Place::name).collect::<Vec<_>>().join(" or "),
        }
    }
}

/// The text of a string, or the digits of a number as they were sent. `None` if it is empty.
fn text(found: &Found<'_>) -> Result<Option<String>, String> {
    let text: Cow<'_, str> = match found {
        Found::Text(text) => Cow::Borrowed(*text),
        Found::Json(json) => match kind(json) {
            "string" => unescape(json).ok_or("has an unpaired surrogate")?,
            // As in a request, where -0 is the integer 0.
            "number" if json == "-0" => Cow::Borrowed("0"),
            "number" => Cow::Borrowed(json.as_ref()),
            kind => return Err(format!("should be a string or a number and is {kind}")),
        },
    };
    Ok((!text.is_empty()).then(|| text.into_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{IdCandidate, IdRule};
    use crate::filter::{Filter, Input};
    use crate::place::{Answer, Place};
    use crate::pointer::Pointer;

    fn at(pointer: &str) -> Place {
        Place::Record(Pointer::parse(pointer).unwrap())
    }

    fn rule(candidates: Vec<IdCandidate>) -> IdRule {
        IdRule { candidates, else_uuid: false }
    }

    fn id(rule: &IdRule, record: &str) -> Result<String, String> {
        let answer = Answer::new(r#"{"place":"b"}"#);
        rule.apply(&Input::new(record, Some("k")), Some(&answer)).map(|id| id.id.to_string())
    }

    #[test]
    fn a_string_and_the_exact_text_of_a_number_are_ids() {
        let rule = rule(vec![IdCandidate::One(at("/a"))]);
        for (json, text) in [
            (r#""x y""#, "x y"),
            (r#""\u00e9""#, "é"),
            ("9007199254740993", "9007199254740993"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("0.10", "0.10"),
            ("1E5", "1E5"),
            ("-0", "0"),
        ] {
            assert_eq!(id(&rule, &format!(r#"{{"a":{json}}}"#)).unwrap(), text);
        }
    }

    #[test]
    fn a_value_that_cannot_be_an_id_is_a_fault() {
        let rule = rule(vec![IdCandidate::One(at("/a"))]);
        for (json, reason) in [
            ("true", "/a should be a string or a number and is boolean"),
            ("{}", "and is object"),
            (r#""a\n""#, "control"),
            (r#""\ud800""#, "surrogate"),
            (r#""""#, "/a is absent, null or empty"),
            ("null", "/a is absent, null or empty"),
        ] {
            let error = id(&rule, &format!(r#"{{"a":{json}}}"#)).unwrap_err();
            assert!(error.contains(reason), "{json}: {error}");
        }
        assert!(id(&rule, &format!(r#"{{"a":"{}"}}"#, "x".repeat(1_000_000))).unwrap_err().contains("256"));
    }

    #[test]
    fn of_a_list_the_first_that_is_there_is_taken() {
        let list = vec![IdCandidate::One(at("/a")), IdCandidate::One(at("/b")), IdCandidate::One(Place::Key)];
        let rule = rule(list);
        assert_eq!(id(&rule, r#"{"a":"","b":2}"#).unwrap(), "2");
        assert_eq!(id(&rule, r#"{"a":null}"#).unwrap(), "k");
        assert_eq!(id(&rule, r#"{"a":1,"b":{}}"#).unwrap(), "1");
    }

    #[test]
    fn a_join_needs_all_its_places() {
        let answer = Place::Answer(Pointer::parse("/place").unwrap());
        let rule =
            rule(vec![IdCandidate::Join { places: vec![at("/a"), answer, at("/c")], with: ":".into() }]);
        assert_eq!(id(&rule, r#"{"a":52.52,"c":"2026-11-28T20:15"}"#).unwrap(), "52.52:b:2026-11-28T20:15");
        assert!(
            id(&rule, r#"{"a":52.52}"#).unwrap_err().contains("/a or /place of the answer or /c is absent")
        );
    }

    #[test]
    fn a_filter_makes_an_id_and_a_record_without_one_gets_a_uuid_if_wanted() {
        let filter = Place::Filter(Filter::parse(".a.b // empty | ascii_upcase").unwrap());
        let mut rule = rule(vec![IdCandidate::One(filter)]);
        assert_eq!(id(&rule, r#"{"a":{"b":"x"}}"#).unwrap(), "X");
        assert!(id(&rule, "{}").unwrap_err().contains("no output"));
        rule.candidates = vec![IdCandidate::One(at("/a"))];
        rule.else_uuid = true;
        let made = rule.apply(&Input::new("{}", None), None).unwrap();
        assert!(made.generated);
        assert_eq!(made.id.as_str().len(), 36);
        assert!(id(&rule, r#"{"a":[]}"#).is_err(), "a value of the wrong kind is no absent value");
    }

    proptest! {
        #[test]
        fn any_string_and_number_is_the_id_that_was_sent(text in "[^\\p{Cc}]{1,256}", number in "-?[1-9][0-9]{0,60}(\\.[0-9]{1,9})?(e[0-9]{1,3})?") {
            let rule = rule(vec![IdCandidate::One(at("/a/0"))]);
            let record = serde_json::json!({"a": [text]}).to_string();
            prop_assert_eq!(id(&rule, &record).unwrap(), text);
            prop_assert_eq!(id(&rule, &format!(r#"{{"a":[ {number} ]}}"#)).unwrap(), number);
        }
    }
}
