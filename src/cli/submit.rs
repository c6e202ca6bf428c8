//! `farmhand submit FILE`: sync, checkout, job.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytesize::ByteSize;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::Map;

use super::{
    Context,
    apart::{require_apart, require_no_store},
    checkout::Counts,
    exit::{Exit, Failure, next_step, with_causes},
    hash::escaped,
    needed::{named, needed},
    print, print_json,
    references::{References, require_none_ignored, require_none_outside},
    root::Place,
    session::{ScanArgs, ServerArgs, Session, interrupted, report_skipped},
    settings::{Overrides, When, parse_time},
};
use crate::{
    agent,
    client::{
        ClientError, EraseRequest, FarmStatus, FoundType, RemoteJob, RemoteStatus, Shaman, Version,
        is_refusal,
    },
    domain::{CheckoutPath, RelPath},
    jobs::{JOBS_VARIABLE, JobStatus, JobType, Platform, Storage, SubmittedJob},
    scan::{Scan, SkipReason, Skipped},
    wire::hide_tokens,
};

/// The setting of a job type that names the file.
const BLENDFILE: &str = "blendfile";

/// What stands for it before there is a checkout.
const NO_BLENDFILE_YET: &str = "dummy-for-job-check.blend";

/// How often a job that is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// While a job is queued, one poll in so many also asks whether the server runs jobs at all.
const POLLS_PER_STATUS: usize = 5;

/// How long the server may be away meanwhile.
const AWAY: Duration = Duration::from_secs(600);

/// Send a project and submit a job for a file of it
///
/// Prints the job's id. The job type's settings are checked before anything is sent, here and by the server;
/// then what is missing is sent, a checkout made, and the job submitted. The server is a Flamenco Manager, or
/// a farmhand that serves.
///
/// All files of the project are sent. The project is the folder --root, or the nearest one above the file
/// that has .blender_project or .farmhand.toml in it; without either, nothing is sent, and the folders that
/// it may be are shown. A .blend that refers to files outside of the project is refused.
#[derive(Debug, Args)]
pub(super) struct Submit {
    /// The file, usually a .blend
    file: PathBuf,

    /// The folder of the project, which is sent [default: the nearest one above the file that has
    /// .blender_project or .farmhand.toml in it]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,

    /// Send what the file uses and not the whole folder; asks Blender Asset Tracer (`bat`)
    #[arg(long)]
    only_needed: bool,

    /// Submit also if the file refers to files outside of the project, which are not sent: workers must find
    /// them by themselves
    #[arg(long)]
    allow_outside: bool,

    /// Check everything, say what would be sent and submitted, and do neither
    #[arg(long)]
    dry_run: bool,

    /// Wait until the job has ended: exit code 0 if it is completed, 1 if it has failed or was canceled. An
    /// error (exit code 2) if nothing runs jobs on the server
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,

    /// How long to wait for its end at most (exit code 8), like 12h; the job goes on [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = parse_time, requires = "wait")]
    wait_timeout: Option<Duration>,

    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    scan: ScanArgs,
}

/// What is said of the job.
#[derive(Debug, Args)]
#[command(next_help_heading = "Job")]
struct JobArgs {
    /// The job type [default: simple-blender-render]
    #[arg(long = "type", value_name = "NAME")]
    job_type: Option<String>,

    /// A setting of the job type, like frames=1-24; can be given more than once
    #[arg(long = "setting", short = 's', value_name = "KEY=VALUE")]
    settings: Vec<String>,

    /// What to call it [default: the file's name]
    #[arg(long)]
    name: Option<String>,

