//! What several tests need: short ways to make domain values, a clock that is turned by hand, the real binary and a
//! client of its API.

#![allow(dead_code, reason = "every test binary compiles this module and uses a part of it")]

pub mod authority;
pub mod central;
pub mod clock;
pub mod disk;
pub mod http;
pub mod postgres;
pub mod proxy;
pub mod redis;
pub mod routes;
pub mod sidecar;
pub mod trials;

use std::sync::atomic::{AtomicBool, Ordering};

use tradepost::domain::{
    AgentId, AvailabilityStatus, Capabilities, Capability, Capacity, Currency, Facts, JsonObject, Money, Registration,
    TransactionId,
};

/// Tells other threads to stop when it goes, also in a panic: whoever waits for them would wait for ever.
pub struct Stops<'a>(pub &'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

pub fn agent_id(id: &str) -> AgentId {
    AgentId::parse("agent_id", id).expect("a test's own agent id")
}

pub fn transaction_id(id: &str) -> TransactionId {
    TransactionId::parse("transaction_id", id).expect("a test's own transaction id")
}

pub fn capability(name: &str) -> Capability {
    Capability::parse("capability", name).expect("a test's own capability")
}

pub fn money(text: &str) -> Money {
    Money::parse(text).expect("a test's own amount")
}

pub fn facts(payer: &str, provider: &str, for_capability: &str, amount: &str) -> Facts {
    Facts {
        payer_agent: agent_id(payer),
        provider_agent: agent_id(provider),
        capability: capability(for_capability),
        amount: money(amount),
        currency: Currency::default(),
        context: JsonObject::default(),
    }
}

pub fn registration(id: &str, capabilities: &[&str]) -> Registration {
    Registration {
        agent_id: agent_id(id),
        name: id.to_uppercase(),
        capabilities: Capabilities::parse(capabilities.iter().copied()).expect("a test's own capabilities"),
        cost_per_task: money("1"),
        currency: Currency::default(),
        capacity_per_hour: Capacity::default(),
        availability: AvailabilityStatus::Online,
        billing_notes: None,
        metadata: JsonObject::default(),
        ttl: None,
    }
}
