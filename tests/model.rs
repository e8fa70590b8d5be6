//! Random sequences of commands against a naive model: every answer and every query agree, across restarts too.

#[path = "model/mod.rs"]
mod model;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_answers_as_a_naive_model_does(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
        model::run(&bytes);
    }
}
