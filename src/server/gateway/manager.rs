//! The Manager: how it is reached, what it is asked, and what is said when it gives no answer.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header,
        uri::{Authority, PathAndQuery, Scheme},
    },
    response::IntoResponse,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use rustls_platform_verifier::Verifier;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::Instant;

use super::{
    super::{ApiError, error::chain},
    route::Route,
    storage::{CheckoutPaths, StorageState},
};
use crate::wire::hide_tokens;

type Client = legacy::Client<HttpsConnector<Route>, Body>;

/// Marks answers that are ours and not the Manager's, and requests that we have passed on already.
pub(super) const MARK: HeaderName = HeaderName::from_static("x-farmhand-gateway");

/// How long a connection to the Manager is kept for the next request. Shorter than servers keep
/// theirs: a request on one that is just being closed would be lost.
const IDLE: Duration = Duration::from_secs(15);

/// What one connection to the Manager reads at once.
const MAX_BUFFER_BYTES: usize = 128 << 10;

/// The longest answer that we read ourselves: the list of all jobs.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// How the Manager is talked to.
#[derive(Clone)]
pub struct GatewayOptions {
    /// How long to try to connect.
    pub connect_timeout: Duration,
    /// How long it may take to begin its answer, once it has all of the request.
    pub answer_timeout: Duration,
    /// Headers that each request to it gets, in the place of what the client has sent of the same
    /// name. They may be secrets, and are never shown.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Root certificates besides those of the machine.
    pub roots: Vec<CertificateDer<'static>>,
    /// How checkouts are named to clients.
    pub checkout_paths: CheckoutPaths,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(120),
            headers: Vec::new(),
            roots: Vec::new(),
            checkout_paths: CheckoutPaths::default(),
        }
    }
}

impl fmt::Debug for GatewayOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("GatewayOptions")
            .field("connect_timeout", &self.connect_timeout)
            .field("answer_timeout", &self.answer_timeout)
            .field("headers", &names)
            .field("roots", &self.roots.len())
            .field("checkout_paths", &self.checkout_paths)
            .finish()
    }
}

impl GatewayOptions {
    /// Trusts the root certificates of a PEM file, too; false if there are none in it.
    #[must_use]
    pub fn trust(&mut self, pem: &[u8]) -> bool {
        match CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>() {
            Ok(roots) if !roots.is_empty() => {
                self.roots.extend(roots);
                true
            }
            _ => false,
        }
    }
}

/// Why there can be no gateway to a Manager.
#[derive(Debug, thiserror::Error)]
pub enum BadManager {
    /// It is no address.
    #[error("{0:?} is no address of a Manager: {1}; write http://HOST:PORT/")]
    Address(String, &'static str),
    /// The proxy that the environment names is none that can be used.
    #[error(
        "the Manager at {0} cannot be reached through the proxy {1}: it must begin with http://; change \
         HTTP_PROXY or HTTPS_PROXY, or name the Manager's host in NO_PROXY"
    )]
    Proxy(String, String),
    /// Nothing can be verified.
    #[error("https cannot be spoken to the Manager: {0}")]
    Tls(rustls::Error),
}

/// The way to a Manager.
pub struct Gateway {
    scheme: Scheme,
    authority: Authority,
    host: HeaderValue,
    /// The path of its root, without a slash at its end.
    prefix: String,
    /// The address as people may see it.
    shown: String,
    answer_timeout: Duration,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Tells requests that have come through here already.
    mark: HeaderValue,
    /// What a proxy on the way wants to see of each request.
    for_proxy: Option<HeaderValue>,
    pooled: Client,
    /// Uses no connection twice.
    fresh: Client,
    checkout_paths: CheckoutPaths,
    storage: StorageState,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gateway").field(&self.shown).finish()
    }
}

/// A request without its body, as the Manager gets it.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub method: Method,
    /// Path and query, as they came.
    pub target: PathAndQuery,
    pub headers: HeaderMap,
}

/// Why there is no answer of the Manager.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error("cannot be reached: {0}; is it running, and is the setting serve.manager its address?")]
    Unreachable(String),
    #[error("cannot be reached: it broke off: {0}; look at its log, and try again")]
    Broken(String),
    #[error(
        "has not answered for {} s; see what it is at, or give it more time with \
         serve.manager_timeout", .0.as_secs()
    )]
    Silent(Duration),
    #[error("leads back to this server: the setting serve.manager must be the address of another")]
    Loop,
    #[error("cannot be asked for what has no path")]
    NoPath,
    #[error("did not get the whole request: no data came for {} s", .0.as_secs())]
    ClientSilent(Duration),
    #[error("did not get the whole request: {0}")]
    ClientBroken(String),
}

