//! Connections and servers of the internal planes, with the settings that replication needs; over TCP, or over what a
//! simulation has in its place ([`Network`], [`Listening`]).
//!
//! A dead peer is noticed only by HTTP/2 keepalive, so both sides have it. Frames and windows are sized so that a
//! replication stream costs few wake-ups on a short link.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tonic::codegen::http::Uri;
use tonic::service::Routes;
use tonic::transport::server::{Connected, Router, TcpIncoming};
use tonic::transport::{Channel, Endpoint, Server};
use tower::Service;

use crate::RpcError;

/// The largest message of any internal plane, in bytes: a replication frame of the largest record batch and its neighbours.
pub const MAX_MESSAGE: usize = 128 << 20;

const FRAME: u32 = 1 << 20;
const WINDOW: u32 = 4 << 20;
/// What a replication stream can hold at the follower's end: frames that wait to be sent, and the window of those on their
/// way.
pub const STREAM_BYTES: u64 = (8 * FRAME + WINDOW) as u64;

const KEEPALIVE: Keepalive = Keepalive { interval: Duration::from_millis(300), silence: Duration::from_millis(300) };
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1000);

/// When a connection is asked whether its other end is there, and when it is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keepalive {
    /// A ping goes out when nothing has come for so long.
    pub interval: Duration,
    /// Where nothing has come for so long after it, the connection is closed.
    pub silence: Duration,
}

/// A connection between two nodes, in either direction's order.
pub trait Link: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Link for T {}

/// Opens connections to `host:port`.
pub trait Dial: Send + Sync + 'static {
    /// A new connection.
    fn dial(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Link>>>;
}

/// Connections as they come in.
pub type Incoming = BoxStream<'static, io::Result<Box<dyn Link>>>;

/// Where connections come from.
pub enum Listening {
    /// TCP.
    Tcp(TcpListener),
    /// What a simulation has.
    Links(Incoming),
}

impl std::fmt::Debug for Listening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Listening::Tcp(listener) => listener.fmt(f),
            Listening::Links(_) => f.write_str("Links"),
        }
    }
}

impl From<TcpListener> for Listening {
    fn from(listener: TcpListener) -> Self {
        Listening::Tcp(listener)
    }
}

/// What connections are made over.
#[derive(Clone, Default)]
pub enum Network {
    /// TCP.
    #[default]
    Tcp,
    /// What a simulation has.
    Other(Arc<dyn Dial>),
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Network::Tcp => "Tcp",
            Network::Other(_) => "Other",
        })
    }
}

impl Network {
    /// As [`connect`].
    pub(crate) async fn connect(&self, address: &str) -> Result<Channel, RpcError> {
        self.connect_watched(address, KEEPALIVE).await
    }

    /// The same, with a keepalive of its own.
    pub(crate) async fn connect_watched(&self, address: &str, keepalive: Keepalive) -> Result<Channel, RpcError> {
        let connected = self.dial(&endpoint(address, keepalive)?, address).await;
        connected.map_err(|error| RpcError::Unavailable { peer: address.to_owned(), reason: chain(&error) })
    }

    /// As [`connect`]; `None` where nobody listens there.
    pub(crate) async fn connect_unless_refused(&self, address: &str) -> Result<Option<Channel>, RpcError> {
        match self.dial(&endpoint(address, KEEPALIVE)?, address).await {
            Ok(channel) => Ok(Some(channel)),
            Err(error) if is_refusal(&error) => Ok(None),
            Err(error) => Err(RpcError::Unavailable { peer: address.to_owned(), reason: chain(&error) }),
        }
    }

    async fn dial(&self, endpoint: &Endpoint, address: &str) -> Result<Channel, tonic::transport::Error> {
        match self {
            Network::Tcp => endpoint.connect().await,
            Network::Other(dial) => endpoint.connect_with_connector(connector(dial, address)).await,
        }
    }

    /// As [`connect_lazy`].
    pub(crate) fn connect_lazy(&self, address: &str) -> Result<Channel, RpcError> {
        match self {
            Network::Tcp => connect_lazy(address),
            Network::Other(dial) => {
                Ok(endpoint(address, KEEPALIVE)?.connect_with_connector_lazy(connector(dial, address)))
            }
        }
    }
}

fn connector(
    dial: &Arc<dyn Dial>,
    address: &str,
) -> impl Service<Uri, Response = TokioIo<Box<dyn Link>>, Error = io::Error, Future: Send> + Send + 'static {
    let (dial, address) = (Arc::clone(dial), address.to_owned());
    tower::service_fn(move |_: Uri| {
        let link = dial.dial(&address);
        async move { link.await.map(TokioIo::new) }
    })
}

/// Opens a connection to `host:port`, now.
///
/// # Errors
/// [`RpcError::Unavailable`] where nothing answers within a second.
pub async fn connect(address: &str) -> Result<Channel, RpcError> {
    Network::Tcp.connect(address).await
}

/// A connection to `host:port` that dials at its first call, and again after each loss.
///
/// # Errors
/// [`RpcError::Unavailable`] where `address` is no `host:port`.
pub fn connect_lazy(address: &str) -> Result<Channel, RpcError> {
    Ok(endpoint(address, KEEPALIVE)?.connect_lazy())
}

fn endpoint(address: &str, keepalive: Keepalive) -> Result<Endpoint, RpcError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| RpcError::Unavailable { peer: address.to_owned(), reason: error.to_string() })?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .http2_keep_alive_interval(keepalive.interval)
        .keep_alive_timeout(keepalive.silence)
        .keep_alive_while_idle(true))
}

/// Several services on one listener; the first one answers what none of them knows.
pub fn merge(services: impl IntoIterator<Item = Routes>) -> Routes {
    let merged =
        services.into_iter().map(Routes::into_axum_router).reduce(|all, next| all.merge(next.reset_fallback()));
    merged.map(Routes::from).unwrap_or_default()
}

/// Serves `routes` on what comes in until `stop` completes; then lets streams end.
///
/// # Errors
/// The transport's, as text.
pub async fn serve(
    listening: impl Into<Listening>,
    routes: Routes,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), RpcError> {
    let server = server(routes);
    let (address, served) = match listening.into() {
        Listening::Tcp(listener) => {
            let address = listener.local_addr().map_or_else(|_| "listener".to_owned(), |a: SocketAddr| a.to_string());
            // tonic ignores its own tcp_nodelay for listeners that it did not bind, and Nagle costs 40 ms an acknowledgement.
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            (address, server.serve_with_incoming_shutdown(incoming, stop).await)
        }
        Listening::Links(links) => {
            ("listener".to_owned(), server.serve_with_incoming_shutdown(links.map_ok(Accepted), stop).await)
        }
    };
    served.map_err(|error| RpcError::Unavailable { peer: address, reason: chain(&error) })
}

fn server(routes: Routes) -> Router {
    Server::builder()
        .max_frame_size(FRAME)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .max_concurrent_streams(1024)
        .http2_keepalive_interval(Some(KEEPALIVE.interval))
        .http2_keepalive_timeout(Some(KEEPALIVE.silence))
        .add_routes(routes)
}

/// A connection that came in.
struct Accepted(Box<dyn Link>);

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Accepted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Whether a call failed because there was no connection: then the peer has not heard of it.
pub(crate) fn never_connected(status: &tonic::Status) -> bool {
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// An error with its causes: tonic's own text is only "transport error".
/// Whether the other machine said that nobody listens.
fn is_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::ConnectionRefused))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
