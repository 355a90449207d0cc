//! What becomes of moves once they are asked for, from what brokers tell of them again and again.
//!
//! ```text
//!  asked for ──► under way ──► done
//!      │             └───────► cancelled, or aimed elsewhere by somebody else: once that has stood for a while
//!      └──► refused, or never begun, as nobody answered
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Key;
use super::plan::Move;

/// How long nothing may be seen of a move before it is taken for ended: a broker that is asked may hear of it late.
const HEARD_WITHIN: Duration = Duration::from_secs(5);

/// What became of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    UnderWay,
    Done,
    /// Its topic was deleted: there is nothing left to move.
    Gone,
    /// Why the cluster did not take it.
    Refused(String),
    /// Why nobody said whether it was taken; it was not seen to be.
    Unanswered(String),
    /// The replicas are where they were.
    Cancelled,
    /// They are, or are to be, here instead.
    Elsewhere(Vec<i32>),
}

impl Fate {
    /// What one looks like, by where the partition is on its way to, if it is, and who has it.
    fn of(asked: &Move, target: Option<&Vec<i32>>, replicas: Option<&Vec<i32>>) -> Fate {
        match (target, replicas) {
            (Some(target), _) if *target == asked.to => Fate::UnderWay,
            (Some(target), _) => Fate::Elsewhere(target.clone()),
            (None, None) => Fate::Gone,
            (None, Some(replicas)) if *replicas == asked.to => Fate::Done,
            (None, Some(replicas)) if *replicas == asked.from => Fate::Cancelled,
            (None, Some(replicas)) => Fate::Elsewhere(replicas.clone()),
        }
    }

    /// Nobody answered when it was asked for: where it did not move, it was not begun.
    pub(super) fn was_not_answered(&mut self, why: &str) {
        if *self == Fate::Cancelled {
            *self = Fate::Unanswered(why.to_owned());
        }
    }

    /// Why the partition is not where it was to be, in words that follow its name.
    pub(super) fn failure(&self) -> Option<String> {
        match self {
            Fate::UnderWay | Fate::Done | Fate::Gone => None,
            Fate::Refused(why) => Some(format!("was refused: {why}")),
            Fate::Unanswered(why) => Some(format!("was not begun: {why}")),
            Fate::Cancelled => Some("was cancelled".to_owned()),
            Fate::Elsewhere(replicas) => {
                let ids: Vec<String> = replicas.iter().map(ToString::to_string).collect();
                Some(format!("was aimed elsewhere, at {}", ids.join(",")))
            }
        }
    }
}

/// One that is followed.
#[derive(Debug)]
struct Followed<'a> {
    asked: &'a Move,
    fate: Fate,
    /// Since when it looks ended otherwise than it was to.
    since: Option<Instant>,
    ended: bool,
}

/// Follows moves to their ends.
#[derive(Debug)]
pub(super) struct Watch<'a>(Vec<Followed<'a>>);

impl<'a> Watch<'a> {
    /// Of moves that were asked for, but for those that were refused.
    pub(super) fn new(moves: &'a [Move], mut refused: BTreeMap<Key, String>) -> Watch<'a> {
        let follow = |asked: &'a Move| {
            let refused = refused.remove(&(asked.topic.clone(), asked.partition)).map(Fate::Refused);
            let ended = refused.is_some();
            Followed { asked, fate: refused.unwrap_or(Fate::UnderWay), since: None, ended }
        };
        Watch(moves.iter().map(follow).collect())
    }

    /// Looks at where partitions are on their way to, then at who has them; answers how many moves go on.
    pub(super) fn look(
        &mut self,
        under_way: &BTreeMap<Key, Vec<i32>>,
        replicas: &BTreeMap<Key, Vec<i32>>,
        now: Instant,
    ) -> usize {
        for each in self.0.iter_mut().filter(|each| !each.ended) {
            let key = (each.asked.topic.clone(), each.asked.partition);
            each.fate = Fate::of(each.asked, under_way.get(&key), replicas.get(&key));
            each.ended = match each.fate {
                Fate::Done | Fate::Gone => true,
                Fate::UnderWay => {
                    each.since = None;
                    false
                }
                // Or the broker has not heard of the move yet, or heard of its end between the two answers.
                _ => now.duration_since(*each.since.get_or_insert(now)) >= HEARD_WITHIN,
            };
        }
        self.0.iter().filter(|each| !each.ended).count()
    }

