//! The ledger between engines that hand each other their events in place of PostgreSQL: whatever the order, the grouping
//! and the repetition, all show the same in the end, and every balance is the sum of its transactions.

mod common;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::clock::ManualClock;
use common::{agent_id, capability, facts, registration, transaction_id};
use proptest::prelude::*;
use tradepost::domain::transaction::Finality;
use tradepost::domain::{
    AgentId, CopyNumber, Currency, Decision, EventBody, EventId, LedgerEntry, NewTransaction, NodeId,
    ResolutionOutcome, Timestamp, Transaction, TransactionStatus,
};
use tradepost::engine::replica::{
    Absorbed, ForkReason, ParkedEntry, ParkedKey, PostgresState, RedisState, Saved, Sink,
};
use tradepost::metrics::Metrics;
use tradepost::store::verify;
use tradepost::{Balance, Engine, Error, Location, Options, PageRequest, Precondition, TransactionFilter};

const START: i64 = 1_795_391_431_000_000;

struct Node {
    engine: Engine,
    clock: Arc<ManualClock>,
    metrics: Metrics,
    path: std::path::PathBuf,
    directory: Option<tempfile::TempDir>,
}

impl Node {
    fn new(seed: u64) -> Self {
        let directory = tempfile::tempdir().expect("a directory for the test");
        let path = directory.path().join("tradepost.redb");
        Self { directory: Some(directory), ..Self::open(&path, seed) }
    }

    fn open(path: &Path, seed: u64) -> Self {
        let clock = ManualClock::at(START);
        let location = Location::File(path.to_owned());
        let metrics = Metrics::default();
        let options = Options {
            clock: Arc::clone(&clock) as _,
            metrics: metrics.clone(),
            seed: Some(seed),
            ..Options::new(location)
        };
        let engine = Engine::open(options).expect("the store opens");
        Self { engine, clock, metrics, path: path.to_owned(), directory: None }
    }

    fn record(&self, id: &str, amount: &str) -> Transaction {
        let facts = facts("genesis", "thon", "python", amount);
        self.engine
            .record(NewTransaction { transaction_id: Some(transaction_id(id)), facts }, None)
            .wait()
            .unwrap()
            .value
    }

    fn decide(&self, id: &str, decision: Decision) -> Result<Transaction, Error> {
        self.engine.decide(transaction_id(id), decision, None).wait().map(|receipt| receipt.value)
    }

    fn get(&self, id: &str) -> Transaction {
        self.engine.transaction(&transaction_id(id)).unwrap()
    }

    /// Writes cursors of PostgreSQL down.
    fn save(&self, state: PostgresState) {
        assert_eq!(self.engine.save_postgres(self.engine.node_id(), state).wait().unwrap(), Saved::Yes);
    }

    fn absorb(&self, entries: Vec<LedgerEntry>) -> Absorbed {
        self.engine.absorb(entries, None).wait().unwrap()
    }

    /// All that this node holds, own and others'.
    fn entries(&self) -> Vec<LedgerEntry> {
        let mut entries = self.engine.log_after(0, usize::MAX, usize::MAX).unwrap();
        let copies = self.engine.copies_after(CopyNumber(0), usize::MAX, usize::MAX).unwrap();
        entries.extend(copies.into_iter().map(|(_, entry)| entry));
        entries
    }

    fn transactions(&self) -> Vec<Transaction> {
        let page = PageRequest { limit: 1_000, cursor: None };
        let mut items = self.engine.transactions(&TransactionFilter::default(), page).unwrap().items;
        // How far each got is each node's own affair.
        items.iter_mut().for_each(|transaction| transaction.finality = Finality::Local);
        items
    }

