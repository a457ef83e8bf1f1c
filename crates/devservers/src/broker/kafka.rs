//! Apache Kafka as one KRaft node, small and quick to start: broker and controller in one JVM,
//! loopback only.

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::listeners::{Listeners, Sasl};
use crate::error::ServerError;
use crate::machine::{self, Java, Machine, Progress};
use crate::packages::{self, Slot};
use crate::server::{Launch, ReadinessCheck, Server};

const CONFIGS: &str = "kafka.admin.ConfigCommand";

pub(super) async fn launch(
    machine: &Machine,
    folder: &Path,
    listeners: &Listeners,
    progress: &Progress,
) -> Result<Launch, ServerError> {
    let kafka = prepared(machine, progress).await?;
    let cluster_id = format(folder, &kafka.bootstrap)?;
    let mut arguments = kafka.jvm(&folder.join("broker-log4j2.yaml"));
    arguments.extend(["kafka.Kafka".into(), configure(folder, listeners)?.into_os_string()]);
    Ok(Launch {
        name: "Apache Kafka",
        program: kafka.java.program,
        arguments,
        only_path: None,
        folder: folder.to_owned(),
        log: folder.join("broker.log"),
        port: listeners.port,
        readiness_check: ReadinessCheck::Metadata { cluster_id },
    })
}

pub(super) async fn tool(
    machine: &Machine,
    folder: &Path,
    class: &str,
    arguments: &[&str],
) -> Result<String, ServerError> {
    let kafka = prepared(machine, &Progress::silent()).await?;
    let mut command = tokio::process::Command::new(&kafka.java.program);
    command.args(kafka.jvm(&folder.join("tools-log4j2.yaml"))).arg(class).args(arguments);
    command.stdin(Stdio::null()).current_dir(folder).kill_on_drop(true);
    let output = command.output().await.map_err(ServerError::io("running Java in", folder))?;
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        Ok(said.into_owned())
    } else {
        Err(ServerError::Tool { class: class.to_owned(), reason: format!("{failed}{said}") })
    }
}

/// Sets the user's SCRAM password on the running broker, which stores it in its metadata.
pub(super) async fn add_user(
    sasl: &Sasl,
    machine: &Machine,
    folder: &Path,
    bootstrap: &str,
) -> Result<(), ServerError> {
    let Sasl { user, password, .. } = sasl;
    let of_user = ["--bootstrap-server", bootstrap, "--entity-type", "users", "--entity-name", user];
    // The broker rejects both mechanisms in one request.
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let secret = format!("{mechanism}=[password={password}]");
        let alter = ["--alter", "--add-config", &secret];
        tool(machine, folder, CONFIGS, &[&of_user[..], &alter[..]].concat()).await?;
    }
    Ok(())
}

const BOOTSTRAP: &str = "bootstrap.checkpoint";
const ARCHIVE: &str = "classes.jsa";

/// Apache Kafka, fetched and prepared, per Java version and Kafka release: a first run of the
/// broker creates an archive of its loaded classes (a start takes 2 s instead of 8 s) and the first
/// metadata records of a new cluster.
async fn prepared(machine: &Machine, progress: &Progress) -> Result<Kafka, ServerError> {
    let java = java(machine)?;
    let home = packages::kafka(machine, progress).await?;
    let class_path = class_path(&home)?;
    let mut identity = DefaultHasher::new();
    (&java.version, &java.program, &class_path).hash(&mut identity);
    let name = format!("apache-kafka-4.1.0-java-{:016x}", identity.finish());
    let mut kafka = Kafka { java, class_path, class_archive: None, bootstrap: PathBuf::new() };
    let folder = match Slot::open(machine, &name, progress).await? {
        Slot::Filled(folder) => folder,
        Slot::Empty(partial) => {
            progress
                .report("preparing Apache Kafka for this Java, once, so that it starts faster from now on");
            first_run(&mut kafka, partial.folder()).await?;
            partial.finish()?
        }
    };
    kafka.bootstrap = folder.join(BOOTSTRAP);
    kafka.class_archive = Some(folder.join(ARCHIVE)).filter(|archive| archive.is_file());
    Ok(kafka)
}

/// Writes the records to the folder, and the archive if this JVM supports it.
async fn first_run(kafka: &mut Kafka, folder: &Path) -> Result<(), ServerError> {
    let work = folder.join("work");
    std::fs::create_dir(&work).map_err(ServerError::io("creating", &work))?;
    kafka.bootstrap = folder.join(BOOTSTRAP);
    make_bootstrap(kafka, &work).await?;
    if let Err(error) = make_archive(kafka, &work, &folder.join(ARCHIVE)).await {
        // Some JVMs cannot: the broker then starts in 8 s.
        tracing::warn!(%error, "class archive cannot be created, the broker starts more slowly");
    }
    std::fs::remove_dir_all(&work).map_err(ServerError::io("removing", &work))
}

async fn make_bootstrap(kafka: &Kafka, work: &Path) -> Result<(), ServerError> {
    let properties = configure(work, &Listeners::only(machine::free_port()?))?;
    let mut format = Command::new(&kafka.java.program);
    format.args(kafka.jvm(&work.join("broker-log4j2.yaml"))).args([
        "kafka.tools.StorageTool",
        "format",
        "--cluster-id",
    ]);
    format.arg(new_cluster_id()).arg("--config").arg(properties).current_dir(work);
    let tool_failed = |reason| ServerError::Tool { class: "kafka.tools.StorageTool".to_owned(), reason };
    packages::run(format, &work.join("format.log"), |_| ()).await.map_err(tool_failed)?;
    let made = work.join("data").join(BOOTSTRAP);
    std::fs::copy(&made, &kafka.bootstrap).map(drop).map_err(ServerError::io("copying", &made))
}

