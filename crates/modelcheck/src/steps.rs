//! What may happen next, and what comes of it.

use std::sync::Arc;

use metadata::control::HeartbeatAnswer;
use model::{BrokerEpoch, Offset, Rule};
use replication::{AlterAnswer, Lane, PartitionState, Replica, Session};

use crate::control::{Mark, Wish, id};
use crate::scenario::{NODES, Scenario};
use crate::world::{Alter, Down, Node, Record, START, Stage, Step, Stream, Up, Violation, World, at, offset};

impl World {
    /// Every step that is possible now.
    pub(crate) fn possible(&self, scenario: &Scenario, steps: &mut Vec<Step>) {
        if self.violation.is_some() || self.over {
            return;
        }
        for node in 0..NODES {
            self.possible_at(node, scenario, steps);
        }
        for stream in &self.streams {
            let id = (stream.follower, stream.leader, stream.number);
            if !stream.up.is_empty() {
                steps.push(Step::Up(id.0, id.1, id.2));
            }
            if !stream.down.is_empty() {
                steps.push(Step::Down(id.0, id.1, id.2));
            }
            if !stream.attached {
                steps.push(Step::Ended(id.0, id.1, id.2));
            } else if self.left.breaks > 0 && stream.opened.is_some() {
                steps.push(Step::Break(id.0, id.1, id.2));
            }
        }
        for (number, alter) in self.alters.iter().enumerate() {
            match alter.stage {
                Stage::Asked | Stage::Forgotten => steps.push(Step::Decide(number)),
                Stage::Answered(_) => steps.push(Step::Answer(number)),
            }
            if self.left.losses > 0 && alter.stage != Stage::Forgotten {
                steps.push(Step::GiveUp(number));
            }
        }
        if self.left.elections > 0
            && self.control.partition().replicas.first() != Some(&self.control.partition().leader)
        {
            steps.push(Step::Prefer);
        }
        if self.left.moves > 0 {
            steps.extend((0..scenario.targets.len()).map(Step::Reassign));
        }
        if self.left.gaps > 0 {
            let two = |stream: &&Arc<Stream>| {
                matches!(stream.down.iter().take(2).collect::<Vec<_>>()[..], [Down::Data(_), Down::Data(_)])
            };
            steps.extend(self.streams.iter().filter(two).map(|s| Step::Lose(s.follower, s.leader, s.number)));
        }
    }

    fn possible_at(&self, number: usize, scenario: &Scenario, steps: &mut Vec<Step>) {
        let node = &self.nodes[number];
        let left = self.left;
        let befalls = scenario.befalls.contains(&number);
        if befalls && left.fences > 0 && !self.control.is_fenced(number) {
            steps.push(Step::Fence(number));
        }
        let Some(replica) = &node.replica else { return steps.push(Step::Restart(number)) };
        if !node.feed.is_empty() {
            steps.push(Step::Apply(number));
        }
        if node.feed.len() > 1 && left.skips > 0 {
            steps.push(Step::Skip(number));
        }
        let due = if replica.is_leader() { left.timers > 0 } else { self.would_be_heard(number) };
        if replica.poll_timeout().is_some() && due {
            steps.push(Step::Timer(number));
        }
        if scenario.sync_before_ack && replica.log().synced_end < replica.log().end {
            steps.push(Step::Sync(number));
        }
        let registered = self.control.broker_epoch(number) == node.epoch;
        if registered && self.control.is_fenced(number) {
            steps.push(Step::Unfence(number));
        }
        if registered && self.control.wants_report(number) {
            steps.push(Step::Report(number));
        }
        self.possible_at_leader(number, replica, steps);
        if registered && self.control.is_shutting_down(number) {
            steps.push(Step::Shutdown(number));
        }
        if befalls {
            self.possible_blows(number, replica, scenario, steps);
        }
    }

    fn possible_blows(&self, number: usize, replica: &Replica, scenario: &Scenario, steps: &mut Vec<Step>) {
        let (left, end) = (self.left, self.nodes[number].log.len());
        let registered = self.control.broker_epoch(number) == self.nodes[number].epoch;
        if left.crashes > 0 {
            let least = if scenario.sync_before_ack { at(replica.log().synced_end) } else { at(replica.log().start) };
            let least = if self.may_lose(number, scenario) { least } else { end };
            steps.extend((least..=end).map(|kept| Step::Crash(number, kept)));
        }
        if left.decays > 0 && registered && self.may_decay(number) {
            steps.extend((at(replica.log().start)..end).map(|kept| Step::Decay(number, kept)));
        }
        if left.stops > 0 {
            if registered && !self.control.is_fenced(number) && !self.control.is_shutting_down(number) {
                steps.push(Step::Shutdown(number));
            }
            steps.push(Step::Stop(number));
        }
        if left.repeats > 0 && registered {
            steps.push(Step::Repeat(number));
        }
    }

