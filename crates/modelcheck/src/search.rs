//! Running a model: to the end, or until it finds something.

use std::fmt::Debug;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use model::Rules;
use stateright::{Checker, HasDiscoveries, Property};

use crate::scenario::Scenario;
use crate::world::{Step, Violation, World};

/// What can be explored: how a world begins, what may happen in it, and what must not.
pub trait Setting: Clone + Debug + PartialEq + Send + Sync + 'static {
    /// All that there is.
    type World: Clone + Debug + Hash + PartialEq + Send + Sync + 'static;
    /// One thing that happens.
    type Step: Copy + Debug + PartialEq + Send + Sync + 'static;
    /// What went wrong.
    type Violation: Clone + Debug + Eq + Send + Sync;
    /// How often things happened.
    type Tally: Debug + Default + Send + Sync + 'static;

    /// What it is called.
    fn name(&self) -> &'static str;
    /// How much may happen.
    fn bounds(&self) -> String;
    /// The same, with these rules.
    #[must_use]
    fn under(self, rules: Rules) -> Self;

    /// How it begins.
    fn begin(&self) -> Self::World;
    /// Every step that is possible now: none after a violation.
    fn possible(&self, world: &Self::World, steps: &mut Vec<Self::Step>);
    /// What comes of a step; None where it does nothing.
    fn step(&self, world: &Self::World, step: Self::Step) -> Option<Self::World>;
    /// What went wrong so far.
    fn violation(world: &Self::World) -> Option<&Self::Violation>;
    /// The same world, in which a core met what it takes for impossible.
    fn panicked(world: &Self::World, text: String) -> Self::World;
    /// Whether it is what happens by itself, and not what befalls.
    fn is_ordinary(step: Self::Step) -> bool;
    /// Counts what happened.
    fn count(tally: &Self::Tally, before: &Self::World, after: &Self::World);
}

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
#[derive(Debug)]
pub struct Model<S: Setting = Scenario> {
    scenario: S,
    tally: Arc<S::Tally>,
}

impl<S: Setting> Clone for Model<S> {
    /// The tally is the same one.
    fn clone(&self) -> Self {
        Model { scenario: self.scenario.clone(), tally: Arc::clone(&self.tally) }
    }
}

/// A counterexample.
#[derive(Clone, PartialEq, Debug)]
pub struct Found<S: Setting = Scenario> {
    /// What went wrong.
    pub violation: S::Violation,
    /// What led there.
    pub steps: Vec<S::Step>,
}

/// What came of random walks.
#[derive(Debug)]
pub struct Walked<S: Setting = Scenario> {
    /// What was found, by no shortest path.
    pub found: Option<Found<S>>,
    /// How many walks there were.
    pub walks: usize,
    /// Their steps in all.
    pub steps: usize,
    /// What happened.
    pub tally: Arc<S::Tally>,
}

