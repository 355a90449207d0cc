//! IncrementalAlterConfigs: single changes of configs (KIP-339).

use broker::api::BrokerApi;
use metadata::control::{ConfigChange, ConfigOperation, IncrementalAlterConfigs};
use protocol::messages::incremental_alter_configs_request::AlterableConfig;
use protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use protocol::messages::{IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};

use crate::call::Call;
use crate::handlers::alter_configs::{TIMEOUT_MS, outcomes, repeated, resource_of};
use crate::handlers::ask_controller;
use crate::refusal::Refusal;

/// Has the controller change them.
pub(crate) async fn handle<B: BrokerApi>(
    call: Call<B>,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let (mut checked, mut resources) = (Vec::new(), Vec::new());
    let named = request.resources.iter().map(|each| (each.resource_type, each.resource_name.as_str()));
    let repeated = repeated(named);
    for resource in request.resources {
        let found = resource_of(&repeated, resource.resource_type, &resource.resource_name).and_then(|found| {
            let changes = resource.configs.into_iter().map(change).collect::<Result<Vec<_>, _>>()?;
            resources.push((found, changes));
            Ok(())
        });
        checked.push((resource.resource_type, resource.resource_name, found));
    }
    let answers = if resources.is_empty() {
        Ok(Vec::new())
    } else {
        let alter = IncrementalAlterConfigs { resources, validate_only: request.validate_only };
        ask_controller!(call, IncrementalAlterConfigs, alter, TIMEOUT_MS)
    };
    let responses = outcomes(checked, answers).into_iter().map(|(resource_type, resource_name, outcome)| {
        AlterConfigsResourceResponse {
            error_code: outcome.as_ref().err().map_or(0, Refusal::wire),
            error_message: outcome.err().and_then(|refusal| refusal.message()),
            resource_type,
            resource_name,
        }
    });
    IncrementalAlterConfigsResponse { responses: responses.collect(), ..Default::default() }
}

fn change(config: AlterableConfig) -> Result<ConfigChange, Refusal> {
    let operation = match config.config_operation {
        0 => ConfigOperation::Set(config.value),
        1 => ConfigOperation::Delete,
        2 => ConfigOperation::Append(config.value),
        3 => ConfigOperation::Subtract(config.value),
        _ => return Err(Refusal::Malformed("there is no such config operation")),
    };
    Ok(ConfigChange { name: config.name, operation })
}
