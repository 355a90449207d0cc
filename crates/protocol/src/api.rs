//! The table of APIs: keys, names, stable versions, header versions.
//!
//! Invariant: the table is sorted by key.

use std::ops::RangeInclusive;

include!(concat!(env!("OUT_DIR"), "/api_key.rs"));

/// Where Kafka serves an API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// On brokers.
    Broker,
    /// On controllers.
    Controller,
    /// On both.
    Both,
}

struct Facts {
    key: i16,
    api: ApiKey,
    name: &'static str,
    versions: RangeInclusive<i16>,
    flexible_from: Option<i16>,
    listener: Listener,
}

impl ApiKey {
    /// All of them, by key.
    pub fn all() -> impl Iterator<Item = ApiKey> {
        TABLE.iter().map(|facts| facts.api)
    }

    /// The API of a key on the wire.
    #[must_use]
    pub fn from_key(key: i16) -> Option<ApiKey> {
        TABLE.binary_search_by_key(&key, |facts| facts.key).ok().map(|at| TABLE[at].api)
    }

    /// The key on the wire.
    #[must_use]
    pub fn key(self) -> i16 {
        self.facts().key
    }

    /// Kafka's name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// The stable versions: what may be served and advertised. The schema may hold unstable ones above.
    #[must_use]
    pub fn versions(self) -> RangeInclusive<i16> {
        self.facts().versions.clone()
    }

    /// The versions that an ApiVersions response names.
    ///
    /// As in Kafka, Produce is named from 0 on though it is served from 3 on: librdkafka takes the versions below 3 as
    /// the sign that a broker knows its compression codecs (KAFKA-18659).
    #[must_use]
    pub fn advertised_versions(self) -> RangeInclusive<i16> {
        let versions = self.versions();
        if self == ApiKey::Produce { 0..=*versions.end() } else { versions }
    }

    /// The first version with compact lengths and tagged fields, in requests and responses alike.
    #[must_use]
    pub fn flexible_from(self) -> Option<i16> {
        self.facts().flexible_from
    }

    /// Where Kafka serves it.
    #[must_use]
    pub fn listener(self) -> Listener {
        self.facts().listener
    }

    fn facts(self) -> &'static Facts {
        let at = TABLE.binary_search_by_key(&self, |facts| facts.api).expect("every API is in the table");
        &TABLE[at]
    }
}

/// The version of a request's header.
#[must_use]
pub fn request_header_version(api: ApiKey, version: i16) -> i16 {
    if is_flexible(api, version) { 2 } else { 1 }
}

/// The version of a response's header. That of ApiVersions is always 0: it is read before the versions are agreed on.
#[must_use]
pub fn response_header_version(api: ApiKey, version: i16) -> i16 {
    if api != ApiKey::ApiVersions && is_flexible(api, version) { 1 } else { 0 }
}

fn is_flexible(api: ApiKey, version: i16) -> bool {
    api.flexible_from().is_some_and(|from| version >= from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_and_its_api_name_each_other_and_the_gaps_name_none() {
        assert_eq!(ApiKey::all().count(), 89);
        for api in ApiKey::all() {
            assert_eq!(ApiKey::from_key(api.key()), Some(api));
            assert!(!api.versions().is_empty(), "{}", api.name());
        }
        assert_eq!([-1, 4, 7, 93, i16::MAX].map(ApiKey::from_key), [None; 5]);
    }

    #[test]
    fn unstable_versions_are_not_served() {
        assert_eq!(ApiKey::InitProducerId.versions(), 0..=5);
        assert_eq!(ApiKey::ApiVersions.versions(), 0..=4);
    }

    #[test]
    fn produce_is_advertised_from_zero_and_served_from_three() {
        assert_eq!(ApiKey::Produce.advertised_versions(), 0..=13);
        assert_eq!(ApiKey::Produce.versions(), 3..=13);
        assert_eq!(ApiKey::Fetch.advertised_versions(), 4..=18);
    }

    #[test]
    fn headers_become_flexible_with_their_message_save_the_response_to_api_versions() {
        let headers = |api, version| (request_header_version(api, version), response_header_version(api, version));
        assert_eq!(headers(ApiKey::Fetch, 11), (1, 0));
        assert_eq!(headers(ApiKey::Fetch, 12), (2, 1));
        assert_eq!(headers(ApiKey::SaslHandshake, 1), (1, 0));
        assert_eq!(headers(ApiKey::ApiVersions, 2), (1, 0));
        assert_eq!(headers(ApiKey::ApiVersions, 3), (2, 0));
        assert_eq!(headers(ApiKey::ApiVersions, 99), (2, 0));
    }
}
