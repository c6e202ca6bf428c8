//! The Shaman v3 wire: bodies, headers and paths, shared by server and client.
//!
//! Source: the OpenAPI document of Flamenco 3.9 and its clients, observed over HTTP.

mod admin;
mod bodies;
mod extension;
mod filename;
mod frames;
mod token;

pub use admin::{GcRequest, Line, PinAnswer, PinsAnswer, ScrubRequest, VerifyRequest};
pub use bodies::{
    BadFile, CheckoutAnswer, CheckoutRequest, FileSpec, FileStatus, Problem, RequirementsAnswer,
    RequirementsRequest, StatusAnswer,
};
pub use extension::{
    BatchAnswer, BatchLimits, BatchResult, BeginAnswer, CUT, Capabilities, ChunkLimits,
    KnownAnswer, RecipeAnswer, Run, SENDER, runs_of,
};
pub use filename::{decode_filename, encode_filename};
pub use frames::{
    BLOB_HEAD_BYTES, BlobFrame, CHUNK_HEAD_BYTES, ChunkFrame, FrameError, RECIPE_ENTRY_BYTES,
    frame_chunk, read_blob, read_chunk, read_recipe, write_blob, write_recipe,
};
pub use token::{TOKEN_PREFIX, hide_tokens, split_token};

/// The path all Shaman endpoints share, without a slash at its end.
pub const SHAMAN: &str = "/api/v3/shaman";

/// The path that Flamenco's whole API shares, with a slash at its end.
pub const API: &str = "/api/v3/";

/// Where a server says what it serves.
pub const OPENAPI: &str = "/api/v3/openapi3.json";

/// What a server of ours calls itself where a Manager says its name.
pub const FARM_NAME: &str = "farmhand";

/// The path of everything that only farmhand serves.
pub const ADMIN: &str = "/farmhand/v1";

/// `True`/`true`: the client goes on with other files if somebody else is sending this one.
pub const CAN_DEFER: &str = "x-shaman-can-defer-upload";

/// The file's name on the client, as an RFC 2047 encoded word; for people who read logs.
pub const ORIGINAL_FILENAME: &str = "x-shaman-original-filename";

/// Whether a value of [`CAN_DEFER`] says yes. Seen: Python's `True` and `False`.
pub fn means_true(value: &[u8]) -> bool {
    value.eq_ignore_ascii_case(b"true") || value == b"1"
}

/// Whether this `User-Agent` is Flamenco's Blender add-on (`Flamenco/3.9-beta1 (Blender add-on)`),
/// which gives up for good when it is answered 425.
pub fn is_blender_addon(user_agent: &[u8]) -> bool {
    user_agent.starts_with(b"Flamenco/") && user_agent.ends_with(b"(Blender add-on)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_addon_and_pythons_booleans() {
        assert!(is_blender_addon(b"Flamenco/3.9-beta1 (Blender add-on)"));
        assert!(!is_blender_addon(b"Flamenco/3.9 (worker)"));
        assert!(!is_blender_addon(b"curl/8"));
        assert!(means_true(b"True") && means_true(b"true"));
        assert!(!means_true(b"False") && !means_true(b""));
    }
}
