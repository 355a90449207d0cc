//! The memory that this broker holds for others: one budget for all of it.
//!
//! | what | charged |
//! |---|---|
//! | a request frame of at most [`SMALL_FRAME`] | its size, from when it is announced until it is answered |
//! | a larger one | what has arrived of it and what is read next, until it is answered |
//! | the records of a fetch | what may be read, before it is read; then what was read, until it is written |
//! | those that are sent from their file | nothing; where they have to be loaded after all, what is loaded, some at a time |
//! | another response of 4 KiB or more | its size, until it is written |
//! | records decompressed | as they come out, until they are looked through |
//! | a replication stream that this broker leads | its window of what is not acknowledged, and a message, while it stands (`replica.fetch.response.max.bytes`, `R62`) |
//! | one on which it follows | what the transport holds of it, while it stands (`rpc::net::STREAM_BYTES`) |
//! | the tail cache | all that it may ever hold, from the start on |
//!
//! Who asks does so in one of two lanes. The *bulk* lane, large frames and fetches, may fill all but a reserve: an eighth of
//! the room, at most 32 MiB. The *small* lane, small frames, may fill the reserve as well: large transfers do not keep small
//! requests out. In each lane whoever comes first is first served. A fetch gets what it wants, but no more than half of what
//! is left unless that is less than a part ([`PART_MIN`]): so many fetches at once share.
//!
//! Nobody who asks is refused for ever: the last one admitted may overrun the budget by what it asked for, a small frame or a
//! step of a large one. And large frames that each hold a part while none can be completed do not wait for each other: the
//! first in the bulk lane, if there is no room for it, is admitted *over the budget* to its end: what it takes is beside the
//! capacity. There is one such at a time, until all of it is given back; that it does not stall is for whoever serves it (`gateway::listener`). All else is
//! charged without asking, because it exists by then. What stands for long, streams, takes its room from the requests, but
//! never more than half of it: many peers do not keep clients out. The tail cache stands beside the capacity: its size is
//! chosen apart, and takes nothing from the requests.
//!
//! Invariants: what was charged is given back exactly once, when its [`Charge`] or [`Standing`] is dropped; nobody overtakes
//! who waits in the same lane; the first of a lane is woken when it can go on, and wakes the next when it was served or goes
//! away.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

/// Up to this size a frame is small.
pub const SMALL_FRAME: usize = 64 * 1024;
/// A fetch is not given less than this, unless it wants less.
pub const PART_MIN: u64 = 1 << 20;
/// The most that is kept for small frames.
const RESERVE_MAX: u64 = 32 << 20;

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
    /// Whether somebody was admitted over the budget.
    overdrawn: AtomicBool,
    /// What it took since: it takes nothing from the others.
    beyond: AtomicU64,
    /// How many wait, by lane: looked at on every release, so that releasing needs no lock while nobody waits.
    waiting: [AtomicUsize; 2],
    queue: Mutex<Queue>,
    contention: Notify,
}

/// Who waits, by lane and the order of arrival. A waker is taken out when its task is woken.
#[derive(Debug, Default)]
struct Queue {
    next_ticket: u64,
    lanes: [BTreeMap<u64, Option<Waker>>; 2],
}

