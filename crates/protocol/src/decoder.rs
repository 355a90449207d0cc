//! Reading untrusted bytes.
//!
//! Invariants: a length is checked against what remains before anything is done with it; what the decoded arrays take
//! in memory is charged *before* it is allocated against a budget of [`MEMORY_PER_BYTE`] times the input (so a count
//! that lies allocates nothing, and elements of one byte cannot unfold into gigabytes); strings are copied, so they take
//! what they took on the wire; bytes and records are never copied. Nothing recurses by input: the depth of a message is
//! the depth of its Rust type.

use bytes::{Buf, Bytes, BytesMut};

use crate::error::DecodeError;

/// What decoded arrays may take in memory, as a multiple of the bytes they came from.
///
/// The honest extreme is an array of structs of a one-letter name and little else, about 12.
pub const MEMORY_PER_BYTE: usize = 16;

/// What every message may take on top, so that tiny ones never meet the bound.
pub const MEMORY_FLOOR: usize = 16 * 1024;

/// Tagged fields in one struct. Kafka's own structs have at most five; the rest would be of versions to come.
const TAGS_MAX: u32 = 128;

/// Strings have an int16 length in the old encoding, and the compact one keeps that bound.
const STRING_SIZE_MAX: usize = 32_767;

/// Whether a struct knows a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    /// Its value was read.
    Known,
    /// It is to be skipped.
    Unknown,
}

/// A cursor over the bytes of one frame, which it owns.
///
/// Records of a request are split off as `BytesMut`: nobody else refers to that region, so offset and leader epoch can be
/// stamped into a batch in place, without a copy.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    /// Where the unread bytes begin in `buffer`.
    at: usize,
    memory_left: usize,
}

impl Decoder {
    /// Reads `buffer` from its beginning.
    #[must_use]
    pub fn new(buffer: BytesMut) -> Self {
        let memory_left = buffer.len().saturating_mul(MEMORY_PER_BYTE).saturating_add(MEMORY_FLOOR);
        Decoder { buffer, at: 0, memory_left }
    }

