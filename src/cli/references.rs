//! The files that a `.blend` and its libraries refer to, and which of them are not in the project.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use unicode_normalization::UnicodeNormalization;

use super::{
    apart::lexical,
    exit::{Exit, Failure},
    needed::{self, named},
    root::Place,
};
use crate::{
    domain::RelPath,
    scan::{BlendError, BlendPathKind, Scan, blend_paths},
};

/// How many files are read at most: the `.blend`, its libraries, their libraries, and so on.
const MAX_BLENDS: usize = 10_000;

/// What Blender puts the number of a UDIM tile in place of.
const TILES: [&str; 2] = ["<UDIM>", "<UVTILE>"];

/// Something that a `.blend` refers to.
#[derive(Debug, Clone, Copy)]
struct Reference {
    /// There is such a file, or a directory with something in it.
    exists: bool,
    /// It is written as an absolute path.
    is_absolute: bool,
}

/// All that a file and its libraries refer to.
#[derive(Debug, Default)]
pub(super) struct Collected {
    references: BTreeMap<PathBuf, Reference>,
    /// Files whose references are not known, and why.
    unread: Vec<(PathBuf, String)>,
}

impl Collected {
    /// What exists and is found from the place of the file that refers to it.
    pub fn existing(&self) -> impl Iterator<Item = &Path> {
        let found = self.references.iter().filter(|(_, found)| found.exists && !found.is_absolute);
        found.map(|(path, _)| path.as_path())
    }
}

/// Reads the references of a file and of all libraries that may be followed; `None` if it was stopped.
pub(super) fn collect(
    file: &Path,
    may_follow: impl Fn(&Path) -> bool,
    stop: &AtomicBool,
) -> Option<Collected> {
    let mut collected = Collected::default();
    let mut queue = VecDeque::from([lexical(file)]);
    let mut seen: HashSet<PathBuf> = queue.iter().cloned().collect();
    while let Some(blend) = queue.pop_front() {
        let paths = match blend_paths(&blend, stop) {
            Ok(paths) => paths,
            Err(BlendError::Stopped) => return None,
            // Other programs have other files, and those are nothing to be warned of.
            Err(BlendError::NotBlend) if blend.extension().is_none_or(|end| end != "blend") => {
                continue;
            }
            Err(error) => {
                collected.unread.push((blend, error.to_string()));
                continue;
            }
        };
        let dir = blend.parent().unwrap_or(Path::new("/"));
        for found in paths {
            let Some((path, is_absolute)) = resolve(&found.text, dir) else { continue };
            let exists = exists(&path, found.kind);
            let is_library = found.kind == BlendPathKind::Library && exists;
            if is_library && may_follow(&path) && seen.insert(path.clone()) {
                if seen.len() > MAX_BLENDS {
                    let why = format!("there are more than {MAX_BLENDS} libraries");
                    collected.unread.push((path.clone(), why));
                    queue.clear();
                } else {
                    queue.push_back(path.clone());
                }
            }
            // Absolute here and relative there: the relative one is the one to hold.
            let known =
                collected.references.entry(path).or_insert(Reference { exists, is_absolute });
            known.is_absolute &= is_absolute;
        }
    }
    Some(collected)
}

/// A path as it is written in a `.blend` of this directory, and whether that is absolute.
fn resolve(text: &str, dir: &Path) -> Option<(PathBuf, bool)> {
    match text.strip_prefix("//") {
        // Blender on Windows writes backslashes, and reads both everywhere.
        Some(rest) => Some((lexical(&dir.join(rest.replace('\\', "/"))), false)),
        None => Path::new(text).is_absolute().then(|| (lexical(Path::new(text)), true)),
    }
}

fn exists(path: &Path, kind: BlendPathKind) -> bool {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => true,
        Ok(found) if found.is_dir() && kind == BlendPathKind::Directory => {
            fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
        }
        Ok(_) => false,
        Err(_) => has_tiles(path),
    }
}

