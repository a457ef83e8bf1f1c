//! Apache Kafka as one KRaft node, small and quick to start: broker and controller in one JVM,
//! loopback only.

use std::path::Path;
use std::process::Stdio;

use super::class_archive;
use super::data_folder::{configure, format};
use super::listeners::Listeners;
use super::sasl::Sasl;
use crate::server::{Launch, ReadinessCheck};
use crate::{Machine, Progress, ServerError};

const CONFIGS: &str = "kafka.admin.ConfigCommand";

pub(super) async fn launch(
    machine: &Machine,
    folder: &Path,
    listeners: &Listeners,
    progress: &Progress,
) -> Result<Launch, ServerError> {
    let kafka = class_archive::prepared(machine, progress).await?;
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
    let kafka = class_archive::prepared(machine, &Progress::silent()).await?;
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
