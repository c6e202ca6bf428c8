//! What to send next. Pure: outcomes and the time go in, steps come out.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    time::Duration,
};

use crate::domain::{BlobId, BlobStatus};

/// The pauses after a first failure, and at most.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The longest pause that a server can ask for.
const ASKED_PAUSE_MAX: Duration = Duration::from_secs(60);

/// The pauses between looks at a blob that somebody else is sending.
const DEFER_PAUSE_MIN: Duration = Duration::from_millis(250);
const DEFER_PAUSE_MAX: Duration = Duration::from_secs(5);

/// How patient a plan is.
#[derive(Debug, Clone)]
pub(in crate::agent) struct Patience {
    /// How often a blob is tried again after a failure.
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
}

/// All blobs to send, and how far each is.
#[derive(Debug)]
pub(super) struct Plan {
    patience: Patience,
    due: VecDeque<BlobId>,
    later: BinaryHeap<Reverse<(Duration, BlobId)>>,
    items: HashMap<BlobId, Item>,
    in_flight: usize,
    pub deferrals: u64,
    pub retries: u64,
}

impl Plan {
    /// Plans to send these, in this order.
    pub fn new(ids: impl IntoIterator<Item = BlobId>, patience: Patience) -> Self {
        let mut items = HashMap::new();
        let mut due = VecDeque::new();
        for id in ids {
            if items.insert(id, Item::default()).is_none() {
                due.push_back(id);
            }
        }
        let later = BinaryHeap::new();
        Self { patience, due, later, items, in_flight: 0, deferrals: 0, retries: 0 }
    }

    /// The next step. Each `Send` and `Ask` must be followed by a [`Plan::report`].
    pub fn next(&mut self, now: Duration) -> Step {
        while let Some(&Reverse((time, id))) = self.later.peek()
            && time <= now
        {
            self.later.pop();
            self.due.push_back(id);
        }
        if let Some(id) = self.due.pop_front() {
            self.in_flight += 1;
            let item = self.items.get_mut(&id).expect("BUG: only planned blobs are due");
            if item.ask_first {
                return Step::Ask(id);
            }
            let waited = item.deferred_at.map_or(Duration::ZERO, |since| now.saturating_sub(since));
            item.insisted = waited >= self.patience.defer;
            return Step::Send { id, may_defer: !item.insisted };
        }
        match self.later.peek() {
            Some(&Reverse((time, _))) => Step::WaitUntil(time),
            None if self.in_flight > 0 => Step::WaitForOutcome,
            None => Step::Done,
        }
    }

