//! What to send next. Pure: outcomes and the time go in, steps come out.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
    time::Duration,
};

use super::pace::Pace;
use crate::domain::{BlobId, BlobStatus};

/// The pauses after a first failure, and at most.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The longest pause that a server can ask for.
const ASKED_PAUSE_MAX: Duration = Duration::from_secs(60);

/// The pauses between looks at a blob that somebody else is sending.
const DEFER_PAUSE_MIN: Duration = Duration::from_millis(250);
const DEFER_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Blobs above this size are large: of the uploads at once, half are, so that neither the long ones
/// are left for the end nor the line is idle between many short ones.
const LARGE_BYTES: u64 = 1 << 20;

/// So many failures in a row to reach the server, and no more is sent than one probe at a time.
const TRIP: u32 = 3;

/// How patient a plan is.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    /// How often a blob is tried again after a failure, and the server when it cannot be reached.
    pub retries: u32,
    /// How long somebody else may take to send a blob before we send it ourselves.
    pub defer: Duration,
}

/// What to do now. Times are counted from the start of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Send this blob.
    Send { id: BlobId, may_defer: bool },
    /// Ask whether this blob is stored by now.
    Ask(BlobId),
    /// Nothing before this time.
    WaitUntil(Duration),
    /// Nothing before an outcome is reported.
    WaitForOutcome,
    /// Nothing any more.
    Done,
}

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The blob is on the server.
    Stored,
    /// Somebody else is sending it.
    Deferred,
    /// Nobody knows: the connection broke.
    Unknown(String),
    /// The server could not.
    Later {
        reason: String,
        /// What it asked for.
        pause: Option<Duration>,
        /// Whether it was the server that said so.
        reached: bool,
    },
    /// What the server knows of it, having been asked.
    Status(BlobStatus),
    /// It broke because we stood still, on purpose.
    Interrupted,
    /// The file was not what it had been, but there is another one with this content.
    OtherSource,
    /// There is nothing to send any more: no file has this content.
    NoSource,
}

/// A blob that could not be sent, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exhausted {
    pub id: BlobId,
    pub reason: String,
    /// Whether the server said so, and not the lack of one.
    pub reached: bool,
}

#[derive(Debug, Clone, Default)]
struct Item {
    failures: u32,
    looks: u32,
    /// When it was first deferred.
    deferred_at: Option<Duration>,
    ask_first: bool,
    /// It was sent with the word that we do not defer any more.
    insisted: bool,
    /// The last outage that it was charged for.
    outage: u64,
}

/// A step under way.
#[derive(Debug, Clone, Copy)]
struct Flight {
    began: Duration,
    is_large: bool,
    /// It goes along with another one, in the same request.
    is_rider: bool,
}

/// A time in which nothing reaches the server. Whatever fails in it is one failure: of each blob
/// once, and of the server once for each pause that was made.
#[derive(Debug, Clone, Copy)]
struct Outage {
    number: u64,
    in_a_row: u32,
    /// Failures of what was begun after the pause before it.
    rounds: u32,
    /// The end of the pause after the last of them.
    until: Duration,
    probe: Option<BlobId>,
}

impl Outage {
    fn is_open(&self) -> bool {
        self.in_a_row >= TRIP
    }
}

/// All blobs to send, and how far each is.
#[derive(Debug)]
pub(super) struct Plan {
    patience: Patience,
    pace: Pace,
    large: VecDeque<BlobId>,
    small: VecDeque<BlobId>,
    later: BinaryHeap<Reverse<(Duration, BlobId)>>,
    items: HashMap<BlobId, Item>,
    flights: HashMap<BlobId, Flight>,
    riders: usize,
    last_was_large: bool,
    outage: Option<Outage>,
    outages: u64,
    stored: u64,
    pub deferrals: u64,
    pub retries: u64,
}

