//! Rust text from schema values.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::schema::{Api, Field, Kind, Message, Struct, Versions, structs};

/// What the code of one struct is made from.
struct Scope<'a> {
    message: &'a Message,
    structs: &'a BTreeMap<String, Struct>,
    versions: Versions,
}

/// The modules of all messages of a table, and the list of them that tests walk.
pub(crate) fn messages(all: &[Message], json: bool) -> String {
    let mut out = String::new();
    for message in all {
        let (module, name) = (snake_case(&message.type_name()), message.type_name());
        line(&mut out, format!("pub use {module}::{name};"));
        line(&mut out, format!("/// `{}` and the structs in it.\npub mod {module} {{", message.full_name()));
        line(&mut out, "use crate::wire::prelude::*;");
        module_body(&mut out, message, json);
        line(&mut out, "}");
    }
    if json {
        line(&mut out, "/// Every message of this table, for tests that walk them all.");
        line(&mut out, "pub const PROBES: &[crate::json::Probe] = &[");
        for message in all {
            line(&mut out, format!("crate::json::Probe::of::<{}>(),", message.type_name()));
        }
        line(&mut out, "];");
    }
    out
}

fn module_body(out: &mut String, message: &Message, json: bool) {
    let structs = structs(message);
    let scope = Scope { message, structs: &structs, versions: message.versions };
    emit_struct(out, &message.type_name(), &message.fields, &scope, json);
    for (name, found) in &structs {
        emit_struct(out, name, &found.fields, &Scope { versions: found.versions, ..scope }, json);
    }
    let Versions { low, high } = message.versions;
    let flexible = message.flexible.map_or("None".to_owned(), |from| format!("Some({from})"));
    let (name, full) = (message.type_name(), message.full_name());
    line(out, format!("impl Message for {name} {{ const NAME: &'static str = {full:?};"));
    line(out, format!("const VERSIONS: std::ops::RangeInclusive<i16> = {low}..={high};"));
    line(out, format!("const FLEXIBLE_FROM: Option<i16> = {flexible}; }}"));
    let api = &message.name;
    match (message.kind, message.key) {
        (Kind::Request, _) => {
            line(out, format!("impl Request for {name} {{ const API: ApiKey = ApiKey::{api};"));
            line(out, format!("type Response = super::{api}Response; }}"));
        }
        (Kind::Response, _) => line(out, format!("impl Response for {name} {{ const API: ApiKey = ApiKey::{api}; }}")),
        (Kind::Data, Some(key)) if name.ends_with("Key") => {
            line(out, format!("impl RecordKey for {name} {{ const TYPE: i16 = {key}; }}"));
        }
        (Kind::Data, _) => {}
    }
}

fn emit_struct(out: &mut String, name: &str, fields: &[Field], scope: &Scope, json: bool) {
    let plain = fields.iter().all(has_plain_default);
    let derive = if plain { ", Default" } else { "" };
    line(out, format!("/// `{name}` of {}.", scope.message.full_name()));
    line(out, format!("#[derive(Clone, Debug, PartialEq{derive})]\npub struct {name} {{"));
    for field in fields {
        check_field(field, scope);
        line(out, format!("/// `{}`, {}.", field.name, describe(field)));
        line(out, format!("pub {}: {},", ident(field), rust_type(field, scope)));
    }
    line(out, "}");
    if !plain {
        line(out, format!("impl Default for {name} {{ fn default() -> Self {{ Self {{"));
        fields.iter().for_each(|field| line(out, format!("{}: {},", ident(field), default_value(field))));
        line(out, "} } }");
    }
    let least = least_size(fields, scope);
    assert!(least > 0 || name == scope.message.type_name(), "{name} may take no bytes, so a count of it is unbounded");
    line(out, format!("impl Wire for {name} {{ const LEAST_SIZE: usize = {least};"));
    emit_read(out, fields, scope);
    emit_write(out, fields, scope);
    line(out, "}");
    if is_nullable_struct(name, &scope.message.fields) {
        line(out, format!("impl Nullable for {name} {{"));
        line(
            out,
            "fn read_option(d: &mut Decoder, c: Context) -> Result<Option<Self>, DecodeError> { read_struct(d, c) }",
        );
        line(out, "fn write_option(value: Option<&Self>, e: &mut Encoder, c: Context) -> Result<(), EncodeError> {");
        line(out, "write_struct(value, e, c) } }");
    }
    if json {
        emit_json(out, name, fields, scope);
    }
}

