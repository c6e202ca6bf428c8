//! What a blob is called and what a server may say about it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Digest;

/// The identity of a blob: Shaman names content by digest *and* size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId {
    /// SHA-256 of the content.
    pub digest: Digest,
    /// Length of the content in bytes.
    pub size_bytes: u64,
}

impl fmt::Display for BlobId {
    /// `digest/size`, as in the URL of the blob.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.digest, self.size_bytes)
    }
}

/// What a server knows of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = ShamanFileStatus)]
pub enum BlobStatus {
    /// Not there: it must be sent.
    Unknown,
    /// Somebody is sending it right now.
    Uploading,
    /// There, verified.
    Stored,
}
