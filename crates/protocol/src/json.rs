//! Kafka's own JSON notation of a message, and a walk over all messages: for tests.

pub use serde_json::{Map, Value};

use bytes::{Bytes, BytesMut};
use uuid::Uuid;

use crate::decoder::Decoder;
use crate::encoder::Encoder;
use crate::error::DecodeError;
use crate::message::Message;
use crate::payload::Records;

/// A value with a JSON notation.
pub trait Json {
    /// The notation in a version of the message.
    fn json(&self, version: i16) -> Value;
}

/// One message type, to be handled without naming it.
#[derive(Clone, Debug)]
pub struct Probe {
    /// [`Message::NAME`].
    pub name: &'static str,
    /// The versions of the schema.
    pub versions: std::ops::RangeInclusive<i16>,
    /// Decodes all of some bytes and says what they are.
    pub to_json: fn(BytesMut, i16) -> Result<Value, DecodeError>,
    /// Decodes all of some bytes and encodes the result, if that version can be encoded.
    pub recode: fn(BytesMut, i16) -> Result<Option<Bytes>, DecodeError>,
}

impl Probe {
    pub(crate) const fn of<M: Message + Json>() -> Self {
        Probe { name: M::NAME, versions: M::VERSIONS, to_json: to_json::<M>, recode: recode::<M> }
    }
}

fn to_json<M: Message + Json>(bytes: BytesMut, version: i16) -> Result<Value, DecodeError> {
    Ok(M::decode_all(&mut Decoder::new(bytes), version)?.json(version))
}

fn recode<M: Message>(bytes: BytesMut, version: i16) -> Result<Option<Bytes>, DecodeError> {
    let message = M::decode_all(&mut Decoder::new(bytes), version)?;
    let mut encoder = Encoder::new();
    Ok(message.encode(&mut encoder, version).ok().map(|()| encoder.finish().into_bytes()))
}

/// Adds a field to an object.
pub(crate) fn put(map: &mut Map<String, Value>, name: &str, value: &impl Json, version: i16) {
    map.insert(name.to_owned(), value.json(version));
}

macro_rules! plain {
    ($($plain:ty),*) => {$(
        impl Json for $plain {
            fn json(&self, _: i16) -> Value {
                Value::from(self.clone())
            }
        }
    )*};
}
plain!(bool, i8, i16, i32, i64, u16, f64, String);

impl Json for Uuid {
    fn json(&self, _: i16) -> Value {
        Value::from(base64(self.as_bytes(), b"-_", false))
    }
}

impl Json for Bytes {
    fn json(&self, _: i16) -> Value {
        Value::from(base64(self, b"+/", true))
    }
}

/// Records are not shown.
impl Json for BytesMut {
    fn json(&self, _: i16) -> Value {
        Value::from("")
    }
}

/// Records are not shown.
impl Json for Records {
    fn json(&self, _: i16) -> Value {
        Value::from("")
    }
}

impl<T: Json> Json for Vec<T> {
    fn json(&self, version: i16) -> Value {
        self.iter().map(|element| element.json(version)).collect()
    }
}

impl<T: Json> Json for Option<T> {
    fn json(&self, version: i16) -> Value {
        self.as_ref().map_or(Value::Null, |value| value.json(version))
    }
}

fn base64(bytes: &[u8], last_two: &[u8; 2], padded: bool) -> String {
    let mut alphabet: Vec<u8> = (b'A'..=b'Z').chain(b'a'..=b'z').chain(b'0'..=b'9').collect();
    alphabet.extend_from_slice(last_two);
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |at: usize| group.get(at).copied().unwrap_or(0);
        let digits = [byte(0) >> 2, byte(0) << 4 | byte(1) >> 4, byte(1) << 2 | byte(2) >> 6, byte(2)];
        for digit in &digits[..=group.len()] {
            text.push(char::from(alphabet[usize::from(digit & 0x3f)]));
        }
        (group.len()..3).filter(|_| padded).for_each(|_| text.push('='));
    }
    text
}
