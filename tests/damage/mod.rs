//! A store that is sound, and what becomes of it when its bytes are altered.
//!
//! Included by the test `damage`, which alters them by chance, and by the fuzz target `file`, which looks for alterations
//! that reach new code.

use std::sync::Arc;

use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use tradepost::domain::{
    AgentId, AvailabilityStatus, Capabilities, Capability, Capacity, Currency, Decision, Event, Facts, JsonObject,
    Money, NewTransaction, Registration, Timestamp, Transaction, TransactionId,
};
use tradepost::{Engine, Location, OpenError, Options, PageRequest, Profile, TransactionFilter};

/// A store that was closed in order.
pub struct Sound {
    /// The file.
    pub bytes: Vec<u8>,
    answers: Answers,
}

/// What a file is that was altered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Altered {
    /// Refused, and left as it was.
    Refused,
    /// Nothing that counts was hit.
    AnswersAsBefore,
}

/// Everything that can be asked.
#[derive(Debug, PartialEq)]
struct Answers {
    agents: Vec<Profile>,
    transactions: Vec<Transaction>,
    events: Vec<Vec<Event>>,
}

impl Sound {
    /// Two agents and 200 transactions, some of them disputed.
    pub fn build() -> Self {
        let backend = backend_with(&[]);
        let engine = Engine::open(Options::new(Location::Backend(backend.clone()))).unwrap();
        for id in ["thon", "genesis"] {
            engine.register(registration(id), None).wait().unwrap();
        }
        for number in 0..200 {
            let id = TransactionId::parse("transaction_id", &format!("t{number}")).unwrap();
            let facts = Facts {
                payer_agent: agent_id("genesis"),
                provider_agent: agent_id("thon"),
                capability: Capability::parse("capability", "python").unwrap(),
                amount: Money::parse(&format!("{number}.5")).unwrap(),
                currency: Currency::default(),
                context: JsonObject::default(),
            };
            engine.record(NewTransaction { transaction_id: Some(id.clone()), facts }, None).wait().unwrap();
            if number % 3 == 0 {
                let evidence = vec![format!("sha256:{number}")];
                engine.decide(id, Decision::Dispute { reason: Some("late".into()), evidence }, None).wait().unwrap();
            }
        }
        let answers = ask(&engine).unwrap();
        engine.close();
        Self { bytes: bytes_of(&backend), answers }
    }

    /// Opens a file that is this one with other bytes here and there.
    ///
    /// # Errors
    ///
    /// What must not be: other answers than before, another error than a refusal, a file that was refused and changed.
    pub fn open_altered(&self, bytes: &[u8]) -> Result<Altered, String> {
        let backend = backend_with(bytes);
        match Engine::open(Options::new(Location::Backend(backend.clone()))) {
            Err(OpenError::Damaged { .. } | OpenError::Newer { .. } | OpenError::Older { .. }) => {
                if bytes_of(&backend) == bytes {
                    Ok(Altered::Refused)
                } else {
                    Err("it was refused, and changed".to_owned())
                }
            }
            Err(other) => Err(other.to_string()),
            Ok(engine) => {
                let answers = ask(&engine).map_err(|error| error.to_string());
                engine.close();
                let answers = answers?;
                if answers == self.answers {
                    Ok(Altered::AnswersAsBefore)
                } else {
                    Err(format!("it answers {answers:#?}"))
                }
            }
        }
    }
}

fn ask(engine: &Engine) -> Result<Answers, tradepost::Error> {
    let page = PageRequest { limit: 1_000, cursor: None };
    let transactions = engine.transactions(&TransactionFilter::default(), page)?.items;
    let events = transactions.iter().map(|transaction| engine.events(&transaction.transaction_id));
    let agents = ["thon", "genesis"].iter().map(|id| {
        // Leases are not of the file: they begin anew with every start.
        engine.agent(&agent_id(id)).map(|profile| Profile { expires_at: Timestamp::default(), ..profile })
    });
    Ok(Answers { events: events.collect::<Result<_, _>>()?, agents: agents.collect::<Result<_, _>>()?, transactions })
}

fn registration(id: &str) -> Registration {
    Registration {
        agent_id: agent_id(id),
        name: id.to_owned(),
        capabilities: Capabilities::parse(["python", "sql"]).unwrap(),
        cost_per_task: Money::parse("1").unwrap(),
        currency: Currency::default(),
        capacity_per_hour: Capacity::default(),
        availability: AvailabilityStatus::Online,
        billing_notes: None,
        metadata: JsonObject::default(),
        ttl: None,
    }
}

fn agent_id(id: &str) -> AgentId {
    AgentId::parse("agent_id", id).unwrap()
}

fn backend_with(bytes: &[u8]) -> Arc<InMemoryBackend> {
    let backend = InMemoryBackend::new();
    backend.set_len(bytes.len() as u64).unwrap();
    backend.write(0, bytes).unwrap();
    Arc::new(backend)
}

fn bytes_of(backend: &InMemoryBackend) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(backend.len().unwrap()).unwrap()];
    backend.read(0, &mut bytes).unwrap();
    bytes
}
