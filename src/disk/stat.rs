//! What the file system knows about a file without reading it.

use std::{
    cell::Cell,
    fs::Metadata,
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime},
};

use super::{DiskError, IoContext};

/// Evidence that a file is still the one that was hashed. Equal fingerprints are no proof by
/// themselves: see the racy window of the hash plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    /// Length in bytes.
    pub size_bytes: u64,
    /// Time of the last change of the content, in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Time of the last change of content or attributes, in nanoseconds since 1970; on Windows, which
    /// has none for programs, the time of creation.
    pub ctime_ns: i64,
    /// Inode number; 0 where there is none.
    pub inode: u64,
    /// Device number; 0 where there is none.
    pub device: u64,
    /// When the file was made, in nanoseconds since 1970; 0 where that is not known. No program sets this.
    pub born_ns: i64,
}

impl Fingerprint {
    /// The evidence in what `stat` answered.
    pub fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt;
            let ns = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
            Self {
                size_bytes: metadata.len(),
                mtime_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
                ctime_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
                inode: metadata.ino(),
                device: metadata.dev(),
                born_ns: metadata.created().map_or(0, unix_ns),
            }
        }
        #[cfg(not(unix))]
        Self {
            size_bytes: metadata.len(),
            mtime_ns: metadata.modified().map_or(0, unix_ns),
            ctime_ns: metadata.created().map_or(0, unix_ns),
            inode: 0,
            device: 0,
            born_ns: 0,
        }
    }

    /// The device, where its number says something: those of network disks and of some others, and
    /// on some systems all of them, are given anew each time they are mounted.
    pub fn lasting_device(&self) -> u64 {
        #[cfg(target_os = "linux")]
        if rustix::fs::major(self.device) != 0 {
            return self.device;
        }
        0
    }
}

/// Without the time of birth, which this call does not tell.
#[cfg(unix)]
impl From<&rustix::fs::Stat> for Fingerprint {
    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss)] // The types differ between systems.
    fn from(found: &rustix::fs::Stat) -> Self {
        let ns = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
        Self {
            size_bytes: found.st_size as u64,
            mtime_ns: ns(found.st_mtime as i64, found.st_mtime_nsec as i64),
            ctime_ns: ns(found.st_ctime as i64, found.st_ctime_nsec as i64),
            inode: found.st_ino as u64,
            device: found.st_dev as u64,
            born_ns: 0,
        }
    }
}

/// Which directory it is, however it is called.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DirectoryId(#[cfg(unix)] (u64, u64), #[cfg(not(unix))] std::path::PathBuf);

impl DirectoryId {
    /// The identity of the directory at this path, and when its names last changed, in nanoseconds
    /// since 1970. Links are followed.
    ///
    /// # Errors
    /// If there is none, or the file system does not answer.
    pub fn of(path: &Path) -> Result<(Self, i64), DiskError> {
        let found = std::fs::metadata(path).on("look at", path)?;
        let fingerprint = Fingerprint::of(&found);
        #[cfg(unix)]
        let id = Self((fingerprint.device, fingerprint.inode));
        #[cfg(not(unix))]
        let id = Self(std::fs::canonicalize(path).on("look at", path)?);
        Ok((id, fingerprint.mtime_ns))
    }
}

/// How long a gentle thread works, and how long it then rests.
const TURN: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(1));

thread_local! {
    /// When the current turn began; nothing if this thread is not gentle.
    static TURN_BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Has the current thread leave the processor to others that want it. Advice only; see also
/// [`rest_if_gentle`].
pub fn be_gentle() {
    TURN_BEGAN.set(Some(Instant::now()));
    // On Linux, a thread has a priority of its own; elsewhere it would be that of the process.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(None, 15);
}

/// Lets others go first, if this thread is to. A low priority is not enough for that: a processor is
/// not taken from a thread before it has had it for some milliseconds, however low that is.
pub fn rest_if_gentle() {
    let (work, rest) = TURN;
    if TURN_BEGAN.get().is_some_and(|began| began.elapsed() >= work) {
        thread::sleep(rest);
        TURN_BEGAN.set(Some(Instant::now()));
    }
}

/// Has what is read next come from the disk, not from the memory of the system. Advice only.
pub fn read_from_disk(file: &std::fs::File) {
    #[cfg(target_os = "linux")]
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    #[cfg(not(target_os = "linux"))]
    let _ = file;
}

/// A time as nanoseconds since 1970, clamped to what fits (the years 1677 to 2262).
pub(crate) fn unix_ns(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
    }
}

