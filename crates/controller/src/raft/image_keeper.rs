//! Keeps the copy of the image in sled up to date, behind the machine (`R73`).
//!
//! Records name the keys that they touch; what those keys hold is read from the image when it is written, so many batches
//! make one sled batch. After any error the node goes on in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use metadata::records::ConfigResource;
use metadata::{MetadataImage, MetadataRecord};
use model::{BrokerId, MetadataOffset, TopicId, TopicPartition};
use storage::DiskPool;
use storage::metadata_store::{MetadataStore, StoredState};

use crate::raft::codec;
use crate::raft::state_machine::Position;

/// What an entry of the store is about; entries are ordered so that a topic comes before its partitions.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Key {
    ClusterId,
    Feature(String),
    ProducerIds,
    Restored,
    Controller(BrokerId),
    Broker(BrokerId),
    Topic(TopicId),
    Partition(TopicPartition),
    Config(ConfigResource, String),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ImageKeeper {
    store: Arc<Mutex<Option<MetadataStore>>>,
    touched: Mutex<Touched>,
}

/// What has to be written.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    keys: BTreeSet<Key>,
    /// Everything, as after a snapshot was installed.
    all: bool,
}

impl ImageKeeper {
    /// A keeper without a store: everything stays in memory.
    pub(crate) fn nowhere() -> ImageKeeper {
        ImageKeeper { store: Arc::default(), touched: Mutex::default() }
    }

    /// Opens the store and gives what is in it.
    pub(crate) fn open(path: &Path, lineage: &[u8]) -> (ImageKeeper, Option<(Position, MetadataImage)>) {
        let (store, found) = MetadataStore::open(path, lineage);
        let loaded = found.and_then(|state| load(&state));
        let touched = Touched { all: loaded.is_none(), ..Touched::default() };
        (ImageKeeper { store: Arc::new(Mutex::new(Some(store))), touched: Mutex::new(touched) }, loaded)
    }

    /// `records` are about to be applied to `image`.
    pub(crate) fn note(&self, image: &MetadataImage, records: &[MetadataRecord]) {
        let mut touched = self.touched.lock().expect("no holder of the lock panics");
        if touched.all {
            return;
        }
        records.iter().for_each(|record| touch(&mut touched.keys, image, record));
    }

    /// The image was replaced: everything is written anew.
    pub(crate) fn start_over(&self) {
        *self.touched.lock().expect("no holder of the lock panics") = Touched { keys: BTreeSet::new(), all: true };
    }

    /// Closes the store: nothing more is written.
    pub(crate) fn close(&self) {
        self.store.lock().expect("no holder of the lock panics").take();
    }

    /// What was touched since the last call; to be taken together with the image.
    pub(crate) fn take(&self) -> Touched {
        std::mem::take(&mut *self.touched.lock().expect("no holder of the lock panics"))
    }

    /// Writes what was touched.
    pub(crate) async fn write(&self, pool: &DiskPool, touched: Touched, position: Position, image: MetadataImage) {
        let store = Arc::clone(&self.store);
        pool.run(move || {
            let mut store = store.lock().expect("no holder of the lock panics");
            let Some(open) = store.as_mut().filter(|store| store.is_open()) else { return };
            let written = write(open, &touched, &position, &image);
            if let Err(error) = written {
                tracing::warn!(%error, "the metadata store is given up; the node goes on in memory");
            }
        })
        .await;
    }
}

fn write(
    store: &mut MetadataStore,
    touched: &Touched,
    position: &Position,
    image: &MetadataImage,
) -> Result<(), storage::metadata_store::StoreError> {
    let mut changes = BTreeMap::new();
    if touched.all {
        let records = image.to_records().into_iter();
        let entries = records.map(|record| (own_key(&record).bytes(), metadata::wire::encode_records(&[record])));
        return store.replace(entries.collect(), &codec::to_json(position));
    }
    for key in &touched.keys {
        let value = key.read(image).map(|record| metadata::wire::encode_records(&[record]));
        changes.insert(key.bytes(), value);
    }
    store.commit(&changes, &codec::to_json(position))
}

/// The image of what the store held, if all of it decodes.
fn load(state: &StoredState) -> Option<(Position, MetadataImage)> {
    let position: Position = codec::from_json(&state.position).ok()?;
    let mut records = Vec::new();
    for value in state.entries.values() {
        records.extend(metadata::wire::decode_records(value).ok()?);
    }
    let image = MetadataImage::from_snapshot(MetadataOffset(position.next_offset), &records);
    Some((position, image))
}

