//! `ottla local` and `ottla server`: starts, deaths, stops, refusals.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};

use rustix::process::{Resource, Rlimit, Signal, kill_process, prlimit, test_kill_process};

use crate::cluster::{Cluster, TempDir, eventually, free_base_port, json, json_lines, ottla, run, stdout, terminate};

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Where the only partition of a topic is led.
fn leader(cluster: &Cluster, topic: &str) -> u16 {
    eventually("a leader", || {
        let described = cluster.json(&["topic", "describe", topic]);
        described["partitions"][0]["leader"].as_u64().and_then(|id| u16::try_from(id).ok())
    })
}

#[test]
fn a_leader_dies_under_load_comes_back_by_hand_and_the_cluster_stops_cleanly() {
    let data = TempDir::new("dies");
    let mut cluster = Cluster::start(3, &["--data", &data.path("cluster")]);
    assert_eq!(cluster.children(), 3);
    cluster.json(&["topic", "create", "load"]);
    let node = leader(&cluster, "load");
    let mut producer = cluster.command(&["produce", "load"]).stdin(Stdio::piped()).spawn().expect("the binary runs");
    let mut lines = producer.stdin.take().expect("piped");
    for i in 0..200 {
        writeln!(lines, "{i}").expect("it reads");
        if i == 100 {
            // Some of them are there when the leader dies; what is in between is sent again.
            stdout(&cluster.run(&["consume", "load", "--from-beginning", "--max-messages", "50"]));
            let pid = cluster.pid(node).expect("it runs");
            kill_process(pid, Signal::KILL).expect("it runs");
        }
    }
    drop(lines);
    assert!(producer.wait().expect("it ends").success());
    let read = cluster.run(&["consume", "load", "--from-beginning", "--max-messages", "200", "--json"]);
    let values: Vec<String> = json_lines(&read).iter().map(|r| r["value"].as_str().expect("text").to_owned()).collect();
    assert_eq!(values, (0..200).map(|i| i.to_string()).collect::<Vec<_>>(), "each once, in order");

    // It is told with the command that starts it again, and that command does.
    cluster.line_with(&format!("node {node} died"));
    let command = cluster.line_with("server --config");
    let mut words = command.split_whitespace();
    let mut by_hand = Command::new(words.next().expect("a program")).args(words).spawn().expect("it runs");
    cluster.line_with(&format!("node {node} was started again, as process {}", by_hand.id()));
    eventually("all replicas are in sync", || {
        let described = cluster.json(&["topic", "describe", "load"]);
        (described["partitions"][0]["isr"].as_array()?.len() == 3).then_some(())
    });
    assert!(cluster.stop().success(), "a clean stop in spite of all that");
    let ended = eventually("it is stopped with the others", || by_hand.try_wait().expect("a child"));
    assert!(ended.success());
    for node in 1..=3 {
        assert_eq!(cluster.pid(node), None, "node {node} runs no longer");
    }
}

/// From now on the node may open so many files; what is open stays.
fn limit_open_files(cluster: &Cluster, limit: u64) {
    let limit = Rlimit { current: Some(limit), maximum: Some(512) };
    prlimit(cluster.pid(1), Resource::Nofile, limit).expect("it is ours");
}

#[test]
fn a_node_with_few_descriptors_refuses_connections_and_takes_no_disk_for_broken() {
    let data = TempDir::new("descriptors");
    let cluster = Cluster::start_with_open_files(512, 1, &["--data", &data.path("cluster")]);
    cluster.json(&["topic", "create", "load", "--config", "segment.bytes=1048576"]);
    let log = || fs::read_to_string(cluster.node_file(1, "ottla.log")).unwrap_or_default();
    // 128 log files, 64 that are sent from, a reserve of 160.
    let connect = || TcpStream::connect(("127.0.0.1", cluster.base_port)).expect("it listens");
    let held: Vec<TcpStream> = (0..200).map(|_| connect()).collect();
    eventually("who is too many is refused", || {
        (cluster.metric("ottla_connections_refused_total") >= 40.0).then_some(())
    });
    assert!(log().contains("may have 512 files open (RLIMIT_NOFILE), which leaves 160 to connections"), "{}", log());
    drop(held);
    let open = || cluster.metric("kafka_server_socketservermetrics_connectioncount");
    eventually("they have left", || (open() < 10.0).then_some(()));

    let mut producer = cluster.command(&["produce", "load"]).stdin(Stdio::piped()).spawn().expect("the binary runs");
    let mut lines = producer.stdin.take().expect("piped");
    // More than half of a segment, and less than a batch may have.
    let half = 60;
    let mut write = move || (0..half).for_each(|_| writeln!(lines, "{}", "x".repeat(10_000)).expect("it reads"));
    write();
    let end = || cluster.metric("kafka_log_log_logendoffset");
    eventually("it is there", || (end() >= f64::from(half)).then_some(()));
    // None at all: what is open is written to, a new segment is not to be had, nor a checkpoint.
    limit_open_files(&cluster, 3);
    let writer = std::thread::spawn(write);
    eventually("it says so", || log().contains("a file cannot be opened").then_some(()));
    limit_open_files(&cluster, 512);
    writer.join().expect("all is written");
    assert!(producer.wait().expect("it ends").success());
    let read = cluster.run(&["consume", "load", "--from-beginning", "--max-messages", "120", "--json"]);
    assert_eq!(json_lines(&read).len(), 120);
    assert_eq!(end(), 120.0, "each once");
    assert_eq!(cluster.metric("kafka_log_logmanager_offlinelogdirectorycount"), 0.0);
    assert!(cluster.metric("ottla_log_descriptor_shortages_total") > 0.0);
}

