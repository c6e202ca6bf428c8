//! `farmhand doctor [DIR…]`: asks for the facts, one after the other; `judge` says what they mean.

mod judge;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use serde_json::json;

use super::{
    Context,
    exit::{Exit, Failure, with_causes},
    print, print_json,
    session::{ServerArgs, interrupted},
    settings::{Overrides, Settings, WatchHow, default_file},
};
use crate::{
    agent::real,
    client::{self, Shaman},
    disk::{FileSystem, Mounts, Space, WatchLimits, nearest_existing, try_writing, watches_needed},
    domain::OsFamily,
    exec::Exec,
    scan::HashCache,
    store,
    wire::hide_tokens,
};
use judge::{Check, FolderFacts, Look, MANY_DIRECTORIES, State, StoreFacts};

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Look whether all is well, and say what to do where it is not
///
/// Looks at the configuration, the server (or the store), the Manager behind `farmhand serve`
/// and its storage, the folders and what watching them takes, the hash cache, and the limits of this
/// machine. Nothing is changed, but for files
/// that are made and removed at once where something is to be written. Without folders, those of the
/// configuration (watch.folders) are looked at. Exit code 1 if something does not work; warnings are
/// none.
#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// The folders
    #[arg(value_name = "DIR")]
    dirs: Vec<PathBuf>,

    #[command(flatten)]
    server: ServerArgs,
}

impl Doctor {
    pub fn overrides(&self, overrides: &mut Overrides) {
        self.server.overrides(overrides);
    }

    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        let mut report = Report { as_text: !context.json, checks: Vec::new() };
        tokio::select! {
            done = examine(&mut report, &context.settings, self.dirs) => done?,
            // Also where a disk does not answer: the last line says before which check that is.
            () = interrupted() => return Err(Failure::interrupted()),
        }
        let failed = report.checks.iter().any(|check| check.state == State::Fail);
        if context.json {
            print_json(&json!({ "schema": "farmhand.doctor/1", "checks": report.checks }))?;
        }
        Ok(if failed { Exit::Failed } else { Exit::Done })
    }
}

/// The checks so far. As text, each is printed when it is known: some take their time.
struct Report {
    as_text: bool,
    checks: Vec<Check>,
}

impl Report {
    fn add(&mut self, checks: impl IntoIterator<Item = Check>) -> Result<(), Failure> {
        for check in checks {
            if self.as_text {
                print(&shown(&check))?;
            }
            self.checks.push(check);
        }
        Ok(())
    }
}

/// A check as text. What servers say of themselves must not have the terminal do something.
fn shown(check: &Check) -> String {
    let plain = |text: &str| text.replace(|c: char| c.is_control(), "\u{fffd}");
    let mut text = format!("{:<4}  {}: {}", check.state.name(), check.name, plain(&check.found));
    for (number, line) in check.next.iter().flat_map(|next| next.lines()).enumerate() {
        let arrow = if number == 0 { "→" } else { " " };
        text.push_str(&format!("\n      {arrow} {}", plain(line)));
    }
    text
}

/// A folder to look at.
struct Folder {
    dir: PathBuf,
    named: bool,
    /// The server it is sent to, if not that of all.
    server: Option<String>,
}

async fn examine(
    report: &mut Report,
    settings: &Settings,
    dirs: Vec<PathBuf>,
) -> Result<(), Failure> {
    report.add([judge::configuration(settings.file.as_deref(), default_file().as_deref())])?;
    let folders = folders(settings, dirs);
    let mut servers: Vec<&str> = settings.server().into_iter().collect();
    servers.extend(folders.iter().filter_map(|folder| folder.server.as_deref()));
    servers.sort_unstable();
    servers.dedup();
    for url in servers {
        report.add(server(settings, url).await)?;
    }
    if settings.server().is_none() {
        let homeless = folders.iter().find(|folder| !folder.named && folder.server.is_none());
        report.add(homeless.map(|folder| judge::no_server(&folder.dir)))?;
        match settings.values.storage.clone() {
            Some(dir) => {
                let options = settings.store_options();
                let facts = blocking(move || store_facts(dir, options)).await?;
                report.add(judge::store(&facts))?;
            }
            None => report.add([judge::no_target()])?,
        }
    }
    report.add(manager_storage(settings).await)?;

    let polls = settings.values.watch.mode == WatchHow::Poll;
    let mut looked = Vec::new();
    for folder in folders {
        let facts = blocking(move || folder_facts(folder, polls)).await?;
        report.add([judge::folder(&facts)])?;
        looked.push(facts);
    }
    report.add(WatchLimits::read().map(|limits| judge::watch_limits(&limits, &looked)))?;

    let wanted = settings.values.scan.cache;
    let cache_dir = settings.scan_options().cache;
    let (health, space) = blocking(move || {
        let health = cache_dir.as_deref().map(HashCache::examine);
        let space = cache_dir.and_then(|dir| {
            let there = nearest_existing(&dir)?;
            Some((Space::of(&there).ok()??, dir))
        });
        (health, space)
    })
    .await?;
    report.add([judge::cache(health.as_ref(), wanted)])?;
    report.add(space.map(|(space, dir)| judge::space(&dir, space)))?;
    report.add(open_files().map(judge::open_files))
}

