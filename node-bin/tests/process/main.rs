//! Members as processes: what they say, what they serve to probes and dashboards, how they end, and what becomes of
//! them on disks and in clusters that are not as they should be.

mod cluster;
mod disk;
mod life;
mod member;
mod ports;
mod tls;
