//! What a request of a producer comes to (`R45`, `R46`, `R48`, `R51`). Nothing here changes anything: a decision looks at
//! what is committed, and is a function of that and its arguments. So a decision whose record could not be stored is simply
//! made again: a fence that failed bumps the epoch no second time (`R46`).

use model::{ErrorCode, ProducerEpoch, ProducerId, Rule, Rules, Time};

use super::EPOCH_BUMP_VERSION;
use super::request::{
    AddPartitionsRequest, AddPartitionsResponse, EndTransactionRequest, EndTransactionResponse, InitProducerIdRequest,
    InitProducerIdResponse, Producer,
};
use super::state::{PartitionSet, Status, TransactionMetadata, is_exhausted};

/// What a request comes to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Verdict<R> {
    /// The answer; nothing is to be stored.
    Answer(R),
    /// What to store, and the answer when it is.
    Store(Box<TransactionMetadata>, R),
    /// Ask again with a producer id that was never given out.
    NeedsProducerId,
}

impl<R> Verdict<R> {
    /// The same with the answer as part of something larger.
    pub(super) fn map<T>(self, wrap: impl FnOnce(R) -> T) -> Verdict<T> {
        match self {
            Verdict::Answer(response) => Verdict::Answer(wrap(response)),
            Verdict::Store(metadata, response) => Verdict::Store(metadata, wrap(response)),
            Verdict::NeedsProducerId => Verdict::NeedsProducerId,
        }
    }
}

/// What a decision depends on besides the request and the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Circumstances {
    /// Wall clock.
    pub(super) now: Time,
    /// The cluster's transaction version.
    pub(super) transaction_version: i16,
    /// A producer id that was never given out, where one was asked for.
    pub(super) fresh: Option<ProducerId>,
    /// Which rules hold.
    pub(super) rules: Rules,
}

/// InitProducerId (`R46`).
pub(super) fn init_producer_id(
    known: Option<&TransactionMetadata>,
    request: &InitProducerIdRequest,
    c: &Circumstances,
) -> Verdict<InitProducerIdResponse> {
    let Some(known) = known else {
        return match c.fresh {
            Some(id) => granted(first_incarnation(id, request.timeout_ms, c.now)),
            None => Verdict::NeedsProducerId,
        };
    };
    if known.status.is_prepared() {
        return Verdict::Answer(init_refused(ErrorCode::ConcurrentTransactions));
    }
    if request.expected.is_some_and(|expected| !may_be(known, expected)) {
        return Verdict::Answer(init_refused(ErrorCode::ProducerFenced));
    }
    if known.status != Status::Ongoing || !c.rules.hold(Rule::R46AbortFirst) {
        return next_incarnation(known, request, c);
    }
    // A producer that was fenced does not end its successor's transaction.
    if request.expected.is_some_and(|e| e.epoch != known.producer_epoch && e.epoch != known.last_producer_epoch) {
        return Verdict::Answer(init_refused(ErrorCode::ProducerFenced));
    }
    // The old transaction is aborted and its producer fenced first. The epoch of that fence is told to nobody: the client
    // comes again and gets one of its own.
    Verdict::Store(Box::new(fence(known, c)), init_refused(ErrorCode::ConcurrentTransactions))
}

/// KIP-360: a producer that goes on after an error says who it believes to be. Its id may be the one before, where its
/// epochs were used up and it never heard of the new one.
fn may_be(known: &TransactionMetadata, expected: Producer) -> bool {
    expected.id == known.producer_id || (expected.id == known.previous_producer_id && is_exhausted(expected.epoch))
}

fn next_incarnation(
    known: &TransactionMetadata,
    request: &InitProducerIdRequest,
    c: &Circumstances,
) -> Verdict<InitProducerIdResponse> {
    let expected = request.expected.map(|expected| expected.epoch);
    let is_current = expected.is_none_or(|epoch| epoch == known.producer_epoch);
    let new_id = is_current && known.is_exhausted() && c.rules.hold(Rule::R46ExhaustedEpoch);
    let mut next = idle(known, request.timeout_ms, c.now);
    if new_id {
        let Some(id) = c.fresh else { return Verdict::NeedsProducerId };
        (next.producer_id, next.producer_epoch) = (id, ProducerEpoch(0));
    } else if is_current || !c.rules.hold(Rule::R46ExpectedEpoch) {
        next.producer_epoch = bumped(known.producer_epoch, 1, c.rules.hold(Rule::R46Bump));
    } else if expected == Some(known.last_producer_epoch) && known.last_producer_epoch != ProducerEpoch::NONE {
        // The answer to the bump was lost: nobody else has come since, or there would be no last epoch.
        return granted(next);
    } else {
        return Verdict::Answer(init_refused(ErrorCode::ProducerFenced));
    }
    next.last_producer_epoch = if expected.is_some() { known.producer_epoch } else { ProducerEpoch::NONE };
    granted(next)
}

