//! The schema tables as values: messages, fields, version ranges, and the structs they declare.

use std::collections::BTreeMap;

/// A closed range of versions; an open end is `i16::MAX`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Versions {
    pub(crate) low: i16,
    pub(crate) high: i16,
}

impl Versions {
    /// `3+`, `3-12` or `1`.
    fn parse(text: &str) -> Self {
        let number = |digits: &str| digits.parse::<i16>().expect("a version is a number");
        if let Some(low) = text.strip_suffix('+') {
            return Versions { low: number(low), high: i16::MAX };
        }
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        Versions { low: number(low), high: number(high) }
    }

    pub(crate) fn contains(self, version: i16) -> bool {
        self.low <= version && version <= self.high
    }

    pub(crate) fn intersect(self, other: Versions) -> Versions {
        Versions { low: self.low.max(other.low), high: self.high.min(other.high) }
    }

    /// The smallest range that holds both.
    fn hull(self, other: Versions) -> Versions {
        Versions { low: self.low.min(other.low), high: self.high.max(other.high) }
    }
}

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Request,
    Response,
    Data,
}

/// One message of a table.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// As in the table: `Produce`, `RequestHeader`, `OffsetCommitKey`.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) key: Option<i16>,
    pub(crate) versions: Versions,
    pub(crate) flexible: Option<i16>,
    pub(crate) fields: Vec<Field>,
}

impl Message {
    /// The name of its Rust type.
    pub(crate) fn type_name(&self) -> String {
        match self.kind {
            Kind::Request => format!("{}Request", self.name),
            Kind::Response => format!("{}Response", self.name),
            Kind::Data => self.name.clone(),
        }
    }

    /// The name as the table and Kafka's own samples write it.
    pub(crate) fn full_name(&self) -> String {
        match self.kind {
            Kind::Request => format!("{} request", self.name),
            Kind::Response => format!("{} response", self.name),
            Kind::Data => self.name.clone(),
        }
    }

    pub(crate) fn is_flexible(&self, version: i16) -> bool {
        self.flexible.is_some_and(|from| version >= from)
    }
}

/// One field of a message or of a struct in it.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) name: String,
    /// The type of the field, or of its elements.
    pub(crate) base: String,
    pub(crate) array: bool,
    pub(crate) versions: Versions,
    pub(crate) nullable: Option<Versions>,
    pub(crate) tag: Option<u32>,
    pub(crate) default: Option<String>,
    /// The fields of the struct that this field declares.
    pub(crate) fields: Vec<Field>,
}

impl Field {
    pub(crate) fn is_struct(&self) -> bool {
        self.base.starts_with(|first: char| first.is_ascii_uppercase())
    }
}

/// A struct with every use of it in one message merged.
#[derive(Clone, Debug)]
pub(crate) struct Struct {
    pub(crate) versions: Versions,
    pub(crate) fields: Vec<Field>,
}

/// One line of the table of APIs.
pub(crate) struct Api {
    pub(crate) key: i16,
    pub(crate) name: String,
    pub(crate) versions: Versions,
    pub(crate) listeners: String,
}

/// Reads a table of messages.
pub(crate) fn parse_messages(text: &str) -> Vec<Message> {
    let blocks = text.split("\n\n").map(str::trim_end).filter(|block| !block.trim().is_empty());
    blocks.map(|block| parse_message(block.trim_start_matches('\n'))).collect()
}

/// Reads the table of APIs.
pub(crate) fn parse_apis(text: &str) -> Vec<Api> {
    let rows = text.lines().filter(|line| !line.starts_with('#'));
    rows.map(|line| {
        let mut words = line.split(' ');
        let mut word = || words.next().expect("an API has a key, a name, versions and listeners");
        Api {
            key: word().parse().expect("an API key is a number"),
            name: word().to_owned(),
            versions: Versions::parse(word()),
            listeners: word().to_owned(),
        }
    })
    .collect()
}

