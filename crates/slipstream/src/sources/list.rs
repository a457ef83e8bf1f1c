//! `slipstream sources list`.

use std::process::ExitCode;

use ::sources::{Source, Sources};
use consumer::ExpectedSources;
use kafka::BoxError;
use serde_json::{Value, json};

use super::Config;
use crate::output;

const COLUMNS: usize = 7;
type Cells = [String; COLUMNS];

/// A source as a row of the table.
struct Row {
    source: String,
    from: &'static str,
    every: Option<String>,
    topic: String,
    collection: String,
    keys: Vec<String>,
    has_schema: bool,
    deletes: Option<Deletes>,
    ttl: Option<String>,
}

/// The deletes of a source.
struct Deletes {
    /// The filter of records that delete. Without it only requests delete.
    when: Option<String>,
    /// How long a delete is remembered.
    tombstones: String,
}

impl Row {
    fn new(source: &Source, config: &Config, stores: &ExpectedSources) -> Self {
        let from = match (&source.pull, source.push) {
            (Some(_), _) => "pull",
            (None, true) => "push",
            (None, false) => "envelope",
        };
        let store = config.store(source, stores);
        Self {
            source: source.name.to_string(),
            from,
            every: source.pull.as_ref().map(|pull| duration(pull.every)),
            topic: config.topic(source).to_owned(),
            collection: store.collection,
            keys: store.keys.fields().map(str::to_owned).collect(),
            has_schema: source.schema.is_some(),
            deletes: source.delete.as_ref().map(|delete| Deletes {
                when: delete.when.as_ref().map(|when| when.as_str().to_owned()),
                tombstones: duration(delete.tombstones),
            }),
            ttl: source.store.ttl.map(duration),
        }
    }

    fn cells(&self) -> Cells {
        let from = self.every.as_ref().map_or(self.from.to_owned(), |every| format!("{} {every}", self.from));
        let deletes = match &self.deletes {
            None => "-",
            Some(Deletes { when: Some(_), .. }) => "records, requests",
            Some(Deletes { when: None, .. }) => "requests",
        };
        let ttl = self.ttl.clone().unwrap_or_else(|| "-".into());
        let keys = self.keys.join(", ");
        [self.source.clone(), from, self.topic.clone(), self.collection.clone(), keys, deletes.into(), ttl]
    }

    fn json(&self) -> Value {
        json!({
            "source": self.source,
            "from": self.from,
            "every": self.every,
            "topic": self.topic,
            "collection": self.collection,
            "keys": self.keys,
            "schema": self.has_schema,
            "delete": self.deletes.as_ref().map(|deletes| json!({
                "when": deletes.when,
                "tombstones": deletes.tombstones,
            })),
            "ttl": self.ttl,
        })
    }
}

/// Prints the sources as a table, in the order of the file.
pub fn list(sources: &Sources, config: &Config, as_json: bool) -> Result<ExitCode, BoxError> {
    let stores = config.stores(sources)?;
    let rows: Vec<Row> = sources.iter().map(|source| Row::new(source, config, &stores)).collect();
    if as_json {
        let rows: Vec<Value> = rows.iter().map(Row::json).collect();
        output::write_line(json!({ "sources": rows }))?;
    } else {
        let head = ["source", "from", "topic", "collection", "keys", "deletes", "ttl"].map(str::to_owned);
        let table: Vec<Cells> = std::iter::once(head).chain(rows.iter().map(Row::cells)).collect();
        for line in lines(&table) {
            output::write_line(line)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The lines of a table with aligned columns.
fn lines(table: &[Cells]) -> Vec<String> {
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let line = |row: &Cells| {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    table.iter().map(line).collect()
}

/// A duration as the file writes it.
fn duration(duration: std::time::Duration) -> String {
    let ms = duration.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
    let unit = units.into_iter().find(|(unit, _)| ms >= *unit && ms.is_multiple_of(*unit));
    unit.map_or(format!("{ms}ms"), |(unit, name)| format!("{}{name}", ms / unit))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_duration_has_the_largest_unit_that_divides_it() {
        let cases = [(500, "500ms"), (60_000, "1m"), (90_000, "90s"), (7_200_000, "2h"), (86_400_000, "1d")];
        for (ms, text) in cases {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
    }
}
