//! Decisions on a cluster of three racks, each replayed at once as the shell does.

mod directories;
mod displaced;
mod reassign;
mod restored;
mod zones;

use model::{
    BootId, BrokerEpoch, BrokerId, ClusterId, DirectoryId, ErrorCode, Incarnation, LeaderEpoch, MetadataOffset, Offset,
    PartitionEpoch, PartitionIndex, Rule, Rules, Time, TopicPartition, Uuid,
};
use proptest::prelude::*;

use crate::MetadataImage;
use crate::control::*;
use crate::records::{ConfigResource, LeaderRecoveryState, Listener, MetadataRecord, Partition, SecurityProtocol};

/// A cluster whose brokers 1, 2, 3 are in the racks a, b, c, in turn.
struct Cluster {
    control: ClusterControl,
    now: Time,
    entropy: u128,
    /// How many times each broker was started.
    starts: u128,
}

const SESSION: u64 = 9_000;

/// All rules, but for the one that `just mutations` has switched off.
fn rules() -> Rules {
    Rules::without_named(&std::env::var("OTTLA_SWITCHED_OFF").unwrap_or_default())
}

impl Cluster {
    fn with(settings: ControlSettings) -> Self {
        let mut control = ClusterControl::new(settings);
        let records = control.first_records(ClusterId(Uuid::from_u128(77)));
        records.iter().for_each(|record| control.replay(record));
        control.begin_tenure(Time(1_000));
        Self { control, now: Time(1_000), entropy: 1, starts: 0 }
    }

    /// Brokers `1..=brokers`, all alive, min ISR 2.
    fn of(brokers: i32) -> Self {
        Self::ruled(brokers, rules())
    }

    fn without(rule: Rule) -> Self {
        Self::ruled(3, Rules::without(rule))
    }

    fn ruled(brokers: i32, rules: Rules) -> Self {
        let settings = ControlSettings {
            min_insync_replicas: 2,
            default_replication_factor: 3,
            rules,
            ..ControlSettings::default()
        };
        let mut cluster = Self::with(settings);
        for id in 1..=brokers {
            cluster.start(id, BrokerEpoch::NONE);
            cluster.beat(id);
        }
        cluster
    }

    fn ask(&mut self, request: ControlRequest) -> Decision {
        self.control.observe(&request, self.now);
        self.entropy += 1;
        let decision = self.control.decide(&request, self.now, self.entropy);
        self.take(decision)
    }

    fn take(&mut self, decision: Decision) -> Decision {
        decision.records.iter().for_each(|record| self.control.replay(record));
        decision
    }

    fn registration(&mut self, id: i32, previous: BrokerEpoch) -> RegisterBroker {
        self.starts += 1;
        RegisterBroker {
            broker: BrokerId(id),
            cluster_id: ClusterId::NONE,
            incarnation: Incarnation(Uuid::from_u128(1_000 + self.starts)),
            boot: boot(1),
            directories: vec![directory(id)],
            offline_directories: vec![],
            cordoned_directories: vec![],
            unidentified_directories: false,
            listeners: vec![Listener {
                name: "INTERNAL".to_owned(),
                host: format!("host{id}"),
                port: 9_092,
                security_protocol: SecurityProtocol::Plaintext,
            }],
            rack: Some(["a", "b", "c"][usize::try_from((id - 1) % 3).unwrap()].to_owned()),
            features: supported_features(),
            previous_epoch: previous,
            lossy: vec![],
        }
    }

    /// Starts a broker; answers its epoch.
    fn start(&mut self, id: i32, previous: BrokerEpoch) -> BrokerEpoch {
        let request = self.registration(id, previous);
        match self.ask(ControlRequest::RegisterBroker(request)).response {
            ControlResponse::RegisterBroker { epoch } => epoch,
            other => panic!("{other:?}"),
        }
    }

    fn heartbeat(&self, id: i32) -> Heartbeat {
        Heartbeat {
            broker: BrokerId(id),
            epoch: self.control.image().broker_epoch(BrokerId(id)),
            next_offset: self.control.image().next_offset(),
            want_fence: false,
            want_shutdown: false,
            offline_directories: vec![],
            cordoned_directories: vec![],
            lossy: vec![],
            full_directories: vec![],
            exhausted_directories: vec![],
        }
    }

    fn beat(&mut self, id: i32) -> HeartbeatAnswer {
        let request = self.heartbeat(id);
        self.send(request)
    }

