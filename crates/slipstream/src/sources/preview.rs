//! `slipstream sources try`: makes events and documents of a sample, with the functions that
//! producer and consumer run.

use std::fmt;
use std::io::{IsTerminal, Read};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ::sources::{Answer, Context, HttpApi, Pointer, Record, Records, Source, Sources, Upstream};
use bson::Document;
use consumer::ExpectedSources;
use consumer::mongo::{UpsertKeys, needed_indexes};
use events::{Decoded, Event, Millis, Operation, RecordView, RequestError, Rules, Violation};
use kafka::BoxError;
use producer::extraction::{Extraction, extract, payload_violations};
use producer::pull::fetch_first_page;
use serde::Serialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use service::ConfigErrors;
use service::plural::counted;

use super::{Config, TryOptions};
use crate::output;

/// Maximum size of a sample; the limit of a fetched answer too.
const MAX_SAMPLE_BYTES: u64 = 16 * 1024 * 1024;
/// Timeout of a request to ADSBDB.
const ADSBDB_TIMEOUT: Duration = Duration::from_secs(10);

/// Shows what becomes of a sample. The exit code is 1 if a record does not become an event.
pub async fn try_source(
    (source, file): (&Source, &Sources),
    config: &Config,
    options: &TryOptions,
) -> Result<ExitCode, BoxError> {
    let sample = if options.fetch { fetch_sample(source, config).await? } else { read_sample(options)? };
    let report = Report::new((source, file), config, &sample, options.show)?;
    output::write_line(if options.json { report.json()? } else { report.to_string() })?;
    Ok(if report.faulty == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn fetch_sample(source: &Source, config: &Config) -> Result<Sample, BoxError> {
    let Some(pull) = &source.pull else {
        let problem = format!("{} is no pull source; use --sample", source.name);
        return Err(ConfigErrors(vec![("--fetch".into(), problem)]).into());
    };
    let adsbdb;
    let api = match &pull.upstream {
        Upstream::Adsbdb => {
            adsbdb = adsbdb_api(&config.adsbdb)?;
            &adsbdb
        }
        Upstream::Http(api) => &**api,
    };
    let mut url = api.url.clone();
    // A secret may stand in it.
    url.set_query(url.query().is_some().then_some("***"));
    let start = Instant::now();
    let text = fetch_first_page(source.name.as_str(), api).await;
    let text = text.map_err(|error| format!("{url}: the API of {} {error}", source.name))?;
    let origin = format!("the answer of {} bytes after {} ms", text.len(), start.elapsed().as_millis());
    Ok(Sample { text, origin })
}

/// ADSBDB as an API of the file.
fn adsbdb_api(base_url: &str) -> Result<HttpApi, BoxError> {
    Ok(HttpApi {
        url: format!("{base_url}/v0/aircraft/random").parse()?,
        timeout: ADSBDB_TIMEOUT,
        headers: Vec::new(),
        auth: None,
        records: adsbdb_records()?,
        paging: None,
        wait: Vec::new(),
    })
}

fn adsbdb_records() -> Result<Records, BoxError> {
    Ok(Records::One(Pointer::parse("/response/aircraft")?))
}

fn read_sample(options: &TryOptions) -> Result<Sample, BoxError> {
    let (reader, name): (Box<dyn Read>, String) = match &options.sample {
        Some(path) if path.as_os_str() != "-" => {
            let file =
                std::fs::File::open(path).map_err(|error| format!("--sample {}: {error}", path.display()))?;
            (Box::new(file), path.display().to_string())
        }
        None if std::io::stdin().is_terminal() => {
            let problem = "not given; name a file with a sample, or use --fetch".to_owned();
            return Err(ConfigErrors(vec![("--sample".into(), problem)]).into());
        }
        _ => (Box::new(std::io::stdin()), "standard input".to_owned()),
    };
    let mut bytes = Vec::new();
    reader.take(MAX_SAMPLE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| format!("{name}: {error}"))?;
    if bytes.len() as u64 > MAX_SAMPLE_BYTES {
        return Err(format!("{name}: more than {MAX_SAMPLE_BYTES} bytes").into());
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("{name}: not UTF-8"))?;
    let origin = format!("{name}, {} bytes", text.len());
    Ok(Sample { text, origin })
}

/// An answer of an API, or the body of a push.
struct Sample {
    text: String,
    /// Where it is from, for the report.
    origin: String,
}

/// What becomes of a sample.
struct Report {
    source: String,
    origin: String,
    topic: String,
    collection: String,
    keys: Vec<String>,
    indexes: Vec<Document>,
    has_schema: bool,
    records: u64,
    /// Number of records that do not become an event.
    faulty: u64,
    /// The first events and the first records without an event.
    shown: Vec<Shown>,
}

struct Shown {
    /// From 1.
    number: u64,
    outcome: Result<Stored, Vec<String>>,
}

/// An event and its document.
struct Stored {
    envelope: String,
    /// `None` if the event deletes the document.
    document: Option<Document>,
    /// The filter that finds the document.
    filter: Document,
}

impl Report {
    fn new(
        (source, file): (&Source, &Sources),
        config: &Config,
        sample: &Sample,
        show: usize,
    ) -> Result<Self, BoxError> {
        let stores = config.stores(file)?;
        let store = config.store(source, &stores);
        let mut report = Self {
            source: source.name.to_string(),
            origin: sample.origin.clone(),
            topic: config.topic(source).to_owned(),
            collection: store.collection.clone(),
            keys: store.keys.fields().map(str::to_owned).collect(),
            indexes: needed_indexes(&store),
            has_schema: source.schema.is_some(),
            records: 0,
            faulty: 0,
            shown: Vec::new(),
        };
        serde_json::from_str::<IgnoredAny>(&sample.text)
            .map_err(|error| format!("{}: not JSON: {error}", sample.origin))?;
        let mapping = Mapping {
            source,
            stores: &stores,
            keys: &store.keys,
            api_version: &config.api_version,
            max_bytes: source.pull.is_none().then_some(config.max_payload_bytes),
            now: now()?,
        };
        let around = Answer::new(&sample.text);
        let records = records(source)?;
        for record in records.of(&sample.text).map_err(|error| format!("{}: {error}", sample.origin))? {
            let answer = source.pull.as_ref().map(|_| &around);
            report.add(mapping.apply(&record, answer), show as u64);
        }
        Ok(report)
    }

    fn add(&mut self, outcome: Result<Stored, Vec<String>>, show: u64) {
        self.records += 1;
        let earlier = if outcome.is_err() { self.faulty } else { self.records - 1 - self.faulty };
        self.faulty += u64::from(outcome.is_err());
        if earlier < show {
            self.shown.push(Shown { number: self.records, outcome });
        }
    }

    fn json(&self) -> serde_json::Result<String> {
        let shown = |shown: &Shown| {
            let (stored, faults) = match &shown.outcome {
                Ok(stored) => (Some(stored), &[][..]),
                Err(faults) => (None, faults.as_slice()),
            };
            let raw = |document: fn(&Stored) -> Option<&Document>| {
                let document = stored.and_then(document)?;
                RawValue::from_string(extended_json(document)).ok()
            };
            ShownJson {
                record: shown.number,
                envelope: stored.and_then(|stored| RawValue::from_string(stored.envelope.clone()).ok()),
                document: raw(|stored| stored.document.as_ref()),
                filter: raw(|stored| Some(&stored.filter)),
                faults: faults.to_vec(),
            }
        };
        serde_json::to_string(&ReportJson {
            source: &self.source,
            topic: &self.topic,
            collection: &self.collection,
            keys: &self.keys,
            indexes: &self.indexes,
            schema: self.has_schema,
            records: self.records,
            events: self.records - self.faulty,
            faulty: self.faulty,
            shown: self.shown.iter().map(shown).collect(),
        })
    }
}

/// The JSON form of a report. Envelopes and documents keep their order and the text of their
/// numbers.
#[derive(Serialize)]
struct ReportJson<'r> {
    source: &'r str,
    topic: &'r str,
    collection: &'r str,
    keys: &'r [String],
    indexes: &'r [Document],
    schema: bool,
    records: u64,
    events: u64,
    faulty: u64,
    shown: Vec<ShownJson>,
}

#[derive(Serialize)]
struct ShownJson {
    record: u64,
    envelope: Option<Box<RawValue>>,
    document: Option<Box<RawValue>>,
    filter: Option<Box<RawValue>>,
    faults: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} in {}", self.source, counted(self.records, "record"), self.origin)?;
        writeln!(f, "topic       {}", self.topic)?;
        writeln!(f, "collection  {}, by {}", self.collection, self.keys.join(", "))?;
        for index in &self.indexes {
            writeln!(f, "index       {}", extended_json(index))?;
        }
        for Shown { number, outcome } in &self.shown {
            writeln!(f, "record {number}")?;
            match outcome {
                Ok(Stored { envelope, document, .. }) => {
                    if self.has_schema && document.is_some() {
                        writeln!(f, "  schema    valid")?;
                    }
                    writeln!(f, "  envelope  {envelope}")?;
                    match document {
                        Some(document) => writeln!(f, "  document  {}", extended_json(document))?,
                        None => writeln!(f, "  delete    the document of this id")?,
                    }
                }
                Err(faults) => {
                    faults.iter().try_for_each(|fault| writeln!(f, "  FAULT     {fault}"))?;
                }
            }
        }
        let more = self.records - self.shown.len() as u64;
        if more > 0 {
            writeln!(f, "{} not shown", counted(more, "record"))?;
        }
        write!(
            f,
            "{}, {} without an event; nothing was sent",
            counted(self.records - self.faulty, "event"),
            counted(self.faulty, "record")
        )
    }
}

