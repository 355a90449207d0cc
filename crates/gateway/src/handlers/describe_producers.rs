//! DescribeProducers: the producers that have state in partitions led here.

use broker::api::BrokerApi;
use protocol::messages::describe_producers_response::{PartitionResponse, ProducerState, TopicResponse};
use protocol::messages::{DescribeProducersRequest, DescribeProducersResponse};

use crate::call::Call;
use crate::resolve;

/// Answers from the partitions here.
pub(crate) async fn handle<B: BrokerApi>(
    call: Call<B>,
    request: DescribeProducersRequest,
) -> DescribeProducersResponse {
    let image = call.image();
    let topics = request.topics.into_iter().map(|topic| {
        let found = resolve::by_name(&image, &topic.name);
        let partitions = topic.partition_indexes.into_iter().map(|partition_index| {
            match resolve::partition(&found, partition_index) {
                Ok(partition) => {
                    let described = call.broker().describe_producers(partition);
                    PartitionResponse {
                        partition_index,
                        error_code: described.error.code(),
                        active_producers: described.producers.iter().map(producer).collect(),
                        ..Default::default()
                    }
                }
                Err(refusal) => PartitionResponse {
                    partition_index,
                    error_code: refusal.wire(),
                    error_message: refusal.message(),
                    ..Default::default()
                },
            }
        });
        let partitions = partitions.collect();
        TopicResponse { name: topic.name, partitions }
    });
    DescribeProducersResponse { topics: topics.collect(), ..Default::default() }
}

fn producer(producer: &broker::api::ProducerDescription) -> ProducerState {
    ProducerState {
        producer_id: producer.producer_id.0,
        producer_epoch: i32::from(producer.producer_epoch.0),
        last_sequence: producer.last_sequence,
        last_timestamp: producer.last_timestamp,
        coordinator_epoch: producer.coordinator_epoch,
        current_txn_start_offset: producer.transaction_start.0,
    }
}
