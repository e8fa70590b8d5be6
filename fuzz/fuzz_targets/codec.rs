//! Bytes as a record of every kind: reading never panics, and what was read is written and read back the same.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tradepost::store::fuzzing::read_records(bytes));
