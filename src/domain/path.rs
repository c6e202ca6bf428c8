//! Paths inside a checkout, and the names of checkouts: relative, `/`-separated, unable to escape.

use std::{fmt, str::FromStr};

/// The longest path accepted, in bytes: Linux's `PATH_MAX` less room for the storage directory.
pub const MAX_PATH_BYTES: usize = 3072;

/// The most parts a path may have. Each is a directory that must be made, held open while it is
/// removed, and climbed by the links in it; no project comes near.
const MAX_PARTS: usize = 128;

/// The longest part of a path, in bytes: `NAME_MAX` of Linux's file systems.
const MAX_PART_BYTES: usize = 255;

/// The rules for file names that an operating system has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OsFamily {
    /// Linux and macOS: every part between two `/` is a plain name.
    Unix,
    /// Windows: `C:x` as a part leads to the current directory of drive `C:`, and `a:b` to the stream `b` of
    /// the file `a`.
    Windows,
}

impl OsFamily {
    /// The system that this program was compiled for.
    pub const HERE: Self = if cfg!(windows) { Self::Windows } else { Self::Unix };
}

/// Why a text cannot be a path in a checkout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// No text at all.
    #[error("the path is empty")]
    Empty,
    /// Starts with `/`, or with a Windows drive or share.
    #[error("{0:?} is not relative")]
    NotRelative(String),
    /// A part that is empty, `.` or `..`.
    #[error("{path:?} has a part {part:?}")]
    BadPart {
        /// The whole path.
        path: String,
        /// The offending part.
        part: String,
    },
    /// A character that cannot stand in it.
    #[error("{path:?} has the character {character:?}")]
    BadCharacter {
        /// The whole path.
        path: String,
        /// The offending character.
        character: char,
    },
    /// A part with a colon, on Windows.
    #[error("{path:?} has a part {part:?}, whose colon means a drive or a stream on Windows")]
    DriveOrStream {
        /// The whole path.
        path: String,
        /// The offending part.
        part: String,
    },
    /// Longer than [`MAX_PATH_BYTES`].
    #[error("the path of {bytes} bytes is longer than {MAX_PATH_BYTES}")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// More than 128 parts.
    #[error("the path has more than {MAX_PARTS} parts")]
    TooDeep,
    /// A part longer than a file name may be.
    #[error("a part of the path is longer than {MAX_PART_BYTES} bytes: {0:?}")]
    PartTooLong(String),
}

/// A relative path: UTF-8, `/`-separated, no empty, `.` or `..` part, no NUL, no `\`, no drive letter at its
/// begin. On Windows no part has a colon; elsewhere `take 2: final.png` is a plain name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(Box<str>);

impl RelPath {
    /// Reads a path as clients send it: some on Windows separate with `\`, which is laid out as `/`.
    ///
    /// # Errors
    /// If it could leave the directory it is meant to stay in, or cannot be a file name.
    pub fn from_wire(text: &str) -> Result<Self, PathError> {
        if text.contains('\\') { text.replace('\\', "/").parse() } else { text.parse() }
    }

    /// Whether [`RelPath::from_wire`] takes this, without making it.
    ///
    /// # Errors
    /// The same.
    pub fn check_wire(text: &str) -> Result<(), PathError> {
        if text.contains('\\') {
            Self::from_wire(text).map(drop)
        } else {
            check(text, &[], OsFamily::HERE)
        }
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its parts, outermost first.
    pub fn parts(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }

    /// The path of the directory it is in, and its last part.
    pub fn split(&self) -> (Option<&str>, &str) {
        match self.0.rsplit_once('/') {
            Some((parent, name)) => (Some(parent), name),
            None => (None, &self.0),
        }
    }
}

impl FromStr for RelPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        check(text, &[], OsFamily::HERE)?;
        Ok(Self(text.into()))
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The characters that Shaman excludes from checkout paths, beyond those no path may have.
const NOT_IN_CHECKOUT_PATHS: &[char] = &['?', '*', ':', ';', '{', '}'];

/// The name of a checkout below `jobs/`: a [`RelPath`] without `? * : ; { }`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckoutPath(RelPath);

impl CheckoutPath {
    /// The name as a path.
    pub fn as_rel(&self) -> &RelPath {
        &self.0
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether one of the two is the other, or lies inside it: deleting one would change the other.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.overlaps_path(other.as_str())
    }

