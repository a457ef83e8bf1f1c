//! The sources of the file, with what the producer keeps of each.

use std::collections::HashMap;
use std::sync::Arc;

use events::{Loc, NewEvent, Source as SourceName, Violation};
use sources::{Source, Sources, Upstream};

use crate::config::Config;
use crate::extraction::payload_violations;
use crate::metrics::Metrics;
use crate::pull::client::memory_permits;
use crate::pull::puller::Puller;

/// The sources of SOURCES_FILE. Without a file it is empty.
#[derive(Debug)]
pub struct SourceSet {
    file: Option<Arc<Sources>>,
    /// KAFKA_TOPIC.
    topic: Arc<str>,
    /// The topics of the sources that have their own.
    topics: HashMap<SourceName, Arc<str>>,
    /// The clients of the sources that are fetched. Sources of ADSBDB share its own client.
    pullers: HashMap<SourceName, Puller>,
}

impl SourceSet {
    /// Creates the clients. They connect at their first requests.
    ///
    /// # Errors
    /// A client cannot be created.
    pub fn new(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, String> {
        let sources = || config.sources.iter().flat_map(|sources| sources.iter());
        metrics.add_sources(sources().map(|source| &source.name));
        let (memory, mut pullers) = (memory_permits(), HashMap::new());
        for source in sources() {
            let Some(Upstream::Http(api)) = source.pull.as_ref().map(|pull| &pull.upstream) else { continue };
            let puller = Puller::new(&source.name, api, Arc::clone(&memory), Arc::clone(metrics));
            let puller = puller.map_err(|reason| format!("{}: {reason}", source.name))?;
            pullers.insert(source.name.clone(), puller);
        }
        let topics = config.sources.iter().flat_map(|sources| sources.iter());
        let topics = topics.filter_map(|source| Some((source.name.clone(), source.topic.as_deref()?.into())));
        Ok(Self {
            file: config.sources.clone(),
            topic: config.topic.name.as_str().into(),
            topics: topics.collect(),
            pullers,
        })
    }

    /// The client of a source that is fetched, and what is kept of its fetches.
    pub fn puller(&self, source: &SourceName) -> Option<&Puller> {
        self.pullers.get(source)
    }

    /// Whether there is a sources file.
    pub fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// The source with this name.
    pub fn get(&self, name: &str) -> Option<&Source> {
        self.file.as_ref()?.get(name)
    }

    /// Checks an event that was sent in an envelope: the sources of the file have their own
    /// endpoints, unless they say `envelope: true`. Their schema then applies to the payload.
    ///
    /// # Errors
    /// The violations.
    pub fn check_envelope(&self, event: &NewEvent) -> Result<(), Vec<Violation>> {
        let Some(source) = self.get(event.source.as_str()) else { return Ok(()) };
        let name = &source.name;
        if !source.envelope {
            let loc = vec![Loc::Name("body".into()), Loc::Name("source".into())];
            let msg = match source.pull {
                Some(_) => format!("Source is fetched by POST /ingest/{name}, without a body"),
                None => format!("Records of this source should be sent to POST /ingest/{name}"),
            };
            return Err(vec![Violation { loc, msg, kind: "source_endpoint" }]);
        }
        let violations = payload_violations(source, &event.payload);
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    }

    /// The topic of the events of a source.
    pub fn topic_of(&self, source: &SourceName) -> &Arc<str> {
        self.topics.get(source).unwrap_or(&self.topic)
    }
}