fn emit_read(out: &mut String, fields: &[Field], scope: &Scope) {
    line(out, "fn read(d: &mut Decoder, c: Context) -> Result<Self, DecodeError> {");
    let tagged: Vec<&Field> = fields.iter().filter(|field| field.tag.is_some()).collect();
    // Rust evaluates the fields of a literal in the order in which they are written, which is that of the wire.
    line(out, if tagged.is_empty() { "let m = Self {" } else { "let mut m = Self {" });
    for field in fields {
        let (read, default) = (read_value(field, scope), default_value(field));
        let value = match condition("c.version", field.versions, scope.versions) {
            _ if field.tag.is_some() => default,
            None => read,
            Some(exists) => format!("if {exists} {{ {read} }} else {{ {default} }}"),
        };
        line(out, format!("{}: {value},", ident(field)));
    }
    line(out, "};");
    if tagged.is_empty() {
        line(out, "if c.flexible { d.skip_tags()?; }\nOk(m) }");
        return;
    }
    line(out, "if c.flexible { d.tags(|d, tag| { match tag {");
    for field in tagged {
        let guard = condition("c.version", field.versions, scope.versions);
        let guard = guard.map_or(String::new(), |guard| format!(" if {guard}"));
        let tag = field.tag.expect("only tagged fields are here");
        line(out, format!("{tag}{guard} => m.{} = {},", ident(field), read_value(field, scope)));
    }
    line(out, "_ => return Ok(Tag::Unknown), } Ok(Tag::Known) })?; }\nOk(m) }");
}

fn emit_write(out: &mut String, fields: &[Field], scope: &Scope) {
    line(out, "fn write(&self, e: &mut Encoder, c: Context) -> Result<(), EncodeError> {");
    for field in fields.iter().filter(|field| field.tag.is_none()) {
        let write = format!("{}?;", write_value(field, scope));
        line(out, guarded(condition("c.version", field.versions, scope.versions), &write));
    }
    let mut tagged: Vec<&Field> = fields.iter().filter(|field| field.tag.is_some()).collect();
    if tagged.is_empty() {
        line(out, "if c.flexible { e.no_tags(); }\nOk(()) }");
        return;
    }
    tagged.sort_by_key(|field| field.tag);
    line(out, "if c.flexible { let mut t = TagWriter::default();");
    for field in tagged {
        let tag = field.tag.expect("only tagged fields are here");
        let guard = condition("c.version", field.versions, scope.versions);
        let guard = guard.map_or(String::new(), |guard| format!("{guard} && "));
        let write = write_value(field, scope);
        line(out, format!("if {guard}{} {{ t.add({tag}, |e| {write})?; }}", differs(field)));
    }
    line(out, "e.tags(t)?; }\nOk(()) }");
}

/// Kafka's own JSON notation: a field per version, camelCase, tagged fields only where they differ from the default.
fn emit_json(out: &mut String, name: &str, fields: &[Field], scope: &Scope) {
    line(out, format!("impl crate::json::Json for {name} {{ fn json(&self, version: i16) -> crate::json::Value {{"));
    line(out, "let mut map = crate::json::Map::new();");
    for field in fields {
        let insert =
            format!("crate::json::put(&mut map, {:?}, &self.{}, version);", camel_case(&field.name), ident(field));
        let versions = condition("version", field.versions, scope.versions);
        let differs = field.tag.is_some().then(|| differs(field));
        let guards: Vec<String> = versions.into_iter().chain(differs).collect();
        line(out, guarded((!guards.is_empty()).then(|| guards.join(" && ")), &insert));
    }
    line(out, "crate::json::Value::Object(map) } }");
}

