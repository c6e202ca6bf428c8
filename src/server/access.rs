//! Who may do what. A token allows what it lists; without one, what counts is where a request comes
//! from. With no token given, nothing is hashed and nothing is locked.

use std::{
    net::IpAddr,
    sync::{Arc, RwLock},
};

use axum::{
    extract::Request,
    http::{HeaderMap, Method, StatusCode, Uri, header, uri::Authority, uri::PathAndQuery},
};

use super::{
    ApiError, Peer, gateway,
    tokens::{Scope, Scopes, Tokens},
};
use crate::wire::{self, hide_tokens, split_token};

/// Who needs no token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Anonymous {
    /// Programs of the same machine, and they may do everything.
    #[default]
    Loopback,
    /// Everybody; but those of other machines may not administer.
    Anywhere,
    /// Nobody.
    Nowhere,
}

/// The rules that are in force. The tokens can be replaced while requests are served.
#[derive(Debug, Default)]
pub struct Access {
    anonymous: Anonymous,
    tokens: RwLock<Arc<Tokens>>,
}

impl Access {
    /// Rules with these tokens.
    pub fn new(anonymous: Anonymous, tokens: Tokens) -> Self {
        Self { anonymous, tokens: RwLock::new(Arc::new(tokens)) }
    }

    /// From the next request on, these tokens count and no others.
    pub fn replace(&self, tokens: Tokens) {
        *self.tokens.write().expect("BUG: no one panics with this lock") = Arc::new(tokens);
    }

    fn tokens(&self) -> Arc<Tokens> {
        self.tokens.read().expect("BUG: no one panics with this lock").clone()
    }
}

/// What a request needs; `None` if it needs nothing, or there is nothing of that kind here.
pub(super) fn needed(method: &Method, path: &str) -> Option<Scope> {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    if let Some(endpoint) = path.strip_prefix(wire::SHAMAN).and_then(|rest| rest.strip_prefix('/'))
    {
        let posts = *method == Method::POST;
        return match endpoint {
            "checkout/requirements" if posts => Some(Scope::Read),
            "checkout/create" if posts => Some(Scope::Checkout),
            _ if endpoint.starts_with("files/") && reads => Some(Scope::Read),
            _ if endpoint.starts_with("files/") && posts => Some(Scope::Upload),
            _ => None,
        };
    }
    // Of a Manager's API: who may make checkouts may submit what they are for.
    if path.starts_with(wire::API) && !path.starts_with(wire::SHAMAN) && path != wire::OPENAPI {
        return Some(if reads { Scope::Read } else { Scope::Checkout });
    }
    let ours = path.strip_prefix(wire::ADMIN);
    let is_ours = ours.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let is_unfinished = ours.is_some_and(|rest| rest.starts_with("/unfinished/"));
    match *method {
        Method::POST | Method::DELETE if is_unfinished => return Some(Scope::Upload),
        // To know what is known is of use to those who send.
        Method::POST if matches!(ours, Some("/batch" | "/chunks/known")) => {
            return Some(Scope::Upload);
        }
        _ => {}
    }
    // It is sent as POST for its body only.
    let reads_ours = reads || ours == Some("/verify");
    match () {
        () if is_ours && reads_ours => Some(Scope::Read),
        () if is_ours => Some(Scope::Admin),
        () if path == "/metrics" && reads => Some(Scope::Read),
        () => None,
    }
}

/// What a request needs that is passed on to a Manager.
fn needed_behind(method: &Method, is_tunnel: bool) -> Scope {
    match *method {
        // Anything may be said through a tunnel.
        Method::GET | Method::HEAD | Method::OPTIONS if !is_tunnel => Scope::Read,
        _ => Scope::Checkout,
    }
}

/// Whether this must not come from a web page that somebody looks at: it changes what is kept, or has a
/// program of ours run.
fn is_guarded(method: &Method, path: &str, need: Scope) -> bool {
    let is_job = path.strip_prefix(wire::API).is_some_and(|rest| rest.starts_with("jobs"));
    need == Scope::Admin || (is_job && !matches!(*method, Method::GET | Method::HEAD))
}

/// The token of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Given {
    Nothing,
    Wrong,
    Right(Scopes),
}

