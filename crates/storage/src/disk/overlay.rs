//! A disk that lies over another one: it reads through, and keeps every change in memory. What a start would do to a
//! directory can so be found out by doing it, and nothing below is touched.
//!
//! Invariants: nothing below is opened for writing. Memory is that of the pages written and of the names changed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::Time;

use super::{DirEntry, Disk, DiskFile, OpenMode, read_exact_at};

/// Bytes that are kept together.
const PAGE: usize = 4096;

/// See the module.
#[derive(Debug)]
pub struct OverlayDisk {
    below: Arc<dyn Disk>,
    /// What differs from below, by path.
    names: Mutex<BTreeMap<PathBuf, Node>>,
}

#[derive(Clone, Debug)]
enum Node {
    Gone,
    Dir,
    File(Arc<OverlayFile>),
}

#[derive(Debug)]
struct OverlayFile {
    below: Option<Arc<dyn DiskFile>>,
    content: Mutex<Content>,
    locked: AtomicBool,
}

#[derive(Debug, Default)]
struct Content {
    size: u64,
    /// So many bytes of the file below still count.
    shown: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

#[derive(Debug)]
struct Handle {
    file: Arc<OverlayFile>,
    holds_lock: AtomicBool,
}

impl OverlayDisk {
    /// Over `below`, which stays as it is.
    #[must_use]
    pub fn over(below: Arc<dyn Disk>) -> Self {
        Self { below, names: Mutex::default() }
    }

