//! Replicas that come back without the directory that they were in sync in: a replaced disk, one that was not mounted, a log
//! that an operator moved (`R35`, `R36`).

use super::*;

/// Registers a broker with these directories, and lets it in.
pub(super) fn back(cluster: &mut Cluster, broker: i32, directories: &[i32]) {
    back_after(cluster, broker, BrokerEpoch::NONE, directories);
}

fn back_after(cluster: &mut Cluster, broker: i32, previous: BrokerEpoch, directories: &[i32]) {
    let mut request = cluster.registration(broker, previous);
    request.directories = directories.iter().copied().map(directory).collect();
    let answer = cluster.ask(ControlRequest::RegisterBroker(request)).response;
    assert!(matches!(answer, ControlResponse::RegisterBroker { .. }), "{answer:?}");
    cluster.beat(broker);
}

/// All three are killed, 1 first, and come back, these on replaced disks.
fn all_back_on(cluster: &mut Cluster, replaced: &[i32]) -> TopicPartition {
    let id = all_killed(cluster);
    for broker in 1..=3 {
        back(cluster, broker, &[if replaced.contains(&broker) { broker + 10 } else { broker }]);
    }
    id
}

/// 2 and 3 were in sync last, and are down; each of these has come back with other directories since.
fn two_and_three_down(cluster: &mut Cluster) -> TopicPartition {
    let id = cluster.assigned("t", &[1, 2, 3]);
    cluster.lose_all_but(&[2, 3]);
    cluster.lose_all_but(&[]);
    assert_eq!(cluster.partition(id).last_known(), ids(&[2, 3]));
    id
}

/// After that all answer. Who leads, and what is told of that.
fn leader_after_disks_were_replaced(cluster: &mut Cluster, replaced: &[i32]) -> (i32, Option<bool>) {
    let id = all_back_on(cluster, replaced);
    let mut told = None;
    for broker in 1..=3 {
        let found = if replaced.contains(&broker) { answer(broker + 10, -1, 0) } else { answer(broker, 0, 20) };
        told = told.or(potential_loss(&cluster.report(broker, id, found)));
    }
    (cluster.shape(id).0, told)
}

/// An operator asks for an unclean election. What he is told of it.
pub(super) fn elect_unclean(cluster: &mut Cluster) -> Option<bool> {
    let partitions = Some(vec![("t".to_owned(), PartitionIndex(0))]);
    let request = ElectLeaders { election: ElectionType::Unclean, partitions };
    potential_loss(&cluster.ask(ControlRequest::ElectLeaders(request)))
}

/// A broker says in which directory a replica of it is.
fn assign(cluster: &mut Cluster, id: TopicPartition, broker: i32, to: i32) {
    let (broker, replicas) = (BrokerId(broker), vec![(id, directory(to))]);
    let epoch = cluster.control.image().broker_epoch(broker);
    cluster.ask(ControlRequest::AssignReplicas(AssignReplicas { broker, epoch, replicas }));
}

pub(super) fn potential_loss(decision: &Decision) -> Option<bool> {
    decision.events.iter().find_map(|event| match event {
        ControlEvent::UncleanElection { potential_loss, .. } => Some(*potential_loss),
        _ => None,
    })
}

#[test]
fn an_empty_replaced_disk_leads_nobody_by_itself() {
    // R35: 2 and 3 may have committed records without 1. What 2 had is lost, which is told.
    assert_eq!(leader_after_disks_were_replaced(&mut Cluster::of(3), &[2]), (3, Some(true)));
    assert_eq!(leader_after_disks_were_replaced(&mut Cluster::of(3), &[1]), (3, Some(false)));
    let mut cluster = Cluster::of(3);
    assert_eq!(leader_after_disks_were_replaced(&mut cluster, &[2, 3]), (-1, None));
    // R36: an operator gets whoever has the most, and is told what that is.
    assert_eq!(elect_unclean(&mut cluster), Some(true));
    assert_eq!(cluster.control.image().partitions().next().unwrap().leader, BrokerId(1));
    let mut without = Cluster::without(Rule::R35LossyLastLeader);
    assert_ne!(leader_after_disks_were_replaced(&mut without, &[2, 3]).0, -1);
}

