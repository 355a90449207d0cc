//! The metadata quorum's log: entries with ascending indexes in one file that is only ever appended to, or replaced whole.
//!
//! File: a header (magic, version, purge point, CRC32C), then groups. A group is what one call wrote: a magic, the length
//! and the CRC32C of its body, and the body: entries, or "the entries from this index on are gone". A group is whole or
//! absent after a crash, so a call is too. A purge writes what stays into a new file and renames it. Behind the last group
//! stands a seal, written once that group is synced, and overwritten by the next one: it tells a group that rotted, which was
//! acknowledged, from one that was torn. It is not synced itself: a power cut may take it, and then the two look alike.
//!
//! Invariants: a call returns after its bytes are synced (`R30`: a failed sync is never tried again, the log is dead after
//! it); a bad group with nothing valid behind it is a torn write and is dropped; one with valid groups or its seal behind it
//! is corruption, an error that names the file. What an entry's id and payload mean is the caller's business.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use model::batch::crc32c;

use crate::disk::{Disk, DiskFile, OpenMode, read_exact_at, replace_file, write_all_at};

/// One entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QuorumEntry {
    /// Its place; ascending.
    pub index: u64,
    /// Its identity, which contains the index and the leadership that made it.
    pub id: Bytes,
    /// What it says.
    pub payload: Bytes,
}

/// The last entry that was purged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PurgePoint {
    /// Its place.
    pub index: u64,
    /// Its identity.
    pub id: Bytes,
}

/// Why the quorum's files cannot be used.
#[derive(thiserror::Error, Debug)]
pub enum QuorumError {
    /// The system's error: the node must stop using this directory (`R30`).
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The file is not what was written: the directory is to be treated as wiped (`R74`).
    #[error(
        "{path} is corrupt at byte {position}: {reason}; move the metadata directory aside to start as a new voter"
    )]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// Where.
        position: u64,
        /// What is wrong there.
        reason: &'static str,
    },
    /// An earlier write failed, so nothing is known about what is on the disk (`R30`).
    #[error("{path} had a failed write: restart the process to read again what is on the disk")]
    Dead {
        /// Which file.
        path: PathBuf,
    },
}

impl QuorumError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> QuorumError + '_ {
        move |source| QuorumError::Io { path: path.to_owned(), source }
    }

    pub(crate) fn corrupt(path: &Path, position: u64, reason: &'static str) -> QuorumError {
        QuorumError::Corrupt { path: path.to_owned(), position, reason }
    }
}

/// The largest group that is written or believed.
const GROUP_MAX: usize = 64 << 20;
const FILE_MAGIC: &[u8; 8] = b"OTLQLOG\n";
const VERSION: u32 = 1;
const HEADER_FIXED: usize = 20;
/// The largest header: an identity is small.
const HEADER_MAX: usize = 4096;
const GROUP_MAGIC: u32 = 0x4c51_5447;
const GROUP_FIXED: usize = 12;
const SEAL_MAGIC: u32 = 0x4c41_4553;
const SEAL: usize = 16;
const KIND_ENTRIES: u8 = 1;
const KIND_TRUNCATE: u8 = 2;
/// Space is reserved in steps of this, so that a full disk is met before a write is half done (`R30`).
const RESERVE: u64 = 4 << 20;

#[derive(Clone, Debug)]
struct Place {
    id: Bytes,
    position: u64,
    len: usize,
}

/// See the module.
#[derive(Debug)]
pub struct QuorumLog {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    end: u64,
    reserved: u64,
    purged: Option<PurgePoint>,
    places: BTreeMap<u64, Place>,
    dead: bool,
}

