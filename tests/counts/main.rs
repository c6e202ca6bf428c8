//! What things cost, counted and not timed: system calls and allocations for each blob, link, entry and file.
//!
//! A count is the same on a slow machine, on a fast one, and on one that has other things to do. What may be
//! spent is in `limits.rs`.

#![cfg(unix)]
// `clippy.toml` allows this in test functions, but not in what they share.
#![allow(clippy::unwrap_used)]
// Elsewhere only allocations are counted.
#![cfg_attr(
    not(all(
        target_os = "linux",
        target_env = "gnu",
        any(target_arch = "x86_64", target_arch = "aarch64")
    )),
    allow(dead_code)
)]

mod allocations;
mod bodies;
#[path = "../it/common.rs"]
#[allow(dead_code, reason = "shared with the other tests, which use more of it")]
mod common;
mod ledger;
mod limits;
#[cfg(all(
    target_os = "linux",
    target_env = "gnu",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod syscalls;
#[cfg(all(
    target_os = "linux",
    target_env = "gnu",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod trace;

use std::{
    alloc::System,
    sync::{Mutex, MutexGuard, PoisonError},
};

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// One test at a time: allocations are counted in all threads of the process.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
