//! The clients: what each hears, and does then. One of version 2 adds its partitions by writing (KIP-890).

use coordinator::transaction::request::Producer;
use coordinator::transaction::{Status, TransactionResponse};
use model::ErrorCode;

use super::world::{Client, Message, Step, Transactions, Violation, Who, Write, who};

impl Transactions {
    /// A client asks.
    pub(crate) fn client_step(&mut self, step: Step) {
        let message = match step {
            Step::Init(me) => Message::Init { client: me, expected: None },
            Step::Recover(me) => {
                self.left.recoveries -= 1;
                Message::Init { client: me, expected: self.clients[usize::from(me)].who }
            }
            Step::Add(me, partition) => Message::Add { client: me, partition, who: self.holder(me) },
            Step::End(me, commit) => {
                Message::End { tag: (me, self.clients[usize::from(me)].transaction), commit, who: self.holder(me) }
            }
            Step::Turn(me) => {
                self.left.turns -= 1;
                match self.clients[usize::from(me)].expecting {
                    Some(Message::End { tag, commit, who }) => Message::End { tag, commit: !commit, who },
                    _ => unreachable!("it ends its transaction"),
                }
            }
            Step::Resend(me) => {
                let expected = self.clients[usize::from(me)].expecting.expect("it waits");
                if self.coordinator.asked.values().any(|asked| *asked == expected) {
                    self.left.copies -= 1;
                }
                expected
            }
            Step::Write(me, partition) | Step::Rewrite(me, partition) => {
                if matches!(step, Step::Rewrite(..)) && !self.is_lost(me, partition) {
                    self.left.copies -= 1;
                }
                return self.send_record(me, partition);
            }
            _ => return,
        };
        if let Some(me) = client_of(message) {
            self.clients[usize::from(me)].expecting = Some(message);
            self.network.insert(message);
        }
    }

    fn holder(&self, client: u8) -> Who {
        self.clients[usize::from(client)].who.expect("it has an id")
    }

    fn send_record(&mut self, me: u8, partition: u8) {
        let who = self.holder(me);
        let counts = self.parts[usize::from(partition)].group.is_none();
        let client = &mut self.clients[usize::from(me)];
        client.writes[usize::from(partition)] = Write::Sent;
        let sequence = if counts { client.sequences[usize::from(partition)] } else { -1 };
        self.network.insert(Message::Write { tag: (me, client.transaction), partition, who, sequence });
    }

    /// Whether the client's record is nowhere: it was cut off, or refused without a word.
    pub(crate) fn is_lost(&self, client: u8, partition: u8) -> bool {
        let part = &self.parts[usize::from(partition)];
        let transaction = self.clients[usize::from(client)].transaction;
        let same = |message: &Message| is_write(message, (client, transaction), partition);
        let waits = part.waiting.values().flatten().any(same);
        let stands = part.records().any(|(_, tag)| tag == (client, transaction));
        !self.network.iter().any(same) && !waits && !stands
    }

    /// A record is refused.
    pub(crate) fn refused(&mut self, message: Message, error: ErrorCode) {
        let Message::Write { tag, partition, .. } = message else { return };
        let client = &mut self.clients[usize::from(tag.0)];
        let write = &mut client.writes[usize::from(partition)];
        if client.transaction != tag.1 || *write != Write::Sent {
            return;
        }
        match error {
            error if is_retriable(error) => *write = Write::Unsent,
            ErrorCode::InvalidProducerEpoch | ErrorCode::ProducerFenced | ErrorCode::InvalidProducerIdMapping => {
                client.stopped = true;
            }
            // The transaction is to be aborted.
            _ => *write = Write::Refused,
        }
    }

    /// Whether a client waits for the answer to this.
    pub(crate) fn is_expected(&self, message: Message) -> bool {
        client_of(message).is_some_and(|me| self.clients[usize::from(me)].expecting == Some(message))
    }

