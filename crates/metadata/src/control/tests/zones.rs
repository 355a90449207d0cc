//! Acks by zones (`R79`). The brokers 1, 2, 3 are in the zones a, b, c, and 4 in a again.

use std::collections::BTreeSet;

use super::*;
use crate::configs::ACK_RULE;
use crate::records::BrokerChange;

impl Cluster {
    fn zoned(&mut self, name: &str, replicas: &[i32]) -> Result<TopicPartition, ErrorCode> {
        let topic = CreateTopic {
            assignments: vec![(PartitionIndex(0), ids(replicas))],
            configs: vec![(ACK_RULE.to_owned(), value("zones=2"))],
            ..plain(name)
        };
        let created = self.create(topic).map_err(|error| error.code)?;
        Ok(TopicPartition { topic_id: created.id, partition: PartitionIndex(0) })
    }

    fn ack_rule(&mut self, name: &str, rule: &str) -> ErrorCode {
        code(self.set(topic(name), ACK_RULE, ConfigOperation::Set(value(rule))))
    }
}

#[test]
fn a_topic_whose_replicas_can_never_be_in_two_zones_is_refused() {
    let mut cluster = Cluster::of(4);
    assert_eq!(cluster.zoned("t", &[1, 4]), Err(ErrorCode::InvalidConfig));
    assert_eq!(cluster.zoned("t", &[1]), Err(ErrorCode::InvalidConfig));
    assert!(cluster.zoned("t", &[1, 4, 2]).is_ok());
    let placed = CreateTopic { configs: vec![(ACK_RULE.to_owned(), value("zones=3"))], ..plain("placed") };
    assert!(cluster.create(placed).is_ok(), "the placement spreads over the zones by itself");
    let too_many = CreateTopic { configs: vec![(ACK_RULE.to_owned(), value("zones=4"))], ..plain("u") };
    let refused = cluster.create(too_many).unwrap_err();
    assert_eq!(refused.code, ErrorCode::InvalidConfig);
    assert!(refused.message.contains("zones=4 needs replicas in 4 zones"), "{}", refused.message);
}

#[test]
fn an_ack_rule_that_the_replicas_can_never_meet_is_refused() {
    let mut cluster = Cluster::of(4);
    cluster.assigned("t", &[1, 4]);
    assert_eq!(cluster.ack_rule("t", "zones=2"), ErrorCode::InvalidConfig);
    assert_eq!(cluster.ack_rule("t", "somehow"), ErrorCode::InvalidConfig);
    cluster.assigned("u", &[1, 2]);
    assert_eq!(cluster.ack_rule("u", "zones=2"), ErrorCode::None);
    assert_eq!(cluster.reassign("u", Some(&[1, 4])), Err(ErrorCode::InvalidReplicaAssignment));
    assert_eq!(cluster.reassign("u", Some(&[2, 4])), Ok(()));
    let more = |replicas: &[i32]| {
        ControlRequest::CreatePartitions(CreatePartitions {
            topics: vec![MorePartitions { name: "u".to_owned(), count: 2, assignments: Some(vec![ids(replicas)]) }],
            validate_only: false,
        })
    };
    let ControlResponse::CreatePartitions(results) = cluster.ask(more(&[1, 4])).response else { panic!() };
    assert_eq!(code(results[0].result.clone()), ErrorCode::InvalidConfig);
}

/// ISR {1, 4} of one zone: is who left an eligible leader?
fn in_one_zone(rules: Rules) -> (i32, Vec<i32>, Vec<i32>, Vec<i32>) {
    let mut cluster = Cluster::ruled(4, rules);
    let id = cluster.zoned("t", &[1, 2, 4]).unwrap();
    cluster.propose(id, &[1, 4]).unwrap();
    cluster.shape(id)
}

#[test]
fn an_isr_in_one_zone_is_not_enough_whatever_its_size() {
    // R34, R79: nothing is committed without another zone, so who left has all that is
    assert_eq!(in_one_zone(rules()), (1, vec![1, 4], vec![2], vec![1, 2, 4]));
    assert_eq!(in_one_zone(Rules::without(Rule::R79Zones)), (1, vec![1, 4], vec![], vec![]));
}

#[test]
fn the_zone_that_is_left_leads_when_the_other_one_is_gone() {
    // R33, R79
    let mut cluster = Cluster::of(4);
    let id = cluster.zoned("t", &[1, 4, 2]).unwrap();
    cluster.propose(id, &[1, 4]).unwrap();
    cluster.lose_all_but(&[2, 3]);
    assert_eq!(cluster.shape(id), (2, vec![2], vec![1, 4], vec![1, 4, 2]), "2 has all that was acknowledged");
}

