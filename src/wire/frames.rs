//! Binary bodies of the extension: recipes, chunks and small blobs, one after another. All numbers are
//! little-endian. `docs/EXTENSION.md` describes them.

use std::io::{self, BufRead};

use crate::domain::{BlobId, Chunk, ChunkId, Digest, MAX_CHUNK_BYTES};

/// A chunk of a recipe: its digest (32 bytes), its length (4).
pub const RECIPE_ENTRY_BYTES: usize = 36;

/// What is before a chunk: its digest (32), its place in the blob (8), its length (4), and how many bytes
/// follow (4).
pub const CHUNK_HEAD_BYTES: usize = 48;

/// What is before a small blob: its digest (32), its length (4), how many bytes follow (4), and how long its
/// name is (2), which stands between the head and the content.
pub const BLOB_HEAD_BYTES: usize = 42;

/// What is wrong with a body.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The body cannot be read.
    #[error("the body broke off after {frames} whole frames")]
    Body {
        /// How many were whole.
        frames: u64,
        /// Why.
        source: io::Error,
    },
    /// It ends within a frame.
    #[error("the body ends in the middle of frame {frame}")]
    Cut {
        /// Which, from 0.
        frame: u64,
    },
    /// A frame is not as it must be.
    #[error("frame {frame}: {problem}")]
    Bad {
        /// Which, from 0.
        frame: u64,
        /// What is wrong.
        problem: String,
    },
}

/// What is announced takes no memory before it comes, but for this much, in bytes.
const AT_ONCE_BYTES: usize = 256 << 10;

/// One chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkFrame {
    /// What it is, by itself.
    pub chunk: Chunk,
    /// Where in the blob it goes, in bytes.
    pub offset: u64,
}

/// One small blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobFrame {
    /// What it is, by itself.
    pub id: BlobId,
    /// The file's name on the client, for the log.
    pub name: Vec<u8>,
    /// How many bytes its content took in the body.
    pub sent_bytes: u32,
}

/// The content as it is sent: compressed if that makes it shorter.
fn packed<'a>(content: &'a [u8], compressed: Option<&'a [u8]>) -> &'a [u8] {
    compressed.filter(|packed| packed.len() < content.len()).unwrap_or(content)
}

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).expect("BUG: frames are short").to_le_bytes()
}

/// Appends an entry of a recipe.
pub fn write_recipe(chunk: &Chunk, body: &mut Vec<u8>) {
    body.extend_from_slice(chunk.id.as_bytes());
    body.extend_from_slice(&chunk.size_bytes.to_le_bytes());
}

/// Makes a frame of a chunk; `body` has room for the head ([`CHUNK_HEAD_BYTES`]), and then the content.
/// `compressed` is the same content as a zstd frame, used if it is shorter.
pub fn frame_chunk(id: &ChunkId, offset: u64, compressed: Option<&[u8]>, body: &mut Vec<u8>) {
    let content = &body[CHUNK_HEAD_BYTES..];
    let (size, compressed) =
        (length(content), compressed.filter(|packed| packed.len() < content.len()));
    let sent = compressed.map_or(size, length);
    body[..32].copy_from_slice(id.as_bytes());
    body[32..40].copy_from_slice(&offset.to_le_bytes());
    body[40..44].copy_from_slice(&size);
    body[44..CHUNK_HEAD_BYTES].copy_from_slice(&sent);
    if let Some(compressed) = compressed {
        body.truncate(CHUNK_HEAD_BYTES);
        body.extend_from_slice(compressed);
    }
}

/// Appends a small blob; `compressed` is the same content as a zstd frame, used if it is shorter.
pub fn write_blob(
    digest: &Digest,
    name: &str,
    content: &[u8],
    compressed: Option<&[u8]>,
    body: &mut Vec<u8>,
) {
    let (sent, name) = (packed(content, compressed), name.as_bytes());
    let name = &name[..name.len().min(usize::from(u16::MAX))];
    body.extend_from_slice(digest.as_bytes());
    body.extend_from_slice(&length(content));
    body.extend_from_slice(&length(sent));
    body.extend_from_slice(&(name.len() as u16).to_le_bytes());
    body.extend_from_slice(name);
    body.extend_from_slice(sent);
}

