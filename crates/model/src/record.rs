//! Single records of an uncompressed batch: for validation, for internal topics, for tools. Never on the data path.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::batch::{CONTROL, Codec, HEADER_LEN, LENGTH_OVERHEAD, TRANSACTIONAL, crc32c};
use crate::{Offset, ProducerEpoch, ProducerId};

/// One header of a record.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Header {
    /// Its name.
    pub key: String,
    /// Its value, or null.
    pub value: Option<Bytes>,
}

/// One record.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Record {
    /// Offset minus the batch's base offset.
    pub offset_delta: i32,
    /// Timestamp minus the batch's base timestamp, in milliseconds.
    pub timestamp_delta: i64,
    /// The key, or null.
    pub key: Option<Bytes>,
    /// The value, or null (a tombstone in a compacted topic).
    pub value: Option<Bytes>,
    /// The headers, in order, duplicates kept.
    pub headers: Vec<Header>,
}

/// Why bytes are not a run of records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordError(pub &'static str);

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record is invalid: {}", self.0)
    }
}

impl std::error::Error for RecordError {}

/// Reads records off uncompressed payload; keys and values are slices of it. Ends after the first error.
#[derive(Clone, Debug)]
pub struct RecordIter {
    payload: Bytes,
    left: i32,
}

impl RecordIter {
    /// Over the payload of a batch with `count` records.
    #[must_use]
    pub fn new(payload: Bytes, count: i32) -> Self {
        Self { payload, left: count }
    }

    fn read(&mut self) -> Result<Record, RecordError> {
        let length = self.length("record length")?.ok_or(RecordError("record length is negative"))?;
        let mut body = self.payload.split_to(length);
        std::mem::swap(&mut body, &mut self.payload);
        let rest = body;
        let record = self.read_body();
        let whole = self.payload.is_empty();
        self.payload = rest;
        let record = record?;
        if !whole {
            return Err(RecordError("record is shorter than its length"));
        }
        if self.left == 0 && !self.payload.is_empty() {
            return Err(RecordError("bytes follow the last record"));
        }
        Ok(record)
    }

    fn read_body(&mut self) -> Result<Record, RecordError> {
        if !self.payload.has_remaining() {
            return Err(RecordError("record without attributes"));
        }
        self.payload.advance(1);
        let timestamp_delta = self.varint()?;
        let offset_delta = i32::try_from(self.varint()?).map_err(|_| RecordError("offset delta out of range"))?;
        let key = self.nullable_bytes("key")?;
        let value = self.nullable_bytes("value")?;
        let count = self.varint()?;
        // A header takes two bytes at least: a count that cannot fit is refused before anything is reserved.
        let count = usize::try_from(count).ok().filter(|n| *n <= self.payload.len() / 2);
        let count = count.ok_or(RecordError("header count out of range"))?;
        let mut headers = Vec::new();
        for _ in 0..count {
            let key = self.nullable_bytes("header key")?.ok_or(RecordError("header key is null"))?;
            let key = String::from_utf8(key.to_vec()).map_err(|_| RecordError("header key is not UTF-8"))?;
            headers.push(Header { key, value: self.nullable_bytes("header value")? });
        }
        Ok(Record { offset_delta, timestamp_delta, key, value, headers })
    }

    fn nullable_bytes(&mut self, what: &'static str) -> Result<Option<Bytes>, RecordError> {
        Ok(self.length(what)?.map(|length| self.payload.split_to(length)))
    }

    /// A length that is there to be read, or None for null.
    fn length(&mut self, what: &'static str) -> Result<Option<usize>, RecordError> {
        match self.varint()? {
            -1 => Ok(None),
            n => usize::try_from(n).ok().filter(|n| *n <= self.payload.len()).map(Some).ok_or(RecordError(what)),
        }
    }

    fn varint(&mut self) -> Result<i64, RecordError> {
        let mut bits: u64 = 0;
        for shift in (0..70).step_by(7) {
            if !self.payload.has_remaining() {
                return Err(RecordError("varint is cut off"));
            }
            let byte = self.payload.get_u8();
            if shift == 63 && byte > 1 {
                return Err(RecordError("varint is too long"));
            }
            bits |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let magnitude = (bits >> 1).cast_signed();
                return Ok(if bits & 1 == 0 { magnitude } else { !magnitude });
            }
        }
        Err(RecordError("varint is too long"))
    }
}

