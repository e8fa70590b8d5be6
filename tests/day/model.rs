//! The naive model: everything in maps, every question answered by looking at everything.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

/// Availabilities, best first.
const AVAILABILITIES: [&str; 4] = ["online", "busy", "maintenance", "offline"];

#[derive(Debug, Clone)]
pub struct Agent {
    pub id: String,
    pub ttl: u64,
    pub live: bool,
    registration: Value,
    capabilities: BTreeSet<String>,
    cost: i128,
    score: f64,
    successes: u64,
    failures: u64,
}

#[derive(Debug, Clone)]
pub struct Transaction {
    pub created_at: String,
    pub events: Vec<Event>,
    id: String,
    payer: String,
    provider: String,
    capability: String,
    amount: i128,
    currency: String,
    context: Value,
    status: String,
    evidence: Vec<Value>,
    updated_at: String,
    settled_at: Value,
}

#[derive(Debug, Clone)]
pub struct Event {
    kind: &'static str,
    at: String,
    payload: Value,
}

#[derive(Debug, Default)]
pub struct Model {
    pub node_id: String,
    pub agents: BTreeMap<String, Agent>,
    pub by_id: BTreeMap<String, Transaction>,
}

/// A filter of transactions, and their order.
#[derive(Debug, Clone, Default)]
pub struct TransactionQuery {
    pub agent: Option<&'static str>,
    pub role: Option<&'static str>,
    pub status: Option<&'static str>,
    pub capability: Option<&'static str>,
    pub since: Option<String>,
    pub until: Option<String>,
    pub descending: bool,
}

impl TransactionQuery {
    /// The query string behind a path. One of the times keeps its `+`, the other has `Z`: both must be understood.
    pub fn on(&self, path: &str) -> String {
        let since = self.since.clone();
        let until = self.until.as_deref().map(|until| until.replace("+00:00", "Z"));
        let order = if self.descending { "desc" } else { "asc" };
        let mut target = format!("{path}?order={order}");
        for (name, value) in
            [("agent", self.agent), ("role", self.role), ("status", self.status), ("capability", self.capability)]
        {
            if let Some(value) = value {
                target += &format!("&{name}={value}");
            }
        }
        for (name, value) in [("since", since), ("until", until)] {
            if let Some(value) = value {
                target += &format!("&{name}={value}");
            }
        }
        target
    }

    fn admits(&self, transaction: &Transaction) -> bool {
        let side = |agent: &str| match self.role {
            Some("payer") => transaction.payer == agent,
            Some(_) => transaction.provider == agent,
            None => transaction.payer == agent || transaction.provider == agent,
        };
        self.agent.is_none_or(side)
            && self.status.is_none_or(|status| transaction.status == status)
            && self.capability.is_none_or(|capability| transaction.capability == capability)
            && self.since.as_ref().is_none_or(|since| transaction.created_at >= *since)
            && self.until.as_ref().is_none_or(|until| transaction.created_at < *until)
    }
}

impl Agent {
    pub fn new(registration: &Value) -> Self {
        let capabilities = registration["capabilities"].as_array().unwrap();
        Self {
            id: registration["agent_id"].as_str().unwrap().to_owned(),
            ttl: registration.get("ttl_seconds").map_or(3_600, |ttl| ttl.as_u64().unwrap()),
            live: true,
            registration: registration.clone(),
            capabilities: capabilities.iter().map(|name| canonical(name.as_str().unwrap())).collect(),
            cost: nanos(&registration["cost_per_task"]),
            score: 0.0,
            successes: 0,
            failures: 0,
        }
    }

    pub fn outcome(&mut self, success: bool, weight: f64) {
        if success {
            self.successes += 1;
            self.adjust(weight);
        } else {
            self.failures += 1;
            self.adjust(-weight);
        }
    }

    pub fn adjust(&mut self, by: f64) {
        self.score = (self.score + by).clamp(0.0, 5.0);
    }

    pub fn reputation(&self) -> Value {
        json!({
            "score": self.score,
            "total_feedback": self.successes + self.failures,
            "successful_tasks": self.successes,
            "failed_tasks": self.failures,
        })
    }

    fn availability(&self) -> &str {
        self.registration["availability"].as_str().unwrap()
    }

    fn availability_rank(&self) -> usize {
        AVAILABILITIES.iter().position(|name| *name == self.availability()).unwrap()
    }

    fn capacity(&self) -> u64 {
        self.registration["capacity_per_hour"].as_u64().unwrap()
    }

    fn score_down(&self) -> i64 {
        // Every weight is a multiple of a quarter.
        -((self.score * 4.0) as i64)
    }
}

