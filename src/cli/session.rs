//! What `checkout` and `push` share: a scanner, a server (embedded or not), progress, and Ctrl-C.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use clap::Args;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{
    Context,
    apart::{require_apart, require_no_store},
    exit::{Exit, Failure},
    progress::Display,
    settings::{Overrides, Readers, Settings},
};
use crate::{
    client::{self, Shaman},
    control,
    exec::Exec,
    meter::Progress,
    scan::{self, Scan, ScanError, Scanner, Skipped, WalkError},
    server::{self, Access, Anonymous, Scope, Tokens, Upkeep},
    store::{self, OpenError, Store},
};

/// How long another command may have the embedded store.
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// What a server leaves in the lock, after its process number; others leave something else.
pub(super) const SERVING: &str = "serving";

/// Which server.
#[derive(Debug, Args)]
#[command(next_help_heading = "Server")]
pub(super) struct ServerArgs {
    /// The Shaman server, like http://farm:8080/
    #[arg(long, value_name = "URL", conflicts_with = "storage")]
    server: Option<String>,

    /// Use the embedded store in this directory instead of a server
    #[arg(long, value_name = "DIR")]
    storage: Option<PathBuf>,

    /// Trust these root certificates (PEM) too when connecting to a server
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// Show the server this header too, for a proxy in front of it; can be given more than once, and be
    /// kept from other users of this machine in the setting headers
    #[arg(long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,

    /// How many files to send at once, at most
    #[arg(long, value_name = "N")]
    parallel: Option<u32>,

    /// How many bytes a second to send, like 20MiB/s or "20MiB/s; Mon-Fri 09:00-18:00 5MiB/s"
    #[arg(long, value_name = "RATE")]
    limit: Option<String>,
}

impl ServerArgs {
    pub fn overrides(&self, overrides: &mut Overrides) {
        overrides.set("server", "--server", self.server.as_ref());
        overrides.set_path("storage", "--storage", self.storage.as_ref());
        overrides.set_path("ca", "--ca", self.ca.as_ref());
        overrides.set_headers(&self.headers);
        overrides.set("upload.parallel", "--parallel", self.parallel);
        overrides.set("upload.limit", "--limit", self.limit.as_ref());
    }
}

/// Which Manager.
#[derive(Debug, Args)]
#[command(next_help_heading = "Server")]
pub(super) struct ManagerArgs {
    /// The Flamenco Manager, or farmhand, like http://farm:8080/
    #[arg(long, value_name = "URL", global = true)]
    server: Option<String>,

    /// Trust these root certificates (PEM) too
    #[arg(long, value_name = "FILE", global = true)]
    ca: Option<PathBuf>,

    /// Show the server this header too, for a proxy in front of it; can be given more than once
    #[arg(long = "header", value_name = "NAME: VALUE", global = true)]
    headers: Vec<String>,
}

impl ManagerArgs {
    pub fn overrides(&self, overrides: &mut Overrides) {
        overrides.set("server", "--server", self.server.as_ref());
        overrides.set_path("ca", "--ca", self.ca.as_ref());
        overrides.set_headers(&self.headers);
    }
}

/// Which files.
#[derive(Debug, Args)]
#[command(next_help_heading = "Files")]
pub(super) struct ScanArgs {
    /// Take along what is ignored by default
    ///
    /// Ignored by default: *.blend1 to *.blend32, *.blend@, .git/, .svn/, Thumbs.db, .DS_Store,
    /// .mayaSwatches/. More can be ignored, and some of these taken along (!pattern), by
    /// .farmhandignore files in the folders, which have the syntax of .gitignore.
    #[arg(long)]
    no_default_ignores: bool,

    /// Hash everything again, and remember nothing
    #[arg(long, conflicts_with = "cache_dir")]
    no_cache: bool,

    /// Where to remember hashes, instead of the user's cache directory
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,

    /// Read and fill the hash caches of Blender's add-on, too, so that a submit from Blender hashes
    /// nothing
    #[arg(long, conflicts_with = "no_cache")]
    warm_addon_cache: bool,

    /// Leave nothing out: what cannot be taken along, or changes all the time, is an error
    #[arg(long)]
    strict: bool,

    /// How many threads read files, each several at once [default: auto, tried out]
    #[arg(long, value_name = "N")]
    readers: Option<Readers>,
}

impl ScanArgs {
    pub fn overrides(&self, overrides: &mut Overrides) {
        overrides.set(
            "scan.default_ignores",
            "--no-default-ignores",
            self.no_default_ignores.then_some(false),
        );
        overrides.set("scan.cache", "--no-cache", self.no_cache.then_some(false));
        overrides.set("scan.cache", "--cache-dir", self.cache_dir.as_ref().map(|_| true));
        overrides.set_path("scan.cache_dir", "--cache-dir", self.cache_dir.as_ref());
        let warm = if self.no_cache { Some(false) } else { self.warm_addon_cache.then_some(true) };
        overrides.set("scan.warm_addon_cache", "--warm-addon-cache", warm);
        overrides.set("scan.strict", "--strict", self.strict.then_some(true));
        overrides.set("scan.readers", "--readers", self.readers);
    }
}

