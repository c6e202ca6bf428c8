//! farmhand: Shaman-compatible file sync for render farms.
//!
//! Clients hash files, ask a server what it lacks, send that, and have a directory of links to the
//! stored blobs created. This crate is both sides: the [`agent`] and the [`store`] with its
//! [`server`]. `docs/DESIGN.md` is the map.

pub mod agent;
pub mod chunks;
pub mod cli;
pub mod client;
pub mod conformance;
pub mod control;
pub mod disk;
pub mod domain;
pub mod exec;
pub mod jobs;
pub mod ledger;
pub mod meter;
pub mod preview;
pub mod scan;
pub mod server;
mod sha256;
pub mod store;
pub mod wire;
