//! The store over HTTP: the Shaman endpoints, health, metrics, and connections that withstand real clients.

mod access;
mod access_log;
mod admin;
mod body;
mod connection;
mod download;
mod error;
mod extension;
mod farm;
#[cfg(test)]
mod fuzz;
mod gateway;
mod metrics;
mod openapi;
mod routes;
mod tls;
mod tokens;
mod unfold;
mod upkeep;
mod upload;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use bytes::Bytes;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{exec::Exec, store::Store};

pub use access::{Access, Anonymous};
pub use error::ApiError;
pub use farm::{Audience, BadFile, Farm, Hook, JobTypes, Options as FarmOptions, Variable};
pub use gateway::{BadManager, CheckoutPaths, Comparison, Gateway, GatewayOptions, ManagerStorage};
pub use metrics::{Job, Metrics};
pub use tls::{Tls, TlsError};
pub use tokens::{BadTokens, NoScope, Scope, Scopes, Token, Tokens, TokensError, fresh_token};
pub use upkeep::Upkeep;

/// When an upload of a blob that somebody else is sending is answered 425.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Defer {
    /// If the client says it can defer; but not Flamenco's Blender add-on, which never sends the
    /// file again after a 425.
    #[default]
    Auto,
    /// If the client says it can defer, whoever it is.
    Always,
    /// Never: the client is held until the other upload has ended.
    Never,
}

/// How the server behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who may do what.
    pub access: Arc<Access>,
    /// The certificate; without one, plain HTTP is spoken.
    pub tls: Option<Arc<Tls>>,
    /// The Manager that gets all that is not for us.
    pub manager: Option<Arc<Gateway>>,
    /// When 425 is answered.
    pub defer: Defer,
    /// How long a client is held while somebody else sends its blob; then it may send it itself.
    pub hold: Duration,
    /// How long `checkout/create` waits for blobs in flight.
    pub create_wait: Duration,
    /// How long a client may take for the head of a request.
    pub head_timeout: Duration,
    /// How long a connection may be idle between two requests. Clients hash between requests.
    pub idle_timeout: Duration,
    /// How long no byte of a body may come.
    pub body_timeout: Duration,
    /// How long requests may go on after the shutdown was asked for.
    pub grace: Duration,
    /// How many connections are served at once; more wait to be accepted.
    pub max_connections: usize,
    /// How many uploads are received at once; more wait.
    pub max_uploads: usize,
    /// The longest JSON body, in bytes.
    pub max_json_bytes: u64,
    /// The most files in one request.
    pub max_files: usize,
    /// What is done in the background, and when.
    pub upkeep: Upkeep,
    /// Jobs; without it, there is nothing but the store.
    pub farm: Option<Arc<Farm>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            access: Arc::default(),
            tls: None,
            manager: None,
            defer: Defer::Auto,
            hold: Duration::from_secs(30),
            create_wait: Duration::from_secs(60),
            head_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(600),
            body_timeout: Duration::from_secs(60),
            grace: Duration::from_secs(30),
            max_connections: 1000,
            max_uploads: 64,
            max_json_bytes: 512 << 20,
            max_files: 2_000_000,
            upkeep: Upkeep::default(),
            farm: None,
        }
    }
}

/// What all requests share.
#[derive(Debug)]
struct State {
    store: Arc<Store>,
    options: Options,
    exec: Exec,
    uploads: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    /// Memory for large JSON bodies, in MiB: all of them together take no more than one may.
    json_mib: Arc<Semaphore>,
    background_scrub: upkeep::Background,
    history: std::sync::Mutex<crate::store::History>,
    /// The server is to stop: no operation on the store goes on.
    shutdown: CancellationToken,
    metrics: Metrics,
    /// The OpenAPI document, as JSON.
    openapi: Bytes,
    /// The grace period is over: whatever still runs ends now.
    end: CancellationToken,
}

type App = Arc<State>;

impl State {
    /// Does something short with the store: on a thread that may wait for its disk; here, if it is in memory.
    async fn briefly<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Store>) -> T + Send + 'static,
    ) -> T {
        if self.store.is_in_memory() {
            return work(&self.store);
        }
        let store = self.store.clone();
        self.exec.blocking(move || work(&store)).await
    }
}

/// Where a client is, for the log.
#[derive(Debug, Clone, Copy)]
struct Peer(IpAddr);

/// Serves the store on these listeners until `shutdown`; then no connection is accepted any more,
/// requests may finish within the grace period, and what is left is broken off. Every upload that
/// was broken off has removed its temp file when this returns.
///
/// A second shutdown signal ends the grace period: cancel `now`.
pub async fn serve(
    listeners: Vec<TcpListener>,
    store: Arc<Store>,
    options: Options,
    shutdown: CancellationToken,
    now: CancellationToken,
) {
    let exec = Exec::default();
    let farm = options.farm.clone();
    let (routes, openapi) = routes::routes(farm.clone());
    let app: App = Arc::new(State {
        history: store.history().into(),
        metrics: Metrics::new(store.clone(), openapi.paths.paths.keys()),
        openapi: routes::to_json(&openapi),
        store,
        uploads: Arc::new(Semaphore::new(options.max_uploads)),
        // Each listener has one in hand while it waits for a client.
        connections: Arc::new(Semaphore::new(options.max_connections + listeners.len())),
        json_mib: Arc::new(Semaphore::new(routes::mib(options.max_json_bytes) as usize)),
        options,
        exec: exec.clone(),
        background_scrub: upkeep::Background::default(),
        shutdown: shutdown.clone(),
        end: CancellationToken::new(),
    });
    upkeep::recall(&app);
    let router = routes::router(routes, app.clone());
    exec.spawn(upkeep::run(app.clone()));
    if let Some(manager) = app.options.manager.clone() {
        let (app, shutdown) = (app.clone(), shutdown.clone());
        exec.spawn(async move {
            shutdown.run_until_cancelled(manager.watch_storage(&app)).await;
        });
    }
    if let Some(farm) = farm {
        exec.spawn(farm::run(app.clone(), farm));
    }
    for listener in listeners {
        exec.spawn(accept(listener, app.clone(), router.clone(), shutdown.clone()));
    }
    shutdown.cancelled().await;
    tokio::select! {
        () = exec.finish() => {}
        () = now.cancelled() => {}
        () = tokio::time::sleep(app.options.grace) => {
            tracing::warn!("the grace period is over: unfinished requests are broken off");
        }
    }
    app.end.cancel();
    exec.finish().await;
    app.store.give_up_all();
}

async fn accept(listener: TcpListener, app: App, router: Router, shutdown: CancellationToken) {
    loop {
        let accepting = async {
            let permit = app.connections.clone().acquire_owned().await.expect("BUG: never closed");
            listener.accept().await.map(|accepted| (permit, accepted))
        };
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = accepting => accepted,
        };
        match accepted {
            Ok((permit, (stream, peer))) => {
                let serve = connection::start(
                    stream,
                    peer_of(peer),
                    app.clone(),
                    router.clone(),
                    shutdown.clone(),
                );
                let counted = metrics::Counted::new(&app.metrics.connections);
                app.exec.spawn(async move {
                    let _counted = counted;
                    serve.await;
                    drop(permit);
                });
            }
            Err(error) => {
                // A connection reset before it was accepted, or too many open files: the latter
                // would spin until one is closed.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn peer_of(address: SocketAddr) -> Peer {
    Peer(address.ip().to_canonical())
}
