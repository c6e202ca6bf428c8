//! Who is sending what right now. In memory only and advisory: what is stored is decided by the
//! file system, and storing a blob twice is harmless.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard},
};

use tokio::sync::watch;

use crate::domain::BlobId;

/// Another client's upload of the blob one is interested in.
#[derive(Debug)]
pub struct Flight(watch::Receiver<()>);

impl Flight {
    /// Waits until that upload has ended, well or badly. Which of the two is to be asked of the store.
    pub async fn ended(mut self) {
        // The sender sends nothing: it is dropped with the flight.
        while self.0.changed().await.is_ok() {}
    }
}

/// The uploads of one blob that go on at the same time.
struct Uploads {
    /// Tells them from later ones of the same blob.
    number: u64,
    count: usize,
    end: watch::Sender<()>,
}

/// Proof of a claim, to be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim(u64);

#[derive(Default)]
pub(super) struct InFlight(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    uploads: HashMap<BlobId, Uploads>,
    next_number: u64,
}

impl Inner {
    fn begin(&mut self, id: BlobId) -> Claim {
        self.next_number += 1;
        let number = self.next_number;
        self.uploads.insert(id, Uploads { number, count: 1, end: watch::Sender::new(()) });
        Claim(number)
    }
}

impl InFlight {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("BUG: no one panics with this lock")
    }

    /// Claims a blob, or tells whom to wait for. Every claim needs a [`InFlight::release`].
    pub fn claim(&self, id: BlobId) -> Result<Claim, Flight> {
        let mut inner = self.inner();
        match inner.uploads.get(&id) {
            Some(uploads) => Err(Flight(uploads.end.subscribe())),
            None => Ok(inner.begin(id)),
        }
    }

    /// Claims a blob beside whoever else is sending it. Needs a [`InFlight::release`], too.
    pub fn join(&self, id: BlobId) -> Claim {
        let mut inner = self.inner();
        match inner.uploads.get_mut(&id) {
            Some(uploads) => {
                uploads.count += 1;
                Claim(uploads.number)
            }
            None => inner.begin(id),
        }
    }

    /// Gives a claim back. The flight ends, and those who wait are woken, with the first upload
    /// that is stored, or with the last one.
    pub fn release(&self, id: &BlobId, claim: Claim, stored: bool) {
        let mut inner = self.inner();
        // One that was slower than another finds its flight ended.
        let Some(uploads) = inner.uploads.get_mut(id).filter(|u| u.number == claim.0) else {
            return;
        };
        uploads.count -= 1;
        if stored || uploads.count == 0 {
            inner.uploads.remove(id);
        }
    }

    /// Those of these blobs that somebody is sending.
    pub fn among<'a>(&self, ids: impl Iterator<Item = &'a BlobId>) -> HashSet<BlobId> {
        let inner = self.inner();
        if inner.uploads.is_empty() {
            return HashSet::new();
        }
        ids.filter(|id| inner.uploads.contains_key(id)).copied().collect()
    }

    pub fn get(&self, id: &BlobId) -> Option<Flight> {
        self.inner().uploads.get(id).map(|uploads| Flight(uploads.end.subscribe()))
    }
}

impl std::fmt::Debug for InFlight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.inner().uploads.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::Digest;

    fn id() -> BlobId {
        BlobId { digest: Digest::from_bytes([1; 32]), size_bytes: 1 }
    }

    async fn has_ended(flight: Flight) -> bool {
        tokio::time::timeout(Duration::ZERO, flight.ended()).await.is_ok()
    }

    #[tokio::test]
    async fn one_claims_the_others_wait_for_the_end() {
        let inflight = InFlight::default();
        let claim = inflight.claim(id()).unwrap();
        let (a, b) = (inflight.claim(id()).unwrap_err(), inflight.get(&id()).unwrap());
        assert!(!has_ended(a).await);
        inflight.release(&id(), claim, false);
        assert!(has_ended(b).await);
        assert!(inflight.get(&id()).is_none());
        inflight.claim(id()).unwrap();
    }

    #[tokio::test]
    async fn a_joined_flight_ends_with_the_last_failure() {
        let inflight = InFlight::default();
        let (one, other) = (inflight.claim(id()).unwrap(), inflight.join(id()));
        let waiting = inflight.get(&id()).unwrap();
        inflight.release(&id(), one, false);
        assert!(!has_ended(waiting).await);
        let waiting = inflight.get(&id()).unwrap();
        inflight.release(&id(), other, false);
        assert!(has_ended(waiting).await);
    }

    #[tokio::test]
    async fn a_joined_flight_ends_with_the_first_success() {
        let inflight = InFlight::default();
        let (slow, quick) = (inflight.claim(id()).unwrap(), inflight.join(id()));
        let waiting = inflight.get(&id()).unwrap();
        inflight.release(&id(), quick, true);
        assert!(has_ended(waiting).await);
        assert!(inflight.get(&id()).is_none());
        // The slow one's end is not that of a later flight.
        inflight.claim(id()).unwrap();
        inflight.release(&id(), slow, false);
        assert!(inflight.get(&id()).is_some());
    }
}
