//! Brokers that seem to be gone, or have just gone, as clients should be told of them.
//!
//! A client that loses its connection to a killed leader asks another broker for metadata within a millisecond: sooner than
//! the cluster can have elected another leader. An answer with the old leader costs it a second, until it asks again. So an
//! answer waits a moment while a broker is under suspicion. And a client that does not find a broker in an answer forgets
//! it with all that was queued for it; so a broker stays listed for some seconds after it was fenced.
//!
//! Invariants: one suspicion delays answers by at most [`HOLD_MS`]; nothing here decides who is alive (`R76`).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use metadata::MetadataImage;
use model::{BrokerEpoch, BrokerId, Time};

/// How long answers wait for one suspicion: a probe takes a few milliseconds, and 500 where nobody answers.
const HOLD_MS: u64 = 600;
/// A suspicion that came to nothing is forgotten so late that the next one of that broker can hold answers again.
const FORGET_MS: u64 = 5_000;
/// How long a fenced broker stays listed.
const LISTED_MS: u64 = 10_000;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Departures {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Under suspicion: its registration, and since when.
    suspected: BTreeMap<BrokerId, (BrokerEpoch, Time)>,
    /// Fenced: when this broker heard of it.
    fenced: BTreeMap<BrokerId, Time>,
}

impl Departures {
    /// `broker`, registered as `epoch`, seems to be gone.
    pub(crate) fn suspect(&self, broker: BrokerId, epoch: BrokerEpoch, now: Time) {
        let mut state = self.lock();
        state.suspected.retain(|_, (_, since)| now.since(*since) < FORGET_MS);
        let entry = state.suspected.entry(broker).or_insert((epoch, now));
        if entry.0 != epoch {
            *entry = (epoch, now);
        }
    }

    /// The metadata went from `before` to `after`.
    pub(crate) fn changed(&self, before: &MetadataImage, after: &MetadataImage, now: Time) {
        let mut state = self.lock();
        state.fenced.retain(|_, since| now.since(*since) < LISTED_MS);
        for broker in after.brokers().values().filter(|broker| broker.fenced) {
            if before.broker(broker.id).is_some_and(|was| !was.fenced) {
                state.fenced.insert(broker.id, now);
            }
        }
        state.suspected.retain(|id, (epoch, _)| after.broker(*id).is_some_and(|b| b.epoch == *epoch && !b.fenced));
    }

    /// For how long an answer should wait for suspicions to be settled, in milliseconds; None where none is open.
    pub(crate) fn hold_ms(&self, now: Time) -> Option<u64> {
        let left = |(_, since): &(BrokerEpoch, Time)| HOLD_MS.checked_sub(now.since(*since)).filter(|left| *left > 0);
        self.lock().suspected.values().filter_map(left).max()
    }

    /// Brokers that were fenced a short while ago.
    pub(crate) fn recent(&self, now: Time) -> Vec<BrokerId> {
        self.lock().fenced.iter().filter(|(_, since)| now.since(**since) < LISTED_MS).map(|(id, _)| *id).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metadata::records::BrokerChange;
    use metadata::{BrokerRegistration, MetadataRecord};
    use model::{BootId, Incarnation};

    fn image() -> MetadataImage {
        let mut image = MetadataImage::default();
        image.apply(&MetadataRecord::RegisterBroker(Box::new(BrokerRegistration {
            id: BrokerId(1),
            epoch: BrokerEpoch(7),
            incarnation: Incarnation::NONE,
            boot: BootId::NONE,
            directories: Vec::new(),
            offline_directories: Vec::new(),
            cordoned_directories: Vec::new(),
            listeners: Vec::new(),
            rack: None,
            features: BTreeMap::new(),
            fenced: false,
            in_controlled_shutdown: false,
        })));
        image
    }

    fn fenced(image: &MetadataImage) -> MetadataImage {
        let mut after = image.clone();
        after.apply(&MetadataRecord::BrokerChange(BrokerChange {
            id: BrokerId(1),
            epoch: BrokerEpoch(7),
            fenced: Some(true),
            in_controlled_shutdown: None,
            offline_directories: None,
            cordoned_directories: None,
        }));
        after
    }

    #[test]
    fn answers_wait_until_the_suspected_broker_is_fenced_and_it_stays_listed_for_a_while() {
        let departures = Departures::default();
        departures.suspect(BrokerId(1), BrokerEpoch(7), Time(1_000));
        assert_eq!(departures.hold_ms(Time(1_010)), Some(HOLD_MS - 10));
        let before = image();
        departures.changed(&before, &fenced(&before), Time(1_020));
        assert_eq!(departures.hold_ms(Time(1_020)), None);
        assert_eq!(departures.recent(Time(1_020 + LISTED_MS - 1)), [BrokerId(1)]);
        assert_eq!(departures.recent(Time(1_020 + LISTED_MS)), []);
    }

    #[test]
    fn one_suspicion_that_comes_to_nothing_holds_answers_once() {
        let departures = Departures::default();
        departures.suspect(BrokerId(1), BrokerEpoch(7), Time(1_000));
        departures.suspect(BrokerId(1), BrokerEpoch(7), Time(1_500));
        assert_eq!(departures.hold_ms(Time(1_000 + HOLD_MS)), None);
        departures.suspect(BrokerId(1), BrokerEpoch(7), Time(1_000 + FORGET_MS));
        assert_eq!(departures.hold_ms(Time(1_000 + FORGET_MS)), Some(HOLD_MS));
    }
}
