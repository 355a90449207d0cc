//! Opening a log: after a clean shutdown only its end is looked at, else all that follows the recovery point (`R29`).
//!
//! ```text
//!  segments before the recovery point   trusted: they were synced
//!  the one that contains it             headers from the last index entry below it, then whole batches
//!  those after it                       whole batches
//! ```
//!
//! Invariants: what lies whole below the log start is dropped unread, so no verdict depends on it. No other record on disk changes
//! where the verdict is `Lossy`, so that it is the same at the next start; a note says where that has to look. Memory is
//! bounded by the largest batch. A verdict never depends on an index: they are checked, cut and rebuilt. Nor does the log's
//! end depend on the name of a file alone that stands out of the reach of what is before it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::{BatchHeader, EpochCache, LeaderEpoch, Offset, TopicId};

use super::aborted::AbortedIndex;
use super::compaction::swap;
use super::identity::{self, Identity};
use super::index::{self, Rebuild};
use super::segment::{CLEANED, FileKind, Segment, parse_name};
use super::sync::SyncState;
use super::tail::Tail;
use super::truncate::{read_note, segment_bases};
use super::walk::{FAR, Order, Step, Walker, frame};
use super::{Condition, Log, LogError, Names, OpenHints, Recovered, Verdict, damage, epochs};
use crate::config::LogConfig;
use crate::disk::{DiskFile, read_exact_at};
use crate::env::LogEnv;

/// The first place where the log is not sound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Bad {
    segment: usize,
    position: u64,
}

/// Tells people of a recovery that takes long.
struct Progress {
    began: Instant,
    told: Duration,
    /// Looked at the clock when so many bytes were done.
    looked: u64,
    total: u64,
}

/// Between two lines about one log.
const TELL_EVERY: Duration = Duration::from_secs(2);
/// So many bytes later the clock is looked at again.
const LOOK_EVERY: u64 = 16 << 20;

/// What recovery knows while it goes through the segments.
struct Recovery {
    /// Batches that end above this are checked whole.
    recovery_point: Offset,
    /// What was synced, as far as it is known: a log that ends below has lost something.
    synced: Offset,
    high_watermark: Offset,
    clean: bool,
    /// Nothing says whose these files are.
    distrusted: bool,
    expected: Offset,
    last: Option<BatchHeader>,
    /// Where the epoch changes, among the batches looked at; the first of them included.
    epoch_changes: Vec<(LeaderEpoch, Offset)>,
    progress: Progress,
}

impl Log {
    /// Opens the log in `dir`, or one that has no directory yet. Blocks, after a crash for as long as it takes to read
    /// what follows the recovery point.
    ///
    /// # Errors
    /// `WrongTopic` and `UnknownTopic` leave the directory as it is; an I/O error takes the log directory offline.
    pub fn open(
        env: &LogEnv,
        dir: &Path,
        config: Arc<LogConfig>,
        hints: OpenHints,
    ) -> Result<(Log, Recovered), LogError> {
        match Self::open_once(env, dir, Arc::clone(&config), hints) {
            // The epochs had to be read from batches that a start does not check, and some of them are damaged.
            Err(LogError::Corrupt { offset, .. }) => {
                damage::write_note(env, dir, offset)?;
                match Self::open_once(env, dir, Arc::clone(&config), hints) {
                    // Those that are not damaged are not where they should be either: nothing is believed.
                    Err(LogError::Corrupt { .. }) => {
                        damage::write_note(env, dir, Offset::ZERO)?;
                        Self::open_once(env, dir, config, hints)
                    }
                    opened => opened,
                }
            }
            opened => opened,
        }
    }

