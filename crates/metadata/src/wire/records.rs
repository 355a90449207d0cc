//! Records to and from their generated types.

use std::collections::BTreeMap;

use model::{
    BrokerEpoch, BrokerId, ClusterId, DirectoryId, Incarnation, LeaderEpoch, MetadataOffset, PartitionEpoch,
    PartitionIndex, ProducerId,
};

use super::generated::metadata::v1 as wire;
use super::generated::metadata::v1::record::Kind;
use super::{
    WireError, boot, boot_to_wire, directories, directories_to_wire, ids, ids_to_wire, small, some, topic_id, uuid,
    uuid_to_wire,
};
use crate::records::{
    BrokerChange, BrokerRegistration, ConfigResource, ControllerRegistration, FeatureRange, LeaderRecoveryState,
    Listener, MetadataRecord, Partition, PartitionChange, SecurityProtocol,
};

pub(super) fn to_wire(record: &MetadataRecord) -> wire::Record {
    let kind = match record {
        MetadataRecord::ClusterId(id) => Kind::ClusterId(uuid_to_wire(id.0)),
        MetadataRecord::FeatureLevel { name, level } => {
            Kind::FeatureLevel(wire::FeatureLevel { name: name.clone(), level: i32::from(*level) })
        }
        MetadataRecord::RegisterBroker(broker) => Kind::RegisterBroker(registration_to_wire(broker)),
        MetadataRecord::BrokerChange(change) => Kind::BrokerChange(wire::BrokerChange {
            id: change.id.0,
            epoch: change.epoch.0,
            fenced: change.fenced,
            in_controlled_shutdown: change.in_controlled_shutdown,
            offline_directories: change.offline_directories.as_deref().map(packed_to_wire),
            cordoned_directories: change.cordoned_directories.as_deref().map(packed_to_wire),
        }),
        MetadataRecord::UnregisterBroker { id, epoch } => {
            Kind::UnregisterBroker(wire::UnregisterBroker { id: id.0, epoch: epoch.0 })
        }
        MetadataRecord::ControllerRegistration(controller) => {
            Kind::ControllerRegistration(controller_to_wire(controller))
        }
        MetadataRecord::Topic { id, name } => Kind::Topic(wire::Topic { id: uuid_to_wire(id.0), name: name.clone() }),
        MetadataRecord::RemoveTopic { id } => Kind::RemoveTopic(wire::RemoveTopic { id: uuid_to_wire(id.0) }),
        MetadataRecord::Partition(partition) => Kind::Partition(partition_to_wire(partition)),
        MetadataRecord::PartitionChange(change) => Kind::PartitionChange(change_to_wire(change)),
        MetadataRecord::Config { resource, name, value } => Kind::Config(wire::Config {
            resource: Some(resource_to_wire(resource)),
            name: name.clone(),
            value: value.clone(),
        }),
        MetadataRecord::ProducerIds { next } => Kind::ProducerIds(wire::ProducerIds { next: next.0 }),
        MetadataRecord::Restored { at } => Kind::Restored(wire::Restored { at: at.0 }),
    };
    wire::Record { kind: Some(kind) }
}

pub(super) fn from_wire(record: wire::Record, version: u32) -> Result<MetadataRecord, WireError> {
    let kind = record.kind.ok_or(WireError::UnknownKind { what: "record", found: version })?;
    Ok(match kind {
        Kind::ClusterId(id) => MetadataRecord::ClusterId(ClusterId(uuid(&id, "cluster_id")?)),
        Kind::FeatureLevel(wire::FeatureLevel { name, level }) => {
            MetadataRecord::FeatureLevel { name, level: small(level, "level")? }
        }
        Kind::RegisterBroker(broker) => MetadataRecord::RegisterBroker(Box::new(registration(broker)?)),
        Kind::BrokerChange(change) => MetadataRecord::BrokerChange(BrokerChange {
            id: BrokerId(change.id),
            epoch: BrokerEpoch(change.epoch),
            fenced: change.fenced,
            in_controlled_shutdown: change.in_controlled_shutdown,
            offline_directories: change.offline_directories.map(|list| packed(&list)).transpose()?,
            cordoned_directories: change.cordoned_directories.map(|list| packed(&list)).transpose()?,
        }),
        Kind::UnregisterBroker(wire::UnregisterBroker { id, epoch }) => {
            MetadataRecord::UnregisterBroker { id: BrokerId(id), epoch: BrokerEpoch(epoch) }
        }
        Kind::ControllerRegistration(found) => MetadataRecord::ControllerRegistration(Box::new(controller(found)?)),
        Kind::Topic(wire::Topic { id, name }) => MetadataRecord::Topic { id: topic_id(&id)?, name },
        Kind::RemoveTopic(wire::RemoveTopic { id }) => MetadataRecord::RemoveTopic { id: topic_id(&id)? },
        Kind::Partition(found) => MetadataRecord::Partition(Box::new(partition(found)?)),
        Kind::PartitionChange(found) => MetadataRecord::PartitionChange(Box::new(change(found)?)),
        // Several records: see `new_partitions`.
        Kind::NewPartitions(_) => return Err(WireError::Field("new_partitions")),
        Kind::Config(wire::Config { resource: of, name, value }) => {
            MetadataRecord::Config { resource: resource(some(of, "resource")?)?, name, value }
        }
        Kind::ProducerIds(wire::ProducerIds { next }) => MetadataRecord::ProducerIds { next: ProducerId(next) },
        Kind::Restored(wire::Restored { at }) => MetadataRecord::Restored { at: MetadataOffset(at) },
    })
}

