//! The configs that Kafka has, as data (`data/configs.txt`), with their validation; and typed access to those of a topic.
//!
//! A config that Ottla does not act on is still validated, stored and described. Invariant: [`validate`] accepts each default.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;

use model::{BrokerId, TimestampType};

pub use crate::flush::FlushPolicy;
use crate::image::MetadataImage;
use crate::records::ConfigResource;

/// The name of the config behind `R18`, `R20` and `R34`.
pub const MIN_INSYNC_REPLICAS: &str = "min.insync.replicas";
/// The name of the config behind `R79`: `isr`, or `zones=` and how many zones must have a record before it is acknowledged.
pub const ACK_RULE: &str = "ottla.ack.rule";
/// The name of the config behind `R36`.
pub const UNCLEAN_LEADER_ELECTION: &str = "unclean.leader.election.enable";

const KAFKA: &str = include_str!("../data/configs.txt");
const OTTLA: &str = include_str!("../data/ottla-configs.txt");

/// What follows from `flush.messages` and `flush.ms`, as DescribeConfigs shows it: to be read, not to be set.
pub static FLUSH_MODE: ConfigDefinition = ConfigDefinition {
    name: "ottla.flush.mode",
    scope: Scope::Topic,
    config_type: ConfigType::String,
    default: ConfigDefault::Null,
    broker_synonym: None,
    mode: UpdateMode::ReadOnly,
    valid: Valid::Any,
};

/// Which table a config stands in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Scope {
    /// Of topics.
    Topic,
    /// Of consumer, share and streams groups.
    Group,
    /// Of brokers.
    Broker,
}

/// The type of a value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[expect(missing_docs, reason = "named as Kafka names them")]
pub enum ConfigType {
    Boolean,
    String,
    Int,
    Short,
    Long,
    Double,
    List,
    Class,
    Password,
}

/// Where a broker config may be changed while brokers run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum UpdateMode {
    /// Nowhere.
    ReadOnly,
    /// For one broker, or for all.
    PerBroker,
    /// For all brokers, or for one.
    ClusterWide,
}

/// A default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigDefault {
    /// The config has to be given.
    Required,
    /// None.
    Null,
    /// This.
    Value(&'static str),
}

/// Which values are valid.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Valid {
    Any,
    Between { min: f64, max: Option<f64>, or: Option<f64> },
    OneOf { words: &'static str, any_case: bool },
    NonEmpty,
    ThrottledReplicas,
    OffsetReset,
    AckRule,
}

/// A config of the table.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ConfigDefinition {
    /// Its name.
    pub name: &'static str,
    /// Which table it stands in.
    pub scope: Scope,
    /// Its type.
    pub config_type: ConfigType,
    /// Its default.
    pub default: ConfigDefault,
    /// The broker config that stands in for it where it is not set: topics only.
    pub broker_synonym: Option<&'static str>,
    /// Where it may be changed.
    pub mode: UpdateMode,
    valid: Valid,
}

impl ConfigDefinition {
    /// Whether its value is never shown.
    #[must_use]
    pub fn is_sensitive(&self) -> bool {
        self.config_type == ConfigType::Password
    }

