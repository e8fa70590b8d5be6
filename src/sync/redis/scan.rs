//! Looking through all ids, page by page, beside the reading of the stream.
//!
//! After a break in the stream this is how everything is found again; without one it finds, seldom, what older clients
//! wrote and what vanished. Each page is taken in before the next step of the stream, whose entries are thus always the
//! later word. Ids without a document are taken out of the index sets on the way, but for those that live here: whatever
//! took their documents away, or their ids out of the set, they are to be told again.

use std::collections::{HashMap, HashSet};

use redis::Pipeline;

use super::intake::{Intake, Taken, look};
use super::keys::{self, HeldVersion};
use super::link::{Answer, Link};
use super::scripts::Scripts;
use crate::domain::{AgentId, AgentVersion, Timestamp};
use crate::engine::Engine;
use crate::sync::state::Failure;

/// How many ids one page has about.
const PAGE: usize = 500;

/// Why all ids are looked through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Something may have been missed.
    Break,
    /// It was time.
    Routine,
}

/// How far the search is.
pub struct Scan {
    why: Why,
    place: Place,
    /// Ids that have a document.
    seen: HashSet<String>,
    /// Whether any had none.
    found_gone: bool,
    /// The versions held here when the search began: what is the same there need not be read.
    held: HashMap<AgentId, Held>,
    /// Whether the sets of capabilities are looked through as well, whatever is found.
    thorough: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Local(AgentVersion),
    Remote(AgentVersion),
}

enum Place {
    /// In the set of all ids.
    Ids {
        cursor: u64,
    },
    /// Among the keys, for the sets of capabilities.
    Sets {
        cursor: u64,
    },
    /// Within one of those.
    Members {
        set: String,
        cursor: u64,
        then: u64,
        rest: Vec<String>,
    },
    Done,
}

/// What one step came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// What was taken in.
    pub taken: Taken,
    /// Remote agents that have no document, when all ids have been looked through.
    pub missing: Option<Missing>,
    /// Agents that live here and are not among the ids with a document, when all ids have been looked through.
    pub lost: Vec<AgentId>,
}

/// Remote agents that have no document.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Missing {
    /// Nobody says why. The versions are those held here.
    pub unexplained: Vec<(AgentId, AgentVersion)>,
    /// Redis remembers that they were deleted, in these versions.
    pub deleted: Vec<(AgentId, AgentVersion)>,
}

impl Scan {
    /// A search from the beginning.
    pub fn new(why: Why, thorough: bool, engine: &Engine) -> Self {
        let local = engine.local_leases().into_iter().map(|lease| (lease.agent_id, Held::Local(lease.version)));
        let remote = held_remotely(engine).map(|(agent_id, version)| (agent_id, Held::Remote(version)));
        Self {
            why,
            place: Place::Ids { cursor: 0 },
            seen: HashSet::new(),
            found_gone: false,
            held: local.chain(remote).collect(),
            thorough,
        }
    }

    /// Why this is done.
    pub fn why(&self) -> Why {
        self.why
    }

    /// Whether all is done.
    pub fn is_done(&self) -> bool {
        matches!(self.place, Place::Done)
    }

    /// Whether all documents have been looked at, and only index sets are left.
    pub fn has_seen_all(&self) -> bool {
        !matches!(self.place, Place::Ids { .. })
    }

    /// Whether an agent was found to have a document.
    pub fn has_seen(&self, agent_id: &AgentId) -> bool {
        self.seen.contains(agent_id.as_str())
    }

    /// Looks through one page.
    pub async fn step(
        &mut self,
        link: &Link,
        scripts: &Scripts,
        engine: &Engine,
        intake: &mut Intake,
    ) -> Result<Step, Failure> {
        match std::mem::replace(&mut self.place, Place::Done) {
            Place::Ids { cursor } => self.ids(cursor, link, scripts, engine, intake).await,
            Place::Sets { cursor } => {
                let mut command = redis::cmd("SCAN");
                command.arg(cursor).arg("MATCH").arg(format!("{}*", keys::CAPABILITIES)).arg("COUNT").arg(PAGE);
                let (next, found): (u64, Vec<Vec<u8>>) = link.query(&command).await?;
                self.place = self.next_set(next, texts(found));
                Ok(Step::default())
            }
            Place::Members { set, cursor, then, rest } => {
                let (next, members) = members(link, &set, cursor).await?;
                let gone: Vec<String> = members.into_iter().filter(|id| !self.seen.contains(id)).collect();
                unlist(link, scripts, &set, &gone).await?;
                self.place = match next {
                    0 => self.next_set(then, rest),
                    cursor => Place::Members { set, cursor, then, rest },
                };
                Ok(Step::default())
            }
            Place::Done => Ok(Step::default()),
        }
    }

