//! What may happen next, and what comes of it.

use coordinator::transaction::Status;

use super::Scenario;
use super::clients::is_write;
use super::world::{Entry, Message, Step, Transactions, Write};

impl Transactions {
    /// Every step that is possible now.
    pub(crate) fn possible(&self, scenario: &Scenario, steps: &mut Vec<Step>) {
        if self.violation.is_some() {
            return;
        }
        if !self.answers.is_empty() {
            // When an answer comes does not matter: its client does what it does next at any time.
            steps.extend([Step::Hear, Step::Miss]);
            return;
        }
        for number in 0..self.clients.len() {
            self.possible_of(number, scenario, steps);
        }
        for message in &self.network {
            steps.push(Step::Deliver(*message));
            if self.left.copies > 0 && self.is_told_from_later(message) {
                steps.push(Step::DeliverCopy(*message));
            }
        }
        self.possible_of_coordinator(steps);
        self.possible_of_leaders(steps);
    }

    /// Whether a late copy of a request is told from a later request. Before KIP-890 nothing tells those of one transaction
    /// from those of the next: there, copies of what the coordinator is asked come only while the transaction lasts.
    fn is_told_from_later(&self, message: &Message) -> bool {
        match message {
            Message::Init { .. } | Message::Write { .. } => true,
            Message::Add { client, .. } => self.version_of(*client) >= 2,
            Message::End { tag, .. } => self.version_of(tag.0) >= 2,
            Message::Verify { .. } | Message::Verified { .. } => false,
        }
    }

    fn possible_of_coordinator(&self, steps: &mut Vec<Step>) {
        let in_flight = self.coordinator.in_flight.is_some();
        if in_flight {
            steps.push(Step::Store);
            if self.left.refusals > 0 {
                steps.push(Step::Refuse);
            }
        }
        if self.left.coordinators > 0 {
            steps.push(Step::MoveCoordinator(false));
            if in_flight {
                steps.push(Step::MoveCoordinator(true));
            }
        }
        let is_open = self.stored().is_some_and(|known| known.status == Status::Ongoing);
        if self.left.timeouts > 0 && is_open && !in_flight {
            steps.push(Step::Timeout);
        }
    }

