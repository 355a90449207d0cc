//! Which model notices that a rule is left out.

use model::Rule;

/// Rules that the cores ask for, each with a model that notices when it is left out, and after how many steps at the most.
pub const NOTICED: &[(Rule, &str, usize)] = &[
    (Rule::R1EachChangeRaisesTheEpoch, "a refused expansion", 7),
    (Rule::R3StalePartitionEpoch, "an expansion in flight", 6),
    (Rule::R6SameIncarnation, "a registration comes twice", 1),
    (Rule::R7LeavesBeforeTheFence, "two are fenced", 1),
    (Rule::R8BrokerEpoch, "crashes", 3),
    (Rule::R10ProofNamesTheEpoch, "an old proof", 3),
    (Rule::R11LagByTime, "lag", 0),
    (Rule::R12AboveHighWatermark, "elections", 8),
    (Rule::R12EligibleMember, "a follower is out for a while", 2),
    (Rule::R12ExpandAboveLeaderEpochStart, "crashes", 10),
    (Rule::R13OneChangeInFlight, "an expansion in flight", 6),
    (Rule::R14MaximalIsrOnExpand, "elections", 8),
    (Rule::R14MaximalIsrOnShrink, "lag", 2),
    (Rule::R15EligibleMembers, "an expansion in flight", 2),
    (Rule::R15PartitionEpoch, "an expansion in flight", 10),
    (Rule::R16AnswerBelongsToProposal, "a late answer", 6),
    (Rule::R16RollBackOnlyIfCertain, "an expansion in flight", 10),
    (Rule::R16StayPendingOnTimeout, "an expansion in flight", 6),
    (Rule::R18ForgetFollowersOnElection, "a leader that cuts", 2),
    (Rule::R18NoAdvanceBelowMinIsr, "lag", 4),
    (Rule::R18SyncedEnd, "synced before acknowledged", 3),
    (Rule::R19FollowerHighWatermark, "elections", 11),
    (Rule::R19LatestOffset, "elections", 7),
    (Rule::R19ReadBelowHighWatermark, "elections", 1),
    (Rule::R20FailWaitingProduces, "elections", 2),
    (Rule::R20MinIsrAfterAppend, "broken streams", 9),
    (Rule::R20MinIsrBeforeAppend, "lag", 4),
    (Rule::R23FencedOpen, "a leader for a moment", 5),
    (Rule::R23OpenFromTheFuture, "a leader for a moment", 5),
    (Rule::R24Divergence, "a leader for a record", 9),
    (Rule::R24EndOffsetForEpoch, "a leader for a record", 6),
    (Rule::R24NoTruncationByHighWatermark, "elections", 7),
    (Rule::R25DropStaleEpochs, "a leader that cuts", 6),
    (Rule::R26LogStart, "a follower behind what is deleted", 2),
    (Rule::R26SessionBelowLogStart, "records go, within a window", 3),
    (Rule::R28NewEpochEndsSession, "a leader for a moment", 3),
    (Rule::R33KeepsTheLeader, "elections", 7),
    (Rule::R33LeaderIsInSync, "elections", 10),
    (Rule::R34ElrEndsAtMinIsr, "two are fenced", 1),
    (Rule::R34EligibleLeaderReplicas, "two are fenced", 2),
    (Rule::R34UncleanRegistration, "an old proof", 3),
    (Rule::R35AllAnswer, "all crashed", 2),
    (Rule::R35GreatestLog, "all crashed", 4),
    (Rule::R35LastKnownLeaders, "all crashed", 3),
    (Rule::R35Recovering, "all crashed", 4),
    (Rule::R36UncleanIsOff, "an old proof", 3),
    (Rule::R37CancelKeepsIsr, "a move without its leader", 8),
    (Rule::R37CompletionAboveMinIsr, "a move without its leader", 7),
    (Rule::R37CompletionByMembership, "a move where one is enough", 1),
    (Rule::R37LeaderEpoch, "reassignment", 2),
    (Rule::R39LogStart, "deleted records", 7),
    (Rule::R57GreatestSession, "streams that break twice", 5),
    (Rule::R57LastRecordsEpoch, "a leader of a record of before", 5),
    (Rule::R57OpenBelowCounts, "a log that decays", 5),
    (Rule::R58CurrentSession, "elections", 8),
    (Rule::R58PreviousBatch, "a gap", 4),
    (Rule::R59AckOfCurrentSession, "crashes", 7),
    (Rule::R59SyncBeforeAck, "broken streams, synced", 4),
    (Rule::R61AppendCountsAsCaughtUp, "lag, record by record", 7),
    (Rule::R61BrokenStreamKeepsLogEnd, "a follower is out for a while", 2),
    (Rule::R62CatchUpLane, "a follower is out for a while", 1),
    (Rule::R62Window, "a window of one record", 2),
    (Rule::R64SessionBrokerEpoch, "a follower is out for a while", 5),
    (Rule::R78LossyReplica, "a log that decays", 3),
    (Rule::R79Zones, "two zones", 3),
];