fn granted(metadata: TransactionMetadata) -> Verdict<InitProducerIdResponse> {
    let response = InitProducerIdResponse { error: ErrorCode::None, producer: metadata.producer() };
    Verdict::Store(Box::new(metadata), response)
}

fn init_refused(error: ErrorCode) -> InitProducerIdResponse {
    InitProducerIdResponse { error, producer: Producer::NONE }
}

fn first_incarnation(id: ProducerId, timeout_ms: i32, now: Time) -> TransactionMetadata {
    TransactionMetadata {
        producer_id: id,
        previous_producer_id: id,
        next_producer_id: ProducerId::NONE,
        producer_epoch: ProducerEpoch(0),
        last_producer_epoch: ProducerEpoch::NONE,
        timeout_ms,
        status: Status::Empty,
        partitions: PartitionSet::default(),
        started: None,
        updated: now,
        client_version: 0,
    }
}

/// The same producer without a transaction.
fn idle(known: &TransactionMetadata, timeout_ms: i32, now: Time) -> TransactionMetadata {
    TransactionMetadata {
        previous_producer_id: known.producer_id,
        next_producer_id: ProducerId::NONE,
        timeout_ms,
        status: Status::Empty,
        partitions: PartitionSet::default(),
        started: None,
        updated: now,
        ..known.clone()
    }
}

/// An open transaction is aborted for a successor of its producer, which is fenced (`R46`).
///
/// Where every transaction bumps the epoch, the fence takes two: the next epoch is the one that the producer's own EndTxn
/// would have brought, and a producer that repeats it must not be taken for one whose answer was lost (`R51`).
pub(super) fn fence(known: &TransactionMetadata, c: &Circumstances) -> TransactionMetadata {
    let epochs = if c.transaction_version >= EPOCH_BUMP_VERSION { 2 } else { 1 };
    TransactionMetadata { last_producer_epoch: ProducerEpoch::NONE, ..abort_for(known, epochs, c) }
}

/// A transaction that is open for too long is aborted (`R48`). What its producer still has on its way is refused as a
/// fenced one's is, by the epoch that the markers carry and the coordinator verifies. But nobody else has come for the id:
/// its producer goes on in the next epoch once it has heard that the transaction is aborted, as the answer to an abort
/// of its own (`R51`) or to an InitProducerId that says who it was (`R46`).
pub(super) fn time_out(known: &TransactionMetadata, c: &Circumstances) -> TransactionMetadata {
    // The last epoch is for a fence alone: no producer goes on in it.
    let last_producer_epoch = if known.is_exhausted() { ProducerEpoch::NONE } else { known.producer_epoch };
    TransactionMetadata { last_producer_epoch, ..abort_for(known, 1, c) }
}

fn abort_for(known: &TransactionMetadata, epochs: i16, c: &Circumstances) -> TransactionMetadata {
    TransactionMetadata {
        producer_epoch: bumped(known.producer_epoch, epochs, c.rules.hold(Rule::R48FenceBumps)),
        client_version: c.transaction_version,
        ..prepared(known, Status::PrepareAbort, c.now)
    }
}

/// The last epoch is kept for a fence, so there is always a next one; a fence that finds it taken comes too late for anybody.
fn bumped(epoch: ProducerEpoch, by: i16, holds: bool) -> ProducerEpoch {
    if holds { ProducerEpoch(epoch.0.saturating_add(by)) } else { epoch }
}

fn prepared(known: &TransactionMetadata, status: Status, now: Time) -> TransactionMetadata {
    TransactionMetadata {
        previous_producer_id: known.producer_id,
        next_producer_id: ProducerId::NONE,
        status,
        updated: now,
        ..known.clone()
    }
}

