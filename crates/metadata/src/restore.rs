//! An image that is older than what the cluster did since goes on as a later one (`R80`): a backup that is put back, or what
//! one voter had where the majority is lost.
//!
//! Invariants, of the image that comes out against every image that the old one could have become within the distances
//! below: each number that somebody may hold on to is greater (metadata offsets, the epochs of brokers, leaders and
//! partitions, producer ids), and no replica is taken for in sync, nor any broker for alive, for what the old image says.
//! What it says of topics, configs and placement stays.

use model::{BrokerEpoch, BrokerId, DirectoryId, Incarnation, LeaderEpoch, MetadataOffset, PartitionEpoch, ProducerId};

use crate::image::MetadataImage;
use crate::records::{BrokerRegistration, LeaderRecoveryState, MetadataRecord, Partition};

/// How far leader and partition epochs move; and further by the time, by less than as much again. An election that was lost with
/// the metadata raised one of them by one.
pub const EPOCHS: i32 = 1 << 20;
/// How far metadata offsets move, and with them the epochs of brokers; and further by the time.
pub const OFFSETS: u64 = 1 << 32;
/// How far the next producer id moves; and further by the time.
pub const PRODUCER_IDS: i64 = 1 << 40;
/// How much further for each second since [`BEGINNING_S`]: more than anybody gives out in one.
const A_SECOND: u64 = 1 << 24;

/// 2025-01-01 in seconds since 1970. No metadata is older.
const BEGINNING_S: u64 = 1_735_689_600;
/// A clock that is further on than this after [`BEGINNING_S`] is wrong.
const CLOCK_MAX_S: u64 = 1 << 30;

/// A number that is too near its end to be raised.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{what} is {value}, too near its end to be raised above what the brokers may know: this metadata cannot be restored"
)]
pub struct Exhausted {
    /// Which.
    pub what: String,
    /// Where it stands.
    pub value: i64,
}

/// What was raised, and how far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Raised {
    /// Where the metadata goes on.
    pub next_offset: MetadataOffset,
    /// The next producer id.
    pub next_producer_id: ProducerId,
    /// How many partitions wait for a leader.
    pub partitions: usize,
    /// How far their epochs moved.
    pub epochs_by: i32,
    /// How many brokers have to register anew.
    pub brokers: usize,
}

/// The image that a node goes on with. `now_s`, in seconds since 1970, keeps two restorations of one backup apart: without
/// it the second would give out once more what was given out after the first.
///
/// # Errors
/// [`Exhausted`]: nothing may go on with a number that was in use already.
pub fn go_on(image: &MetadataImage, now_s: u64) -> Result<(MetadataImage, Raised), Exhausted> {
    let since = now_s.saturating_sub(BEGINNING_S);
    let since = if since < CLOCK_MAX_S { since } else { 0 };
    let by_time = since * A_SECOND;
    let epochs_by = EPOCHS + i32::try_from(since).unwrap_or(0) % EPOCHS;
    let before = image.next_offset().0;
    let exhausted = |what: &str, value: i64| Exhausted { what: what.to_owned(), value };
    let next = before.checked_add(OFFSETS + by_time).filter(|next| i64::try_from(*next).is_ok());
    let next = next.ok_or_else(|| exhausted("the next metadata offset", i64::try_from(before).unwrap_or(i64::MAX)))?;
    let ids = image.next_producer_id().0;
    let next_id = i64::try_from(by_time).ok().and_then(|by_time| ids.checked_add(PRODUCER_IDS + by_time));
    let next_id = next_id.ok_or_else(|| exhausted("the next producer id", ids))?;
    let mut records = Vec::new();
    for record in image.to_records() {
        records.push(match record {
            MetadataRecord::ProducerIds { .. } | MetadataRecord::Restored { .. } => continue,
            MetadataRecord::RegisterBroker(broker) => {
                MetadataRecord::RegisterBroker(Box::new(unproven(*broker, next - before)?))
            }
            MetadataRecord::Partition(partition) => {
                let topic = image.topic(partition.topic_id).map_or("", |topic| &topic.name);
                MetadataRecord::Partition(Box::new(undecided(*partition, topic, epochs_by)?))
            }
            other => other,
        });
    }
    let next_producer_id = ProducerId(next_id);
    let next_offset = MetadataOffset(next);
    records.push(MetadataRecord::ProducerIds { next: next_producer_id });
    records.push(MetadataRecord::Restored { at: next_offset });
    let restored = MetadataImage::from_snapshot(next_offset, &records);
    let (partitions, brokers) = (restored.partitions().count(), restored.brokers().len());
    Ok((restored, Raised { next_offset, next_producer_id, partitions, epochs_by, brokers }))
}

