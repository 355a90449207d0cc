//! Running a model: to the end, or until it finds something.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Property};

use crate::scenario::Scenario;
use crate::world::{Step, Violation, World};

const SAFE: &str = "safe";

/// How often things happened, over all steps that were explored: a run in which nothing happened proves nothing.
#[derive(Debug, Default)]
pub struct Tally {
    /// Records that were committed.
    pub committed: AtomicU64,
    /// Leaders that were elected.
    pub elections: AtomicU64,
    /// Of them, from outside of the ISR.
    pub elections_from_elr: AtomicU64,
    /// Members that joined the ISR.
    pub expansions: AtomicU64,
    /// And left it because the leader said so.
    pub shrinks: AtomicU64,
    /// Logs that were cut.
    pub truncations: AtomicU64,
    /// Crashes that lost records.
    pub lossy_crashes: AtomicU64,
    /// Paths that ended with an operator being told of a loss.
    pub potential_losses: AtomicU64,
    /// Reassignments that completed.
    pub completions: AtomicU64,
}

/// A scenario as stateright explores it.
#[derive(Clone, Debug)]
pub struct Model {
    scenario: Scenario,
    tally: Arc<Tally>,
}

/// A counterexample.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// What went wrong.
    pub violation: Violation,
    /// What led there.
    pub steps: Vec<Step>,
}

/// What came of random walks.
#[derive(Debug)]
pub struct Walked {
    /// What was found, by no shortest path.
    pub found: Option<Found>,
    /// How many walks there were.
    pub walks: usize,
    /// Their steps in all.
    pub steps: usize,
    /// What happened.
    pub tally: Arc<Tally>,
}

fn same_kind(one: &Violation, other: &Violation) -> bool {
    std::mem::discriminant(one) == std::mem::discriminant(other)
}

/// A walk ends after so many steps, if it does not end before.
const WALK_STEPS_MAX: usize = 2_000;

/// A seeded generator (xorshift): walks are a function of their seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let n = u64::try_from(n.max(1)).expect("a small number");
        usize::try_from((self.0 >> 11) % n).expect("a small number")
    }
}

/// What came of a search.
#[derive(Debug)]
pub struct Outcome {
    /// The counterexample, if there is one.
    pub found: Option<Found>,
    /// Different states.
    pub states: usize,
    /// Steps that were tried.
    pub steps: usize,
    /// The longest shortest path.
    pub depth: usize,
    /// Whether every state was seen.
    pub is_exhausted: bool,
    /// What happened.
    pub tally: Arc<Tally>,
}

impl Model {
    /// A model of this.
    #[must_use]
    pub fn new(scenario: Scenario) -> Self {
        Self { scenario, tally: Arc::default() }
    }

    /// Explores breadth first, until there is a counterexample, no more, or more than `most` states or `time`.
    #[must_use]
    pub fn explore(self, most: usize, time: Duration) -> Outcome {
        let (tally, began) = (Arc::clone(&self.tally), Instant::now());
        let checker = stateright::Model::checker(self)
            .target_state_count(most)
            .timeout(time)
            .finish_when(HasDiscoveries::Any)
            .spawn_bfs()
            .join();
        let path = checker.discovery(SAFE).map(stateright::Path::into_vec);
        let found = path.map(|path| Found {
            violation: path
                .last()
                .and_then(|(state, _)| state.violation.clone())
                .expect("the path ends in a violation"),
            steps: path.into_iter().filter_map(|(_, step)| step).collect(),
        });
        // A checker that stopped for want of time says that it is done, too.
        let is_complete = checker.state_count() < most && began.elapsed() < time;
        let is_exhausted = found.is_none() && checker.is_done() && is_complete;
        Outcome {
            found,
            states: checker.unique_state_count(),
            steps: checker.state_count(),
            depth: checker.max_depth(),
            is_exhausted,
            tally,
        }
    }

