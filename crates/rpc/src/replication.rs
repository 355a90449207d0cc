//! The replication stream of one follower, leader and lane (`R56` to `R64`), as frames of plain types.
//!
//! Frames only carry: every check of meaning (sessions, epochs, offsets) is made by the receiver's `replication` core.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use model::{
    BrokerEpoch, BrokerId, ClusterId, Incarnation, LeaderEpoch, Offset, PartitionIndex, TopicId, TopicPartition,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::wire::replication as wire;
use crate::{INTERNAL_VERSION, RpcError, check_version, net, uuid_bytes, uuid_from};

/// Frames under way in one direction of one stream, before the writer waits (invariant 9).
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

/// Writes frames to the peer; waits while the transport is full.
#[derive(Clone, Debug)]
pub struct FrameSender<M> {
    queue: mpsc::Sender<M>,
}

impl FrameSender<wire::FollowerMessage> {
    /// Sends a frame; false once the stream has ended.
    pub async fn send(&self, frame: FollowerFrame) -> bool {
        self.queue.send(follower_to_wire(frame)).await.is_ok()
    }
}

impl FrameSender<Result<wire::LeaderMessage, Status>> {
    /// Sends a frame; false once the stream has ended.
    pub async fn send(&self, frame: LeaderFrame) -> bool {
        self.queue.send(Ok(leader_to_wire(frame))).await.is_ok()
    }
}

/// Sends a follower's frames.
pub type FollowerSender = FrameSender<wire::FollowerMessage>;
/// Sends a leader's frames.
pub type LeaderSender = FrameSender<Result<wire::LeaderMessage, Status>>;

/// A leader's frames, as a follower receives them.
#[derive(Debug)]
pub struct LeaderFrames {
    peer: String,
    stream: Streaming<wire::LeaderMessage>,
}

impl LeaderFrames {
    /// The next frame; None where the leader ended the stream.
    ///
    /// # Errors
    /// The stream broke, or the peer sent something else.
    pub async fn next(&mut self) -> Result<Option<LeaderFrame>, RpcError> {
        let message = self.stream.message().await.map_err(|status| RpcError::of(&self.peer, &status))?;
        message.map(leader_from_wire).transpose()
    }
}

/// Dials the leader at `host:port` and says hello. The leader's own hello is the first frame to come.
///
/// # Errors
/// [`RpcError::Unavailable`] or, where the leader is another than meant, [`RpcError::Refused`].
pub async fn dial(address: &str, hello: Hello) -> Result<(FollowerSender, LeaderFrames), RpcError> {
    let channel = net::connect(address).await?;
    let mut client = wire::replication_client::ReplicationClient::new(channel)
        .max_decoding_message_size(net::MAX_MESSAGE)
        .max_encoding_message_size(net::MAX_MESSAGE);
    let (queue, frames) = mpsc::channel(QUEUE);
    let first = FollowerFrame { hello: Some(hello), ..FollowerFrame::default() };
    if queue.send(follower_to_wire(first)).await.is_err() {
        return Err(RpcError::Invalid("the stream's queue closed before its first frame"));
    }
    let answer = client.stream(ReceiverStream::new(frames)).await.map_err(|status| RpcError::of(address, &status))?;
    Ok((FrameSender { queue }, LeaderFrames { peer: address.to_owned(), stream: answer.into_inner() }))
}

/// A follower's frames, as a leader receives them.
pub struct FollowerFrames {
    stream: Streaming<wire::FollowerMessage>,
}

impl std::fmt::Debug for FollowerFrames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FollowerFrames")
    }
}

impl FollowerFrames {
    /// The next frame; None where the follower ended the stream.
    ///
    /// # Errors
    /// The stream broke, or the peer sent something else.
    pub async fn next(&mut self) -> Result<Option<FollowerFrame>, RpcError> {
        let message = self.stream.message().await.map_err(|status| RpcError::of("follower", &status))?;
        message.map(follower_from_wire).transpose()
    }
}

