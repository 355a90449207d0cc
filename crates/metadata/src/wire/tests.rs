//! Values through bytes and back; noise; versions.

use std::collections::BTreeMap;

use model::{
    BootId, BrokerEpoch, BrokerId, ClusterId, DirectoryId, ErrorCode, Incarnation, LeaderEpoch, MetadataOffset, Offset,
    PartitionEpoch, PartitionIndex, ProducerId, TopicId, TopicPartition, Uuid,
};
use proptest::prelude::*;

use super::*;
use crate::control::*;
use crate::records::*;

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn brokers(numbers: &[i32]) -> Vec<BrokerId> {
    numbers.iter().copied().map(BrokerId).collect()
}

fn partition() -> Partition {
    Partition {
        topic_id: TopicId(id(5)),
        partition: PartitionIndex(3),
        replicas: brokers(&[1, 2, 3]),
        directories: vec![DirectoryId(id(1)), DirectoryId::NONE, DirectoryId(id(3))],
        adding: brokers(&[4]),
        removing: brokers(&[1]),
        isr: brokers(&[1, 2]),
        elr: brokers(&[3]),
        last_known_elr: brokers(&[1, 2, 3]),
        displaced: vec![],
        leader: BrokerId::NONE,
        last_leader: BrokerId(2),
        last_leader_directory: DirectoryId(id(2)),
        leader_epoch: LeaderEpoch(7),
        partition_epoch: PartitionEpoch(9),
        leader_recovery_state: LeaderRecoveryState::Recovering,
    }
}

fn listener() -> Listener {
    let security_protocol = SecurityProtocol::SaslSsl;
    Listener { name: "A".to_owned(), host: "h".to_owned(), port: 65_535, security_protocol }
}

fn records() -> Vec<MetadataRecord> {
    let mut empty = partition();
    empty.isr = vec![];
    empty.leader = BrokerId(1);
    vec![
        MetadataRecord::ClusterId(ClusterId(id(1))),
        MetadataRecord::FeatureLevel { name: "metadata.version".to_owned(), level: -3 },
        MetadataRecord::RegisterBroker(Box::new(BrokerRegistration {
            id: BrokerId(1),
            epoch: BrokerEpoch::NONE,
            incarnation: Incarnation(id(8)),
            boot: BootId::NONE,
            directories: vec![DirectoryId(id(1)), DirectoryId(id(2))],
            offline_directories: vec![DirectoryId(id(2))],
            cordoned_directories: vec![],
            listeners: vec![listener()],
            rack: Some(String::new()),
            features: features(),
            fenced: true,
            in_controlled_shutdown: true,
        })),
        MetadataRecord::BrokerChange(BrokerChange {
            id: BrokerId(1),
            epoch: BrokerEpoch(6),
            fenced: Some(false),
            in_controlled_shutdown: None,
            offline_directories: Some(vec![]),
            cordoned_directories: None,
        }),
        MetadataRecord::UnregisterBroker { id: BrokerId(1), epoch: BrokerEpoch(6) },
        MetadataRecord::ControllerRegistration(Box::new(controller())),
        MetadataRecord::Topic { id: TopicId(id(5)), name: "t".to_owned() },
        MetadataRecord::RemoveTopic { id: TopicId(id(5)) },
        MetadataRecord::Partition(Box::new(partition())),
        MetadataRecord::PartitionChange(Box::new(PartitionChange::between(&partition(), &empty))),
        MetadataRecord::PartitionChange(Box::new(PartitionChange::between(&partition(), &partition()))),
        config(ConfigResource::Topic("t".to_owned()), Some("1")),
        config(ConfigResource::Broker(BrokerId(4)), None),
        config(ConfigResource::DefaultBroker, Some("")),
        config(ConfigResource::Group("g".to_owned()), Some("1")),
        config(ConfigResource::ClientMetrics("m".to_owned()), Some("1")),
        MetadataRecord::ProducerIds { next: ProducerId(i64::MAX) },
    ]
}

