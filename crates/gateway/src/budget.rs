//! The memory that clients can make this broker hold: one budget for all connections (`queued.max.request.bytes`).
//!
//! A request frame is admitted while less than the capacity is in use, so that a frame larger than what is left, or than
//! the whole budget, is not refused for ever: the budget is overrun by at most one frame. Responses are charged without
//! asking, because what they carry exists by then; over the budget no frame is admitted, so no socket is read.
//!
//! Invariants: what was charged is given back exactly once, when its [`Charge`] is dropped; whoever waits is woken in the
//! order of arrival, one at a time, and passes the turn on if there is still room.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// See the module.
#[derive(Debug)]
pub struct MemoryBudget {
    capacity: u64,
    used: AtomicU64,
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
            used: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            queue: Mutex::new(Queue::default()),
        })
    }

    /// How many bytes there are.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// How many bytes are in use; it may be more than the capacity.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::SeqCst)
    }

    /// How many bytes are left.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.capacity.saturating_sub(self.used())
    }

    /// Whether somebody waits for memory.
    #[must_use]
    pub fn is_contended(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Charges `bytes` whether there is room or not.
    #[must_use]
    pub fn charge(self: &Arc<Self>, bytes: u64) -> Charge {
        self.used.fetch_add(bytes, Ordering::SeqCst);
        Charge { budget: Arc::clone(self), bytes }
    }

    fn try_admit(self: &Arc<Self>, bytes: u64) -> Option<Charge> {
        let admit = |used: u64| (used < self.capacity).then(|| used.saturating_add(bytes));
        self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, admit).ok()?;
        Some(Charge { budget: Arc::clone(self), bytes })
    }

    fn release(&self, bytes: u64) {
        let before = self.used.fetch_sub(bytes, Ordering::SeqCst);
        assert!(before >= bytes, "more memory given back than was charged: used={before} released={bytes}");
        self.maybe_wake();
    }

    /// Wakes the first who waits, if there is room.
    fn maybe_wake(&self) {
        if self.waiting.load(Ordering::SeqCst) == 0 || self.used() >= self.capacity {
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
pub(crate) struct Admission {
    budget: Arc<MemoryBudget>,
    /// Set while it waits, and until it was admitted after it was woken.
    ticket: Option<u64>,
}

impl Admission {
    /// Nobody waits yet.
    #[must_use]
    pub(crate) fn new(budget: &Arc<MemoryBudget>) -> Self {
        Self { budget: Arc::clone(budget), ticket: None }
    }

    /// Whether it waits.
    #[must_use]
    pub(crate) fn is_waiting(&self) -> bool {
        self.ticket.is_some()
    }

    /// Charges `bytes` if there is room; else the task is woken when there is.
    pub(crate) fn poll_admit(&mut self, cx: &mut Context<'_>, bytes: u64) -> Poll<Charge> {
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
        self.budget.used.fetch_add(bytes, Ordering::SeqCst);
        self.bytes += bytes;
    }

    /// Gives all back at once; the charge can be used again.
    pub fn clear(&mut self) {
        if self.bytes > 0 {
            self.budget.release(std::mem::take(&mut self.bytes));
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.clear();
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
