//! The applied metadata as it is offered to followers: the image, and the newest batches.
//!
//! Invariants: image and batches move together, by whole batches (`R70`); the batches end where the image stands and are
//! bounded in bytes: who asks for older ones gets the image.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use metadata::MetadataImage;
use model::MetadataOffset;
use tokio::sync::watch;

/// See the module.
#[derive(Debug)]
pub(crate) struct MetadataLog {
    state: Mutex<State>,
    moved: watch::Sender<MetadataOffset>,
    /// Batches kept, in bytes of encoded records.
    kept_max: usize,
}

#[derive(Debug, Default)]
struct State {
    image: MetadataImage,
    batches: VecDeque<(MetadataOffset, Bytes)>,
    bytes: usize,
}

/// What follows an offset.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Since {
    /// These batches, in order, after which the follower stands at `end`; none where nothing is new.
    Batches { batches: Vec<(MetadataOffset, Bytes)>, end: MetadataOffset },
    /// The batches are gone: the image.
    Image(MetadataImage),
    /// The offset is ahead of the image.
    Ahead,
}

impl MetadataLog {
    /// Nothing yet; keeps batches of so many bytes.
    pub(crate) fn keeping(kept_max: usize) -> Self {
        Self { state: Mutex::default(), moved: watch::Sender::new(MetadataOffset(0)), kept_max }
    }

    pub(crate) fn image(&self) -> MetadataImage {
        self.state().image.clone()
    }

    /// Says when the image moves.
    pub(crate) fn watch(&self) -> watch::Receiver<MetadataOffset> {
        self.moved.subscribe()
    }

    /// A batch with these encoded records, which begins at `base`, made `image`.
    pub(crate) fn publish(&self, image: MetadataImage, base: MetadataOffset, records: Bytes) {
        let next = image.next_offset();
        let mut state = self.state();
        state.image = image;
        if next > base {
            state.bytes += records.len();
            state.batches.push_back((base, records));
        }
        while state.bytes > self.kept_max && state.batches.len() > 1 {
            let oldest = state.batches.pop_front().map_or(0, |(_, records)| records.len());
            state.bytes -= oldest;
        }
        drop(state);
        self.moved.send_replace(next);
    }

    /// The image was replaced.
    pub(crate) fn start_over(&self, image: MetadataImage) {
        let next = image.next_offset();
        *self.state() = State { image, ..State::default() };
        self.moved.send_replace(next);
    }

    /// What follows `next`.
    pub(crate) fn since(&self, next: MetadataOffset) -> Since {
        let state = self.state();
        if next > state.image.next_offset() {
            return Since::Ahead;
        }
        let end = state.image.next_offset();
        if next == end {
            return Since::Batches { batches: Vec::new(), end };
        }
        match state.batches.binary_search_by_key(&next, |(base, _)| *base) {
            Ok(at) => Since::Batches { batches: state.batches.range(at..).cloned().collect(), end },
            Err(_) => Since::Image(state.image.clone()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use metadata::MetadataRecord;

    const KEPT_MAX: usize = 1000;

    fn grow(log: &MetadataLog, records: usize, bytes: usize) {
        let mut image = log.image();
        let base = image.next_offset();
        for _ in 0..records {
            image.apply(&MetadataRecord::FeatureLevel { name: "f".to_owned(), level: 1 });
        }
        log.publish(image, base, Bytes::from(vec![0; bytes]));
    }

    #[test]
    fn a_follower_gets_whole_batches_or_the_image() {
        // R70
        let log = MetadataLog::keeping(KEPT_MAX);
        grow(&log, 3, 10);
        grow(&log, 2, 20);
        let since = |next| log.since(MetadataOffset(next));
        let bases = |since| match since {
            Since::Batches { batches, .. } => batches.into_iter().map(|(base, _)| base.0).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(bases(since(0)), [0, 3]);
        assert_eq!(bases(since(3)), [3]);
        assert!(bases(since(5)).is_empty());
        assert!(matches!(since(4), Since::Image(_)), "inside of a batch");
        assert_eq!(since(6), Since::Ahead);
    }

    #[test]
    fn old_batches_go_and_the_image_takes_their_place() {
        let log = MetadataLog::keeping(KEPT_MAX);
        grow(&log, 1, KEPT_MAX / 2);
        grow(&log, 1, KEPT_MAX / 2);
        grow(&log, 1, 10);
        assert!(matches!(log.since(MetadataOffset(0)), Since::Image(_)));
        assert!(matches!(log.since(MetadataOffset(1)), Since::Batches { batches, .. } if batches.len() == 2));
    }
}
