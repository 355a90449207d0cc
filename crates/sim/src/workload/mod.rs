//! The clients, reading order: [`Producer`] (idempotent, acks=all), [`Reader`] and [`StableReader`] (read_committed),
//! [`Classic`] and [`Consumer`] (members of groups of both generations, which commit offsets), [`Transformer`] (consumes,
//! transforms and produces in transactions), [`Auditor`] (looks at the groups' offsets when all others are done), [`Admin`] (moves
//! replicas, changes configs, deletes records).
//!
//! Whoever does not know whether something took effect asks again, or begins anew under another identity: so what was asked for
//! before is refused from then on, and the invariants are strict.

mod producer;
mod reader;
mod stable;

mod classic;
mod consumer;
mod group;

mod admin;
mod auditor;
mod transformer;

use std::time::Duration;

use anyhow::Result;
use model::ErrorCode;
use protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use protocol::messages::{CreateTopicsRequest, CreateTopicsResponse};

use crate::client::Client;
use crate::history::Shared;

pub use admin::Admin;
pub use auditor::Auditor;
pub use classic::Classic;
pub use consumer::Consumer;
pub use group::GroupClient;
pub use producer::Producer;
pub use reader::Reader;
pub use stable::StableReader;
pub use transformer::Transformer;

/// The topic that everybody uses.
pub const TOPIC: &str = "t";
/// Its partitions.
pub const PARTITIONS: i32 = 3;
/// What transactions write to.
pub const OUT: &str = "out";
/// Its partitions.
pub const OUTS: i32 = 2;
/// What is compacted: a few keys are written again and again.
pub const KEYED: &str = "keyed";
/// What may lose what it acknowledged: its leader may be anybody who lives (`R36`), and one replica in sync is enough.
pub const LOOSE: &str = "loose";
/// The group whose offsets are committed in transactions.
pub const TRANSFORM: &str = "transform";
/// Where groups keep their offsets.
pub const OFFSETS: &str = "__consumer_offsets";
/// Where transactions keep their state.
const TRANSACTIONS: &str = "__transaction_state";

const PAUSE: Duration = Duration::from_millis(50);

/// How topics are.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Whether acknowledged records are synced.
    pub synced: bool,
    /// Whether acknowledged records are in two zones.
    pub zoned: bool,
    /// Whether there is [`LOOSE`].
    pub loose: bool,
    /// How old an active segment becomes: short ones are deleted with their records, and compacted. Else nothing of that happens.
    pub segment_ms: Option<u64>,
}

/// Makes the topics, however often that has to be asked. The coordinators' are made here too, because where acknowledged records
/// are synced theirs have to be.
pub async fn create_topics(client: &mut Client, replicas: i16, shape: Shape, history: &Shared) {
    // Whoever starts with a wrong clock believes it.
    let data = [("min.insync.replicas", "2"), ("segment.bytes", "1048576"), ("retention.ms", "-1")];
    let state = [("min.insync.replicas", "2"), ("segment.bytes", "1048576"), ("cleanup.policy", "compact")];
    let plan = [
        (TOPIC, PARTITIONS, data),
        (OUT, OUTS, data),
        (OFFSETS, 2, state),
        (TRANSACTIONS, 2, state),
        (KEYED, 1, state),
    ];
    let segment_ms = shape.segment_ms.map(|ms| ms.to_string());
    for (name, partitions, mut configs) in plan.map(|(name, partitions, configs)| (name, partitions, configs.to_vec()))
    {
        if shape.synced {
            configs.push(("flush.messages", "1"));
        }
        if shape.zoned {
            configs.push(("ottla.ack.rule", "zones=2"));
        }
        if let Some(ms) = &segment_ms {
            configs.push(("segment.ms", ms));
            configs.push(("min.cleanable.dirty.ratio", "0.1"));
        }
        let topic = CreatableTopic {
            name: name.to_owned(),
            num_partitions: partitions,
            replication_factor: replicas,
            configs: configs.into_iter().map(config).collect(),
            ..Default::default()
        };
        create_topic(client, topic, history).await;
    }
    if shape.loose {
        let configs = [("min.insync.replicas", "1"), ("unclean.leader.election.enable", "true")];
        let topic = CreatableTopic {
            name: LOOSE.to_owned(),
            num_partitions: 1,
            replication_factor: replicas,
            configs: configs.into_iter().map(config).collect(),
            ..Default::default()
        };
        create_topic(client, topic, history).await;
    }
    history.lock().has_topics = true;
}

fn config((name, value): (&str, &str)) -> CreatableTopicConfig {
    CreatableTopicConfig { name: name.to_owned(), value: Some(value.to_owned()) }
}

async fn create_topic(client: &mut Client, topic: CreatableTopic, history: &Shared) {
    let request = CreateTopicsRequest { topics: vec![topic], timeout_ms: 3_000, ..Default::default() };
    loop {
        let answer: Result<CreateTopicsResponse> = client.any(&request).await;
        let code = answer.ok().and_then(|answer| Some(ErrorCode::from_code(answer.topics.first()?.error_code)));
        match code {
            Some(ErrorCode::None | ErrorCode::TopicAlreadyExists) => return,
            Some(ErrorCode::InvalidConfig) => history.violation("the topic is not as topics are".to_owned()),
            _ => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until the topics are there.
async fn topics_made(history: &Shared) {
    while !history.lock().has_topics {
        tokio::time::sleep(PAUSE).await;
    }
}
