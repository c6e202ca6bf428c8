//! What is asked of a Flamenco Manager, or of a farmhand that serves without one.

use reqwest::{Method, StatusCode, Url};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    ClientError, RemoteJob, Shaman,
    job::{any, without_nulls},
};
use crate::{
    domain::report::{Erased, Outputs},
    jobs::{JobStatus, JobType, SubmittedJob},
    wire::{self, hide_tokens},
};

/// The version of a Manager.
#[derive(Debug, Clone, Deserialize)]
pub struct Version {
    /// For people.
    pub version: String,
    /// What it calls itself.
    #[serde(default, deserialize_with = "any")]
    pub name: String,
}

impl Version {
    /// Whether it is farmhand's own server, and not behind one.
    pub fn is_farmhand(&self) -> bool {
        self.name == wire::FARM_NAME
    }
}

/// Whether jobs are worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FarmStatus {
    /// A job is worked on.
    Active,
    /// There is nothing to do.
    Idle,
    /// Jobs wait.
    Waiting,
    /// All workers sleep.
    Asleep,
    /// Neither a worker nor a command runs jobs.
    Inoperative,
    /// Anything else.
    #[serde(other)]
    Unknown,
}

#[derive(Deserialize)]
struct FarmStatusReport {
    status: FarmStatus,
}

/// Whether files can be sent to it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SharedStorage {
    /// The directory of its storage.
    pub location: String,
    /// Whether Shaman is switched on.
    #[serde(default, deserialize_with = "any")]
    pub shaman_enabled: bool,
}

/// A group of workers.
#[derive(Debug, Clone, Deserialize)]
pub struct Tag {
    /// A UUID.
    #[serde(default, deserialize_with = "any")]
    pub id: String,
    /// What people call it.
    pub name: String,
}

/// A step of a job.
#[derive(Debug, Clone, Deserialize)]
pub struct Task {
    /// A UUID.
    pub id: String,
    /// What people call it.
    #[serde(default, deserialize_with = "any")]
    pub name: String,
    /// What it is at.
    #[serde(default, deserialize_with = "any")]
    pub status: String,
    /// When it last changed, as the server writes it.
    #[serde(default, deserialize_with = "any")]
    pub updated: String,
}

#[derive(Deserialize)]
struct Types {
    job_types: Option<Vec<Value>>,
}

#[derive(Deserialize)]
struct Tags {
    #[serde(default)]
    tags: Option<Vec<Tag>>,
}

#[derive(Deserialize)]
struct Tasks {
    #[serde(default)]
    tasks: Option<Vec<Task>>,
}

#[derive(Deserialize)]
struct Jobs {
    #[serde(default)]
    jobs: Option<Vec<RemoteJob>>,
}

/// The effect of deleting a job on its files.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Deletion {
    /// Whether its checkout is deleted.
    #[serde(default, deserialize_with = "any")]
    pub shaman_checkout: bool,
    /// The deleted part of the checkout, and the files that stay; a Manager does not say.
    #[serde(default, deserialize_with = "any", skip_serializing_if = "Option::is_none")]
    pub checkout: Option<Erased>,
    /// Files that the job has rendered to its own directory.
    #[serde(default, deserialize_with = "any")]
    pub renders: Outputs,
}

/// A job type, or that there is none of that name.
#[derive(Debug)]
pub enum FoundType {
    /// This one.
    Found(JobType),
    /// The names there are.
    Unknown(Vec<String>),
}

/// An answer that is not what a Shaman server says is none of a Manager here.
fn of_manager(error: ClientError) -> ClientError {
    match error {
        ClientError::NotShaman { url, reason } => ClientError::NotManager { url, reason },
        other => other,
    }
}

/// The same for what every Manager has.
fn of_no_manager(error: ClientError) -> ClientError {
    match of_manager(error) {
        ClientError::Status { url, path, status: status @ StatusCode::NOT_FOUND, message } => {
            let reason = format!("{status} at {path} ({message})");
            ClientError::NotManager { url, reason }
        }
        other => other,
    }
}

