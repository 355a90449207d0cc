//! How far groups are behind, as a node's HTTP port shows it: in records, and in seconds.

use std::collections::BTreeMap;
use std::time::Duration;

use broker::{GroupLag, GroupLags};
use console::{Family, Kind, Sample};
use serde_json::{Value, json};

use crate::status::{count, counted, gauge};

/// Where the groups that are coordinated here are.
pub(crate) fn metrics(groups: &GroupLags, out: &mut Vec<Family>) {
    let sample = |lag: &GroupLag, value| Sample {
        labels: vec![
            ("consumergroup", lag.group.clone()),
            ("topic", lag.topic.clone()),
            ("partition", lag.partition.partition.to_string()),
        ],
        value,
    };
    let family = |name: &str, help, samples| Family { name: name.to_owned(), help, kind: Kind::Gauge, samples };
    let committed = |lag: &GroupLag| sample(lag, counted(u64::try_from(lag.committed).unwrap_or(0)));
    out.push(family(
        "kafka_consumergroup_current_offset",
        "The next offset that a group reads, as it has committed",
        groups.lags.iter().map(committed).collect(),
    ));
    let behind = |lag: &GroupLag| lag.lag.map(|records| sample(lag, counted(records)));
    out.push(family(
        "kafka_consumergroup_lag",
        "Records between that and the high watermark",
        groups.lags.iter().filter_map(behind).collect(),
    ));
    let waiting = |lag: &GroupLag| lag.lag_ms.map(|ms| sample(lag, seconds(ms)));
    out.push(family(
        "kafka_consumergroup_lag_seconds",
        "How long ago the next of them was appended",
        groups.lags.iter().filter_map(waiting).collect(),
    ));
    let wholes = wholes(groups);
    let whole = |group: &str, value| Sample { labels: vec![("consumergroup", group.to_owned())], value };
    let sums = wholes.iter().filter_map(|(group, all)| all.records.map(|records| whole(group, counted(records))));
    out.push(family("kafka_consumergroup_lag_sum", "Records that a group has still to read", sums.collect()));
    let oldest = wholes.iter().filter_map(|(group, all)| all.ms.map(|ms| whole(group, seconds(ms))));
    out.push(family(
        "kafka_consumergroup_max_lag_seconds",
        "How long ago the oldest of them was appended",
        oldest.collect(),
    ));
    out.push(gauge(
        "ottla_consumergroup_offsets_left_out",
        "Committed offsets that are too many to be shown",
        count(groups.left_out),
    ));
    states(groups, out);
}

/// How many groups there are, by what Kafka calls each number.
fn states(groups: &GroupLags, out: &mut Vec<Family>) {
    let sample = |label, value: &str, number| Sample { labels: vec![(label, value.to_owned())], value: count(number) };
    let by_type = ["classic", "consumer"].map(|name| sample("protocol", name, number_of(groups, name, None)));
    out.push(Family {
        name: "kafka_server_group_coordinator_metrics_group_count".to_owned(),
        help: "Groups coordinated here, by protocol",
        kind: Kind::Gauge,
        samples: by_type.to_vec(),
    });
    let names = ["Empty", "Assigning", "Reconciling", "Stable", "Dead"];
    let consumers = names.map(|name| sample("state", &name.to_lowercase(), number_of(groups, "consumer", Some(name))));
    out.push(Family {
        name: "kafka_server_group_coordinator_metrics_consumer_group_count".to_owned(),
        help: "Consumer groups coordinated here, by state",
        kind: Kind::Gauge,
        samples: consumers.to_vec(),
    });
    for name in ["PreparingRebalance", "CompletingRebalance", "Stable", "Dead", "Empty"] {
        let metric = format!("kafka_coordinator_group_groupmetadatamanager_numgroups{}", name.to_lowercase());
        out.push(gauge(
            &metric,
            "Classic groups coordinated here in this state",
            count(number_of(groups, "classic", Some(name))),
        ));
    }
    for (name, help, number) in [
        ("group_completed_rebalance", "Generations of classic groups with members", groups.rebalances.classic),
        ("consumer_group_rebalance", "Epochs of consumer groups", groups.rebalances.consumer),
    ] {
        let metric = format!("kafka_server_group_coordinator_metrics_{name}");
        out.push(Family::single(&metric, help, Kind::Counter, counted(number)));
    }
}

/// How many groups are of this type, and in this state where one is named.
fn number_of(groups: &GroupLags, group_type: &str, state: Option<&str>) -> usize {
    let wanted =
        groups.states.iter().filter(|((of, name), _)| *of == group_type && state.is_none_or(|state| state == *name));
    wanted.map(|(_, found)| *found).sum()
}

/// The same as JSON, by group; null is what is not known.
pub(crate) fn json(groups: &GroupLags) -> Value {
    let mut rows: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for lag in &groups.lags {
        rows.entry(&lag.group).or_default().push(json!({
            "topic": lag.topic,
            "partition": lag.partition.partition.0,
            "offset": lag.committed,
            "lag": lag.lag,
            "lag_seconds": lag.lag_ms.map(seconds),
        }));
    }
    let wholes = wholes(groups);
    let group = |(name, partitions): (&str, Vec<Value>)| {
        let all = wholes.get(name).copied().unwrap_or_default();
        json!({ "group": name, "lag": all.records, "lag_seconds": all.ms.map(seconds), "partitions": partitions })
    };
    json!({ "groups": rows.into_iter().map(group).collect::<Vec<_>>(), "left_out": groups.left_out })
}

/// All that a group has still to read, and the age of the oldest: None where one of its partitions does not tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Whole {
    records: Option<u64>,
    ms: Option<u64>,
}

fn wholes(groups: &GroupLags) -> BTreeMap<&str, Whole> {
    let mut wholes: BTreeMap<&str, Whole> = BTreeMap::new();
    for lag in &groups.lags {
        let all = wholes.entry(&lag.group).or_insert(Whole { records: Some(0), ms: Some(0) });
        all.records = all.records.zip(lag.lag).map(|(sum, records)| sum.saturating_add(records));
        all.ms = all.ms.zip(lag.lag_ms).map(|(most, ms)| most.max(ms));
    }
    wholes
}

fn seconds(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{PartitionIndex, TopicId, TopicPartition};

    fn lag(group: &str, partition: i32, lag: Option<u64>, lag_ms: Option<u64>) -> GroupLag {
        let partition = TopicPartition { topic_id: TopicId::NONE, partition: PartitionIndex(partition) };
        GroupLag { group: group.to_owned(), topic: "t".to_owned(), partition, committed: 7, lag, lag_ms }
    }

    #[test]
    fn a_group_is_as_late_as_its_latest_partition_and_what_one_does_not_tell_nobody_guesses() {
        let lags = vec![
            lag("a", 0, Some(3), Some(1_500)),
            lag("a", 1, Some(4), Some(250)),
            lag("b", 0, Some(1), None),
            lag("b", 1, Some(0), Some(0)),
        ];
        let shown = json(&GroupLags { lags, left_out: 2, ..GroupLags::default() });
        let whole = |i: usize| (shown["groups"][i]["lag"].clone(), shown["groups"][i]["lag_seconds"].clone());
        assert_eq!((whole(0), whole(1)), ((json!(7), json!(1.5)), (json!(1), Value::Null)));
        let row = json!({ "topic": "t", "partition": 1, "offset": 7, "lag": 4, "lag_seconds": 0.25 });
        assert_eq!((&shown["groups"][0]["partitions"][1], &shown["left_out"]), (&row, &json!(2)));
    }
}
