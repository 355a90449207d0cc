//! What is asked of a transaction coordinator and what it answers, without API versions: where versions behave differently
//! the gateway says so in a field. Each request concerns one transactional id (the gateway asks once per id of a request
//! that names several); only [`ListTransactionsRequest`] concerns every id of every shard.

use model::{ErrorCode, PartitionIndex, ProducerEpoch, ProducerId};

use super::state::PartitionSet;

/// A request to the coordinator of a transactional id.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum TransactionRequest {
    /// Take the id, fencing whoever had it.
    InitProducerId(InitProducerIdRequest),
    /// Partitions join the transaction, or are asked whether they did.
    AddPartitions(AddPartitionsRequest),
    /// Commit or abort.
    EndTransaction(EndTransactionRequest),
    /// Show one id.
    Describe(DescribeTransactionRequest),
    /// List ids; to be asked of every shard of the broker.
    List(ListTransactionsRequest),
}

/// The answer, of the request's kind.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[expect(missing_docs, reason = "each variant answers the request of its name")]
pub enum TransactionResponse {
    InitProducerId(InitProducerIdResponse),
    AddPartitions(AddPartitionsResponse),
    EndTransaction(EndTransactionResponse),
    Describe(DescribeTransactionResponse),
    List(ListTransactionsResponse),
}

/// A producer's incarnation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Producer {
    /// Its id.
    pub id: ProducerId,
    /// Its epoch.
    pub epoch: ProducerEpoch,
}

impl Producer {
    /// Nobody.
    pub const NONE: Producer = Producer { id: ProducerId::NONE, epoch: ProducerEpoch::NONE };
}

/// InitProducerId with a transactional id (`R46`).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct InitProducerIdRequest {
    /// The id, not empty.
    pub transactional_id: String,
    /// After how long an open transaction is aborted.
    pub timeout_ms: i32,
    /// What the producer believes that it is, where it goes on after an error (KIP-360).
    pub expected: Option<Producer>,
}

/// What an InitProducerId comes to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct InitProducerIdResponse {
    /// NONE, or why not.
    pub error: ErrorCode,
    /// Who the producer is now, or NONE.
    pub producer: Producer,
}

/// AddPartitionsToTxn of one transactional id.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct AddPartitionsRequest {
    /// The id.
    pub transactional_id: String,
    /// Who asks.
    pub producer: Producer,
    /// Which partitions.
    pub partitions: PartitionSet,
    /// Only say whether the partitions are in the transaction (KIP-890, `R50`).
    pub verify_only: bool,
    /// The transaction version that the client speaks.
    pub client_version: i16,
}

/// What an AddPartitionsToTxn comes to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct AddPartitionsResponse {
    /// Each partition of the request, by topic and number.
    pub partitions: Vec<(String, PartitionIndex, ErrorCode)>,
}

/// EndTxn.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct EndTransactionRequest {
    /// The id.
    pub transactional_id: String,
    /// Who asks.
    pub producer: Producer,
    /// Commit, or abort.
    pub commit: bool,
    /// The transaction version that the client speaks: from 2 on the epoch is bumped (`R51`).
    pub client_version: i16,
}

/// What an EndTxn comes to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct EndTransactionResponse {
    /// NONE, or why not.
    pub error: ErrorCode,
    /// Who the producer is in its next transaction, where the epoch was bumped; else NONE.
    pub producer: Producer,
}

/// DescribeTransactions of one id.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DescribeTransactionRequest {
    /// The id.
    pub transactional_id: String,
}

/// One transactional id as DescribeTransactions shows it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DescribeTransactionResponse {
    /// NONE, or why not.
    pub error: ErrorCode,
    /// As in the request.
    pub transactional_id: String,
    /// The state's name; empty with an error.
    pub state: &'static str,
    /// After how long a transaction is aborted.
    pub timeout_ms: i32,
    /// When the transaction began, in milliseconds since 1970, or -1.
    pub start_time_ms: i64,
    /// Who has the id.
    pub producer: Producer,
    /// The partitions of the open transaction.
    pub partitions: PartitionSet,
}

