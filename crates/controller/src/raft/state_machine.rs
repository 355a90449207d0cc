//! What committed entries make: the metadata image, alike on every node.
//!
//! An entry's records are applied only if the tenure that decided them made the entry, and the image stands where they
//! were decided on (`R66`). The image is published once per batch (`R70`).
//!
//! Snapshots are files; one is durable before [`LogStore`] may purge behind it (`R72`). The copy in sled is written behind,
//! a batch of changes at a time (`R73`).

use std::io::Cursor;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use metadata::{MetadataImage, MetadataRecord};
use model::{MetadataOffset, Rule};
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, LogId, OptionalSend, Snapshot};
use serde::{Deserialize, Serialize};
use storage::DiskPool;
use storage::quorum_snapshot::{QuorumSnapshot, QuorumSnapshots};

use crate::metadata_log::MetadataLog;
use crate::raft::codec;
use crate::raft::image_keeper::ImageKeeper;
use crate::raft::log_store::{LogStore, StoreError};
use crate::raft::types::{
    Applied, Batch, Entry, NodeId, SnapshotMeta, StorageError, StorageIOError, StoredMembership, TypeConfig,
};

/// How far a node has applied the log, and what openraft needs to know of it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Position {
    pub(crate) applied: Option<LogId<NodeId>>,
    pub(crate) membership: StoredMembership,
    pub(crate) next_offset: u64,
}

/// See the module. Clones are handles to the same machine.
#[derive(Clone, Debug)]
pub(crate) struct StateMachine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    machine: Mutex<Machine>,
    snapshots: QuorumSnapshots,
    log_store: LogStore,
    pool: DiskPool,
    published: Arc<MetadataLog>,
    keeper: ImageKeeper,
}

#[derive(Clone, Debug, Default)]
struct Machine {
    position: Position,
    image: MetadataImage,
    snapshots_built: u64,
}

/// A batch could not be understood: this program is older than the one that wrote it.
#[derive(thiserror::Error, Debug)]
#[error("the metadata log holds records that this version does not know: {0}")]
struct UnknownRecords(String);

impl StateMachine {
    /// A machine that stands at `position` with `image`.
    pub(crate) fn new(
        position: Position,
        image: MetadataImage,
        snapshots: QuorumSnapshots,
        log_store: LogStore,
        pool: DiskPool,
        published: Arc<MetadataLog>,
        keeper: ImageKeeper,
    ) -> StateMachine {
        published.start_over(image.clone());
        let machine = Mutex::new(Machine { position, image, snapshots_built: 0 });
        StateMachine { shared: Arc::new(Shared { machine, snapshots, log_store, pool, published, keeper }) }
    }

    /// What it stands at.
    pub(crate) fn image(&self) -> MetadataImage {
        self.machine().image.clone()
    }

    /// Starts over from `position` with `image`: for a machine that nobody uses yet.
    pub(crate) fn start_from(&self, position: Position, image: MetadataImage) {
        let mut machine = self.machine();
        machine.position = position;
        machine.image = image;
    }

    /// Goes on with another image where it stands: for a machine that nobody uses yet.
    pub(crate) fn replace_image(&self, image: MetadataImage) {
        let mut machine = self.machine();
        machine.position.next_offset = image.next_offset().0;
        machine.image = image;
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.shared.machine.lock().expect("no holder of the lock panics")
    }

    fn apply_entry(&self, entry: Entry) -> Result<Applied, UnknownRecords> {
        let mut machine = self.machine();
        let applied = match entry.payload {
            EntryPayload::Blank => Applied::Nothing,
            EntryPayload::Membership(membership) => {
                machine.position.membership = StoredMembership::new(Some(entry.log_id), membership);
                Applied::Nothing
            }
            EntryPayload::Normal(batch) => self.apply_batch(&mut machine, &entry.log_id, &batch)?,
        };
        machine.position.applied = Some(entry.log_id);
        Ok(applied)
    }

    fn apply_batch(
        &self,
        machine: &mut Machine,
        log_id: &LogId<NodeId>,
        batch: &Batch,
    ) -> Result<Applied, UnknownRecords> {
        let leader = log_id.leader_id;
        let next = machine.image.next_offset();
        let rules = self.shared.log_store.rules();
        let of_its_tenure = (leader.term, leader.node_id) == (batch.term, batch.node);
        let of_its_tenure = of_its_tenure || !rules.hold(Rule::R66Tenure);
        if !of_its_tenure || (batch.base != next.0 && rules.hold(Rule::R66Base)) {
            return Ok(Applied::Superseded);
        }
        let records = metadata::wire::decode_records(&batch.records.0).map_err(|e| UnknownRecords(e.to_string()))?;
        if !founds_once(&records, next) {
            return Ok(Applied::Superseded);
        }
        self.shared.keeper.note(&machine.image, &records);
        for record in &records {
            machine.image.apply(record);
        }
        let next_offset = machine.image.next_offset();
        machine.position.next_offset = next_offset.0;
        self.shared.published.publish(machine.image.clone(), next, batch.records.0.clone());
        Ok(Applied::Records { next_offset: next_offset.0 })
    }

