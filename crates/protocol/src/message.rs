//! What every generated message can do.

use std::fmt::Debug;
use std::ops::RangeInclusive;

use crate::api::ApiKey;
use crate::decoder::Decoder;
use crate::encoder::Encoder;
use crate::error::{DecodeError, EncodeError};
use crate::wire::{Context, Wire};

/// A whole message with all fields of all its versions.
///
/// A field that a version does not have keeps its default when that version is decoded, and is left out when it is
/// encoded, whatever its value: it is for the caller to know what a version can say. (Kafka refuses some of these; the
/// tables do not say which.)
pub trait Message: Wire + Default + Clone + Debug + PartialEq {
    /// Its name in the schema, for example `Produce request`.
    const NAME: &'static str;
    /// The versions of the schema. Not all need be stable: [`ApiKey::versions`] are those to serve.
    const VERSIONS: RangeInclusive<i16>;
    /// The first version with compact lengths and tagged fields.
    const FLEXIBLE_FROM: Option<i16>;

    /// Reads a message and leaves what follows it.
    ///
    /// # Errors
    /// If the bytes are not this message in this version.
    fn decode(decoder: &mut Decoder, version: i16) -> Result<Self, DecodeError> {
        let unknown = DecodeError::UnknownVersion { message: Self::NAME, version };
        Self::read(decoder, context::<Self>(version).ok_or(unknown)?)
    }

    /// Reads a message that takes all of the bytes.
    ///
    /// # Errors
    /// As for [`Message::decode`], or if bytes are left.
    fn decode_all(decoder: &mut Decoder, version: i16) -> Result<Self, DecodeError> {
        let message = Self::decode(decoder, version)?;
        decoder.finish()?;
        Ok(message)
    }

    /// Writes the message.
    ///
    /// # Errors
    /// If the version does not exist, has no null where the message has one, or a length does not fit.
    fn encode(&self, encoder: &mut Encoder, version: i16) -> Result<(), EncodeError> {
        let unknown = EncodeError::UnknownVersion { message: Self::NAME, version };
        self.write(encoder, context::<Self>(version).ok_or(unknown)?)
    }
}

/// A request.
pub trait Request: Message {
    /// Its API.
    const API: ApiKey;
    /// What answers it.
    type Response: Response;
}

/// A response.
pub trait Response: Message {
    /// Its API.
    const API: ApiKey;
}

/// The key of a record in a coordinator's topic.
pub trait RecordKey: Message {
    /// The int16 in front of it in the log.
    const TYPE: i16;
}

fn context<M: Message>(version: i16) -> Option<Context> {
    let flexible = M::FLEXIBLE_FROM.is_some_and(|from| version >= from);
    M::VERSIONS.contains(&version).then_some(Context { version, flexible })
}
