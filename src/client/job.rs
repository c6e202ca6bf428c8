//! Jobs as servers answer them. Requests are strict, answers are not: a Manager fills in what it likes,
//! leaves the rest empty, and may be newer than this program.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::jobs::JobStatus;

/// What a server says that a job is at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RemoteStatus {
    /// One that there is here, too.
    Known(JobStatus),
    /// Another one; shown as it is.
    Other(String),
}

impl RemoteStatus {
    /// Its name in the API. It may be anything.
    pub fn name(&self) -> &str {
        match self {
            Self::Known(status) => status.name(),
            Self::Other(name) => name,
        }
    }

    /// Nothing happens to the job any more unless somebody asks for it.
    pub fn is_end(&self) -> bool {
        matches!(self, Self::Known(status) if status.is_end())
    }
}

impl Default for RemoteStatus {
    fn default() -> Self {
        Self::Other("unknown".into())
    }
}

impl PartialEq<JobStatus> for RemoteStatus {
    fn eq(&self, other: &JobStatus) -> bool {
        matches!(self, Self::Known(status) if status == other)
    }
}

impl fmt::Display for RemoteStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Where a server says that a job's files are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteStorage {
    /// The path of the checkout.
    #[serde(default, deserialize_with = "any", skip_serializing_if = "Option::is_none")]
    pub shaman_checkout_id: Option<String>,
}

/// A job as a server describes it. But for its id, whatever is missing or of another kind is empty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RemoteJob {
    /// A UUID.
    pub id: String,
    /// What people call it.
    #[serde(default, deserialize_with = "any")]
    pub name: String,
    /// The name of its type.
    #[serde(rename = "type", default, deserialize_with = "any")]
    pub job_type: String,
    /// From 0 to 100; higher goes first.
    #[serde(default, deserialize_with = "any")]
    pub priority: i64,
    /// What it was submitted on; Managers do not repeat it.
    #[serde(default, deserialize_with = "any")]
    pub submitter_platform: String,
    /// What the type asks for.
    #[serde(default, deserialize_with = "any")]
    pub settings: Map<String, Value>,
    /// Whatever else is to be known of it.
    #[serde(default, deserialize_with = "any")]
    pub metadata: BTreeMap<String, String>,
    /// The workers that may work on it.
    #[serde(default, deserialize_with = "any", skip_serializing_if = "Option::is_none")]
    pub worker_tag: Option<String>,
    /// Where its files are.
    #[serde(default, deserialize_with = "any", skip_serializing_if = "Option::is_none")]
    pub storage: Option<RemoteStorage>,
    /// When it was taken.
    #[serde(default, deserialize_with = "any")]
    pub created: Option<Timestamp>,
    /// When it last changed.
    #[serde(default, deserialize_with = "any")]
    pub updated: Option<Timestamp>,
    /// What it is at.
    #[serde(default, deserialize_with = "any")]
    pub status: RemoteStatus,
    /// What last happened to it.
    #[serde(default, deserialize_with = "any")]
    pub activity: String,
    /// How much of it is done.
    #[serde(default, deserialize_with = "any")]
    pub steps_completed: i64,
    /// Of how much.
    #[serde(default, deserialize_with = "any")]
    pub steps_total: i64,
}

impl RemoteJob {
    /// The checkout with its files, if it says so.
    pub fn checkout(&self) -> Option<&str> {
        self.storage.as_ref()?.shaman_checkout_id.as_deref()
    }
}

/// A value, or the default in the place of what is none: one odd field must not hide the job.
pub(super) fn any<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(
    from: D,
) -> Result<T, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(from)?).unwrap_or_default())
}

/// An answer without what is `null` in it: optional fields that Go writes all the same.
pub(super) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(fields.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_job_is_one_whatever_a_server_makes_of_it() {
        let text = r#"{"id":"a","name":"n","type":"t","priority":50,"submitter_platform":"",
            "settings":null,"metadata":null,"storage":null,"worker_tag":null,"initial_status":null,
            "created":"2026-01-02T03:04:05.123456789+02:00","updated":"0001-01-01T00:00:00Z",
            "status":"archived","activity":null,"was_max":{"x":1},"steps_total":"many"}"#;
        let job: RemoteJob = serde_json::from_str(text).unwrap();
        assert_eq!((job.name.as_str(), job.status.name()), ("n", "archived"));
        assert_eq!((job.steps_total, job.activity.as_str(), job.checkout()), (0, "", None));
        assert!(job.created.is_some() && job.updated.is_some());
        let job: RemoteJob =
            serde_json::from_value(json!({"id": "a", "status": "paused"})).unwrap();
        assert!(job.status == JobStatus::Paused && job.created.is_none());
        assert!(
            serde_json::from_value::<RemoteJob>(json!({"name": "a"})).is_err(),
            "no id, no job"
        );
    }
}
