//! Whether what several clients saw of one object is what one client could have seen who did it all, one thing after the
//! other, each somewhere between its call and its answer: linearizability.
//!
//! The search is that of Wing and Gong ("Testing and Verifying Concurrent Objects", J. Parallel Distrib. Comput., 1993),
//! which remembers where it has been, as Lowe ("Testing for linearizability", 2017) proposes. Objects are looked at one by
//! one: a history is linearizable if the history of each of its objects is (Herlihy and Wing, 1990).

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// What can be done to an object, and what it answers.
pub trait Model {
    type State: Clone + Eq + Hash;
    type Action: Debug;
    type Answer: Debug + PartialEq;

    fn begin() -> Self::State;

    /// What becomes of the object, and what it says.
    fn step(state: &Self::State, action: &Self::Action) -> (Self::State, Self::Answer);
}

/// One thing that a client did.
#[derive(Debug)]
pub struct Operation<M: Model> {
    pub action: M::Action,
    /// When it was asked for; any unit.
    pub called: u64,
    /// When the answer came and what it was. Without one, it may have been done at any time since, or not at all.
    pub answered: Option<(u64, M::Answer)>,
}

/// Whether there is an order that explains every answer.
///
/// # Panics
/// For more than 128 operations on one object.
pub fn is_linearizable<M: Model>(operations: &[Operation<M>]) -> bool {
    assert!(operations.len() <= 128, "a history of one object is short");
    let answered = (0..operations.len()).filter(|index| operations[*index].answered.is_some());
    let all = answered.fold(0_u128, |set, index| set | 1 << index);
    let mut seen = HashSet::new();
    let mut open = vec![(0_u128, M::begin())];
    while let Some((done, state)) = open.pop() {
        if done & all == all {
            return true;
        }
        if !seen.insert((done, state.clone())) {
            continue;
        }
        let left = || (0..operations.len()).filter(move |index| done & 1 << index == 0);
        // Nothing comes next that was asked for only after something else that is still to come was answered.
        let first_answer = left().filter_map(|index| operations[index].answered.as_ref().map(|(at, _)| *at)).min();
        for index in left().filter(|index| first_answer.is_none_or(|at| operations[*index].called < at)) {
            let operation = &operations[index];
            let (next, answer) = M::step(&state, &operation.action);
            if operation.answered.as_ref().is_none_or(|(_, seen)| *seen == answer) {
                open.push((done | 1 << index, next));
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register that holds a number.
    #[derive(Debug)]
    struct Register;

    #[derive(Debug, Clone, Copy)]
    enum Act {
        Write(u8),
        Read,
    }

    impl Model for Register {
        type State = u8;
        type Action = Act;
        type Answer = u8;

        fn begin() -> u8 {
            0
        }

        fn step(state: &u8, action: &Act) -> (u8, u8) {
            match action {
                Act::Write(value) => (*value, *value),
                Act::Read => (*state, *state),
            }
        }
    }

    /// An action, when it was asked for, and when what was answered.
    type Row = (Act, u64, Option<(u64, u8)>);

    fn history(rows: &[Row]) -> Vec<Operation<Register>> {
        rows.iter()
            .map(|(action, called, answered)| Operation { action: *action, called: *called, answered: *answered })
            .collect()
    }

    #[test]
    fn an_order_is_found_where_there_is_one_and_only_there() {
        use Act::{Read, Write};
        for (what, rows, expected) in [
            ("one after the other", vec![(Write(1), 0, Some((1, 1))), (Read, 2, Some((3, 1)))], true),
            ("a stale read", vec![(Write(1), 0, Some((1, 1))), (Read, 2, Some((3, 0)))], false),
            ("a read beside a write sees either", vec![(Write(1), 0, Some((5, 1))), (Read, 1, Some((2, 0)))], true),
            (
                "but not the one and then the other again",
                vec![(Write(1), 0, Some((9, 1))), (Read, 1, Some((2, 1))), (Read, 3, Some((4, 0)))],
                false,
            ),
            ("what was not answered may have been done", vec![(Write(1), 0, None), (Read, 5, Some((6, 1)))], true),
            ("or not", vec![(Write(1), 0, None), (Read, 5, Some((6, 0)))], true),
            (
                "but not be taken back",
                vec![(Write(1), 0, None), (Read, 5, Some((6, 1))), (Read, 7, Some((8, 0)))],
                false,
            ),
            ("what nobody wrote", vec![(Write(1), 0, Some((1, 1))), (Read, 0, Some((9, 2)))], false),
        ] {
            assert_eq!(is_linearizable(&history(&rows)), expected, "{what}");
        }
    }
}
