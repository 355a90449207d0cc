//! What an operator may choose for the listeners, under Kafka's names.

use metadata::MetadataImage;
use metadata::configs::{self, StaticConfig, Typed};
use model::BrokerId;

/// The budget where `queued.max.request.bytes` is not set: Kafka has none then, and falls to clients that hold memory.
const MEMORY_DEFAULT: u64 = 256 << 20;

/// The limits of the listeners of one broker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// `socket.request.max.bytes`: a larger frame closes its connection.
    pub request_bytes_max: usize,
    /// `queued.max.request.bytes`: what requests and responses in flight may take.
    pub memory_bytes: u64,
    /// `max.connections`: over it connections wait to be accepted.
    pub connections_max: usize,
    /// `max.connections.per.ip`: over it connections of that address are closed.
    pub connections_per_ip_max: usize,
    /// So many connections the system's limit of open files has descriptors for; over it they are closed. Not in the file.
    pub descriptors: Descriptors,
    /// `connections.max.idle.ms`; `None`: for ever.
    pub connection_idle_ms_max: Option<u64>,
    /// `fetch.max.bytes`.
    pub fetch_bytes_max: usize,
    /// `max.incremental.fetch.session.cache.slots`.
    pub fetch_sessions_max: usize,
    /// `max.request.partition.size.limit`: partitions in one DescribeTopicPartitions response.
    pub described_partitions_max: usize,
    /// `auto.create.topics.enable`.
    pub auto_create_topics: bool,
    /// `delete.topic.enable`.
    pub delete_topics: bool,
}

impl Limits {
    /// The limits of a broker's file, with Kafka's defaults. Values that are not valid count as the default: whoever
    /// reads the file refuses them.
    #[must_use]
    pub fn from_file(file: &StaticConfig) -> Self {
        Self {
            request_bytes_max: size(file, "socket.request.max.bytes"),
            memory_bytes: u64::try_from(integer(file, "queued.max.request.bytes")).unwrap_or(MEMORY_DEFAULT),
            connections_max: size(file, "max.connections"),
            connections_per_ip_max: size(file, "max.connections.per.ip"),
            descriptors: Descriptors::UNLIMITED,
            connection_idle_ms_max: u64::try_from(integer(file, "connections.max.idle.ms")).ok(),
            fetch_bytes_max: size(file, "fetch.max.bytes"),
            fetch_sessions_max: size(file, "max.incremental.fetch.session.cache.slots"),
            described_partitions_max: size(file, "max.request.partition.size.limit"),
            auto_create_topics: typed(file, "auto.create.topics.enable") == Typed::Boolean(true),
            delete_topics: typed(file, "delete.topic.enable") == Typed::Boolean(true),
        }
    }
}

/// What the system's limit of open files leaves to connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Descriptors {
    /// The limit of the process (RLIMIT_NOFILE).
    pub limit: usize,
    /// What is left of it for connections of clients.
    pub connections: usize,
}

impl Descriptors {
    /// No limit.
    pub const UNLIMITED: Descriptors = Descriptors { limit: usize::MAX, connections: usize::MAX };
}

/// How many connections there may be: what an operator may change while the broker runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ConnectionLimits {
    /// `max.connections`.
    pub(crate) all: usize,
    /// `max.connections.per.ip`.
    pub(crate) per_ip: usize,
}

impl ConnectionLimits {
    /// As the metadata has them for `broker`, else as its file.
    pub(crate) fn resolve(image: &MetadataImage, broker: BrokerId, file: &Limits) -> Self {
        let set = |name| {
            let value = image.broker_config(broker, name)?;
            let valid = configs::broker(name).and_then(|definition| definition.validate(value).ok())?;
            if let Typed::Integer(value) = valid { usize::try_from(value).ok() } else { None }
        };
        Self {
            all: set("max.connections").unwrap_or(file.connections_max),
            per_ip: set("max.connections.per.ip").unwrap_or(file.connections_per_ip_max),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::from_file(&StaticConfig::new())
    }
}

fn typed(file: &StaticConfig, name: &str) -> Typed {
    let definition = configs::broker(name).expect("the names above stand in the table");
    let set = file.get(name).and_then(|value| definition.validate(value).ok());
    let default = || definition.default_value().and_then(|value| definition.validate(value).ok());
    set.or_else(default).expect("each of these configs has a valid default")
}

fn integer(file: &StaticConfig, name: &str) -> i64 {
    match typed(file, name) {
        Typed::Integer(value) => value,
        other => panic!("{name} is no whole number: {other}"),
    }
}

fn size(file: &StaticConfig, name: &str) -> usize {
    usize::try_from(integer(file, name)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_kafkas_and_the_file_overrides_them() {
        let limits = Limits::default();
        assert_eq!(limits.request_bytes_max, 104_857_600);
        assert_eq!(limits.connection_idle_ms_max, Some(600_000));
        assert_eq!(limits.memory_bytes, MEMORY_DEFAULT);
        assert!(limits.auto_create_topics && limits.delete_topics);
        let file = [
            ("queued.max.request.bytes", "1000"),
            ("auto.create.topics.enable", "false"),
            ("connections.max.idle.ms", "-1"),
        ];
        let file = file.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
        let limits = Limits::from_file(&file);
        assert_eq!((limits.memory_bytes, limits.auto_create_topics), (1_000, false));
        assert_eq!(limits.connection_idle_ms_max, None);
    }
}
