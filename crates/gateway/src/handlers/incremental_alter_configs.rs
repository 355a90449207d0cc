//! IncrementalAlterConfigs: single changes of configs (KIP-339).

use broker::api::BrokerApi;
use metadata::control::{ConfigChange, ConfigOperation, IncrementalAlterConfigs};
use protocol::messages::incremental_alter_configs_request::AlterableConfig;
use protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use protocol::messages::{IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse};

use crate::call::Call;
use crate::handlers::config_changes::{ConfigAnswer, ConfigChanges, TIMEOUT_MS, log_dir_paths};
use crate::handlers::{ask_controller, broker_configs, group_configs};
use crate::refusal::Refusal;

/// Has the controller change them.
pub(crate) async fn handle<B: BrokerApi>(
    call: Call<B>,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let image = call.image();
    let (here, log_dirs) = (call.broker().identity().broker_id, || log_dir_paths(&call));
    let asked = request.resources.into_iter().map(|resource| {
        let changes: Result<Vec<_>, _> = resource.configs.into_iter().map(change).collect();
        let changes = changes.and_then(|changes| {
            let (type_code, name) = (resource.resource_type, &resource.resource_name);
            group_configs::check_changes(type_code, name, &changes, &image, &call.shared.file)?;
            broker_configs::check_changes(type_code, name, &changes, &image, (here, log_dirs))?;
            Ok(changes)
        });
        (resource.resource_type, resource.resource_name, changes)
    });
    let mut changes = ConfigChanges::check(asked.collect());
    let answers = match changes.take_resources() {
        None => Ok(Vec::new()),
        Some(resources) => {
            let alter = IncrementalAlterConfigs { resources, validate_only: request.validate_only };
            ask_controller!(call, IncrementalAlterConfigs, alter, TIMEOUT_MS)
        }
    };
    IncrementalAlterConfigsResponse {
        responses: changes.answered(answers).into_iter().map(response).collect(),
        ..Default::default()
    }
}

fn response(answer: ConfigAnswer) -> AlterConfigsResourceResponse {
    let ConfigAnswer { error_code, error_message, resource_type, resource_name } = answer;
    AlterConfigsResourceResponse { error_code, error_message, resource_type, resource_name }
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
