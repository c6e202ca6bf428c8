//! Which files are none of our business.

use std::{path::Path, sync::Arc};

use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
};

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
    pub fn new(root: &Path, default_ignores: bool) -> Self {
        if !default_ignores {
            return Self::default();
        }
        let mut builder = GitignoreBuilder::new(root);
        for pattern in DEFAULT_IGNORES {
            builder.add_line(None, pattern).expect("BUG: the default patterns are valid");
        }
        Self::default().with(builder.build().expect("BUG: the default patterns are valid"))
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
        let mut level = &self.0;
        while let Some(Level { rules, outer }) = level.as_deref() {
            match rules.matched(path, is_dir) {
                Match::Ignore(_) => return true,
                Match::Whitelist(_) => return false,
                Match::None => level = &outer.0,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_what_they_say() {
        let root = Path::new("/p");
        let rules = Rules::new(root, true);
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
        assert!(!Rules::new(root, false).ignore(&root.join("Thumbs.db"), false));
    }

    #[test]
    fn the_innermost_rule_decides() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir(root.join("keep")).unwrap();
        std::fs::write(root.join(IGNORE_FILE), "# comment\n*.tmp\n/only-here\n!*.blend1\n")
            .unwrap();
        std::fs::write(root.join("keep").join(IGNORE_FILE), "!*.tmp\n").unwrap();
        let outer = Rules::new(root, true).enter(root);
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
}
