//! Which files are none of our business.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use ignore::gitignore::{Gitignore, GitignoreBuilder, Glob};
use serde::{Serialize, Serializer};

use super::Options;

/// The name of the files with a project's own rules, in gitignore syntax; each counts for its
/// directory and what is below.
pub const IGNORE_FILE: &str = ".farmhandignore";

/// What is ignored unless a rule of the project says otherwise (`!pattern`), or the defaults are
/// switched off: Blender's backups (`.blend1` to `.blend32`) and half-saved files, version control,
/// and what file managers and Maya leave behind.
pub const DEFAULT_IGNORES: &[&str] = &[
    "*.blend[1-9]",
    "*.blend[12][0-9]",
    "*.blend3[0-2]",
    "*.blend@",
    ".git/",
    ".svn/",
    "Thumbs.db",
    ".DS_Store",
    ".mayaSwatches/",
];

/// One line of a project's rules, or a default.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct IgnoreRule {
    /// The pattern as it is written.
    pub pattern: String,
    /// The file that has it; `None`: it is one of [`DEFAULT_IGNORES`].
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    pub file: Option<PathBuf>,
    /// The line in that file, from 1; `None` if the file has changed since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
}

fn as_text<S: Serializer>(file: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    file.as_ref().map(|file| file.to_string_lossy()).serialize(serializer)
}

impl IgnoreRule {
    fn of(glob: &Glob) -> Self {
        let pattern = glob.original().to_owned();
        Self { pattern, file: glob.from().map(Path::to_owned), line: None }
    }

    /// Whether it takes back what others ignore.
    pub fn takes_along(&self) -> bool {
        self.pattern.starts_with('!')
    }

    /// Finds the line. Of several that are the same, the last one counts.
    pub(super) fn find_line(&mut self) {
        let Some(text) = self.file.as_ref().and_then(|file| fs::read(file).ok()) else { return };
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.trim_start_matches('\u{feff}').lines().collect();
        // As the patterns were read: blanks at the end do not count, unless they are escaped.
        let is_it = |line: &&str| **line == self.pattern || line.trim_end() == self.pattern;
        self.line = lines.iter().rposition(is_it).map(|index| index + 1);
    }
}

/// The rule that decides about a path below a root; `None` if none says anything.
pub fn deciding_rule(root: &Path, options: &Options, path: &Path) -> Option<IgnoreRule> {
    let is_dir = fs::symlink_metadata(root.join(path)).is_ok_and(|found| found.is_dir());
    let mut rules = Rules::new(root, options.default_ignores, &options.ignores);
    let outer = path.parent().into_iter().flat_map(Path::ancestors).collect::<Vec<_>>();
    for dir in outer.into_iter().rev().map(|dir| root.join(dir)) {
        if dir.join(IGNORE_FILE).exists() {
            rules = rules.enter(&dir);
        }
    }
    let mut rule = rules.decide(&root.join(path), is_dir)?;
    rule.find_line();
    Some(rule)
}

/// Whether a scan would not see a path below a root, or what is in it.
pub fn is_ignored(root: &Path, options: &Options, path: &Path) -> bool {
    let Ok(below) = path.strip_prefix(root) else { return false };
    let mut rules = Rules::new(root, options.default_ignores, &options.ignores);
    let mut at = root.to_owned();
    for part in below {
        if at.join(IGNORE_FILE).exists() {
            rules = rules.enter(&at);
        }
        at.push(part);
        let is_dir = at != path || fs::symlink_metadata(&at).is_ok_and(|found| found.is_dir());
        if rules.ignore(&at, is_dir) {
            return true;
        }
    }
    false
}

/// The rules that hold in one directory.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules(Option<Arc<Level>>);

#[derive(Debug)]
struct Level {
    rules: Gitignore,
    outer: Rules,
}

impl Rules {
    /// The rules above all directories.
    pub fn new(root: &Path, default_ignores: bool, more: &[String]) -> Self {
        let mut builder = GitignoreBuilder::new(root);
        for pattern in DEFAULT_IGNORES.iter().filter(|_| default_ignores) {
            builder.add_line(None, pattern).expect("BUG: the default patterns are valid");
        }
        for pattern in more {
            if let Err(error) = builder.add_line(None, pattern) {
                tracing::warn!("an ignore rule does not count: {error}");
            }
        }
        match builder.build() {
            Ok(rules) => Self::default().with(rules),
            Err(error) => {
                tracing::warn!("the ignore rules for {} do not count: {error}", root.display());
                Self::default()
            }
        }
    }

    fn with(&self, rules: Gitignore) -> Self {
        Self(Some(Arc::new(Level { rules, outer: self.clone() })))
    }

