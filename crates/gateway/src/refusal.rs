//! Everything that can be wrong with a request here, and the one table that says it in Kafka's error codes.

use broker::api::ControlUnavailable;
use metadata::control::ControlError;
use model::ErrorCode;

/// Why something was not done.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// No topic or partition of that name and number.
    #[error("This server does not host this topic-partition.")]
    UnknownTopicOrPartition,
    /// No topic of that id.
    #[error("This server does not host this topic ID.")]
    UnknownTopicId,
    /// The broker is not there, or has no listener of this name.
    #[error("the leader is not known here: ask again")]
    NoLeader,
    /// The leader has no listener of this name.
    #[error("the leader has no listener of this name")]
    NoListener,
    /// Replicas are not available: Metadata version 0 says it so.
    #[error("some replicas are not available")]
    ReplicaNotAvailable,
    /// Acks other than -1, 0 and 1.
    #[error("acks must be -1, 0 or 1")]
    InvalidAcks,
    /// A Produce without records.
    #[error("a produce request must carry one record batch for each partition")]
    NoRecords,
    /// A fetch session that is not known: it was made by another broker, or evicted.
    #[error("this fetch session is not known here: start a new one")]
    FetchSessionUnknown,
    /// A fetch session was used out of turn.
    #[error("this is not the next epoch of the fetch session")]
    FetchSessionEpoch,
    /// A fetch session was begun by names and continued by ids, or the other way round.
    #[error("the fetch session names its topics in another way")]
    FetchSessionTopicIds,
    /// A request that only a replica may send: replicas do not use this port.
    #[error("replicas do not fetch by this protocol")]
    FromReplica,
    /// The same thing twice in one request.
    #[error("{0} appears more than once in the request")]
    Repeated(&'static str),
    /// A special value that this version does not have.
    #[error("this version has no such special value")]
    UnsupportedValue,
    /// A field with a value that cannot be.
    #[error("{0}")]
    Malformed(&'static str),
    /// `delete.topic.enable` is off.
    #[error("deleting topics is disabled: see delete.topic.enable")]
    DeletionDisabled,
    /// The coordinators' state is theirs alone: who could write there could forge or lose what others committed.
    #[error("records of an internal topic are written and deleted by the brokers alone")]
    InternalTopic,
    /// Nobody decides who may do what.
    #[error("No Authorizer is configured.")]
    NoAuthorizer,
    /// The coordinator is not known, or cannot be reached by this listener.
    #[error("the coordinator is not available: ask again")]
    NoCoordinator,
    /// An endpoint type of another kind of node.
    #[error("this is a broker: ask for endpoint type 1")]
    OtherEndpointType,
    /// An endpoint type that does not exist.
    #[error("there is no such endpoint type")]
    UnknownEndpointType,
    /// No config resource of that type and name.
    #[error("{0}")]
    UnknownResource(String),
    /// The controller decided against it.
    #[error("{}", .0.message)]
    Decided(#[from] ControlError),
    /// The controller did not answer.
    #[error("{}", .0.message)]
    Undecided(ControlUnavailable),
    /// The broker says so.
    #[error("{}", .0.name())]
    Broker(ErrorCode),
    /// The broker did not answer what it was asked: a fault of ours.
    #[error("the broker gave no answer to this part of the request")]
    Unanswered,
}

impl Refusal {
    /// The table.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            Refusal::UnknownTopicOrPartition => ErrorCode::UnknownTopicOrPartition,
            Refusal::UnknownTopicId => ErrorCode::UnknownTopicId,
            Refusal::NoLeader => ErrorCode::LeaderNotAvailable,
            Refusal::NoListener => ErrorCode::ListenerNotFound,
            Refusal::ReplicaNotAvailable => ErrorCode::ReplicaNotAvailable,
            Refusal::InvalidAcks => ErrorCode::InvalidRequiredAcks,
            Refusal::NoRecords => ErrorCode::InvalidRecord,
            Refusal::FetchSessionUnknown => ErrorCode::FetchSessionIdNotFound,
            Refusal::FetchSessionEpoch => ErrorCode::InvalidFetchSessionEpoch,
            Refusal::FetchSessionTopicIds => ErrorCode::FetchSessionTopicIdError,
            Refusal::FromReplica => ErrorCode::TopicAuthorizationFailed,
            Refusal::Repeated(_) | Refusal::Malformed(_) | Refusal::UnknownResource(_) => ErrorCode::InvalidRequest,
            Refusal::UnsupportedValue => ErrorCode::UnsupportedVersion,
            Refusal::DeletionDisabled => ErrorCode::TopicDeletionDisabled,
            Refusal::InternalTopic => ErrorCode::InvalidTopicException,
            Refusal::NoAuthorizer => ErrorCode::SecurityDisabled,
            Refusal::NoCoordinator => ErrorCode::CoordinatorNotAvailable,
            Refusal::OtherEndpointType => ErrorCode::MismatchedEndpointType,
            Refusal::UnknownEndpointType => ErrorCode::UnsupportedEndpointType,
            Refusal::Decided(error) => error.code,
            Refusal::Undecided(unavailable) => unavailable.error,
            Refusal::Broker(code) => *code,
            Refusal::Unanswered => ErrorCode::UnknownServerError,
        }
    }

    /// The number on the wire.
    pub(crate) fn wire(&self) -> i16 {
        self.code().code()
    }

    /// The sentence for people.
    pub(crate) fn message(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// The error code of a result on the wire.
pub(crate) fn wire_code<T>(result: &Result<T, impl AsCode>) -> i16 {
    result.as_ref().err().map_or(ErrorCode::None, AsCode::as_code).code()
}

/// The sentence of a result for people.
pub(crate) fn wire_message<T>(result: &Result<T, ControlError>) -> Option<String> {
    result.as_ref().err().map(|error| error.message.clone())
}

/// An error with a Kafka code.
pub(crate) trait AsCode {
    /// The code.
    fn as_code(&self) -> ErrorCode;
}

impl AsCode for ControlError {
    fn as_code(&self) -> ErrorCode {
        self.code
    }
}

impl AsCode for Refusal {
    fn as_code(&self) -> ErrorCode {
        self.code()
    }
}