fn config(resource: ConfigResource, value: Option<&str>) -> MetadataRecord {
    MetadataRecord::Config { resource, name: "n".to_owned(), value: value.map(str::to_owned) }
}

fn controller() -> ControllerRegistration {
    ControllerRegistration {
        id: BrokerId(2),
        incarnation: Incarnation(id(3)),
        directory: DirectoryId(id(4)),
        listeners: vec![listener()],
        features: features(),
    }
}

#[test]
fn each_kind_of_record_reads_back_as_it_was_written() {
    let records = records();
    assert_eq!(decode_records(&encode_records(&records)), Ok(records.clone()));
    assert_eq!(decode_records(&encode_records(&[])), Ok(vec![]));
    let sum: usize = records.iter().map(encoded_len).sum();
    assert!(encode_records(&records).len() <= sum + 2);
}

/// A new partition of topic 5 on these brokers, of which the first one is not in sync.
fn new_partition(index: i32, replicas: &[i32]) -> MetadataRecord {
    let id = TopicPartition { topic_id: TopicId(id(5)), partition: PartitionIndex(index) };
    let directories =
        replicas.iter().map(|broker| DirectoryId(self::id(u128::try_from(broker % 7).unwrap()))).collect();
    MetadataRecord::Partition(Box::new(Partition::new(id, brokers(replicas), directories, |new, broker| {
        broker != new.replicas[0]
    })))
}

/// `R67`: what is created at once goes into one entry.
#[test]
fn ten_thousand_new_partitions_fit_into_an_entry() {
    let records: Vec<_> = (0..10_000).map(|index| new_partition(index, &[index % 90, index % 90 + 1, 200])).collect();
    let bytes = encode_entry(&records);
    assert!(bytes.len() <= ENTRY_MAX && bytes.len() <= entry_len(&records) + 2, "{}", bytes.len());
    assert_eq!(decode_records(&bytes), Ok(records.clone()));
    assert!(encode_records(&records).len() > 8 * ENTRY_MAX);
    // What fits is written as before.
    assert_eq!(encode_entry(&records[..100]), encode_records(&records[..100]));
}

#[test]
fn only_partitions_as_new_ones_are_are_written_in_rows() {
    let changed = |change: fn(&mut Partition)| {
        let MetadataRecord::Partition(mut partition) = new_partition(1, &[1, 2, 3]) else { panic!() };
        change(&mut partition);
        MetadataRecord::Partition(partition)
    };
    let breaks = [
        changed(|new| new.leader_epoch = LeaderEpoch(1)),
        changed(|new| new.elr = brokers(&[1])),
        changed(|new| new.isr = brokers(&[3, 2])),
        changed(|new| new.isr = brokers(&[4])),
        changed(|new| new.leader = BrokerId(3)),
        changed(|new| new.last_known_elr = brokers(&[1])),
        changed(|new| new.displaced = vec![(BrokerId(1), DirectoryId(id(1)))]),
        changed(|new| new.directories = vec![]),
        changed(|new| new.partition = PartitionIndex(2)),
        changed(|new| new.topic_id = TopicId(id(6))),
        new_partition(1, &[1, 2]),
        new_partition(1, &[]),
        MetadataRecord::RemoveTopic { id: TopicId(id(5)) },
    ];
    for odd in breaks {
        let records = [new_partition(0, &[1, 2, 3]), odd, new_partition(2, &[2, 3, 1]), new_partition(3, &[3, 1, 2])];
        let rows = in_rows(&records);
        assert!(rows.len() > 1, "{:?}", records[1]);
        assert_eq!(decode_records(&batch(rows)), Ok(records.to_vec()));
    }
    let thin = changed(|new| new.last_known_elr = new.isr.clone());
    let records = [new_partition(0, &[1, 2, 3]), thin, new_partition(2, &[3, 3, 1])];
    let rows = in_rows(&records);
    assert_eq!(rows.len(), 1);
    assert_eq!(decode_records(&batch(rows)), Ok(records.to_vec()));
}

