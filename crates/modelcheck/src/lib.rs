//! Exhaustive models of one partition: the very cores of `replication` and `metadata::control`, on a network, disks and
//! clocks that do whatever they may.
//!
//! A [`Scenario`] says how much of what may happen (appends, crashes, fencing, …). A [`Model`] of it is explored by
//! stateright, breadth first and to the end, so that a counterexample is a shortest one. Nothing of what the cores decide
//! is written down again here: the model moves messages, loses what a crash may lose, and looks at the outcome.
//!
//! Reading order: [`scenario`] (bounds), `prepared` (what happened before), [`guards`] (which rule needs which model), [`world`] (what there is), `steps` (what may happen), `control` (the active
//! controller), `wire` (streams), `check` (what must hold), [`search`] (running a model).
//!
//! What is left out: the quorum (decisions take effect one after the other, as it guarantees), clocks as such (a timer
//! fires at any time), compaction. Producers and transactions have a model of their own: [`transactions`].

pub mod guards;
pub mod scenario;
pub mod search;
pub mod transactions;
pub mod world;

mod check;
mod control;
mod hashed;
mod prepared;
mod steps;
mod wire;

pub use scenario::{Before, Bounds, Scenario};
pub use search::{Found, Model, Outcome, Setting, Tally, Walked};
pub use world::{Step, Violation, World};
