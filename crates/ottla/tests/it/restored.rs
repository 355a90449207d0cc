//! Metadata that is older than the records (`R80`): a backup that is put back, a survivor that was behind. Whatever happened
//! between, what was acknowledged is served, and nothing that was given out is given out again.

use std::fs;
use std::process::{Child, Stdio};

use model::{Codec, ProducerEpoch, ProducerId, Record};
use protocol::messages::*;
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use crate::cluster::{Cluster, TempDir, ask, eventually, json, ottla, run, stdout, terminate};

const NODES: [u16; 3] = [1, 2, 3];

/// Nodes that run by themselves, ended with the value.
struct Nodes(Vec<Child>);

impl Nodes {
    fn start(cluster: &Cluster) -> Nodes {
        let start = |node| {
            let config = cluster.node_file(node, "server.properties").display().to_string();
            let log = fs::File::create(cluster.node_file(node, "restored.log")).expect("created");
            let mut command = ottla(&["server", "--config", &config]);
            command.stdout(Stdio::null()).stderr(log).spawn().expect("the binary runs")
        };
        Nodes(NODES.map(start).into())
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in self.0.iter_mut().filter_map(|node| matches!(node.try_wait(), Ok(None)).then_some(node)) {
            let _ = terminate(node);
        }
    }
}

fn address(cluster: &Cluster, node: u16) -> String {
    format!("127.0.0.1:{}", cluster.base_port + node - 1)
}

fn new_producer(address: &str) -> ProducerId {
    let request =
        InitProducerIdRequest { transactional_id: None, transaction_timeout_ms: 60_000, ..Default::default() };
    eventually("a producer id", || {
        let granted: InitProducerIdResponse = ask(address, &request, 4);
        (granted.error_code == 0).then_some(ProducerId(granted.producer_id))
    })
}

/// The first record of an idempotent producer, at whichever of the nodes leads; its offset.
fn write_first(cluster: &Cluster, nodes: &[u16], topic: &str, producer: ProducerId) -> i64 {
    write(cluster, nodes, topic, "once", Some((producer, ProducerEpoch(0), 0)))
}

fn write(
    cluster: &Cluster,
    nodes: &[u16],
    topic: &str,
    value: &'static str,
    producer: Option<(ProducerId, ProducerEpoch, i32)>,
) -> i64 {
    let records = model::encode_records(&[Record { value: Some(value.into()), ..Record::default() }]);
    let try_at = |node: &u16| {
        let batch = model::encode_batch(&records, Codec::None, 1, 1_700_000_000_000, 1_700_000_000_000, producer);
        let partition = produce_request::PartitionProduceData { index: 0, records: Some(batch) };
        let data = produce_request::TopicProduceData {
            name: topic.to_owned(),
            partition_data: vec![partition],
            ..Default::default()
        };
        let request = ProduceRequest { transactional_id: None, acks: -1, timeout_ms: 10_000, topic_data: vec![data] };
        let answer: ProduceResponse = ask(&address(cluster, *node), &request, 11);
        let answer = &answer.responses[0].partition_responses[0];
        (answer.error_code == 0).then_some(answer.base_offset)
    };
    eventually("the record", || nodes.iter().find_map(try_at))
}

/// A topic of one partition on these brokers; the first leads.
fn create(cluster: &Cluster, name: &str, broker_ids: Vec<i32>) {
    let assignment = create_topics_request::CreatableReplicaAssignment { partition_index: 0, broker_ids };
    let topic = create_topics_request::CreatableTopic {
        name: name.to_owned(),
        num_partitions: -1,
        replication_factor: -1,
        assignments: vec![assignment],
        ..Default::default()
    };
    let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 30_000, ..Default::default() };
    let created: CreateTopicsResponse = ask(&address(cluster, 1), &request, 7);
    assert_eq!(created.topics[0].error_code, 0);
}

/// `kept`, which node 3 leads, with two records.
fn create_kept(cluster: &Cluster) {
    create(cluster, "kept", vec![3, 1, 2]);
    // By no producer that needs an id: none is given out before the backup.
    assert_eq!([("a", 0), ("b", 1)].map(|(value, at)| write(cluster, &[3], "kept", value, None) - at), [0, 0]);
}

/// Node 3 dies. Then comes what it never hears of: an election, a producer with a record, a topic. Gives the producer.
fn go_on_without_node_3(cluster: &mut Cluster) -> ProducerId {
    kill_process(cluster.pid(3).expect("it runs"), Signal::KILL).expect("it runs");
    let producer = new_producer(&address(cluster, 1));
    assert_eq!(write_first(cluster, &[1, 2], "kept", producer), 2);
    create(cluster, "later", vec![1, 2]);
    assert_eq!(write_first(cluster, &[1, 2], "later", producer), 0);
    producer
}

