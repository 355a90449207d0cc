//! The models of transactions that are explored to the end within seconds, and that they notice what they should.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use modelcheck::transactions::{self, Scenario, Tally};
use modelcheck::{Model, Outcome};

/// More than any of these models has: reaching it is a failure.
const STATES_MAX: usize = 2_000_000;

fn explore(scenario: Scenario) -> Outcome<Scenario> {
    Model::new(scenario).explore(STATES_MAX, Duration::from_secs(600))
}

fn counters(tally: &Tally) -> [&AtomicU64; 6] {
    [&tally.committed, &tally.aborted, &tally.fenced, &tally.unverified, &tally.coordinators, &tally.cut]
}

#[test]
fn transactions_are_whole_and_end_in_any_small_model() {
    let mut happened = [0; 6];
    for scenario in transactions::small() {
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

#[test]
fn random_walks_find_no_broken_transaction() {
    for scenario in transactions::endless() {
        let (name, model) = (scenario.name, Model::new(scenario));
        let walked = model.walk(7, Duration::from_secs(2));
        println!("{name}: {} walks, {} steps, {:?}", walked.walks, walked.steps, walked.tally);
        if let Some(found) = &walked.found {
            for (step, world) in
                std::iter::once(None).chain(found.steps.iter().map(Some)).zip(model.replay(&found.steps))
            {
                println!("{step:?}\n  {world:?}");
            }
        }
        assert_eq!(walked.found, None, "{name}");
        assert!(walked.walks > 0 && walked.steps > 100, "{name}: {} steps", walked.steps);
    }
}
