//! Looks at many files, or at one without waiting for the disk.

use std::{fs, path::Path, time::SystemTime};

/// What a look at a file tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Whether it is a file, and no link, directory or device.
    pub is_file: bool,
    /// Its length in bytes.
    pub size_bytes: u64,
    /// When its content, or a program on purpose, last changed this time.
    pub modified: SystemTime,
}

impl From<&fs::Metadata> for Found {
    fn from(found: &fs::Metadata) -> Self {
        Self {
            is_file: found.is_file(),
            size_bytes: found.len(),
            // Every system that this runs on has it.
            modified: found.modified().unwrap_or(SystemTime::UNIX_EPOCH),
        }
    }
}

#[cfg(unix)]
impl From<&rustix::fs::Stat> for Found {
    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss)] // The types differ between systems.
    fn from(found: &rustix::fs::Stat) -> Self {
        Self {
            is_file: rustix::fs::FileType::from_raw_mode(found.st_mode as _).is_file(),
            size_bytes: found.st_size as u64,
            modified: time(found.st_mtime as i64, found.st_mtime_nsec as u64),
        }
    }
}

#[cfg(target_os = "linux")]
impl From<&rustix::fs::Statx> for Found {
    fn from(found: &rustix::fs::Statx) -> Self {
        let modified = found.stx_mtime;
        Self {
            is_file: rustix::fs::FileType::from_raw_mode(found.stx_mode.into()).is_file(),
            size_bytes: found.stx_size,
            modified: time(modified.tv_sec, modified.tv_nsec.into()),
        }
    }
}

/// A time as the system tells it; one that cannot be expressed is as good as long ago.
#[cfg(unix)]
fn time(seconds: i64, nanos: u64) -> SystemTime {
    use std::time::{Duration, UNIX_EPOCH};
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time = match seconds {
        0.. => UNIX_EPOCH.checked_add(whole),
        _ => UNIX_EPOCH.checked_sub(whole),
    };
    time.and_then(|at| at.checked_add(Duration::from_nanos(nanos))).unwrap_or(UNIX_EPOCH)
}

/// What a look tells that does not wait for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtOnce {
    /// This is there.
    Found(Found),
    /// Nothing is.
    Nothing,
    /// The disk would have to be asked, or the system says something else.
    Unsaid,
}

/// Looks at what stands at `path`, and at no link's target, if the system can answer from memory.
pub fn look_at_once(path: &Path) -> AtOnce {
    #[cfg(target_os = "linux")]
    {
        use rustix::{
            fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
            io::Errno,
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED) {
            Ok(file) => found_at_once(&file).map_or(AtOnce::Unsaid, AtOnce::Found),
            // It remembers that it has looked in vain. If it did not, it would say that it has to look.
            Err(Errno::NOENT) => AtOnce::Nothing,
            Err(_) => AtOnce::Unsaid,
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        AtOnce::Unsaid
    }
}

/// What the system has in memory of an open file.
#[cfg(target_os = "linux")]
fn found_at_once(file: &rustix::fd::OwnedFd) -> Option<Found> {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    // What is in memory by its name is so by its inode; but a network disk would ask again.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let wanted = StatxFlags::TYPE | StatxFlags::SIZE | StatxFlags::MTIME;
    let found = statx(file, c"", flags, wanted).ok()?;
    let has_all = found.stx_mask & wanted.bits() == wanted.bits();
    has_all.then(|| Found::from(&found))
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use super::{super::OpenDir, *};

    #[test]
    fn all_ways_to_look_see_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a/file");
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(&file, "five!").unwrap();
        let open = OpenDir::open(dir.path().to_owned()).unwrap();
        let old = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
        fs::File::options().write(true).open(&file).unwrap().set_modified(old).unwrap();
        let expected = Found { is_file: true, size_bytes: 5, modified: old };
        assert_eq!(Found::from(&fs::symlink_metadata(&file).unwrap()), expected);
        assert_eq!(open.look("a/file").unwrap(), expected);
        assert!(!open.look("a").unwrap().is_file);
        assert_eq!(open.look("b").unwrap_err().kind(), io::ErrorKind::NotFound);
        open.touch("a/file").unwrap();
        assert!(open.look("a/file").unwrap().modified.elapsed().unwrap() < Duration::from_secs(60));
        assert_eq!(open.touch("b").unwrap_err().source.kind(), io::ErrorKind::NotFound);
        assert_eq!(open.names(1).unwrap(), ["a"]);
        assert_eq!(open.names(0), None);
        assert!(OpenDir::open(file).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        let open = OpenDir::open(dir.path().to_owned()).unwrap();
        assert!(!open.look("link").unwrap().is_file);
        let link = look_at_once(&dir.path().join("link"));
        assert!(!matches!(link, AtOnce::Nothing | AtOnce::Found(Found { is_file: true, .. })));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_look_at_once_sees_what_was_just_written_or_removed() {
        use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        // What has not been looked for may be on the disk; some file systems do not remember what they lack.
        assert!(!matches!(look_at_once(&file), AtOnce::Found(_)));
        for _ in 0..3 {
            fs::write(&file, "12").unwrap();
            // Systems before 5.12 do not know the call, and some containers forbid it.
            let opened = openat2(CWD, &file, OFlags::PATH, Mode::empty(), ResolveFlags::CACHED);
            let expected = Found::from(&fs::symlink_metadata(&file).unwrap());
            let expected = opened.map_or(AtOnce::Unsaid, |_| AtOnce::Found(expected));
            assert_eq!(look_at_once(&file), expected);
            fs::remove_file(&file).unwrap();
            assert!(fs::symlink_metadata(&file).is_err());
            let opened = openat2(CWD, &file, OFlags::PATH, Mode::empty(), ResolveFlags::CACHED);
            let is_remembered = opened.is_err_and(|error| error == rustix::io::Errno::NOENT);
            let expected = if is_remembered { AtOnce::Nothing } else { AtOnce::Unsaid };
            assert_eq!(look_at_once(&file), expected);
        }
        // Trouble is not taken for nothing.
        fs::write(&file, "").unwrap();
        assert_eq!(look_at_once(&file.join("below")), AtOnce::Unsaid);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn directories_are_counted_or_not_but_never_wrongly() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let open = OpenDir::open(dir.path().to_owned()).unwrap();
        assert!(matches!(open.directories(), None | Some(3)));
    }
}
