//! Sends a large blob in pieces, of which the server keeps what has come; and only those chunks of a blob that
//! the server does not know from others.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    path::PathBuf,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use bytes::Bytes;
use reqwest::StatusCode;
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    line::Upload,
    pack::Packer,
    run::Job,
    send::{Counted, Progress, ReadError, Sent, check, open, pass_on},
    way::{Mode, SAMPLE_BYTES, SAMPLES},
};
use crate::{
    chunks::Chunker,
    client::{ClientError, Told, Unfinished, UploadBody, UploadOutcome},
    disk::{Fingerprint, read_at},
    domain::{BlobId, Chunk, ChunkId},
    wire::{CHUNK_HEAD_BYTES, Run, frame_chunk, runs_of, write_recipe},
};

/// How long a piece is that nobody has looked for, in bytes: what is lost with a connection is less.
const PIECE_BYTES: u64 = 256 << 10;

/// How much of a blob goes with one recipe, in bytes.
const SEGMENT_BYTES: u64 = 16 << 20;

/// How many of these are on their way at once: while one is asked about, another one is sent.
const SEGMENTS_AT_ONCE: usize = 3;

/// How much is sent with one request, in bytes. What a server has not answered for is lost when it is killed,
/// and more than this may be on its way.
const REQUEST_BYTES: u64 = 2 << 20;

/// How many frames are read ahead of the connection.
const FRAMES_AHEAD: usize = 4;

/// A file that had this content when it was scanned.
pub(super) struct Source<'a> {
    pub id: BlobId,
    pub path: PathBuf,
    pub fingerprint: Fingerprint,
    /// For the log.
    pub name: &'a str,
}

/// What became of a try to send a blob in pieces.
pub(super) enum Tried {
    /// This.
    Sent(Sent),
    /// Nothing: it is to be sent as a whole.
    Plain(Arc<Upload>),
}

/// What all segments of an upload share.
struct Pieces {
    job: Arc<Job>,
    id: BlobId,
    path: PathBuf,
    fingerprint: Fingerprint,
    upload: Arc<Upload>,
    counted: Arc<Counted>,
    /// Whether recipes are of use: there may be something.
    asks: bool,
    compresses: bool,
}

/// Consecutive chunks of a blob.
struct Segment {
    offset: u64,
    /// Without digests, if nobody asks.
    chunks: Vec<(Option<ChunkId>, u32)>,
}

/// Why a segment is not in place.
enum Failed {
    Changed,
    Outcome(UploadOutcome),
    Client(ClientError),
}

impl From<ReadError> for Failed {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Changed => Self::Changed,
            // Only those who have an outcome stop reading.
            ReadError::Unwanted => {
                Self::Outcome(UploadOutcome::Unknown("the connection broke".into()))
            }
        }
    }
}

fn told<T>(told: Told<T>) -> Result<T, Failed> {
    told.map_err(Failed::Client)?.map_err(Failed::Outcome)
}

/// How often a blob is begun again when the server has given it up: it was silent for too long, or the server
/// began anew. What has come of it is kept there.
const BEGIN_AGAIN: u32 = 20;

