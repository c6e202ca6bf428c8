//! How a file of a checkout is made from a blob.

use std::{io, path::PathBuf};

use super::layout::Layout;
use crate::{
    disk::{DiskError, IoContext, OpenDir, TempFile, copy_file, reflink, remove_file},
    domain::report::LinkMode,
};

/// A way to make checkouts that does not work here.
#[derive(Debug, thiserror::Error)]
#[error("checkouts cannot be made with link_mode = \"{mode}\" in this storage ({why})")]
pub struct ModeError {
    /// The setting's name of it.
    pub mode: &'static str,
    /// What that needs.
    pub why: &'static str,
    /// What was tried, and what the system said.
    pub source: DiskError,
}

/// Makes a file of this name in a directory. `link` is the text of a symbolic link to the blob, `blob` its path.
pub(super) fn make<'a>(
    mode: LinkMode,
    link: impl FnOnce() -> &'a str,
    blob: impl FnOnce() -> PathBuf,
    (dir, name): (&OpenDir, &str),
) -> Result<(), DiskError> {
    match mode {
        LinkMode::Symlink => dir.symlink(link(), name),
        LinkMode::Hardlink => {
            let blob = blob();
            match dir.hard_link(&blob, name) {
                // An empty file may stand at more places than it can have names.
                Err(error) if error.source.kind() == io::ErrorKind::TooManyLinks => {
                    copy_file(&blob, (dir, name))
                }
                made => made,
            }
        }
        LinkMode::Reflink => reflink(&blob(), (dir, name)),
        LinkMode::Copy => copy_file(&blob(), (dir, name)),
    }
}

/// Whether files of this mode have content of their own, which must be synced.
pub(super) fn has_content(mode: LinkMode) -> bool {
    matches!(mode, LinkMode::Reflink | LinkMode::Copy)
}

/// What a mode is tried with.
const PROBE: &str = "probe";

/// Tries a mode between where blobs are and where checkouts are built.
pub(super) fn probe(layout: &Layout, mode: LinkMode) -> Result<(), ModeError> {
    let (name, why) = match mode {
        // What is always there need not be tried; on Windows, it may not be allowed.
        LinkMode::Symlink if cfg!(unix) => return Ok(()),
        LinkMode::Symlink => {
            ("symlink", "Windows wants Developer Mode, or the right to make links")
        }
        LinkMode::Hardlink => {
            ("hardlink", "blobs and checkouts must be on one file system that has hard links")
        }
        LinkMode::Reflink => (
            "reflink",
            "blobs and checkouts must be on one file system that can share content, like btrfs or xfs",
        ),
        LinkMode::Copy => ("copy", "nothing special"),
    };
    let blob = layout.uploading().join(format!("probe{}", Layout::TEMP_SUFFIX));
    let tried = (|| {
        let mut temp = TempFile::create(blob.clone())?;
        temp.write(b"probe")?;
        let dir = layout.building();
        let dir = OpenDir::open(dir.clone()).on("open", &dir)?;
        // A link that leads nowhere is one.
        make(mode, || "probe", || blob.clone(), (&dir, PROBE))
    })();
    let _ = remove_file(&layout.building().join(PROBE));
    tried.map_err(|source| ModeError { mode: name, why, source })
}
