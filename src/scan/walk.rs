//! Finds the files of a folder, on many threads: on network disks each directory is a round trip.

use std::{
    ffi::OsString,
    fs::{self, Metadata},
    io,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::SystemTime,
};

use rayon::prelude::*;
use serde::{Serialize, Serializer};

use super::{
    HashError, Options,
    ignore::{IGNORE_FILE, IgnoreRule, Rules},
    settle::{Again, Listed},
};
use crate::{
    disk::{Fingerprint, unix_ns},
    domain::{PathError, RelPath},
    meter::Progress,
};

/// A file, not yet hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub path: RelPath,
    pub fingerprint: Fingerprint,
}

/// Something in the folder that cannot be in the checkout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Its path below the root, with unreadable characters replaced.
    pub path: String,
    /// Why.
    pub reason: SkipReason,
}

/// Something that a rule ignores; what is in an ignored folder is not looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ignored {
    /// Its path below the root, with unreadable characters replaced.
    pub path: String,
    /// Whether it is a folder.
    pub is_dir: bool,
    /// The rule.
    pub rule: IgnoreRule,
}

/// Why something is not in the checkout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    /// It, or the directory, cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// It was there, and then it was not.
    #[error("vanished while it was looked at")]
    Vanished,
    /// It changed each time it was read.
    #[error("changes while it is read: try again when it is written")]
    Unstable,
    /// A link with nothing at its end.
    #[error("a link to {0}, which does not exist")]
    BrokenLink(String),
    /// A link to a directory.
    #[error(
        "a link to a directory, which is not followed: copy it here, or list it in {IGNORE_FILE}"
    )]
    LinkToDirectory,
    /// A pipe, socket or device.
    #[error("no file: it is {0}")]
    NotAFile(&'static str),
    /// What another process says of it.
    #[error("{0}")]
    Reported(String),
    /// A name that Shaman cannot carry.
    #[error("its name cannot be sent: {0}")]
    BadName(String),
}

impl Serialize for SkipReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<HashError> for SkipReason {
    fn from(error: HashError) -> Self {
        match error {
            HashError::Io(error) => error.into(),
            HashError::NotAFile(what) => Self::NotAFile(what),
            HashError::Unstable | HashError::Stopped => Self::Unstable,
        }
    }
}

impl From<io::Error> for SkipReason {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Vanished,
            _ => Self::Unreadable(error.to_string()),
        }
    }
}

/// Why a folder cannot be walked.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// It is not there.
    #[error("{} does not exist", .0.display())]
    Missing(PathBuf),
    /// It is something else.
    #[error("{} is no folder and no file: it is {what}", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// It is there, and may not be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A single file whose name Shaman cannot carry.
    #[error("cannot send {}", path.display())]
    BadName {
        /// The path.
        path: PathBuf,
        /// What is wrong with the name.
        source: NameError,
    },
}

/// What is wrong with a file's name.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// Bytes that are no UTF-8.
    #[error("its name is not UTF-8; rename it")]
    NotUtf8,
    /// Characters or parts that cannot be in a checkout.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// All that was found.
#[derive(Debug)]
pub(super) struct Walked {
    pub root: PathBuf,
    pub files: Vec<Found>,
    pub skipped: Vec<Skipped>,
    /// What was ignored, if that was to be noted.
    pub ignored: Vec<Ignored>,
    /// What decides about `files` besides them: directories, and files with rules; below the root.
    pub seen: Vec<(Box<str>, Fingerprint)>,
    /// Whether `files` is all there is below `root`.
    pub is_whole_root: bool,
}

/// Walks a folder; a single file is walked as the only one in its folder.
pub(super) fn walk(
    path: &Path,
    options: &Options,
    note_ignored: bool,
    pool: &rayon::ThreadPool,
    progress: &Progress,
    stop: &AtomicBool,
) -> Result<Walked, WalkError> {
    let unreadable = |source| WalkError::Unreadable { path: path.to_owned(), source };
    let absolute = std::path::absolute(path).map_err(unreadable)?;
    let metadata = fs::metadata(&absolute).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => WalkError::Missing(path.to_owned()),
        _ => unreadable(source),
    })?;
    if metadata.is_file() {
        return walk_file(path, &absolute, &metadata);
    }
    if !metadata.is_dir() {
        return Err(WalkError::NotAFile { path: path.to_owned(), what: kind(&metadata) });
    }
    fs::read_dir(&absolute).map_err(unreadable)?;
    let walk =
        Walk { progress, stop, note_ignored, found: Mutex::default(), again: Mutex::default() };
    let rules = Rules::new(&absolute, options.default_ignores, &options.ignores);
    pool.scope(|scope| walk.dir(scope, absolute.clone(), None, rules));
    walk.settle(pool);
    let found = walk.found.into_inner().expect("BUG: no one panics with this lock");
    let FoundAll { mut files, skipped, mut ignored, seen, .. } = found;
    pool.install(|| files.par_sort_unstable_by(|a, b| a.path.cmp(&b.path)));
    ignored.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(Walked { root: absolute, files, skipped, ignored, seen, is_whole_root: true })
}