fn registration_to_wire(broker: &BrokerRegistration) -> wire::BrokerRegistration {
    wire::BrokerRegistration {
        id: broker.id.0,
        epoch: broker.epoch.0,
        incarnation: uuid_to_wire(broker.incarnation.0),
        boot: boot_to_wire(broker.boot),
        directories: directories_to_wire(&broker.directories),
        offline_directories: directories_to_wire(&broker.offline_directories),
        cordoned_directories: directories_to_wire(&broker.cordoned_directories),
        listeners: listeners_to_wire(&broker.listeners),
        rack: broker.rack.clone(),
        features: features_to_wire(&broker.features),
        fenced: broker.fenced,
        in_controlled_shutdown: broker.in_controlled_shutdown,
    }
}

fn registration(broker: wire::BrokerRegistration) -> Result<BrokerRegistration, WireError> {
    Ok(BrokerRegistration {
        id: BrokerId(broker.id),
        epoch: BrokerEpoch(broker.epoch),
        incarnation: Incarnation(uuid(&broker.incarnation, "incarnation")?),
        boot: boot(&broker.boot)?,
        directories: directories(&broker.directories)?,
        offline_directories: directories(&broker.offline_directories)?,
        cordoned_directories: directories(&broker.cordoned_directories)?,
        listeners: listeners(broker.listeners)?,
        rack: broker.rack,
        features: features(broker.features)?,
        fenced: broker.fenced,
        in_controlled_shutdown: broker.in_controlled_shutdown,
    })
}

pub(super) fn controller_to_wire(controller: &ControllerRegistration) -> wire::ControllerRegistration {
    wire::ControllerRegistration {
        id: controller.id.0,
        incarnation: uuid_to_wire(controller.incarnation.0),
        directory: uuid_to_wire(controller.directory.0),
        listeners: listeners_to_wire(&controller.listeners),
        features: features_to_wire(&controller.features),
    }
}

pub(super) fn controller(controller: wire::ControllerRegistration) -> Result<ControllerRegistration, WireError> {
    Ok(ControllerRegistration {
        id: BrokerId(controller.id),
        incarnation: Incarnation(uuid(&controller.incarnation, "incarnation")?),
        directory: DirectoryId(uuid(&controller.directory, "directory")?),
        listeners: listeners(controller.listeners)?,
        features: features(controller.features)?,
    })
}

pub(super) fn listeners_to_wire(listeners: &[Listener]) -> Vec<wire::Listener> {
    let listener = |listener: &Listener| wire::Listener {
        name: listener.name.clone(),
        host: listener.host.clone(),
        port: u32::from(listener.port),
        security_protocol: i32::from(listener.security_protocol.code()),
    };
    listeners.iter().map(listener).collect()
}

pub(super) fn listeners(list: Vec<wire::Listener>) -> Result<Vec<Listener>, WireError> {
    let listener = |listener: wire::Listener| {
        let protocol = small(listener.security_protocol, "security_protocol")?;
        Ok(Listener {
            name: listener.name,
            host: listener.host,
            port: u16::try_from(listener.port).map_err(|_| WireError::Field("port"))?,
            security_protocol: some(SecurityProtocol::from_code(protocol), "security_protocol")?,
        })
    };
    list.into_iter().map(listener).collect()
}

