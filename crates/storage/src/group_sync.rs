//! Group commit: the syncs that are asked for at once in one log directory, as one decision.
//!
//! A ticket stands in its directory's line until one of the disk pool's threads for syncs comes for it. A thread takes one,
//! and syncs its files: syncs of different logs overlap, and each log is acknowledged as its own completes. At most
//! [`ALONE_MAX`] go alone at once, so that those who come meanwhile gather; where [`SHARED_MIN`] or more have, one thread takes
//! them all, and one sync of the file system covers them, if the disk has such a sync and says that it is worth it, by what a
//! sync alone took lately. Where it has none, or says that it is not, all go alone.
//!
//! Invariants: a ticket is answered by a sync that began after it was taken out of the line, and all that it covers was
//! written before it came there. One shared sync of a directory at a time: an error is told once by the system. Any error
//! takes the directory offline, all whom the sync was for hear of it, and it is never tried again (`R30`). While somebody
//! stands in the line, a thread is at work for it: who goes away leaves it to one that is.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::disk::SharedSync;
use crate::log::{SyncDone, SyncTicket};
use crate::pool::DiskPool;

/// From so many logs on they are synced together: as many syncs of single files, some at a time, take longer.
pub(crate) const SHARED_MIN: usize = 8;
/// So many are synced each by itself at once, where a sync of all is to be had.
pub(crate) const ALONE_MAX: usize = 4;

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
    /// How many are being synced alone.
    alone: usize,
    /// A job went away although what it came for still waits: who is at work goes on until nobody does.
    left: bool,
    /// Tickets below this go alone: a shared sync of them was found not to be worth it.
    alone_below: u64,
    /// What a sync alone takes, as the last ones did.
    alone_takes: Duration,
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

    /// Syncs until the ticket of this number has been taken, by whomever, and nobody waits who was left to this thread.
    fn serve(self: &Arc<Self>, number: u64, pool: &DiskPool) {
        loop {
            match self.take(number) {
                Turn::Nothing => return,
                Turn::One(waiting) => self.sync_alone(waiting),
                Turn::All(waiting) => {
                    self.sync_all(waiting);
                    self.end_shared(pool);
                }
            }
        }
    }

    fn take(&self, number: u64) -> Turn {
        let mut line = self.line();
        let Some(first) = line.waiting.front().map(|first| first.number) else {
            line.left = false;
            return Turn::Nothing;
        };
        if first > number && !line.left {
            return Turn::Nothing;
        }
        let waiting = line.waiting.len();
        if let Some(shared) = self.shared.as_ref().filter(|_| first >= line.alone_below) {
            let gather = if waiting < SHARED_MIN { line.alone >= ALONE_MAX } else { line.shared_runs };
            if gather {
                line.left = true;
                return Turn::Nothing;
            }
            if waiting >= SHARED_MIN {
                if shared.is_worth(waiting, line.alone_takes) {
                    line.shared_runs = true;
                    return Turn::All(line.waiting.drain(..).collect());
                }
                line.alone_below = line.next;
            }
        }
        line.alone += 1;
        line.waiting.pop_front().map_or(Turn::Nothing, Turn::One)
    }

    fn sync_alone(&self, waiting: Waiting) {
        let began = Instant::now();
        let done = waiting.ticket.run();
        let took = began.elapsed();
        // Who went away wants no answer.
        drop(waiting.answer.send(done));
        let mut line = self.line();
        line.alone -= 1;
        line.alone_takes = (line.alone_takes * 7 + took) / 8;
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

    /// Those who were left to this thread may go alone now, some at once.
    fn end_shared(self: &Arc<Self>, pool: &DiskPool) {
        let mut line = self.line();
        line.shared_runs = false;
        let helpers = if line.left { line.waiting.len().min(ALONE_MAX) } else { 0 };
        let last = line.next;
        drop(line);
        for _ in 0..helpers {
            let (group, job_pool) = (Arc::clone(self), pool.clone());
            pool.add_sync(move || group.serve(last, &job_pool));
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
        let mut served = pin!(pool.run_sync(move || group.serve(number, &job_pool)));
        let mut answer = pin!(async { answered.await.expect("who takes a ticket answers it") });
        // The thread may go on for others after this one is answered.
        tokio::select! {
            biased;
            done = &mut answer => done,
            () = &mut served => answer.await,
        }
    }
}

#[cfg(test)]
mod tests;
