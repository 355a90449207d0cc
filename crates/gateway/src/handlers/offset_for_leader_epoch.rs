//! OffsetForLeaderEpoch: where leader epochs ended, for consumers that check their position (KIP-320).

use broker::api::BrokerApi;
use model::LeaderEpoch;
use protocol::messages::offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult};
use protocol::messages::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};

use crate::call::Call;
use crate::refusal::Refusal;
use crate::resolve;

/// Answers from the logs here.
pub(crate) async fn handle<B: BrokerApi>(
    call: Call<B>,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let image = call.image();
    // Consumers say -1 or, from version 3 on, nothing, which is -2 (a debugging consumer).
    let from_replica = request.replica_id >= 0;
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let found = resolve::by_name(&image, &topic.topic);
        let found = if from_replica { Err(Refusal::FromReplica) } else { found };
        let partitions = topic.partitions.into_iter().map(|each| {
            let index = each.partition;
            match resolve::partition(&found, index) {
                Ok(partition) => {
                    let known = LeaderEpoch(each.current_leader_epoch);
                    let end = call.broker().epoch_end_offset(partition, known, LeaderEpoch(each.leader_epoch));
                    EpochEndOffset {
                        error_code: end.error.code(),
                        partition: index,
                        leader_epoch: end.leader_epoch.0,
                        end_offset: end.end_offset.0,
                    }
                }
                Err(refusal) => EpochEndOffset { error_code: refusal.wire(), partition: index, ..Default::default() },
            }
        });
        let partitions = partitions.collect();
        topics.push(OffsetForLeaderTopicResult { topic: topic.topic, partitions });
    }
    OffsetForLeaderEpochResponse { topics, ..Default::default() }
}