    /// From 0 to 100; higher goes first
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(0..=100))]
    priority: i64,

    /// Have it done by the workers with this tag alone: its name or id
    #[arg(long)]
    tag: Option<String>,

    /// Have it wait until somebody starts it
    #[arg(long)]
    paused: bool,

    /// Something else to be known of it; can be given more than once
    #[arg(long, value_name = "KEY=VALUE")]
    metadata: Vec<String>,

    /// What to call the checkout; if that is taken, the server adds to it [default: the job's name and
    /// the time]
    #[arg(long = "as", value_name = "PATH")]
    checkout: Option<String>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    schema: &'static str,
    job_id: &'a str,
    job_url: &'a str,
    status: RemoteStatus,
    checkout_path: &'a str,
    root: &'a Path,
    server: &'a str,
    #[serde(flatten)]
    counts: Counts<'a>,
}

/// What `--json` prints with `--dry-run`.
#[derive(Serialize)]
struct DryAnswer<'a> {
    schema: &'static str,
    job: &'a SubmittedJob,
    root: &'a Path,
    server: &'a str,
    files: usize,
    bytes: u64,
    missing_files: usize,
    missing_bytes: u64,
}

impl Submit {
    pub fn overrides(&self, overrides: &mut Overrides) {
        self.server.overrides(overrides);
        self.scan.overrides(overrides);
        overrides.set("submit.job_type", "--type", self.job.job_type.as_ref());
    }

    pub async fn run(&self, context: &Context) -> Result<Exit, Failure> {
        let start = Instant::now();
        let place = Place::find(&self.file, self.root.as_deref())?;
        let name = match &self.job.name {
            Some(name) if name.trim().is_empty() => {
                return Err(Failure::new(Exit::Usage, "--name is empty; give the job a name"));
            }
            Some(name) => name.clone(),
            None => place.file.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        };
        let wish = match &self.job.checkout {
            Some(text) => text.parse().map_err(|error| {
                Failure::new(Exit::Usage, format!("--as: {error}; choose another name"))
            })?,
            None => named_after(&name),
        };
        let metadata = self.job.metadata()?;
        self.job.check_settings()?;
        require_manager(context)?;
        require_apart(&context.settings, std::slice::from_ref(&place.root))?;
        let server = hide_tokens(context.settings.server().unwrap_or_default());
        let (mut submitted, mut runs_jobs) = (None, None);
        let mut exit = Session::run(context, async |session| {
            let references = self.references(session, &place).await?;
            let mut planned =
                Planned::new(&session.client, context, self, &place, name, metadata).await?;
            self.require_runner(&planned)?;
            runs_jobs = planned.status;
            planned.check(&session.client).await?;
            let scan = self.scan(context, session, &place).await?;
            if let Some(references) = references {
                references.require_sent(&place, &scan)?;
            }
            if !context.logs.quiet {
                let bytes = ByteSize::b(bytes_of(&scan));
                let root = escaped(&place.root.display().to_string());
                let noun = if scan.files.len() == 1 { "file" } else { "files" };
                eprintln!("{root}: {} {noun}, {bytes}, to {server}", scan.files.len());
            }
            if self.dry_run {
                return self.tell(context, session, &place, scan, &planned, &server).await;
            }
            let (checkout, report) = agent::create_checkout(
                &mut session.client,
                scan,
                session.scans.scanner.clone(),
                session.scans.progress.clone(),
                context.settings.sync_options(),
                &wish,
            )
            .await?;
            let job = planned.submit(&session.client, &checkout, &place.path).await?;
            let exit = report_skipped(&report.skipped);
            let url = session.client.job_address(&job.id, &planned.version);
            submitted = Some((session.client.clone(), job, url, checkout, report));
            Ok(exit)
        })
        .await?;
        let Some((client, job, url, checkout, report)) = submitted else { return Ok(exit) };
        let counts = Counts::new(&report, start);
        if !context.json {
            print(&escaped(&job.id))?;
        }
        if !context.logs.quiet {
            eprintln!("{}", escaped(&url));
        }
        let mut status = job.status.clone();
        if self.wait {
            let limit = self.wait_timeout.unwrap_or(Duration::MAX);
            status = tokio::select! {
                status = tokio::time::timeout(limit, follow(context, &client, &job, runs_jobs)) => match status {
                    Ok(status) => status?,
                    Err(_) => return Err(waited_in_vain(&job, limit)),
                },
                () = interrupted() => {
                    let message =
                        format!("interrupted; the job goes on: see `farmhand job show {}`", job.id);
                    return Err(Failure::new(Exit::Interrupted, message));
                }
            };
            if status != JobStatus::Completed {
                exit = Exit::Failed;
            }
        }
        if context.json {
            print_json(&Answer {
                schema: "farmhand.submit/1",
                job_id: &job.id,
                job_url: &url,
                status,
                checkout_path: &checkout,
                root: &place.root,
                server: &server,
                counts,
            })?;
        }
        Ok(exit)
    }