    fn send(&mut self, request: Heartbeat) -> HeartbeatAnswer {
        match self.ask(ControlRequest::Heartbeat(request)).response {
            ControlResponse::Heartbeat(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn create(&mut self, topic: CreateTopic) -> Result<NewTopic, ControlError> {
        match self
            .ask(ControlRequest::CreateTopics(CreateTopics { topics: vec![topic], validate_only: false, seed: 0 }))
            .response
        {
            ControlResponse::CreateTopics(mut list) => list.remove(0).result,
            other => panic!("{other:?}"),
        }
    }

    /// A topic of one partition on the brokers named.
    fn assigned(&mut self, name: &str, replicas: &[i32]) -> TopicPartition {
        let assignments = vec![(PartitionIndex(0), ids(replicas))];
        let topic = CreateTopic { assignments, partitions: -1, replication_factor: -1, ..plain(name) };
        let topic_id = self.create(topic).unwrap().id;
        TopicPartition { topic_id, partition: PartitionIndex(0) }
    }

    fn partition(&self, id: TopicPartition) -> Partition {
        (**self.control.image().partition(id).unwrap()).clone()
    }

    /// leader, ISR, ELR, last known ELR.
    fn shape(&self, id: TopicPartition) -> (i32, Vec<i32>, Vec<i32>, Vec<i32>) {
        let p = self.partition(id);
        (p.leader.0, numbers(&p.isr), numbers(&p.elr), numbers(&p.last_known_elr))
    }

    /// Time passes in which the brokers named send heartbeats; the others are fenced, by these records.
    fn lose_all_but(&mut self, alive: &[i32]) -> Vec<MetadataRecord> {
        let mut records = Vec::new();
        for _ in 0..6 {
            self.now = self.now + SESSION / 4;
            alive.iter().for_each(|id| drop(self.beat(*id)));
            let decision = self.control.tick(self.now);
            records.extend(self.take(decision).records);
        }
        records
    }

    fn propose(&mut self, id: TopicPartition, isr: &[i32]) -> Result<PartitionNow, ErrorCode> {
        let now = self.partition(id);
        let proposal = self.proposal(id, isr);
        self.alter(now.leader, proposal)
    }

    fn proposal(&self, id: TopicPartition, isr: &[i32]) -> AlterPartition {
        let now = self.partition(id);
        AlterPartition {
            partition: id,
            leader_epoch: now.leader_epoch,
            partition_epoch: now.partition_epoch,
            isr: ids(isr).into_iter().map(|b| (b, self.control.image().broker_epoch(b))).collect(),
            leader_recovery_state: now.leader_recovery_state,
        }
    }

    fn alter(&mut self, broker: BrokerId, proposal: AlterPartition) -> Result<PartitionNow, ErrorCode> {
        let epoch = self.control.image().broker_epoch(broker);
        let request = AlterPartitions { broker, epoch, partitions: vec![proposal] };
        match self.ask(ControlRequest::AlterPartitions(request)).response {
            ControlResponse::AlterPartitions(mut list) => list.remove(0).result,
            other => panic!("{other:?}"),
        }
    }

    fn report(&mut self, broker: i32, id: TopicPartition, answer: RecoveryAnswer) -> Decision {
        let broker = BrokerId(broker);
        let epoch = self.control.image().broker_epoch(broker);
        self.ask(ControlRequest::RecoveryReport(RecoveryReport { broker, epoch, answers: vec![(id, answer)] }))
    }

    fn set(&mut self, resource: ConfigResource, name: &str, operation: ConfigOperation) -> Result<(), ControlError> {
        let changes = vec![ConfigChange { name: name.to_owned(), operation }];
        let request = IncrementalAlterConfigs { resources: vec![(resource, changes)], validate_only: false };
        match self.ask(ControlRequest::IncrementalAlterConfigs(request)).response {
            ControlResponse::IncrementalAlterConfigs(mut list) => list.remove(0).result,
            other => panic!("{other:?}"),
        }
    }

    fn elect(&mut self, topic: &str, election: ElectionType) -> Result<(), ErrorCode> {
        let partitions = Some(vec![(topic.to_owned(), PartitionIndex(0))]);
        match self.ask(ControlRequest::ElectLeaders(ElectLeaders { election, partitions })).response {
            ControlResponse::ElectLeaders(mut list) => list.remove(0).result.map_err(|error| error.code),
            other => panic!("{other:?}"),
        }
    }
}

fn directory(id: i32) -> DirectoryId {
    DirectoryId(Uuid::from_u128(u128::try_from(id).unwrap()))
}

fn boot(number: u128) -> BootId {
    BootId(Uuid::from_u128(number))
}

fn ids(numbers: &[i32]) -> Vec<BrokerId> {
    numbers.iter().copied().map(BrokerId).collect()
}

fn numbers(ids: &[BrokerId]) -> Vec<i32> {
    ids.iter().map(|id| id.0).collect()
}

fn plain(name: &str) -> CreateTopic {
    CreateTopic { name: name.to_owned(), partitions: -1, replication_factor: -1, assignments: vec![], configs: vec![] }
}

fn answer(id: i32, epoch: i32, end: i64) -> RecoveryAnswer {
    RecoveryAnswer {
        directory: directory(id),
        last_epoch: LeaderEpoch(epoch),
        log_end: Offset(end),
        lossy: false,
        synced_before_ack: false,
    }
}

fn code<T>(result: Result<T, ControlError>) -> ErrorCode {
    result.err().map_or(ErrorCode::None, |error| error.code)
}

fn topic(name: &str) -> ConfigResource {
    ConfigResource::Topic(name.to_owned())
}

fn value(text: &str) -> Option<String> {
    Some(text.to_owned())
}

// Brokers

#[test]
fn a_broker_starts_fenced_with_the_offset_of_its_record_as_epoch() {
    // R6, R7, R65
    let mut cluster = Cluster::of(0);
    let offset = cluster.control.image().next_offset();
    let epoch = cluster.start(1, BrokerEpoch::NONE);
    assert_eq!(epoch, BrokerEpoch(i64::try_from(offset.0).unwrap()));
    let broker = cluster.control.image().broker(BrokerId(1)).unwrap();
    assert_eq!((broker.epoch, broker.fenced), (epoch, true));
}

#[test]
fn the_same_incarnation_keeps_its_epoch() {
    // R6
    let mut cluster = Cluster::of(0);
    let request = cluster.registration(1, BrokerEpoch::NONE);
    let first = cluster.ask(ControlRequest::RegisterBroker(request.clone()));
    let again = cluster.ask(ControlRequest::RegisterBroker(request));
    assert_eq!(again, Decision { records: vec![], response: first.response, events: vec![] });
}

fn register_twice(rules: Rules, same_directory: bool) -> ErrorCode {
    let mut cluster = Cluster::ruled(1, rules);
    let mut request = cluster.registration(1, BrokerEpoch::NONE);
    if !same_directory {
        request.directories = vec![directory(50)];
    }
    match cluster.ask(ControlRequest::RegisterBroker(request)).response {
        ControlResponse::Refused(error) => error.code,
        _ => ErrorCode::None,
    }
}

#[test]
fn a_second_incarnation_is_refused_while_the_first_lives_elsewhere() {
    // R6
    assert_eq!(register_twice(rules(), false), ErrorCode::DuplicateBrokerRegistration);
    assert_eq!(register_twice(rules(), true), ErrorCode::None);
    assert_eq!(register_twice(Rules::without(Rule::R6LiveSession), false), ErrorCode::None);
}

#[test]
fn a_second_incarnation_is_taken_once_the_first_is_silent() {
    let mut cluster = Cluster::of(3);
    cluster.lose_all_but(&[2, 3]);
    let mut request = cluster.registration(1, BrokerEpoch::NONE);
    request.directories = vec![directory(50)];
    let response = cluster.ask(ControlRequest::RegisterBroker(request)).response;
    assert!(matches!(response, ControlResponse::RegisterBroker { .. }), "{response:?}");
}

fn unfenced_before_caught_up(rules: Rules) -> bool {
    let mut cluster = Cluster::ruled(0, rules);
    let epoch = cluster.start(1, BrokerEpoch::NONE);
    let next_offset = MetadataOffset(u64::try_from(epoch.0).unwrap());
    let heartbeat = Heartbeat { next_offset, ..cluster.heartbeat(1) };
    !cluster.send(heartbeat).is_fenced
}

#[test]
fn a_broker_stays_fenced_until_it_has_applied_its_own_registration() {
    // R7
    assert!(!unfenced_before_caught_up(rules()));
    assert!(unfenced_before_caught_up(Rules::without(Rule::R7CaughtUp)));
}

#[test]
fn a_broker_stays_fenced_while_it_recovers() {
    // R7
    let mut cluster = Cluster::of(0);
    cluster.start(1, BrokerEpoch::NONE);
    let heartbeat = Heartbeat { want_fence: true, ..cluster.heartbeat(1) };
    let expected =
        HeartbeatAnswer { is_fenced: true, is_caught_up: true, should_shut_down: false, recovery_wanted: vec![] };
    assert_eq!(cluster.send(heartbeat), expected);
    assert_eq!(cluster.beat(1), HeartbeatAnswer { is_fenced: false, ..expected });
}

fn stale_heartbeat(mut cluster: Cluster) -> ControlResponse {
    let stale = cluster.heartbeat(1);
    cluster.start(1, BrokerEpoch::NONE);
    cluster.ask(ControlRequest::Heartbeat(Heartbeat { next_offset: MetadataOffset(1_000), ..stale })).response
}

#[test]
fn a_call_with_an_old_broker_epoch_is_refused() {
    // R8
    let refused = stale_heartbeat(Cluster::of(3));
    assert!(
        matches!(&refused, ControlResponse::Refused(error) if error.code == ErrorCode::StaleBrokerEpoch),
        "{refused:?}"
    );
    let taken = stale_heartbeat(Cluster::without(Rule::R8BrokerEpoch));
    assert!(matches!(taken, ControlResponse::Heartbeat(_)), "{taken:?}");
}

#[test]
fn a_silent_broker_is_fenced_and_its_leaderships_move_first() {
    // R7, R9
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2, 3]);
    let before = cluster.partition(id);
    for _ in 0..4 {
        cluster.now = cluster.now + SESSION / 4;
        cluster.beat(2);
        cluster.beat(3);
        assert_eq!(cluster.control.tick(cluster.now).records, vec![]);
    }
    cluster.now = cluster.now + 1;
    let decision = cluster.control.tick(cluster.now);
    let epoch = cluster.control.image().broker_epoch(BrokerId(1));
    let after = Partition {
        leader: BrokerId(2),
        last_leader: BrokerId(2),
        last_leader_directory: directory(2),
        isr: ids(&[2, 3]),
        leader_epoch: LeaderEpoch(1),
        partition_epoch: PartitionEpoch(1),
        ..before.clone()
    };
    let fenced = crate::records::BrokerChange {
        id: BrokerId(1),
        epoch,
        fenced: Some(true),
        in_controlled_shutdown: None,
        offline_directories: None,
        cordoned_directories: None,
    };
    let expected = Decision {
        records: vec![
            MetadataRecord::PartitionChange(Box::new(crate::PartitionChange::between(&before, &after))),
            MetadataRecord::BrokerChange(fenced),
        ],
        response: ControlResponse::Done,
        events: vec![ControlEvent::BrokerFenced { broker: BrokerId(1), epoch, reason: FenceReason::SessionExpired }],
    };
    assert_eq!(decision, expected);
}

#[test]
fn ten_thousand_partitions_are_led_again_by_one_decision() {
    // R9, R33
    let mut cluster = Cluster::of(3);
    let topic = CreateTopic { partitions: 10_000, ..plain("many") };
    cluster.create(topic).unwrap();
    let led = |cluster: &Cluster| {
        let partitions = cluster.control.image().partitions();
        partitions.filter(|p| !p.is_leaderless() && p.leader != BrokerId(1)).count()
    };
    let before = led(&cluster);
    assert!(before < 7_000, "broker 1 leads its share: {before}");
    cluster.lose_all_but(&[2, 3]);
    assert_eq!(led(&cluster), 10_000);
    assert!(cluster.control.image().partitions().all(|p| p.isr.len() == 2));
    // And all replicas come back by one request.
    cluster.start(1, BrokerEpoch::NONE);
    cluster.beat(1);
    let of_two: Vec<_> =
        cluster.control.image().partitions().filter(|p| p.leader == BrokerId(2)).map(|p| p.id()).collect();
    let epoch = cluster.control.image().broker_epoch(BrokerId(2));
    let partitions = of_two.iter().map(|id| cluster.proposal(*id, &[1, 2, 3])).collect();
    let request = AlterPartitions { broker: BrokerId(2), epoch, partitions };
    let decision = cluster.ask(ControlRequest::AlterPartitions(request));
    assert_eq!(decision.records.len(), of_two.len());
    assert!(of_two.len() > 3_000);
}

#[test]
fn a_new_tenure_fences_nobody_before_a_whole_session_has_passed() {
    // R71
    let mut cluster = Cluster::of(3);
    cluster.now = cluster.now + SESSION * 3;
    cluster.control.begin_tenure(cluster.now);
    assert_eq!(cluster.control.tick(cluster.now).records, vec![]);
    cluster.lose_all_but(&[]);
    assert_eq!(cluster.control.image().alive_brokers().count(), 0);
}

#[test]
fn a_controller_that_stood_still_blames_nobody() {
    // R71
    let mut cluster = Cluster::of(3);
    cluster.now = cluster.now + SESSION * 3;
    assert_eq!(cluster.control.tick(cluster.now).records, vec![]);
}

#[test]
fn the_next_deadline_is_never_later_than_the_first_expiry() {
    let mut cluster = Cluster::of(3);
    cluster.assigned("t", &[1, 2, 3]);
    for _ in 0..100 {
        let due = cluster.control.next_deadline();
        assert!(due > cluster.now, "{due} at {}", cluster.now);
        cluster.now = due;
        let decision = cluster.control.tick(due);
        if !decision.records.is_empty() {
            assert_eq!(due, Time(1_000 + SESSION + 1));
            return;
        }
    }
    panic!("nobody was fenced");
}

// Suspicions

#[test]
fn a_suspect_that_is_found_gone_is_fenced_at_once() {
    // R76
    let mut cluster = Cluster::of(3);
    let epoch = cluster.control.image().broker_epoch(BrokerId(1));
    cluster.now = cluster.now + 10;
    cluster.ask(ControlRequest::Suspect(Suspect { broker: BrokerId(1), epoch, reporter: BrokerId(2) }));
    let suspicion = Suspicion { broker: BrokerId(1), epoch, since: cluster.now };
    assert_eq!(cluster.control.suspects(cluster.now), vec![suspicion]);
    let decision = cluster.control.fence_suspect(&suspicion, cluster.now + 5);
    let expected = ControlEvent::BrokerFenced { broker: BrokerId(1), epoch, reason: FenceReason::FoundGone };
    assert_eq!(decision.events, vec![expected]);
    cluster.take(decision);
    assert_eq!(cluster.control.suspects(cluster.now), vec![]);
}

fn fenced_in_spite_of_a_heartbeat(mut cluster: Cluster) -> bool {
    let epoch = cluster.control.image().broker_epoch(BrokerId(1));
    cluster.ask(ControlRequest::Suspect(Suspect { broker: BrokerId(1), epoch, reporter: BrokerId(2) }));
    let suspicion = cluster.control.suspects(cluster.now)[0];
    cluster.now = cluster.now + 1;
    cluster.beat(1);
    !cluster.control.fence_suspect(&suspicion, cluster.now).records.is_empty()
}

#[test]
fn a_heartbeat_since_the_suspicion_clears_it() {
    // R76
    assert!(!fenced_in_spite_of_a_heartbeat(Cluster::of(3)));
    assert!(fenced_in_spite_of_a_heartbeat(Cluster::without(Rule::R76HeartbeatClears)));
}

#[test]
fn a_sign_of_life_since_the_suspicion_clears_it_as_a_heartbeat_does() {
    // R76: whoever has a thread left that says so is not gone, whatever its peers and the probe say.
    let mut cluster = Cluster::of(3);
    let epoch = cluster.control.image().broker_epoch(BrokerId(1));
    let heard = cluster.control.soft.next_offset(cluster.control.image().broker(BrokerId(1)).unwrap());
    cluster.ask(ControlRequest::Suspect(Suspect { broker: BrokerId(1), epoch, reporter: BrokerId(2) }));
    let suspicion = cluster.control.suspects(cluster.now)[0];
    cluster.now = cluster.now + 200;
    cluster.ask(ControlRequest::Alive { broker: BrokerId(1), epoch: BrokerEpoch(epoch.0 - 1) });
    assert!(!cluster.control.fence_suspect(&suspicion, cluster.now).records.is_empty(), "that was an earlier process");
    cluster.ask(ControlRequest::Alive { broker: BrokerId(1), epoch });
    assert_eq!(cluster.control.fence_suspect(&suspicion, cluster.now).records, vec![]);
    assert_eq!(cluster.control.suspects(cluster.now), vec![]);
    let broker = cluster.control.image().broker(BrokerId(1)).unwrap();
    assert_eq!(cluster.control.soft.last_contact(broker), cluster.now);
    assert_eq!(cluster.control.soft.next_offset(broker), heard, "it says nothing of the metadata");
}

#[test]
fn who_is_to_be_looked_at_next_is_known_before() {
    // R76: the loop looks no more often than this says.
    let mut cluster = Cluster::of(3);
    assert_eq!(cluster.control.next_suspicion(), None, "all were heard, and nobody is reported");
    cluster.now = cluster.now + 1;
    cluster.control.begin_tenure(cluster.now);
    let due = cluster.control.next_suspicion().unwrap();
    assert!(due > cluster.now);
    assert_eq!(cluster.control.suspects(due - 1), vec![]);
    assert_eq!(cluster.control.suspects(due).len(), 3);
    cluster.beat(1);
    cluster.beat(2);
    assert_eq!(cluster.control.next_suspicion(), Some(due), "the third one was not heard yet");
    cluster.now = due;
    let suspicion = cluster.control.suspects(due)[0];
    cluster.control.clear_suspicion(&suspicion);
    assert_eq!(cluster.control.next_suspicion(), None, "it has answered a probe");
    cluster.now = cluster.now + 100;
    let epoch = cluster.control.image().broker_epoch(BrokerId(1));
    cluster.ask(ControlRequest::Suspect(Suspect { broker: BrokerId(1), epoch, reporter: BrokerId(2) }));
    assert_eq!(cluster.control.next_suspicion(), Some(cluster.now));
    cluster.ask(ControlRequest::Alive { broker: BrokerId(1), epoch });
    assert_eq!(cluster.control.next_suspicion(), None);
}

fn fenced_with_two_of_three_suspected(mut cluster: Cluster) -> bool {
    for id in [1, 2] {
        let epoch = cluster.control.image().broker_epoch(BrokerId(id));
        cluster.ask(ControlRequest::Suspect(Suspect { broker: BrokerId(id), epoch, reporter: BrokerId(3) }));
    }
    // They are probed all the same; whoever answers is suspected no longer.
    let suspects = cluster.control.suspects(cluster.now);
    assert_eq!(suspects.iter().map(|s| s.broker.0).collect::<Vec<_>>(), vec![1, 2]);
    let fenced = !cluster.control.fence_suspect(&suspects[0], cluster.now).records.is_empty();
    cluster.control.clear_suspicion(&suspects[1]);
    assert!(!cluster.control.fence_suspect(&suspects[0], cluster.now).records.is_empty());
    fenced
}

#[test]
fn while_more_than_half_are_suspected_only_the_session_counts() {
    // R76
    assert!(!fenced_with_two_of_three_suspected(Cluster::of(3)));
    assert!(fenced_with_two_of_three_suspected(Cluster::without(Rule::R76MoreThanHalf)));
}

#[test]
fn a_new_tenure_suspects_those_it_has_not_heard_of() {
    // R76
    let mut cluster = Cluster::of(3);
    cluster.control.begin_tenure(cluster.now);
    cluster.beat(2);
    cluster.beat(3);
    assert_eq!(cluster.control.suspects(cluster.now + 299), vec![]);
    let suspects = cluster.control.suspects(cluster.now + 300);
    assert_eq!(suspects.iter().map(|s| s.broker.0).collect::<Vec<_>>(), vec![1]);
    cluster.control.clear_suspicion(&suspects[0]);
    assert_eq!(cluster.control.suspects(cluster.now + 300), vec![]);
}

// Controlled shutdown

#[test]
fn a_stopping_broker_leaves_everything_and_stops_when_all_others_know() {
    // R32
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2, 3]);
    let stop = |cluster: &Cluster| Heartbeat { want_shutdown: true, ..cluster.heartbeat(1) };
    let request = stop(&cluster);
    let told =
        HeartbeatAnswer { is_fenced: false, is_caught_up: true, should_shut_down: false, recovery_wanted: vec![] };
    assert_eq!(cluster.send(request), told);
    assert_eq!(cluster.shape(id), (2, vec![2, 3], vec![], vec![]));
    cluster.beat(2);
    let request = stop(&cluster);
    assert_eq!(cluster.send(request), told);
    cluster.beat(3);
    let request = stop(&cluster);
    assert_eq!(cluster.send(request), HeartbeatAnswer { is_fenced: true, should_shut_down: true, ..told });
}

