//! Sends one blob from one file, if that file still is what was hashed.

use std::{
    convert::Infallible,
    fs::File,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{sync::mpsc, time::timeout};

use super::{buffers::Buffers, line::Upload, pieces, run::Job, way::Mode};
use crate::{
    client::{ClientError, UploadBody, UploadOutcome},
    disk::Fingerprint,
    domain::BlobId,
    scan::ScannedFile,
};

/// Files up to this size are read at once; larger ones in pieces of it.
const PIECE_BYTES: usize = 256 * 1024;

/// How many pieces are read ahead of the connection. With those it holds itself, an upload takes
/// some 2 MiB of memory.
const PIECES_AHEAD: usize = 4;

/// How long the reader of a file may take to notice that its upload has ended.
const READER_END: Duration = Duration::from_secs(2);

/// What became of an attempt.
#[derive(Debug)]
pub(super) enum Sent {
    /// The server's word on it.
    Outcome(UploadOutcome),
    /// The file is gone, or no longer what was hashed.
    Changed,
    /// Somebody held the line, and the server or the connection did not wait for that.
    Interrupted,
}

/// Sends a blob from a file that had this content when it was scanned.
///
/// The file must look as it did then before its first byte is sent and after its last is read; the
/// last piece is held back until that is known. And the server verifies what it gets: a file that
/// changed without a trace is answered 417.
pub(super) async fn send(
    job: &Arc<Job>,
    id: BlobId,
    source: &ScannedFile,
    may_defer: bool,
) -> Result<Sent, ClientError> {
    let upload = Arc::new(job.options.line.begin(source.path.as_str(), id.size_bytes).await);
    let counted = Counted::new(job.clone());
    let path = job.root.join(source.path.as_str());
    let fingerprint = source.fingerprint;
    // Who does not wait for others any more sends all of it beside them.
    let upload = if may_defer {
        let file =
            pieces::Source { id, path: path.clone(), fingerprint, name: source.path.as_str() };
        match pieces::send(job, file, upload).await? {
            pieces::Tried::Sent(sent) => return Ok(sent),
            pieces::Tried::Plain(upload) => upload,
        }
    } else {
        upload
    };
    let (start, sent_before) = (Instant::now(), job.sent_bytes.load(Relaxed));
    let (outcome, unchanged) = if id.size_bytes <= PIECE_BYTES as u64 {
        let buffers = job.buffers.clone();
        let read = job.exec.blocking(move || read_whole(path, &fingerprint, &buffers));
        let Ok(content) = read.await else { return Ok(Sent::Changed) };
        upload.pass(id.size_bytes).await;
        job.sent_bytes.fetch_add(id.size_bytes, Relaxed);
        let body = UploadBody::Whole(content);
        (job.client.upload(&id, source.path.as_str(), may_defer, body).await?, None)
    } else {
        let (pieces, read) = mpsc::channel(PIECES_AHEAD);
        let (exec, buffers) = (job.exec.clone(), job.buffers.clone());
        let reading = tokio::spawn(async move {
            exec.blocking(move || read_pieces(path, &fingerprint, &buffers, &pieces)).await
        });
        // One at a time: what is in there can no longer be held back.
        let (out, body) = mpsc::channel(1);
        let body = UploadBody::Pieces(body);
        let outcome = tokio::select! {
            outcome = job.client.upload(&id, source.path.as_str(), may_defer, body) => outcome?,
            never = pass_on(read, out, &upload, &counted, Progress::Content) => match never {},
        };
        (outcome, Some(reading))
    };
    if matches!(outcome, UploadOutcome::Stored) {
        job.tally.count(Mode::Plain, id.size_bytes);
        // All that went over the line meanwhile: it is shared.
        let sent_bytes = job.sent_bytes.load(Relaxed) - sent_before;
        job.chooser().speeds.sent(sent_bytes, start.elapsed());
    }
    if matches!(outcome, UploadOutcome::Stored | UploadOutcome::AlreadyStored) {
        counted.complete(id.size_bytes);
        return Ok(Sent::Outcome(outcome));
    }
    counted.take_back();
    // A reader that found the file changed has broken the upload off; that is the reason, then.
    // One that still waits for a connection that takes nothing more has nothing to say.
    if let Some(reading) = unchanged
        && let Ok(Ok(Err(ReadError::Changed))) = timeout(READER_END, reading).await
    {
        return Ok(Sent::Changed);
    }
    // A file that is sent as a whole waits before its request is begun.
    let broke = matches!(outcome, UploadOutcome::Unknown(_) | UploadOutcome::Later { .. });
    if broke && id.size_bytes > PIECE_BYTES as u64 && upload.was_held() {
        return Ok(Sent::Interrupted);
    }
    Ok(Sent::Outcome(outcome))
}

/// Passes on what is read, as fast as the line allows, and lives on until it is dropped.
pub(super) async fn pass_on(
    mut read: mpsc::Receiver<io::Result<Bytes>>,
    out: mpsc::Sender<io::Result<Bytes>>,
    upload: &Upload,
    counted: &Counted,
    progress: Progress,
) -> Infallible {
    'pieces: while let Some(piece) = read.recv().await {
        let mut piece = match piece {
            Ok(piece) => piece,
            Err(error) => {
                // If nobody listens, it is broken off already.
                let _ = out.send(Err(error)).await;
                break;
            }
        };
        while !piece.is_empty() {
            // First there must be room: what has been allowed to go must not wait behind anything.
            let Ok(room) = out.reserve().await else { break 'pieces };
            let slice = piece.split_to(piece.len().min(upload.slice_bytes()));
            upload.pass(slice.len() as u64).await;
            counted.sent(slice.len() as u64);
            if progress == Progress::Content {
                counted.done(slice.len() as u64);
            }
            room.send(Ok(slice));
        }
    }
    drop((read, out));
    std::future::pending().await
}

/// Whether what is passed on is the content of a file, so that it can be seen how much of that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Content,
    Frames,
}

