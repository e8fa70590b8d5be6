//! A naive marketplace to compare the engine with: bytes become a sequence of commands, which both are given.
//!
//! Included by the test `model`, which draws the bytes by chance, and by the fuzz target `commands`, which looks for
//! bytes that reach new code.

#[allow(dead_code, reason = "a part of the clock is for other tests")]
#[path = "../common/clock.rs"]
mod clock;
mod naive;
mod queries;
mod sequence;

pub use sequence::run;
