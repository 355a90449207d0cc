//! A log against a list of batches: append, read, truncate, roll, retain, reset, sync and reopen in random order.

use super::*;
use crate::log::Verdict;
use model::Time;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    /// Batches with so many records, each behind a hole of so many offsets.
    Append(Vec<(i32, i64)>),
    NewEpoch,
    Read {
        from: i64,
        upto: i64,
        max_bytes: usize,
        min_one: bool,
    },
    Truncate(i64),
    Reset(i64),
    AdvanceLogStart(i64),
    Retain {
        wall: u64,
        high_watermark: i64,
    },
    Roll,
    Sync,
    Checkpoint,
    Reopen {
        clean: bool,
    },
    Find(i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec((1i32..5, prop_oneof![4 => Just(0i64), 1 => 1i64..9]), 1..6).prop_map(Step::Append),
        1 => Just(Step::NewEpoch),
        6 => (0i64..300, 0i64..300, 0usize..2000, any::<bool>())
            .prop_map(|(from, upto, max_bytes, min_one)| Step::Read { from, upto, max_bytes, min_one }),
        2 => (0i64..300).prop_map(Step::Truncate),
        1 => (0i64..300).prop_map(Step::Reset),
        1 => (0i64..300).prop_map(Step::AdvanceLogStart),
        1 => (1000u64..2000, 0i64..300).prop_map(|(wall, high_watermark)| Step::Retain { wall, high_watermark }),
        1 => Just(Step::Roll),
        1 => Just(Step::Sync),
        1 => Just(Step::Checkpoint),
        2 => any::<bool>().prop_map(|clean| Step::Reopen { clean }),
        3 => (900i64..1400).prop_map(Step::Find),
    ]
}

/// The reference: batches in a list.
struct Shadow {
    batches: Vec<RecordBatch>,
    epoch: i32,
    log_start: Offset,
    recovery_point: Offset,
}

impl Shadow {
    fn starting_at(log_start: Offset, epoch: i32) -> Self {
        Self { batches: Vec::new(), epoch, log_start, recovery_point: Offset::ZERO }
    }

    /// Batches that are not whole below the log start.
    fn live(&self) -> Vec<RecordBatch> {
        self.batches.iter().filter(|batch| batch.header().last_offset() >= self.log_start).cloned().collect()
    }

    fn read(&self, from: Offset, upto: Offset, max_bytes: usize, min_one: bool) -> Vec<RecordBatch> {
        let (mut found, mut size) = (Vec::new(), 0);
        for batch in self.batches.iter().filter(|batch| batch.header().last_offset() >= from) {
            size += batch.bytes().len();
            if batch.header().last_offset() >= upto || (size > max_bytes && !(min_one && found.is_empty())) {
                break;
            }
            found.push(batch.clone());
        }
        found
    }

    fn first_since(&self, timestamp: i64) -> Option<i64> {
        let records = self.live().into_iter().flat_map(|batch| {
            let header = *batch.header();
            (0..header.record_count)
                .map(move |i| (header.base_timestamp + i64::from(i), header.base_offset.0 + i64::from(i)))
        });
        records.into_iter().find(|(own, offset)| *own >= timestamp && *offset >= self.log_start.0).map(|(_, o)| o)
    }
}

fn take(world: &mut World, shadow: &mut Shadow, step: Step) -> Result<(), TestCaseError> {
    match step {
        Step::Append(batches) => {
            let mut next = world.log.log_end().0;
            let mut new = Vec::new();
            for (records, hole) in batches {
                new.push(batch(next + hole, shadow.epoch, records, 1000 + next));
                next += hole + i64::from(records);
            }
            for batch in &new {
                world.epochs.appended(batch.header().leader_epoch, batch.header().base_offset);
            }
            world.log.append(&new).unwrap();
            shadow.batches.extend(new);
        }
        Step::NewEpoch => shadow.epoch += 1,
        Step::Read { from, upto, max_bytes, min_one } => {
            let from = Offset(from.clamp(world.log.log_start().0, world.log.log_end().0));
            let read = world.log.read_now(from, Offset(upto), max_bytes, min_one).unwrap();
            let read: Vec<RecordBatch> = read.into_iter().flat_map(|b| RecordBatch::split_all(b).unwrap()).collect();
            let expected = shadow.read(from, Offset(upto), max_bytes, min_one);
            // A read of files ends with its segment; what it gives is right, and not nothing.
            prop_assert!(expected.starts_with(&read), "{from}: {read:?} {expected:?}");
            prop_assert_eq!(expected.is_empty(), read.is_empty());
        }
        Step::Truncate(offset) => {
            let offset = Offset(offset.max(world.log.log_start().0));
            let end = world.log.truncate_to(offset).unwrap();
            if offset.0 % 2 == 0 {
                // From now on files are replaced, not cut.
                world.log.assume_lent();
            }
            shadow.batches.retain(|batch| batch.header().last_offset() < offset);
            world.epochs.truncate_to(end);
            shadow.recovery_point = shadow.recovery_point.min(end);
        }
        Step::Reset(offset) => {
            world.log.reset_to(Offset(offset)).unwrap();
            world.epochs = EpochCache::default();
            *shadow = Shadow::starting_at(Offset(offset), shadow.epoch);
        }
        Step::AdvanceLogStart(offset) => {
            shadow.log_start = world.log.advance_log_start(Offset(offset.min(world.log.log_end().0))).unwrap();
            world.epochs.truncate_from_start(shadow.log_start);
        }
        Step::Retain { wall, high_watermark } => retain(world, shadow, wall, high_watermark)?,
        Step::Roll => {
            world.log.maybe_roll(Time(1 << 40)).unwrap();
        }
        Step::Sync => {
            prop_assert_eq!(world.log.sync_now().unwrap(), world.log.log_end());
        }
        Step::Checkpoint => shadow.recovery_point = world.checkpoint(),
        Step::Reopen { clean } => reopen(world, shadow, clean)?,
        Step::Find(timestamp) => {
            let found = world.log.offset_for_time(timestamp).unwrap().map(|found| match found {
                crate::log::TimeMatch::Record { offset, .. } => offset.0,
                crate::log::TimeMatch::Compressed(_) => -1,
            });
            prop_assert_eq!(found, shadow.first_since(timestamp), "{}", timestamp);
        }
    }
    Ok(())
}