impl QuorumLog {
    /// Opens the log, or makes an empty one.
    ///
    /// # Errors
    /// The system's, and [`QuorumError::Corrupt`].
    pub fn open(disk: Arc<dyn Disk>, path: &Path) -> Result<QuorumLog, QuorumError> {
        let file = match disk.open(path, OpenMode::Existing) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                replace_file(&*disk, path, &header(None)).map_err(QuorumError::io(path))?;
                disk.open(path, OpenMode::Existing).map_err(QuorumError::io(path))?
            }
            Err(error) => return Err(QuorumError::io(path)(error)),
        };
        let mut log = QuorumLog {
            disk,
            path: path.to_owned(),
            file,
            end: 0,
            reserved: 0,
            purged: None,
            places: BTreeMap::new(),
            dead: false,
        };
        log.recover()?;
        Ok(log)
    }

    /// The last purged entry.
    #[must_use]
    pub fn purged(&self) -> Option<&PurgePoint> {
        self.purged.as_ref()
    }

    /// The last entry's place and identity, also if it was purged.
    #[must_use]
    pub fn last(&self) -> Option<(u64, &Bytes)> {
        let last = self.places.last_key_value().map(|(index, place)| (*index, &place.id));
        last.or_else(|| self.purged.as_ref().map(|point| (point.index, &point.id)))
    }

    /// The identity of the entry at `index`, if it is there.
    #[must_use]
    pub fn id_at(&self, index: u64) -> Option<&Bytes> {
        self.places.get(&index).map(|place| &place.id)
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is no entry; some may have been purged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The size of the file in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.end
    }

    /// Appends all of `entries`, or none; returns when they are durable.
    ///
    /// # Errors
    /// After any error but a too large group the log takes no more writes.
    ///
    /// # Panics
    /// If an index is not above the one before it.
    pub fn append(&mut self, entries: &[QuorumEntry]) -> Result<(), QuorumError> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut last = self.places.last_key_value().map(|(index, _)| *index);
        let mut body = BytesMut::new();
        body.put_u8(KIND_ENTRIES);
        let mut offsets = Vec::with_capacity(entries.len());
        for entry in entries {
            assert!(last.is_none_or(|last| entry.index > last), "entry {} appended after {last:?}", entry.index);
            last = Some(entry.index);
            body.put_u64_le(entry.index);
            put_bytes(&mut body, &entry.id);
            put_bytes(&mut body, &entry.payload);
            offsets.push(body.len() - entry.payload.len());
        }
        let position = self.write_group(&body)? + GROUP_FIXED as u64;
        for (entry, offset) in entries.iter().zip(offsets) {
            let place = Place { id: entry.id.clone(), position: position + offset as u64, len: entry.payload.len() };
            self.places.insert(entry.index, place);
        }
        Ok(())
    }

    /// Drops the entries from `index` on; returns when that is durable.
    ///
    /// # Errors
    /// After any error the log takes no more writes.
    pub fn truncate_from(&mut self, index: u64) -> Result<(), QuorumError> {
        if self.places.range(index..).next().is_none() {
            return Ok(());
        }
        let mut body = BytesMut::new();
        body.put_u8(KIND_TRUNCATE);
        body.put_u64_le(index);
        self.write_group(&body)?;
        self.places.split_off(&index);
        Ok(())
    }

    /// Drops the entries up to and with `upto`; returns when that is durable. The point may lie behind the last entry.
    ///
    /// # Errors
    /// After any error the log takes no more writes.
    pub fn purge(&mut self, upto: &PurgePoint) -> Result<(), QuorumError> {
        if self.purged.as_ref().is_some_and(|point| point.index >= upto.index) {
            return Ok(());
        }
        let kept = self.places.range(upto.index.saturating_add(1)..).map(|(index, place)| self.load(*index, place));
        let kept = kept.collect::<Result<Vec<_>, _>>()?;
        self.alive()?;
        self.dead = true;
        let mut content = BytesMut::from(&header(Some(upto))[..]);
        for entry in &kept {
            let mut body = BytesMut::new();
            body.put_u8(KIND_ENTRIES);
            body.put_u64_le(entry.index);
            put_bytes(&mut body, &entry.id);
            put_bytes(&mut body, &entry.payload);
            put_group(&mut content, &body);
        }
        replace_file(&*self.disk, &self.path, &content).map_err(QuorumError::io(&self.path))?;
        self.file = self.disk.open(&self.path, OpenMode::Existing).map_err(QuorumError::io(&self.path))?;
        self.places.clear();
        self.recover()?;
        self.dead = false;
        Ok(())
    }

    /// The entries of a range that are there, from its start on, as many as fit into `limit` bytes, but at least one.
    ///
    /// # Errors
    /// The system's.
    pub fn read(&self, range: Range<u64>, limit: usize) -> Result<Vec<QuorumEntry>, QuorumError> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        if range.is_empty() {
            return Ok(entries);
        }
        for (index, place) in self.places.range(range) {
            bytes += place.len;
            if bytes > limit && !entries.is_empty() {
                break;
            }
            entries.push(self.load(*index, place)?);
        }
        Ok(entries)
    }

    fn load(&self, index: u64, place: &Place) -> Result<QuorumEntry, QuorumError> {
        let mut payload = vec![0; place.len];
        read_exact_at(&*self.file, &mut payload, place.position).map_err(QuorumError::io(&self.path))?;
        Ok(QuorumEntry { index, id: place.id.clone(), payload: payload.into() })
    }

    fn alive(&self) -> Result<(), QuorumError> {
        if self.dead { Err(QuorumError::Dead { path: self.path.clone() }) } else { Ok(()) }
    }

    /// Writes and syncs a group; says where it begins.
    fn write_group(&mut self, body: &[u8]) -> Result<u64, QuorumError> {
        self.alive()?;
        let mut group = BytesMut::new();
        put_group(&mut group, body);
        if group.len() > GROUP_MAX {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "entries of more than 64 MiB at once");
            return Err(QuorumError::Io { path: self.path.clone(), source });
        }
        // Until all of it has succeeded, what is on the disk is unknown.
        self.dead = true;
        let position = self.end;
        let end = position + group.len() as u64;
        let sealed = end + SEAL as u64;
        if sealed > self.reserved {
            self.reserved = sealed.next_multiple_of(RESERVE);
            self.file.preallocate(self.reserved).map_err(QuorumError::io(&self.path))?;
        }
        write_all_at(&*self.file, &mut [IoSlice::new(&group)], position).map_err(QuorumError::io(&self.path))?;
        self.file.sync_data().map_err(QuorumError::io(&self.path))?;
        write_all_at(&*self.file, &mut [IoSlice::new(&seal(position, end))], end)
            .map_err(QuorumError::io(&self.path))?;
        self.end = end;
        self.dead = false;
        Ok(position)
    }

    /// Reads the whole file and drops a torn group at its end.
    fn recover(&mut self) -> Result<(), QuorumError> {
        let size = self.file.size().map_err(QuorumError::io(&self.path))?;
        let content_len = usize::try_from(size).map_err(|_| QuorumError::corrupt(&self.path, 0, "it is too large"))?;
        let mut content = vec![0; content_len];
        read_exact_at(&*self.file, &mut content, 0).map_err(QuorumError::io(&self.path))?;
        let content = Bytes::from(content);
        let (purged, mut at) = parse_header(&content).map_err(|why| QuorumError::corrupt(&self.path, 0, why))?;
        self.purged = purged;
        while at < content.len() {
            let Some(body) = group_at(&content, at) else {
                if !is_sealed_end(&content, at) {
                    self.drop_tail(&content, at)?;
                }
                break;
            };
            let len = body.len();
            self.replay(body, at + GROUP_FIXED)?;
            at += GROUP_FIXED + len;
        }
        self.end = at as u64;
        self.reserved = size;
        Ok(())
    }

    /// Cuts the file at a bad group, where nothing valid follows it.
    fn drop_tail(&self, content: &Bytes, at: usize) -> Result<(), QuorumError> {
        let magic = GROUP_MAGIC.to_le_bytes();
        let later = (at + 1..content.len()).filter(|i| content[*i..].starts_with(&magic));
        if later.into_iter().any(|i| group_at(content, i).is_some()) {
            return Err(QuorumError::corrupt(&self.path, at as u64, "a bad group with good ones behind it"));
        }
        if (at..content.len()).any(|i| sealed_at(content, i).is_some_and(|start| start >= at as u64)) {
            return Err(QuorumError::corrupt(&self.path, at as u64, "a bad group that was synced"));
        }
        tracing::warn!(path = %self.path.display(), at, size = content.len(), "a torn write was dropped");
        self.file.truncate(at as u64).map_err(QuorumError::io(&self.path))?;
        self.file.sync_data().map_err(QuorumError::io(&self.path))
    }

    fn replay(&mut self, mut body: Bytes, at: usize) -> Result<(), QuorumError> {
        let path = self.path.clone();
        let whole = body.len();
        let bad = |why| QuorumError::corrupt(&path, at as u64, why);
        match take_u8(&mut body) {
            Some(KIND_TRUNCATE) => {
                let from = take_u64(&mut body).ok_or_else(|| bad("a truncation without an index"))?;
                self.places.split_off(&from);
            }
            Some(KIND_ENTRIES) => {
                while body.has_remaining() {
                    let index = take_u64(&mut body).ok_or_else(|| bad("an entry is cut off"))?;
                    let id = take_bytes(&mut body).ok_or_else(|| bad("an entry's id is cut off"))?;
                    let payload = take_bytes(&mut body).ok_or_else(|| bad("an entry's payload is cut off"))?;
                    if self.places.last_key_value().is_some_and(|(last, _)| index <= *last) {
                        return Err(bad("an entry's index does not ascend"));
                    }
                    let position = (at + whole - body.len() - payload.len()) as u64;
                    // The id is copied: a slice would keep the whole file in memory.
                    let place = Place { id: Bytes::copy_from_slice(&id), position, len: payload.len() };
                    self.places.insert(index, place);
                }
            }
            _ => return Err(bad("a group of an unknown kind: it was written by a newer version")),
        }
        Ok(())
    }
}

