//! ListOffsets: offsets by time, and the ends of logs.

use std::collections::BTreeSet;

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
    let repeated = repeated(&request.topics);
    let (mut told_once, mut asked, mut slots) = (BTreeSet::new(), Vec::new(), Vec::new());
    for topic in request.topics {
        let found = resolve::by_name(&image, &topic.name);
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for each in topic.partitions {
            let again =
                if repeated.is_empty() { None } else { repeated.get(&(topic.name.clone(), each.partition_index)) };
            if again.is_some_and(|again| !told_once.insert(again)) {
                continue;
            }
            let resolved = isolation.clone().and_then(|_| {
                if again.is_some() {
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

/// The partitions that stand in the request more than once: as in Kafka each is refused, and told of once.
fn repeated(topics: &[ListOffsetsTopic]) -> BTreeSet<(String, i32)> {
    let all = topics.iter().flat_map(|topic| topic.partitions.iter().map(|each| (&topic.name, each.partition_index)));
    let mut seen = BTreeSet::new();
    all.filter(|key| !seen.insert(*key)).map(|(name, index)| (name.clone(), index)).collect()
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
    use super::*;

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
