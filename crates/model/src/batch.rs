//! Record batches of magic 2 as checked views over bytes: the one unit that is received, stored, replicated and served.
//!
//! Invariants: a [`RecordBatch`] proves that its length, magic, CRC32C and counts were checked;
//! nobody decodes its records on the data path. [`ClientBatches`] are batches of a produce request: checked more strictly,
//! not yet stamped; the leader stamps base offset and leader epoch in place, outside of what the CRC covers (`R22`).
//!
//! ```text
//!  0 base offset i64      8 length i32 (from 12 on)   12 leader epoch i32   16 magic i8   17 crc u32 (of 21..)
//! 21 attributes i16      23 last offset delta i32     27 base timestamp     35 max timestamp
//! 43 producer id i64     51 producer epoch i16        53 base sequence i32  57 record count i32   61 records
//! ```

use std::fmt;

use bytes::{Bytes, BytesMut};

use crate::{LeaderEpoch, Offset, ProducerEpoch, ProducerId};

/// Bytes of a batch before its records.
pub const HEADER_LEN: usize = 61;
/// Bytes that the length field does not count: base offset and the length itself.
pub const LENGTH_OVERHEAD: usize = 12;
const CRC_FROM: usize = 21;
/// The attribute of a batch whose timestamps are the leader's.
const LOG_APPEND_TIME: i16 = 0x08;
/// The attribute of a batch that belongs to a transaction.
pub(crate) const TRANSACTIONAL: i16 = 0x10;
/// The attribute of a batch that holds markers instead of a client's records.
pub(crate) const CONTROL: i16 = 0x20;
/// The base timestamp is the delete horizon (KIP-534).
const DELETE_HORIZON: i16 = 0x40;

/// How a batch's records are compressed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[expect(missing_docs, reason = "the codecs are Kafka's, by name")]
pub enum Codec {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl Codec {
    /// The codec of the low three bits of the attributes.
    #[must_use]
    pub fn from_attributes(attributes: i16) -> Option<Codec> {
        Some(match attributes & 0x07 {
            0 => Codec::None,
            1 => Codec::Gzip,
            2 => Codec::Snappy,
            3 => Codec::Lz4,
            4 => Codec::Zstd,
            _ => return None,
        })
    }

    /// The low three bits of the attributes.
    #[must_use]
    pub fn attributes(self) -> i16 {
        match self {
            Codec::None => 0,
            Codec::Gzip => 1,
            Codec::Snappy => 2,
            Codec::Lz4 => 3,
            Codec::Zstd => 4,
        }
    }
}

/// Whose clock a batch's timestamps are of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum TimestampType {
    /// The producer's.
    CreateTime,
    /// The leader's, at the append.
    LogAppendTime,
}

/// The fixed part of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BatchHeader {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Size of the whole batch in bytes, header included.
    pub size: usize,
    /// The leader epoch that it was appended in.
    pub leader_epoch: LeaderEpoch,
    /// CRC32C of everything from the attributes on.
    pub crc: u32,
    /// Codec, timestamp type, transactional, control, delete horizon.
    pub attributes: i16,
    /// Last offset minus base offset.
    pub last_offset_delta: i32,
    /// Milliseconds since 1970, or the delete horizon.
    pub base_timestamp: i64,
    /// The largest timestamp of the batch, in milliseconds since 1970.
    pub max_timestamp: i64,
    /// Whose it is, or none.
    pub producer_id: ProducerId,
    /// The producer's epoch, or none.
    pub producer_epoch: ProducerEpoch,
    /// Sequence number of the first record, or -1.
    pub base_sequence: i32,
    /// Number of records.
    pub record_count: i32,
}