    /// What the file refers to, all of it in the project. With --only-needed, Blender Asset Tracer says that.
    async fn references(
        &self,
        session: &Session,
        place: &Place,
    ) -> Result<Option<References>, Failure> {
        if self.only_needed {
            return Ok(None);
        }
        let asked = place.clone();
        let found = session.scans.blocking(move |stop| References::of(&asked, stop)).await;
        let references = found.ok_or_else(Failure::interrupted)?;
        references.require_inside(place, self.allow_outside)?;
        Ok(Some(references))
    }

    /// Tells if nothing runs jobs on the server; there is no point in waiting for one then.
    fn require_runner(&self, planned: &Planned) -> Result<(), Failure> {
        let version = &planned.version;
        match planned.status {
            Some(FarmStatus::Inoperative) if version.is_farmhand() => {
                let message = "no command is configured to run jobs on the server; set jobs.hook there, or start it \
                               with --hook PROGRAM";
                if self.wait {
                    let message =
                        format!("nothing was sent, because --wait would never end: {message}");
                    return Err(Failure::new(Exit::Usage, message));
                }
                tracing::warn!("the job will wait: {message}");
            }
            Some(status) => warn_of(status),
            None => {}
        }
        Ok(())
    }

    /// The files to send.
    async fn scan(
        &self,
        context: &Context,
        session: &Session,
        place: &Place,
    ) -> Result<Scan, Failure> {
        let scan = if self.only_needed {
            self.scan_needed(context, session, place).await?
        } else {
            session.scan(context, &place.root).await?
        };
        if scan.files.iter().any(|file| file.path == place.path) {
            return Ok(scan);
        }
        report_skipped(&scan.skipped);
        let (path, root) = (&place.path, place.root.display());
        let message = format!(
            "{path} is not among the files of {root} that are sent; `farmhand plan {root} --why {path}` says why"
        );
        Err(Failure::new(Exit::Missing, message))
    }

    async fn scan_needed(
        &self,
        context: &Context,
        session: &Session,
        place: &Place,
    ) -> Result<Scan, Failure> {
        let bat = &context.settings.values.submit.bat;
        let mut needed = needed(bat, &place.file, &place.root).await?;
        require_none_outside(&needed.outside, place, self.allow_outside)?;
        needed.files.insert(place.path.clone());
        let missing = std::mem::take(&mut needed.missing);
        if !missing.is_empty() {
            let text = format!("{} needed files are not there: {}", missing.len(), named(&missing));
            if context.settings.values.scan.strict {
                return Err(Failure::new(
                    Exit::Missing,
                    format!("{text}; without --strict, the rest is sent"),
                ));
            }
            tracing::warn!("{text}");
        }
        let options = context.settings.scan_options_for(&place.root);
        let (root, files) = (place.root.clone(), needed.files.clone());
        let mut scan = session
            .scans
            .with_scanner(move |scanner| {
                scanner.set_ignores(options.ignores);
                let mut survey = scanner.survey(&root, false)?;
                survey.retain(|path| files.contains(path));
                survey.skipped.retain(|skipped| {
                    RelPath::from_wire(&skipped.path).is_ok_and(|path| files.contains(&path))
                });
                scanner.finish(survey)
            })
            .await?;
        require_no_store(&scan.root, scan.files.iter().map(|file| &file.path))?;
        for file in &scan.files {
            needed.files.remove(&file.path);
        }
        for skipped in &scan.skipped {
            needed.files.retain(|path| path.as_str() != skipped.path);
        }
        let mut ignored: Vec<PathBuf> =
            needed.files.into_iter().map(|path| path.as_str().into()).collect();
        ignored.sort();
        require_none_ignored(&ignored, place)?;
        scan.skipped.extend(missing.into_iter().map(|path| Skipped {
            path: path.display().to_string(),
            reason: SkipReason::Reported("it is needed, and not there".into()),
        }));
        Ok(scan)
    }

