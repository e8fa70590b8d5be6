//! The engine by itself: durability across reopening, group commit under concurrency, leases, idempotency, refusals.

mod common;

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::clock::ManualClock;
use common::{agent_id, capability, facts, money, registration, transaction_id};
use tradepost::domain::ranking::{RankBy, SearchQuery};
use tradepost::domain::{
    AgentPatch, AvailabilityStatus, Decision, Delta, JsonObject, NewTransaction, Refusal, Registration,
    ResolutionOutcome, TransactionStatus, Ttl, Weight,
};
use tradepost::store::verify;
use tradepost::{
    AgentFilter, Engine, Error, Idempotency, LeaseState, Location, OpenError, Options, PageRequest, Precondition,
    TransactionFilter,
};

fn memory() -> Engine {
    Engine::open(Options::new(Location::Memory)).expect("a store in memory opens")
}

fn new(payer: &str, provider: &str, amount: &str) -> NewTransaction {
    NewTransaction { transaction_id: None, facts: facts(payer, provider, "python", amount) }
}

fn with_id(id: &str, amount: &str) -> NewTransaction {
    NewTransaction { transaction_id: Some(transaction_id(id)), facts: facts("a", "b", "python", amount) }
}

fn assert_clean(path: &std::path::Path) {
    let report = verify(path, &mut |_, _, _| {}).expect("the file opens");
    assert!(report.is_clean(), "{:#?}", report.findings);
}

/// Where a program starts others, each of them has for a moment what this one had open, its lock too.
#[test]
fn a_lock_that_somebody_holds_for_a_moment_only_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tradepost.redb");
    Engine::open(Options::new(Location::File(path.clone()))).unwrap().close();
    let held = std::fs::File::open(&path).unwrap();
    held.lock().unwrap();
    let holder = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        drop(held);
    });
    let opened = Engine::open(Options::new(Location::File(path)));
    holder.join().unwrap();
    assert!(opened.is_ok(), "{:?}", opened.err());
}

#[test]
fn everything_is_there_after_reopening_and_verifies() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data").join("tradepost.redb");
    let engine = Engine::open(Options::new(Location::File(path.clone()))).unwrap();
    let node_id = engine.node_id();
    engine.register(registration("thon", &["python", "sql"]), None).wait().unwrap();
    engine.register(registration("gone", &["python"]), None).wait().unwrap();
    engine.unregister(agent_id("gone"), Precondition::None).wait().unwrap();
    engine.observe_outcome(agent_id("thon"), true, Weight::default(), None).wait().unwrap();
    let settled = engine.record(with_id("t1", "0.1"), None).wait().unwrap().value;
    engine.decide(settled.transaction_id.clone(), Decision::Settle, None).wait().unwrap();
    engine.record(with_id("t2", "0.2"), None).wait().unwrap();
    let disputed = Decision::Dispute { reason: Some("late".into()), evidence: vec!["log".into()] };
    engine.decide(transaction_id("t2"), disputed, None).wait().unwrap();
    engine.record(NewTransaction { facts: facts("a", "a", "self", "3"), transaction_id: None }, None).wait().unwrap();
    let (before, list) = (engine.agent(&agent_id("thon")).unwrap(), all(&engine));
    assert!(matches!(Engine::open(Options::new(Location::File(path.clone()))), Err(OpenError::InUse(_))));
    drop(engine);

    let engine = Engine::open(Options::new(Location::File(path.clone()))).unwrap();
    assert_eq!(engine.node_id(), node_id);
    assert_eq!(all(&engine), list);
    let after = engine.agent(&agent_id("thon")).unwrap();
    assert_eq!(after.agent, before.agent);
    assert_eq!(after.lease, LeaseState::Live);
    let refused = engine.agent(&agent_id("gone"));
    assert!(matches!(refused, Err(Error::Refused(Refusal::AgentNotFound(_)))));
    let balance = engine.balance(&agent_id("a")).unwrap();
    let dollars = balance.values().next().unwrap();
    assert_eq!(dollars.paid.settled.to_string(), "0.1");
    assert_eq!(dollars.paid.disputed.to_string(), "0.2");
    assert_eq!((dollars.paid.pending.to_string(), dollars.earned.pending.to_string()), ("3".into(), "3".into()));
    engine.close();
    assert!(matches!(engine.record(with_id("t3", "1"), None).wait(), Err(Error::Unavailable(_))));
    assert_clean(&path);
}