#[test]
fn the_last_broker_may_stop_and_stays_the_eligible_leader() {
    // R34, R77: leaderless with ELR = {me} counts as moved.
    let mut cluster = Cluster::of(1);
    let id = cluster.assigned("t", &[1]);
    let stop = |cluster: &Cluster| Heartbeat { want_shutdown: true, ..cluster.heartbeat(1) };
    let request = stop(&cluster);
    cluster.send(request);
    assert_eq!(cluster.shape(id), (-1, vec![], vec![1], vec![1]));
    let request = stop(&cluster);
    assert!(cluster.send(request).should_shut_down);
    let clean = cluster.control.image().broker_epoch(BrokerId(1));
    cluster.start(1, clean);
    cluster.beat(1);
    assert_eq!(cluster.shape(id), (1, vec![1], vec![], vec![]));
    assert_eq!(cluster.partition(id).leader_epoch, LeaderEpoch(2));
}

#[test]
fn a_stopping_broker_is_marked_before_it_leaves_anything() {
    // R32: a batch may be cut anywhere; unmarked, it would come back into what it has left
    let mut cluster = Cluster::of(3);
    cluster.assigned("t", &[1, 2, 3]);
    let stop = Heartbeat { want_shutdown: true, ..cluster.heartbeat(1) };
    let decision = cluster.ask(ControlRequest::Heartbeat(stop));
    let marks = |record: &MetadataRecord| matches!(record, MetadataRecord::BrokerChange(change) if change.in_controlled_shutdown == Some(true));
    assert_eq!(decision.records.iter().position(marks), Some(0));
    assert!(decision.records.len() > 1, "it leaves the partition");
}

#[test]
fn a_proof_of_another_registrations_shutdown_proves_nothing() {
    // R10, R34: 2 stopped cleanly once, and not since
    let mut cluster = Cluster::of(3);
    let old = cluster.control.image().broker_epoch(BrokerId(2));
    cluster.start(2, old);
    cluster.beat(2);
    let id = cluster.assigned("t", &[1, 2]);
    cluster.lose_all_but(&[1, 3]);
    assert_eq!(cluster.shape(id).2, [2], "2 may have all");
    cluster.start(2, old);
    assert_eq!(cluster.shape(id).2, Vec::<i32>::new());
}

#[test]
fn a_stopping_broker_does_not_come_back_into_an_isr() {
    // R15, R32
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2, 3]);
    let stop = Heartbeat { want_shutdown: true, ..cluster.heartbeat(1) };
    cluster.send(stop);
    assert_eq!(cluster.propose(id, &[1, 2, 3]), Err(ErrorCode::IneligibleReplica));
}

// ISR changes

#[test]
fn a_proposal_is_judged_in_the_order_of_the_rule() {
    // R15
    let mut cluster = Cluster::of(4);
    let id = cluster.assigned("t", &[1, 2, 3]);
    cluster.propose(id, &[1, 2]).unwrap();
    let good = cluster.proposal(id, &[1, 2, 3]);
    let with = |le: i32, pe: i32, isr: &[i32], state| AlterPartition {
        leader_epoch: LeaderEpoch(good.leader_epoch.0 + le),
        partition_epoch: PartitionEpoch(good.partition_epoch.0 + pe),
        leader_recovery_state: state,
        ..cluster.proposal(id, isr)
    };
    use LeaderRecoveryState::{Recovered, Recovering};
    let stranger = TopicPartition { partition: PartitionIndex(9), ..id };
    let unknown = TopicPartition { topic_id: model::TopicId(Uuid::from_u128(9)), ..id };
    let cases = [
        (1, AlterPartition { partition: unknown, ..with(1, 1, &[4], Recovering) }, ErrorCode::UnknownTopicId),
        (1, AlterPartition { partition: stranger, ..with(1, 1, &[4], Recovering) }, ErrorCode::UnknownTopicOrPartition),
        (2, with(1, -1, &[4], Recovering), ErrorCode::NotController),
        (2, with(-1, 1, &[4], Recovering), ErrorCode::NotController),
        (2, with(-1, -1, &[4], Recovering), ErrorCode::FencedLeaderEpoch),
        (2, with(0, -1, &[4], Recovering), ErrorCode::InvalidRequest),
        (1, with(0, -1, &[4], Recovering), ErrorCode::InvalidUpdateVersion),
        (1, with(0, 0, &[1, 4], Recovered), ErrorCode::InvalidRequest),
        (1, with(0, 0, &[2, 3], Recovered), ErrorCode::InvalidRequest),
        (1, with(0, 0, &[1, 1], Recovered), ErrorCode::InvalidRequest),
        (1, with(0, 0, &[1, 2], Recovering), ErrorCode::InvalidRequest),
        (1, with(0, 0, &[1], Recovering), ErrorCode::InvalidRequest),
    ];
    for (at, (sender, proposal, expected)) in cases.into_iter().enumerate() {
        assert_eq!(cluster.alter(BrokerId(sender), proposal), Err(expected), "case {at}");
    }
    let now = cluster.alter(BrokerId(1), good).unwrap();
    let expected = PartitionNow {
        leader: BrokerId(1),
        leader_epoch: LeaderEpoch(0),
        isr: ids(&[1, 2, 3]),
        leader_recovery_state: Recovered,
        partition_epoch: PartitionEpoch(2),
        min_isr: 2,
        ack_zones: 0,
    };
    assert_eq!(now, expected);
}

fn late_proposal(mut cluster: Cluster) -> Result<(), ErrorCode> {
    let id = cluster.assigned("t", &[1, 2, 3]);
    let late = cluster.proposal(id, &[1, 2]);
    cluster.propose(id, &[1, 3]).unwrap();
    cluster.alter(BrokerId(1), late).map(drop)
}

#[test]
fn a_proposal_under_an_old_partition_epoch_is_refused() {
    // R15: without it two ISRs are made under one epoch.
    assert_eq!(late_proposal(Cluster::of(3)), Err(ErrorCode::InvalidUpdateVersion));
    assert_eq!(late_proposal(Cluster::without(Rule::R15PartitionEpoch)), Ok(()));
}

