//! Scans with a cache file in which one bit has flipped: they never give a wrong digest.

use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use sha2::Digest as _;

use super::{CacheRow, FILE_NAME, HashCache};
use crate::{
    domain::Digest,
    meter::Progress,
    scan::{Options, Scan, Scanner, identify},
};

/// How many bytes before the path of a row hold the lengths and types of its values, and the number of its
/// root.
const HEADER: usize = 14;

struct Project {
    dir: tempfile::TempDir,
    scanner: Scanner,
    /// The database after the first scan.
    sound: Vec<u8>,
}

impl Project {
    /// A folder of files with content of one length, all of them in the cache.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for number in 10..30 {
            let path = dir.path().join(format!("project/folder/frame-{number}.png"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("content {number}")).unwrap();
        }
        let options = Options { readers: Some(1), ..Options::default() };
        let (progress, stop) = (Arc::new(Progress::default()), Arc::new(AtomicBool::new(false)));
        let scanner = Scanner::new(options, progress, stop).unwrap();
        let mut project = Self { dir, scanner, sound: Vec::new() };
        project.scan(&project.at("project"));
        project.sound = fs::read(project.file()).unwrap();
        project
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self) -> PathBuf {
        self.at("cache").join(FILE_NAME)
    }

    /// Scans like a process that begins and ends.
    fn scan(&mut self, folder: &Path) -> Scan {
        self.scanner.cache = HashCache::open(Some(&self.at("cache")));
        let scan = self.scanner.scan(folder).unwrap();
        self.scanner.cache = HashCache { open: None };
        scan
    }

    /// Scans with this database, and compares all digests with the files; returns how many came from the
    /// cache.
    #[track_caller]
    fn check(&mut self, folder: &str, database: &[u8], damage: &str) -> usize {
        fs::remove_dir_all(self.at("cache")).unwrap();
        fs::create_dir(self.at("cache")).unwrap();
        fs::write(self.file(), database).unwrap();
        let folder = self.at(folder);
        let scan = self.scan(&folder);
        let found: BTreeMap<_, _> =
            scan.files.iter().map(|file| (file.path.as_str(), file.digest)).collect();
        assert_eq!((found.len(), scan.skipped.len()), (20, 0), "{damage}");
        for (path, digest) in found {
            let content = fs::read(folder.join(path)).unwrap();
            let expected = Digest::from_bytes(sha2::Sha256::digest(content).into());
            assert_eq!(digest, expected, "{path}: {damage}");
        }
        scan.files.iter().filter(|file| file.cached).count()
    }

    /// Scans once for each of these bits of the database.
    fn check_bits(&mut self, folder: &str, bits: impl Iterator<Item = usize>) {
        for bit in bits {
            self.check(folder, &self.flipped(bit), &format!("bit {bit} in {folder}"));
        }
    }

    /// The database with one bit flipped.
    fn flipped(&self, bit: usize) -> Vec<u8> {
        let mut database = self.sound.clone();
        database[bit / 8] ^= 1 << (bit % 8);
        database
    }

    /// What the cache knows of the project, with this database.
    fn rows(&self, database: &[u8]) -> BTreeMap<String, CacheRow> {
        fs::remove_dir_all(self.at("cache")).unwrap();
        fs::create_dir(self.at("cache")).unwrap();
        fs::write(self.file(), database).unwrap();
        let root = self.at("project");
        let insert = |rows: &mut BTreeMap<_, _>, path: &str, row| {
            rows.insert(path.to_owned(), row);
        };
        HashCache::open(Some(&self.at("cache"))).compare(identify(&root), BTreeMap::new, insert)
    }

    /// Flips these bits, one after the other: each row that is still known must be one that was saved.
    /// Returns for how many bits a row was missing.
    #[track_caller]
    fn count_noticed(&self, bytes: Range<usize>) -> usize {
        let saved = self.rows(&self.sound);
        assert_eq!(saved.len(), 20);
        let is_noticed = |bit: &usize| {
            let rows = self.rows(&self.flipped(*bit));
            for (path, row) in &rows {
                assert_eq!(saved.get(path), Some(row), "{path}: bit {bit}");
            }
            rows.len() < saved.len()
        };
        (bytes.start * 8..bytes.end * 8).filter(is_noticed).count()
    }

    /// Where the values of one row are: from its path to the checksum, which follows the digest.
    fn row(&self) -> Range<usize> {
        let digest = self.find(&sha2::Sha256::digest("content 17"));
        let path = self.find(b"folder/frame-17.png");
        let ([path], [digest]) = (&path[..], &digest[..]) else { panic!("{path:?} {digest:?}") };
        path.start..digest.end + 8
    }

    /// Where these bytes are in the database, all of them.
    fn find(&self, bytes: &[u8]) -> Vec<Range<usize>> {
        let windows = self.sound.windows(bytes.len()).enumerate();
        let found = windows.filter(|(_, window)| *window == bytes);
        found.map(|(at, _)| at..at + bytes.len()).collect()
    }
}

#[test]
fn every_bit_of_a_row_is_checked() {
    let project = Project::new();
    let row = project.row();
    assert_eq!(project.count_noticed(row.clone()), row.len() * 8);
    assert!(project.count_noticed(row.start - HEADER..row.start) > 0);
}

#[test]
fn rows_out_of_order_can_be_taken_over() {
    let mut project = Project::new();
    let row = project.row();
    // A part of the known root becomes a root.
    project.check_bits("project/folder", (row.start - HEADER) * 8..row.start * 8);
}

#[test]
fn every_bit_of_a_root_is_checked() {
    let project = Project::new();
    let root = project.at("project");
    let places = project.find(root.as_os_str().as_encoded_bytes());
    assert_eq!(places.len(), 2, "the table and its index");
    for place in places {
        assert!(project.count_noticed(place.start - 8..place.end + 24) > 0);
    }
}

#[test]
fn flipped_bits_never_give_wrong_digests() {
    let mut project = Project::new();
    let sound = project.sound.clone();
    let mut random = fastrand::Rng::with_seed(22);
    let mut some = || -> Vec<_> { (0..100).map(|_| random.usize(..sound.len() * 8)).collect() };
    let (as_before, below, renamed) = (some(), some(), some());
    assert_eq!(project.check("project", &sound, "nothing"), 20);
    project.check_bits("project", as_before.into_iter());
    // A part of the known root becomes a root, and takes over rows.
    assert_eq!(project.check("project/folder", &sound, "nothing"), 20);
    project.check_bits("project/folder", below.into_iter());
    // Files in a renamed folder are known again.
    fs::rename(project.at("project/folder"), project.at("project/renamed")).unwrap();
    assert_eq!(project.check("project", &sound, "nothing"), 20);
    project.check_bits("project", renamed.into_iter());
}
