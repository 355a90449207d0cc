//! Which states are the same: those that will do the same for ever. A guard only names a verification: it counts by its
//! rank among those of its leader that are still waited for. Times do not count, as time stands still.
//!
//! What is not looked at follows from what is: a producer table from its log, the high watermark and the guards in force; a
//! shard of transactions from what is committed, what is in flight and whose request that is, and the markers that are
//! wanted (a decision is a function of these); a shard of groups from its log and what is asked of it.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash, Hasher};

use coordinator::transaction::TransactionMetadata;
use model::{ProducerEpoch, ProducerId, Rules, Time};
use replication::producers::VerificationGuard;

use super::world::{Message, Part, Transactions};

impl Hash for Transactions {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash_coordinator(state);
        self.parts.iter().for_each(|part| part.hash_into(state));
        self.network.iter().for_each(|message| self.renamed(*message).hash(state));
        self.answers.hash(state);
        self.clients.hash(state);
        (&self.works, &self.late, self.next_producer_id).hash(state);
        (&self.decided, &self.doomed, self.left, &self.violation).hash(state);
    }
}

impl PartialEq for Transactions {
    fn eq(&self, other: &Self) -> bool {
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        hasher.hash_one(self) == hasher.hash_one(other)
    }
}

impl Transactions {
    fn hash_coordinator(&self, state: &mut impl Hasher) {
        let coordinator = &self.coordinator;
        let committed = coordinator.shard.state().get(super::world::ID);
        (coordinator.epoch, coordinator.stored.as_ref().map(timeless), committed.map(timeless)).hash(state);
        if let Some(in_flight) = &coordinator.in_flight {
            (timeless(&in_flight.next), in_flight.cause.map(|cause| self.renamed(cause))).hash(state);
        }
        coordinator.asked.values().for_each(|message| self.renamed(*message).hash(state));
    }

    /// A message with its guard's rank instead of the guard.
    fn renamed(&self, message: Message) -> Message {
        let rank = |partition: u8, guard: u64| {
            let waiting = &self.parts[usize::from(partition)].waiting;
            let rank = waiting.keys().position(|known| *known == guard);
            rank.map_or(0, |rank| u64::try_from(rank).unwrap_or(u64::MAX).saturating_add(1))
        };
        match message {
            Message::Verify { who, partition, guard, add } => {
                Message::Verify { who, partition, guard: rank(partition, guard), add }
            }
            Message::Verified { partition, guard, code } => {
                Message::Verified { partition, guard: rank(partition, guard), code }
            }
            Message::Init { .. } | Message::Add { .. } | Message::End { .. } | Message::Write { .. } => message,
        }
    }
}

impl Part {
    fn hash_into(&self, state: &mut impl Hasher) {
        (&self.log, self.high_watermark, self.leadership).hash(state);
        for (guard, messages) in &self.waiting {
            messages.hash(state);
            self.is_guarded(*guard, messages).hash(state);
        }
        if let Some(group) = &self.group {
            group.asked.hash(state);
            group.in_flight.values().for_each(|end| end.hash(state));
        }
    }

    /// Whether no marker came since this verification began, as far as it matters.
    fn is_guarded(&self, guard: u64, messages: &[Message]) -> bool {
        messages.iter().all(|message| {
            let Message::Write { who, .. } = message else { return false };
            let guard = Some(VerificationGuard::of_number(guard));
            self.table.check_verified(ProducerId(who.0), ProducerEpoch(who.1), guard, Rules::all()).is_ok()
        })
    }
}

fn timeless(metadata: &TransactionMetadata) -> TransactionMetadata {
    TransactionMetadata { updated: Time(0), ..metadata.clone() }
}
