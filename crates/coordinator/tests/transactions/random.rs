//! Two clients with one transactional id, two partitions, coordinators that come and go, markers that are late, doubled and
//! of coordinators long gone: whatever happens, a transaction ends in one way everywhere, and as its producer was told.

use std::collections::BTreeMap;

use coordinator::transaction::request::Producer;
use coordinator::transaction::{Marker, PartitionSet, Status};
use coordinator::{Shard, Token};
use model::{ErrorCode, LeaderEpoch, PartitionIndex, ProducerEpoch, ProducerId, Rules};

use crate::context::{Context, ID, add_request, end_request, init_request};

/// A stream of numbers from one seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// What a client is about.
#[derive(Clone, Debug)]
enum Doing {
    Nothing,
    Initing(Token),
    Adding(Token, i32),
    Ending(Token, bool),
}

/// A transaction as its client numbers it.
type Number = u64;

#[derive(Clone, Debug)]
struct Client {
    producer: Option<Producer>,
    /// Who it says it was when it asks who it is to be (KIP-360).
    before: Option<Producer>,
    doing: Doing,
    transaction: Option<Number>,
    added: Vec<i32>,
    /// What the client asked for, until it is answered.
    ending: Option<bool>,
}

/// One partition's view of a producer.
#[derive(Clone, Debug)]
struct Seen {
    epoch: ProducerEpoch,
    coordinator_epoch: LeaderEpoch,
    open: Vec<Number>,
}

struct World {
    c: Context,
    random: Random,
    version: i16,
    clients: [Client; 2],
    partitions: [BTreeMap<ProducerId, Seen>; 2],
    /// Markers that are, or were, on their way: they may come again at any time.
    markers: Vec<(Marker, i32)>,
    /// How each transaction ended where it wrote.
    outcomes: BTreeMap<Number, bool>,
    told: BTreeMap<Number, bool>,
    holders: BTreeMap<(i64, i16), usize>,
    numbers: Number,
    ended: usize,
}

fn new_client(before: Option<Producer>) -> Client {
    Client { producer: None, before, doing: Doing::Nothing, transaction: None, added: Vec::new(), ending: None }
}

impl World {
    fn new(seed: u64, version: i16, rules: Rules) -> Self {
        let mut c = Context::with(version, rules);
        c.log_works = false;
        let client = new_client(None);
        World {
            c,
            random: Random(seed),
            version,
            clients: [client.clone(), client],
            partitions: [BTreeMap::new(), BTreeMap::new()],
            markers: Vec::new(),
            outcomes: BTreeMap::new(),
            told: BTreeMap::new(),
            holders: BTreeMap::new(),
            numbers: 0,
            ended: 0,
        }
    }

    fn step(&mut self) {
        let who = usize::try_from(self.random.below(2)).unwrap();
        match self.random.below(100) {
            0..45 => self.act(who),
            45..65 if self.c.in_flight.is_some() => self.c.commit(),
            65..68 if self.c.in_flight.is_some() => self.c.fail(ErrorCode::NotEnoughReplicas),
            68..88 => self.deliver(),
            88..91 => {
                let ms = self.random.below(30_000);
                self.c.advance(ms);
            }
            91 => self.fail_over(),
            92 if self.random.below(4) == 0 => self.clients[who] = new_client(None),
            _ => self.write(who),
        }
        self.hear();
        if self.c.in_flight.is_none() && self.random.below(16) == 0 {
            assert_eq!(self.c.shard.state(), &self.c.replayed(), "what is committed is what the log says");
        }
    }

    /// After a fatal error: another one comes, or the same one, which does not know better.
    fn start_over(&mut self, who: usize) {
        let before = self.clients[who].producer.filter(|_| self.random.below(2) == 0);
        self.clients[who] = new_client(before);
    }