fn all(engine: &Engine) -> Vec<tradepost::domain::Transaction> {
    let mut export = engine.export(&TransactionFilter::default()).unwrap();
    let mut items = Vec::new();
    while let Some(chunk) = export.next_chunk(7).unwrap() {
        items.extend(chunk);
    }
    items
}

#[test]
fn a_thousand_registrations_from_ten_threads() {
    let engine = memory();
    thread::scope(|scope| {
        for worker in 0..10 {
            let engine = &engine;
            scope.spawn(move || {
                for number in 0..100 {
                    let id = format!("agent-{worker}-{number}");
                    engine.register(registration(&id, &["python"]), None).wait().unwrap();
                }
            });
        }
    });
    assert_eq!(engine.capabilities().unwrap()[&capability("python")], 1_000);
    assert_eq!(engine.status().unwrap().agents, 1_000);
}

#[test]
fn outcomes_of_two_threads_add_up_exactly() {
    const EACH: u64 = 10_000;
    let engine = memory();
    engine.register(registration("thon", &["python"]), None).wait().unwrap();
    thread::scope(|scope| {
        for success in [true, false] {
            let engine = &engine;
            scope.spawn(move || {
                for _ in 0..EACH {
                    engine.observe_outcome(agent_id("thon"), success, Weight::default(), None).wait().unwrap();
                }
            });
        }
    });
    let profile = engine.agent(&agent_id("thon")).unwrap();
    let reputation = profile.agent.reputation;
    assert_eq!((reputation.successful_tasks, reputation.failed_tasks), (EACH, EACH));
    assert_eq!(reputation.total_feedback, 2 * EACH);
    assert_eq!(profile.agent.revision, 1, "an outcome is no new revision");
}

#[test]
fn transactions_of_many_threads_are_all_there_and_each_is_settled_once() {
    let engine = memory();
    let ids = std::sync::Mutex::new(Vec::new());
    thread::scope(|scope| {
        for worker in 0..10 {
            let (engine, ids) = (&engine, &ids);
            scope.spawn(move || {
                for number in 0..100 {
                    let payer = format!("p{}", (worker + number) % 7);
                    let receipt = engine.record(new(&payer, "provider", "0.1"), None).wait().unwrap();
                    ids.lock().unwrap().push(receipt.value.transaction_id);
                }
            });
        }
    });
    let ids = ids.into_inner().unwrap();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 1_000);
    thread::scope(|scope| {
        for chunk in ids[..500].chunks(100) {
            let engine = &engine;
            scope.spawn(move || {
                for id in chunk {
                    engine.decide(id.clone(), Decision::Settle, None).wait().unwrap();
                }
            });
        }
    });
    let balance = engine.balance(&agent_id("provider")).unwrap();
    let earned = balance.values().next().unwrap().earned;
    assert_eq!((earned.settled.to_string(), earned.pending.to_string()), ("50".into(), "50".into()));

    let wins = AtomicUsize::new(0);
    let conflicts = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| match engine.decide(ids[999].clone(), Decision::Settle, None).wait() {
                Ok(_) => wins.fetch_add(1, Ordering::Relaxed),
                Err(Error::Refused(Refusal::InvalidTransition { .. })) => conflicts.fetch_add(1, Ordering::Relaxed),
                Err(other) => panic!("{other}"),
            });
        }
    });
    assert_eq!((wins.into_inner(), conflicts.into_inner()), (1, 7));
}

#[test]
fn a_clock_that_jumps_expires_nobody_and_revives_nobody() {
    let clock = ManualClock::at(1_795_000_000_000_000);
    let engine = Engine::open(Options { clock: clock.clone(), ..Options::new(Location::Memory) }).unwrap();
    let short = || tradepost::domain::Registration { ttl: Some(Ttl::parse(10).unwrap()), ..registration("a", &["x"]) };
    engine.register(short(), None).wait().unwrap();
    clock.jump_wall(Duration::from_secs(10 * 365 * 86_400));
    assert_eq!(engine.agent(&agent_id("a")).unwrap().lease, LeaseState::Live);
    clock.advance(Duration::from_secs(11));
    assert_eq!(engine.agent(&agent_id("a")).unwrap().lease, LeaseState::Expired);
    clock.jump_wall_back(Duration::from_secs(20 * 365 * 86_400));
    assert_eq!(engine.agent(&agent_id("a")).unwrap().lease, LeaseState::Expired);
    let search = SearchQuery { capabilities: vec![capability("x")], ..SearchQuery::default() };
    assert!(engine.search(&search, 10).unwrap().is_empty());

    engine.heartbeat(&agent_id("a")).wait().unwrap();
    assert_eq!(engine.agent(&agent_id("a")).unwrap().lease, LeaseState::Live);
    assert_eq!(engine.search(&search, 10).unwrap().len(), 1);
}

