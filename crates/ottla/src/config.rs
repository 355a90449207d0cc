//! A node's configuration: a Kafka properties file with Kafka's names and defaults, and our own names under `ottla.`.
//!
//! Invariants: an unknown name is refused with the nearest known one; what is read here is complete and consistent, so the
//! rest of the binary asks no further questions; nothing else reads the file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use metadata::configs::{self, Scope};

use crate::properties;

/// Our own names, with what they are for. Kafka has nothing like them.
pub(crate) const OWN: &[(&str, &str)] = &[
    ("ottla.http.listener", "host:port of metrics and health, or empty for none"),
    ("ottla.log.format", "text or json"),
    ("ottla.peer.keepalive.ms", "between two signs of life among brokers, and to the controller (R76)"),
    ("ottla.peer.silence.ms", "how long a broker may owe such a sign before it is suspected (R76)"),
    ("ottla.pid.file", "where to write the process id while the node runs"),
    ("ottla.probe.timeout.ms", "how long each of two probes of a suspected broker waits before it is fenced (R76)"),
    ("ottla.recovery.wait.ms", "how long recovery among the last known replicas waits for absent ones (R35)"),
    ("ottla.tail.cache.bytes", "memory for recent record batches, shared by all partitions"),
    ("ottla.tcp.congestion.control", "for what listeners send, or empty for the system's own choice"),
    ("ottla.threads", "threads that serve clients and replicate; the processors of the machine by default"),
];

/// The listener that brokers use among themselves.
pub(crate) const INTERNAL: &str = "INTERNAL";
/// The listener of the metadata quorum.
pub(crate) const CONTROLLER: &str = "CONTROLLER";

/// One `NAME://host:port`. An empty host means every interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Listener {
    pub(crate) name: String,
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Listener {
    fn parse(text: &str) -> Result<Listener> {
        let (name, address) = text.split_once("://").with_context(|| format!("{text:?} is not NAME://host:port"))?;
        let (host, port) = split_address(address)?;
        Ok(Listener { name: name.to_uppercase(), host, port })
    }

    /// What to bind: every interface where no host is given.
    pub(crate) fn bind_address(&self) -> String {
        let host = if self.host.is_empty() { "0.0.0.0" } else { &self.host };
        if host.contains(':') { format!("[{host}]:{}", self.port) } else { format!("{host}:{}", self.port) }
    }
}

/// A voter of `controller.quorum.voters`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Voter {
    pub(crate) id: i32,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// The only security protocol that is spoken.
const PLAINTEXT: &str = "PLAINTEXT";

/// Everything that a node needs to know to start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NodeConfig {
    pub(crate) node_id: i32,
    pub(crate) is_broker: bool,
    pub(crate) is_controller: bool,
    pub(crate) rack: Option<String>,
    /// What to bind.
    pub(crate) listeners: Vec<Listener>,
    /// What to tell others, for the same names.
    pub(crate) advertised: Vec<Listener>,
    pub(crate) voters: Vec<Voter>,
    pub(crate) log_dirs: Vec<PathBuf>,
    pub(crate) metadata_dir: PathBuf,
    pub(crate) http: Option<String>,
    pub(crate) json_logs: bool,
    pub(crate) pid_file: Option<PathBuf>,
    /// Every name that was given, for those who act on it.
    pub(crate) given: BTreeMap<String, String>,
}

impl NodeConfig {
    /// Reads a file and applies `--override name=value` in order.
    pub(crate) fn load(file: &Path, overrides: &[String]) -> Result<NodeConfig> {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut given = properties::parse(&text).with_context(|| file.display().to_string())?;
        for text in overrides {
            let (name, value) = properties::parse_override(text)?;
            given.insert(name, value);
        }
        NodeConfig::from_properties(given).with_context(|| format!("configuration {}", file.display()))
    }

