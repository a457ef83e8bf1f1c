//! The command line.

use clap::{Parser, ValueEnum};

/// Sends the same requests to the producer, a minimal server and the original's design in turn, and prints a table.
#[derive(Clone, Debug, Parser)]
#[command(name = "bench-producer")]
pub struct Options {
    /// Only these sides.
    #[arg(long, value_delimiter = ',', default_value = "slipstream,minimal,original")]
    pub only: Vec<Name>,
    /// Connections that send at the same time, each number measured.
    #[arg(long, value_delimiter = ',', default_value = "1,32,256")]
    pub connections: Vec<u32>,
    /// The minimal server's `linger.ms`, each number measured.
    #[arg(long, value_delimiter = ',', default_value = "5,0")]
    pub linger_ms: Vec<u32>,
    /// How often each side is measured.
    #[arg(long, default_value_t = 3)]
    pub runs: u32,
    /// How long each measurement takes, after two seconds that do not count.
    #[arg(long, default_value_t = 8)]
    pub seconds: u32,
    /// Measure POST /ingest/batch of the producer instead, with so many events a request.
    #[arg(long, value_name = "EVENTS")]
    pub batch: Option<u32>,
}

/// A side of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// The producer.
    Slipstream,
    /// axum and FutureProducer, and nothing else.
    Minimal,
    /// FastAPI and kafka-python, one send that the handler waits for a request.
    Original,
    /// The producer with one record in an envelope and at sources of a file: pointers, schema, jq.
    Sources,
}
