//! What a sync would do, for people: totals, folders, frame sequences, names that will hurt. Pure.

mod names;
mod overview;
mod sequence;

use std::{
    collections::{BTreeMap, HashSet},
    ops::AddAssign,
};

use serde::Serialize;

pub use names::{BadName, Trouble, bad_names};
pub use overview::{Place, overview};
pub use sequence::{Frames, Group, group};

use crate::domain::{BlobStatus, Digest, RelPath};

/// What is known of a file on this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Here {
    /// It was never hashed before at this place.
    New,
    /// It has changed since it was hashed; if it was not read now, it looks like that.
    Changed,
    /// It is as it was.
    Unchanged,
}

/// One file of a sync to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedFile {
    /// Its path below the root.
    #[serde(serialize_with = "as_text")]
    pub path: RelPath,
    /// Its size in bytes.
    #[serde(rename = "size")]
    pub size_bytes: u64,
    /// SHA-256 of its content, if that is known.
    #[serde(rename = "sha256", skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// What is known of it on this side.
    pub here: Here,
    /// What the server knows of its content, if it was asked.
    #[serde(rename = "server", skip_serializing_if = "Option::is_none")]
    pub there: Option<BlobStatus>,
}

fn as_text<S: serde::Serializer>(path: &RelPath, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(path.as_str())
}

impl PlannedFile {
    /// Whether a sync would send it; if no server was asked, whether it would read it.
    pub fn is_pending(&self) -> bool {
        match self.there {
            Some(there) => there == BlobStatus::Unknown,
            None => self.here != Here::Unchanged,
        }
    }
}

/// A number of files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Sum {
    /// How many.
    pub files: u64,
    /// The sum of their sizes.
    pub bytes: u64,
}

impl Sum {
    /// One more file.
    pub fn add(&mut self, size_bytes: u64) {
        *self += Self { files: 1, bytes: size_bytes };
    }

    /// All these files.
    pub fn of<'a>(files: impl IntoIterator<Item = &'a PlannedFile>) -> Self {
        let mut sum = Self::default();
        for file in files {
            sum.add(file.size_bytes);
        }
        sum
    }
}

impl AddAssign for Sum {
    fn add_assign(&mut self, other: Self) {
        self.files += other.files;
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// All files of a sync to be, by what is known of them here and there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// All.
    pub all: Sum,
    /// Never hashed before.
    pub new: Sum,
    /// Changed since they were hashed.
    pub changed: Sum,
    /// As they were.
    pub unchanged: Sum,
    /// What the server says, if it was asked.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerTotals>,
}

/// All files of a sync to be, by what the server knows of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ServerTotals {
    /// Not there: they would be sent.
    pub to_send: Sum,
    /// The same, with each content once: what would go over the line.
    pub uploads: Sum,
    /// Being sent by somebody else just now.
    pub uploading: Sum,
    /// There.
    pub stored: Sum,
}

/// Adds up files; a server was asked about all or none.
pub fn totals(files: &[PlannedFile]) -> Totals {
    let mut totals = Totals::default();
    let mut contents = HashSet::new();
    for file in files {
        let size = file.size_bytes;
        totals.all.add(size);
        match file.here {
            Here::New => totals.new.add(size),
            Here::Changed => totals.changed.add(size),
            Here::Unchanged => totals.unchanged.add(size),
        }
        let Some(there) = file.there else { continue };
        let server = totals.server.get_or_insert_default();
        match there {
            BlobStatus::Unknown => {
                server.to_send.add(size);
                if file.digest.is_none_or(|digest| contents.insert((digest, size))) {
                    server.uploads.add(size);
                }
            }
            BlobStatus::Uploading => server.uploading.add(size),
            BlobStatus::Stored => server.stored.add(size),
        }
    }
    totals
}

/// The files that are directly in one folder, grouped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder<'a> {
    /// Its path; empty: the root.
    pub path: &'a str,
    /// Its files, and what they are together; sorted by pattern.
    pub groups: Vec<(Group, Vec<&'a PlannedFile>)>,
}

impl<'a> Folder<'a> {
    /// All its files.
    pub fn files(&self) -> impl Iterator<Item = &'a PlannedFile> {
        self.groups.iter().flat_map(|(_, files)| files.iter().copied())
    }
}

