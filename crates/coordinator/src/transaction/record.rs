//! What the coordinator writes into `__transaction_state`, byte for byte as Kafka 4.3 does, and how it is read back.

use model::{PartitionIndex, ProducerEpoch, ProducerId, Time};
use protocol::records::{
    TransactionLogKey, TransactionLogValue, decode_key, decode_value, encode_key, encode_value, key_type,
    transaction_log_value,
};
use protocol::{DecodeError, EncodeError, RecordKey};

use super::EPOCH_BUMP_VERSION;
use super::state::{PartitionSet, Status, TransactionMetadata};
use crate::record::CoordinatorRecord;

/// What a record says of one transactional id. None is a tombstone.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct TransactionFact {
    /// Which.
    pub transactional_id: String,
    /// What is so now.
    pub metadata: Option<Box<TransactionMetadata>>,
}

/// Why a record cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadRecord {
    /// Its bytes are not what their type says.
    #[error(transparent)]
    Bytes(#[from] DecodeError),
    /// A status that is never stored.
    #[error("a transaction cannot have the status {0}")]
    Status(i8),
}

impl TransactionFact {
    /// The record that says so, at the cluster's transaction version: version 0 knows no flexible records.
    ///
    /// # Errors
    /// If a string is longer than the format allows.
    pub fn encode(&self, transaction_version: i16) -> Result<CoordinatorRecord, EncodeError> {
        let key = encode_key(&TransactionLogKey { transactional_id: self.transactional_id.clone() })?;
        let Some(metadata) = &self.metadata else { return Ok(CoordinatorRecord { key, value: None }) };
        // A client that bumps epochs needs the fields for it, whatever the cluster has come back to.
        let flexible = transaction_version > 0 || metadata.client_version >= EPOCH_BUMP_VERSION;
        let value = encode_value(&to_value(metadata), i16::from(flexible))?;
        Ok(CoordinatorRecord { key, value: Some(value) })
    }

    /// What a record says; None for kinds that this version does not know, which are skipped.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn decode(record: &CoordinatorRecord) -> Result<Option<TransactionFact>, BadRecord> {
        if key_type(&record.key)? != TransactionLogKey::TYPE {
            return Ok(None);
        }
        let TransactionLogKey { transactional_id } = decode_key(&record.key)?;
        let metadata = record.value.as_ref().map(|value| from_value(decode_value(value)?)).transpose()?;
        Ok(Some(TransactionFact { transactional_id, metadata: metadata.map(Box::new) }))
    }
}

fn to_value(metadata: &TransactionMetadata) -> TransactionLogValue {
    let partitions = metadata.partitions.topics().map(|(topic, partitions)| transaction_log_value::PartitionsSchema {
        topic: topic.clone(),
        partition_ids: partitions.iter().map(|partition| partition.0).collect(),
    });
    TransactionLogValue {
        producer_id: metadata.producer_id.0,
        producer_epoch: metadata.producer_epoch.0,
        transaction_timeout_ms: metadata.timeout_ms,
        transaction_status: metadata.status.code(),
        transaction_partitions: (metadata.status != Status::Empty).then(|| partitions.collect()),
        transaction_last_update_timestamp_ms: wire_time(Some(metadata.updated)),
        transaction_start_timestamp_ms: wire_time(metadata.started),
        previous_producer_id: metadata.previous_producer_id.0,
        next_producer_id: metadata.next_producer_id.0,
        client_transaction_version: metadata.client_version,
        ..TransactionLogValue::default()
    }
}

fn from_value(value: TransactionLogValue) -> Result<TransactionMetadata, BadRecord> {
    let status = Status::from_code(value.transaction_status).ok_or(BadRecord::Status(value.transaction_status))?;
    let mut partitions = PartitionSet::default();
    for topic in value.transaction_partitions.iter().flatten() {
        for partition in &topic.partition_ids {
            partitions.insert(&topic.topic, PartitionIndex(*partition));
        }
    }
    Ok(TransactionMetadata {
        producer_id: ProducerId(value.producer_id),
        previous_producer_id: ProducerId(value.previous_producer_id),
        next_producer_id: ProducerId(value.next_producer_id),
        producer_epoch: ProducerEpoch(value.producer_epoch),
        last_producer_epoch: ProducerEpoch::NONE,
        timeout_ms: value.transaction_timeout_ms,
        status,
        partitions,
        started: u64::try_from(value.transaction_start_timestamp_ms).ok().map(Time),
        updated: u64::try_from(value.transaction_last_update_timestamp_ms).map_or(Time::ZERO, Time),
        client_version: value.client_transaction_version,
    })
}

