//! Hosts partitions and coordinator shards, follows the metadata and keeps this broker registered.

pub mod api;