    fn open_once(
        env: &LogEnv,
        dir: &Path,
        config: Arc<LogConfig>,
        hints: OpenHints,
    ) -> Result<(Log, Recovered), LogError> {
        let mut log = Log::absent(env, dir, config, hints.topic_id);
        log.usable()?;
        let mut bases = match segment_bases(&*env.disk, dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(log.without_directory(&hints)),
            other => other.map_err(log.failed("cannot list"))?,
        };
        let distrusted = !log.is_mine(&bases, &hints)?;
        if swap::complete(&*env.disk, dir).map_err(log.failed("cannot complete a cleaning in"))? {
            bases = segment_bases(&*env.disk, dir).map_err(log.failed("cannot list"))?;
        }
        log.remove_leftovers(&bases)?;
        log.remove_below(hints.log_start, &mut bases)?;
        let note = read_note(&*env.disk, dir).map_err(log.failed("cannot read in"))?;
        log.truncation_noted = note.is_some();
        log.recovery_point_max = hints.recovery_point;
        let synced = note.map_or(hints.recovery_point, |note| note.min(hints.recovery_point));
        // R78: what a read has found is looked at again, however the process before ended.
        let damage = damage::read_note(&*env.disk, dir).map_err(log.failed("cannot read in"))?;
        log.damage_noted = damage.is_some();
        let recovery_point = damage.map_or(synced, |damage| damage.min(synced));
        let clean = hints.clean && damage.is_none();
        let mut recovery = Recovery {
            recovery_point: if clean { Offset(i64::MAX) } else { recovery_point },
            synced,
            high_watermark: hints.high_watermark,
            clean: clean && !distrusted,
            distrusted,
            expected: Offset::ZERO,
            last: None,
            epoch_changes: Vec::new(),
            progress: Progress { began: Instant::now(), told: Duration::ZERO, looked: 0, total: 0 },
        };
        let mut bad = log.load_segments(&bases, &mut recovery)?;
        if bad.is_some() && recovery.clean {
            // The proof of a clean shutdown is refuted: look at everything that the recovery point does not cover.
            log.names = Names::NewDirectory;
            recovery = Recovery { recovery_point, clean: false, last: None, epoch_changes: Vec::new(), ..recovery };
            bad = log.load_segments(&bases, &mut recovery)?;
        }
        let (mut log, recovered) = log.conclude(bad, recovery, &hints)?;
        if log.unsynced() > 0 {
            log.written =
                log.segments.iter().map(|segment| u64::from(segment.size.saturating_sub(segment.unread))).sum();
        }
        Ok((log, recovered))
    }

    fn absent(env: &LogEnv, dir: &Path, config: Arc<LogConfig>, topic_id: TopicId) -> Log {
        Log {
            env: env.clone(),
            dir: Arc::from(dir),
            config,
            topic_id,
            segments: Vec::new(),
            indexer: None,
            tail: Tail::new(Arc::clone(&env.tail)),
            last_batch: None,
            log_start: Offset::ZERO,
            log_end: Offset::ZERO,
            synced_end: Offset::ZERO,
            recovery_point_max: Offset::ZERO,
            truncation_noted: false,
            sync: SyncState::Idle,
            names: Names::Absent,
            condition: Condition::Usable,
            persisted_epoch: None,
            unpersisted_from: None,
            written: 0,
            written_synced: 0,
            written_syncing: 0,
            cuts: 0,
            deletions: Vec::new(),
            aborted: AbortedIndex::new(),
            swap: None,
            damage_noted: false,
            cleaned_to: None,
            lent_end: Offset::ZERO,
            truncations: 0,
            preallocated: false,
            unfinished: None,
        }
    }

    /// A partition that was never written, or one whose directory is gone.
    fn without_directory(mut self, hints: &OpenHints) -> (Log, Recovered) {
        let mut verdict = Verdict::Sound;
        if hints.high_watermark.max(hints.recovery_point) > Offset::ZERO {
            verdict = Verdict::Lossy { first_bad: Offset::ZERO };
            self.condition = Condition::Lossy(Offset::ZERO);
        }
        (self, Recovered { epochs: EpochCache::default(), verdict })
    }