    pub(crate) fn from_properties(given: BTreeMap<String, String>) -> Result<NodeConfig> {
        check_names(&given)?;
        let get = |name: &str| given.get(name).map(String::as_str).filter(|value| !value.is_empty());
        let node_id: i32 = get("node.id").context("node.id is missing")?.parse().context("node.id is no number")?;
        ensure!(node_id >= 0, "node.id is {node_id}; it must be 0 or more");
        let roles: Vec<&str> = list(get("process.roles").unwrap_or("broker,controller"));
        for role in &roles {
            ensure!(
                matches!(*role, "broker" | "controller"),
                "process.roles has {role:?}; known are broker and controller"
            );
        }
        let (is_broker, is_controller) = (roles.contains(&"broker"), roles.contains(&"controller"));
        ensure!(is_broker || is_controller, "process.roles is empty; give broker, controller or both");
        ensure!(
            get("inter.broker.listener.name").is_none_or(|n| n == INTERNAL),
            "inter.broker.listener.name must be INTERNAL"
        );
        ensure!(
            get("controller.listener.names").is_none_or(|n| n == CONTROLLER),
            "controller.listener.names must be CONTROLLER"
        );
        let listeners =
            read_listeners(get("listeners").unwrap_or("PLAINTEXT://:9092,INTERNAL://:10092,CONTROLLER://:11092"))?;
        check_protocols(&listeners, get("listener.security.protocol.map"))?;
        ensure!(
            get("authorizer.class.name").is_none(),
            "authorizer.class.name is set, but there is no authorizer yet: everybody who connects may do everything. Remove it and keep the listeners where only friends reach them"
        );
        let advertised = advertise(&listeners, get("advertised.listeners"))?;
        let voters = read_voters(
            get("controller.quorum.voters").context("controller.quorum.voters is missing: id@host:port,…")?,
        )?;
        let log_dirs: Vec<PathBuf> = list(get("log.dirs").or(get("log.dir")).context("log.dirs is missing")?)
            .into_iter()
            .map(|path| std::path::absolute(path).with_context(|| format!("log.dirs has {path:?}")))
            .collect::<Result<_>>()?;
        ensure!(!log_dirs.is_empty(), "log.dirs is empty");
        let unique: std::collections::BTreeSet<_> = log_dirs.iter().collect();
        ensure!(unique.len() == log_dirs.len(), "log.dirs names a directory twice");
        let metadata_dir = match get("metadata.log.dir") {
            Some(path) => std::path::absolute(path).with_context(|| format!("metadata.log.dir is {path:?}"))?,
            None => log_dirs[0].clone(),
        };
        let json_logs = match get("ottla.log.format").unwrap_or("text") {
            "text" => false,
            "json" => true,
            other => bail!("ottla.log.format is {other:?}; known are text and json"),
        };
        let config = NodeConfig {
            node_id,
            is_broker,
            is_controller,
            rack: get("broker.rack").map(str::to_owned),
            listeners,
            advertised,
            voters,
            log_dirs,
            metadata_dir,
            http: get("ottla.http.listener").map(str::to_owned),
            json_logs,
            pid_file: get("ottla.pid.file").map(PathBuf::from),
            given: given.clone(),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        for listener in &self.advertised {
            let unroutable = matches!(listener.host.as_str(), "0.0.0.0" | "::" | "");
            ensure!(
                !unroutable || listener.name == CONTROLLER,
                "{} would be advertised as {:?}, where nobody can connect: set advertised.listeners",
                listener.name,
                listener.host
            );
            ensure!(
                listener.port != 0,
                "{} would be advertised at port 0, where nobody can connect: give listeners and advertised.listeners real ports",
                listener.name
            );
        }
        let has = |name: &str| self.listeners.iter().any(|l| l.name == name);
        if self.is_controller {
            ensure!(has(CONTROLLER), "process.roles has controller, but listeners has no CONTROLLER://host:port");
            let voter = self.voters.iter().find(|v| v.id == self.node_id);
            let Some(voter) = voter else {
                bail!("node {} has the role controller but is not in controller.quorum.voters", self.node_id)
            };
            // Elsewhere nobody would find it, and it would wait for them for ever.
            let reached = self.advertised.iter().find(|l| l.name == CONTROLLER).map_or(voter.port, |l| l.port);
            ensure!(
                reached == voter.port,
                "controller.quorum.voters has this node at port {}, but its CONTROLLER listener is at {reached}: make them the same, or tell the outer address by advertised.listeners",
                voter.port
            );
        }
        if let Some(cordoned) = self.given.get("cordoned.log.dirs").filter(|_| self.is_broker) {
            let log_dirs: Vec<String> = self.log_dirs.iter().map(|dir| dir.display().to_string()).collect();
            configs::check_cordoned(cordoned, &log_dirs).map_err(anyhow::Error::msg)?;
        }
        if self.is_broker {
            ensure!(has(INTERNAL), "process.roles has broker, but listeners has no INTERNAL://host:port");
            ensure!(
                self.kafka_listeners().next().is_some(),
                "process.roles has broker, but listeners has none for clients"
            );
        }
        Ok(())
    }

    /// The listeners that speak Kafka's protocol.
    pub(crate) fn kafka_listeners(&self) -> impl Iterator<Item = &Listener> {
        self.listeners.iter().filter(|l| l.name != INTERNAL && l.name != CONTROLLER)
    }

    /// The listener of a name.
    pub(crate) fn listener(&self, name: &str) -> Option<&Listener> {
        self.listeners.iter().find(|l| l.name == name)
    }

    /// A number that was given, or `default`.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T> {
        match self.given.get(name).filter(|value| !value.is_empty()) {
            None => Ok(default),
            Some(value) => value.parse().ok().with_context(|| format!("{name} is {value:?}, which is no valid number")),
        }
    }

