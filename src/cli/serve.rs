//! `farmhand serve`

use std::{
    io::ErrorKind,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    sync::Arc,
};

use clap::Args;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    Context,
    exit::{Exit, Failure},
    print, print_json,
    session::{SERVING, interrupted},
    settings::{DEFAULT_LISTEN, Overrides, Settings},
    token::read_tokens,
};
use crate::{
    server::{self, Access, Anonymous, Farm, FarmOptions, JobTypes, Tls, Tokens},
    store::Store,
};

/// Serve a store to Shaman clients
///
/// Prints the addresses when it is ready. Ends on SIGTERM or Ctrl-C, when the requests under way have
/// been answered; a second one ends it at once. SIGHUP has it read tokens and certificate again. It does not
/// run on Windows yet.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// An address to listen on; can be given more than once [default: 127.0.0.1:8080 and [::1]:8080]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Vec<String>,

    /// The directory of the store; there is no default
    #[arg(long, value_name = "DIR")]
    storage: Option<PathBuf>,

    /// Who needs no token: programs of this machine, everybody, or nobody [default: loopback]
    #[arg(long, value_name = "loopback|anywhere|nowhere")]
    anonymous: Option<String>,

    /// The file with the tokens (see `farmhand token new`); read again on SIGHUP
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,

    /// A Flamenco Manager: what is not for this server is passed on to it [default: there is none]
    #[arg(long, value_name = "URL", conflicts_with_all = ["job_types", "hook"])]
    manager: Option<String>,

    /// Show the Manager this header, for a proxy in front of it; can be given more than once, and be kept
    /// from other users of this machine in the setting headers
    #[arg(long = "header", value_name = "NAME: VALUE", requires = "manager")]
    headers: Vec<String>,

    /// A directory with definitions of job types, for submits to this server [default: one type,
    /// simple-blender-render]
    #[arg(long, value_name = "DIR")]
    job_types: Option<PathBuf>,

    /// A program that each submitted job is given to, as JSON on its standard input; arguments can be given
    /// in the setting jobs.hook
    #[arg(long, value_name = "PROGRAM")]
    hook: Option<PathBuf>,
}

impl Serve {
    pub fn overrides(&self, overrides: &mut Overrides) {
        let listen = (!self.listen.is_empty()).then(|| self.listen.join(","));
        overrides.set("serve.listen", "--listen", listen);
        overrides.set_path("storage", "--storage", self.storage.as_ref());
        overrides.set("serve.anonymous", "--anonymous", self.anonymous.as_ref());
        overrides.set_path("serve.tokens", "--tokens", self.tokens.as_ref());
        overrides.set("serve.manager", "--manager", self.manager.as_ref());
        overrides.set_headers(&self.headers);
        overrides.set_path("jobs.types", "--job-types", self.job_types.as_ref());
        overrides.set_path("jobs.hook", "--hook", self.hook.as_ref());
    }

