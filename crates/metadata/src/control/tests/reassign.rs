//! Reassignment (`R37`).

use super::*;

impl Cluster {
    pub(super) fn reassign(&mut self, name: &str, target: Option<&[i32]>) -> Result<(), ErrorCode> {
        self.reassign_as(name, target, true)
    }

    fn reassign_as(&mut self, name: &str, target: Option<&[i32]>, allow_factor_change: bool) -> Result<(), ErrorCode> {
        let asked =
            Reassignment { topic: name.to_owned(), partition: PartitionIndex(0), target: target.map(super::ids) };
        let request = AlterReassignments { partitions: vec![asked], allow_factor_change };
        match self.ask(ControlRequest::AlterReassignments(request)).response {
            ControlResponse::AlterReassignments(mut list) => list.remove(0).result.map_err(|error| error.code),
            other => panic!("{other:?}"),
        }
    }

    /// replicas, adding, removing, ISR.
    fn moves(&self, id: TopicPartition) -> [Vec<i32>; 4] {
        let p = self.partition(id);
        [&p.replicas, &p.adding, &p.removing, &p.isr].map(|set| numbers(set))
    }
}

/// What holds from one state of a partition to a later one.
pub(super) fn check(p: &Partition, old: &Partition, enough: bool) {
    let gone: Vec<_> = old.replicas.iter().filter(|b| !p.replicas.contains(b)).collect();
    assert!(
        gone.is_empty() || p.leader_epoch > old.leader_epoch,
        "a replica left under one leader epoch: {old:?} {p:?}"
    );
    let counted = gone.iter().any(|b| [&old.isr, &old.elr, &old.last_known_elr].iter().any(|set| set.contains(b)));
    assert!(!counted || enough, "the partition needed who left: {old:?} {p:?}");
    let came = p.replicas.iter().filter(|b| !p.adding.contains(b) && old.adding.contains(b));
    assert!(came.clone().all(|b| p.isr.contains(b)), "who was added was not in sync: {old:?} {p:?}");
}

#[test]
fn replicas_are_added_before_any_is_removed() {
    // R37
    let mut cluster = Cluster::of(4);
    let id = cluster.assigned("t", &[1, 2]);
    let before = cluster.partition(id);
    assert_eq!(cluster.reassign("t", Some(&[3, 4])), Ok(()));
    assert_eq!(cluster.moves(id), [vec![3, 4, 1, 2], vec![3, 4], vec![1, 2], vec![1, 2]]);
    let moving = cluster.partition(id);
    assert_eq!((moving.leader, moving.leader_epoch), (before.leader, before.leader_epoch));
    assert_eq!(moving.partition_epoch.0, before.partition_epoch.0 + 1);
    assert_eq!(moving.directories, [3, 4, 1, 2].map(directory));
    assert!(cluster.propose(id, &[1, 2, 3]).is_ok());
    assert_eq!(cluster.moves(id), [vec![3, 4, 1, 2], vec![3, 4], vec![1, 2], vec![3, 1, 2]]);
    // The last one joins: done, in the same decision, by a leadership of its own.
    assert_eq!(cluster.propose(id, &[1, 2, 3, 4]), Err(ErrorCode::NewLeaderElected));
    assert_eq!(cluster.moves(id), [vec![3, 4], vec![], vec![], vec![3, 4]]);
    let after = cluster.partition(id);
    assert_eq!((after.leader, after.leader_epoch.0), (BrokerId(3), before.leader_epoch.0 + 1));
    assert_eq!(after.directories, [3, 4].map(directory));
}

#[test]
fn a_leader_that_stays_leads_on_in_a_new_epoch() {
    // R1, R37
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2]);
    assert_eq!(cluster.reassign("t", Some(&[1, 3])), Ok(()));
    assert_eq!(cluster.propose(id, &[1, 2, 3]), Err(ErrorCode::NewLeaderElected));
    let after = cluster.partition(id);
    assert_eq!((after.leader, after.leader_epoch.0, after.isr), (BrokerId(1), 1, ids(&[1, 3])));
}