fn walk_file(path: &Path, absolute: &Path, metadata: &Metadata) -> Result<Walked, WalkError> {
    let (Some(root), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(WalkError::NotAFile { path: path.to_owned(), what: kind(metadata) });
    };
    let bad = |source| WalkError::BadName { path: path.to_owned(), source };
    let name = name.to_str().ok_or_else(|| bad(NameError::NotUtf8))?;
    let found = Found {
        path: name.parse().map_err(|error: PathError| bad(error.into()))?,
        fingerprint: Fingerprint::of(metadata),
    };
    Ok(Walked {
        root: root.to_owned(),
        files: vec![found],
        skipped: Vec::new(),
        ignored: Vec::new(),
        seen: Vec::new(),
        is_whole_root: false,
    })
}

pub(super) struct Walk<'a> {
    progress: &'a Progress,
    pub stop: &'a AtomicBool,
    note_ignored: bool,
    pub found: Mutex<FoundAll>,
    /// The directories that are listed again, and not their subdirectories.
    pub again: Mutex<Option<Again>>,
}

#[derive(Default)]
pub(super) struct FoundAll {
    pub files: Vec<Found>,
    pub skipped: Vec<Skipped>,
    pub ignored: Vec<Ignored>,
    pub seen: Vec<(Box<str>, Fingerprint)>,
    pub listed: Vec<Listed>,
}

/// What a name in a directory turns out to be.
enum Item {
    File(Found),
    Dir { name: OsString, prefix: String },
    Ignored(Option<Ignored>),
}

impl<'a> Walk<'a> {
    /// Looks at what is in a directory, whose path below the root is `prefix`; its directories go on in parallel.
    pub fn dir<'s>(
        &'s self,
        scope: &rayon::Scope<'s>,
        dir: PathBuf,
        prefix: Option<String>,
        rules: Rules,
    ) where
        'a: 's,
    {
        if self.stop.load(Relaxed) {
            return;
        }
        let listed_ns = unix_ns(SystemTime::now());
        // Looked at before it is listed, so that a later change of its names is seen.
        let listed = fs::metadata(&dir).and_then(|found| {
            let entries = fs::read_dir(&dir)?.collect::<io::Result<Vec<_>>>()?;
            Ok((Fingerprint::of(&found), entries))
        });
        let (own, entries) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                let path = prefix.unwrap_or_else(|| ".".to_owned());
                return self.skip(Skipped { path, reason: error.into() });
            }
        };
        let mut seen = vec![(prefix.clone().unwrap_or_default().into_boxed_str(), own)];
        let own_rules = entries.iter().any(|entry| entry.file_name() == IGNORE_FILE);
        if own_rules {
            // Its content counts even where it is ignored itself, and it may be a link.
            let path = prefix.as_ref().map(|prefix| format!("{prefix}/{IGNORE_FILE}"));
            let path = path.unwrap_or_else(|| IGNORE_FILE.to_owned()).into_boxed_str();
            let found = fs::metadata(dir.join(IGNORE_FILE));
            seen.extend(found.map(|found| (path, Fingerprint::of(&found))));
        }
        let listed = Listed {
            dir: dir.clone(),
            prefix: prefix.clone(),
            rules: rules.clone(),
            own,
            listed_ns,
        };
        let rules = if own_rules { rules.enter(&dir) } else { rules };
        let look = |entry: &fs::DirEntry| look(entry, prefix.as_deref(), &rules, self.note_ignored);
        // A round trip each on a network disk.
        let items: Vec<_> = entries.par_iter().with_min_len(32).map(look).collect();
        let (mut files, mut skipped, mut ignored) = (Vec::new(), Vec::new(), Vec::new());
        for item in items {
            match item {
                Ok(Item::File(found)) => files.push(found),
                Ok(Item::Dir { name, prefix }) => {
                    if self.is_listed(&prefix) {
                        continue;
                    }
                    let (dir, rules) = (dir.join(name), rules.clone());
                    scope.spawn(move |scope| self.dir(scope, dir, Some(prefix), rules));
                }
                Ok(Item::Ignored(noted)) => ignored.extend(noted),
                Err(skip) => skipped.push(skip),
            }
        }
        self.progress.add_files(files.len() as u64);
        let mut found = self.found.lock().expect("BUG: no one panics with this lock");
        found.files.append(&mut files);
        found.skipped.append(&mut skipped);
        found.ignored.append(&mut ignored);
        found.seen.append(&mut seen);
        found.listed.push(listed);
    }

    fn skip(&self, skipped: Skipped) {
        self.found.lock().expect("BUG: no one panics with this lock").skipped.push(skipped);
    }
}

