//! Back from the store: `GET` and `HEAD /farmhand/v1/blobs/{sha}/{size}`, and what a checkout is made of.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    Json,
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::mpsc;

use super::{
    ApiError, App,
    admin::{Named, checkout_path},
    routes::NamedBlob,
};
use crate::{
    domain::BlobId,
    store::ManifestError,
    wire::{CheckoutRequest, FileSpec, Problem},
};

/// How much of a file is read at once, in bytes.
const PIECE_BYTES: u64 = 128 << 10;

/// How many pieces wait for the connection. With the one being read and the one being sent, this is all
/// that a download has in memory, however large the file and slow the client.
const PIECES_IN_FLIGHT: usize = 1;

/// What a name stands for never changes. Not for caches that several people share: who may read is
/// decided for each request.
const CACHE: &str = "private, max-age=31536000, immutable";

/// Fetch a file
///
/// One range of bytes can be asked for; several are answered with the whole. `HEAD` is answered like
/// `GET`, without the content. Whoever fetches checks the SHA-256: here, the file is not read before.
#[utoipa::path(
    get, path = "/blobs/{sha}/{size}", operation_id = "downloadBlob", tag = "store",
    params(
        ("sha" = String, Path, description = "SHA-256 as 64 lower-case hex digits"),
        ("size" = u64, Path, description = "Size in bytes"),
        ("Range" = Option<String>, Header, description = "Which bytes, like `bytes=1000-`"),
        ("If-Range" = Option<String>, Header, description = "Only then the range, otherwise the whole: if the ETag is this"),
        ("If-None-Match" = Option<String>, Header, description = "ETags of what the client has"),
    ),
    responses(
        (status = 200, description = "The content", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 206, description = "The range of it that `Content-Range` says", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 304, description = "The client has it"),
        (status = 400, description = "The path names no file", body = Problem),
        (status = 404, description = "It is not stored", body = Problem),
        (status = 416, description = "It has no such bytes; `Content-Range` says how many it has", body = Problem),
        (status = 500, description = "The storage fails", body = Problem),
    )
)]
pub(super) async fn download(
    State(app): State<App>,
    method: Method,
    NamedBlob(id): NamedBlob,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let store = app.store.clone();
    let Some(file) = app.exec.blocking(move || store.read_blob(&id)).await? else {
        return Err(ApiError::new(
            StatusCode::NOT_FOUND,
            format!("{id} is not stored here; whoever has the file can send it"),
        ));
    };
    let etag = format!("\"{}\"", id.digest);
    let mut known = HeaderMap::new();
    let mut say = |name: HeaderName, value: &str| {
        known.insert(name, HeaderValue::from_str(value).expect("BUG: letters, digits and signs"));
    };
    say(header::ETAG, &etag);
    say(header::CACHE_CONTROL, CACHE);
    say(header::ACCEPT_RANGES, "bytes");
    if has(&headers, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, known).into_response());
    }
    let size = id.size_bytes;
    // Only for GET there are ranges.
    let range = if method == Method::GET { range(&headers, &etag, size) } else { Asked::Whole };
    let (status, wanted) = match range {
        Asked::Whole => (StatusCode::OK, 0..size),
        Asked::Part(wanted) => {
            let (first, last) = (wanted.start, wanted.end - 1);
            say(header::CONTENT_RANGE, &format!("bytes {first}-{last}/{size}"));
            (StatusCode::PARTIAL_CONTENT, wanted)
        }
        Asked::Nothing => {
            say(header::CONTENT_RANGE, &format!("bytes */{size}"));
            let message = format!("{id} has no such bytes: ask for some of its {size}");
            let error = ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, message);
            // An error is not what is to be kept.
            known.remove(header::CACHE_CONTROL);
            return Ok((known, error).into_response());
        }
    };
    say(header::CONTENT_TYPE, "application/octet-stream");
    // What somebody has sent must never run as a script of this address.
    say(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    say(header::CONTENT_LENGTH, &(wanted.end - wanted.start).to_string());
    let body =
        if method == Method::HEAD { Body::empty() } else { send(&app, id, file, wanted).await? };
    Ok((status, known, body).into_response())
}

/// Whether the client has what has this ETag.
fn has(headers: &HeaderMap, etag: &str) -> bool {
    headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(
        |tags| {
            // Tags of others may have commas in them; no part of those looks like one of ours.
            tags.split(',')
                .map(str::trim)
                .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
        },
    )
}