/// Sends a blob in pieces, if that is better than to send it as a whole.
pub(super) async fn send(
    job: &Arc<Job>,
    source: Source<'_>,
    upload: Arc<Upload>,
) -> Result<Tried, ClientError> {
    let (id, limit) = (source.id, job.options.line.rate());
    let mut known = None;
    // What was begun in one way is gone on with in that one: what has come of it is cut like that.
    let begun = job.begun().get(&id).copied();
    // Asked beforehand: the answer is awaited without the lock.
    let asks = begun.is_none() && job.chooser().samples(id.size_bytes, limit);
    if asks {
        let (path, fingerprint) = (source.path.clone(), source.fingerprint);
        let sample = job.exec.blocking(move || sample(path, &fingerprint)).await;
        let Ok((sample, count)) = sample else { return Ok(Tried::Sent(Sent::Changed)) };
        upload.pass(sample.len() as u64).await;
        job.sent_bytes.fetch_add(sample.len() as u64, Relaxed);
        match job.client.known_chunks(sample.into()).await {
            Ok(Ok(answer)) => known = Some(f64::from(answer) / count.max(1) as f64),
            Ok(Err(outcome)) => return Ok(Tried::Sent(Sent::Outcome(outcome))),
            // Whatever is wrong with that: a plain upload will tell, or go.
            Err(error) => tracing::debug!("{} is sent as a whole: {error}", source.name),
        }
    }
    let mode = begun.unwrap_or_else(|| job.chooser().choose(id.size_bytes, known, limit));
    if mode == Mode::Plain {
        return Ok(Tried::Plain(upload));
    }
    let unfinished = Unfinished { id, sender: &job.sender };
    let counted = Arc::new(Counted::new(job.clone()));
    let mut begun_again = 0;
    let outcome = loop {
        match once(job, &source, mode, &upload, &counted).await {
            Ok(outcome @ (UploadOutcome::Stored | UploadOutcome::AlreadyStored))
            | Err(Failed::Outcome(outcome @ UploadOutcome::AlreadyStored)) => {
                counted.complete(id.size_bytes);
                return Ok(Tried::Sent(Sent::Outcome(outcome)));
            }
            Ok(outcome) | Err(Failed::Outcome(outcome)) => break outcome,
            Err(Failed::Changed) => {
                counted.take_back();
                // What has come of it is of no use to anybody. If that cannot be said, it expires.
                let _ = job.client.abandon_unfinished(unfinished).await;
                return Ok(Tried::Sent(Sent::Changed));
            }
            Err(Failed::Client(ClientError::Status { status: StatusCode::NOT_FOUND, .. }))
                if begun_again < BEGIN_AGAIN =>
            {
                counted.take_back();
                begun_again += 1;
            }
            Err(Failed::Client(error)) => {
                counted.take_back();
                let says_no = matches!(
                    error,
                    ClientError::Full { .. }
                        | ClientError::Refused { .. }
                        | ClientError::Untrusted { .. }
                );
                if says_no {
                    return Err(error);
                }
                // Somebody on the way does not let it through, or it does not fit to what is there. A plain
                // upload goes, or tells what is wrong. If this cannot be given up, that waits for a while.
                tracing::debug!("{} is sent as a whole: {error}", source.name);
                job.begun().remove(&id);
                let _ = job.client.abandon_unfinished(unfinished).await;
                return Ok(Tried::Plain(upload));
            }
        }
    };
    counted.take_back();
    let broke = matches!(outcome, UploadOutcome::Unknown(_) | UploadOutcome::Later { .. });
    if broke && upload.was_held() {
        return Ok(Tried::Sent(Sent::Interrupted));
    }
    Ok(Tried::Sent(Sent::Outcome(outcome)))
}

/// Begins, or goes on, and comes to an end.
async fn once(
    job: &Arc<Job>,
    source: &Source<'_>,
    mode: Mode,
    upload: &Arc<Upload>,
    counted: &Arc<Counted>,
) -> Result<UploadOutcome, Failed> {
    let id = source.id;
    let unfinished = Unfinished { id, sender: &job.sender };
    job.begun().insert(id, mode);
    let begun = told(job.client.begin_unfinished(unfinished).await)?;
    let pieces = Arc::new(Pieces {
        job: job.clone(),
        id,
        path: source.path.clone(),
        fingerprint: source.fingerprint,
        upload: upload.clone(),
        counted: counted.clone(),
        asks: mode == Mode::Delta || begun.resumable,
        compresses: job.chooser().compresses(job.options.line.rate()),
    });
    let (start, sent_before) = (Instant::now(), job.sent_bytes.load(Relaxed));
    let reused_before = job.tally.reused_bytes.load(Relaxed);
    all(&pieces, mode).await?;
    let finished = job.client.finish_unfinished(unfinished, source.name).await;
    let outcome = finished.map_err(Failed::Client)?;
    if outcome == UploadOutcome::Stored {
        job.tally.count(mode, id.size_bytes);
        let reused_bytes = job.tally.reused_bytes.load(Relaxed) - reused_before;
        let mut chooser = job.chooser();
        if reused_bytes > id.size_bytes / 10 * 9 {
            chooser.speeds.reused(reused_bytes, start.elapsed());
        } else if mode == Mode::Pieces {
            chooser.speeds.sent(job.sent_bytes.load(Relaxed) - sent_before, start.elapsed());
        }
    }
    Ok(outcome)
}

