//! The plan as it is used, with its pace and its circuit breaker, against a server that is slow,
//! busy, wrong and gone, at random.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use proptest::prelude::*;

use super::plan::{Outcome, Patience, Plan, Step};
use crate::domain::{BlobId, BlobStatus, Digest};

const TICK: Duration = Duration::from_millis(10);

#[derive(Debug, Clone)]
struct Server {
    /// So many connections at once make it go no faster, and each has this many bytes a tick.
    knee: usize,
    bytes_a_tick: u64,
    /// How many of a thousand uploads fail, as long as it fails at all.
    fails: u32,
    fails_until: Duration,
    /// It is not there: from, for how long.
    gone: Vec<(Duration, Duration)>,
    seed: u64,
}

struct World {
    server: Server,
    rng: fastrand::Rng,
    now: Duration,
    stored: HashSet<BlobId>,
    told_stored: HashSet<BlobId>,
    /// What is under way: what is asked, not sent, and what is left to send.
    flying: HashMap<BlobId, (bool, u64)>,
    sent_bytes: u64,
    sends: u64,
    /// Sends and questions that began while the server was gone, in each such time.
    in_vain: HashMap<usize, u32>,
    most_at_once: usize,
}

impl World {
    fn gone(&self) -> Option<usize> {
        let is_now = |(from, time): &(Duration, Duration)| {
            *from <= self.now && self.now.saturating_sub(*from) < *time
        };
        self.server.gone.iter().position(is_now)
    }

    fn begin(&mut self, id: BlobId, asks: bool) {
        assert!(!self.told_stored.contains(&id), "it is sent again, or asked for");
        assert!(self.flying.insert(id, (asks, id.size_bytes)).is_none());
        self.sends += u64::from(!asks);
        self.most_at_once = self.most_at_once.max(self.flying.len());
        if let Some(outage) = self.gone() {
            *self.in_vain.entry(outage).or_default() += 1;
        }
    }

    /// A tick goes by; what has come to an end, and how.
    fn tick(&mut self) -> Vec<(BlobId, Outcome)> {
        self.now += TICK;
        let lost = || Outcome::Later { reason: "refused".into(), pause: None, reached: false };
        let mut ids: Vec<_> = self.flying.keys().copied().collect();
        ids.sort_unstable();
        let is_gone = self.gone().is_some();
        let busy = self.flying.len();
        let share =
            self.server.bytes_a_tick * busy.min(self.server.knee) as u64 / busy.max(1) as u64;
        let mut ended = Vec::new();
        for id in ids {
            let (asks, left) = self.flying[&id];
            let outcome = if is_gone {
                if left < id.size_bytes { Outcome::Unknown("reset".into()) } else { lost() }
            } else if asks {
                Outcome::Status(match self.stored.contains(&id) {
                    true => BlobStatus::Stored,
                    false => BlobStatus::Unknown,
                })
            } else {
                let sent = left.min(share.max(1));
                self.sent_bytes += sent;
                if left > sent {
                    self.flying.insert(id, (false, left - sent));
                    continue;
                }
                self.answer(id)
            };
            self.flying.remove(&id);
            if matches!(outcome, Outcome::Stored | Outcome::Status(BlobStatus::Stored)) {
                self.told_stored.insert(id);
            }
            ended.push((id, outcome));
        }
        ended
    }

    fn answer(&mut self, id: BlobId) -> Outcome {
        let fails = self.now < self.server.fails_until && self.rng.u32(..1000) < self.server.fails;
        if !fails {
            self.stored.insert(id);
            return Outcome::Stored;
        }
        match self.rng.u32(..6) {
            0 => Outcome::Later { reason: "503".into(), pause: None, reached: true },
            1 => Outcome::Later {
                reason: "429".into(),
                pause: Some(Duration::from_secs(1)),
                reached: true,
            },
            2 => Outcome::Later { reason: "502".into(), pause: None, reached: false },
            3 => Outcome::Deferred,
            4 => {
                // Its answer is lost.
                self.stored.insert(id);
                Outcome::Unknown("reset".into())
            }
            _ => Outcome::Unknown("reset".into()),
        }
    }
}

fn any_server() -> impl Strategy<Value = Server> {
    let seconds = |most: u64| (0..most * 100).prop_map(|ticks| TICK * ticks as u32);
    let gone = prop::collection::vec((seconds(60), seconds(20)), 0..4);
    (1usize..20, 1u64..1_000_000, 0u32..600, seconds(60), gone, any::<u64>()).prop_map(
        |(knee, bytes_a_tick, fails, fails_until, mut gone, seed)| {
            gone.sort_unstable();
            Server { knee, bytes_a_tick: bytes_a_tick * 10, fails, fails_until, gone, seed }
        },
    )
}

