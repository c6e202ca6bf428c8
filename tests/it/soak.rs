//! The soak program: random changes of a watched folder, agent and server killed at random moments.
//! Every checkout must equal the folder byte for byte.
//!
//! A few rounds run with the other tests. For longer, and again with the seed that it prints:
//!
//! ```text
//! SOAK_SECONDS=900 cargo test --release --test it -- --exact soak::checkouts_equal_the_folder --nocapture
//! SOAK_SEED=7 cargo test --test it -- --exact soak::checkouts_equal_the_folder --nocapture
//! ```

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use fastrand::Rng;
use serde_json::Value;

use crate::{
    common::farmhand,
    mounts,
    watch::{AgentProcess, Restarted},
};

/// Rounds where no time is asked for. Each ends in one checkout that is compared.
const ROUNDS: u32 = 4;

/// Changes in one round, at most.
const CHANGES: usize = 300;

/// Tries of one checkout: all but the last one may have agent or server killed meanwhile.
const TRIES: usize = 4;

#[derive(Debug, Default)]
struct Counts {
    rounds: u32,
    changes: u64,
    failed_changes: u64,
    mounts: u64,
    unmounts: u64,
    agent_kills: u64,
    server_kills: u64,
    compared: u64,
    compared_files: u64,
    failed_checkouts: u64,
    from_the_agent: u64,
    waits: u64,
}

