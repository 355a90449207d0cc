//! Transactions as one partition sees them: batches that the coordinator must know of first (`R50`), and the markers that
//! end transactions (`R47`).
//!
//! Invariant: the batches of one producer are appended in the order in which they came, also those that wait for the
//! coordinator's word: they wait in one line.

use std::sync::Arc;

use bytes::BytesMut;
use model::{ClientBatches, EndMarker, ErrorCode, ProducerEpoch, ProducerId};
use replication::producers::{BatchKind, MarkerClaim, ProducerBatch, VerificationGuard};

use super::append::{Appended, Moment};
use super::{Inner, Leadership, Partition};
use crate::api::{Acks, Produced, TransactionMarker, TransactionSupport};
use crate::context::Context;
use crate::waiters::PendingProduce;

/// A producer's batches that wait for the coordinator's word.
#[derive(Debug)]
pub(super) struct Unverified {
    guard: VerificationGuard,
    line: Vec<InLine>,
}

#[derive(Debug)]
struct InLine {
    batch: ClientBatches,
    acks: Acks,
    transactions: TransactionSupport,
    request: Arc<PendingProduce>,
    /// The place of the result on `request`.
    promised: usize,
}

/// A verification that was begun: the coordinator is to be asked, and [`Partition::verified`] to be told.
#[derive(Debug)]
pub(crate) struct Verification {
    /// Where the producer wants to write.
    pub(crate) partition: Arc<Partition>,
    /// Who.
    pub(crate) producer: (ProducerId, ProducerEpoch),
    guard: VerificationGuard,
}

impl Verification {
    /// Whether a marker came since this was begun: what the coordinator says of what was asked before counts no longer.
    pub(crate) fn is_void(&self) -> bool {
        !self.partition.lock().producers.is_verifying(self.producer.0, self.guard)
    }

    /// Waits until the marker of the producer's transaction before this one is here, or until it takes too long: what is asked
    /// before it would not count (`R50`). Says whether it had to wait.
    pub(crate) async fn wait_for_marker(&self, until: tokio::time::Instant) -> bool {
        let (producer, epoch) = self.producer;
        let is_behind = || self.partition.lock().producers.has_earlier_open(producer, epoch);
        if !is_behind() {
            return false;
        }
        loop {
            // Listed before the look, so that no move in between is missed.
            let waiter = Arc::default();
            self.partition.wake_at_next_move(&waiter);
            if !is_behind() || tokio::time::timeout_at(until, waiter.moved()).await.is_err() {
                return true;
            }
        }
    }

    /// For asking once more: what the coordinator says then counts from now on (`R50`). None where nobody waits any more.
    pub(crate) fn renew(self) -> Option<Verification> {
        let guard = {
            let mut inner = self.partition.lock();
            let inner = &mut *inner;
            let unverified = inner.unverified.get_mut(&self.producer).filter(|each| each.guard == self.guard)?;
            inner.producers.end_verification(self.producer.0, self.guard);
            unverified.guard = inner.producers.start_verification(self.producer.0);
            unverified.guard
        };
        Some(Verification { guard, ..self })
    }
}

/// The verification of a transaction that a coordinator of groups writes into (`R49`). It ends when this is dropped: what the
/// transaction's coordinator said counts until then.
#[derive(Debug)]
pub(crate) struct Verifying {
    partition: Arc<Partition>,
    producer: ProducerId,
    guard: VerificationGuard,
}

impl Verifying {
    /// As [`Verification::is_void`].
    pub(crate) fn is_void(&self) -> bool {
        !self.partition.lock().producers.is_verifying(self.producer, self.guard)
    }

    /// For [`Partition::append_in_transaction`].
    pub(crate) fn guard(&self) -> VerificationGuard {
        self.guard
    }
}

impl Drop for Verifying {
    fn drop(&mut self) {
        self.partition.lock().producers.end_verification(self.producer, self.guard);
    }
}

impl Partition {
    /// As [`produce`](Self::produce), for a client that writes in transactions. Where the coordinator has to be asked first,
    /// the batch waits, and the verification is given to whoever will ask; later batches of the producer wait behind it.
    pub(crate) fn produce_in_transaction(
        self: &Arc<Self>,
        context: &Arc<Context>,
        (acks, transactions): (Acks, TransactionSupport),
        records: BytesMut,
        request: &Arc<PendingProduce>,
    ) -> Option<Verification> {
        let moment = Moment::of(context);
        let checked = self.check_batch(context, records, moment);
        let mut inner = self.lock();
        let begun = match checked {
            Ok(batch) if self.must_wait(&inner, acks, &batch) => {
                let promised = request.push(self.result(ErrorCode::None, None), true);
                inner.line_up(InLine { batch, acks, transactions, request: Arc::clone(request), promised })
            }
            checked => {
                let appended = checked.and_then(|batch| {
                    self.append_verified(context, &mut inner, (acks, transactions), batch, None, moment)
                });
                self.answer(&mut inner, acks, appended, request, None);
                None
            }
        };
        self.carry_out(context, &mut inner);
        begun.map(|(producer, guard)| Verification { partition: Arc::clone(self), producer, guard })
    }