    /// Whether the files can be this topic's (`R4`): false where nothing says whose they are and nothing was ever synced.
    fn is_mine(&mut self, bases: &[Offset], hints: &OpenHints) -> Result<bool, LogError> {
        let found = identity::read(&*self.env.disk, &self.dir).map_err(self.failed("cannot read in"))?;
        // What a crash left may be in the page cache only.
        self.names = if hints.clean { Names::Durable } else { Names::NewDirectory };
        match found {
            Identity::Known { topic_id, .. } if topic_id == self.topic_id => Ok(true),
            Identity::Known { topic_id: found, .. } => {
                Err(LogError::WrongTopic { path: self.dir.to_path_buf(), found, expected: self.topic_id })
            }
            Identity::Unknown if bases.is_empty() => {
                self.write_identity()?;
                Ok(true)
            }
            Identity::Unknown if hints.recovery_point > Offset::ZERO || hints.clean => {
                Err(LogError::UnknownTopic(identity::path(&self.dir)))
            }
            Identity::Unknown => Ok(false),
        }
    }

    /// Says whose the directory is. It may say so already, durably: a write in place would put that at risk.
    pub(super) fn write_identity(&mut self) -> Result<(), LogError> {
        let written = identity::replace(&*self.env.disk, &self.dir, self.topic_id);
        written.map_err(|e| LogError::write(&self.env.health, &self.dir, &e))?;
        self.names = Names::NewDirectory;
        Ok(())
    }

    /// What an earlier process had begun to remove or to replace: indexes of a segment whose `.log` went first among them.
    fn remove_leftovers(&self, bases: &[Offset]) -> Result<(), LogError> {
        let entries = self.env.disk.list(&self.dir).map_err(self.failed("cannot list"))?;
        let is_orphan = |name: &str| {
            let of = ["index", "timeindex", "txnindex"].iter().find_map(|kind| parse_name(name, kind));
            of.is_some_and(|base| bases.binary_search(&base).is_err())
        };
        let left =
            |name: &str| [".deleted", ".tmp", CLEANED].iter().any(|suffix| name.ends_with(suffix)) || is_orphan(name);
        for entry in entries.iter().filter(|entry| left(&entry.name)) {
            self.env.disk.remove_file(&self.dir.join(&entry.name)).map_err(self.failed("cannot remove a file in"))?;
        }
        Ok(())
    }

    /// Removes the segments that lie whole below the log start: deleted ones that a crash brought back among them, with holes
    /// where it did not.
    fn remove_below(&self, log_start: Offset, bases: &mut Vec<Offset>) -> Result<(), LogError> {
        let kept = bases.partition_point(|base| *base <= log_start).saturating_sub(1);
        for base in bases.drain(..kept) {
            let files = Segment::new(&self.env, base, 0).files(&self.env, &self.dir);
            files.remove().map_err(self.failed("cannot remove a segment in"))?;
        }
        Ok(())
    }

