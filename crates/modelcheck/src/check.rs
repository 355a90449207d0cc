//! What must hold in every state.

use std::collections::BTreeSet;

use model::{BrokerId, ErrorCode, Offset};
use replication::{FetchPosition, ProduceVerdict, Replica};

use crate::control::{id, node_of};
use crate::scenario::{NODES, Scenario};
use crate::world::{HOLE, Node, Record, Violation, World, at, offset};

impl World {
    pub(crate) fn violate(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }

    /// Looks at the state that a step from `before` came to.
    pub(crate) fn check(&mut self, before: &World, scenario: &Scenario) {
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
        self.violation = found;
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
        let has = |node: &Node| node.lossy || node.log.get(place) == Some(&record);
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
}
