//! AddOffsetsToTxn: the partition that holds a group's offsets joins a transaction (`R49`).

use broker::api::{BrokerApi, CoordinatorKind};
use broker::coordinator::transaction::request::AddPartitionsRequest;
use broker::coordinator::transaction::{PartitionSet, TransactionRequest, TransactionResponse};
use model::{ErrorCode, TopicPartition};
use protocol::messages::{AddOffsetsToTxnRequest, AddOffsetsToTxnResponse};

use crate::call::Call;
use crate::handlers::transactional::{ask, producer, told};
use crate::refusal::Refusal;

/// The first version that knows PRODUCER_FENCED.
const KNOWS_FENCED: i16 = 2;

/// Asks the transaction's coordinator for the group's partition.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: AddOffsetsToTxnRequest) -> AddOffsetsToTxnResponse {
    let error = match add(&call, request).await {
        Ok(error) => error,
        Err(refusal) => refusal.code(),
    };
    AddOffsetsToTxnResponse { error_code: told(&call, KNOWS_FENCED, error), ..Default::default() }
}

async fn add<B: BrokerApi>(call: &Call<B>, request: AddOffsetsToTxnRequest) -> Result<ErrorCode, Refusal> {
    let TopicPartition { topic_id, partition } = match call.broker().group_partition(&request.group_id) {
        Some(partition) => partition,
        None => {
            // Nobody has asked for a group coordinator yet.
            let found = call.broker().find_coordinator(CoordinatorKind::Group, &request.group_id).await;
            found.map_err(Refusal::Broker)?;
            call.broker().group_partition(&request.group_id).ok_or(Refusal::NoCoordinator)?
        }
    };
    let image = call.image();
    let topic = image.topic(topic_id).ok_or(Refusal::NoCoordinator)?;
    let partitions: PartitionSet = [(&*topic.name, partition)].into_iter().collect();
    let add = AddPartitionsRequest {
        transactional_id: request.transactional_id,
        producer: producer(request.producer_id, request.producer_epoch),
        partitions,
        verify_only: false,
        client_version: 0,
    };
    match ask(call, TransactionRequest::AddPartitions(add)).await? {
        TransactionResponse::AddPartitions(answer) => match answer.partitions.as_slice() {
            [(_, _, error)] => Ok(*error),
            _ => Err(Refusal::Unanswered),
        },
        _ => Err(Refusal::Unanswered),
    }
}
