//! Pages of transactions of which many share a microsecond.

use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::domain::{Currency, EventId, Facts, JsonObject, Money};
use crate::store::{Batch, Head, Mint, Store};

const START: i64 = 1_795_391_431_767_109;

struct Ledger {
    _directory: tempfile::TempDir,
    store: Store,
    head: Head,
}

impl Ledger {
    fn open() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut random = StdRng::seed_from_u64(1);
        let mint = Mint { now: Timestamp::from_micros(START), random: &mut random };
        let (store, head) = Store::open_file(&directory.path().join("f.redb"), mint).unwrap();
        Self { _directory: directory, store, head }
    }

    /// Records `count` transactions at a time, whose ids are not in the order in which they come.
    fn record(&mut self, micros: i64, provider: &str, count: usize) -> Vec<TransactionId> {
        let id =
            |number: usize| TransactionId::from_stored(&format!("{:05}-{provider}-{micros}", number * 7_919 % 20_011));
        let ids: Vec<_> = (0..count).map(id).collect();
        self.store
            .write(&mut self.head, |batch| ids.iter().try_for_each(|id| record(batch, micros, provider, id)))
            .unwrap();
        ids
    }

    /// Reads page after page; all ids in their order, and the most entries that were read for one page.
    fn pages(&self, filter: &TransactionFilter, limit: usize) -> (Vec<TransactionId>, usize) {
        let snapshot = self.store.snapshot().unwrap();
        let (mut ids, mut most, mut after) = (Vec::new(), 0, None);
        for _ in 0..10_000 {
            let (page, read) = read_page(&snapshot, filter, limit, after.as_ref(), Acknowledged::default()).unwrap();
            assert!(page.items.len() <= limit);
            most = most.max(read);
            ids.extend(page.items.into_iter().map(|transaction| transaction.transaction_id));
            after = page.next;
            if after.is_none() {
                return (ids, most);
            }
        }
        panic!("the pages do not end");
    }
}

fn record(batch: &mut Batch<'_>, micros: i64, provider: &str, id: &TransactionId) -> Result<(), StoreError> {
    let at = Timestamp::from_micros(micros);
    let facts = Facts {
        payer_agent: AgentId::from_stored("genesis"),
        provider_agent: AgentId::from_stored(provider),
        capability: Capability::from_stored("python"),
        amount: Money::parse("2.5").unwrap(),
        currency: Currency::default(),
        context: JsonObject::default(),
    };
    let number = batch.head.totals.events;
    let mut event_id = [0; 16];
    event_id[8..].copy_from_slice(&number.to_be_bytes());
    let event = Event {
        event_id: EventId::from_bytes(event_id),
        transaction_id: id.clone(),
        facts: facts.hash(),
        round: 0,
        node_id: batch.node_id(),
        at,
        body: EventBody::Recorded(Arc::new(facts)),
    };
    let key = batch.free_key(at)?;
    batch.record(key, &event)
}

fn sorted(ids: &[TransactionId]) -> Vec<TransactionId> {
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    sorted
}

fn filters() -> Vec<(&'static str, TransactionFilter)> {
    let all = TransactionFilter::default();
    let thon = Some(AgentId::from_stored("thon"));
    vec![
        ("all", all.clone()),
        ("newest first", TransactionFilter { descending: true, ..all.clone() }),
        ("open", TransactionFilter { status: Some(TransactionStatus::Pending), ..all.clone() }),
        ("one agent's", TransactionFilter { agent: thon.clone(), ..all.clone() }),
        ("one agent's, newest first", TransactionFilter { agent: thon, descending: true, ..all }),
    ]
}

#[test]
fn a_microsecond_of_more_than_a_page_may_read_is_told_in_bounded_pages() {
    let mut ledger = Ledger::open();
    let before = ledger.record(START - 1, "thon", 3);
    // Alone, the agent has few enough to be put in order; it is not alone in that microsecond.
    let mut shared = ledger.record(START, "thon", 2_500);
    let others = ledger.record(START, "mira", MAX_READ);
    let after = ledger.record(START + 1, "thon", 3);
    for (what, filter) in filters() {
        if filter.agent.is_none() && shared.len() == 2_500 {
            shared.extend(others.iter().cloned());
        } else if filter.agent.is_some() {
            shared.truncate(2_500);
        }
        let mut expected = [sorted(&before), shared.clone(), sorted(&after)].concat();
        if filter.descending {
            expected.reverse();
        }
        for limit in [997, 100_000] {
            let (ids, most) = ledger.pages(&filter, limit);
            assert!(ids == expected, "{what}, {limit} at once: {} of {}", ids.len(), expected.len());
            assert!(most <= MAX_READ + 1, "{what}: {most} were read for one page");
        }
    }
    let nothing =
        TransactionFilter { capability: Some(Capability::from_stored("none")), ..TransactionFilter::default() };
    let (ids, most) = ledger.pages(&nothing, 100);
    assert!(ids.is_empty() && most <= MAX_READ + 1, "{most} were read for one page that holds nothing");
}

#[test]
fn a_microsecond_of_as_many_as_a_page_may_read_is_in_the_order_of_ids() {
    let mut ledger = Ledger::open();
    let before = ledger.record(START - 1, "thon", 20);
    let shared = ledger.record(START, "thon", MAX_READ);
    let after = ledger.record(START + 1, "thon", 20);
    for (what, filter) in filters() {
        let mut expected = [sorted(&before), sorted(&shared), sorted(&after)].concat();
        if filter.descending {
            expected.reverse();
        }
        for limit in [1_713, 100_000] {
            let (ids, most) = ledger.pages(&filter, limit);
            assert!(ids == expected, "{what}, {limit} at once: {} of {}", ids.len(), expected.len());
            assert!(most <= 2 * MAX_READ, "{what}: {most} were read for one page");
        }
    }
}
