//! Where content is cut into chunks: by itself, so that what is inserted moves the cuts around it and no
//! others. FastCDC as published in 2020; the parameters are part of `docs/EXTENSION.md`.
//!
//! Two sides that cut alike find what they have in common. That is all that depends on it: a chunk is
//! what its digest says, wherever it was cut.

use std::io::{self, Read};

use fastcdc::v2020::FastCDC;

use crate::domain::{Chunk, ChunkId};

/// The shortest chunk but the last of a blob, in bytes.
pub const MIN_BYTES: usize = 8 << 10;
/// About the average. Measured on re-saves of scenes: half of it sends half as much again of digests as
/// it saves of content, twice as much sends nearly the whole of small compressed scenes.
pub const AVERAGE_BYTES: usize = 16 << 10;
/// The longest, in bytes.
pub const MAX_BYTES: usize = 64 << 10;

/// What is read at once: some dozens of chunks.
const BUFFER_BYTES: usize = 1 << 20;

/// Cuts what it reads into chunks.
#[derive(Debug)]
pub struct Chunker<R> {
    source: R,
    buffer: Vec<u8>,
    /// What of the buffer is content that has not been cut yet.
    begin: usize,
    end: usize,
    at_end: bool,
}

impl<R: Read> Chunker<R> {
    /// Cuts this content, from its beginning to its end.
    pub fn new(source: R) -> Self {
        Self { source, buffer: vec![0; BUFFER_BYTES], begin: 0, end: 0, at_end: false }
    }

    /// The next chunk, and its content; `None` at the end.
    ///
    /// # Errors
    /// If the content cannot be read.
    pub fn next_chunk(&mut self) -> io::Result<Option<(Chunk, &[u8])>> {
        self.fill()?;
        if self.begin == self.end {
            return Ok(None);
        }
        let length = first_cut(&self.buffer[self.begin..self.end]);
        let content = &self.buffer[self.begin..self.begin + length];
        self.begin += length;
        let size_bytes = u32::try_from(length).expect("BUG: chunks are short");
        Ok(Some((Chunk { id: ChunkId::of(content), size_bytes }, content)))
    }

    /// Sees to it that there is as much as the longest chunk takes, or all that is left.
    fn fill(&mut self) -> io::Result<()> {
        if self.at_end || self.end - self.begin >= MAX_BYTES {
            return Ok(());
        }
        self.buffer.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        while self.end < self.buffer.len() {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => {
                    self.at_end = true;
                    break;
                }
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The length of the first chunk of this content: of all of it, if it is no longer than
/// [`MIN_BYTES`], and at most [`MAX_BYTES`].
fn first_cut(content: &[u8]) -> usize {
    let window = &content[..content.len().min(MAX_BYTES)];
    FastCDC::new(window, MIN_BYTES, AVERAGE_BYTES, MAX_BYTES).cut(0, window.len()).1
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// Content that looks like none, the same each time.
    fn noise(length: usize, seed: u64) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed);
        std::iter::repeat_with(|| random.u8(..)).take(length).collect()
    }

    /// Gives so many bytes at a time.
    struct Slowly<'a>(&'a [u8], usize);

    impl Read for Slowly<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(buffer.len()).min(self.0.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn cut(content: impl Read) -> Vec<Chunk> {
        let (mut chunker, mut chunks) = (Chunker::new(content), Vec::new());
        while let Some((chunk, content)) = chunker.next_chunk().unwrap() {
            assert_eq!(chunk.id, ChunkId::of(content));
            chunks.push(chunk);
        }
        chunks
    }

    /// Other implementations must cut here, too: `docs/EXTENSION.md` has the same numbers.
    #[test]
    fn the_cuts_are_those_of_the_document() {
        // Bytes that anybody can make: each is the high byte of a linear congruential generator.
        let mut state = 1u32;
        let content: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(200_000)
        .collect();
        let lengths: Vec<u32> = cut(&content[..]).iter().map(|chunk| chunk.size_bytes).collect();
        assert_eq!(lengths.iter().sum::<u32>(), 200_000);
        let expected = [21856, 10616, 32886, 22051, 13082, 11224, 22310, 19290, 21156, 24023, 1506];
        assert_eq!(lengths, expected);
    }

    #[test]
    fn chunks_are_neither_short_nor_long() {
        for content in [noise(3_000_000, 1), vec![0; 3_000_000]] {
            let chunks = cut(&content[..]);
            let (last, others) = chunks.split_last().unwrap();
            let long =
                |chunk: &Chunk| (MIN_BYTES..=MAX_BYTES).contains(&(chunk.size_bytes as usize));
            assert!(others.iter().all(long));
            assert!(last.size_bytes as usize <= MAX_BYTES && last.size_bytes > 0);
        }
        assert_eq!(cut(&b""[..]), []);
        assert_eq!(cut(&b"x"[..]), [Chunk { id: ChunkId::of(b"x"), size_bytes: 1 }]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_pieces_make_no_difference(length in 0usize..400_000, seed: u64, at_once in 1usize..200_000) {
            let content = noise(length, seed);
            prop_assert_eq!(cut(&content[..]), cut(Slowly(&content, at_once)));
        }

        #[test]
        fn what_is_inserted_changes_the_chunks_around_it_alone(seed: u64, at in 0usize..1_000_000, inserted in 1usize..1000) {
            let before = noise(1_000_000, seed);
            let mut after = before.clone();
            after.splice(at..at, noise(inserted, !seed));
            let known: HashSet<Chunk> = cut(&before[..]).into_iter().collect();
            let new: usize = cut(&after[..]).iter().filter(|chunk| !known.contains(chunk)).map(|chunk| chunk.size_bytes as usize).sum();
            prop_assert!(new <= 6 * MAX_BYTES, "{new}");
        }
    }
}
