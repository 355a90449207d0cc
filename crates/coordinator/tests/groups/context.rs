//! A shell in miniature: one shard, a log, two clocks that move together, and a stock of requests.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use coordinator::request::*;
use coordinator::transaction::Marker;
use coordinator::transaction::request::Producer;
use coordinator::{
    BatchNumber, CoordinatorRecord, GroupConfig, GroupRequest, GroupResponse, GroupShard, GroupState, Now, Output,
    Token, shard::GroupEffect,
};
use metadata::MetadataImage;
use model::{ErrorCode, LeaderEpoch, Offset, PartitionIndex, ProducerEpoch, ProducerId, Time, TopicId};

use crate::cluster::{changed, cluster_with};

pub(crate) const GROUP: &str = "group";
/// The wall clock when the monotonic one shows zero.
const EPOCH_MS: u64 = 1_000_000_000_000;

/// What stands in the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Entry {
    Record(CoordinatorRecord),
    InTransaction(Producer, CoordinatorRecord),
    Marker(Marker),
}

impl Entry {
    pub(crate) fn replay(&self, shard: &mut GroupShard) {
        match self {
            Entry::Record(record) => shard.replay(record),
            Entry::InTransaction(producer, record) => shard.replay_in_transaction(record, producer.id),
            Entry::Marker(marker) => shard.replay_marker(marker.producer_id, marker.commit),
        }
    }

    pub(crate) fn batch_bytes(&self) -> usize {
        match self {
            Entry::Record(record) | Entry::InTransaction(_, record) => record.batch_bytes(),
            Entry::Marker(_) => 0,
        }
    }
}

pub(crate) struct Context {
    pub(crate) shard: GroupShard,
    pub(crate) log: Vec<Entry>,
    pub(crate) in_flight: Option<(BatchNumber, Vec<Entry>)>,
    /// Those behind it.
    pub(crate) behind: VecDeque<(BatchNumber, Vec<Entry>)>,
    /// What came with batches of transactions for the shell.
    pub(crate) guards: BTreeMap<BatchNumber, Option<u64>>,
    /// Whether batches are committed as soon as they are cut.
    pub(crate) log_works: bool,
    pub(crate) image: Arc<MetadataImage>,
    replies: BTreeMap<Token, GroupResponse>,
    ms: u64,
    tokens: u64,
}

impl Context {
    pub(crate) fn new() -> Self {
        Self::with(GroupConfig { initial_rebalance_delay_ms: 0, ..GroupConfig::default() })
    }

    pub(crate) fn with(config: GroupConfig) -> Self {
        Self::load(config, Vec::new(), Arc::default(), 0, 0)
    }

    /// In a cluster with these topics.
    pub(crate) fn in_cluster(config: GroupConfig, topics: &[(&str, i32)]) -> Self {
        Self::load(config, Vec::new(), cluster_with(topics), 0, 0)
    }

    /// The cluster changes.
    pub(crate) fn change_cluster(&mut self, change: impl FnOnce(&mut MetadataImage)) {
        let mut after = (*self.image).clone();
        change(&mut after);
        let touched = changed(&self.image, &after);
        self.image = Arc::new(after);
        self.shard.handle_metadata(&self.image, &touched);
    }

    pub(crate) fn load(config: GroupConfig, log: Vec<Entry>, image: Arc<MetadataImage>, ms: u64, tokens: u64) -> Self {
        let mut shard = GroupShard::new(config);
        log.iter().for_each(|entry| entry.replay(&mut shard));
        let replies = BTreeMap::new();
        shard.handle_metadata(&image, &BTreeSet::new());
        let (in_flight, behind, guards) = (None, VecDeque::new(), BTreeMap::new());
        let mut context =
            Context { shard, log, in_flight, behind, guards, log_works: true, image, replies, ms, tokens };
        context.shard.finish_load(context.now());
        context.drain();
        context
    }

