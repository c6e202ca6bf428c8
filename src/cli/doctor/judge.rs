//! What facts mean: fine, worth a word, or in the way. Pure.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use serde::Serialize;

use super::super::exit::{NO_STORE_ON_WINDOWS, next_step, with_causes};
use crate::{
    client::{ClientError, Clocks, Exposure, FarmStatus, Probe},
    disk::{FileSystem, SilentFileSystem, Space, WatchLimits},
    domain::OsFamily,
    scan::{CacheHealth, CacheState},
    server::{CheckoutPaths, Comparison},
    store::require_supported,
};

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// As it should be.
    Ok,
    /// It works, and could be better.
    Warn,
    /// It does not work.
    Fail,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What was looked at, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub name: &'static str,
    pub state: State,
    pub found: String,
    /// What to do about it; there is something unless all is well.
    pub next: Option<String>,
}

impl Check {
    pub fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, state: State::Ok, found: found.into(), next: None }
    }

    pub fn warn(name: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { name, state: State::Warn, found: found.into(), next: Some(next.into()) }
    }

    pub fn fail(name: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { name, state: State::Fail, found: found.into(), next: Some(next.into()) }
    }
}

/// Clocks may be so far apart before it is worth a word, in milliseconds.
const CLOCKS_APART_MS: i64 = 60_000;

/// The least room for the cache, and for what else programs write there, in bytes.
const LITTLE_ROOM_BYTES: u64 = 256 << 20;

/// Fewer open files than that may not be enough for many uploads and readers at once.
const FEW_OPEN_FILES: u64 = 1024;

pub(super) fn configuration(file: Option<&Path>, usual: Option<&Path>) -> Check {
    let found = match (file, usual) {
        (Some(file), _) => file.display().to_string(),
        (None, Some(usual)) => {
            format!("no file at {}; the defaults and the environment count", usual.display())
        }
        (None, None) => "no file; the defaults and the environment count".into(),
    };
    Check::ok("configuration", found)
}

/// All that one look at a server tells.
pub(super) fn server(url: &str, probe: &Probe, exposure: Exposure) -> Vec<Check> {
    let mut checks = vec![answer(url, probe)];
    match &probe.answer {
        Ok(()) if exposure.has_token => {
            checks.push(Check::ok("token", format!("{url} does not refuse it")));
        }
        Ok(()) => checks.push(Check::ok("token", format!("{url} asks for none"))),
        Err(error @ ClientError::Refused { .. }) => {
            let which = if exposure.has_token { "it" } else { "who has none" };
            let found = format!("{url} refuses {which}: {error}");
            checks.push(Check::fail("token", found, next_step(error).1));
        }
        Err(_) => {}
    }
    checks.extend(probe.clocks.map(|clocks| clock(url, clocks)));
    checks.push(encryption(url, exposure));
    checks
}

fn answer(url: &str, probe: &Probe) -> Check {
    const NAME: &str = "server";
    let ms = probe.took.as_millis();
    let software = probe.software.as_ref().map(|name| format!(", {name}")).unwrap_or_default();
    match (&probe.answer, &probe.moved_to) {
        (Ok(()), None) => {
            Check::ok(NAME, format!("{url} speaks Shaman{software}; it answered in {ms} ms"))
        }
        (Ok(()), Some(to)) => Check::warn(
            NAME,
            format!("{url} sends its clients to {to}, which speaks Shaman{software}"),
            "give that address, so that nothing depends on the other one",
        ),
        // That it cannot be used is said of the token.
        (Err(ClientError::Refused { .. }), _) => {
            Check::ok(NAME, format!("{url} is there; it answered in {ms} ms"))
        }
        (Err(error), _) => {
            let next = match next_step(error).1 {
                "" => "see the server's log",
                next => next,
            };
            Check::fail(NAME, with_causes(error), next)
        }
    }
}