#[test]
fn an_expiry_is_committed_and_stays_across_a_restart_while_others_get_a_fresh_lease() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tradepost.redb");
    let clock = ManualClock::at(1_795_000_000_000_000);
    let open = |clock: &std::sync::Arc<ManualClock>| {
        Engine::open(Options { clock: clock.clone(), ..Options::new(Location::File(path.clone())) }).unwrap()
    };
    let engine = open(&clock);
    for (id, ttl) in [("brief", 5), ("long", 1_000)] {
        let registration =
            tradepost::domain::Registration { ttl: Some(Ttl::parse(ttl).unwrap()), ..registration(id, &["x"]) };
        engine.register(registration, None).wait().unwrap();
    }
    clock.advance(Duration::from_secs(6));
    // Any command lets the writer look at its leases; the expiry is in the same commit or an earlier one.
    engine.record(with_id("t", "1"), None).wait().unwrap();
    assert_eq!(engine.capabilities().unwrap()[&capability("x")], 1);
    drop(engine);

    let clock = ManualClock::at(1_895_000_000_000_000);
    let engine = open(&clock);
    assert_eq!(engine.agent(&agent_id("brief")).unwrap().lease, LeaseState::Expired);
    assert_eq!(engine.agent(&agent_id("long")).unwrap().lease, LeaseState::Live);
    clock.advance(Duration::from_secs(999));
    assert_eq!(engine.agent(&agent_id("long")).unwrap().lease, LeaseState::Live);
    let again = engine.register(registration("brief", &["x"]), None).wait().unwrap();
    assert!(again.created && again.value.agent.revision > 1);
}

#[test]
fn an_idempotency_key_does_things_once() {
    let engine = memory();
    let once = |request: u8| Some(Idempotency { key: "k".into(), request: [request; 32] });
    let first = engine.record(new("a", "b", "1"), once(1)).wait().unwrap();
    let again = engine.record(new("a", "b", "1"), once(1)).wait().unwrap();
    assert!(again.replayed && again.created);
    assert_eq!(again.value, first.value);
    engine.decide(first.value.transaction_id.clone(), Decision::Settle, None).wait().unwrap();
    let later = engine.record(new("a", "b", "1"), once(1)).wait().unwrap();
    assert_eq!(later.value.status, TransactionStatus::Settled, "the entity as it is now");
    assert!(matches!(
        engine.record(new("a", "b", "2"), once(2)).wait(),
        Err(Error::Refused(Refusal::IdempotencyKeyReused))
    ));
    assert_eq!(engine.status().unwrap().transactions, 1);

    let outcome = || Some(Idempotency { key: "o".into(), request: [3; 32] });
    engine.register(registration("thon", &[]), None).wait().unwrap();
    for _ in 0..3 {
        engine.adjust_reputation(agent_id("thon"), Delta::parse(1.5).unwrap(), outcome()).wait().unwrap();
    }
    assert_eq!(engine.agent(&agent_id("thon")).unwrap().agent.reputation.score, 1.5);

    let refused = || Some(Idempotency { key: "r".into(), request: [4; 32] });
    assert!(engine.decide(transaction_id("none"), Decision::Settle, refused()).wait().is_err());
    engine.record(with_id("none", "1"), None).wait().unwrap();
    assert!(
        engine.decide(transaction_id("none"), Decision::Settle, refused()).wait().is_ok(),
        "refusals are forgotten"
    );
}

#[test]
fn the_same_id_is_the_same_transaction_or_a_conflict() {
    let engine = memory();
    assert!(engine.record(with_id("t", "1.50"), None).wait().unwrap().created);
    assert!(!engine.record(with_id("t", "1.5"), None).wait().unwrap().created);
    let conflict = engine.record(with_id("t", "1.51"), None).wait();
    assert!(matches!(conflict, Err(Error::Refused(Refusal::TransactionIdConflict(_)))));
    let batch = vec![with_id("u", "1"), with_id("u", "1"), with_id("u", "2"), with_id("t", "1.5")];
    let results = engine.record_batch(batch).wait().unwrap();
    let created: Vec<Option<bool>> = results.iter().map(|r| r.as_ref().ok().map(|r| r.created)).collect();
    assert_eq!(created, [Some(true), Some(false), None, Some(false)]);
}

