//! A partition as clients are told of it: by Metadata and by DescribeTopicPartitions.

use broker::api::BrokerApi;
use metadata::{MetadataImage, records::Partition};
use model::{BrokerId, ErrorCode};

use crate::call::Call;
use crate::refusal::Refusal;

/// The first version of Metadata that tells apart a leader without this listener from no leader.
pub(crate) const TELLS_LISTENER: i16 = 6;

/// What is told.
pub(crate) struct PartitionView {
    pub(crate) error_code: i16,
    pub(crate) leader_id: i32,
    pub(crate) leader_epoch: i32,
    pub(crate) replicas: Vec<i32>,
    pub(crate) isr: Vec<i32>,
    pub(crate) offline: Vec<i32>,
}

impl PartitionView {
    /// The view of a client of this listener.
    pub(crate) fn new<B: BrokerApi>(
        call: &Call<B>,
        image: &MetadataImage,
        partition: &Partition,
        tells_listener: bool,
    ) -> Self {
        let reachable = |id: BrokerId| {
            let online = image.broker(id).is_some_and(|broker| broker.is_online(partition.directory_of(id)));
            online && call.address_of(image, id).is_some()
        };
        let offline = partition.replicas.iter().copied().filter(|id| !reachable(*id));
        let leader = if partition.is_leaderless() {
            Err(Refusal::NoLeader)
        } else if call.address_of(image, partition.leader).is_some() {
            Ok(partition.leader)
        } else if tells_listener && image.broker(partition.leader).is_some_and(|broker| !broker.fenced) {
            Err(Refusal::NoListener)
        } else {
            Err(Refusal::NoLeader)
        };
        Self {
            error_code: leader.as_ref().err().map_or(ErrorCode::None, Refusal::code).code(),
            leader_id: leader.unwrap_or(BrokerId::NONE).0,
            leader_epoch: partition.leader_epoch.0,
            offline: numbers(offline),
            replicas: numbers(partition.replicas.iter().copied()),
            isr: numbers(partition.isr.iter().copied()),
        }
    }

    /// What version 0 of Metadata says of it: it knows no offline replicas, so they are left out with an error.
    pub(crate) fn without_offline(mut self) -> Self {
        let offline = std::mem::take(&mut self.offline);
        if !offline.is_empty() {
            self.replicas.retain(|id| !offline.contains(id));
            self.isr.retain(|id| !offline.contains(id));
            if self.error_code == ErrorCode::None.code() {
                self.error_code = Refusal::ReplicaNotAvailable.wire();
            }
        }
        self
    }
}

/// Ids as the wire has them.
pub(crate) fn numbers(ids: impl Iterator<Item = BrokerId>) -> Vec<i32> {
    ids.map(|id| id.0).collect()
}
