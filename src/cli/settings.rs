//! Settings: flags win over the environment, that over the file, that over the defaults. Every
//! value knows where it comes from.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use bytesize::ByteSize;
use etcetera::BaseStrategy;
use jiff::{SignedDuration, Span, SpanRelativeTo};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use toml::{Table, Value};

use super::{
    environment::require_known,
    exit::{Exit, Failure},
};
use crate::{
    agent, client,
    domain::report::LinkMode,
    jobs::{JobStatus, Platform},
    scan, server,
    store::{self, Reserve},
    wire::{TOKEN_PREFIX, hide_tokens},
};

/// All settings, by section. The names are those of the configuration file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Values {
    /// The Shaman server that clients use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The directory of the embedded store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<PathBuf>,
    /// What clients show the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// The file with that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Root certificates for the server, besides those of the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// What else clients show the server: `Name: value`.
    pub headers: Vec<Secret>,
    pub log_format: LogFormat,
    pub progress: When,
    pub store: StoreValues,
    pub serve: Serve,
    pub jobs: Jobs,
    pub scan: Scan,
    pub upload: Upload,
    pub watch: Watch,
    pub submit: Submit,
}

/// How jobs are submitted.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Submit {
    pub job_type: String,
    pub bat: String,
}

impl Default for Submit {
    fn default() -> Self {
        Self { job_type: "simple-blender-render".into(), bat: "bat".into() }
    }
}

/// A text that is never shown.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// What is shown instead of a secret.
pub(super) const HIDDEN: &str = "(set)";

/// What the embedded store promises.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct StoreValues {
    pub durability: store::Durability,
    pub reserve: Room,
    pub link_mode: LinkMode,
    pub index_chunks: bool,
    pub max_age: Time,
    pub gc_every: Every,
    pub scrub_every: Every,
    pub scrub_rate: ByteSize,
}

impl Default for StoreValues {
    fn default() -> Self {
        let options = store::Options::default();
        let upkeep = server::Upkeep::default();
        Self {
            durability: options.durability,
            reserve: Room(options.reserve),
            link_mode: options.link_mode,
            index_chunks: options.index_chunks,
            max_age: Time(upkeep.max_age),
            gc_every: Every(upkeep.gc_every),
            scrub_every: Every(upkeep.scrub_every),
            scrub_rate: ByteSize::b(upkeep.scrub_rate),
        }
    }
}

/// An amount of disk space, written `10GiB` or `5%`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Room(pub Reserve);

impl Serialize for Room {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Reserve::Bytes(bytes) => serializer.collect_str(&ByteSize::b(bytes)),
            Reserve::Percent(percent) => serializer.collect_str(&format_args!("{percent}%")),
        }
    }
}

impl<'de> Deserialize<'de> for Room {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let room = match text.strip_suffix('%') {
            Some(number) => number
                .trim()
                .parse()
                .ok()
                .filter(|percent| (0.0..=100.0).contains(percent))
                .map(Reserve::Percent),
            None => text.parse::<ByteSize>().ok().map(|size| Reserve::Bytes(size.as_u64())),
        };
        room.map(Self).ok_or_else(|| {
            de::Error::custom(format!("{text:?} is no amount of space: write 10GiB or 5%"))
        })
    }
}

/// How `farmhand serve`, and the embedded store, answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Serve {
    pub listen: Vec<String>,
    pub anonymous: server::Anonymous,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// The Manager that gets what is not for us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manager: Option<String>,
    pub manager_timeout: Time,
    pub checkout_paths: server::CheckoutPaths,
    pub defer: server::Defer,
    pub hold: Time,
    pub create_wait: Time,
    pub head_timeout: Time,
    pub idle_timeout: Time,
    pub body_timeout: Time,
    pub grace: Time,
    pub max_connections: u32,
    pub max_uploads: u32,
    pub max_json: ByteSize,
    pub max_files: u32,
}

impl Default for Serve {
    fn default() -> Self {
        let options = server::Options::default();
        Self {
            listen: DEFAULT_LISTEN.map(str::to_owned).into(),
            anonymous: server::Anonymous::default(),
            tokens: None,
            tls_cert: None,
            tls_key: None,
            manager: None,
            manager_timeout: Time(server::GatewayOptions::default().answer_timeout),
            checkout_paths: server::CheckoutPaths::default(),
            defer: options.defer,
            hold: Time(options.hold),
            create_wait: Time(options.create_wait),
            head_timeout: Time(options.head_timeout),
            idle_timeout: Time(options.idle_timeout),
            body_timeout: Time(options.body_timeout),
            grace: Time(options.grace),
            max_connections: saturating_u32(options.max_connections),
            max_uploads: saturating_u32(options.max_uploads),
            max_json: ByteSize::b(options.max_json_bytes),
            max_files: saturating_u32(options.max_files),
        }
    }
}

