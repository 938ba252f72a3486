//! Ctrl-C and TERM as one future, so that every command ends the same way. It does not know
//! what is to be ended.

use tokio::signal::unix::{SignalKind, signal};

/// Returns at the first TERM or INT.
pub async fn stop() -> std::io::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
