//! A file system in memory that tells written from durable bytes, crashes on demand, fails on demand, and hangs on demand.
//!
//! Every change that no sync has covered waits in one list, in the order in which it was made. A crash decides for each
//! of them whether it reached the disk; open files of the time before the crash are dead. Laws of real disks that are kept:
//! names and content become durable independently, a write may be torn at any byte, and what is in a directory that is
//! not durable itself is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::Time;

use super::{DirEntry, Disk, DiskFile, OpenMode, Sent, SharedSync, opening};

/// What is sent at once: so little that whoever sends has to go on.
const SEND_MAX: usize = 100_000;

/// What of the changes that were not synced reaches the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// All: the process was killed, the page cache is whole.
    KeepAll,
    /// None.
    LoseUnsynced,
    /// The first so many bytes of writes, with the other changes among them, in the order in which they were made: the
    /// write that is cut is torn there.
    TornAt(u64),
    /// A choice for each by a generator with this seed: kept, lost or torn.
    Scatter(u64),
}

/// A call that can be made to fail.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[expect(missing_docs, reason = "each names a method of Disk or DiskFile")]
pub enum Call {
    Open,
    List,
    Read,
    Write,
    SyncData,
    SyncDir,
    SyncAll,
    Truncate,
    Rename,
    Remove,
    Preallocate,
}

/// How a call fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// An I/O error; nothing happens.
    Eio,
    /// No space left; nothing is written.
    Enospc,
    /// No file descriptor is left; nothing happens.
    Emfile,
    /// Only so many bytes are written; the call succeeds.
    ShortWrite(usize),
    /// A sync says that it is done, and nothing is.
    Lie,
}

/// How often the disk was called.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(missing_docs, reason = "each counts calls of the method of that name")]
pub struct Counters {
    pub opens: u64,
    pub reads: u64,
    pub writes: u64,
    pub data_syncs: u64,
    pub dir_syncs: u64,
    pub all_syncs: u64,
    /// Files open now.
    pub open_now: u64,
    /// The most files that were open at once.
    pub open_max: u64,
}

/// See the module. Clones are handles to the same disk.
#[derive(Clone, Debug, Default)]
pub struct MemDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    generation: u64,
    next_inode: u64,
    live: Image,
    durable: Image,
    unsynced: Vec<Change>,
    locks: BTreeSet<PathBuf>,
    faults: Vec<Fault>,
    /// Every call fails.
    broken: bool,
    gates: Vec<Arc<Barrier>>,
    capacity: Option<u64>,
    /// How many files may be open at once.
    descriptors: Option<u64>,
    /// Bytes reserved for files, beyond what they hold.
    reserved: BTreeMap<u64, u64>,
    counters: Counters,
    /// The wall clock, and when each file was last written by it.
    wall: Time,
    modified: BTreeMap<u64, Time>,
}

#[derive(Clone, Debug, Default)]
struct Image {
    names: BTreeMap<PathBuf, Node>,
    content: BTreeMap<u64, Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Node {
    Dir,
    File(u64),
}

#[derive(Clone, Debug)]
enum Change {
    Write { inode: u64, position: u64, bytes: Vec<u8> },
    Resize { inode: u64, size: u64 },
    Name { path: PathBuf, node: Node },
    Unname { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf },
}

#[derive(Debug)]
struct Fault {
    call: Call,
    skip: u64,
    kind: FaultKind,
}

/// While it lives, reads of some files of a [`MemDisk`] hang, or their opening does.
#[derive(Debug)]
pub struct Gate {
    disk: MemDisk,
    barrier: Arc<Barrier>,
}

#[derive(Debug)]
struct Barrier {
    files: String,
    /// At it hangs who opens such a file, else who reads it.
    opening: bool,
    state: Mutex<Hanging>,
    opened: Condvar,
}

#[derive(Debug, Default)]
struct Hanging {
    open: bool,
    calls: usize,
}

#[derive(Debug)]
struct MemFile {
    disk: MemDisk,
    generation: u64,
    inode: u64,
    path: PathBuf,
    locked: Mutex<bool>,
}

impl MemDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The machine stops and starts again; `how` says what reached the disk.
    pub fn crash(&self, how: Crash) {
        let mut state = self.lock();
        state.generation += 1;
        state.locks.clear();
        state.faults.clear();
        state.counters.open_now = 0;
        let changes = std::mem::take(&mut state.unsynced);
        let mut budget = if let Crash::TornAt(bytes) = how { bytes } else { u64::MAX };
        let mut random = Random(if let Crash::Scatter(seed) = how { seed } else { 0 });
        for change in changes {
            let kept = match how {
                Crash::KeepAll => Some(change),
                Crash::LoseUnsynced => None,
                Crash::TornAt(_) => change.within(&mut budget),
                Crash::Scatter(_) => change.by_chance(&mut random),
            };
            if let Some(kept) = kept {
                state.durable.apply(&kept);
            }
        }
        state.durable.forget_unreachable();
        state.live = state.durable.clone();
    }

