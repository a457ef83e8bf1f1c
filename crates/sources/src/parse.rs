//! Makes the configuration of the tree of a sources file and reports all its faults.

mod delete;
mod event;
mod pull;
mod store;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use events::Source as SourceName;
use service::parse::topic;

use crate::config::{EventMapping, PayloadRule, Pull, Source, Upstream};
use crate::id::{IdCandidate, IdRule};
use crate::reader::{At, Fields, Report, value_of};
use crate::schema::Schema;
use crate::time::TimeRule;
use crate::tree::{Node, Value};

/// Maximum number of sources in a file.
const MAX_SOURCES: usize = 256;
/// Maximum size of a schema and of a secret.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Names that stand in paths beside those of sources.
const RESERVED: [&str; 2] = ["batch", "poll"];
/// The source of the built-in client, whose endpoints exist without a file too.
const ADSBDB: &str = "adsbdb";

const FIELDS: [&str; 9] =
    ["description", "pull", "push", "envelope", "topic", "event", "schema", "store", "delete"];

/// Whether the files of secrets are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrets {
    /// For a process that fetches.
    Read,
    /// For the others. Each secret is an empty text.
    Skip,
}

/// Variables of the processes that the file must agree with.
pub(crate) struct Settings {
    /// KAFKA_TOPIC.
    topics: Vec<String>,
    /// DEAD_LETTER_TOPIC.
    dead_letter_topic: Option<String>,
    /// UPSERT_KEYS.
    keys: Vec<String>,
}

impl Settings {
    /// Reads the variables. Each process has its own check of their values.
    pub(crate) fn new(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let list = |name: &str, default: &str| -> Vec<String> {
            let text = value_of(variable, name).unwrap_or_else(|| default.to_owned());
            text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
        };
        Self {
            topics: list("KAFKA_TOPIC", "events.raw"),
            dead_letter_topic: value_of(variable, "DEAD_LETTER_TOPIC"),
            keys: list("UPSERT_KEYS", "event_id"),
        }
    }

    /// The topic whose dead letters go to `topic`, among those of KAFKA_TOPIC and `others`.
    fn letters_of<'s>(&'s self, topic: &str, others: &'s [(String, At<'_>)]) -> Option<&'s str> {
        let mut all = self.topics.iter().chain(others.iter().map(|(topic, _)| topic)).map(String::as_str);
        match &self.dead_letter_topic {
            Some(shared) => all.next().filter(|_| shared == topic),
            None => all.find(|other| topic.strip_suffix(".dlq") == Some(*other)),
        }
    }
}

/// What the parsers of all fields need.
pub(crate) struct Parser<'a> {
    pub(crate) report: Report,
    /// The folder of the file, which other paths are relative to.
    folder: &'a Path,
    secrets: Secrets,
    settings: &'a Settings,
    /// The source of each collection so far.
    collections: BTreeMap<String, String>,
}

/// The sources in the tree of a file, in their order. Those with faults are left out.
pub(crate) fn sources(
    root: &Node,
    (folder, secrets): (&Path, Secrets),
    settings: &Settings,
    report: Report,
) -> (Vec<Source>, Report) {
    let mut parser = Parser { report, folder, secrets, settings, collections: BTreeMap::new() };
    let root = At { node: root, path: String::new() };
    let mut sources = Vec::new();
    let entries = root.fields(&mut parser.report, &["sources"], &[]);
    let entries = entries.and_then(|fields| fields.required(&mut parser.report, "sources"));
    if let Some(entries) = entries {
        let members = entries.members(&mut parser.report, "a map of sources");
        if members.is_empty() && entries.is_map() {
            entries.fault(&mut parser.report, "should have at least one source");
        }
        if members.len() > MAX_SOURCES {
            entries.fault(&mut parser.report, format!("should have at most {MAX_SOURCES} sources"));
        }
        let mut topics = Vec::new();
        for (key, entry) in members.into_iter().take(MAX_SOURCES) {
            let name =
                Parser::name(&key.name).map_err(|reason| parser.report.add(key.at, &entry.path, reason));
            topics.extend(Parser::own_topic(&entry));
            let source = parser.source(name.ok(), &key.name, &entry);
            let is_adsbdb = |pull: &Pull| pull.upstream == Upstream::Adsbdb;
            if key.name == ADSBDB
                && source.as_ref().is_some_and(|source| !source.pull.as_ref().is_some_and(is_adsbdb))
            {
                let message = "the name is reserved for a source with `pull: {kind: adsbdb}`";
                parser.report.add(key.at, &entry.path, message);
            }
            sources.extend(source);
        }
        for (topic, at) in &topics {
            if let Some(of) = settings.letters_of(topic, &topics) {
                at.fault(
                    &mut parser.report,
                    format!("is the dead-letter topic of {of}; choose another name"),
                );
            }
        }
    }
    (sources, parser.report)
}

