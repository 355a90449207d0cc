//! One connection: a task that reads frames, starts requests and writes their answers in order.
//!
//! Invariants: answers leave in the order of their requests. A Produce is appended when it is started and only its answer
//! waits, so the next request is started at once; any other request holds back the next until its own answer is there,
//! but does not wait for the acks of Produces before it. At most [`IN_FLIGHT_MAX`] requests are in flight, or
//! [`IN_FLIGHT_BYTES`] of them where there are several, and nothing is started while [`UNSENT_MAX`] bytes of answers are
//! unsent. What a client sends costs that connection at most.
//!
//! Dropping the task at any await is safe: what was appended stays, and nobody else refers to the connection.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

use broker::api::{BrokerApi, FileRecords};
use broker::budget::Charge;
use protocol::{ApiKey, EncodedFrame};

use crate::call::{ConnectionInfo, Shared};
use crate::dispatch::{self, BadRequest};
use crate::input::{BadSize, Input, NextFrame};
use crate::output::Output;
use crate::stream::Stream;
use crate::watch::{Order, PROGRESS_MIN, Standing, Watch};

/// Requests that may be in flight.
const IN_FLIGHT_MAX: usize = 100;
/// Bytes of requests at which no other one is started: what one client may have appended that its followers do not have
/// yet. So they are served from memory, and a client that sends faster than they follow is slowed down by them.
const IN_FLIGHT_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of answers that may be unsent when a request is started.
const UNSENT_MAX: usize = 256 * 1024;

/// What becomes of a request.
pub(crate) enum Answer {
    /// These bytes are sent.
    Frame {
        /// The response with its header and size.
        frame: EncodedFrame,
        /// What its gaps are filled from, by their numbers.
        files: Vec<Arc<dyn FileRecords>>,
        /// How many error codes it holds.
        errors: u64,
        /// What was charged to the budget for it already.
        charge: Option<Charge>,
    },
    /// Nothing is sent: acks=0.
    Silent,
    /// The connection is closed: the only way to tell of an error where no answer is sent.
    HangUp(HangUp),
}

