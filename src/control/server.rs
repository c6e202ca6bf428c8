//! The agent's side: a few routes, for those who know the token.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Query, Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use tokio::{net::TcpListener, sync::broadcast::error::RecvError};
use tokio_util::sync::CancellationToken;

use super::{
    ROOT,
    scan::{ScanAnswer, ScanRequest},
};
use crate::{
    agent::{Agent, NoScan},
    scan,
};

/// How long nothing may be said on a stream of events.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
struct Dir {
    dir: std::path::PathBuf,
}

/// Answers for an agent until it is cancelled.
///
/// # Errors
/// If the listener fails.
pub async fn serve(
    listener: TcpListener,
    agent: Arc<Agent>,
    token: String,
    end: CancellationToken,
) -> std::io::Result<()> {
    let token: Arc<str> = format!("Bearer {token}").into();
    let ended = end.clone();
    let routes = Router::new()
        .route("/status", get(async |State(agent): State<Arc<Agent>>| Json(agent.status())))
        .route(
            "/pause",
            post(async |State(agent): State<Arc<Agent>>| {
                agent.pause();
                Json(agent.status())
            }),
        )
        .route(
            "/resume",
            post(async |State(agent): State<Arc<Agent>>| {
                agent.resume();
                Json(agent.status())
            }),
        )
        .route("/scan", post(scan_now))
        .route("/events", get(move |state| events(state, ended.clone())))
        .route("/yield", get(yield_to));
    let router = Router::new()
        .nest(ROOT, routes)
        .layer(DefaultBodyLimit::max(64 * 1024))
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            let token = token.clone();
            async move {
                let shown = request.headers().get(header::AUTHORIZATION);
                let shown = shown.map(|shown| shown.as_bytes()).unwrap_or_default();
                if bool::from(shown.ct_eq(token.as_bytes())) {
                    next.run(request).await
                } else {
                    (StatusCode::UNAUTHORIZED, "the token in the agent's file is needed\n")
                        .into_response()
                }
            }
        }))
        .with_state(agent);
    axum::serve(listener, router).with_graceful_shutdown(end.cancelled_owned()).await
}

async fn scan_now(State(agent): State<Arc<Agent>>, Json(asked): Json<ScanRequest>) -> Response {
    let options = scan::Options {
        default_ignores: asked.default_ignores,
        ignores: asked.ignores,
        ..scan::Options::default()
    };
    match agent.scan(&asked.dir, &options).await {
        Ok((scan, was_known)) => {
            // A large folder is a large answer.
            let answer = tokio::task::spawn_blocking(move || {
                serde_json::to_vec(&ScanAnswer::new(&scan, was_known))
            });
            match answer.await {
                Ok(Ok(body)) => {
                    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
                }
                _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            }
        }
        Err(error @ NoScan::NotWatched(_)) => {
            (StatusCode::NOT_FOUND, error.to_string()).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Has the agent send nothing for other folders until the client goes away.
async fn yield_to(State(agent): State<Arc<Agent>>, Query(Dir { dir }): Query<Dir>) -> Response {
    let held = agent.yield_to(&dir);
    let (sender, receiver) = tokio::sync::mpsc::channel::<Event>(1);
    tokio::spawn(async move {
        // If nobody hears that, nobody wants it.
        let _ = sender.send(Event::default().event("held").data("")).await;
        sender.closed().await;
        drop(held);
    });
    Sse::new(Stream(receiver)).into_response()
}

/// All that changes, after what it is at now.
async fn events(State(agent): State<Arc<Agent>>, end: CancellationToken) -> Response {
    let (sender, receiver) = tokio::sync::mpsc::channel::<Event>(16);
    let mut changes = agent.events();
    tokio::spawn(async move {
        let status = || event("status", &agent.status());
        let mut next = status();
        loop {
            if sender.send(next).await.is_err() {
                return;
            }
            next = tokio::select! {
                () = end.cancelled() => return,
                () = sender.closed() => return,
                change = changes.recv() => match change {
                    Ok(change) => event("change", &change),
                    // Whoever is slow gets all of it again.
                    Err(RecvError::Lagged(_)) => status(),
                    Err(RecvError::Closed) => return,
                }
            };
        }
    });
    let stream = Stream(receiver);
    Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

fn event(name: &str, data: &impl Serialize) -> Event {
    let data = serde_json::to_string(data).expect("BUG: a status is plain data");
    Event::default().event(name).data(data)
}

struct Stream(tokio::sync::mpsc::Receiver<Event>);

impl futures_core::Stream for Stream {
    type Item = Result<Event, Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|event| event.map(Ok))
    }
}
