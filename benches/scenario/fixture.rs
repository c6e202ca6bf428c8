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

pub fn sha256_hex(bytes: &[u8]) -> String {
    base16ct::lower::encode_string(&Sha256::digest(bytes))
}

/// Makes a folder of files of random content. Written through the page cache, they stay in it.
pub fn make_folder(dir: &Path, files: usize, size_bytes: usize) {
    for first in (0..files).step_by(FILES_A_DIRECTORY) {
        let dir = dir.join(format!("shot-{:03}", first / FILES_A_DIRECTORY));
        fs::create_dir_all(&dir).expect("cannot make a folder");
        for number in first..files.min(first + FILES_A_DIRECTORY) {
            let path = dir.join(format!("texture-{number:06}.exr"));
            fs::write(path, random_bytes(number as u64, size_bytes)).expect("cannot make a file");
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

pub fn uploading(storage: &Path) -> PathBuf {
    storage.join("file-store/uploading")
}

/// Where Shaman's layout has a blob: its directory, and its file.
pub fn blob_path(storage: &Path, sha: &str, size_bytes: u64) -> (PathBuf, PathBuf) {
    let mut dir = storage.join("file-store/stored");
    dir.push(&sha[..2]);
    dir.push(&sha[2..]);
    let file = dir.join(format!("{size_bytes}.blob"));
    (dir, file)
}

/// The directories that a store has before its first blob.
pub fn make_empty_store(storage: &Path) {
    fs::create_dir_all(uploading(storage)).expect("cannot make a store");
    for prefix in 0..=255u8 {
        let dir = storage.join(format!("file-store/stored/{prefix:02x}"));
        fs::create_dir_all(dir).expect("cannot make a store");
    }
}

/// A store that has the blobs of [`file_specs`].
pub fn make_store(storage: &Path, blobs: usize) {
    make_empty_store(storage);
    for number in 0..blobs {
        let content = blob_content(number);
        let (dir, file) = blob_path(storage, &sha256_hex(&content), content.len() as u64);
        fs::create_dir(dir).expect("cannot make a blob's directory");
        fs::write(file, content).expect("cannot make a blob");
    }
}

/// Makes the blobs of a store look as if they had last been needed yesterday.
pub fn make_old(blobs: &[PathBuf]) {
    let yesterday = SystemTime::now() - Duration::from_secs(86_400);
    for blob in blobs {
        let file = fs::File::open(blob).expect("cannot open a blob");
        file.set_modified(yesterday).expect("cannot make a blob old");
    }
}
