//! What lies in the log, in a vote and in a snapshot, and travels between members.
//!
//! Everything but encoded records is JSON, which names its fields; an entry is the length of its header, its header, and
//! its records.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use model::MetadataOffset;
use openraft::{EntryPayload, LogId, Membership};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use storage::quorum_log::QuorumEntry;

use crate::raft::types::{Batch, Entry, Member, NodeId, RecordBytes, SnapshotMeta};

const VERSION: u32 = 1;

/// Bytes that are not what this module writes.
#[derive(thiserror::Error, Debug)]
pub(crate) enum CodecError {
    #[error("a part of the metadata quorum is cut off")]
    CutOff,
    #[error("a part of the metadata quorum has version {0}: it was written by a newer version")]
    Version(u32),
    #[error("a part of the metadata quorum does not decode: {0}")]
    Json(#[from] serde_json::Error),
}

#[derive(Serialize, Deserialize)]
struct EntryHeader {
    version: u32,
    content: Content,
}

#[derive(Serialize, Deserialize)]
enum Content {
    Blank,
    Membership(Membership<NodeId, Member>),
    Batch { term: u64, node: NodeId, base: u64 },
}

#[derive(Serialize, Deserialize)]
struct SnapshotHeader {
    version: u32,
    next_offset: u64,
}

/// What JSON is written of always serialises.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).expect("plain data serialises").into()
}

pub(crate) fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    Ok(serde_json::from_slice(bytes)?)
}

pub(crate) fn entry_to_log(entry: &Entry) -> QuorumEntry {
    let (content, records) = match &entry.payload {
        EntryPayload::Blank => (Content::Blank, Bytes::new()),
        EntryPayload::Membership(membership) => (Content::Membership(membership.clone()), Bytes::new()),
        EntryPayload::Normal(batch) => {
            let content = Content::Batch { term: batch.term, node: batch.node, base: batch.base };
            (content, batch.records.0.clone())
        }
    };
    let payload = with_header(&EntryHeader { version: VERSION, content }, &records);
    QuorumEntry { index: entry.log_id.index, id: to_json(&entry.log_id), payload }
}

pub(crate) fn entry_from_log(entry: &QuorumEntry) -> Result<Entry, CodecError> {
    decode_entry(&entry.id, entry.payload.clone())
}

/// An entry as it travels: the length of its id, its id, its payload.
pub(crate) fn entry_to_wire(entry: &Entry) -> Bytes {
    let stored = entry_to_log(entry);
    let mut out = BytesMut::with_capacity(4 + stored.id.len() + stored.payload.len());
    out.put_u32_le(u32::try_from(stored.id.len()).expect("an id is small"));
    out.put_slice(&stored.id);
    out.put_slice(&stored.payload);
    out.freeze()
}

pub(crate) fn entry_from_wire(bytes: Bytes) -> Result<Entry, CodecError> {
    let (id, payload) = split(bytes)?;
    decode_entry(&id, payload)
}

fn decode_entry(id: &[u8], payload: Bytes) -> Result<Entry, CodecError> {
    let log_id: LogId<NodeId> = from_json(id)?;
    let (header, records) = split(payload)?;
    let header: EntryHeader = from_json(&header)?;
    if header.version != VERSION {
        return Err(CodecError::Version(header.version));
    }
    let payload = match header.content {
        Content::Blank => EntryPayload::Blank,
        Content::Membership(membership) => EntryPayload::Membership(membership),
        Content::Batch { term, node, base } => {
            EntryPayload::Normal(Batch { term, node, base, records: RecordBytes(records) })
        }
    };
    Ok(Entry { log_id, payload })
}

/// The content of a snapshot: where the image stands, and the records that make it.
pub(crate) fn snapshot_data(next_offset: MetadataOffset, records: &[u8]) -> Bytes {
    with_header(&SnapshotHeader { version: VERSION, next_offset: next_offset.0 }, records)
}

pub(crate) fn parse_snapshot(data: Bytes) -> Result<(MetadataOffset, Bytes), CodecError> {
    let (header, records) = split(data)?;
    let header: SnapshotHeader = from_json(&header)?;
    if header.version != VERSION {
        return Err(CodecError::Version(header.version));
    }
    Ok((MetadataOffset(header.next_offset), records))
}

pub(crate) fn snapshot_index(meta: &SnapshotMeta) -> u64 {
    meta.last_log_id.map_or(0, |id| id.index)
}

fn with_header<T: Serialize>(header: &T, rest: &[u8]) -> Bytes {
    let header = to_json(header);
    let mut out = BytesMut::with_capacity(4 + header.len() + rest.len());
    out.put_u32_le(u32::try_from(header.len()).expect("a header is small"));
    out.put_slice(&header);
    out.put_slice(rest);
    out.freeze()
}

/// The length-prefixed first part, and the rest.
fn split(mut bytes: Bytes) -> Result<(Bytes, Bytes), CodecError> {
    if bytes.remaining() < 4 {
        return Err(CodecError::CutOff);
    }
    let len = usize::try_from(bytes.get_u32_le()).map_err(|_| CodecError::CutOff)?;
    if bytes.remaining() < len {
        return Err(CodecError::CutOff);
    }
    let first = bytes.split_to(len);
    Ok((first, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Uuid;
    use openraft::CommittedLeaderId;

    #[test]
    fn entries_read_back_and_cut_ones_are_errors() {
        let node = NodeId { id: 4, directory: Uuid::from_u128(u128::MAX - 5) };
        let nodes = [(node, Member { address: "h:1".to_owned(), given: true })]
            .into_iter()
            .collect::<std::collections::BTreeMap<_, _>>();
        let log_id = LogId::new(CommittedLeaderId::new(7, node), 9);
        let batch = Batch { term: 7, node, base: 40, records: RecordBytes(Bytes::from_static(b"records")) };
        let payloads = [
            EntryPayload::Blank,
            EntryPayload::Normal(batch),
            EntryPayload::Membership(Membership::new(vec![[node].into_iter().collect()], nodes)),
        ];
        for payload in payloads {
            let entry = Entry { log_id, payload };
            assert_eq!(entry_from_log(&entry_to_log(&entry)).unwrap(), entry);
            let wire = entry_to_wire(&entry);
            assert_eq!(entry_from_wire(wire.clone()).unwrap(), entry);
            let header = wire.len() - if matches!(entry.payload, EntryPayload::Normal(_)) { 7 } else { 0 };
            (0..header).for_each(|cut| assert!(entry_from_wire(wire.slice(..cut)).is_err(), "{cut}"));
        }
    }
}
