//! Sources by configuration: reads and checks the sources file, and makes the parts of an event of
//! a record.
//!
//! The crate is pure. It reads the file, its schemas and its secrets once, and nothing else.
//!
//! # The file
//! ```yaml
//! sources:
//!   quakes:
//!     pull:
//!       url: https://earthquake.usgs.gov/earthquakes/feed/v1.0/summary/all_hour.geojson
//!       every: 60s
//!       records: /features
//!     event:
//!       id: /id
//!       timestamp: /properties/updated
//!       payload: '.properties + {where: .geometry.coordinates}'
//! ```
//! Rules that hold for all of it:
//! - `${NAME}` in a text takes a variable, `$$` is a dollar. Names of fields are not changed.
//! - `*_file` and `schema` are paths relative to the file. A secret loses the white space around it.
//! - Messages never contain a value of the file, because a secret may stand there.
//!
//! # Where a value is taken from
//! `id` and each item of its lists take a *place*. So does `timestamp`.
//!
//! | Place | Value |
//! |---|---|
//! | `/a/0/b` | JSON Pointer into the record; a number keeps its text |
//! | `$key` | the key of the record in a map |
//! | `{answer: /time}` | JSON Pointer into the answer around the record |
//! | other text | jq filter over the record, with the variable `$key` |
//!
//! A value that is absent or null is not there. Of an id, an empty text is not there either. A value
//! of a wrong kind is a fault of the record, also where another place follows.
//!
//! - `id`: a place; a list, of which the first that is there is taken and whose last item may be
//!   `else: uuid`; `{first: […], else: uuid}`; `{from: PLACE, else: uuid}`;
//!   `{join: [PLACE, …], with: ":"}`, which is there only if all its places are; `{else: uuid}`.
//! - `timestamp`: a place; a list whose last item may be `else: now`; or a map of `from`, `first` or
//!   `answer`, with `unit` (s, ms, us, ns), `format` (rfc3339, iso8601, or a pattern of `strptime`),
//!   `zone` (UTC or an offset) and `else: now`. `zone` alone means `format: iso8601`. If `timestamp`
//!   is absent, an event has the time of its acceptance.
//! - `payload`: a JSON Pointer or a jq filter. If it is absent, the record itself.
//! - `records`: a JSON Pointer to an array, where `""` is the whole answer; `{map: POINTER}` for the
//!   members of an object; `{object: POINTER}` for one value. If it is absent, the whole answer is
//!   one record.
//!
//! # jq
//! A filter has exactly one output, which is JSON. It may contain paths, arithmetic, comparisons,
//! strings, objects, arrays, conditions, `//`, `?`, variables, updates and the functions of
//! [`function_names`]. It may not contain `def`, `reduce`, `foreach`, `label`, `..`, `@` formats,
//! `*` without a number, an iteration in an iteration, and functions that depend on more than the
//! record. The text that a filter can make is bounded before it runs.

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
    Auth, EventMapping, HttpApi, Index, IndexKind, NextPage, Paging, PayloadRule, Pull, Records, Source,
    Store, Upstream,
};
pub use extract::{Extracted, RecordFault};
pub use fault::{Fault, Faults, Position};
pub use file::Sources;
pub use filter::{Filter, Input, function_names};
pub use id::{IdCandidate, IdRule};
pub use place::{Context, Place};
pub use pointer::Pointer;
pub use records::{Record, RecordIter};
pub use schema::{Schema, SchemaFault};
pub use time::{TimeForm, TimeRule};