fn clock(url: &str, clocks: Clocks) -> Check {
    const NAME: &str = "clock";
    let Clocks { ahead_ms, unsure_ms } = clocks;
    let seconds = |ms: i64| (ms.unsigned_abs() + 500) / 1000;
    if ahead_ms.abs() - unsure_ms <= CLOCKS_APART_MS {
        let within = seconds(ahead_ms.abs() + unsure_ms).max(1);
        return Check::ok(NAME, format!("that of {url} and this one agree within {within} s"));
    }
    let way = if ahead_ms > 0 { "ahead of" } else { "behind" };
    let (apart, unsure) = (seconds(ahead_ms), seconds(unsure_ms).max(1));
    Check::warn(
        NAME,
        format!("this machine is {apart} s {way} {url} (± {unsure} s)"),
        "have both set their clocks by NTP: logs and ages do not fit together, and certificates may seem \
         invalid",
    )
}

fn encryption(url: &str, exposure: Exposure) -> Check {
    const NAME: &str = "encryption";
    match exposure {
        Exposure { is_encrypted: true, .. } => Check::ok(NAME, format!("{url} is reached by TLS")),
        Exposure { is_local: true, .. } => Check::ok(NAME, format!("{url} is on this machine")),
        Exposure { has_token: false, .. } => {
            Check::ok(NAME, format!("none, and no token to protect, on the way to {url}"))
        }
        Exposure { has_token: true, .. } => Check::warn(
            NAME,
            format!("the token can be read on the way to {url}, and used by whoever reads it"),
            "reach the server by https:// (settings serve.tls_cert and serve.tls_key there), or only \
             in a network you trust",
        ),
    }
}

/// Whether jobs that the server takes are worked on.
pub(super) fn jobs(url: &str, status: FarmStatus) -> Check {
    const NAME: &str = "jobs";
    match status {
        FarmStatus::Active => Check::ok(NAME, format!("{url} works on a job")),
        FarmStatus::Waiting => Check::ok(NAME, format!("jobs wait at {url}")),
        FarmStatus::Idle => Check::ok(NAME, format!("{url} is idle")),
        FarmStatus::Unknown => Check::ok(NAME, format!("{url} takes jobs")),
        FarmStatus::Asleep => Check::warn(
            NAME,
            format!("{url} takes jobs, and all its workers are asleep"),
            "wake a worker in the Manager",
        ),
        FarmStatus::Inoperative => Check::warn(
            NAME,
            format!("{url} takes jobs, and neither a worker nor a command runs them"),
            "start a worker of the Manager; for a farmhand without a Manager, set jobs.hook on the server, or start \
             it with --hook PROGRAM",
        ),
    }
}

/// A server that cannot even be asked.
pub(super) fn no_client(failure: &str) -> Check {
    Check::fail(
        "server",
        failure,
        "correct that setting; `farmhand config show` says where it is from",
    )
}

/// A folder of the configuration that nobody says where to send.
pub(super) fn no_server(dir: &Path) -> Check {
    Check::warn(
        "server",
        format!("none for {}: `farmhand watch` does not start", dir.display()),
        "set server in the configuration, for all folders or for this one",
    )
}

/// Neither a server nor a store is given.
pub(super) fn no_target() -> Check {
    Check::warn(
        "target",
        "neither a server nor a store is given: checkout, push, wait and submit do not start",
        "name a server with --server or the setting server, or the directory of a store with --storage or the \
         setting storage",
    )
}

/// What is known of the directory of a store.
#[derive(Debug)]
pub(super) struct StoreFacts {
    pub dir: PathBuf,
    pub family: OsFamily,
    /// It is there; if not, the rest is about what is nearest to it.
    pub exists: bool,
    pub is_dir: bool,
    pub unwritable: Option<String>,
    pub system: Option<FileSystem>,
    pub space: Option<Space>,
    pub reserve_bytes: u64,
    pub holder: Option<String>,
    /// The mode, and why it does not work; `None`: it was not tried.
    pub link_mode: Option<(String, Result<(), String>)>,
}