/// Sees to it that all of a blob is in place on the server.
async fn all(pieces: &Arc<Pieces>, mode: Mode) -> Result<(), Failed> {
    let (segments, mut next) = mpsc::channel(1);
    let cutting = {
        let (pieces, exec) = (pieces.clone(), pieces.job.exec.clone());
        tokio::spawn(async move { exec.blocking(move || cut(&pieces, mode, &segments)).await })
    };
    let mut under_way = JoinSet::new();
    let mut result = Ok(());
    while result.is_ok() {
        if under_way.len() < SEGMENTS_AT_ONCE
            && let Some(segment) = next.recv().await
        {
            let pieces = pieces.clone();
            under_way.spawn(async move { pieces.put_in_place(segment).await });
            continue;
        }
        match under_way.join_next().await {
            Some(Ok(ended)) => result = ended,
            Some(Err(error)) => {
                result = Err(Failed::Outcome(UploadOutcome::Unknown(error.to_string())));
            }
            None => break,
        }
    }
    // Whoever cuts sees that nobody wants more.
    drop(next);
    under_way.shutdown().await;
    let cut = cutting.await.unwrap_or(Err(ReadError::Changed));
    // A file that has changed is the reason for whatever else went wrong.
    match cut {
        Err(ReadError::Changed) => Err(Failed::Changed),
        _ => result,
    }
}

impl Pieces {
    async fn put_in_place(self: Arc<Self>, segment: Segment) -> Result<(), Failed> {
        let unfinished = Unfinished { id: self.id, sender: &self.job.sender };
        let mut missing: Vec<Run> =
            vec![(0, u32::try_from(segment.chunks.len()).unwrap_or(u32::MAX))];
        if self.asks {
            let mut recipe = Vec::new();
            for &(id, size_bytes) in &segment.chunks {
                let id = id.expect("BUG: who asks has digests");
                write_recipe(&Chunk { id, size_bytes }, &mut recipe);
            }
            self.upload.pass(recipe.len() as u64).await;
            self.counted.sent(recipe.len() as u64);
            let client = &self.job.client;
            missing = told(client.lay_unfinished(unfinished, segment.offset, recipe.into()).await)?;
            let total = segment.chunks.iter().map(|(_, size)| u64::from(*size)).sum::<u64>();
            let reused = total.saturating_sub(bytes_of(&segment, &missing));
            self.job.tally.reused_bytes.fetch_add(reused, Relaxed);
            self.counted.done(reused);
        }
        let segment = Arc::new(segment);
        for runs in requests(&segment, &missing) {
            self.send_chunks(&segment, runs).await?;
        }
        Ok(())
    }

    /// Sends these chunks of a segment.
    async fn send_chunks(
        self: &Arc<Self>,
        segment: &Arc<Segment>,
        runs: Vec<Run>,
    ) -> Result<(), Failed> {
        let unfinished = Unfinished { id: self.id, sender: &self.job.sender };
        let bytes = bytes_of(segment, &runs);
        let (frames, read) = mpsc::channel(FRAMES_AHEAD);
        let reading = {
            let (pieces, segment, exec) = (self.clone(), segment.clone(), self.job.exec.clone());
            tokio::spawn(async move {
                exec.blocking(move || pieces.read_frames(&segment, &runs, &frames)).await
            })
        };
        let (out, body) = mpsc::channel(1);
        let sent = tokio::select! {
            sent = self.job.client.send_unfinished(unfinished, UploadBody::Pieces(body)) => told(sent),
            never = pass_on(read, out, &self.upload, &self.counted, Progress::Frames) => match never {},
        };
        // Nobody listens any more: it ends at once.
        match reading.await {
            Ok(Err(ReadError::Changed)) | Err(_) => return Err(Failed::Changed),
            Ok(_) => {}
        }
        sent?;
        self.counted.done(bytes);
        Ok(())
    }

