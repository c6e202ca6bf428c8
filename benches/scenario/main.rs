//! Each job of farmhand beside its floor: the same work done by the plainest program there can be.
//!
//! Absolute times are those of one machine on one day. What lasts is the ratio of a job to its floor,
//! both measured in the same run, in turns. `benches/RESULTS.md` holds results and says how they
//! were made.
//!
//! ```text
//! cargo bench --bench scenario -- --dir /dev/shm
//! ```
//!
//! Everything that is measured runs in a process of its own, so that CPU time and peak memory are
//! its own, too: servers and clients are the `farmhand` program, scans and floors are this program
//! run again to do one [`part::Part`]. A run works in a temporary directory and removes it.

#[cfg(unix)]
mod client;
#[cfg(unix)]
mod fixture;
#[cfg(unix)]
mod growth;
#[cfg(unix)]
mod http;
#[cfg(unix)]
mod less;
#[cfg(unix)]
mod measure;
#[cfg(unix)]
mod part;
#[cfg(unix)]
mod rows;
#[cfg(unix)]
mod server;
#[cfg(unix)]
mod store;

#[cfg(not(unix))]
fn main() {
    eprintln!("this benchmark reads /proc: it runs on Linux only");
}

#[cfg(unix)]
fn main() {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some(part::COMMAND) => {
            part::act(&arguments.next().expect("a part is described by one argument"));
        }
        // A test runner asks every target which tests it has.
        Some("--list") => {}
        _ => bench::main(),
    }
}

#[cfg(unix)]
mod bench {
    use std::{fs, path::PathBuf, process::Command};

    use bytesize::ByteSize;
    use clap::{CommandFactory as _, Parser, ValueEnum as _, error::ErrorKind};

    use crate::{
        growth, measure,
        rows::{Bench, Results, RowName, Sizes},
    };

    /// Measures farmhand against the floor of each job
    ///
    /// Without --row and --all, the rows that have a goal: uploads, resend, status, large, requirements, checkout,
    /// hash, rescan, push, define. Goals that depend on the kind of file system are those of the one
    /// that --dir is on.
    #[derive(Debug, Parser)]
    #[command(name = "scenario")]
    struct Cli {
        /// A row to run; can be given more than once [default: those that have a goal]
        #[arg(long = "row", value_name = "NAME")]
        rows: Vec<RowName>,

        /// All rows, also memory, which needs as much space as its file is long, and growth, which makes
        /// several million files
        #[arg(long)]
        all: bool,

        /// A Shaman server that runs already, like http://farm:8080/. The rows are then about that one instead
        /// of ours: uploads, resend, status, large, requirements, checkout, push. It is left with what it was
        /// sent. Floors are measured here
        #[arg(long, value_parser = address)]
        url: Option<String>,

        /// Where to work: best on a tmpfs or a fresh file system [default: the directory for temporary files]
        #[arg(long)]
        dir: Option<PathBuf>,

        /// How often each program of a row runs
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        repeat: u32,

        /// Small sizes: only shows that everything works
        #[arg(long)]
        quick: bool,

        /// Print the tables as Markdown
        #[arg(long)]
        markdown: bool,

        /// The size of the large upload
        #[arg(long, value_name = "SIZE", default_value = "2GiB")]
        large: ByteSize,

        /// The size of the file of the memory row
        #[arg(long, value_name = "SIZE", default_value = "10GiB")]
        memory: ByteSize,

        /// What `cargo bench` adds
        #[arg(long, hide = true)]
        bench: bool,
    }

    /// Address and port of a URL.
    fn address(url: &str) -> Result<String, String> {
        let rest = url.strip_prefix("http://").ok_or("only http:// can be measured")?;
        let (address, path) = rest.split_once('/').unwrap_or((rest, ""));
        if !path.is_empty() {
            return Err("only a server at the root can be measured, like http://farm:8080/".into());
        }
        Ok(if address.contains(':') { address.to_owned() } else { format!("{address}:80") })
    }

    impl Cli {
        fn wanted(&self) -> Vec<RowName> {
            let is_possible = |row: &RowName| self.url.is_none() || RowName::AT_URL.contains(row);
            if let Some(row) = self.rows.iter().find(|row| !is_possible(row)) {
                let name = row.to_possible_value().expect("no row is hidden");
                let message =
                    format!("{} is not about a server that runs already", name.get_name());
                Cli::command().error(ErrorKind::ArgumentConflict, message).exit();
            }
            let rows = match () {
                () if !self.rows.is_empty() => self.rows.as_slice(),
                () if self.all => RowName::value_variants(),
                () => &RowName::GOALS,
            };
            rows.iter().copied().filter(is_possible).collect()
        }
    }

    /// What was measured, if that can be told.
    fn commit() -> String {
        let mut git = Command::new("git");
        let git = git.args(["describe", "--always", "--exclude=*", "--dirty= (changed)"]);
        let said = git.current_dir(env!("CARGO_MANIFEST_DIR")).output().ok();
        said.filter(|said| said.status.success())
            .and_then(|said| String::from_utf8(said.stdout).ok())
            .map_or_else(|| "unknown".to_owned(), |commit| commit.trim().to_owned())
    }

    pub fn main() {
        let cli = Cli::parse();
        let wanted = cli.wanted();
        // Unoptimised figures mean nothing. `cargo test --all-targets` comes by here.
        let quick = cli.quick || cfg!(debug_assertions);
        let (sizes, repeat) = match quick {
            true => (Sizes::quick(), 1),
            false => (Sizes::full(cli.large.as_u64(), cli.memory.as_u64()), cli.repeat),
        };
        let parent = cli.dir.unwrap_or_else(std::env::temp_dir);
        let temporary = tempfile::Builder::new()
            .prefix("farmhand-bench-")
            .tempdir_in(&parent)
            .unwrap_or_else(|error| panic!("cannot work in {}: {error}", parent.display()));
        // Parts look names up from elsewhere.
        let dir = temporary.path().canonicalize().expect("it is there");

        let file_system = measure::file_system(&dir);
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let load_before = text("/proc/loadavg");
        let bench = Bench::new(dir, file_system == "tmpfs", sizes, repeat, cli.url.clone());
        let mut results = Results::default();
        wanted.into_iter().for_each(|row| results.run(row, &bench));

        let what = if quick { ", small sizes: these figures mean nothing" } else { "" };
        let facts = [
            ("commit", commit()),
            (
                "server",
                cli.url.map_or_else(|| "farmhand".to_owned(), |url| format!("http://{url}/")),
            ),
            ("file system", file_system),
            ("CPU", format!("{}, {} cores", measure::processor(), measure::cores())),
            ("kernel", text("/proc/sys/kernel/osrelease")),
            (
                "repetitions",
                format!("{repeat}, in turns; medians, with the least and the most{what}"),
            ),
            ("load before", load_before),
            ("load after", text("/proc/loadavg")),
        ];
        let facts: Vec<_> =
            facts.into_iter().map(|(name, fact)| vec![name.to_owned(), fact]).collect();
        let head = cli.markdown.then(|| vec![String::new(), String::new()]);
        let head: Vec<_> = head.into_iter().chain(facts).collect();
        println!("{}", measure::render(&head, &[0, 1], cli.markdown));
        if !results.rows.is_empty() {
            println!("{}", measure::table(&results.rows, cli.markdown));
        }
        if !results.growth.is_empty() {
            println!("{}", growth::table(&results.growth, cli.markdown));
        }
    }
}
