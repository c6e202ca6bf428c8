//! The mount table of Linux, as far as it concerns one directory. Other systems have none that is
//! read here.

use std::{
    ffi::OsString,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use super::{DiskError, FileSystem, Fingerprint, IoContext};

/// The mount table of this process: proc_pid_mountinfo(5).
const TABLE: &str = "/proc/self/mountinfo";

/// The mounts that decide which files a directory holds: those inside it, and those at and above
/// it.
///
/// Equal values do not prove that nothing was mounted in between: the kernel gives the numbers of
/// an unmounted file system to the next one. Then its inodes have gone, which inotify reports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mounts {
    dir: PathBuf,
    /// In the order of the table: a later mount covers an earlier one at the same point.
    mounts: Vec<Mount>,
}

/// A line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    /// Numbers of the mount, its parent and its device, as the table has them.
    numbers: [String; 3],
    /// The directory of the file system that is mounted.
    origin: OsString,
    file_system: String,
    source: String,
    /// Device and inode at the point, for a mount inside the directory.
    root: Option<(u64, u64)>,
}

/// A file system on which files can change without an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is on {file_system}: files can change there without an event", point.display())]
pub struct SilentFileSystem {
    /// The directory, or the mount point inside it.
    pub point: PathBuf,
    /// The name of the file system.
    pub file_system: String,
}

impl Mounts {
    /// The mounts of a directory, which must be an absolute path without links.
    ///
    /// # Errors
    /// On Linux, if the mount table cannot be read.
    pub fn of(dir: &Path) -> Result<Self, DiskError> {
        if !cfg!(target_os = "linux") {
            return Ok(Self { dir: dir.to_owned(), mounts: Vec::new() });
        }
        let table = std::fs::read(TABLE).on("read", Path::new(TABLE))?;
        let mut mounts = Self::parse(&table, dir);
        for mount in mounts.mounts.iter_mut().filter(|mount| mount.point.starts_with(dir)) {
            // A mount that another one covers has no path.
            let found = std::fs::metadata(&mount.point).map(|found| Fingerprint::of(&found));
            mount.root = found.ok().map(|found| (found.device, found.inode));
        }
        Ok(mounts)
    }

    /// The mounts of a directory, from the text of a mount table. Lines that make no sense are
    /// skipped.
    pub fn parse(table: &[u8], dir: &Path) -> Self {
        let lines = table.split(|byte| *byte == b'\n');
        let concerns =
            |mount: &Mount| mount.point.starts_with(dir) || dir.starts_with(&mount.point);
        let mounts = lines.filter_map(Mount::parse).filter(concerns).collect();
        Self { dir: dir.to_owned(), mounts }
    }

    /// The mount points inside the directory.
    pub fn inside(&self) -> impl Iterator<Item = &Path> {
        let points = self.mounts.iter().map(|mount| mount.point.as_path());
        points.filter(|point| *point != self.dir && point.starts_with(&self.dir))
    }

    /// The first file system, of the directory or inside it, on which files can change without an
    /// event: a network disk, one that is not known, or layers (overlay) that can be changed from
    /// elsewhere.
    pub fn silent(&self) -> Option<SilentFileSystem> {
        let points = std::iter::once(self.dir.as_path()).chain(self.inside());
        points.filter_map(|point| self.silent_at(point)).next()
    }

    fn silent_at(&self, point: &Path) -> Option<SilentFileSystem> {
        let silent =
            |file_system: String| Some(SilentFileSystem { point: point.to_owned(), file_system });
        let on = self.mount_of(point);
        // The layers of a container's own root are not reachable from inside it.
        if on.is_some_and(|on| on.file_system == "overlay" && on.point != Path::new("/")) {
            return silent("overlay".into());
        }
        match FileSystem::of(point) {
            Ok(system) if system.is_remote => silent(system.name),
            Ok(_) => None,
            // Another mount covers it, or it has just been unmounted.
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => None,
            Err(_) => silent("a disk that does not answer".into()),
        }
    }

    /// The mount that a path of the directory is on.
    fn mount_of(&self, path: &Path) -> Option<&Mount> {
        let holders = self.mounts.iter().filter(|mount| path.starts_with(&mount.point));
        holders.max_by_key(|mount| mount.point.as_os_str().len())
    }

    /// The open mount table: poll(2) reports an exceptional condition (`POLLPRI`) when it has
    /// changed.
    ///
    /// # Errors If there is none.
    pub fn open_table() -> io::Result<File> {
        File::open(TABLE)
    }
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Self> {
        // Optional fields, of which there may be none, end at a single dash.
        let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
        let mut text = || Some(String::from_utf8_lossy(fields.next()?).into_owned());
        let numbers = [text()?, text()?, text()?];
        let origin = unescape(fields.next()?);
        let point = PathBuf::from(unescape(fields.next()?));
        fields.find(|field| *field == b"-")?;
        let mut text = || Some(String::from_utf8_lossy(fields.next()?).into_owned());
        let file_system = text()?;
        // Some file systems have no source at all.
        let source = text().unwrap_or_default();
        Some(Self { point, numbers, origin, file_system, source, root: None })
    }
}

