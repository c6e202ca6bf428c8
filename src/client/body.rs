//! The body of an upload: as long as it says, sent as it is read, given up when nobody wants it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::{sync::mpsc, time::Instant};

use super::sleep_until_silent;

/// The content of a blob, as it is sent.
#[derive(Debug)]
pub enum UploadBody {
    /// All of it.
    Whole(Bytes),
    /// Piece by piece. An error breaks the upload off: the server never sees a whole body.
    Pieces(mpsc::Receiver<io::Result<Bytes>>),
}

/// How a body is getting on, seen from outside.
#[derive(Debug)]
pub(super) struct Pulse {
    moved_at: Mutex<Instant>,
    left_bytes: AtomicU64,
    unwanted: AtomicBool,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            moved_at: Mutex::new(Instant::now()),
            left_bytes: AtomicU64::new(0),
            unwanted: AtomicBool::new(false),
        }
    }
}

impl Pulse {
    /// Waits until nothing has moved for so long.
    pub async fn stalled(&self, limit: Duration) {
        let moved_at = || *self.moved_at.lock().expect("BUG: no one panics with this lock");
        sleep_until_silent(moved_at, limit).await;
    }

    /// What is still to be sent.
    pub fn left_bytes(&self) -> u64 {
        self.left_bytes.load(Relaxed)
    }

    /// Nobody wants the rest: break off.
    pub fn give_up(&self) {
        self.unwanted.store(true, Relaxed);
    }
}

/// Pieces, with a known total for Shaman: without one, the body is sent chunked, and Shaman wants a
/// `Content-Length`.
#[derive(Debug)]
pub(super) struct StreamedBody {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    /// What is still to come, if that is known; if not, it is sent chunked.
    left_bytes: Option<u64>,
    pulse: Arc<Pulse>,
}

impl StreamedBody {
    pub fn new(
        pieces: mpsc::Receiver<io::Result<Bytes>>,
        size_bytes: Option<u64>,
        pulse: Arc<Pulse>,
    ) -> Self {
        pulse.left_bytes.store(size_bytes.unwrap_or(u64::MAX), Relaxed);
        Self { pieces, left_bytes: size_bytes, pulse }
    }
}

impl Body for StreamedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let broken = |why: &str| Poll::Ready(Some(Err(io::Error::other(why.to_owned()))));
        if self.pulse.unwanted.load(Relaxed) {
            return broken("the server has answered already");
        }
        match ready!(self.pieces.poll_recv(cx)) {
            Some(Ok(piece)) => {
                let length = piece.len() as u64;
                if let Some(left) = self.left_bytes {
                    let Some(left) = left.checked_sub(length) else {
                        return broken("the file is longer than it was");
                    };
                    self.left_bytes = Some(left);
                    self.pulse.left_bytes.store(left, Relaxed);
                }
                *self.pulse.moved_at.lock().expect("BUG: no one panics with this lock") =
                    Instant::now();
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None if self.left_bytes.is_some_and(|left| left > 0) => {
                broken("the file is shorter than it was")
            }
            None => {
                self.pulse.left_bytes.store(0, Relaxed);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left_bytes == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left_bytes.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
