//! Finds documents with equal keys in one pass over rows that the server sorted by key, newest
//! first. Memory therefore does not grow with the collection or with the documents of a key. If the
//! equality of two keys is in doubt, they count as different: only duplicates are classified as
//! duplicates.

use std::sync::Arc;

use bson::{Bson, Document};

/// Key and version of a stored document.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub id: Bson,
    /// The values of the key fields.
    pub key: Vec<Option<Bson>>,
    /// `event_timestamp` and `ingested_at`.
    pub version: [Option<Bson>; 2],
}

impl Row {
    /// The projection of a document to a row; [`Row::read`] reads the result.
    pub fn projection<'a>(fields: impl Iterator<Item = &'a str>) -> Document {
        let keys = fields.enumerate().map(|(n, field)| (format!("k{n}"), format!("${field}")));
        let version = [("t", "$event_timestamp"), ("i", "$ingested_at")];
        keys.chain(version.map(|(name, path)| (name.to_owned(), path.to_owned())))
            .map(|(name, path)| (name, Bson::String(path)))
            .collect()
    }

    /// The sort order that [`DuplicateFinder`] requires; `fields` is the number of key fields.
    /// Documents with equal versions are ordered by `_id`.
    pub fn order(fields: usize) -> Document {
        let keys = (0..fields).map(|n| (format!("k{n}"), 1));
        let newest_first = ["t", "i", "_id"].map(|name| (name.to_owned(), -1));
        keys.chain(newest_first).map(|(name, order)| (name, Bson::Int32(order))).collect()
    }

    /// Reads the result of [`Row::projection`].
    pub fn read(projected: &Document, fields: usize) -> Self {
        let value = |name: &str| projected.get(name).cloned();
        Self {
            id: value("_id").unwrap_or(Bson::Null),
            key: (0..fields).map(|n| value(&format!("k{n}"))).collect(),
            version: ["t", "i"].map(value),
        }
    }

    fn shares_key_with(&self, other: &Self) -> bool {
        self.key.iter().zip(&other.key).all(|(one, other)| equals_in_index(one.as_ref(), other.as_ref()))
    }

    /// An array has several entries in the index, but one position in the sort order. Such a
    /// document cannot be compared.
    fn has_array(&self) -> bool {
        self.key.iter().flatten().any(|value| matches!(value, Bson::Array(_)))
    }
}

/// Whether two values are equal in an index: an absent field equals null, and 1.0 equals 1.
fn equals_in_index(one: Option<&Bson>, other: Option<&Bson>) -> bool {
    let (one, other) = (one.unwrap_or(&Bson::Null), other.unwrap_or(&Bson::Null));
    match (integer(one), integer(other)) {
        (None, None) => one == other,
        (one, other) => one == other,
    }
}

fn integer(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Int64(number) => Some(*number),
        Bson::Double(number) if number.fract() == 0.0 && number.abs() < 9.0e15 => Some(*number as i64),
        _ => None,
    }
}

/// The classification of a document.
#[derive(Debug, PartialEq)]
pub enum Classification {
    /// The newest document of its key.
    Newest,
    /// An older document of the same key, which prevents the unique index.
    Duplicate {
        /// The older document.
        row: Box<Row>,
        /// The newest document, which stays.
        newest: Arc<Row>,
    },
    /// A document with an array in a key field.
    NotCompared,
}

/// Classifies rows in their sort order.
#[derive(Debug, Default)]
pub struct DuplicateFinder {
    newest: Option<Arc<Row>>,
}

impl DuplicateFinder {
    /// Classifies the next row.
    pub fn classify(&mut self, row: Row) -> Classification {
        if row.has_array() {
            return Classification::NotCompared;
        }
        match &self.newest {
            Some(newest) if newest.shares_key_with(&row) => {
                Classification::Duplicate { row: Box::new(row), newest: Arc::clone(newest) }
            }
            _ => {
                self.newest = Some(Arc::new(row));
                Classification::Newest
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{bson, doc};

    fn duplicates(keys: &[Option<Bson>]) -> Vec<usize> {
        let mut finder = DuplicateFinder::default();
        let rows = keys.iter().enumerate().map(|(n, key)| Row {
            id: Bson::Int64(n as i64),
            key: vec![key.clone()],
            version: [None, None],
        });
        let classes: Vec<Classification> = rows.map(|row| finder.classify(row)).collect();
        (0..keys.len()).filter(|n| matches!(classes[*n], Classification::Duplicate { .. })).collect()
    }

    #[test]
    fn all_documents_of_a_key_but_the_first_are_duplicates() {
        let text = |text: &str| Some(Bson::from(text));
        assert_eq!(
            duplicates(&[text("a"), text("a"), text("a"), text("b"), text("c"), text("c")]),
            [1, 2, 5]
        );
    }

    #[test]
    fn keys_are_equal_if_and_only_if_an_index_treats_them_as_equal() {
        let number = |value: Bson| Some(value);
        assert_eq!(duplicates(&[number(bson!(1)), number(bson!(1.0)), number(bson!(1_i64))]), [1, 2]);
        assert_eq!(duplicates(&[None, Some(Bson::Null), None]), [1, 2]);
        assert_eq!(duplicates(&[number(bson!(1)), number(bson!(1.5)), number(bson!("1"))]), [0_usize; 0]);
        let (below, above) = (9_007_199_254_740_992_i64, 9_007_199_254_740_993_i64);
        assert_eq!(duplicates(&[number(bson!(below)), number(bson!(above))]), [0_usize; 0]);
    }

    #[test]
    fn a_key_with_an_array_is_not_compared() {
        let array = Some(bson!(["a", "b"]));
        let text = Some(Bson::from("a"));
        assert_eq!(duplicates(&[text.clone(), array.clone(), text, array]), [2]);
    }

    #[test]
    fn a_projected_row_reads_back() {
        let projection = Row::projection(["a.b", "c"].into_iter());
        let wanted = doc! { "k0": "$a.b", "k1": "$c", "t": "$event_timestamp", "i": "$ingested_at" };
        assert_eq!(projection, wanted);
        assert_eq!(Row::order(2), doc! { "k0": 1, "k1": 1, "t": -1, "i": -1, "_id": -1 });
        let row = Row::read(&doc! { "_id": 1, "k1": "x", "t": 5 }, 2);
        assert_eq!(row.key, [None, Some(Bson::from("x"))]);
        assert_eq!(row.version, [Some(bson!(5)), None]);
    }
}
