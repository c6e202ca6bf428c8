//! `farmhand serve`

use std::{
    io::ErrorKind,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
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
};
use crate::{server, store::Store};

/// Serve a store to Shaman clients
///
/// Prints the addresses when it is ready. Ends on SIGTERM or Ctrl-C, when the requests under way have
/// been answered; a second one ends it at once.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// An address to listen on; can be given more than once [default: 127.0.0.1:8080 and [::1]:8080]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Vec<String>,

    /// The directory of the store [default: in the user's data directory]
    #[arg(long, value_name = "DIR")]
    storage: Option<PathBuf>,

    /// Allow listening on addresses that other machines can reach; there is no access control
    #[arg(long)]
    allow_remote: bool,
}

impl Serve {
    pub fn overrides(&self, overrides: &mut Overrides) {
        let listen = (!self.listen.is_empty()).then(|| self.listen.join(","));
        overrides.set("serve.listen", "--listen", listen);
        overrides.set_path("storage", "--storage", self.storage.as_ref());
        overrides.set("serve.allow_remote", "--allow-remote", self.allow_remote.then_some(true));
    }

    pub async fn run(&self, context: &Context) -> Result<Exit, Failure> {
        raise_file_limit();
        let settings = &context.settings;
        let addresses = addresses(settings)?;
        let (dir, _) = settings.storage()?;
        let store = Store::open(&dir, settings.store_options())?;
        let listeners = bind(&addresses).await?;
        let mut urls = Vec::new();
        for listener in &listeners {
            let address = listener.local_addr().map_err(|error| {
                Failure::new(Exit::Failed, format!("cannot say where it listens: {error}"))
            })?;
            urls.push(format!("http://{address}/"));
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
        let serving = server::serve(listeners, store, settings.server_options(), shutdown, now);
        let announce = async {
            tracing::info!(storage = %dir.display(), "serving {}", urls.join(" "));
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
            () = serving => {}
        }
        Ok(Exit::Done)
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

/// What to listen on. Beyond loopback only if somebody has said so.
fn addresses(settings: &Settings) -> Result<Vec<SocketAddr>, Failure> {
    let serve = &settings.values.serve;
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
            if !address.ip().to_canonical().is_loopback() && !serve.allow_remote {
                return Err(Failure::new(
                    Exit::Usage,
                    format!(
                        "{address} can be reached from other machines, and everybody there could read and \
                         write the store; if that is meant, add --allow-remote (or serve.allow_remote = true)"
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