/// Where the records of a sample are. The sample of a push source is one record.
fn records(source: &Source) -> Result<Records, BoxError> {
    Ok(match source.pull.as_ref().map(|pull| &pull.upstream) {
        None => Records::One(Pointer::parse("")?),
        Some(Upstream::Adsbdb) => adsbdb_records()?,
        Some(Upstream::Http(api)) => api.records.clone(),
    })
}

/// Makes events and documents of records.
struct Mapping<'m> {
    source: &'m Source,
    stores: &'m ExpectedSources,
    keys: &'m UpsertKeys,
    api_version: &'m str,
    /// Maximum size of a body. Records of an answer have no limit of their own.
    max_bytes: Option<usize>,
    now: Millis,
}

impl Mapping<'_> {
    /// The event and its document, or every fault of the record.
    fn apply<'t>(&self, record: &Record<'t>, answer: Option<&'t Answer<'t>>) -> Result<Stored, Vec<String>> {
        if let Some(max) = self.max_bytes.filter(|max| record.text.len() > *max) {
            let bytes = counted(record.text.len() as u64, "byte");
            return Err(vec![format!("body: {bytes}, more than the {max} of MAX_PAYLOAD_BYTES")]);
        }
        let event = match self.source.event {
            Some(_) => self.extract(record, answer),
            None => self.parse(record.text),
        };
        self.store(&event?).map_err(|fault| vec![fault])
    }

    fn extract<'t>(&self, record: &Record<'t>, answer: Option<&'t Answer<'t>>) -> Result<Event, Vec<String>> {
        let context = Context { answer, key: record.key.as_deref() };
        let extracted = extract(self.source, record.text, context, self.now);
        let Extraction { event, id, .. } = extracted.map_err(|fault| texts(&fault.violations))?;
        Ok(Event::new(event, id, self.now, self.api_version))
    }

    /// The event of a body in an envelope.
    fn parse(&self, body: &str) -> Result<Event, Vec<String>> {
        let rules = Rules { accept_sources: Some(vec![self.source.name.clone()]) };
        let mut event = events::parse_request(body.as_bytes(), &rules).map_err(|error| match error {
            RequestError::Empty => vec!["the body is empty".to_owned()],
            RequestError::NotJson { message, .. } => vec![message],
            RequestError::Invalid(violations) => texts(&violations),
        })?;
        let violations = payload_violations(self.source, &event.payload);
        if !violations.is_empty() {
            return Err(texts(&violations));
        }
        let id =
            event.id.take().ok_or_else(|| vec!["id: absent; the producer would generate one".to_owned()])?;
        Ok(Event::new(event, id, self.now, self.api_version))
    }

    /// The document, as the consumer makes it of the record on the topic.
    fn store(&self, event: &Event) -> Result<Stored, String> {
        let value = event.to_json();
        let key = event.id.as_str().as_bytes();
        let record = RecordView { key: Some(key), value: &value, timestamp: Some(self.now.get()) };
        let event = match self.stores.decode(&record) {
            Ok(Decoded::Event(event)) => event,
            Ok(Decoded::OtherSource(source)) => return Err(format!("unexpected source {source}")),
            Err(poison) => return Err(format!("{}: {}", poison.class, poison.reason)),
        };
        let document = match event.operation {
            Operation::Delete => None,
            Operation::Replace => {
                let document = Document::try_from(event.document.as_ref());
                Some(document.map_err(|error| format!("document: {error}"))?)
            }
        };
        let envelope = String::from_utf8(value).map_err(|error| format!("envelope: {error}"))?;
        Ok(Stored { envelope, document, filter: self.keys.filter(&event) })
    }
}

fn texts(violations: &[Violation]) -> Vec<String> {
    violations.iter().map(ToString::to_string).collect()
}

/// The document as extended JSON, with its fields in their order.
fn extended_json(document: &Document) -> String {
    serde_json::to_string(document).unwrap_or_default()
}

fn now() -> Result<Millis, BoxError> {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let ms = i64::try_from(since_epoch.as_millis()).ok();
    ms.and_then(Millis::new).ok_or_else(|| "the clock is after the year 9999".into())
}