impl Iterator for RecordIter {
    type Item = Result<Record, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left <= 0 {
            return None;
        }
        self.left -= 1;
        let read = self.read();
        if read.is_err() {
            self.left = 0;
        }
        Some(read)
    }
}

/// One record as it stands in uncompressed payload, with what compaction asks of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawRecord<'a> {
    /// All bytes of it, its length included.
    pub bytes: &'a [u8],
    /// Its attributes, that mean nothing yet.
    pub attributes: u8,
    /// Timestamp minus the batch's base timestamp, in milliseconds.
    pub timestamp_delta: i64,
    /// Offset minus the batch's base offset.
    pub offset_delta: i32,
    /// The key, or null.
    pub key: Option<&'a [u8]>,
    /// The value, or null.
    pub value: Option<&'a [u8]>,
    /// All that follows the timestamp delta: offset delta, key, value, headers.
    rest: &'a [u8],
}

impl RawRecord<'_> {
    /// Writes the record with another timestamp delta.
    pub fn put_with_timestamp(&self, out: &mut Vec<u8>, timestamp_delta: i64) {
        let (delta, delta_len) = varint(timestamp_delta);
        let (length, length_len) = varint(signed(1 + delta_len + self.rest.len()));
        out.extend_from_slice(&length[..length_len]);
        out.push(self.attributes);
        out.extend_from_slice(&delta[..delta_len]);
        out.extend_from_slice(self.rest);
    }
}

/// Reads records off uncompressed payload without taking anything out of it, each checked whole. Compaction leaves holes:
/// offset deltas ascend, from 0 to `last_offset_delta`. Ends after the first error.
#[derive(Clone, Debug)]
pub struct RawRecords<'a> {
    payload: &'a [u8],
    left: i32,
    next_delta: i64,
    last_offset_delta: i32,
}

impl<'a> RawRecords<'a> {
    /// Over the payload of a batch with `count` records.
    #[must_use]
    pub fn new(payload: &'a [u8], count: i32, last_offset_delta: i32) -> Self {
        Self { payload, left: count, next_delta: 0, last_offset_delta }
    }

    fn read(&mut self) -> Result<RawRecord<'a>, RecordError> {
        let before = self.payload;
        let length = take_varint(&mut self.payload)?;
        let mut body = take(&mut self.payload, length).ok_or(RecordError("record length is out of range"))?;
        let bytes = &before[..before.len() - self.payload.len()];
        let attributes = *take(&mut body, 1).and_then(<[u8]>::first).ok_or(RecordError("record without attributes"))?;
        let timestamp_delta = take_varint(&mut body)?;
        let rest = body;
        let offset_delta = i32::try_from(take_varint(&mut body)?).map_err(|_| RecordError("offset delta"))?;
        if i64::from(offset_delta) < self.next_delta || offset_delta > self.last_offset_delta {
            return Err(RecordError("offset deltas do not ascend within the batch"));
        }
        self.next_delta = i64::from(offset_delta) + 1;
        let key = take_nullable(&mut body, "key")?;
        let value = take_nullable(&mut body, "value")?;
        check_headers(body)?;
        if self.left == 0 && !self.payload.is_empty() {
            return Err(RecordError("bytes follow the last record"));
        }
        Ok(RawRecord { bytes, attributes, timestamp_delta, offset_delta, key, value, rest })
    }
}

impl<'a> Iterator for RawRecords<'a> {
    type Item = Result<RawRecord<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left <= 0 {
            return None;
        }
        self.left -= 1;
        let read = self.read();
        if read.is_err() {
            self.left = 0;
        }
        Some(read)
    }
}

/// The timestamps of a batch's records, relative to the batch's base timestamp, in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimestampDeltas {
    /// The smallest.
    pub min: i64,
    /// The largest.
    pub max: i64,
}

/// Checks the framing of a client's uncompressed records without taking anything out: lengths, offset deltas 0, 1, 2 …,
/// keys, values and headers within each record, nothing behind the last. Says between which bounds their timestamps are.
///
/// # Errors
/// What is wrong first, or that there is no record.
pub fn check_records(payload: &[u8], count: i32) -> Result<TimestampDeltas, RecordError> {
    let mut rest = payload;
    let mut seen = TimestampDeltas { min: i64::MAX, max: i64::MIN };
    for index in 0..i64::from(count) {
        let length = take_varint(&mut rest)?;
        let body = take(&mut rest, length).ok_or(RecordError("record length is out of range"))?;
        let delta = check_record(body, index)?;
        seen = TimestampDeltas { min: seen.min.min(delta), max: seen.max.max(delta) };
    }
    if !rest.is_empty() {
        return Err(RecordError("bytes follow the last record"));
    }
    if count > 0 { Ok(seen) } else { Err(RecordError("there is none")) }
}

