//! `ottla group describe`: a group of either protocol, who reads what in it, and how far behind it is.
//!
//! Each protocol has a request of its own, and the coordinator answers the other one as if there were no such group.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use model::ErrorCode;
use protocol::messages::{
    ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse, ConsumerProtocolAssignment, DescribeGroupsRequest,
    DescribeGroupsResponse, consumer_group_describe_response as consumer, describe_groups_response as classic,
};
use protocol::{ApiKey, Decoder, Message};
use serde_json::{Value, json};

use super::super::output::{Output, object};
use super::super::partitions::{LATEST, list_offsets};
use super::{Committed, ask, committed};
use crate::kafka_client::{KafkaClient, check};

/// A topic and the index of a partition.
type Place = (String, i32);

/// A group of either protocol.
#[derive(Debug)]
struct Described {
    /// `classic` or `consumer`.
    protocol: &'static str,
    state: String,
    assignor: String,
    /// Of the group and of its assignment; classic groups have none.
    epochs: Option<(i32, i32)>,
    members: Vec<Member>,
    /// Who each partition is assigned to.
    owners: BTreeMap<Place, String>,
}

#[derive(Debug)]
struct Member {
    id: String,
    client: String,
    host: String,
    instance: Option<String>,
    /// `classic` or `consumer`: a group that is being moved to another protocol has members of both.
    protocol: &'static str,
    epoch: Option<i32>,
}

const CLASSIC: &str = "classic";
const CONSUMER: &str = "consumer";
/// What ConsumerGroupDescribe calls a member that speaks the classic protocol.
const CLASSIC_MEMBER: i8 = 0;

async fn find(client: &mut KafkaClient, address: &str, group: &str) -> Result<Described> {
    if let Some(found) = classic_group(client, group).await? {
        return Ok(found);
    }
    if client.serves(address, ApiKey::ConsumerGroupDescribe).await?
        && let Some(found) = consumer_group(client, group).await?
    {
        return Ok(found);
    }
    bail!("there is no group {group}; `ottla group list` shows those there are");
}

async fn classic_group(client: &mut KafkaClient, group: &str) -> Result<Option<Described>> {
    let request = DescribeGroupsRequest { groups: vec![group.to_owned()], include_authorized_operations: false };
    let code = |answer: &DescribeGroupsResponse| answer.groups.first().map(|group| group.error_code);
    let answer = ask(client, group, &request, code).await?;
    let found = answer.groups.into_iter().next().context("DescribeGroups answered nothing")?;
    if ErrorCode::from_code(found.error_code) == ErrorCode::GroupIdNotFound || found.group_state == "Dead" {
        return Ok(None);
    }
    check(found.error_code)?;
    let owners = classic_owners(&found);
    let member = |member: classic::DescribedGroupMember| Member {
        id: member.member_id,
        client: member.client_id,
        host: member.client_host,
        instance: member.group_instance_id,
        protocol: CLASSIC,
        epoch: None,
    };
    Ok(Some(Described {
        protocol: CLASSIC,
        state: found.group_state,
        assignor: found.protocol_data,
        epochs: None,
        members: found.members.into_iter().map(member).collect(),
        owners,
    }))
}

async fn consumer_group(client: &mut KafkaClient, group: &str) -> Result<Option<Described>> {
    let request =
        ConsumerGroupDescribeRequest { group_ids: vec![group.to_owned()], include_authorized_operations: false };
    let code = |answer: &ConsumerGroupDescribeResponse| answer.groups.first().map(|group| group.error_code);
    let answer = ask(client, group, &request, code).await?;
    let found = answer.groups.into_iter().next().context("ConsumerGroupDescribe answered nothing")?;
    if ErrorCode::from_code(found.error_code) == ErrorCode::GroupIdNotFound {
        return Ok(None);
    }
    check(found.error_code)?;
    let mut owners = BTreeMap::new();
    for member in &found.members {
        for topic in &member.assignment.topic_partitions {
            let place = |partition: &i32| ((topic.topic_name.clone(), *partition), member.member_id.clone());
            owners.extend(topic.partitions.iter().map(place));
        }
    }
    let member = |member: consumer::Member| Member {
        id: member.member_id,
        client: member.client_id,
        host: member.client_host,
        instance: member.instance_id,
        protocol: if member.member_type == CLASSIC_MEMBER { CLASSIC } else { CONSUMER },
        epoch: Some(member.member_epoch),
    };
    Ok(Some(Described {
        protocol: CONSUMER,
        state: found.group_state,
        assignor: found.assignor_name,
        epochs: Some((found.group_epoch, found.assignment_epoch)),
        members: found.members.into_iter().map(member).collect(),
        owners,
    }))
}

