//! The metadata quorum's vote: two pairs of checksummed slots in one file, written in turn, so that a torn write leaves the
//! other pair; both slots of a pair say the same, so that one that rots does not bring back the vote before: a second vote in
//! one term.
//!
//! Invariant: [`QuorumVote::save`] returns after the vote is durable, and reading gives the last vote saved, or the one
//! being saved when the power went.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use model::batch::crc32c;

use crate::disk::{Disk, DiskFile, OpenMode, read_small_file, replace_file, write_all_at};
use crate::quorum_log::QuorumError;

const SLOT: usize = 4096;
/// The slots of a pair stand so many bytes apart: a file of an earlier version has the first one of each.
const APART: usize = 2 * SLOT;
const MAGIC: &[u8; 8] = b"OTLVOTE\n";
const VERSION: u32 = 1;
const FIXED: usize = 28;

/// See the module.
#[derive(Debug)]
pub struct QuorumVote {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    sequence: u64,
    vote: Option<Bytes>,
    dead: bool,
}

impl QuorumVote {
    /// Opens the file, or makes one without a vote.
    ///
    /// # Errors
    /// The system's, and [`QuorumError::Corrupt`] where neither slot is valid.
    pub fn open(disk: &dyn Disk, path: &Path) -> Result<QuorumVote, QuorumError> {
        let content = match read_small_file(disk, path, 2 * APART).map_err(QuorumError::io(path))? {
            Some(content) => content,
            None => {
                let all: Vec<u8> = [0, 1, 0, 1].into_iter().flat_map(|sequence| slot(sequence, &[])).collect();
                replace_file(disk, path, &all).map_err(QuorumError::io(path))?;
                all
            }
        };
        let slots: Vec<_> = content.chunks(SLOT).filter_map(parse).collect();
        if slots.len() * SLOT < content.len() {
            tracing::warn!(path = %path.display(), sound = slots.len(), "a slot of the vote is torn or damaged");
        }
        let newest = slots.into_iter().max_by_key(|(sequence, _)| *sequence);
        let (sequence, vote) = newest.ok_or_else(|| QuorumError::corrupt(path, 0, "neither slot holds a vote"))?;
        let file = disk.open(path, OpenMode::Existing).map_err(QuorumError::io(path))?;
        let vote = (!vote.is_empty()).then_some(vote);
        Ok(QuorumVote { path: path.to_owned(), file, sequence, vote, dead: false })
    }

    /// The vote, if one was ever saved.
    #[must_use]
    pub fn vote(&self) -> Option<&Bytes> {
        self.vote.as_ref()
    }

    /// Saves a vote; returns when it is durable.
    ///
    /// # Errors
    /// After any error the file takes no more votes (`R30`).
    ///
    /// # Panics
    /// If the vote is empty or larger than a slot.
    pub fn save(&mut self, vote: &[u8]) -> Result<(), QuorumError> {
        assert!(!vote.is_empty() && vote.len() <= SLOT - FIXED, "a vote of {} bytes", vote.len());
        if self.dead {
            return Err(QuorumError::Dead { path: self.path.clone() });
        }
        self.dead = true;
        let sequence = self.sequence + 1;
        let bytes = slot(sequence, vote);
        let first = (sequence % 2) * SLOT as u64;
        for position in [first, first + APART as u64] {
            write_all_at(&*self.file, &mut [IoSlice::new(&bytes)], position).map_err(QuorumError::io(&self.path))?;
        }
        self.file.sync_data().map_err(QuorumError::io(&self.path))?;
        self.sequence = sequence;
        self.vote = Some(Bytes::copy_from_slice(vote));
        self.dead = false;
        Ok(())
    }
}

fn slot(sequence: u64, vote: &[u8]) -> BytesMut {
    let mut body = BytesMut::new();
    body.put_u64_le(sequence);
    body.put_u32_le(u32::try_from(vote.len()).expect("a vote fits into its slot"));
    body.put_slice(vote);
    let mut out = BytesMut::with_capacity(SLOT);
    out.put_slice(MAGIC);
    out.put_u32_le(VERSION);
    out.put_u32_le(crc32c(&body));
    out.put_slice(&body);
    out.resize(SLOT, 0);
    out
}