async fn make_archive(kafka: &Kafka, work: &Path, archive: &Path) -> Result<(), ServerError> {
    let port = machine::free_port()?;
    let cluster_id = format(work, &kafka.bootstrap)?;
    let mut arguments = vec![flag("-XX:ArchiveClassesAtExit=", archive)];
    arguments.extend(kafka.jvm(&work.join("broker-log4j2.yaml")));
    arguments.extend(["kafka.Kafka".into(), configure(work, &Listeners::only(port))?.into_os_string()]);
    let server = Server::start(Launch {
        name: "Apache Kafka",
        program: kafka.java.program.clone(),
        arguments,
        only_path: None,
        folder: work.to_owned(),
        log: work.join("broker.log"),
        port,
        readiness_check: ReadinessCheck::Metadata { cluster_id },
    });
    server.await?.stop().await;
    Ok(())
}

/// Optimized for memory and start time. A broker without memory ends.
const JVM: [&str; 7] = [
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
    "-Xshare:auto",
    "-Djava.awt.headless=true",
];

/// The installed broker: its JVM and its files.
struct Kafka {
    pub java: Java,
    pub class_path: OsString,
    /// The class archive: the broker starts in a fourth of the time.
    pub class_archive: Option<PathBuf>,
    /// The first metadata records of a new cluster.
    pub bootstrap: PathBuf,
}

/// The Java runtime, or an error that says what to install.
fn java(machine: &Machine) -> Result<Java, ServerError> {
    machine.java().ok_or_else(|| {
        let sentence = "Apache Kafka needs Java 17 or later: install it (java), choose SLIPSTREAM_BROKER=tansu, or name a \
                        running broker in KAFKA_BROKER";
        ServerError::Missing(sentence.to_owned())
    })
}

/// Sorted: a class archive is valid only for the same class path.
fn class_path(home: &Path) -> Result<OsString, ServerError> {
    let jars = home.join("jars");
    let entries = jars.read_dir().map_err(ServerError::io("reading", &jars))?;
    let mut jars: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    jars.sort();
    std::env::join_paths(jars).map_err(|error| ServerError::io("naming", home)(std::io::Error::other(error)))
}

impl Kafka {
    /// The arguments of the JVM, up to the class that is to run.
    fn jvm(&self, logging: &Path) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = JVM.map(OsString::from).into();
        if let Some(archive) = &self.class_archive {
            arguments.push(flag("-XX:SharedArchiveFile=", archive));
        }
        arguments.push(flag("-Dlog4j2.configurationFile=", logging));
        arguments.extend(["-cp".into(), self.class_path.clone()]);
        arguments
    }
}

fn flag(name: &str, path: &Path) -> OsString {
    let mut flag = OsString::from(name);
    flag.push(path);
    flag
}

const BROKER_LOGGING: &str = include_str!("../../packages/broker-log4j2.yaml");
const TOOLS_LOGGING: &str = include_str!("../../packages/tools-log4j2.yaml");

/// Formats a new data folder as `kafka-storage format` does. Returns the cluster id.
///
/// The tool would cost two more starts of a JVM. It ran once when the package was prepared, and
/// what it wrote besides the names is the same for every folder.
fn format(folder: &Path, bootstrap: &Path) -> Result<String, ServerError> {
    let data = folder.join("data");
    let properties = data.join("meta.properties");
    if let Ok(text) = std::fs::read_to_string(&properties)
        && let Some(cluster_id) = text.lines().find_map(|line| line.strip_prefix("cluster.id="))
    {
        return Ok(cluster_id.to_owned());
    }
    let (cluster_id, directory_id) = (new_cluster_id(), new_cluster_id());
    let text = format!("version=1\nnode.id=1\ncluster.id={cluster_id}\ndirectory.id={directory_id}\n");
    std::fs::create_dir_all(&data).map_err(ServerError::io("creating", &data))?;
    std::fs::copy(bootstrap, data.join("bootstrap.checkpoint"))
        .map_err(ServerError::io("copying", bootstrap))?;
    std::fs::write(&properties, text).map_err(ServerError::io("writing", &properties))?;
    Ok(cluster_id)
}

/// Writes the configuration of the broker and of its logs.
fn configure(folder: &Path, listeners: &Listeners) -> Result<PathBuf, ServerError> {
    let controller = machine::free_port()?;
    let listeners = listeners.properties(controller, folder)?;
    let controller = machine::loopback(controller);
    let properties = format!(
        "# Written at each start.
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{controller}
{listeners}# Relative to the folder that the broker is started in, so that no character of a path needs escaping.
log.dirs=data
# Topics are created by those who need them, never by a typing error.
auto.create.topics.enable=false
# One node: no copies, and no waiting for more members of a group.
group.initial.rebalance.delay.ms=0
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=2
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=2
# After a kill the node waits until its former self has timed out: 3 s and not 9.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
# Half of a small heap would be the default.
log.cleaner.dedupe.buffer.size=8388608
num.network.threads=2
num.io.threads=4
"
    );
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(ServerError::io("writing", &path))?;
        Ok(path)
    };
    write("broker-log4j2.yaml", BROKER_LOGGING)?;
    write("tools-log4j2.yaml", TOOLS_LOGGING)?;
    write("server.properties", &properties)
}

/// A random cluster id in Kafka's form: 16 bytes as 22 characters.
pub(super) fn new_cluster_id() -> String {
    let random = std::iter::repeat_with(fastrand::alphanumeric).take(21);
    random.chain(['A']).collect()
}