pub(super) fn store(facts: &StoreFacts) -> Vec<Check> {
    const NAME: &str = "store";
    if let Err(error) = require_supported(facts.family) {
        return vec![Check::fail(NAME, error.to_string(), NO_STORE_ON_WINDOWS)];
    }
    let dir = facts.dir.display();
    if !facts.is_dir {
        let found = format!("{dir} is no directory");
        return vec![Check::fail(NAME, found, "choose another with --storage")];
    }
    if let Some(why) = &facts.unwritable {
        let found = format!("{dir} cannot be written to: {why}");
        let next = "check the permissions there, or choose another with --storage";
        return vec![Check::fail(NAME, found, next)];
    }
    let on = facts.system.as_ref().map_or_else(String::new, |system| match system.is_remote {
        true => format!(" on {}, a network disk or the like", system.name),
        false => format!(" on {}", system.name),
    });
    let mut checks = vec![match (&facts.holder, facts.exists) {
        (Some(holder), _) => Check::warn(
            NAME,
            format!("{dir}{on} is in use by another farmhand ({holder})"),
            "go through its server with --server, or wait until it has ended",
        ),
        (None, true) => Check::ok(NAME, format!("{dir}{on} can be written to")),
        (None, false) => Check::warn(
            NAME,
            format!("{dir} is not there{on}"),
            "it is made when it is first used; but mount the disk first, if it should be on another one",
        ),
    }];
    if let Some(space) = facts.space {
        let (free, kept) = (ByteSize(space.free_bytes), ByteSize(facts.reserve_bytes));
        let found = format!("{free} are free in {dir}, {kept} of that are kept (store.reserve)");
        checks.push(if space.free_bytes <= facts.reserve_bytes {
            Check::fail("store space", found, "make room: nothing more is stored there")
        } else if space.free_bytes - facts.reserve_bytes < LITTLE_ROOM_BYTES {
            Check::warn("store space", found, "make room, or `farmhand store gc` there")
        } else {
            Check::ok("store space", found)
        });
    }
    checks.extend(facts.link_mode.as_ref().map(|(mode, tried)| match tried {
        Ok(()) => Check::ok("link mode", format!("{mode} works")),
        Err(why) => Check::fail("link mode", why, "choose another store.link_mode"),
    }));
    checks
}

const MANAGER_STORAGE: &str = "manager storage";

/// Settings that lead to no Manager or to no storage.
pub(super) fn no_manager(failure: &str) -> Check {
    let next = "correct that setting; `farmhand config show` says where it is from";
    Check::fail(MANAGER_STORAGE, failure, next)
}

/// A storage that no server has used: there is nothing in it that the Manager could see.
pub(super) fn no_storage_yet(url: &str, dir: &Path) -> Check {
    let dir = dir.display();
    Check::warn(
        MANAGER_STORAGE,
        format!(
            "{dir} is not a storage yet, so it is not known whether the Manager at {url} uses it"
        ),
        "mount its disk, or start `farmhand serve` once, and run this again",
    )
}

/// Whether the Manager and this server use one storage.
pub(super) fn manager_storage(
    url: &str,
    dir: &Path,
    paths: CheckoutPaths,
    comparison: &Comparison,
) -> Check {
    match (comparison, paths) {
        (Comparison::Same { manager, .. }, _) => {
            let shaman = if manager.shaman_enabled { "enabled" } else { "disabled" };
            let (dir, location) = (dir.display(), &manager.location);
            Check::ok(
                MANAGER_STORAGE,
                format!(
                    "the Manager at {url} uses {dir}, too, as {location}; its own Shaman is {shaman}"
                ),
            )
        }
        (Comparison::Different { reason, .. }, CheckoutPaths::Absolute) => Check::warn(
            MANAGER_STORAGE,
            reason,
            "see that every worker finds this server's jobs directory under the same path: checkouts \
             have absolute paths (serve.checkout_paths)",
        ),
        (Comparison::Different { .. } | Comparison::Unknown { .. }, _) => {
            let (reason, next) = comparison.objection().unwrap_or_default();
            Check::fail(MANAGER_STORAGE, reason, next)
        }
    }
}

