//! All integration tests, in one binary: real servers on ports of this machine, real HTTP, real files.

mod addon;
mod bad_input;
mod cli;
mod common;
mod conformance;
mod layering;
mod server;
mod shutdown;
mod sync;
