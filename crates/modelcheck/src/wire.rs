//! Streams between brokers, and what the cores ask their owner to do.
//!
//! What a leader has to send it sends at once, and what a follower has to acknowledge it acknowledges at once: how long it
//! takes, and whether it arrives, is the stream's. A stream keeps its order, and loses only its end.

use std::collections::VecDeque;
use std::sync::Arc;

use model::Offset;
use replication::{Action, Answer, BatchInfo, DataHeader, DataVerdict, Open, OpenVerdict, Progress, SendPlan, Session};

use crate::control::{id, node_of};
use crate::scenario::NODES;
use crate::world::{Alter, Data, Down, HOLE, Stage, Stream, Up, Violation, World, at, offset};

impl World {
    fn stream_at(&self, follower: usize, leader: usize, number: u64) -> Option<usize> {
        let wanted = |s: &Arc<Stream>| (s.follower, s.leader, s.number) == (follower, leader, number);
        self.streams.iter().position(wanted)
    }

    pub(crate) fn stream(&mut self, follower: usize, leader: usize, number: u64) -> Option<&mut Stream> {
        let at = self.stream_at(follower, leader, number)?;
        Some(Arc::make_mut(&mut self.streams[at]))
    }

    /// The stream that the follower holds to a leader.
    fn attached(&self, follower: usize, leader: usize) -> Option<u64> {
        let held = |s: &&Arc<Stream>| s.follower == follower && s.leader == leader && s.attached;
        self.streams.iter().find(held).map(|stream| stream.number)
    }

    fn dial(&mut self, follower: usize, leader: usize) -> u64 {
        let number = (0..).find(|number| self.stream_at(follower, leader, *number).is_none()).expect("few streams");
        let stream = Stream {
            follower,
            leader,
            number,
            epoch: self.nodes[follower].epoch,
            attached: true,
            opened: None,
            up: VecDeque::new(),
            down: VecDeque::new(),
        };
        let place = self.streams.partition_point(|s| (s.follower, s.leader, s.number) < (follower, leader, number));
        self.streams.insert(place, Arc::new(stream));
        number
    }

    /// Carries out what the cores ask for, until they ask for nothing.
    pub(crate) fn settle(&mut self) {
        while self.touched != 0 {
            let touched = std::mem::take(&mut self.touched);
            for node in (0..NODES).filter(|node| touched & (1 << node) != 0) {
                while let Some(action) = self.poll(node) {
                    self.act(node, action);
                }
                self.pump(node);
                self.follow(node);
            }
        }
    }

    /// Without touching the broker where there is nothing.
    fn poll(&mut self, node: usize) -> Option<Action> {
        let idle = self.nodes[node].replica.as_ref().is_none_or(|replica| !replica.has_actions());
        if idle { None } else { Arc::make_mut(&mut self.nodes[node]).replica.as_mut()?.poll_action() }
    }

    fn act(&mut self, node: usize, action: Action) {
        match action {
            Action::TruncateTo(end) => self.cut(node, at(end)),
            Action::ResetTo(start) => {
                self.cut(node, 0);
                self.node(node).log = vec![HOLE; at(start)];
            }
            Action::ProposeIsr(proposal) => {
                self.check_proposal(node, &proposal);
                let alter = Alter { from: node, epoch: self.nodes[node].epoch, proposal, stage: Stage::Asked };
                self.alters.push(Arc::new(alter));
            }
            Action::CloseSession { open_no } => {
                let carries = |s: &&(usize, usize, u64)| s.0 == node;
                for (follower, leader, number) in self.stream_ids().iter().filter(carries).copied() {
                    if let Some(stream) = self.stream(follower, leader, number)
                        && stream.attached
                        && stream.opened == Some(open_no)
                    {
                        stream.up.push_back(Up::Close(open_no));
                    }
                }
            }
            Action::SessionEnded { follower, session, error } => {
                let refused = Down::Answer(session.open_no, Answer::Refused(error));
                self.send_down(node, node_of(follower), session, refused);
            }
            Action::SessionMoved { follower, session, to } => {
                let moved = Down::Answer(session.open_no, Answer::Moved(to));
                self.send_down(node, node_of(follower), session, moved);
            }
            // It opens on another stream, which may overtake this one.
            Action::MoveSession { leader, .. } => {
                if let Some(number) = self.attached(node, node_of(leader)) {
                    self.leave_stream(node, node_of(leader), number);
                }
            }
            Action::LeaderStarted { .. } => self.node(node).serves = true,
            Action::LeaderStopped => self.node(node).serves = false,
            _ => {}
        }
    }