/// A folder that is to be uploaded or watched.
#[derive(Debug)]
pub(super) struct FolderFacts {
    pub dir: PathBuf,
    /// It was named now, not long ago in the configuration.
    pub named: bool,
    pub look: Look,
}

/// What a folder turns out to be.
#[derive(Debug)]
pub(super) enum Look {
    Missing,
    NoFolder,
    Unreadable(String),
    Folder {
        system: Option<FileSystem>,
        /// The settings say that it is to be polled.
        polls: bool,
        /// Where changes cause no event.
        silent: Option<SilentFileSystem>,
        /// How many directories it has, with those in it, if they can be watched.
        directories: Option<u64>,
    },
}

impl FolderFacts {
    /// How many directories have to be watched.
    pub fn watches(&self) -> Option<u64> {
        match self.look {
            Look::Folder { directories, .. } => directories,
            _ => None,
        }
    }
}

/// Where counting directories stops.
pub(super) const MANY_DIRECTORIES: u64 = 1_000_000;

pub(super) fn folder(facts: &FolderFacts) -> Check {
    const NAME: &str = "folder";
    let dir = facts.dir.display();
    match &facts.look {
        Look::Missing if facts.named => {
            Check::fail(NAME, format!("{dir} does not exist"), "check the path")
        }
        Look::Missing => Check::warn(
            NAME,
            format!("{dir} is not there; `farmhand watch` waits for it"),
            "mount its disk, or take it out of watch.folders in the configuration",
        ),
        Look::NoFolder => {
            Check::fail(NAME, format!("{dir} is no folder"), "give the folder it belongs to")
        }
        Look::Unreadable(why) => {
            Check::fail(NAME, format!("{dir} cannot be read: {why}"), "check its permissions")
        }
        Look::Folder { system: None, .. } => Check::warn(
            NAME,
            format!("{dir} can be read, but its file system does not answer"),
            "check the disk: it is treated like a network disk, and trusted least",
        ),
        Look::Folder { system: Some(system), polls, silent, directories } => {
            let changes = match (silent, directories) {
                (Some(silent), _) => format!("changes are found by polling: {silent}"),
                (None, _) if *polls => "changes are found by polling (watch.mode)".into(),
                (None, Some(MANY_DIRECTORIES..)) => {
                    format!("changes are heard of, in {MANY_DIRECTORIES} directories or more")
                }
                (None, Some(1)) => "changes are heard of, in one directory".into(),
                (None, Some(count)) => format!("changes are heard of, in {count} directories"),
                (None, None) => "changes are heard of".into(),
            };
            let inodes = match system.has_stable_inodes {
                true => "files are known again under other names",
                false => "inode numbers are made up: renamed files are hashed again",
            };
            Check::ok(NAME, format!("{dir} is on {}; {changes}; {inodes}", system.name))
        }
    }
}

/// The limits, and what the folders that can be watched need of them.
pub(super) fn watch_limits(limits: &WatchLimits, folders: &[FolderFacts]) -> Check {
    const NAME: &str = "watch limits";
    let needs: Vec<u64> = folders.iter().filter_map(FolderFacts::watches).collect();
    let (needed, watchers) = (needs.iter().sum::<u64>(), needs.len() as u64);
    let WatchLimits { max_user_watches, max_user_instances, max_queued_events } = limits;
    let found = format!(
        "{max_user_watches} directories, {max_user_instances} watchers, {max_queued_events} events in \
         line for all programs of this user"
    );
    let found = match needs.is_empty() {
        true => found,
        false => format!("{found}; {needed} directories and {watchers} watchers are needed"),
    };
    if limits.is_scarce(needed) {
        return Check::warn(NAME, found, limits.more_watches(needed));
    }
    if watchers > max_user_instances / 2 {
        return Check::warn(NAME, found, limits.more_watchers(watchers));
    }
    if limits.has_short_queue(needed) {
        return Check::warn(NAME, found, limits.longer_queue());
    }
    Check::ok(NAME, found)
}

