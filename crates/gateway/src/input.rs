//! The bytes that come in on one connection, cut into frames.
//!
//! Invariants: a frame's size is checked before a byte of it is waited for; the buffer grows with what has arrived, never
//! with what was announced alone; a frame is charged to the budget before its body is read; each frame is split off the
//! buffer, so that whoever decodes it owns it.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use broker::budget::{Admission, Charge, MemoryBudget};
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;

/// The size that stands in front of a frame.
const PREFIX: usize = size_of::<i32>();
/// What is reserved where nothing is known about what comes.
const SMALL_READ: usize = 8 * 1024;
/// What has to have arrived of a frame before more than this is reserved for it.
const FIRST_READ: usize = 64 * 1024;
/// What is reserved at once for a frame whose beginning arrived, or of a size that this client sent before.
const LARGE_READ: usize = 2 * 1024 * 1024;
/// With so much room left in the buffer nothing is reserved for small frames.
const ROOM_MIN: usize = 256;

/// What is wrong with the size in front of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum BadSize {
    /// It is zero or negative: no Kafka client, or not the beginning of a frame.
    #[error("a frame of {0} bytes was announced: this port speaks Kafka's protocol, without TLS")]
    NotPositive(i32),
    /// It is over `socket.request.max.bytes`.
    #[error(
        "a frame of {size} bytes was announced, at most {max} are taken: raise socket.request.max.bytes, or send less at once"
    )]
    TooLarge {
        /// What was announced.
        size: usize,
        /// What is taken.
        max: usize,
    },
}

/// How far the next frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NextFrame {
    /// It is there.
    Whole,
    /// More has to be read.
    Partial,
    /// The budget is used up: nothing is to be read. The task is woken when there is room.
    Unaffordable,
}

/// A frame without the size in front of it.
#[derive(Debug)]
pub(crate) struct Frame {
    /// Its bytes.
    pub(crate) bytes: BytesMut,
    /// What it takes of the budget.
    pub(crate) charge: Charge,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Input {
    buffer: BytesMut,
    /// The frame that begins at the buffer's beginning, once its size was read and charged.
    expected: Option<(usize, Charge)>,
    /// The size of the last frame, as a guess of the next: this client has sent that many bytes.
    typical: usize,
    admission: Admission,
    size_max: usize,
}

impl Input {
    pub(crate) fn new(budget: &Arc<MemoryBudget>, size_max: usize) -> Self {
        let admission = Admission::new(budget);
        Self { buffer: BytesMut::new(), expected: None, typical: 0, admission, size_max }
    }

    /// Whether a frame has begun that is not complete.
    pub(crate) fn is_amid_frame(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Whether the next frame waits for the budget.
    pub(crate) fn is_waiting(&self) -> bool {
        self.admission.is_waiting()
    }

    /// Looks at how far the next frame is.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Result<NextFrame, BadSize> {
        if self.expected.is_none() {
            let Some(prefix) = self.buffer.first_chunk::<PREFIX>() else { return Ok(NextFrame::Partial) };
            let announced = i32::from_be_bytes(*prefix);
            let size = usize::try_from(announced).ok().filter(|size| *size > 0);
            let size = size.ok_or(BadSize::NotPositive(announced))?;
            if size > self.size_max {
                return Err(BadSize::TooLarge { size, max: self.size_max });
            }
            let bytes = u64::try_from(size).unwrap_or(u64::MAX);
            match self.admission.poll_admit(cx, bytes) {
                Poll::Ready(charge) => self.expected = Some((size, charge)),
                Poll::Pending => return Ok(NextFrame::Unaffordable),
            }
        }
        let whole = self.expected.as_ref().is_some_and(|(size, _)| self.buffer.len() >= PREFIX + size);
        Ok(if whole { NextFrame::Whole } else { NextFrame::Partial })
    }

    /// Takes the next frame, if it is whole.
    pub(crate) fn take(&mut self) -> Option<Frame> {
        let (size, charge) = self.expected.take_if(|(size, _)| self.buffer.len() >= PREFIX + *size)?;
        self.typical = size;
        let mut bytes = self.buffer.split_to(PREFIX + size);
        bytes::Buf::advance(&mut bytes, PREFIX);
        Some(Frame { bytes, charge })
    }

    /// Reads once. `Ready(0)`: the client has closed its side.
    pub(crate) fn poll_read(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        // No memory is taken for a connection that sends nothing.
        ready!(stream.poll_read_ready(cx))?;
        self.poll_read_from(stream, cx)
    }

