//! `farmhand conformance URL`

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{
    Context,
    exit::{Exit, Failure},
    print, print_json,
    settings::Overrides,
};
use crate::{
    conformance::{self, Level, Target, Verdict},
    wire::hide_tokens,
};

/// Check how well a server speaks Shaman
///
/// Prints a line for each check, and succeeds only if all hold. Leaves a few small blobs and
/// checkouts named farmhand-conformance-… behind.
#[derive(Debug, Args)]
pub(super) struct Conformance {
    /// The server, like http://farm:8080/
    url: String,

    /// How much to ask for; each level has the checks of those before it [default: core]
    #[arg(long, value_enum)]
    level: Option<Level>,

    /// Trust these root certificates (PEM) too
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// The server may be lost: needed for the level hostile, whose paths might make a bad server
    /// overwrite its own files, and chooses it if --level is not given
    #[arg(long)]
    expendable_server: bool,
}

impl Conformance {
    pub fn overrides(&self, overrides: &mut Overrides) {
        overrides.set_path("ca", "--ca", self.ca.as_ref());
    }

    pub async fn run(&self, context: &Context) -> Result<Exit, Failure> {
        let level = match (self.level, self.expendable_server) {
            (None, true) => Level::Hostile,
            (Some(Level::Hostile), false) => {
                return Err(Failure::new(
                    Exit::Usage,
                    "the level hostile may make a bad server overwrite its own files; if that one may \
                     be lost, add --expendable-server",
                ));
            }
            (level, _) => level.unwrap_or(Level::Core),
        };
        let target = Target::with(&self.url, context.settings.client_options()?)?;
        let results = tokio::select! {
            results = conformance::run(&target, level) => results?,
            () = super::session::interrupted() => return Err(Failure::interrupted()),
        };
        let failed = results.iter().filter(|r| matches!(r.verdict, Verdict::Fails(_))).count();
        if context.json {
            print_json(&json!({
                "schema": "farmhand.conformance/1",
                "url": hide_tokens(&self.url),
                "holds": failed == 0,
                "checks": results,
            }))?;
        } else {
            for result in &results {
                let (word, reason) = match &result.verdict {
                    Verdict::Holds => ("ok  ", None),
                    Verdict::Fails(reason) => ("FAIL", Some(reason)),
                    Verdict::Skipped(reason) => ("skip", Some(reason)),
                };
                let level = format!("{:?}", result.level).to_lowercase();
                let reason =
                    reason.map_or_else(String::new, |reason| format!("\n               {reason}"));
                print(&format!("{word}  {level:<7}  {}{reason}", result.name))?;
            }
            let held = results.iter().filter(|r| r.verdict == Verdict::Holds).count();
            print(&format!(
                "{held} hold, {failed} fail, {} skipped",
                results.len() - held - failed
            ))?;
        }
        Ok(if failed == 0 { Exit::Done } else { Exit::Failed })
    }
}
