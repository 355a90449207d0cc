//! What a restored image lets happen (`R80`): nobody leads by what it says of ISRs, proofs or last leaders.

use super::*;
use crate::restore;

impl Cluster {
    /// Goes on with what was known `then`, as a quorum does that was restored from it.
    fn restore(&mut self, then: &MetadataImage) {
        self.control.reset(restore::go_on(then, 0).unwrap().0);
        self.now = self.now + SESSION;
        self.control.begin_tenure(self.now);
    }
}

fn synced(broker: i32, epoch: i32, end: i64) -> RecoveryAnswer {
    RecoveryAnswer { synced_before_ack: true, ..answer(broker, epoch, end) }
}

#[test]
fn all_replicas_are_asked_whatever_the_old_isr_was_and_the_greatest_log_leads_above_its_epochs() {
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2, 3]);
    cluster.propose(id, &[1, 2]).unwrap();
    let then = cluster.control.image().clone();
    let proofs = [1, 2, 3].map(|id| then.broker_epoch(BrokerId(id)));
    // Since then 3 came back into the ISR, and led without the others.
    cluster.restore(&then);
    assert_eq!(cluster.shape(id), (-1, vec![], vec![], vec![1, 2, 3]));
    for (broker, proof) in [1, 2, 3].into_iter().zip(proofs) {
        let epoch = cluster.start(broker, proof);
        assert!(epoch.0.unsigned_abs() >= cluster.control.image().restored_at().0, "{epoch}");
        assert_eq!(cluster.beat(broker).recovery_wanted, vec![id]);
    }
    cluster.report(1, id, answer(1, 0, 10));
    cluster.report(2, id, answer(2, 0, 10));
    assert_eq!(cluster.shape(id).0, -1, "two of three were in sync once");
    cluster.report(3, id, answer(3, 7, 5));
    let partition = cluster.partition(id);
    assert_eq!((partition.leader, partition.isr), (BrokerId(3), ids(&[3])));
    assert!(partition.leader_epoch > LeaderEpoch(7));
    assert_eq!(partition.leader_recovery_state, LeaderRecoveryState::Recovering);
}

#[test]
fn neither_a_synced_log_nor_the_last_leader_of_then_leads_before_all_have_answered() {
    for first in [answer(1, 0, 10), synced(1, 0, 10)] {
        let mut cluster = Cluster::of(3);
        let id = cluster.assigned("t", &[1, 2, 3]);
        let then = cluster.control.image().clone();
        cluster.restore(&then);
        for broker in [1, 2] {
            cluster.start(broker, BrokerEpoch::NONE);
            cluster.beat(broker);
        }
        cluster.report(1, id, first);
        cluster.report(2, id, synced(2, 0, 9));
        for _ in 0..30 {
            cluster.now = cluster.now + SESSION / 4;
            [1, 2].into_iter().for_each(|broker| drop(cluster.beat(broker)));
            tick(&mut cluster);
            assert_eq!(cluster.shape(id).0, -1, "{first:?}");
        }
        // An operator who knows that 3 is gone for good says so (R36).
        assert_eq!(cluster.elect("t", ElectionType::Unclean), Ok(()));
        assert_eq!(cluster.shape(id).0, 1);
    }
}

#[test]
fn a_leader_of_a_backup_that_is_put_back_twice_leads_above_what_the_logs_have_from_between() {
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2, 3]);
    let then = cluster.control.image().clone();
    cluster.restore(&then);
    let raised = cluster.partition(id).leader_epoch;
    cluster.restore(&then);
    for broker in 1..=3 {
        cluster.start(broker, BrokerEpoch::NONE);
        cluster.beat(broker);
    }
    let between = |by: i32| LeaderEpoch(raised.0 + by).0;
    cluster.report(1, id, answer(1, between(40), 10));
    cluster.report(2, id, answer(2, between(41), 10));
    cluster.report(3, id, answer(3, i32::MAX, 0));
    // 3 tells what cannot be: its log counts, its epoch does not.
    assert_eq!(cluster.partition(id).leader_epoch, LeaderEpoch(between(42)));
}

#[test]
fn disks_that_were_replaced_since_a_backup_are_not_taken_for_empty() {
    // R80: 2 and 3 went on with new disks after the backup, and committed without 1
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2, 3]);
    let then = cluster.control.image().clone();
    cluster.restore(&then);
    cluster.lose_all_but(&[]);
    for (broker, to) in [(1, 1), (2, 12), (3, 13)] {
        displaced::back(&mut cluster, broker, &[to]);
    }
    cluster.report(1, id, answer(1, 0, 5));
    cluster.report(2, id, answer(12, 2, 20));
    assert_eq!(cluster.shape(id).0, -1, "3 may have more");
    cluster.report(3, id, answer(13, 2, 20));
    assert_eq!(cluster.shape(id).0, 2);
}

#[test]
fn all_disks_may_have_been_replaced_since_a_backup() {
    // R80
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2, 3]);
    let then = cluster.control.image().clone();
    cluster.restore(&then);
    cluster.lose_all_but(&[]);
    for broker in 1..=3 {
        assert_eq!(cluster.shape(id).0, -1);
        displaced::back(&mut cluster, broker, &[broker + 10]);
    }
    (1..=3).for_each(|broker| drop(cluster.report(broker, id, answer(broker + 10, 2, 20))));
    assert_eq!(cluster.shape(id).0, 1);
}

#[test]
fn an_operator_is_told_that_a_synced_log_of_a_backup_may_lack_what_came_after_it() {
    // R80
    let mut cluster = Cluster::of(3);
    let id = cluster.assigned("t", &[1, 2, 3]);
    let then = cluster.control.image().clone();
    cluster.restore(&then);
    cluster.lose_all_but(&[]);
    displaced::back(&mut cluster, 1, &[1]);
    cluster.report(1, id, synced(1, 0, 5));
    assert_eq!(displaced::elect_unclean(&mut cluster), Some(true));
    assert_eq!(cluster.shape(id).0, 1);
}
