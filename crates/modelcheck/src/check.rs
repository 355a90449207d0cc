//! What must hold in every state.

use std::collections::BTreeSet;
use std::sync::Arc;

use metadata::records::LeaderRecoveryState;
use model::{BrokerEpoch, BrokerId, ErrorCode, Offset};
use replication::{FetchPosition, ProduceVerdict, Proposal, Replica};

use crate::control::{id, node_of};
use crate::scenario::{NODES, Scenario};
use crate::world::{Alter, HOLE, Node, Record, START, Stream, Violation, World, at, offset};

impl World {
    pub(crate) fn violate(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }

    /// Looks at the state that a step from `before` came to.
    pub(crate) fn check(&mut self, before: &World, scenario: &Scenario) {
        if scenario.only_losses {
            self.violation = self.violation.take().filter(Violation::is_loss);
        }
        if self.over || self.violation.is_some() {
            return;
        }
        let found = self
            .lost_by_election(before)
            .or_else(|| self.visible(scenario))
            .or_else(|| self.members_lack())
            .or_else(|| self.logs_part())
            .or_else(|| self.two_leaders())
            .or_else(|| self.watermark_fell(before))
            .or_else(|| self.bad_read())
            .or_else(|| self.told_too_much(scenario));
        let guards = || self.guards(before, scenario);
        self.violation = if found.is_none() && !scenario.only_losses { guards() } else { found };
    }

    /// The rules that guard against losses, each by itself.
    fn guards(&self, before: &World, scenario: &Scenario) -> Option<Violation> {
        self.bad_change(before)
            .or_else(|| self.bad_members(scenario))
            .or_else(|| self.late_by_an_append(before))
            .or_else(|| (0..NODES).find_map(|node| self.bad_sessions(node, scenario)))
            .or_else(|| (0..NODES).find_map(|node| self.bad_replica(node)))
    }

    fn holds(&self, node: usize) -> bool {
        let log = &self.nodes[node].log;
        let start = at(self.start_of(node)).min(self.committed.len());
        log.len() >= self.committed.len() && log[start..self.committed.len()] == self.committed[start..]
    }

    /// `R33` to `R35`.
    fn lost_by_election(&self, before: &World) -> Option<Violation> {
        let (now, was) = (self.control.partition(), before.control.partition());
        let elected = !now.is_leaderless() && (now.leader != was.leader || now.leader_epoch != was.leader_epoch);
        let node = if elected { node_of(now.leader) } else { return None };
        let log = &self.nodes[node].log;
        let text = || format!("broker {} is elected with {log:?}, committed are {:?}", node + 1, self.committed);
        // One that is down and lost records registers anew, and is out again, before it leads.
        let leads = self.nodes[node].is_up() || !self.nodes[node].lossy;
        (leads && !self.holds(node)).then(|| Violation::CommittedLost(text()))
    }

    /// What any replica calls committed is what every other did. Takes what is committed for the first time.
    fn visible(&mut self, scenario: &Scenario) -> Option<Violation> {
        for number in 0..NODES {
            let Some(view) = self.nodes[number].replica.as_ref().map(Replica::log) else { continue };
            let log = &self.nodes[number].log;
            let (start, end) = (at(view.start), at(view.high_watermark));
            if log.len() != at(view.end) || end > log.len() {
                let text = format!("broker {} has {} records, its replica {view:?}", number + 1, log.len());
                return Some(Violation::Panicked(text));
            }
            if start > self.committed.len().max(end) {
                return Some(Violation::DeletedTooMuch(format!("broker {}: {view:?}", number + 1)));
            }
            let common = start.min(self.committed.len())..end.min(self.committed.len());
            if start < end && log[common.clone()] != self.committed[common] {
                let text = format!("broker {} shows {:?}, committed are {:?}", number + 1, &log[..end], self.committed);
                return Some(Violation::Disagrees(text));
            }
            for place in self.committed.len()..end {
                let record = self.nodes[number].log[place];
                self.committed.push(record);
                if let Some(thin) = self.thin(place, record, scenario) {
                    return Some(thin);
                }
            }
        }
        None
    }

