//! The answers of one connection on their way out: chunks, written together with vectored writes, never joined.
//!
//! Invariant: `len` is the sum of the chunks' lengths; what is charged is given back when all of it is written.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use broker::budget::{Charge, MemoryBudget};
use bytes::{Buf, Bytes};
use protocol::EncodedFrame;
use tokio::io::AsyncWrite;

/// Chunks given to one write.
const SLICES: usize = 64;
/// Smaller answers are not charged: they are bounded by the requests in flight.
const CHARGED_FROM: usize = 4 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Output {
    chunks: VecDeque<Bytes>,
    len: usize,
    charge: Charge,
}

impl Output {
    pub(crate) fn new(budget: &Arc<MemoryBudget>) -> Self {
        Self { chunks: VecDeque::new(), len: 0, charge: budget.charge(0) }
    }

    /// Bytes that are not written yet.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// What the budget holds for it.
    pub(crate) fn held(&self) -> u64 {
        self.charge.bytes()
    }

    /// Adds an answer, and what was charged for it before.
    pub(crate) fn push(&mut self, frame: EncodedFrame, charge: Option<Charge>) {
        let charged = charge.as_ref().map_or(0, Charge::bytes);
        if let Some(charge) = charge {
            self.charge.absorb(charge);
        }
        if frame.len >= CHARGED_FROM {
            self.charge.add(u64::try_from(frame.len).unwrap_or(u64::MAX).saturating_sub(charged));
        }
        self.len += frame.len;
        self.chunks.extend(frame.chunks);
    }

    /// Writes as much as the socket takes now, at least something; `Pending` if it takes nothing.
    pub(crate) fn poll_write(
        &mut self,
        mut stream: impl AsyncWrite + Unpin,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let count = self.chunks.len().min(SLICES);
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            *slice = IoSlice::new(chunk);
        }
        let written = ready!(Pin::new(&mut stream).poll_write_vectored(cx, &slices[..count]))?;
        if written == 0 {
            return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
        }
        self.advance(written);
        Poll::Ready(Ok(written))
    }

    /// Gives memory back that an idle connection needs not.
    pub(crate) fn trim(&mut self) {
        if self.chunks.is_empty() {
            self.chunks = VecDeque::new();
        }
    }

    fn advance(&mut self, mut written: usize) {
        self.len -= written;
        while let Some(chunk) = self.chunks.front_mut() {
            if written < chunk.len() {
                chunk.advance(written);
                break;
            }
            written -= chunk.len();
            self.chunks.pop_front();
        }
        if self.chunks.is_empty() {
            self.charge.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Takes a few bytes at a time.
    struct Narrow(Vec<u8>);

    impl AsyncWrite for Narrow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
            let count = bytes.len().min(3_000);
            self.0.extend_from_slice(&bytes[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn chunks_are_written_in_order_through_partial_writes_and_given_back() {
        let budget = MemoryBudget::new(1 << 20);
        let mut output = Output::new(&budget);
        let chunks: Vec<Bytes> = (0..100u8).map(|byte| Bytes::from(vec![byte; 70 * usize::from(byte) + 1])).collect();
        let expected = chunks.concat();
        let len = expected.len();
        let records = budget.charge(3_000);
        output.push(EncodedFrame { chunks, len }, Some(records));
        assert_eq!((output.len(), budget.used()), (len, u64::try_from(len).unwrap()));
        let mut socket = Narrow(Vec::new());
        while !output.is_empty() {
            let wrote = output.poll_write(&mut socket, &mut Context::from_waker(Waker::noop()));
            assert!(matches!(wrote, Poll::Ready(Ok(_))));
        }
        assert_eq!(socket.0, expected);
        assert_eq!((output.len(), budget.used()), (0, 0));
    }
}
