//! What was found out, for people and for programs.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use bytesize::ByteSize;
use serde::Serialize;

use super::{Asked, Report};
use crate::{
    cli::{
        exit::{Exit, Failure},
        hash::escaped,
        print, print_json,
    },
    domain::BlobStatus,
    preview::{
        BadName, Folder, Frames, Here, PlannedFile, Sum, Totals, Trouble, folders, overview, totals,
    },
    scan::{IgnoreRule, Ignored, SkipReason, Skipped},
};

/// How much is shown without `--all`: folders, rows in each, and of anything else.
const MAX_FOLDERS: usize = 12;
const MAX_ROWS: usize = 6;
const MAX_OTHERS: usize = 8;

/// What `--json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    schema: &'static str,
    dir: String,
    asked: &'a Asked,
    totals: Totals,
    files: &'a [PlannedFile],
    folders: Vec<FolderAnswer<'a>>,
    sequences: Vec<SequenceAnswer<'a>>,
    ignored: &'a [Ignored],
    skipped: &'a [Skipped],
    names: &'a [BadName],
}

/// What is directly in a folder.
#[derive(Serialize)]
struct FolderAnswer<'a> {
    path: &'a str,
    all: Sum,
    pending: Sum,
}

#[derive(Serialize)]
struct SequenceAnswer<'a> {
    folder: &'a str,
    pattern: &'a str,
    first: &'a str,
    last: &'a str,
    missing: u64,
    all: Sum,
    pending: Sum,
}

fn pending<'a>(files: impl Iterator<Item = &'a PlannedFile>) -> Sum {
    Sum::of(files.filter(|file| file.is_pending()))
}

impl Report {
    pub fn print(&self, as_json: bool, all: bool) -> Result<Exit, Failure> {
        if as_json {
            self.print_json()?;
        } else {
            print(self.text(all).trim_end())?;
        }
        Ok(if self.skipped.is_empty() { Exit::Done } else { Exit::Skipped })
    }

