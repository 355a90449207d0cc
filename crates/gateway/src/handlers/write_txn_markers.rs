//! WriteTxnMarkers: ends transactions in partitions led here (`R47`). Ottla's coordinators speak gRPC among themselves; this
//! is for an operator who ends a transaction that hangs. It is an action upon the cluster, to be allowed to nobody else as
//! soon as there is an authorizer.

use broker::api::{BrokerApi, TransactionMarker};
use metadata::MetadataImage;
use model::{ErrorCode, ProducerEpoch, ProducerId, TopicPartition};
use protocol::messages::write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic};
use protocol::messages::write_txn_markers_response::{
    WritableTxnMarkerPartitionResult, WritableTxnMarkerResult, WritableTxnMarkerTopicResult,
};
use protocol::messages::{WriteTxnMarkersRequest, WriteTxnMarkersResponse};

use crate::call::Call;
use crate::refusal::Refusal;
use crate::resolve;

/// How long the in-sync replicas are waited for: the request names no time, and clients give up after this one.
const TIMEOUT_MS: u64 = 30_000;

/// A topic of a marker: its partitions as they were asked for, and where their results are to be found.
type Asked = (String, Vec<(i32, Result<TopicPartition, Refusal>)>);

/// Has the broker write them, all at once.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: WriteTxnMarkersRequest) -> WriteTxnMarkersResponse {
    let image = call.image();
    let mut asked: Vec<(i64, Vec<Asked>)> = Vec::with_capacity(request.markers.len());
    let mut markers = Vec::with_capacity(request.markers.len());
    for marker in request.markers {
        let told = to_broker(&marker);
        let topics: Vec<Asked> = marker.topics.into_iter().map(|topic| resolved(&image, topic)).collect();
        let partitions = topics.iter().flat_map(|(_, partitions)| partitions);
        markers.push((told, partitions.filter_map(|(_, partition)| partition.clone().ok()).collect()));
        asked.push((marker.producer_id, topics));
    }
    let written = call.broker().write_txn_markers(markers, TIMEOUT_MS).await;
    let written = written.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
    let markers = asked.into_iter().zip(written).map(|((producer_id, topics), written)| WritableTxnMarkerResult {
        producer_id,
        topics: results(topics, written.unwrap_or_default()),
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

fn resolved(image: &MetadataImage, topic: WritableTxnMarkerTopic) -> Asked {
    let found = resolve::by_name(image, &topic.name);
    let partitions = topic.partition_indexes.into_iter().map(|index| (index, resolve::partition(&found, index)));
    let partitions = partitions.collect();
    (topic.name, partitions)
}

/// What was written comes in the order of the partitions that exist.
fn results(asked: Vec<Asked>, written: Vec<(TopicPartition, ErrorCode)>) -> Vec<WritableTxnMarkerTopicResult> {
    let mut written = written.into_iter();
    let mut told = |(partition_index, partition): (i32, Result<TopicPartition, Refusal>)| {
        let code = partition.and_then(|id| match written.next() {
            Some((wrote, error)) if wrote == id => Ok(error.code()),
            _ => Err(Refusal::Unanswered),
        });
        let error_code = code.unwrap_or_else(|refusal| refusal.wire());
        WritableTxnMarkerPartitionResult { partition_index, error_code }
    };
    let mut topics: Vec<WritableTxnMarkerTopicResult> = Vec::new();
    for (name, partitions) in asked.into_iter().filter(|(_, partitions)| !partitions.is_empty()) {
        let partitions = partitions.into_iter().map(&mut told);
        match topics.last_mut() {
            Some(last) if last.name == name => last.partitions.extend(partitions),
            _ => topics.push(WritableTxnMarkerTopicResult { name, partitions: partitions.collect() }),
        }
    }
    topics
}