/// Counts an attempt's bytes, so that they can be taken back.
pub(super) struct Counted {
    job: Arc<Job>,
    bytes: AtomicU64,
}

impl Counted {
    pub fn new(job: Arc<Job>) -> Self {
        Self { job, bytes: AtomicU64::new(0) }
    }

    /// So many bytes were given to a connection.
    pub fn sent(&self, bytes: u64) {
        self.job.sent_bytes.fetch_add(bytes, Relaxed);
    }

    /// So much of the blob need not be looked at again.
    pub fn done(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.job.progress.add_bytes(bytes);
    }

    pub fn complete(&self, total_bytes: u64) {
        self.job.progress.add_bytes(total_bytes.saturating_sub(self.bytes.load(Relaxed)));
    }

    pub fn take_back(&self) {
        self.job.progress.take_back_bytes(self.bytes.swap(0, Relaxed));
    }
}

#[derive(Debug)]
pub(super) enum ReadError {
    /// It is not, or no longer, the file that was hashed.
    Changed,
    /// Nobody reads the pieces any more.
    Unwanted,
}

impl From<io::Error> for ReadError {
    fn from(_: io::Error) -> Self {
        // Whatever it is, hashing the file again will say it.
        Self::Changed
    }
}

pub(super) fn open(path: PathBuf, expected: &Fingerprint) -> Result<File, ReadError> {
    let file = File::open(path)?;
    check(&file, expected)?;
    Ok(file)
}

pub(super) fn check(file: &File, expected: &Fingerprint) -> Result<(), ReadError> {
    if Fingerprint::of(&file.metadata()?) == *expected { Ok(()) } else { Err(ReadError::Changed) }
}

pub(super) fn read_whole(
    path: PathBuf,
    expected: &Fingerprint,
    buffers: &Buffers,
) -> Result<Bytes, ReadError> {
    let mut file = open(path, expected)?;
    let length = usize::try_from(expected.size_bytes).map_err(|_| ReadError::Changed)?;
    let content = buffers.read(&mut file, length)?;
    check(&file, expected)?;
    Ok(content)
}

fn read_pieces(
    path: PathBuf,
    expected: &Fingerprint,
    buffers: &Buffers,
    pieces: &mpsc::Sender<io::Result<Bytes>>,
) -> Result<(), ReadError> {
    let read = (|| {
        let mut file = open(path, expected)?;
        let mut left = expected.size_bytes;
        while left > 0 {
            let length = PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES));
            let piece = buffers.read(&mut file, length)?;
            left -= piece.len() as u64;
            if left == 0 {
                check(&file, expected)?;
            }
            pieces.blocking_send(Ok(piece)).map_err(|_| ReadError::Unwanted)?;
        }
        Ok(())
    })();
    if let Err(ReadError::Changed) = read {
        // Breaks the upload off. If nobody listens, it is broken off already.
        let _ = pieces.blocking_send(Err(io::Error::other("the file has changed")));
    }
    read
}