    /// The next coordinator of the same log.
    pub(crate) fn fail_over(&self) -> Self {
        Self::load(self.shard.config().clone(), self.log.clone(), Arc::clone(&self.image), self.ms, self.tokens)
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    pub(crate) fn now(&self) -> Now {
        Now { monotonic: Time(self.ms), wall: Time(self.ms + EPOCH_MS) }
    }

    pub(crate) fn replayed(&self) -> GroupState {
        let mut shard = GroupShard::new(self.shard.config().clone());
        self.log.iter().for_each(|entry| entry.replay(&mut shard));
        assert_eq!(shard.skipped_records(), 0);
        shard.state().clone()
    }

    pub(crate) fn drain(&mut self) {
        while let Some(output) = self.shard.poll_output() {
            match output {
                Output::Reply { token, response } => {
                    assert!(self.replies.insert(token, response).is_none(), "{token:?} is answered twice");
                }
                Output::Effect(GroupEffect::Resolve { group_id, expressions, image }) => {
                    let resolved = coordinator::consumer::regex::resolve(&expressions, &image, self.now().wall);
                    let now = self.now();
                    self.shard.resolved(&group_id, resolved, now);
                }
                Output::Append { batch, records } => {
                    self.append(batch, records.into_iter().map(Entry::Record).collect());
                }
                Output::AppendInTransaction { batch, producer, guard, records } => {
                    self.guards.insert(batch, guard);
                    let entry = |record| Entry::InTransaction(producer, record);
                    self.append(batch, records.into_iter().map(entry).collect());
                }
                Output::AppendMarker { batch, marker } => self.append(batch, vec![Entry::Marker(marker)]),
            }
        }
        self.shard.assert_invariants();
    }

    fn append(&mut self, batch: BatchNumber, entries: Vec<Entry>) {
        assert!(!entries.is_empty());
        self.behind.push_back((batch, entries));
        if self.in_flight.is_none() {
            self.in_flight = self.behind.pop_front();
        }
        if self.log_works {
            self.commit();
        }
    }

    pub(crate) fn commit(&mut self) {
        let (batch, entries) = self.in_flight.take().unwrap();
        self.in_flight = self.behind.pop_front();
        self.log.extend(entries);
        let now = self.now();
        self.shard.committed(batch, now);
        self.drain();
    }

    pub(crate) fn fail(&mut self, error: ErrorCode) {
        let (batch, _) = self.in_flight.take().unwrap();
        self.in_flight = self.behind.pop_front();
        let now = self.now();
        self.shard.failed(batch, error, now);
        self.drain();
    }

    pub(crate) fn send(&mut self, request: GroupRequest) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        let now = self.now();
        self.shard.handle(token, request, u128::from(self.tokens) << 64, now);
        self.drain();
        token
    }

    pub(crate) fn reply(&mut self, token: Token) -> Option<GroupResponse> {
        self.replies.remove(&token)
    }

    pub(crate) fn advance(&mut self, ms: u64) {
        let end = self.ms + ms;
        while let Some(due) = self.shard.poll_timeout().filter(|due| due.0 <= end) {
            self.ms = self.ms.max(due.0);
            let now = self.now();
            self.shard.handle_timeout(now);
            self.drain();
        }
        self.ms = end;
    }

    pub(crate) fn join(&mut self, request: JoinGroupRequest) -> Token {
        self.send(GroupRequest::JoinGroup(request))
    }

    pub(crate) fn joined(&mut self, token: Token) -> JoinGroupResponse {
        match self.reply(token) {
            Some(GroupResponse::JoinGroup(response)) => response,
            other => panic!("no answer to a JoinGroup: {other:?}"),
        }
    }

    pub(crate) fn is_parked(&self, token: Token) -> bool {
        !self.replies.contains_key(&token)
    }

    pub(crate) fn sync(&mut self, member_id: &str, generation_id: i32, assignments: &[(&str, &str)]) -> Token {
        let assign = |(member_id, assignment): &(&str, &str)| MemberAssignment {
            member_id: (*member_id).to_owned(),
            assignment: Bytes::copy_from_slice(assignment.as_bytes()),
        };
        self.send(GroupRequest::SyncGroup(SyncGroupRequest {
            group_id: GROUP.into(),
            generation_id,
            member_id: member_id.into(),
            group_instance_id: None,
            protocol_type: Some("consumer".into()),
            protocol_name: None,
            assignments: assignments.iter().map(assign).collect(),
        }))
    }