    /// Whether it cannot be changed while brokers run.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.mode == UpdateMode::ReadOnly
    }

    /// Its default as text; `None` where it has none.
    #[must_use]
    pub fn default_value(&self) -> Option<&'static str> {
        match self.default {
            ConfigDefault::Value(value) => Some(value),
            ConfigDefault::Required | ConfigDefault::Null => None,
        }
    }

    /// The value of a text.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn validate(&self, value: &str) -> Result<Typed, String> {
        let typed = self.parse(value)?;
        self.check(&typed).map_err(|why| format!("Invalid value {value} for configuration {}: {why}", self.name))?;
        Ok(typed)
    }

    fn parse(&self, value: &str) -> Result<Typed, String> {
        let wrong = |what: &str| format!("Invalid value {value} for configuration {}: {what}", self.name);
        let text = value.trim();
        match self.config_type {
            ConfigType::Boolean => match text.to_ascii_lowercase().as_str() {
                "true" => Ok(Typed::Boolean(true)),
                "false" => Ok(Typed::Boolean(false)),
                _ => Err(wrong("Expected value to be either true or false")),
            },
            ConfigType::Int => number::<i32>(text).ok_or_else(|| wrong("Not a number of type INT")),
            ConfigType::Short => number::<i16>(text).ok_or_else(|| wrong("Not a number of type SHORT")),
            ConfigType::Long => number::<i64>(text).ok_or_else(|| wrong("Not a number of type LONG")),
            ConfigType::Double => match text.parse::<f64>() {
                Ok(number) if !number.is_nan() => Ok(Typed::Double(number)),
                _ => Err(wrong("Not a number of type DOUBLE")),
            },
            ConfigType::List => Ok(Typed::List(list(text))),
            ConfigType::String | ConfigType::Class | ConfigType::Password => Ok(Typed::Text(text.to_owned())),
        }
    }

    fn check(&self, value: &Typed) -> Result<(), String> {
        match (self.valid, value) {
            (Valid::Between { min, max, or }, _) => {
                let Some(number) = value.as_f64() else { return Ok(()) };
                if or == Some(number) {
                    return Ok(());
                }
                if number < min {
                    return Err(format!("Value must be at least {min}"));
                }
                match max.filter(|max| number > *max) {
                    Some(max) => Err(format!("Value must be no more than {max}")),
                    None => Ok(()),
                }
            }
            (Valid::OneOf { words, any_case }, Typed::Text(text)) => one_of(words, any_case, "String", text),
            (Valid::OneOf { words, any_case }, Typed::List(items)) => {
                items.iter().try_for_each(|item| one_of(words, any_case, "List", item))
            }
            (Valid::NonEmpty, Typed::Text(text)) if text.is_empty() => Err("String must be non-empty".to_owned()),
            (Valid::NonEmpty, Typed::List(items)) if items.is_empty() => Err("List must be non-empty".to_owned()),
            (Valid::ThrottledReplicas, Typed::List(items)) => throttled(items),
            (Valid::OffsetReset, Typed::Text(text)) => offset_reset(text),
            (Valid::AckRule, Typed::Text(text)) => match ack_zones(text) {
                Some(_) => Ok(()),
                None => Err("it must be isr, or zones=2 or more".to_owned()),
            },
            _ => Ok(()),
        }
    }
}

/// A value.
#[derive(Clone, PartialEq, Debug)]
pub enum Typed {
    /// A truth value.
    Boolean(bool),
    /// A whole number of any size.
    Integer(i64),
    /// A fraction.
    Double(f64),
    /// Comma-separated elements.
    List(Vec<String>),
    /// Any text.
    Text(String),
}

impl Typed {
    #[expect(clippy::cast_precision_loss, reason = "the bounds of the table are exact as f64")]
    fn as_f64(&self) -> Option<f64> {
        match self {
            Typed::Integer(value) => Some(*value as f64),
            Typed::Double(value) => Some(*value),
            Typed::Boolean(_) | Typed::List(_) | Typed::Text(_) => None,
        }
    }
}

impl fmt::Display for Typed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Typed::Boolean(value) => value.fmt(f),
            Typed::Integer(value) => value.fmt(f),
            Typed::Double(value) => value.fmt(f),
            Typed::List(items) => items.join(",").fmt(f),
            Typed::Text(text) => text.fmt(f),
        }
    }
}

/// All configs of a scope, by name.
#[must_use]
pub fn all(scope: Scope) -> &'static BTreeMap<&'static str, ConfigDefinition> {
    let tables = tables();
    match scope {
        Scope::Topic => &tables.topic,
        Scope::Group => &tables.group,
        Scope::Broker => &tables.broker,
    }
}

/// A topic config by name.
#[must_use]
pub fn topic(name: &str) -> Option<&'static ConfigDefinition> {
    tables().topic.get(name)
}

/// A group config by name.
#[must_use]
pub fn group(name: &str) -> Option<&'static ConfigDefinition> {
    tables().group.get(name)
}

/// A broker config by name.
#[must_use]
pub fn broker(name: &str) -> Option<&'static ConfigDefinition> {
    tables().broker.get(name)
}

/// The scope of a resource's configs; `None` for client metrics, which have no table here.
#[must_use]
pub fn scope_of(resource: &ConfigResource) -> Option<Scope> {
    match resource {
        ConfigResource::Topic(_) => Some(Scope::Topic),
        ConfigResource::Broker(_) | ConfigResource::DefaultBroker => Some(Scope::Broker),
        ConfigResource::Group(_) => Some(Scope::Group),
        ConfigResource::ClientMetrics(_) => None,
    }
}