    /// Reads the missing chunks of a segment, as frames.
    fn read_frames(
        &self,
        segment: &Segment,
        runs: &[Run],
        frames: &mpsc::Sender<io::Result<Bytes>>,
    ) -> Result<(), ReadError> {
        let read = (|| {
            let file = open(self.path.clone(), &self.fingerprint)?;
            let mut packer = Packer::new(self.compresses)?;
            let mut places = runs.iter().flat_map(|(first, count)| *first..first + count);
            let mut next = places.next();
            let mut offset = segment.offset;
            for (place, &(id, size_bytes)) in (0u32..).zip(&segment.chunks) {
                if next == Some(place) {
                    next = places.next();
                    let mut frame = vec![0; CHUNK_HEAD_BYTES + size_bytes as usize];
                    let content = &mut frame[CHUNK_HEAD_BYTES..];
                    if !read_at(&file, offset, content)? {
                        return Err(ReadError::Changed);
                    }
                    if id.is_some_and(|id| id != ChunkId::of(content)) {
                        return Err(ReadError::Changed);
                    }
                    let packed = packer.pack(content);
                    // Without a name, as in a plain upload, it is verified with the whole.
                    let id = id.unwrap_or(ChunkId::NAMELESS);
                    frame_chunk(&id, offset, packed.as_deref(), &mut frame);
                    frames.blocking_send(Ok(frame.into())).map_err(|_| ReadError::Unwanted)?;
                }
                offset += u64::from(size_bytes);
            }
            check(&file, &self.fingerprint)
        })();
        if let Err(ReadError::Changed) = read {
            // Breaks the request off. If nobody listens, it is broken off already.
            let _ = frames.blocking_send(Err(io::Error::other("the file has changed")));
        }
        read
    }
}

/// The chunks of these runs, by requests of no more than [`REQUEST_BYTES`] if they have more than one chunk.
fn requests(segment: &Segment, missing: &[Run]) -> Vec<Vec<Run>> {
    let (mut requests, mut places, mut bytes) = (Vec::new(), Vec::new(), 0);
    let end = segment.chunks.len() as u32;
    for place in
        missing.iter().flat_map(|(first, count)| *first..first.saturating_add(*count).min(end))
    {
        let size = u64::from(segment.chunks[place as usize].1);
        if bytes > 0 && bytes + size > REQUEST_BYTES {
            requests.push(runs_of(places.drain(..)));
            bytes = 0;
        }
        places.push(place);
        bytes += size;
    }
    if !places.is_empty() {
        requests.push(runs_of(places));
    }
    requests
}

fn bytes_of(segment: &Segment, runs: &[Run]) -> u64 {
    let sizes = |&(first, count): &Run| {
        let last = (first as usize).saturating_add(count as usize).min(segment.chunks.len());
        segment.chunks.get(first as usize..last).unwrap_or_default()
    };
    runs.iter().flat_map(sizes).map(|(_, size)| u64::from(*size)).sum()
}

/// Cuts a file into segments.
fn cut(pieces: &Pieces, mode: Mode, segments: &mpsc::Sender<Segment>) -> Result<(), ReadError> {
    let file = open(pieces.path.clone(), &pieces.fingerprint)?;
    let send = |segment| segments.blocking_send(segment).map_err(|_| ReadError::Unwanted);
    let size_bytes = pieces.id.size_bytes;
    if mode == Mode::Delta {
        let mut chunker = Chunker::new(&file);
        let mut segment = Segment { offset: 0, chunks: Vec::new() };
        let mut end = 0;
        while let Some((chunk, _)) = chunker.next_chunk()? {
            segment.chunks.push((Some(chunk.id), chunk.size_bytes));
            end += u64::from(chunk.size_bytes);
            if end - segment.offset >= SEGMENT_BYTES {
                let next = Segment { offset: end, chunks: Vec::new() };
                send(std::mem::replace(&mut segment, next))?;
            }
        }
        if end != size_bytes {
            return Err(ReadError::Changed);
        }
        if !segment.chunks.is_empty() {
            send(segment)?;
        }
    } else {
        let mut content = Vec::new();
        for offset in (0..size_bytes).step_by(SEGMENT_BYTES as usize) {
            let end = (offset + SEGMENT_BYTES).min(size_bytes);
            let mut segment = Segment { offset, chunks: Vec::new() };
            for at in (offset..end).step_by(PIECE_BYTES as usize) {
                let length = PIECE_BYTES.min(end - at) as usize;
                let mut id = None;
                if pieces.asks {
                    content.resize(length, 0);
                    if !read_at(&file, at, &mut content)? {
                        return Err(ReadError::Changed);
                    }
                    id = Some(ChunkId::of(&content));
                }
                segment.chunks.push((id, length as u32));
            }
            send(segment)?;
        }
    }
    check(&file, &pieces.fingerprint)
}

