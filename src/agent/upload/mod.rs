//! Sends what the server lacks: a pure plan, and the runner that acts on it.

mod batch;
mod buffers;
mod line;
mod pace;
mod pack;
mod pieces;
mod plan;
mod run;
mod send;
#[cfg(test)]
mod simulation;
mod throttle;
mod timetable;
mod way;

pub(super) use buffers::Buffers;
pub use line::{Hold, Line, UploadNow};
pub(super) use run::{Job, Tally, run};
pub use timetable::{BadLimit, Limit, Timetable};
pub(super) use way::{Chooser, MODES};
pub use way::{Delta, Mode};