#[test]
fn revisions_are_never_reused_and_if_match_guards_them() {
    let engine = memory();
    let id = || agent_id("a");
    assert_eq!(engine.register(registration("a", &[]), None).wait().unwrap().value.agent.revision, 1);
    let stale = engine.update(id(), AgentPatch::default(), Precondition::RevisionIn(vec![9])).wait();
    assert!(matches!(stale, Err(Error::Refused(Refusal::RevisionMismatch { actual: 1, .. }))));
    engine.update(id(), AgentPatch::default(), Precondition::RevisionIn(vec![9, 1])).wait().unwrap();
    engine.unregister(id(), Precondition::Exists).wait().unwrap();
    let reborn = engine.replace(registration("a", &[]), Precondition::None).wait().unwrap();
    assert!(reborn.created);
    assert_eq!(reborn.value.agent.revision, 3);
    assert_eq!(reborn.value.agent.reputation.total_feedback, 0);
}

#[test]
fn lists_page_without_repeating_or_missing_in_every_order() {
    let engine = memory();
    for number in 0..50 {
        let mut registration = registration(&format!("a{number:02}"), &["x"]);
        registration.cost_per_task = money(&format!("{}", number % 5));
        registration.availability = AvailabilityStatus::ALL[number % 4];
        engine.register(registration, None).wait().unwrap();
    }
    for sort_by in [RankBy::AgentId, RankBy::Score, RankBy::Cost, RankBy::Availability] {
        for capability in [None, Some(capability("x"))] {
            let filter = AgentFilter { capability, availability: None, sort_by, include_expired: true };
            let whole = engine.agents(&filter, PageRequest { limit: 1_000, cursor: None }).unwrap();
            assert_eq!((whole.items.len(), whole.next_cursor), (50, None));
            let mut paged = Vec::new();
            let mut cursor: Option<String> = None;
            loop {
                let page = engine.agents(&filter, PageRequest { limit: 7, cursor: cursor.as_deref() }).unwrap();
                paged.extend(page.items);
                match page.next_cursor {
                    Some(next) => cursor = Some(next),
                    None => break,
                }
            }
            let ids = |items: &[tradepost::Profile]| items.iter().map(|p| p.agent.agent_id.clone()).collect::<Vec<_>>();
            assert_eq!(ids(&paged), ids(&whole.items), "{sort_by:?}");
        }
    }
}

#[test]
fn transaction_lists_filter_and_page_in_both_directions() {
    let clock = ManualClock::at(1_795_000_000_000_000);
    let engine = Engine::open(Options { clock: clock.clone(), ..Options::new(Location::Memory) }).unwrap();
    for number in 0..120_u64 {
        let (payer, provider) = (format!("p{}", number % 3), format!("q{}", number % 4));
        let id = engine.record(new(&payer, &provider, "1"), None).wait().unwrap().value.transaction_id;
        if number % 2 == 0 {
            engine.decide(id, Decision::Settle, None).wait().unwrap();
        }
        if number % 10 == 0 {
            // Many transactions while the clock stands still, then a jump back.
            clock.advance(Duration::from_secs(1));
        }
        if number == 60 {
            clock.jump_wall_back(Duration::from_secs(30));
        }
    }
    let everything = all(&engine);
    assert_eq!(everything.len(), 120);
    assert!(
        everything.windows(2).all(|pair| {
            (pair[0].created_at, &pair[0].transaction_id) < (pair[1].created_at, &pair[1].transaction_id)
        })
    );
    for status in [None, Some(TransactionStatus::Pending), Some(TransactionStatus::Settled)] {
        for agent in [None, Some("p1"), Some("q2"), Some("nobody")] {
            for role in [None, Some(tradepost::domain::Role::Payer), Some(tradepost::domain::Role::Provider)] {
                for descending in [false, true] {
                    let since = everything[20].created_at;
                    let until = everything[100].created_at;
                    let filter = TransactionFilter {
                        agent: agent.map(agent_id),
                        role,
                        status,
                        since: Some(since),
                        until: Some(until),
                        descending,
                        ..TransactionFilter::default()
                    };
                    let mut expected: Vec<_> = everything
                        .iter()
                        .filter(|t| t.created_at >= since && t.created_at < until)
                        .filter(|t| status.is_none_or(|status| t.status == status))
                        .filter(|t| {
                            agent.is_none_or(|agent| {
                                let pays = t.facts.payer_agent.as_str() == agent
                                    && role != Some(tradepost::domain::Role::Provider);
                                let earns = t.facts.provider_agent.as_str() == agent
                                    && role != Some(tradepost::domain::Role::Payer);
                                pays || earns
                            })
                        })
                        .cloned()
                        .collect();
                    if descending {
                        expected.reverse();
                    }
                    let mut found = Vec::new();
                    let mut cursor: Option<String> = None;
                    loop {
                        let page =
                            engine.transactions(&filter, PageRequest { limit: 4, cursor: cursor.as_deref() }).unwrap();
                        found.extend(page.items);
                        match page.next_cursor {
                            Some(next) => cursor = Some(next),
                            None => break,
                        }
                    }
                    assert_eq!(found, expected, "{filter:?}");
                }
            }
        }
    }
}

