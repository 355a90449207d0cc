//! What stays of a batch: the last value of each key, tombstones and markers for their time, the last batch of each active
//! producer, empty if need be (`R39`).
//!
//! A batch keeps its base and last offset, its leader epoch, its producer fields and its codec, whatever leaves it. Where
//! tombstones stay, or a marker that nobody needs, the time from when on they may go is stamped into the batch once: the
//! delete horizon, in place of the base timestamp (KIP-534).
//!
//! A batch that does not decode, or that would take more than the cap of memory, is kept whole. It may hold an older value
//! of any key, so no tombstone behind it ever goes: a deleted key would come back.

use std::collections::BTreeMap;

use model::batch::{HEADER_LEN, put_batch};
use model::record::{RawRecord, RawRecords, RecordError};
use model::{BatchHeader, Codec, Offset, ProducerEpoch, ProducerId, TimestampType};

use super::keys::{Full, KeyMap};
use super::transactions::Outcomes;
use crate::compression::{CompressionLevels, compress_into, decompress_into};

/// The batch that holds a producer's state (`R40`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LastOfProducer {
    /// The batch of records that ends at this offset.
    Data(Offset),
    /// It has no records in its present epoch: the marker of that epoch.
    Marker(ProducerEpoch),
}

/// What a cleaning has met so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FilterStats {
    /// Records looked at by the copy.
    pub records: u64,
    /// Of those, records that stay.
    pub records_kept: u64,
    /// Batches that do not decode, kept whole.
    pub opaque_batches: u64,
    /// Records without a key, which no compacted topic may have: they go.
    pub keyless_records: u64,
}

/// What stays of one batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kept {
    /// All of it, as it stands.
    Whole,
    /// Nothing.
    Nothing,
    /// Another batch, of which this is the header.
    Rewritten(BatchHeader),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Filter {
    pub(super) keys: KeyMap,
    /// Every key of a record at or above the first dirty offset and below this is in `keys`.
    pub(super) covered: Offset,
    pub(super) outcomes: Outcomes,
    pub(super) stats: FilterStats,
    pub(super) producers: BTreeMap<ProducerId, LastOfProducer>,
    pub(super) now_ms: i64,
    pub(super) delete_retention_ms: i64,
    pub(super) levels: CompressionLevels,
    /// A batch was met that does not tell which keys it has.
    pub(super) keys_unknown: bool,
    buffers: Buffers,
}

/// Memory that is used again for each batch.
#[derive(Debug, Default)]
struct Buffers {
    decoded: Vec<u8>,
    kept: Vec<u8>,
    stamped: Vec<u8>,
    packed: Vec<u8>,
}

/// Of the records of one batch.
#[derive(Debug, Default)]
struct Selection {
    kept: i32,
    tombstones: bool,
    max_timestamp: Option<i64>,
}

impl Filter {
    pub(super) fn new(keys: KeyMap, first_dirty: Offset) -> Self {
        Self {
            keys,
            covered: first_dirty,
            outcomes: Outcomes::default(),
            stats: FilterStats::default(),
            producers: BTreeMap::new(),
            now_ms: 0,
            delete_retention_ms: 0,
            levels: CompressionLevels::default(),
            keys_unknown: false,
            buffers: Buffers::default(),
        }
    }

    /// Takes the keys of a batch into the map, those of records below `first_dirty` left out. False where the map is full:
    /// `covered` then says how far it got.
    pub(super) fn note_keys(&mut self, header: &BatchHeader, bytes: &[u8], first_dirty: Offset) -> bool {
        if !header.is_control() && !self.outcomes.is_aborted(header) {
            let mut decoded = std::mem::take(&mut self.buffers.decoded);
            let full = match payload_of(header, bytes, &mut decoded).filter(|payload| is_sound(header, payload)) {
                Some(payload) => self.put_keys(header, payload, first_dirty),
                None => None,
            };
            self.buffers.decoded = decoded;
            if let Some(offset) = full {
                self.covered = offset;
                return false;
            }
        }
        self.covered = self.covered.max(header.next_offset());
        true
    }

