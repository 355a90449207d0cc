//! Each controller tells the cluster where it is, as a request like any other.

use std::sync::Arc;
use std::time::Duration;

use metadata::control::{ControlRequest, supported_features};
use metadata::records::ControllerRegistration;
use rpc::controller::ControllerClient;
use tokio::time::Instant;

use crate::ControllerConfig;
use crate::raft::Quorum;

const PAUSE: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Runs until it is dropped.
pub(crate) async fn run(quorum: Arc<Quorum>, config: ControllerConfig) {
    let own = ControllerRegistration {
        id: config.node_id,
        incarnation: config.incarnation,
        directory: config.directory,
        listeners: config.listeners.clone(),
        features: supported_features(),
    };
    loop {
        let image = quorum.image();
        let known = image.controllers().get(&own.id).is_some_and(|known| **known == own);
        if !image.cluster_id().is_none() && !known {
            // Of its own each time: a connection that is kept is asked for signs of life for ever.
            let client = match ControllerClient::over(config.network.clone(), &config.voters) {
                Ok(client) => client,
                Err(error) => return tracing::error!(%error, "this controller cannot register"),
            };
            let request = ControlRequest::RegisterController(own.clone());
            if let Err(error) = client.call(request, Instant::now() + TIMEOUT).await {
                tracing::debug!(%error, "this controller is not registered yet");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