impl NoAnswer {
    fn status(&self) -> StatusCode {
        match self {
            Self::Unreachable(_) | Self::Broken(_) => StatusCode::BAD_GATEWAY,
            Self::Silent(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Loop => StatusCode::LOOP_DETECTED,
            Self::NoPath | Self::ClientBroken(_) => StatusCode::BAD_REQUEST,
            Self::ClientSilent(_) => StatusCode::REQUEST_TIMEOUT,
        }
    }

    /// What the client gets instead.
    pub fn answer(&self, gateway: &Gateway) -> axum::response::Response {
        let (status, message) = (self.status(), format!("the Manager at {} {self}", gateway.shown));
        if status.is_server_error() {
            tracing::warn!("{message}");
        } else {
            tracing::debug!("{message}");
        }
        let mut answer = ApiError::new(status, message).into_response();
        answer.headers_mut().insert(MARK, HeaderValue::from_static("error"));
        answer
    }
}

#[derive(Deserialize)]
struct Version {
    name: String,
    version: String,
}

impl Gateway {
    /// The way to the Manager whose root is this address.
    ///
    /// # Errors
    /// If that is no address, or the machine has no root certificates for https.
    pub fn new(url: &str, options: GatewayOptions) -> Result<Self, BadManager> {
        let bad = |why| BadManager::Address(hide_tokens(url).into_owned(), why);
        let uri: Uri = url.parse().map_err(|_| bad("it cannot be understood"))?;
        let (Some(scheme), Some(authority)) = (uri.scheme().cloned(), uri.authority().cloned())
        else {
            return Err(bad("it does not begin with http:// or https://"));
        };
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return Err(bad("it does not begin with http:// or https://"));
        }
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(bad("it must have a host, and no user or password"));
        }
        if uri.query().is_some() || url.contains('#') {
            return Err(bad("it must end with a path"));
        }
        let host =
            HeaderValue::try_from(authority.as_str()).map_err(|_| bad("its host is none"))?;
        let mut headers = options.headers;
        for (_, value) in &mut headers {
            value.set_sensitive(true);
        }
        let tls = tls(scheme == Scheme::HTTPS, options.roots).map_err(BadManager::Tls)?;
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(options.connect_timeout));
        // A tunnel may be silent for hours; whether anybody is there is for TCP to find out.
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        let route = Route::new(tcp, &uri)
            .map_err(|proxy| BadManager::Proxy(hide_tokens(url).into_owned(), proxy))?;
        if let Some(proxy) = route.proxy() {
            tracing::info!(%proxy, "the Manager is reached through a proxy");
        }
        let for_proxy = route.authorization().cloned();
        let connector = HttpsConnector::from((route, tls));
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        builder
            .http1_max_buf_size(MAX_BUFFER_BYTES)
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE);
        Ok(Self {
            prefix: uri.path().trim_end_matches('/').to_owned(),
            shown: hide_tokens(url).into_owned(),
            scheme,
            authority,
            host,
            answer_timeout: options.answer_timeout,
            headers,
            mark: HeaderValue::from(fastrand::u64(..)),
            for_proxy,
            fresh: builder.clone().pool_max_idle_per_host(0).build(connector.clone()),
            pooled: builder.build(connector),
            checkout_paths: options.checkout_paths,
            storage: StorageState::default(),
        })
    }

    /// The address as people may see it.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// How checkouts are named to clients.
    pub fn checkout_paths(&self) -> CheckoutPaths {
        self.checkout_paths
    }

    pub(super) fn storage(&self) -> &StorageState {
        &self.storage
    }

    /// Whether a request has come through here before.
    pub(super) fn has_seen(&self, headers: &HeaderMap) -> bool {
        headers.get_all(MARK).iter().any(|mark| *mark == self.mark)
    }

    /// Puts in what the Manager gets from us.
    pub(super) fn sign(&self, headers: &mut HeaderMap) {
        headers.insert(header::HOST, self.host.clone());
        headers.append(MARK, self.mark.clone());
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
    }

    /// Sends a request; returns when the answer has begun. No data of the body may come for
    /// `body_timeout`. What cannot have done anything is tried once more if it was broken off: the
    /// Manager may have closed a connection just when we took it for the next request.
    pub(super) async fn send(
        &self,
        head: &Head,
        body: Body,
        body_timeout: Duration,
    ) -> Result<Response<Incoming>, NoAnswer> {
        let harmless = matches!(head.method, Method::GET | Method::HEAD) && body.is_end_stream();
        let answer = match self.try_send(&self.pooled, head, body, body_timeout).await {
            Err(NoAnswer::Broken(reason)) if harmless => {
                tracing::debug!(reason, "the Manager broke off: asking again");
                self.try_send(&self.fresh, head, Body::empty(), body_timeout).await
            }
            answer => answer,
        };
        match &answer {
            // A proxy before the Manager may speak for one that is not there.
            Ok(answer) => self.storage.note_contact(!matches!(
                answer.status(),
                StatusCode::BAD_GATEWAY
                    | StatusCode::SERVICE_UNAVAILABLE
                    | StatusCode::GATEWAY_TIMEOUT
            )),
            Err(error) if error.status().is_server_error() => self.storage.note_contact(false),
            Err(_) => {}
        }
        answer
    }

    async fn try_send(
        &self,
        client: &Client,
        head: &Head,
        body: Body,
        body_timeout: Duration,
    ) -> Result<Response<Incoming>, NoAnswer> {
        let target = if self.prefix.is_empty() {
            Ok(head.target.clone())
        } else {
            PathAndQuery::try_from(format!("{}{}", self.prefix, head.target))
        };
        let uri = Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(target.map_err(|_| NoAnswer::NoPath)?)
            .build()
            .map_err(|_| NoAnswer::NoPath)?;
        let endless = !body.is_end_stream() && body.size_hint().exact().is_none();
        let progress = Arc::new(Progress::default());
        let mut request = Request::new(Body::new(Watched { body, progress: progress.clone() }));
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = head.headers.clone();
        if let Some(authorization) = &self.for_proxy {
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, authorization.clone());
        }
        if endless {
            // Otherwise no body would be sent with some methods.
            let chunked = HeaderValue::from_static("chunked");
            request.headers_mut().insert(header::TRANSFER_ENCODING, chunked);
        }
        let answering = client.request(request);
        tokio::pin!(answering);
        loop {
            let (end, _) = progress.end(self.answer_timeout, body_timeout);
            tokio::select! {
                answer = answering.as_mut() => {
                    return answer.map_err(|error| progress.why(&error));
                }
                () = tokio::time::sleep_until(end) => {
                    let (end, error) = progress.end(self.answer_timeout, body_timeout);
                    if end <= Instant::now() {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// The answer to a question of our own; `body` is JSON.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
        mut headers: HeaderMap,
        body: Option<Vec<u8>>,
    ) -> Result<T, String> {
        const JSON: HeaderValue = HeaderValue::from_static("application/json");
        headers.insert(header::ACCEPT, JSON);
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let body = match body {
            Some(body) => {
                headers.insert(header::CONTENT_TYPE, JSON);
                Body::from(body)
            }
            None => Body::empty(),
        };
        let target =
            PathAndQuery::try_from(target).map_err(|_| format!("{target:?} is no path"))?;
        let head = Head { method, target, headers };
        let answer = self.send(&head, body, self.answer_timeout).await;
        let answer = answer.map_err(|error| format!("it {error}"))?;
        let (status, method) = (answer.status(), &head.method);
        if status != StatusCode::OK {
            let path = hide_tokens(head.target.path());
            return Err(format!("it answers {status} to {method} {path}"));
        }
        let body = self.whole(answer.into_body()).await.map_err(|error| format!("it {error}"))?;
        serde_json::from_slice(&body).map_err(|error| {
            format!(
                "its answer to {method} {} is none of a Manager: {error}",
                hide_tokens(head.target.path())
            )
        })
    }

    /// All of an answer's body.
    pub(super) async fn whole(&self, body: Incoming) -> Result<Bytes, NoAnswer> {
        let reading = Limited::new(body, MAX_ANSWER_BYTES).collect();
        match tokio::time::timeout(self.answer_timeout, reading).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) => Err(NoAnswer::Broken(chain(&*error))),
            Err(_) => Err(NoAnswer::Silent(self.answer_timeout)),
        }
    }

    /// Looks once whether a Manager is there, for the log.
    pub(super) async fn greet(&self) {
        let mut headers = HeaderMap::new();
        self.sign(&mut headers);
        match self.ask::<Version>(Method::GET, "/api/v3/version", headers, None).await {
            Ok(Version { name, version }) => {
                tracing::info!(name, version, "in front of the Manager at {}", self.shown);
            }
            Err(reason) => tracing::warn!(
                reason,
                "there is no Manager at {}, or it is not well; what is not for this server is \
                 passed on to it all the same",
                self.shown
            ),
        }
    }
}

