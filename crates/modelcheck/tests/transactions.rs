//! The models of transactions that are explored to the end within seconds, and that they notice what they should.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use model::{Rule, Rules};
use modelcheck::transactions::{self, Scenario, Tally};
use modelcheck::{Found, Model, Outcome};

/// More than any of these models has: reaching it is a failure.
const STATES_MAX: usize = 2_000_000;

fn explore(scenario: Scenario) -> Outcome<Scenario> {
    Model::new(scenario).explore(STATES_MAX, Duration::from_secs(600))
}

fn counters(tally: &Tally) -> [&AtomicU64; 7] {
    let Tally { committed, aborted, fenced, unverified, coordinators, cut, offsets } = tally;
    [committed, aborted, fenced, unverified, coordinators, cut, offsets]
}

/// A counterexample that can be read: states are long.
fn told(found: &Found<Scenario>) -> String {
    let steps: Vec<String> = found.steps.iter().map(|step| format!("{step:?}")).collect();
    let violation: String = format!("{:?}", found.violation).chars().take(2_000).collect();
    format!("{violation}\nafter {} steps:\n{}", steps.len(), steps.join("\n"))
}

#[test]
fn transactions_are_whole_and_end_in_any_small_model() {
    let (mut happened, mut broken) = ([0; 7], Vec::new());
    for scenario in transactions::small() {
        let (name, bounds) = (scenario.name, scenario.bounds);
        let Outcome { found, states, steps, depth, is_exhausted, tally } = explore(scenario);
        println!("{name}: {states} states, {steps} steps, depth {depth}; {bounds:?}");
        assert!(found.is_some() || is_exhausted, "{name} was not explored to its end");
        broken.extend(found.map(|found| format!("{name}: {}", told(&found))));
        for (sum, counter) in happened.iter_mut().zip(counters(&tally)) {
            *sum += counter.load(Ordering::Relaxed);
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n\n"));
    // Empty success is failure.
    assert!(happened.iter().all(|times| *times > 0), "{happened:?}");
}

#[test]
fn random_walks_find_no_broken_transaction() {
    let mut broken = Vec::new();
    for scenario in transactions::endless() {
        let (name, model) = (scenario.name, Model::new(scenario));
        let walked = model.walk(7, Duration::from_secs(2));
        println!("{name}: {} walks, {} steps, {:?}", walked.walks, walked.steps, walked.tally);
        assert!(walked.walks > 0 && walked.steps > 100, "{name}: {} steps", walked.steps);
        broken.extend(walked.found.map(|found| format!("{name}: {}", told(&model.shorten(found)))));
    }
    assert!(broken.is_empty(), "{}", broken.join("\n\n"));
}

/// Each rule that the cores ask for, and a model that notices when it is left out.
const NOTICED: &[(Rule, &str)] = &[
    (Rule::R40Sequence, "two transactions"),
    (Rule::R43MarkersAboveHighWatermark, "another leader"),
    (Rule::R43OpenTransactions, "one producer"),
    (Rule::R44EffectWhenCommitted, "refused writes"),
    (Rule::R45AllMarkers, "one producer"),
    (Rule::R45PrepareIsFinal, "two transactions"),
    (Rule::R46AbortFirst, "two transactions"),
    (Rule::R46Bump, "a fence"),
    (Rule::R46ExhaustedEpoch, "no epoch left"),
    (Rule::R46ExpectedEpoch, "a producer that recovers"),
    (Rule::R47CoordinatorEpoch, "a late marker of version 1"),
    (Rule::R47MarkerEpochAboveKnown, "two transactions"),
    (Rule::R47ProducerEpoch, "a fence of both versions, a late copy"),
    (Rule::R48FenceBumps, "a timeout"),
    (Rule::R49AbortDrops, "an offset"),
    (Rule::R49LogOrder, "offsets beside transactions"),
    (Rule::R49MemberFence, "a stranger's offset"),
    (Rule::R49TombstoneDrops, "offsets beside transactions"),
    (Rule::R49Unstable, "an offset"),
    (Rule::R49UntilMarker, "an offset"),
    (Rule::R50Guard, "one producer of version 1"),
    (Rule::R50Verification, "one producer"),
    (Rule::R51BumpOnEnd, "one producer"),
    (Rule::R51Overflow, "the last epochs"),
    (Rule::R51RepeatedEnd, "another coordinator"),
];

#[test]
fn every_rule_of_transactions_is_noticed_when_it_is_left_out() {
    let asked: Vec<Rule> = Rule::ALL.iter().copied().filter(|rule| transactions::asks(*rule)).collect();
    assert_eq!(asked, NOTICED.iter().map(|(rule, _)| *rule).collect::<Vec<Rule>>(), "each rule has its model");
    let mut missed = Vec::new();
    for (rule, name) in NOTICED {
        let scenario = transactions::small().into_iter().find(|scenario| scenario.name == *name);
        let model = Model::new(scenario.expect("a scenario of that name").with(Rules::without(*rule)));
        match model.explore(STATES_MAX, Duration::from_secs(600)).found {
            Some(found) => {
                let violation: String = format!("{:?}", found.violation).chars().take(60).collect();
                println!("{rule:?}: {name}, {} steps: {violation}", found.steps.len());
            }
            None => missed.push(*rule),
        }
    }
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}
