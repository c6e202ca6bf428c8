//! How many uploads at once: one more while that helps, fewer when it does not. Pure.

use std::time::Duration;

/// How many to begin with.
const BEGIN: usize = 4;

/// The least time that is measured at once, and the least work for each upload.
pub(super) const WINDOW: Duration = Duration::from_millis(200);
const WINDOW_WORK: u64 = 256 << 10;

/// What a blob costs besides its bytes: with tiny ones, blobs a second are what counts.
const BLOB_WORK: u64 = 32 << 10;

/// How many measurements it rests where nothing better is near, first and at most.
const REST_MIN: u32 = 2;
const REST_MAX: u32 = 32;

/// So many times as fast or as slow with the same number is more than chance.
const OTHER: f64 = 2.0;

/// Tries a neighbouring number now and then, and stays where one fewer is slower and one more is
/// not faster, both by half of what it would be if all uploads went at the same speed.
#[derive(Debug)]
pub(super) struct Pace {
    most: usize,
    width: usize,
    /// Where the measurement under way began, and how much had been done by then.
    window: Option<(Duration, u64)>,
    /// How fast it went before the last change.
    before: f64,
    trying: Trying,
    rest: u32,
    /// How fast it was when it began to rest.
    rested_at: Option<f64>,
    halved_at: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
enum Trying {
    /// Nothing, for so many measurements.
    Rest(u32),
    /// One more than before.
    More,
    /// One fewer than before.
    Fewer,
}

impl Pace {
    /// At most so many.
    pub fn new(most: usize) -> Self {
        let most = most.max(1);
        Self {
            most,
            width: BEGIN.min(most),
            window: None,
            before: 0.0,
            trying: Trying::Rest(0),
            rest: REST_MIN,
            rested_at: None,
            halved_at: None,
        }
    }

    /// How many uploads at once.
    pub fn width(&self) -> usize {
        self.width
    }

    /// There are not as many uploads as there might be, or something else slows them down: what is
    /// measured just now says nothing.
    pub fn idle(&mut self) {
        self.window = None;
    }

    /// Something failed that was begun then. What was begun before the last such thing belongs to
    /// that one.
    pub fn trouble(&mut self, now: Duration, began: Duration) {
        if self.halved_at.is_none_or(|halved_at| began >= halved_at) {
            self.halved_at = Some(now);
            self.width = (self.width / 2).max(1);
            self.rest = REST_MIN;
            self.trying = Trying::Rest(self.rest);
            self.rested_at = None;
        }
        self.window = None;
    }

    /// So much has been done since the start.
    pub fn look(&mut self, now: Duration, sent_bytes: u64, stored_blobs: u64) {
        let work = sent_bytes.saturating_add(stored_blobs.saturating_mul(BLOB_WORK));
        let Some((since, before)) = self.window else {
            self.window = Some((now, work));
            return;
        };
        let (time, done) = (now.saturating_sub(since), work.saturating_sub(before));
        if time >= WINDOW && done >= self.width as u64 * WINDOW_WORK {
            self.window = Some((now, work));
            self.measured(done as f64 / time.as_secs_f64());
        }
    }

    fn measured(&mut self, speed: f64) {
        let before = std::mem::replace(&mut self.before, speed);
        if let Trying::Rest(_) = self.trying {
            let was = *self.rested_at.get_or_insert(speed);
            if !(was / OTHER..=was * OTHER).contains(&speed) {
                // It is another server now, or another line: what was found out before says nothing.
                (self.rest, self.trying) = (REST_MIN, Trying::Rest(0));
            }
        }
        match self.trying {
            Trying::Rest(0) => self.try_one(),
            Trying::Rest(left) => self.trying = Trying::Rest(left - 1),
            Trying::More if speed > before * (1.0 + 0.5 / (self.width - 1) as f64) => {
                if self.width < self.most { self.more() } else { self.settle() }
            }
            Trying::More => self.fewer(),
            Trying::Fewer if speed < before * (1.0 - 0.5 / (self.width + 1) as f64) => {
                self.width += 1;
                self.settle();
            }
            Trying::Fewer if self.width > 1 => self.fewer(),
            Trying::Fewer => self.settle(),
        }
    }

    fn try_one(&mut self) {
        self.rested_at = None;
        if self.width < self.most {
            self.more();
        } else if self.width > 1 {
            self.fewer();
        } else {
            self.settle();
        }
    }

    fn more(&mut self) {
        self.width += 1;
        self.trying = Trying::More;
    }

    fn fewer(&mut self) {
        self.width -= 1;
        self.trying = Trying::Fewer;
    }

