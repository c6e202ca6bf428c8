//! Wall time, CPU time and memory of processes; medians; and the table.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags},
    time::{ClockId, clock_gettime},
};
use serde::{Deserialize, Serialize};

/// What one run of one program took. What is not there cannot be seen: the program runs elsewhere.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Sample {
    pub wall_s: f64,
    pub cpu_s: Option<f64>,
    pub peak_bytes: Option<u64>,
    /// The same of the other side, which runs on the same cores: of servers the load generator, of
    /// clients the server.
    pub other_cpu_s: Option<f64>,
    pub other_peak_bytes: Option<u64>,
}

/// What a row is counted in.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    Files(u64),
    Requests(u64),
    Bytes(u64),
    /// Nothing but the time.
    Moment,
}

/// What a program is to keep to.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// The median of its times.
    Seconds(f64),
    /// The least of a row's work in a second, at the median of its times.
    Rate(f64),
    /// The most memory it ever had.
    Bytes(u64),
    /// The median of its times, over that of the first floor.
    Ratio(f64),
}

impl Limit {
    /// For a line of this median and this peak.
    fn verdict(self, work: Work, wall_s: f64, peak_bytes: Option<u64>, floor_s: f64) -> String {
        let (text, is_met) = match self {
            Self::Seconds(limit) => (format!("≤ {limit} s"), Some(wall_s <= limit)),
            Self::Rate(limit) => {
                let (amount, unit) = work.amount();
                (format!("≥ {} {unit}", grouped(limit)), Some(amount / wall_s >= limit))
            }
            Self::Bytes(limit) => {
                (format!("≤ {} MiB", mib(limit)), peak_bytes.map(|peak| peak <= limit))
            }
            Self::Ratio(limit) => (format!("≤ {limit} × floor"), Some(wall_s <= limit * floor_s)),
        };
        match is_met {
            Some(is_met) => format!("{text}: {}", verdict(is_met)),
            None => format!("{text}: not seen"),
        }
    }
}

pub fn verdict(is_met: bool) -> &'static str {
    if is_met { "met" } else { "MISSED" }
}

impl Work {
    /// How much, and what a rate of it is called.
    fn amount(self) -> (f64, &'static str) {
        match self {
            Self::Files(files) => (files as f64, "files/s"),
            Self::Requests(requests) => (requests as f64, "requests/s"),
            Self::Bytes(bytes) => (mib(bytes), "MiB/s"),
            Self::Moment => (f64::NAN, ""),
        }
    }

    fn rate(self, seconds: f64) -> String {
        match self.amount() {
            (_, "") => String::new(),
            (amount, unit) => format!("{} {unit}", grouped(amount / seconds)),
        }
    }
}

/// One program that does the work of a row, once each time it is called.
pub struct Contender<'a> {
    name: String,
    limits: Vec<Limit>,
    run: Box<dyn FnMut() -> Sample + 'a>,
}

impl<'a> Contender<'a> {
    pub fn new(name: impl Into<String>, run: impl FnMut() -> Sample + 'a) -> Self {
        Self { name: name.into(), limits: Vec::new(), run: Box::new(run) }
    }

    pub fn within(mut self, limits: &[Limit]) -> Self {
        self.limits.extend(limits);
        self
    }
}

/// A program and what its runs took.
#[derive(Debug)]
pub struct Line {
    pub name: String,
    pub samples: Vec<Sample>,
    /// Floors are what the others are compared with.
    pub is_floor: bool,
    pub limits: Vec<Limit>,
}

/// One piece of work, done by farmhand and by floors.
#[derive(Debug)]
pub struct Row {
    pub title: String,
    pub work: Work,
    pub lines: Vec<Line>,
}

/// Runs ours and the floors in turns, so that whatever else the machine does hits all of them.
pub fn compare(
    title: impl Into<String>,
    work: Work,
    (dir, repeat): (&Path, u32),
    ours: Vec<Contender<'_>>,
    floors: Vec<Contender<'_>>,
) -> Row {
    let title = title.into();
    eprintln!("{title} …");
    let own = ours.len();
    let mut contenders: Vec<_> = ours.into_iter().chain(floors).collect();
    let mut lines: Vec<Line> = contenders
        .iter()
        .enumerate()
        .map(|(at, contender)| Line {
            name: contender.name.clone(),
            samples: Vec::new(),
            is_floor: at >= own,
            limits: contender.limits.clone(),
        })
        .collect();
    for _ in 0..repeat {
        for (contender, line) in contenders.iter_mut().zip(&mut lines) {
            settle(dir);
            line.samples.push((contender.run)());
        }
    }
    Row { title, work, lines }
}

/// Has everything written that earlier runs have left to be written.
pub fn settle(dir: &Path) {
    let dir = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
    rustix::fs::syncfs(dir.expect("cannot open the working directory"))
        .expect("cannot sync the working directory");
}

/// Measures work of this process. Memory counts as it is from here on.
pub fn timed(work: impl FnOnce()) -> Sample {
    // "Resets the peak resident set size": proc_pid_clear_refs(5).
    let _ = fs::write("/proc/self/clear_refs", "5");
    let (start, cpu) = (Instant::now(), own_cpu_s());
    work();
    let wall_s = start.elapsed().as_secs_f64();
    let cpu_s = own_cpu_s() - cpu;
    let peak_bytes = peak_bytes(std::process::id());
    Sample { wall_s, cpu_s: Some(cpu_s), peak_bytes, ..Sample::default() }
}

/// CPU time of this process, all threads.
pub fn own_cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or(0))
        .as_secs_f64()
}

