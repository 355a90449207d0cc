//! The partition of groups: offsets in transactions (`R49`) go through the groups' coordinator, and so do the markers that
//! end them; what its shell does is `broker::transactions` and `broker::shards`. One group, one offset of it; consumers that
//! are members of nothing commit it, too.

use std::collections::BTreeMap;

use coordinator::request::{
    OffsetCommitRequest, OffsetDeleteRequest, OffsetFetchRequest, OffsetToCommit, TopicOffsetsToCommit,
    TopicPartitions, TxnOffsetCommitRequest,
};
use coordinator::transaction::Marker;
use coordinator::{
    BatchNumber, CoordinatorRecord, Fact, GroupConfig, GroupRequest, GroupResponse, GroupShard, Output, Token,
};
use model::{ErrorCode, LeaderEpoch, Offset, PartitionIndex, ProducerEpoch, ProducerId, Rules, TopicId};
use replication::producers::VerificationGuard;

use super::Scenario;
use super::world::{Entry, Message, NOW, Part, TOPIC, Tag, Transactions, Who, Work, producer, who};

const GROUP: &str = "g";
const PARTITION: PartitionIndex = PartitionIndex(0);
/// Offsets outside of transactions begin here, so that they are nobody's.
const PLAIN: i64 = 100;

/// The coordinator of the group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Group {
    shard: GroupShard,
    /// What stands in the log, entry by entry; none in a marker.
    contents: Vec<Option<CoordinatorRecord>>,
    /// Where batches end that are on their way.
    pub(crate) in_flight: BTreeMap<BatchNumber, usize>,
    /// Who is answered on which token.
    pub(crate) asked: BTreeMap<u64, Asked>,
}

/// Who waits for the group's coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Asked {
    Commit(Message),
    Marker(Work),
    /// Whose answer does not matter.
    Other,
}

impl Group {
    pub(crate) fn new(rules: Rules) -> Group {
        let mut group =
            Group { shard: shard(rules), contents: Vec::new(), in_flight: BTreeMap::new(), asked: BTreeMap::new() };
        group.shard.finish_load(NOW);
        group
    }

    fn ask(&mut self, asked: Asked, request: GroupRequest) {
        let token = (0..).find(|token| !self.asked.contains_key(token)).expect("there is always one");
        self.asked.insert(token, asked);
        self.shard.handle(Token(token), request, 0, NOW);
    }

    /// The group's offset.
    pub(crate) fn offset(&self) -> Option<i64> {
        self.shard.state().offset(GROUP, TOPIC, PARTITION).map(|committed| committed.offset.0)
    }

    /// What a consumer hears that wants to know only what does not change any more; None where it has to wait.
    pub(crate) fn fetch_stable(&self) -> Option<Result<Option<i64>, ErrorCode>> {
        let mut shard = self.shard.clone();
        let topics = Some(vec![of_topic()]);
        let fetch = OffsetFetchRequest {
            group_id: GROUP.to_owned(),
            member_id: None,
            member_epoch: -1,
            topics,
            require_stable: true,
        };
        shard.handle(Token(u64::MAX), GroupRequest::OffsetFetch(fetch), 0, NOW);
        match shard.poll_output()? {
            Output::Reply { response: GroupResponse::OffsetFetch(response), .. } => {
                let found = response.topics.into_iter().next()?.partitions.into_iter().next()?;
                let offset = Some(found.offset.0).filter(|offset| *offset >= 0);
                Some(if found.error.is_none() { Ok(offset) } else { Err(found.error) })
            }
            _ => None,
        }
    }
}

fn shard(rules: Rules) -> GroupShard {
    let mut config = GroupConfig { offsets_commit_timeout_ms: 1_000_000_000, ..GroupConfig::default() };
    config.consumer.rules = rules;
    GroupShard::new(config)
}

fn of_topic() -> TopicPartitions {
    TopicPartitions { name: TOPIC.to_owned(), topic_id: TopicId::NONE, partitions: vec![PARTITION] }
}

fn commit_of(offset: i64, is_stranger: bool) -> OffsetCommitRequest {
    let offset = OffsetToCommit {
        partition: PARTITION,
        offset: Offset(offset),
        leader_epoch: LeaderEpoch::NONE,
        metadata: String::new(),
    };
    let topic = TopicOffsetsToCommit { name: TOPIC.to_owned(), topic_id: TopicId::NONE, partitions: vec![offset] };
    OffsetCommitRequest {
        group_id: GROUP.to_owned(),
        // There is no such generation.
        generation_id: if is_stranger { 1 } else { -1 },
        member_id: if is_stranger { "m".to_owned() } else { String::new() },
        group_instance_id: None,
        retention_time_ms: -1,
        topics: vec![topic],
        supports_member_epochs: true,
    }
}

