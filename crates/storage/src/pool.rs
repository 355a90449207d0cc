//! The only place of the project with threads for blocking work: cold reads, recovery, checkpoints; and, on threads of
//! their own, syncs. An acknowledgement may wait for a sync, and a disk answers hundreds of reads in the time that a client
//! is ready to wait: a sync that stood behind them in one line would be late however fast it is.
//!
//! Invariants: no more threads than at the start, in each of the two lines; never more jobs waiting in one than
//! [`QUEUE_MAX`]: whoever comes then waits without blocking its thread. No sync waits for another kind of job. A job that
//! panics panics the task that asked for it. Of what takes long and cannot wait for its turn, no more runs in place than
//! there are threads for jobs.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Semaphore, oneshot};

/// Jobs that wait or run at most, in each line.
pub const QUEUE_MAX: usize = 4096;

/// Threads for syncs to one for all else. They wait for the disk and not for a processor, and syncs of files that come to a
/// disk at once share its flushes: the more, the sooner all are done.
const SYNCS_TO_ONE: usize = 4;

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
    jobs: Line,
    syncs: Line,
    in_place: Semaphore,
}

/// Jobs of one kind, first come first served, and the threads that do them.
#[derive(Debug)]
struct Line {
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
    /// A pool of `threads` threads, at least one, and some for each of them that do nothing but syncs.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let threads = threads.max(1);
        Self::of(threads, threads * SYNCS_TO_ONE)
    }

    /// A pool of so many threads for jobs and for syncs.
    pub(crate) fn of(jobs: usize, syncs: usize) -> std::io::Result<Self> {
        let in_place = Semaphore::new(jobs);
        let (jobs, syncs) = (Line::new("disk", jobs)?, Line::new("sync", syncs)?);
        Ok(Self { kind: Kind::Threads(Arc::new(Threads { jobs, syncs, in_place })) })
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
        match &self.kind {
            Kind::Inline => job(),
            Kind::Threads(threads) => threads.jobs.run(job).await,
        }
    }

    /// The same for a sync, on a thread that does nothing else.
    pub(crate) async fn run_sync<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        match &self.kind {
            Kind::Inline => job(),
            Kind::Threads(threads) => threads.syncs.run(job).await,
        }
    }

    /// Computes something that takes long in the place where it is needed, because an order hangs on it. The tasks of the
    /// runtime's worker that this is go on with another thread meanwhile; where too many do the same, they wait.
    pub fn compute_in_place<T>(&self, job: impl FnOnce() -> T) -> T {
        let Kind::Threads(threads) = &self.kind else { return job() };
        let handed_over = Handle::try_current().is_ok_and(|h| h.runtime_flavor() == RuntimeFlavor::MultiThread);
        match threads.in_place.try_acquire() {
            Ok(_place) if handed_over => tokio::task::block_in_place(job),
            _ => job(),
        }
    }

    /// Has a sync done that another one could not do: it takes that one's place, so that nobody waits for room.
    pub(crate) fn add_sync(&self, job: impl FnOnce() + Send + 'static) {
        match &self.kind {
            Kind::Inline => job(),
            Kind::Threads(threads) => threads.syncs.shared.push(Box::new(job)),
        }
    }
}

impl Line {
    fn new(name: &str, threads: usize) -> std::io::Result<Line> {
        let shared = Arc::new(Shared::default());
        // It is closed when this is dropped, also where one of the threads is not to be had.
        let line = Line { shared: Arc::clone(&shared), room: Semaphore::new(QUEUE_MAX) };
        for i in 0..threads {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("{name}-{i}")).spawn(move || work(&shared))?;
        }
        Ok(line)
    }

    async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let room = self.room.acquire().await.expect("the semaphore is never closed");
        let (answer, answered) = oneshot::channel();
        // A caller that went away wants no answer.
        self.shared.push(Box::new(move || drop(answer.send(catch_unwind(AssertUnwindSafe(job))))));
        let outcome = answered.await.expect("every queued job runs");
        drop(room);
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl Shared {
    fn push(&self, job: Box<dyn FnOnce() + Send>) {
        self.queue.lock().expect("no holder of the lock panics").jobs.push_back(job);
        self.wake.notify_one();
    }
}

impl Drop for Line {
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
    fn what_is_computed_in_place_does_not_hold_up_the_other_tasks_of_its_worker() {
        let pool = DiskPool::new(1).unwrap();
        let worker = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (started, starts) = std::sync::mpsc::channel();
        let (done, ends) = std::sync::mpsc::channel();
        let computing = worker.spawn(async move {
            pool.compute_in_place(|| {
                started.send(()).unwrap();
                ends.recv_timeout(std::time::Duration::from_secs(30))
            })
        });
        starts.recv().unwrap();
        worker.block_on(worker.spawn(async move { done.send(()).unwrap() })).unwrap();
        assert_eq!(worker.block_on(computing).unwrap(), Ok(()), "the other task ran meanwhile");
        // Where there is no other thread, it is done all the same.
        let pool = DiskPool::new(1).unwrap();
        assert_eq!(runtime().block_on(async { pool.compute_in_place(|| 3) }), 3);
        assert_eq!(pool.compute_in_place(|| 4), 4);
    }

    #[test]
    fn a_sync_waits_for_no_other_job() {
        let pool = DiskPool::new(2).unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        runtime().block_on(async {
            let mut reads = tokio::task::JoinSet::new();
            for _ in 0..10 {
                let (pool, held) = (pool.clone(), Arc::clone(&held));
                // Each hangs until the other end is gone.
                reads.spawn(async move { pool.run(move || held.lock().unwrap().recv().is_err()).await });
            }
            assert_eq!(pool.run_sync(|| 3).await, 3);
            assert!(reads.try_join_next().is_none(), "the reads hang still");
            drop(release);
            assert!(reads.join_all().await.into_iter().all(|hung| hung));
        });
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
