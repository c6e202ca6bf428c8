//! `farmhand store …`: operations on a store, through its server or in a directory.

use std::{path::PathBuf, sync::Arc};

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Context,
    exit::{Exit, Failure},
    hash::escaped,
    job::Then,
    print, print_json,
    session::Session,
    settings::{Overrides, parse_time},
};
use crate::{
    client::EraseRequest,
    domain::{
        BlobId, CheckoutPath, Digest,
        report::{Amount, Done, Erased, GcReport, ScrubReport, Usage, UsageOf, VerifyReport, Why},
    },
    meter::{Phase, Progress},
    store,
    wire::{GcRequest, ScrubRequest, VerifyRequest},
};

/// Look after a store: what is in it, what may go, whether it is whole
///
/// With --server through a running farmhand, with --storage in a directory that nobody serves.
#[derive(Debug, Args)]
pub(super) struct Store {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Store")]
struct Place {
    /// The farmhand that serves the store, like http://farm:8080/
    #[arg(long, value_name = "URL", conflicts_with = "storage", global = true)]
    server: Option<String>,

    /// The directory of the store
    #[arg(long, value_name = "DIR", global = true)]
    storage: Option<PathBuf>,

    /// Trust these root certificates (PEM) too when connecting to a server
    #[arg(long, value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List all checkouts
    List,
    /// Show what fills the store, by folder and checkout
    ///
    /// OWN is what no other has: what there is to gain when it is erased and its blobs have aged.
    Du,
    /// Delete checkouts. Their blobs stay stored until they are garbage
    ///
    /// Only the files that farmhand created are removed: frames that were rendered there stay where they are, and
    /// are listed.
    Erase {
        /// The checkouts, as `list` shows them
        #[arg(required = true, value_name = "CHECKOUT")]
        checkouts: Vec<String>,
        /// Also checkouts that a queued or running job uses, and those that are not on record
        #[arg(long)]
        force: bool,
        /// Remove the files that farmhand did not create, too
        #[arg(long)]
        with_outputs: bool,
        /// Remove nothing, and say what would be removed
        #[arg(long)]
        dry_run: bool,
    },
    /// Check that checkouts are whole
    ///
    /// Every link must lead to a stored blob, and all files be there that were there at first. Exit
    /// code 9 if something is wrong.
    Verify {
        /// The checkout [default: all]
        checkout: Option<String>,
        /// Read all blobs, too
        #[arg(long)]
        deep: bool,
    },
    /// Remove the blobs that nobody needs
    ///
    /// Kept is what checkouts hold, what is pinned, what is being sent, and what has been sent or asked
    /// for within the maximal age, of which six hours count in any case.
    Gc {
        /// Only say what would be removed
        #[arg(long)]
        dry_run: bool,
        /// How long a blob must not have been needed [default: store.max_age of the server]
        #[arg(long, value_name = "TIME")]
        max_age: Option<String>,
    },
    /// Fetch a file by its SHA-256 and size, and check it
    ///
    /// A connection that breaks is taken up again where it broke. Exit code 9 if what comes is not what it
    /// should be: FILE is as it was then.
    Get {
        /// Its SHA-256
        #[arg(value_name = "SHA256")]
        digest: Digest,
        /// Its size in bytes
        #[arg(value_name = "SIZE")]
        size: u64,
        /// Where to write it; what stands there is replaced once all has come [default: standard output]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// List the files of a checkout: SHA-256, size and path
    Manifest {
        /// The checkout, as `list` shows it
        checkout: String,
    },
    /// Say why a blob is kept, or when it may go, with the checkouts that hold it
    Why {
        /// Its SHA-256
        #[arg(value_name = "SHA256")]
        digest: Digest,
    },
    /// Keep blobs whether checkouts hold them or not; without arguments, list those that are kept so
    Pin {
        /// Their SHA-256
        #[arg(value_name = "SHA256")]
        digests: Vec<Digest>,
    },
    /// Keep blobs no longer than others
    Unpin {
        /// Their SHA-256
        #[arg(required = true, value_name = "SHA256")]
        digests: Vec<Digest>,
    },
    /// Read all blobs again, and take out of the way what has changed
    ///
    /// What is no longer what its name says goes to file-store/quarantine, and is asked for again at
    /// the next sync; the checkouts that hold it are whole then. A blob that cannot be read is
    /// reported and left alone. Goes on where the last scrub was stopped. Exit code 9 if something
    /// was found.
    Scrub {
        /// How much to read in a second at most, like 100MiB/s
        #[arg(long, value_name = "RATE")]
        rate: Option<String>,
        /// Begin with the first blob
        #[arg(long)]
        from_start: bool,
    },
    /// Take over the storage of another Shaman server: check it, and report
    ///
    /// Stop that server first. All blobs are read; what is not what its name says goes to quarantine.
    /// Blobs are made read-only. Nothing else changes: the other server could go on with it.
    Adopt {
        /// The storage directory, with `file-store` and `jobs` in it
        dir: PathBuf,
        /// Only look at names and checkouts; the blobs are read by scrubs later
        #[arg(long)]
        quick: bool,
    },
}

impl Store {
    pub fn overrides(&self, overrides: &mut Overrides) {
        overrides.set("server", "--server", self.place.server.as_ref());
        let dir = match &self.action {
            Action::Adopt { dir, .. } => Some(dir),
            _ => self.place.storage.as_ref(),
        };
        overrides.set_path("storage", "--storage", dir);
        overrides.set_path("ca", "--ca", self.place.ca.as_ref());
        // Nothing is hashed here.
        overrides.set("scan.cache", "store", Some(false));
    }

