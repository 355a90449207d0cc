//! A small Kafka client over the network of the run: it speaks the protocol as any client does, one request at a time a broker.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use model::Uuid;
use protocol::messages::metadata_request::MetadataRequestTopic;
use protocol::messages::{FindCoordinatorRequest, FindCoordinatorResponse, MetadataRequest, MetadataResponse};
use protocol::{Request, Response, decode_response, encode_request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::net::{Dialer, HostId, Socket};
use crate::node::address;

const TIMEOUT: Duration = Duration::from_secs(4);
const ANSWER_MAX: usize = 64 << 20;

/// What there are coordinators of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Coordinated {
    /// A group.
    Group,
    /// A transactional id.
    Transaction,
}

/// See the module.
#[derive(Debug)]
pub struct Client {
    dialer: Dialer,
    nodes: u8,
    /// Which node is asked next for metadata.
    next: u8,
    connections: BTreeMap<String, Socket>,
    correlation_id: i32,
    /// The leaders of the topic's partitions as they were told last.
    leaders: BTreeMap<i32, String>,
    /// The newest leader epochs that it has heard of: who knows older ones only is not believed.
    epochs: BTreeMap<i32, i32>,
    /// The coordinators as they were told last.
    coordinators: BTreeMap<(Coordinated, String), String>,
    /// The topic's identity, once it is known.
    pub topic_id: Uuid,
}

impl Client {
    /// Of a cluster of so many nodes; `first` says which one it asks first.
    #[must_use]
    pub fn new(dialer: Dialer, nodes: u8, first: u8) -> Client {
        Client {
            dialer,
            nodes,
            next: first % nodes,
            connections: BTreeMap::new(),
            correlation_id: 0,
            leaders: BTreeMap::new(),
            epochs: BTreeMap::new(),
            coordinators: BTreeMap::new(),
            topic_id: Uuid::nil(),
        }
    }

    /// Another one, that knows nothing yet.
    #[must_use]
    pub fn fresh(&self) -> Client {
        Client::new(self.dialer.clone(), self.nodes, self.next)
    }

    /// Asks the broker at `address`, in the newest version.
    ///
    /// # Errors
    /// No answer: whether the request took effect is unknown.
    pub async fn at<R: Request, A: Response>(&mut self, address: &str, request: &R) -> Result<A> {
        self.at_within(TIMEOUT, address, request).await
    }

    /// The same, for requests that a broker may answer late.
    ///
    /// # Errors
    /// No answer: whether the request took effect is unknown.
    pub async fn at_within<R: Request, A: Response>(
        &mut self,
        timeout: Duration,
        address: &str,
        request: &R,
    ) -> Result<A> {
        // A connection is kept only after a whole exchange.
        let before = self.connections.remove(address);
        self.correlation_id += 1;
        let (id, version) = (self.correlation_id, *R::API.versions().end());
        let exchange = async {
            let mut socket = match before {
                Some(socket) => socket,
                None => self.dialer.socket(address).await?,
            };
            let frame = encode_request(request, version, id, Some("sim"))?.into_bytes();
            socket.write_all(&frame).await?;
            let size = usize::try_from(socket.read_i32().await?)?;
            ensure!(size <= ANSWER_MAX, "an answer of {size} bytes");
            let mut answer = BytesMut::zeroed(size);
            socket.read_exact(&mut answer).await?;
            anyhow::Ok((socket, answer))
        };
        let (socket, answer) = tokio::time::timeout(timeout, exchange).await.context("no answer in time")??;
        let (answered, answer) = decode_response(answer, version)?;
        ensure!(answered == id, "another request was answered");
        self.connections.insert(address.to_owned(), socket);
        Ok(answer)
    }

    /// Asks any broker.
    ///
    /// # Errors
    /// No answer of the one that was asked; the next call asks another.
    pub async fn any<R: Request, A: Response>(&mut self, request: &R) -> Result<A> {
        let asked = address(HostId(self.next + 1), "PLAINTEXT");
        let answer = self.at(&asked, request).await;
        if answer.is_err() {
            self.next = (self.next + 1) % self.nodes;
        }
        answer
    }

    /// The leader of a partition of `topic`, asked for where it is not known.
    ///
    /// # Errors
    /// Nobody tells, or there is none.
    pub async fn leader(&mut self, topic: &str, partition: i32) -> Result<String> {
        if let Some(leader) = self.leaders.get(&partition) {
            return Ok(leader.clone());
        }
        let topics = vec![MetadataRequestTopic { name: Some(topic.to_owned()), ..Default::default() }];
        let request = MetadataRequest { topics: Some(topics), allow_auto_topic_creation: false, ..Default::default() };
        let answer: MetadataResponse = self.any(&request).await?;
        // What one broker knows another may know better.
        self.next = (self.next + 1) % self.nodes;
        let brokers: BTreeMap<i32, String> =
            answer.brokers.iter().map(|b| (b.node_id, format!("{}:{}", b.host, b.port))).collect();
        let Some(found) = answer.topics.into_iter().find(|t| t.error_code == 0) else { bail!("no topic") };
        self.topic_id = found.topic_id;
        self.leaders.clear();
        for told in found.partitions {
            let known = self.epochs.entry(told.partition_index).or_insert(told.leader_epoch);
            *known = told.leader_epoch.max(*known);
            if let Some(address) = brokers.get(&told.leader_id).filter(|_| *known == told.leader_epoch) {
                self.leaders.insert(told.partition_index, address.clone());
            }
        }
        self.leaders.get(&partition).cloned().context("no leader")
    }

    /// The newest leader epoch of a partition, as far as this client knows; a leader of an older one refuses it (KIP-320).
    #[must_use]
    pub fn epoch(&self, partition: i32) -> i32 {
        self.epochs.get(&partition).copied().unwrap_or(-1)
    }

    /// A record of this leader epoch was read.
    pub fn note_epoch(&mut self, partition: i32, epoch: i32) {
        let known = self.epochs.entry(partition).or_insert(epoch);
        *known = epoch.max(*known);
    }

    /// Whoever was told to lead does not, or cannot be reached.
    pub fn forget_leader(&mut self, partition: i32) {
        if let Some(address) = self.leaders.remove(&partition) {
            self.connections.remove(&address);
        }
    }

    /// The coordinator of a group or a transactional id, asked for where it is not known.
    ///
    /// # Errors
    /// Nobody tells, or there is none.
    pub async fn coordinator(&mut self, of: Coordinated, key: &str) -> Result<String> {
        let known = (of, key.to_owned());
        if let Some(address) = self.coordinators.get(&known) {
            return Ok(address.clone());
        }
        let key_type = i8::from(of == Coordinated::Transaction);
        let coordinator_keys = vec![key.to_owned()];
        let request = FindCoordinatorRequest { key_type, coordinator_keys, ..Default::default() };
        let answer: FindCoordinatorResponse = self.any(&request).await?;
        self.next = (self.next + 1) % self.nodes;
        let found = answer.coordinators.into_iter().find(|found| found.error_code == 0).context("no coordinator")?;
        let address = format!("{}:{}", found.host, found.port);
        self.coordinators.insert(known, address.clone());
        Ok(address)
    }

    /// Whoever was told to coordinate does not, or cannot be reached.
    pub fn forget_coordinator(&mut self, of: Coordinated, key: &str) {
        if let Some(address) = self.coordinators.remove(&(of, key.to_owned())) {
            self.connections.remove(&address);
        }
    }
}
