//! Taking in what other nodes and older clients wrote: documents become remote agents, one engine write for many.
//!
//! Newer wins, and the engine says what is newer; what is not is left as it is. Documents under this node's own id are
//! never taken in: those that this file did not write say that another file goes by its id.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use redis::{Pipeline, Value};

use super::document::{self, MAX_DOCUMENT_BYTES, Sighting};
use super::keys::{self, HeldVersion};
use super::link::Link;
use super::push;
use super::told::{Theirs, remaining_of};
use crate::clock::Clock;
use crate::domain::{Agent, AgentId, AgentVersion, NodeId, Timestamp};
use crate::engine::replica::{AgentChange, RemoteAgent};
use crate::engine::{Engine, Error, LeaseState};
use crate::sync::state::{Failure, FailureClass};

/// How many documents are asked for at once.
pub const PAGE: usize = 200;
/// How many bytes of documents are asked for at once, unless one alone is longer: far less than a server lets wait for a
/// connection that listens to channels.
const PAGE_BYTES: usize = 2 * 1024 * 1024;
/// How many documents that cannot be read are remembered, for people to look at.
const REMEMBERED: usize = 100;

/// What lies in Redis under an agent's id.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The id, as it stands in the keys.
    pub agent_id: String,
    /// What Redis remembers of it.
    pub held: Option<HeldVersion>,
    /// The document, if it was asked for and is there.
    pub document: Option<Vec<u8>>,
    /// How long the document lives yet; `None` if there is none.
    pub remaining: Option<Duration>,
}

impl Found {
    /// The deletion that Redis remembers, if it is one of this version or an older one.
    pub fn deletion_of(&self, version: AgentVersion) -> Option<AgentVersion> {
        match self.held {
            Some(HeldVersion::Removed(deletion)) if deletion > version => Some(deletion),
            _ => None,
        }
    }
}

/// What taking in came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Taken {
    /// Agents that are new here, or newer.
    pub agents: u64,
    /// Whether Redis holds something under this node's id that this file did not write.
    pub is_forked: bool,
}

/// Asks for documents and versions. A version that is not believed `now` is none.
pub async fn look(link: &Link, agent_ids: &[String], documents: bool, now: Timestamp) -> Result<Vec<Found>, Failure> {
    let mut found = Vec::with_capacity(agent_ids.len());
    for ids in agent_ids.chunks(PAGE) {
        let mut texts = if documents { texts(link, ids).await? } else { vec![None; ids.len()] };
        let mut pipeline = Pipeline::with_capacity(2 * ids.len());
        for id in ids {
            // One byte more than a version has shows that it is none.
            pipeline.cmd("GETRANGE").arg(keys::version(id)).arg(0).arg(keys::VERSION_LENGTH);
            pipeline.cmd("PTTL").arg(keys::document(id));
        }
        let mut answers = link.values(&pipeline).await?.into_iter();
        let mut next = || answers.next().unwrap_or_default();
        for (index, id) in ids.iter().enumerate() {
            let held = bytes_of(next()).as_deref().and_then(HeldVersion::parse);
            let pttl: i64 = link.read(next())?;
            found.push(Found {
                agent_id: id.clone(),
                held: held.filter(|held| held.version().is_believed_at(now)),
                document: texts.get_mut(index).and_then(Option::take),
                remaining: (pttl != -2).then(|| remaining_of(pttl)),
            });
        }
    }
    Ok(found)
}

/// Asks for documents, in pages by their lengths. Of one that is too long as much comes as shows that.
async fn texts(link: &Link, ids: &[String]) -> Result<Vec<Option<Vec<u8>>>, Failure> {
    let mut pipeline = Pipeline::with_capacity(ids.len());
    for id in ids {
        pipeline.cmd("STRLEN").arg(keys::document(id));
    }
    // A key of another type, which somebody else made, is as good as none.
    let lengths: Vec<usize> =
        link.values(&pipeline).await?.into_iter().map(|value| redis::from_redis_value(value).unwrap_or(0)).collect();
    let mut texts = Vec::with_capacity(ids.len());
    while texts.len() < ids.len() {
        let (mut pipeline, mut bytes) = (Pipeline::new(), 0);
        for (id, length) in ids.iter().zip(&lengths).skip(texts.len()) {
            bytes += (*length).min(MAX_DOCUMENT_BYTES);
            if bytes > PAGE_BYTES && !pipeline.is_empty() {
                break;
            }
            pipeline.cmd("GETRANGE").arg(keys::document(id)).arg(0).arg(MAX_DOCUMENT_BYTES);
        }
        texts.extend(link.values(&pipeline).await?.into_iter().map(bytes_of));
    }
    Ok(texts)
}

