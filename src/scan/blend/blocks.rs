//! The blocks of a `.blend` file, plain or compressed with Zstandard.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use zstd::stream::read::Decoder;

/// The first bytes of every `.blend`, once it is decompressed.
const MAGIC: &[u8] = b"BLENDER";
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];

/// How much is read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// How much is decompressed between two looks at the stop flag.
const SKIP_BYTES: u64 = 16 << 20;

/// Why the paths in a file are not known.
#[derive(Debug, thiserror::Error)]
pub enum BlendError {
    /// The file cannot be read, or its compressed content is damaged.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is another kind of file.
    #[error("it is not a .blend file")]
    NotBlend,
    /// It is a `.blend` of a kind that is not read here.
    #[error("{0}")]
    Unsupported(&'static str),
    /// It breaks off, or contradicts itself.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// The stop flag was set.
    #[error("stopped")]
    Stopped,
}

/// The head of a block.
#[derive(Debug)]
pub(super) struct Block {
    pub code: [u8; 4],
    /// Which struct its content is, in the order of the struct descriptions.
    pub struct_index: usize,
    /// The length of its content.
    pub size_bytes: u64,
    /// How many structs that are.
    pub count: u64,
}

/// How block heads are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heads {
    /// By 32-bit versions of Blender.
    Pointers32,
    /// Up to Blender 4.5.
    Pointers64,
    /// Since Blender 5.0: lengths have 64 bits.
    Large,
}

enum Source {
    Plain(BufReader<File>),
    Zstd(Box<BufReader<Decoder<'static, BufReader<File>>>>),
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Zstd(reader) => reader.read(buffer),
        }
    }
}

/// Reads one block after the other.
pub(super) struct BlockReader<'a> {
    source: Source,
    heads: Heads,
    stop: &'a AtomicBool,
}

/// The end of the file where there should be more is damage, not a failure of the disk.
fn unless_short(error: io::Error) -> BlendError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => BlendError::Damaged("it breaks off"),
        _ => error.into(),
    }
}

impl<'a> BlockReader<'a> {
    pub fn open(file: &Path, stop: &'a AtomicBool) -> Result<Self, BlendError> {
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, File::open(file)?);
        let start = reader.fill_buf()?;
        let mut source = if start.starts_with(MAGIC) {
            Source::Plain(reader)
        } else if start.starts_with(ZSTD_MAGIC) {
            let decoder = Decoder::with_buffer(reader)?;
            Source::Zstd(Box::new(BufReader::with_capacity(BUFFER_BYTES, decoder)))
        } else if start.starts_with(GZIP_MAGIC) {
            return Err(BlendError::Unsupported(
                "it is compressed with gzip, as by Blender before 3.0",
            ));
        } else {
            return Err(BlendError::NotBlend);
        };
        let heads = read_header(&mut source)?;
        Ok(Self { source, heads, stop })
    }

    /// The size of a pointer in its structs.
    pub fn pointer_bytes(&self) -> usize {
        if self.heads == Heads::Pointers32 { 4 } else { 8 }
    }

    /// The head of the next block, whose content must then be read or skipped; `None` at the end.
    pub fn next(&mut self) -> Result<Option<Block>, BlendError> {
        if self.stop.load(Relaxed) {
            return Err(BlendError::Stopped);
        }
        let mut code = [0; 4];
        self.source.read_exact(&mut code).map_err(unless_short)?;
        if code == *b"ENDB" {
            return Ok(None);
        }
        let mut rest = [0; 28];
        let length = match self.heads {
            Heads::Pointers32 => 16,
            Heads::Pointers64 => 20,
            Heads::Large => 28,
        };
        self.source.read_exact(&mut rest[..length]).map_err(unless_short)?;
        let small = |at: usize| {
            i64::from(i32::from_le_bytes(rest[at..at + 4].try_into().expect("BUG: four bytes")))
        };
        let large =
            |at: usize| i64::from_le_bytes(rest[at..at + 8].try_into().expect("BUG: eight bytes"));
        // The pointer that the block had is of no interest.
        let (size, index, count) = match self.heads {
            Heads::Pointers32 => (small(0), small(8), small(12)),
            Heads::Pointers64 => (small(0), small(12), small(16)),
            Heads::Large => (large(12), small(0), large(20)),
        };
        match (u64::try_from(size), usize::try_from(index), u64::try_from(count)) {
            (Ok(size_bytes), Ok(struct_index), Ok(count)) => {
                Ok(Some(Block { code, struct_index, size_bytes, count }))
            }
            _ => Err(BlendError::Damaged("a block has a length below zero")),
        }
    }

    /// Reads the content of a block. The caller has looked at its length.
    pub fn read(&mut self, block: &Block, content: &mut Vec<u8>) -> Result<(), BlendError> {
        content.clear();
        let read = (&mut self.source).take(block.size_bytes).read_to_end(content)?;
        if read as u64 == block.size_bytes {
            Ok(())
        } else {
            Err(BlendError::Damaged("it breaks off"))
        }
    }

    /// Passes over the content of a block.
    pub fn skip(&mut self, block: &Block) -> Result<(), BlendError> {
        match &mut self.source {
            // Beyond the end this succeeds, and the next read fails.
            Source::Plain(reader) => {
                let bytes = i64::try_from(block.size_bytes)
                    .map_err(|_| BlendError::Damaged("a block is too long"))?;
                Ok(reader.seek_relative(bytes)?)
            }
            Source::Zstd(reader) => {
                let mut left = block.size_bytes;
                while left > 0 {
                    if self.stop.load(Relaxed) {
                        return Err(BlendError::Stopped);
                    }
                    let piece = left.min(SKIP_BYTES);
                    let skipped = io::copy(&mut reader.take(piece), &mut io::sink())?;
                    if skipped < piece {
                        return Err(BlendError::Damaged("it breaks off"));
                    }
                    left -= piece;
                }
                Ok(())
            }
        }
    }
}

/// Reads the header: `BLENDER-v405` up to Blender 4.5, `BLENDER17-01v0500` since 5.0.
fn read_header(source: &mut Source) -> Result<Heads, BlendError> {
    let mut header = [0; 12];
    source.read_exact(&mut header).map_err(unless_short)?;
    if !header.starts_with(MAGIC) {
        return Err(BlendError::NotBlend);
    }
    match &header[MAGIC.len()..] {
        [b'-', b'v', ..] => Ok(Heads::Pointers64),
        [b'_', b'v', ..] => Ok(Heads::Pointers32),
        [b'-' | b'_', b'V', ..] => {
            Err(BlendError::Unsupported("it was written on a big-endian machine"))
        }
        b"17-01" => {
            source.read_exact(&mut header[..5]).map_err(unless_short)?;
            Ok(Heads::Large)
        }
        _ => Err(BlendError::Unsupported("it was written by a newer Blender")),
    }
}
