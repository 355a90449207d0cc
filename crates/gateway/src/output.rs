//! The answers of one connection on their way out: chunks, written together with vectored writes, never joined, and
//! records that are sent from the files that they lie in.
//!
//! Invariants: `len` is the sum of the pieces' lengths; what is charged is given back when all of it is written. What cannot
//! be sent whole ends the connection: its client would take what follows for the rest.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use broker::api::{FileRecords, Loading};
use broker::budget::{Charge, MemoryBudget};
use bytes::{Buf, Bytes};
use protocol::EncodedFrame;
use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;

use crate::stream::Stream;

/// Chunks given to one write.
const SLICES: usize = 64;
/// Smaller answers are not charged: they are bounded by the requests in flight.
const CHARGED_FROM: usize = 4 * 1024;

/// What is written to.
pub(crate) trait Socket: AsyncWrite + Unpin {
    /// Sends some of what `records` have from byte `from` on, at least one byte; None where they are to be loaded and
    /// written: the disk would be waited for, or the socket takes no files.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        records: &dyn FileRecords,
        from: usize,
    ) -> Poll<io::Result<Option<usize>>>;
}

impl Socket for TcpStream {
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        records: &dyn FileRecords,
        from: usize,
    ) -> Poll<io::Result<Option<usize>>> {
        loop {
            ready!(self.poll_write_ready(cx))?;
            match self.try_io(Interest::WRITABLE, || records.send_to(self.as_fd(), from)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

impl Socket for Stream {
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        records: &dyn FileRecords,
        from: usize,
    ) -> Poll<io::Result<Option<usize>>> {
        match self {
            Stream::Tcp(stream) => stream.poll_send(cx, records, from),
            Stream::Link(_) => Poll::Ready(Ok(None)),
        }
    }
}

/// A part of an answer.
enum Piece {
    Memory(Bytes),
    /// What there is from a byte on.
    File(Arc<dyn FileRecords>, usize),
    /// The same; some of it is on its way from the disk.
    Loading(Loading, Arc<dyn FileRecords>, usize),
}

/// See the module.
pub(crate) struct Output {
    pieces: VecDeque<Piece>,
    len: usize,
    charge: Charge,
    /// What of it is for what was loaded last.
    loaded: u64,
}

impl Output {
    pub(crate) fn new(budget: &Arc<MemoryBudget>) -> Self {
        Self { pieces: VecDeque::new(), len: 0, charge: budget.charge(0), loaded: 0 }
    }

    /// Bytes that are not written yet.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Whether the disk is what it waits for, not the client.
    pub(crate) fn is_loading(&self) -> bool {
        matches!(self.pieces.front(), Some(Piece::Loading(..)))
    }

    /// What the budget holds for it.
    pub(crate) fn held(&self) -> u64 {
        self.charge.bytes()
    }

    /// Adds an answer, with the files that its gaps name, and what was charged for it before.
    pub(crate) fn push(&mut self, frame: EncodedFrame, files: &[Arc<dyn FileRecords>], charge: Option<Charge>) {
        let charged = charge.as_ref().map_or(0, Charge::bytes);
        if let Some(charge) = charge {
            self.charge.absorb(charge);
        }
        let in_files: usize = frame.gaps.iter().map(|gap| gap.elsewhere.len).sum();
        let in_memory = frame.len - in_files;
        if in_memory >= CHARGED_FROM {
            self.charge.add(u64::try_from(in_memory).unwrap_or(u64::MAX).saturating_sub(charged));
        }
        self.len += frame.len;
        let mut gaps = frame.gaps.into_iter().peekable();
        let mut fill = |pieces: &mut VecDeque<Piece>, before: usize| {
            while let Some(gap) = gaps.next_if(|gap| gap.before == before) {
                pieces.push_back(Piece::File(Arc::clone(&files[gap.elsewhere.number]), 0));
            }
        };
        let count = frame.chunks.len();
        for (at, chunk) in frame.chunks.into_iter().enumerate() {
            fill(&mut self.pieces, at);
            self.pieces.push_back(Piece::Memory(chunk));
        }
        fill(&mut self.pieces, count);
    }

    /// Writes as much as the socket takes now, at least something; `Pending` if it takes nothing.
    ///
    /// # Errors
    /// `UnexpectedEof` where records are not what they were when they were promised; else the socket's. Nothing is left to
    /// be written then.
    pub(crate) fn poll_write(&mut self, stream: &mut impl Socket, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let written = self.poll_write_some(stream, cx);
        if matches!(written, Poll::Ready(Err(_))) {
            self.pieces.clear();
            self.len = 0;
            self.give_back();
        }
        written
    }

    fn poll_write_some(&mut self, stream: &mut impl Socket, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            let written = match self.pieces.front_mut() {
                Some(Piece::File(records, from)) => match ready!(stream.poll_send(cx, &**records, *from))? {
                    Some(sent) => sent,
                    None => {
                        let loading = Piece::Loading(records.load(*from), Arc::clone(records), *from);
                        self.pieces[0] = loading;
                        continue;
                    }
                },
                Some(Piece::Loading(loading, ..)) => {
                    let bytes = ready!(loading.as_mut().poll(cx)).ok_or(io::ErrorKind::UnexpectedEof)?;
                    self.put_loaded(bytes)?;
                    continue;
                }
                Some(Piece::Memory(_)) | None => ready!(self.poll_write_memory(stream, cx))?,
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
            return Poll::Ready(Ok(written));
        }
    }

    /// Puts what was loaded in the place of the first piece, and what is left of that behind. What was loaded before is
    /// written by now.
    fn put_loaded(&mut self, bytes: Bytes) -> io::Result<()> {
        let Some(Piece::Loading(_, records, from)) = self.pieces.pop_front() else { return Ok(()) };
        let upto = from + bytes.len();
        if bytes.is_empty() || upto > records.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if upto < records.len() {
            self.pieces.push_front(Piece::File(records, upto));
        }
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.charge.set(self.charge.bytes() - std::mem::replace(&mut self.loaded, size) + size);
        self.pieces.push_front(Piece::Memory(bytes));
        Ok(())
    }

    /// Writes of the pieces in memory that come first.
    fn poll_write_memory(&self, stream: &mut impl Socket, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let chunks = self.pieces.iter().map_while(|piece| match piece {
            Piece::Memory(chunk) => Some(chunk),
            Piece::File(..) | Piece::Loading(..) => None,
        });
        let mut count = 0;
        for (slice, chunk) in slices.iter_mut().zip(chunks) {
            *slice = IoSlice::new(chunk);
            count += 1;
        }
        Pin::new(stream).poll_write_vectored(cx, &slices[..count])
    }

    /// Gives memory back that an idle connection needs not.
    pub(crate) fn trim(&mut self) {
        if self.pieces.is_empty() {
            self.pieces = VecDeque::new();
        }
    }

    fn advance(&mut self, mut written: usize) {
        self.len -= written;
        while let Some(piece) = self.pieces.front_mut() {
            let len = piece.len();
            if written < len {
                piece.advance(written);
                break;
            }
            written -= len;
            self.pieces.pop_front();
        }
        if self.pieces.is_empty() {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        self.charge.clear();
        self.loaded = 0;
    }
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Piece::Memory(chunk) => chunk.len(),
            Piece::File(records, from) | Piece::Loading(_, records, from) => records.len() - from,
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Piece::Memory(chunk) => chunk.advance(count),
            Piece::File(_, from) => *from += count,
            Piece::Loading(..) => assert_eq!(count, 0, "nothing is written of what is not loaded"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::BorrowedFd;
    use std::os::unix::net::UnixStream;
    use std::task::Waker;

    use model::Offset;
    use protocol::{Elsewhere, Gap};

    use super::*;

    /// Takes a few bytes at a time, and files unless it says that they are to be loaded.
    #[derive(Default)]
    struct Narrow {
        taken: Vec<u8>,
        no_files: bool,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let count = bytes.len().min(3_000);
            self.taken.extend_from_slice(&bytes[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Socket for Narrow {
        fn poll_send(
            &mut self,
            _: &mut Context<'_>,
            records: &dyn FileRecords,
            from: usize,
        ) -> Poll<io::Result<Option<usize>>> {
            if self.no_files {
                return Poll::Ready(Ok(None));
            }
            let (socket, mut other) = UnixStream::pair().unwrap();
            let sent = records.send_to(socket.as_fd(), from)?;
            drop(socket);
            other.read_to_end(&mut self.taken).unwrap();
            Poll::Ready(Ok(sent))
        }
    }

    /// Records in no file, some bytes at a time; from `cold` on they have to be loaded.
    #[derive(Debug)]
    struct Filed {
        bytes: Bytes,
        cold: usize,
        /// What is there of it by now.
        left: usize,
    }

    impl FileRecords for Filed {
        fn len(&self) -> usize {
            self.bytes.len()
        }

        fn end(&self) -> Offset {
            Offset(1)
        }

        fn send_to(&self, socket: BorrowedFd<'_>, from: usize) -> io::Result<Option<usize>> {
            let upto = self.left.min(from + 1_000);
            if from >= self.left {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if from >= self.cold {
                return Ok(None);
            }
            let mut socket = UnixStream::from(socket.try_clone_to_owned()?);
            socket.write(&self.bytes[from..upto]).map(Some)
        }

        fn load(&self, from: usize) -> Loading {
            let bytes = self.bytes.slice(from..self.left.min(from + 20_000));
            Box::pin(async move {
                tokio::task::yield_now().await;
                Some(bytes)
            })
        }
    }

    fn filed(byte: u8, len: usize, cold: usize) -> Arc<dyn FileRecords> {
        Arc::new(Filed { bytes: vec![byte; len].into(), cold, left: len })
    }

    /// Three answers in one: files first, between and last, two of them side by side.
    fn answer() -> (EncodedFrame, Vec<u8>, [usize; 4]) {
        let lens = [5_000, 1, 70_000, 9_999];
        let gap = |(before, number): (usize, usize)| Gap { before, elsewhere: Elsewhere { number, len: lens[number] } };
        let gaps: Vec<Gap> = [(0, 2), (1, 0), (1, 1), (2, 3)].into_iter().map(gap).collect();
        let chunks = vec![Bytes::from(vec![b'a'; 5_000]), Bytes::from(vec![b'b'; 10])];
        let file = |number: u8| vec![number; lens[usize::from(number)]];
        let expected = [file(2), chunks[0].to_vec(), file(0), file(1), chunks[1].to_vec(), file(3)].concat();
        (EncodedFrame { chunks, gaps, len: expected.len() }, expected, lens)
    }

    async fn write_all(output: &mut Output, socket: &mut Narrow) -> io::Result<()> {
        while !output.is_empty() {
            std::future::poll_fn(|cx| output.poll_write(socket, cx)).await?;
        }
        Ok(())
    }

    #[tokio::test]
    async fn files_are_sent_where_the_gaps_are_and_charged_only_when_they_are_loaded() {
        for (cold, no_files) in [(usize::MAX, false), (0, true), (2_500, false), (0, false)] {
            let budget = MemoryBudget::new(1 << 20);
            let mut output = Output::new(&budget);
            let (frame, expected, lens) = answer();
            let files: Vec<_> = (0..4u8).map(|number| filed(number, lens[usize::from(number)], cold)).collect();
            output.push(frame, &files, None);
            assert_eq!((output.len(), budget.used()), (expected.len(), 5_010));
            let mut socket = Narrow { no_files, ..Narrow::default() };
            if cold == 0 {
                let first = std::future::poll_fn(|cx| Poll::Ready(output.poll_write(&mut socket, cx))).await;
                assert!(first.is_pending() && output.is_loading());
            }
            write_all(&mut output, &mut socket).await.unwrap();
            assert!(socket.taken == expected, "{cold}");
            assert_eq!((output.len(), budget.used()), (0, 0));
        }
    }

    #[tokio::test]
    async fn records_that_are_not_whole_any_more_end_the_connection() {
        for cold in [usize::MAX, 0] {
            let (frame, expected, lens) = answer();
            let mut files: Vec<_> = (0..4u8).map(|number| filed(number, lens[usize::from(number)], cold)).collect();
            files[0] = Arc::new(Filed { bytes: vec![0; lens[0]].into(), cold, left: 4_000 });
            let mut output = Output::new(&MemoryBudget::new(1 << 20));
            output.push(frame, &files, None);
            let mut socket = Narrow::default();
            let error = write_all(&mut output, &mut socket).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            assert!(expected.starts_with(&socket.taken), "nothing comes in the place of what is missing");
            assert!(output.is_empty() && output.held() == 0, "nor after it");
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
        output.push(EncodedFrame { chunks, len, ..Default::default() }, &[], Some(records));
        assert_eq!((output.len(), budget.used()), (len, u64::try_from(len).unwrap()));
        let mut socket = Narrow::default();
        while !output.is_empty() {
            let wrote = output.poll_write(&mut socket, &mut Context::from_waker(Waker::noop()));
            assert!(matches!(wrote, Poll::Ready(Ok(_))));
        }
        assert_eq!(socket.taken, expected);
        assert_eq!((output.len(), budget.used()), (0, 0));
    }
}
