//! Where clients' connections come from: TCP, or what a simulation has in its place.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::StreamExt;
use futures_util::lock::Mutex;
use futures_util::stream::BoxStream;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

/// A connection that is no TCP.
pub trait Link: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Link for T {}

/// Connections as they come in, and from where.
pub type Incoming = BoxStream<'static, (Box<dyn Link>, SocketAddr)>;

/// A port that is open.
pub enum Port {
    /// TCP.
    Tcp(TcpListener),
    /// What a simulation has.
    Links(Mutex<Incoming>),
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Port::Tcp(listener) => listener.fmt(f),
            Port::Links(_) => f.write_str("Links"),
        }
    }
}

impl From<TcpListener> for Port {
    fn from(listener: TcpListener) -> Self {
        Port::Tcp(listener)
    }
}

impl From<Incoming> for Port {
    fn from(incoming: Incoming) -> Self {
        Port::Links(Mutex::new(incoming))
    }
}

impl Port {
    /// Where it is bound, where there is such a place.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match self {
            Port::Tcp(listener) => listener.local_addr().ok(),
            Port::Links(_) => None,
        }
    }

    /// The next connection. Dropped before it is there, it is there for the next.
    pub(crate) async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        match self {
            Port::Tcp(listener) => listener.accept().await.map(|(stream, peer)| (Stream::Tcp(stream), peer)),
            Port::Links(links) => match links.lock().await.next().await {
                Some((link, peer)) => Ok((Stream::Link(link), peer)),
                // Nobody will come any more.
                None => std::future::pending().await,
            },
        }
    }
}

/// A client's connection.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Link(Box<dyn Link>),
}

impl Stream {
    /// Sets what a connection of a client needs. It only makes things better: a socket that refuses still works.
    pub(crate) fn set_up(&self) {
        if let Stream::Tcp(stream) = self {
            let _ = stream.set_nodelay(true);
            let _ = SockRef::from(stream).set_keepalive(true);
        }
    }

    /// Whether there may be something to read: no memory is taken for a connection that sends nothing.
    pub(crate) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => stream.poll_read_ready(cx),
            Stream::Link(_) => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, into),
            Stream::Link(link) => Pin::new(link).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, from),
            Stream::Link(link) => Pin::new(link).poll_write(cx, from),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, from),
            Stream::Link(link) => Pin::new(link).poll_write_vectored(cx, from),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Link(link) => Pin::new(link).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Link(link) => Pin::new(link).poll_shutdown(cx),
        }
    }
}
