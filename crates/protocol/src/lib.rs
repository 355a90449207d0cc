//! The Kafka protocol: every message in every version, read and written within bounds.
//!
//! The types come from the tables in `schema/` by `build.rs`. A message has all fields of all its versions; the version
//! is an argument of [`Message::decode`] and [`Message::encode`]. Strings are `String`, bytes are `Bytes`, uuids are
//! `Uuid`, nullable things are `Option`s. Records are `BytesMut` in requests (split off the frame, so that whoever
//! appends them owns the region alone and stamps offset and epoch in place) and [`Records`] in responses (a list of
//! chunks, so that a fetch carries many batches uncopied).
//!
//! ```
//! use bytes::{Bytes, BytesMut};
//! use protocol::messages::{FetchResponse, ProduceRequest, ProduceResponse, fetch_response, produce_request};
//! use protocol::{ApiKey, Decoder, Message, Records, decode_request_head, encode_request, encode_response};
//!
//! // A client sends a request; on the wire an int32 size stands in front of it.
//! let mut request = ProduceRequest { acks: -1, timeout_ms: 1_000, ..Default::default() };
//! let partition = produce_request::PartitionProduceData { index: 0, records: Some(BytesMut::from("batch")) };
//! let topic_data = produce_request::TopicProduceData { partition_data: vec![partition], ..Default::default() };
//! request.topic_data.push(topic_data);
//! let sent = encode_request(&request, 13, 7, Some("client")).unwrap().into_bytes();
//!
//! // A broker reads the frame behind the size.
//! let mut decoder = Decoder::new(BytesMut::from(&sent[4..]));
//! let head = decode_request_head(&mut decoder).unwrap();
//! assert_eq!((head.api, head.version, head.correlation_id), (ApiKey::Produce, 13, 7));
//! assert!(head.api.versions().contains(&head.version));
//! let mut read = ProduceRequest::decode_all(&mut decoder, head.version).unwrap();
//! let records: Option<BytesMut> = read.topic_data[0].partition_data[0].records.take();
//! assert_eq!(records.unwrap(), "batch");
//!
//! // It answers with chunks: what is large is not copied, and is best sent with one vectored write.
//! let batches: Records = [Bytes::from(vec![1; 5_000]), Bytes::from(vec![2; 5_000])].into_iter().collect();
//! let partition = fetch_response::PartitionData { records: Some(batches), ..Default::default() };
//! let topic = fetch_response::FetchableTopicResponse { partitions: vec![partition], ..Default::default() };
//! let frame = encode_response(&FetchResponse { responses: vec![topic], ..Default::default() }, 17, 8).unwrap();
//! assert_eq!(frame.chunks.len(), 4);
//! assert_eq!(frame.chunks.iter().map(Bytes::len).sum::<usize>(), frame.len);
//! ```

mod api;
mod decoder;
mod encoder;
mod error;
mod frame;
#[cfg(feature = "json")]
pub mod json;
mod message;
pub mod messages;
mod payload;
pub mod records;
pub mod wire;

pub use api::{ApiKey, Listener, request_header_version, response_header_version};
pub use decoder::{Decoder, MEMORY_FLOOR, MEMORY_PER_BYTE};
pub use encoder::{CHUNK_SIZE_MIN, EncodedFrame, Encoder, Gap};
pub use error::{DecodeError, EncodeError};
pub use frame::{RequestHead, decode_request_head, decode_response, encode_request, encode_response};
pub use message::{Message, RecordKey, Request, Response};
pub use payload::{Elsewhere, Records};
