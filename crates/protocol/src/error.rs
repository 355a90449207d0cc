//! What can be wrong with bytes that came in, or with a message that is to go out.

/// The bytes are not a message. The connection that sent them is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A field reaches beyond the end of the bytes.
    #[error("bytes end early: {needed} needed, {remaining} left")]
    Truncated {
        /// What the field takes at least.
        needed: usize,
        /// What is left.
        remaining: usize,
    },
    /// The message ended before the bytes did.
    #[error("{count} bytes left over after the message")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// A length below -1, or a string longer than 32,767 bytes.
    #[error("a length of {0} is not valid")]
    BadLength(i64),
    /// A null where the version allows none.
    #[error("null in a field that cannot be null")]
    UnexpectedNull,
    /// A variable-length integer with more bits than its type.
    #[error("a varint is too long")]
    BadVarint,
    /// A string that is not UTF-8.
    #[error("a string is not UTF-8")]
    BadUtf8,
    /// Tags that do not ascend, or are too many.
    #[error("tagged fields are repeated, out of order or too many")]
    BadTags,
    /// A tagged field whose value has another size than it announced.
    #[error("tag {tag} announced {announced} bytes and took {taken}")]
    BadTagSize {
        /// The tag.
        tag: u32,
        /// Its size in the bytes.
        announced: usize,
        /// What its value was.
        taken: usize,
    },
    /// The message would take far more memory than it has bytes: its arrays are made of next to nothing.
    #[error("the message would take more memory than its size allows")]
    TooMuchMemory,
    /// The type has no such version.
    #[error("{message} has no version {version}")]
    UnknownVersion {
        /// The name of the message.
        message: &'static str,
        /// The version asked for.
        version: i16,
    },
    /// A stored record of another type than the one asked for.
    #[error("a record key of type {found}, not {expected}")]
    WrongRecordType {
        /// The type asked for.
        expected: i16,
        /// The type of the bytes.
        found: i16,
    },
    /// A request for an API that does not exist.
    #[error("no API has the key {0}")]
    UnknownApi(i16),
}

/// A value that its version cannot express.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The type has no such version.
    #[error("{message} has no version {version}")]
    UnknownVersion {
        /// The name of the message.
        message: &'static str,
        /// The version asked for.
        version: i16,
    },
    /// A null in a field that cannot be null in this version: give it a value.
    #[error("{0} cannot be null in this version: give it a value")]
    UnexpectedNull(&'static str),
    /// A string, array or message longer than its length field can say.
    #[error("a length of {0} does not fit its field: send less at once")]
    TooLong(usize),
}
