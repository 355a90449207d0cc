//! Requests and answers to and from their generated types.

use std::collections::BTreeMap;

use model::{
    BrokerEpoch, BrokerId, ClusterId, DirectoryId, ErrorCode, Incarnation, LeaderEpoch, MetadataOffset, Offset,
    PartitionEpoch, PartitionIndex, ProducerId, TopicId, TopicPartition,
};

use super::generated::control::v1 as wire;
use super::generated::control::v1::{request, response};
use super::records::{
    controller, controller_to_wire, features, features_to_wire, listeners, listeners_to_wire, recovery,
    recovery_to_wire, resource, resource_to_wire,
};
use super::{
    WireError, boot, boot_to_wire, directories, directories_to_wire, ids, ids_to_wire, small, some, topic_id, uuid,
    uuid_to_wire,
};
use crate::control::{
    AlterConfigs, AlterPartition, AlterPartitions, AlterReassignments, AlteredPartition, AssignReplicas, ConfigChange,
    ConfigOperation, ConfigResult, ControlError, ControlRequest, ControlResponse, CreatePartitions, CreateTopic,
    CreateTopics, CreatedTopic, DeleteTopics, DeletedTopic, ElectLeaders, ElectionResult, ElectionType, FeatureResult,
    FeatureUpdate, Heartbeat, HeartbeatAnswer, IncrementalAlterConfigs, MorePartitions, NewTopic, PartitionNow,
    Reassignment, ReassignmentResult, RecoveryAnswer, RecoveryReport, RegisterBroker, Suspect, TopicRef, TopicResult,
    UpdateFeatures,
};

type Kind = request::Kind;

pub(super) fn request_to_wire(request: &ControlRequest) -> Kind {
    match request {
        ControlRequest::RegisterBroker(r) => Kind::RegisterBroker(register_to_wire(r)),
        ControlRequest::Heartbeat(r) => Kind::Heartbeat(wire::Heartbeat {
            broker: r.broker.0,
            epoch: r.epoch.0,
            next_offset: r.next_offset.0,
            want_fence: r.want_fence,
            want_shutdown: r.want_shutdown,
            offline_directories: directories_to_wire(&r.offline_directories),
            lossy: r.lossy.iter().map(|id| partition_to_wire(*id)).collect(),
            full_directories: directories_to_wire(&r.full_directories),
            exhausted_directories: directories_to_wire(&r.exhausted_directories),
            cordoned_directories: directories_to_wire(&r.cordoned_directories),
        }),
        ControlRequest::RegisterController(r) => Kind::RegisterController(controller_to_wire(r)),
        ControlRequest::Suspect(r) => {
            Kind::Suspect(wire::Suspect { broker: r.broker.0, epoch: r.epoch.0, reporter: r.reporter.0 })
        }
        ControlRequest::Alive { broker, epoch } => Kind::Alive(wire::Alive { broker: broker.0, epoch: epoch.0 }),
        ControlRequest::AlterPartitions(r) => Kind::AlterPartitions(wire::AlterPartitions {
            broker: r.broker.0,
            epoch: r.epoch.0,
            partitions: r.partitions.iter().map(proposal_to_wire).collect(),
        }),
        ControlRequest::RecoveryReport(r) => Kind::RecoveryReport(wire::RecoveryReport {
            broker: r.broker.0,
            epoch: r.epoch.0,
            answers: r.answers.iter().map(answer_to_wire).collect(),
        }),
        ControlRequest::AllocateProducerIds { broker, epoch } => {
            Kind::AllocateProducerIds(wire::AllocateProducerIds { broker: broker.0, epoch: epoch.0 })
        }
        ControlRequest::UnregisterBroker { broker } => {
            Kind::UnregisterBroker(wire::UnregisterBroker { broker: broker.0 })
        }
        ControlRequest::CreateTopics(r) => Kind::CreateTopics(wire::CreateTopics {
            topics: r.topics.iter().map(create_to_wire).collect(),
            validate_only: r.validate_only,
            seed: uuid_to_wire(model::Uuid::from_u128(r.seed)),
        }),
        ControlRequest::DeleteTopics(r) => {
            Kind::DeleteTopics(wire::DeleteTopics { topics: r.topics.iter().map(topic_ref_to_wire).collect() })
        }
        ControlRequest::CreatePartitions(r) => Kind::CreatePartitions(wire::CreatePartitions {
            topics: r.topics.iter().map(more_to_wire).collect(),
            validate_only: r.validate_only,
        }),
        ControlRequest::IncrementalAlterConfigs(r) => Kind::IncrementalAlterConfigs(incremental_to_wire(r)),
        ControlRequest::AlterConfigs(r) => Kind::AlterConfigs(alter_to_wire(r)),
        ControlRequest::ElectLeaders(r) => Kind::ElectLeaders(elect_to_wire(r)),
        ControlRequest::UpdateFeatures(r) => Kind::UpdateFeatures(update_to_wire(r)),
        ControlRequest::AlterReassignments(r) => Kind::AlterReassignments(reassign_to_wire(r)),
        ControlRequest::AssignReplicas(r) => Kind::AssignReplicas(assign_to_wire(r)),
    }
}

