//! The memory that this broker holds for others: one budget for all of it.
//!
//! | what | charged |
//! |---|---|
//! | a request frame | its size, from when it is announced until it is answered (`queued.max.request.bytes`) |
//! | a response of 4 KiB or more | its size, until it is written |
//! | records decompressed | as they come out, until they are looked through |
//! | a replication stream that this broker leads | its window of what is not acknowledged, and a message, while it stands (`replica.fetch.response.max.bytes`, `R62`) |
//! | one on which it follows | what the transport holds of it, while it stands (`rpc::net::STREAM_BYTES`) |
//! | the tail cache | all that it may ever hold, from the start on |
//!
//! A request frame is admitted while there is room, so that a frame larger than what is left, or than the whole budget, is
//! not refused for ever: the budget is overrun by at most one frame. All else is charged without asking, because it exists
//! by then; over the budget no frame is admitted, so no socket is read. What stands for long, streams, takes its room from
//! the requests, but never more than half of it: many peers do not keep clients out. The tail cache stands beside the
//! capacity: its size is chosen apart, and takes nothing from the requests.
//!
//! Invariants: what was charged is given back exactly once, when its [`Charge`] or [`Standing`] is dropped; whoever waits is
//! woken in the order of arrival, one at a time, and passes the turn on if there is still room.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// See the module.
#[derive(Debug)]
pub struct MemoryBudget {
    capacity: u64,
    /// What comes and goes with requests.
    passing: AtomicU64,
    /// What takes room from them as long as it stands.
    streams: AtomicU64,
    /// What stands beside the capacity.
    beside: AtomicU64,
    /// How many wait: looked at on every release, so that releasing needs no lock while nobody waits.
    waiting: AtomicUsize,
    queue: Mutex<Queue>,
}

/// Who waits, by the order of arrival.
#[derive(Debug, Default)]
struct Queue {
    next_ticket: u64,
    wakers: BTreeMap<u64, Waker>,
}

impl MemoryBudget {
    /// A budget of `capacity` bytes.
    #[must_use]
    pub fn new(capacity: u64) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            passing: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            beside: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            queue: Mutex::new(Queue::default()),
        })
    }

    /// How many bytes are in use, by all; it may be more than the capacity.
    #[must_use]
    pub fn used(&self) -> u64 {
        let parts = [&self.passing, &self.streams, &self.beside];
        parts.into_iter().map(|part| part.load(Ordering::SeqCst)).sum()
    }

    /// How many bytes are left for requests and what follows from them.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.room().saturating_sub(self.passing.load(Ordering::SeqCst))
    }

    /// What requests may have: at least half of the capacity.
    fn room(&self) -> u64 {
        self.capacity - self.streams.load(Ordering::SeqCst).min(self.capacity / 2)
    }

    /// Whether somebody waits for memory.
    #[must_use]
    pub fn is_contended(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Charges `bytes` whether there is room or not.
    #[must_use]
    pub fn charge(self: &Arc<Self>, bytes: u64) -> Charge {
        self.passing.fetch_add(bytes, Ordering::SeqCst);
        Charge { budget: Arc::clone(self), bytes }
    }

    /// Charges what a stream can hold, as long as it stands.
    #[must_use]
    pub fn stand(self: &Arc<Self>, bytes: u64) -> Standing {
        self.streams.fetch_add(bytes, Ordering::SeqCst);
        Standing { budget: Arc::clone(self), bytes, beside: false }
    }

    /// Charges what takes nothing from the requests.
    #[must_use]
    pub fn stand_beside(self: &Arc<Self>, bytes: u64) -> Standing {
        self.beside.fetch_add(bytes, Ordering::SeqCst);
        Standing { budget: Arc::clone(self), bytes, beside: true }
    }

    fn try_admit(self: &Arc<Self>, bytes: u64) -> Option<Charge> {
        let admit = |passing: u64| (passing < self.room()).then(|| passing.saturating_add(bytes));
        self.passing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, admit).ok()?;
        Some(Charge { budget: Arc::clone(self), bytes })
    }

    fn release(&self, part: &AtomicU64, bytes: u64) {
        let before = part.fetch_sub(bytes, Ordering::SeqCst);
        assert!(before >= bytes, "more memory given back than was charged: used={before} released={bytes}");
        self.maybe_wake();
    }

    /// Wakes the first who waits, if there is room.
    fn maybe_wake(&self) {
        if self.waiting.load(Ordering::SeqCst) == 0 || self.left() == 0 {
            return;
        }
        let waker = self.with_queue(|queue| queue.wakers.pop_first());
        if let Some((_, waker)) = waker {
            waker.wake();
        }
    }

    fn with_queue<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut queue);
        self.waiting.store(queue.wakers.len(), Ordering::SeqCst);
        result
    }
}

/// The place of one connection in the queue for memory.
#[derive(Debug)]
pub struct Admission {
    budget: Arc<MemoryBudget>,
    /// Set while it waits, and until it was admitted after it was woken.
    ticket: Option<u64>,
}

impl Admission {
    /// Nobody waits yet.
    #[must_use]
    pub fn new(budget: &Arc<MemoryBudget>) -> Self {
        Self { budget: Arc::clone(budget), ticket: None }
    }