/// All that counts about who sends a request.
#[derive(Debug, Clone, Copy)]
struct Caller {
    given: Given,
    /// Its connection comes from this machine.
    loopback: bool,
    /// It came through a proxy, so that the connection says nothing about where it comes from.
    proxied: bool,
    /// A web page may have sent it, through the browser of somebody on this machine.
    maybe_page: bool,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("this token is none that this server knows; ask who runs it for one")]
    WrongToken,
    #[error(
        "this needs a token with the scope {0}: send it as Authorization: Bearer TOKEN, or put \
         /t/TOKEN/ before the path"
    )]
    NeedsToken(Scope),
    #[error("the scope {0} is missing: this token does not have it")]
    MissingScope(Scope),
    #[error(
        "a web page may have sent this: use the address localhost or 127.0.0.1 and a program that is \
         no browser, or a token with the scope {0}"
    )]
    MaybePage(Scope),
}

impl Refusal {
    fn status(self) -> StatusCode {
        match self {
            Self::WrongToken | Self::NeedsToken(_) => StatusCode::UNAUTHORIZED,
            Self::MissingScope(_) | Self::MaybePage(_) => StatusCode::FORBIDDEN,
        }
    }
}

fn decide(
    anonymous: Anonymous,
    need: Option<Scope>,
    is_guarded: bool,
    caller: Caller,
) -> Result<(), Refusal> {
    // A wrong token is an error even where none is needed: whoever gives one relies on it.
    if caller.given == Given::Wrong {
        return Err(Refusal::WrongToken);
    }
    let Some(need) = need else { return Ok(()) };
    if let Given::Right(scopes) = caller.given {
        return if scopes.has(need) { Ok(()) } else { Err(Refusal::MissingScope(need)) };
    }
    let from_here = caller.loopback && !caller.proxied;
    let may = match anonymous {
        Anonymous::Nowhere => false,
        Anonymous::Loopback => from_here,
        Anonymous::Anywhere => from_here || need != Scope::Admin,
    };
    if !may {
        return Err(Refusal::NeedsToken(need));
    }
    if is_guarded && caller.maybe_page {
        return Err(Refusal::MaybePage(need));
    }
    Ok(())
}

/// Lets a request in, with its token taken off, or says why not. Returns the name of its token.
/// With a Manager behind us, nothing is open for the reason that there is nothing.
pub(super) fn admit(
    access: &Access,
    peer: Peer,
    has_manager: bool,
    request: &mut Request,
) -> Result<Option<String>, ApiError> {
    let mut texts = Vec::new();
    if let Some((token, rest)) = split_token(request.uri().path()) {
        texts.push(token);
        let uri = without_token(request.uri(), rest)?;
        *request.uri_mut() = uri;
    }
    take_bearers(request.headers_mut(), &mut texts);

    let (mut given, mut name) = (Given::Nothing, None);
    if !texts.is_empty() {
        let tokens = access.tokens();
        let found = texts.iter().map(|text| tokens.find(text)).collect::<Option<Vec<_>>>();
        given = found.map_or(Given::Wrong, |found| {
            name = found.first().map(|token| token.name.clone());
            Given::Right(found.iter().fold(Scopes::default(), |all, one| all.and(one.scopes)))
        });
    }
    let caller = Caller {
        given,
        loopback: peer.0.is_loopback(),
        proxied: is_proxied(request.headers()),
        maybe_page: maybe_page(request, peer),
    };
    let (method, path) = (request.method(), request.uri().path());
    let (need, is_guarded) = if has_manager && !gateway::is_ours(path) {
        // Its own web pages are among those who send this.
        (Some(needed_behind(method, gateway::is_tunnel(request))), false)
    } else {
        let need = needed(method, path);
        (need, need.is_some_and(|need| is_guarded(method, path, need)))
    };
    decide(access.anonymous, need, is_guarded, caller).map(|()| name.clone()).map_err(|refusal| {
        let (status, path) = (refusal.status(), hide_tokens(request.uri().path()));
        tracing::info!(
            target: "farmhand::access",
            client = %peer.0, method = %request.method(), path = %path.chars().take(200).collect::<String>(),
            token = name, status = status.as_u16(), reason = %refusal, "refused"
        );
        ApiError::new(status, refusal.to_string())
    })
}

/// The address with another path.
fn without_token(uri: &Uri, path: &str) -> Result<Uri, ApiError> {
    let query = uri.query().map_or_else(String::new, |query| format!("?{query}"));
    let mut parts = uri.clone().into_parts();
    let rest = PathAndQuery::try_from(format!("{path}{query}")).ok();
    parts.path_and_query = rest;
    Uri::from_parts(parts).map_err(|_| ApiError::bad_request("what follows the token is no path"))
}

