//! The network of a run: connections that keep their order, and take time; links that are slow, or cut in one direction or
//! both; connections that break.
//!
//! What is under way is a list for each direction of a connection. A cut link loses nothing that TCP would send again: it
//! waits at the cut, and whoever is at the ends can tell it from a slow link only by its own clock. A machine without
//! power is as far away; once it is back it answers what it does not know with a reset.
//!
//! Invariant: nothing arrives in the millisecond in which it was sent, so that the order in which hosts run in it shows
//! nowhere. Everything that arrives is part of the run's trace.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use rpc::net::{Dial, Incoming, Link};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot};

use crate::chance::Chance;
use crate::trace::Trace;

/// A machine: nodes count from 1, 0 is the clients'.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct HostId(pub u8);

/// What one direction of a connection holds until its writer has to wait.
const WINDOW: usize = 512 << 10;

type Arriving = mpsc::UnboundedSender<(Socket, SocketAddr)>;

/// See the module. Clones are handles to the same network.
#[derive(Clone, Debug)]
pub struct Net(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    now: u64,
    chance: Chance,
    trace: Trace,
    next: u64,
    connections: BTreeMap<u64, Connection>,
    listeners: BTreeMap<String, (HostId, Arriving)>,
    dialled: Vec<Dialled>,
    down: BTreeSet<HostId>,
    cut: BTreeSet<(HostId, HostId)>,
    slow: BTreeMap<(HostId, HostId), u64>,
}

#[derive(Debug)]
struct Dialled {
    from: HostId,
    to: HostId,
    address: String,
    at: u64,
    answer: oneshot::Sender<io::Result<Socket>>,
}

#[derive(Debug)]
struct Connection {
    hosts: [HostId; 2],
    /// Whether an end is there.
    open: [bool; 2],
    /// What each end has sent.
    sent: [Pipe; 2],
}

#[derive(Debug, Default)]
struct Pipe {
    under_way: VecDeque<(u64, Packet)>,
    arrived: VecDeque<Bytes>,
    bytes: usize,
    ended: bool,
    broken: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Debug)]
enum Packet {
    Data(Bytes),
    End,
    Reset,
}