/// Whether there is a file for a pattern like `wall.<UDIM>.png` or `plate_####.png`.
fn has_tiles(path: &Path) -> bool {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return false;
    };
    let tile = TILES.iter().find_map(|tile| name.split_once(tile));
    let number = || {
        let start = name.find('#')?;
        Some((&name[..start], name[start..].trim_start_matches('#')))
    };
    let Some((start, end)) = tile.or_else(number) else { return false };
    let is_tile = |name: &str| {
        name.len() > start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
    };
    fs::read_dir(dir).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_str().is_some_and(is_tile))
    })
}

/// References, by where they lead from a project.
#[derive(Debug, Default)]
pub(super) struct References {
    /// Files in the project.
    inside: BTreeSet<RelPath>,
    /// Files and directories that exist outside of it.
    outside: Vec<PathBuf>,
}

impl References {
    /// Those of the project's file and its libraries. Warns of what is certain to be missing or cannot be told;
    /// `None` if it was stopped.
    pub fn of(place: &Place, stop: &AtomicBool) -> Option<Self> {
        let real_root = place.root.canonicalize().unwrap_or_else(|_| place.root.clone());
        let inside = |path: &Path| match path == place.root || path == real_root {
            true => Some(PathBuf::new()),
            false => needed::relative(path, &place.root, &real_root),
        };
        let collected = collect(&place.file, |path| inside(path).is_some(), stop)?;
        let mut references = Self::default();
        let (mut missing, mut absolute) = (Vec::new(), Vec::new());
        for (path, found) in collected.references {
            match inside(&path) {
                None if found.exists => references.outside.push(path),
                // An absolute path may exist on workers alone.
                None if !found.is_absolute => missing.push(path),
                None => {}
                Some(relative) => {
                    if found.is_absolute && found.exists {
                        absolute.push(path.clone());
                    }
                    let relative = relative.to_str().map(|text| text.replace('\\', "/"));
                    if path.is_file()
                        && let Some(Ok(relative)) = relative.as_deref().map(RelPath::from_wire)
                    {
                        references.inside.insert(relative);
                    }
                }
            }
        }
        let root = place.root.display();
        for (path, why) in &collected.unread {
            tracing::warn!(
                "whether all files that {} refers to are in {root} is not known: {why}; look at the checkout, or use \
                 --only-needed",
                path.display()
            );
        }
        if !missing.is_empty() {
            tracing::warn!(
                "{} files that are referred to are neither in {root} nor do they exist: {}",
                missing.len(),
                named(&missing)
            );
        }
        if !absolute.is_empty() {
            tracing::warn!(
                "{} files are referred to by absolute paths, which workers do not find in the checkout: {}; in \
                 Blender, use File > External Data > Make All Paths Relative",
                absolute.len(),
                named(&absolute)
            );
        }
        Some(references)
    }

    /// Refuses references that leave the project.
    pub fn require_inside(&self, place: &Place, allow_outside: bool) -> Result<(), Failure> {
        require_none_outside(&self.outside, place, allow_outside)
    }

    /// Refuses references to files that ignore rules keep from being sent.
    pub fn require_sent(&self, place: &Place, scan: &Scan) -> Result<(), Failure> {
        let mut left: BTreeSet<&RelPath> = self.inside.iter().collect();
        for file in &scan.files {
            left.remove(&file.path);
        }
        // What is skipped is reported, and so is all that is in a directory.
        left.retain(|path| {
            !scan.skipped.iter().any(|skipped| Path::new(path.as_str()).starts_with(&skipped.path))
        });
        // Where names are the same in upper and lower case, or in both forms of accents, the .blend may write
        // them otherwise than the directory.
        if !left.is_empty() {
            let sent: HashSet<_> = scan.files.iter().map(|file| folded(&file.path)).collect();
            left.retain(|path| !sent.contains(&folded(path)));
        }
        let left: Vec<PathBuf> = left.into_iter().map(|path| path.as_str().into()).collect();
        require_none_ignored(&left, place)
    }
}

fn folded(path: &RelPath) -> String {
    path.as_str().nfc().flat_map(char::to_lowercase).collect()
}

