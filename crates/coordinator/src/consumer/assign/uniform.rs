//! The uniform assignor: even, then sticky, then near.
//!
//! 1. Even. Where all read the same, no member has two partitions more than another. Where they do not, no single
//!    partition could go from one member to another that reads it, too, and has at least two fewer.
//! 2. Sticky. A member keeps what it had, as long as that is even.
//! 3. Near. What has to go to somebody goes to a member in the rack of a replica, where one has room.
//!
//! Time is linear in partitions (times replicas) and members where all read the same.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::{Input, Slot};

/// How often topics are looked at again, where members read different ones. Each round is better than the one before.
const MAX_ROUNDS: usize = 16;

/// Who gets what, by member.
pub(super) fn assign(input: &Input) -> Vec<Vec<Slot>> {
    if input.members.is_empty() {
        Vec::new()
    } else if input.is_homogeneous() {
        alike(input)
    } else {
        different(input)
    }
}

/// All read the same topics.
fn alike(input: &Input) -> Vec<Vec<Slot>> {
    let topics = &input.classes[input.members[0].class];
    let total: usize = topics.iter().map(|topic| input.topics[*topic].racks.len()).sum();
    let quota = total / input.members.len();
    let mut with_one_more = total % input.members.len();
    let mut parts: Vec<Vec<Slot>> = Vec::with_capacity(input.members.len());
    let mut taken: Vec<Vec<bool>> = input.topics.iter().map(|topic| vec![false; topic.racks.len()]).collect();
    for (index, member) in input.members.iter().enumerate() {
        let more = member.prior.len() > quota && with_one_more > 0;
        with_one_more -= usize::from(more);
        let kept = keep(input, index, quota + usize::from(more));
        kept.iter().for_each(|slot| taken[slot.0][slot.1] = true);
        parts.push(kept);
    }
    let free = free(input, topics, &taken);
    let mut room: Vec<usize> = parts.iter().map(|part| quota.saturating_sub(part.len())).collect();
    // Who has fewest gets one more first.
    let mut order: Vec<usize> = (0..parts.len()).filter(|index| parts[*index].len() <= quota).collect();
    order.sort_by_key(|index| parts[*index].len());
    for index in order.into_iter().take(with_one_more) {
        room[index] += 1;
    }
    deal(input, free, &mut room, &mut parts);
    parts
}

/// What a member keeps of what it had: partitions near to it first, where it cannot keep all.
fn keep(input: &Input, index: usize, max: usize) -> Vec<Slot> {
    let member = &input.members[index];
    if member.prior.len() <= max {
        return member.prior.clone();
    }
    let mut prior = member.prior.clone();
    if let Some(rack) = &member.rack {
        prior.sort_by_key(|slot| !input.topics[slot.0].racks[slot.1].contains(rack));
    }
    prior.truncate(max);
    prior.sort_unstable();
    prior
}

fn free(input: &Input, topics: &[usize], taken: &[Vec<bool>]) -> Vec<Slot> {
    let of_topic = |topic: &usize| {
        let topic = *topic;
        (0..input.topics[topic].racks.len()).filter(move |index| !taken[topic][*index]).map(move |index| (topic, index))
    };
    topics.iter().flat_map(of_topic).collect()
}

/// Gives free partitions to members that have room, in turns, so that each topic is spread: first near ones, then the rest.
fn deal(input: &Input, free: Vec<Slot>, room: &mut [usize], parts: &mut [Vec<Slot>]) {
    let mut near: BTreeMap<&Arc<str>, VecDeque<usize>> = BTreeMap::new();
    for (index, member) in input.members.iter().enumerate().filter(|(index, _)| room[*index] > 0) {
        if let Some(rack) = &member.rack {
            near.entry(rack).or_default().push_back(index);
        }
    }
    let mut rest = Vec::new();
    for slot in free {
        let racks = input.topics[slot.0].racks[slot.1].iter();
        let member = racks.filter_map(|rack| next_with_room(near.get_mut(rack)?, room)).next();
        match member {
            Some(member) => give(slot, member, room, parts),
            None => rest.push(slot),
        }
    }
    let mut anyone: VecDeque<usize> = (0..parts.len()).filter(|index| room[*index] > 0).collect();
    for slot in rest {
        if let Some(member) = next_with_room(&mut anyone, room) {
            give(slot, member, room, parts);
        }
    }
}

fn give(slot: Slot, member: usize, room: &mut [usize], parts: &mut [Vec<Slot>]) {
    room[member] -= 1;
    parts[member].push(slot);
}

/// The next in turn, who goes to the end of the queue. Who has no room leaves it.
fn next_with_room(queue: &mut VecDeque<usize>, room: &[usize]) -> Option<usize> {
    while let Some(member) = queue.pop_front() {
        if room[member] > 0 {
            queue.push_back(member);
            return Some(member);
        }
    }
    None
}

