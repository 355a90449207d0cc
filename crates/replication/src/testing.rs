//! A small context for the tests of the handlers: broker 1 is the replica, 2 and 3 are its peers.

use model::{BrokerEpoch, BrokerId, EpochCache, EpochStart, LeaderEpoch, Offset, PartitionEpoch, Rules, Time};

use crate::messages::{
    Ack, AckRule, Action, LogView, Member, Open, OpenVerdict, PartitionState, ReplicaConfig, Session,
};
use crate::replica::Replica;

pub(crate) const ME: BrokerId = BrokerId(1);
pub(crate) const B2: BrokerId = BrokerId(2);
pub(crate) const B3: BrokerId = BrokerId(3);
pub(crate) const LAG_MS: u64 = 30_000;
pub(crate) const T0: Time = Time(100_000);

/// All rules, but for the one that `just mutations` has switched off.
pub(crate) fn rules() -> Rules {
    #[cfg(feature = "mutations")]
    return Rules::without_named(&std::env::var("OTTLA_SWITCHED_OFF").unwrap_or_default());
    #[cfg(not(feature = "mutations"))]
    Rules::all()
}

pub(crate) fn config() -> ReplicaConfig {
    ReplicaConfig { me: ME, lag_time_max_ms: LAG_MS, window_bytes: 1000, opens_before: 0, rules: rules() }
}

/// A log from 0 to `end`, all synced, high watermark `hw`, with these (epoch, start).
pub(crate) fn replica(end: i64, hw: i64, epochs: &[(i32, i64)]) -> Replica {
    replica_with(config(), end, hw, epochs)
}

pub(crate) fn replica_with(config: ReplicaConfig, end: i64, hw: i64, epochs: &[(i32, i64)]) -> Replica {
    let log = LogView { start: Offset(0), end: Offset(end), synced_end: Offset(end), high_watermark: Offset(hw) };
    Replica::new(config, log, cache(epochs))
}

pub(crate) fn cache(epochs: &[(i32, i64)]) -> EpochCache {
    EpochCache::from_entries(epochs.iter().map(|(e, s)| EpochStart { epoch: LeaderEpoch(*e), start: Offset(*s) }))
}

/// Broker n has broker epoch 10 n; all are eligible; min ISR 2.
pub(crate) fn state(leader: i32, leader_epoch: i32, partition_epoch: i32, isr: &[i32]) -> PartitionState {
    let member = |id: i32| Member {
        id: BrokerId(id),
        broker_epoch: BrokerEpoch(i64::from(id) * 10),
        eligible: true,
        zone: None,
    };
    PartitionState {
        leader: BrokerId(leader),
        leader_epoch: LeaderEpoch(leader_epoch),
        partition_epoch: PartitionEpoch(partition_epoch),
        replicas: vec![member(1), member(2), member(3)],
        isr: isr.iter().map(|id| BrokerId(*id)).collect(),
        recovering: false,
        ack_rule: AckRule { min_isr: 2, zones: 0 },
        sync_before_ack: false,
    }
}

pub(crate) fn drain(replica: &mut Replica) -> Vec<Action> {
    std::iter::from_fn(|| replica.poll_action()).collect()
}

/// Leads epoch 5 since `T0` with this ISR; its log is 0..`end`, all of epoch 4; actions drained.
pub(crate) fn leader(end: i64, hw: i64, isr: &[i32]) -> Replica {
    let mut replica = replica(end, hw, &[(4, 0)]);
    replica.handle_metadata(&state(1, 5, 50, isr), T0);
    drain(&mut replica);
    replica
}

pub(crate) fn session(follower: BrokerId, open_no: u64) -> Session {
    Session { broker_epoch: BrokerEpoch(i64::from(follower.0) * 10), open_no, stream_no: 1 }
}

pub(crate) fn open(open_no: u64, log_end: i64, last_epoch: i32) -> Open {
    Open {
        open_no,
        leader_epoch: LeaderEpoch(5),
        log_end: Offset(log_end),
        last_epoch: LeaderEpoch(last_epoch),
        log_start: Offset(0),
        durable: false,
    }
}

/// The follower opens session `open_no` at `log_end`, last epoch 4.
pub(crate) fn opens(replica: &mut Replica, follower: BrokerId, open_no: u64, log_end: i64, now: Time) -> OpenVerdict {
    replica.handle_open(follower, session(follower, open_no), open(open_no, log_end, 4), now)
}

/// Appends up to `end` and tells all sessions' cursors that everything was sent.
pub(crate) fn append(replica: &mut Replica, end: i64, now: Time) {
    replica.handle_leader_append(Offset(end), now);
    send_all(replica);
}

pub(crate) fn send_all(replica: &mut Replica) {
    for follower in [B2, B3] {
        if let Some(plan) = replica.next_send(follower) {
            replica.handle_sent(follower, &plan, plan.leader_log_end, replica.leader_epoch(), 10);
        }
    }
}

pub(crate) fn acks(replica: &mut Replica, follower: BrokerId, open_no: u64, log_end: i64, now: Time) {
    let ack = Ack { open_no, log_end: Offset(log_end), log_start: Offset(0), durable: false };
    replica.handle_ack(follower, session(follower, open_no), ack, now).unwrap();
}

/// As a follower that keeps to sync before ack.
pub(crate) fn acks_durably(replica: &mut Replica, follower: BrokerId, open_no: u64, log_end: i64, now: Time) {
    let ack = Ack { open_no, log_end: Offset(log_end), log_start: Offset(0), durable: true };
    replica.handle_ack(follower, session(follower, open_no), ack, now).unwrap();
}
