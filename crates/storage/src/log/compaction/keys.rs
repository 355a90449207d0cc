//! Which offset is the last one of each key: a map of bounded memory from a 128-bit hash of the key to an offset, 24 bytes
//! an entry as in Kafka.
//!
//! The hash is SipHash-2-4 with 128 bits and a key that differs from run to run: nobody can write keys that collide, and
//! two of a billion do so by chance with a probability below 10^-20. Whoever is told the wrong offset for a key would lose
//! a record, so nothing weaker will do.
//!
//! Invariants: never more memory than told, also while it grows (it does so in [`SHARDS`] parts, one at a time); an entry
//! that was put is found.

use std::hash::{BuildHasher, RandomState};

use model::Offset;

/// Bytes of an entry: as Kafka counts them for `log.cleaner.dedupe.buffer.size`.
pub const ENTRY_BYTES: usize = 24;
/// Parts that grow by themselves.
const SHARDS: usize = 256;
/// Slots of a part that has its first entry.
const SLOTS_MIN: usize = 8;

/// The secret of the hash.
#[derive(Clone, Copy, Debug)]
pub struct HashKey(pub [u64; 2]);

impl HashKey {
    /// One that nobody can know.
    #[must_use]
    pub fn random() -> HashKey {
        let secret = RandomState::new();
        HashKey([0u8, 1].map(|half| secret.hash_one(half)))
    }
}

/// Hash high, hash low, offset + 1; an offset of 0 here is an empty slot.
type Slot = [u64; 3];

/// See the module.
#[derive(Debug)]
pub(super) struct KeyMap {
    hash_key: HashKey,
    shards: Vec<Vec<Slot>>,
    used: Vec<usize>,
    len: usize,
    slots: usize,
    shard_max: usize,
    load_factor: f64,
}

/// The map holds as many keys as it may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Full;

impl KeyMap {
    /// A map of at most `bytes`, filled to `load_factor` at most. It takes one key at least.
    pub(super) fn new(hash_key: HashKey, bytes: usize, load_factor: f64) -> Self {
        let shard_max = (bytes / ENTRY_BYTES / SHARDS).max(SLOTS_MIN);
        Self {
            hash_key,
            shards: vec![Vec::new(); SHARDS],
            used: vec![0; SHARDS],
            len: 0,
            slots: 0,
            shard_max,
            load_factor: load_factor.clamp(0.1, 0.95),
        }
    }

    /// Keys in it.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes that it takes now.
    pub(super) fn bytes(&self) -> usize {
        self.slots * ENTRY_BYTES
    }

    /// How much of what it may hold it holds, from 0 to 1.
    pub(super) fn utilization(&self) -> f64 {
        let most = self.limit(self.shard_max).saturating_mul(SHARDS).max(1);
        f64::from(u32::try_from(self.len).unwrap_or(u32::MAX)) / f64::from(u32::try_from(most).unwrap_or(u32::MAX))
    }

    /// The key's last offset is this, now: offsets are put ascending.
    pub(super) fn put(&mut self, key: &[u8], offset: Offset) -> Result<(), Full> {
        let hash = siphash128(self.hash_key, key);
        let shard = shard_of(hash);
        let stored = offset.0.cast_unsigned() + 1;
        if let Some(found) = find(&self.shards[shard], hash) {
            let slot = &mut self.shards[shard][found];
            if slot[2] != 0 {
                slot[2] = stored;
                return Ok(());
            }
        }
        if self.used[shard] >= self.limit(self.shards[shard].len()) {
            self.grow(shard)?;
        }
        let free = find(&self.shards[shard], hash).expect("a part is never full");
        self.shards[shard][free] = [hash[0], hash[1], stored];
        self.used[shard] += 1;
        self.len += 1;
        Ok(())
    }

    /// The key's last offset, if it was put.
    pub(super) fn get(&self, key: &[u8]) -> Option<Offset> {
        let hash = siphash128(self.hash_key, key);
        let shard = &self.shards[shard_of(hash)];
        let stored = shard[find(shard, hash)?][2];
        stored.checked_sub(1).map(|offset| Offset(offset.cast_signed()))
    }

    /// Entries that a part with so many slots takes: one slot stays free, so that every search ends.
    fn limit(&self, slots: usize) -> usize {
        let slots32 = u32::try_from(slots).unwrap_or(u32::MAX);
        // A part that can still grow does so before searches in it become long.
        let factor = if slots < self.shard_max { self.load_factor.min(0.75) } else { self.load_factor };
        let limit = f64::from(slots32) * factor;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 2^32")]
        let limit = limit as usize;
        limit.min(slots.saturating_sub(1))
    }

    fn grow(&mut self, shard: usize) -> Result<(), Full> {
        let before = self.shards[shard].len();
        if before >= self.shard_max {
            return Err(Full);
        }
        let after = (before * 2).clamp(SLOTS_MIN, self.shard_max);
        let old = std::mem::replace(&mut self.shards[shard], vec![[0; 3]; after]);
        for slot in old.into_iter().filter(|slot| slot[2] != 0) {
            let free = find(&self.shards[shard], [slot[0], slot[1]]).expect("the larger part has room");
            self.shards[shard][free] = slot;
        }
        self.slots += after - before;
        Ok(())
    }
}