    pub async fn run(self, context: &Context) -> Result<Exit, Failure> {
        if let Action::Adopt { dir, quick } = self.action {
            return adopt(context, dir, quick).await;
        }
        if context.settings.server().is_none() {
            context.settings.require_target()?;
            let dir = context.settings.storage()?;
            if !dir.join("file-store/stored").is_dir() {
                let message = format!(
                    "there is no store in {}; give its directory with --storage, or its server with \
                     --server",
                    dir.display()
                );
                return Err(Failure::new(Exit::Missing, message));
            }
        }
        let action = self.action;
        Session::run(context, async |session| action.run(context, session).await).await
    }
}

impl Action {
    async fn run(self, context: &Context, session: &mut Session) -> Result<Exit, Failure> {
        let client = &session.client;
        let progress = session.scans.progress.clone();
        let show = |done: Done| show(&progress, done);
        match self {
            Self::List => {
                let checkouts = client.checkouts().await?;
                if context.json {
                    return json_answer("list", &json!({ "checkouts": checkouts }));
                }
                for info in checkouts {
                    let created = info.created_s.map_or_else(|| "-".into(), time);
                    let bytes = info.bytes.map_or_else(|| "-".into(), size);
                    let gone = if info.gone { "  (its directory is gone)" } else { "" };
                    let files = info.files;
                    print(&format!("{created:20}  {files:>8}  {bytes:>10}  {}{gone}", info.path))?;
                }
                Ok(Exit::Done)
            }
            Self::Du => {
                let usage = client.usage().await?;
                if context.json { json_answer("du", &usage) } else { print_usage(&usage) }
            }
            Self::Erase { checkouts, force, with_outputs, dry_run } => {
                let paths = checkouts.iter().map(|path| checkout_path(path));
                for path in paths.collect::<Result<Vec<_>, _>>()? {
                    let request = EraseRequest { force, with_outputs, dry_run };
                    let erased = client.erase(&path, request).await?;
                    if context.json {
                        json_answer("erase", &erased)?;
                        continue;
                    }
                    let Erased { path, files, directories, outputs, .. } = &erased;
                    let would = if dry_run { "would erase" } else { "erased" };
                    print(&format!("{would} {path}: {files} files, {directories} directories"))?;
                    let place = format!("below jobs/{path}");
                    let then = match with_outputs {
                        true => Then::Removed,
                        false if dry_run => Then::Stay,
                        false => Then::Stayed,
                    };
                    let left = super::job::outputs(outputs, &place, then);
                    left.iter().try_for_each(|line| print(line))?;
                }
                Ok(Exit::Done)
            }
            Self::Verify { checkout, deep } => {
                if let Some(path) = &checkout {
                    checkout_path(path)?;
                }
                let report = client.verify(&VerifyRequest { checkout, deep }, show).await?;
                print_verify(context, &report)
            }
            Self::Gc { dry_run, max_age } => {
                let max_age = max_age.map(|text| parse_time(&text)).transpose().map_err(usage)?;
                let max_age_s = max_age.map(|age| age.as_secs());
                let report = client.gc(&GcRequest { dry_run, max_age_s }, show).await?;
                print_gc(context, &report)
            }
            Self::Get { digest, size: size_bytes, output } => {
                let id = BlobId { digest, size_bytes };
                let output = output.filter(|file| file.as_os_str() != "-");
                super::fetch::get(context, session, id, output).await
            }
            Self::Manifest { checkout } => {
                let manifest = client.manifest(&checkout_path(&checkout)?).await?;
                if context.json {
                    return json_answer("manifest", &manifest);
                }
                manifest.files.iter().try_for_each(|file| {
                    print(&format!("{}  {}  {}", file.sha, file.size, escaped(&file.path)))
                })?;
                Ok(Exit::Done)
            }
            Self::Why { digest } => print_why(context, &client.why(&digest).await?),
            Self::Pin { digests } if digests.is_empty() => {
                let pins = client.pins().await?;
                if context.json {
                    return json_answer("pins", &pins);
                }
                pins.pins.iter().try_for_each(|digest| print(&digest.to_string()))?;
                Ok(Exit::Done)
            }
            Self::Pin { digests } => {
                for digest in &digests {
                    // A slip of the pen is not to be believed to be safe.
                    if client.why(digest).await?.blobs.is_empty() {
                        let message = format!("nothing is stored under {digest}: not pinned");
                        return Err(Failure::new(Exit::Missing, message));
                    }
                    let answer = client.pin(digest, true).await?;
                    if context.json {
                        json_answer("pin", &answer)?;
                    }
                }
                Ok(Exit::Done)
            }
            Self::Unpin { digests } => {
                let mut exit = Exit::Done;
                for digest in &digests {
                    let answer = client.pin(digest, false).await?;
                    if context.json {
                        json_answer("unpin", &answer)?;
                    } else if !answer.changed {
                        eprintln!("farmhand: {digest} was not pinned");
                    }
                    if !answer.changed {
                        exit = Exit::Missing;
                    }
                }
                Ok(exit)
            }
            Self::Scrub { rate, from_start } => {
                let rate = rate.map(|text| parse_rate(&text)).transpose().map_err(usage)?;
                let report = client.scrub(&ScrubRequest { rate, from_start }, show).await?;
                if context.json {
                    json_answer("scrub", &report)?;
                } else {
                    print_scrub(&report)?;
                }
                Ok(if report.is_clean() { Exit::Done } else { Exit::Integrity })
            }
            Self::Adopt { .. } => unreachable!("BUG: run before"),
        }
    }
}

fn usage(message: String) -> Failure {
    Failure::new(Exit::Usage, message)
}

fn checkout_path(path: &str) -> Result<CheckoutPath, Failure> {
    path.parse().map_err(|error| usage(format!("{path:?} names no checkout: {error}")))
}

/// Reads `100MiB/s`, or without the `/s`.
fn parse_rate(text: &str) -> Result<u64, String> {
    let number = text.trim().trim_end_matches("/s");
    let rate = number.parse::<ByteSize>().ok().map(|size| size.as_u64());
    rate.filter(|rate| *rate > 0).ok_or_else(|| format!("{text:?} is no rate: write 100MiB/s"))
}

fn show(progress: &Progress, done: Done) {
    let before = progress.snapshot();
    if before.phase != Phase::Upkeep {
        progress.enter(Phase::Upkeep);
    }
    let before = progress.snapshot();
    progress.add_files(done.blobs.saturating_sub(before.files));
    progress.add_bytes(done.bytes.saturating_sub(before.bytes));
}

/// One object, with the name of its layout.
pub(super) fn json_answer(name: &str, answer: &impl Serialize) -> Result<Exit, Failure> {
    let failed = |error| Failure::new(Exit::Failed, format!("cannot write the results: {error}"));
    let mut object = serde_json::to_value(answer).map_err(failed)?;
    if let Value::Object(fields) = &mut object {
        fields.insert("schema".into(), format!("farmhand.store.{name}/1").into());
    }
    print_json(&object)?;
    Ok(Exit::Done)
}

fn time(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|s| Timestamp::from_second(s).ok());
    time.map_or_else(|| "-".into(), |time| time.to_string())
}

fn size(bytes: u64) -> String {
    ByteSize::b(bytes).to_string()
}

fn amount(name: &str, amount: Amount) -> Result<(), Failure> {
    print(&format!("{name:12} {:>10} blobs {:>12}", amount.blobs, size(amount.bytes)))
}

fn print_usage(usage: &Usage) -> Result<Exit, Failure> {
    amount("stored", usage.stored)?;
    amount("  held", usage.held)?;
    amount("  not held", usage.not_held)?;
    if usage.copies.blobs > 0 {
        amount("copies", usage.copies)?;
    }
    if usage.quarantined.blobs > 0 {
        amount("quarantined", usage.quarantined)?;
    }
    let table = |title: &str, rows: &[UsageOf]| {
        print("")?;
        print(&format!("{:>10}  {:>10}  {:>8}  {title}", "BYTES", "OWN", "FILES"))?;
        rows.iter().try_for_each(|row| {
            let (bytes, own) = (size(row.bytes), size(row.own_bytes));
            print(&format!("{bytes:>10}  {own:>10}  {:>8}  {}", row.files, row.path))
        })
    };
    if usage.folders.len() != usage.checkouts.len() {
        table("FOLDER", &usage.folders)?;
    }
    if !usage.checkouts.is_empty() {
        table("CHECKOUT", &usage.checkouts)?;
    }
    Ok(Exit::Done)
}

fn print_gc(context: &Context, report: &GcReport) -> Result<Exit, Failure> {
    if context.json {
        json_answer("gc", report)?;
    } else {
        amount("stored", report.stored)?;
        amount("  young", report.young)?;
        amount("  held", report.held)?;
        amount("  pinned", report.pinned)?;
        amount("  in use", report.in_use)?;
        amount(if report.dry_run { "would remove" } else { "removed" }, report.removed)?;
        if report.quarantined_removed.blobs > 0 {
            amount("quarantined", report.quarantined_removed)?;
        }
    }
    for error in &report.errors {
        tracing::error!("{error}");
    }
    if report.failed > 0 {
        let message = format!("{} blobs could not be removed; see above", report.failed);
        return Err(Failure::new(Exit::Failed, message));
    }
    Ok(Exit::Done)
}

fn print_scrub(report: &ScrubReport) -> Result<(), Failure> {
    amount(if report.complete { "read" } else { "stopped at" }, report.read)?;
    for bad in &report.quarantined {
        let line = format!("quarantined  {}: it was {} (in {})", bad.blob, bad.found, bad.moved_to);
        print(&line)?;
    }
    let findings = [
        ("unreadable", &report.unreadable),
        ("flickering", &report.flickering),
        ("no blob", &report.strays),
    ];
    for (name, found) in findings {
        found.iter().try_for_each(|text| print(&format!("{name:12} {text}")))?;
    }
    if !report.quarantined.is_empty() {
        print("What is quarantined is asked for at the next sync of a project that has it.")?;
    }
    Ok(())
}

fn print_verify(context: &Context, report: &VerifyReport) -> Result<Exit, Failure> {
    if context.json {
        json_answer("verify", report)?;
    } else {
        for problem in &report.problems {
            let slash = if problem.path.is_empty() { "" } else { "/" };
            print(&format!("{}{slash}{}: {}", problem.checkout, problem.path, problem.problem))?;
        }
        let (checkouts, files, wrong) = (report.checkouts, report.files, report.wrong);
        print(&format!("{checkouts} checkouts with {files} files: {wrong} problems"))?;
    }
    if report.wrong > 0 {
        return Ok(Exit::Integrity);
    }
    if !report.complete {
        let message =
            "it was stopped on the way, so it is not known whether all is well; run it again";
        return Err(Failure::new(Exit::Failed, message));
    }
    Ok(Exit::Done)
}

fn print_why(context: &Context, why: &Why) -> Result<Exit, Failure> {
    let exit = if why.blobs.is_empty() { Exit::Missing } else { Exit::Done };
    if context.json {
        json_answer("why", why)?;
        return Ok(exit);
    }
    for file in &why.quarantined {
        print(&format!("in quarantine: {file}"))?;
    }
    if why.pinned {
        print("pinned: kept until it is unpinned")?;
    }
    if why.blobs.is_empty() {
        print(&format!("nothing is stored under {}", why.digest))?;
    }
    for blob in &why.blobs {
        let needed = time(blob.needed_s);
        print(&format!("{}, last needed {needed}", size(blob.size_bytes)))?;
        if blob.in_flight {
            print("  kept: somebody is sending it")?;
        }
        if blob.holders > 0 {
            print(&format!("  kept: held in {} places", blob.holders))?;
            blob.held_by.iter().try_for_each(|path| print(&format!("    {path}")))?;
        } else if blob.other_names > 0 {
            print(&format!("  kept: its file has {} other names", blob.other_names))?;
        }
        if let Some(seconds) = blob.may_go_s {
            print(&format!("  nobody holds it: it may go from {} on", time(seconds)))?;
        }
    }
    Ok(exit)
}

/// Takes over a storage.
async fn adopt(context: &Context, dir: PathBuf, quick: bool) -> Result<Exit, Failure> {
    let options = context.settings.store_options();
    let work = Arc::new(store::Work::default());
    let stop = work.clone();
    let adopting = tokio::task::spawn_blocking(move || {
        let store = store::Store::adopt(&dir, options)?;
        let read_only = store.make_blobs_read_only(&work)?;
        let scrub = if quick {
            None
        } else {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            let options =
                store::ScrubOptions { rate: None, from_start: true, threads, gentle: false };
            Some(store.scrub(options, &work)?)
        };
        let checkouts = store.verify(None, false, &work)?;
        Ok::<_, Failure>((read_only, scrub, checkouts, store.usage()?))
    });
    let done = tokio::select! {
        done = adopting => done,
        () = super::session::interrupted() => {
            stop.stop();
            return Err(Failure::interrupted());
        }
    };
    let (read_only, scrub, checkouts, usage) =
        done.map_err(|error| Failure::new(Exit::Failed, format!("BUG: {error}")))??;
    let is_clean = scrub.as_ref().is_none_or(ScrubReport::is_clean) && checkouts.wrong == 0;
    if context.json {
        let answer = json!({
            "made_read_only": read_only, "scrub": scrub, "verify": checkouts, "usage": usage,
        });
        json_answer("adopt", &answer)?;
    } else {
        if let Some(scrub) = &scrub {
            print_scrub(scrub)?;
        }
        print(&format!("{read_only} blobs were made read-only"))?;
        print_verify(context, &checkouts)?;
        print_usage(&usage)?;
    }
    Ok(if is_clean { Exit::Done } else { Exit::Integrity })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_written_with_and_without_the_second() {
        assert_eq!(parse_rate("100MiB/s"), Ok(100 << 20));
        assert_eq!(parse_rate("5 MB"), Ok(5_000_000));
        for bad in ["", "0", "fast", "-1MiB", "/s"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }
}
