//! Blobs, requests and folders of any number of files.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tempfile::TempDir;

use super::common::*;

/// A directory in memory, if there is one with enough room: the counts are the same, and do not wait for what others
/// write to the disk.
pub fn directory() -> TempDir {
    const ENOUGH_BYTES: u64 = 1 << 30;
    let memory = Path::new("/dev/shm");
    let room = rustix::fs::statvfs(memory).map_or(0, |found| found.f_bavail * found.f_frsize);
    if room >= ENOUGH_BYTES { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// Contents that are in no other call with another name.
pub fn contents(name: &str, number: usize, bytes: usize) -> Vec<Vec<u8>> {
    let content = |n| {
        let mut content = format!("{name} {n}\n").into_bytes();
        assert!(content.len() <= bytes, "no two would differ");
        content.resize(bytes, b'.');
        content
    };
    (0..number).map(content).collect()
}

/// An upload, whole.
pub fn upload(content: &[u8]) -> Vec<u8> {
    let path = format!("/api/v3/shaman/files/{}", address(content));
    [post_head(&path, "", content.len() as u64), content.to_vec()].concat()
}

/// Whether it is stored.
pub fn status(content: &[u8]) -> Vec<u8> {
    let address = address(content);
    format!("GET /api/v3/shaman/files/{address} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes()
}

fn json(path: &str, body: &str) -> Vec<u8> {
    let head = post_head(
        &format!("/api/v3/shaman/{path}"),
        "Content-Type: application/json\r\n",
        body.len() as u64,
    );
    [&head[..], body.as_bytes()].concat()
}

fn files(contents: &[Vec<u8>]) -> String {
    let file = |(n, content): (usize, &Vec<u8>)| {
        // Directories of a hundred files.
        file(content, &format!("frames/{:04}/{n:06}.exr", n / 100)).to_string()
    };
    contents.iter().enumerate().map(file).collect::<Vec<_>>().join(",")
}

pub fn requirements(contents: &[Vec<u8>]) -> Vec<u8> {
    json("checkout/requirements", &format!("{{\"files\":[{}]}}", files(contents)))
}

pub fn checkout(name: &str, contents: &[Vec<u8>]) -> Vec<u8> {
    let body = format!("{{\"checkoutPath\":\"{name}\",\"files\":[{}]}}", files(contents));
    json("checkout/create", &body)
}

/// Small blobs in one request.
pub fn batch(contents: &[Vec<u8>]) -> Vec<u8> {
    let mut body = Vec::new();
    for content in contents {
        let digest: farmhand::domain::Digest = sha(content).parse().unwrap();
        let length = (content.len() as u32).to_le_bytes();
        body.extend_from_slice(digest.as_bytes());
        body.extend_from_slice(&length);
        body.extend_from_slice(&length);
        body.extend_from_slice(&1u16.to_le_bytes());
        body.push(b'f');
        body.extend_from_slice(content);
    }
    [post_head("/farmhand/v1/batch", "", body.len() as u64), body].concat()
}

/// Sends requests one after another on one connection; all of them must be answered so.
#[track_caller]
pub fn ask(connection: &mut Connection, requests: &[Vec<u8>], status: u16) -> Vec<u8> {
    let mut last = Vec::new();
    for request in requests {
        connection.send(request);
        let answer = connection.answer();
        assert_eq!(answer.status, status, "{:?}", String::from_utf8_lossy(&answer.body));
        last = answer.body;
    }
    last
}

/// A folder with so many files, which are at rest: what is remembered of them is trusted.
pub fn folder(home: &Path, number: usize) -> PathBuf {
    let name = format!("folder of {number}");
    let folder = home.join(&name);
    let mut last = folder.clone();
    for (n, content) in contents(&name, number, 1000).into_iter().enumerate() {
        last = folder.join(format!("frames/{:04}/{n:06}.exr", n / 100));
        if n % 100 == 0 {
            fs::create_dir_all(last.parent().unwrap()).unwrap();
        }
        fs::write(&last, content).unwrap();
    }
    let changed = fs::metadata(&last).unwrap();
    let changed = Duration::new(changed.ctime() as u64, changed.ctime_nsec() as u32);
    until(|| SystemTime::UNIX_EPOCH.elapsed().unwrap() > changed + Duration::from_millis(25));
    folder
}
