//! Configs as clients are shown them: the value, where it comes from, and what it would be otherwise.

use broker::api::BrokerApi;
use metadata::MetadataImage;
use metadata::configs::{self, ConfigDefinition, ConfigSource, ConfigType, Scope, StaticConfig};
use metadata::image::ConfigMap;
use metadata::records::ConfigResource;
use model::BrokerId;

use crate::call::Call;

/// A config of a resource.
pub(crate) struct Entry {
    /// Which.
    pub(crate) definition: &'static ConfigDefinition,
    /// Its value.
    value: Option<String>,
    /// Where its value comes from.
    pub(crate) source: ConfigSource,
    /// Where its value might come from, the one that counts first.
    pub(crate) synonyms: Vec<Synonym>,
}

/// A value that a config has somewhere.
pub(crate) struct Synonym {
    /// The name that it has there.
    pub(crate) name: &'static str,
    /// The value.
    pub(crate) value: String,
    /// Where that is.
    pub(crate) source: ConfigSource,
}

impl Entry {
    fn new(definition: &'static ConfigDefinition, synonyms: Vec<Synonym>) -> Self {
        let (value, source) = match synonyms.first() {
            Some(first) => (Some(first.value.clone()), first.source),
            None => (definition.default_value().map(str::to_owned), ConfigSource::Default),
        };
        Self { definition, value, source, synonyms }
    }

    /// The value; none where there is none, and where it is a secret.
    pub(crate) fn shown_value(&self) -> Option<String> {
        self.value.as_deref().and_then(|value| self.shown(value))
    }

    /// A value of it, unless it is a secret.
    pub(crate) fn shown(&self, value: &str) -> Option<String> {
        (!self.definition.is_sensitive()).then(|| value.to_owned())
    }

    /// Whether it cannot be changed while brokers run. Configs of topics and groups always can.
    pub(crate) fn is_read_only(&self) -> bool {
        let derived = self.definition.name == configs::FLUSH_MODE.name;
        derived || (self.definition.scope == Scope::Broker && self.definition.is_read_only())
    }
}

/// Kafka's number of a type.
pub(crate) fn type_code(config_type: ConfigType) -> i8 {
    match config_type {
        ConfigType::Boolean => 1,
        ConfigType::String => 2,
        ConfigType::Int => 3,
        ConfigType::Short => 4,
        ConfigType::Long => 5,
        ConfigType::Double => 6,
        ConfigType::List => 7,
        ConfigType::Class => 8,
        ConfigType::Password => 9,
    }
}

/// The configs as this broker sees them.
pub(crate) struct ConfigView<'a> {
    image: &'a MetadataImage,
    file: &'a StaticConfig,
    broker: BrokerId,
}

impl<'a> ConfigView<'a> {
    /// The view of the broker that is asked.
    pub(crate) fn new<B: BrokerApi>(call: &'a Call<B>, image: &'a MetadataImage) -> Self {
        Self { image, file: &call.shared.file, broker: call.broker().identity().broker_id }
    }

    /// The configs of a topic for which `set` is set.
    pub(crate) fn topic(&self, set: Option<&ConfigMap>) -> Vec<Entry> {
        let entry = |definition: &'static ConfigDefinition| {
            let mut synonyms = own(definition, set, ConfigSource::Topic);
            if let Some(name) = definition.broker_synonym {
                synonyms.extend(self.of_broker(name));
                synonyms.extend(configs::broker(name).and_then(by_default));
            }
            Entry::new(definition, synonyms)
        };
        configs::all(Scope::Topic).values().map(entry).collect()
    }

    /// When the appends of a topic are synced, as it follows from its configs.
    pub(crate) fn flush_mode(&self, topic: &str) -> Entry {
        let mode = configs::TopicConfig::resolve(self.image, topic, self.broker, self.file).flush_policy().name();
        let definition = &configs::FLUSH_MODE;
        let value = Synonym { name: definition.name, value: mode.to_owned(), source: ConfigSource::Default };
        Entry::new(definition, vec![value])
    }

    /// The configs of a group for which `set` is set.
    pub(crate) fn group(&self, set: Option<&ConfigMap>) -> Vec<Entry> {
        let entry = |definition: &'static ConfigDefinition| {
            let mut synonyms = own(definition, set, ConfigSource::Group);
            // The broker has what groups get where nothing is set for them, under a longer name.
            let broker = configs::broker(&format!("group.{}", definition.name));
            synonyms.extend(broker.into_iter().flat_map(|broker| self.of_broker(broker.name)));
            synonyms.extend(by_default(broker.unwrap_or(definition)));
            Entry::new(definition, synonyms)
        };
        configs::all(Scope::Group).values().map(entry).collect()
    }

    /// The configs of this broker.
    pub(crate) fn broker(&self) -> Vec<Entry> {
        let entry = |definition: &'static ConfigDefinition| {
            let mut synonyms = self.of_broker(definition.name);
            synonyms.extend(by_default(definition));
            Entry::new(definition, synonyms)
        };
        configs::all(Scope::Broker).values().map(entry).collect()
    }

    /// What is set for all brokers.
    pub(crate) fn all_brokers(&self) -> Vec<Entry> {
        let set = self.image.configs().get(&ConfigResource::DefaultBroker).map(|map| &**map);
        let defined = set.into_iter().flatten().filter_map(|(name, _)| configs::broker(name));
        defined
            .map(|definition| Entry::new(definition, own(definition, set, ConfigSource::DynamicDefaultBroker)))
            .collect()
    }

    /// What a broker config is set to, for this broker, for all, and in the file.
    fn of_broker(&self, name: &'static str) -> Vec<Synonym> {
        let dynamic = [
            (ConfigResource::Broker(self.broker), ConfigSource::DynamicBroker),
            (ConfigResource::DefaultBroker, ConfigSource::DynamicDefaultBroker),
        ];
        let synonym = |(resource, source)| {
            let value = self.image.config_of(&resource, name)?.to_owned();
            Some(Synonym { name, value, source })
        };
        let mut synonyms: Vec<Synonym> = dynamic.into_iter().filter_map(synonym).collect();
        // Over an image with nothing set, what is found comes from the file.
        let nothing = MetadataImage::default();
        let fixed = configs::resolve_broker(&nothing, name, self.broker, self.file);
        if let Some(fixed) = fixed.filter(|fixed| fixed.source == ConfigSource::StaticBroker) {
            let value = fixed.value.map(|value| value.into_owned());
            synonyms.extend(value.map(|value| Synonym { name, value, source: ConfigSource::StaticBroker }));
        }
        synonyms
    }
}

fn own(definition: &ConfigDefinition, set: Option<&ConfigMap>, source: ConfigSource) -> Vec<Synonym> {
    let value = set.and_then(|set| set.get(definition.name));
    value.map(|value| Synonym { name: definition.name, value: value.clone(), source }).into_iter().collect()
}

fn by_default(definition: &ConfigDefinition) -> Option<Synonym> {
    let value = definition.default_value()?.to_owned();
    Some(Synonym { name: definition.name, value, source: ConfigSource::Default })
}
