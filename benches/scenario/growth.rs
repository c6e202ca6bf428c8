//! What each file costs, by how many there are: it is to stay the same, or grow as the logarithm does.

use std::{fs, path::PathBuf, process::Stdio};

use crate::{
    client::{rest, run_client},
    fixture,
    http::{Server, farmhand},
    measure::{Sample, cores, grouped, render, settle, spread, verdict},
    part::{self, Part},
    rows::{Bench, Subject, on, remove},
    server::{checkout_request, one_request, requirements_body, requirements_request},
    store::{GARBAGE_DAYS, collected, make_held_store},
};

/// Below so many files, what a request costs in any case weighs too much.
const FEWEST: usize = 10_000;
/// The most runs of each; the largest take long.
const RUNS: u32 = 3;

/// One program's work for more and more files.
#[derive(Debug)]
pub struct Curve {
    job: &'static str,
    program: String,
    is_floor: bool,
    /// How many files there were, and the median of the times.
    points: Vec<(usize, f64)>,
}

/// What one program took once.
struct Took {
    job: &'static str,
    program: String,
    is_floor: bool,
    wall_s: f64,
}

pub fn curves(bench: &Bench) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    for &files in &bench.sizes.growth {
        eprintln!("growth, {} files …", grouped(files as f64));
        let input = Input::make(bench, files);
        let mut runs: Vec<Vec<Took>> =
            (0..bench.repeat.min(RUNS)).map(|_| all_jobs(bench, &input)).collect();
        input.remove();
        for (at, took) in runs.remove(0).into_iter().enumerate() {
            let others = runs.iter().map(|run| run[at].wall_s);
            let median_s = spread(others.chain([took.wall_s]).collect()).0;
            if at == curves.len() {
                let Took { job, program, is_floor, .. } = took;
                curves.push(Curve { job, program, is_floor, points: Vec::new() });
            }
            curves[at].points.push((files, median_s));
        }
    }
    curves
}

/// What is asked, for all runs.
struct Input {
    files: usize,
    /// A list of blobs that are stored, and one of others.
    known: PathBuf,
    unknown: PathBuf,
    /// A folder of blobs that are stored, and a cache that knows their hashes.
    folder: PathBuf,
    cache: PathBuf,
}

impl Input {
    fn make(bench: &Bench, files: usize) -> Self {
        let [known, unknown, folder, cache] =
            ["known.json", "unknown.json", "folder", "cache"].map(|name| bench.fresh(name));
        let list = |file, specs| fs::write(file, requirements_body(specs)).expect("cannot write");
        list(&known, fixture::file_specs(files, files));
        list(&unknown, fixture::unknown_specs(files));
        fixture::make_folder_of(&folder, files, fixture::blob_content);
        rest();
        let (root, filled) = (folder.clone(), Some(cache.clone()));
        Part::Scan { root, cache: filled, cached_files: 0 }.sample();
        Self { files, known, unknown, folder, cache }
    }

    fn remove(&self) {
        [&self.known, &self.unknown, &self.folder, &self.cache]
            .into_iter()
            .for_each(|path| remove(path));
    }
}

