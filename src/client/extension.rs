//! What farmhand's server can do beside Shaman: `docs/EXTENSION.md`.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;

use super::{ClientError, MAX_ANSWER_BYTES, Shaman, Told, UploadBody, UploadOutcome};
use crate::{
    domain::BlobId,
    wire::{
        self, BatchAnswer, BatchResult, BeginAnswer, Capabilities, KnownAnswer, RecipeAnswer, Run,
    },
};

/// How long a server may think about what it can do: it asks nobody for that.
const CAPABILITIES_TIMEOUT: Duration = Duration::from_secs(20);

/// The longest answer to that which makes sense, in bytes.
const MAX_CAPABILITIES_BYTES: usize = 64 << 10;

/// A blob that is sent in pieces.
#[derive(Debug, Clone, Copy)]
pub struct Unfinished<'a> {
    /// Which.
    pub id: BlobId,
    /// Who sends it: letters and digits that no other client has.
    pub sender: &'a str,
}

impl Shaman {
    /// What the server can do beside Shaman. A server that says nothing of that, or nothing that makes sense,
    /// can do nothing of it. Asked once: whatever is wrong shows with the next request.
    pub async fn capabilities(&self) -> Capabilities {
        let request =
            self.request(Method::GET, self.admin_url("capabilities")).timeout(CAPABILITIES_TIMEOUT);
        let Ok(mut answer) = request.send().await else { return Capabilities::default() };
        if answer.status() != StatusCode::OK {
            return Capabilities::default();
        }
        let mut text = Vec::new();
        while let Ok(Some(piece)) = answer.chunk().await
            && text.len() <= MAX_CAPABILITIES_BYTES
        {
            text.extend_from_slice(&piece);
        }
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// How many of these chunks (entries of a recipe) the server knows.
    ///
    /// # Errors
    /// Where trying again is of no use.
    pub async fn known_chunks(&self, sample: Bytes) -> Told<u32> {
        let request = self.request(Method::POST, self.admin_url("chunks/known"));
        let answer = self.send(request, Some(UploadBody::Whole(sample)), None).await?;
        self.read_told::<KnownAnswer>(answer).await.map(|read| read.map(|answer| answer.known))
    }

    /// Begins a blob, or goes on.
    ///
    /// # Errors
    /// Where trying again is of no use.
    pub async fn begin_unfinished(&self, unfinished: Unfinished<'_>) -> Told<BeginAnswer> {
        let answer = self.send(self.about(Method::POST, unfinished, ""), None, None).await?;
        self.read_told(answer).await
    }

    /// Says of what chunks (entries of a recipe) it is made from `offset` on; returns which must be sent.
    ///
    /// # Errors
    /// Where trying again is of no use; [`ClientError::Status`] with 409 if they do not fit to what is
    /// there.
    pub async fn lay_unfinished(
        &self,
        unfinished: Unfinished<'_>,
        offset: u64,
        recipe: Bytes,
    ) -> Told<Vec<Run>> {
        let request = self.about(Method::POST, unfinished, "/recipe").query(&[("offset", offset)]);
        let answer = self.send(request, Some(UploadBody::Whole(recipe)), None).await?;
        self.read_told::<RecipeAnswer>(answer).await.map(|read| read.map(|answer| answer.missing))
    }

    /// Sends chunks of it (frames), of any number.
    ///
    /// # Errors
    /// As [`Shaman::lay_unfinished`].
    pub async fn send_unfinished(
        &self,
        unfinished: Unfinished<'_>,
        chunks: UploadBody,
    ) -> Told<()> {
        let request = self.about(Method::POST, unfinished, "/chunks");
        Ok(self.send(request, Some(chunks), None).await?.map(drop))
    }

    /// Has it stored. `name` is for the people who read the server's log.
    ///
    /// # Errors
    /// As [`Shaman::lay_unfinished`].
    pub async fn finish_unfinished(
        &self,
        unfinished: Unfinished<'_>,
        name: &str,
    ) -> Result<UploadOutcome, ClientError> {
        let request = self
            .about(Method::POST, unfinished, "/finish")
            .header(wire::ORIGINAL_FILENAME, wire::encode_filename(name));
        Ok(match self.send(request, None, None).await? {
            Ok(_) => UploadOutcome::Stored,
            Err(outcome) => outcome,
        })
    }

    /// Gives it up, so that it can be sent as a whole.
    ///
    /// # Errors
    /// Where trying again is of no use.
    pub async fn abandon_unfinished(&self, unfinished: Unfinished<'_>) -> Told<()> {
        let request = self.about(Method::DELETE, unfinished, "");
        Ok(self.send(request, None, None).await?.map(drop))
    }

    /// Sends many small blobs (frames), and returns what became of each.
    ///
    /// # Errors
    /// Where trying again is of no use. What is wrong with one blob alone is among its outcomes.
    pub async fn send_batch(
        &self,
        blobs: UploadBody,
        count: usize,
    ) -> Told<Vec<Result<UploadOutcome, ClientError>>> {
        let url = self.admin_url("batch");
        let path = url.path().to_owned();
        let answer = self.send(self.request(Method::POST, url), Some(blobs), None).await?;
        let answer: BatchAnswer = match self.read_told(answer).await? {
            Ok(answer) => answer,
            Err(outcome) => return Ok(Err(outcome)),
        };
        if answer.blobs.len() != count {
            let reason = format!("it tells of {} files of {count}", answer.blobs.len());
            return Err(self.not_ours(reason));
        }
        Ok(Ok(answer.blobs.into_iter().map(|blob| self.outcome(&path, blob)).collect()))
    }

    /// What became of one blob of a batch.
    fn outcome(&self, path: &str, blob: BatchResult) -> Result<UploadOutcome, ClientError> {
        let status = StatusCode::from_u16(blob.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let error =
            || ClientError::from_answer(&self.shown_url(), path, status, blob.message.clone());
        Ok(match status {
            StatusCode::OK | StatusCode::NO_CONTENT => UploadOutcome::Stored,
            StatusCode::ALREADY_REPORTED => UploadOutcome::AlreadyStored,
            StatusCode::TOO_EARLY => UploadOutcome::Deferred,
            StatusCode::EXPECTATION_FAILED => UploadOutcome::Rejected(error().to_string()),
            _ if error().is_transient() => {
                UploadOutcome::Later { reason: error().to_string(), pause: None, reached: true }
            }
            _ => return Err(error()),
        })
    }

    /// A request about a blob that is sent in pieces.
    fn about(&self, method: Method, unfinished: Unfinished<'_>, what: &str) -> RequestBuilder {
        let url = self.admin_url(&format!("unfinished/{}{what}", unfinished.id));
        self.request(method, url).header(wire::SENDER, unfinished.sender)
    }

    /// Reads a JSON answer.
    async fn read_told<A: DeserializeOwned>(
        &self,
        answer: Result<Response, UploadOutcome>,
    ) -> Told<A> {
        let answer = match answer {
            Ok(answer) => answer,
            Err(outcome) => return Ok(Err(outcome)),
        };
        let limit = self.options.stall_timeout;
        match tokio::time::timeout(limit, self.whole(answer, MAX_ANSWER_BYTES)).await {
            Ok(Ok(bytes)) => match serde_json::from_slice(&bytes) {
                Ok(read) => Ok(Ok(read)),
                Err(error) => Err(self.not_ours(error.to_string())),
            },
            Ok(Err(ClientError::Unreachable { reason, .. })) => {
                Ok(Err(UploadOutcome::Unknown(reason)))
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(Err(UploadOutcome::Unknown("it does not answer in time".into()))),
        }
    }

    fn not_ours(&self, reason: String) -> ClientError {
        ClientError::NotShaman {
            url: self.shown_url(),
            reason: format!("{} answers something else: {reason}", wire::ADMIN),
        }
    }
}
