//! Many nodes on one Redis and one PostgreSQL, which were away while everybody wrote.
//!
//! Neighbours are parties of common transactions: both record them under the same id, and both decide about them, so
//! that afterwards every two neighbours want the same rows at the same time.

use std::thread;
use std::time::{Duration, Instant};

use tradepost::Engine;
use tradepost::domain::{Decision, NewTransaction, TransactionId, TransactionStatus};

use super::node::{Node, Urls};
use crate::common::{facts, registration, transaction_id};

/// The nodes, each with an agent of its own.
pub struct Fleet {
    pub nodes: Vec<Node>,
    /// How many transactions each node holds of its own making.
    rows: usize,
}

impl Fleet {
    /// Nodes that cannot reach the central systems yet, and each of which records so many transactions: half of them
    /// with agents that live nowhere, half with a neighbour.
    pub fn offline(nodes: usize, rows: usize, urls: &Urls) -> Self {
        assert!(rows.is_multiple_of(4) && nodes > 2, "halves of halves, and two neighbours each");
        let fleet = Self { nodes: (0..nodes).map(|_| Node::in_memory(urls)).collect(), rows };
        for (number, node) in fleet.nodes.iter().enumerate() {
            let register = node.engine.register(registration(&agent(number), &["sql"]), None);
            register.wait().expect("the id is free");
            let alone = (0..rows / 2).map(|row| new(&format!("own-{number}-{row}"), &agent(number), "elsewhere"));
            let shared = fleet.edges(number).flat_map(|[payer, provider]| {
                (0..rows / 4).map(move |row| new(&shared_id(payer, row), &agent(payer), &agent(provider)))
            });
            let answers = node.engine.record_batch(alone.chain(shared).collect()).wait().expect("a batch is recorded");
            assert!(answers.iter().all(Result::is_ok), "every id is free");
        }
        fleet.decide();
        fleet
    }

    /// The two pairs of neighbours that a node belongs to, payers first.
    fn edges(&self, number: usize) -> impl Iterator<Item = [usize; 2]> + use<> {
        let count = self.nodes.len();
        let next = move |number: usize| (number + 1) % count;
        let previous = (number + count - 1) % count;
        [[previous, number], [number, next(number)]].into_iter()
    }

    /// The payer settles every common transaction, and the provider disputes every other.
    fn decide(&self) {
        let settle = |engine: &Engine, id| engine.decide(id, Decision::Settle, None);
        let dispute = |engine: &Engine, id| {
            let decision = Decision::Dispute { reason: None, evidence: vec!["half is missing".to_owned()] };
            engine.decide(id, decision, None)
        };
        let mut pending = Vec::new();
        for (number, node) in self.nodes.iter().enumerate() {
            for [payer, provider] in self.edges(number) {
                for row in 0..self.rows / 4 {
                    let id = transaction_id(&shared_id(payer, row));
                    if payer == number {
                        pending.push(settle(&node.engine, id));
                    } else if provider == number && row % 2 == 1 {
                        pending.push(dispute(&node.engine, id));
                    }
                }
            }
        }
        pending.into_iter().for_each(|decided| drop(decided.wait().expect("a decision is allowed")));
    }

    /// Transactions, each counted once.
    pub fn transactions(&self) -> usize {
        self.nodes.len() * (self.rows / 2 + self.rows / 4)
    }

    /// Ledger events that were written by all.
    pub fn events(&self) -> u64 {
        self.nodes.iter().map(|node| node.engine.log_position().seq).sum()
    }

    /// How many nodes have not everything central yet, or do not show their common transactions as they are to be.
    pub fn unsettled(&self) -> usize {
        self.nodes.iter().enumerate().filter(|(number, node)| !node.is_settled() || !self.agrees(*number)).count()
    }

    fn agrees(&self, number: usize) -> bool {
        let engine = &self.nodes[number].engine;
        self.edges(number).all(|[payer, _]| {
            (0..self.rows / 4).all(|row| {
                let expected = if row % 2 == 1 { TransactionStatus::Disputed } else { TransactionStatus::Settled };
                status(engine, &transaction_id(&shared_id(payer, row))) == Some(expected)
            })
        })
    }

    /// Waits until all is in; how long that took, or nothing if it did not come to that within `patience`.
    pub fn settle(&self, patience: Duration) -> Option<Duration> {
        let began = Instant::now();
        while self.unsettled() > 0 {
            if began.elapsed() > patience {
                return None;
            }
            thread::sleep(Duration::from_millis(50));
        }
        Some(began.elapsed())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // All at once: each may take its time to say goodbye.
        self.nodes.iter().for_each(Node::begin_stopping);
    }
}

fn agent(number: usize) -> String {
    format!("node-{number:04}")
}

fn shared_id(payer: usize, row: usize) -> String {
    format!("both-{payer}-{row}")
}

fn new(id: &str, payer: &str, provider: &str) -> NewTransaction {
    NewTransaction { transaction_id: Some(transaction_id(id)), facts: facts(payer, provider, "sql", "2.5") }
}

fn status(engine: &Engine, id: &TransactionId) -> Option<TransactionStatus> {
    engine.transaction(id).ok().map(|transaction| transaction.status)
}