#[test]
fn a_row_that_contradicts_itself_is_refused() {
    use generated::metadata::v1::{NewPartitions, Record, record::Kind};
    let sound = {
        let records: Vec<_> = (0..3).map(|index| new_partition(index, &[1, 2])).collect();
        match new_partitions::to_wire(&records).unwrap().1.kind {
            Some(Kind::NewPartitions(row)) => row,
            other => panic!("{other:?}"),
        }
    };
    let decoded = |change: fn(&mut NewPartitions)| {
        let mut row = sound.clone();
        change(&mut row);
        decode_records(&batch(vec![Record { kind: Some(Kind::NewPartitions(row)) }.encode_to_vec()]))
    };
    assert_eq!(decoded(|_| ()).map(|records| records.len()), Ok(3));
    let bad = |field| Err(WireError::Field(field));
    assert_eq!(decoded(|row| row.factor = 0), bad("factor"));
    assert_eq!(decoded(|row| row.factor = 3), bad("factor"));
    assert_eq!(decoded(|row| row.factor = u32::MAX), bad("factor"));
    assert_eq!(decoded(|row| row.places[5] = 2), bad("places"));
    assert_eq!(decoded(|row| row.states.truncate(2)), bad("factor"));
    assert_eq!(decoded(|row| row.brokers.truncate(1)), bad("directories"));
    assert_eq!(decoded(|row| row.directories = None), bad("directories"));
    assert_eq!(decoded(|row| row.first = i32::MAX - 1), bad("first"));
    assert_eq!(decoded(|row| row.topic_id.truncate(15)), bad("topic_id"));
    // More than any entry has.
    let most = |row: &mut NewPartitions| {
        row.states.resize(RUNS_MAX + 1, 6);
        row.places.resize(2 * (RUNS_MAX + 1), 0);
    };
    assert_eq!(decoded(most), bad("states"));
}

fn tp() -> TopicPartition {
    TopicPartition { topic_id: TopicId(id(5)), partition: PartitionIndex(3) }
}

fn pair(value: Option<&str>) -> (String, Option<String>) {
    ("n".to_owned(), value.map(str::to_owned))
}

fn broker_requests() -> Vec<ControlRequest> {
    let (broker, epoch) = (BrokerId(1), BrokerEpoch(6));
    let answer = RecoveryAnswer {
        directory: DirectoryId(id(2)),
        last_epoch: LeaderEpoch::NONE,
        log_end: Offset(4),
        lossy: true,
        synced_before_ack: true,
    };
    vec![
        ControlRequest::RegisterBroker(RegisterBroker {
            broker,
            cluster_id: ClusterId::NONE,
            incarnation: Incarnation(id(8)),
            boot: BootId(id(9)),
            directories: vec![DirectoryId(id(1))],
            offline_directories: vec![DirectoryId(id(1))],
            cordoned_directories: vec![DirectoryId(id(1))],
            unidentified_directories: true,
            listeners: vec![listener()],
            rack: None,
            features: features(),
            previous_epoch: BrokerEpoch::NONE,
            lossy: vec![tp()],
        }),
        ControlRequest::Heartbeat(Heartbeat {
            broker,
            epoch,
            next_offset: MetadataOffset::NONE,
            want_fence: true,
            want_shutdown: false,
            offline_directories: vec![DirectoryId(id(1))],
            lossy: vec![tp()],
            full_directories: vec![],
            exhausted_directories: vec![DirectoryId(id(2))],
            cordoned_directories: vec![DirectoryId(id(1))],
        }),
        ControlRequest::AssignReplicas(AssignReplicas {
            broker: BrokerId(1),
            epoch: BrokerEpoch(6),
            replicas: vec![(tp(), DirectoryId(id(1)))],
        }),
        ControlRequest::RegisterController(controller()),
        ControlRequest::Suspect(Suspect { broker, epoch, reporter: BrokerId::NONE }),
        ControlRequest::Alive { broker, epoch },
        ControlRequest::AlterPartitions(AlterPartitions {
            broker,
            epoch,
            partitions: vec![AlterPartition {
                partition: tp(),
                leader_epoch: LeaderEpoch(1),
                partition_epoch: PartitionEpoch(2),
                isr: vec![(broker, epoch)],
                leader_recovery_state: LeaderRecoveryState::Recovering,
            }],
        }),
        ControlRequest::RecoveryReport(RecoveryReport { broker, epoch, answers: vec![(tp(), answer)] }),
        ControlRequest::AllocateProducerIds { broker, epoch },
        ControlRequest::UnregisterBroker { broker },
    ]
}