/// A server for the time of one command.
struct Embedded {
    store: Arc<Store>,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

/// A scanner on a thread of its own, with progress.
pub(super) struct Scans {
    pub scanner: Arc<Mutex<Scanner>>,
    pub progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
    pub exec: Exec,
}

impl Scans {
    pub fn new(context: &Context) -> Result<Self, Failure> {
        let (progress, stop) = (Arc::new(Progress::default()), Arc::new(AtomicBool::new(false)));
        let options = context.settings.scan_options();
        let scanner = Scanner::new(options, progress.clone(), stop.clone())?;
        Ok(Self { scanner: Arc::new(Mutex::new(scanner)), progress, stop, exec: Exec::default() })
    }

    /// Shows progress until it is dropped.
    pub fn display(&self, context: &Context) -> Display {
        Display::start(self.progress.clone(), context.settings.values.progress, &context.logs)
    }

    /// Scans a folder or a file, and shows how far that is.
    pub async fn scan(&self, context: &Context, path: &Path) -> Result<Scan, Failure> {
        let _display = self.display(context);
        self.scan_quietly(path).await
    }

    async fn scan_quietly(&self, path: &Path) -> Result<Scan, Failure> {
        let path = path.to_owned();
        self.with_scanner(move |scanner| scanner.scan(&path)).await
    }

    /// Has the scanner do something, on its thread.
    pub async fn with_scanner<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Scanner) -> Result<T, ScanError> + Send + 'static,
    ) -> Result<T, Failure> {
        let scanner = self.scanner.clone();
        self.exec
            .blocking(move || match scanner.lock() {
                Ok(mut scanner) => work(&mut scanner).map_err(Failure::from),
                Err(_) => Err(Failure::new(Exit::Failed, "BUG: an earlier scan panicked")),
            })
            .await
    }

    /// Reads files on a thread for that, which should end soon after the flag is set.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&AtomicBool) -> T + Send + 'static,
    ) -> T {
        let stop = self.stop.clone();
        self.exec.blocking(move || work(&stop)).await
    }

    /// Has a scan end soon, and waits for that: what is hashed by then is remembered.
    pub async fn stop(&self) {
        self.stop.store(true, Relaxed);
        self.exec.finish().await;
    }
}

/// All that a sync needs.
pub(super) struct Session {
    pub client: Shaman,
    pub scans: Scans,
    embedded: Option<Embedded>,
    /// Agents hold back what they have to send while these live.
    held: Mutex<Vec<control::Held>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// Runs `work` with a session, until it is done or somebody presses Ctrl-C; either way, the
    /// embedded store is left in order.
    pub async fn run(
        context: &Context,
        work: impl AsyncFnOnce(&mut Self) -> Result<Exit, Failure>,
    ) -> Result<Exit, Failure> {
        let mut session = Self::start(context).await?;
        let display = session.scans.display(context);
        let result = tokio::select! {
            result = work(&mut session) => result,
            () = interrupted() => Err(Failure::interrupted()),
        };
        drop(display);
        tokio::select! {
            () = session.end() => result,
            // Something hangs that cannot be waited for, and the user knows.
            () = interrupted() => Err(Failure::interrupted()),
        }
    }

    /// Ends what goes on in the background.
    async fn end(&mut self) {
        if let Some(embedded) = self.embedded.take() {
            embedded.shutdown.cancel();
            let _ = embedded.serving.await;
        }
        self.scans.stop().await;
    }

    async fn start(context: &Context) -> Result<Self, Failure> {
        let settings = &context.settings;
        settings.require_target()?;
        let options = settings.client_options()?;
        let (client, embedded) = match settings.server() {
            Some(url) => (Shaman::new(url, options)?, None),
            None => {
                let (url, token, embedded) = Embedded::start(settings.storage()?, settings).await?;
                let options = client::Options { proxies: false, token: Some(token), ..options };
                (Shaman::new(&url, options)?, Some(embedded))
            }
        };
        Ok(Self { client, scans: Scans::new(context)?, embedded, held: Mutex::default() })
    }

    /// Scans a folder.
    pub async fn scan(&self, context: &Context, dir: &Path) -> Result<Scan, Failure> {
        let options = context.settings.scan_options_for(dir);
        let scan = match self.ask_agents(context, dir, &options).await {
            Some(scan) => scan,
            None => {
                let path = dir.to_owned();
                let scan = move |scanner: &mut Scanner| {
                    scanner.set_ignores(options.ignores);
                    scanner.scan(&path)
                };
                self.scans.with_scanner(scan).await?
            }
        };
        require_no_store(&scan.root, scan.files.iter().map(|file| &file.path))?;
        Ok(scan)
    }