impl Net {
    /// A network without faults.
    #[must_use]
    pub fn new(chance: Chance) -> Net {
        Net(Arc::new(Mutex::new(State {
            now: 0,
            chance,
            trace: Trace::default(),
            next: 0,
            connections: BTreeMap::new(),
            listeners: BTreeMap::new(),
            dialled: Vec::new(),
            down: BTreeSet::new(),
            cut: BTreeSet::new(),
            slow: BTreeMap::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is `now`: what is due arrives.
    pub fn deliver(&self, now: u64) {
        let mut woken = Vec::new();
        let mut state = self.lock();
        state.now = now;
        let mut made = Vec::new();
        for dialled in state.dials_due() {
            let connected = state.connect(&dialled);
            made.push((dialled, connected));
        }
        let ids: Vec<u64> = state.connections.keys().copied().collect();
        for id in ids {
            for side in 0..2 {
                state.arrive(id, side, &mut woken);
            }
        }
        state.connections.retain(|_, connection| connection.open != [false, false]);
        drop(state);
        // Sockets and those who are woken may come back here.
        for (dialled, connected) in made {
            drop(dialled.answer.send(self.hand_over(dialled.from, connected)));
        }
        woken.into_iter().for_each(Waker::wake);
    }

    /// Gives one end to who listens; the other one is the dialler's.
    fn hand_over(&self, from: HostId, connected: Option<(u64, Arriving)>) -> io::Result<Socket> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let (id, accepts) = connected.ok_or_else(refused)?;
        let end = |side| Socket { net: self.clone(), id, side, finished: false };
        let (mine, theirs) = (end(0), end(1));
        let address = SocketAddr::from((Ipv4Addr::new(10, 0, 0, from.0), 40_000));
        accepts.send((theirs, address)).map_err(|_| refused())?;
        Ok(mine)
    }

    /// What arrived so far, as one number.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.lock().trace.value()
    }

    /// What dials from `host` are made with.
    #[must_use]
    pub fn dialer(&self, host: HostId) -> Dialer {
        Dialer { net: self.clone(), host }
    }

    /// What comes in at `address` of `host` from now on.
    fn listen(&self, host: HostId, address: &str) -> mpsc::UnboundedReceiver<(Socket, SocketAddr)> {
        let (sender, links) = mpsc::unbounded_channel();
        self.lock().listeners.insert(address.to_owned(), (host, sender));
        links
    }

    /// The same, for nodes.
    #[must_use]
    pub fn listen_for_nodes(&self, host: HostId, address: &str) -> Incoming {
        let links = self.listen(host, address);
        let next = |mut links: mpsc::UnboundedReceiver<(Socket, SocketAddr)>| async move {
            let (socket, _) = links.recv().await?;
            Some((Ok(Box::new(socket) as Box<dyn Link>), links))
        };
        futures_util::stream::unfold(links, next).boxed()
    }

    /// The same, for Kafka clients.
    #[must_use]
    pub fn listen_for_clients(&self, host: HostId, address: &str) -> gateway::Incoming {
        let links = self.listen(host, address);
        let next = |mut links: mpsc::UnboundedReceiver<(Socket, SocketAddr)>| async move {
            let (socket, from) = links.recv().await?;
            Some(((Box::new(socket) as Box<dyn gateway::Link>, from), links))
        };
        futures_util::stream::unfold(links, next).boxed()
    }

    /// The machine loses its power: nothing leaves it any more, and who listened there is gone.
    pub fn power_off(&self, host: HostId) {
        let mut state = self.lock();
        state.down.insert(host);
        state.listeners.retain(|_, (at, _)| *at != host);
        for connection in state.connections.values_mut() {
            let ends = connection.hosts.iter().zip(&mut connection.open);
            ends.filter(|(at, _)| **at == host).for_each(|(_, open)| *open = false);
        }
    }

    /// The machine is there, without any process: those who listened are gone.
    pub fn power_on(&self, host: HostId) {
        let mut state = self.lock();
        state.down.remove(&host);
        state.listeners.retain(|_, (at, _)| *at != host);
    }

    /// Nothing gets from one to the other from now on, or something does again.
    pub fn set_cut(&self, from: HostId, to: HostId, cut: bool) {
        let mut state = self.lock();
        if cut {
            state.cut.insert((from, to));
        } else {
            state.cut.remove(&(from, to));
        }
    }

    /// What goes from one to the other takes so much longer from now on.
    pub fn set_slow(&self, from: HostId, to: HostId, ms: u64) {
        self.lock().slow.insert((from, to), ms);
    }

    /// Breaks some of the connections between two machines; says how many.
    pub fn break_some(&self, a: HostId, b: HostId) -> usize {
        let mut guard = self.lock();
        let state = &mut *guard;
        let now = state.now;
        let mut broken = 0;
        for connection in state.connections.values_mut() {
            let between = connection.hosts == [a, b] || connection.hosts == [b, a];
            if between && state.chance.one_in(2) {
                broken += 1;
                for pipe in &mut connection.sent {
                    pipe.under_way.clear();
                    pipe.under_way.push_back((now + 1, Packet::Reset));
                }
            }
        }
        broken
    }
}

impl State {
    fn passes(&self, from: HostId, to: HostId) -> bool {
        !self.down.contains(&to) && !self.cut.contains(&(from, to))
    }

    fn delay(&mut self, from: HostId, to: HostId) -> u64 {
        let slow = self.slow.get(&(from, to)).copied().unwrap_or(0);
        // Most of the time less than a millisecond; sometimes the other connections overtake.
        let jitter = if self.chance.one_in(16) { self.chance.between(1, 6) } else { 0 };
        1 + jitter + slow
    }

    /// The dials that get through now.
    fn dials_due(&mut self) -> Vec<Dialled> {
        let dialled = std::mem::take(&mut self.dialled).into_iter().filter(|dialled| !dialled.answer.is_closed());
        let gets_through = |dialled: &Dialled| {
            let passes = self.passes(dialled.from, dialled.to) && self.passes(dialled.to, dialled.from);
            dialled.at <= self.now && passes
        };
        let (due, later) = dialled.partition(gets_through);
        self.dialled = later;
        due
    }

    /// Makes a connection for a dial, where somebody listens.
    fn connect(&mut self, dialled: &Dialled) -> Option<(u64, Arriving)> {
        self.trace.note(self.now, &[dialled.address.as_bytes()]);
        let (_, accepts) = self.listeners.get(&dialled.address)?;
        let accepts = accepts.clone();
        self.next += 1;
        let hosts = [dialled.from, dialled.to];
        self.connections.insert(self.next, Connection { hosts, open: [true, true], sent: Default::default() });
        Some((self.next, accepts))
    }

    /// What is due of what `side` of a connection sent.
    fn arrive(&mut self, id: u64, side: usize, woken: &mut Vec<Waker>) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (from, to) = (connection.hosts[side], connection.hosts[1 - side]);
        if !self.passes(from, to) {
            return;
        }
        let now = self.now;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let taken = connection.open[1 - side];
        let [first, second] = &mut connection.sent;
        let (pipe, other) = if side == 0 { (first, second) } else { (second, first) };
        let mut answered = false;
        while pipe.under_way.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, packet)) = pipe.under_way.pop_front() else { break };
            let mark = id.to_be_bytes();
            match packet {
                Packet::Data(bytes) => {
                    self.trace.note(now, &[&mark, &bytes]);
                    answered |= !taken;
                    pipe.arrived.push_back(bytes);
                }
                Packet::End => pipe.ended = true,
                Packet::Reset => pipe.broken = true,
            }
            woken.extend(pipe.reader.take());
        }
        if pipe.broken {
            woken.extend(pipe.writer.take());
            // Who reads a reset cannot write any more.
            other.broken = true;
            woken.extend(other.writer.take());
            woken.extend(other.reader.take());
        }
        if answered {
            // Nobody is there who knows this connection.
            pipe.arrived.clear();
            other.under_way.push_back((now + 1, Packet::Reset));
        }
    }

    fn send(&mut self, id: u64, side: usize, packet: Packet) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (from, to) = (connection.hosts[side], connection.hosts[1 - side]);
        let at = self.now + self.delay(from, to);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let pipe = &mut connection.sent[side];
        let last = pipe.under_way.back().map_or(0, |(at, _)| *at);
        if let Packet::Data(bytes) = &packet {
            pipe.bytes += bytes.len();
        }
        pipe.under_way.push_back((at.max(last), packet));
    }
}