fn shard_of(hash: [u64; 2]) -> usize {
    usize::from(hash[0].to_be_bytes()[0])
}

/// Where the hash stands, or the empty slot where it would; None in a part without slots.
fn find(slots: &[Slot], hash: [u64; 2]) -> Option<usize> {
    let length = slots.len() as u64;
    if length == 0 {
        return None;
    }
    // The high half of a product spreads a hash over any number of slots without a division.
    let spread = (u128::from(hash[1]) * u128::from(length)) >> 64;
    let mut at = usize::try_from(spread).unwrap_or(0);
    loop {
        let slot = &slots[at];
        if slot[2] == 0 || (slot[0] == hash[0] && slot[1] == hash[1]) {
            return Some(at);
        }
        at += 1;
        if at == slots.len() {
            at = 0;
        }
    }
}

/// SipHash-2-4 with a result of 128 bits (Aumasson and Bernstein).
fn siphash128(HashKey([k0, k1]): HashKey, bytes: &[u8]) -> [u64; 2] {
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d ^ 0xee,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let mut raw = [0; 8];
        raw.copy_from_slice(word);
        absorb(&mut v, u64::from_le_bytes(raw));
    }
    let mut last = [0; 8];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    last[7] = bytes.len().to_le_bytes()[0];
    absorb(&mut v, u64::from_le_bytes(last));
    v[2] ^= 0xee;
    let low = squeeze(&mut v);
    v[1] ^= 0xdd;
    [low, squeeze(&mut v)]
}

fn absorb(v: &mut [u64; 4], word: u64) {
    v[3] ^= word;
    round(v);
    round(v);
    v[0] ^= word;
}

fn squeeze(v: &mut [u64; 4]) -> u64 {
    for _ in 0..4 {
        round(v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const KEY: HashKey = HashKey([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]);

    #[test]
    fn the_hash_is_siphash_as_its_authors_publish_it() {
        // From the reference implementation's vectors for 128 bits: messages 00, 00 01, 00 01 02 … of these lengths.
        let message: Vec<u8> = (0..64).collect();
        let hex = |length: usize| {
            let [low, high] = siphash128(KEY, &message[..length]);
            let bytes = [low.to_le_bytes(), high.to_le_bytes()].concat();
            bytes.iter().map(|b| format!("{b:02x}")).collect::<String>()
        };
        assert_eq!(hex(0), "a3817f04ba25a8e66df67214c7550293");
        assert_eq!(hex(1), "da87c1d86b99af44347659119b22fc45");
        assert_eq!(hex(2), "8177228da4a45dc7fca38bdef60affe4");
        assert_eq!(hex(63), "5150d1772f50834a503e069a973fbd7c");
    }

    #[test]
    fn a_map_is_a_map_until_it_is_full_and_takes_no_more_memory_than_told() {
        for (bytes, load_factor) in [(0, 0.9), (200_000, 0.9), (200_000, 0.5), (24 * 256 * 100, 0.95)] {
            let mut map = KeyMap::new(KEY, bytes, load_factor);
            let mut model = BTreeMap::new();
            let mut offset = 0;
            loop {
                let key = (offset * 7 % 9_001).to_string();
                if map.put(key.as_bytes(), Offset(offset)) == Err(Full) {
                    assert!(!model.contains_key(&key));
                    break;
                }
                model.insert(key, offset);
                offset += 1;
                if offset == 30_000 {
                    break;
                }
            }
            assert_eq!(map.len(), model.len());
            assert!(map.bytes() <= bytes.max(SHARDS * SLOTS_MIN * ENTRY_BYTES) && map.utilization() <= 1.0);
            for (key, offset) in &model {
                assert_eq!(map.get(key.as_bytes()), Some(Offset(*offset)));
            }
            assert_eq!(map.get(b"nobody"), None);
            // Keys that are there take newer offsets also where no new key has room.
            let key = model.keys().next().unwrap();
            map.put(key.as_bytes(), Offset(1 << 40)).unwrap();
            assert_eq!(map.get(key.as_bytes()), Some(Offset(1 << 40)));
        }
    }

    #[test]
    fn no_two_maps_have_the_same_secret() {
        let [a, b] = [HashKey::random(), HashKey::random()].map(|key| siphash128(key, b"k"));
        assert_ne!(a, b);
    }

    #[test]
    fn keys_that_differ_in_one_bit_or_length_are_told_apart() {
        let mut map = KeyMap::new(HashKey([1, 2]), 1 << 20, 0.9);
        let mut keys = vec![Vec::new()];
        for length in 1..40usize {
            for bit in 0..length * 8 {
                let mut key = vec![0u8; length];
                key[bit / 8] ^= 1 << (bit % 8);
                keys.push(key);
            }
            keys.push(vec![0u8; length]);
        }
        for (offset, key) in (0..).zip(&keys) {
            map.put(key, Offset(offset)).unwrap();
        }
        assert_eq!(map.len(), keys.len());
        assert!((0..).zip(&keys).all(|(offset, key)| map.get(key) == Some(Offset(offset))));
    }
}