    /// Has the agents of this user step back for other folders, and takes from one that watches this
    /// folder what it knows of it. Whatever is wrong with an agent, we can do without.
    async fn ask_agents(
        &self,
        context: &Context,
        dir: &Path,
        options: &scan::Options,
    ) -> Option<Scan> {
        let settings = &context.settings;
        // Who wants everything hashed, or nothing left out, wants it to be looked at.
        if !settings.values.scan.cache || !settings.values.watch.ask {
            return None;
        }
        let registry = settings.run_dir()?;
        for agent in control::find(&registry, None) {
            match agent.hold_others(dir).await {
                Ok(held) => lock(&self.held).push(held),
                Err(error) => tracing::debug!("{error}"),
            }
        }
        for agent in control::find(&registry, Some(dir)) {
            match agent.scan(dir, options).await {
                Ok((scan, was_known)) => {
                    tracing::debug!(was_known, files = scan.files.len(), "asked the agent");
                    return Some(scan);
                }
                Err(error) => tracing::info!("{error}; looking at {} ourselves", dir.display()),
            }
        }
        None
    }

    /// Where a checkout is on this machine, if its store is embedded.
    pub fn checkout_dir(&self, path: &str) -> Option<PathBuf> {
        Some(self.embedded.as_ref()?.store.checkouts_dir().join(path))
    }
}

/// Looks for what is certainly wrong before a store is made or anything is sent.
pub(super) fn require_folders(context: &Context, dirs: &[PathBuf]) -> Result<(), Failure> {
    for dir in dirs {
        if dir.is_file() {
            let message = format!("{} is a file; give the folder it belongs to", dir.display());
            return Err(Failure::new(Exit::Usage, message));
        }
        if matches!(dir.try_exists(), Ok(false)) {
            return Err(ScanError::from(WalkError::Missing(dir.clone())).into());
        }
    }
    require_apart(&context.settings, dirs)
}

/// What was skipped, on standard error; and what that means for the exit code.
pub(super) fn report_skipped(skipped: &[Skipped]) -> Exit {
    for skipped in skipped {
        tracing::warn!("skipped {}: {}", skipped.path, skipped.reason);
    }
    if skipped.is_empty() { Exit::Done } else { Exit::Skipped }
}

impl Embedded {
    /// Opens the store and serves it on a port of this machine; returns the address, too, and the
    /// token without which other users of this machine get nothing there.
    async fn start(
        dir: &Path,
        settings: &Settings,
    ) -> Result<(String, client::Token, Self), Failure> {
        let store = open(dir, settings.store_options()).await?;
        if let Err(error) = store.leave_note(&format!("pid {} for one command", std::process::id()))
        {
            tracing::debug!("{error}");
        }
        let failed =
            |error| Failure::new(Exit::Failed, format!("cannot listen on 127.0.0.1: {error}"));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
        let url = format!("http://{}/", listener.local_addr().map_err(failed)?);
        let (token, access) = token_of_its_own()?;
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(server::serve(
            vec![listener],
            store.clone(),
            server::Options {
                access: Arc::new(access),
                // What is done in the background is for those who serve.
                upkeep: Upkeep { gc_every: None, scrub_every: None, ..settings.upkeep() },
                ..settings.server_options()
            },
            shutdown.clone(),
            shutdown.clone(),
        ));
        Ok((url, token, Self { store, shutdown, serving }))
    }
}

/// A token that nobody else knows, and a server that asks for it.
fn token_of_its_own() -> Result<(client::Token, Access), Failure> {
    let failed = |error| Failure::new(Exit::Failed, format!("cannot make a token: {error}"));
    let text = server::fresh_token().map_err(failed)?;
    let scopes = Scope::ALL.into_iter().collect();
    let token = server::Token::new("this command", scopes, &text).expect("BUG: a plain name");
    let mut tokens = Tokens::default();
    tokens.add(token).expect("BUG: it is the only one");
    let token = text.parse().expect("BUG: letters, digits, - and _");
    Ok((token, Access::new(Anonymous::Nowhere, tokens)))
}

/// Opens a store; another command that has it just now is waited for.
async fn open(dir: &Path, options: store::Options) -> Result<Arc<Store>, Failure> {
    let start = Instant::now();
    let mut said = false;
    loop {
        match Store::open(dir, options) {
            Err(OpenError::InUse { note, .. })
                if !note.contains(SERVING) && start.elapsed() < LOCK_WAIT =>
            {
                if !said {
                    eprintln!("waiting for another farmhand ({note}) that uses {}", dir.display());
                    said = true;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            opened => return Ok(opened?),
        }
    }
}

/// Waits for Ctrl-C or SIGTERM.
pub(super) async fn interrupted() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending().await
    }
}
