//! Random producers that commit offsets in transactions, random faults, seeds (`R49`): whatever happens, the offset of a
//! partition is that of the last record of its key which counts, so also after a compaction and for the next coordinator;
//! and who needs a stable offset is told of those that may still change.
//!
//! The log is as a partition has it: what is appended stands there at once, becomes certain when the high watermark passes it,
//! and the shard hears of the batches in any order. Which records count is asked of the whole log, not carried forward.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coordinator::request::{DeleteGroupRequest, OffsetCommitRequest, OffsetFetchRequest, TopicPartitions};
use coordinator::{BatchNumber, Fact, GroupConfig, GroupRequest, GroupResponse, GroupShard, GroupState, Token};
use model::{ErrorCode, PartitionIndex, Rules, TopicId};

use crate::context::{Context, Entry, GROUP, commit_request, marker, producer};
use crate::random::Random;

const PRODUCERS: i64 = 3;
const PARTITIONS: i32 = 2;

/// A batch that the shard asked for: how many records it has in the log, none where it was refused.
struct Batch {
    number: BatchNumber,
    entries: usize,
    told: bool,
}

struct World {
    c: Context,
    rules: Rules,
    random: Random,
    /// Everything appended, and how much of it is certain.
    log: Vec<Entry>,
    high_watermark: usize,
    /// The batches of this coordinator, in the order of the log, and where they begin.
    batches: Vec<Batch>,
    begun_at: usize,
    /// Counts each producer's transactions, as the partition does: what was verified for one does not get into the next.
    transactions: BTreeMap<i64, u64>,
    waiting: BTreeSet<Token>,
    written: i64,
    ended: usize,
    unstable: usize,
}

impl World {
    fn new(seed: u64, rules: Rules) -> Self {
        let mut config = GroupConfig::default();
        config.consumer.rules = rules;
        config.max_batch_bytes = if seed.is_multiple_of(2) { 400 } else { 1_000_000 };
        let mut c = Context::with(config);
        c.log_works = false;
        World {
            c,
            rules,
            random: Random(seed),
            log: Vec::new(),
            high_watermark: 0,
            batches: Vec::new(),
            begun_at: 0,
            transactions: (1..=PRODUCERS).map(|id| (id, 0)).collect(),
            waiting: BTreeSet::new(),
            written: 0,
            ended: 0,
            unstable: 0,
        }
    }

    fn step(&mut self) {
        let who = 1 + i64::try_from(self.random.below(PRODUCERS.unsigned_abs())).unwrap();
        match self.random.below(100) {
            0..30 => {
                let (guard, commit) = (Some(self.transactions[&who]), self.commit());
                let producer = producer(who);
                let request = coordinator::request::TxnOffsetCommitRequest { producer, guard, commit };
                self.ask(GroupRequest::TxnOffsetCommit(request));
            }
            30..45 => {
                let commit = self.random.below(2) == 0;
                self.ask(GroupRequest::EndTransaction(marker(who, commit)));
            }
            45..55 => {
                let commit = self.commit();
                self.ask(GroupRequest::OffsetCommit(commit));
            }
            55..60 => {
                let topics = vec![self.partitions()];
                let request = coordinator::request::OffsetDeleteRequest { group_id: GROUP.into(), topics };
                self.ask(GroupRequest::OffsetDelete(request));
            }
            60 => self.ask(GroupRequest::DeleteGroup(DeleteGroupRequest { group_id: GROUP.into() })),
            61..75 => {
                let left = u64::try_from(self.log.len() - self.high_watermark).unwrap();
                self.high_watermark += usize::try_from(self.random.below(left + 1)).unwrap();
            }
            75..90 => self.tell(),
            90 => self.fail_over(),
            _ => self.read(),
        }
        self.take_appends();
        if self.random.below(4) == 0 {
            self.check();
        }
    }

    fn ask(&mut self, request: GroupRequest) {
        let token = self.c.send(request);
        self.waiting.insert(token);
    }

