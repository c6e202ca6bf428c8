//! Logs go to standard error, and never through a progress bar.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use indicatif::MultiProgress;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use super::settings::LogFormat;

/// Where bars and logs meet.
#[derive(Debug, Clone, Default)]
pub(super) struct Logs {
    pub bars: MultiProgress,
    pub quiet: bool,
}

/// Sets up logging for the whole process. `FARMHAND_LOG` is a filter as `tracing` knows it
/// (`debug`, `farmhand::server=trace`, …).
pub(super) fn init(format: LogFormat, verbose: u8, quiet: bool, is_server: bool) -> Logs {
    let level = match (quiet, verbose) {
        (true, _) => "error",
        (false, 0) if is_server => "info",
        (false, 0) => "warn",
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    let others = if verbose > 1 { "debug" } else { "warn" };
    // What it has to say about certificates is in our own errors.
    let verifier = if verbose > 1 { "debug" } else { "off" };
    let filter = std::env::var("FARMHAND_LOG")
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| {
            let ours = format!("farmhand={level},rustls_platform_verifier={verifier}");
            EnvFilter::new(format!("{others},{ours}"))
        });
    let logs = Logs { bars: MultiProgress::new(), quiet };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(logs.clone());
    // Fails only if somebody has set up logging before, as tests may.
    let _ = match format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text if is_server => builder.with_ansi(false).try_init(),
        LogFormat::Text => builder.with_ansi(false).without_time().with_target(false).try_init(),
    };
    logs
}

impl<'a> MakeWriter<'a> for Logs {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { bars: self.bars.clone(), text: Vec::new() }
    }
}

/// One log line: written when it is whole, with the bars out of the way.
#[derive(Debug)]
pub(super) struct Line {
    bars: MultiProgress,
    text: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let line = on_one_line(&self.text);
        // Nowhere is left to report that standard error is gone.
        self.bars.suspend(|| {
            let _ = io::stderr().write_all(line.as_bytes());
        });
    }
}

/// Clients choose names, and paths are made of them: none may begin another line, or colour it.
fn on_one_line(text: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(text);
    // Most lines are like this.
    if text.strip_suffix('\n').is_some_and(|line| !line.contains(char::is_control)) {
        return text;
    }
    let mut line = String::with_capacity(text.len());
    for character in text.strip_suffix('\n').unwrap_or(&text).chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line.push('\n');
    line.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line() {
        assert_eq!(on_one_line("a звук\n".as_bytes()), "a звук\n");
        assert_eq!(on_one_line(b"a\nINFO b\x1b[31m\r\n"), "a\\nINFO b\\u{1b}[31m\\r\n");
        assert_eq!(on_one_line(b"\n"), "\n");
    }
}
