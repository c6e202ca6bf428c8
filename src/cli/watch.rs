//! `farmhand watch [DIR…]`

use std::{path::PathBuf, sync::Arc};

use clap::Args;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    Context,
    apart::require_apart,
    exit::{Exit, Failure},
    print, print_json,
    session::{ScanArgs, ServerArgs, interrupted},
    settings::{Overrides, Settings, WatchFolder, WatchHow},
};
use crate::{
    agent::{self, Agent, FolderOptions, Line, real},
    client::Shaman,
    control::{self, Registration},
    server,
    wire::hide_tokens,
};

/// Keep folders uploaded while people work in them
///
/// Sends what a server lacks of the folders, and then whatever changes. A checkout later has nothing
/// left to send. Without folders, those of the configuration (watch.folders) are watched. Runs until it
/// is interrupted; see `farmhand status`.
#[derive(Debug, Args)]
pub(super) struct Watch {
    /// The folders
    #[arg(value_name = "DIR")]
    dirs: Vec<PathBuf>,

    /// How changes are heard of
    #[arg(long, value_enum, value_name = "HOW")]
    mode: Option<WatchHow>,

    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    scan: ScanArgs,
}

impl Watch {
    pub fn overrides(&self, overrides: &mut Overrides) {
        self.server.overrides(overrides);
        self.scan.overrides(overrides);
        overrides.set("watch.mode", "--mode", self.mode.map(WatchHow::name));
    }

    pub async fn run(&self, context: &Context) -> Result<Exit, Failure> {
        let settings = &context.settings;
        let folders = self.folders(settings)?;
        let dirs: Vec<_> = folders.iter().map(|folder| folder.path.clone()).collect();
        require_apart(settings, &dirs)?;
        let options = settings.sync_options();
        let line = options.line.clone();
        let folders = folders
            .iter()
            .map(|folder| folder_options(settings, folder, &options))
            .collect::<Result<Vec<_>, _>>()?;
        let roots: Vec<_> = folders.iter().map(|folder| real(&folder.dir)).collect();
        let registry = settings.run_dir().ok_or_else(|| {
            let message = "there is no place for the agent's file; set watch.run_dir";
            Failure::new(Exit::Usage, message)
        })?;
        let mut registration = Registration::claim(&registry, &roots)?;
        let marks = registry.join(format!("{}.marks", std::process::id()));
        let agent = Arc::new(Agent::new(folders, line, &marks)?);

        let failed = |error: std::io::Error| {
            Failure::new(Exit::Failed, format!("cannot listen on 127.0.0.1: {error}"))
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
        let url = format!("http://{}/", listener.local_addr().map_err(failed)?);
        let token = server::fresh_token()
            .map_err(|error| Failure::new(Exit::Failed, format!("cannot make a token: {error}")))?;
        let end = CancellationToken::new();
        let signals = {
            let end = end.clone();
            async move {
                interrupted().await;
                tracing::info!("ending: what is not sent yet is sent next time");
                end.cancel();
                tokio::select! {
                    () = tokio::time::sleep(END_TIME) => {}
                    () = interrupted() => {}
                }
            }
        };
        tokio::pin!(signals);
        let work = async {
            // After the handlers of signals, which are polled first.
            registration.listening(&url, &token, &roots)?;
            ready();
            for root in &roots {
                if context.json {
                    print_json(&json!({ "schema": "farmhand.watch/1", "dir": root }))?;
                } else {
                    print(&format!("watching {}", root.display()))?;
                }
            }
            let control = control::serve(listener, agent.clone(), token, end.clone());
            let (served, ()) = tokio::join!(control, agent.run(end.clone()));
            served.map_err(failed)
        };
        let result = tokio::select! {
            biased;
            () = &mut signals => Ok(()),
            result = work => result,
        };
        // Marks that are left are in nobody's way.
        let _ = std::fs::remove_dir_all(&marks);
        result.map(|()| Exit::Done)
    }

    /// Those that are named, with what the configuration says of them; or else all of the
    /// configuration.
    fn folders(&self, settings: &Settings) -> Result<Vec<WatchFolder>, Failure> {
        let usage = |message: String| Failure::new(Exit::Usage, message);
        let known = &settings.values.watch.folders;
        let mut folders: Vec<WatchFolder> = self
            .dirs
            .iter()
            .map(|dir| {
                let configured = known.iter().find(|folder| real(&folder.path) == real(dir));
                configured.cloned().unwrap_or_else(|| WatchFolder {
                    path: dir.clone(),
                    server: None,
                    ignore: Vec::new(),
                    priority: 0,
                })
            })
            .collect();
        if folders.is_empty() {
            folders.clone_from(known);
            // A disk that comes later is waited for; a name on the command line is a mistake.
        } else if let Some(folder) = folders.iter().find(|folder| !folder.path.is_dir()) {
            let message = format!("{} is no folder; check the path", folder.path.display());
            return Err(Failure::new(Exit::Missing, message));
        }
        if folders.is_empty() {
            let message = "there is nothing to watch; name folders, or list them in the configuration \
                           as watch.folders";
            return Err(usage(message.into()));
        }
        for (number, folder) in folders.iter().enumerate() {
            let root = real(&folder.path);
            if folders[..number].iter().any(|other| real(&other.path) == root) {
                return Err(usage(format!("{} is named twice", folder.path.display())));
            }
        }
        Ok(folders)
    }
}

/// How long the end may take before it is come to by force. Nothing is lost by that.
const END_TIME: std::time::Duration = std::time::Duration::from_secs(10);

fn folder_options(
    settings: &Settings,
    folder: &WatchFolder,
    sync: &agent::Options,
) -> Result<FolderOptions, Failure> {
    let server = folder.server.as_deref().or(settings.server()).ok_or_else(|| {
        let message = format!(
            "{} has no server to be sent to; give one with --server, or as server of the folder in the \
             configuration",
            folder.path.display()
        );
        Failure::new(Exit::Usage, message)
    })?;
    let mut client = settings.client_options()?;
    // The agent goes on trying by itself.
    client.retries = client.retries.min(2);
    Ok(FolderOptions {
        dir: folder.path.clone(),
        client: Shaman::new(server, client)?,
        server: hide_tokens(server).into_owned(),
        priority: folder.priority,
        scan: settings.scan_options_for(&folder.path),
        sync: agent::Options { line: Arc::new(Line::default()), ..sync.clone() },
        rhythm: settings.rhythm(),
        poll: settings.values.watch.mode == WatchHow::Poll,
    })
}

/// Tells systemd, if it has started us.
fn ready() {
    #[cfg(target_os = "linux")]
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::debug!("systemd: {error}");
    }
}