/// Takes a leader's streams.
pub trait ReplicationServer: Send + Sync + 'static {
    /// A follower dialled and said `hello`. Refuses with a reason, or owns the stream from here on.
    ///
    /// # Errors
    /// Why the stream is refused: it goes to the follower's log.
    fn accept(
        self: Arc<Self>,
        hello: Hello,
        frames: FollowerFrames,
        sender: LeaderSender,
    ) -> impl Future<Output = Result<(), String>> + Send;
}

/// The service to put on the INTERNAL listener.
pub fn routes<S: ReplicationServer>(server: Arc<S>) -> Routes {
    let service = wire::replication_server::ReplicationServer::new(Service { server })
        .max_decoding_message_size(net::MAX_MESSAGE)
        .max_encoding_message_size(net::MAX_MESSAGE);
    Routes::new(service)
}

struct Service<S> {
    server: Arc<S>,
}

type Frames = std::pin::Pin<Box<dyn Stream<Item = Result<wire::LeaderMessage, Status>> + Send>>;

#[tonic::async_trait]
impl<S: ReplicationServer> wire::replication_server::Replication for Service<S> {
    type StreamStream = Frames;

    async fn stream(&self, request: Request<Streaming<wire::FollowerMessage>>) -> Result<Response<Frames>, Status> {
        let mut frames = FollowerFrames { stream: request.into_inner() };
        let first = frames.next().await.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let hello = first.and_then(|frame| frame.hello).ok_or_else(|| Status::invalid_argument("no hello"))?;
        let (queue, outgoing) = mpsc::channel(QUEUE);
        let accepted = Arc::clone(&self.server).accept(hello, frames, FrameSender { queue }).await;
        accepted.map_err(Status::failed_precondition)?;
        Ok(Response::new(ReceiverStream::new(outgoing).boxed()))
    }
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
        }),
        opens: frame.opens.into_iter().map(open_to_wire).collect(),
        acks: frame
            .acks
            .into_iter()
            .map(|a| wire::Ack { handle: a.handle, open_no: a.open_no, log_end: a.log_end.0, log_start: a.log_start.0 })
            .collect(),
        closes: frame.closes,
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
        })
    });
    let acks = message.acks.into_iter().map(|a| Ack {
        handle: a.handle,
        open_no: a.open_no,
        log_end: Offset(a.log_end),
        log_start: Offset(a.log_start),
    });
    Ok(FollowerFrame {
        hello: hello.transpose()?,
        opens: opens.collect::<Result<_, _>>()?,
        acks: acks.collect(),
        closes: message.closes,
    })
}

fn leader_to_wire(frame: LeaderFrame) -> wire::LeaderMessage {
    wire::LeaderMessage {
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
            })
            .collect(),
        data: frame
            .data
            .into_iter()
            .map(|d| wire::Data {
                handle: d.handle,
                open_no: d.open_no,
                prev_offset: d.prev_offset.0,
                prev_epoch: d.prev_epoch.0,
                high_watermark: d.high_watermark.0,
                log_start: d.log_start.0,
                leader_log_end: d.leader_log_end.0,
                batches: d.batches,
            })
            .collect(),
    }
}

fn answer_to_wire(answer: Answer) -> wire::open_answer::Answer {
    use wire::open_answer::Answer as Wire;
    match answer {
        Answer::Opened { high_watermark, log_start, log_end } => {
            Wire::Opened(wire::Opened { high_watermark: high_watermark.0, log_start: log_start.0, log_end: log_end.0 })
        }
        Answer::Diverging { epoch, end } => Wire::Diverging(wire::Diverging { epoch: epoch.0, end: end.0 }),
        Answer::OutOfRange { log_start, log_end } => {
            Wire::OutOfRange(wire::OutOfRange { log_start: log_start.0, log_end: log_end.0 })
        }
        Answer::Refused(code) => Wire::Refused(i32::from(code)),
    }
}

