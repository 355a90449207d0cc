//! What may happen next, and what comes of it.

use coordinator::Shard;
use model::ErrorCode;
use replication::producers::ProducerTable;

use super::Scenario;
use super::world::{Entry, Message, Step, TIMEOUT_MS, Transactions, Work, Write, loaded, take};

impl Transactions {
    /// Every step that is possible now.
    pub(crate) fn possible(&self, steps: &mut Vec<Step>) {
        if self.violation.is_some() {
            return;
        }
        if !self.answers.is_empty() {
            // When an answer comes does not matter: its client does what it does next at any time.
            steps.push(Step::Hear);
            if self.left.losses > 0 {
                steps.push(Step::Miss);
            }
            return;
        }
        for number in 0..self.clients.len() {
            self.possible_of(number, steps);
        }
        for message in &self.network {
            steps.push(Step::Deliver(*message));
            if self.left.copies > 0 && !matches!(message, Message::Verify { .. } | Message::Verified { .. }) {
                steps.push(Step::DeliverCopy(*message));
            }
        }
        if self.coordinator.in_flight.is_some() {
            steps.push(Step::Store);
            if self.left.refusals > 0 {
                steps.push(Step::Refuse);
            }
        }
        if self.left.coordinators > 0 {
            steps.push(Step::MoveCoordinator(false));
            if self.coordinator.in_flight.is_some() {
                steps.push(Step::MoveCoordinator(true));
            }
        }
        if self.left.timeouts > 0 && self.stored().is_some_and(|known| known.status.name() == "Ongoing") {
            steps.push(Step::Timeout);
        }
        steps.extend(self.works.iter().filter(|(_, stands)| stands.is_none()).map(|(work, _)| Step::Mark(*work)));
        if self.left.copies > 0 {
            steps.extend(self.late.iter().map(|work| Step::MarkLate(*work)));
        }
        for (number, part) in (0u8..).zip(&self.parts) {
            let unreplicated = part.high_watermark < part.log.len();
            if unreplicated {
                steps.push(Step::Replicate(number));
            }
            if self.left.leaders > 0 {
                steps.push(Step::MoveLeader(number, false));
                if unreplicated {
                    steps.push(Step::MoveLeader(number, true));
                }
            }
        }
    }

    fn possible_of(&self, number: usize, steps: &mut Vec<Step>) {
        let (client, me) = (&self.clients[number], u8::try_from(number).expect("two clients"));
        if client.fenced {
            return;
        }
        if let Some(expected) = client.expecting {
            // One that waits for its turn at the coordinator is asked again only where copies may be.
            let under_way =
                self.network.contains(&expected) || self.coordinator.asked.values().any(|asked| *asked == expected);
            if !under_way || self.left.copies > 0 && !self.network.contains(&expected) {
                steps.push(Step::Resend(me));
            }
        }
        if client.who.is_none() {
            if client.expecting.is_none() {
                steps.push(Step::Init(me));
            }
            return;
        }
        let idle = client.expecting.is_none();
        if idle && self.left.recoveries > 0 {
            steps.push(Step::Recover(me));
        }
        if client.transaction >= self.left.transactions || !idle {
            return;
        }
        for (at, (write, partition)) in client.writes.iter().zip(0u8..).enumerate() {
            match write {
                Write::Unsent if client.version >= 2 || client.added[at] => steps.push(Step::Write(me, partition)),
                Write::Unsent => steps.push(Step::Add(me, partition)),
                Write::Sent if self.is_lost(me, partition) || self.left.copies > 0 => {
                    if !self.network.iter().any(|message| is_write(message, me, client.transaction, partition)) {
                        steps.push(Step::Rewrite(me, partition));
                    }
                }
                Write::Sent | Write::Acked | Write::Refused => {}
            }
        }
        self.possible_ends(number, me, steps);
    }

    fn possible_ends(&self, number: usize, me: u8, steps: &mut Vec<Step>) {
        let writes = &self.clients[number].writes;
        let all = |allowed: &[Write]| writes.iter().all(|write| allowed.contains(write));
        let some = |wanted| writes.contains(&wanted);
        if some(Write::Acked) && all(&[Write::Acked, Write::Unsent]) {
            steps.push(Step::End(me, true));
        }
        // An old client that gives up what is still on its way asks for an epoch first: it does not do that here.
        let may_abort = self.clients[number].version >= 2 || !some(Write::Sent);
        if may_abort && !all(&[Write::Unsent]) {
            steps.push(Step::End(me, false));
        }
    }

    /// Whether the client's record is nowhere: it was cut off, or refused without a word.
    fn is_lost(&self, client: u8, partition: u8) -> bool {
        let part = &self.parts[usize::from(partition)];
        let transaction = self.clients[usize::from(client)].transaction;
        let same = |message: &Message| is_write(message, client, transaction, partition);
        let stands = part.log.iter().any(|entry| entry_tag(entry) == Some((client, transaction)));
        !self.network.iter().any(same) && !part.waiting.values().any(same) && !stands
    }