/// AddPartitionsToTxn. The shard has seen that nothing is on its way for this id.
pub(super) fn add_partitions(
    known: Option<&TransactionMetadata>,
    request: &AddPartitionsRequest,
    c: &Circumstances,
) -> Verdict<AddPartitionsResponse> {
    let answer = |error| Verdict::Answer(request.answered(error));
    let known = match check_producer(known, request.producer) {
        Ok(known) => known,
        Err(error) => return answer(error),
    };
    if known.status == Status::Ongoing && request.partitions.is_subset(&known.partitions) {
        return answer(ErrorCode::None);
    }
    let (started, partitions) = match known.status {
        Status::Ongoing => (known.started, known.partitions.union(&request.partitions)),
        _ => (Some(c.now), request.partitions.clone()),
    };
    let metadata = TransactionMetadata {
        previous_producer_id: known.producer_id,
        status: Status::Ongoing,
        partitions,
        started,
        updated: c.now,
        client_version: request.client_version,
        ..known.clone()
    };
    Verdict::Store(Box::new(metadata), request.answered(ErrorCode::None))
}

/// Whether partitions are in the transaction (`R50`).
pub(super) fn verify_partitions(
    known: Option<&TransactionMetadata>,
    request: &AddPartitionsRequest,
) -> AddPartitionsResponse {
    let known = match check_producer(known, request.producer) {
        Ok(known) => known,
        Err(error) => return request.answered(error),
    };
    let verify = |(topic, partition)| {
        let is_in = known.status == Status::Ongoing && known.partitions.contains(topic, partition);
        (topic.to_owned(), partition, if is_in { ErrorCode::None } else { ErrorCode::TransactionAbortable })
    };
    AddPartitionsResponse { partitions: request.partitions.iter().map(verify).collect() }
}

/// The producer in force, where it is this one and its last transaction is completed.
fn check_producer(known: Option<&TransactionMetadata>, producer: Producer) -> Result<&TransactionMetadata, ErrorCode> {
    let known = known.ok_or(ErrorCode::InvalidProducerIdMapping)?;
    if known.status.is_prepared() {
        // First of all: the producer may come with what the completion will make it (`R51`).
        Err(ErrorCode::ConcurrentTransactions)
    } else if known.producer_id != producer.id {
        Err(ErrorCode::InvalidProducerIdMapping)
    } else if known.producer_epoch != producer.epoch {
        Err(ErrorCode::ProducerFenced)
    } else {
        Ok(known)
    }
}

/// EndTxn. The shard has seen that nothing is on its way for this id.
pub(super) fn end_transaction(
    known: Option<&TransactionMetadata>,
    request: &EndTransactionRequest,
    c: &Circumstances,
) -> Verdict<EndTransactionResponse> {
    let Some(known) = known else { return end_refused(ErrorCode::InvalidProducerIdMapping) };
    if known.status.is_prepared() && c.rules.hold(Rule::R45PrepareIsFinal) {
        return end_refused(ErrorCode::ConcurrentTransactions);
    }
    if request.client_version < EPOCH_BUMP_VERSION {
        end_same_epoch(known, request, c)
    } else {
        end_and_bump(known, request, c)
    }
}

fn end_refused(error: ErrorCode) -> Verdict<EndTransactionResponse> {
    Verdict::Answer(EndTransactionResponse { error, producer: Producer::NONE })
}

fn prepare_status(commit: bool) -> Status {
    if commit { Status::PrepareCommit } else { Status::PrepareAbort }
}

fn complete_status(commit: bool) -> Status {
    if commit { Status::CompleteCommit } else { Status::CompleteAbort }
}

/// Before KIP-890: the epoch stays, and a repeated request is known by the outcome alone.
fn end_same_epoch(
    known: &TransactionMetadata,
    request: &EndTransactionRequest,
    c: &Circumstances,
) -> Verdict<EndTransactionResponse> {
    if known.producer_id != request.producer.id {
        return end_refused(ErrorCode::InvalidProducerIdMapping);
    }
    if known.producer_epoch != request.producer.epoch {
        return end_refused(ErrorCode::ProducerFenced);
    }
    match known.status {
        Status::Ongoing | Status::PrepareCommit | Status::PrepareAbort => {
            let metadata =
                TransactionMetadata { client_version: 0, ..prepared(known, prepare_status(request.commit), c.now) };
            let response = EndTransactionResponse { error: ErrorCode::None, producer: Producer::NONE };
            Verdict::Store(Box::new(metadata), response)
        }
        status if status == complete_status(request.commit) => end_refused(ErrorCode::None),
        Status::Empty | Status::CompleteCommit | Status::CompleteAbort => end_refused(ErrorCode::InvalidTxnState),
    }
}

