//! What nodes ask of the controllers (`R68` to `R71`): requests to the active one, the metadata from an offset on, and a
//! description of the quorum; and the client that finds the active controller.
//!
//! Invariants: an answer and a stream event come from an active tenure and name it; the client keeps the highest tenure it
//! has seen and hears nothing of a lower one (`R69`); records come in whole batches (`R70`); what may have taken effect is
//! asked again only where that is harmless.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use metadata::{ControlError, ControlRequest, ControlResponse, MetadataRecord};
use model::{BrokerId, ClusterId, DirectoryId, ErrorCode, MetadataOffset};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::net::Network;
use crate::raft::{self, QuorumNode, RaftServer};
use crate::wire::controller as wire;
use crate::{INTERNAL_VERSION, RpcError, check_version, net, uuid_bytes, uuid_from};

/// One leadership of the quorum (`R68`): the higher one is the newer one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tenure {
    /// The term; it may have two leaders.
    pub term: u64,
    /// Which of them.
    pub node: QuorumNode,
}

/// What a controller answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply<T> {
    /// The active controller's answer.
    Active(Tenure, T),
    /// This is not the active controller, or it does not know whether it still is.
    NotController {
        /// Whom it follows.
        leader: Option<(BrokerId, String)>,
        /// Whether it is certain that nothing was decided, nor will be; else the outcome is unknown.
        undecided: bool,
    },
}

/// An answer of the active controller.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answered {
    /// The answer.
    pub response: ControlResponse,
    /// The metadata offset after all that it rests on: an image that has reached it shows what was decided.
    pub next_offset: MetadataOffset,
}

/// What a follower of the metadata is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetadataEvent {
    /// All of the metadata, for an image that starts over.
    Snapshot {
        /// The offset of the next record.
        next_offset: MetadataOffset,
        /// The records that make the image.
        records: Vec<MetadataRecord>,
    },
    /// A whole batch.
    Batch {
        /// The offset of its first record.
        base: MetadataOffset,
        /// Its records.
        records: Vec<MetadataRecord>,
    },
    /// The node is of another cluster, or ahead of the quorum: it must stop. Nothing follows.
    Refused(String),
}

/// What a controller knows of the quorum.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QuorumInfo {
    /// The leader; `NONE` where it knows none.
    pub leader: BrokerId,
    /// The term.
    pub term: u64,
    /// Whether this controller is the active one.
    pub active: bool,
    /// The offset after the last record that it has applied.
    pub next_offset: MetadataOffset,
    /// The voters.
    pub voters: Vec<QuorumReplica>,
    /// Members that do not vote.
    pub observers: Vec<QuorumReplica>,
}

/// A member of the quorum.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QuorumReplica {
    /// Who.
    pub node: QuorumNode,
    /// Its CONTROLLER listener.
    pub address: String,
    /// One past its last log entry; 0 where that is unknown.
    pub log_end: u64,
    /// Since when it has not acknowledged anything; `None` where that is unknown.
    pub last_acknowledged_ms: Option<u64>,
}

/// A voter that comes or goes (KIP-853).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VoterChange {
    /// It follows, and votes once it has caught up.
    Add {
        /// Who; without a directory: with the one that it introduced itself by.
        node: QuorumNode,
        /// Its CONTROLLER listener.
        address: String,
    },
    /// It votes no longer.
    Remove {
        /// Who; without a directory: whichever one of that id votes.
        node: QuorumNode,
    },
}

/// Answers for this controller.
pub trait ControllerServer: Send + Sync + 'static {
    /// Answers a request within `timeout`.
    fn call(
        self: Arc<Self>,
        request: ControlRequest,
        timeout: Duration,
    ) -> impl Future<Output = Reply<Answered>> + Send;

    /// Sends the metadata from `next` on until the receiver goes away or this controller is no longer active.
    fn follow(
        self: Arc<Self>,
        cluster: ClusterId,
        next: MetadataOffset,
        sender: FollowSender,
    ) -> impl Future<Output = ()> + Send;

    /// What it knows of the quorum; `active` only where that is so at this moment (`R71`).
    fn describe(&self) -> impl Future<Output = QuorumInfo> + Send;

    /// Changes who votes; answers once that is committed, or with why not.
    fn change_voters(
        self: Arc<Self>,
        change: VoterChange,
    ) -> impl Future<Output = Reply<Result<(), ControlError>>> + Send;
}

/// Messages under way in one stream, before its writer waits.
const QUEUE: usize = 8;
/// How much of a snapshot one message carries.
const SNAPSHOT_PART: usize = 1 << 20;
/// A stream on which nothing came for so long is given up (`R69`).
const SILENCE: Duration = Duration::from_secs(1);
/// A call that is not answered for so long is tried elsewhere.
const CALL_SILENCE: Duration = Duration::from_secs(5);
/// One that did not answer is not asked again for so long where others are left, although they may name it: whoever has
/// lost its leader names it until another one is elected.
const AVOIDED: Duration = Duration::from_millis(500);
/// Controllers that are remembered at most.
const CONTROLLERS_MAX: usize = 64;
/// The pause after all controllers were tried in vain, doubling.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(80);

/// Sends to a follower of the metadata.
#[derive(Clone, Debug)]
pub struct FollowSender {
    queue: mpsc::Sender<Result<wire::FollowResponse, Status>>,
}

impl FollowSender {
    /// Sends an event of an active tenure; false when the receiver is gone.
    pub async fn event(&self, tenure: Tenure, event: &MetadataEvent) -> bool {
        match event {
            MetadataEvent::Snapshot { next_offset, records } => self.snapshot(tenure, *next_offset, records).await,
            MetadataEvent::Batch { base, records } => {
                let records = metadata::wire::encode_records(records).into();
                self.batch(tenure, *base, records).await
            }
            MetadataEvent::Refused(reason) => {
                self.send(Some(tenure), wire::follow_response::Event::Refused(reason.clone())).await
            }
        }
    }

