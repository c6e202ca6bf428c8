//! `farmhand status`, `pause` and `resume`: what a running agent is at.

use bytesize::ByteSize;
use clap::Args;
use serde::Serialize;

use super::{
    Context,
    exit::{Exit, Failure},
    hash::escaped,
    print, print_json,
};
use crate::{
    agent::{AgentStatus, FolderState, FolderStatus, WatchMode},
    control::{self, Asked},
};

/// Say what the agents of this user (`farmhand watch`) are at
#[derive(Debug, Args)]
pub(super) struct Status {}

/// Have the agents of this user send nothing until `farmhand resume`
#[derive(Debug, Args)]
pub(super) struct Pause {}

/// Have the agents of this user go on
#[derive(Debug, Args)]
pub(super) struct Resume {}

#[derive(Serialize)]
struct Answer {
    schema: &'static str,
    agents: Vec<AgentStatus>,
}

impl Status {
    pub async fn run(&self, context: &Context) -> Result<Exit, Failure> {
        each(context, async |agent| agent.status().await).await
    }
}

impl Pause {
    pub async fn run(&self, context: &Context) -> Result<Exit, Failure> {
        each(context, async |agent| agent.pause(true).await).await
    }
}

impl Resume {
    pub async fn run(&self, context: &Context) -> Result<Exit, Failure> {
        each(context, async |agent| agent.pause(false).await).await
    }
}

/// Asks all agents, and prints what they answer.
async fn each(
    context: &Context,
    ask: impl AsyncFn(&Asked) -> Result<AgentStatus, control::AskError>,
) -> Result<Exit, Failure> {
    let found = context.settings.run_dir().map(|dir| control::find(&dir, None));
    let found = found.unwrap_or_default();
    if found.is_empty() {
        let message = "no agent is running; start one with `farmhand watch`";
        return Err(Failure::new(Exit::Missing, message));
    }
    let mut agents = Vec::new();
    for agent in &found {
        let status = ask(agent).await;
        agents.push(status.map_err(|error| {
            Failure::new(Exit::Failed, format!("{error}; end that process, and start it again"))
        })?);
    }
    if context.json {
        print_json(&Answer { schema: "farmhand.status/1", agents })?;
    } else {
        for agent in &agents {
            show(agent)?;
        }
    }
    Ok(Exit::Done)
}

fn show(agent: &AgentStatus) -> Result<(), Failure> {
    let limit = agent.limit.map(|limit| format!(", at most {}/s", ByteSize::b(limit)));
    let paused = if agent.paused { ", paused" } else { "" };
    print(&format!(
        "agent {} (farmhand {}){paused}, {} sent{}",
        agent.pid,
        agent.version,
        ByteSize::b(agent.sent_bytes),
        limit.unwrap_or_default()
    ))?;
    for folder in &agent.folders {
        show_folder(folder)?;
    }
    Ok(())
}

fn show_folder(folder: &FolderStatus) -> Result<(), Failure> {
    let line = |text: String| print(&escaped(&text));
    line(format!("{} → {}", folder.dir.display(), folder.server))?;
    let state = match folder.state {
        FolderState::Synced => "synced",
        FolderState::Settling => "waiting until files are written",
        FolderState::Scanning => "scanning",
        FolderState::Uploading => "uploading",
        FolderState::Retrying => "in trouble, trying again",
        FolderState::Gone => "the folder is not there: waiting for it",
        FolderState::Paused => "paused",
    };
    line(format!("  {state}: {} files, {}", folder.files, ByteSize::b(folder.bytes)))?;
    if folder.queued_files > 0 {
        let bytes = ByteSize::b(folder.queued_bytes);
        line(format!("  to send: {} files, {bytes}", folder.queued_files))?;
    }
    for upload in &folder.uploads {
        let (sent, size) = (ByteSize::b(upload.sent_bytes), ByteSize::b(upload.size_bytes));
        line(format!("    {} {sent} of {size}, {}/s", upload.path, ByteSize::b(upload.rate)))?;
    }
    if folder.waiting_files > 0 {
        line(format!("  not at rest, or not hashed yet: {} files", folder.waiting_files))?;
    }
    if let Some(example) = &folder.skipped_example {
        line(format!("  left out: {} files, as {example}", folder.skipped_files))?;
    }
    if let Some(error) = &folder.last_error {
        line(format!("  last error: {error}"))?;
    }
    if let Some(time) = &folder.last_sync {
        line(format!("  all on the server at {time}"))?;
    }
    if let WatchMode::Poll { every_s, reason } = &folder.watch {
        line(format!("  looked at every {every_s} s: {reason}"))?;
    }
    Ok(())
}