/// Each job once, ours and its floor one after the other, over a store of as many blobs as there are files.
fn all_jobs(bench: &Bench, input: &Input) -> Vec<Took> {
    let files = input.files;
    let storage = bench.fresh("storage");
    make_held_store(&storage, files, 0);
    let mut all = Vec::new();
    let mut note = |job, program: String, is_floor, run: &dyn Fn() -> Sample| {
        settle(&bench.dir);
        all.push(Took { job, program, is_floor, wall_s: run().wall_s });
    };
    let ask = |request: &[u8]| one_request(bench, (Subject::Full, &storage), request, 0).0;

    for (job, body) in
        [("requirements, known", &input.known), ("requirements, unknown", &input.unknown)]
    {
        let request = requirements_request(&fs::read(body).expect("cannot read the body"));
        note(job, "server".into(), false, &|| ask(&request));
        let (body, storage) = (body.clone(), storage.clone());
        let part = Part::ParseAndStat { body, storage, touch: false, from_open: true };
        note(job, format!("floor: parse + stat, {}", on(cores())), true, &|| part.sample());
    }

    const JOB: &str = "growth";
    let job = storage.join("jobs").join(JOB);
    let request = checkout_request(JOB, fixture::file_specs(files, files));
    note("checkout", "server".into(), false, &|| ask(&request));
    // The server would miss one that is only removed, and collect nothing.
    let erase = farmhand(&bench.dir)
        .args(["--quiet", "store", "erase", JOB, "--storage"])
        .arg(&storage)
        .stdout(Stdio::null())
        .status();
    assert!(erase.expect("cannot start farmhand").success());
    let part = Part::Link {
        storage: storage.clone(),
        job: JOB.into(),
        files,
        blobs: files,
        threads: cores(),
        sync: false,
        from_open: true,
    };
    let floor = format!("floor: mkdir + symlink, {}", on(cores()));
    note("checkout", floor, true, &|| part.sample());
    remove(&job);

    note("plan, nothing changed", "client".into(), false, &|| {
        let server = Server::farmhand(&bench.dir, &storage);
        let mut command = farmhand(&bench.dir);
        command.args(["--quiet", "plan", "--server", &server.url(), "--cache-dir"]);
        let (sample, said) = run_client(command.arg(&input.cache).arg(&input.folder), &server);
        let all_there = said.lines().any(|line| line.ends_with("already there"));
        assert!(all_there && said.lines().count() == 3, "not all is there: {said}");
        sample
    });
    let part = Part::WalkAndStat { root: input.folder.clone() };
    note("plan, nothing changed", "floor: walk + stat, 1 thread".into(), true, &|| part.sample());

    let specs = fixture::file_specs(files, files);
    part::each(cores(), files, |number| {
        let (_, blob) = fixture::blob_path(&storage, &specs[number].sha, specs[number].size);
        fixture::make_old(&blob, GARBAGE_DAYS);
    });
    note("gc --dry-run", "server".into(), false, &|| collected(bench, &storage, files, true));
    let part = Part::Collect { storage: storage.clone(), remove: false };
    note("gc --dry-run", format!("floor: list + stat, {}", on(cores())), true, &|| part.sample());
    note("gc, nine tenths garbage", "server".into(), false, &|| {
        collected(bench, &storage, files, false)
    });
    remove(&storage);
    all
}

/// Microseconds for each file; and how much more it is for the most files than for the fewest that count,
/// beside what n log n would make of it.
pub fn table(curves: &[Curve], markdown: bool) -> String {
    let Some(first) = curves.first() else { return String::new() };
    let from = first.points.iter().position(|(files, _)| *files >= FEWEST).unwrap_or(0);
    let (fewest, most) =
        (first.points[from].0 as f64, first.points[first.points.len() - 1].0 as f64);
    let bound = most.ln() / fewest.ln();
    let mut head = vec!["µs for each file".to_owned(), "program".to_owned()];
    head.extend(first.points.iter().map(|(files, _)| grouped(*files as f64)));
    head.push(format!("{} ÷ {}", grouped(most), grouped(fewest)));
    head.push("n log n".to_owned());
    let mut cells = vec![head];
    for curve in curves {
        let each_us: Vec<f64> =
            curve.points.iter().map(|(files, wall_s)| wall_s * 1e6 / *files as f64).collect();
        let growth = each_us[each_us.len() - 1] / each_us[from];
        let title = if curve.is_floor { "" } else { curve.job };
        let mut row = vec![title.to_owned(), curve.program.clone()];
        row.extend(each_us.iter().map(|us| format!("{us:.2}")));
        row.push(format!("{growth:.2}"));
        row.push(match curve.is_floor {
            true => String::new(),
            false => format!("≤ {bound:.2}: {}", verdict(growth <= bound)),
        });
        cells.push(row);
    }
    let last = cells[0].len() - 1;
    render(&cells, &[0, 1, last], markdown)
}
