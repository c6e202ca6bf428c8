//! The server that is checked: plain requests, no retries, nothing interpreted.

use std::time::Duration;

use reqwest::{Method, StatusCode, Url, header};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{
    client::{ClientError, Options, Shaman},
    domain::{BlobId, Digest},
    wire,
};

/// Why a server cannot be checked.
pub type TargetError = ClientError;

/// How long a server may take for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// A server to check.
#[derive(Debug)]
pub struct Target {
    shaman: Shaman,
    pub(super) base: Url,
    /// In the names of this run's checkouts.
    pub(super) run: String,
}

/// A status and a body.
pub(super) struct Answer {
    pub status: StatusCode,
    pub body: Value,
    /// The body as text, for reports.
    pub text: String,
    /// Its `Content-Type`, without parameters.
    pub kind: String,
}

/// Content that no server has, and its name.
pub(super) struct Content {
    pub id: BlobId,
    pub bytes: Vec<u8>,
}

impl Content {
    pub fn new(bytes: Vec<u8>) -> Self {
        let digest = Digest::from_bytes(Sha256::digest(&bytes).into());
        Self { id: BlobId { digest, size_bytes: bytes.len() as u64 }, bytes }
    }

    pub fn random(size: usize) -> Self {
        Self::new(std::iter::repeat_with(|| fastrand::u8(..)).take(size).collect())
    }

    /// As an element of `files`.
    pub fn file(&self, path: &str) -> Value {
        serde_json::json!({
            "sha": self.id.digest.to_string(), "size": self.id.size_bytes, "path": path
        })
    }
}

impl Target {
    /// The server at this URL.
    ///
    /// # Errors
    /// If that is no URL.
    pub fn new(url: &str) -> Result<Self, TargetError> {
        Self::with(url, Options::default())
    }

    /// The server at this URL, with a token or certificates of its own.
    ///
    /// # Errors
    /// If that is no URL.
    pub fn with(url: &str, options: Options) -> Result<Self, TargetError> {
        let shaman = Shaman::new(url, Options { retries: 2, ..options })?;
        let base = shaman.url().clone();
        let run = std::iter::repeat_with(fastrand::alphanumeric).take(8).collect();
        Ok(Self { shaman, base, run })
    }

    /// Whether anybody is there at all.
    pub(super) async fn reach(&self) -> Result<(), TargetError> {
        self.shaman.status(&Content::random(8).id).await.map(drop)
    }

    /// Sends a request to an endpoint below `/api/v3/shaman/`.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Answer, String> {
        let url = format!("{}{}/{path}", self.base, &wire::SHAMAN[1..]);
        let url = Url::parse(&url).map_err(|error| error.to_string())?;
        let mut request = self.shaman.request(method.clone(), url).timeout(ANSWER_TIMEOUT);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if method == Method::POST {
            request = request.body(body);
        }
        let answer = request
            .send()
            .await
            .map_err(|error| format!("no answer: {:?}", error.without_url()))?;
        let status = answer.status();
        let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().to_owned();
        let text = answer
            .text()
            .await
            .map_err(|error| format!("half an answer: {}", error.without_url()))?;
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        let text = wire::hide_tokens(&text).chars().take(200).collect();
        Ok(Answer { status, body, text, kind })
    }

    pub(super) async fn status(&self, id: &BlobId) -> Result<String, String> {
        let answer = self.send(Method::GET, &format!("files/{id}"), &[], Vec::new()).await?;
        answer.is(&[200])?;
        match answer.body["status"].as_str() {
            Some(status) => Ok(status.to_owned()),
            None => Err(format!("no status in {}", answer.text)),
        }
    }

    pub(super) async fn upload(&self, id: &BlobId, bytes: &[u8]) -> Result<Answer, String> {
        // In the add-on's spelling.
        let headers = [
            ("content-type", "application/octet-stream"),
            (wire::CAN_DEFER, "False"),
            (wire::ORIGINAL_FILENAME, "=?utf-8?q?farmhand_conformance=2Ebin?="),
        ];
        self.send(Method::POST, &format!("files/{id}"), &headers, bytes.to_vec()).await
    }

    pub(super) async fn post_json(&self, path: &str, body: &Value) -> Result<Answer, String> {
        let headers = [(header::CONTENT_TYPE.as_str(), "application/json")];
        self.send(Method::POST, path, &headers, body.to_string().into_bytes()).await
    }
}

impl Answer {
    /// Whether the status is one of these.
    pub fn is(&self, expected: &[u16]) -> Result<(), String> {
        if expected.contains(&self.status.as_u16()) {
            return Ok(());
        }
        let expected: Vec<_> = expected.iter().map(u16::to_string).collect();
        Err(format!("{} instead of {}: {}", self.status.as_u16(), expected.join(" or "), self.text))
    }

    pub fn is_client_error(&self) -> Result<(), String> {
        if self.status.is_client_error() {
            return Ok(());
        }
        Err(format!("{} instead of 4xx: {}", self.status.as_u16(), self.text))
    }
}