/// The keys whose entries a record may change.
fn touch(keys: &mut BTreeSet<Key>, image: &MetadataImage, record: &MetadataRecord) {
    match record {
        MetadataRecord::RemoveTopic { id } => touch_topic(keys, image, *id),
        MetadataRecord::Topic { id, name } => {
            // It replaces any other topic of its name or id.
            touch_topic(keys, image, *id);
            if let Some(other) = image.topic_id(name) {
                touch_topic(keys, image, other);
            }
        }
        record => {
            keys.insert(own_key(record));
        }
    }
}

fn touch_topic(keys: &mut BTreeSet<Key>, image: &MetadataImage, id: TopicId) {
    keys.insert(Key::Topic(id));
    let Some(topic) = image.topic(id) else { return };
    keys.extend(topic.partitions.values().map(|partition| Key::Partition(partition.id())));
    let resource = ConfigResource::Topic(topic.name.to_string());
    if let Some(configs) = image.configs().get(&resource) {
        keys.extend(configs.keys().map(|name| Key::Config(resource.clone(), name.clone())));
    }
}

fn own_key(record: &MetadataRecord) -> Key {
    match record {
        MetadataRecord::ClusterId(_) => Key::ClusterId,
        MetadataRecord::FeatureLevel { name, .. } => Key::Feature(name.clone()),
        MetadataRecord::RegisterBroker(broker) => Key::Broker(broker.id),
        MetadataRecord::BrokerChange(change) => Key::Broker(change.id),
        MetadataRecord::UnregisterBroker { id, .. } => Key::Broker(*id),
        MetadataRecord::ControllerRegistration(controller) => Key::Controller(controller.id),
        MetadataRecord::Topic { id, .. } | MetadataRecord::RemoveTopic { id } => Key::Topic(*id),
        MetadataRecord::Partition(partition) => Key::Partition(partition.id()),
        MetadataRecord::PartitionChange(change) => Key::Partition(change.id()),
        MetadataRecord::Config { resource, name, .. } => Key::Config(resource.clone(), name.clone()),
        MetadataRecord::ProducerIds { .. } => Key::ProducerIds,
        MetadataRecord::Restored { .. } => Key::Restored,
    }
}

impl Key {
    /// Ordered as [`MetadataImage::to_records`] orders: what a record refers to comes before it.
    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Key::ClusterId => out.push(b'0'),
            Key::Feature(name) => {
                out.push(b'1');
                out.extend_from_slice(name.as_bytes());
            }
            Key::ProducerIds => out.push(b'2'),
            // It refers to nothing.
            Key::Restored => out.push(b'8'),
            Key::Controller(id) => {
                out.push(b'3');
                out.extend_from_slice(&id.0.to_be_bytes());
            }
            Key::Broker(id) => {
                out.push(b'4');
                out.extend_from_slice(&id.0.to_be_bytes());
            }
            Key::Topic(id) => {
                out.push(b'5');
                out.extend_from_slice(id.0.as_bytes());
            }
            Key::Partition(id) => {
                out.push(b'6');
                out.extend_from_slice(id.topic_id.0.as_bytes());
                out.extend_from_slice(&id.partition.0.to_be_bytes());
            }
            Key::Config(resource, name) => {
                out.push(b'7');
                out.extend_from_slice(&resource.type_code().to_be_bytes());
                out.extend_from_slice(resource.name().as_bytes());
                out.push(0);
                out.extend_from_slice(name.as_bytes());
            }
        }
        out
    }

    /// The record that the image holds for it.
    fn read(&self, image: &MetadataImage) -> Option<MetadataRecord> {
        match self {
            Key::ClusterId => {
                let id = image.cluster_id();
                (!id.is_none()).then_some(MetadataRecord::ClusterId(id))
            }
            Key::Feature(name) => {
                let level = *image.features().get(name)?;
                Some(MetadataRecord::FeatureLevel { name: name.clone(), level })
            }
            Key::ProducerIds => Some(MetadataRecord::ProducerIds { next: image.next_producer_id() }),
            Key::Restored => {
                let at = image.restored_at();
                (at != MetadataOffset(0)).then_some(MetadataRecord::Restored { at })
            }
            Key::Controller(id) => {
                let controller = image.controllers().get(id)?;
                Some(MetadataRecord::ControllerRegistration(Box::new((**controller).clone())))
            }
            Key::Broker(id) => Some(MetadataRecord::RegisterBroker(Box::new((**image.broker(*id)?).clone()))),
            Key::Topic(id) => Some(MetadataRecord::Topic { id: *id, name: image.topic(*id)?.name.to_string() }),
            Key::Partition(id) => Some(MetadataRecord::Partition(Box::new((**image.partition(*id)?).clone()))),
            Key::Config(resource, name) => Some(MetadataRecord::Config {
                resource: resource.clone(),
                name: name.clone(),
                value: Some(image.config_of(resource, name)?.to_owned()),
            }),
        }
    }
}