fn header(purged: Option<&PurgePoint>) -> BytesMut {
    let mut body = BytesMut::new();
    if let Some(point) = purged {
        body.put_u64_le(point.index);
        put_bytes(&mut body, &point.id);
    }
    let mut out = BytesMut::new();
    out.put_slice(FILE_MAGIC);
    out.put_u32_le(VERSION);
    out.put_u32_le(u32::try_from(body.len()).expect("an identity is small"));
    out.put_u32_le(crc32c(&body));
    out.put_slice(&body);
    out
}

fn parse_header(content: &Bytes) -> Result<(Option<PurgePoint>, usize), &'static str> {
    if content.len() < HEADER_FIXED || !content.starts_with(FILE_MAGIC) {
        return Err("it is not a quorum log");
    }
    let mut fixed = content.slice(FILE_MAGIC.len()..HEADER_FIXED);
    if fixed.get_u32_le() != VERSION {
        return Err("its version is unknown: it was written by a newer version");
    }
    let len = usize::try_from(fixed.get_u32_le()).unwrap_or(usize::MAX);
    let crc = fixed.get_u32_le();
    if len > HEADER_MAX || HEADER_FIXED + len > content.len() {
        return Err("its header is cut off");
    }
    let mut body = content.slice(HEADER_FIXED..HEADER_FIXED + len);
    if crc32c(&body) != crc {
        return Err("its header has a bad checksum");
    }
    if body.is_empty() {
        return Ok((None, HEADER_FIXED));
    }
    let index = take_u64(&mut body).ok_or("its purge point is cut off")?;
    let id = take_bytes(&mut body).ok_or("its purge point is cut off")?;
    Ok((Some(PurgePoint { index, id: Bytes::copy_from_slice(&id) }), HEADER_FIXED + len))
}

