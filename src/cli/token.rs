//! `farmhand token new|list`

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Context,
    exit::{Exit, Failure},
    print, print_json,
};
use crate::server::{self, Scope, Scopes, Tokens};

/// Make tokens for a server, or list them
#[derive(Debug, Subcommand)]
pub(super) enum Token {
    New(New),
    List(List),
}

/// Make a token, and print it: this once, and never again
///
/// The server is to know only its hash. With --file, that is added to the server's file of tokens
/// (serve.tokens); a server that runs takes it into account when it is sent SIGHUP. Without, what is to
/// be added is printed on standard error.
#[derive(Debug, Args)]
pub(super) struct New {
    /// Who is to have it; for logs and lists
    #[arg(long)]
    name: String,

    /// What it is to allow: read, upload, checkout, admin
    #[arg(long = "scope", value_name = "SCOPE,…", value_delimiter = ',', required = true)]
    scopes: Vec<Scope>,

    /// Add it to this file, which is made if it is missing
    #[arg(long)]
    file: Option<PathBuf>,
}

/// List the tokens in a file: their names, and what they allow
#[derive(Debug, Args)]
pub(super) struct List {
    /// The file
    #[arg(long)]
    file: PathBuf,
}

impl Token {
    pub fn run(&self, context: &Context) -> Result<Exit, Failure> {
        match self {
            Self::New(command) => command.run(context),
            Self::List(command) => command.run(context),
        }
    }
}

impl New {
    fn run(&self, context: &Context) -> Result<Exit, Failure> {
        let scopes: Scopes = self.scopes.iter().copied().collect();
        let text = server::fresh_token()
            .map_err(|error| Failure::new(Exit::Failed, format!("cannot make a token: {error}")))?;
        let token = server::Token::new(&self.name, scopes, &text)
            .map_err(|error| Failure::new(Exit::Usage, format!("--name: {error}")))?;
        match &self.file {
            Some(file) => append(file, &token)?,
            None => eprint!("{token}"),
        }
        if context.json {
            print_json(&json!({
                "schema": "farmhand.token/1",
                "name": token.name,
                "scopes": names(scopes),
                "sha256": token.sha256,
                "token": text,
            }))?;
        } else {
            print(&text)?;
        }
        Ok(Exit::Done)
    }
}

impl List {
    fn run(&self, context: &Context) -> Result<Exit, Failure> {
        let tokens = read_tokens(&self.file)?;
        if context.json {
            let tokens: Vec<_> = tokens
                .iter()
                .map(|token| json!({ "name": token.name, "scopes": names(token.scopes) }))
                .collect();
            print_json(&json!({ "schema": "farmhand.tokens/1", "tokens": tokens }))?;
        } else {
            for token in tokens.iter() {
                print(&format!("{}  {}", token.name, names(token.scopes).join(",")))?;
            }
        }
        Ok(Exit::Done)
    }
}

fn names(scopes: Scopes) -> Vec<&'static str> {
    scopes.iter().map(Scope::name).collect()
}

/// The tokens of a file, or what is wrong with it.
pub(super) fn read_tokens(file: &Path) -> Result<Tokens, Failure> {
    Tokens::read(file).map_err(|error| Failure::new(Exit::Usage, error.to_string()))
}

/// Adds a token to a file that is valid, and stays so. Others that do the same are waited for.
fn append(path: &Path, token: &server::Token) -> Result<(), Failure> {
    let failed = |error| {
        Failure::new(Exit::Failed, format!("cannot add a token to {}: {error}", path.display()))
    };
    let mut file = open(path).map_err(failed)?;
    file.lock().map_err(failed)?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed)?;
    let usage = |error: String| {
        Failure::new(Exit::Usage, format!("the tokens in {}: {error}", path.display()))
    };
    let mut tokens = Tokens::parse(&text).map_err(|error| usage(error.to_string()))?;
    tokens.add(token.clone()).map_err(|error| usage(format!("{error}; choose another --name")))?;
    let gap = match text.as_bytes() {
        [] => "",
        [.., b'\n'] => "\n",
        _ => "\n\n",
    };
    let entry = format!("{gap}{token}");
    // A list in another spelling cannot be added to.
    Tokens::parse(&(text + &entry)).map_err(|error| usage(error.to_string()))?;
    // At once: a server may be reading it.
    file.write_all(entry.as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)
}

fn open(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).read(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}
