//! Consumes, transforms and produces, exactly once: each input becomes one record, and the records and the input's offsets are one
//! transaction. Sometimes one stands still in the middle, another one takes its transactional id, and then the first goes on.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use model::{ErrorCode, ProducerEpoch, ProducerId, Record, encode_records, encode_transactional_batch};
use protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use protocol::messages::txn_offset_commit_request::{TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic};
use protocol::messages::{
    EndTxnRequest, EndTxnResponse, InitProducerIdRequest, InitProducerIdResponse, ProduceRequest, ProduceResponse,
    TxnOffsetCommitRequest, TxnOffsetCommitResponse,
};

use super::group::{GroupClient, Membership};
use super::{OUT, OUTS, PAUSE, TOPIC, TRANSFORM, topics_made};
use crate::chance::Chance;
use crate::client::{Client, Coordinated};
use crate::clock::timestamp;
use crate::history::Shared;
use crate::invariants::{Id, value};

const TRANSACTION_TIMEOUT_MS: i32 = 5_000;

/// See the module.
#[derive(Debug)]
pub struct Transformer {
    /// The partition that is its input.
    pub input: i32,
    /// How it asks for and about the output.
    pub client: Client,
    /// How it asks about the input's offsets; its chance, and what it did.
    pub offsets: GroupClient,
}

/// Who a producer is.
type Identity = (ProducerId, ProducerEpoch);

/// What a request in a transaction comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// It is done.
    Done,
    /// The transaction has to be aborted.
    Abort,
    /// Another one has the id, or the transaction took too long: the outcome is what it is.
    Fenced,
}