fn replica_of_an_old_incarnation(mut cluster: Cluster) -> Result<(), ErrorCode> {
    let id = cluster.assigned("t", &[1, 2, 3]);
    cluster.propose(id, &[1, 3]).unwrap();
    // 2 caught up; then it loses its disk and registers anew, while the proposal is under way.
    let mut late = cluster.proposal(id, &[1, 2, 3]);
    cluster.start(2, BrokerEpoch::NONE);
    cluster.beat(2);
    late.partition_epoch = cluster.partition(id).partition_epoch;
    cluster.alter(BrokerId(1), late).map(drop)
}

#[test]
fn a_member_of_an_old_incarnation_does_not_join() {
    // R8, R15 (KIP-903)
    assert_eq!(replica_of_an_old_incarnation(Cluster::of(3)), Err(ErrorCode::IneligibleReplica));
    assert_eq!(replica_of_an_old_incarnation(Cluster::without(Rule::R15EligibleMembers)), Ok(()));
}

#[test]
fn the_same_isr_again_raises_the_partition_epoch() {
    // R16: the new epoch kills older copies of a proposal.
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2, 3]);
    assert_eq!(cluster.propose(id, &[1, 2, 3]).unwrap().partition_epoch, PartitionEpoch(1));
    assert_eq!(cluster.propose(id, &[1, 2, 3]).unwrap().partition_epoch, PartitionEpoch(2));
}

// Eligible leader replicas

#[test]
fn below_min_isr_those_who_leave_stay_eligible_until_min_isr_is_back() {
    // R34, R35
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2, 3]);
    cluster.propose(id, &[1, 2]).unwrap();
    assert_eq!(cluster.shape(id), (1, vec![1, 2], vec![], vec![]));
    cluster.propose(id, &[1]).unwrap();
    assert_eq!(cluster.shape(id), (1, vec![1], vec![2], vec![1, 2]));
    cluster.propose(id, &[1, 3]).unwrap();
    assert_eq!(cluster.shape(id), (1, vec![1, 3], vec![], vec![]));
}

fn last_replica_standing(mut cluster: Cluster) -> (i32, Vec<i32>, Vec<i32>, Vec<i32>) {
    let id = cluster.assigned("t", &[1, 2, 3]);
    cluster.propose(id, &[1, 2]).unwrap();
    cluster.lose_all_but(&[2]);
    // 2 leads alone; 1 is fenced but has all committed records, and comes back from a pause.
    cluster.lose_all_but(&[]);
    cluster.beat(1);
    cluster.shape(id)
}

#[test]
fn an_eligible_replica_that_comes_back_leads() {
    // R33, R34
    assert_eq!(last_replica_standing(Cluster::of(3)), (1, vec![1], vec![2], vec![1, 2]));
    assert_eq!(last_replica_standing(Cluster::without(Rule::R34EligibleLeaderReplicas)).0, -1);
}

fn leader_after_an_unclean_return(mut cluster: Cluster) -> i32 {
    let id = cluster.assigned("t", &[1, 2, 3]);
    cluster.propose(id, &[1, 2]).unwrap();
    cluster.lose_all_but(&[2]);
    cluster.lose_all_but(&[]);
    // 2 was the last of the ISR; it crashed and returns without proof that it lost nothing.
    cluster.start(2, BrokerEpoch::NONE);
    cluster.beat(2);
    cluster.shape(id).0
}

#[test]
fn a_broker_without_clean_proof_is_no_eligible_leader() {
    // R34
    assert_eq!(leader_after_an_unclean_return(Cluster::of(3)), -1);
    assert_eq!(leader_after_an_unclean_return(Cluster::without(Rule::R34UncleanRegistration)), 2);
}

#[test]
fn a_replica_found_lossy_leaves_isr_and_elr() {
    // R78
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2, 3]);
    cluster.propose(id, &[1]).unwrap();
    assert_eq!(cluster.shape(id), (1, vec![1], vec![2, 3], vec![1, 2, 3]));
    let lossy = Heartbeat { lossy: vec![id], ..cluster.heartbeat(2) };
    cluster.send(lossy);
    assert_eq!(cluster.shape(id), (1, vec![1], vec![3], vec![1, 2, 3]));
}

#[test]
fn a_failed_directory_moves_its_leaderships() {
    // R30, R33, R78
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2, 3]);
    let failed = Heartbeat { offline_directories: vec![directory(1)], ..cluster.heartbeat(1) };
    cluster.send(failed);
    assert_eq!(cluster.shape(id), (2, vec![2, 3], vec![], vec![]));
    assert_eq!(cluster.propose(id, &[1, 2, 3]), Err(ErrorCode::IneligibleReplica));
}

#[test]
fn a_broker_without_space_leaves_what_others_can_carry_and_keeps_the_rest() {
    let mut cluster = Cluster::of(3);
    let (id, internal) = (cluster.assigned("t", &[1, 2, 3]), cluster.assigned("__consumer_offsets", &[1, 2, 3]));
    let full = |cluster: &Cluster, id| Heartbeat { full_directories: vec![directory(id)], ..cluster.heartbeat(id) };
    let other = Heartbeat { full_directories: vec![directory(9)], ..cluster.heartbeat(1) };
    cluster.send(other);
    assert_eq!(cluster.shape(id), (1, vec![1, 2, 3], vec![], vec![]), "the directory is not one of its own");
    cluster.send(full(&cluster, 1));
    assert_eq!(cluster.shape(id), (2, vec![2, 3], vec![], vec![]));
    assert_eq!(cluster.shape(internal).0, 1, "what the brokers write for themselves goes on");
    cluster.send(full(&cluster, 2));
    assert_eq!(cluster.shape(id), (2, vec![2, 3], vec![], vec![]), "without it there would be too few");
    // The leader takes it back when it has caught up again.
    cluster.propose(id, &[1, 2, 3]).unwrap();
    assert_eq!(cluster.shape(id), (2, vec![1, 2, 3], vec![], vec![]));
    // Until it is exhausted.
    cluster.send(Heartbeat { exhausted_directories: vec![directory(1)], ..full(&cluster, 1) });
    assert_eq!(cluster.shape(internal), (2, vec![2, 3], vec![], vec![]));
}

#[test]
fn lowering_min_isr_to_the_isr_ends_the_eligibility_of_others_first() {
    // R34: the high watermark may move without them from now on.
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2, 3]);
    cluster.propose(id, &[1]).unwrap();
    let request = ConfigOperation::Set(value("1"));
    cluster.set(topic("t"), "min.insync.replicas", request).unwrap();
    assert_eq!(cluster.shape(id), (1, vec![1], vec![], vec![]));
}

#[test]
fn a_min_isr_with_spaces_around_it_counts() {
    // R18, R34: it is taken as Kafka takes it, and would count as 1
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2, 3]);
    cluster.set(topic("t"), "min.insync.replicas", ConfigOperation::Set(value(" 3 "))).unwrap();
    assert_eq!(cluster.control.image().min_isr("t", 3), 3);
    cluster.propose(id, &[1, 2]).unwrap();
    assert_eq!(cluster.shape(id), (1, vec![1, 2], vec![3], vec![1, 2, 3]));
}

/// ISR {1} under a min ISR of 2; 2, which came back from a crash, may have all that was committed. Then min ISR is lowered to 1, 1
/// commits alone, and dies; 2 says that it synced whatever it acknowledged.
fn leader_after_min_isr_was_lowered_to_one(rules: Rules) -> i32 {
    let mut cluster = Cluster::ruled(3, rules);
    let id = cluster.assigned("t", &[1, 2]);
    cluster.start(2, BrokerEpoch::NONE);
    cluster.beat(2);
    assert_eq!(cluster.shape(id), (1, vec![1], vec![], vec![1, 2]));
    cluster.set(topic("t"), "min.insync.replicas", ConfigOperation::Set(value("1"))).unwrap();
    cluster.lose_all_but(&[2, 3]);
    cluster.report(2, id, RecoveryAnswer { synced_before_ack: true, ..answer(2, 0, 10) });
    cluster.shape(id).0
}

#[test]
fn lowering_min_isr_to_the_isr_forgets_who_may_have_had_all_that_was_committed_before() {
    // R34, R35: such a replica lacks what the ISR commits without it from now on, whatever it has synced
    assert_eq!(leader_after_min_isr_was_lowered_to_one(rules()), -1);
    assert_eq!(leader_after_min_isr_was_lowered_to_one(Rules::without(Rule::R34WeakerRule)), 2);
}

// Recovery

/// All three brokers of a partition are killed, and come back without proof.
fn all_killed(cluster: &mut Cluster) -> TopicPartition {
    let id = cluster.assigned("t", &[1, 2, 3]);
    cluster.lose_all_but(&[]);
    assert_eq!(cluster.shape(id).1, Vec::<i32>::new());
    id
}

#[test]
fn after_a_kill_of_all_the_longest_log_leads_once_all_have_answered() {
    // R35
    let mut cluster = Cluster::of(3);
    let id = all_killed(&mut cluster);
    // 1 was fenced first: the ISR of 2 and 3 may have committed records without it.
    for broker in 1..=3 {
        cluster.start(broker, BrokerEpoch::NONE);
        assert_eq!(cluster.beat(broker).recovery_wanted, [id]);
    }
    assert_eq!(cluster.report(1, id, answer(1, 0, 20)).records, vec![]);
    assert_eq!(cluster.report(2, id, answer(2, 0, 12)).records, vec![]);
    assert_eq!(cluster.beat(2).recovery_wanted, vec![]);
    let decision = cluster.report(3, id, answer(3, 0, 11));
    assert_eq!(cluster.shape(id), (2, vec![2], vec![], vec![2, 3]));
    assert_eq!(cluster.partition(id).leader_recovery_state, LeaderRecoveryState::Recovering);
    let ControlEvent::UncleanElection { potential_loss, absent, answers, .. } = &decision.events[0] else {
        panic!("{:?}", decision.events)
    };
    assert_eq!((*potential_loss, absent.len(), answers.len()), (false, 0, 3));
}

#[test]
fn a_log_that_was_emptied_up_to_its_end_lacks_nothing_that_a_shorter_one_has() {
    // R35, R39: 2 deleted all of its 12 records, which were committed; 3 lost the last of them in the crash
    let emptied = RecoveryAnswer { last_epoch: LeaderEpoch::NONE, ..answer(2, 0, 12) };
    for (others, leader) in [(answer(3, 0, 11), 2), (answer(3, 0, 12), 3), (answer(3, -1, 0), 2)] {
        let mut cluster = Cluster::of(3);
        let id = all_killed(&mut cluster);
        (1..=3).for_each(|broker| drop((cluster.start(broker, BrokerEpoch::NONE), cluster.beat(broker))));
        cluster.report(2, id, emptied);
        cluster.report(3, id, others);
        assert_eq!(cluster.shape(id).0, leader, "{others:?}");
    }
}