fn wipe_metadata(cluster: &Cluster, node: u16) {
    fs::remove_dir_all(cluster.node_file(node, "data").join("__cluster_metadata")).expect("removed");
}

/// The logs of `later` that stand aside on a node.
fn strays(cluster: &Cluster, node: u16) -> usize {
    let names = fs::read_dir(cluster.node_file(node, "data")).expect("a directory").flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("later-0.") && name.ends_with("-stray")).count()
}

/// All nodes run by the metadata that was put back.
fn all_is_served_again(cluster: &Cluster, old: ProducerId) {
    let _nodes = Nodes::start(cluster);
    let any = address(cluster, 1);
    for node in NODES {
        let address = address(cluster, node);
        eventually("a node serves", || run(&["topic", "list", "-b", &address]).status.success().then_some(()));
    }
    let new = new_producer(&any);
    assert!(new > old, "{new:?} is not {old:?}, nor was it given since");
    // Were it the old one, this would be a duplicate of the record at offset 2.
    assert_eq!(write_first(cluster, &NODES, "kept", new), 3);
    let read = run(&["consume", "kept", "--from-beginning", "--max-messages", "4", "--json", "-b", &any]);
    let values = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["value"].clone();
    assert_eq!(stdout(&read).lines().map(values).collect::<Vec<_>>(), ["a", "b", "once", "once"]);
    eventually("all are in sync", || {
        let described = json(&run(&["topic", "describe", "kept", "--json", "-b", &any]));
        let isr = described["partitions"][0]["isr"].as_array().expect("a list").len();
        (isr == 3).then_some(())
    });
    let topics = json(&run(&["topic", "list", "--json", "-b", &any]));
    assert!(topics.as_array().expect("a list").iter().all(|topic| topic["topic"] != "later"), "{topics}");
    assert_eq!(NODES.map(|node| strays(cluster, node)), [1, 1, 0]);
    // A topic of that name is a new one, and what is deleted from now on goes.
    json(&run(&["topic", "create", "later", "-p", "1", "-r", "3", "--json", "-b", &any]));
    assert_eq!(write_first(cluster, &NODES, "later", new), 0);
    json(&run(&["topic", "delete", "later", "--json", "-b", &any]));
    let gone = |node: u16| !cluster.node_file(node, "data").join("later-0").exists();
    eventually("it is deleted", || NODES.into_iter().all(gone).then_some(()));
    assert_eq!(NODES.map(|node| strays(cluster, node)), [1, 1, 0]);
}

#[test]
fn a_backup_from_before_an_election_a_producer_and_a_topic_is_put_back() {
    let dir = TempDir::new("restored");
    let mut cluster = Cluster::start(3, &["--data", &dir.path("data")]);
    create_kept(&cluster);
    let file = dir.path("metadata.backup");
    let saved = cluster.json(&["quorum", "backup", &file]);
    let producer = go_on_without_node_3(&mut cluster);
    cluster.stop();
    NODES.into_iter().for_each(|node| wipe_metadata(&cluster, node));
    let config = cluster.node_file(1, "server.properties").display().to_string();
    let restored = run(&["quorum", "restore", &file, "--config", &config]);
    let told = stdout(&restored);
    for words in ["what may be missing", "-stray", "producer id to", "uncleanly"] {
        assert!(told.contains(words), "{told}");
    }
    // Once more, in other words.
    wipe_metadata(&cluster, 1);
    let restored = json(&run(&["quorum", "restore", &file, "--config", &config, "--json"]));
    assert_eq!(restored["next_offset"], saved["next_offset"]);
    assert_eq!(restored["raised"]["brokers"], json!(3));
    assert!(restored["raised"]["epochs_by"].as_i64() >= Some(1 << 20), "{restored}");
    all_is_served_again(&cluster, producer);
}

#[test]
fn a_survivor_that_was_behind_goes_on_alone() {
    let dir = TempDir::new("recovered-behind");
    let mut cluster = Cluster::start(3, &["--data", &dir.path("data")]);
    create_kept(&cluster);
    let producer = go_on_without_node_3(&mut cluster);
    cluster.stop();
    let config = cluster.node_file(3, "server.properties").display().to_string();
    let recovered = run(&["quorum", "recover", "--unsafe", "--config", &config]);
    assert!(stdout(&recovered).contains("-stray"), "{recovered:?}");
    [1, 2].into_iter().for_each(|node| wipe_metadata(&cluster, node));
    all_is_served_again(&cluster, producer);
}