    /// Whether the batch must wait for the coordinator. What would be refused or is there already does not.
    fn must_wait(&self, inner: &Inner, acks: Acks, batch: &ClientBatches) -> bool {
        let Some(producer) = transactional(batch) else { return false };
        let key = (producer.producer_id, producer.producer_epoch);
        inner.unverified.contains_key(&key)
            || !inner.producers.has_open(key.0, key.1)
                && self.check_writable(inner, acks).is_ok()
                && matches!(self.check_producer(inner, &producer), Ok(None))
    }

    /// The coordinator has answered: appends what waited for that, or refuses it.
    pub(crate) fn verified(self: &Arc<Self>, context: &Arc<Context>, verification: &Verification, error: ErrorCode) {
        let moment = Moment::of(context);
        let (producer, guard) = (verification.producer, verification.guard);
        self.handle(context, |inner, _| {
            // Another leadership's line is another one.
            if inner.unverified.get(&producer).is_none_or(|unverified| unverified.guard != guard) {
                return;
            }
            let line = inner.unverified.remove(&producer).map(|unverified| unverified.line).unwrap_or_default();
            // A marker came while the coordinator was asked: the transaction before was just ending.
            let void = !inner.producers.is_verifying(producer.0, guard);
            for InLine { batch, acks, transactions, request, promised } in line {
                let overtaken = void && error.is_none() && transactions == TransactionSupport::Implicit;
                let error = if overtaken { ErrorCode::ConcurrentTransactions } else { error };
                let appended = match refused(error, transactions) {
                    None => self.append_verified(context, inner, (acks, transactions), batch, Some(guard), moment),
                    Some(code) => Err(self.refuse(code, &format!("the transaction could not be verified: {error:?}"))),
                };
                self.answer(inner, acks, appended, &request, Some(promised));
            }
            inner.producers.end_verification(producer.0, guard);
        });
    }

    fn append_verified(
        &self,
        context: &Arc<Context>,
        inner: &mut Inner,
        (acks, transactions): (Acks, TransactionSupport),
        batch: ClientBatches,
        guard: Option<VerificationGuard>,
        moment: Moment,
    ) -> Result<Appended, Box<Produced>> {
        self.check_writable(inner, acks)?;
        if let Some(producer) = ProducerBatch::of(batch.header(), None) {
            if let Some(before) = self.check_producer(inner, &producer)? {
                return Ok(before);
            }
            if producer.kind == BatchKind::Transactional {
                self.check_transaction(inner, &producer, transactions, guard)?;
            }
        }
        self.write(context, inner, batch, moment)
    }

    fn check_transaction(
        &self,
        inner: &Inner,
        producer: &ProducerBatch,
        transactions: TransactionSupport,
        guard: Option<VerificationGuard>,
    ) -> Result<(), Box<Produced>> {
        let (id, epoch) = (producer.producer_id, producer.producer_epoch);
        inner
            .producers
            .check_verified(id, epoch, guard, inner.replica.rules())
            .map_err(|error| self.refuse(error, "the batch is not part of an open transaction"))?;
        // Each transaction of such a client has its own epoch: what is unknown here begins at 0 (KIP-890).
        let unknown = inner.producers.get(id).is_none();
        if transactions == TransactionSupport::Implicit && unknown && producer.first_sequence != 0 {
            return Err(self.out_of_order(inner, "a transaction's first sequence is 0"));
        }
        Ok(())
    }

    /// Before a coordinator of groups writes into a producer's transaction (`R50`): None where that is open here already, so
    /// that its coordinator knows of this partition.
    ///
    /// # Errors
    /// Where a newer epoch of the producer is known here.
    pub(crate) fn begin_verification(
        self: &Arc<Self>,
        (producer, epoch): (ProducerId, ProducerEpoch),
    ) -> Result<Option<Verifying>, ErrorCode> {
        let mut inner = self.lock();
        if inner.producers.has_open(producer, epoch) {
            return Ok(None);
        }
        inner.producers.check_epoch(producer, epoch)?;
        let guard = inner.producers.start_verification(producer);
        Ok(Some(Verifying { partition: Arc::clone(self), producer, guard }))
    }

    /// Appends what a coordinator of groups writes into a producer's transaction (`R49`). Its state came from this log in this
    /// `leadership`. Answered as a produce with acks=all is.
    pub(crate) fn append_in_transaction(
        self: &Arc<Self>,
        context: &Arc<Context>,
        leadership: Leadership,
        guard: Option<VerificationGuard>,
        batch: ClientBatches,
        request: &Arc<PendingProduce>,
    ) {
        let mut inner = self.lock();
        let appended = inner
            .check_leadership(Some(leadership))
            .map_err(|error| self.refuse(error, "the leadership is another one"))
            .and_then(|()| self.write_in_transaction(context, &mut inner, guard, batch));
        self.answer(&mut inner, Acks::All, appended, request, None);
        self.carry_out(context, &mut inner);
    }

