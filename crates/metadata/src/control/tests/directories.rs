//! Log directories: placement, failures, who is where (`R10`, `R30`, `R78`, KIP-858, KIP-1066).

use super::*;

/// Three brokers; broker 1 has the directories 101 and 102.
fn cluster() -> Cluster {
    with_rules(rules())
}

fn with_rules(rules: Rules) -> Cluster {
    let mut cluster = Cluster::ruled(3, rules);
    // One that it had before proves that no other process has its identity (R6).
    start_again(&mut cluster, |request| request.directories.push(directory(1))).unwrap();
    start_again(&mut cluster, |_| {}).unwrap();
    cluster
}

/// Starts broker 1 with a proof of its last shutdown, as `change` has it.
fn start_again(cluster: &mut Cluster, change: impl FnOnce(&mut RegisterBroker)) -> Result<(), ErrorCode> {
    let previous = cluster.control.image().broker_epoch(BrokerId(1));
    let mut request = cluster.registration(1, previous);
    request.directories = vec![directory(101), directory(102)];
    change(&mut request);
    let answer = match cluster.ask(ControlRequest::RegisterBroker(request)).response {
        ControlResponse::RegisterBroker { .. } => Ok(()),
        ControlResponse::Refused(error) => Err(error.code),
        other => panic!("{other:?}"),
    };
    cluster.beat(1);
    answer
}

fn beat_with(cluster: &mut Cluster, change: impl FnOnce(&mut Heartbeat)) {
    let mut heartbeat = cluster.heartbeat(1);
    change(&mut heartbeat);
    cluster.send(heartbeat);
}

impl Cluster {
    fn directory_of(&self, id: TopicPartition, broker: i32) -> DirectoryId {
        self.partition(id).directory_of(BrokerId(broker))
    }

    fn assign(&mut self, id: TopicPartition, to: i32) {
        let epoch = self.control.image().broker_epoch(BrokerId(1));
        let replicas = vec![(id, directory(to))];
        self.ask(ControlRequest::AssignReplicas(AssignReplicas { broker: BrokerId(1), epoch, replicas }));
    }
}

#[test]
fn a_new_replica_goes_to_the_directory_with_the_fewest_and_the_first_of_equals() {
    let mut cluster = cluster();
    let places: Vec<_> = (0..4).map(|i| (cluster.assigned(&format!("t{i}"), &[1, 2]), 1)).collect();
    let found: Vec<_> = places.iter().map(|(id, broker)| cluster.directory_of(*id, *broker)).collect();
    assert_eq!(found, [101, 102, 101, 102].map(directory));
    // One goes: its place is the next one's.
    let gone = DeleteTopics { topics: vec![TopicRef::Name("t1".to_owned())] };
    cluster.ask(ControlRequest::DeleteTopics(gone));
    let next = cluster.assigned("next", &[1, 2]);
    assert_eq!(cluster.directory_of(next, 1), directory(102));
    let many = CreateTopic { partitions: 4, replication_factor: 3, ..plain("many") };
    let topic_id = cluster.create(many).unwrap().id;
    let of = |index| TopicPartition { topic_id, partition: PartitionIndex(index) };
    let found: Vec<_> = (0..4).map(|index| cluster.directory_of(of(index), 1)).collect();
    assert_eq!(found, [101, 102, 101, 102].map(directory), "those of one request count for each other");
}

#[test]
fn what_a_replica_has_is_asked_only_where_its_directory_works() {
    // R35: so many are asked for at once, and those that a broker cannot answer for would be asked for for ever.
    let mut cluster = cluster();
    let ids = ["failed", "works"].map(|name| cluster.assigned(name, &[1]));
    assert_eq!(ids.map(|id| cluster.directory_of(id, 1)), [101, 102].map(directory));
    cluster.lose_all_but(&[2, 3]);
    let mut request = cluster.registration(1, BrokerEpoch::NONE);
    (request.directories, request.offline_directories) = ([101, 102].map(directory).to_vec(), vec![directory(101)]);
    let registered = cluster.ask(ControlRequest::RegisterBroker(request)).response;
    assert!(matches!(registered, ControlResponse::RegisterBroker { .. }), "{registered:?}");
    cluster.beat(1);
    assert!(ids.iter().all(|id| cluster.partition(*id).awaits_recovery()));
    assert_eq!(cluster.beat(1).recovery_wanted, ids[1..]);
}

