//! Sends what the server lacks: a pure plan, and the runner that acts on it.

mod plan;
mod run;
mod send;

pub(super) use run::{Job, run};