    fn cut(&mut self, node: usize, end: usize) {
        let log = &self.nodes[node].log;
        let had = log.iter().zip(&self.committed).take_while(|(mine, committed)| mine == committed).count();
        let start = self.nodes[node].replica.as_ref().map_or(0, |replica| at(replica.log().start));
        let partition = self.control.partition();
        let counts = partition.isr.contains(&id(node)) || partition.elr.contains(&id(node));
        if end < had && start <= end && counts && !self.nodes[node].lossy {
            let text = format!("broker {} cuts {log:?} to {end}, committed are {:?}", node + 1, self.committed);
            self.violate(Violation::CommittedCut(text));
        }
        self.node(node).log.truncate(end);
    }

    fn send_down(&mut self, leader: usize, follower: usize, session: Session, message: Down) {
        if let Some(stream) = self.stream(follower, leader, session.stream_no)
            && stream.attached
            && stream.epoch == session.broker_epoch
        {
            stream.down.push_back(message);
        }
    }

    /// The leader sends what it has.
    fn pump(&mut self, node: usize) {
        for follower in 0..NODES {
            let plan = |world: &World| world.nodes[node].leads()?.next_send(id(follower));
            while let Some(plan) = plan(self) {
                if self.check_plan(node, &plan) {
                    return;
                }
                // A record is a byte.
                let room = usize::try_from(plan.max_bytes).unwrap_or(usize::MAX).max(usize::from(plan.at_least_one));
                let records: Vec<_> = self.nodes[node].log[at(plan.prev_offset)..].iter().copied().take(room).collect();
                let end = offset(at(plan.prev_offset) + records.len());
                let epoch = records.last().expect("there is something to send").epoch;
                let bytes = u64::try_from(records.len()).expect("a small number");
                let replica = self.replica(node).expect("it leads");
                replica.handle_sent(id(follower), &plan, end, epoch, bytes);
                let data = Data {
                    open_no: plan.session.open_no,
                    prev_offset: plan.prev_offset,
                    prev_epoch: plan.prev_epoch,
                    high_watermark: plan.high_watermark,
                    log_start: plan.log_start,
                    leader_log_end: plan.leader_log_end,
                    records,
                };
                self.send_down(node, follower, plan.session, Down::Data(data));
            }
        }
    }

    /// The follower dials, opens and acknowledges.
    fn follow(&mut self, node: usize) {
        let Some(leader) = self.nodes[node].follows() else { return };
        if leader >= NODES || !self.nodes[leader].is_up() {
            return;
        }
        let number = self.attached(node, leader).unwrap_or_else(|| self.dial(node, leader));
        // It was touched already.
        let Some(replica) = &mut Arc::make_mut(&mut self.nodes[node]).replica else { return };
        let (ack, open) = (replica.ack(), replica.open_request());
        // It may want a sync, which comes when it comes.
        while replica.poll_action().is_some() {}
        if ack.is_none() && open.is_none() {
            return;
        }
        self.touched |= 1 << node;
        if let Some(stream) = self.stream(node, leader, number) {
            stream.up.extend(ack.map(Up::Ack));
            stream.opened = open.map(|open| open.open_no).or(stream.opened);
            stream.up.extend(open.map(Up::Open));
        }
    }

    /// False where the leader does not take it now.
    pub(crate) fn deliver_up(&mut self, follower: usize, leader: usize, number: u64) -> bool {
        let Some(stream) = self.stream(follower, leader, number) else { return false };
        let Some(message) = stream.up.pop_front() else { return false };
        let epoch = stream.epoch;
        let session = |open_no| Session { broker_epoch: epoch, open_no, stream_no: number };
        let now = self.nodes[leader].now;
        let known = self.known(leader, follower);
        let Some(replica) = self.replica(leader) else { return false };
        match message {
            Up::Open(open) => match replica.handle_open(id(follower), session(open.open_no), open, now) {
                OpenVerdict::Answer(answer) => {
                    self.check_answer(follower, leader, &open, &answer);
                    self.send_down(leader, follower, session(open.open_no), Down::Answer(open.open_no, answer));
                }
                OpenVerdict::Park => return false,
                OpenVerdict::Ignore => {}
            },
            Up::Ack(ack) => {
                if let Err(close) = replica.handle_ack(id(follower), session(ack.open_no), ack, now) {
                    self.violate(Violation::BadPeer(close.to_string()));
                }
            }
            Up::Close(open_no) => {
                replica.handle_session_closed(id(follower), session(open_no), now);
                self.check_known(leader, follower, known);
            }
        }
        true
    }

    pub(crate) fn deliver_down(&mut self, follower: usize, leader: usize, number: u64) -> bool {
        let Some(stream) = self.stream(follower, leader, number) else { return false };
        let Some(message) = stream.down.pop_front() else { return false };
        let now = self.nodes[follower].now;
        let Some(replica) = self.replica(follower) else { return false };
        match message {
            Down::Answer(open_no, answer) => {
                let (end, cuts) = (replica.log().end, matches!(answer, Answer::Diverging { .. }));
                let awaited = replica.open_number() == Some(open_no);
                replica.handle_answer(open_no, answer, now);
                if cuts && awaited && replica.log().end >= end {
                    let text = format!("broker {} is told that its log parts, and cuts nothing of it", follower + 1);
                    self.violate(Violation::Stuck(text));
                }
            }
            Down::Progress(progress) => {
                let Progress { session, high_watermark, log_start, sync_before_ack } = progress;
                replica.handle_progress(session.open_no, high_watermark, log_start, sync_before_ack);
            }
            Down::Data(data) => self.deliver_data(follower, &data),
        }
        true
    }

