//! The sides: what each is started with.

mod connector;
mod running;

use std::path::PathBuf;
use std::process::Command;

pub use running::Running;

use crate::Failure;
use crate::cli::{Method, Name, Options};
use crate::collection::{Collection, DATABASE};
use crate::programs::Programs;
use crate::stage::Stage;
use crate::topic::Form;
use crate::workload::{SOURCE, Workload};

/// One side of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The consumer of this repository.
    Slipstream,
    /// The consumer of this repository, with a source that takes deletes.
    Deletes,
    /// A client that writes from memory.
    Bare {
        /// How it writes.
        method: Method,
        /// How many connections write at the same time.
        connections: u32,
    },
    /// The original's design.
    Original,
    /// MongoDB's sink connector.
    Connector {
        /// Its `tasks.max`.
        tasks: u32,
    },
}

/// Where a side reads and writes.
#[derive(Debug, Clone)]
pub struct Places {
    /// Kafka's bootstrap servers.
    pub kafka: String,
    /// The topic.
    pub topic: String,
    /// MongoDB's URI.
    pub mongodb: String,
    /// A consumer group that nobody used before.
    pub group: String,
    /// A folder of the side's own.
    pub folder: PathBuf,
}

impl Places {
    /// A topic and a collection, and a group and a folder that nobody used before.
    pub fn new(stage: &Stage, topic: &str, collection: &Collection) -> Result<Places, Failure> {
        let folder = stage.folder("side")?;
        let group = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Places { kafka: stage.kafka(), topic: topic.to_owned(), mongodb: collection.uri(), group, folder })
    }
}

impl Side {
    /// The sides that are measured on a workload.
    pub fn of(options: &Options, workload: Workload) -> Vec<Side> {
        let method = match workload {
            Workload::New => Method::Insert,
            Workload::Repeats => Method::Upsert,
        };
        let bare =
            options.connections.iter().map(|connections| Side::Bare { method, connections: *connections });
        let bare = bare.filter(|_| options.takes(Name::Bare));
        let mut sides: Vec<Side> = Side::consumers(options);
        let place = usize::from(options.takes(Name::Slipstream));
        sides.splice(place..place, bare);
        sides
    }

    /// The sides that read a topic themselves.
    pub fn consumers(options: &Options) -> Vec<Side> {
        let all = [
            (Name::Slipstream, Side::Slipstream),
            (Name::Deletes, Side::Deletes),
            (Name::Original, Side::Original),
            (Name::Connector, Side::Connector { tasks: options.connector_tasks }),
        ];
        all.into_iter().filter(|(name, _)| options.takes(*name)).map(|(_, side)| side).collect()
    }

    /// As the tables have it.
    pub fn title(self) -> String {
        let plural = |number: u32| if number == 1 { "" } else { "s" };
        match self {
            Side::Slipstream => "slipstream".to_owned(),
            Side::Deletes => "slipstream with deletes".to_owned(),
            Side::Bare { method, connections } => {
                format!("bare {}, {connections} connection{}", method.text(), plural(connections))
            }
            Side::Original => "original".to_owned(),
            Side::Connector { tasks } => format!("connector, {tasks} task{}", plural(tasks)),
        }
    }

    /// What it can read.
    pub fn form(self) -> Form {
        if matches!(self, Side::Connector { .. }) { Form::Document } else { Form::Envelope }
    }

    /// How many records it is given.
    pub fn records(self, options: &Options) -> u32 {
        if self == Side::Original { options.original_records.min(options.records) } else { options.records }
    }

    /// Starts it.
    pub fn start(self, programs: &Programs, places: &Places) -> Result<Running, Failure> {
        let command = match self {
            Side::Slipstream => slipstream(programs, places),
            Side::Deletes => {
                let file = places.folder.join("sources.yaml");
                std::fs::write(
                    &file,
                    format!(
                        "sources: {{{SOURCE}: {{pull: {{kind: adsbdb}}, envelope: true, delete: {{}}}}}}\n"
                    ),
                )?;
                let mut command = slipstream(programs, places);
                command.env("SOURCES_FILE", file);
                command
            }
            Side::Bare { method, connections } => bare(method, connections, places)?,
            Side::Original => {
                let mut command = Command::new(programs.python());
                command.arg(programs.original_consumer()).envs(environment(places));
                command
            }
            Side::Connector { tasks } => connector::command(programs, places, tasks)?,
        };
        Running::start(command, &places.folder)
    }
}

fn environment(places: &Places) -> [(&'static str, &str); 6] {
    [
        ("KAFKA_BROKER", places.kafka.as_str()),
        ("KAFKA_TOPIC", places.topic.as_str()),
        ("KAFKA_GROUP_ID", places.group.as_str()),
        ("MONGODB_URI", places.mongodb.as_str()),
        ("MONGODB_DB", DATABASE),
        ("EXPECTED_SOURCE", SOURCE),
    ]
}

/// Exactly the variables that it needs: none of the user's own may change what is measured.
fn slipstream(programs: &Programs, places: &Places) -> Command {
    let mut command = Command::new(programs.binary("consumer"));
    command.env_clear().envs(environment(places)).env("LISTEN_ADDR", "127.0.0.1:0");
    command
}

fn bare(method: Method, connections: u32, places: &Places) -> Result<Command, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("bare").args([
        "--kafka",
        &places.kafka,
        "--topic",
        &places.topic,
        "--mongodb",
        &places.mongodb,
    ]);
    command.args(["--method", method.text(), "--connections", &connections.to_string()]);
    Ok(command)
}