#[test]
fn a_move_is_complete_once_those_that_stay_are_in_two_zones() {
    // R37, R79
    let mut cluster = Cluster::of(4);
    let id = cluster.zoned("t", &[1, 2, 3]).unwrap();
    cluster.propose(id, &[1, 2]).unwrap();
    assert_eq!(cluster.reassign("t", Some(&[1, 4, 3])), Ok(()));
    assert!(cluster.propose(id, &[1, 2, 4]).is_ok());
    assert!(cluster.partition(id).is_reassigning(), "1 and 4 are in one zone");
    assert_eq!(cluster.propose(id, &[1, 2, 4, 3]), Err(ErrorCode::NewLeaderElected));
    assert!(!cluster.partition(id).is_reassigning());
}

#[test]
fn a_weaker_rule_ends_the_eligibility_of_others_first() {
    // R34, R79
    let mut cluster = Cluster::of(4);
    let id = cluster.zoned("t", &[1, 2, 4]).unwrap();
    cluster.propose(id, &[1, 4]).unwrap();
    assert_eq!(cluster.ack_rule("t", "isr"), ErrorCode::None);
    assert_eq!(cluster.shape(id), (1, vec![1, 4], vec![], vec![]));
}

#[test]
fn an_accepted_proposal_says_the_rule_it_was_accepted_under() {
    // R34: the leader may not have heard of it yet
    let mut cluster = Cluster::of(4);
    let id = cluster.zoned("t", &[1, 2, 4]).unwrap();
    let now = cluster.propose(id, &[1, 2]).unwrap();
    assert_eq!((now.min_isr, now.ack_zones), (2, 2));
}

#[test]
fn a_move_that_waits_for_zones_alone_ends_when_they_are_not_asked_for() {
    // R37, R79: 3 is in the zone of 4 since it came back, so that those who stay are never in two
    let mut cluster = Cluster::of(4);
    let id = cluster.zoned("t", &[1, 2]).unwrap();
    assert_eq!(cluster.reassign("t", Some(&[3, 4])), Ok(()));
    let moved = RegisterBroker { rack: value("a"), ..cluster.registration(3, BrokerEpoch::NONE) };
    cluster.ask(ControlRequest::RegisterBroker(moved));
    cluster.beat(3);
    assert!(cluster.propose(id, &[1, 2, 3, 4]).is_ok());
    assert!(cluster.partition(id).is_reassigning(), "3 and 4 are in one zone");
    assert_eq!(cluster.ack_rule("t", "isr"), ErrorCode::None);
    assert!(!cluster.partition(id).is_reassigning());
}

// Placement

/// A registered broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Node {
    rack: Option<&'static str>,
    fenced: bool,
    stopping: bool,
    cordoned: bool,
}

const fn node(rack: &'static str) -> Node {
    Node { rack: Some(rack), fenced: false, stopping: false, cordoned: false }
}

const UNZONED: Node = Node { rack: None, ..node("") };

const fn fenced(rack: &'static str) -> Node {
    Node { fenced: true, ..node(rack) }
}

const fn stopping(rack: &'static str) -> Node {
    Node { stopping: true, ..node(rack) }
}

impl Cluster {
    /// The brokers 1, 2, … as they are.
    fn nodes(nodes: &[Node]) -> Self {
        let mut cluster = Cluster::of(0);
        for (id, node) in (1..).zip(nodes) {
            let rack = node.rack.map(str::to_owned);
            let registration = RegisterBroker { rack, ..cluster.registration(id, BrokerEpoch::NONE) };
            cluster.ask(ControlRequest::RegisterBroker(registration));
            let change = BrokerChange {
                id: BrokerId(id),
                epoch: cluster.control.image().broker_epoch(BrokerId(id)),
                fenced: Some(node.fenced),
                in_controlled_shutdown: Some(node.stopping),
                offline_directories: None,
                cordoned_directories: Some(if node.cordoned { vec![directory(id)] } else { vec![] }),
            };
            cluster.control.replay(&MetadataRecord::BrokerChange(change));
        }
        cluster
    }

    /// A topic with an ack rule, placed: its partitions' replicas.
    fn placed(&mut self, partitions: i32, factor: i16, zones: usize) -> Result<Vec<Vec<i32>>, ControlError> {
        let configs = vec![(ACK_RULE.to_owned(), value(&format!("zones={zones}")))];
        let topic = CreateTopic { partitions, replication_factor: factor, configs, ..plain("t") };
        let id = self.create(topic)?.id;
        let topic = self.control.image().topic(id).unwrap();
        Ok(topic.partitions.values().map(|partition| numbers(&partition.replicas)).collect())
    }