/// Reads exactly so much; `None` at the end of the body if it ends before the first byte.
fn read_head<const N: usize>(
    body: &mut dyn BufRead,
    frame: u64,
) -> Result<Option<[u8; N]>, FrameError> {
    let mut head = [0; N];
    let mut have = 0;
    while have < N {
        match body.read(&mut head[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(FrameError::Cut { frame }),
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(FrameError::Body { frames: frame, source }),
        }
    }
    Ok(Some(head))
}

/// Reads exactly so much, in place of what is in the buffer.
fn read_exactly(
    body: &mut dyn BufRead,
    count: usize,
    frame: u64,
    buffer: &mut Vec<u8>,
) -> Result<(), FrameError> {
    buffer.clear();
    buffer.reserve(count.min(AT_ONCE_BYTES));
    while buffer.len() < count {
        let piece = match body.fill_buf() {
            Ok([]) => return Err(FrameError::Cut { frame }),
            Ok(piece) => &piece[..piece.len().min(count - buffer.len())],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(FrameError::Body { frames: frame, source }),
        };
        buffer.extend_from_slice(piece);
        let taken = piece.len();
        body.consume(taken);
    }
    Ok(())
}

/// Reads content, decompressed, in place of what is in the buffer.
fn read_content(
    body: &mut dyn BufRead,
    length: u32,
    sent_bytes: u32,
    frame: u64,
    buffer: &mut Vec<u8>,
) -> Result<(), FrameError> {
    let bad = |problem: String| FrameError::Bad { frame, problem };
    if sent_bytes > length {
        return Err(bad(format!("{sent_bytes} bytes cannot be {length} bytes, compressed")));
    }
    read_exactly(body, sent_bytes as usize, frame, buffer)?;
    if sent_bytes == length {
        return Ok(());
    }
    // Never more than announced, whatever the frame says of itself.
    *buffer = zstd::bulk::decompress(buffer, length as usize)
        .map_err(|error| bad(format!("it is shorter than its content, and no zstd: {error}")))?;
    if buffer.len() != length as usize {
        return Err(bad(format!("its content has {} bytes, not {length}", buffer.len())));
    }
    Ok(())
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("BUG: four bytes"))
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    bytes.try_into().expect("BUG: 32 bytes")
}

/// All entries of a recipe.
///
/// # Errors
/// If it is none: there is a rest, or a chunk of a length that none can have.
pub fn read_recipe(body: &[u8]) -> Result<Vec<Chunk>, FrameError> {
    let (entries, rest) = body.as_chunks::<RECIPE_ENTRY_BYTES>();
    if !rest.is_empty() {
        return Err(FrameError::Cut { frame: entries.len() as u64 });
    }
    let read = |(frame, entry): (usize, &[u8; RECIPE_ENTRY_BYTES])| {
        let size_bytes = number(&entry[32..]);
        check_chunk_length(size_bytes, frame as u64)?;
        Ok(Chunk { id: ChunkId::from_bytes(digest(&entry[..32])), size_bytes })
    };
    entries.iter().enumerate().map(read).collect()
}

fn check_chunk_length(length: u32, frame: u64) -> Result<(), FrameError> {
    if (1..=MAX_CHUNK_BYTES).contains(&length) {
        return Ok(());
    }
    let problem = format!("a chunk has 1 to {MAX_CHUNK_BYTES} bytes, not {length}");
    Err(FrameError::Bad { frame, problem })
}

/// The next chunk; `None` at the end of the body. `frame` counts them, from 0. What is in `content` then is its
/// content, decompressed, and not yet compared with the digest.
///
/// # Errors
/// If it cannot be read, or is none.
pub fn read_chunk(
    body: &mut dyn BufRead,
    frame: u64,
    content: &mut Vec<u8>,
) -> Result<Option<ChunkFrame>, FrameError> {
    let Some(head) = read_head::<CHUNK_HEAD_BYTES>(body, frame)? else { return Ok(None) };
    let offset = u64::from_le_bytes(head[32..40].try_into().expect("BUG: eight bytes"));
    let size_bytes = number(&head[40..44]);
    check_chunk_length(size_bytes, frame)?;
    read_content(body, size_bytes, number(&head[44..]), frame, content)?;
    let chunk = Chunk { id: ChunkId::from_bytes(digest(&head[..32])), size_bytes };
    Ok(Some(ChunkFrame { chunk, offset }))
}