impl Plan {
    /// Plans to send these, so many at once at most: the largest first, and those of about the same
    /// size in an order that the seed says, so that two who send the same do not collide all the
    /// time.
    pub fn new(
        ids: impl IntoIterator<Item = BlobId>,
        patience: Patience,
        most: usize,
        seed: u64,
    ) -> Self {
        let mut seen = HashSet::new();
        let mut ids: Vec<_> = ids.into_iter().filter(|id| seen.insert(*id)).collect();
        fastrand::Rng::with_seed(seed).shuffle(&mut ids);
        ids.sort_by_key(|id| Reverse(id.size_bytes.checked_ilog2()));
        let items = ids.iter().map(|id| (*id, Item::default())).collect();
        let (large, small) = ids.into_iter().partition(is_large);
        Self {
            patience,
            pace: Pace::new(most),
            large,
            small,
            later: BinaryHeap::new(),
            items,
            flights: HashMap::new(),
            riders: 0,
            last_was_large: false,
            outage: None,
            outages: 0,
            stored: 0,
            deferrals: 0,
            retries: 0,
        }
    }

    /// Looks at how fast it goes. `sent_bytes` is what was sent since the start; `disturbed`: how
    /// much that was says nothing about the server.
    pub fn look(&mut self, now: Duration, sent_bytes: u64, disturbed: bool) {
        // More than it should be, when it has just become fewer, says nothing about fewer.
        if disturbed || self.requests() > self.pace.width() {
            self.pace.idle();
        } else {
            self.pace.look(now, sent_bytes, self.stored);
        }
    }

    /// The next step. Each `Send` and `Ask` must be followed by a [`Plan::report`].
    pub fn next(&mut self, now: Duration) -> Step {
        while let Some(&Reverse((time, id))) = self.later.peek()
            && time <= now
        {
            self.later.pop();
            self.queue(id);
        }
        let outage = self.outage.filter(Outage::is_open);
        if outage.is_some_and(|outage| outage.probe.is_some()) {
            return Step::WaitForOutcome;
        }
        let not_before = outage.map_or(Duration::ZERO, |outage| outage.until);
        let has_due = !self.large.is_empty() || !self.small.is_empty();
        if has_due && outage.is_none() && self.requests() >= self.pace.width() {
            return Step::WaitForOutcome;
        }
        if now >= not_before
            && let Some(id) = self.pop_due(outage.is_some())
        {
            if let (Some(outage), true) = (&mut self.outage, outage.is_some()) {
                outage.probe = Some(id);
            }
            return self.begin(id, now);
        }
        // There is less to do than could be done.
        self.pace.idle();
        let time = match self.later.peek() {
            _ if has_due => Some(not_before),
            later => later.map(|Reverse((time, _))| not_before.max(*time)),
        };
        match time {
            Some(time) => Step::WaitUntil(time),
            None if self.flights.is_empty() => Step::Done,
            None => Step::WaitForOutcome,
        }
    }

    fn begin(&mut self, id: BlobId, now: Duration) -> Step {
        self.flights.insert(id, Flight { began: now, is_large: is_large(&id), is_rider: false });
        let item = self.items.get_mut(&id).expect("BUG: only planned blobs are due");
        if item.ask_first {
            return Step::Ask(id);
        }
        let waited = item.deferred_at.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        item.insisted = waited >= self.patience.defer;
        Step::Send { id, may_defer: !item.insisted }
    }

    /// Requests under way.
    fn requests(&self) -> usize {
        self.flights.len() - self.riders
    }

    /// More that can be sent now, in one request with this one, which is about to be sent: none larger than
    /// the first limit says, so many with it, and so many bytes with it. Each must be reported by itself.
    pub fn riders(&mut self, id: &BlobId, limits: Option<(u64, usize, u64)>) -> Vec<BlobId> {
        let Some((max_size, max_blobs, max_bytes)) = limits else { return Vec::new() };
        // Into a line that may be dead goes one.
        if id.size_bytes > max_size || self.outage.is_some() {
            return Vec::new();
        }
        let first = self.flights[id];
        // Those that are to be asked about first, and those that do not fit, stay in their order.
        let (mut riders, mut left, mut stay) = (Vec::new(), max_bytes, VecDeque::new());
        left = left.saturating_sub(id.size_bytes);
        // The others shall have something to do, too.
        let share = self.small.len().div_ceil(self.pace.width());
        while riders.len() + 1 < max_blobs.min(share.max(1))
            && let Some(rider) = self.small.pop_front()
        {
            let item = self.items.get_mut(&rider).expect("BUG: only planned blobs are due");
            let waited =
                item.deferred_at.map_or(Duration::ZERO, |since| first.began.saturating_sub(since));
            let fits = rider.size_bytes <= max_size && rider.size_bytes <= left;
            if item.ask_first || waited >= self.patience.defer || !fits {
                stay.push_back(rider);
                if stay.len() > max_blobs {
                    break;
                }
                continue;
            }
            item.insisted = false;
            left -= rider.size_bytes;
            self.flights.insert(rider, Flight { is_rider: true, ..first });
            riders.push(rider);
        }
        self.riders += riders.len();
        while let Some(id) = stay.pop_back() {
            self.small.push_front(id);
        }
        riders
    }

