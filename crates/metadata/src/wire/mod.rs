//! Records, requests and answers as bytes, by `proto/metadata.proto` and `proto/control.proto`.
//!
//! Invariants: what was encoded decodes to the same value; noise gives an error, never a panic, nor an allocation larger than
//! a small multiple of it, or than new partitions in a row need (`RUNS_MAX`); what a newer version wrote is refused with that
//! version, never read in part. The generated types stay in here.

mod control;
mod new_partitions;
mod records;

use model::{BootId, BrokerId, DirectoryId, TopicId, Uuid};
use prost::Message;

use crate::control::{ControlRequest, ControlResponse};
use crate::records::MetadataRecord;
use generated::metadata::v1::record::Kind;

/// The version of the format that this program writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// The largest entry of the metadata log, in bytes of encoded records: it is sent and synced within a heartbeat interval (`R67`).
pub const ENTRY_MAX: usize = 120 << 10;

/// A tag and a length of up to five bytes, before each record.
const FRAME: usize = 6;

/// How many partitions a batch may have in rows: more than an entry can hold.
const RUNS_MAX: usize = 1 << 16;

/// The longest request or answer.
pub const MESSAGE_MAX: usize = 4 << 20;

#[expect(unreachable_pub, reason = "generated")]
mod generated {
    pub mod metadata {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/ottla.metadata.v1.rs"));
        }
    }
    pub mod control {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/ottla.control.v1.rs"));
        }
    }
}