    fn act(&mut self, who: usize) {
        let client = self.clients[who].clone();
        if !matches!(client.doing, Doing::Nothing) {
            return;
        }
        let Some(producer) = client.producer else {
            // Two that fence each other all the time would end nothing.
            if self.random.below(12) > 0 {
                return;
            }
            let token = self.c.send(init_request(client.before));
            self.clients[who].doing = Doing::Initing(token);
            return;
        };
        if let Some(commit) = client.ending {
            let token = self.c.send(end_request(producer, commit, self.version));
            self.clients[who].doing = Doing::Ending(token, commit);
        } else if client.added.is_empty() || self.random.below(2) == 0 {
            let partition = i32::from(self.random.below(2) == 1);
            let token = self.c.send(add_request(producer, &[partition], false));
            self.clients[who].doing = Doing::Adding(token, partition);
        } else {
            self.clients[who].ending = Some(self.random.below(2) == 0);
        }
    }

    /// A record of the client's transaction, where the partition takes it.
    fn write(&mut self, who: usize) {
        let client = &self.clients[who];
        let (Some(producer), Some(number), Some(partition)) =
            (client.producer, client.transaction, client.added.first().copied())
        else {
            return;
        };
        if client.ending.is_some() {
            return;
        }
        let seen = self.partitions[usize::try_from(partition).unwrap()].get(&producer.id).cloned();
        if seen.as_ref().is_some_and(|seen| seen.epoch > producer.epoch) {
            return;
        }
        let open = seen.as_ref().is_some_and(|seen| seen.epoch == producer.epoch && !seen.open.is_empty());
        if !open && self.c.verify(producer, &[partition]) != [ErrorCode::None] {
            return;
        }
        let entry = self.partitions[usize::try_from(partition).unwrap()].entry(producer.id);
        let seen =
            entry.or_insert(Seen { epoch: producer.epoch, coordinator_epoch: LeaderEpoch::NONE, open: Vec::new() });
        assert!(seen.epoch == producer.epoch || seen.open.is_empty(), "a transaction of an older epoch is still open");
        seen.epoch = producer.epoch;
        seen.open.push(number);
        self.clients[who].added.rotate_left(1);
    }

    fn hear(&mut self) {
        for (id, marker, partitions) in std::mem::take(&mut self.c.markers) {
            assert_eq!(id, ID);
            self.markers.extend(partitions.iter().map(|(_, partition)| (marker, partition.0)));
        }
        for who in 0..2 {
            match self.clients[who].doing.clone() {
                Doing::Initing(token) if !self.c.is_parked(token) => {
                    let inited = self.c.inited(token);
                    self.clients[who].doing = Doing::Nothing;
                    match inited {
                        Ok(producer) => self.hold(who, producer),
                        Err(ErrorCode::ProducerFenced) => self.clients[who].before = None,
                        Err(_) => {}
                    }
                }
                Doing::Adding(token, partition) if !self.c.is_parked(token) => {
                    let error = self.c.added(token)[0];
                    self.added(who, partition, error);
                }
                Doing::Ending(token, commit) if !self.c.is_parked(token) => {
                    let ended = self.c.ended(token);
                    self.told(who, commit, ended);
                }
                _ => {}
            }
        }
    }

    /// A producer's incarnation has one holder, ever.
    fn hold(&mut self, who: usize, producer: Producer) {
        self.numbers += 1;
        let holder = usize::try_from(self.numbers).unwrap();
        let before = self.holders.insert((producer.id.0, producer.epoch.0), holder);
        assert_eq!(before, None, "{producer:?} is given out twice");
        (self.clients[who].producer, self.clients[who].before) = (Some(producer), None);
        self.clients[who].added.clear();
        (self.clients[who].transaction, self.clients[who].ending) = (None, None);
    }

    fn added(&mut self, who: usize, partition: i32, error: ErrorCode) {
        self.clients[who].doing = Doing::Nothing;
        match error {
            ErrorCode::None => {
                self.numbers += 1;
                self.clients[who].transaction.get_or_insert(self.numbers);
                self.clients[who].added.push(partition);
            }
            ErrorCode::ProducerFenced | ErrorCode::InvalidProducerIdMapping => self.start_over(who),
            ErrorCode::ConcurrentTransactions | ErrorCode::CoordinatorNotAvailable | ErrorCode::NotCoordinator => {}
            other => panic!("{other} to an AddPartitionsToTxn"),
        }
    }