/// How much room a file system has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Its size.
    pub total_bytes: u64,
    /// What programs without privileges may still write.
    pub free_bytes: u64,
}

impl Space {
    /// The room in the file system that `path` is on; `None` where that cannot be asked.
    ///
    /// # Errors
    /// If the file system does not answer.
    pub fn of(path: &Path) -> Result<Option<Self>, DiskError> {
        #[cfg(unix)]
        {
            let found = rustix::fs::statvfs(path).map_err(Into::into).on("look at", path)?;
            // Some FUSE file systems answer with zeros.
            Ok((found.f_blocks > 0).then(|| Self {
                total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
                free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
            }))
        }
        #[cfg(not(unix))]
        {
            let _ = path;
            Ok(None)
        }
    }
}

/// Sets a file's modification time to now.
///
/// # Errors
/// If the file is gone or not ours.
pub fn touch(path: &Path) -> Result<(), DiskError> {
    #[cfg(unix)]
    return touch_at(rustix::fs::CWD, path).on("touch", path);
    #[cfg(not(unix))]
    {
        let mut options = std::fs::File::options();
        #[cfg(windows)]
        {
            // Blobs are read-only: only the right to write attributes is to be had.
            const FILE_WRITE_ATTRIBUTES: u32 = 0x100;
            std::os::windows::fs::OpenOptionsExt::access_mode(&mut options, FILE_WRITE_ATTRIBUTES);
        }
        #[cfg(not(windows))]
        options.write(true);
        options.open(path).and_then(|file| file.set_modified(SystemTime::now())).on("touch", path)
    }
}

/// The same for a path from an open directory on.
#[cfg(unix)]
pub(super) fn touch_at(dir: impl rustix::fd::AsFd, path: &Path) -> std::io::Result<()> {
    use rustix::fs::{AtFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, utimensat};
    let at = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    let times = Timestamps { last_access: at(UTIME_OMIT), last_modification: at(UTIME_NOW) };
    Ok(utimensat(dir, path, &times, AtFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    #[test]
    fn gentle_threads_rest_when_their_turn_is_over() {
        let rested = thread::spawn(|| {
            be_gentle();
            let began = Instant::now();
            while began.elapsed() < TURN.0 {
                std::hint::spin_loop();
            }
            let worked = Instant::now();
            rest_if_gentle();
            worked.elapsed()
        });
        assert!(rested.join().unwrap() >= TURN.1);
        assert!(TURN_BEGAN.get().is_none(), "no other thread is gentle");
    }

    #[test]
    fn touch_makes_a_read_only_file_young() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        fs::write(&path, "x").unwrap();
        let old = SystemTime::now() - Duration::from_secs(1_000_000);
        fs::File::open(&path).unwrap().set_modified(old).unwrap();
        let mut permissions = fs::metadata(&path).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&path, permissions).unwrap();
        touch(&path).unwrap();
        assert!(
            fs::metadata(&path).unwrap().modified().unwrap().elapsed().unwrap()
                < Duration::from_secs(1000)
        );
        assert!(touch(&dir.path().join("gone")).is_err());
    }

    #[test]
    fn times_before_1970_are_negative() {
        assert_eq!(unix_ns(SystemTime::UNIX_EPOCH - Duration::from_nanos(5)), -5);
        assert_eq!(unix_ns(SystemTime::UNIX_EPOCH + Duration::from_secs(1)), 1_000_000_000);
    }
}
