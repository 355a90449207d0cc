//! A member of a classic group: joins, is given partitions by whoever leads the group, commits, and sometimes goes, or stands
//! still for longer than its session and goes on as if nothing had been. A static one takes the place of who had its name before,
//! which may still be there and then is fenced (KIP-345).

use std::time::Duration;

use anyhow::{Result, bail};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use model::ErrorCode;
use protocol::messages::join_group_request::JoinGroupRequestProtocol;
use protocol::messages::leave_group_request::MemberIdentity;
use protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use protocol::messages::{
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse,
    SyncGroupRequest, SyncGroupResponse,
};

use super::group::{Committed, GroupClient, Membership, Positions};
use super::{PARTITIONS, PAUSE, topics_made};

const SESSION_MS: i32 = 3_000;
const REBALANCE_MS: i32 = 4_000;
/// A join is answered when all have joined, or their time is over.
const JOIN_TIMEOUT: Duration = Duration::from_secs(12);
/// Its protocol is no client's: nobody but its members reads what they tell each other.
const PROTOCOL: &str = "sim";

/// See the module: how it asks, and the name that it has as a static member.
#[derive(Debug)]
pub struct Classic(pub GroupClient, pub Option<String>);

/// Who to be next: the same member again, or a new one.
type Next = Option<String>;

