//! Jobs on their way to the Manager: each is told the name of its checkout, if its .blend lies in
//! one of this storage. The newer add-on sends none, and the Manager would keep the checkout for
//! ever.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::{
    body::Body,
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::{
    super::{
        ApiError, App,
        body::{BodyError, next_piece},
    },
    Gateway, Head, NoAnswer,
    json::{Members, quoted},
    manager::MARK,
    paths::{BLENDFILE, JobPaths},
};
use crate::{disk::DiskError, domain::CheckoutPath, store::Store, wire};

/// A job that is longer is passed on as it is.
const MAX_JOB_BYTES: usize = 1 << 20;

const CHECKOUT_ID: &str = "shaman_checkout_id";

/// Whether this request submits a job.
pub(super) fn is_submit(head: &Head) -> bool {
    head.method == Method::POST
        && head.target.path().strip_prefix(wire::API) == Some("jobs")
        && !head.headers.contains_key(header::CONTENT_ENCODING)
}

/// The decision about the body of a submitted job.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It is passed on as it came.
    Unchanged,
    /// This is passed on.
    Changed(String),
    /// The job is refused, for this reason.
    Refused(String),
}

/// The body to pass on; or the refusal.
pub(super) async fn prepare(
    app: &App,
    gateway: &Gateway,
    head: &mut Head,
    mut body: Body,
) -> Result<Result<Body, Response>, NoAnswer> {
    if body.size_hint().exact().is_some_and(|length| length > MAX_JOB_BYTES as u64) {
        return Ok(Ok(body));
    }
    let mut job = Vec::new();
    loop {
        match next_piece(&mut body, app.options.body_timeout).await {
            Ok(Some(piece)) => job.extend_from_slice(&piece),
            Ok(None) => break,
            Err(BodyError::Silent(time)) => return Err(NoAnswer::ClientSilent(time)),
            Err(error) => return Err(NoAnswer::ClientBroken(error.to_string())),
        }
        if job.len() > MAX_JOB_BYTES {
            return Ok(Ok(Body::new(Continued { begun: Some(job.into()), rest: body })));
        }
    }
    let paths = gateway.job_paths(app).await;
    let store = app.store.clone();
    let (job, outcome) = app
        .exec
        .blocking(move || {
            let outcome = examine(&job, &paths, &store).unwrap_or_else(|error| {
                tracing::warn!("a job is passed on as it is: {error}: {}", error.source);
                Outcome::Unchanged
            });
            (job, outcome)
        })
        .await;
    let job = match outcome {
        Outcome::Unchanged => job,
        Outcome::Changed(job) => job.into_bytes(),
        Outcome::Refused(reason) => {
            tracing::warn!("a job is refused: {reason}");
            let mut answer = ApiError::new(StatusCode::BAD_REQUEST, reason).into_response();
            answer.headers_mut().insert(MARK, HeaderValue::from_static("error"));
            return Ok(Err(answer));
        }
    };
    head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(job.len()));
    Ok(Ok(Body::from(job)))
}