fn tls(wanted: bool, extra: Vec<CertificateDer<'static>>) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    if !wanted {
        // Machines without root certificates can speak http.
        return Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
    }
    let verifier = Verifier::new_with_extra_roots(extra, provider)?;
    let dangerous = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    Ok(dangerous.with_no_client_auth())
}

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Manager,
    Client,
    Broken,
}

/// How far the body of a request is: a long one takes its time, and that is not the Manager's.
#[derive(Debug)]
struct Progress(Mutex<(Instant, Stage)>);

impl Default for Progress {
    fn default() -> Self {
        Self(Mutex::new((Instant::now(), Stage::Manager)))
    }
}

impl Progress {
    fn get(&self) -> (Instant, Stage) {
        *self.0.lock().expect("BUG: no one panics with this lock")
    }

    /// When it is too late, and what is wrong then.
    fn end(&self, answer_timeout: Duration, body_timeout: Duration) -> (Instant, NoAnswer) {
        match self.get() {
            (since, Stage::Client) => (since + body_timeout, NoAnswer::ClientSilent(body_timeout)),
            (since, _) => (since + answer_timeout, NoAnswer::Silent(answer_timeout)),
        }
    }

    fn why(&self, error: &legacy::Error) -> NoAnswer {
        match self.get().1 {
            Stage::Broken => NoAnswer::ClientBroken(chain(error)),
            _ if error.is_connect() => NoAnswer::Unreachable(chain(error)),
            _ => NoAnswer::Broken(chain(error)),
        }
    }
}