/// Why the connection is closed in place of an answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum HangUp {
    /// A Produce with acks=0 failed.
    #[error("a produce request with acks=0 failed with {0}")]
    Unanswerable(&'static str),
    /// The response cannot be said in the version asked for: a fault of ours.
    #[error("the response cannot be encoded: {0}")]
    Unencodable(#[from] protocol::EncodeError),
}

/// An answer that is on its way.
pub(crate) type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// A request that was started.
pub(crate) struct Started {
    /// Its API.
    pub(crate) api: ApiKey,
    /// Whether the next request waits until this one's answer is there.
    pub(crate) holds_back: bool,
    /// Its answer.
    pub(crate) answering: Answering,
}

/// A request in flight.
struct InFlight {
    api: ApiKey,
    holds_back: bool,
    since: Instant,
    bytes: usize,
    state: State,
    /// What its frame takes of the budget, until it is answered.
    _charge: Charge,
}

/// How far an answer is.
enum State {
    Answering(Answering),
    Answered(Answer),
}

impl InFlight {
    /// Drives the answer; says whether it is there.
    fn poll_answered(&mut self, cx: &mut Context<'_>) -> bool {
        if let State::Answering(answering) = &mut self.state {
            match answering.as_mut().poll(cx) {
                Poll::Ready(answer) => self.state = State::Answered(answer),
                Poll::Pending => return false,
            }
        }
        true
    }

    fn is_answered(&self) -> bool {
        matches!(self.state, State::Answered(_))
    }
}

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
enum End {
    /// The client closed it, or it broke.
    #[error("the client is gone")]
    Gone,
    /// What came is no frame.
    #[error(transparent)]
    Size(#[from] BadSize),
    /// What came is no request that is served.
    #[error(transparent)]
    Request(#[from] BadRequest),
    /// The answer is to hang up.
    #[error(transparent)]
    HangUp(#[from] HangUp),
    /// Of an answer that was begun, records are not what they were.
    #[error("records of an answer that was begun are gone, or damaged")]
    RecordsGone,
    /// It was asked for.
    #[error("the broker closed it: {0:?}")]
    Ordered(Order),
}

/// See the module.
pub(crate) struct Connection<B> {
    shared: Arc<Shared<B>>,
    info: Arc<ConnectionInfo>,
    watch: Arc<Watch>,
    stream: Stream,
    input: Input,
    output: Output,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
    /// As [`Watch`] counts it.
    moved: u64,
    /// Whether more of the next frame is waited for.
    reading: bool,
    draining: bool,
    untrimmed: bool,
}

impl<B: BrokerApi> Connection<B> {
    pub(crate) fn new(shared: Arc<Shared<B>>, info: Arc<ConnectionInfo>, watch: Arc<Watch>, stream: Stream) -> Self {
        let input = Input::new(&shared.budget, shared.limits.request_bytes_max);
        let output = Output::new(&shared.budget);
        Self {
            shared,
            info,
            watch,
            stream,
            input,
            output,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            moved: 0,
            reading: false,
            draining: false,
            untrimmed: false,
        }
    }

    /// Serves the connection until it ends.
    pub(crate) async fn run(mut self) {
        let end = poll_fn(|cx| self.poll(cx)).await;
        self.log(&end);
    }

    fn log(&self, end: &End) {
        let ConnectionInfo { listener, peer, .. } = &*self.info;
        match end {
            End::Gone => tracing::debug!(%peer, %listener, "connection closed by the client"),
            End::Size(_) | End::Request(_) => {
                self.shared.metrics.bad_requests.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%peer, %listener, "closing the connection of {peer}: {end}");
            }
            End::HangUp(HangUp::Unencodable(_)) => tracing::error!(%peer, %listener, "closing a connection: {end}"),
            End::RecordsGone => tracing::warn!(%peer, %listener, "closing the connection of {peer}: {end}"),
            End::HangUp(HangUp::Unanswerable(_)) => tracing::info!(%peer, %listener, "closing a connection: {end}"),
            End::Ordered(Order::CloseStalled) => tracing::warn!(
                %peer, %listener,
                "closing the connection of {peer}: it holds memory that others wait for and makes no progress"
            ),
            End::Ordered(order) => tracing::debug!(%peer, %listener, ?order, "connection closed"),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let mut stalled = false;
        match self.watch.take_order(cx.waker()) {
            Order::None => {}
            Order::Trim => self.trim(),
            Order::CloseStalled => stalled = true,
            Order::Drain => self.drain(),
            Order::CloseIdle => return Poll::Ready(End::Ordered(Order::CloseIdle)),
        }
        let moved = self.moved;
        let mut turned = self.turn(cx);
        // It may have been this broker that did not come to it.
        if stalled && turned.is_pending() && self.moved - moved < PROGRESS_MIN && self.is_amid_transfer() {
            turned = Poll::Ready(End::Ordered(Order::CloseStalled));
        }
        if turned.is_ready() {
            // What is answered already is still sent, as far as the socket takes it at once.
            let _ = self.write(cx);
        }
        self.watch.publish(Standing {
            busy: !self.in_flight.is_empty(),
            amid_transfer: self.is_amid_transfer(),
            untrimmed: self.untrimmed,
        });
        self.watch.publish_memory(self.moved, self.input.held() + self.output.held());
        turned
    }

    /// Whether it is the client's turn to take or to send. What waits here is not its fault.
    fn is_amid_transfer(&self) -> bool {
        (!self.output.is_empty() && !self.output.is_loading()) || (self.reading && self.input.is_amid_frame())
    }

    /// Whether the next request may not be started before the last one is answered.
    fn is_held_back(&self) -> bool {
        self.in_flight.back().is_some_and(|back| back.holds_back && !back.is_answered())
    }

    /// Works until nothing moves: answers first, so that those that are there together are written together.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let moved = self.answer(cx).and_then(|answered| Ok(self.start(cx)? || answered));
            match moved {
                Ok(true) => continue,
                Ok(false) => {}
                Err(end) => return Poll::Ready(end),
            }
            match (self.write(cx), self.read(cx)) {
                (Ok(false), Ok(false)) => {}
                (Ok(_), Ok(_)) => continue,
                (Err(end), _) | (_, Err(end)) => return Poll::Ready(end),
            }
            let done = self.draining && self.in_flight.is_empty() && self.output.is_empty();
            return if done { Poll::Ready(End::Ordered(Order::Drain)) } else { Poll::Pending };
        }
    }

    /// Moves answers that are there to the output, in order.
    fn answer(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut moved = false;
        while let Some(front) = self.in_flight.front_mut() {
            if !front.poll_answered(cx) {
                break;
            }
            if let Some(InFlight { api, since, bytes, state: State::Answered(answer), .. }) = self.in_flight.pop_front()
            {
                self.in_flight_bytes -= bytes;
                self.deliver(api, since, answer)?;
            }
            moved = true;
        }
        // What holds back the next request makes progress behind Produces that wait for their acks.
        let held_back = self.in_flight.back_mut().filter(|back| back.holds_back && !back.is_answered());
        Ok(held_back.is_some_and(|back| back.poll_answered(cx)) || moved)
    }

    fn deliver(&mut self, api: ApiKey, since: Instant, answer: Answer) -> Result<(), End> {
        let metrics = self.shared.metrics.api(api);
        match answer {
            Answer::Frame { frame, files, errors, charge } => {
                metrics.answered(since.elapsed(), errors, u64::try_from(frame.len).unwrap_or(u64::MAX));
                self.output.push(frame, &files, charge);
                Ok(())
            }
            Answer::Silent => {
                metrics.answered(since.elapsed(), 0, 0);
                Ok(())
            }
            Answer::HangUp(why) => {
                metrics.answered(since.elapsed(), 1, 0);
                Err(why.into())
            }
        }
    }

    /// Starts the next request if it is whole and may start.
    fn start(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let held_back = self.is_held_back();
        let full = self.in_flight.len() >= IN_FLIGHT_MAX
            || self.in_flight_bytes >= IN_FLIGHT_BYTES
            || self.output.len() >= UNSENT_MAX;
        if self.draining || held_back || full || self.input.poll_next(cx)? != NextFrame::Whole {
            return Ok(false);
        }
        let Some(frame) = self.input.take() else { return Ok(false) };
        self.moved += PROGRESS_MIN;
        let since = Instant::now();
        let bytes = frame.bytes.len();
        let Started { api, holds_back, answering } = dispatch::start(&self.shared, &self.info, frame.bytes)?;
        self.shared.metrics.api(api).request_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let state = State::Answering(answering);
        self.in_flight.push_back(InFlight { api, holds_back, since, bytes, state, _charge: frame.charge });
        self.in_flight_bytes += bytes;
        Ok(true)
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut moved = false;
        while !self.output.is_empty() {
            match self.output.poll_write(&mut self.stream, cx) {
                Poll::Ready(Ok(written)) => {
                    self.moved += u64::try_from(written).unwrap_or(u64::MAX);
                    moved = true;
                }
                Poll::Ready(Err(e)) if e.kind() == ErrorKind::UnexpectedEof => return Err(End::RecordsGone),
                Poll::Ready(Err(_)) => return Err(End::Gone),
                Poll::Pending => break,
            }
        }
        if moved {
            if self.output.is_empty() {
                self.moved += PROGRESS_MIN;
            }
            self.touch();
        }
        Ok(moved)
    }

    /// Reads once, unless the next frame is whole already or cannot be afforded: the client's end is noticed even while
    /// a request is held back. A large frame is not read meanwhile: it would hold memory for as long as the client likes.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let paused = self.draining || (self.input.is_large() && self.is_held_back());
        if paused {
            self.input.stop_waiting();
        }
        self.reading = !paused && self.input.poll_next(cx)? == NextFrame::Partial;
        if !self.reading {
            return Ok(false);
        }
        match self.input.poll_read(&mut self.stream, cx) {
            Poll::Ready(Ok(0) | Err(_)) => Err(End::Gone),
            Poll::Ready(Ok(read)) => {
                self.moved += u64::try_from(read).unwrap_or(u64::MAX);
                self.touch();
                Ok(true)
            }
            Poll::Pending => Ok(false),
        }
    }

    fn touch(&mut self) {
        self.untrimmed = true;
        self.watch.touch(self.shared.coarse_ms.load(Ordering::Relaxed));
    }

    fn trim(&mut self) {
        self.input.trim();
        self.output.trim();
        if self.in_flight.is_empty() {
            self.in_flight = VecDeque::new();
        }
        self.untrimmed = false;
    }

    /// Only what was appended is waited for: everything else is asked again, of another broker.
    fn drain(&mut self) {
        if !self.draining {
            self.draining = true;
            self.in_flight.retain(|request| !request.holds_back || request.is_answered());
            self.in_flight_bytes = self.in_flight.iter().map(|request| request.bytes).sum();
        }
    }
}
