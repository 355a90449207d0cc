//! What a handler is given: the broker, who asks, and in which version.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use broker::api::BrokerApi;
use broker::budget::MemoryBudget;
use metadata::configs::StaticConfig;
use metadata::{MetadataImage, records::Listener};
use model::BrokerId;

use crate::config::Limits;
use crate::metrics::GatewayMetrics;
use crate::sessions::FetchSessions;

/// Who speaks on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Principal {
    /// Somebody on a listener without authentication: Kafka's `User:ANONYMOUS`.
    Anonymous,
}

impl std::fmt::Display for Principal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Principal::Anonymous => f.write_str("User:ANONYMOUS"),
        }
    }
}

/// One connection, as handlers and log lines see it.
#[derive(Debug)]
pub(crate) struct ConnectionInfo {
    /// The name of the listener: it decides which addresses are told.
    pub(crate) listener: Arc<str>,
    /// The other end.
    pub(crate) peer: SocketAddr,
    /// Who it is.
    pub(crate) principal: Principal,
}

/// What all connections of a broker share.
#[derive(Debug)]
pub(crate) struct Shared<B> {
    pub(crate) broker: Arc<B>,
    pub(crate) limits: Limits,
    /// The broker's own file, to be described.
    pub(crate) file: Arc<StaticConfig>,
    pub(crate) budget: Arc<MemoryBudget>,
    pub(crate) sessions: FetchSessions,
    pub(crate) metrics: Arc<GatewayMetrics>,
    /// Milliseconds since the start, as of the last sweep: good enough for what is idle, and free to read.
    pub(crate) coarse_ms: AtomicU64,
}

/// One request: everything about it but its body.
#[derive(Debug)]
pub(crate) struct Call<B> {
    pub(crate) shared: Arc<Shared<B>>,
    pub(crate) connection: Arc<ConnectionInfo>,
    pub(crate) version: i16,
    pub(crate) client_id: Option<String>,
}

impl<B: BrokerApi> Call<B> {
    pub(crate) fn broker(&self) -> &B {
        &self.shared.broker
    }

    pub(crate) fn image(&self) -> Arc<MetadataImage> {
        self.shared.broker.image()
    }

    /// Where clients of this listener reach a broker that is alive.
    pub(crate) fn address_of<'a>(&self, image: &'a MetadataImage, broker: BrokerId) -> Option<&'a Listener> {
        image.alive_listener(broker, &self.connection.listener)
    }

    /// Where clients of this listener reach each of some brokers, alive or not: id, host, port, rack.
    pub(crate) fn endpoints(&self, ids: impl IntoIterator<Item = BrokerId>) -> Vec<(i32, String, i32, Option<String>)> {
        let mut ids = ids.into_iter().peekable();
        if ids.peek().is_none() {
            return Vec::new();
        }
        let image = self.image();
        let endpoint = |id: BrokerId| {
            let broker = image.broker(id)?;
            let listener = broker.listener(&self.connection.listener)?;
            Some((id.0, listener.host.clone(), i32::from(listener.port), broker.rack.clone()))
        };
        ids.filter_map(endpoint).collect()
    }

    /// The client's address as Kafka shows it.
    pub(crate) fn client_host(&self) -> String {
        format!("/{}", self.connection.peer.ip())
    }
}
