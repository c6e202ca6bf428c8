//! One connection, from accept to close.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::Instrument;

use super::{
    App, Options, Peer,
    access::admit,
    body::Draining,
    gateway::{self, Tunnels},
    unfold::Unfold,
};

/// What a connection reads at once, at most; no head can be longer. Of a body that comes faster than the
/// disk takes it, some five of these are in memory (of few bodies at once, a dozen): hyper's own buffer would be of 400 KiB.
const MAX_BUFFER_BYTES: usize = 128 << 10;

/// Begins with TLS where that is spoken, which must not take longer than the head of a request.
pub(super) async fn start(
    stream: TcpStream,
    peer: Peer,
    app: App,
    router: Router,
    shutdown: CancellationToken,
) {
    // Answers are small: without this they may wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let Some(tls) = app.options.tls.clone() else {
        return serve(stream, peer, app, router, shutdown).await;
    };
    let handshake = tokio::time::timeout(app.options.head_timeout, tls.acceptor().accept(stream));
    match shutdown.run_until_cancelled(handshake).await {
        Some(Ok(Ok(stream))) => serve(stream, peer, app, router, shutdown).await,
        Some(Ok(Err(error))) => tracing::debug!(peer = %peer.0, %error, "no TLS"),
        Some(Err(_)) => tracing::debug!(peer = %peer.0, "TLS took too long"),
        None => {}
    }
}