    /// Bytes in writes that no sync has covered: the range of [`Crash::TornAt`].
    #[must_use]
    pub fn unsynced_bytes(&self) -> u64 {
        let writes = |change: &Change| if let Change::Write { bytes, .. } = change { bytes.len() as u64 } else { 0 };
        self.lock().unsynced.iter().map(writes).sum()
    }

    /// Lets the call of this kind after `skip` more of them fail, once.
    pub fn fail(&self, call: Call, skip: u64, kind: FaultKind) {
        self.lock().faults.push(Fault { call, skip, kind });
    }

    /// From now on reads of files whose path contains `files` hang, until the gate is dropped.
    #[must_use]
    pub fn hold_reads(&self, files: &str) -> Gate {
        self.hold(files, false)
    }

    /// From now on whoever opens a file whose path contains `files` hangs, until the gate is dropped.
    #[must_use]
    pub fn hold_opens(&self, files: &str) -> Gate {
        self.hold(files, true)
    }

    fn hold(&self, files: &str, opening: bool) -> Gate {
        let files = files.to_owned();
        let barrier = Arc::new(Barrier { files, opening, state: Mutex::default(), opened: Condvar::new() });
        self.lock().gates.push(Arc::clone(&barrier));
        Gate { disk: self.clone(), barrier }
    }

    /// From now on every call fails with an I/O error, or none for that reason.
    pub fn set_broken(&self, broken: bool) {
        self.lock().broken = broken;
    }

    /// No call is to fail any more.
    pub fn forgive(&self) {
        self.lock().faults.clear();
    }

    /// How many calls are still to fail.
    #[must_use]
    pub fn faults_waiting(&self) -> usize {
        self.lock().faults.len()
    }

    /// From now on the files may have this many bytes in all; None is without limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// From now on so many files may be open at once, and directories need one to be looked at or synced; None is without
    /// limit.
    pub fn set_descriptors(&self, most: Option<u64>) {
        self.lock().descriptors = most;
    }

    /// From now on the files may take so many bytes more than they do.
    pub fn leave_space(&self, bytes: u64) {
        let mut state = self.lock();
        state.capacity = Some(state.used() + bytes);
    }

    /// From now on it is so late.
    pub fn set_time(&self, wall: Time) {
        self.lock().wall = wall;
    }

    /// Bytes that all files take, with what is reserved for them.
    #[must_use]
    pub fn space_taken(&self) -> u64 {
        self.lock().used()
    }

    /// How often the disk was called so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.lock().counters
    }

    /// Another disk with what is durable and live on this one now, and nothing in common with it.
    #[must_use]
    pub fn fork(&self) -> MemDisk {
        let state = self.lock();
        let copy = State {
            next_inode: state.next_inode,
            live: state.live.clone(),
            durable: state.durable.clone(),
            unsynced: state.unsynced.clone(),
            wall: state.wall,
            modified: state.modified.clone(),
            ..State::default()
        };
        MemDisk { state: Arc::new(Mutex::new(copy)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }
}

impl Gate {
    /// From now on only those hang that do so already.
    pub fn let_others_pass(&self) {
        self.forget();
    }

    fn forget(&self) {
        self.disk.lock().gates.retain(|gate| !Arc::ptr_eq(gate, &self.barrier));
    }

    /// How many calls hang.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.barrier.lock().calls
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.forget();
        self.barrier.lock().open = true;
        self.barrier.opened.notify_all();
    }
}

