//! The replication stream of one follower, leader and lane (`R56` to `R64`), as frames of plain types.
//!
//! Frames only carry: every check of meaning (sessions, epochs, offsets) is made by the receiver's `replication` core.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use model::{
    BrokerEpoch, BrokerId, ClusterId, Incarnation, LeaderEpoch, Offset, PartitionIndex, TopicId, TopicPartition,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::service::Routes;
use tower::{Service, ServiceExt};

use crate::bulk::{self, InMessages, OutMessage};
use crate::net::Network;
use crate::wire::replication as wire;
use crate::{INTERNAL_VERSION, RpcError, check_version, uuid_bytes, uuid_from};

/// The gRPC service and its one method, as `proto/replication.proto` names them.
const SERVICE: &str = "ottla.replication.v1.Replication";
const METHOD: &str = "/ottla.replication.v1.Replication/Stream";
/// Fields of the messages there that are written by hand, so that records are not copied.
const DATA_FIELD: u32 = 4;
const BATCHES_FIELD: u32 = 15;

/// Frames under way in one direction of one stream, before the writer waits.
const QUEUE: usize = 8;

/// Who a follower is and whom it means to reach (`R56`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The cluster that both must be of.
    pub cluster_id: ClusterId,
    /// The follower.
    pub follower: BrokerId,
    /// Its process.
    pub follower_incarnation: Incarnation,
    /// Its registration.
    pub follower_epoch: BrokerEpoch,
    /// Counts up with each stream of the follower's process.
    pub stream_no: u64,
    /// The leader that it means.
    pub leader: BrokerId,
    /// The leader's registration, as the follower knows it.
    pub leader_epoch: BrokerEpoch,
    /// Which of the streams between the two.
    pub lane: u32,
    /// Which sessions it is for.
    pub kind: LaneKind,
}

/// Which sessions a stream is for (`R62`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LaneKind {
    /// All: the follower does not know of lanes.
    Mixed,
    /// Those whose records the leader has in memory.
    Tail,
    /// Those whose records it has to read from its disk.
    CatchUp,
}

/// Opens a session of one partition (`R57`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Open {
    /// Names the session on this stream.
    pub handle: u64,
    /// Which partition.
    pub partition: TopicPartition,
    /// The follower's leader epoch.
    pub leader_epoch: LeaderEpoch,
    /// Counts the opens of this replica.
    pub open_no: u64,
    /// Where the follower's log ends.
    pub log_end: Offset,
    /// The epoch of its last record.
    pub last_epoch: LeaderEpoch,
    /// Where it starts.
    pub log_start: Offset,
    /// Whether the bytes below `log_end` are on its disk.
    pub durable: bool,
}

/// What a follower has (`R59`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ack {
    /// The session's handle.
    pub handle: u64,
    /// The session.
    pub open_no: u64,
    /// Every byte below it is in the follower's log.
    pub log_end: Offset,
    /// Where its log starts.
    pub log_start: Offset,
    /// Whether the bytes below `log_end` are on its disk.
    pub durable: bool,
}

/// What a follower sends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FollowerFrame {
    /// In the first frame only.
    pub hello: Option<Hello>,
    /// Sessions opened.
    pub opens: Vec<Open>,
    /// The newest acknowledgement of each session that has one.
    pub acks: Vec<Ack>,
    /// Handles of sessions ended.
    pub closes: Vec<u64>,
}

/// A leader's answer to an open (`R57`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Data will follow.
    Opened {
        /// The leader's high watermark.
        high_watermark: Offset,
        /// Where its log starts.
        log_start: Offset,
        /// Where it ends.
        log_end: Offset,
        /// Only what is durable counts there (`R59`).
        sync_before_ack: bool,
    },
    /// The logs part (`R24`).
    Diverging {
        /// The largest epoch of the leader's that is not above the follower's last.
        epoch: LeaderEpoch,
        /// Where it ends at the leader.
        end: Offset,
    },
    /// The follower's end is outside of the leader's log (`R26`).
    OutOfRange {
        /// Where the leader's log starts.
        log_start: Offset,
        /// Where it ends.
        log_end: Offset,
    },
    /// With Kafka's error code.
    Refused(i16),
    /// The session is over, another one may be opened on a stream of this kind (`R62`).
    Moved(LaneKind),
}