/// The next small blob, of at most so many bytes; `None` at the end of the body. `frame` counts them, from 0.
/// What is in `content` then is its content, decompressed, and not yet compared with the digest.
///
/// # Errors
/// If it cannot be read, or is too large.
pub fn read_blob(
    body: &mut dyn BufRead,
    max_bytes: u32,
    frame: u64,
    content: &mut Vec<u8>,
) -> Result<Option<BlobFrame>, FrameError> {
    let Some(head) = read_head::<BLOB_HEAD_BYTES>(body, frame)? else { return Ok(None) };
    let size = number(&head[32..36]);
    if size > max_bytes {
        let problem = format!("a blob of {size} bytes is too large here: send it by itself");
        return Err(FrameError::Bad { frame, problem });
    }
    let name_bytes = u16::from_le_bytes([head[40], head[41]]);
    let (mut name, sent_bytes) = (Vec::new(), number(&head[36..40]));
    read_exactly(body, usize::from(name_bytes), frame, &mut name)?;
    read_content(body, size, sent_bytes, frame, content)?;
    let id = BlobId { digest: Digest::from_bytes(digest(&head[..32])), size_bytes: size.into() };
    Ok(Some(BlobFrame { id, name, sent_bytes }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn compressed(content: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(content, 1).unwrap()
    }

    fn all_chunks(mut body: &[u8]) -> Result<Vec<(ChunkFrame, Vec<u8>)>, FrameError> {
        let (mut frames, mut content) = (Vec::new(), b"before".to_vec());
        while let Some(frame) = read_chunk(&mut body, frames.len() as u64, &mut content)? {
            frames.push((frame, content.clone()));
        }
        Ok(frames)
    }

    fn all_blobs(mut body: &[u8], max_bytes: u32) -> Result<Vec<(BlobFrame, Vec<u8>)>, FrameError> {
        let (mut frames, mut content) = (Vec::new(), b"before".to_vec());
        while let Some(frame) = read_blob(&mut body, max_bytes, frames.len() as u64, &mut content)?
        {
            frames.push((frame, content.clone()));
        }
        Ok(frames)
    }

    fn chunk_frame(offset: u64, content: &[u8], compressed: Option<&[u8]>) -> Vec<u8> {
        let mut body = [&[0; CHUNK_HEAD_BYTES], content].concat();
        frame_chunk(&ChunkId::of(content), offset, compressed, &mut body);
        body
    }

    fn content() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..300),
            (any::<u8>(), 0usize..3000).prop_map(|(byte, count)| vec![byte; count]),
        ]
    }

    proptest! {
        #[test]
        fn fuzz_what_is_written_is_read(contents in prop::collection::vec((content(), any::<u64>(), any::<bool>(), "\\PC{0,9}"), 0..8)) {
            let (mut chunks, mut blobs, mut recipe) = (Vec::new(), Vec::new(), Vec::new());
            let digest = Digest::from_bytes([7; 32]);
            let mut expected = Vec::new();
            for (content, offset, compress, name) in &contents {
                let packed = compress.then(|| compressed(content));
                write_blob(&digest, name, content, packed.as_deref(), &mut blobs);
                if !content.is_empty() {
                    let id = ChunkId::of(content);
                    chunks.extend(chunk_frame(*offset, content, packed.as_deref()));
                    write_recipe(&Chunk { id, size_bytes: content.len() as u32 }, &mut recipe);
                    expected.push((*offset, content.clone()));
                }
            }
            let frames = all_chunks(&chunks).unwrap();
            let read: Vec<_> = frames.iter().map(|(f, content)| (f.offset, content.clone())).collect();
            prop_assert_eq!(read, expected);
            prop_assert_eq!(read_recipe(&recipe).unwrap(), frames.iter().map(|(f, _)| f.chunk).collect::<Vec<_>>());
            let read = all_blobs(&blobs, 1 << 20).unwrap();
            prop_assert_eq!(read.len(), contents.len());
            for ((frame, read), (content, _, _, name)) in read.iter().zip(&contents) {
                prop_assert_eq!(read, content);
                prop_assert_eq!(&frame.name, name.as_bytes());
            }
        }

        /// Whatever comes: an error or frames, and never more than the body could hold.
        #[test]
        fn fuzz_any_bytes_are_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = (all_chunks(&body), all_blobs(&body, 1000), read_recipe(&body));
        }

        /// Frames that are nearly right.
        #[test]
        fn fuzz_a_damaged_body_is_no_other_one(content in content(), at: prop::sample::Index, bit in 0u8..8, cut: prop::sample::Index) {
            prop_assume!(!content.is_empty());
            let mut body = chunk_frame(9, &content, Some(&compressed(&content)));
            let whole = body.len();
            let shorter = &body[..cut.index(whole)];
            prop_assert!(shorter.is_empty() || all_chunks(shorter).is_err());
            let at = at.index(whole);
            body[at] ^= 1 << bit;
            if let Ok(frames) = all_chunks(&body) {
                let [(frame, read)] = &frames[..] else { return Err(TestCaseError::fail("one became many")) };
                let same = frame.offset == 9 && ChunkId::of(read) == frame.chunk.id;
                prop_assert!(!same || *read == content);
            }
        }
    }

    #[test]
    fn a_frame_says_no_more_than_it_may() {
        // A bomb: a megabyte of zeros that says to be a kilobyte.
        let bomb = compressed(&vec![0; 1 << 20]);
        let mut body = chunk_frame(0, &[0; 1024], None);
        body.truncate(CHUNK_HEAD_BYTES);
        body[44..48].copy_from_slice(&(bomb.len() as u32).to_le_bytes());
        body.extend_from_slice(&bomb);
        assert!(matches!(all_chunks(&body), Err(FrameError::Bad { frame: 0, .. })));
        for length in [0, MAX_CHUNK_BYTES + 1, u32::MAX] {
            body[40..44].copy_from_slice(&length.to_le_bytes());
            assert!(matches!(all_chunks(&body), Err(FrameError::Bad { frame: 0, .. })), "{length}");
        }
        let mut body = Vec::new();
        write_blob(&Digest::from_bytes([0; 32]), "x", &[1; 11], None, &mut body);
        assert!(all_blobs(&body, 11).is_ok());
        assert!(matches!(all_blobs(&body, 10), Err(FrameError::Bad { .. })));
    }
}