impl Transaction {
    pub fn shown(&self) -> Value {
        json!({
            "transaction_id": self.id, "created_at": self.created_at, "payer_agent": self.payer,
            "provider_agent": self.provider, "capability": self.capability, "amount": decimal(self.amount),
            "currency": self.currency, "status": self.status, "context": self.context, "evidence": self.evidence,
            "updated_at": self.updated_at, "settled_at": self.settled_at, "finality": "local",
        })
    }

    pub fn settlement(&self) -> Option<Value> {
        matches!(self.status.as_str(), "pending" | "settled").then(|| {
            json!({
                "transaction_id": self.id, "payer": self.payer, "provider": self.provider,
                "capability": self.capability, "amount": decimal(self.amount), "currency": self.currency,
                "created_at": self.created_at, "status": self.status, "context": self.context,
            })
        })
    }
}

impl Model {
    /// Takes a line that was recorded; only the time is taken from the answer.
    pub fn record(&mut self, line: &str, answer: &Value) {
        let line: Value = serde_json::from_str(line).unwrap();
        let text = |field: &str| line[field].as_str().unwrap().to_owned();
        let created_at = answer["created_at"].as_str().unwrap().to_owned();
        let mut transaction = Transaction {
            id: text("transaction_id"),
            payer: text("payer_agent"),
            provider: text("provider_agent"),
            capability: canonical(line["capability"].as_str().unwrap()),
            amount: nanos(&line["amount"]),
            currency: line.get("currency").map_or("USD", |currency| currency.as_str().unwrap()).to_owned(),
            context: line.get("context").cloned().unwrap_or_else(|| json!({})),
            status: "pending".to_owned(),
            evidence: Vec::new(),
            updated_at: created_at.clone(),
            settled_at: Value::Null,
            events: Vec::new(),
            created_at: created_at.clone(),
        };
        let facts = json!({
            "payer_agent": transaction.payer, "provider_agent": transaction.provider,
            "capability": transaction.capability, "amount": decimal(transaction.amount),
            "currency": transaction.currency, "context": transaction.context,
        });
        transaction.events.push(Event { kind: "recorded", at: created_at, payload: facts });
        assert_eq!(*answer, transaction.shown());
        assert!(self.by_id.insert(transaction.id.clone(), transaction).is_none(), "{line}");
    }

    /// The status with which a step must be answered.
    pub fn decide(&self, step: &Value) -> u16 {
        let transaction = &self.by_id[step["transaction_id"].as_str().unwrap()];
        let allowed: &[&str] = match step["step"].as_str().unwrap() {
            "settle" | "cancel" => &["pending"],
            "dispute" => &["pending", "settled"],
            "evidence" | "resolve" => &["disputed"],
            other => panic!("{other}"),
        };
        if allowed.contains(&transaction.status.as_str()) { 200 } else { 409 }
    }

    /// Takes a step that was answered with success.
    pub fn decided(&mut self, step: &Value, answer: &Value) {
        let transaction = self.by_id.get_mut(step["transaction_id"].as_str().unwrap()).unwrap();
        let body = &step["body"];
        let at = answer["updated_at"].as_str().unwrap().to_owned();
        assert!(at >= transaction.updated_at, "{answer}");
        let evidence = body["evidence"].as_array().cloned().unwrap_or_default();
        transaction.evidence.extend(evidence.clone());
        let (kind, payload) = match step["step"].as_str().unwrap() {
            "settle" => ("settled", json!({})),
            "cancel" => ("cancelled", json!({"reason": body["reason"]})),
            "dispute" => ("disputed", json!({"reason": body["reason"], "evidence": evidence})),
            "evidence" => ("evidence_added", json!({"evidence": evidence})),
            "resolve" => ("resolved", json!({"outcome": body["outcome"], "note": body["note"]})),
            other => panic!("{other}"),
        };
        let before = transaction.status.clone();
        transaction.status = match kind {
            "evidence_added" => before,
            "resolved" => body["outcome"].as_str().unwrap().to_owned(),
            kind => kind.to_owned(),
        };
        match (transaction.status.as_str(), &transaction.settled_at) {
            // The first settlement is the moment; a dispute contests it without moving it.
            ("settled", Value::Null) => transaction.settled_at = json!(at),
            ("cancelled", _) => transaction.settled_at = Value::Null,
            _ => {}
        }
        transaction.updated_at.clone_from(&at);
        transaction.events.push(Event { kind, at, payload });
        assert_eq!(*answer, transaction.shown(), "{step}");
    }

