//! Topics: their creation, growth and deletion, with Kafka's checks and error codes.

use std::collections::{BTreeMap, BTreeSet};

use model::{BrokerId, ErrorCode, PartitionIndex, TopicId, TopicPartition, Uuid};

use crate::configs::{self, ACK_RULE};
use crate::control::alter_configs::check_topic_configs;
use crate::control::draft::Draft;
use crate::control::messages::{
    ControlError, ControlResponse, CreatePartitions, CreateTopic, CreateTopics, CreatedTopic, DeleteTopics,
    DeletedTopic, MorePartitions, NewTopic, TopicRef, TopicResult,
};
use crate::control::placement::{Entropy, Placer};
use crate::image::is_internal_topic;
use crate::records::{BrokerRegistration, ConfigResource, MetadataRecord, Partition};
use crate::wire::{self, ENTRY_MAX};

/// The longest topic name.
const NAME_MAX: usize = 249;
/// The name that clients know the metadata log by: there is no topic of it.
const CLUSTER_METADATA: &str = "__cluster_metadata";
/// The most partitions that one request may create, in all: keeps a decision in bounds.
const NEW_PARTITIONS_MAX: usize = 10_000;

/// What is kept of a group or a transactional id lies in the partition that the hash of its name and the number of partitions
/// give: with one more of them committed offsets would be lost, and two producers would have one id (`R44`, `R52`).
fn check_may_grow(name: &str) -> Result<(), ControlError> {
    if is_internal_topic(name) {
        let message = format!("The number of partitions of the internal topic {name} is fixed once it is created.");
        return Err(ControlError::new(ErrorCode::InvalidPartitions, message));
    }
    Ok(())
}

/// Version 4, not starting with '-' as Kafka's: it would read as an option on a command line.
fn topic_id(entropy: &mut Entropy) -> TopicId {
    loop {
        let bits = entropy.next_u128() & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
        let id = TopicId(Uuid::from_u128(bits));
        if !id.to_string().starts_with('-') {
            return id;
        }
    }
}

