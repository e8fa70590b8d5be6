//! Random sequences of commands against a naive model: every answer and every query agree, across restarts too.
//!
//! `TRADEPOST_MODELS` says how many sequences there are, `TRADEPOST_MODELS_SEED` which.

#[path = "model/mod.rs"]
mod model;
#[allow(dead_code, reason = "a part of it is for other tests")]
#[path = "common/trials.rs"]
mod trials;

use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, RngSeed, TestRunner};
use trials::Trials;

const SEQUENCES: u32 = 64;

#[test]
fn the_engine_answers_as_a_naive_model_does() {
    let given = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let cases = given("TRADEPOST_MODELS").map_or(SEQUENCES, |count| u32::try_from(count).expect("it fits"));
    let seed = given("TRADEPOST_MODELS_SEED").unwrap_or_else(rand::random);
    let trials = Trials::of("model", seed);
    // Those that failed once come first, every time.
    let failed_once = FileFailurePersistence::Direct("tests/model.proptest-regressions");
    let config = ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: Some(Box::new(failed_once)),
        ..ProptestConfig::default()
    };
    let bytes = prop::collection::vec(any::<u8>(), 0..2_000);
    let outcome = TestRunner::new(config).run(&bytes, |bytes| {
        trials.ran(1);
        model::run(&bytes);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("TRADEPOST_MODELS={cases} TRADEPOST_MODELS_SEED={seed}: {error}"));
}
