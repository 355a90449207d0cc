//! SIGTERM and Ctrl-C. From the moment this exists none is lost, however busy whoever asks may be.

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// See the module.
#[derive(Debug)]
pub(crate) struct StopSignal {
    terminated: Signal,
    interrupted: Signal,
}

impl StopSignal {
    pub(crate) fn new() -> Result<StopSignal> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(StopSignal { terminated: listen(SignalKind::terminate())?, interrupted: listen(SignalKind::interrupt())? })
    }

    /// Completes at the next one. Dropping the wait loses nothing.
    pub(crate) async fn received(&mut self) {
        tokio::select! {
            _ = self.terminated.recv() => {}
            _ = self.interrupted.recv() => {}
        }
    }
}
