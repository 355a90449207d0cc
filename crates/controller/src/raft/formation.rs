//! How a quorum forms, once (`R74`).
//!
//! Every blank voter asks the others who they are and whether they are empty. When all of `controller.quorum.voters` have
//! answered that they are, the lowest `node.id` alone initialises with exactly the directories answered. A missing voter is
//! waited for, loudly; one that is not empty forbids it: then this node is a newcomer whom the leader lets in ([`members`]).
//!
//! [`members`]: crate::raft::members

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use model::{BrokerId, DirectoryId};
use rpc::raft::{QuorumNode, RaftAnswer, RaftCall};
use tokio::time::Instant;

use crate::raft::Quorum;
use crate::raft::types::{Member, NodeId};

/// Between two rounds.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two rounds when all have answered and nothing is to be done but wait.
const PAUSE_LONG: Duration = Duration::from_millis(500);
const LOUD_EVERY: Duration = Duration::from_secs(5);

/// Whom this node has met.
#[derive(Debug, Default)]
pub(crate) struct Meetings {
    /// To whom it answered that it is empty: other directories of that id are refused from then on.
    pins: BTreeMap<BrokerId, DirectoryId>,
    /// Who asked last, and when, by id.
    strangers: BTreeMap<BrokerId, (DirectoryId, Instant)>,
}

impl Meetings {
    /// `from` asked, and was told whether this node is empty.
    pub(crate) fn met(&mut self, from: QuorumNode, empty: bool) {
        if empty {
            self.pins.insert(from.id, from.directory);
        }
        self.strangers.insert(from.id, (from.directory, Instant::now()));
    }

    pub(crate) fn pinned(&self, id: BrokerId) -> Option<DirectoryId> {
        self.pins.get(&id).copied()
    }

    /// The directory with which a node introduced itself lately.
    pub(crate) fn newcomer(&self, id: BrokerId) -> Option<DirectoryId> {
        let lately = Duration::from_secs(5);
        self.strangers.get(&id).filter(|(_, at)| at.elapsed() < lately).map(|(directory, _)| *directory)
    }
}

/// Runs until this node is part of a quorum.
pub(crate) async fn run(quorum: Arc<Quorum>) {
    let mut told = Instant::now();
    while quorum.is_empty() {
        let met = meet_all(&quorum).await;
        let missing: Vec<String> =
            met.iter().filter(|(_, answer)| answer.is_none()).map(|(id, _)| id.to_string()).collect();
        let occupied = met.values().flatten().any(|(_, empty)| !empty);
        if missing.is_empty() && !occupied && is_lowest(&quorum) {
            initialize(&quorum, &met).await;
            return;
        }
        if told.elapsed() >= LOUD_EVERY {
            told = Instant::now();
            let waits = if occupied { "for the leader to let this node in" } else { "for all voters to form a quorum" };
            tracing::warn!(node = %quorum.me, missing = missing.join(","), "this controller waits {waits}");
        }
        tokio::time::sleep(if occupied { PAUSE_LONG } else { PAUSE }).await;
    }
}

type Met = BTreeMap<BrokerId, Option<(QuorumNode, bool)>>;

/// Asks every configured voter but this one.
async fn meet_all(quorum: &Quorum) -> Met {
    let me = quorum.me.id;
    let others = quorum.voters.iter().filter(|(id, _)| id.0 != me && quorum.links.passes(id.0));
    let asked = others.map(|(id, address)| async move {
        let to = QuorumNode { id: *id, directory: DirectoryId::NONE };
        let peer = quorum.links.peer(to, address).ok()?;
        match peer.call(RaftCall::Meet, Duration::from_millis(500)).await {
            Ok(RaftAnswer::Meet { node, empty }) if node.id == *id => Some((*id, (node, empty))),
            _ => None,
        }
    });
    let answers: BTreeMap<_, _> = join_all(asked).await.into_iter().flatten().collect();
    let all = quorum.voters.iter().filter(|(id, _)| id.0 != me);
    all.map(|(id, _)| (*id, answers.get(id).copied())).collect()
}

fn is_lowest(quorum: &Quorum) -> bool {
    quorum.voters.iter().map(|(id, _)| id.0).min() == Some(quorum.me.id)
}

async fn initialize(quorum: &Quorum, met: &Met) {
    let mut members = BTreeMap::new();
    for (id, address) in &quorum.voters {
        let member = Member { address: address.clone(), given: false };
        if id.0 == quorum.me.id {
            members.insert(quorum.me, member);
        } else if let Some((node, _)) = met.get(id).copied().flatten() {
            members.insert(NodeId::new(node), member);
        }
    }
    tracing::info!(members = ?members.keys().map(ToString::to_string).collect::<Vec<_>>(), "the quorum forms");
    if let Err(error) = quorum.raft.initialize(members).await {
        tracing::error!(%error, "the quorum does not form");
    }
}