fn examine(job: &[u8], paths: &JobPaths, store: &Store) -> Result<Outcome, DiskError> {
    const UNCHANGED: Result<Outcome, DiskError> = Ok(Outcome::Unchanged);
    let Some(members) = Members::read(job) else { return UNCHANGED };
    if let Some(deleted) = deleted_meanwhile(job, paths, store) {
        return Ok(Outcome::Refused(format!(
            "the checkout {deleted:?} is being deleted, and this job uses it: make another checkout"
        )));
    }
    let Ok(storage) = members.get("storage") else { return UNCHANGED };
    let storage = storage.filter(|value| *value != "null").unwrap_or("{}");
    let Some(storage) = Members::read(storage.as_bytes()) else { return UNCHANGED };
    let Ok(id) = storage.get(CHECKOUT_ID) else { return UNCHANGED };
    let Ok(id) = serde_json::from_str::<Option<String>>(id.unwrap_or("null")) else {
        return UNCHANGED;
    };
    let id = id.filter(|id| !id.is_empty());
    let with_storage = |storage: String| Ok(Outcome::Changed(members.with("storage", &storage)));
    let with_id = |checkout: &CheckoutPath| {
        with_storage(storage.with(CHECKOUT_ID, &quoted(checkout.as_str())))
    };
    let Some(id) = id else {
        return match used_by_blend(&members, paths, store)? {
            Some(checkout) if paths.may_be_named() => with_id(&checkout),
            _ => UNCHANGED,
        };
    };
    let answered = paths.answered(&id);
    if answered.is_some() && !paths.may_be_named() {
        // The Manager would look for it in its own storage.
        return with_storage(storage.without(CHECKOUT_ID));
    }
    let Some(checkout) = answered.clone().or_else(|| id.parse().ok()) else { return UNCHANGED };
    if paths.is_shared()
        && !store.is_on_record(&checkout)?
        && let Some(other) = store.checkout_overlapping(&checkout)?
    {
        return Ok(Outcome::Refused(format!(
            "storage.shaman_checkout_id {id:?} is not a whole checkout: with the job, a part of the \
             checkout {other} would be deleted, or more than one; give the path that checkout/create \
             has answered, or leave it out"
        )));
    }
    match answered {
        Some(checkout) => with_id(&checkout),
        None => UNCHANGED,
    }
}

/// A checkout that the job may use and that is being deleted.
fn deleted_meanwhile(job: &[u8], paths: &JobPaths, store: &Store) -> Option<CheckoutPath> {
    let deleted = store.being_deleted();
    if deleted.is_empty() {
        return None;
    }
    let job: serde_json::Value = serde_json::from_slice(job).ok()?;
    let id = job["storage"][CHECKOUT_ID].as_str();
    deleted.into_iter().find(|checkout| paths.may_use(id, &job["settings"], checkout))
}

/// The checkout of this storage that the job's .blend lies in.
fn used_by_blend(
    members: &Members<'_>,
    paths: &JobPaths,
    store: &Store,
) -> Result<Option<CheckoutPath>, DiskError> {
    let settings = members.get("settings").ok().flatten();
    let settings = settings.and_then(|settings| Members::read(settings.as_bytes()));
    let blend = settings.as_ref().and_then(|settings| settings.get(BLENDFILE).ok().flatten());
    let blend = blend.and_then(|blend| serde_json::from_str::<String>(blend).ok());
    match blend.and_then(|blend| paths.resolve(&blend)) {
        Some(path) => store.checkout_above(&path),
        None => Ok(None),
    }
}

/// A body of which the beginning has been read already.
struct Continued {
    begun: Option<Bytes>,
    rest: Body,
}

impl HttpBody for Continued {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match self.begun.take() {
            Some(begun) => Poll::Ready(Some(Ok(Frame::data(begun)))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.begun.is_none() && self.rest.is_end_stream()
    }

    /// Its length is not known: else it would not have been begun.
    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{
        super::storage::{Comparison, ManagerStorage},
        *,
    };
    use crate::{
        domain::Manifest,
        store::{Durability, Options},
    };

    fn store(dir: &std::path::Path) -> Arc<Store> {
        let options = Options { durability: Durability::Relaxed, ..Options::default() };
        let store = Store::open(dir, options).unwrap();
        store.checkout(&"alice/shot".parse().unwrap(), &Manifest::default()).unwrap();
        store
    }

