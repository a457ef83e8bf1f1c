//! The stop signal. This is the one place that listens to signals; everything else takes a
//! [`CancellationToken`].

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Terminals, shells and container runtimes may send one stop signal twice.
const REPEAT_WINDOW: Duration = Duration::from_millis(500);

/// A token that SIGTERM or SIGINT cancels. A further signal within 500 ms is ignored; a later one
/// ends the process at once with code 130.
///
/// # Errors
/// The handlers cannot be installed.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    tokio::spawn(async move {
        let name = either(&mut terminate, &mut interrupt).await;
        let first = Instant::now();
        tracing::info!(signal = name, "stopping");
        cancelled.cancel();
        loop {
            either(&mut terminate, &mut interrupt).await;
            if first.elapsed() >= REPEAT_WINDOW {
                break;
            }
        }
        tracing::warn!("second signal, ending at once");
        #[expect(clippy::disallowed_methods, reason = "the user asked twice: nothing may delay the end")]
        std::process::exit(130);
    });
    Ok(stop)
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
