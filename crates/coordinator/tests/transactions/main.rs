//! The transaction coordinator's shard as a shell sees it: requests in, answers, records and markers out.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail where they stand")]

mod context;
mod ending;
mod fencing;
mod random;
mod storing;