/// The enum of API keys with its tables.
pub(crate) fn api_keys(apis: &[Api], messages: &[Message]) -> String {
    let mut out = String::new();
    line(&mut out, "/// The API of a request, by its key on the wire.");
    line(
        &mut out,
        "#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]\n#[repr(i16)]\npub enum ApiKey {",
    );
    for api in apis {
        line(&mut out, format!("/// `{}`, versions {} to {}.", api.name, api.versions.low, api.versions.high));
        line(&mut out, format!("{} = {},", api.name, api.key));
    }
    line(&mut out, "}\n/// Every API with its facts, in the order of the keys.\nconst TABLE: &[Facts] = &[");
    for api in apis {
        let find = |kind| messages.iter().find(|message| message.key == Some(api.key) && message.kind == kind);
        let request = find(Kind::Request).expect("an API has a request");
        let response = find(Kind::Response).expect("an API has a response");
        assert_eq!((&request.name, &response.name), (&api.name, &api.name), "one name for key {}", api.key);
        assert_eq!(request.flexible, response.flexible, "{} is flexible both ways", api.name);
        let Versions { low, high } = api.versions;
        assert!(request.versions.contains(low) && request.versions.contains(high), "{} has schemas", api.name);
        let flexible = request.flexible.map_or("None".to_owned(), |from| format!("Some({from})"));
        let listener = match api.listeners.as_str() {
            "broker" => "Broker",
            "controller" => "Controller",
            "broker+controller" => "Both",
            other => panic!("unknown listeners {other}"),
        };
        let Api { key, name, .. } = api;
        line(
            &mut out,
            format!(
                "Facts {{ key: {key}, api: ApiKey::{name}, name: {name:?}, versions: {low}..={high}, flexible_from: {flexible}, listener: Listener::{listener} }},"
            ),
        );
    }
    line(&mut out, "];");
    out
}

fn line(out: &mut String, text: impl AsRef<str>) {
    writeln!(out, "{}", text.as_ref()).expect("writing to a String");
}

fn guarded(guard: Option<String>, statement: &str) -> String {
    guard.map_or(statement.to_owned(), |guard| format!("if {guard} {{ {statement} }}"))
}

/// The test that a field exists, without the sides that its surroundings imply.
fn condition(version: &str, field: Versions, within: Versions) -> Option<String> {
    let low = (field.low > within.low).then_some(field.low);
    let high = (field.high < within.high).then_some(field.high);
    match (low, high) {
        (None, None) => None,
        (Some(low), None) => Some(format!("{version} >= {low}")),
        (None, Some(high)) => Some(format!("{version} <= {high}")),
        (Some(low), Some(high)) if low == high => Some(format!("{version} == {low}")),
        (Some(low), Some(high)) => Some(format!("({low}..={high}).contains(&{version})")),
    }
}

fn check_field(field: &Field, scope: &Scope) {
    let real = field.versions.intersect(scope.versions);
    assert!(real.low <= real.high, "{} {} exists in no version", scope.message.name, field.name);
    assert!(field.tag.is_none() || scope.message.is_flexible(real.low), "{} is tagged before tags", field.name);
    if field.is_struct() && !field.array {
        let range = field.nullable.unwrap_or(field.versions).intersect(real);
        assert_eq!(range, real, "{}: a struct is nullable in all its versions or in none", field.name);
    }
}

fn read_value(field: &Field, scope: &Scope) -> String {
    match field.nullable {
        _ if is_legacy_string(field, scope) => "d.legacy_string()?".to_owned(),
        None => "Wire::read(d, c)?".to_owned(),
        Some(range) => match condition("c.version", range, field.versions.intersect(scope.versions)) {
            None => "Nullable::read_option(d, c)?".to_owned(),
            Some(nullable) => format!("read_maybe_nullable(d, c, {nullable})?"),
        },
    }
}

fn write_value(field: &Field, scope: &Scope) -> String {
    let name = ident(field);
    match field.nullable {
        _ if is_legacy_string(field, scope) => format!("e.legacy_string(self.{name}.as_deref())"),
        None => format!("self.{name}.write(e, c)"),
        Some(range) => match condition("c.version", range, field.versions.intersect(scope.versions)) {
            None => format!("Nullable::write_option(self.{name}.as_ref(), e, c)"),
            Some(nullable) => {
                format!("write_maybe_nullable(self.{name}.as_ref(), e, c, {nullable}, {:?})", field.name)
            }
        },
    }
}

/// The client id of a request header keeps its old encoding in the flexible version, so that any broker can read it.
fn is_legacy_string(field: &Field, scope: &Scope) -> bool {
    scope.message.name == "RequestHeader" && field.name == "ClientId"
}

fn rust_type(field: &Field, scope: &Scope) -> String {
    let base = match field.base.as_str() {
        "boolean" => "bool",
        "int8" => "i8",
        "int16" => "i16",
        "int32" => "i32",
        "int64" => "i64",
        "uint16" => "u16",
        "float64" => "f64",
        "string" => "String",
        "bytes" => "Bytes",
        "uuid" => "Uuid",
        "records" if scope.message.kind == Kind::Request => "BytesMut",
        "records" => "Records",
        other => {
            assert!(scope.structs.contains_key(other), "unknown type {other}");
            other
        }
    };
    let inner = if field.array { format!("Vec<{base}>") } else { base.to_owned() };
    if field.nullable.is_some() { format!("Option<{inner}>") } else { inner }
}