/// How jobs are served where there is no Manager.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Jobs {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub types: Option<PathBuf>,
    pub hook: Vec<String>,
    pub hook_timeout: Time,
    pub hook_parallel: u32,
    pub after_hook: AfterHook,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location_linux: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location_windows: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location_darwin: Option<String>,
    pub variables: Vec<server::Variable>,
}

impl Default for Jobs {
    fn default() -> Self {
        Self {
            types: None,
            hook: Vec::new(),
            hook_timeout: Time(Duration::from_secs(86_400)),
            hook_parallel: 1,
            after_hook: AfterHook::Completed,
            location_linux: None,
            location_windows: None,
            location_darwin: None,
            variables: Vec::new(),
        }
    }
}

/// What a job is when its command has succeeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum AfterHook {
    /// Done.
    Completed,
    /// In the hands of somebody who says later how it ended.
    Active,
}

/// The add-on's default URL is `http://localhost:8080/`, and `localhost` may be either of these.
pub(super) const DEFAULT_LISTEN: [&str; 2] = ["127.0.0.1:8080", "[::1]:8080"];

/// How folders are read.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Scan {
    pub default_ignores: bool,
    pub cache: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<PathBuf>,
    pub warm_addon_cache: bool,
    pub strict: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addon_cache_dir: Option<PathBuf>,
    pub readers: Readers,
}

impl Default for Scan {
    fn default() -> Self {
        let options = scan::Options::default();
        Self {
            default_ignores: options.default_ignores,
            cache: true,
            cache_dir: None,
            warm_addon_cache: false,
            strict: false,
            addon_cache_dir: None,
            readers: Readers(options.readers.map(saturating_u32)),
        }
    }
}

/// How files are sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Upload {
    pub parallel: u32,
    pub limit: Limit,
    pub retries: u32,
    pub defer: Time,
    pub delta: agent::Delta,
    pub extension: bool,
}

/// Bytes a second, and when: a text, or several.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Limit(pub agent::Timetable);

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a text like \"20MiB/s\", or a list of them")]
        enum Value {
            One(String),
            Several(Vec<String>),
        }
        let limits = match Value::deserialize(deserializer)? {
            Value::One(text) => text.parse(),
            Value::Several(texts) => {
                let limits: Result<_, _> = texts.iter().map(|text| text.parse()).collect();
                limits.map(agent::Timetable::new)
            }
        };
        limits.map(Self).map_err(de::Error::custom)
    }
}

impl Default for Upload {
    fn default() -> Self {
        let options = agent::Options::default();
        Self {
            parallel: saturating_u32(options.uploads),
            limit: Limit::default(),
            retries: options.retries,
            defer: Time(options.defer),
            delta: options.delta,
            extension: options.extension,
        }
    }
}

/// How `farmhand watch` watches, and what.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Watch {
    pub quiet: Time,
    pub max_delay: Time,
    pub rescan_every: Time,
    pub poll_every: Time,
    pub mode: WatchHow,
    pub ask: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_dir: Option<PathBuf>,
    pub folders: Vec<WatchFolder>,
}

impl Default for Watch {
    fn default() -> Self {
        let rhythm = agent::Rhythm::default();
        Self {
            quiet: Time(rhythm.quiet),
            max_delay: Time(rhythm.max_delay),
            rescan_every: Time(rhythm.rescan_every),
            poll_every: Time(rhythm.poll_every),
            mode: WatchHow::Auto,
            ask: true,
            run_dir: None,
            folders: Vec::new(),
        }
    }
}

/// How changes are heard of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum WatchHow {
    /// From the system, where it tells of all changes; else by polling
    #[default]
    Auto,
    /// By looking at everything every so often
    Poll,
}

impl WatchHow {
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Poll => "poll",
        }
    }
}