/// How far somebody may fill the budget.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lane {
    Small = 0,
    Bulk = 1,
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
            overdrawn: AtomicBool::new(false),
            beyond: AtomicU64::new(0),
            waiting: Default::default(),
            queue: Mutex::default(),
            contention: Notify::new(),
        })
    }

    /// What was given to [`MemoryBudget::new`].
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// How many bytes are in use, by all; it may be more than the capacity.
    #[must_use]
    pub fn used(&self) -> u64 {
        let parts = [&self.passing, &self.beyond, &self.streams, &self.beside];
        parts.into_iter().map(|part| part.load(Ordering::SeqCst)).sum()
    }

    /// How many bytes are left for requests and what follows from them.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.limit(Lane::Small).saturating_sub(self.passing.load(Ordering::SeqCst))
    }

    /// How far a lane may fill the budget. Requests have at least half of the capacity.
    fn limit(&self, lane: Lane) -> u64 {
        let room = self.capacity - self.streams.load(Ordering::SeqCst).min(self.capacity / 2);
        match lane {
            Lane::Small => room,
            Lane::Bulk => room - (room / 8).min(RESERVE_MAX),
        }
    }

    /// Whether somebody waits for memory.
    #[must_use]
    pub fn is_contended(&self) -> bool {
        self.waiting.iter().any(|waiting| waiting.load(Ordering::SeqCst) > 0)
    }

    /// Waits until somebody begins to wait for memory where nobody did, or has since this was last asked. For one caller.
    pub async fn contention(&self) {
        self.contention.notified().await;
    }

    /// Charges `bytes` whether there is room or not.
    #[must_use]
    pub fn charge(self: &Arc<Self>, bytes: u64) -> Charge {
        if bytes > 0 {
            self.passing.fetch_add(bytes, Ordering::SeqCst);
        }
        Charge { budget: Arc::clone(self), bytes, over: false, beyond: 0 }
    }

    /// Charges for a fetch as much of `wanted` as it may have now, at least `least`; nothing if it would have to wait.
    #[must_use]
    pub fn try_part(self: &Arc<Self>, wanted: u64, least: u64) -> Charge {
        let mut charge = self.charge(0);
        if self.nobody_waits(Lane::Bulk) {
            charge.bytes = self.try_take(Lane::Bulk, &part(wanted, least)).unwrap_or(0);
        }
        charge
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

    fn nobody_waits(&self, lane: Lane) -> bool {
        self.waiting[lane as usize].load(Ordering::SeqCst) == 0
    }

    /// Whether something is admitted: always if there is nothing else.
    fn has_room(passing: u64, limit: u64) -> bool {
        passing < limit || passing == 0
    }

    /// Charges what `ask` makes of what is left, if anything is; says how much.
    fn try_take(&self, lane: Lane, ask: &impl Fn(u64) -> u64) -> Option<u64> {
        let limit = self.limit(lane);
        let mut taken = 0;
        let take = |passing: u64| {
            taken = ask(limit.saturating_sub(passing));
            Self::has_room(passing, limit).then(|| passing.saturating_add(taken))
        };
        self.passing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).ok()?;
        Some(taken)
    }

    fn release(&self, part: &AtomicU64, bytes: u64) {
        let before = part.fetch_sub(bytes, Ordering::SeqCst);
        assert!(before >= bytes, "more memory given back than was charged: used={before} released={bytes}");
        self.maybe_wake();
    }

    /// Wakes the first of each lane that can go on.
    fn maybe_wake(&self) {
        for lane in [Lane::Small, Lane::Bulk] {
            if self.nobody_waits(lane) {
                continue;
            }
            let room = Self::has_room(self.passing.load(Ordering::SeqCst), self.limit(lane));
            if room || (lane == Lane::Bulk && !self.overdrawn.load(Ordering::SeqCst)) {
                let first = |queue: &mut Queue| queue.lanes[lane as usize].first_entry()?.get_mut().take();
                if let Some(waker) = self.with_queue(first) {
                    waker.wake();
                }
            }
        }
    }

    fn with_queue<T>(&self, change: impl FnOnce(&mut Queue) -> T) -> T {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let before: usize = queue.lanes.iter().map(BTreeMap::len).sum();
        let result = change(&mut queue);
        for (waiting, lane) in self.waiting.iter().zip(&queue.lanes) {
            waiting.store(lane.len(), Ordering::SeqCst);
        }
        if before == 0 && queue.lanes.iter().any(|lane| !lane.is_empty()) {
            self.contention.notify_one();
        }
        result
    }
}

/// What a fetch that wants `wanted` takes of what is left; not less than `least`, unless it wants less.
fn part(wanted: u64, least: u64) -> impl Fn(u64) -> u64 {
    move |left| wanted.min((left / 2).max(least))
}

/// The place of one connection, or one fetch, in the queue for memory.
#[derive(Debug)]
pub struct Admission {
    budget: Arc<MemoryBudget>,
    /// Set while it waits, and until it was admitted after it was woken. Who waits and does not ask any more has to leave:
    /// nobody overtakes it.
    ticket: Option<(Lane, u64)>,
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

    /// Whether anybody waits, itself or another.
    #[must_use]
    pub fn is_contended(&self) -> bool {
        self.budget.is_contended()
    }

    /// Charges the `bytes` of a small frame if there is room; else the task is woken when there is.
    pub fn poll_small(&mut self, cx: &mut Context<'_>, bytes: u64) -> Poll<Charge> {
        let mut charge = self.budget.charge(0);
        self.poll_take(cx, Lane::Small, &mut charge, &|_| bytes).map(|()| charge)
    }

    /// Charges the first `bytes` of a large frame if there is room; else the task is woken when there is.
    pub fn poll_large(&mut self, cx: &mut Context<'_>, bytes: u64) -> Poll<Charge> {
        let mut charge = self.budget.charge(0);
        self.poll_grow(cx, &mut charge, bytes).map(|()| charge)
    }

