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

/// What one run of one program took.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Sample {
    pub wall_s: f64,
    pub cpu_s: f64,
    pub peak_bytes: u64,
    /// CPU time of the load generator, for servers: it runs on the same cores.
    pub generator_cpu_s: Option<f64>,
}

/// What a row is counted in.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    Files(u64),
    Bytes(u64),
    /// Nothing but the time.
    Moment,
}

/// What a program is to keep to.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// The median of its times.
    Seconds(f64),
    /// The most memory it ever had.
    Bytes(u64),
    /// The median of its times, over that of the first floor.
    Ratio(f64),
}

impl Limit {
    fn verdict(self, wall_s: f64, peak_bytes: u64, floor_s: f64) -> String {
        let (text, is_met) = match self {
            Self::Seconds(limit) => (format!("≤ {limit} s"), wall_s <= limit),
            Self::Bytes(limit) => (format!("≤ {} MiB", mib(limit)), peak_bytes <= limit),
            Self::Ratio(limit) => (format!("≤ {limit} × floor"), wall_s <= limit * floor_s),
        };
        format!("{text}: {}", if is_met { "met" } else { "MISSED" })
    }
}

impl Work {
    fn rate(self, seconds: f64) -> String {
        match self {
            Self::Files(files) => format!("{} files/s", grouped(files as f64 / seconds)),
            Self::Bytes(bytes) => format!("{} MiB/s", grouped(mib(bytes) / seconds)),
            Self::Moment => String::new(),
        }
    }
}

/// One program that does the work of a row, once each time it is called.
pub struct Contender<'a> {
    name: String,
    limit: Option<Limit>,
    run: Box<dyn FnMut() -> Sample + 'a>,
}

impl<'a> Contender<'a> {
    pub fn new(name: impl Into<String>, run: impl FnMut() -> Sample + 'a) -> Self {
        Self { name: name.into(), limit: None, run: Box::new(run) }
    }

    pub fn within(self, limit: Limit) -> Self {
        Self { limit: Some(limit), ..self }
    }
}

/// A program and what its runs took.
#[derive(Debug)]
pub struct Line {
    pub name: String,
    pub samples: Vec<Sample>,
    /// Floors are what the first line of a row is compared with.
    pub is_floor: bool,
    pub limit: Option<Limit>,
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
    ours: Contender<'_>,
    floors: Vec<Contender<'_>>,
) -> Row {
    let title = title.into();
    eprintln!("{title} …");
    let mut contenders: Vec<_> = std::iter::once(ours).chain(floors).collect();
    let mut lines: Vec<Line> = contenders
        .iter()
        .enumerate()
        .map(|(at, contender)| Line {
            name: contender.name.clone(),
            samples: Vec::new(),
            is_floor: at > 0,
            limit: contender.limit,
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
    let peak_bytes = peak_bytes(std::process::id()).expect("a living process has a status");
    Sample { wall_s, cpu_s, peak_bytes, generator_cpu_s: None }
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

/// The middle one, the least and the most.
fn spread(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> (f64, f64, f64) {
    let mut values: Vec<f64> = samples.iter().map(value).collect();
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

/// All rows, for people or for Markdown.
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
    let mut cells = vec![head.map(str::to_owned)];
    for row in rows {
        let median_s = |line: &Line| spread(&line.samples, |sample| sample.wall_s).0;
        let ours_s = median_s(&row.lines[0]);
        let floor_s = row.lines.iter().find(|line| line.is_floor).map_or(f64::NAN, median_s);
        for (at, line) in row.lines.iter().enumerate() {
            let (wall_s, min_s, max_s) = spread(&line.samples, |sample| sample.wall_s);
            let mut cpu = format!("{:.2}", spread(&line.samples, |sample| sample.cpu_s).0);
            if line.samples.iter().any(|sample| sample.generator_cpu_s.is_some()) {
                let generator = |sample: &Sample| sample.generator_cpu_s.unwrap_or(0.0);
                cpu += &format!(" (+{:.2})", spread(&line.samples, generator).0);
            }
            let most = line.samples.iter().map(|sample| sample.peak_bytes).max().unwrap_or(0);
            cells.push([
                if at == 0 { row.title.clone() } else { String::new() },
                line.name.clone(),
                millis(wall_s),
                format!("{}–{}", millis(min_s), millis(max_s)),
                row.work.rate(wall_s),
                cpu,
                format!("{:.0}", mib(most)),
                if line.is_floor { format!("{:.2}", ours_s / wall_s) } else { String::new() },
                line.limit.map_or_else(String::new, |limit| limit.verdict(wall_s, most, floor_s)),
            ]);
        }
    }
    let width = |column: usize| {
        cells.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    let widths: [usize; 9] = std::array::from_fn(width);
    let mut text = String::new();
    for (at, row) in cells.iter().enumerate() {
        let padded: Vec<String> = row
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(column, (cell, width))| match column {
                0 | 1 | 8 => format!("{cell:width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        if markdown {
            text += &format!("| {} |\n", padded.join(" | "));
            if at == 0 {
                text += "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n";
            }
        } else {
            text += &format!("{}\n", padded.join("  ").trim_end());
        }
    }
    text
}