    /// Fills `segments`, up to the first place that is not sound.
    fn load_segments(&mut self, bases: &[Offset], recovery: &mut Recovery) -> Result<Option<Bad>, LogError> {
        self.segments.clear();
        self.indexer = None;
        if recovery.distrusted {
            self.segments.extend(bases.first().map(|base| Segment::found(&self.env, *base)));
            return Ok((!bases.is_empty()).then_some(Bad { segment: 0, position: 0 }));
        }
        let mut first = bases.partition_point(|base| *base <= recovery.recovery_point).saturating_sub(1);
        // Also where nothing else is looked at, what is before it says whether such a segment can be.
        while first > 0 && bases[first] - bases[first - 1] > i64::from(i32::MAX) {
            first -= 1;
        }
        recovery.expected = bases.first().copied().unwrap_or(Offset::ZERO);
        let mut before = 0;
        for base in &bases[first.min(bases.len())..] {
            let segment = Segment::new(&self.env, *base, 0);
            recovery.progress.total += self.file_size(&segment)?;
            segment.files(&self.env, &self.dir).close_all();
        }
        for (i, base) in bases.iter().enumerate() {
            let mut segment = Segment::found(&self.env, *base);
            let size = self.file_size(&segment)?;
            if i < first {
                segment.size = u32::try_from(size).unwrap_or(u32::MAX);
                segment.unread = segment.size;
                self.segments.push(segment);
                continue;
            }
            self.segments.push(segment);
            // A segment is named after the end of the one before it; only an offset out of its reach makes a gap.
            let gap = *base - recovery.expected;
            if i > first && gap != 0 && gap <= i64::from(i32::MAX) {
                self.indexer = None;
                return Ok(Some(Bad { segment: i, position: 0 }));
            }
            let next = bases.get(i + 1).copied();
            let expected = recovery.expected;
            let bad = self.check_segment((size, next), (i == first, before), recovery)?;
            if i > first && gap != 0 && self.segments[i].size == 0 {
                // Only a batch is a reason for such a gap (`append`); the name of a file is none.
                recovery.expected = expected;
                self.indexer = None;
                return Ok(Some(Bad { segment: i, position: 0 }));
            }
            if let Some(position) = bad {
                return Ok(Some(Bad { segment: i, position }));
            }
            before += size;
        }
        Ok(None)
    }

    fn file_size(&self, segment: &Segment) -> Result<u64, LogError> {
        let log = segment.files(&self.env, &self.dir).open(FileKind::Log);
        log.and_then(|log| log.size()).map_err(self.failed("cannot read in"))
    }

    /// Goes through the last of `segments`; gives the position of the first thing in it that is not a sound batch.
    /// `next` is the base of the one behind it; `before` bytes of the segments before it are done.
    fn check_segment(
        &mut self,
        (size, next): (u64, Option<Offset>),
        (first, before): (bool, u64),
        recovery: &mut Recovery,
    ) -> Result<Option<u64>, LogError> {
        let failed = self.failed("cannot recover");
        let segment = self.segments.last_mut().expect("the caller has pushed it");
        let files = segment.files(&self.env, &self.dir);
        let end = size.min(u64::from(i32::MAX.unsigned_abs()));
        let trusted_to = if first { recovery.recovery_point + -1 } else { Offset(-1) };
        let floor = match first {
            true => index::floor_entry(&files, trusted_to, end).map_err(&failed)?,
            false => None,
        };
        recovery.expected = floor.map_or(segment.base.max(recovery.expected), |entry| entry.header.base_offset);
        if first && floor.is_none() {
            recovery.expected = segment.base;
        }
        let start = floor.map_or(0, |entry| u64::from(entry.position));
        let mut rebuild = None;
        if !(recovery.clean && (floor.is_some() || end == 0)) {
            rebuild = Some(Rebuild::begin(&files, floor.as_ref()).map_err(&failed)?);
        }
        (segment.max, segment.unread) = (None, floor.map_or(0, |entry| entry.position));
        let log = files.open(FileKind::Log).map_err(&failed)?;
        let mut walker = Walker::new(log, start, end, FAR);
        let mut indexed = floor.map(|entry| entry.position);
        let mut suspect = None;
        loop {
            let position = walker.position();
            let before_it = (position, recovery.expected, recovery.last);
            let Some(header) = recovery.sound_batch(segment.base, &mut walker).map_err(&failed)? else { break };
            suspect = (header.base_offset > before_it.1).then_some(before_it);
            // What a sync covered is not checked here; its time is not believed unchecked.
            let believed =
                header.next_offset() > recovery.recovery_point || walker.has_good_crc(&header).map_err(&failed)?;
            walker.skip(&header);
            recovery.progress.tell(&self.dir, before + walker.position());
            segment.count_time(&header, believed, walker.position());
            if let Some(rebuild) = rebuild.as_mut().filter(|_| indexed.take().is_none()) {
                let position = u32::try_from(position).expect("positions are below 2 GiB");
                let place = (position, self.config.index_interval_bytes);
                rebuild.note(segment, &header, place, &files).map_err(&failed)?;
            }
        }
        let mut end = walker.position();
        if let Some(before_it) = suspect
            && next_offset(&mut walker, next).map_err(&failed)?.is_some_and(|next| next < recovery.expected)
        {
            // A batch that left a hole before it, and reaches over what follows: it is its own offset that is wrong.
            (end, recovery.expected, recovery.last) = before_it;
        }
        segment.size = u32::try_from(end).expect("positions are below 2 GiB");
        segment.dirty = !recovery.clean;
        self.indexer = None;
        if let Some(rebuild) = rebuild {
            segment.indexes_dirty = true;
            self.indexer = rebuild.end(segment, &files).map_err(&failed)?;
        }
        Ok((end < size).then_some(end))
    }

