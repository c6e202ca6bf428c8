//! Renames that never replace.

use std::{fs, io, path::Path};

/// Renames the directory `from` to `to` if nothing stands there, in one step.
pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        use rustix::{fs, io::Errno};
        match fs::renameat_with(fs::CWD, from, fs::CWD, to, fs::RenameFlags::NOREPLACE) {
            // NFS and some FUSE file systems do not know the flag.
            Err(error)
                if [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOTSUP]
                    .contains(&error) => {}
            done => return Ok(done?),
        }
    }
    claim_and_rename(from, to)
}

/// For file systems that cannot rename without replacing: `mkdir` claims the name, and a rename over
/// an empty directory takes it.
fn claim_and_rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    #[cfg(windows)]
    fs::remove_dir(to)?; // Windows does not rename over a directory, and refuses if one appears.
    fs::rename(from, to).inspect_err(|_| {
        let _ = fs::remove_dir(to);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_rename(rename: fn(&Path, &Path) -> io::Result<()>) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["a", "b"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("file"), name).unwrap();
        }
        rename(&at("a"), &at("new")).unwrap();
        assert_eq!(fs::read(at("new/file")).unwrap(), b"a");
        let error = rename(&at("b"), &at("new")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        fs::create_dir(at("empty")).unwrap();
        assert!(rename(&at("b"), &at("empty")).is_err());
        assert_eq!(fs::read(at("new/file")).unwrap(), b"a");
        assert_eq!(fs::read(at("b/file")).unwrap(), b"b");
    }

    #[test]
    fn a_taken_name_is_never_replaced() {
        check_rename(rename_new);
        check_rename(claim_and_rename);
    }
}