    fn queue(&mut self, id: BlobId) {
        if is_large(&id) { self.large.push_back(id) } else { self.small.push_back(id) }
    }

    fn pop_due(&mut self, is_probe: bool) -> Option<BlobId> {
        let large = self.flights.values().filter(|flight| flight.is_large).count();
        let wants_large = match (2 * large).cmp(&self.requests()) {
            // It may well be in vain.
            _ if is_probe => false,
            Ordering::Less => true,
            Ordering::Equal => !self.last_was_large,
            Ordering::Greater => false,
        };
        let (first, second) = if wants_large {
            (&mut self.large, &mut self.small)
        } else {
            (&mut self.small, &mut self.large)
        };
        let id = first.pop_front().or_else(|| second.pop_front())?;
        self.last_was_large = is_large(&id);
        Some(id)
    }

    /// Takes note of what became of a step. `jitter` is from 0 to 1: pauses of many clients must
    /// not end together.
    ///
    /// # Errors
    /// If the blob has been tried often enough, or the server.
    pub fn report(
        &mut self,
        id: BlobId,
        outcome: Outcome,
        now: Duration,
        jitter: f64,
    ) -> Result<(), Exhausted> {
        let flight = self.flights.remove(&id).expect("BUG: only steps under way are reported");
        self.riders -= usize::from(flight.is_rider);
        if let Some(outage) = &mut self.outage
            && outage.probe == Some(id)
        {
            outage.probe = None;
        }
        match outcome {
            Outcome::Unknown(_) | Outcome::Later { reached: false, .. } => {
                self.pace.trouble(now, flight.began);
            }
            Outcome::Later { reached: true, .. } => {
                self.pace.trouble(now, flight.began);
                self.outage = None;
            }
            Outcome::Stored | Outcome::Deferred | Outcome::Status(_) => self.outage = None,
            // These say nothing about the server.
            Outcome::Interrupted | Outcome::OtherSource | Outcome::NoSource => {}
        }
        let item = self.items.get_mut(&id).expect("BUG: only planned blobs are reported");
        let pause = match outcome {
            Outcome::Stored | Outcome::Status(BlobStatus::Stored) | Outcome::NoSource => {
                self.stored += u64::from(outcome == Outcome::Stored);
                self.items.remove(&id);
                return Ok(());
            }
            Outcome::Deferred if item.insisted && item.failures >= self.patience.retries => {
                let reason = "it goes on saying that somebody else is sending it".into();
                return Err(Exhausted { id, reason, reached: true });
            }
            Outcome::Deferred | Outcome::Status(BlobStatus::Uploading) => {
                item.failures += u32::from(item.insisted);
                self.deferrals += u64::from(outcome == Outcome::Deferred);
                let since = *item.deferred_at.get_or_insert(now);
                // Asking is cheap for both sides; sending only to be deferred again is not.
                item.ask_first = now.saturating_sub(since) < self.patience.defer;
                item.looks += 1;
                pause(item.looks, DEFER_PAUSE_MIN, DEFER_PAUSE_MAX, jitter)
            }
            Outcome::Status(BlobStatus::Unknown) | Outcome::OtherSource => {
                item.ask_first = false;
                Duration::ZERO
            }
            Outcome::Interrupted => {
                item.ask_first = true;
                Duration::ZERO
            }
            Outcome::Unknown(reason) => {
                item.ask_first = true;
                self.lost(id, flight, reason, now, jitter)?
            }
            Outcome::Later { reason, pause, reached: false } => {
                let own = self.lost(id, flight, reason, now, jitter)?;
                own.max(pause.unwrap_or_default().min(ASKED_PAUSE_MAX))
            }
            Outcome::Later { reason, .. } if item.failures >= self.patience.retries => {
                return Err(Exhausted { id, reason, reached: true });
            }
            Outcome::Later { pause: asked, .. } => {
                self.retries += 1;
                item.failures += 1;
                let own = pause(item.failures, PAUSE_MIN, PAUSE_MAX, jitter);
                own.max(asked.unwrap_or_default().min(ASKED_PAUSE_MAX))
            }
        };
        if pause.is_zero() {
            self.queue(id);
        } else {
            self.later.push(Reverse((now + pause, id)));
        }
        Ok(())
    }