    /// Whether a follower that was refused may be served now: it asks again when it may be, and not before.
    fn would_be_heard(&self, number: usize) -> bool {
        let leader = self.nodes[number].follows().and_then(|leader| self.nodes[leader].leads());
        let follower = self.nodes[number].replica.as_ref();
        leader.is_some_and(|leader| follower.is_some_and(|me| me.leader_epoch() == leader.leader_epoch()))
    }

    fn possible_at_leader(&self, number: usize, replica: &Replica, steps: &mut Vec<Step>) {
        if !replica.is_leader() {
            return;
        }
        if self.left.appends > 0 && replica.check_produce(-1).is_ok() {
            steps.push(Step::Append(number));
        }
        if self.left.deletes > 0 && replica.log().start < replica.log().high_watermark {
            steps.push(Step::Delete(number));
        }
        if self.left.breaks > 0 {
            let has_session = |follower: &usize| replica.current_session(id(*follower)).is_some();
            steps.extend((0..NODES).filter(has_session).map(|follower| Step::Move(number, follower)));
        }
        if self.left.progress > 0 {
            let told = |follower: &usize| replica.clone().next_progress(id(*follower)).is_some();
            steps.extend((0..NODES).filter(told).map(|follower| Step::Progress(number, follower)));
        }
    }

    /// In mode K one broker may lose records (min ISR 2), or those of one zone (`R79`); in mode R any, what was not synced
    /// (section 17).
    fn may_lose(&self, number: usize, scenario: &Scenario) -> bool {
        let together = |other: usize| scenario.zones > 0 && scenario.racks[other] == scenario.racks[number];
        scenario.sync_before_ack
            || (0..NODES).all(|other| other == number || together(other) || !self.nodes[other].lossy)
    }

    /// A disk that lies loses what was synced, too: of one broker at most, and of no leader that is alone in sync (`R29`).
    /// What happens where it is on its way into the ISR, and where it has answered for a recovery (`R35`), is not looked at.
    fn may_decay(&self, number: usize) -> bool {
        let partition = self.control.partition();
        let isr = &partition.isr;
        let joins = |alter: &Arc<Alter>| alter.proposal.isr.iter().any(|(member, _)| *member == id(number));
        let asked =
            self.nodes.iter().filter_map(|node| node.leads()).any(|leader| leader.joining().contains(&id(number)));
        let is_on_its_way = !isr.contains(&id(number)) && (asked || self.alters.iter().any(joins));
        let others_are_whole = (0..NODES).all(|other| other == number || !self.nodes[other].lossy);
        others_are_whole && !is_on_its_way && *isr != [id(number)] && !partition.awaits_recovery()
    }

    /// The state after a step; None where it changes nothing.
    pub(crate) fn step(&self, step: Step, scenario: &Scenario) -> Option<World> {
        let mut next = self.clone();
        if !next.take(step, scenario) {
            return None;
        }
        next.settle();
        next.forget(scenario);
        next.check(self, scenario);
        Some(next)
    }

