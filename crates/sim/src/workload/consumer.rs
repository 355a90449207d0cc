//! A member of a group of the next generation (KIP-848): the coordinator says what it has, and it gives back before others get.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail};
use model::{ErrorCode, Uuid};
use protocol::messages::consumer_group_heartbeat_request::TopicPartitions;
use protocol::messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};

use super::group::{Committed, GroupClient, Membership, Positions};
use super::{PAUSE, TOPIC, topics_made};

/// What a member that leaves says instead of its epoch.
const LEAVES: i32 = -1;

/// See the module.
#[derive(Debug)]
pub struct Consumer(pub GroupClient);

impl Consumer {
    /// Takes part for as long as the run lasts.
    pub async fn run(mut self) {
        topics_made(&self.0.history).await;
        while !self.0.is_stopping() {
            if let Err(error) = self.take_part().await {
                tracing::debug!(group = self.0.group, "a member begins anew: {error:#}");
                self.0.forget();
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.0.history.lock().working -= 1;
    }

    /// As one member, until it is none any more.
    async fn take_part(&mut self) -> Result<()> {
        let member_id = Uuid::from_u128(self.0.chance.wide()).to_string();
        let mut member = Membership { member_id, generation: 0, has_epochs: true, instance: None };
        let mut positions = Positions::new();
        while !self.0.is_stopping() {
            self.beat(&mut member, &mut positions).await?;
            let stalls = self.0.chance.one_in(40);
            let ms = if stalls { self.0.chance.between(3_500, 9_000) } else { self.0.chance.between(50, 500) };
            tokio::time::sleep(Duration::from_millis(ms)).await;
            self.0.read_on(&mut positions);
            if !positions.is_empty() && self.commits(&member, &positions).await? {
                return Ok(());
            }
            if self.0.chance.one_in(30) {
                break;
            }
        }
        self.heartbeat(&Membership { generation: LEAVES, ..member }, &positions).await?;
        Ok(())
    }

    /// Whether the member is none any more.
    async fn commits(&mut self, member: &Membership, positions: &Positions) -> Result<bool> {
        Ok(match self.0.commit(member, positions).await? {
            // A stale epoch: the next heartbeat tells the one that it is.
            Committed::Yes | Committed::No(ErrorCode::CoordinatorLoadInProgress | ErrorCode::StaleMemberEpoch) => false,
            Committed::No(_) => true,
        })
    }

    /// A heartbeat, as often as its answer may be lost, and what follows from it.
    async fn beat(&mut self, member: &mut Membership, positions: &mut Positions) -> Result<()> {
        for _ in 0..20 {
            match self.heartbeat(member, positions).await {
                Ok(answer) => match ErrorCode::from_code(answer.error_code) {
                    ErrorCode::None => return self.follow(member, positions, answer).await,
                    ErrorCode::NotCoordinator | ErrorCode::CoordinatorNotAvailable => self.0.forget(),
                    ErrorCode::CoordinatorLoadInProgress => {}
                    code => bail!("a heartbeat is refused with {}", code.name()),
                },
                Err(_) => self.0.forget(),
            }
            tokio::time::sleep(PAUSE * 4).await;
        }
        bail!("no coordinator answers")
    }

    async fn heartbeat(&mut self, member: &Membership, owned: &Positions) -> Result<ConsumerGroupHeartbeatResponse> {
        let coordinator = self.0.coordinator().await?;
        let joins = member.generation == 0;
        let partitions: Vec<i32> = owned.keys().copied().collect();
        let topic = TopicPartitions { topic_id: self.0.client.topic_id, partitions };
        let request = ConsumerGroupHeartbeatRequest {
            group_id: self.0.group.clone(),
            member_id: member.member_id.clone(),
            member_epoch: member.generation,
            rebalance_timeout_ms: if joins { 60_000 } else { -1 },
            subscribed_topic_names: joins.then(|| vec![TOPIC.to_owned()]),
            topic_partitions: Some(if owned.is_empty() { Vec::new() } else { vec![topic] }),
            ..Default::default()
        };
        self.0.client.at(&coordinator, &request).await
    }

    /// What is taken away is committed first, and given back with the next heartbeat; what is given begins where it was left.
    async fn follow(
        &mut self,
        member: &mut Membership,
        positions: &mut Positions,
        answer: ConsumerGroupHeartbeatResponse,
    ) -> Result<()> {
        member.generation = answer.member_epoch;
        let Some(assignment) = answer.assignment else {
            self.0.owns(member, positions.keys());
            return Ok(());
        };
        let given: BTreeSet<i32> =
            assignment.topic_partitions.iter().flat_map(|topic| topic.partitions.clone()).collect();
        if positions.keys().any(|partition| !given.contains(partition)) {
            // Still its own: nobody else has them before it says that it has given them back.
            self.0.commit(member, positions).await?;
            positions.retain(|partition, _| given.contains(partition));
        }
        self.0.owns(member, &given);
        let new: Vec<i32> = given.iter().filter(|partition| !positions.contains_key(partition)).copied().collect();
        if !new.is_empty() {
            positions.extend(self.0.offsets(member, &new).await?);
        }
        Ok(())
    }
}