    fn told(&mut self, who: usize, commit: bool, ended: Result<Producer, ErrorCode>) {
        self.clients[who].doing = Doing::Nothing;
        match ended {
            Ok(producer) => {
                self.ended += 1;
                if let Some(number) = self.clients[who].transaction {
                    self.tell(number, commit);
                }
                let same = self.clients[who].producer.unwrap();
                if self.version >= 2 {
                    assert_ne!(producer, same, "R51");
                    self.hold(who, producer);
                }
                (self.clients[who].transaction, self.clients[who].ending) = (None, None);
                self.clients[who].added.clear();
            }
            Err(
                error @ (ErrorCode::ProducerFenced | ErrorCode::InvalidProducerIdMapping | ErrorCode::InvalidTxnState),
            ) => {
                let known = self.c.known();
                // A commit that a timeout was faster than is told so.
                let completed = if commit { Status::CompleteCommit } else { Status::CompleteAbort };
                let asks_again = self.version >= 2
                    && known.status == completed
                    && known.last_producer_epoch != ProducerEpoch::NONE
                    && known.producer_epoch.0 == self.clients[who].producer.unwrap().epoch.0 + 1;
                assert!(!asks_again, "{error} to a producer whose answer was lost");
                self.start_over(who);
            }
            Err(ErrorCode::ConcurrentTransactions | ErrorCode::CoordinatorNotAvailable | ErrorCode::NotCoordinator) => {
            }
            Err(other) => panic!("{other} to an EndTxn"),
        }
    }

    fn tell(&mut self, number: Number, commit: bool) {
        let before = self.told.insert(number, commit);
        assert!(before.is_none_or(|before| before == commit), "transaction {number} was told otherwise before");
        let outcome = self.outcomes.get(&number);
        assert!(outcome.is_none_or(|outcome| *outcome == commit), "transaction {number} ended otherwise");
    }

    /// A marker arrives at its partition, for the first time or again.
    fn deliver(&mut self) {
        let Some(last) = u64::try_from(self.markers.len()).unwrap().checked_sub(1) else { return };
        let at = last - self.random.below(last.min(5) + 1);
        let at = usize::try_from(at).unwrap();
        let (marker, partition) = self.markers[at];
        // Below version 2 a marker that comes again after its transaction is complete would end the next one, which has the
        // same epoch: nothing but the epoch of version 2 excludes that (R51).
        if self.version < 2 {
            self.markers.remove(at);
        }
        self.mark(&marker, partition);
    }

    fn mark(&mut self, marker: &Marker, partition: i32) {
        let seen = self.partitions[usize::try_from(partition).unwrap()].entry(marker.producer_id).or_insert(Seen {
            epoch: marker.producer_epoch,
            coordinator_epoch: marker.coordinator_epoch,
            open: Vec::new(),
        });
        // R47.
        let late = marker.coordinator_epoch < seen.coordinator_epoch || marker.producer_epoch < seen.epoch;
        let same = marker.transaction_version >= 2 && marker.producer_epoch == seen.epoch && !seen.open.is_empty();
        if late || same {
            return;
        }
        (seen.epoch, seen.coordinator_epoch) = (marker.producer_epoch, marker.coordinator_epoch);
        for number in std::mem::take(&mut seen.open) {
            let before = self.outcomes.insert(number, marker.commit);
            assert!(before.is_none_or(|before| before == marker.commit), "transaction {number} is torn");
            let told = self.told.get(&number);
            assert!(told.is_none_or(|told| *told == marker.commit), "transaction {number} was told otherwise");
        }
        let written: PartitionSet = [("t", PartitionIndex(partition))].into_iter().collect();
        self.c.marked(ID, marker, &written);
    }

