//! The lines between the nodes of a local cluster, and cuts in them. Each node is told to the others at addresses of this program,
//! which passes on what comes there; what is sent over a cut is kept until the cut is healed, as a network that drops packets
//! keeps it at the sender. It is for `ottla chaos run`: neither root nor a network of its own is needed.
//!
//! Who sends is known by the process that owns the other end of a connection, which Linux tells under `/proc`. Clients go to the
//! nodes themselves.
//!
//! Invariant: what is passed on waits neither for the clients of the run, which keep a runtime busy, nor for a look at `/proc`: a
//! network that stops for 300 ms ends the connections of the nodes, and the new ones are looked up in their turn.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

const BUFFER: usize = 64 << 10;

/// From which node to which.
pub(super) type Way = (u16, u16);

/// See the module.
pub(super) struct Lines {
    cuts: watch::Sender<BTreeSet<Way>>,
    /// The nodes' processes, by process id.
    nodes: Mutex<BTreeMap<u32, u16>>,
}

impl Lines {
    /// Listens at the first port of each pair for a node, and passes on to the second one, from now on and on threads of its own.
    pub(super) fn open(pairs: Vec<(u16, u16, u16)>) -> Result<Arc<Lines>> {
        let lines = Arc::new(Lines { cuts: watch::Sender::new(BTreeSet::new()), nodes: Mutex::default() });
        let runtime = Builder::new_current_thread().enable_all().build()?;
        for (node, listen, target) in pairs {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, listen));
            let listener = listener.with_context(|| format!("cannot listen at port {listen}"))?;
            let (lines, passing) = (Arc::clone(&lines), runtime.handle().clone());
            thread("door", move || serve(&lines, &listener, (node, target), &passing))?;
        }
        thread("lines", move || runtime.block_on(std::future::pending::<()>()))?;
        Ok(lines)
    }

    /// Says which processes the nodes are.
    pub(super) fn know(&self, processes: BTreeMap<u32, u16>) {
        *self.nodes.lock().expect("nobody panics while holding it") = processes;
    }

    /// Cuts these ways, and no others.
    pub(super) fn cut(&self, ways: BTreeSet<Way>) {
        self.cuts.send_replace(ways);
    }

    /// Waits until nothing that is sent this way is held.
    async fn is_open(&self, way: Way) {
        let mut cuts = self.cuts.subscribe();
        // The sender is `self`: it outlives the wait.
        let _ = cuts.wait_for(|cuts| !cuts.contains(&way)).await;
    }

    /// The node at the other end of a connection. One that is not known yet has just been started, and is nowhere cut off.
    fn owner(&self, connection: &std::net::TcpStream) -> Option<u16> {
        let nodes = self.nodes.lock().expect("nobody panics while holding it").clone();
        let (theirs, ours) = (connection.peer_addr().ok()?, connection.local_addr().ok()?);
        let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
        let socket = format!("socket:[{}]", inode_of(&table, theirs, ours)?);
        nodes.into_iter().find(|(process, _)| owns(*process, &socket)).map(|(_, node)| node)
    }
}

/// The inode of the socket that is connected from one address to another, in the text of `/proc/net/tcp`. Of connections that are
/// over, from the same port to elsewhere, there may be lines, too.
fn inode_of(table: &str, from: SocketAddr, to: SocketAddr) -> Option<u64> {
    let (from, to) = (in_table(from)?, in_table(to)?);
    // Thousands that are over may wait in the table, and 01 is said of one that stands.
    let (_, rest) = table.split_once(&format!(" {from} {to} 01 "))?;
    rest.split_whitespace().nth(5)?.parse().ok()
}

/// An address as that table has it.
fn in_table(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else { return None };
    Some(format!("{:08X}:{:04X}", u32::from_le_bytes(address.ip().octets()), address.port()))
}

fn owns(process: u32, socket: &str) -> bool {
    let Ok(open) = std::fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    open.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == socket))
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work)?;
    Ok(())
}

fn serve(lines: &Arc<Lines>, listener: &TcpListener, (node, target): (u16, u16), passing: &Handle) {
    while let Ok((connection, _)) = listener.accept() {
        let from = lines.owner(&connection).unwrap_or(node);
        if connection.set_nonblocking(true).is_ok() {
            passing.spawn(pass_on(Arc::clone(lines), connection, (from, node), target));
        }
    }
}

/// Both directions of one connection, until either ends.
async fn pass_on(lines: Arc<Lines>, near: std::net::TcpStream, (from, to): Way, target: u16) {
    let Ok(near) = TcpStream::from_std(near) else { return };
    lines.is_open((from, to)).await;
    let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else { return };
    if near.set_nodelay(true).and_then(|()| far.set_nodelay(true)).is_err() {
        return;
    }
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    // What one direction held when the other one ended would have been lost with the connection, too.
    tokio::select! {
        () = pass(&lines, near_in, far_out, (from, to)) => {}
        () = pass(&lines, far_in, near_out, (to, from)) => {}
    }
}

async fn pass(lines: &Lines, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: Way) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        // The end of a connection does not get through a cut either.
        lines.is_open(way).await;
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_found_in_the_table_of_the_kernel() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:2384 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0 100 0 0 10 0\n   \
                     1: 0100007F:C350 0100007F:1F90 06 00000000:00000000 03:00000AD4 00000000     0        0 0 3 0\n   \
                     2: 0100007F:C350 0100007F:2384 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0 20 4 30 10 -1\n";
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        assert_eq!(inode_of(table, at(50_000), at(0x2384)), Some(222), "the connection that stands, not one that was");
        assert_eq!(inode_of(table, at(50_001), at(0x2384)), None);
    }

    #[tokio::test]
    async fn what_is_sent_over_a_cut_arrives_when_it_is_healed() {
        let far = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let target = far.local_addr().expect("bound").port();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let listen = free.local_addr().expect("bound").port();
        drop(free);
        let lines = Lines::open(vec![(2, listen, target)]).expect("opened");
        lines.know(BTreeMap::from([(std::process::id(), 1)]));
        let mut near = TcpStream::connect((Ipv4Addr::LOCALHOST, listen)).await.expect("connected");
        let (mut far, _) = far.accept().await.expect("passed on");
        let mut got = [0; 3];
        near.write_all(b"one").await.expect("sent");
        far.read_exact(&mut got).await.expect("arrived");
        // One way only: the answer gets through, the question does not.
        lines.cut(BTreeSet::from([(1, 2)]));
        near.write_all(b"two").await.expect("sent");
        far.write_all(b"yes").await.expect("sent");
        near.read_exact(&mut got).await.expect("arrived");
        assert_eq!(&got, b"yes");
        let held = tokio::time::timeout(std::time::Duration::from_millis(100), far.read_exact(&mut got)).await;
        assert!(held.is_err(), "it came through the cut");
        lines.cut(BTreeSet::new());
        far.read_exact(&mut got).await.expect("arrived");
        assert_eq!(&got, b"two");
    }
}
