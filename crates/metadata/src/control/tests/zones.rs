//! Acks by zones (`R79`). The brokers 1, 2, 3 are in the zones a, b, c, and 4 in a again.

use super::*;
use crate::configs::ACK_RULE;

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
