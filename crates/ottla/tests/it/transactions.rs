//! `ottla transaction`, with a transaction that a client has left open.

use model::{ProducerEpoch, ProducerId, Record};
use protocol::messages::*;
use serde_json::json;

use crate::cluster::{Cluster, ask, eventually};

const ID: &str = "left-open";

/// Begins a transaction and writes one record in it.
fn leave_open(cluster: &Cluster, topic: &str) -> i64 {
    let bootstrap = cluster.bootstrap();
    let any = bootstrap.split(',').next().expect("a broker");
    let coordinator = cluster.coordinator(1, ID);
    let init = InitProducerIdRequest {
        transactional_id: Some(ID.to_owned()),
        transaction_timeout_ms: 600_000,
        ..Default::default()
    };
    let producer = eventually("a producer id", || {
        let granted: InitProducerIdResponse = ask(&coordinator, &init, 4);
        (granted.error_code == 0).then_some((granted.producer_id, granted.producer_epoch))
    });
    let metadata_request = MetadataRequest {
        topics: Some(vec![metadata_request::MetadataRequestTopic {
            name: Some(topic.to_owned()),
            ..Default::default()
        }]),
        ..Default::default()
    };
    let metadata: MetadataResponse = ask(any, &metadata_request, 12);
    let leader = metadata.topics[0].partitions[0].leader_id;
    let leader = metadata.brokers.iter().find(|broker| broker.node_id == leader).expect("the leader");
    let leader = format!("{}:{}", leader.host, leader.port);
    let records = model::encode_records(&[Record { value: Some("a".into()), ..Record::default() }]);
    let batch = || {
        let producer = (ProducerId(producer.0), ProducerEpoch(producer.1), 0);
        model::encode_transactional_batch(&records, 1, metadata_time(), producer)
    };
    // Version 12 leaves it to the broker to add the partition to the transaction.
    eventually("the record", || {
        let partition = produce_request::PartitionProduceData { index: 0, records: Some(batch()) };
        let data = produce_request::TopicProduceData {
            name: topic.to_owned(),
            partition_data: vec![partition],
            ..Default::default()
        };
        let request = ProduceRequest {
            transactional_id: Some(ID.to_owned()),
            acks: -1,
            timeout_ms: 10_000,
            topic_data: vec![data],
        };
        let answer: ProduceResponse = ask(&leader, &request, 12);
        (answer.responses[0].partition_responses[0].error_code == 0).then_some(())
    });
    producer.0
}

fn metadata_time() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_millis()).expect("a time")
}

#[test]
fn an_open_transaction_is_listed_described_and_aborted_and_does_not_hang() {
    let cluster = Cluster::shared();
    cluster.json(&["topic", "create", "open", "-p", "1"]);
    let producer = leave_open(&cluster, "open");
    let listed = cluster.json(&["transaction", "list", "--state", "Ongoing"]);
    let row = listed.as_array().expect("a list").iter().find(|row| row["transactional_id"] == ID).expect("listed");
    assert_eq!((&row["producer_id"], &row["state"]), (&json!(producer), &json!("Ongoing")));
    let described = cluster.json(&["transaction", "describe", ID]);
    assert_eq!(described["partitions"], json!([{ "topic": "open", "partition": 0 }]));
    assert_eq!((&described["state"], &described["timeout_ms"]), (&json!("Ongoing"), &json!(600_000)));
    let hanging = cluster.json(&["transaction", "find-hanging", "--topic", "open", "--older-than-minutes", "0"]);
    assert_eq!(hanging, json!([]), "its coordinator knows of it");
    let abort = ["transaction", "abort", "--topic", "open", "--partition", "0", "--start-offset", "0"];
    assert_eq!(cluster.json(&abort)["aborted"], json!(true));
    assert!(!cluster.run(&abort).status.success(), "there is none any more");
    assert!(!cluster.run(&["transaction", "describe", "nobody"]).status.success());
    assert!(!cluster.run(&["transaction", "list", "--state", "Nonsense"]).status.success());
    let after = cluster.produce(&["open"], "after\n");
    assert!(after.status.success(), "{after:?}");
}
