//! The fold's laws: it depends on the set of events alone, follows the transition rules on a node that is alone, and
//! loses no dispute.

use std::sync::Arc;

use proptest::prelude::*;
use tradepost::domain::fold::{Conflict, Fold, fold};
use tradepost::domain::ledger::{self, Author};
use tradepost::domain::{
    AgentId, Capability, Currency, Decision, Event, EventBody, EventId, Facts, JsonObject, Money, NodeId, Refusal,
    ResolutionOutcome, Timestamp, TransactionId, TransactionStatus,
};

fn facts() -> Arc<Facts> {
    Arc::new(Facts {
        payer_agent: AgentId::from_stored("payer"),
        provider_agent: AgentId::from_stored("provider"),
        capability: Capability::from_stored("python"),
        amount: Money::parse("1").unwrap(),
        currency: Currency::default(),
        context: JsonObject::default(),
    })
}

fn id() -> TransactionId {
    TransactionId::from_stored("tx")
}

fn node(number: u8) -> NodeId {
    NodeId::from_bytes([number; 16])
}

fn event_id(number: u64) -> EventId {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    EventId::from_bytes(bytes)
}

fn recorded(number: u64, author: u8, at: i64) -> Event {
    Event {
        event_id: event_id(number),
        transaction_id: id(),
        facts: facts().hash(),
        round: 0,
        node_id: node(author),
        at: Timestamp::from_micros(at),
        body: EventBody::Recorded(facts()),
    }
}

fn fold_all(events: &[Event]) -> Fold {
    fold(&facts().hash(), events).expect("a recorded event is there")
}

fn decision() -> impl Strategy<Value = Decision> {
    let evidence = || proptest::collection::vec("[a-z]{1,4}", 0..3);
    prop_oneof![
        Just(Decision::Settle),
        Just(Decision::Cancel { reason: None }),
        evidence().prop_map(|evidence| Decision::Dispute { reason: None, evidence }),
        evidence().prop_map(|evidence| Decision::AddEvidence { evidence }),
        Just(Decision::Resolve { outcome: ResolutionOutcome::Settled, note: None }),
        Just(Decision::Resolve { outcome: ResolutionOutcome::Cancelled, note: None }),
    ]
}

/// The API's table of transitions, written down by itself.
fn rule(from: TransactionStatus, decision: &Decision) -> Option<TransactionStatus> {
    use TransactionStatus::{Cancelled, Disputed, Pending, Settled};
    match (decision, from) {
        (Decision::Settle, Pending) => Some(Settled),
        (Decision::Cancel { .. }, Pending) => Some(Cancelled),
        (Decision::Dispute { .. }, Pending | Settled) => Some(Disputed),
        (Decision::AddEvidence { .. }, Disputed) => Some(Disputed),
        (Decision::Resolve { outcome: ResolutionOutcome::Settled, .. }, Disputed) => Some(Settled),
        (Decision::Resolve { outcome: ResolutionOutcome::Cancelled, .. }, Disputed) => Some(Cancelled),
        _ => None,
    }
}

/// Several nodes that decide on what they hold, and sometimes hand everything they hold to another.
#[derive(Debug, Clone)]
enum Step {
    Decide(usize, Decision),
    Sync(usize, usize),
}

fn steps(nodes: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..nodes, decision()).prop_map(|(node, decision)| Step::Decide(node, decision)),
        1 => (0..nodes, 0..nodes).prop_map(|(from, to)| Step::Sync(from, to)),
    ];
    proptest::collection::vec(step, 0..40)
}

/// Plays steps; what each node holds in the end.
fn play(nodes: usize, steps: &[Step]) -> Vec<Vec<Event>> {
    let mut held: Vec<Vec<Event>> = vec![vec![recorded(0, 0, 1_000)]; nodes];
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Decide(node_index, decision) => {
                let fold = fold_all(&held[*node_index]);
                let author = Author {
                    node_id: node(u8::try_from(*node_index).unwrap()),
                    event_id: event_id(1 + number as u64),
                    // Clocks that disagree: later steps may bear earlier times.
                    now: Timestamp::from_micros(5_000 - 37 * i64::try_from(number).unwrap()),
                    newest_own: None,
                };
                if let Ok(event) = ledger::decide(&id(), &fold, decision.clone(), author) {
                    held[*node_index].push(event);
                }
            }
            Step::Sync(from, to) => {
                let news: Vec<Event> = held[*from].iter().filter(|event| !held[*to].contains(event)).cloned().collect();
                held[*to].extend(news);
            }
        }
    }
    held
}

