//! The server-side assignors: who should have which partition.
//!
//! Pure functions of members, their subscriptions, what they should have had until now, and where replicas live. In all
//! of them each partition of a subscribed topic gets exactly one member, and the same input gives the same result.

mod range;
mod uniform;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use metadata::MetadataImage;
use model::{PartitionIndex, TopicId};

use crate::consumer::group::{ConsumerGroup, Partitions, Subscription};
use crate::consumer::topics::names_of;

/// An assignor that this coordinator knows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Assignor {
    /// Everybody gets as many partitions as the others, and keeps what it has.
    Uniform,
    /// Everybody gets a contiguous range of each topic, the same one of topics that are alike.
    Range,
}

impl Assignor {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Assignor::Uniform => "uniform",
            Assignor::Range => "range",
        }
    }

    /// The assignor of a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Assignor::Uniform, Assignor::Range].into_iter().find(|assignor| assignor.name() == name)
    }

    /// Assigns all partitions of all subscribed topics.
    #[must_use]
    pub fn assign(self, input: &Input) -> BTreeMap<String, Partitions> {
        let parts = match self {
            Assignor::Uniform => uniform::assign(input),
            Assignor::Range => range::assign(input),
        };
        let named = input.members.iter().zip(parts);
        named.map(|(member, part)| (member.id.clone(), input.named(&part))).collect()
    }
}

/// A partition: which of [`Input::topics`], and its number.
type Slot = (usize, usize);

/// A topic that somebody reads.
#[derive(Clone, Debug)]
pub struct InputTopic {
    /// Its id.
    pub id: TopicId,
    /// The racks of each partition's replicas.
    pub racks: Vec<Vec<Arc<str>>>,
}

/// A member.
#[derive(Clone, Debug)]
pub struct InputMember {
    /// Its member id.
    pub id: String,
    /// Its static id.
    pub instance_id: Option<String>,
    /// Its rack.
    pub rack: Option<Arc<str>>,
    /// Which of [`Input::classes`] its subscription is.
    pub class: usize,
    /// What it should have had until now, ascending; only what it may still have.
    pub prior: Vec<(usize, usize)>,
}

/// What an assignor decides on. Members and topics are in ascending order of their names.
#[derive(Clone, Debug, Default)]
pub struct Input {
    /// All topics that exist and somebody reads.
    pub topics: Vec<InputTopic>,
    /// The different subscriptions: which topics, ascending.
    pub classes: Vec<Vec<usize>>,
    /// The members.
    pub members: Vec<InputMember>,
}

impl Input {
    /// What an assignor is to decide on for a group.
    #[must_use]
    pub fn of(group: &ConsumerGroup, image: &MetadataImage) -> Input {
        let mut input = Input::default();
        let classes: BTreeMap<&Subscription, usize> = group.subscriptions().keys().zip(0..).collect();
        let names: Vec<_> = group.subscriptions().keys().map(|subscription| names_of(group, subscription)).collect();
        let all: BTreeSet<&String> = names.iter().flat_map(|names| names.iter()).collect();
        let mut by_name: BTreeMap<&str, usize> = BTreeMap::new();
        let mut by_id: BTreeMap<TopicId, usize> = BTreeMap::new();
        for topic in all.into_iter().filter_map(|name| image.topic_by_name(name)) {
            by_name.insert(&topic.name, input.topics.len());
            by_id.insert(topic.id, input.topics.len());
            input.topics.push(InputTopic { id: topic.id, racks: racks_of(topic, image) });
        }
        let known = |names: &BTreeSet<String>| names.iter().filter_map(|n| by_name.get(n.as_str()).copied()).collect();
        input.classes = names.iter().map(|names| known(names)).collect();
        let mut racks: BTreeMap<&str, Arc<str>> = BTreeMap::new();
        let mut taken: BTreeSet<Slot> = BTreeSet::new();
        for (member_id, member) in group.members() {
            let class = classes.get(&member.profile.subscription).copied().unwrap_or_default();
            let target = group.targets().get(member_id);
            let slots = target.into_iter().flat_map(|target| target.iter()).filter_map(|(topic, partitions)| {
                let topic = by_id.get(topic).filter(|topic| input.classes[class].binary_search(topic).is_ok())?;
                Some(partitions.iter().filter_map(|p| Some((*topic, usize::try_from(p.0).ok()?))))
            });
            let exists = |slot: &Slot| slot.1 < input.topics[slot.0].racks.len();
            let mut prior: Vec<Slot> = slots.flatten().filter(|slot| exists(slot) && taken.insert(*slot)).collect();
            prior.sort_unstable();
            let rack = member.profile.rack_id.as_deref();
            let rack = rack.map(|rack| Arc::clone(racks.entry(rack).or_insert_with(|| Arc::from(rack))));
            let instance_id = member.profile.instance_id.clone();
            input.members.push(InputMember { id: member_id.clone(), instance_id, rack, class, prior });
        }
        input
    }

    /// Whether all members read the same topics.
    fn is_homogeneous(&self) -> bool {
        let mut classes = self.members.iter().map(|member| &self.classes[member.class]);
        classes.next().is_none_or(|first| classes.all(|other| other == first))
    }

    /// The members that read each topic, ascending.
    fn readers(&self) -> Vec<Vec<usize>> {
        let mut readers = vec![Vec::new(); self.topics.len()];
        for (index, member) in self.members.iter().enumerate() {
            for topic in &self.classes[member.class] {
                readers[*topic].push(index);
            }
        }
        readers
    }

    fn named(&self, slots: &[Slot]) -> Partitions {
        let mut partitions = Partitions::new();
        for (topic, partition) in slots {
            let index = PartitionIndex(i32::try_from(*partition).unwrap_or(i32::MAX));
            partitions.entry(self.topics[*topic].id).or_default().insert(index);
        }
        partitions
    }
}

fn racks_of(topic: &metadata::image::TopicImage, image: &MetadataImage) -> Vec<Vec<Arc<str>>> {
    let rack = |id: &model::BrokerId| Some(Arc::from(image.broker(*id)?.rack.as_deref()?));
    topic.partitions.values().map(|partition| partition.replicas.iter().filter_map(rack).collect()).collect()
}
