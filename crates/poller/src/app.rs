//! The poller as an application: [`App::build`] binds and wires, [`App::run_until`] runs.

use std::net::SocketAddr;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use service::health::{self, Listener};
use tokio_util::sync::CancellationToken;

use crate::client::{NoClient, Producer};
use crate::config::Config;
use crate::metrics::{Progress, Tally};
use crate::poll_loop::Polling;
use crate::schedule::Schedule;

/// How long the listener may take for the requests that it has.
const LISTENER_GRACE: Duration = Duration::from_secs(1);

/// Why the poller cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on, or the listener failed.
    #[error(transparent)]
    Listener(#[from] std::io::Error),
    /// The listener ended though nobody asked it to.
    #[error("the health listener ended by itself")]
    ListenerEnded,
    /// No client.
    #[error(transparent)]
    Client(#[from] NoClient),
}

/// A poller that is ready to run.
#[derive(Debug)]
pub struct App {
    listener: Listener,
    producer: Producer,
    progress: Progress,
    schedule: Schedule,
}

impl App {
    /// Binds the listener; nothing is sent yet.
    ///
    /// # Errors
    /// The address is in use, or the system has no certificates though the producer's URL is https.
    pub async fn build(config: Config) -> Result<Self, Error> {
        Ok(Self {
            producer: Producer::new(&config)?,
            listener: Listener::bind(config.listen_addr).await?,
            progress: Progress::default(),
            schedule: Schedule::new(config.interval, config.duration),
        })
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// What it counts, also while and after it runs.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Polls until the schedule is over or `stop`; ends within 10 s of `stop`.
    ///
    /// The code is 1 if calls failed and not one succeeded. A stop before the first answer is a clean end.
    ///
    /// # Errors
    /// The listener failed.
    pub async fn run_until(self, stop: CancellationToken) -> Result<ExitCode, Error> {
        let Self { listener, producer, progress, schedule } = self;
        tracing::info!(address = %listener.address(), "listening");
        let over = CancellationToken::new();
        let routes = health::routes(Arc::new(progress.clone()));
        let mut serving = pin!(listener.serve(routes, over.clone()));
        let polling = Polling { producer, progress: progress.clone(), stop };
        tokio::select! {
            ended = &mut serving => {
                ended?;
                return Err(Error::ListenerEnded);
            }
            () = polling.run(schedule) => {}
        }
        let Tally { sent, failed, abandoned, skipped } = progress.tally();
        let stopped = polling.stop.is_cancelled();
        tracing::info!(sent, failed, abandoned, skipped, stopped, "polling ended");
        over.cancel();
        if let Ok(ended) = tokio::time::timeout(LISTENER_GRACE, serving).await {
            ended?;
        }
        Ok(if failed > 0 && sent == 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}
