//! The configuration of a source, as the processes use it.

use std::fmt;
use std::time::Duration;

use events::Source as SourceName;
use service::Secret;
use url::Url;

use crate::filter::Filter;
use crate::id::IdRule;
use crate::pointer::Pointer;
use crate::schema::Schema;
use crate::time::TimeRule;

/// One source of the file.
#[derive(Debug, PartialEq)]
pub struct Source {
    /// The name: in paths, in the event's `source`, and of the collection unless told otherwise.
    pub name: SourceName,
    /// A text for people.
    pub description: Option<String>,
    /// How the source is fetched. A source has at most one of `pull` and `push`.
    pub pull: Option<Pull>,
    /// Whether clients send records to `POST /ingest/{source}`.
    pub push: bool,
    /// Whether `POST /ingest` and `/ingest/batch` accept events of the source.
    pub envelope: bool,
    /// A topic of its own. If absent, `KAFKA_TOPIC`.
    pub topic: Option<String>,
    /// How an event is made of a record. A source that is only sent in envelopes has none.
    pub event: Option<EventMapping>,
    /// The schema of each record that does not delete.
    pub schema: Option<Schema>,
    /// How documents are deleted. If absent, they are not.
    pub delete: Option<Delete>,
    /// Where and how documents are stored.
    pub store: Store,
}

/// How an event is made of a record.
#[derive(Debug, PartialEq)]
pub struct EventMapping {
    /// The id.
    pub id: IdRule,
    /// The timestamp.
    pub timestamp: TimeRule,
    /// The payload.
    pub payload: PayloadRule,
}

/// How documents of a source are deleted.
#[derive(Debug, PartialEq)]
pub struct Delete {
    /// Whether a record deletes the document of its id. If absent, only requests delete.
    pub when: Option<Filter>,
    /// How long a delete is remembered.
    pub tombstones: Duration,
}

/// What the payload of an event is.
#[derive(Debug, PartialEq)]
pub enum PayloadRule {
    /// The record itself, byte for byte.
    Record,
    /// A part of the record, byte for byte.
    Pointer(Pointer),
    /// The output of a jq filter.
    Filter(Filter),
}

/// How a source is fetched.
#[derive(Debug, PartialEq, Eq)]
pub struct Pull {
    /// The poller's interval.
    pub every: Duration,
    /// What is fetched.
    pub upstream: Upstream,
}

/// What is fetched.
#[derive(Debug, PartialEq, Eq)]
pub enum Upstream {
    /// The built-in client of ADSBDB with its `ADSBDB_…` variables. A limit is told in the body.
    Adsbdb,
    /// A JSON API over HTTP.
    Http(Box<HttpApi>),
}

/// A JSON API over HTTP.
#[derive(PartialEq, Eq)]
pub struct HttpApi {
    /// The URL of the first page. Its query may contain a secret.
    pub url: Url,
    /// The time-out of one request.
    pub timeout: Duration,
    /// Additional headers, in lower case. A value may be a secret.
    pub headers: Vec<(String, Secret)>,
    /// The credentials.
    pub auth: Option<Auth>,
    /// Where the records are in an answer.
    pub records: Records,
    /// How the next page is found.
    pub paging: Option<Paging>,
    /// Headers of an answer that tell the time to wait, in lower case: seconds or a date. They come
    /// before `retry-after` and `x-poll-interval`.
    pub wait: Vec<String>,
}

impl fmt::Debug for HttpApi {
    /// Writes only what contains no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut url = self.url.clone();
        if url.query().is_some() {
            url.set_query(Some("***"));
        }
        f.debug_struct("HttpApi")
            .field("url", &url.as_str())
            .field("timeout", &self.timeout)
            .field("auth", &self.auth)
            .field("records", &self.records)
            .field("paging", &self.paging)
            .field("wait", &self.wait)
            .finish_non_exhaustive()
    }
}

/// Credentials of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Auth {
    /// `Authorization: Bearer TOKEN`.
    Bearer(Secret),
    /// `Authorization: Basic …`.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A header of the API's own.
    Header {
        /// The name, in lower case.
        name: String,
        /// The value.
        value: Secret,
    },
}

/// Where the records are in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Records {
    /// The value at the pointer is the only record.
    One(Pointer),
    /// The items of the array at the pointer.
    List(Pointer),
    /// The members of the object at the pointer. The key is `$key`.
    Map(Pointer),
}

/// How the pages of an answer are fetched.
#[derive(Debug, PartialEq, Eq)]
pub struct Paging {
    /// How the next page is found.
    pub next: NextPage,
    /// The maximum number of pages of one fetch.
    pub max_pages: u32,
}

/// How the next page is found.
#[derive(Debug, PartialEq, Eq)]
pub enum NextPage {
    /// The answer has the URL at the pointer.
    Pointer(Pointer),
    /// The header `Link` has it with `rel="next"`.
    LinkHeader,
    /// A header of the answer has the cursor, which becomes a parameter of the query.
    CursorHeader {
        /// The header, in lower case.
        header: String,
        /// The parameter.
        param: String,
    },
    /// A parameter of the query counts the records. It starts at 0.
    Offset {
        /// The parameter.
        param: String,
        /// The number of records of a page. A page with fewer is the last.
        size: u32,
        /// The parameter for the size, if the API has one.
        size_param: Option<String>,
    },
}

/// Where and how the documents of a source are stored.
#[derive(Debug, PartialEq, Eq)]
pub struct Store {
    /// The collection.
    pub collection: String,
    /// The fields that identify a document. If absent, `UPSERT_KEYS`.
    pub keys: Option<Vec<String>>,
    /// The field of a document that gets the source's name.
    pub source_field: Option<String>,
    /// Indexes in addition to those that each collection has.
    pub indexes: Vec<Index>,
    /// How long after its timestamp a document expires.
    pub ttl: Option<Duration>,
}

impl Store {
    /// The store of a source without `store`: a collection of its name.
    pub(crate) fn of(name: &str) -> Self {
        Self { collection: name.to_owned(), keys: None, source_field: None, indexes: Vec::new(), ttl: None }
    }
}

/// The collection that has the deletes of a collection.
pub fn deletes_collection(collection: &str) -> String {
    format!("{collection}.deletes")
}

/// An additional index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// The fields with their order or kind.
    pub keys: Vec<(String, IndexKind)>,
    /// Whether values may occur only once.
    pub unique: bool,
}

/// The order or kind of a field in an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexKind {
    /// `1`.
    Ascending,
    /// `-1`.
    Descending,
    /// `hashed`.
    Hashed,
    /// `text`.
    Text,
    /// `2dsphere`.
    Sphere,
}