    pub async fn run(&self, context: &Context) -> Result<Exit, Failure> {
        raise_file_limit();
        let settings = &context.settings;
        let addresses = addresses(settings)?;
        let guard = Guard::load(settings)?;
        let manager = settings.gateway()?;
        let dir = settings.storage()?.to_owned();
        // The Manager has the jobs, if there is one.
        let farm = match manager {
            Some(_) => None,
            None => Some(settings.farm_options()?),
        };
        farm.as_ref().map(require_job_types).transpose()?;
        let store = Store::open(&dir, settings.store_options())?;
        let farm = farm.map(|farm| Farm::open(&store, farm)).transpose().map_err(|error| {
            let next =
                "restore that file, or move it away with those beside it whose names begin alike";
            Failure::new(Exit::Failed, format!("{error}; {next}"))
        })?;
        let listeners = bind(&addresses).await?;
        let mut urls = Vec::new();
        for listener in &listeners {
            let address = listener.local_addr().map_err(|error| {
                Failure::new(Exit::Failed, format!("cannot say where it listens: {error}"))
            })?;
            let scheme = if guard.tls.is_some() { "https" } else { "http" };
            urls.push(format!("{scheme}://{address}/"));
        }
        if let Err(error) =
            store.leave_note(&format!("pid {} {SERVING} {}", std::process::id(), urls.join(" ")))
        {
            tracing::warn!("{error}");
        }

        let (shutdown, now) = (CancellationToken::new(), CancellationToken::new());
        // Listening for signals begins before anybody is told that we are ready.
        let signals = {
            let (shutdown, now) = (shutdown.clone(), now.clone());
            async move {
                interrupted().await;
                tracing::info!("shutting down: unfinished requests may finish");
                shutdown.cancel();
                interrupted().await;
                tracing::info!("shutting down at once");
                now.cancel();
                std::future::pending::<()>().await;
            }
        };
        let lacks_command = farm.as_ref().and_then(|farm| farm.lacks_command());
        let reloading = guard.reload_on_hangup()?;
        let options = server::Options {
            access: guard.access.clone(),
            tls: guard.tls.clone(),
            manager,
            farm,
            ..settings.server_options()
        };
        let serving = server::serve(listeners, store, options, shutdown, now);
        let announce = async {
            tracing::info!(storage = %dir.display(), "serving {}", urls.join(" "));
            if let Some(why) = lacks_command {
                tracing::warn!("{why}; until then, jobs that are submitted here wait");
            }
            if context.json {
                print_json(&json!({ "schema": "farmhand.serve/1", "urls": urls, "storage": dir }))
            } else {
                urls.iter().try_for_each(|url| print(url))
            }
        };
        tokio::pin!(signals);
        // Polled first: then the handlers are in place.
        tokio::select! {
            biased;
            () = &mut signals => {}
            announced = announce => announced?,
        }
        tokio::select! {
            () = signals => {}
            () = reloading => {}
            () = serving => {}
        }
        Ok(Exit::Done)
    }
}

/// What guards the server, and where that comes from.
struct Guard {
    access: Arc<Access>,
    tls: Option<Arc<Tls>>,
    /// Read again on SIGHUP.
    #[cfg(unix)]
    tokens_file: Option<PathBuf>,
}

impl Guard {
    fn load(settings: &Settings) -> Result<Self, Failure> {
        let serve = &settings.values.serve;
        let usage = |message: String| Failure::new(Exit::Usage, message);
        let tokens = match &serve.tokens {
            Some(file) => read_tokens(file)?,
            None if serve.anonymous == Anonymous::Nowhere => {
                let message = "with serve.anonymous = \"nowhere\" and no tokens, nobody could do anything; \
                               make a token with `farmhand token new`, and give its file with --tokens";
                return Err(usage(message.into()));
            }
            None => Tokens::default(),
        };
        let tls = match (&serve.tls_cert, &serve.tls_key) {
            (None, None) => None,
            (Some(cert), Some(key)) => {
                let tls = Tls::load(cert, key).map_err(|error| usage(error.to_string()))?;
                Some(Arc::new(tls))
            }
            (cert, _) => {
                let (one, other) = if cert.is_some() { ("cert", "key") } else { ("key", "cert") };
                return Err(usage(format!(
                    "serve.tls_{one} is of no use without serve.tls_{other}"
                )));
            }
        };
        let access = Arc::new(Access::new(serve.anonymous, tokens));
        Ok(Self {
            access,
            tls,
            #[cfg(unix)]
            tokens_file: serve.tokens.clone(),
        })
    }

    /// Reads tokens and certificate again, each time SIGHUP comes. Without either, SIGHUP ends the
    /// program as it ends any other whose terminal goes away.
    #[cfg(unix)]
    fn reload_on_hangup(&self) -> Result<impl Future<Output = ()> + use<>, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let (access, tls, file) = (self.access.clone(), self.tls.clone(), self.tokens_file.clone());
        let wanted = tls.is_some() || file.is_some();
        let hangups =
            wanted.then(|| signal(SignalKind::hangup())).transpose().map_err(|error| {
                Failure::new(Exit::Failed, format!("cannot listen for SIGHUP: {error}"))
            })?;
        Ok(async move {
            let Some(mut hangups) = hangups else { return std::future::pending().await };
            while hangups.recv().await.is_some() {
                let (access, tls, file) = (access.clone(), tls.clone(), file.clone());
                let reading = tokio::task::spawn_blocking(move || {
                    reload(&access, tls.as_deref(), file.as_deref());
                });
                let _ = reading.await;
            }
        })
    }

    #[cfg(not(unix))]
    fn reload_on_hangup(&self) -> Result<impl Future<Output = ()> + use<>, Failure> {
        Ok(std::future::pending())
    }
}

