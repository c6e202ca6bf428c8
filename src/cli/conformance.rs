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
    conformance::{self, Target, Verdict},
    wire::hide_tokens,
};

/// Check how well a server speaks Shaman
///
/// Prints a line for each check, and succeeds only if all hold. Leaves a few small blobs and two
/// checkouts named farmhand-conformance-… behind.
#[derive(Debug, Args)]
pub(super) struct Conformance {
    /// The server, like http://farm:8080/
    url: String,

    /// Trust these root certificates (PEM) too
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// Also send paths that might make a bad server overwrite its own files
    #[arg(long)]
    expendable_server: bool,
}

impl Conformance {
    pub fn overrides(&self, overrides: &mut Overrides) {
        overrides.set_path("ca", "--ca", self.ca.as_ref());
    }

    pub async fn run(&self, context: &Context) -> Result<Exit, Failure> {
        let target = Target::with(&self.url, context.settings.client_options()?)?;
        let results = tokio::select! {
            results = conformance::run(&target, self.expendable_server) => results?,
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
