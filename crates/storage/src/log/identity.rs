//! `partition.metadata`: which topic the partition's directory belongs to, as Kafka writes it (`R4`).

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

use model::TopicId;

use crate::disk::{Disk, OpenMode, read_small_file, replace_file, write_all_at};

/// What the file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Identity {
    Known(TopicId),
    /// The file is missing or damaged.
    Unknown,
}

pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join("partition.metadata")
}

/// Writes the file; the first sync of the log makes it durable.
pub(crate) fn write(disk: &dyn Disk, dir: &Path, topic_id: TopicId) -> io::Result<()> {
    let file = disk.open(&path(dir), OpenMode::Truncate)?;
    write_all_at(&*file, &mut [IoSlice::new(content(topic_id).as_bytes())], 0)
}

/// Replaces the file, whatever it said, durably: a crash meanwhile leaves what it said before.
pub(crate) fn replace(disk: &dyn Disk, dir: &Path, topic_id: TopicId) -> io::Result<()> {
    replace_file(disk, &path(dir), content(topic_id).as_bytes())
}

fn content(topic_id: TopicId) -> String {
    format!("version: 0\ntopic_id: {topic_id}")
}

/// Makes the file, its name and that of its directory durable (`R31`).
pub(crate) fn sync(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    disk.open(&path(dir), OpenMode::Existing)?.sync_data()?;
    // From above: a directory that is not durable itself holds nothing durable.
    dir.parent().map_or(Ok(()), |above| disk.sync_dir(above))?;
    disk.sync_dir(dir)
}

pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> io::Result<Identity> {
    let text = match read_small_file(disk, &path(dir), 4096) {
        Ok(Some(text)) => text,
        Ok(None) => return Ok(Identity::Unknown),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => return Ok(Identity::Unknown),
        Err(e) => return Err(e),
    };
    Ok(parse(&text).map_or(Identity::Unknown, Identity::Known))
}

fn parse(text: &[u8]) -> Option<TopicId> {
    let mut lines = std::str::from_utf8(text).ok()?.lines();
    (lines.next()? == "version: 0").then_some(())?;
    lines.next()?.strip_prefix("topic_id: ")?.parse().ok()
}