/// Takes the tokens out of `Authorization`. Other schemes are not ours: a proxy in front may have
/// its own.
fn take_bearers(headers: &mut HeaderMap, texts: &mut Vec<Vec<u8>>) {
    let before = texts.len();
    for value in headers.get_all(header::AUTHORIZATION) {
        let value = value.as_bytes().trim_ascii();
        let end = value.iter().position(u8::is_ascii_whitespace).unwrap_or(value.len());
        let (scheme, token) = value.split_at(end);
        if scheme.eq_ignore_ascii_case(b"bearer") {
            texts.push(token.trim_ascii().to_vec());
        }
    }
    if texts.len() > before {
        headers.remove(header::AUTHORIZATION);
    }
}

fn is_proxied(headers: &HeaderMap) -> bool {
    ["forwarded", "x-forwarded-for", "x-real-ip", "via"]
        .iter()
        .any(|name| headers.contains_key(*name))
}

/// Whether a web page could have a browser send this. Browsers name the page's origin in all that
/// is not a plain GET. And a page whose host name was made to point here (DNS rebinding) sends that
/// name as `Host`. From other machines, this one may well be called by a name.
fn maybe_page(request: &Request, peer: Peer) -> bool {
    let headers = request.headers();
    if !peer.0.is_loopback() {
        return headers.contains_key(header::ORIGIN);
    }
    let mut hosts = headers.get_all(header::HOST).iter().peekable();
    let named = hosts.peek().is_some() || request.uri().authority().is_some();
    let is_local = |authority: &Authority| is_local_host(authority.host());
    let all_local = request.uri().authority().is_none_or(is_local)
        && hosts.all(|value| Authority::try_from(value.as_bytes()).is_ok_and(|a| is_local(&a)));
    headers.contains_key(header::ORIGIN) || !named || !all_local
}

