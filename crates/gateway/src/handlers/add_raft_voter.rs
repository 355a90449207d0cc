//! AddRaftVoter: a voter of the metadata quorum comes (KIP-853).

use broker::api::{BrokerApi, VoterChange};
use model::{BrokerId, DirectoryId, ErrorCode};
use protocol::messages::{AddRaftVoterRequest, AddRaftVoterResponse};

use crate::call::Call;
use crate::handlers::millis;
use crate::refusal::Refusal;

/// The listener that a voter is reached by; where none has that name, its first.
const CONTROLLER_LISTENER: &str = "CONTROLLER";

/// Has the controllers take it on.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: AddRaftVoterRequest) -> AddRaftVoterResponse {
    let listeners = &request.listeners;
    let named = listeners.iter().find(|listener| listener.name == CONTROLLER_LISTENER);
    let outcome = match named.or_else(|| listeners.first()) {
        None => Err(Refusal::Malformed("a voter needs a listener")),
        Some(listener) => {
            let change = VoterChange::Add {
                id: BrokerId(request.voter_id),
                directory: DirectoryId(request.voter_directory_id),
                address: format!("{}:{}", listener.host, listener.port),
            };
            change_voters(&call, request.cluster_id.as_deref(), change, millis(request.timeout_ms)).await
        }
    };
    match outcome {
        Ok(()) => AddRaftVoterResponse::default(),
        Err(refusal) => {
            AddRaftVoterResponse { error_code: refusal.wire(), error_message: refusal.message(), ..Default::default() }
        }
    }
}

/// Has the controllers change who votes, if they are those of the cluster that is meant.
pub(super) async fn change_voters<B: BrokerApi>(
    call: &Call<B>,
    cluster: Option<&str>,
    change: VoterChange,
    timeout_ms: u64,
) -> Result<(), Refusal> {
    if cluster.is_some_and(|cluster| cluster != call.broker().identity().cluster_id.to_string()) {
        return Err(Refusal::Broker(ErrorCode::InconsistentClusterId));
    }
    call.broker().change_voters(change, timeout_ms).await.map_err(Refusal::Undecided)
}