/// An answer and the session that it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenAnswer {
    /// The session's handle.
    pub handle: u64,
    /// The session.
    pub open_no: u64,
    /// The answer.
    pub answer: Answer,
}

/// The watermarks moved without data (`R60`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// The session's handle.
    pub handle: u64,
    /// The session.
    pub open_no: u64,
    /// The leader's high watermark.
    pub high_watermark: Offset,
    /// Where its log starts.
    pub log_start: Offset,
    /// Only what is durable counts there (`R59`).
    pub sync_before_ack: bool,
}

/// Records (`R58`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Data {
    /// The session's handle.
    pub handle: u64,
    /// The session.
    pub open_no: u64,
    /// The log end that these records follow.
    pub prev_offset: Offset,
    /// The epoch of the record before.
    pub prev_epoch: LeaderEpoch,
    /// The leader's high watermark.
    pub high_watermark: Offset,
    /// Where the leader's log starts.
    pub log_start: Offset,
    /// Where it ends.
    pub leader_log_end: Offset,
    /// Whole record batches, unchecked.
    pub batches: Vec<Bytes>,
}

/// What a leader sends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LeaderFrame {
    /// In the first frame only: the leader's registration.
    pub hello: Option<BrokerEpoch>,
    /// Answers to opens.
    pub answers: Vec<OpenAnswer>,
    /// Watermarks.
    pub progress: Vec<Progress>,
    /// Records.
    pub data: Vec<Data>,
}

/// Writes a follower's frames to the leader; waits while the transport is full.
#[derive(Clone, Debug)]
pub struct FollowerSender {
    queue: mpsc::Sender<FollowerFrame>,
}

impl FollowerSender {
    /// Sends a frame; false once the stream has ended.
    pub async fn send(&self, frame: FollowerFrame) -> bool {
        self.queue.send(frame).await.is_ok()
    }
}

/// What a leader sends on one stream: asked for the next frame whenever the transport takes one.
pub type LeaderSource = BoxStream<'static, LeaderFrame>;

/// A leader's frames, as a follower receives them.
#[derive(Debug)]
pub struct LeaderFrames {
    messages: InMessages<wire::LeaderMessage>,
}

impl LeaderFrames {
    /// The next frame; None where the leader ended the stream.
    ///
    /// # Errors
    /// The stream broke, or the peer sent something else.
    pub async fn next(&mut self) -> Result<Option<LeaderFrame>, RpcError> {
        self.messages.next().await?.map(leader_from_wire).transpose()
    }
}

/// Dials the leader at `host:port` and says hello. The leader's own hello is the first frame to come.
///
/// # Errors
/// [`RpcError::Unavailable`] or, where the leader is another than meant, [`RpcError::Refused`].
pub async fn dial(network: &Network, address: &str, hello: Hello) -> Result<(FollowerSender, LeaderFrames), RpcError> {
    let channel = network.connect(address).await?;
    let (queue, frames) = mpsc::channel(QUEUE);
    let first = FollowerFrame { hello: Some(hello), ..FollowerFrame::default() };
    if queue.send(first).await.is_err() {
        return Err(RpcError::Invalid("the stream's queue closed before its first frame"));
    }
    let frames = ReceiverStream::new(frames).map(|frame| OutMessage::new(&follower_to_wire(frame)));
    let answer = channel.oneshot(bulk::request(METHOD, frames)).await;
    let answer = answer.map_err(|error| RpcError::of(address, &Status::from_error(error.into())))?;
    Ok((FollowerSender { queue }, LeaderFrames { messages: InMessages::of_response(address, answer)? }))
}

/// A follower's frames, as a leader receives them.
#[derive(Debug)]
pub struct FollowerFrames {
    messages: InMessages<wire::FollowerMessage>,
}

impl FollowerFrames {
    /// The next frame; None where the follower ended the stream.
    ///
    /// # Errors
    /// The stream broke, or the peer sent something else.
    pub async fn next(&mut self) -> Result<Option<FollowerFrame>, RpcError> {
        self.messages.next().await?.map(follower_from_wire).transpose()
    }
}

/// Takes a leader's streams.
pub trait ReplicationServer: Send + Sync + 'static {
    /// A follower dialled and said `hello`. Refuses with a reason, or gives what to send it; the source is dropped when the
    /// stream ends.
    ///
    /// # Errors
    /// Why the stream is refused: it goes to the follower's log.
    fn accept(
        self: Arc<Self>,
        hello: Hello,
        frames: FollowerFrames,
    ) -> impl Future<Output = Result<LeaderSource, String>> + Send;
}

