//! Group commit: the syncs that are asked for at once in one log directory, as one decision.
//!
//! A ticket stands in its directory's line until a thread of the disk pool comes for it. Each thread takes one, and syncs its
//! files: syncs of different logs overlap, and each log is acknowledged as its own completes. Where [`SHARED_MIN`] or more
//! stand there by then, one thread takes them all, and one sync of the file system covers them, if the disk has such a sync
//! and says that it is worth it; who comes meanwhile waits for the next one, or, with few others, goes alone.
//!
//! Invariants: a ticket is answered by a sync that began after it was taken out of the line, and all that it covers was
//! written before it came there. One shared sync of a directory at a time: an error is told once by the system. Any error
//! takes the directory offline, all whom the sync was for hear of it, and it is never tried again (`R30`).

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::disk::SharedSync;
use crate::log::{SyncDone, SyncTicket};
use crate::pool::DiskPool;

/// From so many logs on they are synced together: as many syncs of single files, some at a time, take longer.
pub(crate) const SHARED_MIN: usize = 16;

/// The line of one log directory. See the module.
#[derive(Debug, Default)]
pub(crate) struct GroupSync {
    shared: Option<Arc<dyn SharedSync>>,
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<Waiting>,
    /// The number of the next ticket.
    next: u64,
    shared_runs: bool,
    /// Jobs that went away because a shared sync runs, and what they came for still waits.
    put_off: usize,
    /// Tickets below this go alone: a shared sync of them was found not to be worth it.
    alone_below: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    ticket: SyncTicket,
    answer: oneshot::Sender<SyncDone>,
}

enum Turn {
    Nothing,
    One(Waiting),
    All(Vec<Waiting>),
}

impl GroupSync {
    /// With a sync for all of the directory's file system, where there is one.
    pub(crate) fn new(shared: Option<Arc<dyn SharedSync>>) -> Self {
        Self { shared, line: Mutex::default() }
    }

    /// Takes a place in the line.
    fn join(&self, ticket: SyncTicket) -> (u64, oneshot::Receiver<SyncDone>) {
        let (answer, answered) = oneshot::channel();
        let mut line = self.line();
        let number = line.next;
        line.next += 1;
        line.waiting.push_back(Waiting { number, ticket, answer });
        (number, answered)
    }

    /// Syncs until the ticket of this number has been taken, by whomever.
    fn serve(self: &Arc<Self>, number: u64, pool: &DiskPool) {
        loop {
            match self.take(number) {
                Turn::Nothing => return,
                // Who went away wants no answer.
                Turn::One(waiting) => drop(waiting.answer.send(waiting.ticket.run())),
                Turn::All(waiting) => {
                    self.sync_all(waiting);
                    return self.end_shared(pool);
                }
            }
        }
    }

    fn take(&self, number: u64) -> Turn {
        let mut line = self.line();
        let Some(first) = line.waiting.front().map(|first| first.number).filter(|first| *first <= number) else {
            return Turn::Nothing;
        };
        let waiting = line.waiting.len();
        if let Some(shared) = self.shared.as_ref().filter(|_| waiting >= SHARED_MIN && first >= line.alone_below) {
            if line.shared_runs {
                line.put_off += 1;
                return Turn::Nothing;
            }
            if shared.is_worth(waiting) {
                line.shared_runs = true;
                return Turn::All(line.waiting.drain(..).collect());
            }
            line.alone_below = line.next;
        }
        line.waiting.pop_front().map_or(Turn::Nothing, Turn::One)
    }

    /// One sync for all of them.
    fn sync_all(&self, waiting: Vec<Waiting>) {
        let (tickets, answers): (Vec<_>, Vec<_>) = waiting.into_iter().map(|w| (w.ticket, w.answer)).unzip();
        let done = SyncTicket::run_together(&tickets, || {
            let shared = self.shared.as_ref().ok_or(io::ErrorKind::Unsupported)?;
            shared.sync_all()
        });
        // Who went away wants no answer.
        answers.into_iter().zip(done).for_each(|(answer, done)| drop(answer.send(done)));
    }

    /// Those who were put off come again; each of them stays until the line of now is served.
    fn end_shared(self: &Arc<Self>, pool: &DiskPool) {
        let mut line = self.line();
        line.shared_runs = false;
        let again = std::mem::take(&mut line.put_off).min(line.waiting.len()).min(SHARED_MIN);
        let last = line.next;
        drop(line);
        for _ in 0..again {
            let (group, job_pool) = (Arc::clone(self), pool.clone());
            pool.add(move || group.serve(last, &job_pool));
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SyncTicket {
    /// Syncs all files of the ticket on `pool`, in turn with others of its directory. See the module.
    ///
    /// # Panics
    /// Where the sync panicked.
    pub async fn run_in_turn(self, pool: &DiskPool) -> SyncDone {
        let group = Arc::clone(&self.env().group);
        let (number, answered) = group.join(self);
        let job_pool = pool.clone();
        pool.run(move || group.serve(number, &job_pool)).await;
        answered.await.expect("who takes a ticket answers it")
    }
}

#[cfg(test)]
mod tests;
