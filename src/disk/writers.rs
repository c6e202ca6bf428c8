//! Which files programs of this machine are writing to just now.

use std::{collections::HashSet, path::Path};

use super::Fingerprint;

/// Of these files below `root`, those that a process has open for writing, as far as that can be known:
/// on Linux, of processes of this user (of all, for root); elsewhere nothing is known.
pub fn written_to<'a>(
    root: &Path,
    files: impl IntoIterator<Item = &'a Fingerprint>,
) -> HashSet<(u64, u64)> {
    let asked: HashSet<_> = files.into_iter().map(|file| (file.device, file.inode)).collect();
    if asked.is_empty() { HashSet::new() } else { find(root, &asked) }
}

#[cfg(target_os = "linux")]
fn find(root: &Path, asked: &HashSet<(u64, u64)>) -> HashSet<(u64, u64)> {
    use std::fs;

    let mut found = HashSet::new();
    // What cannot be read belongs to others, or has ended.
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let is_process = process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        let files = process.path().join("fd");
        let files = is_process.then(|| fs::read_dir(files)).into_iter().flatten().flatten();
        for file in files.flatten() {
            // The text first: to look at the file itself may hang, on a disk that is gone.
            if !fs::read_link(file.path()).is_ok_and(|target| target.starts_with(root)) {
                continue;
            }
            let Ok(metadata) = fs::metadata(file.path()) else { continue };
            let is = Fingerprint::of(&metadata);
            let info = process.path().join("fdinfo").join(file.file_name());
            if asked.contains(&(is.device, is.inode))
                && fs::read_to_string(info).is_ok_and(|info| is_for_writing(&info))
            {
                found.insert((is.device, is.inode));
            }
        }
    }
    found
}

#[cfg(not(target_os = "linux"))]
fn find(_: &Path, _: &HashSet<(u64, u64)>) -> HashSet<(u64, u64)> {
    HashSet::new()
}

/// Reads `/proc/PID/fdinfo/N` (proc(5)): the flags of open(2) in octal digits, of which the last says how.
#[cfg(any(target_os = "linux", test))]
fn is_for_writing(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| matches!(flags & 0o3, 1 | 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read() {
        for (info, expected) in [
            ("pos:\t0\nflags:\t0100001\nmnt_id:\t29\n", true),
            ("pos:\t0\nflags:\t02100002\n", true),
            ("pos:\t0\nflags:\t0100000\n", false),
            ("flags:\tx", false),
            ("", false),
        ] {
            assert_eq!(is_for_writing(info), expected, "{info:?}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn only_what_is_open_for_writing_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (written, read) = (root.join("written"), root.join("read"));
        let open = std::fs::File::create(&written).unwrap();
        std::fs::write(&read, "x").unwrap();
        let _reading = std::fs::File::open(&read).unwrap();
        let looks = [&written, &read].map(|path| Fingerprint::of(&path.metadata().unwrap()));
        let found = || written_to(&root, &looks);
        assert_eq!(found(), HashSet::from([(looks[0].device, looks[0].inode)]));
        drop(open);
        assert!(found().is_empty());
    }
}
