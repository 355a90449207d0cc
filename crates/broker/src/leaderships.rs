//! Where partitions of the coordinators' topics note that their leadership changed, for the coordinators to act on it.

use std::sync::{Mutex, PoisonError};

use model::TopicPartition;
use tokio::sync::Notify;

/// A board for each topic.
#[derive(Debug)]
pub(crate) struct Leaderships {
    boards: Vec<(&'static str, LeadershipBoard)>,
}

/// The changes of one topic's partitions that nobody has taken yet.
#[derive(Debug, Default)]
pub(crate) struct LeadershipBoard {
    noted: Mutex<Vec<(TopicPartition, bool)>>,
    moved: Notify,
}

impl Leaderships {
    pub(crate) fn new(topics: &[&'static str]) -> Leaderships {
        Leaderships { boards: topics.iter().map(|topic| (*topic, LeadershipBoard::default())).collect() }
    }

    /// The board of a topic; None for topics that no coordinator keeps anything in.
    pub(crate) fn of(&self, topic: &str) -> Option<&LeadershipBoard> {
        self.boards.iter().find(|(name, _)| *name == topic).map(|(_, board)| board)
    }
}

impl LeadershipBoard {
    /// The partition began or ceased to be led here.
    pub(crate) fn note(&self, partition: TopicPartition, leads: bool) {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).push((partition, leads));
        self.moved.notify_one();
    }

    /// Returns when something was noted since the last return.
    pub(crate) async fn moved(&self) {
        self.moved.notified().await;
    }

    /// What was noted, in order.
    pub(crate) fn take(&self) -> Vec<(TopicPartition, bool)> {
        std::mem::take(&mut self.noted.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
