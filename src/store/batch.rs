//! Many small blobs at once: written one by one, made durable together.

use std::time::Instant;

use super::{Begin, Durability, ReceiveError, Received, Store, Ticket};
use crate::{
    disk::{DiskError, SyncPoint, TempFile},
    domain::BlobId,
};

/// From so many files on, one sync of the whole file system costs less than one for each file, even if
/// others have something to write, too.
const SYNC_ALL_FROM: usize = 16;

/// What became of one blob.
#[derive(Debug)]
pub enum Batched {
    /// It was stored already.
    AlreadyStored,
    /// Somebody else is sending it.
    Busy,
    /// It is stored now, or why it is not.
    Received(Result<Received, ReceiveError>),
}

/// Blobs that are received one after another and are stored together. Dropped, what has been received is not
/// kept.
#[derive(Debug)]
pub struct Batch<'a> {
    store: &'a std::sync::Arc<Store>,
    results: Vec<Option<Batched>>,
    /// By their place in `results`.
    received: Vec<(usize, Ticket, TempFile)>,
    /// From before the first byte is written. `None` if nothing is to be synced together.
    sync: Option<SyncPoint>,
}

impl<'a> Batch<'a> {
    /// None so far.
    ///
    /// # Errors
    /// If the store cannot be opened for syncing.
    pub fn new(store: &'a std::sync::Arc<Store>) -> Result<Self, DiskError> {
        let sync = match store.options.durability {
            Durability::Full => SyncPoint::begin(&store.layout.uploading())?,
            Durability::Relaxed => None,
        };
        Ok(Self { store, results: Vec::new(), received: Vec::new(), sync })
    }

    /// Takes one more blob, if it is what its name says.
    pub fn take(&mut self, id: BlobId, content: &[u8]) {
        let place = self.results.len();
        self.results.push(None);
        let result = match self.store.begin(id) {
            Ok(Begin::Stored) => Batched::AlreadyStored,
            // Also if it comes twice in one batch.
            Ok(Begin::Busy(_)) => Batched::Busy,
            Ok(Begin::Receive(ticket)) => match ticket.write(content) {
                Ok((ticket, temp)) => {
                    self.received.push((place, ticket, temp));
                    return;
                }
                Err(error) => Batched::Received(Err(error)),
            },
            Err(error) => Batched::Received(Err(error.into())),
        };
        self.results[place] = Some(result);
    }

    /// Stores what has been taken. When this returns, what it says is stored is on the disk, and would be
    /// after a power cut.
    pub fn store(mut self) -> Vec<Batched> {
        let received = std::mem::take(&mut self.received);
        let stored = match &self.sync {
            Some(sync) if received.len() >= SYNC_ALL_FROM => together(received, sync),
            _ => one_by_one(received),
        };
        for (place, result) in stored {
            self.results[place] = Some(Batched::Received(result));
        }
        self.results.into_iter().map(|result| result.expect("BUG: each has one")).collect()
    }
}

type Stored = Result<Received, ReceiveError>;

fn together(received: Vec<(usize, Ticket, TempFile)>, sync: &SyncPoint) -> Vec<(usize, Stored)> {
    let failed = |places: Vec<usize>, error: &DiskError| {
        places.into_iter().map(|place| (place, Err(error.again().into()))).collect()
    };
    let start = Instant::now();
    if let Err(error) = sync.sync() {
        return failed(received.iter().map(|(place, ..)| *place).collect(), &error);
    }
    let mut synced = start.elapsed();
    let (mut results, mut named) = (Vec::with_capacity(received.len()), Vec::new());
    for (place, ticket, temp) in received {
        match ticket.publish(|dir, name| temp.publish_in(dir, name)) {
            Ok(_) => named.push((place, ticket)),
            Err(error) => results.push((place, Err(error.into()))),
        }
    }
    let start = Instant::now();
    if let Err(error) = sync.sync() {
        results.extend::<Vec<_>>(failed(named.iter().map(|(place, _)| *place).collect(), &error));
        return results;
    }
    synced += start.elapsed();
    let share = synced / u32::try_from(named.len().max(1)).unwrap_or(u32::MAX);
    for (place, mut ticket) in named {
        ticket.name_is_synced();
        results.push((place, Ok(Received { synced: share })));
    }
    results
}

fn one_by_one(received: Vec<(usize, Ticket, TempFile)>) -> Vec<(usize, Stored)> {
    let store =
        |(place, ticket, temp): (_, Ticket, _)| (place, ticket.store(temp).map_err(Into::into));
    received.into_iter().map(store).collect()
}
