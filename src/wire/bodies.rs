//! JSON bodies. Field names and shapes are those of Flamenco's OpenAPI document.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::domain::{BlobId, BlobStatus, DigestError, Entry, PathError, RelPath};

/// One file as a client lists it: unchecked text and number. Read from a request, it borrows from that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ShamanFileSpec)]
pub struct FileSpec<'a> {
    /// SHA-256 as 64 lower-case hex digits.
    #[serde(borrow)]
    #[schema(value_type = String, pattern = "^[0-9a-f]{64}$")]
    pub sha: Cow<'a, str>,
    /// Size in bytes.
    pub size: u64,
    /// Path in the checkout; on Windows perhaps with `\`.
    #[serde(borrow)]
    #[schema(value_type = String)]
    pub path: Cow<'a, str>,
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

impl FileSpec<'_> {
    /// The entry this describes.
    ///
    /// # Errors
    /// If digest or path are not valid; `index` names the file in the error.
    pub fn to_entry(&self, index: usize) -> Result<Entry, BadFile> {
        self.blob()
            .and_then(|blob| Ok(Entry { path: RelPath::from_wire(&self.path)?, blob }))
            .map_err(|problem| BadFile { index, problem })
    }

    /// The blob this names, if it describes an entry.
    ///
    /// # Errors
    /// As [`FileSpec::to_entry`].
    pub fn to_blob(&self, index: usize) -> Result<BlobId, BadFile> {
        self.blob()
            .and_then(|blob| Ok(RelPath::check_wire(&self.path).map(|()| blob)?))
            .map_err(|problem| BadFile { index, problem })
    }

    fn blob(&self) -> Result<BlobId, FileProblem> {
        Ok(BlobId { digest: self.sha.parse()?, size_bytes: self.size })
    }
}

impl<'a> FileSpec<'a> {
    /// How this blob is listed at this path.
    pub fn new(path: &'a RelPath, blob: &BlobId) -> Self {
        Self {
            sha: blob.digest.to_string().into(),
            size: blob.size_bytes,
            path: path.as_str().into(),
        }
    }
}

impl<'a> From<&'a Entry> for FileSpec<'a> {
    fn from(entry: &'a Entry) -> Self {
        Self::new(&entry.path, &entry.blob)
    }
}

/// Body of `POST checkout/requirements`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ShamanRequirementsRequest)]
pub struct RequirementsRequest<'a> {
    /// All files of the checkout to be.
    #[serde(borrow)]
    pub files: Vec<FileSpec<'a>>,
}

/// One file that the server still needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ShamanFileSpecWithStatus)]
pub struct FileStatus<'a> {
    /// SHA-256 as asked for.
    #[schema(value_type = String, pattern = "^[0-9a-f]{64}$")]
    pub sha: Cow<'a, str>,
    /// Size in bytes, as asked for.
    pub size: u64,
    /// Path as asked for, byte for byte.
    #[schema(value_type = String)]
    pub path: Cow<'a, str>,
    /// `unknown` or `uploading`, never `stored`: clients treat that as an error.
    pub status: BlobStatus,
}

/// Answer to `POST checkout/requirements`: what must still be sent, each blob once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ShamanRequirementsResponse)]
pub struct RequirementsAnswer<'a> {
    /// The files to send.
    pub files: Vec<FileStatus<'a>>,
}

/// Body of `POST checkout/create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ShamanCheckout)]
#[serde(rename_all = "camelCase")]
pub struct CheckoutRequest<'a> {
    /// The name wished for, relative to the checkout directory.
    #[serde(borrow)]
    #[schema(value_type = String)]
    pub checkout_path: Cow<'a, str>,
    /// All files of the checkout.
    #[serde(borrow)]
    pub files: Vec<FileSpec<'a>>,
}

impl CheckoutRequest<'_> {
    /// The same, with nothing borrowed.
    pub fn into_owned(self) -> CheckoutRequest<'static> {
        fn own(text: Cow<'_, str>) -> Cow<'static, str> {
            Cow::Owned(text.into_owned())
        }
        let own_file = |file: FileSpec<'_>| FileSpec {
            sha: own(file.sha),
            size: file.size,
            path: own(file.path),
        };
        CheckoutRequest {
            checkout_path: own(self.checkout_path),
            files: self.files.into_iter().map(own_file).collect(),
        }
    }
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
