//! Where things stand in the storage directory. The layout of `stored/` and `jobs/` is Shaman's, so
//! that an existing storage can be taken over and given back.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::Durability;
use crate::{
    disk::{DiskError, create_dirs_if_missing, sync_file_system},
    domain::{BlobId, CheckoutPath, Digest},
};

/// The directory of checkouts, below the storage directory.
pub(super) const JOBS: &str = "jobs";

/// The directory of the jobs' outputs.
pub(super) const RENDERS: &str = "renders";

/// The part of `jobs/` in which checkouts are built before they get their name.
const BUILDING: &str = ".farmhand-building";

/// The end of the names of blobs that come in pieces.
const UNFINISHED_SUFFIX: &str = ".farmhand-part";
const BORROWED_SUFFIX: &str = ".farmhand-borrowed";

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

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn stored(&self) -> PathBuf {
        self.root.join(Self::STORED)
    }

    /// Blobs that are being received; flat, and only names with [`Layout::TEMP_SUFFIX`] are ours.
    pub fn uploading(&self) -> PathBuf {
        self.root.join(Self::UPLOADING)
    }

    /// Files that were not what their names say. On the file system of the blobs.
    pub fn quarantine(&self) -> PathBuf {
        self.root.join(Self::QUARANTINE)
    }

    /// What farmhand remembers of this store.
    pub fn memory(&self) -> PathBuf {
        self.root.join("farmhand")
    }

    /// Records of checkouts.
    pub fn records(&self) -> PathBuf {
        self.root.join(Self::RECORDS)
    }

    /// The record of one checkout. Its path may be longer than a name can be.
    pub fn record(&self, path: &CheckoutPath) -> PathBuf {
        self.records().join(Self::record_name(path))
    }

    pub fn pins(&self) -> PathBuf {
        self.memory().join("pins")
    }

    pub fn scrub_state(&self) -> PathBuf {
        self.memory().join("scrub.json")
    }

    pub fn history(&self) -> PathBuf {
        self.memory().join("history.json")
    }

    pub const TEMP_SUFFIX: &str = ".farmhand-tmp";

    /// Directories below the storage directory.
    pub const STORED: &str = "file-store/stored";
    pub const UPLOADING: &str = "file-store/uploading";
    pub const QUARANTINE: &str = "file-store/quarantine";
    pub const RECORDS: &str = "farmhand/checkouts";
    pub const BUILDING: &str = "jobs/.farmhand-building";

    /// The extension of the record of a checkout that is being deleted, without its outputs and with them.
    pub const ERASING: &str = "erasing";
    pub const ERASING_ALL: &str = "erasing-all";

    /// The name of a checkout's record.
    pub fn record_name(path: &CheckoutPath) -> String {
        format!("{}.json", digest_of(path))
    }

    /// The name of the list of files that are its own.
    pub fn copies_name(path: &CheckoutPath) -> String {
        format!("{}.copies", digest_of(path))
    }

    /// The name of its record while it is being deleted.
    pub fn erasing_name(path: &CheckoutPath, with_outputs: bool) -> String {
        let extension = if with_outputs { Self::ERASING_ALL } else { Self::ERASING };
        format!("{}.{extension}", digest_of(path))
    }

    /// What has come of a blob that comes in pieces.
    pub fn unfinished(&self, id: &BlobId) -> PathBuf {
        self.uploading().join(format!("{}-{}{UNFINISHED_SUFFIX}", id.digest, id.size_bytes))
    }

    /// Which ranges of it were put in place from other blobs.
    pub fn borrowed(&self, id: &BlobId) -> PathBuf {
        self.uploading().join(format!("{}-{}{BORROWED_SUFFIX}", id.digest, id.size_bytes))
    }

    /// The blob that a file of this name in `uploading/` is a part of, or a list of such parts.
    pub fn unfinished_id(name: &str) -> Option<BlobId> {
        let name = name.strip_suffix(UNFINISHED_SUFFIX).or(name.strip_suffix(BORROWED_SUFFIX))?;
        let (digest, size) = name.split_once('-')?;
        Some(BlobId { digest: digest.parse().ok()?, size_bytes: size.parse().ok()? })
    }

    pub fn chunk_index(&self) -> PathBuf {
        self.memory().join("chunks-1.sqlite")
    }

    pub fn jobs(&self) -> PathBuf {
        self.root.join(JOBS)
    }

    pub fn building(&self) -> PathBuf {
        self.jobs().join(BUILDING)
    }

    /// Makes the fixed directories, and makes durable whatever has been renamed into the storage
    /// by a process that did not live to sync it. Each of the 256 prefixes exists before the first
    /// blob, so that storing one never has to sync `stored/` itself.
    pub fn create(&self, durability: Durability) -> Result<(), DiskError> {
        let dirs =
            [self.stored(), self.uploading(), self.quarantine(), self.records(), self.building()];
        for dir in dirs {
            create_dirs_if_missing(&dir)?;
        }
        for prefix in 0..=255u8 {
            create_dirs_if_missing(&self.stored().join(format!("{prefix:02x}")))?;
        }
        if durability == Durability::Full {
            // They may be on different ones.
            for dir in [self.stored(), self.jobs(), self.memory()] {
                sync_file_system(&dir)?;
            }
        }
        Ok(())
    }

    /// The directories of a blob: the path of the upper one below the storage directory, and the name of the
    /// blob's own in it.
    pub fn blob_dirs(id: &BlobId) -> (String, String) {
        let hex = id.digest.to_string();
        (format!("{}/{}", Self::STORED, &hex[..2]), hex[2..].to_owned())
    }

    /// The name of a blob's file in its directory.
    pub fn blob_name(id: &BlobId) -> String {
        format!("{}.blob", id.size_bytes)
    }

    /// Where a blob stands: its directory, and its file.
    pub fn blob(&self, id: &BlobId) -> (PathBuf, PathBuf) {
        let hex = id.digest.to_string();
        let mut dir = self.stored();
        dir.push(&hex[..2]);
        dir.push(&hex[2..]);
        let file = dir.join(Self::blob_name(id));
        (dir, file)
    }

    /// The blob of which this is the end of the path, in whichever storage directory.
    pub fn blob_of(path: &Path) -> Option<BlobId> {
        let mut parts = path.iter().rev().map(|part| part.to_str());
        let size = parts.next()??.strip_suffix(".blob")?;
        let (rest, prefix) = (parts.next()??, parts.next()??);
        Self::parse(prefix, rest, size)
    }

    /// The blob with these names of directories, and this size.
    pub fn parse(prefix: &str, rest: &str, size: &str) -> Option<BlobId> {
        let digest =
            if prefix.len() == 2 { format!("{prefix}{rest}").parse().ok()? } else { None? };
        let canonical = size == "0" || !size.starts_with(['0', '+']);
        Some(BlobId { digest, size_bytes: size.parse().ok().filter(|_| canonical)? })
    }

    pub fn checkout(&self, path: &CheckoutPath) -> PathBuf {
        self.jobs().join(path.as_str())
    }

    /// Whether a checkout of this name would stand where checkouts are built.
    pub fn is_reserved(path: &CheckoutPath) -> bool {
        // Some file systems do not tell upper from lower case.
        path.as_rel().parts().next().is_some_and(|part| part.eq_ignore_ascii_case(BUILDING))
    }
}