/// Whoever starts a server looks at what it says: then is the time to speak of files that are wrong.
fn require_job_types(options: &FarmOptions) -> Result<(), Failure> {
    let Some(dir) = &options.types else { return Ok(()) };
    let (_, bad) = JobTypes::new(Some(dir.clone())).read().map_err(|error| {
        let message =
            format!("cannot read the job types in {}: {error}; check the path", dir.display());
        Failure::new(Exit::Missing, message)
    })?;
    match bad.first() {
        None => Ok(()),
        Some(bad) => Err(Failure::new(Exit::Usage, format!("{bad}; mend or remove it"))),
    }
}

/// Reads both again. What is broken leaves what was in force.
#[cfg(unix)]
fn reload(access: &Access, tls: Option<&Tls>, tokens_file: Option<&std::path::Path>) {
    if let Some(file) = tokens_file {
        match Tokens::read(file) {
            Ok(tokens) => {
                tracing::info!("read {} tokens from {}", tokens.len(), file.display());
                access.replace(tokens);
            }
            Err(error) => tracing::error!("the tokens remain as they were: {error}"),
        }
    }
    if let Some(tls) = tls {
        match tls.reload() {
            Ok(()) => tracing::info!("read the certificate and its key again"),
            Err(error) => tracing::error!("the certificate remains as it was: {error}"),
        }
    }
}

/// Every connection is an open file, and every upload another: the usual soft limit of 1024 is few.
fn raise_file_limit() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit { current: limit.maximum, ..limit };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::debug!("the limit of open files stays as it is: {error}");
        }
    }
}

/// What to listen on. Beyond loopback only if somebody has said who may come from there.
fn addresses(settings: &Settings) -> Result<Vec<SocketAddr>, Failure> {
    let serve = &settings.values.serve;
    let guarded = serve.tokens.is_some() || serve.anonymous == Anonymous::Anywhere;
    let mut addresses = Vec::new();
    for text in &serve.listen {
        let bad = |reason: String| {
            Failure::new(
                Exit::Usage,
                format!(
                    "cannot listen on {text:?}: {reason}; write ADDRESS:PORT, like 127.0.0.1:8080"
                ),
            )
        };
        for address in text.to_socket_addrs().map_err(|error| bad(error.to_string()))? {
            if !address.ip().to_canonical().is_loopback() && !guarded {
                return Err(Failure::new(
                    Exit::Usage,
                    format!(
                        "{address} can be reached from other machines, and nobody there has a token; \
                         give a file of tokens with --tokens (`farmhand token new` makes it), or let \
                         everybody there read and write the store with --anonymous anywhere"
                    ),
                ));
            }
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    if addresses.is_empty() {
        return Err(Failure::new(Exit::Usage, "there is nothing to listen on; give --listen"));
    }
    Ok(addresses)
}

/// Listens on all of them. Of the default two, a machine may lack one: not every machine has IPv6.
async fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, Failure> {
    let is_default = |address: &SocketAddr| DEFAULT_LISTEN.contains(&address.to_string().as_str());
    let mut listeners = Vec::new();
    for address in addresses {
        match TcpListener::bind(address).await {
            Ok(listener) => listeners.push(listener),
            Err(error)
                if is_default(address)
                    && matches!(
                        error.kind(),
                        ErrorKind::AddrNotAvailable | ErrorKind::Unsupported
                    ) =>
            {
                tracing::warn!("not listening on {address}: {error}");
            }
            Err(error) => {
                let next = match error.kind() {
                    ErrorKind::AddrInUse => {
                        "another farmhand or a Flamenco Manager may have it: stop that, or choose another with --listen"
                    }
                    ErrorKind::PermissionDenied => "choose a port from 1024 on",
                    _ => "choose another with --listen",
                };
                let message = format!("cannot listen on {address}: {error}; {next}");
                return Err(Failure::new(Exit::Failed, message));
            }
        }
    }
    if listeners.is_empty() {
        return Err(Failure::new(
            Exit::Failed,
            "this machine has no loopback address; give --listen",
        ));
    }
    Ok(listeners)
}