/// Which bytes a request is about.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Whole,
    Part(Range<u64>),
    /// Bytes that there are not.
    Nothing,
}

fn range(headers: &HeaderMap, etag: &str, size: u64) -> Asked {
    // A weak tag, or a date, is none that says that all bytes are the same.
    if headers.get(header::IF_RANGE).is_some_and(|tag| tag != etag) {
        return Asked::Whole;
    }
    let mut ranges = headers.get_all(header::RANGE).iter();
    let (Some(range), None) = (ranges.next(), ranges.next()) else { return Asked::Whole };
    // What cannot be understood, and more than one, may be passed over (RFC 9110, section 14.2).
    let parsed =
        range.to_str().ok().and_then(|text| http_range_header::parse_range_header(text).ok());
    match parsed.filter(|ranges| ranges.len() == 1).map(|ranges| ranges.validate(size)) {
        Some(Ok(ranges)) => match ranges.as_slice() {
            [one] => Asked::Part(*one.start()..one.end() + 1),
            _ => Asked::Whole,
        },
        Some(Err(http_range_header::RangeUnsatisfiableError::Unsatisfiable)) => Asked::Nothing,
        _ => Asked::Whole,
    }
}

/// Part of a file that has still to be read.
struct Rest {
    file: File,
    left_bytes: u64,
}

impl Rest {
    /// The next piece.
    fn read(&mut self) -> io::Result<Bytes> {
        let count = self.left_bytes.min(PIECE_BYTES);
        let mut piece = vec![0; usize::try_from(count).map_err(io::Error::other)?];
        self.file.read_exact(&mut piece)?;
        self.left_bytes -= count;
        Ok(piece.into())
    }
}

/// The content, read while it is sent. No thread waits for a client that takes its time: there are fewer
/// of them than there may be clients.
async fn send(app: &App, id: BlobId, file: File, wanted: Range<u64>) -> Result<Body, ApiError> {
    let mut rest = Rest { file, left_bytes: wanted.end - wanted.start };
    let begun = app.exec.blocking(move || {
        rest.file.seek(SeekFrom::Start(wanted.start))?;
        let piece = rest.read()?;
        Ok::<_, io::Error>((rest, piece))
    });
    // As long as nothing has been said, it can be said.
    let (mut rest, first) = begun.await.map_err(|error| {
        let error = unreadable(id, &error);
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the server's storage failed: {error}"),
        )
    })?;
    if rest.left_bytes == 0 {
        return Ok(first.into());
    }
    let (pieces, body) = mpsc::channel(PIECES_IN_FLIGHT);
    let left_bytes = first.len() as u64 + rest.left_bytes;
    let exec = app.exec.clone();
    app.exec.spawn(async move {
        let mut piece = Ok(first);
        loop {
            let is_last = piece.is_err() || rest.left_bytes == 0;
            // Not taken: the client is gone.
            if pieces.send(piece).await.is_err() || is_last {
                return;
            }
            (rest, piece) = exec
                .blocking(move || {
                    let piece = rest.read();
                    (rest, piece)
                })
                .await;
            piece = piece.map_err(|error| io::Error::other(unreadable(id, &error)));
        }
    });
    Ok(Body::new(Pieces { pieces: body, left_bytes }))
}

fn unreadable(id: BlobId, error: &io::Error) -> String {
    let message = format!("cannot read {id} to its end: {error}");
    tracing::error!(reason = message, "the storage failed");
    message
}

/// A body that has all of its bytes, or breaks the connection.
struct Pieces {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    left_bytes: u64,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Ready(match ready!(self.pieces.poll_recv(cx)) {
            Some(Ok(piece)) => {
                self.left_bytes = self.left_bytes.saturating_sub(piece.len() as u64);
                Some(Ok(Frame::data(piece)))
            }
            Some(Err(error)) => Some(Err(error)),
            None if self.left_bytes > 0 => Some(Err(io::ErrorKind::UnexpectedEof.into())),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left_bytes == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left_bytes)
    }
}

