//! A consumer's fetch over many partitions: read what is there, wait for more, read again.

use std::future::poll_fn;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use model::{BrokerId, ErrorCode, Offset, TopicPartition};
use storage::disk::Sent;
use storage::{ColdRead, ColdRecords, RecordRange};

use crate::api::{CurrentLeader, FetchAnswer, FetchPartition, FetchRequest, Fetched, FileRecords, Isolation, Loading};
use crate::budget::{Admission, Charge, PART_MIN};
use crate::context::Context;
use crate::partition::{Partition, PartitionRead, ReadResult};
use crate::waiters::FetchWaiter;

/// An answer without records or offsets.
pub(crate) fn unanswered(partition: TopicPartition, error: ErrorCode) -> Fetched {
    Fetched {
        partition,
        error,
        high_watermark: Offset::NONE,
        last_stable_offset: Offset::NONE,
        log_start: Offset::NONE,
        diverging: None,
        preferred_replica: None,
        current_leader: None,
        aborted: None,
        records: Vec::new(),
        in_file: None,
    }
}

/// The answer for a partition that is not here: where it is led, a client asks next (KIP-951).
fn elsewhere(context: &Context, partition: TopicPartition) -> Fetched {
    let leader = context.image().leader_for(partition);
    let current_leader = leader.map(|(leader, leader_epoch)| CurrentLeader { leader, leader_epoch });
    Fetched { current_leader, ..unanswered(partition, not_here(context, partition)) }
}

/// What one round over all partitions found.
struct Round {
    answer: FetchAnswer,
    /// Whether memory was short: there may be more.
    cut_short: bool,
}

/// Reads for a consumer; waits up to `max_wait_ms` for `min_bytes`.
pub(crate) async fn fetch(context: &Arc<Context>, request: FetchRequest) -> FetchAnswer {
    let answer = fetch_enough(context, request).await;
    for part in &answer.partitions {
        let bytes = part.bytes();
        if bytes > 0
            && let Some(partition) = context.partition(part.partition)
        {
            partition.traffic.bytes_out.add(u64::try_from(bytes).unwrap_or(0));
        }
    }
    answer
}

async fn fetch_enough(context: &Arc<Context>, request: FetchRequest) -> FetchAnswer {
    let mut newest = read_all(context, &request, None).await;
    if request.max_wait_ms == 0 || is_enough(&newest, &request) {
        return newest.answer;
    }
    let mut let_go = newest.let_go();
    let until_enough = async {
        let waiter = Arc::new(FetchWaiter::default());
        loop {
            // Each partition lists the waiter under the lock that it is read under: no move is missed.
            newest = read_all(context, &request, Some(&waiter)).await;
            let_go = false;
            if is_enough(&newest, &request) {
                return;
            }
            let_go = newest.let_go();
            waiter.moved().await;
        }
    };
    // A read that is cut off by the time has read nothing that anybody saw.
    let _ = tokio::time::timeout(Duration::from_millis(request.max_wait_ms), until_enough).await;
    if let_go { read_all(context, &request, None).await.answer } else { newest.answer }
}

impl Round {
    /// Whoever waits for more holds no records; says whether there were any, to be read again when the time is up.
    fn let_go(&mut self) -> bool {
        let held = self.answer.partitions.iter().any(|fetched| fetched.bytes() > 0);
        self.answer.partitions.iter_mut().for_each(Fetched::clear_records);
        self.answer.memory.clear();
        held
    }
}

/// Errors and divergences are answered at once, as Kafka does.
fn is_enough(round: &Round, request: &FetchRequest) -> bool {
    let answers = &round.answer.partitions;
    let speaks = |fetched: &Fetched| {
        !fetched.error.is_none() || fetched.diverging.is_some() || fetched.preferred_replica.is_some()
    };
    let bytes: usize = answers.iter().map(Fetched::bytes).sum();
    round.cut_short || bytes >= request.min_bytes.min(request.max_bytes) || answers.iter().any(speaks)
}