    /// Sends a batch that is already encoded.
    pub async fn batch(&self, tenure: Tenure, base: MetadataOffset, records: Bytes) -> bool {
        let batch = wire::Batch { base: base.0, records };
        self.send(Some(tenure), wire::follow_response::Event::Batch(batch)).await
    }

    /// Says that there is nothing new.
    pub async fn keep_alive(&self, tenure: Tenure) -> bool {
        self.send(Some(tenure), wire::follow_response::Event::KeepAlive(wire::KeepAlive {})).await
    }

    /// Says that this controller is not, or no longer, active.
    pub async fn not_controller(&self, leader: Option<(BrokerId, String)>) -> bool {
        let event = wire::follow_response::Event::NotController(not_controller(leader, true));
        self.send(None, event).await
    }

    /// Waits until the receiver is gone.
    pub async fn closed(&self) {
        self.queue.closed().await;
    }

    async fn snapshot(&self, tenure: Tenure, next: MetadataOffset, records: &[MetadataRecord]) -> bool {
        let mut rest = records;
        loop {
            let mut size = 0;
            // Records are taken until a part is full; at least one.
            let taken = rest.iter().take_while(|record| {
                let fits = size < SNAPSHOT_PART;
                size += metadata::wire::encoded_len(record);
                fits
            });
            let count = taken.count();
            let (part, later) = rest.split_at(count);
            rest = later;
            let records = metadata::wire::encode_records(part).into();
            let part = wire::SnapshotPart { next_offset: next.0, records, last: rest.is_empty() };
            if !self.send(Some(tenure), wire::follow_response::Event::Snapshot(part)).await {
                return false;
            }
            if rest.is_empty() {
                return true;
            }
        }
    }

    async fn send(&self, tenure: Option<Tenure>, event: wire::follow_response::Event) -> bool {
        let message =
            wire::FollowResponse { version: INTERNAL_VERSION, tenure: tenure.map(tenure_to_wire), event: Some(event) };
        self.queue.send(Ok(message)).await.is_ok()
    }
}

/// What to put on the CONTROLLER listener.
pub fn routes<S: ControllerServer, R: RaftServer>(server: Arc<S>, member: Arc<R>) -> Routes {
    let service = wire::controller_server::ControllerServer::new(Service { server })
        .max_decoding_message_size(net::MAX_MESSAGE)
        .max_encoding_message_size(net::MAX_MESSAGE);
    Routes::new(service).add_service(raft::service(member))
}

struct Service<S> {
    server: Arc<S>,
}

type Events = Pin<Box<dyn Stream<Item = Result<wire::FollowResponse, Status>> + Send>>;

#[tonic::async_trait]
impl<S: ControllerServer> wire::controller_server::Controller for Service<S> {
    async fn call(&self, request: Request<wire::CallRequest>) -> Result<Response<wire::CallResponse>, Status> {
        let request = request.into_inner();
        check_version(request.version).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let decoded = metadata::wire::decode_request(&request.request);
        let decoded = decoded.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let timeout = Duration::from_millis(u64::from(request.timeout_ms));
        let result = match Arc::clone(&self.server).call(decoded, timeout).await {
            Reply::Active(tenure, answered) => wire::call_response::Result::Answer(wire::Answer {
                tenure: Some(tenure_to_wire(tenure)),
                response: metadata::wire::encode_response(&answered.response).into(),
                next_offset: answered.next_offset.0,
            }),
            Reply::NotController { leader, undecided } => {
                wire::call_response::Result::NotController(not_controller(leader, undecided))
            }
        };
        Ok(Response::new(wire::CallResponse { version: INTERNAL_VERSION, result: Some(result) }))
    }

    type FollowStream = Events;

    async fn follow(&self, request: Request<wire::FollowRequest>) -> Result<Response<Events>, Status> {
        let request = request.into_inner();
        let invalid = |error: RpcError| Status::invalid_argument(error.to_string());
        check_version(request.version).map_err(invalid)?;
        let cluster = ClusterId(uuid_from(&request.cluster_id).map_err(invalid)?);
        let (queue, outgoing) = mpsc::channel(QUEUE);
        let next = MetadataOffset(request.next_offset);
        let server = Arc::clone(&self.server);
        tokio::spawn(server.follow(cluster, next, FollowSender { queue }));
        Ok(Response::new(ReceiverStream::new(outgoing).boxed()))
    }

    async fn describe(
        &self,
        request: Request<wire::DescribeRequest>,
    ) -> Result<Response<wire::DescribeResponse>, Status> {
        check_version(request.get_ref().version).map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(info_to_wire(self.server.describe().await)))
    }

    async fn change_voters(
        &self,
        request: Request<wire::ChangeVotersRequest>,
    ) -> Result<Response<wire::ChangeVotersResponse>, Status> {
        use wire::change_voters_response::Result as Outcome;
        let request = request.into_inner();
        let invalid = |error: RpcError| Status::invalid_argument(error.to_string());
        check_version(request.version).map_err(invalid)?;
        let change = change_from_wire(request.change).map_err(invalid)?;
        let result = match Arc::clone(&self.server).change_voters(change).await {
            Reply::Active(_, Ok(())) => Outcome::Changed(wire::VotersChanged {}),
            Reply::Active(_, Err(error)) => {
                Outcome::Refused(wire::VotersRefused { code: i32::from(error.code.code()), message: error.message })
            }
            Reply::NotController { leader, undecided } => Outcome::NotController(not_controller(leader, undecided)),
        };
        Ok(Response::new(wire::ChangeVotersResponse { version: INTERNAL_VERSION, result: Some(result) }))
    }
}

