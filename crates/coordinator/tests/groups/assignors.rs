//! The server-side assignors against what they promise: all and only what is read, even, sticky, near; and fast.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coordinator::consumer::assign::{Assignor, Input, InputMember, InputTopic};
use coordinator::consumer::group::Partitions;
use model::TopicId;
use proptest::prelude::*;

use crate::cluster::topic_id;

/// Topics by their numbers of partitions; members by the topics they read, none of which means all, and their racks.
#[derive(Clone, Debug)]
struct Group {
    topics: Vec<usize>,
    members: BTreeMap<String, (BTreeSet<usize>, usize)>,
}

impl Group {
    fn input(&self, prior: &BTreeMap<String, Partitions>) -> Input {
        let racks = |partition: usize| vec![Arc::from(format!("rack-{}", partition % 3))];
        let topics: Vec<InputTopic> = (0..self.topics.len())
            .map(|topic| InputTopic { id: id(topic), racks: (0..self.topics[topic]).map(racks).collect() })
            .collect();
        let classes: BTreeSet<&BTreeSet<usize>> = self.members.values().map(|(topics, _)| topics).collect();
        let classes: Vec<Vec<usize>> = classes.into_iter().map(|class| class.iter().copied().collect()).collect();
        let mut taken = BTreeSet::new();
        let members = self.members.iter().map(|(member_id, (topics, rack))| {
            let had = prior.get(member_id).into_iter().flatten().flat_map(|(topic, partitions)| {
                let topic = (0..self.topics.len()).find(|index| id(*index) == *topic).unwrap();
                partitions.iter().map(move |index| (topic, usize::try_from(index.0).unwrap()))
            });
            let may = |slot: &(usize, usize)| topics.contains(&slot.0) && slot.1 < self.topics[slot.0];
            InputMember {
                id: member_id.clone(),
                instance_id: None,
                rack: Some(Arc::from(format!("rack-{rack}"))),
                class: classes
                    .iter()
                    .position(|class| class.iter().copied().collect::<BTreeSet<_>>() == *topics)
                    .unwrap(),
                prior: had.filter(may).filter(|slot| taken.insert(*slot)).collect(),
            }
        });
        let members = members.collect();
        Input { topics, classes, members }
    }

    fn readers(&self, topic: usize) -> usize {
        self.members.values().filter(|(topics, _)| topics.contains(&topic)).count()
    }
}

fn id(topic: usize) -> TopicId {
    topic_id(&format!("topic-{topic}"))
}

fn size(part: &Partitions) -> usize {
    part.values().map(BTreeSet::len).sum()
}

/// Partitions that a member who is still there had and has not any more.
fn moved(before: &BTreeMap<String, Partitions>, after: &BTreeMap<String, Partitions>) -> usize {
    let lost = |(member, had): (&String, &Partitions)| {
        let Some(has) = after.get(member) else { return 0 };
        had.iter().map(|(topic, list)| list.difference(has.get(topic).unwrap_or(&BTreeSet::new())).count()).sum()
    };
    before.iter().map(lost).sum::<usize>()
}

fn check_complete(group: &Group, assignment: &BTreeMap<String, Partitions>) {
    assert!(assignment.keys().eq(group.members.keys()));
    let mut owned = BTreeSet::new();
    for (member, part) in assignment {
        for (topic, partitions) in part {
            let number = (0..group.topics.len()).find(|index| id(*index) == *topic).unwrap();
            assert!(group.members[member].0.contains(&number), "{member} does not read topic {number}");
            for index in partitions {
                assert!(owned.insert((number, *index)), "{number}-{index} has two owners");
            }
        }
    }
    let all: usize = (0..group.topics.len()).filter(|t| group.readers(*t) > 0).map(|t| group.topics[t]).sum();
    assert_eq!(owned.len(), all, "something is given to nobody");
}

