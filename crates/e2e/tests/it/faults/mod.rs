//! Each fault on its own: real processes under load, and verification at the end.

mod broker;
mod database;
mod group;
mod processes;
mod records;
mod resources;
mod storm;

use std::time::Duration;

use testkit::{FaultTest, eventually};

/// Within this time work resumes once a server is back (G6).
const RECOVERY: Duration = Duration::from_secs(5);
/// Within this time it resumes after a connection fell silent for good.
const SILENCE_NOTICED: Duration = Duration::from_secs(10);
/// So long the broker keeps the place of a member that died without a word.
const SESSION: Duration = Duration::from_secs(10);

/// The members have the six partitions in equal shares.
async fn share(trial: &FaultTest) {
    let each = 6 / trial.consumers.len();
    let shared = || async {
        for member in &trial.consumers {
            if member.assigned_partitions().await != each {
                return None;
            }
        }
        Some(())
    };
    eventually(&format!("{each} partitions each"), Duration::from_secs(60), shared).await;
}

/// How long a fault lasts.
async fn lasts(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}