    fn names(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Node>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `path` is hidden because a directory above it went away.
    fn is_hidden(names: &BTreeMap<PathBuf, Node>, path: &Path) -> bool {
        // The nearest word counts: a directory may have been made again.
        path.ancestors().find_map(|above| names.get(above)).is_some_and(|node| matches!(node, Node::Gone))
    }

    fn is_dir(&self, names: &BTreeMap<PathBuf, Node>, path: &Path) -> bool {
        match names.get(path) {
            Some(node) => matches!(node, Node::Dir),
            None => !Self::is_hidden(names, path) && self.below.list(path).is_ok(),
        }
    }

    /// The file at `path`, as it is seen now.
    fn file(&self, names: &mut BTreeMap<PathBuf, Node>, path: &Path) -> io::Result<Arc<OverlayFile>> {
        match names.get(path) {
            Some(Node::File(file)) => return Ok(Arc::clone(file)),
            Some(Node::Dir) => return Err(io::ErrorKind::IsADirectory.into()),
            Some(Node::Gone) => return Err(io::ErrorKind::NotFound.into()),
            None if Self::is_hidden(names, path) => return Err(io::ErrorKind::NotFound.into()),
            None => {}
        }
        let below = self.below.open(path, OpenMode::ReadOnly)?;
        let size = below.size()?;
        let content = Mutex::new(Content { size, shown: size, pages: BTreeMap::new() });
        let file = Arc::new(OverlayFile { below: Some(below), content, locked: AtomicBool::new(false) });
        names.insert(path.to_owned(), Node::File(Arc::clone(&file)));
        Ok(file)
    }

    fn list_in(&self, names: &BTreeMap<PathBuf, Node>, dir: &Path) -> io::Result<Vec<DirEntry>> {
        if !self.is_dir(names, dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut entries = BTreeSet::new();
        if !names.contains_key(dir) && !Self::is_hidden(names, dir) {
            let seen = self.below.list(dir)?;
            entries.extend(seen.into_iter().filter(|entry| !names.contains_key(&dir.join(&entry.name))));
        }
        for (path, node) in names.iter().filter(|(path, _)| path.parent() == Some(dir)) {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if !matches!(node, Node::Gone) {
                entries.insert(DirEntry { name: name.to_owned(), is_dir: matches!(node, Node::Dir) });
            }
        }
        Ok(entries.into_iter().collect())
    }

    fn rename_in(&self, names: &mut BTreeMap<PathBuf, Node>, from: &Path, to: &Path) -> io::Result<()> {
        if self.is_dir(names, from) {
            let inside = self.list_in(names, from)?;
            names.insert(to.to_owned(), Node::Dir);
            for entry in inside {
                self.rename_in(names, &from.join(&entry.name), &to.join(&entry.name))?;
            }
        } else {
            let file = self.file(names, from)?;
            names.insert(to.to_owned(), Node::File(file));
        }
        names.insert(from.to_owned(), Node::Gone);
        Ok(())
    }
}

impl Disk for OverlayDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut names = self.names();
        let makes = matches!(mode, OpenMode::Create | OpenMode::Truncate);
        let file = match self.file(&mut names, path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && makes => {
                if !path.parent().is_some_and(|dir| self.is_dir(&names, dir)) {
                    return Err(error);
                }
                let (content, locked) = (Mutex::default(), AtomicBool::new(false));
                let made = Arc::new(OverlayFile { below: None, content, locked });
                names.insert(path.to_owned(), Node::File(Arc::clone(&made)));
                made
            }
            found => found?,
        };
        if mode == OpenMode::Truncate {
            file.resize(0);
        }
        Ok(Arc::new(Handle { file, holds_lock: AtomicBool::new(false) }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut names = self.names();
        for dir in path.ancestors().filter(|dir| !dir.as_os_str().is_empty()) {
            if self.is_dir(&names, dir) {
                break;
            }
            names.insert(dir.to_owned(), Node::Dir);
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.list_in(&self.names(), dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.rename_in(&mut self.names(), from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut names = self.names();
        self.file(&mut names, path)?;
        names.insert(path.to_owned(), Node::Gone);
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut names = self.names();
        if !self.is_dir(&names, path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        names.retain(|other, _| !other.starts_with(path));
        names.insert(path.to_owned(), Node::Gone);
        Ok(())
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        self.below.space(path)
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

impl OverlayFile {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn resize(&self, size: u64) {
        let mut content = self.content();
        content.shown = content.shown.min(size);
        if size < content.size {
            content.pages.retain(|number, _| number * (PAGE as u64) < size);
            let (number, inside) = split(size);
            if let Some(page) = content.pages.get_mut(&number) {
                page[inside..].fill(0);
            }
        }
        content.size = size;
    }

    /// The page as it is seen, kept from now on.
    fn page<'a>(&self, content: &'a mut Content, number: u64) -> io::Result<&'a mut Box<[u8]>> {
        if !content.pages.contains_key(&number) {
            let mut page = vec![0; PAGE].into_boxed_slice();
            self.read_below(content, &mut page, number * PAGE as u64)?;
            content.pages.insert(number, page);
        }
        Ok(content.pages.get_mut(&number).expect("it was inserted"))
    }

    /// Fills `into` with what is below, and with zeros where nothing is.
    fn read_below(&self, content: &Content, into: &mut [u8], position: u64) -> io::Result<()> {
        let there = usize::try_from(content.shown.saturating_sub(position)).unwrap_or(usize::MAX).min(into.len());
        into[there..].fill(0);
        match &self.below {
            Some(below) if there > 0 => read_exact_at(&**below, &mut into[..there], position),
            _ => Ok(()),
        }
    }
}

impl DiskFile for Handle {
    fn read_at(&self, into: &mut [u8], position: u64) -> io::Result<usize> {
        let content = self.file.content();
        let there = usize::try_from(content.size.saturating_sub(position)).unwrap_or(usize::MAX).min(into.len());
        let into = &mut into[..there];
        self.file.read_below(&content, into, position)?;
        let end = position + there as u64;
        for (number, page) in content.pages.range(position / PAGE as u64..end.div_ceil(PAGE as u64)) {
            let start = number * PAGE as u64;
            let (from, to) = (position.max(start), end.min(start + PAGE as u64));
            let at = |place: u64, base: u64| usize::try_from(place - base).expect("within a page or the buffer");
            into[at(from, position)..at(to, position)].copy_from_slice(&page[at(from, start)..at(to, start)]);
        }
        Ok(there)
    }

    fn write_at(&self, from: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
        let mut content = self.file.content();
        let mut at = position;
        for slice in from {
            let mut rest: &[u8] = slice;
            while !rest.is_empty() {
                let (number, inside) = split(at);
                let taken = rest.len().min(PAGE - inside);
                let page = self.file.page(&mut content, number)?;
                page[inside..inside + taken].copy_from_slice(&rest[..taken]);
                rest = &rest[taken..];
                at += taken as u64;
            }
        }
        content.size = content.size.max(at);
        Ok(usize::try_from(at - position).unwrap_or(usize::MAX))
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.file.resize(size);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.content().size)
    }

    fn modified(&self) -> io::Result<Time> {
        // Nobody asks an overlay for the age of what it was given itself.
        self.file.below.as_ref().map_or(Ok(Time(0)), |below| below.modified())
    }

    fn preallocate(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn try_lock(&self) -> io::Result<bool> {
        if !self.holds_lock.load(Ordering::Relaxed) && self.file.locked.swap(true, Ordering::AcqRel) {
            return Ok(false);
        }
        self.holds_lock.store(true, Ordering::Relaxed);
        Ok(true)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.holds_lock.load(Ordering::Relaxed) {
            self.file.locked.store(false, Ordering::Release);
        }
    }
}

/// The page that a position is in, and where in it.
fn split(position: u64) -> (u64, usize) {
    let inside = usize::try_from(position % PAGE as u64).expect("less than a page");
    (position / PAGE as u64, inside)
}
