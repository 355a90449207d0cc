//! The metadata quorum's snapshots: one file each, written aside, synced, renamed, its directory synced, and read back,
//! before anything behind it is purged (`R72`).
//!
//! Invariant: a file with a snapshot's name is whole; one that does not read back is corruption, an error that names it.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use model::batch::crc32c;

use crate::disk::{Disk, OpenMode, read_exact_at, write_all_at};
use crate::quorum_log::QuorumError;

const MAGIC: &[u8; 8] = b"OTLSNAP\n";
const VERSION: u32 = 1;
const FIXED: usize = 28;
const SUFFIX: &str = ".snapshot";

/// A snapshot: what it says of itself, and what it holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QuorumSnapshot {
    /// The index of the last entry that it stands for.
    pub index: u64,
    /// Its description.
    pub meta: Bytes,
    /// Its content.
    pub data: Bytes,
}

/// The directory with the snapshots.
#[derive(Debug)]
pub struct QuorumSnapshots {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

impl QuorumSnapshots {
    /// Opens the directory, or makes it, and removes what an interrupted save left.
    ///
    /// # Errors
    /// The system's.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<QuorumSnapshots, QuorumError> {
        disk.create_dir_all(dir).map_err(QuorumError::io(dir))?;
        if let Some(parent) = dir.parent() {
            disk.sync_dir(parent).map_err(QuorumError::io(parent))?;
        }
        for entry in disk.list(dir).map_err(QuorumError::io(dir))? {
            if entry.name.ends_with(".tmp") {
                disk.remove_file(&dir.join(entry.name)).map_err(QuorumError::io(dir))?;
            }
        }
        Ok(QuorumSnapshots { disk, dir: dir.to_owned() })
    }

    /// The newest snapshot.
    ///
    /// # Errors
    /// The system's, and [`QuorumError::Corrupt`].
    pub fn newest(&self) -> Result<Option<QuorumSnapshot>, QuorumError> {
        self.names()?.last().map(|(_, name)| self.read(&self.dir.join(name))).transpose()
    }

    /// Saves a snapshot and removes the older ones; returns when it is durable and was read back.
    ///
    /// # Errors
    /// The system's; what was there before is still there.
    pub fn save(&self, snapshot: &QuorumSnapshot) -> Result<(), QuorumError> {
        let name = format!("{:020}{SUFFIX}", snapshot.index);
        let path = self.dir.join(&name);
        let aside = self.dir.join(format!("{name}.tmp"));
        let header = header(snapshot);
        let file = self.disk.open(&aside, OpenMode::Truncate).map_err(QuorumError::io(&aside))?;
        let mut parts = [IoSlice::new(&header), IoSlice::new(&snapshot.meta), IoSlice::new(&snapshot.data)];
        write_all_at(&*file, &mut parts, 0).map_err(QuorumError::io(&aside))?;
        file.sync_data().map_err(QuorumError::io(&aside))?;
        self.disk.rename(&aside, &path).map_err(QuorumError::io(&path))?;
        self.disk.sync_dir(&self.dir).map_err(QuorumError::io(&self.dir))?;
        self.read(&path)?;
        for (index, name) in self.names()? {
            if index < snapshot.index {
                self.disk.remove_file(&self.dir.join(name)).map_err(QuorumError::io(&self.dir))?;
            }
        }
        self.disk.sync_dir(&self.dir).map_err(QuorumError::io(&self.dir))
    }

    fn names(&self) -> Result<Vec<(u64, String)>, QuorumError> {
        let entries = self.disk.list(&self.dir).map_err(QuorumError::io(&self.dir))?;
        let parsed = entries.into_iter().filter_map(|entry| {
            let index = entry.name.strip_suffix(SUFFIX)?.parse().ok()?;
            Some((index, entry.name))
        });
        let mut names: Vec<_> = parsed.collect();
        names.sort_unstable();
        Ok(names)
    }

    fn read(&self, path: &Path) -> Result<QuorumSnapshot, QuorumError> {
        let file = self.disk.open(path, OpenMode::Existing).map_err(QuorumError::io(path))?;
        let size = file.size().map_err(QuorumError::io(path))?;
        let size = usize::try_from(size).map_err(|_| QuorumError::corrupt(path, 0, "it is too large"))?;
        let mut content = vec![0; size];
        read_exact_at(&*file, &mut content, 0).map_err(QuorumError::io(path))?;
        parse(Bytes::from(content)).map_err(|why| QuorumError::corrupt(path, 0, why))
    }
}

