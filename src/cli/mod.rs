//! The command line: one file per command, and what they share.

mod apart;
mod cache;
mod checkout;
mod completions;
mod config;
mod conformance;
mod doctor;
mod environment;
mod exit;
mod fetch;
#[cfg(test)]
mod fuzz;
mod hash;
mod job;
mod logging;
mod memory;
mod needed;
mod plan;
mod progress;
mod push;
mod references;
mod root;
mod serve;
mod service;
mod session;
mod settings;
mod status;
mod store;
mod submit;
mod token;
mod wait;
mod watch;

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{ArgAction, Args, Parser, Subcommand};

use exit::{Exit, Failure, harmless};
use settings::{LogFormat, Overrides, Settings, When};

const EXIT_CODES: &str = "\
Exit codes:
  0 done                          6 refused by the server
  1 could not                     7 the server is full
  2 usage or configuration        8 waited in vain
  3 done, but files were skipped  9 integrity error
  4 missing input               130 interrupted
  5 server unreachable

Every setting can also be given in the environment (FARMHAND_SERVER, FARMHAND_UPLOAD_PARALLEL,
and so on) or in the configuration file; `farmhand config show` lists them all. Flags win over
the environment, the environment over the file.";

/// Gets project folders onto a render farm: hashes, sends what is missing, makes checkouts.
#[derive(Debug, Parser)]
#[command(name = "farmhand", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// Read the configuration from this file (environment: FARMHAND_CONFIG)
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Print results as JSON
    #[arg(long, global = true)]
    json: bool,

    /// Say more; twice, say everything
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,

    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,

    /// How to write logs, on standard error
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,

    /// When to show progress, on standard error
    #[arg(long, global = true, value_enum, value_name = "WHEN")]
    progress: Option<When>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Checkout(checkout::Checkout),
    Submit(submit::Submit),
    Job(job::JobCommand),
    Push(push::Push),
    Plan(plan::Plan),
    Watch(watch::Watch),
    Wait(wait::Wait),
    Status(status::Status),
    Pause(status::Pause),
    Resume(status::Resume),
    Hash(hash::Hash),
    Serve(serve::Serve),
    Store(store::Store),
    Cache(cache::Cache),
    Conformance(conformance::Conformance),
    Doctor(doctor::Doctor),
    #[command(subcommand)]
    Service(service::Service),
    #[command(subcommand)]
    Token(token::Token),
    #[command(subcommand)]
    Config(config::Config),
    Completions(completions::Completions),
}

/// What every command gets.
struct Context {
    settings: Settings,
    json: bool,
    logs: logging::Logs,
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut overrides = Overrides::default();
    overrides.set("log_format", "--log-format", cli.global.log_format.map(|format| format.name()));
    overrides.set("progress", "--progress", cli.global.progress.map(|when| when.name()));
    match &cli.command {
        Command::Checkout(command) => command.overrides(&mut overrides),
        Command::Submit(command) => command.overrides(&mut overrides),
        Command::Job(command) => command.overrides(&mut overrides),
        Command::Push(command) => command.overrides(&mut overrides),
        Command::Plan(command) => command.overrides(&mut overrides),
        Command::Watch(command) => command.overrides(&mut overrides),
        Command::Wait(command) => command.overrides(&mut overrides),
        Command::Hash(command) => command.overrides(&mut overrides),
        Command::Serve(command) => command.overrides(&mut overrides),
        Command::Store(command) => command.overrides(&mut overrides),
        Command::Cache(command) => command.overrides(&mut overrides),
        Command::Conformance(command) => command.overrides(&mut overrides),
        Command::Doctor(command) => command.overrides(&mut overrides),
        Command::Status(_) | Command::Pause(_) | Command::Resume(_) => {}
        Command::Token(_) | Command::Config(_) | Command::Completions(_) | Command::Service(_) => {}
    }
    let settings = match Settings::load(cli.global.config.as_deref(), &overrides) {
        Ok(settings) => settings,
        Err(failure) => return failure.print(LogFormat::Text),
    };
    let log_format = settings.values.log_format;
    let is_server = matches!(cli.command, Command::Serve(_) | Command::Watch(_));
    let logs = logging::init(log_format, cli.global.verbose, cli.global.quiet, is_server);
    let context = Context { settings, json: cli.global.json, logs };
    match cli.command {
        Command::Watch(_) => memory::share_between_threads(),
        Command::Serve(_) => memory::give_back_what_is_large(),
        _ => {}
    }
    let result = match cli.command {
        Command::Checkout(command) => block_on(command.run(&context)),
        Command::Submit(command) => block_on(command.run(&context)),
        Command::Job(command) => block_on(command.run(&context)),
        Command::Push(command) => block_on(command.run(&context)),
        Command::Plan(command) => block_on(command.run(&context)),
        Command::Watch(command) => block_on(command.run(&context)),
        Command::Wait(command) => block_on(command.run(&context)),
        Command::Status(command) => block_on(command.run(&context)),
        Command::Pause(command) => block_on(command.run(&context)),
        Command::Resume(command) => block_on(command.run(&context)),
        Command::Hash(command) => block_on(command.run(&context)),
        Command::Serve(command) => block_on(command.run(&context)),
        Command::Store(command) => block_on(command.run(&context)),
        Command::Cache(command) => block_on(command.run(&context)),
        Command::Conformance(command) => block_on(command.run(&context)),
        Command::Doctor(command) => block_on(command.run(&context)),
        Command::Service(command) => command.run(&context),
        Command::Token(command) => command.run(&context),
        Command::Config(command) => command.run(&context),
        Command::Completions(command) => command.run(),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => failure.print(log_format),
    }
}

fn block_on(command: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}")))?;
    let result = runtime.block_on(command);
    // What must come to its end has: a thread that hangs in a dead mount must not keep the process.
    runtime.shutdown_background();
    result
}

/// Prints one line of results, with nothing in it that a terminal would obey. A reader that has gone away
/// (`| head`) is no error worth a word.
fn print(line: &str) -> Result<(), Failure> {
    print_raw(&harmless(line))
}

fn print_raw(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| not_written(&error))
}

fn not_written(error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::silent(),
        _ => Failure::new(Exit::Failed, format!("cannot write the results: {error}")),
    }
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let line = serde_json::to_string(value).map_err(|error| {
        Failure::new(Exit::Failed, format!("cannot write the results: {error}"))
    })?;
    print_raw(&line)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
