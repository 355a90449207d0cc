//! Incremental fetch sessions (KIP-227): what a consumer asked for last time, so that it says only what changed, and is
//! told only what changed.
//!
//! Invariants: there are at most as many sessions as slots, and at most [`PARTITIONS_MAX`] partitions in all of them; a
//! session is used by one request at a time, because each request names the epoch that the last one left behind.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{LeaderEpoch, Offset, PartitionIndex};

use crate::refusal::Refusal;
use crate::resolve::TopicKey;

/// Partitions that all sessions may remember together: over it clients send all they want each time.
const PARTITIONS_MAX: usize = 1_000_000;
/// A session may be replaced when it was not used for so long (Kafka's `min.incremental.fetch.session.eviction.ms`).
const EVICT_AFTER_MS: u64 = 120_000;
/// The epoch of a request that asks for a new session.
const EPOCH_INITIAL: i32 = 0;
/// The epoch of a request that wants none.
const EPOCH_FINAL: i32 = -1;
/// The id of no session.
pub(crate) const NO_SESSION: i32 = 0;

/// A partition that a consumer wants, with its position in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Wanted {
    pub(crate) topic: TopicKey,
    pub(crate) partition: PartitionIndex,
    pub(crate) current_leader_epoch: LeaderEpoch,
    pub(crate) fetch_offset: Offset,
    pub(crate) last_fetched_epoch: LeaderEpoch,
    pub(crate) max_bytes: usize,
}

/// What was found in a partition, as far as a session cares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    pub(crate) high_watermark: i64,
    pub(crate) log_start: i64,
    pub(crate) has_records: bool,
    pub(crate) is_error: bool,
    /// There is a preferred replica, or a divergence.
    pub(crate) is_redirect: bool,
}

/// What a request is, by its session id and epoch.
#[derive(Debug)]
pub(crate) enum FetchPlan {
    /// All that is wanted stands in the request, and all is answered; a new session begins if `remember` is set.
    Full {
        /// Whether the client wants a session.
        remember: bool,
    },
    /// The session says what is wanted, and what changed is answered.
    Incremental {
        /// The session's id.
        id: i32,
        /// The epoch that this request left behind.
        epoch: i32,
        /// The session.
        session: Arc<Mutex<Session>>,
    },
}

/// What one consumer wants.
#[derive(Debug)]
pub(crate) struct Session {
    epoch: i32,
    by_id: bool,
    /// Where in `order` each partition is.
    places: BTreeMap<(TopicKey, PartitionIndex), u64>,
    /// The order in which the limits are spent: partitions that gave records go to the end.
    order: BTreeMap<u64, Cached>,
    next_place: u64,
}

#[derive(Debug)]
struct Cached {
    wanted: Wanted,
    /// As the client was last told.
    high_watermark: i64,
    log_start: i64,
}

impl Session {
    fn new(by_id: bool) -> Self {
        Self { epoch: next_epoch(EPOCH_INITIAL), by_id, places: BTreeMap::new(), order: BTreeMap::new(), next_place: 0 }
    }

    fn put(&mut self, wanted: Wanted, told: Option<Found>) {
        let key = (wanted.topic.clone(), wanted.partition);
        if let Some(cached) = self.places.get(&key).and_then(|place| self.order.get_mut(place)) {
            cached.wanted = wanted;
            return;
        }
        let (high_watermark, log_start) = told.map_or((-1, -1), |found| (found.high_watermark, found.log_start));
        self.append(key, Cached { wanted, high_watermark, log_start });
    }

    fn append(&mut self, key: (TopicKey, PartitionIndex), cached: Cached) {
        self.places.insert(key, self.next_place);
        self.order.insert(self.next_place, cached);
        self.next_place += 1;
    }

    fn forget(&mut self, key: &(TopicKey, PartitionIndex)) {
        if let Some(place) = self.places.remove(key) {
            self.order.remove(&place);
        }
    }