    fn take(&mut self, step: Step, scenario: &Scenario) -> bool {
        match step {
            Step::Append(node) => self.append(node),
            Step::Sync(node) => self.with(node, |now, replica| replica.handle_synced(replica.sync_point(), now)),
            Step::Apply(node) => self.apply_metadata(node),
            Step::Timer(node) => self.fire(node),
            Step::Up(follower, leader, number) => return self.deliver_up(follower, leader, number),
            Step::Down(follower, leader, number) => return self.deliver_down(follower, leader, number),
            Step::Break(follower, leader, number) => {
                self.left.breaks -= 1;
                self.let_go(follower, leader, number);
            }
            Step::Move(leader, follower) => {
                self.left.breaks -= 1;
                self.move_session(leader, follower);
            }
            Step::Ended(follower, leader, number) => self.end_stream(follower, leader, number),
            Step::Progress(leader, follower) => self.progress(leader, follower),
            Step::Decide(number) => self.decide(number),
            Step::Answer(number) => self.answer(number),
            Step::GiveUp(number) => self.give_up(number),
            Step::Fence(node) => {
                self.left.fences -= 1;
                self.beat(node, Wish::Fence);
            }
            Step::Unfence(node) => {
                self.beat(node, Wish::Run);
            }
            Step::Report(node) => self.report(node, scenario),
            Step::Crash(node, kept) => self.crash(node, kept),
            Step::Restart(node) => self.restart(node, scenario),
            Step::Shutdown(node) => self.shut_down(node, scenario),
            Step::Stop(node) => {
                self.left.stops -= 1;
                self.stop(node);
            }
            Step::Prefer => {
                self.left.elections -= 1;
                self.controller(|control| control.elect_preferred());
            }
            Step::Reassign(target) => {
                self.left.moves -= 1;
                self.controller(|control| control.reassign(scenario.targets[target]));
            }
            Step::Delete(node) => {
                self.left.deletes -= 1;
                // More than may go: no further than the high watermark (R39).
                self.with(node, |_, replica| replica.handle_log_start(replica.log().end));
            }
            Step::Skip(node) => self.skip(node),
            Step::Decay(node, kept) => self.decay(node, kept, scenario),
            Step::Lose(follower, leader, number) => {
                self.left.gaps -= 1;
                if let Some(stream) = self.stream(follower, leader, number) {
                    stream.down.pop_front();
                }
            }
            Step::Repeat(node) => self.repeat(node, scenario),
        }
        true
    }

    fn with(&mut self, node: usize, input: impl FnOnce(model::Time, &mut Replica)) {
        let node = self.node(node);
        if let Some(replica) = &mut node.replica {
            input(node.now, replica);
        }
    }

    fn append(&mut self, number: usize) {
        self.left.appends -= 1;
        let node = self.node(number);
        let Some(replica) = &mut node.replica else { return };
        let writer = u8::try_from(number).expect("a small number");
        node.log.push(Record { epoch: replica.leader_epoch(), writer, number: node.writes });
        node.writes += 1;
        replica.handle_leader_append(offset(node.log.len()), node.now);
    }

    pub(crate) fn apply_metadata(&mut self, number: usize) {
        let node = self.node(number);
        if let Some(state) = node.feed.pop_front()
            && let Some(replica) = &mut node.replica
        {
            let stale = state.partition_epoch < replica.partition_epoch();
            replica.handle_metadata(&state, node.now);
            if !stale {
                node.applied = Some(state);
            }
        }
    }

    /// Who was behind for long gets a snapshot.
    fn skip(&mut self, number: usize) {
        self.left.skips -= 1;
        let feed = &mut self.node(number).feed;
        feed.drain(..feed.len() - 1);
        self.apply_metadata(number);
    }

    /// The replica takes no role until the controller knows (`R78`), and by then its leader has seen its session end: what
    /// that had acknowledged is no more. Its opens go on to be numbered (`R57`).
    fn decay(&mut self, number: usize, kept: usize, scenario: &Scenario) {
        self.left.decays -= 1;
        self.with(number, |_, replica| replica.handle_stop());
        for (follower, leader, stream) in self.stream_ids() {
            if follower == number {
                self.end_stream(follower, leader, stream);
            }
        }
        self.settle();
        let epoch = self.nodes[number].epoch;
        self.controller(|control| control.tell_lossy(number, epoch));
        let partition = self.control.partition();
        if partition.isr.contains(&id(number)) || partition.elr.contains(&id(number)) {
            let text = format!("broker {} has told that it lost records, and stays: {partition:?}", number + 1);
            self.violate(Violation::MemberLacks(text));
        }
        let view = Arc::new(self.control.view());
        let mut opens = 0;
        if let Some(replica) = &self.nodes[number].replica {
            let mine = |whose| whose == id(number);
            replica.open_numbers(&mut |whose, open| opens = if mine(whose) { opens.max(open) } else { opens });
        }
        let node = self.node(number);
        (node.lossy, node.decayed) = (true, true);
        node.log.truncate(kept);
        node.keep_watermarks();
        node.feed = [view].into();
        node.replica = Some(node.recover(number, opens, scenario));
        self.apply_metadata(number);
    }