    fn grow(&mut self, count: i32) -> ErrorCode {
        let topics = vec![MorePartitions { name: "t".to_owned(), count, assignments: None }];
        let request = CreatePartitions { topics, validate_only: false };
        match self.ask(ControlRequest::CreatePartitions(request)).response {
            ControlResponse::CreatePartitions(mut list) => code(list.remove(0).result),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_broker_without_a_rack_brings_no_zone() {
    // R79
    let mut cluster = Cluster::nodes(&[node("a"), node("b"), UNZONED]);
    for replicas in cluster.placed(6, 2, 2).unwrap() {
        assert!(!replicas.contains(&3), "{replicas:?}");
    }
    assert_eq!(cluster.grow(9), ErrorCode::None);
    // Where there are enough replicas it takes its share, and leads.
    let wide = CreateTopic { partitions: 6, configs: vec![(ACK_RULE.to_owned(), value("zones=2"))], ..plain("wide") };
    let id = cluster.create(wide).unwrap().id;
    let led = cluster.control.image().topic(id).unwrap().partitions.values().filter(|p| p.leader.0 == 3).count();
    assert_eq!(led, 2);
}

#[test]
fn a_zone_whose_brokers_are_away_is_waited_for() {
    // R79
    for away in [fenced("b"), stopping("b")] {
        let mut cluster = Cluster::nodes(&[node("a"), node("a"), away]);
        for replicas in cluster.placed(4, 2, 2).unwrap() {
            assert_eq!(replicas[1], 3, "who is here leads: {replicas:?}");
        }
        assert_eq!(cluster.grow(6), ErrorCode::None);
        let refused = Cluster::nodes(&[node("a"), away]).placed(1, 3, 2).unwrap_err();
        assert_eq!(refused.code, ErrorCode::InvalidReplicationFactor);
    }
    let nobody = Cluster::nodes(&[fenced("a"), fenced("b"), UNZONED]).placed(1, 2, 2).unwrap_err();
    assert_eq!(nobody.code, ErrorCode::InvalidReplicationFactor, "as where all are fenced: nobody could lead");
    assert!(nobody.message.contains("all brokers with a rack are currently fenced"), "{}", nobody.message);
}

fn anybody() -> impl Strategy<Value = Node> {
    let rack = prop::option::weighted(0.8, prop::sample::select(vec!["a", "b", "c", "d"]));
    let rarely = || prop::bool::weighted(0.2);
    (rack, rarely(), rarely(), rarely()).prop_map(|(rack, fenced, stopping, cordoned)| Node {
        rack,
        fenced,
        stopping: stopping && !fenced,
        cordoned,
    })
}

/// What a topic is refused with, if it is: by counting, and not by placing.
fn expected(nodes: &[Node], factor: usize, zones: usize) -> ErrorCode {
    let open = || nodes.iter().filter(|node| !node.cordoned);
    let found = open().filter_map(|node| node.rack).collect::<BTreeSet<_>>().len();
    let active = || open().filter(|node| !node.fenced && !node.stopping);
    if active().count() == 0 || open().filter(|node| !node.stopping).count() < factor {
        return ErrorCode::InvalidReplicationFactor;
    }
    if found < zones || factor < zones {
        return ErrorCode::InvalidConfig;
    }
    let leads = zones < factor || active().any(|node| node.rack.is_some());
    if leads { ErrorCode::None } else { ErrorCode::InvalidReplicationFactor }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_topic_is_in_its_zones_wherever_the_registered_brokers_can_have_it_so(
        nodes in prop::collection::vec(anybody(), 1..8),
        factor in 1..5i16,
        zones in 2..5usize,
        partitions in 1..7i32,
    ) {
        // R79
        let mut cluster = Cluster::nodes(&nodes);
        let wanted = usize::try_from(factor).unwrap();
        let node = |id: &i32| nodes[usize::try_from(id - 1).unwrap()];
        let is_active = |node: Node| !node.fenced && !node.stopping;
        let result = cluster.placed(partitions, factor, zones);
        prop_assert_eq!(code(result.clone()), expected(&nodes, wanted, zones), "{:?}", result);
        for replicas in result.unwrap_or_default() {
            let racks: BTreeSet<_> = replicas.iter().filter_map(|id| node(id).rack).collect();
            prop_assert!(racks.len() >= zones, "{:?}", replicas);
            prop_assert_eq!(replicas.iter().collect::<BTreeSet<_>>().len(), wanted);
            prop_assert!(is_active(node(&replicas[0])), "nobody leads: {:?}", replicas);
            // Who is away is there for a zone that nobody else has, or because there are no others.
            for away in replicas.iter().filter(|id| !is_active(node(id))) {
                let others = (1..).zip(&nodes).filter(|(id, other)| is_active(**other) && !other.cordoned && !replicas.contains(id));
                let instead = others.filter(|(id, _)| {
                    let swapped = replicas.iter().map(|replica| if replica == away { *id } else { *replica });
                    swapped.filter_map(|id| node(&id).rack).collect::<BTreeSet<_>>().len() >= zones
                });
                prop_assert_eq!(instead.count(), 0, "{} of {:?}", away, replicas);
            }
        }
        if expected(&nodes, wanted, zones) == ErrorCode::None {
            prop_assert_eq!(cluster.grow(partitions + 2), ErrorCode::None);
        }
    }
}
