//! Bytes as a sequence of commands, given to the engine and to a naive model, whose answers must agree.

#![no_main]

#[path = "../../tests/model/mod.rs"]
mod model;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| model::run(bytes));