    /// Something did not reach the server; returns how long to leave the blob alone.
    fn lost(
        &mut self,
        id: BlobId,
        flight: Flight,
        reason: String,
        now: Duration,
        jitter: f64,
    ) -> Result<Duration, Exhausted> {
        let exhausted = Exhausted { id, reason, reached: false };
        let outage = self.outage.get_or_insert_with(|| {
            self.outages += 1;
            Outage {
                number: self.outages,
                in_a_row: 0,
                rounds: 0,
                until: Duration::ZERO,
                probe: None,
            }
        });
        outage.in_a_row = outage.in_a_row.saturating_add(1);
        if flight.began >= outage.until {
            if outage.rounds >= self.patience.retries {
                return Err(exhausted);
            }
            outage.rounds += 1;
            outage.until = now + pause(outage.rounds, PAUSE_MIN, PAUSE_MAX, jitter);
        }
        let item = self.items.get_mut(&id).expect("BUG: only planned blobs are lost");
        if item.outage != outage.number {
            if item.failures >= self.patience.retries {
                return Err(exhausted);
            }
            item.outage = outage.number;
            item.failures += 1;
        }
        self.retries += 1;
        let own = pause(item.failures, PAUSE_MIN, PAUSE_MAX, jitter);
        Ok(own.max(outage.until.saturating_sub(now)))
    }
}

fn is_large(id: &BlobId) -> bool {
    id.size_bytes > LARGE_BYTES
}