/// A folder, and what is particular to it; a text is its path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "FolderText")]
pub(super) struct WatchFolder {
    pub path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
    pub priority: i32,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum FolderText {
    Path(PathBuf),
    Table(FolderTable),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FolderTable {
    path: PathBuf,
    server: Option<String>,
    #[serde(default)]
    ignore: Vec<String>,
    #[serde(default)]
    priority: i32,
}

impl From<FolderText> for WatchFolder {
    fn from(text: FolderText) -> Self {
        match text {
            FolderText::Path(path) => Self { path, server: None, ignore: Vec::new(), priority: 0 },
            FolderText::Table(FolderTable { path, server, ignore, priority }) => {
                Self { path, server, ignore, priority }
            }
        }
    }
}

fn saturating_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// How logs are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One object per line
    Json,
}

impl LogFormat {
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// When progress is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum When {
    /// Only on a terminal
    #[default]
    Auto,
    /// As lines where there is no terminal
    Always,
    /// Not at all
    Never,
}

impl When {
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

/// A span of time, written `30s`, `1m 30s`, `2h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Time(pub Duration);

/// Reads `30s`, `1m 30s`, `2h`, `31d`; a day has 24 hours.
pub(super) fn parse_time(text: &str) -> Result<Duration, String> {
    let span: Option<Span> = text.parse().ok();
    let span = span.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok());
    let Some(span) = span else {
        return Err(format!("{text:?} is no time: write 30s, 1m 30s, 2h or 31d"));
    };
    let positive = Duration::try_from(span).ok().filter(|time| !time.is_zero());
    positive.ok_or_else(|| format!("{text:?} is not more than nothing"))
}

fn serialize_time<S: Serializer>(time: Duration, serializer: S) -> Result<S::Ok, S::Error> {
    const DAY: u64 = 86_400;
    if time.subsec_nanos() == 0 && time.as_secs() >= DAY && time.as_secs().is_multiple_of(DAY) {
        return serializer.collect_str(&format_args!("{}d", time.as_secs() / DAY));
    }
    let span = SignedDuration::try_from(time).map_err(serde::ser::Error::custom)?;
    serializer.collect_str(&format_args!("{span:#}"))
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_time(self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse_time(&String::deserialize(deserializer)?).map(Self).map_err(de::Error::custom)
    }
}

/// How many threads read files; `None`: as many as turn out to be best.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Readers(pub Option<u32>);

impl FromStr for Readers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "auto" => Ok(Self(None)),
            Ok(number @ 1..=1024) => Ok(Self(Some(number))),
            _ => Err(format!("{text:?} is no number of readers: auto, or 1 to 1024")),
        }
    }
}

impl fmt::Display for Readers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("auto"),
            Some(number) => number.fmt(f),
        }
    }
}

impl Serialize for Readers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Readers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Value {
            Number(u32),
            Text(String),
        }
        let text = match Value::deserialize(deserializer)? {
            Value::Number(number) => number.to_string(),
            Value::Text(text) => text,
        };
        text.parse().map_err(de::Error::custom)
    }
}

/// How often something is done: a span of time, or `never`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Every(pub Option<Duration>);

impl Serialize for Every {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(time) => serialize_time(time, serializer),
            None => serializer.serialize_str("never"),
        }
    }
}

impl<'de> Deserialize<'de> for Every {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "never" {
            return Ok(Self(None));
        }
        parse_time(&text)
            .map(|time| Self(Some(time)))
            .map_err(|error| de::Error::custom(format!("{error}, or never")))
    }
}

