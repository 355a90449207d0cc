//! Configs: what may be set on what, by the table of [`configs`].

use std::collections::{BTreeMap, BTreeSet};

use model::{BrokerId, ErrorCode, Rule};

use crate::configs::{self, ACK_RULE, ConfigType, MIN_INSYNC_REPLICAS, Scope, UpdateMode};
use crate::control::check_topic_name;
use crate::control::draft::{Draft, Want};
use crate::control::messages::{
    AlterConfigs, ConfigChange, ConfigOperation, ConfigResult, ControlError, ControlResponse, IncrementalAlterConfigs,
};
use crate::image::ConfigMap;
use crate::records::{ConfigResource, MetadataRecord, Partition};

/// The longest value.
const VALUE_MAX: usize = 32_767;

impl Draft<'_> {
    pub(super) fn incremental_alter_configs(
        &mut self,
        request: &IncrementalAlterConfigs,
    ) -> Result<ControlResponse, ControlError> {
        let results = self.for_each_resource(&request.resources, request.validate_only, |draft, resource, changes| {
            let mut names = BTreeSet::new();
            if changes.iter().any(|change| !names.insert(change.name.as_str())) {
                return Err(ControlError::new(ErrorCode::InvalidRequest, "Error due to duplicate config keys"));
            }
            let mut target = draft.configs_of(resource);
            changes.iter().try_for_each(|change| draft.change_config(resource, change, &mut target))?;
            Ok(target)
        });
        Ok(ControlResponse::IncrementalAlterConfigs(results))
    }

    pub(super) fn alter_configs(&mut self, request: &AlterConfigs) -> Result<ControlResponse, ControlError> {
        let results = self.for_each_resource(&request.resources, request.validate_only, |_, _, configs| {
            let mut target = ConfigMap::new();
            for (name, value) in configs {
                let Some(value) = value else { return Err(null_value(name)) };
                if target.insert(name.clone(), value.clone()).is_some() {
                    return Err(ControlError::new(ErrorCode::InvalidRequest, "Error due to duplicate config keys"));
                }
            }
            Ok(target)
        });
        Ok(ControlResponse::AlterConfigs(results))
    }

    /// Each resource gets the configs that `target` says, or an error, by itself.
    fn for_each_resource<T>(
        &mut self,
        resources: &[(ConfigResource, T)],
        validate_only: bool,
        target: impl Fn(&Self, &ConfigResource, &T) -> Result<ConfigMap, ControlError>,
    ) -> Vec<ConfigResult> {
        let mut seen = BTreeSet::new();
        let mut results = Vec::new();
        for (resource, wanted) in resources {
            let result = if seen.insert(resource) {
                self.check_resource(resource)
                    .and_then(|()| target(self, resource, wanted))
                    .and_then(|target| self.set_configs(resource, &target))
            } else {
                Err(ControlError::new(ErrorCode::InvalidRequest, "Each resource must appear at most once."))
            };
            results.push(ConfigResult { resource: resource.clone(), result });
        }
        if validate_only {
            self.rewind(0);
        }
        results
    }

    fn check_resource(&self, resource: &ConfigResource) -> Result<(), ControlError> {
        match resource {
            ConfigResource::Topic(name) if name.is_empty() => {
                Err(ControlError::new(ErrorCode::InvalidRequest, "Default topic resources are not allowed."))
            }
            ConfigResource::Topic(name) if self.image.topic_id(name).is_none() => {
                check_topic_name(name)?;
                let message = format!("The topic '{name}' does not exist.");
                Err(ControlError::new(ErrorCode::UnknownTopicOrPartition, message))
            }
            ConfigResource::Broker(id) if self.image.broker(*id).is_none() => {
                Err(ControlError::new(ErrorCode::BrokerIdNotRegistered, format!("No broker with id {id} found.")))
            }
            ConfigResource::Group(name) if name.is_empty() => {
                Err(ControlError::new(ErrorCode::InvalidRequest, "Default group resources are not allowed."))
            }
            ConfigResource::ClientMetrics(_) => {
                Err(ControlError::new(ErrorCode::InvalidRequest, "client metrics subscriptions are not supported yet"))
            }
            ConfigResource::Topic(_)
            | ConfigResource::Broker(_)
            | ConfigResource::DefaultBroker
            | ConfigResource::Group(_) => Ok(()),
        }
    }

    fn configs_of(&self, resource: &ConfigResource) -> ConfigMap {
        self.image.configs().get(resource).map(|map| (**map).clone()).unwrap_or_default()
    }

    fn change_config(
        &self,
        resource: &ConfigResource,
        change: &ConfigChange,
        target: &mut ConfigMap,
    ) -> Result<(), ControlError> {
        let name = &change.name;
        let (words, append) = match &change.operation {
            ConfigOperation::Delete => {
                target.remove(name);
                return Ok(());
            }
            ConfigOperation::Set(value) => {
                target.insert(name.clone(), value.clone().ok_or_else(|| null_value(name))?);
                return Ok(());
            }
            ConfigOperation::Append(words) => (words, true),
            ConfigOperation::Subtract(words) => (words, false),
        };
        let words = configs::list(words.as_ref().ok_or_else(|| null_value(name))?);
        let verb = if append { "append to" } else { "subtract from" };
        let definition = configs::scope_of(resource).and_then(|scope| configs::all(scope).get(name.as_str()));
        if definition.is_none_or(|definition| definition.config_type != ConfigType::List) {
            let message = format!("Can't {verb} key {name} because its type is not LIST.");
            return Err(ControlError::new(ErrorCode::InvalidConfig, message));
        }
        let current = target.get(name).cloned().or_else(|| self.inherited(resource, name)).unwrap_or_default();
        let mut items = configs::list(&current);
        if append {
            for word in words {
                if !items.contains(&word) {
                    items.push(word);
                }
            }
        } else {
            items.retain(|item| !words.contains(item));
        }
        target.insert(name.clone(), items.join(","));
        Ok(())
    }

    /// The value that a resource has without setting it, as far as the cluster's metadata says.
    fn inherited(&self, resource: &ConfigResource, name: &str) -> Option<String> {
        let nowhere = configs::StaticConfig::new();
        let resolved = match resource {
            ConfigResource::Topic(topic) => configs::resolve_topic(&self.image, topic, name, BrokerId::NONE, &nowhere),
            ConfigResource::Broker(_) | ConfigResource::DefaultBroker => {
                configs::resolve_broker(&self.image, name, BrokerId::NONE, &nowhere)
            }
            ConfigResource::Group(_) | ConfigResource::ClientMetrics(_) => None,
        };
        resolved.and_then(|resolved| resolved.value).map(|value| value.into_owned())
    }

    /// Makes `target` the configs of a resource: checks what it sets, and all of it together.
    fn set_configs(&mut self, resource: &ConfigResource, target: &ConfigMap) -> Result<(), ControlError> {
        let current = self.configs_of(resource);
        let removed = current.keys().filter(|name| !target.contains_key(*name)).map(|name| (name, None));
        let set = target.iter().filter(|(name, value)| current.get(*name) != Some(value)).map(|(n, v)| (n, Some(v)));
        let changes: Vec<(&String, Option<&String>)> = removed.chain(set).collect();
        for (name, value) in &changes {
            check_change(resource, name, value.map(String::as_str))?;
        }
        check_together(resource, target)?;
        self.check_ack_rule(resource, &changes)?;
        let mut records = Vec::new();
        for (name, value) in changes {
            records.push(MetadataRecord::Config {
                resource: resource.clone(),
                name: name.clone(),
                value: value.cloned(),
            });
        }
        self.prepare_for(&records);
        for record in records {
            self.push(record);
        }
        Ok(())
    }

    /// A topic's replicas must be able to commit under its new ack rule (`R79`), and, where they move, those from before
    /// too: the move may be cancelled.
    fn check_ack_rule(
        &self,
        resource: &ConfigResource,
        changes: &[(&String, Option<&String>)],
    ) -> Result<(), ControlError> {
        let ConfigResource::Topic(name) = resource else { return Ok(()) };
        let rule = changes.iter().find(|(name, _)| *name == ACK_RULE).and_then(|(_, rule)| *rule);
        let zones = rule.and_then(|rule| configs::ack_zones(rule)).unwrap_or(0);
        let partitions = self.image.topic_by_name(name).into_iter().flat_map(|topic| topic.partitions.values());
        for partition in partitions.filter(|_| zones > 0) {
            let before: Vec<_> = partition.replicas.iter().copied().filter(|b| !partition.adding.contains(b)).collect();
            let lacks = [partition.target(), before].iter().find_map(|replicas| self.lacks_zones(zones, replicas));
            if let Some(message) = lacks {
                let message = format!("partition {}: {message}", partition.partition);
                return Err(ControlError::new(ErrorCode::InvalidConfig, message));
            }
        }
        Ok(())
    }

    /// Where min ISR, or the zones of the ack rule, fall to what an ISR has, the high watermark may move without the ELR from
    /// now on, and without those of the last known one: these go first (`R34`, `R35`, `R79`). A reassignment that only waited
    /// for the ISR to be enough is completed.
    fn prepare_for(&mut self, records: &[MetadataRecord]) {
        let is_ack_rule = |record: &MetadataRecord| matches!(record, MetadataRecord::Config { name, .. } if name == MIN_INSYNC_REPLICAS || name == ACK_RULE);
        if !records.iter().any(is_ack_rule) || !self.holds(Rule::R34WeakerRule) {
            return;
        }
        let mut later = Draft::new(self.control);
        later.image = self.image.clone();
        for record in records {
            later.image.apply(record);
        }
        // Else there is nothing to forget, and nothing that waits.
        let below =
            |partition: &Partition| partition.isr.len() < partition.replicas.len() || partition.is_reassigning();
        let changed = |partition: &std::sync::Arc<Partition>| {
            let after = later.plan(partition, &Want::default());
            // Who has synced all that it acknowledged would lead as one of them, without what is committed from now on (R35).
            let forgets = after.last_known_elr.is_empty() && !partition.last_known_elr.is_empty();
            let moved = forgets || after.elr != partition.elr || after.replicas != partition.replicas;
            moved.then(|| (partition.clone(), after))
        };
        let changes: Vec<_> = later.image.partitions().filter(|p| below(p)).filter_map(changed).collect();
        for (before, after) in changes {
            self.put(&before, &after);
        }
    }
}