    /// Says what would be done.
    async fn tell(
        &self,
        context: &Context,
        session: &mut Session,
        place: &Place,
        scan: Scan,
        planned: &Planned,
        server: &str,
    ) -> Result<Exit, Failure> {
        let missing = agent::lacking(&mut session.client, &scan.files).await?;
        let missing_bytes = missing.iter().map(|(id, _)| id.size_bytes).sum();
        let bytes = bytes_of(&scan);
        if context.json {
            print_json(&DryAnswer {
                schema: "farmhand.submit.dry-run/1",
                job: &planned.job,
                root: &place.root,
                server,
                files: scan.files.len(),
                bytes,
                missing_files: missing.len(),
                missing_bytes,
            })?;
        } else {
            print(&format!(
                "would send {} of {} files, {} of {}, and submit:",
                missing.len(),
                scan.files.len(),
                ByteSize::b(missing_bytes),
                ByteSize::b(bytes)
            ))?;
            let job = serde_json::to_string_pretty(&planned.job).map_err(|error| {
                Failure::new(Exit::Failed, format!("cannot write the results: {error}"))
            })?;
            print(&job)?;
        }
        Ok(report_skipped(&scan.skipped))
    }
}

impl JobArgs {
    /// What is put in here cannot be given.
    fn check_settings(&self) -> Result<(), Failure> {
        let is_file = |pair: &&String| pair.split('=').next() == Some(BLENDFILE);
        let Some(pair) = self.settings.iter().find(is_file) else { return Ok(()) };
        let message = format!(
            "--setting {pair}: where the file is, is known when its checkout is made; give the file itself \
             to `farmhand submit`, and leave this setting out"
        );
        Err(Failure::new(Exit::Usage, message))
    }

    fn metadata(&self) -> Result<BTreeMap<String, String>, Failure> {
        let pair = |text: &String| match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => {
                let message = format!("--metadata {text}: write KEY=VALUE");
                Err(Failure::new(Exit::Usage, message))
            }
        };
        self.metadata.iter().map(pair).collect()
    }
}

fn bytes_of(scan: &Scan) -> u64 {
    scan.files.iter().map(|file| file.fingerprint.size_bytes).sum()
}

/// Warns if nothing runs jobs now; that may change.
fn warn_of(status: FarmStatus) {
    match status {
        FarmStatus::Inoperative => {
            tracing::warn!(
                "nothing runs jobs on the server now; the job waits until a worker is started"
            );
        }
        FarmStatus::Asleep => {
            tracing::warn!(
                "all workers of the server are asleep; the job waits until one is woken up"
            );
        }
        _ => {}
    }
}

/// A store alone takes no jobs.
pub(super) fn require_manager(context: &Context) -> Result<(), Failure> {
    if context.settings.server().is_some() {
        return Ok(());
    }
    let message =
        "no server to submit to; give a Flamenco Manager, or a farmhand that serves, with --server";
    Err(Failure::new(Exit::Usage, message))
}

fn named_after(name: &str) -> CheckoutPath {
    let time = jiff::Timestamp::now().strftime("-%Y%m%dT%H%M%SZ").to_string();
    CheckoutPath::sanitized(name, &time)
}

/// A job that is ready to be submitted but for its checkout.
struct Planned {
    version: Version,
    /// Whether jobs are worked on, if the server says so.
    status: Option<FarmStatus>,
    job: SubmittedJob,
    /// Settings as they were given.
    given: Vec<String>,
}