#[test]
fn a_partition_that_only_grows_or_changes_its_order_stays_in_its_epoch() {
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2]);
    assert_eq!(cluster.reassign("t", Some(&[2, 1])), Ok(()));
    assert_eq!(cluster.moves(id), [vec![2, 1], vec![], vec![], vec![2, 1]]);
    assert_eq!(cluster.reassign("t", Some(&[2, 1, 3])), Ok(()));
    assert_eq!(cluster.propose(id, &[2, 1, 3]).map(|now| now.leader_epoch), Ok(LeaderEpoch(0)));
    assert_eq!(cluster.moves(id), [vec![2, 1, 3], vec![], vec![], vec![2, 1, 3]]);
    assert_eq!(cluster.partition(id).leader, BrokerId(1));
}

#[test]
fn a_partition_that_grows_needs_no_more_acknowledgements_before_it_has_grown() {
    // R18, R37: min.insync.replicas is 2, the one replica counts as enough until the second is there
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1]);
    assert_eq!(cluster.reassign("t", Some(&[1, 2])), Ok(()));
    assert_eq!(cluster.partition(id).factor(), 1);
    assert_eq!(cluster.shape(id), (1, vec![1], vec![], vec![]));
    assert!(cluster.propose(id, &[1, 2]).is_ok());
    assert_eq!((cluster.partition(id).factor(), cluster.moves(id)[0].clone()), (2, vec![1, 2]));
}

#[test]
fn replicas_are_only_removed_while_those_that_stay_are_enough() {
    // R37
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2, 3]);
    assert!(cluster.propose(id, &[1, 2]).is_ok());
    assert_eq!(cluster.reassign("t", Some(&[1, 3])), Ok(()));
    assert_eq!(cluster.moves(id), [vec![1, 3, 2], vec![], vec![2], vec![1, 2]], "1 alone is not enough");
    assert_eq!(cluster.propose(id, &[1, 2, 3]), Err(ErrorCode::NewLeaderElected));
    assert_eq!(cluster.moves(id), [vec![1, 3], vec![], vec![], vec![1, 3]]);
    assert_eq!(cluster.reassign("t", Some(&[3])), Ok(()));
    assert_eq!(cluster.moves(id), [vec![3], vec![], vec![], vec![3]], "enough at once: nothing to wait for");
    assert_eq!(cluster.partition(id).leader, BrokerId(3));
}

/// 4 takes the place of 2 while 3, which stays, is out of sync: all three have to be in it.
fn two_of_three_needed(rules: Rules) -> (Cluster, TopicPartition) {
    let mut cluster = Cluster::ruled(4, rules);
    let id = cluster.assigned("t", &[1, 2, 3]);
    let all = ConfigOperation::Set(value("3"));
    assert_eq!(cluster.set(topic("t"), "min.insync.replicas", all), Ok(()));
    cluster.propose(id, &[1, 2]).unwrap();
    cluster.reassign("t", Some(&[1, 3, 4])).unwrap();
    let _ = cluster.propose(id, &[1, 2, 4]);
    (cluster, id)
}

#[test]
fn a_reassignment_that_waits_for_min_isr_alone_ends_when_it_is_lowered() {
    let (mut cluster, id) = two_of_three_needed(rules());
    let lower = ConfigOperation::Set(value("2"));
    assert_eq!(cluster.set(topic("t"), "min.insync.replicas", lower), Ok(()));
    assert_eq!(cluster.moves(id), [vec![1, 3, 4], vec![], vec![], vec![1, 4]]);
}

#[test]
fn cancelling_brings_the_replicas_from_before_back() {
    // R37
    let mut cluster = Cluster::of(4);
    let id = cluster.assigned("t", &[1, 2]);
    assert_eq!(cluster.reassign("t", Some(&[3, 4])), Ok(()));
    assert!(cluster.propose(id, &[1, 2, 3]).is_ok());
    assert_eq!(cluster.reassign("t", None), Ok(()));
    assert_eq!(cluster.moves(id), [vec![1, 2], vec![], vec![], vec![1, 2]]);
    assert_eq!(cluster.partition(id).leader_epoch, LeaderEpoch(1));
    assert_eq!(cluster.reassign("t", None), Err(ErrorCode::NoReassignmentInProgress));
}

fn cancelled_below_min_isr(rules: Rules) -> Result<(), ErrorCode> {
    let mut cluster = Cluster::ruled(4, rules);
    let id = cluster.assigned("t", &[1, 2]);
    cluster.reassign("t", Some(&[1, 3, 4])).unwrap();
    cluster.propose(id, &[1, 3]).unwrap();
    cluster.reassign("t", None)
}