/// -1 is none.
fn wire_time(time: Option<Time>) -> i64 {
    time.map_or(-1, |time| i64::try_from(time.0).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn hex(text: &str) -> Bytes {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect::<Vec<u8>>().into()
    }

    fn fact(client_version: i16) -> TransactionFact {
        let partitions =
            [("s7", 1009), ("s7", 1010), ("s8", 1014)].into_iter().map(|(topic, p)| (topic, PartitionIndex(p)));
        let metadata = TransactionMetadata {
            producer_id: ProducerId(1_000_000_000_001),
            previous_producer_id: ProducerId(if client_version == 0 { -1 } else { 1_000_000_000_018 }),
            next_producer_id: ProducerId::NONE,
            producer_epoch: ProducerEpoch(2),
            last_producer_epoch: ProducerEpoch::NONE,
            timeout_ms: 1003,
            status: Status::PrepareAbort,
            partitions: partitions.collect(),
            started: Some(Time(1_000_000_000_017)),
            updated: Time(1_000_000_000_016),
            client_version,
        };
        TransactionFact { transactional_id: "s1".into(), metadata: Some(Box::new(metadata)) }
    }

    #[test]
    fn a_transaction_is_the_bytes_that_kafka_writes_in_version_0() {
        let record = fact(0).encode(0).unwrap();
        assert_eq!(record.key, hex("000000027331"));
        let value = concat!(
            "0000",
            "000000e8d4a51001",
            "0002",
            "000003eb",
            "03",
            "00000002",
            "00027337",
            "00000002",
            "000003f1",
            "000003f2",
            "00027338",
            "00000001",
            "000003f6",
            "000000e8d4a51010",
            "000000e8d4a51011",
        );
        assert_eq!(record.value, Some(hex(value)));
        assert_eq!(TransactionFact::decode(&record), Ok(Some(fact(0))));
    }

    #[test]
    fn a_transaction_is_the_bytes_that_kafka_writes_in_version_1() {
        for cluster_version in [0, 1, 2] {
            let record = fact(2).encode(cluster_version).unwrap();
            let value = concat!(
                "0001",
                "000000e8d4a51001",
                "0002",
                "000003eb",
                "03",
                "03",
                "037337",
                "03",
                "000003f1",
                "000003f2",
                "00",
                "037338",
                "02",
                "000003f6",
                "00",
                "000000e8d4a51010",
                "000000e8d4a51011",
                "02",
                "0008",
                "000000e8d4a51012",
                "02",
                "02",
                "0002",
            );
            assert_eq!(record.value, Some(hex(value)));
            assert_eq!(TransactionFact::decode(&record), Ok(Some(fact(2))));
        }
    }

    #[test]
    fn an_empty_transaction_has_null_partitions_and_a_tombstone_no_value() {
        let mut empty = fact(0);
        let metadata = empty.metadata.as_mut().unwrap();
        (metadata.status, metadata.partitions, metadata.started) = (Status::Empty, PartitionSet::default(), None);
        let record = empty.encode(0).unwrap();
        assert_eq!(record.value.as_ref().unwrap()[16..], hex("00ffffffff000000e8d4a51010ffffffffffffffff"));
        assert_eq!(TransactionFact::decode(&record), Ok(Some(empty)));
        let gone = TransactionFact { transactional_id: "s1".into(), metadata: None };
        let record = gone.encode(2).unwrap();
        assert_eq!((record.value.as_ref(), TransactionFact::decode(&record)), (None, Ok(Some(gone))));
    }

    #[test]
    fn a_record_of_an_unknown_kind_is_skipped_and_a_broken_one_is_an_error() {
        let unknown = CoordinatorRecord { key: hex("7fff00027331"), value: None };
        assert_eq!(TransactionFact::decode(&unknown), Ok(None));
        assert!(TransactionFact::decode(&CoordinatorRecord { key: hex("00"), value: None }).is_err());
        let CoordinatorRecord { key, value } = fact(0).encode(0).unwrap();
        let mut value = value.unwrap().to_vec();
        value[16] = 6;
        let dead = CoordinatorRecord { key, value: Some(value.into()) };
        assert_eq!(TransactionFact::decode(&dead), Err(BadRecord::Status(6)));
    }
}