/// The body of a request on its way.
struct Watched {
    body: Body,
    progress: Arc<Progress>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let mut progress = self.progress.0.lock().expect("BUG: no one panics with this lock");
        *progress = match &frame {
            Poll::Pending => (progress.0, Stage::Client),
            Poll::Ready(Some(Err(_))) => (Instant::now(), Stage::Broken),
            Poll::Ready(_) => (Instant::now(), Stage::Manager),
        };
        drop(progress);
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_of_a_web_server() {
        for (url, prefix) in [
            ("http://farm:8080", ""),
            ("http://farm:8080/", ""),
            ("http://127.0.0.1:1/site/token/", "/site/token"),
            ("http://[::1]:8080/a%2Fb", "/a%2Fb"),
        ] {
            let gateway = Gateway::new(url, GatewayOptions::default()).unwrap();
            assert_eq!(gateway.prefix, prefix, "{url}");
        }
        for bad in [
            "",
            "farm",
            "farm:8080",
            "/farm",
            "ftp://farm/",
            "http://",
            "http:///x",
            "http://user:pass@farm/",
            "http://farm/?x",
            "http://farm/#x",
            "http://fa rm/",
        ] {
            let error = Gateway::new(bad, GatewayOptions::default()).unwrap_err().to_string();
            assert!(error.contains("write http://HOST:PORT/"), "{bad}: {error}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let headers = vec![(header::AUTHORIZATION, HeaderValue::from_static("Basic secret"))];
        let options = GatewayOptions { headers, ..GatewayOptions::default() };
        assert!(!format!("{options:?}").contains("secret"));
        let gateway = Gateway::new("http://farm/t/secret/", options).unwrap();
        assert!(!format!("{gateway:?}").contains("secret"), "{gateway:?}");
        let mut headers = HeaderMap::new();
        gateway.sign(&mut headers);
        assert!(!format!("{headers:?}").contains("secret"), "{headers:?}");
        assert_eq!(headers[header::AUTHORIZATION], "Basic secret");
    }

    #[test]
    fn roots_are_in_pem() {
        let mut options = GatewayOptions::default();
        assert!(!options.trust(b"") && !options.trust(b"nonsense"));
        let certified = rcgen::generate_simple_self_signed(["farm".to_owned()]).unwrap();
        assert!(options.trust(certified.cert.pem().as_bytes()));
        assert_eq!(options.roots.len(), 1);
    }
}