    /// A client hears an answer.
    pub(crate) fn hear(&mut self, message: Message, response: &TransactionResponse) {
        let Some(me) = client_of(message).filter(|_| self.is_expected(message)) else { return };
        let (error, given) = match response {
            TransactionResponse::InitProducerId(granted) => (granted.error, granted.producer),
            TransactionResponse::EndTransaction(ended) => (ended.error, ended.producer),
            TransactionResponse::AddPartitions(added) => {
                let error = added.partitions.first().map_or(ErrorCode::UnknownServerError, |(_, _, error)| *error);
                (error, Producer::NONE)
            }
            TransactionResponse::Describe(_) | TransactionResponse::List(_) => return,
        };
        if let Message::End { tag, commit, who } = message {
            self.judge(tag, commit, who, error);
        }
        let client = &mut self.clients[usize::from(me)];
        let given = Some(who(given)).filter(|who| who.0 >= 0);
        match (error, message) {
            (ErrorCode::None, Message::Add { partition, .. }) => client.added[usize::from(partition)] = true,
            (ErrorCode::None, _) => client.begin(given),
            // An end is asked for again until its outcome is known.
            (error, Message::End { .. }) if is_retriable(error) => return,
            (error, _) if is_retriable(error) => {}
            _ => client.stopped = true,
        }
        client.expecting = None;
    }

    /// Whether what a client is told of its transaction is so (`R51`).
    fn judge(&mut self, tag: (u8, u8), commit: bool, who: Who, error: ErrorCode) {
        let decided = self.decided.get(&tag).copied();
        let text =
            || format!("{tag:?}, commit {commit}: {error:?}; decided {decided:?}; the log has {:?}", self.stored());
        if error == ErrorCode::None && decided != Some(commit) {
            let text = text();
            return self.violate(Violation::ToldWrong(text));
        }
        // Also where a timeout was faster (R48): of version 2, one that aborts then is told its next epoch.
        let is_own = decided == Some(commit) && self.is_last(tag, who);
        if error == ErrorCode::None || is_retriable(error) || !is_own {
            return;
        }
        let text = text();
        self.violate(Violation::RepeatRefused(text));
    }

    /// Whether the coordinator's log ends with this producer's own transaction.
    fn is_last(&self, tag: (u8, u8), (id, epoch): Who) -> bool {
        let Some(known) = self.stored() else { return false };
        let completed = matches!(known.status, Status::CompleteCommit | Status::CompleteAbort);
        let (producer_id, producer_epoch) = (known.producer_id.0, known.producer_epoch.0);
        let same = producer_id == id && producer_epoch == epoch;
        // In the last epoch of all, which only a fence or a timeout leaves in force, nobody goes on.
        let next = producer_id == id && producer_epoch == epoch.saturating_add(1) && producer_epoch < i16::MAX;
        // A new id follows the last epoch but one; who has an earlier one was fenced before.
        let brought = known.previous_producer_id.0 == id && producer_id != id && epoch == i16::MAX - 1;
        completed && if self.version_of(tag.0) >= 2 { next || brought } else { same }
    }
}

/// Who waits for the coordinator's answer to this.
fn client_of(message: Message) -> Option<u8> {
    match message {
        Message::Init { client, .. } | Message::Add { client, .. } => Some(client),
        Message::End { tag, .. } => Some(tag.0),
        Message::Write { .. } | Message::Verify { .. } | Message::Verified { .. } => None,
    }
}

pub(crate) fn is_write(message: &Message, of: (u8, u8), to: u8) -> bool {
    matches!(message, Message::Write { tag, partition, .. } if *tag == of && *partition == to)
}

fn is_retriable(error: ErrorCode) -> bool {
    matches!(
        error,
        ErrorCode::ConcurrentTransactions
            | ErrorCode::NotCoordinator
            | ErrorCode::CoordinatorNotAvailable
            | ErrorCode::CoordinatorLoadInProgress
    )
}

impl Client {
    /// The next transaction, in another epoch where there is one.
    fn begin(&mut self, given: Option<Who>) {
        // Before KIP-890 a refused record may still be taken for one of the next transaction: such a client goes no further.
        self.stopped = self.version < 2 && self.writes.contains(&Write::Refused);
        self.transaction += u8::from(self.who.is_some());
        self.added.fill(false);
        self.writes.fill(Write::Unsent);
        if let Some(who) = given.filter(|given| self.who != Some(*given)) {
            self.who = Some(who);
            self.sequences.fill(0);
        }
    }
}
