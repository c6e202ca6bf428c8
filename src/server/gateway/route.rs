//! How the Manager's host is reached: directly, or through a proxy that the environment names.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use axum::http::{HeaderValue, Uri, uri::Scheme};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::{
        legacy::connect::{Connected, Connection, HttpConnector, proxy::Tunnel},
        proxy::matcher::Matcher,
    },
    rt::TokioIo,
};
use tokio::net::TcpStream;
use tower::{BoxError, Service};

type Tcp = TokioIo<TcpStream>;

/// The way to one host.
#[derive(Debug, Clone)]
pub(super) enum Route {
    /// To itself.
    Direct(HttpConnector),
    /// To a proxy that is told the whole address with each request.
    Asking { tcp: HttpConnector, proxy: Uri, authorization: Option<HeaderValue> },
    /// Through a proxy, which sees nothing of what is said.
    Through { tunnel: Tunnel<HttpConnector>, proxy: Uri },
}

impl Route {
    /// The way to the host of this address, as `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say.
    /// This machine is always reached directly.
    ///
    /// # Errors
    /// The proxy, if it is none that can be talked to.
    pub fn new(tcp: HttpConnector, manager: &Uri) -> Result<Self, String> {
        Self::with(tcp, manager, &Matcher::from_env())
    }

    fn with(tcp: HttpConnector, manager: &Uri, proxies: &Matcher) -> Result<Self, String> {
        let found = if is_loopback(manager) { None } else { proxies.intercept(manager) };
        let Some(found) = found else { return Ok(Self::Direct(tcp)) };
        let proxy = found.uri().clone();
        if proxy.scheme() != Some(&Scheme::HTTP) {
            return Err(proxy.to_string());
        }
        let authorization = found.basic_auth().cloned().map(|mut value| {
            value.set_sensitive(true);
            value
        });
        if manager.scheme() != Some(&Scheme::HTTPS) {
            return Ok(Self::Asking { tcp, proxy, authorization });
        }
        let mut tunnel = Tunnel::new(proxy.clone(), tcp);
        if let Some(authorization) = authorization {
            tunnel = tunnel.with_auth(authorization);
        }
        Ok(Self::Through { tunnel, proxy })
    }

    /// The proxy, if there is one.
    pub fn proxy(&self) -> Option<&Uri> {
        match self {
            Self::Direct(_) => None,
            Self::Asking { proxy, .. } | Self::Through { proxy, .. } => Some(proxy),
        }
    }

    /// What the proxy wants to see with each request.
    pub fn authorization(&self) -> Option<&HeaderValue> {
        match self {
            Self::Asking { authorization, .. } => authorization.as_ref(),
            Self::Direct(_) | Self::Through { .. } => None,
        }
    }
}

fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Service<Uri> for Route {
    type Response = Link;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Link, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self {
            Self::Direct(tcp) | Self::Asking { tcp, .. } => tcp.poll_ready(cx).map_err(Into::into),
            Self::Through { tunnel, .. } => tunnel.poll_ready(cx).map_err(Into::into),
        }
    }

    fn call(&mut self, manager: Uri) -> Self::Future {
        match self {
            Self::Direct(tcp) => {
                let connecting = tcp.call(manager);
                Box::pin(async { Ok(Link { tcp: connecting.await?, is_asking: false }) })
            }
            Self::Asking { tcp, proxy, .. } => {
                let connecting = tcp.call(proxy.clone());
                Box::pin(async { Ok(Link { tcp: connecting.await?, is_asking: true }) })
            }
            Self::Through { tunnel, .. } => {
                let connecting = tunnel.call(manager);
                Box::pin(async { Ok(Link { tcp: connecting.await?, is_asking: false }) })
            }
        }
    }
}

/// A connection to the Manager, or to a proxy that is asked for it.
pub(super) struct Link {
    tcp: Tcp,
    is_asking: bool,
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        // Requests to a proxy have the whole address in their first line.
        self.tcp.connected().proxy(self.is_asking)
    }
}

impl Read for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buffer)
    }
}

impl Write for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_used_where_the_environment_says_so() {
        let proxies = Matcher::builder()
            .http("http://user:secret@proxy:3128")
            .https("proxy:3129")
            .no("near")
            .build();
        let route = |manager: &'static str| {
            Route::with(HttpConnector::new(), &Uri::from_static(manager), &proxies).unwrap()
        };
        for direct in
            ["http://localhost:1/", "http://127.0.0.9/", "http://[::1]:1/", "https://near/"]
        {
            assert!(route(direct).proxy().is_none(), "{direct}");
        }
        let http = route("http://farm:8080/");
        assert_eq!(http.proxy().unwrap().port_u16(), Some(3128));
        assert!(http.authorization().is_some_and(HeaderValue::is_sensitive));
        let https = route("https://farm/");
        assert!(matches!(https, Route::Through { .. }) && https.authorization().is_none());
        let socks = Matcher::builder().all("socks5://proxy:1").build();
        let manager = Uri::from_static("http://farm/");
        let error = Route::with(HttpConnector::new(), &manager, &socks).unwrap_err();
        assert!(error.contains("socks5"), "{error}");
    }
}
