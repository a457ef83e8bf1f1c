//! The stop signal. Only this module handles signals. All other code takes a [`CancellationToken`].

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Time in which a further signal counts as the same one. Terminals, shells and container runtimes
/// may send a stop signal twice.
const REPEAT_WINDOW: Duration = Duration::from_millis(500);

/// Returns a token that SIGTERM or SIGINT cancels.
///
/// A further signal within 500 ms is ignored. A later one ends the process at once with code 130.
///
/// # Errors
/// The handlers cannot be installed.
pub fn stop_token() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    tokio::spawn(async move {
        let name = either(&mut terminate, &mut interrupt).await;
        let first = Instant::now();
        tracing::info!(signal = name, "stop signal received");
        cancelled.cancel();
        loop {
            either(&mut terminate, &mut interrupt).await;
            if first.elapsed() >= REPEAT_WINDOW {
                break;
            }
        }
        tracing::warn!("second stop signal received, exiting at once");
        #[expect(clippy::disallowed_methods, reason = "a second signal must end the process at once")]
        std::process::exit(130);
    });
    Ok(stop)
}

/// Also cancels `stop` on SIGHUP, which a closed terminal sends to a foreground command.
///
/// Does nothing if the process ignores SIGHUP, as after `nohup`.
///
/// # Errors
/// The handler cannot be installed.
pub fn stop_on_hangup(stop: &CancellationToken) -> std::io::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if ignores_hangup(&status) {
        return Ok(());
    }
    let (mut hangup, stop) = (signal(SignalKind::hangup())?, stop.clone());
    tokio::spawn(async move {
        if hangup.recv().await.is_some() {
            tracing::info!(signal = "SIGHUP", "stop signal received");
            stop.cancel();
        }
    });
    Ok(())
}

/// Whether `/proc/self/status` lists SIGHUP (signal 1) as ignored.
fn ignores_hangup(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_sighup_is_recognized_in_the_process_status() {
        assert!(ignores_hangup("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"));
        assert!(!ignores_hangup("Name:\tx\nSigIgn:\t0000000000001000\n"));
        assert!(!ignores_hangup(""));
    }
}
