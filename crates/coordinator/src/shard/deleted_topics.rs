//! What the deletion of a topic takes with it.
//!
//! A key names a topic, not its id: a tombstone ends everything before it of that name, also what a new topic of the name
//! has on its way, or waiting for a marker (`R49`). There the tombstone is put off until that is decided: either it replaces
//! the deleted topic's offset, or the tombstone follows. A coordinator that comes in between does not know of it: the offset
//! stays until it expires, or another one is committed.

use std::collections::BTreeSet;

use model::TopicId;

use crate::offsets::{self, same_topic};
use crate::pending::OffsetKey;
use crate::record::Fact;
use crate::shard::{GroupShard, Now, Stage};

impl GroupShard {
    /// Topics were deleted: what is stored of them, and what is on its way, goes. What another topic of that name has, stays
    /// (`R4`).
    pub fn handle_topics_deleted(&mut self, topics: &[(String, TopicId)], now: Now) {
        if !matches!(self.stage, Stage::Serving { .. }) {
            return;
        }
        let mut facts = offsets::decide_topics_deleted(&self.state, topics);
        facts.extend(self.writes.offsets_under_way().filter_map(|(group_id, topic, partition, committed)| {
            let doomed = |(name, id): &(String, TopicId)| {
                name == topic && committed.is_some_and(|c| c.topic_id.is_none() || c.topic_id == *id)
            };
            topics.iter().any(doomed).then(|| offsets::tombstone(group_id, topic, partition))
        }));
        let newer = self.keys_of_others(topics);
        let mut now_gone = Vec::with_capacity(facts.len());
        for fact in facts {
            match key_of(&fact).filter(|key| newer.contains(key)) {
                Some(key) => {
                    let ids = topics.iter().filter(|(name, _)| *name == key.1).map(|(_, id)| *id);
                    self.spared.entry(key.clone()).or_default().extend(ids);
                }
                None => now_gone.push(fact),
            }
        }
        self.write(now_gone, None, now);
    }

    /// What may yet be an offset, of topics that bear the name of a deleted one and are others.
    fn keys_of_others(&self, topics: &[(String, TopicId)]) -> BTreeSet<OffsetKey> {
        let waiting = self.state.pending().all();
        let under_way = self.writes.offsets_under_way();
        let under_way = under_way.filter_map(|(group, topic, partition, c)| Some((group, topic, partition, c?)));
        let other = |topic: &str, id: TopicId| {
            let mut of_name = topics.iter().filter(|(name, _)| name == topic).peekable();
            of_name.peek().is_some() && !id.is_none() && of_name.all(|(_, deleted)| *deleted != id)
        };
        waiting
            .chain(under_way)
            .filter(|(_, topic, _, committed)| other(topic, committed.topic_id))
            .map(|(group_id, topic, partition, _)| (group_id.to_owned(), topic.to_owned(), partition))
            .collect()
    }

    /// The tombstones that were put off, of which the reason is gone.
    pub(super) fn drop_spared(&mut self, now: Now) {
        if self.spared.is_empty() {
            return;
        }
        let (state, writes) = (&self.state, &self.writes);
        let under_way: BTreeSet<(&str, &str, model::PartitionIndex)> =
            writes.offsets_under_way().map(|(group_id, topic, partition, _)| (group_id, topic, partition)).collect();
        let decided = |(group_id, topic, partition): &OffsetKey| {
            !state.pending().contains(group_id, topic, *partition)
                && !under_way.contains(&(group_id.as_str(), topic.as_str(), *partition))
        };
        let ready: Vec<OffsetKey> = self.spared.keys().filter(|key| decided(key)).cloned().collect();
        let mut gone = Vec::new();
        for key in ready {
            let ids = self.spared.remove(&key).unwrap_or_default();
            let stored = self.state.offset(&key.0, &key.1, key.2);
            if stored.is_some_and(|committed| ids.iter().any(|id| same_topic(committed.topic_id, *id))) {
                gone.push(offsets::tombstone(&key.0, &key.1, key.2));
            }
        }
        self.write(gone, None, now);
    }
}

fn key_of(fact: &Fact) -> Option<OffsetKey> {
    match fact {
        Fact::Offset { group_id, topic, partition, .. } => Some((group_id.clone(), topic.clone(), *partition)),
        Fact::Group { .. } | Fact::Consumer { .. } => None,
    }
}