/// The service to put on the INTERNAL listener.
pub fn routes<S: ReplicationServer>(server: Arc<S>) -> Routes {
    Routes::new(Streams { server })
}

struct Streams<S> {
    server: Arc<S>,
}

impl<S> Clone for Streams<S> {
    fn clone(&self) -> Self {
        Self { server: Arc::clone(&self.server) }
    }
}

impl<S> tonic::server::NamedService for Streams<S> {
    const NAME: &'static str = SERVICE;
}

impl<S: ReplicationServer> Service<Request<Body>> for Streams<S> {
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let server = Arc::clone(&self.server);
        Box::pin(async move { Ok(accept(server, request).await.unwrap_or_else(Status::into_http)) })
    }
}

async fn accept<S: ReplicationServer>(server: Arc<S>, request: Request<Body>) -> Result<Response<Body>, Status> {
    if request.uri().path() != METHOD {
        return Err(Status::unimplemented("no such method"));
    }
    let mut frames = FollowerFrames { messages: InMessages::new("follower", request.into_body()) };
    let first = frames.next().await.map_err(|error| Status::invalid_argument(error.to_string()))?;
    let hello = first.and_then(|frame| frame.hello).ok_or_else(|| Status::invalid_argument("no hello"))?;
    let source = server.accept(hello, frames).await.map_err(Status::failed_precondition)?;
    Ok(bulk::response(source.map(leader_message)))
}

/// A leader's frame with its records uncopied.
fn leader_message(frame: LeaderFrame) -> OutMessage {
    let (head, data) = leader_to_wire(frame);
    let mut message = OutMessage::new(&head);
    for mut data in data {
        let batches = std::mem::take(&mut data.batches);
        message.push_nested(DATA_FIELD, &data, BATCHES_FIELD, batches);
    }
    message
}

fn follower_to_wire(frame: FollowerFrame) -> wire::FollowerMessage {
    wire::FollowerMessage {
        hello: frame.hello.map(|h| wire::Hello {
            version: INTERNAL_VERSION,
            cluster_id: uuid_bytes(h.cluster_id.0),
            follower_id: h.follower.0,
            follower_incarnation: uuid_bytes(h.follower_incarnation.0),
            follower_broker_epoch: h.follower_epoch.0,
            stream_no: h.stream_no,
            leader_id: h.leader.0,
            leader_broker_epoch: h.leader_epoch.0,
            lane: h.lane,
            kind: kind_to_wire(h.kind).into(),
        }),
        opens: frame.opens.into_iter().map(open_to_wire).collect(),
        acks: frame.acks.into_iter().map(ack_to_wire).collect(),
        closes: frame.closes,
    }
}

fn ack_to_wire(ack: Ack) -> wire::Ack {
    wire::Ack {
        handle: ack.handle,
        open_no: ack.open_no,
        log_end: ack.log_end.0,
        log_start: ack.log_start.0,
        durable: ack.durable,
    }
}

fn open_to_wire(open: Open) -> wire::Open {
    wire::Open {
        handle: open.handle,
        topic_id: uuid_bytes(open.partition.topic_id.0),
        partition: open.partition.partition.0,
        leader_epoch: open.leader_epoch.0,
        open_no: open.open_no,
        log_end: open.log_end.0,
        last_epoch: open.last_epoch.0,
        log_start: open.log_start.0,
        durable: open.durable,
    }
}

fn follower_from_wire(message: wire::FollowerMessage) -> Result<FollowerFrame, RpcError> {
    let hello = message.hello.map(|h| {
        check_version(h.version)?;
        Ok::<_, RpcError>(Hello {
            cluster_id: ClusterId(uuid_from(&h.cluster_id)?),
            follower: BrokerId(h.follower_id),
            follower_incarnation: Incarnation(uuid_from(&h.follower_incarnation)?),
            follower_epoch: BrokerEpoch(h.follower_broker_epoch),
            stream_no: h.stream_no,
            leader: BrokerId(h.leader_id),
            leader_epoch: BrokerEpoch(h.leader_broker_epoch),
            lane: h.lane,
            kind: kind_from_wire(h.kind).ok_or(RpcError::Invalid("a stream is of an unknown kind"))?,
        })
    });
    let opens = message.opens.into_iter().map(|o| {
        Ok::<_, RpcError>(Open {
            handle: o.handle,
            partition: TopicPartition {
                topic_id: TopicId(uuid_from(&o.topic_id)?),
                partition: PartitionIndex(o.partition),
            },
            leader_epoch: LeaderEpoch(o.leader_epoch),
            open_no: o.open_no,
            log_end: Offset(o.log_end),
            last_epoch: LeaderEpoch(o.last_epoch),
            log_start: Offset(o.log_start),
            durable: o.durable,
        })
    });
    let acks = message.acks.into_iter().map(|a| Ack {
        handle: a.handle,
        open_no: a.open_no,
        log_end: Offset(a.log_end),
        log_start: Offset(a.log_start),
        durable: a.durable,
    });
    Ok(FollowerFrame {
        hello: hello.transpose()?,
        opens: opens.collect::<Result<_, _>>()?,
        acks: acks.collect(),
        closes: message.closes,
    })
}

