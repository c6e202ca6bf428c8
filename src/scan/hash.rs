//! Hashes one file at a time: stat, read, stat again.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, SystemTime},
};

use sha2::{Digest as _, Sha256};

use super::{
    cache::CacheRow,
    plan::{FINE_WINDOW_NS, changed_ns, racy_window_ns},
    walk::kind,
};
use crate::{
    disk::{Fingerprint, unix_ns},
    domain::Digest,
    meter::Progress,
};

/// One buffer a thread, used again: a fresh one for each file costs half the speed on small ones.
const BUFFER_BYTES: usize = 256 * 1024;

/// How often a file that changed while it was read is read again.
const TRIES: usize = 3;

/// Why a file has no digest.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is something else by now.
    #[error("it is {0}")]
    NotAFile(&'static str),
    /// It changed each time it was read.
    #[error("it changes while it is read")]
    Unstable,
    /// Somebody asked to stop.
    #[error("stopped")]
    Stopped,
}

/// Hashes files one after another.
pub(super) struct Hasher<'a> {
    buffer: Box<[u8]>,
    progress: &'a Progress,
    stop: &'a AtomicBool,
}

impl<'a> Hasher<'a> {
    pub fn new(progress: &'a Progress, stop: &'a AtomicBool) -> Self {
        Self { buffer: vec![0; BUFFER_BYTES].into(), progress, stop }
    }

    /// The digest of a file, and the evidence that it was all of one moment.
    pub fn hash(&mut self, path: &Path) -> Result<CacheRow, HashError> {
        for attempt in 0..TRIES {
            if attempt > 0 {
                thread::sleep(Duration::from_millis(50)); // lets the writer come to an end
            }
            if let Some(row) = self.try_hash(path)? {
                return Ok(row);
            }
        }
        Err(HashError::Unstable)
    }

    /// `None` if the file changed meanwhile.
    fn try_hash(&mut self, path: &Path) -> Result<Option<CacheRow>, HashError> {
        let mut file = open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(HashError::NotAFile(kind(&metadata)));
        }
        let fingerprint = Fingerprint::of(&metadata);
        rest(&fingerprint);
        let hashed_at_ns = unix_ns(SystemTime::now());

        let mut hasher = Sha256::new();
        let mut read_bytes = 0;
        loop {
            let count = match file.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            hasher.update(&self.buffer[..count]);
            read_bytes += count as u64;
            self.progress.add_bytes(count as u64);
            if read_bytes > fingerprint.size_bytes {
                break; // it grows: no need to follow a log for ever
            }
            if self.stop.load(Relaxed) {
                return Err(HashError::Stopped);
            }
        }
        let same = read_bytes == fingerprint.size_bytes
            && Fingerprint::of(&file.metadata()?) == fingerprint
            // Saving by rename leaves the old file as it was, under no name.
            && Fingerprint::of(&std::fs::metadata(path)?) == fingerprint;
        if !same {
            self.progress.take_back_bytes(read_bytes);
            return Ok(None);
        }
        let digest = Digest::from_bytes(hasher.finalize().into());
        Ok(Some(CacheRow { fingerprint, hashed_at_ns, digest }))
    }
}

/// Opens a file for reading; a pipe that has taken its place does not block.
fn open(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        rustix::fs::OFlags::NONBLOCK.bits().cast_signed(),
    );
    options.open(path)
}

/// A file that has only just changed is given a few milliseconds: read in the same tick of the
/// clock as it was written, its digest could never be trusted again.
fn rest(fingerprint: &Fingerprint) {
    if racy_window_ns(fingerprint) == FINE_WINDOW_NS {
        let age = unix_ns(SystemTime::now()).saturating_sub(changed_ns(fingerprint));
        if (0..=FINE_WINDOW_NS).contains(&age) {
            let left = (FINE_WINDOW_NS - age).unsigned_abs() + 1_000_000;
            thread::sleep(Duration::from_nanos(left));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    fn hash(path: &Path) -> Result<CacheRow, HashError> {
        Hasher::new(&Progress::default(), &AtomicBool::new(false)).hash(path)
    }

    #[test]
    fn hashes_known_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        for (content, digest) in [
            ("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            ("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ] {
            fs::write(&path, content).unwrap();
            let row = hash(&path).unwrap();
            assert_eq!(row.digest.to_string(), digest);
            assert_eq!(row.fingerprint.size_bytes, content.len() as u64);
        }
        let long = vec![7; 3 * BUFFER_BYTES + 5];
        fs::write(&path, &long).unwrap();
        assert_eq!(hash(&path).unwrap().digest.as_bytes()[..], Sha256::digest(&long)[..]);
    }

    #[test]
    fn a_fresh_file_is_at_rest_when_it_is_hashed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "x").unwrap();
        let row = hash(&path).unwrap();
        let window = racy_window_ns(&row.fingerprint);
        if window == FINE_WINDOW_NS {
            assert!(row.hashed_at_ns > changed_ns(&row.fingerprint) + window);
        }
    }

    #[test]
    fn a_file_that_keeps_changing_is_unstable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        // So long that the other thread gets its turn while it is read, whatever the machine does.
        const SIZE: u64 = 256 << 20;
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut file = File::options().append(true).open(&path).unwrap();
                while !stop.load(Relaxed) {
                    file.write_all(b"more").unwrap();
                }
            });
            while fs::metadata(&path).unwrap().len() == SIZE {
                thread::yield_now();
            }
            let result = hash(&path);
            stop.store(true, Relaxed);
            assert!(matches!(result, Err(HashError::Unstable)), "{result:?}");
        });
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_pipe_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from(0o644)).unwrap();
        assert!(matches!(hash(&path), Err(HashError::NotAFile("a pipe"))));
    }
}
