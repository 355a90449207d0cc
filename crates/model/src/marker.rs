//! The markers that end transactions: control batches of one record, `key = version i16, type i16 (0 abort, 1 commit)`,
//! `value = version i16, coordinator epoch i32`, in Kafka's bytes.
//!
//! Other control batches exist (of Kafka's own quorum); they are nobody's transaction and read as none.

use bytes::{BufMut, BytesMut};

use crate::batch::{ClientBatches, Codec};
use crate::record::{Record, RecordIter, encode_control_batch, encode_records};
use crate::{ProducerEpoch, ProducerId, RecordBatch};

const VERSION: i16 = 0;
const ABORT: i16 = 0;
const COMMIT: i16 = 1;

/// What a marker says of its producer's transaction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EndMarker {
    /// Committed, else aborted.
    pub commit: bool,
    /// The epoch of the coordinator that wrote it (`R47`).
    pub coordinator_epoch: i32,
}

impl EndMarker {
    /// The marker in a control batch; None where the batch holds something else.
    #[must_use]
    pub fn of(batch: &RecordBatch) -> Option<EndMarker> {
        let header = batch.header();
        if !header.is_control() || !header.has_producer_id() || header.codec() != Some(Codec::None) {
            return None;
        }
        let record = RecordIter::new(batch.payload(), header.record_count).next()?.ok()?;
        let (key, value) = (record.key?, record.value?);
        let kind = i16::from_be_bytes(*key.get(2..)?.first_chunk()?);
        let coordinator_epoch = i32::from_be_bytes(*value.get(2..)?.first_chunk()?);
        match kind {
            ABORT => Some(EndMarker { commit: false, coordinator_epoch }),
            COMMIT => Some(EndMarker { commit: true, coordinator_epoch }),
            _ => None,
        }
    }

    /// The batch of a marker, to be stamped.
    #[must_use]
    pub fn encode(self, (id, epoch): (ProducerId, ProducerEpoch), timestamp: i64) -> ClientBatches {
        let mut key = BytesMut::with_capacity(4);
        key.put_i16(VERSION);
        key.put_i16(if self.commit { COMMIT } else { ABORT });
        let mut value = BytesMut::with_capacity(6);
        value.put_i16(VERSION);
        value.put_i32(self.coordinator_epoch);
        let record = Record { key: Some(key.freeze()), value: Some(value.freeze()), ..Record::default() };
        ClientBatches::own(encode_control_batch(&encode_records(&[record]), timestamp, (id, epoch)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::vectors;
    use crate::{LeaderEpoch, Offset};
    use proptest::prelude::*;

    #[test]
    fn markers_that_kafka_wrote_are_read_and_written_to_the_same_bytes() {
        let mut seen = 0;
        for vector in vectors().iter().filter(|vector| vector.name.ends_with("marker")) {
            let batch = RecordBatch::split_off(&mut vector.bytes.clone()).unwrap();
            let marker = EndMarker::of(&batch).unwrap();
            assert_eq!(marker, EndMarker { commit: vector.name == "commit marker", coordinator_epoch: 9 });
            let header = batch.header();
            let producer = (header.producer_id, header.producer_epoch);
            let written = marker.encode(producer, header.max_timestamp);
            assert_eq!(written.stamp(header.base_offset, header.leader_epoch), batch);
            seen += 1;
        }
        assert_eq!(seen, 2);
    }

    #[test]
    fn other_batches_are_no_markers() {
        for vector in vectors().iter().filter(|vector| !vector.name.ends_with("marker")) {
            for batch in RecordBatch::split_all(vector.bytes.clone()).unwrap() {
                assert_eq!(EndMarker::of(&batch), None, "{}", vector.name);
            }
        }
    }

    proptest! {
        #[test]
        fn a_control_batch_of_noise_is_no_marker_and_no_panic(noise in prop::collection::vec(any::<u8>(), 0..40)) {
            let bytes = encode_control_batch(&noise, 0, (ProducerId(1), ProducerEpoch(0)));
            let batch = ClientBatches::own(bytes).stamp(Offset(0), LeaderEpoch(0));
            prop_assert!(EndMarker::of(&batch).is_none_or(|_| noise.len() >= 12));
        }
    }
}