    /// Takes note of what became of a step. `jitter` is from 0 to 1: pauses of many clients must
    /// not end together.
    ///
    /// # Errors
    /// If the blob has been tried often enough.
    pub fn report(
        &mut self,
        id: BlobId,
        outcome: Outcome,
        now: Duration,
        jitter: f64,
    ) -> Result<(), Exhausted> {
        self.in_flight -= 1;
        let item = self.items.get_mut(&id).expect("BUG: only planned blobs are reported");
        let pause = match outcome {
            Outcome::Stored | Outcome::Status(BlobStatus::Stored) | Outcome::NoSource => {
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
            Outcome::Status(BlobStatus::Unknown) => {
                item.ask_first = false;
                Duration::ZERO
            }
            Outcome::Interrupted => {
                item.ask_first = true;
                Duration::ZERO
            }
            Outcome::Unknown(reason) if item.failures >= self.patience.retries => {
                return Err(Exhausted { id, reason, reached: false });
            }
            Outcome::Later { reason, reached, .. } if item.failures >= self.patience.retries => {
                return Err(Exhausted { id, reason, reached });
            }
            Outcome::Unknown(_) => {
                self.retries += 1;
                item.ask_first = true;
                item.failures += 1;
                pause(item.failures, PAUSE_MIN, PAUSE_MAX, jitter)
            }
            Outcome::Later { pause: asked, .. } => {
                self.retries += 1;
                item.failures += 1;
                let own = pause(item.failures, PAUSE_MIN, PAUSE_MAX, jitter);
                own.max(asked.unwrap_or_default().min(ASKED_PAUSE_MAX))
            }
        };
        if pause.is_zero() {
            self.due.push_back(id);
        } else {
            self.later.push(Reverse((now + pause, id)));
        }
        Ok(())
    }
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

    fn plan(count: u8) -> Plan {
        Plan::new((0..count).map(id), Patience { retries: 3, defer: 60 * SECOND })
    }

    #[test]
    fn sends_each_blob_once() {
        let mut plan = Plan::new([id(0), id(1), id(0)], Patience { retries: 3, defer: SECOND });
        assert_eq!(plan.next(SECOND), Step::Send { id: id(0), may_defer: true });
        assert_eq!(plan.next(SECOND), Step::Send { id: id(1), may_defer: true });
        assert_eq!(plan.next(SECOND), Step::WaitForOutcome);
        plan.report(id(1), Outcome::Stored, SECOND, 0.5).unwrap();
        plan.report(id(0), Outcome::Stored, SECOND, 0.5).unwrap();
        assert_eq!(plan.next(SECOND), Step::Done);
    }

    #[test]
    fn a_deferred_blob_goes_to_the_back_and_is_asked_for_first() {
        let mut plan = plan(2);
        plan.next(SECOND);
        plan.report(id(0), Outcome::Deferred, SECOND, 1.0).unwrap();
        assert_eq!(plan.next(SECOND), Step::Send { id: id(1), may_defer: true });
        plan.report(id(1), Outcome::Stored, SECOND, 1.0).unwrap();
        assert_eq!(plan.next(SECOND), Step::WaitUntil(SECOND + DEFER_PAUSE_MIN));
        assert_eq!(plan.next(2 * SECOND), Step::Ask(id(0)));
        plan.report(id(0), Outcome::Status(BlobStatus::Unknown), 2 * SECOND, 1.0).unwrap();
        assert_eq!(plan.next(2 * SECOND), Step::Send { id: id(0), may_defer: true });
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
        }
        let error = plan.report(id(0), later("503", None), now, 1.0).unwrap_err();
        assert_eq!(error, Exhausted { id: id(0), reason: "503".into(), reached: true });
        assert_eq!(plan.retries, 3);
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
            Just(Outcome::NoSource),
        ]
    }

    proptest! {
        /// Whatever the server does, the plan ends, sends nothing after "stored", and loses nothing.
        #[test]
        fn always_ends(outcomes in prop::collection::vec(any_outcome(), 1..40), count in 1u8..6, width in 1usize..4) {
            let mut plan = plan(count);
            let (mut ended, mut flying) = (Vec::new(), Vec::new());
            let mut now = Duration::ZERO;
            let mut outcomes = outcomes.into_iter().chain(std::iter::repeat(Outcome::Stored));
            for _ in 0..10_000 {
                let step = if flying.len() < width { plan.next(now) } else { Step::WaitForOutcome };
                match step {
                    Step::Send { id, .. } => {
                        prop_assert!(!ended.contains(&id));
                        flying.push((id, false));
                    }
                    Step::Ask(id) => flying.push((id, true)),
                    Step::WaitUntil(_) | Step::WaitForOutcome if !flying.is_empty() => {
                        let (id, asked) = flying.remove(0);
                        let outcome = match outcomes.next().unwrap() {
                            Outcome::Stored if asked => Outcome::Status(BlobStatus::Stored),
                            Outcome::Deferred if asked => Outcome::Status(BlobStatus::Uploading),
                            Outcome::NoSource if asked => Outcome::Status(BlobStatus::Unknown),
                            outcome => outcome,
                        };
                        let ends = matches!(outcome, Outcome::Stored | Outcome::NoSource | Outcome::Status(BlobStatus::Stored));
                        if plan.report(id, outcome, now, 0.5).is_err() {
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
