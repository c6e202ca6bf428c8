//! Joins folded header lines before hyper sees them.
//!
//! Released Blender add-ons (3.6 to 3.8.5) fold `X-Shaman-Original-Filename` over several lines (RFC
//! 7230's `obs-fold`), which hyper answers with 400 and has no switch for. This wrapper replaces each
//! fold by spaces, in place: the length of the head stays the same. To find the next head it follows
//! `Content-Length`. A head that frames its body any other way (chunked, upgrade, contradictions)
//! ends its work: from there on all bytes pass untouched, so it never disagrees with hyper about
//! where a request begins.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use memchr::{memchr, memchr_iter};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::connection::Activity;

/// The longest head that is looked at; hyper itself gives up earlier.
const MAX_HEAD_BYTES: usize = 512 * 1024;

/// A socket whose request heads have no folded lines.
#[derive(Debug)]
pub(super) struct Unfold<S> {
    socket: S,
    unfolder: Unfolder,
    activity: Arc<Activity>,
}

impl<S> Unfold<S> {
    pub fn new(socket: S, activity: Arc<Activity>) -> Self {
        Self { socket, unfolder: Unfolder::default(), activity }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Unfold<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.unfolder.give(buf) || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            let before = buf.filled().len();
            match this.unfolder.stage {
                Stage::Head => {
                    let mut chunk = [0; 4096];
                    let mut chunk = ReadBuf::new(&mut chunk);
                    ready!(Pin::new(&mut this.socket).poll_read(cx, &mut chunk))?;
                    if chunk.filled().is_empty() {
                        if !this.unfolder.end() {
                            return Poll::Ready(Ok(()));
                        }
                    } else {
                        this.activity.head_byte();
                        this.unfolder.take(chunk.filled());
                    }
                }
                Stage::Body(left) => {
                    ready!(Pin::new(&mut (&mut this.socket).take(left)).poll_read(cx, buf))?;
                    this.unfolder.passed(buf.filled().len() - before);
                    this.activity.moved();
                    return Poll::Ready(Ok(()));
                }
                Stage::Untouched => {
                    ready!(Pin::new(&mut this.socket).poll_read(cx, buf))?;
                    this.activity.any_byte();
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Unfold<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.activity.moved();
        Pin::new(&mut self.socket).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.activity.moved();
        Pin::new(&mut self.socket).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    /// Inside, or before, the head of a request.
    #[default]
    Head,
    /// So many bytes of body are still to come.
    Body(u64),
    /// No longer our business.
    Untouched,
}

/// The pure part: bytes in, bytes out, never fewer or more.
#[derive(Debug, Default)]
struct Unfolder {
    stage: Stage,
    /// The part of a head that has come so far.
    head: Vec<u8>,
    /// Bytes to hand on, from `given` on.
    ready: Vec<u8>,
    given: usize,
}

impl Unfolder {
    /// Hands on what is ready; false if nothing is.
    fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let ready = &self.ready[self.given..];
        let count = ready.len().min(buf.remaining());
        buf.put_slice(&ready[..count]);
        self.given += count;
        if self.given == self.ready.len() {
            self.ready.clear();
            self.given = 0;
        }
        count > 0
    }

    /// So many bytes of the body went past.
    fn passed(&mut self, count: usize) {
        if let Stage::Body(left) = self.stage {
            self.stage = match left - count as u64 {
                0 => Stage::Head,
                left => Stage::Body(left),
            };
        }
    }

    /// The client has closed its side; whether there is still something to hand on.
    fn end(&mut self) -> bool {
        self.stage = Stage::Untouched;
        self.ready.append(&mut self.head);
        self.given < self.ready.len()
    }

    /// Takes bytes that came while in a head; they may reach beyond it.
    fn take(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            match self.stage {
                Stage::Untouched => {
                    self.ready.extend_from_slice(data);
                    return;
                }
                Stage::Body(left) => {
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
                    self.ready.extend_from_slice(&data[..count]);
                    self.passed(count);
                    data = &data[count..];
                }
                Stage::Head => data = self.take_head(data),
            }
        }
    }

    /// Adds to the head; returns what lies behind its end.
    fn take_head<'a>(&mut self, data: &'a [u8]) -> &'a [u8] {
        let known = self.head.len();
        self.head.extend_from_slice(data);
        // Empty lines before a request are allowed and skipped by hyper.
        let start = self.head.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let from = start.max(known.saturating_sub(3));
        let Some(end) = head_end(&self.head, from) else {
            if self.head.len() > MAX_HEAD_BYTES {
                self.end();
            }
            return &[];
        };
        let rest = &data[end - known..];
        self.head.truncate(end);
        unfold(&mut self.head[start..]);
        self.stage = stage_after(&self.head[start..]);
        self.ready.append(&mut self.head);
        rest
    }
}