pub(super) fn request_from_wire(kind: Kind) -> Result<ControlRequest, WireError> {
    Ok(match kind {
        Kind::RegisterBroker(r) => ControlRequest::RegisterBroker(register(r)?),
        Kind::Heartbeat(r) => ControlRequest::Heartbeat(Heartbeat {
            broker: BrokerId(r.broker),
            epoch: BrokerEpoch(r.epoch),
            next_offset: MetadataOffset(r.next_offset),
            want_fence: r.want_fence,
            want_shutdown: r.want_shutdown,
            offline_directories: directories(&r.offline_directories)?,
            lossy: partitions(&r.lossy)?,
            full_directories: directories(&r.full_directories)?,
            exhausted_directories: directories(&r.exhausted_directories)?,
            cordoned_directories: directories(&r.cordoned_directories)?,
        }),
        Kind::RegisterController(r) => ControlRequest::RegisterController(controller(r)?),
        Kind::Suspect(r) => ControlRequest::Suspect(Suspect {
            broker: BrokerId(r.broker),
            epoch: BrokerEpoch(r.epoch),
            reporter: BrokerId(r.reporter),
        }),
        Kind::Alive(r) => ControlRequest::Alive { broker: BrokerId(r.broker), epoch: BrokerEpoch(r.epoch) },
        Kind::AlterPartitions(r) => ControlRequest::AlterPartitions(AlterPartitions {
            broker: BrokerId(r.broker),
            epoch: BrokerEpoch(r.epoch),
            partitions: each(r.partitions, proposal)?,
        }),
        Kind::RecoveryReport(r) => ControlRequest::RecoveryReport(RecoveryReport {
            broker: BrokerId(r.broker),
            epoch: BrokerEpoch(r.epoch),
            answers: each(r.answers, answer)?,
        }),
        Kind::AllocateProducerIds(r) => {
            ControlRequest::AllocateProducerIds { broker: BrokerId(r.broker), epoch: BrokerEpoch(r.epoch) }
        }
        Kind::UnregisterBroker(r) => ControlRequest::UnregisterBroker { broker: BrokerId(r.broker) },
        Kind::CreateTopics(r) => ControlRequest::CreateTopics(CreateTopics {
            topics: each(r.topics, create)?,
            validate_only: r.validate_only,
            // None from a broker of before.
            seed: if r.seed.is_empty() { 0 } else { uuid(&r.seed, "seed")?.as_u128() },
        }),
        Kind::DeleteTopics(r) => ControlRequest::DeleteTopics(DeleteTopics { topics: each(r.topics, topic_ref)? }),
        Kind::CreatePartitions(r) => ControlRequest::CreatePartitions(CreatePartitions {
            topics: r.topics.into_iter().map(more).collect(),
            validate_only: r.validate_only,
        }),
        Kind::IncrementalAlterConfigs(r) => ControlRequest::IncrementalAlterConfigs(incremental(r)?),
        Kind::AlterConfigs(r) => ControlRequest::AlterConfigs(alter(r)?),
        Kind::ElectLeaders(r) => ControlRequest::ElectLeaders(elect(r)),
        Kind::UpdateFeatures(r) => ControlRequest::UpdateFeatures(update(r)?),
        Kind::AlterReassignments(r) => ControlRequest::AlterReassignments(reassign(r)),
        Kind::AssignReplicas(r) => ControlRequest::AssignReplicas(assign(r)?),
    })
}

