//! The storage's fuzz targets in the loop: each with some seeded mutations of what is sound, for seconds. A fuzzer, which sees
//! where the code goes, runs them for hours (`just fuzz-hours`).

use std::panic::catch_unwind;
use std::path::Path;

use model::{Codec, EpochCache, Offset};
use replication::producers::ProducerTable;
use storage::compression::compress_into;
use storage::disk::{Disk, OpenMode, read_exact_at};

#[path = "../../../../fuzz/src/logs.rs"]
#[expect(unreachable_pub, reason = "the fuzz targets are another crate")]
mod logs;
#[path = "../../../../fuzz/src/targets.rs"]
#[expect(unreachable_pub, reason = "the fuzz targets are another crate")]
mod targets;

/// A small generator (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % (bound.max(1) as u64)).expect("below a length")
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).expect("a byte")
    }

    /// One to four changes.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            let behind = at + self.below(bytes.len().saturating_sub(at).min(64) + 1);
            match self.below(7) {
                0 => bytes.truncate(at),
                1 => drop(bytes.drain(at..behind)),
                2 => bytes.insert(at, self.byte()),
                3 => {
                    let again = bytes[at..behind].to_vec();
                    bytes.splice(at..at, again);
                }
                4 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                _ if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                _ => bytes.push(self.byte()),
            }
        }
    }
}

/// The content of the files of a sound log whose names end so.
fn files(suffix: &str) -> Vec<Vec<u8>> {
    let (disk, _) = logs::sound();
    let entries =
        disk.list(Path::new(logs::DIR)).expect("memory").into_iter().filter(|entry| entry.name.ends_with(suffix));
    let read = entries.map(|entry| {
        let file = disk.open(&logs::file(&entry.name), OpenMode::Existing).expect("memory");
        let mut content = vec![0; usize::try_from(file.size().expect("memory")).expect("memory")];
        read_exact_at(&*file, &mut content, 0).expect("memory");
        content
    });
    let all: Vec<_> = read.collect();
    assert!(!all.is_empty(), "no file of a sound log is a {suffix}");
    all
}

/// Runs a target with what is sound, as it is and mutated so often; `head` random bytes go before. Says with what it failed.
fn run(target: fn(&[u8]), head: usize, sound: &[Vec<u8>], times: usize) {
    let mut random = Random(7);
    for number in 0..times {
        let mut data: Vec<u8> = (0..head).map(|_| random.byte()).collect();
        let mut content = sound[random.below(sound.len())].clone();
        if number >= sound.len() {
            random.mutate(&mut content);
        }
        data.extend(content);
        assert!(catch_unwind(|| target(&data)).is_ok(), "number {number}: {data:02x?}");
    }
}

/// What a snapshot of two producers says: one has an open transaction, and one of another producer has ended.
fn producers() -> Vec<u8> {
    let mut body = [&40i64.to_be_bytes()[..], &2u32.to_be_bytes()].concat();
    for (id, transaction) in [(7i64, 20i64), (8, -1)] {
        body.extend(id.to_be_bytes());
        body.extend([&3i16.to_be_bytes()[..], &1i32.to_be_bytes(), &1000i64.to_be_bytes()].concat());
        body.extend(transaction.to_be_bytes());
        body.push(2);
        for at in [20i64, 30] {
            body.extend([0i32, 4].iter().flat_map(|sequence| sequence.to_be_bytes()));
            body.extend([at, at + 4, 1000].iter().flat_map(|number| number.to_be_bytes()));
        }
    }
    body.extend([&1u32.to_be_bytes()[..], &10i64.to_be_bytes(), &15i64.to_be_bytes()].concat());
    body
}

#[test]
fn segments_that_were_mutated_are_recovered_as_the_same_log_twice() {
    run(targets::recovery, 2, &files(".log"), 1500);
}

#[test]
fn indexes_that_were_mutated_lead_nobody_astray() {
    let sound: Vec<_> = [files(".index"), files(".timeindex")].concat();
    run(targets::indexes, 1, &sound, 1000);
}

#[test]
fn epoch_checkpoints_that_were_mutated_give_each_batch_its_own_epoch() {
    let mut epochs = EpochCache::default();
    for batch in logs::sound().1 {
        epochs.appended(batch.header().leader_epoch, batch.header().base_offset);
    }
    let lines = epochs.entries().iter().map(|entry| format!("{} {}\n", entry.epoch, entry.start));
    let text = format!("0\n{}\n{}", epochs.entries().len(), lines.collect::<String>());
    run(targets::epochs, 0, &[text.into_bytes()], 1000);
}

#[test]
fn producer_snapshots_that_were_mutated_are_refused_or_restored_whole() {
    let body = producers();
    let whole = [&2u16.to_be_bytes()[..], &model::batch::crc32c(&body).to_be_bytes(), &body].concat();
    let (offset, table) = ProducerTable::restore(&whole).unwrap();
    assert_eq!((offset, table.iter().count()), (Offset(40), 2));
    // Version and checksum are put before it by the target.
    run(targets::producers, 0, &[body, whole], 2000);
}

#[test]
fn batches_that_were_mutated_are_refused_or_decoded_within_bounds() {
    let batches = logs::sound().1;
    let mut sound: Vec<Vec<u8>> = batches.iter().take(4).map(|batch| batch.bytes().to_vec()).collect();
    for codec in [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd] {
        let mut compressed = Vec::new();
        compress_into(&mut compressed, codec, &Default::default(), &batches[0].payload()).unwrap();
        sound.push(compressed);
    }
    run(targets::batches, 0, &sound, 4000);
}
