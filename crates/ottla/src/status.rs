//! What a node's HTTP port shows: health, metrics under Kafka's known names, the node's state as JSON.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use broker::api::BrokerApi;
use broker::{Broker, BrokerState, GroupLags};
use console::{Family, Histogram, Kind, Sample, Source, Spread};
use controller::ControllerHandle;
use gateway::{ApiMetrics, GatewayMetrics, LATENCY_BOUNDS_US};
use serde_json::{Value, json};

use crate::group_status;

/// See the module. Parts come in as the node starts.
#[derive(Debug, Default)]
pub(crate) struct NodeStatus {
    node_id: i32,
    is_broker: bool,
    controller: OnceLock<ControllerHandle>,
    broker: OnceLock<(Arc<Broker>, Arc<GatewayMetrics>)>,
    /// As last asked for.
    lags: Mutex<Arc<GroupLags>>,
}

impl NodeStatus {
    pub(crate) fn new(node_id: i32, is_broker: bool) -> Arc<NodeStatus> {
        Arc::new(NodeStatus { node_id, is_broker, ..NodeStatus::default() })
    }

    pub(crate) fn set_controller(&self, controller: ControllerHandle) {
        // Set once, by the start.
        let _ = self.controller.set(controller);
    }

    pub(crate) fn set_broker(&self, broker: Arc<Broker>, gateway: Arc<GatewayMetrics>) {
        let _ = self.broker.set((broker, gateway));
    }

    /// The log directories, and why one of them refuses writes or is out of use.
    fn directories(&self) -> Vec<Value> {
        let directory = |each: broker::DirectoryMetrics| {
            let why = each.failure.or_else(|| {
                each.space.full.then(|| {
                    let too = if each.space.exhausted { ", of internal topics too" } else { "" };
                    format!(
                        "{} bytes are free and {} are kept: writes are refused{too}",
                        each.space.available, each.space.reserve
                    )
                })
            });
            json!({ "path": each.path, "available": each.space.available, "reserve": each.space.reserve, "trouble": why })
        };
        let broker = self.broker.get();
        broker.map(|(broker, _)| broker.metrics().directories.into_iter().map(directory).collect()).unwrap_or_default()
    }

    fn lags(&self) -> Arc<GroupLags> {
        Arc::clone(&self.lags.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn broker_state(&self) -> Option<BrokerState> {
        self.broker.get().map(|(broker, _)| *broker.state().borrow())
    }
}

impl Source for NodeStatus {
    fn unready(&self) -> Option<String> {
        match self.broker_state() {
            Some(BrokerState::Running) => None,
            Some(state) => Some(format!("the broker is {}", format!("{state:?}").to_lowercase())),
            None if self.is_broker => Some("the broker recovers its logs".to_owned()),
            None => self.controller.get().is_none().then(|| "the controller starts".to_owned()),
        }
    }

    fn refresh(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let Some((broker, _)) = self.broker.get() else { return };
            let lags = Arc::new(broker.group_lags().await);
            *self.lags.lock().unwrap_or_else(PoisonError::into_inner) = lags;
        })
    }

    fn groups(&self) -> Value {
        group_status::json(&self.lags())
    }

    fn metrics(&self) -> Vec<Family> {
        let mut families = Vec::new();
        if let Some((broker, gateway)) = self.broker.get() {
            broker_metrics(broker, &mut families);
            group_status::metrics(&self.lags(), &mut families);
            gateway_metrics(gateway, &mut families);
        }
        if let Some(controller) = self.controller.get() {
            let active = u8::from(controller.is_active());
            families.push(gauge(
                "kafka_controller_kafkacontroller_activecontrollercount",
                "1 on the active controller",
                f64::from(active),
            ));
            let (all, unclean) = controller.elections();
            families.push(counter(
                "kafka_controller_controllerstats_leaderelections",
                "Leaders elected by this controller",
                all,
            ));
            families.push(counter(
                "kafka_controller_controllerstats_uncleanleaderelections",
                "Of those, elected outside of the in-sync and the eligible replicas",
                unclean,
            ));
        }
        families
    }

    fn histograms(&self) -> Vec<Histogram> {
        self.broker.get().map(|(_, gateway)| vec![latencies(gateway)]).unwrap_or_default()
    }

