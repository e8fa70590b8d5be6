//! Bytes become commands; engine and model are given each, and must answer alike.

use std::sync::Arc;
use std::time::Duration;

use redb::backends::InMemoryBackend;
use tradepost::clock::Clock;
use tradepost::domain::{
    AgentId, AgentPatch, AvailabilityStatus, Capabilities, Capability, Capacity, Currency, Decision, Delta, Facts,
    JsonObject, Money, NewTransaction, Refusal, Registration, ResolutionOutcome, TransactionId, Ttl, Weight,
};
use tradepost::{Engine, Error, Idempotency, Location, Options, Pending, Precondition, Receipt};

use super::clock::ManualClock;
use super::naive::{self, Marketplace, Now, Refused};
use super::queries;

pub const AGENTS: [&str; 5] = ["ada", "bob", "cy", "dee", "eve"];
pub const CAPABILITIES: [&str; 3] = ["python", "rust", "sql"];
pub const CURRENCIES: [&str; 2] = ["USD", "EUR"];
const AMOUNTS: [&str; 5] = ["0.1", "0.2", "1e-7", "18.50", "999999999999999999.999999999"];
const START: i64 = 1_795_000_000_000_000;
/// Idempotency keys are remembered for seven days; the sequence ends before the first is forgotten.
const LONGEST_RUN: i64 = 6 * 24 * 3_600 * 1_000_000;

/// Runs the sequence that the bytes spell, then compares every query.
///
/// # Panics
///
/// When engine and model disagree.
pub fn run(bytes: &[u8]) {
    let backend = Arc::new(InMemoryBackend::new());
    let clock = ManualClock::at(START);
    let engine = open(&backend, &clock, 0);
    let mut run = Run { bytes, backend, clock, engine, model: Marketplace::default(), restarts: 0, last: None };
    while let Some(operation) = run.next() {
        run.step(operation);
    }
    queries::compare(&run.engine, &run.model, run.now());
    run.restart();
    queries::compare(&run.engine, &run.model, run.now());
}

/// Each process has chance of its own: two that mint the same ids in the same microsecond would be the same one twice.
fn open(backend: &Arc<InMemoryBackend>, clock: &Arc<ManualClock>, restarts: u64) -> Engine {
    let location = Location::Backend(Arc::clone(backend) as _);
    let options = Options { clock: Arc::clone(clock) as _, seed: Some(restarts), ..Options::new(location) };
    Engine::open(options).expect("a store on a sound backend opens")
}

