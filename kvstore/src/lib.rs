//! placeholder
pub mod backend;
pub mod pb;