    /// What became of each, once nothing goes on.
    pub(super) fn ended(&self) -> Option<Vec<Fate>> {
        let all = self.0.iter().all(|each| each.ended);
        all.then(|| self.0.iter().map(|each| each.fate.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        ("t".to_owned(), 0)
    }

    fn at(replicas: &[i32]) -> BTreeMap<Key, Vec<i32>> {
        [(key(), replicas.to_vec())].into()
    }

    /// Where the replicas are on their way to, and who they are.
    type Look = (Option<&'static [i32]>, Option<&'static [i32]>);

    /// A move from 1, 2 to 1, 3: what each look shows, a second apart, and what it came to.
    fn watched(looks: &[Look]) -> Option<Vec<Fate>> {
        let moves = [Move { topic: "t".to_owned(), partition: 0, from: vec![1, 2], to: vec![1, 3] }];
        let mut watch = Watch::new(&moves, BTreeMap::new());
        let begin = Instant::now();
        for (second, (target, replicas)) in (0..).zip(looks) {
            let seen = |shown: &Option<&[i32]>| shown.map(at).unwrap_or_default();
            watch.look(&seen(target), &seen(replicas), begin + Duration::from_secs(second));
        }
        watch.ended()
    }

    #[test]
    fn a_move_is_done_when_the_replicas_are_where_they_were_to_be() {
        let on_its_way: Look = (Some(&[1, 3]), Some(&[1, 3, 2]));
        assert_eq!(watched(&[on_its_way; 20]), None);
        assert_eq!(watched(&[on_its_way, (None, Some(&[1, 3]))]), Some(vec![Fate::Done]));
        assert_eq!(watched(&[on_its_way, (None, None)]), Some(vec![Fate::Gone]));
    }

    #[test]
    fn a_move_that_is_cancelled_or_aimed_elsewhere_ends_and_says_so() {
        let back: Look = (None, Some(&[1, 2]));
        assert_eq!(watched(&[back; 6]), Some(vec![Fate::Cancelled]));
        let elsewhere: Look = (Some(&[2, 4]), Some(&[2, 4, 1]));
        assert_eq!(watched(&[elsewhere; 6]), Some(vec![Fate::Elsewhere(vec![2, 4])]));
        assert_eq!(Fate::Elsewhere(vec![2, 4]).failure().unwrap(), "was aimed elsewhere, at 2,4");
    }

    #[test]
    fn a_move_that_a_broker_has_not_heard_of_yet_is_waited_for() {
        let unheard: Look = (None, Some(&[1, 2]));
        let heard: Look = (Some(&[1, 3]), Some(&[1, 3, 2]));
        let late = [[unheard; 4].as_slice(), &[heard], &[unheard; 4]].concat();
        assert_eq!(watched(&late), None);
    }

    #[test]
    fn a_move_that_is_refused_is_not_waited_for() {
        let moves = [Move { topic: "t".to_owned(), partition: 0, from: vec![1, 2], to: vec![1, 3] }];
        let watch = Watch::new(&moves, [(key(), "no".to_owned())].into());
        assert_eq!(watch.ended(), Some(vec![Fate::Refused("no".to_owned())]));
    }

    #[test]
    fn a_move_that_nobody_answered_for_and_that_never_began_is_told_as_that() {
        let (mut back, mut done) = (Fate::Cancelled, Fate::Done);
        back.was_not_answered("why");
        done.was_not_answered("why");
        assert_eq!((back.failure().as_deref(), done), (Some("was not begun: why"), Fate::Done));
    }
}
