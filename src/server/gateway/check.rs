//! The proof that the Manager and this server use one storage directory.
//!
//! Equal paths prove nothing: they may be on two machines, in two containers, or on two mounts. So
//! this server makes a directory of a random name below its `jobs/`, and the Manager is asked
//! whether it could use it under its own path. The same question about names that never existed is
//! the control: a Manager that says yes to everything proves nothing either.

use std::{path::Path, sync::Arc, time::Duration};

use axum::http::{HeaderMap, Method, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    super::{ApiError, App, farm::beside},
    manager::Gateway,
    paths::JobPaths,
    storage::{CheckoutPaths, Comparison, ManagerStorage},
};
use crate::{
    disk::{DiskError, OpenDir},
    domain::CheckoutPath,
    exec::Exec,
    store,
};

const CONFIGURATION: &str = "/api/v3/configuration";

const CHECK: &str = "/api/v3/configuration/check/shared-storage";

/// How long one comparison may take: the Manager may have to ask a network disk.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// The pause between two comparisons while there is no proof; it doubles up to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The pause while there is one: mounts and configurations change.
const RECHECK: Duration = Duration::from_secs(600);

/// How much of the Manager's own words is quoted.
const MAX_CAUSE_CHARS: usize = 200;

/// The least pause between two checks by the timer, however often the Manager goes and returns.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    storage_location: String,
    #[serde(default)]
    shaman_enabled: bool,
}

#[derive(Deserialize)]
struct Variable {
    value: String,
}

#[derive(Serialize)]
struct PathCheck {
    path: String,
}

/// The Manager's word on a directory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct PathCheckResult {
    is_usable: bool,
    #[serde(default)]
    cause: Option<String>,
}

impl PathCheckResult {
    /// The same without the name of the directory, so that answers can be compared.
    fn without(self, name: &str) -> Self {
        Self { cause: self.cause.map(|cause| cause.replace(name, "")), ..self }
    }
}

/// The Manager's view of a directory that exists here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    /// It sees the directory.
    Seen,
    /// It does not.
    NotSeen,
    /// It says the same of directories that do not exist, and that it could use them.
    Unclear,
}

/// Where the Manager sees a directory of this storage.
enum Found {
    /// In its own directory of checkouts, to which this path leads from `{jobs}`.
    Seen { checkouts: String, jobs_prefix: &'static str },
    /// Nowhere, for a cause in its own words.
    Nowhere { cause: String },
    /// It is content with every directory here.
    Unclear { checkouts: String },
}

/// Compares the answer about the directory with those about two that never existed.
fn view(present: &PathCheckResult, absent: &[PathCheckResult; 2]) -> View {
    let [one, other] = absent;
    // Causes that differ by themselves say nothing.
    let differs = if one == other {
        present != one
    } else {
        one.is_usable == other.is_usable && present.is_usable != one.is_usable
    };
    match () {
        () if differs => View::Seen,
        () if one.is_usable || other.is_usable => View::Unclear,
        () => View::NotSeen,
    }
}

/// A directory of a random name, and two names that no directory has. Dropped, none of them exists;
/// after a kill, the next start removes what is left.
struct ProbeDir {
    dir: OpenDir,
    name: String,
    absent: [String; 2],
}

impl ProbeDir {
    /// `dir` is where checkouts are built: no list, no garbage collection and no checkout name
    /// reaches into it.
    fn create(dir: OpenDir) -> Result<Self, DiskError> {
        let name = || format!("probe-{:032x}", fastrand::u128(..));
        let probe = Self { dir, name: name(), absent: [name(), name()] };
        probe.dir.create_dir(&probe.name)?;
        Ok(probe)
    }