    /// Walks at random from the beginning, again and again, until `time` has passed or something is found.
    #[must_use]
    pub fn walk(&self, seed: u64, time: Duration) -> Walked {
        let (began, mut dice) = (Instant::now(), Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1));
        let mut walked = Walked { found: None, walks: 0, steps: 0, tally: Arc::clone(&self.tally) };
        while began.elapsed() < time && walked.found.is_none() {
            walked.walks += 1;
            walked.found = self.walk_once(&mut dice, &mut walked.steps);
        }
        walked.found = walked.found.take().map(|found| self.shorten(found));
        walked
    }

    fn walk_once(&self, dice: &mut Dice, counted: &mut usize) -> Option<Found> {
        let (mut world, mut steps, mut possible) = (World::new(&self.scenario), Vec::new(), Vec::new());
        while steps.len() < WALK_STEPS_MAX {
            possible.clear();
            world.possible(&self.scenario, &mut possible);
            // What the brokers and the controller do by themselves comes more often than what befalls them.
            let (ordinary, rare): (Vec<Step>, Vec<Step>) = possible.iter().partition(|step| step.is_ordinary());
            let among = if rare.is_empty() || (!ordinary.is_empty() && dice.below(8) > 0) { &ordinary } else { &rare };
            let step = among.get(dice.below(among.len())).copied()?;
            *counted += 1;
            let Some(next) = stateright::Model::next_state(self, &world, step) else { continue };
            steps.push(step);
            if let Some(violation) = next.violation.clone() {
                return Some(Found { violation, steps });
            }
            world = next;
        }
        None
    }

    /// The same kind of violation, after fewer steps: what can be left out of a path is left out.
    #[must_use]
    pub fn shorten(&self, found: Found) -> Found {
        let mut found = found;
        let mut size = found.steps.len() / 2;
        while size > 0 {
            let before = found.steps.len();
            let mut from = 0;
            while from < found.steps.len() {
                let mut fewer = found.steps.clone();
                fewer.drain(from..(from + size).min(fewer.len()));
                match self.follow(&fewer) {
                    Some(shorter) if same_kind(&shorter.violation, &found.violation) => found = shorter,
                    _ => from += size,
                }
            }
            if found.steps.len() == before {
                size /= 2;
            }
        }
        found
    }

    /// Takes those of the steps that are possible.
    fn follow(&self, steps: &[Step]) -> Option<Found> {
        let (mut world, mut taken, mut possible) = (World::new(&self.scenario), Vec::new(), Vec::new());
        for step in steps {
            possible.clear();
            world.possible(&self.scenario, &mut possible);
            if !possible.contains(step) {
                continue;
            }
            let Some(next) = stateright::Model::next_state(self, &world, *step) else { continue };
            taken.push(*step);
            if let Some(violation) = next.violation.clone() {
                return Some(Found { violation, steps: taken });
            }
            world = next;
        }
        None
    }

    /// The states along these steps.
    #[must_use]
    pub fn replay(&self, steps: &[Step]) -> Vec<World> {
        let mut states = vec![World::new(&self.scenario)];
        for step in steps {
            let last = states.last().expect("there is the first");
            match stateright::Model::next_state(self, last, *step) {
                Some(next) => states.push(next),
                None => break,
            }
        }
        states
    }

    fn count(&self, before: &World, after: &World) {
        let add = |counter: &AtomicU64, times: usize| {
            counter.fetch_add(u64::try_from(times).unwrap_or(0), Ordering::Relaxed);
        };
        let (was, now) = (before.control.partition(), after.control.partition());
        let tally = &self.tally;
        add(&tally.committed, after.committed.len() - before.committed.len());
        add(&tally.potential_losses, usize::from(after.over));
        if was.partition_epoch != now.partition_epoch {
            let elected = !now.is_leaderless() && now.leader != was.leader;
            add(&tally.elections, usize::from(elected));
            add(&tally.elections_from_elr, usize::from(elected && !was.isr.contains(&now.leader)));
            add(&tally.expansions, usize::from(now.isr.len() > was.isr.len()));
            let by_leader = now.leader == was.leader && now.isr.len() < was.isr.len();
            add(&tally.shrinks, usize::from(by_leader));
            add(&tally.completions, usize::from(was.is_reassigning() && !now.is_reassigning()));
        }
        for (was, now) in before.nodes.iter().zip(&after.nodes) {
            if now.log.len() < was.log.len() {
                let lossy = usize::from(now.lossy && !now.is_up());
                add(&tally.lossy_crashes, lossy);
                add(&tally.truncations, 1 - lossy);
            }
        }
    }
}

impl stateright::Model for Model {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(&self.scenario)]
    }

    fn actions(&self, state: &World, actions: &mut Vec<Step>) {
        state.possible(&self.scenario, actions);
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        match catch_unwind(AssertUnwindSafe(|| last.step(step, &self.scenario))) {
            Ok(next) => {
                let next = next?;
                self.count(last, &next);
                Some(next)
            }
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                let mut next = last.clone();
                next.violate(Violation::Panicked(text.unwrap_or_default()));
                Some(next)
            }
        }
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(SAFE, |_, state: &World| state.violation.is_none())]
    }
}

impl PartialEq for World {
    /// By what [`std::hash::Hash`] sees: two states are one where they will do the same for ever.
    fn eq(&self, other: &Self) -> bool {
        use std::hash::BuildHasher;
        let hasher = std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::default();
        hasher.hash_one(self) == hasher.hash_one(other)
    }
}
