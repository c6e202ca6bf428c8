//! How many directories Linux lets a user watch, and how many a folder takes.

use std::path::Path;

/// What is asked for at least: what distributions that have raised the limit have raised it to.
const USUAL_WATCHES: u64 = 524_288;

/// The same, of watchers.
const USUAL_WATCHERS: u64 = 1024;

/// The length of the queue that Linux has by default, which is enough for any folder: the agent reads
/// events as they come, and its own scans cause none.
const USUAL_QUEUE: u64 = 16_384;

/// The limits of inotify for one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchLimits {
    /// Directories that are watched, by all programs of the user together.
    pub max_user_watches: u64,
    /// Watchers, each of which has as many directories as it likes.
    pub max_user_instances: u64,
    /// Events that wait to be read; what comes after them is lost.
    pub max_queued_events: u64,
}

impl WatchLimits {
    /// Those of this machine; `None` where there are none, or where they cannot be read.
    pub fn read() -> Option<Self> {
        if !cfg!(target_os = "linux") {
            return None;
        }
        Self::parse(|name| std::fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).ok())
    }

    /// The limits, from what the files of these names hold.
    fn parse(text: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name: &str| text(name)?.trim().parse().ok();
        Some(Self {
            max_user_watches: number("max_user_watches")?,
            max_user_instances: number("max_user_instances")?,
            max_queued_events: number("max_queued_events")?,
        })
    }

    /// Whether this many directories are more than one program should take.
    pub fn is_scarce(&self, needed: u64) -> bool {
        needed > self.max_user_watches / 2
    }

    /// Whether the queue is shorter than usual, and than a change of each of this many directories. A burst
    /// of changes that overflows it costs a scan of everything.
    pub fn has_short_queue(&self, directories: u64) -> bool {
        self.max_queued_events < directories.min(USUAL_QUEUE)
    }

    /// How to make the queue as long as usual.
    pub fn longer_queue(&self) -> String {
        sysctl("fs.inotify.max_queued_events", USUAL_QUEUE)
    }

    /// How to raise the limit so that this many directories take at most half of it.
    pub fn more_watches(&self, needed: u64) -> String {
        let most = i32::MAX.cast_unsigned().into();
        let room = needed.saturating_mul(2).max(self.max_user_watches.saturating_add(1));
        let enough = room.checked_next_power_of_two().unwrap_or(most).clamp(USUAL_WATCHES, most);
        sysctl("fs.inotify.max_user_watches", enough)
    }

    /// How to raise the limit so that there is room for this many watchers of ours.
    pub fn more_watchers(&self, needed: u64) -> String {
        let room = needed.max(self.max_user_instances).saturating_mul(2);
        sysctl("fs.inotify.max_user_instances", room.max(USUAL_WATCHERS))
    }
}

fn sysctl(name: &str, value: u64) -> String {
    format!(
        "sudo sysctl {name}={value}\n\
         and, to keep it, put the line {name}={value} into /etc/sysctl.d/60-farmhand.conf"
    )
}

/// How many directories are watched to watch this one: itself and all below, links not followed. Stops
/// counting at `at_most`.
pub fn watches_needed(dir: &Path, at_most: u64) -> u64 {
    let (mut count, mut left) = (0, vec![dir.to_owned()]);
    while let Some(dir) = left.pop() {
        count += 1;
        // What cannot be read is not watched, either.
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            left.push(entry.path());
        }
        if count + left.len() as u64 >= at_most {
            return at_most;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(max_user_watches: u64) -> WatchLimits {
        WatchLimits { max_user_watches, max_user_instances: 128, max_queued_events: 16_384 }
    }

    #[test]
    fn limits_are_three_numbers_or_nothing() {
        let parse = |watches: Option<&'static str>| {
            WatchLimits::parse(|name| match name {
                "max_user_watches" => watches.map(str::to_owned),
                "max_user_instances" => Some("128\n".into()),
                "max_queued_events" => Some("16384\n".into()),
                other => panic!("{other}"),
            })
        };
        assert_eq!(parse(Some("8192\n")), Some(limits(8192)));
        for bad in [None, Some(""), Some("many"), Some("-1")] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        assert_eq!(WatchLimits::read().is_some(), cfg!(target_os = "linux"));
    }

    #[test]
    fn the_advice_is_always_more_than_there_is_and_twice_what_is_needed() {
        for (have, needed, advised) in [
            (8192, 5000, 524_288),
            (8192, 262_144, 524_288),
            (8192, 262_145, 1_048_576),
            (524_288, 300_000, 1_048_576),
            (1 << 20, 1, 2 << 20),
            (u64::MAX, u64::MAX, 2_147_483_647),
        ] {
            let advice = limits(have).more_watches(needed);
            let line = format!("sudo sysctl fs.inotify.max_user_watches={advised}\n");
            assert!(advice.starts_with(&line), "{have} {needed}: {advice}");
            assert!(advice.contains(&format!("={advised} into /etc/sysctl.d/")), "{advice}");
        }
    }

    #[test]
    fn half_of_the_limit_is_ours() {
        for (needed, scarce) in [(0, false), (4096, false), (4097, true)] {
            assert_eq!(limits(8192).is_scarce(needed), scarce, "{needed}");
        }
    }

    #[test]
    fn a_short_queue_is_told_from_the_usual_one() {
        for (events, directories, short) in [
            (16_384, 1_000_000, false),
            (16_383, 1_000_000, true),
            (1_000, 1_000, false),
            (1_000, 1_001, true),
        ] {
            let limits = WatchLimits { max_queued_events: events, ..limits(8192) };
            assert_eq!(limits.has_short_queue(directories), short, "{events} {directories}");
        }
    }

    #[test]
    fn directories_are_counted_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a/b/c", "a/.git/objects", "d"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("a/file"), "x").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("..", dir.path().join("a/loop")).unwrap();
        assert_eq!(watches_needed(dir.path(), 100), 7);
        assert_eq!(watches_needed(dir.path(), 5), 5);
        assert_eq!(watches_needed(&dir.path().join("missing"), 5), 1);
    }
}