fn answer_from_wire(answer: Option<wire::open_answer::Answer>) -> Result<Answer, RpcError> {
    use wire::open_answer::Answer as Wire;
    Ok(match answer.ok_or(RpcError::Invalid("an open was answered with nothing"))? {
        Wire::Opened(o) => Answer::Opened {
            high_watermark: Offset(o.high_watermark),
            log_start: Offset(o.log_start),
            log_end: Offset(o.log_end),
        },
        Wire::Diverging(d) => Answer::Diverging { epoch: LeaderEpoch(d.epoch), end: Offset(d.end) },
        Wire::OutOfRange(r) => Answer::OutOfRange { log_start: Offset(r.log_start), log_end: Offset(r.log_end) },
        Wire::Refused(code) => {
            Answer::Refused(i16::try_from(code).map_err(|_| RpcError::Invalid("an error code is no int16"))?)
        }
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
            }],
            acks: vec![Ack { handle: 1, open_no: 6, log_end: Offset(80), log_start: Offset(1) }],
            closes: vec![9],
        };
        assert_eq!(follower_from_wire(follower_to_wire(follower.clone())), Ok(follower));
        let answers = [
            Answer::Opened { high_watermark: Offset(1), log_start: Offset(0), log_end: Offset(2) },
            Answer::Diverging { epoch: LeaderEpoch(-1), end: Offset(5) },
            Answer::OutOfRange { log_start: Offset(3), log_end: Offset(9) },
            Answer::Refused(75),
        ];
        let leader = LeaderFrame {
            hello: Some(BrokerEpoch(39)),
            answers: answers.into_iter().map(|answer| OpenAnswer { handle: 1, open_no: 6, answer }).collect(),
            progress: vec![Progress { handle: 1, open_no: 6, high_watermark: Offset(3), log_start: Offset(0) }],
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
        assert_eq!(leader_from_wire(leader_to_wire(leader.clone())), Ok(leader));
    }

    #[test]
    fn a_peer_of_another_version_is_refused() {
        let mut message = follower_to_wire(FollowerFrame { hello: Some(hello()), ..FollowerFrame::default() });
        message.hello.as_mut().unwrap().version = 2;
        assert!(matches!(follower_from_wire(message), Err(RpcError::Invalid(_))));
    }

    struct Echo;

    impl ReplicationServer for Echo {
        async fn accept(
            self: Arc<Self>,
            hello: Hello,
            mut frames: FollowerFrames,
            sender: LeaderSender,
        ) -> Result<(), String> {
            if hello.leader != BrokerId(1) {
                return Err("not me".to_owned());
            }
            tokio::spawn(async move {
                while let Ok(Some(frame)) = frames.next().await {
                    let answers = frame.opens.iter().map(|o| OpenAnswer {
                        handle: o.handle,
                        open_no: o.open_no,
                        answer: Answer::Refused(3),
                    });
                    sender.send(LeaderFrame { answers: answers.collect(), ..LeaderFrame::default() }).await;
                }
            });
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_stream_carries_frames_both_ways_and_refuses_a_wrong_hello() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(net::serve(listener, routes(Arc::new(Echo)), std::future::pending()));
        let refused = dial(&address, Hello { leader: BrokerId(5), ..hello() }).await;
        assert!(matches!(refused, Err(RpcError::Refused { .. })), "{refused:?}");
        let (sender, mut frames) = dial(&address, hello()).await.unwrap();
        let open = Open {
            handle: 11,
            partition: TopicPartition { topic_id: TopicId::NONE, partition: PartitionIndex(0) },
            leader_epoch: LeaderEpoch(0),
            open_no: 1,
            log_end: Offset(0),
            last_epoch: LeaderEpoch(-1),
            log_start: Offset(0),
        };
        assert!(sender.send(FollowerFrame { opens: vec![open], ..FollowerFrame::default() }).await);
        let frame = frames.next().await.unwrap().unwrap();
        assert_eq!(frame.answers, [OpenAnswer { handle: 11, open_no: 1, answer: Answer::Refused(3) }]);
    }
}
