//! HTTP/1.1 with as little work as can be, both ends of it: a server that gives every
//! request the same small answer, and a client that keeps its connection. What a drill
//! measures between the two is then not theirs. It knows no chunks and no pipelining.

use crate::load::Client;
use anyhow::{Context, Result};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Longest head of a message.
const MAX_HEAD: usize = 16 << 10;
/// What the server answers.
const BODY: &str = r#"{"object":"text_completion","choices":[{"index":0,"text":"hello","finish_reason":"stop"}]}"#;

/// Answers on that address for ever.
pub async fn serve(address: &str) -> Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    let length = BODY.len();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{BODY}");
    loop {
        let (stream, _) = listener.accept().await?;
        let answer = answer.clone();
        // A caller that breaks off is no news.
        tokio::spawn(async move { talk(stream, answer.as_bytes()).await.unwrap_or_default() });
    }
}

async fn talk(mut stream: TcpStream, answer: &[u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut held = Vec::new();
    while next(&mut stream, &mut held).await?.is_some() {
        stream.write_all(answer).await?;
    }
    Ok(())
}

/// One client on one connection that says the same each time.
#[derive(Debug)]
pub struct Caller {
    stream: TcpStream,
    request: Vec<u8>,
    held: Vec<u8>,
}

impl Caller {
    /// `address` is `host:port`.
    pub async fn connect(address: &str, path: &str, body: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        let (length, kind) = (body.len(), "content-type: application/json");
        let request =
            format!("POST {path} HTTP/1.1\r\nhost: {address}\r\n{kind}\r\ncontent-length: {length}\r\n\r\n{body}");
        Ok(Self { stream, request: request.into_bytes(), held: Vec::new() })
    }
}

impl Client for Caller {
    async fn call(&mut self) -> Result<(), String> {
        self.stream.write_all(&self.request).await.map_err(|e| e.to_string())?;
        match next(&mut self.stream, &mut self.held).await {
            Ok(Some(head)) if head.starts_with("HTTP/1.1 200 ") => Ok(()),
            Ok(Some(head)) => Err(head.lines().next().unwrap_or_default().to_owned()),
            Ok(None) => Err("the connection was closed".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// The head of the next message; its body is read and dropped. None at the end of the stream.
async fn next(stream: &mut TcpStream, held: &mut Vec<u8>) -> io::Result<Option<String>> {
    let head = loop {
        if let Some(end) = held.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if held.len() > MAX_HEAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a head without an end"));
        }
        if stream.read_buf(held).await? == 0 {
            return if held.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    };
    let text = String::from_utf8_lossy(&held[..head]).into_owned();
    let length = text.lines().filter_map(|line| line.split_once(':'));
    let length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = length.filter_map(|(_, value)| value.trim().parse().ok()).next().unwrap_or(0);
    while held.len() < head + length {
        if stream.read_buf(held).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    held.drain(..head + length);
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_request_gets_its_answer_on_a_connection_that_is_kept() {
        let address = format!("127.0.0.1:{}", crate::ports::free(1).unwrap()[0]);
        let (served, at) = (address.clone(), address.as_str());
        let server = tokio::spawn(async move { serve(&served).await });
        let mut caller = loop {
            match Caller::connect(at, "/x", "{}").await {
                Ok(caller) => break caller,
                Err(error) => assert!(!server.is_finished(), "{error:#}"),
            }
            tokio::task::yield_now().await;
        };
        for _ in 0..3 {
            assert_eq!(caller.call().await, Ok(()));
        }
        server.abort();
    }
}
