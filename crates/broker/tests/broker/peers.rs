//! The replication protocol against peers that the test plays itself: what counts, and what hostile frames come to.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use broker::api::{Acks, BrokerApi, FetchRequest};
use bytes::Bytes;
use futures_util::StreamExt;
use metadata::ControlRequest;
use metadata::control::Heartbeat;
use model::{
    BrokerEpoch, BrokerId, ClusterId, EndMarker, ErrorCode, Incarnation, LeaderEpoch, Offset, PartitionIndex,
    ProducerEpoch, ProducerId, TopicId, TopicPartition, Uuid,
};
use rpc::broker::{BrokerPeer, Probe};
use rpc::net::Network;
use rpc::replication::{
    Ack, Answer, Data, FollowerFrame, FollowerFrames, FollowerSender, Hello, LaneKind, LeaderFrame, LeaderFrames,
    LeaderSource, Open, OpenAnswer, ReplicationServer, dial,
};
use storage::disk::{Call, Crash, FaultKind, read_small_file};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::cluster::*;
use crate::transactions::{Agrees, committed, end, end_of, marker, transactional, write};

pub(crate) const PLAYED: i32 = 9;

/// A broker that is registered, heartbeats and answers probes; its side of replication is the test's.
pub(crate) struct Played {
    controller: Arc<Controller>,
    epoch: Arc<AtomicI64>,
    /// Streams of those who follow it.
    followers: mpsc::UnboundedReceiver<(FollowerFrames, mpsc::Sender<LeaderFrame>)>,
    streams: u64,
}

#[derive(Debug)]
struct Peer {
    epoch: Arc<AtomicI64>,
    streams: mpsc::UnboundedSender<(FollowerFrames, mpsc::Sender<LeaderFrame>)>,
}

impl BrokerPeer for Peer {
    fn identity(&self) -> Probe {
        Probe {
            cluster_id: CLUSTER,
            broker_id: BrokerId(PLAYED),
            incarnation: Incarnation(Uuid::from_u128(9)),
            broker_epoch: BrokerEpoch(self.epoch.load(Ordering::SeqCst)),
        }
    }
}

impl ReplicationServer for Peer {
    async fn accept(self: Arc<Self>, _: Hello, frames: FollowerFrames) -> Result<LeaderSource, String> {
        let hello = BrokerEpoch(self.epoch.load(Ordering::SeqCst));
        let (sender, source) = mpsc::channel(8);
        sender.send(LeaderFrame { hello: Some(hello), ..LeaderFrame::default() }).await.unwrap();
        self.streams.send((frames, sender)).map_err(|_| "the test is over".to_owned())?;
        let next = |mut source: mpsc::Receiver<LeaderFrame>| async move { Some((source.recv().await?, source)) };
        Ok(futures_util::stream::unfold(source, next).boxed())
    }
}

impl Played {
    pub(crate) async fn start(cluster: &Cluster) -> Played {
        Played::start_in(cluster, None).await
    }

