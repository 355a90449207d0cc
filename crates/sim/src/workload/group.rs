//! What members of groups of both generations have in common: they commit offsets, and are told those that are committed.

use anyhow::{Context, Result, ensure};
use model::ErrorCode;
use protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use protocol::messages::{OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse};
use std::collections::BTreeMap;

use super::{PARTITIONS, TOPIC};
use crate::chance::Chance;
use crate::client::{Client, Coordinated};
use crate::history::Shared;

/// See the module.
#[derive(Debug)]
pub struct GroupClient {
    /// Which group.
    pub group: String,
    /// How it asks.
    pub client: Client,
    /// Its chance.
    pub chance: Chance,
    /// What it did.
    pub history: Shared,
}

/// Who a member is at a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Membership {
    /// Its identity; empty of who is no member.
    pub(super) member_id: String,
    /// Its generation, or its member epoch.
    pub(super) generation: i32,
    /// Whether the group is one of KIP-848.
    pub(super) has_epochs: bool,
    /// Of a static member: who has this takes the place, the generation and the partitions of who had it before (KIP-345).
    pub(super) instance: Option<String>,
}

impl Membership {
    /// Who has what the member has.
    fn owner(&self) -> &str {
        self.instance.as_deref().unwrap_or(&self.member_id)
    }
}

/// Up to where a member is, by partition.
pub(super) type Positions = BTreeMap<i32, i64>;

/// What a commit came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Committed {
    /// It is committed.
    Yes,
    /// It is not, and never will be; the member goes on as that says.
    No(ErrorCode),
}

impl GroupClient {
    /// Asks the group's coordinator for the offsets of `partitions`. Each has to be as high as any that was acknowledged to this
    /// generation or one before.
    pub(super) async fn offsets(&mut self, member: &Membership, partitions: &[i32]) -> Result<Positions> {
        let (group, generation) = (self.group.clone(), member.generation);
        let floors: Vec<i64> = {
            let history = self.history.lock();
            partitions.iter().map(|at| history.offsets.floor(&group, *at, generation)).collect()
        };
        let told = self.ask_offsets(member, partitions).await?;
        let mut history = self.history.lock();
        for (partition, floor) in partitions.iter().zip(floors) {
            let offset = *told.get(partition).context("a partition is missing")?;
            let found = history.offsets.told((&group, *partition, generation), floor, offset);
            history.violations.extend(found);
        }
        // Nobody has committed an offset: from the beginning.
        Ok(told.into_iter().map(|(partition, offset)| (partition, offset.max(0))).collect())
    }

    async fn ask_offsets(&mut self, member: &Membership, partitions: &[i32]) -> Result<Positions> {
        let topic = OffsetFetchRequestTopics {
            name: TOPIC.to_owned(),
            topic_id: self.client.topic_id,
            partition_indexes: partitions.to_vec(),
        };
        let asked = OffsetFetchRequestGroup {
            group_id: self.group.clone(),
            member_id: member.has_epochs.then(|| member.member_id.clone()),
            member_epoch: if member.has_epochs { member.generation } else { -1 },
            topics: Some(vec![topic]),
        };
        let request = OffsetFetchRequest { groups: vec![asked], require_stable: true, ..Default::default() };
        let coordinator = self.client.coordinator(Coordinated::Group, &self.group).await?;
        let answer: OffsetFetchResponse = self.client.at(&coordinator, &request).await?;
        let group = answer.groups.into_iter().next().context("no group")?;
        ensure!(group.error_code == 0, "offsets are refused with {}", group.error_code);
        let topic = group.topics.into_iter().next().context("no topic")?;
        let refused = topic.partitions.iter().find(|partition| partition.error_code != 0);
        ensure!(refused.is_none(), "offsets are refused: {refused:?}");
        Ok(topic.partitions.iter().map(|partition| (partition.partition_index, partition.committed_offset)).collect())
    }