#[test]
fn an_old_disk_in_place_of_the_one_that_was_in_sync_leads_nobody_who_has_more() {
    // R35: as an empty one; 2 and 3 lost the disks that were in sync, and 2 found one of an earlier time
    let mut cluster = Cluster::of(3);
    let id = all_back_on(&mut cluster, &[2, 3]);
    cluster.report(2, id, answer(12, 0, 5));
    cluster.report(3, id, answer(13, -1, 0));
    assert_eq!(cluster.shape(id).0, -1, "1 may have more");
    cluster.report(1, id, answer(1, 0, 20));
    assert_eq!(cluster.shape(id).0, -1, "1 was not in sync");
    assert_eq!(cluster.elect("t", ElectionType::Unclean), Ok(()));
    assert_eq!(cluster.shape(id).0, 1);
}

#[test]
fn it_is_told_once_that_nobody_is_known_to_have_all_records() {
    // R35: 2 and 3 may have committed records without 1, and both disks were replaced
    let mut cluster = Cluster::of(3);
    let id = all_killed(&mut cluster);
    let mut told = Vec::new();
    for (broker, to) in [(1, 11), (2, 12), (3, 13), (3, 23)] {
        let mut request = cluster.registration(broker, BrokerEpoch::NONE);
        request.directories = vec![directory(to)];
        let events = cluster.ask(ControlRequest::RegisterBroker(request)).events;
        told.extend(events.contains(&ControlEvent::NobodyIsKnown(id)).then_some(broker));
        cluster.beat(broker);
    }
    assert_eq!(told, [3]);
}

#[test]
fn where_no_replica_has_a_record_one_of_them_leads_and_it_is_told() {
    // R35: it was never written to, or nobody has anything of it any more
    for replaced in [&[2, 3][..], &[1, 2, 3]] {
        let mut told = None;
        let mut cluster = Cluster::of(3);
        let id = all_back_on(&mut cluster, replaced);
        for broker in 1..=3 {
            assert_eq!(cluster.shape(id).0, -1, "{broker} may have records");
            let found = if replaced.contains(&broker) { broker + 10 } else { broker };
            told = potential_loss(&cluster.report(broker, id, answer(found, -1, 0)));
        }
        assert_ne!(cluster.shape(id).0, -1, "{replaced:?}");
        assert_eq!(told, Some(true));
    }
}

#[test]
fn a_log_that_lies_in_another_directory_than_the_controller_knows_counts() {
    // R35: 2's log was moved from its directory 2 to 12, whole; 3 lost its page cache
    let mut cluster = Cluster::of(3);
    back(&mut cluster, 2, &[2, 12]);
    let id = two_and_three_down(&mut cluster);
    let proof = cluster.control.image().broker_epoch(BrokerId(2));
    back_after(&mut cluster, 2, proof, &[12]);
    cluster.report(2, id, RecoveryAnswer { synced_before_ack: true, ..answer(12, 0, 20) });
    assert_eq!(cluster.shape(id).0, -1, "a log elsewhere proves nothing by itself");
    back(&mut cluster, 3, &[3]);
    cluster.report(3, id, answer(3, 0, 12));
    assert_eq!(cluster.shape(id), (2, vec![2], vec![], vec![2, 3]));
    assert_eq!(cluster.partition(id).displaced, [], "it is in sync where it is now");
}

#[test]
fn the_only_replica_leads_from_where_it_was_moved_to() {
    // R35: by hand, and its old directory was taken out; nothing is lost
    let mut cluster = Cluster::of(3);
    back(&mut cluster, 2, &[2, 12]);
    let id = cluster.assigned("t", &[2]);
    let proof = cluster.control.image().broker_epoch(BrokerId(2));
    cluster.lose_all_but(&[1, 3]);
    back_after(&mut cluster, 2, proof, &[12]);
    cluster.report(2, id, answer(12, 0, 20));
    assert_eq!(cluster.shape(id).0, 2);
}

#[test]
fn a_disk_that_is_attached_again_counts_as_if_it_had_never_been_away() {
    // R35: 2 was started once before its disk was mounted; 3 is gone for good
    let mut cluster = Cluster::of(3);
    let id = two_and_three_down(&mut cluster);
    back(&mut cluster, 2, &[12]);
    cluster.report(2, id, answer(12, -1, 0));
    back(&mut cluster, 2, &[2, 12]);
    back(&mut cluster, 1, &[1]);
    cluster.report(1, id, answer(1, 0, 5));
    let synced = RecoveryAnswer { synced_before_ack: true, ..answer(2, 0, 20) };
    let decision = cluster.report(2, id, synced);
    assert_eq!((cluster.shape(id).0, potential_loss(&decision)), (2, Some(false)));
}