    fn partitions(&mut self) -> TopicPartitions {
        let partition = PartitionIndex(i32::try_from(self.random.below(PARTITIONS.unsigned_abs().into())).unwrap());
        TopicPartitions { name: "t".into(), topic_id: TopicId::NONE, partitions: vec![partition] }
    }

    /// One partition or several, each with an offset that nobody else commits.
    fn commit(&mut self) -> OffsetCommitRequest {
        self.written += 1;
        let mut request = commit_request("", -1, self.written);
        let offset = request.topics[0].partitions[0].clone();
        let first = self.partitions().partitions[0];
        let all = if self.random.below(4) == 0 { (0..PARTITIONS).map(PartitionIndex).collect() } else { vec![first] };
        let offsets =
            all.into_iter().map(|partition| coordinator::request::OffsetToCommit { partition, ..offset.clone() });
        request.topics[0].partitions = offsets.collect();
        request
    }

    /// What the shard has given out is appended at once, or refused: what a verification of an ended transaction allowed, and
    /// now and then anything.
    fn take_appends(&mut self) {
        while let Some((number, entries)) = self.c.in_flight.take() {
            self.c.in_flight = self.c.behind.pop_front();
            let refused = self.random.below(12) == 0 || entries.iter().any(|entry| self.is_late(number, entry));
            let count = if refused { 0 } else { entries.len() };
            if !refused {
                for entry in entries {
                    if let Entry::Marker(marker) = &entry {
                        *self.transactions.get_mut(&marker.producer_id.0).unwrap() += 1;
                    }
                    self.log.push(entry);
                }
            }
            self.batches.push(Batch { number, entries: count, told: false });
        }
    }

    fn is_late(&self, number: BatchNumber, entry: &Entry) -> bool {
        let Entry::InTransaction(producer, _) = entry else { return false };
        self.c.guards.get(&number).is_none_or(|guard| *guard != Some(self.transactions[&producer.id.0]))
    }

    /// The shard hears of one batch, whichever.
    fn tell(&mut self) {
        let mut end = self.begun_at;
        let mut known = Vec::new();
        for (index, batch) in self.batches.iter().enumerate() {
            end += batch.entries;
            if !batch.told && (batch.entries == 0 || end <= self.high_watermark) {
                known.push(index);
            }
        }
        if known.is_empty() {
            return;
        }
        let index = known[usize::try_from(self.random.below(known.len() as u64)).unwrap()];
        let (batch, now) = (&mut self.batches[index], self.c.now());
        batch.told = true;
        if batch.entries == 0 {
            self.c.shard.failed(batch.number, ErrorCode::InvalidTxnState, now);
        } else {
            self.c.shard.committed(batch.number, now);
        }
        self.c.drain();
        self.hear();
    }

    fn hear(&mut self) {
        let answered: Vec<Token> = self.waiting.iter().copied().filter(|token| !self.c.is_parked(*token)).collect();
        for token in answered {
            self.waiting.remove(&token);
            if let Some(GroupResponse::EndTransaction(response)) = self.c.reply(token) {
                self.ended += usize::from(response.error.is_none());
            }
        }
    }

    /// What the shard has taken in: all up to the first batch of which it has not heard.
    fn applied(&self) -> &[Entry] {
        let heard = self.batches.iter().take_while(|batch| batch.told).map(|batch| batch.entries);
        &self.log[..self.begun_at + heard.sum::<usize>()]
    }

    fn check(&self) {
        let state = self.c.shard.state();
        let expected = Counts::of(self.applied());
        for index in (0..PARTITIONS).map(PartitionIndex) {
            let offset = state.offset(GROUP, "t", index).map(|committed| committed.offset.0);
            assert_eq!(
                offset,
                expected.offsets.get(&index).copied(),
                "the offset of {index} after {:?}",
                self.applied()
            );
            let open = state.pending().contains(GROUP, "t", index);
            assert_eq!(open, expected.open.contains(&index), "whether {index} may change after {:?}", self.applied());
        }
    }

