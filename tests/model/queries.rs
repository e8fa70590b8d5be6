//! Every query, answered by the engine and by the model.

use std::collections::{BTreeMap, BTreeSet};

use tradepost::domain::ranking::{RankBy, SearchQuery};
use tradepost::domain::transaction::Finality;
use tradepost::domain::{
    AvailabilityStatus, Capability, Currency, Money, Role, Timestamp, Transaction, TransactionId, TransactionStatus,
};
use tradepost::metrics::StateSource;
use tradepost::{AgentFilter, Engine, LeaseState, PageRequest, Profile, TransactionFilter};

use super::naive::{self, Marketplace, Now, Refused, has_any, sum};
use super::sequence::{AGENTS, CAPABILITIES, agent_id, refused};

/// # Panics
///
/// When any answer differs.
pub fn compare(engine: &Engine, model: &Marketplace, now: Now) {
    compare_agents(engine, model, now);
    compare_discovery(engine, model, now);
    compare_transactions(engine, model);
    compare_balances(engine, model);
    compare_counters(engine, model, now);
}

fn live(model: &Marketplace, now: Now) -> Vec<&naive::Agent> {
    model.agents.values().filter(|agent| agent.is_live(now)).collect()
}

fn compare_agents(engine: &Engine, model: &Marketplace, now: Now) {
    for id in AGENTS {
        let told = refused(engine.agent(&agent_id(id)));
        match (told, model.agents.get(id)) {
            (Ok(profile), Some(agent)) => assert_profile(&profile, agent, engine, now),
            (told, expected) => assert_eq!((told.err(), expected.is_none()), (Some(Refused::AgentNotFound), true)),
        }
    }
    for sort_by in [RankBy::AgentId, RankBy::Score, RankBy::Cost, RankBy::Availability] {
        for capability in [None, Some(CAPABILITIES[0])] {
            for availability in [None, Some(AvailabilityStatus::Busy)] {
                for include_expired in [false, true] {
                    let filter = AgentFilter {
                        capability: capability.map(Capability::from_stored),
                        availability,
                        sort_by,
                        include_expired,
                    };
                    let matches = |agent: &&naive::Agent| {
                        (include_expired || agent.is_live(now))
                            && availability.is_none_or(|wanted| agent.registration.availability == wanted)
                            && capability.is_none_or(|wanted| has_any(&agent.registration.capabilities, &[wanted]))
                    };
                    let mut expected: Vec<&naive::Agent> = model.agents.values().filter(matches).collect();
                    sort(&mut expected, sort_by);
                    let told = pages(|page| engine.agents(&filter, page));
                    assert_eq!(ids(&told), expected_ids(&expected), "{filter:?}");
                }
            }
        }
    }
}

fn assert_profile(profile: &Profile, agent: &naive::Agent, engine: &Engine, now: Now) {
    let (told, expected) = (&profile.agent, &agent.registration);
    assert_eq!(
        (&told.name, &told.capabilities, told.cost_per_task, &told.currency, &told.billing_notes),
        (&expected.name, &expected.capabilities, expected.cost_per_task, &expected.currency, &expected.billing_notes),
    );
    assert_eq!(
        (told.availability, told.capacity_per_hour, told.reputation, told.revision, &told.metadata),
        (expected.availability, expected.capacity_per_hour, agent.reputation, agent.revision, &expected.metadata),
    );
    assert_eq!(told.last_updated.as_micros(), agent.last_updated);
    assert_eq!(i64::from(told.ttl.seconds()) * 1_000_000, agent.ttl_micros);
    assert_eq!(profile.expires_at.as_micros(), agent.expires_at);
    let state = if agent.is_live(now) { LeaseState::Live } else { LeaseState::Expired };
    assert_eq!((profile.lease, profile.local, told.node_id()), (state, true, engine.node_id()));
}

fn sort(agents: &mut [&naive::Agent], by: RankBy) {
    use std::cmp::Reverse;
    // Scores are never negative or NaN, so their bits are in their order.
    let score_down = |agent: &naive::Agent| Reverse(agent.reputation.shown_score().to_bits());
    let cost = |agent: &naive::Agent| agent.registration.cost_per_task;
    let status = |agent: &naive::Agent| {
        ["online", "busy", "maintenance", "offline"]
            .iter()
            .position(|name| *name == agent.registration.availability.as_str())
    };
    // The model's map is in the order of ids, and sorting is stable.
    agents.sort_by(|a, b| a.registration.agent_id.cmp(&b.registration.agent_id));
    match by {
        RankBy::AgentId => {}
        RankBy::Score => agents.sort_by_key(|agent| (score_down(agent), cost(agent))),
        RankBy::Cost => agents.sort_by_key(|agent| (cost(agent), score_down(agent))),
        RankBy::Search => agents.sort_by_key(|agent| (cost(agent), score_down(agent), status(agent))),
        RankBy::Availability => agents.sort_by_key(|agent| {
            (status(agent), Reverse(agent.registration.capacity_per_hour.get()), score_down(agent))
        }),
    }
}