fn parse_message(block: &str) -> Message {
    let mut lines = block.lines().peekable();
    let mut words = lines.next().expect("a block has a first line").split(' ');
    let mut message = Message {
        name: words.next().expect("a message has a name").to_owned(),
        kind: Kind::Data,
        key: None,
        versions: Versions { low: 0, high: 0 },
        flexible: None,
        fields: Vec::new(),
    };
    for word in words {
        match word.split_once('=') {
            None if word == "request" => message.kind = Kind::Request,
            None if word == "response" => message.kind = Kind::Response,
            Some(("key", key)) => message.key = Some(key.parse().expect("a key is a number")),
            Some(("versions", range)) => message.versions = Versions::parse(range),
            Some(("flexible", "none")) => {}
            Some(("flexible", range)) => message.flexible = Some(Versions::parse(range).low),
            _ => panic!("unknown word {word} in message {}", message.name),
        }
    }
    message.fields = parse_fields(&mut lines, 2);
    assert!(lines.next().is_none(), "stray line in message {}", message.name);
    message
}

fn parse_fields<'a>(lines: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>, indent: usize) -> Vec<Field> {
    let mut fields = Vec::new();
    while let Some(line) = lines.peek() {
        let depth = line.len() - line.trim_start().len();
        if depth < indent {
            break;
        }
        assert_eq!(depth, indent, "odd indentation: {line}");
        let mut field = parse_field(line.trim_start());
        lines.next();
        field.fields = parse_fields(lines, indent + 2);
        assert_eq!(
            field.is_struct(),
            !field.fields.is_empty(),
            "a struct, and only a struct, has fields: {}",
            field.name
        );
        fields.push(field);
    }
    fields
}

fn parse_field(line: &str) -> Field {
    let mut words = line.split(' ');
    let mut word = || words.next().expect("a field has a name, a type and versions");
    let (name, declared, versions) = (word(), word(), Versions::parse(word()));
    let base = declared.strip_prefix("[]").unwrap_or(declared);
    let mut field = Field {
        name: name.to_owned(),
        base: base.to_owned(),
        array: base != declared,
        versions,
        nullable: None,
        tag: None,
        default: None,
        fields: Vec::new(),
    };
    for word in words {
        match word.split_once('=') {
            Some(("nullable", "all")) => field.nullable = Some(versions),
            Some(("nullable", range)) => field.nullable = Some(Versions::parse(range)),
            Some(("tag", tag)) => field.tag = Some(tag.parse().expect("a tag is a number")),
            Some(("default", default)) => field.default = Some(default.to_owned()),
            _ => panic!("unknown word {word} in field {name}"),
        }
    }
    field
}

/// The structs of a message by name, each with the versions in which it can occur.
///
/// A struct may be declared twice for different versions (AddPartitionsToTxn): then a field's versions are joined.
pub(crate) fn structs(message: &Message) -> BTreeMap<String, Struct> {
    let mut found = BTreeMap::new();
    collect(&message.fields, message.versions, &mut found);
    found
}

fn collect(fields: &[Field], within: Versions, found: &mut BTreeMap<String, Struct>) {
    for field in fields.iter().filter(|field| field.is_struct()) {
        let versions = field.versions.intersect(within);
        collect(&field.fields, versions, found);
        let Some(known) = found.get_mut(&field.base) else {
            found.insert(field.base.clone(), Struct { versions, fields: field.fields.clone() });
            continue;
        };
        known.versions = known.versions.hull(versions);
        assert_eq!(known.fields.len(), field.fields.len(), "two shapes of {}", field.base);
        for (mine, other) in known.fields.iter_mut().zip(&field.fields) {
            assert_eq!((&mine.name, &mine.base, mine.array), (&other.name, &other.base, other.array), "two shapes");
            mine.versions = mine.versions.hull(other.versions);
        }
    }
}