    /// Every way to ask about the ledger gives the same answer, which is the sum of the transactions.
    fn assert_agrees_with_itself(&self) {
        let all = self.transactions();
        let mut balances: BTreeMap<(AgentId, Currency), Balance> = BTreeMap::new();
        for transaction in &all {
            let mut add = |agent: &AgentId, pays: bool| {
                let balance = balances.entry((agent.clone(), transaction.facts.currency.clone())).or_default();
                let side = if pays { &mut balance.paid } else { &mut balance.earned };
                if let Some(total) = side.of(transaction.status) {
                    total.add(transaction.facts.amount);
                }
            };
            add(&transaction.facts.payer_agent, true);
            add(&transaction.facts.provider_agent, false);
        }
        for ((agent, currency), expected) in &balances {
            assert_eq!(self.engine.balance(agent).unwrap()[currency], *expected, "{agent} {currency}");
        }
        for status in TransactionStatus::ALL {
            let filter = TransactionFilter { status: Some(status), ..TransactionFilter::default() };
            let page = PageRequest { limit: 1_000, cursor: None };
            let listed = self.engine.transactions(&filter, page).unwrap().items.len();
            assert_eq!(listed, all.iter().filter(|transaction| transaction.status == status).count(), "{status}");
        }
        for transaction in &all {
            let same = Transaction { finality: Finality::Local, ..self.get(transaction.transaction_id.as_str()) };
            assert_eq!(same, *transaction);
        }
    }

    fn assert_clean(self) -> Vec<Transaction> {
        let shown = self.transactions();
        self.assert_agrees_with_itself();
        self.engine.close();
        let report = verify(&self.path, &mut |_, _, _| {}).expect("the file opens");
        assert!(report.is_clean(), "{:#?}", report.findings);
        drop(self.directory);
        shown
    }
}

fn dispute(evidence: &str) -> Decision {
    Decision::Dispute { reason: None, evidence: vec![evidence.to_owned()] }
}

fn resolve(outcome: ResolutionOutcome) -> Decision {
    Decision::Resolve { outcome, note: None }
}

#[test]
fn one_records_the_other_settles_and_both_agree() {
    let (a, b) = (Node::new(1), Node::new(2));
    let recorded = a.record("t1", "18.5");
    let absorbed = b.absorb(a.entries());
    assert_eq!((absorbed.new_events, absorbed.held, absorbed.conflicts), (1, 0, 0));
    assert_eq!(absorbed.touched, [transaction_id("t1")]);
    assert_eq!(b.get("t1"), recorded);
    b.clock.advance(Duration::from_secs(9));
    let settled = b.decide("t1", Decision::Settle).unwrap();
    let entry = b.engine.log_after(0, 10, usize::MAX).unwrap().pop().unwrap();
    assert_eq!((entry.recorded_by, entry.event.node_id), (a.engine.node_id(), b.engine.node_id()));
    assert_eq!((entry.payer_agent, entry.provider_agent), (agent_id("genesis"), agent_id("thon")));
    assert_eq!(entry.hash, b.engine.log_hash(1).unwrap());
    a.absorb(b.entries());
    assert_eq!(a.get("t1"), settled);
    assert_eq!(a.engine.events(&transaction_id("t1")).unwrap(), b.engine.events(&transaction_id("t1")).unwrap());
    assert_eq!(a.absorb(b.entries()), Absorbed::default(), "own events come back and are known, as are repeated ones");
    let load = |node: &Node| {
        node.engine.register(registration("thon", &["python"]), None).wait().unwrap();
        node.engine.least_loaded(&capability("python")).unwrap().map(|profile| profile.agent.agent_id)
    };
    assert_eq!((load(&a), load(&b)), (Some(agent_id("thon")), Some(agent_id("thon"))));
    assert_eq!(a.assert_clean(), b.assert_clean());
}