#[test]
fn an_answer_of_a_log_that_was_found_broken_since_counts_no_more() {
    // R35, R78: found by the models
    let mut cluster = Cluster::of(3);
    let id = all_killed(&mut cluster);
    (1..=3).for_each(|broker| drop((cluster.start(broker, BrokerEpoch::NONE), cluster.beat(broker))));
    cluster.report(2, id, answer(2, 0, 12));
    let lossy = Heartbeat { lossy: vec![id], ..cluster.heartbeat(2) };
    assert_eq!(cluster.send(lossy).recovery_wanted, [id], "it is asked anew");
    cluster.report(3, id, answer(3, 0, 11));
    assert_eq!(cluster.shape(id).0, -1);
    cluster.report(2, id, RecoveryAnswer { lossy: true, ..answer(2, 0, 5) });
    assert_eq!(cluster.shape(id).0, 3);
}

#[test]
fn a_lossy_log_without_records_leads_nobody_who_may_have_some() {
    // R35: a directory of a log is gone, and the checkpoints of its disk say that it was there
    let mut cluster = Cluster::of(3);
    let id = all_killed(&mut cluster);
    (1..=3).for_each(|broker| drop((cluster.start(broker, BrokerEpoch::NONE), cluster.beat(broker))));
    for broker in [2, 3] {
        cluster.report(broker, id, RecoveryAnswer { lossy: true, ..answer(broker, -1, 0) });
    }
    assert_eq!(cluster.shape(id).0, -1);
    assert_eq!(cluster.elect("t", ElectionType::Unclean), Ok(()));
    assert_eq!(cluster.shape(id).0, 1);
}

#[test]
fn of_two_logs_without_records_the_one_that_lost_none_leads() {
    // R35: nothing was committed while 3 was in sync; found by the simulation, seed 80305
    for lossy in [2, 3] {
        let mut cluster = Cluster::of(3);
        let id = all_killed(&mut cluster);
        (1..=3).for_each(|broker| drop((cluster.start(broker, BrokerEpoch::NONE), cluster.beat(broker))));
        for broker in [2, 3] {
            cluster.report(broker, id, RecoveryAnswer { lossy: broker == lossy, ..answer(broker, -1, 0) });
        }
        assert_eq!(cluster.shape(id).0, 5 - lossy);
    }
}

#[test]
fn a_recovering_leader_is_joined_only_after_it_reports() {
    // R15, R35
    let mut cluster = Cluster::of(3);
    let id = all_killed(&mut cluster);
    (1..=3).for_each(|broker| drop((cluster.start(broker, BrokerEpoch::NONE), cluster.beat(broker))));
    (1..=3).for_each(|broker| drop(cluster.report(broker, id, answer(broker, 0, 10))));
    // On a tie the last leader.
    let leader = cluster.partition(id).last_leader;
    assert_eq!(cluster.partition(id).leader, leader);
    assert_eq!(cluster.propose(id, &[1, 2, 3]), Err(ErrorCode::InvalidRequest));
    let recovered =
        AlterPartition { leader_recovery_state: LeaderRecoveryState::Recovered, ..cluster.proposal(id, &[leader.0]) };
    cluster.alter(leader, recovered).unwrap();
    cluster.propose(id, &[1, 2, 3]).unwrap();
    assert_eq!(cluster.shape(id), (leader.0, vec![1, 2, 3], vec![], vec![]));
}

#[test]
fn with_some_absent_the_last_leader_may_lead_after_the_wait() {
    // R35
    let mut cluster = Cluster::of(3);
    let id = all_killed(&mut cluster);
    let last = cluster.partition(id).last_leader.0;
    cluster.start(last, BrokerEpoch::NONE);
    cluster.beat(last);
    cluster.report(last, id, answer(last, 0, 10));
    for round in 0..14 {
        assert_eq!(cluster.shape(id).0, -1, "round {round}");
        cluster.now = cluster.now + SESSION / 4;
        cluster.beat(last);
        tick(&mut cluster);
    }
    assert_eq!(cluster.shape(id).0, last);
    assert_eq!(cluster.partition(id).leader_recovery_state, LeaderRecoveryState::Recovering);
}

/// Whether the last leader may lead after the wait, alone, where it registers as `from` says after all were killed.
fn last_leader_alone(mut cluster: Cluster, registrations: &[BootId]) -> bool {
    let id = all_killed(&mut cluster);
    let last = cluster.partition(id).last_leader.0;
    for from in registrations {
        let request = RegisterBroker { boot: *from, ..cluster.registration(last, BrokerEpoch::NONE) };
        cluster.ask(ControlRequest::RegisterBroker(request));
    }
    cluster.beat(last);
    cluster.report(last, id, answer(last, 0, 10));
    for _ in 0..30 {
        cluster.now = cluster.now + SESSION / 4;
        cluster.beat(last);
        tick(&mut cluster);
    }
    cluster.shape(id).0 == last
}

#[test]
fn a_last_leader_whose_machine_was_started_anew_does_not_lead_while_others_are_absent() {
    // R35: its log does not show that a power cut took its unsynced end
    assert!(last_leader_alone(Cluster::of(3), &[boot(1)]));
    assert!(!last_leader_alone(Cluster::of(3), &[boot(2)]));
    assert!(!last_leader_alone(Cluster::of(3), &[boot(2), boot(2)]), "killed once more since");
    assert!(!last_leader_alone(Cluster::of(3), &[BootId::NONE]), "it does not tell");
    assert!(last_leader_alone(Cluster::without(Rule::R35LossyLastLeader), &[boot(2)]));
}

fn tick(cluster: &mut Cluster) {
    let decision = cluster.control.tick(cluster.now);
    cluster.take(decision);
}

#[test]
fn the_wait_for_those_absent_begins_when_the_leader_is_gone_not_with_the_first_answer() {
    // R35
    let mut cluster = Cluster::of(3);
    let id = all_killed(&mut cluster);
    let last = cluster.partition(id).last_leader.0;
    cluster.start(last, BrokerEpoch::NONE);
    assert!(cluster.control.next_deadline() <= cluster.now);
    let begun = cluster.now;
    tick(&mut cluster);
    assert!(cluster.control.next_deadline() > cluster.now);
    for _ in 0..13 {
        cluster.now = cluster.now + SESSION / 4;
        cluster.beat(last);
        tick(&mut cluster);
    }
    cluster.report(last, id, answer(last, 0, 10));
    assert_eq!(cluster.shape(id).0, -1);
    assert_eq!(cluster.control.next_deadline(), begun + 30_000);
    cluster.now = begun + 30_000;
    tick(&mut cluster);
    assert_eq!(cluster.shape(id).0, last);
}

#[test]
fn an_answer_of_one_that_may_not_lead_counts_as_soon_as_it_may() {
    // R35
    let mut cluster = Cluster::of(3);
    let id = all_killed(&mut cluster);
    cluster.start(3, BrokerEpoch::NONE);
    cluster.report(3, id, RecoveryAnswer { synced_before_ack: true, ..answer(3, 0, 10) });
    tick(&mut cluster);
    assert_eq!(cluster.shape(id).0, -1, "it is fenced");
    cluster.beat(3);
    assert!(cluster.control.next_deadline() <= cluster.now);
    tick(&mut cluster);
    assert_eq!(cluster.shape(id).0, 3);
}

#[test]
fn with_some_absent_an_empty_or_lossy_last_leader_does_not_lead() {
    // R35: an empty replaced disk must not lead.
    let elsewhere = |id| RecoveryAnswer { directory: directory(60), ..answer(id, -1, 0) };
    let lossy = |id| RecoveryAnswer { lossy: true, ..answer(id, 0, 5) };
    for given in [elsewhere as fn(i32) -> RecoveryAnswer, lossy] {
        let mut cluster = Cluster::of(3);
        let id = all_killed(&mut cluster);
        let last = cluster.partition(id).last_leader.0;
        cluster.start(last, BrokerEpoch::NONE);
        cluster.beat(last);
        cluster.report(last, id, given(last));
        for _ in 0..30 {
            cluster.now = cluster.now + SESSION / 4;
            cluster.beat(last);
            tick(&mut cluster);
        }
        assert_eq!(cluster.shape(id).0, -1);
        // An operator may take the loss on himself (R36).
        assert_eq!(cluster.elect("t", ElectionType::Unclean), Ok(()));
        assert_eq!(cluster.shape(id).0, last);
    }
}

#[test]
fn a_member_that_synced_before_it_acknowledged_leads_at_once() {
    // R35
    let mut cluster = Cluster::of(3);
    let id = all_killed(&mut cluster);
    cluster.start(3, BrokerEpoch::NONE);
    cluster.beat(3);
    cluster.report(3, id, RecoveryAnswer { synced_before_ack: true, ..answer(3, 0, 10) });
    assert_eq!(cluster.shape(id).0, 3);
}

fn candidates_after_returns_in_turn(mut cluster: Cluster) -> i32 {
    let id = cluster.assigned("t", &[1, 2, 3]);
    cluster.lose_all_but(&[1]);
    cluster.lose_all_but(&[]);
    // They return in turn, each without proof; 1, which was the last of the ISR, has lost its tail, and 3 still recovers.
    cluster.start(3, BrokerEpoch::NONE);
    cluster.start(1, BrokerEpoch::NONE);
    cluster.beat(1);
    cluster.report(1, id, answer(1, 0, 3));
    cluster.shape(id).0
}

#[test]
fn recovery_asks_all_who_may_have_committed_records() {
    // R35: candidates taken from the last non-empty ISR lose data.
    assert_eq!(candidates_after_returns_in_turn(Cluster::of(3)), -1);
    assert_eq!(candidates_after_returns_in_turn(Cluster::without(Rule::R35LastKnownLeaders)), 1);
}

// Elections

#[test]
fn elections_asked_for_answer_as_kafka_does() {
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2, 3]);
    assert_eq!(cluster.elect("t", ElectionType::Preferred), Err(ErrorCode::ElectionNotNeeded));
    assert_eq!(cluster.elect("t", ElectionType::Unclean), Err(ErrorCode::ElectionNotNeeded));
    assert_eq!(cluster.elect("u", ElectionType::Preferred), Err(ErrorCode::UnknownTopicOrPartition));
    cluster.lose_all_but(&[2, 3]);
    assert_eq!(cluster.elect("t", ElectionType::Preferred), Err(ErrorCode::PreferredLeaderNotAvailable));
    cluster.beat(1);
    assert_eq!(cluster.elect("t", ElectionType::Preferred), Err(ErrorCode::PreferredLeaderNotAvailable));
    cluster.propose(id, &[1, 2, 3]).unwrap();
    assert_eq!(cluster.elect("t", ElectionType::Preferred), Ok(()));
    assert_eq!((cluster.shape(id).0, cluster.partition(id).leader_epoch), (1, LeaderEpoch(2)));
    cluster.lose_all_but(&[]);
    cluster.start(1, BrokerEpoch::NONE);
    assert_eq!(cluster.elect("t", ElectionType::Unclean), Err(ErrorCode::EligibleLeadersNotAvailable));
}