impl BatchHeader {
    /// Reads the fixed part without any check but the length of `bytes`.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<BatchHeader> {
        if bytes.len() < HEADER_LEN {
            return None;
        }
        let length = usize::try_from(i32_at(bytes, 8)).ok()?;
        Some(BatchHeader {
            base_offset: Offset(i64_at(bytes, 0)),
            size: length.checked_add(LENGTH_OVERHEAD)?,
            leader_epoch: LeaderEpoch(i32_at(bytes, 12)),
            crc: u32::from_be_bytes(array(bytes, 17)),
            attributes: i16::from_be_bytes(array(bytes, 21)),
            last_offset_delta: i32_at(bytes, 23),
            base_timestamp: i64_at(bytes, 27),
            max_timestamp: i64_at(bytes, 35),
            producer_id: ProducerId(i64_at(bytes, 43)),
            producer_epoch: ProducerEpoch(i16::from_be_bytes(array(bytes, 51))),
            base_sequence: i32_at(bytes, 53),
            record_count: i32_at(bytes, 57),
        })
    }

    /// Offset of the last record.
    #[must_use]
    pub fn last_offset(&self) -> Offset {
        self.base_offset + i64::from(self.last_offset_delta)
    }

    /// The offset after the last record.
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        self.last_offset() + 1
    }

    /// Whether there are so many offsets from `base` on: the one after the last record is one too.
    #[must_use]
    pub fn fits_at(&self, base: Offset) -> bool {
        base.0.checked_add(i64::from(self.last_offset_delta)).is_some_and(|last| last < i64::MAX)
    }

    /// The codec; None for a number that Kafka does not have.
    #[must_use]
    pub fn codec(&self) -> Option<Codec> {
        Codec::from_attributes(self.attributes)
    }

    /// Whose clock the timestamps are of.
    #[must_use]
    pub fn timestamp_type(&self) -> TimestampType {
        if self.attributes & LOG_APPEND_TIME == 0 { TimestampType::CreateTime } else { TimestampType::LogAppendTime }
    }

    /// Whether the batch belongs to a transaction.
    #[must_use]
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether it holds markers of transactions instead of a client's records.
    #[must_use]
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// From when on its tombstones and markers may go, in milliseconds since 1970; None where no cleaning has set it yet.
    /// The timestamps of its records then count from it.
    #[must_use]
    pub fn delete_horizon(&self) -> Option<i64> {
        (self.attributes & DELETE_HORIZON != 0).then_some(self.base_timestamp)
    }

    /// Sets the delete horizon; the records' timestamps have to be written anew, to count from it.
    pub fn set_delete_horizon(&mut self, horizon: i64) {
        self.attributes |= DELETE_HORIZON;
        self.base_timestamp = horizon;
    }

    /// The header of the same batch after it lost all its records: offsets, epoch and producer stay.
    #[must_use]
    pub fn emptied(&self) -> BatchHeader {
        let mut empty = BatchHeader { size: HEADER_LEN, record_count: 0, base_timestamp: -1, ..*self };
        empty.set_codec(Codec::None);
        empty.attributes &= !DELETE_HORIZON;
        empty
    }

    /// Sets how the records are compressed.
    pub fn set_codec(&mut self, codec: Codec) {
        self.attributes = (self.attributes & !0x07) | codec.attributes();
    }

    /// Whether an idempotent producer wrote it.
    #[must_use]
    pub fn has_producer_id(&self) -> bool {
        self.producer_id.0 >= 0
    }

    /// The sequence number of the last record: sequences wrap from `i32::MAX` to 0.
    #[must_use]
    pub fn last_sequence(&self) -> i32 {
        if self.base_sequence < 0 {
            return -1;
        }
        let last = i64::from(self.base_sequence) + i64::from(self.last_offset_delta);
        i32::try_from(last % (i64::from(i32::MAX) + 1)).unwrap_or(-1)
    }
}

/// Why bytes are not a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BatchError {
    /// Fewer bytes than the batch says it has, or than a header has.
    Truncated {
        /// Bytes needed.
        needed: usize,
        /// Bytes there.
        available: usize,
    },
    /// A length that no batch can have.
    BadLength(i32),
    /// Not magic 2.
    BadMagic(i8),
    /// The CRC32C of the bytes is not the one in the header.
    BadCrc {
        /// In the header.
        stored: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// Counts, deltas or attributes that contradict each other; the text says which.
    Invalid(&'static str),
    /// A codec that Kafka does not have.
    UnknownCodec(i16),
    /// More than one batch of one partition in a produce request, or none.
    NotOneBatch,
}

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BatchError::Truncated { needed, available } => {
                write!(f, "record batch needs {needed} bytes and has {available}")
            }
            BatchError::BadLength(length) => write!(f, "record batch has the impossible length {length}"),
            BatchError::BadMagic(magic) => write!(f, "record batch has magic {magic}; only 2 is supported"),
            BatchError::BadCrc { stored, computed } => {
                write!(f, "record batch has CRC32C {computed:#010x} but says {stored:#010x}")
            }
            BatchError::Invalid(what) => write!(f, "record batch is invalid: {what}"),
            BatchError::UnknownCodec(bits) => write!(f, "record batch has the unknown compression type {bits}"),
            BatchError::NotOneBatch => f.write_str("a produce request carries exactly one record batch a partition"),
        }
    }
}

