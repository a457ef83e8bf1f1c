//! The end of a run, step by step: nothing new is sent, then nothing is sent again, then nothing is waited for. Every run
//! with an end in time or in number ends, whatever the producer does.

use std::time::Duration;

use service::lock::lock;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::options::LoadOptions;
use super::run::Run;

/// How long the requests in hand may still be answered after the run was told to stop.
const FINISH_LIMIT: Duration = Duration::from_secs(8);
/// How often the progress is looked at.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// How far the end is.
#[derive(Debug, Default)]
pub struct Ending {
    /// Every event was sent.
    pub exhausted: CancellationToken,
    /// Nothing new is sent.
    pub no_more: CancellationToken,
    /// Nothing is sent again.
    pub give_up: CancellationToken,
    /// Nothing is waited for.
    pub cut: CancellationToken,
}

impl Run {
    /// Takes the steps when their time has come. Never returns.
    pub async fn watch(&self, options: &LoadOptions, started: Instant, stop: &CancellationToken) {
        // On a schedule, what is late is made up for, as long as the grace period lasts.
        let catches_up = options.rate.is_some();
        let late = if catches_up { options.grace } else { Duration::ZERO };
        let new_until = options.run_for.map(|run_for| started + run_for + late);
        let mut grace = options.grace;
        tokio::select! {
            () = at(new_until) => grace -= late,
            () = self.stalled(grace), if new_until.is_none() => grace = Duration::ZERO,
            () = self.ending.exhausted.cancelled() => {}
            () = stop.cancelled() => {}
        }
        self.ending.no_more.cancel();
        tokio::select! {
            () = sleep(grace) => {}
            () = stop.cancelled() => {}
        }
        self.ending.give_up.cancel();
        if stop.is_cancelled() {
            sleep(FINISH_LIMIT).await;
        }
        self.ending.cut.cancel();
        // The workers end by themselves now.
        std::future::pending::<()>().await;
    }

    /// Returns when no event was answered for good for `limit` although some wait for that; never for a run that has no
    /// end in number.
    async fn stalled(&self, limit: Duration) {
        if self.planned.is_none() {
            return std::future::pending().await;
        }
        let (mut progress, mut since) = (0, Instant::now());
        while since.elapsed() < limit {
            sleep(LOOK_PERIOD.min(limit)).await;
            let (sent, finished) = {
                let tally = lock(&self.tally);
                (tally.events, tally.finished())
            };
            if sent == finished || finished > progress {
                (progress, since) = (finished, Instant::now());
            }
        }
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
