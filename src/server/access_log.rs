//! The access log: one line for each upload and each checkout, however it ends.
//!
//! What clients make up is logged as text values, which are quoted and escaped: not even a line break
//! in a file name makes another line.

use std::net::IpAddr;

use axum::http::StatusCode;
use tokio::time::Instant;

use super::{ApiError, App, metrics::UploadEnd, routes::millis};

/// Why there is no status: the client is gone, or the server is.
const BROKEN_OFF: &str = "broken off before it was answered";

/// One upload. Dropped, it is logged and counted: also if that is because the client is gone.
pub(super) struct UploadRecord {
    app: App,
    client: IpAddr,
    start: Instant,
    /// The blob, as `sha/size`; as the client wrote it if that names none.
    pub blob: String,
    /// The file's name on the client.
    pub name: Option<String>,
    /// How much of the body was taken.
    pub bytes: u64,
    end: Option<(UploadEnd, StatusCode, Option<String>)>,
}

impl UploadRecord {
    pub fn new(app: App, client: IpAddr) -> Self {
        let start = Instant::now();
        Self { app, client, start, blob: String::new(), name: None, bytes: 0, end: None }
    }

    pub fn ended(&mut self, end: UploadEnd, status: StatusCode) {
        self.end = Some((end, status, None));
    }

    pub fn failed(&mut self, error: &ApiError) {
        self.end = Some((UploadEnd::Failed, error.status(), Some(error.message().to_owned())));
    }
}

impl Drop for UploadRecord {
    fn drop(&mut self) {
        let (end, status, reason) = match self.end.take() {
            Some((end, status, reason)) => (end, Some(status.as_u16()), reason),
            None => (UploadEnd::Failed, None, Some(BROKEN_OFF.to_owned())),
        };
        self.app.metrics.upload_ended(end);
        let message = if reason.is_none() { "upload" } else { "upload failed" };
        tracing::info!(
            target: "farmhand::access",
            client = %self.client, blob = self.blob, name = self.name.as_deref().unwrap_or("-"),
            bytes = self.bytes, outcome = end.name(), status, reason,
            elapsed_ms = millis(self.start.elapsed()), "{message}"
        );
    }
}

/// One checkout. Dropped, it is logged and counted: also if that is because the client is gone.
pub(super) struct CheckoutRecord {
    app: App,
    client: IpAddr,
    pub start: Instant,
    /// The name: the one wished for, until it has one.
    pub checkout: Option<String>,
    /// How many files it has.
    pub files: usize,
    /// The sum of their sizes.
    pub bytes: u64,
    end: Option<(StatusCode, Option<String>)>,
}

impl CheckoutRecord {
    pub fn new(app: App, client: IpAddr) -> Self {
        let start = Instant::now();
        Self { app, client, start, checkout: None, files: 0, bytes: 0, end: None }
    }

    pub fn created(&mut self) {
        self.end = Some((StatusCode::OK, None));
    }

    pub fn failed(&mut self, error: &ApiError) {
        self.end = Some((error.status(), Some(error.message().to_owned())));
    }
}

impl Drop for CheckoutRecord {
    fn drop(&mut self) {
        let (status, reason) = match self.end.take() {
            Some((status, reason)) => (Some(status.as_u16()), reason),
            None => (None, Some(BROKEN_OFF.to_owned())),
        };
        let (outcome, message) = match &reason {
            None => ("created", "checkout"),
            Some(_) => ("failed", "checkout failed"),
        };
        match &reason {
            None => self.app.metrics.checkout_created(self.files, self.bytes),
            Some(_) => self.app.metrics.checkout_failed(),
        }
        tracing::info!(
            target: "farmhand::access",
            client = %self.client, checkout = self.checkout.as_deref().unwrap_or("-"),
            files = self.files, bytes = self.bytes, outcome, status, reason,
            elapsed_ms = millis(self.start.elapsed()), "{message}"
        );
    }
}