/// The offset that a transaction commits.
pub(crate) fn offset_of(tag: Tag) -> i64 {
    i64::from(tag.0) * 10 + i64::from(tag.1)
}

pub(crate) fn plain_offset(serial: u8) -> i64 {
    PLAIN + i64::from(serial)
}

/// What a record of the group's log says.
fn entry_of(record: &CoordinatorRecord, producer: Option<Who>) -> Entry {
    let small = |number: i64| u8::try_from(number).expect("a small offset");
    let Ok(Some(Fact::Offset { committed, .. })) = Fact::decode(record) else {
        unreachable!("only offsets are stored")
    };
    match (producer, committed.map(|committed| committed.offset.0)) {
        (Some(who), Some(offset)) => Entry::Data { who, sequence: -1, tag: (small(offset / 10), small(offset % 10)) },
        (None, Some(offset)) => Entry::Plain(Some(small(offset - PLAIN))),
        (_, None) => Entry::Plain(None),
    }
}

impl Part {
    fn append_records(&mut self, batch: BatchNumber, records: Vec<CoordinatorRecord>, producer: Option<Who>) {
        for record in records {
            self.append(entry_of(&record, producer));
            self.group.as_mut().expect("the partition of groups").contents.push(Some(record));
        }
        let end = self.log.len();
        self.group.as_mut().expect("the partition of groups").in_flight.insert(batch, end);
    }

    fn append_in_transaction(
        &mut self,
        batch: BatchNumber,
        (as_whom, guard): (Who, Option<u64>),
        records: Vec<CoordinatorRecord>,
        rules: Rules,
    ) -> Result<(), ErrorCode> {
        let (id, epoch) = (ProducerId(as_whom.0), ProducerEpoch(as_whom.1));
        self.table.check_epoch(id, epoch)?;
        self.table.check_verified(id, epoch, guard.map(VerificationGuard::of_number), rules)?;
        self.append_records(batch, records, Some(as_whom));
        Ok(())
    }

    fn end_offsets(&mut self, batch: BatchNumber, marker: &Marker, work: &Work, rules: Rules) -> Result<(), ErrorCode> {
        self.check_marker(work, rules)?;
        let (who, commit) = ((marker.producer_id.0, marker.producer_epoch.0), marker.commit);
        self.append(Entry::Marker { who, commit, coordinator_epoch: marker.coordinator_epoch.0 });
        let (end, group) = (self.log.len(), self.group.as_mut().expect("the partition of groups"));
        group.contents.push(None);
        group.in_flight.insert(batch, end);
        Ok(())
    }
}

impl Transactions {
    fn group(&mut self, partition: u8) -> &mut Group {
        self.part(partition).group.as_mut().expect("the partition of groups")
    }

    /// TxnOffsetCommit arrives.
    pub(crate) fn write_offset(&mut self, message: Message, scenario: &Scenario) {
        let Message::Write { who, partition, tag, .. } = message else { return };
        let (id, epoch) = (ProducerId(who.0), ProducerEpoch(who.1));
        let table = &self.part(partition).table;
        if table.has_open(id, epoch) {
            self.append_offset(message, None, scenario);
        } else if let Err(error) = table.check_epoch(id, epoch) {
            self.refused(message, error);
        } else if !self.part(partition).waiting.values().any(|line| line.contains(&message)) {
            // A copy that waits beside it would ask, and be answered, the same.
            let add = self.version_of(tag.0) >= 2;
            self.verify(partition, who, vec![message], add);
        }
    }

    /// The transaction is open, or was verified.
    pub(crate) fn append_offset(&mut self, message: Message, guard: Option<u64>, scenario: &Scenario) {
        let Message::Write { who, partition, tag, .. } = message else { return };
        let commit = commit_of(offset_of(tag), scenario.stranger == Some(tag.0));
        let request = TxnOffsetCommitRequest { producer: producer(who), guard, commit };
        self.group(partition).ask(Asked::Commit(message), GroupRequest::TxnOffsetCommit(request));
        self.drain_group(partition, scenario);
    }

    /// An offset outside of transactions, or its deletion.
    pub(crate) fn change_offset(&mut self, delete: bool, scenario: &Scenario) {
        let request = if delete {
            self.left.deletes -= 1;
            GroupRequest::OffsetDelete(OffsetDeleteRequest { group_id: GROUP.to_owned(), topics: vec![of_topic()] })
        } else {
            self.left.commits -= 1;
            GroupRequest::OffsetCommit(commit_of(plain_offset(self.left.commits), false))
        };
        let partition = scenario.partitions;
        self.group(partition).ask(Asked::Other, request);
        self.drain_group(partition, scenario);
    }