/// What a key holds, if it holds a text at all.
fn bytes_of(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes).filter(|bytes| !bytes.is_empty()),
        _ => None,
    }
}

/// What comes in, and what is to be known for it from one document to the next.
pub struct Intake {
    engine: Engine,
    clock: Arc<dyn Clock>,
    /// The last document of each agent that an older client wrote: seen again unchanged, it is no news.
    strangers: HashMap<AgentId, u64>,
    /// Why documents were not taken, by agent.
    unreadable: BTreeMap<String, String>,
    /// How many agents were registered anew elsewhere, and the last of them.
    superseded: (usize, Option<AgentId>),
}

impl Intake {
    /// Nothing came in yet.
    pub fn new(engine: Engine, clock: Arc<dyn Clock>) -> Self {
        Self { engine, clock, strangers: HashMap::new(), unreadable: BTreeMap::new(), superseded: (0, None) }
    }

    /// The time by which it judges.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Takes in what was found.
    pub async fn take(&mut self, found: Vec<Found>) -> Result<Taken, Failure> {
        let own_id = self.engine.identity().node_id;
        let mut taken = Taken::default();
        let (mut agents, mut renewed, mut suspicious) = (Vec::new(), Vec::new(), Vec::new());
        let mut prints = Vec::new();
        for found in found {
            let Some((mut agent, remaining, print)) = self.read(&found) else { continue };
            if agent.node_id() == own_id {
                suspicious.push((agent.agent_id, agent.version));
            } else if print.is_some_and(|print| self.strangers.get(&agent.agent_id) == Some(&print))
                && self.is_alive(&agent.agent_id)
            {
                renewed.push((agent.agent_id, remaining));
            } else {
                if let Some(print) = print {
                    agent.version = self.above_held(&agent);
                    prints.push((agent.agent_id.clone(), agent.version, print));
                }
                agents.push(RemoteAgent { agent, remaining });
            }
        }
        self.engine.renew_remote(&renewed);
        if !agents.is_empty() {
            let absorbed = self.engine.absorb_agents(agents).await.map_err(store_failure)?;
            taken.agents = absorbed.taken as u64;
            self.superseded.0 += absorbed.superseded.len();
            if let Some(last) = absorbed.superseded.into_iter().last() {
                self.superseded.1 = Some(last);
            }
            // Known is only what is here: all else is to be offered again.
            for (agent_id, version, print) in prints {
                if self.engine.agent(&agent_id).is_ok_and(|held| held.agent.version == version) {
                    self.strangers.insert(agent_id, print);
                }
            }
        }
        taken.is_forked = self.is_of_another_file(&suspicious)?;
        Ok(taken)
    }

    /// Takes in what a script found there instead of ours.
    pub async fn take_theirs(&mut self, agent_id: &AgentId, theirs: Theirs) -> Result<Taken, Failure> {
        let found = Found {
            agent_id: agent_id.as_str().to_owned(),
            held: Some(theirs.held),
            remaining: theirs.document.as_ref().map(|_| theirs.remaining),
            document: theirs.document,
        };
        self.take(vec![found]).await
    }