    /// The offset of the first record whose key has no room.
    fn put_keys(&mut self, header: &BatchHeader, payload: &[u8], first_dirty: Offset) -> Option<Offset> {
        for record in records_of(header, payload).map_while(Result::ok) {
            let offset = header.base_offset + i64::from(record.offset_delta);
            let Some(key) = record.key.filter(|_| offset >= first_dirty) else { continue };
            if self.keys.put(key, offset) == Err(Full) {
                return Some(offset);
            }
        }
        None
    }

    /// What stays of a batch; a rewritten one is appended to `out`. With `must_stay` its offsets and its epoch stay in any
    /// case.
    pub(super) fn filter(&mut self, header: &BatchHeader, bytes: &[u8], must_stay: bool, out: &mut Vec<u8>) -> Kept {
        if header.base_offset >= self.covered {
            return Kept::Whole;
        }
        let stays = must_stay || self.is_last_of_producer(header);
        let mut buffers = std::mem::take(&mut self.buffers);
        let kept = if header.is_control() {
            self.filter_marker(header, bytes, stays, &mut buffers, out)
        } else {
            self.outcomes.meet(header);
            if self.outcomes.is_aborted(header) {
                self.stats.records += u64::from(header.record_count.unsigned_abs());
                without_records(header, stays, out)
            } else {
                self.filter_records(header, bytes, stays, &mut buffers, out)
            }
        };
        self.buffers = buffers;
        kept
    }

    fn is_last_of_producer(&self, header: &BatchHeader) -> bool {
        match self.producers.get(&header.producer_id).filter(|_| header.has_producer_id()) {
            None => false,
            Some(LastOfProducer::Data(last)) => header.last_offset() == *last,
            Some(LastOfProducer::Marker(epoch)) => header.is_control() && header.producer_epoch == *epoch,
        }
    }

    fn filter_marker(
        &mut self,
        header: &BatchHeader,
        bytes: &[u8],
        stays: bool,
        buffers: &mut Buffers,
        out: &mut Vec<u8>,
    ) -> Kept {
        let spent = self.outcomes.is_spent(header);
        let over = header.delete_horizon().is_some_and(|horizon| horizon <= self.now_ms);
        if header.record_count == 0 || (spent && over) {
            return without_records(header, stays, out);
        }
        let payload = &bytes[HEADER_LEN..];
        let readable = header.codec() == Some(Codec::None) && is_sound(header, payload);
        if !spent || header.delete_horizon().is_some() || !readable {
            return Kept::Whole;
        }
        let kept = Selection { kept: header.record_count, ..Selection::default() };
        self.stamp_horizon(header, payload, &kept, buffers, out)
    }

    fn filter_records(
        &mut self,
        header: &BatchHeader,
        bytes: &[u8],
        stays: bool,
        buffers: &mut Buffers,
        out: &mut Vec<u8>,
    ) -> Kept {
        let payload = payload_of(header, bytes, &mut buffers.decoded).filter(|payload| is_sound(header, payload));
        let Some(payload) = payload else {
            self.stats.opaque_batches += 1;
            self.keys_unknown = true;
            return Kept::Whole;
        };
        buffers.kept.clear();
        let mut selection = Selection::default();
        for record in records_of(header, payload).map_while(Result::ok) {
            self.stats.records += 1;
            if self.keeps(header, &record) {
                selection.kept += 1;
                let offset = header.base_offset + i64::from(record.offset_delta);
                selection.tombstones |= record.value.is_none() && offset < self.covered;
                let timestamp = header.base_timestamp.saturating_add(record.timestamp_delta);
                selection.max_timestamp = selection.max_timestamp.max(Some(timestamp));
                buffers.kept.extend_from_slice(record.bytes);
            }
        }
        self.stats.records_kept += u64::from(selection.kept.unsigned_abs());
        if selection.kept == 0 {
            return without_records(header, stays, out);
        }
        if selection.tombstones && header.delete_horizon().is_none() {
            let kept = std::mem::take(&mut buffers.kept);
            let done = self.stamp_horizon(header, &kept, &selection, buffers, out);
            buffers.kept = kept;
            return done;
        }
        if selection.kept == header.record_count {
            return Kept::Whole;
        }
        let rewritten = with_selection(header, &selection);
        self.put(&rewritten, &buffers.kept, &mut buffers.packed, out)
    }

