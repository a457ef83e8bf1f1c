//! A place that a value of an event is taken from.

use std::borrow::Cow;

use crate::filter::{Filter, Input};
use crate::pointer::Pointer;

/// Where a value of an event is taken from.
#[derive(Debug, PartialEq)]
pub enum Place {
    /// A pointer into the record.
    Record(Pointer),
    /// A pointer into the answer around the record.
    Answer(Pointer),
    /// A jq filter over the record.
    Filter(Filter),
    /// The key of the record in a map.
    Key,
}

/// What surrounds a record.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context<'a> {
    /// The text of the answer that the record is part of, which is valid JSON.
    pub answer: Option<&'a str>,
    /// The key of the record in a map.
    pub key: Option<&'a str>,
}

/// A value at a place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    /// The text of a JSON value that is not null.
    Json(Cow<'a, str>),
    /// A text that is no JSON.
    Text(&'a str),
}

impl Place {
    /// The value at the place. `None` if it is absent or null.
    pub(crate) fn find<'a>(
        &self,
        input: &Input<'a>,
        answer: Option<&'a str>,
    ) -> Result<Option<Found<'a>>, String> {
        let json = match self {
            Self::Record(pointer) => pointer.find(input.text()).map(Cow::Borrowed),
            Self::Answer(pointer) => answer.and_then(|answer| pointer.find(answer)).map(Cow::Borrowed),
            Self::Filter(filter) => Some(Cow::Owned(filter.apply(input)?)),
            Self::Key => return Ok(input.key().map(Found::Text)),
        };
        Ok(json.filter(|json| *json != "null").map(Found::Json))
    }

    /// The name of the place in messages.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Record(pointer) => pointer.as_str().to_owned(),
            Self::Answer(pointer) => format!("{} of the answer", pointer.as_str()),
            Self::Filter(_) => "the jq filter".into(),
            Self::Key => "$key".into(),
        }
    }
}