    /// Whether Redis holds, under this node's id, what this file did not write: then it is a copy, or an old backup.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn is_of_another_file(&self, suspicious: &[(AgentId, AgentVersion)]) -> Result<bool, Failure> {
        // What is held here in that version or a later one, whoever owns it now, explains what is there.
        let suspicious: Vec<&(AgentId, AgentVersion)> =
            suspicious.iter().filter(|(id, version)| !self.holds(id, *version)).collect();
        if suspicious.is_empty() {
            return Ok(false);
        }
        // A search of all changes, for a suspicion that hardly ever comes: nothing else tells a deletion of some minutes
        // ago from an agent that this file never had.
        let changes = self.engine.changes_after(0, usize::MAX).map_err(store_failure)?;
        let asked: HashSet<&AgentId> = suspicious.iter().map(|(id, _)| id).collect();
        let ours: HashMap<&AgentId, AgentVersion> = changes
            .iter()
            .filter(|change| asked.contains(push::agent_id(change)))
            .map(|change| match change {
                AgentChange::Put { agent, .. } => (&agent.agent_id, agent.version),
                AgentChange::Removed { agent_id, version, .. } => (agent_id, *version),
            })
            .collect();
        Ok(suspicious.iter().any(|(id, version)| ours.get(id).is_none_or(|ours| ours < version)))
    }

    /// The version of an older client's document, which tells none: above the last one that was seen, wherever the clock
    /// has been meanwhile.
    fn above_held(&self, agent: &Agent) -> AgentVersion {
        let (version, held) = (agent.version, self.engine.agent(&agent.agent_id));
        match held.map(|held| held.agent.version) {
            Ok(held) if held.node_id == version.node_id && held.epoch == version.epoch => {
                AgentVersion { seq: version.seq.max(held.seq.saturating_add(1)), ..version }
            }
            _ => version,
        }
    }

    fn holds(&self, agent_id: &AgentId, version: AgentVersion) -> bool {
        self.engine.agent(agent_id).is_ok_and(|held| held.agent.version >= version)
    }

    /// Only then is an unchanged document no news: what has expired comes back by being taken in.
    fn is_alive(&self, agent_id: &AgentId) -> bool {
        self.engine.agent(agent_id).is_ok_and(|held| held.lease != LeaseState::Expired)
    }

    fn read(&mut self, found: &Found) -> Option<(Agent, Duration, Option<u64>)> {
        let (document, remaining) = (found.document.as_deref()?, found.remaining?);
        let deletion = match found.held {
            Some(HeldVersion::Removed(version)) => Some(version),
            _ => None,
        };
        let sighting = Sighting { now: self.clock.now(), remaining, deletion };
        match document::read(&found.agent_id, document, sighting) {
            Ok(agent) => {
                self.unreadable.remove(&found.agent_id);
                let print = (agent.node_id() == NodeId::NIL).then(|| {
                    let mut hasher = DefaultHasher::new();
                    (document, deletion).hash(&mut hasher);
                    hasher.finish()
                });
                Some((agent, remaining, print))
            }
            Err(error) => {
                let is_news = !self.unreadable.contains_key(&found.agent_id);
                if is_news && self.unreadable.len() < REMEMBERED {
                    tracing::warn!(agent_id = found.agent_id, reason = %error, "a document in Redis is not taken");
                    self.unreadable.insert(found.agent_id.clone(), error.to_string());
                }
                None
            }
        }
    }

    /// Forgets what was seen of an agent that is gone.
    pub fn forget(&mut self, agent_id: &AgentId) {
        self.strangers.remove(agent_id);
        self.unreadable.remove(agent_id.as_str());
    }

    /// What an operator should know.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let (count, Some(last)) = &self.superseded {
            notes.push(format!("{count} agents of this node were registered anew on another, the last one {last}"));
        }
        if let Some((agent_id, reason)) = self.unreadable.last_key_value() {
            let count = self.unreadable.len();
            notes.push(format!("{count} documents are not taken, such as that of {agent_id:?}: {reason}"));
        }
        notes
    }
}

/// The engine's store failed, or is too busy.
pub fn store_failure(error: Error) -> Failure {
    Failure::new(FailureClass::Store, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Location, Options};

    /// A clock that stands where it was put.
    #[derive(Debug)]
    struct At(i64);

    impl Clock for At {
        fn now(&self) -> Timestamp {
            Timestamp::from_micros(self.0)
        }

        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }
    }

    fn of_an_older_client(name: &str) -> Vec<Found> {
        let document = format!(r#"{{"agent_id":"old","name":"{name}"}}"#).into_bytes();
        let remaining = Some(Duration::from_secs(600));
        vec![Found { agent_id: "old".to_owned(), held: None, document: Some(document), remaining }]
    }

    #[tokio::test]
    async fn an_older_clients_change_is_taken_once_the_engine_takes_it_and_when_the_clock_jumped_back() {
        let engine = Engine::open(Options::new(Location::Memory)).unwrap();
        let name = |engine: &Engine| engine.agent(&AgentId::from_stored("old")).unwrap().agent.name;
        let mut intake = Intake::new(engine.clone(), Arc::new(At(9_000)));
        assert_eq!(intake.take(of_an_older_client("first")).await.unwrap().agents, 1);
        intake.clock = Arc::new(At(5_000));
        assert_eq!(intake.take(of_an_older_client("second")).await.unwrap().agents, 1);
        assert_eq!(name(&engine), "second");
        assert_eq!(intake.take(of_an_older_client("second")).await.unwrap().agents, 0, "it is known");

        let closed = Engine::open(Options::new(Location::Memory)).unwrap();
        closed.close();
        intake.engine = closed;
        assert!(intake.take(of_an_older_client("third")).await.is_err());
        intake.engine = engine.clone();
        assert_eq!(intake.take(of_an_older_client("third")).await.unwrap().agents, 1);
        assert_eq!(name(&engine), "third");
    }
}
