//! `farmhand config show|check`

use clap::Subcommand;
use serde_json::{Map, json};

use super::{
    Context,
    exit::{Exit, Failure},
    print, print_json,
    settings::default_file,
};

/// Show or check the configuration
#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Print every setting, its value and where that comes from
    Show,
    /// Say whether the configuration is valid
    Check,
}

impl Config {
    pub fn run(&self, context: &Context) -> Result<Exit, Failure> {
        match self {
            Self::Show => show(context),
            Self::Check => check(context),
        }
    }
}

fn show(context: &Context) -> Result<Exit, Failure> {
    if context.json {
        let settings: Map<_, _> = context
            .settings
            .all()
            .map(|(key, value, source)| {
                (key.to_owned(), json!({ "value": value, "source": source.to_string() }))
            })
            .collect();
        print_json(&json!({
            "schema": "farmhand.config/1",
            "file": context.settings.file,
            "settings": settings,
        }))?;
        return Ok(Exit::Done);
    }
    match &context.settings.file {
        Some(file) => print(&format!("# file: {}", file.display()))?,
        None => {
            let place =
                default_file().map_or_else(String::new, |file| format!(" at {}", file.display()));
            print(&format!("# no file{place}"))?;
        }
    }
    let mut section = None;
    for (key, value, source) in context.settings.all() {
        let (in_section, name) = match key.split_once('.') {
            Some((section, name)) => (Some(section), name),
            None => (None, key),
        };
        if section != in_section {
            section = in_section;
            print(&format!("\n[{}]", section.unwrap_or_default()))?;
        }
        match value {
            // A comment, because what is shown can be read back.
            Some(value) if key == "token" => print(&format!("# {name} = {value}  # {source}"))?,
            Some(value) => print(&format!("{name} = {value}  # {source}"))?,
            None => print(&format!("# {name} is not set"))?,
        }
    }
    Ok(Exit::Done)
}

/// Whatever is wrong has ended the program before it comes here.
fn check(context: &Context) -> Result<Exit, Failure> {
    let file = &context.settings.file;
    if context.json {
        print_json(&json!({ "schema": "farmhand.config-check/1", "file": file, "valid": true }))?;
    } else {
        match file {
            Some(file) => print(&format!("{} is valid", file.display()))?,
            None => {
                print("there is no configuration file; the defaults and the environment are valid")?
            }
        }
    }
    Ok(Exit::Done)
}
