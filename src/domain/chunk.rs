//! Chunks: pieces of blobs, by their content.

use std::fmt;

/// The identity of a chunk: BLAKE3 of its content, 256 bits of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkId([u8; 32]);

impl ChunkId {
    /// The identity of this content.
    pub fn of(content: &[u8]) -> Self {
        Self(*blake3::hash(content).as_bytes())
    }

    /// Of a chunk that is sent without a name: nothing has it as its digest.
    pub const NAMELESS: Self = Self([0; 32]);

    /// Whether it is none.
    pub fn is_nameless(&self) -> bool {
        *self == Self::NAMELESS
    }

    /// The identity with these raw bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(const_hex::Buffer::<32>::new().format(&self.0))
    }
}

/// A chunk, and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Chunk {
    /// BLAKE3 of its content.
    pub id: ChunkId,
    /// Its length in bytes, from 1 to [`MAX_CHUNK_BYTES`].
    pub size_bytes: u32,
}

/// The longest chunk that is ever sent or asked about, in bytes.
pub const MAX_CHUNK_BYTES: u32 = 1 << 20;
