//! The codecs of record batches: for compaction, for topics whose `compression.type` the broker keeps, and for the few
//! questions that need a compressed batch's records. Never on the data path of a topic that leaves the codec to producers.
//!
//! Invariant: what comes out of a decoder is at most [`DECODED_MAX`] bytes, whatever the input claims, and whoever counts
//! memory is told of it as it comes out.

use std::io::{self, Read, Write};

use bytes::Bytes;
use flate2::Compression;
use lz4_flex::frame::{BlockMode, BlockSize, FrameInfo};
use model::{Codec, RecordBatch};

/// Bytes of one batch's records, decoded, at most.
pub const DECODED_MAX: usize = 64 << 20;
/// What is taken from a decoder at a time.
const PIECE: u64 = 64 << 10;
/// The magic of snappy's Java framing (xerial).
const XERIAL: &[u8] = &[0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
/// What Kafka's clients put into one block of that framing.
const XERIAL_BLOCK: usize = 32 << 10;
/// The largest window of zstd that is decoded: 8 MiB, what its levels up to 19 need.
const ZSTD_WINDOW_LOG: u32 = 23;

/// How hard to compress, by codec: Kafka's `compression.gzip.level`, `compression.lz4.level`, `compression.zstd.level`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CompressionLevels {
    /// 1 to 9, or -1 for the codec's own default.
    pub gzip: i32,
    /// 1 to 17. One speed is built: any level gives it.
    pub lz4: i32,
    /// -131072 to 22.
    pub zstd: i32,
}

impl Default for CompressionLevels {
    fn default() -> Self {
        Self { gzip: -1, lz4: 9, zstd: 3 }
    }
}

/// The records of a batch, uncompressed.
///
/// # Errors
/// The codec's, and where the records are larger than the limit.
pub fn decompress(batch: &RecordBatch) -> io::Result<Bytes> {
    decompress_counted(batch, &mut |_| ())
}

/// The same; `grows` is told how many bytes more are held, before or as they come out.
///
/// # Errors
/// As [`decompress`].
pub fn decompress_counted(batch: &RecordBatch, grows: &mut dyn FnMut(usize)) -> io::Result<Bytes> {
    match batch.header().codec() {
        Some(Codec::None) => Ok(batch.payload()),
        Some(codec) => {
            let mut out = Vec::new();
            decompress_into_counted(&mut out, codec, &batch.payload(), grows)?;
            Ok(out.into())
        }
        None => Err(bad("unknown codec")),
    }
}

/// Fills `out` with the uncompressed records of a payload; what was in it before is gone.
///
/// # Errors
/// The codec's, and where the records are larger than [`DECODED_MAX`].
pub fn decompress_into(out: &mut Vec<u8>, codec: Codec, payload: &[u8]) -> io::Result<()> {
    decompress_into_counted(out, codec, payload, &mut |_| ())
}

/// The same; `grows` is told how many bytes more are held, before or as they come out.
///
/// # Errors
/// As [`decompress_into`].
pub fn decompress_into_counted(
    out: &mut Vec<u8>,
    codec: Codec,
    payload: &[u8],
    grows: &mut dyn FnMut(usize),
) -> io::Result<()> {
    out.clear();
    match codec {
        Codec::None => {
            grows(payload.len());
            out.extend_from_slice(payload);
        }
        Codec::Gzip => read_all(out, flate2::read::MultiGzDecoder::new(payload), grows)?,
        Codec::Snappy => snappy(out, payload, grows)?,
        Codec::Lz4 => read_all(out, lz4_flex::frame::FrameDecoder::new(payload), grows)?,
        Codec::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(payload)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            read_all(out, decoder, grows)?;
        }
    }
    if out.len() > DECODED_MAX { Err(bad("records are too large")) } else { Ok(()) }
}

/// Appends a payload, compressed, to `out`, as Kafka's own clients frame it.
///
/// # Errors
/// The codec's.
pub fn compress_into(out: &mut Vec<u8>, codec: Codec, levels: &CompressionLevels, payload: &[u8]) -> io::Result<()> {
    match codec {
        Codec::None => {
            out.extend_from_slice(payload);
            Ok(())
        }
        Codec::Gzip => {
            let level = u32::try_from(levels.gzip).map_or_else(|_| Compression::default(), Compression::new);
            let mut encoder = flate2::write::GzEncoder::new(out, level);
            encoder.write_all(payload)?;
            encoder.finish().map(drop)
        }
        Codec::Snappy => put_snappy(out, payload),
        Codec::Lz4 => {
            let info = FrameInfo::new().block_size(BlockSize::Max64KB).block_mode(BlockMode::Independent);
            let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, out);
            encoder.write_all(payload)?;
            encoder.finish().map(drop).map_err(io::Error::other)
        }
        Codec::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(out, levels.zstd)?;
            // Levels above 19 want larger windows than a reader with the same bound takes.
            encoder.window_log(ZSTD_WINDOW_LOG.min(window_for(payload.len())))?;
            encoder.write_all(payload)?;
            encoder.finish().map(drop)
        }
    }
}

/// The logarithm of the smallest window that holds so many bytes.
fn window_for(length: usize) -> u32 {
    length.next_power_of_two().trailing_zeros().max(10)
}

fn read_all(out: &mut Vec<u8>, decoder: impl Read, grows: &mut dyn FnMut(usize)) -> io::Result<()> {
    let limit = u64::try_from(DECODED_MAX).unwrap_or(u64::MAX) + 1;
    let mut decoder = decoder.take(limit);
    // A piece at a time: a small input may become large.
    while let read @ 1.. = decoder.by_ref().take(PIECE).read_to_end(out)? {
        grows(read);
    }
    Ok(())
}