    pub fn check_events(&self, transaction: &Transaction, items: &[Value]) {
        assert_eq!(items.len(), transaction.events.len(), "{items:?}");
        let (mut round, mut ids, mut decisions) = (0_u32, BTreeSet::new(), Vec::new());
        for (item, expected) in items.iter().zip(&transaction.events) {
            let mut item = item.clone();
            let event_id = item["event_id"].as_str().unwrap().to_owned();
            if expected.kind == "resolved" {
                let listed = item["payload"].as_object_mut().unwrap().remove("decisions").unwrap();
                assert_eq!(listed, json!(decisions), "{items:?}");
            }
            let shown = json!({
                "event_id": event_id, "transaction_id": transaction.id, "kind": expected.kind, "round": round,
                "node_id": self.node_id, "at": expected.at, "payload": expected.payload,
            });
            assert_eq!(item, shown);
            if matches!(expected.kind, "settled" | "cancelled" | "disputed") {
                decisions.push(event_id.clone());
            }
            assert_eq!(event_id.as_bytes()[14], b'7', "{event_id} is no UUIDv7");
            assert!(ids.insert(event_id), "an event id comes twice: {items:?}");
            round += u32::from(expected.kind == "resolved");
        }
    }

    /// The answers to a query, in order.
    pub fn transactions(&self, query: &TransactionQuery) -> Vec<Value> {
        let mut found: Vec<&Transaction> =
            self.by_id.values().filter(|transaction| query.admits(transaction)).collect();
        found.sort_by(|a, b| (&a.created_at, &a.id).cmp(&(&b.created_at, &b.id)));
        if query.descending {
            found.reverse();
        }
        found.into_iter().map(Transaction::shown).collect()
    }

    pub fn balance(&self, agent: &str) -> Value {
        let mut sums: BTreeMap<&str, BTreeMap<(&str, &str), i128>> = BTreeMap::new();
        for transaction in self.by_id.values() {
            for (side, party) in [("paid", &transaction.payer), ("earned", &transaction.provider)] {
                if party == agent {
                    let sums = sums.entry(&transaction.currency).or_default();
                    *sums.entry((side, &transaction.status)).or_default() += transaction.amount;
                }
            }
        }
        let shown = sums.iter().map(|(currency, sums)| {
            let sum = |side: &'static str, status: &'static str| decimal(sums.get(&(side, status)).copied().unwrap_or(0));
            let side = |side: &'static str| {
                json!({"pending": sum(side, "pending"), "settled": sum(side, "settled"), "disputed": sum(side, "disputed")})
            };
            ((*currency).to_owned(), json!({"paid": side("paid"), "earned": side("earned")}))
        });
        Value::Object(shown.collect())
    }

    fn live(&self) -> impl Iterator<Item = &Agent> {
        self.agents.values().filter(|agent| agent.live)
    }

    pub fn all_capabilities(&self) -> BTreeSet<String> {
        self.live().flat_map(|agent| agent.capabilities.iter().cloned()).collect()
    }

    pub fn capabilities(&self) -> Value {
        let count = |name: &String| self.live().filter(|agent| agent.capabilities.contains(name)).count();
        Value::Object(self.all_capabilities().into_iter().map(|name| (name.clone(), json!(count(&name)))).collect())
    }

    pub fn profile(&self, agent: &Agent) -> Value {
        let given = &agent.registration;
        json!({
            "agent_id": agent.id,
            "name": given["name"],
            "capabilities": agent.capabilities,
            "pricing": {"cost_per_task": decimal(agent.cost), "currency": given["currency"], "billing_notes": given["billing_notes"]},
            "availability": {"status": given["availability"], "capacity_per_hour": given["capacity_per_hour"]},
            "reputation": agent.reputation(),
            "metadata": given.get("metadata").cloned().unwrap_or_else(|| json!({})),
            "revision": 1,
            "lease": {"ttl_seconds": agent.ttl, "state": if agent.live { "live" } else { "expired" }},
            "origin": {"node_id": self.node_id, "local": true},
        })
    }

    fn profiles(&self, agents: &[&Agent]) -> Vec<Value> {
        agents.iter().map(|agent| self.profile(agent)).collect()
    }

    pub fn agents(
        &self,
        capability: Option<&str>,
        availability: Option<&str>,
        sort_by: Option<&str>,
        include_expired: bool,
    ) -> Vec<Value> {
        let mut found: Vec<&Agent> = self
            .agents
            .values()
            .filter(|agent| agent.live || include_expired)
            .filter(|agent| capability.is_none_or(|name| agent.capabilities.contains(name)))
            .filter(|agent| availability.is_none_or(|name| agent.availability() == name))
            .collect();
        match sort_by {
            None => {}
            Some("score") => found.sort_by_key(|agent| (agent.score_down(), agent.cost, agent.id.clone())),
            Some("cost") => found.sort_by_key(|agent| (agent.cost, agent.score_down(), agent.id.clone())),
            Some(_) => found.sort_by_key(|agent| {
                (agent.availability_rank(), Reverse(agent.capacity()), agent.score_down(), agent.id.clone())
            }),
        }
        self.profiles(&found)
    }

    pub fn search(
        &self,
        capabilities: &[&str],
        max_cost: Option<&str>,
        currency: Option<&str>,
        availability: Option<&str>,
        min_score: Option<&str>,
        limit: usize,
    ) -> Vec<Value> {
        let mut found: Vec<&Agent> = self
            .live()
            .filter(|agent| capabilities.iter().any(|name| agent.capabilities.contains(&canonical(name))))
            .filter(|agent| max_cost.is_none_or(|max| agent.cost <= nanos(&json!(max))))
            .filter(|agent| currency.is_none_or(|currency| agent.registration["currency"] == currency))
            .filter(|agent| availability.is_none_or(|name| agent.availability() == name))
            .filter(|agent| min_score.is_none_or(|min| agent.score >= min.parse().unwrap()))
            .collect();
        found.sort_by_key(|agent| (agent.cost, agent.score_down(), agent.availability_rank(), agent.id.clone()));
        found.truncate(limit);
        self.profiles(&found)
    }

    /// Ids, best first.
    pub fn recommendable(&self, capability: &str, include_busy: bool) -> Vec<String> {
        let mut found: Vec<&Agent> = self
            .live()
            .filter(|agent| agent.capabilities.contains(capability))
            .filter(|agent| agent.availability() == "online" || include_busy && agent.availability() == "busy")
            .collect();
        found.sort_by_key(|agent| (agent.score_down(), agent.cost, agent.id.clone()));
        found.into_iter().map(|agent| agent.id.clone()).collect()
    }

    /// The whole day is less than an hour old.
    pub fn least_loaded(&self, capability: &str) -> Option<Value> {
        let load = |agent: &Agent| {
            let of_it =
                |transaction: &&Transaction| transaction.provider == agent.id && transaction.capability == capability;
            self.by_id.values().filter(of_it).count()
        };
        ["online", "busy"].iter().find_map(|availability| {
            self.live()
                .filter(|agent| agent.capabilities.contains(capability) && agent.availability() == *availability)
                .min_by_key(|agent| (load(agent), agent.cost, agent.score_down(), agent.id.clone()))
                .map(|agent| self.profile(agent))
        })
    }

    pub fn takes_work(&self, capability: Option<&str>) -> BTreeSet<String> {
        self.live()
            .filter(|agent| capability.is_none_or(|capability| agent.capabilities.contains(capability)))
            .filter(|agent| matches!(agent.availability(), "online" | "busy"))
            .map(|agent| agent.id.clone())
            .collect()
    }
}

