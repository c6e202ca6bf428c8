//! Back from a farmhand: the content of a blob, and what a checkout is made of.

use backon::{BackoffBuilder, ExponentialBackoff};
use bytes::{Buf, Bytes};
use reqwest::{Method, Response, StatusCode, Url, header};
use serde::{Deserialize, Deserializer};
use sha2::{Digest as _, Sha256};

use super::{Bounds, ClientError, Shaman, error};
use crate::{
    domain::{BlobId, CheckoutPath, Digest},
    wire::CheckoutRequest,
};

/// The longest answer about what a checkout is made of, in bytes: millions of files.
const MAX_MANIFEST_BYTES: usize = 1 << 30;

/// Why a blob could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// As any other call.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What came is not what its name says.
    #[error("what {url} sends as {blob} is something else: {found}")]
    Damaged {
        /// The server.
        url: String,
        /// What was asked for.
        blob: BlobId,
        /// What came.
        found: String,
    },
}

/// A blob on its way from a server. A connection that breaks is taken up again where it broke.
pub struct Download<'a> {
    server: &'a Shaman,
    id: BlobId,
    url: Url,
    answer: Option<Response>,
    /// What the server calls the content, as far as that says that all bytes are the same.
    etag: Option<header::HeaderValue>,
    done_bytes: u64,
    /// What has come already, and comes again.
    skip_bytes: u64,
    hasher: Sha256,
    /// Since something last came, there were failures; how long to wait after the next ones.
    pauses: Option<ExponentialBackoff>,
}

impl Shaman {
    /// The content of a blob, piece by piece. Nothing is sent before the first is asked for.
    pub fn download(&self, id: BlobId) -> Download<'_> {
        Download {
            server: self,
            id,
            url: self.admin_url(&format!("blobs/{id}")),
            answer: None,
            etag: None,
            done_bytes: 0,
            skip_bytes: 0,
            hasher: Sha256::new(),
            pauses: None,
        }
    }

    /// What a checkout is made of: what would make it again.
    ///
    /// # Errors
    /// [`ClientError::Status`] with 404 if there is no such checkout, with 409 if something in it is no
    /// blob; or as the other calls.
    pub async fn manifest(
        &self,
        checkout: &CheckoutPath,
    ) -> Result<CheckoutRequest<'static>, ClientError> {
        let mut url = self.admin_url("checkouts/manifest");
        url.query_pairs_mut().append_pair("path", checkout.as_str());
        let bounds = Bounds { bytes: MAX_MANIFEST_BYTES, ..self.large() };
        let call = || self.json::<(), Listed>(bounds, Method::GET, url.clone(), None);
        Ok(self.retrying(bounds, call, ClientError::is_transient).await?.0.0)
    }
}

/// What would make a checkout again, as an answer.
struct Listed(CheckoutRequest<'static>);

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        CheckoutRequest::deserialize(deserializer).map(|listed| Self(listed.into_owned()))
    }
}

impl Download<'_> {
    /// The next piece; `None` at the end, and only if all of it is what its name says. What was given out
    /// before an error is not to be relied on.
    ///
    /// # Errors
    /// [`ClientError::Status`] with 404 if the blob is not stored; if it turns out to be something else;
    /// if the server cannot be reached after all retries, which count anew with each byte that comes.
    pub async fn next(&mut self) -> Result<Option<Bytes>, DownloadError> {
        loop {
            match self.try_next().await {
                Ok(Some(piece)) if piece.is_empty() => {}
                Ok(Some(piece)) => {
                    self.hasher.update(&piece);
                    self.done_bytes += piece.len() as u64;
                    if self.done_bytes > self.id.size_bytes {
                        let found = format!("it is longer than {} bytes", self.id.size_bytes);
                        return Err(self.damaged(found));
                    }
                    self.pauses = None;
                    return Ok(Some(piece));
                }
                Ok(None) => return self.verified().map(|()| None),
                Err(error) if error.is_transient() => {
                    self.answer = None;
                    let pauses = || self.server.pauses().build();
                    let Some(pause) = self.pauses.get_or_insert_with(pauses).next() else {
                        return Err(error.into());
                    };
                    let at = self.done_bytes;
                    tracing::debug!("going on at {at} in {} ms: {error}", pause.as_millis());
                    tokio::time::sleep(pause).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn try_next(&mut self) -> Result<Option<Bytes>, ClientError> {
        if self.answer.is_none() {
            // All is here, and only the end of the answer was missing.
            if self.done_bytes > 0 && self.done_bytes == self.id.size_bytes {
                return Ok(None);
            }
            self.answer = Some(self.ask().await?);
        }
        let Some(answer) = &mut self.answer else { return Ok(None) };
        let piece = tokio::time::timeout(self.server.options.stall_timeout, answer.chunk()).await;
        match piece.map_err(|_| self.broken("nothing comes any more"))? {
            Ok(Some(mut piece)) => {
                let skip = self.skip_bytes.min(piece.len() as u64);
                self.skip_bytes -= skip;
                piece.advance(usize::try_from(skip).unwrap_or(piece.len()));
                Ok(Some(piece))
            }
            Ok(None) if self.done_bytes < self.id.size_bytes => Err(self.broken(error::CUT_SHORT)),
            Ok(None) => Ok(None),
            Err(error) => Err(self.server.unreachable(&error)),
        }
    }

    /// Asks for what is still missing.
    async fn ask(&mut self) -> Result<Response, ClientError> {
        let (from, size) = (self.done_bytes, self.id.size_bytes);
        let mut request = self.server.request(Method::GET, self.url.clone());
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
            if let Some(etag) = &self.etag {
                request = request.header(header::IF_RANGE, etag);
            }
        }
        let answer = tokio::time::timeout(self.server.options.stall_timeout, request.send()).await;
        let answer = answer
            .map_err(|_| self.broken("it does not answer in time"))?
            .map_err(|error| self.server.unreachable(&error))?;
        match answer.status() {
            StatusCode::OK => {
                let etag = answer.headers().get(header::ETAG);
                self.etag = etag.filter(|tag| !tag.as_bytes().starts_with(b"W/")).cloned();
                // Something on the way knows no ranges: the name says that the beginning is the same,
                // and the end shows whether it was.
                self.skip_bytes = from;
                Ok(answer)
            }
            StatusCode::PARTIAL_CONTENT => {
                let expected = format!("bytes {from}-{}/{size}", size.saturating_sub(1));
                let range = answer.headers().get(header::CONTENT_RANGE);
                self.skip_bytes = 0;
                if from > 0 && range.is_some_and(|range| *range == *expected) {
                    return Ok(answer);
                }
                Err(ClientError::NotShaman {
                    url: self.server.shown_url(),
                    reason: format!("asked for {expected}, it sends {range:?}"),
                })
            }
            _ => Err(self.server.error(answer, &self.url).await),
        }
    }

    fn verified(&self) -> Result<(), DownloadError> {
        let digest = Digest::from_bytes(self.hasher.clone().finalize().into());
        let found = BlobId { digest, size_bytes: self.done_bytes };
        if found == self.id { Ok(()) } else { Err(self.damaged(format!("it is {found}"))) }
    }

    fn damaged(&self, found: String) -> DownloadError {
        DownloadError::Damaged { url: self.server.shown_url(), blob: self.id, found }
    }

    fn broken(&self, reason: &str) -> ClientError {
        let (url, reason) = (self.server.shown_url(), reason.to_owned());
        ClientError::Unreachable { url, reason, was_sent: true }
    }
}
