//! The group coordinator as its shell drives it: requests and time go in, answers and batches come out.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail where they stand")]

mod assignors;
mod cluster;
mod consumers;
mod context;
mod members;
mod migration;
mod offsets;
mod random;
mod random_consumers;
mod random_transactions;
mod storing;
mod transactions;
