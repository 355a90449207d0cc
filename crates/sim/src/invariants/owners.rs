//! A partition has one owner in a generation of a group (`R53`), or under a member epoch (KIP-848): no two members are ever told
//! that they have it.

use std::collections::BTreeMap;

/// See the module: who had what, by group, generation and partition.
#[derive(Debug, Default)]
pub struct Owners(BTreeMap<(String, i32, i32), String>);

impl Owners {
    /// A member was told that it has a partition: of a group, in a generation.
    pub fn claim(&mut self, (group, generation, partition): (&str, i32, i32), member: &str) -> Option<String> {
        let first = self.0.entry((group.to_owned(), generation, partition)).or_insert_with(|| member.to_owned());
        let what =
            || format!("group {group}, generation {generation}: both {first} and {member} have partition {partition}");
        (first.as_str() != member).then(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_members_with_one_partition_are_noticed_in_one_generation_only() {
        let mut owners = Owners::default();
        assert_eq!(owners.claim(("g", 1, 0), "a"), None);
        assert_eq!(owners.claim(("g", 1, 0), "a"), None);
        assert_eq!(owners.claim(("g", 1, 1), "b"), None);
        assert_eq!(owners.claim(("g", 2, 0), "b"), None);
        assert!(owners.claim(("g", 1, 0), "b").is_some());
    }
}
