//! What the tests of several crates share: real servers and processes, networks with faults,
//! scripted servers.
//!
//! For tests only: a failure panics with the reason.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a test fails by panicking and prints figures")]

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

pub mod api;
pub mod failed_task;
pub mod fault_test;
pub mod http;
mod interleavings;
pub mod kafka;
pub mod load;
pub mod mongo;
pub mod monitor;
pub mod page;
pub mod process;
pub mod proxy;
pub mod scripted_mongodb;
pub mod servers;
mod sources_file;
pub mod topic_load;

pub use api::Api;
pub use fault_test::FaultTest;
pub use interleavings::interleavings;
pub use monitor::Monitor;
pub use process::Process;
pub use proxy::{HoldingProxy, Proxy};
pub use servers::{Names, Stack};
pub use sources_file::SourcesFile;
pub use testkit_macros::needs;
pub use topic_load::TopicLoad;

/// Time between two checks of a condition.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Checks `condition` until it returns a value. Panics with `what` after `timeout`.
pub async fn eventually<T, F>(what: &str, timeout: Duration, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(start.elapsed() < timeout, "{what}: not within {timeout:?}");
        tokio::time::sleep(CHECK_INTERVAL).await;
    }
}

/// Writes a self-signed certificate with CA:TRUE, as `openssl req -x509` makes it, and its key for
/// 127.0.0.1 into `folder` and returns their paths.
pub fn certificate(folder: &Path) -> (String, String) {
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("valid names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let signed = params.self_signed(&key).expect("a certificate");
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("a writable folder");
        path.to_str().expect("a path in UTF-8").to_owned()
    };
    (write("cert.pem", &signed.pem()), write("key.pem", &key.serialize_pem()))
}
