//! Replicas that are moved from the command line, a node that joins and one that leaves, and what another failure stops.

use std::fs;
use std::process::{Child, Output, Stdio};

use protocol::messages::alter_partition_reassignments_request::{ReassignablePartition, ReassignableTopic};
use protocol::messages::describe_configs_request::DescribeConfigsResource;
use protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use protocol::messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, DescribeConfigsRequest,
    DescribeConfigsResponse, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
    ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse,
};
use serde_json::{Value, json};

use crate::cluster::{Cluster, LIMIT, ask, eventually, free_base_port, ottla, stdout, terminate};

/// A node that is a broker only, beside the cluster's own; ended with the value.
struct Joined(Child);

impl Joined {
    /// Of the cluster's directory, so that it goes with it.
    fn start(cluster: &Cluster, id: u16, zone: &str) -> Joined {
        let port = free_base_port(1);
        let home = cluster.directory.join(format!("joined-{id}"));
        fs::create_dir_all(&home).expect("created");
        let first = fs::read_to_string(cluster.node_file(1, "server.properties")).expect("its file");
        let voters = first.lines().find(|line| line.starts_with("controller.quorum.voters=")).expect("its voters");
        let file = home.join("server.properties");
        let text = format!(
            "process.roles=broker\nnode.id={id}\nbroker.rack={zone}\n{voters}\nlog.dirs={}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},INTERNAL://127.0.0.1:{}\nottla.http.listener=127.0.0.1:{}\n",
            home.join("data").display(),
            port + 1000,
            port + 3000,
        );
        fs::write(&file, text).expect("written");
        let log = fs::File::create(home.join("stdout.log")).expect("created");
        let process = ottla(&["server", "--config", &file.display().to_string()])
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .expect("the binary runs");
        Joined(process)
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = terminate(&mut self.0);
        }
    }
}

fn replicas(cluster: &Cluster, topic: &str) -> Vec<Vec<i64>> {
    let described = cluster.json(&["topic", "describe", topic]);
    let partitions = described["partitions"].as_array().expect("a list").clone();
    let ids = |list: &Value| list.as_array().expect("a list").iter().map(|id| id.as_i64().expect("a number")).collect();
    partitions.iter().map(|partition| ids(&partition["replicas"])).collect()
}

fn node(status: &Value, id: i64) -> Option<&Value> {
    status["nodes"].as_array().expect("a list").iter().find(|node| node["node"] == id)
}

