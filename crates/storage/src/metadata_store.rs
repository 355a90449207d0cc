//! The node's own copy of the metadata image in sled, which saves replay time at a restart and nothing else (`R73`).
//!
//! Entries are keyed, so that a change of the image is a change of a few of them. A commit writes the changed entries, the
//! caller's description of the state (log position, membership), the lineage and an order-free digest of all entries in one
//! sled batch; opening checks the digest over a full scan.
//!
//! Invariants: what opens is exactly what one commit left, or nothing. A directory that is broken, of another lineage or
//! of another version is moved aside and a new one is begun. After any error or panic the store is closed and every commit
//! says so: the node goes on in memory. sled's flush is no fsync, so nothing here is ever relied on (`R72`).

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;

/// The entries of a store.
pub type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// What was found at opening.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredState {
    /// The caller's description of it.
    pub position: Bytes,
    /// All entries.
    pub entries: Entries,
}

/// Why a store is not usable; it only costs replay time.
#[derive(thiserror::Error, Debug)]
pub enum StoreError {
    /// sled's error.
    #[error("sled: {0}")]
    Sled(#[from] sled::Error),
    /// The system's error.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// sled panicked.
    #[error("sled panicked: {0}")]
    Panicked(String),
    /// The content is not what one commit left.
    #[error("the store is damaged: {0}")]
    Damaged(&'static str),
    /// A value is larger than sled takes well.
    #[error("an entry of {0} bytes is too large for the store")]
    TooLarge(usize),
    /// An earlier error closed it.
    #[error("the store is closed")]
    Closed,
}

const VERSION: &[u8] = b"1";
/// Between two flushes. After each sled cleans its file, and with a large image it finds a page or two to write anew every time:
/// that is half a percent of a processor for ever where it flushes as often as by default.
const FLUSH_MS: u64 = 10_000;
/// How long a lock is waited for: far above what sled's threads need to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Entries' keys begin with this; those of the store itself do not.
const ENTRY: u8 = b'e';
const KEY_VERSION: &[u8] = b"version";
const KEY_LINEAGE: &[u8] = b"lineage";
const KEY_POSITION: &[u8] = b"position";
const KEY_DIGEST: &[u8] = b"digest";
const VALUE_MAX: usize = 64 << 10;

/// See the module.
#[derive(Debug)]
pub struct MetadataStore {
    db: Option<sled::Db>,
    lineage: Bytes,
    digest: u128,
}

impl MetadataStore {
    /// Opens the store at `path` for this lineage (which quorum, which directory). What cannot be used is moved aside.
    /// Never fails: the worst is a closed store and nothing found.
    pub fn open(path: &Path, lineage: &[u8]) -> (MetadataStore, Option<StoredState>) {
        match guarded(|| open_db(path, lineage)) {
            Ok((db, digest, state)) => {
                (MetadataStore { db: Some(db), lineage: Bytes::copy_from_slice(lineage), digest }, state)
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the metadata store is rebuilt");
                (Self::begin(path, lineage), None)
            }
        }
    }

    /// Moves aside what is there and begins an empty store.
    #[must_use]
    pub fn begin(path: &Path, lineage: &[u8]) -> MetadataStore {
        let begun = guarded(|| {
            move_aside(path)?;
            Ok(open_db(path, lineage)?.0)
        });
        let db = begun.inspect_err(|error| tracing::warn!(path = %path.display(), %error, "no metadata store")).ok();
        MetadataStore { db, lineage: Bytes::copy_from_slice(lineage), digest: 0 }
    }

    /// Whether commits still have an effect.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.db.is_some()
    }

    /// Changes entries (`None` removes one) and the position, in one batch.
    ///
    /// # Errors
    /// After any error the store is closed.
    pub fn commit(&mut self, changes: &BTreeMap<Vec<u8>, Option<Vec<u8>>>, position: &[u8]) -> Result<(), StoreError> {
        let db = self.db.take().ok_or(StoreError::Closed)?;
        let digest = guarded(|| write(&db, &self.lineage, self.digest, changes, position))?;
        self.digest = digest;
        self.db = Some(db);
        Ok(())
    }

    /// Puts `entries` in the place of all that is there, in one batch.
    ///
    /// # Errors
    /// After any error the store is closed.
    pub fn replace(&mut self, entries: Entries, position: &[u8]) -> Result<(), StoreError> {
        let db = self.db.take().ok_or(StoreError::Closed)?;
        let keys = guarded(|| Ok(db.scan_prefix([ENTRY]).keys().collect::<Result<Vec<_>, _>>()?))?;
        self.db = Some(db);
        let gone = keys.iter().map(|key| (key[1..].to_vec(), None));
        let mut changes: BTreeMap<_, _> = gone.collect();
        changes.extend(entries.into_iter().map(|(key, value)| (key, Some(value))));
        self.commit(&changes, position)
    }

    /// Writes what sled still holds in memory.
    ///
    /// # Errors
    /// After any error the store is closed.
    pub fn flush(&mut self) -> Result<(), StoreError> {
        let db = self.db.take().ok_or(StoreError::Closed)?;
        guarded(|| Ok(db.flush().map(drop)?))?;
        self.db = Some(db);
        Ok(())
    }
}

/// Runs `job` and makes an error of a panic.
fn guarded<T>(job: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(StoreError::Panicked(text.unwrap_or_default()))
    })
}

