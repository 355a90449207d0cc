//! DeleteRecords: moves log starts up.

use broker::api::{BrokerApi, DeletedRecords};
use model::Offset;
use protocol::messages::delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult};
use protocol::messages::{DeleteRecordsRequest, DeleteRecordsResponse};

use crate::call::Call;
use crate::handlers::millis;
use crate::resolve::{self, ByPartition};

/// Asks the broker for the partitions that exist.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: DeleteRecordsRequest) -> DeleteRecordsResponse {
    let image = call.image();
    let (mut asked, mut slots) = (Vec::new(), Vec::new());
    for topic in request.topics {
        let found = resolve::to_change(resolve::by_name(&image, &topic.name));
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for each in topic.partitions {
            let partition = resolve::partition(&found, each.partition_index);
            asked.extend(partition.as_ref().ok().map(|partition| (*partition, Offset(each.offset))));
            partitions.push((each.partition_index, partition));
        }
        slots.push((topic.name, partitions));
    }
    drop(image);
    let deleted = if asked.is_empty() {
        Vec::new()
    } else {
        call.broker().delete_records(asked, millis(request.timeout_ms)).await
    };
    let mut deleted = ByPartition::new(deleted, |deleted: &DeletedRecords| deleted.partition);
    let mut told = |(partition_index, partition): (i32, Result<_, _>)| match partition
        .and_then(|partition| deleted.take(partition))
    {
        Ok(deleted) => DeleteRecordsPartitionResult {
            partition_index,
            low_watermark: deleted.low_watermark.0,
            error_code: deleted.error.code(),
        },
        Err(refusal) => DeleteRecordsPartitionResult { partition_index, low_watermark: -1, error_code: refusal.wire() },
    };
    let topics = slots.into_iter().map(|(name, partitions)| DeleteRecordsTopicResult {
        name,
        partitions: partitions.into_iter().map(&mut told).collect(),
    });
    DeleteRecordsResponse { topics: topics.collect(), ..Default::default() }
}
