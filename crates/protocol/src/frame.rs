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
