//! Names that are good here, and will hurt elsewhere.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
};

use serde::Serialize;
use unicode_normalization::{UnicodeNormalization, is_nfc};

/// The longest path that most Windows programs can open, in UTF-16 units.
const WINDOWS_MAX_PATH: usize = 259;

/// What is wrong with a name, or with several together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// Shaman cannot carry it: it is not UTF-8, too long, or has a character that no path may have.
    CannotBeSent,
    /// They differ only in case: one name on Windows and macOS.
    CaseClash,
    /// They differ only in how their characters are encoded (NFC, NFD): one name on macOS, and not to
    /// be told apart by people anywhere.
    UnicodeClash,
    /// Too long for most programs on Windows, in the checkout.
    TooLong,
    /// Windows keeps it for a device (`CON`, `NUL`, `COM1`, …), also with an extension.
    Reserved,
    /// It has a character that Windows does not allow.
    BadCharacter,
    /// It ends with a dot or a blank, which Windows takes away.
    BadEnd,
}

/// Names that will hurt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BadName {
    /// How.
    pub trouble: Trouble,
    /// The path, or those that clash.
    pub paths: Vec<String>,
    /// What exactly, for people.
    pub what: String,
}

/// Finds the names that will hurt: of these files, and of the folders they are in. `above` is how
/// long the path of the checkout itself is on Windows, in UTF-16 units and with its last separator.
pub fn bad_names<'a>(files: impl Iterator<Item = &'a str>, above: usize) -> Vec<BadName> {
    let mut found = Vec::new();
    let mut folders = HashSet::new();
    let mut folded: HashMap<String, Vec<Node<'a>>> = HashMap::new();
    for path in files {
        let length = above + path.encode_utf16().count();
        if length > WINDOWS_MAX_PATH {
            let what = format!("{length} characters in the checkout");
            found.push(BadName { trouble: Trouble::TooLong, paths: vec![path.to_owned()], what });
        }
        look(Node { path, is_folder: false }, &mut folded, &mut found);
        // Parents of a folder that was seen were seen with it.
        let above_it = path.match_indices('/').rev().map(|(end, _)| &path[..end]);
        for path in above_it.take_while(|folder| folders.insert(*folder)) {
            look(Node { path, is_folder: true }, &mut folded, &mut found);
        }
    }
    found.extend(folded.into_values().flat_map(clashes));
    found.sort_unstable_by(|a, b| (a.trouble, &a.paths).cmp(&(b.trouble, &b.paths)));
    found
}

/// A file or a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Node<'a> {
    path: &'a str,
    is_folder: bool,
}

impl<'a> Node<'a> {
    fn split(self) -> (&'a str, &'a str) {
        self.path.rsplit_once('/').unwrap_or(("", self.path))
    }
}

fn look<'a>(node: Node<'a>, folded: &mut HashMap<String, Vec<Node<'a>>>, found: &mut Vec<BadName>) {
    folded.entry(fold(node.path)).or_default().push(node);
    let (_, name) = node.split();
    let mut add = |trouble, what| {
        found.push(BadName { trouble, paths: vec![node.path.to_owned()], what });
    };
    if let Some(device) = reserved(name) {
        add(Trouble::Reserved, format!("{device} is a device on Windows"));
    }
    let is_bad =
        |c: &char| c.is_ascii_control() || matches!(c, '<' | '>' | ':' | '"' | '|' | '?' | '*');
    if let Some(character) = name.chars().find(is_bad) {
        add(Trouble::BadCharacter, format!("Windows does not allow {character:?}"));
    }
    if name.ends_with(['.', ' ']) {
        add(Trouble::BadEnd, "Windows takes dots and blanks at the end away".to_owned());
    }
}

/// The device that Windows takes a name for.
fn reserved(name: &str) -> Option<String> {
    let base = name.split('.').next().unwrap_or(name).trim_end_matches(' ');
    let base = base.to_ascii_uppercase();
    let is_reserved = match base.as_str() {
        "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$" => true,
        _ => ["COM", "LPT"].iter().any(|port| {
            let mut number = base.strip_prefix(port).unwrap_or_default().chars();
            matches!(number.next(), Some('1'..='9' | '¹' | '²' | '³')) && number.next().is_none()
        }),
    };
    is_reserved.then_some(base)
}

/// What file systems that ignore case and encoding make of a path.
fn fold(path: &str) -> String {
    if path.is_ascii() {
        return path.to_ascii_lowercase();
    }
    composed(path).chars().map(simple_lower).collect()
}

fn composed(path: &str) -> Cow<'_, str> {
    if is_nfc(path) { path.into() } else { path.nfc().collect::<String>().into() }
}

/// Through upper case: file systems know only what one character becomes of another, in which the
/// two small sigmas are one letter, and `ß` is not `ss`.
fn simple_lower(character: char) -> char {
    let one = |mut of: Box<dyn Iterator<Item = char>>, or: char| match (of.next(), of.next()) {
        (Some(one), None) => one,
        _ => or,
    };
    let upper = one(Box::new(character.to_uppercase()), character);
    one(Box::new(upper.to_lowercase()), upper)
}