    /// The verdict, and what follows from it.
    fn conclude(
        mut self,
        bad: Option<Bad>,
        recovery: Recovery,
        hints: &OpenHints,
    ) -> Result<(Log, Recovered), LogError> {
        self.last_batch = match recovery.last {
            Some(last) => Some(last),
            None => self.last_batch_before(self.segments.len())?,
        };
        let base = self.segments.last().map_or(Offset::ZERO, |active| active.base);
        self.log_end = self.last_batch.map_or(base, |last| last.next_offset().max(base));
        if let Some(bad) = bad
            && bad.position == 0
        {
            // The base of a segment without a sound batch says nothing of where the log ends.
            self.log_end = self.last_batch.map_or(self.first_base(), |last| last.next_offset());
        }
        self.log_start = hints.log_start.min(self.log_end).max(self.first_base().min(self.log_end));
        let synced = if recovery.clean { self.log_end } else { recovery.recovery_point.min(self.log_end) };
        self.synced_end = synced.max(self.log_start);
        let promised = recovery.high_watermark.max(recovery.synced);
        let valid_follows = match bad {
            Some(bad) if !recovery.distrusted => self.anything_valid_behind(bad, &recovery)?,
            _ => false,
        };
        let verdict = if valid_follows || self.log_end < promised {
            self.condition = Condition::Lossy(self.log_end);
            Verdict::Lossy { first_bad: self.log_end }
        } else if let Some(bad) = bad {
            let bytes = self.cut_torn_tail(bad, recovery.distrusted)?;
            Verdict::TruncatedTail { from: self.log_end, bytes }
        } else {
            Verdict::Sound
        };
        if let Verdict::Lossy { first_bad } = verdict {
            match self.note_damage(first_bad) {
                // A broker starts on a full disk too; only a clean shutdown before the loss is accepted would forget it.
                Ok(()) | Err(LogError::NoSpace(_)) => {}
                Err(error) => return Err(error),
            }
        } else {
            self.forget_damage()?;
        }
        if verdict != Verdict::Sound {
            tracing::warn!(dir = %self.dir.display(), ?verdict, "the log was not sound");
        }
        let epochs = self.recover_epochs(&recovery, verdict)?;
        self.load_aborted()?;
        if self.condition == Condition::Usable {
            // Of records that a crash took: others will stand at their offsets (R41).
            self.forget_snapshots_above(self.log_end)?;
        }
        Ok((self, Recovered { epochs, verdict }))
    }

    fn first_base(&self) -> Offset {
        self.segments.first().map_or(Offset::ZERO, |first| first.base)
    }

