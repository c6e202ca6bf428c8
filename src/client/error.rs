//! Why a call to a server failed.

use std::{error::Error, io};

use reqwest::StatusCode;

use crate::wire::{self, hide_tokens};

/// Why a call to a server failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address is none.
    #[error("{url:?} is no address of a server: {reason}")]
    BadUrl {
        /// As given.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// TLS cannot be set up on this machine.
    #[error("cannot set up connections")]
    Setup {
        /// What the library says.
        source: reqwest::Error,
    },
    /// No connection, or none that holds.
    #[error("cannot reach {url}: {reason}")]
    Unreachable {
        /// The server.
        url: String,
        /// What the connection said.
        reason: String,
        /// Whether the server may have seen the request.
        was_sent: bool,
    },
    /// Its certificate proves nothing to us.
    #[error("cannot trust {url}: {reason}")]
    Untrusted {
        /// The server.
        url: String,
        /// What is wrong with the certificate.
        reason: String,
    },
    /// Somebody answers, but does not speak Shaman.
    #[error("{url} is no Shaman server: {reason}")]
    NotShaman {
        /// The server.
        url: String,
        /// What it answered.
        reason: String,
    },
    /// Somebody answers, but does not speak as a Flamenco Manager.
    #[error("{url} is no Flamenco Manager, or one that is too old or too new: {reason}")]
    NotManager {
        /// The server.
        url: String,
        /// What it answered.
        reason: String,
    },
    /// 401 or 403.
    #[error("{url} refuses: {message}")]
    Refused {
        /// The server.
        url: String,
        /// What it said.
        message: String,
    },
    /// 507: its disk is full.
    #[error("{url} has no room left: {message}")]
    Full {
        /// The server.
        url: String,
        /// What it said.
        message: String,
    },
    /// Files of the checkout are not stored. One dialect says 424; another says 500, which also
    /// stands for anything else: ask for the requirements to find out.
    #[error("{url} says that files are missing: {message}")]
    MissingFiles {
        /// The server.
        url: String,
        /// Whether it said so in so many words.
        certain: bool,
        /// What it said.
        message: String,
    },
    /// Any other error status.
    #[error("{url} answers {status} to {path}: {message}")]
    Status {
        /// The server.
        url: String,
        /// What was called.
        path: String,
        /// The HTTP status.
        status: StatusCode,
        /// What it said.
        message: String,
    },
}

/// What a server says, as a part of a line: it must not begin another one, nor be obeyed by a terminal.
fn on_one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.trim().chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// Whether this is of a Manager's API, and not of Shaman's.
fn is_managers(path: &str) -> bool {
    path.contains(wire::API) && !path.contains(wire::SHAMAN)
}

impl ClientError {
    /// The error that this answer is. `message` is what a Shaman server says in its JSON.
    pub(super) fn from_answer(
        url: &str,
        path: &str,
        status: StatusCode,
        message: Option<String>,
    ) -> Self {
        let url = url.to_owned();
        let path = &*hide_tokens(path);
        let speaks_json = message.is_some();
        let message = message.unwrap_or_else(|| "(no reason given)".into());
        let message = on_one_line(&hide_tokens(&message));
        match status {
            // These say themselves what there is not.
            StatusCode::NOT_FOUND | StatusCode::NOT_IMPLEMENTED
                if speaks_json && (path.contains(wire::ADMIN) || is_managers(path)) =>
            {
                Self::Status { url, path: path.to_owned(), status, message }
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Self::Refused { url, message },
            StatusCode::INSUFFICIENT_STORAGE => Self::Full { url, message },
            StatusCode::FAILED_DEPENDENCY => Self::MissingFiles { url, certain: true, message },
            StatusCode::INTERNAL_SERVER_ERROR if path.ends_with("/checkout/create") => {
                Self::MissingFiles { url, certain: false, message }
            }
            StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::NOT_IMPLEMENTED => {
                let said = if speaks_json { format!(" ({message})") } else { String::new() };
                Self::NotShaman { url, reason: format!("{status} at {path}{said}") }
            }
            _ if status.is_redirection() => Self::NotShaman {
                url,
                reason: format!("{path} is redirected too often, or nowhere"),
            },
            _ => Self::Status { url, path: path.to_owned(), status, message },
        }
    }

    /// Whether the same call may succeed a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => {
                status.is_server_error()
                    || matches!(
                        *status,
                        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
                    )
            }
            _ => false,
        }
    }

    /// Whether something in front of the server says that it is not there (502, 503, 504).
    pub fn is_gateway(&self) -> bool {
        const AWAY: [StatusCode; 3] =
            [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
        matches!(self, Self::Status { status, .. } if AWAY.contains(status))
    }

    /// Whether the server has certainly done nothing.
    pub(super) fn was_not_seen(&self) -> bool {
        match self {
            Self::Unreachable { was_sent, .. } => !was_sent,
            Self::Status { status, .. } => {
                matches!(*status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS)
            }
            _ => false,
        }
    }
}

/// Why there is no report.
pub(super) const ENDED_EARLY: &str = "it ended the answer before its report";

/// Why an answer is not whole.
pub(super) const CUT_SHORT: &str = "its answer is cut short";

/// Whether this is about the server's certificate.
pub(super) fn is_about_certificate(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return true;
        }
        // What an I/O error wraps is not what it calls its source.
        cause = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// The last of an error's causes: "Connection refused" instead of "error sending request".
pub(super) fn innermost(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(path: &str, status: u16) -> ClientError {
        ClientError::from_answer("http://s/", path, StatusCode::from_u16(status).unwrap(), None)
    }

    #[test]
    fn both_dialects_say_that_files_are_missing() {
        let create = "/api/v3/shaman/checkout/create";
        assert!(matches!(answer(create, 424), ClientError::MissingFiles { certain: true, .. }));
        assert!(matches!(answer(create, 500), ClientError::MissingFiles { certain: false, .. }));
        assert!(matches!(answer("/api/v3/shaman/files/x/1", 500), ClientError::Status { .. }));
    }

    #[test]
    fn sorts_answers_by_what_to_do_next() {
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(answer("/x", status).is_transient(), "{status}");
        }
        for status in [400, 401, 403, 404, 409, 413, 415, 507] {
            assert!(!answer("/x", status).is_transient(), "{status}");
        }
        assert!(answer("/x", 503).was_not_seen());
        assert!(!answer("/x", 504).was_not_seen());
        let broke =
            ClientError::Unreachable { url: String::new(), reason: String::new(), was_sent: true };
        assert!(broke.is_transient() && !broke.was_not_seen());
    }
}
