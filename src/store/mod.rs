//! The embedded store: blobs under the names of their content, and checkouts made of links to them.
//!
//! Synchronous. The only thing of `tokio` here is the signal that a flight has ended, which the
//! server awaits without holding a thread.

mod blobs;
mod checkout;
mod inflight;
mod layout;
mod receive;

use std::{path::Path, sync::Arc};

pub use blobs::{Begin, Ticket};
pub use checkout::CheckoutError;
pub use inflight::Flight;
pub use receive::ReceiveError;

use crate::disk::{DiskError, IoContext, Lock, LockError};
use inflight::InFlight;
use layout::Layout;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another farmhand uses it.
    #[error("the store {dir} is in use by another farmhand ({note})")]
    InUse {
        /// The storage directory.
        dir: String,
        /// What the other one says of itself.
        note: String,
    },
    /// Its directories cannot be made or read.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// An open store. The directory is locked until it is dropped.
#[derive(Debug)]
pub struct Store {
    layout: Layout,
    inflight: InFlight,
    lock: std::sync::Mutex<Lock>,
}

impl Store {
    /// Opens the store in this directory, making it if needed, and removes what an earlier
    /// process left unfinished.
    ///
    /// # Errors
    /// If another process has it open, or the file system refuses.
    pub fn open(dir: &Path) -> Result<Arc<Self>, OpenError> {
        std::fs::create_dir_all(dir).on("create the storage directory", dir)?;
        let dir = std::path::absolute(dir).on("find", dir)?;
        let layout = Layout::new(&dir);
        let lock = Lock::acquire(&layout.lock()).map_err(|error| match error {
            LockError::Held { note } => OpenError::InUse { dir: dir.display().to_string(), note },
            LockError::Disk(error) => error.into(),
        })?;
        layout.create()?;
        receive::remove_leftovers(&layout)?;
        checkout::remove_leftovers(&layout)?;
        Ok(Arc::new(Self { layout, inflight: InFlight::default(), lock: lock.into() }))
    }

    /// Tells a process that finds the store in use who has it.
    ///
    /// # Errors
    /// If the note cannot be written.
    pub fn leave_note(&self, text: &str) -> Result<(), DiskError> {
        self.lock.lock().expect("BUG: no one panics with this lock").note(text)
    }

    /// The directory that holds all checkouts.
    pub fn checkouts_dir(&self) -> std::path::PathBuf {
        self.layout.jobs()
    }
}
