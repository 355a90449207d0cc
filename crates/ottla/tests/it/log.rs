//! `ottla log`, on a directory that a node left.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::json;

use crate::cluster::{TempDir, json, json_lines, run, stdout};
use crate::golden::copy;

/// A copy of a kept directory.
fn kept(name: &str) -> TempDir {
    let home = TempDir::new(name);
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/first-cluster"), &home.0);
    home
}

fn flip(path: &Path, position: u64) {
    let file = File::options().read(true).write(true).open(path).expect("it is there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, position).expect("so many bytes");
    file.write_all_at(&[byte[0] ^ 1], position).expect("written");
}

#[test]
fn each_file_of_a_directory_is_shown() {
    let home = kept("dump");
    let log = home.path("golden-0/00000000000000000000.log");
    let text = run(&["log", "dump", "--records", &log]);
    let text = stdout(&text);
    assert!(text.contains("offsets 0 to 1, ") && text.contains("gzip") && text.contains(": sound"), "{text}");
    assert!(text.contains("offset 9, timestamp "), "{text}");
    let batches = json_lines(&run(&["log", "dump", "--records", "--json", &log]));
    let codecs: Vec<&str> = batches.iter().map(|batch| batch["codec"].as_str().expect("text")).collect();
    assert_eq!(codecs, ["none", "gzip", "snappy", "lz4", "zstd"]);
    let records: Vec<_> = batches.iter().flat_map(|batch| batch["records"].as_array().expect("a list")).collect();
    let offsets: Vec<_> = records.iter().map(|record| (record["offset"].clone(), record["key"].clone())).collect();
    let expected: Vec<_> = (0..10).map(|i| (json!(i), json!(format!("k{i}")))).collect();
    assert_eq!(offsets, expected);
    let small = ["golden-0/leader-epoch-checkpoint", "recovery-point-offset-checkpoint", "golden-0/partition.metadata"];
    for name in small {
        let lines = json_lines(&run(&["log", "dump", "--json", &home.path(name)]));
        assert!(lines.iter().any(|line| line["kind"] == "line"), "{name}: {lines:?}");
    }
    let producers = json_lines(&run(&["log", "dump", "--json", &home.path("golden-0/00000000000000000010.snapshot")]));
    assert_eq!((&producers[0]["kind"], &producers[0]["offset"]), (&json!("producers"), &json!(10)));
    let unknown = run(&["log", "dump", &home.path("golden-0")]);
    assert_eq!(unknown.status.code(), Some(1));
}

#[test]
fn a_sound_directory_passes_and_a_damaged_one_fails_with_what_a_start_would_do() {
    let home = kept("verify");
    let dir = home.0.display().to_string();
    let sound = json(&run(&["log", "verify", "--json", &dir]));
    assert_eq!((&sound["damaged"], &sound["partitions"], &sound["batches"]), (&json!(false), &json!(3), &json!(16)));
    let partition = run(&["log", "verify", &home.path("golden-0")]);
    assert!(stdout(&partition).ends_with("0 damages, 0 notes\n"), "{}", stdout(&partition));
    flip(&home.0.join("golden-0/00000000000000000000.log"), 100);
    fs::remove_file(home.0.join("golden-1/00000000000000000000.index")).expect("it is there");
    let damaged = run(&["log", "verify", &dir]);
    assert_eq!(damaged.status.code(), Some(1));
    let text = String::from_utf8_lossy(&damaged.stdout);
    assert!(text.contains("golden-0/00000000000000000000.log at byte 0: record batch has CRC32C"), "{text}");
    assert!(text.contains("at a start: a start does not look there (the shutdown was clean)"), "{text}");
    assert!(text.contains("golden-1/00000000000000000000.index: it is missing"), "{text}");
    assert!(text.ends_with("2 damages, 0 notes\n"), "{text}");
}

#[test]
fn a_directory_that_a_node_uses_is_left_alone() {
    let home = kept("in-use");
    let lock = File::create(home.0.join(".lock")).expect("created");
    lock.try_lock().expect("nobody has it");
    let refused = run(&["log", "verify", &home.0.display().to_string()]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is in use by"), "{refused:?}");
    drop(lock);
    stdout(&run(&["log", "verify", &home.0.display().to_string()]));
}
