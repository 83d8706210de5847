//! The bodies of the fuzz targets, and what they start from.
//!
//! A package of its own, outside of the workspace: fuzzing needs a nightly compiler and instruments every
//! dependency. `cargo xtask fuzz` runs it; the workspace's tests replay the corpora through the same files.

pub mod seeds;
pub mod targets;