/// A field of the table: blanks, line ends and backslashes are written as `\` and three octal
/// digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code.filter(|_| *first == b'\\') {
            Some(code) => {
                bytes.push(code);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    #[cfg(unix)]
    return std::os::unix::ffi::OsStringExt::from_vec(bytes);
    #[cfg(not(unix))]
    String::from_utf8_lossy(&bytes).into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/root rw
30 22 0:25 / /proc rw - proc proc rw
40 22 8:1 / /data rw shared:1 - xfs /dev/sda1 rw
41 40 0:50 / /data/show/net rw shared:7 master:3 - nfs4 nas:/x rw
42 40 8:1 /lib\\040a /data/show/a\\040b rw - xfs /dev/sda1 rw
43 40 0:51 / /data/showreel rw - tmpfs tmpfs rw
44 40 0:52 / /data/show rw - tmpfs none rw
45 44 0:53 / /data/show/x rw -
nonsense
";

    fn points(dir: &str) -> Vec<String> {
        let mounts = Mounts::parse(TABLE.as_bytes(), Path::new(dir));
        mounts.mounts.iter().map(|mount| mount.point.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn mounts_above_and_inside_are_found() {
        let inside = ["/", "/data", "/data/show/net", "/data/show/a b", "/data/show"];
        assert_eq!(points("/data/show"), inside);
        assert_eq!(points("/data/show/net/deep"), ["/", "/data", "/data/show/net", "/data/show"]);
        assert_eq!(points("/home"), ["/"]);
        let mounts = Mounts::parse(TABLE.as_bytes(), Path::new("/data/show"));
        let inside: Vec<_> = mounts.inside().collect();
        assert_eq!(inside, [Path::new("/data/show/net"), Path::new("/data/show/a b")]);
    }

    #[test]
    fn the_longest_and_last_mount_holds_a_path() {
        let mounts = Mounts::parse(TABLE.as_bytes(), Path::new("/data/show"));
        let number = |path: &str| mounts.mount_of(Path::new(path)).unwrap().numbers[0].clone();
        assert_eq!(number("/data/show/net/a"), "41");
        assert_eq!(number("/data/show/b"), "44");
        let twice = format!("{TABLE}50 44 0:60 / /data/show rw - tmpfs none rw\n");
        let mounts = Mounts::parse(twice.as_bytes(), Path::new("/data/show"));
        assert_eq!(mounts.mount_of(Path::new("/data/show")).unwrap().numbers[0], "50");
    }

    #[test]
    fn a_mount_elsewhere_changes_nothing() {
        let parse = |table: &str| Mounts::parse(table.as_bytes(), Path::new("/data/show"));
        let before = parse(TABLE);
        let elsewhere = format!("{TABLE}60 22 0:61 / /var/lib/x rw - overlay overlay rw\n");
        assert_eq!(parse(&elsewhere), before);
        for (mount, now) in [
            ("inside", format!("{TABLE}60 44 0:61 / /data/show/new rw - tmpfs tmpfs rw\n")),
            ("above", format!("{TABLE}60 40 0:61 / /data rw - tmpfs tmpfs rw\n")),
            ("another device", TABLE.replace("0:50", "0:61")),
            ("another number", TABLE.replace("41 40", "61 40")),
            ("another source", TABLE.replace("nas:/x", "nas:/y")),
            ("another directory", TABLE.replace("/lib\\040a", "/lib")),
            ("none", TABLE.replace("/data/show/net", "/data/other")),
        ] {
            assert_ne!(parse(&now), before, "{mount}");
        }
    }

    #[test]
    fn escapes_are_octal_bytes() {
        for (field, expected) in [
            ("a\\040b", "a b"),
            ("\\134", "\\"),
            ("a\\", "a\\"),
            ("\\04", "\\04"),
            ("\\999", "\\999"),
        ] {
            assert_eq!(unescape(field.as_bytes()), expected, "{field}");
        }
    }

    #[test]
    fn an_overlay_is_silent_except_as_the_root() {
        let silent = |table: &str, dir: &Path| Mounts::parse(table.as_bytes(), dir).silent();
        // Neither exists, so that only the table counts.
        let dir = Path::new("/missing-mount-point/show");
        let root = "22 1 0:40 / / rw - overlay overlay rw\n";
        assert_eq!(silent(root, dir), None);
        let inside = format!("{root}23 22 0:41 / /missing-mount-point/show/x rw - overlay o rw\n");
        let found = silent(&inside, dir).unwrap();
        assert_eq!((found.point, found.file_system.as_str()), (dir.join("x"), "overlay"));
        let above = format!("{root}23 22 0:41 / /missing-mount-point rw - overlay o rw\n");
        assert_eq!(silent(&above, dir).unwrap().point, dir);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_machine_has_a_mount_table() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let mounts = Mounts::of(&dir).unwrap();
        assert!(!mounts.mounts.is_empty());
        assert_eq!(mounts, Mounts::of(&dir).unwrap());
        // Its files are not those of a disk.
        let silent = Mounts::of(Path::new("/proc")).unwrap().silent().unwrap();
        assert_eq!(silent.point, Path::new("/proc"));
        Mounts::open_table().unwrap();
    }
}
