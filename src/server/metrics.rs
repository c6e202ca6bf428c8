//! What the server counts and measures, as Prometheus reads it.
//!
//! A registry is a value of one server: there is nothing global. Labels are route patterns, methods,
//! codes and words of ours, never what a client made up, so that there is an end to them.

use std::{
    collections::HashMap,
    fmt,
    fmt::Write,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{Method, StatusCode},
    middleware::Next,
    response::Response,
};
use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder, text,
    },
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};
use tokio::time::Instant;

use super::App;
use crate::store::{ReceiveError, Store};

/// The type of [`Metrics::text`].
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The route of requests that no route takes.
const NO_ROUTE: &str = "none";

/// The route of requests that the Manager behind us gets.
const TO_MANAGER: &str = "manager";

/// How an upload ended: the words of the metrics and of the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum UploadEnd {
    Stored,
    AlreadyStored,
    /// It waited for another client's upload, and that one was stored.
    Absorbed,
    Deferred,
    Failed,
}

impl UploadEnd {
    const ALL: [Self; 5] =
        [Self::Stored, Self::AlreadyStored, Self::Absorbed, Self::Deferred, Self::Failed];

    pub fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::AlreadyStored => "already_stored",
            Self::Absorbed => "absorbed",
            Self::Deferred => "deferred",
            Self::Failed => "failed",
        }
    }
}

/// How the wait for another client's upload of the same blob ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum HoldEnd {
    /// The other one was stored.
    Absorbed,
    /// The other one failed.
    TookOver,
    /// The other one took too long.
    Beside,
}

impl HoldEnd {
    const ALL: [Self; 3] = [Self::Absorbed, Self::TookOver, Self::Beside];

    fn name(self) -> &'static str {
        match self {
            Self::Absorbed => "absorbed",
            Self::TookOver => "took_over",
            Self::Beside => "beside",
        }
    }
}

/// Work on the store that is done now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Job {
    /// Removal of blobs that nobody needs.
    Gc,
    /// Search for blobs that are no longer what their names say.
    Scrub,
    /// Removal of what an earlier process left unfinished.
    TempCleanup,
}

impl Job {
    fn name(self) -> &'static str {
        match self {
            Self::Gc => "gc",
            Self::Scrub => "scrub",
            Self::TempCleanup => "temp_cleanup",
        }
    }
}

/// One label and its value.
macro_rules! label {
    ($set:ident, $label:ident: $value:ty) => {
        #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
        struct $set {
            $label: $value,
        }
    };
}