pub(super) fn response_to_wire(response: &ControlResponse) -> response::Kind {
    use response::Kind;
    match response {
        ControlResponse::Refused(error) => Kind::Refused(error_to_wire(error)),
        ControlResponse::Done => Kind::Done(wire::Done {}),
        ControlResponse::RegisterBroker { epoch } => Kind::RegisterBroker(wire::BrokerRegistered { epoch: epoch.0 }),
        ControlResponse::Heartbeat(r) => Kind::Heartbeat(wire::HeartbeatAnswer {
            is_fenced: r.is_fenced,
            is_caught_up: r.is_caught_up,
            should_shut_down: r.should_shut_down,
            recovery_wanted: r.recovery_wanted.iter().map(|id| partition_to_wire(*id)).collect(),
        }),
        ControlResponse::AlterPartitions(list) => {
            Kind::AlterPartitions(wire::AlteredPartitions { partitions: list.iter().map(altered_to_wire).collect() })
        }
        ControlResponse::CreateTopics(list) => {
            Kind::CreateTopics(wire::CreatedTopics { topics: list.iter().map(created_to_wire).collect() })
        }
        ControlResponse::DeleteTopics(list) => {
            Kind::DeleteTopics(wire::DeletedTopics { topics: list.iter().map(deleted_to_wire).collect() })
        }
        ControlResponse::CreatePartitions(list) => {
            Kind::CreatePartitions(named_to_wire(list.iter().map(|r| (&r.name, &r.result))))
        }
        ControlResponse::UpdateFeatures(list) => {
            Kind::UpdateFeatures(named_to_wire(list.iter().map(|r| (&r.name, &r.result))))
        }
        ControlResponse::IncrementalAlterConfigs(list) => Kind::IncrementalAlterConfigs(config_results_to_wire(list)),
        ControlResponse::AlterConfigs(list) => Kind::AlterConfigs(config_results_to_wire(list)),
        ControlResponse::ElectLeaders(list) => {
            Kind::ElectLeaders(wire::ElectionResults { results: list.iter().map(election_to_wire).collect() })
        }
        ControlResponse::AlterReassignments(list) => {
            let result = |r: &ReassignmentResult| partition_result_to_wire(&r.topic, r.partition, &r.result);
            Kind::AlterReassignments(wire::ElectionResults { results: list.iter().map(result).collect() })
        }
        ControlResponse::AllocateProducerIds { first, len } => {
            Kind::AllocateProducerIds(wire::ProducerIdBlock { first: first.0, len: *len })
        }
    }
}