#[test]
fn whoever_is_busy_when_its_turn_comes_is_recommended_before_anybody_twice() {
    let engine = memory();
    for id in ["a", "b", "c"] {
        engine.register(registration(id, &["x"]), None).wait().unwrap();
    }
    let set = |id: &str, availability| {
        let patch = AgentPatch { availability: Some(availability), ..AgentPatch::default() };
        engine.update(agent_id(id), patch, Precondition::None).wait().unwrap();
    };
    let mut visited = Vec::new();
    for call in 0..12 {
        let availability = if call % 2 == 1 { AvailabilityStatus::Busy } else { AvailabilityStatus::Online };
        set("b", availability);
        let answer = engine.recommend(&capability("x"), 1, false).unwrap();
        visited.push(answer[0].agent.agent_id.to_string());
    }
    for round in visited.chunks(3) {
        let mut round = round.to_vec();
        round.sort();
        assert_eq!(round, ["a", "b", "c"], "{visited:?}");
    }
}

#[test]
fn recommendations_visit_every_candidate_before_any_twice() {
    let engine = memory();
    for number in 0..7 {
        engine.register(registration(&format!("a{number}"), &["x"]), None).wait().unwrap();
    }
    engine
        .update(
            agent_id("a6"),
            AgentPatch { availability: Some(AvailabilityStatus::Busy), ..AgentPatch::default() },
            Precondition::None,
        )
        .wait()
        .unwrap();
    let mut visits = std::collections::HashMap::<String, usize>::new();
    for call in 1..=30 {
        let answer = engine.recommend(&capability("x"), 4, false).unwrap();
        assert_eq!(answer.len(), 4);
        for profile in &answer {
            *visits.entry(profile.agent.agent_id.to_string()).or_default() += 1;
        }
        // Scores that change between calls must not let anyone skip the queue.
        engine.adjust_reputation(answer[0].agent.agent_id.clone(), Delta::parse(0.5).unwrap(), None).wait().unwrap();
        let counts = (0..6).map(|n| visits.get(&format!("a{n}")).copied().unwrap_or(0));
        let (least, most) = (counts.clone().min().unwrap(), counts.max().unwrap());
        assert!(most - least <= 1, "after call {call}: {visits:?}");
        let ranks: Vec<f64> = answer.iter().map(|p| p.agent.reputation.score).collect();
        assert!(ranks.windows(2).all(|pair| pair[0] >= pair[1]));
    }
    assert!(!visits.contains_key("a6"));
    assert_eq!(engine.recommend(&capability("x"), 10, true).unwrap().len(), 7);
    assert!(engine.recommend(&capability("nobody"), 3, false).unwrap().is_empty());
}

