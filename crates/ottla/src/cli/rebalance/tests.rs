//! What becomes of moves and their throttle where brokers answer badly: a broker that says what a test has it say.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use protocol::messages::*;
use protocol::{ApiKey, Decoder, Message, Response, decode_request_head, encode_response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const NOT_CONTROLLER: ErrorCode = ErrorCode::NotController;

/// What the broker is to answer, and what it was asked.
#[derive(Default)]
struct Script {
    /// Of AlterPartitionReassignments, and of ListPartitionReassignments: one after the other, then success.
    alter: VecDeque<ErrorCode>,
    list: VecDeque<ErrorCode>,
    /// How often the move is shown to be under way, once it was asked for.
    shown: usize,
    /// In the order in which they came; DescribeConfigs and Metadata are left out.
    asked: Vec<ApiKey>,
}

/// A cluster of one broker, where partition 0 of "t" goes from 1 to 2.
struct Fake(Arc<Mutex<Script>>);

impl Fake {
    async fn start(script: Script) -> (Fake, KafkaClient) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let script = Arc::new(Mutex::new(script));
        let served = Arc::clone(&script);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&served)));
            }
        });
        (Fake(script), KafkaClient::new(&address).expect("an address"))
    }

    fn asked(&self) -> Vec<ApiKey> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).asked.clone()
    }
}

async fn serve(mut stream: TcpStream, script: Arc<Mutex<Script>>) {
    while let Ok(size) = stream.read_i32().await {
        let mut frame = vec![0; usize::try_from(size).expect("a size")];
        stream.read_exact(&mut frame).await.expect("a whole frame");
        let mut decoder = Decoder::new(BytesMut::from(&frame[..]));
        let head = decode_request_head(&mut decoder).expect("a request");
        let frame = {
            let mut script = script.lock().unwrap_or_else(PoisonError::into_inner);
            script.answer(head.api, &mut decoder, (head.version, head.correlation_id))
        };
        stream.write_all(&frame).await.expect("written");
    }
}

fn framed<R: Response>(response: &R, (version, correlation_id): (i16, i32)) -> Bytes {
    encode_response(response, version, correlation_id).expect("an answer").into_bytes()
}

impl Script {
    fn answer(&mut self, api: ApiKey, decoder: &mut Decoder, to: (i16, i32)) -> Bytes {
        match api {
            ApiKey::ApiVersions => framed(&served(), to),
            ApiKey::DescribeConfigs => framed(&described(decoder, to.0), to),
            ApiKey::Metadata => framed(&self.metadata(), to),
            ApiKey::ListPartitionReassignments => {
                self.asked.push(api);
                framed(&self.listed(), to)
            }
            ApiKey::AlterPartitionReassignments => {
                self.asked.push(api);
                let error_code = self.alter.pop_front().unwrap_or(ErrorCode::None).code();
                framed(&AlterPartitionReassignmentsResponse { error_code, ..Default::default() }, to)
            }
            _ => {
                self.asked.push(api);
                framed(&IncrementalAlterConfigsResponse::default(), to)
            }
        }
    }

    fn listed(&mut self) -> ListPartitionReassignmentsResponse {
        let error = self.list.pop_front().unwrap_or(ErrorCode::None);
        let shown = self.shown > 0 && error == ErrorCode::None;
        self.shown -= usize::from(shown);
        let partitions = vec![OngoingPartitionReassignment { replicas: vec![2], ..Default::default() }];
        let topic = OngoingTopicReassignment { name: "t".to_owned(), partitions };
        let topics = if shown { vec![topic] } else { Vec::new() };
        ListPartitionReassignmentsResponse { error_code: error.code(), topics, ..Default::default() }
    }

    /// The partition has moved once it is not shown any more.
    fn metadata(&self) -> MetadataResponse {
        use metadata_response::{MetadataResponsePartition, MetadataResponseTopic};
        let partitions = vec![MetadataResponsePartition { replica_nodes: vec![2], ..Default::default() }];
        let topic = MetadataResponseTopic { name: Some("t".to_owned()), partitions, ..Default::default() };
        MetadataResponse { topics: vec![topic], ..Default::default() }
    }
}

fn served() -> ApiVersionsResponse {
    let apis = [
        ApiKey::DescribeConfigs,
        ApiKey::Metadata,
        ApiKey::IncrementalAlterConfigs,
        ApiKey::ListPartitionReassignments,
        ApiKey::AlterPartitionReassignments,
    ];
    let version = |api: ApiKey| api_versions_response::ApiVersion {
        api_key: api.key(),
        min_version: *api.versions().start(),
        max_version: *api.versions().end(),
    };
    ApiVersionsResponse { api_keys: apis.into_iter().map(version).collect(), ..Default::default() }
}

/// Nothing is set for what was asked about.
fn described(decoder: &mut Decoder, version: i16) -> DescribeConfigsResponse {
    let request = DescribeConfigsRequest::decode_all(decoder, version).expect("a request");
    let result = |resource: describe_configs_request::DescribeConfigsResource| {
        describe_configs_response::DescribeConfigsResult { resource_name: resource.resource_name, ..Default::default() }
    };
    DescribeConfigsResponse { results: request.resources.into_iter().map(result).collect(), ..Default::default() }
}

async fn rebalanced(script: Script) -> (Result<Vec<Fate>>, Vec<ApiKey>) {
    let (fake, mut client) = Fake::start(script).await;
    let moves = [Move { topic: "t".to_owned(), partition: 0, from: vec![1], to: vec![2] }];
    let throttle = Throttle::of(&mut client, &moves, &[], Some(1000)).await.expect("it is asked what is set");
    let done = execute_throttled(&mut client, Output { json: true }, &moves, &throttle).await;
    (done, fake.asked())
}

const SET: ApiKey = ApiKey::IncrementalAlterConfigs;
const ALTER: ApiKey = ApiKey::AlterPartitionReassignments;
const LIST: ApiKey = ApiKey::ListPartitionReassignments;

#[tokio::test]
async fn moves_are_asked_for_again_where_a_controller_failed_over() {
    let alter = [ErrorCode::RequestTimedOut, NOT_CONTROLLER].into();
    let list = [ErrorCode::RequestTimedOut].into();
    let (done, asked) = rebalanced(Script { alter, list, shown: 1, ..Script::default() }).await;
    assert_eq!(done.expect("they are done"), [Fate::Done]);
    assert_eq!(asked, [SET, ALTER, ALTER, ALTER, LIST, LIST, LIST, SET]);
}

#[tokio::test]
async fn what_is_under_way_though_nobody_answered_stays_throttled_to_its_end() {
    let alter = [ErrorCode::UnknownServerError].into();
    let (done, asked) = rebalanced(Script { alter, shown: 2, ..Script::default() }).await;
    assert_eq!(done.expect("it is done"), [Fate::Done]);
    assert_eq!(asked, [SET, ALTER, LIST, LIST, LIST, SET], "the throttle is taken back last");
}

#[tokio::test]
async fn a_throttle_whose_moves_nobody_tells_of_is_left_with_how_to_take_it_back() {
    let list = [ErrorCode::UnknownServerError].into();
    let (done, asked) = rebalanced(Script { list, ..Script::default() }).await;
    let error = format!("{:#}", done.expect_err("nobody tells"));
    assert!(error.contains("`ottla cluster rebalance --cancel`; the throttle is still set"), "{error}");
    assert!(error.contains("\n  topic t: delete leader.replication.throttled.replicas, delete follower."), "{error}");
    assert_eq!(asked, [SET, ALTER, LIST]);
}