fn admin_requests() -> Vec<ControlRequest> {
    let of = ConfigResource::Broker(BrokerId(4));
    let change = |operation| ConfigChange { name: "n".to_owned(), operation };
    let more = |assignments| MorePartitions { name: "t".to_owned(), count: 4, assignments };
    vec![
        ControlRequest::CreateTopics(CreateTopics {
            topics: vec![CreateTopic {
                name: "t".to_owned(),
                partitions: -1,
                replication_factor: -1,
                assignments: vec![(PartitionIndex(0), brokers(&[1, 2]))],
                configs: vec![pair(Some("v")), pair(None)],
            }],
            validate_only: true,
            seed: u128::MAX - 5,
        }),
        ControlRequest::DeleteTopics(DeleteTopics {
            topics: vec![TopicRef::Name("t".to_owned()), TopicRef::Id(TopicId(id(5)))],
        }),
        ControlRequest::CreatePartitions(CreatePartitions {
            topics: vec![more(None), more(Some(vec![])), more(Some(vec![brokers(&[1]), vec![]]))],
            validate_only: false,
        }),
        ControlRequest::IncrementalAlterConfigs(IncrementalAlterConfigs {
            resources: vec![(
                of.clone(),
                vec![
                    change(ConfigOperation::Set(None)),
                    change(ConfigOperation::Delete),
                    change(ConfigOperation::Append(Some("a".to_owned()))),
                    change(ConfigOperation::Subtract(Some(String::new()))),
                ],
            )],
            validate_only: true,
        }),
        ControlRequest::AlterConfigs(AlterConfigs {
            resources: vec![(of, vec![pair(Some("v")), pair(None)])],
            validate_only: false,
        }),
        ControlRequest::ElectLeaders(ElectLeaders { election: ElectionType::Unclean, partitions: None }),
        ControlRequest::ElectLeaders(ElectLeaders {
            election: ElectionType::Preferred,
            partitions: Some(vec![("t".to_owned(), PartitionIndex(2))]),
        }),
        ControlRequest::AlterReassignments(AlterReassignments {
            partitions: vec![
                Reassignment { topic: "t".to_owned(), partition: PartitionIndex(2), target: None },
                Reassignment { topic: "t".to_owned(), partition: PartitionIndex(3), target: Some(brokers(&[2, 1])) },
            ],
            allow_factor_change: true,
        }),
        ControlRequest::UpdateFeatures(UpdateFeatures {
            updates: vec![FeatureUpdate { name: "f".to_owned(), level: 2, allow_downgrade: true }],
            validate_only: true,
        }),
    ]
}

#[test]
fn each_request_reads_back_as_it_was_written() {
    for request in broker_requests().into_iter().chain(admin_requests()) {
        assert_eq!(decode_request(&encode_request(&request)), Ok(request));
    }
}