    /// What comes of a step.
    pub(crate) fn step(&self, step: Step, scenario: &Scenario) -> Option<Transactions> {
        let mut next = self.clone();
        match step {
            Step::Hear | Step::Miss => {
                let (message, response) = next.answers.remove(0);
                if step == Step::Hear {
                    next.hear(message, &response);
                } else {
                    next.left.losses -= 1;
                }
            }
            Step::Deliver(message) => {
                next.network.remove(&message);
                next.deliver(message, scenario);
            }
            Step::DeliverCopy(message) => {
                next.left.copies -= 1;
                next.deliver(message, scenario);
            }
            Step::Store | Step::Refuse => next.end_write(step == Step::Store),
            Step::MoveCoordinator(kept) => next.move_coordinator(kept, scenario),
            Step::Timeout => {
                next.left.timeouts -= 1;
                let ms = u64::try_from(TIMEOUT_MS).expect("it is positive");
                next.now.wall = next.now.wall + ms + 1;
                next.now.monotonic = next.now.monotonic + next.coordinator.shard.config().abort_interval_ms;
                next.coordinator.shard.handle_timeout(next.now);
                next.drain();
            }
            Step::Mark(work) => next.mark(work, scenario),
            Step::MarkLate(work) => {
                next.left.copies -= 1;
                next.late.remove(&work);
                // Whoever sent it does not listen any more.
                let _ = next.append_marker(work, scenario);
            }
            Step::Replicate(partition) => next.replicate(partition, scenario),
            Step::MoveLeader(partition, kept) => next.move_leader(partition, kept),
            Step::Init(_)
            | Step::Recover(_)
            | Step::Add(..)
            | Step::Write(..)
            | Step::Rewrite(..)
            | Step::End(..)
            | Step::Resend(_) => next.client_step(step),
        }
        next.drain();
        next.check(scenario);
        Some(next)
    }

    fn client_step(&mut self, step: Step) {
        let message = match step {
            Step::Init(me) => Message::Init { client: me, expected: None },
            Step::Recover(me) => {
                self.left.recoveries -= 1;
                Message::Init { client: me, expected: self.clients[usize::from(me)].who }
            }
            Step::Add(me, partition) => {
                let who = self.clients[usize::from(me)].who.expect("it has an id");
                Message::Add { client: me, partition, who }
            }
            Step::End(me, commit) => {
                let client = &self.clients[usize::from(me)];
                let (tag, who) = ((me, client.transaction), client.who.expect("it has an id"));
                if commit {
                    self.asked.insert(tag);
                }
                Message::End { tag, commit, who }
            }
            Step::Write(me, partition) | Step::Rewrite(me, partition) => {
                if matches!(step, Step::Rewrite(..)) && !self.is_lost(me, partition) {
                    self.left.copies -= 1;
                }
                let client = &mut self.clients[usize::from(me)];
                client.writes[usize::from(partition)] = Write::Sent;
                let (tag, who) = ((me, client.transaction), client.who.expect("it has an id"));
                let sequence = client.sequences[usize::from(partition)];
                let version = client.version;
                self.network.insert(Message::Produce { tag, partition, who, sequence, version });
                return;
            }
            Step::Resend(me) => {
                let expected = self.clients[usize::from(me)].expecting.expect("it waits");
                if self.coordinator.asked.values().any(|asked| *asked == expected) {
                    self.left.copies -= 1;
                }
                expected
            }
            _ => return,
        };
        let me = match message {
            Message::Init { client, .. } | Message::Add { client, .. } => client,
            Message::End { tag, .. } => tag.0,
            _ => return,
        };
        self.clients[usize::from(me)].expecting = Some(message);
        self.network.insert(message);
    }

    fn end_write(&mut self, stored: bool) {
        let Some((batch, records)) = self.coordinator.in_flight.take() else { return };
        if stored {
            for record in records {
                take(&mut self.coordinator.stored, &record);
                self.coordinator.log.push(record);
            }
            self.coordinator.shard.committed(batch, self.now);
        } else {
            self.left.refusals -= 1;
            self.coordinator.shard.failed(batch, ErrorCode::NotEnoughReplicas, self.now);
            // The completion that could not be stored is tried again.
            self.now.monotonic = self.now.monotonic + self.coordinator.shard.config().retry_ms;
            self.coordinator.shard.handle_timeout(self.now);
        }
    }

    fn move_coordinator(&mut self, kept: bool, scenario: &Scenario) {
        self.left.coordinators -= 1;
        let in_flight = self.coordinator.in_flight.take();
        self.coordinator.shard.unload(ErrorCode::NotCoordinator);
        self.drain();
        if let Some((_, records)) = in_flight.filter(|_| kept) {
            self.coordinator.log.extend(records);
        }
        self.coordinator.epoch += 1;
        let unanswered = std::mem::take(&mut self.works);
        let copies = |work: &Work, stands: Option<usize>| stands.is_none() || work.version >= 2;
        self.late.extend(unanswered.into_iter().filter(|(work, stands)| copies(work, *stands)).map(|(work, _)| work));
        let (shard, stored) = loaded(&self.coordinator.log, self.coordinator.epoch, scenario, self.now);
        (self.coordinator.shard, self.coordinator.stored) = (shard, stored);
        self.coordinator.asked.clear();
    }

    fn move_leader(&mut self, partition: u8, kept: bool) {
        self.left.leaders -= 1;
        let part = &mut self.parts[usize::from(partition)];
        if !kept {
            part.log.truncate(part.high_watermark);
        }
        part.leadership += 1;
        part.waiting.clear();
        part.table = ProducerTable::default();
        let entries = part.log.clone();
        for (offset, entry) in entries.into_iter().enumerate() {
            part.note(offset, entry);
        }
        part.stabilise();
        let end = part.log.len();
        for (work, stands) in &mut self.works {
            // Who asked hears that the leadership ended, and asks the next leader.
            if work.partition == partition && stands.is_some_and(|at| at >= end || at >= part.high_watermark) {
                *stands = None;
            }
        }
    }
}

fn is_write(message: &Message, client: u8, transaction: u8, partition: u8) -> bool {
    matches!(message, Message::Produce { tag, partition: to, .. } if *tag == (client, transaction) && *to == partition)
}

fn entry_tag(entry: &Entry) -> Option<(u8, u8)> {
    match entry {
        Entry::Data { tag, .. } => Some(*tag),
        Entry::Marker { .. } => None,
    }
}
