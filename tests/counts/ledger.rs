//! What was counted, held against what may be spent.

use std::{collections::BTreeMap, fmt::Write as _, ops::Sub};

use super::limits::{GROWTH, Limit, SLACK};

/// How often each thing was done.
#[derive(Clone, Debug, Default)]
pub struct Counts(pub BTreeMap<&'static str, f64>);

impl Counts {
    pub fn of(&self, what: &str) -> f64 {
        self.0.get(what).copied().unwrap_or_default()
    }

    /// How often anything was done.
    fn times(&self) -> f64 {
        // Buffers double: how much memory it is goes in steps.
        self.0.iter().filter(|(what, _)| **what != "kilobytes").map(|(_, count)| count).sum()
    }

    /// Of two counts of the same.
    pub fn least(mut self, other: Self) -> Self {
        for (what, count) in &mut self.0 {
            *count = count.min(other.of(what));
        }
        self
    }

    fn each(mut self, units: usize) -> Self {
        self.0.values_mut().for_each(|count| *count /= units as f64);
        self
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(mut self, other: Self) -> Self {
        for (what, count) in other.0 {
            *self.0.entry(what).or_default() -= count;
        }
        self
    }
}

/// What one unit costs: the difference between more and fewer of them. So what is spent once, like a start or a
/// connection, does not count.
pub fn each((fewer, more): (usize, usize), mut count: impl FnMut(usize) -> Counts) -> Counts {
    let first = count(fewer);
    (count(more) - first).each(more - fewer)
}

/// What was found, to be compared as a whole: so a failure shows all figures.
#[derive(Default)]
pub struct Ledger {
    rows: String,
    faults: Vec<String>,
}

impl Ledger {
    pub fn hold(&mut self, limit: &Limit, found: &Counts) {
        self.note(limit, found);
        let Limit { unit, most, needs } = *limit;
        let allowed = |what: &str| {
            most.iter().find(|(name, _)| *name == what).map_or(0.0, |(_, allowed)| *allowed)
        };
        for (what, count) in &found.0 {
            let allowed = allowed(what);
            if *count > allowed + SLACK {
                self.faults.push(format!("{unit}: {what} {count:.2}, at most {allowed:.2}"));
            }
        }
        // Who does not see everything finds no fault.
        for what in needs {
            let count = found.of(what);
            if count < 1.0 - SLACK {
                self.faults.push(format!("{unit}: {what} {count:.2}, which cannot be all"));
            }
        }
    }

    /// As a line of the table.
    fn note(&mut self, limit: &Limit, found: &Counts) {
        let figures: Vec<_> = found
            .0
            .iter()
            .filter(|(_, count)| count.abs() > SLACK)
            .map(|(what, count)| format!("({what:?}, {:?})", (count * 100.0).round() / 100.0))
            .collect();
        let _ = writeln!(
            self.rows,
            "Limit {{ unit: {:?}, most: &[{}], needs: &{:?} }}",
            limit.unit,
            figures.join(", "),
            limit.needs
        );
    }

    /// Whether one of ten times as many costs about the same.
    pub fn is_flat(&mut self, unit: &str, few: &Counts, many: &Counts) {
        let (few, many) = (few.times(), many.times());
        if many > few * GROWTH + SLACK {
            self.faults.push(format!("{unit}: {few:.2} in all, of ten times as many {many:.2}"));
        }
    }

    #[track_caller]
    pub fn balance(self) {
        let Self { rows, faults } = self;
        assert!(
            faults.is_empty(),
            "what is counted is not what may be:\n{}\n\nCounted, as it would be in tests/counts/limits.rs:\n{rows}",
            faults.join("\n")
        );
        // Shown with `--nocapture`.
        print!("{rows}");
    }
}
