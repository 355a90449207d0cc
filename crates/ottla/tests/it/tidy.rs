//! Tidiness that a program can see: the dependency law and the invariants of `docs/ARCHITECTURE.md` that show in the text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crate → the crates of this workspace that it may depend on. The same table stands in `docs/ARCHITECTURE.md`.
const LAW: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("protocol", &["model"]),
    ("metadata", &["model"]),
    ("replication", &["model"]),
    ("coordinator", &["model", "protocol", "metadata"]),
    ("storage", &["model", "metadata"]),
    ("rpc", &["model", "metadata"]),
    ("controller", &["model", "metadata", "storage", "rpc"]),
    ("broker", &["model", "protocol", "metadata", "replication", "coordinator", "storage", "rpc"]),
    ("gateway", &["model", "protocol", "metadata", "broker"]),
    ("console", &["model", "metadata", "broker"]),
    ("chaos", &[]),
    ("sim", &["model", "protocol", "metadata", "coordinator", "storage", "rpc", "controller", "broker", "gateway"]),
    ("modelcheck", &["model", "metadata", "replication", "coordinator"]),
    (
        "ottla",
        &[
            "model",
            "protocol",
            "metadata",
            "replication",
            "coordinator",
            "storage",
            "rpc",
            "controller",
            "broker",
            "gateway",
            "console",
            "chaos",
        ],
    ),
];

/// Crates without tokio, clock, file, socket, thread or randomness.
const PURE: &[&str] = &["model", "protocol", "metadata", "replication", "coordinator", "chaos"];

/// External crates that exactly one crate knows (`ottla` starts the runtime and reads arguments).
const ONLY: &[(&str, &[&str])] = &[
    ("openraft", &["controller"]),
    ("tonic", &["rpc"]),
    ("sled", &["storage"]),
    ("axum", &["console"]),
    ("clap", &["ottla"]),
    ("prost", &["rpc", "metadata"]),
    ("stateright", &["modelcheck"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace is there")
}

fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo speaks JSON");
    json["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .map(|package| {
            let names = package["dependencies"].as_array().expect("dependencies").iter();
            let normal = names.filter(|d| d["kind"].is_null()).map(|d| d["name"].as_str().expect("name").to_owned());
            (package["name"].as_str().expect("name").to_owned(), normal.collect())
        })
        .collect()
}

/// Every Rust source of a crate, with its text.
fn sources(name: &str) -> Vec<(PathBuf, String)> {
    let out = sources_in(name, "src");
    assert!(!out.is_empty(), "{name} has sources");
    out
}

fn sources_in(name: &str, folder: &str) -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, out: &mut Vec<(PathBuf, String)>) {
        let Ok(entries) = std::fs::read_dir(dir) else { return };
        for entry in entries {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("UTF-8");
                out.push((path, text));
            }
        }
    }
    let mut out = Vec::new();
    walk(&root().join("crates").join(name).join(folder), &mut out);
    out
}

/// Whether a file is tests as a whole.
fn is_tests(path: &Path) -> bool {
    path.components().any(|part| ["tests", "tests.rs", "testing.rs"].iter().any(|name| part.as_os_str() == *name))
}

/// The part of a source before its tests.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

#[test]
fn crates_depend_on_each_other_as_the_law_says() {
    let found = dependencies();
    let ours: BTreeSet<&str> = LAW.iter().map(|(name, _)| *name).collect();
    assert_eq!(found.keys().map(String::as_str).collect::<BTreeSet<_>>(), ours, "a crate is missing from the law");
    for (name, allowed) in LAW {
        let used: BTreeSet<&str> = found[*name].iter().map(String::as_str).filter(|d| ours.contains(d)).collect();
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        let broken: Vec<_> = used.difference(&allowed).collect();
        assert!(broken.is_empty(), "{name} may not depend on {broken:?}");
    }
}

#[test]
fn one_crate_knows_each_of_the_heavy_libraries() {
    let found = dependencies();
    for (library, allowed) in ONLY {
        let users: Vec<_> = found.iter().filter(|(_, d)| d.contains(*library)).map(|(n, _)| n.as_str()).collect();
        assert!(users.iter().all(|user| allowed.contains(user)), "{library} is used by {users:?}");
    }
}

