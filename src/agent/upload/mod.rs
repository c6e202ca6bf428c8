//! Sends what the server lacks: a pure plan, and the runner that acts on it.

mod line;
mod pace;
mod plan;
mod run;
mod send;
#[cfg(test)]
mod simulation;
mod throttle;
mod timetable;

pub use line::{Hold, Line, UploadNow};
pub(super) use run::{Job, run};
pub use timetable::{BadLimit, Limit, Timetable};
