//! Counters that one side writes while another one shows them.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

/// What a job is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Looking for files.
    Walking,
    /// Hashing those whose digest is not known.
    Hashing,
    /// Asking the server what it lacks.
    Asking,
    /// Sending that.
    Uploading,
    /// Having the checkout created.
    Creating,
    /// Looking after a store.
    Upkeep,
    /// Getting files back from a server.
    Fetching,
}

const PHASES: [Phase; 7] = [
    Phase::Walking,
    Phase::Hashing,
    Phase::Asking,
    Phase::Uploading,
    Phase::Creating,
    Phase::Upkeep,
    Phase::Fetching,
];

/// How far a job is in its current phase. Totals may grow.
#[derive(Debug, Default)]
pub struct Progress {
    phase: AtomicU8,
    files: AtomicU64,
    files_total: AtomicU64,
    bytes: AtomicU64,
    bytes_total: AtomicU64,
}

/// What [`Progress`] said at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// The current phase.
    pub phase: Phase,
    /// Files done in it.
    pub files: u64,
    /// Files to do in it; 0 if not known.
    pub files_total: u64,
    /// Bytes done in it.
    pub bytes: u64,
    /// Bytes to do in it; 0 if not known.
    pub bytes_total: u64,
}

impl Progress {
    /// Starts a phase from zero.
    pub fn enter(&self, phase: Phase) {
        for counter in [&self.files, &self.files_total, &self.bytes, &self.bytes_total] {
            counter.store(0, Relaxed);
        }
        self.phase.store(phase as u8, Relaxed);
    }

    /// More to do.
    pub fn expect(&self, files: u64, bytes: u64) {
        self.files_total.fetch_add(files, Relaxed);
        self.bytes_total.fetch_add(bytes, Relaxed);
    }

    /// So many files are done.
    pub fn add_files(&self, files: u64) {
        self.files.fetch_add(files, Relaxed);
    }

    /// So many bytes are done.
    pub fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// Bytes that were counted and must be done again. Progress goes back honestly, not below zero.
    pub fn take_back_bytes(&self, bytes: u64) {
        let _ = self.bytes.fetch_update(Relaxed, Relaxed, |done| Some(done.saturating_sub(bytes)));
    }

    /// All counters now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            phase: PHASES[usize::from(self.phase.load(Relaxed))],
            files: self.files.load(Relaxed),
            files_total: self.files_total.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            bytes_total: self.bytes_total.load(Relaxed),
        }
    }
}
