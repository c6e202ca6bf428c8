//! `farmhand plan [DIR]`: finds out; `report` and `why` say it.

mod report;
mod why;

use std::{
    collections::HashMap,
    path::{Component, Path, PathBuf},
};

use clap::Args;
use serde::Serialize;

use super::{
    Context,
    apart::require_no_store,
    checkout::default_name,
    exit::{Exit, Failure},
    session::{ScanArgs, Scans, ServerArgs, Session, interrupted, require_folders},
    settings::Overrides,
};
use crate::{
    agent,
    client::Shaman,
    domain::{BlobId, BlobStatus, CheckoutPath},
    meter::Phase,
    preview::{BadName, Here, PlannedFile, Trouble, bad_names},
    scan::{Ignored, Known, ScannedFile, SkipReason, Skipped, Survey},
    wire::hide_tokens,
};

/// Show what a checkout or push of a folder would send, and why; nothing is sent
///
/// Takes the arguments of checkout: put "plan" in its place to see what it would do. Files whose
/// hashes are not known are hashed, and the server is asked what it lacks of them. Without a server
/// and without a store no file is read: then it shows what is new and changed on this side.
#[derive(Debug, Args)]
pub(super) struct Plan {
    /// The folder
    #[arg(default_value = ".")]
    dir: PathBuf,

    /// What the checkout would be called: counts for the length of its paths on Windows [default:
    /// the folder's name and the time]
    #[arg(long = "as", value_name = "PATH")]
    wish: Option<CheckoutPath>,

    /// Where Windows has the checkouts, like S:\jobs: counts for the length of paths, too
    #[arg(long, value_name = "PATH", default_value = "X:")]
    windows_root: String,

    /// Ask no server and read no file: only show what is new and changed on this side
    #[arg(long, conflicts_with_all = ["server", "storage"])]
    offline: bool,

    /// List all folders, sequences and files, also those that are already there
    #[arg(long)]
    all: bool,

    /// Tell of one file or folder only: sent, already there, ignored by which rule, or skipped
    #[arg(long, value_name = "PATH", conflicts_with = "all")]
    why: Option<PathBuf>,

    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    scan: ScanArgs,
}

/// Who was asked what is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Asked {
    /// The server at this address.
    Server(String),
    /// The store in this directory.
    Storage(String),
    /// A store that is not there yet: it has nothing.
    NewStorage(String),
    /// Nobody, because of this.
    Nobody(&'static str),
}

/// All that was found out.
#[derive(Debug)]
pub(super) struct Report {
    pub root: PathBuf,
    pub asked: Asked,
    /// Sorted by path.
    pub files: Vec<PlannedFile>,
    pub ignored: Vec<Ignored>,
    pub skipped: Vec<Skipped>,
    pub names: Vec<BadName>,
}

impl Plan {
    pub fn overrides(&self, overrides: &mut Overrides) {
        self.server.overrides(overrides);
        self.scan.overrides(overrides);
    }

    pub async fn run(&self, context: &Context) -> Result<Exit, Failure> {
        require_folders(context, std::slice::from_ref(&self.dir))?;
        let why = self.why.as_deref().map(|path| below(&self.dir, path)).transpose()?;
        let asked = self.asked(context)?;
        let mut found = None;
        if matches!(asked, Asked::Server(_) | Asked::Storage(_)) {
            Session::run(context, async |session| {
                let Session { scans, client, .. } = session;
                found = Some(self.look(context, scans, asked, Some(client), why.as_deref()).await?);
                Ok(Exit::Done)
            })
            .await?;
        } else {
            let scans = Scans::new(context)?;
            let _display = scans.display(context);
            tokio::select! {
                report = self.look(context, &scans, asked, None, why.as_deref()) => found = Some(report?),
                () = interrupted() => {
                    tokio::select! {
                        () = scans.stop() => {}
                        () = interrupted() => {} // a disk that hangs
                    }
                    return Err(Failure::interrupted());
                }
            }
        }
        let report = found.ok_or_else(|| Failure::new(Exit::Failed, "BUG: there is no plan"))?;
        let (json, all) = (context.json, self.all);
        let options = context.settings.scan_options();
        let printing = tokio::task::spawn_blocking(move || match why {
            Some(path) => why::print(&report, &path, &options, json),
            None => report.print(json, all),
        });
        tokio::select! {
            printed = printing => {
                printed.map_err(|error| Failure::new(Exit::Failed, format!("BUG: {error}")))?
            }
            // Whoever reads may not read on.
            () = interrupted() => Err(Failure::interrupted()),
        }
    }

    /// Whom to ask: whom a checkout would be made by.
    fn asked(&self, context: &Context) -> Result<Asked, Failure> {
        if self.offline {
            return Ok(Asked::Nobody("--offline"));
        }
        if let Some(url) = context.settings.server() {
            return Ok(Asked::Server(hide_tokens(url).into_owned()));
        }
        let Some(dir) = &context.settings.values.storage else {
            return Ok(Asked::Nobody("no --server and no --storage"));
        };
        let shown = dir.display().to_string();
        // None is made just to find that it is empty.
        Ok(match dir.join("file-store").is_dir() {
            true => Asked::Storage(shown),
            false => Asked::NewStorage(shown),
        })
    }

