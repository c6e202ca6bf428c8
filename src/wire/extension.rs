//! JSON bodies of what farmhand speaks beside Shaman: `docs/EXTENSION.md`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Who sends an unfinished blob: 1 to 64 letters and digits, made up by the client for one run. Requests with
/// the same value belong together; another client waits.
pub const SENDER: &str = "x-farmhand-sender";

/// How both sides of ours cut content into chunks: `chunks.rs`, and `docs/EXTENSION.md` for others.
pub const CUT: &str = "fastcdc-2020/8192/16384/65536";

/// What this server can do beside Shaman. What is missing it cannot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Capabilities {
    /// The name of the server's software.
    pub software: String,
    /// Its version.
    pub version: String,
    /// Unfinished blobs: pieces that are kept until the whole is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunks: Option<ChunkLimits>,
    /// Many small blobs in one request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchLimits>,
    /// Blobs and manifests can be had back.
    pub download: bool,
}

/// What counts for unfinished blobs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ChunkLimits {
    /// Whether the server knows chunks of what it has stored. If not, unfinished blobs can be sent in pieces and
    /// gone on with, and no more.
    pub reuse: bool,
    /// How content is cut: `fastcdc-2020/8192/16384/65536` is the only way there is.
    pub cut: String,
    /// The longest chunk, in bytes.
    pub max_chunk_bytes: u32,
    /// The most chunks in one recipe.
    pub max_recipe_chunks: u32,
    /// The longest body with chunks, in bytes.
    pub max_body_bytes: u64,
    /// Whether chunks may be compressed with zstd.
    pub zstd: bool,
    /// Blobs smaller than this have no chunks that the server would know, in bytes.
    pub min_blob_bytes: u64,
}

/// What counts for many small blobs in one request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct BatchLimits {
    /// The most blobs in one.
    pub max_blobs: u32,
    /// The largest blob in one, in bytes.
    pub max_blob_bytes: u32,
    /// The longest body, in bytes.
    pub max_body_bytes: u64,
}

/// Consecutive chunks of a list: the place of the first, from 0, and how many.
pub type Run = (u32, u32);

/// The runs of these places, which must be in order.
pub fn runs_of(places: impl IntoIterator<Item = u32>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for place in places {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == place => *count += 1,
            _ => runs.push((place, 1)),
        }
    }
    runs
}

/// Answer to the beginning of an unfinished blob.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BeginAnswer {
    /// Whether there may be something of it from an earlier try: then recipes tell what.
    pub resumable: bool,
}

/// Answer to a sample of chunks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KnownAnswer {
    /// How many of them the server knows.
    pub known: u32,
}

/// Answer to a recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecipeAnswer {
    /// The chunks to send, as runs of places in the recipe: `[[first, count], …]`. All others are in place.
    #[schema(value_type = Vec<Vec<u32>>)]
    pub missing: Vec<Run>,
}

/// What became of one blob of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchResult {
    /// The status that the blob would have been answered with had it been sent alone.
    pub status: u16,
    /// What is wrong and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Answer to a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchAnswer {
    /// In the order in which they came.
    pub blobs: Vec<BatchResult>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_become_runs() {
        assert_eq!(runs_of([]), []);
        assert_eq!(runs_of([0, 1, 2, 5, 7, 8]), [(0, 3), (5, 1), (7, 2)]);
    }

    #[test]
    fn what_a_server_does_not_say_it_cannot() {
        let other: Capabilities = serde_json::from_str(r#"{"more": {"x": 1}}"#).unwrap();
        assert_eq!(other, Capabilities::default());
    }
}