    pub(crate) fn synced(&mut self, token: Token) -> Result<String, ErrorCode> {
        match self.reply(token) {
            Some(GroupResponse::SyncGroup(response)) if response.error.is_none() => {
                Ok(String::from_utf8(response.assignment.to_vec()).unwrap())
            }
            Some(GroupResponse::SyncGroup(response)) => Err(response.error),
            other => panic!("no answer to a SyncGroup: {other:?}"),
        }
    }

    pub(crate) fn heartbeat(&mut self, member_id: &str, generation_id: i32) -> ErrorCode {
        let token = self.send(GroupRequest::Heartbeat(HeartbeatRequest {
            group_id: GROUP.into(),
            generation_id,
            member_id: member_id.into(),
            group_instance_id: None,
        }));
        match self.reply(token) {
            Some(GroupResponse::Heartbeat(response)) => response.error,
            other => panic!("no answer to a Heartbeat: {other:?}"),
        }
    }

    pub(crate) fn leave(&mut self, members: &[(&str, Option<&str>)]) -> Vec<ErrorCode> {
        let leaving = |(member_id, instance): &(&str, Option<&str>)| LeavingMember {
            member_id: (*member_id).to_owned(),
            group_instance_id: instance.map(str::to_owned),
            reason: None,
        };
        let members = members.iter().map(leaving).collect();
        let token = self.send(GroupRequest::LeaveGroup(LeaveGroupRequest { group_id: GROUP.into(), members }));
        match self.reply(token) {
            Some(GroupResponse::LeaveGroup(response)) if response.error.is_none() => {
                response.members.into_iter().map(|member| member.error).collect()
            }
            other => panic!("no answer to a LeaveGroup: {other:?}"),
        }
    }

    pub(crate) fn describe(&mut self) -> DescribeGroupResponse {
        let token = self.send(GroupRequest::DescribeGroup(DescribeGroupRequest { group_id: GROUP.into() }));
        match self.reply(token) {
            Some(GroupResponse::DescribeGroup(response)) => response,
            other => panic!("no answer to a DescribeGroups: {other:?}"),
        }
    }

    /// Commits offset 7 of partitions 0 … of topic `t`.
    pub(crate) fn commit_offsets(&mut self, member_id: &str, generation_id: i32, offset: i64) -> Token {
        self.send(GroupRequest::OffsetCommit(commit_request(member_id, generation_id, offset)))
    }

    pub(crate) fn committed(&mut self, token: Token) -> ErrorCode {
        match self.reply(token) {
            Some(GroupResponse::OffsetCommit(response)) => response.topics[0].partitions[0].1,
            other => panic!("no answer to an OffsetCommit: {other:?}"),
        }
    }

    pub(crate) fn fetch(&mut self) -> i64 {
        let token = self.send(GroupRequest::OffsetFetch(fetch_request(false)));
        self.fetched(token)
    }

    pub(crate) fn fetched(&mut self, token: Token) -> i64 {
        match self.reply(token) {
            Some(GroupResponse::OffsetFetch(response)) => {
                assert_eq!(response.error, ErrorCode::None);
                response.topics[0].partitions[0].offset.0
            }
            other => panic!("no answer to an OffsetFetch: {other:?}"),
        }
    }

    pub(crate) fn delete_group(&mut self) -> ErrorCode {
        let token = self.send(GroupRequest::DeleteGroup(DeleteGroupRequest { group_id: GROUP.into() }));
        match self.reply(token) {
            Some(GroupResponse::DeleteGroup(response)) => response.error,
            other => panic!("no answer to a DeleteGroups: {other:?}"),
        }
    }

    pub(crate) fn delete_offset(&mut self, topic: &str) -> (ErrorCode, Option<ErrorCode>) {
        let topics =
            vec![TopicPartitions { name: topic.into(), topic_id: TopicId::NONE, partitions: vec![PartitionIndex(0)] }];
        let request = OffsetDeleteRequest { group_id: GROUP.into(), topics };
        let token = self.send(GroupRequest::OffsetDelete(request));
        match self.reply(token) {
            Some(GroupResponse::OffsetDelete(response)) => {
                (response.error, response.topics.first().map(|topic| topic.partitions[0].1))
            }
            other => panic!("no answer to an OffsetDelete: {other:?}"),
        }
    }

