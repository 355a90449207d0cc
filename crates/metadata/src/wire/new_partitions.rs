//! New partitions of a topic in a row, as one record: so a topic with all of its partitions goes into one entry of the log (`R67`).
//!
//! Invariant: what is written so reads back as the very records; a partition that is not as new ones are is left as it is.

use std::collections::BTreeMap;

use model::{BrokerId, DirectoryId, PartitionIndex, TopicId, TopicPartition};

use crate::records::{MetadataRecord, Partition};
use crate::wire::generated::metadata::v1 as wire;
use crate::wire::records::{packed, packed_to_wire};
use crate::wire::{WireError, topic_id, uuid_to_wire};

/// The most replicas of a partition: each has a bit of a state.
const FACTOR_MAX: usize = 32;

/// How many of the first records are new partitions in a row, and these as one record; nothing where there are fewer than two.
pub(super) fn to_wire(records: &[MetadataRecord]) -> Option<(usize, wire::Record)> {
    let Some(MetadataRecord::Partition(first)) = records.first() else { return None };
    let mut run = Run::starting(first);
    let goes_on = |record: &&MetadataRecord| matches!(record, MetadataRecord::Partition(next) if run.take(next));
    let taken = records.iter().take_while(goes_on).count();
    (taken > 1).then(|| (taken, wire::Record { kind: Some(wire::record::Kind::NewPartitions(run.into_wire())) }))
}

/// The partitions of a row; `left` is how many more there may be.
pub(super) fn from_wire(run: &wire::NewPartitions, left: &mut usize) -> Result<Vec<MetadataRecord>, WireError> {
    let bad = |field| move || WireError::Field(field);
    let topic_id = topic_id(&run.topic_id)?;
    let factor = usize::try_from(run.factor).unwrap_or(usize::MAX);
    let directories = run.directories.as_ref().map(packed).transpose()?.unwrap_or_default();
    if directories.len() != run.brokers.len() {
        return Err(WireError::Field("directories"));
    }
    *left = left.checked_sub(run.states.len()).ok_or_else(bad("states"))?;
    if factor == 0 || factor > FACTOR_MAX || run.states.len().checked_mul(factor) != Some(run.places.len()) {
        return Err(WireError::Field("factor"));
    }
    let place = |place: &u32| {
        let at = usize::try_from(*place).ok()?;
        Some((BrokerId(*run.brokers.get(at)?), *directories.get(at)?))
    };
    let mut partitions = Vec::with_capacity(run.states.len());
    for (index, (places, state)) in (0..).zip(run.places.chunks_exact(factor).zip(&run.states)) {
        let index = run.first.checked_add(index).ok_or_else(bad("first"))?;
        let id = TopicPartition { topic_id, partition: PartitionIndex(index) };
        let places: Option<Vec<_>> = places.iter().map(place).collect();
        let (replicas, directories) = places.ok_or_else(bad("places"))?.into_iter().unzip();
        partitions.push(MetadataRecord::Partition(Box::new(partition(id, replicas, directories, *state))));
    }
    Ok(partitions)
}

/// A row that grows.
struct Run {
    topic: TopicId,
    first: i32,
    factor: usize,
    /// Where replicas are, and the number of each such place, in their order.
    brokers: Vec<i32>,
    directories: Vec<DirectoryId>,
    numbers: BTreeMap<(BrokerId, DirectoryId), u32>,
    places: Vec<u32>,
    states: Vec<u64>,
}

impl Run {
    fn starting(first: &Partition) -> Run {
        Run {
            topic: first.topic_id,
            first: first.partition.0,
            factor: first.replicas.len(),
            brokers: Vec::new(),
            directories: Vec::new(),
            numbers: BTreeMap::new(),
            places: Vec::new(),
            states: Vec::new(),
        }
    }

    /// Takes the next partition, where it is one of this row.
    fn take(&mut self, next: &Partition) -> bool {
        let index = i32::try_from(self.states.len()).ok().and_then(|taken| self.first.checked_add(taken));
        let follows = next.topic_id == self.topic && Some(next.partition.0) == index;
        if !follows || next.replicas.len() != self.factor || next.directories.len() != self.factor {
            return false;
        }
        let Some(state) = state_of(next) else { return false };
        for place in next.replicas.iter().copied().zip(next.directories.iter().copied()) {
            let number = self.number(place);
            self.places.push(number);
        }
        self.states.push(state);
        true
    }

    fn number(&mut self, place: (BrokerId, DirectoryId)) -> u32 {
        let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        *self.numbers.entry(place).or_insert_with(|| {
            self.brokers.push(place.0.0);
            self.directories.push(place.1);
            next
        })
    }

    fn into_wire(self) -> wire::NewPartitions {
        wire::NewPartitions {
            topic_id: uuid_to_wire(self.topic.0),
            first: self.first,
            brokers: self.brokers,
            directories: Some(packed_to_wire(&self.directories)),
            factor: u32::try_from(self.factor).unwrap_or(u32::MAX),
            places: self.places,
            states: self.states,
        }
    }
}

/// What a new partition is beside its replicas; nothing for one that is not as new ones are.
fn state_of(new: &Partition) -> Option<u64> {
    if new.replicas.is_empty() || new.replicas.len() > FACTOR_MAX {
        return None;
    }
    let in_sync = (1..).zip(&new.replicas).filter(|(_, replica)| new.isr.contains(replica));
    let state = in_sync.fold(u64::from(!new.last_known_elr.is_empty()), |state, (bit, _)| state | 1 << bit);
    (partition(new.id(), new.replicas.clone(), new.directories.clone(), state) == *new).then_some(state)
}

fn partition(id: TopicPartition, replicas: Vec<BrokerId>, directories: Vec<DirectoryId>, state: u64) -> Partition {
    let in_sync = |new: &Partition, broker| {
        let at = new.replicas.iter().position(|replica| *replica == broker);
        at.is_some_and(|at| state >> (at + 1) & 1 == 1)
    };
    let mut new = Partition::new(id, replicas, directories, in_sync);
    if state & 1 == 1 {
        new.last_known_elr.clone_from(&new.isr);
    }
    new
}
