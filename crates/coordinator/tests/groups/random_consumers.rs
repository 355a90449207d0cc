//! Random members of a consumer group, random faults, seeds: whatever happens, a member holds only what the group says it
//! has, nothing has two owners, the log says what is, and in the end everybody has a share and everything an owner.
//!
//! The model of a member is what clients do: it holds what it was last told, reports that, and begins anew when it is
//! fenced. Answers may be lost on the way to it.

use std::collections::BTreeSet;

use coordinator::consumer::group::{OwnedPartitions, Partitions};
use coordinator::consumer::request::{ConsumerHeartbeatRequest, ConsumerHeartbeatResponse};
use coordinator::{GroupConfig, GroupRequest, GroupResponse, Token};
use model::ErrorCode;

use crate::cluster::{add_partitions, topic_id};
use crate::consumers::{config, joining, living};
use crate::context::{Context, GROUP};
use crate::random::Random;

const MEMBERS: usize = 6;
const TOPICS: [&str; 3] = ["t", "u", "v"];

#[derive(Clone, Debug)]
struct Client {
    member_id: String,
    instance: Option<String>,
    epoch: i32,
    /// What it holds, as far as it knows.
    held: Partitions,
    topics: BTreeSet<String>,
    waiting: Option<Token>,
    /// What it said in earlier epochs: a network may deliver that again.
    said: Vec<ConsumerHeartbeatRequest>,
    lives: usize,
    alive: bool,
}

struct World {
    c: Context,
    random: Random,
    clients: Vec<Client>,
    partitions: [i32; 3],
    joined: u32,
    calm: bool,
}

impl World {
    fn new(seed: u64, config: GroupConfig) -> Self {
        let client = |index: usize| Client {
            member_id: format!("m{index}-0"),
            instance: index.is_multiple_of(3).then(|| format!("static-{index}")),
            epoch: 0,
            held: Partitions::new(),
            topics: TOPICS.iter().map(|topic| (*topic).to_owned()).collect(),
            waiting: None,
            said: Vec::new(),
            lives: 0,
            alive: true,
        };
        let mut c = Context::in_cluster(config, &TOPICS.map(|topic| (topic, 3)));
        c.log_works = false;
        let clients = (0..MEMBERS).map(client).collect();
        World { c, random: Random(seed), clients, partitions: [3; 3], joined: 0, calm: false }
    }

    fn step(&mut self) {
        let who = usize::try_from(self.random.below(MEMBERS as u64)).unwrap();
        match self.random.below(100) {
            0..60 => self.beat(who),
            60..80 if self.c.in_flight.is_some() => self.c.commit(),
            80..83 if self.c.in_flight.is_some() => self.c.fail(ErrorCode::NotEnoughReplicas),
            83..92 => {
                let ms = self.random.below(4_000);
                self.c.advance(ms);
            }
            92 => self.leave(who),
            93 => self.die_or_live(who),
            94 if self.random.below(3) == 0 => self.fail_over(),
            95 => self.subscribe(who),
            96 if self.random.below(4) == 0 => self.grow(),
            97..100 => self.echo(who),
            _ => {}
        }
        self.hear();
        self.check();
        if self.random.below(16) == 0 {
            assert_eq!(self.c.shard.state(), &self.c.replayed(), "what is committed is what the log says");
        }
    }

    fn beat(&mut self, who: usize) {
        let client = &self.clients[who];
        if !client.alive || client.waiting.is_some() {
            return;
        }
        let topics: Vec<&str> = client.topics.iter().map(String::as_str).collect();
        let request = match client.epoch {
            0 => joining(&client.member_id, &topics),
            epoch => {
                let owned = Some(client.held.clone());
                ConsumerHeartbeatRequest { owned, ..living(&client.member_id, epoch) }
            }
        };
        let request = ConsumerHeartbeatRequest {
            instance_id: client.instance.clone(),
            rebalance_timeout_ms: 20_000,
            topics: Some(client.topics.clone()),
            ..request
        };
        self.clients[who].said.push(request.clone());
        self.clients[who].waiting = Some(self.c.send(GroupRequest::ConsumerHeartbeat(request)));
    }