/// A broker has to register anew: no clean shutdown names this epoch, and no process is this incarnation (`R6`, `R10`).
fn unproven(broker: BrokerRegistration, by: u64) -> Result<BrokerRegistration, Exhausted> {
    let epoch = i64::try_from(by).ok().and_then(|by| broker.epoch.0.checked_add(by));
    let epoch =
        epoch.ok_or_else(|| Exhausted { what: format!("the epoch of broker {}", broker.id), value: broker.epoch.0 })?;
    Ok(BrokerRegistration {
        epoch: BrokerEpoch(epoch),
        incarnation: Incarnation::NONE,
        fenced: true,
        in_controlled_shutdown: false,
        ..broker
    })
}

/// Any replica may have what was committed since, and who led last is not known: all are asked (`R35`).
fn undecided(partition: Partition, topic: &str, by: i32) -> Result<Partition, Exhausted> {
    let raised = |what: &str, epoch: i32| {
        let what = || format!("the {what} epoch of {topic}-{}", partition.partition);
        epoch.checked_add(by).ok_or_else(|| Exhausted { what: what(), value: i64::from(epoch) })
    };
    let leader_epoch = LeaderEpoch(raised("leader", partition.leader_epoch.0)?);
    let partition_epoch = PartitionEpoch(raised("partition", partition.partition_epoch.0)?);
    Ok(Partition {
        leader: BrokerId::NONE,
        last_leader: BrokerId::NONE,
        last_leader_directory: DirectoryId::NONE,
        isr: Vec::new(),
        elr: Vec::new(),
        last_known_elr: partition.replicas.clone(),
        displaced: Vec::new(),
        leader_epoch,
        partition_epoch,
        leader_recovery_state: LeaderRecoveryState::Recovered,
        ..partition
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use model::{BootId, ClusterId, PartitionIndex, TopicId, Uuid};

    use super::*;
    use crate::records::ConfigResource;

    const NOW_S: u64 = BEGINNING_S + 1000;
    const TOPIC: TopicId = TopicId(Uuid::from_u128(7));

    fn partition() -> Partition {
        Partition {
            topic_id: TOPIC,
            partition: PartitionIndex(0),
            replicas: vec![BrokerId(1), BrokerId(2), BrokerId(3)],
            directories: vec![DirectoryId(Uuid::from_u128(100)); 3],
            adding: vec![BrokerId(3)],
            removing: vec![],
            isr: vec![BrokerId(1), BrokerId(2)],
            elr: vec![],
            last_known_elr: vec![],
            displaced: vec![(BrokerId(2), DirectoryId(Uuid::from_u128(99)))],
            leader: BrokerId(1),
            last_leader: BrokerId(1),
            last_leader_directory: DirectoryId(Uuid::from_u128(100)),
            leader_epoch: LeaderEpoch(3),
            partition_epoch: PartitionEpoch(8),
            leader_recovery_state: LeaderRecoveryState::Recovering,
        }
    }

    fn broker() -> BrokerRegistration {
        BrokerRegistration {
            id: BrokerId(1),
            epoch: BrokerEpoch(4),
            incarnation: Incarnation(Uuid::from_u128(9)),
            boot: BootId(Uuid::from_u128(10)),
            directories: vec![DirectoryId(Uuid::from_u128(100))],
            offline_directories: vec![],
            cordoned_directories: vec![],
            listeners: vec![],
            rack: Some("a".to_owned()),
            features: BTreeMap::new(),
            fenced: false,
            in_controlled_shutdown: true,
        }
    }

    fn image_with(partition: Partition, broker: BrokerRegistration, producer_id: i64, next: u64) -> MetadataImage {
        let config = MetadataRecord::Config {
            resource: ConfigResource::Topic("t".to_owned()),
            name: "min.insync.replicas".to_owned(),
            value: Some("2".to_owned()),
        };
        let records = [
            MetadataRecord::ClusterId(ClusterId(Uuid::from_u128(1))),
            MetadataRecord::ProducerIds { next: ProducerId(producer_id) },
            MetadataRecord::RegisterBroker(Box::new(broker)),
            MetadataRecord::Topic { id: TOPIC, name: "t".to_owned() },
            MetadataRecord::Partition(Box::new(partition)),
            config,
        ];
        MetadataImage::from_snapshot(MetadataOffset(next), &records)
    }

    #[test]
    fn what_may_have_been_given_since_is_not_given_again_and_the_rest_stays() {
        // R80
        let image = image_with(partition(), broker(), 5000, 20);
        let (restored, raised) = go_on(&image, NOW_S).unwrap();
        let (by_time, next) = (1000 << 24, 20 + OFFSETS + (1000 << 24));
        let waiting = Partition {
            isr: vec![],
            last_known_elr: partition().replicas,
            displaced: vec![],
            leader: BrokerId::NONE,
            last_leader: BrokerId::NONE,
            last_leader_directory: DirectoryId::NONE,
            leader_epoch: LeaderEpoch(3 + EPOCHS + 1000),
            partition_epoch: PartitionEpoch(8 + EPOCHS + 1000),
            leader_recovery_state: LeaderRecoveryState::Recovered,
            ..partition()
        };
        let registered = BrokerRegistration {
            epoch: BrokerEpoch(4 + (1 << 32) + by_time),
            incarnation: Incarnation::NONE,
            fenced: true,
            in_controlled_shutdown: false,
            ..broker()
        };
        let next_producer_id = ProducerId(5000 + PRODUCER_IDS + by_time);
        let mut expected = image_with(waiting, registered, next_producer_id.0, 0);
        let next_offset = MetadataOffset(next);
        expected.apply(&MetadataRecord::Restored { at: next_offset });
        assert_eq!(restored, MetadataImage::from_snapshot(next_offset, &expected.to_records()));
        let epochs_by = EPOCHS + 1000;
        assert_eq!(raised, Raised { next_offset, next_producer_id, partitions: 1, epochs_by, brokers: 1 });
        let epoch = restored.broker_epoch(BrokerId(1)).0.unsigned_abs();
        assert!(epoch < next, "below every registration to come (R65)");
    }

    #[test]
    fn one_backup_that_is_put_back_twice_does_not_give_the_same_twice() {
        // Nor where it was made a moment after the metadata was restored before.
        let (image, _) = go_on(&image_with(partition(), broker(), 5000, 20), NOW_S).unwrap();
        let (_, once) = go_on(&image, NOW_S + 1).unwrap();
        let (_, later) = go_on(&image, NOW_S + 2).unwrap();
        let distance = later.next_offset.0 - once.next_offset.0;
        assert_eq!((distance, later.next_producer_id.0 - once.next_producer_id.0), (A_SECOND, 1 << 24));
        // Elections in between do not come as often as that: who has been away since meets another epoch.
        let (_, much_later) = go_on(&image, NOW_S + 60).unwrap();
        assert_eq!(much_later.epochs_by - once.epochs_by, 59);
    }

    #[test]
    fn a_clock_that_is_wrong_makes_nothing_smaller_nor_uses_the_numbers_up() {
        let mut image = image_with(partition(), broker(), 5000, 20);
        for now_s in [0, u64::MAX, BEGINNING_S, BEGINNING_S + CLOCK_MAX_S] {
            let (_, raised) = go_on(&image, now_s).unwrap();
            assert_eq!(raised.next_offset.0, 20 + OFFSETS, "{now_s}");
            assert_eq!(raised.next_producer_id.0, 5000 + PRODUCER_IDS, "{now_s}");
        }
        let mut restored_at = MetadataOffset(0);
        for now_s in [NOW_S, 0, NOW_S, NOW_S + 1] {
            image = go_on(&image, now_s).unwrap().0;
            assert!(image.restored_at() > restored_at, "{now_s}");
            restored_at = image.restored_at();
        }
    }

    #[test]
    fn a_number_near_its_end_is_told_and_not_wrapped() {
        let refused = |image: &MetadataImage| go_on(image, 0).unwrap_err();
        let near = i32::MAX - EPOCHS + 1;
        let old = Partition { leader_epoch: LeaderEpoch(near), ..partition() };
        let expected = Exhausted { what: "the leader epoch of t-0".to_owned(), value: i64::from(near) };
        assert_eq!(refused(&image_with(old, broker(), 0, 20)), expected);
        let old = Partition { partition_epoch: PartitionEpoch(near), ..partition() };
        assert_eq!(refused(&image_with(old, broker(), 0, 20)).what, "the partition epoch of t-0");
        let old = BrokerRegistration { epoch: BrokerEpoch(i64::MAX - 5), ..broker() };
        assert_eq!(refused(&image_with(partition(), old, 0, 20)).what, "the epoch of broker 1");
        assert_eq!(refused(&image_with(partition(), broker(), i64::MAX - 5, 20)).what, "the next producer id");
        let end = i64::MAX.unsigned_abs();
        assert_eq!(refused(&image_with(partition(), broker(), 0, end)).value, i64::MAX);
        assert_eq!(refused(&image_with(partition(), broker(), 0, u64::MAX)).what, "the next metadata offset");
        let last = Partition { leader_epoch: LeaderEpoch(near - 1), ..partition() };
        assert!(go_on(&image_with(last, broker(), 0, 20), 0).is_ok());
    }
}
