//! RemoveRaftVoter: a voter of the metadata quorum goes (KIP-853).

use broker::api::{BrokerApi, VoterChange};
use model::{BrokerId, DirectoryId};
use protocol::messages::{RemoveRaftVoterRequest, RemoveRaftVoterResponse};

use crate::call::Call;
use crate::handlers::add_raft_voter::change_voters;

/// How long the controllers may take: the request names no time.
const TIMEOUT_MS: u64 = 30_000;

/// Has the controllers go on without it.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: RemoveRaftVoterRequest) -> RemoveRaftVoterResponse {
    let change =
        VoterChange::Remove { id: BrokerId(request.voter_id), directory: DirectoryId(request.voter_directory_id) };
    match change_voters(&call, request.cluster_id.as_deref(), change, TIMEOUT_MS).await {
        Ok(()) => RemoveRaftVoterResponse::default(),
        Err(refusal) => RemoveRaftVoterResponse {
            error_code: refusal.wire(),
            error_message: refusal.message(),
            ..Default::default()
        },
    }
}
