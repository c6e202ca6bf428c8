//! `farmhand plan --why PATH`: one file or folder, and what becomes of it.

use std::path::Path;

use bytesize::ByteSize;
use serde::Serialize;

use super::{Asked, Report, report::files};
use crate::{
    cli::{
        exit::{Exit, Failure},
        hash::escaped,
        print as print_line, print_json,
    },
    domain::BlobStatus,
    preview::{BadName, Here, PlannedFile, Totals, totals},
    scan::{self, IgnoreRule, SkipReason, deciding_rule},
};

/// What becomes of a path.
#[derive(Debug, Serialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
enum Verdict<'a> {
    /// It is part of the checkout.
    File {
        #[serde(flatten)]
        file: &'a PlannedFile,
        /// The rule that takes it along, although others ignore it.
        #[serde(skip_serializing_if = "Option::is_none")]
        rule: Option<IgnoreRule>,
    },
    /// A rule ignores it, or a folder it is in.
    Ignored { path: &'a str, by: &'a str, rule: &'a IgnoreRule },
    /// It, or a folder it is in, cannot be part of the checkout.
    Skipped { path: &'a str, by: &'a str, reason: &'a SkipReason },
    /// It is a folder.
    Folder { path: &'a str, totals: Box<Totals> },
}

#[derive(Serialize)]
struct Answer<'a> {
    schema: &'static str,
    dir: String,
    asked: &'a Asked,
    #[serde(flatten)]
    verdict: Verdict<'a>,
    names: Vec<&'a BadName>,
}

/// Prints what becomes of a path below the root.
pub(super) fn print(
    report: &Report,
    path: &str,
    options: &scan::Options,
    as_json: bool,
) -> Result<Exit, Failure> {
    let verdict = verdict(report, path, options);
    let concerns = |name: &&BadName| {
        name.paths.iter().any(|bad| path == bad || path.starts_with(&format!("{bad}/")))
    };
    let names: Vec<&BadName> = report.names.iter().filter(concerns).collect();
    let exit = match verdict {
        Verdict::Skipped { .. } => Exit::Skipped,
        _ => Exit::Done,
    };
    if as_json {
        let dir = report.root.display().to_string();
        let asked = &report.asked;
        print_json(&Answer { schema: "farmhand.why/1", dir, asked, verdict, names })?;
        return Ok(exit);
    }
    let shown = if path.is_empty() { ".".to_owned() } else { escaped(path) };
    print_line(&format!("{shown}: {}", in_words(report, path, &verdict)))?;
    let is_said =
        |name: &&BadName| !matches!(verdict, Verdict::Skipped { .. }) || name.paths.len() > 1;
    for name in names.into_iter().filter(is_said) {
        let paths: Vec<_> = name.paths.iter().map(|path| escaped(path)).collect();
        print_line(&format!("  will hurt: {}: {}", paths.join(" and "), escaped(&name.what)))?;
    }
    Ok(exit)
}

fn verdict<'a>(report: &'a Report, path: &'a str, options: &scan::Options) -> Verdict<'a> {
    let is_at_or_above = |other: &str| Path::new(path).starts_with(other);
    if let Some(file) = report.files.iter().find(|file| file.path.as_str() == path) {
        let rule = deciding_rule(&report.root, options, Path::new(path));
        return Verdict::File { file, rule: rule.filter(IgnoreRule::takes_along) };
    }
    if let Some(ignored) = report.ignored.iter().find(|other| is_at_or_above(&other.path)) {
        return Verdict::Ignored { path, by: &ignored.path, rule: &ignored.rule };
    }
    if let Some(skipped) = report.skipped.iter().find(|other| is_at_or_above(&other.path)) {
        return Verdict::Skipped { path, by: &skipped.path, reason: &skipped.reason };
    }
    Verdict::Folder { path, totals: Box::new(totals(&report.files)) }
}

fn in_words(report: &Report, path: &str, verdict: &Verdict<'_>) -> String {
    let with_its_folder = |by: &str| match by == path {
        true => String::new(),
        false => format!(" with its folder {}/", escaped(by)),
    };
    match verdict {
        Verdict::File { file, rule } => {
            let here = match file.here {
                Here::New => "it was never hashed here before",
                Here::Changed => "it has changed since it was hashed",
                Here::Unchanged => "it has not changed since it was hashed",
            };
            let there = match file.there {
                Some(BlobStatus::Unknown) => "to send: the server does not have it, and ",
                Some(BlobStatus::Uploading) => "somebody else is sending it just now; ",
                Some(BlobStatus::Stored) => "already there: the server has it; ",
                None => "part of the checkout, no server asked; ",
            };
            let rule =
                rule.as_ref().map(|rule| format!("; not ignored because of {}", report.rule(rule)));
            format!("{there}{here} ({}){}", ByteSize::b(file.size_bytes), rule.unwrap_or_default())
        }
        Verdict::Ignored { by, rule, .. } => {
            let next = match rule.file {
                Some(_) => "",
                None => "; --no-default-ignores takes it along",
            };
            format!("ignored{} by {}{next}", with_its_folder(by), report.rule(rule))
        }
        Verdict::Skipped { by, reason, .. } => {
            format!("skipped{}: {}", with_its_folder(by), escaped(&reason.to_string()))
        }
        Verdict::Folder { totals, .. } => {
            let Totals { all, new, changed, server, .. } = **totals;
            let of_them = match server {
                Some(server) => format!(
                    "{} to send ({}), {} already there",
                    server.to_send.files,
                    ByteSize::b(server.to_send.bytes),
                    server.stored.files
                ),
                None => format!("{} new, {} changed", new.files, changed.files),
            };
            format!("a folder of {}, {}: {of_them}", files(all.files), ByteSize::b(all.bytes))
        }
    }
}
