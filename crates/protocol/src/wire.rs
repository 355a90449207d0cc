//! How each type stands on the wire: the small vocabulary that the generated code is written in.

use bytes::{Bytes, BytesMut};
use uuid::Uuid;

use crate::decoder::Decoder;
use crate::encoder::Encoder;
use crate::error::{DecodeError, EncodeError};
use crate::payload::Records;

/// What the encoding of a value depends on besides its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The version of the message.
    pub version: i16,
    /// Whether that version has compact lengths and tagged fields.
    pub flexible: bool,
}

/// A value that is never null.
pub trait Wire: Sized {
    /// No encoding of it is shorter than this.
    const LEAST_SIZE: usize;

    /// Reads one.
    ///
    /// # Errors
    /// If the bytes are none.
    fn read(d: &mut Decoder, c: Context) -> Result<Self, DecodeError>;

    /// Writes one.
    ///
    /// # Errors
    /// If the version cannot express it.
    fn write(&self, e: &mut Encoder, c: Context) -> Result<(), EncodeError>;
}

/// A value whose encoding has a place for null.
pub trait Nullable: Wire {
    /// Reads one, or null.
    ///
    /// # Errors
    /// If the bytes are neither.
    fn read_option(d: &mut Decoder, c: Context) -> Result<Option<Self>, DecodeError>;

    /// Writes one, or null.
    ///
    /// # Errors
    /// If the version cannot express it.
    fn write_option(value: Option<&Self>, e: &mut Encoder, c: Context) -> Result<(), EncodeError>;
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Wire for $number {
            const LEAST_SIZE: usize = size_of::<$number>();
            fn read(d: &mut Decoder, _: Context) -> Result<Self, DecodeError> {
                Ok(<$number>::from_be_bytes(d.array()?))
            }
            fn write(&self, e: &mut Encoder, _: Context) -> Result<(), EncodeError> {
                e.put(&self.to_be_bytes());
                Ok(())
            }
        }
    )*};
}
numbers!(i8, i16, i32, i64, u16, f64);

impl Wire for bool {
    const LEAST_SIZE: usize = 1;
    fn read(d: &mut Decoder, _: Context) -> Result<Self, DecodeError> {
        Ok(d.array()? != [0])
    }
    fn write(&self, e: &mut Encoder, _: Context) -> Result<(), EncodeError> {
        e.put(&[u8::from(*self)]);
        Ok(())
    }
}

impl Wire for Uuid {
    const LEAST_SIZE: usize = 16;
    fn read(d: &mut Decoder, _: Context) -> Result<Self, DecodeError> {
        Ok(Uuid::from_bytes(d.array()?))
    }
    fn write(&self, e: &mut Encoder, _: Context) -> Result<(), EncodeError> {
        e.put(self.as_bytes());
        Ok(())
    }
}

/// `Wire` from `Nullable`, for the types whose null is a special length.
macro_rules! never_null {
    ([$($generic:ident)?] $name:ty) => {
        impl$(<$generic: Wire>)? Wire for $name {
            const LEAST_SIZE: usize = 1;
            fn read(d: &mut Decoder, c: Context) -> Result<Self, DecodeError> {
                Self::read_option(d, c)?.ok_or(DecodeError::UnexpectedNull)
            }
            fn write(&self, e: &mut Encoder, c: Context) -> Result<(), EncodeError> {
                Self::write_option(Some(self), e, c)
            }
        }
    };
}
never_null!([] String);
never_null!([] Bytes);
never_null!([] BytesMut);
never_null!([] Records);
never_null!([T] Vec<T>);

impl Nullable for String {
    fn read_option(d: &mut Decoder, c: Context) -> Result<Option<Self>, DecodeError> {
        d.string(c.flexible)
    }
    fn write_option(value: Option<&Self>, e: &mut Encoder, c: Context) -> Result<(), EncodeError> {
        e.length(value.map(String::len), c.flexible, true)?;
        e.put(value.map_or(&[], |value| value.as_bytes()));
        Ok(())
    }
}

