//! Bells: a commit in PostgreSQL that concerns another node's agent rings that agent's channel, so that its owner looks
//! there at once.
//!
//! Lossy by design: who hears nothing looks by itself a little later. Rings that cannot be sent are kept while there is
//! room, each agent once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use redis::Pipeline;
use tokio::sync::Notify;

use super::keys;
use super::link::Link;
use crate::domain::AgentId;
use crate::sync::state::Failure;

/// How many agents may wait to be rung for.
const WAITING: usize = 10_000;
/// What a bell says that PostgreSQL's side rings.
const LEDGER: &str = "ledger";
/// What a bell says that an observer rings.
pub const OUTCOMES: &[u8] = b"outcomes";

/// Rings for agents of other nodes. A clone pulls the same rope.
#[derive(Clone, Default)]
pub struct Ringer(Arc<Rope>);

#[derive(Default)]
struct Rope {
    waiting: Mutex<BTreeSet<AgentId>>,
    pulled: Notify,
}

impl Ringer {
    /// Rings for an agent. Never blocks.
    pub fn ring(&self, agent_id: &AgentId) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < WAITING {
            waiting.insert(agent_id.clone());
        }
        drop(waiting);
        self.0.pulled.notify_one();
    }

    fn take(&self) -> BTreeSet<AgentId> {
        std::mem::take(&mut self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Rings over a connection for as long as it stands.
    pub async fn ring_over(self, link: Link) -> Failure {
        loop {
            self.0.pulled.notified().await;
            let mut pipeline = Pipeline::new();
            for agent_id in self.take() {
                pipeline.cmd("PUBLISH").arg(keys::bell(agent_id.as_str())).arg(LEDGER);
            }
            if let Err(failure) = link.values(&pipeline).await {
                return failure;
            }
        }
    }
}