/// Rules that stand in for each other: a model that notices when all of them are switched off, and when one is left does not.
pub const STAND_INS: &[(&[Rule], &str)] = &[
    (&[Rule::R8BrokerEpoch, Rule::R64SessionBrokerEpoch], "a follower starts anew"),
    (&[Rule::R15LeaderEpoch, Rule::R15PartitionEpoch], "a proposal from before two elections"),
    (&[Rule::R15Sender, Rule::R15LeaderEpoch, Rule::R15PartitionEpoch], "a former leader's proposal"),
    (&[Rule::R16StayPendingOnRefusal, Rule::R16RollBackOnlyIfCertain], "an expansion whose answer is lost"),
];

/// What no model is known to notice, and why, as far as it is known. What the tests of the cores notice, `just mutations` tells.
pub const NOT_NOTICED: &[(Rule, &str)] = &[
    (Rule::R6LiveSession, "no two brokers of the models have one id"),
    (Rule::R7CaughtUp, "a broker of the models has applied its registration when it is up"),
    (Rule::R10EachDirectory, "a broker of the models has one directory"),
    (Rule::R15LeaderEpoch, STANDS_IN),
    (Rule::R15Members, "only replicas are taken into an ISR, whatever is proposed, and a leader proposes itself"),
    (Rule::R15Recovering, "a leader always says that it has recovered"),
    (Rule::R15Sender, STANDS_IN),
    (Rule::R16StayPendingOnRefusal, STANDS_IN),
    (Rule::R32MarkedFirst, "the order within one decision, which takes effect as a whole"),
    (Rule::R32OthersKnow, "brokers of the models do not tell how far they are"),
    (Rule::R34RuleOfAnswer, "no setting changes in the models"),
    (Rule::R34WeakerRule, "no setting changes in the models"),
    (Rule::R35LastLeadersDirectory, "nobody waits for 30 s, and a broker has one directory"),
    (Rule::R35LossyLastLeader, "nobody waits for 30 s"),
    (Rule::R38UnassignedFollower, "who leaves raises the leader epoch (R37), which ends all sessions"),
    (
        Rule::R57OnlyOpenedIsCurrent,
        "a log parts within a leader epoch only where a disk lies, and then the session has ended",
    ),
    (Rule::R58Ascending, "a leader of the models builds its frames from its log"),
    (Rule::R58Epochs, "a leader of the models builds its frames from its log"),
    (Rule::R59DurableAck, "all brokers of a model have the same flush policy"),
    (Rule::R59OnlyWhatWasSent, "no follower of the models acknowledges more"),
    (Rule::R61Mark, "it is about who is slow and not late, and the models have no time between"),
    (Rule::R62StreamWindow, "a stream of the models takes whatever there is"),
    (Rule::R80AboveTheLogs, "no metadata is restored in the models"),
    (Rule::R80NobodyAlone, "no metadata is restored in the models"),
];

const STANDS_IN: &str = "others stand in for it: see `STAND_INS`";

/// Whether a rule is about what these models have: the sections 2 to 11, 18 and 19, without the quorum and without time.
#[must_use]
pub fn asks(rule: Rule) -> bool {
    let name = format!("{rule:?}");
    let number: u32 =
        name.trim_start_matches('R').chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0);
    !(40..=56).contains(&number) && !matches!(number, 9 | 66 | 68 | 71 | 72 | 75 | 76)
}