#[test]
fn the_least_loaded_agent_is_found_by_the_last_hour_alone() {
    let clock = ManualClock::at(1_795_000_000_000_000);
    let engine = Engine::open(Options { clock: clock.clone(), ..Options::new(Location::Memory) }).unwrap();
    for (id, cost) in [("cheap", "1"), ("dear", "2"), ("dearer", "3")] {
        let mut registration = registration(id, &["python"]);
        registration.cost_per_task = money(cost);
        registration.ttl = Some(Ttl::parse(1_000_000).unwrap());
        engine.register(registration, None).wait().unwrap();
    }
    let least = || engine.least_loaded(&capability("python")).unwrap().map(|p| p.agent.agent_id.to_string());
    assert_eq!(least().as_deref(), Some("cheap"));
    for provider in ["cheap", "cheap", "dear"] {
        engine.record(new("payer", provider, "1"), None).wait().unwrap();
    }
    assert_eq!(least().as_deref(), Some("dearer"));
    engine.record(new("payer", "dearer", "1"), None).wait().unwrap();
    assert_eq!(least().as_deref(), Some("dear"));
    clock.advance(Duration::from_secs(3_661));
    assert_eq!(least().as_deref(), Some("cheap"), "an hour later it is forgotten");
    let busy = AgentPatch { availability: Some(AvailabilityStatus::Busy), ..AgentPatch::default() };
    for id in ["cheap", "dear", "dearer"] {
        engine.update(agent_id(id), busy.clone(), Precondition::None).wait().unwrap();
    }
    assert_eq!(least().as_deref(), Some("cheap"), "busy agents when none is online");
    assert_eq!(engine.least_loaded(&capability("cobol")).unwrap(), None);
}

/// What was recorded in the future is forgotten in time, which must not have what comes after the clock is right forgotten.
#[test]
fn a_clock_that_was_ahead_does_not_stop_loads_from_being_counted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tradepost.redb");
    let clock = ManualClock::at(1_795_000_000_000_000);
    let open = || Engine::open(Options { clock: clock.clone(), ..Options::new(Location::File(path.clone())) }).unwrap();
    let engine = open();
    let ahead = Duration::from_secs(10 * 86_400);
    engine.record(new("payer", "a", "1"), None).wait().unwrap();
    clock.jump_wall(ahead);
    engine.record(new("payer", "a", "1"), None).wait().unwrap();
    clock.advance(Duration::from_secs(2 * 3_600));
    engine.record(new("payer", "a", "1"), None).wait().unwrap();
    clock.advance(Duration::from_secs(2 * 3_600));
    engine.record(new("payer", "c", "1"), None).wait().unwrap();
    clock.jump_wall_back(ahead);
    for id in ["a", "b"] {
        engine.register(registration(id, &["python"]), None).wait().unwrap();
    }
    for provider in ["a", "a", "b"] {
        engine.record(new("payer", provider, "1"), None).wait().unwrap();
    }
    let least = |engine: &Engine| engine.least_loaded(&capability("python")).unwrap().unwrap().agent.agent_id;
    assert_eq!(least(&engine), agent_id("b"));
    engine.close();
    let engine = open();
    assert_eq!(least(&engine), agent_id("b"), "after a restart");
    engine.record(new("payer", "b", "1"), None).wait().unwrap();
    engine.record(new("payer", "b", "1"), None).wait().unwrap();
    assert_eq!(least(&engine), agent_id("a"));
    engine.close();
    assert_clean(&path);
}

#[test]
fn random_draws_reach_every_online_or_busy_agent_and_nobody_else() {
    let engine = memory();
    for (id, availability) in [
        ("on", AvailabilityStatus::Online),
        ("busy", AvailabilityStatus::Busy),
        ("off", AvailabilityStatus::Offline),
        ("down", AvailabilityStatus::Maintenance),
    ] {
        let registration = tradepost::domain::Registration { availability, ..registration(id, &["x"]) };
        engine.register(registration, None).wait().unwrap();
    }
    let drawn: HashSet<String> = (0..200)
        .map(|n| {
            engine.random((n % 2 == 0).then(|| capability("x")).as_ref()).unwrap().unwrap().agent.agent_id.to_string()
        })
        .collect();
    assert_eq!(drawn, HashSet::from(["on".to_owned(), "busy".to_owned()]));
    assert_eq!(engine.random(Some(&capability("y"))).unwrap(), None);
}

#[test]
fn a_transaction_takes_at_most_256_pieces_of_evidence() {
    let engine = memory();
    engine.record(with_id("t", "1"), None).wait().unwrap();
    let evidence = |count: usize| vec!["e".to_owned(); count];
    let id = || transaction_id("t");
    engine.decide(id(), Decision::Dispute { reason: None, evidence: evidence(200) }, None).wait().unwrap();
    engine.decide(id(), Decision::AddEvidence { evidence: evidence(56) }, None).wait().unwrap();
    let refused = engine.decide(id(), Decision::AddEvidence { evidence: evidence(1) }, None).wait();
    assert!(matches!(refused, Err(Error::Refused(Refusal::Invalid(invalid))) if invalid.field == "evidence"));
    assert_eq!(engine.transaction(&id()).unwrap().evidence.len(), 256);
    let resolved = Decision::Resolve { outcome: ResolutionOutcome::Cancelled, note: None };
    assert_eq!(engine.decide(id(), resolved, None).wait().unwrap().value.status, TransactionStatus::Cancelled);
}