impl Draft<'_> {
    pub(super) fn create_topics(
        &mut self,
        request: &CreateTopics,
        entropy: u128,
    ) -> Result<ControlResponse, ControlError> {
        let mut entropy = Entropy::new(entropy);
        // One for each topic, whatever becomes of the others: the same ones when the request is asked again.
        let mut seeded = (request.seed != 0).then(|| Entropy::new(request.seed));
        let mut times = BTreeMap::<&str, usize>::new();
        for topic in &request.topics {
            *times.entry(&topic.name).or_default() += 1;
        }
        let mut results = Vec::new();
        for topic in &request.topics {
            let wanted = seeded.as_mut().map(topic_id);
            let result = if times.get(topic.name.as_str()).is_some_and(|times| *times > 1) {
                Err(ControlError::new(ErrorCode::InvalidRequest, "Duplicate topic name."))
            } else {
                self.create_topic(topic, wanted, request.validate_only, &mut entropy)
            };
            results.push(CreatedTopic { name: topic.name.clone(), result });
        }
        if request.validate_only {
            self.rewind(0);
        }
        Ok(ControlResponse::CreateTopics(results))
    }

    fn create_topic(
        &mut self,
        topic: &CreateTopic,
        wanted: Option<TopicId>,
        validate_only: bool,
        entropy: &mut Entropy,
    ) -> Result<NewTopic, ControlError> {
        check_topic_name(&topic.name)?;
        if topic.name == CLUSTER_METADATA {
            let message = format!("Creation of internal topic {CLUSTER_METADATA} is prohibited.");
            return Err(ControlError::new(ErrorCode::InvalidRequest, message));
        }
        match self.image.topic_id(&topic.name) {
            // This very request created it, and its answer was lost.
            Some(id) if Some(id) == wanted => return Ok(self.created_before(id, &topic.name)),
            Some(_) => {
                let message = format!("Topic '{}' already exists.", topic.name);
                return Err(ControlError::new(ErrorCode::TopicAlreadyExists, message));
            }
            None => {}
        }
        self.check_collision(&topic.name)?;
        let configs = check_topic_configs(&topic.configs)?;
        let zones = configs.get(ACK_RULE).and_then(|rule| configs::ack_zones(rule)).unwrap_or(0);
        let placement = if topic.assignments.is_empty() {
            self.place_topic(topic, zones, entropy)?
        } else {
            self.assigned_placement(topic)?
        };
        self.check_zones(zones, &placement)?;
        let id = wanted.filter(|id| self.image.topic(*id).is_none()).unwrap_or_else(|| self.new_topic_id(entropy));
        let start = self.records.len();
        self.push(MetadataRecord::Topic { id, name: topic.name.clone() });
        // Before the partitions: min ISR counts from the first one on.
        for (name, value) in &configs {
            self.push(MetadataRecord::Config {
                resource: ConfigResource::Topic(topic.name.clone()),
                name: name.clone(),
                value: Some(value.clone()),
            });
        }
        let partitions = i32::try_from(placement.len()).unwrap_or(i32::MAX);
        let replicas = placement.first().map_or(0, Vec::len);
        for (index, replicas) in (0..).zip(placement) {
            self.push_partition(TopicPartition { topic_id: id, partition: PartitionIndex(index) }, replicas);
        }
        self.check_fits(start)?;
        Ok(NewTopic {
            id: if validate_only { TopicId::NONE } else { id },
            partitions,
            replication_factor: i16::try_from(replicas).unwrap_or(i16::MAX),
            configs,
        })
    }

    fn created_before(&self, id: TopicId, name: &str) -> NewTopic {
        let partitions = self.image.topic(id).map_or(0, |topic| topic.partitions.len());
        let first = self.image.partition(TopicPartition { topic_id: id, partition: PartitionIndex(0) });
        NewTopic {
            id,
            partitions: i32::try_from(partitions).unwrap_or(i32::MAX),
            replication_factor: i16::try_from(first.map_or(0, |first| first.replicas.len())).unwrap_or(i16::MAX),
            configs: self
                .image
                .configs()
                .get(&ConfigResource::Topic(name.to_owned()))
                .map(|set| (**set).clone())
                .unwrap_or_default(),
        }
    }

    /// Kafka names metrics by topic with '.' and '_' alike: two topics must not differ in them alone.
    fn check_collision(&self, name: &str) -> Result<(), ControlError> {
        if !name.contains(['.', '_']) {
            return Ok(());
        }
        let plain = name.replace('.', "_");
        let collides = |other: &&std::sync::Arc<str>| other.len() == plain.len() && other.replace('.', "_") == plain;
        match self.image.topic_ids().keys().find(collides) {
            Some(other) => {
                let message = format!("Topic '{name}' collides with existing topic: {other}");
                Err(ControlError::new(ErrorCode::InvalidTopicException, message))
            }
            None => Ok(()),
        }
    }

    fn place_topic(
        &self,
        topic: &CreateTopic,
        zones: usize,
        entropy: &mut Entropy,
    ) -> Result<Vec<Vec<BrokerId>>, ControlError> {
        let settings = &self.control.settings;
        let partitions = if topic.partitions == -1 { settings.num_partitions } else { topic.partitions };
        let factor =
            if topic.replication_factor == -1 { settings.default_replication_factor } else { topic.replication_factor };
        let Some(factor) = usize::try_from(factor).ok().filter(|factor| *factor > 0) else {
            let message = "Replication factor was set to an invalid non-positive value.";
            return Err(ControlError::new(ErrorCode::InvalidReplicationFactor, message));
        };
        let Some(partitions) = usize::try_from(partitions).ok().filter(|partitions| *partitions > 0) else {
            let message = "Number of partitions was set to an invalid non-positive value.";
            return Err(ControlError::new(ErrorCode::InvalidPartitions, message));
        };
        self.place(partitions, factor, zones, entropy)
    }

    /// Where new partitions with `factor` replicas go, so that each is in `zones` zones at least (`R79`).
    fn place(
        &self,
        partitions: usize,
        factor: usize,
        zones: usize,
        entropy: &mut Entropy,
    ) -> Result<Vec<Vec<BrokerId>>, ControlError> {
        let is_full = |broker: &BrokerRegistration, directory| self.soft().is_full(broker, directory);
        let mut placer = Placer::new(&self.image, is_full, entropy);
        let refuse = |why: String| {
            let message = format!("Unable to replicate the partition {factor} time(s): {why}");
            Err(ControlError::new(ErrorCode::InvalidReplicationFactor, message))
        };
        if !placer.can_lead(factor, 0) {
            return refuse("All brokers are currently fenced.".to_owned());
        }
        if factor > placer.brokers() {
            let brokers = placer.brokers();
            return refuse(format!(
                "The target replication factor of {factor} cannot be reached because only {brokers} broker(s) are registered and not cordoned."
            ));
        }
        if zones > factor.min(placer.zones()) {
            let found = placer.zones();
            let message = format!(
                "{ACK_RULE}=zones={zones} needs replicas in {zones} zones, but there are {factor} of each partition, and the \
                 brokers that take new ones are in {found}: ask for more replicas, give the brokers a broker.rack, or set \
                 {ACK_RULE}=isr"
            );
            return Err(ControlError::new(ErrorCode::InvalidConfig, message));
        }
        if !placer.can_lead(factor, zones) {
            return refuse(format!("{ACK_RULE}=zones={zones}, and all brokers with a rack are currently fenced."));
        }
        if partitions.saturating_add(self.records.len()) > NEW_PARTITIONS_MAX {
            let message = format!("Excessively large number of partitions per request: at most {NEW_PARTITIONS_MAX}.");
            return Err(ControlError::new(ErrorCode::PolicyViolation, message));
        }
        Ok((0..partitions).map(|_| placer.place(factor, zones)).collect())
    }

    fn assigned_placement(&self, topic: &CreateTopic) -> Result<Vec<Vec<BrokerId>>, ControlError> {
        let refuse = |code, message: &str| Err(ControlError::new(code, message));
        if topic.replication_factor != -1 {
            let message = "A manual partition assignment was specified, but replication factor was not set to -1.";
            return refuse(ErrorCode::InvalidRequest, message);
        }
        if topic.partitions != -1 {
            let message = "A manual partition assignment was specified, but numPartitions was not set to -1.";
            return refuse(ErrorCode::InvalidRequest, message);
        }
        let placement: BTreeMap<i32, &Vec<BrokerId>> = topic.assignments.iter().map(|(p, r)| (p.0, r)).collect();
        if placement.len() != topic.assignments.len() {
            return refuse(ErrorCode::InvalidReplicaAssignment, "A partition was assigned more than once.");
        }
        if !placement.keys().copied().eq((0..).take(placement.len())) {
            let message = "partitions should be a consecutive 0-based integer sequence";
            return refuse(ErrorCode::InvalidReplicaAssignment, message);
        }
        let placement: Vec<Vec<BrokerId>> = placement.into_values().cloned().collect();
        let factor = placement.first().map_or(0, Vec::len);
        self.check_assignment(&placement, factor)?;
        Ok(placement)
    }

    fn check_assignment(&self, placement: &[Vec<BrokerId>], factor: usize) -> Result<(), ControlError> {
        let refuse = |message: String| Err(ControlError::new(ErrorCode::InvalidReplicaAssignment, message));
        if placement.len() > NEW_PARTITIONS_MAX {
            return refuse(format!("one request may create at most {NEW_PARTITIONS_MAX} partitions"));
        }
        for replicas in placement {
            self.check_replicas(replicas)?;
            self.check_cordoned(replicas.iter())?;
            if replicas.len() != factor {
                return refuse(format!(
                    "The manual partition assignment includes a partition with {} replica(s), but this is not \
                     consistent with previous partitions, which have {factor} replica(s).",
                    replicas.len()
                ));
            }
            if !replicas.iter().any(|id| self.image.is_active(*id)) {
                return refuse(format!(
                    "All brokers specified in the manual partition assignment {replicas:?} are fenced or in controlled shutdown."
                ));
            }
        }
        Ok(())
    }

    /// Each partition's replicas must be able to commit under the topic's ack rule (`R79`).
    fn check_zones(&self, zones: usize, placement: &[Vec<BrokerId>]) -> Result<(), ControlError> {
        match placement.iter().find_map(|replicas| self.lacks_zones(zones, replicas)) {
            Some(message) => Err(ControlError::new(ErrorCode::InvalidConfig, message)),
            None => Ok(()),
        }
    }

    /// Replicas that a client chose: registered brokers, each once.
    pub(super) fn check_replicas(&self, replicas: &[BrokerId]) -> Result<(), ControlError> {
        let refuse = |message: String| Err(ControlError::new(ErrorCode::InvalidReplicaAssignment, message));
        if replicas.is_empty() {
            return refuse("The manual partition assignment includes an empty replica list.".to_owned());
        }
        if let Some(unknown) = replicas.iter().find(|id| self.image.broker(**id).is_none()) {
            return refuse(format!(
                "The manual partition assignment includes broker {unknown}, but no such broker is registered."
            ));
        }
        let mut seen = BTreeSet::new();
        match replicas.iter().find(|id| !seen.insert(**id)) {
            Some(twice) => {
                refuse(format!("The manual partition assignment includes the broker {twice} more than once."))
            }
            None => Ok(()),
        }
    }

    fn new_topic_id(&self, entropy: &mut Entropy) -> TopicId {
        loop {
            let id = topic_id(entropy);
            if self.image.topic(id).is_none() {
                return id;
            }
        }
    }

    /// A new partition: all replicas that can are in sync, the first of them leads.
    fn push_partition(&mut self, id: TopicPartition, replicas: Vec<BrokerId>) {
        let directories = replicas.iter().map(|broker| self.new_directory(*broker)).collect();
        let can = |partition: &Partition, broker| self.image.is_eligible(partition, broker);
        let mut partition = Partition::new(id, replicas, directories, can);
        if !self.is_enough(&partition) {
            // Nothing was written: each member of the ISR has all of it.
            partition.last_known_elr = partition.isr.clone();
        }
        self.push(MetadataRecord::Partition(Box::new(partition)));
    }

    /// A topic and what belongs to it appears at once, in one entry of the log (`R67`): takes back the records from `start` on
    /// where they are too many for one.
    fn check_fits(&mut self, start: usize) -> Result<(), ControlError> {
        let len = wire::entry_len(&self.records[start..]);
        if len <= ENTRY_MAX {
            return Ok(());
        }
        self.rewind(start);
        let message = format!(
            "This takes {len} bytes of metadata, of which {ENTRY_MAX} at most are decided at once: create fewer partitions, \
             and add others to them."
        );
        Err(ControlError::new(ErrorCode::PolicyViolation, message))
    }

    pub(super) fn create_partitions(
        &mut self,
        request: &CreatePartitions,
        entropy: u128,
    ) -> Result<ControlResponse, ControlError> {
        let mut entropy = Entropy::new(entropy);
        let mut seen = BTreeSet::new();
        let names = request.topics.iter().map(|topic| topic.name.as_str());
        // As Kafka: nothing is done for a name that comes twice, and it is told once.
        let repeated: BTreeSet<&str> = names.filter(|name| !seen.insert(*name)).collect();
        let mut results = Vec::new();
        for name in &repeated {
            let result = Err(ControlError::new(ErrorCode::InvalidRequest, "Duplicate topic name."));
            results.push(TopicResult { name: (*name).to_owned(), result });
        }
        for topic in request.topics.iter().filter(|topic| !repeated.contains(topic.name.as_str())) {
            let result = self.add_partitions(topic, &mut entropy);
            results.push(TopicResult { name: topic.name.clone(), result });
        }
        if request.validate_only {
            self.rewind(0);
        }
        Ok(ControlResponse::CreatePartitions(results))
    }

    fn add_partitions(&mut self, request: &MorePartitions, entropy: &mut Entropy) -> Result<(), ControlError> {
        let refuse = |code, message: String| Err(ControlError::new(code, message));
        let Some(topic) = self.image.topic_by_name(&request.name).cloned() else {
            return refuse(
                ErrorCode::UnknownTopicOrPartition,
                "This server does not host this topic-partition.".to_owned(),
            );
        };
        let current = topic.partitions.len();
        let count = usize::try_from(request.count).unwrap_or(0);
        if count == current {
            return refuse(ErrorCode::InvalidPartitions, format!("Topic already has {current} partition(s)."));
        }
        if count < current {
            let message = format!(
                "The topic {} currently has {current} partition(s); {} would not be an increase.",
                request.name, request.count
            );
            return refuse(ErrorCode::InvalidPartitions, message);
        }
        check_may_grow(&request.name)?;
        let factor = topic.partitions.values().next().map_or(1, |partition| partition.factor());
        let added = count - current;
        let zones = self.image.ack_zones(&request.name);
        let placement = match &request.assignments {
            None => self.place(added, factor, zones, entropy)?,
            Some(assigned) if assigned.len() != added => {
                let message = format!(
                    "Attempted to add {added} additional partition(s), but only {} assignment(s) were specified.",
                    assigned.len()
                );
                return refuse(ErrorCode::InvalidReplicaAssignment, message);
            }
            Some(assigned) => {
                self.check_assignment(assigned, factor)?;
                assigned.clone()
            }
        };
        self.check_zones(zones, &placement)?;
        let start = self.records.len();
        let first = topic.partitions.keys().next_back().map_or(0, |last| last.0 + 1);
        for (index, replicas) in (first..).zip(placement) {
            self.push_partition(TopicPartition { topic_id: topic.id, partition: PartitionIndex(index) }, replicas);
        }
        self.check_fits(start)
    }

    pub(super) fn delete_topics(&mut self, request: &DeleteTopics) -> Result<ControlResponse, ControlError> {
        let results =
            request.topics.iter().map(|topic| DeletedTopic { topic: topic.clone(), result: self.delete_topic(topic) });
        Ok(ControlResponse::DeleteTopics(results.collect()))
    }

    fn delete_topic(&mut self, topic: &TopicRef) -> Result<(String, TopicId), ControlError> {
        let (found, error) = match topic {
            TopicRef::Name(name) => (
                self.image.topic_by_name(name),
                ControlError::new(
                    ErrorCode::UnknownTopicOrPartition,
                    "This server does not host this topic-partition.",
                ),
            ),
            TopicRef::Id(id) => (
                self.image.topic(*id),
                ControlError::new(ErrorCode::UnknownTopicId, "This server does not host this topic ID."),
            ),
        };
        let found = found.cloned().ok_or(error)?;
        self.push(MetadataRecord::RemoveTopic { id: found.id });
        Ok((found.name.to_string(), found.id))
    }
}

/// Whether a topic may have this name, by Kafka's rules.
///
/// # Errors
/// INVALID_TOPIC_EXCEPTION, with what is wrong.
pub fn check_topic_name(name: &str) -> Result<(), ControlError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let why = if name.is_empty() {
        "the empty string is not allowed".to_owned()
    } else if name == "." || name == ".." {
        "'.' or '..' is not allowed".to_owned()
    } else if name.len() > NAME_MAX {
        let shown: String = name.chars().take(NAME_MAX).collect();
        format!("the length of '{shown}' is longer than the max allowed length {NAME_MAX}")
    } else if !name.bytes().all(legal) {
        format!("'{name}' contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'")
    } else {
        return Ok(());
    };
    Err(ControlError::new(ErrorCode::InvalidTopicException, format!("Topic name is invalid: {why}")))
}