    /// Commits positions.
    ///
    /// # Errors
    /// Whether they are committed, or will be, is unknown: the member must not commit under this identity any more.
    pub(super) async fn commit(&mut self, member: &Membership, positions: &Positions) -> Result<Committed> {
        let partition = |(index, offset): (&i32, &i64)| OffsetCommitRequestPartition {
            partition_index: *index,
            committed_offset: *offset,
            committed_leader_epoch: -1,
            committed_metadata: Some(String::new()),
        };
        let topic = OffsetCommitRequestTopic {
            name: TOPIC.to_owned(),
            topic_id: self.client.topic_id,
            partitions: positions.iter().map(partition).collect(),
        };
        let request = OffsetCommitRequest {
            group_id: self.group.clone(),
            generation_id_or_member_epoch: member.generation,
            member_id: member.member_id.clone(),
            group_instance_id: member.instance.clone(),
            topics: vec![topic],
            ..Default::default()
        };
        let coordinator = self.client.coordinator(Coordinated::Group, &self.group).await?;
        let answer: OffsetCommitResponse = self.client.at(&coordinator, &request).await?;
        let topic = answer.topics.into_iter().next().context("no topic")?;
        let codes: Vec<(i32, ErrorCode)> =
            topic.partitions.iter().map(|p| (p.partition_index, ErrorCode::from_code(p.error_code))).collect();
        self.note_commit(member, positions, &codes);
        match codes.iter().map(|(_, code)| *code).find(|code| *code != ErrorCode::None) {
            None => Ok(Committed::Yes),
            Some(code) => {
                ensure!(is_certain(code), "a commit ended with {}", code.name());
                Ok(Committed::No(code))
            }
        }
    }

    fn note_commit(&self, member: &Membership, positions: &Positions, codes: &[(i32, ErrorCode)]) {
        let mut history = self.history.lock();
        for (partition, code) in codes {
            if let (ErrorCode::None, Some(offset)) = (code, positions.get(partition)) {
                history.offsets.acknowledged((&self.group, *partition, member.generation), *offset);
                history.step(&self.group);
            } else {
                *history.errors.entry(code.code()).or_default() += 1;
            }
        }
    }

    /// The member has these partitions in this generation: nobody else may.
    pub(super) fn owns<'a>(&self, member: &Membership, partitions: impl IntoIterator<Item = &'a i32>) {
        let mut history = self.history.lock();
        for partition in partitions {
            let at = (self.group.as_str(), member.generation, *partition);
            let found = history.owners.claim(at, member.owner());
            history.violations.extend(found);
        }
    }

    /// Goes on a little in each partition, as far as there is something to read.
    pub(super) fn read_on(&mut self, positions: &mut Positions) {
        for (partition, position) in positions {
            let end = self.history.lock().positions.get(partition).copied().unwrap_or(0);
            let step = i64::try_from(self.chance.between(1, 20)).expect("below 20");
            *position = (*position + step).min(end).max(*position);
        }
    }

    /// Whoever was told to coordinate the group does not.
    pub(super) fn forget(&mut self) {
        self.client.forget_coordinator(Coordinated::Group, &self.group);
    }

    /// The coordinator, and the topic's identity, which it is asked with.
    pub(super) async fn coordinator(&mut self) -> Result<String> {
        if self.client.topic_id.is_nil() {
            self.client.leader(TOPIC, PARTITIONS - 1).await?;
        }
        self.client.coordinator(Coordinated::Group, &self.group).await
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.history.lock().stopping
    }
}

/// Whether a commit that was answered so has no effect, now or later.
fn is_certain(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::IllegalGeneration
            | ErrorCode::UnknownMemberId
            | ErrorCode::FencedMemberEpoch
            | ErrorCode::FencedInstanceId
            | ErrorCode::StaleMemberEpoch
            | ErrorCode::RebalanceInProgress
            | ErrorCode::CoordinatorLoadInProgress
    )
}
