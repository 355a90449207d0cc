//! DeleteTopics: by name, or by id from version 6 on.

use std::collections::{BTreeMap, BTreeSet};

use broker::api::BrokerApi;
use metadata::control::{DeleteTopics, DeletedTopic, TopicRef};
use model::{TopicId, Uuid};
use protocol::messages::delete_topics_response::DeletableTopicResult;
use protocol::messages::{DeleteTopicsRequest, DeleteTopicsResponse};

use crate::call::Call;
use crate::handlers::{ask_controller, millis};
use crate::refusal::Refusal;

/// The first version in which topics may be named by id.
const BY_ID: i16 = 6;
/// The first version that knows TOPIC_DELETION_DISABLED.
const DISABLED: i16 = 3;

/// Has the controller delete them.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: DeleteTopicsRequest) -> DeleteTopicsResponse {
    let asked: Vec<(Option<String>, Uuid)> = if call.version >= BY_ID {
        request.topics.into_iter().map(|topic| (topic.name, topic.topic_id)).collect()
    } else {
        request.topic_names.into_iter().map(|name| (Some(name), Uuid::nil())).collect()
    };
    // What stands in the request more than once is refused, and told of once.
    let mut times = BTreeMap::new();
    asked.iter().for_each(|topic| *times.entry(topic.clone()).or_insert(0) += 1);
    let mut seen = BTreeSet::new();
    let asked: Vec<_> = asked.into_iter().filter(|topic| seen.insert(topic.clone())).collect();
    let enabled = call.shared.limits.delete_topics;
    let checked: Vec<Result<TopicRef, Refusal>> = asked
        .iter()
        .map(|topic| match topic {
            _ if !enabled && call.version < DISABLED => Err(Refusal::Malformed("deleting topics is disabled")),
            _ if !enabled => Err(Refusal::DeletionDisabled),
            _ if times.get(topic).is_some_and(|times| *times > 1) => Err(Refusal::Repeated("a topic")),
            (Some(_), id) if !id.is_nil() => Err(Refusal::Malformed("a topic is named by name or by id, not by both")),
            (None, id) if id.is_nil() => Err(Refusal::Malformed("neither a topic's name nor its id is given")),
            (Some(name), _) => Ok(TopicRef::Name(name.clone())),
            (None, id) => Ok(TopicRef::Id(TopicId(*id))),
        })
        .collect();
    let topics: Vec<TopicRef> = checked.iter().filter_map(|topic| topic.as_ref().ok()).cloned().collect();
    let deleted = if topics.is_empty() {
        Ok(Vec::new())
    } else {
        ask_controller!(call, DeleteTopics, DeleteTopics { topics }, millis(request.timeout_ms))
    };
    let mut deleted = deleted.map(Vec::into_iter);
    let responses = asked.into_iter().zip(checked).map(|(topic, checked)| {
        let result = checked.and_then(|_| match &mut deleted {
            Ok(deleted) => deleted.next().ok_or(Refusal::Unanswered),
            Err(refusal) => Err(refusal.clone()),
        });
        told(topic, result)
    });
    DeleteTopicsResponse { responses: responses.collect(), ..Default::default() }
}

fn told((name, topic_id): (Option<String>, Uuid), result: Result<DeletedTopic, Refusal>) -> DeletableTopicResult {
    match result.and_then(|deleted| deleted.result.map_err(Refusal::Decided)) {
        Ok((name, id)) => DeletableTopicResult { name: Some(name), topic_id: id.0, ..Default::default() },
        Err(refusal) => {
            let (error_code, error_message) = (refusal.wire(), refusal.message());
            DeletableTopicResult { name, topic_id, error_code, error_message }
        }
    }
}