#[test]
fn leaders_go_back_to_the_preferred_replica_in_time() {
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2, 3]);
    cluster.lose_all_but(&[2, 3]);
    cluster.beat(1);
    cluster.propose(id, &[1, 2, 3]).unwrap();
    assert_eq!(cluster.shape(id).0, 2);
    for _ in 0..140 {
        cluster.lose_nobody();
    }
    assert_eq!(cluster.shape(id).0, 1);
}

#[test]
fn leaders_beyond_those_that_go_back_at_once_go_back_at_once_as_well() {
    let mut cluster = Cluster::of(3);
    let assignments = (0..2_500).map(|index| (PartitionIndex(index), ids(&[1, 2, 3]))).collect();
    cluster.create(CreateTopic { assignments, ..plain("t") }).unwrap();
    cluster.lose_all_but(&[2, 3]);
    cluster.beat(1);
    let all: Vec<_> = cluster.control.image().partitions().map(|p| p.id()).collect();
    let partitions = all.iter().map(|id| cluster.proposal(*id, &[1, 2, 3])).collect();
    let epoch = cluster.control.image().broker_epoch(BrokerId(2));
    cluster.ask(ControlRequest::AlterPartitions(AlterPartitions { broker: BrokerId(2), epoch, partitions }));
    let led = |cluster: &Cluster| cluster.control.image().partitions().filter(|p| p.leader.0 == 1).count();
    while led(&cluster) == 0 {
        cluster.lose_nobody();
    }
    let begun = cluster.now;
    let mut at_once = vec![led(&cluster)];
    for _ in 0..2 {
        cluster.now = cluster.control.next_deadline();
        let decision = cluster.control.tick(cluster.now);
        cluster.take(decision);
        at_once.push(led(&cluster));
    }
    assert_eq!((at_once, cluster.now.since(begun)), (vec![1_000, 2_000, 2_500], 20));
    // Then there is nothing to go on with.
    assert!(cluster.control.next_deadline() > cluster.now + 1_000);
}

impl Cluster {
    fn lose_nobody(&mut self) {
        self.now = self.now + SESSION / 4;
        (1..=3).for_each(|id| drop(self.beat(id)));
        let decision = self.control.tick(self.now);
        self.take(decision);
    }
}

#[test]
fn an_unclean_leader_is_elected_where_the_topic_allows_it() {
    // R36
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2, 3]);
    cluster.set(topic("t"), "unclean.leader.election.enable", ConfigOperation::Set(value("true"))).unwrap();
    cluster.lose_all_but(&[]);
    cluster.start(3, BrokerEpoch::NONE);
    cluster.beat(3);
    assert_eq!(cluster.shape(id).0, 3);
    assert_eq!(cluster.partition(id).leader_recovery_state, LeaderRecoveryState::Recovering);
}

#[test]
fn a_partition_that_waits_for_a_leader_gets_one_once_it_is_allowed_to_be_unclean() {
    // R36: for its topic, or for all
    for resource in [topic("t"), ConfigResource::DefaultBroker] {
        let mut cluster = Cluster::of(3);
        let id = all_killed(&mut cluster);
        cluster.start(3, BrokerEpoch::NONE);
        cluster.beat(3);
        tick(&mut cluster);
        assert_eq!(cluster.shape(id).0, -1);
        cluster.set(resource, "unclean.leader.election.enable", ConfigOperation::Set(value("true"))).unwrap();
        assert!(cluster.control.next_deadline() <= cluster.now);
        tick(&mut cluster);
        assert_eq!(cluster.shape(id).0, 3);
        assert_eq!(cluster.partition(id).leader_recovery_state, LeaderRecoveryState::Recovering);
    }
}

// Topics

#[test]
fn replicas_and_leaders_are_spread_over_racks_and_brokers() {
    for brokers in [3, 6] {
        let mut cluster = Cluster::of(brokers);
        let new = cluster.create(CreateTopic { partitions: 12, ..plain("t") }).unwrap();
        assert_eq!((new.partitions, new.replication_factor), (12, 3));
        let image = cluster.control.image();
        let partitions: Vec<_> = image.partitions().cloned().collect();
        for id in (1..=brokers).map(BrokerId) {
            let share = 12 / usize::try_from(brokers).unwrap();
            assert_eq!(partitions.iter().filter(|p| p.leader == id).count(), share, "leaders of {id}");
            let replicas = partitions.iter().filter(|p| p.replicas.contains(&id)).count();
            assert!(replicas.abs_diff(3 * share) <= 1, "{replicas} replicas of {id}");
        }
        for partition in &partitions {
            let mut racks: Vec<_> = partition.replicas.iter().map(|id| (id.0 - 1) % 3).collect();
            racks.sort_unstable();
            assert_eq!(racks, vec![0, 1, 2]);
            assert_eq!(partition.isr, partition.replicas);
        }
    }
}

/// R67: or a controller that fails in between would leave a part of it.
#[test]
fn a_topic_that_does_not_fit_into_an_entry_is_refused_whole() {
    let mut cluster = Cluster::of(12);
    let replicas: Vec<i32> = (1..=12).collect();
    let on_all = |name: &str, partitions| {
        let assignments = (0..partitions).map(|partition| (PartitionIndex(partition), ids(&replicas))).collect();
        CreateTopic { partitions: -1, replication_factor: -1, assignments, ..plain(name) }
    };
    let before = cluster.control.image().next_offset();
    assert_eq!(code(cluster.create(on_all("large", 10_000))), ErrorCode::PolicyViolation);
    assert_eq!(cluster.control.image().next_offset(), before);
    assert_eq!(cluster.create(on_all("large", 8_500)).map(|created| created.partitions), Ok(8_500));
    let more = |count| {
        let topic = MorePartitions { name: "large".to_owned(), count, assignments: None };
        ControlRequest::CreatePartitions(CreatePartitions { topics: vec![topic], validate_only: false })
    };
    let refused = cluster.ask(more(18_500));
    assert!(refused.records.is_empty(), "{}", refused.records.len());
    let ControlResponse::CreatePartitions(mut results) = refused.response else { panic!("{:?}", refused.response) };
    assert_eq!(code(results.remove(0).result), ErrorCode::PolicyViolation);
    assert_eq!(cluster.ask(more(9_000)).records.len(), 500);
}

/// R67: nobody sees a part of what belongs together.
#[test]
fn the_records_of_a_topic_and_of_a_config_change_go_on_with_each_other() {
    let mut cluster = Cluster::of(3);
    let configs = [("retention.ms", "1"), ("min.insync.replicas", "2")];
    let configs = configs.map(|(name, text)| (name.to_owned(), value(text))).to_vec();
    let wholes = |records: &[MetadataRecord]| {
        records.chunk_by(|before, next| next.goes_on(before)).map(<[_]>::len).collect::<Vec<_>>()
    };
    let topics = ["a", "b"].map(|name| CreateTopic { partitions: 4, configs: configs.clone(), ..plain(name) });
    let create = CreateTopics { topics: topics.to_vec(), validate_only: false, seed: 0 };
    let created = cluster.ask(ControlRequest::CreateTopics(create));
    assert_eq!(wholes(&created.records), [7, 7]);
    let change = |name: &str, value: &str| ConfigChange {
        name: name.to_owned(),
        operation: ConfigOperation::Set(Some(value.to_owned())),
    };
    let resources = ["a", "b"].map(|name| (topic(name), vec![change("retention.ms", "2"), change("segment.ms", "3")]));
    let request = IncrementalAlterConfigs { resources: resources.to_vec(), validate_only: false };
    let altered = cluster.ask(ControlRequest::IncrementalAlterConfigs(request));
    assert_eq!(wholes(&altered.records), [2, 2]);
    // What a fence does to each partition is legal alone.
    let fenced = cluster.lose_all_but(&[2, 3]);
    assert!(fenced.len() > 8 && wholes(&fenced).len() == fenced.len(), "{fenced:?}");
}

#[test]
fn topics_are_refused_with_kafkas_codes() {
    let mut cluster = Cluster::of(3);
    cluster.create(plain("a.b")).unwrap();
    let long = "x".repeat(250);
    let assign =
        |replicas: &[&[i32]]| (0..).map(PartitionIndex).zip(replicas.iter().map(|r| ids(r))).collect::<Vec<_>>();
    let config = |name: &str, text: Option<&str>| vec![(name.to_owned(), text.map(str::to_owned))];
    let cases = [
        (plain(""), ErrorCode::InvalidTopicException),
        (plain(".."), ErrorCode::InvalidTopicException),
        (plain("a/b"), ErrorCode::InvalidTopicException),
        (plain(&long), ErrorCode::InvalidTopicException),
        (plain("a_b"), ErrorCode::InvalidTopicException),
        (plain("a.b"), ErrorCode::TopicAlreadyExists),
        (CreateTopic { partitions: 0, ..plain("t") }, ErrorCode::InvalidPartitions),
        (CreateTopic { partitions: -2, ..plain("t") }, ErrorCode::InvalidPartitions),
        (plain("__cluster_metadata"), ErrorCode::InvalidRequest),
        (CreateTopic { partitions: i32::MAX, ..plain("t") }, ErrorCode::PolicyViolation),
        (CreateTopic { replication_factor: 0, ..plain("t") }, ErrorCode::InvalidReplicationFactor),
        (CreateTopic { replication_factor: 4, ..plain("t") }, ErrorCode::InvalidReplicationFactor),
        (CreateTopic { assignments: assign(&[&[1]]), partitions: 1, ..plain("t") }, ErrorCode::InvalidRequest),
        (CreateTopic { assignments: assign(&[&[1]]), replication_factor: 1, ..plain("t") }, ErrorCode::InvalidRequest),
        (CreateTopic { assignments: assign(&[&[7]]), ..plain("t") }, ErrorCode::InvalidReplicaAssignment),
        (CreateTopic { assignments: assign(&[&[1, 1]]), ..plain("t") }, ErrorCode::InvalidReplicaAssignment),
        (CreateTopic { assignments: assign(&[&[1, 2], &[1]]), ..plain("t") }, ErrorCode::InvalidReplicaAssignment),
        (CreateTopic { assignments: assign(&[&[]]), ..plain("t") }, ErrorCode::InvalidReplicaAssignment),
        (CreateTopic { configs: config("nonsense", Some("1")), ..plain("t") }, ErrorCode::InvalidConfig),
        (CreateTopic { configs: config("segment.bytes", Some("1048575")), ..plain("t") }, ErrorCode::InvalidConfig),
        (CreateTopic { configs: config("retention.ms", Some("-2")), ..plain("t") }, ErrorCode::InvalidConfig),
        (CreateTopic { configs: config("retention.ms", None), ..plain("t") }, ErrorCode::InvalidConfig),
    ];
    let before = cluster.control.clone();
    for (at, (topic, expected)) in cases.into_iter().enumerate() {
        assert_eq!(code(cluster.create(topic)), expected, "case {at}");
    }
    assert_eq!(cluster.control.image(), before.image());
}

