//! AlterConfigs: whole new configs of resources.

use std::collections::BTreeSet;

use broker::api::BrokerApi;
use metadata::control::AlterConfigs;
use metadata::records::ConfigResource;
use protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use protocol::messages::{AlterConfigsRequest, AlterConfigsResponse};

use crate::call::Call;
use crate::handlers::ask_controller;
use crate::refusal::Refusal;

/// How long the controller may take: these requests carry no time.
pub(crate) const TIMEOUT_MS: u64 = 30_000;

/// Has the controller change them.
pub(crate) async fn handle<B: BrokerApi>(call: Call<B>, request: AlterConfigsRequest) -> AlterConfigsResponse {
    let (mut checked, mut resources) = (Vec::new(), Vec::new());
    let named = request.resources.iter().map(|each| (each.resource_type, each.resource_name.as_str()));
    let repeated = repeated(named);
    for resource in request.resources {
        let found = resource_of(&repeated, resource.resource_type, &resource.resource_name);
        let configs = resource.configs.into_iter().map(|config| (config.name, config.value)).collect();
        resources.extend(found.as_ref().ok().map(|found| (found.clone(), configs)));
        checked.push((resource.resource_type, resource.resource_name, found.map(|_| ())));
    }
    let answers = if resources.is_empty() {
        Ok(Vec::new())
    } else {
        let alter = AlterConfigs { resources, validate_only: request.validate_only };
        ask_controller!(call, AlterConfigs, alter, TIMEOUT_MS)
    };
    let responses = outcomes(checked, answers).into_iter().map(|(resource_type, resource_name, outcome)| {
        AlterConfigsResourceResponse {
            error_code: outcome.as_ref().err().map_or(0, Refusal::wire),
            error_message: outcome.err().and_then(|refusal| refusal.message()),
            resource_type,
            resource_name,
        }
    });
    AlterConfigsResponse { responses: responses.collect(), ..Default::default() }
}

/// The resources that stand in a request more than once: as in Kafka none of them is changed.
pub(crate) fn repeated<'a>(named: impl Iterator<Item = (i8, &'a str)>) -> BTreeSet<(i8, String)> {
    let mut seen = BTreeSet::new();
    named.filter(|each| !seen.insert(*each)).map(|(type_code, name)| (type_code, name.to_owned())).collect()
}

/// The resource of a request.
pub(crate) fn resource_of(
    repeated: &BTreeSet<(i8, String)>,
    type_code: i8,
    name: &str,
) -> Result<ConfigResource, Refusal> {
    if repeated.contains(&(type_code, name.to_owned())) {
        return Err(Refusal::Repeated("a resource"));
    }
    ConfigResource::from_kafka(type_code, name)
        .ok_or_else(|| Refusal::UnknownResource(format!("no configs of type {type_code} and name {name:?} can be set")))
}

/// A resource as the request names it, and what became of it.
type Outcome = (i8, String, Result<(), Refusal>);

/// Joins the controller's answers, which are in the request's order, with what was refused before.
pub(crate) fn outcomes(
    checked: Vec<Outcome>,
    answers: Result<Vec<metadata::control::ConfigResult>, Refusal>,
) -> Vec<Outcome> {
    let mut answers = answers.map(Vec::into_iter);
    let outcome = |(type_code, name, checked): Outcome| {
        let outcome = checked.and_then(|()| match &mut answers {
            Ok(answers) => match answers.next() {
                Some(answer) => answer.result.map_err(Refusal::Decided),
                None => Err(Refusal::Unanswered),
            },
            Err(refusal) => Err(refusal.clone()),
        });
        (type_code, name, outcome)
    };
    checked.into_iter().map(outcome).collect()
}
