//! What is submitted, and what becomes of it.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::JOBS_VARIABLE;
use crate::domain::CheckoutPath;

/// What a job is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobStatus {
    /// Being made ready.
    UnderConstruction,
    /// Waiting for its turn.
    Queued,
    /// Being worked on.
    Active,
    /// Done.
    Completed,
    /// Not done, and given up.
    Failed,
    /// Stopped by somebody.
    Canceled,
    /// About to be.
    CancelRequested,
    /// Not to begin for now.
    Paused,
    /// About to be.
    PauseRequested,
    /// About to begin anew.
    Requeueing,
}

impl JobStatus {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::UnderConstruction => "under-construction",
            Self::Queued => "queued",
            Self::Active => "active",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::CancelRequested => "cancel-requested",
            Self::Paused => "paused",
            Self::PauseRequested => "pause-requested",
            Self::Requeueing => "requeueing",
        }
    }

    /// Nothing happens to it any more unless somebody asks for it.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled)
    }

    /// What becomes of a job that is asked to be something else, where jobs have one step and no
    /// workers that must be told. `runs`: something of ours works on it.
    ///
    /// # Errors
    /// If that makes no sense.
    pub fn change(self, wish: Self, runs: bool) -> Result<Self, NotNow> {
        let to = match wish {
            Self::CancelRequested => Self::Canceled,
            Self::PauseRequested => Self::Paused,
            Self::Requeueing => Self::Queued,
            other => other,
        };
        let may = match to {
            Self::Canceled => !self.is_end() || self == Self::Canceled,
            Self::Queued => !runs,
            Self::Paused => matches!(self, Self::Queued | Self::Paused),
            Self::Active | Self::Completed | Self::Failed => !runs && !self.is_end() || self == to,
            _ => false,
        };
        if may { Ok(to) } else { Err(NotNow { from: self, to: wish, runs }) }
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A status that a job cannot get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotNow {
    /// What it is.
    pub from: JobStatus,
    /// What was asked for.
    pub to: JobStatus,
    /// Something works on it.
    pub runs: bool,
}

impl fmt::Display for NotNow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a job that is {} cannot become {}", self.from, self.to)?;
        if self.runs { f.write_str(" while its command runs: cancel it first") } else { Ok(()) }
    }
}

impl std::error::Error for NotNow {}

/// What a job was submitted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// Linux.
    Linux,
    /// Windows.
    Windows,
    /// macOS.
    Darwin,
    /// No particular one: that of the Manager.
    Manager,
}

impl Platform {
    /// That of this program.
    pub const HERE: Self = if cfg!(windows) {
        Self::Windows
    } else if cfg!(target_os = "macos") {
        Self::Darwin
    } else {
        Self::Linux
    };

    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Windows => "windows",
            Self::Darwin => "darwin",
            Self::Manager => "manager",
        }
    }
}

/// Where a job's files are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = JobStorageInfo)]
pub struct Storage {
    /// The path of the checkout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shaman_checkout_id: Option<String>,
}

/// A job as it is submitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SubmittedJob {
    /// What people call it.
    pub name: String,
    /// The name of its type.
    #[serde(rename = "type")]
    pub job_type: String,
    /// From 0 to 100; higher goes first.
    pub priority: i64,
    /// What it was submitted on.
    pub submitter_platform: Platform,
    /// What the type asks for.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub settings: Map<String, Value>,
    /// Whatever else is to be known of it.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// The definition of the type that the settings are for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub type_etag: Option<String>,
    /// What it is to be at first; `queued` if this is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_status: Option<JobStatus>,
    /// The workers that may work on it; all if this is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_tag: Option<String>,
    /// Where its files are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
}

/// A job that has been taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// As it was submitted.
    #[serde(flatten)]
    pub submitted: SubmittedJob,
    /// A UUID.
    pub id: String,
    /// When it was taken.
    #[schema(value_type = String)]
    pub created: Timestamp,
    /// When it last changed.
    #[schema(value_type = String)]
    pub updated: Timestamp,
    /// What it is at.
    pub status: JobStatus,
    /// What last happened to it.
    #[serde(default)]
    pub activity: String,
    /// How much of it is done.
    #[serde(default)]
    pub steps_completed: i64,
    /// Of how much.
    #[serde(default)]
    pub steps_total: i64,
}

/// The setting that names the file of a job.
const BLENDFILE: &str = "blendfile";

/// Whether a job may need files of a checkout, or of anything in it or above it: its storage id says so, or a
/// path in its settings. `jobs_dir` is the directory of checkouts, which some jobs name instead of the variable. A
/// .blend elsewhere, behind another variable or by the path of another machine, uses the checkout if its path
/// mentions it: in doubt a checkout stays, which costs room, and the opposite costs files.
pub fn uses_checkout(
    checkout: &CheckoutPath,
    storage_id: Option<&str>,
    settings: &Map<String, Value>,
    jobs_dir: &str,
) -> bool {
    let below = |text: &str| {
        let rest = |dir: &str| text.strip_prefix(dir)?.strip_prefix('/').map(str::to_owned);
        rest(JOBS_VARIABLE).or_else(|| rest(jobs_dir).filter(|_| !jobs_dir.is_empty()))
    };
    let may_mean = |text: &str| match plain_path(&below(text).unwrap_or_else(|| text.to_owned())) {
        Some(path) if !text.starts_with('/') || below(text).is_some() => {
            checkout.overlaps_path(&path) || mentions(&path, checkout)
        }
        _ => mentions(text, checkout),
    };
    let is_used = |name: &str, text: &str| {
        let text = text.replace('\\', "/");
        (name == BLENDFILE || below(&text).is_some()) && may_mean(&text)
    };
    storage_id.is_some_and(|id| may_mean(&id.replace('\\', "/")))
        || settings.iter().any(|(name, value)| any_text(value, &|text| is_used(name, text)))
}

