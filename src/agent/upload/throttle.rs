//! So many bytes a second, shared by all uploads of a process.

use std::{fmt, time::Duration};

use jiff::{ZonedDateTime, civil::DateTime};
use tokio::{sync::Mutex, time::Instant};

use super::timetable::Timetable;

/// How long a wait goes on before it looks at the clock and the timetable again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How much may be sent at once after a rest: what the rate is for so long.
const BURST: Duration = Duration::from_millis(250);

/// Lets bytes pass, as many a second as the timetable says.
pub(super) struct Throttle {
    timetable: Timetable,
    /// Those who wait do so here, in the order in which they came.
    debt: Mutex<Debt>,
    clock: Box<dyn Fn() -> DateTime + Send + Sync>,
}

/// What has been let pass and has still to be waited for. Less than nothing after a rest.
#[derive(Debug)]
struct Debt {
    bytes: f64,
    at: Instant,
}

impl Debt {
    /// Some of it has been paid by waiting.
    fn settle(&mut self, rate: f64, now: Instant) {
        let paid = rate * now.saturating_duration_since(self.at).as_secs_f64();
        self.bytes = (self.bytes - paid).max(-rate * BURST.as_secs_f64());
        self.at = now;
    }
}

impl fmt::Debug for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Throttle").field("timetable", &self.timetable).finish_non_exhaustive()
    }
}

impl Throttle {
    pub fn new(timetable: Timetable) -> Self {
        Self::with_clock(timetable, || ZonedDateTime::now().datetime())
    }

    fn with_clock(
        timetable: Timetable,
        clock: impl Fn() -> DateTime + Send + Sync + 'static,
    ) -> Self {
        let debt = Mutex::new(Debt { bytes: 0.0, at: Instant::now() });
        Self { timetable, debt, clock: Box::new(clock) }
    }

    /// Bytes a second just now; `None`: without a limit.
    pub fn rate(&self) -> Option<u64> {
        if self.timetable.is_unlimited() { None } else { self.timetable.rate((self.clock)()) }
    }

    /// Waits until so many bytes may be sent. Whoever comes after waits for them.
    pub async fn take(&self, bytes: u64) {
        if self.rate().is_none() {
            return;
        }
        let mut debt = self.debt.lock().await;
        while let Some(rate) = self.rate() {
            let rate = rate as f64;
            debt.settle(rate, Instant::now());
            if debt.bytes <= 0.0 {
                debt.bytes += bytes as f64;
                return;
            }
            let wait = Duration::from_secs_f64(debt.bytes / rate).min(LOOK_EVERY);
            // Not for nothing, or a rest of a byte would be waited for for ever.
            tokio::time::sleep(wait.max(Duration::from_millis(1))).await;
        }
        // The limit is gone, and so is what was owed to it.
        *debt = Debt { bytes: 0.0, at: Instant::now() };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    };

    use jiff::civil::datetime;
    use tokio::task::JoinSet;

    use super::*;

    const KIB: u64 = 1 << 10;

    fn table(text: &str) -> Timetable {
        text.parse().unwrap()
    }

    /// Counts what so many uploads get through in this time, in pieces of this size.
    async fn count(throttle: Arc<Throttle>, uploads: usize, piece: u64, time: Duration) -> u64 {
        let total = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..uploads {
            let (throttle, total) = (throttle.clone(), total.clone());
            tasks.spawn(async move {
                loop {
                    throttle.take(piece).await;
                    total.fetch_add(piece, Relaxed);
                }
            });
        }
        tokio::time::sleep(time).await;
        tasks.shutdown().await;
        total.load(Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_kept_however_many_send() {
        for (uploads, piece) in [(1, 64 * KIB), (8, 64 * KIB), (16, 256 * KIB), (3, 1000)] {
            let throttle = Arc::new(Throttle::new(table("1MiB/s")));
            let sent = count(throttle, uploads, piece, Duration::from_secs(60)).await;
            // What the burst allows, and one piece that is still to be waited for.
            let (least, most) = (60 * 1024 * KIB - piece, 60 * 1024 * KIB + 256 * KIB + piece);
            assert!((least..=most).contains(&sent), "{uploads} × {piece}: {sent}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_rest_little_may_be_sent_at_once() {
        let throttle = Arc::new(Throttle::new(table("1MiB/s")));
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let sent = count(throttle, 4, 16 * KIB, Duration::from_millis(1)).await;
        assert!(sent <= (256 + 2 * 16) * KIB, "{sent}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_timetable_is_followed_while_uploads_wait() {
        let (began, start) = (datetime(2026, 6, 1, 8, 59, 0, 0), Instant::now());
        let clock = move || began + jiff::SignedDuration::try_from(start.elapsed()).unwrap();
        let table = table("1MiB/s; Mon-Fri 09:00-18:00 16KiB/s");
        let throttle = Arc::new(Throttle::with_clock(table, clock));
        let minute = Duration::from_secs(60);
        let before = count(throttle.clone(), 4, 16 * KIB, minute).await;
        let after = count(throttle.clone(), 4, 16 * KIB, 10 * minute).await;
        assert!((59 * 1024 * KIB..=61 * 1024 * KIB).contains(&before), "{before}");
        assert!((590 * 16 * KIB..=630 * 16 * KIB).contains(&after), "{after}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_owed_to_a_limit_goes_with_it() {
        let (began, start) = (datetime(2026, 6, 1, 17, 59, 50, 0), Instant::now());
        let clock = move || began + jiff::SignedDuration::try_from(start.elapsed()).unwrap();
        let throttle = Throttle::with_clock(table("Mon 09:00-18:00 1KiB/s"), clock);
        throttle.take(1024 * KIB).await; // to be waited for for a quarter of an hour
        throttle.take(KIB).await;
        assert!(start.elapsed() >= Duration::from_secs(10));
        assert!(start.elapsed() < Duration::from_secs(10) + 2 * LOOK_EVERY);
        assert_eq!(throttle.rate(), None);
        throttle.take(u64::MAX).await;
    }
}
