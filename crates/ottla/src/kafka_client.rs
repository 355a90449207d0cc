//! A small Kafka client for the command line: one request at a time a broker, in the newest version that both sides know.
//!
//! It is a client like any other: what the commands do works against every Kafka-compatible cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use futures_util::future::join_all;
use model::ErrorCode;
use protocol::messages::{
    ApiVersionsRequest, ApiVersionsResponse, FindCoordinatorRequest, FindCoordinatorResponse, MetadataRequest,
    MetadataResponse,
};
use protocol::{ApiKey, Request, Response, decode_response, encode_request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CLIENT_ID: &str = "ottla";
const TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The largest answer that is read.
const ANSWER_MAX: usize = 256 << 20;

/// A connection to one broker.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    versions: BTreeMap<i16, (i16, i16)>,
    correlation_id: i32,
    address: String,
    /// How long an answer is waited for.
    timeout: Duration,
}

impl Connection {
    async fn open(address: &str, timeout: Duration) -> Result<Connection> {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let stream = connected
            .with_context(|| format!("{address} does not answer"))?
            .with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        let mut connection =
            Connection { stream, versions: BTreeMap::new(), correlation_id: 0, address: address.to_owned(), timeout };
        let request = ApiVersionsRequest {
            client_software_name: CLIENT_ID.to_owned(),
            client_software_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let answer: ApiVersionsResponse = connection.call_version(&request, 3).await?;
        check(answer.error_code).context("ApiVersions")?;
        connection.versions = answer.api_keys.iter().map(|k| (k.api_key, (k.min_version, k.max_version))).collect();
        Ok(connection)
    }

    fn version(&self, api: ApiKey) -> Result<i16> {
        let known = self.versions.get(&api.key());
        let (min, max) = known.with_context(|| format!("{} does not serve {api:?}", self.address))?;
        let ours = api.versions();
        let newest = *max.min(ours.end());
        ensure!(newest >= *min.max(ours.start()), "{} and this program share no version of {api:?}", self.address);
        Ok(newest)
    }

    async fn call<R: Request, A: Response>(&mut self, request: &R) -> Result<A> {
        let version = self.version(R::API)?;
        self.call_version(request, version).await
    }

    async fn call_version<R: Request, A: Response>(&mut self, request: &R, version: i16) -> Result<A> {
        self.correlation_id += 1;
        let frame = encode_request(request, version, self.correlation_id, Some(CLIENT_ID))?.into_bytes();
        let exchanged = async {
            self.stream.write_all(&frame).await?;
            let size = usize::try_from(self.stream.read_i32().await?)?;
            ensure!(size <= ANSWER_MAX, "an answer of {size} bytes is too large");
            let mut answer = BytesMut::new();
            while answer.len() < size {
                let left = size - answer.len();
                let read = (&mut self.stream).take(u64::try_from(left)?).read_buf(&mut answer).await?;
                if read == 0 {
                    return Err(anyhow::Error::from(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)));
                }
            }
            Ok(answer)
        };
        let answer = tokio::time::timeout(self.timeout, exchanged).await;
        let answer = answer.with_context(|| format!("{} did not answer {:?} in time", self.address, R::API))?;
        let answer = answer.with_context(|| format!("{:?} at {}", R::API, self.address))?;
        let (correlation_id, answer) = decode_response(answer, version)?;
        ensure!(correlation_id == self.correlation_id, "{} answered another request", self.address);
        Ok(answer)
    }
}

/// A client of one cluster.
#[derive(Debug)]
pub(crate) struct KafkaClient {
    bootstrap: Vec<String>,
    /// Brokers that the cluster named: one may answer when those of `bootstrap` are gone.
    known: Vec<String>,
    connections: BTreeMap<String, Connection>,
    /// Which broker answered last: where some never do, each of them is waited for only once.
    answers: Option<String>,
    timeout: Duration,
}

