//! The state of the comparison between the Manager's storage and this server's. Pure: `check.rs`
//! asks the Manager.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};

/// How a server in front of a Manager names checkouts in its answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckoutPaths {
    /// Relative to `{jobs}`, which the Manager expands for each worker.
    #[default]
    Relative,
    /// Absolute, as the path is on this machine. The Manager's `{jobs}` is not used.
    Absolute,
}

/// The storage of a Manager, as its configuration describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagerStorage {
    /// Its `storageLocation`.
    pub location: String,
    /// Whether the Manager's own Shaman is enabled.
    pub shaman_enabled: bool,
}

/// The result of a comparison of the Manager's storage with this server's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// Both use one directory.
    Same {
        /// The Manager's storage.
        manager: ManagerStorage,
        /// The directory of checkouts, as the Manager sees it.
        checkouts: String,
        /// The path from the Manager's `{jobs}` to that directory: `""` or `"jobs/"`.
        jobs_prefix: &'static str,
    },
    /// The Manager does not see this server's directory.
    Different {
        /// The Manager's storage.
        manager: ManagerStorage,
        /// The evidence, with both paths.
        reason: String,
    },
    /// There is no proof for either.
    Unknown {
        /// The Manager's storage, if the Manager described it.
        manager: Option<ManagerStorage>,
        /// The obstacle.
        reason: String,
    },
}

impl Comparison {
    /// The state before the first check.
    fn none_yet() -> Self {
        Self::Unknown { manager: None, reason: "the Manager has not been asked yet".into() }
    }

    /// Whether both use one directory.
    pub fn is_same(&self) -> bool {
        matches!(self, Self::Same { .. })
    }

    /// The Manager's storage, as far as it is known.
    pub fn manager(&self) -> Option<&ManagerStorage> {
        match self {
            Self::Same { manager, .. } | Self::Different { manager, .. } => Some(manager),
            Self::Unknown { manager, .. } => manager.as_ref(),
        }
    }

    /// Why there is no proof that both use one directory, and what to do about it.
    pub fn objection(&self) -> Option<(&str, &'static str)> {
        match self {
            Self::Same { .. } => None,
            Self::Different { reason, .. } => Some((
                reason,
                "set the Manager's shared storage and this server's --storage to one directory that \
                 both can reach, or, if every worker finds this server's jobs directory under the \
                 same path, set serve.checkout_paths = \"absolute\"",
            )),
            Self::Unknown { reason, .. } => Some((
                reason,
                "see that the Manager runs, and answers this server (the setting headers has what a \
                 proxy before it may ask for), or set serve.checkout_paths = \"absolute\"",
            )),
        }
    }
}

/// The latest comparison, and whether it must be made anew.
#[derive(Debug)]
pub(super) struct StorageState {
    latest: Mutex<(Comparison, Option<Instant>)>,
    /// The Manager gave no answer to the latest request.
    is_away: AtomicBool,
    /// It has answered again since: it may be another one, or have another configuration.
    is_due: AtomicBool,
    /// Wakes the periodic check.
    pub wake: Notify,
    /// Single-flight for checks.
    pub checking: tokio::sync::Mutex<()>,
}

impl Default for StorageState {
    fn default() -> Self {
        Self {
            latest: Mutex::new((Comparison::none_yet(), None)),
            is_away: AtomicBool::new(false),
            is_due: AtomicBool::new(true),
            wake: Notify::new(),
            checking: tokio::sync::Mutex::default(),
        }
    }
}

impl StorageState {
    fn latest(&self) -> std::sync::MutexGuard<'_, (Comparison, Option<Instant>)> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self) -> Comparison {
        self.latest().0.clone()
    }

    /// When the latest check ended.
    pub fn checked_at(&self) -> Option<Instant> {
        self.latest().1
    }

    /// Notes whether the Manager answered a request.
    pub fn note_contact(&self, answered: bool) {
        if !answered {
            self.is_away.store(true, SeqCst);
        } else if self.is_away.swap(false, SeqCst) {
            self.is_due.store(true, SeqCst);
            self.wake.notify_one();
        }
    }

    pub fn is_due(&self) -> bool {
        self.is_due.load(SeqCst)
    }

    /// A check begins now: later contacts may make another one due.
    pub fn begin(&self) {
        self.is_due.store(false, SeqCst);
    }

    /// Takes the result of a check; returns the new state, if it differs from the old. A Manager
    /// that gives no answer disproves nothing: an earlier proof stays.
    pub fn finish(&self, found: Comparison) -> Option<Comparison> {
        let mut latest = self.latest();
        latest.1 = Some(Instant::now());
        let is_silence = matches!(found, Comparison::Unknown { .. });
        if latest.0 == found || (is_silence && latest.0.is_same()) {
            return None;
        }
        latest.0 = found.clone();
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same() -> Comparison {
        let manager = ManagerStorage { location: "/farm".into(), shaman_enabled: true };
        Comparison::Same { manager, checkouts: "/farm/jobs".into(), jobs_prefix: "" }
    }

    fn unknown(reason: &str) -> Comparison {
        Comparison::Unknown { manager: None, reason: reason.into() }
    }

    #[test]
    fn silence_does_not_revoke_a_proof() {
        let state = StorageState::default();
        assert_eq!(state.finish(unknown("down")), Some(unknown("down")));
        assert_eq!(state.finish(unknown("down")), None, "it is logged once");
        assert_eq!(state.finish(same()), Some(same()));
        assert_eq!(state.finish(unknown("down")), None);
        assert_eq!(state.get(), same());
        let manager = same().manager().unwrap().clone();
        let different = Comparison::Different { manager, reason: "x".into() };
        assert_eq!(state.finish(different.clone()), Some(different.clone()));
        assert_eq!(state.get(), different, "evidence does");
    }

    #[test]
    fn a_check_is_due_when_the_manager_returns() {
        let state = StorageState::default();
        assert!(state.is_due(), "at the start");
        state.begin();
        state.note_contact(true);
        assert!(!state.is_due());
        state.note_contact(false);
        assert!(!state.is_due(), "there is nothing to ask yet");
        state.note_contact(true);
        assert!(state.is_due());
    }
}