fn look(
    entry: &fs::DirEntry,
    prefix: Option<&str>,
    rules: &Rules,
    note_ignored: bool,
) -> Result<Item, Skipped> {
    let below = |name: &str| match prefix {
        Some(prefix) => format!("{prefix}/{name}"),
        None => name.to_owned(),
    };
    let name = entry.file_name();
    let skip = |reason| Skipped { path: below(&name.to_string_lossy()), reason };
    let kind_of = entry.file_type().map_err(|error| skip(error.into()))?;
    let path = entry.path();
    if rules.ignore(&path, kind_of.is_dir()) {
        let rule = if note_ignored { rules.decide(&path, kind_of.is_dir()) } else { None };
        let path = || below(&name.to_string_lossy());
        let noted = rule.map(|rule| Ignored { path: path(), is_dir: kind_of.is_dir(), rule });
        return Ok(Item::Ignored(noted));
    }
    let Some(text) = name.to_str() else {
        return Err(skip(SkipReason::BadName(NameError::NotUtf8.to_string())));
    };
    let relative = below(text);
    if kind_of.is_dir() {
        return Ok(Item::Dir { name, prefix: relative });
    }
    // What Windows keeps in directories may be older than the file.
    let metadata = if kind_of.is_symlink() || cfg!(windows) {
        fs::metadata(&path).map_err(|error| {
            skip(match (error.kind(), fs::read_link(&path)) {
                (io::ErrorKind::NotFound, Ok(target)) => {
                    SkipReason::BrokenLink(target.display().to_string())
                }
                _ => error.into(),
            })
        })?
    } else {
        entry.metadata().map_err(|error| skip(error.into()))?
    };
    if metadata.is_dir() {
        return Err(skip(SkipReason::LinkToDirectory));
    }
    if !metadata.is_file() {
        return Err(skip(SkipReason::NotAFile(kind(&metadata))));
    }
    let path = relative
        .parse()
        .map_err(|error: PathError| skip(SkipReason::BadName(error.to_string())))?;
    Ok(Item::File(Found { path, fingerprint: Fingerprint::of(&metadata) }))
}

/// What something that is no regular file is, in words.
pub(super) fn kind(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_block_device() || kind.is_char_device() {
            return "a device";
        }
    }
    if kind.is_dir() { "a folder" } else { "something else" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk_all(root: &Path) -> Walked {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
        walk(root, &Options::default(), true, &pool, &Progress::default(), &AtomicBool::new(false))
            .unwrap()
    }

    fn names(walked: &Walked) -> Vec<&str> {
        walked.files.iter().map(|found| found.path.as_str()).collect()
    }

    #[test]
    fn finds_all_files_sorted_and_ignores_what_it_should() {
        let dir = tempfile::tempdir().unwrap();
        for path in [
            "b.png",
            "a/scene.blend",
            "a/scene.blend1",
            "a/deep/er/звук.wav",
            ".git/config",
            "a/x.skip",
        ] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        fs::create_dir(dir.path().join("empty")).unwrap();
        fs::write(dir.path().join("a").join(IGNORE_FILE), "*.skip").unwrap();
        let walked = walk_all(dir.path());
        assert_eq!(
            names(&walked),
            ["a/.farmhandignore", "a/deep/er/звук.wav", "a/scene.blend", "b.png"]
        );
        assert_eq!(walked.skipped, []);
        let ignored: Vec<_> = walked
            .ignored
            .iter()
            .map(|one| (one.path.as_str(), one.is_dir, one.rule.pattern.as_str()))
            .collect();
        assert_eq!(
            ignored,
            [
                (".git", true, ".git/"),
                ("a/scene.blend1", false, "*.blend[1-9]"),
                ("a/x.skip", false, "*.skip")
            ]
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn follows_links_to_files_and_names_what_it_leaves_out() {
        use std::os::unix::{ffi::OsStrExt, fs::symlink, net::UnixListener};
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("real"), "12345").unwrap();
        symlink("real", at("link")).unwrap();
        symlink("nowhere", at("broken")).unwrap();
        symlink(".", at("loop")).unwrap();
        symlink("self", at("self")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::from(0o644)).unwrap();
        fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"bad\xff")), "x").unwrap();
        fs::write(at("back\\slash"), "x").unwrap();

        let walked = walk_all(dir.path());
        assert_eq!(names(&walked), ["link", "real"]);
        assert_eq!(walked.files[0].fingerprint.size_bytes, 5);
        let mut skipped: Vec<_> =
            walked.skipped.iter().map(|s| (s.path.as_str(), s.reason.to_string())).collect();
        skipped.sort();
        let reasons = [
            "name cannot be sent",
            "name cannot be sent",
            "does not exist",
            "link to a directory",
            "a pipe",
            "cannot be read",
            "a socket",
        ];
        assert_eq!(skipped.len(), reasons.len(), "{skipped:?}");
        for ((path, reason), expected) in skipped.iter().zip(reasons) {
            assert!(reason.contains(expected), "{path}: {reason}");
        }
    }

    #[test]
    fn a_single_file_is_walked_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "x").unwrap();
        fs::write(dir.path().join("b"), "x").unwrap();
        let walked = walk_all(&dir.path().join("a"));
        assert_eq!((names(&walked), walked.is_whole_root), (vec!["a"], false));
        assert_eq!(walked.root, dir.path());
    }
}
