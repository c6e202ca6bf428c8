//! Who is sending what right now. In memory only and advisory: what is stored is decided by the
//! file system, and storing a blob twice is harmless.

use std::{
    collections::{HashMap, hash_map::Entry},
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

struct Sender {
    receivers: usize,
    end: watch::Sender<()>,
}

#[derive(Default)]
pub(super) struct InFlight(Mutex<HashMap<BlobId, Sender>>);

impl InFlight {
    fn map(&self) -> MutexGuard<'_, HashMap<BlobId, Sender>> {
        self.0.lock().expect("BUG: no one panics with this lock")
    }

    /// Claims a blob, or tells whom to wait for. Every `Ok` needs a [`InFlight::release`].
    pub fn claim(&self, id: BlobId) -> Result<(), Flight> {
        match self.map().entry(id) {
            Entry::Occupied(entry) => Err(Flight(entry.get().end.subscribe())),
            Entry::Vacant(entry) => {
                entry.insert(Sender { receivers: 1, end: watch::Sender::new(()) });
                Ok(())
            }
        }
    }

    /// Claims a blob beside whoever else is sending it. Needs a [`InFlight::release`], too.
    pub fn join(&self, id: BlobId) {
        self.map()
            .entry(id)
            .or_insert_with(|| Sender { receivers: 0, end: watch::Sender::new(()) })
            .receivers += 1;
    }

    /// Gives a claim back. Those who wait are woken by the last one, or by the first whose blob is stored.
    pub fn release(&self, id: &BlobId, stored: bool) {
        let mut map = self.map();
        let Some(sender) = map.get_mut(id) else { return };
        sender.receivers -= 1;
        if sender.receivers == 0 {
            map.remove(id);
        } else if stored {
            sender.end = watch::Sender::new(());
        }
    }

    pub fn get(&self, id: &BlobId) -> Option<Flight> {
        self.map().get(id).map(|sender| Flight(sender.end.subscribe()))
    }
}

impl std::fmt::Debug for InFlight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.map().keys()).finish()
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
        inflight.claim(id()).unwrap();
        let (a, b) = (inflight.claim(id()).unwrap_err(), inflight.get(&id()).unwrap());
        assert!(!has_ended(a).await);
        inflight.release(&id(), false);
        assert!(has_ended(b).await);
        assert!(inflight.get(&id()).is_none());
        inflight.claim(id()).unwrap();
    }

    #[tokio::test]
    async fn a_joined_flight_ends_with_the_first_success_or_the_last_failure() {
        let inflight = InFlight::default();
        inflight.claim(id()).unwrap();
        inflight.join(id());
        let waiting = inflight.get(&id()).unwrap();
        inflight.release(&id(), true);
        assert!(has_ended(waiting).await);
        let waiting = inflight.get(&id()).unwrap();
        inflight.release(&id(), false);
        assert!(has_ended(waiting).await);

        inflight.join(id());
        inflight.join(id());
        let waiting = inflight.get(&id()).unwrap();
        inflight.release(&id(), false);
        assert!(!has_ended(waiting).await);
    }
}
