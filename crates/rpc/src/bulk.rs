//! gRPC streams of messages that carry records, without a copy of the records.
//!
//! tonic's own codec joins each message into one buffer, at both ends. Here a message goes out as a few chunks, the
//! records among them as the `Bytes` that they are, and comes in as the chunks that HTTP/2 made of it: a field of bytes that
//! arrived in one chunk is a slice of it. On the wire it is gRPC as any peer speaks it, uncompressed.
//!
//! Invariants: a message is decoded when it is whole; what is kept of one that is not is at most [`net::MAX_MESSAGE`] and a
//! chunk; a stream that broke, or carried something else, gives nothing more.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::Stream;
use http_body::{Body as _, Frame};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response, header};
use tonic::{Code, Status};

use crate::{RpcError, net};

/// What stands before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// Smaller payloads are copied behind what precedes them: a chunk of its own costs more.
const OWN_CHUNK: usize = 16 * 1024;
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

/// One gRPC message on its way out.
#[derive(Debug)]
pub(crate) struct OutMessage {
    chunks: VecDeque<Bytes>,
    /// What is not cut off as a chunk yet; the first one begins with the prefix.
    open: BytesMut,
    len: usize,
}

impl OutMessage {
    /// Begins with the fields of `message`.
    pub(crate) fn new(message: &impl Message) -> Self {
        let len = message.encoded_len();
        let mut open = BytesMut::with_capacity(PREFIX + len);
        open.put_bytes(0, PREFIX);
        message.encode_raw(&mut open);
        Self { chunks: VecDeque::new(), open, len }
    }

    /// Adds a field that is a message: the fields of `head`, then `payloads` in its repeated field of bytes.
    pub(crate) fn push_nested(&mut self, field: u32, head: &impl Message, payload_field: u32, payloads: Vec<Bytes>) {
        let mut key = BytesMut::new();
        encode_key(payload_field, WireType::LengthDelimited, &mut key);
        let payload_len = |payload: &Bytes| key.len() + prost::length_delimiter_len(payload.len()) + payload.len();
        let inner = head.encoded_len() + payloads.iter().map(payload_len).sum::<usize>();
        let before = self.open.len();
        encode_key(field, WireType::LengthDelimited, &mut self.open);
        encode_varint(inner as u64, &mut self.open);
        self.len += self.open.len() - before + inner;
        head.encode_raw(&mut self.open);
        for payload in payloads {
            self.open.put_slice(&key);
            encode_varint(payload.len() as u64, &mut self.open);
            self.push_payload(payload);
        }
    }

    fn push_payload(&mut self, payload: Bytes) {
        if payload.len() < OWN_CHUNK {
            self.open.put_slice(&payload);
        } else {
            self.chunks.push_back(self.open.split().freeze());
            self.chunks.push_back(payload);
        }
    }

    fn into_chunks(mut self) -> VecDeque<Bytes> {
        let len = u32::try_from(self.len).expect("a message is smaller than 4 GiB").to_be_bytes();
        let first = match self.chunks.pop_front() {
            None => {
                self.open[1..PREFIX].copy_from_slice(&len);
                return VecDeque::from([self.open.freeze()]);
            }
            Some(first) => first,
        };
        // Nobody else has it yet.
        let mut first = BytesMut::from(first);
        first[1..PREFIX].copy_from_slice(&len);
        self.chunks.push_front(first.freeze());
        if !self.open.is_empty() {
            self.chunks.push_back(self.open.freeze());
        }
        self.chunks
    }
}

/// A body that sends what `messages` gives, and ends with gRPC's OK.
struct OutBody<S> {
    messages: Pin<Box<S>>,
    chunks: VecDeque<Bytes>,
    ended: bool,
}

