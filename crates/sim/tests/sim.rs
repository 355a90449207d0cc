//! What a run promises, and the seeds that each change has to pass: each in a process of its own, as the program does it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::process::{Command, Output};

fn begin(seed: u64, seconds: u64, more: &[&str]) -> Output {
    let arguments = ["run", &seed.to_string(), "--seconds", &seconds.to_string()];
    Command::new(env!("CARGO_BIN_EXE_sim")).args(arguments).args(more).output().unwrap()
}

/// The line of a run, word by word; fails with all that it said if it did not hold.
fn run(seed: u64, seconds: u64) -> BTreeMap<String, String> {
    let output = begin(seed, seconds, &[]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let words = said.lines().next().unwrap_or("").split(' ').filter_map(|word| word.split_once('='));
    words.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn a_seed_takes_the_same_way_each_time_and_another_one_another() {
    let (first, again, other) = (run(1, 4), run(1, 4), run(2, 4));
    assert_eq!(first, again);
    assert_ne!(first["trace"], other["trace"]);
}

#[test]
fn what_is_lost_is_noticed() {
    // Acknowledged before they are synced, and then the power is cut anywhere: no rule can keep those records.
    let lost = |seed| {
        let said = begin(seed, 15, &["--only", "power", "--careless", "true"]).stdout;
        let said = String::from_utf8_lossy(&said).into_owned();
        ["and is ", "out of range", "is told"].iter().any(|what| said.contains(what)) && said.contains("synced=0")
    };
    assert!((1..9).any(lost), "eight runs with more loss than a cluster survives, and nothing is missing");
}

#[test]
fn whatever_fails_nothing_acknowledged_is_lost_and_the_cluster_recovers() {
    let mut totals: BTreeMap<String, u64> = BTreeMap::new();
    // Between them: groups, transactions, a disk that is replaced, all disks losing what was not synced, acks by zones, two log
    // directories, one of which breaks.
    for seed in [4, 46, 53] {
        for (name, value) in run(seed, 15) {
            *totals.entry(name).or_default() += value.parse::<u64>().unwrap_or(0);
        }
    }
    // Runs in which nothing happened would show nothing.
    let least = [
        ("acknowledged", 1_000),
        ("elections", 5),
        ("truncations", 1),
        ("shrinks", 5),
        ("images", 100),
        ("consumer", 10),
        ("transacted", 10),
        ("zoned", 100),
        ("zone-power", 1),
        ("broken-disk", 1),
        ("relocations", 1),
        ("snapshots", 1),
    ];
    for (name, least) in least {
        assert!(totals[name] >= least, "{name}: {} of {least}; {totals:?}", totals[name]);
    }
}