#[test]
fn a_link_to_nowhere_is_not_replaced_by_an_empty_store() {
    let directory = tempfile::tempdir().unwrap();
    let (link, target) = (directory.path().join("tradepost.redb"), directory.path().join("unmounted").join("t.redb"));
    std::os::unix::fs::symlink(&target, &link).unwrap();
    assert!(matches!(Engine::open(Options::new(Location::File(link.clone()))), Err(OpenError::NotFound(_))));
    assert_eq!(std::fs::read_link(&link).unwrap(), target);
}

#[test]
fn closing_ends_while_others_go_on_writing() {
    let engine = memory();
    thread::scope(|scope| {
        for worker in 0..8 {
            let engine = engine.clone();
            scope.spawn(move || {
                let payer = format!("p{worker}");
                loop {
                    match engine.record(new(&payer, "q", "1"), None).wait() {
                        Ok(_) => {}
                        Err(Error::Unavailable(_)) => return,
                        Err(other) => panic!("{other}"),
                    }
                }
            });
        }
        while engine.status().unwrap().transactions < 100 {
            thread::yield_now();
        }
        // Both callers return only when it is closed.
        scope.spawn(|| engine.close());
        engine.close();
        assert!(matches!(engine.transaction(&transaction_id("t")), Err(Error::Unavailable(_))));
    });
}

#[test]
fn an_idempotency_key_outlives_a_clock_that_was_wrong_at_boot() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tradepost.redb");
    let once = || Some(Idempotency { key: "k".into(), request: [1; 32] });
    let open = |micros: i64| {
        let clock = ManualClock::at(micros);
        let engine = Engine::open(Options { clock: clock.clone(), ..Options::new(Location::File(path.clone())) });
        (engine.unwrap(), clock)
    };
    let (engine, _clock) = open(0);
    let first = engine.record(new("a", "b", "1"), once()).wait().unwrap();
    drop(engine);
    let (engine, clock) = open(1_795_000_000_000_000);
    clock.advance(Duration::from_secs(6 * 86_400));
    // Two writes: the first lets the writer clean up, the second finds what it left.
    engine.record(new("a", "b", "2"), None).wait().unwrap();
    let again = engine.record(new("a", "b", "1"), once()).wait().unwrap();
    assert!(again.replayed);
    assert_eq!(again.value.transaction_id, first.value.transaction_id);
    clock.advance(Duration::from_secs(2 * 86_400));
    engine.record(new("a", "b", "3"), None).wait().unwrap();
    assert!(!engine.record(new("a", "b", "1"), once()).wait().unwrap().replayed, "after 7 days it is forgotten");
}

#[test]
fn a_clock_that_went_back_still_gives_every_transaction_its_own_microsecond() {
    let clock = ManualClock::at(1_795_000_000_000_000);
    let engine = Engine::open(Options { clock: clock.clone(), ..Options::new(Location::Memory) }).unwrap();
    engine.record(new("a", "b", "1"), None).wait().unwrap();
    clock.jump_wall_back(Duration::from_secs(3_600));
    for _ in 0..3 {
        engine.record_batch((0..100).map(|_| new("a", "b", "1")).collect()).wait().unwrap();
    }
    let times: HashSet<_> = all(&engine).iter().map(|transaction| transaction.created_at).collect();
    assert_eq!(times.len(), 301);
}

#[test]
fn a_page_ends_before_it_holds_too_many_bytes() {
    let engine = memory();
    for number in 0..12 {
        let id = format!("t{number}");
        engine.record(with_id(&id, "1"), None).wait().unwrap();
        let evidence = vec!["x".repeat(4_000); 250];
        let dispute = Decision::Dispute { reason: None, evidence };
        engine.decide(transaction_id(&id), dispute, None).wait().unwrap();
    }
    let page = engine.transactions(&TransactionFilter::default(), PageRequest { limit: 100, cursor: None }).unwrap();
    assert!(page.items.len() < 12 && page.next_cursor.is_some(), "{} items", page.items.len());
    assert_eq!(all(&engine).len(), 12);
}

