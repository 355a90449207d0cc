//! `ottla chaos`: a short run, and the judge of histories.

use std::fs;

use serde_json::{Value, json};

use crate::cluster::{Place, TempDir, free_base_port, json, json_lines, run, stdout};

#[test]
fn a_short_run_with_kills_is_sound_and_leaves_a_report() {
    let _alone = Place::alone();
    let home = TempDir::new("chaos");
    let (history, report) = (home.path("history.jsonl"), home.path("report.html"));
    let port = free_base_port(3).to_string();
    let arguments =
        ["chaos", "run", "--json", "--seconds", "6", "--seed", "7", "--faults", "kill", "--base-port", &port];
    let verdict = json(&run(&[&arguments[..], &["--history", &history, "--report", &report]].concat()));
    assert_eq!((&verdict["sound"], &verdict["anomalies"]), (&json!(true), &json!({})));
    let figures = &verdict["figures"];
    let at_least = |name: &str, least: u64| assert!(figures[name].as_u64() >= Some(least), "{name}: {figures}");
    for (name, least) in [("acknowledged", 100), ("polled", 100), ("read_back", 100), ("commits", 3), ("faults", 1)] {
        at_least(name, least);
    }
    assert!(fs::read_to_string(&report).expect("a report").contains("const DATA = {"));
    let again = json(&run(&["chaos", "check", "--json", &history]));
    assert_eq!(again["figures"], *figures);

    // Of the same history, less one record that was read back, nothing good is said.
    let text = fs::read_to_string(&history).expect("a history");
    let lost: Vec<String> = text.lines().map(without_the_first_record).collect();
    fs::write(&history, lost.join("\n")).expect("written");
    let bad = run(&["chaos", "check", &history]);
    assert_eq!(bad.status.code(), Some(1));
    let told = String::from_utf8_lossy(&bad.stdout).into_owned();
    assert!(told.contains("lost-write: 1\n") && told.contains("hole: 1\n"), "{told}");
}

/// A line of a history, without the record at offset 0 of partition 0 if it tells what was read back.
fn without_the_first_record(line: &str) -> String {
    let mut value: Value = serde_json::from_str(line).expect("JSON");
    if value["type"] == "log" && value["partition"] == 0 {
        value["records"].as_array_mut().expect("records").retain(|record| record[0] != 0);
    }
    value.to_string()
}

#[test]
fn the_files_of_a_replica_become_lines_of_a_history() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/first-cluster/golden-0");
    let lines =
        json_lines(&run(&["chaos", "replica", "--node", "2", "--topic", "golden", "--partition", "0", directory]));
    let [replica] = &lines[..] else { panic!("{lines:?}") };
    let about = (&replica["type"], &replica["node"], &replica["topic"], &replica["in_sync"]);
    assert_eq!(about, (&json!("replica"), &json!(2), &json!("golden"), &json!(true)));
    let ranges = |batch: &Value| (batch[0].as_i64().expect("first"), batch[1].as_i64().expect("last"));
    let batches: Vec<_> = replica["batches"].as_array().expect("batches").iter().map(ranges).collect();
    assert_eq!(batches, [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]);
    let offsets: Vec<_> =
        replica["records"].as_array().expect("records").iter().map(|record| record[0].clone()).collect();
    assert_eq!(offsets, (0..10).map(|offset| json!(offset)).collect::<Vec<_>>());
}

#[test]
fn a_history_that_holds_too_little_or_is_cut_off_is_refused() {
    let home = TempDir::new("chaos-refused");
    let history = home.path("history.jsonl");
    let produce = json!({"type": "produce", "process": "p", "partition": 0, "seq": 0, "value": "v", "invoke": 1, "complete": 2,
                         "outcome": "ok", "offset": 0});
    let end = json!({"type": "end", "partition": 0, "high_watermark": 1});
    let log = json!({"type": "log", "partition": 0, "records": [[0, "v"]]});
    let refused = |lines: &[&Value], why: &str| {
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        fs::write(&history, lines.join("\n")).expect("written");
        let output = run(&["chaos", "check", "--at-least", "2", &history]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && told.contains(why), "{told}");
    };
    refused(&[&produce], "nobody read partition 0 back");
    refused(&[&end, &log], "no record was acknowledged");
    refused(&[&produce, &end, &log], "only 1 records were acknowledged, fewer than 2");
    assert!(stdout(&run(&["chaos", "check", &history])).ends_with("nothing is wrong\n"));
}