#[test]
fn events_wait_for_their_transaction_and_a_late_record_here_takes_them_in() {
    let (a, b, c) = (Node::new(1), Node::new(2), Node::new(3));
    a.record("t1", "2");
    a.decide("t1", dispute("log")).unwrap();
    let (recorded, disputed) = (a.entries().remove(0), a.entries().remove(1));
    let absorbed = b.absorb(vec![disputed.clone()]);
    assert_eq!((absorbed.new_events, absorbed.held, absorbed.touched.len()), (1, 1, 0));
    assert!(b.engine.transaction(&transaction_id("t1")).is_err());
    assert_eq!(b.absorb(vec![disputed.clone(), disputed.clone()]), Absorbed::default());
    assert_eq!(b.absorb(vec![recorded]).touched, [transaction_id("t1")]);
    assert_eq!(b.get("t1"), a.get("t1"));

    // Recorded here after others decided about it: same facts, and what they said is there at once.
    c.absorb(vec![disputed]);
    c.clock.advance(Duration::from_secs(60));
    let late = c.record("t1", "2");
    assert_eq!((late.status, late.evidence), (TransactionStatus::Disputed, vec!["log".to_owned()]));
    a.absorb(c.entries());
    c.absorb(a.entries());
    b.absorb(c.entries());
    let shown = a.assert_clean();
    assert_eq!(b.assert_clean(), shown);
    assert_eq!(c.assert_clean(), shown);
}

#[test]
fn the_earliest_record_of_the_same_facts_dates_a_transaction_wherever_it_is_held() {
    let (a, b) = (Node::new(1), Node::new(2));
    a.clock.advance(Duration::from_secs(3_600));
    a.record("t1", "1");
    a.record("t2", "1");
    b.record("t1", "1");
    let early = b.get("t1").created_at;
    assert!(early < a.get("t1").created_at);
    a.decide("t1", Decision::Settle).unwrap();
    a.absorb(b.entries());
    assert_eq!((a.get("t1").created_at, a.get("t1").status), (early, TransactionStatus::Settled));
    let ids: Vec<_> = a.transactions().into_iter().map(|transaction| transaction.transaction_id).collect();
    assert_eq!(ids, [transaction_id("t1"), transaction_id("t2")], "filed anew under its earlier time");
    b.absorb(a.entries());
    assert_eq!(a.assert_clean(), b.assert_clean());
}

#[test]
fn an_id_with_other_facts_is_what_postgresql_says_it_is() {
    let (a, b) = (Node::new(1), Node::new(2));
    b.clock.advance(Duration::from_secs(1));
    let ours = a.record("t1", "1");
    let theirs = b.record("t1", "2");
    b.decide("t1", Decision::Settle).unwrap();
    a.decide("t1", dispute("mine")).unwrap();
    let absorbed = a.absorb(b.entries());
    assert_eq!((absorbed.new_events, absorbed.conflicts, absorbed.touched.len()), (2, 2, 0));
    assert_eq!(a.get("t1").facts, ours.facts, "with nothing said, the earliest stays");
    a.assert_agrees_with_itself();

    let hash = theirs.facts.hash();
    a.engine.central_row(transaction_id("t1"), hash).wait().unwrap();
    let shown = a.get("t1");
    assert_eq!((&shown.facts, shown.status), (&theirs.facts, TransactionStatus::Settled));
    assert_eq!(a.engine.events(&transaction_id("t1")).unwrap().len(), 2);
    // What is decided from here on is about the transaction that is shown.
    a.decide("t1", dispute("about theirs")).unwrap();
    assert_eq!(a.get("t1").evidence, ["about theirs"]);
    b.engine.central_row(transaction_id("t1"), hash).wait().unwrap();
    b.absorb(a.entries());
    assert_eq!(b.get("t1"), a.get("t1"));

    // Said before the facts are known: nothing changes until they are.
    let c = Node::new(3);
    c.record("t1", "1");
    c.engine.central_row(transaction_id("t1"), hash).wait().unwrap();
    assert_eq!(c.get("t1").facts, ours.facts);
    c.absorb(b.entries());
    let shown = a.assert_clean();
    assert_eq!(b.assert_clean(), shown);
    assert_eq!(c.assert_clean(), shown);
}

#[test]
fn an_event_that_does_not_hold_the_facts_it_names_is_left_out() {
    let (a, b) = (Node::new(1), Node::new(2));
    a.record("t1", "1");
    let mut forged = a.entries();
    forged[0].event.facts = [7; 32];
    assert_eq!(b.absorb(forged), Absorbed::default());
    assert!(b.transactions().is_empty());
}

