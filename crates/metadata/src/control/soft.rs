//! What the active controller knows without having decided it: contacts, suspicions, shutdown wishes, recovery answers
//! (`R71`). It is not in the log and starts anew with each tenure.

use std::collections::{BTreeMap, BTreeSet};

use model::{BrokerEpoch, BrokerId, DirectoryId, Incarnation, MetadataOffset, Time, TopicPartition};

use crate::configs::UNCLEAN_LEADER_ELECTION;
use crate::control::messages::{Heartbeat, RecoveryReport, RegisterBroker, Suspect};
use crate::control::recoveries::Recoveries;
use crate::image::MetadataImage;
use crate::records::{BrokerRegistration, MetadataRecord};

/// A broker that is silent for so long after a tenure began is suspected (`R76`).
const UNHEARD_MS: u64 = 300;

/// Between two lots of leaders that go back to their preferred replicas: what waits to be decided has its turn.
const REBALANCES_ON_MS: u64 = 10;

/// See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct SoftState {
    /// When this tenure began, or time stood still last.
    pub(super) began: Time,
    /// The latest time seen.
    pub(super) passed: Time,
    /// When leaders went back to their preferred replicas last.
    rebalanced: Time,
    /// Whether others are still to go back.
    rebalances_on: bool,
    /// By registered broker.
    pub(super) contacts: BTreeMap<BrokerId, Contact>,
    /// Incarnations that try to register, and when they did last.
    newcomers: BTreeMap<BrokerId, (Incarnation, Time)>,
    /// Brokers that answered a probe while they were suspected for their silence alone.
    excused: BTreeMap<BrokerId, BrokerEpoch>,
    pub(super) suspicions: BTreeMap<BrokerId, Suspicion>,
    /// For each broker in controlled shutdown: where the metadata was when it lost its last leadership (`R32`).
    pub(super) shutdowns: BTreeMap<BrokerId, MetadataOffset>,
    /// The log directories that took no appends at a broker's last heartbeat, for want of space.
    pub(super) full: BTreeMap<BrokerId, (BrokerEpoch, Vec<DirectoryId>)>,
    /// What was answered for partitions that await recovery.
    pub(super) recoveries: Recoveries,
}

/// The last sign of life of a registered incarnation, in this tenure.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Contact {
    /// Which incarnation.
    pub(super) incarnation: Incarnation,
    /// When.
    pub(super) at: Time,
    /// How far it has applied the metadata; `None` where it has not said.
    pub(super) next_offset: Option<MetadataOffset>,
}

/// Somebody believes that a broker is gone (`R76`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Suspicion {
    /// Who is believed gone.
    pub broker: BrokerId,
    /// Its registration.
    pub epoch: BrokerEpoch,
    /// Since when: a sign of life that arrives later clears it.
    pub since: Time,
}

impl SoftState {
    /// All brokers count as heard of at `began`.
    pub(super) fn begin(began: Time, now: Time) -> Self {
        Self { began, passed: now, rebalanced: now, ..Self::default() }
    }

    /// Time passes. Where it jumped by more than half a session timeout, this process stood still: nobody is blamed for a
    /// silence in which nobody listened (`R71`).
    pub(super) fn pass(&mut self, now: Time, session_timeout_ms: u64) {
        if now.since(self.passed) > session_timeout_ms / 2 {
            self.began = now;
        }
        self.passed = self.passed.max(now);
    }

    /// When a broker was last heard of: never before the tenure began.
    pub(super) fn last_contact(&self, broker: &BrokerRegistration) -> Time {
        let contact = self.contacts.get(&broker.id).filter(|contact| contact.incarnation == broker.incarnation);
        contact.map_or(self.began, |contact| contact.at.max(self.began))
    }

    /// When the registered incarnation of a broker was last heard of in this tenure, if it was.
    pub(super) fn heard(&self, broker: &BrokerRegistration) -> Option<Time> {
        let contact = self.contacts.get(&broker.id).filter(|contact| contact.incarnation == broker.incarnation)?;
        Some(contact.at)
    }

    /// Whether a directory of a broker takes no appends now, as far as it has told.
    pub(super) fn is_full(&self, broker: &BrokerRegistration, directory: DirectoryId) -> bool {
        let told = self.full.get(&broker.id).filter(|(epoch, _)| *epoch == broker.epoch);
        told.is_some_and(|(_, full)| full.contains(&directory))
    }