/// The value of a text for a config of a scope.
///
/// # Errors
/// A sentence that says what is wrong: an unknown name, or an invalid value.
pub fn validate(scope: Scope, name: &str, value: &str) -> Result<Typed, String> {
    let definition = all(scope).get(name).ok_or_else(|| match scope {
        Scope::Topic => format!("Unknown topic config name: {name}"),
        Scope::Group => format!("Unknown group config name: {name}"),
        Scope::Broker => format!("Unknown broker config name: {name}"),
    })?;
    definition.validate(value)
}

/// How many zones an ack rule asks for (`R79`): none by `isr`. `None` where it is no ack rule.
#[must_use]
pub fn ack_zones(rule: &str) -> Option<usize> {
    match rule.trim() {
        "isr" => Some(0),
        other => other.strip_prefix("zones=")?.parse().ok().filter(|zones| *zones >= 2),
    }
}

/// The elements of a list.
#[must_use]
pub fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// What happens to old records of a topic.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CleanupPolicy {
    /// Segments past retention are deleted.
    pub delete: bool,
    /// Only the last record of each key is kept.
    pub compact: bool,
}

/// The configs of a topic that Ottla acts on, on one broker.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "the fields are Kafka's topic configs of the same name")]
pub struct TopicConfig {
    pub cleanup_policy: CleanupPolicy,
    pub compression_gzip_level: i32,
    pub compression_lz4_level: i32,
    pub compression_type: String,
    pub compression_zstd_level: i32,
    pub delete_retention_ms: u64,
    pub file_delete_delay_ms: u64,
    pub flush_messages: u64,
    pub flush_ms: u64,
    pub index_interval_bytes: u32,
    pub max_compaction_lag_ms: u64,
    pub max_message_bytes: u32,
    pub message_timestamp_after_max_ms: u64,
    pub message_timestamp_before_max_ms: u64,
    pub message_timestamp_type: TimestampType,
    pub min_cleanable_dirty_ratio: f64,
    pub min_compaction_lag_ms: u64,
    pub min_insync_replicas: u32,
    pub preallocate: bool,
    /// `None`: no limit.
    pub retention_bytes: Option<u64>,
    /// `None`: no limit.
    pub retention_ms: Option<u64>,
    pub segment_bytes: u32,
    pub segment_index_bytes: u32,
    pub segment_jitter_ms: u64,
    pub segment_ms: u64,
    pub unclean_leader_election: bool,
}

/// A config's value, and where it comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved<'a> {
    /// The value; `None` where there is none.
    pub value: Option<Cow<'a, str>>,
    /// Where it comes from.
    pub source: ConfigSource,
}

/// Where a config's value comes from; the numbers are Kafka's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(i8)]
pub enum ConfigSource {
    /// Set for the topic.
    Topic = 1,
    /// Set for the broker while it runs.
    DynamicBroker = 2,
    /// Set for all brokers while they run.
    DynamicDefaultBroker = 3,
    /// From the broker's file.
    StaticBroker = 4,
    /// Kafka's default.
    Default = 5,
    /// Set for the group.
    Group = 8,
}

/// Why a broker must not have a value that Kafka would take.
#[must_use]
pub fn refusal(name: &str, value: &str) -> Option<&'static str> {
    // R50 is no choice.
    let unverified = name == "transaction.partition.verification.enable" && value.trim().eq_ignore_ascii_case("false");
    unverified.then_some(
        "partitions always ask a transaction's coordinator: else a late write could leave a transaction open for ever",
    )
}

/// A broker's own file, by Kafka's names.
pub type StaticConfig = BTreeMap<String, String>;

/// A topic's config on a broker: set for the topic, the broker, all brokers, in the broker's file, or the default.
/// `None` for a name that is no topic config.
#[must_use]
pub fn resolve_topic<'a>(
    image: &'a MetadataImage,
    topic_name: &str,
    name: &str,
    broker: BrokerId,
    file: &'a StaticConfig,
) -> Option<Resolved<'a>> {
    let definition = topic(name)?;
    if let Some(value) = image.config_of(&ConfigResource::Topic(topic_name.to_owned()), name) {
        return Some(Resolved { value: Some(value.into()), source: ConfigSource::Topic });
    }
    let synonym = definition.broker_synonym.and_then(|synonym| resolve_set(image, synonym, broker, file));
    Some(synonym.unwrap_or_else(|| by_default(definition)))
}

