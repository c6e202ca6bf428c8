//! A look at a server: is it there, does it speak Shaman, what does it call itself, what time is it there?

use std::time::{Duration, SystemTime};

use reqwest::{Method, Response, Url, header};
use serde::Deserialize;
use tokio::time::Instant;

use super::{ClientError, Shaman, is_loopback};
use crate::wire::{self, FileSpec, RequirementsAnswer, RequirementsRequest, hide_tokens};

/// The digest of the empty file.
const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// The longest description of itself that a server may have, in bytes.
const MAX_DESCRIPTION_BYTES: usize = 4 << 20;

/// The longest name and version that are shown, in characters.
const MAX_NAME_CHARS: usize = 80;

/// What a look at a server has found.
#[derive(Debug)]
pub struct Probe {
    /// Whether it answers as the protocol says.
    pub answer: Result<(), ClientError>,
    /// How long that took, with all that comes before: names, connection, TLS.
    pub took: Duration,
    /// Its clock and ours, if it says what time it is.
    pub clocks: Option<Clocks>,
    /// Its name and version, if it says.
    pub software: Option<String>,
    /// Where it sends its clients.
    pub moved_to: Option<String>,
}

/// What can be known of two clocks from one answer: a server says the time in whole seconds, and when
/// on the way it did so is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// How much ours is ahead, in milliseconds; less than nothing if it is behind.
    pub ahead_ms: i64,
    /// How wrong that may be, either way.
    pub unsure_ms: i64,
}

impl Clocks {
    /// `sent` is our time when the server was asked, `took` how long the answer was on its way.
    fn compare(server: SystemTime, sent: SystemTime, took: Duration) -> Self {
        let half = took / 2;
        let ours = unix_ms(sent) + ms(half);
        // Within the second that it says.
        Self { ahead_ms: ours - (unix_ms(server) + 500), unsure_ms: ms(half) + 500 }
    }
}

fn ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 4)
}

fn unix_ms(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => ms(after),
        Err(before) => -ms(before.duration()),
    }
}

/// How servers tell their version, each in a way of its own.
#[derive(Deserialize)]
struct Version {
    #[serde(alias = "title")]
    name: Option<String>,
    shortversion: Option<String>,
    version: Option<String>,
}

#[derive(Deserialize)]
struct OpenApi {
    info: Version,
}

impl Version {
    fn shown(self) -> Option<String> {
        let parts = [self.name, self.shortversion.or(self.version)];
        let parts: Vec<_> = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
        let text = parts.join(" ").chars().take(MAX_NAME_CHARS).collect::<String>();
        (!text.is_empty()).then_some(text)
    }
}

impl Shaman {
    /// Asks the server what every client asks it first, once.
    ///
    /// One file is asked for, the empty one: that is what servers are asked all day, while none expects
    /// a question about nothing. It changes nothing there.
    pub async fn probe(&self) -> Probe {
        const PATH: &str = "checkout/requirements";
        let file = FileSpec { sha: NOTHING.into(), size: 0, path: "farmhand-doctor".into() };
        let url = self.endpoint(PATH);
        let request = self
            .request(Method::POST, url.clone())
            .timeout(self.options.stall_timeout)
            .json(&RequirementsRequest { files: vec![file] });
        let (sent, start) = (SystemTime::now(), Instant::now());
        let answered = request.send().await;
        let took = start.elapsed();
        let mut probe =
            Probe { answer: Ok(()), took, clocks: None, software: None, moved_to: None };
        let answer = match answered {
            Ok(answer) => answer,
            Err(error) => {
                probe.answer = Err(self.unreachable(&error));
                return probe;
            }
        };
        let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
        probe.clocks = date.map(|date| Clocks::compare(date, sent, took));
        let moved = Some(answer.url()).filter(|found_at| **found_at != url);
        probe.moved_to = moved.map(|found_at| {
            let base = found_at.as_str().strip_suffix(&format!("{}/{PATH}", &wire::SHAMAN[1..]));
            hide_tokens(base.unwrap_or(found_at.as_str())).into_owned()
        });
        if !answer.status().is_success() {
            probe.answer = Err(self.error(answer, &url).await);
            return probe;
        }
        probe.answer = match self.text_of(answer).await {
            Some(text) => self.check(&text),
            None => Err(self.no_shaman("its answer breaks off, or does not end".into())),
        };
        if probe.answer.is_ok() {
            probe.software = self.software().await;
        }
        probe
    }

    fn no_shaman(&self, reason: String) -> ClientError {
        ClientError::NotShaman { url: self.shown_url(), reason }
    }

    /// Whether this answers a question about the empty file.
    fn check(&self, text: &[u8]) -> Result<(), ClientError> {
        let answer: RequirementsAnswer = serde_json::from_slice(text).map_err(|error| {
            self.no_shaman(format!("it answers something else to what clients ask: {error}"))
        })?;
        match answer.files.iter().find(|file| file.sha != NOTHING) {
            Some(_) => Err(self.no_shaman("it wants files that nobody has offered".into())),
            None => Ok(()),
        }
    }