fn open_db(path: &Path, lineage: &[u8]) -> Result<(sled::Db, u128, Option<StoredState>), StoreError> {
    let config = sled::Config::default().path(path).cache_capacity(16 << 20).flush_every_ms(Some(FLUSH_MS));
    let db = open_unlocked(&config)?;
    if db.is_empty() {
        return Ok((db, 0, None));
    }
    if db.get(KEY_VERSION)?.as_deref() != Some(VERSION) {
        return Err(StoreError::Damaged("it is of another version"));
    }
    if db.get(KEY_LINEAGE)?.as_deref() != Some(lineage) {
        return Err(StoreError::Damaged("it belongs to another quorum or directory"));
    }
    let position = db.get(KEY_POSITION)?.ok_or(StoreError::Damaged("it has no position"))?;
    let mut entries = Entries::new();
    let mut digest = 0u128;
    for entry in db.scan_prefix([ENTRY]) {
        let (key, value) = entry?;
        digest ^= hash(&key[1..], &value);
        entries.insert(key[1..].to_vec(), value.to_vec());
    }
    if db.get(KEY_DIGEST)?.as_deref() != Some(&seal(digest, &position)[..]) {
        return Err(StoreError::Damaged("its digest is not that of its entries"));
    }
    Ok((db, digest, Some(StoredState { position: Bytes::copy_from_slice(&position), entries })))
}

/// A store of this process that was just closed may hold its lock for a moment: sled's threads let go of it last. Nobody else has
/// it, as the directory above has a lock of its own.
fn open_unlocked(config: &sled::Config) -> Result<sled::Db, StoreError> {
    let since = Instant::now();
    loop {
        match config.open() {
            Err(sled::Error::Io(error)) if is_locked(&error) && since.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => return Ok(opened?),
        }
    }
}

