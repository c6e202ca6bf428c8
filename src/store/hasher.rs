//! SHA-256 of what is being written: of large blobs on a thread of its own, if there is a core for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc::{SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::domain::Digest;

/// From this size on, a thread is worth starting.
const LARGE_BYTES: u64 = 4 << 20;

/// How many pieces wait to be hashed; each is kept in memory until then.
const PIECES_WAITING: usize = 4;

/// Hashes pieces in their order.
#[derive(Debug)]
pub(super) enum Hasher {
    /// Where it is called.
    Here(Sha256),
    /// Beside it.
    Beside { pieces: SyncSender<Bytes>, thread: JoinHandle<Digest> },
}

/// Counts a thread for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    /// `None` if there are enough of them: a blob that is received keeps two cores busy already, one with
    /// the network and one with the disk.
    fn one_more(count: &Arc<AtomicUsize>) -> Option<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let counted = Self(count.clone());
        (count.fetch_add(1, Relaxed) < cores / 2).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Hasher {
    /// For content of so many bytes. `count` is of the threads that hash.
    pub fn new(size_bytes: u64, count: &Arc<AtomicUsize>) -> Self {
        let beside = || {
            let counted = Counted::one_more(count)?;
            let (pieces, waiting) = sync_channel::<Bytes>(PIECES_WAITING);
            let hash = move || {
                let _counted = counted;
                let mut hasher = Sha256::new();
                waiting.iter().for_each(|piece| hasher.update(&piece));
                digest(hasher)
            };
            let thread = thread::Builder::new().name("hash".into()).spawn(hash).ok()?;
            Some(Self::Beside { pieces, thread })
        };
        let beside = (size_bytes >= LARGE_BYTES).then(beside).flatten();
        beside.unwrap_or_else(|| Self::Here(Sha256::new()))
    }

    pub fn update(&mut self, piece: &Bytes) {
        match self {
            Self::Here(hasher) => hasher.update(piece),
            Self::Beside { pieces, .. } => {
                pieces.send(piece.clone()).expect("BUG: it hashes until there are no more");
            }
        }
    }

    pub fn finish(self) -> Digest {
        match self {
            Self::Here(hasher) => digest(hasher),
            Self::Beside { pieces, thread } => {
                drop(pieces);
                thread.join().expect("BUG: hashing does not panic")
            }
        }
    }
}

fn digest(hasher: Sha256) -> Digest {
    Digest::from_bytes(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_digest_on_any_thread_and_threads_are_few() {
        let content: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
        let expected = digest(Sha256::new_with_prefix(&content));
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let count = Arc::default();
        let mut hashers: Vec<Hasher> =
            (0..cores + 2).map(|_| Hasher::new(LARGE_BYTES, &count)).collect();
        let beside = |hasher: &&Hasher| matches!(hasher, Hasher::Beside { .. });
        assert_eq!(hashers.iter().filter(beside).count(), cores / 2);
        assert!(matches!(Hasher::new(LARGE_BYTES - 1, &count), Hasher::Here(_)));
        for piece in content.chunks(100_001) {
            let piece = Bytes::copy_from_slice(piece);
            hashers.iter_mut().for_each(|hasher| hasher.update(&piece));
        }
        assert!(hashers.into_iter().all(|hasher| hasher.finish() == expected));
        assert_eq!(count.load(Relaxed), 0, "they have ended");
    }

    #[test]
    fn one_that_is_given_up_ends() {
        let count = Arc::default();
        let mut hasher = Hasher::new(LARGE_BYTES, &count);
        hasher.update(&Bytes::from_static(b"half"));
        if let Hasher::Beside { pieces, thread } = hasher {
            drop(pieces);
            thread.join().unwrap();
        }
        assert_eq!(count.load(Relaxed), 0);
    }
}
