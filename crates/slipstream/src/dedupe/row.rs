//! Which documents share a key, found in one pass over rows that the server sorted: by key, the newest of each first.
//! So memory does not grow with the collection, nor with the number of documents of one key. In doubt two keys are
//! taken for different: a document that is no duplicate is never taken for one.

use std::sync::Arc;

use bson::{Bson, Document};

/// A stored document, as far as its key and its age go.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// `_id`.
    pub id: Bson,
    /// The values of the key fields.
    pub key: Vec<Option<Bson>>,
    /// `event_timestamp` and `ingested_at`.
    pub version: [Option<Bson>; 2],
}

impl Row {
    /// The stage that makes rows of documents; [`Row::read`] reads them.
    pub fn projection<'a>(fields: impl Iterator<Item = &'a str>) -> Document {
        let keys = fields.enumerate().map(|(n, field)| (format!("k{n}"), format!("${field}")));
        let version = [("t", "$event_timestamp"), ("i", "$ingested_at")];
        keys.chain(version.map(|(name, path)| (name.to_owned(), path.to_owned())))
            .map(|(name, path)| (name, Bson::String(path)))
            .collect()
    }

    /// The order in which [`Runs`] wants the rows of `fields` fields. `_id` alone decides between equal versions.
    pub fn order(fields: usize) -> Document {
        let keys = (0..fields).map(|n| (format!("k{n}"), 1));
        let newest_first = ["t", "i", "_id"].map(|name| (name.to_owned(), -1));
        keys.chain(newest_first).map(|(name, order)| (name, Bson::Int32(order))).collect()
    }

    /// Reads what [`Row::projection`] made of a document.
    pub fn read(projected: &Document, fields: usize) -> Self {
        let value = |name: &str| projected.get(name).cloned();
        Self {
            id: value("_id").unwrap_or(Bson::Null),
            key: (0..fields).map(|n| value(&format!("k{n}"))).collect(),
            version: ["t", "i"].map(value),
        }
    }

    fn shares_key_with(&self, other: &Self) -> bool {
        self.key.iter().zip(&other.key).all(|(one, other)| same(one.as_ref(), other.as_ref()))
    }

    /// A list is in the index with each of its values, and in the order with the least: it is not judged.
    fn has_list(&self) -> bool {
        self.key.iter().flatten().any(|value| matches!(value, Bson::Array(_)))
    }
}

/// Whether an index holds the two for the same value: an absent field is null, and 1.0 is 1.
fn same(one: Option<&Bson>, other: Option<&Bson>) -> bool {
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

/// What a row is to its neighbours.
#[derive(Debug, PartialEq)]
pub enum Place {
    /// The first of its key, so the newest: it stays.
    Newest,
    /// Older than this one of the same key, and in the way of the unique index.
    InTheWay {
        /// The document in the way.
        row: Box<Row>,
        /// The one that stays.
        newest: Arc<Row>,
    },
    /// A key field holds a list.
    NotJudged,
}

/// Rows in their order, one at a time.
#[derive(Debug, Default)]
pub struct Runs {
    newest: Option<Arc<Row>>,
}

impl Runs {
    /// The place of the next row.
    pub fn place(&mut self, row: Row) -> Place {
        if row.has_list() {
            return Place::NotJudged;
        }
        match &self.newest {
            Some(newest) if newest.shares_key_with(&row) => {
                Place::InTheWay { row: Box::new(row), newest: Arc::clone(newest) }
            }
            _ => {
                self.newest = Some(Arc::new(row));
                Place::Newest
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{bson, doc};

    fn in_the_way(keys: &[Option<Bson>]) -> Vec<usize> {
        let mut runs = Runs::default();
        let rows = keys.iter().enumerate().map(|(n, key)| Row {
            id: Bson::Int64(n as i64),
            key: vec![key.clone()],
            version: [None, None],
        });
        let places: Vec<Place> = rows.map(|row| runs.place(row)).collect();
        (0..keys.len()).filter(|n| matches!(places[*n], Place::InTheWay { .. })).collect()
    }

    #[test]
    fn the_first_of_each_key_stays_and_the_others_are_in_the_way() {
        let text = |text: &str| Some(Bson::from(text));
        assert_eq!(
            in_the_way(&[text("a"), text("a"), text("a"), text("b"), text("c"), text("c")]),
            [1, 2, 5]
        );
    }

    #[test]
    fn values_that_an_index_holds_for_equal_are_one_key_and_no_others() {
        let number = |value: Bson| Some(value);
        assert_eq!(in_the_way(&[number(bson!(1)), number(bson!(1.0)), number(bson!(1_i64))]), [1, 2]);
        assert_eq!(in_the_way(&[None, Some(Bson::Null), None]), [1, 2]);
        assert_eq!(in_the_way(&[number(bson!(1)), number(bson!(1.5)), number(bson!("1"))]), [0_usize; 0]);
        let (below, above) = (9_007_199_254_740_992_i64, 9_007_199_254_740_993_i64);
        assert_eq!(in_the_way(&[number(bson!(below)), number(bson!(above))]), [0_usize; 0]);
    }

    #[test]
    fn a_list_is_not_judged_and_parts_no_run() {
        let list = Some(bson!(["a", "b"]));
        let text = Some(Bson::from("a"));
        assert_eq!(in_the_way(&[text.clone(), list.clone(), text, list]), [2]);
    }

    #[test]
    fn rows_are_read_as_they_are_projected() {
        let projection = Row::projection(["a.b", "c"].into_iter());
        let wanted = doc! { "k0": "$a.b", "k1": "$c", "t": "$event_timestamp", "i": "$ingested_at" };
        assert_eq!(projection, wanted);
        assert_eq!(Row::order(2), doc! { "k0": 1, "k1": 1, "t": -1, "i": -1, "_id": -1 });
        let row = Row::read(&doc! { "_id": 1, "k1": "x", "t": 5 }, 2);
        assert_eq!(row.key, [None, Some(Bson::from("x"))]);
        assert_eq!(row.version, [Some(bson!(5)), None]);
    }
}