    fn deliver_data(&mut self, follower: usize, data: &Data) {
        let Data { open_no, prev_offset, prev_epoch, high_watermark, log_start, leader_log_end, ref records } = *data;
        let batch = |(place, record): (usize, &crate::world::Record)| {
            let base_offset = offset(at(prev_offset) + place);
            BatchInfo { base_offset, last_offset: base_offset, leader_epoch: record.epoch, size: 1 }
        };
        let batches: Vec<BatchInfo> = records.iter().enumerate().map(batch).collect();
        let batches = batches.as_slice();
        let header = DataHeader { prev_offset, prev_epoch, high_watermark, log_start, leader_log_end, batches };
        let node = self.node(follower);
        let Some(replica) = &mut node.replica else { return };
        if replica.check_data(open_no, &header) == DataVerdict::Append {
            replica.handle_follower_append(&header);
            // Without R58 a frame may leave a gap, or write over what is there.
            node.log.resize(at(prev_offset).max(node.log.len()), HOLE);
            node.log.truncate(at(prev_offset));
            node.log.extend(records);
        }
    }

    fn known(&self, leader: usize, follower: usize) -> Option<Offset> {
        self.nodes[leader].leads()?.follower_log_end(id(follower))
    }

    /// `R61`: what was acknowledged stays.
    fn check_known(&mut self, leader: usize, follower: usize, before: Option<Offset>) {
        let now = self.known(leader, follower);
        if now != before {
            let text = format!("broker {} had acknowledged {before:?}, now {now:?}", follower + 1);
            self.violate(Violation::Forgotten(text));
        }
    }

    /// `R23`, `R57`: only an open of this leader epoch is taken, and one that was not opened leaves no session.
    fn check_answer(&mut self, follower: usize, leader: usize, open: &Open, answer: &Answer) {
        let Some(replica) = self.nodes[leader].leads() else { return };
        let bad = match answer {
            Answer::Opened { .. } => open.leader_epoch != replica.leader_epoch(),
            Answer::Diverging { .. } | Answer::OutOfRange { .. } => replica.current_session(id(follower)).is_some(),
            Answer::Refused(_) | Answer::Moved(_) => false,
        };
        if bad {
            let text = format!("broker {} opens {open:?} in {}: {answer:?}", follower + 1, replica.leader_epoch());
            self.violate(Violation::BadSession(text));
        }
    }

    /// `R26`, `R62`: whether it must not be.
    fn check_plan(&mut self, leader: usize, plan: &SendPlan) -> bool {
        let start = self.nodes[leader].replica.as_ref().map_or(Offset::ZERO, |replica| replica.log().start);
        let bad = plan.prev_offset < start || (plan.max_bytes == 0 && !plan.at_least_one);
        if bad {
            self.violate(Violation::BadFlow(format!(
                "broker {} sends {plan:?}, its log starts at {start}",
                leader + 1
            )));
        }
        bad
    }

    /// The follower's end is gone; what it sent may still arrive.
    pub(crate) fn let_go(&mut self, follower: usize, leader: usize, number: u64) {
        self.leave_stream(follower, leader, number);
        if self.nodes[follower].follows() == Some(leader)
            && let Some(replica) = self.replica(follower)
        {
            replica.handle_session_lost();
        }
    }

    /// The follower hears no more of it.
    fn leave_stream(&mut self, follower: usize, leader: usize, number: u64) {
        let before = self.streams.iter().find(|s| s.follower == follower && s.leader == leader && !s.attached);
        if let Some(number) = before.map(|stream| stream.number) {
            self.end_stream(follower, leader, number);
        }
        if let Some(stream) = self.stream(follower, leader, number) {
            stream.attached = false;
            stream.down.clear();
        }
    }

    /// The leader's end is gone.
    pub(crate) fn end_stream(&mut self, follower: usize, leader: usize, number: u64) {
        let Some(at) = self.stream_at(follower, leader, number) else { return };
        let stream = self.streams.remove(at);
        let now = self.nodes[leader].now;
        let known = self.known(leader, follower);
        if let Some(replica) = self.replica(leader) {
            replica.handle_stream_closed(id(follower), stream.epoch, number, now);
        }
        self.check_known(leader, follower, known);
        if stream.attached
            && self.nodes[follower].follows() == Some(leader)
            && let Some(replica) = self.replica(follower)
        {
            replica.handle_session_lost();
        }
    }
}