    /// Whether it waits.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.ticket.is_some()
    }

    /// Charges `bytes` if there is room; else the task is woken when there is.
    pub fn poll_admit(&mut self, cx: &mut Context<'_>, bytes: u64) -> Poll<Charge> {
        if let Some(charge) = self.budget.try_admit(bytes) {
            self.leave();
            return Poll::Ready(charge);
        }
        let ticket = self.budget.with_queue(|queue| {
            let ticket = self.ticket.unwrap_or(queue.next_ticket);
            queue.next_ticket = queue.next_ticket.max(ticket + 1);
            queue.wakers.insert(ticket, cx.waker().clone());
            ticket
        });
        self.ticket = Some(ticket);
        // What was released between the try and the entry in the queue saw nobody to wake.
        match self.budget.try_admit(bytes) {
            Some(charge) => {
                self.leave();
                Poll::Ready(charge)
            }
            None => Poll::Pending,
        }
    }

    /// Leaves the queue. A turn that was given is passed on, whether it was used or not: there may be room for more.
    fn leave(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.budget.with_queue(|queue| queue.wakers.remove(&ticket));
            self.budget.maybe_wake();
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Bytes in use, given back when dropped.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<MemoryBudget>,
    bytes: u64,
}

impl Charge {
    /// How many.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds to it, whether there is room or not.
    pub fn add(&mut self, bytes: u64) {
        self.budget.passing.fetch_add(bytes, Ordering::SeqCst);
        self.bytes += bytes;
    }

    /// The same, of a length.
    pub fn add_len(&mut self, bytes: usize) {
        self.add(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// Gives all back at once; the charge can be used again.
    pub fn clear(&mut self) {
        if self.bytes > 0 {
            self.budget.release(&self.budget.passing, std::mem::take(&mut self.bytes));
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Bytes that something may hold as long as it stands, given back when dropped.
#[derive(Debug)]
pub struct Standing {
    budget: Arc<MemoryBudget>,
    bytes: u64,
    beside: bool,
}

impl Drop for Standing {
    fn drop(&mut self) {
        let part = if self.beside { &self.budget.beside } else { &self.budget.streams };
        self.budget.release(part, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn admit(place: &mut Admission, count: &Arc<Count>, bytes: u64) -> Option<Charge> {
        let waker = Waker::from(Arc::clone(count));
        match place.poll_admit(&mut Context::from_waker(&waker), bytes) {
            Poll::Ready(charge) => Some(charge),
            Poll::Pending => None,
        }
    }

    fn woken(count: &Arc<Count>) -> usize {
        count.0.load(Ordering::SeqCst)
    }

    #[test]
    fn a_full_budget_admits_nobody_and_wakes_the_first_who_waits_when_there_is_room() {
        let budget = MemoryBudget::new(100);
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let (mut one, mut two) = (Admission::new(&budget), Admission::new(&budget));
        let held = budget.charge(100);
        assert!(admit(&mut one, &first, 1).is_none());
        assert!(admit(&mut two, &second, 1).is_none());
        assert!(budget.is_contended());
        drop(held);
        assert_eq!((woken(&first), woken(&second)), (1, 0));
        let taken = admit(&mut one, &first, 1).unwrap();
        assert_eq!(woken(&second), 1, "there is room for the second too");
        assert_eq!(taken.bytes(), 1);
        assert!(!budget.is_contended());
    }

    #[test]
    fn who_goes_away_with_the_turn_passes_it_on() {
        let budget = MemoryBudget::new(100);
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let (mut one, mut two) = (Admission::new(&budget), Admission::new(&budget));
        let held = budget.charge(100);
        assert!(admit(&mut one, &first, 1).is_none());
        assert!(admit(&mut two, &second, 1).is_none());
        drop(held);
        assert_eq!((woken(&first), woken(&second)), (1, 0));
        drop(one);
        assert_eq!(woken(&second), 1);
    }

    #[test]
    fn a_frame_larger_than_the_budget_is_admitted_alone() {
        let budget = MemoryBudget::new(100);
        let count = Arc::new(Count::default());
        let mut place = Admission::new(&budget);
        let large = admit(&mut place, &count, 1_000).unwrap();
        assert_eq!((budget.used(), budget.left()), (1_000, 0));
        assert!(admit(&mut place, &count, 1).is_none());
        drop(large);
        assert_eq!((budget.used(), woken(&count)), (0, 1));
    }

    #[test]
    fn streams_take_at_most_half_of_the_room_and_what_stands_beside_takes_nothing() {
        let budget = MemoryBudget::new(100);
        let count = Arc::new(Count::default());
        let tail = budget.stand_beside(1_000);
        assert_eq!((budget.used(), budget.left()), (1_000, 100));
        let few = budget.stand(30);
        assert_eq!((budget.used(), budget.left()), (1_030, 70));
        let many = budget.stand(500);
        assert_eq!(budget.left(), 50, "clients are not kept out");
        let (mut one, mut two) = (Admission::new(&budget), Admission::new(&budget));
        let first = admit(&mut one, &count, 50).unwrap();
        assert!(admit(&mut two, &count, 50).is_none());
        drop(many);
        assert_eq!(woken(&count), 1, "there is room where the streams were");
        let second = admit(&mut two, &count, 50).unwrap();
        assert_eq!(budget.left(), 0);
        drop((tail, few, first, second));
        assert_eq!((budget.used(), budget.left()), (0, 100));
    }

    #[test]
    fn a_response_is_charged_over_the_budget_and_given_back_once() {
        let budget = MemoryBudget::new(10);
        let mut charge = budget.charge(0);
        charge.add(50);
        assert_eq!(budget.used(), 50);
        charge.clear();
        assert_eq!(budget.used(), 0);
        drop(charge);
        assert_eq!(budget.used(), 0);
    }
}
