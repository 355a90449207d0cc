//! The log cleaner: which compacted log is next, and how fast its cleaning goes. Kafka's `log.cleaner.*`.
//!
//! ```text
//!  round: all compacted logs ──the dirtiest that is dirty enough, overdue ones first──► one of log.cleaner.threads
//!                                                                                       │ slices on the disk pool
//!         after log.cleaner.backoff.ms, or when a cleaning has ended ◄──────────────────┘
//! ```
//!
//! A log whose cleaning was given up (no space, most likely) waits for that time too, and longer each time. Below the
//! directory's reserve none begins.
//!
//! Invariants: a log has one cleaner at most; so many cleanings run as there are cleaner threads; all together they read
//! and write no more than `log.cleaner.io.max.bytes.per.second` on average. Nothing sleeps on the disk pool.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metadata::configs::CleanerConfig;
use model::Time;
use storage::{Cleanable, Cleaning, CleaningStats};
use tokio::task::JoinSet;

use crate::context::Context;
use crate::partition::{Claim, Partition, SliceOutcome};

/// Bytes of one slice, at most.
const SLICE_MAX: u64 = 4 << 20;
/// And at least, so that slow cleaning does not become all overhead.
const SLICE_MIN: u64 = 64 << 10;

/// What an operator watches of the cleaner: Kafka's names.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct CleanerMetrics {
    /// `LogCleaner.cleaner-recopy-percent`: of the newest cleaning, how much of what it read it wrote again.
    pub recopy_percent: f64,
    /// `LogCleaner.max-buffer-utilization-percent`: how full the map of keys was.
    pub buffer_utilization_percent: f64,
    /// `LogCleaner.max-clean-time-secs`.
    pub clean_time_secs: f64,
    /// `LogCleaner.max-compaction-delay-secs`: the most overdue log of the newest round.
    pub compaction_delay_secs: f64,
    /// `LogCleanerManager.max-dirty-percent`.
    pub dirty_percent: f64,
    /// `LogCleanerManager.time-since-last-run-ms`, as of now.
    pub since_last_run_ms: u64,
    /// `LogCleanerManager.uncleanable-partitions-count`.
    pub uncleanable_partitions: usize,
    /// `LogCleanerManager.uncleanable-bytes`.
    pub uncleanable_bytes: u64,
    /// How often it looked at all logs for one to clean.
    pub rounds: u64,
    /// Cleanings that came to their end.
    pub cleanings: u64,
    /// Cleanings that were given up.
    pub given_up: u64,
    /// Bytes that cleanings read.
    pub bytes_read: u64,
    /// Bytes that they wrote.
    pub bytes_written: u64,
    /// Batches that did not decode and were kept whole.
    pub opaque_batches: u64,
}

/// What the cleaner keeps beside the partitions.
#[derive(Debug, Default)]
pub(crate) struct CleanerState {
    metrics: Mutex<CleanerMetrics>,
    last_run: Mutex<Option<Time>>,
    throttle: Throttle,
}

impl CleanerState {
    /// The newest values.
    pub(crate) fn metrics(&self, now: Time, partitions: &[Arc<Partition>]) -> CleanerMetrics {
        let mut metrics = *self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let last_run = *self.last_run.lock().unwrap_or_else(PoisonError::into_inner);
        metrics.since_last_run_ms = last_run.map_or(0, |last| now.since(last));
        for bytes in partitions.iter().filter_map(|partition| partition.uncleanable_bytes()) {
            metrics.uncleanable_partitions += 1;
            metrics.uncleanable_bytes += bytes;
        }
        metrics
    }