impl Shaman {
    fn api_url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut parts) = url.path_segments_mut() {
            parts.pop_if_empty();
            parts.extend(wire::API.trim_matches('/').split('/').chain(path.iter().copied()));
        }
        url
    }

    async fn get_api<A: DeserializeOwned>(&self, path: &[&str]) -> Result<A, ClientError> {
        let url = self.api_url(path);
        let bounds = self.small();
        let call = || self.json::<(), A>(bounds, Method::GET, url.clone(), None);
        Ok(self.retrying(bounds, call, ClientError::is_transient).await.map_err(of_manager)?.0)
    }

    /// Sends something to which there is no answer but that it was done.
    async fn post_api(
        &self,
        method: Method,
        path: &[&str],
        body: Option<&impl Serialize>,
        may_repeat: bool,
    ) -> Result<Vec<u8>, ClientError> {
        let url = self.api_url(path);
        let bounds = self.medium();
        let call = || self.bytes(bounds, method.clone(), url.clone(), body);
        let may_pass =
            if may_repeat { ClientError::is_transient } else { ClientError::was_not_seen };
        Ok(self.retrying(bounds, call, may_pass).await.map_err(of_manager)?.0)
    }

    /// Its version. Whoever has none is no Manager.
    ///
    /// # Errors
    /// If there is no answer after all retries, or it is no Manager.
    pub async fn version(&self) -> Result<Version, ClientError> {
        self.get_api(&["version"]).await.map_err(of_no_manager)
    }

    /// Whether jobs are worked on. `None` if the server does not report that: it is an old one, or takes no
    /// jobs.
    pub async fn farm_status(&self) -> Option<FarmStatus> {
        let bounds = self.small();
        let url = self.api_url(&["status"]);
        match self.json::<(), FarmStatusReport>(bounds, Method::GET, url, None).await {
            Ok((report, _)) => Some(report.status),
            Err(error) => {
                tracing::debug!("the server does not report its status: {error}");
                None
            }
        }
    }

    /// Where its storage is, for users on this platform.
    ///
    /// # Errors
    /// As [`Shaman::version`].
    pub async fn shared_storage(&self) -> Result<SharedStorage, ClientError> {
        let platform = crate::jobs::Platform::HERE.name();
        self.get_api(&["configuration", "shared-storage", "users", platform]).await
    }

    /// The job type of this name.
    ///
    /// # Errors
    /// As [`Shaman::version`].
    pub async fn job_type(&self, name: &str) -> Result<FoundType, ClientError> {
        let types: Types = self.get_api(&["jobs", "types"]).await?;
        let types = types.job_types.unwrap_or_default();
        let named = |kind: &Value| kind["name"].as_str().map(str::to_owned);
        let Some(found) = types.iter().find(|kind| named(kind).as_deref() == Some(name)) else {
            return Ok(FoundType::Unknown(types.iter().filter_map(named).collect()));
        };
        let mut found = without_nulls(found.clone());
        // A type without settings is a list of none, which Go may write as null.
        if let Some(fields) = found.as_object_mut() {
            fields.entry("settings").or_insert_with(|| json!([]));
        }
        match JobType::deserialize(found) {
            Ok(kind) => Ok(FoundType::Found(kind)),
            Err(error) => Err(ClientError::NotManager {
                url: self.shown_url(),
                reason: format!("its job type {name} is none that is known: {error}"),
            }),
        }
    }

    /// The groups of workers.
    ///
    /// # Errors
    /// As [`Shaman::version`].
    pub async fn worker_tags(&self) -> Result<Vec<Tag>, ClientError> {
        let tags: Tags = self.get_api(&["worker-mgt", "tags"]).await?;
        Ok(tags.tags.unwrap_or_default())
    }

    /// Whether it would take a job.
    ///
    /// # Errors
    /// [`ClientError::Status`] with 412 if the job type has changed, or another one of 4xx if it would
    /// not.
    pub async fn check_job(&self, job: &SubmittedJob) -> Result<(), ClientError> {
        self.post_api(Method::POST, &["jobs", "check"], Some(job), true).await.map(drop)
    }

    /// Submits a job. Not tried again where it may have been seen: that would make two.
    ///
    /// # Errors
    /// As [`Shaman::check_job`].
    pub async fn submit_job(&self, job: &SubmittedJob) -> Result<RemoteJob, ClientError> {
        let answer = self.post_api(Method::POST, &["jobs"], Some(job), false).await?;
        serde_json::from_slice(&answer).map_err(|error| ClientError::NotManager {
            url: self.shown_url(),
            reason: format!("it takes the job, and answers something else: {error}"),
        })
    }

    /// All jobs.
    ///
    /// # Errors
    /// As [`Shaman::version`].
    pub async fn jobs(&self) -> Result<Vec<RemoteJob>, ClientError> {
        let jobs: Jobs = self.get_api(&["jobs"]).await.map_err(of_no_manager)?;
        Ok(jobs.jobs.unwrap_or_default())
    }

    /// A job, with all that the server says of it.
    ///
    /// # Errors
    /// [`ClientError::Status`] with 404 if there is none.
    pub async fn job(&self, id: &str) -> Result<(RemoteJob, Value), ClientError> {
        let all: Value = self.get_api(&["jobs", id]).await?;
        match RemoteJob::deserialize(&all) {
            Ok(job) => Ok((job, all)),
            Err(error) => Err(ClientError::NotManager {
                url: self.shown_url(),
                reason: format!("its job {id} is none: {error}"),
            }),
        }
    }

    /// Asks for another status of a job.
    ///
    /// # Errors
    /// [`ClientError::Status`] with 404 if there is none, or 422 if it cannot be that now.
    pub async fn set_job_status(
        &self,
        id: &str,
        status: JobStatus,
        reason: &str,
    ) -> Result<(), ClientError> {
        let body = json!({ "status": status, "reason": reason });
        self.post_api(Method::POST, &["jobs", id, "setstatus"], Some(&body), true).await.map(drop)
    }

    /// What goes with a job that is deleted.
    ///
    /// # Errors
    /// [`ClientError::Status`] with 404 if there is none.
    pub async fn what_would_delete_do(&self, id: &str) -> Result<Deletion, ClientError> {
        self.get_api(&["jobs", id, "what-would-delete-do"]).await
    }

    /// Deletes a job; with its outputs, if the server is one that leaves them otherwise. Not tried again where
    /// it may have been seen: then it would be gone, and that look like an error. Returns what was deleted, if
    /// the server says that: a Manager does not.
    ///
    /// # Errors
    /// [`ClientError::Status`] with 404 if there is none.
    pub async fn delete_job(
        &self,
        id: &str,
        with_outputs: bool,
    ) -> Result<Option<Deletion>, ClientError> {
        let mut url = self.api_url(&["jobs", id]);
        url.set_query(Some(if with_outputs {
            "report=true&with_outputs=true"
        } else {
            "report=true"
        }));
        let bounds = self.large();
        let call = || self.bytes(bounds, Method::DELETE, url.clone(), None::<&()>);
        let done = self.retrying(bounds, call, ClientError::was_not_seen).await;
        Ok(serde_json::from_slice(&done.map_err(of_manager)?.0).ok())
    }

    /// The steps of a job.
    ///
    /// # Errors
    /// [`ClientError::Status`] with 404 if there is no such job.
    pub async fn tasks(&self, id: &str) -> Result<Vec<Task>, ClientError> {
        let tasks: Tasks = self.get_api(&["jobs", id, "tasks"]).await?;
        Ok(tasks.tasks.unwrap_or_default())
    }

    /// The last of what a step has written; nothing, if it has not.
    ///
    /// # Errors
    /// [`ClientError::Status`] with 404 if there is none.
    pub async fn log_tail(&self, task: &str) -> Result<String, ClientError> {
        let url = self.api_url(&["tasks", task, "logtail"]);
        let bounds = self.small();
        let call = || self.bytes(bounds, Method::GET, url.clone(), None::<&()>);
        let text =
            self.retrying(bounds, call, ClientError::is_transient).await.map_err(of_manager)?.0;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Where people find a job; with tokens hidden.
    pub fn job_address(&self, id: &str, version: &Version) -> String {
        let url = if version.is_farmhand() {
            self.api_url(&["jobs", id])
        } else {
            // The web page of Flamenco.
            let mut url = self.base.clone();
            if let Ok(mut parts) = url.path_segments_mut() {
                parts.pop_if_empty().extend(["app", "jobs", id]);
            }
            url
        };
        hide_tokens(url.as_str()).into_owned()
    }
}

/// Whether a server refuses a job as it is: the same again would be refused again.
pub fn is_refusal(error: &ClientError) -> Option<(StatusCode, &str)> {
    match error {
        ClientError::Status { status, message, .. } if status.is_client_error() => {
            Some((*status, message))
        }
        _ => None,
    }
}
