//! Writing messages as a list of chunks, so that payloads are sent from where they lie.
//!
//! Invariant: the payloads stand in the order of their positions, and every position lies inside the buffer.

use bytes::{BufMut, Bytes, BytesMut};

use crate::error::EncodeError;
use crate::payload::Elsewhere;

/// Payloads from this size on become chunks of their own; a smaller one is cheaper to copy than to send separately.
pub const CHUNK_SIZE_MIN: usize = 1024;

/// What was encoded: chunks to be written one after the other, best with one vectored write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodedFrame {
    /// The bytes in order; none is empty.
    pub chunks: Vec<Bytes>,
    /// What comes between them, in order.
    pub gaps: Vec<Gap>,
    /// How many bytes chunks and gaps have together.
    pub len: usize,
}

/// A place where bytes go that lie elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// They come before the chunk of this index, or behind all.
    pub before: usize,
    /// Which bytes.
    pub elsewhere: Elsewhere,
}

impl EncodedFrame {
    /// All bytes in one piece: a copy unless there is one chunk.
    ///
    /// # Panics
    /// Where some lie elsewhere.
    #[must_use]
    pub fn into_bytes(mut self) -> Bytes {
        assert!(self.gaps.is_empty(), "bytes that lie elsewhere are not here: {:?}", self.gaps);
        if self.chunks.len() <= 1 {
            return self.chunks.pop().unwrap_or_default();
        }
        let mut all = BytesMut::with_capacity(self.len);
        self.chunks.iter().for_each(|chunk| all.extend_from_slice(chunk));
        all.freeze()
    }
}

#[derive(Debug)]
enum Payload {
    Here(Bytes),
    Elsewhere(Elsewhere),
}

/// Collects the bytes of a message.
#[derive(Debug, Default)]
pub struct Encoder {
    buffer: BytesMut,
    /// Payloads, each with its place: how many bytes of `buffer` precede it.
    payloads: Vec<(usize, Payload)>,
    payload_size: usize,
}

impl Encoder {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Encoder::default()
    }

    /// How many bytes were written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffer.len() + self.payload_size
    }

    /// Whether nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was written.
    #[must_use]
    pub fn finish(mut self) -> EncodedFrame {
        let len = self.len();
        let mut chunks = Vec::with_capacity(self.payloads.len() * 2 + 1);
        let (mut gaps, mut taken) = (Vec::new(), 0);
        for (position, payload) in self.payloads {
            if position > taken {
                chunks.push(self.buffer.split_to(position - taken).freeze());
                taken = position;
            }
            match payload {
                Payload::Here(bytes) => chunks.push(bytes),
                Payload::Elsewhere(elsewhere) => gaps.push(Gap { before: chunks.len(), elsewhere }),
            }
        }
        if !self.buffer.is_empty() {
            chunks.push(self.buffer.freeze());
        }
        EncodedFrame { chunks, gaps, len }
    }

    /// What was written, where the first four bytes were left for the size of the rest.
    pub(crate) fn finish_frame(mut self) -> Result<EncodedFrame, EncodeError> {
        let size = self.len() - size_of::<i32>();
        let size = i32::try_from(size).map_err(|_| EncodeError::TooLong(size))?;
        self.buffer[..size_of::<i32>()].copy_from_slice(&size.to_be_bytes());
        Ok(self.finish())
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Adds a payload, which is not copied if it is large.
    pub(crate) fn put_payload(&mut self, payload: &Bytes) {
        if payload.len() < CHUNK_SIZE_MIN {
            return self.put(payload);
        }
        self.payload_size += payload.len();
        self.payloads.push((self.buffer.len(), Payload::Here(payload.clone())));
    }

    /// Leaves a gap for bytes that lie elsewhere.
    pub(crate) fn put_elsewhere(&mut self, elsewhere: Elsewhere) {
        self.payload_size += elsewhere.len;
        self.payloads.push((self.buffer.len(), Payload::Elsewhere(elsewhere)));
    }

    pub(crate) fn uvarint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.buffer.put_u8(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.buffer.put_u8(value.to_le_bytes()[0]);
    }

    fn uvarint_of(&mut self, value: usize) -> Result<(), EncodeError> {
        self.uvarint(u32::try_from(value).map_err(|_| EncodeError::TooLong(value))?);
        Ok(())
    }

    /// The length of a string (`short`), of bytes or of an array; `None` is null.
    pub(crate) fn length(&mut self, length: Option<usize>, flexible: bool, short: bool) -> Result<(), EncodeError> {
        let too_long = |length| move |_| EncodeError::TooLong(length);
        match length {
            Some(length) if short => drop(i16::try_from(length).map_err(too_long(length))?),
            Some(length) => drop(i32::try_from(length).map_err(too_long(length))?),
            None => {}
        }
        match (length, flexible, short) {
            (None, true, _) => self.uvarint(0),
            (Some(length), true, _) => self.uvarint_of(length + 1)?,
            (None, false, true) => self.put(&(-1i16).to_be_bytes()),
            (None, false, false) => self.put(&(-1i32).to_be_bytes()),
            (Some(length), false, true) => self.put(&i16::try_from(length).map_err(too_long(length))?.to_be_bytes()),
            (Some(length), false, false) => self.put(&i32::try_from(length).map_err(too_long(length))?.to_be_bytes()),
        }
        Ok(())
    }

    /// A nullable string in the encoding of the old versions, whatever the version.
    pub(crate) fn legacy_string(&mut self, text: Option<&str>) -> Result<(), EncodeError> {
        self.length(text.map(str::len), false, true)?;
        self.put(text.unwrap_or_default().as_bytes());
        Ok(())
    }

    pub(crate) fn no_tags(&mut self) {
        self.uvarint(0);
    }

    pub(crate) fn tags(&mut self, tags: TagWriter) -> Result<(), EncodeError> {
        self.uvarint(tags.count);
        self.append(tags.body);
        Ok(())
    }

    fn append(&mut self, other: Encoder) {
        let base = self.buffer.len();
        self.buffer.extend_from_slice(&other.buffer);
        self.payloads.extend(other.payloads.into_iter().map(|(position, payload)| (base + position, payload)));
        self.payload_size += other.payload_size;
    }
}

/// The tagged fields of one struct, held back because their number goes first.
#[derive(Debug, Default)]
pub(crate) struct TagWriter {
    count: u32,
    body: Encoder,
}

impl TagWriter {
    /// Adds a field; tags come in ascending order.
    pub(crate) fn add(
        &mut self,
        tag: u32,
        write: impl FnOnce(&mut Encoder) -> Result<(), EncodeError>,
    ) -> Result<(), EncodeError> {
        let mut value = Encoder::new();
        write(&mut value)?;
        self.count += 1;
        self.body.uvarint(tag);
        self.body.uvarint_of(value.len())?;
        self.body.append(value);
        Ok(())
    }
}