fn blobs(small: usize, large: usize) -> Vec<BlobId> {
    let mut rng = fastrand::Rng::with_seed(11);
    let mut blob = |sizes: std::ops::Range<u64>| {
        let mut digest = [0; 32];
        rng.fill(&mut digest);
        BlobId { digest: Digest::from_bytes(digest), size_bytes: rng.u64(sizes) }
    };
    let small: Vec<_> = (0..small).map(|_| blob(0..100_000)).collect();
    small.into_iter().chain((0..large).map(|_| blob(1_000_000..10_000_000))).collect()
}

/// Sends everything to this server; the error is that of the plan.
fn run(server: &Server, ids: &[BlobId], retries: u32, most: usize) -> (World, Result<(), String>) {
    let patience = Patience { retries, defer: Duration::from_secs(5) };
    let mut plan = Plan::new(ids.iter().copied(), patience, most, server.seed);
    let mut world = World {
        rng: fastrand::Rng::with_seed(server.seed),
        server: server.clone(),
        now: Duration::ZERO,
        stored: HashSet::new(),
        told_stored: HashSet::new(),
        flying: HashMap::new(),
        sent_bytes: 0,
        sends: 0,
        in_vain: HashMap::new(),
        most_at_once: 0,
    };
    // Hours: the slowest server needs them.
    for _ in 0..5_000_000 {
        plan.look(world.now, world.sent_bytes, false);
        loop {
            match plan.next(world.now) {
                Step::Send { id, .. } => world.begin(id, false),
                Step::Ask(id) => world.begin(id, true),
                Step::WaitUntil(time) => {
                    assert!(time > world.now);
                    break;
                }
                Step::WaitForOutcome => {
                    assert!(!world.flying.is_empty(), "it waits for nothing");
                    break;
                }
                Step::Done => {
                    assert!(world.flying.is_empty());
                    return (world, Ok(()));
                }
            }
        }
        for (id, outcome) in world.tick() {
            let jitter = world.rng.f64();
            if let Err(exhausted) = plan.report(id, outcome, world.now, jitter) {
                return (world, Err(exhausted.reason));
            }
        }
    }
    panic!("it does not end");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// With patience for all of it, everything is stored, and nothing is sent after "stored".
    #[test]
    fn everything_is_stored_in_the_end(server in any_server(), small in 0usize..60, large in 0usize..8, most in 1usize..12) {
        let ids = blobs(small, large);
        let (world, ended) = run(&server, &ids, 1000, most);
        prop_assert_eq!(ended, Ok(()));
        prop_assert!(ids.iter().all(|id| world.stored.contains(id)));
        prop_assert!(world.most_at_once <= most, "{} at once", world.most_at_once);
        // While it is gone: what fills the line once, what goes before the breaker opens, and then
        // a probe after each pause. Twenty seconds have seven of these.
        for (outage, tries) in &world.in_vain {
            prop_assert!(*tries <= most as u32 + 2 + 9, "{tries} tries in outage {outage}");
        }
    }

    /// With less patience it may fail, but it ends, and what it says is stored is.
    #[test]
    fn it_ends_with_any_patience(server in any_server(), small in 0usize..60, retries in 0u32..6) {
        let ids = blobs(small, 2);
        let (world, ended) = run(&server, &ids, retries, 8);
        prop_assert!(world.told_stored.is_subset(&world.stored));
        prop_assert!(ended.is_err() || world.told_stored.len() == ids.len());
        // Each failure of a blob leads to one more send at most.
        prop_assert!(world.sends <= ids.len() as u64 * u64::from(2 * retries + 2) + u64::from(retries));
    }
}

/// A server that is started again within the time for which we wait, again and again, costs time
/// only, with few retries and many blobs.
#[test]
fn restarts_cost_no_blob_its_budget() {
    let second = Duration::from_secs(1);
    let server = Server {
        knee: 4,
        bytes_a_tick: 100_000,
        fails: 0,
        fails_until: Duration::ZERO,
        gone: (1..20).map(|number| (10 * number * second, 2 * second)).collect(),
        seed: 5,
    };
    let ids = blobs(4000, 200);
    let (world, ended) = run(&server, &ids, 5, 8);
    assert_eq!(ended, Ok(()));
    assert!(world.now > 30 * second, "{:?}", world.now);
    assert!(world.in_vain.values().all(|tries| *tries <= 20), "{:?}", world.in_vain);
}

/// Within a few seconds, and with as many at once as help.
#[test]
fn it_goes_as_fast_as_the_server_can() {
    for knee in [1, 3, 8] {
        let server = Server {
            knee,
            bytes_a_tick: 100_000,
            fails: 0,
            fails_until: Duration::ZERO,
            gone: vec![],
            seed: 5,
        };
        let ids = blobs(0, 200);
        let (world, ended) = run(&server, &ids, 5, 8);
        assert_eq!(ended, Ok(()));
        let total: u64 = ids.iter().map(|id| id.size_bytes).sum();
        let ticks = world.now.as_millis() as f64 / TICK.as_millis() as f64;
        let share = total as f64 / (ticks * (100_000 * knee) as f64);
        assert!(share > 0.85, "{share} of what {knee} connections can");
    }
}
