//! The whole of one command: fetch, start, fill, measure, tell.

use std::io::Write;

use crate::Failure;
use crate::cli::Options;
use crate::drain::{Drain, drain};
use crate::programs::Programs;
use crate::report::{self, Series};
use crate::sample::{Aircraft, aircraft};
use crate::side::Side;
use crate::stage::Stage;
use crate::topic::{Form, Topic};
use crate::workload::Workload;
use crate::{freshness, machine};

/// Measures what the options name and prints it.
pub async fn run(options: &Options) -> Result<(), Failure> {
    let programs = Programs::prepare(options).await?;
    let stage = Stage::start(programs.folder()).await?;
    let aircraft = aircraft()?;
    let results = if options.freshness || options.catching_up {
        freshness::measure(&stage, &programs, options, &aircraft).await?
    } else {
        drains(&stage, &programs, options, &aircraft).await?
    };
    let server = stage.database().await?.name();
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{}. Apache Kafka 4.1.0, {server}.\n\n{results}", machine::describe())?;
    Ok(())
}

/// Every side on every workload, in turn.
async fn drains(
    stage: &Stage,
    programs: &Programs,
    options: &Options,
    aircraft: &[Aircraft],
) -> Result<String, Failure> {
    let mut topics = Topics::default();
    let mut all: Vec<Series> = Vec::new();
    for workload in options.workloads() {
        for side in Side::of(options, workload) {
            topics.fill(stage, options, aircraft, (workload, side)).await?;
            all.push(Series { workload, side, drains: Vec::new() });
        }
    }
    for run in 1..=options.runs {
        for series in &mut all {
            let Series { workload, side, drains } = series;
            let topic = topics.find(*workload, *side, options).ok_or("a topic is missing")?;
            let drain = Box::pin(drain(stage, programs, *side, topic)).await?;
            tell(run, *workload, *side, &drain);
            drains.push(drain);
        }
    }
    Ok(format!("{}\n{}", report::table(&all), report::comparison(&all)))
}

fn tell(run: u32, workload: Workload, side: Side, drain: &Drain) {
    let (rate, processor) = (drain.rate(), drain.processor_us());
    let (workload, side, megabytes) = (workload.text(), side.title(), drain.peak_memory_bytes / 1_000_000);
    crate::say(&format!(
        "run {run}, {workload}, {side}: {rate:.0} records/s, {processor:.1} µs a record, {megabytes} MB"
    ));
}

/// The topics that are filled so far.
#[derive(Default)]
struct Topics(Vec<Topic>);

impl Topics {
    /// Fills the topic of a side, unless another side has the same.
    async fn fill(
        &mut self,
        stage: &Stage,
        options: &Options,
        aircraft: &[Aircraft],
        (workload, side): (Workload, Side),
    ) -> Result<(), Failure> {
        if self.find(workload, side, options).is_none() {
            let name = name(workload, side, options);
            crate::say(&format!("filling the topic {name}"));
            let events = workload.events(aircraft, side.records(options))?;
            self.0.push(Topic::filled(&stage.kafka(), &name, &events, side.form(), None).await?);
        }
        Ok(())
    }

    fn find(&self, workload: Workload, side: Side, options: &Options) -> Option<&Topic> {
        let name = name(workload, side, options);
        self.0.iter().find(|topic| topic.name == name)
    }
}

fn name(workload: Workload, side: Side, options: &Options) -> String {
    let form = if side.form() == Form::Envelope { "events" } else { "documents" };
    format!("{}-{}-{form}", workload.text(), side.records(options))
}