    fn status(&self) -> Value {
        let image = self.broker.get().map(|(broker, _)| broker.image());
        let nodes: Vec<Value> = image
            .iter()
            .flat_map(|image| image.brokers().values())
            .map(|b| json!({ "id": b.id.0, "rack": b.rack, "fenced": b.fenced, "epoch": b.epoch.0 }))
            .collect();
        let (mut leaders, mut under_replicated, mut offline) = (0u32, 0u32, 0u32);
        for partition in image.iter().flat_map(|image| image.partitions()) {
            leaders += u32::from(partition.leader.0 == self.node_id);
            offline += u32::from(partition.is_leaderless());
            under_replicated += u32::from(!partition.is_leaderless() && partition.isr.len() < partition.replicas.len());
        }
        json!({
            "node": self.node_id,
            "process": std::process::id(),
            "state": self.broker_state().map(|state| format!("{state:?}").to_lowercase()),
            "metadata_offset": image.as_ref().map(|image| image.next_offset().0),
            "nodes": nodes,
            "leaders": leaders,
            "under_replicated": under_replicated,
            "offline": offline,
            "directories": self.directories(),
            "active_controller": self.controller.get().is_some_and(ControllerHandle::is_active),
        })
    }
}

pub(crate) fn gauge(name: &str, help: &'static str, value: f64) -> Family {
    Family::single(name, help, Kind::Gauge, value)
}

fn counter(name: &str, help: &'static str, value: u64) -> Family {
    Family::single(name, help, Kind::Counter, counted(value))
}

pub(crate) fn counted(value: u64) -> f64 {
    value.min(1 << 53) as f64
}

pub(crate) fn count(value: usize) -> f64 {
    u32::try_from(value).map_or(f64::from(u32::MAX), f64::from)
}

fn broker_metrics(broker: &Broker, out: &mut Vec<Family>) {
    let metrics = broker.metrics();
    let single = [
        ("kafka_server_replicamanager_partitioncount", "Partitions with a replica here", metrics.partitions.len()),
        ("kafka_server_replicamanager_leadercount", "Partitions led here", metrics.leaders),
        (
            "kafka_server_replicamanager_underreplicatedpartitions",
            "Led here with an ISR smaller than the replicas",
            metrics.under_replicated,
        ),
        (
            "kafka_server_replicamanager_underminisrpartitioncount",
            "Led here with an ISR below min.insync.replicas",
            metrics.under_min_isr,
        ),
        (
            "kafka_controller_kafkacontroller_offlinepartitionscount",
            "Partitions of the cluster without a leader",
            metrics.offline,
        ),
        ("ottla_log_tail_cache_bytes", "Bytes of recent batches in memory", metrics.tail_cache_bytes),
        ("ottla_log_open_files", "Log files open", metrics.open_files),
        ("ottla_log_lent_files", "Answers on their way that are sent from a log file", metrics.lent_files),
        (
            "ottla_log_deletion_by_age_paused",
            "1 while nothing is deleted by age, because the wall clock jumped",
            usize::from(metrics.deletion_paused),
        ),
    ];
    out.extend(single.map(|(name, help, value)| gauge(name, help, count(value))));
    for (name, help, value) in [
        ("kafka_server_replicamanager_isrshrinks", "In-sync replicas led here lost a member", metrics.isr.shrinks),
        ("kafka_server_replicamanager_isrexpands", "In-sync replicas led here got a member", metrics.isr.expands),
        (
            "kafka_server_replicamanager_failedisrupdates",
            "Proposed in-sync replicas were refused, or got no answer",
            metrics.isr.failed,
        ),
        (
            "ottla_log_descriptor_shortages",
            "A file could not be opened, as the process has as many open as it may",
            metrics.descriptor_shortages,
        ),
        ("ottla_partition_timeouts", "A partition woke up at a time that it had asked for", metrics.timeouts),
    ] {
        out.push(counter(name, help, value));
    }
    topic_traffic(&metrics.partitions, out);
    flush_modes(&metrics.partitions, out);
    directories(&metrics.directories, out);
    cleaner_metrics(&metrics.cleaner, out);
    let labels = |p: &broker::PartitionMetrics| {
        vec![("topic", p.topic.clone()), ("partition", p.partition.partition.to_string())]
    };
    let family = |name: &str, help, value: fn(&broker::PartitionMetrics) -> f64| Family {
        name: name.to_owned(),
        help,
        kind: Kind::Gauge,
        samples: metrics.partitions.iter().map(|p| Sample { labels: labels(p), value: value(p) }).collect(),
    };
    out.push(family("kafka_log_log_size", "Bytes of a partition's segments", |p| p.size.min(1 << 53) as f64));
    out.push(family("kafka_log_log_logendoffset", "The offset after a partition's last record", |p| {
        p.log_end.clamp(0, 1 << 53) as f64
    }));
}

