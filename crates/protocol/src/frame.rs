//! Whole frames: the size in front, the header, the message.

use bytes::BytesMut;

use crate::api::{ApiKey, request_header_version, response_header_version};
use crate::decoder::Decoder;
use crate::encoder::{EncodedFrame, Encoder};
use crate::error::{DecodeError, EncodeError};
use crate::message::{Message, Request, Response};
use crate::messages::{RequestHeader, ResponseHeader};

/// The header of a request, with its API resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// The API.
    pub api: ApiKey,
    /// The version that the client chose, which may be one that is not served.
    pub version: i16,
    /// To be repeated in the response.
    pub correlation_id: i32,
    /// The name that the client gives itself.
    pub client_id: Option<String>,
}

/// Reads the header at the beginning of a request frame (without its size), and leaves the decoder at the body.
///
/// The version is not checked: a request in a version out of [`ApiKey::versions`] is answered with
/// UNSUPPORTED_VERSION if it is ApiVersions, by closing the connection otherwise.
///
/// # Errors
/// If the bytes are no header, or the API does not exist.
pub fn decode_request_head(decoder: &mut Decoder) -> Result<RequestHead, DecodeError> {
    let Some(&[key_high, key_low, version_high, version_low]) = decoder.peek().first_chunk::<4>() else {
        return Err(DecodeError::Truncated { needed: 4, remaining: decoder.remaining() });
    };
    let key = i16::from_be_bytes([key_high, key_low]);
    let version = i16::from_be_bytes([version_high, version_low]);
    let api = ApiKey::from_key(key).ok_or(DecodeError::UnknownApi(key))?;
    let header = RequestHeader::decode(decoder, request_header_version(api, version))?;
    Ok(RequestHead { api, version, correlation_id: header.correlation_id, client_id: header.client_id })
}

/// A request as a client sends it, its size in front.
///
/// Records in requests are copied: only clients, which are tests and tools here, encode them.
///
/// # Errors
/// If the version cannot express the request.
pub fn encode_request<R: Request>(
    request: &R,
    version: i16,
    correlation_id: i32,
    client_id: Option<&str>,
) -> Result<EncodedFrame, EncodeError> {
    let header = RequestHeader {
        request_api_key: R::API.key(),
        request_api_version: version,
        correlation_id,
        client_id: client_id.map(str::to_owned),
    };
    let mut encoder = sized();
    header.encode(&mut encoder, request_header_version(R::API, version))?;
    request.encode(&mut encoder, version)?;
    encoder.finish_frame()
}

/// A response as a broker sends it, its size in front; large payloads are chunks of their own.
///
/// # Errors
/// If the version cannot express the response.
pub fn encode_response<R: Response>(
    response: &R,
    version: i16,
    correlation_id: i32,
) -> Result<EncodedFrame, EncodeError> {
    let mut encoder = sized();
    ResponseHeader { correlation_id }.encode(&mut encoder, response_header_version(R::API, version))?;
    response.encode(&mut encoder, version)?;
    encoder.finish_frame()
}

/// Reads a response frame (without its size): its correlation id and body.
///
/// # Errors
/// If the bytes are not this response in this version.
pub fn decode_response<R: Response>(frame: BytesMut, version: i16) -> Result<(i32, R), DecodeError> {
    let mut decoder = Decoder::new(frame);
    let header = ResponseHeader::decode(&mut decoder, response_header_version(R::API, version))?;
    Ok((header.correlation_id, R::decode_all(&mut decoder, version)?))
}

