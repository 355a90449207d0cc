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
    /// In the order in which they came; DescribeConfigs, DescribeCluster and Metadata are left out.
    asked: Vec<ApiKey>,
    /// What is set, by resource: with what IncrementalAlterConfigs removes it is removed here.
    set: BTreeMap<String, Vec<(String, String)>>,
    port: i32,
}

/// A cluster of one broker, where partition 0 of "t" goes from 1 to 2.
struct Fake(Arc<Mutex<Script>>);

impl Fake {
    async fn start(script: Script) -> (Fake, KafkaClient) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (address, port) = (address.to_string(), i32::from(address.port()));
        let script = Script { port, ..script };
        let script = Arc::new(Mutex::new(script));
        let served = Arc::clone(&script);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&served)));
            }
        });
        (Fake(script), KafkaClient::new(&address).expect("an address"))
    }

    fn set(&self) -> BTreeMap<String, Vec<(String, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).set.clone()
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
            ApiKey::DescribeConfigs => framed(&self.described(decoder, to.0), to),
            ApiKey::DescribeCluster => framed(&self.cluster(), to),
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
                let request = IncrementalAlterConfigsRequest::decode_all(decoder, to.0).expect("a request");
                for resource in request.resources {
                    let gone = |name: &str| resource.configs.iter().any(|c| c.name == name && c.value.is_none());
                    let set = self.set.entry(resource.resource_name.clone()).or_default();
                    set.retain(|(name, _)| !gone(name));
                }
                framed(&IncrementalAlterConfigsResponse::default(), to)
            }
        }
    }

    /// Broker 1, and broker 2 that is fenced.
    fn cluster(&self) -> DescribeClusterResponse {
        let broker = |broker_id| DescribeClusterBroker {
            broker_id,
            host: "127.0.0.1".to_owned(),
            port: self.port,
            is_fenced: broker_id == 2,
            ..Default::default()
        };
        DescribeClusterResponse { brokers: [1, 2].map(broker).into(), ..Default::default() }
    }

    /// What is set for what was asked about.
    fn described(&self, decoder: &mut Decoder, version: i16) -> DescribeConfigsResponse {
        use describe_configs_response::{DescribeConfigsResourceResult, DescribeConfigsResult};
        let request = DescribeConfigsRequest::decode_all(decoder, version).expect("a request");
        let result = |resource: describe_configs_request::DescribeConfigsResource| {
            let set = self.set.get(&resource.resource_name).into_iter().flatten();
            let config = |(name, value): &(String, String)| DescribeConfigsResourceResult {
                name: name.clone(),
                value: Some(value.clone()),
                // Kafka's number of the source is that of a topic, or of a broker.
                config_source: if resource.resource_type == 2 { 1 } else { 2 },
                ..Default::default()
            };
            let configs = set.map(config).collect();
            DescribeConfigsResult { resource_name: resource.resource_name.clone(), configs, ..Default::default() }
        };
        DescribeConfigsResponse { results: request.resources.into_iter().map(result).collect(), ..Default::default() }
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
        ApiKey::DescribeCluster,
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

/// What a run that was killed leaves: the rates of two nodes, and the replicas of a topic.
fn left() -> BTreeMap<String, Vec<(String, String)>> {
    let set = |configs: [&str; 2], value: &str| configs.map(|name| (name.to_owned(), value.to_owned())).to_vec();
    let rates = ["leader.replication.throttled.rate", "follower.replication.throttled.rate"];
    let replicas = ["leader.replication.throttled.replicas", "follower.replication.throttled.replicas"];
    [("1", set(rates, "1000")), ("2", set(rates, "1000")), ("t", set(replicas, "0:1"))]
        .map(|(name, set)| (name.to_owned(), set))
        .into()
}

#[tokio::test]
async fn moves_that_are_cancelled_leave_no_throttle_behind_not_even_that_of_a_node_that_is_away() {
    let (fake, mut client) = Fake::start(Script { shown: 1, set: left(), ..Script::default() }).await;
    cancel(&mut client, Output { json: true }).await.expect("it is cancelled");
    assert_eq!(fake.asked(), [LIST, ALTER, SET]);
    assert_eq!(fake.set(), ["1", "2", "t"].map(|name| (name.to_owned(), Vec::new())).into());
}

#[tokio::test]
async fn throttles_that_somebody_has_set_are_told_before_moves_that_are_to_have_none() {
    let (_fake, mut client) = Fake::start(Script { set: left(), ..Script::default() }).await;
    let moves = [Move { topic: "t".to_owned(), partition: 0, from: vec![1], to: vec![2] }];
    let registered = registered(&mut client).await.expect("brokers");
    let found = Throttle::found_for(&mut client, &moves, &registered).await.expect("it is asked what is set");
    let expected = [
        "node 1: leader.replication.throttled.rate=1000, follower.replication.throttled.rate=1000",
        "topic t: leader.replication.throttled.replicas=0:1, follower.replication.throttled.replicas=0:1",
    ];
    assert_eq!(found.lines(), expected);
}