    fn update(&self, change: impl FnOnce(&mut CleanerMetrics)) {
        change(&mut self.metrics.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Spreads the bytes of all cleanings, or of all moves, over time.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    /// When what was done so far is paid for, in microseconds of the monotonic clock.
    paid_until: Mutex<u64>,
}

impl Throttle {
    /// How long to wait after so many bytes.
    pub(crate) fn pay(&self, now: Time, bytes: u64, bytes_per_second: f64) -> Duration {
        let now = now.0.saturating_mul(1000);
        let price = Duration::try_from_secs_f64(precise(bytes) / bytes_per_second.max(1.0)).unwrap_or(Duration::MAX);
        let price = u64::try_from(price.as_micros()).unwrap_or(u64::MAX);
        let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
        *paid_until = (*paid_until).max(now).saturating_add(price);
        Duration::from_micros(*paid_until - now)
    }

    /// What was done so far costs nothing more: the rate is another one.
    pub(crate) fn forgive(&self) {
        *self.paid_until.lock().unwrap_or_else(PoisonError::into_inner) = 0;
    }
}

/// Cleans until the broker stops.
pub(crate) async fn run(context: Arc<Context>) {
    let mut running = JoinSet::new();
    loop {
        let config = config(&context);
        if !config.enable {
            return;
        }
        let threads = usize::try_from(config.threads).unwrap_or(usize::MAX);
        while running.len() < threads {
            let Some(claim) = choose(&context).await else { break };
            running.spawn(clean(Arc::clone(&context), claim));
        }
        let backoff = Duration::from_millis(config.backoff_ms.max(1));
        // Dropping either is safe: the round looks at everything anew.
        tokio::select! {
            () = tokio::time::sleep(backoff) => {}
            Some(ended) = running.join_next() => if let Err(error) = ended {
                tracing::error!(%error, "a cleaning ended in a way that it must not");
            },
        }
    }
}

fn config(context: &Context) -> CleanerConfig {
    CleanerConfig::resolve(&context.image(), context.config.broker_id, &context.config.file)
}

/// The log that needs a cleaning most.
async fn choose(context: &Arc<Context>) -> Option<Claim> {
    let (mut best, mut dirtiest, mut latest) = (None, 0.0f64, 0);
    for partition in context.partitions() {
        if !partition.lock().settings.compacted {
            continue;
        }
        let (job_context, asked) = (Arc::clone(context), Arc::clone(&partition));
        let Some(found) = context.disk_pool.run(move || asked.cleanable(&job_context)).await else { continue };
        let min_ratio = partition.lock().settings.log.min_cleanable_dirty_ratio;
        dirtiest = dirtiest.max(found.dirty_ratio());
        latest = latest.max(found.overdue_ms);
        if !is_due(&found, min_ratio) {
            continue;
        }
        let rank = (found.overdue_ms > 0, found.dirty_ratio());
        if best.as_ref().is_none_or(|(_, before)| *before < rank) {
            best = Some((partition, rank));
        }
    }
    context.cleaner.update(|metrics| {
        metrics.rounds += 1;
        metrics.dirty_percent = dirtiest * 100.0;
        metrics.compaction_delay_secs = precise(latest) / 1000.0;
    });
    *context.cleaner.last_run.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.clock.monotonic());
    best.and_then(|(partition, _)| partition.claim_cleaning())
}

fn is_due(found: &Cleanable, min_ratio: f64) -> bool {
    found.dirty_bytes > 0 && (found.overdue_ms > 0 || found.dirty_ratio() > min_ratio)
}

/// Cleans one log, in as many passes as its keys need.
async fn clean(context: Arc<Context>, claim: Claim) {
    let started = context.clock.monotonic();
    let claim = Arc::new(claim);
    let mut all = CleaningStats::default();
    loop {
        let (job_context, job_claim, cleaner) = (Arc::clone(&context), Arc::clone(&claim), config(&context));
        let start = move || job_claim.start(&job_context, &cleaner);
        // Whatever kept it from beginning would keep the next one, too.
        let Some(cleaning) = context.disk_pool.run(start).await else { return give_up(&context, &claim, &all) };
        let (stats, end) = go_through(&context, &claim, cleaning).await;
        all = add(&all, &stats);
        match end {
            End::Again => {}
            End::Through => break,
            End::GivenUp => return give_up(&context, &claim, &all),
        }
    }
    let partition = claim.partition();
    let millis = context.clock.monotonic().since(started);
    tracing::info!(
        topic = %partition.topic(), partition = %partition.id().partition, millis,
        bytes_before = all.bytes_before, bytes_after = all.bytes_after, keys = all.keys,
        opaque_batches = all.filter.opaque_batches, "compacted a log"
    );
    count(&context, &all);
    context.cleaner.update(|metrics| {
        metrics.cleanings += 1;
        metrics.clean_time_secs = precise(millis) / 1000.0;
        metrics.buffer_utilization_percent = all.key_utilization * 100.0;
        if all.bytes_read > 0 {
            metrics.recopy_percent = 100.0 * precise(all.bytes_written) / precise(all.bytes_read);
        }
    });
}

/// The log waits for a while before it is tried again.
fn give_up(context: &Context, claim: &Claim, all: &CleaningStats) {
    claim.pause(context.clock.monotonic(), config(context).backoff_ms.max(1));
    count(context, all);
    context.cleaner.update(|metrics| metrics.given_up += 1);
}

/// What a cleaning did, whatever came of it.
fn count(context: &Context, all: &CleaningStats) {
    context.cleaner.update(|metrics| {
        metrics.bytes_read += all.bytes_read;
        metrics.bytes_written += all.bytes_written;
        metrics.opaque_batches += all.filter.opaque_batches;
    });
}

/// How a cleaning ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Through,
    /// Its map of keys was full: another one has to go on at once.
    Again,
    GivenUp,
}

