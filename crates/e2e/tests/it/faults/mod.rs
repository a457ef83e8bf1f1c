//! One fault per test: real processes under load, and verification at the end.

mod broker;
mod database;
mod group;
mod processes;
mod records;
mod resources;
mod storm;

use std::time::Duration;

use testkit::{FaultTest, eventually};

/// Duration of an outage of the network: longer than the session timeout and than
/// DELIVERY_TIMEOUT_MS, both 10 s.
const OUTAGE: Duration = Duration::from_secs(15);
/// Duration of a pause of a consumer or poller: longer than all its timeouts, which are at most 10
/// s.
const PAUSE: Duration = Duration::from_secs(20);
/// Maximum time until work resumes after a server returned (G6).
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time until work resumes after a connection became half-open (G6).
const SILENCE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time until the broker removes a member that was killed: `session.timeout.ms`.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits until each member has the same number of the six partitions.
async fn wait_for_equal_shares(test: &FaultTest) {
    let each = 6 / test.consumers.len();
    let shared = || async {
        for member in &test.consumers {
            if member.assigned_partitions().await != each {
                return None;
            }
        }
        Some(())
    };
    eventually(&format!("{each} partitions each"), Duration::from_secs(60), shared).await;
}

async fn wait_seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}