/// Where a value comes from. Ordered by who wins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Default,
    File,
    Env(String),
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File => f.write_str("file"),
            Self::Env(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// All keys, as `section.name`, in the order in which they are shown; those that have no default
/// cannot be found in [`Values::default`].
const KEYS: &[&str] = &[
    "server",
    "storage",
    "token",
    "token_file",
    "ca",
    "headers",
    "log_format",
    "progress",
    "store.durability",
    "store.reserve",
    "store.link_mode",
    "store.index_chunks",
    "store.max_age",
    "store.gc_every",
    "store.scrub_every",
    "store.scrub_rate",
    "serve.listen",
    "serve.anonymous",
    "serve.tokens",
    "serve.tls_cert",
    "serve.tls_key",
    "serve.manager",
    "serve.manager_timeout",
    "serve.checkout_paths",
    "serve.defer",
    "serve.hold",
    "serve.create_wait",
    "serve.head_timeout",
    "serve.idle_timeout",
    "serve.body_timeout",
    "serve.grace",
    "serve.max_connections",
    "serve.max_uploads",
    "serve.max_json",
    "serve.max_files",
    "jobs.types",
    "jobs.hook",
    "jobs.hook_timeout",
    "jobs.hook_parallel",
    "jobs.after_hook",
    "jobs.location_linux",
    "jobs.location_windows",
    "jobs.location_darwin",
    "jobs.variables",
    "scan.default_ignores",
    "scan.cache",
    "scan.cache_dir",
    "scan.warm_addon_cache",
    "scan.addon_cache_dir",
    "scan.strict",
    "scan.readers",
    "upload.parallel",
    "upload.limit",
    "upload.retries",
    "upload.defer",
    "upload.delta",
    "upload.extension",
    "watch.quiet",
    "watch.max_delay",
    "watch.rescan_every",
    "watch.poll_every",
    "watch.mode",
    "watch.ask",
    "watch.run_dir",
    "watch.folders",
    "submit.job_type",
    "submit.bat",
];

/// The key of the store's directory.
const PATH_STORAGE: &str = "storage";

/// Those that are paths: in a file, relative to it.
const PATH_KEYS: &[&str] = &[
    PATH_STORAGE,
    "token_file",
    "ca",
    "serve.tokens",
    "serve.tls_cert",
    "serve.tls_key",
    "jobs.types",
    "scan.cache_dir",
    "scan.addon_cache_dir",
    "watch.run_dir",
];

/// Settings given as flags.
#[derive(Debug, Default)]
pub(super) struct Overrides(
    Vec<(&'static str, &'static str, String)>,
    /// A flag with a path that no setting can hold.
    Option<(&'static str, PathBuf)>,
);

impl Overrides {
    /// Sets a key to what a flag says, if it was given.
    pub fn set(&mut self, key: &'static str, flag: &'static str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.0.push((key, flag, value.to_string()));
        }
    }

    /// Sets the headers, if there are any.
    pub fn set_headers(&mut self, headers: &[String]) {
        self.set("headers", "--header", (!headers.is_empty()).then(|| headers.join("\n")));
    }

    /// Sets a path.
    pub fn set_path(&mut self, key: &'static str, flag: &'static str, value: Option<&PathBuf>) {
        if let Some(path) = value {
            match path.to_str() {
                Some(text) => self.set(key, flag, Some(text)),
                None => self.1 = Some((flag, path.clone())),
            }
        }
    }
}

/// The settings, and where they come from.
#[derive(Debug)]
pub(super) struct Settings {
    pub values: Values,
    table: Table,
    sources: BTreeMap<&'static str, Source>,
    /// The file that was read.
    pub file: Option<PathBuf>,
}

impl Settings {
    /// Puts the settings together. `file` must exist if it is given; the default one need not.
    pub fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Self, Failure> {
        if let Some((flag, path)) = &overrides.1 {
            return Err(usage(format!(
                "{flag} {}: the path is not UTF-8; choose another",
                path.display()
            )));
        }
        let names: Vec<_> = KEYS.iter().map(|key| env_name(key)).collect();
        require_known(std::env::vars_os().map(|(name, _)| name), &names)?;
        let defaults = Table::try_from(Values::default())
            .map_err(|error| Failure::new(Exit::Failed, format!("BUG: no defaults: {error}")))?;
        let mut settings = Self {
            values: Values::default(),
            table: defaults.clone(),
            sources: BTreeMap::new(),
            file: None,
        };
        settings.load_file(file)?;
        for &key in KEYS {
            let name = env_name(key);
            match std::env::var(&name) {
                Ok(text) if text.is_empty() => {}
                Ok(text) => settings.set(&defaults, key, &text, Source::Env(name))?,
                Err(std::env::VarError::NotPresent) => {}
                Err(std::env::VarError::NotUnicode(_)) => {
                    return Err(usage(format!("{name}: the value is not UTF-8")));
                }
            }
        }
        for (key, flag, text) in &overrides.0 {
            settings.set(&defaults, key, text, Source::Flag(flag))?;
        }
        settings.values = Values::deserialize(settings.table.clone()).map_err(|error| {
            usage(format!("the configuration is not valid: {}", error.message()))
        })?;
        Ok(settings)
    }

    fn load_file(&mut self, given: Option<&Path>) -> Result<(), Failure> {
        let from_env = std::env::var_os("FARMHAND_CONFIG").filter(|path| !path.is_empty());
        let from_env = from_env.map(PathBuf::from);
        let named = given.map(Path::to_owned).or(from_env);
        let must_exist = named.is_some();
        let Some(path) = named.or_else(default_file) else { return Ok(()) };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => {
                return Ok(());
            }
            Err(error) => {
                return Err(usage(format!(
                    "cannot read the configuration {}: {error}",
                    path.display()
                )));
            }
        };
        let broken = |error: toml::de::Error| {
            let what = match error.span() {
                Some(span) if is_secret_line(&text, span.start) => {
                    let line = 1 + text[..span.start].matches('\n').count();
                    format!(
                        "line {line}: the token must be a text in quotes, and a key of its own; headers are \
                         a list of such texts"
                    )
                }
                _ => error.to_string().trim_end().to_owned(),
            };
            usage(format!("the configuration {} is not valid: {what}", path.display()))
        };
        // Once as a whole, for errors that point at the line.
        toml::from_str::<Values>(&text).map_err(broken)?;
        let table: Table = toml::from_str(&text).map_err(broken)?;
        for &key in KEYS {
            let Some(value) = get(&table, key) else { continue };
            if let (PATH_STORAGE, Some(text)) = (key, value.as_str()) {
                require_directory(text).map_err(|reason| {
                    usage(format!(
                        "the configuration {}: storage = \"{}\": {reason}",
                        path.display(),
                        hide_tokens(text)
                    ))
                })?;
            }
            let value = match value {
                Value::String(text) if PATH_KEYS.contains(&key) => {
                    let dir = path.parent().unwrap_or(Path::new(""));
                    Value::String(dir.join(text).to_string_lossy().into_owned())
                }
                Value::Array(folders) if key == "watch.folders" => {
                    let dir = path.parent().unwrap_or(Path::new(""));
                    Value::Array(folders.iter().map(|folder| beside(folder, dir)).collect())
                }
                value => value.clone(),
            };
            put(&mut self.table, key, value);
            self.sources.insert(key, Source::File);
        }
        self.file = Some(path);
        Ok(())
    }

    /// Takes a value from text; its type is that of the default.
    fn set(
        &mut self,
        defaults: &Table,
        key: &'static str,
        text: &str,
        source: Source,
    ) -> Result<(), Failure> {
        let bad = |reason: String| {
            let text = hide_tokens(text);
            usage(match &source {
                // No secret is shown: any text will do for those, so there is nothing bad about it.
                Source::Env(name) => format!("{name}={text}: {reason}"),
                source => format!("{source} {text}: {reason}"),
            })
        };
        let value = match get(defaults, key) {
            Some(Value::Boolean(_)) => match text {
                "true" | "1" | "yes" => Value::Boolean(true),
                "false" | "0" | "no" => Value::Boolean(false),
                _ => return Err(bad("write true or false".into())),
            },
            Some(Value::Integer(_)) => {
                Value::Integer(text.parse().map_err(|_| bad("not a whole number".into()))?)
            }
            // They may have commas in them.
            _ if key == "headers" => {
                Value::Array(text.lines().map(|line| Value::String(line.to_owned())).collect())
            }
            _ if key == PATH_STORAGE => {
                require_directory(text).map_err(bad)?;
                Value::String(text.to_owned())
            }
            Some(Value::Array(_)) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Value::Array(items.map(|item| Value::String(item.to_owned())).collect())
            }
            _ => Value::String(text.to_owned()),
        };
        let mut alone = Table::new();
        put(&mut alone, key, value.clone());
        Values::deserialize(alone).map_err(|error| bad(error.message().to_owned()))?;
        put(&mut self.table, key, value);
        self.sources.insert(key, source);
        Ok(())
    }

    pub fn source(&self, key: &str) -> &Source {
        self.sources.get(key).unwrap_or(&Source::Default)
    }

    /// All keys with their values, as they are written in a file, and sources. Secrets are not
    /// among the values.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, Option<Value>, &Source)> {
        KEYS.iter().map(|&key| {
            let value = get(&self.table, key).map(|value| match (key, value) {
                ("token", _) => Value::String(HIDDEN.into()),
                ("headers", Value::Array(headers)) if !headers.is_empty() => {
                    Value::String(HIDDEN.into())
                }
                ("server" | "serve.manager", Value::String(url)) => {
                    Value::String(hide_tokens(url).into_owned())
                }
                (_, value) => value.clone(),
            });
            (key, value, self.source(key))
        })
    }

    /// Of two settings that exclude each other, the one that is given closer to the command
    /// counts; in the same place, the first.
    fn first_counts(&self, first: &str, second: &str) -> bool {
        let rank = |key: &str| match self.source(key) {
            Source::Default => 0,
            Source::File => 1,
            Source::Env(_) => 2,
            Source::Flag(_) => 3,
        };
        rank(first) >= rank(second)
    }

    /// The server to use; `None`: the embedded store. Of `server` and `storage`, the one that is
    /// given closer to the command counts; in the same place, the server.
    pub fn server(&self) -> Option<&str> {
        let server = self.values.server.as_deref()?;
        self.first_counts("server", "storage").then_some(server)
    }

    /// How to talk to servers: with which token, and which certificates.
    pub fn client_options(&self) -> Result<client::Options, Failure> {
        let token = match (&self.values.token, &self.values.token_file) {
            (Some(token), _) if self.first_counts("token", "token_file") => Some(
                token.0.parse().map_err(|error| usage(format!("the setting token: {error}")))?,
            ),
            (_, Some(path)) => {
                let file = format!("the file of token_file, {}", path.display());
                let text = fs::read_to_string(path)
                    .map_err(|error| usage(format!("cannot read {file}: {error}")))?;
                let first = text.lines().next().unwrap_or_default().trim();
                Some(first.parse().map_err(|error| usage(format!("{file}: {error}")))?)
            }
            _ => None,
        };
        let roots = match &self.values.ca {
            Some(path) => {
                let pem = fs::read(path).map_err(|error| {
                    usage(format!("cannot read the certificates in {}: {error}", path.display()))
                })?;
                client::Roots::from_pem(&pem)
                    .map_err(|error| usage(format!("{}: {error}", path.display())))?
            }
            None => client::Roots::default(),
        };
        let headers = self.headers()?;
        if token.is_some() && headers.authorize() {
            return Err(usage(
                "there is a token, and a header Authorization, which is where tokens go; give one of them"
                    .into(),
            ));
        }
        let retries = self.values.upload.retries as usize;
        Ok(client::Options { retries, token, headers, roots, ..client::Options::default() })
    }

    fn headers(&self) -> Result<client::Headers, Failure> {
        let mut headers = client::Headers::default();
        for (index, text) in self.values.headers.iter().enumerate() {
            headers.add(&text.0).map_err(|error| {
                usage(format!("number {} of the setting headers (--header): {error}", index + 1))
            })?;
        }
        Ok(headers)
    }

    /// The Manager behind `farmhand serve`, and the way to it.
    pub fn gateway(&self) -> Result<Option<Arc<server::Gateway>>, Failure> {
        let Some(url) = &self.values.serve.manager else { return Ok(None) };
        let mut options = server::GatewayOptions {
            answer_timeout: self.values.serve.manager_timeout.0,
            checkout_paths: self.values.serve.checkout_paths,
            ..server::GatewayOptions::default()
        };
        let headers = self.headers()?;
        options.headers =
            headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        if let Some(path) = &self.values.ca {
            let pem = fs::read(path).map_err(|error| {
                usage(format!("cannot read the certificates in {}: {error}", path.display()))
            })?;
            if !options.trust(&pem) {
                return Err(usage(format!("{}: {}", path.display(), client::BadRoots)));
            }
        }
        let gateway = server::Gateway::new(url, options)
            .map_err(|error| usage(format!("the setting serve.manager: {error}")))?;
        Ok(Some(Arc::new(gateway)))
    }

    /// The directory of the store.
    ///
    /// There is no default: files would end up in a place that was never chosen.
    pub fn storage(&self) -> Result<&Path, Failure> {
        self.values.storage.as_deref().ok_or_else(|| {
            usage(
                "no directory for the store; give it with --storage DIR, FARMHAND_STORAGE, or the setting \
                 storage"
                    .into(),
            )
        })
    }

    /// Refuses to guess where data goes.
    pub fn require_target(&self) -> Result<(), Failure> {
        if self.server().is_some() || self.values.storage.is_some() {
            return Ok(());
        }
        Err(usage(
            "neither a server nor a store is given; name a server with --server URL (FARMHAND_SERVER, or the \
             setting server), or the directory of a store with --storage DIR (FARMHAND_STORAGE, or the setting \
             storage)"
                .into(),
        ))
    }

    pub fn server_options(&self) -> server::Options {
        let serve = &self.values.serve;
        server::Options {
            // Who runs the server says who may do what.
            access: Arc::default(),
            tls: None,
            manager: None,
            defer: serve.defer,
            hold: serve.hold.0,
            create_wait: serve.create_wait.0,
            head_timeout: serve.head_timeout.0,
            idle_timeout: serve.idle_timeout.0,
            body_timeout: serve.body_timeout.0,
            grace: serve.grace.0,
            max_connections: (serve.max_connections as usize).max(1),
            max_uploads: (serve.max_uploads as usize).max(1),
            max_json_bytes: serve.max_json.as_u64(),
            max_files: serve.max_files as usize,
            upkeep: self.upkeep(),
            farm: None,
        }
    }

    pub fn farm_options(&self) -> Result<server::FarmOptions, Failure> {
        let jobs = &self.values.jobs;
        let locations = [
            (Platform::Linux, &jobs.location_linux),
            (Platform::Windows, &jobs.location_windows),
            (Platform::Darwin, &jobs.location_darwin),
        ];
        let locations = locations
            .into_iter()
            .filter_map(|(platform, location)| Some((platform.name(), location.clone()?)));
        if jobs.hook.first().is_some_and(String::is_empty) {
            return Err(usage(
                "the setting jobs.hook begins with an empty text; name a program".into(),
            ));
        }
        let hook = server::Hook {
            command: jobs.hook.clone(),
            timeout: jobs.hook_timeout.0,
            parallel: (jobs.hook_parallel as usize).max(1),
            then: match jobs.after_hook {
                AfterHook::Completed => JobStatus::Completed,
                AfterHook::Active => JobStatus::Active,
            },
        };
        Ok(server::FarmOptions {
            types: jobs.types.clone(),
            locations: locations.collect(),
            variables: jobs.variables.clone(),
            hook: (!jobs.hook.is_empty()).then_some(hook),
        })
    }

    pub fn store_options(&self) -> store::Options {
        let store = &self.values.store;
        store::Options {
            durability: store.durability,
            reserve: store.reserve.0,
            link_mode: store.link_mode,
            index_chunks: store.index_chunks,
            in_memory: None,
        }
    }

    pub fn upkeep(&self) -> server::Upkeep {
        let store = &self.values.store;
        server::Upkeep {
            max_age: store.max_age.0,
            gc_every: store.gc_every.0,
            scrub_every: store.scrub_every.0,
            scrub_rate: store.scrub_rate.as_u64().max(1),
            ..server::Upkeep::default()
        }
    }

    pub fn scan_options(&self) -> scan::Options {
        let scan = &self.values.scan;
        let default_dir = || {
            let dirs = etcetera::base_strategy::choose_native_strategy().ok()?;
            Some(dirs.cache_dir().join("farmhand"))
        };
        scan::Options {
            default_ignores: scan.default_ignores,
            ignores: Vec::new(),
            readers: scan.readers.0.map(|number| number as usize),
            addon_cache: scan
                .warm_addon_cache
                .then(|| {
                    let default_dir = || Some(etcetera::home_dir().ok()?.join(".cache"));
                    scan.addon_cache_dir.clone().or_else(default_dir)
                })
                .flatten(),
            cache: if scan.cache { scan.cache_dir.clone().or_else(default_dir) } else { None },
        }
    }

    /// How the agent watches.
    pub fn rhythm(&self) -> agent::Rhythm {
        let watch = &self.values.watch;
        agent::Rhythm {
            quiet: watch.quiet.0,
            max_delay: watch.max_delay.0.max(watch.quiet.0),
            rescan_every: watch.rescan_every.0,
            poll_every: watch.poll_every.0,
        }
    }

    /// Where agents leave word of themselves.
    pub fn run_dir(&self) -> Option<PathBuf> {
        self.values.watch.run_dir.clone().or_else(|| {
            let dirs = etcetera::base_strategy::choose_native_strategy().ok()?;
            // On a network disk, others would find agents that are not on their machine.
            let dir = dirs.runtime_dir().unwrap_or_else(|| dirs.cache_dir());
            Some(dir.join("farmhand").join("agents"))
        })
    }

    /// How a folder is scanned: as the configuration says of it.
    pub fn scan_options_for(&self, dir: &Path) -> scan::Options {
        let root = agent::real(dir);
        let folder = self.values.watch.folders.iter();
        let folder = folder.into_iter().find(|folder| agent::real(&folder.path) == root);
        let ignores = folder.map(|folder| folder.ignore.clone()).unwrap_or_default();
        scan::Options { ignores, ..self.scan_options() }
    }

    pub fn sync_options(&self) -> agent::Options {
        let upload = &self.values.upload;
        agent::Options {
            uploads: (upload.parallel as usize).max(1),
            retries: upload.retries,
            defer: upload.defer.0,
            delta: upload.delta,
            extension: upload.extension,
            strict: self.values.scan.strict,
            line: Arc::new(agent::Line::new(upload.limit.0.clone())),
        }
    }
}

