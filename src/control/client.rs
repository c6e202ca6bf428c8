//! The side of those who ask.

use std::{path::Path, time::Duration};

use reqwest::{Client, StatusCode};

use super::{
    ROOT,
    registry::{Record, agents},
    scan::{ScanAnswer, ScanRequest},
};
use crate::{
    agent::{AgentStatus, real},
    client::loopback,
    scan::{self, Scan},
};

/// How long a running agent may take to answer what it knows.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// A running agent.
#[derive(Debug)]
pub struct Asked {
    http: Client,
    record: Record,
}

/// While it lives, an agent sends nothing for other folders.
#[derive(Debug)]
pub struct Held {
    _connection: reqwest::Response,
}

/// Why an agent did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It cannot be reached.
    #[error("the agent (process {pid}) does not answer: {reason}")]
    Silent {
        /// Its process.
        pid: u32,
        /// Why.
        reason: String,
    },
    /// It cannot say.
    #[error("{0}")]
    Refused(String),
}

/// The agents that run and are entered here, those that watch `dir` if it is given.
pub fn find(registry: &Path, dir: Option<&Path>) -> Vec<Asked> {
    let (mut running, _) = agents(registry);
    let root = dir.map(real);
    running.retain(|agent| {
        !agent.url.is_empty() && root.as_ref().is_none_or(|root| agent.folders.contains(root))
    });
    running.sort_by_key(|agent| agent.pid);
    running.into_iter().filter_map(|record| Some(Asked { http: loopback()?, record })).collect()
}

impl Asked {
    /// The process.
    pub fn pid(&self) -> u32 {
        self.record.pid
    }

    /// What it is at.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn status(&self) -> Result<AgentStatus, AskError> {
        self.json(self.http.get(self.at("status")).timeout(ANSWER_TIME)).await
    }

    /// Has it pause, or go on.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn pause(&self, pause: bool) -> Result<AgentStatus, AskError> {
        let path = if pause { "pause" } else { "resume" };
        self.json(self.http.post(self.at(path)).timeout(ANSWER_TIME)).await
    }

    /// The folder as it is now, and whether the agent knew that without looking. It may have to hash.
    ///
    /// # Errors
    /// If it does not answer, or does not watch the folder with these rules.
    pub async fn scan(
        &self,
        dir: &Path,
        options: &scan::Options,
    ) -> Result<(Scan, bool), AskError> {
        let request = ScanRequest {
            dir: real(dir),
            default_ignores: options.default_ignores,
            ignores: options.ignores.clone(),
        };
        let answer: ScanAnswer = self.json(self.http.post(self.at("scan")).json(&request)).await?;
        let was_known = answer.was_known;
        let scan = answer.scan().ok_or_else(|| self.silent("it speaks of no files"))?;
        Ok((scan, was_known))
    }

    /// Has it send nothing for other folders than this, for as long as what is returned lives.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn hold_others(&self, dir: &Path) -> Result<Held, AskError> {
        let request = self.http.get(self.at("yield")).query(&[("dir", real(dir))]);
        let request = request.bearer_auth(&self.record.token);
        let answer = tokio::time::timeout(ANSWER_TIME, request.send()).await;
        let answer = answer.map_err(|_| self.silent("it does not answer in time"))?;
        let mut answer = answer.map_err(|error| self.failed(&error))?;
        // With its first word it has done so.
        answer.chunk().await.map_err(|error| self.failed(&error))?;
        Ok(Held { _connection: answer })
    }

    fn at(&self, path: &str) -> String {
        format!("{}{ROOT}/{path}", self.record.url.trim_end_matches('/'))
    }

    fn silent(&self, reason: &str) -> AskError {
        AskError::Silent { pid: self.record.pid, reason: reason.to_owned() }
    }

    fn failed(&self, error: &reqwest::Error) -> AskError {
        self.silent(&error.to_string())
    }

    async fn json<T: serde::de::DeserializeOwned>(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<T, AskError> {
        let request = request.bearer_auth(&self.record.token);
        let answer = request.send().await.map_err(|error| self.failed(&error))?;
        if answer.status() != StatusCode::OK {
            let status = answer.status();
            let text = answer.text().await.unwrap_or_default();
            return Err(AskError::Refused(if text.is_empty() { status.to_string() } else { text }));
        }
        answer.json().await.map_err(|error| self.failed(&error))
    }
}