/// A path without empty parts and `.`; `None` if a `..` makes its meaning uncertain.
fn plain_path(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    (!parts.contains(&"..")).then(|| parts.join("/"))
}

/// Whether the parts of a checkout's path follow each other somewhere in a path.
fn mentions(text: &str, checkout: &CheckoutPath) -> bool {
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let wanted: Vec<&str> = checkout.as_rel().parts().collect();
    parts.windows(wanted.len()).any(|window| window == wanted)
}

/// Whether any text in a value has a property.
fn any_text(value: &Value, test: &impl Fn(&str) -> bool) -> bool {
    match value {
        Value::String(text) => test(text),
        Value::Array(items) => items.iter().any(|item| any_text(item, test)),
        Value::Object(fields) => fields.values().any(|field| any_text(field, test)),
        _ => false,
    }
}

/// The part of `{jobs}/checkout/path/of/the.blend` after `{jobs}/`.
pub fn checkout_of(settings: &Map<String, Value>) -> Option<&str> {
    let text = settings.get("blendfile")?.as_str()?;
    text.strip_prefix(JOBS_VARIABLE)?.strip_prefix('/')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use JobStatus::*;

    const ALL: [JobStatus; 10] = [
        UnderConstruction,
        Queued,
        Active,
        Completed,
        Failed,
        Canceled,
        CancelRequested,
        Paused,
        PauseRequested,
        Requeueing,
    ];

    #[test]
    fn names_are_those_of_the_api() {
        for status in ALL {
            assert_eq!(json!(status), status.name());
        }
        for platform in [Platform::Linux, Platform::Windows, Platform::Darwin, Platform::Manager] {
            assert_eq!(json!(platform), platform.name());
        }
    }

    #[test]
    fn what_runs_can_only_be_canceled() {
        for wish in ALL {
            let changed = Active.change(wish, true);
            match wish {
                Canceled | CancelRequested => assert_eq!(changed, Ok(Canceled)),
                Active => assert_eq!(changed, Ok(Active)),
                _ => {
                    assert!(changed.unwrap_err().to_string().contains("cancel it first"), "{wish}")
                }
            }
        }
    }

    #[test]
    fn requests_are_granted_at_once_and_ends_are_ends() {
        assert_eq!(Queued.change(PauseRequested, false), Ok(Paused));
        assert_eq!(Paused.change(Requeueing, false), Ok(Queued));
        assert_eq!(Queued.change(CancelRequested, false), Ok(Canceled));
        assert_eq!(Active.change(Completed, false), Ok(Completed));
        for end in [Completed, Failed, Canceled] {
            assert_eq!(end.change(Queued, false), Ok(Queued));
            assert_eq!(end.change(end, false), Ok(end));
            assert!(end.change(Paused, false).is_err());
            assert!(end.change(Active, false).is_err());
            assert!(end.change(UnderConstruction, false).is_err());
        }
        assert!(Completed.change(Canceled, false).is_err());
    }

    #[test]
    fn users_of_a_checkout_are_found() {
        let checkout: CheckoutPath = "alice/shot".parse().unwrap();
        let uses = |id: Option<&str>, setting: Value| {
            let settings = json!({ "x": setting });
            uses_checkout(&checkout, id, settings.as_object().unwrap(), "/mnt/farm/jobs")
        };
        for id in ["alice/shot", "alice", "alice/shot/textures", "/mnt/farm/jobs/alice/shot"] {
            assert!(uses(Some(id), Value::Null), "{id}");
        }
        for text in [
            "{jobs}/alice/shot/a: b.blend",
            "{jobs}\\alice\\shot\\a.blend",
            "{jobs}/alice",
            "/mnt/farm/jobs/alice/shot/scene.blend",
        ] {
            assert!(
                uses(None, json!(text)) && uses(Some("bob"), json!({ "y": [1, text] })),
                "{text}"
            );
        }
        for text in
            ["{jobs}/alice/shot2/a.blend", "/mnt/farm/jobs2/alice/shot", "alice/shot", "{jobs}"]
        {
            assert!(!uses(Some("alice/shots"), json!(text)), "{text}");
        }
    }

    #[test]
    fn a_blend_by_another_path_uses_its_checkout() {
        let checkout: CheckoutPath = "alice/shot".parse().unwrap();
        let uses = |name: &str, text: &str| {
            let settings = json!({ name: text });
            uses_checkout(&checkout, None, settings.as_object().unwrap(), "/mnt/farm/jobs")
        };
        for text in [
            "{share}/jobs/alice/shot/a.blend",
            "F:\\farm\\jobs\\alice\\shot\\a.blend",
            "/other/mount/alice/shot/a.blend",
        ] {
            assert!(uses("blendfile", text), "{text}");
            assert!(!uses("other", text), "{text}");
        }
        for text in ["{jobs}//alice/./shot/a.blend", "{jobs}/x/../alice/shot/a.blend"] {
            assert!(uses("blendfile", text) && uses("other", text), "{text}");
        }
        assert!(!uses("blendfile", "{share}/jobs/alice/shot2/a.blend"));
    }

    #[test]
    fn finds_what_is_below_the_checkouts() {
        let of = |blendfile: Value| {
            let settings = json!({ "blendfile": blendfile });
            checkout_of(settings.as_object().unwrap()).map(str::to_owned)
        };
        assert_eq!(of(json!("{jobs}/shot 010/a/b.blend")).as_deref(), Some("shot 010/a/b.blend"));
        for none in [json!("dummy.blend"), json!("/x/{jobs}/y"), json!("{jobs}x/y"), json!(7)] {
            assert_eq!(of(none), None);
        }
    }
}
