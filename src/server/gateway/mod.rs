//! In front of a Flamenco Manager: what is not ours goes to it, and its answers come back, as they
//! are. Nothing is followed, stored, unpacked or put together on the way, with these exceptions:
//! the Manager's answers about Shaman, submitted jobs that do not name their checkout, and jobs
//! that are deleted with their checkout.

mod check;
mod deletion;
mod json;
mod manager;
mod paths;
mod route;
mod storage;
mod submit;

use std::sync::Arc;

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header},
};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::{App, Peer};
use crate::wire;
pub(super) use deletion::live_user;
use json::Members;
pub use manager::{BadManager, Gateway, GatewayOptions};
use manager::{Head, NoAnswer};
pub use storage::{CheckoutPaths, Comparison, ManagerStorage};

/// Headers that are about one connection, and not about what is sent over it.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Whether a path is served by us; the Manager has all others.
pub(super) fn is_ours(path: &str) -> bool {
    let below = |root: &str| {
        path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    below(wire::SHAMAN) || below(wire::ADMIN) || matches!(path, "/healthz" | "/readyz" | "/metrics")
}

/// Whether a request is to become a tunnel: a WebSocket. Other protocols would take requests past
/// all that is checked here (HTTP/2 above all), and are not passed on.
pub(super) fn is_tunnel(request: &Request) -> bool {
    let headers = request.headers();
    let wants = |name: HeaderName, word: &str| {
        let mut words = headers.get_all(name).iter().flat_map(words);
        words.any(|found| found.eq_ignore_ascii_case(word))
    };
    let mut protocols = headers.get_all(header::UPGRADE).iter().flat_map(words);
    *request.method() == Method::GET
        && request.version() == Version::HTTP_11
        && wants(header::CONNECTION, "upgrade")
        && protocols.next().is_some_and(|one| one.eq_ignore_ascii_case("websocket"))
        && protocols.next().is_none()
}

/// The tunnels of one connection: it is one as long as they last.
#[derive(Debug, Clone, Default)]
pub(super) struct Tunnels(TaskTracker);

impl Tunnels {
    /// Waits until they have ended. None may be added any more.
    pub async fn ended(&self) {
        self.0.close();
        self.0.wait().await;
    }
}

/// The Manager's answer to a request, or why there is none.
pub(super) async fn pass(
    app: &App,
    gateway: &Arc<Gateway>,
    request: Request,
) -> axum::response::Response {
    let (start, method) = (Instant::now(), request.method().clone());
    let answer = try_pass(app, gateway, request).await;
    let answer = answer.unwrap_or_else(|error| error.answer(gateway));
    app.metrics.passed(&method, answer.status(), start.elapsed());
    answer
}

async fn try_pass(
    app: &App,
    gateway: &Arc<Gateway>,
    mut request: Request,
) -> Result<axum::response::Response, NoAnswer> {
    let tunnel = is_tunnel(&request).then(|| {
        let tunnels = request.extensions_mut().remove::<Tunnels>().unwrap_or_default();
        (hyper::upgrade::on(&mut request), tunnels)
    });
    let peer = request.extensions().get::<Peer>().copied();
    let (parts, mut body) = request.into_parts();
    let target =
        parts.uri.path_and_query().cloned().filter(|target| target.path().starts_with('/'));
    let target = target.ok_or(NoAnswer::NoPath)?;
    if gateway.has_seen(&parts.headers) {
        return Err(NoAnswer::Loop);
    }
    let mut headers = parts.headers;
    let protocol = tunnel.as_ref().and_then(|_| headers.get(header::UPGRADE).cloned());
    strip(&mut headers);
    // What a client expects before it sends its body, it gets from us.
    headers.remove(header::EXPECT);
    forward(&mut headers, peer, app.options.tls.is_some());
    gateway.sign(&mut headers);
    if let Some(protocol) = protocol {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
    let mut head = Head { method: parts.method, target, headers };
    if let Some(deletion) = deletion::Deletion::of(&head) {
        return deletion.pass(app, gateway, head, body).await;
    }
    if submit::is_submit(&head) {
        body = match submit::prepare(app, gateway, &mut head, body).await? {
            Ok(body) => body,
            Err(refusal) => return Ok(refusal),
        };
    }
    let correction = Correction::of(&head);
    if correction.is_some() {
        head.headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    let mut answer = gateway.send(&head, body, app.options.body_timeout).await?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some((client, tunnels)) = tunnel else {
            return Err(NoAnswer::Broken("it answers 101 to what is no WebSocket".into()));
        };
        let manager = hyper::upgrade::on(&mut answer);
        let shutdown = app.shutdown.clone();
        app.exec.spawn(tunnels.0.track_future(async move {
            shutdown.run_until_cancelled(join(client, manager)).await;
        }));
        let protocol = answer.headers().get(header::UPGRADE).cloned();
        let mut answer = passed(answer).map(|_| Body::empty());
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = protocol {
            answer.headers_mut().insert(header::UPGRADE, protocol);
        }
        return Ok(answer);
    }
    match correction {
        Some(correction) => correction.make(app, gateway, &head, answer).await,
        None => Ok(passed(answer)),
    }
}

/// Lets both sides speak to each other until both have ended, or one breaks.
async fn join(client: OnUpgrade, manager: OnUpgrade) {
    let joined = async {
        let (client, manager) = tokio::try_join!(client, manager).map_err(std::io::Error::other)?;
        let (mut client, mut manager) = (TokioIo::new(client), TokioIo::new(manager));
        tokio::io::copy_bidirectional(&mut client, &mut manager).await
    };
    match joined.await {
        Ok((sent, received)) => tracing::debug!(sent, received, "a tunnel has ended"),
        Err(error) => tracing::debug!(%error, "a tunnel broke"),
    }
}

/// The Manager's answer as the client gets it.
fn passed(answer: Response<Incoming>) -> axum::response::Response {
    let mut answer = answer.map(Body::new);
    strip(answer.headers_mut());
    answer
}

/// The words of a list.
fn words(value: &HeaderValue) -> impl Iterator<Item = &str> {
    let words = value.to_str().unwrap_or_default().split(',');
    words.map(str::trim).filter(|word| !word.is_empty())
}

/// Takes off what is about the connection it came over.
fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // That one counts; two that disagree would be understood in two ways.
        headers.remove(header::CONTENT_LENGTH);
    }
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(words)
        .filter_map(|word| word.parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Says where a request comes from.
fn forward(headers: &mut HeaderMap, peer: Option<Peer>, https: bool) {
    if let Some(peer) = peer {
        let before = headers.get_all(FORWARDED_FOR).iter().flat_map(words);
        let all: Vec<String> = before.map(str::to_owned).chain([peer.0.to_string()]).collect();
        if let Ok(value) = HeaderValue::try_from(all.join(", ")) {
            headers.insert(FORWARDED_FOR, value);
        }
    }
    match headers.remove(header::HOST) {
        Some(host) => headers.insert(FORWARDED_HOST, host),
        None => headers.remove(FORWARDED_HOST),
    };
    let proto = HeaderValue::from_static(if https { "https" } else { "http" });
    headers.insert(FORWARDED_PROTO, proto);
}

/// `/api/v3/configuration/shared-storage/{audience}/{platform}`
fn is_shared_storage(path: &str) -> bool {
    let rest = path.strip_prefix("/api/v3/configuration/shared-storage/");
    rest.and_then(|rest| rest.split_once('/'))
        .is_some_and(|(audience, platform)| !audience.is_empty() && !platform.contains('/'))
}

/// An answer of the Manager in which one member is corrected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Correction {
    /// `shamanEnabled` is true: there is a Shaman here, whatever the Manager itself has.
    ShamanEnabled,
    /// `shaman_checkout` and `checkout` say what this server does when the job is deleted.
    DeletionPreview,
}

impl Correction {
    fn of(head: &Head) -> Option<Self> {
        let path = head.target.path();
        match () {
            () if head.method != Method::GET => None,
            () if path == "/api/v3/configuration" || is_shared_storage(path) => {
                Some(Self::ShamanEnabled)
            }
            () if deletion::previewed_job(path).is_some() => Some(Self::DeletionPreview),
            () => None,
        }
    }

    async fn make(
        self,
        app: &App,
        gateway: &Arc<Gateway>,
        head: &Head,
        answer: Response<Incoming>,
    ) -> Result<axum::response::Response, NoAnswer> {
        if answer.status() != StatusCode::OK
            || answer.headers().contains_key(header::CONTENT_ENCODING)
        {
            return Ok(passed(answer));
        }
        let (mut parts, body) = answer.into_parts();
        let mut body = gateway.whole(body).await?;
        strip(&mut parts.headers);
        if let Some(members) = Members::read(&body) {
            let corrected = match self {
                Self::ShamanEnabled => Some(members.with("shamanEnabled", "true")),
                Self::DeletionPreview => deletion::preview(app, gateway, head, &members).await,
            };
            body = corrected.map_or(body.clone(), Into::into);
        }
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        Ok(Response::from_parts(parts, Body::from(body)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ours() {
        for path in [
            "/api/v3/shaman",
            "/api/v3/shaman/",
            "/api/v3/shaman/files/00/1",
            "/farmhand/v1",
            "/farmhand/v1/gc",
            "/healthz",
            "/readyz",
            "/metrics",
        ] {
            assert!(is_ours(path), "{path}");
        }
        for path in [
            "/",
            "",
            "*",
            "/api/v3/openapi3.json",
            "/api/v3/shamanx",
            "/api/v3/shaman%2Ffiles",
            "//api/v3/shaman/files/00/1",
            "/farmhand/v10",
            "/healthz/",
            "/metrics/x",
        ] {
            assert!(!is_ours(path), "{path}");
        }
    }

    #[test]
    fn all_that_is_registered_is_ours_but_the_document() {
        let (_, document) = super::super::routes::routes(None);
        for path in document.paths.paths.keys() {
            assert_eq!(is_ours(path), path != "/api/v3/openapi3.json", "{path}");
        }
    }

    #[test]
    fn only_websockets_are_tunnels() {
        let tunnel = |method: &str, headers: &[(&str, &str)]| {
            let mut request = Request::builder().method(method).uri("/ws");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            is_tunnel(&request.body(Body::empty()).unwrap())
        };
        let upgrade = ("connection", "keep-alive, Upgrade");
        assert!(tunnel("GET", &[upgrade, ("upgrade", "WebSocket")]));
        assert!(!tunnel("POST", &[upgrade, ("upgrade", "websocket")]));
        assert!(!tunnel("GET", &[upgrade]));
        assert!(!tunnel("GET", &[("upgrade", "websocket")]));
        for other in ["h2c", "h2c, websocket", "websocket, h2c", "", "TLS/1.0"] {
            assert!(!tunnel("GET", &[upgrade, ("upgrade", other)]), "{other}");
        }
        assert!(!tunnel("GET", &[upgrade, ("upgrade", "websocket"), ("upgrade", "h2c")]));
    }

    #[test]
    fn shared_storage_has_an_audience_and_a_platform() {
        let root = "/api/v3/configuration/shared-storage";
        assert!(is_shared_storage(&format!("{root}/users/linux")));
        for other in ["", "/", "/users", "/users/linux/x", "//linux"] {
            assert!(!is_shared_storage(&format!("{root}{other}")), "{other}");
        }
    }

    #[test]
    fn answers_about_shaman_are_corrected() {
        let of = |method: Method, path: &str| {
            Correction::of(&Head {
                method,
                target: path.try_into().unwrap(),
                headers: HeaderMap::new(),
            })
        };
        let root = "/api/v3/configuration";
        assert_eq!(of(Method::GET, root), Some(Correction::ShamanEnabled));
        assert_eq!(of(Method::GET, &format!("{root}?x")), Some(Correction::ShamanEnabled));
        assert_eq!(of(Method::GET, &format!("{root}/file")), None);
        assert_eq!(of(Method::PUT, root), None);
        let preview = "/api/v3/jobs/a-1/what-would-delete-do";
        assert_eq!(of(Method::GET, preview), Some(Correction::DeletionPreview));
        assert_eq!(of(Method::GET, "/api/v3/jobs//what-would-delete-do"), None);
    }
}
