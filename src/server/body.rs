//! Request bodies: drained when nobody wants them, and read by blocking code.

use std::{
    io::{self, BufRead, Read},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::{sync::mpsc, time::Instant};

use super::{ApiError, App, metrics::Counted};

/// How much is drained of a body that does not say its length, in bytes.
const MAX_DRAINED_OF_ENDLESS: u64 = 64 << 20;

/// How long a body is drained at most: time enough for the largest files.
const MAX_DRAIN_TIME: Duration = Duration::from_secs(3600);

/// How long a client that expects `100 Continue` certainly waits for it. curl sends after a second.
const EXPECTS_FOR: Duration = Duration::from_millis(500);

/// How many pieces of a body wait for the disk, and how many are handed on for each time that the connection
/// is woken. A piece is what one read of the socket gave: at most a buffer of the connection.
const PIECES_IN_FLIGHT: (usize, usize) = (2, 1);

/// The same while there are few uploads: to be woken for each piece takes as long as to receive one.
const PIECES_IN_FLIGHT_OF_FEW: (usize, usize) = (8, 4);
const FEW: usize = 4;

/// A body that, dropped before its end, is read to its end in the background.
///
/// A client that is still sending when the server answers and closes gets a reset, and may never
/// see the answer. So every early answer of every route goes through here: answer, then drain.
pub(super) struct Draining {
    body: Option<Incoming>,
    app: App,
    /// The client waits for our word before it sends anything, but only for a while.
    waits_until: Option<Instant>,
}

impl Draining {
    pub fn new(body: Incoming, app: App, expects_continue: bool) -> Self {
        let waits_until = expects_continue.then(|| Instant::now() + EXPECTS_FOR);
        Self { body: Some(body), app, waits_until }
    }
}

impl HttpBody for Draining {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.waits_until = None;
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Draining {
    fn drop(&mut self) {
        if let Some(body) = self.body.take()
            && !body.is_end_stream()
            && self.waits_until.is_none_or(|end| end < Instant::now())
            && !self.app.end.is_cancelled()
        {
            let (end, idle) = (self.app.end.clone(), self.app.options.body_timeout);
            self.app.exec.spawn(async move {
                let drain = tokio::time::timeout(MAX_DRAIN_TIME, drain(body, idle));
                end.run_until_cancelled(drain).await;
            });
        }
    }
}

async fn drain(mut body: Incoming, idle: Duration) {
    let mut left = body.size_hint().exact().unwrap_or(MAX_DRAINED_OF_ENDLESS);
    while left > 0 {
        match tokio::time::timeout(idle, body.frame()).await {
            Ok(Some(Ok(frame))) => {
                left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
            }
            _ => return,
        }
    }
}

/// Why a body could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// No byte came for too long.
    #[error("no data came for {} s", .0.as_secs())]
    Silent(Duration),
    /// The connection broke, or what came is no HTTP.
    #[error("the connection broke: {0}")]
    Broken(axum::Error),
}

/// The next piece of a body; `None` at its end.
pub(super) async fn next_piece(
    body: &mut Body,
    idle: Duration,
) -> Result<Option<Bytes>, BodyError> {
    loop {
        match tokio::time::timeout(idle, body.frame()).await {
            Err(_) => return Err(BodyError::Silent(idle)),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(BodyError::Broken(error)),
            // Trailers carry nothing for us.
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// The same, and counts its bytes, here and for the metrics.
pub(super) async fn next_counted(
    app: &App,
    body: &mut Body,
    bytes: &mut u64,
) -> Result<Option<Bytes>, BodyError> {
    let piece = next_piece(body, app.options.body_timeout).await?;
    let count = piece.as_ref().map_or(0, |piece| piece.len() as u64);
    *bytes += count;
    app.metrics.received_bytes.inc_by(count);
    Ok(piece)
}

/// What a [`PieceReader`] gets.
enum Piece {
    Data(Bytes),
    /// The body was whole.
    End,
}

/// Sends pieces to a [`PieceReader`] on another thread, which sees that the body broke off if there is no end.
struct PieceSender<'a> {
    sender: &'a mpsc::Sender<Piece>,
    /// Waits until there is room for so many.
    at_once: usize,
    room: Option<mpsc::PermitIterator<'a, Piece>>,
}

impl PieceSender<'_> {
    /// Hands one on, when there is room. Whether anybody wants it.
    async fn send(&mut self, piece: Piece) -> bool {
        loop {
            if let Some(permit) = self.room.as_mut().and_then(Iterator::next) {
                permit.send(piece);
                return !self.sender.is_closed();
            }
            match self.sender.reserve_many(self.at_once).await {
                Ok(room) => self.room = Some(room),
                Err(_) => return false,
            }
        }
    }
}

/// A body as blocking code reads it: as a stream of bytes, or piece by piece without copying them.
pub(super) struct PieceReader {
    pieces: mpsc::Receiver<Piece>,
    piece: Bytes,
    at_end: bool,
}

/// Reads a body to its end, and counts the bytes as they come. Dropped before that, what was read is in `content`,
/// and the rest still to come.
pub(super) async fn read_whole(
    app: &App,
    body: &mut Body,
    content: &mut Vec<u8>,
    bytes: &mut u64,
) -> Result<(), ApiError> {
    while let Some(piece) = next_counted(app, body, bytes).await? {
        content.extend_from_slice(&piece);
    }
    Ok(())
}

/// Has a thread read a body of at most so many bytes, and counts them, but for those that have been read before. If this future is dropped, because the
/// client is gone, the thread sees that the body has broken off.
pub(super) async fn read_by_thread<T: Send + 'static>(
    app: &App,
    (begun, mut body): (Bytes, Body),
    limit: u64,
    bytes: &mut u64,
    read: impl FnOnce(&mut PieceReader) -> T + Send + 'static,
) -> Result<T, ApiError> {
    if body.size_hint().exact().is_some_and(|length| length > limit) {
        return Err(ApiError::too_long(limit));
    }
    let permit = app.uploads.clone().acquire_owned().await.expect("BUG: never closed");
    let _in_flight = Counted::new(&app.metrics.uploads_in_flight);
    let is_one_of_few = app.uploads.available_permits() + FEW >= app.options.max_uploads;
    let (in_flight, at_once) =
        if is_one_of_few { PIECES_IN_FLIGHT_OF_FEW } else { PIECES_IN_FLIGHT };
    let (sender, pieces) = mpsc::channel(in_flight);
    let mut reader = PieceReader { pieces, piece: Bytes::new(), at_end: false };
    let reading = app.exec.blocking(move || {
        let _permit = permit;
        read(&mut reader)
    });
    // `move`: when this ends, however, the reader must see the end, and the body be drained.
    let feeding = async move {
        let mut sender = PieceSender { sender: &sender, at_once, room: None };
        if !begun.is_empty() {
            sender.send(Piece::Data(begun)).await;
        }
        while let Some(piece) = next_counted(app, &mut body, bytes).await? {
            if *bytes > limit {
                return Err(ApiError::too_long(limit));
            }
            // The reader has seen enough; what it says is the answer.
            if !sender.send(Piece::Data(piece)).await {
                return Ok(());
            }
        }
        // A reader that has seen enough need not know.
        sender.send(Piece::End).await;
        Ok::<_, ApiError>(())
    };
    let (read, fed) = tokio::join!(reading, feeding);
    // A body that broke off is why what was read is not whole, and the better answer.
    fed?;
    Ok(read)
}

impl PieceReader {
    /// Waits for something to read, if there is nothing.
    fn fill(&mut self) -> io::Result<()> {
        while self.piece.is_empty() && !self.at_end {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(piece)) => self.piece = piece,
                Some(Piece::End) => self.at_end = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        Ok(())
    }
}

impl Iterator for PieceReader {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<io::Result<Bytes>> {
        let filled = self.fill().map(|()| std::mem::take(&mut self.piece));
        filled.map(|piece| (!piece.is_empty()).then_some(piece)).transpose()
    }
}

impl BufRead for PieceReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.fill()?;
        Ok(&self.piece)
    }

    fn consume(&mut self, count: usize) {
        self.piece.advance(count);
    }
}

impl Read for PieceReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buf)?;
        self.consume(count);
        Ok(count)
    }
}
