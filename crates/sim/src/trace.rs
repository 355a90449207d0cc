//! What a run did, as one number: the checksum of everything that arrived and of everything that was done to the cluster, with
//! its time. Two runs with the same number took the same way.

use crc_fast::{CrcAlgorithm, Digest};

/// See the module.
#[derive(Debug)]
pub struct Trace(Digest);

impl Default for Trace {
    fn default() -> Self {
        Trace(Digest::new(CrcAlgorithm::Crc64Nvme))
    }
}

impl Trace {
    /// This happened at `now`.
    pub fn note(&mut self, now: u64, what: &[&[u8]]) {
        self.0.update(&now.to_be_bytes());
        what.iter().for_each(|part| self.0.update(part));
    }

    /// The number.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.finalize()
    }
}
