//! One blob that comes in pieces: what there is of it, what of that is right, and what of it was borrowed.

use std::{
    collections::HashMap,
    io,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rangemap::RangeSet;
use sha2::{Digest as _, Sha256};

use super::{super::Ticket, UnfinishedError};
use crate::{
    disk::{DiskError, PartFile},
    domain::{BlobId, Chunk, ChunkId},
};

/// How long the sender of an unfinished blob may be silent before another one may go on with it. Nobody is silent
/// while a request is under way.
pub(super) const SILENT_FOR: Duration = Duration::from_secs(5);

/// How many chunks of a blob may be borrowed: the name of each is kept in memory. What is more must be sent.
const MAX_BORROWED: usize = 500_000;

/// In how many ranges a blob may come: each takes memory.
pub(super) const MAX_RANGES: usize = 100_000;

/// How much is read at once, in bytes.
const PIECE_BYTES: usize = 1 << 20;

/// What there is in a place of a blob.
pub(super) enum Has {
    /// The chunk that was asked for.
    There,
    /// Nothing that counts.
    Nothing,
    /// Something that has come of it is, but not the whole chunk: it must be sent.
    Something,
}

/// One blob that is being sent in pieces.
#[derive(Debug)]
pub struct Unfinished {
    pub(super) id: BlobId,
    pub(super) part: PartFile,
    /// How long the file was when it was opened: up to there may be pieces of an earlier try.
    pub(super) found_bytes: u64,
    /// Whether there is a list of what was borrowed.
    pub(super) has_list: AtomicBool,
    /// Requests under way.
    pub(super) active: AtomicUsize,
    /// Held to read while a piece is written; held to write by who publishes: then nothing is written any
    /// more.
    pub(super) writing: RwLock<()>,
    pub(super) state: Mutex<State>,
    pub(super) hashed: Mutex<Hashed>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) sender: String,
    pub(super) seen: Instant,
    /// Its connection has broken since.
    pub(super) is_cut_off: bool,
    /// What has been seen to be right.
    pub(super) right: RangeSet<u64>,
    /// What is being written.
    pub(super) reserved: RangeSet<u64>,
    /// What has been borrowed, and not been sent since: also what was borrowed before.
    pub(super) borrowed: RangeSet<u64>,
    /// By what chunks, in this process and for this blob's sender.
    pub(super) lent: HashMap<u64, Lent>,
    /// Somebody else would send the blob.
    pub(super) is_wanted: bool,
    pub(super) sent_bytes: u64,
    /// The right to the blob's name; none once it has ended.
    pub(super) ticket: Option<Ticket>,
}

/// The beginning of the blob, as far as it is right.
#[derive(Debug, Default)]
pub(super) struct Hashed {
    pub(super) hasher: Sha256,
    pub(super) bytes: u64,
}

/// The chunk that a range was borrowed by: its length, and half of its name, which is enough to tell.
pub(super) type Lent = (u32, [u8; 16]);

fn lent(chunk: &Chunk) -> Lent {
    let half = chunk.id.as_bytes().first_chunk().expect("BUG: a digest has 32 bytes");
    (chunk.size_bytes, *half)
}

/// A request under way: while there is one, nobody takes the blob over.
#[derive(Debug)]
pub struct Request(pub(super) Arc<Unfinished>);

impl Drop for Request {
    fn drop(&mut self) {
        self.0.state().seen = Instant::now();
        self.0.active.fetch_sub(1, Relaxed);
    }
}

impl std::ops::Deref for Request {
    type Target = Unfinished;

    fn deref(&self) -> &Unfinished {
        &self.0
    }
}

pub(super) fn range(offset: u64, length: u64) -> Range<u64> {
    offset..offset.saturating_add(length)
}