    /// How far a broker has applied the metadata, as it said in this tenure.
    pub(super) fn next_offset(&self, broker: &BrokerRegistration) -> Option<MetadataOffset> {
        let contact = self.contacts.get(&broker.id).filter(|contact| contact.incarnation == broker.incarnation)?;
        contact.next_offset
    }

    pub(super) fn registering(&mut self, image: &MetadataImage, request: &RegisterBroker, now: Time) {
        let incarnation = request.incarnation;
        let current = image.broker(request.broker).is_some_and(|broker| broker.incarnation == incarnation);
        if let Some(contact) =
            self.contacts.get_mut(&request.broker).filter(|contact| contact.incarnation == incarnation)
        {
            contact.at = now;
        } else if current {
            self.contacts.insert(request.broker, Contact { incarnation, at: now, next_offset: None });
        } else {
            self.newcomers.insert(request.broker, (incarnation, now));
        }
    }

    pub(super) fn heartbeat(&mut self, image: &MetadataImage, request: &Heartbeat, now: Time) {
        let Some(broker) = image.broker(request.broker).filter(|broker| broker.epoch == request.epoch) else { return };
        let contact = Contact { incarnation: broker.incarnation, at: now, next_offset: Some(request.next_offset) };
        self.contacts.insert(request.broker, contact);
        self.suspicions.remove(&request.broker);
        // R78: what it answered before was said of the log that it had.
        request.lossy.iter().for_each(|id| self.recoveries.forget(*id, request.broker, request.epoch));
        if request.full_directories.is_empty() {
            self.full.remove(&request.broker);
        } else {
            self.full.insert(request.broker, (request.epoch, request.full_directories.clone()));
        }
    }

    /// As a heartbeat, which tells nothing else.
    pub(super) fn alive(&mut self, image: &MetadataImage, broker: BrokerId, epoch: BrokerEpoch, now: Time) {
        let Some(known) = image.broker(broker).filter(|known| known.epoch == epoch) else { return };
        let incarnation = known.incarnation;
        let before = self.contacts.get(&broker).filter(|contact| contact.incarnation == incarnation);
        let next_offset = before.and_then(|contact| contact.next_offset);
        self.contacts.insert(broker, Contact { incarnation, at: now, next_offset });
        self.suspicions.remove(&broker);
    }

    pub(super) fn suspect(&mut self, image: &MetadataImage, request: Suspect, now: Time) {
        let Suspect { broker, epoch, .. } = request;
        if image.broker(broker).is_some_and(|known| known.epoch == epoch && !known.fenced) {
            self.suspicions.entry(broker).or_insert(Suspicion { broker, epoch, since: now });
        }
    }

    pub(super) fn clear(&mut self, suspicion: &Suspicion) {
        if self.suspicions.get(&suspicion.broker) == Some(suspicion) {
            self.suspicions.remove(&suspicion.broker);
        }
        // One that is suspected for its silence alone counts as heard of.
        self.excused.insert(suspicion.broker, suspicion.epoch);
    }

    /// The suspicions that stand, by broker; among them the brokers unheard of since the tenure began (`R76`).
    pub(super) fn standing(&self, image: &MetadataImage, now: Time) -> Vec<Suspicion> {
        let suspicion = |broker: &BrokerRegistration| {
            let reported = self.reported(broker);
            let silent = self.is_unheard(broker) && now.since(self.began) >= UNHEARD_MS;
            let unheard = Suspicion { broker: broker.id, epoch: broker.epoch, since: self.began };
            reported.or_else(|| silent.then_some(unheard))
        };
        image.alive_brokers().filter_map(|broker| suspicion(broker)).collect()
    }

    /// When there may be a suspicion that stands, if nothing comes meanwhile.
    pub(super) fn next_suspicion(&self, image: &MetadataImage) -> Option<Time> {
        let suspicion = |broker: &BrokerRegistration| match self.reported(broker) {
            Some(suspicion) => Some(suspicion.since),
            None => self.is_unheard(broker).then_some(self.began + UNHEARD_MS),
        };
        image.alive_brokers().filter_map(|broker| suspicion(broker)).min()
    }