    /// `R18`, `R79`: who lost it since had it.
    fn thin(&self, place: usize, record: Record, scenario: &Scenario) -> Option<Violation> {
        // Under sync before ack only what is durable counts (R59); what is on a disk that is down is.
        let durable = |node: &Node| node.replica.as_ref().is_none_or(|replica| at(replica.log().synced_end) > place);
        let has = |node: &Node| {
            let here = node.log.get(place) == Some(&record) && (!scenario.sync_before_ack || durable(node));
            node.lossy || here
        };
        let holders: Vec<usize> = (0..NODES).filter(|node| has(&self.nodes[*node])).collect();
        let zones: BTreeSet<&str> = holders.iter().map(|node| scenario.racks[*node]).collect();
        let text = || format!("{record:?} is committed at {place} on the brokers {holders:?} in the zones {zones:?}");
        let enough = holders.len() >= self.control.min_isr()
            && zones.len() >= usize::try_from(scenario.zones).expect("a small number");
        (!enough).then(|| Violation::CommittedThinly(text()))
    }

    /// A member of ISR or ELR has all that is committed, or lost it in a crash that is tolerated.
    fn members_lack(&self) -> Option<Violation> {
        let partition = self.control.partition();
        let members = partition.isr.iter().chain(&partition.elr).map(|member| node_of(*member));
        let lacks = |node: &usize| !self.nodes[*node].lossy && !self.holds(*node);
        members.into_iter().find(lacks).map(|node| {
            let (isr, elr) = (&partition.isr, &partition.elr);
            let log = &self.nodes[node].log;
            let text = format!(
                "broker {} has {log:?}, ISR {isr:?}, ELR {elr:?}, committed are {:?}",
                node + 1,
                self.committed
            );
            Violation::MemberLacks(text)
        })
    }

    fn logs_part(&self) -> Option<Violation> {
        for (one, other) in [(0, 1), (0, 2), (1, 2)] {
            let (a, b) = (&self.nodes[one].log, &self.nodes[other].log);
            let from = at(self.start_of(one).max(self.start_of(other)));
            let common = from..a.len().min(b.len());
            let same_epoch = |at: &usize| a[*at].epoch == b[*at].epoch && a[*at] != HOLE && b[*at] != HOLE;
            let last = common.clone().rev().find(same_epoch);
            if last.is_some_and(|last| a[from..=last] != b[from..=last]) {
                let text = format!("broker {} has {a:?}, broker {} {b:?}", one + 1, other + 1);
                return Some(Violation::LogsPart(text));
            }
        }
        None
    }

    fn two_leaders(&self) -> Option<Violation> {
        for (one, other) in [(0, 1), (0, 2), (1, 2)] {
            if let (Some(a), Some(b)) = (self.nodes[one].leads(), self.nodes[other].leads())
                && a.leader_epoch() == b.leader_epoch()
            {
                let text = format!("brokers {} and {} lead in {}", one + 1, other + 1, a.leader_epoch());
                return Some(Violation::TwoLeaders(text));
            }
        }
        None
    }

    /// `R18`: it is monotone in a leader epoch.
    fn watermark_fell(&self, before: &World) -> Option<Violation> {
        (0..NODES).find_map(|node| {
            let (now, was) = (self.nodes[node].leads()?, before.nodes[node].leads()?);
            let same = now.leader_epoch() == was.leader_epoch() && self.nodes[node].epoch == before.nodes[node].epoch;
            let (now, was) = (now.log().high_watermark, was.log().high_watermark);
            (same && now < was).then(|| Violation::WatermarkFell(format!("broker {}: {was} to {now}", node + 1)))
        })
    }

    /// `R19`: nobody reads above the high watermark, and the leader in force tells no end below what was read.
    fn bad_read(&self) -> Option<Violation> {
        let partition = self.control.partition();
        for number in 0..NODES {
            let Some(replica) = &self.nodes[number].replica else { continue };
            let view = replica.log();
            let (hw, end) = (at(view.high_watermark), at(view.end));
            let readable =
                |place: &usize| replica.fetch_position(offset(*place), view.high_watermark) == FetchPosition::Readable;
            if let Some(place) = (hw..end).find(readable) {
                return Some(Violation::BadRead(format!("broker {}: offset {place} of {view:?}", number + 1)));
            }
            let leads = replica.is_leader() && partition.leader == id(number);
            let in_force = leads && replica.leader_epoch() == partition.leader_epoch;
            let latest = replica.latest_offset();
            if in_force && latest.is_ok_and(|latest| latest < offset(self.committed.len())) {
                let text = format!("broker {} says {latest:?}, committed are {:?}", number + 1, self.committed);
                return Some(Violation::BadRead(text));
            }
        }
        None
    }