pub(super) fn features_to_wire(features: &BTreeMap<String, FeatureRange>) -> Vec<wire::FeatureRange> {
    let feature = |(name, range): (&String, &FeatureRange)| wire::FeatureRange {
        name: name.clone(),
        min: i32::from(range.min),
        max: i32::from(range.max),
    };
    features.iter().map(feature).collect()
}

pub(super) fn features(list: Vec<wire::FeatureRange>) -> Result<BTreeMap<String, FeatureRange>, WireError> {
    let feature = |feature: wire::FeatureRange| {
        Ok((feature.name, FeatureRange { min: small(feature.min, "min")?, max: small(feature.max, "max")? }))
    };
    list.into_iter().map(feature).collect()
}

pub(super) fn packed_to_wire(directories: &[DirectoryId]) -> wire::Directories {
    wire::Directories { ids: directories.iter().flat_map(|each| *each.0.as_bytes()).collect() }
}

pub(super) fn packed(list: &wire::Directories) -> Result<Vec<DirectoryId>, WireError> {
    list.ids.chunks(16).map(|bytes| uuid(bytes, "directories").map(DirectoryId)).collect()
}

fn brokers_to_wire(ids: &[BrokerId]) -> wire::Brokers {
    wire::Brokers { ids: ids_to_wire(ids) }
}

fn brokers(list: Option<wire::Brokers>) -> Option<Vec<BrokerId>> {
    list.map(|list| ids(list.ids))
}

fn displaced_to_wire(displaced: &[(BrokerId, DirectoryId)]) -> (wire::Brokers, wire::Directories) {
    let (brokers, from): (Vec<_>, Vec<_>) = displaced.iter().copied().unzip();
    (brokers_to_wire(&brokers), packed_to_wire(&from))
}

fn displaced(brokers: &[i32], from: Option<&wire::Directories>) -> Result<Vec<(BrokerId, DirectoryId)>, WireError> {
    let from = from.map(packed).transpose()?.unwrap_or_default();
    if brokers.len() != from.len() {
        return Err(WireError::Field("displaced"));
    }
    Ok(brokers.iter().copied().map(BrokerId).zip(from).collect())
}

pub(super) fn recovery_to_wire(state: LeaderRecoveryState) -> i32 {
    match state {
        LeaderRecoveryState::Recovered => wire::LeaderRecoveryState::Recovered.into(),
        LeaderRecoveryState::Recovering => wire::LeaderRecoveryState::Recovering.into(),
    }
}

pub(super) fn recovery(state: i32) -> Result<LeaderRecoveryState, WireError> {
    match wire::LeaderRecoveryState::try_from(state) {
        Ok(wire::LeaderRecoveryState::Recovered) => Ok(LeaderRecoveryState::Recovered),
        Ok(wire::LeaderRecoveryState::Recovering) => Ok(LeaderRecoveryState::Recovering),
        Err(_) => Err(WireError::Field("leader_recovery_state")),
    }
}

pub(super) fn partition_to_wire(partition: &Partition) -> wire::Partition {
    wire::Partition {
        topic_id: uuid_to_wire(partition.topic_id.0),
        partition: partition.partition.0,
        replicas: ids_to_wire(&partition.replicas),
        directories: Some(packed_to_wire(&partition.directories)),
        adding: ids_to_wire(&partition.adding),
        removing: ids_to_wire(&partition.removing),
        isr: ids_to_wire(&partition.isr),
        elr: ids_to_wire(&partition.elr),
        last_known_elr: ids_to_wire(&partition.last_known_elr),
        displaced: displaced_to_wire(&partition.displaced).0.ids,
        displaced_from: Some(displaced_to_wire(&partition.displaced).1).filter(|from| !from.ids.is_empty()),
        leader: partition.leader.0,
        last_leader: partition.last_leader.0,
        last_leader_directory: uuid_to_wire(partition.last_leader_directory.0),
        leader_epoch: partition.leader_epoch.0,
        partition_epoch: partition.partition_epoch.0,
        leader_recovery_state: recovery_to_wire(partition.leader_recovery_state),
    }
}