fn same_kind<V>(one: &V, other: &V) -> bool {
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
pub struct Outcome<S: Setting = Scenario> {
    /// The counterexample, if there is one.
    pub found: Option<Found<S>>,
    /// Different states.
    pub states: usize,
    /// Steps that were tried.
    pub steps: usize,
    /// The longest shortest path.
    pub depth: usize,
    /// Whether every state was seen.
    pub is_exhausted: bool,
    /// What happened.
    pub tally: Arc<S::Tally>,
}

impl<S: Setting> Model<S> {
    /// A model of this.
    #[must_use]
    pub fn new(scenario: S) -> Self {
        Self { scenario, tally: Arc::default() }
    }

    /// Explores breadth first, until there is a counterexample, no more, or more than `most` states or `time`.
    #[must_use]
    pub fn explore(self, most: usize, time: Duration) -> Outcome<S> {
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
                .and_then(|(state, _)| S::violation(state).cloned())
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
    pub fn walk(&self, seed: u64, time: Duration) -> Walked<S> {
        let (began, mut dice) = (Instant::now(), Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1));
        let mut walked = Walked { found: None, walks: 0, steps: 0, tally: Arc::clone(&self.tally) };
        while began.elapsed() < time && walked.found.is_none() {
            walked.walks += 1;
            walked.found = self.walk_once(&mut dice, &mut walked.steps);
        }
        walked.found = walked.found.take().map(|found| self.shorten(found));
        walked
    }

    fn walk_once(&self, dice: &mut Dice, counted: &mut usize) -> Option<Found<S>> {
        let (mut world, mut steps, mut possible) = (self.scenario.begin(), Vec::new(), Vec::new());
        while steps.len() < WALK_STEPS_MAX {
            possible.clear();
            self.scenario.possible(&world, &mut possible);
            // What the brokers and the controller do by themselves comes more often than what befalls them.
            let (ordinary, rare): (Vec<S::Step>, Vec<S::Step>) =
                possible.iter().partition(|step| S::is_ordinary(**step));
            let among = if rare.is_empty() || (!ordinary.is_empty() && dice.below(8) > 0) { &ordinary } else { &rare };
            let step = among.get(dice.below(among.len())).copied()?;
            *counted += 1;
            let Some(next) = stateright::Model::next_state(self, &world, step) else { continue };
            steps.push(step);
            if let Some(violation) = S::violation(&next).cloned() {
                return Some(Found { violation, steps });
            }
            world = next;
        }
        None
    }

    /// The same kind of violation, after fewer steps: what can be left out of a path is left out.
    #[must_use]
    pub fn shorten(&self, found: Found<S>) -> Found<S> {
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
    fn follow(&self, steps: &[S::Step]) -> Option<Found<S>> {
        let (mut world, mut taken, mut possible) = (self.scenario.begin(), Vec::new(), Vec::new());
        for step in steps {
            possible.clear();
            self.scenario.possible(&world, &mut possible);
            if !possible.contains(step) {
                continue;
            }
            let Some(next) = stateright::Model::next_state(self, &world, *step) else { continue };
            taken.push(*step);
            if let Some(violation) = S::violation(&next).cloned() {
                return Some(Found { violation, steps: taken });
            }
            world = next;
        }
        None
    }

    /// The states along these steps.
    #[must_use]
    pub fn replay(&self, steps: &[S::Step]) -> Vec<S::World> {
        let mut states = vec![self.scenario.begin()];
        for step in steps {
            let last = states.last().expect("there is the first");
            match stateright::Model::next_state(self, last, *step) {
                Some(next) => states.push(next),
                None => break,
            }
        }
        states
    }
}

impl<S: Setting> stateright::Model for Model<S> {
    type State = S::World;
    type Action = S::Step;

    fn init_states(&self) -> Vec<S::World> {
        vec![self.scenario.begin()]
    }

    fn actions(&self, state: &S::World, actions: &mut Vec<S::Step>) {
        self.scenario.possible(state, actions);
    }

    fn next_state(&self, last: &S::World, step: S::Step) -> Option<S::World> {
        match catch_unwind(AssertUnwindSafe(|| self.scenario.step(last, step))) {
            Ok(next) => {
                let next = next?;
                S::count(&self.tally, last, &next);
                Some(next)
            }
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                Some(S::panicked(last, text.unwrap_or_default()))
            }
        }
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(SAFE, |_, state: &S::World| S::violation(state).is_none())]
    }
}

impl Setting for Scenario {
    type World = World;
    type Step = Step;
    type Violation = Violation;
    type Tally = Tally;

    fn name(&self) -> &'static str {
        self.name
    }

    fn bounds(&self) -> String {
        format!("{:?}", self.bounds)
    }

    fn under(self, rules: Rules) -> Self {
        self.with(rules)
    }

    fn begin(&self) -> World {
        World::new(self)
    }

    fn possible(&self, world: &World, steps: &mut Vec<Step>) {
        world.possible(self, steps);
    }

    fn step(&self, world: &World, step: Step) -> Option<World> {
        world.step(step, self)
    }

    fn violation(world: &World) -> Option<&Violation> {
        world.violation.as_ref()
    }

    fn panicked(world: &World, text: String) -> World {
        let mut next = world.clone();
        next.violate(Violation::Panicked(text));
        next
    }

    fn is_ordinary(step: Step) -> bool {
        step.is_ordinary()
    }

    fn count(tally: &Tally, before: &World, after: &World) {
        let add = |counter: &AtomicU64, times: usize| {
            counter.fetch_add(u64::try_from(times).unwrap_or(0), Ordering::Relaxed);
        };
        let (was, now) = (before.control.partition(), after.control.partition());
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

impl PartialEq for World {
    /// By what [`std::hash::Hash`] sees: two states are one where they will do the same for ever.
    fn eq(&self, other: &Self) -> bool {
        use std::hash::BuildHasher;
        let hasher = std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::default();
        hasher.hash_one(self) == hasher.hash_one(other)
    }
}