/// A broker's config: set for the broker, for all brokers, in its file, or the default. `None` for an unknown name.
#[must_use]
pub fn resolve_broker<'a>(
    image: &'a MetadataImage,
    name: &str,
    broker_id: BrokerId,
    file: &'a StaticConfig,
) -> Option<Resolved<'a>> {
    let definition = broker(name)?;
    Some(resolve_set(image, name, broker_id, file).unwrap_or_else(|| by_default(definition)))
}

fn by_default(definition: &ConfigDefinition) -> Resolved<'static> {
    Resolved { value: definition.default_value().map(Cow::Borrowed), source: ConfigSource::Default }
}

fn resolve_set<'a>(
    image: &'a MetadataImage,
    name: &str,
    broker: BrokerId,
    file: &'a StaticConfig,
) -> Option<Resolved<'a>> {
    if let Some(value) = image.config_of(&ConfigResource::Broker(broker), name) {
        return Some(Resolved { value: Some(value.into()), source: ConfigSource::DynamicBroker });
    }
    if let Some(value) = image.config_of(&ConfigResource::DefaultBroker, name) {
        return Some(Resolved { value: Some(value.into()), source: ConfigSource::DynamicDefaultBroker });
    }
    // A broker's own idea of min ISR must not differ from the controller's (R18, R34).
    if name == MIN_INSYNC_REPLICAS {
        return None;
    }
    let exact = file.get(name).map(|value| Cow::Borrowed(value.as_str()));
    let value =
        exact.or_else(|| coarser(name).iter().find_map(|(name, factor)| in_milliseconds(file.get(*name)?, *factor)));
    value.map(|value| Resolved { value: Some(value), source: ConfigSource::StaticBroker })
}

/// A value in a coarser unit; negative ones mean "no limit" in any unit.
fn in_milliseconds(value: &str, factor: i64) -> Option<Cow<'static, str>> {
    let value: i64 = value.trim().parse().ok()?;
    let value = if value < 0 { value } else { value.saturating_mul(factor) };
    Some(Cow::Owned(value.to_string()))
}

/// Broker configs in coarser units that stand in for one in milliseconds, with the factor.
fn coarser(name: &str) -> &'static [(&'static str, i64)] {
    match name {
        "log.retention.ms" => &[("log.retention.minutes", 60_000), ("log.retention.hours", 3_600_000)],
        "log.roll.ms" => &[("log.roll.hours", 3_600_000)],
        "log.roll.jitter.ms" => &[("log.roll.jitter.hours", 3_600_000)],
        "log.flush.interval.ms" => &[("log.flush.scheduler.interval.ms", 1)],
        _ => &[],
    }
}

impl TopicConfig {
    /// The configs of a topic on a broker. What cannot be read, which [`validate`] let nobody set, counts as the default.
    #[must_use]
    pub fn resolve(image: &MetadataImage, topic_name: &str, broker: BrokerId, file: &StaticConfig) -> TopicConfig {
        let reader = Reader { image, topic_name, broker, file };
        let policy = list(&reader.text("cleanup.policy"));
        let log_append_time = reader.text("message.timestamp.type") == "LogAppendTime";
        TopicConfig {
            cleanup_policy: CleanupPolicy {
                delete: policy.iter().any(|word| word == "delete"),
                compact: policy.iter().any(|word| word == "compact"),
            },
            compression_gzip_level: reader.i32("compression.gzip.level"),
            compression_lz4_level: reader.i32("compression.lz4.level"),
            compression_type: reader.text("compression.type"),
            compression_zstd_level: reader.i32("compression.zstd.level"),
            delete_retention_ms: reader.u64("delete.retention.ms"),
            file_delete_delay_ms: reader.u64("file.delete.delay.ms"),
            flush_messages: reader.u64("flush.messages"),
            flush_ms: reader.u64("flush.ms"),
            index_interval_bytes: reader.u32("index.interval.bytes"),
            max_compaction_lag_ms: reader.u64("max.compaction.lag.ms"),
            max_message_bytes: reader.u32("max.message.bytes"),
            message_timestamp_after_max_ms: reader.u64("message.timestamp.after.max.ms"),
            message_timestamp_before_max_ms: reader.u64("message.timestamp.before.max.ms"),
            message_timestamp_type: if log_append_time {
                TimestampType::LogAppendTime
            } else {
                TimestampType::CreateTime
            },
            min_cleanable_dirty_ratio: reader.f64("min.cleanable.dirty.ratio"),
            min_compaction_lag_ms: reader.u64("min.compaction.lag.ms"),
            min_insync_replicas: reader.u32(MIN_INSYNC_REPLICAS),
            preallocate: reader.bool("preallocate"),
            retention_bytes: u64::try_from(reader.i64("retention.bytes")).ok(),
            retention_ms: u64::try_from(reader.i64("retention.ms")).ok(),
            segment_bytes: reader.u32("segment.bytes"),
            segment_index_bytes: reader.u32("segment.index.bytes"),
            segment_jitter_ms: reader.u64("segment.jitter.ms"),
            segment_ms: reader.u64("segment.ms"),
            unclean_leader_election: reader.bool(UNCLEAN_LEADER_ELECTION),
        }
    }