impl<S: Stream<Item = OutMessage>> http_body::Body for OutBody<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(chunk) = self.chunks.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(self.messages.as_mut().poll_next(cx)) {
                Some(message) => self.chunks = message.into_chunks(),
                None => {
                    self.ended = true;
                    let ok = HeaderMap::from_iter([(Status::GRPC_STATUS, HeaderValue::from_static("0"))]);
                    return Poll::Ready(Some(Ok(Frame::trailers(ok))));
                }
            }
        }
    }
}

/// The request that opens a stream at `path`.
pub(crate) fn request(path: &'static str, messages: impl Stream<Item = OutMessage> + Send + 'static) -> Request<Body> {
    let mut request = Request::new(body(messages));
    *request.method_mut() = tonic::codegen::http::Method::POST;
    *request.uri_mut() = tonic::codegen::http::Uri::from_static(path);
    request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
    request.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE);
    request
}

/// The answer to such a request.
pub(crate) fn response(messages: impl Stream<Item = OutMessage> + Send + 'static) -> Response<Body> {
    let mut response = Response::new(body(messages));
    response.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE);
    response
}

fn body(messages: impl Stream<Item = OutMessage> + Send + 'static) -> Body {
    Body::new(OutBody { messages: Box::pin(messages), chunks: VecDeque::new(), ended: false })
}

/// The messages of one direction of a stream.
pub(crate) struct InMessages<M> {
    peer: String,
    body: Body,
    chunks: VecDeque<Bytes>,
    /// Bytes in `chunks`.
    have: usize,
    ended: bool,
    message: PhantomData<fn() -> M>,
}

impl<M> std::fmt::Debug for InMessages<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InMessages").field("peer", &self.peer).field("have", &self.have).finish_non_exhaustive()
    }
}

impl<M: Message + Default> InMessages<M> {
    /// Those that `peer` sends in `body`.
    pub(crate) fn new(peer: &str, body: Body) -> Self {
        let chunks = VecDeque::new();
        Self { peer: peer.to_owned(), body, chunks, have: 0, ended: false, message: PhantomData }
    }

    /// Those of a response, unless it is a refusal.
    pub(crate) fn of_response(peer: &str, response: Response<Body>) -> Result<Self, RpcError> {
        let (head, body) = response.into_parts();
        let refused = Status::from_header_map(&head.headers).filter(|status| status.code() != Code::Ok);
        match refused {
            Some(status) => Err(RpcError::of(peer, &status)),
            None if head.status.is_success() => Ok(Self::new(peer, body)),
            None => {
                let status = Status::unavailable(format!("answered with HTTP status {}", head.status));
                Err(RpcError::of(peer, &status))
            }
        }
    }

    /// The next message; None where the peer ended the stream. May be dropped and called again: nothing is lost.
    ///
    /// # Errors
    /// The stream broke, or the peer sent something else.
    pub(crate) async fn next(&mut self) -> Result<Option<M>, RpcError> {
        loop {
            if let Some(len) = self.whole()? {
                self.chunks.advance_by(PREFIX);
                self.have -= PREFIX + len;
                let decoded = M::decode(FrontOf { chunks: &mut self.chunks, left: len });
                return decoded.map(Some).map_err(|_| self.invalid("a message cannot be decoded"));
            }
            if self.ended {
                return Ok(None);
            }
            let frame = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await;
            self.take(frame)?;
        }
    }

    /// The length of the message that comes next, if all of it is there.
    fn whole(&mut self) -> Result<Option<usize>, RpcError> {
        let mut prefix = [0; PREFIX];
        if self.have < PREFIX {
            return Ok(None);
        }
        self.chunks.peek(&mut prefix);
        let [compressed, len @ ..] = prefix;
        if compressed != 0 {
            return Err(self.invalid("a message is compressed"));
        }
        let len = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
        if len > net::MAX_MESSAGE {
            return Err(self.invalid("a message is too large"));
        }
        Ok((self.have - PREFIX >= len).then_some(len))
    }