fn ids(profiles: &[Profile]) -> Vec<String> {
    profiles.iter().map(|profile| profile.agent.agent_id.to_string()).collect()
}

fn expected_ids(agents: &[&naive::Agent]) -> Vec<String> {
    agents.iter().map(|agent| agent.registration.agent_id.to_string()).collect()
}

/// All pages of a list, three items at a time.
fn pages<T>(mut next: impl FnMut(PageRequest<'_>) -> Result<tradepost::Page<T>, tradepost::Error>) -> Vec<T> {
    let (mut items, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let page = next(PageRequest { limit: 3, cursor: cursor.as_deref() }).expect("a page");
        items.extend(page.items);
        cursor = page.next_cursor;
        if cursor.is_none() {
            return items;
        }
    }
}

fn compare_discovery(engine: &Engine, model: &Marketplace, now: Now) {
    let live = live(model, now);
    let mut counts = BTreeMap::new();
    for name in live.iter().flat_map(|agent| agent.registration.capabilities.iter()) {
        *counts.entry(name.clone()).or_insert(0) += 1;
    }
    assert_eq!(engine.capabilities().unwrap(), counts);
    for wanted in [&[][..], &CAPABILITIES[..1], &CAPABILITIES[..]] {
        for (max_cost, min_score) in [(None, None), (Some("1"), None), (None, Some(0.3))] {
            let max_cost = max_cost.map(|cost| Money::parse(cost).expect("a decimal"));
            let query = SearchQuery {
                capabilities: wanted.iter().map(|name| Capability::from_stored(name)).collect(),
                max_cost,
                min_score,
                currency: min_score.map(|_| Currency::default()),
                availability: max_cost.map(|_| AvailabilityStatus::Online),
            };
            let mut expected: Vec<&naive::Agent> = live
                .iter()
                .filter(|agent| {
                    let told = &agent.registration;
                    has_any(&told.capabilities, wanted)
                        && max_cost.is_none_or(|max| {
                            told.cost_per_task <= max && told.availability == AvailabilityStatus::Online
                        })
                        && min_score
                            .is_none_or(|min| agent.reputation.shown_score() >= min && told.currency.as_str() == "USD")
                })
                .copied()
                .collect();
            sort(&mut expected, RankBy::Search);
            assert_eq!(ids(&engine.search(&query, 10).expect("a search")), expected_ids(&expected), "{query:?}");
        }
    }
    for name in CAPABILITIES {
        let capability = Capability::from_stored(name);
        let of = |statuses: &[AvailabilityStatus]| -> Vec<&naive::Agent> {
            let with = live.iter().filter(|agent| has_any(&agent.registration.capabilities, &[name]));
            with.filter(|agent| statuses.contains(&agent.registration.availability)).copied().collect()
        };
        let (online, busy) = (of(&[AvailabilityStatus::Online]), of(&[AvailabilityStatus::Busy]));
        let mut either = [&online[..], &busy[..]].concat();

        let mut candidates = if online.is_empty() { busy } else { online.clone() };
        sort(&mut candidates, RankBy::Cost);
        let load = |agent: &&&naive::Agent| {
            let minute = |micros: i64| micros / 60_000_000;
            let recent = model.transactions.iter().filter(|t| minute(t.created_at) >= minute(now.wall) - 60);
            let provider = &agent.registration.agent_id;
            recent.filter(|t| t.facts.provider_agent == *provider && t.facts.capability == capability).count()
        };
        let least = candidates.iter().min_by_key(load).map(|agent| agent.registration.agent_id.to_string());
        let told = engine.least_loaded(&capability).expect("an answer");
        assert_eq!(told.map(|profile| profile.agent.agent_id.to_string()), least);

        // Whose turn it is depends on all calls before; who may come, and in what order, does not.
        sort(&mut either, RankBy::Score);
        assert_eq!(ids(&engine.recommend(&capability, 10, true).expect("an answer")), expected_ids(&either));
        let online = expected_ids(&online);
        for profile in engine.recommend(&capability, 2, false).expect("an answer") {
            assert!(online.contains(&profile.agent.agent_id.to_string()));
        }
        let drawn = engine.random(Some(&capability)).expect("an answer");
        let drawn = drawn.map(|profile| profile.agent.agent_id.to_string());
        assert_eq!(drawn.is_none(), either.is_empty());
        assert!(drawn.is_none_or(|id| expected_ids(&either).contains(&id)));
    }
}

fn shown(transaction: &naive::Transaction) -> Transaction {
    Transaction {
        transaction_id: TransactionId::from_stored(&transaction.id),
        created_at: Timestamp::from_micros(transaction.created_at),
        facts: transaction.facts.clone().into(),
        status: transaction.status,
        evidence: transaction.evidence.clone(),
        updated_at: Timestamp::from_micros(transaction.updated_at),
        settled_at: transaction.settled_at().map(Timestamp::from_micros),
        finality: Finality::Local,
    }
}

fn compare_transactions(engine: &Engine, model: &Marketplace) {
    let mut all: Vec<&naive::Transaction> = model.transactions.iter().collect();
    all.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    for expected in &all {
        let id = TransactionId::from_stored(&expected.id);
        assert_eq!(engine.transaction(&id).expect("the transaction is there"), shown(expected));
        let told = engine.events(&id).expect("the transaction is there");
        let told: Vec<_> =
            told.iter().map(|event| (event.body.kind().as_str(), event.at.as_micros(), event.round)).collect();
        let expected: Vec<_> = expected.events.iter().map(|event| (event.kind, event.at, event.round)).collect();
        assert_eq!(told, expected, "{id}");
    }
    let unknown = engine.transaction(&TransactionId::from_stored("none"));
    assert_eq!(refused(unknown), Err(Refused::TransactionNotFound));

    let middle = all.get(all.len() / 2).map(|transaction| Timestamp::from_micros(transaction.created_at));
    for agent in [None, Some("ada"), Some("nobody")] {
        for role in [None, Some(Role::Payer), Some(Role::Provider)] {
            for status in [None, Some(TransactionStatus::Pending), Some(TransactionStatus::Cancelled)] {
                for (capability, since, until) in
                    [(None, None, None), (Some("sql"), middle, None), (None, None, middle)]
                {
                    let filter = TransactionFilter {
                        agent: agent.map(agent_id),
                        role,
                        status,
                        capability: capability.map(Capability::from_stored),
                        since,
                        until,
                        descending: role.is_some(),
                    };
                    let mut expected: Vec<Transaction> = all.iter().map(|transaction| shown(transaction)).collect();
                    expected.retain(|transaction| matches(transaction, &filter));
                    if filter.descending {
                        expected.reverse();
                    }
                    assert_eq!(pages(|page| engine.transactions(&filter, page)), expected, "{filter:?}");
                    assert_eq!(exported(engine, &filter), expected, "{filter:?}");
                }
            }
        }
    }
}

fn matches(transaction: &Transaction, filter: &TransactionFilter) -> bool {
    let facts = &transaction.facts;
    let party = filter.agent.as_ref().is_none_or(|agent| match filter.role {
        Some(Role::Payer) => facts.payer_agent == *agent,
        Some(Role::Provider) => facts.provider_agent == *agent,
        None => facts.payer_agent == *agent || facts.provider_agent == *agent,
    });
    party
        && filter.status.is_none_or(|status| transaction.status == status)
        && filter.capability.as_ref().is_none_or(|capability| facts.capability == *capability)
        && filter.since.is_none_or(|since| transaction.created_at >= since)
        && filter.until.is_none_or(|until| transaction.created_at < until)
}

fn exported(engine: &Engine, filter: &TransactionFilter) -> Vec<Transaction> {
    let mut export = engine.export(filter).expect("an export begins");
    let mut items = Vec::new();
    while let Some(chunk) = export.next_chunk(4).expect("an export goes on") {
        items.extend(chunk);
    }
    items
}

fn compare_balances(engine: &Engine, model: &Marketplace) {
    for id in AGENTS.into_iter().chain(["nobody"]) {
        let agent = agent_id(id);
        let mine = |t: &&naive::Transaction| t.facts.payer_agent == agent || t.facts.provider_agent == agent;
        let currencies: BTreeSet<Currency> =
            model.transactions.iter().filter(mine).map(|t| t.facts.currency.clone()).collect();
        let told = engine.balance(&agent).expect("a balance");
        assert_eq!(told.keys().cloned().collect::<BTreeSet<_>>(), currencies);
        for (currency, balance) in told {
            let total = |pays: bool, status: TransactionStatus| {
                sum(model.transactions.iter().filter(|t| {
                    let party = if pays { &t.facts.payer_agent } else { &t.facts.provider_agent };
                    *party == agent && t.status == status && t.facts.currency == currency
                }))
            };
            for (side, pays) in [(balance.paid, true), (balance.earned, false)] {
                assert_eq!(side.pending.nanos(), total(pays, TransactionStatus::Pending));
                assert_eq!(side.settled.nanos(), total(pays, TransactionStatus::Settled));
                assert_eq!(side.disputed.nanos(), total(pays, TransactionStatus::Disputed));
            }
        }
    }
}

fn compare_counters(engine: &Engine, model: &Marketplace, now: Now) {
    let status = engine.status().expect("a status");
    let events: usize = model.transactions.iter().map(|transaction| transaction.events.len()).sum();
    assert_eq!(
        (status.agents, status.transactions, status.events),
        (model.agents.len() as u64, model.transactions.len() as u64, events as u64)
    );
    let by_status = TransactionStatus::ALL
        .map(|status| model.transactions.iter().filter(|transaction| transaction.status == status).count() as u64);
    assert_eq!(engine.transactions_by_status(), Some(by_status));
    let live = live(model, now);
    let online = live.iter().filter(|agent| agent.registration.availability == AvailabilityStatus::Online).count();
    assert_eq!(engine.agents_online(), online as u64);
    for id in AGENTS {
        let score = live.iter().find(|agent| agent.registration.agent_id.as_str() == id);
        assert_eq!(engine.reputation_score(id), score.map(|agent| agent.reputation.shown_score()));
    }
}