    /// `R20`, `R79`: an acks=all record is taken only where enough are in sync, and acknowledged only where enough are, or are
    /// about to be.
    fn told_too_much(&self, scenario: &Scenario) -> Option<Violation> {
        let (brokers, wanted) = (self.control.min_isr(), usize::try_from(scenario.zones).expect("a small number"));
        for leader in self.nodes.iter().filter_map(|node| node.leads()) {
            let enough = |joining: &[BrokerId]| {
                let members: BTreeSet<BrokerId> = leader.isr().iter().chain(joining).copied().collect();
                let zones: BTreeSet<&str> = members.iter().map(|member| scenario.racks[node_of(*member)]).collect();
                members.len() >= brokers && zones.len() >= wanted
            };
            if leader.check_produce(-1).is_ok() && !enough(&[]) {
                return Some(Violation::ToldTooMuch(format!("a record is taken with {:?} in sync", leader.isr())));
            }
            let end = leader.log().high_watermark;
            let acknowledged = leader.produce_verdict(end) == ProduceVerdict::Done(ErrorCode::None);
            if acknowledged && end > Offset::ZERO && !enough(leader.joining()) {
                return Some(Violation::ToldTooMuch(format!("{end} is acknowledged with {:?} in sync", leader.isr())));
            }
        }
        None
    }

    /// What the controller changed: `R1`, `R33`, `R35`, `R37`.
    fn bad_change(&self, before: &World) -> Option<Violation> {
        let (now, was) = (self.control.partition(), before.control.partition());
        if now == was {
            return None;
        }
        let text = || format!("{was:?} became {now:?}");
        let left = was.replicas.iter().any(|replica| !now.replicas.contains(replica));
        let new_leadership = now.leader != was.leader || left;
        let rose = now.leader_epoch > was.leader_epoch || (!new_leadership && now.leader_epoch == was.leader_epoch);
        if now.partition_epoch <= was.partition_epoch || !rose {
            return Some(Violation::BadEpochs(text()));
        }
        let asked = self.left.elections < before.left.elections;
        let valid = now.isr.contains(&was.leader) && self.control.is_active(node_of(was.leader));
        if now.leader != was.leader && valid && !asked {
            return Some(Violation::LeaderMoved(text()));
        }
        let comes = |b: &&BrokerId| !was.replicas.contains(b) || was.adding.contains(b);
        let mut come = now.replicas.iter().filter(comes).filter(|_| !now.is_reassigning()).peekable();
        let enough = now.isr.len() >= self.control.min_isr();
        if come.peek().is_some() && !(enough && come.all(|b| now.isr.contains(b))) {
            return Some(Violation::MovedTooSoon(text()));
        }
        let elected = !now.is_leaderless() && now.leader_epoch != was.leader_epoch;
        let outside = now.isr == [now.leader] && !was.isr.contains(&now.leader) && !was.elr.contains(&now.leader);
        let unrecovered = elected && outside && now.leader_recovery_state != LeaderRecoveryState::Recovering;
        unrecovered.then(|| Violation::NotRecovering(text()))
    }

    /// Who is in the ISR and in the ELR: `R7`, `R12`, `R15`, `R34`.
    fn bad_members(&self, scenario: &Scenario) -> Option<Violation> {
        let partition = self.control.partition();
        let text = || format!("ISR {:?}, ELR {:?}", partition.isr, partition.elr);
        if partition.isr.iter().any(|member| !self.control.is_active(node_of(*member))) {
            return Some(Violation::FencedMember(text()));
        }
        let enough = self.control.is_enough(&partition.isr);
        // As long as nobody came back, who left has what it had.
        let all_clean = self.nodes.iter().all(|node| node.starts == 1 && !node.lossy);
        let eligible = partition.isr.len() + partition.elr.len();
        let few = all_clean && scenario.bounds.decays == 0 && eligible < self.control.min_isr();
        ((enough && !partition.elr.is_empty()) || few).then(|| Violation::BadElr(text()))
    }