    /// Brings `count` new dynamic members into a stable generation; the first is the leader. Returns their ids, the
    /// leader first, and the generation.
    pub(crate) fn stable_group(&mut self, count: usize) -> (Vec<String>, i32) {
        let tokens: Vec<Token> = (0..count).map(|_| self.join(new_member())).collect();
        self.advance(1);
        let mut joined: Vec<JoinGroupResponse> = tokens.into_iter().map(|token| self.joined(token)).collect();
        joined.sort_by_key(|member| member.members.is_empty());
        let member_ids: Vec<String> = joined.iter().map(|member| member.member_id.clone()).collect();
        let generation_id = joined[0].generation_id;
        let assignments: Vec<(&str, &str)> = member_ids.iter().map(|id| (id.as_str(), id.as_str())).collect();
        for member_id in member_ids.iter().rev() {
            self.sync(member_id, generation_id, if *member_id == member_ids[0] { &assignments } else { &[] });
        }
        assert_eq!(self.describe().state, "Stable");
        (member_ids, generation_id)
    }
}

/// A consumer that does not know MEMBER_ID_REQUIRED.
pub(crate) fn new_member() -> JoinGroupRequest {
    JoinGroupRequest {
        group_id: GROUP.into(),
        member_id: String::new(),
        group_instance_id: None,
        client_id: "client".into(),
        client_host: "/127.0.0.1".into(),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 60_000,
        protocol_type: "consumer".into(),
        protocols: vec![protocol("range", &["t"])],
        require_known_member_id: false,
        supports_skip_assignment: true,
        reason: None,
    }
}

pub(crate) fn known_member(member_id: &str) -> JoinGroupRequest {
    JoinGroupRequest { member_id: member_id.into(), ..new_member() }
}

pub(crate) fn static_member(instance: &str) -> JoinGroupRequest {
    JoinGroupRequest { group_instance_id: Some(instance.into()), ..new_member() }
}

/// A protocol with a consumer's subscription, version 0: topics, no user data.
pub(crate) fn protocol(name: &str, topics: &[&str]) -> JoinProtocol {
    let mut metadata = vec![0, 0];
    metadata.extend(u32::try_from(topics.len()).unwrap().to_be_bytes());
    for topic in topics {
        metadata.extend(u16::try_from(topic.len()).unwrap().to_be_bytes());
        metadata.extend(topic.as_bytes());
    }
    metadata.extend([0xff; 4]);
    JoinProtocol { name: name.into(), metadata: metadata.into() }
}

pub(crate) fn commit_request(member_id: &str, generation_id: i32, offset: i64) -> OffsetCommitRequest {
    let partition = OffsetToCommit {
        partition: PartitionIndex(0),
        offset: Offset(offset),
        leader_epoch: LeaderEpoch(3),
        metadata: "words".into(),
    };
    OffsetCommitRequest {
        group_id: GROUP.into(),
        generation_id,
        member_id: member_id.into(),
        group_instance_id: None,
        retention_time_ms: -1,
        topics: vec![TopicOffsetsToCommit { name: "t".into(), topic_id: TopicId::NONE, partitions: vec![partition] }],
        supports_member_epochs: true,
    }
}

pub(crate) fn producer(id: i64) -> Producer {
    Producer { id: ProducerId(id), epoch: ProducerEpoch(0) }
}

pub(crate) fn marker(id: i64, commit: bool) -> Marker {
    let (producer_id, producer_epoch) = (ProducerId(id), ProducerEpoch(1));
    Marker { producer_id, producer_epoch, coordinator_epoch: LeaderEpoch(5), commit, transaction_version: 2 }
}

/// As [`commit_request`], in the transaction of a producer.
pub(crate) fn txn_commit_request(id: i64, commit: OffsetCommitRequest) -> GroupRequest {
    GroupRequest::TxnOffsetCommit(TxnOffsetCommitRequest { producer: producer(id), guard: None, commit })
}

pub(crate) fn fetch_request(require_stable: bool) -> OffsetFetchRequest {
    let topic = TopicPartitions { name: "t".into(), topic_id: TopicId::NONE, partitions: vec![PartitionIndex(0)] };
    let topics = Some(vec![topic]);
    OffsetFetchRequest { group_id: GROUP.into(), member_id: None, member_epoch: -1, topics, require_stable }
}