impl Planned {
    async fn new(
        client: &Shaman,
        context: &Context,
        command: &Submit,
        place: &Place,
        name: String,
        metadata: BTreeMap<String, String>,
    ) -> Result<Self, Failure> {
        let args = &command.job;
        let kind_name = &context.settings.values.submit.job_type;
        let (version, storage, kind, status) = tokio::join!(
            client.version(),
            client.shared_storage(),
            client.job_type(kind_name),
            client.farm_status()
        );
        // The first says best who is there.
        let version = version?;
        if !storage?.shaman_enabled {
            let message = format!(
                "{} has Shaman storage switched off, and takes no files; have it switched on there",
                version.version
            );
            return Err(Failure::new(Exit::Usage, message));
        }
        let worker_tag = match &args.tag {
            Some(tag) => Some(find_tag(client, tag).await?),
            None => None,
        };
        let mut planned = Self {
            version,
            status,
            job: SubmittedJob {
                name,
                job_type: kind_name.clone(),
                priority: args.priority,
                submitter_platform: Platform::HERE,
                settings: Map::new(),
                metadata,
                type_etag: None,
                initial_status: args.paused.then_some(JobStatus::Paused),
                worker_tag,
                storage: None,
            },
            given: args.settings.clone(),
        };
        planned.settle(kind?)?;
        tracing::debug!(file = %place.path, root = %place.root.display(), "the job is planned");
        Ok(planned)
    }

    /// Settings as this definition of the type wants them.
    fn settle(&mut self, kind: FoundType) -> Result<(), Failure> {
        let usage = |message: String| Failure::new(Exit::Usage, message);
        let kind: JobType = match kind {
            FoundType::Found(kind) => kind,
            FoundType::Unknown(names) if names.is_empty() => {
                return Err(usage(
                    "the server has no job types at all; see its log, and put their definitions there"
                        .into(),
                ));
            }
            FoundType::Unknown(names) => {
                return Err(usage(format!(
                    "the server has no job type {:?}; give one of these as --type: {}",
                    self.job.job_type,
                    names.join(", ")
                )));
            }
        };
        let mut settings = Map::new();
        for pair in &self.given {
            let (key, value) =
                kind.read(pair).map_err(|error| usage(format!("--setting: {error}")))?;
            settings.insert(key, value);
        }
        if kind.setting(BLENDFILE).is_ok() {
            settings.entry(BLENDFILE).or_insert_with(|| NO_BLENDFILE_YET.into());
        }
        kind.complete(&mut settings)
            .map_err(|error| usage(format!("{error}; give them as --setting KEY=VALUE")))?;
        self.job.settings = settings;
        self.job.type_etag = Some(kind.etag).filter(|etag| !etag.is_empty());
        Ok(())
    }

    /// The job type has changed since it was fetched.
    async fn refetch(&mut self, client: &Shaman) -> Result<(), Failure> {
        tracing::warn!(
            "the job type {} has just changed on the server: its settings are checked again",
            self.job.job_type
        );
        let kind = client.job_type(&self.job.job_type).await?;
        self.settle(kind)
    }

    /// Has the server look at it.
    async fn check(&mut self, client: &Shaman) -> Result<(), Failure> {
        let mut checked = client.check_job(&self.job).await;
        if is_stale(&checked) {
            self.refetch(client).await?;
            checked = client.check_job(&self.job).await;
        }
        checked.map_err(|error| refused(error, "; nothing was sent"))
    }

