//! What an operator does to the metadata of a node that is stopped: goes on with one survivor's alone, or puts a backup in
//! the place of nothing.
//!
//! Both write one snapshot whose only voter is this node; the others join it as new ones. Neither asks anybody: what a
//! quorum had and this node has not is lost, and voters of the old quorum that come back with their old directories would
//! be another cluster of the same name. What the brokers did since what is left here was written is not known: the numbers
//! that they may hold are passed over, and nobody counts as in sync (`R80`, [`metadata::restore`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use metadata::restore::{self, Raised};
use metadata::{MetadataImage, MetadataRecord};
use model::batch::crc32c;
use model::{BrokerId, ClusterId, DirectoryId, MetadataOffset, Rules};
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use openraft::{CommittedLeaderId, EntryPayload, LogId, Membership, RaftLogReader};
use rpc::raft::QuorumNode;
use storage::DiskPool;
use storage::disk::Disk;

use crate::ControllerError;
use crate::metadata_log::MetadataLog;
use crate::raft::log_store::LogStore;
use crate::raft::state_machine::{Position, StateMachine};
use crate::raft::types::{Entry, Member, NodeId};
use crate::raft::{QuorumConfig, Timeouts, Waits, open_stores};

const MAGIC: &[u8; 8] = b"OTTLAMD\n";
const VERSION: u32 = 1;

/// The metadata files of a node that is stopped; whoever calls holds the directory's lock.
#[derive(Clone, Debug)]
pub struct QuorumFiles {
    /// Its `node.id`.
    pub node_id: BrokerId,
    /// Its metadata directory's identity.
    pub directory: DirectoryId,
    /// `host:port` of its CONTROLLER listener.
    pub address: String,
    /// The file system.
    pub disk: Arc<dyn Disk>,
    /// As [`ControllerConfig::path`](crate::ControllerConfig::path).
    pub path: PathBuf,
}

/// What a node goes on with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The offset after its last record, before anything was raised.
    pub next_offset: MetadataOffset,
    /// What was raised above what others may know (`R80`).
    pub raised: Raised,
    /// The last log entry that it had: index and term. What others had after it may be lost.
    pub last_entry: Option<(u64, u64)>,
    /// Who voted before.
    pub voters: Vec<BrokerId>,
}

impl QuorumFiles {
    async fn open(&self) -> Result<(LogStore, StateMachine), ControllerError> {
        let pool = DiskPool::new(1).map_err(ControllerError::Thread)?;
        let config = QuorumConfig {
            network: rpc::net::Network::Tcp,
            me: QuorumNode { id: self.node_id, directory: self.directory },
            voters: Vec::new(),
            disk: Arc::clone(&self.disk),
            waits: Waits::never(),
            dir: self.path.clone(),
            keep_image: false,
            pool: pool.clone(),
            timeouts: Timeouts::default(),
            rules: Rules::all(),
        };
        let opened = pool.run(move || open_stores(&config, Arc::new(MetadataLog::keeping(0)))).await;
        opened.map_err(|error| store(&error))
    }

    fn me(&self) -> NodeId {
        NodeId { id: self.node_id.0, directory: self.directory.0 }
    }

    /// A membership of this node alone.
    fn alone(&self) -> Membership<NodeId, Member> {
        let members = BTreeMap::from([(self.me(), Member { address: self.address.clone(), given: false })]);
        Membership::new(vec![BTreeSet::from([self.me()])], members)
    }
}

fn store(error: &dyn std::fmt::Display) -> ControllerError {
    ControllerError::Store(error.to_string())
}

/// Passes over what may have been given out since the machine's image (`R80`); the image as it was, and what was raised.
fn pass_over(machine: &StateMachine) -> Result<(MetadataImage, Raised), ControllerError> {
    let before = machine.image();
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (image, raised) = restore::go_on(&before, now_s).map_err(|error| store(&error))?;
    machine.replace_image(image);
    Ok((before, raised))
}

