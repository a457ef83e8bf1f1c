//! Preparation per Java version and Kafka release: a first run of the broker creates an archive of
//! its loaded classes (a start takes 2 s instead of 8 s) and the first metadata records of a new
//! cluster.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::data_folder::{configure, format};
use super::installation::{Kafka, class_path, flag, java};
use super::listeners::Listeners;
use super::metadata::new_cluster_id;
use crate::packages::{self, Slot};
use crate::server::{Launch, ReadinessCheck, Server};
use crate::{Machine, Progress, ServerError, address};

const BOOTSTRAP: &str = "bootstrap.checkpoint";
const ARCHIVE: &str = "classes.jsa";

/// Apache Kafka, fetched and prepared.
pub(super) async fn prepared(machine: &Machine, progress: &Progress) -> Result<Kafka, ServerError> {
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
        tracing::warn!(%error, "no class archive");
    }
    std::fs::remove_dir_all(&work).map_err(ServerError::io("removing", &work))
}

async fn make_bootstrap(kafka: &Kafka, work: &Path) -> Result<(), ServerError> {
    let properties = configure(work, &Listeners::only(address::free_port()?))?;
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
    let port = address::free_port()?;
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