/// Members read different topics.
fn different(input: &Input) -> Vec<Vec<Slot>> {
    let readers = input.readers();
    let mut owners: Vec<Vec<Option<usize>>> = input.topics.iter().map(|t| vec![None; t.racks.len()]).collect();
    let mut loads = vec![0; input.members.len()];
    for (index, member) in input.members.iter().enumerate() {
        for slot in &member.prior {
            owners[slot.0][slot.1] = Some(index);
            loads[index] += 1;
        }
    }
    // Topics that few can read first: their readers cannot be relieved of them later.
    let mut topics: Vec<usize> = (0..input.topics.len()).filter(|topic| !readers[*topic].is_empty()).collect();
    topics.sort_by_key(|topic| readers[*topic].len());
    for topic in &topics {
        fill(input, *topic, &readers[*topic], &mut owners[*topic], &mut loads);
    }
    for _ in 0..MAX_ROUNDS {
        let mut moved = false;
        for topic in &topics {
            moved |= balance(input, *topic, &readers[*topic], &mut owners[*topic], &mut loads);
        }
        if !moved {
            break;
        }
    }
    let mut parts = vec![Vec::new(); input.members.len()];
    for (topic, owners) in owners.iter().enumerate() {
        for (partition, owner) in owners.iter().enumerate() {
            if let Some(owner) = owner {
                parts[*owner].push((topic, partition));
            }
        }
    }
    parts
}

/// Gives a topic's free partitions to its readers, the one with the fewest first, among those a near one.
fn fill(input: &Input, topic: usize, readers: &[usize], owners: &mut [Option<usize>], loads: &mut [usize]) {
    let mut queue: BTreeSet<(usize, usize)> = readers.iter().map(|reader| (loads[*reader], *reader)).collect();
    for (partition, owner) in owners.iter_mut().enumerate().filter(|(_, owner)| owner.is_none()) {
        let racks = &input.topics[topic].racks[partition];
        let Some((least, first)) = queue.first().copied() else { return };
        let is_near = |reader: usize| input.members[reader].rack.as_ref().is_some_and(|rack| racks.contains(rack));
        // Looking for a near one among equals is bounded: a thousand equals would make it quadratic.
        let mut equals = queue.iter().take(racks.len() * 8).take_while(|(load, _)| *load == least);
        let reader = equals.find(|(_, reader)| is_near(*reader)).map_or(first, |(_, reader)| *reader);
        queue.remove(&(least, reader));
        queue.insert((least + 1, reader));
        loads[reader] += 1;
        *owner = Some(reader);
    }
}

/// Moves partitions of a topic from the reader that has most to the one that has fewest, as long as they are two apart.
fn balance(input: &Input, topic: usize, readers: &[usize], owners: &mut [Option<usize>], loads: &mut [usize]) -> bool {
    let (low, high) = readers.iter().fold((usize::MAX, 0), |(low, high), r| (low.min(loads[*r]), high.max(loads[*r])));
    if high < low + 2 {
        return false;
    }
    let mut held: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (partition, owner) in owners.iter().enumerate() {
        if let Some(owner) = owner {
            held.entry(*owner).or_default().push(partition);
        }
    }
    let mut rich: BTreeSet<(usize, usize)> = held.keys().map(|owner| (loads[*owner], *owner)).collect();
    let mut poor: BTreeSet<(usize, usize)> = readers.iter().map(|reader| (loads[*reader], *reader)).collect();
    let mut moved = false;
    while let (Some((most, from)), Some((least, to))) = (rich.last().copied(), poor.first().copied()) {
        if most < least + 2 {
            break;
        }
        let Some(partition) = held.get_mut(&from).and_then(|held| take_far(input, topic, from, held)) else {
            rich.remove(&(most, from));
            continue;
        };
        owners[partition] = Some(to);
        move_load((from, most), most - 1, &mut rich, &mut poor, loads);
        move_load((to, least), least + 1, &mut rich, &mut poor, loads);
        moved = true;
    }
    moved
}

/// Takes a partition whose replicas are all far from its owner, where there is one.
fn take_far(input: &Input, topic: usize, owner: usize, held: &mut Vec<usize>) -> Option<usize> {
    let rack = input.members[owner].rack.as_ref();
    let far = rack.and_then(|rack| held.iter().rposition(|p| !input.topics[topic].racks[*p].contains(rack)));
    match far {
        Some(position) => Some(held.remove(position)),
        None => held.pop(),
    }
}

fn move_load(
    (member, before): (usize, usize),
    after: usize,
    rich: &mut BTreeSet<(usize, usize)>,
    poor: &mut BTreeSet<(usize, usize)>,
    loads: &mut [usize],
) {
    loads[member] = after;
    for set in [rich, poor] {
        if set.remove(&(before, member)) {
            set.insert((after, member));
        }
    }
}
