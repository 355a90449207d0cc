//! The active controller of a model: the real decisions, each of which takes effect before the next.
//!
//! Invariant: what the image counts (metadata offsets, broker epochs) depends on what happened to each broker, not on the
//! order in which it happened, so that paths that come to the same are the same. Offsets are other partitions' too, and
//! may skip; epochs of different brokers are never compared.

use std::hash::{DefaultHasher, Hash, Hasher};

use metadata::MetadataImage;
use metadata::control::{
    AlterPartition, AlterPartitions, AlterReassignments, ClusterControl, ControlEvent, ControlRequest, ControlResponse,
    ControlSettings, CreateTopic, CreateTopics, Decision, ElectLeaders, ElectionType, Heartbeat, HeartbeatAnswer,
    Reassignment, RecoveryAnswer, RecoveryReport, RegisterBroker, supported_features,
};
use metadata::records::{LeaderRecoveryState, Listener, Partition, SecurityProtocol};
use model::{
    BootId, BrokerEpoch, BrokerId, ClusterId, DirectoryId, ErrorCode, Incarnation, MetadataOffset, PartitionIndex,
    Time, TopicPartition, Uuid,
};
use replication::{AckRule, AlterAnswer, Member, PartitionState, Proposal};

use crate::scenario::{NODES, Scenario};

/// The controller's clock stands still: nobody is silent for long unless the model says so.
const NOW: Time = Time(1_000_000);
/// Where the image stands between decisions.
const RESTING: MetadataOffset = MetadataOffset(1_000_000);
/// What a broker says that has applied all there is.
const ALL: MetadataOffset = MetadataOffset(2_000_000);
const TOPIC: &str = "t";

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    control: ClusterControl,
    partition: TopicPartition,
    sync_before_ack: bool,
    digest: u64,
    /// A record of a decision left a broker fenced in the ISR: those before it may be all that is known for a while (`R7`).
    fenced_member: bool,
}

