//! Voters that come and go, and metadata that outlives its quorum.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use serde_json::json;

use crate::cluster::{Cluster, TempDir, eventually, free_base_port, json, ottla, run, stdout};

#[test]
fn the_quorum_is_described_with_how_far_each_voter_is() {
    let cluster = Cluster::shared();
    let described = eventually("all have registered", || {
        let described = cluster.json(&["quorum", "describe"]);
        let voters = described.as_array().expect("a list").clone();
        voters.iter().all(|voter| voter["address"].is_string()).then_some(voters)
    });
    let nodes: Vec<_> = described.iter().map(|voter| voter["node"].as_i64().expect("a number")).collect();
    assert_eq!(nodes, [1, 2, 3]);
    assert_eq!(described.iter().filter(|voter| voter["role"] == "leader").count(), 1);
    let unknown = cluster.run(&["quorum", "remove", "9"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("VOTER_NOT_FOUND"), "{unknown:?}");
    let twice = cluster.run(&["quorum", "add", "1", "127.0.0.1:1"]);
    assert!(String::from_utf8_lossy(&twice.stderr).contains("DUPLICATE_VOTER"), "{twice:?}");
}

#[test]
fn the_metadata_is_saved_and_one_survivor_goes_on_alone() {
    let dir = TempDir::new("quorum-recover");
    let mut cluster = Cluster::start(3, &["--data", &dir.path("data")]);
    cluster.json(&["topic", "create", "kept", "-p", "2"]);
    let file = dir.path("metadata.backup");
    let saved = cluster.json(&["quorum", "backup", &file]);
    assert_eq!(saved["topics"], 1);
    let config = cluster.node_file(2, "server.properties").display().to_string();
    let running = run(&["quorum", "recover", "--unsafe", "--config", &config]);
    assert!(!running.status.success(), "a node that runs holds its directory");
    assert_eq!(run(&["quorum", "recover", "--config", &config]).status.code(), Some(2), "--unsafe must be said");
    assert!(cluster.stop().success());
    let recovered = run(&["quorum", "recover", "--unsafe", "--config", &config]);
    assert!(stdout(&recovered).contains("what may be lost"), "{recovered:?}");
    let again = json(&run(&["quorum", "recover", "--unsafe", "--config", &config, "--json"]));
    assert_eq!((&again["cluster_id"], &again["former_voters"]), (&saved["cluster_id"], &json!([2])));
    let occupied = run(&["quorum", "restore", &file, "--config", &config]);
    assert!(String::from_utf8_lossy(&occupied.stderr).contains("holds metadata already"), "{occupied:?}");
    // It serves alone.
    let mut node = ottla(&["server", "--config", &config]).spawn().expect("the binary runs");
    let address = format!("127.0.0.1:{}", cluster.base_port + 1);
    eventually("the survivor serves", || {
        let output = run(&["quorum", "describe", "--json", "-b", &address]);
        let voters = output.status.success().then(|| json(&output))?;
        (voters.as_array().expect("a list").len() == 1 && voters[0]["role"] == "leader").then_some(())
    });
    let listed = json(&run(&["topic", "list", "--json", "-b", &address]));
    assert_eq!(listed[0]["topic"], "kept");
    assert!(crate::cluster::terminate(&mut node).success());
    // A wiped directory takes the backup.
    fs::remove_dir_all(cluster.node_file(2, "data").join("__cluster_metadata")).expect("removed");
    let restored = json(&run(&["quorum", "restore", &file, "--config", &config, "--json"]));
    assert_eq!((&restored["cluster_id"], &restored["next_offset"]), (&saved["cluster_id"], &saved["next_offset"]));
}

#[test]
fn a_node_that_is_a_controller_only_holds_its_directories() {
    let dir = TempDir::new("controller-only");
    let config = dir.path("server.properties");
    let port = free_base_port(1);
    let text = format!(
        "process.roles=controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{port}\nlog.dirs={}\n\
         metadata.log.dir={}\nlisteners=CONTROLLER://127.0.0.1:{port}\nottla.pid.file={}\n",
        dir.path("data"),
        dir.path("metadata"),
        dir.path("pid"),
    );
    fs::write(&config, text).expect("written");
    let mut node = ottla(&["server", "--config", &config]).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let log = BufReader::new(node.stderr.take().expect("piped")).lines().map_while(Result::ok);
    assert!(log.into_iter().any(|line| line.contains("started")), "it ended");
    let refused = ["data", "metadata"].map(|held| run(&["log", "verify", &dir.path(held)]));
    assert!(crate::cluster::terminate(&mut node).success());
    for each in refused {
        assert!(String::from_utf8_lossy(&each.stderr).contains("is in use by"), "{each:?}");
    }
}
