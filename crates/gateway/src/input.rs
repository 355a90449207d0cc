//! The bytes that come in on one connection, cut into frames.
//!
//! Invariants: a frame's size is checked before a byte of it is waited for; the buffer grows with what has arrived, never
//! with what was announced alone; a small frame is charged to the budget before its body is read, of a large one what is
//! read next, in steps that grow with it; what is read ahead of that is little; each frame is split off the buffer, so that
//! whoever decodes it owns it.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use broker::budget::{Admission, Charge, MemoryBudget, SMALL_FRAME};
use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::stream::Stream;

/// The size that stands in front of a frame.
const PREFIX: usize = size_of::<i32>();
/// What is reserved where nothing is known about what comes.
const SMALL_READ: usize = 8 * 1024;
/// What has to have arrived of a frame before more than this is reserved for it.
const FIRST_READ: usize = 64 * 1024;
/// What is reserved at once for a frame whose beginning arrived, or of a size that this client sent before.
const LARGE_READ: usize = 2 * 1024 * 1024;
/// What is charged at least of a large frame whose beginning arrived, and at most at once of one that is amid its way.
const STEP_MIN: usize = 8 * 1024;
const STEP_MAX: usize = LARGE_READ;
/// What is read at most that is not charged yet: behind a frame, or before its size is known. While somebody waits for
/// memory it is [`SMALL_READ`].
const AHEAD_MAX: usize = 256 * 1024;
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
    /// The frame that begins at the buffer's beginning, once its size was read and it was admitted: its size, and what is
    /// charged of it.
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
    #[cfg(test)]
    fn is_waiting(&self) -> bool {
        self.admission.is_waiting()
    }

    /// What the budget holds for the frame that is on its way.
    pub(crate) fn held(&self) -> u64 {
        self.expected.as_ref().map_or(0, |(_, charge)| charge.bytes())
    }

    /// Does not wait for the budget any more.
    pub(crate) fn stop_waiting(&mut self) {
        self.admission.leave();
    }

    /// Whether the next frame has begun and is a large one.
    pub(crate) fn is_large(&self) -> bool {
        let announced = self.buffer.first_chunk().map_or(0, |prefix| i32::from_be_bytes(*prefix));
        usize::try_from(announced).is_ok_and(|size| size > SMALL_FRAME)
    }

    /// Looks at how far the next frame is.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Result<NextFrame, BadSize> {
        let have = self.buffer.len();
        let admitted = match &mut self.expected {
            Some((size, _)) if have >= PREFIX + *size => return Ok(NextFrame::Whole),
            Some((size, charge)) if have >= PREFIX + len(charge.bytes()) => {
                let step = have.clamp(STEP_MIN, STEP_MAX).min(PREFIX + *size - have);
                self.admission.poll_grow(cx, charge, bytes(step))
            }
            Some(_) => Poll::Ready(()),
            None => {
                let Some(prefix) = self.buffer.first_chunk::<PREFIX>() else { return Ok(NextFrame::Partial) };
                let size = self.checked(i32::from_be_bytes(*prefix))?;
                self.admit(cx, size).map(|charge| self.expected = Some((size, charge)))
            }
        };
        if admitted.is_pending() {
            return Ok(NextFrame::Unaffordable);
        }
        let whole = self.expected.as_ref().is_some_and(|(size, _)| have >= PREFIX + size);
        Ok(if whole { NextFrame::Whole } else { NextFrame::Partial })
    }

    fn checked(&self, announced: i32) -> Result<usize, BadSize> {
        let size = usize::try_from(announced).ok().filter(|size| *size > 0);
        let size = size.ok_or(BadSize::NotPositive(announced))?;
        if size > self.size_max { Err(BadSize::TooLarge { size, max: self.size_max }) } else { Ok(size) }
    }

    /// Charges a small frame, or the beginning of a large one: what is there and as much again.
    fn admit(&mut self, cx: &mut Context<'_>, size: usize) -> Poll<Charge> {
        if size <= SMALL_FRAME {
            return self.admission.poll_small(cx, bytes(size));
        }
        let have = self.buffer.len();
        let beginning = size.min(have + have.clamp(STEP_MIN, STEP_MAX));
        self.admission.poll_large(cx, bytes(beginning))
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
    pub(crate) fn poll_read(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        ready!(stream.poll_read_ready(cx))?;
        self.poll_read_from(stream, cx)
    }

    fn poll_read_from(
        &mut self,
        mut source: impl AsyncRead + Unpin,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<usize>> {
        let most = self.make_room();
        // The future keeps no state between polls, so dropping it after one poll loses nothing.
        pin!(source.read_buf(&mut (&mut self.buffer).limit(most))).poll(cx)
    }

    /// Gives memory back that an idle connection needs not.
    pub(crate) fn trim(&mut self) {
        self.typical = 0;
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// Says how much may be read: of a frame what is charged of it, and little ahead.
    fn make_room(&mut self) -> usize {
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
        let ahead = if self.admission.is_contended() { SMALL_READ } else { AHEAD_MAX };
        match &self.expected {
            Some((size, charge)) if len(charge.bytes()) < *size => PREFIX + len(charge.bytes()) - have,
            Some((size, _)) => (PREFIX + size).saturating_sub(have) + ahead,
            None => ahead,
        }
    }

    /// What may be reserved because this client has sent as much before, and nobody waits for memory.
    fn trusted(&self) -> usize {
        if self.admission.is_contended() { 0 } else { (PREFIX + self.typical).min(LARGE_READ) }
    }
}

fn bytes(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

fn len(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
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

    /// As much of a large frame as is charged at a time.
    fn feed_frame(input: &mut Input, bytes: &[u8]) {
        let mut source = std::io::Cursor::new(bytes);
        while source.position() < u64::try_from(bytes.len()).unwrap() {
            assert_eq!(next(input), Ok(NextFrame::Partial));
            let before = input.buffer.len();
            let read = input.poll_read_from(&mut source, &mut Context::from_waker(Waker::noop()));
            assert!(matches!(read, Poll::Ready(Ok(count)) if count == input.buffer.len() - before));
            let (_, charge) = input.expected.as_ref().expect("a frame that is on its way");
            assert!(input.buffer.len() <= PREFIX + len(charge.bytes()), "nothing is read that is not charged");
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
        assert!(budget.used() <= 2 * bytes(STEP_MIN), "what is announced alone is not charged: {}", budget.used());
        for _ in 0..40 {
            feed_frame(&mut input, &[7; 1000]);
        }
        assert!((40_000..=80_004).contains(&budget.used()), "what arrived and as much again: {}", budget.used());
        assert!(input.buffer.capacity() <= 2 * FIRST_READ, "{}", input.buffer.capacity());
        feed_frame(&mut input, &[7; FIRST_READ]);
        assert!(input.buffer.capacity() <= 2 * LARGE_READ, "{}", input.buffer.capacity());
    }

    #[test]
    fn a_large_frame_is_charged_whole_when_it_is_whole_and_passes_unchanged() {
        let budget = MemoryBudget::new(1 << 30);
        let mut input = input(&budget);
        let body: Vec<u8> = (0..9_000_001u32).map(|at| at.to_le_bytes()[1]).collect();
        feed(&mut input, &i32::to_be_bytes(9_000_001));
        feed_frame(&mut input, &body);
        assert_eq!((next(&mut input), budget.used()), (Ok(NextFrame::Whole), 9_000_001));
        let frame = input.take().unwrap();
        assert!(frame.bytes == body);
        drop(frame);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn half_frames_that_fill_the_budget_are_completed_one_after_the_other_and_small_ones_beside_them() {
        let budget = MemoryBudget::new(16 << 20);
        let size = 1 << 20;
        let mut inputs: Vec<Input> = (0..40).map(|_| input(&budget)).collect();
        let mut sent = vec![0; inputs.len()];
        for input in &mut inputs {
            feed(input, &i32::to_be_bytes(size));
        }
        let size = usize::try_from(size).unwrap();
        let (mut done, mut rounds) = (0, 0);
        while done < inputs.len() {
            rounds += 1;
            assert!(rounds < 10_000, "nobody gets on: {done} are done");
            for (input, sent) in inputs.iter_mut().zip(&mut sent) {
                if *sent > size {
                    continue;
                }
                match next(input).unwrap() {
                    NextFrame::Unaffordable => {}
                    NextFrame::Partial => {
                        let chunk = &[7; 60_000][..60_000.min(size - *sent)];
                        let mut source = std::io::Cursor::new(chunk);
                        let read = input.poll_read_from(&mut source, &mut Context::from_waker(Waker::noop()));
                        assert!(matches!(read, Poll::Ready(Ok(_))));
                        *sent += len(source.position());
                    }
                    NextFrame::Whole => {
                        // Only when nobody gets on otherwise: until then all hold what they have.
                        if rounds % 100 == 0 {
                            drop(input.take());
                            *sent = usize::MAX;
                            done += 1;
                        }
                    }
                }
            }
            assert!(budget.used() <= (14 << 20) + 2 * (1 << 20), "{}", budget.used());
            let mut small = self::input(&budget);
            feed(&mut small, b"\0\0\0\x01x");
            assert_eq!(next(&mut small), Ok(NextFrame::Whole), "small frames pass");
        }
        drop(inputs);
        assert_eq!((budget.used(), budget.is_contended()), (0, false));
    }

    #[test]
    fn little_is_read_ahead_while_others_wait_for_memory() {
        let budget = MemoryBudget::new(10);
        let mut input = input(&budget);
        input.typical = LARGE_READ;
        let mut source = std::io::Cursor::new(vec![7; 1 << 20]);
        let mut read = |input: &mut Input| {
            let before = source.position();
            assert!(input.poll_read_from(&mut source, &mut Context::from_waker(Waker::noop())).is_ready());
            len(source.position() - before)
        };
        assert_eq!(read(&mut input), AHEAD_MAX);
        input.buffer.clear();
        let held = budget.charge(10);
        let mut other = Admission::new(&budget);
        assert!(other.poll_small(&mut Context::from_waker(Waker::noop()), 1).is_pending());
        assert_eq!(read(&mut input), SMALL_READ);
        drop(held);
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
