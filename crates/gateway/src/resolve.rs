//! From names and ids of a request to partitions, and from the broker's answers back to the request's order.

use std::collections::BTreeMap;
use std::sync::Arc;

use metadata::{MetadataImage, TopicImage};
use model::{PartitionIndex, TopicId, TopicPartition, Uuid};

use crate::refusal::Refusal;

/// The longest name of a topic, as the controller checks it.
const TOPIC_NAME_MAX: usize = 249;

/// How a request names a topic.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum TopicKey {
    /// By name.
    Name(Arc<str>),
    /// By id.
    Id(TopicId),
}

impl TopicKey {
    /// The key of a request's topic in a version that has either names or ids.
    pub(crate) fn of(by_id: bool, name: &str, id: Uuid) -> TopicKey {
        if by_id { TopicKey::Id(TopicId(id)) } else { TopicKey::Name(name.into()) }
    }

    /// The topic.
    pub(crate) fn find<'a>(&self, image: &'a MetadataImage) -> Result<&'a Arc<TopicImage>, Refusal> {
        match self {
            TopicKey::Name(name) => by_name(image, name),
            TopicKey::Id(id) => by_id(image, id.0),
        }
    }

    /// The name, where it is the key.
    pub(crate) fn name(&self) -> String {
        match self {
            TopicKey::Name(name) => name.to_string(),
            TopicKey::Id(_) => String::new(),
        }
    }

    /// The id, where it is the key.
    pub(crate) fn id(&self) -> Uuid {
        match self {
            TopicKey::Name(_) => Uuid::nil(),
            TopicKey::Id(id) => id.0,
        }
    }
}

/// Whether no topic can have this name, so long is it. A request carries a name once and each partition of it in four bytes:
/// what keeps or compares the name for each partition would take gigabytes or minutes for a request of a megabyte, so such a
/// name goes no further.
pub(crate) fn is_too_long(name: &str) -> bool {
    name.len() > TOPIC_NAME_MAX
}

/// The topic of a name.
pub(crate) fn by_name<'a>(image: &'a MetadataImage, name: &str) -> Result<&'a Arc<TopicImage>, Refusal> {
    image.topic_by_name(name).ok_or(Refusal::UnknownTopicOrPartition)
}

/// The topic of an id.
pub(crate) fn by_id(image: &MetadataImage, id: Uuid) -> Result<&Arc<TopicImage>, Refusal> {
    image.topic(TopicId(id)).ok_or(Refusal::UnknownTopicId)
}

/// A topic that was looked up, for a client that would change its records.
pub(crate) fn to_change(found: Result<&Arc<TopicImage>, Refusal>) -> Result<&Arc<TopicImage>, Refusal> {
    match found {
        Ok(topic) if metadata::is_internal_topic(&topic.name) => Err(Refusal::InternalTopic),
        found => found,
    }
}

/// A partition of a topic that was looked up.
pub(crate) fn partition(topic: &Result<&Arc<TopicImage>, Refusal>, index: i32) -> Result<TopicPartition, Refusal> {
    let topic = topic.as_ref().map_err(Clone::clone)?;
    let index = PartitionIndex(index);
    match topic.partition(index) {
        Some(_) => Ok(TopicPartition { topic_id: topic.id, partition: index }),
        None => Err(Refusal::UnknownTopicOrPartition),
    }
}

/// The answers of the broker, to be taken in the order of the request, whatever order they came in.
#[derive(Debug)]
pub(crate) struct ByPartition<T> {
    answers: Vec<Option<T>>,
    partition_of: fn(&T) -> TopicPartition,
    /// The next one, as long as the orders agree.
    next: usize,
    /// Where each is, once they did not.
    places: Option<BTreeMap<TopicPartition, usize>>,
}

impl<T> ByPartition<T> {
    pub(crate) fn new(answers: Vec<T>, partition_of: fn(&T) -> TopicPartition) -> Self {
        Self { answers: answers.into_iter().map(Some).collect(), partition_of, next: 0, places: None }
    }

    /// The answer for a partition; each is given once.
    pub(crate) fn take(&mut self, partition: TopicPartition) -> Result<T, Refusal> {
        let partition_of = self.partition_of;
        if let Some(answer) = self.answers.get_mut(self.next)
            && answer.as_ref().is_some_and(|answer| partition_of(answer) == partition)
        {
            self.next += 1;
            return answer.take().ok_or(Refusal::Unanswered);
        }
        let answers = &self.answers;
        let places = self.places.get_or_insert_with(|| {
            let place = |(at, answer): (usize, &Option<T>)| Some((partition_of(answer.as_ref()?), at));
            answers.iter().enumerate().filter_map(place).collect()
        });
        let at = places.remove(&partition).ok_or(Refusal::Unanswered)?;
        self.answers[at].take().ok_or(Refusal::Unanswered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: i32) -> TopicPartition {
        TopicPartition { topic_id: TopicId::NONE, partition: PartitionIndex(index) }
    }

    #[test]
    fn the_longest_name_is_the_one_that_the_controller_allows() {
        for (len, too_long) in [(TOPIC_NAME_MAX, false), (TOPIC_NAME_MAX + 1, true)] {
            let name = "x".repeat(len);
            assert_eq!((is_too_long(&name), metadata::control::check_topic_name(&name).is_err()), (too_long, too_long));
        }
    }

    #[test]
    fn answers_are_found_whatever_their_order() {
        let mut answers = ByPartition::new(vec![id(0), id(3), id(2), id(1)], |answer| *answer);
        for index in 0..4 {
            assert_eq!(answers.take(id(index)), Ok(id(index)));
        }
        assert_eq!(answers.take(id(0)), Err(Refusal::Unanswered), "each is given once");
        assert_eq!(answers.take(id(9)), Err(Refusal::Unanswered));
    }
}