#[test]
fn cancelling_is_refused_while_those_from_before_are_too_few() {
    // R37: what was acknowledged by 1 and 3 would be on 1 alone
    assert_eq!(cancelled_below_min_isr(rules()), Err(ErrorCode::InvalidReplicaAssignment));
    assert_eq!(cancelled_below_min_isr(Rules::without(Rule::R37CancelKeepsIsr)), Ok(()));
}

#[test]
fn an_operator_has_to_choose_where_a_cancel_under_unclean_elections_left_nobody_who_was_in_sync() {
    // R36, R37: 4 and 5 acknowledged what 1 to 3 do not have
    let unclean = |value: &str| ConfigOperation::Set(super::value(value));
    let mut cluster = Cluster::of(6);
    let id = cluster.assigned("t", &[1, 2, 3]);
    cluster.set(topic("t"), "unclean.leader.election.enable", unclean("true")).unwrap();
    cluster.reassign("t", Some(&[4, 5, 6])).unwrap();
    cluster.propose(id, &[1, 4, 5]).unwrap();
    cluster.lose_all_but(&[4, 5]);
    cluster.reassign("t", None).unwrap();
    assert_eq!(cluster.shape(id), (-1, vec![], vec![], vec![]));
    cluster.set(topic("t"), "unclean.leader.election.enable", unclean("false")).unwrap();
    for broker in 1..=3 {
        cluster.start(broker, BrokerEpoch::NONE);
        cluster.beat(broker);
        cluster.report(broker, id, answer(broker, 0, 5));
        assert_eq!(cluster.shape(id).0, -1);
    }
    assert_eq!(displaced::elect_unclean(&mut cluster), Some(true));
    assert_eq!(cluster.shape(id).0, 1);
}

#[test]
fn another_target_replaces_the_one_before() {
    // KIP-455: those from before stay the same
    let mut cluster = Cluster::of(5);
    let id = cluster.assigned("t", &[1, 2]);
    assert_eq!(cluster.reassign("t", Some(&[1, 3])), Ok(()));
    assert_eq!(cluster.reassign("t", Some(&[4, 2])), Ok(()));
    assert_eq!(cluster.moves(id), [vec![4, 2, 1], vec![4], vec![1], vec![2, 1]], "3 had nothing yet");
    assert!(cluster.propose(id, &[1, 2, 4]).is_err());
    assert_eq!(cluster.moves(id), [vec![4, 2], vec![], vec![], vec![4, 2]]);
    // One that counts already is needed until the new ones are there.
    assert_eq!(cluster.reassign("t", Some(&[3, 5])), Ok(()));
    assert!(cluster.propose(id, &[4, 2, 3]).is_ok());
    assert_eq!(cluster.reassign("t", Some(&[1, 5])), Ok(()));
    assert_eq!(cluster.moves(id), [vec![1, 5, 2, 3, 4], vec![1, 5, 3], vec![2, 3, 4], vec![2, 3, 4]]);
    assert_eq!(cluster.partition(id).factor(), 2);
    assert_eq!(cluster.reassign("t", Some(&[4, 2])), Ok(()));
    assert_eq!(cluster.moves(id), [vec![4, 2], vec![], vec![], vec![4, 2]], "back to the start: nothing to wait for");
}

fn completed_early(rules: Rules) -> bool {
    let mut cluster = Cluster::ruled(4, rules);
    let id = cluster.assigned("t", &[1, 2, 3]);
    cluster.reassign("t", Some(&[4, 2, 3])).unwrap();
    !cluster.partition(id).is_reassigning()
}

#[test]
fn a_reassignment_is_complete_by_who_is_in_sync_not_by_how_many() {
    // R37: three are in sync, but not the one that was added
    assert!(!completed_early(rules()));
    assert!(completed_early(Rules::without(Rule::R37CompletionByMembership)));
}

/// What a partition is when it is to do without broker 1 while 3, which stays, is dead: replicas, ISR.
fn shrunk_without_one_who_stays(rules: Rules) -> [Vec<i32>; 2] {
    let mut cluster = Cluster::ruled(3, rules);
    let id = cluster.assigned("t", &[2, 1, 3]);
    cluster.lose_all_but(&[1, 2]);
    cluster.reassign("t", Some(&[2, 3])).unwrap();
    let [replicas, _, _, isr] = cluster.moves(id);
    [replicas, isr]
}