fn partition(partition: wire::Partition) -> Result<Partition, WireError> {
    Ok(Partition {
        topic_id: topic_id(&partition.topic_id)?,
        partition: PartitionIndex(partition.partition),
        replicas: ids(partition.replicas),
        directories: packed(&some(partition.directories, "directories")?)?,
        adding: ids(partition.adding),
        removing: ids(partition.removing),
        isr: ids(partition.isr),
        elr: ids(partition.elr),
        last_known_elr: ids(partition.last_known_elr),
        displaced: displaced(&partition.displaced, partition.displaced_from.as_ref())?,
        leader: BrokerId(partition.leader),
        last_leader: BrokerId(partition.last_leader),
        last_leader_directory: DirectoryId(uuid(&partition.last_leader_directory, "last_leader_directory")?),
        leader_epoch: LeaderEpoch(partition.leader_epoch),
        partition_epoch: PartitionEpoch(partition.partition_epoch),
        leader_recovery_state: recovery(partition.leader_recovery_state)?,
    })
}

fn change_to_wire(change: &PartitionChange) -> wire::PartitionChange {
    let brokers = |list: &Option<Vec<BrokerId>>| list.as_deref().map(brokers_to_wire);
    wire::PartitionChange {
        topic_id: uuid_to_wire(change.topic_id.0),
        partition: change.partition.0,
        partition_epoch: change.partition_epoch.0,
        replicas: brokers(&change.replicas),
        directories: change.directories.as_deref().map(packed_to_wire),
        adding: brokers(&change.adding),
        removing: brokers(&change.removing),
        isr: brokers(&change.isr),
        elr: brokers(&change.elr),
        last_known_elr: brokers(&change.last_known_elr),
        displaced: change.displaced.as_deref().map(|displaced| displaced_to_wire(displaced).0),
        displaced_from: change.displaced.as_deref().map(|displaced| displaced_to_wire(displaced).1),
        leader: change.leader.map(|leader| leader.0),
        last_leader: change.last_leader.map(|leader| leader.0),
        last_leader_directory: change.last_leader_directory.map(|directory| uuid_to_wire(directory.0)),
        leader_epoch: change.leader_epoch.map(|epoch| epoch.0),
        leader_recovery_state: change.leader_recovery_state.map(recovery_to_wire),
    }
}

fn change(change: wire::PartitionChange) -> Result<PartitionChange, WireError> {
    let directory = |bytes: &Vec<u8>| uuid(bytes, "last_leader_directory").map(DirectoryId);
    Ok(PartitionChange {
        topic_id: topic_id(&change.topic_id)?,
        partition: PartitionIndex(change.partition),
        partition_epoch: PartitionEpoch(change.partition_epoch),
        replicas: brokers(change.replicas),
        directories: change.directories.map(|list| packed(&list)).transpose()?,
        adding: brokers(change.adding),
        removing: brokers(change.removing),
        isr: brokers(change.isr),
        elr: brokers(change.elr),
        last_known_elr: brokers(change.last_known_elr),
        displaced: change
            .displaced
            .map(|brokers| displaced(&brokers.ids, change.displaced_from.as_ref()))
            .transpose()?,
        leader: change.leader.map(BrokerId),
        last_leader: change.last_leader.map(BrokerId),
        last_leader_directory: change.last_leader_directory.as_ref().map(directory).transpose()?,
        leader_epoch: change.leader_epoch.map(LeaderEpoch),
        leader_recovery_state: change.leader_recovery_state.map(recovery).transpose()?,
    })
}

pub(super) fn resource_to_wire(resource: &ConfigResource) -> wire::ConfigResource {
    use wire::config_resource::Type;
    let kind = match resource {
        ConfigResource::Topic(_) => Type::Topic,
        ConfigResource::Broker(_) => Type::Broker,
        ConfigResource::DefaultBroker => Type::DefaultBroker,
        ConfigResource::Group(_) => Type::Group,
        ConfigResource::ClientMetrics(_) => Type::ClientMetrics,
    };
    wire::ConfigResource { r#type: kind.into(), name: resource.name() }
}

pub(super) fn resource(resource: wire::ConfigResource) -> Result<ConfigResource, WireError> {
    use wire::config_resource::Type;
    let bad = WireError::Field("resource");
    match Type::try_from(resource.r#type) {
        Ok(Type::Topic) => Ok(ConfigResource::Topic(resource.name)),
        Ok(Type::Broker) => resource.name.parse().map(|id| ConfigResource::Broker(BrokerId(id))).map_err(|_| bad),
        Ok(Type::DefaultBroker) => Ok(ConfigResource::DefaultBroker),
        Ok(Type::Group) => Ok(ConfigResource::Group(resource.name)),
        Ok(Type::ClientMetrics) => Ok(ConfigResource::ClientMetrics(resource.name)),
        Ok(Type::Unspecified) | Err(_) => Err(bad),
    }
}