#[test]
fn an_event_larger_than_a_record_may_be_is_left_out_and_the_rest_is_read() {
    let (a, b) = (Node::new(1), Node::new(2));
    a.record("t1", "1");
    a.decide("t1", dispute("proof")).unwrap();
    let mut entries = a.entries();
    let EventBody::Disputed { evidence, .. } = &mut entries[1].event.body else { panic!("it is disputed") };
    *evidence = vec!["x".repeat(9_000_000)];
    assert_eq!(b.absorb(entries).new_events, 1);
    assert_eq!(b.get("t1").status, TransactionStatus::Pending);
    assert_eq!(b.absorb(a.entries()).new_events, 1, "the one that fits comes through");
    assert_eq!(b.assert_clean().len(), 1);
}

#[test]
fn another_clock_pulls_ours_ahead_by_five_minutes_at_most() {
    let (a, b) = (Node::new(1), Node::new(2));
    a.clock.advance(Duration::from_secs(3_600));
    a.record("t1", "1");
    b.absorb(a.entries());
    let settled = b.decide("t1", Decision::Settle).unwrap();
    let event = b.engine.log_after(0, 1, 1).unwrap().pop().unwrap().event;
    assert_eq!(event.at, Timestamp::from_micros(START + 300_000_000));
    assert_eq!(settled.settled_at, Some(event.at));
    b.decide("t1", dispute("x")).unwrap();
    let next = b.engine.log_after(1, 1, 1).unwrap().pop().unwrap().event;
    assert_eq!(next.at.as_micros(), event.at.as_micros() + 1, "its own events stay in order");
}

#[test]
fn finality_follows_what_postgresql_acknowledges() {
    let (a, b) = (Node::new(1), Node::new(2));
    let finality = |node: &Node, id: &str| node.get(id).finality;
    a.record("t1", "1");
    a.record("t2", "1");
    b.absorb(a.entries());
    let state = |acked_seq| PostgresState { acked_seq, fence_hash: [1; 32], ..PostgresState::default() };
    a.save(state(1));
    assert_eq!((finality(&a, "t1"), finality(&a, "t2")), (Finality::Central, Finality::Local));
    a.decide("t1", Decision::Settle).unwrap();
    assert_eq!(finality(&a, "t1"), Finality::Local);
    a.save(state(3));
    assert_eq!(finality(&a, "t1"), Finality::Central);
    let parked = |seq| ParkedEntry {
        key: ParkedKey::Seq(seq),
        reason: "too wide".to_owned(),
        code: "22003".to_owned(),
        parked_at: Timestamp::from_micros(1),
        attempts: 1,
    };
    a.engine.park(Sink::Postgres, vec![parked(3), parked(2)]).wait().unwrap();
    assert_eq!(Sink::ALL.map(|sink| a.engine.parked_count(sink)), [0, 2]);
    assert_eq!((finality(&a, "t1"), finality(&a, "t2")), (Finality::Local, Finality::Local));
    let page = a.engine.parked(Sink::Postgres, PageRequest { limit: 1, cursor: None }).unwrap();
    assert_eq!(page.items, [parked(2)]);
    let rest = PageRequest { limit: 1, cursor: page.next_cursor.as_deref() };
    let rest = a.engine.parked(Sink::Postgres, rest).unwrap();
    assert_eq!((rest.items, rest.next_cursor), (vec![parked(3)], None));
    a.engine.unpark(Sink::Postgres, vec![ParkedKey::Seq(3)]).wait().unwrap();
    assert_eq!(a.engine.parked_count(Sink::Postgres), 1);
    assert_eq!(finality(&a, "t1"), Finality::Central);

    // What came from PostgreSQL is there; what came from elsewhere has yet to be offered.
    assert_eq!(finality(&b, "t1"), Finality::Local);
    b.save(PostgresState { acked_copies: 2, ..state(0) });
    assert_eq!(finality(&b, "t1"), Finality::Central);
    let absorbed = b.engine.absorb(a.entries(), Some((b.engine.node_id(), state(0)))).wait().unwrap();
    assert_eq!((absorbed.new_events, absorbed.acked_copies), (1, 3));
    assert_eq!(finality(&b, "t1"), Finality::Central);
    assert_eq!(b.engine.postgres_state().unwrap(), PostgresState { acked_copies: 3, ..state(0) });
}