#[test]
fn nobody_is_waited_for_once_all_disks_are_attached_again() {
    // R35
    let mut cluster = Cluster::of(3);
    let id = two_and_three_down(&mut cluster);
    for broker in [2, 3] {
        back(&mut cluster, broker, &[broker + 10]);
    }
    for broker in [2, 3] {
        cluster.now = cluster.now + SESSION + 1;
        back(&mut cluster, broker, &[broker]);
    }
    cluster.report(2, id, answer(2, 0, 20));
    let decision = cluster.report(3, id, answer(3, 0, 19));
    assert_eq!((cluster.shape(id).0, potential_loss(&decision)), (2, Some(false)));
}

#[test]
fn an_operator_gets_the_greatest_of_all_who_answered() {
    // R36: 3 alone is known to have all, and is gone for good; the disk of one of the others was replaced
    for (replaced, found) in [(2, answer(12, 1, 18)), (1, answer(11, -1, 0))] {
        let mut cluster = Cluster::of(3);
        let id = cluster.assigned("t", &[1, 2, 3]);
        let other = 3 - replaced;
        cluster.lose_all_but(&[replaced, 3]);
        back(&mut cluster, replaced, &[replaced, replaced + 10]);
        back(&mut cluster, replaced, &[replaced + 10]);
        back(&mut cluster, other, &[other]);
        cluster.lose_all_but(&[1, 2]);
        assert_eq!(cluster.shape(id).0, -1);
        cluster.report(replaced, id, found);
        cluster.report(other, id, answer(other, 0, 7));
        assert_eq!(elect_unclean(&mut cluster), Some(true));
        assert_eq!(cluster.shape(id).0, 2, "{replaced}");
    }
}

#[test]
fn an_unclean_election_without_an_operator_prefers_who_was_in_sync_and_is_where_it_was() {
    // R36
    let mut cluster = Cluster::of(3);
    let id = two_and_three_down(&mut cluster);
    back(&mut cluster, 2, &[12]);
    back(&mut cluster, 1, &[1]);
    cluster.set(topic("t"), "unclean.leader.election.enable", ConfigOperation::Set(value("true"))).unwrap();
    tick(&mut cluster);
    assert_eq!(cluster.shape(id).0, 1, "2 may have nothing, 3 is away");
}

/// 3 leads alone, 2 was in sync before, and 1 was not; 2 was started once without its disk since, and is back on it.
fn two_is_home_again(cluster: &mut Cluster) -> TopicPartition {
    let id = cluster.assigned("t", &[3, 1, 2]);
    cluster.propose(id, &[3, 2]).unwrap();
    back(cluster, 2, &[2, 12]);
    cluster.propose(id, &[3, 2]).unwrap();
    back(cluster, 2, &[12]);
    back(cluster, 2, &[2, 12]);
    assign(cluster, id, 2, 2);
    assert_eq!(cluster.shape(id), (3, vec![3], vec![], vec![3, 2]));
    id
}

#[test]
fn who_is_home_again_is_preferred_as_if_it_had_never_been_away() {
    // R36: nothing was acknowledged since 2 was in sync
    let mut cluster = Cluster::of(3);
    let id = two_is_home_again(&mut cluster);
    cluster.set(topic("t"), "unclean.leader.election.enable", ConfigOperation::Set(value("true"))).unwrap();
    cluster.lose_all_but(&[1, 2]);
    assert_eq!(cluster.shape(id).0, 2);
    let mut cluster = Cluster::of(3);
    let id = two_is_home_again(&mut cluster);
    cluster.lose_all_but(&[1, 2]);
    assert_eq!(elect_unclean(&mut cluster), Some(true));
    assert_eq!(cluster.shape(id).0, 2, "before anybody has answered");
}

#[test]
fn an_operator_does_not_get_a_stranger_while_one_that_was_in_sync_is_still_to_answer() {
    // R36
    let mut cluster = Cluster::of(3);
    let id = two_and_three_down(&mut cluster);
    back(&mut cluster, 1, &[1]);
    back(&mut cluster, 2, &[2]);
    cluster.report(1, id, answer(1, 0, 5));
    elect_unclean(&mut cluster);
    assert_eq!(cluster.shape(id).0, 2);
}