impl Barrier {
    /// Returns when the gate is open.
    fn pass(&self) {
        let mut state = self.lock();
        state.calls += 1;
        while !state.open {
            state = self.opened.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.calls -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, Hanging> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The gate that who opens or reads this file has to pass.
    fn gate(&self, path: &Path, opening: bool) -> Option<Arc<Barrier>> {
        let holds = |gate: &&Arc<Barrier>| gate.opening == opening && path.to_string_lossy().contains(&gate.files);
        self.gates.iter().find(holds).cloned()
    }

    fn fault(&mut self, call: Call) -> Option<FaultKind> {
        if self.broken {
            return Some(FaultKind::Eio);
        }
        let mut hit = None;
        for (i, fault) in self.faults.iter_mut().enumerate() {
            if fault.call != call {
                continue;
            }
            if fault.skip == 0 {
                hit = Some(i);
                break;
            }
            fault.skip -= 1;
        }
        hit.map(|i| self.faults.remove(i).kind)
    }

    fn check(&mut self, call: Call) -> io::Result<()> {
        self.check_sync(call).map(drop)
    }

    /// For a call that opens something.
    fn check_opening(&mut self, call: Call) -> io::Result<bool> {
        if self.descriptors.is_some_and(|most| self.counters.open_now >= most) {
            return Err(opening(no_descriptor()));
        }
        self.check_sync(call).map_err(opening)
    }

    /// Whether the sync is to be done.
    fn check_sync(&mut self, call: Call) -> io::Result<bool> {
        match self.fault(call) {
            Some(FaultKind::Eio) => Err(io::Error::from_raw_os_error(5)),
            Some(FaultKind::Enospc) => Err(io::Error::from_raw_os_error(28)),
            Some(FaultKind::Emfile) => Err(no_descriptor()),
            Some(FaultKind::Lie) => Ok(false),
            Some(FaultKind::ShortWrite(_)) | None => Ok(true),
        }
    }

    fn change(&mut self, change: Change) {
        self.live.apply(&change);
        self.unsynced.push(change);
    }

    /// Applies the waiting changes that `which` names to the durable image.
    fn settle(&mut self, which: impl Fn(&Change) -> bool) {
        for change in std::mem::take(&mut self.unsynced) {
            if !which(&change) {
                self.unsynced.push(change);
                continue;
            }
            self.durable.apply(&change);
            if let Change::Rename { from, to } = &change {
                // What waits within a directory goes with it: another one may get its name.
                self.unsynced.iter_mut().for_each(|waiting| waiting.follow(from, to));
            }
        }
    }

    fn room(&self, inode: u64, end: u64) -> u64 {
        let Some(capacity) = self.capacity else { return end };
        let named = self.live.names.values().filter_map(|node| if let Node::File(i) = node { Some(i) } else { None });
        let used: u64 = named.filter(|i| **i != inode).map(|i| self.taken(*i)).sum();
        capacity.saturating_sub(used).max(self.taken(inode)).min(end)
    }

    /// Bytes that all files take.
    fn used(&self) -> u64 {
        let files = self.live.names.values().filter_map(|node| if let Node::File(i) = node { Some(*i) } else { None });
        files.map(|inode| self.taken(inode)).sum()
    }

    /// Bytes that a file takes: what it holds, or what is reserved for it.
    fn taken(&self, inode: u64) -> u64 {
        let held = self.live.content.get(&inode).map_or(0, |content| content.len() as u64);
        held.max(self.reserved.get(&inode).copied().unwrap_or(0))
    }
}

impl Image {
    /// Names in directories that have no name themselves are lost.
    fn forget_unreachable(&mut self) {
        let names = std::mem::take(&mut self.names);
        // Directories come before what is in them.
        for (path, node) in names {
            if path.parent().is_none_or(|dir| dir.as_os_str().is_empty() || self.names.get(dir) == Some(&Node::Dir)) {
                self.names.insert(path, node);
            }
        }
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { inode, position, bytes } => {
                let content = self.content.entry(*inode).or_default();
                let from = usize::try_from(*position).expect("test files are small");
                let end = from + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[from..end].copy_from_slice(bytes);
            }
            Change::Resize { inode, size } => {
                let size = usize::try_from(*size).expect("test files are small");
                self.content.entry(*inode).or_default().resize(size, 0);
            }
            Change::Name { path, node } => {
                self.names.insert(path.clone(), *node);
            }
            Change::Unname { path } => {
                let gone: Vec<PathBuf> = self.names.keys().filter(|p| p.starts_with(path)).cloned().collect();
                for path in gone {
                    // The content stays: a file that is open outlives its name.
                    self.names.remove(&path);
                }
            }
            Change::Rename { from, to } => {
                let moved: Vec<PathBuf> = self.names.keys().filter(|p| p.starts_with(from)).cloned().collect();
                for path in moved {
                    let node = self.names.remove(&path).expect("the name was just listed");
                    self.names.insert(renamed(&path, from, to).expect("the name starts so"), node);
                }
            }
        }
    }
}

/// What the system says where a process has as many files open as it may.
fn no_descriptor() -> io::Error {
    io::Error::from_raw_os_error(24)
}

/// What `path` is called once `from` is called `to`.
fn renamed(path: &Path, from: &Path, to: &Path) -> Option<PathBuf> {
    let rest = path.strip_prefix(from).ok()?;
    Some(if rest.as_os_str().is_empty() { to.to_path_buf() } else { to.join(rest) })
}

impl Change {
    /// A directory that it is in has another name.
    fn follow(&mut self, old: &Path, new: &Path) {
        let paths = match self {
            Change::Name { path, .. } | Change::Unname { path } => vec![path],
            Change::Rename { from, to } => vec![from, to],
            Change::Write { .. } | Change::Resize { .. } => Vec::new(),
        };
        for path in paths {
            if let Some(moved) = renamed(path, old, new) {
                *path = moved;
            }
        }
    }

