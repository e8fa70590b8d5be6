//! The parts of a simulated fleet.

pub mod centre;
mod check;
mod disk;
pub mod market;
mod node;
pub mod plan;
mod time;
mod wire;
