//! In which way a blob is sent. Pure: what the server can do, how fast it goes, and what is known of a blob
//! go in.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::wire::{CUT, Capabilities};

/// When what is nearly the same as something the server has is not sent as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Delta {
    /// If that takes less time, as far as can be told.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How a blob is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// As Shaman has it: all of it in one request.
    Plain,
    /// With many others in one request.
    Batch,
    /// In pieces, so that a second try sends only the rest.
    Pieces,
    /// By its chunks: only those that the server does not know.
    Delta,
}

/// All modes.
pub(in crate::agent) const MODES: [Mode; 4] = [Mode::Plain, Mode::Batch, Mode::Pieces, Mode::Delta];

/// Blobs up to this size go together, in bytes: for larger ones, a request each costs little.
const BATCH_MAX_BYTES: u64 = 128 << 10;

/// Whether there are chunks of smaller blobs is asked for now and then, and not for each.
const ALWAYS_ASK_FROM: u64 = 4 << 20;

/// So many smaller blobs in a row without anything known, and only each 16th is asked for.
const ASK_IN_VAIN: u32 = 8;

/// Blobs from this size on are sent in pieces: what is lost when a connection breaks is then little. Smaller
/// ones are sent again.
const PIECES_FROM: u64 = 32 << 20;

/// What a server must take at once: a piece, a recipe of a segment, a request.
const MAX_CHUNK_BYTES: u32 = 256 << 10;
const MAX_RECIPE_CHUNKS: u32 = 4096;
const MAX_BODY_BYTES: u64 = 4 << 20;

/// How much of a blob is looked at to find out whether the server knows any of it: so many places, each so
/// long.
pub(super) const SAMPLES: u64 = 16;
/// Three chunks at least, of which the first and the last are cut wrongly.
pub(super) const SAMPLE_BYTES: u64 = 256 << 10;

/// How fast a line is before anybody has measured: one of a gigabit, and none at all to the same machine.
const LINE_BYTES_PER_S: f64 = 110e6;
const LOOPBACK_BYTES_PER_S: f64 = 1e9;

/// How fast chunks are found and put in place, both sides together, before anybody has measured.
const DELTA_BYTES_PER_S: f64 = 400e6;

/// On lines slower than this, compressing is tried.
const COMPRESS_BELOW_BYTES_PER_S: f64 = 150e6;

/// What counts as a measurement, in bytes.
const MEASURED_BYTES: u64 = 4 << 20;

/// How much of an average the last measurement is.
const WEIGHT: f64 = 0.3;

/// What has been measured.
#[derive(Debug, Clone, Copy)]
pub(in crate::agent) struct Speeds {
    /// Bytes a second over the line, one upload alone.
    line: f64,
    /// Bytes a second of blobs whose chunks were known.
    delta: f64,
}

impl Speeds {
    /// Nothing so far.
    pub fn new(is_loopback: bool) -> Self {
        let line = if is_loopback { LOOPBACK_BYTES_PER_S } else { LINE_BYTES_PER_S };
        Self { line, delta: DELTA_BYTES_PER_S }
    }

    /// So much was sent over the line in this time.
    pub fn sent(&mut self, bytes: u64, time: Duration) {
        measure(&mut self.line, bytes, time);
    }

    /// So much of a blob was put in place without being sent.
    pub fn reused(&mut self, bytes: u64, time: Duration) {
        measure(&mut self.delta, bytes, time);
    }

    fn line(&self, limit: Option<u64>) -> f64 {
        limit.map_or(self.line, |limit| self.line.min(limit as f64)).max(1.0)
    }

    /// Whether to send something by its chunks, of which some are known, takes less time than to send all of
    /// it: what is unknown is sent while the next chunks are found.
    fn delta_is_faster(&self, limit: Option<u64>) -> bool {
        self.delta > self.line(limit)
    }
}

fn measure(average: &mut f64, bytes: u64, time: Duration) {
    if bytes >= MEASURED_BYTES && !time.is_zero() {
        let speed = bytes as f64 / time.as_secs_f64();
        *average += WEIGHT * (speed - *average);
    }
}

/// Chooses the way of each blob of a job.
#[derive(Debug)]
pub(in crate::agent) struct Chooser {
    capabilities: Capabilities,
    delta: Delta,
    /// Blobs in a row of which nothing was known.
    in_vain: u32,
    pub speeds: Speeds,
}

