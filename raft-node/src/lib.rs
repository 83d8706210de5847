//! placeholder
pub mod disk;
pub mod snap;
pub mod wal;
