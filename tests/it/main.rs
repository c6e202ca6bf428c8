//! All integration tests, in one binary: real servers on ports of this machine, real HTTP, real files.

// Permissions, signals, links: what the tests look at is Unix. The pure parts have their tests beside the code.
#![cfg(unix)]
// `clippy.toml` allows this in test functions, but not in what they share.
#![allow(clippy::unwrap_used)]

mod access;
mod access_log;
mod addon;
mod bad_input;
mod cli;
mod common;

mod cache;
mod conformance;
mod crash;
mod crash_upkeep;
mod delta;
mod disk_full;
mod doctor;
mod download;
mod erase;
mod extension;
mod farm;
mod faults;
mod fuzz;
mod gateway;
mod gateway_storage;
mod layering;
mod line;
mod metrics;
mod mounts;
mod odd_files;
mod openapi;
mod plan;
mod project;
mod races;
mod server;
mod service;
mod shutdown;
mod silent_changes;
mod soak;
mod store;
mod submit;
mod sync;
mod target;
mod tls;
mod watch;
