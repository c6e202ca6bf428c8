//! About how much is stored, and what upkeep has done to it, without asking the disk each time.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{Stopped, Store, Work, walk::Item};
use crate::{
    disk::DiskError,
    domain::{BlobId, report::Amount},
};

/// What [`Store::tally`] knows. All but `stored` counts from when the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// All blobs, once they have been counted. Others who remove files are noticed by the next
    /// garbage collection.
    pub stored: Option<Amount>,
    /// Removed by garbage collection.
    pub removed: Amount,
    /// Read by scrubs.
    pub scrubbed: Amount,
    /// Blobs that went to quarantine.
    pub quarantined: u64,
    /// Blobs that a scrub could not read.
    pub unreadable: u64,
}

/// Counts for [`Tally`].
#[derive(Debug)]
pub(super) struct Counts {
    /// By the first byte of the digest; `None` where nobody has counted.
    stored: Mutex<[Option<Amount>; 256]>,
    removed: Sum,
    scrubbed: Sum,
    pub quarantined: AtomicU64,
    pub unreadable: AtomicU64,
}

#[derive(Debug, Default)]
struct Sum {
    blobs: AtomicU64,
    bytes: AtomicU64,
}

impl Sum {
    fn add(&self, size_bytes: u64) {
        self.blobs.fetch_add(1, Relaxed);
        self.bytes.fetch_add(size_bytes, Relaxed);
    }

    fn amount(&self) -> Amount {
        Amount { blobs: self.blobs.load(Relaxed), bytes: self.bytes.load(Relaxed) }
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            stored: Mutex::new([None; 256]),
            removed: Sum::default(),
            scrubbed: Sum::default(),
            quarantined: AtomicU64::new(0),
            unreadable: AtomicU64::new(0),
        }
    }
}

impl Counts {
    fn change(&self, prefix: u8, change: impl FnOnce(&mut Option<Amount>)) {
        let mut stored = self.stored.lock().expect("BUG: no one panics with this lock");
        change(&mut stored[usize::from(prefix)]);
    }

    /// These are all blobs of this prefix.
    pub fn counted(&self, prefix: u8, amount: Amount) {
        self.change(prefix, |stored| *stored = Some(amount));
    }

    /// There is one more.
    pub fn stored(&self, id: &BlobId) {
        self.change(id.digest.as_bytes()[0], |stored| {
            if let Some(stored) = stored {
                stored.add(id.size_bytes);
            }
        });
    }

    /// There is one less.
    pub fn gone(&self, id: &BlobId) {
        self.change(id.digest.as_bytes()[0], |stored| {
            if let Some(stored) = stored {
                stored.blobs = stored.blobs.saturating_sub(1);
                stored.bytes = stored.bytes.saturating_sub(id.size_bytes);
            }
        });
    }

    /// Garbage collection has removed one.
    pub fn removed(&self, id: &BlobId) {
        self.gone(id);
        self.removed.add(id.size_bytes);
    }

    /// A scrub has looked at one.
    pub fn scrubbed(&self, id: &BlobId) {
        self.scrubbed.add(id.size_bytes);
    }
}

impl Store {
    /// About how much is stored, and what upkeep has done since the store was opened.
    pub fn tally(&self) -> Tally {
        let stored = self.counts.stored.lock().expect("BUG: no one panics with this lock");
        let stored = stored.iter().try_fold(Amount::default(), |mut sum, part| {
            sum += (*part)?;
            Some(sum)
        });
        Tally {
            stored,
            removed: self.counts.removed.amount(),
            scrubbed: self.counts.scrubbed.amount(),
            quarantined: self.counts.quarantined.load(Relaxed),
            unreadable: self.counts.unreadable.load(Relaxed),
        }
    }

    /// Counts the blobs for [`Store::tally`], gently; not to the end if it is stopped.
    ///
    /// # Errors
    /// If the store cannot be listed.
    pub fn count(&self, work: &Work) -> Result<(), DiskError> {
        self.pool(1, true)?.install(|| {
            for prefix in 0..=u8::MAX {
                let mut amount = Amount::default();
                if let Err(Stopped) = work.go_on() {
                    break;
                }
                self.blobs_with_prefix(prefix, |item| {
                    if let Item::Blob(id) = item {
                        amount.add(id.size_bytes);
                    }
                })?;
                self.counts.counted(prefix, amount);
            }
            Ok(())
        })
    }
}
