//! Connections and servers of the internal planes, with the settings that replication needs.
//!
//! A dead peer is noticed only by HTTP/2 keepalive, so both sides have it. Frames and windows are sized so that a
//! replication stream costs few wake-ups on a short link.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};

use crate::RpcError;

/// The largest message of any internal plane, in bytes: a replication frame of the largest record batch and its neighbours.
pub const MAX_MESSAGE: usize = 128 << 20;

const FRAME: u32 = 1 << 20;
const WINDOW: u32 = 4 << 20;
/// What a replication stream can hold at the follower's end: frames that wait to be sent, and the window of those on their
/// way.
pub const STREAM_BYTES: u64 = (8 * FRAME + WINDOW) as u64;

const KEEPALIVE: Duration = Duration::from_millis(300);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1000);

/// Opens a connection to `host:port`, now.
///
/// # Errors
/// [`RpcError::Unavailable`] where nothing answers within a second.
pub async fn connect(address: &str) -> Result<Channel, RpcError> {
    endpoint(address)?
        .connect()
        .await
        .map_err(|error| RpcError::Unavailable { peer: address.to_owned(), reason: chain(&error) })
}

/// A connection to `host:port` that dials at its first call, and again after each loss.
///
/// # Errors
/// [`RpcError::Unavailable`] where `address` is no `host:port`.
pub fn connect_lazy(address: &str) -> Result<Channel, RpcError> {
    Ok(endpoint(address)?.connect_lazy())
}

fn endpoint(address: &str) -> Result<Endpoint, RpcError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| RpcError::Unavailable { peer: address.to_owned(), reason: error.to_string() })?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true))
}

/// Several services on one listener; the first one answers what none of them knows.
pub fn merge(services: impl IntoIterator<Item = Routes>) -> Routes {
    let merged =
        services.into_iter().map(Routes::into_axum_router).reduce(|all, next| all.merge(next.reset_fallback()));
    merged.map(Routes::from).unwrap_or_default()
}

/// Serves `routes` on a bound listener until `stop` completes; then lets streams end.
///
/// # Errors
/// The transport's, as text.
pub async fn serve(
    listener: TcpListener,
    routes: Routes,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), RpcError> {
    let address = listener.local_addr().map_or_else(|_| "listener".to_owned(), |a: SocketAddr| a.to_string());
    // tonic ignores its own tcp_nodelay for listeners that it did not bind, and Nagle costs 40 ms an acknowledgement.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Server::builder()
        .max_frame_size(FRAME)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(2 * WINDOW)
        .max_concurrent_streams(1024)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop)
        .await
        .map_err(|error| RpcError::Unavailable { peer: address, reason: chain(&error) })
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