pub(super) fn response_from_wire(kind: response::Kind) -> Result<ControlResponse, WireError> {
    use response::Kind;
    Ok(match kind {
        Kind::Refused(error) => ControlResponse::Refused(control_error(error)?),
        Kind::Done(wire::Done {}) => ControlResponse::Done,
        Kind::RegisterBroker(r) => ControlResponse::RegisterBroker { epoch: BrokerEpoch(r.epoch) },
        Kind::Heartbeat(r) => ControlResponse::Heartbeat(HeartbeatAnswer {
            is_fenced: r.is_fenced,
            is_caught_up: r.is_caught_up,
            should_shut_down: r.should_shut_down,
            recovery_wanted: partitions(&r.recovery_wanted)?,
        }),
        Kind::AlterPartitions(r) => ControlResponse::AlterPartitions(each(r.partitions, altered)?),
        Kind::CreateTopics(r) => ControlResponse::CreateTopics(each(r.topics, created)?),
        Kind::DeleteTopics(r) => ControlResponse::DeleteTopics(each(r.topics, deleted)?),
        Kind::CreatePartitions(r) => {
            let result = |r: wire::NamedResult| Ok(TopicResult { name: r.name, result: outcome(r.error)? });
            ControlResponse::CreatePartitions(each(r.results, result)?)
        }
        Kind::UpdateFeatures(r) => {
            let result = |r: wire::NamedResult| Ok(FeatureResult { name: r.name, result: outcome(r.error)? });
            ControlResponse::UpdateFeatures(each(r.results, result)?)
        }
        Kind::IncrementalAlterConfigs(r) => ControlResponse::IncrementalAlterConfigs(each(r.results, config_result)?),
        Kind::AlterConfigs(r) => ControlResponse::AlterConfigs(each(r.results, config_result)?),
        Kind::ElectLeaders(r) => ControlResponse::ElectLeaders(each(r.results, election)?),
        Kind::AlterReassignments(r) => {
            let result = |r: wire::ElectionResult| {
                let result = outcome(r.error)?;
                Ok(ReassignmentResult { topic: r.topic, partition: PartitionIndex(r.partition), result })
            };
            ControlResponse::AlterReassignments(each(r.results, result)?)
        }
        Kind::AllocateProducerIds(r) => ControlResponse::AllocateProducerIds { first: ProducerId(r.first), len: r.len },
    })
}

fn each<T, U>(list: Vec<T>, of: impl Fn(T) -> Result<U, WireError>) -> Result<Vec<U>, WireError> {
    list.into_iter().map(of).collect()
}

fn partition_to_wire(id: TopicPartition) -> wire::TopicPartition {
    wire::TopicPartition { topic_id: uuid_to_wire(id.topic_id.0), partition: id.partition.0 }
}

fn partition(id: &wire::TopicPartition) -> Result<TopicPartition, WireError> {
    Ok(TopicPartition { topic_id: topic_id(&id.topic_id)?, partition: PartitionIndex(id.partition) })
}

fn partitions(list: &[wire::TopicPartition]) -> Result<Vec<TopicPartition>, WireError> {
    list.iter().map(partition).collect()
}

fn register_to_wire(r: &RegisterBroker) -> wire::RegisterBroker {
    wire::RegisterBroker {
        broker: r.broker.0,
        cluster_id: uuid_to_wire(r.cluster_id.0),
        incarnation: uuid_to_wire(r.incarnation.0),
        boot: boot_to_wire(r.boot),
        directories: directories_to_wire(&r.directories),
        offline_directories: directories_to_wire(&r.offline_directories),
        listeners: listeners_to_wire(&r.listeners),
        rack: r.rack.clone(),
        features: features_to_wire(&r.features),
        previous_epoch: r.previous_epoch.0,
        lossy: r.lossy.iter().map(|id| partition_to_wire(*id)).collect(),
        cordoned_directories: directories_to_wire(&r.cordoned_directories),
        unidentified_directories: r.unidentified_directories,
    }
}

fn register(r: wire::RegisterBroker) -> Result<RegisterBroker, WireError> {
    Ok(RegisterBroker {
        broker: BrokerId(r.broker),
        cluster_id: ClusterId(uuid(&r.cluster_id, "cluster_id")?),
        incarnation: Incarnation(uuid(&r.incarnation, "incarnation")?),
        boot: boot(&r.boot)?,
        directories: directories(&r.directories)?,
        offline_directories: directories(&r.offline_directories)?,
        listeners: listeners(r.listeners)?,
        rack: r.rack,
        features: features(r.features)?,
        previous_epoch: BrokerEpoch(r.previous_epoch),
        lossy: partitions(&r.lossy)?,
        cordoned_directories: directories(&r.cordoned_directories)?,
        unidentified_directories: r.unidentified_directories,
    })
}

fn proposal_to_wire(p: &AlterPartition) -> wire::AlterPartition {
    wire::AlterPartition {
        partition: Some(partition_to_wire(p.partition)),
        leader_epoch: p.leader_epoch.0,
        partition_epoch: p.partition_epoch.0,
        isr: p.isr.iter().map(|(id, epoch)| wire::Member { broker: id.0, epoch: epoch.0 }).collect(),
        leader_recovery_state: recovery_to_wire(p.leader_recovery_state),
    }
}

