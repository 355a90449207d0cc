//! A machine of a run: a runtime of its own, whose clock stands still between its turns, so that a crash is the end of that
//! runtime with everything that ran in it.

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

/// What all hosts have done before the next one does more.
pub const TICK: Duration = Duration::from_millis(1);

/// See the module.
#[derive(Debug)]
pub struct Host {
    runtime: Option<Runtime>,
}

impl Host {
    /// A process that begins now.
    #[must_use]
    pub fn new() -> Host {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        Host { runtime: Some(runtime.expect("a runtime without drivers needs nothing of the system")) }
    }

    /// Begins a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(task);
        }
    }

    /// Does what there is to do in so many milliseconds: more than one is the end of a pause.
    pub fn step(&self, ms: u64) {
        if let Some(runtime) = &self.runtime {
            runtime.block_on(async {
                if ms > 1 {
                    tokio::time::advance(Duration::from_millis(ms - 1)).await;
                }
                // The clock goes on only when nothing is left to do.
                tokio::time::sleep(TICK).await;
            });
        }
    }

    /// Looks at something by the clock of this host.
    pub fn look<T>(&self, look: impl FnOnce() -> T) -> T {
        let _inside = self.runtime.as_ref().map(Runtime::enter);
        look()
    }
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}
