//! Brokers as wholes: over TCP, with a controller that is the real core, on disks in memory.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;
mod compaction;
mod coordinators;
mod damage;
mod data;
mod directories;
mod disks;
mod groups;
mod lag;
mod lanes;
mod moves;
mod peers;
mod reassign;
mod restarts;
mod starved;
mod times;
mod timestamps;
mod transactions;