    fn print_json<'a>(&'a self) -> Result<(), Failure> {
        let by_folder = folders(&self.files);
        let mut sequences = Vec::new();
        for folder in &by_folder {
            for (group, files) in &folder.groups {
                let Some(Frames { runs, missing, .. }) = &group.frames else { continue };
                sequences.push(SequenceAnswer {
                    folder: folder.path,
                    pattern: &group.pattern,
                    first: runs.first().map_or("", |(first, _)| first),
                    last: runs.last().map_or("", |(_, last)| last),
                    missing: *missing,
                    all: Sum::of(files.iter().copied()),
                    pending: pending(files.iter().copied()),
                });
            }
        }
        let sums = |folder: &Folder<'a>| FolderAnswer {
            path: folder.path,
            all: Sum::of(folder.files()),
            pending: pending(folder.files()),
        };
        print_json(&Answer {
            schema: "farmhand.plan/1",
            dir: self.root.display().to_string(),
            asked: &self.asked,
            totals: totals(&self.files),
            files: &self.files,
            folders: by_folder.iter().map(sums).collect(),
            sequences,
            ignored: &self.ignored,
            skipped: &self.skipped,
            names: &self.names,
        })
    }

    fn text(&self, all: bool) -> String {
        let mut out = String::new();
        // Writing to a text cannot fail.
        let _ = self.write(&mut out, all);
        out
    }

    fn write(&self, out: &mut String, all: bool) -> fmt::Result {
        self.write_totals(out)?;
        let pending: Vec<&PlannedFile> =
            self.files.iter().filter(|file| file.is_pending()).collect();
        if all {
            self.write_everything(out)?;
        } else if !pending.is_empty() {
            self.write_overview(out, &pending)?;
        }
        self.write_ignored(out, all)?;
        self.write_skipped(out, all)?;
        self.write_names(out, all)
    }

    fn write_totals(&self, out: &mut String) -> fmt::Result {
        let root = escaped(&self.root.to_string_lossy());
        match &self.asked {
            Asked::Server(server) => writeln!(out, "{root} → {}", escaped(server))?,
            Asked::Storage(dir) => writeln!(out, "{root} → {}", escaped(dir))?,
            Asked::NewStorage(dir) => {
                writeln!(out, "{root} → {} (no store yet: nothing is there)", escaped(dir))?;
            }
            Asked::Nobody(why) => writeln!(out, "{root}, no server asked ({why})")?,
        }
        let Totals { all, new, changed, unchanged, server } = totals(&self.files);
        row(out, all, "in all")?;
        let mut of_them = |sum: Sum, what: &str| match sum.files {
            0 => Ok(()),
            _ => row(out, sum, what),
        };
        let Some(server) = server else {
            of_them(new, "new: never hashed here")?;
            of_them(changed, "changed since they were hashed")?;
            return of_them(unchanged, "unchanged");
        };
        let each_once = match server.uploads == server.to_send {
            true => String::new(),
            false => format!(
                " (the same content once: {}, {})",
                files(server.uploads.files),
                ByteSize::b(server.uploads.bytes)
            ),
        };
        of_them(server.to_send, &format!("to send{each_once}"))?;
        for (here, what) in [
            (Here::New, "  new: never hashed here before"),
            (Here::Changed, "  changed since they were hashed"),
            (Here::Unchanged, "  unchanged here, but not there"),
        ] {
            let is_it = |file: &&PlannedFile| file.is_pending() && file.here == here;
            of_them(Sum::of(self.files.iter().filter(is_it)), what)?;
        }
        of_them(server.uploading, "being sent by somebody else")?;
        of_them(server.stored, "already there")
    }

    /// The folders with most to do, and what is in them.
    fn write_overview(&self, out: &mut String, pending: &[&PlannedFile]) -> fmt::Result {
        let what = match &self.asked {
            Asked::Nobody(_) => "New and changed",
            _ => "To send",
        };
        writeln!(out, "\n{what}, by folder, the largest first (--all lists everything):")?;
        let places = overview(pending.iter().copied(), MAX_FOLDERS);
        let by_folder = folders(pending.iter().copied());
        for place in places.iter().take(MAX_FOLDERS) {
            let found = by_folder.binary_search_by(|folder| folder.path.cmp(&place.path));
            match found {
                Ok(index) if place.is_direct => {
                    write_folder(out, &by_folder[index], MAX_ROWS)?;
                }
                _ => {
                    let start = format!("{}/", place.path);
                    let is_below = |folder: &&Folder<'_>| {
                        place.path.is_empty()
                            || folder.path == place.path
                            || folder.path.starts_with(&start)
                    };
                    let count = by_folder.iter().filter(is_below).count();
                    let path = folder_name(&place.path);
                    row(out, place.sum, &format!("{path} and below ({count} folders)"))?;
                }
            }
        }
        let mut rest = Sum::default();
        for place in places.iter().skip(MAX_FOLDERS) {
            rest += place.sum;
        }
        if rest.files > 0 {
            row(out, rest, &format!("in {} more folders", places.len() - MAX_FOLDERS))?;
        }
        Ok(())
    }

    /// All folders with all that is in them.
    fn write_everything(&self, out: &mut String) -> fmt::Result {
        if !self.files.is_empty() {
            writeln!(out, "\nEverything, by folder:")?;
        }
        for folder in folders(&self.files) {
            write_folder(out, &folder, usize::MAX)?;
        }
        Ok(())
    }

    fn write_ignored(&self, out: &mut String, all: bool) -> fmt::Result {
        if self.ignored.is_empty() {
            return Ok(());
        }
        writeln!(out, "\nIgnored (--why PATH tells of one):")?;
        let mut by_rule: BTreeMap<&IgnoreRule, Vec<&Ignored>> = BTreeMap::new();
        for ignored in &self.ignored {
            by_rule.entry(&ignored.rule).or_default().push(ignored);
        }
        let mut by_rule: Vec<_> = by_rule.into_iter().collect();
        by_rule.sort_by_key(|(_, ignored)| std::cmp::Reverse(ignored.len()));
        let shown = if all { usize::MAX } else { MAX_OTHERS };
        for (rule, ignored) in by_rule.iter().take(shown) {
            let dirs = ignored.iter().filter(|ignored| ignored.is_dir).count();
            let plain = ignored.len() - dirs;
            let count = match (dirs, plain) {
                (0, _) => files(plain as u64),
                (1, 0) => "1 folder".to_owned(),
                (_, 0) => format!("{dirs} folders"),
                _ => format!("{}, {dirs} folders", files(plain as u64)),
            };
            writeln!(out, "{count:>14}  by {}", self.rule(rule))?;
            for ignored in ignored.iter().filter(|_| all) {
                let slash = if ignored.is_dir { "/" } else { "" };
                writeln!(out, "{:>14}    {}{slash}", "", escaped(&ignored.path))?;
            }
        }
        more(out, by_rule.len(), shown, "rules")
    }

    /// A rule, and where it is.
    pub fn rule(&self, rule: &IgnoreRule) -> String {
        let pattern = escaped(&rule.pattern);
        let Some(file) = &rule.file else { return format!("the default {pattern}") };
        let file = file.strip_prefix(&self.root).unwrap_or(file);
        let line = rule.line.map_or_else(String::new, |line| format!(" line {line}"));
        format!("{pattern} in {}{line}", escaped(&file.to_string_lossy()))
    }

    fn write_skipped(&self, out: &mut String, all: bool) -> fmt::Result {
        // Those are among the names.
        let is_shown = |skipped: &&Skipped| !matches!(skipped.reason, SkipReason::BadName(_));
        let skipped: Vec<_> = self.skipped.iter().filter(is_shown).collect();
        if skipped.is_empty() {
            return Ok(());
        }
        writeln!(out, "\nSkipped:")?;
        let shown = if all { usize::MAX } else { MAX_OTHERS };
        for skipped in skipped.iter().take(shown) {
            let reason = skipped.reason.to_string();
            writeln!(out, "  {}: {}", escaped(&skipped.path), escaped(&reason))?;
        }
        more(out, skipped.len(), shown, "files")
    }

    fn write_names(&self, out: &mut String, all: bool) -> fmt::Result {
        if self.names.is_empty() {
            return Ok(());
        }
        writeln!(out, "\nNames that will hurt:")?;
        let shown = if all { usize::MAX } else { MAX_OTHERS };
        for same in self.names.chunk_by(|a, b| a.trouble == b.trouble) {
            for name in same.iter().take(shown) {
                let paths: Vec<_> = name.paths.iter().map(|path| escaped(path)).collect();
                writeln!(out, "  {}: {}", paths.join(" and "), escaped(&name.what))?;
            }
            more(out, same.len(), shown, &format!("that {}", trouble(same[0].trouble)))?;
        }
        Ok(())
    }
}

