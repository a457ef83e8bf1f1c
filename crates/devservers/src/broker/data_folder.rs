//! The data folder of Apache Kafka and its configuration files.
//!
//! A data folder is formatted here instead of by the tool for that, which costs two more starts of
//! a JVM: the tool ran once when the package was prepared, and what it wrote besides the names is
//! the same for every folder.

use std::path::{Path, PathBuf};

use super::listeners::Listeners;
use super::metadata::new_cluster_id;
use crate::{ServerError, address};

const BROKER_LOGGING: &str = include_str!("../../packages/broker-log4j2.yaml");
const TOOLS_LOGGING: &str = include_str!("../../packages/tools-log4j2.yaml");

/// Formats a new data folder as `kafka-storage format` does. Returns the cluster id.
pub(super) fn format(folder: &Path, bootstrap: &Path) -> Result<String, ServerError> {
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
pub(super) fn configure(folder: &Path, listeners: &Listeners) -> Result<PathBuf, ServerError> {
    let controller = address::free_port()?;
    let listeners = listeners.properties(controller, folder)?;
    let controller = address::loopback(controller);
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
