//! Jobs, as Flamenco's API has them: what a type of job takes, what is submitted, and what becomes of it.
//! Pure, and shared by the side that submits and the side that keeps.
//!
//! Source: the OpenAPI document of Flamenco 3.9.

mod job;
mod kind;

pub use job::{
    Job, JobStatus, NotNow, Platform, Storage, SubmittedJob, checkout_of, uses_checkout,
};
pub use kind::{BadSetting, BadType, JobType, Setting, ValueKind};

/// The text in a job's settings that stands for the directory of checkouts.
pub const JOBS_VARIABLE: &str = "{jobs}";

/// The text in a job's settings that stands for the directory of the jobs' outputs.
pub const RENDERS_VARIABLE: &str = "{renders}";

/// The setting that says to which files a job renders.
pub const OUTPUT_SETTING: &str = "render_output_path";

/// The setting that says below which directory it does.
pub const OUTPUT_ROOT_SETTING: &str = "render_output_root";

/// A type of job for rendering a .blend, for those who have none of their own.
pub const SIMPLE_BLENDER_RENDER: &str = include_str!("simple-blender-render.json");