    /// Removes what stands behind the last sound batch, durably; gives the bytes that were there.
    fn cut_torn_tail(&mut self, bad: Bad, distrusted: bool) -> Result<u64, LogError> {
        let failed = self.failed("cannot cut the torn end of");
        let bases = segment_bases(&*self.env.disk, &self.dir).map_err(&failed)?;
        let mut bytes = 0;
        for base in bases.iter().rev().filter(|base| **base > self.segments[bad.segment].base) {
            let behind = Segment::new(&self.env, *base, 0);
            bytes += self.file_size(&behind)?;
            behind.files(&self.env, &self.dir).remove().map_err(&failed)?;
        }
        let files = self.segments[bad.segment].files(&self.env, &self.dir);
        bytes += self.file_size(&self.segments[bad.segment])? - bad.position;
        let log = files.open(FileKind::Log).map_err(&failed)?;
        log.truncate(bad.position).and_then(|()| log.sync_data()).map_err(&failed)?;
        if bad.position == 0 && self.segments[bad.segment].base != self.log_end {
            // Its name would be taken for the log's end.
            files.remove().map_err(&failed)?;
            self.segments.truncate(bad.segment);
            self.indexer = None;
        }
        if distrusted {
            self.write_identity()?;
        }
        self.env.disk.sync_dir(&self.dir).map_err(&failed)?;
        Ok(bytes)
    }

