//! Where things stand in the storage directory. The layout of `stored/` and `jobs/` is Shaman's, so
//! that an existing storage can be taken over and given back.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::Durability;
use crate::{
    disk::{DiskError, IoContext, create_dir_if_missing, sync_file_system},
    domain::{BlobId, CheckoutPath, RelPath},
};

/// The part of `jobs/` in which checkouts are built before they get their name.
const BUILDING: &str = ".farmhand-building";

/// Paths of one storage directory.
#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub fn lock(&self) -> PathBuf {
        self.root.join("farmhand.lock")
    }

    fn stored(&self) -> PathBuf {
        self.root.join("file-store/stored")
    }

    /// Blobs that are being received; flat, and only names with [`Layout::TEMP_SUFFIX`] are ours.
    pub fn uploading(&self) -> PathBuf {
        self.root.join("file-store/uploading")
    }

    pub const TEMP_SUFFIX: &str = ".farmhand-tmp";

    pub fn jobs(&self) -> PathBuf {
        self.root.join("jobs")
    }

    pub fn building(&self) -> PathBuf {
        self.jobs().join(BUILDING)
    }

    /// Makes the fixed directories, and makes durable whatever has been renamed into the storage
    /// by a process that did not live to sync it. Each of the 256 prefixes exists before the first
    /// blob, so that storing one never has to sync `stored/` itself.
    pub fn create(&self, durability: Durability) -> Result<(), DiskError> {
        for dir in [self.stored(), self.uploading(), self.building()] {
            fs::create_dir_all(&dir).on("create", &dir)?;
        }
        for prefix in 0..=255u8 {
            let dir = self.stored().join(format!("{prefix:02x}"));
            // Looked at first: on a store that is there, nothing changes.
            if !dir.is_dir() {
                create_dir_if_missing(&dir)?;
            }
        }
        if durability == Durability::Full {
            // They may be on different ones.
            for dir in [self.stored(), self.jobs()] {
                sync_file_system(&dir)?;
            }
        }
        Ok(())
    }

    /// Where a blob stands: its directory, and its file.
    pub fn blob(&self, id: &BlobId) -> (PathBuf, PathBuf) {
        let hex = id.digest.to_string();
        let mut dir = self.stored();
        dir.push(&hex[..2]);
        dir.push(&hex[2..]);
        let file = dir.join(format!("{}.blob", id.size_bytes));
        (dir, file)
    }

    pub fn checkout(&self, path: &CheckoutPath) -> PathBuf {
        self.jobs().join(path.as_str())
    }

    /// Whether a checkout of this name would stand where checkouts are built.
    pub fn is_reserved(path: &CheckoutPath) -> bool {
        // Some file systems do not tell upper from lower case.
        path.as_rel().parts().next().is_some_and(|part| part.eq_ignore_ascii_case(BUILDING))
    }

    /// The text of the link at `path` in `checkout`: relative, so that workers may mount the
    /// storage wherever they like.
    pub fn link_target(checkout: &CheckoutPath, path: &RelPath, id: &BlobId) -> PathBuf {
        let up = 1 + checkout.as_rel().parts().count() + path.parts().count() - 1;
        let hex = id.digest.to_string();
        let mut target = "../".repeat(up);
        target.push_str("file-store/stored/");
        target.push_str(&hex[..2]);
        target.push('/');
        target.push_str(&hex[2..]);
        target.push('/');
        target.push_str(&id.size_bytes.to_string());
        target.push_str(".blob");
        target.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Digest;

    #[test]
    fn links_lead_from_the_checkout_to_the_blob() {
        let id = BlobId { digest: Digest::from_bytes([0xab; 32]), size_bytes: 7 };
        let (checkout, path) = ("show/shot 1".parse().unwrap(), "lib/a.blend".parse().unwrap());
        let target = Layout::link_target(&checkout, &path, &id);
        let layout = Layout::new(Path::new("/s"));
        let rest = "ab".repeat(31);
        assert_eq!(
            target.to_str().unwrap(),
            format!("../../../../file-store/stored/ab/{rest}/7.blob")
        );
        // jobs/show/shot 1/lib + target, with each `..` taking one part away.
        let mut resolved = layout.checkout(&checkout).join("lib");
        for part in target.components() {
            match part {
                std::path::Component::ParentDir => assert!(resolved.pop()),
                part => resolved.push(part),
            }
        }
        assert_eq!(resolved, layout.blob(&id).1);
    }
}
