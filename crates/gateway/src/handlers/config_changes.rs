//! What AlterConfigs and IncrementalAlterConfigs have in common: resources as clients name them, each changed as a whole or
//! not at all, and an answer for each in the request's order.

use std::collections::BTreeSet;

use broker::api::BrokerApi;
use metadata::control::ConfigResult;
use metadata::records::ConfigResource;

use crate::call::Call;
use crate::refusal::Refusal;

/// How long the controller may take: these requests carry no time.
pub(crate) const TIMEOUT_MS: u64 = 30_000;

/// Changes, of kind `C`, that a client asks for; refused ones are not for the controller.
pub(crate) struct ConfigChanges<C> {
    named: Vec<(i8, String, Result<(), Refusal>)>,
    resources: Vec<(ConfigResource, Vec<C>)>,
}

/// What a client is told of a resource.
pub(crate) struct ConfigAnswer {
    pub(crate) error_code: i16,
    pub(crate) error_message: Option<String>,
    pub(crate) resource_type: i8,
    pub(crate) resource_name: String,
}

impl<C> ConfigChanges<C> {
    /// Of these resources, by type and name.
    pub(crate) fn check(asked: Vec<(i8, String, Result<Vec<C>, Refusal>)>) -> Self {
        let repeated = repeated(asked.iter().map(|(type_code, name, _)| (*type_code, name.as_str())));
        let mut checked = Self { named: Vec::new(), resources: Vec::new() };
        for (type_code, name, changes) in asked {
            let found = resource_of(&repeated, type_code, &name).and_then(|found| {
                checked.resources.push((found, changes?));
                Ok(())
            });
            checked.named.push((type_code, name, found));
        }
        checked
    }

    /// What the controller is to be asked for, once; None where there is nothing.
    pub(crate) fn take_resources(&mut self) -> Option<Vec<(ConfigResource, Vec<C>)>> {
        Some(std::mem::take(&mut self.resources)).filter(|resources| !resources.is_empty())
    }

    /// Joins the controller's answers, which are in the order in which it was asked, with what was refused before.
    pub(crate) fn answered(self, answers: Result<Vec<ConfigResult>, Refusal>) -> Vec<ConfigAnswer> {
        let mut answers = answers.map(Vec::into_iter);
        let mut decided = move || match &mut answers {
            Ok(answers) => match answers.next() {
                Some(answer) => answer.result.map_err(Refusal::Decided),
                None => Err(Refusal::Unanswered),
            },
            Err(refusal) => Err(refusal.clone()),
        };
        let answer = |(resource_type, resource_name, checked): (i8, String, Result<(), Refusal>)| {
            let outcome = checked.and_then(|()| decided());
            ConfigAnswer {
                error_code: outcome.as_ref().err().map_or(0, Refusal::wire),
                error_message: outcome.err().and_then(|refusal| refusal.message()),
                resource_type,
                resource_name,
            }
        };
        self.named.into_iter().map(answer).collect()
    }
}

/// The log directories of this broker as configured, those that are out of use included.
pub(crate) fn log_dir_paths<B: BrokerApi>(call: &Call<B>) -> Vec<String> {
    call.broker().describe_log_dirs().into_iter().map(|dir| dir.path).collect()
}

/// The resources that stand in a request more than once: as in Kafka none of them is changed.
fn repeated<'a>(named: impl Iterator<Item = (i8, &'a str)>) -> BTreeSet<(i8, String)> {
    let mut seen = BTreeSet::new();
    named.filter(|each| !seen.insert(*each)).map(|(type_code, name)| (type_code, name.to_owned())).collect()
}

fn resource_of(repeated: &BTreeSet<(i8, String)>, type_code: i8, name: &str) -> Result<ConfigResource, Refusal> {
    if repeated.contains(&(type_code, name.to_owned())) {
        return Err(Refusal::Repeated("a resource"));
    }
    ConfigResource::from_kafka(type_code, name)
        .ok_or_else(|| Refusal::UnknownResource(format!("no configs of type {type_code} and name {name:?} can be set")))
}