fn groups(alike: bool) -> impl Strategy<Value = Group> {
    (proptest::collection::vec(0_usize..12, 1..6), 1_usize..9).prop_flat_map(move |(topics, members)| {
        let all: BTreeSet<usize> = (0..topics.len()).collect();
        let some = proptest::sample::subsequence((0..topics.len()).collect::<Vec<_>>(), 0..=topics.len());
        let reads = if alike { Just(all).boxed() } else { some.prop_map(|s| s.into_iter().collect()).boxed() };
        proptest::collection::vec((reads, 0_usize..4), members).prop_map(move |members| Group {
            topics: topics.clone(),
            members: members.into_iter().enumerate().map(|(index, member)| (format!("m{index:02}"), member)).collect(),
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_partition_that_is_read_has_one_reader(mut group in groups(false), leaves in 0_usize..9, more in 0_usize..5) {
        for assignor in [Assignor::Uniform, Assignor::Range] {
            let before = assignor.assign(&group.input(&BTreeMap::new()));
            check_complete(&group, &before);
            group.members.remove(&format!("m{leaves:02}"));
            group.topics[0] += more;
            check_complete(&group, &assignor.assign(&group.input(&before)));
        }
    }

    #[test]
    fn uniform_is_even_and_moves_no_more_than_that_takes(mut group in groups(true), leaves in 0_usize..9) {
        let total: usize = group.topics.iter().sum();
        let even = |assignment: &BTreeMap<String, Partitions>| {
            let share = total / assignment.len();
            assert!(assignment.values().all(|part| (share..=share + 1).contains(&size(part))), "{assignment:?}");
        };
        let before = Assignor::Uniform.assign(&group.input(&BTreeMap::new()));
        even(&before);
        assert_eq!(moved(&before, &Assignor::Uniform.assign(&group.input(&before))), 0, "nothing changed");
        // One comes: nobody loses more than it has above the new share, and that is the least.
        let mut joined = group.clone();
        joined.members.insert("z".into(), group.members["m00"].clone());
        let after = Assignor::Uniform.assign(&joined.input(&before));
        even(&after);
        assert_eq!(moved(&before, &after), size(&after["z"]), "only what the new one gets moves");
        // One goes: nobody else loses anything.
        if group.members.len() > 1 && group.members.remove(&format!("m{leaves:02}")).is_some() {
            let after = Assignor::Uniform.assign(&group.input(&before));
            even(&after);
            assert_eq!(moved(&before, &after), 0);
        }
    }

    #[test]
    fn uniform_leaves_no_single_move_that_would_make_it_more_even(group in groups(false)) {
        let after = Assignor::Uniform.assign(&group.input(&BTreeMap::new()));
        for (owner, part) in &after {
            for (other, less) in &after {
                let shared = part.keys().any(|t| group.members[other].0.iter().any(|topic| id(*topic) == *t));
                assert!(!shared || size(part) < size(less) + 2, "{owner} {part:?} could give to {other} {less:?}");
            }
        }
    }

    #[test]
    fn range_gives_contiguous_ranges_and_the_same_of_topics_that_are_alike(members in 1_usize..8, partitions in 1_usize..20) {
        let topics = vec![partitions, partitions];
        let members = (0..members).map(|index| (format!("m{index:02}"), (BTreeSet::from([0, 1]), 0)));
        let group = Group { topics, members: members.collect() };
        for part in Assignor::Range.assign(&group.input(&BTreeMap::new())).values() {
            let of = |topic: usize| part.get(&id(topic)).cloned().unwrap_or_default();
            assert_eq!(of(0), of(1));
            let list: Vec<i32> = of(0).into_iter().map(|index| index.0).collect();
            assert!(list.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{list:?}");
            assert!(part.is_empty() || list.len() >= partitions / group.members.len());
        }
    }
}

#[test]
fn members_get_partitions_near_to_them_where_that_is_even() {
    let members = (0..3).map(|rack| (format!("m{rack}"), (BTreeSet::from([0]), rack)));
    let group = Group { topics: vec![12], members: members.collect() };
    let assignment = Assignor::Uniform.assign(&group.input(&BTreeMap::new()));
    for (rack, part) in (0..3).zip(assignment.values()) {
        assert!(part[&id(0)].iter().all(|index| index.0 % 3 == rack), "{rack}: {part:?}");
        assert_eq!(size(part), 4);
    }
}

#[test]
fn a_large_group_is_assigned_in_time_that_is_linear_in_it() {
    // Counts, not clocks: five hundred members who join one after the other, over ten thousand partitions. With a quadratic
    // assignor this test takes hours.
    let mut group = Group { topics: vec![1_000; 10], members: BTreeMap::new() };
    let mut before = BTreeMap::new();
    for index in 0..500 {
        group.members.insert(format!("m{index:03}"), ((0..10).collect(), index % 3));
        if index % 50 == 49 {
            before = Assignor::Uniform.assign(&group.input(&before));
        }
    }
    check_complete(&group, &before);
    assert!(before.values().all(|part| size(part) == 20));
}
