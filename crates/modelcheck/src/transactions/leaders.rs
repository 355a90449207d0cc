//! The leaders of partitions: what `broker::partition::transactions` and `broker::markers` do.

use model::{EndMarker, ErrorCode, Offset, ProducerEpoch, ProducerId, Rules, Time};
use replication::producers::{BatchKind, MarkerClaim, ProducerBatch, ProducerTable, SequenceCheck, VerificationGuard};

use super::Scenario;
use super::world::{Entry, Message, Part, Transactions, Violation, Who, Work, Write};

pub(crate) fn offset(at: usize) -> Offset {
    Offset(i64::try_from(at).expect("a short log"))
}

/// What the table is to hear of an entry at `at`.
fn batch(at: usize, entry: Entry) -> Option<ProducerBatch> {
    let (who, sequence, kind) = match entry {
        Entry::Data { who, sequence, .. } => (who, sequence, BatchKind::Transactional),
        Entry::Marker { who, commit, coordinator_epoch } => {
            (who, -1, BatchKind::Marker(EndMarker { commit, coordinator_epoch }))
        }
        Entry::Plain(_) => return None,
    };
    Some(ProducerBatch {
        producer_id: ProducerId(who.0),
        producer_epoch: ProducerEpoch(who.1),
        first_sequence: sequence,
        last_sequence: sequence,
        base_offset: offset(at),
        last_offset: offset(at),
        timestamp: Time(1),
        kind,
    })
}

/// What to do with a record.
enum Checked {
    Append,
    /// It stands there already.
    Duplicate,
    Unverified,
}

impl Part {
    /// The table hears of what stands at `at`.
    fn note(&mut self, at: usize, entry: Entry) {
        if let Some(batch) = batch(at, entry) {
            // Whether it is in the index of aborted ones is the log's business.
            let _ = self.table.append(&batch);
        }
    }

    fn stabilise(&mut self) {
        self.table.stabilise(offset(self.high_watermark));
    }

    pub(crate) fn append(&mut self, entry: Entry) -> usize {
        let at = self.log.len();
        self.log.push(entry);
        self.note(at, entry);
        at
    }

    /// As a partition does before it appends.
    fn check(&self, entry: Entry, guard: Option<u64>, rules: Rules) -> Result<Checked, ErrorCode> {
        let batch = batch(self.log.len(), entry).expect("a producer's");
        if let SequenceCheck::Duplicate { .. } = self.table.check(&batch, rules)? {
            return Ok(Checked::Duplicate);
        }
        let guard = guard.map(VerificationGuard::of_number);
        match self.table.check_verified(batch.producer_id, batch.producer_epoch, guard, rules) {
            Ok(()) => Ok(Checked::Append),
            // The coordinator has not been asked yet.
            Err(_) if guard.is_none() => Ok(Checked::Unverified),
            Err(error) => Err(error),
        }
    }

    /// As a partition does before it ends a transaction.
    pub(crate) fn check_marker(&self, work: &Work, rules: Rules) -> Result<(), ErrorCode> {
        let claim = MarkerClaim {
            producer_id: ProducerId(work.who.0),
            producer_epoch: ProducerEpoch(work.who.1),
            coordinator_epoch: work.coordinator_epoch,
            transaction_version: i8::try_from(work.version).expect("a version"),
        };
        self.table.check_marker(&claim, rules)
    }

    /// Another leader has what is below `end`.
    fn lead_anew(&mut self, end: usize) {
        self.log.truncate(end);
        self.leadership += 1;
        self.waiting.clear();
        self.table = ProducerTable::default();
        for (at, entry) in self.log.clone().into_iter().enumerate() {
            self.note(at, entry);
        }
        self.stabilise();
    }
}

impl Transactions {
    pub(crate) fn part(&mut self, partition: u8) -> &mut Part {
        &mut self.parts[usize::from(partition)]
    }

    /// A record arrives.
    pub(crate) fn write(&mut self, message: Message, scenario: &Scenario) {
        let Message::Write { who, partition, tag, .. } = message else { return };
        if self.part(partition).group.is_some() {
            return self.write_offset(message, scenario);
        }
        let entry = entry_of(message);
        let part = self.part(partition);
        // What comes after one that waits stands in its line.
        if let Some(line) = part.waiting.values_mut().find(|line| line.iter().any(|waits| who_of(*waits) == Some(who)))
        {
            if !line.contains(&message) {
                line.push(message);
            }
            return;
        }
        match part.check(entry, None, scenario.rules) {
            Ok(Checked::Duplicate) => self.replicated(partition),
            Ok(Checked::Append) => {
                part.append(entry);
            }
            Err(error) => self.refused(message, error),
            Ok(Checked::Unverified) => self.verify(partition, who, vec![message], self.version_of(tag.0) >= 2),
        }
    }

    /// Asks the coordinator before what waits is appended (`R50`).
    pub(crate) fn verify(&mut self, partition: u8, who: Who, line: Vec<Message>, add: bool) {
        let part = self.part(partition);
        let guard = part.table.start_verification(ProducerId(who.0)).number();
        part.waiting.insert(guard, line);
        self.network.insert(Message::Verify { who, partition, guard, add });
    }