fn proposal(p: wire::AlterPartition) -> Result<AlterPartition, WireError> {
    Ok(AlterPartition {
        partition: partition(&some(p.partition, "partition")?)?,
        leader_epoch: LeaderEpoch(p.leader_epoch),
        partition_epoch: PartitionEpoch(p.partition_epoch),
        isr: p.isr.iter().map(|member| (BrokerId(member.broker), BrokerEpoch(member.epoch))).collect(),
        leader_recovery_state: recovery(p.leader_recovery_state)?,
    })
}

fn answer_to_wire((id, answer): &(TopicPartition, RecoveryAnswer)) -> wire::RecoveryAnswer {
    wire::RecoveryAnswer {
        partition: Some(partition_to_wire(*id)),
        directory: uuid_to_wire(answer.directory.0),
        last_epoch: answer.last_epoch.0,
        log_end: answer.log_end.0,
        lossy: answer.lossy,
        synced_before_ack: answer.synced_before_ack,
    }
}

fn answer(a: wire::RecoveryAnswer) -> Result<(TopicPartition, RecoveryAnswer), WireError> {
    let answer = RecoveryAnswer {
        directory: DirectoryId(uuid(&a.directory, "directory")?),
        last_epoch: LeaderEpoch(a.last_epoch),
        log_end: Offset(a.log_end),
        lossy: a.lossy,
        synced_before_ack: a.synced_before_ack,
    };
    Ok((partition(&some(a.partition, "partition")?)?, answer))
}

fn pair_to_wire((name, value): &(String, Option<String>)) -> wire::NameValue {
    wire::NameValue { name: name.clone(), value: value.clone() }
}

fn pairs(list: Vec<wire::NameValue>) -> Vec<(String, Option<String>)> {
    list.into_iter().map(|pair| (pair.name, pair.value)).collect()
}

fn create_to_wire(t: &CreateTopic) -> wire::CreateTopic {
    let assignment = |(partition, replicas): &(PartitionIndex, Vec<BrokerId>)| wire::Assignment {
        partition: partition.0,
        replicas: ids_to_wire(replicas),
    };
    wire::CreateTopic {
        name: t.name.clone(),
        partitions: t.partitions,
        replication_factor: i32::from(t.replication_factor),
        assignments: t.assignments.iter().map(assignment).collect(),
        configs: t.configs.iter().map(pair_to_wire).collect(),
    }
}

fn create(t: wire::CreateTopic) -> Result<CreateTopic, WireError> {
    Ok(CreateTopic {
        name: t.name,
        partitions: t.partitions,
        replication_factor: small(t.replication_factor, "replication_factor")?,
        assignments: t.assignments.into_iter().map(|a| (PartitionIndex(a.partition), ids(a.replicas))).collect(),
        configs: pairs(t.configs),
    })
}

fn topic_ref_to_wire(topic: &TopicRef) -> wire::TopicRef {
    use wire::topic_ref::By;
    let by = match topic {
        TopicRef::Name(name) => By::Name(name.clone()),
        TopicRef::Id(id) => By::Id(uuid_to_wire(id.0)),
    };
    wire::TopicRef { by: Some(by) }
}

fn topic_ref(topic: wire::TopicRef) -> Result<TopicRef, WireError> {
    use wire::topic_ref::By;
    match some(topic.by, "topic")? {
        By::Name(name) => Ok(TopicRef::Name(name)),
        By::Id(id) => topic_id(&id).map(TopicRef::Id),
    }
}

fn more_to_wire(t: &MorePartitions) -> wire::MorePartitions {
    let assignments = |list: &Vec<Vec<BrokerId>>| wire::Assignments {
        partitions: list.iter().map(|replicas| wire::Replicas { ids: ids_to_wire(replicas) }).collect(),
    };
    wire::MorePartitions { name: t.name.clone(), count: t.count, assignments: t.assignments.as_ref().map(assignments) }
}

