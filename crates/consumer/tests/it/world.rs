//! The broker that the tests of this binary share, and brokers of a test's own, to be killed.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use devservers::{Broker, BrokerKind, BrokerOptions, Progress};
use tokio::sync::OnceCell;

/// Servers' folders are named after the process that uses them; those of processes that are gone are removed.
static FOLDERS: LazyLock<PathBuf> = LazyLock::new(|| {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("consumer-brokers");
    for folder in std::fs::read_dir(&all).into_iter().flatten().flatten() {
        if !Path::new("/proc").join(folder.file_name()).exists() {
            _ = std::fs::remove_dir_all(folder.path());
        }
    }
    all.join(std::process::id().to_string())
});

/// The shared broker's bootstrap address.
pub async fn bootstrap() -> String {
    static SHARED: OnceCell<Broker> = OnceCell::const_new();
    SHARED.get_or_init(own_broker).await.bootstrap()
}

/// A broker that runs and is nobody else's.
pub async fn own_broker() -> Broker {
    let kind = BrokerKind::from_env().unwrap();
    let folder = FOLDERS.join(format!("{:016x}", fastrand::u64(..)));
    Broker::start(BrokerOptions::new(kind, folder), Progress::silent()).await.unwrap()
}

/// Whether the broker does what Apache Kafka does about sizes, fencing and data after a kill; a test that needs that
/// has nothing to say without it.
pub fn is_apache_kafka() -> bool {
    BrokerKind::from_env().unwrap() == BrokerKind::ApacheKafka
}