impl Nullable for Bytes {
    fn read_option(d: &mut Decoder, c: Context) -> Result<Option<Self>, DecodeError> {
        d.bytes(c.flexible)
    }
    fn write_option(value: Option<&Self>, e: &mut Encoder, c: Context) -> Result<(), EncodeError> {
        e.length(value.map(Bytes::len), c.flexible, false)?;
        value.into_iter().for_each(|value| e.put_payload(value));
        Ok(())
    }
}

impl Nullable for BytesMut {
    fn read_option(d: &mut Decoder, c: Context) -> Result<Option<Self>, DecodeError> {
        d.bytes_mut(c.flexible)
    }
    fn write_option(value: Option<&Self>, e: &mut Encoder, c: Context) -> Result<(), EncodeError> {
        e.length(value.map(BytesMut::len), c.flexible, false)?;
        e.put(value.map_or(&[], |value| value));
        Ok(())
    }
}

impl Nullable for Records {
    fn read_option(d: &mut Decoder, c: Context) -> Result<Option<Self>, DecodeError> {
        Ok(d.bytes(c.flexible)?.map(Records::from))
    }
    fn write_option(value: Option<&Self>, e: &mut Encoder, c: Context) -> Result<(), EncodeError> {
        e.length(value.map(Records::len), c.flexible, false)?;
        value.and_then(Records::elsewhere).into_iter().for_each(|elsewhere| e.put_elsewhere(elsewhere));
        value.into_iter().flat_map(Records::chunks).for_each(|chunk| e.put_payload(chunk));
        Ok(())
    }
}

impl<T: Wire> Nullable for Vec<T> {
    fn read_option(d: &mut Decoder, c: Context) -> Result<Option<Self>, DecodeError> {
        let Some(count) = d.count(c.flexible, T::LEAST_SIZE, size_of::<T>())? else { return Ok(None) };
        let mut elements = Vec::with_capacity(count);
        for _ in 0..count {
            elements.push(T::read(d, c)?);
        }
        Ok(Some(elements))
    }
    fn write_option(value: Option<&Self>, e: &mut Encoder, c: Context) -> Result<(), EncodeError> {
        e.length(value.map(Vec::len), c.flexible, false)?;
        value.into_iter().flatten().try_for_each(|element| element.write(e, c))
    }
}

/// A struct that may be null has an int8 in front: negative for null.
pub(crate) fn read_struct<T: Wire>(d: &mut Decoder, c: Context) -> Result<Option<T>, DecodeError> {
    if i8::read(d, c)? < 0 { Ok(None) } else { T::read(d, c).map(Some) }
}

pub(crate) fn write_struct<T: Wire>(value: Option<&T>, e: &mut Encoder, c: Context) -> Result<(), EncodeError> {
    match value {
        None => (-1i8).write(e, c),
        Some(value) => 1i8.write(e, c).and_then(|()| value.write(e, c)),
    }
}

/// A field that may be null in some of its versions only.
pub(crate) fn read_maybe_nullable<T: Nullable>(
    d: &mut Decoder,
    c: Context,
    nullable: bool,
) -> Result<Option<T>, DecodeError> {
    if nullable { T::read_option(d, c) } else { T::read(d, c).map(Some) }
}

pub(crate) fn write_maybe_nullable<T: Nullable>(
    value: Option<&T>,
    e: &mut Encoder,
    c: Context,
    nullable: bool,
    field: &'static str,
) -> Result<(), EncodeError> {
    if value.is_none() && !nullable {
        return Err(EncodeError::UnexpectedNull(field));
    }
    T::write_option(value, e, c)
}

/// What a generated module names.
pub(crate) mod prelude {
    pub(crate) use bytes::{Bytes, BytesMut};
    pub(crate) use uuid::Uuid;

    pub(crate) use super::{
        Context, Nullable, Wire, read_maybe_nullable, read_struct, write_maybe_nullable, write_struct,
    };
    pub(crate) use crate::api::ApiKey;
    pub(crate) use crate::decoder::{Decoder, Tag};
    pub(crate) use crate::encoder::{Encoder, TagWriter};
    pub(crate) use crate::error::{DecodeError, EncodeError};
    pub(crate) use crate::message::{Message, RecordKey, Request, Response};
    pub(crate) use crate::payload::Records;
}