    async fn save(&self, meta: &SnapshotMeta, data: Bytes) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        let snapshot = QuorumSnapshot { index: codec::snapshot_index(meta), meta: codec::to_json(meta), data };
        self.shared.pool.run(move || shared.snapshots.save(&snapshot)).await?;
        if let Some(upto) = meta.last_log_id {
            self.shared.log_store.snapshot_saved(upto).await?;
        }
        Ok(())
    }

    /// Writes what changed to the copy in sled.
    pub(crate) async fn keep(&self) {
        let (touched, position, image) = {
            // Together, so that no batch comes between.
            let machine = self.machine();
            (self.shared.keeper.take(), machine.position.clone(), machine.image.clone())
        };
        self.shared.keeper.write(&self.shared.pool, touched, position, image).await;
    }

    /// Closes the copy in sled: handles to this machine may live on.
    pub(crate) fn close(&self) {
        self.shared.keeper.close();
    }
}

/// The cluster's identity is the first record, and only that (`R66`).
fn founds_once(records: &[MetadataRecord], base: MetadataOffset) -> bool {
    let founding = |record: &MetadataRecord| matches!(record, MetadataRecord::ClusterId(_));
    match records.split_first() {
        Some((first, rest)) => founding(first) == (base.0 == 0) && !rest.iter().any(founding),
        None => base.0 != 0,
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let (position, image, count) = {
            let mut machine = self.machine();
            machine.snapshots_built += 1;
            (machine.position.clone(), machine.image.clone(), machine.snapshots_built)
        };
        let index = position.applied.map_or(0, |id| id.index);
        let term = position.applied.map_or(0, |id| id.leader_id.term);
        let meta = SnapshotMeta {
            last_log_id: position.applied,
            last_membership: position.membership,
            snapshot_id: format!("{term}-{index}-{count}"),
        };
        // Encoding a large image takes a while: not on the thread of the heartbeats.
        let encode =
            move || codec::snapshot_data(image.next_offset(), &metadata::wire::encode_records(&image.to_records()));
        let data = self.shared.pool.run(encode).await;
        let saved = self.save(&meta, data.clone()).await;
        saved.map_err(|error| StorageIOError::write_snapshot(Some(meta.signature()), &error))?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(data.to_vec())) })
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = StateMachine;

    async fn applied_state(&mut self) -> Result<(Option<LogId<NodeId>>, StoredMembership), StorageError> {
        let machine = self.machine();
        Ok((machine.position.applied, machine.position.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut applied = Vec::new();
        for entry in entries {
            let log_id = entry.log_id;
            applied.push(self.apply_entry(entry).map_err(|error| StorageIOError::apply(log_id, &error))?);
        }
        Ok(applied)
    }

    async fn get_snapshot_builder(&mut self) -> StateMachine {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let data = Bytes::from(snapshot.into_inner());
        let failed = |error: &StoreError| StorageIOError::write_snapshot(Some(meta.signature()), error);
        let content = data.clone();
        let image = self.shared.pool.run(move || image_of(content)).await.map_err(|error| failed(&error))?;
        self.save(meta, data).await.map_err(|error| failed(&error))?;
        let mut machine = self.machine();
        machine.position = Position {
            applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
            next_offset: image.next_offset().0,
        };
        machine.image = image.clone();
        self.shared.keeper.start_over();
        self.shared.published.start_over(image);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let shared = Arc::clone(&self.shared);
        let newest = self.shared.pool.run(move || shared.snapshots.newest().map_err(StoreError::from)).await;
        let newest = newest.and_then(|newest| {
            let snapshot = newest.map(|snapshot| -> Result<_, StoreError> {
                let meta: SnapshotMeta = codec::from_json(&snapshot.meta)?;
                Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(snapshot.data.to_vec())) })
            });
            snapshot.transpose()
        });
        newest.map_err(|error| StorageIOError::read_snapshot(None, &error).into())
    }
}

/// The image that a snapshot's content makes.
pub(crate) fn image_of(data: Bytes) -> Result<MetadataImage, StoreError> {
    let (next_offset, records) = codec::parse_snapshot(data)?;
    let records = metadata::wire::decode_records(&records).map_err(|_| codec::CodecError::CutOff)?;
    Ok(MetadataImage::from_snapshot(next_offset, &records))
}