#[test]
fn the_agents_that_are_followed_are_those_registered_here_ever() {
    let (a, b) = (Node::new(1), Node::new(2));
    for id in ["thon", "idle", "gone"] {
        a.engine.register(registration(id, &[]), None).wait().unwrap();
    }
    a.record("t1", "1");
    for id in ["thon", "gone"] {
        a.engine.unregister(agent_id(id), Precondition::None).wait().unwrap();
    }
    let followed = |node: &Node| -> Vec<_> {
        let agents = node.engine.ledger_agents().unwrap();
        agents.into_iter().map(|agent| (agent.agent_id.as_str().to_owned(), agent.covered)).collect()
    };
    assert_eq!(followed(&a), [("idle".to_owned(), false), ("thon".to_owned(), false)]);
    a.engine.cover(vec![agent_id("thon"), agent_id("stranger")]).wait().unwrap();
    assert_eq!(followed(&a)[1], ("thon".to_owned(), true));
    a.save(PostgresState { restarted: true, ..PostgresState::default() });
    assert_eq!(followed(&a)[1], ("thon".to_owned(), false));
    assert!(followed(&b).is_empty());
    a.assert_clean();
}

#[test]
fn cursors_that_are_on_their_way_when_a_node_gets_another_id_are_not_written() {
    let (a, b) = (Node::new(1), Node::new(2));
    a.record("t1", "1");
    b.record("t2", "1");
    let earlier = b.engine.node_id();
    let postgres = PostgresState { acked_seq: 1, snapshot: Some("7:7:".to_owned()), ..PostgresState::default() };
    let redis = RedisState { acked_change_seq: 9, nonce: Some("nonce".to_owned()), ..RedisState::default() };
    assert_eq!(b.engine.save_redis(earlier, redis.clone()).wait().unwrap(), Saved::Yes);
    b.save(postgres.clone());

    let now = b.engine.fork(earlier, ForkReason::Registry).wait().unwrap();
    // The other sink finds it out as well.
    assert_eq!(b.engine.fork(earlier, ForkReason::Ledger).wait().unwrap(), now);
    assert_eq!((b.engine.node_id(), b.engine.identity().earlier), (now, vec![earlier]), "it is one copy, not two");
    let set_back = (b.engine.postgres_state().unwrap(), b.engine.redis_state().unwrap());
    assert_eq!(set_back.0, PostgresState { restarted: true, ..PostgresState::default() });
    assert_eq!(set_back.1, RedisState { acked_change_seq: 0, ..redis.clone() });
    assert_eq!(b.engine.save_postgres(earlier, postgres.clone()).wait().unwrap(), Saved::Outdated);
    assert_eq!(b.engine.save_redis(earlier, redis).wait().unwrap(), Saved::Outdated);
    let absorbed = b.engine.absorb(a.entries(), Some((earlier, postgres))).wait().unwrap();
    assert_eq!((absorbed.new_events, absorbed.outdated), (1, true), "what came along is taken in");
    assert_eq!((b.engine.postgres_state().unwrap(), b.engine.redis_state().unwrap()), set_back);
    assert_eq!(b.get("t2").finality, Finality::Local);
}

#[test]
fn a_copied_file_goes_on_as_another_node_and_takes_in_what_the_original_wrote_since() {
    let a = Node::new(1);
    a.record("t1", "1");
    a.engine.close();
    let copied = a.path.with_file_name("copy.redb");
    std::fs::copy(&a.path, &copied).unwrap();
    let (a, b) = (Node { directory: a.directory, ..Node::open(&a.path, 4) }, Node::open(&copied, 5));
    a.decide("t1", Decision::Settle).unwrap();
    let mut before = b.engine.commits();
    before.borrow_and_update();
    let minted = b.engine.fork(b.engine.node_id(), ForkReason::Ledger).wait().unwrap();
    assert!(b.engine.postgres_state().unwrap().restarted);
    b.decide("t1", dispute("from the copy")).unwrap();
    assert!(before.has_changed().unwrap());
    let log = b.engine.log_after(0, 10, usize::MAX).unwrap();
    let authors: Vec<NodeId> = log.iter().map(|entry| entry.event.node_id).collect();
    assert_eq!(authors, [a.engine.node_id(), minted]);
    assert_eq!(b.engine.log_position().seq, 2);
    assert_eq!(b.engine.log_hash(1).unwrap(), a.engine.log_hash(1).unwrap(), "the chain goes on");

    assert_eq!(b.absorb(a.entries()).new_events, 1, "what the original wrote under the old name is news here");
    a.absorb(b.entries());
    assert_eq!(a.get("t1").status, TransactionStatus::Disputed);
    let shown = b.transactions();
    assert_eq!(a.transactions(), shown);
    b.assert_clean();
    a.assert_clean();
}

