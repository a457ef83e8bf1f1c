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
pub fn stop_token() -> std::io::Result<CancellationToken> {
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

/// Cancels `stop` on SIGHUP as well: the terminal of a command that runs until it is stopped was closed. Where whoever
/// started the command had it ignore that (nohup), it goes on.
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
            tracing::info!(signal = "SIGHUP", "stopping");
            stop.cancel();
        }
    });
    Ok(())
}

/// Whether SIGHUP, which is signal 1, is ignored, as the kernel tells it.
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
    fn an_ignored_hangup_is_read_from_what_the_kernel_tells() {
        assert!(ignores_hangup("Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"));
        assert!(!ignores_hangup("Name:\tx\nSigIgn:\t0000000000001000\n"));
        assert!(!ignores_hangup(""));
    }
}