/// One raw block, or the Java framing: magic, two versions, then blocks with their length before each.
fn snappy(out: &mut Vec<u8>, payload: &[u8], grows: &mut dyn FnMut(usize)) -> io::Result<()> {
    if !payload.starts_with(XERIAL) {
        return snappy_block(out, payload, grows);
    }
    let mut rest = payload.get(XERIAL.len() + 8..).ok_or_else(|| bad("snappy framing is cut off"))?;
    while !rest.is_empty() {
        let (length, tail) = rest.split_first_chunk::<4>().ok_or_else(|| bad("snappy framing is cut off"))?;
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let block = tail.get(..length).ok_or_else(|| bad("snappy block is cut off"))?;
        snappy_block(out, block, grows)?;
        rest = &tail[length..];
    }
    Ok(())
}

/// Appends what a block holds.
fn snappy_block(out: &mut Vec<u8>, block: &[u8], grows: &mut dyn FnMut(usize)) -> io::Result<()> {
    let length = snap::raw::decompress_len(block).map_err(io::Error::other)?;
    // A snappy block expands by a bounded factor; a larger claim is a lie, refused before anything is reserved.
    if length > DECODED_MAX.saturating_sub(out.len()).min(block.len().saturating_mul(64)) {
        return Err(bad("snappy block claims too much"));
    }
    grows(length);
    let start = out.len();
    out.resize(start + length, 0);
    let written = snap::raw::Decoder::new().decompress(block, &mut out[start..]).map_err(io::Error::other)?;
    out.truncate(start + written);
    Ok(())
}

/// The Java framing, which every client reads.
fn put_snappy(out: &mut Vec<u8>, payload: &[u8]) -> io::Result<()> {
    out.extend_from_slice(XERIAL);
    out.extend([0, 0, 0, 1, 0, 0, 0, 1]);
    let mut encoder = snap::raw::Encoder::new();
    for block in payload.chunks(XERIAL_BLOCK) {
        let start = out.len() + 4;
        out.resize(start + snap::raw::max_compress_len(block.len()), 0);
        let length = encoder.compress(block, &mut out[start..]).map_err(io::Error::other)?;
        out.truncate(start + length);
        let length = u32::try_from(length).expect("a block of 32 KiB compresses to less than 4 GiB");
        out[start - 4..start].copy_from_slice(&length.to_be_bytes());
    }
    Ok(())
}

fn bad(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Record, RecordIter, encode_batch, encode_records};

    const CODECS: [Codec; 5] = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];

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
        let raw = snap::raw::Encoder::new().compress_vec(&plain).unwrap();
        let compressed = |codec| {
            let mut out = Vec::new();
            compress_into(&mut out, codec, &CompressionLevels::default(), &plain).unwrap();
            (codec, out)
        };
        for (codec, compressed) in CODECS.map(compressed).into_iter().chain([(Codec::Snappy, raw)]) {
            let mut held = 0;
            let payload = decompress_counted(&batch(codec, &compressed, 50), &mut |bytes| held += bytes).unwrap();
            // What is not compressed is the batch's own memory.
            assert_eq!(held, if codec == Codec::None { 0 } else { plain.len() }, "{codec:?}");
            let read: Vec<Record> = RecordIter::new(payload, 50).collect::<Result<_, _>>().unwrap();
            assert_eq!(read, records(), "{codec:?}");
        }
    }

    #[test]
    fn every_level_that_kafka_has_reads_back_and_nothing_and_much_do_too() {
        let noise: Vec<u8> = (0..300_000u32).map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3] & 0x3f).collect();
        let many = |gzip, zstd| CompressionLevels { gzip, zstd, ..CompressionLevels::default() };
        for levels in [many(-1, 3), many(1, -131_072), many(9, 22), many(6, 1)] {
            for codec in CODECS {
                for payload in [&b""[..], &noise] {
                    let (mut compressed, mut out) = (Vec::new(), vec![1, 2, 3]);
                    compress_into(&mut compressed, codec, &levels, payload).unwrap();
                    decompress_into(&mut out, codec, &compressed).unwrap();
                    assert!(out == payload, "{codec:?} {levels:?}");
                }
            }
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let zeros = vec![0u8; 80 << 20];
        for codec in [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
            let mut bomb = Vec::new();
            compress_into(&mut bomb, codec, &CompressionLevels::default(), &zeros).unwrap();
            assert!(bomb.len() < 5_000_000);
            assert!(decompress(&batch(codec, &bomb, 1)).is_err(), "{codec:?}");
        }
        // A claim of 4 GiB in a few bytes.
        let lie = [0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0];
        let mut held = 0;
        assert!(decompress_counted(&batch(Codec::Snappy, &lie, 1), &mut |bytes| held += bytes).is_err());
        assert_eq!(held, 0);
    }

    #[test]
    fn noise_gives_errors_and_no_panic() {
        for seed in 0..2000u64 {
            let noise: Vec<u8> = (0..seed % 90).map(|i| (seed * 31 + i * i * 7).to_le_bytes()[0]).collect();
            for codec in CODECS {
                for prefix in [&b""[..], XERIAL, &[0x1f, 0x8b, 8], &[0x04, 0x22, 0x4d, 0x18], &[0x28, 0xb5, 0x2f, 0xfd]]
                {
                    // Whatever it gives, it ends.
                    let _ = decompress_into(&mut Vec::new(), codec, &[prefix, &noise].concat());
                }
            }
        }
    }
}