    /// Adds the next `bytes` of a large frame to its charge if there is room; else the task is woken when there is.
    pub fn poll_grow(&mut self, cx: &mut Context<'_>, charge: &mut Charge, bytes: u64) -> Poll<()> {
        self.poll_take(cx, Lane::Bulk, charge, &|_| bytes)
    }

    /// Charges for a fetch as much of `wanted` as it may have now, at least `least`; else the task is woken.
    pub fn poll_part(&mut self, cx: &mut Context<'_>, wanted: u64, least: u64) -> Poll<Charge> {
        let mut charge = self.budget.charge(0);
        self.poll_take(cx, Lane::Bulk, &mut charge, &part(wanted, least)).map(|()| charge)
    }

    fn poll_take(
        &mut self,
        cx: &mut Context<'_>,
        lane: Lane,
        charge: &mut Charge,
        ask: &impl Fn(u64) -> u64,
    ) -> Poll<()> {
        if charge.over {
            charge.add(ask(0));
            return Poll::Ready(());
        }
        if self.ticket.is_none()
            && self.budget.nobody_waits(lane)
            && let Some(taken) = self.budget.try_take(lane, ask)
        {
            charge.bytes += taken;
            return Poll::Ready(());
        }
        // What is released from here on sees somebody to wake.
        if self.enter(cx, lane) && self.take_as_first(lane, charge, ask) {
            self.leave();
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Takes a place in the queue, or keeps it; says whether it is the first.
    fn enter(&mut self, cx: &mut Context<'_>, lane: Lane) -> bool {
        let held = self.ticket;
        let (ticket, first) = self.budget.with_queue(|queue| {
            let ticket = held.map_or(queue.next_ticket, |(_, ticket)| ticket);
            queue.next_ticket = queue.next_ticket.max(ticket + 1);
            let waiting = &mut queue.lanes[lane as usize];
            waiting.insert(ticket, Some(cx.waker().clone()));
            (ticket, waiting.first_key_value().is_some_and(|(first, _)| *first == ticket))
        });
        self.ticket = Some((lane, ticket));
        first
    }

    fn take_as_first(&self, lane: Lane, charge: &mut Charge, ask: &impl Fn(u64) -> u64) -> bool {
        if let Some(taken) = self.budget.try_take(lane, ask) {
            charge.bytes += taken;
            return true;
        }
        if lane == Lane::Bulk && !self.budget.overdrawn.swap(true, Ordering::SeqCst) {
            charge.over = true;
            charge.add(ask(0));
            return true;
        }
        false
    }

    /// Leaves the queue, whether it was served or not, and lets the next one have its turn.
    pub fn leave(&mut self) {
        if let Some((lane, ticket)) = self.ticket.take() {
            self.budget.with_queue(|queue| queue.lanes[lane as usize].remove(&ticket));
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
    /// Whether this is the one that was admitted over the budget.
    over: bool,
    /// What it took from then on.
    beyond: u64,
}

impl Charge {
    /// How many.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes + self.beyond
    }

    /// Adds to it, whether there is room or not.
    pub fn add(&mut self, bytes: u64) {
        let (part, own) =
            if self.over { (&self.budget.beyond, &mut self.beyond) } else { (&self.budget.passing, &mut self.bytes) };
        part.fetch_add(bytes, Ordering::SeqCst);
        *own += bytes;
    }

    /// The same, of a length.
    pub fn add_len(&mut self, bytes: usize) {
        self.add(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// Makes it `bytes`, whether there is room or not.
    pub fn set(&mut self, bytes: u64) {
        let now = self.bytes();
        if bytes > now {
            self.add(bytes - now);
        } else if bytes < now {
            let beyond = self.beyond.min(now - bytes);
            let less = now - bytes - beyond;
            self.beyond -= beyond;
            self.bytes -= less;
            self.budget.beyond.fetch_sub(beyond, Ordering::SeqCst);
            self.budget.release(&self.budget.passing, less);
        }
    }

    /// Takes over what another one of the same budget holds.
    pub fn absorb(&mut self, mut other: Charge) {
        self.bytes += std::mem::take(&mut other.bytes);
        self.beyond += std::mem::take(&mut other.beyond);
        self.over |= std::mem::take(&mut other.over);
    }

    /// Gives all back at once; the charge can be used again.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.over) {
            self.budget.beyond.fetch_sub(std::mem::take(&mut self.beyond), Ordering::SeqCst);
            self.budget.overdrawn.store(false, Ordering::SeqCst);
            self.budget.release(&self.budget.passing, std::mem::take(&mut self.bytes));
        } else if self.bytes > 0 {
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
        match place.poll_small(&mut Context::from_waker(&waker), bytes) {
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
        assert!(admit(&mut two, &second, 1).is_some());
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

    fn part_of(place: &mut Admission, count: &Arc<Count>, wanted: u64) -> Option<Charge> {
        let waker = Waker::from(Arc::clone(count));
        match place.poll_part(&mut Context::from_waker(&waker), wanted, PART_MIN) {
            Poll::Ready(charge) => Some(charge),
            Poll::Pending => None,
        }
    }

    fn grow(place: &mut Admission, count: &Arc<Count>, charge: &mut Charge, bytes: u64) -> bool {
        let waker = Waker::from(Arc::clone(count));
        place.poll_grow(&mut Context::from_waker(&waker), charge, bytes).is_ready()
    }

    #[test]
    fn fetches_share_what_is_left_and_leave_the_reserve_to_small_frames() {
        let budget = MemoryBudget::new(256 << 20);
        let count = Arc::new(Count::default());
        let mut places: Vec<Admission> = (0..400).map(|_| Admission::new(&budget)).collect();
        let parts: Vec<Option<Charge>> = places.iter_mut().map(|place| part_of(place, &count, 50 << 20)).collect();
        let given: Vec<u64> = parts.iter().flatten().map(Charge::bytes).collect();
        assert_eq!(given[..3], [50 << 20; 3], "the first get all that they want");
        assert!(given.iter().all(|bytes| *bytes >= PART_MIN));
        assert!(given.len() < 30, "most of them wait");
        assert!(budget.used() <= (224 << 20) + 2 * PART_MIN, "{}", budget.used());
        let mut small = Admission::new(&budget);
        assert!(admit(&mut small, &count, 1_000).is_some(), "a small frame does not wait behind them");
        drop((parts, places));
        assert_eq!((budget.used(), budget.is_contended()), (0, false));
    }

    #[test]
    fn nobody_overtakes_who_waits_in_the_same_lane() {
        let budget = MemoryBudget::new(100);
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let (mut one, mut two) = (Admission::new(&budget), Admission::new(&budget));
        let held = budget.charge(100);
        assert!(admit(&mut one, &first, 100).is_none());
        drop(held);
        assert_eq!(woken(&first), 1);
        assert!(admit(&mut two, &second, 100).is_none(), "the first was woken and has not run yet");
        let taken = admit(&mut one, &first, 100).unwrap();
        assert_eq!(woken(&second), 0, "there is no room for it");
        drop(taken);
        assert_eq!(woken(&second), 1);
    }

    #[test]
    fn large_frames_that_hold_all_of_it_are_completed_one_after_the_other() {
        let budget = MemoryBudget::new(1_000);
        let counts: Vec<Arc<Count>> = (0..10).map(|_| Arc::default()).collect();
        let mut places: Vec<Admission> = counts.iter().map(|_| Admission::new(&budget)).collect();
        let mut charges: Vec<Charge> = counts.iter().map(|_| budget.charge(100)).collect();
        let others = budget.charge(900);
        for (at, charge) in charges.iter_mut().enumerate() {
            assert_eq!(grow(&mut places[at], &counts[at], charge, 100), at == 0, "the first goes on over the budget");
        }
        for at in 0..9 {
            assert!(grow(&mut places[at], &counts[at], &mut charges[at], 100), "whoever is over it goes on to its end");
            assert!(budget.used() <= 2_200, "one at a time: {}", budget.used());
            assert_eq!(woken(&counts[at + 1]), 0);
            charges[at].clear();
            assert_eq!(woken(&counts[at + 1]), 1);
            let mut next = std::mem::replace(&mut charges[at + 1], budget.charge(0));
            assert!(grow(&mut places[at + 1], &counts[at + 1], &mut next, 100));
            charges[at + 1] = next;
        }
        drop((charges, places, others));
        assert_eq!((budget.used(), budget.is_contended()), (0, false));
    }

    #[test]
    fn who_was_admitted_over_the_budget_gives_that_on_when_all_of_it_is_given_back() {
        let budget = MemoryBudget::new(100);
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let (mut one, mut two) = (Admission::new(&budget), Admission::new(&budget));
        let held = budget.charge(200);
        let over = part_of(&mut one, &first, 10).unwrap();
        assert!(part_of(&mut two, &second, 10).is_none());
        let mut answer = budget.charge(0);
        answer.absorb(over);
        answer.set(5);
        assert_eq!((budget.used(), woken(&second), budget.passing.load(Ordering::SeqCst)), (205, 0, 200));
        drop(answer);
        assert_eq!((budget.used(), woken(&second)), (200, 1));
        assert!(part_of(&mut two, &second, 10).is_some());
        drop(held);
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