impl std::error::Error for BatchError {}

/// CRC32C (Castagnoli), as record batches use it.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    narrow(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes))
}

fn narrow(crc: u64) -> u32 {
    u32::try_from(crc & 0xffff_ffff).unwrap_or(0)
}

/// The check of one batch whose bytes come piece by piece: that of [`check`], without all of it in memory.
#[derive(Debug)]
pub struct BatchCheck {
    header: BatchHeader,
    crc: crc_fast::Digest,
    /// Bytes that were taken.
    taken: usize,
}

impl BatchCheck {
    /// Begins with at least the header, of a batch that has `available` bytes at most: everything of [`check`] but the CRC.
    ///
    /// # Errors
    /// See [`BatchError`].
    pub fn begin(bytes: &[u8], available: usize) -> Result<BatchCheck, BatchError> {
        let header = check_header(bytes, available)?;
        Ok(BatchCheck { header, crc: crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi), taken: 0 })
    }

    /// The fixed part; what it says is not known to be true before the end.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// Bytes of the batch that are still to be taken.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.header.size - self.taken
    }

    /// Takes the next bytes, those of the header included; what is behind the batch is left. Says how many were taken.
    pub fn take(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.missing());
        let uncovered = CRC_FROM.saturating_sub(self.taken).min(count);
        self.crc.update(&bytes[uncovered..count]);
        self.taken += count;
        count
    }

    /// Compares, once all was taken.
    ///
    /// # Errors
    /// `BadCrc`, or `Truncated` where something is missing.
    pub fn end(self) -> Result<BatchHeader, BatchError> {
        if self.missing() > 0 {
            return Err(BatchError::Truncated { needed: self.header.size, available: self.taken });
        }
        let computed = narrow(self.crc.finalize());
        if computed != self.header.crc {
            return Err(BatchError::BadCrc { stored: self.header.crc, computed });
        }
        Ok(self.header)
    }
}

/// One checked batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordBatch {
    header: BatchHeader,
    bytes: Bytes,
}

impl RecordBatch {
    /// Checks the batch at the front of `bytes` (length, magic, CRC, counts) and takes it off.
    ///
    /// # Errors
    /// See [`BatchError`]; `bytes` is then unchanged.
    pub fn split_off(bytes: &mut Bytes) -> Result<RecordBatch, BatchError> {
        let header = check(bytes)?;
        Ok(RecordBatch { header, bytes: bytes.split_to(header.size) })
    }

    /// Checks a run of whole batches.
    ///
    /// # Errors
    /// The first [`BatchError`].
    pub fn split_all(mut bytes: Bytes) -> Result<Vec<RecordBatch>, BatchError> {
        let mut batches = Vec::new();
        while !bytes.is_empty() {
            batches.push(Self::split_off(&mut bytes)?);
        }
        Ok(batches)
    }

    /// The fixed part.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// All bytes, header included.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The records as they stand: compressed where the header says so.
    #[must_use]
    pub fn payload(&self) -> Bytes {
        self.bytes.slice(HEADER_LEN..)
    }
}

/// Appends a whole batch to `out`: the fields of `header` and `payload`; the size and the CRC32C are computed, not taken,
/// and stand in the header that is given back.
///
/// # Panics
/// Where the batch would have 2 GiB or more.
pub fn put_batch(out: &mut Vec<u8>, header: &BatchHeader, payload: &[u8]) -> BatchHeader {
    let start = out.len();
    let length = i32::try_from(HEADER_LEN - LENGTH_OVERHEAD + payload.len()).expect("a batch is smaller than 2 GiB");
    out.extend(header.base_offset.0.to_be_bytes());
    out.extend(length.to_be_bytes());
    out.extend(header.leader_epoch.0.to_be_bytes());
    out.push(2);
    out.extend([0; 4]);
    out.extend(header.attributes.to_be_bytes());
    out.extend(header.last_offset_delta.to_be_bytes());
    out.extend(header.base_timestamp.to_be_bytes());
    out.extend(header.max_timestamp.to_be_bytes());
    out.extend(header.producer_id.0.to_be_bytes());
    out.extend(header.producer_epoch.0.to_be_bytes());
    out.extend(header.base_sequence.to_be_bytes());
    out.extend(header.record_count.to_be_bytes());
    out.extend_from_slice(payload);
    let crc = crc32c(&out[start + CRC_FROM..]);
    out[start + 17..start + CRC_FROM].copy_from_slice(&crc.to_be_bytes());
    BatchHeader { size: HEADER_LEN + payload.len(), crc, ..*header }
}