fn more(t: wire::MorePartitions) -> MorePartitions {
    let assignments = |list: wire::Assignments| list.partitions.into_iter().map(|replicas| ids(replicas.ids)).collect();
    MorePartitions { name: t.name, count: t.count, assignments: t.assignments.map(assignments) }
}

fn change_to_wire(change: &ConfigChange) -> wire::ConfigChange {
    use wire::config_change::Operation;
    let (operation, value) = match &change.operation {
        ConfigOperation::Set(value) => (Operation::Set, value.clone()),
        ConfigOperation::Delete => (Operation::Delete, None),
        ConfigOperation::Append(value) => (Operation::Append, value.clone()),
        ConfigOperation::Subtract(value) => (Operation::Subtract, value.clone()),
    };
    wire::ConfigChange { name: change.name.clone(), operation: operation.into(), value }
}

fn change(change: wire::ConfigChange) -> Result<ConfigChange, WireError> {
    use wire::config_change::Operation;
    let operation = match Operation::try_from(change.operation) {
        Ok(Operation::Set) => ConfigOperation::Set(change.value),
        Ok(Operation::Delete) => ConfigOperation::Delete,
        Ok(Operation::Append) => ConfigOperation::Append(change.value),
        Ok(Operation::Subtract) => ConfigOperation::Subtract(change.value),
        Ok(Operation::Unspecified) | Err(_) => return Err(WireError::Field("operation")),
    };
    Ok(ConfigChange { name: change.name, operation })
}

fn incremental_to_wire(r: &IncrementalAlterConfigs) -> wire::IncrementalAlterConfigs {
    let resources = r.resources.iter().map(|(of, changes)| wire::ResourceChanges {
        resource: Some(resource_to_wire(of)),
        changes: changes.iter().map(change_to_wire).collect(),
    });
    wire::IncrementalAlterConfigs { resources: resources.collect(), validate_only: r.validate_only }
}

fn incremental(r: wire::IncrementalAlterConfigs) -> Result<IncrementalAlterConfigs, WireError> {
    let of = |r: wire::ResourceChanges| Ok((resource(some(r.resource, "resource")?)?, each(r.changes, change)?));
    Ok(IncrementalAlterConfigs { resources: each(r.resources, of)?, validate_only: r.validate_only })
}

fn alter_to_wire(r: &AlterConfigs) -> wire::AlterConfigs {
    let resources = r.resources.iter().map(|(of, configs)| wire::ResourceConfigs {
        resource: Some(resource_to_wire(of)),
        configs: configs.iter().map(pair_to_wire).collect(),
    });
    wire::AlterConfigs { resources: resources.collect(), validate_only: r.validate_only }
}

fn alter(r: wire::AlterConfigs) -> Result<AlterConfigs, WireError> {
    let of = |r: wire::ResourceConfigs| Ok((resource(some(r.resource, "resource")?)?, pairs(r.configs)));
    Ok(AlterConfigs { resources: each(r.resources, of)?, validate_only: r.validate_only })
}

fn elect_to_wire(r: &ElectLeaders) -> wire::ElectLeaders {
    let named = |(topic, partition): &(String, PartitionIndex)| wire::NamedPartition {
        topic: topic.clone(),
        partition: partition.0,
    };
    let partitions =
        r.partitions.as_ref().map(|list| wire::NamedPartitions { partitions: list.iter().map(named).collect() });
    wire::ElectLeaders { unclean: r.election == ElectionType::Unclean, partitions }
}

fn elect(r: wire::ElectLeaders) -> ElectLeaders {
    let named = |list: wire::NamedPartitions| {
        list.partitions.into_iter().map(|p| (p.topic, PartitionIndex(p.partition))).collect()
    };
    let election = if r.unclean { ElectionType::Unclean } else { ElectionType::Preferred };
    ElectLeaders { election, partitions: r.partitions.map(named) }
}

fn assign_to_wire(r: &AssignReplicas) -> wire::AssignReplicas {
    let replica = |(id, directory): &(TopicPartition, DirectoryId)| wire::AssignedReplica {
        partition: Some(partition_to_wire(*id)),
        directory: uuid_to_wire(directory.0),
    };
    wire::AssignReplicas { broker: r.broker.0, epoch: r.epoch.0, replicas: r.replicas.iter().map(replica).collect() }
}

