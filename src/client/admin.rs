//! The operations that only farmhand serves.

use reqwest::{Method, StatusCode, Url};
use serde::{Serialize, de::DeserializeOwned};

use super::{ClientError, Shaman, error};
use crate::{
    domain::{
        CheckoutPath, Digest,
        report::{CheckoutInfo, Done, Erased, GcReport, ScrubReport, Usage, VerifyReport, Why},
    },
    wire::{self, GcRequest, Line, PinAnswer, PinsAnswer, ScrubRequest, VerifyRequest},
};

/// The longest line of an answer, in bytes: a report with many findings.
const MAX_LINE_BYTES: usize = 64 << 20;

/// How to delete a checkout.
#[derive(Debug, Clone, Copy, Default)]
pub struct EraseRequest {
    /// Also if a job uses it that has not ended.
    pub force: bool,
    /// Removes files that farmhand did not create, too.
    pub with_outputs: bool,
    /// Removes nothing.
    pub dry_run: bool,
}

impl Shaman {
    pub(super) fn admin_url(&self, path: &str) -> Url {
        let text = format!("{}{}/{path}", self.base, &wire::ADMIN[1..]);
        Url::parse(&text).expect("BUG: a base and a plain path make a URL")
    }

    /// Reads something. Tried again like all calls that change nothing.
    async fn look<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        let url = self.admin_url(path);
        let bounds = self.large();
        let call = || self.json::<(), A>(bounds, Method::GET, url.clone(), None);
        Ok(self.retrying(bounds, call, ClientError::is_transient).await?.0)
    }

    /// All checkouts.
    ///
    /// # Errors
    /// If there is no answer after all retries, or the server is not farmhand.
    pub async fn checkouts(&self) -> Result<Vec<CheckoutInfo>, ClientError> {
        self.look("checkouts").await
    }

    /// What fills the store.
    ///
    /// # Errors
    /// As [`Shaman::checkouts`].
    pub async fn usage(&self) -> Result<Usage, ClientError> {
        self.look("usage").await
    }

    /// Why the blobs of a digest are kept.
    ///
    /// # Errors
    /// As [`Shaman::checkouts`].
    pub async fn why(&self, digest: &Digest) -> Result<Why, ClientError> {
        self.look(&format!("blobs/{digest}")).await
    }

    /// All pinned digests.
    ///
    /// # Errors
    /// As [`Shaman::checkouts`].
    pub async fn pins(&self) -> Result<PinsAnswer, ClientError> {
        self.look("pins").await
    }

    /// Keeps a digest whether a checkout holds it or not, or no more.
    ///
    /// # Errors
    /// As [`Shaman::checkouts`].
    pub async fn pin(&self, digest: &Digest, keep: bool) -> Result<PinAnswer, ClientError> {
        let url = self.admin_url(&format!("pins/{digest}"));
        let method = if keep { Method::PUT } else { Method::DELETE };
        let bounds = self.medium();
        let call = || self.json::<(), PinAnswer>(bounds, method.clone(), url.clone(), None);
        Ok(self.retrying(bounds, call, ClientError::is_transient).await?.0)
    }

    /// Deletes a checkout, or says what that would do. Not tried again where the server may have seen it:
    /// then it would be gone, and that look like an error.
    ///
    /// # Errors
    /// [`ClientError::Status`] with 404 if there is none, or 409 if it is not a whole checkout or a job
    /// uses it.
    pub async fn erase(
        &self,
        checkout: &CheckoutPath,
        options: EraseRequest,
    ) -> Result<Erased, ClientError> {
        let mut url = self.admin_url("checkouts");
        let EraseRequest { force, with_outputs, dry_run } = options;
        url.query_pairs_mut().append_pair("path", checkout.as_str());
        for (name, _) in [("force", force), ("with_outputs", with_outputs), ("dry_run", dry_run)]
            .into_iter()
            .filter(|(_, is_set)| *is_set)
        {
            url.query_pairs_mut().append_pair(name, "true");
        }
        let bounds = self.large();
        let call = || self.json::<(), Erased>(bounds, Method::DELETE, url.clone(), None);
        Ok(self.retrying(bounds, call, ClientError::was_not_seen).await?.0)
    }

    /// Removes the blobs that nobody needs.
    ///
    /// # Errors
    /// If the server cannot, or goes away.
    pub async fn gc(
        &self,
        request: &GcRequest,
        progress: impl FnMut(Done),
    ) -> Result<GcReport, ClientError> {
        self.long("gc", request, progress).await
    }

    /// Reads blobs again.
    ///
    /// # Errors
    /// If the server cannot, or goes away.
    pub async fn scrub(
        &self,
        request: &ScrubRequest,
        progress: impl FnMut(Done),
    ) -> Result<ScrubReport, ClientError> {
        self.long("scrub", request, progress).await
    }

    /// Checks that checkouts are whole.
    ///
    /// # Errors
    /// If the server cannot, or goes away.
    pub async fn verify(
        &self,
        request: &VerifyRequest,
        progress: impl FnMut(Done),
    ) -> Result<VerifyReport, ClientError> {
        self.long("verify", request, progress).await
    }

    /// An operation that says once a second how far it is. Dropped, it is stopped.
    async fn long<A: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
        mut progress: impl FnMut(Done),
    ) -> Result<A, ClientError> {
        let url = self.admin_url(path);
        let request = self.request(Method::POST, url.clone()).json(request).send();
        let stalled = |_| ClientError::Unreachable {
            url: self.base.to_string(),
            reason: "it does not answer in time".into(),
            was_sent: true,
        };
        let limit = self.options.stall_timeout;
        let mut answer = tokio::time::timeout(limit, request)
            .await
            .map_err(stalled)?
            .map_err(|error| self.unreachable(&error))?;
        if !answer.status().is_success() {
            return Err(self.error(answer, &url).await);
        }
        let not_ours = |reason: String| ClientError::NotShaman {
            url: self.base.to_string(),
            reason: format!("{} answers something else: {reason}", url.path()),
        };
        let mut text = Vec::new();
        loop {
            if let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                match serde_json::from_slice(&line).map_err(|error| not_ours(error.to_string()))? {
                    Line::Progress(done) => progress(done),
                    Line::Report(report) => return Ok(report),
                    Line::Error { code, message } => {
                        let status =
                            StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                        let (url, path) = (self.base.to_string(), url.path().to_owned());
                        return Err(ClientError::Status { url, path, status, message });
                    }
                }
                continue;
            }
            if text.len() > MAX_LINE_BYTES {
                return Err(not_ours("a line without an end".into()));
            }
            let piece = tokio::time::timeout(limit, answer.chunk())
                .await
                .map_err(stalled)?
                .map_err(|error| self.unreachable(&error))?;
            match piece {
                Some(piece) => text.extend_from_slice(&piece),
                None => {
                    return Err(ClientError::Unreachable {
                        url: self.base.to_string(),
                        reason: error::ENDED_EARLY.into(),
                        was_sent: true,
                    });
                }
            }
        }
    }
}