/// The configs of a new topic.
pub(super) fn check_topic_configs(
    configs: &[(String, Option<String>)],
) -> Result<BTreeMap<String, String>, ControlError> {
    let mut target = ConfigMap::new();
    for (name, value) in configs {
        let Some(value) = value else {
            let message = format!("Null value not supported for topic configs: {name}");
            return Err(ControlError::new(ErrorCode::InvalidConfig, message));
        };
        check_value(&ConfigResource::Topic(String::new()), name, value)?;
        target.insert(name.clone(), value.clone());
    }
    check_together(&ConfigResource::Topic(String::new()), &target)?;
    Ok(target)
}

fn check_change(resource: &ConfigResource, name: &str, value: Option<&str>) -> Result<(), ControlError> {
    if let ConfigResource::Broker(_) | ConfigResource::DefaultBroker = resource {
        check_dynamic(resource, name, value.is_none())?;
    }
    value.map_or(Ok(()), |value| check_value(resource, name, value))
}

/// Whether a broker config may be changed while brokers run, and here.
fn check_dynamic(resource: &ConfigResource, name: &str, removed: bool) -> Result<(), ControlError> {
    let Some(definition) = configs::broker(name) else { return Ok(()) };
    let refuse = |code, message: String| Err(ControlError::new(code, message));
    let for_all = *resource == ConfigResource::DefaultBroker;
    if definition.is_read_only() {
        return refuse(ErrorCode::InvalidRequest, format!("Cannot update these configs dynamically: [{name}]"));
    }
    if definition.mode == UpdateMode::PerBroker && for_all {
        let message =
            format!("Cannot update these configs at default cluster level, broker id must be specified: [{name}]");
        return refuse(ErrorCode::InvalidRequest, message);
    }
    if name == MIN_INSYNC_REPLICAS && (!for_all || removed) {
        let message =
            "min.insync.replicas of the brokers is one value for the whole cluster: set it for all, do not remove it";
        return refuse(ErrorCode::InvalidConfig, message.to_owned());
    }
    Ok(())
}

