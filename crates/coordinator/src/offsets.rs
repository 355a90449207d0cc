//! Offsets: commit, fetch, delete, expire.