fn union(held: &[Vec<Event>]) -> Vec<Event> {
    let mut all: Vec<Event> = Vec::new();
    for event in held.iter().flatten() {
        if !all.contains(event) {
            all.push(event.clone());
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn a_node_alone_follows_the_transition_rules(decisions in proptest::collection::vec(decision(), 0..60)) {
        let mut events = vec![recorded(0, 0, 1_000)];
        let mut status = TransactionStatus::Pending;
        let mut evidence: Vec<String> = Vec::new();
        for (number, decision) in decisions.into_iter().enumerate() {
            let fold = fold_all(&events);
            prop_assert_eq!(fold.status, status);
            prop_assert_eq!(&fold.evidence, &evidence);
            prop_assert_eq!(fold.conflict, None);
            let author = Author { node_id: node(0), event_id: event_id(1 + number as u64), now: Timestamp::from_micros(0), newest_own: None };
            let expected = rule(status, &decision);
            match ledger::decide(&id(), &fold, decision, author) {
                Ok(event) => {
                    prop_assert!(event.at > fold.updated_at);
                    evidence.extend(event.body.evidence().iter().cloned());
                    events.push(event);
                    status = expected.expect("the rules refuse this");
                }
                Err(Refusal::InvalidTransition { from, .. }) => {
                    prop_assert_eq!(from, status);
                    prop_assert_eq!(expected, None);
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }
    }

    #[test]
    fn order_repetition_and_grouping_do_not_matter(
        steps in steps(3),
        order in proptest::collection::vec(any::<prop::sample::Index>(), 0..80),
    ) {
        let all = union(&play(3, &steps));
        let expected = fold_all(&all);
        // Any order, with repetitions: draw at random, then append everything backwards.
        let mut shuffled: Vec<Event> = order.iter().map(|index| index.get(&all).clone()).collect();
        shuffled.extend(all.iter().rev().cloned());
        prop_assert_eq!(fold_all(&shuffled), expected);
    }

    #[test]
    fn no_dispute_is_lost_and_nothing_acknowledged_is_revoked(steps in steps(3)) {
        let held = play(3, &steps);
        let all = union(&held);
        let fold = fold_all(&all);
        let listed: Vec<EventId> = all.iter().filter_map(|event| match &event.body {
            EventBody::Resolved { decisions, .. } => Some(decisions.clone()),
            _ => None,
        }).flatten().collect();
        for event in &all {
            if matches!(event.body, EventBody::Disputed { .. }) && !listed.contains(&event.event_id) {
                prop_assert_eq!(fold.status, TransactionStatus::Disputed, "an unresolved dispute vanished");
            }
            for evidence in event.body.evidence() {
                prop_assert!(fold.evidence.contains(evidence));
            }
        }
        let settled = all.iter().any(|event| matches!(event.body, EventBody::Settled));
        let cancelled = all.iter().any(|event| matches!(event.body, EventBody::Cancelled { .. }));
        if settled && cancelled && listed.is_empty() {
            prop_assert_eq!(fold.status, TransactionStatus::Disputed);
        }
    }

    #[test]
    fn every_subset_that_holds_a_recorded_event_folds(
        steps in steps(3),
        keep in proptest::collection::vec(any::<bool>(), 64),
    ) {
        let mut subset: Vec<Event> = union(&play(3, &steps));
        let mut keep = keep.into_iter().cycle();
        subset.retain(|_| keep.next().unwrap_or(true));
        let has_recorded = subset.iter().any(|event| matches!(event.body, EventBody::Recorded(_)));
        prop_assert_eq!(fold(&facts().hash(), &subset).is_some(), has_recorded);
    }

    #[test]
    fn after_everybody_holds_everything_everybody_agrees(steps in steps(4)) {
        let mut held = play(4, &steps);
        let all = union(&held);
        for (number, events) in held.iter_mut().enumerate() {
            let mut rest: Vec<Event> = all.iter().filter(|event| !events.contains(event)).cloned().collect();
            if number % 2 == 1 {
                rest.reverse();
            }
            events.extend(rest);
            prop_assert_eq!(fold_all(events), fold_all(&all));
        }
    }
}

#[test]
fn concurrent_decisions_are_named_for_what_they_are() {
    let decide = |events: &[Event], number: u64, author: u8, decision: Decision| {
        let author = Author {
            node_id: node(author),
            event_id: event_id(number),
            now: Timestamp::from_micros(2_000),
            newest_own: None,
        };
        ledger::decide(&id(), &fold_all(events), decision, author).expect("allowed")
    };
    let base = vec![recorded(0, 0, 1_000)];
    let settled = decide(&base, 1, 1, Decision::Settle);
    let cancelled = decide(&base, 2, 2, Decision::Cancel { reason: None });
    let both = [base.clone(), vec![settled.clone(), cancelled.clone()]].concat();
    assert_eq!(fold_all(&both).conflict, Some(Conflict::ConcurrentDecision));
    assert_eq!(fold_all(&both).status, TransactionStatus::Disputed);

    let resolve = |number, author, outcome| decide(&both, number, author, Decision::Resolve { outcome, note: None });
    let one = resolve(3, 1, ResolutionOutcome::Settled);
    let other = resolve(4, 2, ResolutionOutcome::Cancelled);
    let resolved = [both.clone(), vec![one.clone()]].concat();
    assert_eq!(fold_all(&resolved).status, TransactionStatus::Settled);
    let torn = [resolved.clone(), vec![other]].concat();
    assert_eq!(fold_all(&torn).conflict, Some(Conflict::ConcurrentResolution));

    let dispute = Decision::Dispute { reason: None, evidence: vec!["late".into()] };
    let unseen = decide(&[base, vec![settled]].concat(), 5, 3, dispute);
    let found_later = [resolved, vec![unseen]].concat();
    assert_eq!(fold_all(&found_later).conflict, Some(Conflict::UnseenDecision));
    assert_eq!(fold_all(&found_later).evidence, ["late"]);
}

#[test]
fn events_of_other_facts_are_left_aside() {
    let mut stranger = recorded(9, 4, 500);
    stranger.facts = [7; 32];
    let events = [recorded(0, 0, 1_000), stranger];
    assert_eq!(fold_all(&events).created_at, Timestamp::from_micros(1_000));
}

#[test]
fn the_earliest_recording_counts() {
    let events = [recorded(0, 0, 1_000), recorded(1, 1, 400)];
    assert_eq!(fold_all(&events).created_at, Timestamp::from_micros(400));
}
