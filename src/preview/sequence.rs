//! Frame sequences: `smoke_0001.vdb` to `smoke_0240.vdb` are `smoke_[0001-0240].vdb`.

use std::collections::{BTreeMap, HashMap};

/// Fewer names than this are listed one by one.
const MIN_NAMES: usize = 3;

/// Longer numbers are dates, digests and the like, and no frames.
const MAX_DIGITS: usize = 18;

/// How many numbers of a name may be the frame, from the last one on.
const MAX_NUMBERS: usize = 4;

/// Names of one folder that are shown as one, or a name that stands alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The name, or the pattern for all of them.
    pub pattern: String,
    /// Where its names are in the list it was made of; frames in their order.
    pub members: Vec<usize>,
    /// What it is a sequence of, if it is one.
    pub frames: Option<Frames>,
}

/// The numbers of a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frames {
    /// What is before the number.
    pub prefix: String,
    /// What is after it.
    pub suffix: String,
    /// First and last number of each run without a gap, as they are written. A number within is
    /// written with as many zeros before it as it takes to be as long as the first one.
    pub runs: Vec<(String, String)>,
    /// How many numbers are missing between the first and the last.
    pub missing: u64,
}

impl Frames {
    /// All names of the sequence.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.runs.iter().flat_map(move |(first, last)| {
            let number = |text: &String| text.parse::<u64>().expect("BUG: at most 18 digits");
            let width = first.len();
            (number(first)..=number(last))
                .map(move |frame| format!("{}{frame:0width$}{}", self.prefix, self.suffix))
        })
    }
}

/// Groups the names of one folder, sorted by pattern. All names must be different.
pub fn group(names: &[&str]) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut alone: Vec<usize> = (0..names.len()).collect();
    // The last number of a name is its frame, most of the time; names for which that leads nowhere
    // (`smoke_0001_v2.vdb`) are tried with the one before.
    for from_last in 0..MAX_NUMBERS {
        let mut sequences: HashMap<(&str, &str), Vec<(usize, &str)>> = HashMap::new();
        let mut left = Vec::new();
        for member in alone {
            match split(names[member], from_last) {
                Some((prefix, digits, suffix)) => {
                    sequences.entry((prefix, suffix)).or_default().push((member, digits));
                }
                None => left.push(member),
            }
        }
        for ((prefix, suffix), members) in sequences {
            for members in by_padding(members) {
                if members.len() < MIN_NAMES {
                    left.extend(members.iter().map(|numbered| numbered.member));
                } else {
                    groups.push(sequence(prefix, suffix, &members));
                }
            }
        }
        alone = left;
    }
    let single = |member: usize| Group {
        pattern: names[member].to_owned(),
        members: vec![member],
        frames: None,
    };
    groups.extend(alone.into_iter().map(single));
    groups.sort_unstable_by(|a, b| a.pattern.cmp(&b.pattern).then(a.members.cmp(&b.members)));
    groups
}

/// What is before a number of a name, its digits, and what is after it. Numbers in the extension do
/// not count (`.mp4`), unless it has nothing else (`cache.0001`).
fn split(name: &str, from_last: usize) -> Option<(&str, &str, &str)> {
    let is_digit = |c: char| c.is_ascii_digit();
    let stem = match name.rsplit_once('.') {
        Some((stem, extension)) if !extension.chars().all(is_digit) => stem,
        _ => name,
    };
    let mut end = stem.len();
    for number in 0.. {
        end = stem[..end].rfind(is_digit)? + 1;
        let start = stem[..end].trim_end_matches(is_digit).len();
        if number == from_last {
            let digits = &stem[start..end];
            return (digits.len() <= MAX_DIGITS).then_some((&name[..start], digits, &name[end..]));
        }
        end = start;
    }
    None
}

/// A name with its number.
struct Numbered<'a> {
    member: usize,
    value: u64,
    digits: &'a str,
}

/// Tells apart numbers that are padded differently, each with its value, in order. A number that
/// begins with no zero goes with those padded to its length, or else to the next shorter one: after
/// `0999` comes `1000`, and after `9999` comes `10000`. Without such it is not padded.
fn by_padding(members: Vec<(usize, &str)>) -> impl Iterator<Item = Vec<Numbered<'_>>> {
    // By the length that is padded to; 0 is for none.
    let mut classes: BTreeMap<usize, Vec<Numbered<'_>>> = BTreeMap::from([(0, Vec::new())]);
    for (_, digits) in &members {
        if digits.len() > 1 && digits.starts_with('0') {
            classes.entry(digits.len()).or_default();
        }
    }
    for (member, digits) in members {
        let value = digits.parse().expect("BUG: at most 18 digits");
        if let Some((_, class)) = classes.range_mut(..=digits.len()).next_back() {
            class.push(Numbered { member, value, digits });
        }
    }
    classes.into_values().map(|mut class| {
        class.sort_unstable_by_key(|numbered| numbered.value);
        class
    })
}