/// A profile without its times, whose form is checked, and with its score as a double.
pub fn shown_profile(profile: &Value) -> Value {
    let mut shown = profile.clone();
    for (part, field) in [("availability", "last_updated"), ("lease", "expires_at")] {
        let time = shown[part].as_object_mut().unwrap().remove(field).expect(field);
        let time = time.as_str().unwrap().to_owned();
        assert!(time.len() == 32 && time.ends_with("+00:00") && time.as_bytes()[10] == b'T', "{time}");
    }
    shown["reputation"] = shown_reputation(&shown["reputation"]);
    shown
}

/// A reputation with its score as a double.
pub fn shown_reputation(reputation: &Value) -> Value {
    let mut shown = reputation.clone();
    shown["score"] = json!(shown["score"].as_f64().unwrap());
    shown
}

/// A capability as it is kept.
fn canonical(name: &str) -> String {
    name.trim().to_lowercase()
}

/// A query value, percent-encoded.
pub fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// An amount in billionths, read from the digits of a JSON string or number.
fn nanos(amount: &Value) -> i128 {
    let text = amount.as_str().map_or_else(|| amount.to_string(), str::to_owned).to_ascii_lowercase();
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap();
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().unwrap();
    let shift = 9 + exponent - i32::try_from(fraction.len()).unwrap();
    match u32::try_from(shift) {
        Ok(shift) => digits * 10_i128.pow(shift),
        Err(_) => {
            let divisor = 10_i128.pow(shift.unsigned_abs());
            assert_eq!(digits % divisor, 0, "{text} has more than nine digits behind the point");
            digits / divisor
        }
    }
}

/// Billionths as a decimal: no exponent, no needless zeros.
fn decimal(nanos: i128) -> String {
    let (whole, fraction) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    let text = format!("{whole}.{fraction:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
