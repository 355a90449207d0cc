//! Decoding compressed batches, for the few questions that need their records: never on the data path.
//!
//! Invariant: what comes out is at most `LIMIT` bytes, whatever the input claims.

use std::io::{self, Read};

use bytes::Bytes;
use model::{Codec, RecordBatch};

/// Bytes of one batch's records, decoded.
const LIMIT: u64 = 64 << 20;
/// The magic of snappy's Java framing (xerial).
const XERIAL: &[u8] = &[0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];

/// The records of a batch, uncompressed.
///
/// # Errors
/// The codec's, and where the records are larger than the limit.
pub fn decompress(batch: &RecordBatch) -> io::Result<Bytes> {
    let payload = batch.payload();
    match batch.header().codec() {
        Some(Codec::None) => Ok(payload),
        Some(Codec::Gzip) => read_all(flate2::read::MultiGzDecoder::new(&payload[..])),
        Some(Codec::Snappy) => snappy(&payload),
        Some(Codec::Lz4) => read_all(lz4_flex::frame::FrameDecoder::new(&payload[..])),
        Some(Codec::Zstd) => {
            let mut decoder = zstd::stream::read::Decoder::new(&payload[..])?;
            decoder.window_log_max(23)?;
            read_all(decoder)
        }
        None => Err(bad("unknown codec")),
    }
}

fn read_all(decoder: impl Read) -> io::Result<Bytes> {
    let mut out = Vec::new();
    decoder.take(LIMIT + 1).read_to_end(&mut out)?;
    checked(out)
}

fn checked(out: Vec<u8>) -> io::Result<Bytes> {
    if u64::try_from(out.len()).unwrap_or(u64::MAX) > LIMIT {
        Err(bad("records are too large"))
    } else {
        Ok(out.into())
    }
}

/// One raw block, or the Java framing: magic, two versions, then blocks with their length before each.
fn snappy(payload: &[u8]) -> io::Result<Bytes> {
    if !payload.starts_with(XERIAL) {
        return Ok(snappy_block(payload, LIMIT)?.into());
    }
    let mut rest = payload.get(XERIAL.len() + 8..).ok_or_else(|| bad("snappy framing is cut off"))?;
    let mut out = Vec::new();
    while !rest.is_empty() {
        let (length, tail) = rest.split_first_chunk::<4>().ok_or_else(|| bad("snappy framing is cut off"))?;
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let block = tail.get(..length).ok_or_else(|| bad("snappy block is cut off"))?;
        let left = LIMIT.saturating_sub(u64::try_from(out.len()).unwrap_or(u64::MAX));
        out.extend_from_slice(&snappy_block(block, left)?);
        rest = &tail[length..];
    }
    checked(out)
}

fn snappy_block(block: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    let length = snap::raw::decompress_len(block).map_err(io::Error::other)?;
    // A snappy block expands by a bounded factor; a larger claim is a lie, refused before anything is reserved.
    let expands = u64::try_from(block.len()).unwrap_or(u64::MAX).saturating_mul(64);
    if u64::try_from(length).unwrap_or(u64::MAX) > limit.min(expands) {
        return Err(bad("snappy block claims too much"));
    }
    snap::raw::Decoder::new().decompress_vec(block).map_err(io::Error::other)
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Record, RecordIter, encode_batch, encode_records};

    fn batch(codec: Codec, compressed: &[u8], count: i32) -> RecordBatch {
        let bytes = encode_batch(compressed, codec, count, 0, 0, None);
        RecordBatch::split_off(&mut bytes.freeze()).unwrap()
    }

    fn records() -> Vec<Record> {
        (0..50)
            .map(|i| Record { offset_delta: i, value: Some(Bytes::from(vec![b'x'; 100])), ..Record::default() })
            .collect()
    }

    #[test]
    fn each_codec_gives_the_records_back() {
        let plain = encode_records(&records());
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gzip, &plain).unwrap();
        let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
        io::Write::write_all(&mut lz4, &plain).unwrap();
        let raw = snap::raw::Encoder::new().compress_vec(&plain).unwrap();
        let length = u32::try_from(raw.len()).unwrap().to_be_bytes();
        let xerial = [XERIAL, &[0, 0, 0, 1, 0, 0, 0, 1], &length, &raw].concat();
        let zstd = zstd::stream::encode_all(&plain[..], 1).unwrap();
        let cases = [
            (Codec::Gzip, gzip.finish().unwrap()),
            (Codec::Lz4, lz4.finish().unwrap()),
            (Codec::Snappy, raw),
            (Codec::Snappy, xerial),
            (Codec::Zstd, zstd),
        ];
        for (codec, compressed) in cases {
            let payload = decompress(&batch(codec, &compressed, 50)).unwrap();
            let read: Vec<Record> = RecordIter::new(payload, 50).collect::<Result<_, _>>().unwrap();
            assert_eq!(read, records(), "{codec:?}");
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let zeros = vec![0u8; 80 << 20];
        let bomb = zstd::stream::encode_all(&zeros[..], 1).unwrap();
        assert!(bomb.len() < 100_000);
        assert!(decompress(&batch(Codec::Zstd, &bomb, 1)).is_err());
        // A claim of 4 GiB in a few bytes.
        let lie = [0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0];
        assert!(decompress(&batch(Codec::Snappy, &lie, 1)).is_err());
    }
}