    /// When its appends are synced.
    #[must_use]
    pub fn flush_policy(&self) -> FlushPolicy {
        let signed = |value| i64::try_from(value).unwrap_or(i64::MAX);
        FlushPolicy::of(signed(self.flush_messages), signed(self.flush_ms))
    }
}

struct Reader<'a> {
    image: &'a MetadataImage,
    topic_name: &'a str,
    broker: BrokerId,
    file: &'a StaticConfig,
}

impl Reader<'_> {
    fn typed(&self, name: &str) -> Typed {
        let definition = topic(name).expect("the names above stand in the table");
        let set = resolve_topic(self.image, self.topic_name, name, self.broker, self.file).and_then(|r| r.value);
        let set = set.and_then(|value| definition.validate(&value).ok());
        let default = || definition.default_value().and_then(|value| definition.parse(value).ok());
        set.or_else(default).expect("each topic config has a valid default")
    }

    fn text(&self, name: &str) -> String {
        self.typed(name).to_string()
    }

    fn i64(&self, name: &str) -> i64 {
        match self.typed(name) {
            Typed::Integer(value) => value,
            other => panic!("{name} is no whole number: {other}"),
        }
    }

    fn u64(&self, name: &str) -> u64 {
        u64::try_from(self.i64(name)).unwrap_or(0)
    }

    fn u32(&self, name: &str) -> u32 {
        u32::try_from(self.u64(name)).unwrap_or(u32::MAX)
    }

    fn i32(&self, name: &str) -> i32 {
        i32::try_from(self.i64(name)).unwrap_or(i32::MAX)
    }

    fn f64(&self, name: &str) -> f64 {
        match self.typed(name) {
            Typed::Double(value) => value,
            other => panic!("{name} is no fraction: {other}"),
        }
    }

    fn bool(&self, name: &str) -> bool {
        self.typed(name) == Typed::Boolean(true)
    }
}

/// The log directories that take no new replicas on a broker, as configured: paths, or `*` for all (KIP-1066).
#[must_use]
pub fn cordoned_log_dirs(image: &MetadataImage, broker_id: BrokerId, file: &StaticConfig) -> Vec<String> {
    let resolved = resolve_broker(image, "cordoned.log.dirs", broker_id, file);
    resolved.and_then(|resolved| resolved.value).map(|value| list(&value)).unwrap_or_default()
}

/// Whether a value of `cordoned.log.dirs` names directories of a broker that has these, or `*` alone.
///
/// # Errors
/// What is wrong with it, in words.
pub fn check_cordoned(value: &str, log_dirs: &[String]) -> Result<(), String> {
    let named = list(value);
    if named.len() > 1 && named.iter().any(|each| each == "*") {
        return Err("cordoned.log.dirs: * stands for all log directories, and no other may stand beside it".to_owned());
    }
    match named.iter().find(|each| *each != "*" && !log_dirs.contains(each)) {
        Some(other) => {
            let all = log_dirs.join(",");
            Err(format!("cordoned.log.dirs: {other} is none of this broker's log directories, which are {all}"))
        }
        None => Ok(()),
    }
}

/// How many bytes a second all moves between the log directories of a broker may copy:
/// `replica.alter.log.dirs.io.max.bytes.per.second`.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a rate needs no exact bytes")]
pub fn alter_log_dirs_rate(image: &MetadataImage, broker_id: BrokerId, file: &StaticConfig) -> f64 {
    match broker_value(image, "replica.alter.log.dirs.io.max.bytes.per.second", broker_id, file) {
        Typed::Integer(rate) => rate as f64,
        other => panic!("the rate is no whole number: {other}"),
    }
}

