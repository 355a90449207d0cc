//! What configs of a group may be set to: within the bounds of this broker's file, and such that they make sense together.

use metadata::MetadataImage;
use metadata::configs::{self, StaticConfig};
use metadata::control::{ConfigChange, ConfigOperation, ControlError};
use metadata::image::ConfigMap;
use metadata::records::ConfigResource;
use model::{BrokerId, ErrorCode};

use crate::refusal::Refusal;

/// Configs of groups with bounds: the broker has `group.<kind>.min.<rest>` and `group.<kind>.max.<rest>` for them.
const BOUNDED: &[&str] =
    &["consumer.session.timeout.ms", "consumer.heartbeat.interval.ms", "consumer.assignment.interval.ms"];

/// Checks changes of a group's configs; those of other resources pass.
pub(crate) fn check_changes(
    type_code: i8,
    name: &str,
    changes: &[ConfigChange],
    image: &MetadataImage,
    file: &StaticConfig,
) -> Result<(), Refusal> {
    let Some(resource @ ConfigResource::Group(_)) = ConfigResource::from_kafka(type_code, name) else { return Ok(()) };
    let mut after: ConfigMap = image.configs().get(&resource).map(|set| (**set).clone()).unwrap_or_default();
    for change in changes {
        match &change.operation {
            ConfigOperation::Set(Some(value)) => after.insert(change.name.clone(), value.clone()),
            ConfigOperation::Delete => after.remove(&change.name),
            // The controller refuses these: no config of a group is a list, or null.
            ConfigOperation::Set(None) | ConfigOperation::Append(_) | ConfigOperation::Subtract(_) => None,
        };
    }
    check(&after, file)
}

/// Checks the whole new configs of a group; those of other resources pass.
pub(crate) fn check_whole(
    type_code: i8,
    name: &str,
    configs: &[(String, Option<String>)],
    file: &StaticConfig,
) -> Result<(), Refusal> {
    let Some(ConfigResource::Group(_)) = ConfigResource::from_kafka(type_code, name) else { return Ok(()) };
    let given = configs.iter().filter_map(|(name, value)| Some((name.clone(), value.clone()?)));
    check(&given.collect(), file)
}

fn check(after: &ConfigMap, file: &StaticConfig) -> Result<(), Refusal> {
    let refuse = |message: String| Err(Refusal::Decided(ControlError::new(ErrorCode::InvalidConfig, message)));
    // What is no number the controller refuses, with the words for it.
    let set = |name: &str| after.get(name).and_then(|value| value.trim().parse::<i64>().ok());
    for name in BOUNDED {
        let Some(value) = set(name) else { continue };
        let (kind, rest) = name.split_once('.').unwrap_or((name, ""));
        let (min, max) = (format!("group.{kind}.min.{rest}"), format!("group.{kind}.max.{rest}"));
        if broker(&min, file).is_some_and(|min| value < min) {
            return refuse(format!("{name} must be greater than or equal to {min}"));
        }
        if broker(&max, file).is_some_and(|max| value > max) {
            return refuse(format!("{name} must be less than or equal to {max}"));
        }
    }
    let effective = |name: &str| set(name).or_else(|| broker(&format!("group.{name}"), file));
    let (session, heartbeat) = ("consumer.session.timeout.ms", "consumer.heartbeat.interval.ms");
    if effective(session) <= effective(heartbeat) {
        return refuse(format!("{session} must be greater than {heartbeat}"));
    }
    Ok(())
}

/// A config of this broker that cannot be changed while it runs.
fn broker(name: &str, file: &StaticConfig) -> Option<i64> {
    let nothing_dynamic = MetadataImage::default();
    let found = configs::resolve_broker(&nothing_dynamic, name, BrokerId::NONE, file)?;
    found.value?.trim().parse().ok()
}