/// `None`: the settings say that nothing is remembered, or there is no place for it.
pub(super) fn cache(health: Option<&CacheHealth>, wanted: bool) -> Check {
    const NAME: &str = "hash cache";
    let Some(CacheHealth { file, bytes, state, unwritable }) = health else {
        return match wanted {
            false => {
                Check::ok(NAME, "not used (scan.cache = false): everything is hashed each time")
            }
            true => Check::warn(
                NAME,
                "there is no place for it: everything is hashed each time",
                "set scan.cache_dir",
            ),
        };
    };
    let (file, size) = (file.display(), ByteSize(*bytes));
    let at_each_scan = "files are hashed again with each scan";
    match state {
        CacheState::Corrupt(why) => Check::warn(
            NAME,
            format!("{file} ({size}) is damaged: {why}"),
            "the next scan sets it aside and hashes everything again, nothing else is lost; if this \
             comes back, check the disk",
        ),
        CacheState::Newer => Check::warn(
            NAME,
            format!("{file} was written by a newer farmhand, and is left alone: {at_each_scan}"),
            "use that one, or another scan.cache_dir",
        ),
        CacheState::Unreadable(why) => Check::warn(
            NAME,
            format!("{file} cannot be read: {why}; {at_each_scan}"),
            "check its permissions, or set another scan.cache_dir",
        ),
        CacheState::New | CacheState::Sound { .. } | CacheState::DamagedRows { .. }
            if unwritable.is_some() =>
        {
            Check::warn(
                NAME,
                format!(
                    "{file} cannot be written to: {}; {at_each_scan}",
                    unwritable.as_deref().unwrap_or_default()
                ),
                "check the permissions there, or set another scan.cache_dir",
            )
        }
        CacheState::New => Check::ok(NAME, format!("{file} is made with the first scan")),
        CacheState::DamagedRows { damaged, rows } => Check::warn(
            NAME,
            format!("{damaged} of {rows} entries of {file} ({size}) are damaged (wrong checksum)"),
            "scans do not use them, and hash these files again; remove all of them with `farmhand cache \
             verify`; if this comes back, check the disk and the memory of this machine",
        ),
        CacheState::Sound { folders, files } => Check::ok(
            NAME,
            format!("{file} ({size}) is sound; it knows {files} files in {folders} folders"),
        ),
    }
}

pub(super) fn space(dir: &Path, space: Space) -> Check {
    const NAME: &str = "free space";
    let found =
        format!("{} are free where the cache is, {}", ByteSize(space.free_bytes), dir.display());
    if space.free_bytes < LITTLE_ROOM_BYTES {
        return Check::warn(NAME, found, "make room, or set another scan.cache_dir");
    }
    Check::ok(NAME, found)
}

