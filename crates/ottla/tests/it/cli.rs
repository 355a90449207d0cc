//! The commands that ask a cluster.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::cluster::{Cluster, eventually, free_base_port, json_lines, run, stdout};

fn sorted_values(records: &[Value]) -> Vec<&str> {
    let mut values: Vec<&str> = records.iter().map(|record| record["value"].as_str().expect("text")).collect();
    values.sort_unstable();
    values
}

#[test]
fn a_topic_is_created_changed_described_and_deleted() {
    let cluster = Cluster::shared();
    let created = cluster.json(&["topic", "create", "life", "-p", "2", "-c", "min.insync.replicas=1"]);
    assert_eq!((&created["partitions"], &created["replication_factor"]), (&json!(2), &json!(3)));
    cluster.json(&["topic", "alter", "life", "-p", "4", "-c", "retention.ms=1000"]);
    cluster.json(&["topic", "alter", "life", "--delete-config", "min.insync.replicas"]);
    // A broker answers once the quorum has decided, and sees it itself a moment later.
    let described = eventually("the changes show", || {
        let described = cluster.json(&["topic", "describe", "life"]);
        (described["configs"] == json!({ "retention.ms": "1000" })).then_some(described)
    });
    assert_eq!(described["topic_id"], created["topic_id"]);
    let partitions = described["partitions"].as_array().expect("a list");
    assert_eq!(partitions.len(), 4);
    assert!(partitions.iter().all(|p| p["isr"].as_array().is_some_and(|isr| isr.len() == 3)), "{partitions:?}");
    let listed = cluster.json(&["topic", "list"]);
    let row = listed.as_array().expect("a list").iter().find(|row| row["topic"] == "life").expect("listed");
    assert_eq!(row, &json!({ "topic": "life", "partitions": 4, "replicas": 3, "under_replicated": 0, "offline": 0 }));
    let table = cluster.run(&["topic", "list"]);
    assert!(stdout(&table).starts_with("TOPIC"), "a table begins at the margin");
    cluster.json(&["topic", "delete", "life"]);
    eventually("it is gone", || {
        let left = cluster.json(&["topic", "list"]);
        left.as_array().expect("a list").iter().all(|row| row["topic"] != "life").then_some(())
    });
}

#[test]
fn records_come_back_with_their_keys_in_each_partitions_order() {
    let cluster = Cluster::shared();
    cluster.json(&["topic", "create", "records", "-p", "3"]);
    let written = cluster.produce(&["records", "--key-separator", "=", "--json"], "a=1\nb=2\na=3\nplain\n");
    assert_eq!(crate::cluster::json(&written), json!({ "topic": "records", "records": 4 }));
    let read = cluster.run(&["consume", "records", "--from-beginning", "--max-messages", "4", "--json"]);
    let records = json_lines(&read);
    assert_eq!(sorted_values(&records), ["1", "2", "3", "plain"]);
    let of_a: Vec<&Value> = records.iter().filter(|record| record["key"] == "a").collect();
    assert_eq!(of_a.iter().map(|record| record["value"].as_str().expect("text")).collect::<Vec<_>>(), ["1", "3"]);
    assert_eq!(of_a[0]["partition"], of_a[1]["partition"], "a key has one partition");
    assert!(records.iter().any(|record| record["key"].is_null() && record["value"] == "plain"));
    let partition = of_a[1]["partition"].to_string();
    let offset = of_a[1]["offset"].to_string();
    let one = ["consume", "records", "--partition", &partition, "--offset", &offset, "--max-messages", "1"];
    assert_eq!(stdout(&cluster.run(&one)), "3\n");
    let ended = cluster.run(&["consume", "records", "--from-beginning", "--timeout-ms", "1", "--key-separator", "="]);
    assert!(stdout(&ended).lines().all(|line| ["a=1", "b=2", "a=3", "null=plain"].contains(&line)));
}

#[test]
fn a_groups_offsets_are_set_within_the_log_shown_with_their_lag_and_deleted() {
    let cluster = Cluster::shared();
    cluster.json(&["topic", "create", "lagging", "-p", "1"]);
    stdout(&cluster.produce(&["lagging"], "1\n2\n3\n4\n5\n"));
    let reset = |to: &[&str]| cluster.json(&[&["group", "reset", "workers", "--topic", "lagging"], to].concat());
    let target = |offset: i64| json!([{ "topic": "lagging", "partition": 0, "new_offset": offset }]);
    assert_eq!(reset(&["--to-offset", "99", "--dry-run"]), target(5));
    assert_eq!(reset(&["--to-offset", "-1", "--dry-run"]), target(0));
    assert_eq!(reset(&["--to-timestamp", "99999999999999", "--dry-run"]), target(5));
    assert_eq!(reset(&["--to-timestamp", "0", "--dry-run"]), target(0));
    assert_eq!(reset(&["--to-latest", "--dry-run"]), target(5));
    assert_eq!(reset(&["--to-offset", "2"]), target(2));
    let mut described = cluster.json(&["group", "describe", "workers"]);
    assert_eq!(described["state"], "Empty");
    let late = described["offsets"][0].as_object_mut().and_then(|row| row.remove("lag_seconds"));
    assert!(
        late.as_ref().and_then(serde_json::Value::as_f64).is_some_and(|late| (0.0..600.0).contains(&late)),
        "{late:?}"
    );
    assert_eq!(Some(&described["lag_seconds"]), late.as_ref());
    let row = json!({ "topic": "lagging", "partition": 0, "offset": 2, "log_end": 5, "lag": 3, "member": null });
    assert_eq!(described["offsets"], json!([row]));
    let listed = cluster.json(&["group", "list"]);
    assert!(listed.as_array().expect("a list").iter().any(|group| group["group"] == "workers"), "{listed}");
    let series = "kafka_consumergroup_lag{consumergroup=\"workers\",topic=\"lagging\",partition=\"0\"} 3.0\n";
    assert!(cluster.metrics().contains(series), "{}", cluster.metrics());
    cluster.json(&["group", "delete", "workers"]);
    assert!(!cluster.run(&["group", "describe", "workers"]).status.success());
}