#[test]
fn an_old_copy_in_another_directory_of_the_broker_proves_nothing() {
    // R35: 2 was in sync in 12 last
    for told_first in [false, true] {
        let mut cluster = Cluster::of(3);
        back(&mut cluster, 2, &[2, 12]);
        let id = cluster.assigned("t", &[1, 2, 3]);
        assign(&mut cluster, id, 2, 12);
        cluster.lose_all_but(&[]);
        back(&mut cluster, 2, &[2, 12]);
        if told_first {
            assign(&mut cluster, id, 2, 2);
        }
        cluster.report(2, id, RecoveryAnswer { synced_before_ack: true, ..answer(2, 0, 5) });
        assert_eq!(cluster.shape(id).0, -1, "{told_first}");
    }
}

#[test]
fn a_replica_of_which_nobody_knows_the_directory_was_in_one_that_its_broker_had() {
    // R35: 3 had no directory online when the topic was made, and the disks of 2 and 3 were replaced while they were in sync
    let mut cluster = Cluster::of(3);
    cluster.send(Heartbeat { offline_directories: vec![directory(3)], ..cluster.heartbeat(3) });
    let id = cluster.assigned("t", &[1, 2, 3]);
    cluster.now = cluster.now + SESSION + 1;
    cluster.beat(1);
    cluster.beat(2);
    cluster.start(3, BrokerEpoch::NONE);
    cluster.beat(3);
    cluster.propose(id, &[1, 2, 3]).unwrap();
    assert_eq!(cluster.partition(id).directory_of(BrokerId(3)), DirectoryId::NONE);
    cluster.lose_all_but(&[2, 3]);
    cluster.lose_all_but(&[]);
    for broker in [2, 3] {
        back(&mut cluster, broker, &[broker + 10]);
        cluster.report(broker, id, answer(broker + 10, -1, 0));
    }
    assert_eq!(cluster.shape(id).0, -1, "1 may have records");
}

#[test]
fn of_equal_logs_the_one_that_lost_nothing_leads_then_the_one_that_is_where_it_was() {
    // R35: 3 led last, and its log is on another disk now
    for (two, leader) in [(answer(2, 0, 20), 2), (RecoveryAnswer { lossy: true, ..answer(2, 0, 20) }, 3)] {
        let mut cluster = Cluster::of(3);
        let id = all_back_on(&mut cluster, &[3]);
        assert_eq!(cluster.partition(id).last_leader, BrokerId(3));
        cluster.report(3, id, answer(13, 0, 20));
        let told = potential_loss(&cluster.report(2, id, two));
        assert_eq!((cluster.shape(id).0, told), (leader, Some(two.lossy)));
    }
}

#[test]
fn who_said_that_a_log_failed_is_asked_for_it_last() {
    // R35: it says nothing of it until it is opened anew, and so many are asked for at once
    let mut cluster = Cluster::of(3);
    let mut all = ["s", "t"].map(|name| cluster.assigned(name, &[1, 2, 3]));
    cluster.lose_all_but(&[]);
    cluster.start(2, BrokerEpoch::NONE);
    cluster.beat(2);
    all.sort_unstable();
    let failed = Heartbeat { lossy: vec![all[0]], ..cluster.heartbeat(2) };
    assert_eq!(cluster.send(failed).recovery_wanted, [all[1], all[0]]);
}

#[test]
fn no_election_gets_a_replica_that_failed_while_another_one_lives() {
    // R36: it takes no role, and would be elected again and again
    for asked in [false, true] {
        let mut cluster = Cluster::of(3);
        let id = two_and_three_down(&mut cluster);
        back(&mut cluster, 2, &[2]);
        back(&mut cluster, 1, &[1]);
        cluster.send(Heartbeat { lossy: vec![id], ..cluster.heartbeat(2) });
        assert_eq!(cluster.shape(id).0, -1);
        if asked {
            elect_unclean(&mut cluster);
        } else {
            cluster.set(topic("t"), "unclean.leader.election.enable", ConfigOperation::Set(value("true"))).unwrap();
            tick(&mut cluster);
        }
        assert_eq!(cluster.shape(id).0, 1, "{asked}");
    }
    let mut cluster = Cluster::of(3);
    let id = two_and_three_down(&mut cluster);
    back(&mut cluster, 2, &[2]);
    cluster.send(Heartbeat { lossy: vec![id], ..cluster.heartbeat(2) });
    cluster.report(2, id, RecoveryAnswer { lossy: true, ..answer(2, 0, 12) });
    back(&mut cluster, 1, &[1]);
    elect_unclean(&mut cluster);
    assert_eq!(cluster.shape(id).0, 2, "it was opened anew");
}