    /// The same for a path below the checkouts that need not be the name of one.
    pub fn overlaps_path(&self, path: &str) -> bool {
        let is_inside = |path: &str, dir: &str| {
            path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let path = path.trim_end_matches('/');
        is_inside(self.as_str(), path) || is_inside(path, self.as_str())
    }

    /// The closest valid name to any text, with something short behind it: characters that cannot
    /// stand in a name become `_`, and text that is too long is cut.
    pub fn sanitized(text: &str, suffix: &str) -> Self {
        let mut part = String::new();
        for character in text.trim().chars() {
            let bad = NOT_IN_CHECKOUT_PATHS.contains(&character)
                || matches!(character, '/' | '\\')
                || character.is_control();
            let character = if bad { '_' } else { character };
            if part.len() + character.len_utf8() > MAX_PART_BYTES / 2 {
                break;
            }
            part.push(character);
        }
        let name = format!("{part}{suffix}").parse();
        name.unwrap_or_else(|_| Self(RelPath(format!("checkout{suffix}").into())))
    }
}

impl FromStr for CheckoutPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        check(text, NOT_IN_CHECKOUT_PATHS, OsFamily::HERE)?;
        Ok(Self(RelPath(text.into())))
    }
}

impl fmt::Display for CheckoutPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for CheckoutPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