async fn read_all(context: &Arc<Context>, request: &FetchRequest, waiter: Option<&Arc<FetchWaiter>>) -> Round {
    let partitions = Vec::with_capacity(request.partitions.len());
    let answer = FetchAnswer { partitions, memory: context.budget.charge(0) };
    let mut round = Round { answer, cut_short: false };
    let mut left = request.max_bytes;
    let mut any = false;
    for position in &request.partitions {
        let Some(partition) = context.partition(position.partition) else {
            round.answer.partitions.push(elsewhere(context, position.partition));
            continue;
        };
        let read = PartitionRead {
            position: *position,
            isolation: request.isolation,
            max_bytes: left,
            min_one: !any,
            from_follower: request.rack.is_some(),
            by_file: request.by_file,
        };
        let Afforded { result, memory, cut_short } = afford(context, &partition, read, waiter).await;
        let (mut fetched, memory) = carry_out(context, &partition, position, result, memory).await;
        if request.isolation == Isolation::ReadCommitted && fetched.error.is_none() && fetched.aborted.is_none() {
            partition.find_aborted(context, position.fetch_offset, &mut fetched).await;
        }
        if let Some(nearer) = nearest_replica(context, request, position.partition, &fetched) {
            fetched.clear_records();
            fetched.preferred_replica = Some(nearer);
        }
        let bytes = fetched.bytes();
        left = left.saturating_sub(bytes);
        any |= bytes > 0;
        round.cut_short |= cut_short && bytes > 0;
        if let Some(mut memory) = memory {
            memory.set(len(fetched.bytes_in_memory()));
            round.answer.memory.absorb(memory);
        }
        round.answer.partitions.push(fetched);
    }
    round
}

/// A read for which there is memory.
struct Afforded {
    result: ReadResult,
    /// Charged for it; nothing where there is nothing to be read.
    memory: Option<Charge>,
    /// Whether it was more before memory was asked for.
    cut_short: bool,
}

/// Looks at what there is to be read, and charges it before it is: an answer exists in memory from when it is read until the
/// client has taken it. Only the first of a request that has anything waits for room, so nobody who waits holds any; it
/// gets at least one batch. The others make do with what is left. What may stay in its file is charged when it does not: then
/// it is little.
async fn afford(
    context: &Arc<Context>,
    partition: &Arc<Partition>,
    mut read: PartitionRead,
    waiter: Option<&Arc<FetchWaiter>>,
) -> Afforded {
    let result = partition.read(context, &read, waiter);
    if result.cold.as_ref().is_some_and(ColdRead::is_lent) {
        return Afforded { result, memory: Some(context.budget.charge(0)), cut_short: false };
    }
    // The first batch is read whatever its size; one that may be very large does not take all memory before it is known.
    let batch_max = len(result.batch_max).min(context.budget.capacity() / 8);
    let first = if read.min_one { usize::try_from(batch_max).unwrap_or(usize::MAX) } else { 0 };
    let wanted = result.bytes_max(first);
    if wanted == 0 {
        return Afforded { result, memory: None, cut_short: false };
    }
    let least = PART_MIN.max(batch_max);
    let mut memory = context.budget.try_part(len(wanted), least);
    if memory.bytes() >= len(wanted) {
        return Afforded { result, memory: Some(memory), cut_short: false };
    }
    drop(result);
    if memory.bytes() == 0 && read.min_one {
        let mut admission = Admission::new(&context.budget);
        memory = poll_fn(|cx| admission.poll_part(cx, len(wanted), least)).await;
    }
    read.max_bytes = read.max_bytes.min(usize::try_from(memory.bytes()).unwrap_or(usize::MAX));
    let result = partition.read(context, &read, waiter);
    Afforded { result, cut_short: memory.bytes() < len(wanted), memory: Some(memory) }
}

