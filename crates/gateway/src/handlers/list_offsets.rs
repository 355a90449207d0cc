//! ListOffsets: offsets by time, and the ends of logs.

use std::collections::{BTreeMap, BTreeSet};

use broker::api::{self, BrokerApi, ListedOffset, OffsetSpec};
use model::{LeaderEpoch, TopicPartition};
use protocol::messages::list_offsets_request::ListOffsetsTopic;
use protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use protocol::messages::{ListOffsetsRequest, ListOffsetsResponse};

use crate::call::Call;
use crate::handlers::fetch::isolation;
use crate::refusal::Refusal;
use crate::resolve::{self, ByPartition};

/// Asks for each partition that is there.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: ListOffsetsRequest) -> ListOffsetsResponse {
    let image = call.image();
    let isolation = isolation(request.isolation_level);
    let numbers = numbers(&request.topics);
    let repeated = repeated(&request.topics, &numbers);
    let (mut told_once, mut asked, mut slots) = (BTreeSet::new(), Vec::new(), Vec::new());
    for (topic, number) in request.topics.into_iter().zip(numbers) {
        let found = resolve::by_name(&image, &topic.name);
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for each in topic.partitions {
            let key = (number, each.partition_index);
            let again = repeated.contains(&key);
            if again && !told_once.insert(key) {
                continue;
            }
            let resolved = isolation.clone().and_then(|_| {
                if again {
                    return Err(Refusal::Repeated("a partition"));
                }
                let spec = spec(each.timestamp, call.version)?;
                let partition = resolve::partition(&found, each.partition_index)?;
                let current_leader_epoch = LeaderEpoch(each.current_leader_epoch);
                asked.push(api::ListOffsetsPartition { partition, current_leader_epoch, spec });
                Ok(partition)
            });
            partitions.push((each.partition_index, resolved));
        }
        slots.push((topic.name, partitions));
    }
    drop(image);
    let listed = match isolation {
        Ok(isolation) if !asked.is_empty() => call.broker().list_offsets(isolation, asked).await,
        _ => Vec::new(),
    };
    let mut listed = ByPartition::new(listed, |listed: &ListedOffset| listed.partition);
    let mut answer = |(index, partition): (i32, Result<TopicPartition, Refusal>)| {
        told(index, partition.and_then(|partition| listed.take(partition)))
    };
    let topics = slots.into_iter().map(|(name, partitions)| ListOffsetsTopicResponse {
        name,
        partitions: partitions.into_iter().map(&mut answer).collect(),
    });
    ListOffsetsResponse { topics: topics.collect(), ..Default::default() }
}

/// A number for each topic of the request, the same for the same name: a name, however long, is compared once for each topic
/// and not for each of its partitions.
fn numbers<'a>(topics: &'a [ListOffsetsTopic]) -> Vec<usize> {
    let mut known = BTreeMap::new();
    let mut number = |topic: &'a ListOffsetsTopic| {
        let next = known.len();
        *known.entry(topic.name.as_str()).or_insert(next)
    };
    topics.iter().map(&mut number).collect()
}

/// The partitions that stand in the request more than once: as in Kafka each is refused, and told of once.
fn repeated(topics: &[ListOffsetsTopic], numbers: &[usize]) -> BTreeSet<(usize, i32)> {
    let all = topics.iter().zip(numbers);
    let all = all.flat_map(|(topic, number)| topic.partitions.iter().map(|each| (*number, each.partition_index)));
    let mut seen = BTreeSet::new();
    all.filter(|key| !seen.insert(*key)).collect()
}

fn told(partition_index: i32, listed: Result<ListedOffset, Refusal>) -> ListOffsetsPartitionResponse {
    match listed {
        Ok(listed) => ListOffsetsPartitionResponse {
            partition_index,
            error_code: listed.error.code(),
            timestamp: listed.timestamp,
            offset: listed.offset.0,
            leader_epoch: listed.leader_epoch.0,
        },
        Err(refusal) => {
            ListOffsetsPartitionResponse { partition_index, error_code: refusal.wire(), ..Default::default() }
        }
    }
}

/// What a timestamp of the wire asks for; the negative ones came with the versions.
fn spec(timestamp: i64, version: i16) -> Result<OffsetSpec, Refusal> {
    let since = |least: i16, spec| if version >= least { Ok(spec) } else { Err(Refusal::UnsupportedValue) };
    match timestamp {
        -1 => Ok(OffsetSpec::Latest),
        -2 => Ok(OffsetSpec::Earliest),
        -3 => since(7, OffsetSpec::MaxTimestamp),
        -4 => since(8, OffsetSpec::EarliestLocal),
        -5 => since(9, OffsetSpec::LatestTiered),
        // The first offset that remote storage is still to get: none, as long as there is no remote storage.
        -6 => since(11, OffsetSpec::LatestTiered),
        time if time < 0 => Err(Refusal::UnsupportedValue),
        time => Ok(OffsetSpec::Timestamp(time)),
    }
}

#[cfg(test)]
mod tests {
    use protocol::messages::list_offsets_request::ListOffsetsPartition;

    use super::*;

    fn topic(name: &str, partitions: &[i32]) -> ListOffsetsTopic {
        let partition = |index: &i32| ListOffsetsPartition { partition_index: *index, ..Default::default() };
        ListOffsetsTopic { name: name.to_owned(), partitions: partitions.iter().map(partition).collect() }
    }

    #[test]
    fn a_partition_is_repeated_wherever_its_topic_is_named_again() {
        let topics = [topic("a", &[0, 1]), topic("b", &[0, 2, 2]), topic("c", &[]), topic("a", &[1, 2])];
        let numbers = numbers(&topics);
        assert_eq!(numbers, [0, 1, 2, 0]);
        assert_eq!(repeated(&topics, &numbers), [(0, 1), (1, 2)].into());
    }

    #[test]
    fn special_timestamps_belong_to_versions() {
        assert_eq!(spec(-1, 1), Ok(OffsetSpec::Latest));
        assert_eq!(spec(-3, 6), Err(Refusal::UnsupportedValue));
        assert_eq!(spec(-3, 7), Ok(OffsetSpec::MaxTimestamp));
        assert_eq!(spec(-4, 7), Err(Refusal::UnsupportedValue));
        assert_eq!(spec(-7, 11), Err(Refusal::UnsupportedValue));
        assert_eq!(spec(0, 1), Ok(OffsetSpec::Timestamp(0)));
    }
}
