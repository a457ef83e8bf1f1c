//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::workload::Workload;

/// Drains one topic with the consumer, a bare client, the original's design and MongoDB's connector, in turn.
#[derive(Debug, Parser)]
#[command(name = "bench-consumer", version, about, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What this process is, if it is not the driver.
    #[command(subcommand)]
    pub role: Option<Role>,
    /// What to measure.
    #[command(flatten)]
    pub options: Options,
}

/// What to measure.
#[derive(Debug, Args)]
pub struct Options {
    /// Events in the topic.
    #[arg(long, default_value_t = 300_000, value_parser = clap::value_parser!(u32).range(1000..=5_000_000))]
    pub records: u32,
    /// Events in the topic of the original, which is too slow for more.
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u32).range(1000..=5_000_000))]
    pub original_records: u32,
    /// How often each side is measured; the sides take turns.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub runs: u32,
    /// The sides to measure, separated by commas; the default is all but deletes.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<Name>,
    /// The workloads to measure, separated by commas; the default is both.
    #[arg(long, value_delimiter = ',')]
    pub workload: Vec<Workload>,
    /// The numbers of connections that the bare client is measured with.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 6], value_parser = clap::value_parser!(u32).range(1..=64))]
    pub connections: Vec<u32>,
    /// tasks.max of the connector.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub connector_tasks: u32,
    /// Measure how long a single event takes at low load instead.
    #[arg(long)]
    pub freshness: bool,
    /// Measure how long a single event takes while another partition catches up instead.
    #[arg(long)]
    pub catching_up: bool,
    /// Records of lag for --catching-up.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1000..=5_000_000))]
    pub lag: u32,
    /// How long --freshness sends 10 events a second, and --catching-up at most.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
}

impl Options {
    /// Whether a side is to be measured.
    pub fn takes(&self, name: Name) -> bool {
        self.only.contains(&name) || self.only.is_empty() && name != Name::Deletes
    }

    /// The workloads to measure.
    pub fn workloads(&self) -> Vec<Workload> {
        if self.workload.is_empty() { Workload::value_variants().to_vec() } else { self.workload.clone() }
    }
}

/// A side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// The consumer of this repository.
    Slipstream,
    /// The consumer of this repository, with a source that takes deletes.
    Deletes,
    /// A client that writes the same documents from memory.
    Bare,
    /// The original's design.
    Original,
    /// MongoDB's sink connector for Kafka Connect.
    Connector,
}

/// A part that runs as a child of the driver.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// Write a topic's documents from memory.
    #[command(hide = true)]
    Bare(BareOptions),
}

/// What the bare client is to write.
#[derive(Debug, Args)]
pub struct BareOptions {
    /// Kafka's bootstrap servers.
    #[arg(long)]
    pub kafka: String,
    /// The topic whose documents are written.
    #[arg(long)]
    pub topic: String,
    /// MongoDB's URI.
    #[arg(long)]
    pub mongodb: String,
    /// Connections that write at the same time.
    #[arg(long)]
    pub connections: u32,
    /// How.
    #[arg(long)]
    pub method: Method,
}

/// How the bare client writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// A plain, unordered insert.
    Insert,
    /// An upsert whose pipeline leaves a newer document as it is.
    Upsert,
}

impl Method {
    /// As the command line has it.
    pub fn text(self) -> &'static str {
        match self {
            Method::Insert => "insert",
            Method::Upsert => "upsert",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_only_every_side_is_measured() {
        let all = Cli::try_parse_from(["bench-consumer"]).unwrap().options;
        assert!(all.takes(Name::Slipstream) && all.takes(Name::Connector) && !all.takes(Name::Deletes));
        assert_eq!((all.workloads().len(), all.connections), (2, vec![1, 2, 6]));
        let some = Cli::try_parse_from(["bench-consumer", "--only", "bare,original", "--workload", "new"]);
        let some = some.unwrap().options;
        assert!(some.takes(Name::Bare) && some.takes(Name::Original) && !some.takes(Name::Slipstream));
        assert_eq!(some.workloads(), [Workload::New]);
    }
}