/// The configs of the log cleaner, on one broker: `log.cleaner.*`.
#[derive(Clone, Copy, PartialEq, Debug)]
#[expect(missing_docs, reason = "the fields are Kafka's broker configs of the same name")]
pub struct CleanerConfig {
    pub backoff_ms: u64,
    pub dedupe_buffer_size: u64,
    pub enable: bool,
    pub io_buffer_load_factor: f64,
    pub io_buffer_size: u64,
    pub io_max_bytes_per_second: f64,
    pub threads: u32,
}

impl CleanerConfig {
    /// The configs of the cleaner on a broker. What cannot be read, which [`validate`] let nobody set, counts as the default.
    #[must_use]
    pub fn resolve(image: &MetadataImage, broker: BrokerId, file: &StaticConfig) -> CleanerConfig {
        let typed = |name: &str| broker_value(image, name, broker, file);
        let whole = |name| match typed(name) {
            Typed::Integer(value) => u64::try_from(value).unwrap_or(0),
            other => panic!("{name} is no whole number: {other}"),
        };
        let fraction = |name| match typed(name) {
            Typed::Double(value) => value,
            other => panic!("{name} is no fraction: {other}"),
        };
        CleanerConfig {
            backoff_ms: whole("log.cleaner.backoff.ms"),
            dedupe_buffer_size: whole("log.cleaner.dedupe.buffer.size"),
            enable: typed("log.cleaner.enable") == Typed::Boolean(true),
            io_buffer_load_factor: fraction("log.cleaner.io.buffer.load.factor"),
            io_buffer_size: whole("log.cleaner.io.buffer.size"),
            io_max_bytes_per_second: fraction("log.cleaner.io.max.bytes.per.second"),
            threads: u32::try_from(whole("log.cleaner.threads")).unwrap_or(u32::MAX),
        }
    }
}

fn broker_value(image: &MetadataImage, name: &str, broker_id: BrokerId, file: &StaticConfig) -> Typed {
    let definition = broker(name).expect("the names that the broker asks for stand in the table");
    let set = resolve_broker(image, name, broker_id, file).and_then(|resolved| resolved.value);
    let set = set.and_then(|value| definition.validate(&value).ok());
    let default = || definition.default_value().and_then(|value| definition.parse(value).ok());
    set.or_else(default).expect("each config that the broker asks for has a valid default")
}

struct Tables {
    topic: BTreeMap<&'static str, ConfigDefinition>,
    group: BTreeMap<&'static str, ConfigDefinition>,
    broker: BTreeMap<&'static str, ConfigDefinition>,
}

fn tables() -> &'static Tables {
    static TABLES: OnceLock<Tables> = OnceLock::new();
    TABLES.get_or_init(|| {
        let mut tables = Tables { topic: BTreeMap::new(), group: BTreeMap::new(), broker: BTreeMap::new() };
        for text in [KAFKA, OTTLA] {
            let mut scope = Scope::Topic;
            for line in text.lines().filter(|line| !line.is_empty()) {
                if let Some(heading) = line.strip_prefix("# ") {
                    scope = heading_scope(heading);
                    continue;
                }
                let definition = parse_line(scope, line).expect("the table is well formed");
                tables.of(scope).insert(definition.name, definition);
            }
        }
        tables
    })
}

impl Tables {
    fn of(&mut self, scope: Scope) -> &mut BTreeMap<&'static str, ConfigDefinition> {
        match scope {
            Scope::Topic => &mut self.topic,
            Scope::Group => &mut self.group,
            Scope::Broker => &mut self.broker,
        }
    }
}

fn heading_scope(heading: &str) -> Scope {
    match heading.split(' ').next() {
        Some("group") => Scope::Group,
        Some("broker") => Scope::Broker,
        _ => Scope::Topic,
    }
}

/// `name type default=… [valid=…] [broker=… | mode]`
fn parse_line(scope: Scope, line: &'static str) -> Option<ConfigDefinition> {
    let (name, rest) = line.split_once(' ')?;
    let (config_type, rest) = rest.split_once(" default=")?;
    let (rest, broker_synonym, mode) = match scope {
        Scope::Topic => match rest.rsplit_once(" broker=") {
            Some((rest, synonym)) => (rest, Some(synonym), UpdateMode::ClusterWide),
            None => (rest, None, UpdateMode::ClusterWide),
        },
        Scope::Group => (rest, None, UpdateMode::ClusterWide),
        Scope::Broker => {
            let (rest, mode) = rest.rsplit_once(' ')?;
            (rest, None, update_mode(mode)?)
        }
    };
    let (default, valid) = rest.split_once(" valid=").unwrap_or((rest, ""));
    let default = match default {
        "null" => ConfigDefault::Null,
        "required" => ConfigDefault::Required,
        "[]" | "\"\"" => ConfigDefault::Value(""),
        value => ConfigDefault::Value(value),
    };
    let config_type = parse_type(config_type)?;
    Some(ConfigDefinition { name, scope, config_type, default, broker_synonym, mode, valid: parse_valid(valid)? })
}

