//! The models that are explored to the end within seconds, and that they notice what they should.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use model::{Rule, Rules};
use modelcheck::{Model, Outcome, Scenario, Tally, scenario};

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

/// How many steps it takes a model to notice that a rule is switched off; None where it does not.
fn noticed(rule: Rule, name: &str) -> Option<usize> {
    explore(named(name).with(Rules::without(rule))).found.map(|found| found.steps.len())
}

#[test]
fn rules_that_are_switched_off_are_noticed() {
    let cases = [
        (Rule::R14MaximalIsrOnShrink, "lag", 2),
        (Rule::R18NoAdvanceBelowMinIsr, "lag", 4),
        (Rule::R20MinIsrBeforeAppend, "lag", 4),
        (Rule::R20MinIsrAfterAppend, "broken streams", 9),
        (Rule::R14MaximalIsrOnExpand, "elections", 8),
        (Rule::R12AboveHighWatermark, "elections", 8),
        (Rule::R24NoTruncationByHighWatermark, "elections", 7),
        (Rule::R3StalePartitionEpoch, "broken streams", 16),
        (Rule::R12ExpandAboveLeaderEpochStart, "crashes", 12),
        (Rule::R59AckOfCurrentSession, "crashes", 12),
        (Rule::R79Zones, "two zones", 6),
        (Rule::R79Zones, "two zones, synced", 6),
    ];
    for (rule, name, at_most) in cases {
        let steps = noticed(rule, name);
        println!("{rule:?}: {steps:?} in {name}");
        assert!(steps.is_some_and(|steps| steps <= at_most), "{rule:?} in {name}: {steps:?} steps, not {at_most}");
    }
}