#[test]
fn validating_a_topic_creates_nothing() {
    let mut cluster = Cluster::of(3);
    let request = CreateTopics { topics: vec![plain("t"), plain("u"), plain("u")], validate_only: true, seed: 0 };
    let decision = cluster.ask(ControlRequest::CreateTopics(request));
    let ControlResponse::CreateTopics(list) = decision.response else { panic!("{decision:?}") };
    let configs = Default::default();
    let would = NewTopic { id: model::TopicId::NONE, partitions: 1, replication_factor: 3, configs };
    assert_eq!(list[0].result, Ok(would));
    assert_eq!(code(list[1].result.clone()), ErrorCode::InvalidRequest);
    assert_eq!(decision.records, vec![]);
}

/// An answer that is lost with its controller leaves it open whether the topics are there: the broker asks the next one.
#[test]
fn a_request_for_topics_that_is_asked_again_knows_its_own() {
    let mut cluster = Cluster::of(3);
    let configured =
        CreateTopic { partitions: 4, configs: vec![("retention.ms".to_owned(), value("5"))], ..plain("t") };
    let topics = vec![plain("bad name"), configured, plain("u")];
    let request = |seed| CreateTopics { topics: topics.clone(), validate_only: false, seed };
    let mut ask = |request| {
        let decision = cluster.ask(ControlRequest::CreateTopics(request));
        let ControlResponse::CreateTopics(list) = decision.response else { panic!("{:?}", decision.response) };
        (list, decision.records.len())
    };
    let first = CreateTopics { topics: topics[..2].to_vec(), ..request(7) };
    let (before, records) = ask(first);
    assert!(records > 4 && before[1].result.is_ok(), "{before:?}");
    // All of it again, and one that the first time did not come to.
    let (again, records) = ask(request(7));
    assert_eq!((&again[..2], records), (before.as_slice(), 2), "{again:?}");
    assert_eq!(ask(request(7)), (again, 0));
    for seed in [8, 0] {
        let (other, records) = ask(request(seed));
        assert_eq!((code(other[1].result.clone()), records), (ErrorCode::TopicAlreadyExists, 0));
    }
}

#[test]
fn a_topic_deleted_and_created_again_is_another_one() {
    // R4
    let mut cluster = Cluster::of(3);
    let first = cluster.create(plain("t")).unwrap().id;
    cluster.set(topic("t"), "retention.ms", ConfigOperation::Set(value("5"))).unwrap();
    let delete = |topic| ControlRequest::DeleteTopics(DeleteTopics { topics: vec![topic] });
    let gone = cluster.ask(delete(TopicRef::Name("t".to_owned()))).response;
    let expected = DeletedTopic { topic: TopicRef::Name("t".to_owned()), result: Ok(("t".to_owned(), first)) };
    assert_eq!(gone, ControlResponse::DeleteTopics(vec![expected]));
    let second = cluster.create(plain("t")).unwrap().id;
    assert_ne!(first, second);
    assert_eq!(cluster.control.image().config_of(&topic("t"), "retention.ms"), None);
    let ControlResponse::DeleteTopics(list) = cluster.ask(delete(TopicRef::Id(first))).response else { panic!() };
    assert_eq!(code(list[0].result.clone()), ErrorCode::UnknownTopicId);
}

#[test]
fn a_topic_grows_but_does_not_shrink() {
    let mut cluster = Cluster::of(3);
    cluster.create(CreateTopic { partitions: 2, ..plain("t") }).unwrap();
    let mut grow = |name: &str, count, assignments| {
        let topics = vec![MorePartitions { name: name.to_owned(), count, assignments }];
        match cluster.ask(ControlRequest::CreatePartitions(CreatePartitions { topics, validate_only: false })).response
        {
            ControlResponse::CreatePartitions(mut list) => code(list.remove(0).result),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(grow("u", 3, None), ErrorCode::UnknownTopicOrPartition);
    assert_eq!(grow("t", 2, None), ErrorCode::InvalidPartitions);
    assert_eq!(grow("t", 1, None), ErrorCode::InvalidPartitions);
    assert_eq!(grow("t", 3, Some(vec![])), ErrorCode::InvalidReplicaAssignment);
    assert_eq!(grow("t", 3, Some(vec![ids(&[1])])), ErrorCode::InvalidReplicaAssignment);
    assert_eq!(grow("t", 3, Some(vec![ids(&[3, 2, 1])])), ErrorCode::None);
    assert_eq!(grow("t", 5, None), ErrorCode::None);
    // R44, R52: who coordinates what hangs on their number.
    for internal in ["__consumer_offsets", "__transaction_state"] {
        cluster.create(plain(internal)).unwrap();
        let topics = vec![MorePartitions { name: internal.to_owned(), count: 50, assignments: None }];
        let request = CreatePartitions { topics, validate_only: false };
        let ControlResponse::CreatePartitions(mut list) =
            cluster.ask(ControlRequest::CreatePartitions(request)).response
        else {
            panic!()
        };
        assert_eq!(code(list.remove(0).result), ErrorCode::InvalidPartitions);
        assert_eq!(cluster.control.image().topic_by_name(internal).unwrap().partitions.len(), 1);
    }
    let topic = cluster.control.image().topic_by_name("t").unwrap();
    assert_eq!(topic.partitions.len(), 5);
    assert_eq!(topic.partitions[&PartitionIndex(2)].replicas, ids(&[3, 2, 1]));
}

#[test]
fn a_topic_that_is_named_twice_does_not_grow() {
    let mut cluster = Cluster::of(3);
    for name in ["t", "u"] {
        cluster.create(CreateTopic { partitions: 1, ..plain(name) }).unwrap();
    }
    let more = |name: &str, count| MorePartitions { name: name.to_owned(), count, assignments: None };
    let request = CreatePartitions { topics: vec![more("t", 2), more("u", 2), more("t", 3)], validate_only: false };
    let ControlResponse::CreatePartitions(list) = cluster.ask(ControlRequest::CreatePartitions(request)).response
    else {
        panic!()
    };
    let told: Vec<_> = list.into_iter().map(|each| (each.name, code(each.result))).collect();
    assert_eq!(told, [("t".to_owned(), ErrorCode::InvalidRequest), ("u".to_owned(), ErrorCode::None)]);
    let partitions = |name: &str| cluster.control.image().topic_by_name(name).unwrap().partitions.len();
    assert_eq!((partitions("t"), partitions("u")), (1, 2));
}

// Configs

#[test]
fn config_operations_follow_kafkas_rules() {
    let mut cluster = Cluster::of(3);
    cluster.create(plain("t")).unwrap();
    let t = || topic("t");
    let all = || ConfigResource::DefaultBroker;
    let one = || ConfigResource::Broker(BrokerId(1));
    use ConfigOperation::{Append, Delete, Set, Subtract};
    let cases = [
        (topic("u"), "retention.ms", Set(value("1")), ErrorCode::UnknownTopicOrPartition),
        (topic("a/b"), "retention.ms", Set(value("1")), ErrorCode::InvalidTopicException),
        (topic(""), "retention.ms", Set(value("1")), ErrorCode::InvalidRequest),
        (ConfigResource::Broker(BrokerId(9)), "log.retention.ms", Set(value("1")), ErrorCode::BrokerIdNotRegistered),
        // R50 holds whatever is wished for.
        (all(), "transaction.partition.verification.enable", Set(value("False")), ErrorCode::InvalidConfig),
        (one(), "transaction.partition.verification.enable", Set(value("false")), ErrorCode::InvalidConfig),
        (all(), "transaction.partition.verification.enable", Set(value("true")), ErrorCode::None),
        (t(), "retention.ms", Set(None), ErrorCode::InvalidRequest),
        (t(), "retention.ms", Set(value("soon")), ErrorCode::InvalidConfig),
        (t(), "retention.ms", Append(value("1")), ErrorCode::InvalidConfig),
        (t(), "segment.bytes", Set(value("1000")), ErrorCode::InvalidConfig),
        (t(), "remote.storage.enable", Set(value("true")), ErrorCode::InvalidConfig),
        (t(), "remote.storage.enable", Set(value("false")), ErrorCode::None),
        (all(), "log.retention.ms", Set(value("soon")), ErrorCode::InvalidRequest),
        (all(), "leader.replication.throttled.rate", Set(value("1000000")), ErrorCode::None),
        (t(), "cleanup.policy", Append(value("shred")), ErrorCode::InvalidConfig),
        (t(), "max.compaction.lag.ms", Set(value("5")), ErrorCode::None),
        (t(), "min.compaction.lag.ms", Set(value("6")), ErrorCode::InvalidConfig),
        (t(), "cleanup.policy", Append(value("compact")), ErrorCode::None),
        (t(), "cleanup.policy", Subtract(value("delete")), ErrorCode::None),
        (all(), "node.id", Set(value("4")), ErrorCode::InvalidRequest),
        (all(), "listeners", Set(value("X://:1")), ErrorCode::InvalidRequest),
        (all(), "min.insync.replicas", Delete, ErrorCode::InvalidConfig),
        (one(), "min.insync.replicas", Set(value("1")), ErrorCode::InvalidConfig),
        (all(), "log.retention.ms", Set(value("1000")), ErrorCode::None),
        (
            ConfigResource::Group("g".to_owned()),
            "consumer.session.timeout.ms",
            Set(value("0")),
            ErrorCode::InvalidConfig,
        ),
        (ConfigResource::Group("g".to_owned()), "consumer.session.timeout.ms", Set(value("50000")), ErrorCode::None),
    ];
    for (at, (resource, name, operation, expected)) in cases.into_iter().enumerate() {
        assert_eq!(code(cluster.set(resource, name, operation)), expected, "case {at}");
    }
    assert_eq!(cluster.control.image().config_of(&t(), "cleanup.policy"), Some("compact"));
    assert_eq!(cluster.control.image().topic_config("t", "retention.ms", BrokerId(1)), Some("1000"));
    let request =
        AlterConfigs { resources: vec![(t(), vec![("flush.ms".to_owned(), value("7"))])], validate_only: false };
    cluster.ask(ControlRequest::AlterConfigs(request));
    let left: Vec<_> = cluster.control.image().configs()[&t()].iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(left, vec![("flush.ms", "7")]);
}

// The rest

#[test]
fn producer_ids_are_never_given_out_twice() {
    // R42
    let mut cluster = Cluster::of(3);
    let mut next = |broker: i32| {
        let broker = BrokerId(broker);
        let epoch = cluster.control.image().broker_epoch(broker);
        cluster.ask(ControlRequest::AllocateProducerIds { broker, epoch }).response
    };
    let block =
        |first| ControlResponse::AllocateProducerIds { first: model::ProducerId(first), len: PRODUCER_ID_BLOCK };
    assert_eq!([next(1), next(2), next(1)], [block(0), block(1_000), block(2_000)]);
}

#[test]
fn features_stay_within_what_is_supported() {
    let mut cluster = Cluster::of(1);
    let mut update = |name: &str, level| {
        let updates = vec![FeatureUpdate { name: name.to_owned(), level, allow_downgrade: false }];
        match cluster.ask(ControlRequest::UpdateFeatures(UpdateFeatures { updates, validate_only: false })).response {
            ControlResponse::UpdateFeatures(mut list) => code(list.remove(0).result),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(update("metadata.version", 1), ErrorCode::None);
    assert_eq!(update("metadata.version", 2), ErrorCode::InvalidUpdateVersion);
    assert_eq!(update("nonsense", 1), ErrorCode::InvalidUpdateVersion);
}

#[test]
fn an_unregistered_broker_is_gone_and_leads_nothing() {
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2, 3]);
    let unregister = ControlRequest::UnregisterBroker { broker: BrokerId(1) };
    assert_eq!(cluster.ask(unregister.clone()).response, ControlResponse::Done);
    assert_eq!(cluster.shape(id), (2, vec![2, 3], vec![], vec![]));
    let again = cluster.ask(unregister).response;
    assert!(matches!(&again, ControlResponse::Refused(error) if error.code == ErrorCode::BrokerIdNotRegistered));
}

/// What anybody may do to a cluster.
#[derive(Clone, Debug)]
enum Step {
    Start(i32, bool),
    Beat(i32, bool, bool),
    Propose(usize, u8),
    Report(i32, usize, i64),
    Create(u8),
    MinIsr(usize, u8),
    Zones(usize, bool),
    Elect(usize, bool),
    Reassign(usize, Option<Vec<i32>>),
    Pass(u64),
    Tenure,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..5, any::<bool>()).prop_map(|(id, clean)| Step::Start(id, clean)),
        (1..5, prop::bool::weighted(0.1), prop::bool::weighted(0.1)).prop_map(|(id, f, s)| Step::Beat(id, f, s)),
        (1..5).prop_map(|id| Step::Beat(id, false, false)),
        (0..3usize, 0..16u8).prop_map(|(p, isr)| Step::Propose(p, isr)),
        (1..5, 0..3usize, 0..20i64).prop_map(|(id, p, end)| Step::Report(id, p, end)),
        (1..4u8).prop_map(Step::Create),
        (0..3usize, 1..4u8).prop_map(|(p, n)| Step::MinIsr(p, n)),
        (0..3usize, any::<bool>()).prop_map(|(p, zones)| Step::Zones(p, zones)),
        (0..3usize, any::<bool>()).prop_map(|(p, unclean)| Step::Elect(p, unclean)),
        (0..3usize, prop::option::weighted(0.8, replicas())).prop_map(|(p, target)| Step::Reassign(p, target)),
        (1..6_000u64).prop_map(Step::Pass),
        Just(Step::Tenure),
    ]
}

