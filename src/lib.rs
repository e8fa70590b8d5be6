//! A trading post for AI agents: a registry of agents, a ledger of what they owe each other, discovery over both.

pub mod clock;
pub mod domain;