impl Control {
    /// The cluster with its one topic; all brokers are alive.
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let settings = ControlSettings {
            min_insync_replicas: scenario.min_isr,
            leader_rebalance_ms: None,
            rules: scenario.rules,
            ..ControlSettings::default()
        };
        let mut control = ClusterControl::new(settings);
        let records = control.first_records(ClusterId(Uuid::from_u128(77)));
        records.iter().for_each(|record| control.replay(record));
        control.begin_tenure(NOW);
        let partition = TopicPartition { topic_id: model::TopicId::NONE, partition: PartitionIndex(0) };
        let mut this =
            Self { control, partition, sync_before_ack: scenario.sync_before_ack, digest: 0, fenced_member: false };
        for node in 0..NODES {
            let epoch = this.register(node, Mark { start: 1, proof: BrokerEpoch::NONE, lossy: false }, scenario);
            this.beat(node, epoch, true, Wish::Run);
        }
        this.create_topic(scenario);
        this
    }

    fn create_topic(&mut self, scenario: &Scenario) {
        let mut configs = Vec::new();
        if scenario.zones > 0 {
            let value = format!("zones={}", scenario.zones);
            configs.push(("ottla.ack.rule".to_owned(), Some(value)));
        }
        let topic = CreateTopic {
            name: TOPIC.to_owned(),
            partitions: -1,
            replication_factor: -1,
            assignments: vec![(PartitionIndex(0), brokers(scenario.replicas))],
            configs,
        };
        self.ask(&ControlRequest::CreateTopics(CreateTopics { topics: vec![topic], validate_only: false, seed: 0 }));
        self.partition.topic_id = self.control.image().topic_id(TOPIC).expect("the topic was created");
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    pub(crate) fn partition(&self) -> &Partition {
        self.control.image().partition(self.partition).expect("the partition is there for good")
    }

    pub(crate) fn broker_epoch(&self, node: usize) -> BrokerEpoch {
        self.control.image().broker_epoch(id(node))
    }

    pub(crate) fn is_fenced(&self, node: usize) -> bool {
        self.control.image().broker(id(node)).is_none_or(|broker| broker.fenced)
    }

    /// Whether a broker was fenced before it was out of the ISR.
    pub(crate) fn fenced_a_member(&self) -> bool {
        self.fenced_member
    }

    /// Whether a broker may be in sync and lead.
    pub(crate) fn is_active(&self, node: usize) -> bool {
        self.control.image().is_active(id(node))
    }

    /// Whether these may commit: by number, and by zones.
    pub(crate) fn is_enough(&self, isr: &[BrokerId]) -> bool {
        self.control.image().is_enough(TOPIC, self.partition().factor(), isr)
    }

    pub(crate) fn is_shutting_down(&self, node: usize) -> bool {
        self.control.image().broker(id(node)).is_some_and(|broker| broker.in_controlled_shutdown && !broker.fenced)
    }

    /// How many replicas have to have a record before it is committed.
    pub(crate) fn min_isr(&self) -> usize {
        self.control.image().min_isr(TOPIC, self.partition().factor())
    }

    /// What a broker tells the replica, as `broker::loading` makes it of an image.
    pub(crate) fn view(&self) -> PartitionState {
        let (image, partition) = (self.control.image(), self.partition());
        let rack = |broker: &BrokerId| image.broker(*broker).and_then(|broker| broker.rack.as_deref());
        let zone = |broker: &BrokerId| {
            let mine = rack(broker)?;
            let first = partition.replicas.iter().position(|replica| rack(replica) == Some(mine))?;
            u32::try_from(first).ok()
        };
        let member = |broker: &BrokerId| Member {
            id: *broker,
            broker_epoch: image.broker_epoch(*broker),
            eligible: image.is_eligible(partition, *broker),
            zone: zone(broker),
        };
        PartitionState {
            leader: partition.leader,
            leader_epoch: partition.leader_epoch,
            partition_epoch: partition.partition_epoch,
            replicas: partition.replicas.iter().map(member).collect(),
            isr: partition.isr.clone(),
            recovering: partition.leader_recovery_state == LeaderRecoveryState::Recovering,
            ack_rule: AckRule { min_isr: self.min_isr(), zones: image.ack_zones(TOPIC) },
            sync_before_ack: self.sync_before_ack,
        }
    }

    fn ask(&mut self, request: &ControlRequest) -> Decision {
        self.control.observe(request, NOW);
        let decision = self.control.decide(request, NOW, 1);
        self.take(decision)
    }

    /// The decision is committed; the image rests where it always does.
    fn take(&mut self, decision: Decision) -> Decision {
        for record in &decision.records {
            self.control.replay(record);
            self.fenced_member |= self
                .control
                .image()
                .partition(self.partition)
                .is_some_and(|partition| partition.isr.iter().any(|member| self.is_fenced(node_of(*member))));
        }
        self.move_to(RESTING);
        let mut hasher = DefaultHasher::new();
        self.control.hash(&mut hasher);
        self.digest = hasher.finish();
        decision
    }

    fn move_to(&mut self, offset: MetadataOffset) {
        if self.control.image().next_offset() != offset {
            let records = self.control.image().to_records();
            self.control.reset(MetadataImage::from_snapshot(offset, &records));
        }
    }

    /// A broker that starts registers.
    pub(crate) fn register(&mut self, node: usize, mark: Mark, scenario: &Scenario) -> BrokerEpoch {
        let request = self.registration(node, mark, scenario);
        let wanted = u64::from(mark.start) * 1_000;
        self.control.observe(&request, NOW);
        self.move_to(MetadataOffset(wanted));
        // What the broker leaves comes before its registration: the epoch is that much more.
        let before = match self.control.decide(&request, NOW, 1).response {
            ControlResponse::RegisterBroker { epoch } => u64::try_from(epoch.0).unwrap_or(0) - wanted,
            other => panic!("a registration was refused: {other:?}"),
        };
        self.move_to(MetadataOffset(wanted - before));
        let decision = self.control.decide(&request, NOW, 1);
        self.take(decision);
        self.broker_epoch(node)
    }

    fn registration(&self, node: usize, mark: Mark, scenario: &Scenario) -> ControlRequest {
        let incarnation = u128::from(mark.start) * 100 + node_number(node);
        ControlRequest::RegisterBroker(RegisterBroker {
            broker: id(node),
            cluster_id: ClusterId::NONE,
            incarnation: Incarnation(Uuid::from_u128(incarnation)),
            boot: BootId::NONE,
            directories: vec![directory(node)],
            offline_directories: Vec::new(),
            cordoned_directories: Vec::new(),
            unidentified_directories: false,
            listeners: vec![Listener {
                name: "INTERNAL".to_owned(),
                host: "h".to_owned(),
                port: 9_092,
                security_protocol: SecurityProtocol::Plaintext,
            }],
            rack: Some(scenario.racks[node].to_owned()),
            features: supported_features(),
            previous_epoch: mark.proof,
            lossy: if mark.lossy { vec![self.partition] } else { Vec::new() },
        })
    }

    /// A broker's registration arrives once more.
    pub(crate) fn repeat_registration(&mut self, node: usize, mark: Mark, scenario: &Scenario) {
        let request = self.registration(node, mark, scenario);
        self.ask(&request);
    }

    /// A broker tells that its replica lost records (`R78`).
    pub(crate) fn tell_lossy(&mut self, node: usize, epoch: BrokerEpoch) {
        let lossy = vec![self.partition];
        self.ask(&ControlRequest::Heartbeat(Heartbeat { lossy, ..heartbeat(node, epoch, ALL) }));
    }
    pub(crate) fn beat(
        &mut self,
        node: usize,
        epoch: BrokerEpoch,
        applied_all: bool,
        wish: Wish,
    ) -> Option<HeartbeatAnswer> {
        let applied = if applied_all { ALL } else { RESTING };
        let (want_fence, want_shutdown) = (wish == Wish::Fence, wish == Wish::Stop);
        let request = Heartbeat { want_fence, want_shutdown, ..heartbeat(node, epoch, applied) };
        match self.ask(&ControlRequest::Heartbeat(request)).response {
            ControlResponse::Heartbeat(answer) => Some(answer),
            _ => None,
        }
    }

    /// As `broker::isr` asks and understands the answer.
    pub(crate) fn alter(&mut self, node: usize, epoch: BrokerEpoch, proposal: &Proposal) -> AlterAnswer {
        let altered = AlterPartition {
            partition: self.partition,
            leader_epoch: proposal.id.leader_epoch,
            partition_epoch: proposal.id.partition_epoch,
            isr: proposal.isr.clone(),
            leader_recovery_state: LeaderRecoveryState::Recovered,
        };
        let request = AlterPartitions { broker: id(node), epoch, partitions: vec![altered] };
        let ControlResponse::AlterPartitions(answers) = self.ask(&ControlRequest::AlterPartitions(request)).response
        else {
            return AlterAnswer::Unknown;
        };
        match answers.into_iter().next().map(|answer| answer.result) {
            None | Some(Err(ErrorCode::NotController | ErrorCode::RequestTimedOut)) => AlterAnswer::Unknown,
            Some(Err(error)) => AlterAnswer::Refused { error, partition_epoch: None },
            Some(Ok(now)) => AlterAnswer::Changed {
                leader_epoch: now.leader_epoch,
                partition_epoch: now.partition_epoch,
                isr: now.isr,
                ack_rule: Some(AckRule {
                    min_isr: usize::try_from(now.min_isr).expect("a small number"),
                    zones: usize::try_from(now.ack_zones).expect("a small number"),
                }),
            },
        }
    }

    /// Whether the broker is asked what it holds (`R35`).
    pub(crate) fn wants_report(&self, node: usize) -> bool {
        if !self.partition().awaits_recovery() || self.is_fenced(node) || self.is_shutting_down(node) {
            return false;
        }
        let heartbeat = heartbeat(node, self.broker_epoch(node), ALL);
        match self.control.decide(&ControlRequest::Heartbeat(heartbeat), NOW, 1).response {
            ControlResponse::Heartbeat(answer) => !answer.recovery_wanted.is_empty(),
            _ => false,
        }
    }

    /// Who was not heard although a leader was chosen, if anybody; and whether what came of it may have lost records, as the
    /// controller tells the operator.
    pub(crate) fn report(
        &mut self,
        node: usize,
        epoch: BrokerEpoch,
        answer: RecoveryAnswer,
    ) -> (Option<Vec<BrokerId>>, bool) {
        let answer = RecoveryAnswer { directory: directory(node), ..answer };
        let report = RecoveryReport { broker: id(node), epoch, answers: vec![(self.partition, answer)] };
        let decision = self.ask(&ControlRequest::RecoveryReport(report));
        let told = decision.events.into_iter().find_map(|event| match event {
            ControlEvent::UncleanElection { potential_loss: true, absent, .. } => Some(absent),
            _ => None,
        });
        let over = told.is_some();
        (told.filter(|absent| !absent.is_empty()), over)
    }

    pub(crate) fn elect_preferred(&mut self) {
        let partitions = Some(vec![(TOPIC.to_owned(), PartitionIndex(0))]);
        self.ask(&ControlRequest::ElectLeaders(ElectLeaders { election: ElectionType::Preferred, partitions }));
    }

    /// An empty target cancels.
    pub(crate) fn reassign(&mut self, target: &[i32]) {
        let reassignment = Reassignment {
            topic: TOPIC.to_owned(),
            partition: PartitionIndex(0),
            target: (!target.is_empty()).then(|| brokers(target)),
        };
        let request = AlterReassignments { partitions: vec![reassignment], allow_factor_change: true };
        self.ask(&ControlRequest::AlterReassignments(request));
    }
}

