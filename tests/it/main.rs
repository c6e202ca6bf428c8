//! All integration tests, in one binary: real servers on ports of this machine, real HTTP, real files.

// `clippy.toml` allows this in test functions, but not in what they share.
#![allow(clippy::unwrap_used)]

mod addon;
mod bad_input;
mod cli;
mod common;

mod conformance;
mod crash;
mod layering;
mod races;
mod server;
mod shutdown;
mod sync;