/// The member that each partition is assigned to, as a classic group's assignor said.
fn classic_owners(described: &classic::DescribedGroup) -> BTreeMap<Place, String> {
    let mut owners = BTreeMap::new();
    for member in described.members.iter().filter(|_| described.protocol_type == "consumer") {
        let bytes = &member.member_assignment;
        let Some(version) = bytes.first_chunk().map(|version| i16::from_be_bytes(*version)) else { continue };
        // Another client's own format is not ours to read.
        let version = version.min(*ConsumerProtocolAssignment::VERSIONS.end());
        let mut decoder = Decoder::new(BytesMut::from(&bytes[2..]));
        let Ok(assignment) = ConsumerProtocolAssignment::decode(&mut decoder, version) else { continue };
        for topic in assignment.assigned_partitions {
            owners.extend(topic.partitions.iter().map(|p| ((topic.topic.clone(), *p), member.member_id.clone())));
        }
    }
    owners
}

pub(super) async fn describe(client: &mut KafkaClient, output: Output, group: &str) -> Result<()> {
    const COLUMNS: [&str; 7] = ["topic", "partition", "offset", "log_end", "lag", "lag_seconds", "member"];
    let address = client.coordinator(group).await?;
    let found = find(client, &address, group).await?;
    let offsets = committed(client, group).await?;
    let places: BTreeSet<&Place> = offsets.keys().chain(found.owners.keys()).collect();
    let mut ends: BTreeMap<&str, BTreeMap<i32, i64>> = BTreeMap::new();
    for (topic, _) in &places {
        if !ends.contains_key(topic.as_str()) {
            // A topic may have gone since: its offsets are shown without an end.
            ends.insert(topic, list_offsets(client, topic, LATEST).await.unwrap_or_default());
        }
    }
    let row = |place: &Place| {
        let (topic, partition) = place;
        let committed = offsets.get(place);
        let (offset, late) = (committed.map(|at| at.offset), committed.and_then(|at| at.lag_seconds()));
        let end = ends.get(topic.as_str()).and_then(|ends| ends.get(partition));
        let lag = end.zip(offset).map(|(end, offset)| (end - offset).max(0));
        let owner = found.owners.get(place);
        vec![json!(topic), json!(partition), json!(offset), json!(end), json!(lag), json!(late), json!(owner)]
    };
    let rows: Vec<Vec<Value>> = places.into_iter().map(row).collect();
    if output.json {
        let offsets_shown: Vec<Value> = rows.into_iter().map(|row| object(&COLUMNS, row)).collect();
        let members: Vec<Value> = found.members.iter().map(member_object).collect();
        let (group_epoch, assignment_epoch) = found.epochs.unzip();
        let all = json!({ "group": group, "type": found.protocol, "state": found.state, "protocol": found.assignor,
                          "group_epoch": group_epoch, "assignment_epoch": assignment_epoch,
                          "lag_seconds": latest(&offsets),
                          "coordinator": address, "members": members, "offsets": offsets_shown });
        return output.fact("", &all);
    }
    head(output, group, &address, &found, latest(&offsets))?;
    output.rows(&COLUMNS, rows)?;
    if found.members.is_empty() { Ok(()) } else { members_table(output, &found) }
}

fn head(output: Output, group: &str, address: &str, found: &Described, late: Option<f64>) -> Result<()> {
    let assignor = if found.assignor.is_empty() { "-" } else { &found.assignor };
    output.text(&format!("group        {group}\ntype         {}\nstate        {}", found.protocol, found.state))?;
    output.text(&format!("assignor     {assignor}"))?;
    if let Some((of_group, of_assignment)) = found.epochs {
        output.text(&format!("epoch        {of_group}, assigned in {of_assignment}"))?;
    }
    let late = late.map_or("-".to_owned(), |seconds| format!("{seconds:.1} s behind"));
    output.text(&format!("coordinator  {address}\nmembers      {}\nlag          {late}\n", found.members.len()))
}

/// A classic group's members have no epochs, and are all of one kind.
fn members_table(output: Output, found: &Described) -> Result<()> {
    output.text("")?;
    let mut columns = vec!["member", "client", "host", "instance"];
    if found.epochs.is_some() {
        columns.extend(["type", "epoch"]);
    }
    let row = |m: &Member| {
        let mut row = vec![json!(m.id), json!(m.client), json!(m.host), json!(m.instance)];
        if found.epochs.is_some() {
            row.extend([json!(m.protocol), json!(m.epoch)]);
        }
        row
    };
    output.rows(&columns, found.members.iter().map(row).collect())
}

fn member_object(m: &Member) -> Value {
    json!({ "member": m.id, "client": m.client, "host": m.host, "instance": m.instance, "type": m.protocol,
            "epoch": m.epoch })
}

/// The age of the oldest record that a group has still to read; None where one partition does not tell.
fn latest(offsets: &BTreeMap<Place, Committed>) -> Option<f64> {
    let ages: Option<Vec<u64>> = offsets.values().map(|at| at.lag_ms).collect();
    ages.map(|ages| Duration::from_millis(ages.into_iter().max().unwrap_or(0)).as_secs_f64())
}