impl Chooser {
    pub fn new(mut capabilities: Capabilities, delta: Delta, is_loopback: bool) -> Self {
        if let Some(chunks) = &mut capabilities.chunks {
            // Who cuts in another way finds nothing.
            chunks.reuse &= chunks.cut == CUT;
        }
        // Whoever wants it in smaller portions than ours gets it plainly.
        capabilities.chunks = capabilities.chunks.filter(|chunks| {
            chunks.max_chunk_bytes >= MAX_CHUNK_BYTES
                && chunks.max_recipe_chunks >= MAX_RECIPE_CHUNKS
                && chunks.max_body_bytes >= MAX_BODY_BYTES
        });
        Self { capabilities, delta, in_vain: 0, speeds: Speeds::new(is_loopback) }
    }

    /// Whether it is worth asking what the server can do for blobs of these sizes. Whoever sends little does
    /// without.
    pub fn would_matter(sizes: impl Iterator<Item = u64>) -> bool {
        let (mut small, mut any_large) = (0, false);
        for size in sizes {
            small += u32::from(size <= BATCH_MAX_BYTES);
            any_large |= size >= BATCH_MAX_BYTES;
        }
        any_large || small >= 8
    }

    /// Whether to try to compress.
    pub fn compresses(&self, limit: Option<u64>) -> bool {
        // A server that takes batches takes zstd in them; see there for chunks.
        let zstd = self.capabilities.chunks.as_ref().is_none_or(|chunks| chunks.zstd);
        zstd && self.speeds.line(limit) < COMPRESS_BELOW_BYTES_PER_S
    }

    /// The largest blob that may go together with others, in bytes; how many, and how many bytes in all.
    pub fn batch(&self) -> Option<(u64, usize, u64)> {
        let limits = self.capabilities.batch.as_ref()?;
        // Room for heads and names.
        let bytes = limits.max_body_bytes / 4;
        Some((
            BATCH_MAX_BYTES.min(limits.max_blob_bytes.into()),
            (limits.max_blobs as usize).min(256),
            bytes.min(4 << 20),
        ))
        .filter(|(_, blobs, _)| *blobs > 1)
    }

    /// Batches do not get through.
    pub fn no_batches(&mut self) {
        self.capabilities.batch = None;
    }

    /// Whether to ask how much of a blob of this size the server knows.
    pub fn samples(&mut self, size_bytes: u64, limit: Option<u64>) -> bool {
        let Some(chunks) = self.capabilities.chunks.as_ref().filter(|chunks| chunks.reuse) else {
            return false;
        };
        if self.delta == Delta::Never || size_bytes < chunks.min_blob_bytes {
            return false;
        }
        if self.delta == Delta::Always {
            return true;
        }
        if !self.speeds.delta_is_faster(limit) {
            return false;
        }
        if size_bytes >= ALWAYS_ASK_FROM || self.in_vain < ASK_IN_VAIN {
            return true;
        }
        self.in_vain += 1;
        self.in_vain.is_multiple_of(16)
    }