fn replicas() -> impl Strategy<Value = Vec<i32>> {
    (Just(vec![1, 2, 3, 4]).prop_shuffle(), 1..4usize).prop_map(|(all, factor)| all[..factor].to_vec())
}

fn take(cluster: &mut Cluster, step: &Step) {
    let chosen = |cluster: &Cluster, at: usize| cluster.control.image().partitions().nth(at).map(|p| p.id());
    let name = |cluster: &Cluster, at: usize| {
        chosen(cluster, at).map(|id| cluster.control.image().topic(id.topic_id).unwrap().name.to_string())
    };
    match *step {
        Step::Reassign(at, ref target) => {
            if let Some(name) = name(cluster, at) {
                let _ = cluster.reassign(&name, target.as_deref());
            }
        }
        Step::Start(id, clean) => {
            let previous = cluster.control.image().broker_epoch(BrokerId(id));
            cluster.start(id, if clean { previous } else { BrokerEpoch::NONE });
        }
        Step::Beat(id, want_fence, want_shutdown) => {
            let beat = Heartbeat { want_fence, want_shutdown, ..cluster.heartbeat(id) };
            cluster.ask(ControlRequest::Heartbeat(beat));
        }
        Step::Propose(at, bits) => {
            let isr: Vec<i32> = (1..5).filter(|id| bits & (1 << (id - 1)) != 0).collect();
            if let Some(id) = chosen(cluster, at) {
                let state = LeaderRecoveryState::Recovered;
                let proposal = AlterPartition { leader_recovery_state: state, ..cluster.proposal(id, &isr) };
                let epoch = cluster.control.image().broker_epoch(cluster.partition(id).leader);
                let broker = cluster.partition(id).leader;
                cluster.ask(ControlRequest::AlterPartitions(AlterPartitions {
                    broker,
                    epoch,
                    partitions: vec![proposal],
                }));
            }
        }
        Step::Report(broker, at, end) => {
            if let Some(id) = chosen(cluster, at) {
                cluster.report(broker, id, answer(broker, 0, end));
            }
        }
        Step::Create(factor) => {
            let name = format!("t{}", cluster.entropy % 3);
            drop(cluster.create(CreateTopic { replication_factor: i16::from(factor), ..plain(&name) }));
        }
        Step::MinIsr(at, isr) => {
            if let Some(name) = name(cluster, at) {
                let operation = ConfigOperation::Set(Some(isr.to_string()));
                drop(cluster.set(topic(&name), "min.insync.replicas", operation));
            }
        }
        Step::Zones(at, zones) => {
            if let Some(name) = name(cluster, at) {
                let rule = if zones { "zones=2" } else { "isr" };
                drop(cluster.set(topic(&name), crate::configs::ACK_RULE, ConfigOperation::Set(value(rule))));
            }
        }
        Step::Elect(at, unclean) => {
            if let Some(name) = name(cluster, at) {
                let kind = if unclean { ElectionType::Unclean } else { ElectionType::Preferred };
                let _ = cluster.elect(&name, kind);
            }
        }
        Step::Pass(ms) => {
            cluster.now = cluster.now + ms;
            let decision = cluster.control.tick(cluster.now);
            cluster.take(decision);
        }
        Step::Tenure => cluster.control.begin_tenure(cluster.now),
    }
}

/// What holds of every partition at all times (`R1`, `R7`, `R33` to `R35`).
fn check(cluster: &Cluster, before: &MetadataImage) {
    let image = cluster.control.image();
    for p in image.partitions() {
        let topic = image.topic(p.topic_id).unwrap();
        let enough = image.is_enough(&topic.name, p.factor(), &p.isr);
        let all = [&p.isr, &p.elr, &p.last_known_elr];
        assert!(all.iter().all(|set| set.iter().all(|b| p.replicas.contains(b))), "strangers: {p:?}");
        assert!(p.isr.iter().all(|b| !p.elr.contains(b)), "ISR and ELR overlap: {p:?}");
        assert!(p.isr.iter().all(|b| image.is_eligible(p, *b)), "a fenced or stopping member: {p:?}");
        assert!(p.is_leaderless() || p.isr.contains(&p.leader), "the leader is not in sync: {p:?}");
        assert!(!p.is_leaderless() || p.isr.is_empty(), "somebody in sync but no leader: {p:?}");
        assert!(!enough || p.elr.is_empty(), "an ELR beside an ISR that is enough: {p:?}");
        let zones = image.ack_zones(&topic.name);
        assert!(image.zones_of(&p.target()) >= zones, "it can never be in {zones} zones: {p:?}");
        assert!(p.last_known_elr.is_empty() || p.elr.iter().all(|b| p.last_known_elr.contains(b)), "{p:?}");
        assert!(p.adding.iter().chain(&p.removing).all(|b| p.replicas.contains(b)), "who moves is a stranger: {p:?}");
        if let Some(old) = before.partition(p.id()) {
            reassign::check(p, old, enough);
            assert!(p.partition_epoch >= old.partition_epoch && p.leader_epoch >= old.leader_epoch, "{old:?} {p:?}");
            assert!(old == p || p.partition_epoch > old.partition_epoch, "two states of one epoch: {old:?} {p:?}");
            assert!(
                old.leader == p.leader || p.leader_epoch > old.leader_epoch,
                "two leaders of one epoch: {old:?} {p:?}"
            );
        }
    }
}

/// When all that was due is decided, a look at each partition finds no leader that the deadlines missed (`R35`).
fn nobody_is_overlooked(cluster: &Cluster) {
    let mut control = cluster.control.clone();
    for _ in 0..8 {
        if control.next_deadline() <= cluster.now {
            let decision = control.tick(cluster.now);
            decision.records.iter().for_each(|record| control.replay(record));
        }
    }
    let mut draft = Draft::new(&control);
    control.leaderless.iter().for_each(|id| draft.recover(*id, cluster.now));
    assert_eq!(draft.decided(Ok(ControlResponse::Done)).records, vec![]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_happens_the_rules_hold_and_replay_gives_the_same(steps in prop::collection::vec(step(), 1..80)) {
        let mut cluster = Cluster::of(4);
        let mut standby = cluster.control.clone();
        for step in &steps {
            let before = cluster.control.image().clone();
            take(&mut cluster, step);
            check(&cluster, &before);
            nobody_is_overlooked(&cluster);
        }
        // A snapshot gives the same image, and a control reset to it has the same partitions without a leader.
        let image = cluster.control.image();
        let again = MetadataImage::from_snapshot(image.next_offset(), &image.to_records());
        prop_assert_eq!(&again, image);
        standby.reset(again);
        prop_assert_eq!(standby.leaderless, cluster.control.leaderless);
    }
}

#[test]
fn deciding_twice_decides_the_same() {
    let mut cluster = Cluster::of(3);
    let request =
        ControlRequest::CreateTopics(CreateTopics { topics: vec![plain("t")], validate_only: false, seed: 0 });
    cluster.control.observe(&request, cluster.now);
    let decide = |cluster: &Cluster, entropy| cluster.control.decide(&request, cluster.now, entropy);
    assert_eq!(decide(&cluster, 5), decide(&cluster, 5));
    assert_ne!(decide(&cluster, 5), decide(&cluster, 6));
}