    fn repeat(&mut self, number: usize, scenario: &Scenario) {
        self.left.repeats -= 1;
        let Node { starts, epoch, decayed, .. } = *self.nodes[number];
        let mark = Mark { start: starts, proof: BrokerEpoch::NONE, lossy: decayed };
        self.controller(|control| control.repeat_registration(number, mark, scenario));
        let now = self.control.broker_epoch(number);
        if now != epoch {
            let text = format!("broker {} is registered with {now}, and was with {epoch}", number + 1);
            self.violate(Violation::TwoRegistrations(text));
        }
    }

    fn move_session(&mut self, leader: usize, follower: usize) {
        let mut moved = false;
        self.with(leader, |now, replica| {
            moved = replica.handle_next_records(id(follower), Lane::Tail, false, now);
        });
        if !moved {
            let text = format!("broker {} stays on the tail's stream without records in memory", follower + 1);
            self.violate(Violation::BadFlow(text));
        }
    }

    fn fire(&mut self, number: usize) {
        let leads = self.nodes[number].leads().is_some();
        self.left.timers -= u8::from(leads);
        let node = self.node(number);
        let Some(replica) = &mut node.replica else { return };
        if let Some(due) = replica.poll_timeout() {
            node.now = node.now.max(due);
            replica.handle_timeout(node.now);
        }
    }

    fn progress(&mut self, leader: usize, follower: usize) {
        self.left.progress -= 1;
        let Some(progress) = self.replica(leader).and_then(|replica| replica.next_progress(id(follower))) else {
            return;
        };
        if let Some(stream) = self.stream(follower, leader, progress.session.stream_no)
            && stream.attached
        {
            stream.down.push_back(Down::Progress(progress));
        }
    }

    /// The controller does something; everybody will hear of what changed.
    fn controller<T>(&mut self, input: impl FnOnce(&mut crate::control::Control) -> T) -> T {
        let before = self.control.view();
        let control = Arc::make_mut(&mut self.control);
        let outcome = input(control);
        let view = Arc::new(control.view());
        if *view != before {
            for node in 0..NODES {
                if self.nodes[node].is_up() {
                    self.feed(node, &view);
                }
            }
        }
        self.note_rejoined();
        if self.control.fenced_a_member() {
            let text = format!("while it was fenced; now the ISR is {:?}", self.control.partition().isr);
            self.violate(Violation::FencedMember(text));
        }
        outcome
    }

    /// A follower goes by the leadership, and by whether it is a replica, alone: what else is new comes to it together with
    /// what it has not applied yet, or at once.
    fn feed(&mut self, number: usize, view: &Arc<PartitionState>) {
        let me = id(number);
        let is_replica = |state: &PartitionState| state.replicas.iter().any(|member| member.id == me);
        let concerns = |state: &PartitionState| (state.leader, state.leader_epoch, is_replica(state));
        let node = self.node(number);
        match node.feed.back_mut() {
            Some(last) if concerns(last) == concerns(view) && view.leader != me => *last = Arc::clone(view),
            _ => node.feed.push_back(Arc::clone(view)),
        }
        let follows_on = node.replica.as_ref().is_some_and(|replica| {
            replica.followed_leader() == Some(view.leader) && replica.leader_epoch() == view.leader_epoch
        });
        if node.feed.len() == 1 && follows_on && is_replica(view) {
            self.apply_metadata(number);
        }
    }

    /// Who is in sync in its present registration has all that is committed again.
    fn note_rejoined(&mut self) {
        for node in 0..NODES {
            let back = self.control.partition().isr.contains(&id(node))
                && self.control.broker_epoch(node) == self.nodes[node].epoch;
            if self.nodes[node].lossy && self.nodes[node].is_up() && back {
                let node = self.node(node);
                (node.lossy, node.decayed) = (false, false);
            }
        }
    }

    fn beat(&mut self, node: usize, wish: Wish) -> Option<HeartbeatAnswer> {
        // The controller fences whom it has registered.
        let epoch = if wish == Wish::Fence { self.control.broker_epoch(node) } else { self.nodes[node].epoch };
        let applied_all = self.nodes[node].feed.is_empty();
        self.controller(|control| control.beat(node, epoch, applied_all, wish))
    }

    fn decide(&mut self, number: usize) {
        let alter = Arc::unwrap_or_clone(self.alters.remove(number));
        let answer = self.controller(|control| control.alter(alter.from, alter.epoch, &alter.proposal));
        // R1, R16: else an older copy of it is still good.
        if matches!(answer, AlterAnswer::Changed { .. })
            && self.control.partition().partition_epoch <= alter.proposal.id.partition_epoch
        {
            self.violate(Violation::BadEpochs(format!("{:?} is accepted with {answer:?}", alter.proposal)));
        }
        if alter.stage == Stage::Asked {
            self.alters.push(Arc::new(crate::world::Alter { stage: Stage::Answered(answer), ..alter }));
        }
    }