    /// The way of a blob of this size; `known` says how much of a sample of it the server knows, if it was
    /// asked.
    pub fn choose(&mut self, size_bytes: u64, known: Option<f64>, limit: Option<u64>) -> Mode {
        if let Some(share) = known {
            self.in_vain = if share > 0.0 { 0 } else { self.in_vain.saturating_add(1) };
            if share > 0.0 && (self.delta == Delta::Always || self.speeds.delta_is_faster(limit)) {
                return Mode::Delta;
            }
        }
        if self.capabilities.chunks.is_some() && size_bytes >= PIECES_FROM {
            return Mode::Pieces;
        }
        Mode::Plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{BatchLimits, ChunkLimits};

    const MIB: u64 = 1 << 20;

    fn capable() -> Capabilities {
        Capabilities {
            chunks: Some(ChunkLimits {
                reuse: true,
                cut: CUT.into(),
                max_chunk_bytes: 1 << 20,
                max_recipe_chunks: 16_384,
                max_body_bytes: 64 << 20,
                zstd: true,
                min_blob_bytes: 128 << 10,
            }),
            batch: Some(BatchLimits {
                max_blobs: 1024,
                max_blob_bytes: 256 << 10,
                max_body_bytes: 16 << 20,
            }),
            ..Capabilities::default()
        }
    }

    fn chooser(delta: Delta, is_loopback: bool) -> Chooser {
        Chooser::new(capable(), delta, is_loopback)
    }

    #[test]
    fn to_a_server_that_can_nothing_all_is_sent_plain() {
        let mut chooser = Chooser::new(Capabilities::default(), Delta::Always, false);
        assert_eq!(chooser.batch(), None);
        for size in [0, MIB, 1 << 40] {
            assert!(!chooser.samples(size, None));
            assert_eq!(chooser.choose(size, None, None), Mode::Plain);
        }
    }

    #[test]
    fn what_is_known_is_not_sent_where_the_line_is_what_takes_time() {
        let mut slow = chooser(Delta::Auto, false);
        assert!(slow.samples(MIB, None));
        assert_eq!(slow.choose(MIB, Some(0.5), None), Mode::Delta);
        assert_eq!(slow.choose(MIB, Some(0.0), None), Mode::Plain);
        assert_eq!(slow.choose(PIECES_FROM, Some(0.0), None), Mode::Pieces);
        // Faster than the processors.
        let mut fast = chooser(Delta::Auto, true);
        assert!(!fast.samples(MIB, None));
        assert!(fast.samples(MIB, Some(10 << 20)), "a limit makes it slow");
        // What is measured counts.
        for _ in 0..20 {
            fast.speeds.sent(50 * MIB, Duration::from_secs(1));
            slow.speeds.sent(1000 * MIB, Duration::from_secs(1));
        }
        assert!(fast.samples(MIB, None) && fast.compresses(None));
        assert!(!slow.samples(MIB, None) && !slow.compresses(None));
        // Too little to tell.
        slow.speeds.sent(1, Duration::from_secs(100));
        assert!(!slow.samples(MIB, None));
    }

    #[test]
    fn what_the_user_says_counts() {
        let mut always = chooser(Delta::Always, true);
        assert!(always.samples(MIB, None));
        assert_eq!(always.choose(MIB, Some(0.1), None), Mode::Delta);
        assert!(!always.samples(100, None), "the server knows no chunks of what is so small");
        let mut never = chooser(Delta::Never, false);
        assert!(!never.samples(1 << 40, None));
    }

    #[test]
    fn how_we_cut_is_what_we_call_it() {
        use crate::chunks::{AVERAGE_BYTES, MAX_BYTES, MIN_BYTES};
        assert_eq!(CUT, format!("fastcdc-2020/{MIN_BYTES}/{AVERAGE_BYTES}/{MAX_BYTES}"));
    }

    #[test]
    fn what_a_server_does_not_take_it_does_not_get() {
        let with = |change: fn(&mut ChunkLimits)| {
            let mut capable = capable();
            change(capable.chunks.as_mut().unwrap());
            Chooser::new(capable, Delta::Always, false)
        };
        for (mut less, samples, mode) in [
            (with(|_| {}), true, Mode::Pieces),
            (with(|chunks| chunks.cut = "fastcdc-2030/1/2/3".into()), false, Mode::Pieces),
            (with(|chunks| chunks.max_chunk_bytes = 1000), false, Mode::Plain),
            (with(|chunks| chunks.max_recipe_chunks = 10), false, Mode::Plain),
            (with(|chunks| chunks.max_body_bytes = 1000), false, Mode::Plain),
        ] {
            assert_eq!(less.samples(1 << 40, None), samples);
            assert_eq!(less.choose(1 << 40, None, None), mode);
        }
        assert!(!with(|chunks| chunks.zstd = false).compresses(Some(1)));
    }

    #[test]
    fn what_is_asked_in_vain_is_asked_less_often() {
        let mut chooser = chooser(Delta::Auto, false);
        let mut asked = 0;
        for _ in 0..1000 {
            if chooser.samples(MIB, None) {
                asked += 1;
                chooser.choose(MIB, Some(0.0), None);
            }
        }
        assert!((60..90).contains(&asked), "{asked}");
        // Large ones always: it costs little beside them.
        assert!(chooser.samples(ALWAYS_ASK_FROM, None));
        chooser.choose(ALWAYS_ASK_FROM, Some(1.0), None);
        assert!(chooser.samples(MIB, None), "and again after something was known");
    }

    #[test]
    fn who_sends_little_asks_nothing() {
        assert!(!Chooser::would_matter([100; 7].into_iter()));
        assert!(Chooser::would_matter([100; 8].into_iter()));
        assert!(Chooser::would_matter([128 << 10].into_iter()));
    }
}
