//! JSON bodies. Field names and shapes are those of Flamenco's OpenAPI document.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::{BlobId, BlobStatus, DigestError, Entry, PathError, RelPath};

/// One file as a client lists it: unchecked text and number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ShamanFileSpec)]
pub struct FileSpec {
    /// SHA-256 as 64 lower-case hex digits.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    pub sha: String,
    /// Size in bytes.
    pub size: u64,
    /// Path in the checkout; on Windows perhaps with `\`.
    pub path: String,
}

/// What is wrong with one file of a list.
#[derive(Debug, thiserror::Error)]
#[error("files[{index}]: {problem}")]
pub struct BadFile {
    /// Its place in the list, from 0.
    pub index: usize,
    /// What is wrong.
    pub problem: FileProblem,
}

/// What can be wrong with one file of a list.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    /// Its digest.
    #[error("sha is {0}")]
    Digest(#[from] DigestError),
    /// Its path.
    #[error("path: {0}")]
    Path(#[from] PathError),
}

impl FileSpec {
    /// The entry this describes.
    ///
    /// # Errors
    /// If digest or path are not valid; `index` names the file in the error.
    pub fn to_entry(&self, index: usize) -> Result<Entry, BadFile> {
        (|| {
            let blob = BlobId { digest: self.sha.parse()?, size_bytes: self.size };
            Ok(Entry { path: RelPath::from_wire(&self.path)?, blob })
        })()
        .map_err(|problem| BadFile { index, problem })
    }
}

impl From<&Entry> for FileSpec {
    fn from(entry: &Entry) -> Self {
        Self {
            sha: entry.blob.digest.to_string(),
            size: entry.blob.size_bytes,
            path: entry.path.as_str().to_owned(),
        }
    }
}

/// Body of `POST checkout/requirements`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ShamanRequirementsRequest)]
pub struct RequirementsRequest {
    /// All files of the checkout to be.
    pub files: Vec<FileSpec>,
}

/// One file that the server still needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ShamanFileSpecWithStatus)]
pub struct FileStatus {
    /// SHA-256 as asked for.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    pub sha: String,
    /// Size in bytes, as asked for.
    pub size: u64,
    /// Path as asked for, byte for byte.
    pub path: String,
    /// `unknown` or `uploading`, never `stored`: clients treat that as an error.
    pub status: BlobStatus,
}

/// Answer to `POST checkout/requirements`: what must still be sent, each blob once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ShamanRequirementsResponse)]
pub struct RequirementsAnswer {
    /// The files to send.
    pub files: Vec<FileStatus>,
}

/// Body of `POST checkout/create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ShamanCheckout)]
#[serde(rename_all = "camelCase")]
pub struct CheckoutRequest {
    /// The name wished for, relative to the checkout directory.
    pub checkout_path: String,
    /// All files of the checkout.
    pub files: Vec<FileSpec>,
}

/// Answer to `POST checkout/create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ShamanCheckoutResult)]
#[serde(rename_all = "camelCase")]
pub struct CheckoutAnswer {
    /// The name really used.
    pub checkout_path: String,
}

/// Answer to `GET files/{sha}/{size}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ShamanSingleFileStatus)]
pub struct StatusAnswer {
    /// What the server knows of the blob.
    pub status: BlobStatus,
}

/// The body of every answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Error)]
pub struct Problem {
    /// The HTTP status again.
    pub code: u16,
    /// What is wrong and what to do about it.
    pub message: String,
}