fn usage(message: String) -> Failure {
    Failure::new(Exit::Usage, message)
}

/// Refuses what looks like a URL in the place of a directory.
fn require_directory(text: &str) -> Result<(), String> {
    let Some((scheme, _)) = text.split_once("://") else { return Ok(()) };
    let is_scheme = scheme.len() > 1
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    if !is_scheme {
        return Ok(());
    }
    let next = match scheme.to_ascii_lowercase().as_str() {
        "http" | "https" => "give the address of a server as --server, or in the setting server",
        "file" => "write the path alone",
        _ => {
            "mount that storage and give its directory, or serve a store next to it and give --server"
        }
    };
    Err(format!("this is a URL, and a store is a directory of this machine; {next}"))
}

/// Whether this is the line of a token: an error must not show it.
fn is_secret_line(text: &str, at: usize) -> bool {
    let start = text[..at].rfind('\n').map_or(0, |end| end + 1);
    let line = text[start..].lines().next().unwrap_or_default();
    line.contains("token")
        || line.contains("header")
        || line.contains(TOKEN_PREFIX)
        || *hide_tokens(line) != *line
}

/// Where the configuration is if nobody says otherwise.
pub(super) fn default_file() -> Option<PathBuf> {
    let dirs = etcetera::base_strategy::choose_native_strategy().ok()?;
    Some(dirs.config_dir().join("farmhand").join("config.toml"))
}