impl KafkaClient {
    /// Of the cluster that some broker of `bootstrap` (`host:port,…`) is in.
    pub(crate) fn new(bootstrap: &str) -> Result<KafkaClient> {
        let bootstrap: Vec<String> =
            bootstrap.split(',').map(str::trim).filter(|a| !a.is_empty()).map(str::to_owned).collect();
        ensure!(!bootstrap.is_empty(), "--bootstrap names no broker: give host:port,…");
        for address in &bootstrap {
            let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            ensure!(port.is_some(), "--bootstrap {address:?} is not host:port");
        }
        Ok(KafkaClient { bootstrap, known: Vec::new(), connections: BTreeMap::new(), answers: None, timeout: TIMEOUT })
    }

    /// The same, waiting no longer than this for an answer.
    pub(crate) fn with_timeout(mut self, timeout: Duration) -> KafkaClient {
        self.wait_at_most(timeout);
        self
    }

    /// Waits no longer than this for each answer from now on.
    pub(crate) fn wait_at_most(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Asks any broker.
    pub(crate) async fn any<R: Request, A: Response>(&mut self, request: &R) -> Result<A> {
        let mut last = None;
        for address in self.candidates() {
            match self.at(&address, request).await {
                Ok(answer) => {
                    self.answers = Some(address);
                    return Ok(answer);
                }
                Err(error) => last = Some(error),
            }
        }
        let tried = self.bootstrap.join(", ");
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no broker")))
            .with_context(|| format!("no broker of {tried} answered; is the cluster running?"))
    }

    /// The brokers in the order in which they are asked.
    fn candidates(&self) -> Vec<String> {
        let others = self.bootstrap.iter().chain(&self.known).filter(|address| Some(*address) != self.answers.as_ref());
        self.answers.iter().chain(others).cloned().collect()
    }

    /// Whether the broker at `address` has an API at all: older clusters do not have the newest ones.
    pub(crate) async fn serves(&mut self, address: &str, api: ApiKey) -> Result<bool> {
        let connection = match self.connections.remove(address) {
            Some(connection) => connection,
            None => Connection::open(address, self.timeout).await?,
        };
        let serves = connection.versions.contains_key(&api.key());
        self.connections.insert(address.to_owned(), connection);
        Ok(serves)
    }

    /// Asks the broker at `address`.
    pub(crate) async fn at<R: Request, A: Response>(&mut self, address: &str, request: &R) -> Result<A> {
        let mut connection = match self.connections.remove(address) {
            Some(connection) => connection,
            None => Connection::open(address, self.timeout).await?,
        };
        connection.timeout = self.timeout;
        // A connection is kept only after a whole exchange.
        let answer = connection.call(request).await?;
        self.connections.insert(address.to_owned(), connection);
        Ok(answer)
    }

    /// Topics by name, or all of them.
    pub(crate) async fn metadata(&mut self, topics: Option<&[&str]>) -> Result<MetadataResponse> {
        let topics = topics.map(|names| {
            let topic = |name: &&str| protocol::messages::metadata_request::MetadataRequestTopic {
                name: Some((*name).to_owned()),
                ..Default::default()
            };
            names.iter().map(topic).collect()
        });
        let request = MetadataRequest { topics, allow_auto_topic_creation: false, ..Default::default() };
        let answer: MetadataResponse = self.any(&request).await?;
        let named = addresses(&answer).into_values().filter(|address| !self.bootstrap.contains(address));
        self.known = named.collect();
        Ok(answer)
    }

    /// Whether the broker at `address` answers at all.
    pub(crate) async fn reaches(&mut self, address: &str) -> bool {
        !self.reached([(0, address.to_owned())].into()).await.is_empty()
    }

    /// Which of the brokers answer at all; all are asked at the same time.
    pub(crate) async fn reached(&mut self, brokers: BTreeMap<i32, String>) -> BTreeSet<i32> {
        let timeout = self.timeout;
        let open = |(id, address): (i32, String)| async move { (id, Connection::open(&address, timeout).await) };
        let mut reached = BTreeSet::new();
        for (id, connection) in join_all(brokers.into_iter().map(open)).await {
            if let Ok(connection) = connection {
                self.connections.insert(connection.address.clone(), connection);
                reached.insert(id);
            }
        }
        reached
    }

    /// `host:port` of each broker.
    pub(crate) async fn brokers(&mut self) -> Result<BTreeMap<i32, String>> {
        Ok(addresses(&self.metadata(Some(&[])).await?))
    }

    /// Asks the coordinator of a group; looks it up, and waits while it is being elected or loads.
    pub(crate) async fn coordinator(&mut self, group: &str) -> Result<String> {
        self.coordinator_of(0, group).await.with_context(|| format!("group {group:?}"))
    }

    /// The same of a transactional id.
    pub(crate) async fn transaction_coordinator(&mut self, transactional_id: &str) -> Result<String> {
        self.coordinator_of(1, transactional_id).await.with_context(|| format!("transactional id {transactional_id:?}"))
    }

    async fn coordinator_of(&mut self, key_type: i8, key: &str) -> Result<String> {
        let deadline = tokio::time::Instant::now() + TIMEOUT;
        loop {
            let request =
                FindCoordinatorRequest { key: key.to_owned(), key_type, coordinator_keys: vec![key.to_owned()] };
            let answer: FindCoordinatorResponse = self.any(&request).await?;
            let found = answer.coordinators.into_iter().next().context("FindCoordinator answered nothing")?;
            match ErrorCode::from_code(found.error_code) {
                ErrorCode::None => return Ok(format!("{}:{}", found.host, found.port)),
                error if error.is_retriable() && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                error => bail!("there is no coordinator: {error}"),
            }
        }
    }
}

/// `host:port` of each broker of a metadata answer.
pub(crate) fn addresses(metadata: &MetadataResponse) -> BTreeMap<i32, String> {
    metadata.brokers.iter().map(|broker| (broker.node_id, format!("{}:{}", broker.host, broker.port))).collect()
}

/// What a broker answered instead of doing what it was asked.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[error("{text}")]
struct Refused {
    code: ErrorCode,
    text: String,
}

/// An error code as an error.
pub(crate) fn check(code: i16) -> Result<()> {
    check_message(code, None)
}

/// An error code with the broker's own words.
pub(crate) fn check_message(code: i16, message: Option<&str>) -> Result<()> {
    let text = match (ErrorCode::from_code(code), message) {
        (ErrorCode::None, _) => return Ok(()),
        (code, Some(message)) if !message.is_empty() => format!("{message} ({code})"),
        (code, _) => code.to_string(),
    };
    Err(Refused { code: ErrorCode::from_code(code), text }.into())
}

/// The broker's error code, where that is what an error is.
pub(crate) fn code_of(error: &anyhow::Error) -> Option<ErrorCode> {
    error.chain().find_map(|cause| cause.downcast_ref::<Refused>()).map(|refused| refused.code)
}

/// Whether the same may work later, or at another broker.
pub(crate) fn is_retriable(error: &anyhow::Error) -> bool {
    let lost = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<std::io::Error>() || cause.is::<tokio::time::error::Elapsed>()
    };
    code_of(error).map_or_else(|| error.chain().any(lost), ErrorCode::is_retriable)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn brokers_that_take_connections_and_say_nothing_are_waited_for_once_and_not_for_long() {
        let silent = [TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap()];
        let addresses =
            (1..).zip(silent.each_ref().map(|listener| listener.local_addr().unwrap().to_string())).collect();
        let mut client = KafkaClient::new("127.0.0.1:1").unwrap().with_timeout(Duration::from_millis(50));
        let reached = tokio::time::timeout(TIMEOUT / 2, client.reached(addresses)).await;
        assert_eq!(reached.expect("it is not waited for longer"), [].into());
    }

    #[test]
    fn the_broker_that_answered_last_is_asked_first() {
        let mut client = KafkaClient::new("a:1,b:1").unwrap();
        client.known = vec!["c:1".to_owned()];
        assert_eq!(client.candidates(), ["a:1", "b:1", "c:1"]);
        client.answers = Some("b:1".to_owned());
        assert_eq!(client.candidates(), ["b:1", "a:1", "c:1"]);
    }
}