/// A command that may carry an idempotency key.
#[derive(Debug, Clone)]
enum Keyed {
    Register(Registration),
    Observe(&'static str, bool, f64),
    Adjust(&'static str, f64),
    Record(NewTransaction),
    Decide(String, Decision),
}

/// What a receipt says, and of whom.
#[derive(Debug, PartialEq)]
struct Told {
    created: bool,
    replayed: bool,
    subject: String,
}

impl Told {
    fn new<T>(receipt: Receipt<T>, subject: impl FnOnce(T) -> String) -> Self {
        Self { created: receipt.created, replayed: receipt.replayed, subject: subject(receipt.value) }
    }
}

impl Keyed {
    fn submit(self, engine: &Engine, once: Option<Idempotency>) -> Result<Told, Refused> {
        match self {
            Self::Register(registration) => outcome(engine.register(registration, once))
                .map(|receipt| Told::new(receipt, |profile| profile.agent.agent_id.to_string())),
            Self::Observe(id, success, weight) => {
                let weight = Weight::parse(weight).expect("a weight above 0");
                outcome(engine.observe_outcome(agent_id(id), success, weight, once))
                    .map(|receipt| Told::new(receipt, |_| id.to_owned()))
            }
            Self::Adjust(id, delta) => {
                let delta = Delta::parse(delta).expect("a finite delta");
                outcome(engine.adjust_reputation(agent_id(id), delta, once))
                    .map(|receipt| Told::new(receipt, |_| id.to_owned()))
            }
            Self::Record(new) => outcome(engine.record(new, once))
                .map(|receipt| Told::new(receipt, |transaction| transaction.transaction_id.to_string())),
            Self::Decide(id, decision) => outcome(engine.decide(TransactionId::from_stored(&id), decision, once))
                .map(|receipt| Told::new(receipt, |transaction| transaction.transaction_id.to_string())),
        }
    }
}

struct Run<'a> {
    bytes: &'a [u8],
    backend: Arc<InMemoryBackend>,
    clock: Arc<ManualClock>,
    engine: Engine,
    model: Marketplace,
    restarts: u64,
    /// The last command with a key, to be sent again.
    last: Option<(Keyed, &'static str)>,
}

impl Run<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(*first)
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.next().unwrap_or(0)) % choices.len()]
    }

    fn now(&self) -> Now {
        let monotonic = i64::try_from(self.clock.monotonic().as_micros()).expect("a short run");
        Now { wall: self.clock.now().as_micros(), monotonic }
    }

    fn step(&mut self, operation: u8) {
        let now = self.now();
        match operation % 16 {
            0 | 1 => {
                let command = Keyed::Register(self.registration());
                self.submit_new(command);
            }
            2 => {
                let (registration, when) = (self.registration(), self.precondition());
                let told = outcome(self.engine.replace(registration.clone(), when.clone()));
                let expected = self.model.replace(registration, &when, now);
                assert_eq!(told.map(|receipt| receipt.created), expected);
            }
            3 => {
                let (id, patch, when) = (self.agent(), self.patch(), self.precondition());
                let told = outcome(self.engine.update(agent_id(id), patch.clone(), when.clone()));
                assert_eq!(told.map(drop), self.model.update(id, patch, &when, now));
            }
            4 => {
                let (id, when) = (self.agent(), self.precondition());
                let told = outcome(self.engine.unregister(agent_id(id), when.clone()));
                assert_eq!(told, self.model.unregister(id, &when));
            }
            5 => {
                let id = self.agent();
                let told = outcome(self.engine.heartbeat(&agent_id(id)));
                assert_eq!(told.map(|expires_at| expires_at.as_micros()), self.model.heartbeat(id, now));
            }
            6 => {
                let command = Keyed::Observe(self.agent(), self.pick(&[true, false]), self.pick(&[1.0, 0.25, 1e300]));
                self.submit_new(command);
            }
            7 => {
                let command = Keyed::Adjust(self.agent(), self.pick(&[0.3, -0.7, 2.0]));
                self.submit_new(command);
            }
            8 | 9 => {
                let command = Keyed::Record(self.transaction());
                self.submit_new(command);
            }
            10 => {
                let batch: Vec<NewTransaction> = (0..self.pick(&[0, 1, 3])).map(|_| self.transaction()).collect();
                let told = outcome(self.engine.record_batch(batch.clone())).expect("a batch is never refused whole");
                assert_eq!(told.len(), batch.len());
                for (new, told) in batch.into_iter().zip(told) {
                    let told = told.map(|receipt| (receipt.created, receipt.value.transaction_id.to_string()));
                    let expected = self.recorded(new, now, told.as_ref().map_or("", |(_, id)| id.as_str()));
                    assert_eq!(told.map_err(|refusal| code(&refusal)), expected);
                }
            }
            11..=13 => {
                let command = Keyed::Decide(self.transaction_id(), self.decision());
                self.submit_new(command);
            }
            14 => self.pass_time(),
            _ => match self.pick(&[0, 0, 1, 2]) {
                0 => {
                    if let Some((command, key)) = self.last.clone() {
                        self.submit(command, Some(key));
                    }
                }
                1 => queries::compare(&self.engine, &self.model, now),
                _ => self.restart(),
            },
        }
    }

    fn submit_new(&mut self, command: Keyed) {
        let key = self.pick(&[None, None, Some("k0"), Some("k1")]);
        if let Some(key) = key {
            self.last = Some((command.clone(), key));
        }
        self.submit(command, key);
    }

    fn submit(&mut self, command: Keyed, key: Option<&'static str>) {
        let request = *blake3::hash(format!("{command:?}").as_bytes()).as_bytes();
        let once = key.map(|key| Idempotency { key: key.to_owned(), request });
        let told = command.clone().submit(&self.engine, once);
        let known = key.and_then(|key| self.model.receipts.get(key)).cloned();
        let expected = match known {
            Some(receipt) if receipt.request != request => Err(Refused::IdempotencyKeyReused),
            Some(receipt) => self.replayed(receipt),
            None => self.apply(command, told.as_ref().map_or("", |told| told.subject.as_str())),
        };
        if let (Ok(Told { created, replayed: false, subject }), Some(key)) = (&expected, key) {
            let receipt = naive::Receipt { request, created: *created, subject: subject.clone() };
            self.model.receipts.insert(key.to_owned(), receipt);
        }
        assert_eq!(told, expected);
    }

    fn apply(&mut self, command: Keyed, minted: &str) -> Result<Told, Refused> {
        let (now, model) = (self.now(), &mut self.model);
        let (created, subject) = match command {
            Keyed::Register(registration) => {
                let id = registration.agent_id.to_string();
                model.register(registration, now).map(|()| (true, id))
            }
            Keyed::Observe(id, success, weight) => model.observe(id, success, weight).map(|()| (false, id.to_owned())),
            Keyed::Adjust(id, delta) => model.adjust(id, delta).map(|()| (false, id.to_owned())),
            Keyed::Record(new) => self.recorded(new, now, minted),
            Keyed::Decide(id, decision) => model.decide(&id, decision, now).map(|()| (false, id)),
        }?;
        Ok(Told { created, replayed: false, subject })
    }

    /// Records in the model; a minted id is taken over from the engine.
    fn recorded(&mut self, new: NewTransaction, now: Now, minted: &str) -> Result<(bool, String), Refused> {
        if let Some(id) = self.model.recorded_as(&new)? {
            return Ok((false, id));
        }
        let id = new.transaction_id.map_or_else(|| minted.to_owned(), |id| id.to_string());
        assert!(self.model.transaction(&id).is_none() && !id.is_empty(), "{id:?} is no new id");
        self.model.record(id.clone(), new.facts, now);
        Ok((true, id))
    }

    /// The same request again is answered with the entity as it is now, which may be gone.
    fn replayed(&self, receipt: naive::Receipt) -> Result<Told, Refused> {
        let known =
            self.model.agents.contains_key(&receipt.subject) || self.model.transaction(&receipt.subject).is_some();
        if known {
            Ok(Told { created: receipt.created, replayed: true, subject: receipt.subject })
        } else {
            Err(Refused::AgentNotFound)
        }
    }

    fn pass_time(&mut self) {
        let seconds = self.pick(&[0, 1, 9, 61, 1_800, 3_660]);
        if self.now().monotonic + seconds * 1_000_000 < LONGEST_RUN {
            self.clock.advance(Duration::from_secs(seconds.unsigned_abs()));
            // Any command lets the writer look at its leases.
            let nobody = self.engine.unregister(agent_id("nobody"), Precondition::None);
            assert_eq!(outcome(nobody), Err(Refused::AgentNotFound));
        }
    }

    fn restart(&mut self) {
        self.engine.close();
        self.restarts += 1;
        self.engine = open(&self.backend, &self.clock, self.restarts);
        self.model.restart(self.now());
    }

    fn agent(&mut self) -> &'static str {
        self.pick(&AGENTS)
    }

    fn registration(&mut self) -> Registration {
        Registration {
            agent_id: agent_id(self.agent()),
            name: "Name".to_owned(),
            capabilities: self.capabilities(),
            cost_per_task: money(self.pick(&["0", "1", "1.5"])),
            currency: Currency::from_stored(self.pick(&CURRENCIES)),
            capacity_per_hour: Capacity::parse(self.pick(&[1, 30])).expect("a capacity"),
            availability: self.pick(&AvailabilityStatus::ALL),
            billing_notes: None,
            metadata: JsonObject::default(),
            ttl: self.pick(&[None, Some(10), Some(100_000)]).map(|seconds| Ttl::parse(seconds).expect("a lease")),
        }
    }

    fn capabilities(&mut self) -> Capabilities {
        let mask = self.next().unwrap_or(0);
        let chosen = CAPABILITIES.iter().enumerate().filter(|(index, _)| mask & (1 << index) != 0);
        Capabilities::parse(chosen.map(|(_, name)| *name)).expect("three capabilities at most")
    }

    fn patch(&mut self) -> AgentPatch {
        let which = self.next().unwrap_or(0);
        AgentPatch {
            cost_per_task: (which & 1 != 0).then(|| money(self.pick(&["0.5", "2"]))),
            availability: (which & 2 != 0).then(|| self.pick(&AvailabilityStatus::ALL)),
            capabilities: (which & 4 != 0).then(|| self.capabilities()),
            billing_notes: (which & 8 != 0).then(|| self.pick(&[None, Some("net 30")]).map(ToOwned::to_owned)),
            ttl: (which & 16 != 0).then(|| Ttl::parse(self.pick(&[5, 50_000])).expect("a lease")),
            ..AgentPatch::default()
        }
    }

    fn precondition(&mut self) -> Precondition {
        match self.pick(&[0, 0, 0, 1, 2]) {
            0 => Precondition::None,
            1 => Precondition::Exists,
            _ => Precondition::RevisionIn(vec![1, u64::from(self.next().unwrap_or(0))]),
        }
    }

    fn transaction(&mut self) -> NewTransaction {
        let id = self.pick(&[None, None, Some("t1"), Some("t2"), Some("0197a1b2c3d4e5f60718293a4b5c6d7e")]);
        NewTransaction {
            transaction_id: id.map(TransactionId::from_stored),
            facts: Facts {
                payer_agent: agent_id(self.agent()),
                provider_agent: agent_id(self.agent()),
                capability: Capability::from_stored(self.pick(&CAPABILITIES)),
                amount: money(self.pick(&AMOUNTS)),
                currency: Currency::from_stored(self.pick(&CURRENCIES)),
                context: JsonObject::parse(self.pick(&["{}", r#"{"task":1}"#])).expect("an object"),
            },
        }
    }

    /// One that exists, mostly.
    fn transaction_id(&mut self) -> String {
        let number = usize::from(self.next().unwrap_or(0));
        let known = &self.model.transactions;
        match known.len() {
            0 => "t1".to_owned(),
            _ if number == 255 => "none".to_owned(),
            count => known[number % count].id.clone(),
        }
    }

    fn decision(&mut self) -> Decision {
        let evidence = |count: usize| vec!["seen".to_owned(); count];
        match self.pick(&[0, 0, 1, 2, 2, 3, 4, 4]) {
            0 => Decision::Settle,
            1 => Decision::Cancel { reason: Some("changed my mind".to_owned()) },
            2 => Decision::Dispute { reason: None, evidence: evidence(self.pick(&[0, 1, 200])) },
            3 => Decision::AddEvidence { evidence: evidence(self.pick(&[1, 100])) },
            _ => Decision::Resolve {
                outcome: self.pick(&[ResolutionOutcome::Settled, ResolutionOutcome::Cancelled]),
                note: None,
            },
        }
    }
}

pub fn agent_id(id: &str) -> AgentId {
    AgentId::parse("agent_id", id).expect("the model's own agent id")
}

fn money(text: &str) -> Money {
    Money::parse(text).expect("the model's own amount")
}

/// The answer, or how the model says that it was refused.
pub fn outcome<T>(pending: Pending<T>) -> Result<T, Refused> {
    refused(pending.wait())
}

/// As [`outcome`], of a query.
pub fn refused<T>(result: Result<T, Error>) -> Result<T, Refused> {
    result.map_err(|error| match error {
        Error::Refused(refusal) => code(&refusal),
        other => panic!("the engine failed: {other}"),
    })
}

fn code(refusal: &Refusal) -> Refused {
    match refusal {
        Refusal::AgentNotFound(_) => Refused::AgentNotFound,
        Refusal::AgentAlreadyRegistered(_) => Refused::AgentAlreadyRegistered,
        Refusal::RevisionMismatch { actual, .. } => Refused::RevisionMismatch { actual: *actual },
        Refusal::TransactionNotFound(_) => Refused::TransactionNotFound,
        Refusal::TransactionIdConflict(_) => Refused::TransactionIdConflict,
        Refusal::InvalidTransition { from, .. } => Refused::InvalidTransition { from: *from },
        Refusal::Invalid(invalid) if invalid.field == "evidence" => Refused::TooMuchEvidence,
        Refusal::IdempotencyKeyReused => Refused::IdempotencyKeyReused,
        other => panic!("the model knows no such refusal: {other}"),
    }
}