    /// Whether a record stays.
    fn keeps(&mut self, header: &BatchHeader, record: &RawRecord<'_>) -> bool {
        let offset = header.base_offset + i64::from(record.offset_delta);
        if offset >= self.covered {
            return true;
        }
        let Some(key) = record.key else {
            self.stats.keyless_records += 1;
            return false;
        };
        if self.keys.get(key).is_some_and(|last| last > offset) {
            return false;
        }
        record.value.is_some() || self.keys_unknown || header.delete_horizon().is_none_or(|end| self.now_ms < end)
    }

    /// The batch with the records of `payload`, and the time from when on what it says may be forgotten.
    fn stamp_horizon(
        &self,
        header: &BatchHeader,
        payload: &[u8],
        selection: &Selection,
        buffers: &mut Buffers,
        out: &mut Vec<u8>,
    ) -> Kept {
        let mut rewritten = with_selection(header, selection);
        rewritten.set_delete_horizon(self.now_ms.saturating_add(self.delete_retention_ms));
        buffers.stamped.clear();
        for record in records_of(&rewritten, payload).map_while(Result::ok) {
            let timestamp = header.base_timestamp.saturating_add(record.timestamp_delta);
            let delta = timestamp.saturating_sub(rewritten.base_timestamp);
            record.put_with_timestamp(&mut buffers.stamped, delta);
        }
        self.put(&rewritten, &buffers.stamped, &mut buffers.packed, out)
    }

    fn put(&self, header: &BatchHeader, payload: &[u8], packed: &mut Vec<u8>, out: &mut Vec<u8>) -> Kept {
        let codec = header.codec().unwrap_or(Codec::None);
        let payload = if codec == Codec::None {
            payload
        } else {
            packed.clear();
            if compress_into(packed, codec, &self.levels, payload).is_err() {
                return Kept::Whole;
            }
            packed
        };
        Kept::Rewritten(put_batch(out, header, payload))
    }
}

/// The header of a batch of which these records stay.
fn with_selection(header: &BatchHeader, selection: &Selection) -> BatchHeader {
    let max_timestamp = match header.timestamp_type() {
        TimestampType::LogAppendTime => header.max_timestamp,
        TimestampType::CreateTime => selection.max_timestamp.unwrap_or(header.max_timestamp),
    };
    BatchHeader { record_count: selection.kept, max_timestamp, ..*header }
}

/// A batch that loses its records: its offsets, epoch and producer stay where they have to.
fn without_records(header: &BatchHeader, stays: bool, out: &mut Vec<u8>) -> Kept {
    if !stays {
        return Kept::Nothing;
    }
    if header.record_count == 0 {
        return Kept::Whole;
    }
    Kept::Rewritten(put_batch(out, &header.emptied(), &[]))
}

/// The uncompressed records of a batch; None where they do not decode.
fn payload_of<'a>(header: &BatchHeader, bytes: &'a [u8], decoded: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    let payload = &bytes[HEADER_LEN..];
    match header.codec()? {
        Codec::None => Some(payload),
        codec => decompress_into(decoded, codec, payload).is_ok().then_some(decoded.as_slice()),
    }
}

fn records_of<'a>(
    header: &BatchHeader,
    payload: &'a [u8],
) -> impl Iterator<Item = Result<RawRecord<'a>, RecordError>> + use<'a> {
    RawRecords::new(payload, header.record_count, header.last_offset_delta)
}

/// Whether the records are as the header counts them, each whole.
fn is_sound(header: &BatchHeader, payload: &[u8]) -> bool {
    let mut records = records_of(header, payload);
    let whole = records.by_ref().take_while(Result::is_ok).count();
    usize::try_from(header.record_count) == Ok(whole) && (whole > 0 || payload.is_empty())
}