    /// Finds out all there is to know; about this file or folder only, if one is given.
    async fn look(
        &self,
        context: &Context,
        scans: &Scans,
        asked: Asked,
        client: Option<&mut Shaman>,
        only: Option<&str>,
    ) -> Result<Report, Failure> {
        let dir = self.dir.clone();
        let ignores = context.settings.scan_options_for(&dir).ignores;
        let survey = move |scanner: &mut crate::scan::Scanner| {
            scanner.set_ignores(ignores);
            scanner.survey(&dir, true)
        };
        let mut survey = scans.with_scanner(survey).await?;
        require_no_store(&survey.root, survey.files().map(|(path, ..)| path))?;
        let mut names = bad_names(survey.files().map(|(path, ..)| path.as_str()), self.above());
        names.extend(survey.skipped.iter().filter_map(cannot_be_sent));
        names.sort_by_key(|name| name.trouble);
        if let Some(path) = only {
            survey.retain_below(path);
        }
        let (root, ignored) = (survey.root.clone(), std::mem::take(&mut survey.ignored));
        let (files, skipped) = if matches!(asked, Asked::Nobody(_)) {
            (unread_files(&survey), survey.skipped)
        } else {
            let outdated = survey.outdated().clone();
            let scan = scans.with_scanner(move |scanner| scanner.finish(survey)).await?;
            let lacking: Option<HashMap<BlobId, BlobStatus>> = match client {
                Some(client) => {
                    scans.progress.enter(Phase::Asking);
                    Some(agent::lacking(client, &scan.files).await?.into_iter().collect())
                }
                None => None,
            };
            let planned = |file: &ScannedFile| PlannedFile {
                path: file.path.clone(),
                size_bytes: file.fingerprint.size_bytes,
                digest: Some(file.digest),
                here: match outdated.get(&file.path) {
                    _ if file.cached => Here::Unchanged,
                    Some(before) if *before == file.digest => Here::Unchanged,
                    Some(_) => Here::Changed,
                    None => Here::New,
                },
                there: Some(match &lacking {
                    Some(lacking) => {
                        lacking.get(&file.blob()).copied().unwrap_or(BlobStatus::Stored)
                    }
                    None => BlobStatus::Unknown,
                }),
            };
            (scan.files.iter().map(planned).collect(), scan.skipped)
        };
        Ok(Report { root, asked, files, ignored, skipped, names })
    }

    /// How long the path of the checkout is on Windows, with the separator after it.
    fn above(&self) -> usize {
        let name = self.wish.clone().unwrap_or_else(|| default_name(&self.dir));
        let root = self.windows_root.trim_end_matches(['\\', '/']);
        root.encode_utf16().count() + name.as_str().encode_utf16().count() + 2
    }
}

/// What there is to say if no file is read.
fn unread_files(survey: &Survey) -> Vec<PlannedFile> {
    let mut files: Vec<_> = survey
        .files()
        .map(|(path, size_bytes, known)| PlannedFile {
            path: path.clone(),
            size_bytes,
            digest: None,
            here: match known {
                Known::New => Here::New,
                Known::Outdated => Here::Changed,
                Known::Unchanged => Here::Unchanged,
            },
            there: None,
        })
        .collect();
    files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    files
}

fn cannot_be_sent(skipped: &Skipped) -> Option<BadName> {
    let SkipReason::BadName(what) = &skipped.reason else { return None };
    let paths = vec![skipped.path.clone()];
    Some(BadName { trouble: Trouble::CannotBeSent, paths, what: what.clone() })
}

/// A path below a folder, from there: given as it is from here, or from the folder.
fn below(dir: &Path, path: &Path) -> Result<String, Failure> {
    // Without asking the file system: what is at the end of links is somewhere else.
    let plain = |path: &Path| -> Result<PathBuf, Failure> {
        let absolute = std::path::absolute(path).map_err(|error| {
            Failure::new(Exit::Failed, format!("cannot find out where we are: {error}"))
        })?;
        let mut plain = PathBuf::new();
        for component in absolute.components() {
            match component {
                Component::ParentDir => _ = plain.pop(),
                component => plain.push(component),
            }
        }
        Ok(plain)
    };
    let root = plain(dir)?;
    for candidate in [plain(path)?, plain(&root.join(path))?] {
        if let Ok(relative) = candidate.strip_prefix(&root)
            && candidate.symlink_metadata().is_ok()
        {
            let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy()).collect();
            return Ok(parts.join("/"));
        }
    }
    let message = format!("there is no {} in {}; check the path", path.display(), dir.display());
    Err(Failure::new(Exit::Missing, message))
}
