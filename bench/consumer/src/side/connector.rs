//! MongoDB's sink connector in a standalone worker of Kafka Connect, with the JVM flags of Kafka's own start script.

use std::net::TcpListener;
use std::process::Command;

use super::Places;
use crate::Failure;
use crate::collection::DATABASE;
use crate::programs::Programs;
use crate::workload::SOURCE;

/// Those of `connect-standalone.sh` and `kafka-run-class.sh`.
const JVM: [&str; 7] = [
    "-Xms256M",
    "-Xmx2G",
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
];

/// The command, its configuration written.
pub fn command(programs: &Programs, places: &Places, tasks: u32) -> Result<Command, Failure> {
    let (worker, sink) = (places.folder.join("worker.properties"), places.folder.join("sink.properties"));
    // Its REST interface must be somewhere.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    std::fs::write(&worker, worker_properties(places, port))?;
    std::fs::write(&sink, sink_properties(places, tasks))?;
    let mut command = Command::new("java");
    command.args(JVM).args(["-Djava.awt.headless=true", "-Dlog4j2.level=WARN", "-cp"]);
    command.arg(programs.connector_class_path()).arg("org.apache.kafka.connect.cli.ConnectStandalone");
    command.arg(worker).arg(sink).current_dir(&places.folder);
    Ok(command)
}

fn worker_properties(places: &Places, port: u16) -> String {
    let kafka = &places.kafka;
    format!(
        "bootstrap.servers={kafka}
key.converter=org.apache.kafka.connect.storage.StringConverter
value.converter=org.apache.kafka.connect.json.JsonConverter
value.converter.schemas.enable=false
offset.storage.file.filename=offsets
listeners=http://127.0.0.1:{port}
"
    )
}

/// The record's value is the document. It replaces the one that has its `event_id`, as in the other sides.
fn sink_properties(places: &Places, tasks: u32) -> String {
    let Places { topic, group, mongodb, .. } = places;
    format!(
        "name={group}
connector.class=com.mongodb.kafka.connect.MongoSinkConnector
tasks.max={tasks}
topics={topic}
connection.uri={mongodb}
database={DATABASE}
collection={SOURCE}
writemodel.strategy=com.mongodb.kafka.connect.sink.writemodel.strategy.ReplaceOneBusinessKeyStrategy
document.id.strategy=com.mongodb.kafka.connect.sink.processor.id.strategy.PartialValueStrategy
document.id.strategy.partial.value.projection.type=AllowList
document.id.strategy.partial.value.projection.list=event_id
bulk.write.ordered=false
"
    )
}
