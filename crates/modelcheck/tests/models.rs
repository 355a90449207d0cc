//! The models that are explored to the end within seconds, and that they notice what they should.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use model::{Rule, Rules};
use modelcheck::{Found, Model, Outcome, Scenario, Tally, guards, scenario};

/// More than any of these models has: reaching it is a failure.
const STATES_MAX: usize = 5_000_000;

fn explore(scenario: Scenario) -> Outcome {
    Model::new(scenario).explore(STATES_MAX, Duration::from_secs(600))
}

fn named(name: &str) -> Scenario {
    let mut all = [scenario::small(), scenario::large()].concat().into_iter();
    all.find(|scenario| scenario.name == name).expect("a scenario of that name")
}

#[test]
fn nothing_that_is_committed_is_lost_in_any_small_model() {
    let mut happened = [0; 8];
    for scenario in scenario::small() {
        let (name, bounds) = (scenario.name, scenario.bounds);
        let Outcome { found, states, steps, depth, is_exhausted, tally } = explore(scenario);
        println!("{name}: {states} states, {steps} steps, depth {depth}; {bounds:?}");
        assert_eq!(found, None, "{name}");
        assert!(is_exhausted, "{name} was not explored to its end");
        for (sum, counter) in happened.iter_mut().zip(counters(&tally)) {
            *sum += counter.load(Ordering::Relaxed);
        }
    }
    // Empty success is failure.
    assert!(happened.iter().all(|times| *times > 0), "{happened:?}");
}

fn counters(tally: &Tally) -> [&AtomicU64; 8] {
    [
        &tally.committed,
        &tally.elections,
        &tally.elections_from_elr,
        &tally.expansions,
        &tally.shrinks,
        &tally.truncations,
        &tally.lossy_crashes,
        &tally.completions,
    ]
}

#[test]
fn random_walks_find_nothing() {
    for scenario in scenario::endless() {
        let (name, model) = (scenario.name, Model::new(scenario));
        let walked = model.walk(7, Duration::from_secs(2));
        println!("{name}: {} walks, {} steps, {:?}", walked.walks, walked.steps, walked.tally);
        assert_eq!(walked.found, None, "{name}");
        assert!(walked.walks > 0 && walked.steps > 100, "{name}: {} steps", walked.steps);
    }
}

#[test]
fn two_paths_to_the_same_end_in_one_state() {
    // Two records in any order of deliveries: far fewer states than paths.
    let bounds = modelcheck::Bounds { appends: 2, ..modelcheck::Bounds::default() };
    let outcome = explore(Scenario::new("two records", bounds));
    assert!(outcome.is_exhausted && outcome.states < 100 && outcome.steps > outcome.states, "{outcome:?}");
}

/// What a model finds with these rules.
fn found(rules: Rules, name: &str) -> Option<Found> {
    let Outcome { found, is_exhausted, .. } = explore(named(name).with(rules));
    assert!(found.is_some() || is_exhausted, "{name} was not explored to its end");
    found
}

#[test]
fn every_rule_of_replication_is_noticed_when_it_is_left_out() {
    let asked: BTreeSet<Rule> = Rule::ALL.iter().copied().filter(|rule| guards::asks(*rule)).collect();
    let noticed = guards::NOTICED.iter().map(|(rule, ..)| *rule);
    let known: Vec<Rule> = noticed.chain(guards::NOT_NOTICED.iter().map(|(rule, _)| *rule)).collect();
    assert_eq!(known.len(), asked.len(), "each rule once");
    assert_eq!(asked, known.into_iter().collect(), "each rule has its model, or is known to have none");
    let mut missed = Vec::new();
    for (rule, name, at_most) in guards::NOTICED {
        let found = found(Rules::without(*rule), name);
        let steps = found.as_ref().map(|found| found.steps.len());
        println!("{rule:?}: {steps:?} in {name}");
        if steps.is_none_or(|steps| steps > *at_most) {
            missed.push((rule, name, steps));
        }
    }
    assert!(missed.is_empty(), "not noticed, or too late: {missed:?}");
}

#[test]
fn rules_that_stand_in_for_each_other_are_noticed_when_all_of_them_are_left_out() {
    for (rules, name) in guards::STAND_INS {
        let without = |left: Option<&Rule>| {
            let off = rules.iter().filter(|rule| Some(*rule) != left);
            off.fold(Rules::all(), |rules, rule| rules.and_without(*rule))
        };
        let steps = found(without(None), name).map(|found| found.steps.len());
        println!("{rules:?}: {steps:?} in {name}");
        assert!(steps.is_some(), "{rules:?} in {name}");
        for left in *rules {
            assert_eq!(found(without(Some(left)), name), None, "{left:?} alone is enough in {name}");
        }
    }
}
