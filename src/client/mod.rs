//! Any Shaman server over HTTP: typed calls, and answers sorted by what a caller must do next.

mod admin;
mod body;
mod download;
mod error;
mod extension;
mod job;
mod manager;
mod probe;
mod trust;

use std::{
    sync::{Arc, Once},
    time::Duration,
};

use backon::{ExponentialBuilder, Retryable};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, header, redirect};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::Instant;

pub use admin::EraseRequest;
pub use body::UploadBody;
pub use download::{Download, DownloadError};
pub use error::ClientError;
pub use extension::Unfinished;
pub use job::{RemoteJob, RemoteStatus, RemoteStorage};
pub use manager::{Deletion, FarmStatus, FoundType, SharedStorage, Tag, Task, Version, is_refusal};
pub use probe::{Clocks, Exposure, Probe};
pub use trust::{BadHeader, BadRoots, BadToken, Headers, Roots, Token};

use crate::{
    domain::{BlobId, BlobStatus},
    wire::{
        self, CheckoutAnswer, CheckoutRequest, FileSpec, FileStatus, Problem, RequirementsAnswer,
        RequirementsRequest, StatusAnswer, hide_tokens,
    },
};
use body::{Pulse, StreamedBody};

/// What we call ourselves.
const USER_AGENT: &str = concat!("farmhand/", env!("CARGO_PKG_VERSION"));

/// How much of an error's body is read, in bytes.
const MAX_ERROR_BYTES: usize = 64 * 1024;

/// The longest answer to a small call, in bytes: the list of all jobs.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// How much an answer may say of one file that it was asked for, besides its path.
const ANSWER_BYTES_PER_FILE: usize = 1 << 10;

/// What becomes of a path in JSON at worst: an escape for each byte.
const JSON_ESCAPE_BYTES: usize = 6;

/// How many redirects are followed for one request.
const MAX_REDIRECTS: usize = 5;

/// How long an error's body may take.
const ERROR_TEXT_TIMEOUT: Duration = Duration::from_secs(10);

/// If a server has made up its mind before it has seen more than this of the rest of a body, the
/// rest is not sent and the connection given up.
const FINISH_REST_BYTES: u64 = 1 << 20;

tokio::task_local! {
    /// The request that is made here does something: to be sent elsewhere as a GET is no answer to it.
    static DOES_SOMETHING: ();
}

/// How much a call may take.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// How long one try may take.
    time: Duration,
    /// No other try is begun after that. So a server that takes requests and never answers does not cost
    /// the time of all tries.
    patience: Duration,
    /// How long the answer may be, in bytes.
    bytes: usize,
}

/// How to talk to a server.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long to try to connect.
    pub connect_timeout: Duration,
    /// How long nothing may move: no byte of a body taken, no answer. Servers may take their time
    /// for a large checkout.
    pub stall_timeout: Duration,
    /// How long the whole of a small answer may take: a version, a status, a list. Five times that where
    /// the server has something to do for it, like taking a job.
    pub call_timeout: Duration,
    /// How often a call is tried again after a failure that may pass.
    pub retries: usize,
    /// Whether proxies of the environment (`HTTP_PROXY`, …) are used; never for loopback addresses.
    pub proxies: bool,
    /// What is shown to the server, and to no other that it sends us to.
    pub token: Option<Token>,
    /// What else is, for proxies in front of it that ask who is there.
    pub headers: Headers,
    /// Root certificates besides those of the machine.
    pub roots: Roots,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(600),
            call_timeout: Duration::from_secs(30),
            retries: 5,
            proxies: true,
            token: None,
            headers: Headers::default(),
            roots: Roots::default(),
        }
    }
}

/// What became of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadOutcome {
    /// The server has stored it (200 or 204).
    Stored,
    /// The server had it already (208).
    AlreadyStored,
    /// Somebody else is sending it (425): go on with others.
    Deferred,
    /// It is not what its name says (417): hash the file again. With what the server said.
    Rejected(String),
    /// The connection broke before an answer: ask for the status.
    Unknown(String),
    /// Not now: the server cannot be reached, or says so (408, 429, 5xx). Try again later.
    Later {
        /// Why.
        reason: String,
        /// How long the server wants to be left alone.
        pause: Option<Duration>,
        /// Whether it was the server that said so.
        reached: bool,
    },
}

/// What a server says to a request that is about an upload: an answer, or what became of the upload.
pub type Told<T> = Result<Result<T, UploadOutcome>, ClientError>;