/// A sequence of numbers in their order.
fn sequence(prefix: &str, suffix: &str, members: &[Numbered<'_>]) -> Group {
    let mut runs: Vec<(String, String)> = Vec::new();
    let mut missing = 0;
    let mut before = None;
    for &Numbered { value, digits, .. } in members {
        match (before, runs.last_mut()) {
            (Some(before), Some(run)) if before + 1 == value => run.1 = digits.to_owned(),
            _ => {
                missing += before.map_or(0, |before| value - before - 1);
                runs.push((digits.to_owned(), digits.to_owned()));
            }
        }
        before = Some(value);
    }
    let shown: Vec<String> = runs
        .iter()
        .map(|(first, last)| if first == last { first.clone() } else { format!("{first}-{last}") })
        .collect();
    Group {
        pattern: format!("{prefix}[{}]{suffix}", shown.join(",")),
        members: members.iter().map(|numbered| numbered.member).collect(),
        frames: Some(Frames {
            prefix: prefix.to_owned(),
            suffix: suffix.to_owned(),
            runs,
            missing,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn patterns(names: &[&str]) -> Vec<String> {
        group(names).into_iter().map(|group| group.pattern).collect()
    }

    fn frames(before: &str, frames: impl IntoIterator<Item = u64>, after: &str) -> Vec<String> {
        frames.into_iter().map(|frame| format!("{before}{frame:04}{after}")).collect()
    }

    fn patterns_of(names: &[String]) -> Vec<String> {
        patterns(&names.iter().map(String::as_str).collect::<Vec<_>>())
    }

    #[test]
    fn frames_become_one_and_gaps_are_seen() {
        assert_eq!(patterns_of(&frames("smoke_", 1..=240, ".vdb")), ["smoke_[0001-0240].vdb"]);
        let with_gap = frames("smoke_", (1..=100).chain(102..=240), ".vdb");
        assert_eq!(patterns_of(&with_gap), ["smoke_[0001-0100,0102-0240].vdb"]);
        let names: Vec<&str> = with_gap.iter().map(String::as_str).collect();
        assert_eq!(group(&names)[0].frames.as_ref().unwrap().missing, 1);
        assert_eq!(patterns_of(&frames("f.", [3, 9, 5], ".exr")), ["f.[0003,0005,0009].exr"]);
        assert_eq!(patterns_of(&frames("f", 9998..=10_001, ".png")), ["f[9998-10001].png"]);
        assert_eq!(patterns_of(&frames("f", 999..=10_001, ".png")), ["f[0999-10001].png"]);
    }

    #[test]
    fn another_padding_is_another_sequence() {
        let names = ["a1.png", "a2.png", "a3.png", "a01.png", "a02.png", "a03.png", "a10.png"];
        assert_eq!(patterns(&names), ["a[01-03,10].png", "a[1-3].png"]);
        let names = ["b8", "b9", "b10", "b11"];
        assert_eq!(patterns(&names), ["b[8-11]"]);
        let names = ["c001", "c002", "c10", "c11", "c12", "c100"];
        assert_eq!(patterns(&names), ["c[001-002,100]", "c[10-12]"]);
    }

    #[test]
    fn the_number_that_counts_is_found() {
        let versions = ["s_0001_v2.vdb", "s_0002_v2.vdb", "s_0003_v2.vdb"];
        assert_eq!(patterns(&versions), ["s_[0001-0003]_v2.vdb"]);
        let shots = ["sh010_v002.0001.exr", "sh010_v002.0002.exr", "sh010_v002.0003.exr"];
        assert_eq!(patterns(&shots), ["sh010_v002.[0001-0003].exr"]);
        let movies = ["a1.mp4", "a2.mp4", "a3.mp4", "b.mp4", "b.mp3", "b.mp5"];
        assert_eq!(patterns(&movies), ["a[1-3].mp4", "b.mp3", "b.mp4", "b.mp5"]);
        assert_eq!(patterns(&["x.0001", "x.0002", "x.0003"]), ["x.[0001-0003]"]);
        assert_eq!(patterns(&["кэш_1.vdb", "кэш_2.vdb", "кэш_3.vdb"]), ["кэш_[1-3].vdb"]);
    }

    #[test]
    fn what_is_no_sequence_stays_as_it_is() {
        let names = [
            "a1.png",
            "a2.png",
            "b.png",
            "1234567890123456789.x",
            "1234567890123456788.x",
            "1234567890123456787.x",
        ];
        let mut sorted = names;
        sorted.sort_unstable();
        assert_eq!(patterns(&names), sorted);
        assert!(patterns(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn a_group_is_exactly_the_names_it_came_from(
            names in prop::collection::hash_set("[a-b]{0,1}[0-9]{0,4}[._]{0,1}[0-1]{0,3}(\\.[a-z]?[0-9]{0,2})?", 0..60),
        ) {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let mut seen = BTreeSet::new();
            for group in group(&names) {
                let members: Vec<String> =
                    group.members.iter().map(|&member| names[member].to_owned()).collect();
                match group.frames {
                    Some(frames) => {
                        prop_assert!(members.len() >= MIN_NAMES);
                        let expanded: Vec<String> = frames.names().collect();
                        prop_assert_eq!(&expanded, &members);
                        let between = frames.runs.last().unwrap().1.parse::<u64>().unwrap()
                            - frames.runs[0].0.parse::<u64>().unwrap() + 1;
                        prop_assert_eq!(between - members.len() as u64, frames.missing);
                    }
                    None => prop_assert_eq!(&[group.pattern][..], &members[..]),
                }
                for member in group.members {
                    prop_assert!(seen.insert(member), "in two groups");
                }
            }
            prop_assert_eq!(seen.len(), names.len());
        }
    }
}