/// `None`: as many as one likes.
pub(super) fn open_files(limit: Option<u64>) -> Check {
    const NAME: &str = "open files";
    match limit {
        Some(limit) if limit < FEW_OPEN_FILES => Check::warn(
            NAME,
            format!("{limit} at once"),
            format!(
                "ulimit -n {FEW_OPEN_FILES}, or LimitNOFILE={FEW_OPEN_FILES} in a systemd unit"
            ),
        ),
        Some(limit) => Check::ok(NAME, format!("{limit} at once")),
        None => Check::ok(NAME, "no limit"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use reqwest::StatusCode;

    use super::*;
    use State::{Fail, Ok as Fine, Warn};

    /// Each has a next step unless it is fine, and says this.
    #[track_caller]
    fn is(check: &Check, state: State, says: &[&str]) {
        assert_eq!(check.state, state, "{check:?}");
        assert_eq!(check.next.is_none(), state == Fine, "{check:?}");
        assert!(check.next.as_deref() != Some(""), "{check:?}");
        let text = format!("{} {}", check.found, check.next.as_deref().unwrap_or_default());
        for part in says {
            assert!(text.contains(part), "{text:?} does not say {part:?}");
        }
    }

    const URL: &str = "http://farm:1/";
    const FAR: Exposure = Exposure { is_encrypted: false, is_local: false, has_token: false };

    fn probe(answer: Result<(), ClientError>) -> Probe {
        let took = Duration::from_millis(12);
        Probe { answer, took, clocks: None, software: None, moved_to: None }
    }

    fn text() -> String {
        "reason".into()
    }

    #[test]
    fn every_answer_of_a_server_has_a_state_and_a_next_step() {
        let url = || URL.to_owned();
        let status = |code| ClientError::Status {
            url: url(),
            path: "/x".into(),
            status: StatusCode::from_u16(code).unwrap(),
            message: text(),
        };
        for error in [
            ClientError::Unreachable { url: url(), reason: text(), was_sent: false },
            ClientError::Untrusted { url: url(), reason: text() },
            ClientError::NotShaman { url: url(), reason: text() },
            ClientError::Full { url: url(), message: text() },
            status(400),
            status(404),
            status(409),
            status(500),
            status(503),
        ] {
            let checks = server(URL, &probe(Err(error)), FAR);
            is(&checks[0], Fail, &[URL]);
            assert!(checks.iter().all(|check| check.name != "token"), "{checks:?}");
        }
        for has_token in [true, false] {
            let refused = ClientError::Refused { url: url(), message: text() };
            let checks = server(URL, &probe(Err(refused)), Exposure { has_token, ..FAR });
            is(&checks[0], Fine, &["is there"]);
            assert_eq!(checks[1].name, "token");
            is(&checks[1], Fail, &["FARMHAND_TOKEN"]);
        }
        let well = Probe { software: Some("Farm 3".into()), ..probe(Ok(())) };
        is(&server(URL, &well, FAR)[0], Fine, &["Farm 3", "12 ms"]);
        let moved = Probe { moved_to: Some("http://new/".into()), ..well };
        is(&server(URL, &moved, FAR)[0], Warn, &["http://new/"]);
    }

    #[test]
    fn clocks_count_as_apart_only_if_they_certainly_are() {
        for (ahead_ms, unsure_ms, state, says) in [
            (0, 500, Fine, "within 1 s"),
            (-60_000, 500, Fine, "within 61 s"),
            (60_500, 500, Fine, "within 61 s"),
            (60_501, 500, Warn, "61 s ahead of"),
            (-60_501, 500, Warn, "61 s behind"),
            (65_000, 5_500, Fine, "within 71 s"),
            (3_600_000, 520, Warn, "3600 s ahead of"),
        ] {
            is(&clock(URL, Clocks { ahead_ms, unsure_ms }), state, &[says]);
        }
    }

    #[test]
    fn a_token_in_plain_view_is_warned_about() {
        for (is_encrypted, is_local, has_token, state) in [
            (true, false, true, Fine),
            (true, true, false, Fine),
            (false, true, true, Fine),
            (false, false, false, Fine),
            (false, false, true, Warn),
        ] {
            let exposure = Exposure { is_encrypted, is_local, has_token };
            is(&encryption(URL, exposure), state, &[URL]);
        }
    }

    fn system(is_remote: bool, has_stable_inodes: bool) -> FileSystem {
        FileSystem { name: "somefs".into(), is_remote, has_stable_inodes, is_memory: false }
    }

    fn well_kept() -> StoreFacts {
        StoreFacts {
            dir: "/store".into(),
            family: OsFamily::Unix,
            exists: true,
            is_dir: true,
            unwritable: None,
            system: Some(system(false, true)),
            space: Some(Space { total_bytes: 100 << 30, free_bytes: 50 << 30 }),
            reserve_bytes: 10 << 30,
            holder: None,
            link_mode: Some(("symlink".into(), Ok(()))),
        }
    }

    #[test]
    fn a_store_is_judged_by_its_place_room_holder_and_links() {
        let states = |facts: &StoreFacts| -> Vec<State> {
            store(facts)
                .iter()
                .inspect(|check| is(check, check.state, &[]))
                .map(|check| check.state)
                .collect()
        };
        let free = |bytes| Some(Space { total_bytes: 100 << 30, free_bytes: bytes });
        for (facts, expected) in [
            (well_kept(), vec![Fine, Fine, Fine]),
            (StoreFacts { space: None, link_mode: None, ..well_kept() }, vec![Fine]),
            (StoreFacts { is_dir: false, ..well_kept() }, vec![Fail]),
            (StoreFacts { family: OsFamily::Windows, ..well_kept() }, vec![Fail]),
            (StoreFacts { unwritable: Some(text()), ..well_kept() }, vec![Fail]),
            (StoreFacts { holder: Some("pid 7".into()), ..well_kept() }, vec![Warn, Fine, Fine]),
            (StoreFacts { exists: false, ..well_kept() }, vec![Warn, Fine, Fine]),
            (StoreFacts { space: free(10 << 30), ..well_kept() }, vec![Fine, Fail, Fine]),
            (StoreFacts { space: free((10 << 30) + 1), ..well_kept() }, vec![Fine, Warn, Fine]),
            (StoreFacts { space: free(11 << 30), ..well_kept() }, vec![Fine, Fine, Fine]),
            (
                StoreFacts { link_mode: Some(("copy".into(), Err(text()))), ..well_kept() },
                vec![Fine, Fine, Fail],
            ),
        ] {
            assert_eq!(states(&facts), expected, "{facts:?}");
        }
        let remote = StoreFacts { system: Some(system(true, false)), ..well_kept() };
        is(&store(&remote)[0], Fine, &["somefs, a network disk"]);
    }

    fn folder_of(look: Look) -> FolderFacts {
        FolderFacts { dir: "/p".into(), named: true, look }
    }

    fn watched(directories: u64) -> FolderFacts {
        let system = Some(system(false, true));
        let directories = Some(directories);
        folder_of(Look::Folder { system, polls: false, silent: None, directories })
    }

    #[test]
    fn a_folder_is_judged_by_what_it_is_and_what_its_disk_allows() {
        let on = |is_remote, stable, polls, directories| {
            let system = Some(system(is_remote, stable));
            let silent = is_remote
                .then(|| SilentFileSystem { point: "/p/net".into(), file_system: "nfs".into() });
            folder_of(Look::Folder { system, polls, silent, directories })
        };
        let broken = Look::Folder { system: None, polls: false, silent: None, directories: None };
        let configured = FolderFacts { named: false, ..folder_of(Look::Missing) };
        for (facts, state, says) in [
            (folder_of(Look::Missing), Fail, "/p does not exist"),
            (configured, Warn, "waits for it"),
            (folder_of(Look::NoFolder), Fail, "/p is no folder"),
            (folder_of(Look::Unreadable(text())), Fail, "reason"),
            (folder_of(broken), Warn, "does not answer"),
            (on(false, true, false, Some(7)), Fine, "heard of, in 7 directories"),
            (on(false, true, false, Some(1)), Fine, "in one directory"),
            (on(false, true, false, Some(MANY_DIRECTORIES)), Fine, "directories or more"),
            (on(false, true, true, None), Fine, "polling (watch.mode)"),
            (on(false, false, false, None), Fine, "inode numbers are made up"),
            (on(true, true, false, None), Fine, "found by polling: /p/net is on nfs"),
        ] {
            is(&folder(&facts), state, &[says]);
        }
    }

    #[test]
    fn limits_are_held_against_what_all_folders_need_together() {
        let limits =
            WatchLimits { max_user_watches: 8192, max_user_instances: 8, max_queued_events: 4096 };
        let advice = "sudo sysctl fs.inotify.max_user_watches=524288";
        is(&watch_limits(&limits, &[]), Fine, &["8192 directories"]);
        is(&watch_limits(&limits, &[watched(4096)]), Fine, &["4096 directories and 1 watchers"]);
        is(&watch_limits(&limits, &[watched(4096), watched(1)]), Warn, &[advice, "/etc/sysctl.d/"]);
        let polled = folder_of(Look::Folder {
            system: Some(system(true, true)),
            polls: false,
            silent: None,
            directories: None,
        });
        is(&watch_limits(&limits, &[watched(4096), polled]), Fine, &[]);
        // The queue that Linux has by default is long enough for any folder.
        let many = WatchLimits { max_user_watches: 1 << 20, max_queued_events: 16_384, ..limits };
        is(&watch_limits(&many, &[watched(125_000)]), Fine, &["16384 events"]);
        let short = WatchLimits { max_queued_events: 4096, ..many };
        let advice = "sudo sysctl fs.inotify.max_queued_events=16384";
        is(&watch_limits(&short, &[watched(4096)]), Fine, &["4096 events"]);
        is(&watch_limits(&short, &[watched(4097)]), Warn, &[advice]);
        let many: Vec<_> = (0..5).map(|_| watched(1)).collect();
        is(&watch_limits(&limits, &many[..4]), Fine, &[]);
        is(&watch_limits(&limits, &many), Warn, &["fs.inotify.max_user_instances=1024"]);
    }

    #[test]
    fn the_cache_costs_time_at_worst() {
        let health = |state, unwritable: Option<&str>| CacheHealth {
            file: "/c/h".into(),
            bytes: 1 << 20,
            state,
            unwritable: unwritable.map(str::to_owned),
        };
        let sound = CacheState::Sound { folders: 2, files: 3 };
        for (health, state, says) in [
            (health(sound.clone(), None), Fine, "3 files in 2 folders"),
            (health(sound, Some("no")), Warn, "cannot be written to: no"),
            (health(CacheState::New, None), Fine, "first scan"),
            (health(CacheState::New, Some("no")), Warn, "cannot be written to: no"),
            (health(CacheState::Corrupt(text()), None), Warn, "sets it aside"),
            (health(CacheState::Newer, None), Warn, "newer farmhand"),
            (
                health(CacheState::DamagedRows { damaged: 2, rows: 9 }, None),
                Warn,
                "2 of 9 entries of /c/h (1.0 MiB) are damaged",
            ),
            (health(CacheState::Unreadable(text()), None), Warn, "cannot be read"),
        ] {
            is(&cache(Some(&health), true), state, &[says]);
        }
        is(&cache(None, false), Fine, &["scan.cache = false"]);
        is(&cache(None, true), Warn, &["scan.cache_dir"]);
    }

    #[test]
    fn room_and_open_files_have_a_least_number() {
        let of = |free_bytes| Space { total_bytes: 1 << 40, free_bytes };
        is(&space(Path::new("/c"), of(LITTLE_ROOM_BYTES)), Fine, &["256.0 MiB"]);
        is(&space(Path::new("/c"), of(LITTLE_ROOM_BYTES - 1)), Warn, &[]);
        is(&open_files(Some(1024)), Fine, &["1024"]);
        is(&open_files(Some(1023)), Warn, &["ulimit -n 1024"]);
        is(&open_files(None), Fine, &[]);
    }

    #[test]
    fn the_configuration_is_named() {
        let (file, usual) = (Path::new("/f"), Path::new("/usual"));
        is(&configuration(Some(file), Some(usual)), Fine, &["/f"]);
        is(&configuration(None, Some(usual)), Fine, &["no file at /usual"]);
        is(&configuration(None, None), Fine, &["no file"]);
        is(&no_server(file), Warn, &["/f"]);
        is(&no_client("why"), Fail, &["why"]);
    }
}