impl Classic {
    /// Takes part for as long as the run lasts.
    pub async fn run(mut self) {
        topics_made(&self.0.history).await;
        let mut next: Next = None;
        while !self.0.is_stopping() {
            match self.take_part(next.take()).await {
                Ok(who) => next = who,
                Err(error) => {
                    tracing::debug!(group = self.0.group, "a member begins anew: {error:#}");
                    self.0.forget();
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.0.history.lock().working -= 1;
    }

    async fn take_part(&mut self, member_id: Next) -> Result<Next> {
        let joined = self.join(member_id.unwrap_or_default()).await?;
        let (member_id, generation, instance) = (joined.member_id.clone(), joined.generation_id, self.1.clone());
        let member = Membership { member_id, generation, has_epochs: false, instance };
        let Some(partitions) = self.sync(&member, &joined).await? else { return Ok(Some(member.member_id)) };
        self.0.owns(&member, &partitions);
        let mut positions = self.0.offsets(&member, &partitions).await?;
        self.live(&member, &mut positions).await
    }

    async fn join(&mut self, mut member_id: String) -> Result<JoinGroupResponse> {
        loop {
            let coordinator = self.0.coordinator().await?;
            let request = JoinGroupRequest {
                group_id: self.0.group.clone(),
                session_timeout_ms: SESSION_MS,
                rebalance_timeout_ms: REBALANCE_MS,
                member_id,
                group_instance_id: self.1.clone(),
                protocol_type: PROTOCOL.to_owned(),
                protocols: vec![JoinGroupRequestProtocol { name: PROTOCOL.to_owned(), metadata: Bytes::new() }],
                ..Default::default()
            };
            let answer: JoinGroupResponse = self.0.client.at_within(JOIN_TIMEOUT, &coordinator, &request).await?;
            match ErrorCode::from_code(answer.error_code) {
                ErrorCode::None => return Ok(answer),
                ErrorCode::MemberIdRequired => member_id = answer.member_id,
                code => bail!("a join is refused with {}", code.name()),
            }
        }
    }

    /// The partitions of this member; nothing where all have to join again.
    async fn sync(&mut self, member: &Membership, joined: &JoinGroupResponse) -> Result<Option<Vec<i32>>> {
        let assignments = if joined.leader == joined.member_id { assign(joined) } else { Vec::new() };
        let request = SyncGroupRequest {
            group_id: self.0.group.clone(),
            generation_id: member.generation,
            member_id: member.member_id.clone(),
            group_instance_id: self.1.clone(),
            protocol_type: Some(PROTOCOL.to_owned()),
            protocol_name: Some(PROTOCOL.to_owned()),
            assignments,
        };
        let coordinator = self.0.coordinator().await?;
        let answer: SyncGroupResponse = self.0.client.at_within(JOIN_TIMEOUT, &coordinator, &request).await?;
        match ErrorCode::from_code(answer.error_code) {
            ErrorCode::None => Ok(Some(decode(answer.assignment))),
            ErrorCode::RebalanceInProgress => Ok(None),
            code => bail!("a sync is refused with {}", code.name()),
        }
    }

    /// Reads, commits and heartbeats until the group changes.
    async fn live(&mut self, member: &Membership, positions: &mut Positions) -> Result<Next> {
        while !self.0.is_stopping() {
            let stalls = self.0.chance.one_in(40);
            let ms = if stalls { self.0.chance.between(3_500, 9_000) } else { self.0.chance.between(50, 500) };
            tokio::time::sleep(Duration::from_millis(ms)).await;
            self.0.read_on(positions);
            match self.0.commit(member, positions).await? {
                Committed::Yes | Committed::No(ErrorCode::CoordinatorLoadInProgress) => {}
                Committed::No(ErrorCode::RebalanceInProgress) => return Ok(Some(member.member_id.clone())),
                Committed::No(ErrorCode::FencedInstanceId) => return self.give_way().await,
                Committed::No(_) => return Ok(None),
            }
            if self.0.chance.one_in(30) {
                break;
            }
            match self.heartbeat(member).await? {
                ErrorCode::None => {}
                ErrorCode::RebalanceInProgress => return Ok(Some(member.member_id.clone())),
                ErrorCode::FencedInstanceId => return self.give_way().await,
                code => bail!("a heartbeat is refused with {}", code.name()),
            }
        }
        // Mostly a static member that goes says nothing: it comes back.
        if self.1.is_none() || self.0.chance.one_in(4) {
            self.leave(member).await?;
        }
        Ok(None)
    }

    /// Another one has its name, and keeps it for a while.
    async fn give_way(&mut self) -> Result<Next> {
        let ms = self.0.chance.between(500, 6_000);
        tokio::time::sleep(Duration::from_millis(ms)).await;
        self.0.history.lock().step("fenced-instances");
        Ok(None)
    }

    async fn heartbeat(&mut self, member: &Membership) -> Result<ErrorCode> {
        let request = HeartbeatRequest {
            group_id: self.0.group.clone(),
            generation_id: member.generation,
            member_id: member.member_id.clone(),
            group_instance_id: self.1.clone(),
        };
        let coordinator = self.0.coordinator().await?;
        let answer: HeartbeatResponse = self.0.client.at(&coordinator, &request).await?;
        Ok(ErrorCode::from_code(answer.error_code))
    }

    async fn leave(&mut self, member: &Membership) -> Result<()> {
        let (member_id, group_instance_id) = (member.member_id.clone(), self.1.clone());
        let who = MemberIdentity { member_id, group_instance_id, ..Default::default() };
        let request = LeaveGroupRequest { group_id: self.0.group.clone(), members: vec![who], ..Default::default() };
        let coordinator = self.0.coordinator().await?;
        let _: LeaveGroupResponse = self.0.client.at(&coordinator, &request).await?;
        Ok(())
    }
}

/// Each partition to one member, another one in each generation.
fn assign(joined: &JoinGroupResponse) -> Vec<SyncGroupRequestAssignment> {
    let mut members: Vec<&str> = joined.members.iter().map(|member| member.member_id.as_str()).collect();
    members.sort_unstable();
    let count = i32::try_from(members.len()).expect("a few");
    let given = |at: i32| {
        let mut partitions = BytesMut::new();
        let mine = (0..PARTITIONS).filter(|partition| (partition + joined.generation_id).rem_euclid(count) == at);
        mine.for_each(|partition| partitions.put_i32(partition));
        partitions.freeze()
    };
    let one = |(at, member_id): (i32, &str)| SyncGroupRequestAssignment {
        member_id: member_id.to_owned(),
        assignment: given(at),
    };
    (0..).zip(members).map(one).collect()
}

fn decode(mut assignment: Bytes) -> Vec<i32> {
    let mut partitions = Vec::new();
    while assignment.remaining() >= 4 {
        partitions.push(assignment.get_i32());
    }
    partitions
}