/// Reads what is on disk. The memory goes with the read: it may go on after whoever asked has gone.
async fn carry_out(
    context: &Arc<Context>,
    partition: &Arc<Partition>,
    position: &FetchPartition,
    result: ReadResult,
    memory: Option<Charge>,
) -> (Fetched, Option<Charge>) {
    let ReadResult { mut fetched, cold, .. } = result;
    let Some(cold) = cold else { return (fetched, memory) };
    let (read, memory) = context.disk_pool.run(move || (cold.run_to_send(), memory)).await;
    match read {
        Ok(ColdRecords::Memory(bytes)) if bytes.is_empty() => {}
        Ok(ColdRecords::Memory(bytes)) => fetched.records = vec![bytes],
        Ok(ColdRecords::File(range)) => {
            let (context, partition) = (Arc::clone(context), Arc::clone(partition));
            let from = position.fetch_offset;
            fetched.in_file = Some(Arc::new(Lent { range: Arc::new(range), context, partition, from }));
        }
        Err(error) => fetched.error = partition.read_failed(context, position.fetch_offset, error).await,
    }
    (fetched, memory)
}

/// Records that stay in their file.
#[derive(Debug)]
struct Lent {
    range: Arc<RecordRange>,
    context: Arc<Context>,
    partition: Arc<Partition>,
    /// Where they were asked for.
    from: Offset,
}

impl FileRecords for Lent {
    fn len(&self) -> usize {
        self.range.len()
    }

    fn end(&self) -> Offset {
        self.range.end()
    }

    fn send_to(&self, socket: BorrowedFd<'_>, from: usize) -> io::Result<Option<usize>> {
        Ok(match self.range.send_to(socket, from)? {
            Sent::Bytes(sent) => Some(sent),
            Sent::NotCached => None,
        })
    }

    fn load(&self, from: usize) -> Loading {
        let (range, context, partition) =
            (Arc::clone(&self.range), Arc::clone(&self.context), Arc::clone(&self.partition));
        let offset = self.from;
        Box::pin(async move {
            match context.disk_pool.run(move || range.load(from)).await {
                Ok(bytes) => Some(bytes),
                Err(error) => {
                    partition.read_failed(&context, offset, error).await;
                    None
                }
            }
        })
    }
}

fn len(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// Why a partition is not here: it does not exist, or its replicas are elsewhere.
pub(crate) fn not_here(context: &Context, partition: TopicPartition) -> ErrorCode {
    let image = context.image();
    match image.partition(partition) {
        None if image.topic(partition.topic_id).is_none() => ErrorCode::UnknownTopicId,
        None => ErrorCode::UnknownTopicOrPartition,
        Some(found) => {
            let (me, dir) = (context.config.broker_id, found.directory_of(context.config.broker_id));
            let online = image.broker(me).is_none_or(|broker| broker.is_online(dir));
            if online || !found.replicas.contains(&me) {
                ErrorCode::NotLeaderOrFollower
            } else {
                ErrorCode::KafkaStorageError
            }
        }
    }
}

/// The replica in the client's rack that is in sync, has what it asks for, and is furthest of those (KIP-392); None where the
/// leader is as good.
fn nearest_replica(
    context: &Context,
    request: &FetchRequest,
    id: TopicPartition,
    fetched: &Fetched,
) -> Option<BrokerId> {
    let rack = request.rack.as_deref().filter(|rack| !rack.is_empty() && context.config.rack_aware_reads)?;
    if context.config.rack.as_deref() == Some(rack) || !fetched.error.is_none() {
        return None;
    }
    let partition = context.partition(id)?;
    let inner = partition.lock();
    let position = request.partitions.iter().find(|position| position.partition == id)?;
    let image = context.image();
    let is_near =
        |broker: BrokerId| image.broker(broker).is_some_and(|b| b.is_active() && b.rack.as_deref() == Some(rack));
    // A leader alone knows who is in sync, and what each of them has.
    let has = |broker: BrokerId| {
        let log = inner.replica.follower_log(broker)?;
        (log.start <= position.fetch_offset && position.fetch_offset <= log.end).then_some((log.end, broker))
    };
    let near = inner.replica.isr().iter().copied().filter(|broker| is_near(*broker));
    near.filter_map(has).max().map(|(_, broker)| broker)
}