fn responses() -> Vec<ControlResponse> {
    let error = || ControlError::new(ErrorCode::UnknownServerError, "why");
    let of = ConfigResource::DefaultBroker;
    let now = PartitionNow {
        leader: BrokerId(1),
        leader_epoch: LeaderEpoch(2),
        isr: brokers(&[1]),
        leader_recovery_state: LeaderRecoveryState::Recovering,
        partition_epoch: PartitionEpoch(3),
        min_isr: 2,
        ack_zones: 3,
    };
    let configs = [("n".to_owned(), "v".to_owned())].into();
    let new = NewTopic { id: TopicId(id(5)), partitions: 4, replication_factor: 3, configs };
    let by_name = TopicRef::Name("t".to_owned());
    let name = || "t".to_owned();
    vec![
        ControlResponse::Refused(error()),
        ControlResponse::Done,
        ControlResponse::RegisterBroker { epoch: BrokerEpoch(4) },
        ControlResponse::Heartbeat(HeartbeatAnswer {
            is_fenced: true,
            is_caught_up: false,
            should_shut_down: true,
            recovery_wanted: vec![tp()],
        }),
        ControlResponse::AlterPartitions(vec![
            AlteredPartition { partition: tp(), result: Ok(now) },
            AlteredPartition { partition: tp(), result: Err(ErrorCode::IneligibleReplica) },
        ]),
        ControlResponse::CreateTopics(vec![
            CreatedTopic { name: name(), result: Ok(new) },
            CreatedTopic { name: name(), result: Err(error()) },
        ]),
        ControlResponse::DeleteTopics(vec![
            DeletedTopic { topic: by_name, result: Ok((name(), TopicId(id(5)))) },
            DeletedTopic { topic: TopicRef::Id(TopicId(id(5))), result: Err(error()) },
        ]),
        ControlResponse::CreatePartitions(vec![TopicResult { name: name(), result: Err(error()) }]),
        ControlResponse::IncrementalAlterConfigs(vec![ConfigResult { resource: of.clone(), result: Ok(()) }]),
        ControlResponse::AlterConfigs(vec![ConfigResult { resource: of, result: Err(error()) }]),
        ControlResponse::ElectLeaders(vec![ElectionResult {
            topic: name(),
            partition: PartitionIndex(2),
            result: Err(error()),
        }]),
        ControlResponse::AlterReassignments(vec![
            ReassignmentResult { topic: name(), partition: PartitionIndex(2), result: Err(error()) },
            ReassignmentResult { topic: name(), partition: PartitionIndex(3), result: Ok(()) },
        ]),
        ControlResponse::AllocateProducerIds { first: ProducerId(1_000), len: 1_000 },
        ControlResponse::UpdateFeatures(vec![FeatureResult { name: name(), result: Ok(()) }]),
    ]
}

#[test]
fn each_response_reads_back_as_it_was_written() {
    for response in responses() {
        assert_eq!(decode_response(&encode_response(&response)), Ok(response));
    }
}

#[test]
fn what_a_newer_version_wrote_is_refused_by_its_version() {
    // Field 1 is the version in each of the three.
    let newer = [0x08, 0x02];
    assert_eq!(decode_records(&newer), Err(WireError::Newer { found: 2 }));
    assert_eq!(decode_request(&newer), Err(WireError::Newer { found: 2 }));
    assert_eq!(decode_response(&newer), Err(WireError::Newer { found: 2 }));
}

#[test]
fn a_kind_that_is_not_known_is_refused() {
    // A record with field 200 only.
    let record = [0xc2, 0x0c, 0x00];
    let batch = [&[0x08, 0x01, 0x12, 0x03], &record[..]].concat();
    assert_eq!(decode_records(&batch), Err(WireError::UnknownKind { what: "record", found: 1 }));
    assert_eq!(decode_request(&[0x08, 0x01]), Err(WireError::UnknownKind { what: "request", found: 1 }));
    assert_eq!(decode_records(&[]), Err(WireError::Field("version")));
}

/// The features of version 1, whatever this program can do besides.
fn features() -> BTreeMap<String, FeatureRange> {
    BTreeMap::from([("metadata.version".to_owned(), FeatureRange { min: 1, max: 1 })])
}

/// The format on disk does not change: these bytes were written by version 1.
#[test]
fn version_1_is_what_it_was() {
    let record = MetadataRecord::FeatureLevel { name: "f".to_owned(), level: 1 };
    let bytes = [0x08, 0x01, 0x12, 0x07, 0x12, 0x05, 0x0a, 0x01, b'f', 0x10, 0x01];
    assert_eq!(encode_records(&[record]), bytes);
    assert_eq!(sum_of(&encode_records(&records())), 6_251_483_132_106_795_219);
}