/// The texts of links from one directory of a checkout: relative, so that workers may mount the storage
/// wherever they like.
pub(super) struct Links {
    text: String,
    /// How much of it is the way to all blobs.
    way_bytes: usize,
}

impl Links {
    /// From this directory of the checkout, `""` being the checkout itself.
    pub fn new(checkout: &CheckoutPath, dir: &str) -> Self {
        let depth = 1 + checkout.as_rel().parts().count();
        let depth = depth + dir.split('/').filter(|part| !part.is_empty()).count();
        let text = "../".repeat(depth) + "file-store/stored/";
        Self { way_bytes: text.len(), text }
    }

    /// The text of a link to this blob.
    pub fn to(&mut self, id: &BlobId) -> &str {
        let mut hex = const_hex::Buffer::<32>::new();
        let (prefix, rest) = hex.format(id.digest.as_bytes()).split_at(2);
        self.text.truncate(self.way_bytes);
        let _ = write!(self.text, "{prefix}/{rest}/{}.blob", id.size_bytes);
        &self.text
    }
}

fn digest_of(path: &CheckoutPath) -> Digest {
    Digest::from_bytes(Sha256::digest(path.as_str()).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Digest, RelPath};

    #[test]
    fn links_lead_from_the_checkout_to_the_blob() {
        let id = BlobId { digest: Digest::from_bytes([0xab; 32]), size_bytes: 7 };
        let (checkout, path): (_, RelPath) =
            ("show/shot 1".parse().unwrap(), "lib/a.blend".parse().unwrap());
        let mut links = Links::new(&checkout, path.split().0.unwrap_or_default());
        links.to(&BlobId { size_bytes: 12345, ..id });
        let target = PathBuf::from(links.to(&id));
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
        assert_eq!(Layout::blob_of(&target), Some(id));
        assert_eq!(Layout::blob_of(&resolved), Some(id));
    }

    #[test]
    fn only_names_of_blobs_are_read_as_such() {
        let rest = "ab".repeat(31);
        for (prefix, size) in [("ab", "7"), ("ab", "0")] {
            assert!(Layout::parse(prefix, &rest, size).is_some());
        }
        for (prefix, rest, size) in [
            ("a", &rest[..], "7"),
            ("AB", &rest, "7"),
            ("ab", &rest[1..], "7"),
            ("ab", &rest, "07"),
            ("ab", &rest, "+7"),
            ("ab", &rest, "-7"),
            ("ab", &rest, ""),
            ("ab", &rest, "99999999999999999999"),
        ] {
            assert_eq!(Layout::parse(prefix, rest, size), None, "{prefix} {rest} {size}");
        }
        assert_eq!(Layout::blob_of(Path::new("7.blob")), None);
        assert_eq!(Layout::blob_of(Path::new("/")), None);
    }
}