/// The disk is asked on another thread, so that one that does not answer can be interrupted.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure::new(Exit::Failed, format!("BUG: {error}")))
}

/// Those that are named, or else those of the configuration.
fn folders(settings: &Settings, dirs: Vec<PathBuf>) -> Vec<Folder> {
    let known = &settings.values.watch.folders;
    if dirs.is_empty() {
        let folder = |folder: &super::settings::WatchFolder| Folder {
            dir: folder.path.clone(),
            named: false,
            server: folder.server.clone(),
        };
        return known.iter().map(folder).collect();
    }
    let folder = |dir: PathBuf| {
        let configured = known.iter().find(|folder| real(&folder.path) == real(&dir));
        Folder { server: configured.and_then(|folder| folder.server.clone()), dir, named: true }
    };
    dirs.into_iter().map(folder).collect()
}

async fn server(settings: &Settings, url: &str) -> Vec<Check> {
    let client = settings.client_options().and_then(|options| {
        let options = client::Options {
            stall_timeout: PATIENCE,
            call_timeout: PATIENCE,
            retries: 0,
            ..options
        };
        Ok(Shaman::new(url, options)?)
    });
    match client {
        Ok(client) => {
            let (url, probe) = (hide_tokens(url), client.probe().await);
            let mut checks = judge::server(&url, &probe, client.exposure());
            if probe.answer.is_ok() {
                let status = client.farm_status().await;
                checks.extend(status.map(|status| judge::jobs(&url, status)));
            }
            checks
        }
        Err(failure) => vec![judge::no_client(failure.message())],
    }
}

/// Whether the Manager of the configuration uses the storage of the configuration; nothing, if there
/// is no Manager.
async fn manager_storage(settings: &Settings) -> Option<Check> {
    let gateway = match settings.gateway() {
        Ok(gateway) => gateway?,
        Err(failure) => return Some(judge::no_manager(failure.message())),
    };
    let dir = match settings.storage() {
        Ok(dir) => dir.to_owned(),
        Err(failure) => return Some(judge::no_manager(failure.message())),
    };
    // As a server that uses it calls it.
    let look = move || {
        let exists = store::building_dir(&dir).is_ok();
        (std::path::absolute(&dir).unwrap_or(dir), exists)
    };
    let (dir, exists) = blocking(look).await.ok()?;
    if !exists {
        return Some(judge::no_storage_yet(gateway.shown(), &dir));
    }
    let comparison = gateway.compare_storage(&dir, &Exec::default()).await;
    Some(judge::manager_storage(gateway.shown(), &dir, gateway.checkout_paths(), &comparison))
}

fn store_facts(dir: PathBuf, options: store::Options) -> StoreFacts {
    let exists = dir.exists();
    let there = nearest_existing(&dir).unwrap_or_else(|| dir.clone());
    let space = Space::of(&there).ok().flatten();
    let holder = store::holder(&dir);
    let link_mode = match &holder {
        None => store::try_link_mode(&dir, options.link_mode),
        // Who has it open has tried that.
        Some(_) => None,
    };
    let name = format!("{:?}", options.link_mode).to_lowercase();
    StoreFacts {
        family: OsFamily::HERE,
        exists,
        is_dir: there.is_dir(),
        unwritable: try_writing(&there).err().map(|error| with_causes(&error)),
        system: FileSystem::of(&there).ok(),
        space,
        reserve_bytes: space.map_or(0, |space| options.reserve.bytes(space.total_bytes)),
        holder,
        link_mode: link_mode.map(|tried| (name, tried.map_err(|error| with_causes(&error)))),
        dir,
    }
}

fn folder_facts(folder: Folder, polls: bool) -> FolderFacts {
    let Folder { dir, named, .. } = folder;
    FolderFacts { look: look(&dir, polls), dir, named }
}

fn look(dir: &Path, polls: bool) -> Look {
    match fs::metadata(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Look::Missing,
        Err(error) => return Look::Unreadable(error.to_string()),
        Ok(found) if !found.is_dir() => return Look::NoFolder,
        Ok(_) => {}
    }
    if let Err(error) = fs::read_dir(dir) {
        return Look::Unreadable(error.to_string());
    }
    let system = FileSystem::of(dir).ok();
    let mounts = Mounts::of(&real(dir)).ok();
    let silent = mounts.as_ref().and_then(Mounts::silent);
    let is_heard = !polls && system.is_some() && mounts.is_some() && silent.is_none();
    // Only Linux watches each directory by itself.
    let counts = is_heard && cfg!(target_os = "linux");
    let directories = counts.then(|| watches_needed(dir, MANY_DIRECTORIES));
    Look::Folder { system, polls, silent, directories }
}

/// How many files this process may have open, if there is an end to that; `None` where it cannot be asked.
fn open_files() -> Option<Option<u64>> {
    #[cfg(unix)]
    return Some(rustix::process::getrlimit(rustix::process::Resource::Nofile).current);
    #[cfg(not(unix))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_a_line_and_what_to_do_is_below() {
        let check = Check::warn("limits", "few", "more\nand keep them");
        assert_eq!(shown(&check), "warn  limits: few\n      → more\n        and keep them");
        assert_eq!(
            shown(&Check::ok("server", "a\u{1b}[2Jb\n")),
            "ok    server: a\u{fffd}[2Jb\u{fffd}"
        );
    }
}
