//! Sources by configuration: reads and checks the sources file, and makes the parts of an event of
//! a record.
//!
//! The crate has no network. It reads the file, its schemas and, for processes that fetch, its
//! secrets once.
//!
//! ```
//! # use std::path::Path;
//! # use events::Millis;
//! # use sources::{Answer, Context, Records, Sources, Upstream};
//! let file = "
//! sources:
//!   quakes:
//!     pull:
//!       url: https://example.com/all_hour.geojson
//!       records: /features
//!     event:
//!       id: /id
//!       timestamp: /properties/updated
//!       payload: '.properties + {where: .geometry.coordinates}'
//! ";
//! let folder = Path::new(".");
//! let sources = Sources::parse("sources.yaml", file, folder, &|_| None).expect("no faults");
//! let quakes = sources.get("quakes").expect("a source");
//! let pull = quakes.pull.as_ref().expect("a pull");
//! let Upstream::Http(api) = &pull.upstream else { panic!("another upstream") };
//!
//! let answer = r#"{"features":[{"id":"a1","properties":{"mag":4.60,"updated":1795898300456},
//!     "geometry":{"coordinates":[121.7,24.1,10.0]}}]}"#;
//! let around = Answer::new(answer);
//! let now = Millis::new(1_800_000_000_000).expect("a time");
//! for record in api.records.of(answer).expect("an array") {
//!     let context = Context { answer: Some(&around), key: record.key.as_deref() };
//!     let event = quakes.extract(record.text, context, now).expect("an event");
//!     assert_eq!((event.id.as_str(), event.timestamp.get()), ("a1", 1_795_898_300_456));
//!     let payload = r#"{"mag":4.60,"updated":1795898300456,"where":[121.7,24.1,10.0]}"#;
//!     assert_eq!(event.payload, payload);
//! }
//! ```
//!
//! # Rules of the whole file
//! - `${NAME}` in a text takes a variable, and `$$` is a dollar. Names of fields are not changed.
//!   White space around a value is removed, and an empty value counts as undefined.
//! - `${NAME:-DEFAULT}` is the default if the variable is not defined.
//! - `*_file` and `schema` are paths relative to the file. A secret is trimmed.
//! - A `topic` is not a dead-letter topic. The name `adsbdb` is that of the built-in client.
//! - All faults are reported at once. A message contains names of fields, but never a value,
//!   because a secret may stand there.
//!
//! # Places
//! `id`, `timestamp` and the items of their lists are *places* that a value is taken from.
//!
//! | Place | Value |
//! |---|---|
//! | `/a/0/b` | JSON Pointer into the record; a number keeps its text |
//! | `$key` | the key of the record in a map |
//! | `{answer: /time}` | JSON Pointer into the answer around the record |
//! | other text | jq filter over the record, with the variable `$key` |
//!
//! A value that is absent or null is not there. An empty text as id is not there either. A value of
//! a wrong kind is a fault of the record, also where another place follows.
//!
//! | Field | Forms |
//! |---|---|
//! | `id` | a place; a list; or a map of `from`, `first`, `answer` or `join`, with `else: uuid` |
//! | `timestamp` | a place; a list; or a map of `from`, `first` or `answer`, with `else: now` |
//! | `payload` | JSON Pointer or jq filter; absent: the record itself, byte for byte |
//! | `records` | JSON Pointer to an array; `{map: …}`; `{object: …}`; absent: the whole answer |
//!
//! - Of a list, the first that is there is taken. Its last item may be `else: uuid` or `else: now`.
//! - `{join: [PLACE, …], with: ":"}` is there only if all its places are.
//! - `unit` (s, ms, us, ns) reads an epoch number. `format` is `rfc3339`, `iso8601` with its usual
//!   oddities, or a pattern of `strptime`. `zone` (UTC or an offset) is the offset of a text that
//!   has none, and means `format: iso8601` if it stands alone. Without them, the rules of a request
//!   hold.
//! - If `timestamp` is absent, an event has the time of its acceptance.
//! - The pointer `""` in `records` is the whole answer.
//!
//! # jq
//! A filter has exactly one output, which is JSON. It may contain paths, arithmetic, comparisons,
//! strings, objects, arrays, conditions, `//`, `?`, variables, updates and the functions of
//! [`function_names`]. It may not contain `def`, `reduce`, `foreach`, `label`, `..`, `@` formats,
//! `*` without a number, an iteration in an iteration, and functions that depend on more than the
//! record. `*` multiplies numbers; a string or object is a fault of the record. The text that a
//! filter can make of a record is bounded before it runs, and its memory is counted while it runs.
//! A record that exceeds a bound is faulty, and so is one with more than a million keys and values.
//!
//! A number that a filter only moves keeps its text: `0.10`, `1e400`, and integers of any length.
//! `-0` becomes `0`. Integers are exact in `+`, `-`, `*`, `%` and `floor`. Any other number that a
//! filter computes with becomes a double. The order of keys is kept, except that `del` moves the
//! last key to the gap. Of several members with one key the last value is kept.
//!
//! # Deletes
//! `delete: {}` lets requests delete documents. With `delete: {when: FILTER}` a record deletes the
//! document of its id if the filter returns `true`. `false` and `null` mean that it does not, and
//! another output is a fault of the record. A record that deletes needs an id and a timestamp. Its
//! schema is not checked, and it has no payload.
//!
//! # Schemas
//! A schema is of draft 2020-12, checks `format`, and has no reference to another file. It checks
//! the record, not the payload. It compares numbers as 64-bit integers or doubles.

mod config;
mod extract;
mod fault;
mod file;
mod filter;
mod id;
mod kind;
mod parse;
mod place;
mod pointer;
mod reader;
mod records;
mod schema;
mod time;
mod tree;

pub use config::{
    Auth, Delete, EventMapping, HttpApi, Index, IndexKind, NextPage, Paging, PayloadRule, Pull, Records,
    Source, Store, Upstream, deletes_collection,
};
pub use extract::{Extracted, RecordFault};
pub use fault::{Fault, Faults, Position};
pub use file::{SOURCES_FILE, Sources};
pub use filter::{Filter, Input, function_names};
pub use id::{IdCandidate, IdRule};
pub use parse::Secrets;
pub use place::{Answer, Context, Place};
pub use pointer::Pointer;
pub use records::{Record, RecordIter};
pub use schema::{Schema, SchemaFault};
pub use time::{TimeForm, TimeRule};