    /// A boolean that was given, or `default`.
    pub(crate) fn boolean(&self, name: &str, default: bool) -> Result<bool> {
        match self.given.get(name).map(|value| value.trim().to_lowercase()).filter(|value| !value.is_empty()) {
            None => Ok(default),
            Some(value) => value.parse().ok().with_context(|| format!("{name} is {value:?}; it must be true or false")),
        }
    }
}

fn check_names(given: &BTreeMap<String, String>) -> Result<()> {
    let table = configs::all(Scope::Broker);
    let known: Vec<&str> = table.keys().copied().chain(OWN.iter().map(|(name, _)| *name)).collect();
    for (name, value) in given {
        if let Some(definition) = table.get(name.as_str()) {
            if let Err(reason) = definition.validate(value) {
                bail!("{name}: {reason}");
            }
            if let Some(reason) = configs::refusal(name, value) {
                bail!("{name}={value}: {reason}");
            }
            continue;
        }
        if known.contains(&name.as_str()) {
            continue;
        }
        let nearest = known.iter().map(|known| (distance(known, name), *known)).min();
        match nearest.filter(|(distance, _)| *distance <= name.len() / 3) {
            Some((_, nearest)) => bail!("{name} is not a configuration name; the nearest is {nearest}"),
            None => bail!("{name} is not a configuration name, and none is like it"),
        }
    }
    Ok(())
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn list(text: &str) -> Vec<&str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn read_listeners(text: &str) -> Result<Vec<Listener>> {
    let listeners: Vec<Listener> = list(text).into_iter().map(Listener::parse).collect::<Result<_>>()?;
    for (i, listener) in listeners.iter().enumerate() {
        let same = listeners[..i].iter().find(|other| other.name == listener.name || other.port == listener.port);
        if let Some(other) =
            same.filter(|other| other.name == listener.name || (other.port != 0 && other.host == listener.host))
        {
            bail!("listeners {} and {} have the same name or port", other.name, listener.name);
        }
    }
    Ok(listeners)
}

/// A listener that is meant to be secured must not serve everybody: only PLAINTEXT is spoken.
fn check_protocols(listeners: &[Listener], map: Option<&str>) -> Result<()> {
    let pairs = list(map.unwrap_or_default());
    let pair =
        |text: &str| text.split_once(':').map(|(name, protocol)| (name.trim().to_owned(), protocol.trim().to_owned()));
    for listener in listeners {
        let mapped = pairs.iter().filter_map(|text| pair(text)).find(|(name, _)| *name == listener.name);
        let by_name =
            || matches!(listener.name.as_str(), "SSL" | "SASL_PLAINTEXT" | "SASL_SSL").then(|| listener.name.clone());
        let protocol = mapped.map(|(_, protocol)| protocol).or_else(by_name).unwrap_or_else(|| PLAINTEXT.to_owned());
        ensure!(
            protocol == PLAINTEXT,
            "listener {} is to speak {protocol}, which is not there yet, and in PLAINTEXT it would serve everybody: see listeners and listener.security.protocol.map",
            listener.name
        );
    }
    Ok(())
}

/// A listener that is not advertised by name is advertised as it is bound.
fn advertise(listeners: &[Listener], given: Option<&str>) -> Result<Vec<Listener>> {
    let given: Vec<Listener> =
        list(given.unwrap_or_default()).into_iter().map(Listener::parse).collect::<Result<_>>()?;
    for listener in &given {
        let bound = listeners.iter().any(|l| l.name == listener.name);
        ensure!(bound, "advertised.listeners has {}, which listeners does not have", listener.name);
    }
    let find = |name: &str| given.iter().find(|l| l.name == name).cloned();
    Ok(listeners.iter().map(|l| find(&l.name).unwrap_or_else(|| local_name(l))).collect())
}

fn local_name(listener: &Listener) -> Listener {
    let host = if listener.host.is_empty() { "localhost".to_owned() } else { listener.host.clone() };
    Listener { host, ..listener.clone() }
}

fn read_voters(text: &str) -> Result<Vec<Voter>> {
    let mut voters = Vec::new();
    for part in list(text) {
        let (id, address) = part.split_once('@').with_context(|| format!("voter {part:?} is not id@host:port"))?;
        let (host, port) = split_address(address)?;
        let id = id.parse().with_context(|| format!("voter {part:?} has no number before the @"))?;
        ensure!(voters.iter().all(|v: &Voter| v.id != id), "voter {id} stands twice in controller.quorum.voters");
        voters.push(Voter { id, host, port });
    }
    ensure!(!voters.is_empty(), "controller.quorum.voters is empty");
    Ok(voters)
}

fn split_address(address: &str) -> Result<(String, u16)> {
    let (host, port) = address.rsplit_once(':').with_context(|| format!("{address:?} is not host:port"))?;
    let port = port.parse().with_context(|| format!("{address:?} has no valid port"))?;
    Ok((host.trim_matches(['[', ']']).to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(lines: &str) -> Result<NodeConfig> {
        let base = "node.id=1\nlog.dirs=/data\ncontroller.quorum.voters=1@127.0.0.1:11092\nlisteners=PLAINTEXT://127.0.0.1:9092,INTERNAL://127.0.0.1:10092,CONTROLLER://127.0.0.1:11092\n";
        NodeConfig::from_properties(properties::parse(&format!("{base}{lines}"))?)
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_nearest_known_one() {
        let error = given("log.retention.hour=3").unwrap_err().to_string();
        assert!(error.contains("log.retention.hours"), "{error}");
    }

    #[test]
    fn a_name_that_is_like_none_gets_no_suggestion() {
        let error = given("zookeeper.connect=z:1").unwrap_err().to_string();
        assert!(error.contains("none is like it"), "{error}");
    }

    #[test]
    fn what_no_broker_keeps_to_is_not_taken_and_forgotten() {
        let error = given("transaction.partition.verification.enable=false").unwrap_err().to_string();
        assert!(error.contains("transaction.partition.verification.enable=false"), "{error}");
        given("transaction.partition.verification.enable=true").unwrap();
    }

    #[test]
    fn what_is_to_be_secured_does_not_start_open() {
        let listeners = |name: &str| {
            format!("listeners={name}://127.0.0.1:9092,INTERNAL://127.0.0.1:10092,CONTROLLER://127.0.0.1:11092")
        };
        let map = "listener.security.protocol.map";
        for (lines, named) in [
            (listeners("SSL"), "SSL"),
            (format!("{}\n{map}=EXTERNAL:SASL_SSL", listeners("EXTERNAL")), "SASL_SSL"),
            (format!("{}\n{map}=PLAINTEXT:SSL", listeners("PLAINTEXT")), "SSL"),
            ("authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer".to_owned(), "authorizer"),
        ] {
            let error = given(&lines).unwrap_err().to_string();
            assert!(error.contains(named), "{lines}: {error}");
        }
        given(&format!("{}\n{map}=EXTERNAL:PLAINTEXT,PLAINTEXT:SSL", listeners("EXTERNAL"))).unwrap();
    }

    #[test]
    fn a_voter_is_where_the_others_look_for_it() {
        let error = given("controller.quorum.voters=1@127.0.0.1:4000").unwrap_err().to_string();
        assert!(error.contains("4000") && error.contains("11092"), "{error}");
        given("controller.quorum.voters=1@outside:4000\nadvertised.listeners=CONTROLLER://outside:4000").unwrap();
    }

    #[test]
    fn a_relative_directory_is_one_of_the_working_directory() {
        let config = given("log.dirs=data,/other").unwrap();
        assert_eq!(config.log_dirs, [std::env::current_dir().unwrap().join("data"), PathBuf::from("/other")]);
    }

    #[test]
    fn only_a_log_directory_can_be_cordoned() {
        for right in ["/b", "/a,/b", "*"] {
            given(&format!("log.dirs=/a,/b\ncordoned.log.dirs={right}")).unwrap();
        }
        for wrong in ["/c", "/a,*"] {
            let error = given(&format!("log.dirs=/a,/b\ncordoned.log.dirs={wrong}")).unwrap_err().to_string();
            assert!(error.contains("cordoned.log.dirs"), "{error}");
        }
    }

    #[test]
    fn an_advertised_address_that_cannot_be_is_refused() {
        let error =
            given("listeners=PLAINTEXT://0.0.0.0:9092,INTERNAL://127.0.0.1:10092,CONTROLLER://:11092").unwrap_err();
        assert!(error.to_string().contains("advertised.listeners"), "{error}");
        let good = given(
            "listeners=PLAINTEXT://0.0.0.0:9092,INTERNAL://127.0.0.1:10092,CONTROLLER://:11092\nadvertised.listeners=PLAINTEXT://node-1:9092",
        );
        assert_eq!(good.unwrap().advertised[0].host, "node-1");
        assert!(given("advertised.listeners=PLAINTEXT://node-1:0").unwrap_err().to_string().contains("port 0"));
    }

    #[test]
    fn a_controller_must_be_a_voter_and_names_must_not_repeat() {
        assert!(given("node.id=2").is_err());
        assert!(given("controller.quorum.voters=1@a:1,1@b:2").is_err());
        assert!(given("listeners=A://:1,A://:2").is_err());
        assert!(given("process.roles=broker,zookeeper").is_err());
    }

    #[test]
    fn defaults_stand_where_nothing_is_given() {
        let config = given("").unwrap();
        assert!(config.is_broker && config.is_controller && !config.json_logs);
        assert_eq!(config.metadata_dir, PathBuf::from("/data"));
        assert_eq!(config.number("num.partitions", 1).unwrap(), 1);
        assert_eq!(config.kafka_listeners().count(), 1);
    }

    fn deployed(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(name)
    }

    #[test]
    fn the_configurations_of_deploy_are_good() {
        let config = NodeConfig::load(&deployed("server.properties"), &[]).unwrap();
        assert_eq!((config.node_id, config.voters.len()), (1, 3));
        let compose = std::fs::read_to_string(deployed("compose.yaml")).unwrap();
        let lines: Vec<&str> = compose.lines().map(|line| line.trim().trim_start_matches("- ")).collect();
        let given = lines.windows(2).filter(|pair| pair[0] == "--override").map(|pair| pair[1].to_owned());
        let given: Vec<String> = given.collect();
        let nodes: Vec<NodeConfig> = given
            .chunk_by(|_, next| !next.starts_with("node.id="))
            .map(|overrides| NodeConfig::load(&deployed("compose.properties"), overrides).unwrap())
            .collect();
        let expected = [(1, "a", 9092), (2, "b", 9093), (3, "c", 9094)];
        let found = nodes.iter().map(|n| (n.node_id, n.rack.as_deref().unwrap_or("-"), n.advertised[0].port));
        assert_eq!(found.collect::<Vec<_>>(), expected);
    }
}
