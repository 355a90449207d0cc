//! Log directories: which of them a new replica goes to, and where brokers say that theirs are (KIP-858, KIP-1066).
//!
//! A new replica goes to the directory of its broker with the fewest of them, the first one on a tie: among those that are
//! online, not cordoned and above their reserve, where there are such.

use std::collections::BTreeMap;

use model::{BrokerId, DirectoryId, ErrorCode};

use crate::control::draft::{Draft, Want};
use crate::control::messages::{AssignReplicas, ControlError, ControlResponse};
use crate::records::{BrokerRegistration, Partition};

impl Draft<'_> {
    /// The directory for a replica that is new on a broker; `NONE` where none is online: the broker chooses.
    pub(super) fn new_directory(&mut self, broker: BrokerId) -> DirectoryId {
        let Some(broker) = self.image.broker(broker).cloned() else { return DirectoryId::NONE };
        let candidates = self.candidate_directories(&broker);
        self.place_in(&candidates)
    }

    /// The directories that a new replica of a broker may go to; all that are online where every one of them is cordoned.
    pub(super) fn candidate_directories(&self, broker: &BrokerRegistration) -> Vec<DirectoryId> {
        let open: Vec<_> = broker.open_directories().collect();
        let with_space: Vec<_> = open.iter().copied().filter(|each| !self.soft().is_full(broker, *each)).collect();
        if !with_space.is_empty() {
            return with_space;
        }
        if !open.is_empty() {
            return open;
        }
        broker.directories.iter().copied().filter(|each| !broker.offline_directories.contains(each)).collect()
    }

    /// The one of `candidates` that has the fewest replicas, which has one more from now on.
    pub(super) fn place_in(&mut self, candidates: &[DirectoryId]) -> DirectoryId {
        let [first, _, ..] = candidates else { return candidates.first().copied().unwrap_or(DirectoryId::NONE) };
        let image = &self.image;
        let loads = self.loads.get_or_insert_with(|| {
            let mut loads = BTreeMap::new();
            for directory in image.partitions().flat_map(|partition| &partition.directories) {
                *loads.entry(*directory).or_insert(0) += 1;
            }
            loads
        });
        let load = |each: &DirectoryId| loads.get(each).copied().unwrap_or(0);
        let chosen = candidates.iter().copied().min_by_key(load).unwrap_or(*first);
        *loads.entry(chosen).or_insert(0) += 1;
        chosen
    }

    /// Brokers that an operator wants no new replicas on take none (KIP-1066).
    pub(super) fn check_cordoned<'b>(&self, mut new: impl Iterator<Item = &'b BrokerId>) -> Result<(), ControlError> {
        match new.find(|id| self.image.broker(**id).is_some_and(|broker| broker.is_cordoned())) {
            Some(id) => {
                let message = format!("All log directories of broker {id} are cordoned: it takes no new replicas.");
                Err(ControlError::new(ErrorCode::InvalidReplicaAssignment, message))
            }
            None => Ok(()),
        }
    }

    /// Takes the broker's word for where its replicas are; one in a directory that is offline leaves ISR and ELR (`R78`).
    pub(super) fn assign_replicas(&mut self, request: &AssignReplicas) -> Result<ControlResponse, ControlError> {
        self.check_broker_epoch(request.broker, request.epoch)?;
        let Some(broker) = self.image.broker(request.broker).cloned() else { return Ok(ControlResponse::Done) };
        for (id, directory) in &request.replicas {
            let known = broker.directories.contains(directory);
            let Some(partition) = self.image.partition(*id).cloned().filter(|p| p.replicas.contains(&broker.id)) else {
                continue;
            };
            if known && partition.directory_of(broker.id) != *directory {
                let offline = !broker.is_online(*directory);
                let leaves = offline.then_some(broker.id);
                let directories = Some(with_directory(&partition, broker.id, *directory));
                let from = partition.directory_of(broker.id);
                let displaced = (!from.is_none()).then_some((broker.id, from));
                self.change(*id, &Want { directories, leaves, unclean: offline, displaced, ..Want::default() });
            }
        }
        Ok(ControlResponse::Done)
    }
}

/// The directories of a partition's replicas, with another one for one of them.
pub(super) fn with_directory(partition: &Partition, broker: BrokerId, directory: DirectoryId) -> Vec<DirectoryId> {
    let of = |replica: &BrokerId| if *replica == broker { directory } else { partition.directory_of(*replica) };
    partition.replicas.iter().map(of).collect()
}