    fn take(&mut self, frame: Option<Result<Frame<Bytes>, Status>>) -> Result<(), RpcError> {
        let failed = |status: &Status| RpcError::of(&self.peer, status);
        match frame {
            None => self.ended = true,
            Some(Err(status)) => {
                let error = failed(&status);
                self.end();
                return Err(error);
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => {
                    self.have += data.len();
                    self.chunks.push_back(data);
                }
                Err(frame) => {
                    let status = frame.trailers_ref().and_then(Status::from_header_map);
                    if let Some(status) = status.filter(|status| status.code() != Code::Ok) {
                        let error = failed(&status);
                        self.end();
                        return Err(error);
                    }
                }
            },
        }
        if self.ended && self.have > 0 {
            return Err(self.invalid("the stream ended in the middle of a message"));
        }
        Ok(())
    }

    fn invalid(&mut self, what: &'static str) -> RpcError {
        self.end();
        RpcError::Invalid(what)
    }

    /// Nothing more is read.
    fn end(&mut self) {
        (self.chunks, self.have, self.ended) = (VecDeque::new(), 0, true);
        self.body = Body::empty();
    }
}

/// Chunks as one run of bytes.
trait Run {
    /// Copies what stands in front.
    fn peek(&self, into: &mut [u8]);
    /// Drops what stands in front.
    fn advance_by(&mut self, count: usize);
}

impl Run for VecDeque<Bytes> {
    fn peek(&self, into: &mut [u8]) {
        let mut bytes = self.iter().flat_map(|chunk| chunk.iter());
        into.iter_mut().zip(&mut bytes).for_each(|(to, from)| *to = *from);
    }

    fn advance_by(&mut self, mut count: usize) {
        while count > 0 {
            let front = self.front_mut().expect("no more is dropped than is there");
            let step = count.min(front.len());
            front.advance(step);
            count -= step;
            if front.is_empty() {
                self.pop_front();
            }
        }
    }
}

/// The first `left` bytes of chunks, all of which are there. Bytes within one chunk are given without a copy. What is left
/// of them when this is dropped is dropped, too.
struct FrontOf<'a> {
    chunks: &'a mut VecDeque<Bytes>,
    left: usize,
}

impl Buf for FrontOf<'_> {
    fn remaining(&self) -> usize {
        self.left
    }

    fn chunk(&self) -> &[u8] {
        let front = self.chunks.front().map_or(&[][..], |chunk| chunk);
        &front[..front.len().min(self.left)]
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.left, "no more is read than is left: count={count} left={}", self.left);
        self.chunks.advance_by(count);
        self.left -= count;
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        assert!(len <= self.left, "no more is read than is left: len={len} left={}", self.left);
        match self.chunks.front_mut() {
            Some(front) if front.len() > len => {
                self.left -= len;
                front.split_to(len)
            }
            Some(front) if front.len() == len => {
                self.left -= len;
                self.chunks.pop_front().expect("it was looked at")
            }
            _ => {
                let mut joined = BytesMut::with_capacity(len);
                joined.put((&mut *self).take(len));
                joined.freeze()
            }
        }
    }
}