/// What clients write to and read from the topics that are led here, or were read here.
fn topic_traffic(partitions: &[broker::PartitionMetrics], out: &mut Vec<Family>) {
    let mut topics: BTreeMap<&str, [u64; 3]> = BTreeMap::new();
    for partition in partitions {
        let counts = [partition.bytes_in, partition.messages_in, partition.bytes_out];
        if partition.leads || counts != [0; 3] {
            let sums = topics.entry(&partition.topic).or_default();
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
    }
    let names = [
        ("kafka_server_brokertopicmetrics_bytesin", "Bytes of batches that were appended here"),
        ("kafka_server_brokertopicmetrics_messagesin", "Records that were appended here"),
        ("kafka_server_brokertopicmetrics_bytesout", "Bytes of batches that consumers were sent"),
    ];
    for (at, (name, help)) in names.into_iter().enumerate() {
        let sample = |(topic, sums): (&&str, &[u64; 3])| Sample {
            labels: vec![("topic", (*topic).to_owned())],
            value: counted(sums[at]),
        };
        let samples = topics.iter().map(sample).collect();
        out.push(Family { name: name.to_owned(), help, kind: Kind::Counter, samples });
    }
}

/// How long requests take, from the last byte read to the answer, by API.
fn latencies(gateway: &GatewayMetrics) -> Histogram {
    let milliseconds = |microseconds: u64| counted(microseconds) / 1000.0;
    let bounds: Vec<f64> = LATENCY_BOUNDS_US.map(milliseconds).into_iter().chain([f64::INFINITY]).collect();
    let spread = |name: &str, api: &ApiMetrics| Spread {
        labels: vec![("request", name.to_owned())],
        buckets: bounds.iter().zip(&api.latency).map(|(le, at)| (*le, at.load(Ordering::Relaxed))).collect(),
        sum: milliseconds(api.latency_sum_us.load(Ordering::Relaxed)),
    };
    let used = gateway.apis().filter(|(_, api)| api.requests.load(Ordering::Relaxed) > 0);
    Histogram {
        name: "kafka_network_requestmetrics_totaltimems".to_owned(),
        help: "How long requests take, in milliseconds",
        spreads: used.map(|(key, api)| spread(key.name(), api)).collect(),
    }
}

/// How many partitions are synced when.
fn flush_modes(partitions: &[broker::PartitionMetrics], out: &mut Vec<Family>) {
    let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
    for partition in partitions {
        *counts.entry(partition.flush_policy.name()).or_default() += 1;
    }
    let sample =
        |(mode, held): (&'static str, usize)| Sample { labels: vec![("mode", mode.to_owned())], value: count(held) };
    out.push(Family {
        name: "ottla_log_flush_mode_partitions".to_owned(),
        help: "Partitions here, by when their appends are synced",
        kind: Kind::Gauge,
        samples: counts.into_iter().map(sample).collect(),
    });
}

fn directories(directories: &[broker::DirectoryMetrics], out: &mut Vec<Family>) {
    let family = |name: &str, help, value: fn(&broker::DirectoryMetrics) -> f64| Family {
        name: name.to_owned(),
        help,
        kind: Kind::Gauge,
        samples: directories
            .iter()
            .map(|each| Sample { labels: vec![("directory", each.path.clone())], value: value(each) })
            .collect(),
    };
    out.push(family("ottla_log_directory_available_bytes", "Free bytes of a log directory's file system", |each| {
        each.space.available.min(1 << 53) as f64
    }));
    out.push(family("ottla_log_directory_reserve_bytes", "Below so many free bytes writes are refused", |each| {
        each.space.reserve.min(1 << 53) as f64
    }));
    out.push(family("ottla_log_directory_refuses_writes", "1 where a log directory is below its reserve", |each| {
        f64::from(u8::from(each.space.full))
    }));
    let help = "1 where little is left of a log directory's reserve, so that internal topics are refused, too";
    out.push(family("ottla_log_directory_refuses_internal_writes", help, |each| {
        f64::from(u8::from(each.space.exhausted))
    }));
    out.push(family("kafka_log_logmanager_logdirectoryoffline", "1 where a log directory is out of use", |each| {
        f64::from(u8::from(each.failure.is_some()))
    }));
    let offline = directories.iter().filter(|each| each.failure.is_some()).count();
    let name = "kafka_log_logmanager_offlinelogdirectorycount";
    out.push(gauge(name, "Log directories that are out of use", count(offline)));
}

fn cleaner_metrics(cleaner: &broker::CleanerMetrics, out: &mut Vec<Family>) {
    out.extend(
        [
            (
                "kafka_log_logcleaner_cleaner_recopy_percent",
                "Of the newest compaction: written bytes of read ones",
                cleaner.recopy_percent,
            ),
            (
                "kafka_log_logcleaner_max_buffer_utilization_percent",
                "Of the newest compaction: how full the map of keys was",
                cleaner.buffer_utilization_percent,
            ),
            (
                "kafka_log_logcleaner_max_clean_time_secs",
                "Of the newest compaction: how long it took",
                cleaner.clean_time_secs,
            ),
            (
                "kafka_log_logcleaner_max_compaction_delay_secs",
                "By how much the most overdue log is past max.compaction.lag.ms",
                cleaner.compaction_delay_secs,
            ),
            (
                "kafka_log_logcleanermanager_max_dirty_percent",
                "The dirty share of the dirtiest compacted log",
                cleaner.dirty_percent,
            ),
            (
                "kafka_log_logcleanermanager_time_since_last_run_ms",
                "Since the cleaner last looked for work",
                counted(cleaner.since_last_run_ms),
            ),
            (
                "kafka_log_logcleanermanager_uncleanable_partitions_count",
                "Logs that could not be compacted",
                count(cleaner.uncleanable_partitions),
            ),
            (
                "kafka_log_logcleanermanager_uncleanable_bytes",
                "Bytes of the logs that could not be compacted",
                counted(cleaner.uncleanable_bytes),
            ),
        ]
        .map(|(name, help, value)| gauge(name, help, value)),
    );
    for (name, help, value) in [
        ("ottla_log_cleaner_rounds", "Looks at all logs for one to compact", cleaner.rounds),
        ("ottla_log_cleaner_cleanings", "Compactions that ended", cleaner.cleanings),
        ("ottla_log_cleaner_given_up", "Compactions that were given up", cleaner.given_up),
        ("ottla_log_cleaner_read_bytes", "Bytes that compactions read", cleaner.bytes_read),
        ("ottla_log_cleaner_written_bytes", "Bytes that compactions wrote", cleaner.bytes_written),
        ("ottla_log_cleaner_opaque_batches", "Batches that do not decode, kept whole", cleaner.opaque_batches),
    ] {
        out.push(Family::single(name, help, Kind::Counter, counted(value)));
    }
}

fn gateway_metrics(gateway: &GatewayMetrics, out: &mut Vec<Family>) {
    let used: Vec<_> = gateway.apis().filter(|(_, api)| api.requests.load(Ordering::Relaxed) > 0).collect();
    let family = |name: &str, help, value: fn(&gateway::ApiMetrics) -> u64| Family {
        name: name.to_owned(),
        help,
        kind: Kind::Counter,
        samples: used
            .iter()
            .map(|(api, metrics)| Sample {
                labels: vec![("request", api.name().to_owned())],
                value: counted(value(metrics)),
            })
            .collect(),
    };
    out.push(family("kafka_network_requestmetrics_requests", "Requests answered", |m| {
        m.requests.load(Ordering::Relaxed)
    }));
    out.push(family("kafka_network_requestmetrics_errors", "Error codes in answers", |m| {
        m.errors.load(Ordering::Relaxed)
    }));
    out.push(family("ottla_request_bytes", "Bytes of requests", |m| m.request_bytes.load(Ordering::Relaxed)));
    out.push(family("ottla_response_bytes", "Bytes of answers", |m| m.response_bytes.load(Ordering::Relaxed)));
    let open = gateway.connections.load(Ordering::Relaxed);
    out.push(gauge(
        "kafka_server_socketservermetrics_connectioncount",
        "Connections open",
        counted(open.max(0).unsigned_abs()),
    ));
    for (name, help, value) in [
        ("ottla_connections_accepted", "Connections accepted", &gateway.connections_accepted),
        ("ottla_connections_refused", "Connections refused by a limit", &gateway.connections_refused),
        ("ottla_bad_requests", "Connections closed because of what they sent", &gateway.bad_requests),
    ] {
        out.push(Family::single(name, help, Kind::Counter, counted(value.load(Ordering::Relaxed))));
    }
}