fn change_to_wire(change: &VoterChange) -> wire::change_voters_request::Change {
    let voter = |node: &QuorumNode, address: &str| wire::Voter {
        id: node.id.0,
        directory: uuid_bytes(node.directory.0),
        address: address.to_owned(),
    };
    match change {
        VoterChange::Add { node, address } => wire::change_voters_request::Change::Add(voter(node, address)),
        VoterChange::Remove { node } => wire::change_voters_request::Change::Remove(voter(node, "")),
    }
}

fn change_from_wire(change: Option<wire::change_voters_request::Change>) -> Result<VoterChange, RpcError> {
    use wire::change_voters_request::Change;
    let node = |voter: &wire::Voter| {
        Ok(QuorumNode { id: BrokerId(voter.id), directory: DirectoryId(uuid_from(&voter.directory)?) })
    };
    match change.ok_or(RpcError::Invalid("a change of voters without a change"))? {
        Change::Add(voter) => Ok(VoterChange::Add { node: node(&voter)?, address: voter.address }),
        Change::Remove(voter) => Ok(VoterChange::Remove { node: node(&voter)? }),
    }
}

/// Why a call gave no answer.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum CallError {
    /// No active controller answered in time: whether the request took effect is unknown.
    #[error("no active controller answered in time; the outcome is unknown")]
    Timeout,
    /// A controller took the request and gave no answer, and asking again could meet its effect.
    #[error("the controller that was asked gave no answer; the outcome is unknown")]
    Unknown,
    /// The request is not one that this controller understands.
    #[error("the controller refused the request: {0}")]
    Refused(String),
}

/// Finds the active controller and asks it (`R69`). Cheap to clone.
#[derive(Clone, Debug)]
pub struct ControllerClient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    network: Network,
    /// Those of the configuration, then those that others named: a voter may have been added since.
    controllers: RwLock<Vec<Arc<Controller>>>,
    state: Mutex<ClientState>,
}

#[derive(Debug)]
struct Controller {
    id: BrokerId,
    address: String,
    channel: Channel,
}

#[derive(Debug, Default)]
struct ClientState {
    /// The highest tenure seen.
    newest: Option<Tenure>,
    /// Which controller answered last, or is said to be active.
    current: usize,
    /// When a controller was found silent or gone last.
    silent: BTreeMap<usize, Instant>,
}

impl ClientState {
    /// The one at `at` is not to be asked now: another one is, which is `named` where that is of use.
    fn go_on(&mut self, at: usize, named: Option<usize>, count: usize) {
        if self.current != at {
            return;
        }
        self.silent.retain(|_, since| since.elapsed() < AVOIDED);
        let others = named.into_iter().chain((1..count).map(|step| (at + step) % count));
        let answers = |other: &usize| *other != at && !self.silent.contains_key(other);
        let next = others.clone().find(answers).or(named.filter(|named| *named != at));
        self.current = next.unwrap_or((at + 1) % count);
    }
}

impl ControllerClient {
    /// A client of the controllers of `controller.quorum.voters`, as (node.id, `host:port`).
    ///
    /// # Errors
    /// [`RpcError::Unavailable`] where one is no `host:port`, [`RpcError::Invalid`] where there is none.
    pub fn new(voters: &[(BrokerId, String)]) -> Result<ControllerClient, RpcError> {
        ControllerClient::over(Network::Tcp, voters)
    }

    /// The same, over a network.
    ///
    /// # Errors
    /// As [`ControllerClient::new`].
    pub fn over(network: Network, voters: &[(BrokerId, String)]) -> Result<ControllerClient, RpcError> {
        if voters.is_empty() {
            return Err(RpcError::Invalid("there is no controller to ask: set controller.quorum.voters"));
        }
        let controller = |(id, address): &(BrokerId, String)| {
            Ok(Arc::new(Controller { id: *id, address: address.clone(), channel: network.connect_lazy(address)? }))
        };
        let controllers = RwLock::new(voters.iter().map(controller).collect::<Result<_, RpcError>>()?);
        Ok(ControllerClient { shared: Arc::new(Shared { network, controllers, state: Mutex::default() }) })
    }

    /// As [`ask`](Self::ask), for who wants the response alone.
    ///
    /// # Errors
    /// [`CallError::Timeout`] and [`CallError::Unknown`]: the outcome is unknown.
    pub async fn call(&self, request: ControlRequest, deadline: Instant) -> Result<ControlResponse, CallError> {
        Ok(self.ask(request, deadline).await?.response)
    }

