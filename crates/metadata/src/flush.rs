//! The one enum that says when appends are synced, as Kafka's two configs have it.

/// When an append counts as done (`docs/replication.md` section 17). This is the only place that says so.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FlushPolicy {
    /// Kafka's default: done in the page cache; a background flusher syncs in its own time.
    PageCache,
    /// As the page cache, synced at least after so many messages or milliseconds, whichever comes first.
    Interval {
        /// `flush.messages`, if finite.
        messages: Option<u64>,
        /// `flush.ms`, if finite.
        ms: Option<u64>,
    },
    /// Synced before it is acknowledged, and before the high watermark counts it (`R18`).
    BeforeAck,
}

impl FlushPolicy {
    /// Its name, as people are shown it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FlushPolicy::PageCache => "page-cache",
            FlushPolicy::Interval { .. } => "interval",
            FlushPolicy::BeforeAck => "sync-before-ack",
        }
    }

    /// The policy that Kafka's two configs ask for: `flush.messages=1` is sync before ack; any other finite value of
    /// either is an interval; else the page cache.
    #[must_use]
    pub fn of(flush_messages: i64, flush_ms: i64) -> Self {
        let finite = |value: i64| u64::try_from(value).ok().filter(|_| value != i64::MAX);
        match (finite(flush_messages), finite(flush_ms)) {
            (Some(0 | 1), _) => FlushPolicy::BeforeAck,
            (None, None) => FlushPolicy::PageCache,
            (messages, ms) => FlushPolicy::Interval { messages, ms },
        }
    }

    /// Whether a log with so many unsynced messages, the oldest so old, is to be synced now.
    #[must_use]
    pub fn is_due(self, unsynced_messages: u64, waited_ms: u64) -> bool {
        unsynced_messages > 0
            && match self {
                FlushPolicy::PageCache => false,
                FlushPolicy::Interval { messages, ms } => {
                    messages.is_some_and(|m| unsynced_messages >= m) || ms.is_some_and(|m| waited_ms >= m)
                }
                FlushPolicy::BeforeAck => true,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flush_policy_follows_from_kafkas_two_configs() {
        assert_eq!(FlushPolicy::of(i64::MAX, i64::MAX), FlushPolicy::PageCache);
        assert_eq!(FlushPolicy::of(1, i64::MAX), FlushPolicy::BeforeAck);
        assert_eq!(FlushPolicy::of(1, 500), FlushPolicy::BeforeAck);
        assert_eq!(FlushPolicy::of(i64::MAX, 500), FlushPolicy::Interval { messages: None, ms: Some(500) });
        assert_eq!(FlushPolicy::of(100, i64::MAX), FlushPolicy::Interval { messages: Some(100), ms: None });
    }

    #[test]
    fn an_interval_is_due_by_whichever_limit_comes_first() {
        let policy = FlushPolicy::of(100, 500);
        let due = [(0, 900), (99, 499), (100, 0), (1, 500)].map(|(n, ms)| policy.is_due(n, ms));
        assert_eq!(due, [false, false, true, true]);
        assert!(FlushPolicy::BeforeAck.is_due(1, 0));
        assert!(!FlushPolicy::PageCache.is_due(u64::MAX, u64::MAX));
    }
}
