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
mod fixture;
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
    use std::{fs, path::PathBuf};

    use bytesize::ByteSize;
    use clap::Parser;

    use crate::{
        measure,
        rows::{self, Bench, RowName, Sizes},
    };

    /// Measures farmhand against the floor of each job.
    #[derive(Debug, Parser)]
    #[command(name = "scenario")]
    struct Cli {
        /// A row to run; can be given more than once [default: all but memory]
        #[arg(long = "row", value_name = "NAME")]
        rows: Vec<RowName>,

        /// All rows, also memory, which needs as much space as its file is long
        #[arg(long)]
        all: bool,

        /// Where to work: best on a tmpfs or a fresh file system [default: the directory for temporary files]
        #[arg(long)]
        dir: Option<PathBuf>,

        /// How often each program of a row runs
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        repeat: u32,

        /// Small sizes: only shows that everything works
        #[arg(long)]
        quick: bool,

        /// Print the table as Markdown
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

    pub fn main() {
        let cli = Cli::parse();
        // Unoptimised figures mean nothing. `cargo test --all-targets` comes by here.
        let quick = cli.quick || cfg!(debug_assertions);
        let (sizes, repeat) = match quick {
            true => (Sizes::quick(), 1),
            false => (Sizes::full(cli.large.as_u64(), cli.memory.as_u64()), cli.repeat),
        };
        let wanted = match cli.rows {
            rows if !rows.is_empty() => rows,
            _ if cli.all => RowName::ALL.into(),
            _ => RowName::ALL.into_iter().filter(|row| *row != RowName::Memory).collect(),
        };
        let parent = cli.dir.unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new()
            .prefix("farmhand-bench-")
            .tempdir_in(&parent)
            .unwrap_or_else(|error| panic!("cannot work in {}: {error}", parent.display()));

        let load = || fs::read_to_string("/proc/loadavg").unwrap_or_default();
        println!("file system: {}", measure::file_system(dir.path()));
        println!("cores: {}", measure::cores());
        println!("repetitions: {repeat}, in turns; medians, with the least and the most");
        println!("load before: {}", load().trim());
        let bench = Bench { dir: dir.path().to_owned(), sizes, repeat };
        let rows: Vec<_> = wanted.into_iter().flat_map(|row| rows::run(row, &bench)).collect();
        println!("load after: {}\n", load().trim());
        print!("{}", measure::table(&rows, cli.markdown));
    }
}