/// A disk may be full when the store is opened, and have room later.
#[test]
fn room_that_could_not_be_kept_back_is_kept_back_once_there_is_some() {
    let directory = tempfile::tempdir().unwrap();
    let reserve = directory.path().join(".tradepost.redb.reserve");
    // What cannot be overwritten stands for a disk without room.
    std::fs::create_dir(&reserve).unwrap();
    let clock = ManualClock::at(1_795_000_000_000_000);
    let location = Location::File(directory.path().join("tradepost.redb"));
    let engine = Engine::open(Options { clock: clock.clone(), ..Options::new(location) }).unwrap();
    engine.record(new("a", "b", "1"), None).wait().unwrap();
    std::fs::remove_dir(&reserve).unwrap();
    clock.advance(Duration::from_secs(61));
    // The first lets the writer clean up, the second comes after that.
    engine.record(new("a", "b", "1"), None).wait().unwrap();
    engine.record(new("a", "b", "1"), None).wait().unwrap();
    assert_eq!(std::fs::metadata(&reserve).unwrap().len(), 1024 * 1024);
}

/// To keep room back is to write and to sync a file, which may take long on a disk that is slow.
#[test]
fn nobody_waits_for_room_that_is_kept_back() {
    let directory = tempfile::tempdir().unwrap();
    let reserve = directory.path().join(".tradepost.redb.reserve");
    let clock = ManualClock::at(1_795_000_000_000_000);
    let location = Location::File(directory.path().join("tradepost.redb"));
    let engine = Engine::open(Options { clock: clock.clone(), ..Options::new(location) }).unwrap();
    // When the second is answered, what comes after the first is done.
    engine.record(new("a", "b", "1"), None).wait().unwrap();
    engine.record(new("a", "b", "1"), None).wait().unwrap();
    std::fs::remove_file(&reserve).unwrap();
    // Whoever opens a pipe to write waits until somebody reads.
    assert!(std::process::Command::new("mkfifo").arg(&reserve).status().unwrap().success());
    clock.advance(Duration::from_secs(61));
    let pending = engine.record(new("a", "b", "1"), None);
    let (answered, answer) = std::sync::mpsc::channel();
    let waiter = thread::spawn(move || answered.send(pending.wait().is_ok()));
    let answer = answer.recv_timeout(Duration::from_secs(10));
    std::io::copy(&mut std::fs::File::open(&reserve).unwrap(), &mut std::io::sink()).unwrap();
    waiter.join().unwrap().unwrap();
    assert_eq!(answer, Ok(true), "it was answered when the room was kept back");
}

/// What an export reads cannot be used again before it ends, so the file grows for as long as nobody reads on.
#[test]
fn an_export_that_is_not_read_on_is_broken_off_before_the_file_grows_without_end() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Engine::open(Options::new(Location::File(directory.path().join("tradepost.redb")))).unwrap();
    for _ in 0..3 {
        engine.record(new("a", "b", "1"), None).wait().unwrap();
    }
    let metadata = JsonObject::parse(&format!(r#"{{"x":"{}"}}"#, "x".repeat(60_000))).unwrap();
    let replace_all = || {
        let replaced = (0..64).map(|number| {
            let registration = registration(&format!("agent-{number}"), &["python"]);
            engine.replace(Registration { metadata: metadata.clone(), ..registration }, Precondition::None)
        });
        replaced.collect::<Vec<_>>().into_iter().for_each(|replaced| drop(replaced.wait().unwrap()));
    };
    let bytes = || engine.status().unwrap().bytes;
    replace_all();
    let before = bytes();
    let mut export = engine.export(&TransactionFilter::default()).unwrap();
    let mut next = || export.next_chunk(1).map(|chunk| chunk.map(|chunk| chunk.len()));
    assert_eq!(next().unwrap(), Some(1));
    replace_all();
    assert_eq!(next().unwrap(), Some(1), "a little is written beside any export");
    for _ in 0..100 {
        replace_all();
    }
    let why = next().expect_err("it holds all that was replaced since");
    assert!(matches!(&why, Error::Unavailable(why) if why.contains("the export was broken off")), "{why}");
    let grown = bytes();
    for _ in 0..100 {
        replace_all();
    }
    assert_eq!(bytes(), grown, "{before} bytes before: what it held is used again");
    assert_eq!(all(&engine).len(), 3);
}