/// What a broker says of itself when it registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    /// How often it has started.
    pub(crate) start: u8,
    /// The registration that it stopped cleanly in, by what is on its disk.
    pub(crate) proof: BrokerEpoch,
    /// Whether it found its log broken.
    pub(crate) lossy: bool,
}

/// What a heartbeat asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wish {
    /// To be, or stay, unfenced.
    Run,
    /// To be fenced: what a session that expires comes to.
    Fence,
    /// To stop (`R32`).
    Stop,
}

/// Of a broker that wants nothing.
fn heartbeat(node: usize, epoch: BrokerEpoch, next_offset: MetadataOffset) -> Heartbeat {
    Heartbeat {
        broker: id(node),
        epoch,
        next_offset,
        want_fence: false,
        want_shutdown: false,
        offline_directories: Vec::new(),
        cordoned_directories: Vec::new(),
        lossy: Vec::new(),
        full_directories: Vec::new(),
        exhausted_directories: Vec::new(),
    }
}

pub(crate) fn id(node: usize) -> BrokerId {
    BrokerId(i32::try_from(node).expect("a small number") + 1)
}

pub(crate) fn node_of(id: BrokerId) -> usize {
    usize::try_from(id.0 - 1).expect("a broker of the model")
}

fn node_number(node: usize) -> u128 {
    u128::try_from(node).expect("a small number")
}

fn directory(node: usize) -> DirectoryId {
    DirectoryId(Uuid::from_u128(500 + node_number(node)))
}

fn brokers(ids: &[i32]) -> Vec<BrokerId> {
    ids.iter().map(|id| BrokerId(*id)).collect()
}