/// Chunks from all over a file, as entries of a recipe, and how many.
fn sample(path: PathBuf, expected: &Fingerprint) -> Result<(Vec<u8>, usize), ReadError> {
    let mut file = open(path, expected)?;
    let (mut entries, mut count) = (Vec::new(), 0);
    let mut take = |chunk: &Chunk| {
        write_recipe(chunk, &mut entries);
        count += 1;
    };
    if expected.size_bytes <= SAMPLES * SAMPLE_BYTES {
        let mut chunker = Chunker::new(&file);
        while let Some((chunk, _)) = chunker.next_chunk()? {
            take(&chunk);
        }
    } else {
        let last = expected.size_bytes - SAMPLE_BYTES;
        for place in 0..SAMPLES {
            let offset = last / (SAMPLES - 1) * place;
            for chunk in chunks_at(&mut file, offset)? {
                take(&chunk);
            }
        }
    }
    check(&file, expected)?;
    Ok((entries, count))
}

/// The chunks at this place of a file, but for those that begin or end where the place does.
fn chunks_at(file: &mut File, offset: u64) -> io::Result<Vec<Chunk>> {
    file.seek(SeekFrom::Start(offset))?;
    let mut chunker = Chunker::new(io::Read::take(&*file, SAMPLE_BYTES));
    let mut chunks = Vec::new();
    while let Some((chunk, _)) = chunker.next_chunk()? {
        chunks.push(chunk);
    }
    chunks.pop();
    // Cut where we began, and not by its content; so may be the next one, but then soon no more.
    if offset > 0 && !chunks.is_empty() {
        chunks.remove(0);
    }
    Ok(chunks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> (tempfile::TempDir, PathBuf, Fingerprint) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, content).unwrap();
        let fingerprint = Fingerprint::of(&std::fs::metadata(&path).unwrap());
        (dir, path, fingerprint)
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(length as u64);
        std::iter::repeat_with(|| random.u8(..)).take(length).collect()
    }

    fn entries(content: &[u8]) -> Vec<Vec<u8>> {
        let (mut chunker, mut entries) = (Chunker::new(content), Vec::new());
        while let Some((chunk, _)) = chunker.next_chunk().unwrap() {
            let mut entry = Vec::new();
            write_recipe(&chunk, &mut entry);
            entries.push(entry);
        }
        entries
    }

    #[test]
    fn a_sample_is_of_chunks_that_are_in_the_file() {
        for length in [1, 200_000, 4 << 20, (4 << 20) + 1, 20 << 20] {
            let content = noise(length);
            let (_dir, path, fingerprint) = file(&content);
            let (sample, count) = sample(path, &fingerprint).unwrap();
            let all = entries(&content);
            let sample: Vec<&[u8]> = sample.chunks(36).collect();
            assert_eq!(sample.len(), count);
            let there = sample.iter().filter(|entry| all.iter().any(|one| one == *entry)).count();
            // Some are cut differently, because of where we began.
            assert!(there * 10 >= count * 8, "{there} of {count}, {length}");
            assert!(count >= all.len().min(100), "{count} of {}", all.len());
        }
    }

    #[test]
    fn a_file_that_has_changed_has_no_sample() {
        let (_dir, path, fingerprint) = file(&noise(1000));
        std::fs::write(&path, noise(1001)).unwrap();
        assert!(matches!(sample(path, &fingerprint), Err(ReadError::Changed)));
    }

    #[test]
    fn runs_that_lie_count_for_what_is_there() {
        let segment = Segment { offset: 0, chunks: vec![(None, 10), (None, 20), (None, 30)] };
        assert_eq!(bytes_of(&segment, &[(0, 1), (2, 1)]), 40);
        assert_eq!(bytes_of(&segment, &[(1, u32::MAX), (7, 1), (u32::MAX, 2)]), 50);
        assert_eq!(bytes_of(&segment, &[]), 0);
        let all = requests(&segment, &[(1, u32::MAX), (7, 1), (u32::MAX, 2)]);
        assert_eq!(all, [vec![(1, 2)]]);
    }

    #[test]
    fn requests_are_short_and_have_all_of_it() {
        let mib = 1 << 20;
        let sizes = [mib / 2, mib, mib, 10, 2 * mib, 3 * mib, 1];
        let segment = Segment { offset: 0, chunks: sizes.map(|size| (None, size)).to_vec() };
        let split = requests(&segment, &[(0, 3), (4, 3)]);
        assert_eq!(split, [vec![(0, 2)], vec![(2, 1)], vec![(4, 1)], vec![(5, 1)], vec![(6, 1)]]);
        assert!(requests(&segment, &[]).is_empty());
    }
}