/// What is wrong with several names.
fn trouble(trouble: Trouble) -> &'static str {
    match trouble {
        Trouble::CannotBeSent => "cannot be sent",
        Trouble::CaseClash => "differ only in case",
        Trouble::UnicodeClash => "differ only in their encoding",
        Trouble::TooLong => "are too long for Windows",
        Trouble::Reserved => "are devices on Windows",
        Trouble::BadCharacter => "have characters that Windows does not allow",
        Trouble::BadEnd => "end with a dot or a blank",
    }
}

/// A folder with its sequences and files, the largest first.
fn write_folder(out: &mut String, folder: &Folder<'_>, shown: usize) -> fmt::Result {
    if let [(group, files)] = &folder.groups[..] {
        let path = if folder.path.is_empty() { String::new() } else { folder_name(folder.path) };
        let what = format!("{path}{} ({})", escaped(&group.pattern), reasons(files));
        return row(out, Sum::of(folder.files()), &what);
    }
    row(out, Sum::of(folder.files()), &folder_name(folder.path))?;
    let mut groups: Vec<_> = folder.groups.iter().collect();
    if shown < usize::MAX {
        let bytes = |files: &[&PlannedFile]| Sum::of(files.iter().copied()).bytes;
        groups.sort_by_cached_key(|(_, files)| std::cmp::Reverse(bytes(files)));
    }
    for (group, files) in groups.iter().take(shown) {
        let sum = Sum::of(files.iter().copied());
        row(out, sum, &format!("  {} ({})", escaped(&group.pattern), reasons(files)))?;
    }
    let rest: Vec<_> = groups.iter().skip(shown).flat_map(|(_, files)| files).copied().collect();
    if !rest.is_empty() {
        let sum = Sum::of(rest.iter().copied());
        row(out, sum, &format!("  others ({})", reasons(&rest)))?;
    }
    Ok(())
}

/// Why files are to be sent, or not; with numbers if it is not the same for all.
fn reasons(files: &[&PlannedFile]) -> String {
    let mut counts: BTreeMap<(Option<u8>, Here), (&str, usize)> = BTreeMap::new();
    for file in files {
        let (rank, reason) = match (file.there, file.here) {
            (Some(BlobStatus::Unknown), Here::Unchanged) => (Some(0), "not there"),
            (Some(BlobStatus::Uploading), _) => (Some(1), "being sent"),
            (Some(BlobStatus::Stored), _) => (Some(2), "there"),
            (_, Here::New) => (None, "new"),
            (_, Here::Changed) => (None, "changed"),
            (None, Here::Unchanged) => (None, "unchanged"),
        };
        let here = if rank.is_some() { Here::Unchanged } else { file.here };
        counts.entry((rank, here)).or_insert((reason, 0)).1 += 1;
    }
    let counts: Vec<_> = counts.into_values().collect();
    match &counts[..] {
        [(reason, _)] => (*reason).to_owned(),
        counts => {
            let with_count = |(reason, count): &(&str, usize)| format!("{count} {reason}");
            counts.iter().map(with_count).collect::<Vec<_>>().join(", ")
        }
    }
}

fn folder_name(path: &str) -> String {
    if path.is_empty() { "./".to_owned() } else { format!("{}/", escaped(path)) }
}

fn row(out: &mut String, sum: Sum, what: &str) -> fmt::Result {
    let bytes = ByteSize::b(sum.bytes).to_string();
    writeln!(out, "{:>14}  {bytes:>10}  {what}", files(sum.files))
}

pub(super) fn files(count: u64) -> String {
    if count == 1 { "1 file".to_owned() } else { format!("{count} files") }
}

fn more(out: &mut String, count: usize, shown: usize, what: &str) -> fmt::Result {
    match count.saturating_sub(shown) {
        0 => Ok(()),
        more => writeln!(out, "  … and {more} more {what} (--all)"),
    }
}