/// The body of the valid group at `at`.
fn group_at(content: &Bytes, at: usize) -> Option<Bytes> {
    let mut fixed = content.get(at..at + GROUP_FIXED)?;
    if fixed.get_u32_le() != GROUP_MAGIC {
        return None;
    }
    let len = usize::try_from(fixed.get_u32_le()).ok().filter(|len| (1..=GROUP_MAX).contains(len))?;
    let crc = fixed.get_u32_le();
    let start = at + GROUP_FIXED;
    let body = content.get(start..start + len)?;
    (crc32c(body) == crc).then(|| content.slice(start..start + len))
}

fn put_group(out: &mut BytesMut, body: &[u8]) {
    out.put_u32_le(GROUP_MAGIC);
    out.put_u32_le(u32::try_from(body.len()).unwrap_or(u32::MAX));
    out.put_u32_le(crc32c(body));
    out.put_slice(body);
}

/// What stands at `end` once the group from `start` up to there is synced.
fn seal(start: u64, end: u64) -> BytesMut {
    let mut out = BytesMut::with_capacity(SEAL);
    out.put_u32_le(SEAL_MAGIC);
    out.put_u64_le(start);
    out.put_u32_le(seal_crc(start, end));
    out
}

fn seal_crc(start: u64, end: u64) -> u32 {
    crc32c(&[start.to_le_bytes(), end.to_le_bytes()].concat())
}