    /// Asks the active controller, whichever it is, until `deadline`. A request that
    /// [`may_repeat`](ControlRequest::may_repeat) may reach a controller more than once; any other one is asked again only
    /// where it is certain that it came to nothing.
    ///
    /// # Errors
    /// [`CallError::Timeout`] and [`CallError::Unknown`]: the outcome is unknown.
    pub async fn ask(&self, request: ControlRequest, deadline: Instant) -> Result<Answered, CallError> {
        let bytes = Bytes::from(metadata::wire::encode_request(&request));
        let attempts = async {
            let mut search = Search::default();
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                let at = self.state().current;
                match self.call_once(at, bytes.clone(), left.min(CALL_SILENCE)).await {
                    Ok(Attempt::Answered(answered)) => return Ok(answered),
                    Err(RpcError::Refused { reason, .. }) => return Err(CallError::Refused(reason)),
                    Ok(Attempt::Undecided) => {}
                    Ok(Attempt::Unknown) | Err(_) if !request.may_repeat() => return Err(CallError::Unknown),
                    Ok(Attempt::Unknown) | Err(_) => {}
                }
                search.pause(self.count()).await;
            }
        };
        tokio::time::timeout_at(deadline, attempts).await.unwrap_or(Err(CallError::Timeout))
    }

    /// The metadata from `next_offset` on, for a node of `cluster` (`NONE` where it does not know). Goes from one active
    /// controller to the next by itself, and ends only after [`MetadataEvent::Refused`].
    pub fn follow(
        &self,
        cluster: ClusterId,
        next_offset: MetadataOffset,
    ) -> impl Stream<Item = MetadataEvent> + Send + use<> {
        let follow = Follow { client: self.clone(), cluster, next: next_offset, stream: None, ended: false };
        stream::unfold(follow, |mut follow| async move { follow.next().await.map(|event| (event, follow)) })
    }

    /// What the controllers know of the quorum: the active one if there is one, else any that answers.
    ///
    /// # Errors
    /// [`CallError::Timeout`] where none answers.
    pub async fn describe(&self, deadline: Instant) -> Result<QuorumInfo, CallError> {
        let mut found: Option<QuorumInfo> = None;
        let count = self.count();
        let first = self.state().current;
        for controller in (0..count).map(|i| self.controller((first + i) % count)) {
            let mut client = wire::controller_client::ControllerClient::new(controller.channel.clone());
            let until = deadline.min(Instant::now() + SILENCE);
            let asked = client.describe(wire::DescribeRequest { version: INTERNAL_VERSION });
            let Ok(Ok(answer)) = tokio::time::timeout_at(until, asked).await else { continue };
            let Ok(info) = info_from_wire(answer.into_inner()) else { continue };
            if info.active {
                return Ok(info);
            }
            if found.as_ref().is_none_or(|before| before.term < info.term) {
                found = Some(info);
            }
        }
        found.ok_or(CallError::Timeout)
    }

    /// Has the active controller change who votes.
    ///
    /// # Errors
    /// [`CallError::Timeout`]: the outcome is unknown; [`CallError::Refused`] by a controller that cannot.
    pub async fn change_voters(
        &self,
        change: &VoterChange,
        deadline: Instant,
    ) -> Result<Result<(), ControlError>, CallError> {
        let attempts = async {
            let mut search = Search::default();
            loop {
                let at = self.state().current;
                match self.change_once(at, change).await {
                    Ok(Some(outcome)) => return Ok(outcome),
                    Ok(None) => {}
                    Err(RpcError::Refused { reason, .. }) => return Err(CallError::Refused(reason)),
                    Err(error) => self.failed(at, &error),
                }
                search.pause(self.count()).await;
            }
        };
        tokio::time::timeout_at(deadline, attempts).await.unwrap_or(Err(CallError::Timeout))
    }

    async fn change_once(&self, at: usize, change: &VoterChange) -> Result<Option<Result<(), ControlError>>, RpcError> {
        use wire::change_voters_response::Result as Outcome;
        let controller = self.controller(at);
        let mut client = wire::controller_client::ControllerClient::new(controller.channel.clone());
        let request = wire::ChangeVotersRequest { version: INTERNAL_VERSION, change: Some(change_to_wire(change)) };
        let answer = client.change_voters(request).await;
        let answer = answer.map_err(|status| RpcError::of(&controller.address, &status))?.into_inner();
        check_version(answer.version)?;
        match answer.result.ok_or(RpcError::Invalid("a change of voters was answered with nothing"))? {
            Outcome::Changed(wire::VotersChanged {}) => Ok(Some(Ok(()))),
            Outcome::Refused(refused) => {
                let code = i16::try_from(refused.code).map_or(ErrorCode::UnknownServerError, ErrorCode::from_code);
                Ok(Some(Err(ControlError { code, message: refused.message })))
            }
            Outcome::NotController(not) => {
                self.redirect(at, &not);
                Ok(None)
            }
        }
    }

    /// The highest tenure seen.
    #[must_use]
    pub fn newest_tenure(&self) -> Option<Tenure> {
        self.state().newest
    }

    async fn call_once(&self, at: usize, request: Bytes, left: Duration) -> Result<Attempt, RpcError> {
        let outcome = self.attempt(at, request, left).await;
        // One that refuses a request is there, and the others would too.
        if let Err(error) = &outcome
            && !matches!(error, RpcError::Refused { .. })
        {
            self.failed(at, error);
        }
        outcome
    }

    async fn attempt(&self, at: usize, request: Bytes, left: Duration) -> Result<Attempt, RpcError> {
        let controller = self.controller(at);
        let mut client = wire::controller_client::ControllerClient::new(controller.channel.clone())
            .max_decoding_message_size(net::MAX_MESSAGE)
            .max_encoding_message_size(net::MAX_MESSAGE);
        let timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        let asked = client.call(wire::CallRequest { version: INTERNAL_VERSION, request, timeout_ms });
        let answer = match tokio::time::timeout(left, asked).await.map_err(|_| silence(&controller.address))? {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                let error = RpcError::of(&controller.address, &status);
                if !net::never_connected(&status) {
                    return Err(error);
                }
                self.failed(at, &error);
                return Ok(Attempt::Undecided);
            }
        };
        check_version(answer.version)?;
        match answer.result.ok_or(RpcError::Invalid("a call was answered with nothing"))? {
            wire::call_response::Result::Answer(answer) => {
                if !self.accept(at, tenure_from_wire(answer.tenure)?) {
                    return Ok(Attempt::Unknown);
                }
                let response = metadata::wire::decode_response(&answer.response)
                    .map_err(|_| RpcError::Invalid("a control response does not decode"))?;
                Ok(Attempt::Answered(Answered { response, next_offset: MetadataOffset(answer.next_offset) }))
            }
            wire::call_response::Result::NotController(not) => {
                self.redirect(at, &not);
                Ok(if not.undecided { Attempt::Undecided } else { Attempt::Unknown })
            }
        }
    }

    fn controller(&self, at: usize) -> Arc<Controller> {
        Arc::clone(&self.shared.controllers.read().expect("no holder of the lock panics")[at])
    }

    fn count(&self) -> usize {
        self.shared.controllers.read().expect("no holder of the lock panics").len()
    }

    /// Where the leader that was named stands, at the address that it was named with. One that is new is added; so is one that
    /// moved, beside where it was: a name that cannot be reached from here must not cost the one that can.
    fn position(&self, not: &wire::NotController) -> Option<usize> {
        let mut controllers = self.shared.controllers.write().expect("no holder of the lock panics");
        let elsewhere = controllers.iter().position(|controller| controller.id.0 == not.leader_id);
        let is_named =
            |controller: &Arc<Controller>| controller.id.0 == not.leader_id && controller.address == not.leader_address;
        let found = controllers.iter().position(is_named);
        if found.is_some() || not.leader_id < 0 || controllers.len() >= CONTROLLERS_MAX {
            return found.or(elsewhere);
        }
        let Ok(channel) = self.shared.network.connect_lazy(&not.leader_address) else { return elsewhere };
        let (id, address) = (BrokerId(not.leader_id), not.leader_address.clone());
        controllers.push(Arc::new(Controller { id, address, channel }));
        Some(controllers.len() - 1)
    }

    /// Notes who answered; false where a newer controller is known (`R69`).
    fn accept(&self, at: usize, tenure: Tenure) -> bool {
        let mut state = self.state();
        if state.newest.is_some_and(|newest| tenure < newest) {
            let count = self.count();
            state.current = at;
            state.go_on(at, None, count);
            return false;
        }
        state.newest = Some(tenure);
        state.current = at;
        state.silent.remove(&at);
        true
    }

    /// The one at `at` is not the active controller.
    fn redirect(&self, at: usize, not: &wire::NotController) {
        let leader = self.position(not);
        let count = self.count();
        self.state().go_on(at, leader, count);
    }

    fn failed(&self, at: usize, error: &RpcError) {
        tracing::debug!(%error, "a controller did not answer");
        let count = self.count();
        let mut state = self.state();
        if matches!(error, RpcError::Unavailable { .. }) {
            state.silent.insert(at, Instant::now());
        }
        state.go_on(at, None, count);
    }

    fn state(&self) -> MutexGuard<'_, ClientState> {
        self.shared.state.lock().expect("no holder of the lock panics")
    }
}

