//! What a connection's task and the sweep over all connections tell each other.
//!
//! The task publishes how it stands when it goes to sleep; the sweep looks at all of them about once a second and wakes
//! only those that something is asked of. So an idle connection has no timer.

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
    /// Finish what was appended, then close: the broker stops.
    Drain = 2,
    /// Close: nothing happened for `connections.max.idle.ms`.
    CloseIdle = 3,
    /// Close: it holds memory that others wait for, and makes no progress.
    CloseStalled = 4,
}

impl Order {
    fn from_code(code: u8) -> Order {
        [Order::None, Order::Trim, Order::Drain, Order::CloseIdle]
            .into_iter()
            .find(|order| *order as u8 == code)
            .unwrap_or(Order::CloseStalled)
    }
}

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

    pub(crate) fn standing(&self) -> Standing {
        let bits = self.standing.load(Ordering::Relaxed);
        Standing { busy: bits & 1 != 0, amid_transfer: bits & 2 != 0, untrimmed: bits & 4 != 0 }
    }

    /// Asks something of the connection and wakes it.
    pub(crate) fn order(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::SeqCst);
        self.waker.wake();
    }

    /// What is asked; a trim is asked once.
    pub(crate) fn take_order(&self, waker: &Waker) -> Order {
        self.waker.register(waker);
        if self.order.load(Ordering::SeqCst) == Order::None as u8 {
            return Order::None;
        }
        let trim = Order::Trim as u8;
        match self.order.compare_exchange(trim, Order::None as u8, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => Order::Trim,
            Err(order) => Order::from_code(order),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heavier_order_stays_and_a_trim_is_asked_once() {
        let watch = Watch::default();
        assert_eq!(watch.take_order(Waker::noop()), Order::None);
        watch.order(Order::Trim);
        assert_eq!(watch.take_order(Waker::noop()), Order::Trim);
        assert_eq!(watch.take_order(Waker::noop()), Order::None);
        watch.order(Order::CloseStalled);
        watch.order(Order::Drain);
        assert_eq!(watch.take_order(Waker::noop()), Order::CloseStalled);
        assert_eq!(watch.take_order(Waker::noop()), Order::CloseStalled);
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