/// `serve.listen` → `FARMHAND_SERVE_LISTEN`.
fn env_name(key: &str) -> String {
    format!("FARMHAND_{}", key.replace('.', "_").to_uppercase())
}

/// A folder of a file in this directory.
fn beside(folder: &Value, dir: &Path) -> Value {
    let join = |path: &str| Value::String(dir.join(path).to_string_lossy().into_owned());
    match folder {
        Value::String(path) => join(path),
        Value::Table(table) => {
            let mut table = table.clone();
            if let Some(Value::String(path)) = table.get("path") {
                let path = join(path);
                table.insert("path".into(), path);
            }
            Value::Table(table)
        }
        other => other.clone(),
    }
}

fn get<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((section, name)) => table.get(section)?.as_table()?.get(name),
        None => table.get(key),
    }
}

fn put(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        Some((section, name)) => {
            let section = table.entry(section).or_insert_with(|| Table::new().into());
            if let Value::Table(section) = section {
                section.insert(name.to_owned(), value);
            }
        }
        None => {
            table.insert(key.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_those_of_the_settings() {
        let defaults = Table::try_from(Values::default()).unwrap();
        let mut known: Vec<String> = Vec::new();
        for (name, value) in &defaults {
            match value {
                Value::Table(section) => {
                    known.extend(section.keys().map(|key| format!("{name}.{key}")))
                }
                _ => known.push(name.clone()),
            }
        }
        for key in &known {
            assert!(KEYS.contains(&key.as_str()), "{key} is not listed");
        }
        for key in KEYS.iter().filter(|key| !known.iter().any(|known| known == **key)) {
            let mut alone = Table::new();
            put(&mut alone, key, Value::String("x".into()));
            assert!(Values::deserialize(alone).is_ok(), "{key} is no setting");
        }
    }

    #[test]
    fn defaults_read_back_as_they_were() {
        let text = toml::to_string(&Values::default()).unwrap();
        let read: Values = toml::from_str(&text).unwrap();
        assert_eq!(toml::to_string(&read).unwrap(), text);
        assert_eq!(read.serve.max_json, ByteSize::mib(512));
        assert_eq!(read.store.max_age.0, Duration::from_secs(31 * 86_400));
        assert!(text.contains(r#"max_age = "31d""#), "{text}");
        let never: Every = Value::String("never".into()).try_into().unwrap();
        assert_eq!(toml::Value::try_from(never).unwrap().as_str(), Some("never"));
    }

    #[test]
    fn space_is_written_as_size_or_share() {
        let read = |text: &str| Value::String(text.into()).try_into::<Room>();
        assert_eq!(read("10GiB").unwrap().0, Reserve::Bytes(10 << 30));
        assert_eq!(read("2.5%").unwrap().0, Reserve::Percent(2.5));
        for bad in ["", "much", "-1%", "101%", "NaN%", "-5"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_are_a_text_or_several() {
        let read = |value: Value| value.try_into::<Limit>();
        let texts = ["20MiB/s", "Sat,Sun none"].map(|text| Value::String(text.into()));
        let several = read(Value::Array(texts.into())).unwrap();
        assert_eq!(read("20MiB/s; Sat,Sun none".into()).unwrap(), several);
        assert_eq!(Value::try_from(&several).unwrap().as_str(), Some("20MiB/s; Sat,Sun none"));
        let fast: Value = "fast".into();
        for bad in [fast.clone(), Value::Array(vec![fast]), Value::Integer(20)] {
            let error = read(bad.clone()).unwrap_err().to_string();
            assert!(error.contains("20MiB/s"), "{bad}: {error}");
        }
    }

    #[test]
    fn times_are_written_for_people() {
        for (text, seconds) in [("30s", 30), ("1m 30s", 90), ("2h", 7200), ("31d", 31 * 86_400)] {
            let time: Time = Value::String(text.into()).try_into().unwrap();
            assert_eq!(time.0, Duration::from_secs(seconds));
        }
        for bad in ["30", "soon", "-5s", "0s"] {
            assert!(Value::String(bad.into()).try_into::<Time>().is_err(), "{bad}");
        }
    }
}
