//! How much of one stream may be under way: the bytes that its sessions have sent and that are not acknowledged yet (`R62`).
//!
//! Invariants: the bytes in flight are within the window, but for one batch larger than it, which goes alone; whoever finds
//! no room may go on after an acknowledgement, which says so once.

use model::{Rule, Rules};

/// See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Window {
    max_bytes: u64,
    rules: Rules,
    in_flight: u64,
    /// Counts what made room.
    releases: u64,
    /// What comes next is larger than what is left: nothing goes before more is.
    too_large: bool,
}

/// What a window has room for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Room {
    /// Bytes, in whole batches ...
    pub bytes: u64,
    /// ... but at least one batch if this is set: nothing is in flight.
    pub at_least_one: bool,
    releases: u64,
}

impl Window {
    /// Nothing is in flight.
    #[must_use]
    pub fn new(max_bytes: u64, rules: Rules) -> Self {
        Self { max_bytes, rules, in_flight: 0, releases: 0, too_large: false }
    }

    /// What may be sent; None while an acknowledgement has to make room first.
    #[must_use]
    pub fn room(&self) -> Option<Room> {
        if !self.rules.hold(Rule::R62StreamWindow) {
            return Some(Room { bytes: u64::MAX, at_least_one: true, releases: self.releases });
        }
        let bytes = self.max_bytes.saturating_sub(self.in_flight);
        let at_least_one = self.in_flight == 0;
        let full = self.too_large || bytes == 0;
        (at_least_one || !full).then_some(Room { bytes, at_least_one, releases: self.releases })
    }

    /// What comes next did not fit into `room`: there is none before an acknowledgement, unless one has come since.
    pub fn handle_too_large(&mut self, room: Room) {
        self.too_large = room.releases == self.releases && !room.at_least_one;
    }

    /// A session that had `before` bytes in flight has `after` now. Whether there is room again where there was none.
    #[must_use]
    pub fn handle_in_flight(&mut self, before: u64, after: u64) -> bool {
        let was_full = self.room().is_none();
        let rest = self.in_flight.checked_sub(before);
        let rest =
            rest.unwrap_or_else(|| panic!("a session gives back more: of {} in flight {before}", self.in_flight));
        self.in_flight = rest + after;
        if after < before {
            self.releases += 1;
            self.too_large = false;
        }
        was_full && self.room().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rules;

    fn window() -> Window {
        Window::new(100, rules())
    }

    fn room(window: &Window) -> Option<(u64, bool)> {
        window.room().map(|room| (room.bytes, room.at_least_one))
    }

    #[test]
    fn what_is_in_flight_takes_room_and_acknowledgements_give_it_back() {
        // R62
        let mut window = window();
        assert_eq!(room(&window), Some((100, true)));
        assert!(!window.handle_in_flight(0, 60), "there was room all the time");
        assert_eq!(room(&window), Some((40, false)));
        assert!(!window.handle_in_flight(0, 40));
        assert_eq!(room(&window), None);
        assert!(window.handle_in_flight(60, 50), "there is room again");
        assert!(!window.handle_in_flight(50, 0));
        assert_eq!(room(&window), Some((60, false)));
    }

    #[test]
    fn a_batch_larger_than_the_window_goes_alone() {
        // R62
        let mut window = window();
        assert!(!window.handle_in_flight(0, 1));
        window.handle_too_large(window.room().unwrap());
        assert_eq!(room(&window), None);
        assert!(window.handle_in_flight(1, 0));
        assert_eq!(room(&window), Some((100, true)), "at least one batch, whatever its size");
        assert!(!window.handle_in_flight(0, 5_000));
        assert_eq!(room(&window), None);
        assert!(window.handle_in_flight(5_000, 0));
    }

    #[test]
    fn an_acknowledgement_between_the_look_and_the_refusal_is_not_missed() {
        // R62
        let mut window = window();
        assert!(!window.handle_in_flight(0, 90));
        let looked = window.room().unwrap();
        assert!(!window.handle_in_flight(90, 30));
        window.handle_too_large(looked);
        assert_eq!(room(&window), Some((70, false)));
        window.handle_too_large(window.room().unwrap());
        assert_eq!(room(&window), None);
    }
}
