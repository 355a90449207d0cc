//! The only place of the project with threads for blocking work: fdatasync, cold reads, recovery.
//!
//! Invariants: never more threads than told at the start; never more jobs waiting than [`QUEUE_MAX`]: whoever comes
//! then waits without blocking its thread. A job that panics panics the task that asked for it.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use tokio::sync::{Semaphore, oneshot};

/// Jobs that wait or run at most.
pub const QUEUE_MAX: usize = 4096;

/// A cheap handle to the pool; the threads end when the last handle is gone.
#[derive(Clone, Debug)]
pub struct DiskPool {
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// Each job runs where it is asked for: deterministic, for simulation.
    Inline,
    Threads(Arc<Threads>),
}

#[derive(Debug)]
struct Threads {
    shared: Arc<Shared>,
    room: Semaphore,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Box<dyn FnOnce() + Send>>,
    closed: bool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl DiskPool {
    /// A pool of `threads` threads, at least one.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let pool = Threads { shared: Arc::clone(&shared), room: Semaphore::new(QUEUE_MAX) };
        for i in 0..threads.max(1) {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("disk-{i}")).spawn(move || work(&shared))?;
        }
        Ok(Self { kind: Kind::Threads(Arc::new(pool)) })
    }

    /// A pool without threads, that runs each job where it is asked for: deterministic, for simulation.
    #[must_use]
    pub fn inline() -> Self {
        Self { kind: Kind::Inline }
    }

    /// Runs `job` on a thread of the pool. Once it has a place in the queue it runs, also if the caller goes away.
    ///
    /// # Panics
    /// With the panic of the job.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let Kind::Threads(threads) = &self.kind else { return job() };
        let room = threads.room.acquire().await.expect("the semaphore is never closed");
        let (answer, answered) = oneshot::channel();
        // A caller that went away wants no answer.
        let job = move || drop(answer.send(catch_unwind(AssertUnwindSafe(job))));
        threads.shared.queue.lock().expect("no holder of the lock panics").jobs.push_back(Box::new(job));
        threads.shared.wake.notify_one();
        let outcome = answered.await.expect("every queued job runs");
        drop(room);
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.queue.lock().expect("no holder of the lock panics").closed = true;
        self.shared.wake.notify_all();
    }
}

/// Takes jobs until the pool is closed and its queue empty.
fn work(shared: &Shared) {
    loop {
        let mut queue = shared.queue.lock().expect("no holder of the lock panics");
        let job = loop {
            if let Some(job) = queue.jobs.pop_front() {
                break job;
            }
            if queue.closed {
                return;
            }
            queue = shared.wake.wait(queue).expect("no holder of the lock panics");
        };
        drop(queue);
        job();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    #[test]
    fn jobs_run_side_by_side_and_answer_their_callers() {
        let pool = DiskPool::new(2).unwrap();
        // Neither job passes the barrier unless both run at once.
        let barrier = Arc::new(Barrier::new(2));
        let (a, b) = (Arc::clone(&barrier), barrier);
        let answers = runtime()
            .block_on(async { tokio::join!(pool.run(move || (a.wait(), 1).1), pool.run(move || (b.wait(), 2).1)) });
        assert_eq!(answers, (1, 2));
        assert_eq!(runtime().block_on(DiskPool::inline().run(|| 3)), 3);
    }

    #[test]
    #[should_panic(expected = "boom")]
    fn a_panic_of_a_job_reaches_who_asked_for_it() {
        let pool = DiskPool::new(1).unwrap();
        runtime().block_on(pool.run(|| panic!("boom")))
    }

    #[test]
    fn more_jobs_than_the_queue_holds_all_run() {
        let pool = DiskPool::new(1).unwrap();
        let runtime = runtime();
        let sum: usize = runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for i in 0..QUEUE_MAX + 100 {
                let pool = pool.clone();
                tasks.spawn(async move { pool.run(move || i).await });
            }
            tasks.join_all().await.into_iter().sum()
        });
        assert_eq!(sum, (QUEUE_MAX + 100) * (QUEUE_MAX + 99) / 2);
    }
}
