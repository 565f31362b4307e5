//! How the process ends: SIGTERM or SIGINT drains, a second one ends at once.

use std::{future::Future, time::Duration};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Exit status after a second signal.
const ENDED_AT_ONCE: i32 = 1;

/// Which part of the end we are in, and which tasks must be waited for. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Cancelled when the drain begins: `/health` says 503, connections close after the answer that they are giving.
    pub drain: CancellationToken,
    /// Cancelled when the last request has ended, or the graceful timeout has: listeners and background tasks end.
    pub stop: CancellationToken,
    /// Every task of the process.
    pub tasks: TaskTracker,
}

impl Shutdown {
    /// A shutdown that nothing triggers by itself; cancel [`drain`](Self::drain) to begin it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins the drain at the first SIGTERM or SIGINT, and ends the process at the second. Call within a runtime.
    ///
    /// # Errors
    /// If the handlers cannot be installed.
    pub fn listen_to_signals(&self) -> std::io::Result<()> {
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let drain = self.drain.clone();
        let listen = async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if drain.is_cancelled() {
                    tracing::warn!("a second signal: ending at once");
                    std::process::exit(ENDED_AT_ONCE);
                }
                tracing::info!("draining: new requests are refused, those in flight may finish");
                drain.cancel();
            }
        };
        // Not tracked: it waits for a signal that may never come, until the runtime ends.
        #[expect(clippy::disallowed_methods, reason = "the drain must not wait for this task")]
        tokio::spawn(listen);
        Ok(())
    }

    /// Spawns a task that the end of the process waits for.
    pub fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: F) {
        self.tasks.spawn(task);
    }

    /// Tells every task to stop and waits for them, but no longer than `limit`. Returns whether all did.
    pub async fn finish(&self, limit: Duration) -> bool {
        self.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(limit, self.tasks.wait()).await.is_ok()
    }
}