/// Names that cannot be made to point somewhere else.
fn is_local_host(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn which_scope_a_request_needs() {
        let blob = "/api/v3/shaman/files/00/1";
        for (method, path, scope) in [
            ("GET", blob, Some(Scope::Read)),
            ("HEAD", blob, Some(Scope::Read)),
            ("POST", blob, Some(Scope::Upload)),
            ("DELETE", blob, None),
            ("GET", "/api/v3/shaman/files/00", Some(Scope::Read)),
            ("POST", "/api/v3/shaman/checkout/requirements", Some(Scope::Read)),
            ("GET", "/api/v3/shaman/checkout/requirements", None),
            ("POST", "/api/v3/shaman/checkout/create", Some(Scope::Checkout)),
            ("PUT", "/api/v3/shaman/checkout/create", None),
            ("POST", "/api/v3/shaman/checkout/other", None),
            ("GET", "/api/v3/version", Some(Scope::Read)),
            ("GET", "/api/v3/jobs", Some(Scope::Read)),
            ("POST", "/api/v3/jobs", Some(Scope::Checkout)),
            ("DELETE", "/api/v3/jobs/1", Some(Scope::Checkout)),
            ("PUT", "/api/v3/configuration/file", Some(Scope::Checkout)),
            ("GET", "/api/v3/openapi3.json", None),
            ("GET", "/api/v3", None),
            ("GET", "/api/v3/shaman", None),
            ("GET", "/api/v3/shamanfiles/00/1", None),
            ("GET", "/farmhand/v1", Some(Scope::Read)),
            ("GET", "/farmhand/v1/anything", Some(Scope::Read)),
            ("HEAD", "/farmhand/v1/anything", Some(Scope::Read)),
            ("POST", "/farmhand/v1", Some(Scope::Admin)),
            ("POST", "/farmhand/v1/gc", Some(Scope::Admin)),
            ("POST", "/farmhand/v1/verify", Some(Scope::Read)),
            ("POST", "/farmhand/v1/verify/x", Some(Scope::Admin)),
            ("DELETE", "/farmhand/v1/x/y", Some(Scope::Admin)),
            ("OPTIONS", "/farmhand/v1/x", Some(Scope::Admin)),
            ("QUERY", "/farmhand/v1/", Some(Scope::Admin)),
            ("POST", "/farmhand/v1/batch", Some(Scope::Upload)),
            ("POST", "/farmhand/v1/batch/x", Some(Scope::Admin)),
            ("POST", "/farmhand/v1/unfinished/00/1", Some(Scope::Upload)),
            ("POST", "/farmhand/v1/unfinished/00/1/finish", Some(Scope::Upload)),
            ("DELETE", "/farmhand/v1/unfinished/00/1", Some(Scope::Upload)),
            ("PUT", "/farmhand/v1/unfinished/00/1", Some(Scope::Admin)),
            ("POST", "/farmhand/v1/chunks/known", Some(Scope::Upload)),
            ("GET", "/farmhand/v1/capabilities", Some(Scope::Read)),
            ("POST", "/farmhand/v10", None),
            ("GET", "/metrics", Some(Scope::Read)),
            ("POST", "/metrics", None),
            ("GET", "/healthz", None),
            ("GET", "/readyz", None),
            ("GET", "/", None),
            ("OPTIONS", "*", None),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(needed(&method, path), scope, "{method} {path}");
        }
    }

    #[test]
    fn to_reach_the_manager_takes_a_scope_for_everything() {
        for (method, is_tunnel, scope) in [
            ("GET", false, Scope::Read),
            ("HEAD", false, Scope::Read),
            ("OPTIONS", false, Scope::Read),
            ("GET", true, Scope::Checkout),
            ("POST", false, Scope::Checkout),
            ("PUT", false, Scope::Checkout),
            ("DELETE", false, Scope::Checkout),
            ("PATCH", false, Scope::Checkout),
            ("TRACE", false, Scope::Checkout),
            ("QUERY", false, Scope::Checkout),
            ("get", false, Scope::Checkout),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(needed_behind(&method, is_tunnel), scope, "{method} {is_tunnel}");
        }
    }

    const FAR: Caller =
        Caller { given: Given::Nothing, loopback: false, proxied: false, maybe_page: false };
    const NEAR: Caller = Caller { loopback: true, ..FAR };
    const PROXIED: Caller = Caller { proxied: true, ..NEAR };
    const PAGE: Caller = Caller { maybe_page: true, ..NEAR };

    #[test]
    fn without_a_token_it_matters_where_a_request_comes_from() {
        use Anonymous::{Anywhere, Loopback, Nowhere};
        // One letter for each scope that is allowed, in their order.
        for (anonymous, caller, may) in [
            (Loopback, NEAR, "ruca"),
            (Loopback, PAGE, "ruc"),
            (Loopback, PROXIED, ""),
            (Loopback, FAR, ""),
            (Anywhere, NEAR, "ruca"),
            (Anywhere, PAGE, "ruc"),
            (Anywhere, PROXIED, "ruc"),
            (Anywhere, FAR, "ruc"),
            (Nowhere, NEAR, ""),
            (Nowhere, PAGE, ""),
            (Nowhere, PROXIED, ""),
            (Nowhere, FAR, ""),
        ] {
            for scope in Scope::ALL {
                let decided = decide(anonymous, Some(scope), scope == Scope::Admin, caller);
                let expected = may.contains(&scope.name()[..1]);
                assert_eq!(decided.is_ok(), expected, "{anonymous:?} {caller:?} {scope}");
                if let Err(refusal) = decided {
                    let maybe_page = caller.maybe_page && anonymous != Nowhere;
                    let status = if maybe_page { 403 } else { 401 };
                    assert_eq!(refusal.status(), status, "{anonymous:?} {caller:?} {scope}");
                }
            }
            assert_eq!(decide(anonymous, None, false, caller), Ok(()));
        }
        // Whatever changes jobs is guarded, too, and may come from other machines.
        let page_from_far = Caller { maybe_page: true, ..FAR };
        for (anonymous, caller, refusal) in [
            (Loopback, NEAR, None),
            (Loopback, PAGE, Some(Refusal::MaybePage(Scope::Checkout))),
            (Anywhere, FAR, None),
            (Anywhere, page_from_far, Some(Refusal::MaybePage(Scope::Checkout))),
        ] {
            let decided = decide(anonymous, Some(Scope::Checkout), true, caller);
            assert_eq!(decided.err(), refusal, "{anonymous:?} {caller:?}");
        }
        for (method, path, guarded) in [
            (Method::POST, "/api/v3/jobs", true),
            (Method::POST, "/api/v3/jobs/1/setstatus", true),
            (Method::DELETE, "/api/v3/jobs/1", true),
            (Method::GET, "/api/v3/jobs/1", false),
            (Method::POST, "/api/v3/shaman/checkout/create", false),
        ] {
            assert_eq!(is_guarded(&method, path, Scope::Checkout), guarded, "{method} {path}");
        }
    }

    #[test]
    fn a_token_counts_wherever_it_comes_from_and_for_what_it_lists_only() {
        for anonymous in [Anonymous::Loopback, Anonymous::Anywhere, Anonymous::Nowhere] {
            for caller in [NEAR, FAR, PROXIED, PAGE] {
                for has in Scope::ALL {
                    let given = Given::Right([has].into_iter().collect());
                    for need in Scope::ALL {
                        let decided =
                            decide(anonymous, Some(need), true, Caller { given, ..caller });
                        let expected =
                            if has == need { Ok(()) } else { Err(Refusal::MissingScope(need)) };
                        assert_eq!(decided, expected);
                    }
                    assert_eq!(decide(anonymous, None, false, Caller { given, ..caller }), Ok(()));
                }
                for need in [None, Some(Scope::Read), Some(Scope::Admin)] {
                    let wrong = Caller { given: Given::Wrong, ..caller };
                    assert_eq!(decide(anonymous, need, false, wrong), Err(Refusal::WrongToken));
                }
            }
        }
    }

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request {
        let mut request = Request::builder().method("POST").uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).unwrap()
    }

    #[test]
    fn names_that_can_be_made_to_point_elsewhere_are_not_local() {
        let here = Peer([127, 0, 0, 1].into());
        let far = Peer([192, 0, 2, 1].into());
        assert!(!maybe_page(&request("/", &[("host", "farm.example")]), far));
        assert!(maybe_page(&request("/", &[("origin", "http://farm.example")]), far));
        for (uri, headers, page) in [
            ("/", &[("host", "localhost")][..], false),
            ("/", &[("host", "LOCALHOST:8080")], false),
            ("/", &[("host", "127.0.0.1:8080")], false),
            ("/", &[("host", "192.0.2.7")], false),
            ("/", &[("host", "[::1]:8080")], false),
            ("http://127.0.0.1:1/", &[("host", "127.0.0.1:1")], false),
            ("/", &[], true),
            ("/", &[("host", "")], true),
            ("/", &[("host", "evil.example")], true),
            ("/", &[("host", "localhost.evil.example")], true),
            ("/", &[("host", "127.0.0.1.evil.example:8080")], true),
            ("/", &[("host", "localhost@evil.example")], true),
            ("/", &[("host", "localhost"), ("host", "evil.example")], true),
            ("http://evil.example/", &[("host", "localhost")], true),
            ("/", &[("host", "localhost"), ("origin", "https://evil.example")], true),
        ] {
            assert_eq!(maybe_page(&request(uri, headers), here), page, "{uri} {headers:?}");
        }
    }

    #[test]
    fn tokens_are_taken_off_before_anybody_else_sees_a_request() {
        let mut tokens = Tokens::default();
        for (name, scope) in [("reader", Scope::Read), ("admin", Scope::Admin)] {
            let scopes = [scope].into_iter().collect();
            tokens
                .add(super::super::Token::new(name, scopes, &format!("{name}-token")).unwrap())
                .unwrap();
        }
        let access = Access::new(Anonymous::Nowhere, tokens);
        let peer = Peer([192, 0, 2, 1].into());
        let admitted = |uri: &str, headers: &[(&str, &str)]| {
            let mut request = request(uri, headers);
            let result =
                admit(&access, peer, false, &mut request).map_err(|error| error.status().as_u16());
            let text = format!("{request:?}");
            assert!(!text.contains("-token"), "{text}");
            (result.map(Option::unwrap_or_default), request.uri().to_string())
        };
        let ok = |name: &str, uri: &str| (Ok(name.to_owned()), uri.to_owned());
        let gc = "/farmhand/v1/gc?x=/t/y";
        assert_eq!(admitted(&format!("/t/admin-token{gc}"), &[]), ok("admin", gc));
        assert_eq!(admitted(&format!("/%74/admin%2Dtoken{gc}"), &[]), ok("admin", gc));
        assert_eq!(admitted(gc, &[("authorization", "bEARER  admin-token ")]), ok("admin", gc));
        assert_eq!(
            admitted(&format!("http://h:1/t/admin-token{gc}"), &[]),
            ok("admin", &format!("http://h:1{gc}"))
        );
        assert_eq!(admitted("/t/reader-token", &[]), ok("reader", "/"));
        // Two that are right allow what either does; of two, none may be wrong.
        let both = [("authorization", "Bearer reader-token")];
        assert_eq!(admitted(&format!("/t/admin-token{gc}"), &both), ok("admin", gc));
        let refused = |uri: &str, headers: &[(&str, &str)]| admitted(uri, headers).0.unwrap_err();
        assert_eq!(refused("/t/nonsense/", &both), 401);
        assert_eq!(refused(gc, &both), 403);
        assert_eq!(refused(gc, &[]), 401);
        for value in ["Bearer", "Bearer ", "Bearer x", "bearer\tx", "Bearer admin-token, x"] {
            assert_eq!(refused("/healthz", &[("authorization", value)]), 401, "{value}");
        }
        let two = [("authorization", "Bearer admin-token"), ("authorization", "Bearer x")];
        assert_eq!(refused("/healthz", &two), 401);
        // Not ours.
        assert_eq!(admitted("/healthz", &[("authorization", "Basic YTpi")]), ok("", "/healthz"));
    }
}