/// Goes through one cleaning.
async fn go_through(context: &Arc<Context>, claim: &Arc<Claim>, mut cleaning: Box<Cleaning>) -> (CleaningStats, End) {
    let mut done = 0;
    loop {
        let rate = config(context).io_max_bytes_per_second;
        let budget = slice(rate);
        let (job_context, job_claim) = (Arc::clone(context), Arc::clone(claim));
        let work = move || {
            let outcome = job_claim.work(&job_context, &mut cleaning, budget);
            (cleaning, outcome)
        };
        let (worked, outcome) = context.disk_pool.run(work).await;
        cleaning = worked;
        let stats = cleaning.stats();
        match outcome {
            SliceOutcome::More => {}
            SliceOutcome::Done(go_on) => return (stats, if go_on { End::Again } else { End::Through }),
            SliceOutcome::GivenUp(reason) => {
                let partition = claim.partition();
                tracing::info!(topic = %partition.topic(), partition = %partition.id().partition, reason, "gave a cleaning up");
                abandon(context, claim, cleaning).await;
                return (stats, End::GivenUp);
            }
            SliceOutcome::Uncleanable => {
                abandon(context, claim, cleaning).await;
                return (stats, End::GivenUp);
            }
        }
        let bytes = stats.bytes_read + stats.bytes_written;
        let pause = context.cleaner.throttle.pay(context.clock.monotonic(), bytes - done, rate);
        done = bytes;
        if pause >= Duration::from_millis(1) {
            tokio::time::sleep(pause).await;
        }
    }
}

async fn abandon(context: &Arc<Context>, claim: &Arc<Claim>, cleaning: Box<Cleaning>) {
    let (job_context, job_claim) = (Arc::clone(context), Arc::clone(claim));
    context.disk_pool.run(move || job_claim.abandon(&job_context, *cleaning)).await;
}

/// The bytes of a slice at a rate: a tenth of a second's.
pub(crate) fn slice(bytes_per_second: f64) -> u64 {
    let tenth = (bytes_per_second / 10.0).clamp(0.0, precise(SLICE_MAX));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and SLICE_MAX")]
    let tenth = tenth as u64;
    tenth.clamp(SLICE_MIN, SLICE_MAX)
}

fn add(one: &CleaningStats, two: &CleaningStats) -> CleaningStats {
    let mut sum = *two;
    sum.bytes_read += one.bytes_read;
    sum.bytes_written += one.bytes_written;
    sum.bytes_before = one.bytes_before.max(two.bytes_before);
    sum.keys += one.keys;
    sum.key_utilization = one.key_utilization.max(two.key_utilization);
    sum.filter.opaque_batches = one.filter.opaque_batches.max(two.filter.opaque_batches);
    sum
}

#[expect(clippy::cast_precision_loss, reason = "a share or a rate needs no exact bytes")]
fn precise(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Offset;

    #[test]
    fn all_cleanings_together_keep_to_the_rate_on_average() {
        let throttle = Throttle::default();
        let mut waited = Duration::ZERO;
        for i in 0..10 {
            // Two cleaners at the same moment: the second one waits for the first one's bytes too.
            let now = Time(u64::try_from(waited.as_millis()).unwrap());
            let first = throttle.pay(now, 500_000, 1_000_000.0);
            let second = throttle.pay(now, 500_000, 1_000_000.0);
            assert!(second >= first + Duration::from_millis(499), "{i}");
            waited += second;
        }
        assert!(waited >= Duration::from_secs(10) && waited < Duration::from_secs(11), "{waited:?}");
        // Idle time is no credit.
        assert_eq!(throttle.pay(Time(1_000_000), 1_000_000, 1_000_000.0), Duration::from_secs(1));
        assert_eq!(throttle.pay(Time(2_000_000), 1 << 40, f64::MAX), Duration::ZERO);
        assert_eq!([slice(1000.0), slice(f64::MAX), slice(10_000_000.0)], [SLICE_MIN, SLICE_MAX, 1_000_000]);
    }

    #[test]
    fn a_log_is_due_when_it_is_dirty_enough_or_overdue() {
        let found = |dirty_bytes, overdue_ms| Cleanable {
            first_dirty: Offset(0),
            end: Offset(9),
            clean_bytes: 100,
            dirty_bytes,
            overdue_ms,
        };
        let due = [found(100, 0), found(101, 0), found(1, 1), found(0, 1)].map(|found| is_due(&found, 0.5));
        assert_eq!(due, [false, true, true, false]);
    }
}
