//! What a controller answers over `rpc`: requests, the metadata stream, the description of the quorum.

use std::sync::Arc;
use std::time::Duration;

use metadata::{ControlError, ControlRequest};
use model::{ClusterId, MetadataOffset};
use rpc::controller::{
    Answered, ControllerServer, FollowSender, MetadataEvent, QuorumInfo, Reply, Tenure, VoterChange,
};

use crate::control_loop::{CONFIRMATION, ControlHandle};
use crate::metadata_log::Since;
use crate::raft::{Quorum, members};

/// A sign of life on a stream on which nothing happens: well below the silence that followers bear (`R69`).
const KEEP_ALIVE: Duration = Duration::from_millis(200);

/// See the module.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) quorum: Arc<Quorum>,
    pub(crate) control: ControlHandle,
}

impl ControllerServer for Service {
    async fn call(self: Arc<Self>, request: ControlRequest, timeout: Duration) -> Reply<Answered> {
        self.control.call(request, timeout).await
    }

    async fn follow(self: Arc<Self>, cluster: ClusterId, mut next: MetadataOffset, sender: FollowSender) {
        let mut moved = self.quorum.published.watch();
        loop {
            moved.mark_unchanged();
            let Some(tenure) = self.quorum.contact.active() else {
                // Only an active tenure speaks (R69).
                sender.not_controller(self.quorum.leader().filter(|(id, _)| id.0 != self.quorum.me.id)).await;
                return;
            };
            let Some(reached) = self.send_since(tenure, cluster, next, &sender).await else { return };
            if reached > next {
                next = reached;
                continue;
            }
            tokio::select! {
                // All are waits: dropping them loses nothing.
                _ = moved.changed() => {}
                () = sender.closed() => return,
                () = tokio::time::sleep(KEEP_ALIVE) => {
                    if self.quorum.contact.active() == Some(tenure) && !sender.keep_alive(tenure).await {
                        return;
                    }
                }
            }
        }
    }

    async fn describe(&self) -> QuorumInfo {
        let confirmed = self.quorum.contact.active().is_some() && self.quorum.is_current(CONFIRMATION).await;
        let info = self.quorum.describe();
        QuorumInfo { active: info.active && confirmed, ..info }
    }

    async fn change_voters(self: Arc<Self>, change: VoterChange) -> Reply<Result<(), ControlError>> {
        let leader = || self.quorum.leader().filter(|(id, _)| id.0 != self.quorum.me.id);
        let Some(tenure) = self.quorum.contact.active() else {
            return Reply::NotController { leader: leader(), undecided: true };
        };
        let outcome = match change {
            VoterChange::Add { node, address } => members::add(&self.quorum, node, address).await,
            VoterChange::Remove { node } => members::remove(&self.quorum, node).await,
        };
        // What was committed stays so, whoever is active by now.
        match outcome {
            Err(_) if self.quorum.contact.active() != Some(tenure) => {
                Reply::NotController { leader: leader(), undecided: false }
            }
            outcome => Reply::Active(tenure, outcome),
        }
    }
}

impl Service {
    /// Sends what follows `next`, and says where the follower stands then; `None` when the stream is to end.
    async fn send_since(
        &self,
        tenure: Tenure,
        cluster: ClusterId,
        next: MetadataOffset,
        sender: &FollowSender,
    ) -> Option<MetadataOffset> {
        let image = self.quorum.image();
        if !cluster.is_none() && !image.cluster_id().is_none() && image.cluster_id() != cluster {
            let reason = format!("this node is of cluster {cluster}, the controllers are of {}", image.cluster_id());
            sender.event(tenure, &MetadataEvent::Refused(reason)).await;
            return None;
        }
        match self.quorum.published.since(next) {
            Since::Ahead => {
                let reason = format!(
                    "this node has metadata up to {next}, the whole quorum only up to {}: it lost committed records",
                    image.next_offset()
                );
                sender.event(tenure, &MetadataEvent::Refused(reason)).await;
                None
            }
            Since::Image(image) => {
                let next_offset = image.next_offset();
                let event = MetadataEvent::Snapshot { next_offset, records: image.to_records() };
                sender.event(tenure, &event).await.then_some(next_offset)
            }
            Since::Batches { batches, end } => {
                for (base, records) in batches {
                    if !sender.batch(tenure, base, records).await {
                        return None;
                    }
                }
                Some(end)
            }
        }
    }
}
