//! The limit: a client that does nothing but write. It reads a topic and makes the commands of it before it writes the
//! first; then each connection sends one command after another, and nothing else happens in the process.

use std::time::{Duration, Instant};

use bson::{Document, RawDocumentBuf, doc};
use events::{RecordView, StorableEvent};
use mongodb::options::ClientOptions;
use mongodb::{Client, Database};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use crate::Failure;
use crate::cli::BareOptions;
use crate::collection::DATABASE;
use crate::topic::{self, PARTITIONS};

/// As many as the consumer writes at once.
const RECORDS_A_COMMAND: usize = 1000;
const READ_WITHIN: Duration = Duration::from_secs(120);

/// Writes the topic's documents and stays, so that the driver can see what it used, until it is told to stop.
pub async fn run(options: &BareOptions) -> Result<(), Failure> {
    let stop = service::tasks::stop_token()?;
    let partitions = tokio::task::block_in_place(|| read(&options.kafka, &options.topic))?;
    let mut writers = Vec::new();
    for commands in commands(options, partitions)? {
        writers.push((connect(&options.mongodb).await?, commands));
    }
    let writers = writers.into_iter().map(|(database, commands)| tokio::spawn(write(database, commands)));
    for writer in writers.collect::<Vec<_>>() {
        writer.await??;
    }
    stop.cancelled().await;
    Ok(())
}

async fn connect(uri: &str) -> Result<Database, Failure> {
    let mut options = ClientOptions::parse(uri).await?;
    options.max_pool_size = Some(1);
    let database = Client::with_options(options)?.database(DATABASE);
    database.run_command(doc! { "ping": 1 }).await?;
    Ok(database)
}

async fn write(database: Database, commands: Vec<RawDocumentBuf>) -> Result<(), Failure> {
    for command in commands {
        let reply = database.run_raw_command(command).await?;
        refuse_errors(&reply)?;
    }
    Ok(())
}

fn refuse_errors(reply: &Document) -> Result<(), Failure> {
    match ["writeErrors", "writeConcernError"].into_iter().find_map(|field| reply.get(field)) {
        Some(error) => Err(format!("a write failed: {error}").into()),
        None => Ok(()),
    }
}

/// The commands of each connection. A partition belongs to one connection, which takes its partitions in turn.
fn commands(
    options: &BareOptions,
    partitions: Vec<Vec<StorableEvent>>,
) -> Result<Vec<Vec<RawDocumentBuf>>, Failure> {
    let mut of_connections: Vec<Vec<(usize, RawDocumentBuf)>> =
        vec![Vec::new(); options.connections as usize];
    for (partition, events) in partitions.into_iter().enumerate() {
        let connection = partition % options.connections as usize;
        for (turn, chunk) in events.chunks(RECORDS_A_COMMAND).enumerate() {
            let command = crate::command::write(options.method, chunk)?;
            of_connections.get_mut(connection).ok_or("there is no connection")?.push((turn, command));
        }
    }
    let in_turn = |mut commands: Vec<(usize, RawDocumentBuf)>| {
        commands.sort_by_key(|(turn, _)| *turn);
        commands.into_iter().map(|(_, command)| command).collect()
    };
    Ok(of_connections.into_iter().map(in_turn).collect())
}

/// Every partition's events, read to the end.
fn read(kafka: &str, name: &str) -> Result<Vec<Vec<StorableEvent>>, Failure> {
    let mut config = topic::client(kafka);
    config.set("group.id", "bare").set("enable.partition.eof", "true").set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create()?;
    let mut assignment = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        assignment.add_partition_offset(name, partition, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    let mut partitions = vec![Vec::new(); usize::try_from(PARTITIONS)?];
    let (mut open, start) = (PARTITIONS, Instant::now());
    while open > 0 {
        if start.elapsed() > READ_WITHIN {
            return Err(format!("the topic {name} cannot be read to its end").into());
        }
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(record)) => {
                let (key, value) = (record.key(), record.payload().unwrap_or_default());
                let event =
                    topic::stored(&RecordView { key, value, timestamp: record.timestamp().to_millis() })?;
                let partition = usize::try_from(record.partition())?;
                partitions.get_mut(partition).ok_or("a partition too many")?.push(event);
            }
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(error)) => return Err(error.into()),
            None => {}
        }
    }
    Ok(partitions)
}
