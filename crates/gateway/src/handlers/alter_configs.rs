//! AlterConfigs: whole new configs of resources.

use broker::api::BrokerApi;
use metadata::control::AlterConfigs;
use protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use protocol::messages::{AlterConfigsRequest, AlterConfigsResponse};

use crate::call::Call;
use crate::handlers::config_changes::{ConfigAnswer, ConfigChanges, TIMEOUT_MS, log_dir_paths};
use crate::handlers::{ask_controller, broker_configs, group_configs};

/// Has the controller change them.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: AlterConfigsRequest) -> AlterConfigsResponse {
    let (here, log_dirs) = (call.broker().identity().broker_id, || log_dir_paths(&call));
    let asked = request.resources.into_iter().map(|resource| {
        let configs: Vec<_> = resource.configs.into_iter().map(|config| (config.name, config.value)).collect();
        let (type_code, name) = (resource.resource_type, &resource.resource_name);
        let checked = group_configs::check_whole(type_code, name, &configs, &call.shared.file)
            .and_then(|()| broker_configs::check_whole(type_code, name, &configs, (here, log_dirs)));
        (resource.resource_type, resource.resource_name, checked.map(|()| configs))
    });
    let mut changes = ConfigChanges::check(asked.collect());
    let answers = match changes.take_resources() {
        None => Ok(Vec::new()),
        Some(resources) => {
            let alter = AlterConfigs { resources, validate_only: request.validate_only };
            ask_controller!(call, AlterConfigs, alter, TIMEOUT_MS)
        }
    };
    AlterConfigsResponse {
        responses: changes.answered(answers).into_iter().map(response).collect(),
        ..Default::default()
    }
}

fn response(answer: ConfigAnswer) -> AlterConfigsResourceResponse {
    let ConfigAnswer { error_code, error_message, resource_type, resource_name } = answer;
    AlterConfigsResourceResponse { error_code, error_message, resource_type, resource_name }
}
