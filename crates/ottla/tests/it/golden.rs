//! Data directories of earlier milestones, kept in `tests/golden`: every later build opens them and reads what is there.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::cluster::{TempDir, eventually, free_base_port, json_lines, ottla, run, stdout, terminate};

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("created");
    for entry in fs::read_dir(from).expect("kept") {
        let entry = entry.expect("readable");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// Starts a node on a copy of a kept directory; gives it with its first port.
fn start(kept: &str, home: &TempDir) -> (Child, u16) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(kept);
    copy(&golden, &home.0.join("data"));
    let base = free_base_port(1);
    let (internal, controller, http) = (base + 1000, base + 2000, base + 3000);
    let properties = format!(
        "node.id=1\nbroker.rack=a\nlog.dirs={}\nottla.http.listener=127.0.0.1:{http}\n\
         listeners=PLAINTEXT://127.0.0.1:{base},INTERNAL://127.0.0.1:{internal},CONTROLLER://127.0.0.1:{controller}\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n",
        home.path("data")
    );
    fs::write(home.0.join("server.properties"), properties).expect("written");
    let log = fs::File::create(home.0.join("ottla.log")).expect("created");
    let mut node = ottla(&["server", "--config", &home.path("server.properties")])
        .stderr(log)
        .stdout(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let health = format!("127.0.0.1:{http}");
    eventually("the node serves", || {
        let log = || fs::read_to_string(home.0.join("ottla.log")).unwrap_or_default();
        assert!(node.try_wait().expect("a child").is_none(), "it ended: {}", log());
        run(&["health", "--http", &health]).status.success().then_some(())
    });
    (node, base)
}

#[test]
fn the_first_clusters_directory_opens_and_reads_as_it_was_written() {
    let home = TempDir::new("golden");
    let (mut node, port) = start("first-cluster", &home);
    let bootstrap = format!("127.0.0.1:{port}");
    let consume = |partition: &str| {
        let from = ["consume", "golden", "--partition", partition, "--offset", "0", "--max-messages", "10"];
        let read = json_lines(&run(&[&from[..], &["--json", "-b", &bootstrap]].concat()));
        read.iter().map(|record| json!([record["offset"], record["key"], record["value"]])).collect::<Vec<Value>>()
    };
    let padding = "x".repeat(200);
    let keyed: Vec<Value> = (0..10).map(|i| json!([i, format!("k{i}"), format!("v{i}-{padding}")])).collect();
    assert_eq!(consume("0"), keyed, "a batch of each codec");
    let plain: Vec<Value> = (0..10).map(|i| json!([i, null, format!("v{i}")])).collect();
    assert_eq!(consume("1"), plain);

    let ask = |arguments: &[&str]| -> Value {
        let output = run(&[arguments, &["--json", "-b", &bootstrap]].concat());
        serde_json::from_str(stdout(&output)).expect("JSON")
    };
    let mut group = ask(&["group", "describe", "golden-group"]);
    for row in group["offsets"].as_array_mut().expect("rows") {
        // Nobody saw those records come: they are as old as their batches say.
        let late = row.as_object_mut().and_then(|row| row.remove("lag_seconds"));
        assert!(late.as_ref().and_then(Value::as_f64).is_some_and(|late| late > 60.0), "{late:?}");
    }
    let row =
        |p: i32| json!({ "topic": "golden", "partition": p, "offset": 4, "log_end": 10, "lag": 6, "member": null });
    assert_eq!(group["offsets"], json!([row(0), row(1)]));
    let configs = ask(&["topic", "describe", "golden"])["configs"].clone();
    assert_eq!(configs, json!({ "retention.ms": "-1", "segment.bytes": "1048576" }));
    ask(&["topic", "create", "new"]);
    assert!(terminate(&mut node).success());
}