fn sized() -> Encoder {
    let mut encoder = Encoder::new();
    encoder.put(&[0; size_of::<i32>()]);
    encoder
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::messages::{
        ApiVersionsRequest, ApiVersionsResponse, FetchResponse, MetadataResponse, ProduceRequest, fetch_response,
        metadata_response, produce_request,
    };
    use crate::payload::{Elsewhere, Records};

    fn fetched(records: Records) -> FetchResponse {
        let partition = fetch_response::PartitionData { records: Some(records), ..Default::default() };
        let topic = fetch_response::FetchableTopicResponse { partitions: vec![partition], ..Default::default() };
        FetchResponse { responses: vec![topic], ..Default::default() }
    }

    #[test]
    fn records_of_a_fetch_response_are_sent_from_where_they_lie() {
        let batches = [Bytes::from(vec![1; 4_000]), Bytes::from(vec![2; 2_000])];
        let response = fetched(batches.iter().cloned().collect());
        for version in ApiKey::Fetch.versions() {
            let frame = encode_response(&response, version, 5).unwrap();
            assert_eq!(frame.len, frame.chunks.iter().map(Bytes::len).sum::<usize>());
            let places: Vec<*const u8> = frame.chunks.iter().map(|chunk| chunk.as_ptr()).collect();
            assert!(batches.iter().all(|batch| places.contains(&batch.as_ptr())), "version {version} copied");
            let mut bytes = BytesMut::from(frame.into_bytes());
            let size = bytes.split_to(4);
            assert_eq!(size[..], i32::try_from(bytes.len()).unwrap().to_be_bytes());
            let (correlation_id, read) = decode_response::<FetchResponse>(bytes, version).unwrap();
            assert_eq!(correlation_id, 5);
            assert_eq!(read.responses[0].partitions[0].records, response.responses[0].partitions[0].records);
        }
    }

    #[test]
    fn records_that_lie_elsewhere_leave_a_gap_of_their_length() {
        let bytes: Vec<u8> = (0..9_000_u32).flat_map(u32::to_be_bytes).collect();
        let elsewhere = Elsewhere { number: 3, len: bytes.len() };
        for version in ApiKey::Fetch.versions() {
            let whole = encode_response(&fetched(Bytes::from(bytes.clone()).into()), version, 5).unwrap().into_bytes();
            let frame = encode_response(&fetched(Records::lying_elsewhere(elsewhere)), version, 5).unwrap();
            assert_eq!((frame.len, frame.gaps.len(), frame.gaps[0].elsewhere), (whole.len(), 1, elsewhere));
            let (before, behind) = frame.chunks.split_at(frame.gaps[0].before);
            let filled = [before.concat(), bytes.clone(), behind.concat()].concat();
            assert!(filled == whole, "version {version}");
        }
    }

    #[test]
    fn small_records_are_copied_into_one_chunk() {
        let frame = encode_response(&fetched(Bytes::from(vec![1; 100]).into()), 12, 5).unwrap();
        assert_eq!(frame.chunks.len(), 1);
    }

    #[test]
    fn records_of_a_produce_request_are_the_bytes_of_the_frame_and_owned_alone() {
        let records = Some(BytesMut::from(&[7; 3_000][..]));
        let partition = produce_request::PartitionProduceData { index: 0, records };
        let topic = produce_request::TopicProduceData { partition_data: vec![partition], ..Default::default() };
        let request = ProduceRequest { topic_data: vec![topic], acks: -1, ..Default::default() };
        for version in ApiKey::Produce.versions() {
            let frame = encode_request(&request, version, 9, None).unwrap().into_bytes();
            let frame = BytesMut::from(&frame[4..]);
            let (start, end) = (frame.as_ptr() as usize, frame.as_ptr() as usize + frame.len());
            let mut decoder = Decoder::new(frame);
            let head = decode_request_head(&mut decoder).unwrap();
            assert_eq!(head, RequestHead { api: ApiKey::Produce, version, correlation_id: 9, client_id: None });
            let mut read = ProduceRequest::decode_all(&mut decoder, version).unwrap();
            assert_eq!(read, request);
            let mut records = read.topic_data[0].partition_data[0].records.take().unwrap();
            let place = records.as_ptr() as usize;
            assert!(place >= start && place + records.len() <= end, "version {version} copied");
            records[..8].copy_from_slice(&[9; 8]);
            assert_eq!(records.freeze().as_ptr() as usize, place, "stamped and frozen without a copy");
        }
    }

    #[test]
    fn a_header_of_an_unknown_version_of_api_versions_can_still_be_answered() {
        let mut encoder = Encoder::new();
        let header = RequestHeader {
            request_api_key: 18,
            request_api_version: 99,
            correlation_id: 3,
            client_id: Some("future".to_owned()),
        };
        header.encode(&mut encoder, 2).unwrap();
        encoder.put(b"whatever follows");
        let mut decoder = Decoder::from_slice(&encoder.finish().into_bytes());
        let head = decode_request_head(&mut decoder).unwrap();
        assert_eq!((head.api, head.version, head.correlation_id), (ApiKey::ApiVersions, 99, 3));
        assert!(!head.api.versions().contains(&head.version));
        assert!(ApiVersionsRequest::decode(&mut decoder, head.version).is_err());
        let answer = ApiVersionsResponse { error_code: 35, ..Default::default() };
        assert_eq!(
            encode_response(&answer, 0, 3).unwrap().into_bytes()[..],
            [0, 0, 0, 10, 0, 0, 0, 3, 0, 35, 0, 0, 0, 0]
        );
    }

    #[test]
    fn an_unknown_api_and_a_short_header_are_errors() {
        let head = |bytes: &[u8]| decode_request_head(&mut Decoder::from_slice(bytes));
        assert_eq!(head(&[0, 93, 0, 0, 0, 0, 0, 1, 255, 255]), Err(DecodeError::UnknownApi(93)));
        assert_eq!(head(&[0, 3, 0]), Err(DecodeError::Truncated { needed: 4, remaining: 3 }));
        assert!(head(&[0, 3, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn a_null_that_a_version_cannot_say_is_refused_and_a_field_it_does_not_have_is_left_out() {
        let topic = metadata_response::MetadataResponseTopic { name: None, ..Default::default() };
        let response = MetadataResponse { topics: vec![topic], ..Default::default() };
        assert!(encode_response(&response, 12, 1).is_ok());
        assert_eq!(encode_response(&response, 11, 1), Err(EncodeError::UnexpectedNull("Name")));
        let late = MetadataResponse { cluster_id: Some("c".to_owned()), throttle_time_ms: 5, ..Default::default() };
        assert_eq!(encode_response(&late, 0, 1), encode_response(&MetadataResponse::default(), 0, 1));
        let unknown = EncodeError::UnknownVersion { message: "Metadata response", version: 14 };
        assert_eq!(encode_response(&late, 14, 1), Err(unknown));
    }

    #[test]
    fn a_string_longer_than_its_length_field_is_refused() {
        for version in [8, 12] {
            let cluster_id = Some("c".repeat(32_768));
            let response = MetadataResponse { cluster_id, ..Default::default() };
            assert_eq!(encode_response(&response, version, 1), Err(EncodeError::TooLong(32_768)));
        }
    }
}