    /// Whether the Manager has made a directory of a name that should have none.
    fn absent_exists(&self) -> bool {
        self.absent.iter().any(|name| self.dir.stat(name).is_ok())
    }
}

impl Drop for ProbeDir {
    fn drop(&mut self) {
        for name in [&self.name].into_iter().chain(&self.absent) {
            // The Manager may have left its own test file in it.
            if let Err(error) = self.dir.remove_all(name) {
                tracing::warn!(
                    "{error}: {}; the next start of the server removes it",
                    error.source
                );
            }
        }
    }
}

/// The directories in which the Manager should find the checkouts of a storage that is its own,
/// each with the path from its `{jobs}` to it.
fn candidates(manager: &ManagerStorage, jobs: Option<&str>) -> [(String, &'static str); 2] {
    let root = manager.location.trim_end_matches(['/', '\\']);
    let root = if root.is_empty() { "/" } else { root };
    let below = beside(root, "jobs");
    let is = |path: &str, other: &str| {
        let plain = |path: &str| path.replace('\\', "/").trim_end_matches('/').to_owned();
        plain(path) == plain(other)
    };
    match jobs {
        // The Manager says itself where `{jobs}` leads.
        Some(jobs) if is(jobs, root) => [(below, "jobs/"), (root.to_owned(), "")],
        Some(jobs) if is(jobs, &below) => [(beside(&below, "jobs"), "jobs/"), (below, "")],
        // It does not: with its Shaman enabled `{jobs}` is the directory of checkouts, else the
        // storage. The location that it calls its own may be either of them.
        _ if manager.shaman_enabled => [(below, ""), (root.to_owned(), "")],
        _ => [(below, "jobs/"), (root.to_owned(), "")],
    }
}

impl Gateway {
    /// Compares the Manager's storage with the one in this directory. That must have been opened
    /// before; a directory is made in it and removed.
    pub async fn compare_storage(&self, dir: &Path, exec: &Exec) -> Comparison {
        match tokio::time::timeout(CHECK_TIMEOUT, self.compare(dir, exec)).await {
            Ok(comparison) => comparison,
            Err(_) => {
                let why = format!("it did not answer within {} s", CHECK_TIMEOUT.as_secs());
                self.unknown(dir, None, &why)
            }
        }
    }

    fn unknown(&self, dir: &Path, manager: Option<ManagerStorage>, why: &str) -> Comparison {
        let reason = format!(
            "it is not known whether the Manager at {} uses this server's storage {}: {why}",
            self.shown(),
            dir.display()
        );
        Comparison::Unknown { manager, reason }
    }

    async fn compare(&self, dir: &Path, exec: &Exec) -> Comparison {
        let configuration = self.own(Method::GET, CONFIGURATION, None).await;
        let Configuration { storage_location, shaman_enabled } = match configuration {
            Ok(configuration) => configuration,
            Err(why) => return self.unknown(dir, None, &why),
        };
        let manager = ManagerStorage { location: storage_location, shaman_enabled };
        if manager.location.is_empty() {
            let why = "it has no shared storage yet; complete its setup";
            return self.unknown(dir, Some(manager), why);
        }
        match self.search(&manager, dir, exec).await {
            Ok(Found::Seen { checkouts, jobs_prefix }) => {
                Comparison::Same { manager, checkouts, jobs_prefix }
            }
            Ok(Found::Nowhere { cause }) => {
                let reason = self.difference(&manager.location, dir, &cause);
                Comparison::Different { manager, reason }
            }
            Ok(Found::Unclear { checkouts }) => {
                let why = format!("it calls directories in {checkouts} usable that do not exist");
                self.unknown(dir, Some(manager), &why)
            }
            Err(why) => self.unknown(dir, Some(manager), &why),
        }
    }

    fn difference(&self, location: &str, dir: &Path, cause: &str) -> String {
        let own = dir.display().to_string();
        let hint = if location.trim_end_matches('/') == own {
            ": the paths are equal, but lead to two directories (another machine, container or mount?)"
        } else {
            ""
        };
        let cause: String = cause.chars().take(MAX_CAUSE_CHARS).collect();
        format!(
            "the Manager at {} uses another storage: its own is {location}, this server's is {own}, \
             and it does not see a directory that this server made in {own}/jobs ({cause:?}){hint}",
            self.shown()
        )
    }

    /// Where the Manager sees a directory made in this storage; `Err`: it gives no answer.
    async fn search(
        &self,
        manager: &ManagerStorage,
        dir: &Path,
        exec: &Exec,
    ) -> Result<Found, String> {
        let jobs = self.jobs_variable(manager).await;
        let storage = dir.to_owned();
        let probe =
            exec.blocking(move || store::building_dir(&storage).and_then(ProbeDir::create)).await;
        let probe = Arc::new(probe.map_err(|error| format!("{error}: {}", error.source))?);
        let building = probe.dir.path().file_name().unwrap_or_default();
        let place = building.to_string_lossy().into_owned();
        let mut found = None;
        for (checkouts, jobs_prefix) in candidates(manager, jobs.as_deref()) {
            let at = beside(&checkouts, &place);
            let present = self.check(&at, &probe.name).await?;
            let absent = [
                self.check(&at, &probe.absent[0]).await?,
                self.check(&at, &probe.absent[1]).await?,
            ];
            let looking = probe.clone();
            // A Manager that makes missing directories has made them here: it is the same place.
            let made = exec.blocking(move || looking.absent_exists()).await;
            match if made { View::Seen } else { view(&present, &absent) } {
                View::Seen => return Ok(Found::Seen { checkouts, jobs_prefix }),
                View::Unclear => found = Some(Found::Unclear { checkouts }),
                View::NotSeen if found.is_none() => {
                    found = Some(Found::Nowhere { cause: present.cause.unwrap_or_default() });
                }
                View::NotSeen => {}
            }
        }
        Ok(found.expect("BUG: there are candidates"))
    }

    async fn check(&self, dir: &str, name: &str) -> Result<PathCheckResult, String> {
        let question = PathCheck { path: beside(dir, name) };
        let question = serde_json::to_vec(&question).expect("BUG: a text is JSON");
        let result: PathCheckResult = self.own(Method::POST, CHECK, Some(question)).await?;
        Ok(result.without(name))
    }

    /// The directory that `{jobs}` stands for, if the Manager lists it among its variables.
    async fn jobs_variable(&self, manager: &ManagerStorage) -> Option<String> {
        let platform = if manager.location.starts_with('/') { "linux" } else { "windows" };
        let target = format!("{CONFIGURATION}/variables/workers/{platform}");
        let variables: std::collections::HashMap<String, serde_json::Value> =
            self.own(Method::GET, &target, None).await.ok()?;
        Variable::deserialize(variables.get("jobs")?).ok().map(|variable| variable.value)
    }

    /// A question of this server's own.
    async fn own<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, String> {
        let mut headers = HeaderMap::new();
        self.sign(&mut headers);
        self.ask(method, target, headers, body).await
    }

    /// The latest comparison, made anew if a check is due or `wanted` says so.
    pub(super) async fn comparison(
        &self,
        app: &App,
        wanted: impl Fn(&Comparison) -> bool,
    ) -> Comparison {
        let state = self.storage();
        let asked = Instant::now();
        let is_needed = || state.is_due() || wanted(&state.get());
        if !is_needed() {
            return state.get();
        }
        let _one = state.checking.lock().await;
        // Another check may have ended since this was called.
        if state.checked_at().is_some_and(|checked| checked >= asked) || !is_needed() {
            return state.get();
        }
        state.begin();
        let found = self.compare_storage(app.store.dir(), &app.exec).await;
        if let Some(news) = state.finish(found) {
            self.report(&news);
        }
        state.get()
    }

    /// The meaning of the paths in jobs.
    pub(super) async fn job_paths(&self, app: &App) -> JobPaths {
        let is_unknown = |latest: &Comparison| matches!(latest, Comparison::Unknown { .. });
        let comparison = self.comparison(app, is_unknown).await;
        JobPaths::new(&app.store.checkouts_dir().to_string_lossy(), &comparison)
    }

    /// The checkout that a client names as `checkout/create` has answered it, if that is not its plain name.
    pub(in super::super) async fn answered_checkout(
        &self,
        app: &App,
        name: &str,
    ) -> Option<CheckoutPath> {
        self.job_paths(app).await.answered(name)
    }

    /// How the paths of checkouts begin in answers to clients; the error is for them.
    ///
    /// Without a proof that the Manager uses this storage, none is made: its job would be taken,
    /// and each of its tasks fail. A Manager that is away revokes no proof; without an earlier one
    /// nothing is lost by waiting, as no job can be submitted either.
    pub(in super::super) async fn checkout_prefix(&self, app: &App) -> Result<String, ApiError> {
        if self.checkout_paths() == CheckoutPaths::Absolute {
            let dir = app.store.checkouts_dir();
            let dir = dir.to_str().ok_or_else(|| {
                let message = format!(
                    "no client can name the storage {}: its path is not UTF-8",
                    app.store.dir().display()
                );
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
            })?;
            return Ok(format!("{dir}/"));
        }
        let found = self.comparison(app, |latest| !latest.is_same()).await;
        let status = match &found {
            Comparison::Same { jobs_prefix, .. } => return Ok((*jobs_prefix).to_owned()),
            // To try again does not help: clients must not.
            Comparison::Different { .. } => StatusCode::PRECONDITION_FAILED,
            Comparison::Unknown { .. } => StatusCode::SERVICE_UNAVAILABLE,
        };
        let (reason, next) = found.objection().unwrap_or_default();
        Err(ApiError::new(status, format!("no checkout is made: {reason}; {next}")))
    }

    /// Why checkouts are not made now, as far as that is known.
    pub(in super::super) fn objection(&self) -> Option<String> {
        match self.checkout_paths() {
            CheckoutPaths::Absolute => None,
            CheckoutPaths::Relative => {
                let latest = self.storage().get();
                latest.objection().map(|(reason, next)| format!("{reason}; {next}"))
            }
        }
    }

    fn report(&self, news: &Comparison) {
        let is_absolute = self.checkout_paths() == CheckoutPaths::Absolute;
        match news {
            Comparison::Same { manager, checkouts, .. } => {
                tracing::info!(
                    checkouts,
                    shaman_enabled = manager.shaman_enabled,
                    "the Manager at {} uses this server's storage",
                    self.shown()
                );
                if !manager.shaman_enabled {
                    tracing::warn!(
                        "Shaman is disabled in the Manager: this server says that it is enabled, \
                         names checkouts as jobs from there can find them, and erases them with \
                         their jobs"
                    );
                }
            }
            Comparison::Different { reason, .. } if is_absolute => tracing::warn!(
                "{reason}; checkouts have absolute paths (serve.checkout_paths), which every worker \
                 must find"
            ),
            Comparison::Different { .. } => {
                let (reason, next) = news.objection().unwrap_or_default();
                tracing::error!("no checkouts are made: {reason}; {next}");
            }
            Comparison::Unknown { reason, .. } if is_absolute => tracing::warn!("{reason}"),
            Comparison::Unknown { .. } => {
                let (reason, next) = news.objection().unwrap_or_default();
                tracing::warn!("no checkouts are made before this is known: {reason}; {next}");
            }
        }
    }

    /// Compares at the start, whenever the Manager returns, and now and then.
    pub(in super::super) async fn watch_storage(&self, app: &App) {
        self.greet().await;
        let mut pause = RETRY.0;
        loop {
            let found = self.comparison(app, |_| true).await;
            pause = if found.is_same() { RECHECK } else { (2 * pause).min(RETRY.1) };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.storage().wake.notified() => {
                    tokio::time::sleep(LEAST_PAUSE).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(is_usable: bool, cause: &str) -> PathCheckResult {
        PathCheckResult { is_usable, cause: Some(cause.into()) }
    }

    #[test]
    fn only_a_different_answer_is_proof() {
        let missing = || says(false, "does not exist");
        let controls = [missing(), missing()];
        assert_eq!(view(&says(true, "fine"), &controls), View::Seen);
        assert_eq!(view(&says(false, "cannot create a file"), &controls), View::Seen);
        assert_eq!(view(&missing(), &controls), View::NotSeen);
        // A cause that differs each time.
        let controls = [says(false, "request 1"), says(false, "request 2")];
        assert_eq!(view(&says(false, "request 3"), &controls), View::NotSeen);
        assert_eq!(view(&says(true, "request 3"), &controls), View::Seen);
        // A Manager that is content with everything.
        assert_eq!(view(&says(true, ""), &[says(true, ""), says(true, "")]), View::Unclear);
        assert_eq!(view(&says(true, "3"), &[says(true, "1"), says(true, "2")]), View::Unclear);
        assert_eq!(view(&says(true, "3"), &[says(true, "1"), says(false, "2")]), View::Unclear);
        assert_eq!(view(&says(true, "3"), &[says(false, "1"), says(true, "2")]), View::Unclear);
    }

    #[test]
    fn checkouts_are_sought_where_jobs_leads() {
        let sought = |location: &str, shaman_enabled, jobs: Option<&str>| {
            let manager = ManagerStorage { location: location.into(), shaman_enabled };
            candidates(&manager, jobs).map(|(dir, prefix)| format!("{dir} {prefix}"))
        };
        assert_eq!(sought("/farm/", true, None), ["/farm/jobs ", "/farm "]);
        assert_eq!(sought("/farm", false, None), ["/farm/jobs jobs/", "/farm "]);
        assert_eq!(sought("/farm", true, Some("/farm")), ["/farm/jobs jobs/", "/farm "]);
        let below = ["/farm/jobs/jobs jobs/", "/farm/jobs "];
        assert_eq!(sought("/farm", false, Some("/farm/jobs")), below);
        assert_eq!(sought("/farm", true, Some("/elsewhere")), ["/farm/jobs ", "/farm "]);
        let windows = [r"F:\farm\jobs jobs/", r"F:\farm "];
        assert_eq!(sought(r"F:\farm", true, Some("F:/farm")), windows);
        assert_eq!(sought("/", false, None), ["/jobs jobs/", "/ "]);
    }

    #[test]
    fn a_probe_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let probe = ProbeDir::create(OpenDir::open(dir.path().to_owned()).unwrap()).unwrap();
        assert!(dir.path().join(&probe.name).is_dir() && !probe.absent_exists());
        std::fs::write(dir.path().join(&probe.name).join("managers.txt"), "").unwrap();
        std::fs::create_dir(dir.path().join(&probe.absent[1])).unwrap();
        assert!(probe.absent_exists());
        drop(probe);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