    /// One in a rack.
    async fn start_in(cluster: &Cluster, rack: Option<&str>) -> Played {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let epoch = Arc::new(AtomicI64::new(-1));
        let (streams, followers) = mpsc::unbounded_channel();
        let peer = Arc::new(Peer { epoch: Arc::clone(&epoch), streams });
        let routes = rpc::net::merge([rpc::replication::routes(Arc::clone(&peer)), rpc::broker::routes(peer)]);
        tokio::spawn(rpc::net::serve(listener, routes, std::future::pending()));
        let controller = Arc::clone(&cluster.controller);
        epoch.store(register_by_hand(&controller, PLAYED, port, rack).0, Ordering::SeqCst);
        let (beats, own) = (Arc::clone(&controller), Arc::clone(&epoch));
        tokio::spawn(async move {
            loop {
                beats.ask(&heartbeat(&beats, &own, false));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Played { controller, epoch, followers, streams: 0 }
    }

    /// Has itself fenced, which takes it out of every ISR; the next heartbeat unfences it.
    pub(crate) fn leave(&self) {
        self.controller.ask(&heartbeat(&self.controller, &self.epoch, true));
    }

    fn hello(&mut self, leader: i32) -> Hello {
        self.streams += 1;
        Hello {
            cluster_id: CLUSTER,
            follower: BrokerId(PLAYED),
            follower_incarnation: Incarnation(Uuid::from_u128(9)),
            follower_epoch: BrokerEpoch(self.epoch.load(Ordering::SeqCst)),
            stream_no: self.streams,
            leader: BrokerId(leader),
            leader_epoch: self.controller.image().broker_epoch(BrokerId(leader)),
            lane: 0,
            kind: LaneKind::Mixed,
        }
    }

    fn address(&self, leader: i32) -> String {
        let image = self.controller.image();
        let listener = image.broker(BrokerId(leader)).unwrap().listener("INTERNAL").unwrap();
        format!("{}:{}", listener.host, listener.port)
    }

    /// Dials a leader as a follower does.
    async fn follow(&mut self, leader: i32) -> Following {
        self.follow_on(leader, LaneKind::Mixed).await
    }

    /// The same, on a stream of a kind.
    pub(crate) async fn follow_on(&mut self, leader: i32, kind: LaneKind) -> Following {
        let hello = Hello { kind, lane: u32::from(kind == LaneKind::CatchUp), ..self.hello(leader) };
        let (sender, frames) = soon("a stream", dial(&Network::Tcp, &self.address(leader), hello)).await.unwrap();
        Following { sender, frames }
    }

    /// The next follower that dials.
    async fn followed(&mut self) -> Followed {
        let (frames, sender) = soon("a follower", self.followers.recv()).await.unwrap();
        Followed { frames, sender }
    }
}

/// Of the played broker, which has applied all of the metadata.
fn heartbeat(controller: &Controller, epoch: &AtomicI64, want_fence: bool) -> ControlRequest {
    ControlRequest::Heartbeat(Heartbeat {
        broker: BrokerId(PLAYED),
        epoch: BrokerEpoch(epoch.load(Ordering::SeqCst)),
        next_offset: controller.image().next_offset(),
        want_fence,
        want_shutdown: false,
        offline_directories: Vec::new(),
        cordoned_directories: Vec::new(),
        lossy: Vec::new(),
        full_directories: Vec::new(),
        exhausted_directories: Vec::new(),
    })
}

/// Reads frames of a stream until `look` finds something in one.
async fn until<F, T, E: std::fmt::Debug>(
    what: &str,
    mut read: impl AsyncFnMut() -> Result<Option<F>, E>,
    mut look: impl FnMut(F) -> Option<T>,
) -> T {
    loop {
        let frame = soon(what, read()).await.unwrap();
        if let Some(found) = look(frame.unwrap_or_else(|| panic!("the stream ended before {what}"))) {
            return found;
        }
    }
}

/// The played broker as a follower.
pub(crate) struct Following {
    sender: FollowerSender,
    frames: LeaderFrames,
}

impl Following {
    pub(crate) async fn open(&self, open: Open) {
        assert!(self.sender.send(FollowerFrame { opens: vec![open], ..FollowerFrame::default() }).await);
    }

    pub(crate) async fn ack(&self, handle: u64, open_no: u64, log_end: i64) {
        let ack = Ack { handle, open_no, log_end: Offset(log_end), log_start: Offset(0), durable: true };
        self.sender.send(FollowerFrame { acks: vec![ack], ..FollowerFrame::default() }).await;
    }

    pub(crate) async fn next<T>(&mut self, what: &str, look: impl FnMut(LeaderFrame) -> Option<T>) -> T {
        until(what, async || self.frames.next().await, look).await
    }

    pub(crate) async fn answer(&mut self) -> OpenAnswer {
        self.next("an answer", |frame| frame.answers.first().copied()).await
    }

    /// Reads until the leader ends the stream.
    async fn ended(&mut self) {
        while let Ok(Some(_)) = soon("the end of the stream", self.frames.next()).await {}
    }
}

/// The played broker as a leader.
struct Followed {
    frames: FollowerFrames,
    sender: mpsc::Sender<LeaderFrame>,
}

impl Followed {
    async fn next<T>(&mut self, what: &str, look: impl FnMut(FollowerFrame) -> Option<T>) -> T {
        until(what, async || self.frames.next().await, look).await
    }

    async fn opened(&mut self) -> Open {
        self.next("an open", |frame| frame.opens.first().copied()).await
    }

    async fn answer(&self, open: &Open, answer: Answer) {
        let answer = OpenAnswer { handle: open.handle, open_no: open.open_no, answer };
        self.sender.send(LeaderFrame { answers: vec![answer], ..LeaderFrame::default() }).await.unwrap();
    }

    async fn accept(&self, open: &Open) {
        let (start, end) = (Offset(0), open.log_end);
        self.answer(
            open,
            Answer::Opened { high_watermark: start, log_start: start, log_end: end, sync_before_ack: false },
        )
        .await;
    }

    async fn data(&self, data: Data) {
        self.sender.send(LeaderFrame { data: vec![data], ..LeaderFrame::default() }).await.unwrap();
    }
}

pub(crate) fn open(id: TopicPartition, number: u64, log_end: i64, last_epoch: i32) -> Open {
    Open {
        handle: number,
        partition: id,
        leader_epoch: LeaderEpoch(0),
        open_no: number,
        log_end: Offset(log_end),
        last_epoch: LeaderEpoch(last_epoch),
        log_start: Offset(0),
        durable: true,
    }
}

fn data(open: &Open, records: Bytes) -> Data {
    Data {
        handle: open.handle,
        open_no: open.open_no,
        prev_offset: open.log_end,
        prev_epoch: open.last_epoch,
        high_watermark: Offset(0),
        log_start: Offset(0),
        leader_log_end: open.log_end + 1,
        batches: vec![records],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_opens_sessions_and_reads_no_answers_loses_its_stream() {
    let cluster = Cluster::start(1, 1).await;
    let mut played = Played::start(&cluster).await;
    let id = cluster.topic("t", &[1, PLAYED], &[]).await;
    cluster.wait_leader(id).await;
    let mut stream = played.follow(1).await;
    // Large numbers take more room in what lies in the windows of the connection.
    let stale = |at| Open { leader_epoch: LeaderEpoch(-2), ..open(id, u64::MAX / 2 + at, 0, -1) };
    for at in (0..2_000_000).step_by(5_000) {
        let opens = (at..at + 5_000).map(stale).collect();
        let sent = stream.sender.send(FollowerFrame { opens, ..FollowerFrame::default() });
        // The leader has ended the stream, or reads no more of it: its end waits behind the answers.
        if !tokio::time::timeout(Duration::from_secs(10), sent).await.unwrap_or(false) {
            break;
        }
    }
    stream.ended().await;
    let hello = Hello { lane: 1_000_000, ..played.hello(1) };
    let refused = soon("an answer", dial(&Network::Tcp, &played.address(1), hello)).await;
    assert!(refused.is_err(), "a lane that no follower has");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acks_all_waits_until_the_follower_has_acknowledged_and_then_tells_it_the_high_watermark() {
    let cluster = Cluster::start(1, 2).await;
    let mut played = Played::start(&cluster).await;
    let id = cluster.topic("t", &[1, PLAYED], &[]).await;
    cluster.wait_leader(id).await;
    let mut stream = played.follow(1).await;
    stream.open(open(id, 1, 0, -1)).await;
    let opened = stream.answer().await;
    assert!(matches!(opened.answer, Answer::Opened { log_end: Offset(0), .. }), "{opened:?}");
    let mut waiting = Box::pin(begin_produce(cluster.broker(1), id, Acks::All, batch(&["a"])));
    let sent = stream.next("data", |frame| frame.data.first().cloned()).await;
    assert_eq!((sent.prev_offset, sent.leader_log_end), (Offset(0), Offset(1)));
    // Of other sessions: neither counts.
    stream.ack(99, 1, 1).await;
    stream.ack(1, 77, 1).await;
    let early = tokio::time::timeout(Duration::from_millis(200), &mut waiting).await;
    assert!(early.is_err(), "answered before the follower has it");
    stream.ack(1, 1, 1).await;
    assert_eq!(soon("the acknowledgement", waiting).await.error, ErrorCode::None);
    let progress = stream.next("progress", |frame| frame.progress.first().copied()).await;
    assert_eq!(progress.high_watermark, Offset(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_never_comes_before_the_answer_to_its_open() {
    let cluster = Cluster::start(1, 1).await;
    let mut played = Played::start(&cluster).await;
    let id = cluster.topic("t", &[1, PLAYED], &[]).await;
    cluster.wait_leader(id).await;
    produce(cluster.broker(1), id, Acks::Leader, batch(&["a"])).await;
    let mut stream = played.follow(1).await;
    for number in 1..200 {
        stream.open(open(id, number, 0, -1)).await;
        produce(cluster.broker(1), id, Acks::Leader, batch(&["b"])).await;
        let mut answered = false;
        stream
            .next("data of the newest session", |frame| {
                answered |= frame.answers.iter().any(|answer| answer.open_no == number);
                let data = frame.data.iter().any(|data| data.open_no == number);
                assert!(answered || !data, "data of session {number} came first");
                data.then_some(())
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_does_not_fit_the_window_is_sent_when_acknowledgements_make_room() {
    let cluster = Cluster::start(1, 1).await;
    let mut played = Played::start(&cluster).await;
    let id = cluster.topic("t", &[1, PLAYED], &[]).await;
    cluster.wait_leader(id).await;
    // Out of the ISR, so that its acknowledgements move nothing else.
    played.leave();
    cluster.wait_isr(id, &[1]).await;
    // Two of them are more than the window of 1 MiB, one is less.
    let large = "z".repeat(700_000);
    for _ in 0..2 {
        produce(cluster.broker(1), id, Acks::All, batch(&[&large])).await;
    }
    let mut stream = played.follow(1).await;
    stream.open(open(id, 1, 0, -1)).await;
    let first = stream.next("the first", |frame| frame.data.first().cloned()).await;
    assert_eq!(first.prev_offset, Offset(0));
    stream.ack(1, 1, 1).await;
    let second = stream.next("the second", |frame| frame.data.first().cloned()).await;
    assert_eq!(second.prev_offset, Offset(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_follower_loses_its_stream_and_harms_nobody() {
    let cluster = Cluster::start(1, 1).await;
    let mut played = Played::start(&cluster).await;
    let id = cluster.topic("t", &[1, PLAYED], &[]).await;
    cluster.wait_leader(id).await;
    produce(cluster.broker(1), id, Acks::Leader, batch(&["a"])).await;
    let mut stream = played.follow(1).await;
    let odd = [
        Open { log_end: Offset(i64::MAX), ..open(id, 1, 0, -1) },
        Open { log_end: Offset(i64::MIN), log_start: Offset(i64::MIN), ..open(id, 2, 0, -1) },
        Open { last_epoch: LeaderEpoch(i32::MAX), ..open(id, 3, 1, 0) },
        Open { leader_epoch: LeaderEpoch(-7), ..open(id, 4, 0, -1) },
    ];
    for odd in odd {
        stream.open(odd).await;
        let answer = stream.answer().await;
        assert!(!matches!(answer.answer, Answer::Opened { .. }), "{odd:?} {answer:?}");
    }
    // Neither the partition nor the epoch exist: refused, after a while.
    let nowhere = TopicPartition { topic_id: TopicId(Uuid::from_u128(404)), partition: PartitionIndex(-3) };
    stream.open(open(nowhere, 5, 0, -1)).await;
    stream.open(Open { leader_epoch: LeaderEpoch(1000), ..open(id, 6, 0, -1) }).await;
    let mut refused = Vec::new();
    while refused.len() < 2 {
        stream
            .next("a refusal", |frame| {
                refused.extend(frame.answers.iter().map(|answer| (answer.open_no, answer.answer)));
                Some(())
            })
            .await;
    }
    refused.sort_by_key(|(number, _)| *number);
    let unknown = Answer::Refused(ErrorCode::UnknownLeaderEpoch.code());
    assert_eq!(refused, [(5, unknown), (6, unknown)]);
    stream.open(open(id, 7, 0, -1)).await;
    stream.next("data", |frame| frame.data.first().cloned()).await;
    stream.ack(7, 7, i64::MAX).await;
    stream.ended().await;
    // Another try is as good as new.
    let mut stream = played.follow(1).await;
    stream.open(open(id, 8, 0, -1)).await;
    stream.next("data", |frame| frame.data.first().cloned()).await;
    stream.ack(8, 8, 1).await;
    cluster.wait_isr(id, &[1, PLAYED]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_of_another_cluster_leader_or_registration_is_refused() {
    // R5, R8, R56
    let cluster = Cluster::start(1, 1).await;
    let mut played = Played::start(&cluster).await;
    let id = cluster.topic("t", &[1, PLAYED], &[]).await;
    cluster.wait_leader(id).await;
    let (address, good) = (played.address(1), played.hello(1));
    let wrong = [
        Hello { cluster_id: ClusterId(Uuid::from_u128(1)), ..good },
        Hello { leader: BrokerId(2), ..good },
        Hello { leader_epoch: BrokerEpoch(good.leader_epoch.0 - 1), ..good },
        Hello { follower_epoch: BrokerEpoch(good.follower_epoch.0 - 1), ..good },
        Hello { follower: BrokerId(3), ..good },
    ];
    for hello in wrong {
        assert!(soon("an answer", dial(&Network::Tcp, &address, hello)).await.is_err(), "{hello:?}");
    }
    assert!(soon("an answer", dial(&Network::Tcp, &address, good)).await.is_ok());
    // The same stream number once more is an old stream.
    assert!(soon("an answer", dial(&Network::Tcp, &address, good)).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_leader_ends_sessions_and_writes_nothing() {
    let cluster = Cluster::start(1, 1).await;
    let mut played = Played::start(&cluster).await;
    let id = cluster.topic("t", &[PLAYED, 1], &[]).await;
    let mut stream = played.followed().await;
    let mut session = stream.opened().await;
    assert_eq!(
        (session.log_end, session.last_epoch, session.leader_epoch),
        (Offset(0), LeaderEpoch(-1), LeaderEpoch(0))
    );
    let mut flipped = written(&["a"], 0, 0).to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    let whole = written(&["a"], 0, 0);
    let broken: [fn(&Open, Bytes) -> Data; 4] = [
        |open, whole| Data { prev_offset: Offset(5), ..data(open, whole) },
        |open, whole| Data { prev_epoch: LeaderEpoch(3), ..data(open, whole) },
        |open, whole| data(open, whole.slice(..whole.len() - 1)),
        |open, _| data(open, written(&["a"], 0, 7)),
    ];
    stream.accept(&session).await;
    stream.data(data(&session, flipped.into())).await;
    for broken in broken {
        let next = stream.opened().await;
        assert!(next.open_no > session.open_no && next.handle > session.handle, "{next:?}");
        session = next;
        stream.accept(&session).await;
        stream.data(broken(&session, whole.clone())).await;
    }
    session = stream.opened().await;
    assert_eq!(session.log_end, Offset(0), "nothing of it was written");
    stream.accept(&session).await;
    // Of no session: dropped without a word.
    stream.data(Data { handle: 12_345, ..data(&session, whole.clone()) }).await;
    stream.data(Data { open_no: session.open_no + 1, ..data(&session, written(&["b"], 0, 0)) }).await;
    stream.data(data(&session, whole)).await;
    let ack = stream.next("an acknowledgement", |frame| frame.acks.first().copied()).await;
    assert_eq!((ack.handle, ack.open_no, ack.log_end), (session.handle, session.open_no, Offset(1)));
    assert_eq!(cluster.log_end(1, id), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_frames_in_a_row_are_all_appended() {
    let cluster = Cluster::start(1, 1).await;
    let mut played = Played::start(&cluster).await;
    let id = cluster.topic("t", &[PLAYED, 1], &[]).await;
    let mut stream = played.followed().await;
    let session = stream.opened().await;
    stream.accept(&session).await;
    for offset in 0..200 {
        let epoch = if offset == 0 { -1 } else { 0 };
        let frame = data(&Open { log_end: Offset(offset), last_epoch: LeaderEpoch(epoch), ..session }, Bytes::new());
        stream.data(Data { batches: vec![written(&["v"], offset, 0)], ..frame }).await;
    }
    stream
        .next("the last acknowledgement", |frame| {
            assert!(frame.opens.is_empty(), "a frame was lost");
            frame.acks.iter().any(|ack| ack.log_end == Offset(200)).then_some(())
        })
        .await;
    assert_eq!(cluster.log_end(1, id), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_next_leader_does_not_have_is_cut_off() {
    let mut cluster = Cluster::start(1, 1).await;
    let mut played = Played::start(&cluster).await;
    let id = cluster.topic("t", &[1, PLAYED], &[]).await;
    cluster.wait_leader(id).await;
    let mut stream = played.follow(1).await;
    stream.open(open(id, 1, 0, -1)).await;
    stream.answer().await;
    produce(cluster.broker(1), id, Acks::Leader, batch(&["both"])).await;
    stream.next("data", |frame| frame.data.first().cloned()).await;
    stream.ack(1, 1, 1).await;
    produce(cluster.broker(1), id, Acks::Leader, batch(&["only here"])).await;
    cluster.kill_and_fence(1, Crash::KeepAll).await;
    assert_eq!(cluster.controller.image().partition(id).unwrap().leader, BrokerId(PLAYED));
    cluster.start_broker(1).await;
    let mut stream = played.followed().await;
    let session = stream.opened().await;
    assert_eq!((session.log_end, session.last_epoch), (Offset(2), LeaderEpoch(0)));
    stream.answer(&session, Answer::Diverging { epoch: LeaderEpoch(0), end: Offset(1) }).await;
    let session = stream.opened().await;
    assert_eq!((session.log_end, session.last_epoch), (Offset(1), LeaderEpoch(0)));
    stream.accept(&session).await;
    let epoch = session.leader_epoch.0;
    stream.data(data(&session, written(&["instead"], 1, epoch))).await;
    let ack = stream.next("an acknowledgement", |frame| frame.acks.first().copied()).await;
    assert_eq!(ack.log_end, Offset(2));
    // A leader whose log starts later has the whole log dropped.
    stream.answer(&session, Answer::Refused(ErrorCode::OffsetOutOfRange.code())).await;
    let session = stream.opened().await;
    stream.answer(&session, Answer::OutOfRange { log_start: Offset(50), log_end: Offset(60) }).await;
    let session = stream.opened().await;
    assert_eq!((session.log_start, session.log_end, session.last_epoch), (Offset(50), Offset(50), LeaderEpoch(-1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_that_finds_no_descriptor_is_made_over_a_log_that_was_opened_anew() {
    let cluster = Cluster::start(1, 1).await;
    let mut played = Played::start(&cluster).await;
    cluster.topic("t", &[PLAYED, 1], &[]).await;
    let mut stream = played.followed().await;
    let session = stream.opened().await;
    stream.accept(&session).await;
    for offset in 0..3 {
        let epoch = if offset == 0 { -1 } else { 0 };
        let frame = data(&Open { log_end: Offset(offset), last_epoch: LeaderEpoch(epoch), ..session }, Bytes::new());
        stream.data(Data { batches: vec![written(&["v"], offset, 0)], ..frame }).await;
    }
    let all = |frame: FollowerFrame| frame.acks.iter().any(|ack| ack.log_end == Offset(3)).then_some(());
    stream.next("the last acknowledgement", all).await;
    stream.answer(&session, Answer::Refused(ErrorCode::OffsetOutOfRange.code())).await;
    let session = stream.opened().await;
    // What is to go is looked for in the directory; the log that is opened anew looks there too, and has to wait.
    (0..3).for_each(|_| cluster.disk(1).fail(Call::List, 0, FaultKind::Emfile));
    let diverging = Answer::Diverging { epoch: LeaderEpoch(0), end: Offset(1) };
    stream.answer(&session, diverging).await;
    let mut stream = played.followed().await;
    let session = stream.opened().await;
    assert_eq!((session.log_end, session.last_epoch), (Offset(3), LeaderEpoch(0)), "nothing is lost");
    assert_eq!(cluster.disk(1).faults_waiting(), 0);
    stream.answer(&session, diverging).await;
    let session = stream.opened().await;
    assert_eq!((session.log_end, session.last_epoch), (Offset(1), LeaderEpoch(0)));
    assert_eq!(cluster.broker(1).describe_log_dirs()[0].error, ErrorCode::None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_that_finds_no_space_is_made_when_there_is_some() {
    // R30: neither does the directory go offline, nor is anything lost.
    let cluster = Cluster::start(1, 1).await;
    let mut played = Played::start(&cluster).await;
    cluster.topic("t", &[PLAYED, 1], &[]).await;
    let mut stream = played.followed().await;
    let session = stream.opened().await;
    stream.accept(&session).await;
    for offset in 0..3 {
        let epoch = if offset == 0 { -1 } else { 0 };
        let frame = data(&Open { log_end: Offset(offset), last_epoch: LeaderEpoch(epoch), ..session }, Bytes::new());
        stream.data(Data { batches: vec![written(&["v"], offset, 0)], ..frame }).await;
    }
    let all = |frame: FollowerFrame| frame.acks.iter().any(|ack| ack.log_end == Offset(3)).then_some(());
    stream.next("the last acknowledgement", all).await;
    // A cut below what is checkpointed as synced has to be noted first.
    let checkpoint = Path::new("/data/recovery-point-offset-checkpoint");
    let synced = || {
        let text = read_small_file(cluster.disk(1), checkpoint, 1 << 20).unwrap().unwrap_or_default();
        String::from_utf8(text).unwrap().contains("t 0 3").then_some(())
    };
    eventually("the recovery point", synced).await;
    stream.answer(&session, Answer::Refused(ErrorCode::OffsetOutOfRange.code())).await;
    let session = stream.opened().await;
    cluster.disk(1).leave_space(0);
    let diverging = Answer::Diverging { epoch: LeaderEpoch(0), end: Offset(1) };
    stream.answer(&session, diverging).await;
    let exhausted = || cluster.broker(1).metrics().directories[0].space.exhausted.then_some(());
    eventually("it is noticed", exhausted).await;
    cluster.disk(1).leave_space(10 * RESERVE.unsigned_abs());
    let mut stream = played.followed().await;
    let session = stream.opened().await;
    assert_eq!((session.log_end, session.last_epoch), (Offset(3), LeaderEpoch(0)), "nothing is lost");
    stream.answer(&session, diverging).await;
    let session = stream.opened().await;
    assert_eq!((session.log_end, session.last_epoch), (Offset(1), LeaderEpoch(0)));
    assert_eq!(cluster.broker(1).describe_log_dirs()[0].error, ErrorCode::None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_marker_that_the_follower_does_not_have_leaves_its_transaction_undecided() {
    // R43: it may be lost with the leader, and the transaction end the other way.
    let cluster = Cluster::with_verifier(1, 2, Some(Arc::new(Agrees))).await;
    let mut played = Played::start(&cluster).await;
    let id = cluster.topic("t", &[1, PLAYED], &[]).await;
    cluster.wait_leader(id).await;
    let mut stream = played.follow(1).await;
    stream.open(open(id, 1, 0, -1)).await;
    stream.answer().await;
    let broker = Arc::clone(cluster.broker(1));
    let wrote = tokio::spawn(async move { write(&broker, id, transactional("a", 0, 0)).await });
    stream.next("data", |frame| frame.data.first().cloned()).await;
    stream.ack(1, 1, 1).await;
    assert_eq!(soon("the produce", wrote).await.unwrap(), (ErrorCode::None, 0));
    let broker = Arc::clone(cluster.broker(1));
    let mut ending = tokio::spawn(async move { end(&broker, id, marker(1, 0, true)).await });
    stream.next("the marker", |frame| frame.data.first().cloned()).await;
    let early = tokio::time::timeout(Duration::from_millis(200), &mut ending).await;
    assert!(early.is_err(), "a marker waits for all in-sync replicas");
    let fetched = fetch(cluster.broker(1), id, 0).await;
    assert_eq!((fetched.high_watermark, fetched.last_stable_offset), (Offset(1), Offset(0)));
    stream.ack(1, 1, 2).await;
    assert_eq!(soon("the marker", ending).await.unwrap(), ErrorCode::None);
    let fetched = fetch(cluster.broker(1), id, 0).await;
    assert_eq!((fetched.high_watermark, fetched.last_stable_offset), (Offset(2), Offset(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_that_is_cut_off_is_forgotten_and_the_other_outcome_is_believed() {
    let mut cluster = Cluster::with_verifier(1, 1, Some(Arc::new(Agrees))).await;
    let mut played = Played::start(&cluster).await;
    let id = cluster.topic("t", &[1, PLAYED], &[]).await;
    cluster.wait_leader(id).await;
    let mut stream = played.follow(1).await;
    stream.open(open(id, 1, 0, -1)).await;
    stream.answer().await;
    let broker = Arc::clone(cluster.broker(1));
    let wrote = tokio::spawn(async move { write(&broker, id, transactional("a", 0, 0)).await });
    stream.next("data", |frame| frame.data.first().cloned()).await;
    stream.ack(1, 1, 1).await;
    soon("the produce", wrote).await.unwrap();
    let broker = Arc::clone(cluster.broker(1));
    let ending = tokio::spawn(async move { end(&broker, id, end_of(7, false)).await });
    eventually("the marker is written", || (cluster.log_end(1, id) == 2).then_some(())).await;
    // It holds the broker, which is to be gone.
    ending.abort();
    assert!(ending.await.is_err(), "the marker is nowhere else");
    cluster.kill_and_fence(1, Crash::KeepAll).await;
    cluster.start_broker(1).await;
    let mut stream = played.followed().await;
    let session = stream.opened().await;
    stream.answer(&session, Answer::Diverging { epoch: LeaderEpoch(0), end: Offset(1) }).await;
    let session = stream.opened().await;
    stream.accept(&session).await;
    let commit = EndMarker { commit: true, coordinator_epoch: 1 }.encode((ProducerId(7), ProducerEpoch(0)), 1000);
    let commit = commit.stamp(Offset(1), session.leader_epoch);
    stream.data(Data { high_watermark: Offset(2), ..data(&session, commit.bytes().clone()) }).await;
    stream.next("an acknowledgement", |frame| frame.acks.first().copied()).await;
    assert_eq!(committed(cluster.broker(1), id, 0, 50 << 20).await, (vec!["a".to_owned()], 2));
}

/// Where a leader sends a consumer of a rack that asks for an offset; there are no records where it does.
async fn preferred(cluster: &Cluster, id: TopicPartition, rack: &str, offset: i64) -> Option<i32> {
    let request = FetchRequest { rack: Some(rack.to_owned()), ..fetch_request(id, offset) };
    let fetched = soon("a fetch", cluster.broker(1).fetch(request)).await.partitions.remove(0);
    assert_eq!(fetched.error, ErrorCode::None);
    assert!(fetched.preferred_replica.is_none() || fetched.records.is_empty(), "{fetched:?}");
    fetched.preferred_replica.map(|broker| broker.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_is_sent_to_a_replica_in_its_rack_only_if_that_is_in_sync_and_has_what_it_asks_for() {
    // KIP-392
    let cluster = Cluster::in_racks(&["a"], 1).await;
    let mut played = Played::start_in(&cluster, Some("b")).await;
    let id = cluster.topic("t", &[1, PLAYED], &[]).await;
    cluster.wait_leader(id).await;
    produce(cluster.broker(1), id, Acks::Leader, batch(&["x"])).await;
    assert_eq!(preferred(&cluster, id, "b", 0).await, None, "it is in sync, and has not said what it has");
    let mut stream = played.follow(1).await;
    stream.open(open(id, 1, 0, -1)).await;
    stream.next("the record", |frame| frame.data.first().cloned()).await;
    assert_eq!(preferred(&cluster, id, "b", 0).await, Some(PLAYED));
    assert_eq!(preferred(&cluster, id, "b", 1).await, None, "it has not acknowledged the record");
    for elsewhere in ["a", "c", ""] {
        assert_eq!(preferred(&cluster, id, elsewhere, 0).await, None, "{elsewhere:?}");
    }
    stream.ack(1, 1, 1).await;
    stream.next("progress", |frame| frame.progress.first().copied()).await;
    assert_eq!(preferred(&cluster, id, "b", 1).await, Some(PLAYED));

    // It is alive, and connected, and has what is asked for: but is not in sync, as it lost the record.
    stream.open(open(id, 2, 0, -1)).await;
    stream.next("the record", |frame| frame.data.first().cloned()).await;
    played.leave();
    cluster.wait_isr(id, &[1]).await;
    let is_back = || cluster.broker(1).image().broker(BrokerId(PLAYED)).is_some_and(|broker| broker.is_active());
    eventually("it is back", || is_back().then_some(())).await;
    let mut stream = played.follow(1).await;
    stream.open(open(id, 3, 0, -1)).await;
    stream.next("the record", |frame| frame.data.first().cloned()).await;
    assert_eq!(preferred(&cluster, id, "b", 0).await, None);
    // Its log begins behind what is asked for.
    stream.open(Open { log_start: Offset(1), ..open(id, 4, 1, 0) }).await;
    cluster.wait_isr(id, &[1, PLAYED]).await;
    assert_eq!(preferred(&cluster, id, "b", 1).await, Some(PLAYED));
    assert_eq!(preferred(&cluster, id, "b", 0).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_reads_from_the_follower_in_its_rack_up_to_where_that_knows_records_to_be_committed() {
    // KIP-392, R19
    let cluster = Cluster::in_racks(&["a", "b", "b"], 1).await;
    let mut played = Played::start(&cluster).await;
    let id = cluster.topic("t", &[1, 2, PLAYED], &[]).await;
    cluster.wait_leader(id).await;
    produce(cluster.broker(1), id, Acks::Leader, batch(&["x"])).await;
    eventually("the follower has it", || (cluster.log_end(2, id) == 1).then_some(())).await;
    let near = FetchRequest { rack: Some("b".to_owned()), ..fetch_request(id, 0) };
    let from_leader = FetchRequest { max_wait_ms: 25_000, ..near.clone() };
    let sent_away = soon("an answer at once", cluster.broker(1).fetch(from_leader)).await.partitions.remove(0);
    assert_eq!((sent_away.preferred_replica, sent_away.bytes()), (Some(BrokerId(2)), 0));
    let at_follower =
        |request: FetchRequest| async { soon("a fetch", cluster.broker(2).fetch(request)).await.partitions.remove(0) };
    let early = at_follower(near.clone()).await;
    assert_eq!(
        (early.error, early.high_watermark, early.bytes()),
        (ErrorCode::None, Offset(0), 0),
        "not committed yet"
    );

    // Who waits at the follower is woken there.
    let waiting = tokio::spawn({
        let (broker, near) = (Arc::clone(cluster.broker(2)), near.clone());
        async move { broker.fetch(FetchRequest { max_wait_ms: 25_000, ..near }).await.partitions.remove(0) }
    });
    let mut stream = played.follow(1).await;
    stream.open(open(id, 1, 0, -1)).await;
    stream.next("the record", |frame| frame.data.first().cloned()).await;
    stream.ack(1, 1, 1).await;
    let read = soon("the record", waiting).await.unwrap();
    assert_eq!((read.error, read.preferred_replica, read.high_watermark), (ErrorCode::None, None, Offset(1)));
    assert!(read.bytes() > 0);

    // What it does not have it cannot wait for: the consumer goes back to the leader, if it knows that this is none.
    let mut beyond = FetchRequest { ..fetch_request(id, 5) };
    beyond.rack = Some("b".to_owned());
    assert_eq!(at_follower(beyond.clone()).await.error, ErrorCode::None);
    beyond.partitions[0].current_leader_epoch = LeaderEpoch(0);
    assert_eq!(at_follower(beyond).await.error, ErrorCode::OffsetOutOfRange);
    let knows_no_racks = FetchRequest { rack: None, ..near.clone() };
    assert_eq!(at_follower(knows_no_racks).await.error, ErrorCode::NotLeaderOrFollower);
    let at_a_stranger = soon("a fetch", cluster.broker(3).fetch(near)).await.partitions.remove(0);
    assert_eq!(at_a_stranger.error, ErrorCode::NotLeaderOrFollower);
}
