//! Waits for a condition with a deadline.

use std::future::Future;
use std::time::{Duration, Instant};

/// Time between two checks of a condition.
const INTERVAL: Duration = Duration::from_millis(20);

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
        tokio::time::sleep(INTERVAL).await;
    }
}
