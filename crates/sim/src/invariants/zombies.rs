//! Nothing is done for a zombie (`R46`, `R47`, `R50`): once somebody has been given a transactional id, no write and no offset of
//! those who had it before is acknowledged.

use std::collections::BTreeMap;

use model::{ProducerEpoch, ProducerId};

/// See the module: what each transactional id was given out as last.
#[derive(Debug, Default)]
pub struct Grants(BTreeMap<String, (ProducerId, ProducerEpoch)>);

impl Grants {
    /// A producer has been given a transactional id.
    pub fn granted(&mut self, transactional_id: &str, producer: (ProducerId, ProducerEpoch)) {
        let known = self.0.entry(transactional_id.to_owned()).or_insert(producer);
        // Answers may come late.
        if producer.0 != known.0 || producer.1.0 > known.1.0 {
            *known = producer;
        }
    }

    /// Whether somebody else has been given what `producer` had.
    #[must_use]
    pub fn is_zombie(&self, transactional_id: &str, producer: (ProducerId, ProducerEpoch)) -> bool {
        self.0.get(transactional_id).is_some_and(|last| last.0 == producer.0 && last.1.0 > producer.1.0)
    }

    /// Something was acknowledged to a producer; `was_zombie` is from before it asked.
    #[must_use]
    pub fn acknowledged(
        &self,
        transactional_id: &str,
        epoch: ProducerEpoch,
        what: &str,
        was_zombie: bool,
    ) -> Option<String> {
        let text = || format!("{transactional_id}: {what} is acknowledged to a zombie of epoch {}", epoch.0);
        was_zombie.then(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_succeeded_is_a_zombie_and_what_it_is_told_counts() {
        let mut grants = Grants::default();
        let producer = |epoch| (ProducerId(4), ProducerEpoch(epoch));
        grants.granted("x", producer(2));
        assert!(!grants.is_zombie("x", producer(2)));
        // Its own transactions raise the epoch.
        assert!(!grants.is_zombie("x", producer(5)));
        grants.granted("x", producer(6));
        grants.granted("x", producer(4));
        assert!(grants.is_zombie("x", producer(5)));
        assert!(grants.acknowledged("x", ProducerEpoch(5), "a write", true).is_some());
        assert_eq!(grants.acknowledged("x", ProducerEpoch(6), "a write", false), None);
    }
}