#[test]
fn the_nodes_do_not_outlive_the_one_who_started_them() {
    let data = TempDir::new("orphans");
    let mut cluster = Cluster::start(1, &["--data", &data.path("cluster")]);
    let node = cluster.pid(1).expect("it runs");
    cluster.kill();
    eventually("the node ends", || test_kill_process(node).is_err().then_some(()));
}

#[test]
fn one_node_serves_alone_keeps_its_data_and_its_directory_to_itself() {
    let data = TempDir::new("alone");
    let directory = data.path("cluster");
    let mut cluster = Cluster::start(1, &["--data", &directory]);
    cluster.json(&["topic", "create", "kept"]);
    stdout(&cluster.produce(&["kept"], "still here\n"));
    let second = run(&["local", "--data", &directory, "--nodes", "1", "--base-port", "29990"]);
    assert!(!second.status.success() && stderr(&second).contains("is in use by `ottla local`"), "{}", stderr(&second));
    assert!(cluster.stop().success());
    let other_size = run(&["local", "--data", &directory]);
    assert!(stderr(&other_size).contains("holds a cluster of 1 nodes: give --nodes 1"), "{}", stderr(&other_size));
    // On other ports than before, too.
    let cluster = Cluster::start(1, &["--data", &directory]);
    let read = cluster.run(&["consume", "kept", "--from-beginning", "--max-messages", "1"]);
    assert_eq!(stdout(&read), "still here\n");
}

#[test]
fn local_refuses_what_cannot_be() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let cases: &[(&[&str], &str)] = &[
        (&["--base-port", &port], "give another --base-port"),
        (&["--base-port", "64000"], "--base-port 64000 is too high"),
        (&["--nodes", "0"], "1 to 9 are possible"),
        (&["--override", "log.retention.hour=3"], "the nearest is log.retention.hours"),
        (&["--override", "log.segment.bytes=many"], "log.segment.bytes"),
        (&["--override", "log.segment.bytes"], "is not name=value"),
        (&["--override", "node.id=7"], "gives each node its own"),
    ];
    for (arguments, words) in cases {
        let base = free_base_port(3).to_string();
        let given = if arguments.contains(&"--base-port") { vec![] } else { vec!["--base-port", &base] };
        let output = run(&[&["local", "--ephemeral"], given.as_slice(), arguments].concat());
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(stderr(&output).contains(words), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn a_server_refuses_to_start_with_a_sentence_that_helps() {
    let data = TempDir::new("refuses");
    let mut cluster = Cluster::start(1, &["--data", &data.path("cluster")]);
    let config = cluster.node_file(1, "server.properties").display().to_string();
    let pid = cluster.pid(1);
    let second = run(&["server", "--config", &config]);
    assert!(stderr(&second).contains("is in use by process"), "{}", stderr(&second));
    assert_eq!(cluster.pid(1), pid, "the node's pid file is the node's");
    let with = |overrides: &[&str]| {
        let overrides = overrides.iter().flat_map(|text| ["--override", text]);
        let output = ottla(&["server", "--config", &config]).args(overrides).output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        stderr(&output)
    };
    let elsewhere = format!("log.dirs={}", data.path("elsewhere"));
    let taken = with(&[&elsewhere, "ottla.pid.file="]);
    assert!(taken.contains("stop the process that uses the port"), "{taken}");
    let any = "listeners=PLAINTEXT://0.0.0.0:1,INTERNAL://127.0.0.1:2,CONTROLLER://127.0.0.1:3";
    assert!(with(&[any]).contains("set advertised.listeners"));
    assert!(with(&["log.retention.hour=3"]).contains("the nearest is log.retention.hours"));
    assert!(with(&["nothing"]).contains("is not name=value"));
    assert!(stderr(&run(&["server", "--config", "/nowhere"])).contains("cannot read /nowhere"));
    assert!(cluster.stop().success());
    let voters = format!("controller.quorum.voters=2@127.0.0.1:{}", cluster.base_port + 2000);
    let other = with(&["node.id=2", &voters]);
    assert!(other.contains("belongs to node 1, not to 2"), "{other}");
}

#[test]
fn a_stop_signal_during_the_start_is_a_stop() {
    let base = free_base_port(3).to_string();
    let mut local =
        ottla(&["local", "--ephemeral", "--base-port", &base]).stdout(Stdio::piped()).spawn().expect("the binary runs");
    // The nodes are about to be started: wherever the signal finds them, all end.
    let mut first = [0u8; 7];
    let mut output = local.stdout.take().expect("piped");
    output.read_exact(&mut first).expect("data in");
    assert!(terminate(&mut local).success());
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("text");
    let directory = rest.split_whitespace().next().expect("a directory");
    assert!(fs::metadata(directory).is_err(), "{directory} is removed at the end");
}

#[test]
fn the_demo_kills_and_ends_with_nothing_lost_and_whole_transactions() {
    let base = free_base_port(3).to_string();
    let shown = json(&run(&["demo", "--rounds", "1", "--base-port", &base, "--json"]));
    assert_eq!((&shown["lost"], &shown["twice"]), (&0.into(), &0.into()));
    assert!(shown["acknowledged"].as_u64() > Some(0), "{shown}");
    let transactions = shown["transactions"].as_array().expect("a list");
    let ended: Vec<(&str, i64, i64)> = transactions
        .iter()
        .map(|ended| {
            let number = |name: &str| ended[name].as_i64().expect("a number");
            let moved = number("offset_after") - number("offset_before");
            (ended["story"].as_str().expect("text"), number("seen_after"), moved)
        })
        .collect();
    let expected = [("killed_in_the_middle", 30, 1), ("killed_at_the_end", 30, 1), ("producer_gone", 0, 0)];
    assert_eq!(ended, expected, "all or nothing");
    assert!(transactions.iter().all(|ended| ended["seen_before"] == 0), "{shown}");
}
