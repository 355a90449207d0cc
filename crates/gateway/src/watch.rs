//! What a connection's task and the sweep over all connections tell each other.
//!
//! The task publishes how it stands when it goes to sleep; the sweep looks at all of them about once a second, more often
//! while somebody waits for memory, and wakes only those that something is asked of. So an idle connection has no timer.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::Waker;

use futures_util::task::AtomicWaker;

/// What is asked of a connection; a later one in this list outweighs an earlier one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub(crate) enum Order {
    /// Nothing.
    None = 0,
    /// Give back buffers.
    Trim = 1,
    /// Close, unless it makes progress when it is asked: it holds memory that others wait for.
    CloseStalled = 2,
    /// Finish what was appended, then close: the broker stops.
    Drain = 3,
    /// Close: nothing happened for `connections.max.idle.ms`.
    CloseIdle = 4,
}

impl Order {
    fn from_code(code: u8) -> Order {
        [Order::None, Order::Trim, Order::CloseStalled, Order::Drain]
            .into_iter()
            .find(|order| *order as u8 == code)
            .unwrap_or(Order::CloseIdle)
    }
}

/// What a connection has moved at least if it made progress.
pub(crate) const PROGRESS_MIN: u64 = 64 * 1024;

/// How a connection stands while its task sleeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Standing {
    /// A request waits for its answer.
    pub(crate) busy: bool,
    /// A frame has begun, or an answer is not written.
    pub(crate) amid_transfer: bool,
    /// It may hold buffers.
    pub(crate) untrimmed: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// When bytes last moved, by the coarse clock.
    active_ms: AtomicU64,
    /// Bytes that it moved in all; [`PROGRESS_MIN`] more for each frame that was completed and each time that all was
    /// written.
    moved: AtomicU64,
    /// What it holds of the memory budget until the client does something.
    held: AtomicU64,
    /// Of the sweep alone: what `moved` was when the connection was first seen amid a transfer, and when that was.
    seen_moved: AtomicU64,
    seen_ms: AtomicU64,
    standing: AtomicU8,
    order: AtomicU8,
    waker: AtomicWaker,
}

impl Watch {
    pub(crate) fn touch(&self, now_ms: u64) {
        self.active_ms.store(now_ms, Ordering::Relaxed);
    }

    pub(crate) fn active_ms(&self) -> u64 {
        self.active_ms.load(Ordering::Relaxed)
    }

    pub(crate) fn publish(&self, standing: Standing) {
        let Standing { busy, amid_transfer, untrimmed } = standing;
        let bits = u8::from(busy) | u8::from(amid_transfer) << 1 | u8::from(untrimmed) << 2;
        self.standing.store(bits, Ordering::Relaxed);
    }

    /// Says what was moved since the connection began, and what it holds now.
    pub(crate) fn publish_memory(&self, moved: u64, held: u64) {
        self.moved.store(moved, Ordering::Relaxed);
        self.held.store(held, Ordering::Relaxed);
    }

    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// For how long the sweep has seen it amid a transfer without progress. To be asked by the sweep alone, at each look.
    pub(crate) fn stalled_ms(&self, now_ms: u64) -> u64 {
        let moved = self.moved.load(Ordering::Relaxed);
        let seen_ms = self.seen_ms.load(Ordering::Relaxed);
        let progress = moved.saturating_sub(self.seen_moved.load(Ordering::Relaxed)) >= PROGRESS_MIN;
        if self.standing().amid_transfer && !progress && seen_ms > 0 {
            return now_ms.saturating_sub(seen_ms);
        }
        self.seen_moved.store(moved, Ordering::Relaxed);
        // Zero: it was not seen amid a transfer.
        self.seen_ms.store(if self.standing().amid_transfer { now_ms.max(1) } else { 0 }, Ordering::Relaxed);
        0
    }

    pub(crate) fn standing(&self) -> Standing {
        let bits = self.standing.load(Ordering::Relaxed);
        Standing { busy: bits & 1 != 0, amid_transfer: bits & 2 != 0, untrimmed: bits & 4 != 0 }
    }

    /// Asks something of the connection and wakes it.
    pub(crate) fn order(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::SeqCst);
        self.waker.wake();
    }

    /// What is asked; what the connection may do and go on is asked once.
    pub(crate) fn take_order(&self, waker: &Waker) -> Order {
        self.waker.register(waker);
        if self.order.load(Ordering::SeqCst) == Order::None as u8 {
            return Order::None;
        }
        let once = |code| [Order::Trim, Order::CloseStalled].into_iter().any(|order| order as u8 == code);
        let take = |code| once(code).then_some(Order::None as u8);
        let taken = self.order.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        Order::from_code(taken.unwrap_or_else(|code| code))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heavier_order_stays_and_what_can_be_averted_is_asked_once() {
        let watch = Watch::default();
        assert_eq!(watch.take_order(Waker::noop()), Order::None);
        watch.order(Order::Trim);
        assert_eq!(watch.take_order(Waker::noop()), Order::Trim);
        assert_eq!(watch.take_order(Waker::noop()), Order::None);
        watch.order(Order::CloseStalled);
        watch.order(Order::Trim);
        assert_eq!(watch.take_order(Waker::noop()), Order::CloseStalled);
        assert_eq!(watch.take_order(Waker::noop()), Order::None);
        watch.order(Order::Drain);
        watch.order(Order::CloseStalled);
        assert_eq!(watch.take_order(Waker::noop()), Order::Drain);
        assert_eq!(watch.take_order(Waker::noop()), Order::Drain);
    }

    #[test]
    fn a_transfer_that_moves_too_little_from_when_it_was_first_seen_has_stalled() {
        let watch = Watch::default();
        let amid = Standing { amid_transfer: true, ..Standing::default() };
        watch.publish(amid);
        watch.publish_memory(10, 1);
        assert_eq!(watch.stalled_ms(5_000), 0, "nobody knows when it began");
        watch.publish_memory(10 + PROGRESS_MIN - 1, 1);
        assert_eq!(watch.stalled_ms(5_300), 300);
        watch.publish_memory(10 + PROGRESS_MIN, 1);
        assert_eq!(watch.stalled_ms(5_400), 0);
        assert_eq!(watch.stalled_ms(5_500), 100);
        watch.publish(Standing::default());
        assert_eq!(watch.stalled_ms(5_600), 0);
        watch.publish(amid);
        assert_eq!(watch.stalled_ms(9_000), 0);
    }

    #[test]
    fn what_is_published_is_what_is_read() {
        let watch = Watch::default();
        for busy in [false, true] {
            for amid_transfer in [false, true] {
                let standing = Standing { busy, amid_transfer, untrimmed: !busy };
                watch.publish(standing);
                assert_eq!(watch.standing(), standing);
            }
        }
    }
}