    fn answer(&mut self, number: usize) {
        let alter = Arc::unwrap_or_clone(self.alters.remove(number));
        let Stage::Answered(answer) = alter.stage else { return };
        self.with(alter.from, |now, replica| replica.handle_alter_partition_answer(alter.proposal.id, answer, now));
    }

    fn give_up(&mut self, number: usize) {
        self.left.losses -= 1;
        let alter = Arc::unwrap_or_clone(self.alters.remove(number));
        let id = alter.proposal.id;
        self.with(alter.from, |now, replica| replica.handle_alter_partition_answer(id, AlterAnswer::Unknown, now));
        if alter.stage == Stage::Asked {
            self.alters.push(Arc::new(crate::world::Alter { stage: Stage::Forgotten, ..alter }));
        }
    }

    fn report(&mut self, number: usize, scenario: &Scenario) {
        let node = &self.nodes[number];
        let Some(replica) = &node.replica else { return };
        let answer = metadata::control::RecoveryAnswer {
            directory: model::DirectoryId::NONE,
            last_epoch: replica.last_epoch(),
            log_end: replica.log().end,
            lossy: node.decayed,
            synced_before_ack: scenario.sync_before_ack,
        };
        let epoch = node.epoch;
        let (absent, over) = self.controller(|control| control.report(number, epoch, answer));
        self.over = over;
        // The clock stands still: nobody has waited for those.
        if let Some(absent) = absent {
            self.violate(Violation::ElectedTooSoon(format!("{absent:?} have not answered")));
        }
    }

    fn crash(&mut self, number: usize, kept: usize) {
        self.left.crashes -= 1;
        let node = self.node(number);
        node.lossy |= kept < node.log.len();
        node.log.truncate(kept);
        self.go_down(number);
    }

    /// All that is in the log is on the disk, and the proof is written.
    fn stop(&mut self, number: usize) {
        let node = self.node(number);
        node.proof = node.epoch;
        self.go_down(number);
    }

    fn shut_down(&mut self, number: usize, _scenario: &Scenario) {
        if !self.control.is_shutting_down(number) {
            self.left.stops -= 1;
        }
        if self.beat(number, Wish::Stop).is_some_and(|answer| answer.should_shut_down) {
            self.stop(number);
        }
    }

    fn go_down(&mut self, number: usize) {
        let node = self.node(number);
        node.keep_watermarks();
        node.feed.clear();
        for (follower, leader, stream) in self.stream_ids() {
            if leader == number {
                self.end_stream(follower, leader, stream);
            } else if follower == number && self.stream(follower, leader, stream).is_some_and(|s| s.attached) {
                self.let_go(follower, leader, stream);
            }
        }
        for alter in &mut self.alters {
            if alter.from == number && alter.stage == Stage::Asked {
                Arc::make_mut(alter).stage = Stage::Forgotten;
            }
        }
        self.alters.retain(|alter| alter.from != number || alter.stage == Stage::Forgotten);
    }

    fn restart(&mut self, number: usize, scenario: &Scenario) {
        let node = self.node(number);
        let proof = node.proof;
        if !scenario.keeps_proof {
            node.proof = BrokerEpoch::NONE;
        }
        node.starts += 1;
        let mark = Mark { start: node.starts, proof, lossy: node.decayed };
        let epoch = self.controller(|control| control.register(number, mark, scenario));
        let view = Arc::new(self.control.view());
        let node = self.node(number);
        *node = Node { epoch, now: START, feed: [view].into(), ..node.clone() };
        node.replica = Some(node.recover(number, 0, scenario));
        // A broker takes no metadata from before its registration.
        self.apply_metadata(number);
        // Its followers may dial.
        self.touched = (1 << NODES) - 1;
    }