#[test]
fn cordoned_full_and_failed_directories_take_no_new_replicas() {
    let mut cluster = cluster();
    beat_with(&mut cluster, |beat| beat.cordoned_directories = vec![directory(101)]);
    for i in 0..3 {
        let id = cluster.assigned(&format!("cordoned{i}"), &[1, 2]);
        assert_eq!(cluster.directory_of(id, 1), directory(102));
    }
    beat_with(&mut cluster, |beat| beat.full_directories = vec![directory(101)]);
    let id = cluster.assigned("full", &[1, 2]);
    assert_eq!(cluster.directory_of(id, 1), directory(102), "the other one has more, and has space");
    beat_with(&mut cluster, |_| {});
    let id = cluster.assigned("space", &[1, 2]);
    assert_eq!(cluster.directory_of(id, 1), directory(101));
    beat_with(&mut cluster, |beat| beat.offline_directories = vec![directory(101)]);
    let id = cluster.assigned("failed", &[1, 2]);
    assert_eq!(cluster.directory_of(id, 1), directory(102));
}

#[test]
fn brokers_that_are_cordoned_or_full_get_no_new_partitions() {
    let mut cluster = cluster();
    let both = || vec![directory(101), directory(102)];
    beat_with(&mut cluster, |beat| beat.full_directories = both());
    let topic = |name: &str, factor| CreateTopic { partitions: 8, replication_factor: factor, ..plain(name) };
    let on_broker_1 = |cluster: &Cluster, id| {
        let topic = cluster.control.image().topic(id).unwrap();
        topic.partitions.values().filter(|partition| partition.replicas.contains(&BrokerId(1))).count()
    };
    let id = cluster.create(topic("two", 2)).unwrap().id;
    assert_eq!(on_broker_1(&cluster, id), 0);
    let id = cluster.create(topic("three", 3)).unwrap().id;
    assert_eq!(on_broker_1(&cluster, id), 8, "a full disk may have space again soon");
    beat_with(&mut cluster, |beat| beat.cordoned_directories = both());
    let id = cluster.create(topic("away", 2)).unwrap().id;
    assert_eq!(on_broker_1(&cluster, id), 0);
    assert_eq!(cluster.create(topic("never", 3)).unwrap_err().code, ErrorCode::InvalidReplicationFactor);
    let assignments = vec![(PartitionIndex(0), ids(&[1, 2]))];
    let chosen = CreateTopic { assignments, partitions: -1, replication_factor: -1, ..plain("chosen") };
    assert_eq!(cluster.create(chosen).unwrap_err().code, ErrorCode::InvalidReplicaAssignment);
    let here = cluster.assigned("elsewhere", &[2, 3]);
    assert_eq!(cluster.reassign("elsewhere", Some(&[1, 2])), Err(ErrorCode::InvalidReplicaAssignment));
    beat_with(&mut cluster, |_| {});
    assert_eq!(cluster.reassign("elsewhere", Some(&[1, 2])), Ok(()));
    assert!([101, 102].map(directory).contains(&cluster.directory_of(here, 1)));
}

#[test]
fn one_failed_directory_takes_its_replicas_only() {
    // R30, R33, R78
    let mut cluster = cluster();
    let (first, second) = (cluster.assigned("a", &[1, 2, 3]), cluster.assigned("b", &[1, 2, 3]));
    beat_with(&mut cluster, |beat| beat.offline_directories = vec![directory(101)]);
    assert_eq!(cluster.shape(first), (2, vec![2, 3], vec![], vec![]));
    assert_eq!(cluster.shape(second), (1, vec![1, 2, 3], vec![], vec![]));
    assert_eq!(cluster.propose(first, &[1, 2, 3]), Err(ErrorCode::IneligibleReplica));
}