    /// Tries a marker once.
    pub(crate) fn mark_offsets(&mut self, work: Work, is_late: bool, scenario: &Scenario) {
        let marker = Marker {
            producer_id: ProducerId(work.who.0),
            producer_epoch: ProducerEpoch(work.who.1),
            coordinator_epoch: LeaderEpoch(work.coordinator_epoch),
            commit: work.commit,
            transaction_version: work.version,
        };
        let asked = if is_late { Asked::Other } else { Asked::Marker(work) };
        if !is_late {
            self.works.insert(work, Some(self.parts[usize::from(work.partition)].log.len()));
        }
        self.group(work.partition).ask(asked, GroupRequest::EndTransaction(marker));
        self.drain_group(work.partition, scenario);
    }

    fn drain_group(&mut self, partition: u8, scenario: &Scenario) {
        while let Some(output) = self.group(partition).shard.poll_output() {
            let part = self.part(partition);
            match output {
                Output::Reply { token, response } => self.answered(partition, token, &response),
                Output::Append { batch, records } => part.append_records(batch, records, None),
                Output::AppendInTransaction { batch, producer, guard, records } => {
                    let written = part.append_in_transaction(batch, (who(producer), guard), records, scenario.rules);
                    self.not_appended(partition, batch, written);
                }
                Output::AppendMarker { batch, marker } => {
                    let work = Work::of(&marker, partition);
                    let written = part.end_offsets(batch, &marker, &work, scenario.rules);
                    self.not_appended(partition, batch, written);
                }
                Output::Effect(_) => {}
            }
        }
    }

    fn not_appended(&mut self, partition: u8, batch: BatchNumber, written: Result<(), ErrorCode>) {
        if let Err(error) = written {
            self.group(partition).shard.failed(batch, error, NOW);
        }
    }

    fn answered(&mut self, partition: u8, token: Token, response: &GroupResponse) {
        let Some(asked) = self.group(partition).asked.remove(&token.0) else { return };
        match (asked, response) {
            (Asked::Commit(message), GroupResponse::TxnOffsetCommit(response)) => {
                let of = response.topics.first().and_then(|topic| topic.partitions.first());
                let error = of.map_or(ErrorCode::UnknownServerError, |(_, error)| *error);
                if !error.is_none() {
                    self.refused(message, error);
                }
            }
            // Another coordinator has asked for markers of its own meanwhile.
            (Asked::Marker(work), _) if work.coordinator_epoch != self.coordinator.epoch => {}
            (Asked::Marker(work), GroupResponse::EndTransaction(response)) => match response.error {
                ErrorCode::None => self.written(work),
                // Who asked asks the next one.
                ErrorCode::NotCoordinator => {
                    self.works.insert(work, None);
                }
                error => self.never_ends(work, error),
            },
            (Asked::Commit(_) | Asked::Marker(_) | Asked::Other, _) => {}
        }
    }

    /// What is below the high watermark is true.
    pub(crate) fn replicate_offsets(&mut self, partition: u8, scenario: &Scenario) {
        let high_watermark = self.part(partition).high_watermark;
        let group = self.group(partition);
        let in_flight = std::mem::take(&mut group.in_flight);
        let (covered, rest): (BTreeMap<_, _>, _) = in_flight.into_iter().partition(|(_, end)| *end <= high_watermark);
        group.in_flight = rest;
        covered.into_keys().for_each(|batch| group.shard.committed(batch, NOW));
        self.drain_group(partition, scenario);
    }

    pub(crate) fn unload_group(&mut self, partition: u8, scenario: &Scenario) {
        self.group(partition).shard.unload(ErrorCode::NotCoordinator);
        self.drain_group(partition, scenario);
        let group = self.group(partition);
        group.asked.clear();
        group.in_flight.clear();
    }

    /// The next coordinator reads the log.
    pub(crate) fn load_group(&mut self, partition: u8, scenario: &Scenario) {
        let part = self.part(partition);
        let log = part.log.clone();
        let group = part.group.as_mut().expect("the partition of groups");
        group.contents.truncate(log.len());
        let mut shard = shard(scenario.rules);
        for (entry, record) in log.iter().zip(&group.contents) {
            match (entry, record) {
                (Entry::Data { who, .. }, Some(record)) => shard.replay_in_transaction(record, ProducerId(who.0)),
                (Entry::Plain(_), Some(record)) => shard.replay(record),
                (Entry::Marker { who, commit, .. }, _) => shard.replay_marker(ProducerId(who.0), *commit),
                (Entry::Data { .. } | Entry::Plain(_), None) => unreachable!("only markers have no record"),
            }
        }
        shard.finish_load(NOW);
        group.shard = shard;
    }
}