/// Gives the timestamp delta.
fn check_record(mut body: &[u8], index: i64) -> Result<i64, RecordError> {
    take(&mut body, 1).ok_or(RecordError("record without attributes"))?;
    let timestamp_delta = take_varint(&mut body)?;
    if take_varint(&mut body)? != index {
        return Err(RecordError("offset deltas do not count up from 0"));
    }
    take_nullable(&mut body, "key")?;
    take_nullable(&mut body, "value")?;
    check_headers(body)?;
    Ok(timestamp_delta)
}

/// Headers up to the end of the record, and nothing behind them.
fn check_headers(mut body: &[u8]) -> Result<(), RecordError> {
    let headers = take_varint(&mut body)?;
    if headers < 0 || usize::try_from(headers).is_ok_and(|n| n > body.len()) {
        return Err(RecordError("header count out of range"));
    }
    for _ in 0..headers {
        let length = take_varint(&mut body)?;
        take(&mut body, length).ok_or(RecordError("header key"))?;
        take_nullable(&mut body, "header value")?;
    }
    if body.is_empty() { Ok(()) } else { Err(RecordError("record is shorter than its length")) }
}

fn take_nullable<'a>(rest: &mut &'a [u8], what: &'static str) -> Result<Option<&'a [u8]>, RecordError> {
    match take_varint(rest)? {
        -1 => Ok(None),
        length => take(rest, length).map(Some).ok_or(RecordError(what)),
    }
}

fn take<'a>(rest: &mut &'a [u8], length: i64) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = left;
    Some(taken)
}

fn take_varint(rest: &mut &[u8]) -> Result<i64, RecordError> {
    let mut bits: u64 = 0;
    for (at, byte) in rest.iter().enumerate() {
        if at == 9 && *byte > 1 {
            break;
        }
        bits |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            *rest = &rest[at + 1..];
            let magnitude = (bits >> 1).cast_signed();
            return Ok(if bits & 1 == 0 { magnitude } else { !magnitude });
        }
    }
    Err(RecordError("varint is too long or cut off"))
}

/// Writes records one after the other, uncompressed, as a batch's payload.
#[must_use]
pub fn encode_records(records: &[Record]) -> BytesMut {
    let mut out = BytesMut::new();
    for record in records {
        let mut body = BytesMut::new();
        body.put_u8(0);
        put_varint(&mut body, record.timestamp_delta);
        put_varint(&mut body, i64::from(record.offset_delta));
        put_bytes(&mut body, record.key.as_deref());
        put_bytes(&mut body, record.value.as_deref());
        put_varint(&mut body, signed(record.headers.len()));
        for header in &record.headers {
            put_bytes(&mut body, Some(header.key.as_bytes()));
            put_bytes(&mut body, header.value.as_deref());
        }
        put_varint(&mut out, signed(body.len()));
        out.extend_from_slice(&body);
    }
    out
}

/// Writes a whole batch around `payload` (records as `codec` says), as a client does: base offset 0, no leader epoch.
///
/// `producer` is (id, epoch, base sequence) of an idempotent producer.
#[must_use]
pub fn encode_batch(
    payload: &[u8],
    codec: Codec,
    record_count: i32,
    base_timestamp: i64,
    max_timestamp: i64,
    producer: Option<(ProducerId, ProducerEpoch, i32)>,
) -> BytesMut {
    let producer = producer.unwrap_or((ProducerId::NONE, ProducerEpoch::NONE, -1));
    encode_with_attributes(payload, codec.attributes(), record_count, (base_timestamp, max_timestamp), producer)
}

/// As [`encode_batch`], of uncompressed records that belong to a transaction. Coordinators write base sequence -1.
#[must_use]
pub fn encode_transactional_batch(
    payload: &[u8],
    record_count: i32,
    timestamp: i64,
    producer: (ProducerId, ProducerEpoch, i32),
) -> BytesMut {
    encode_with_attributes(payload, TRANSACTIONAL, record_count, (timestamp, timestamp), producer)
}

