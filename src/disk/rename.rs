//! Renames that never replace.

#[cfg(not(unix))]
use std::path::Path;
use std::{fs, io};

#[cfg(unix)]
use rustix::{
    fs::{AtFlags, Mode, mkdirat, renameat, unlinkat},
    io::Errno,
};

/// A name in an open directory.
#[cfg(unix)]
type At<'a> = (&'a fs::File, &'a str);

/// Renames a directory if the new name is free, in one step.
#[cfg(unix)]
pub(super) fn rename_new(from: At<'_>, to: At<'_>) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        use rustix::fs::{RenameFlags, renameat_with};
        match renameat_with(from.0, from.1, to.0, to.1, RenameFlags::NOREPLACE) {
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
#[cfg(unix)]
fn claim_and_rename(from: At<'_>, to: At<'_>) -> io::Result<()> {
    mkdirat(to.0, to.1, Mode::from_raw_mode(0o777))?;
    let renamed: Result<(), Errno> = renameat(from.0, from.1, to.0, to.1);
    Ok(renamed.inspect_err(|_| {
        let _ = unlinkat(to.0, to.1, AtFlags::REMOVEDIR);
    })?)
}

/// Windows does not rename over a directory, and refuses if one appears.
#[cfg(not(unix))]
pub(super) fn claim_and_rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    fs::remove_dir(to)?;
    fs::rename(from, to)
}

#[cfg(all(test, unix))]
// `clippy.toml` allows this in test functions, but not in what they share.
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn check_rename(rename: fn(At<'_>, At<'_>) -> io::Result<()>) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let open = fs::File::open(dir.path()).unwrap();
        let rename = |from, to| rename((&open, from), (&open, to));
        for name in ["a", "b"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("file"), name).unwrap();
        }
        rename("a", "new").unwrap();
        assert_eq!(fs::read(at("new/file")).unwrap(), b"a");
        let error = rename("b", "new").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        fs::create_dir(at("empty")).unwrap();
        assert!(rename("b", "empty").is_err());
        assert_eq!(fs::read(at("new/file")).unwrap(), b"a");
        assert_eq!(fs::read(at("b/file")).unwrap(), b"b");
    }

    #[test]
    fn a_taken_name_is_never_replaced() {
        check_rename(rename_new);
        check_rename(claim_and_rename);
    }
}
