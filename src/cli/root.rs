//! Which folder is the project of a file.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use bytesize::ByteSize;

use super::{
    exit::{Exit, Failure},
    hash::escaped,
    needed,
    references::{self, Collected},
};
use crate::domain::RelPath;

/// Files and directories that mark the folder of a project.
const PROJECT_MARKERS: [&str; 2] = [".blender_project", ".farmhand.toml"];

/// Files and directories of version control. The folder with one may hold more or less than the project, so it
/// is only suggested.
const VCS_MARKERS: [&str; 10] =
    [".git", ".svn", ".hg", ".jj", ".bzr", "_darcs", ".fslckout", "CVS", ".p4config", ".plastic"];

/// Where counting the files of a candidate stops.
const MAX_COUNTED: u64 = 10_000;

/// A file and the project that it is in.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub root: PathBuf,
    pub file: PathBuf,
    /// The file below the root.
    pub path: RelPath,
}

impl Place {
    /// Finds the project: `root`, or else the nearest folder above the file with a marker.
    pub fn find(file: &Path, root: Option<&Path>) -> Result<Self, Failure> {
        let shown = file.display();
        let missing = |message: String| Failure::new(Exit::Missing, message);
        let usage = |message: String| Failure::new(Exit::Usage, message);
        let found = fs::metadata(file)
            .map_err(|error| missing(format!("cannot submit {shown}: {error}; check the path")))?;
        if !found.is_file() {
            return Err(usage(format!(
                "{shown} is no file; give the .blend, and its folder as --root"
            )));
        }
        let file = absolute(file)?;
        let root = match root {
            Some(root) if !root.is_dir() => {
                return Err(missing(format!("--root {}: there is no such folder", root.display())));
            }
            Some(root) => absolute(root)?,
            None => marked(&file, &PROJECT_MARKERS)
                .map_or_else(|| Err(no_root(&file)), |(dir, _)| Ok(dir.to_owned()))?,
        };
        let real_root = root.canonicalize().unwrap_or_else(|_| root.clone());
        let Some(relative) = needed::relative(&file, &root, &real_root) else {
            return Err(usage(format!(
                "{shown} is not in {}; give the folder that it is in as --root",
                root.display()
            )));
        };
        let text = relative.to_str().ok_or_else(|| {
            usage(format!("{shown}: its path is not UTF-8, and no job could name it; rename it"))
        })?;
        let text = text.replace(std::path::MAIN_SEPARATOR, "/");
        let path = RelPath::from_wire(&text)
            .map_err(|error| usage(format!("{shown}: {error}; rename it")))?;
        Ok(Self { root, file, path })
    }
}

/// An absolute path. With `..` in it, the folders above must be the real ones.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    let failed =
        |error| Failure::new(Exit::Failed, format!("cannot find {}: {error}", path.display()));
    let absolute = std::path::absolute(path).map_err(failed)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(dir), Some(name)) if has_parent_dir(dir) => {
            Ok(dir.canonicalize().map_err(failed)?.join(name))
        }
        (_, None) if has_parent_dir(&absolute) => absolute.canonicalize().map_err(failed),
        _ => Ok(absolute),
    }
}

fn has_parent_dir(path: &Path) -> bool {
    path.components().any(|part| part == std::path::Component::ParentDir)
}

/// The nearest folder above the file with one of these in it, and which one.
fn marked<'a>(file: &'a Path, markers: &[&'static str]) -> Option<(&'a Path, &'static str)> {
    file.ancestors().skip(1).find_map(|dir| Some((dir, marker_in(dir, markers)?)))
}

fn marker_in(dir: &Path, markers: &[&'static str]) -> Option<&'static str> {
    markers.iter().copied().find(|marker| dir.join(marker).exists())
}

/// Neither a flag nor a marker says what the project is: shows what it may be, and the flag to type.
fn no_root(file: &Path) -> Failure {
    let collected =
        references::collect(file, |_| true, &AtomicBool::new(false)).unwrap_or_default();
    let mut message = format!(
        "nothing was sent: the project of {} is not known, because neither --root is given nor a folder above has \
         .blender_project or .farmhand.toml in it. Choose the folder with all files of the project:",
        file.display()
    );
    for (dir, reasons) in candidates(file, &collected) {
        message.push_str(&format!(
            "\n  --root {}  ({}; {})",
            quoted(&dir),
            Size::of(&dir),
            reasons.join("; ")
        ));
    }
    Failure::new(Exit::Usage, message)
}

/// Folders that may be the project, the smallest first, each with what speaks for it.
fn candidates(file: &Path, collected: &Collected) -> Vec<(PathBuf, Vec<String>)> {
    let mut found: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    let parent = file.parent().unwrap_or(file);
    found.entry(parent.to_owned()).or_default().push("the folder of the file".into());
    for dir in parent.ancestors() {
        if let Some(marker) = marker_in(dir, &VCS_MARKERS) {
            found.entry(dir.to_owned()).or_default().push(format!("has {marker}"));
        }
    }
    let holds_all = |dir: &Path| collected.existing().all(|path| path.starts_with(dir));
    if collected.existing().next().is_some()
        // The root of the file system is no project.
        && let Some(dir) = parent.ancestors().find(|dir| holds_all(dir))
        && dir.parent().is_some()
    {
        found.entry(dir.to_owned()).or_default();
    }
    let mut found: Vec<_> = found.into_iter().collect();
    for (dir, reasons) in &mut found {
        if collected.existing().next().is_some() {
            let has = if holds_all(dir) { "holds" } else { "does not hold" };
            reasons.push(format!("{has} all files that are referred to"));
        }
    }
    found.sort_by_key(|(dir, _)| std::cmp::Reverse(dir.components().count()));
    found
}

/// How much is in a folder, as far as it was counted.
struct Size {
    files: u64,
    bytes: u64,
    is_all: bool,
}

impl Size {
    /// Counts regular files before ignore rules, and follows no links.
    fn of(dir: &Path) -> Self {
        let mut size = Self { files: 0, bytes: 0, is_all: true };
        let (mut dirs, mut seen) = (vec![dir.to_owned()], 0);
        while let Some(dir) = dirs.pop() {
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            for entry in entries.flatten() {
                seen += 1;
                if seen > MAX_COUNTED {
                    size.is_all = false;
                    return size;
                }
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => dirs.push(entry.path()),
                    Ok(kind) if kind.is_file() => {
                        size.files += 1;
                        size.bytes += entry.metadata().map_or(0, |found| found.len());
                    }
                    _ => {}
                }
            }
        }
        size
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let more = if self.is_all { "" } else { "more than " };
        let noun = if self.files == 1 && self.is_all { "file" } else { "files" };
        write!(f, "{more}{} {noun}, {more}{}", self.files, ByteSize::b(self.bytes))
    }
}

/// A path as it can be typed into a shell.
fn quoted(path: &Path) -> String {
    let text = escaped(&path.display().to_string());
    let is_plain = |c: char| c.is_alphanumeric() || "/\\:._-+@%,=".contains(c);
    match (text.chars().all(is_plain), cfg!(windows)) {
        (true, _) => text,
        (false, true) => format!("\"{text}\""),
        (false, false) => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn paths_are_quoted_for_the_shell() {
        assert_eq!(quoted(Path::new("/a/b-1.0")), "/a/b-1.0");
        assert_eq!(quoted(Path::new("/a/it's 1")), r"'/a/it'\''s 1'");
    }
}