    /// Whether a whole, valid batch stands anywhere behind the bad place: then it is no torn tail (`R29`).
    fn anything_valid_behind(&self, bad: Bad, recovery: &Recovery) -> Result<bool, LogError> {
        let failed = self.failed("cannot read in");
        let bases = segment_bases(&*self.env.disk, &self.dir).map_err(&failed)?;
        let segment = self.segments[bad.segment].base;
        let mut search = Search::new(recovery.order());
        for base in bases.iter().filter(|base| **base >= segment) {
            let files = Segment::new(&self.env, *base, 0).files(&self.env, &self.dir);
            let from = if *base == segment { bad.position } else { 0 };
            let found = files.open(FileKind::Log).and_then(|log| search.find(&*log, *base, from)).map_err(&failed)?;
            files.close_all();
            if found.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The epoch cache of the records that are there (`R25`): the checkpoint below the recovery point, the batches above.
    fn recover_epochs(&mut self, recovery: &Recovery, verdict: Verdict) -> Result<EpochCache, LogError> {
        let on_disk = epochs::read(&*self.env.disk, &self.dir).map_err(self.failed("cannot read in"))?;
        let told = on_disk.iter().flat_map(EpochCache::entries).copied();
        let mut cache = EpochCache::from_entries(told.filter(|entry| entry.start < recovery.recovery_point));
        let mut agrees = true;
        for (epoch, offset) in &recovery.epoch_changes {
            if *offset < recovery.recovery_point {
                agrees &= cache.epoch_of(*offset) == Some(*epoch);
            } else {
                cache.appended(*epoch, *offset);
            }
        }
        cache.truncate_to(self.log_end);
        cache.truncate_from_start(self.log_start);
        if self.log_start < self.log_end && (!agrees || cache.epoch_of(self.log_start).is_none()) {
            cache = EpochCache::default();
            self.walk(self.log_start, |_, header| {
                cache.appended(header.leader_epoch, header.base_offset.max(self.log_start));
                Ok(None::<()>)
            })?;
        }
        self.persisted_epoch = on_disk.as_ref().and_then(EpochCache::latest);
        if on_disk.as_ref() != Some(&cache) && self.last_batch.is_some() {
            self.unpersisted_from = Some(self.log_start);
            if !matches!(verdict, Verdict::Lossy { .. }) {
                match self.write_epoch_checkpoint(&cache) {
                    // A broker starts on a full disk too: the recovery point waits until there is space.
                    Ok(()) | Err(LogError::NoSpace(_)) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(cache)
    }
}

impl Progress {
    fn tell(&mut self, dir: &Path, done: u64) {
        if done.saturating_sub(self.looked) < LOOK_EVERY {
            return;
        }
        self.looked = done;
        let elapsed = self.began.elapsed();
        if elapsed - self.told >= TELL_EVERY {
            self.told = elapsed;
            let (done_mib, of_mib) = (done >> 20, self.total >> 20);
            tracing::info!(dir = %dir.display(), done_mib, of_mib, seconds = elapsed.as_secs(), "recovering a log");
        }
    }
}

impl Recovery {
    fn order(&self) -> Order {
        let last_epoch = self.last.map_or(LeaderEpoch::NONE, |last| last.leader_epoch);
        Order { expected: self.expected, last_epoch }
    }

    /// The sound batch at which `walker` stands, taken into account; None at the end and where there is none.
    fn sound_batch(&mut self, base: Offset, walker: &mut Walker) -> io::Result<Option<BatchHeader>> {
        let Step::Batch(header) = walker.peek()? else { return Ok(None) };
        let follows = self.order().allows(base, &header);
        let checked = header.next_offset() <= self.recovery_point;
        if !follows || !(checked || walker.has_good_crc(&header)?) {
            return Ok(None);
        }
        if self.last.is_none_or(|last| last.leader_epoch != header.leader_epoch) {
            self.epoch_changes.push((header.leader_epoch, header.base_offset));
        } else if header.base_offset >= self.recovery_point
            && self.last.is_some_and(|last| last.base_offset < self.recovery_point)
        {
            // The first batch above the recovery point speaks for itself.
            self.epoch_changes.push((header.leader_epoch, header.base_offset));
        }
        self.expected = header.next_offset();
        self.last = Some(header);
        Ok(Some(header))
    }
}

/// The offset at which what stands here begins: a batch, or at the end the next segment.
fn next_offset(walker: &mut Walker, next: Option<Offset>) -> io::Result<Option<Offset>> {
    Ok(match walker.peek()? {
        Step::Batch(header) => Some(header.base_offset),
        Step::End => next,
        Step::Bad(_) => None,
    })
}

/// Looks for a valid batch at every byte.
pub(super) struct Search {
    order: Order,
    /// Bytes that may yet be read to check candidates: noise that looks like many headers must not take for ever.
    patience: u64,
}

/// What a search reads at once.
const SEARCH_CHUNK: usize = 1 << 20;

impl Search {
    /// For batches that may follow.
    pub(super) fn new(order: Order) -> Self {
        Self { order, patience: 8 << 30 }
    }

    /// Where a valid batch starts at `from` or behind, or may for all we know, that can stand in a segment of this base: what
    /// a record has in its value may look like one.
    pub(super) fn find(&mut self, log: &dyn DiskFile, base: Offset, from: u64) -> io::Result<Option<u64>> {
        let size = log.size()?;
        let mut chunk_at = from;
        while chunk_at + (model::batch::HEADER_LEN as u64) <= size {
            let length = usize::try_from(size - chunk_at).unwrap_or(usize::MAX).min(SEARCH_CHUNK);
            let mut chunk = vec![0; length];
            read_exact_at(log, &mut chunk, chunk_at)?;
            let last = length - model::batch::HEADER_LEN;
            for i in (0..=last).filter(|i| chunk[i + 16] == 2) {
                let position = chunk_at + i as u64;
                if self.is_valid(log, &chunk[i..], base, (position, size))? {
                    return Ok(Some(position));
                }
            }
            chunk_at += last as u64 + 1;
        }
        Ok(None)
    }

    fn is_valid(
        &mut self,
        log: &dyn DiskFile,
        bytes: &[u8],
        base: Offset,
        (position, size): (u64, u64),
    ) -> io::Result<bool> {
        let Ok(header) = frame(bytes, size - position) else { return Ok(false) };
        if !self.order.allows(base, &header) {
            return Ok(false);
        }
        self.patience = self.patience.saturating_sub(header.size as u64);
        if self.patience == 0 {
            return Ok(true);
        }
        if let Some(whole) = bytes.get(..header.size) {
            return Ok(model::batch::check(whole).is_ok());
        }
        let mut whole = vec![0; header.size];
        read_exact_at(log, &mut whole, position)?;
        Ok(model::batch::check(&whole).is_ok())
    }
}