fn is_number(field: &Field) -> bool {
    !field.array && matches!(field.base.as_str(), "int8" | "int16" | "int32" | "int64" | "uint16" | "float64")
}

/// Whether some field holds this struct or null.
fn is_nullable_struct(name: &str, fields: &[Field]) -> bool {
    let nullable = |field: &Field| field.base == name && !field.array && field.nullable.is_some();
    fields.iter().any(|field| nullable(field) || is_nullable_struct(name, &field.fields))
}

/// Whether the default of the schema is the default of the Rust type: a nullable field is null only where the table says.
fn has_plain_default(field: &Field) -> bool {
    let null = field.default.as_deref() == Some("null");
    null || (field.nullable.is_none() && field.default.is_none())
}

fn default_value(field: &Field) -> String {
    match field.default.as_deref() {
        _ if has_plain_default(field) => "Default::default()".to_owned(),
        None => "Some(Default::default())".to_owned(),
        Some(value) if field.base == "float64" => format!("{value}f64"),
        Some(value) => value.to_owned(),
    }
}

/// The test that a tagged field is not at its default.
fn differs(field: &Field) -> String {
    let name = ident(field);
    match field.nullable {
        Some(_) if has_plain_default(field) => format!("self.{name}.is_some()"),
        Some(_) => format!("self.{name} != Some(Default::default())"),
        None if field.array || matches!(field.base.as_str(), "string" | "bytes") => format!("!self.{name}.is_empty()"),
        None if is_number(field) => format!("self.{name} != {}", field.default.as_deref().unwrap_or("0")),
        None if field.base == "boolean" && field.default.as_deref() == Some("true") => format!("!self.{name}"),
        None if field.base == "boolean" => format!("self.{name}"),
        None => format!("self.{name} != {}::default()", if field.base == "uuid" { "Uuid" } else { &field.base }),
    }
}

/// The fewest bytes that a struct takes in any of its versions.
fn least_size(fields: &[Field], scope: &Scope) -> usize {
    let Versions { low, high } = scope.versions;
    (low..=high).map(|version| size_at(fields, scope, version)).min().expect("a struct has a version")
}

fn size_at(fields: &[Field], scope: &Scope, version: i16) -> usize {
    let flexible = scope.message.is_flexible(version);
    let present = fields.iter().filter(|field| field.tag.is_none() && field.versions.contains(version));
    let size = |field: &Field| match field.base.as_str() {
        _ if is_legacy_string(field, scope) => 2,
        _ if field.array => {
            if flexible {
                1
            } else {
                4
            }
        }
        "boolean" | "int8" => 1,
        "int16" | "uint16" => 2,
        "int32" => 4,
        "int64" | "float64" => 8,
        "uuid" => 16,
        "string" => {
            if flexible {
                1
            } else {
                2
            }
        }
        "bytes" | "records" => {
            if flexible {
                1
            } else {
                4
            }
        }
        _ if field.nullable.is_some() => 1,
        _ => size_at(&field.fields, scope, version),
    };
    present.map(size).sum::<usize>() + usize::from(flexible)
}

fn describe(field: &Field) -> String {
    let mut text = match field.versions {
        Versions { low, high: i16::MAX } => format!("version {low} and later"),
        Versions { low, high } if low == high => format!("version {low}"),
        Versions { low, high } => format!("versions {low} to {high}"),
    };
    if let Some(tag) = field.tag {
        write!(text, ", tag {tag}").expect("writing to a String");
    }
    match field.nullable {
        Some(range) if range.low > field.versions.low || range.high < field.versions.high => {
            write!(text, ", may be null from version {}", range.low).expect("writing to a String");
        }
        _ => {}
    }
    text
}

fn ident(field: &Field) -> String {
    let name = snake_case(&field.name);
    if matches!(name.as_str(), "type" | "match") { format!("r#{name}") } else { name }
}

fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for (at, letter) in name.chars().enumerate() {
        if letter.is_ascii_uppercase() && at > 0 {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

fn camel_case(name: &str) -> String {
    let (first, rest) = name.split_at(1);
    format!("{}{rest}", first.to_ascii_lowercase())
}