/// CPU time of another process, all threads, in steps of 10 ms; `None` if it is gone.
pub fn cpu_s(pid: u32) -> Option<f64> {
    const TICKS_A_SECOND: f64 = 100.0; // USER_HZ, the same on every Linux
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it, in brackets, may hold anything. utime and stime are the fields 14 and 15.
    let fields = stat.rsplit_once(')')?.1;
    let ticks: Vec<f64> =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    Some(ticks.iter().sum::<f64>() / TICKS_A_SECOND)
}

/// The most memory a process has ever had (`VmHWM`); `None` if it is gone.
pub fn peak_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The type of the file system that a directory is on.
pub fn file_system(dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (point, kind) = (fields.next()?, fields.next()?);
            dir.starts_with(point).then_some((point.len(), kind))
        })
        .max_by_key(|(length, _)| *length)
        .map_or_else(|| "unknown".to_owned(), |(_, kind)| kind.to_owned())
}

pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The processor, as it calls itself.
pub fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| "unknown".to_owned(), |(_, model)| model.to_owned())
}

/// The middle one, the least and the most.
pub fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
    ((low + high) / 2.0, values[0], values[values.len() - 1])
}

/// A whole number with its thousands apart.
pub fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn millis(seconds: f64) -> String {
    let ms = seconds * 1e3;
    if ms < 1.0 {
        format!("{ms:.3}")
    } else if ms < 100.0 {
        format!("{ms:.1}")
    } else {
        grouped(ms)
    }
}

/// A figure and, in brackets, that of the other side.
fn with_other(figure: Option<String>, other: Option<String>) -> String {
    let figure = figure.unwrap_or_else(|| "–".to_owned());
    other.map_or_else(|| figure.clone(), |other| format!("{figure} (+{other})"))
}

impl Line {
    fn wall_s(&self) -> (f64, f64, f64) {
        spread(self.samples.iter().map(|sample| sample.wall_s).collect())
    }

    /// The median, if it could be seen.
    fn cpu(&self, value: impl Fn(&Sample) -> Option<f64>) -> Option<String> {
        let values: Option<Vec<f64>> = self.samples.iter().map(value).collect();
        values.map(|values| format!("{:.2}", spread(values).0))
    }

    fn peak_bytes(&self, value: impl Fn(&Sample) -> Option<u64>) -> Option<u64> {
        self.samples.iter().filter_map(value).max()
    }

    fn cells(&self, title: String, work: Work, ours_s: &[f64], floor_s: f64) -> Vec<String> {
        let (wall_s, min_s, max_s) = self.wall_s();
        let peak = self.peak_bytes(|sample| sample.peak_bytes);
        let other_peak = self.peak_bytes(|sample| sample.other_peak_bytes);
        let whole_mib = |bytes: u64| format!("{:.0}", mib(bytes));
        let ratios = ours_s.iter().map(|ours_s| format!("{:.2}", ours_s / wall_s));
        let verdicts = self.limits.iter().map(|limit| limit.verdict(work, wall_s, peak, floor_s));
        vec![
            title,
            self.name.clone(),
            millis(wall_s),
            format!("{}–{}", millis(min_s), millis(max_s)),
            work.rate(wall_s),
            with_other(self.cpu(|sample| sample.cpu_s), self.cpu(|sample| sample.other_cpu_s)),
            with_other(peak.map(whole_mib), other_peak.map(whole_mib)),
            if self.is_floor { ratios.collect::<Vec<_>>().join(" / ") } else { String::new() },
            verdicts.collect::<Vec<_>>().join("; "),
        ]
    }
}

/// All rows. A floor's ratios are those of each program of ours, in their order.
pub fn table(rows: &[Row], markdown: bool) -> String {
    let head = [
        "row",
        "program",
        "wall ms",
        "(min–max)",
        "rate",
        "CPU s",
        "peak MiB",
        "ours ÷ floor",
        "limit",
    ];
    let mut cells = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        let (floors, ours): (Vec<&Line>, Vec<&Line>) =
            row.lines.iter().partition(|line| line.is_floor);
        let ours_s: Vec<f64> = ours.iter().map(|line| line.wall_s().0).collect();
        let floor_s = floors.first().map_or(f64::NAN, |line| line.wall_s().0);
        for (at, line) in row.lines.iter().enumerate() {
            let title = if at == 0 { row.title.clone() } else { String::new() };
            cells.push(line.cells(title, row.work, &ours_s, floor_s));
        }
    }
    render(&cells, &[0, 1, 8], markdown)
}

/// A table, for people or as Markdown. The first line is its head; columns are to the right but these.
pub fn render(cells: &[Vec<String>], to_the_left: &[usize], markdown: bool) -> String {
    let width = |column: usize| {
        cells.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let columns = 0..cells[0].len();
    let widths: Vec<usize> = columns.clone().map(width).collect();
    let mut text = String::new();
    for (at, row) in cells.iter().enumerate() {
        let pad = |column: usize| {
            let (cell, width) = (&row[column], widths[column]);
            match to_the_left.contains(&column) {
                true => format!("{cell:width$}"),
                false => format!("{cell:>width$}"),
            }
        };
        let padded: Vec<String> = columns.clone().map(pad).collect();
        if markdown {
            text += &format!("| {} |\n", padded.join(" | "));
            if at == 0 {
                let line = |column| if to_the_left.contains(&column) { "---" } else { "---:" };
                text +=
                    &format!("| {} |\n", columns.clone().map(line).collect::<Vec<_>>().join(" | "));
            }
        } else {
            text += &format!("{}\n", padded.join("  ").trim_end());
        }
    }
    text
}