fn update_mode(word: &str) -> Option<UpdateMode> {
    match word {
        "read-only" => Some(UpdateMode::ReadOnly),
        "per-broker" => Some(UpdateMode::PerBroker),
        "cluster-wide" => Some(UpdateMode::ClusterWide),
        _ => None,
    }
}

fn parse_type(word: &str) -> Option<ConfigType> {
    match word {
        "boolean" => Some(ConfigType::Boolean),
        "string" => Some(ConfigType::String),
        "int" => Some(ConfigType::Int),
        "short" => Some(ConfigType::Short),
        "long" => Some(ConfigType::Long),
        "double" => Some(ConfigType::Double),
        "list" => Some(ConfigType::List),
        "class" => Some(ConfigType::Class),
        "password" => Some(ConfigType::Password),
        _ => None,
    }
}

fn parse_valid(text: &'static str) -> Option<Valid> {
    match text {
        "" | "non-null string" => return Some(Valid::Any),
        "non-empty string" | "non-empty list" => return Some(Valid::NonEmpty),
        "[partitionId]:[brokerId],[partitionId]:[brokerId],..." => return Some(Valid::ThrottledReplicas),
        "[latest, earliest, by_duration:PnDTnHnMn.nS]" => return Some(Valid::OffsetReset),
        "isr or zones=[2,...]" => return Some(Valid::AckRule),
        _ => {}
    }
    let (words, any_case) = match text.strip_prefix("(case insensitive) ") {
        Some(words) => (words, true),
        None => (text, false),
    };
    let Some((range, or)) = words.split_once(",...") else {
        return Some(Valid::OneOf { words: words.strip_prefix('[')?.strip_suffix(']')?, any_case });
    };
    let (max, or) = or.split_once(']')?;
    let max = max.strip_prefix(',').map(str::parse).transpose().ok()?;
    let or = or.strip_prefix(" or ").map(str::parse).transpose().ok()?;
    Some(Valid::Between { min: range.strip_prefix('[')?.parse().ok()?, max, or })
}

fn number<T: std::str::FromStr + Into<i64>>(text: &str) -> Option<Typed> {
    text.parse::<T>().ok().map(|number| Typed::Integer(number.into()))
}

fn one_of(words: &str, any_case: bool, what: &str, value: &str) -> Result<(), String> {
    let same = |word: &str| if any_case { word.eq_ignore_ascii_case(value) } else { word == value };
    if words.split(", ").any(same) {
        return Ok(());
    }
    let hint = if any_case { " (case insensitive)" } else { "" };
    Err(format!("{what} must be one of{hint}: {words}"))
}

fn throttled(items: &[String]) -> Result<(), String> {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let pair =
        |item: &String| item.split_once(':').is_some_and(|(partition, broker)| number(partition) && number(broker));
    if matches!(items, [all] if all == "*") || items.iter().all(pair) {
        return Ok(());
    }
    Err("it must be the literal '*' or a list of replicas as [partitionId]:[brokerId],[partitionId]:[brokerId],..."
        .to_owned())
}