/// Files by their folders, with the frame sequences of each; sorted by path.
pub fn folders<'a>(files: impl IntoIterator<Item = &'a PlannedFile>) -> Vec<Folder<'a>> {
    let mut by_folder: BTreeMap<&str, Vec<(&str, &PlannedFile)>> = BTreeMap::new();
    for file in files {
        let (folder, name) = file.path.split();
        by_folder.entry(folder.unwrap_or_default()).or_default().push((name, file));
    }
    let folder = |(path, files): (&'a str, Vec<(&str, &'a PlannedFile)>)| {
        let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
        let of = |group: Group| {
            let members = group.members.iter().map(|&member| files[member].1).collect();
            (group, members)
        };
        Folder { path, groups: group(&names).into_iter().map(of).collect() }
    };
    by_folder.into_iter().map(folder).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, content: u8, here: Here, there: Option<BlobStatus>) -> PlannedFile {
        PlannedFile {
            path: path.parse().unwrap(),
            size_bytes: u64::from(content),
            digest: Some(Digest::from_bytes([content; 32])),
            here,
            there,
        }
    }

    #[test]
    fn totals_count_each_file_once_and_each_content_once() {
        use BlobStatus::{Stored, Unknown, Uploading};
        let files = [
            file("a", 10, Here::New, Some(Unknown)),
            file("b", 10, Here::Unchanged, Some(Unknown)),
            file("c", 5, Here::Changed, Some(Unknown)),
            file("d", 7, Here::Changed, Some(Uploading)),
            file("e", 100, Here::New, Some(Stored)),
        ];
        let sum = |files, bytes| Sum { files, bytes };
        let server = ServerTotals {
            to_send: sum(3, 25),
            uploads: sum(2, 15),
            uploading: sum(1, 7),
            stored: sum(1, 100),
        };
        let expected = Totals {
            all: sum(5, 132),
            new: sum(2, 110),
            changed: sum(2, 12),
            unchanged: sum(1, 10),
            server: Some(server),
        };
        assert_eq!(totals(&files), expected);
        assert_eq!(totals(&[file("a", 1, Here::New, None)]).server, None);
    }

    #[test]
    fn folders_have_what_is_directly_in_them() {
        let paths = ["z", "a/f1", "a/f2", "a/f3", "a/b/x", "a.b/x"];
        let files = paths.map(|path| file(path, 1, Here::New, None));
        let folders = folders(&files);
        let shown: Vec<(&str, Vec<&str>)> = folders
            .iter()
            .map(|f| (f.path, f.groups.iter().map(|(g, _)| g.pattern.as_str()).collect()))
            .collect();
        let expected: [(&str, Vec<&str>); 4] =
            [("", vec!["z"]), ("a", vec!["f[1-3]"]), ("a.b", vec!["x"]), ("a/b", vec!["x"])];
        assert_eq!(shown, expected);
        assert_eq!(folders[1].files().count(), 3);
    }

    #[test]
    fn a_hundred_thousand_files() {
        let mut files = Vec::new();
        for folder in 0..100 {
            for frame in 0..1000u32 {
                // One frame of each folder is missing.
                if frame != folder * 7 {
                    let path = format!("shots/shot_{folder:03}/Cache/smoke_{frame:04}.vdb");
                    files.push(file(&path, 3, Here::New, Some(BlobStatus::Unknown)));
                }
            }
            files.push(file(&format!("shots/shot_{folder:03}/cache/NUL"), 3, Here::New, None));
        }
        assert_eq!(totals(&files).all, Sum { files: 100_000, bytes: 300_000 });
        let folders = folders(&files);
        assert_eq!(folders.len(), 200);
        let sequences: Vec<&Frames> = folders
            .iter()
            .flat_map(|folder| &folder.groups)
            .filter_map(|(group, _)| group.frames.as_ref())
            .collect();
        assert_eq!(sequences.len(), 100);
        assert_eq!(sequences.iter().map(|frames| frames.names().count()).sum::<usize>(), 99_900);
        let bad = bad_names(files.iter().map(|file| file.path.as_str()), 20);
        let count = |trouble| bad.iter().filter(|bad| bad.trouble == trouble).count();
        assert_eq!(
            (count(Trouble::Reserved), count(Trouble::CaseClash), bad.len()),
            (100, 100, 200)
        );
        let places = overview(&files, 12);
        assert_eq!(places.len(), 100);
        assert_eq!(places.iter().map(|place| place.sum.files).sum::<u64>(), 100_000);
    }
}