/// Doubles with every turn from the first, up to a limit; the upper half is left to chance.
fn pause(turn: u32, min: Duration, max: Duration, jitter: f64) -> Duration {
    let full = min.saturating_mul(1 << (turn - 1).min(16)).min(max);
    full.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::Digest;

    const SECOND: Duration = Duration::from_secs(1);

    fn id(number: u8) -> BlobId {
        BlobId { digest: Digest::from_bytes([number; 32]), size_bytes: 1 }
    }

    fn later(reason: &str, pause: Option<Duration>) -> Outcome {
        Outcome::Later { reason: reason.into(), pause, reached: true }
    }

    fn lost() -> Outcome {
        Outcome::Later { reason: "refused".into(), pause: None, reached: false }
    }

    fn patience(retries: u32) -> Patience {
        Patience { retries, defer: 60 * SECOND }
    }

    /// Eight at once.
    fn plan(count: u8) -> Plan {
        wide(count, patience(3), 8)
    }

    fn wide(count: u8, patience: Patience, width: usize) -> Plan {
        let mut plan = Plan::new((0..count).map(id), patience, width, 7);
        // The pace has tests of its own.
        plan.pace = Pace::steady(width);
        plan
    }

    /// All that can be begun now.
    fn begin_all(plan: &mut Plan, now: Duration) -> Vec<BlobId> {
        std::iter::from_fn(|| match plan.next(now) {
            Step::Send { id, .. } | Step::Ask(id) => Some(id),
            _ => None,
        })
        .collect()
    }

    #[test]
    fn sends_each_blob_once() {
        let mut plan = Plan::new([id(0), id(1), id(0)], patience(3), 8, 7);
        assert_eq!(begin_all(&mut plan, SECOND).len(), 2);
        assert_eq!(plan.next(SECOND), Step::WaitForOutcome);
        plan.report(id(1), Outcome::Stored, SECOND, 0.5).unwrap();
        plan.report(id(0), Outcome::Stored, SECOND, 0.5).unwrap();
        assert_eq!(plan.next(SECOND), Step::Done);
    }

    #[test]
    fn a_deferred_blob_goes_to_the_back_and_is_asked_for_first() {
        let mut plan = wide(2, patience(3), 1);
        let Step::Send { id: first, may_defer: true } = plan.next(SECOND) else { panic!() };
        plan.report(first, Outcome::Deferred, SECOND, 1.0).unwrap();
        let Step::Send { id: second, may_defer: true } = plan.next(SECOND) else { panic!() };
        assert!(first != second);
        plan.report(second, Outcome::Stored, SECOND, 1.0).unwrap();
        assert_eq!(plan.next(SECOND), Step::WaitUntil(SECOND + DEFER_PAUSE_MIN));
        assert_eq!(plan.next(2 * SECOND), Step::Ask(first));
        plan.report(first, Outcome::Status(BlobStatus::Unknown), 2 * SECOND, 1.0).unwrap();
        assert_eq!(plan.next(2 * SECOND), Step::Send { id: first, may_defer: true });
        assert_eq!(plan.deferrals, 1);
    }

    #[test]
    fn patience_with_another_sender_ends() {
        let mut plan = plan(1);
        let mut now = SECOND;
        plan.next(now);
        plan.report(id(0), Outcome::Deferred, now, 1.0).unwrap();
        let may_defer = loop {
            now += SECOND;
            match plan.next(now) {
                Step::Ask(_) => {
                    plan.report(id(0), Outcome::Status(BlobStatus::Uploading), now, 1.0).unwrap()
                }
                Step::WaitUntil(until) => now = until,
                Step::Send { may_defer, .. } => break may_defer,
                other => panic!("{other:?}"),
            }
        };
        assert!(!may_defer);
        assert!((60 * SECOND..75 * SECOND).contains(&now), "{now:?}");
    }

    #[test]
    fn a_server_that_always_defers_is_given_up() {
        let mut plan = plan(1);
        let mut now = SECOND;
        for _ in 0..1000 {
            now += 10 * SECOND;
            let outcome = match plan.next(now) {
                Step::Ask(_) => Outcome::Status(BlobStatus::Unknown),
                Step::Send { .. } => Outcome::Deferred,
                other => panic!("{other:?}"),
            };
            if let Err(exhausted) = plan.report(id(0), outcome, now, 1.0) {
                assert!(exhausted.reason.contains("somebody else"));
                return;
            }
        }
        panic!("it does not end");
    }

    #[test]
    fn an_unknown_outcome_is_asked_for_and_a_failing_server_given_up() {
        let mut plan = plan(1);
        let mut now = SECOND;
        plan.next(now);
        for _ in 0..3 {
            plan.report(id(0), Outcome::Unknown("broken pipe".into()), now, 1.0).unwrap();
            now += 60 * SECOND;
            assert_eq!(plan.next(now), Step::Ask(id(0)));
            plan.report(id(0), Outcome::Status(BlobStatus::Unknown), now, 1.0).unwrap();
            assert_eq!(plan.next(now), Step::Send { id: id(0), may_defer: true });
        }
        let error = plan.report(id(0), later("503", None), now, 1.0).unwrap_err();
        assert_eq!(error, Exhausted { id: id(0), reason: "503".into(), reached: true });
        assert_eq!(plan.retries, 3);
    }

    #[test]
    fn what_was_interrupted_on_purpose_is_asked_for_at_once_and_costs_nothing() {
        let mut plan = wide(1, patience(0), 1);
        for _ in 0..100 {
            assert_eq!(plan.next(SECOND), Step::Send { id: id(0), may_defer: true });
            plan.report(id(0), Outcome::Interrupted, SECOND, 1.0).unwrap();
            assert_eq!(plan.next(SECOND), Step::Ask(id(0)));
            plan.report(id(0), Outcome::Status(BlobStatus::Unknown), SECOND, 1.0).unwrap();
        }
        assert_eq!(plan.retries, 0);
    }

    /// Blobs of these sizes, all different.
    fn sized(sizes: impl IntoIterator<Item = u64>) -> Vec<BlobId> {
        let blob = |(number, size_bytes)| {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&u64::to_be_bytes(number));
            BlobId { digest: Digest::from_bytes(digest), size_bytes }
        };
        (0..).zip(sizes).map(blob).collect()
    }

    fn in_order(ids: &[BlobId], seed: u64) -> Vec<BlobId> {
        let mut plan = Plan::new(ids.iter().copied(), patience(3), 1, seed);
        let mut order = Vec::new();
        while let Step::Send { id, .. } = plan.next(SECOND) {
            plan.report(id, Outcome::Stored, SECOND, 0.5).unwrap();
            order.push(id);
        }
        order
    }

    #[test]
    fn two_clients_send_the_same_blobs_in_different_orders_but_the_largest_first() {
        let ids = sized((0..300).map(|number| 1000 + number * 20));
        let (one, other) = (in_order(&ids, 1), in_order(&ids, 2));
        assert_eq!(one, in_order(&ids, 1));
        let same = one.iter().zip(&other).filter(|(one, other)| one == other).count();
        assert!(same < 20, "{same}");
        for order in [one, other] {
            assert_eq!(order.len(), 300);
            assert!(order.is_sorted_by_key(|id| Reverse(id.size_bytes.ilog2())));
        }
        assert_eq!(in_order(&sized([0, 1, 3]), 9).len(), 3);
    }

    #[test]
    fn half_of_the_uploads_are_large_as_long_as_there_are_both() {
        for width in [1, 2, 3, 8] {
            let sizes = std::iter::repeat_n(LARGE_BYTES + 1, 100);
            let ids = sized(sizes.chain(std::iter::repeat_n(LARGE_BYTES, 100)));
            let mut plan = Plan::new(ids, patience(3), width, 7);
            plan.pace = Pace::steady(width);
            let mut flying = VecDeque::new();
            let mut larges = 0;
            for _ in 0..100 {
                while let Step::Send { id, .. } = plan.next(SECOND) {
                    larges += u32::from(is_large(&id));
                    flying.push_back(id);
                }
                let large = flying.iter().filter(|id| is_large(id)).count();
                assert_eq!(flying.len(), width);
                assert!(large == width / 2 || large == width.div_ceil(2), "{large} of {width}");
                let ended = flying.pop_front().unwrap();
                plan.report(ended, Outcome::Stored, SECOND, 0.5).unwrap();
            }
            assert!((45..=55).contains(&larges), "{larges} with {width}");
            // And when there are only small ones left, they have all the room.
            let mut plan = Plan::new(sized([1; 20]), patience(3), width, 7);
            plan.pace = Pace::steady(width);
            assert_eq!(begin_all(&mut plan, SECOND).len(), width);
        }
    }

    /// Eight connections that are refused at once are one failure, not eight.
    #[test]
    fn an_outage_counts_once_however_much_fails_in_it() {
        let mut plan = plan(100);
        let mut now = SECOND;
        for outage in 1..=3 {
            let flying = begin_all(&mut plan, now);
            assert_eq!(flying.len(), 8, "{outage}");
            for id in flying {
                plan.report(id, lost(), now, 1.0).unwrap();
            }
            // Now one at a time, after growing pauses.
            let mut pauses = Vec::new();
            for _ in 0..2 {
                let Step::WaitUntil(time) = plan.next(now) else { panic!() };
                pauses.push(time - now);
                now = time;
                let probe = begin_all(&mut plan, now);
                assert_eq!(probe.len(), 1);
                assert_eq!(plan.next(now), Step::WaitForOutcome);
                plan.report(probe[0], lost(), now, 1.0).unwrap();
            }
            assert_eq!(pauses, [PAUSE_MIN, 2 * PAUSE_MIN]);
            let Step::WaitUntil(time) = plan.next(now) else { panic!() };
            now = time;
            let probe = begin_all(&mut plan, now);
            assert_eq!(probe.len(), 1);
            plan.report(probe[0], Outcome::Deferred, now, 1.0).unwrap();
            now += 60 * SECOND;
        }
        assert!(plan.items.values().all(|item| item.failures <= 3));
    }

    #[test]
    fn a_server_that_stays_down_is_given_up_soon_and_after_few_tries() {
        let mut plan = wide(100, patience(5), 8);
        let (mut now, mut tries) = (SECOND, 0);
        let mut flying = VecDeque::new();
        let error = loop {
            match plan.next(now) {
                Step::Send { id, .. } | Step::Ask(id) => {
                    tries += 1;
                    flying.push_back(id);
                }
                Step::WaitUntil(time) if flying.is_empty() => now = time,
                Step::WaitUntil(_) | Step::WaitForOutcome => {
                    let id = flying.pop_front().unwrap();
                    if let Err(error) = plan.report(id, lost(), now, 1.0) {
                        break error;
                    }
                }
                Step::Done => panic!("it is not done"),
            }
        };
        assert!(!error.reached);
        // What was under way, what was begun until the third failure, and a probe after each pause.
        assert!(tries <= 8 + (TRIP - 1) + 5, "{tries}");
        // 0.2 + 0.4 + 0.8 + 1.6 + 3.2
        assert_eq!(now, SECOND + 31 * PAUSE_MIN);
    }

    /// One that breaks every connection, while others get through, has a budget of its own.
    #[test]
    fn a_blob_that_always_breaks_the_connection_is_given_up() {
        let mut plan = wide(200, patience(3), 2);
        let mut now = SECOND;
        let mut sent = 0;
        for _ in 0..2000 {
            now += SECOND / 10;
            for blob in begin_all(&mut plan, now) {
                let is_bad = blob == id(7);
                let outcome = match plan.items[&blob].ask_first {
                    true => Outcome::Status(BlobStatus::Unknown),
                    false if is_bad => Outcome::Unknown("reset".into()),
                    false => Outcome::Stored,
                };
                sent += u32::from(is_bad && outcome == Outcome::Unknown("reset".into()));
                if let Err(exhausted) = plan.report(blob, outcome, now, 1.0) {
                    assert_eq!((exhausted.id, sent), (id(7), 4));
                    return;
                }
            }
        }
        panic!("it does not end");
    }

    #[test]
    fn a_server_that_asks_for_a_pause_gets_one() {
        let mut plan = plan(1);
        plan.next(SECOND);
        plan.report(id(0), later("429", Some(3 * SECOND)), SECOND, 0.0).unwrap();
        assert_eq!(plan.next(SECOND), Step::WaitUntil(4 * SECOND));
    }

    fn any_outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            Just(Outcome::Stored),
            Just(Outcome::Deferred),
            Just(Outcome::Unknown("x".into())),
            Just(later("x", None)),
            Just(later("x", Some(SECOND))),
            Just(lost()),
            Just(Outcome::Interrupted),
            Just(Outcome::OtherSource),
            Just(Outcome::NoSource),
        ]
    }

    proptest! {
        /// Whatever the server does, the plan ends, sends nothing after "stored", and loses nothing.
        /// With patience for all that happens it ends well.
        #[test]
        fn always_ends(
            outcomes in prop::collection::vec(any_outcome(), 1..40),
            count in 1u8..6,
            width in 1usize..4,
            retries in prop_oneof![Just(0), Just(3), Just(100)],
        ) {
            let mut plan = wide(count, patience(retries), width);
            let (mut ended, mut flying) = (Vec::new(), Vec::new());
            let mut now = Duration::ZERO;
            let mut outcomes = outcomes.into_iter().chain(std::iter::repeat(Outcome::Stored));
            for _ in 0..10_000 {
                match plan.next(now) {
                    Step::Send { id, .. } => {
                        prop_assert!(!ended.contains(&id));
                        flying.push((id, false));
                    }
                    Step::Ask(id) => flying.push((id, true)),
                    Step::WaitUntil(_) | Step::WaitForOutcome if !flying.is_empty() => {
                        prop_assert!(flying.len() <= width);
                        let (id, asked) = flying.remove(0);
                        let outcome = match outcomes.next().unwrap() {
                            Outcome::Stored if asked => Outcome::Status(BlobStatus::Stored),
                            Outcome::Deferred if asked => Outcome::Status(BlobStatus::Uploading),
                            Outcome::NoSource if asked => Outcome::Status(BlobStatus::Unknown),
                            outcome => outcome,
                        };
                        let ends = matches!(
                            outcome,
                            Outcome::Stored | Outcome::NoSource | Outcome::Status(BlobStatus::Stored)
                        );
                        if let Err(error) = plan.report(id, outcome, now, 0.5) {
                            prop_assert!(retries < 100, "{error:?}");
                            return Ok(());
                        }
                        if ends {
                            ended.push(id);
                        }
                    }
                    Step::WaitUntil(time) => {
                        prop_assert!(time > now);
                        now = time;
                    }
                    Step::WaitForOutcome => prop_assert!(false, "nothing is under way"),
                    Step::Done => {
                        prop_assert_eq!(ended.len(), usize::from(count));
                        return Ok(());
                    }
                }
                now += Duration::from_millis(10);
            }
            prop_assert!(false, "it does not end");
        }
    }
}
