//! The directory of a local cluster: `DIR/node-N` for each node, and `DIR/.lock` held as long as `ottla local` runs.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::LocalOptions;
use crate::properties;

/// See the module.
#[derive(Debug)]
pub(super) struct ClusterDir {
    path: PathBuf,
    ephemeral: bool,
    _lock: File,
}

impl ClusterDir {
    /// Takes the directory, or says who has it, or that it holds a cluster of another size.
    pub(super) fn open(options: &LocalOptions) -> Result<ClusterDir> {
        let path = if options.ephemeral { create_temporary()? } else { create(options)? };
        let lock = lock(&path)?;
        if let Some(count) = nodes_of(&path) {
            ensure!(
                count == usize::from(options.nodes),
                "{} holds a cluster of {count} nodes: give --nodes {count}, or another --data",
                path.display()
            );
        }
        Ok(ClusterDir { path, ephemeral: options.ephemeral, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_ephemeral(&self) -> bool {
        self.ephemeral
    }

    pub(super) fn node(&self, id: u16) -> PathBuf {
        self.path.join(format!("node-{id}"))
    }
}

impl Drop for ClusterDir {
    fn drop(&mut self) {
        if self.ephemeral {
            // A directory that stays behind is only untidy.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

fn create(options: &LocalOptions) -> Result<PathBuf> {
    let path = options.data.clone().unwrap_or_else(|| PathBuf::from("ottla-data"));
    std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(std::path::absolute(&path)?)
}

/// A directory that was not there: what an earlier cluster left is never taken up.
fn create_temporary() -> Result<PathBuf> {
    for attempt in 0..1000 {
        let path = std::env::temp_dir().join(format!("ottla-{}-{attempt}", std::process::id()));
        match std::fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("cannot create {}", path.display())),
        }
    }
    bail!("{} is full of directories of earlier clusters", std::env::temp_dir().display())
}

fn lock(directory: &Path) -> Result<File> {
    let path = directory.join(".lock");
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid)?;
            bail!(
                "{} is in use by `ottla local`, process {}: stop it with Ctrl-C or `kill`, or give another --data",
                directory.display(),
                pid.trim()
            )
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// How many nodes the cluster in a directory has: as many as its nodes' configurations name voters.
fn nodes_of(directory: &Path) -> Option<usize> {
    let nodes = std::fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path());
    let mut formed = nodes.filter(|node| node.join("data").join("meta.properties").exists());
    formed.find_map(|node| {
        let text = std::fs::read_to_string(node.join("server.properties")).ok()?;
        let given = properties::parse(&text).ok()?;
        Some(given.get("controller.quorum.voters")?.split(',').count())
    })
}
