//! Where replicas should be: a plan from who has them now, and nothing else.
//!
//! In this order: partitions stay in the zones that their ack rule asks for (`R79`); drained brokers have nothing; a partition's
//! replicas are in as many zones as they can be; brokers hold as many replicas as each other, and lead as many partitions,
//! within one. What is balanced already stays where it is.
//!
//! Invariants: a partition keeps its number of replicas; no move takes a partition out of a zone without bringing it into
//! another, unless a drain does, and never into fewer than its ack rule asks for; planning again from a plan's result plans
//! nothing.

use std::collections::{BTreeMap, BTreeSet};

/// How often the leaders are gone over: each pass only improves, and few are needed.
const PASSES: usize = 20;

/// A broker that is registered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Broker {
    pub(super) id: i32,
    pub(super) zone: Option<String>,
    /// Whether it is away: it is given nothing, and its zone counts for what it has.
    pub(super) fenced: bool,
}

/// A partition and who has it, the preferred leader first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Placed {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) replicas: Vec<i32>,
    /// The zones that its topic's `ottla.ack.rule` asks for; 0 where it asks for none.
    pub(super) zones: usize,
}

/// A partition whose replicas are to be others, or in another order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Move {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) from: Vec<i32>,
    pub(super) to: Vec<i32>,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Plan {
    pub(super) moves: Vec<Move>,
    /// What cannot be had with these brokers, in words.
    pub(super) unmet: Vec<String>,
    /// Replicas on each broker, before and after.
    pub(super) held: BTreeMap<i32, (usize, usize)>,
}

/// Plans for `brokers`; those `drained` are to have nothing.
pub(super) fn plan(brokers: &[Broker], placed: &[Placed], drained: &BTreeSet<i32>) -> Plan {
    let mut planner = Planner::new(brokers, placed, drained);
    let before = planner.held.clone();
    let mut unmet = planner.drain(placed);
    unmet.extend(planner.spread(placed));
    planner.even_replicas();
    planner.even_leaders();
    let changed = placed.iter().zip(&planner.replicas).filter(|(placed, now)| placed.replicas != **now);
    let moves = changed.map(|(placed, now)| Move {
        topic: placed.topic.clone(),
        partition: placed.partition,
        from: placed.replicas.clone(),
        to: now.clone(),
    });
    let count = |held: &BTreeMap<i32, usize>, id: &i32| held.get(id).copied().unwrap_or(0);
    let ids: BTreeSet<i32> = before.keys().chain(planner.held.keys()).copied().collect();
    let held = ids.into_iter().map(|id| (id, (count(&before, &id), count(&planner.held, &id)))).collect();
    Plan { moves: moves.collect(), unmet, held }
}

struct Planner<'a> {
    zones: BTreeMap<i32, Option<String>>,
    drained: &'a BTreeSet<i32>,
    /// Who may be given replicas.
    usable: Vec<i32>,
    /// By partition, as in `placed`.
    replicas: Vec<Vec<i32>>,
    held: BTreeMap<i32, usize>,
}