    /// The coordinator has answered.
    pub(crate) fn verified(&mut self, partition: u8, guard: u64, code: i16, scenario: &Scenario) {
        let Some(line) = self.part(partition).waiting.remove(&guard) else { return };
        let Some(Message::Write { who, tag, .. }) = line.first().copied() else { return };
        let (id, word) = (ProducerId(who.0), ErrorCode::from_code(code));
        let add = self.version_of(tag.0) >= 2;
        if word == ErrorCode::ConcurrentTransactions && add {
            // The marker that is awaited voids what was asked before it.
            self.part(partition).table.end_verification(id, VerificationGuard::of_number(guard));
            return self.verify(partition, who, line, add);
        }
        for message in line {
            if word != ErrorCode::None {
                self.happened.unverified += 1;
                self.refused(message, word);
            } else if self.part(partition).group.is_some() {
                self.append_offset(message, Some(guard), scenario);
            } else {
                self.append_verified(message, guard, scenario.rules);
            }
        }
        self.part(partition).table.end_verification(id, VerificationGuard::of_number(guard));
    }

    fn append_verified(&mut self, message: Message, guard: u64, rules: Rules) {
        let Message::Write { partition, .. } = message else { return };
        let entry = entry_of(message);
        let part = self.part(partition);
        match part.check(entry, Some(guard), rules) {
            Ok(Checked::Duplicate) => self.replicated(partition),
            Ok(Checked::Append) => {
                part.append(entry);
            }
            Ok(Checked::Unverified) => unreachable!("it has a guard"),
            Err(error) => {
                self.happened.unverified += 1;
                self.refused(message, error);
            }
        }
    }

    /// Tries a marker once.
    pub(crate) fn mark(&mut self, work: Work, scenario: &Scenario) {
        if self.part(work.partition).group.is_some() {
            return self.mark_offsets(work, false, scenario);
        }
        match self.append_marker(work, scenario.rules) {
            Ok(at) => {
                self.works.insert(work, Some(at));
            }
            Err(error) => self.never_ends(work, error),
        }
    }

    pub(crate) fn never_ends(&mut self, work: Work, error: ErrorCode) {
        let text = format!("{work:?} is refused with {error:?} at {:?}", self.part(work.partition).log);
        self.violate(Violation::NeverEnds(text));
    }

    /// A copy of a marker arrives for whom nobody waits.
    pub(crate) fn mark_late(&mut self, work: Work, scenario: &Scenario) {
        self.left.copies -= 1;
        self.late.remove(&work);
        if self.part(work.partition).group.is_some() {
            self.mark_offsets(work, true, scenario);
        } else {
            let _ = self.append_marker(work, scenario.rules);
        }
    }

    pub(crate) fn append_marker(&mut self, work: Work, rules: Rules) -> Result<usize, ErrorCode> {
        let part = self.part(work.partition);
        part.check_marker(&work, rules)?;
        let Work { who, commit, coordinator_epoch, .. } = work;
        Ok(part.append(Entry::Marker { who, commit, coordinator_epoch }))
    }

    /// All in-sync replicas have all of it.
    pub(crate) fn replicate(&mut self, partition: u8, scenario: &Scenario) {
        let part = self.part(partition);
        part.high_watermark = part.log.len();
        part.stabilise();
        self.replicated(partition);
        if self.part(partition).group.is_some() {
            return self.replicate_offsets(partition, scenario);
        }
        let covered = |(work, stands): &(&Work, &Option<usize>)| work.partition == partition && stands.is_some();
        let done: Vec<Work> = self.works.iter().filter(covered).map(|(work, _)| *work).collect();
        done.into_iter().for_each(|work| self.written(work));
    }

    /// Clients hear of their records below the high watermark.
    fn replicated(&mut self, partition: u8) {
        let at = usize::from(partition);
        let part = &self.parts[at];
        for entry in &part.log[..part.high_watermark] {
            let Entry::Data { tag, .. } = entry else { continue };
            let client = &mut self.clients[usize::from(tag.0)];
            if client.transaction == tag.1 && client.writes[at] == Write::Sent {
                client.writes[at] = Write::Acked;
                client.sequences[at] += 1;
            }
        }
    }

    /// Another one leads the partition; what was not replicated is there, or not.
    pub(crate) fn move_leader(&mut self, partition: u8, kept: bool, scenario: &Scenario) {
        self.left.leaders -= 1;
        if self.part(partition).group.is_some() {
            self.unload_group(partition, scenario);
        }
        let part = self.part(partition);
        let end = if kept { part.log.len() } else { part.high_watermark };
        let cut = part.log.len() - end;
        part.lead_anew(end);
        let high_watermark = part.high_watermark;
        self.happened.cut += u64::try_from(cut).unwrap_or(0);
        for (work, stands) in &mut self.works {
            // Who asked hears that the leadership ended, and asks the next leader.
            if work.partition == partition && stands.is_some_and(|at| at >= high_watermark) {
                *stands = None;
            }
        }
        if self.part(partition).group.is_some() {
            // It is loaded once the high watermark covers its log.
            self.replicate(partition, scenario);
            self.load_group(partition, scenario);
        }
    }
}

pub(crate) fn entry_of(message: Message) -> Entry {
    match message {
        Message::Write { who, sequence, tag, .. } => Entry::Data { who, sequence, tag },
        _ => unreachable!("only records are appended"),
    }
}

fn who_of(message: Message) -> Option<Who> {
    match message {
        Message::Write { who, .. } => Some(who),
        _ => None,
    }
}