#[test]
fn a_partition_shrinks_once_all_who_stay_are_in_sync() {
    // R37: else a copy that lives would be given up for one that may never come back
    assert_eq!(shrunk_without_one_who_stays(rules())[1], [2, 1]);
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2, 3]);
    cluster.lose_all_but(&[1, 2]);
    cluster.reassign("t", Some(&[1, 2])).unwrap();
    assert_eq!(cluster.moves(id), [vec![1, 2], vec![], vec![], vec![1, 2]], "who goes need not be alive");
}

#[test]
fn the_end_of_a_move_is_no_unclean_election() {
    let mut cluster = Cluster::of(4);
    let id = cluster.assigned("t", &[1, 2, 3]);
    cluster.reassign("t", Some(&[4, 2, 3])).unwrap();
    let (leader, proposal) = (cluster.partition(id).leader, cluster.proposal(id, &[1, 2, 3, 4]));
    let epoch = cluster.control.image().broker_epoch(leader);
    let request = AlterPartitions { broker: leader, epoch, partitions: vec![proposal] };
    let decision = cluster.ask(ControlRequest::AlterPartitions(request));
    assert_eq!(cluster.shape(id).0, 4, "it came into the ISR in the same change");
    assert!(!decision.events.iter().any(|event| matches!(event, ControlEvent::UncleanElection { .. })));
}

fn completed_with_too_few(rules: Rules) -> bool {
    let (cluster, id) = two_of_three_needed(rules);
    !cluster.partition(id).is_reassigning()
}

#[test]
fn a_reassignment_is_complete_at_min_isr_only() {
    // R37
    assert!(!completed_with_too_few(rules()));
    assert!(completed_with_too_few(Rules::without(Rule::R37CompletionAboveMinIsr)));
}

fn epoch_after_a_removal(rules: Rules) -> i32 {
    let mut cluster = Cluster::ruled(3, rules);
    let id = cluster.assigned("t", &[1, 2, 3]);
    cluster.reassign("t", Some(&[1, 2])).unwrap();
    cluster.partition(id).leader_epoch.0
}

#[test]
fn a_replica_leaves_in_a_new_leader_epoch() {
    // R1, R37
    assert_eq!(epoch_after_a_removal(rules()), 1);
    assert_eq!(epoch_after_a_removal(Rules::without(Rule::R37LeaderEpoch)), 0);
}

#[test]
fn a_reassignment_outlives_its_leader_and_ends_without_a_proposal() {
    // R33, R37: the fence of the last one that lagged makes the rest complete
    let mut cluster = Cluster::of(4);
    let id = cluster.assigned("t", &[1, 2, 3]);
    assert_eq!(cluster.reassign("t", Some(&[2, 3, 4])), Ok(()));
    cluster.lose_all_but(&[2, 3, 4]);
    assert_eq!(cluster.moves(id), [vec![2, 3, 4, 1], vec![4], vec![1], vec![2, 3]]);
    assert_eq!(cluster.partition(id).leader, BrokerId(2));
    assert_eq!(cluster.propose(id, &[2, 3, 4]), Err(ErrorCode::NewLeaderElected));
    assert_eq!(cluster.moves(id), [vec![2, 3, 4], vec![], vec![], vec![2, 3, 4]]);
}

#[test]
fn reassignments_are_refused_with_kafkas_codes() {
    let mut cluster = Cluster::of(3);
    cluster.assigned("t", &[1, 2]);
    let refused: [(&str, Option<&[i32]>, ErrorCode); 7] = [
        ("u", Some(&[1]), ErrorCode::UnknownTopicOrPartition),
        ("u", None, ErrorCode::UnknownTopicOrPartition),
        ("t", Some(&[]), ErrorCode::InvalidReplicaAssignment),
        ("t", Some(&[1, 1]), ErrorCode::InvalidReplicaAssignment),
        ("t", Some(&[1, 9]), ErrorCode::InvalidReplicaAssignment),
        ("t", Some(&[-1]), ErrorCode::InvalidReplicaAssignment),
        ("t", None, ErrorCode::NoReassignmentInProgress),
    ];
    for (name, target, expected) in refused {
        assert_eq!(cluster.reassign(name, target), Err(expected), "{name} {target:?}");
    }
    assert_eq!(cluster.reassign_as("t", Some(&[1]), false), Err(ErrorCode::InvalidReplicationFactor));
    assert_eq!(cluster.reassign_as("t", Some(&[1, 3]), false), Ok(()));
}