/// What precedes the records, and the records.
fn leader_to_wire(frame: LeaderFrame) -> (wire::LeaderMessage, Vec<wire::Data>) {
    let head = wire::LeaderMessage {
        hello: frame.hello.map(|epoch| wire::HelloAnswer { version: INTERNAL_VERSION, leader_broker_epoch: epoch.0 }),
        answers: frame
            .answers
            .into_iter()
            .map(|a| wire::OpenAnswer { handle: a.handle, open_no: a.open_no, answer: Some(answer_to_wire(a.answer)) })
            .collect(),
        progress: frame
            .progress
            .into_iter()
            .map(|p| wire::Progress {
                handle: p.handle,
                open_no: p.open_no,
                high_watermark: p.high_watermark.0,
                log_start: p.log_start.0,
                sync_before_ack: p.sync_before_ack,
            })
            .collect(),
        data: Vec::new(),
    };
    let data = frame.data.into_iter().map(|d| wire::Data {
        handle: d.handle,
        open_no: d.open_no,
        prev_offset: d.prev_offset.0,
        prev_epoch: d.prev_epoch.0,
        high_watermark: d.high_watermark.0,
        log_start: d.log_start.0,
        leader_log_end: d.leader_log_end.0,
        batches: d.batches,
    });
    (head, data.collect())
}

fn kind_to_wire(kind: LaneKind) -> wire::LaneKind {
    match kind {
        LaneKind::Mixed => wire::LaneKind::Mixed,
        LaneKind::Tail => wire::LaneKind::Tail,
        LaneKind::CatchUp => wire::LaneKind::CatchUp,
    }
}

fn kind_from_wire(kind: i32) -> Option<LaneKind> {
    match wire::LaneKind::try_from(kind).ok()? {
        wire::LaneKind::Mixed => Some(LaneKind::Mixed),
        wire::LaneKind::Tail => Some(LaneKind::Tail),
        wire::LaneKind::CatchUp => Some(LaneKind::CatchUp),
    }
}

fn answer_to_wire(answer: Answer) -> wire::open_answer::Answer {
    use wire::open_answer::Answer as Wire;
    match answer {
        Answer::Opened { high_watermark, log_start, log_end, sync_before_ack } => Wire::Opened(wire::Opened {
            high_watermark: high_watermark.0,
            log_start: log_start.0,
            log_end: log_end.0,
            sync_before_ack,
        }),
        Answer::Diverging { epoch, end } => Wire::Diverging(wire::Diverging { epoch: epoch.0, end: end.0 }),
        Answer::OutOfRange { log_start, log_end } => {
            Wire::OutOfRange(wire::OutOfRange { log_start: log_start.0, log_end: log_end.0 })
        }
        Answer::Refused(code) => Wire::Refused(i32::from(code)),
        Answer::Moved(to) => Wire::Moved(wire::Moved { to: kind_to_wire(to).into() }),
    }
}

