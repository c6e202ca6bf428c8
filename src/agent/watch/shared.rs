//! What the folders of an agent share: the line, pauses, whose turn it is, and who listens.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;
use tokio::sync::{broadcast, watch};

use super::status::FolderStatus;
use crate::agent::upload::Line;

/// How far one who listens may fall behind.
const KEPT_EVENTS: usize = 256;

/// What an agent tells those who listen.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum AgentEvent {
    /// A folder is at something else.
    Folder(Box<FolderStatus>),
    /// The agent was told to pause.
    Paused,
    /// It was told to go on.
    Resumed,
}

#[derive(Debug)]
pub(super) struct Shared {
    /// For all folders together.
    pub line: Arc<Line>,
    paused: watch::Sender<bool>,
    /// How many send, by priority.
    sending: watch::Sender<BTreeMap<i32, usize>>,
    events: broadcast::Sender<AgentEvent>,
}

/// The right to send, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    shared: &'a Shared,
    priority: i32,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.shared.sending.send_modify(|sending| {
            if let Some(count) = sending.get_mut(&self.priority) {
                *count -= 1;
                if *count == 0 {
                    sending.remove(&self.priority);
                }
            }
        });
    }
}

impl Shared {
    pub fn new(line: Arc<Line>) -> Self {
        Self {
            line,
            paused: watch::Sender::new(false),
            sending: watch::Sender::default(),
            events: broadcast::Sender::new(KEPT_EVENTS),
        }
    }

    pub fn is_paused(&self) -> bool {
        *self.paused.borrow()
    }

    pub fn pauses(&self) -> watch::Receiver<bool> {
        self.paused.subscribe()
    }

    /// Pauses or goes on.
    pub fn pause(&self, pause: bool) {
        let changed =
            self.paused.send_if_modified(|paused| std::mem::replace(paused, pause) != pause);
        if changed {
            self.tell(if pause { AgentEvent::Paused } else { AgentEvent::Resumed });
        }
    }

    /// Waits until nobody with a higher priority sends.
    pub async fn turn(&self, priority: i32) -> Turn<'_> {
        let mut sending = self.sending.subscribe();
        loop {
            let is_ours = self.sending.send_if_modified(|sending| {
                let is_ours = sending.keys().next_back().is_none_or(|highest| *highest <= priority);
                if is_ours {
                    *sending.entry(priority).or_default() += 1;
                }
                is_ours
            });
            if is_ours {
                return Turn { shared: self, priority };
            }
            // The sender lives as long as we do.
            let _ = sending.changed().await;
        }
    }

    pub fn events(&self) -> broadcast::Receiver<AgentEvent> {
        self.events.subscribe()
    }

    fn tell(&self, event: AgentEvent) {
        // Nobody may be listening.
        let _ = self.events.send(event);
    }

    pub fn folder_changed(&self, status: &FolderStatus) {
        self.tell(AgentEvent::Folder(Box::new(status.clone())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_higher_priority_goes_first() {
        let shared = Shared::new(Arc::default());
        let high = shared.turn(5).await;
        let (same, low) = (shared.turn(5).await, tokio::spawn(async {}));
        low.await.unwrap();
        let mut waiting = Box::pin(shared.turn(0));
        assert!(futures_poll(&mut waiting).await.is_none());
        drop(high);
        assert!(futures_poll(&mut waiting).await.is_none());
        drop(same);
        let low = waiting.await;
        assert_eq!(low.priority, 0);
        // One that is higher does not wait for those who have begun.
        let _high = shared.turn(1).await;
    }

    async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = std::future::ready(()) => None,
        }
    }
}