    /// The part of this change that fits into `budget` bytes of writes.
    fn within(self, budget: &mut u64) -> Option<Change> {
        if *budget == 0 {
            return None;
        }
        let Change::Write { inode, position, mut bytes } = self else { return Some(self) };
        let kept = (*budget).min(bytes.len() as u64);
        *budget -= kept;
        bytes.truncate(usize::try_from(kept).expect("not more than there are bytes"));
        Some(Change::Write { inode, position, bytes })
    }

    fn by_chance(self, random: &mut Random) -> Option<Change> {
        let choice = random.next() % 4;
        match self {
            _ if choice == 0 => None,
            Change::Write { inode, position, mut bytes } if choice == 1 => {
                let kept = random.next() % (bytes.len() as u64 + 1);
                bytes.truncate(usize::try_from(kept).expect("not more than there are bytes"));
                Some(Change::Write { inode, position, bytes })
            }
            all => Some(all),
        }
    }

    fn is_content_of(&self, file: u64) -> bool {
        matches!(self, Change::Write { inode, .. } | Change::Resize { inode, .. } if *inode == file)
    }

    fn is_name_in(&self, dir: &Path) -> bool {
        match self {
            Change::Name { path, .. } | Change::Unname { path } => path.parent() == Some(dir),
            Change::Rename { from, to } => from.parent() == Some(dir) || to.parent() == Some(dir),
            Change::Write { .. } | Change::Resize { .. } => false,
        }
    }
}

impl Disk for MemDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let gate = self.lock().gate(path, true);
        if let Some(gate) = gate {
            gate.pass();
        }
        let mut state = self.lock();
        state.counters.opens += 1;
        state.check_opening(Call::Open)?;
        let inode = match state.live.names.get(path) {
            Some(Node::File(inode)) => *inode,
            Some(Node::Dir) => return Err(io::ErrorKind::IsADirectory.into()),
            None if matches!(mode, OpenMode::ReadOnly | OpenMode::Existing) => {
                return Err(io::ErrorKind::NotFound.into());
            }
            None => {
                let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
                if state.live.names.get(parent) != Some(&Node::Dir) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                state.next_inode += 1;
                let inode = state.next_inode;
                state.change(Change::Name { path: path.to_owned(), node: Node::File(inode) });
                state.change(Change::Resize { inode, size: 0 });
                inode
            }
        };
        if mode == OpenMode::Truncate {
            state.change(Change::Resize { inode, size: 0 });
        }
        state.counters.open_now += 1;
        state.counters.open_max = state.counters.open_max.max(state.counters.open_now);
        let generation = state.generation;
        drop(state);
        let (disk, path) = (self.clone(), path.to_owned());
        Ok(Arc::new(MemFile { disk, generation, inode, path, locked: Mutex::new(false) }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let mut missing: Vec<&Path> = path.ancestors().filter(|p| !p.as_os_str().is_empty()).collect();
        missing.reverse();
        for dir in missing {
            match state.live.names.get(dir) {
                Some(Node::Dir) => {}
                Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                // The root is always there.
                None if dir.parent().is_none() => {
                    state.live.names.insert(dir.to_owned(), Node::Dir);
                    state.durable.names.insert(dir.to_owned(), Node::Dir);
                }
                None => state.change(Change::Name { path: dir.to_owned(), node: Node::Dir }),
            }
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut state = self.lock();
        state.check_opening(Call::List)?;
        if state.live.names.get(dir) != Some(&Node::Dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inside = state.live.names.iter().filter(|(path, _)| path.parent() == Some(dir));
        let entry = |(path, node): (&PathBuf, &Node)| {
            Some(DirEntry { name: path.file_name()?.to_str()?.to_owned(), is_dir: *node == Node::Dir })
        };
        let mut entries: Vec<DirEntry> = inside.filter_map(entry).collect();
        entries.sort_unstable();
        Ok(entries)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.check(Call::Rename)?;
        if !state.live.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change(Change::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.check(Call::Remove)?;
        match state.live.names.get(path) {
            Some(Node::File(_)) => {}
            Some(Node::Dir) => return Err(io::ErrorKind::IsADirectory.into()),
            None => return Err(io::ErrorKind::NotFound.into()),
        }
        state.change(Change::Unname { path: path.to_owned() });
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.check_opening(Call::Remove)?;
        if !state.live.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change(Change::Unname { path: path.to_owned() });
        Ok(())
    }

    fn space(&self, _path: &Path) -> io::Result<(u64, u64)> {
        let state = self.lock();
        let Some(capacity) = state.capacity else { return Err(io::ErrorKind::Unsupported.into()) };
        Ok((capacity, capacity.saturating_sub(state.used())))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.counters.dir_syncs += 1;
        if state.check_opening(Call::SyncDir)? {
            state.settle(|change| change.is_name_in(dir));
        }
        Ok(())
    }

    fn shared_sync(&self, _dir: &Path) -> Option<Arc<dyn SharedSync>> {
        Some(Arc::new(self.clone()))
    }
}

impl SharedSync for MemDisk {
    fn is_worth(&self, _files: usize, _each: Duration) -> bool {
        true
    }

    fn sync_all(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.counters.all_syncs += 1;
        if state.check_sync(Call::SyncAll)? {
            state.settle(|_| true);
        }
        Ok(())
    }
}

impl MemFile {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.lock();
        if state.generation != self.generation {
            return Err(io::Error::other("the disk crashed since this file was opened"));
        }
        Ok(state)
    }
}

impl DiskFile for MemFile {
    fn read_at(&self, into: &mut [u8], position: u64) -> io::Result<usize> {
        let gate = self.state()?.gate(&self.path, false);
        if let Some(gate) = gate {
            gate.pass();
        }
        let mut state = self.state()?;
        state.counters.reads += 1;
        state.check(Call::Read)?;
        let Some(content) = state.live.content.get(&self.inode) else { return Ok(0) };
        let from = usize::try_from(position).unwrap_or(usize::MAX).min(content.len());
        let length = into.len().min(content.len() - from);
        into[..length].copy_from_slice(&content[from..from + length]);
        Ok(length)
    }

    fn write_at(&self, from: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        let mut state = self.state()?;
        state.counters.writes += 1;
        let mut bytes: Vec<u8> = from.iter().flat_map(|slice| slice.iter().copied()).collect();
        match state.fault(Call::Write) {
            Some(FaultKind::Eio) => return Err(io::Error::from_raw_os_error(5)),
            Some(FaultKind::Enospc) => return Err(io::Error::from_raw_os_error(28)),
            Some(FaultKind::Emfile) => return Err(no_descriptor()),
            Some(FaultKind::ShortWrite(length)) => bytes.truncate(length),
            Some(FaultKind::Lie) | None => {}
        }
        let end = state.room(self.inode, position + bytes.len() as u64);
        if end <= position && !bytes.is_empty() {
            return Err(io::Error::from_raw_os_error(28));
        }
        bytes.truncate(usize::try_from(end - position).expect("not more than there are bytes"));
        let (written, wall) = (bytes.len(), state.wall);
        state.modified.insert(self.inode, wall);
        state.change(Change::Write { inode: self.inode, position, bytes });
        Ok(written)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state()?;
        state.counters.data_syncs += 1;
        if state.check_sync(Call::SyncData)? {
            state.settle(|change| change.is_content_of(self.inode));
        }
        Ok(())
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        let mut state = self.state()?;
        state.check(Call::Truncate)?;
        // As ext4 and XFS do, also where the size stays.
        state.reserved.remove(&self.inode);
        state.change(Change::Resize { inode: self.inode, size });
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        let state = self.state()?;
        Ok(state.live.content.get(&self.inode).map_or(0, |content| content.len() as u64))
    }

    fn modified(&self) -> io::Result<Time> {
        Ok(self.state()?.modified.get(&self.inode).copied().unwrap_or_default())
    }

    fn preallocate(&self, size: u64) -> io::Result<()> {
        let mut state = self.state()?;
        let faulty = state.check(Call::Preallocate);
        // As ext4: what there is, is reserved all the same.
        let room = state.room(self.inode, size).min(if faulty.is_err() { size / 2 } else { size });
        let reserved = state.reserved.entry(self.inode).or_default();
        *reserved = room.max(*reserved);
        faulty?;
        if room < size { Err(io::Error::from_raw_os_error(28)) } else { Ok(()) }
    }

    fn try_lock(&self) -> io::Result<bool> {
        let mut state = self.state()?;
        let taken = state.locks.insert(self.path.clone());
        let mut locked = self.locked.lock().expect("no holder of the lock panics");
        let held = taken || *locked;
        *locked = held;
        Ok(held)
    }

    fn can_send(&self) -> bool {
        true
    }

    fn send_to(&self, socket: BorrowedFd<'_>, position: u64, len: usize) -> io::Result<Sent> {
        let mut bytes = vec![0; len.min(SEND_MAX)];
        match self.read_at(&mut bytes, position)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(Sent::Bytes(rustix::io::write(socket, &bytes[..read])?)),
        }
    }
}

impl Drop for MemFile {
    fn drop(&mut self) {
        let Ok(mut state) = self.state() else { return };
        state.counters.open_now -= 1;
        if *self.locked.lock().expect("no holder of the lock panics") {
            state.locks.remove(&self.path);
        }
    }
}

/// A small generator (xorshift64*), so that a crash is a function of its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        let mut x = self.0 ^ 0x9e37_79b9_7f4a_7c15;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0 = x;
        x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }
}
