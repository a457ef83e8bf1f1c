//! The broker tansu: a static binary that stores its records in memory.

use std::path::Path;

use super::metadata::new_cluster_id;
use crate::server::{Launch, ReadinessCheck};
use crate::{Machine, Progress, ServerError, address, packages};

pub(super) async fn launch(
    machine: &Machine,
    folder: &Path,
    port: u16,
    progress: &Progress,
) -> Result<Launch, ServerError> {
    let cluster_id = new_cluster_id();
    let listener = format!("tcp://{}", address::loopback(port));
    let arguments = [
        ("--cluster-id", cluster_id.as_str()),
        ("--storage-engine", "memory://tansu/"),
        ("--listener-url", &listener),
        ("--advertised-listener-url", &listener),
    ];
    Ok(Launch {
        name: "tansu",
        program: packages::tansu(machine, progress).await?,
        arguments: arguments.into_iter().flat_map(|(flag, value)| [flag.into(), value.into()]).collect(),
        only_path: Some(machine.path().clone()),
        folder: folder.to_owned(),
        log: folder.join("broker.log"),
        port,
        readiness_check: ReadinessCheck::Metadata { cluster_id },
    })
}