fn assign(r: wire::AssignReplicas) -> Result<AssignReplicas, WireError> {
    let replica = |replica: wire::AssignedReplica| {
        let directory = DirectoryId(uuid(&replica.directory, "directory")?);
        Ok((partition(&some(replica.partition, "partition")?)?, directory))
    };
    Ok(AssignReplicas { broker: BrokerId(r.broker), epoch: BrokerEpoch(r.epoch), replicas: each(r.replicas, replica)? })
}

fn reassign_to_wire(r: &AlterReassignments) -> wire::AlterReassignments {
    let replicas = |target: &Vec<BrokerId>| wire::Replicas { ids: ids_to_wire(target) };
    let reassignment = |r: &Reassignment| wire::Reassignment {
        topic: r.topic.clone(),
        partition: r.partition.0,
        target: r.target.as_ref().map(replicas),
    };
    wire::AlterReassignments {
        partitions: r.partitions.iter().map(reassignment).collect(),
        allow_factor_change: r.allow_factor_change,
    }
}

fn reassign(r: wire::AlterReassignments) -> AlterReassignments {
    let reassignment = |r: wire::Reassignment| Reassignment {
        topic: r.topic,
        partition: PartitionIndex(r.partition),
        target: r.target.map(|target| ids(target.ids)),
    };
    AlterReassignments {
        partitions: r.partitions.into_iter().map(reassignment).collect(),
        allow_factor_change: r.allow_factor_change,
    }
}

fn update_to_wire(r: &UpdateFeatures) -> wire::UpdateFeatures {
    let update = |update: &FeatureUpdate| wire::FeatureUpdate {
        name: update.name.clone(),
        level: i32::from(update.level),
        allow_downgrade: update.allow_downgrade,
    };
    wire::UpdateFeatures { updates: r.updates.iter().map(update).collect(), validate_only: r.validate_only }
}

fn update(r: wire::UpdateFeatures) -> Result<UpdateFeatures, WireError> {
    let update = |update: wire::FeatureUpdate| {
        let level = small(update.level, "level")?;
        Ok(FeatureUpdate { name: update.name, level, allow_downgrade: update.allow_downgrade })
    };
    Ok(UpdateFeatures { updates: each(r.updates, update)?, validate_only: r.validate_only })
}

fn error_to_wire(error: &ControlError) -> wire::Error {
    wire::Error { code: i32::from(error.code.code()), message: error.message.clone() }
}

fn control_error(error: wire::Error) -> Result<ControlError, WireError> {
    Ok(ControlError { code: ErrorCode::from_code(small(error.code, "code")?), message: error.message })
}

fn outcome(error: Option<wire::Error>) -> Result<Result<(), ControlError>, WireError> {
    Ok(match error {
        None => Ok(()),
        Some(error) => Err(control_error(error)?),
    })
}

fn failure<T>(result: &Result<T, ControlError>) -> Option<wire::Error> {
    result.as_ref().err().map(error_to_wire)
}

fn altered_to_wire(altered: &AlteredPartition) -> wire::AlteredPartition {
    let partition = Some(partition_to_wire(altered.partition));
    match &altered.result {
        Ok(now) => wire::AlteredPartition {
            partition,
            error: 0,
            leader: now.leader.0,
            leader_epoch: now.leader_epoch.0,
            isr: ids_to_wire(&now.isr),
            leader_recovery_state: recovery_to_wire(now.leader_recovery_state),
            partition_epoch: now.partition_epoch.0,
            min_isr: now.min_isr,
            ack_zones: now.ack_zones,
        },
        Err(error) => {
            wire::AlteredPartition { partition, error: i32::from(error.code()), ..wire::AlteredPartition::default() }
        }
    }
}