    fn poll_read_from(
        &mut self,
        mut source: impl AsyncRead + Unpin,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<usize>> {
        self.make_room();
        // The future keeps no state between polls, so dropping it after one poll loses nothing.
        pin!(source.read_buf(&mut self.buffer)).poll(cx)
    }

    /// Gives memory back that an idle connection needs not.
    pub(crate) fn trim(&mut self) {
        self.typical = 0;
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    fn make_room(&mut self) {
        let have = self.buffer.len();
        let (least, wanted) = match &self.expected {
            Some((size, _)) => {
                let trusted = if have >= FIRST_READ { LARGE_READ.max(have.saturating_mul(4)) } else { FIRST_READ };
                let target = (PREFIX + size).min(trusted.max(self.trusted()));
                let missing = target.saturating_sub(have).max(1);
                (missing, missing)
            }
            None => (ROOM_MIN.max(self.trusted()), SMALL_READ.max(self.trusted())),
        };
        if self.buffer.capacity() - have < least {
            self.buffer.reserve(wanted);
        }
    }

    /// What may be reserved because this client has sent as much before.
    fn trusted(&self) -> usize {
        (PREFIX + self.typical).min(LARGE_READ)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn input(budget: &Arc<MemoryBudget>) -> Input {
        Input::new(budget, 1 << 30)
    }

    fn next(input: &mut Input) -> Result<NextFrame, BadSize> {
        input.poll_next(&mut Context::from_waker(Waker::noop()))
    }

    fn feed(input: &mut Input, bytes: &[u8]) {
        let mut source = std::io::Cursor::new(bytes);
        while source.position() < u64::try_from(bytes.len()).unwrap() {
            let read = input.poll_read_from(&mut source, &mut Context::from_waker(Waker::noop()));
            assert!(matches!(read, Poll::Ready(Ok(count)) if count > 0));
        }
    }

    #[test]
    fn frames_that_arrive_byte_by_byte_or_together_are_cut_apart() {
        let budget = MemoryBudget::new(1 << 20);
        let mut input = input(&budget);
        let wire = b"\0\0\0\x03abc\0\0\0\x01x\0\0\0\x02yz";
        for byte in &wire[..6] {
            feed(&mut input, &[*byte]);
            assert_eq!(next(&mut input), Ok(NextFrame::Partial));
            assert!(input.take().is_none());
        }
        feed(&mut input, &wire[6..]);
        for expected in ["abc", "x", "yz"] {
            assert_eq!(next(&mut input), Ok(NextFrame::Whole));
            assert_eq!(input.take().unwrap().bytes, expected);
        }
        assert_eq!(next(&mut input), Ok(NextFrame::Partial));
        assert!(!input.is_amid_frame());
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_size_that_cannot_be_is_refused_before_anything_is_read() {
        let budget = MemoryBudget::new(1 << 20);
        for (prefix, error) in [
            (0, BadSize::NotPositive(0)),
            (-1, BadSize::NotPositive(-1)),
            (i32::MIN, BadSize::NotPositive(i32::MIN)),
            (101, BadSize::TooLarge { size: 101, max: 100 }),
        ] {
            let mut input = Input::new(&budget, 100);
            feed(&mut input, &i32::to_be_bytes(prefix));
            assert_eq!(next(&mut input), Err(error));
            assert_eq!(budget.used(), 0);
        }
    }

    #[test]
    fn an_announced_frame_takes_no_memory_before_it_arrives() {
        let budget = MemoryBudget::new(1 << 30);
        let mut input = input(&budget);
        feed(&mut input, &i32::to_be_bytes(100 << 20));
        assert_eq!(next(&mut input), Ok(NextFrame::Partial));
        assert_eq!(budget.used(), 100 << 20, "but it is charged");
        for _ in 0..40 {
            feed(&mut input, &[7; 1000]);
        }
        assert!(input.buffer.capacity() <= 2 * FIRST_READ, "{}", input.buffer.capacity());
        feed(&mut input, &[7; FIRST_READ]);
        assert!(input.buffer.capacity() <= 2 * LARGE_READ, "{}", input.buffer.capacity());
    }

    #[test]
    fn a_trimmed_buffer_holds_nothing() {
        let budget = MemoryBudget::new(1 << 20);
        let mut input = input(&budget);
        feed(&mut input, b"\0\0\0\x01x");
        assert_eq!(next(&mut input), Ok(NextFrame::Whole));
        drop(input.take());
        input.trim();
        assert_eq!(input.buffer.capacity(), 0);
    }

    #[test]
    fn over_the_budget_the_frame_is_not_taken() {
        let budget = MemoryBudget::new(10);
        let held = budget.charge(10);
        let mut input = input(&budget);
        feed(&mut input, b"\0\0\0\x01x");
        assert_eq!(next(&mut input), Ok(NextFrame::Unaffordable));
        assert!(input.take().is_none());
        assert!(input.is_waiting());
        drop(held);
        assert_eq!(next(&mut input), Ok(NextFrame::Whole));
        assert!(!input.is_waiting());
    }
}
