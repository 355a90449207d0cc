//! What the listeners count, as plain atomics that anybody may read at any time.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use protocol::ApiKey;

/// The upper bounds of the latency buckets, in microseconds; what is slower falls into one more bucket.
pub const LATENCY_BOUNDS_US: [u64; 18] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000,
    5_000_000, 10_000_000, 30_000_000,
];

/// What is counted for one API.
#[derive(Debug, Default)]
pub struct ApiMetrics {
    /// Requests answered, or taken without an answer (acks=0).
    pub requests: AtomicU64,
    /// Error codes in the answers.
    pub errors: AtomicU64,
    /// Bytes of the requests.
    pub request_bytes: AtomicU64,
    /// Bytes of the answers.
    pub response_bytes: AtomicU64,
    /// How many requests took at most the bound of each bucket and more than the one before; the last one has no bound.
    pub latency: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    /// All latencies together, in microseconds.
    pub latency_sum_us: AtomicU64,
}

impl ApiMetrics {
    pub(crate) fn answered(&self, took: Duration, errors: u64, response_bytes: u64) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_US.partition_point(|bound| *bound < took);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.latency[bucket].fetch_add(1, Ordering::Relaxed);
        self.latency_sum_us.fetch_add(took, Ordering::Relaxed);
        self.response_bytes.fetch_add(response_bytes, Ordering::Relaxed);
        if errors > 0 {
            self.errors.fetch_add(errors, Ordering::Relaxed);
        }
    }
}

/// What all listeners of a broker count.
#[derive(Debug)]
pub struct GatewayMetrics {
    /// By [`ApiKey::all`].
    apis: Vec<(ApiKey, ApiMetrics)>,
    /// Connections that are open.
    pub connections: AtomicI64,
    /// Connections that were accepted.
    pub connections_accepted: AtomicU64,
    /// Connections that were refused by a limit.
    pub connections_refused: AtomicU64,
    /// Connections closed because of what they sent.
    pub bad_requests: AtomicU64,
    /// Connections closed because they were idle.
    pub connections_idle_closed: AtomicU64,
}

impl Default for GatewayMetrics {
    fn default() -> Self {
        Self {
            apis: ApiKey::all().map(|api| (api, ApiMetrics::default())).collect(),
            connections: AtomicI64::new(0),
            connections_accepted: AtomicU64::new(0),
            connections_refused: AtomicU64::new(0),
            bad_requests: AtomicU64::new(0),
            connections_idle_closed: AtomicU64::new(0),
        }
    }
}

impl GatewayMetrics {
    /// What was counted for an API.
    #[must_use]
    pub fn api(&self, api: ApiKey) -> &ApiMetrics {
        let at = self.apis.binary_search_by_key(&api.key(), |(api, _)| api.key());
        &self.apis[at.expect("each API has its counters")].1
    }

    /// The counters of every API.
    pub fn apis(&self) -> impl Iterator<Item = (ApiKey, &ApiMetrics)> {
        self.apis.iter().map(|(api, metrics)| (*api, metrics))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_falls_into_the_bucket_that_bounds_it() {
        let metrics = GatewayMetrics::default();
        let produce = metrics.api(ApiKey::Produce);
        produce.answered(Duration::from_micros(50), 0, 7);
        produce.answered(Duration::from_micros(51), 2, 7);
        produce.answered(Duration::from_secs(60), 0, 7);
        let counts: Vec<u64> = produce.latency.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        assert_eq!((counts[0], counts[1], counts[LATENCY_BOUNDS_US.len()]), (1, 1, 1));
        assert_eq!(produce.requests.load(Ordering::Relaxed), 3);
        assert_eq!(produce.errors.load(Ordering::Relaxed), 2);
        assert_eq!(produce.response_bytes.load(Ordering::Relaxed), 21);
        assert_eq!(metrics.api(ApiKey::Fetch).requests.load(Ordering::Relaxed), 0);
    }
}
