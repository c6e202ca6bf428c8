//! What a client shows to a server, and what it wants to see.

use std::str::FromStr;

use reqwest::{Certificate, header::HeaderValue};

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
    fn what_holds_no_certificate_is_said() {
        for pem in
            ["", "nonsense", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
        {
            assert_eq!(Roots::from_pem(pem.as_bytes()).unwrap_err(), BadRoots, "{pem:?}");
        }
    }
}
