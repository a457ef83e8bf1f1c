//! The producer's benchmark: starts Apache Kafka, then sends the same requests to each side in turn, several times, and
//! prints a table. Everything that it starts ends with it.

mod cli;
mod load;
mod programs;
mod report;
mod side;

use std::io::Write;

use clap::Parser;
use devservers::{Broker, BrokerKind, BrokerOptions, Progress, peak_memory_bytes, processor_time};

use cli::Options;
use load::Load;
use programs::Programs;
use report::Run;
use side::Side;

/// Why there is no table, in words.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What every side sends to.
const TOPIC: &str = "events.bench";
const WARM_UP_SECONDS: u32 = 2;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let programs = Programs::prepare(&options).await?;
    let folder = tempfile::tempdir_in(programs.folder())?;
    let broker_options = BrokerOptions::new(BrokerKind::ApacheKafka, folder.path().join("kafka"));
    let broker = Broker::start(broker_options, Progress::silent()).await?;
    make_topic(&broker).await?;
    let (sides, mut runs) = (Side::all(&options), Vec::new());
    for number in 1..=options.runs {
        for connections in &options.connections {
            for side in &sides {
                let load = Load::write(folder.path(), *side, options.batch)?;
                let run = measure(*side, &programs, &broker, &load, (*connections, options.seconds)).await?;
                let rate = run.rate();
                say(&format!("run {number}, {connections} connections, {}: {rate:.0}/s", side.title()));
                runs.push(run);
            }
        }
    }
    broker.stop().await;
    writeln!(std::io::stdout(), "\n{}", report::table(&runs, &options.connections, &sides))?;
    Ok(())
}

/// As the producer would make it, so that all sides find the same.
async fn make_topic(broker: &Broker) -> Result<(), Failure> {
    let bootstrap = broker.bootstrap();
    let create = ["--create", "--topic", TOPIC, "--partitions", "6", "--bootstrap-server", &bootstrap];
    broker.tool("org.apache.kafka.tools.TopicCommand", &create).await?;
    Ok(())
}

async fn measure(
    side: Side,
    programs: &Programs,
    broker: &Broker,
    load: &Load,
    (connections, seconds): (u32, u32),
) -> Result<Run, Failure> {
    let running = side.start(programs, &broker.bootstrap(), TOPIC).await?;
    load.send(running.address, connections, WARM_UP_SECONDS).await?;
    let pid = running.child.id();
    let before = processor_time(pid)?;
    let told = load.send(running.address, connections, seconds).await?;
    let processor_time = processor_time(pid)? - before;
    let peak_memory_bytes = peak_memory_bytes(pid)?;
    Ok(Run { side, connections, told, events: load.events, processor_time, peak_memory_bytes })
}

/// A line for whoever waits.
fn say(text: &str) {
    _ = writeln!(std::io::stderr(), "{text}");
}
