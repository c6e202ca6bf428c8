//! How programs on one machine find and ask a running agent: HTTP on a port of the loopback interface, whose
//! address and token are in a file that only its user can read.

mod client;
mod registry;
mod scan;
mod server;

pub use client::{AskError, Asked, Held, find};
pub use registry::{Registration, RegistryError};
pub use server::serve;

/// The version of this interface, in its paths.
const ROOT: &str = "/v1";
