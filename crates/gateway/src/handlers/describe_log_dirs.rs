//! DescribeLogDirs: the log directories of this broker, and what is in them.

use std::collections::{BTreeMap, BTreeSet};

use broker::api::{BrokerApi, LogDirDescription, ReplicaOnDisk};
use metadata::MetadataImage;
use protocol::messages::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use protocol::messages::{DescribeLogDirsRequest, DescribeLogDirsResponse};

use crate::call::Call;

/// The partitions asked for; `None`: all.
type Filter = Option<BTreeMap<String, BTreeSet<i32>>>;

/// Answers from the disk.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: DescribeLogDirsRequest) -> DescribeLogDirsResponse {
    let filter: Filter = request.topics.map(|topics| {
        let mut asked: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
        topics.into_iter().for_each(|topic| asked.entry(topic.topic).or_default().extend(topic.partitions));
        asked
    });
    let image = call.image();
    let directories = call.broker().describe_log_dirs();
    let results = directories.into_iter().map(|directory| told(&image, &filter, directory)).collect();
    DescribeLogDirsResponse { results, ..Default::default() }
}

fn told(image: &MetadataImage, filter: &Filter, directory: LogDirDescription) -> DescribeLogDirsResult {
    let mut topics: BTreeMap<String, Vec<DescribeLogDirsPartition>> = BTreeMap::new();
    for ReplicaOnDisk { partition, size, offset_lag, is_future } in directory.replicas {
        // A topic that was deleted has no name any more; its files are about to go.
        let Some(topic) = image.topic(partition.topic_id) else { continue };
        let (name, index) = (topic.name.to_string(), partition.partition.0);
        if filter.as_ref().is_some_and(|filter| filter.get(&name).is_none_or(|asked| !asked.contains(&index))) {
            continue;
        }
        topics.entry(name).or_default().push(DescribeLogDirsPartition {
            partition_index: index,
            partition_size: i64::try_from(size).unwrap_or(i64::MAX),
            offset_lag,
            is_future_key: is_future,
        });
    }
    let topics = topics.into_iter().map(|(name, partitions)| DescribeLogDirsTopic { name, partitions });
    DescribeLogDirsResult {
        error_code: directory.error.code(),
        log_dir: directory.path,
        topics: topics.collect(),
        is_cordoned: directory.is_cordoned,
        total_bytes: directory.total_bytes,
        usable_bytes: directory.usable_bytes,
    }
}