    fn read(&mut self) {
        let fetch = OffsetFetchRequest {
            group_id: GROUP.into(),
            member_id: None,
            member_epoch: -1,
            topics: Some(vec![TopicPartitions {
                name: "t".into(),
                topic_id: TopicId::NONE,
                partitions: (0..PARTITIONS).map(PartitionIndex).collect(),
            }]),
            require_stable: true,
        };
        let expected = Counts::of(self.applied());
        let token = self.c.send(GroupRequest::OffsetFetch(fetch));
        // Behind writes it is answered later, and then says what is so then.
        let Some(GroupResponse::OffsetFetch(response)) = self.c.reply(token) else { return };
        for found in &response.topics[0].partitions {
            if expected.open.contains(&found.partition) {
                self.unstable += 1;
                assert_eq!(found.error, ErrorCode::UnstableOffsetCommit);
            } else {
                let offset = expected.offsets.get(&found.partition).copied().unwrap_or(-1);
                assert_eq!((found.error, found.offset.0), (ErrorCode::None, offset));
            }
        }
    }

    /// The next coordinator has all that is certain, and some of what is not.
    fn fail_over(&mut self) {
        let lost = usize::try_from(self.random.below((self.log.len() - self.high_watermark + 1) as u64)).unwrap();
        self.log.truncate(self.log.len() - lost);
        self.high_watermark = self.log.len();
        self.c.shard.unload(ErrorCode::NotCoordinator);
        self.c.drain();
        self.hear();
        assert!(self.waiting.is_empty(), "unloading answers everybody");
        let ended = |id: i64| move |entry: &&Entry| matches!(entry, Entry::Marker(m) if m.producer_id.0 == id);
        for (id, transactions) in &mut self.transactions {
            *transactions = u64::try_from(self.log.iter().filter(ended(*id)).count()).unwrap();
        }
        let log = if self.random.below(2) == 0 { self.log.clone() } else { compacted(&self.log) };
        let mut next = Context::load(self.c.shard.config().clone(), log, Arc::default(), 0, self.c.tokens());
        assert_eq!(next.shard.state(), &self.replayed(), "a compacted log says the same");
        next.log_works = false;
        self.c = next;
        (self.batches, self.begun_at) = (Vec::new(), self.log.len());
    }

    fn replayed(&self) -> GroupState {
        let mut config = GroupConfig::default();
        config.consumer.rules = self.rules;
        let mut shard = GroupShard::new(config);
        self.log.iter().for_each(|entry| entry.replay(&mut shard));
        shard.state().clone()
    }

    /// Without faults, everybody is answered.
    fn settle(&mut self) {
        loop {
            self.take_appends();
            self.high_watermark = self.log.len();
            if self.batches.iter().all(|batch| batch.told) {
                break;
            }
            self.tell();
        }
        self.check();
        self.c.advance(5_000);
        self.hear();
        assert!(self.waiting.is_empty(), "{:?} wait for ever", self.waiting);
    }
}

/// Which records count, by the whole log.
#[derive(Default)]
struct Counts {
    offsets: BTreeMap<PartitionIndex, i64>,
    /// Of these a transaction may still change the offset.
    open: BTreeSet<PartitionIndex>,
}

/// What becomes of a record.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Counts,
    Aborted,
    Open,
}

fn outcome(log: &[Entry], at: usize) -> Outcome {
    let Entry::InTransaction(producer, _) = &log[at] else { return Outcome::Counts };
    let marker = log[at..].iter().find_map(|entry| match entry {
        Entry::Marker(marker) if marker.producer_id == producer.id => Some(marker.commit),
        _ => None,
    });
    match marker {
        Some(true) => Outcome::Counts,
        Some(false) => Outcome::Aborted,
        None => Outcome::Open,
    }
}

