//! Batches as clients and peers send them, and the records in them, in each codec.
//!
//! Oracle: no panic; what comes out of a decoder is bounded, whatever the input claims; a batch that is checked has the
//! bytes that it was given.

#![no_main]

use std::cell::Cell;

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use model::record::check_records;
use model::{ClientBatches, Codec, RecordBatch, RecordIter};
use storage::compression::{DECODED_MAX, decompress_into_counted};

/// What a decoder may hold beside what it has told of: its window and its blocks.
const SLACK: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    if let Ok(batches) = RecordBatch::split_all(Bytes::copy_from_slice(data)) {
        let bytes: Vec<u8> = batches.iter().flat_map(|batch| batch.bytes().to_vec()).collect();
        assert_eq!(bytes, data);
    }
    let _ = ClientBatches::check(BytesMut::from(data));
    for codec in [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
        let (mut out, told) = (Vec::new(), Cell::new(0usize));
        let decoded = decompress_into_counted(&mut out, codec, data, &mut |more| told.set(told.get() + more));
        assert!(out.len() <= DECODED_MAX + SLACK, "{codec:?} gave {} bytes", out.len());
        if decoded.is_ok() {
            assert!(told.get() >= out.len(), "{codec:?} told of {} of {} bytes", told.get(), out.len());
            let count = i32::try_from(data.len() % 1000).expect("small");
            let _ = check_records(&out, count);
            RecordIter::new(out.into(), count).take(2000).for_each(|record| drop(record));
        }
    }
});