    /// Submits it, with its files in this checkout. If it is refused, the checkout is erased where that is
    /// possible.
    async fn submit(
        &mut self,
        client: &Shaman,
        checkout: &str,
        path: &RelPath,
    ) -> Result<RemoteJob, Failure> {
        let mut submitted = self.submit_once(client, checkout, path).await;
        if is_stale(&submitted) {
            if let Err(failure) = self.refetch(client).await {
                let what = erase(client, checkout).await;
                return Err(Failure::new(failure.exit(), format!("{}{what}", failure.message())));
            }
            submitted = self.submit_once(client, checkout, path).await;
        }
        let error = match submitted {
            Ok(job) => return Ok(job),
            Err(error) => error,
        };
        let may_come = may_still_be_taken(&error);
        let is_certain = !may_come
            && (is_refusal(&error).is_some()
                || matches!(error, ClientError::Refused { .. } | ClientError::Full { .. }));
        if !is_certain {
            // It may have been taken all the same: then it names the checkout, which is ours alone, or a
            // file in it; a gateway may tell the Manager another name of the checkout.
            let file = self.job.settings.get(BLENDFILE);
            let uses = |job: &RemoteJob| {
                let has_file = file.is_some() && job.settings.get(BLENDFILE) == file;
                job.checkout() == Some(checkout) || has_file
            };
            match client.jobs().await {
                Ok(jobs) => {
                    if let Some(job) = jobs.into_iter().find(uses) {
                        tracing::info!(
                            "the job was taken, although the answer did not come: {error}"
                        );
                        return Ok(job);
                    }
                    // Not yet in the list is not refused.
                    if may_come {
                        return Err(unsure(&error, checkout));
                    }
                }
                Err(_) => return Err(unsure(&error, checkout)),
            }
        }
        let what = erase(client, checkout).await;
        Err(refused(error, &what))
    }

    async fn submit_once(
        &mut self,
        client: &Shaman,
        checkout: &str,
        path: &RelPath,
    ) -> Result<RemoteJob, ClientError> {
        if self.job.settings.contains_key(BLENDFILE) {
            // Somebody who is given an absolute path looks there.
            let is_absolute = checkout.starts_with(['/', '\\']) || checkout.get(1..2) == Some(":");
            let file = if is_absolute {
                format!("{checkout}/{path}")
            } else {
                format!("{JOBS_VARIABLE}/{checkout}/{path}")
            };
            self.job.settings.insert(BLENDFILE.into(), file.into());
        }
        self.job.storage = Some(Storage { shaman_checkout_id: Some(checkout.to_owned()) });
        client.submit_job(&self.job).await
    }
}

fn is_stale<T>(result: &Result<T, ClientError>) -> bool {
    let refusal = result.as_ref().err().and_then(is_refusal);
    refusal.is_some_and(|(status, _)| status.as_u16() == 412)
}

/// What the server says about a job that it does not take.
fn refused(error: ClientError, then: &str) -> Failure {
    match is_refusal(&error) {
        Some((_, message)) => {
            Failure::new(Exit::Failed, format!("the server refuses the job: {message}{then}"))
        }
        None => {
            let failure = Failure::from(error);
            Failure::new(failure.exit(), format!("{}{then}", failure.message()))
        }
    }
}

/// Whether a job may have been taken, or may still be, although this is the answer: somebody between here
/// and there gave up waiting, or it is an answer to a job that was taken. A checkout that it would lack
/// must stay.
fn may_still_be_taken(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } | ClientError::NotManager { .. } => true,
        ClientError::Status { status, .. } => status.as_u16() == 408 || error.is_gateway(),
        _ => false,
    }
}

fn unsure(error: &ClientError, checkout: &str) -> Failure {
    // What there is to do is not to run this again.
    let (exit, _) = next_step(error);
    let message = format!(
        "{}; it is not known whether the job was taken: look with `farmhand job list` before you submit it again. \
         Its files are in the checkout {checkout}",
        with_causes(error)
    );
    Failure::new(exit, message)
}

fn waited_in_vain(job: &RemoteJob, limit: Duration) -> Failure {
    let (id, seconds) = (&job.id, limit.as_secs_f64());
    let message = format!(
        "the job has not ended within {seconds} s; it goes on: see `farmhand job show {id}`"
    );
    Failure::new(Exit::TimedOut, message)
}

