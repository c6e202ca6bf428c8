//! What the rows work on. Everything is made from numbers, so that parent and child processes make
//! the same without telling each other.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use farmhand::wire::FileSpec;
use sha2::{Digest as _, Sha256};

/// Files of a folder to scan, so many to a directory.
const FILES_A_DIRECTORY: usize = 100;

/// Bytes that no file system and no processor can shorten.
pub fn random_bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// A long content in pieces: the same over and over, nothing between here and the disk can tell.
pub fn pieces(content: &[u8], piece_bytes: usize, size_bytes: u64) -> impl Iterator<Item = &[u8]> {
    let mut left = size_bytes;
    content.chunks(piece_bytes).cycle().map_while(move |piece| {
        let count = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        left -= count as u64;
        (count > 0).then(|| &piece[..count])
    })
}

pub fn sha256_hex(bytes: &[u8]) -> String {
    const_hex::encode(Sha256::digest(bytes))
}

/// Makes a folder of files, of random content of the seeds from `seed` on. Written through the page cache,
/// they stay in it.
pub fn make_folder(dir: &Path, files: usize, size_bytes: usize, seed: u64) {
    make_folder_of(dir, files, |number| random_bytes(seed + number as u64, size_bytes));
}

/// Makes a folder of files of this content.
pub fn make_folder_of(dir: &Path, files: usize, content: impl Fn(usize) -> Vec<u8>) {
    for first in (0..files).step_by(FILES_A_DIRECTORY) {
        let dir = dir.join(format!("shot-{:03}", first / FILES_A_DIRECTORY));
        fs::create_dir_all(&dir).expect("cannot make a folder");
        for number in first..files.min(first + FILES_A_DIRECTORY) {
            let path = dir.join(format!("texture-{number:06}.exr"));
            fs::write(path, content(number)).expect("cannot make a file");
        }
    }
}

/// The files below a folder.
pub fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut dirs, mut files) = (vec![dir.to_owned()], Vec::new());
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

/// The content of the blob of this number in a prepared store: as short as may be, the rows that
/// use it never read it.
pub fn blob_content(number: usize) -> Vec<u8> {
    format!("{number:016}").into_bytes()
}

/// A list of files as clients send it: paths of a usual length, 100 to a directory, and so many
/// distinct blobs in turn.
pub fn file_specs(files: usize, blobs: usize) -> Vec<FileSpec<'static>> {
    let shas: Vec<String> = (0..blobs).map(|blob| sha256_hex(&blob_content(blob))).collect();
    let spec = |number: usize| FileSpec {
        sha: shas[number % blobs].clone().into(),
        size: blob_content(number % blobs).len() as u64,
        path: format!("shot-{:04}/textures-{number:06}.exr", number / FILES_A_DIRECTORY).into(),
    };
    (0..files).map(spec).collect()
}

/// A list of files of which no server can know the blobs.
pub fn unknown_specs(files: usize) -> Vec<FileSpec<'static>> {
    let random_sha = || const_hex::encode(random_bytes(fastrand::u64(..), 32));
    let mut specs = file_specs(files, 1);
    specs.iter_mut().for_each(|spec| spec.sha = random_sha().into());
    specs
}

pub fn uploading(storage: &Path) -> PathBuf {
    storage.join("file-store/uploading")
}

/// Where Shaman's layout has blobs.
pub const STORED: &str = "file-store/stored";

/// The directories in there.
pub fn prefixes() -> impl Iterator<Item = String> {
    (0..=255u8).map(|prefix| format!("{prefix:02x}"))
}

/// Where Shaman's layout has a blob: its directory, and its file.
pub fn blob_path(storage: &Path, sha: &str, size_bytes: u64) -> (PathBuf, PathBuf) {
    let mut dir = storage.join(STORED);
    dir.push(&sha[..2]);
    dir.push(&sha[2..]);
    let file = dir.join(format!("{size_bytes}.blob"));
    (dir, file)
}

/// The directories that a store has before its first blob.
pub fn make_empty_store(storage: &Path) {
    fs::create_dir_all(uploading(storage)).expect("cannot make a store");
    for prefix in prefixes() {
        fs::create_dir_all(storage.join(STORED).join(prefix)).expect("cannot make a store");
    }
}

/// A store that has blobs of these contents.
pub fn make_store(storage: &Path, contents: impl Iterator<Item = Vec<u8>>) {
    make_empty_store(storage);
    for content in contents {
        make_blob(storage, &content);
    }
}

/// Makes a blob, and returns its file.
pub fn make_blob(storage: &Path, content: &[u8]) -> PathBuf {
    let (dir, file) = blob_path(storage, &sha256_hex(content), content.len() as u64);
    fs::create_dir(dir).expect("cannot make a blob's directory");
    fs::write(&file, content).expect("cannot make a blob");
    file
}

/// Makes a blob look as if it had last been needed so long ago.
pub fn make_old(blob: &Path, days: u64) {
    let then = SystemTime::now() - Duration::from_secs(days * 86_400);
    let file = fs::File::open(blob).expect("cannot open a blob");
    file.set_modified(then).expect("cannot make a blob old");
}