    /// A batch in flight may or may not be in the log of the next coordinator.
    fn fail_over(&mut self) {
        if self.c.in_flight.is_some() && self.random.below(2) == 0 {
            self.c.commit();
            self.hear();
        }
        let mut next = self.c.fail_over();
        self.c.shard.unload(ErrorCode::NotCoordinator);
        self.c.in_flight = None;
        self.c.drain();
        self.hear();
        next.log_works = false;
        self.c = next;
        self.hear();
    }

    /// Without faults, everything that was begun ends.
    fn settle(&mut self) {
        self.c.log_works = true;
        if self.c.in_flight.is_some() {
            self.c.commit();
        }
        self.hear();
        for _ in 0..3 {
            self.c.advance(100_000);
            self.hear();
            for (marker, partition) in self.markers.clone() {
                self.mark(&marker, partition);
            }
        }
        self.hear();
        let open: Vec<&Seen> =
            self.partitions.iter().flat_map(BTreeMap::values).filter(|seen| !seen.open.is_empty()).collect();
        assert!(open.is_empty(), "transactions hang: {open:?}");
        if let Some(known) = self.c.shard.state().get(ID) {
            assert!(known.status.is_idle(), "{known:?}");
        }
    }
}

fn walk(seed: u64, version: i16, rules: Rules) -> usize {
    let mut world = World::new(seed, version, rules);
    for _ in 0..600 {
        world.step();
    }
    world.settle();
    world.ended
}

#[test]
fn a_transaction_ends_in_one_way_everywhere_and_as_its_producer_was_told() {
    let mut ended = 0;
    for version in [1, 2] {
        for seed in 0..200 {
            ended += walk(seed, version, Rules::all());
        }
    }
    assert!(ended > 2_000, "hardly anything happened: {ended} transactions ended");
}

#[cfg(feature = "mutations")]
mod mutations {
    use model::Rule;

    use super::*;

    /// Every rule that these walks must notice when it is left out.
    const NOTICED: [Rule; 8] = [
        Rule::R44EffectWhenCommitted,
        Rule::R45AllMarkers,
        Rule::R45PrepareIsFinal,
        Rule::R46AbortFirst,
        Rule::R46Bump,
        Rule::R48FenceBumps,
        Rule::R51BumpOnEnd,
        Rule::R51RepeatedEnd,
    ];

    #[test]
    fn each_rule_left_out_is_noticed() {
        std::panic::set_hook(Box::new(|_| {}));
        let noticed = |rule: Rule| {
            (0..200).any(|seed| {
                [1, 2]
                    .into_iter()
                    .any(|version| std::panic::catch_unwind(|| walk(seed, version, Rules::without(rule))).is_err())
            })
        };
        let missed: Vec<Rule> = NOTICED.into_iter().filter(|rule| !noticed(*rule)).collect();
        let _ = std::panic::take_hook();
        assert_eq!(missed, [], "these rules may be left out without anybody noticing");
    }

    #[test]
    fn without_the_epoch_check_a_fenced_producer_comes_back() {
        let comes_back = |rules| {
            let mut c = Context::with(2, rules);
            let first = c.init(None).unwrap();
            c.init(None).unwrap();
            c.init(Some(first)).is_ok()
        };
        assert!(!comes_back(Rules::all()) && comes_back(Rules::without(Rule::R46ExpectedEpoch)));
    }

    #[test]
    fn without_a_new_id_the_epochs_are_used_up() {
        let last = |rules| Context::with_epoch(i16::MAX - 1, rules).init(None).unwrap().epoch.0 == i16::MAX;
        assert!(!last(Rules::all()) && last(Rules::without(Rule::R46ExhaustedEpoch)));
        let overflows = |rules| {
            let mut c = Context::with_epoch(i16::MAX - 1, rules);
            let mine = c.known().producer();
            c.add(mine, &[0]);
            c.end(mine, true).unwrap().epoch.0 == i16::MAX
        };
        assert!(!overflows(Rules::all()) && overflows(Rules::without(Rule::R51Overflow)));
    }
}