fn parse(slot: &[u8]) -> Option<(u64, Bytes)> {
    let mut rest = slot.strip_prefix(&MAGIC[..]).filter(|_| slot.len() == SLOT)?;
    if rest.get_u32_le() != VERSION {
        return None;
    }
    let crc = rest.get_u32_le();
    let len = usize::try_from(u32::from_le_bytes(rest.get(8..12)?.try_into().ok()?)).ok()?;
    let body = rest.get(..12 + len)?;
    (crc32c(body) == crc)
        .then(|| (u64::from_le_bytes(body[..8].try_into().expect("8 bytes")), Bytes::copy_from_slice(&body[12..])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Call, Crash, FaultKind, MemDisk};

    const PATH: &str = "/m/vote";

    fn open(disk: &MemDisk) -> QuorumVote {
        QuorumVote::open(disk, Path::new(PATH)).unwrap()
    }

    fn disk() -> MemDisk {
        let disk = MemDisk::new();
        disk.create_dir_all(Path::new("/m")).unwrap();
        disk.crash(Crash::KeepAll);
        disk
    }

    #[test]
    fn the_last_vote_saved_is_there_after_a_power_cut() {
        let disk = disk();
        assert_eq!(open(&disk).vote(), None);
        for vote in ["one", "two", "three", "four"] {
            open(&disk).save(vote.as_bytes()).unwrap();
            disk.crash(Crash::LoseUnsynced);
            assert_eq!(open(&disk).vote().unwrap(), vote);
        }
    }

    #[test]
    fn a_vote_that_is_torn_leaves_the_one_before() {
        for cut in 0..120 {
            let disk = disk();
            let mut votes = open(&disk);
            votes.save(b"old vote").unwrap();
            disk.fail(Call::SyncData, 0, FaultKind::Eio);
            votes.save(b"new vote").unwrap_err();
            assert!(matches!(votes.save(b"again"), Err(QuorumError::Dead { .. })));
            disk.crash(if cut < 80 { Crash::TornAt(cut) } else { Crash::Scatter(cut) });
            let now = open(&disk).vote().unwrap().clone();
            assert!(now == "old vote" || now == "new vote", "{cut}: {now:?}");
        }
    }

    #[test]
    fn a_slot_that_rots_does_not_bring_back_the_vote_before() {
        let disk = disk();
        let mut votes = open(&disk);
        for vote in ["one", "two", "three"] {
            votes.save(vote.as_bytes()).unwrap();
            for number in 0..4u64 {
                let disk = disk.fork();
                let file = disk.open(Path::new(PATH), OpenMode::Existing).unwrap();
                write_all_at(&*file, &mut [IoSlice::new(&[0xff])], number * SLOT as u64 + 30).unwrap();
                assert_eq!(open(&disk).vote().unwrap(), vote, "slot {number}");
            }
        }
    }

    #[test]
    fn a_file_of_an_earlier_version_is_read_and_goes_on() {
        let disk = disk();
        let both: Vec<u8> = [slot(6, b"old"), slot(5, b"older")].concat();
        replace_file(&disk, Path::new(PATH), &both).unwrap();
        assert_eq!(open(&disk).vote().unwrap(), "old");
        for vote in ["new", "newer"] {
            open(&disk).save(vote.as_bytes()).unwrap();
            disk.crash(Crash::LoseUnsynced);
            assert_eq!(open(&disk).vote().unwrap(), vote);
        }
    }

    #[test]
    fn a_file_without_a_valid_slot_is_an_error_that_names_it() {
        let disk = disk();
        replace_file(&disk, Path::new(PATH), &[1; 2 * APART]).unwrap();
        let error = QuorumVote::open(&disk, Path::new(PATH)).unwrap_err();
        assert!(error.to_string().contains(PATH), "{error}");
    }
}