/// Checks one batch at the front of `bytes`: length, magic, CRC32C, codec and counts.
///
/// # Errors
/// See [`BatchError`].
pub fn check(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = check_frame(bytes)?;
    let computed = crc32c(&bytes[CRC_FROM..header.size]);
    if computed != header.crc {
        return Err(BatchError::BadCrc { stored: header.crc, computed });
    }
    Ok(header)
}

/// Everything of [`check`] but the CRC.
///
/// # Errors
/// See [`BatchError`].
pub fn check_frame(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    check_header(bytes, bytes.len())
}

/// The same, where only the beginning of a batch is at hand and `available` bytes are there.
fn check_header(bytes: &[u8], available: usize) -> Result<BatchHeader, BatchError> {
    if bytes.len() < HEADER_LEN {
        return Err(BatchError::Truncated { needed: HEADER_LEN, available: bytes.len() });
    }
    let magic = i8::from_be_bytes([bytes[16]]);
    if magic != 2 {
        return Err(BatchError::BadMagic(magic));
    }
    let header = BatchHeader::read(bytes).ok_or(BatchError::BadLength(i32_at(bytes, 8)))?;
    if header.size < HEADER_LEN {
        return Err(BatchError::BadLength(i32_at(bytes, 8)));
    }
    if available < header.size {
        return Err(BatchError::Truncated { needed: header.size, available });
    }
    if header.codec().is_none() {
        return Err(BatchError::UnknownCodec(header.attributes & 0x07));
    }
    if header.base_offset.0 < 0 || header.base_offset.0.checked_add(i64::from(header.last_offset_delta) + 1).is_none() {
        return Err(BatchError::Invalid("offsets out of range"));
    }
    if header.last_offset_delta < 0 || header.record_count < 0 {
        return Err(BatchError::Invalid("negative counts"));
    }
    // Compaction leaves batches with fewer records than offsets, never more.
    if i64::from(header.record_count) > i64::from(header.last_offset_delta) + 1 {
        return Err(BatchError::Invalid("more records than offsets"));
    }
    Ok(header)
}

/// The batch of one partition in a produce request: checked, exclusively owned, not yet stamped.
#[derive(Debug)]
pub struct ClientBatches {
    header: BatchHeader,
    bytes: BytesMut,
}

impl ClientBatches {
    /// Checks what a client sent: exactly one batch, its CRC, and what only a leader may write.
    ///
    /// # Errors
    /// See [`BatchError`]: `BadCrc`, `BadLength` and a magic that never was are CORRUPT_MESSAGE to the client, the rest
    /// INVALID_RECORD, but for `UnknownCodec` (UNSUPPORTED_COMPRESSION_TYPE).
    pub fn check(bytes: BytesMut) -> Result<ClientBatches, BatchError> {
        let header = check(&bytes)?;
        if header.size != bytes.len() {
            return Err(BatchError::NotOneBatch);
        }
        if header.base_offset != Offset::ZERO {
            return Err(BatchError::Invalid("a client's base offset is 0"));
        }
        if header.record_count == 0 || header.record_count != header.last_offset_delta + 1 {
            return Err(BatchError::Invalid("record count and last offset delta disagree"));
        }
        if header.is_control() {
            return Err(BatchError::Invalid("clients may not write control batches"));
        }
        // Without a producer id, sequence and epoch mean nothing: clients differ in what they write there.
        if header.has_producer_id() && (header.base_sequence < 0 || header.producer_epoch.0 < 0) {
            return Err(BatchError::Invalid("a batch with a producer id needs an epoch and a sequence"));
        }
        if header.is_transactional() && !header.has_producer_id() {
            return Err(BatchError::Invalid("a transactional batch needs a producer id"));
        }
        Ok(ClientBatches { header, bytes })
    }