    fn possible_of_leaders(&self, steps: &mut Vec<Step>) {
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
            if part.group.is_some() && self.left.commits > 0 {
                steps.push(Step::CommitOffset);
            }
            if part.group.is_some() && self.left.deletes > 0 {
                steps.push(Step::DeleteOffset);
            }
        }
    }

    fn possible_of(&self, number: usize, scenario: &Scenario, steps: &mut Vec<Step>) {
        let (client, me) = (&self.clients[number], u8::try_from(number).expect("two clients"));
        if client.stopped {
            return;
        }
        if let Some(expected) = client.expecting {
            self.possible_repeats(me, expected, steps);
            return;
        }
        if client.who.is_none() {
            // Of two clients that are alike it does not matter which comes first.
            let alike = scenario.is_symmetric() && number > 0;
            if !alike || self.clients[number - 1].who.is_some() || self.clients[number - 1].expecting.is_some() {
                steps.push(Step::Init(me));
            }
            return;
        }
        if self.left.recoveries > 0 {
            steps.push(Step::Recover(me));
        }
        if client.transaction >= self.left.transactions {
            return;
        }
        for (at, (write, partition)) in client.writes.iter().zip(0u8..).enumerate() {
            match write {
                Write::Unsent if client.version >= 2 || client.added[at] => steps.push(Step::Write(me, partition)),
                Write::Unsent => steps.push(Step::Add(me, partition)),
                Write::Sent if self.is_lost(me, partition) || self.left.copies > 0 => {
                    let tag = (me, client.transaction);
                    if !self.network.iter().any(|message| is_write(message, tag, partition)) {
                        steps.push(Step::Rewrite(me, partition));
                    }
                }
                Write::Sent | Write::Acked | Write::Refused => {}
            }
        }
        self.possible_ends(number, me, steps);
    }

    fn possible_repeats(&self, me: u8, expected: Message, steps: &mut Vec<Step>) {
        let travels = self.network.contains(&expected);
        let waits = self.coordinator.asked.values().any(|asked| *asked == expected);
        // One that waits for its turn at the coordinator is asked again only where copies may be.
        let may_copy = self.left.copies > 0 && self.is_told_from_later(&expected);
        if !travels && (!waits || may_copy) {
            steps.push(Step::Resend(me));
        }
        let gone = !travels && !waits;
        if self.left.turns > 0 && matches!(expected, Message::End { .. }) && (gone || self.version_of(me) >= 2) {
            steps.push(Step::Turn(me));
        }
    }

    fn possible_ends(&self, number: usize, me: u8, steps: &mut Vec<Step>) {
        let writes = &self.clients[number].writes;
        let all = |allowed: &[Write]| writes.iter().all(|write| allowed.contains(write));
        let some = |wanted| writes.contains(&wanted);
        if some(Write::Acked) && all(&[Write::Acked, Write::Unsent]) {
            steps.push(Step::End(me, true));
        }
        // An old client that gives up what is still on its way asks for an epoch before it goes on: here, it does not go on.
        let client = &self.clients[number];
        let is_last = client.transaction + 1 >= self.left.transactions;
        let may_abort = client.version >= 2 || !some(Write::Sent) || is_last;
        if may_abort && !all(&[Write::Unsent]) {
            steps.push(Step::End(me, false));
        }
    }

    /// What comes of a step.
    pub(crate) fn step(&self, step: Step, scenario: &Scenario) -> Transactions {
        let mut next = self.clone();
        match step {
            Step::Hear => {
                let (message, response) = next.answers.remove(0);
                next.hear(message, &response);
            }
            Step::Miss => {
                next.answers.remove(0);
                next.left.losses -= 1;
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
            Step::Timeout => next.time_out(scenario),
            Step::Mark(work) => next.mark(work, scenario),
            Step::MarkLate(work) => next.mark_late(work, scenario),
            Step::Replicate(partition) => next.replicate(partition, scenario),
            Step::MoveLeader(partition, kept) => next.move_leader(partition, kept, scenario),
            Step::CommitOffset | Step::DeleteOffset => next.change_offset(step == Step::DeleteOffset, scenario),
            Step::Init(_)
            | Step::Recover(_)
            | Step::Add(..)
            | Step::Write(..)
            | Step::Rewrite(..)
            | Step::End(..)
            | Step::Resend(_)
            | Step::Turn(_) => next.client_step(step),
        }
        next.follow_up(scenario);
        next.check(scenario);
        next
    }

    fn deliver(&mut self, message: Message, scenario: &Scenario) {
        match message {
            Message::Write { .. } => self.write(message, scenario),
            Message::Verified { partition, guard, code } => self.verified(partition, guard, code, scenario),
            Message::Init { .. } | Message::Add { .. } | Message::End { .. } | Message::Verify { .. } => {
                self.deliver_to_coordinator(message);
            }
        }
    }

    /// What may as well happen at once, and what is nothing any more.
    fn follow_up(&mut self, scenario: &Scenario) {
        loop {
            // An answer that nobody waits for, or that cannot be lost, comes at once.
            while let Some((message, _)) = self.answers.first()
                && (self.left.losses == 0 || !self.is_expected(*message))
            {
                let (message, response) = self.answers.remove(0);
                self.hear(message, &response);
            }
            // Where no leader moves, it makes no difference when its followers have what it has.
            let behind = (0u8..).zip(&self.parts).find(|(_, part)| part.high_watermark < part.log.len());
            match behind.filter(|_| scenario.bounds.leaders == 0).map(|(number, _)| number) {
                Some(number) => self.replicate(number, scenario),
                None => break,
            }
        }
        self.forget();
    }

    /// Drops messages that do nothing, whenever they arrive.
    fn forget(&mut self) {
        if self.left.copies == 0 {
            self.late.clear();
        }
        let waits = |partition: &u8, guard: &u64| self.parts[usize::from(*partition)].waiting.contains_key(guard);
        // The next leader's guards are others.
        for message in self.coordinator.asked.values_mut() {
            if let Message::Verify { partition, guard, .. } = message
                && !waits(partition, guard)
            {
                *guard = 0;
            }
        }
        let kept = self.network.iter().filter_map(|message| match message {
            Message::Verified { partition, guard, .. } => waits(partition, guard).then_some(*message),
            Message::Verify { partition, guard, .. } if waits(partition, guard) => Some(*message),
            // It adds its partition all the same.
            Message::Verify { who, partition, add: true, .. } => {
                Some(Message::Verify { who: *who, partition: *partition, guard: 0, add: true })
            }
            Message::Verify { add: false, .. } => None,
            Message::Write { tag, partition, who, .. } => {
                let is_over = self.clients[usize::from(tag.0)].transaction != tag.1;
                let part = &self.parts[usize::from(*partition)];
                let is_fenced = part.log[..part.high_watermark].iter().any(|entry| match entry {
                    Entry::Data { who: other, .. } | Entry::Marker { who: other, .. } => {
                        other.0 == who.0 && other.1 > who.1
                    }
                    Entry::Plain(_) => false,
                });
                (!is_over || !is_fenced).then_some(*message)
            }
            Message::Init { .. } | Message::Add { .. } | Message::End { .. } => Some(*message),
        });
        self.network = kept.collect();
    }
}
