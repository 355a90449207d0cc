//! WriteTxnMarkers: ends transactions in partitions led here (`R47`). Ottla's coordinators speak gRPC among themselves; this
//! is for an operator who ends a transaction that hangs. It is an action upon the cluster, to be allowed to nobody else as
//! soon as there is an authorizer.

use broker::api::{BrokerApi, TransactionMarker};
use model::{ErrorCode, ProducerEpoch, ProducerId, TopicPartition};
use protocol::messages::write_txn_markers_request::WritableTxnMarker;
use protocol::messages::write_txn_markers_response::{
    WritableTxnMarkerPartitionResult, WritableTxnMarkerResult, WritableTxnMarkerTopicResult,
};
use protocol::messages::{WriteTxnMarkersRequest, WriteTxnMarkersResponse};

use crate::call::Call;
use crate::refusal::Refusal;
use crate::resolve;

/// How long the in-sync replicas are waited for: the request names no time, and clients give up after this one.
const TIMEOUT_MS: u64 = 30_000;

/// A partition of a marker: as it was asked for, and where its result is to be found.
type Asked = (String, i32, Result<TopicPartition, Refusal>);

/// Has the broker write them, all at once.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: WriteTxnMarkersRequest) -> WriteTxnMarkersResponse {
    let image = call.image();
    let mut asked: Vec<(i64, Vec<Asked>)> = Vec::with_capacity(request.markers.len());
    let mut markers = Vec::with_capacity(request.markers.len());
    for marker in request.markers {
        let told = to_broker(&marker);
        let mut partitions = Vec::new();
        for topic in marker.topics {
            let found = resolve::by_name(&image, &topic.name);
            partitions.extend(topic.partition_indexes.into_iter().map(|index| {
                let partition = resolve::partition(&found, index);
                (topic.name.clone(), index, partition)
            }));
        }
        markers.push((told, partitions.iter().filter_map(|(_, _, partition)| partition.clone().ok()).collect()));
        asked.push((marker.producer_id, partitions));
    }
    let written = call.broker().write_txn_markers(markers, TIMEOUT_MS).await;
    let written = written.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
    let markers = asked.into_iter().zip(written).map(|((producer_id, partitions), written)| WritableTxnMarkerResult {
        producer_id,
        topics: results(partitions, written.unwrap_or_default()),
    });
    WriteTxnMarkersResponse { markers: markers.collect() }
}

fn to_broker(marker: &WritableTxnMarker) -> TransactionMarker {
    TransactionMarker {
        producer_id: ProducerId(marker.producer_id),
        producer_epoch: ProducerEpoch(marker.producer_epoch),
        coordinator_epoch: marker.coordinator_epoch,
        transaction_version: marker.transaction_version,
        commit: marker.transaction_result,
    }
}

/// What was written comes in the order of the partitions that exist.
fn results(asked: Vec<Asked>, written: Vec<(TopicPartition, ErrorCode)>) -> Vec<WritableTxnMarkerTopicResult> {
    let mut written = written.into_iter();
    let mut topics: Vec<WritableTxnMarkerTopicResult> = Vec::new();
    for (name, partition_index, partition) in asked {
        let code = partition.and_then(|id| match written.next() {
            Some((wrote, error)) if wrote == id => Ok(error.code()),
            _ => Err(Refusal::Unanswered),
        });
        let error_code = code.unwrap_or_else(|refusal| refusal.wire());
        let result = WritableTxnMarkerPartitionResult { partition_index, error_code };
        match topics.last_mut() {
            Some(last) if last.name == name => last.partitions.push(result),
            _ => topics.push(WritableTxnMarkerTopicResult { name, partitions: vec![result] }),
        }
    }
    topics
}