impl Drop for FrontOf<'_> {
    fn drop(&mut self) {
        self.chunks.advance_by(self.left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::replication as wire;

    fn data(sizes: &[usize]) -> wire::Data {
        let payload = |(fill, size): (u8, &usize)| Bytes::from(vec![fill; *size]);
        wire::Data {
            handle: 300,
            open_no: 7,
            prev_offset: -1,
            prev_epoch: 5,
            high_watermark: 1 << 40,
            log_start: 0,
            leader_log_end: 99,
            batches: (1..).zip(sizes).map(payload).collect(),
        }
    }

    fn message(sizes: &[&[usize]]) -> wire::LeaderMessage {
        wire::LeaderMessage {
            progress: vec![wire::Progress {
                handle: 1,
                open_no: 6,
                high_watermark: 3,
                log_start: 0,
                sync_before_ack: true,
            }],
            data: sizes.iter().map(|sizes| data(sizes)).collect(),
            ..wire::LeaderMessage::default()
        }
    }

    fn out(message: &wire::LeaderMessage) -> VecDeque<Bytes> {
        let mut head = message.clone();
        let data = std::mem::take(&mut head.data);
        let mut out = OutMessage::new(&head);
        for mut data in data {
            let batches = std::mem::take(&mut data.batches);
            out.push_nested(4, &data, 15, batches);
        }
        out.into_chunks()
    }

    /// What comes of a body that gives these chunks and then ends.
    async fn received(chunks: Vec<Bytes>) -> (Vec<wire::LeaderMessage>, Result<(), RpcError>) {
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(
            chunks.into_iter().map(|chunk| Ok::<_, Status>(Frame::data(chunk))),
        ));
        let mut messages = InMessages::<wire::LeaderMessage>::new("peer", Body::new(body));
        let mut all = Vec::new();
        loop {
            match messages.next().await {
                Ok(Some(message)) => all.push(message),
                Ok(None) => return (all, Ok(())),
                Err(error) => {
                    assert_eq!(messages.next().await, Ok(None), "a broken stream gives nothing more");
                    return (all, Err(error));
                }
            }
        }
    }

    const SHAPES: &[&[&[usize]]] =
        &[&[], &[&[]], &[&[3, 0, 200]], &[&[OWN_CHUNK]], &[&[5, 40_000, 6], &[], &[20_000, 1], &[7]]];

    #[test]
    fn any_peer_can_decode_what_is_sent() {
        for shape in SHAPES {
            let message = message(shape);
            let chunks = out(&message);
            let joined = Vec::from(chunks).concat();
            let (prefix, body) = joined.split_at(PREFIX);
            assert_eq!(prefix, [&[0][..], &u32::try_from(body.len()).unwrap().to_be_bytes()].concat());
            assert_eq!(wire::LeaderMessage::decode(body).as_ref(), Ok(&message));
            assert_eq!(body.len(), message.encoded_len());
        }
    }

    #[tokio::test]
    async fn messages_are_read_however_they_are_cut() {
        let all: Vec<_> = SHAPES.iter().map(|shape| message(shape)).collect();
        let wire: Vec<u8> = all.iter().flat_map(|message| Vec::from(out(message)).concat()).collect();
        for size in [1, 2, 5, 7, 100, 16_385, wire.len()] {
            let chunks = wire.chunks(size).map(Bytes::copy_from_slice).collect();
            let (read, ended) = received(chunks).await;
            assert_eq!((read.len(), ended), (all.len(), Ok(())), "chunks of {size}");
            assert!(read == all, "chunks of {size}");
        }
    }

    #[tokio::test]
    async fn records_that_stand_in_one_chunk_are_not_copied() {
        let message = message(&[&[5, 40_000, 6]]);
        let (read, _) = received(out(&message).into()).await;
        assert_eq!(read[0].data[0].batches[1].as_ptr(), message.data[0].batches[1].as_ptr());
    }

    #[tokio::test]
    async fn what_is_no_message_ends_the_stream_with_an_error() {
        let whole = Vec::from(out(&message(&[&[100]]))).concat();
        let cut = Bytes::copy_from_slice(&whole[..whole.len() - 1]);
        let invalid = |what| (Vec::new(), Err(RpcError::Invalid(what)));
        assert_eq!(received(vec![cut]).await, invalid("the stream ended in the middle of a message"));
        let bytes = |bytes: &[u8]| vec![Bytes::copy_from_slice(bytes)];
        assert_eq!(received(bytes(&[1, 0, 0, 0, 0])).await, invalid("a message is compressed"));
        assert_eq!(received(bytes(&[0, 255, 0, 0, 0])).await, invalid("a message is too large"));
        assert_eq!(received(bytes(&[0, 0, 0, 0, 2, 0x22, 9])).await, invalid("a message cannot be decoded"));
    }
}