impl Unfinished {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("BUG: no one panics with this lock")
    }

    pub(super) fn check(&self, range: &Range<u64>) -> Result<(), UnfinishedError> {
        let size_bytes = self.id.size_bytes;
        if range.end <= size_bytes {
            return Ok(());
        }
        Err(UnfinishedError::Outside { offset: range.start, end: range.end, size_bytes })
    }

    /// Whether this chunk is in place.
    pub(super) fn has(
        &self,
        range: &Range<u64>,
        chunk: &Chunk,
        buffer: &mut Vec<u8>,
    ) -> Result<Has, UnfinishedError> {
        let conflict = || UnfinishedError::Conflict { offset: range.start, end: range.end };
        let is_right = {
            let state = self.state();
            if state.reserved.overlaps(range) {
                return Ok(Has::Something);
            }
            let is_right = state.right.gaps(range).next().is_none();
            if state.borrowed.overlaps(range) {
                return match () {
                    () if state.is_lent(range.start, chunk) => Ok(Has::There),
                    () if state.touches_borrowed(range) => Err(conflict()),
                    () if state.right.overlaps(range) => Ok(Has::Something),
                    // For somebody else: it is not there.
                    () => Ok(Has::Nothing),
                };
            }
            if !is_right && state.right.overlaps(range) {
                return Ok(Has::Something);
            }
            is_right
        };
        if !is_right && range.end > self.found_bytes {
            return Ok(Has::Nothing);
        }
        buffer.resize((range.end - range.start) as usize, 0);
        let is_it = self.part.read_at(range.start, buffer)? && ChunkId::of(buffer) == chunk.id;
        if is_right {
            return if is_it { Ok(Has::There) } else { Err(conflict()) };
        }
        if !is_it {
            return Ok(Has::Nothing);
        }
        let mut state = self.state();
        // Somebody may have written there since: what was read may be what was borrowed.
        let is_touched = state.reserved.overlaps(range)
            || state.right.overlaps(range)
            || state.borrowed.overlaps(range);
        if is_touched {
            return Ok(Has::Something);
        }
        state.is_right(range.clone())?;
        Ok(Has::There)
    }

    /// Writes a chunk to its place that is taken from another blob. Not where anything has come: whether that
    /// is the same is nobody's business. Whether it did.
    pub(super) fn borrow(
        &self,
        chunk: &Chunk,
        range: &Range<u64>,
        content: &[u8],
    ) -> Result<bool, UnfinishedError> {
        let _writing = self.writing.read().expect("BUG: no one panics with this lock");
        {
            let mut state = self.state();
            if state.ticket.is_none() {
                return Err(UnfinishedError::NotBegun);
            }
            if state.is_lent(range.start, chunk) {
                return Ok(true);
            }
            let is_free = !state.reserved.overlaps(range) && !state.right.overlaps(range);
            if !is_free || state.lent.len() >= MAX_BORROWED {
                return Ok(false);
            }
            state.reserved.insert(range.clone());
            // Also if not all of it can be written.
            state.borrowed.insert(range.clone());
        }
        let written = self.part.write_at(range.start, content);
        let mut state = self.state();
        state.reserved.remove(range.clone());
        written?;
        state.is_right(range.clone())?;
        state.lent.insert(range.start, lent(chunk));
        state.wrote(range, self.found_bytes);
        Ok(true)
    }

    /// Writes what has been verified to its place. What is right already is never written again: it may
    /// have been hashed.
    pub(super) fn put(
        &self,
        offset: u64,
        chunk: &Chunk,
        content: &[u8],
    ) -> Result<(), UnfinishedError> {
        let _writing = self.writing.read().expect("BUG: no one panics with this lock");
        let whole = range(offset, content.len() as u64);
        let conflict = || UnfinishedError::Conflict { offset: whole.start, end: whole.end };
        let (there, gaps): (Vec<_>, Vec<_>) = {
            let mut state = self.state();
            if state.ticket.is_none() {
                return Err(UnfinishedError::NotBegun);
            }
            if state.reserved.overlaps(&whole) {
                return Err(UnfinishedError::Busy { offset: whole.start, end: whole.end });
            }
            if state.is_lent(offset, chunk) {
                // Asked for when it was missing, and borrowed since by the same name.
                return Ok(());
            }
            if state.touches_borrowed(&whole) {
                return Err(conflict());
            }
            state.reserved.insert(whole.clone());
            (state.right.overlapping(&whole).cloned().collect(), state.right.gaps(&whole).collect())
        };
        let part_of = |range: &Range<u64>| {
            &content[(range.start - offset) as usize..(range.end - offset) as usize]
        };
        let write = || {
            for range in there {
                let range = range.start.max(whole.start)..range.end.min(whole.end);
                let mut found = vec![0; (range.end - range.start) as usize];
                if !self.part.read_at(range.start, &mut found)? || found != part_of(&range) {
                    return Err(conflict());
                }
            }
            for gap in &gaps {
                self.part.write_at(gap.start, part_of(gap))?;
            }
            Ok(())
        };
        let written = write();
        let mut state = self.state();
        state.reserved.remove(whole.clone());
        written?;
        // Sent by this client, whoever borrowed it before.
        state.borrowed.remove(whole.clone());
        state.is_right(whole)?;
        for gap in &gaps {
            state.wrote(gap, self.found_bytes);
        }
        drop(state);
        self.hash_now(offset, content);
        Ok(())
    }

    pub(super) fn check_whole(&self) -> Result<(), UnfinishedError> {
        let state = self.state();
        let whole = 0..self.id.size_bytes;
        if whole.is_empty() {
            return Ok(());
        }
        let gaps: Vec<_> = state.right.gaps(&whole).collect();
        let missing_bytes = gaps.iter().map(|gap| gap.end - gap.start).sum();
        match gaps.first() {
            None => Ok(()),
            Some(first) => Err(UnfinishedError::Incomplete { missing_bytes, first: first.start }),
        }
    }

    /// Hashes what has just been put in its place, if that is where the hashing is, and nobody else is at it: what
    /// is not hashed now is read again.
    fn hash_now(&self, offset: u64, content: &[u8]) {
        if let Ok(mut hashed) = self.hashed.try_lock()
            && hashed.bytes == offset
        {
            hashed.hasher.update(content);
            hashed.bytes += content.len() as u64;
        }
    }

    /// Hashes on with the beginning of the blob, as far as it is right, and so many bytes at most; nothing
    /// if somebody else is at it and it need not be all of it.
    pub(super) fn hash_ahead(&self, max_bytes: u64) -> Result<(), UnfinishedError> {
        let mut hashed = if max_bytes == u64::MAX {
            self.hashed.lock().expect("BUG: no one panics with this lock")
        } else {
            match self.hashed.try_lock() {
                Ok(hashed) => hashed,
                Err(_) => return Ok(()),
            }
        };
        let until = self.state().right.get(&0).map_or(0, |range| range.end);
        let until = until.min(hashed.bytes.saturating_add(max_bytes));
        let mut buffer = vec![0; PIECE_BYTES.min((until - hashed.bytes.min(until)) as usize)];
        while hashed.bytes < until {
            let count = buffer.len().min((until - hashed.bytes) as usize);
            if !self.part.read_at(hashed.bytes, &mut buffer[..count])? {
                let gone =
                    io::Error::new(io::ErrorKind::UnexpectedEof, "somebody has cut it short");
                return Err(DiskError {
                    op: "read all of",
                    path: PathBuf::from(self.id.to_string()),
                    source: gone,
                }
                .into());
            }
            hashed.hasher.update(&buffer[..count]);
            hashed.bytes += count as u64;
        }
        Ok(())
    }
}