    /// Something said long ago arrives once more; its answer goes nowhere.
    fn echo(&mut self, who: usize) {
        let client = self.clients[who].clone();
        let old = client.said.iter().filter(|request| 0 < request.member_epoch && request.member_epoch < client.epoch);
        let old: Vec<_> = old.filter(|request| request.member_id == client.member_id).collect();
        let live = self.c.shard.consumers().find_map(|(_, live)| live.group.member(&client.member_id).cloned());
        let (Some(member), false) = (live, old.is_empty()) else { return };
        let request = old[usize::try_from(self.random.below(old.len() as u64)).unwrap()];
        // The epoch before the present one is taken for that of a lost answer, if nothing else speaks against it.
        if request.member_epoch < member.current.previous_epoch {
            self.c.send(GroupRequest::ConsumerHeartbeat(request.clone()));
        }
    }

    fn hear(&mut self) {
        for who in 0..self.clients.len() {
            let Some(token) = self.clients[who].waiting else { continue };
            let Some(GroupResponse::ConsumerHeartbeat(response)) = self.c.reply(token) else { continue };
            self.clients[who].waiting = None;
            // Now and then an answer is lost.
            if self.calm || self.random.below(8) > 0 {
                self.take(who, response);
            }
        }
    }

    fn take(&mut self, who: usize, response: ConsumerHeartbeatResponse) {
        let client = &mut self.clients[who];
        match response.error {
            ErrorCode::None => {
                self.joined += u32::from(client.epoch == 0);
                client.epoch = response.member_epoch;
                if let Some(assignment) = response.assignment {
                    client.held = assignment;
                }
            }
            ErrorCode::UnknownMemberId | ErrorCode::FencedMemberEpoch | ErrorCode::FencedInstanceId => {
                client.epoch = 0;
                client.held.clear();
            }
            ErrorCode::UnreleasedInstanceId
            | ErrorCode::CoordinatorNotAvailable
            | ErrorCode::NotCoordinator
            | ErrorCode::GroupIdNotFound => {}
            error => panic!("{who}: {error:?} {:?}", response.error_message),
        }
    }

    fn leave(&mut self, who: usize) {
        let client = self.clients[who].clone();
        if !client.alive || client.waiting.is_some() || client.epoch == 0 {
            return;
        }
        let epoch = if client.instance.is_some() && self.random.below(2) == 0 { -2 } else { -1 };
        let instance_id = client.instance.clone();
        self.c.send(GroupRequest::ConsumerHeartbeat(ConsumerHeartbeatRequest {
            instance_id,
            ..living(&client.member_id, epoch)
        }));
        self.reborn(who);
    }

    fn reborn(&mut self, who: usize) {
        let client = &mut self.clients[who];
        client.lives += 1;
        client.member_id = format!("m{who}-{}", client.lives);
        client.epoch = 0;
        client.held.clear();
        client.waiting = None;
        client.said.clear();
    }

    fn die_or_live(&mut self, who: usize) {
        self.clients[who].alive = !self.clients[who].alive;
        self.reborn(who);
    }

    fn subscribe(&mut self, who: usize) {
        let topic = TOPICS[usize::try_from(self.random.below(3)).unwrap()].to_owned();
        let topics = &mut self.clients[who].topics;
        if !topics.remove(&topic) {
            topics.insert(topic);
        }
    }

    fn grow(&mut self) {
        let topic = usize::try_from(self.random.below(3)).unwrap();
        let from = self.partitions[topic];
        if from < 12 {
            self.partitions[topic] += 1;
            self.c.change_cluster(|image| add_partitions(image, TOPICS[topic], from..from + 1));
        }
    }

    /// A batch in flight may or may not be in the log of the next coordinator.
    fn fail_over(&mut self) {
        if self.c.in_flight.is_some() && self.random.below(2) == 0 {
            self.c.commit();
            self.hear();
        }
        let mut next = self.c.fail_over();
        self.c.shard.unload(ErrorCode::NotCoordinator);
        self.c.in_flight = None;
        self.c.drain();
        self.hear();
        assert!(self.clients.iter().all(|client| client.waiting.is_none()), "unloading answers everybody");
        next.log_works = false;
        self.c = next;
    }