    /// Reads a copy of `bytes`: for small things such as coordinator records and subscriptions.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Self {
        Decoder::new(BytesMut::from(bytes))
    }

    /// How many bytes are unread.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.buffer.len() - self.at
    }

    /// The unread bytes.
    #[must_use]
    pub fn peek(&self) -> &[u8] {
        &self.buffer[self.at..]
    }

    /// Says whether everything was read.
    ///
    /// # Errors
    /// [`DecodeError::TrailingBytes`] if not.
    pub fn finish(&self) -> Result<(), DecodeError> {
        match self.remaining() {
            0 => Ok(()),
            count => Err(DecodeError::TrailingBytes { count }),
        }
    }

    /// Reads `N` bytes, the raw material of every number.
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let Some(bytes) = self.peek().first_chunk::<N>() else {
            return Err(DecodeError::Truncated { needed: N, remaining: self.remaining() });
        };
        let bytes = *bytes;
        self.at += N;
        Ok(bytes)
    }

    fn need(&self, needed: usize) -> Result<(), DecodeError> {
        if needed > self.remaining() {
            return Err(DecodeError::Truncated { needed, remaining: self.remaining() });
        }
        Ok(())
    }

    /// An unsigned varint of at most 32 bits.
    pub(crate) fn uvarint(&mut self) -> Result<u32, DecodeError> {
        let mut value = 0;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.array::<1>()?;
            if shift == 28 && byte > 0x0f {
                return Err(DecodeError::BadVarint);
            }
            value |= u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        Ok(value)
    }

    /// A length that was checked against what remains; `None` is null.
    fn length(&mut self, flexible: bool, short: bool) -> Result<Option<usize>, DecodeError> {
        let length = if flexible {
            i64::from(self.uvarint()?) - 1
        } else if short {
            i64::from(i16::from_be_bytes(self.array()?))
        } else {
            i64::from(i32::from_be_bytes(self.array()?))
        };
        if length == -1 {
            return Ok(None);
        }
        let length = usize::try_from(length).map_err(|_| DecodeError::BadLength(length))?;
        self.need(length)?;
        Ok(Some(length))
    }

    /// The count of an array of elements that take at least `least_size` bytes on the wire and exactly `memory` bytes in
    /// memory. When this returns, room for that many may be reserved.
    pub(crate) fn count(&mut self, flexible: bool, least: usize, memory: usize) -> Result<Option<usize>, DecodeError> {
        let Some(count) = self.length(flexible, false)? else { return Ok(None) };
        self.need(count.saturating_mul(least))?;
        let memory = count.saturating_mul(memory);
        self.memory_left = self.memory_left.checked_sub(memory).ok_or(DecodeError::TooMuchMemory)?;
        Ok(Some(count))
    }

    pub(crate) fn string(&mut self, flexible: bool) -> Result<Option<String>, DecodeError> {
        let Some(length) = self.length(flexible, true)? else { return Ok(None) };
        if length > STRING_SIZE_MAX {
            return Err(DecodeError::BadLength(i64::try_from(length).unwrap_or(i64::MAX)));
        }
        let bytes = &self.buffer[self.at..self.at + length];
        let text = std::str::from_utf8(bytes).map_err(|_| DecodeError::BadUtf8)?.to_owned();
        self.at += length;
        Ok(Some(text))
    }

    /// A nullable string in the encoding of the old versions, whatever the version.
    pub(crate) fn legacy_string(&mut self) -> Result<Option<String>, DecodeError> {
        self.string(false)
    }

    /// Bytes, split off without a copy and owned alone by whoever gets them.
    pub(crate) fn bytes_mut(&mut self, flexible: bool) -> Result<Option<BytesMut>, DecodeError> {
        let Some(length) = self.length(flexible, false)? else { return Ok(None) };
        if length == 0 {
            return Ok(Some(BytesMut::new()));
        }
        let mut bytes = self.buffer.split_to(self.at + length);
        bytes.advance(self.at);
        self.at = 0;
        Ok(Some(bytes))
    }

    pub(crate) fn bytes(&mut self, flexible: bool) -> Result<Option<Bytes>, DecodeError> {
        Ok(self.bytes_mut(flexible)?.map(BytesMut::freeze))
    }

    /// Reads the tagged fields of a struct; `known` reads the value of a tag, or says that it does not know it.
    pub(crate) fn tags(
        &mut self,
        mut known: impl FnMut(&mut Decoder, u32) -> Result<Tag, DecodeError>,
    ) -> Result<(), DecodeError> {
        let count = self.uvarint()?;
        if count > TAGS_MAX {
            return Err(DecodeError::BadTags);
        }
        let mut previous = None;
        for _ in 0..count {
            let tag = self.uvarint()?;
            if previous.is_some_and(|previous| tag <= previous) {
                return Err(DecodeError::BadTags);
            }
            previous = Some(tag);
            let announced = usize::try_from(self.uvarint()?).map_err(|_| DecodeError::BadVarint)?;
            self.need(announced)?;
            let before = self.remaining();
            if known(self, tag)? == Tag::Unknown {
                self.at += announced;
            }
            let taken = before - self.remaining();
            if taken != announced {
                return Err(DecodeError::BadTagSize { tag, announced, taken });
            }
        }
        Ok(())
    }

    pub(crate) fn skip_tags(&mut self) -> Result<(), DecodeError> {
        self.tags(|_, _| Ok(Tag::Unknown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_varint_has_at_most_five_bytes_and_thirty_two_bits() {
        let read = |bytes: &[u8]| Decoder::from_slice(bytes).uvarint();
        assert_eq!(read(&[0x00]), Ok(0));
        assert_eq!(read(&[0x80, 0x01]), Ok(128));
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Ok(u32::MAX));
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0x1f]), Err(DecodeError::BadVarint));
        assert_eq!(read(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x00]), Err(DecodeError::BadVarint));
        assert_eq!(read(&[0x80]), Err(DecodeError::Truncated { needed: 1, remaining: 0 }));
    }

    #[test]
    fn a_length_below_minus_one_is_no_null() {
        let read = |bytes: &[u8]| Decoder::from_slice(bytes).string(false);
        assert_eq!(read(&[0xff, 0xff]), Ok(None));
        assert_eq!(read(&[0xff, 0xfe]), Err(DecodeError::BadLength(-2)));
        assert_eq!(read(&[0, 1, 0xff]), Err(DecodeError::BadUtf8));
        assert_eq!(
            Decoder::from_slice(&[0x80, 0, 0, 0]).bytes(false),
            Err(DecodeError::BadLength(i64::from(i32::MIN)))
        );
    }

    #[test]
    fn arrays_together_may_take_no_more_memory_than_the_budget() {
        let mut decoder = Decoder::from_slice(&[0x7f; 126]);
        let budget = 126 * MEMORY_PER_BYTE + MEMORY_FLOOR;
        assert_eq!(decoder.count(true, 1, budget / 126), Err(DecodeError::Truncated { needed: 126, remaining: 125 }));
        let mut decoder = Decoder::from_slice(&[&[3, 0, 0, 3, 0, 0], &[0x7f; 120][..]].concat());
        assert_eq!(decoder.count(true, 1, budget / 2), Ok(Some(2)));
        decoder.at += 2;
        assert_eq!(decoder.count(true, 1, budget / 2), Err(DecodeError::TooMuchMemory));
    }
}
