//! The records in an answer: the items of a list, the members of a map, or one value.

use events::{Cursor, unescape};

use crate::{config::Records, kind::kind};

/// One record in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'t> {
    /// The text of the record, byte for byte.
    pub text: &'t str,
    /// The key of the record in a map.
    pub key: Option<String>,
}

/// Iterates over the records in an answer without copying them.
pub struct RecordIter<'t> {
    cursor: Cursor<'t>,
    shape: Shape<'t>,
}

enum Shape<'t> {
    One(Option<&'t str>),
    List,
    Map,
}

impl Records {
    /// The records in `answer`, which is valid JSON. Null is a list or a map without records.
    ///
    /// # Errors
    /// The answer has no value of the configured kind at the pointer.
    pub fn of<'t>(&self, answer: &'t str) -> Result<RecordIter<'t>, String> {
        let (pointer, wanted) = match self {
            Self::One(pointer) => (pointer, None),
            Self::List(pointer) => (pointer, Some("array")),
            Self::Map(pointer) => (pointer, Some("object")),
        };
        let place = || match pointer.as_str() {
            "" => "the answer".to_owned(),
            pointer => format!("the value at {pointer}"),
        };
        let value = pointer.find(answer).ok_or_else(|| format!("{} is absent", place()))?;
        let found = kind(value);
        match wanted {
            // Some servers write an empty list as null.
            Some(_) if found == "null" => {
                Ok(RecordIter { cursor: Cursor::new(value), shape: Shape::One(None) })
            }
            Some(wanted) if wanted != found => Err(format!("{} is not an {wanted} but {found}", place())),
            Some(_) => {
                let mut cursor = Cursor::new(value);
                cursor.enter();
                let shape = if found == "array" { Shape::List } else { Shape::Map };
                Ok(RecordIter { cursor, shape })
            }
            None => Ok(RecordIter { cursor: Cursor::new(value), shape: Shape::One(Some(value)) }),
        }
    }
}

impl<'t> Iterator for RecordIter<'t> {
    type Item = Record<'t>;

    fn next(&mut self) -> Option<Record<'t>> {
        match &mut self.shape {
            Shape::One(value) => value.take().map(|text| Record { text, key: None }),
            Shape::List => self.cursor.next_item().then(|| Record { text: self.cursor.value(), key: None }),
            Shape::Map => {
                let raw = self.cursor.next_key()?;
                // A key with an unpaired surrogate has no text. Its record then has no key.
                let key = unescape(raw).map(std::borrow::Cow::into_owned);
                Some(Record { text: self.cursor.value(), key })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Record, Records};
    use crate::pointer::Pointer;

    fn at(pointer: &str) -> Pointer {
        Pointer::parse(pointer).unwrap()
    }

    fn records<'t>(records: &Records, answer: &'t str) -> Result<Vec<Record<'t>>, String> {
        records.of(answer).map(Iterator::collect)
    }

    #[test]
    fn a_list_a_map_and_one_value_are_read_byte_for_byte() {
        let answer = r#"{"list":[ {"a" : 1.0} ,[2]], "map":{"x":{"a":1},"\u0079":2}}"#;
        let texts = |found: Vec<Record<'_>>| {
            found.iter().map(|record| (record.text.to_owned(), record.key.clone())).collect::<Vec<_>>()
        };
        let list = texts(records(&Records::List(at("/list")), answer).unwrap());
        assert_eq!(list, [(r#"{"a" : 1.0}"#.to_owned(), None), ("[2]".to_owned(), None)]);
        let map = texts(records(&Records::Map(at("/map")), answer).unwrap());
        assert_eq!(
            map,
            [(r#"{"a":1}"#.to_owned(), Some("x".to_owned())), ("2".to_owned(), Some("y".to_owned()))]
        );
        let one = texts(records(&Records::One(at("")), answer).unwrap());
        assert_eq!(one, [(answer.to_owned(), None)]);
        assert_eq!(records(&Records::List(at("")), " [ ] ").unwrap(), []);
        for empty in [Records::List(at("/a")), Records::Map(at("/a"))] {
            assert_eq!(records(&empty, r#"{"a":null}"#).unwrap(), []);
        }
        let null = texts(records(&Records::One(at("/a")), r#"{"a":null}"#).unwrap());
        assert_eq!(null, [("null".to_owned(), None)]);
    }

    #[test]
    fn another_kind_of_value_is_an_error_that_names_it() {
        let error = |wanted: Records, answer| records(&wanted, answer).unwrap_err();
        assert_eq!(
            error(Records::List(at("/a")), r#"{"a":{}}"#),
            "the value at /a is not an array but object"
        );
        assert_eq!(error(Records::Map(at("")), "[]"), "the answer is not an object but array");
        assert_eq!(error(Records::One(at("/b")), "{}"), "the value at /b is absent");
    }
}