    /// A member of the present epoch, or of the one before it, holds nothing that the group would give to another.
    fn check(&self) {
        let Some((_, live)) = self.c.shard.consumers().find(|(id, _)| *id == GROUP) else { return };
        for client in self.clients.iter().filter(|client| client.epoch > 0) {
            let Some(member) = live.group.member(&client.member_id) else { continue };
            if ![member.current.epoch, member.current.previous_epoch].contains(&client.epoch) {
                continue;
            }
            let has =
                |owned: &OwnedPartitions, topic, index| owned.get(topic).is_some_and(|owned| owned.contains_key(index));
            for (topic, partitions) in &client.held {
                for index in partitions {
                    let known =
                        has(&member.current.assigned, topic, index) || has(&member.current.revoking, topic, index);
                    assert!(known, "{client:?} holds {topic}-{index}, and the group has {:?}", member.current);
                }
            }
        }
    }

    /// Without faults, everybody who lives gets a share in time, and everything that is read an owner.
    fn settle(&mut self) {
        (self.c.log_works, self.calm) = (true, true);
        if self.c.in_flight.is_some() {
            self.c.commit();
        }
        for _ in 0..100 {
            for who in 0..self.clients.len() {
                self.beat(who);
                self.hear();
                self.check();
            }
            self.c.advance(1_000);
        }
        let group = self.c.shard.state().consumer(GROUP).unwrap().clone();
        let living: Vec<&Client> = self.clients.iter().filter(|client| client.alive).collect();
        assert_eq!((group.state(), group.members().len()), ("Stable", living.len()));
        let mut owned = 0;
        for client in &living {
            // Who reads nothing needs no target.
            let target = group.targets().get(&client.member_id).map(|target| (**target).clone()).unwrap_or_default();
            assert_eq!(client.held, target, "{client:?}");
            owned += client.held.values().map(BTreeSet::len).sum::<usize>();
        }
        let read = |topic: &&str| living.iter().any(|client| client.topics.contains(*topic));
        let all = TOPICS.iter().zip(self.partitions).filter(|(topic, _)| read(topic));
        assert_eq!(owned, all.map(|(_, count)| usize::try_from(count).unwrap()).sum::<usize>());
        assert!(living.iter().all(|client| client.held.keys().all(|t| TOPICS.iter().any(|n| topic_id(n) == *t))));
    }
}

fn run(seeds: std::ops::Range<u64>, configure: impl Fn(u64, &mut GroupConfig)) {
    let mut joined = 0;
    for seed in seeds {
        let mut config = config();
        configure(seed, &mut config);
        let mut world = World::new(seed, config);
        for _ in 0..1_000 {
            world.step();
        }
        world.clients[0].alive = true;
        world.settle();
        joined += world.joined;
    }
    assert!(joined > 1_000, "hardly anything happened: {joined} joins");
}

fn various(seed: u64, config: &mut GroupConfig) {
    config.consumer.assignment_interval_ms.value = if seed.is_multiple_of(2) { 0 } else { 1_000 };
    if seed.is_multiple_of(3) {
        config.consumer.assignors.reverse();
    }
    // Large decisions go in parts, and only some of the parts may be stored.
    config.max_batch_bytes = if seed.is_multiple_of(5) { 1_500 } else { 1_000_000 };
}

#[test]
fn whatever_happens_to_consumers_nothing_has_two_owners_and_everybody_gets_a_share() {
    run(0..100, various);
}

#[cfg(feature = "mutations")]
#[test]
fn the_rules_of_members_are_noticed_when_they_are_switched_off() {
    use model::{Rule, Rules};
    for rule in [Rule::R53OneOwner, Rule::R53MemberEpoch, Rule::R53AnswerWhenStored] {
        let caught = std::panic::catch_unwind(|| {
            run(0..200, |seed, config| {
                various(seed, config);
                config.consumer.rules = Rules::without(rule);
            });
        });
        assert!(caught.is_err(), "nothing notices that {rule:?} is off");
    }
}
