//! ApiVersions: what is served, and the features of the cluster.

use std::collections::BTreeMap;

use broker::api::BrokerApi;
use metadata::control::supported_features;
use protocol::ApiKey;
use protocol::messages::api_versions_response::{ApiVersion, FinalizedFeatureKey, SupportedFeatureKey};
use protocol::messages::{ApiVersionsRequest, ApiVersionsResponse};

use crate::call::Call;
use crate::dispatch::SERVED;
use crate::refusal::Refusal;

/// The first version in which clients name their software.
const NAMES_SOFTWARE: i16 = 3;
/// The first version that can say that a feature begins at level 0 (KIP-848's clients read it; older ones fail on it).
const FEATURES_FROM_ZERO: i16 = 4;

/// Answers from what is known here.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: ApiVersionsRequest) -> ApiVersionsResponse {
    let named = is_software_name(&request.client_software_name) && is_software_name(&request.client_software_version);
    if call.version >= NAMES_SOFTWARE && !named {
        let refusal = Refusal::Malformed("the client's software has no valid name and version");
        return ApiVersionsResponse { error_code: refusal.wire(), ..Default::default() };
    }
    let image = call.image();
    let supported: BTreeMap<_, _> = supported_features();
    let supported = supported.into_iter().filter(|(_, range)| call.version >= FEATURES_FROM_ZERO || range.min > 0);
    let supported =
        supported.map(|(name, range)| SupportedFeatureKey { name, min_version: range.min, max_version: range.max });
    let finalized = image.features().iter().map(|(name, level)| FinalizedFeatureKey {
        name: name.clone(),
        max_version_level: *level,
        min_version_level: *level,
    });
    ApiVersionsResponse {
        api_keys: SERVED.iter().copied().map(entry).collect(),
        supported_features: supported.collect(),
        finalized_features_epoch: i64::try_from(image.next_offset().0).unwrap_or(i64::MAX),
        finalized_features: finalized.collect(),
        ..Default::default()
    }
}

/// The versions of an API.
pub(crate) fn entry(api: ApiKey) -> ApiVersion {
    let versions = api.versions();
    // librdkafka compresses with gzip, snappy and lz4 only for brokers that say they know Produce 0, so Kafka says so too
    // (KAFKA-18659): such a request is refused as any version that is not served.
    let min_version = if api == ApiKey::Produce { 0 } else { *versions.start() };
    ApiVersion { api_key: api.key(), min_version, max_version: *versions.end() }
}

/// Letters and digits, with dots and hyphens between (KIP-511).
fn is_software_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    let outer = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    outer(name.bytes().next()) && outer(name.bytes().last()) && name.bytes().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_real_clients_are_valid_and_others_are_not() {
        for name in ["apache-kafka-java", "4.3.1", "librdkafka", "a", "kafka-python"] {
            assert!(is_software_name(name), "{name}");
        }
        for name in ["", "-a", "a-", "a b", "a\n", "ü"] {
            assert!(!is_software_name(name), "{name}");
        }
    }
}