/// Dials from one host.
#[derive(Clone, Debug)]
pub struct Dialer {
    net: Net,
    host: HostId,
}

impl Dialer {
    /// A new connection; waits for as long as nothing gets through.
    ///
    /// # Errors
    /// Where nobody listens.
    pub fn socket(&self, address: &str) -> impl Future<Output = io::Result<Socket>> + Send + use<> {
        let (answer, answered) = oneshot::channel();
        let machine = address.split(':').next().and_then(|name| name.strip_prefix('n')).and_then(|id| id.parse().ok());
        if let Some(id) = machine {
            let (from, to) = (self.host, HostId(id));
            let mut state = self.net.lock();
            let at = state.now + state.delay(from, to) + state.delay(to, from);
            state.dialled.push(Dialled { from, to, address: address.to_owned(), at, answer });
        }
        async move { answered.await.unwrap_or_else(|_| Err(io::ErrorKind::NotFound.into())) }
    }
}

impl Dial for Dialer {
    fn dial(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Link>>> {
        let socket = self.socket(address);
        async move { Ok(Box::new(socket.await?) as Box<dyn Link>) }.boxed()
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct Socket {
    net: Net,
    id: u64,
    side: usize,
    finished: bool,
}

impl Socket {
    fn finish(&mut self) {
        if !self.finished {
            self.finished = true;
            self.net.lock().send(self.id, self.side, Packet::End);
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.net.lock();
        let Some(connection) = state.connections.get_mut(&self.id) else { return Poll::Ready(Ok(())) };
        let side = self.side;
        let pipe = &mut connection.sent[1 - side];
        if let Some(first) = pipe.arrived.front_mut() {
            let length = first.len().min(into.remaining());
            into.put_slice(&first[..length]);
            first.advance(length);
            if first.is_empty() {
                pipe.arrived.pop_front();
            }
            pipe.bytes -= length;
            let writer = pipe.writer.take();
            drop(state);
            writer.into_iter().for_each(Waker::wake);
            return Poll::Ready(Ok(()));
        }
        if pipe.broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if pipe.ended {
            return Poll::Ready(Ok(()));
        }
        pipe.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.net.lock();
        let reset = || Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        let Some(connection) = state.connections.get_mut(&self.id) else { return reset() };
        let pipe = &mut connection.sent[self.side];
        if pipe.broken || self.finished {
            return reset();
        }
        let length = from.len().min(WINDOW - pipe.bytes.min(WINDOW));
        if length == 0 && !from.is_empty() {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.send(self.id, self.side, Packet::Data(Bytes::copy_from_slice(&from[..length])));
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let powered = {
            let mut state = self.net.lock();
            let connection = state.connections.get_mut(&self.id);
            connection.is_some_and(|connection| std::mem::replace(&mut connection.open[self.side], false))
        };
        if powered {
            self.finish();
        }
    }
}
