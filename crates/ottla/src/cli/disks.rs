//! What is wrong with the disks of a node, as its own answers tell.

use anyhow::Result;
use protocol::messages::describe_log_dirs_response::DescribeLogDirsResult;
use protocol::messages::{
    DescribeConfigsRequest, DescribeConfigsResponse, DescribeLogDirsRequest, DescribeLogDirsResponse,
    describe_configs_request,
};
use storage::reserve::{end_of_shortage, floor_of, reserve_of};

use crate::kafka_client::KafkaClient;

/// Kafka's number of the resource type "broker".
const BROKER_RESOURCE: i8 = 4;
const RESERVE: &str = "ottla.disk.reserve.bytes";

/// The log directories of a node that are out of use, or may refuse writes for want of space.
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
        let what = shortage(free, reserve_of(total, configured))?;
        Some(format!("node {id}: {path} {what}"))
    };
    Ok(answer.results.iter().filter_map(trouble).collect())
}

/// What a directory with so much free space is short of, if it is. Between a reserve and the end of its shortage the node alone
/// knows whether it refuses writes: it does where it was short before.
fn shortage(free: u64, reserve: u64) -> Option<String> {
    let (enough, floor) = (end_of_shortage(reserve), floor_of(reserve));
    let verdict = if free < floor {
        "it refuses writes, of internal topics too".to_owned()
    } else if free < end_of_shortage(floor) {
        format!("it refuses writes, and may refuse those of internal topics until {} are free", end_of_shortage(floor))
    } else if free < reserve {
        format!("it refuses writes until {enough} are free")
    } else if free < enough {
        format!("it may still refuse writes until {enough} are free")
    } else {
        return None;
    };
    Some(format!("has {free} bytes free and keeps {reserve}: {verdict}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_in_trouble_as_long_as_its_node_may_refuse_writes() {
        let told = |free| shortage(free, 800).unwrap_or_default();
        let writes = "keeps 800: it refuses writes";
        assert_eq!(told(199), format!("has 199 bytes free and {writes}, of internal topics too"));
        let until = ", and may refuse those of internal topics until 225 are free";
        assert_eq!([200, 224].map(told), [200, 224].map(|free| format!("has {free} bytes free and {writes}{until}")));
        let until = " until 900 are free";
        assert_eq!([225, 799].map(told), [225, 799].map(|free| format!("has {free} bytes free and {writes}{until}")));
        let may = "keeps 800: it may still refuse writes until 900 are free";
        assert_eq!([800, 899].map(told), [800, 899].map(|free| format!("has {free} bytes free and {may}")));
        assert_eq!(shortage(900, 800), None);
        assert_eq!(shortage(0, 0), None, "nothing is kept");
    }
}