    /// Whether the client has to be told of what was found; notes that it was.
    fn tell(&mut self, key: &(TopicKey, PartitionIndex), found: Found) -> bool {
        let Some(place) = self.places.get(key).copied() else { return true };
        let Some(cached) = self.order.get_mut(&place) else { return true };
        let moved = cached.high_watermark != found.high_watermark || cached.log_start != found.log_start;
        cached.log_start = found.log_start;
        // After an error the watermark is told again, so that the client hears that it is over.
        cached.high_watermark = if found.is_error { -1 } else { found.high_watermark };
        if found.has_records
            && let Some(cached) = self.order.remove(&place)
        {
            self.append(key.clone(), cached);
        }
        moved || found.has_records || found.is_error || found.is_redirect
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct FetchSessions {
    slots: usize,
    cache: Mutex<Cache>,
}

#[derive(Debug)]
struct Cache {
    seed: u64,
    partitions: usize,
    sessions: BTreeMap<i32, Slot>,
}

#[derive(Debug)]
struct Slot {
    session: Arc<Mutex<Session>>,
    size: usize,
    created_ms: u64,
    used_ms: u64,
}

impl FetchSessions {
    pub(crate) fn new(slots: usize, seed: u64) -> Self {
        Self { slots, cache: Mutex::new(Cache { seed, partitions: 0, sessions: BTreeMap::new() }) }
    }

    /// What a request means, and all partitions that it wants.
    pub(crate) fn begin(
        &self,
        (id, epoch): (i32, i32),
        by_id: bool,
        wanted: Vec<Wanted>,
        forgotten: Vec<(TopicKey, PartitionIndex)>,
        now_ms: u64,
    ) -> Result<(FetchPlan, Vec<Wanted>), Refusal> {
        let mut cache = lock(&self.cache);
        if epoch == EPOCH_INITIAL || epoch == EPOCH_FINAL {
            if id != NO_SESSION {
                cache.remove(id);
            }
            return Ok((FetchPlan::Full { remember: epoch == EPOCH_INITIAL }, wanted));
        }
        let room = PARTITIONS_MAX.saturating_sub(cache.partitions);
        let slot = cache.sessions.get_mut(&id).ok_or(Refusal::FetchSessionUnknown)?;
        let session = Arc::clone(&slot.session);
        let mut locked = lock(&session);
        if locked.epoch != epoch {
            return Err(Refusal::FetchSessionEpoch);
        }
        if locked.by_id != by_id {
            return Err(Refusal::FetchSessionTopicIds);
        }
        if wanted.len() > room {
            return Err(Refusal::FetchSessionUnknown);
        }
        wanted.into_iter().for_each(|wanted| locked.put(wanted, None));
        forgotten.iter().for_each(|key| locked.forget(key));
        let before = std::mem::replace(&mut slot.size, locked.order.len());
        slot.used_ms = now_ms;
        let now = slot.size;
        cache.partitions = cache.partitions + now - before;
        if now == 0 {
            cache.remove(id);
            return Ok((FetchPlan::Full { remember: false }, Vec::new()));
        }
        locked.epoch = next_epoch(epoch);
        let epoch = locked.epoch;
        let all = locked.order.values().map(|cached| cached.wanted.clone()).collect();
        drop(locked);
        Ok((FetchPlan::Incremental { id, epoch, session }, all))
    }

    /// Begins a session with what a full request wanted and was told. The id of no session if there is no place.
    pub(crate) fn remember(&self, by_id: bool, told: Vec<(Wanted, Found)>, now_ms: u64) -> i32 {
        let mut cache = lock(&self.cache);
        let size = told.len();
        if size == 0 || !cache.make_room(self.slots, size, now_ms) {
            return NO_SESSION;
        }
        let mut session = Session::new(by_id);
        told.into_iter().for_each(|(wanted, found)| session.put(wanted, Some(found)));
        let id = cache.new_id();
        let size = session.order.len();
        cache.partitions += size;
        let session = Arc::new(Mutex::new(session));
        cache.sessions.insert(id, Slot { session, size, created_ms: now_ms, used_ms: now_ms });
        id
    }
}

impl FetchPlan {
    /// Which of the partitions found have to be told, for each in order; `Err` if another request took the session on.
    pub(crate) fn select(&self, found: &[(&Wanted, Found)]) -> Result<Vec<bool>, Refusal> {
        match self {
            FetchPlan::Full { .. } => Ok(vec![true; found.len()]),
            FetchPlan::Incremental { epoch, session, .. } => {
                let mut session = lock(session);
                if session.epoch != *epoch {
                    return Err(Refusal::FetchSessionEpoch);
                }
                let tell = |(wanted, found): &(&Wanted, Found)| {
                    session.tell(&(wanted.topic.clone(), wanted.partition), *found)
                };
                Ok(found.iter().map(tell).collect())
            }
        }
    }
}

impl Cache {
    fn remove(&mut self, id: i32) {
        if let Some(slot) = self.sessions.remove(&id) {
            self.partitions -= slot.size;
        }
    }

    /// Evicts a session for one of `size` partitions, if one is stale, or old and smaller; says whether there is room.
    fn make_room(&mut self, slots: usize, size: usize, now_ms: u64) -> bool {
        if self.sessions.len() >= slots {
            let stale = |slot: &Slot| now_ms.saturating_sub(slot.used_ms) > EVICT_AFTER_MS;
            let old = |slot: &Slot| now_ms.saturating_sub(slot.created_ms) > EVICT_AFTER_MS;
            let oldest = self.sessions.iter().filter(|(_, slot)| stale(slot)).min_by_key(|(_, slot)| slot.used_ms);
            let smaller = || {
                let smaller = self.sessions.iter().filter(|(_, slot)| old(slot) && slot.size < size);
                smaller.min_by_key(|(_, slot)| (slot.size, slot.created_ms))
            };
            match oldest.or_else(smaller).map(|(id, _)| *id) {
                Some(id) => self.remove(id),
                None => return false,
            }
        }
        self.sessions.len() < slots && self.partitions + size <= PARTITIONS_MAX
    }

    /// An id that another broker, or this one before, is not likely to have given: a client that asks the wrong broker
    /// must not find somebody else's session.
    fn new_id(&mut self) -> i32 {
        loop {
            self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = (self.seed ^ (self.seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let id = i32::try_from((mixed ^ (mixed >> 31)) >> 33).unwrap_or(NO_SESSION);
            if id != NO_SESSION && !self.sessions.contains_key(&id) {
                return id;
            }
        }
    }
}

fn next_epoch(epoch: i32) -> i32 {
    if epoch == i32::MAX { 1 } else { epoch + 1 }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, partition: i32) -> (TopicKey, PartitionIndex) {
        (TopicKey::Name(name.into()), PartitionIndex(partition))
    }

    fn wanted(name: &str, partition: i32, offset: i64) -> Wanted {
        let (topic, partition) = key(name, partition);
        Wanted {
            topic,
            partition,
            current_leader_epoch: LeaderEpoch::NONE,
            fetch_offset: Offset(offset),
            last_fetched_epoch: LeaderEpoch::NONE,
            max_bytes: 1,
        }
    }

    fn found(high_watermark: i64, has_records: bool) -> Found {
        Found { high_watermark, log_start: 0, has_records, is_error: false, is_redirect: false }
    }

    fn begin(
        sessions: &FetchSessions,
        id: i32,
        epoch: i32,
        wanted: Vec<Wanted>,
    ) -> Result<(FetchPlan, Vec<Wanted>), Refusal> {
        sessions.begin((id, epoch), false, wanted, Vec::new(), 0)
    }

    fn session_of(sessions: &FetchSessions, names: &[&str]) -> i32 {
        let told = names.iter().map(|name| (wanted(name, 0, 0), found(0, false))).collect();
        sessions.remember(false, told, 0)
    }

    #[test]
    fn a_session_remembers_what_is_wanted_and_tells_what_changed() {
        let sessions = FetchSessions::new(10, 1);
        let id = session_of(&sessions, &["a", "b", "c"]);
        assert_ne!(id, NO_SESSION);
        let (plan, all) = begin(&sessions, id, 1, vec![wanted("b", 0, 7)]).unwrap();
        assert_eq!(all, [wanted("a", 0, 0), wanted("b", 0, 7), wanted("c", 0, 0)]);
        let answers = [(&all[0], found(5, true)), (&all[1], found(0, false)), (&all[2], found(1, false))];
        assert_eq!(plan.select(&answers).unwrap(), [true, false, true]);
        let (plan, all) = begin(&sessions, id, 2, Vec::new()).unwrap();
        assert_eq!(all.iter().map(|wanted| wanted.topic.name()).collect::<Vec<_>>(), ["b", "c", "a"]);
        let same = [(&all[0], found(0, false)), (&all[1], found(1, false)), (&all[2], found(5, false))];
        assert_eq!(plan.select(&same).unwrap(), [false, false, false]);
    }

    #[test]
    fn an_error_is_told_each_time_and_its_end_too() {
        let sessions = FetchSessions::new(10, 1);
        let id = session_of(&sessions, &["a"]);
        let error = Found { is_error: true, ..found(-1, false) };
        for (epoch, found, told) in
            [(1, error, true), (2, error, true), (3, found(0, false), true), (4, found(0, false), false)]
        {
            let (plan, all) = begin(&sessions, id, epoch, Vec::new()).unwrap();
            assert_eq!(plan.select(&[(&all[0], found)]).unwrap(), [told], "epoch {epoch}");
        }
    }

    #[test]
    fn a_session_that_is_unknown_out_of_turn_or_named_otherwise_is_refused() {
        let sessions = FetchSessions::new(10, 1);
        let id = session_of(&sessions, &["a"]);
        assert_eq!(begin(&sessions, id + 1, 1, Vec::new()).unwrap_err(), Refusal::FetchSessionUnknown);
        assert_eq!(begin(&sessions, id, 2, Vec::new()).unwrap_err(), Refusal::FetchSessionEpoch);
        let by_id = sessions.begin((id, 1), true, Vec::new(), Vec::new(), 0);
        assert_eq!(by_id.unwrap_err(), Refusal::FetchSessionTopicIds);
        assert!(begin(&sessions, id, 1, Vec::new()).is_ok(), "a refused request changes nothing");
    }

    #[test]
    fn a_session_ends_when_it_is_closed_or_wants_nothing() {
        let sessions = FetchSessions::new(10, 1);
        let id = session_of(&sessions, &["a"]);
        assert!(matches!(begin(&sessions, id, EPOCH_FINAL, Vec::new()), Ok((FetchPlan::Full { remember: false }, _))));
        assert_eq!(begin(&sessions, id, 1, Vec::new()).unwrap_err(), Refusal::FetchSessionUnknown);
        let id = session_of(&sessions, &["a"]);
        let emptied = sessions.begin((id, 1), false, Vec::new(), vec![key("a", 0)], 0).unwrap();
        assert!(matches!(emptied, (FetchPlan::Full { remember: false }, all) if all.is_empty()));
        assert_eq!(begin(&sessions, id, 2, Vec::new()).unwrap_err(), Refusal::FetchSessionUnknown);
        assert_eq!(lock(&sessions.cache).partitions, 0);
    }

    #[test]
    fn a_full_cache_evicts_what_is_stale_then_what_is_old_and_smaller() {
        let sessions = FetchSessions::new(2, 1);
        let (first, second) = (session_of(&sessions, &["a"]), session_of(&sessions, &["a", "b"]));
        assert_eq!(session_of(&sessions, &["c"]), NO_SESSION, "both are in use");
        let late = EVICT_AFTER_MS + 1;
        for (id, epoch) in [(first, 1), (second, 1)] {
            sessions.begin((id, epoch), false, Vec::new(), Vec::new(), late).unwrap();
        }
        let told = |count: i32| (0..count).map(|index| (wanted("d", index, 0), found(0, false))).collect();
        assert_eq!(sessions.remember(false, told(1), late), NO_SESSION, "none is smaller");
        let third = sessions.remember(false, told(2), late);
        assert_ne!(third, NO_SESSION);
        assert_eq!(begin(&sessions, first, 2, Vec::new()).unwrap_err(), Refusal::FetchSessionUnknown);
        assert!(begin(&sessions, second, 2, Vec::new()).is_ok());
    }

    #[test]
    fn ids_differ_between_brokers() {
        let (one, two) = (FetchSessions::new(1, 1), FetchSessions::new(1, 2));
        assert_ne!(session_of(&one, &["a"]), session_of(&two, &["a"]));
    }
}
