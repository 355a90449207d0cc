//! The binary as a person uses it, and the laws that a program can see in the project's text.

mod chaos;
mod cli;
mod cluster;
mod fuzz;
mod golden;
mod groups;
mod local;
mod log;
mod moves;
mod quorum;
mod restored;
mod tidy;
mod transactions;