    fn reported(&self, broker: &BrokerRegistration) -> Option<Suspicion> {
        self.suspicions.get(&broker.id).filter(|suspicion| suspicion.epoch == broker.epoch).copied()
    }

    /// Nothing was heard of it in this tenure, nor was it found living.
    fn is_unheard(&self, broker: &BrokerRegistration) -> bool {
        self.heard(broker).is_none() && self.excused.get(&broker.id) != Some(&broker.epoch)
    }

    pub(super) fn report(&mut self, image: &MetadataImage, request: &RecoveryReport, now: Time) {
        if image.broker_epoch(request.broker) != request.epoch {
            return;
        }
        for (id, answer) in &request.answers {
            if image.partition(*id).is_some_and(|partition| partition.awaits_recovery()) {
                self.recoveries.answered(*id, request.broker, request.epoch, *answer, now);
            }
        }
    }

    /// When leaders go back to their preferred replicas next, where that is done `every` so many milliseconds.
    pub(super) fn next_rebalance(&self, every: u64) -> Time {
        self.rebalanced + if self.rebalances_on { REBALANCES_ON_MS.min(every) } else { every }
    }

    /// Leaders have gone back; `on` says whether others are still to.
    pub(super) fn rebalanced(&mut self, now: Time, on: bool) {
        (self.rebalanced, self.rebalances_on) = (now, on);
    }

    /// A record was replayed into `image`; if it was about a partition, its leader was `before` and is `after`.
    pub(super) fn replayed(
        &mut self,
        record: &MetadataRecord,
        image: &MetadataImage,
        before: Option<BrokerId>,
        after: Option<BrokerId>,
    ) {
        match record {
            MetadataRecord::RegisterBroker(broker) => {
                self.recoveries.others_may_lead();
                self.registered(broker.id, broker.incarnation);
            }
            MetadataRecord::BrokerChange(change) => {
                self.recoveries.others_may_lead();
                if change.fenced == Some(true) {
                    self.suspicions.remove(&change.id);
                    self.shutdowns.remove(&change.id);
                }
                if change.in_controlled_shutdown == Some(true) {
                    self.shutdowns.insert(change.id, image.next_offset());
                }
            }
            MetadataRecord::UnregisterBroker { id, .. } => {
                self.recoveries.others_may_lead();
                self.forget(*id);
            }
            MetadataRecord::Config { name, .. } if name == UNCLEAN_LEADER_ELECTION => self.recoveries.others_may_lead(),
            MetadataRecord::PartitionChange(_) if before != after => {
                if let Some(offset) = before.and_then(|leader| self.shutdowns.get_mut(&leader)) {
                    *offset = image.next_offset();
                }
            }
            _ => {}
        }
    }

    /// Drops what is about brokers and partitions that `image` does not have so.
    pub(super) fn prune(&mut self, image: &MetadataImage, leaderless: &BTreeSet<TopicPartition>) {
        let registered = |id: &BrokerId| image.broker(*id);
        self.contacts.retain(|id, contact| registered(id).is_some_and(|b| b.incarnation == contact.incarnation));
        self.suspicions.retain(|id, suspicion| registered(id).is_some_and(|b| b.epoch == suspicion.epoch));
        self.shutdowns.retain(|id, _| registered(id).is_some_and(|b| b.in_controlled_shutdown && !b.fenced));
        self.full.retain(|id, (epoch, _)| registered(id).is_some_and(|b| b.epoch == *epoch));
        self.recoveries.prune(leaderless);
        for broker in image.alive_brokers().filter(|broker| broker.in_controlled_shutdown) {
            self.shutdowns.entry(broker.id).or_insert(image.next_offset());
        }
    }

    fn registered(&mut self, id: BrokerId, incarnation: Incarnation) {
        let newcomer = self.newcomers.get(&id).copied();
        self.forget(id);
        if let Some((_, at)) = newcomer.filter(|(newcomer, _)| *newcomer == incarnation) {
            self.contacts.insert(id, Contact { incarnation, at, next_offset: None });
        }
    }

    fn forget(&mut self, id: BrokerId) {
        self.contacts.remove(&id);
        self.newcomers.remove(&id);
        self.suspicions.remove(&id);
        self.excused.remove(&id);
        self.shutdowns.remove(&id);
        self.full.remove(&id);
    }
}
