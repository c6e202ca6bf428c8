//! What a client shows to a server, and what it wants to see.

use std::str::FromStr;

use reqwest::{
    Certificate,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};

/// A token to show to a server. Never printed, not even for debugging.
#[derive(Debug, Clone)]
pub struct Token(HeaderValue);

/// Why a text is no token; without the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no token: it must be a word of visible ASCII characters")]
pub struct BadToken;

impl Token {
    pub(super) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl FromStr for Token {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(BadToken);
        }
        let mut value = HeaderValue::try_from(format!("Bearer {text}")).map_err(|_| BadToken)?;
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

/// Headers to show to a server. Their values are never printed.
#[derive(Debug, Clone, Default)]
pub struct Headers(HeaderMap);

/// Why a text is no header; without the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// It is not in the right form.
    #[error("this is no header: write NAME: VALUE")]
    Form,
    /// The library sets it.
    #[error("this header describes the request itself, and cannot be set")]
    Ours,
}

impl Headers {
    /// Adds one, written `Name: value`.
    ///
    /// # Errors
    /// If it is none, or one that is not for users to set.
    pub fn add(&mut self, text: &str) -> Result<(), BadHeader> {
        const OURS: [HeaderName; 5] = [
            header::HOST,
            header::CONTENT_LENGTH,
            header::CONTENT_TYPE,
            header::TRANSFER_ENCODING,
            header::CONNECTION,
        ];
        let (name, value) = text.split_once(':').ok_or(BadHeader::Form)?;
        let name: HeaderName = name.trim().parse().map_err(|_| BadHeader::Form)?;
        if OURS.contains(&name) {
            return Err(BadHeader::Ours);
        }
        let mut value = HeaderValue::from_str(value.trim()).map_err(|_| BadHeader::Form)?;
        value.set_sensitive(true);
        self.0.append(name, value);
        Ok(())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them says who we are in the way a token does.
    pub fn authorize(&self) -> bool {
        self.0.contains_key(header::AUTHORIZATION)
    }

    pub(super) fn all(&self) -> HeaderMap {
        self.0.clone()
    }

    /// Their names and values, which are marked as secrets.
    pub fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.0.iter()
    }
}

/// Root certificates.
#[derive(Debug, Clone, Default)]
pub struct Roots(Vec<Certificate>);

/// Why there are no root certificates in a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there are no certificates: it must be PEM, with lines -----BEGIN CERTIFICATE-----")]
pub struct BadRoots;

impl Roots {
    /// Those of a PEM file.
    ///
    /// # Errors
    /// If there are none, or not only valid ones.
    pub fn from_pem(pem: &[u8]) -> Result<Self, BadRoots> {
        match Certificate::from_pem_bundle(pem) {
            Ok(certificates) if !certificates.is_empty() => Ok(Self(certificates)),
            _ => Err(BadRoots),
        }
    }

    pub(super) fn certificates(&self) -> Vec<Certificate> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_words_and_not_shown() {
        let token: Token = "fh_abc-_".parse().unwrap();
        assert_eq!(token.header(), "Bearer fh_abc-_");
        assert!(token.header().is_sensitive() && !format!("{token:?}").contains("abc"));
        for bad in ["", " ", "a b", "a\n", "ä", "a\0"] {
            assert_eq!(bad.parse::<Token>().unwrap_err(), BadToken, "{bad:?}");
        }
    }

    #[test]
    fn headers_are_names_and_values_that_are_not_shown() {
        let mut headers = Headers::default();
        headers.add("X-Auth: secret").unwrap();
        headers.add("x-auth:other, and more: of it ").unwrap();
        let all = headers.all();
        let values: Vec<_> = all.get_all("x-auth").iter().collect();
        assert_eq!(values, ["secret", "other, and more: of it"]);
        assert!(!format!("{headers:?}").contains("secret"));
        assert!(!headers.authorize());
        for bad in ["", "X-Auth", ": x", "a b: c", "X: a\nb"] {
            assert_eq!(headers.add(bad), Err(BadHeader::Form), "{bad:?}");
        }
        for ours in ["host: x", "Content-Length: 0", "Transfer-Encoding: chunked"] {
            assert_eq!(headers.add(ours), Err(BadHeader::Ours), "{ours:?}");
        }
    }

    #[test]
    fn what_holds_no_certificate_is_said() {
        for pem in
            ["", "nonsense", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
        {
            assert_eq!(Roots::from_pem(pem.as_bytes()).unwrap_err(), BadRoots, "{pem:?}");
        }
    }
}