/// A connection pool to one Shaman server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shaman {
    http: reqwest::Client,
    /// Ends with a slash.
    base: Url,
    /// Where the token goes. The base may move; this does not.
    home: Url,
    options: Options,
}

/// A plain HTTP client for other processes on this machine; `None` if there can be none.
pub fn loopback() -> Option<reqwest::Client> {
    install_provider();
    reqwest::Client::builder().user_agent(USER_AGENT).no_proxy().tls_certs_only([]).build().ok()
}

fn install_provider() {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Fails only if the program has installed another one, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

impl Shaman {
    /// A client for the server at this URL: the address that is also given to the add-on, perhaps
    /// with a path (`http://farm:8080/`, `https://studio/flamenco/`). Nothing is sent yet.
    ///
    /// # Errors
    /// If the URL is none, or TLS cannot be set up.
    pub fn new(url: &str, options: Options) -> Result<Self, ClientError> {
        install_provider();
        let base = base_url(url)?;
        let mut builder = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .connect_timeout(options.connect_timeout)
            .tcp_nodelay(true)
            .pool_idle_timeout(Duration::from_secs(30))
            // An address may have a token in its path.
            .referer(false)
            .redirect(redirect_policy((!options.headers.is_empty()).then(|| base.clone())));
        let through_proxy = options.proxies && !is_loopback(&base) && has_proxy();
        if base.scheme() == "http" && !through_proxy {
            // No root certificates are needed, and on small machines there are none.
            builder = builder.tls_certs_only([]);
        } else {
            builder = builder.tls_certs_merge(options.roots.certificates());
        }
        if !options.proxies || is_loopback(&base) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| ClientError::Setup { source: error })?;
        Ok(Self { http, home: base.clone(), base, options })
    }

    /// Where the server is. Not to be shown: there may be a token in it.
    pub fn url(&self) -> &Url {
        &self.base
    }

    /// Whether it is this machine.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.base)
    }

    /// The same for people.
    fn shown_url(&self) -> String {
        hide_tokens(self.base.as_str()).into_owned()
    }

    /// A request of any kind, with the token if it goes to the server that was given.
    pub(crate) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let is_home = url.origin() == self.home.origin();
        let mut request = self.http.request(method, url);
        if is_home {
            request = request.headers(self.options.headers.all());
            if let Some(token) = &self.options.token {
                request = request.header(header::AUTHORIZATION, token.header());
            }
        }
        request
    }

    /// A call to which there is an answer at hand.
    fn small(&self) -> Bounds {
        let time = self.options.call_timeout;
        Bounds { time, patience: 2 * time, bytes: MAX_ANSWER_BYTES }
    }

    /// A call for which the server has something to do that does not grow with the files.
    fn medium(&self) -> Bounds {
        let time = 5 * self.options.call_timeout;
        Bounds { time, patience: self.options.call_timeout, bytes: MAX_ANSWER_BYTES }
    }

    /// A call that may take its time.
    fn large(&self) -> Bounds {
        let time = self.options.stall_timeout;
        Bounds { time, patience: 2 * time, bytes: MAX_ANSWER_BYTES }
    }

    fn endpoint(&self, path: &str) -> Url {
        let text = format!("{}{}/{path}", self.base, &wire::SHAMAN[1..]);
        Url::parse(&text).expect("BUG: a base and a plain path make a URL")
    }

    fn blob_url(&self, id: &BlobId) -> Url {
        self.endpoint(&format!("files/{id}"))
    }

    /// What the server knows of a blob.
    ///
    /// # Errors
    /// If there is no answer after all retries, or another answer than the protocol has.
    pub async fn status(&self, id: &BlobId) -> Result<BlobStatus, ClientError> {
        let bounds = self.small();
        self.retrying(bounds, || self.status_once(id), ClientError::is_transient).await
    }

    /// The same, asked once.
    ///
    /// # Errors
    /// If there is no answer, or another answer than the protocol has.
    pub async fn status_once(&self, id: &BlobId) -> Result<BlobStatus, ClientError> {
        let url = self.blob_url(id);
        Ok(self.json::<(), StatusAnswer>(self.small(), Method::GET, url, None).await?.0.status)
    }

    /// What the server still needs of these files. If it has moved (a redirect), this client goes
    /// on there.
    ///
    /// # Errors
    /// If there is no answer after all retries, or another answer than the protocol has.
    pub async fn requirements(
        &mut self,
        files: Vec<FileSpec<'_>>,
    ) -> Result<Vec<FileStatus<'static>>, ClientError> {
        const PATH: &str = "checkout/requirements";
        let said = |file: &FileSpec| ANSWER_BYTES_PER_FILE + JSON_ESCAPE_BYTES * file.path.len();
        let bytes = MAX_ANSWER_BYTES + files.iter().map(said).sum::<usize>();
        let bounds = Bounds { bytes, ..self.large() };
        let (url, request) = (self.endpoint(PATH), RequirementsRequest { files });
        let call = || self.json(bounds, Method::POST, url.clone(), Some(&request));
        let (answer, found_at): (RequirementsAnswer<'static>, Url) =
            self.retrying(bounds, call, ClientError::is_transient).await?;
        let suffix = format!("{}/{PATH}", &wire::SHAMAN[1..]);
        if found_at != url
            && let Some(base) = found_at.as_str().strip_suffix(&suffix)
            && let Ok(base) = Url::parse(base)
        {
            tracing::info!(
                "the server {} has moved to {}",
                self.shown_url(),
                hide_tokens(base.as_str())
            );
            self.base = base;
        }
        Ok(answer.files)
    }

    /// Has a checkout created; returns its path, which may differ from the one wished for.
    ///
    /// # Errors
    /// [`ClientError::MissingFiles`] if the server says so in any dialect; or as the other calls. It
    /// is tried again only where the server cannot have seen it: twice would make two checkouts.
    pub async fn create(
        &self,
        path: &str,
        files: Vec<FileSpec<'_>>,
    ) -> Result<String, ClientError> {
        let url = self.endpoint("checkout/create");
        let request = CheckoutRequest { checkout_path: path.into(), files };
        let bounds = self.large();
        let call =
            || self.json::<_, CheckoutAnswer>(bounds, Method::POST, url.clone(), Some(&request));
        Ok(self.retrying(bounds, call, ClientError::was_not_seen).await?.0.checkout_path)
    }

    /// Sends one blob. `name` is for the people who read the server's log. If `may_defer`, the
    /// server may answer that somebody else is sending it.
    ///
    /// # Errors
    /// Where trying again is of no use: refused, full, or no Shaman server.
    pub async fn upload(
        &self,
        id: &BlobId,
        name: &str,
        may_defer: bool,
        body: UploadBody,
    ) -> Result<UploadOutcome, ClientError> {
        let request = self
            .request(Method::POST, self.blob_url(id))
            .header(wire::CAN_DEFER, if may_defer { "true" } else { "false" })
            .header(wire::ORIGINAL_FILENAME, wire::encode_filename(name));
        Ok(match self.send(request, Some(body), Some(id.size_bytes)).await? {
            Ok(_) => UploadOutcome::Stored,
            Err(outcome) => outcome,
        })
    }

    /// Sends a request that is about an upload, with a body of this length, if that is known. The answer,
    /// if that is a good one (200 or 204), or what else became of it.
    ///
    /// # Errors
    /// Where trying again is of no use.
    async fn send(
        &self,
        mut request: RequestBuilder,
        body: Option<UploadBody>,
        size_bytes: Option<u64>,
    ) -> Told<Response> {
        let pulse = Arc::new(Pulse::default());
        if let Some(body) = body {
            let body = match body {
                UploadBody::Whole(bytes) => reqwest::Body::from(bytes),
                UploadBody::Pieces(pieces) => {
                    reqwest::Body::wrap(StreamedBody::new(pieces, size_bytes, pulse.clone()))
                }
            };
            request = request.header(header::CONTENT_TYPE, "application/octet-stream").body(body);
        }
        let request = request.build().map_err(|error| ClientError::Setup { source: error })?;
        let url = request.url().clone();
        let answer = tokio::select! {
            answer = DOES_SOMETHING.scope((), self.http.execute(request)) => answer,
            () = pulse.stalled(self.options.stall_timeout) => {
                return Ok(Err(UploadOutcome::Unknown("the server stopped reading".into())));
            }
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if error.is_connect() => {
                let reason = error::innermost(&error);
                return Ok(Err(UploadOutcome::Later { reason, pause: None, reached: false }));
            }
            Err(error) if error.is_redirect() => return Err(self.unreachable(&error)),
            Err(error) => return Ok(Err(UploadOutcome::Unknown(error::innermost(&error)))),
        };
        if pulse.left_bytes() > FINISH_REST_BYTES {
            pulse.give_up();
        }
        let status = answer.status();
        match status {
            StatusCode::OK | StatusCode::NO_CONTENT => return Ok(Ok(answer)),
            StatusCode::ALREADY_REPORTED => return Ok(Err(UploadOutcome::AlreadyStored)),
            StatusCode::TOO_EARLY => return Ok(Err(UploadOutcome::Deferred)),
            _ => {}
        }
        let retry_after = retry_after(&answer);
        let error = self.error(answer, &url).await;
        if status == StatusCode::EXPECTATION_FAILED {
            Ok(Err(UploadOutcome::Rejected(error.to_string())))
        } else if error.is_transient() {
            let reached = !error.is_gateway();
            Ok(Err(UploadOutcome::Later { reason: error.to_string(), pause: retry_after, reached }))
        } else {
            Err(error)
        }
    }

    /// The pauses between tries.
    fn pauses(&self) -> ExponentialBuilder {
        ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(5))
            .with_jitter()
            .with_max_times(self.options.retries)
    }

    /// Tries a call again, with growing pauses, while its errors are of a kind that may pass.
    async fn retrying<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        bounds: Bounds,
        call: impl FnMut() -> F,
        may_pass: fn(&ClientError) -> bool,
    ) -> Result<T, ClientError> {
        let start = Instant::now();
        call.retry(self.pauses())
            .when(|error| may_pass(error) && start.elapsed() < bounds.patience)
            .notify(|error, pause| {
                tracing::debug!("trying again in {} ms: {error}", pause.as_millis());
            })
            .await
    }

    /// Sends one request and reads a JSON answer; also returns where the answer came from.
    async fn json<Q: Serialize, A: DeserializeOwned>(
        &self,
        bounds: Bounds,
        method: Method,
        url: Url,
        body: Option<&Q>,
    ) -> Result<(A, Url), ClientError> {
        let (bytes, found_at) = self.bytes(bounds, method, url, body).await?;
        match serde_json::from_slice(&bytes) {
            Ok(answer) => Ok((answer, found_at)),
            // Its length was wrong, or there was none to say that it is cut short.
            Err(error) if error.is_eof() && !bytes.is_empty() => Err(ClientError::Unreachable {
                url: self.shown_url(),
                reason: error::CUT_SHORT.into(),
                was_sent: true,
            }),
            Err(error) => Err(ClientError::NotShaman {
                url: self.shown_url(),
                reason: format!("{} answers something else: {error}", hide_tokens(found_at.path())),
            }),
        }
    }

    /// Sends one request and reads an answer of any kind; also returns where it came from.
    async fn bytes<Q: Serialize>(
        &self,
        bounds: Bounds,
        method: Method,
        url: Url,
        body: Option<&Q>,
    ) -> Result<(Vec<u8>, Url), ClientError> {
        let does_something = method != Method::GET;
        let mut request = self.request(method, url.clone()).timeout(bounds.time);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = if does_something {
            DOES_SOMETHING.scope((), request.send()).await
        } else {
            request.send().await
        };
        let answer = answer.map_err(|error| self.unreachable(&error))?;
        if !answer.status().is_success() {
            return Err(self.error(answer, &url).await);
        }
        let found_at = answer.url().clone();
        Ok((self.whole(answer, bounds.bytes).await?, found_at))
    }

    /// Reads an answer, if it is not longer than this.
    async fn whole(&self, mut answer: Response, limit: usize) -> Result<Vec<u8>, ClientError> {
        let mut bytes = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(|error| self.unreachable(&error))? {
            if bytes.len() + piece.len() > limit {
                let path = hide_tokens(answer.url().path()).into_owned();
                return Err(ClientError::NotShaman {
                    url: self.shown_url(),
                    reason: format!("its answer to {path} is longer than {limit} bytes"),
                });
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    fn unreachable(&self, error: &reqwest::Error) -> ClientError {
        if error.is_redirect() {
            let reason = error::innermost(error);
            return ClientError::NotShaman { url: self.shown_url(), reason };
        }
        if error::is_about_certificate(error) {
            let reason = error::innermost(error);
            return ClientError::Untrusted { url: self.shown_url(), reason };
        }
        ClientError::Unreachable {
            url: self.shown_url(),
            reason: if error.is_timeout() {
                "it does not answer in time".into()
            } else {
                error::innermost(error)
            },
            was_sent: !error.is_connect(),
        }
    }

    /// The error that an answer is.
    async fn error(&self, mut answer: Response, url: &Url) -> ClientError {
        let status = answer.status();
        let mut text = Vec::new();
        let read = async {
            while let Ok(Some(chunk)) = answer.chunk().await
                && text.len() < MAX_ERROR_BYTES
            {
                text.extend_from_slice(&chunk);
            }
        };
        // The status is what counts: without its text, an error is still one.
        let _ = tokio::time::timeout(ERROR_TEXT_TIMEOUT, read).await;
        let message = serde_json::from_slice::<Problem>(&text).ok().map(|problem| problem.message);
        ClientError::from_answer(&self.shown_url(), url.path(), status, message)
    }
}

/// Follows redirects, but not from http to https: that server should be called by its address. Nor
/// back, which would give away what was meant to be encrypted. Nor away from `home`, if there are headers
/// that are meant for that server alone.
fn redirect_policy(home: Option<Url>) -> redirect::Policy {
    redirect::Policy::custom(move |attempt| {
        let from = attempt.previous().last().map_or("", |url| url.scheme());
        if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("it redirects too often")
        } else if home.as_ref().is_some_and(|home| home.origin() != attempt.url().origin()) {
            let to = hide_tokens(attempt.url().as_str()).into_owned();
            attempt.error(format!("it redirects to {to}, for which your headers are not meant"))
        } else if from == "http" && attempt.url().scheme() == "https" {
            let to = hide_tokens(attempt.url().as_str()).into_owned();
            attempt.error(format!("it redirects to {to}: give an https:// address"))
        } else if from == "https" && attempt.url().scheme() == "http" {
            let to = hide_tokens(attempt.url().as_str()).into_owned();
            attempt.error(format!("it redirects to {to}, which is not encrypted"))
        } else if matches!(attempt.status().as_u16(), 301..=303)
            && DOES_SOMETHING.try_with(|()| ()).is_ok()
        {
            let to = root_of(attempt.url());
            attempt.error(format!("it redirects to {to}: give that address"))
        } else {
            attempt.follow()
        }
    })
}

/// The root of the server that an address of its API is of, for people.
fn root_of(url: &Url) -> String {
    let root = url.as_str().split(wire::API.trim_end_matches('/')).next().unwrap_or_default();
    hide_tokens(&format!("{}/", root.trim_end_matches('/'))).into_owned()
}

fn retry_after(answer: &Response) -> Option<Duration> {
    let seconds = answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The root of a server from what a user may give for it.
fn base_url(text: &str) -> Result<Url, ClientError> {
    let bad = |reason: String| ClientError::BadUrl { url: hide_tokens(text).into_owned(), reason };
    let mut url = Url::parse(text).map_err(|error| bad(error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(bad("it must begin with http:// or https://".into()));
    }
    url.set_query(None);
    url.set_fragment(None);
    let path = url.path().trim_end_matches('/');
    let path = path.strip_suffix("/shaman").unwrap_or(path);
    let path = path.strip_suffix("/api/v3").unwrap_or(path);
    let path = format!("{}/", path.trim_end_matches('/'));
    url.set_path(&path);
    Ok(url)
}

/// Whether the environment names a proxy for http, which may itself be reached by https.
fn has_proxy() -> bool {
    ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The deadline of something that must go on moving.
async fn sleep_until_silent(since: impl Fn() -> Instant, limit: Duration) {
    loop {
        let end = since() + limit;
        if Instant::now() >= end {
            return;
        }
        tokio::time::sleep_until(end).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_urls_that_users_give() {
        for (given, base) in [
            ("http://farm:8080", "http://farm:8080/"),
            ("http://farm:8080/", "http://farm:8080/"),
            ("https://studio/site/token", "https://studio/site/token/"),
            ("http://farm:8080/api/v3", "http://farm:8080/"),
            ("http://farm:8080/x/api/v3/shaman/?a=b#c", "http://farm:8080/x/"),
        ] {
            assert_eq!(base_url(given).unwrap().as_str(), base);
        }
        for bad in ["farm:8080", "localhost:8080", "", "ftp://farm", "http://", "/srv/store"] {
            assert!(matches!(base_url(bad), Err(ClientError::BadUrl { .. })), "{bad}");
        }
    }

    #[test]
    fn knows_loopback() {
        for (url, loopback) in [
            ("http://localhost:1", true),
            ("http://127.0.0.7:1", true),
            ("http://[::1]:1", true),
            ("http://farm:1", false),
            ("http://[2001:db8::1]:1", false),
        ] {
            assert_eq!(is_loopback(&base_url(url).unwrap()), loopback, "{url}");
        }
    }
}
