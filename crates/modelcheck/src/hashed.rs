//! Which states are the same: those that will do the same for ever. What only names a thing (numbers of opens and
//! proposals) counts by its rank among those that are still known; what is a time, by where it is from now.

use std::hash::{Hash, Hasher};

use model::BrokerId;
use replication::normal::{Names, hash_proposal};
use replication::{Ack, AlterAnswer, Answer, Open};

use crate::control::{id, node_of};
use crate::scenario::NODES;
use crate::world::{Alter, Data, Down, Node, Stage, Stream, Up, World};

/// The open numbers of each broker, ascending.
#[derive(Default)]
struct Opens([Vec<u64>; NODES]);

impl Opens {
    fn of(world: &World) -> Opens {
        let mut opens = Opens::default();
        for node in &world.nodes {
            if let Some(replica) = &node.replica {
                replica.open_numbers(&mut |follower, number| opens.note(follower, number));
            }
        }
        for stream in &world.streams {
            let follower = id(stream.follower);
            stream.opened.into_iter().for_each(|number| opens.note(follower, number));
            for message in &stream.up {
                let (Up::Open(Open { open_no, .. }) | Up::Ack(Ack { open_no, .. }) | Up::Close(open_no)) = message;
                opens.note(follower, *open_no);
            }
            for message in &stream.down {
                opens.note(follower, number_of(message));
            }
        }
        opens.0.iter_mut().for_each(|numbers| {
            numbers.sort_unstable();
            numbers.dedup();
        });
        opens
    }

    fn note(&mut self, follower: BrokerId, number: u64) {
        self.0[node_of(follower)].push(number);
    }

    fn rank(&self, follower: BrokerId, number: u64) -> u64 {
        let rank = self.0[node_of(follower)].iter().position(|known| *known == number);
        rank.and_then(|rank| u64::try_from(rank).ok()).unwrap_or(u64::MAX)
    }
}

pub(crate) fn number_of(message: &Down) -> u64 {
    match message {
        Down::Answer(number, _) => *number,
        Down::Data(data) => data.open_no,
        Down::Progress(progress) => progress.session.open_no,
    }
}

/// The numbers of one broker's proposals that are still known, ascending.
fn proposals_of(world: &World, node: usize) -> Vec<u64> {
    let pending = world.nodes[node].replica.as_ref().and_then(|replica| replica.pending_proposal());
    let known = world.alters.iter().filter(|alter| alter.from == node).map(|alter| alter.proposal.id.number);
    let mut known: Vec<u64> = known.chain(pending).collect();
    known.sort_unstable();
    known.dedup();
    known
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let World { control, nodes, streams, alters, committed, left, over, touched: _, violation } = self;
        (control.digest(), committed, left, over, violation.is_some()).hash(state);
        let opens = Opens::of(self);
        let open = |follower: BrokerId, number: u64| opens.rank(follower, number);
        for (number, node) in nodes.iter().enumerate() {
            let proposals = proposals_of(self, number);
            let proposal = |number: u64| {
                let rank = proposals.iter().position(|known| *known == number);
                rank.and_then(|rank| u64::try_from(rank).ok()).unwrap_or(u64::MAX)
            };
            let names = Names { now: node.now, open: &open, proposal: &proposal };
            hash_node(node, &names, state);
            for alter in alters.iter().filter(|alter| alter.from == number) {
                hash_alter(alter, &names, state);
            }
        }
        streams.len().hash(state);
        streams.iter().for_each(|stream| hash_stream(stream, &opens, state));
    }
}

fn hash_node<H: Hasher>(node: &Node, names: &Names<'_>, state: &mut H) {
    // What was applied, and what is served, the replica shows; proposals are known by their rank.
    let Node {
        replica, log, start, high_watermark, epoch, starts, now: _, feed, lossy, proof, writes, decayed, ..
    } = node;
    (log, epoch, starts, feed, lossy, proof, writes, decayed).hash(state);
    replica.is_some().hash(state);
    match replica {
        Some(replica) => replica.hash_normal(names, state),
        None => (start, high_watermark).hash(state),
    }
}

fn hash_alter<H: Hasher>(alter: &Alter, names: &Names<'_>, state: &mut H) {
    let Alter { from, epoch, proposal, stage } = alter;
    (from, epoch).hash(state);
    hash_proposal(proposal, names, state);
    std::mem::discriminant(stage).hash(state);
    if let Stage::Answered(answer) = stage {
        let answer: &AlterAnswer = answer;
        answer.hash(state);
    }
}

fn hash_stream<H: Hasher>(stream: &Stream, opens: &Opens, state: &mut H) {
    let Stream { follower, leader, number, epoch, attached, opened, up, down } = stream;
    let rank = |number: u64| opens.rank(id(*follower), number);
    (follower, leader, number, epoch, attached, opened.map(rank)).hash(state);
    up.len().hash(state);
    for message in up {
        std::mem::discriminant(message).hash(state);
        match message {
            Up::Open(open) => {
                let Open { open_no, leader_epoch, log_end, last_epoch, log_start, durable } = *open;
                (rank(open_no), leader_epoch, log_end, last_epoch, log_start, durable).hash(state);
            }
            Up::Ack(Ack { open_no, log_end, log_start, durable }) => {
                (rank(*open_no), log_end, log_start, durable).hash(state);
            }
            Up::Close(open_no) => rank(*open_no).hash(state),
        }
    }
    down.len().hash(state);
    for message in down {
        std::mem::discriminant(message).hash(state);
        rank(number_of(message)).hash(state);
        match message {
            Down::Answer(_, answer) => {
                let answer: &Answer = answer;
                answer.hash(state);
            }
            Down::Data(data) => {
                let Data { open_no: _, prev_offset, prev_epoch, high_watermark, log_start, leader_log_end, records } =
                    data;
                (prev_offset, prev_epoch, high_watermark, log_start, leader_log_end, records).hash(state);
            }
            Down::Progress(progress) => {
                (progress.high_watermark, progress.log_start, progress.sync_before_ack).hash(state);
            }
        }
    }
}