#[test]
fn a_broker_says_where_its_replicas_are() {
    let mut cluster = cluster();
    let id = cluster.assigned("t", &[1, 2, 3]);
    let before = cluster.partition(id);
    cluster.assign(id, 102);
    let after = cluster.partition(id);
    assert_eq!(after.directories, [102, 2, 3].map(directory));
    assert_eq!((after.leader_epoch, after.isr), (before.leader_epoch, before.isr));
    assert_eq!(after.last_leader_directory, directory(102), "it leads from there now (R35)");
    cluster.assign(id, 2);
    assert_eq!(cluster.directory_of(id, 1), directory(102), "that is another broker's directory");
    beat_with(&mut cluster, |beat| beat.offline_directories = vec![directory(101)]);
    assert_eq!(cluster.shape(id).1, [1, 2, 3], "it is not in the one that failed");
    cluster.assign(id, 101);
    assert_eq!(cluster.shape(id), (2, vec![2, 3], vec![], vec![]), "now it is");
}

/// Broker 1 alone is in sync, and eligible after a clean shutdown; its replica is in directory 102. Then it starts again.
fn left_alone(cluster: &mut Cluster, change: impl FnOnce(&mut RegisterBroker)) -> (TopicPartition, Partition) {
    cluster.assigned("first", &[1, 2, 3]);
    let id = cluster.assigned("t", &[1, 2, 3]);
    assert_eq!(cluster.directory_of(id, 1), directory(102));
    cluster.propose(id, &[1]).unwrap();
    start_again(cluster, change).unwrap();
    (id, cluster.partition(id))
}

#[test]
fn a_directory_that_is_gone_makes_its_replicas_anew_and_uncounted() {
    // R34, R78
    let mut cluster = cluster();
    let (_, after) = left_alone(&mut cluster, |request| request.directories = vec![directory(101), directory(103)]);
    assert_eq!(after.directory_of(BrokerId(1)), directory(103), "the one with the fewest");
    assert!(!after.isr.contains(&BrokerId(1)) && !after.elr.contains(&BrokerId(1)));
    assert_ne!(after.last_leader_directory, directory(103), "it never led from the new one");
}

#[test]
fn a_directory_that_cannot_be_identified_keeps_its_replicas_offline() {
    let mut cluster = cluster();
    let (id, after) = left_alone(&mut cluster, |request| {
        (request.directories, request.unidentified_directories) = (vec![directory(101)], true);
    });
    assert_eq!(after.directory_of(BrokerId(1)), directory(102), "it is not made anew elsewhere");
    assert!(!after.isr.contains(&BrokerId(1)) && !after.elr.contains(&BrokerId(1)));
    let broker = cluster.control.image().broker(BrokerId(1)).unwrap().clone();
    assert_eq!(broker.offline_directories, [directory(102)]);
    assert!(!cluster.control.image().is_eligible(&cluster.partition(id), BrokerId(1)));
    // The disk is back.
    start_again(&mut cluster, |_| {}).unwrap();
    assert!(cluster.control.image().is_eligible(&cluster.partition(id), BrokerId(1)));
    assert_eq!(cluster.directory_of(id, 1), directory(102));
}

/// Whether broker 1 stays eligible for what lies in 102 when it starts, with a proof, without 101.
fn proves_without_the_other(rules: Rules) -> bool {
    let mut cluster = with_rules(rules);
    let (_, after) = left_alone(&mut cluster, |request| request.directories = vec![directory(102)]);
    after.isr.contains(&BrokerId(1)) || after.elr.contains(&BrokerId(1)) || after.leader == BrokerId(1)
}

#[test]
fn a_clean_shutdown_is_proven_by_all_directories_or_not_at_all() {
    // R10: the replica may have been moved to the missing one since the metadata said where it is
    assert!(!proves_without_the_other(rules()));
    assert!(proves_without_the_other(Rules::without(Rule::R10EachDirectory)));
    let mut cluster = cluster();
    let (_, after) = left_alone(&mut cluster, |_| {});
    assert!(after.isr.contains(&BrokerId(1)) || after.elr.contains(&BrokerId(1)), "all are there");
}