    /// `R11`, `R12`, `R64`: judged by what the leader knows. What is sent again was judged before.
    pub(crate) fn check_proposal(&mut self, leader: usize, proposal: &Proposal) {
        let node = self.node(leader);
        let again = proposal.id.number <= std::mem::replace(&mut node.proposed, proposal.id.number);
        let (Some(replica), Some(applied), false) = (&node.replica, &node.applied, again) else { return };
        let is_member = |id: BrokerId| replica.isr().contains(&id);
        let may_join = |(id, epoch): &(BrokerId, BrokerEpoch)| {
            let eligible = applied.replicas.iter().any(|member| member.id == *id && member.eligible);
            let session = replica.current_session(*id);
            is_member(*id) || (eligible && session.is_some_and(|session| session.broker_epoch == *epoch))
        };
        // Before time has passed nobody is late: it has to have lost records.
        let in_time = node.now == START;
        let may_leave = |id: &BrokerId| {
            let stays = proposal.isr.iter().any(|(member, _)| member == id);
            let lost = replica.follower_log_end(*id).is_some_and(|end| end < replica.log().high_watermark);
            stays || lost || !in_time
        };
        if !proposal.isr.iter().all(may_join) || !replica.isr().iter().all(may_leave) {
            let text = format!("broker {} proposes {:?}, the ISR is {:?}", leader + 1, proposal.isr, replica.isr());
            self.violate(Violation::BadProposal(text));
        }
    }

    /// `R61`: who had all that there was is not late by the next record.
    fn late_by_an_append(&self, before: &World) -> Option<Violation> {
        if self.left.appends == before.left.appends {
            return None;
        }
        let known = |alter: &&Arc<Alter>| !before.alters.iter().any(|other| other.proposal.id == alter.proposal.id);
        self.alters.iter().filter(known).find_map(|alter| {
            let leader = before.nodes[alter.from].leads()?;
            let had_all = |id: &BrokerId| leader.follower_log_end(*id) == Some(leader.log().end);
            let stays = |id: &BrokerId| alter.proposal.isr.iter().any(|(member, _)| member == id);
            let late = leader.isr().iter().find(|id| had_all(id) && !stays(id))?;
            Some(Violation::BadProposal(format!(
                "{late} had all, and is proposed out by an append: {:?}",
                alter.proposal
            )))
        })
    }

    /// What a leader has of its followers' sessions: `R8`, `R38`, `R57`, `R59`.
    fn bad_sessions(&self, number: usize, scenario: &Scenario) -> Option<Violation> {
        let (leader, applied) = (self.nodes[number].leads()?, self.nodes[number].applied.as_ref()?);
        for follower in (0..NODES).filter(|follower| *follower != number) {
            let node = &self.nodes[follower];
            let session = leader.current_session(id(follower));
            let text = || format!("broker {} has {session:?} of broker {}: {node:?}", number + 1, follower + 1);
            let member = applied.replicas.iter().find(|member| member.id == id(follower));
            if session.is_some_and(|session| member.is_none_or(|member| member.broker_epoch != session.broker_epoch)) {
                return Some(Violation::BadSession(text()));
            }
            let Some(replica) = node.replica.as_ref() else { continue };
            let Some(open_no) = replica.open_number().filter(|_| node.follows() == Some(number)) else { continue };
            let same = session.is_some_and(|s| s.open_no == open_no && s.broker_epoch == node.epoch);
            let in_one_epoch = replica.leader_epoch() == leader.leader_epoch();
            if same && !in_one_epoch {
                return Some(Violation::BadSession(text()));
            }
            // Under sync before ack what is not durable is not there.
            let has = if scenario.sync_before_ack { at(replica.log().synced_end) } else { node.log.len() };
            if same && leader.follower_log_end(id(follower)).is_some_and(|end| at(end) > has) {
                return Some(Violation::BadSession(text()));
            }
            let idle = |s: &&Arc<Stream>| {
                s.follower == follower && s.leader == number && s.attached && s.up.is_empty() && s.down.is_empty()
            };
            if !same && in_one_epoch && self.streams.iter().any(|stream| idle(&stream)) {
                return Some(Violation::Stuck(text()));
            }
        }
        None
    }

    /// `R20`: no produce waits where nobody leads. `R25`: each record has its own epoch.
    fn bad_replica(&self, number: usize) -> Option<Violation> {
        let node = &self.nodes[number];
        let replica = node.replica.as_ref()?;
        if node.serves != replica.is_leader() {
            return Some(Violation::Waiting(format!("broker {} leads no more", number + 1)));
        }
        let places = at(replica.log().start)..node.log.len();
        let wrong = |place: &usize| {
            let record = node.log[*place];
            record != HOLE && replica.epochs().epoch_of(offset(*place)) != Some(record.epoch)
        };
        let place = places.into_iter().find(wrong)?;
        let text = format!("broker {} has {:?} at {place}, and {:?}", number + 1, node.log, replica.epochs());
        Some(Violation::WrongEpoch(text))
    }
}
