//! How far groups are behind: asked of the replicas here, and of the leaders where there is none.
//!
//! Nothing is computed unless somebody asks. Each question takes the lock of its partitions once, one call to each other
//! leader concerned, and [`READS_MAX`] looks at a disk at most; what is not known by then is said to be unknown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use model::{BrokerId, Offset, Time, TopicPartition};
use rpc::lag::{Behind, LagPeer, POSITIONS_MAX};
use rpc::transactions::Answering;
use storage::BatchTime;

use crate::context::Context;
use crate::partition::{Age, Partition};
use crate::peers::Peers;

/// How long a leader is waited for.
const LEADER_TIMEOUT: Duration = Duration::from_secs(1);
/// Batches that are looked up on disk for one question: the others' turn comes with the next one.
const READS_MAX: usize = 64;

/// Where something is going to be read.
type Position = (TopicPartition, Offset);

/// One answer for each position, in order.
pub(crate) async fn behind(context: &Arc<Context>, peers: &Peers, positions: &[Position]) -> Vec<Behind> {
    let mut answers = behind_here(context, positions).await;
    let image = context.image();
    let mut elsewhere: BTreeMap<BrokerId, Vec<usize>> = BTreeMap::new();
    for (i, (id, _)) in positions.iter().enumerate().filter(|(i, _)| answers[*i].ms.is_none()) {
        if let Some((leader, _)) = image.leader_for(*id).filter(|(leader, _)| *leader != context.config.broker_id) {
            elsewhere.entry(leader).or_default().push(i);
        }
    }
    let asked = elsewhere.into_iter().map(|(leader, which)| async move {
        let which: Vec<usize> = which.into_iter().take(POSITIONS_MAX).collect();
        let asked: Vec<Position> = which.iter().map(|i| positions[*i]).collect();
        let told = match peers.lags(leader) {
            Some(client) => client.behind(&asked, LEADER_TIMEOUT).await.unwrap_or_default(),
            None => Vec::new(),
        };
        which.into_iter().zip(told)
    });
    for (i, told) in join_all(asked).await.into_iter().flatten() {
        if told.records.is_some() {
            answers[i] = told;
        }
    }
    answers
}

/// As far as the replicas here can tell.
async fn behind_here(context: &Arc<Context>, positions: &[Position]) -> Vec<Behind> {
    let (now, wall) = (context.clock.monotonic(), context.clock.wall());
    let mut answers = vec![Behind::default(); positions.len()];
    let mut reads: Vec<(usize, Arc<Partition>, Offset, BatchTime)> = Vec::new();
    for (answer, (i, (id, offset))) in answers.iter_mut().zip(positions.iter().enumerate()) {
        let Some(partition) = context.partition(*id) else { continue };
        let Some((records, age)) = partition.behind(*offset, now) else { continue };
        answer.records = Some(records);
        answer.ms = match age {
            Age::Ms(ms) => Some(ms),
            Age::Timestamp(timestamp) => age_of(timestamp, wall),
            Age::Read(read) => {
                if reads.len() < READS_MAX {
                    reads.push((i, partition, *offset, read));
                }
                None
            }
            Age::Unknown => None,
        };
    }
    if !reads.is_empty() {
        let look = move || {
            let read = |(i, partition, offset, read): (usize, Arc<Partition>, Offset, BatchTime)| {
                (i, partition.look_up(offset, &read))
            };
            reads.into_iter().map(read).collect::<Vec<_>>()
        };
        for (i, timestamp) in context.disk_pool.run(look).await {
            answers[i].ms = timestamp.and_then(|timestamp| age_of(timestamp, wall));
        }
    }
    answers
}

/// None for records without a timestamp; one of the future is of now.
fn age_of(timestamp: i64, wall: Time) -> Option<u64> {
    u64::try_from(timestamp).ok().map(|timestamp| wall.since(Time(timestamp)))
}

/// Answers other brokers.
#[derive(Debug)]
pub(crate) struct PeerLags {
    pub(crate) context: Arc<Context>,
}

impl LagPeer for PeerLags {
    fn behind(&self, positions: Vec<Position>) -> Answering<Vec<Behind>> {
        let context = Arc::clone(&self.context);
        Box::pin(async move { behind_here(&context, &positions).await })
    }
}