    #[test]
    fn a_job_is_changed_in_one_place() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let checkouts = store.checkouts_dir().to_str().unwrap().to_owned();
        let manager = |shaman_enabled| ManagerStorage { location: "/m".into(), shaman_enabled };
        let same = |jobs_prefix| Comparison::Same {
            manager: manager(true),
            checkouts: "/m/jobs".into(),
            jobs_prefix,
        };
        let apart = |shaman_enabled| Comparison::Different {
            manager: manager(shaman_enabled),
            reason: String::new(),
        };
        let of = |comparison: &Comparison, job: &str| {
            let job = job.replace("CHECKOUTS", &checkouts);
            let paths = JobPaths::new(&checkouts, comparison);
            match examine(job.as_bytes(), &paths, &store).unwrap() {
                Outcome::Changed(text) => text.replace(&checkouts, "CHECKOUTS"),
                Outcome::Unchanged => "unchanged".to_owned(),
                Outcome::Refused(_) => "refused".to_owned(),
            }
        };
        let (here, below) = (same(""), same("jobs/"));
        let blend =
            r#"{ "settings":{"blendfile" : "{jobs}/alice/shot/x.blend","n":1.0}, "x":1e3 }"#;
        let named = r#"{ "settings":{"blendfile" : "{jobs}/alice/shot/x.blend","n":1.0}, "x":1e3 ,"storage":{"shaman_checkout_id":"alice/shot"}}"#;
        assert_eq!(of(&here, blend), named);
        assert_eq!(of(&below, blend), "unchanged");
        assert_eq!(of(&apart(true), blend), "unchanged");
        let absolute = blend.replace("{jobs}", "CHECKOUTS");
        assert_eq!(of(&apart(false), &absolute), named.replace("{jobs}", "CHECKOUTS"));
        assert_eq!(of(&apart(true), &absolute), "unchanged", "its Shaman has other checkouts");
        for (before, after) in [
            (r#""storage": null"#, r#""storage": {"shaman_checkout_id":"alice/shot"}"#),
            (
                r#""storage":{"y":[ 1]}"#,
                r#""storage":{"y":[ 1],"shaman_checkout_id":"alice/shot"}"#,
            ),
            (
                r#""storage":{"shaman_checkout_id": "" }"#,
                r#""storage":{"shaman_checkout_id": "alice/shot" }"#,
            ),
        ] {
            let blend = r#"{"settings":{"blendfile":"{jobs}/alice/shot/x.blend"},"#;
            assert_eq!(of(&here, &format!("{blend}{before}}}")), format!("{blend}{after}}}"));
        }
        for unchanged in [
            "",
            "[]",
            r#"{"settings":{"blendfile":"{jobs}/bob/x.blend"}}"#,
            r#"{"settings":{"blendfile":"{jobs}/alice/shot/../x.blend"}}"#,
            r#"{"settings":{"blendfile":7},"storage":{}}"#,
            r#"{"settings":{"blendfile":"{jobs}/alice/shot/x"},"storage":{},"storage":{}}"#,
            r#"{"settings":{"blendfile":"{jobs}/alice/shot/x"},"storage":7}"#,
            r#"{"settings":{"blendfile":"{jobs}/alice/shot/x"},"storage":{"shaman_checkout_id":7}}"#,
            r#"{"storage":{"shaman_checkout_id":"alice/shot"}}"#,
            r#"{"storage":{"shaman_checkout_id":"bob"}}"#,
            r#"{"storage":{"shaman_checkout_id":"../x"}}"#,
        ] {
            assert_eq!(of(&here, unchanged), "unchanged", "{unchanged}");
        }
        let id = |id: &str| format!(r#"{{"storage":{{"shaman_checkout_id":"{id}"}}}}"#);
        assert_eq!(of(&below, &id("jobs/alice/shot")), id("alice/shot"));
        assert_eq!(of(&here, &id("CHECKOUTS/alice/shot")), id("alice/shot"));
        assert_eq!(of(&apart(true), &id("CHECKOUTS/alice/shot")), r#"{"storage":{}}"#);
        for part in ["alice", "alice/shot/textures", "CHECKOUTS/alice"] {
            assert_eq!(of(&here, &id(part)), "refused", "{part}");
        }
        assert_eq!(of(&apart(true), &id("alice")), "unchanged");
    }
}