fn retain(world: &mut World, shadow: &mut Shadow, wall: u64, high_watermark: i64) -> Result<(), TestCaseError> {
    let before = world.log.log_start();
    let rose = world.log.expire(Some(Time(wall)), Offset(high_watermark)).unwrap();
    let log_start = world.log.log_start();
    world.log.delete_below(log_start, true, Offset(high_watermark), Time(wall)).unwrap();
    prop_assert_eq!(rose, log_start > before);
    if rose {
        prop_assert!(log_start.0 <= high_watermark.max(before.0), "R39: {log_start}");
        let newest = world.config.retention_ms;
        let gone = shadow.batches.iter().take_while(|batch| batch.header().next_offset() <= log_start);
        for batch in gone.filter(|batch| batch.header().next_offset() > before) {
            prop_assert!(i64::try_from(wall).unwrap() - batch.header().max_timestamp > newest, "{batch:?}");
        }
        shadow.log_start = log_start;
        world.epochs.truncate_from_start(log_start);
    }
    world.log.free_deleted(Time(wall)).unwrap();
    if world.log.size_bytes() == 0 {
        shadow.batches.clear();
    }
    Ok(())
}

fn reopen(world: &mut World, shadow: &mut Shadow, clean: bool) -> Result<(), TestCaseError> {
    if clean {
        shadow.recovery_point = world.checkpoint();
        world.log.settle().unwrap();
    }
    // A start drops what lies below the log start, as retention does.
    let end = world.log.log_end();
    world.log.delete_below(shadow.log_start, true, end, Time(0)).unwrap();
    if world.log.size_bytes() == 0 {
        shadow.batches.clear();
    }
    let before = (world.log.log_end(), world.log.epoch_and_end(), world.log.size_bytes());
    let hints = OpenHints {
        clean,
        log_start: shadow.log_start,
        recovery_point: shadow.recovery_point,
        high_watermark: world.log.log_end(),
        ..hints()
    };
    let recovered = world.crash_and_reopen(Crash::KeepAll, hints);
    prop_assert_eq!(recovered.verdict, Verdict::Sound);
    for batch in shadow.live() {
        let first = batch.header().base_offset.max(shadow.log_start);
        prop_assert_eq!(recovered.epochs.epoch_of(first), Some(batch.header().leader_epoch), "R25, {}", first);
    }
    prop_assert_eq!((world.log.log_end(), world.log.epoch_and_end(), world.log.size_bytes()), before);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_log_is_a_list_of_batches(
        steps in prop::collection::vec(step(), 1..60),
        tail in prop_oneof![Just(0usize), Just(600), Just(1 << 20)],
    ) {
        let config = LogConfig { retention_ms: 300, file_delete_delay_ms: 100, ..small_segments() };
        let mut world = World::with_tail(config, tail);
        let mut shadow = Shadow::starting_at(Offset::ZERO, 0);
        for step in steps {
            take(&mut world, &mut shadow, step)?;
            let log = &world.log;
            prop_assert!(log.log_start() <= log.log_end() && log.recovery_point() <= log.synced_end());
            prop_assert!(log.synced_end() <= log.log_end());
            prop_assert_eq!(log.log_start(), shadow.log_start);
            // Batches below the log start may be gone or not.
            if let Some(last) = shadow.live().last() {
                prop_assert_eq!(log.last_batch_header(), Some(last.header()));
            }
            prop_assert!(world.env.tail_bytes() <= tail);
        }
        prop_assert_eq!(world.all(), shadow.live());
        drop(world.log);
        prop_assert_eq!(world.env.tail_bytes(), 0);
    }
}
