//! The nouns of the field, valid by construction. Pure: nothing here touches a disk or a network.

mod blob;
mod chunk;
mod digest;
mod manifest;
mod path;
pub mod report;

pub use blob::{BlobId, BlobStatus};
pub use chunk::{Chunk, ChunkId, MAX_CHUNK_BYTES};
pub use digest::{Digest, DigestError, decode_lower};
pub use manifest::{Entry, Manifest, ManifestError};
pub use path::{CheckoutPath, MAX_PATH_BYTES, OsFamily, PathError, RelPath};
