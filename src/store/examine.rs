//! A look at a store that is not opened, nor changed.

use std::path::Path;

use super::{ModeError, Reserve, layout::Layout, materialize};
use crate::{
    disk::{DiskError, IoContext, Lock, OpenDir},
    domain::report::LinkMode,
};

impl Reserve {
    /// So many bytes, of a file system of this size.
    pub fn bytes(self, total_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => (total_bytes as f64 * percent / 100.0) as u64,
        }
    }
}

/// Who has the store in this directory open, in words of its own; `None`: nobody.
pub fn holder(dir: &Path) -> Option<String> {
    Lock::holder(&Layout::new(dir).lock())
}

/// Opens the directory below `jobs/` in which the store in this directory builds checkouts. No list, no
/// garbage collection and no checkout name reaches into it, and opening the store empties it.
///
/// # Errors
/// If there is no store, or a link is on the way.
pub fn building_dir(dir: &Path) -> Result<OpenDir, DiskError> {
    let root = OpenDir::open(dir.to_owned()).on("open", dir)?;
    root.open_below(Layout::BUILDING).on("open", &Layout::new(dir).building())
}

/// Tries whether checkouts can be made in this way in the store in this directory; `None` if there is no
/// store yet: then it is tried when it is made.
pub fn try_link_mode(dir: &Path, mode: LinkMode) -> Option<Result<(), ModeError>> {
    let layout = Layout::new(dir);
    let is_there = layout.uploading().is_dir() && layout.building().is_dir();
    is_there.then(|| materialize::probe(&layout, mode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Options, Store};

    #[test]
    fn a_store_that_is_open_has_a_holder() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(holder(dir.path()), None);
        assert!(try_link_mode(dir.path(), LinkMode::Copy).is_none());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let store = Store::open(dir.path(), Options::default()).unwrap();
        store.leave_note("pid 7").unwrap();
        assert_eq!(holder(dir.path()).as_deref(), Some("pid 7"));
        assert!(try_link_mode(dir.path(), LinkMode::Copy).unwrap().is_ok());
        drop(store);
        assert_eq!(holder(dir.path()), None);
    }

    #[test]
    fn a_share_is_of_the_whole() {
        assert_eq!(Reserve::Bytes(7).bytes(1000), 7);
        assert_eq!(Reserve::Percent(2.5).bytes(1000), 25);
    }
}
