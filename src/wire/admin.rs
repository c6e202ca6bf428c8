//! Bodies of `/farmhand/v1/…`. The answers are those of [`crate::domain::report`].

use serde::{Deserialize, Serialize};

use crate::domain::{Digest, report::Done};

/// Body of `POST gc`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GcRequest {
    /// Only say what would be removed.
    pub dry_run: bool,
    /// How long a blob must not have been needed, in seconds; the server's setting if it is left out.
    pub max_age_s: Option<u64>,
}

/// Body of `POST scrub`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ScrubRequest {
    /// Bytes per second at most; as fast as it goes if it is left out.
    pub rate: Option<u64>,
    /// Begin with the first blob, wherever the last scrub stopped.
    pub from_start: bool,
}

/// Body of `POST verify`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VerifyRequest {
    /// The checkout; all of them if it is left out.
    pub checkout: Option<String>,
    /// Read all blobs, too.
    pub deep: bool,
}

/// Answer to `PUT` and `DELETE pins/{sha}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PinAnswer {
    /// The digest.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Whether it is pinned now.
    pub pinned: bool,
    /// Whether that is a change.
    pub changed: bool,
}

/// Answer to `GET pins`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PinsAnswer {
    /// All pinned digests.
    #[schema(value_type = Vec<String>)]
    pub pins: Vec<Digest>,
}

/// One line of the answer to a long operation (`application/x-ndjson`): how far it is, once a second,
/// and at the end what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Line<T> {
    /// It goes on.
    Progress(Done),
    /// It has come to its end.
    Report(T),
    /// It could not be done.
    Error {
        /// The HTTP status that this would have been.
        code: u16,
        /// What is wrong, and what to do about it.
        message: String,
    },
}
