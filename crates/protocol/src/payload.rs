//! Record data on its way out.
//!
//! Invariants: no chunk is empty, and `len` is the sum of their lengths and of what lies elsewhere.

use bytes::Bytes;

/// Bytes of a response that do not lie in memory: whoever sends it knows them by a number of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Elsewhere {
    /// Which.
    pub number: usize,
    /// How many bytes, at least one.
    pub len: usize,
}

/// The records of a response: the batches as they lie in memory, one chunk or many, never joined; or bytes that lie
/// elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Records {
    chunks: Vec<Bytes>,
    elsewhere: Option<Elsewhere>,
    len: usize,
}

impl Records {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Records::default()
    }

    /// Records that lie elsewhere.
    #[must_use]
    pub fn lying_elsewhere(elsewhere: Elsewhere) -> Self {
        Self { chunks: Vec::new(), elsewhere: Some(elsewhere), len: elsewhere.len }
    }

    /// What lies elsewhere, before the chunks.
    #[must_use]
    pub fn elsewhere(&self) -> Option<Elsewhere> {
        self.elsewhere
    }

    /// Adds bytes at the end, without copying them.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.len += chunk.len();
            self.chunks.push(chunk);
        }
    }

    /// The bytes that are in memory, in order.
    #[must_use]
    pub fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All bytes that are in memory in one piece: a copy unless there is one chunk.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        match self.chunks.as_slice() {
            [] => Bytes::new(),
            [one] => one.clone(),
            many => Bytes::from(many.concat()),
        }
    }
}

/// Equal bytes are equal records, however they are cut.
impl PartialEq for Records {
    fn eq(&self, other: &Self) -> bool {
        (self.len, self.elsewhere) == (other.len, other.elsewhere)
            && self.chunks.iter().flatten().eq(other.chunks.iter().flatten())
    }
}

impl Eq for Records {}

impl From<Bytes> for Records {
    fn from(chunk: Bytes) -> Self {
        let mut records = Records::new();
        records.push(chunk);
        records
    }
}

impl FromIterator<Bytes> for Records {
    fn from_iter<I: IntoIterator<Item = Bytes>>(chunks: I) -> Self {
        let mut records = Records::new();
        chunks.into_iter().for_each(|chunk| records.push(chunk));
        records
    }
}