    /// Forgets what can have no effect any more.
    fn forget(&mut self, scenario: &Scenario) {
        let hold = |rules: &[Rule]| rules.iter().all(|rule| scenario.rules.hold(*rule));
        let now = self.control.partition().partition_epoch;
        let refused =
            hold(&[Rule::R15PartitionEpoch, Rule::R15LeaderEpoch, Rule::R15Sender, Rule::R16StayPendingOnRefusal])
                && hold(&[
                    Rule::R16AnswerBelongsToProposal,
                    Rule::R1EachChangeRaisesTheEpoch,
                    Rule::R3StalePartitionEpoch,
                ]);
        let nodes = &self.nodes;
        self.alters.retain(|alter| {
            let pending = nodes[alter.from].replica.as_ref().and_then(Replica::pending_proposal);
            let awaited = pending == Some(alter.proposal.id.number);
            match alter.stage {
                Stage::Forgotten | Stage::Asked if refused && alter.proposal.id.partition_epoch < now => false,
                Stage::Answered(_) if refused && !awaited => false,
                _ => true,
            }
        });
        // The order in which they were asked says nothing.
        self.alters.sort_by(|a, b| {
            let key = |alter: &crate::world::Alter| (alter.from, alter.epoch, alter.proposal.id);
            key(a).cmp(&key(b)).then_with(|| stage_rank(&a.stage).cmp(&stage_rank(&b.stage)))
        });
        self.forget_messages(scenario);
        if scenario.rules.hold(Rule::R3StalePartitionEpoch) {
            for number in 0..NODES {
                let stale = |node: &Node| {
                    let known = node.replica.as_ref().map(Replica::partition_epoch);
                    node.feed.front().is_some_and(|state| Some(state.partition_epoch) < known)
                };
                while stale(&self.nodes[number]) {
                    self.node(number).feed.pop_front();
                }
            }
        }
        for number in 0..NODES {
            if !self.nodes[number].is_up() && self.nodes[number].now != START {
                self.node(number).now = START;
            }
            let (start, log) = (self.start_of(number), &self.nodes[number].log);
            if log.iter().take(at(start)).any(|record| *record != crate::world::HOLE) {
                let node = self.node(number);
                node.log[..at(start)].fill(crate::world::HOLE);
            }
        }
    }

    /// What is said in a session that neither end has, or will have, is not heard.
    fn forget_messages(&mut self, scenario: &Scenario) {
        let hold = |rules: &[Rule]| rules.iter().all(|rule| scenario.rules.hold(*rule));
        let to_follower = hold(&[Rule::R58CurrentSession]);
        let to_leader = hold(&[Rule::R59AckOfCurrentSession, Rule::R57GreatestSession, Rule::R23FencedOpen]);
        for place in 0..self.streams.len() {
            let stream = &*self.streams[place];
            let (leader, follower) = (self.nodes[stream.leader].replica.as_ref(), &self.nodes[stream.follower]);
            let awaited = follower.replica.as_ref().and_then(Replica::open_number).filter(|_| stream.attached);
            let mut heard = stream.clone();
            heard.opened = heard.opened.filter(|opened| Some(*opened) == awaited);
            if to_follower {
                heard.down.retain(|message| Some(crate::hashed::number_of(message)) == awaited);
            }
            if to_leader && let Some(leader) = leader {
                forget_up(&mut heard, leader, awaited);
            }
            let same = heard.opened == stream.opened
                && heard.up.len() == stream.up.len()
                && heard.down.len() == stream.down.len();
            if !same {
                self.streams[place] = Arc::new(heard);
            }
        }
    }

    pub(crate) fn start_of(&self, number: usize) -> Offset {
        let node = &self.nodes[number];
        node.replica.as_ref().map_or(node.start, |replica| replica.log().start)
    }
}

fn forget_up(stream: &mut Stream, leader: &Replica, awaited: Option<u64>) {
    let current = leader.current_session(id(stream.follower));
    let current =
        current.filter(|session: &Session| (session.broker_epoch, session.stream_no) == (stream.epoch, stream.number));
    let mut sessions: Vec<u64> = current.map(|session| session.open_no).into_iter().collect();
    stream.up.retain(|message| match message {
        Up::Open(open) => {
            let heard = open.leader_epoch >= leader.leader_epoch() || Some(open.open_no) == awaited;
            if heard {
                sessions.push(open.open_no);
            }
            heard
        }
        Up::Ack(ack) => sessions.contains(&ack.open_no),
        Up::Close(open_no) => sessions.contains(open_no),
    });
}

fn stage_rank(stage: &Stage) -> u8 {
    match stage {
        Stage::Asked => 0,
        Stage::Forgotten => 1,
        Stage::Answered(AlterAnswer::Unknown) => 2,
        Stage::Answered(AlterAnswer::Refused { .. }) => 3,
        Stage::Answered(AlterAnswer::Changed { .. }) => 4,
    }
}
