//! UpdateFeatures: the levels that the cluster works at.

use broker::api::BrokerApi;
use metadata::control::{FeatureUpdate, UpdateFeatures};
use model::ErrorCode;
use protocol::messages::update_features_request::FeatureUpdateKey;
use protocol::messages::update_features_response::UpdatableFeatureResult;
use protocol::messages::{UpdateFeaturesRequest, UpdateFeaturesResponse};

use crate::call::Call;
use crate::handlers::{ask_controller, millis};
use crate::refusal::Refusal;

/// The first version that names the kind of change.
const NAMES_KIND: i16 = 1;
const UPGRADE: i8 = 1;
const SAFE_DOWNGRADE: i8 = 2;
const UNSAFE_DOWNGRADE: i8 = 3;

/// Has the controller decide: all or none.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: UpdateFeaturesRequest) -> UpdateFeaturesResponse {
    match update(&call, request).await {
        Ok(features) => {
            let result = |feature| UpdatableFeatureResult { feature, error_message: None, ..Default::default() };
            UpdateFeaturesResponse {
                results: features.into_iter().map(result).collect(),
                error_message: None,
                ..Default::default()
            }
        }
        Err(refusal) => UpdateFeaturesResponse {
            error_code: refusal.wire(),
            error_message: refusal.message(),
            ..Default::default()
        },
    }
}

async fn update<B: BrokerApi>(call: &Call<B>, request: UpdateFeaturesRequest) -> Result<Vec<String>, Refusal> {
    let updates: Vec<FeatureUpdate> =
        request.feature_updates.into_iter().map(|key| to_control(call.version, key)).collect::<Result<_, _>>()?;
    let features = updates.iter().map(|update| update.name.clone()).collect();
    let change = UpdateFeatures { updates, validate_only: request.validate_only };
    let results = ask_controller!(call, UpdateFeatures, change, millis(request.timeout_ms))?;
    match results.into_iter().find_map(|result| result.result.err()) {
        Some(error) => Err(Refusal::Decided(error)),
        None => Ok(features),
    }
}

fn to_control(version: i16, key: FeatureUpdateKey) -> Result<FeatureUpdate, Refusal> {
    let allow_downgrade = match key.upgrade_type {
        _ if version < NAMES_KIND => key.allow_downgrade,
        UPGRADE => false,
        SAFE_DOWNGRADE | UNSAFE_DOWNGRADE => true,
        _ => return Err(Refusal::Broker(ErrorCode::InvalidUpdateVersion)),
    };
    Ok(FeatureUpdate { name: key.feature, level: key.max_version_level, allow_downgrade })
}
