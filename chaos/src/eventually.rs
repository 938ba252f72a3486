//! Waiting for something to become true, with a limit and the last reason why it
//! was not. It does not know what.

use anyhow::{Result, bail};
use std::future::Future;
use std::time::{Duration, Instant};

/// Tries until Ok, or until `limit` is over; then the last error is the message.
pub async fn eventually<T, F>(what: &str, limit: Duration, mut attempt: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let until = Instant::now() + limit;
    let mut pause = Duration::from_millis(5);
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= until => bail!("{what}: not within {limit:?}: {error:#}"),
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}