/// The partition of a record and its offset; None for a marker.
fn content(entry: &Entry) -> Option<(PartitionIndex, Option<i64>)> {
    let (Entry::Record(record) | Entry::InTransaction(_, record)) = entry else { return None };
    match Fact::decode(record) {
        Ok(Some(Fact::Offset { partition, committed, .. })) => Some((partition, committed.map(|c| c.offset.0))),
        other => panic!("{other:?}"),
    }
}

impl Counts {
    fn of(log: &[Entry]) -> Counts {
        let mut counts = Counts::default();
        for (at, entry) in log.iter().enumerate() {
            let Some((partition, offset)) = content(entry) else { continue };
            match (outcome(log, at), offset) {
                (Outcome::Counts, Some(offset)) => {
                    counts.offsets.insert(partition, offset);
                }
                (Outcome::Counts, None) => {
                    counts.offsets.remove(&partition);
                    counts.open.remove(&partition);
                }
                (Outcome::Open, _) => {
                    counts.open.insert(partition);
                }
                (Outcome::Aborted, _) => {}
            }
        }
        counts
    }
}

/// What a compaction leaves below the first record that is undecided: no aborted records, the last of each key.
fn compacted(log: &[Entry]) -> Vec<Entry> {
    let end = (0..log.len()).find(|at| outcome(log, *at) == Outcome::Open).unwrap_or(log.len());
    let mut last = BTreeMap::new();
    for at in (0..end).filter(|at| outcome(log, *at) == Outcome::Counts) {
        if let Some((partition, _)) = content(&log[at]) {
            last.insert(partition, at);
        }
    }
    let stays = |(at, entry): &(usize, &Entry)| {
        content(entry).is_none_or(|(partition, _)| *at >= end || last.get(&partition) == Some(at))
    };
    log.iter().enumerate().filter(stays).map(|(_, entry)| entry.clone()).collect()
}

fn walk(seed: u64, rules: Rules) -> (usize, usize) {
    let mut world = World::new(seed, rules);
    for _ in 0..250 {
        world.step();
    }
    world.settle();
    (world.ended, world.unstable)
}

#[test]
fn the_last_record_of_a_key_that_counts_is_the_offset_whatever_happens() {
    let (mut ended, mut unstable) = (0, 0);
    for seed in 0..200 {
        let walked = walk(seed, Rules::all());
        (ended, unstable) = (ended + walked.0, unstable + walked.1);
    }
    assert!(ended > 1_000 && unstable > 100, "hardly anything happened: {ended} ended, {unstable} unstable");
}

#[cfg(feature = "mutations")]
#[test]
fn the_rules_of_offsets_in_transactions_are_noticed_when_they_are_switched_off() {
    use model::Rule;
    std::panic::set_hook(Box::new(|_| {}));
    let rules =
        [Rule::R49AbortDrops, Rule::R49LogOrder, Rule::R49TombstoneDrops, Rule::R49Unstable, Rule::R49UntilMarker];
    let noticed =
        |rule: Rule| (0..100).any(|seed| std::panic::catch_unwind(|| walk(seed, Rules::without(rule))).is_err());
    let missed: Vec<Rule> = rules.into_iter().filter(|rule| !noticed(*rule)).collect();
    let _ = std::panic::take_hook();
    assert_eq!(missed, [], "these rules may be left out without anybody noticing");
}

#[cfg(feature = "mutations")]
#[test]
fn without_its_fence_a_member_of_the_past_commits() {
    let commits = |rules| {
        let mut config = GroupConfig::default();
        config.consumer.rules = rules;
        let mut c = Context::with(config);
        let token = c.send(crate::context::txn_commit_request(7, commit_request("gone", 3, 5)));
        matches!(c.reply(token), Some(GroupResponse::TxnOffsetCommit(r)) if r.topics[0].partitions[0].1.is_none())
    };
    assert!(!commits(Rules::all()) && commits(Rules::without(model::Rule::R49MemberFence)));
}
