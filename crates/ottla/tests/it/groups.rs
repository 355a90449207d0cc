//! `ottla group describe` of groups with live members, one of each protocol.

use protocol::messages::*;
use protocol::records::encode_value;
use serde_json::{Value, json};

use crate::cluster::{Cluster, ask, eventually, stdout};

/// A topic of two partitions with three records in the first, of which a group is to have read one.
fn create(cluster: &Cluster, topic: &str) {
    cluster.json(&["topic", "create", topic, "-p", "2"]);
    stdout(&cluster.produce(&[topic, "--partition", "0"], "1\n2\n3\n"));
}

fn committed(cluster: &Cluster, group: &str, topic: &str, member: &str, epoch: i32) {
    let partition = offset_commit_request::OffsetCommitRequestPartition {
        committed_offset: 1,
        committed_leader_epoch: -1,
        ..Default::default()
    };
    let request = OffsetCommitRequest {
        group_id: group.to_owned(),
        generation_id_or_member_epoch: epoch,
        member_id: member.to_owned(),
        topics: vec![offset_commit_request::OffsetCommitRequestTopic {
            name: topic.to_owned(),
            partitions: vec![partition],
            ..Default::default()
        }],
        ..Default::default()
    };
    let answer: OffsetCommitResponse = ask(&cluster.coordinator(0, group), &request, 9);
    assert_eq!(answer.topics[0].partitions[0].error_code, 0);
}

/// A member of a classic group, which is assigned both partitions.
fn join_classic(cluster: &Cluster, group: &str, topic: &str) -> String {
    let protocol = join_group_request::JoinGroupRequestProtocol { name: "range".to_owned(), ..Default::default() };
    let join = JoinGroupRequest {
        group_id: group.to_owned(),
        session_timeout_ms: 60_000,
        rebalance_timeout_ms: 60_000,
        protocol_type: "consumer".to_owned(),
        protocols: vec![protocol],
        ..Default::default()
    };
    let coordinator = cluster.coordinator(0, group);
    // Version 3 is given its member id at once.
    let joined = eventually("a generation", || {
        let joined: JoinGroupResponse = ask(&coordinator, &join, 3);
        (joined.error_code == 0).then_some(joined)
    });
    let assigned = consumer_protocol_assignment::TopicPartition { topic: topic.to_owned(), partitions: vec![0, 1] };
    let assignment = ConsumerProtocolAssignment { assigned_partitions: vec![assigned], user_data: None };
    let mine = sync_group_request::SyncGroupRequestAssignment {
        member_id: joined.member_id.clone(),
        assignment: encode_value(&assignment, 1).expect("an assignment"),
    };
    let sync = SyncGroupRequest {
        group_id: group.to_owned(),
        generation_id: joined.generation_id,
        member_id: joined.member_id.clone(),
        assignments: vec![mine],
        ..Default::default()
    };
    let synced: SyncGroupResponse = ask(&coordinator, &sync, 3);
    assert_eq!(synced.error_code, 0);
    committed(cluster, group, topic, &joined.member_id, joined.generation_id);
    joined.member_id
}

/// A member of a consumer group (KIP-848) that has been assigned both partitions, and its epoch.
fn join_consumer(cluster: &Cluster, group: &str, topic: &str) -> (String, i32) {
    let member = "a-member-of-the-next-generation".to_owned();
    let join = ConsumerGroupHeartbeatRequest {
        group_id: group.to_owned(),
        member_id: member.clone(),
        rebalance_timeout_ms: 60_000,
        subscribed_topic_names: Some(vec![topic.to_owned()]),
        topic_partitions: Some(Vec::new()),
        ..Default::default()
    };
    let coordinator = cluster.coordinator(0, group);
    let mut request = join.clone();
    let epoch = eventually("both partitions", || {
        let answer: ConsumerGroupHeartbeatResponse = ask(&coordinator, &request, 1);
        if answer.error_code != 0 {
            return None;
        }
        // Later ones say nothing new.
        request = ConsumerGroupHeartbeatRequest {
            member_epoch: answer.member_epoch,
            rebalance_timeout_ms: -1,
            subscribed_topic_names: None,
            topic_partitions: None,
            ..join.clone()
        };
        let assigned = answer.assignment?.topic_partitions;
        assigned.iter().any(|topic| topic.partitions.len() == 2).then_some(answer.member_epoch)
    });
    committed(cluster, group, topic, &member, epoch);
    (member, epoch)
}

/// The rows of both partitions, without the ages, which are whatever they are.
fn rows(described: &Value) -> Vec<Value> {
    let mut rows = described["offsets"].as_array().expect("a list").clone();
    let late = rows[0].as_object_mut().and_then(|row| row.remove("lag_seconds"));
    assert!(late.as_ref().and_then(Value::as_f64).is_some_and(|late| (0.0..600.0).contains(&late)), "{late:?}");
    assert_eq!(Some(&described["lag_seconds"]), late.as_ref());
    rows[1].as_object_mut().and_then(|row| row.remove("lag_seconds"));
    rows
}

#[test]
fn a_group_of_either_protocol_is_described_with_its_members_and_how_far_behind_it_is() {
    let cluster = Cluster::shared();
    create(&cluster, "read-by-both");
    let classic = join_classic(&cluster, "of-old", "read-by-both");
    let (consumer, epoch) = join_consumer(&cluster, "of-new", "read-by-both");
    for (group, kind, assignor, member, epoch) in
        [("of-old", "classic", "range", &classic, None), ("of-new", "consumer", "uniform", &consumer, Some(epoch))]
    {
        let described = cluster.json(&["group", "describe", group]);
        let shown = [&described["type"], &described["state"], &described["protocol"]];
        assert_eq!(shown, [kind, "Stable", assignor], "{described}");
        let epochs = [&described["group_epoch"], &described["assignment_epoch"], &described["members"][0]["epoch"]];
        assert_eq!(epochs, [&json!(epoch); 3], "{described}");
        assert_eq!((&described["members"][0]["member"], &described["members"][1]), (&json!(member), &Value::Null));
        let row = |partition: i32, offset: Option<i64>, end: i64, lag: Option<i64>| {
            json!({ "topic": "read-by-both", "partition": partition, "offset": offset, "log_end": end, "lag": lag,
                    "member": member })
        };
        assert_eq!(rows(&described), [row(0, Some(1), 3, Some(2)), row(1, None, 0, None)], "{described}");
        let text = cluster.run(&["group", "describe", group]);
        let text = stdout(&text);
        for words in [format!("type         {kind}\n"), format!("assignor     {assignor}\n"), member.clone()] {
            assert!(text.contains(&words), "{words:?} is not in {text}");
        }
        assert_eq!(text.contains("\nepoch        "), epoch.is_some(), "{text}");
    }
}