    async fn ids(
        &mut self,
        cursor: u64,
        link: &Link,
        scripts: &Scripts,
        engine: &Engine,
        intake: &mut Intake,
    ) -> Result<Step, Failure> {
        let (next, ids) = members(link, keys::ALL, cursor).await?;
        let (mut gone, mut wanted, mut renewed) = (Vec::new(), Vec::new(), Vec::new());
        for found in look(link, &ids, false, intake.now()).await? {
            let Some(remaining) = found.remaining else {
                if !self.is_ours(&AgentId::from_stored(&found.agent_id)) {
                    gone.push(found.agent_id);
                }
                continue;
            };
            let id = AgentId::from_stored(&found.agent_id);
            let there = match found.held {
                Some(HeldVersion::Put(version)) => Some(version),
                _ => None,
            };
            match (self.held.get(&id), there) {
                (Some(Held::Remote(held)), Some(there)) if *held == there => renewed.push((id, remaining)),
                (Some(Held::Local(held)), Some(there)) if *held == there => {}
                _ => wanted.push(found.agent_id.clone()),
            }
            self.seen.insert(found.agent_id);
        }
        engine.renew_remote(&renewed);
        let taken = intake.take(look(link, &wanted, true, intake.now()).await?).await?;
        unlist(link, scripts, keys::ALL, &gone).await?;
        self.found_gone |= !gone.is_empty();
        if next != 0 {
            self.place = Place::Ids { cursor: next };
            return Ok(Step { taken, ..Step::default() });
        }
        if self.thorough || self.found_gone {
            self.place = Place::Sets { cursor: 0 };
        }
        let missing = self.missing(link, engine, intake.now()).await?;
        Ok(Step { taken, missing: Some(missing), lost: self.lost(engine) })
    }

    /// Whether an agent lived here when the search began.
    fn is_ours(&self, agent_id: &AgentId) -> bool {
        matches!(self.held.get(agent_id), Some(Held::Local(_)))
    }

    /// Agents that lived here all the time and were not found.
    fn lost(&self, engine: &Engine) -> Vec<AgentId> {
        let local = engine.local_leases().into_iter().map(|lease| lease.agent_id);
        local.filter(|agent_id| self.is_ours(agent_id) && !self.has_seen(agent_id)).collect()
    }

    /// Remote agents that were not among the ids and have no document either.
    async fn missing(&self, link: &Link, engine: &Engine, now: Timestamp) -> Result<Missing, Failure> {
        let unseen: Vec<(AgentId, AgentVersion)> =
            held_remotely(engine).filter(|(id, _)| !self.seen.contains(id.as_str())).collect();
        let ids: Vec<String> = unseen.iter().map(|(id, _)| id.as_str().to_owned()).collect();
        let mut missing = Missing::default();
        for ((agent_id, version), found) in unseen.into_iter().zip(look(link, &ids, false, now).await?) {
            match found.deletion_of(version) {
                _ if found.remaining.is_some() => {}
                Some(deletion) => missing.deleted.push((agent_id, deletion)),
                None => missing.unexplained.push((agent_id, version)),
            }
        }
        Ok(missing)
    }

    fn next_set(&self, then: u64, mut sets: Vec<String>) -> Place {
        match (sets.pop(), then) {
            (Some(set), then) => Place::Members { set, cursor: 0, then, rest: sets },
            (None, 0) => Place::Done,
            (None, cursor) => Place::Sets { cursor },
        }
    }
}

fn held_remotely(engine: &Engine) -> impl Iterator<Item = (AgentId, AgentVersion)> {
    engine.remote_agents().into_iter().map(|(id, version, _)| (id, version))
}

/// One page of a set, which may be of another type: somebody else's, and empty for us.
async fn members(link: &Link, set: &str, cursor: u64) -> Result<(u64, Vec<String>), Failure> {
    let mut pipeline = Pipeline::new();
    pipeline.cmd("TYPE").arg(set);
    pipeline.cmd("SSCAN").arg(set).arg(cursor).arg("COUNT").arg(PAGE);
    let mut answers = link.values(&pipeline).await?.into_iter();
    let kind: String = link.read(answers.next().unwrap_or_default())?;
    if kind != "set" {
        return Ok((0, Vec::new()));
    }
    let (next, ids): (u64, Vec<Vec<u8>>) = link.read(answers.next().unwrap_or_default())?;
    Ok((next, texts(ids)))
}

async fn unlist(link: &Link, scripts: &Scripts, set: &str, gone: &[String]) -> Result<(), Failure> {
    if gone.is_empty() {
        return Ok(());
    }
    let mut pipeline = Pipeline::new();
    pipeline.add_command(scripts.unlist_gone(set, gone));
    for answer in link.run(scripts, &pipeline).await? {
        if let Answer::Refused { reason, .. } = answer {
            tracing::debug!(set, reason, "an index set cannot be cleaned");
        }
    }
    Ok(())
}

/// Ids that are not UTF-8 cannot be an agent's.
fn texts(values: Vec<Vec<u8>>) -> Vec<String> {
    values.into_iter().filter_map(|value| String::from_utf8(value).ok()).collect()
}