    fn write_in_transaction(
        &self,
        context: &Arc<Context>,
        inner: &mut Inner,
        guard: Option<VerificationGuard>,
        batch: ClientBatches,
    ) -> Result<Appended, Box<Produced>> {
        self.check_writable(inner, Acks::All)?;
        self.check_size(&inner.settings, &batch)?;
        let (id, epoch) = (batch.header().producer_id, batch.header().producer_epoch);
        let checked = inner.producers.check_epoch(id, epoch);
        checked
            .and_then(|()| inner.producers.check_verified(id, epoch, guard, inner.replica.rules()))
            .map_err(|error| self.refuse(error, "the offsets are not part of an open transaction"))?;
        self.write(context, inner, batch, Moment::of(context))
    }

    /// Ends a producer's transaction here (`R47`). Answered as a produce with acks=all is; a coordinator whose state came
    /// from this log names its `leadership`.
    pub(crate) fn append_marker(
        self: &Arc<Self>,
        context: &Arc<Context>,
        leadership: Option<Leadership>,
        marker: &TransactionMarker,
        request: &Arc<PendingProduce>,
    ) {
        let mut inner = self.lock();
        let appended = inner
            .check_leadership(leadership)
            .map_err(|error| self.refuse(error, "the leadership is another one"))
            .and_then(|()| self.write_marker(context, &mut inner, marker));
        self.answer(&mut inner, Acks::All, appended, request, None);
        self.carry_out(context, &mut inner);
    }

    fn write_marker(
        &self,
        context: &Arc<Context>,
        inner: &mut Inner,
        marker: &TransactionMarker,
    ) -> Result<Appended, Box<Produced>> {
        self.check_writable(inner, Acks::All)?;
        let claim = MarkerClaim {
            producer_id: marker.producer_id,
            producer_epoch: marker.producer_epoch,
            coordinator_epoch: marker.coordinator_epoch,
            transaction_version: marker.transaction_version,
        };
        inner
            .producers
            .check_marker(&claim, inner.replica.rules())
            .map_err(|error| self.refuse(error, "a newer producer or coordinator is known here"))?;
        let moment = Moment::of(context);
        let end = EndMarker { commit: marker.commit, coordinator_epoch: marker.coordinator_epoch };
        let batch = end.encode((marker.producer_id, marker.producer_epoch), moment.timestamp());
        self.write(context, inner, batch, moment)
    }

    /// The leadership ended, or the log failed: nobody waits for coordinators any more.
    pub(super) fn forget_unverified(&self, inner: &mut Inner, error: ErrorCode) {
        inner.producers.end_verifications();
        for InLine { request, promised, acks, .. } in
            std::mem::take(&mut inner.unverified).into_values().flat_map(|unverified| unverified.line)
        {
            let refused = Err(self.refuse(error, "the leadership ended before the transaction was verified"));
            self.answer(inner, acks, refused, &request, Some(promised));
        }
    }
}

impl Inner {
    /// Puts a batch into its producer's line; gives the verification where it is the first there.
    fn line_up(&mut self, in_line: InLine) -> Option<((ProducerId, ProducerEpoch), VerificationGuard)> {
        let header = in_line.batch.header();
        let producer = (header.producer_id, header.producer_epoch);
        if let Some(unverified) = self.unverified.get_mut(&producer) {
            unverified.line.push(in_line);
            return None;
        }
        let guard = self.producers.start_verification(producer.0);
        self.unverified.insert(producer, Unverified { guard, line: vec![in_line] });
        Some((producer, guard))
    }
}

fn transactional(batch: &ClientBatches) -> Option<ProducerBatch> {
    ProducerBatch::of(batch.header(), None).filter(|producer| producer.kind == BatchKind::Transactional)
}

/// What a coordinator's error is to a producer; None where there was none.
fn refused(error: ErrorCode, transactions: TransactionSupport) -> Option<ErrorCode> {
    Some(match error {
        ErrorCode::None => return None,
        ErrorCode::ProducerFenced => ErrorCode::InvalidProducerEpoch,
        ErrorCode::TransactionAbortable if transactions < TransactionSupport::KnowsAbortable => {
            ErrorCode::InvalidTxnState
        }
        // Producers try again after this one, without asking for metadata first.
        ErrorCode::NetworkException
        | ErrorCode::CoordinatorLoadInProgress
        | ErrorCode::CoordinatorNotAvailable
        | ErrorCode::NotCoordinator => ErrorCode::NotEnoughReplicas,
        ErrorCode::ConcurrentTransactions if transactions != TransactionSupport::Implicit => {
            ErrorCode::NotEnoughReplicas
        }
        other => other,
    })
}