/// Makes a survivor the only voter of what it has: its newest snapshot and every entry of its log, committed or not.
///
/// # Errors
/// Where the files cannot be read, or there is nothing in them.
pub async fn recover_alone(files: &QuorumFiles) -> Result<Recovered, ControllerError> {
    let (mut log, mut machine) = files.open().await?;
    let (applied, before) = machine.applied_state().await.map_err(|error| store(&error))?;
    let from = applied.map_or(0, |id| id.index + 1);
    let entries = log.try_get_log_entries(from..).await.map_err(|error| store(&error))?;
    let voters = entries.iter().rev().find_map(|entry| match &entry.payload {
        EntryPayload::Membership(membership) => Some(membership.voter_ids().collect::<Vec<_>>()),
        EntryPayload::Blank | EntryPayload::Normal(_) => None,
    });
    let voters = voters.unwrap_or_else(|| before.membership().voter_ids().collect());
    let last = entries.last().map(|entry| entry.log_id).or(applied);
    let Some(last) = last else {
        return Err(ControllerError::Store(format!("{}: there is no metadata to go on with", files.path.display())));
    };
    machine.apply(entries).await.map_err(|error| store(&error))?;
    let alone =
        Entry { log_id: LogId::new(last.leader_id, last.index + 1), payload: EntryPayload::Membership(files.alone()) };
    machine.apply([alone]).await.map_err(|error| store(&error))?;
    let (image, raised) = pass_over(&machine)?;
    machine.build_snapshot().await.map_err(|error| store(&error))?;
    machine.close();
    Ok(Recovered {
        cluster_id: image.cluster_id(),
        next_offset: image.next_offset(),
        raised,
        last_entry: Some((last.index, last.leader_id.term)),
        voters: voters.into_iter().map(|voter| BrokerId(voter.id)).collect(),
    })
}

/// Puts a backup into the metadata directory of a node that has none, with this node as the only voter.
///
/// # Errors
/// Where the directory holds metadata already, or the backup does not read.
pub async fn restore(files: &QuorumFiles, backup: Bytes) -> Result<Recovered, ControllerError> {
    let image = read_backup(backup).map_err(|what| ControllerError::Store(format!("the backup {what}")))?;
    let (log, mut machine) = files.open().await?;
    let (applied, _) = machine.applied_state().await.map_err(|error| store(&error))?;
    if applied.is_some() || log.last().is_some() {
        let message = "holds metadata already: a backup goes into an empty directory only";
        return Err(ControllerError::Store(format!("{}: {message}", files.path.display())));
    }
    let alone = Entry {
        log_id: LogId::new(CommittedLeaderId::new(1, files.me()), 1),
        payload: EntryPayload::Membership(files.alone()),
    };
    machine.start_from(Position { next_offset: image.next_offset().0, ..Position::default() }, image);
    machine.apply([alone]).await.map_err(|error| store(&error))?;
    let (image, raised) = pass_over(&machine)?;
    machine.build_snapshot().await.map_err(|error| store(&error))?;
    machine.close();
    let (cluster_id, next_offset) = (image.cluster_id(), image.next_offset());
    Ok(Recovered { cluster_id, next_offset, raised, last_entry: None, voters: Vec::new() })
}

/// The bytes of a backup.
#[must_use]
pub fn write_backup(image: &MetadataImage) -> Bytes {
    let records = metadata::wire::encode_records(&image.to_records());
    let mut body = BytesMut::new();
    body.put_u64(image.next_offset().0);
    body.put_slice(&records);
    let mut bytes = BytesMut::new();
    bytes.put_slice(MAGIC);
    bytes.put_u32(VERSION);
    bytes.put_u32(crc32c(&body));
    bytes.put_slice(&body);
    bytes.freeze()
}

/// The image in a backup, or what is wrong with it.
fn read_backup(mut bytes: Bytes) -> Result<MetadataImage, String> {
    if bytes.len() < MAGIC.len() + 16 || bytes.split_to(MAGIC.len()) != MAGIC[..] {
        return Err("is no backup of metadata".to_owned());
    }
    let version = bytes.get_u32();
    if version != VERSION {
        return Err(format!("is of version {version}, this program reads {VERSION}"));
    }
    let crc = bytes.get_u32();
    if crc != crc32c(&bytes) {
        return Err("is damaged: its checksum is wrong".to_owned());
    }
    let next_offset = MetadataOffset(bytes.get_u64());
    let records: Vec<MetadataRecord> =
        metadata::wire::decode_records(&bytes).map_err(|error| format!("does not read: {error}"))?;
    Ok(MetadataImage::from_snapshot(next_offset, &records))
}
