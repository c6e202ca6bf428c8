//! Sends one blob from one file, if that file still is what was hashed.

use std::{
    fs::File,
    io::{self, Read},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::mpsc, time::timeout};

use super::run::Job;
use crate::{
    client::{ClientError, UploadBody, UploadOutcome},
    disk::Fingerprint,
    domain::BlobId,
    meter::Progress,
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
}

/// Sends a blob from a file that had this content when it was scanned.
///
/// The file must look as it did then before its first byte is sent and after its last is read; the
/// last piece is held back until that is known. And the server verifies what it gets: a file that
/// changed without a trace is answered 417.
pub(super) async fn send(
    job: &Job,
    id: BlobId,
    source: &ScannedFile,
    may_defer: bool,
) -> Result<Sent, ClientError> {
    let counted = Arc::new(Counted { progress: job.progress.clone(), bytes: AtomicU64::new(0) });
    let path = job.root.join(source.path.as_str());
    let fingerprint = source.fingerprint;
    let (body, unchanged) = if id.size_bytes <= PIECE_BYTES as u64 {
        match job.exec.blocking(move || read_whole(path, &fingerprint)).await {
            Ok(content) => (UploadBody::Whole(content), None),
            Err(_) => return Ok(Sent::Changed),
        }
    } else {
        let (pieces, body) = mpsc::channel(PIECES_AHEAD);
        let (exec, counted) = (job.exec.clone(), counted.clone());
        let reading = tokio::spawn(async move {
            exec.blocking(move || read_pieces(path, &fingerprint, &pieces, &counted)).await
        });
        (UploadBody::Pieces(body), Some(reading))
    };
    let outcome = job.client.upload(&id, source.path.as_str(), may_defer, body).await?;
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
    Ok(Sent::Outcome(outcome))
}

/// Counts an attempt's bytes, so that they can be taken back.
struct Counted {
    progress: Arc<Progress>,
    bytes: AtomicU64,
}

impl Counted {
    fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.progress.add_bytes(bytes);
    }

    fn complete(&self, total_bytes: u64) {
        self.progress.add_bytes(total_bytes.saturating_sub(self.bytes.load(Relaxed)));
    }

    fn take_back(&self) {
        self.progress.take_back_bytes(self.bytes.swap(0, Relaxed));
    }
}

enum ReadError {
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

fn open(path: PathBuf, expected: &Fingerprint) -> Result<File, ReadError> {
    let file = File::open(path)?;
    check(&file, expected)?;
    Ok(file)
}

fn check(file: &File, expected: &Fingerprint) -> Result<(), ReadError> {
    if Fingerprint::of(&file.metadata()?) == *expected { Ok(()) } else { Err(ReadError::Changed) }
}

fn read_whole(path: PathBuf, expected: &Fingerprint) -> Result<Bytes, ReadError> {
    let mut file = open(path, expected)?;
    let mut content =
        vec![0; usize::try_from(expected.size_bytes).map_err(|_| ReadError::Changed)?];
    file.read_exact(&mut content)?;
    check(&file, expected)?;
    Ok(content.into())
}

fn read_pieces(
    path: PathBuf,
    expected: &Fingerprint,
    pieces: &mpsc::Sender<io::Result<Bytes>>,
    counted: &Counted,
) -> Result<(), ReadError> {
    let read = (|| {
        let mut file = open(path, expected)?;
        let mut left = expected.size_bytes;
        while left > 0 {
            let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES))];
            file.read_exact(&mut piece)?;
            left -= piece.len() as u64;
            if left == 0 {
                check(&file, expected)?;
            }
            let bytes = piece.len() as u64;
            pieces.blocking_send(Ok(piece.into())).map_err(|_| ReadError::Unwanted)?;
            counted.add(bytes);
        }
        Ok(())
    })();
    if let Err(ReadError::Changed) = read {
        // Breaks the upload off. If nobody listens, it is broken off already.
        let _ = pieces.blocking_send(Err(io::Error::other("the file has changed")));
    }
    read
}