#[test]
fn disagreements_are_counted_where_they_meet_and_others_decisions_are_not_ours() {
    let (a, b) = (Node::new(1), Node::new(2));
    a.record("t1", "1");
    b.absorb(a.entries());
    a.decide("t1", Decision::Settle).unwrap();
    b.decide("t1", Decision::Cancel { reason: None }).unwrap();
    b.record("t2", "1");
    a.record("t2", "9");
    for _ in 0..2 {
        a.absorb(b.entries());
        b.absorb(a.entries());
    }
    for (node, own) in
        [(&a, r#"from_state="pending",to_state="settled""#), (&b, r#"from_state="pending",to_state="cancelled""#)]
    {
        let text = node.metrics.render(&node.engine);
        let has = |line: String| assert!(text.lines().any(|found| found == line), "no line {line} in\n{text}");
        has(r#"tradepost_ledger_conflicts_total{reason="concurrent_decision"} 1"#.to_owned());
        has(r#"tradepost_ledger_conflicts_total{reason="transaction_id_conflict"} 1"#.to_owned());
        has(r#"tradepost_ledger_conflicts_total{reason="unseen_decision"} 0"#.to_owned());
        has(format!("marketplace_transaction_state_transitions_total{{{own}}} 1"));
        has(r#"marketplace_transactions_by_status{status="disputed"} 1"#.to_owned());
        has(r#"marketplace_transactions_by_status{status="pending"} 1"#.to_owned());
        let transitions =
            text.lines().filter(|line| line.starts_with("marketplace_transaction_state_transitions_total{"));
        assert_eq!(transitions.count(), 1);
    }
    assert_eq!(a.assert_clean(), b.assert_clean());
}

/// What a node does in a random history.
#[derive(Debug, Clone)]
enum Act {
    Record(usize, u8),
    Settle(usize),
    Cancel(usize),
    Dispute(usize),
    AddEvidence(usize),
    Resolve(usize, bool),
    /// Takes in some of what another node holds.
    Pull(usize, u64),
    /// Time passes here, and for nobody else.
    Pass(u16),
}

const IDS: [&str; 3] = ["t0", "t1", "t2"];
const NODES: usize = 3;

fn act() -> impl Strategy<Value = Act> {
    let id = 0..IDS.len();
    prop_oneof![
        3 => (id.clone(), 0_u8..2).prop_map(|(id, variant)| Act::Record(id, variant)),
        2 => id.clone().prop_map(Act::Settle),
        1 => id.clone().prop_map(Act::Cancel),
        2 => id.clone().prop_map(Act::Dispute),
        1 => id.clone().prop_map(Act::AddEvidence),
        2 => (id, any::<bool>()).prop_map(|(id, settled)| Act::Resolve(id, settled)),
        4 => (0..NODES, any::<u64>()).prop_map(|(from, which)| Act::Pull(from, which)),
        1 => any::<u16>().prop_map(Act::Pass),
    ]
}

/// Some of them, some twice, in some order, all picked by `which`.
fn picked(mut entries: Vec<LedgerEntry>, which: u64) -> Vec<LedgerEntry> {
    let mut state = which | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    entries.retain(|_| next() % 3 != 0);
    let repeated: Vec<_> = entries.iter().filter(|_| next() % 4 == 0).cloned().collect();
    entries.extend(repeated);
    for at in (1..entries.len()).rev() {
        let bound = u64::try_from(at + 1).expect("a short list");
        entries.swap(at, usize::try_from(next() % bound).expect("below a short list's length"));
    }
    entries
}

fn run(nodes: &[Node], acts: &[(usize, Act)], allow_other_facts: bool) {
    for (number, (at, act)) in acts.iter().enumerate() {
        let node = &nodes[*at];
        // A refusal is an answer like any other: the rules are not what is tested here.
        let decided = |id: usize, decision| drop(node.decide(IDS[id], decision));
        match act {
            Act::Record(id, variant) => {
                let amount = if allow_other_facts && *variant == 1 { "7" } else { "2" };
                let facts = facts("genesis", if *id == 2 { "genesis" } else { "thon" }, "python", amount);
                let new = NewTransaction { transaction_id: Some(transaction_id(IDS[*id])), facts };
                drop(node.engine.record(new, None).wait());
            }
            Act::Settle(id) => decided(*id, Decision::Settle),
            Act::Cancel(id) => decided(*id, Decision::Cancel { reason: None }),
            Act::Dispute(id) => decided(*id, dispute(&format!("d{number}"))),
            Act::AddEvidence(id) => decided(*id, Decision::AddEvidence { evidence: vec![format!("e{number}")] }),
            Act::Resolve(id, settled) => {
                let outcome = if *settled { ResolutionOutcome::Settled } else { ResolutionOutcome::Cancelled };
                decided(*id, resolve(outcome));
            }
            Act::Pull(from, which) => {
                node.absorb(picked(nodes[*from].entries(), *which));
            }
            Act::Pass(seconds) => node.clock.advance(Duration::from_secs(u64::from(*seconds))),
        }
    }
}

/// Everybody hands everybody everything, until nobody hears anything new.
fn exchange_until_quiet(nodes: &[Node]) {
    loop {
        let mut news = 0;
        for to in nodes {
            for from in nodes {
                news += to.absorb(from.entries()).new_events;
            }
        }
        if news == 0 {
            return;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn nodes_that_exchange_events_until_quiet_show_the_same(
        acts in prop::collection::vec((0..NODES, act()), 1..60),
        allow_other_facts in any::<bool>(),
    ) {
        let nodes: Vec<Node> = (0..NODES).map(|seed| Node::new(seed as u64)).collect();
        run(&nodes, &acts, allow_other_facts);
        for node in &nodes {
            node.assert_agrees_with_itself();
        }
        let disputed: HashSet<EventId> = nodes.iter().flat_map(Node::entries).map(|entry| entry.event.event_id).collect();
        exchange_until_quiet(&nodes);
        for node in &nodes {
            let held: HashSet<EventId> = node.entries().into_iter().map(|entry| entry.event.event_id).collect();
            prop_assert_eq!(&held, &disputed, "nothing acknowledged is lost");
        }
        let shown: Vec<Vec<Transaction>> = nodes.into_iter().map(Node::assert_clean).collect();
        for other in &shown[1..] {
            prop_assert_eq!(other, &shown[0]);
        }
    }

    #[test]
    fn the_order_and_the_grouping_of_what_comes_in_make_no_difference(
        acts in prop::collection::vec((0..NODES, act()), 1..40),
        cuts in prop::collection::vec(any::<u64>(), 0..12),
    ) {
        let nodes: Vec<Node> = (0..NODES).map(|seed| Node::new(seed as u64)).collect();
        run(&nodes, &acts, true);
        exchange_until_quiet(&nodes);
        let (at_once, piecemeal) = (Node::new(10), Node::new(11));
        let all = nodes[0].entries();
        at_once.absorb(all.clone());
        for cut in cuts {
            piecemeal.absorb(picked(all.clone(), cut));
        }
        for entry in all.into_iter().rev() {
            piecemeal.absorb(vec![entry]);
        }
        let shown = at_once.assert_clean();
        prop_assert_eq!(&piecemeal.assert_clean(), &shown);
        prop_assert_eq!(&nodes[0].transactions(), &shown);
    }
}