#[test]
fn a_node_joins_takes_its_share_is_drained_and_leaves() {
    let cluster = Cluster::start(3, &["--ephemeral"]);
    cluster.json(&["topic", "create", "moving", "-p", "4", "-r", "2", "-c", "min.insync.replicas=1"]);
    cluster.produce(&["moving"], &"line\n".repeat(500));
    let planned = cluster.json(&["cluster", "rebalance"]);
    let before = replicas(&cluster, "moving");
    let mut joined = Joined::start(&cluster, 4, "d");
    let up = |id| {
        let status = cluster.json(&["cluster", "status"]);
        node(&status, id).is_some_and(|node| node["state"] == "up").then_some(())
    };
    eventually("the new node is up", || up(4));
    // The plan alone moves nothing.
    let planned_now = cluster.json(&["cluster", "rebalance"]);
    assert_ne!(planned, planned_now, "the new node is to get something");
    assert!(planned_now["moves"].as_array().is_some_and(|moves| !moves.is_empty()), "{planned_now}");
    assert_eq!(replicas(&cluster, "moving"), before);
    let moved = cluster.json(&["cluster", "rebalance", "--execute", "--throttle", "50000000"]);
    assert!(moved["moved"].as_u64().is_some_and(|count| count > 0), "{moved}");
    assert!(replicas(&cluster, "moving").iter().flatten().any(|id| *id == 4));
    let configs = &cluster.json(&["topic", "describe", "moving"])["configs"];
    assert_eq!(*configs, json!({ "min.insync.replicas": "1" }), "the throttle is taken back");
    // It holds replicas, so it cannot be forgotten; drained, it can.
    let refused = cluster.run(&["cluster", "unregister", "4"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("rebalance --drain 4"), "{refused:?}");
    cluster.json(&["cluster", "rebalance", "--drain", "4", "--execute"]);
    assert!(replicas(&cluster, "moving").iter().flatten().all(|id| *id != 4));
    terminate(&mut joined.0);
    let gone = eventually("it is forgotten", || {
        let output = cluster.run(&["cluster", "unregister", "4", "--json"]);
        output.status.success().then_some(output)
    });
    assert_eq!(crate::cluster::json(&gone), json!({ "node": 4 }));
    let again = cluster.run(&["cluster", "unregister", "4"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("BROKER_ID_NOT_REGISTERED"), "{again:?}");
    let read = cluster.run(&["consume", "moving", "--from-beginning", "--max-messages", "500"]);
    assert_eq!(crate::cluster::stdout(&read).lines().count(), 500, "within {LIMIT:?}");
}

const RATE: &str = "leader.replication.throttled.rate";

/// A topic "slow" with a replica of each partition, two of them on node 3, and an operator's own throttles: of node 1, and
/// of a partition.
struct Throttled(Cluster);

impl Throttled {
    fn start() -> Throttled {
        let throttled = Throttled(Cluster::start(3, &["--ephemeral"]));
        throttled.create();
        throttled.throttle();
        throttled
    }

    /// The operator's own.
    fn throttle(&self) {
        let own = self.0.run(&["topic", "alter", "slow", "-c", "leader.replication.throttled.replicas=0:1"]);
        assert!(own.status.success(), "{own:?}");
        let value = Some("50000000".to_owned());
        let configs = vec![AlterableConfig { name: RATE.to_owned(), config_operation: 0, value }];
        let node = AlterConfigsResource { resource_type: 4, resource_name: "1".to_owned(), configs };
        let request = IncrementalAlterConfigsRequest { resources: vec![node], validate_only: false };
        let answer: IncrementalAlterConfigsResponse = ask(&self.address(1), &request, 1);
        assert_eq!(answer.responses[0].error_code, 0);
    }

    /// Cancels all moves, and with them every throttle.
    fn cancel(&self) {
        let cancelled = self.0.json(&["cluster", "rebalance", "--cancel"]);
        assert!(
            cancelled["throttles_removed"].to_string().contains("node 1: leader.replication.throttled.rate=50000000")
        );
        eventually("no node is throttled", || {
            [1, 2, 3].map(|node| self.rate(node)).iter().all(Option::is_none).then_some(())
        });
    }

    fn create(&self) {
        self.0.json(&["topic", "create", "slow", "-p", "6", "-r", "1"]);
        let lines = format!("{}\n", "x".repeat(100)).repeat(10_000);
        for _ in 0..3 {
            assert!(self.0.produce(&["slow"], &lines).status.success());
        }
    }

    fn address(&self, node: u16) -> String {
        format!("127.0.0.1:{}", self.0.base_port + node - 1)
    }

    /// Moves both partitions off node 3, at a rate at which that never ends.
    fn rebalance(&self) -> Child {
        let mut command = self.0.command(&["cluster", "rebalance", "--drain", "3", "--execute", "--throttle", "1"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        eventually("both are under way", || (self.under_way().len() == 2).then_some(()));
        child
    }

    /// The partitions that are being moved, and where to.
    fn under_way(&self) -> Vec<(i32, i32)> {
        let request = ListPartitionReassignmentsRequest { topics: None, timeout_ms: 10_000 };
        let answer: ListPartitionReassignmentsResponse = ask(&self.address(1), &request, 0);
        let partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
        partitions.map(|partition| (partition.partition_index, partition.adding_replicas[0])).collect()
    }

    /// Aims a move elsewhere, or cancels it, as another tool would.
    fn aim(&self, partition_index: i32, replicas: Option<Vec<i32>>) {
        let partitions = vec![ReassignablePartition { partition_index, replicas }];
        let request = AlterPartitionReassignmentsRequest {
            timeout_ms: 10_000,
            allow_replication_factor_change: true,
            topics: vec![ReassignableTopic { name: "slow".to_owned(), partitions }],
        };
        let answer: AlterPartitionReassignmentsResponse = ask(&self.address(1), &request, 1);
        assert_eq!((answer.error_code, answer.responses[0].partitions[0].error_code), (0, 0), "{answer:?}");
    }

    /// What a node has of its own for its rate as a leader, as it says itself.
    fn rate(&self, node: u16) -> Option<String> {
        let configuration_keys = Some(vec![RATE.to_owned()]);
        let resource_name = node.to_string();
        let resources = vec![DescribeConfigsResource { resource_type: 4, resource_name, configuration_keys }];
        let request = DescribeConfigsRequest { resources, ..DescribeConfigsRequest::default() };
        let answer: DescribeConfigsResponse = ask(&self.address(node), &request, 4);
        let config = &answer.results[0].configs[0];
        (config.config_source == 2).then(|| config.value.clone()).flatten()
    }

    /// Everything that was throttled is throttled as the operator had it.
    fn is_as_before(&self) {
        let topics = self.0.json(&["topic", "list"]);
        if topics.as_array().expect("a list").iter().any(|topic| topic["topic"] == "slow") {
            let configs = &self.0.json(&["topic", "describe", "slow"])["configs"];
            assert_eq!(*configs, json!({ "leader.replication.throttled.replicas": "0:1" }));
        }
        let rates = [1, 2, 3].map(|node| self.rate(node));
        assert_eq!(rates, [Some("50000000".to_owned()), None, None]);
    }
}

fn ended(mut child: Child) -> Output {
    eventually("it ends", || child.try_wait().expect("a child"));
    child.wait_with_output().expect("it ended")
}

#[test]
fn a_rebalance_ends_with_its_moves_and_takes_its_throttle_with_it_whatever_becomes_of_them() {
    let throttled = Throttled::start();
    let child = throttled.rebalance();
    assert_eq!(throttled.rate(2).as_deref(), Some("1"), "it is throttled meanwhile");
    let under_way = throttled.under_way();
    let ((cancelled, _), (elsewhere, to)) = (under_way[0], under_way[1]);
    throttled.aim(cancelled, None);
    throttled.aim(elsewhere, Some(vec![3 - to]));
    let output = ended(child);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{output:?}");
    assert!(stderr.contains(&format!("slow-{cancelled} was cancelled")), "{stderr}");
    assert!(stderr.contains(&format!("slow-{elsewhere} was aimed elsewhere, at {}", 3 - to)), "{stderr}");
    throttled.is_as_before();

    // What it is told to throttle by is refused for the nodes, and not for the topic.
    throttled.cancel();
    throttled.throttle();
    let drain = ["cluster", "rebalance", "--drain", "3", "--execute", "--throttle", "18446744073709551615"];
    let output = throttled.0.run(&drain);
    assert!(String::from_utf8_lossy(&output.stderr).contains("the throttle of"), "{output:?}");
    assert_eq!(throttled.under_way(), []);
    throttled.is_as_before();
}

#[test]
fn a_rebalance_that_is_stopped_or_whose_topic_is_deleted_takes_its_throttle_back() {
    let throttled = Throttled::start();
    let mut child = throttled.rebalance();
    assert!(!terminate(&mut child).success());
    let output = child.wait_with_output().expect("it ended");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("go on, without a throttle"), "{stderr}");
    throttled.is_as_before();

    throttled.cancel();
    throttled.0.json(&["topic", "delete", "slow"]);
    throttled.create();
    throttled.throttle();
    let child = throttled.rebalance();
    throttled.0.json(&["topic", "delete", "slow"]);
    let output = ended(child);
    assert!(stdout(&output).ends_with("moved 0 partitions\n"), "{output:?}");
    throttled.is_as_before();
}

#[test]
fn what_cannot_be_moved_is_refused_with_the_way_out() {
    let cluster = Cluster::shared();
    cluster.json(&["topic", "create", "everywhere", "-p", "1"]);
    let plan = cluster.json(&["cluster", "rebalance", "--drain", "3"]);
    let unmet = plan["unmet"].to_string();
    assert!(unmet.contains("everywhere-0 stays on broker 3"), "{unmet}");
    let unknown = cluster.run(&["cluster", "rebalance", "--drain", "77"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no node 77"), "{unknown:?}");
    assert_eq!(cluster.json(&["cluster", "rebalance", "--cancel"])["cancelled"], 0);
}

#[test]
fn the_status_tells_what_another_failure_would_stop() {
    let cluster = Cluster::shared();
    cluster.json(&["topic", "create", "thin", "-p", "1", "-r", "1"]);
    cluster.json(&["topic", "create", "pair", "-p", "1", "-r", "2", "-c", "min.insync.replicas=2"]);
    let thin = replicas(&cluster, "thin")[0][0];
    let pair = replicas(&cluster, "pair")[0].clone();
    let status = eventually("both are seen", || {
        let status = cluster.json(&["cluster", "status"]);
        let stops = status["another_failure_stops"].as_array().expect("a list").clone();
        let of = |id: i64| stops.iter().find(|loss| loss["failure"] == format!("node {id}")).cloned();
        (of(thin)?["offline_partitions"].as_u64()? >= 1 && of(pair[0])?["unwritable_partitions"].as_u64()? >= 1)
            .then_some(status)
    });
    assert!(status["another_failure_stops"].as_array().expect("a list").iter().all(|loss| loss["quorum"] == false));
    let shown = cluster.run(&["cluster", "status"]);
    let shown = crate::cluster::stdout(&shown);
    assert!(shown.contains("another failure would stop"), "{shown}");
    assert!(cluster.run(&["topic", "delete", "thin", "pair"]).status.success());
}

#[test]
fn an_ack_rule_by_zones_is_shown_and_refused_where_it_can_never_be_met() {
    let cluster = Cluster::shared();
    cluster.json(&["topic", "create", "zoned", "-p", "1", "-c", "ottla.ack.rule=zones=2"]);
    let configs = &cluster.json(&["topic", "describe", "zoned"])["configs"];
    assert_eq!(*configs, json!({ "ottla.ack.rule": "zones=2" }));
    let written = cluster.produce(&["zoned"], "in two zones\n");
    assert!(written.status.success(), "{written:?}");
    let refused = cluster.run(&["topic", "create", "never", "-r", "2", "-c", "ottla.ack.rule=zones=3"]);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(stderr.contains("needs replicas in 3 zones"), "{stderr}");
    cluster.json(&["topic", "delete", "zoned"]);
}
