//! The safety rules of `docs/replication.md` that a core asks for by name, so that a test can switch one off and show
//! that another test notices (a mutation).
//!
//! In a normal build [`Rules`] has no content and every rule holds; with the feature `mutations` it carries a set.

macro_rules! rules {
    ($($rule:ident,)*) => {
        /// A rule that a core asks for. Each variant is one decision that loses data, or liveness, when it is left out.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        #[expect(missing_docs, reason = "each variant is named by its rule in docs/replication.md")]
        pub enum Rule {
            $($rule,)*
        }

        impl Rule {
            /// All of them.
            pub const ALL: &[Rule] = &[$(Rule::$rule,)*];
        }
    };
}

rules! {
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
    R24NoTruncationByHighWatermark,
    R24EndOffsetForEpoch,
    R25DropStaleEpochs,
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
    R49AbortDrops,
    R49LogOrder,
    R49MemberFence,
    R49TombstoneDrops,
    R49Unstable,
    R49UntilMarker,
    R50Guard,
    R50Verification,
    R51BumpOnEnd,
    R51Overflow,
    R51RepeatedEnd,
    R53MemberEpoch,
    R53OneOwner,
    R53AnswerWhenStored,
    R57GreatestSession,
    R58PreviousBatch,
    R59AckOfCurrentSession,
    R61AppendCountsAsCaughtUp,
    R64SessionBrokerEpoch,
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
    R1EachChangeRaisesTheEpoch,
    R6SameIncarnation,
    R7LeavesBeforeTheFence,
    R9SilenceOfASession,
    R10EachDirectory,
    R10ProofNamesTheEpoch,
    R12AboveHighWatermark,
    R12EligibleMember,
    R15LeaderEpoch,
    R15Sender,
    R15Members,
    R15Recovering,
    R16RollBackOnlyIfCertain,
    R16StayPendingOnRefusal,
    R18SyncedEnd,
    R19LatestOffset,
    R19ReadBelowHighWatermark,
    R20FailWaitingProduces,
    R23FencedOpen,
    R23OpenFromTheFuture,
    R24Divergence,
    R26LogStart,
    R26SessionBelowLogStart,
    R28NewEpochEndsSession,
    R32MarkedFirst,
    R32OthersKnow,
    R33LeaderIsInSync,
    R33KeepsTheLeader,
    R34ElrEndsAtMinIsr,
    R34WeakerRule,
    R35AllAnswer,
    R35GreatestLog,
    R35LossyLastLeader,
    R35LastLeadersDirectory,
    R35Recovering,
    R36UncleanIsOff,
    R39LogStart,
    R57OpenBelowCounts,
    R57LastRecordsEpoch,
    R57OnlyOpenedIsCurrent,
    R58CurrentSession,
    R58Ascending,
    R58Epochs,
    R59OnlyWhatWasSent,
    R59SyncBeforeAck,
    R61BrokenStreamKeepsLogEnd,
    R61Mark,
    R62Window,
    R62StreamWindow,
    R62CatchUpLane,
    R66Base,
    R66Tenure,
    R68Fresh,
    R71NewTenure,
    R71Stall,
    R72PurgeBound,
    R75Lease,
    R75LogId,
    R76MoreThanHalf,
    R78LossyReplica,
    R80AboveTheLogs,
    R80NobodyAlone,
    R59DurableAck,
}

// A set of them is 128 bits.
const _: () = assert!(Rule::ALL.len() <= 128);

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

    /// All rules but the one of this name, as [`Rule`] writes it; all, where the name is empty.
    ///
    /// # Panics
    /// Where there is no such rule: what nobody switched off, nobody would notice.
    #[must_use]
    #[cfg(feature = "mutations")]
    pub fn without_named(name: &str) -> Self {
        if name.is_empty() {
            return Self::all();
        }
        let rule = Rule::ALL.iter().find(|rule| format!("{rule:?}") == name);
        Self::without(*rule.unwrap_or_else(|| panic!("there is no rule {name}: see crates/model/src/rules.rs")))
    }

    /// All rules but `rule`.
    #[must_use]
    #[cfg(feature = "mutations")]
    pub fn without(rule: Rule) -> Self {
        Self::default().and_without(rule)
    }

    /// These, and `rule` switched off too: for rules that stand in for each other.
    #[must_use]
    #[cfg(feature = "mutations")]
    pub fn and_without(self, rule: Rule) -> Self {
        Self { switched_off: self.switched_off | 1 << (rule as u8) }
    }
}