/// KIP-890 (`R51`): the epoch in force says whether a request is the next one or a repeated one.
///
/// ```text
///                    repeated             with the epoch in force
///                 abort     commit        abort         commit
/// Ongoing         fenced    fenced        ends          ends
/// Empty           fenced    fenced        ends          INVALID_TXN_STATE
/// CompleteAbort   answered  INVALID_…     ends          INVALID_TXN_STATE
/// CompleteCommit  INVALID_… answered      ends          INVALID_TXN_STATE
/// ```
/// CompleteAbort is also what a timeout leaves behind (`R48`): so a commit that comes too late is told as much.
fn end_and_bump(
    known: &TransactionMetadata,
    request: &EndTransactionRequest,
    c: &Circumstances,
) -> Verdict<EndTransactionResponse> {
    let Producer { id, epoch } = request.producer;
    let completed = matches!(known.status, Status::CompleteCommit | Status::CompleteAbort);
    let repeated = completed && c.rules.hold(Rule::R51RepeatedEnd) && is_repeated(known, request.producer);
    if known.producer_id != id && !repeated {
        return end_refused(ErrorCode::InvalidProducerIdMapping);
    }
    if known.producer_epoch != epoch && !repeated {
        return end_refused(ErrorCode::ProducerFenced);
    }
    if repeated && known.status == complete_status(request.commit) {
        return Verdict::Answer(EndTransactionResponse { error: ErrorCode::None, producer: known.producer() });
    }
    // A commit needs something to commit; an abort is how a client makes sure of a new epoch.
    if repeated || (request.commit && known.status.is_idle()) {
        return end_refused(ErrorCode::InvalidTxnState);
    }
    end(known, request.commit, c)
}

/// Whether this is the producer of the transaction that was completed last, which has not heard of the new epoch: the
/// answer to its EndTxn was lost, or the transaction was open for too long (`R48`). A successor's fence is two epochs on;
/// and the transaction of an older client has left its epoch in force: who has the one before was fenced by that client.
fn is_repeated(known: &TransactionMetadata, producer: Producer) -> bool {
    if known.client_version < EPOCH_BUMP_VERSION {
        return false;
    }
    let overflowed = known.previous_producer_id == producer.id
        && known.producer_id != producer.id
        && producer.epoch == ProducerEpoch(i16::MAX - 1)
        && known.producer_epoch == ProducerEpoch(0);
    // A transaction that its own producer ended never leaves the last epoch in force: only a fence or a timeout does.
    let bumped = known.producer_id == producer.id
        && known.producer_epoch != ProducerEpoch(i16::MAX)
        && producer.epoch.0.checked_add(1) == Some(known.producer_epoch.0);
    overflowed || bumped
}

fn end(known: &TransactionMetadata, commit: bool, c: &Circumstances) -> Verdict<EndTransactionResponse> {
    let next_producer_id = match (known.is_exhausted() && c.rules.hold(Rule::R51Overflow), c.fresh) {
        (false, _) => ProducerId::NONE,
        (true, Some(id)) => id,
        (true, None) => return Verdict::NeedsProducerId,
    };
    let metadata = TransactionMetadata {
        next_producer_id,
        producer_epoch: bumped(known.producer_epoch, 1, c.rules.hold(Rule::R51BumpOnEnd)),
        last_producer_epoch: known.producer_epoch,
        // An abort without a transaction has no beginning.
        started: if known.status.is_idle() { Some(c.now) } else { known.started },
        client_version: EPOCH_BUMP_VERSION,
        ..prepared(known, prepare_status(commit), c.now)
    };
    let response = EndTransactionResponse { error: ErrorCode::None, producer: metadata.completed_producer() };
    Verdict::Store(Box::new(metadata), response)
}

/// Every marker is written.
pub(super) fn complete(known: &TransactionMetadata, now: Time) -> TransactionMetadata {
    let producer = known.completed_producer();
    TransactionMetadata {
        producer_id: producer.id,
        previous_producer_id: known.producer_id,
        next_producer_id: ProducerId::NONE,
        producer_epoch: producer.epoch,
        status: complete_status(known.status == Status::PrepareCommit),
        partitions: PartitionSet::default(),
        updated: now,
        ..known.clone()
    }
}