/// sled gives the reason as text only.
fn is_locked(error: &std::io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

fn write(
    db: &sled::Db,
    lineage: &[u8],
    mut digest: u128,
    changes: &BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    position: &[u8],
) -> Result<u128, StoreError> {
    let mut batch = sled::Batch::default();
    for (name, value) in changes {
        let mut key = vec![ENTRY];
        key.extend_from_slice(name);
        if let Some(old) = db.get(&key)? {
            digest ^= hash(name, &old);
        }
        match value {
            Some(value) if value.len() > VALUE_MAX => return Err(StoreError::TooLarge(value.len())),
            Some(value) => {
                digest ^= hash(name, value);
                batch.insert(key, value.as_slice());
            }
            None => batch.remove(key),
        }
    }
    batch.insert(KEY_VERSION, VERSION);
    batch.insert(KEY_LINEAGE, lineage);
    batch.insert(KEY_POSITION, position);
    batch.insert(KEY_DIGEST, &seal(digest, position)[..]);
    db.apply_batch(batch)?;
    Ok(digest)
}

/// The digest as it is stored: it also covers the position.
fn seal(digest: u128, position: &[u8]) -> [u8; 16] {
    (digest ^ hash(b"", position)).to_le_bytes()
}

/// FNV-1a of 128 bits over both parts: against damage, not against an adversary.
fn hash(key: &[u8], value: &[u8]) -> u128 {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    let len = (key.len() as u64).to_le_bytes();
    for byte in len.iter().chain(key).chain(value) {
        hash = (hash ^ u128::from(*byte)).wrapping_mul(PRIME);
    }
    hash
}

/// Renames what is at `path`, replacing what was moved aside before.
fn move_aside(path: &Path) -> Result<(), StoreError> {
    if !path.exists() {
        return Ok(());
    }
    let mut aside = path.as_os_str().to_owned();
    aside.push(".broken");
    let aside = PathBuf::from(aside);
    if aside.is_dir() {
        std::fs::remove_dir_all(&aside)?;
    } else if aside.exists() {
        std::fs::remove_file(&aside)?;
    }
    Ok(std::fs::rename(path, aside)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(pairs: &[(&str, Option<&str>)]) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
        pairs.iter().map(|(k, v)| (k.as_bytes().to_vec(), v.map(|v| v.as_bytes().to_vec()))).collect()
    }

    fn filled(path: &Path) {
        let (mut store, found) = MetadataStore::open(path, b"line");
        assert_eq!(found, None);
        store.commit(&change(&[("a", Some("1")), ("b", Some("2"))]), b"at 1").unwrap();
        store.commit(&change(&[("a", None), ("b", Some("3")), ("c", Some("4"))]), b"at 2").unwrap();
        store.flush().unwrap();
    }

    fn state() -> StoredState {
        let entries = change(&[("b", Some("3")), ("c", Some("4"))]).into_iter();
        let entries = entries.map(|(k, v)| (k, v.unwrap())).collect();
        StoredState { position: "at 2".into(), entries }
    }

    #[test]
    fn a_store_gives_what_the_last_commit_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        filled(&path);
        assert_eq!(MetadataStore::open(&path, b"line").1, Some(state()));
    }

    #[test]
    fn a_store_that_is_replaced_holds_the_new_entries_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        filled(&path);
        let (mut store, _) = MetadataStore::open(&path, b"line");
        let entries: Entries = [(b"n".to_vec(), b"1".to_vec())].into_iter().collect();
        store.replace(entries.clone(), b"at 9").unwrap();
        store.flush().unwrap();
        drop(store);
        let found = MetadataStore::open(&path, b"line").1;
        assert_eq!(found, Some(StoredState { position: "at 9".into(), entries }));
    }

    #[test]
    fn a_store_of_another_lineage_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        filled(&path);
        let (store, found) = MetadataStore::open(&path, b"other");
        assert_eq!((store.is_open(), found), (true, None));
        assert!(dir.path().join("image.broken").is_dir());
    }

    #[test]
    fn entries_that_do_not_fit_their_digest_are_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        filled(&path);
        let db = open_unlocked(&sled::Config::default().path(&path)).unwrap();
        db.insert(b"eb", b"9").unwrap();
        db.flush().unwrap();
        drop(db);
        assert_eq!(MetadataStore::open(&path, b"line").1, None);
    }

    #[test]
    fn a_truncated_or_noisy_directory_is_rebuilt_and_works() {
        for damage in 0..6usize {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("image");
            filled(&path);
            let mut files = Vec::new();
            for file in std::fs::read_dir(&path).unwrap() {
                let file = file.unwrap().path();
                if file.is_file() {
                    files.push(file);
                }
            }
            files.sort();
            for file in &files {
                let mut content = std::fs::read(file).unwrap();
                match damage {
                    0 => content.clear(),
                    1 => content.truncate(content.len() / 2),
                    2 => content.truncate(content.len().saturating_sub(1)),
                    3 => content.iter_mut().enumerate().for_each(|(i, b)| *b = u8::try_from(i * 7 % 251).unwrap()),
                    4 => content.iter_mut().step_by(3).for_each(|b| *b ^= 0x55),
                    _ => content.extend_from_slice(&[0xa5; 700]),
                }
                std::fs::write(file, content).unwrap();
            }
            let (mut store, found) = MetadataStore::open(&path, b"line");
            // sled may recover an earlier commit, or the last: never a mixture.
            let entries = [("a", "1"), ("b", "2")].map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec()));
            let first = StoredState { position: "at 1".into(), entries: entries.into_iter().collect() };
            let known = [None, Some(first), Some(state())];
            assert!(known.contains(&found), "{damage}: {found:?}");
            if store.is_open() {
                store.commit(&change(&[("z", Some("26"))]), b"at 3").unwrap();
            }
        }
    }

    #[test]
    fn a_file_in_the_place_of_the_directory_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, b"no directory").unwrap();
        let (store, found) = MetadataStore::open(&path, b"line");
        assert_eq!((store.is_open(), found), (true, None));
    }

    #[test]
    fn an_entry_that_is_too_large_closes_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, _) = MetadataStore::open(&dir.path().join("image"), b"line");
        let large = [(b"k".to_vec(), Some(vec![0; VALUE_MAX + 1]))].into_iter().collect();
        assert!(matches!(store.commit(&large, b"at 1"), Err(StoreError::TooLarge(_))));
        assert!(matches!(store.commit(&BTreeMap::new(), b"at 2"), Err(StoreError::Closed)));
    }
}