impl Parser<'_> {
    fn name(text: &str) -> Result<SourceName, String> {
        if RESERVED.contains(&text) {
            return Err(format!("{text} is a reserved name, because /ingest/…/{text} is an endpoint"));
        }
        SourceName::new(text).map_err(|reason| format!("is not a name of a source: {reason}"))
    }

    /// The topic of a source with its place, if it has one. Its faults are reported elsewhere.
    fn own_topic<'n>(entry: &At<'n>) -> Option<(String, At<'n>)> {
        let at = entry.fields(&mut Report::default(), &FIELDS, &[])?.get("topic")?;
        let topic = at.parsed(&mut Report::default(), topic)?;
        Some((topic, at))
    }

    fn source(&mut self, name: Option<SourceName>, text: &str, entry: &At<'_>) -> Option<Source> {
        let fields = entry.fields(&mut self.report, &FIELDS, &[])?;
        let description =
            fields.get("description").and_then(|at| at.text(&mut self.report)).map(str::to_owned);
        let pull_field = fields.get("pull");
        let pull = pull_field.as_ref().map(|at| self.pull(at));
        let push_field = fields.get("push");
        if let Some(push) = &push_field
            && !matches!(push.node.value, Value::Null)
        {
            push.fields(&mut self.report, &[], &[]);
        }
        let envelope = fields.get("envelope").map(|at| at.boolean(&mut self.report));
        // A faulty `envelope` is reported already.
        let has_envelope = matches!(envelope, Some(Some(true) | None));
        match (&pull_field, &push_field) {
            (Some(_), Some(push)) => {
                push.fault(
                    &mut self.report,
                    "a source has either `pull` or `push`, because both are at one endpoint",
                );
            }
            (None, None) if !has_envelope => {
                entry.fault(&mut self.report, "should have `pull`, `push` or `envelope: true`");
            }
            _ => {}
        }
        let is_adsbdb = matches!(&pull, Some(Some(Pull { upstream: Upstream::Adsbdb, .. })));
        let topic_field = fields.get("topic");
        let own_topic = topic_field.as_ref().map(|at| at.parsed(&mut self.report, topic));
        let has_records = pull_field.is_some() || push_field.is_some();
        if has_envelope
            && !has_records
            && let Some(event) = fields.get("event")
        {
            event.fault(&mut self.report, "an event in an envelope is complete, so `event` should be absent");
        }
        let event = self.source_event(&fields, is_adsbdb, has_records);
        let schema = fields.get("schema").map(|at| self.schema(&at));
        let delete_field = fields.get("delete");
        let has_mapping = fields.get("event").is_some() && has_records;
        let delete = delete_field.as_ref().map(|at| self.delete(at, has_mapping));
        let store = fields.get("store");
        let store = self.store(store.as_ref(), text, delete_field.is_some(), entry);
        Some(Source {
            name: name?,
            description,
            pull: flat(pull)?,
            push: push_field.is_some(),
            envelope: flat(envelope)?.unwrap_or_default(),
            topic: flat(own_topic)?,
            event: event?,
            schema: flat(schema)?,
            delete: flat(delete)?,
            store: store?,
        })
    }

    /// The mapping of a source. The outer `None` means that it has a fault.
    fn source_event(
        &mut self,
        fields: &Fields<'_>,
        is_adsbdb: bool,
        is_needed: bool,
    ) -> Option<Option<EventMapping>> {
        let field = fields.get("event");
        match field {
            Some(field) if is_adsbdb => {
                field.fault(&mut self.report, "kind adsbdb has its own mapping, so `event` should be absent");
                None
            }
            Some(field) => self.event(&field).map(Some),
            None if is_adsbdb => Some(Some(adsbdb_event())),
            None if is_needed => {
                fields.required(&mut self.report, "event");
                None
            }
            None => Some(None),
        }
    }

    fn schema(&mut self, at: &At<'_>) -> Option<Schema> {
        let text = self.file(at)?;
        Schema::parse(&text)
            .map_err(|errors| errors.iter().for_each(|error| at.fault(&mut self.report, error)))
            .ok()
    }

    /// The text of the file that a field names.
    pub(crate) fn file(&mut self, at: &At<'_>) -> Option<String> {
        let path = at.text(&mut self.report)?;
        let read = || {
            let mut text = String::new();
            let file = std::fs::File::open(self.folder.join(path))?;
            file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
            Ok(text)
        };
        let read: std::io::Result<String> = read();
        match read {
            Ok(text) if text.len() as u64 > MAX_FILE_BYTES => {
                at.fault(&mut self.report, format!("the file has more than {MAX_FILE_BYTES} bytes"));
                None
            }
            Ok(text) => Some(text),
            Err(error) => {
                at.fault(&mut self.report, format!("the file cannot be read: {error}"));
                None
            }
        }
    }
}

/// The id of an aircraft as the contract states it, and the time of acceptance.
fn adsbdb_event() -> EventMapping {
    EventMapping {
        id: IdRule { candidates: vec![IdCandidate::Aircraft], else_uuid: true },
        timestamp: TimeRule::now(),
        payload: PayloadRule::Record,
    }
}

/// An absent field is fine, a faulty one is not.
pub(crate) fn flat<T>(field: Option<Option<T>>) -> Option<Option<T>> {
    match field {
        None => Some(None),
        Some(Some(value)) => Some(Some(value)),
        Some(None) => None,
    }
}