fn offset_reset(text: &str) -> Result<(), String> {
    let duration = |text: &str| text.strip_prefix("by_duration:P").is_some_and(|rest| !rest.is_empty());
    if ["latest", "earliest"].contains(&text) || duration(text) {
        return Ok(());
    }
    Err("it must be latest, earliest or by_duration:<ISO-8601 duration>".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::MetadataRecord;

    #[test]
    fn the_table_is_whole_and_each_default_is_valid() {
        assert_eq!([Scope::Topic, Scope::Group, Scope::Broker].map(|scope| all(scope).len()), [34, 17, 348]);
        for definition in [Scope::Topic, Scope::Group, Scope::Broker].iter().flat_map(|scope| all(*scope).values()) {
            let Some(default) = definition.default_value() else { continue };
            let is_empty_list = default.is_empty() && definition.config_type == ConfigType::List;
            assert!(is_empty_list || definition.validate(default).is_ok(), "{} = {default}", definition.name);
        }
    }

    #[test]
    fn each_broker_synonym_is_a_broker_config() {
        for definition in all(Scope::Topic).values() {
            assert!(definition.broker_synonym.is_none_or(|name| broker(name).is_some()), "{}", definition.name);
        }
    }

    #[test]
    fn values_are_held_against_type_and_range() {
        let check = |name, value| validate(Scope::Topic, name, value).map(|typed| typed.to_string());
        let ok = |value: &str| Ok(value.to_owned());
        assert_eq!(check("retention.ms", " -1 "), ok("-1"));
        assert_eq!(
            check("retention.ms", "-2"),
            Err("Invalid value -2 for configuration retention.ms: Value must be at least -1".to_owned())
        );
        assert_eq!(check("cleanup.policy", "compact, delete"), ok("compact,delete"));
        assert!(check("cleanup.policy", "compact,burn").is_err());
        assert_eq!(check("compression.gzip.level", "-1"), ok("-1"));
        assert!(check("compression.gzip.level", "0").is_err());
        assert!(check("compression.gzip.level", "10").is_err());
        assert_eq!(check("compression.zstd.level", "-131072"), ok("-131072"));
        assert!(check("min.cleanable.dirty.ratio", "1.1").is_err());
        assert!(check("min.cleanable.dirty.ratio", "NaN").is_err());
        assert!(check("segment.bytes", "1048575").is_err());
        assert!(check("segment.bytes", "2147483648").is_err());
        assert_eq!(check("preallocate", "TRUE"), ok("true"));
        assert!(check("preallocate", "yes").is_err());
        assert_eq!(check("leader.replication.throttled.replicas", "0:1,1:2"), ok("0:1,1:2"));
        assert_eq!(check("leader.replication.throttled.replicas", "*"), ok("*"));
        assert!(check("leader.replication.throttled.replicas", "0:x").is_err());
        assert_eq!(["isr", "zones=2", "zones=12"].map(|rule| check(ACK_RULE, rule).is_ok()), [true; 3]);
        assert_eq!(
            ["", "zones=1", "zones=", "zones=-2", "racks=2"].map(|rule| check(ACK_RULE, rule).is_ok()),
            [false; 5]
        );
        assert_eq!(check("no.such", "1"), Err("Unknown topic config name: no.such".to_owned()));
        assert!(validate(Scope::Broker, "group.consumer.migration.policy", "Upgrade").is_ok());
    }

    #[test]
    fn a_value_comes_from_the_nearest_place_that_sets_it() {
        let mut image = MetadataImage::default();
        let file: StaticConfig = [("log.retention.hours".to_owned(), "2".to_owned())].into();
        let find = |image: &MetadataImage, file: &StaticConfig| {
            let found = resolve_topic(image, "t", "retention.ms", BrokerId(1), file).unwrap();
            (found.value.unwrap().into_owned(), found.source)
        };
        assert_eq!(find(&image, &StaticConfig::new()), ("604800000".to_owned(), ConfigSource::Default));
        assert_eq!(find(&image, &file), ("7200000".to_owned(), ConfigSource::StaticBroker));
        let places = [
            (ConfigResource::DefaultBroker, "log.retention.ms", ConfigSource::DynamicDefaultBroker),
            (ConfigResource::Broker(BrokerId(1)), "log.retention.ms", ConfigSource::DynamicBroker),
            (ConfigResource::Topic("t".to_owned()), "retention.ms", ConfigSource::Topic),
        ];
        for (at, (resource, name, source)) in places.into_iter().enumerate() {
            let value = Some(at.to_string());
            image.apply(&MetadataRecord::Config { resource, name: name.to_owned(), value });
            assert_eq!(find(&image, &file), (at.to_string(), source));
        }
        let config = TopicConfig::resolve(&image, "t", BrokerId(1), &file);
        assert_eq!((config.retention_ms, config.retention_bytes, config.segment_bytes), (Some(2), None, 1 << 30));
    }

    #[test]
    fn min_isr_does_not_come_from_a_brokers_file() {
        // R18, R34: the leader and the controller must mean the same.
        let file: StaticConfig = [(MIN_INSYNC_REPLICAS.to_owned(), "2".to_owned())].into();
        let config = TopicConfig::resolve(&MetadataImage::default(), "t", BrokerId(1), &file);
        assert_eq!(config.min_insync_replicas, 1);
    }
}
