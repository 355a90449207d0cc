//! The safety rules of `docs/replication.md` that a core asks for by name, so that a test can switch one off and show
//! that another test notices (a mutation).
//!
//! In a normal build [`Rules`] has no content and every rule holds; with the feature `mutations` it carries a set.

/// A rule that a core asks for. Each variant is one decision that loses data, or liveness, when it is left out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
#[expect(missing_docs, reason = "each variant is named by its rule in docs/replication.md")]
pub enum Rule {
    R3StalePartitionEpoch,
    R8BrokerEpoch,
    R11LagByTime,
    R12ExpandAboveLeaderEpochStart,
    R13OneChangeInFlight,
    R14MaximalIsrOnExpand,
    R14MaximalIsrOnShrink,
    R15PartitionEpoch,
    R15EligibleMembers,
    R16AnswerBelongsToProposal,
    R16StayPendingOnTimeout,
    R18ForgetFollowersOnElection,
    R18NoAdvanceBelowMinIsr,
    R19FollowerHighWatermark,
    R20MinIsrBeforeAppend,
    R20MinIsrAfterAppend,
    R22LeaderEpochOnAppend,
    R24NoTruncationByHighWatermark,
    R24EndOffsetForEpoch,
    R25DropStaleEpochs,
    R28ForgetFollowers,
    R34EligibleLeaderReplicas,
    R34UncleanRegistration,
    R35LastKnownLeaders,
    R40Sequence,
    R43MarkersAboveHighWatermark,
    R43OpenTransactions,
    R44EffectWhenCommitted,
    R45AllMarkers,
    R45PrepareIsFinal,
    R46AbortFirst,
    R46Bump,
    R46ExhaustedEpoch,
    R46ExpectedEpoch,
    R47CoordinatorEpoch,
    R47MarkerEpochAboveKnown,
    R47ProducerEpoch,
    R48FenceBumps,
    R50Guard,
    R50Verification,
    R51BumpOnEnd,
    R51Overflow,
    R51RepeatedEnd,
    R57GreatestSession,
    R58PreviousBatch,
    R59AckOfCurrentSession,
    R61AppendCountsAsCaughtUp,
    R64SessionBrokerEpoch,
    R66TenureAndBase,
    R6LiveSession,
    R7CaughtUp,
    R76HeartbeatClears,
    R37CompletionByMembership,
    R37CompletionAboveMinIsr,
    R37LeaderEpoch,
    R37CancelKeepsIsr,
    R38UnassignedFollower,
    R79Zones,
    R34RuleOfAnswer,
}

/// Which rules hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Rules {
    #[cfg(feature = "mutations")]
    switched_off: u128,
}

impl Rules {
    /// All rules hold.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Whether `rule` holds: always, in a normal build.
    #[must_use]
    #[cfg(not(feature = "mutations"))]
    pub fn hold(self, _rule: Rule) -> bool {
        true
    }

    /// Whether `rule` holds, that is, has not been switched off.
    #[must_use]
    #[cfg(feature = "mutations")]
    pub fn hold(self, rule: Rule) -> bool {
        self.switched_off & (1 << (rule as u8)) == 0
    }

    /// All rules but `rule`.
    #[must_use]
    #[cfg(feature = "mutations")]
    pub fn without(rule: Rule) -> Self {
        Self { switched_off: 1 << (rule as u8) }
    }
}
