//! Random clients, random faults, seeds: whatever happens, one owner in a generation, the log says what is, and nobody
//! waits for ever.

use std::collections::BTreeMap;

use coordinator::request::JoinGroupRequest;
use coordinator::{GroupConfig, GroupRequest, GroupResponse, Token};
use model::ErrorCode;

use crate::context::{Context, GROUP, fetch_request, known_member, new_member, static_member};

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[derive(Clone, Debug)]
enum Doing {
    Nothing,
    Joining(Token),
    Syncing(Token),
    Owning,
}

/// A consumer as clients are: it follows the answers that it gets.
#[derive(Clone, Debug)]
struct Client {
    member_id: String,
    instance: Option<String>,
    generation_id: i32,
    leads: Vec<String>,
    doing: Doing,
    alive: bool,
}

struct World {
    c: Context,
    random: Random,
    clients: Vec<Client>,
    /// Who was given what in which generation: assignments are numbers, each given once in a generation.
    owners: BTreeMap<(i32, String), String>,
    generations_seen: BTreeMap<i32, String>,
    committed: i64,
    stable: u32,
    calm: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let config = GroupConfig {
            initial_rebalance_delay_ms: if seed.is_multiple_of(2) { 0 } else { 500 },
            max_batch_bytes: 700,
            ..GroupConfig::default()
        };
        let client = |index: usize| Client {
            member_id: String::new(),
            instance: index.is_multiple_of(3).then(|| format!("static-{index}")),
            generation_id: -1,
            leads: Vec::new(),
            doing: Doing::Nothing,
            alive: true,
        };
        let clients = (0..6).map(client).collect();
        let (owners, generations_seen) = (BTreeMap::new(), BTreeMap::new());
        let mut c = Context::with(config);
        c.log_works = false;
        World { c, random: Random(seed), clients, owners, generations_seen, committed: -1, stable: 0, calm: false }
    }

    fn step(&mut self) {
        let who = usize::try_from(self.random.below(6)).unwrap();
        match self.random.below(100) {
            0..70 => self.act(who),
            70..85 if self.c.in_flight.is_some() => self.c.commit(),
            85..87 if self.c.in_flight.is_some() => self.c.fail(ErrorCode::NotEnoughReplicas),
            87..94 => {
                let ms = self.random.below(2_000);
                self.c.advance(ms);
            }
            95 if self.random.below(3) == 0 => {
                self.clients[who] = Client { alive: !self.clients[who].alive, ..self.reborn(who) }
            }
            94 if self.random.below(3) == 0 => self.fail_over(),
            96..98 => self.leave(who),
            _ => self.commit_offset(who),
        }
        self.hear();
        if self.random.below(16) == 0 {
            assert_eq!(self.c.shard.state(), &self.c.replayed(), "what is committed is what the log says");
        }
    }

    fn reborn(&self, who: usize) -> Client {
        let dead = self.clients[who].clone();
        Client { member_id: String::new(), generation_id: -1, leads: Vec::new(), doing: Doing::Nothing, ..dead }
    }

    fn act(&mut self, who: usize) {
        let client = self.clients[who].clone();
        if !client.alive {
            return;
        }
        match client.doing {
            Doing::Nothing => {
                let base = client.instance.as_deref().map_or_else(new_member, static_member);
                let token = self.c.join(JoinGroupRequest {
                    member_id: client.member_id.clone(),
                    require_known_member_id: who.is_multiple_of(2),
                    rebalance_timeout_ms: 5_000,
                    protocols: known_member("").protocols,
                    ..base
                });
                self.clients[who].doing = Doing::Joining(token);
            }
            Doing::Owning => {
                // A leader that joins again, of its own will, asks for a rebalance.
                let restless = !self.calm && self.random.below(20) == 0;
                if restless || !self.c.heartbeat(&client.member_id, client.generation_id).is_none() {
                    self.clients[who].doing = Doing::Nothing;
                }
            }
            Doing::Joining(_) | Doing::Syncing(_) => {}
        }
    }

    /// Takes the answers that have come.
    fn hear(&mut self) {
        for who in 0..self.clients.len() {
            let (Doing::Joining(token) | Doing::Syncing(token)) = self.clients[who].doing else { continue };
            match self.c.reply(token) {
                None => assert!(self.c.shard.poll_timeout().is_some(), "a client waits and no deadline stands"),
                Some(GroupResponse::JoinGroup(joined)) if joined.error.is_none() => self.joined(who, joined),
                Some(GroupResponse::JoinGroup(refused)) => self.refused(who, refused.error, &refused.member_id),
                Some(GroupResponse::SyncGroup(synced)) if synced.error.is_none() => {
                    self.clients[who].doing = Doing::Owning;
                    let owned = String::from_utf8(synced.assignment.to_vec()).unwrap();
                    self.owns(who, owned);
                }
                Some(GroupResponse::SyncGroup(refused)) => self.refused(who, refused.error, ""),
                Some(other) => panic!("{other:?}"),
            }
        }
    }

    fn joined(&mut self, who: usize, joined: coordinator::request::JoinGroupResponse) {
        let client = &mut self.clients[who];
        client.member_id = joined.member_id.clone();
        client.generation_id = joined.generation_id;
        client.leads = joined.members.iter().map(|member| member.member_id.clone()).collect();
        let assign: Vec<(String, String)> =
            client.leads.iter().enumerate().map(|(index, id)| (id.clone(), index.to_string())).collect();
        let assign: Vec<(&str, &str)> = assign.iter().map(|(id, share)| (id.as_str(), share.as_str())).collect();
        let assign = if joined.skip_assignment { Vec::new() } else { assign };
        let token = self.c.sync(&joined.member_id, joined.generation_id, &assign);
        self.clients[who].doing = Doing::Syncing(token);
    }

    fn refused(&mut self, who: usize, error: ErrorCode, member_id: &str) {
        let client = &mut self.clients[who];
        client.doing = Doing::Nothing;
        match error {
            ErrorCode::MemberIdRequired => client.member_id = member_id.to_owned(),
            ErrorCode::UnknownMemberId | ErrorCode::FencedInstanceId | ErrorCode::IllegalGeneration => {
                client.member_id.clear();
            }
            ErrorCode::RebalanceInProgress | ErrorCode::CoordinatorNotAvailable | ErrorCode::NotCoordinator => {
                client.member_id = if client.instance.is_some() { String::new() } else { client.member_id.clone() };
            }
            other => panic!("{other} to {client:?}"),
        }
    }

    /// A static member that came back has the share of the member before it, so owners are compared by name.
    fn owns(&mut self, who: usize, share: String) {
        if share.is_empty() {
            return;
        }
        let name = self.clients[who].instance.clone().unwrap_or_else(|| self.clients[who].member_id.clone());
        let generation = self.clients[who].generation_id;
        let owner = self.owners.entry((generation, share.clone())).or_insert_with(|| name.clone());
        assert_eq!(*owner, name, "share {share} of generation {generation} has two owners");
        self.generations_seen.insert(generation, name);
        self.stable += 1;
    }

    fn leave(&mut self, who: usize) {
        if matches!(self.clients[who].doing, Doing::Owning) {
            let member_id = self.clients[who].member_id.clone();
            self.c.leave(&[(&member_id, None)]);
            self.clients[who] = self.reborn(who);
        }
    }

    fn commit_offset(&mut self, who: usize) {
        let client = self.clients[who].clone();
        if matches!(client.doing, Doing::Owning) {
            let token = self.c.commit_offsets(&client.member_id, client.generation_id, self.committed + 1);
            while self.c.is_parked(token) {
                if self.c.in_flight.is_some() { self.c.commit() } else { self.c.advance(1) }
            }
            if self.c.committed(token).is_none() {
                self.committed += 1;
            }
        }
        let token = self.c.send(GroupRequest::OffsetFetch(fetch_request(false)));
        assert_eq!(self.c.fetched(token), self.committed, "an acknowledged offset is lost");
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
        self.hear_of_unloading();
        next.log_works = false;
        self.c = next;
        let group = self.c.shard.state().group(GROUP).map(|group| group.generation_id);
        // Generations that nobody was given a share in may be counted again; the others may not.
        let given = self.generations_seen.keys().next_back().copied();
        assert!(given <= group, "generation {given:?} was given out and the log has {group:?}");
    }

    fn hear_of_unloading(&mut self) {
        for who in 0..self.clients.len() {
            let (Doing::Joining(token) | Doing::Syncing(token)) = self.clients[who].doing else { continue };
            assert!(!self.c.is_parked(token), "unloading answers everybody");
            self.c.reply(token);
            self.refused(who, ErrorCode::NotCoordinator, "");
        }
    }

    /// Without faults, everybody who lives gets a share in time.
    fn settle(&mut self) {
        (self.c.log_works, self.calm) = (true, true);
        if self.c.in_flight.is_some() {
            self.c.commit();
        }
        for _ in 0..200 {
            for who in 0..self.clients.len() {
                self.act(who);
                self.hear();
            }
            self.c.advance(1_000);
            self.hear();
        }
        assert_eq!(self.c.describe().state, if self.clients.iter().any(|c| c.alive) { "Stable" } else { "Empty" });
        for client in self.clients.iter().filter(|client| client.alive) {
            assert!(matches!(client.doing, Doing::Owning), "{client:?}");
        }
    }
}

#[test]
fn whatever_happens_a_share_has_one_owner_the_log_is_the_truth_and_the_group_settles() {
    let mut stable = 0;
    for seed in 0..200 {
        let mut world = World::new(seed);
        for _ in 0..1_000 {
            world.step();
        }
        world.clients[0].alive = true;
        world.settle();
        stable += world.stable;
    }
    assert!(stable > 10_000, "hardly anything happened: {stable} shares given");
}