#[test]
fn pure_crates_touch_neither_clock_nor_file_nor_socket_nor_thread() {
    let banned =
        ["std::fs", "std::net", "std::thread", "Instant::now", "SystemTime::now", "HashMap", "HashSet", "rand::"];
    for name in PURE {
        assert!(!dependencies()[*name].contains("tokio"), "{name} depends on tokio");
        for (path, text) in sources(name) {
            for word in banned {
                assert!(!code(&text).contains(word), "{} uses {word}", path.display());
            }
        }
    }
}

#[test]
fn only_storage_spawns_blocking_work_and_nobody_leaves_work_undone() {
    for (name, _) in LAW {
        for (path, text) in sources(name) {
            let code = code(&text);
            let path = path.display();
            let blocks = code.contains("spawn_blocking") || code.contains("block_in_place");
            assert!(*name == "storage" || !blocks, "{path}: the disk pool is in storage");
            for word in ["todo!(", "unimplemented!(", "FIXME", "XXX"] {
                assert!(!code.contains(word), "{path} has {word}");
            }
            assert!(text.starts_with("//!"), "{path} does not open with what it is");
        }
    }
}

#[test]
fn only_the_binaries_read_environment_and_arguments() {
    for (name, _) in LAW.iter().filter(|(name, _)| *name != "ottla") {
        let is_program = |path: &Path| path.file_name().is_some_and(|file| file == "main.rs");
        for (path, text) in sources(name).into_iter().filter(|(path, _)| !is_tests(path) && !is_program(path)) {
            let code = code(&text);
            assert!(
                !code.contains("env::var") && !code.contains("env::args"),
                "{} reads the environment",
                path.display()
            );
        }
    }
}

/// The numbers of the safety rules.
fn rules() -> BTreeSet<u32> {
    let page = std::fs::read_to_string(root().join("docs/replication.md")).expect("the rules are there");
    let known: BTreeSet<u32> = page
        .lines()
        .filter_map(|line| line.strip_prefix("- **R"))
        .filter_map(|rest| rest.split(['.', ' ', '*']).next()?.parse().ok())
        .collect();
    assert!(known.len() > 70, "{} rules found", known.len());
    known
}

/// The rules that a text names: `R14`, the rule of a mutation (`R14MaximalIsr`), and what lies between `R56` and `R79` in "R56 to R79".
fn cited(text: &str) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut from = None;
    for (at, _) in text.match_indices('R') {
        let inside_a_word = text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let digits = text[at + 1..].split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        let Ok(number) = digits.parse::<u32>() else { continue };
        if inside_a_word {
            continue;
        }
        let until = text[..at].trim_end_matches('`').ends_with(" to ");
        found.extend(from.filter(|_| until).unwrap_or(number)..=number);
        from = Some(number);
    }
    found
}

#[test]
fn every_rule_is_cited_where_it_is_kept_and_where_it_is_proved() {
    let (mut kept, mut proved) = (BTreeSet::new(), BTreeSet::new());
    for (name, _) in LAW {
        for (path, text) in sources(name) {
            if is_tests(&path) || ["modelcheck", "sim"].contains(name) {
                proved.extend(cited(&text));
                continue;
            }
            kept.extend(cited(code(&text)));
            proved.extend(cited(&text[code(&text).len()..]));
        }
        sources_in(name, "tests").iter().for_each(|(_, text)| proved.extend(cited(text)));
    }
    for rule in rules() {
        assert!(kept.contains(&rule), "no code says where R{rule} is kept");
        assert!(proved.contains(&rule), "no test says that it proves R{rule}");
    }
}

#[test]
fn the_rules_that_code_cites_exist() {
    let known = rules();
    for (name, _) in LAW {
        for (path, text) in sources(name) {
            for cited in text.split("`R").skip(1).filter_map(|rest| rest.split('`').next()?.parse::<u32>().ok()) {
                assert!(known.contains(&cited), "{} cites R{cited}, which does not exist", path.display());
            }
        }
    }
}

#[test]
fn invariants_of_the_architecture_name_tests_that_exist() {
    let page = std::fs::read_to_string(root().join("docs/ARCHITECTURE.md")).expect("the page is there");
    let mut names = 0;
    let all: String = LAW
        .iter()
        .flat_map(|(name, _)| [sources_in(name, "src"), sources_in(name, "tests")].concat())
        .map(|(_, text)| text)
        .collect();
    for name in page.split("test `").skip(1).filter_map(|rest| rest.split('`').next()) {
        names += 1;
        assert!(all.contains(&format!("fn {name}(")), "ARCHITECTURE.md names the test {name}, which does not exist");
    }
    assert!(names >= 10, "{names} tests named");
}