/// Added since then. It is in snapshots of a metadata that was restored only: a reader from before refuses those (R80).
#[test]
fn where_the_metadata_was_restored_travels_with_its_snapshots() {
    let records = [MetadataRecord::Restored { at: MetadataOffset(u64::MAX) }];
    assert_eq!(encode_records(&records)[..5], [0x08, 0x01, 0x12, 0x0d, 0x6a]);
    assert_eq!(decode_records(&encode_records(&records)).unwrap(), records);
}

/// What was added to the format since then: fields that a reader from before passes over.
#[test]
fn cordoned_directories_travel_with_registrations_and_their_changes() {
    let mut records = records();
    for record in &mut records {
        match record {
            MetadataRecord::RegisterBroker(broker) => broker.cordoned_directories = vec![DirectoryId(id(1))],
            MetadataRecord::BrokerChange(change) => change.cordoned_directories = Some(vec![DirectoryId(id(1))]),
            _ => {}
        }
    }
    assert_eq!(decode_records(&encode_records(&records)), Ok(records));
}

#[test]
fn displaced_replicas_travel_with_partitions_and_their_changes() {
    let displaced = vec![(BrokerId(3), DirectoryId(id(4))), (BrokerId(1), DirectoryId::NONE)];
    let whole = Partition { displaced: displaced.clone(), ..partition() };
    let records = [
        MetadataRecord::PartitionChange(Box::new(PartitionChange::between(&partition(), &whole))),
        MetadataRecord::PartitionChange(Box::new(PartitionChange::between(&whole, &partition()))),
        MetadataRecord::Partition(Box::new(whole)),
    ];
    assert_eq!(decode_records(&encode_records(&records)), Ok(records.to_vec()));
    for (record, length) in records.iter().zip([2, 0, 2]) {
        let found = match record {
            MetadataRecord::PartitionChange(change) => change.displaced.as_ref().map(Vec::len),
            MetadataRecord::Partition(partition) => Some(partition.displaced.len()),
            _ => None,
        };
        assert_eq!(found, Some(length));
    }
}

#[test]
fn displaced_replicas_without_as_many_directories_are_refused() {
    use generated::metadata::v1::{Record, record::Kind};
    let whole = Partition { displaced: vec![(BrokerId(3), DirectoryId(id(4)))], ..partition() };
    let mut wire = records::partition_to_wire(&whole);
    wire.displaced.push(1);
    let record = Record { kind: Some(Kind::Partition(wire)) };
    assert_eq!(decode_records(&batch(vec![record.encode_to_vec()])), Err(WireError::Field("displaced")));
}

#[test]
fn the_boot_of_a_machine_travels_with_registrations() {
    let mut record = records().remove(2);
    let MetadataRecord::RegisterBroker(broker) = &mut record else { panic!("{record:?}") };
    broker.boot = BootId(id(9));
    assert_eq!(decode_records(&encode_records(std::slice::from_ref(&record))), Ok(vec![record]));
}

/// A plain sum, enough to notice a change.
fn sum_of(bytes: &[u8]) -> u64 {
    bytes.iter().fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

proptest! {
    #[test]
    fn noise_is_an_error_or_a_value_but_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let versioned = [&[0x08, 0x01][..], &bytes].concat();
        for bytes in [&bytes, &versioned] {
            drop((decode_records(bytes), decode_request(bytes), decode_response(bytes)));
        }
    }

    #[test]
    fn a_damaged_message_is_an_error_or_a_value_that_reads_back(
        which in 0..14usize, at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>(),
    ) {
        let mut batch = encode_records(&records()[which..=which]);
        let at = at.index(batch.len());
        if cut { batch.truncate(at) } else { batch[at] = byte }
        if let Ok(records) = decode_records(&batch) {
            prop_assert_eq!(decode_records(&encode_records(&records)), Ok(records));
        }
    }
}
