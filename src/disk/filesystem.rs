//! What kind of file system something is on, and what can be relied on there.

use std::path::Path;

use super::{DiskError, IoContext};

/// A file system, as far as it matters to programs that watch files and remember them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// Its name, like `ext4` or `nfs`; a number where it has none that is known.
    pub name: String,
    /// Others may change files without this machine knowing, and times are those of another clock. So
    /// are file systems in user space, and those that are not known.
    pub is_remote: bool,
    /// A file keeps its inode number for as long as it lives.
    pub has_stable_inodes: bool,
    /// It is in memory alone: no call waits for a disk or a network (unless it has been swapped out).
    pub is_memory: bool,
}

impl FileSystem {
    /// The file system that `path` is on.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn of(path: &Path) -> Result<Self, DiskError> {
        of(path).on("ask for the file system of", path)
    }
}

/// Whether a device is a disk with heads, which loses time when it is to be in several places at once.
/// `false` where that is not known.
pub fn is_rotational(device: u64) -> bool {
    #[cfg(target_os = "linux")]
    {
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let block = format!("/sys/dev/block/{major}:{minor}");
        // A partition's is that of its disk.
        ["queue", "../queue"].iter().any(|queue| {
            let text = std::fs::read_to_string(format!("{block}/{queue}/rotational"));
            text.is_ok_and(|text| text.trim() == "1")
        })
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = device;
        false
    }
}

#[cfg(any(target_os = "linux", test))]
const TMPFS: u64 = 0x0102_1994;
#[cfg(any(target_os = "linux", test))]
const RAMFS: u64 = 0x8584_58f6;

/// The numbers are those of Linux' `linux/magic.h` and of the file systems' own headers.
#[cfg(any(target_os = "linux", test))]
fn from_magic(magic: u64) -> FileSystem {
    let is_memory = matches!(magic, TMPFS | RAMFS);
    let (name, is_remote, has_stable_inodes) = match magic {
        0xef53 => ("ext4", false, true),
        0x5846_5342 => ("xfs", false, true),
        0x9123_683e => ("btrfs", false, true),
        0x2fc1_2fc1 => ("zfs", false, true),
        0xca45_1a4e => ("bcachefs", false, true),
        0xf2f5_2010 => ("f2fs", false, true),
        TMPFS => ("tmpfs", false, true),
        RAMFS => ("ramfs", false, true),
        0x794c_7630 => ("overlay", false, true),
        0x7366_746e => ("ntfs3", false, true),
        // They have no inode numbers of their own.
        0x4d44 => ("vfat", false, false),
        0x2011_bab0 => ("exfat", false, false),
        0x6969 => ("nfs", true, true),
        0x00c3_6400 => ("ceph", true, true),
        0x0bd0_0bd0 => ("lustre", true, true),
        0x4750_4653 => ("gpfs", true, true),
        0x1983_0326 => ("beegfs", true, true),
        0x0116_1970 => ("gfs2", true, true),
        0x7461_636f => ("ocfs2", true, true),
        // Their clients make inode numbers up, unless the server has some.
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => ("smb", true, false),
        0x6573_5546 => ("fuse", true, false),
        0x0102_1997 => ("9p", true, false),
        0x786f_4256 => ("vboxsf", true, false),
        0x5346_414f | 0x6b41_4653 => ("afs", true, false),
        other => return FileSystem { name: format!("{other:#x}"), ..unknown() },
    };
    FileSystem { name: name.to_owned(), is_remote, has_stable_inodes, is_memory }
}

#[cfg(any(target_os = "macos", test))]
fn from_name(name: &str) -> FileSystem {
    let (is_remote, has_stable_inodes) = match name {
        "apfs" | "hfs" | "ufs" | "zfs" => (false, true),
        "msdos" | "exfat" | "ntfs" => (false, false),
        "nfs" => (true, true),
        _ => (true, false),
    };
    FileSystem { name: name.to_owned(), is_remote, has_stable_inodes, is_memory: false }
}