#[test]
fn checkouts_equal_the_folder() {
    mounts::in_namespace("soak::checkouts_equal_the_folder", |has_mounts| {
        let number = |name| Some(std::env::var(name).ok()?.parse::<u64>().unwrap());
        let seed = number("SOAK_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
        let time = number("SOAK_SECONDS").map(Duration::from_secs);
        eprintln!("soak: SOAK_SEED={seed}, mounts: {has_mounts}");
        let begin = Instant::now();
        let mut soak = Soak::new(seed, has_mounts);
        let goes_on = |soak: &Soak| match time {
            Some(time) => begin.elapsed() < time,
            None => soak.counts.rounds < ROUNDS,
        };
        while goes_on(&soak) {
            soak.round();
            if soak.counts.rounds.is_multiple_of(50) {
                eprintln!("soak: {:.0} s: {:?}", begin.elapsed().as_secs_f64(), soak.counts);
            }
        }
        eprintln!("soak: {:.0} s: {:?}", begin.elapsed().as_secs_f64(), soak.counts);
        assert!(soak.counts.compared >= u64::from(soak.counts.rounds) && soak.counts.rounds > 0);
    });
}

struct Soak {
    random: Rng,
    seed: u64,
    counts: Counts,
    has_mounts: bool,
    agent: Option<AgentProcess>,
    server: Restarted,
    project: PathBuf,
    /// Files that other names lead to from outside the project.
    outside: PathBuf,
    /// Dropped last.
    home: tempfile::TempDir,
}

impl Drop for Soak {
    fn drop(&mut self) {
        self.agent = None;
        self.server.kill();
        for point in self.mount_points().into_iter().rev() {
            unmount(&point, true);
        }
    }
}

impl Soak {
    fn new(seed: u64, has_mounts: bool) -> Self {
        let home = tempfile::tempdir().unwrap();
        let (project, outside) = (home.path().join("project"), home.path().join("outside"));
        fs::create_dir(&project).unwrap();
        fs::create_dir(&outside).unwrap();
        let mut server = Restarted::new(home.path());
        server.start();
        Self {
            random: Rng::with_seed(seed),
            seed,
            counts: Counts::default(),
            has_mounts,
            agent: None,
            server,
            project,
            outside,
            home,
        }
    }

    fn one_in(&mut self, number: u32) -> bool {
        self.random.u32(..number) == 0
    }

    /// Changes, kills, and a checkout of the result.
    fn round(&mut self) {
        self.counts.rounds += 1;
        let changes = self.random.usize(1..=CHANGES);
        for _ in 0..changes {
            self.change();
            if self.one_in(60) {
                self.kill_one();
            }
            if self.one_in(40) {
                self.start_all();
            }
            if self.one_in(30) {
                // Time for the agent to be in the middle of something.
                thread::sleep(Duration::from_millis(self.random.u64(..200)));
            }
        }
        // Half of the checkouts come at once, the others when the agent may have come to rest.
        if self.random.bool() {
            thread::sleep(Duration::from_millis(self.random.u64(..1500)));
        }
        self.check();
        // The agent knows the folder now, and must notice any single change.
        if self.random.bool() {
            for _ in 0..self.random.u8(1..6) {
                self.change();
                self.check();
            }
        }
    }

    fn kill_one(&mut self) {
        if self.random.bool() {
            self.counts.agent_kills += u64::from(self.agent.is_some());
            // It is killed when it is dropped, as is the server.
            self.agent = None;
        } else {
            self.counts.server_kills += u64::from(self.server.is_running());
            self.server.kill();
        }
    }

    fn start_all(&mut self) {
        if !self.server.is_running() {
            self.server.start();
        }
        if self.agent.is_none() {
            let url = self.server.url();
            self.agent = Some(AgentProcess::start(self.home.path(), &[&self.project], &url, &[]));
        }
    }

    /// One checkout, tried again if it fails because of a kill, equals the folder.
    fn check(&mut self) {
        let expected = folder(&self.project);
        let is_waited_for = self.one_in(4);
        if is_waited_for {
            self.start_all();
            self.wait();
        }
        for number in 1..=TRIES {
            // Mostly with an agent.
            if !self.one_in(8) {
                self.start_all();
            } else if !self.server.is_running() {
                self.server.start();
            }
            let is_last = number == TRIES;
            let is_disturbed = !is_last && !is_waited_for && self.one_in(3);
            let Some((answer, log)) = self.checkout(is_disturbed) else {
                self.counts.failed_checkouts += 1;
                assert!(is_disturbed, "seed {}: a checkout failed by itself", self.seed);
                continue;
            };
            let path =
                self.server.storage.join("jobs").join(answer["checkout_path"].as_str().unwrap());
            self.compare(&expected, &folder(&path));
            if is_waited_for {
                assert_eq!(answer["uploaded_files"], 0, "seed {}: after a wait", self.seed);
            }
            self.counts.from_the_agent += u64::from(log.contains("was_known=true"));
            return;
        }
        unreachable!("the last try was not disturbed");
    }

    /// What `checkout` answers and logs; `None` if it fails. If it is disturbed, agent or server is
    /// killed meanwhile.
    fn checkout(&mut self, is_disturbed: bool) -> Option<(Value, String)> {
        let mut command = farmhand(self.home.path());
        command.arg("checkout").arg(&self.project).args(["--json", "-v"]);
        command.args(["--server", &self.server.url()]);
        // A server that is killed does not come back by itself.
        command.env("FARMHAND_UPLOAD_RETRIES", "0");
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if is_disturbed {
            thread::sleep(Duration::from_millis(self.random.u64(..150)));
            self.kill_one();
        }
        let output = child.wait_with_output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        // 3: broken links and the like were left out.
        if !matches!(output.status.code(), Some(0 | 3)) {
            if !is_disturbed {
                eprintln!("{log}");
            }
            return None;
        }
        Some((serde_json::from_slice(&output.stdout).unwrap(), log))
    }

    fn wait(&mut self) {
        self.counts.waits += 1;
        let mut command = farmhand(self.home.path());
        command.arg("wait").arg(&self.project).args(["--timeout", "60s"]);
        let output = command.args(["--server", &self.server.url()]).output().unwrap();
        let is_done = matches!(output.status.code(), Some(0 | 3));
        assert!(is_done, "seed {}: {output:?}", self.seed);
    }

    fn compare(&mut self, expected: &Files, found: &Files) {
        self.counts.compared += 1;
        self.counts.compared_files += expected.len() as u64;
        let paths: Vec<_> = expected.keys().chain(found.keys()).collect();
        let differ = paths.into_iter().filter(|path| expected.get(*path) != found.get(*path));
        let differ: Vec<_> = differ
            .map(|path| {
                let length = |files: &Files| files.get(path).map(Vec::len);
                format!(
                    "{path}: {:?} in the folder, {:?} in the checkout",
                    length(expected),
                    length(found)
                )
            })
            .collect();
        assert!(
            differ.is_empty(),
            "SOAK_SEED={}, round {}: {differ:#?}\n{:?}\nagent: {}",
            self.seed,
            self.counts.rounds,
            self.counts,
            self.agent.as_ref().map(AgentProcess::log).unwrap_or_default()
        );
    }

    /// A path of the project, of one to four parts, that may exist or not.
    fn path(&mut self) -> PathBuf {
        let depth = self.random.usize(1..=4);
        let mut path = self.project.clone();
        for level in 0..depth {
            let prefix = if level + 1 == depth { 'f' } else { 'd' };
            path.push(format!("{prefix}{}", self.random.u8(..6)));
        }
        path
    }

    /// A directory of the project, that may exist or not.
    fn dir(&mut self) -> PathBuf {
        let depth = self.random.usize(1..=3);
        (0..depth)
            .fold(self.project.clone(), |path, _| path.join(format!("d{}", self.random.u8(..6))))
    }

    fn content(&mut self) -> Vec<u8> {
        let size = match self.random.u8(..50) {
            0 => self.random.usize(..2 << 20),
            1..5 => 0,
            5..20 => 7,
            _ => self.random.usize(..4 << 10),
        };
        let mut content = vec![0; size];
        // Some contents come again.
        let mut source = match self.random.bool() {
            true => Rng::with_seed(self.random.u64(..20)),
            false => self.random.fork(),
        };
        source.fill(&mut content);
        content
    }

    fn change(&mut self) {
        let result = self.try_change();
        self.counts.changes += 1;
        // What stands in the way of a change was made by others.
        self.counts.failed_changes += u64::from(result.is_err());
    }

    fn try_change(&mut self) -> io::Result<()> {
        let path = self.path();
        match self.random.u8(..100) {
            0..30 => {
                let content = self.content();
                fs::create_dir_all(path.parent().unwrap())?;
                fs::write(path, content)
            }
            30..38 => {
                let content = self.content();
                fs::File::options().append(true).open(path)?.write_all(&content)
            }
            38..44 => {
                let file = fs::File::options().write(true).open(path)?;
                let length = file.metadata()?.len();
                file.set_len(self.random.u64(..=length + 10))
            }
            44..52 => {
                // As programs save: beside it, then renamed.
                let beside = path.with_extension("tmp");
                let content = self.content();
                fs::write(&beside, content)?;
                fs::rename(beside, path)
            }
            52..60 => {
                let to = self.path();
                fs::rename(path, to)
            }
            60..67 => {
                let (from, to) = (self.dir(), self.dir());
                fs::create_dir_all(to.parent().unwrap())?;
                fs::rename(from, to)
            }
            67..73 => fs::remove_file(path),
            73..76 => fs::remove_dir_all(self.dir()),
            76..79 => fs::create_dir_all(self.dir()),
            79..83 => {
                let target = match self.random.bool() {
                    true => self.path(),
                    false => self.outside_file(),
                };
                symlink(target, path)
            }
            83..86 => {
                let other = self.path();
                fs::hard_link(other, path)
            }
            86..89 => {
                // Another name outside, of a file inside or the other way round.
                let outside = self.outside_file();
                let _ = fs::remove_file(if self.random.bool() { &outside } else { &path });
                fs::hard_link(&path, &outside).or_else(|_| fs::hard_link(&outside, &path))
            }
            89..94 => {
                let (outside, content) = (self.outside_file(), self.content());
                fs::write(outside, content)
            }
            94..96 => fs::remove_file(self.outside_file()),
            _ if !self.has_mounts => Ok(()),
            96..98 => self.mount(),
            _ => {
                let points = self.mount_points();
                let Some(point) = self.random.choice(points) else { return Ok(()) };
                let is_lazy = self.one_in(3);
                if unmount(&point, is_lazy) {
                    self.counts.unmounts += 1;
                }
                // An exchange.
                if self.random.bool() { self.mount_at(&point) } else { Ok(()) }
            }
        }
    }

    fn outside_file(&mut self) -> PathBuf {
        self.outside.join(format!("o{}", self.random.u8(..5)))
    }

    fn mount(&mut self) -> io::Result<()> {
        let dir = self.dir();
        // A few at once.
        if self.mount_points().len() >= 4 || !dir.is_dir() {
            return Ok(());
        }
        self.mount_at(&dir)
    }

    fn mount_at(&mut self, dir: &Path) -> io::Result<()> {
        let mut command = Command::new("mount");
        if self.random.bool() {
            command.args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"]);
        } else {
            // A directory that is elsewhere, too.
            let elsewhere = self.outside.join(format!("bound{}", self.random.u8(..2)));
            fs::create_dir_all(&elsewhere)?;
            fs::write(elsewhere.join(format!("f{}", self.random.u8(..6))), self.content())?;
            command.arg("--bind").arg(elsewhere);
        }
        let status = command.arg(dir).stderr(Stdio::null()).status()?;
        if !status.success() {
            return Err(io::ErrorKind::Other.into());
        }
        self.counts.mounts += 1;
        // Mostly something is in it.
        let content = self.content();
        fs::write(dir.join(format!("f{}", self.random.u8(..6))), content)
    }

    /// Where something is mounted in the project, outer ones first.
    fn mount_points(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        points.filter(|point| point.starts_with(&self.project)).collect()
    }
}

fn unmount(point: &Path, is_lazy: bool) -> bool {
    let mut command = Command::new("umount");
    command.args(is_lazy.then_some("-l")).arg(point).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

type Files = BTreeMap<String, Vec<u8>>;

/// All files of a folder, links to files followed, links to directories and to nothing left out.
fn folder(root: &Path) -> Files {
    let mut files = Files::new();
    for entry in walkdir::WalkDir::new(root) {
        let entry = entry.unwrap();
        if fs::metadata(entry.path()).is_ok_and(|found| found.is_file()) {
            let path = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            files.insert(path, fs::read(entry.path()).unwrap());
        }
    }
    files
}
