//! Replicas that are moved from the command line, a node that joins and one that leaves, and what another failure stops.

use std::fs;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::cluster::{Cluster, LIMIT, eventually, free_base_port, ottla, terminate};

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

#[test]
fn what_cannot_be_moved_is_refused_with_the_way_out() {
    let cluster = Cluster::shared();
    cluster.json(&["topic", "create", "everywhere", "-p", "1"]);
    let plan = cluster.json(&["cluster", "rebalance", "--drain", "3"]);
    let unmet = plan["unmet"].to_string();
    assert!(unmet.contains("everywhere-0 stays on broker 3"), "{unmet}");
    let unknown = cluster.run(&["cluster", "rebalance", "--drain", "77"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no node 77"), "{unknown:?}");
    assert_eq!(cluster.json(&["cluster", "rebalance", "--cancel"]), json!({ "cancelled": 0 }));
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