fn altered(a: wire::AlteredPartition) -> Result<AlteredPartition, WireError> {
    let result = match a.error {
        0 => Ok(PartitionNow {
            leader: BrokerId(a.leader),
            leader_epoch: LeaderEpoch(a.leader_epoch),
            isr: ids(a.isr),
            leader_recovery_state: recovery(a.leader_recovery_state)?,
            partition_epoch: PartitionEpoch(a.partition_epoch),
            min_isr: a.min_isr,
            ack_zones: a.ack_zones,
        }),
        error => Err(ErrorCode::from_code(small(error, "error")?)),
    };
    Ok(AlteredPartition { partition: partition(&some(a.partition, "partition")?)?, result })
}

fn created_to_wire(created: &CreatedTopic) -> wire::CreatedTopic {
    let topic = created.result.as_ref().ok();
    let configs = topic.into_iter().flat_map(|topic| &topic.configs);
    let config = |(name, value): (&String, &String)| wire::NameValue { name: name.clone(), value: Some(value.clone()) };
    wire::CreatedTopic {
        name: created.name.clone(),
        error: failure(&created.result),
        id: topic.map(|topic| uuid_to_wire(topic.id.0)).unwrap_or_default(),
        partitions: topic.map_or(0, |topic| topic.partitions),
        replication_factor: topic.map_or(0, |topic| i32::from(topic.replication_factor)),
        configs: configs.map(config).collect(),
    }
}

fn created(c: wire::CreatedTopic) -> Result<CreatedTopic, WireError> {
    let result = match c.error {
        Some(error) => Err(control_error(error)?),
        None => Ok(NewTopic {
            id: topic_id(&c.id)?,
            partitions: c.partitions,
            replication_factor: small(c.replication_factor, "replication_factor")?,
            configs: set_pairs(c.configs)?,
        }),
    };
    Ok(CreatedTopic { name: c.name, result })
}

fn set_pairs(list: Vec<wire::NameValue>) -> Result<BTreeMap<String, String>, WireError> {
    list.into_iter().map(|pair| Ok((pair.name, some(pair.value, "value")?))).collect()
}

fn deleted_to_wire(deleted: &DeletedTopic) -> wire::DeletedTopic {
    let (name, id) = deleted.result.as_ref().cloned().unwrap_or((String::new(), TopicId::NONE));
    wire::DeletedTopic {
        topic: Some(topic_ref_to_wire(&deleted.topic)),
        error: failure(&deleted.result),
        name,
        id: uuid_to_wire(id.0),
    }
}

fn deleted(d: wire::DeletedTopic) -> Result<DeletedTopic, WireError> {
    let result = match d.error {
        Some(error) => Err(control_error(error)?),
        None => Ok((d.name, topic_id(&d.id)?)),
    };
    Ok(DeletedTopic { topic: topic_ref(some(d.topic, "topic")?)?, result })
}

fn named_to_wire<'a>(results: impl Iterator<Item = (&'a String, &'a Result<(), ControlError>)>) -> wire::NamedResults {
    let result = |(name, result): (&String, &Result<(), ControlError>)| wire::NamedResult {
        name: name.clone(),
        error: failure(result),
    };
    wire::NamedResults { results: results.map(result).collect() }
}

fn config_results_to_wire(results: &[ConfigResult]) -> wire::ConfigResults {
    let result = |result: &ConfigResult| wire::ConfigResult {
        resource: Some(resource_to_wire(&result.resource)),
        error: failure(&result.result),
    };
    wire::ConfigResults { results: results.iter().map(result).collect() }
}

fn config_result(r: wire::ConfigResult) -> Result<ConfigResult, WireError> {
    Ok(ConfigResult { resource: resource(some(r.resource, "resource")?)?, result: outcome(r.error)? })
}

fn election_to_wire(result: &ElectionResult) -> wire::ElectionResult {
    partition_result_to_wire(&result.topic, result.partition, &result.result)
}

fn partition_result_to_wire(
    topic: &str,
    partition: PartitionIndex,
    result: &Result<(), ControlError>,
) -> wire::ElectionResult {
    wire::ElectionResult { topic: topic.to_owned(), partition: partition.0, error: failure(result) }
}

fn election(r: wire::ElectionResult) -> Result<ElectionResult, WireError> {
    Ok(ElectionResult { topic: r.topic, partition: PartitionIndex(r.partition), result: outcome(r.error)? })
}