/// Whether a topic's old segments are kept elsewhere (KIP-405).
const REMOTE_STORAGE: &str = "remote.storage.enable";

fn check_value(resource: &ConfigResource, name: &str, value: &str) -> Result<(), ControlError> {
    let invalid = |message: String| ControlError::new(ErrorCode::InvalidConfig, message);
    if value.len() > VALUE_MAX {
        return Err(invalid(format!("the value of {name} is longer than {VALUE_MAX} bytes")));
    }
    let Some(scope) = configs::scope_of(resource) else { return Ok(()) };
    if let (Scope::Broker, Some(why)) = (scope, configs::refusal(name, value)) {
        return Err(invalid(format!("{name}: {why}")));
    }
    let checked = configs::validate(scope, name, value).map(drop);
    match resource {
        // As Kafka says it for each.
        ConfigResource::Broker(_) | ConfigResource::DefaultBroker if configs::broker(name).is_some() => {
            checked.map_err(|message| ControlError::new(ErrorCode::InvalidRequest, message))
        }
        ConfigResource::Topic(_) if name == REMOTE_STORAGE && value.trim() == "true" => {
            Err(invalid(format!("{REMOTE_STORAGE}: there is no tiered storage on these brokers")))
        }
        _ => checked.map_err(invalid),
    }
}

/// Rules between configs.
fn check_together(resource: &ConfigResource, target: &ConfigMap) -> Result<(), ControlError> {
    if !matches!(resource, ConfigResource::Topic(_)) {
        return Ok(());
    }
    let number = |name: &str| {
        let value = target.get(name).map(String::as_str).or_else(|| configs::topic(name)?.default_value());
        value.and_then(|value| value.trim().parse::<i64>().ok())
    };
    let (min, max) = (number("min.compaction.lag.ms"), number("max.compaction.lag.ms"));
    if let (Some(min), Some(max)) = (min, max)
        && max < min
    {
        let message = format!(
            "conflict topic config setting min.compaction.lag.ms ({min}) > max.compaction.lag.ms ({max}): lower one or raise the other"
        );
        return Err(ControlError::new(ErrorCode::InvalidConfig, message));
    }
    Ok(())
}

fn null_value(name: &str) -> ControlError {
    ControlError::new(ErrorCode::InvalidRequest, format!("Null value not supported for : {name}"))
}