/// Lists transactional ids. Empty filters let all through.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct ListTransactionsRequest {
    /// Only ids in one of these states, by name.
    pub states: Vec<String>,
    /// Only ids of one of these producers.
    pub producer_ids: Vec<ProducerId>,
    /// Only ids with a transaction open for longer, where that is not negative.
    pub open_longer_than_ms: i64,
}

/// One transactional id in a list.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ListedTransaction {
    /// The id.
    pub transactional_id: String,
    /// Its producer.
    pub producer_id: ProducerId,
    /// The state's name.
    pub state: &'static str,
}

/// The ids of one shard; the shell joins the shards.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ListTransactionsResponse {
    /// NONE, or why not.
    pub error: ErrorCode,
    /// The ids in order.
    pub transactions: Vec<ListedTransaction>,
}

impl TransactionRequest {
    /// The transactional id, which decides the shard; None for a request to every shard.
    #[must_use]
    pub fn transactional_id(&self) -> Option<&str> {
        match self {
            TransactionRequest::InitProducerId(r) => Some(&r.transactional_id),
            TransactionRequest::AddPartitions(r) => Some(&r.transactional_id),
            TransactionRequest::EndTransaction(r) => Some(&r.transactional_id),
            TransactionRequest::Describe(r) => Some(&r.transactional_id),
            TransactionRequest::List(_) => None,
        }
    }

    /// The answer that refuses this request as a whole.
    #[must_use]
    pub fn refused(&self, error: ErrorCode) -> TransactionResponse {
        match self {
            TransactionRequest::InitProducerId(_) => {
                TransactionResponse::InitProducerId(InitProducerIdResponse { error, producer: Producer::NONE })
            }
            TransactionRequest::AddPartitions(r) => TransactionResponse::AddPartitions(r.answered(error)),
            TransactionRequest::EndTransaction(_) => {
                TransactionResponse::EndTransaction(EndTransactionResponse { error, producer: Producer::NONE })
            }
            TransactionRequest::Describe(r) => {
                TransactionResponse::Describe(DescribeTransactionResponse::refused(&r.transactional_id, error))
            }
            TransactionRequest::List(_) => {
                TransactionResponse::List(ListTransactionsResponse { error, transactions: Vec::new() })
            }
        }
    }
}

impl AddPartitionsRequest {
    /// The answer with one code, NONE too, at every partition.
    #[must_use]
    pub fn answered(&self, error: ErrorCode) -> AddPartitionsResponse {
        let each = |(topic, partition): (&str, PartitionIndex)| (topic.to_owned(), partition, error);
        AddPartitionsResponse { partitions: self.partitions.iter().map(each).collect() }
    }
}

impl DescribeTransactionResponse {
    /// The answer with `error` and no description.
    #[must_use]
    pub fn refused(transactional_id: &str, error: ErrorCode) -> Self {
        DescribeTransactionResponse {
            error,
            transactional_id: transactional_id.to_owned(),
            state: "",
            timeout_ms: 0,
            start_time_ms: -1,
            producer: Producer::NONE,
            partitions: PartitionSet::default(),
        }
    }
}

impl TransactionResponse {
    /// The answer that was ready for success, turned into a refusal: nothing was stored.
    #[must_use]
    pub(super) fn failed(mut self, error: ErrorCode) -> TransactionResponse {
        match &mut self {
            TransactionResponse::InitProducerId(r) => *r = InitProducerIdResponse { error, producer: Producer::NONE },
            TransactionResponse::AddPartitions(r) => r.partitions.iter_mut().for_each(|(_, _, code)| *code = error),
            TransactionResponse::EndTransaction(r) => *r = EndTransactionResponse { error, producer: Producer::NONE },
            TransactionResponse::Describe(r) => r.error = error,
            TransactionResponse::List(r) => r.error = error,
        }
        self
    }
}