    /// A batch that this broker has encoded itself: what only a leader may write is allowed.
    ///
    /// # Panics
    /// Where the bytes are not exactly one sound batch.
    #[must_use]
    pub fn own(bytes: BytesMut) -> ClientBatches {
        let header = check(&bytes).expect("this broker encodes sound batches");
        assert_eq!(header.size, bytes.len(), "bytes follow a batch that this broker has encoded");
        ClientBatches { header, bytes }
    }

    /// The fixed part.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The records as they stand: compressed where the header says so.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.bytes[HEADER_LEN..]
    }

    /// The same batch with its records compressed otherwise: `payload` holds them as `codec` says.
    #[must_use]
    pub fn recompressed(&self, codec: Codec, payload: &[u8]) -> ClientBatches {
        let mut header = self.header;
        header.set_codec(codec);
        let mut out = Vec::with_capacity(HEADER_LEN + payload.len());
        let header = put_batch(&mut out, &header, payload);
        ClientBatches { header, bytes: BytesMut::from(Bytes::from(out)) }
    }

    /// Says whose clock the timestamps are of, and which of them is the largest. The CRC covers both: it changes where
    /// they do, and costs nothing where they do not.
    pub fn set_timestamps(&mut self, kind: TimestampType, max_timestamp: i64) {
        if (self.header.timestamp_type(), self.header.max_timestamp) == (kind, max_timestamp) {
            return;
        }
        match kind {
            TimestampType::CreateTime => self.header.attributes &= !LOG_APPEND_TIME,
            TimestampType::LogAppendTime => self.header.attributes |= LOG_APPEND_TIME,
        }
        self.header.max_timestamp = max_timestamp;
        self.bytes[21..23].copy_from_slice(&self.header.attributes.to_be_bytes());
        self.bytes[35..43].copy_from_slice(&max_timestamp.to_be_bytes());
        self.header.crc = crc32c(&self.bytes[CRC_FROM..]);
        self.bytes[17..21].copy_from_slice(&self.header.crc.to_be_bytes());
    }

    /// Writes offset and leader epoch in place and ends the exclusive ownership (`R22`).
    #[must_use]
    pub fn stamp(mut self, base_offset: Offset, leader_epoch: LeaderEpoch) -> RecordBatch {
        self.bytes[0..8].copy_from_slice(&base_offset.0.to_be_bytes());
        self.bytes[12..16].copy_from_slice(&leader_epoch.0.to_be_bytes());
        let header = BatchHeader { base_offset, leader_epoch, ..self.header };
        RecordBatch { header, bytes: self.bytes.freeze() }
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0u8; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(array(bytes, at))
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(array(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::vectors;
    use proptest::prelude::*;

    #[test]
    fn every_batch_that_kafka_wrote_is_taken_and_described_as_kafka_does() {
        let vectors = vectors();
        assert_eq!(vectors.len(), 18);
        for vector in &vectors {
            let batches = RecordBatch::split_all(vector.bytes.clone()).unwrap();
            let described = vector.json["batches"].as_array().unwrap();
            assert_eq!(batches.len(), described.len(), "{}", vector.name);
            for (batch, facts) in batches.iter().zip(described) {
                let h = batch.header();
                assert_eq!(h.base_offset.0, facts["base_offset"].as_i64().unwrap(), "{}", vector.name);
                assert_eq!(h.last_offset().0, facts["last_offset"].as_i64().unwrap(), "{}", vector.name);
                assert_eq!(h.size, usize::try_from(facts["size"].as_u64().unwrap()).unwrap());
                assert_eq!(u64::from(h.crc), facts["crc"].as_u64().unwrap());
                assert_eq!(i64::from(h.leader_epoch.0), facts["leader_epoch"].as_i64().unwrap());
                assert_eq!(format!("{:?}", h.codec().unwrap()).to_lowercase(), facts["codec"].as_str().unwrap());
                assert_eq!(format!("{:?}", h.timestamp_type()), facts["timestamp_type"].as_str().unwrap());
                assert_eq!(h.max_timestamp, facts["max_timestamp"].as_i64().unwrap());
                assert_eq!(h.producer_id.0, facts["producer_id"].as_i64().unwrap());
                assert_eq!(i64::from(h.producer_epoch.0), facts["producer_epoch"].as_i64().unwrap());
                assert_eq!(i64::from(h.base_sequence), facts["base_sequence"].as_i64().unwrap());
                assert_eq!(h.is_transactional(), facts["transactional"].as_bool().unwrap());
                assert_eq!(h.is_control(), facts["control"].as_bool().unwrap());
            }
        }
    }

    #[test]
    fn a_batch_that_is_put_together_from_its_parts_is_the_batch() {
        for vector in vectors() {
            for batch in RecordBatch::split_all(vector.bytes.clone()).unwrap() {
                let mut out = vec![7];
                let header = put_batch(&mut out, batch.header(), &batch.payload());
                assert_eq!((&out[1..], &header), (&batch.bytes()[..], batch.header()), "{}", vector.name);
            }
        }
    }

    #[test]
    fn a_recompressed_batch_keeps_all_but_its_payload() {
        let bytes = vectors()[0].bytes.clone();
        let before = ClientBatches::check(BytesMut::from(&bytes[..])).unwrap();
        let after = before.recompressed(Codec::Lz4, b"noise");
        let again =
            ClientBatches::check(BytesMut::from(after.stamp(Offset(0), LeaderEpoch(1)).bytes().as_ref())).unwrap();
        assert_eq!((again.header().codec(), again.payload()), (Some(Codec::Lz4), &b"noise"[..]));
        assert_eq!(again.header().max_timestamp, before.header().max_timestamp);
        assert_eq!(again.header().record_count, before.header().record_count);
    }

    #[test]
    fn stamping_changes_offset_and_epoch_and_keeps_the_crc() {
        // R22
        let bytes = vectors()[0].bytes.clone();
        let batch = ClientBatches::check(BytesMut::from(&bytes[..])).unwrap().stamp(Offset(77), LeaderEpoch(5));
        let again = RecordBatch::split_off(&mut batch.bytes().clone()).unwrap();
        assert_eq!(again, batch);
        assert_eq!((again.header().base_offset, again.header().leader_epoch), (Offset(77), LeaderEpoch(5)));
    }

    #[test]
    fn timestamps_that_are_set_are_covered_by_the_crc_again() {
        let bytes = vectors()[0].bytes.clone();
        for (kind, max) in [(TimestampType::LogAppendTime, 1_800_000_000_000), (TimestampType::CreateTime, -1)] {
            let mut client = ClientBatches::check(BytesMut::from(&bytes[..])).unwrap();
            // A client that claims to be a leader is taken at its records, not at its word.
            client.set_timestamps(TimestampType::LogAppendTime, 7);
            client = ClientBatches::check(client.bytes).unwrap();
            client.set_timestamps(kind, max);
            let batch = client.stamp(Offset(0), LeaderEpoch(0));
            let again = RecordBatch::split_off(&mut batch.bytes().clone()).unwrap();
            assert_eq!((again.header().timestamp_type(), again.header().max_timestamp), (kind, max));
        }
    }

    #[test]
    fn a_client_may_write_neither_control_batches_nor_two_batches_nor_none() {
        let plain = vectors()[0].bytes.clone();
        let two = [&plain[..], &plain[..]].concat();
        assert!(matches!(ClientBatches::check(BytesMut::from(&two[..])), Err(BatchError::NotOneBatch)));
        assert!(matches!(ClientBatches::check(BytesMut::new()), Err(BatchError::Truncated { .. })));
        let control = vectors().into_iter().find(|v| v.json["batches"][0]["control"] == true).unwrap();
        let mut control = BytesMut::from(&control.bytes[..]);
        control[0..8].fill(0);
        let refused = ClientBatches::check(control).unwrap_err();
        assert_eq!(refused, BatchError::Invalid("clients may not write control batches"));
    }

    #[test]
    fn a_client_has_no_say_in_the_base_offset() {
        // R22
        let mut bytes = BytesMut::from(&vectors()[0].bytes[..]);
        bytes[0..8].copy_from_slice(&5i64.to_be_bytes());
        let refused = ClientBatches::check(bytes).unwrap_err();
        assert_eq!(refused, BatchError::Invalid("a client's base offset is 0"));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_noticed_wherever_the_crc_covers(at in 0usize..10_000, bit in 0u8..8) {
            for vector in vectors().iter().take(3) {
                let mut bytes = vector.bytes.to_vec();
                let at = 16 + at % (bytes.len() - 16);
                bytes[at] ^= 1 << bit;
                prop_assert!(check(&bytes).is_err());
            }
        }

        #[test]
        fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = check(&noise);
            let _ = ClientBatches::check(BytesMut::from(&noise[..]));
        }
    }
}