impl State {
    pub(super) fn is_seen(&mut self) {
        (self.seen, self.is_cut_off) = (Instant::now(), false);
    }

    /// So much is in place, and right.
    pub(super) fn is_right(&mut self, range: Range<u64>) -> Result<(), UnfinishedError> {
        if self.right.len() >= MAX_RANGES
            && self.right.overlapping(&widened(&range)).next().is_none()
        {
            return Err(UnfinishedError::Scattered);
        }
        self.right.insert(range);
        Ok(())
    }

    /// Whether this chunk is in place there, and was borrowed by this name.
    pub(super) fn is_lent(&self, offset: u64, chunk: &Chunk) -> bool {
        let range = range(offset, chunk.size_bytes.into());
        self.lent.get(&offset) == Some(&lent(chunk)) && self.right.gaps(&range).next().is_none()
    }

    /// Whether a range has anything in it that was borrowed and is in place.
    pub(super) fn touches_borrowed(&self, range: &Range<u64>) -> bool {
        self.borrowed.overlapping(range).any(|borrowed| {
            let both = borrowed.start.max(range.start)..borrowed.end.min(range.end);
            self.right.overlaps(&both)
        })
    }

    /// So much has been written that takes room it did not take before.
    pub(super) fn wrote(&mut self, range: &Range<u64>, found_bytes: u64) {
        if let Some(ticket) = &mut self.ticket {
            ticket.wrote(range.end.saturating_sub(range.start.max(found_bytes)));
        }
    }

    /// Whether others need not wait for the sender any more.
    pub(super) fn is_silent(&self) -> bool {
        self.is_cut_off || self.seen.elapsed() >= SILENT_FOR
    }
}

/// With a byte more on both sides: what touches this becomes one range with it.
fn widened(range: &Range<u64>) -> Range<u64> {
    range.start.saturating_sub(1)..range.end.saturating_add(1)
}