fn answer_from_wire(answer: Option<wire::open_answer::Answer>) -> Result<Answer, RpcError> {
    use wire::open_answer::Answer as Wire;
    Ok(match answer.ok_or(RpcError::Invalid("an open was answered with nothing"))? {
        Wire::Opened(o) => Answer::Opened {
            high_watermark: Offset(o.high_watermark),
            log_start: Offset(o.log_start),
            log_end: Offset(o.log_end),
            sync_before_ack: o.sync_before_ack,
        },
        Wire::Diverging(d) => Answer::Diverging { epoch: LeaderEpoch(d.epoch), end: Offset(d.end) },
        Wire::OutOfRange(r) => Answer::OutOfRange { log_start: Offset(r.log_start), log_end: Offset(r.log_end) },
        Wire::Refused(code) => {
            Answer::Refused(i16::try_from(code).map_err(|_| RpcError::Invalid("an error code is no int16"))?)
        }
        Wire::Moved(moved) => match kind_from_wire(moved.to) {
            Some(to @ (LaneKind::Tail | LaneKind::CatchUp)) => Answer::Moved(to),
            Some(LaneKind::Mixed) | None => {
                return Err(RpcError::Invalid("a session is to move to a stream of no known kind"));
            }
        },
    })
}

fn leader_from_wire(message: wire::LeaderMessage) -> Result<LeaderFrame, RpcError> {
    let hello = message.hello.map(|h| check_version(h.version).map(|()| BrokerEpoch(h.leader_broker_epoch)));
    let answers = message.answers.into_iter().map(|a| {
        Ok::<_, RpcError>(OpenAnswer { handle: a.handle, open_no: a.open_no, answer: answer_from_wire(a.answer)? })
    });
    let progress = message.progress.into_iter().map(|p| Progress {
        handle: p.handle,
        open_no: p.open_no,
        high_watermark: Offset(p.high_watermark),
        log_start: Offset(p.log_start),
        sync_before_ack: p.sync_before_ack,
    });
    let data = message.data.into_iter().map(|d| Data {
        handle: d.handle,
        open_no: d.open_no,
        prev_offset: Offset(d.prev_offset),
        prev_epoch: LeaderEpoch(d.prev_epoch),
        high_watermark: Offset(d.high_watermark),
        log_start: Offset(d.log_start),
        leader_log_end: Offset(d.leader_log_end),
        batches: d.batches,
    });
    Ok(LeaderFrame {
        hello: hello.transpose()?,
        answers: answers.collect::<Result<_, _>>()?,
        progress: progress.collect(),
        data: data.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Uuid;

    fn hello() -> Hello {
        Hello {
            cluster_id: ClusterId(Uuid::from_u128(7)),
            follower: BrokerId(2),
            follower_incarnation: Incarnation(Uuid::from_u128(8)),
            follower_epoch: BrokerEpoch(40),
            stream_no: 3,
            leader: BrokerId(1),
            leader_epoch: BrokerEpoch(39),
            lane: 0,
            kind: LaneKind::CatchUp,
        }
    }

    #[test]
    fn frames_read_back_as_they_were_written() {
        let partition = TopicPartition { topic_id: TopicId(Uuid::from_u128(9)), partition: PartitionIndex(4) };
        let follower = FollowerFrame {
            hello: Some(hello()),
            opens: vec![Open {
                handle: 1,
                partition,
                leader_epoch: LeaderEpoch(5),
                open_no: 6,
                log_end: Offset(70),
                last_epoch: LeaderEpoch(4),
                log_start: Offset(1),
                durable: true,
            }],
            acks: vec![Ack { handle: 1, open_no: 6, log_end: Offset(80), log_start: Offset(1), durable: true }],
            closes: vec![9],
        };
        assert_eq!(follower_from_wire(follower_to_wire(follower.clone())), Ok(follower));
        let answers = [
            Answer::Opened {
                high_watermark: Offset(1),
                log_start: Offset(0),
                log_end: Offset(2),
                sync_before_ack: true,
            },
            Answer::Diverging { epoch: LeaderEpoch(-1), end: Offset(5) },
            Answer::OutOfRange { log_start: Offset(3), log_end: Offset(9) },
            Answer::Refused(75),
            Answer::Moved(LaneKind::Tail),
            Answer::Moved(LaneKind::CatchUp),
        ];
        let leader = LeaderFrame {
            hello: Some(BrokerEpoch(39)),
            answers: answers.into_iter().map(|answer| OpenAnswer { handle: 1, open_no: 6, answer }).collect(),
            progress: vec![Progress {
                handle: 1,
                open_no: 6,
                high_watermark: Offset(3),
                log_start: Offset(0),
                sync_before_ack: true,
            }],
            data: vec![Data {
                handle: 1,
                open_no: 6,
                prev_offset: Offset(70),
                prev_epoch: LeaderEpoch(4),
                high_watermark: Offset(60),
                log_start: Offset(0),
                leader_log_end: Offset(99),
                batches: vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")],
            }],
        };
        let (mut message, data) = leader_to_wire(leader.clone());
        message.data = data;
        assert_eq!(leader_from_wire(message), Ok(leader));
    }

    #[test]
    fn a_follower_that_tells_no_kind_of_stream_knows_of_none() {
        let mut message = follower_to_wire(FollowerFrame { hello: Some(hello()), ..FollowerFrame::default() });
        message.hello.as_mut().unwrap().kind = wire::Hello::default().kind;
        let read = follower_from_wire(message.clone()).unwrap();
        assert_eq!(read.hello, Some(Hello { kind: LaneKind::Mixed, ..hello() }));
        message.hello.as_mut().unwrap().kind = 77;
        assert!(matches!(follower_from_wire(message), Err(RpcError::Invalid(_))));
        for to in [0, 77] {
            let answer = wire::open_answer::Answer::Moved(wire::Moved { to });
            assert!(matches!(answer_from_wire(Some(answer)), Err(RpcError::Invalid(_))), "{to}");
        }
    }

    #[test]
    fn a_peer_of_another_version_is_refused() {
        let mut message = follower_to_wire(FollowerFrame { hello: Some(hello()), ..FollowerFrame::default() });
        message.hello.as_mut().unwrap().version = 2;
        assert!(matches!(follower_from_wire(message), Err(RpcError::Invalid(_))));
    }

    struct Echo;

    impl ReplicationServer for Echo {
        async fn accept(self: Arc<Self>, hello: Hello, frames: FollowerFrames) -> Result<LeaderSource, String> {
            if hello.leader != BrokerId(1) {
                return Err("not me".to_owned());
            }
            let answers = futures_util::stream::unfold(frames, |mut frames| async move {
                let frame = frames.next().await.ok()??;
                let answer = |o: &Open| OpenAnswer { handle: o.handle, open_no: o.open_no, answer: Answer::Refused(3) };
                let answers = frame.opens.iter().map(answer).collect();
                Some((LeaderFrame { answers, ..LeaderFrame::default() }, frames))
            });
            Ok(answers.boxed())
        }
    }

    #[tokio::test]
    async fn a_stream_carries_frames_both_ways_and_refuses_a_wrong_hello() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(crate::net::serve(listener, routes(Arc::new(Echo)), std::future::pending()));
        let refused = dial(&Network::Tcp, &address, Hello { leader: BrokerId(5), ..hello() }).await;
        assert!(matches!(refused, Err(RpcError::Refused { .. })), "{refused:?}");
        let (sender, mut frames) = dial(&Network::Tcp, &address, hello()).await.unwrap();
        let open = Open {
            handle: 11,
            partition: TopicPartition { topic_id: TopicId::NONE, partition: PartitionIndex(0) },
            leader_epoch: LeaderEpoch(0),
            open_no: 1,
            log_end: Offset(0),
            last_epoch: LeaderEpoch(-1),
            log_start: Offset(0),
            durable: false,
        };
        assert!(sender.send(FollowerFrame { opens: vec![open], ..FollowerFrame::default() }).await);
        let frame = frames.next().await.unwrap().unwrap();
        assert_eq!(frame.answers, [OpenAnswer { handle: 11, open_no: 1, answer: Answer::Refused(3) }]);
    }

    #[tokio::test]
    async fn a_peer_with_generated_code_is_understood() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(crate::net::serve(listener, routes(Arc::new(Echo)), std::future::pending()));
        let channel = Network::Tcp.connect(&address).await.unwrap();
        let mut client = wire::replication_client::ReplicationClient::new(channel);
        let first = follower_to_wire(FollowerFrame { hello: Some(hello()), ..FollowerFrame::default() });
        let open = wire::Open { handle: 11, topic_id: vec![0; 16].into(), open_no: 1, ..wire::Open::default() };
        let second = wire::FollowerMessage { opens: vec![open], ..wire::FollowerMessage::default() };
        let answer = client.stream(futures_util::stream::iter([first, second])).await.unwrap();
        let mut answers = answer.into_inner();
        let message = answers.message().await.unwrap().unwrap();
        let expected = OpenAnswer { handle: 11, open_no: 1, answer: Answer::Refused(3) };
        assert_eq!(leader_from_wire(message).unwrap().answers, [expected]);
        assert_eq!(answers.message().await.unwrap(), None, "the stream ends with OK");
    }
}