#[test]
fn the_status_names_nodes_zones_and_the_quorum() {
    let cluster = Cluster::shared();
    let status = cluster.json(&["cluster", "status"]);
    assert_eq!(status["voters"], json!([1, 2, 3]));
    assert!(status["active_controller"].is_i64(), "{status}");
    assert_eq!(status["offline"], json!([]));
    let nodes = status["nodes"].as_array().expect("a list");
    let shown: Vec<_> = nodes.iter().map(|node| (&node["node"], &node["zone"], &node["state"])).collect();
    let expected = [(json!(1), json!("a")), (json!(2), json!("b")), (json!(3), json!("c"))];
    assert_eq!(shown, expected.each_ref().map(|(node, zone)| (node, zone, &nodes[0]["state"])));
    assert_eq!(nodes[0]["state"], "up");
    let http = format!("127.0.0.1:{}", cluster.base_port + 3000);
    assert_eq!(stdout(&run(&["health", "--http", &http])), "ready\n");
}

#[test]
fn the_metrics_have_kafkas_names() {
    let cluster = Cluster::shared();
    cluster.json(&["topic", "create", "measured", "-p", "1"]);
    stdout(&cluster.produce(&["measured"], "1\n2\n3\n"));
    let metrics = cluster.metrics();
    for series in [
        "kafka_server_brokertopicmetrics_messagesin_total{topic=\"measured\"} 3.0\n",
        "kafka_server_brokertopicmetrics_bytesin_total{topic=\"measured\"} ",
        "kafka_server_brokertopicmetrics_bytesout_total{topic=\"measured\"} 0.0\n",
        "kafka_server_replicamanager_isrshrinks_total ",
        "kafka_server_replicamanager_isrexpands_total ",
        "kafka_server_replicamanager_failedisrupdates_total ",
        "kafka_server_replicamanager_underminisrpartitioncount ",
        "kafka_controller_controllerstats_leaderelections_total ",
        "kafka_controller_controllerstats_uncleanleaderelections_total ",
        "kafka_network_requestmetrics_totaltimems_sum{request=\"Produce\"} ",
        "kafka_network_requestmetrics_totaltimems_bucket{le=\"0.05\",request=\"Produce\"} ",
        "kafka_network_requestmetrics_totaltimems_bucket{le=\"+Inf\",request=\"Produce\"} ",
    ] {
        assert!(metrics.contains(series), "{series} is not in {metrics}");
    }
}

#[test]
fn errors_say_what_to_do() {
    let cluster = Cluster::shared();
    cluster.json(&["topic", "create", "there"]);
    let cases: &[(&[&str], &str)] = &[
        (&["topic", "create", "there"], "already exists"),
        (&["topic", "create", "no spaces"], "INVALID_TOPIC_EXCEPTION"),
        (&["topic", "create", "x", "-r", "9"], "only 3 broker(s)"),
        (&["topic", "create", "x", "-c", "retention.mss=1"], "retention.mss"),
        (&["topic", "create", "x", "-c", "retention.ms"], "is not name=value"),
        (&["topic", "describe", "nope"], "`ottla topic list`"),
        (&["topic", "alter", "there"], "--partitions, --config or --delete-config"),
        (&["topic", "alter", "nope", "-p", "3"], "`ottla topic list`"),
        (&["topic", "delete", "nope"], "there is no topic nope"),
        (&["consume", "nope"], "`ottla topic create nope`"),
        (&["consume", "there", "--partition", "7", "--offset", "0"], "has no partition 7; it has 0 to 0"),
        (&["consume", "there", "--partition", "0", "--offset", "9"], "it has 0 to 0"),
        (&["produce", "nope"], "`ottla topic create nope`"),
        (&["produce", "there", "--partition", "7"], "has no partition 7"),
        (&["group", "describe", "nope"], "`ottla group list`"),
        (&["group", "delete", "nope"], "`ottla group list`"),
    ];
    for (arguments, words) in cases {
        let output = cluster.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.contains(words), "{arguments:?}: {stderr}");
    }
    let usage: &[&[&str]] = &[&["group", "reset", "g", "--topic", "there"], &["consume", "there", "--offset", "3"]];
    for arguments in usage {
        assert_eq!(cluster.run(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_cluster_that_is_not_there_is_told() {
    let nobody = format!("127.0.0.1:{}", free_base_port(1));
    for (arguments, words) in [
        (["topic", "list", "-b", nobody.as_str()], "is the cluster running?"),
        (["topic", "list", "-b", "localhost"], "is not host:port"),
        (["topic", "list", "-b", ""], "give host:port"),
    ] {
        let output = run(&arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(words), "{stderr}");
    }
    assert_eq!(run(&["health", "--http", &nobody]).status.code(), Some(1));
}

#[test]
fn a_reader_who_has_enough_is_no_error() {
    let cluster = Cluster::shared();
    cluster.json(&["topic", "create", "long"]);
    let lines: String = (0..20_000).map(|i| format!("{i}\n")).collect();
    stdout(&cluster.produce(&["long"], &lines));
    let mut child = cluster
        .command(&["consume", "long", "--from-beginning"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&run(&["completions", shell])).contains("ottla"));
    }
}