    fn settle(&mut self) {
        self.trying = Trying::Rest(self.rest);
        self.rest = (2 * self.rest).min(REST_MAX);
    }
}

#[cfg(test)]
impl Pace {
    /// One that stays as it is, for tests of other things.
    pub fn steady(width: usize) -> Self {
        Self { width, halved_at: Some(Duration::MAX), ..Self::new(width) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: f64 = (1 << 20) as f64;

    /// A server that so many connections make busy; more than that make it slower by this share
    /// each.
    #[derive(Debug, Clone, Copy)]
    struct Server {
        knee: usize,
        loss: f64,
        /// Of one connection, in bytes a second.
        speed: f64,
        blob_bytes: f64,
    }

    impl Server {
        fn speed(&self, width: usize) -> f64 {
            let beyond = width.saturating_sub(self.knee) as f64;
            self.speed * width.min(self.knee) as f64 * (1.0 - self.loss * beyond).max(0.1)
        }
    }

    /// Sends for so long, and returns the numbers of uploads at once, every 10 ms.
    struct Run {
        pace: Pace,
        now: Duration,
        sent: f64,
        blobs: f64,
    }

    impl Run {
        fn new(most: usize) -> Self {
            Self { pace: Pace::new(most), now: Duration::ZERO, sent: 0.0, blobs: 0.0 }
        }

        fn go(&mut self, server: &Server, seconds: u32) -> Vec<usize> {
            let mut widths = Vec::new();
            for _ in 0..seconds * 100 {
                let done = server.speed(self.pace.width()) / 100.0;
                self.sent += done;
                self.blobs += done / server.blob_bytes;
                self.now += Duration::from_millis(10);
                self.pace.look(self.now, self.sent as u64, self.blobs as u64);
                widths.push(self.pace.width());
            }
            widths
        }

        fn trouble(&mut self) {
            self.pace.trouble(self.now, self.now);
        }
    }

    /// Most of the time, and never far from it.
    fn stays_at(widths: &[usize], knee: usize) -> bool {
        let there = widths.iter().filter(|width| **width == knee).count();
        4 * there > 3 * widths.len() && widths.iter().all(|width| width.abs_diff(knee) <= 1)
    }

    fn any_server() -> impl Strategy<Value = Server> {
        let blob = prop_oneof![Just(100.0), Just(20_000.0), Just(64.0 * MIB)];
        (1usize..24, 0.0..0.1, 0.5..200.0, blob).prop_map(|(knee, loss, speed, blob_bytes)| {
            Server {
                knee,
                loss,
                speed: speed * MIB * if blob_bytes < 1000.0 { 0.01 } else { 1.0 },
                blob_bytes,
            }
        })
    }

    proptest! {
        #[test]
        fn it_finds_the_knee_and_stays_there(server in any_server(), most in 1usize..24) {
            let mut run = Run::new(most);
            run.go(&server, 120);
            let widths = run.go(&server, 120);
            prop_assert!(stays_at(&widths, server.knee.min(most)), "{widths:?}");
        }

        #[test]
        fn it_falls_on_trouble_and_recovers(server in any_server(), most in 1usize..24, troubles in 1u32..4) {
            let mut run = Run::new(most);
            run.go(&server, 120);
            let before = run.pace.width();
            for _ in 0..troubles {
                run.trouble();
                // What was begun before that is part of it.
                run.pace.trouble(run.now, run.now - Duration::from_millis(1));
            }
            prop_assert_eq!(run.pace.width(), (before >> troubles).max(1));
            run.go(&server, 120);
            let widths = run.go(&server, 120);
            prop_assert!(stays_at(&widths, server.knee.min(most)), "{widths:?}");
        }

        #[test]
        fn it_follows_a_server_that_changes(one in any_server(), other in any_server()) {
            let mut run = Run::new(16);
            run.go(&one, 60);
            run.go(&other, 300);
            let widths = run.go(&other, 120);
            prop_assert!(stays_at(&widths, other.knee.min(16)), "{widths:?}");
        }

        /// Whatever it is told.
        #[test]
        fn it_is_never_less_than_one_nor_more_than_the_most(
            most in 0usize..20,
            told in prop::collection::vec((0u8..4, 0u64..2000, any::<u32>(), 0u64..100), 0..300),
        ) {
            let mut pace = Pace::new(most);
            let (mut now, mut sent, mut blobs) = (Duration::ZERO, 0u64, 0);
            for (what, millis, bytes, more) in told {
                now += Duration::from_millis(millis);
                sent += u64::from(bytes);
                blobs += more;
                match what {
                    0 => pace.trouble(now, now.saturating_sub(Duration::from_millis(more))),
                    1 => pace.idle(),
                    _ => pace.look(now, sent, blobs),
                }
                prop_assert!((1..=most.max(1)).contains(&pace.width()));
            }
        }
    }

    #[test]
    fn what_is_measured_while_it_is_idle_does_not_count() {
        let mut pace = Pace::new(8);
        for second in 1..1000 {
            pace.idle();
            pace.look(Duration::from_secs(second), second << 30, 0);
        }
        assert_eq!(pace.width(), BEGIN);
    }
}