impl Transformer {
    /// Works until it is told to stop, or has an heir.
    pub fn run(mut self) -> BoxFuture<'static, ()> {
        async move {
            topics_made(self.history()).await;
            while !self.offsets.is_stopping() {
                let identity = self.take().await;
                if self.work(identity).await {
                    break;
                }
            }
            self.history().lock().working -= 1;
        }
        .boxed()
    }

    /// Another one that will take the same id.
    fn heir(&mut self) -> Transformer {
        let chance = Chance::of(self.offsets.chance.draw(), "heir");
        let (group, history) = (self.offsets.group.clone(), self.history().clone());
        let offsets = GroupClient { group, client: self.client.fresh(), chance, history };
        Transformer { input: self.input, client: self.client.fresh(), offsets }
    }

    fn history(&self) -> &Shared {
        &self.offsets.history
    }

    fn id(&self) -> String {
        format!("x-{}", self.input)
    }

    /// Takes the transactional id: whoever had it is fenced (`R46`).
    async fn take(&mut self) -> Identity {
        let id = self.id();
        let request = InitProducerIdRequest {
            transactional_id: Some(id.clone()),
            transaction_timeout_ms: TRANSACTION_TIMEOUT_MS,
            producer_id: -1,
            producer_epoch: -1,
            ..Default::default()
        };
        loop {
            if let Ok(coordinator) = self.client.coordinator(Coordinated::Transaction, &id).await {
                let answer: Result<InitProducerIdResponse> = self.client.at(&coordinator, &request).await;
                match answer.map(|answer| (ErrorCode::from_code(answer.error_code), answer)) {
                    Ok((ErrorCode::None, answer)) => {
                        let identity = (ProducerId(answer.producer_id), ProducerEpoch(answer.producer_epoch));
                        self.history().lock().grants.granted(&id, identity);
                        return identity;
                    }
                    Ok((ErrorCode::ConcurrentTransactions, _)) => {}
                    _ => self.client.forget_coordinator(Coordinated::Transaction, &id),
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// One transaction after the other; says whether that was all.
    async fn work(&mut self, mut identity: Identity) -> bool {
        let Some(mut position) = self.position(identity).await else { return true };
        while !self.offsets.is_stopping() {
            let end = self.history().lock().positions.get(&self.input).copied().unwrap_or(0);
            let count = i64::try_from(self.offsets.chance.between(1, 5)).expect("below 5").min(end - position);
            if count > 0 {
                let id = self.history().lock().attempts.begin(self.input, position, position + count);
                let (step, has_heir) = self.transaction(&mut identity, id, position..position + count).await;
                match step {
                    Step::Done => position += count,
                    Step::Abort => {}
                    Step::Fenced => return has_heir,
                }
            }
            let ms = self.offsets.chance.between(20, 300);
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        true
    }

    /// Where those before have come to; nothing where that is not wanted any more.
    async fn position(&mut self, (_, epoch): Identity) -> Option<i64> {
        let (member_id, generation) = (String::new(), i32::from(epoch.0));
        let asking = Membership { member_id, generation, has_epochs: false, instance: None };
        while !self.offsets.is_stopping() {
            if self.offsets.coordinator().await.is_ok()
                && let Ok(offsets) = self.offsets.offsets(&asking, &[self.input]).await
            {
                return offsets.get(&self.input).copied();
            }
            self.offsets.forget();
            tokio::time::sleep(PAUSE).await;
        }
        None
    }

    /// One transaction. Says what it came to, and whether there is an heir by now.
    async fn transaction(&mut self, identity: &mut Identity, id: Id, inputs: std::ops::Range<i64>) -> (Step, bool) {
        let mut step = self.produce_all(*identity, id, inputs.clone()).await;
        let stalls = self.offsets.chance.one_in(20);
        if stalls {
            // Whatever comes first, the heir or the timeout.
            let heir = self.heir();
            self.history().lock().working += 1;
            tokio::spawn(heir.run());
            let ms = self.offsets.chance.between(500, 9_000);
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        if step == Step::Done {
            step = self.commit_offset(*identity, inputs.end).await;
        }
        if step == Step::Fenced {
            return (step, stalls);
        }
        let commit = step == Step::Done && !self.offsets.chance.one_in(4);
        let ended = self.end(identity, id, commit).await;
        if ended == Step::Done && commit {
            let (mut history, epoch) = (self.history().lock(), i32::from(identity.1.0));
            // The epoch that the end has brought is the next transaction's.
            history.offsets.acknowledged((TRANSFORM, self.input, epoch), inputs.end);
            history.step(&self.id());
        }
        // Whoever has an heir has nothing more to do.
        match ended {
            Step::Done if stalls => (Step::Fenced, true),
            Step::Done if commit => (Step::Done, false),
            Step::Done => (Step::Abort, false),
            _ => (Step::Fenced, stalls),
        }
    }

    async fn produce_all(&mut self, identity: Identity, id: Id, inputs: std::ops::Range<i64>) -> Step {
        let mut outputs: BTreeMap<i32, Vec<Bytes>> = BTreeMap::new();
        for input in inputs {
            let output = i32::try_from(input % i64::from(OUTS)).expect("it is below a small number");
            outputs.entry(output).or_default().push(value(id, input));
        }
        for (output, values) in outputs {
            // In two batches: the second is not verified any more (`R50`).
            for (sequence, value) in (0..).zip(values) {
                let step = self.produce(output, identity, sequence, &value).await;
                if step != Step::Done {
                    return step;
                }
            }
        }
        Step::Done
    }

    async fn produce(&mut self, output: i32, identity: Identity, sequence: i32, value: &Bytes) -> Step {
        let record = Record { value: Some(value.clone()), ..Record::default() };
        let batch =
            encode_transactional_batch(&encode_records(&[record]), 1, timestamp(), (identity.0, identity.1, sequence));
        loop {
            let was_zombie = self.is_zombie(identity);
            let code = self.try_produce(output, &batch).await.unwrap_or(ErrorCode::NetworkException);
            if let Some(step) = self.judge(identity, "a write", code, was_zombie) {
                return step;
            }
            if code != ErrorCode::ConcurrentTransactions {
                self.client.forget_leader(output);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn try_produce(&mut self, output: i32, batch: &BytesMut) -> Result<ErrorCode> {
        let leader = self.client.leader(OUT, output).await?;
        let data = PartitionProduceData { index: output, records: Some(batch.clone()) };
        let topic =
            TopicProduceData { name: OUT.to_owned(), topic_id: self.client.topic_id, partition_data: vec![data] };
        let request =
            ProduceRequest { transactional_id: Some(self.id()), acks: -1, timeout_ms: 3_000, topic_data: vec![topic] };
        let answer: ProduceResponse = self.client.at(&leader, &request).await?;
        let topic = answer.responses.into_iter().next().context("no topic")?;
        let part = topic.partition_responses.into_iter().next().context("no partition")?;
        Ok(ErrorCode::from_code(part.error_code))
    }

    /// The input's offset, in the transaction (`R49`).
    async fn commit_offset(&mut self, identity: Identity, end: i64) -> Step {
        let partition = TxnOffsetCommitRequestPartition {
            partition_index: self.input,
            committed_offset: end,
            committed_leader_epoch: -1,
            committed_metadata: Some(String::new()),
        };
        let topic = TxnOffsetCommitRequestTopic { name: TOPIC.to_owned(), partitions: vec![partition] };
        let request = TxnOffsetCommitRequest {
            transactional_id: self.id(),
            group_id: TRANSFORM.to_owned(),
            producer_id: identity.0.0,
            producer_epoch: identity.1.0,
            generation_id: -1,
            topics: vec![topic],
            ..Default::default()
        };
        loop {
            let was_zombie = self.is_zombie(identity);
            let code = self.try_commit_offset(&request).await.unwrap_or(ErrorCode::NetworkException);
            if let Some(step) = self.judge(identity, "an offset", code, was_zombie) {
                return step;
            }
            if code != ErrorCode::ConcurrentTransactions {
                self.offsets.forget();
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn try_commit_offset(&mut self, request: &TxnOffsetCommitRequest) -> Result<ErrorCode> {
        let coordinator = self.offsets.coordinator().await?;
        let answer: TxnOffsetCommitResponse = self.offsets.client.at(&coordinator, request).await?;
        let topic = answer.topics.into_iter().next().context("no topic")?;
        let part = topic.partitions.into_iter().next().context("no partition")?;
        Ok(ErrorCode::from_code(part.error_code))
    }

    fn is_zombie(&self, identity: Identity) -> bool {
        self.history().lock().grants.is_zombie(&self.id(), identity)
    }

    /// What follows from an answer; nothing where it has to be asked again.
    fn judge(&self, identity: Identity, what: &str, code: ErrorCode, was_zombie: bool) -> Option<Step> {
        let mut history = self.history().lock();
        if code != ErrorCode::None {
            *history.errors.entry(code.code()).or_default() += 1;
        }
        match code {
            ErrorCode::None | ErrorCode::DuplicateSequenceNumber => {
                let found = history.grants.acknowledged(&self.id(), identity.1, what, was_zombie);
                history.violations.extend(found);
                Some(Step::Done)
            }
            ErrorCode::InvalidProducerEpoch | ErrorCode::ProducerFenced | ErrorCode::InvalidProducerIdMapping => {
                Some(Step::Fenced)
            }
            ErrorCode::TransactionAbortable | ErrorCode::InvalidTxnState => Some(Step::Abort),
            ErrorCode::OutOfOrderSequenceNumber | ErrorCode::UnknownProducerId => {
                let (id, name) = (self.id(), code.name());
                history.violations.push(format!("{id} is told {name} of {what} of epoch {}", identity.1.0));
                Some(Step::Fenced)
            }
            _ => None,
        }
    }

    /// Commits or aborts, as often as that has to be asked; the answer brings the next transaction's epoch (`R51`).
    async fn end(&mut self, identity: &mut Identity, id: Id, commit: bool) -> Step {
        self.history().lock().attempts.asked(id, commit);
        let request = EndTxnRequest {
            transactional_id: self.id(),
            producer_id: identity.0.0,
            producer_epoch: identity.1.0,
            committed: commit,
        };
        loop {
            match self.try_end(&request).await {
                Ok((ErrorCode::None, next)) => {
                    self.history().lock().attempts.told(id, commit);
                    *identity = next;
                    return Step::Done;
                }
                Ok((ErrorCode::ConcurrentTransactions, _)) => {}
                Ok((
                    ErrorCode::InvalidProducerEpoch
                    | ErrorCode::ProducerFenced
                    | ErrorCode::InvalidProducerIdMapping
                    | ErrorCode::InvalidTxnState
                    | ErrorCode::TransactionAbortable,
                    _,
                )) => return Step::Fenced,
                _ => self.client.forget_coordinator(Coordinated::Transaction, &self.id()),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn try_end(&mut self, request: &EndTxnRequest) -> Result<(ErrorCode, Identity)> {
        let id = self.id();
        let coordinator = self.client.coordinator(Coordinated::Transaction, &id).await?;
        let answer: EndTxnResponse = self.client.at(&coordinator, request).await?;
        let next = (ProducerId(answer.producer_id), ProducerEpoch(answer.producer_epoch));
        Ok((ErrorCode::from_code(answer.error_code), next))
    }
}