fn silence(peer: &str) -> RpcError {
    RpcError::Unavailable { peer: peer.to_owned(), reason: "silence".to_owned() }
}

/// What came of asking one controller once.
enum Attempt {
    Answered(Answered),
    /// It is certain that nothing was decided.
    Undecided,
    /// It may have been decided, or still be.
    Unknown,
}

/// Pauses between attempts: none before all controllers were asked once.
#[derive(Default)]
struct Search {
    attempts: u32,
}

impl Search {
    async fn pause(&mut self, controllers: usize) {
        self.attempts += 1;
        let rounds = self.attempts / u32::try_from(controllers.max(1)).unwrap_or(1);
        if rounds > 0 {
            tokio::time::sleep((PAUSE_MIN * 2u32.pow(rounds.min(8) - 1)).min(PAUSE_MAX)).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}

/// The state of a stream of metadata across controllers.
struct Follow {
    client: ControllerClient,
    cluster: ClusterId,
    next: MetadataOffset,
    stream: Option<(usize, Streaming<wire::FollowResponse>)>,
    ended: bool,
}

impl Follow {
    async fn next(&mut self) -> Option<MetadataEvent> {
        let mut search = Search::default();
        while !self.ended {
            let Some((at, stream)) = self.stream.as_mut() else {
                self.dial().await;
                if self.stream.is_none() {
                    search.pause(self.client.count()).await;
                }
                continue;
            };
            let at = *at;
            let event = match Self::event(&self.client, at, stream, self.next).await {
                Ok(Some(event)) => event,
                Ok(None) => {
                    search = Search::default();
                    continue;
                }
                Err(error) => {
                    self.stream = None;
                    self.client.failed(at, &error);
                    search.pause(self.client.count()).await;
                    continue;
                }
            };
            match &event {
                MetadataEvent::Snapshot { next_offset, .. } => self.next = *next_offset,
                MetadataEvent::Batch { base, records } => self.next = MetadataOffset(base.0 + records.len() as u64),
                MetadataEvent::Refused(_) => self.ended = true,
            }
            return Some(event);
        }
        None
    }

    async fn dial(&mut self) {
        let at = self.client.state().current;
        let controller = self.client.controller(at);
        let mut client = wire::controller_client::ControllerClient::new(controller.channel.clone())
            .max_decoding_message_size(net::MAX_MESSAGE);
        let request = wire::FollowRequest {
            version: INTERNAL_VERSION,
            cluster_id: uuid_bytes(self.cluster.0),
            next_offset: self.next.0,
        };
        match tokio::time::timeout(SILENCE, client.follow(request)).await {
            Ok(Ok(stream)) => self.stream = Some((at, stream.into_inner())),
            Ok(Err(status)) => self.client.failed(at, &RpcError::of(&controller.address, &status)),
            Err(_) => self.client.failed(at, &silence(&controller.address)),
        }
    }

    /// The next event, `None` for a sign of life, or why the stream is of no more use.
    async fn event(
        client: &ControllerClient,
        at: usize,
        stream: &mut Streaming<wire::FollowResponse>,
        next: MetadataOffset,
    ) -> Result<Option<MetadataEvent>, RpcError> {
        use wire::follow_response::Event;
        let mut snapshot = Vec::new();
        loop {
            let message = tokio::time::timeout(SILENCE, stream.message()).await;
            let message = message.map_err(|_| silence(&client.controller(at).address))?;
            let message = message.map_err(|status| RpcError::of(&client.controller(at).address, &status))?;
            let message = message.ok_or(RpcError::Invalid("the stream ended"))?;
            check_version(message.version)?;
            let event = message.event.ok_or(RpcError::Invalid("an event without content"))?;
            if let Event::NotController(not) = &event {
                client.redirect(at, not);
                return Err(RpcError::Invalid("not the active controller"));
            }
            if !client.accept(at, tenure_from_wire(message.tenure)?) {
                return Err(RpcError::Invalid("a newer controller is known"));
            }
            match event {
                Event::KeepAlive(_) | Event::NotController(_) => return Ok(None),
                Event::Refused(reason) => return Ok(Some(MetadataEvent::Refused(reason))),
                Event::Batch(batch) if batch.base == next.0 => {
                    let records = records_from(&batch.records)?;
                    return Ok(Some(MetadataEvent::Batch { base: next, records }));
                }
                Event::Batch(_) => return Err(RpcError::Invalid("a batch does not follow the one before")),
                Event::Snapshot(part) => {
                    snapshot.extend(records_from(&part.records)?);
                    if part.last {
                        let next_offset = MetadataOffset(part.next_offset);
                        return Ok(Some(MetadataEvent::Snapshot { next_offset, records: snapshot }));
                    }
                }
            }
        }
    }
}

fn records_from(bytes: &[u8]) -> Result<Vec<MetadataRecord>, RpcError> {
    metadata::wire::decode_records(bytes).map_err(|_| RpcError::Invalid("metadata records do not decode"))
}

fn not_controller(leader: Option<(BrokerId, String)>, undecided: bool) -> wire::NotController {
    let (id, address) = leader.unwrap_or((BrokerId::NONE, String::new()));
    wire::NotController { leader_id: id.0, leader_address: address, undecided }
}

fn tenure_to_wire(tenure: Tenure) -> wire::Tenure {
    let node = tenure.node;
    wire::Tenure { term: tenure.term, node_id: node.id.0, directory: uuid_bytes(node.directory.0) }
}

fn tenure_from_wire(tenure: Option<wire::Tenure>) -> Result<Tenure, RpcError> {
    let tenure = tenure.ok_or(RpcError::Invalid("an answer without a tenure"))?;
    let directory = DirectoryId(uuid_from(&tenure.directory)?);
    Ok(Tenure { term: tenure.term, node: QuorumNode { id: BrokerId(tenure.node_id), directory } })
}

fn info_to_wire(info: QuorumInfo) -> wire::DescribeResponse {
    let replica = |replica: QuorumReplica| wire::Replica {
        id: replica.node.id.0,
        directory: uuid_bytes(replica.node.directory.0),
        log_end: replica.log_end,
        address: replica.address,
        last_acknowledged_ms: replica.last_acknowledged_ms.and_then(|ms| i64::try_from(ms).ok()).unwrap_or(-1),
    };
    wire::DescribeResponse {
        version: INTERNAL_VERSION,
        leader_id: info.leader.0,
        term: info.term,
        next_offset: info.next_offset.0,
        voters: info.voters.into_iter().map(replica).collect(),
        observers: info.observers.into_iter().map(replica).collect(),
        active: info.active,
    }
}

fn info_from_wire(info: wire::DescribeResponse) -> Result<QuorumInfo, RpcError> {
    check_version(info.version)?;
    let replica = |replica: wire::Replica| {
        let node = QuorumNode { id: BrokerId(replica.id), directory: DirectoryId(uuid_from(&replica.directory)?) };
        let last_acknowledged_ms = u64::try_from(replica.last_acknowledged_ms).ok();
        Ok::<_, RpcError>(QuorumReplica {
            node,
            address: replica.address,
            log_end: replica.log_end,
            last_acknowledged_ms,
        })
    };
    Ok(QuorumInfo {
        leader: BrokerId(info.leader_id),
        term: info.term,
        active: info.active,
        next_offset: MetadataOffset(info.next_offset),
        voters: info.voters.into_iter().map(replica).collect::<Result<_, _>>()?,
        observers: info.observers.into_iter().map(replica).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use metadata::control::{CreateTopics, UpdateFeatures};
    use model::Uuid;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// A controller that answers as it is told.
    struct Fake {
        tenure: Mutex<Option<Tenure>>,
        leader: Option<(BrokerId, String)>,
        /// Where it is not active: whether it is certain that nothing was decided.
        undecided: AtomicBool,
        asked: AtomicUsize,
    }

    impl Fake {
        fn reply<T>(&self, answer: T) -> Reply<T> {
            let undecided = self.undecided.load(Ordering::Relaxed);
            let not = Reply::NotController { leader: self.leader.clone(), undecided };
            let tenure = *self.tenure.lock().unwrap();
            tenure.map_or(not, |tenure| Reply::Active(tenure, answer))
        }
    }

    impl ControllerServer for Fake {
        async fn call(self: Arc<Self>, _: ControlRequest, _: Duration) -> Reply<Answered> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.reply(Answered { response: ControlResponse::Done, next_offset: MetadataOffset(9) })
        }

        async fn follow(self: Arc<Self>, _: ClusterId, next: MetadataOffset, sender: FollowSender) {
            let Reply::Active(tenure, ()) = self.reply(()) else {
                sender.not_controller(self.leader.clone()).await;
                return;
            };
            let records = vec![MetadataRecord::ProducerIds { next: model::ProducerId(5) }; 3];
            let event = if next.0 == 0 {
                MetadataEvent::Snapshot { next_offset: MetadataOffset(40), records }
            } else {
                MetadataEvent::Batch { base: next, records }
            };
            sender.event(tenure, &event).await;
        }

        async fn change_voters(self: Arc<Self>, change: VoterChange) -> Reply<Result<(), ControlError>> {
            self.reply(match change {
                VoterChange::Add { node: added, address } if (added, address.as_str()) == (node(4), "h:1") => Ok(()),
                other => Err(ControlError::new(ErrorCode::VoterNotFound, format!("{other:?}"))),
            })
        }

        async fn describe(&self) -> QuorumInfo {
            QuorumInfo {
                leader: BrokerId(1),
                term: 4,
                active: self.tenure.lock().unwrap().is_some(),
                next_offset: MetadataOffset(9),
                voters: vec![QuorumReplica {
                    node: node(1),
                    address: "a:1".to_owned(),
                    log_end: 7,
                    last_acknowledged_ms: None,
                }],
                observers: Vec::new(),
            }
        }
    }

    impl RaftServer for Fake {
        async fn call(
            self: Arc<Self>,
            _: QuorumNode,
            _: QuorumNode,
            _: raft::RaftCall,
        ) -> Result<raft::RaftAnswer, String> {
            Err("not here".to_owned())
        }

        fn snapshot_arriving(&self, _: QuorumNode, _: raft::RaftVote) {}

        async fn install_snapshot(
            self: Arc<Self>,
            _: QuorumNode,
            to: QuorumNode,
            vote: raft::RaftVote,
            meta: Bytes,
            data: Bytes,
        ) -> Result<raft::RaftVote, String> {
            if to != node(1) || &meta[..] != b"meta" {
                return Err("not me".to_owned());
            }
            Ok(raft::RaftVote { term: data.len() as u64, ..vote })
        }
    }

    fn node(id: i32) -> QuorumNode {
        QuorumNode { id: BrokerId(id), directory: DirectoryId(Uuid::from_u128(9)) }
    }

    fn tenure(term: u64, id: i32) -> Tenure {
        Tenure { term, node: node(id) }
    }

    async fn serve(tenure: Option<Tenure>, leader: Option<(BrokerId, String)>) -> (Arc<Fake>, String) {
        let fake = Arc::new(Fake {
            tenure: Mutex::new(tenure),
            leader,
            undecided: AtomicBool::new(true),
            asked: AtomicUsize::new(0),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let routes = routes(Arc::clone(&fake), Arc::clone(&fake));
        tokio::spawn(net::serve(listener, routes, std::future::pending()));
        (fake, address)
    }

    fn request() -> ControlRequest {
        ControlRequest::UpdateFeatures(UpdateFeatures { updates: Vec::new(), validate_only: true })
    }

    fn repeatable() -> ControlRequest {
        ControlRequest::AllocateProducerIds { broker: BrokerId(1), epoch: model::BrokerEpoch(1) }
    }

    impl ControllerClient {
        /// Asks the one at `at`, which gives no answer; which one is asked next.
        async fn attempt_at(&self, at: usize, request: ControlRequest) -> usize {
            self.state().current = at;
            let bytes = Bytes::from(metadata::wire::encode_request(&request));
            assert!(self.call_once(at, bytes, CALL_SILENCE).await.is_err());
            self.state().current
        }
    }

    fn in_ms(ms: u64) -> Instant {
        Instant::now() + Duration::from_millis(ms)
    }

    #[tokio::test]
    async fn a_client_finds_the_active_controller_and_keeps_to_the_newest() {
        // R69
        let (newer, second) = serve(Some(tenure(5, 2)), None).await;
        let (_, third) = serve(Some(tenure(4, 3)), None).await;
        let (_, first) = serve(None, Some((BrokerId(2), second.clone()))).await;
        let voters = [(BrokerId(1), first), (BrokerId(2), second), (BrokerId(3), third)];
        let client = ControllerClient::new(&voters).unwrap();
        assert_eq!(client.call(request(), in_ms(20_000)).await, Ok(ControlResponse::Done));
        assert_eq!(client.newest_tenure(), Some(tenure(5, 2)));
        *newer.tenure.lock().unwrap() = None;
        // The third still believes in an older tenure: nobody hears it.
        assert_eq!(client.call(repeatable(), in_ms(400)).await, Err(CallError::Timeout));
        assert_eq!(client.call(request(), in_ms(20_000)).await, Err(CallError::Unknown), "it may have decided it");
        *newer.tenure.lock().unwrap() = Some(tenure(6, 2));
        assert_eq!(client.call(request(), in_ms(20_000)).await, Ok(ControlResponse::Done));
        let described = client.describe(in_ms(20_000)).await.unwrap();
        assert_eq!((described.active, described.voters[0].log_end, described.voters[0].node), (true, 7, node(1)));
    }

    /// R69: one that is paused or cut off is named by the others until they have elected.
    #[tokio::test]
    async fn a_controller_that_is_silent_is_not_asked_again_and_again_because_others_name_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (_, second) = serve(None, Some((BrokerId(1), address.clone()))).await;
        let (third, last) = serve(None, Some((BrokerId(1), address.clone()))).await;
        let voters = [(BrokerId(1), address), (BrokerId(2), second), (BrokerId(3), last)];
        let client = ControllerClient::new(&voters).unwrap();
        // The connection is taken, and nobody answers.
        assert_eq!(client.attempt_at(0, repeatable()).await, 1);
        assert_eq!(client.call(repeatable(), in_ms(300)).await, Err(CallError::Timeout));
        let asked = third.asked.load(Ordering::Relaxed);
        assert!(asked > 2, "the others were asked {asked} times");
        *third.tenure.lock().unwrap() = Some(tenure(5, 3));
        assert_eq!(client.call(repeatable(), in_ms(20_000)).await, Ok(ControlResponse::Done));
    }

    #[tokio::test]
    async fn a_change_of_voters_reaches_a_leader_that_only_a_follower_names() {
        // It was added after this client was configured.
        let (_, added) = serve(Some(tenure(5, 4)), None).await;
        let (_, first) = serve(None, Some((BrokerId(4), added))).await;
        let client = ControllerClient::new(&[(BrokerId(1), first)]).unwrap();
        let add = VoterChange::Add { node: node(4), address: "h:1".to_owned() };
        assert_eq!(client.change_voters(&add, in_ms(20_000)).await, Ok(Ok(())));
        let remove = VoterChange::Remove { node: node(7) };
        let refused = client.change_voters(&remove, in_ms(20_000)).await.unwrap().unwrap_err();
        assert_eq!((refused.code, refused.message), (ErrorCode::VoterNotFound, format!("{remove:?}")));
        assert_eq!(client.call(request(), in_ms(20_000)).await, Ok(ControlResponse::Done));
    }

    /// A voter was removed, and added at another address: R69 names it there.
    #[tokio::test]
    async fn a_controller_that_is_known_is_asked_where_it_is_said_to_be_now() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let (_, moved) = serve(Some(tenure(5, 4)), None).await;
        let (other, first) = serve(None, Some((BrokerId(4), moved.clone()))).await;
        let voters = [(BrokerId(4), gone), (BrokerId(1), first)];
        let client = ControllerClient::new(&voters).unwrap();
        assert_eq!(client.call(request(), in_ms(20_000)).await, Ok(ControlResponse::Done));
        assert_eq!(client.count(), 3);
        // The same name adds nothing.
        let named = wire::NotController { leader_id: 4, leader_address: moved, undecided: true };
        assert_eq!((client.position(&named), client.count()), (Some(2), 3));
        // An address that nobody can reach costs the one that is known nothing but a try, nor may there be ever more.
        assert!(other.asked.load(Ordering::Relaxed) > 0);
        for port in 0..2 * CONTROLLERS_MAX {
            let leader_address = format!("127.0.0.1:{}", port + 1);
            assert!(client.position(&wire::NotController { leader_address, ..named.clone() }).is_some());
        }
        assert!(client.count() <= CONTROLLERS_MAX);
        assert_eq!(client.call(request(), in_ms(20_000)).await, Ok(ControlResponse::Done));
    }

    #[tokio::test]
    async fn what_may_have_taken_effect_is_not_asked_again() {
        let (first, address) = serve(None, None).await;
        let (second, other) = serve(Some(tenure(5, 2)), None).await;
        // Nobody is there: nothing left this process.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let voters = [(BrokerId(3), silent), (BrokerId(1), address), (BrokerId(2), other)];
        let asks = |request| async {
            let client = ControllerClient::new(&voters).unwrap();
            client.ask(request, in_ms(20_000)).await
        };
        let answered = Answered { response: ControlResponse::Done, next_offset: MetadataOffset(9) };
        assert_eq!(asks(request()).await.as_ref(), Ok(&answered), "the first two came to nothing for certain");
        first.undecided.store(false, Ordering::Relaxed);
        let (asked, others) = (first.asked.load(Ordering::Relaxed), second.asked.load(Ordering::Relaxed));
        assert_eq!(asks(request()).await, Err(CallError::Unknown));
        let now = (first.asked.load(Ordering::Relaxed), second.asked.load(Ordering::Relaxed));
        assert_eq!(now, (asked + 1, others));
        // What does the same the second time goes on to the next.
        assert_eq!(asks(repeatable()).await.as_ref(), Ok(&answered));
        let topics = |seed| ControlRequest::CreateTopics(CreateTopics { topics: vec![], validate_only: false, seed });
        assert_eq!(asks(topics(0)).await, Err(CallError::Unknown));
        assert_eq!(asks(topics(1)).await, Ok(answered), "whose own it knows");
    }

    #[tokio::test]
    async fn a_follower_goes_on_where_it_stands_on_the_next_stream() {
        let (_, first) = serve(None, None).await;
        let (_, second) = serve(Some(tenure(5, 2)), None).await;
        let voters = [(BrokerId(1), first), (BrokerId(2), second)];
        let client = ControllerClient::new(&voters).unwrap();
        let mut events = std::pin::pin!(client.follow(ClusterId::NONE, MetadataOffset(0)));
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(match events.next().await.unwrap() {
                MetadataEvent::Snapshot { next_offset, records } => (next_offset.0, records.len()),
                MetadataEvent::Batch { base, records } => (base.0, records.len()),
                MetadataEvent::Refused(reason) => panic!("{reason}"),
            });
        }
        assert_eq!(seen, [(40, 3), (40, 3), (43, 3)]);
    }

    #[tokio::test]
    async fn a_snapshot_travels_in_parts_and_a_refusal_is_told() {
        let (_, address) = serve(None, None).await;
        let vote = raft::RaftVote { term: 1, node: node(2), committed: true };
        let data = Bytes::from(vec![7; 3 * SNAPSHOT_PART + 5]);
        let send = async |to| {
            let peer = raft::RaftPeer::new(&Network::Tcp, &address, node(2), to).unwrap();
            peer.install_snapshot(vote, Bytes::from_static(b"meta"), data.clone(), Duration::from_secs(20)).await
        };
        assert_eq!(send(node(1)).await.unwrap().term, data.len() as u64);
        assert!(matches!(send(node(3)).await, Err(RpcError::Refused { .. })));
    }
}