    /// What the server calls itself. Not all do, and a plain Shaman server need not.
    async fn software(&self) -> Option<String> {
        let base = &self.base;
        let version = Url::parse(&format!("{base}api/v3/version")).ok()?;
        if let Some(text) = self.read(version).await
            && let Ok(version) = serde_json::from_slice::<Version>(&text)
            && let Some(shown) = version.shown()
        {
            return Some(shown);
        }
        let document = Url::parse(&format!("{base}api/v3/openapi3.json")).ok()?;
        let text = self.read(document).await?;
        serde_json::from_slice::<OpenApi>(&text).ok()?.info.shown()
    }

    async fn read(&self, url: Url) -> Option<Vec<u8>> {
        let request = self.request(Method::GET, url).timeout(self.options.stall_timeout);
        let answer = request.send().await.ok()?;
        if answer.status().is_success() { self.text_of(answer).await } else { None }
    }

    /// The body; nothing, if it is too long or breaks off.
    async fn text_of(&self, mut answer: Response) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        while let Some(chunk) = answer.chunk().await.ok()? {
            text.extend_from_slice(&chunk);
            if text.len() > MAX_DESCRIPTION_BYTES {
                return None;
            }
        }
        Some(text)
    }

    /// How what is sent to the server can be read by others on the way.
    pub fn exposure(&self) -> Exposure {
        Exposure {
            is_encrypted: self.home.scheme() == "https",
            is_local: is_loopback(&self.home),
            has_token: self.options.token.is_some()
                || hide_tokens(self.home.as_str()) != self.home.as_str(),
        }
    }
}

/// What others can see of what is sent to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exposure {
    /// By https.
    pub is_encrypted: bool,
    /// The server is this machine.
    pub is_local: bool,
    /// A token is shown to the server, in a header or in its address.
    pub has_token: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Options;

    fn at(ms: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(ms)
    }

    /// Whenever on the way the server looked at its clock, what is said of the clocks holds.
    #[test]
    fn the_true_difference_is_within_what_is_said() {
        for ahead in [-3_600_000i64, -61_000, -400, 0, 1, 999, 61_000, 3_600_000] {
            for (took, looked) in [(0, 0), (40, 0), (40, 40), (9_000, 0), (9_000, 9_000)] {
                for begin in [1_000_000_000_000u64, 1_000_000_000_999] {
                    let true_server_ms = (begin + looked).cast_signed() - ahead;
                    let date = at((true_server_ms / 1000 * 1000).cast_unsigned());
                    let clocks = Clocks::compare(date, at(begin), Duration::from_millis(took));
                    let wrong = (clocks.ahead_ms - ahead).abs();
                    assert!(wrong <= clocks.unsure_ms, "{ahead} {took} {looked}: {clocks:?}");
                    assert_eq!(clocks.unsure_ms, took.cast_signed() / 2 + 500);
                }
            }
        }
    }

    #[test]
    fn nothing_has_this_digest() {
        use sha2::Digest as _;
        let digest = sha2::Sha256::digest(b"");
        assert_eq!(const_hex::encode(digest), NOTHING);
    }

    #[test]
    fn versions_are_told_in_several_ways() {
        let shown = |text: &str| serde_json::from_str::<Version>(text).unwrap().shown();
        for (text, expected) in [
            (r#"{"version":"3.9-x","name":"Farm","shortversion":"3.9","git":"y"}"#, "Farm 3.9"),
            (r#"{"title":"farmhand","version":"0.1.0"}"#, "farmhand 0.1.0"),
            (r#"{"version":"7"}"#, "7"),
        ] {
            assert_eq!(shown(text).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(shown("{}"), None);
        assert_eq!(shown(&format!("{{\"name\":\"{}\"}}", "x".repeat(1000))).unwrap().len(), 80);
    }

    #[test]
    fn a_token_is_seen_in_the_options_and_in_the_address() {
        let exposure = |url: &str, token: Option<&str>| {
            let token = token.map(|text| text.parse().unwrap());
            let options = Options { token, ..Options::default() };
            let Exposure { is_encrypted, is_local, has_token } =
                Shaman::new(url, options).unwrap().exposure();
            (is_encrypted, is_local, has_token)
        };
        assert_eq!(exposure("http://farm:1/", None), (false, false, false));
        assert_eq!(exposure("http://farm:1/", Some("x")), (false, false, true));
        assert_eq!(exposure("http://farm:1/t/fh_x/", None), (false, false, true));
        assert_eq!(exposure("https://farm/", Some("x")), (true, false, true));
        assert_eq!(exposure("http://[::1]:1/", Some("x")), (false, true, true));
    }
}