/// The control batch of one record in a transaction: a marker's.
pub(crate) fn encode_control_batch(
    payload: &[u8],
    timestamp: i64,
    (id, epoch): (ProducerId, ProducerEpoch),
) -> BytesMut {
    encode_with_attributes(payload, TRANSACTIONAL | CONTROL, 1, (timestamp, timestamp), (id, epoch, -1))
}

fn encode_with_attributes(
    payload: &[u8],
    attributes: i16,
    record_count: i32,
    (base_timestamp, max_timestamp): (i64, i64),
    (id, epoch, sequence): (ProducerId, ProducerEpoch, i32),
) -> BytesMut {
    let mut out = BytesMut::with_capacity(HEADER_LEN + payload.len());
    out.put_i64(Offset::ZERO.0);
    out.put_i32(i32::try_from(HEADER_LEN - LENGTH_OVERHEAD + payload.len()).expect("a batch is smaller than 2 GiB"));
    out.put_i32(-1);
    out.put_i8(2);
    out.put_u32(0);
    out.put_i16(attributes);
    out.put_i32(record_count - 1);
    out.put_i64(base_timestamp);
    out.put_i64(max_timestamp);
    out.put_i64(id.0);
    out.put_i16(epoch.0);
    out.put_i32(sequence);
    out.put_i32(record_count);
    out.extend_from_slice(payload);
    let crc = crc32c(&out[21..]);
    out[17..21].copy_from_slice(&crc.to_be_bytes());
    out
}

