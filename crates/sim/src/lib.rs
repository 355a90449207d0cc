//! Whole clusters in one thread: controllers, brokers and gateways as they are, on machines with clocks that stand still
//! between their turns, on disks and a network that do what they may. A run is a function of its seed.
//!
//! Reading order: [`run`] (what a run is), [`cluster`] (its time), [`node`], [`host`] and [`disks`] (a machine,
//! what runs there, and what it keeps),
//! [`net`], [`clock`], [`chance`], [`trace`] (the way that a run took), [`client`], [`workload`] and [`history`] (who writes and
//! reads, and what they saw), [`faults`] (what goes wrong, one file each), [`invariants`] (what must hold, one file each),
//! [`tally`] (a run in which too little happened fails).
//!
//! turmoil would give much the same. The network is our own because connections are a parameter of all crates anyway, and so that
//! what it may do is said in one place: a cut in one direction, what is under way when a machine loses its power, every byte
//! in the trace.
//!
//! Invariants: one thread; no clock, no randomness and no file but those of the run, also where dependencies want some: they
//! get theirs from the binary's `getrandom` and `clock_gettime`, which is why a run has a process of its own.

pub mod run;

pub mod cluster;
pub mod disks;
pub mod host;
pub mod node;

pub mod chance;
pub mod clock;
pub mod net;
pub mod trace;

pub mod client;
pub mod history;
pub mod workload;

pub mod faults;
pub mod invariants;
pub mod tally;
