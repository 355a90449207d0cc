//! `partition.metadata`: which topic the partition's directory belongs to, as Kafka writes it (`R4`), and a line of our own
//! with the checksum of that, which Kafka does not read. One changed bit would else be another topic's id, and the log one
//! that was left behind by a topic that is deleted. A file of Kafka's has no checksum: it is believed where nothing speaks
//! against it.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

use model::TopicId;

use crate::disk::{Disk, OpenMode, read_small_file, replace_file, write_all_at};

/// What the file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Identity {
    Known {
        topic_id: TopicId,
        /// A checksum vouches for it.
        checked: bool,
    },
    /// The file is missing or damaged.
    Unknown,
}

impl Identity {
    /// Whether the file says that the directory is this topic's.
    pub(crate) fn is(self, of: TopicId) -> bool {
        matches!(self, Identity::Known { topic_id, .. } if topic_id == of)
    }
}

/// What the line with the checksum begins with.
const CHECKSUM: &str = "#crc32c ";

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
    let kafkas = format!("version: 0\ntopic_id: {topic_id}\n");
    let checksum = checksum(&kafkas);
    kafkas + &checksum
}

/// The line about what stands above it.
fn checksum(above: &str) -> String {
    format!("{CHECKSUM}{:08x}", model::batch::crc32c(above.as_bytes()))
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
    Ok(parse(&text).unwrap_or(Identity::Unknown))
}

fn parse(text: &[u8]) -> Option<Identity> {
    let text = std::str::from_utf8(text).ok()?;
    let mut lines = text.lines();
    (lines.next()? == "version: 0").then_some(())?;
    let topic_id = lines.next()?.strip_prefix("topic_id: ")?.parse().ok()?;
    let Some(last) = lines.next() else { return Some(Identity::Known { topic_id, checked: false }) };
    // Whatever stands there was a checksum once.
    let above = text.len().checked_sub(last.len()).map(|end| &text[..end])?;
    (checksum(above) == last).then_some(Identity::Known { topic_id, checked: true })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemDisk;
    use model::Uuid;

    #[test]
    fn a_flipped_bit_is_no_other_topics_id_and_what_kafka_wrote_is_read() {
        let topic_id = TopicId(Uuid::from_u128(0x5eed_0123_4567_89ab_cdef_5eed_0123_4567));
        let text = content(topic_id);
        assert_eq!(parse(text.as_bytes()), Some(Identity::Known { topic_id, checked: true }));
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone().into_bytes();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&flipped), None, "bit {bit}");
        }
        // A file that is cut says the same or nothing.
        for cut in 0..text.len() {
            let known = parse(&text.as_bytes()[..cut]);
            assert!(known.is_none_or(|known| known == Identity::Known { topic_id, checked: false }), "{cut}");
        }
        let kafkas = format!("version: 0\ntopic_id: {topic_id}");
        for kafkas in [kafkas.clone(), kafkas + "\n"] {
            assert_eq!(parse(kafkas.as_bytes()), Some(Identity::Known { topic_id, checked: false }));
        }
        let (disk, dir) = (MemDisk::new(), Path::new("/t-0"));
        disk.create_dir_all(dir).unwrap();
        assert_eq!(read(&disk, dir).unwrap(), Identity::Unknown);
        write(&disk, dir, topic_id).unwrap();
        assert!(read(&disk, dir).unwrap().is(topic_id));
    }
}