/// What a checkout is made of
///
/// All files, sorted by path, in the form of the request that makes a checkout of them. Whether they are
/// all still stored is another question: see `verifyCheckouts`.
#[utoipa::path(
    get, path = "/checkouts/manifest", operation_id = "getManifest", tag = "store",
    params(("path" = String, Query, description = "The checkout, as it is listed")),
    responses(
        (status = 200, description = "All of its files", body = CheckoutRequest),
        (status = 400, description = "The request is not as expected", body = Problem),
        (status = 404, description = "There is no such checkout", body = Problem),
        (status = 409, description = "There is something in it that is no link to a file of the store, or it changes all the time", body = Problem),
        (status = 500, description = "The storage fails", body = Problem),
    )
)]
pub(super) async fn manifest(
    State(app): State<App>,
    named: Result<Query<Named>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(Named { path }) = named.map_err(|_| {
        ApiError::bad_request("which checkout? Ask for /farmhand/v1/checkouts/manifest?path=PATH")
    })?;
    let path = checkout_path(&path)?;
    let store = app.store.clone();
    app.exec
        .compute(move || {
            let manifest = store.manifest(&path)?;
            let files = manifest.entries().iter().map(FileSpec::from).collect();
            let checkout_path = path.as_str().into();
            Ok(Json(CheckoutRequest { checkout_path, files }).into_response())
        })
        .await
}

impl From<ManifestError> for ApiError {
    fn from(error: ManifestError) -> Self {
        match error {
            ManifestError::Unknown(_) => Self::new(
                StatusCode::NOT_FOUND,
                format!("{error}; farmhand store list shows those there are"),
            ),
            ManifestError::NoBlob { .. } => Self::new(
                StatusCode::CONFLICT,
                format!(
                    "{error}; take it out of the checkout, or fetch the files from its directory"
                ),
            ),
            ManifestError::Restless(_) => Self::new(
                StatusCode::CONFLICT,
                format!("{error}; try again when nobody works in it"),
            ),
            ManifestError::Disk(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETAG: &str = "\"00\"";

    fn headers(given: &[(HeaderName, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn which_bytes_a_request_is_about() {
        use Asked::{Nothing, Part, Whole};
        for (text, expected) in [
            ("bytes=0-", Part(0..10)),
            ("bytes=0-0", Part(0..1)),
            ("bytes=3-6", Part(3..7)),
            ("Bytes=3-6", Part(3..7)),
            ("bytes=9-", Part(9..10)),
            ("bytes=3-99999999999999999999", Part(3..10)),
            ("bytes=-1", Part(9..10)),
            ("bytes=-10", Part(0..10)),
            ("bytes=-11", Part(0..10)),
            ("bytes=10-", Nothing),
            ("bytes=10-20", Nothing),
            ("bytes=-0", Nothing),
            ("bytes=6-3", Whole),
            ("bytes=0-1,3-4", Whole),
            ("bytes=0-1,20-", Whole),
            ("bytes=", Whole),
            ("bytes=-", Whole),
            ("bytes=a-b", Whole),
            ("bytes=+1-2", Whole),
            ("bytes", Whole),
            ("lines=1-2", Whole),
            ("", Whole),
        ] {
            assert_eq!(range(&headers(&[(header::RANGE, text)]), ETAG, 10), expected, "{text}");
        }
        assert_eq!(range(&HeaderMap::new(), ETAG, 10), Whole);
        let two = headers(&[(header::RANGE, "bytes=0-1"), (header::RANGE, "bytes=3-4")]);
        assert_eq!(range(&two, ETAG, 10), Whole);
        // Of nothing, there is nothing but the whole.
        assert_eq!(range(&headers(&[(header::RANGE, "bytes=0-")]), ETAG, 0), Nothing);
        assert_eq!(range(&headers(&[(header::RANGE, "bytes=-5")]), ETAG, 0), Whole);
        for (tag, expected) in [
            (ETAG, Part(3..7)),
            ("\"01\"", Whole),
            ("W/\"00\"", Whole),
            ("00", Whole),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Whole),
        ] {
            let asked = headers(&[(header::RANGE, "bytes=3-6"), (header::IF_RANGE, tag)]);
            assert_eq!(range(&asked, ETAG, 10), expected, "{tag}");
        }
    }

    #[test]
    fn which_tags_mean_that_the_client_has_it() {
        for (tags, expected) in [
            (ETAG, true),
            ("W/\"00\"", true),
            ("\"x\" , \"00\"", true),
            ("*", true),
            ("\"x,\", \"00\"", true),
            ("\"000\"", false),
            ("00", false),
            ("\"x\"", false),
            ("", false),
        ] {
            let headers = headers(&[(header::IF_NONE_MATCH, tags)]);
            assert_eq!(has(&headers, ETAG), expected, "{tags}");
        }
    }
}
