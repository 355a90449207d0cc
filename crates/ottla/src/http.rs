//! A plain HTTP/1.1 GET: what the supervisor and `ottla health` need of a node's HTTP port, and no more.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(1);
/// The largest answer that is read.
const ANSWER_MAX: u64 = 4 << 20;

/// An answer: its status code, and its body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: String,
}

/// Asks for `path` at `address`, for a second at most.
pub(crate) async fn get(address: &str, path: &str) -> Result<Answer> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.0\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.take(ANSWER_MAX).read_to_string(&mut answer).await?;
        parse(&answer).with_context(|| format!("{address} does not speak HTTP"))
    };
    tokio::time::timeout(PATIENCE, asked)
        .await
        .with_context(|| format!("{address} did not answer within {PATIENCE:?}"))?
        .with_context(|| format!("cannot ask {address}"))
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let code = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { code, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_code_and_a_body() {
        let read = parse("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nwhy\n");
        assert_eq!(read, Some(Answer { code: 503, body: "why\n".to_owned() }));
        assert_eq!(parse("SSH-2.0-OpenSSH\r\n\r\n"), None);
    }
}