impl<'a> Planner<'a> {
    fn new(brokers: &[Broker], placed: &[Placed], drained: &'a BTreeSet<i32>) -> Planner<'a> {
        let replicas: Vec<Vec<i32>> = placed.iter().map(|placed| placed.replicas.clone()).collect();
        let mut held: BTreeMap<i32, usize> = brokers.iter().map(|broker| (broker.id, 0)).collect();
        for id in replicas.iter().flatten() {
            *held.entry(*id).or_default() += 1;
        }
        Planner {
            zones: brokers.iter().map(|broker| (broker.id, broker.zone.clone())).collect(),
            usable: brokers.iter().filter(|b| !b.fenced && !drained.contains(&b.id)).map(|broker| broker.id).collect(),
            drained,
            replicas,
            held,
        }
    }

    /// How many zones these are in; a broker without a zone is in none.
    fn zones_of(&self, replicas: &[i32]) -> usize {
        let zone = |id: &i32| self.zones.get(id).and_then(Option::as_deref);
        replicas.iter().filter_map(zone).collect::<BTreeSet<_>>().len()
    }

    fn zones(&self) -> usize {
        self.zones_of(&self.usable)
    }

    /// The replicas with `to` in the place of the one at `place`.
    fn replaced(replicas: &[i32], place: usize, to: i32) -> Vec<i32> {
        replicas.iter().enumerate().map(|(at, id)| if at == place { to } else { *id }).collect()
    }

    fn replace(&mut self, at: usize, place: usize, to: i32) {
        let from = std::mem::replace(&mut self.replicas[at][place], to);
        *self.held.entry(from).or_default() -= 1;
        *self.held.entry(to).or_default() += 1;
    }

    /// Who takes a replica best, so that the partition is in `needed` zones at least: most zones, those of brokers that stay
    /// before all, then fewest replicas.
    fn best(&self, at: usize, place: usize, needed: usize) -> Option<i32> {
        let replicas = &self.replicas[at];
        let zones = |id: &i32| self.zones_of(&Self::replaced(replicas, place, *id));
        let rank = |id: &i32| {
            let mut staying = Self::replaced(replicas, place, *id);
            staying.retain(|id| !self.drained.contains(id));
            let held = self.held.get(id).copied().unwrap_or(0);
            (std::cmp::Reverse((self.zones_of(&staying), zones(id))), held, *id)
        };
        let free = self.usable.iter().copied().filter(|id| !replicas.contains(id));
        free.filter(|id| zones(id) >= needed).min_by_key(rank)
    }

    fn drain(&mut self, placed: &[Placed]) -> Vec<String> {
        let mut unmet = Vec::new();
        for (at, placed) in placed.iter().enumerate() {
            if placed.replicas.iter().any(|id| self.drained.contains(id)) {
                unmet.extend(self.drain_one(at, placed));
            }
        }
        unmet
    }

    /// Moves all that can be moved off drained brokers, together: what each of them brings does not count, and the first of them
    /// may need the zone that the second one leaves.
    fn drain_one(&mut self, at: usize, placed: &Placed) -> Vec<String> {
        // What is in too few zones already gets no worse.
        let needed = placed.zones.min(self.zones_of(&placed.replicas));
        while self.move_one_off(at, 0) {}
        self.keep_in_zones(at, placed, needed);
        // Who is free again may take another one.
        while self.move_one_off(at, needed) {}
        let stays = self.replicas[at].iter().filter(|id| self.drained.contains(id));
        let told = stays.map(|from| {
            let free = self.usable.iter().any(|id| !self.replicas[at].contains(id));
            let why = if free {
                format!("without it the partition would be in fewer than the {} zones of its ack rule", placed.zones)
            } else {
                "no other broker is without a replica of it".to_owned()
            };
            format!("{}-{} stays on broker {from}: {why}", placed.topic, placed.partition)
        });
        told.collect()
    }

    /// Moves the first replica off a drained broker for which there is another in enough zones; whether it did.
    fn move_one_off(&mut self, at: usize, needed: usize) -> bool {
        let drained = (0..self.replicas[at].len()).filter(|place| self.drained.contains(&self.replicas[at][*place]));
        let found = drained.filter_map(|place| Some((place, self.best(at, place, needed)?))).next();
        let Some((place, to)) = found else { return false };
        self.replace(at, place, to);
        true
    }

    /// Puts back as many replicas as are needed where they were: the controller takes no target in too few zones (`R79`).
    fn keep_in_zones(&mut self, at: usize, placed: &Placed, needed: usize) {
        while self.zones_of(&self.replicas[at]) < needed {
            let moved = (0..placed.replicas.len()).filter(|place| self.replicas[at][*place] != placed.replicas[*place]);
            let back = |place: &usize| Self::replaced(&self.replicas[at], *place, placed.replicas[*place]);
            let most = moved.min_by_key(|place| std::cmp::Reverse(self.zones_of(&back(place))));
            let Some(place) = most else { return };
            self.replace(at, place, placed.replicas[place]);
        }
    }

    fn spread(&mut self, placed: &[Placed]) -> Vec<String> {
        let mut crowded = 0;
        for at in 0..placed.len() {
            while self.spread_one(at) {}
            crowded += usize::from(self.zones() > 0 && self.zones_of(&self.replicas[at]) < self.replicas[at].len());
        }
        let zones = self.zones();
        let partitions = if crowded == 1 { "1 partition has".to_owned() } else { format!("{crowded} partitions have") };
        let message = format!("{partitions} several replicas in one zone: there are {zones} zones for them");
        if crowded > 0 { vec![message] } else { Vec::new() }
    }

    /// Moves a replica into a zone that the partition is not in, if it shares its own; whether it did.
    fn spread_one(&mut self, at: usize) -> bool {
        let zones = self.zones_of(&self.replicas[at]);
        // The last ones first: the preferred leader stays where it can.
        let places = (0..self.replicas[at].len()).rev();
        let found = places.filter_map(|place| Some((place, self.best(at, place, zones + 1)?))).next();
        let Some((place, to)) = found else { return false };
        self.replace(at, place, to);
        true
    }

    /// Moves replicas from brokers with many to brokers with few until nothing is gained.
    fn even_replicas(&mut self) {
        while let Some((at, place, to)) = self.evening_move() {
            self.replace(at, place, to);
        }
    }

    fn evening_move(&self) -> Option<(usize, usize, i32)> {
        let held = |id: &i32| self.held.get(id).copied().unwrap_or(0);
        let mut by_load = self.usable.clone();
        by_load.sort_by_key(|id| (held(id), *id));
        for from in by_load.iter().rev() {
            for to in by_load.iter().take_while(|to| held(to) + 1 < held(from)) {
                let legal = |at: &usize| {
                    let replicas = &self.replicas[*at];
                    let place = replicas.iter().position(|id| id == from)?;
                    let zones = || self.zones_of(&Self::replaced(replicas, place, *to)) >= self.zones_of(replicas);
                    (!replicas.contains(to) && zones()).then_some((*at, place))
                };
                if let Some((at, place)) = (0..self.replicas.len()).find_map(|at| legal(&at)) {
                    return Some((at, place, *to));
                }
            }
        }
        None
    }

    /// Puts another replica first where that one is first for fewer partitions, or the first is on a drained broker.
    fn even_leaders(&mut self) {
        let mut led: BTreeMap<i32, usize> = BTreeMap::new();
        for first in self.replicas.iter().filter_map(|replicas| replicas.first()) {
            *led.entry(*first).or_default() += 1;
        }
        for _ in 0..PASSES {
            let mut moved = false;
            for replicas in &mut self.replicas {
                let leads = |id: i32| led.get(&id).copied().unwrap_or(0);
                let stays = |id: i32| self.usable.contains(&id);
                let places = (0..replicas.len()).filter(|place| stays(replicas[*place]));
                let Some(fewest) = places.min_by_key(|place| leads(replicas[*place])) else { continue };
                let first = replicas[0];
                if leads(replicas[fewest]) + 1 < leads(first) || !stays(first) {
                    *led.entry(replicas[0]).or_default() -= 1;
                    *led.entry(replicas[fewest]).or_default() += 1;
                    replicas.swap(0, fewest);
                    moved = true;
                }
            }
            if !moved {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Brokers 1, 2, … in these zones.
    fn brokers(zones: &[&str]) -> Vec<Broker> {
        let broker = |(id, zone): (i32, &&str)| Broker {
            id,
            zone: Some((*zone).to_owned()).filter(|zone| !zone.is_empty()),
            fenced: false,
        };
        (1..).zip(zones).map(broker).collect()
    }

    fn placed(partitions: &[&[i32]]) -> Vec<Placed> {
        let place = |(partition, replicas): (i32, &&[i32])| Placed {
            topic: "t".to_owned(),
            partition,
            replicas: replicas.to_vec(),
            zones: 0,
        };
        (0..).zip(partitions).map(place).collect()
    }

    /// The same of a topic whose ack rule asks for zones.
    fn zoned(zones: usize, partitions: &[&[i32]]) -> Vec<Placed> {
        placed(partitions).into_iter().map(|placed| Placed { zones, ..placed }).collect()
    }

    fn after(placed: &[Placed], plan: &Plan) -> Vec<Placed> {
        let mut after = placed.to_vec();
        for each in &plan.moves {
            let moved = after.iter_mut().find(|p| p.topic == each.topic && p.partition == each.partition);
            moved.expect("a move of what there is").replicas.clone_from(&each.to);
        }
        after
    }

    fn none() -> BTreeSet<i32> {
        BTreeSet::new()
    }

    #[test]
    fn a_balanced_cluster_stays_as_it_is() {
        let now = placed(&[&[1, 2, 3], &[2, 3, 1], &[3, 1, 2]]);
        assert_eq!(plan(&brokers(&["a", "b", "c"]), &now, &none()).moves, []);
    }

    #[test]
    fn a_new_broker_gets_its_share() {
        let now = placed(&[&[1, 2], &[2, 3], &[3, 1], &[1, 2], &[2, 3], &[3, 1]]);
        let cluster = brokers(&["", "", "", ""]);
        let plan = plan(&cluster, &now, &none());
        assert_eq!(plan.held.values().map(|(_, after)| *after).collect::<Vec<_>>(), [3, 3, 3, 3]);
        assert_eq!(plan.moves.iter().filter(|m| m.to.contains(&4)).count(), 3, "no more than its share moves");
        assert_eq!(super::plan(&cluster, &after(&now, &plan), &none()).moves, [], "planned again, nothing moves");
    }

    #[test]
    fn a_drained_broker_has_nothing_and_its_zone_is_made_up_for() {
        let now = placed(&[&[1, 2, 3], &[4, 2, 3], &[3, 1, 2]]);
        let cluster = brokers(&["a", "b", "c", "a"]);
        let plan = plan(&cluster, &now, &[1].into());
        assert_eq!(plan.held[&1], (2, 0));
        assert_eq!(plan.unmet, Vec::<String>::new());
        for each in after(&now, &plan) {
            assert!(!each.replicas.contains(&1) && each.replicas.len() == 3, "{each:?}");
            assert!(each.replicas.contains(&4), "zone a is only on 4 now: {each:?}");
        }
    }

    #[test]
    fn what_cannot_be_drained_or_spread_is_said() {
        let now = placed(&[&[1, 2], &[1, 2]]);
        let plan = plan(&brokers(&["a", "a"]), &now, &[2].into());
        assert_eq!(plan.moves, []);
        assert_eq!(plan.unmet.len(), 3, "{:?}", plan.unmet);
        assert!(plan.unmet[0].contains("t-0 stays on broker 2"), "{:?}", plan.unmet);
        assert!(plan.unmet[2].contains("2 partitions have several replicas in one zone"), "{:?}", plan.unmet);
    }

    #[test]
    fn replicas_in_one_zone_are_spread_before_they_are_evened() {
        let now = placed(&[&[1, 2], &[1, 2], &[2, 1]]);
        let plan = plan(&brokers(&["a", "a", "b"]), &now, &none());
        for each in after(&now, &plan) {
            assert!(each.replicas.contains(&3), "3 alone is in zone b: {each:?}");
        }
        assert_eq!(plan.unmet, Vec::<String>::new());
    }

    #[test]
    fn leaders_are_evened_by_order_alone() {
        let now = placed(&[&[1, 2], &[1, 2], &[1, 2], &[1, 2]]);
        let plan = plan(&brokers(&["a", "b"]), &now, &none());
        let led = |id| after(&now, &plan).iter().filter(|p| p.replicas[0] == id).count();
        assert_eq!((led(1), led(2)), (2, 2));
        assert!(plan.moves.iter().all(|m| m.to == [2, 1]), "{plan:?}");
    }

    #[test]
    fn a_drain_leaves_a_partition_in_the_zones_of_its_ack_rule() {
        // R79
        let cluster = brokers(&["a", "a", "b", "a"]);
        let now = [zoned(2, &[&[1, 3], &[3, 2], &[1, 2, 3]]), placed(&[&[4, 3]])].concat();
        let now: Vec<_> = (0..).zip(now).map(|(partition, placed)| Placed { partition, ..placed }).collect();
        let plan = plan(&cluster, &now, &[3].into());
        let then: Vec<_> = after(&now, &plan).into_iter().map(|placed| placed.replicas).collect();
        assert!(then[..3].iter().all(|replicas| replicas.contains(&3)), "{then:?}");
        let why = "without it the partition would be in fewer than the 2 zones of its ack rule";
        assert_eq!(plan.unmet[0], format!("t-0 stays on broker 3: {why}"));
        assert_eq!(plan.unmet.iter().filter(|unmet| unmet.contains("stays on broker 3")).count(), 3);
        assert!(!then[3].contains(&3), "without a rule it is moved: {then:?}");
    }

    #[test]
    fn a_broker_that_is_away_is_given_nothing_and_counts_for_what_it_has() {
        let mut cluster = brokers(&["a", "a", "b"]);
        cluster[2].fenced = true;
        assert_eq!(plan(&cluster, &zoned(2, &[&[1, 3], &[2, 3]]), &none()).moves, []);
        let drained = plan(&cluster, &zoned(2, &[&[1, 3]]), &[1].into());
        assert_eq!(drained.moves[0].to, [2, 3]);
        assert_eq!(
            plan(&cluster, &placed(&[&[1, 2]]), &[1].into()).moves.iter().filter(|m| m.to.contains(&3)).count(),
            0
        );
    }

    /// Numbers from one seed.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, n: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(self.0 >> 33).unwrap() % n
        }

        /// A cluster, and partitions on it with up to three replicas whose ack rules ask for up to `zones` zones.
        fn cluster(&mut self, zones: usize, fenced: bool) -> (Vec<Broker>, Vec<Placed>) {
            let names: Vec<&str> = (0..3 + self.below(4)).map(|_| ["a", "b", "c", ""][self.below(4)]).collect();
            let mut cluster = brokers(&names);
            for broker in &mut cluster {
                broker.fenced = fenced && self.below(6) == 0;
            }
            let factor = 1 + self.below(3);
            let mut partitions = Vec::new();
            for partition in 0..=i32::try_from(self.below(12)).unwrap() {
                let mut ids: Vec<i32> = cluster.iter().map(|broker| broker.id).collect();
                let replicas = (0..factor).map(|_| ids.swap_remove(self.below(ids.len()))).collect();
                partitions.push(Placed { topic: "t".to_owned(), partition, replicas, zones: self.below(zones + 1) });
            }
            (cluster, partitions)
        }
    }

    fn zones_of(cluster: &[Broker], replicas: &[i32]) -> usize {
        let of = |id: &i32| cluster[usize::try_from(id - 1).unwrap()].zone.clone();
        replicas.iter().filter_map(of).collect::<BTreeSet<_>>().len()
    }

    #[test]
    fn whatever_there_is_a_plan_keeps_factors_and_zones_and_plans_nothing_more() {
        let mut dice = Dice(7);
        for _ in 0..300 {
            let (cluster, now) = dice.cluster(0, false);
            let made = plan(&cluster, &now, &none());
            let then = after(&now, &made);
            for (before, after) in now.iter().zip(&then) {
                let unique: BTreeSet<_> = after.replicas.iter().collect();
                assert_eq!(unique.len(), before.replicas.len(), "{before:?} {after:?}");
                let zones = |placed: &Placed| zones_of(&cluster, &placed.replicas);
                assert!(zones(after) >= zones(before), "{before:?} {after:?}");
            }
            assert_eq!(plan(&cluster, &then, &none()).moves, [], "{now:?}");
        }
    }

    #[test]
    fn whatever_is_drained_a_partition_stays_in_the_zones_that_its_ack_rule_asks_for() {
        // R79
        let mut dice = Dice(11);
        let mut held_back = 0;
        for _ in 0..1000 {
            let (cluster, now) = dice.cluster(3, true);
            let drained: BTreeSet<i32> = cluster.iter().map(|b| b.id).filter(|_| dice.below(3) == 0).collect();
            let made = plan(&cluster, &now, &drained);
            let then = after(&now, &made);
            let usable = |id: &i32| cluster.iter().any(|b| b.id == *id && !b.fenced) && !drained.contains(id);
            for (before, after) in now.iter().zip(&then) {
                let needed = before.zones.min(zones_of(&cluster, &before.replicas));
                assert!(zones_of(&cluster, &after.replicas) >= needed, "{before:?} {after:?}");
                let added = after.replicas.iter().filter(|id| !before.replicas.contains(id));
                assert!(added.clone().all(usable), "{before:?} {after:?}");
                for (place, stays) in after.replicas.iter().enumerate().filter(|(_, id)| drained.contains(id)) {
                    let said = format!("t-{} stays on broker {stays}:", before.partition);
                    assert_eq!(
                        made.unmet.iter().filter(|unmet| unmet.starts_with(&said)).count(),
                        1,
                        "{said} {made:?}"
                    );
                    let free = cluster.iter().map(|b| b.id).filter(|id| usable(id) && !after.replicas.contains(id));
                    let others =
                        free.filter(|to| zones_of(&cluster, &Planner::replaced(&after.replicas, place, *to)) >= needed);
                    assert_eq!(others.count(), 0, "{stays} of {before:?} {after:?} could go");
                    held_back += 1;
                }
            }
            assert_eq!(plan(&cluster, &then, &drained).moves, [], "{now:?}");
        }
        assert!(held_back > 100, "{held_back}");
    }
}
