//! The `FARMHAND_*` variables of the environment. A name that nothing reads is a typing error: what it should
//! have set would silently keep its default.

use std::ffi::OsString;

use super::exit::{Exit, Failure};

/// The prefix of all variables.
const PREFIX: &str = "FARMHAND_";

/// Variables that are no settings: the configuration file, the log filter, what the command of a job is told,
/// and the fault points of debug builds.
const OTHERS: [&str; 4] = ["FARMHAND_CONFIG", "FARMHAND_LOG", "FARMHAND_JOB_ID", "FARMHAND_FAULT"];

/// The most edits between a name and the one that is suggested for it.
const MAX_EDITS: usize = 3;

/// Refuses variables that are neither settings nor known otherwise.
pub(super) fn require_known(
    set: impl Iterator<Item = OsString>,
    settings: &[String],
) -> Result<(), Failure> {
    let known: Vec<&str> = settings.iter().map(String::as_str).chain(OTHERS).collect();
    let is_unknown = |name: &String| name.starts_with(PREFIX) && !known.contains(&name.as_str());
    let mut unknown: Vec<String> = set
        .map(|name| name.to_string_lossy().into_owned())
        .map(comparable)
        .filter(is_unknown)
        .collect();
    unknown.sort();
    let Some(first) = unknown.first() else { return Ok(()) };
    let names = unknown.join(", ");
    let (noun, it) = match unknown.len() {
        1 => ("variable", "it"),
        _ => ("variables", "them"),
    };
    let next = match nearest(first, &known) {
        Some(name) => format!("did you mean {name}?"),
        None => format!("unset {it}, or see README.md for the settings there are"),
    };
    Err(Failure::new(Exit::Usage, format!("unknown environment {noun} {names}; {next}")))
}

/// On Windows, upper and lower case are the same.
fn comparable(name: String) -> String {
    if cfg!(windows) { name.to_uppercase() } else { name }
}

fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |known: &&str| edits(&name[PREFIX.len()..], &known[PREFIX.len()..]);
    let nearest = known.iter().copied().min_by_key(distance)?;
    // Of a short name, nothing may be left.
    (distance(&nearest) <= MAX_EDITS.min(nearest.len() - PREFIX.len() - 1)).then_some(nearest)
}

/// The Levenshtein distance.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (number, character) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], number + 1);
        for at in 0..to.len() {
            let replaced = diagonal + usize::from(to[at] != character);
            diagonal = row[at + 1];
            row[at + 1] = replaced.min(diagonal + 1).min(row[at] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(names: &[&str]) -> Result<(), String> {
        let settings = ["FARMHAND_SERVER", "FARMHAND_STORAGE", "FARMHAND_CA"].map(str::to_owned);
        require_known(names.iter().map(OsString::from), &settings)
            .map_err(|failure| failure.message().to_owned())
    }

    #[test]
    fn unknown_variables_are_named() {
        let all = ["FARMHAND_SERVER", "FARMHAND_JOB_ID", "FARMHAND_FAULT", "PATH", "OTHER_SERVR"];
        assert_eq!(check(&all), Ok(()));
        let error = check(&["FARMHAND_SERVR"]).unwrap_err();
        assert_eq!(
            error,
            "unknown environment variable FARMHAND_SERVR; did you mean FARMHAND_SERVER?"
        );
        let error = check(&["FARMHAND_ZZZZZZZZZ", "FARMHAND_XY"]).unwrap_err();
        assert!(error.contains("variables FARMHAND_XY, FARMHAND_ZZZZZZZZZ; unset them"), "{error}");
    }

    #[test]
    fn edits_are_counted() {
        for (from, to, count) in [("", "abc", 3), ("kitten", "sitting", 3), ("a", "a", 0)] {
            assert_eq!((edits(from, to), edits(to, from)), (count, count));
        }
    }
}
