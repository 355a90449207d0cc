//! Brokers: registration (`R6`), heartbeats and their state machine (`R7`, `R9`, `R32`), fencing.
//!
//! ```text
//! registered ─► FENCED ──recovered, caught up──► UNFENCED ──wants to stop──► CONTROLLED_SHUTDOWN
//!                 ▲  ▲                              │                              │
//!                 │  └── silent, gone, asked ───────┘      leads nothing, all know ▼
//!                 └──────────────────────────────────────────────────────── SHUTDOWN_NOW
//! ```

use std::collections::BTreeSet;

use model::{BrokerEpoch, BrokerId, ClusterId, DirectoryId, ErrorCode, Rule, Time, TopicPartition};

use crate::control::directories::with_directory;
use crate::control::draft::{Draft, Want};
use crate::control::messages::{
    ControlError, ControlEvent, ControlResponse, FenceReason, Heartbeat, HeartbeatAnswer, RegisterBroker,
};
use crate::image::is_internal_topic;
use crate::records::{BrokerChange, BrokerRegistration, ControllerRegistration, MetadataRecord, Partition};

/// How many partitions a broker is asked for a recovery report of in one answer.
const RECOVERY_WANTED_MAX: usize = 5000;

impl Draft<'_> {
    pub(super) fn register_broker(
        &mut self,
        request: &RegisterBroker,
        now: Time,
    ) -> Result<ControlResponse, ControlError> {
        self.check_registration(request)?;
        let existing = self.image.broker(request.broker).cloned();
        if let Some(broker) = &existing {
            if broker.incarnation == request.incarnation && self.holds(Rule::R6SameIncarnation) {
                return Ok(ControlResponse::RegisterBroker { epoch: broker.epoch });
            }
            self.check_no_live_session(broker, request, now)?;
            if !broker.fenced {
                self.note_fenced(broker, FenceReason::Replaced);
            }
        }
        let named = existing.as_ref().is_some_and(|broker| request.previous_epoch == broker.epoch);
        let (directories, offline_directories) = directories_now(existing.as_deref(), request);
        let works = |each: &DirectoryId| directories.contains(each) && !offline_directories.contains(each);
        // R10: a directory that is missing proves nothing; what a replica had in it may be missing in another one.
        let all_here = existing.as_ref().is_none_or(|broker| broker.directories.iter().all(works));
        let named = named && (all_here || !self.holds(Rule::R10EachDirectory));
        let some_proof = request.previous_epoch != BrokerEpoch::NONE;
        let clean = named || (some_proof && !self.holds(Rule::R10ProofNamesTheEpoch));
        let same_boot = existing.is_some_and(|broker| !request.boot.is_none() && request.boot == broker.boot);
        let cache_lost = !clean && !same_boot;
        self.renew_replicas(request, (&directories, &offline_directories), clean, cache_lost);
        let epoch = i64::try_from(self.next_offset().0).map_or(BrokerEpoch::NONE, BrokerEpoch);
        self.push(MetadataRecord::RegisterBroker(Box::new(BrokerRegistration {
            id: request.broker,
            epoch: BrokerEpoch::NONE,
            incarnation: request.incarnation,
            boot: request.boot,
            directories,
            offline_directories,
            cordoned_directories: request.cordoned_directories.clone(),
            listeners: request.listeners.clone(),
            rack: request.rack.clone(),
            features: request.features.clone(),
            fenced: true,
            in_controlled_shutdown: false,
        })));
        Ok(ControlResponse::RegisterBroker { epoch })
    }

    fn check_registration(&self, request: &RegisterBroker) -> Result<(), ControlError> {
        let refuse = |code, message| Err(ControlError::new(code, message));
        let cluster = self.image.cluster_id();
        if request.cluster_id != ClusterId::NONE && request.cluster_id != cluster {
            let message =
                format!("broker {} belongs to cluster {}, this is {cluster}", request.broker, request.cluster_id);
            return refuse(ErrorCode::InconsistentClusterId, message);
        }
        if request.broker.0 < 0 || request.listeners.is_empty() || request.directories.is_empty() {
            let message = format!("broker {} needs an id, a listener and a log directory", request.broker);
            return refuse(ErrorCode::InvalidRegistration, message);
        }
        let unique: BTreeSet<_> = request.directories.iter().collect();
        if unique.len() != request.directories.len() || unique.contains(&DirectoryId::NONE) {
            let message = format!("broker {} must name each log directory once, by its id", request.broker);
            return refuse(ErrorCode::InvalidRegistration, message);
        }
        let elsewhere = |broker: &BrokerRegistration| {
            broker.id != request.broker && broker.directories.iter().any(|each| unique.contains(each))
        };
        if let Some(other) = self.image.brokers().values().find(|broker| elsewhere(broker)) {
            let message = format!("a log directory of broker {} is registered by broker {}", request.broker, other.id);
            return refuse(ErrorCode::InvalidRegistration, message);
        }
        for (name, level) in self.image.features() {
            let range = request.features.get(name);
            if range.is_none_or(|range| *level < range.min || range.max < *level) {
                let message =
                    format!("broker {} does not support {name} at the cluster's level {level}", request.broker);
                return refuse(ErrorCode::UnsupportedVersion, message);
            }
        }
        Ok(())
    }

    /// Another incarnation may live (`R6`). One that had the same log directories cannot: their locks prove it dead.
    fn check_no_live_session(
        &self,
        broker: &BrokerRegistration,
        request: &RegisterBroker,
        now: Time,
    ) -> Result<(), ControlError> {
        let same_directories = broker.directories.iter().any(|directory| request.directories.contains(directory));
        let silent = self.soft().heard(broker).map_or(now.since(self.soft().began), |at| now.since(at));
        let live = silent <= self.control.settings.session_timeout_ms;
        if live && !same_directories && self.holds(Rule::R6LiveSession) {
            let message = format!("broker {} runs already, as incarnation {}", broker.id, broker.incarnation);
            return Err(ControlError::new(ErrorCode::DuplicateBrokerRegistration, message));
        }
        Ok(())
    }

    /// A new incarnation is out of every ISR (`R7`), and out of the ELR where its shutdown was not clean (`R34`) or the
    /// replica is lossy (`R78`). Replicas whose directory is gone are to be in another one, and what is there may be less. Where
    /// the machine's page cache is gone, what the broker led last is no proof any more (`R35`).
    fn renew_replicas(
        &mut self,
        request: &RegisterBroker,
        (all, offline): (&[DirectoryId], &[DirectoryId]),
        clean: bool,
        cache_lost: bool,
    ) {
        let clean = clean || !self.holds(Rule::R34UncleanRegistration);
        let lossy: BTreeSet<_> = request.lossy.iter().copied().collect();
        let online: Vec<_> = all.iter().copied().filter(|each| !offline.contains(each)).collect();
        let open: Vec<_> = online.iter().copied().filter(|each| !request.cordoned_directories.contains(each)).collect();
        let candidates = if open.is_empty() { online } else { open };
        let had = self.image.broker(request.broker).map(|before| before.directories.clone()).unwrap_or_default();
        let none_stays = !had.is_empty() && !had.iter().any(|each| all.contains(each));
        for partition in self.partitions_of(request.broker) {
            let id = partition.id();
            let directory = partition.directory_of(request.broker);
            // Where nobody knows which one it was in, it was in one of those that the broker had.
            let gone = if directory.is_none() { none_stays } else { !all.contains(&directory) };
            let offline = offline.contains(&directory);
            let unclean = !clean || gone || offline || lossy.contains(&id);
            let directories = gone.then(|| {
                let directory = self.place_in(&candidates);
                with_directory(&partition, request.broker, directory)
            });
            self.change(
                id,
                &Want {
                    leaves: Some(request.broker),
                    unclean,
                    displaced: gone.then_some((request.broker, directory)),
                    directories,
                    cache_lost,
                    ..Want::default()
                },
            );
        }
    }

    pub(super) fn register_controller(
        &mut self,
        request: &ControllerRegistration,
    ) -> Result<ControlResponse, ControlError> {
        if self.image.controllers().get(&request.id).is_none_or(|known| **known != *request) {
            self.push(MetadataRecord::ControllerRegistration(Box::new(request.clone())));
        }
        Ok(ControlResponse::Done)
    }

    pub(super) fn heartbeat(&mut self, request: &Heartbeat) -> Result<ControlResponse, ControlError> {
        self.check_broker_epoch(request.broker, request.epoch)?;
        let Some(broker) = self.image.broker(request.broker).cloned() else { return Ok(ControlResponse::Done) };
        self.note_failures(&broker, request);
        let registered = u64::try_from(broker.epoch.0).unwrap_or(0);
        let is_caught_up = request.next_offset.0 > registered || !self.holds(Rule::R7CaughtUp);
        let mut should_shut_down = false;
        if broker.fenced {
            should_shut_down = request.want_shutdown;
            if !request.want_shutdown && !request.want_fence && is_caught_up {
                self.unfence(&broker);
            }
        } else if broker.in_controlled_shutdown {
            should_shut_down = self.may_stop(&broker);
            if should_shut_down {
                self.fence(broker.id, FenceReason::ShutDown);
            }
        } else if request.want_fence {
            self.fence(broker.id, FenceReason::Asked);
        } else if request.want_shutdown {
            self.begin_controlled_shutdown(&broker);
        } else if !request.full_directories.is_empty() {
            self.relieve_full(&broker, request);
        }
        Ok(ControlResponse::Heartbeat(HeartbeatAnswer {
            is_fenced: self.image.broker(broker.id).is_none_or(|now| now.fenced),
            is_caught_up,
            should_shut_down,
            recovery_wanted: self.recovery_wanted(request),
        }))
    }

    /// What the broker found broken is recorded before anything else (`R30`, `R78`). The directories that failed are
    /// recorded after the leaders have moved.
    fn note_failures(&mut self, broker: &BrokerRegistration, request: &Heartbeat) {
        let failed: Vec<_> = broker
            .directories
            .iter()
            .copied()
            .filter(|each| broker.offline_directories.contains(each) || request.offline_directories.contains(each))
            .collect();
        let leaves = Want { leaves: Some(broker.id), unclean: true, ..Want::default() };
        if request.cordoned_directories != broker.cordoned_directories {
            let cordoned_directories = Some(request.cordoned_directories.clone());
            self.push_change(BrokerChange { cordoned_directories, ..unchanged(broker) });
        }
        if failed.len() > broker.offline_directories.len() {
            for partition in self.partitions_of(broker.id) {
                let directory = partition.directory_of(broker.id);
                let unknown = directory.is_none() && failed.len() == broker.directories.len();
                if unknown || failed.contains(&directory) {
                    self.change(partition.id(), &leaves);
                }
            }
            self.push_change(BrokerChange { offline_directories: Some(failed), ..unchanged(broker) });
        }
        let lossy = if self.holds(Rule::R78LossyReplica) { request.lossy.as_slice() } else { &[] };
        for id in lossy {
            if self.image.partition(*id).is_some_and(|partition| partition.replicas.contains(&broker.id)) {
                self.change(*id, &leaves);
            }
        }
    }

    /// A broker that has no space for a partition leaves its leadership and its ISR, where the others are enough for the min
    /// ISR: it could only hold them up. What the brokers write for themselves goes on there until the directory is exhausted.
    fn relieve_full(&mut self, broker: &BrokerRegistration, request: &Heartbeat) {
        for partition in self.partitions_of(broker.id) {
            let directory = partition.directory_of(broker.id);
            let topic = self.image.topic(partition.topic_id);
            let internal = topic.is_none_or(|topic| is_internal_topic(&topic.name));
            let full = if internal { &request.exhausted_directories } else { &request.full_directories };
            let all = broker.directories.iter().all(|each| full.contains(each));
            if !(full.contains(&directory) || (directory.is_none() && all)) || !partition.isr.contains(&broker.id) {
                continue;
            }
            let mut others = (*partition).clone();
            others.isr.retain(|b| *b != broker.id && self.image.is_eligible(&partition, *b));
            let enough = !others.isr.is_empty() && self.is_enough(&others);
            if enough {
                self.change(partition.id(), &Want { leaves: Some(broker.id), ..Want::default() });
            }
        }
    }

    /// The broker may lead again: partitions that only wait for it get their leader (`R33`).
    fn unfence(&mut self, broker: &BrokerRegistration) {
        let in_controlled_shutdown = broker.in_controlled_shutdown.then_some(false);
        self.push_change(BrokerChange { fenced: Some(false), in_controlled_shutdown, ..unchanged(broker) });
        let leaderless: Vec<TopicPartition> = self.control.leaderless.iter().copied().collect();
        for id in leaderless {
            if self.image.partition(id).is_some_and(|partition| partition.replicas.contains(&broker.id)) {
                self.change(id, &Want::default());
            }
        }
    }

    /// Leaves every leadership and ISR; marked first, so that it joins none meanwhile (`R32`).
    fn begin_controlled_shutdown(&mut self, broker: &BrokerRegistration) {
        let marked_first = self.holds(Rule::R32MarkedFirst);
        let mark = BrokerChange { in_controlled_shutdown: Some(true), ..unchanged(broker) };
        if marked_first {
            self.push_change(mark.clone());
        }
        self.leave_all(broker.id);
        if !marked_first {
            self.push_change(mark);
        }
    }

    /// Whether a broker in controlled shutdown may stop: it leads nothing, and all other active brokers know (`R32`,
    /// `R77`).
    fn may_stop(&self, broker: &BrokerRegistration) -> bool {
        if self.image.partitions().any(|partition| partition.leader == broker.id) {
            return false;
        }
        let Some(offset) = self.soft().shutdowns.get(&broker.id) else { return false };
        let knows = |other: &BrokerRegistration| self.soft().next_offset(other).is_some_and(|next| next >= *offset);
        let others = self.image.brokers().values().filter(|other| other.id != broker.id && other.is_active());
        others.into_iter().all(|other| knows(other) || !self.holds(Rule::R32OthersKnow))
    }

    /// Fences a broker: leaves ISRs and leaderships first, the fence record comes last (`R7`).
    pub(super) fn fence(&mut self, id: BrokerId, reason: FenceReason) {
        let Some(broker) = self.image.broker(id).filter(|broker| !broker.fenced).cloned() else { return };
        let leaves_first = self.holds(Rule::R7LeavesBeforeTheFence);
        if leaves_first {
            self.leave_all(id);
        }
        self.push_change(BrokerChange { fenced: Some(true), ..unchanged(&broker) });
        if !leaves_first {
            self.leave_all(id);
        }
        self.note_fenced(&broker, reason);
    }

    pub(super) fn unregister_broker(&mut self, id: BrokerId) -> Result<ControlResponse, ControlError> {
        let Some(broker) = self.image.broker(id).cloned() else {
            let message = format!("Broker ID {id} is not currently registered");
            return Err(ControlError::new(ErrorCode::BrokerIdNotRegistered, message));
        };
        self.leave_all(id);
        self.push(MetadataRecord::UnregisterBroker { id, epoch: broker.epoch });
        if !broker.fenced {
            self.note_fenced(&broker, FenceReason::Unregistered);
        }
        Ok(ControlResponse::Done)
    }

    /// The broker leaves all ISRs and leaderships; it stays an eligible leader where the rules say so (`R34`).
    fn leave_all(&mut self, id: BrokerId) {
        for partition in self.partitions_of(id) {
            if partition.leader == id || partition.isr.contains(&id) {
                self.change(partition.id(), &Want { leaves: Some(id), ..Want::default() });
            }
        }
    }

    /// The partitions that have a replica on a broker.
    fn partitions_of(&self, id: BrokerId) -> Vec<std::sync::Arc<Partition>> {
        self.image.partitions().filter(|partition| partition.replicas.contains(&id)).cloned().collect()
    }

    /// The partitions that the broker may have all committed records of, and has not said (`R35`).
    fn recovery_wanted(&self, request: &Heartbeat) -> Vec<TopicPartition> {
        let (broker, epoch) = (request.broker, request.epoch);
        if !self.image.is_active(broker) {
            return Vec::new();
        }
        let lossy: BTreeSet<_> = request.lossy.iter().copied().collect();
        let wanted = |id: &TopicPartition| {
            let partition = self.image.partition(*id).filter(|partition| partition.awaits_recovery())?;
            let answered = self.soft().recoveries.get(id).and_then(|recovery| recovery.answers.get(&broker));
            // Who cannot say anything of it must not keep others from being asked for.
            let wanted = self.image.is_eligible(partition, broker) && answered.is_none_or(|(by, _)| *by != epoch);
            wanted.then_some(*id)
        };
        // One that failed says nothing until it is opened anew: it comes last.
        let sound = self.control.leaderless.iter().filter(|id| !lossy.contains(id));
        let order = sound.chain(&lossy).filter(|id| self.control.leaderless.contains(id));
        order.filter_map(wanted).take(RECOVERY_WANTED_MAX).collect()
    }

    fn push_change(&mut self, change: BrokerChange) {
        self.push(MetadataRecord::BrokerChange(change));
    }

    fn note_fenced(&mut self, broker: &BrokerRegistration, reason: FenceReason) {
        self.events.push(ControlEvent::BrokerFenced { broker: broker.id, epoch: broker.epoch, reason });
    }
}

fn unchanged(broker: &BrokerRegistration) -> BrokerChange {
    BrokerChange {
        id: broker.id,
        epoch: broker.epoch,
        fenced: None,
        in_controlled_shutdown: None,
        offline_directories: None,
        cordoned_directories: None,
    }
}

/// All directories of a broker that registers, and those of them that are offline. Where it could not identify one, those
/// that it had and does not name are taken for that one: offline, with all that is in them.
fn directories_now(
    before: Option<&BrokerRegistration>,
    request: &RegisterBroker,
) -> (Vec<DirectoryId>, Vec<DirectoryId>) {
    let (mut all, mut offline) = (request.directories.clone(), request.offline_directories.clone());
    if let Some(before) = before.filter(|_| request.unidentified_directories) {
        let missing: Vec<_> = before.directories.iter().copied().filter(|each| !all.contains(each)).collect();
        offline.extend(&missing);
        all.extend(missing);
    }
    (all, offline)
}