/// Serves requests until the client or the shutdown closes the connection, or it is silent too long.
async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    peer: Peer,
    app: App,
    router: Router,
    shutdown: CancellationToken,
) {
    let activity = Arc::new(Activity::default());
    let tunnels = Tunnels::default();
    let service = {
        let (app, activity, tunnels) = (app.clone(), activity.clone(), tunnels.clone());
        service_fn(move |request: hyper::Request<Incoming>| {
            let expects_continue = request
                .headers()
                .get(hyper::header::EXPECT)
                .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
            let mut request: Request =
                request.map(|body| Body::new(Draining::new(body, app.clone(), expects_continue)));
            request.extensions_mut().insert(peer);
            let answering = activity.answer();
            // Before anybody else sees the request: then nobody else sees the token.
            let has_manager = app.options.manager.is_some();
            let admitted = admit(&app.options.access, peer, has_manager, &mut request);
            let (app, router) = (app.clone(), router.clone());
            let (activity, tunnels) = (activity.clone(), tunnels.clone());
            async move {
                let _answering = answering;
                let answer = match admitted {
                    Ok(None) => answer(&app, router, request, activity, tunnels).await,
                    Ok(Some(name)) => {
                        let span = tracing::info_span!("as", token = name);
                        answer(&app, router, request, activity, tunnels).instrument(span).await
                    }
                    Err(error) => error.into_response(),
                };
                Ok::<_, Infallible>(answer)
            }
        })
    };
    let socket = Unfold::new(stream, activity.clone());
    let connection = hyper::server::conn::http1::Builder::new()
        .header_read_timeout(None) // ours knows busy from idle: see `Activity`
        .max_buf_size(MAX_BUFFER_BYTES)
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    tokio::pin!(connection);
    let silence = activity.silence(&app.options);
    tokio::pin!(silence);
    let mut stopping = false;
    loop {
        tokio::select! {
            done = connection.as_mut() => {
                if let Err(error) = done {
                    if error.is_parse() {
                        app.metrics.malformed.inc();
                    }
                    tracing::debug!(peer = %peer.0, %error, "connection closed");
                }
                // What it has become, if it was upgraded, is no longer hyper's, but still a connection.
                return tunnels.ended().await;
            }
            () = silence.as_mut() => {
                tracing::debug!(peer = %peer.0, "connection silent for too long");
                return;
            }
            () = app.end.cancelled() => return,
            () = shutdown.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// The answer to a request that was let in: ours, or the Manager's.
async fn answer(
    app: &App,
    router: Router,
    mut request: Request,
    activity: Arc<Activity>,
    tunnels: Tunnels,
) -> Response {
    match &app.options.manager {
        Some(manager) if !gateway::is_ours(request.uri().path()) => {
            request.extensions_mut().insert(tunnels);
            let answer = gateway::pass(app, manager, request).await;
            answer.map(|body| Body::new(Awaited { body, activity, waiting: None }))
        }
        _ => router.oneshot(request).await.unwrap_or_else(|never| match never {}),
    }
}

/// The body of an answer that may be silent for as long as it likes, like a stream of events. While it
/// is waited for, the connection counts as busy; not while the client takes nothing.
struct Awaited {
    body: Body,
    activity: Arc<Activity>,
    waiting: Option<Answering>,
}

impl HttpBody for Awaited {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if frame.is_ready() {
            this.waiting = None;
        } else if this.waiting.is_none() {
            this.waiting = Some(this.activity.answer());
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What a connection is doing, to tell the silent from the slow: a request that is being answered
/// is never silent, however long that takes (its body has a time limit of its own).
#[derive(Debug)]
pub(super) struct Activity {
    start: Instant,
    /// Milliseconds from `start` to the last byte, or to the first byte of the current head.
    since_ms: AtomicU64,
    /// Bytes of a head have come, and its request is not being answered yet.
    in_head: AtomicUsize,
    answering: AtomicUsize,
    answered: AtomicUsize,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            since_ms: AtomicU64::new(0),
            in_head: AtomicUsize::new(0),
            answering: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
        }
    }
}

impl Activity {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A byte of a head has come. The time for a head counts from its first byte.
    pub fn head_byte(&self) {
        if self.in_head.swap(1, Relaxed) == 0 {
            self.moved();
        }
    }

    /// Bytes of a body or an answer went past.
    pub fn moved(&self) {
        self.since_ms.store(self.now_ms(), Relaxed);
    }

    /// Bytes came that may be of a body or of a head.
    pub fn any_byte(&self) {
        if self.answering.load(Relaxed) > 0 { self.moved() } else { self.head_byte() }
    }

    /// A request is being answered until the guard is dropped.
    fn answer(self: &Arc<Self>) -> Answering {
        self.in_head.store(0, Relaxed);
        self.answering.fetch_add(1, Relaxed);
        Answering(self.clone())
    }

    /// How long this connection may still be silent; `None` while it is busy.
    fn left(&self, options: &Options) -> Option<Duration> {
        if self.answering.load(Relaxed) > 0 {
            return None;
        }
        let fresh = self.answered.load(Relaxed) == 0;
        let limit = if fresh || self.in_head.load(Relaxed) > 0 {
            options.head_timeout
        } else {
            options.idle_timeout
        };
        let silent = self.now_ms().saturating_sub(self.since_ms.load(Relaxed));
        Some(limit.saturating_sub(Duration::from_millis(silent)))
    }

    /// Waits until the connection has been silent for too long.
    async fn silence(&self, options: &Options) {
        loop {
            match self.left(options) {
                Some(Duration::ZERO) => return,
                // It may become silent at any time, and is given the shorter limit at least.
                left => {
                    let shortest = options.head_timeout.min(options.idle_timeout);
                    tokio::time::sleep(left.unwrap_or(shortest).min(shortest)).await;
                }
            }
        }
    }
}

struct Answering(Arc<Activity>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.moved();
        self.0.answered.fetch_add(1, Relaxed);
        self.0.answering.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tells_silent_from_slow() {
        let options = Options::default();
        let (head, idle) = (options.head_timeout, options.idle_timeout);
        let second = Duration::from_secs(1);
        let activity = Arc::new(Activity::default());
        assert_eq!(activity.left(&options), Some(head));

        // A head that drips in has the time of one head.
        for _ in 0..10 {
            activity.head_byte();
            tokio::time::advance(second).await;
        }
        assert_eq!(activity.left(&options), Some(head - 10 * second));

        let answering = activity.answer();
        tokio::time::advance(1000 * second).await;
        assert_eq!(activity.left(&options), None);
        drop(answering);
        assert_eq!(activity.left(&options), Some(idle));

        activity.head_byte();
        tokio::time::advance(head).await;
        assert_eq!(activity.left(&options), Some(Duration::ZERO));
        activity.silence(&options).await;
    }
}