/// Refuses files outside of the project, or warns of them.
pub(super) fn require_none_outside(
    outside: &[PathBuf],
    place: &Place,
    allow_outside: bool,
) -> Result<(), Failure> {
    if outside.is_empty() {
        return Ok(());
    }
    let (count, root, names) = (outside.len(), place.root.display(), named(outside));
    if allow_outside {
        tracing::warn!("{count} needed files are not in {root}, and are not sent: {names}");
        return Ok(());
    }
    let message = format!(
        "{count} needed files are not in {root}, and would be missing in the job: {names}; nothing was sent. Move \
         them there, give a folder with all of them as --root, or, if workers find them elsewhere, --allow-outside"
    );
    Err(Failure::new(Exit::Usage, message))
}

/// Refuses needed files that ignore rules keep from being sent.
pub(super) fn require_none_ignored(ignored: &[PathBuf], place: &Place) -> Result<(), Failure> {
    let Some(first) = ignored.first() else { return Ok(()) };
    let root = place.root.display();
    let message = format!(
        "{} needed files are ignored by the rules of {root}: {}; `farmhand plan {root} --why {}` names the rule",
        ignored.len(),
        named(ignored),
        first.display()
    );
    Err(Failure::new(Exit::Usage, message))
}

#[cfg(test)]
// `clippy.toml` allows this in test functions, but not in what they share.
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        disk::Fingerprint,
        domain::Digest,
        scan::{ScannedFile, SkipReason, Skipped},
    };

    #[test]
    fn paths_are_resolved_from_the_file() {
        let dir = Path::new("/film/shots");
        let relative = |text: &str| resolve(text, dir).filter(|(_, is_absolute)| !is_absolute);
        let path = |text: &str| Some((PathBuf::from(text), false));
        assert_eq!(relative("//a.png"), path("/film/shots/a.png"));
        assert_eq!(relative("//../textures/a.png"), path("/film/textures/a.png"));
        assert_eq!(relative("//..\\textures\\a.png"), path("/film/textures/a.png"));
        assert_eq!(resolve("<builtin>", dir), None);
        #[cfg(unix)]
        assert_eq!(resolve("/x/../a.png", dir), Some(("/a.png".into(), true)));
    }

    #[test]
    fn files_that_are_not_sent_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.blend");
        fs::write(&file, "x").unwrap();
        let fingerprint = Fingerprint::of(&fs::metadata(&file).unwrap());
        let path = |text: &str| RelPath::from_wire(text).unwrap();
        let sent = |path| ScannedFile {
            path,
            fingerprint,
            digest: Digest::from_bytes([0; 32]),
            cached: false,
        };
        let scan = Scan {
            root: dir.path().to_owned(),
            files: vec![sent(path("a.blend")), sent(path("Textures/wood.png"))],
            skipped: vec![Skipped { path: "link".into(), reason: SkipReason::LinkToDirectory }],
        };
        let place = Place { root: scan.root.clone(), file, path: path("a.blend") };
        let check = |text: &str| {
            let references = References { inside: [path(text)].into(), ..References::default() };
            references.require_sent(&place, &scan).map_err(|failure| failure.exit())
        };
        // The directory has the name in another case, and does not tell cases apart.
        assert_eq!(check("textures/wood.png"), Ok(()));
        // That is reported as skipped.
        assert_eq!(check("link/a.png"), Ok(()));
        assert_eq!(check("textures/wood.exr"), Err(Exit::Usage));
        assert_eq!(check("links.png"), Err(Exit::Usage));
    }

    #[test]
    fn patterns_stand_for_files() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["wall.1001.png", "plate_0001.png", "a #1.png"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        fs::create_dir(dir.path().join("empty")).unwrap();
        let exists = |name: &str, kind| exists(&dir.path().join(name), kind);
        for name in ["wall.<UDIM>.png", "wall.<UVTILE>.png", "plate_####.png", "a #1.png"] {
            assert!(exists(name, BlendPathKind::File), "{name}");
        }
        for name in ["floor.<UDIM>.png", "plate_####.exr", "wall.1002.png", "empty"] {
            assert!(!exists(name, BlendPathKind::File), "{name}");
        }
        assert!(!exists("empty", BlendPathKind::Directory));
        assert!(exists(".", BlendPathKind::Directory));
        assert!(!exists(".", BlendPathKind::File));
    }
}