label!(Outcome, outcome: &'static str);
label!(End, end: &'static str);
label!(Reason, reason: &'static str);
label!(JobName, job: &'static str);
label!(Version, version: &'static str);

/// A route's pattern, shared by all its labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Route(Arc<str>);

impl EncodeLabelValue for Route {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(&self.0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    route: Route,
    method: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: Route,
    method: &'static str,
    code: u16,
}

type Seconds = Gauge<f64, AtomicU64>;

/// The counters of one server. Written without locks but for new combinations of labels.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    routes: HashMap<Arc<str>, Route>,
    no_route: Route,
    to_manager: Route,
    requests: Family<Answered, Counter>,
    request_seconds: Family<Asked, Histogram>,
    /// Requests that are no HTTP, and are answered before there is a route.
    pub(super) malformed: Counter,
    pub(super) connections: Gauge,
    uploads: Family<Outcome, Counter>,
    holds: Family<End, Counter>,
    pub(super) uploads_in_flight: Gauge,
    pub(super) uploads_waiting: Gauge,
    /// Bytes of upload bodies, also of those that failed.
    pub(super) received_bytes: Counter,
    /// Bytes that did not have to be sent, because they are in other blobs.
    pub(super) reused_bytes: Counter,
    stored_bytes: Counter,
    mismatches: Family<Reason, Counter>,
    sync_seconds: Histogram,
    checkouts: Family<Outcome, Counter>,
    links: Counter,
    checkout_bytes: Counter,
    last_success: Family<JobName, Seconds>,
}

impl Metrics {
    /// Everything at zero, for a server over this store with these routes.
    pub(super) fn new<'a>(store: Arc<Store>, routes: impl Iterator<Item = &'a String>) -> Self {
        let mut root = Registry::default();
        let start = Seconds::default();
        start.set(unix_seconds());
        let text = "When this process began to serve, in seconds since 1970";
        root.register_with_unit("process_start_time", text, Unit::Seconds, start);
        let registry = root.sub_registry_with_prefix("farmhand");
        let version = Version { version: env!("CARGO_PKG_VERSION") };
        registry.register("build", "What is running", Info::new(version));

        let requests = Family::default();
        registry.register("requests", "Requests that were answered", requests.clone());
        let buckets = || Histogram::new(exponential_buckets(0.001, 4.0, 9));
        let request_seconds = Family::<Asked, Histogram>::new_with_constructor(buckets);
        let text = "Time from the head of a request to its answer";
        registry.register_with_unit(
            "request_duration",
            text,
            Unit::Seconds,
            request_seconds.clone(),
        );
        let malformed = Counter::default();
        let text = "Requests that are no HTTP; they are not among the others";
        registry.register("malformed_requests", text, malformed.clone());
        let connections = Gauge::default();
        registry.register("connections_open", "Connections served now", connections.clone());

        let uploads = Family::default();
        let text = "Uploads by how they ended; absorbed ones waited for another client's";
        registry.register("uploads", text, uploads.clone());
        let holds = Family::default();
        let text = "Uploads that waited for another client's of the same blob, by how that ended";
        registry.register("uploads_held", text, holds.clone());
        let uploads_in_flight = Gauge::default();
        let text = "Uploads whose bodies are being received now";
        registry.register("uploads_in_flight", text, uploads_in_flight.clone());
        let uploads_waiting = Gauge::default();
        let text = "Uploads that wait for another client's of the same blob now";
        registry.register("uploads_waiting", text, uploads_waiting.clone());
        let received_bytes = Counter::default();
        let text = "Received of uploads' bodies, also of those that failed";
        registry.register_with_unit("received", text, Unit::Bytes, received_bytes.clone());
        let reused_bytes = Counter::default();
        let text = "Bytes of unfinished blobs that were taken from stored ones and not sent";
        registry.register_with_unit("reused", text, Unit::Bytes, reused_bytes.clone());
        let stored_bytes = Counter::default();
        let text = "Sizes of the blobs that uploads stored";
        registry.register_with_unit("stored", text, Unit::Bytes, stored_bytes.clone());
        let mismatches = Family::default();
        let text = "Uploads of something else than their name says (417)";
        registry.register("verify_failures", text, mismatches.clone());
        let sync_seconds = Histogram::new(exponential_buckets(0.0005, 4.0, 8));
        let text = "Time an upload spent making content and name durable";
        registry.register_with_unit("upload_sync", text, Unit::Seconds, sync_seconds.clone());

        let checkouts = Family::default();
        registry.register("checkouts", "Checkouts by outcome", checkouts.clone());
        let links = Counter::default();
        registry.register("checkout_links", "Links made in checkouts", links.clone());
        let checkout_bytes = Counter::default();
        let text = "Sizes of all files in created checkouts; what of that is not among the stored bytes \
                    did not have to be sent";
        registry.register_with_unit("checkout", text, Unit::Bytes, checkout_bytes.clone());

        let last_success = Family::default();
        let text = "When a job was last done, in seconds since 1970; absent until then";
        registry.register_with_unit(
            "last_success_timestamp",
            text,
            Unit::Seconds,
            last_success.clone(),
        );
        registry.register_collector(Box::new(Room(store.clone())));
        registry.register_collector(Box::new(Content(store)));

        let metrics = Self {
            registry: root,
            routes: routes
                .map(|name| Arc::from(name.as_str()))
                .map(|name: Arc<str>| (name.clone(), Route(name)))
                .collect(),
            no_route: Route(NO_ROUTE.into()),
            to_manager: Route(TO_MANAGER.into()),
            requests,
            request_seconds,
            malformed,
            connections,
            uploads,
            holds,
            uploads_in_flight,
            uploads_waiting,
            received_bytes,
            reused_bytes,
            stored_bytes,
            mismatches,
            sync_seconds,
            checkouts,
            links,
            checkout_bytes,
            last_success,
        };
        // A rate over a counter that appears with its first event misses that event.
        for end in UploadEnd::ALL {
            drop(metrics.uploads.get_or_create(&Outcome { outcome: end.name() }));
        }
        for end in HoldEnd::ALL {
            drop(metrics.holds.get_or_create(&End { end: end.name() }));
        }
        for reason in ["size", "digest"] {
            drop(metrics.mismatches.get_or_create(&Reason { reason }));
        }
        for outcome in ["created", "failed"] {
            drop(metrics.checkouts.get_or_create(&Outcome { outcome }));
        }
        metrics
    }

    /// A job has been done, just now.
    pub fn succeeded(&self, job: Job) {
        self.succeeded_at(job, unix_seconds());
    }

    /// A job has been done then, in seconds since 1970.
    pub fn succeeded_at(&self, job: Job, unix_seconds: f64) {
        self.last_success.get_or_create(&JobName { job: job.name() }).set(unix_seconds);
    }

    pub(super) fn upload_ended(&self, end: UploadEnd) {
        self.uploads.get_or_create(&Outcome { outcome: end.name() }).inc();
    }

    pub(super) fn hold_ended(&self, end: HoldEnd) {
        self.holds.get_or_create(&End { end: end.name() }).inc();
    }

    pub(super) fn stored(&self, bytes: u64, synced: Duration) {
        self.stored_bytes.inc_by(bytes);
        self.sync_seconds.observe(synced.as_secs_f64());
    }

    pub(super) fn wrong_size(&self) {
        self.mismatches.get_or_create(&Reason { reason: "size" }).inc();
    }

    pub(super) fn wrong_digest(&self) {
        self.mismatches.get_or_create(&Reason { reason: "digest" }).inc();
    }

    pub(super) fn not_received(&self, error: &ReceiveError) {
        match error {
            ReceiveError::Size { .. } => self.wrong_size(),
            ReceiveError::Digest { .. } => self.wrong_digest(),
            _ => {}
        }
    }

    pub(super) fn checkout_created(&self, files: usize, bytes: u64) {
        self.checkouts.get_or_create(&Outcome { outcome: "created" }).inc();
        self.links.inc_by(files as u64);
        self.checkout_bytes.inc_by(bytes);
    }

    pub(super) fn checkout_failed(&self) {
        self.checkouts.get_or_create(&Outcome { outcome: "failed" }).inc();
    }

    fn answered(&self, route: Route, method: &'static str, code: StatusCode, time: Duration) {
        let answered = Answered { route: route.clone(), method, code: code.as_u16() };
        self.requests.get_or_create(&answered).inc();
        self.request_seconds.get_or_create(&Asked { route, method }).observe(time.as_secs_f64());
    }

    /// A request was passed on to the Manager, and its answer has begun.
    pub(super) fn passed(&self, method: &Method, code: StatusCode, time: Duration) {
        self.answered(self.to_manager.clone(), method_name(method), code, time);
    }

    /// All of it. Asks the file system: not for async threads.
    pub(super) fn text(&self) -> String {
        let mut all = String::new();
        text::encode(&mut all, &self.registry).expect("BUG: a String takes everything");
        all
    }
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The room in the storage, asked for at each scrape.
#[derive(Debug)]
struct Room(Arc<Store>);

impl Collector for Room {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let room = match self.0.room() {
            Ok(Some(room)) => room,
            Ok(None) => return Ok(()),
            Err(error) => {
                let reason = format!("{error}: {}", error.source);
                tracing::warn!(reason, "the metrics lack the room in the storage");
                return Ok(());
            }
        };
        for (name, text, bytes) in [
            ("storage_size", "The size of the storage's file system", room.total_bytes),
            ("storage_free", "What may still be written to it", room.free_bytes),
            ("storage_reserve", "What of that is kept free", room.reserve_bytes),
            ("storage_promised", "What uploads under way have still to write", room.admitted_bytes),
        ] {
            let gauge = ConstGauge::new(bytes);
            let kind = gauge.metric_type();
            gauge.encode(encoder.encode_descriptor(name, text, Some(&Unit::Bytes), kind)?)?;
        }
        Ok(())
    }
}

/// What is in the store, and what upkeep has found, asked for at each scrape.
#[derive(Debug)]
struct Content(Arc<Store>);

impl Collector for Content {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let tally = self.0.tally();
        if let Some(stored) = tally.stored {
            for (name, text, unit, value) in [
                ("store_blobs", "Blobs in the store", None, stored.blobs),
                ("store", "Sizes of the blobs in the store", Some(&Unit::Bytes), stored.bytes),
            ] {
                let gauge = ConstGauge::new(value);
                let kind = gauge.metric_type();
                gauge.encode(encoder.encode_descriptor(name, text, unit, kind)?)?;
            }
        }
        if self.0.indexes_chunks() {
            let indexed = self.0.indexed();
            let behind = indexed.waiting + u64::from(!indexed.complete);
            for (name, text, value) in [
                ("chunk_index_blobs", "Blobs whose chunks are known", indexed.blobs),
                ("chunk_index_behind", "What waits for that; 0 when all are known", behind),
            ] {
                let gauge = ConstGauge::new(value);
                let kind = gauge.metric_type();
                gauge.encode(encoder.encode_descriptor(name, text, None, kind)?)?;
            }
        }
        let bytes = Some(&Unit::Bytes);
        for (name, text, unit, value) in [
            (
                "gc_removed_blobs",
                "Blobs that garbage collection removed",
                None,
                tally.removed.blobs,
            ),
            ("gc_removed", "Sizes of these", bytes, tally.removed.bytes),
            ("scrub_read_blobs", "Blobs that scrubs have read", None, tally.scrubbed.blobs),
            ("scrub_read", "Sizes of these", bytes, tally.scrubbed.bytes),
            ("scrub_unreadable", "Blobs that scrubs could not read", None, tally.unreadable),
            (
                "quarantined",
                "What was not what its name says, and went to quarantine",
                None,
                tally.quarantined,
            ),
        ] {
            let counter = ConstCounter::new(value);
            let kind = counter.metric_type();
            counter.encode(encoder.encode_descriptor(name, text, unit, kind)?)?;
        }
        Ok(())
    }
}

/// Counts one more of something until it is dropped.
#[derive(Debug)]
pub(super) struct Counted(Gauge);

impl Counted {
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Counts and times every request that is answered.
pub(super) async fn measure(State(app): State<App>, request: Request, next: Next) -> Response {
    let metrics = &app.metrics;
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .and_then(|path| metrics.routes.get(path.as_str()))
        .unwrap_or(&metrics.no_route)
        .clone();
    let method = method_name(request.method());
    let start = Instant::now();
    let response = next.run(request).await;
    metrics.answered(route, method, response.status(), start.elapsed());
    response
}

/// Clients may make up methods.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
