//! What is wrong with the disks of a node, as its own answers tell.

use anyhow::Result;
use protocol::messages::describe_log_dirs_response::DescribeLogDirsResult;
use protocol::messages::{
    DescribeConfigsRequest, DescribeConfigsResponse, DescribeLogDirsRequest, DescribeLogDirsResponse,
    describe_configs_request,
};

use crate::kafka_client::KafkaClient;

/// Kafka's number of the resource type "broker".
const BROKER_RESOURCE: i8 = 4;
const RESERVE: &str = "ottla.disk.reserve.bytes";

/// The log directories of a node that are out of use, or refuse writes for want of space.
pub(super) async fn trouble(client: &mut KafkaClient, id: i32, address: &str) -> Result<Vec<String>> {
    let resource = describe_configs_request::DescribeConfigsResource {
        resource_type: BROKER_RESOURCE,
        resource_name: id.to_string(),
        configuration_keys: Some(vec![RESERVE.to_owned()]),
    };
    let request = DescribeConfigsRequest { resources: vec![resource], ..Default::default() };
    let answer: DescribeConfigsResponse = client.at(address, &request).await?;
    let value = answer.results.into_iter().flat_map(|result| result.configs).find(|config| config.name == RESERVE);
    let configured = value.and_then(|config| config.value).and_then(|value| value.parse().ok()).unwrap_or(0);
    let answer: DescribeLogDirsResponse = client.at(address, &DescribeLogDirsRequest::default()).await?;
    let trouble = |directory: &DescribeLogDirsResult| {
        let path = &directory.log_dir;
        if directory.error_code != 0 {
            return Some(format!("node {id}: {path} is out of use; the node's log says why"));
        }
        let (total, free) = (u64::try_from(directory.total_bytes).ok()?, u64::try_from(directory.usable_bytes).ok()?);
        let reserve = storage::reserve::reserve_of(total, configured);
        let too = if free < storage::reserve::floor_of(reserve) { ", of internal topics too" } else { "" };
        let text = format!("node {id}: {path} has {free} bytes free and keeps {reserve}: it refuses writes{too}");
        (free < reserve).then_some(text)
    };
    Ok(answer.results.iter().filter_map(trouble).collect())
}
