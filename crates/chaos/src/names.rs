//! Names as numbers: a value that is sent, acknowledged, polled and read back is kept once.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Numbers names from 0 in the order in which they come.
#[derive(Clone, Debug)]
pub(crate) struct Names<K: Ord> {
    numbers: BTreeMap<Arc<K>, u32>,
    names: Vec<Arc<K>>,
}

impl<K: Ord> Default for Names<K> {
    fn default() -> Self {
        Self { numbers: BTreeMap::new(), names: Vec::new() }
    }
}

impl<K: Ord> Names<K> {
    /// The number of a name, which may be new.
    pub(crate) fn number(&mut self, name: K) -> u32 {
        if let Some(number) = self.numbers.get(&name) {
            return *number;
        }
        let number = u32::try_from(self.names.len()).expect("a history has fewer than 2^32 names");
        let name = Arc::new(name);
        self.names.push(Arc::clone(&name));
        self.numbers.insert(name, number);
        number
    }

    /// The name of a number that was given.
    pub(crate) fn name(&self, number: u32) -> &K {
        &self.names[usize::try_from(number).expect("32 bits fit")]
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }
}