fn check(text: &str, excluded: &[char], family: OsFamily) -> Result<(), PathError> {
    if text.is_empty() {
        return Err(PathError::Empty);
    }
    if text.len() > MAX_PATH_BYTES {
        return Err(PathError::TooLong { bytes: text.len() });
    }
    let drive = text.as_bytes()[0].is_ascii_alphabetic() && text.as_bytes().get(1) == Some(&b':');
    if text.starts_with(['/', '\\']) || drive {
        return Err(PathError::NotRelative(text.to_owned()));
    }
    if let Some(character) = text.chars().find(|c| matches!(c, '\0' | '\\') || excluded.contains(c))
    {
        return Err(PathError::BadCharacter { path: text.to_owned(), character });
    }
    if text.split('/').count() > MAX_PARTS {
        return Err(PathError::TooDeep);
    }
    for part in text.split('/') {
        if matches!(part, "" | "." | "..") {
            return Err(PathError::BadPart { path: text.to_owned(), part: part.to_owned() });
        }
        if family == OsFamily::Windows && part.contains(':') {
            return Err(PathError::DriveOrStream { path: text.to_owned(), part: part.to_owned() });
        }
        if part.len() > MAX_PART_BYTES {
            return Err(PathError::PartTooLong(part.to_owned()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accepts_what_projects_hold() {
        for good in [
            "scene.blend",
            "textures/spaces and (parens) & ampersand #1.png",
            "звуки и кэш/дождь.wav",
            "emoji_🧶_ball.png",
            "...", // odd, and harmless
            ".hidden",
            "take 2: final.png",
        ] {
            assert_eq!(good.parse::<RelPath>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn refuses_every_way_out() {
        for bad in [
            "",
            ".",
            "..",
            "a/..",
            "../a",
            "a/../b",
            "./a",
            "/abs",
            "a//b",
            "a/",
            "C:\\x",
            "C:x",
            "c:/x",
            "\\\\host\\share",
            "a\0b",
            "a\\b",
        ] {
            assert!(bad.parse::<RelPath>().is_err(), "{bad:?}");
            assert!(bad.parse::<CheckoutPath>().is_err(), "{bad:?}");
        }
        assert!("x".repeat(256).parse::<RelPath>().is_err());
        assert!(vec!["x"; MAX_PARTS].join("/").parse::<RelPath>().is_ok());
        assert_eq!(vec!["x"; MAX_PARTS + 1].join("/").parse::<RelPath>(), Err(PathError::TooDeep));
        assert!("x/".repeat(2500).trim_end_matches('/').parse::<RelPath>().is_err());
        for bad in ["a?b", "a*", "a;b", "{jobs}", "}", "shot:1"] {
            assert!(bad.parse::<CheckoutPath>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn windows_separators_are_laid_out_as_slashes_and_cannot_escape() {
        assert_eq!(RelPath::from_wire("a\\b\\c.png").unwrap().as_str(), "a/b/c.png");
        for bad in ["..\\x", "a\\..\\..\\x", "\\x", "C:\\x", "a\\", "a\\\\b"] {
            assert!(RelPath::from_wire(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn colons_are_refused_in_every_part_on_windows() {
        let check = |text: &str, family| check(text, &[], family);
        for path in ["sub/C:x", "sub/c:", "a/b:stream", "a:b/c", "take 2: final.png", "x:", ":x"] {
            let refused = check(path, OsFamily::Windows);
            assert!(
                matches!(refused, Err(PathError::DriveOrStream { .. } | PathError::NotRelative(_))),
                "{path}: {refused:?}"
            );
        }
        for path in ["sub/C:x", "a/b:stream", "take 2: final.png"] {
            assert_eq!(check(path, OsFamily::Unix), Ok(()), "{path}");
        }
        for path in ["scene.blend", "textures/wood.png", "...", ".hidden", "C/x"] {
            assert_eq!(check(path, OsFamily::Windows), Ok(()), "{path}");
        }
        // A drive at the begin is refused everywhere: no client means a relative path by it.
        for family in [OsFamily::Unix, OsFamily::Windows] {
            assert_eq!(check("C:x", family), Err(PathError::NotRelative("C:x".into())));
        }
    }

    /// Whether Windows leaves the directory that it joins these parts to, one by one, or opens something else
    /// than a file of that name.
    fn escapes_on_windows(text: &str) -> bool {
        let mut depth = 0;
        text.starts_with(['/', '\\'])
            || text.split(['/', '\\']).any(|part| {
                match part {
                    "" | "." => {}
                    ".." => depth -= 1,
                    _ => depth += 1,
                }
                depth < 0 || part.contains(':')
            })
    }

    #[test]
    fn overlap_goes_by_whole_parts() {
        let overlap = |a: &str, b: &str| {
            let (a, b): (CheckoutPath, CheckoutPath) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(a.overlaps(&b), b.overlaps(&a), "{a} {b}");
            a.overlaps(&b)
        };
        assert!(overlap("alice/shot", "alice/shot"));
        assert!(overlap("alice/shot", "alice/shot/textures"));
        assert!(!overlap("alice/shot", "alice/shot2"));
        assert!(!overlap("alice/shot", "bob/shot"));
    }

    proptest! {
        #[test]
        fn an_accepted_path_stays_below_its_root(text in "[a-zA-Z:./\\\\\u{0}~ é]{0,12}") {
            if let Ok(path) = RelPath::from_wire(&text) {
                let joined = std::path::Path::new("/root").join(path.as_str());
                prop_assert!(joined.starts_with("/root"));
                prop_assert!(joined.components().all(|c| !matches!(
                    c,
                    std::path::Component::ParentDir | std::path::Component::CurDir
                )));
                prop_assert_eq!(path.as_str().parse::<RelPath>().unwrap(), path);
            }
        }

        #[test]
        fn no_accepted_path_escapes_on_windows(text in "[aC:./\\\\ ]{0,8}") {
            for text in [text.replace('\\', "/"), text] {
                if check(&text, &[], OsFamily::Windows).is_ok() {
                    prop_assert!(!escapes_on_windows(&text), "{:?}", text);
                }
            }
        }

        #[test]
        fn any_text_has_a_sanitized_name(text in any::<String>()) {
            let name = CheckoutPath::sanitized(&text, "-7");
            prop_assert!(name.as_str().ends_with("-7"));
            prop_assert_eq!(name.as_str().parse::<CheckoutPath>().unwrap(), name);
        }
    }
}
