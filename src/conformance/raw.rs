//! Requests as bytes on a connection of their own, for what no HTTP client does.

use std::time::Duration;

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use super::{Miss, target::Target};
use crate::{domain::BlobId, wire};

/// How long a server may take for one answer, or to take what is sent.
const PATIENCE: Duration = Duration::from_secs(30);

/// A bare connection.
pub(super) struct Raw {
    stream: BufReader<TcpStream>,
    host: String,
    prefix: String,
}

impl Raw {
    pub async fn connect(target: &Target) -> Result<Self, Miss> {
        let url = &target.base;
        if url.scheme() != "http" {
            return Err(Miss::NotAsked("only over plain http".into()));
        }
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let port = url.port_or_known_default().unwrap_or(80);
        let connecting = tokio::time::timeout(PATIENCE, TcpStream::connect((host, port)));
        let stream = match connecting.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(format!("no connection: {error}").into()),
            Err(_) => return Err("no connection in time".to_owned().into()),
        };
        let host = url.authority().to_owned();
        let prefix = format!("{}{}/", url.path(), &wire::SHAMAN[1..]);
        Ok(Self { stream: BufReader::new(stream), host, prefix })
    }

    /// Sends the head of a request to an endpoint below `/api/v3/shaman/`. The headers end with a line break.
    pub async fn head(&mut self, method: &str, path: &str, headers: &str) -> Result<(), String> {
        let (prefix, host) = (&self.prefix, &self.host);
        let head = format!(
            "{method} {prefix}{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n"
        );
        self.body(head.as_bytes()).await
    }

    /// Sends the head of an upload.
    pub async fn upload(&mut self, id: &BlobId, headers: &str) -> Result<(), String> {
        let length = format!("Content-Length: {}\r\n{headers}", id.size_bytes);
        self.head("POST", &format!("files/{id}"), &length).await
    }

    /// Sends bytes.
    pub async fn body(&mut self, bytes: &[u8]) -> Result<(), String> {
        match tokio::time::timeout(PATIENCE, self.stream.write_all(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("the connection broke during the request: {error}")),
            Err(_) => Err("the request is not taken".into()),
        }
    }

    /// The status that is answered.
    pub async fn status(&mut self) -> Result<u16, String> {
        let mut line = String::new();
        match tokio::time::timeout(PATIENCE, self.stream.read_line(&mut line)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(format!("no answer: {error}")),
            Err(_) => return Err("no answer in time".into()),
        }
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
        status.ok_or_else(|| format!("no answer but {line:?}"))
    }

    /// Waits until something is answered, but no longer than this. Whether it was.
    pub async fn answers_within(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.stream.fill_buf()).await.is_ok()
    }

    /// Whether this is the status that is answered.
    pub async fn is(&mut self, expected: &[u16]) -> Result<(), String> {
        let status = self.status().await?;
        if expected.contains(&status) {
            return Ok(());
        }
        let expected: Vec<_> = expected.iter().map(u16::to_string).collect();
        Err(format!("{status} instead of {}", expected.join(" or ")))
    }

    /// What comes behind the head of the answer until its end.
    pub async fn rest(&mut self) -> Result<Vec<u8>, String> {
        let mut all = Vec::new();
        match tokio::time::timeout(PATIENCE, self.stream.read_to_end(&mut all)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(format!("half an answer: {error}")),
            Err(_) => return Err("the answer does not end".into()),
        }
        let head = all.windows(4).position(|four| four == b"\r\n\r\n").ok_or("half a head")?;
        Ok(all.split_off(head + 4))
    }
}