fn header(snapshot: &QuorumSnapshot) -> BytesMut {
    let mut out = BytesMut::with_capacity(FIXED);
    out.put_slice(MAGIC);
    out.put_u32_le(VERSION);
    out.put_u64_le(snapshot.index);
    out.put_u32_le(u32::try_from(snapshot.meta.len()).expect("a description is small"));
    let sums = u64::from(crc32c(&snapshot.meta)) << 32 | u64::from(crc32c(&snapshot.data));
    // One checksum over both parts, the index and the lengths.
    let mut summed = BytesMut::from(&out[MAGIC.len()..]);
    summed.put_u64_le(snapshot.data.len() as u64);
    summed.put_u64_le(sums);
    out.put_u32_le(crc32c(&summed));
    out
}

fn parse(mut content: Bytes) -> Result<QuorumSnapshot, &'static str> {
    if content.len() < FIXED || !content.starts_with(MAGIC) {
        return Err("it is not a snapshot");
    }
    let stored = content.split_to(FIXED);
    let mut fixed = stored.slice(MAGIC.len()..);
    if fixed.get_u32_le() != VERSION {
        return Err("its version is unknown: it was written by a newer version");
    }
    let index = fixed.get_u64_le();
    let meta_len = usize::try_from(fixed.get_u32_le()).unwrap_or(usize::MAX);
    if meta_len > content.len() {
        return Err("it is cut off");
    }
    let meta = content.split_to(meta_len);
    let snapshot = QuorumSnapshot { index, meta, data: content };
    if header(&snapshot)[..] == stored[..] { Ok(snapshot) } else { Err("it has a bad checksum") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Call, Crash, FaultKind, MemDisk};

    fn open(disk: &MemDisk) -> QuorumSnapshots {
        QuorumSnapshots::open(Arc::new(disk.clone()), Path::new("/m/snapshots")).unwrap()
    }

    fn disk() -> MemDisk {
        let disk = MemDisk::new();
        disk.create_dir_all(Path::new("/m")).unwrap();
        disk.crash(Crash::KeepAll);
        disk
    }

    fn snapshot(index: u64) -> QuorumSnapshot {
        QuorumSnapshot { index, meta: "meta".into(), data: vec![3; 200].into() }
    }

    #[test]
    fn the_newest_snapshot_saved_is_there_after_a_power_cut() {
        let disk = disk();
        assert_eq!(open(&disk).newest().unwrap(), None);
        for index in [3, 10, 200] {
            open(&disk).save(&snapshot(index)).unwrap();
            disk.crash(Crash::LoseUnsynced);
            assert_eq!(open(&disk).newest().unwrap(), Some(snapshot(index)));
        }
        assert_eq!(disk.list(Path::new("/m/snapshots")).unwrap().len(), 1);
    }

    #[test]
    fn a_save_that_fails_anywhere_leaves_the_one_before() {
        for seed in 0..120u64 {
            let disk = disk();
            open(&disk).save(&snapshot(3)).unwrap();
            let call = [Call::Write, Call::SyncData, Call::Rename, Call::SyncDir][usize::try_from(seed % 4).unwrap()];
            let snapshots = open(&disk);
            disk.fail(call, 0, FaultKind::Eio);
            snapshots.save(&snapshot(5)).unwrap_err();
            disk.crash(if seed < 60 { Crash::Scatter(seed) } else { Crash::TornAt(seed * 2) });
            let now = open(&disk).newest().unwrap().unwrap();
            assert!(now == snapshot(3) || now == snapshot(5), "{seed}: {now:?}");
        }
    }

    #[test]
    fn a_flipped_bit_is_an_error_that_names_the_file() {
        let disk = disk();
        open(&disk).save(&snapshot(3)).unwrap();
        let path = Path::new("/m/snapshots").join(format!("{:020}.snapshot", 3));
        let file = disk.open(&path, OpenMode::Existing).unwrap();
        for at in 0..file.size().unwrap() {
            let mut byte = [0u8];
            read_exact_at(&*file, &mut byte, at).unwrap();
            write_all_at(&*file, &mut [IoSlice::new(&[byte[0] ^ 1])], at).unwrap();
            let error = open(&disk).newest().unwrap_err();
            assert!(error.to_string().contains(".snapshot"), "{at}: {error}");
            write_all_at(&*file, &mut [IoSlice::new(&byte)], at).unwrap();
        }
    }
}