fn signed(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

fn put_bytes(out: &mut BytesMut, bytes: Option<&[u8]>) {
    match bytes {
        None => put_varint(out, -1),
        Some(bytes) => {
            put_varint(out, signed(bytes.len()));
            out.extend_from_slice(bytes);
        }
    }
}

fn put_varint(out: &mut BytesMut, value: i64) {
    let (bytes, length) = varint(value);
    out.extend_from_slice(&bytes[..length]);
}

/// The bytes of a varint, and how many they are.
fn varint(value: i64) -> ([u8; 10], usize) {
    let mut bits = ((value << 1) ^ (value >> 63)).cast_unsigned();
    let (mut bytes, mut length) = ([0; 10], 0);
    while bits >= 0x80 {
        bytes[length] = bits.to_le_bytes()[0] | 0x80;
        bits >>= 7;
        length += 1;
    }
    bytes[length] = bits.to_le_bytes()[0];
    (bytes, length + 1)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::RecordBatch;
    use proptest::prelude::*;

    pub(crate) struct Vector {
        pub(crate) name: String,
        pub(crate) json: serde_json::Value,
        pub(crate) bytes: Bytes,
    }

    /// Batches that Apache Kafka wrote, with what it says of them.
    pub(crate) fn vectors() -> Vec<Vector> {
        include_str!("../data/batches.jsonl")
            .lines()
            .map(|line| {
                let json: serde_json::Value = serde_json::from_str(line).unwrap();
                let hex = json["hex"].as_str().unwrap();
                let bytes =
                    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
                Vector { name: json["name"].as_str().unwrap().to_owned(), json, bytes }
            })
            .collect()
    }

    fn text(bytes: Option<&Bytes>) -> Option<String> {
        bytes.map(|b| String::from_utf8(b.to_vec()).unwrap())
    }

    #[test]
    fn records_that_kafka_wrote_read_as_kafka_shows_them_and_encode_to_the_same_bytes() {
        let mut seen = 0;
        for vector in vectors() {
            let batches = RecordBatch::split_all(vector.bytes.clone()).unwrap();
            for (batch, facts) in batches.iter().zip(vector.json["batches"].as_array().unwrap()) {
                let header = batch.header();
                if header.codec() != Some(Codec::None) || header.is_control() {
                    continue;
                }
                let records: Vec<Record> =
                    RecordIter::new(batch.payload(), header.record_count).collect::<Result<_, _>>().unwrap();
                let shown = facts["records"].as_array().unwrap();
                assert_eq!(records.len(), shown.len());
                for (record, shown) in records.iter().zip(shown) {
                    let offset = header.base_offset + i64::from(record.offset_delta);
                    assert_eq!(offset.0, shown["offset"].as_i64().unwrap());
                    if shown["value"].as_str().is_none_or(|v| !v.contains(" x ")) {
                        assert_eq!(text(record.key.as_ref()).as_deref(), shown["key"].as_str());
                        assert_eq!(text(record.value.as_ref()).as_deref(), shown["value"].as_str());
                    }
                    let headers = shown["headers"].as_array().unwrap();
                    assert_eq!(record.headers.len(), headers.len());
                    seen += 1;
                }
                assert_eq!(encode_records(&records)[..], batch.payload()[..], "{}", vector.name);
            }
        }
        assert!(seen > 20, "{seen}");
    }

    fn one(value: &'static [u8], offset_delta: i32) -> Record {
        let headers = vec![Header { key: "h".to_owned(), value: None }];
        Record { offset_delta, value: Some(Bytes::from_static(value)), headers, ..Record::default() }
    }

    #[test]
    fn a_check_takes_what_the_iterator_takes_and_refuses_what_does_not_count_up() {
        let good = encode_records(&[one(b"a", 0), one(b"", 1), one(b"c", 2)]);
        assert_eq!(check_records(&good, 3), Ok(TimestampDeltas { min: 0, max: 0 }));
        let late = |timestamp_delta, offset_delta| Record { timestamp_delta, ..one(b"a", offset_delta) };
        let bounds = check_records(&encode_records(&[late(5, 0), late(-7, 1), late(3, 2)]), 3);
        assert_eq!(bounds, Ok(TimestampDeltas { min: -7, max: 5 }));
        assert!(check_records(&good, 2).is_err() && check_records(&good, 4).is_err());
        assert!(check_records(&encode_records(&[one(b"a", 0), one(b"b", 0)]), 2).is_err());
        for cut in 0..good.len() {
            assert!(check_records(&good[..cut], 3).is_err(), "{cut}");
        }
    }

    #[test]
    fn raw_records_are_the_records_and_are_written_back_with_another_timestamp() {
        let holes = [one(b"a", 0), one(b"", 3), one(b"c", 900)];
        let payload = encode_records(&holes);
        let raw: Vec<RawRecord<'_>> = RawRecords::new(&payload, 3, 900).collect::<Result<_, _>>().unwrap();
        assert_eq!(raw.iter().map(|r| r.bytes).collect::<Vec<_>>().concat(), payload[..]);
        for (raw, record) in raw.iter().zip(&holes) {
            assert_eq!((raw.offset_delta, raw.value), (record.offset_delta, record.value.as_deref()));
            for timestamp_delta in [0, -1, 63, 1 << 40, i64::MIN] {
                let mut out = Vec::new();
                raw.put_with_timestamp(&mut out, timestamp_delta);
                assert_eq!(out, encode_records(&[Record { timestamp_delta, ..record.clone() }]));
            }
        }
        let ends = |count, last| RawRecords::new(&payload, count, last).last().unwrap().is_ok();
        assert_eq!([ends(3, 899), ends(2, 900), ends(4, 900), ends(3, 900)], [false, false, false, true]);
        let twice = encode_records(&[one(b"a", 1), one(b"b", 1)]);
        assert!(RawRecords::new(&twice, 2, 5).last().unwrap().is_err());
    }

    proptest! {
        #[test]
        fn raw_records_of_noise_agree_with_the_check(noise in prop::collection::vec(any::<u8>(), 0..60), count in 1..4i32) {
            let read: Result<Vec<RawRecord<'_>>, _> = RawRecords::new(&noise, count, i32::MAX).collect();
            prop_assert!(check_records(&noise, count).is_err() || read.is_ok());
            if let Ok(read) = read {
                prop_assert_eq!(read.iter().map(|r| r.bytes.len()).sum::<usize>(), noise.len());
            }
        }

        #[test]
        fn a_check_of_noise_agrees_with_the_iterator(noise in prop::collection::vec(any::<u8>(), 0..60), count in 1..4i32) {
            let read: Result<Vec<Record>, _> = RecordIter::new(Bytes::from(noise.clone()), count).collect();
            if check_records(&noise, count).is_ok() {
                // The iterator also wants header keys to be UTF-8.
                prop_assert!(read.is_ok() || read == Err(RecordError("header key is not UTF-8")));
            }
        }

        #[test]
        fn noise_gives_errors_and_never_panics(noise in prop::collection::vec(any::<u8>(), 0..300), count in -1..1000i32) {
            let mut read = 0usize;
            for record in RecordIter::new(Bytes::from(noise.clone()), count) {
                read += usize::from(record.is_ok());
            }
            prop_assert!(read <= noise.len());
        }

        #[test]
        fn varints_read_back(value in any::<i64>()) {
            let mut out = BytesMut::new();
            put_varint(&mut out, value);
            prop_assert_eq!(RecordIter::new(out.freeze(), 0).varint(), Ok(value));
        }
    }
}