/// Erases a checkout for which there is no job, if the server is one that can; says what became of it.
async fn erase(client: &Shaman, checkout: &str) -> String {
    let erased = match checkout.parse::<CheckoutPath>() {
        Ok(path) => client.erase(&path, EraseRequest::default()).await.is_ok(),
        Err(_) => false,
    };
    if erased {
        "; its checkout is erased".into()
    } else {
        format!("; its checkout {checkout} is left on the server")
    }
}

async fn find_tag(client: &Shaman, wanted: &str) -> Result<String, Failure> {
    let tags = client.worker_tags().await?;
    if let Some(tag) = tags.iter().find(|tag| tag.id == wanted || tag.name == wanted) {
        return Ok(tag.id.clone());
    }
    let names: Vec<_> = tags.iter().map(|tag| tag.name.as_str()).collect();
    let names = if names.is_empty() { "none".into() } else { names.join(", ") };
    let message = format!("the server has no worker tag {wanted:?}; it has {names}");
    Err(Failure::new(Exit::Usage, message))
}

/// Follows a job to its end; returns what it was then.
async fn follow(
    context: &Context,
    client: &Shaman,
    job: &RemoteJob,
    runs_jobs: Option<FarmStatus>,
) -> Result<RemoteStatus, Failure> {
    let bar = ProgressBar::hidden();
    let is_shown = context.settings.values.progress != When::Never && !context.logs.quiet;
    if is_shown && std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{msg} [{bar:24}] {pos}/{len}  {elapsed}");
        bar.set_style(style.expect("BUG: the template is valid").progress_chars("=> "));
    }
    let bar = context.logs.bars.add(bar);
    if job.status == JobStatus::Paused {
        tracing::warn!(
            "the job is paused: this waits until somebody starts it (`farmhand job requeue {}`) and it has ended",
            job.id
        );
    }
    let end = watch(client, job, &bar, runs_jobs).await;
    bar.finish_and_clear();
    let (end, activity) = end?;
    if end != JobStatus::Completed {
        let (end, activity) = (escaped(end.name()), escaped(&activity));
        let id = escaped(&job.id);
        eprintln!("farmhand: the job is {end}: {activity}; see `farmhand job tail {id}`");
    }
    Ok(end)
}

/// What a job was at its end, and what last happened to it.
async fn watch(
    client: &Shaman,
    job: &RemoteJob,
    bar: &ProgressBar,
    mut runs_jobs: Option<FarmStatus>,
) -> Result<(RemoteStatus, String), Failure> {
    let mut last = (job.status.clone(), String::new());
    let mut away_since: Option<Instant> = None;
    let mut polls = 0usize;
    loop {
        if polls.is_multiple_of(POLLS_PER_STATUS) && last.0 == JobStatus::Queued {
            let now = client.farm_status().await;
            if let Some(status) = now.filter(|status| runs_jobs != Some(*status)) {
                warn_of(status);
                runs_jobs = now;
            }
        }
        polls += 1;
        match client.job(&job.id).await {
            Ok((now, _)) => {
                away_since = None;
                bar.set_length(u64::try_from(now.steps_total).unwrap_or(0));
                bar.set_position(u64::try_from(now.steps_completed).unwrap_or(0));
                bar.set_message(escaped(now.status.name()));
                let now = (now.status, now.activity);
                if last != now {
                    tracing::info!(status = %now.0, "{}", now.1);
                    last = now;
                }
                if last.0.is_end() {
                    return Ok(last);
                }
            }
            Err(error) if error.is_transient() => {
                let since = *away_since.get_or_insert_with(|| {
                    tracing::warn!("{error}; waiting for it to come back");
                    Instant::now()
                });
                if since.elapsed() > AWAY {
                    return Err(error.into());
                }
            }
            Err(ClientError::Status { status, .. }) if status.as_u16() == 404 => {
                let message = format!(
                    "the job {} was deleted while it was waited for; submit it again if it is still wanted",
                    job.id
                );
                return Err(Failure::new(Exit::Failed, message));
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