/// What is wrong with paths that fold to one.
fn clashes(mut nodes: Vec<Node<'_>>) -> Option<BadName> {
    if nodes.len() < 2 {
        return None;
    }
    nodes.sort_unstable();
    nodes.dedup_by_key(|node| node.path);
    // Folders clash in all that is in them: it is enough to say it of the outermost.
    if nodes.iter().all(|node| node.is_folder) {
        let mut in_folder: BTreeMap<&str, usize> = BTreeMap::new();
        for node in &nodes {
            *in_folder.entry(node.split().0).or_default() += 1;
        }
        nodes.retain(|node| in_folder[node.split().0] > 1);
    }
    let first = composed(nodes.first()?.path);
    if nodes.len() < 2 {
        return None;
    }
    let (trouble, what) = if nodes.iter().all(|node| composed(node.path) == first) {
        (Trouble::UnicodeClash, "the same letters, encoded differently: one name on macOS")
    } else {
        (Trouble::CaseClash, "one name on Windows and macOS")
    };
    let paths = nodes.iter().map(|node| node.path.to_owned()).collect();
    Some(BadName { trouble, paths, what: what.to_owned() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(paths: &[&str]) -> Vec<(Trouble, Vec<String>)> {
        let found = bad_names(paths.iter().copied(), 0);
        found.into_iter().map(|bad| (bad.trouble, bad.paths)).collect()
    }

    fn expect(trouble: Trouble, paths: &[&str]) -> (Trouble, Vec<String>) {
        (trouble, paths.iter().map(|path| (*path).to_owned()).collect())
    }

    #[test]
    fn good_names_are_left_alone() {
        let good = [
            "scene.blend",
            "a/scene.blend",
            "A.b/c",
            "console.txt",
            "com10",
            "COM",
            "a/nul_1.png",
            "ткань_ünïcödé_布地.png",
            "Straße",
            "strasse",
            ".hidden",
            "com0.x",
            "emoji_🧶.png",
        ];
        assert_eq!(found(&good), []);
    }

    #[test]
    fn clashes_of_case_are_found_once() {
        use Trouble::CaseClash;
        assert_eq!(found(&["a.png", "A.png", "b.png"]), [expect(CaseClash, &["A.png", "a.png"])]);
        // The folders, and the one file that both have.
        let clashing = found(&["Tex/deep/a", "tex/deep/A", "tex/deep/b", "tex/c"]);
        assert_eq!(
            clashing,
            [expect(CaseClash, &["Tex", "tex"]), expect(CaseClash, &["Tex/deep/a", "tex/deep/A"])]
        );
        assert_eq!(found(&["x/Y", "x/y/z"]), [expect(CaseClash, &["x/Y", "x/y"])]);
        assert_eq!(found(&["ΣΑΣ", "σας"]), [expect(CaseClash, &["ΣΑΣ", "σας"])]);
        assert_eq!(found(&["ЗВУК.wav", "звук.wav"]).len(), 1);
    }

    #[test]
    fn clashes_of_encoding_are_told_from_those_of_case() {
        let (composed, decomposed) = ("\u{fc}.png", "u\u{308}.png");
        let clash = expect(Trouble::UnicodeClash, &[decomposed, composed]);
        assert_eq!(found(&[composed, decomposed]), [clash]);
        let clash = expect(Trouble::CaseClash, &["U\u{308}.png", composed]);
        assert_eq!(found(&[composed, "U\u{308}.png"]), [clash]);
        assert_eq!(found(&["\u{212b}", "\u{c5}"]).len(), 1, "ångström and Å");
    }

    #[test]
    fn what_windows_does_not_take_is_found_in_every_part() {
        use Trouble::{BadCharacter, BadEnd, Reserved};
        for name in ["con", "NUL", "nul.txt", "Aux .tar.gz", "com1.exr", "LPT9", "lpt¹", "CONIN$"]
        {
            assert_eq!(found(&[name]), [expect(Reserved, &[name])], "{name}");
        }
        for character in ['<', '>', ':', '"', '|', '?', '*', '\n', '\x7f'] {
            let name = format!("take {character}");
            assert_eq!(found(&[&name]), [expect(BadCharacter, &[&name])]);
        }
        assert_eq!(found(&["a ", "b."]), [expect(BadEnd, &["a "]), expect(BadEnd, &["b."])]);
        // Of a folder once, however much is in it.
        assert_eq!(found(&["x/aux/1", "x/aux/2", "x/aux/y/3"]), [expect(Reserved, &["x/aux"])]);
    }

    #[test]
    fn length_is_that_in_the_checkout_in_utf16() {
        let long = |length: usize, above| bad_names([&*"x".repeat(length)].into_iter(), above);
        assert_eq!((long(259, 0).len(), long(260, 0).len()), (0, 1));
        assert_eq!((long(239, 20).len(), long(240, 20).len()), (0, 1));
        assert!(long(240, 20)[0].what.starts_with("260 "));
        let count = |text: &str| bad_names([text].into_iter(), 0).len();
        assert_eq!((count(&"ж".repeat(259)), count(&"🧶".repeat(129))), (0, 0));
        assert_eq!((count(&"ж".repeat(260)), count(&"🧶".repeat(130))), (1, 1));
    }

    proptest! {
        /// Against the slow way: every two paths of files are compared.
        #[test]
        fn files_that_fold_to_one_are_all_found(
            names in prop::collection::hash_set("[aAüÜ]{1,2}(/[aA\u{fc}]{1,2})?|u\u{308}", 0..12),
        ) {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let found = found(&names);
            for (i, a) in names.iter().enumerate() {
                for b in &names[i + 1..] {
                    let together = found.iter().any(|(_, paths)| {
                        paths.iter().any(|path| path == a) && paths.iter().any(|path| path == b)
                    });
                    let slow = |text: &str| text.nfc().collect::<String>().to_lowercase();
                    prop_assert_eq!(together, slow(a) == slow(b), "{} {}", a, b);
                }
            }
        }
    }
}