/// A Windows path with all its links and drives followed: a drive of another machine is no letter then.
#[cfg(any(windows, test))]
fn from_resolved(path: &str) -> FileSystem {
    let is_remote = path.starts_with(r"\\?\UNC\")
        || (path.starts_with(r"\\") && !path.starts_with(r"\\?\") && !path.starts_with(r"\\.\"));
    let name = if is_remote { "smb" } else { "ntfs" };
    // The standard library does not tell them.
    FileSystem { name: name.to_owned(), is_remote, has_stable_inodes: false, is_memory: false }
}

#[cfg(any(not(any(target_os = "macos", windows)), test))]
fn unknown() -> FileSystem {
    let name = "unknown".to_owned();
    FileSystem { name, is_remote: true, has_stable_inodes: false, is_memory: false }
}

#[cfg(target_os = "linux")]
fn of(path: &Path) -> std::io::Result<FileSystem> {
    let found = rustix::fs::statfs(path)?;
    // Of 32 bits, whatever type the system's headers give it.
    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss)]
    let magic = found.f_type as u64 & 0xffff_ffff;
    Ok(from_magic(magic))
}

#[cfg(target_os = "macos")]
fn of(path: &Path) -> std::io::Result<FileSystem> {
    let found = rustix::fs::statfs(path)?;
    let name = found.f_fstypename.iter().map(|byte| byte.cast_unsigned());
    let name: Vec<u8> = name.take_while(|byte| *byte != 0).collect();
    Ok(from_name(&String::from_utf8_lossy(&name)))
}

#[cfg(windows)]
fn of(path: &Path) -> std::io::Result<FileSystem> {
    Ok(from_resolved(&std::fs::canonicalize(path)?.to_string_lossy()))
}

#[cfg(not(any(target_os = "linux", target_os = "macos", windows)))]
fn of(path: &Path) -> std::io::Result<FileSystem> {
    path.metadata().map(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_not_relied_on() {
        for found in [from_magic(0x1234), from_name("something"), unknown()] {
            let FileSystem { is_remote, has_stable_inodes, is_memory, .. } = found;
            assert!(is_remote && !has_stable_inodes && !is_memory, "{found:?}");
        }
        assert_eq!(from_magic(0x1234).name, "0x1234");
    }

    #[test]
    fn network_disks_are_told_from_local_ones() {
        let traits = |found: FileSystem| (found.is_remote, found.has_stable_inodes);
        for (magic, expected) in [
            (0xef53, (false, true)),
            (0x0102_1994, (false, true)),
            (0x4d44, (false, false)),
            (0x6969, (true, true)),
            (0xfe53_4d42, (true, false)),
            (0x6573_5546, (true, false)),
        ] {
            assert_eq!(traits(from_magic(magic)), expected, "{magic:#x}");
        }
        for (name, expected) in
            [("apfs", (false, true)), ("nfs", (true, true)), ("smbfs", (true, false))]
        {
            assert_eq!(traits(from_name(name)), expected, "{name}");
        }
        for (path, is_remote) in [
            (r"C:\Users", false),
            (r"\\?\C:\Users", false),
            (r"\\.\pipe", false),
            (r"\\?\UNC\nas\projects", true),
            (r"\\nas\projects", true),
        ] {
            assert_eq!(from_resolved(path).is_remote, is_remote, "{path}");
        }
    }

    #[test]
    fn nothing_else_is_memory() {
        let is_memory = |magic: &u64| from_magic(*magic).is_memory;
        let magics = [0x0102_1994, 0x8584_58f6, 0xef53, 0x6969, 0x6573_5546, 0x794c_7630, 0x1234];
        let memory: Vec<u64> = magics.into_iter().filter(is_memory).collect();
        assert_eq!(memory, [0x0102_1994, 0x8584_58f6]);
    }

    #[test]
    fn the_machine_says_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let found = FileSystem::of(dir.path()).unwrap();
        assert!(!found.name.is_empty() && found.name != "unknown", "{found:?}");
        assert!(FileSystem::of(&dir.path().join("missing")).is_err());
    }
}