/// Where the empty line that ends a head is over, looking from `from` on. Lines may end without `\r`.
fn head_end(head: &[u8], from: usize) -> Option<usize> {
    memchr_iter(b'\n', head.get(from..)?).map(|at| from + at).find_map(|at| match &head[at + 1..] {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

/// Replaces each line break that is followed by white space by spaces.
fn unfold(head: &mut [u8]) {
    let mut from = 1;
    while let Some(at) = head.get(from..).and_then(|rest| memchr(b'\n', rest)).map(|at| from + at) {
        from = at + 1;
        if matches!(head.get(at + 1), Some(b' ' | b'\t')) {
            head[at] = b' ';
            if head[at - 1] == b'\r' {
                head[at - 1] = b' ';
            }
        }
    }
}

/// What follows this head. Anything but one plain `Content-Length`, or none, is left to hyper.
fn stage_after(head: &[u8]) -> Stage {
    let mut length = None;
    let mut rest = head;
    while let Some(end) = memchr(b'\n', rest) {
        rest = &rest[end + 1..];
        let line = &rest[..memchr(b'\n', rest).unwrap_or(rest.len())];
        let Some(colon) = memchr(b':', line) else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let digits = value.iter().all(u8::is_ascii_digit);
            let parsed = str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
            match parsed {
                Some(parsed) if digits && length.is_none() => length = Some(parsed),
                _ => return Stage::Untouched,
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding")
            || name.eq_ignore_ascii_case(b"upgrade")
        {
            return Stage::Untouched;
        }
    }
    match length {
        None | Some(0) => Stage::Head,
        Some(length) => Stage::Body(length),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt;

    use super::*;

    /// Sends `input` in pieces of these sizes, and returns what comes out.
    fn through(input: &[u8], pieces: &[usize]) -> Vec<u8> {
        let mut mock = tokio_test::io::Builder::new();
        let (mut rest, mut sizes) = (input, pieces.iter().cycle());
        while !rest.is_empty() {
            let count = (*sizes.next().unwrap()).clamp(1, rest.len());
            mock.read(&rest[..count]);
            rest = &rest[count..];
        }
        let mut out = Vec::new();
        let mut socket = Unfold::new(mock.build(), Arc::default());
        tokio_test::block_on(socket.read_to_end(&mut out)).unwrap();
        out
    }

    const FOLDED: &[u8] = b"POST /a HTTP/1.1\r\nContent-Length: 4\r\nX-Name: =?utf-8?q?a?=\r\n =?utf-8?q?b?=\n\tc\r\n\r\n\r\n\n ";
    const JOINED: &[u8] = b"POST /a HTTP/1.1\r\nContent-Length: 4\r\nX-Name: =?utf-8?q?a?=   =?utf-8?q?b?= \tc\r\n\r\n\r\n\n ";

    #[test]
    fn folds_are_joined_and_bodies_left_alone_wherever_the_pieces_end() {
        // The body looks like a fold, and a second request follows it.
        let input = [FOLDED, FOLDED].concat();
        let expected = [JOINED, JOINED].concat();
        for size in 1..=input.len() {
            assert_eq!(through(&input, &[size]), expected, "pieces of {size}");
        }
    }

    #[test]
    fn what_frames_its_body_otherwise_passes_untouched() {
        for head in [
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: +4\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
            "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
        ] {
            let input = [head.as_bytes(), FOLDED].concat();
            assert_eq!(through(&input, &[7]), input, "{head}");
        }
    }

    #[test]
    fn a_half_head_and_a_huge_head_come_out_as_they_are() {
        assert_eq!(through(b"POST / HT", &[4]), b"POST / HT");
        let huge = vec![b'a'; MAX_HEAD_BYTES + 10_000];
        assert_eq!(through(&huge, &[4096]), huge);
    }

    #[test]
    fn empty_lines_before_a_request_do_not_end_its_head() {
        let input = [b"\r\n\r\n", FOLDED].concat();
        assert_eq!(through(&input, &[3]), [b"\r\n\r\n", JOINED].concat());
    }

    /// The same, without pieces: looks at the whole input, line by line.
    fn reference(input: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut rest = input;
        loop {
            let blank = rest.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(rest.len());
            out.extend(&rest[..blank]);
            rest = &rest[blank..];
            // The lines of the head with their ends; the last one is empty.
            let mut lines: Vec<&[u8]> = Vec::new();
            let mut left = rest;
            while !matches!(lines.last(), Some(&b"\n" | &b"\r\n")) {
                let Some(end) = left.iter().position(|&byte| byte == b'\n') else {
                    out.extend(rest);
                    return out;
                };
                lines.push(&left[..=end]);
                left = &left[end + 1..];
            }
            let mut head: Vec<u8> = Vec::new();
            for line in lines {
                // A line that begins with white space goes on with the one before it.
                if line[0] == b' ' || line[0] == b'\t' {
                    for byte in
                        head.iter_mut().rev().take_while(|byte| b"\r\n".contains(byte)).take(2)
                    {
                        *byte = b' ';
                    }
                }
                head.extend(line);
            }
            let text: Vec<u8> = head.iter().map(|&b| if b.is_ascii() { b } else { b'?' }).collect();
            let text = String::from_utf8(text).unwrap().to_lowercase();
            out.extend(head);
            let mut lengths = Vec::new();
            for (name, value) in text.split('\n').skip(1).filter_map(|line| line.split_once(':')) {
                match name {
                    "content-length" => lengths.push(value.trim_matches([' ', '\t', '\r', '\x0c'])),
                    "transfer-encoding" | "upgrade" => lengths.extend(["", ""]),
                    _ => {}
                }
            }
            let body = match lengths[..] {
                [] => 0,
                [digits] if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                    match digits.parse::<u64>() {
                        Ok(length) => length.min(left.len() as u64) as usize,
                        Err(_) => left.len(),
                    }
                }
                _ => left.len(),
            };
            out.extend(&left[..body]);
            rest = &left[body..];
        }
    }

    proptest! {
        /// Whatever comes in: the same number of bytes, and only white space ever differs.
        #[test]
        fn only_line_breaks_become_spaces(
            parts in prop::collection::vec(prop_oneof![
                Just("POST / HTTP/1.1\r\n"), Just("Content-Length: 3\r\n"), Just("\r\n"), Just("\n"),
                Just(" folded"), Just("\t"), Just("abc"), Just("X: y\r\n"), Just("\r"),
                Just("Transfer-Encoding: chunked\r\n"), Just("content-length: 0\n"),
            ], 0..40),
            pieces in prop::collection::vec(1usize..30, 1..5),
        ) {
            let input = parts.concat().into_bytes();
            let output = through(&input, &pieces);
            prop_assert_eq!(output.len(), input.len());
            for (a, b) in input.iter().zip(&output) {
                prop_assert!(a == b || (matches!(a, b'\r' | b'\n') && *b == b' '));
            }
        }

        /// However the bytes are cut, what comes out is what a simple program makes of all of them at once.
        #[test]
        fn the_pieces_make_no_difference(
            parts in prop::collection::vec(prop_oneof![
                8 => prop::sample::select(vec![
                    "POST / HTTP/1.1\r\n", "GET /\n", "\r\n\r\n", "\r\n", "\n\n", "\n", "\r", " ", "\t",
                    " folded\r\n", "X-Name: a\r\n", "X-Name: a\n", "Content-Length: 7\r\n",
                    "content-length:0\n", "Content-Length: +1\r\n", "Content-Length:\r\n 12\r\n",
                    "Content-Length: 7\r\n\r\n", "Content-Length: 18446744073709551616\r\n",
                    "Content-Length : 3\r\n", "1234567", "Upgrade: h2c\r\n",
                    "Transfer-Encoding: chunked\r\n",
                ]).prop_map(|text| text.as_bytes().to_vec()),
                1 => prop::collection::vec(any::<u8>(), 0..6),
            ], 0..40),
            pieces in prop::collection::vec(1usize..30, 1..5),
        ) {
            let input = parts.concat();
            prop_assert_eq!(through(&input, &pieces), reference(&input));
        }

        #[test]
        fn any_bytes_pass(input in prop::collection::vec(any::<u8>(), 0..300), piece in 1usize..40) {
            prop_assert_eq!(through(&input, &[piece]).len(), input.len());
        }
    }
}
