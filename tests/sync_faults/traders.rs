//! What two sidecars are asked to do, and what they acknowledged: the account that central is held against.
//!
//! Every request goes out under a key of its own and is repeated until it is answered, so that after a kill nobody has
//! to guess whether it was carried out: what is in the account was acknowledged, and nothing else happened.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::common::http::{Address, Answer, Client, Request};
use super::common::sidecar::wait_for;

/// What kind of event was acknowledged, and the word in it by which it is known again.
pub type Deed = (&'static str, String);

/// Everything that was acknowledged.
#[derive(Default)]
pub struct Account {
    /// Every transaction's events, in no order.
    pub deeds: BTreeMap<String, BTreeSet<Deed>>,
    /// Every agent that lives, and what it can do.
    pub agents: BTreeMap<String, BTreeSet<String>>,
    /// What has changed since somebody looked last.
    pub touched: BTreeSet<String>,
}

/// Two parties, each at a sidecar of its own.
pub struct Traders {
    /// Where the sidecars are; they move when they are started again.
    addresses: Mutex<[SocketAddr; 2]>,
    pub account: Mutex<Account>,
    minted: AtomicU64,
}

/// The agents that both parties trade as.
pub const PARTIES: [&str; 2] = ["genesis", "thon"];
const CAPABILITIES: [&str; 4] = ["sql", "planning", "vision", "python"];
/// So many agents come and go at most at each sidecar.
const GUESTS: usize = 8;

impl Traders {
    pub fn new(addresses: [SocketAddr; 2]) -> Self {
        Self { addresses: Mutex::new(addresses), account: Mutex::default(), minted: AtomicU64::new(0) }
    }

    pub fn moved(&self, side: usize, address: SocketAddr) {
        self.addresses.lock().expect("no holder panics")[side] = address;
    }

    fn address(&self, side: usize) -> SocketAddr {
        self.addresses.lock().expect("no holder panics")[side]
    }

    fn mint(&self, what: &str) -> String {
        format!("{what}-{}", self.minted.fetch_add(1, Ordering::Relaxed))
    }

    fn deed(&self, transaction_id: &str, kind: &'static str, word: String) {
        let mut account = self.account.lock().expect("no holder panics");
        let is_new = account.deeds.entry(transaction_id.to_owned()).or_default().insert((kind, word));
        assert!(is_new, "{transaction_id} was {kind} twice by one word");
        account.touched.insert(transaction_id.to_owned());
    }

    /// Registers both parties' agents, which stay.
    pub fn open(&self) {
        for (side, agent) in PARTIES.into_iter().enumerate() {
            self.register(side, agent, &["sql"]);
        }
    }

    /// Trades at one side until told to stop.
    pub fn trade(&self, side: usize, mut random: StdRng, stop: &AtomicBool) {
        let mut guests: Vec<String> = Vec::new();
        while !stop.load(Ordering::SeqCst) {
            match random.random_range(0..10) {
                0..5 => drop(self.record(side, &mut random)),
                5..8 => self.decide_something(side, &mut random),
                _ => self.keep_guests(side, &mut guests, &mut random),
            }
            // A pace at which a fault finds pushes under way and pauses between them.
            thread::sleep(Duration::from_millis(random.random_range(2..40)));
        }
        // The next one who trades here knows nothing of these.
        for guest in guests {
            if random.random_bool(0.7) {
                self.unregister(side, &guest);
            }
        }
    }

    /// Records a transaction between both parties; its id.
    pub fn record(&self, side: usize, random: &mut StdRng) -> String {
        let transaction_id = self.mint("order");
        let amount = format!("{}.{:02}", random.random_range(1..1_000), random.random_range(0..100));
        let word = self.mint("w");
        let body = json!({
            "transaction_id": transaction_id, "payer_agent": PARTIES[0], "provider_agent": PARTIES[1],
            "capability": "sql", "amount": amount, "context": {"word": word},
        });
        let answer = self.until_answered(side, &Request::post("/v1/transactions", &body));
        assert!(matches!(answer.status, 200 | 201), "{answer:?}");
        self.deed(&transaction_id, "recorded", word);
        transaction_id
    }

    /// Disputes a transaction, if it can be.
    pub fn dispute(&self, side: usize, transaction_id: &str) -> bool {
        let word = self.mint("w");
        let body = json!({"evidence": [word]});
        self.decide(side, transaction_id, "dispute", &body, "disputed", word)
    }

    /// Adds evidence to a dispute.
    pub fn add_evidence(&self, side: usize, transaction_id: &str) -> bool {
        let word = self.mint("w");
        let body = json!({"evidence": [word]});
        self.decide(side, transaction_id, "evidence", &body, "evidence_added", word)
    }

    fn decide_something(&self, side: usize, random: &mut StdRng) {
        let recent: Vec<String> = {
            let account = self.account.lock().expect("no holder panics");
            account.touched.iter().cloned().collect()
        };
        if recent.is_empty() {
            return;
        }
        let transaction_id = &recent[random.random_range(0..recent.len())];
        let word = self.mint("w");
        match random.random_range(0..5) {
            0 => {
                // Settling says nothing by which it could be known; whose it is can be told by the node.
                self.decide(side, transaction_id, "settle", &json!({}), "settled", PARTIES[side].to_owned())
            }
            1 => self.decide(side, transaction_id, "cancel", &json!({"reason": word}), "cancelled", word),
            2 => self.dispute(side, transaction_id),
            3 => self.add_evidence(side, transaction_id),
            _ => {
                let outcome = if random.random_bool(0.5) { "settled" } else { "cancelled" };
                let body = json!({"outcome": outcome, "note": word});
                self.decide(side, transaction_id, "resolve", &body, "resolved", word)
            }
        };
    }

    fn decide(
        &self,
        side: usize,
        transaction_id: &str,
        verb: &str,
        body: &Value,
        kind: &'static str,
        word: String,
    ) -> bool {
        let request = Request::post(format!("/v1/transactions/{transaction_id}/{verb}"), body);
        let answer = self.until_answered(side, &request);
        match answer.status {
            200 => {
                // One side settles a transaction again only after a dispute was resolved as cancelled, which it cannot.
                self.deed(transaction_id, kind, word);
                true
            }
            // It is not there yet, or does not allow that any more.
            404 | 409 => false,
            _ => panic!("{answer:?}"),
        }
    }

    fn keep_guests(&self, side: usize, guests: &mut Vec<String>, random: &mut StdRng) {
        let some = |random: &mut StdRng| -> Vec<&str> {
            CAPABILITIES.into_iter().filter(|_| random.random_bool(0.4)).collect()
        };
        if guests.is_empty() || (guests.len() < GUESTS && random.random_bool(0.4)) {
            let guest = self.mint("guest");
            let capabilities = some(random);
            self.register(side, &guest, &capabilities);
            guests.push(guest);
            return;
        }
        let at = random.random_range(0..guests.len());
        if random.random_bool(0.3) {
            self.unregister(side, &guests.swap_remove(at));
        } else {
            let capabilities = some(random);
            let body = json!({"capabilities": capabilities});
            let request = Request::new("PATCH", format!("/v1/agents/{}", guests[at])).json(&body);
            self.until_answered(side, &request).expect(200);
            self.lives(&guests[at], &capabilities);
        }
    }

    fn register(&self, side: usize, agent_id: &str, capabilities: &[&str]) {
        let body = json!({
            "name": agent_id, "capabilities": capabilities, "cost_per_task": "2.50", "ttl_seconds": 3600,
        });
        let answer = self.until_answered(side, &Request::new("PUT", format!("/v1/agents/{agent_id}")).json(&body));
        assert!(matches!(answer.status, 200 | 201), "{answer:?}");
        self.lives(agent_id, capabilities);
    }

    fn unregister(&self, side: usize, agent_id: &str) {
        let answer = self.until_answered(side, &Request::new("DELETE", format!("/v1/agents/{agent_id}")));
        assert!(matches!(answer.status, 204 | 404), "{answer:?}");
        self.account.lock().expect("no holder panics").agents.remove(agent_id);
    }

    fn lives(&self, agent_id: &str, capabilities: &[&str]) {
        let capabilities = capabilities.iter().map(|capability| (*capability).to_owned()).collect();
        self.account.lock().expect("no holder panics").agents.insert(agent_id.to_owned(), capabilities);
    }

    /// The answer, however often the sidecar has to be asked: it may be killed meanwhile, and move.
    fn until_answered(&self, side: usize, request: &Request) -> Answer {
        let has_key = request.method == "POST";
        let key = self.mint("key");
        let request = if has_key { request.clone().header("Idempotency-Key", key) } else { request.clone() };
        wait_for("an answer of the sidecar", || Client::new(Address::Tcp(self.address(side))).try_call(&request).ok())
    }
}
