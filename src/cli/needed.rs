//! What belongs to a .blend, as Blender Asset Tracer (BAT) says.

use std::{
    collections::{BTreeMap, HashSet},
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Stdio,
};

use super::{
    apart::lexical,
    exit::{Exit, Failure},
};
use crate::domain::RelPath;

/// How many paths an error names.
const NAMED: usize = 10;

/// What a file needs of the folder that it is in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Needed {
    /// The files.
    pub files: HashSet<RelPath>,
    /// What it needs that is not there.
    pub missing: Vec<PathBuf>,
    /// What it needs that is not in the folder, whether it exists or not.
    pub outside: Vec<PathBuf>,
}

/// Asks BAT.
pub(super) async fn needed(program: &str, file: &Path, root: &Path) -> Result<Needed, Failure> {
    let run = tokio::process::Command::new(program)
        .args(["list", "--json"])
        .arg(file)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = run.await.map_err(|error| {
        let next = match error.kind() {
            ErrorKind::NotFound => {
                "Blender Asset Tracer is not there; install it (pip install blender-asset-tracer), or say \
                 where it is in the setting submit.bat, or leave out --only-needed"
            }
            _ => "check the setting submit.bat",
        };
        Failure::new(Exit::Failed, format!("cannot run {program}: {error}; {next}"))
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.trim_end().lines().last().unwrap_or("without a word").trim();
        let message = format!(
            "{program} cannot say what {} needs ({}): {last}; is it Blender Asset Tracer, and the file a .blend?",
            file.display(),
            output.status
        );
        return Err(Failure::new(Exit::Failed, message));
    }
    let listed: BTreeMap<PathBuf, Vec<PathBuf>> =
        serde_json::from_slice(&output.stdout).map_err(|error| {
            let message = format!(
                "what {program} says is no list of files: {error}; it may be another program of that name: \
                 say where Blender Asset Tracer is in the setting submit.bat"
            );
            Failure::new(Exit::Failed, message)
        })?;
    let mut missing = missing(&String::from_utf8_lossy(&output.stderr));
    missing.retain(|path| !path.exists());
    Ok(sort(listed, missing, root))
}

/// What is not there is in no list of BAT, but in its warnings (`… Path /a/b does not exist for <…>`).
fn missing(warnings: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let (before, _) = line.split_once(" does not exist")?;
        Some(PathBuf::from(before.split_once("Path ")?.1))
    };
    warnings.lines().filter_map(path).collect()
}

/// Puts what is listed, and what is missing, into the folder or outside of it.
fn sort(listed: BTreeMap<PathBuf, Vec<PathBuf>>, missing: Vec<PathBuf>, root: &Path) -> Needed {
    let mut needed = Needed::default();
    let real_root = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    let mut seen = HashSet::new();
    let listed = listed.into_iter().flat_map(|(blend, assets)| [blend].into_iter().chain(assets));
    for path in listed.chain(missing) {
        if !seen.insert(path.clone()) {
            continue;
        }
        let relative = relative(&path, root, &real_root);
        let text = relative.as_deref().and_then(Path::to_str).map(RelPath::from_wire);
        match text {
            Some(Ok(relative)) if path.exists() => {
                needed.files.insert(relative);
            }
            Some(Ok(_)) => needed.missing.push(path),
            _ => needed.outside.push(path),
        }
    }
    needed.missing.sort();
    needed.outside.sort();
    needed
}

/// The first of these paths.
pub(super) fn named(paths: &[PathBuf]) -> String {
    let mut text: Vec<_> =
        paths.iter().take(NAMED).map(|path| path.display().to_string()).collect();
    if paths.len() > NAMED {
        text.push("…".into());
    }
    text.join(", ")
}

/// A path below a folder, either as it is written or as it really is; `..` in it is followed by its text.
pub(super) fn relative(path: &Path, root: &Path, real_root: &Path) -> Option<PathBuf> {
    let plain = lexical(path);
    let below = |path: &Path| {
        let below = path.strip_prefix(root).or_else(|_| path.strip_prefix(real_root)).ok()?;
        (!below.as_os_str().is_empty()).then(|| below.to_owned())
    };
    // The name that the file has in the folder counts, also if it is a link to somewhere else.
    below(&plain).or_else(|| {
        let dir = plain.parent()?.canonicalize().ok()?;
        below(&dir.join(plain.file_name()?))
    })
}

#[cfg(all(test, unix))]
// `clippy.toml` allows this in test functions, but not in what they share.
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_missing_is_taken_from_warnings() {
        let warnings = "2026-11-24 13:35:27,279  WARNING blender_asset_tracer.trace.result        \
            Path /p/a b.png does not exist for <BlockUsage name=b'IMa b.png' type='Image'>\n\
            something else\n";
        assert_eq!(missing(warnings), [PathBuf::from("/p/a b.png")]);
    }

    #[test]
    fn files_are_found_in_the_folder_whatever_the_way_to_them_is() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        fs::create_dir_all(real.join("a/b")).unwrap();
        fs::write(real.join("a/b/x.png"), "x").unwrap();
        fs::write(real.join("s.blend"), "x").unwrap();
        fs::write(dir.path().join("out.png"), "x").unwrap();
        let link = real.parent().unwrap().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        for root in [&real, &link] {
            let listed = [
                (real.join("s.blend"), vec![link.join("a/b/x.png"), real.join("a/../a/b/x.png")]),
                (link.join("a/../s.blend"), vec![link.join("a/gone.png")]),
            ];
            let found = sort(listed.into(), Vec::new(), root);
            let expected = ["a/b/x.png", "s.blend"].map(|path| RelPath::from_wire(path).unwrap());
            assert_eq!(found.files, expected.into());
            assert_eq!(found.missing, [link.join("a/gone.png")]);
        }
        let outside = real.join("../out.png");
        let listed = [(real.join("s.blend"), vec![outside.clone()])];
        assert_eq!(sort(listed.into(), Vec::new(), &real).outside, [outside]);
    }
}
