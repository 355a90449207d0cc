//! Runs the models beyond what the tests do: `models exhaust`, `models walk`, `models mutations`. See `just models`.
//!
//! Each outcome is printed as a row of the tables in `docs/results`. What a file of such rows (DONE) has is not done again.

use std::time::{Duration, Instant};

use model::{Rule, Rules};
use modelcheck::{Model, Outcome, Scenario, Step, Violation, scenario};

const STATES_MAX: usize = 400_000_000;
/// A rule that is not noticed in so many steps of a model counts as not noticed by it.
const MUTANT_STATES_MAX: usize = 40_000;
const MUTANT_WALK_SECONDS: u64 = 4;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // A core that panics has noticed: what it says is in the outcome.
    std::panic::set_hook(Box::new(|_| {}));
    let is_fine = match words.as_slice() {
        ["exhaust", done, rest @ ..] => exhaust(&read(done), rest),
        ["walk", seconds] => walk(seconds.parse().expect("seconds")),
        ["mutations", done, rest @ ..] => mutations(&read(done), rest),
        ["trace", rule, name] => trace(rule, name),
        _ => {
            eprintln!("models exhaust DONE [NAME...] | walk SECONDS | mutations DONE [RULE...] | trace RULE NAME");
            false
        }
    };
    std::process::exit(i32::from(!is_fine));
}

/// The rows that an interrupted run has written.
fn read(file: &str) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

fn all() -> Vec<Scenario> {
    [scenario::small(), scenario::large()].concat()
}

fn exhaust(done: &str, names: &[&str]) -> bool {
    let mut is_fine = true;
    for scenario in all() {
        let name = scenario.name;
        if done.contains(&format!("| {name} |")) || (!names.is_empty() && !names.contains(&name)) {
            continue;
        }
        let (bounds, began) = (bounds_of(&scenario), Instant::now());
        let outcome = Model::new(scenario).explore(STATES_MAX, Duration::from_secs(1800));
        let verdict = match &outcome.found {
            Some(found) => format!("**{:?}** after {} steps", found.violation, found.steps.len()),
            None if outcome.is_exhausted => "holds, exhausted".to_owned(),
            None => "holds so far".to_owned(),
        };
        let Outcome { states, steps, depth, .. } = outcome;
        let seconds = began.elapsed().as_secs();
        println!("| {name} | {bounds} | {states} | {steps} | {depth} | {seconds} s | {verdict} |");
        is_fine &= outcome.found.is_none();
    }
    is_fine
}

fn bounds_of(scenario: &Scenario) -> String {
    let text = format!("{:?}", scenario.bounds);
    let inner = text.trim_start_matches("Bounds { ").trim_end_matches(" }");
    inner.split(", ").filter(|part| !part.ends_with(": 0")).collect::<Vec<_>>().join(", ")
}

fn walk(seconds: u64) -> bool {
    let mut is_fine = true;
    for scenario in scenario::endless() {
        let (name, model, began) = (scenario.name, Model::new(scenario), Instant::now());
        let walked = model.walk(1, Duration::from_secs(seconds));
        let verdict = match &walked.found {
            Some(found) => format!("**{:?}** after {} steps", found.violation, found.steps.len()),
            None => "holds".to_owned(),
        };
        let seconds = began.elapsed().as_secs();
        if let Some(found) = &walked.found {
            show(&model, &found.steps);
        }
        println!("| {name} | {} random walks | – | {} | – | {seconds} s | {verdict} |", walked.walks, walked.steps);
        is_fine &= walked.found.is_none();
    }
    is_fine
}

/// Shortest first: the first model that notices has a short counterexample, and each of them is a shortest of its model.
fn mutations(done: &str, names: &[&str]) -> bool {
    for rule in Rule::ALL {
        let name = format!("{rule:?}");
        let asked = if names.is_empty() { scenario::asks(*rule) } else { names.contains(&name.as_str()) };
        if !asked || done.contains(&format!("| {name} |")) {
            continue;
        }
        println!("{}", mutation(*rule, &name));
    }
    true
}

fn mutation(rule: Rule, name: &str) -> String {
    let began = Instant::now();
    for scenario in all() {
        let model = Model::new(scenario.clone().with(Rules::without(rule)));
        if let Some(found) = model.explore(MUTANT_STATES_MAX, Duration::from_secs(60)).found {
            let kind = kind_of(&found.violation);
            return format!("| {name} | {} | {} | {kind} |", scenario.name, found.steps.len());
        }
    }
    // Deeper than can be explored: what can be left out of a walk is left out, which is not yet a shortest path.
    for scenario in scenario::endless() {
        let model = Model::new(scenario.clone().with(Rules::without(rule)));
        if let Some(found) = model.walk(1, Duration::from_secs(MUTANT_WALK_SECONDS)).found {
            let kind = kind_of(&found.violation);
            return format!("| {name} | {}, at random | ≤ {} | {kind} |", scenario.name, found.steps.len());
        }
    }
    format!("| {name} | – | – | not noticed in {} s |", began.elapsed().as_secs())
}

fn kind_of(violation: &Violation) -> String {
    let text = format!("{violation:?}");
    text.split('(').next().unwrap_or_default().to_owned()
}

fn trace(rule: &str, name: &str) -> bool {
    let scenario = all().into_iter().find(|scenario| scenario.name == name).expect("a scenario");
    let model = Model::new(scenario.with(Rules::without_named(rule)));
    let found = model.clone().explore(STATES_MAX, Duration::from_secs(600)).found;
    let steps: Vec<Step> = found.map(|found| found.steps).unwrap_or_default();
    show(&model, &steps);
    steps.is_empty()
}

/// To the error stream: the rows are not mixed with it.
fn show(model: &Model, steps: &[Step]) {
    for (number, state) in model.replay(steps).iter().enumerate() {
        let step = number.checked_sub(1).map(|before| steps[before]);
        eprintln!("== {number} {step:?}\n{state:?}\n");
    }
}