/// Where the group starts whose seal stands at `at`.
fn sealed_at(content: &[u8], at: usize) -> Option<u64> {
    let mut seal = content.get(at..at + SEAL)?;
    if seal.get_u32_le() != SEAL_MAGIC {
        return None;
    }
    let start = seal.get_u64_le();
    (seal.get_u32_le() == seal_crc(start, at as u64)).then_some(start)
}

/// Whether the group before `at` has its seal there, and nothing else was begun.
fn is_sealed_end(content: &[u8], at: usize) -> bool {
    sealed_at(content, at).is_some() && content[at + SEAL..].iter().all(|byte| *byte == 0)
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

fn take_u8(from: &mut Bytes) -> Option<u8> {
    from.has_remaining().then(|| from.get_u8())
}

fn take_u64(from: &mut Bytes) -> Option<u64> {
    (from.remaining() >= 8).then(|| from.get_u64_le())
}

fn take_bytes(from: &mut Bytes) -> Option<Bytes> {
    if from.remaining() < 4 {
        return None;
    }
    let len = usize::try_from(from.get_u32_le()).ok()?;
    (from.remaining() >= len).then(|| from.split_to(len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Call, Crash, FaultKind, MemDisk};

    const PATH: &str = "/m/log";

    fn disk() -> MemDisk {
        let disk = MemDisk::new();
        disk.create_dir_all(Path::new("/m")).unwrap();
        disk.crash(Crash::KeepAll);
        disk
    }

    fn open(disk: &MemDisk) -> QuorumLog {
        QuorumLog::open(Arc::new(disk.clone()), Path::new(PATH)).unwrap()
    }

    fn entry(index: u64) -> QuorumEntry {
        QuorumEntry {
            index,
            id: format!("id{index}").into(),
            payload: vec![7; usize::try_from(index % 90).unwrap()].into(),
        }
    }

    fn point(index: u64) -> PurgePoint {
        PurgePoint { index, id: format!("id{index}").into() }
    }

    fn all(log: &QuorumLog) -> Vec<u64> {
        let entries = log.read(0..u64::MAX, usize::MAX).unwrap();
        entries.iter().for_each(|e| assert_eq!(*e, entry(e.index)));
        entries.iter().map(|e| e.index).collect()
    }

    #[test]
    fn entries_truncations_and_purges_are_there_after_a_power_cut() {
        let disk = disk();
        let mut log = open(&disk);
        assert_eq!(log.last(), None);
        log.append(&[entry(0), entry(1), entry(2)]).unwrap();
        log.append(&[entry(3)]).unwrap();
        log.truncate_from(2).unwrap();
        log.append(&[entry(2), entry(3), entry(4)]).unwrap();
        disk.crash(Crash::LoseUnsynced);
        let mut log = open(&disk);
        assert_eq!(all(&log), [0, 1, 2, 3, 4]);
        log.purge(&point(2)).unwrap();
        log.append(&[entry(5)]).unwrap();
        disk.crash(Crash::LoseUnsynced);
        let mut log = open(&disk);
        assert_eq!((all(&log), log.purged()), (vec![3, 4, 5], Some(&point(2))));
        log.purge(&point(9)).unwrap();
        assert_eq!((log.last().unwrap().0, log.len()), (9, 0));
        disk.crash(Crash::LoseUnsynced);
        assert_eq!(open(&disk).purged(), Some(&point(9)));
    }

    #[test]
    fn a_power_cut_at_any_byte_loses_nothing_acknowledged_and_tears_no_call() {
        for cut in 0..400u64 {
            let disk = disk();
            let mut log = open(&disk);
            log.append(&[entry(0), entry(1)]).unwrap();
            // The sync fails, so the call is never acknowledged: it may be there whole, or not at all.
            disk.fail(Call::SyncData, 0, FaultKind::Eio);
            log.append(&[entry(2), entry(3), entry(80)]).unwrap_err();
            assert!(matches!(log.append(&[entry(81)]), Err(QuorumError::Dead { .. })));
            disk.crash(if cut < 200 { Crash::TornAt(cut) } else { Crash::Scatter(cut) });
            let mut log = open(&disk);
            let now = all(&log);
            assert!(now == [0, 1] || now == [0, 1, 2, 3, 80], "{cut}: {now:?}");
            log.append(&[entry(81)]).unwrap();
            disk.crash(Crash::LoseUnsynced);
            assert_eq!(all(&open(&disk)).last(), Some(&81));
        }
    }

    #[test]
    fn a_purge_cut_anywhere_keeps_the_log_or_purges_it() {
        for seed in 0..200 {
            let disk = disk();
            let mut log = open(&disk);
            log.append(&[entry(0), entry(1), entry(2)]).unwrap();
            disk.fail([Call::SyncData, Call::Rename, Call::SyncDir, Call::Write][seed % 4], 0, FaultKind::Eio);
            log.purge(&point(1)).unwrap_err();
            disk.crash(Crash::Scatter(seed as u64));
            let now = all(&open(&disk));
            assert!(now == [0, 1, 2] || now == [2], "{seed}: {now:?}");
        }
    }

    #[test]
    fn a_flipped_bit_in_what_was_synced_is_an_error_that_names_the_file() {
        let disk = disk();
        let mut log = open(&disk);
        (0..3).for_each(|i| log.append(&[entry(i + 50)]).unwrap());
        let size = log.size();
        let file = disk.open(Path::new(PATH), OpenMode::Existing).unwrap();
        for at in 0..size {
            let mut byte = [0u8];
            read_exact_at(&*file, &mut byte, at).unwrap();
            let flipped = [byte[0] ^ 4];
            write_all_at(&*file, &mut [IoSlice::new(&flipped)], at).unwrap();
            let result = QuorumLog::open(Arc::new(disk.fork()), Path::new(PATH));
            match result {
                Err(error @ QuorumError::Corrupt { .. }) => assert!(error.to_string().contains(PATH)),
                other => panic!("{at}: {other:?}"),
            }
            write_all_at(&*file, &mut [IoSlice::new(&byte)], at).unwrap();
        }
        // A seal that rots says nothing.
        for at in size..size + SEAL as u64 {
            let disk = disk.fork();
            let file = disk.open(Path::new(PATH), OpenMode::Existing).unwrap();
            write_all_at(&*file, &mut [IoSlice::new(&[0xff])], at).unwrap();
            assert_eq!(all(&open(&disk)), [50, 51, 52], "{at}");
        }
        let mut log = open(&disk);
        assert_eq!(all(&log), [50, 51, 52]);
        // The next group stands where the seal stood, and has its own.
        log.append(&[entry(53)]).unwrap();
        disk.crash(Crash::KeepAll);
        assert_eq!(all(&open(&disk)), [50, 51, 52, 53]);
    }

    #[test]
    fn a_read_stops_at_its_limit_but_gives_one_entry() {
        let disk = disk();
        let mut log = open(&disk);
        log.append(&(40..50).map(entry).collect::<Vec<_>>()).unwrap();
        let read = |from: u64, limit| log.read(from..50, limit).unwrap().iter().map(|e| e.index).collect::<Vec<_>>();
        assert_eq!(read(41, 0), [41]);
        assert_eq!(read(41, 83), [41, 42]);
        assert_eq!(read(48, 1 << 20), [48, 49]);
    }

    #[test]
    fn a_full_disk_fails_the_append_and_keeps_what_was_there() {
        let disk = disk();
        let mut log = open(&disk);
        log.append(&[entry(1)]).unwrap();
        disk.set_capacity(Some(log.size() + 20));
        let large = QuorumEntry { payload: vec![0; 5 << 20].into(), ..entry(80) };
        log.append(&[large]).unwrap_err();
        disk.set_capacity(None);
        disk.crash(Crash::KeepAll);
        assert_eq!(all(&open(&disk)), [1]);
    }
}
