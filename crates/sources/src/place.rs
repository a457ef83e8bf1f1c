//! A place that a value of an event is taken from.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Mutex;

use service::tasks::lock;

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

/// The answer around records. It keeps what pointers found, so that each pointer walks a large
/// answer once and not once for each record.
pub struct Answer<'a> {
    text: &'a str,
    /// The pointers so far, with the place of what each found.
    found: Mutex<Vec<(String, Option<Range<usize>>)>>,
}

impl<'a> Answer<'a> {
    /// Wraps the text of an answer, which is valid JSON.
    pub fn new(text: &'a str) -> Self {
        Self { text, found: Mutex::default() }
    }

    fn find(&self, pointer: &Pointer) -> Option<&'a str> {
        let mut found = lock(&self.found);
        if let Some((_, range)) = found.iter().find(|(known, _)| known == pointer.as_str()) {
            return self.text.get(range.clone()?);
        }
        let value = pointer.find(self.text);
        let range = value.map(|value| {
            // The value is a part of the text.
            let start = value.as_ptr().addr() - self.text.as_ptr().addr();
            start..start + value.len()
        });
        found.push((pointer.as_str().to_owned(), range));
        value
    }
}

/// What surrounds a record.
#[derive(Clone, Copy, Default)]
pub struct Context<'a> {
    /// The answer that the record is part of.
    pub answer: Option<&'a Answer<'a>>,
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
        answer: Option<&'a Answer<'a>>,
    ) -> Result<Option<Found<'a>>, String> {
        let json = match self {
            Self::Record(pointer) => pointer.find(input.text()).map(Cow::Borrowed),
            Self::Answer(pointer) => answer.and_then(|answer| answer.find(pointer)).map(Cow::Borrowed),
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
