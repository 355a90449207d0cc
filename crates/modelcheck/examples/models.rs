//! Runs the models beyond what the tests do: `models exhaust`, `models walk`, `models mutations`. See `just models`.
//!
//! Each outcome is printed as a row of the tables in `docs/results`. What a file of such rows (DONE) has is not done again.

use std::time::{Duration, Instant};

use model::{Rule, Rules};
use modelcheck::{Model, Outcome, Setting, guards, scenario, transactions};

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
        ["exhaust", done, rest @ ..] => {
            let done = read(done);
            // Both, whatever comes of the first.
            exhaust(all(), &done, rest) & exhaust(all_of_transactions(), &done, rest)
        }
        ["walk", seconds] => {
            let seconds = seconds.parse().expect("seconds");
            walk(scenario::endless(), seconds) & walk(transactions::endless(), seconds)
        }
        ["mutations", done, rest @ ..] => mutations(&read(done), rest),
        ["trace", rule, name] => trace(all(), rule, name) || trace(all_of_transactions(), rule, name),
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

fn all() -> Vec<modelcheck::Scenario> {
    [scenario::small(), scenario::large()].concat()
}

fn all_of_transactions() -> Vec<transactions::Scenario> {
    [transactions::small(), transactions::large()].concat()
}

fn exhaust<S: Setting>(scenarios: Vec<S>, done: &str, names: &[&str]) -> bool {
    let mut is_fine = true;
    for scenario in scenarios {
        let name = scenario.name();
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

fn bounds_of<S: Setting>(scenario: &S) -> String {
    let text = scenario.bounds().replace("Bounds { ", "").replace(" }", "");
    text.split(", ").filter(|part| !part.ends_with(": 0")).collect::<Vec<_>>().join(", ")
}

fn walk<S: Setting>(scenarios: Vec<S>, seconds: u64) -> bool {
    let mut is_fine = true;
    for scenario in scenarios {
        let (name, model, began) = (scenario.name(), Model::new(scenario), Instant::now());
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

/// A rule of replication that has its model is asked there; every other one of all models, from the smallest on.
fn mutations(done: &str, names: &[&str]) -> bool {
    for rule in Rule::ALL {
        let name = format!("{rule:?}");
        let named = names.is_empty() || names.contains(&name.as_str());
        if !named || done.contains(&format!("| {name} |")) {
            continue;
        }
        if transactions::asks(*rule) {
            println!("{}", mutation(all_of_transactions(), transactions::endless(), *rule, &name));
        } else if let Some((_, model, _)) = guards::NOTICED.iter().find(|(noticed, ..)| noticed == rule) {
            println!("{}", together(&[*rule], model));
        } else if let Some((_, why)) = guards::NOT_NOTICED.iter().find(|(rules, _)| names.is_empty() && rules == rule) {
            println!("| {name} | – | – | not noticed: {why} |");
        } else if !names.is_empty() {
            println!("{}", mutation(all(), scenario::endless(), *rule, &name));
        }
    }
    if names.is_empty() {
        guards::STAND_INS.iter().for_each(|(rules, name)| println!("{}", together(rules, name)));
    }
    true
}

/// All of these rules switched off in one model.
fn together(rules: &[Rule], name: &str) -> String {
    let without = rules.iter().fold(Rules::all(), |rules, rule| rules.and_without(*rule));
    let scenario = all().into_iter().find(|scenario| scenario.name == name).expect("a scenario of that name");
    let names: Vec<String> = rules.iter().map(|rule| format!("{rule:?}")).collect();
    let names = names.join(" with ");
    match Model::new(scenario.with(without)).explore(STATES_MAX, Duration::from_secs(600)).found {
        Some(found) => format!("| {names} | {name} | {} | {} |", found.steps.len(), kind_of(&found.violation)),
        None => format!("| {names} | – | – | not noticed in {name} |"),
    }
}

fn mutation<S: Setting>(scenarios: Vec<S>, endless: Vec<S>, rule: Rule, name: &str) -> String {
    let began = Instant::now();
    for scenario in scenarios {
        let called = scenario.name();
        let model = Model::new(scenario.under(Rules::without(rule)));
        if let Some(found) = model.explore(MUTANT_STATES_MAX, Duration::from_secs(60)).found {
            let kind = kind_of(&found.violation);
            return format!("| {name} | {called} | {} | {kind} |", found.steps.len());
        }
    }
    // Deeper than can be explored: what can be left out of a walk is left out, which is not yet a shortest path.
    for scenario in endless {
        let called = scenario.name();
        let model = Model::new(scenario.under(Rules::without(rule)));
        if let Some(found) = model.walk(1, Duration::from_secs(MUTANT_WALK_SECONDS)).found {
            let kind = kind_of(&found.violation);
            return format!("| {name} | {called}, at random | ≤ {} | {kind} |", found.steps.len());
        }
    }
    format!("| {name} | – | – | not noticed in {} s |", began.elapsed().as_secs())
}

fn kind_of(violation: &impl std::fmt::Debug) -> String {
    let text = format!("{violation:?}");
    text.split('(').next().unwrap_or_default().to_owned()
}

/// Shows how it comes to a violation; false where there is no model of that name.
fn trace<S: Setting>(scenarios: Vec<S>, rule: &str, name: &str) -> bool {
    let Some(scenario) = scenarios.into_iter().find(|scenario| scenario.name() == name) else { return false };
    let model = Model::new(scenario.under(Rules::without_named(rule)));
    let found = model.clone().explore(STATES_MAX, Duration::from_secs(600)).found;
    let steps: Vec<S::Step> = found.map(|found| found.steps).unwrap_or_default();
    show(&model, &steps);
    true
}

/// To the error stream: the rows are not mixed with it.
fn show<S: Setting>(model: &Model<S>, steps: &[S::Step]) {
    for (number, state) in model.replay(steps).iter().enumerate() {
        let step = number.checked_sub(1).map(|before| steps[before]);
        eprintln!("== {number} {step:?}\n{state:?}\n");
    }
}
