//! Shows how far a job is: files, bytes, rate and time left.

use std::{
    io::IsTerminal,
    sync::Arc,
    time::{Duration, Instant},
};

use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;

use super::{logging::Logs, settings::When};
use crate::meter::{Phase, Progress, Snapshot};

/// How often a bar is drawn, and a line written where there is no terminal.
const DRAW_EVERY: Duration = Duration::from_millis(100);
const LINE_EVERY: Duration = Duration::from_secs(5);

/// A display that is gone when it is dropped.
pub(super) struct Display {
    task: Option<JoinHandle<()>>,
    bar: ProgressBar,
}

impl Display {
    /// Shows this progress from now on.
    pub fn start(progress: Arc<Progress>, when: When, logs: &Logs) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let shown = match when {
            When::Always => true,
            When::Auto => terminal && !logs.quiet,
            When::Never => false,
        };
        let bar = ProgressBar::hidden();
        if !shown {
            return Self { task: None, bar };
        }
        let task = if terminal {
            bar.set_draw_target(ProgressDrawTarget::stderr());
            let bar = logs.bars.add(bar.clone());
            tokio::spawn(draw(progress, bar))
        } else {
            tokio::spawn(lines(progress))
        };
        Self { task: Some(task), bar }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        self.bar.finish_and_clear();
    }
}

async fn draw(progress: Arc<Progress>, bar: ProgressBar) {
    let style = |template| {
        ProgressStyle::with_template(template)
            .expect("BUG: the template is valid")
            .progress_chars("=> ")
    };
    let bytes = style("{msg} [{bar:24}] {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left");
    let spinner = style("{msg} {spinner}");
    let mut phase = None;
    loop {
        let now = progress.snapshot();
        if phase != Some(now.phase) {
            phase = Some(now.phase);
            bar.reset();
            bar.set_style(if has_bytes(now.phase) { bytes.clone() } else { spinner.clone() });
        }
        bar.set_length(now.bytes_total);
        bar.set_position(now.bytes.min(now.bytes_total));
        bar.set_message(message(&now));
        bar.tick();
        tokio::time::sleep(DRAW_EVERY).await;
    }
}

async fn lines(progress: Arc<Progress>) {
    let (mut phase, mut since) = (None, Instant::now());
    loop {
        tokio::time::sleep(LINE_EVERY).await;
        let now = progress.snapshot();
        if phase != Some(now.phase) {
            (phase, since) = (Some(now.phase), Instant::now() - LINE_EVERY);
        }
        let mut line = message(&now);
        if has_bytes(now.phase) {
            let (done, total) = (ByteSize::b(now.bytes), ByteSize::b(now.bytes_total));
            let rate = now.bytes as f64 / since.elapsed().as_secs_f64();
            line.push_str(&format!(" {done}/{total}  {}/s", ByteSize::b(rate as u64)));
            if rate > 0.0 {
                let left = now.bytes_total.saturating_sub(now.bytes) as f64 / rate;
                line.push_str(&format!("  {left:.0}s left"));
            }
        }
        eprintln!("{line}");
    }
}

fn has_bytes(phase: Phase) -> bool {
    matches!(phase, Phase::Hashing | Phase::Uploading | Phase::Fetching)
}

fn message(now: &Snapshot) -> String {
    let Snapshot { files, files_total, bytes, .. } = now;
    match now.phase {
        Phase::Walking => format!("looking for files: {files}"),
        Phase::Hashing => format!("hashing {files}/{files_total} files"),
        Phase::Asking => "asking the server what is missing".into(),
        Phase::Uploading => format!("sending {files}/{files_total} files"),
        Phase::Fetching => format!("fetching {files}/{files_total} files"),
        Phase::Creating => "creating the checkout".into(),
        Phase::Upkeep if *bytes > 0 => format!("{files} files, {}", ByteSize::b(*bytes)),
        Phase::Upkeep => format!("{files} files"),
    }
}