/// Why bytes are not what they should be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// Written by a newer version.
    #[error("written in version {found} of the metadata format, this program reads up to {VERSION}: upgrade it")]
    Newer {
        /// Its version.
        found: u32,
    },
    /// Of a kind that this version does not have, although it says that it is of this version.
    #[error("a {what} of a kind that version {found} of the metadata format does not have")]
    UnknownKind {
        /// What it should be.
        what: &'static str,
        /// The version it says.
        found: u32,
    },
    /// No message at all.
    #[error("the bytes are not a metadata message: {0}")]
    NotAMessage(#[from] prost::DecodeError),
    /// A field has a value that it cannot have, or is missing.
    #[error("the field {0} is missing or has a value that it cannot have")]
    Field(&'static str),
    /// Longer than any honest message.
    #[error("a message of {0} bytes is longer than {MESSAGE_MAX}: send it in parts")]
    TooLong(usize),
}

/// The bytes of records: a batch, or a part of a snapshot.
#[must_use]
pub fn encode_records(records: &[MetadataRecord]) -> Vec<u8> {
    batch(records.iter().map(|record| records::to_wire(record).encode_to_vec()).collect())
}

/// The bytes of the records of an entry. Where they are too many for one, new partitions in a row are written as one record, which a
/// reader from before that refuses.
#[must_use]
pub fn encode_entry(records: &[MetadataRecord]) -> Vec<u8> {
    if plain_len(records) <= ENTRY_MAX { encode_records(records) } else { batch(in_rows(records)) }
}

/// The length of [`encode_entry`], at most.
#[must_use]
pub fn entry_len(records: &[MetadataRecord]) -> usize {
    let plain = plain_len(records);
    if plain <= ENTRY_MAX { plain } else { in_rows(records).iter().map(|record| record.len() + FRAME).sum() }
}

/// The records of bytes.
///
/// # Errors
/// [`WireError`] where the bytes are not what [`encode_records`] of this version or an older one made.
pub fn decode_records(bytes: &[u8]) -> Result<Vec<MetadataRecord>, WireError> {
    let batch = generated::metadata::v1::Records::decode(bytes)?;
    check_version(batch.version)?;
    let (mut records, mut left) = (Vec::new(), RUNS_MAX);
    for bytes in &batch.records {
        let record = generated::metadata::v1::Record::decode(bytes.as_slice())?;
        match record.kind {
            Some(Kind::NewPartitions(run)) => records.extend(new_partitions::from_wire(&run, &mut left)?),
            _ => records.push(records::from_wire(record, batch.version)?),
        }
    }
    Ok(records)
}

/// The length that [`encode_records`] adds for one record, at most: to fill a batch up to a limit.
#[must_use]
pub fn encoded_len(record: &MetadataRecord) -> usize {
    records::to_wire(record).encoded_len() + FRAME
}

fn plain_len(records: &[MetadataRecord]) -> usize {
    records.iter().map(encoded_len).sum()
}

fn batch(records: Vec<Vec<u8>>) -> Vec<u8> {
    generated::metadata::v1::Records { version: VERSION, records }.encode_to_vec()
}

/// Each record, or row of new partitions, as bytes.
fn in_rows(mut records: &[MetadataRecord]) -> Vec<Vec<u8>> {
    let mut encoded = Vec::new();
    while let [first, ..] = records {
        let (taken, record) = new_partitions::to_wire(records).unwrap_or_else(|| (1, records::to_wire(first)));
        encoded.push(record.encode_to_vec());
        records = &records[taken..];
    }
    encoded
}

/// The bytes of a request.
#[must_use]
pub fn encode_request(request: &ControlRequest) -> Vec<u8> {
    generated::control::v1::Request { version: VERSION, kind: Some(control::request_to_wire(request)) }.encode_to_vec()
}

/// The request of bytes.
///
/// # Errors
/// [`WireError`] where the bytes are not what [`encode_request`] of this version or an older one made.
pub fn decode_request(bytes: &[u8]) -> Result<ControlRequest, WireError> {
    check_len(bytes)?;
    let request = generated::control::v1::Request::decode(bytes)?;
    check_version(request.version)?;
    let unknown = WireError::UnknownKind { what: "request", found: request.version };
    control::request_from_wire(request.kind.ok_or(unknown)?)
}

/// The bytes of an answer.
#[must_use]
pub fn encode_response(response: &ControlResponse) -> Vec<u8> {
    generated::control::v1::Response { version: VERSION, kind: Some(control::response_to_wire(response)) }
        .encode_to_vec()
}

/// The answer of bytes.
///
/// # Errors
/// [`WireError`] where the bytes are not what [`encode_response`] of this version or an older one made.
pub fn decode_response(bytes: &[u8]) -> Result<ControlResponse, WireError> {
    check_len(bytes)?;
    let response = generated::control::v1::Response::decode(bytes)?;
    check_version(response.version)?;
    let unknown = WireError::UnknownKind { what: "response", found: response.version };
    control::response_from_wire(response.kind.ok_or(unknown)?)
}

fn check_version(found: u32) -> Result<(), WireError> {
    match found {
        0 => Err(WireError::Field("version")),
        1..=VERSION => Ok(()),
        _ => Err(WireError::Newer { found }),
    }
}

fn check_len(bytes: &[u8]) -> Result<(), WireError> {
    if bytes.len() > MESSAGE_MAX { Err(WireError::TooLong(bytes.len())) } else { Ok(()) }
}

fn uuid_to_wire(id: Uuid) -> Vec<u8> {
    id.as_bytes().to_vec()
}

fn uuid(bytes: &[u8], field: &'static str) -> Result<Uuid, WireError> {
    Uuid::from_slice(bytes).map_err(|_| WireError::Field(field))
}

/// None is written as nothing, so that who does not know the field reads it so too.
fn boot_to_wire(boot: BootId) -> Vec<u8> {
    if boot.is_none() { Vec::new() } else { uuid_to_wire(boot.0) }
}

fn boot(bytes: &[u8]) -> Result<BootId, WireError> {
    if bytes.is_empty() { Ok(BootId::NONE) } else { uuid(bytes, "boot").map(BootId) }
}

fn topic_id(bytes: &[u8]) -> Result<TopicId, WireError> {
    uuid(bytes, "topic_id").map(TopicId)
}

fn directories_to_wire(directories: &[DirectoryId]) -> Vec<Vec<u8>> {
    directories.iter().map(|each| uuid_to_wire(each.0)).collect()
}

fn directories(list: &[Vec<u8>]) -> Result<Vec<DirectoryId>, WireError> {
    list.iter().map(|bytes| uuid(bytes, "directories").map(DirectoryId)).collect()
}

fn ids_to_wire(ids: &[BrokerId]) -> Vec<i32> {
    ids.iter().map(|id| id.0).collect()
}

fn ids(list: Vec<i32>) -> Vec<BrokerId> {
    list.into_iter().map(BrokerId).collect()
}

fn small<T: TryFrom<i32>>(value: i32, field: &'static str) -> Result<T, WireError> {
    T::try_from(value).map_err(|_| WireError::Field(field))
}

fn some<T>(value: Option<T>, field: &'static str) -> Result<T, WireError> {
    value.ok_or(WireError::Field(field))
}

#[cfg(test)]
mod tests;