    /// These rules and those in this directory's [`IGNORE_FILE`]. A line that is no pattern is
    /// warned about and left out.
    pub fn enter(&self, dir: &Path) -> Self {
        let mut builder = GitignoreBuilder::new(dir);
        if let Some(error) = builder.add(dir.join(IGNORE_FILE)) {
            tracing::warn!("an ignore rule does not count: {error}");
        }
        match builder.build() {
            Ok(rules) => self.with(rules),
            Err(error) => {
                tracing::warn!(
                    "the rules in {} do not count: {error}",
                    dir.join(IGNORE_FILE).display()
                );
                self.clone()
            }
        }
    }

    /// Whether this path, in the directory these rules are for, is ignored: the innermost rule decides.
    pub fn ignore(&self, path: &Path, is_dir: bool) -> bool {
        self.find(path, is_dir, |glob| !glob.is_whitelist()).unwrap_or(false)
    }

    /// The rule that decides about this path, in the directory these rules are for.
    pub fn decide(&self, path: &Path, is_dir: bool) -> Option<IgnoreRule> {
        self.find(path, is_dir, IgnoreRule::of)
    }

    fn find<T>(&self, path: &Path, is_dir: bool, then: impl Fn(&Glob) -> T) -> Option<T> {
        let mut level = &self.0;
        while let Some(Level { rules, outer }) = level.as_deref() {
            if let Some(glob) = rules.matched(path, is_dir).inner() {
                return Some(then(glob));
            }
            level = &outer.0;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_what_they_say() {
        let root = Path::new("/p");
        let rules = Rules::new(root, true, &[]);
        let ignored = |name: &str, is_dir| rules.ignore(&root.join(name), is_dir);
        for number in 1..=32 {
            assert!(ignored(&format!("deep/er/scene.blend{number}"), false), "{number}");
        }
        for name in ["scene.blend", "scene.blend0", "scene.blend33", "scene.blend123", ".gitignore"]
        {
            assert!(!ignored(name, false), "{name}");
        }
        assert!(
            ignored("scene.blend@", false)
                && ignored("a/Thumbs.db", false)
                && ignored(".DS_Store", false)
        );
        assert!(
            ignored(".git", true) && ignored("lib/.svn", true) && ignored(".mayaSwatches", true)
        );
        assert!(
            !ignored(".git", false),
            "a file of that name is a link to the real one, not ours to judge"
        );
        assert!(!Rules::new(root, false, &[]).ignore(&root.join("Thumbs.db"), false));
        let more = ["render/".to_owned()];
        assert!(Rules::new(root, false, &more).ignore(&root.join("render"), true));
        let options = Options { ignores: more.into(), ..Options::default() };
        for (path, ignored) in [("render/a/b.png", true), ("a/b.png", false), ("a.blend1", true)] {
            assert_eq!(is_ignored(root, &options, &root.join(path)), ignored, "{path}");
        }
    }

    #[test]
    fn the_innermost_rule_decides() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir(root.join("keep")).unwrap();
        std::fs::write(root.join(IGNORE_FILE), "# comment\n*.tmp\n/only-here\n!*.blend1\n")
            .unwrap();
        std::fs::write(root.join("keep").join(IGNORE_FILE), "!*.tmp\n").unwrap();
        let outer = Rules::new(root, true, &[]).enter(root);
        let inner = outer.enter(&root.join("keep"));
        assert!(outer.ignore(&root.join("a.tmp"), false));
        assert!(!inner.ignore(&root.join("keep/a.tmp"), false));
        assert!(outer.ignore(&root.join("only-here"), true));
        assert!(!inner.ignore(&root.join("keep/only-here"), true));
        assert!(
            !inner.ignore(&root.join("keep/a.blend1"), false),
            "projects may want what is ignored by default"
        );
        assert!(inner.ignore(&root.join("keep/a.blend2"), false));
    }
    #[test]
    fn the_rule_that_decides_has_a_file_and_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join(IGNORE_FILE), "\u{feff}# comment\n*.tmp  \r\n*.log\n*.tmp\nsp\\ \n")
            .unwrap();
        fs::write(root.join("a").join(IGNORE_FILE), "\n!keep.tmp\n*.blend2").unwrap();
        let decide = |path: &str| deciding_rule(root, &Options::default(), Path::new(path));
        let rule = |pattern: &str, file: &str, line| {
            let file = (!file.is_empty()).then(|| root.join(file));
            Some(IgnoreRule { pattern: pattern.into(), file, line })
        };
        assert_eq!(decide("x.tmp"), rule("*.tmp", IGNORE_FILE, Some(4)));
        assert_eq!(decide("a/b/x.log"), rule("*.log", IGNORE_FILE, Some(3)));
        assert_eq!(decide("sp "), rule("sp\\ ", IGNORE_FILE, Some(5)));
        let inner = "a/.farmhandignore";
        assert_eq!(decide("a/b/keep.tmp"), rule("!keep.tmp", inner, Some(2)));
        assert!(decide("a/b/keep.tmp").unwrap().takes_along());
        assert_eq!(decide("a/x.blend2"), rule("*.blend2", inner, Some(3)));
        assert_eq!(decide("a/x.blend1"), rule("*.blend[1-9]", "", None));
        assert_eq!(decide("a/x.png"), None);
    }
}
