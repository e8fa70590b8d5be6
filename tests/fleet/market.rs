//! A fleet, and what is done to it step by step; and what its users were told, to hold it against.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tradepost::domain::{
    AgentId, AgentPatch, Decision, EventId, NewTransaction, Refusal, Registration, ResolutionOutcome, TransactionId,
    Weight,
};
use tradepost::{Engine, Error, LeaseState, Precondition};

use super::centre::{Centre, RedisCopy, Servers};
use super::node::{LEASE, Node};
use super::plan::{AGENTS, Plan, Sink, Step, TRANSACTIONS, Verdict};
use super::time::TrueTime;
use crate::common::{agent_id, facts, registration, transaction_id};

/// The most nodes, copies included.
const NODES: usize = 5;
/// How often agents give signs of life.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long a step takes.
const MOMENT: Duration = Duration::from_millis(250);

/// An agent, the program behind the profile. It runs at one node at a time.
#[derive(Debug, Default)]
pub struct Process {
    /// Where it runs, if it does.
    pub home: Option<usize>,
    /// What it called itself last.
    pub name: String,
    /// Where it ran last.
    last_home: Option<usize>,
    /// Whether it ran in more than one place, or a file that it ran at was copied or put back: only then may its node tell
    /// it that it lives elsewhere.
    pub is_disturbed: bool,
    /// Whether a file that it ran at was put back, or it ran at a copy of it before, so that its node may have forgotten
    /// what it said.
    pub is_put_back: bool,
    /// How it did, as was observed, as long as that can be known: all, and successes.
    pub observed: Option<(u64, u64)>,
}

/// A fleet and its central systems.
pub struct Market<'a> {
    servers: &'a Servers,
    pub centre: Centre<'a>,
    time: Arc<TrueTime>,
    now: Duration,
    pub nodes: Vec<Node>,
    pub processes: Vec<Process>,
    /// Every event that was ever acknowledged.
    pub acknowledged: BTreeSet<EventId>,
    /// Those of them that were not lost with the last file that held them.
    pub kept: BTreeSet<EventId>,
    redis_copy: Option<(RedisCopy, Duration)>,
    has_postgres_copy: bool,
    random: StdRng,
    names: usize,
    /// Which agents each node knows, by its number and theirs.
    known: BTreeSet<(usize, usize)>,
    /// Since when each node knows of the end of an agent.
    ended: BTreeMap<(usize, usize), Duration>,
}

impl<'a> Market<'a> {
    pub async fn open(servers: &'a Servers, plan: &Plan, seed: u64) -> Self {
        let mut market = Self {
            servers,
            centre: Centre::new(servers).await,
            time: TrueTime::today(),
            now: Duration::ZERO,
            nodes: Vec::new(),
            processes: std::iter::repeat_with(Process::default).take(AGENTS).collect(),
            acknowledged: BTreeSet::new(),
            kept: BTreeSet::new(),
            redis_copy: None,
            has_postgres_copy: false,
            random: StdRng::seed_from_u64(seed),
            names: 0,
            known: BTreeSet::new(),
            ended: BTreeMap::new(),
        };
        for process in &mut market.processes {
            process.observed = Some((0, 0));
        }
        for _ in 0..plan.nodes {
            market.add_node(Vec::new());
        }
        market
    }

    fn add_node(&mut self, content: Vec<u8>) {
        let (seed, family) = (self.random.random(), self.nodes.len());
        self.nodes.push(Node::new(self.servers, &self.time, content, seed, family));
    }

    /// How much time has passed.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Takes a step.
    pub async fn step(&mut self, step: Step) {
        let count = self.nodes.len();
        match step {
            Step::Register { agent, node } => self.register(agent, node % count).await,
            Step::Update { agent } => self.update(agent).await,
            Step::Unregister { agent } => self.unregister(agent).await,
            Step::Observe { agent, node, success } => self.observe(agent, node % count, success).await,
            Step::Record { transaction, node } => self.record(transaction, node % count).await,
            Step::Decide { transaction, node, verdict } => self.decide(transaction, node % count, verdict).await,
            Step::Round { node, sink } => self.round(node % count, sink).await,
            Step::Break { node, sink, after, how } => {
                self.moment().await;
                let node = &mut self.nodes[node % count];
                match sink {
                    Sink::Redis => node.redis.work_and_break(after, how).await,
                    Sink::Postgres => node.postgres.work_and_break(after, how).await,
                }
                self.noticed().await;
            }
            Step::Part { node, sink } => {
                let node = &mut self.nodes[node % count];
                match sink {
                    Sink::Redis => node.redis.part(),
                    Sink::Postgres => node.postgres.part(),
                }
                self.noticed().await;
            }
            Step::Rejoin { node, sink } => self.wire(node % count, sink).set_up(true),
            Step::Late { node } => self.nodes[node % count].redis.wire.say_again().await,
            Step::Crash { node } => {
                let node = &mut self.nodes[node % count];
                let file = node.file();
                node.start_on(file);
                self.noticed().await;
            }
            Step::BackUp { node } => {
                let node = &mut self.nodes[node % count];
                node.backup = Some(node.file());
            }
            Step::Restore { node } => self.restore(node % count).await,
            Step::Clone { node, moves } => self.clone_node(node % count, moves),
            Step::BackUpCentre { sink: Sink::Redis } => self.redis_copy = Some((self.centre.copy_of_redis(), self.now)),
            Step::BackUpCentre { sink: Sink::Postgres } => {
                if !self.centre.is_bare().await {
                    self.centre.back_up_postgres().await;
                    self.has_postgres_copy = true;
                }
            }
            Step::RestoreCentre { sink, renumbered } => self.restore_centre(sink, renumbered).await,
            Step::EmptyRedis => {
                self.hang_up(Sink::Redis).await;
                self.centre.empty_redis();
            }
            Step::SetClock { node, ahead } => self.nodes[node % count].clock.set_ahead(ahead),
            Step::Pass { seconds } => self.pass(Duration::from_secs(seconds), None).await,
            Step::Stall { node } => self.stall(node % count).await,
        }
        self.watch_the_dead();
    }

    /// A node that knows of an agent's end remembers it for as long as a lease could run elsewhere: whatever comes back
    /// meanwhile, be it Redis as it was, the agent does not.
    fn watch_the_dead(&mut self) {
        for (number, node) in self.nodes.iter().enumerate() {
            for (agent, process) in self.processes.iter().enumerate() {
                let (id, place) = (id_of(agent), (number, agent));
                let profile = node.engine.agent(&id).ok();
                // Of a program that ran in two places, either may have registered it last.
                if process.home.is_some() || process.is_disturbed {
                    self.ended.remove(&place);
                } else if profile.is_none() && self.known.contains(&place) {
                    self.ended.insert(place, self.now);
                }
                let has_ended = self.ended.get(&place).is_some_and(|since| self.now - *since < LEASE);
                let is_alive = profile.as_ref().is_some_and(|profile| profile.lease != LeaseState::Expired);
                assert!(!(has_ended && is_alive), "{id} was deleted, and node {number}, which knew it, shows it again");
                if profile.is_some() {
                    self.known.insert(place)
                } else {
                    self.known.remove(&place)
                };
            }
        }
    }

    /// All is well again: wires are up, clocks are true, nobody restores anything.
    pub async fn heal(&mut self) {
        for node in &mut self.nodes {
            node.clock.set_ahead(0);
            for wire in [&node.redis.wire, &node.postgres.wire] {
                wire.set_up(true);
            }
        }
    }

    /// So much time in which everybody does what it does when all is well.
    pub async fn live(&mut self, time: Duration) {
        self.pass(time, None).await;
        for node in 0..self.nodes.len() {
            self.round(node, Sink::Redis).await;
            self.round(node, Sink::Postgres).await;
        }
    }

    async fn moment(&mut self) {
        self.advance(MOMENT).await;
    }

    async fn advance(&mut self, by: Duration) {
        self.now += by;
        self.time.advance(by);
        self.centre.pass(by);
        tokio::time::advance(by).await;
        // What Redis said to listeners has come to them: through the wire, to the connection, to whoever waits for it.
        self.centre.said_all();
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }

    /// Time passes. Every agent whose node answers gives signs of life; `stalled` does not answer.
    async fn pass(&mut self, time: Duration, stalled: Option<usize>) {
        let mut left = time;
        while !left.is_zero() {
            let some = left.min(HEARTBEAT);
            self.advance(some).await;
            left -= some;
            for (number, node) in self.nodes.iter().enumerate() {
                if Some(number) != stalled {
                    // A command of no consequence has the writer see what has expired.
                    node.engine.cover(Vec::new()).await.expect("the store is sound");
                }
            }
            self.heartbeats(stalled).await;
        }
    }

    async fn heartbeats(&mut self, stalled: Option<usize>) {
        for agent in 0..self.processes.len() {
            let Some(home) = self.processes[agent].home.filter(|home| Some(*home) != stalled) else { continue };
            let (id, engine) = (id_of(agent), &self.nodes[home].engine);
            match engine.heartbeat(&id).await {
                Ok(_) => {
                    let profile = engine.agent(&id).expect("it was just heard of");
                    assert_eq!((profile.lease, profile.local), (LeaseState::Live, true), "{id} at its own node");
                    assert!(profile.agent.claimed, "{id} gave a sign of life");
                }
                Err(Error::Refused(Refusal::AgentNotLocal(_) | Refusal::AgentNotFound(_))) => {
                    let is_disturbed = self.processes[agent].is_disturbed;
                    assert!(is_disturbed, "{id} never ran elsewhere, and node {home} does not know it any more");
                    self.register(agent, home).await;
                }
                Err(error) => panic!("{id}: {error}"),
            }
        }
    }

    async fn stall(&mut self, stalled: usize) {
        let mut left = LEASE * 10;
        while !left.is_zero() {
            self.pass(HEARTBEAT, Some(stalled)).await;
            left -= HEARTBEAT;
            for node in (0..self.nodes.len()).filter(|node| *node != stalled) {
                self.round(node, Sink::Redis).await;
            }
        }
    }

    /// A node works with a central system. Where the wire is up, it must not fail.
    async fn round(&mut self, node: usize, sink: Sink) {
        self.moment().await;
        let node = &mut self.nodes[node];
        let (done, is_up) = match sink {
            Sink::Redis => (node.redis.work().await, node.redis.wire.is_up()),
            Sink::Postgres => (node.postgres.work().await, node.postgres.wire.is_up()),
        };
        assert_eq!(done.is_ok(), is_up, "{sink:?}: {done:?}");
        self.watch_the_dead();
    }

    fn wire(&self, node: usize, sink: Sink) -> &super::wire::Wire {
        match sink {
            Sink::Redis => &self.nodes[node].redis.wire,
            Sink::Postgres => &self.nodes[node].postgres.wire,
        }
    }

    /// Waits until PostgreSQL has noticed who hung up, so that nobody keeps locks.
    async fn noticed(&mut self) {
        let nodes = &self.nodes;
        self.centre.noticed(|| nodes.iter().map(|node| node.postgres.wire.open()).sum()).await;
    }

    async fn hang_up(&mut self, sink: Sink) {
        for node in &mut self.nodes {
            match sink {
                Sink::Redis => node.redis.hang_up(),
                Sink::Postgres => node.postgres.hang_up(),
            }
        }
        self.noticed().await;
    }

    async fn register(&mut self, agent: usize, node: usize) {
        self.names += 1;
        let name = format!("agent {agent}, the {}th name", self.names);
        let registration = Registration { name: name.clone(), ..registration(id_of(agent).as_str(), &["python"]) };
        let registered = self.nodes[node].engine.replace(registration, Precondition::None).await;
        registered.expect("a registration cannot be refused");
        let process = &mut self.processes[agent];
        process.is_disturbed |= process.last_home.is_some_and(|last| last != node);
        // A file and its copy tell others under one id, until one of them writes what the other did not: which of two
        // registrations there is the later one, their clocks alone say.
        process.is_put_back =
            process.last_home.is_some_and(|last| last != node && self.nodes[last].family == self.nodes[node].family);
        (process.home, process.last_home, process.name) = (Some(node), Some(node), name);
    }

    async fn update(&mut self, agent: usize) {
        let Some(home) = self.processes[agent].home else { return };
        self.names += 1;
        let name = format!("agent {agent}, the {}th name", self.names);
        let patch = AgentPatch { name: Some(name.clone()), ..AgentPatch::default() };
        match self.nodes[home].engine.update(id_of(agent), patch, Precondition::None).await {
            Ok(_) => self.processes[agent].name = name,
            Err(error) => self.is_of_elsewhere(agent, &error),
        }
    }

    async fn unregister(&mut self, agent: usize) {
        let Some(home) = self.processes[agent].home else { return };
        match self.nodes[home].engine.unregister(id_of(agent), Precondition::None).await {
            Ok(()) => {
                let process = &mut self.processes[agent];
                (process.home, process.observed) = (None, None);
            }
            Err(error) => self.is_of_elsewhere(agent, &error),
        }
    }

    /// Its node may say so to a process only if it may be true.
    fn is_of_elsewhere(&self, agent: usize, error: &Error) {
        let is_elsewhere = matches!(error, Error::Refused(Refusal::AgentNotLocal(_) | Refusal::AgentNotFound(_)));
        assert!(is_elsewhere && self.processes[agent].is_disturbed, "agent {agent} at its own node: {error}");
    }

    async fn observe(&mut self, agent: usize, node: usize, success: bool) {
        let observed = self.nodes[node].engine.observe_outcome(id_of(agent), success, Weight::default(), None).await;
        match (observed, &mut self.processes[agent].observed) {
            (Ok(_), Some((all, good))) => {
                *all += 1;
                *good += u64::from(success);
            }
            (Ok(_), None) | (Err(Error::Refused(Refusal::AgentNotFound(_))), _) => {}
            (Err(error), _) => panic!("{error}"),
        }
    }

    async fn record(&mut self, transaction: usize, node: usize) {
        let (payer, provider) = (transaction % AGENTS, (transaction + 1 + transaction / AGENTS) % AGENTS);
        let facts = facts(id_of(payer).as_str(), id_of(provider).as_str(), "python", &(transaction + 1).to_string());
        let new = NewTransaction { transaction_id: Some(transaction_of(transaction)), facts };
        self.nodes[node].engine.record(new, None).await.expect("its facts are always the same");
        self.acknowledge(transaction, node);
    }

    async fn decide(&mut self, transaction: usize, node: usize, verdict: Verdict) {
        let evidence = vec![format!("seen at node {node} after {:?}", self.now)];
        let resolve = |outcome| Decision::Resolve { outcome, note: None };
        let decision = match verdict {
            Verdict::Settle => Decision::Settle,
            Verdict::Cancel => Decision::Cancel { reason: None },
            Verdict::Dispute => Decision::Dispute { reason: None, evidence },
            Verdict::AddEvidence => Decision::AddEvidence { evidence },
            Verdict::ResolveSettled => resolve(ResolutionOutcome::Settled),
            Verdict::ResolveCancelled => resolve(ResolutionOutcome::Cancelled),
        };
        match self.nodes[node].engine.decide(transaction_of(transaction), decision, None).await {
            Ok(_) => self.acknowledge(transaction, node),
            // It is not held there, or does not stand so that this could be decided.
            Err(Error::Refused(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn acknowledge(&mut self, transaction: usize, node: usize) {
        let ids = held(&self.nodes[node].engine, transaction);
        self.kept.extend(ids.iter().copied());
        self.acknowledged.extend(ids);
    }

    /// What is in no file any more and not central is lost, and nobody can bring it back.
    async fn forget_lost(&mut self) {
        let central = self.centre.event_ids().await;
        let mut found: BTreeSet<EventId> = central.into_iter().map(EventId::from_bytes).collect();
        for node in &self.nodes {
            found.extend((0..TRANSACTIONS).flat_map(|transaction| held(&node.engine, transaction)));
        }
        self.kept.retain(|id| found.contains(id));
    }

    async fn restore(&mut self, node: usize) {
        let Some(backup) = self.nodes[node].backup.clone() else { return };
        self.nodes[node].start_on(backup);
        self.noticed().await;
        self.disturb(node, true);
        // It knows what it knew then, which is not what it was told since.
        self.known.retain(|(of, _)| *of != node);
        self.ended.retain(|(of, _), _| *of != node);
        self.forget_lost().await;
    }

    fn clone_node(&mut self, node: usize, moves: bool) {
        if self.nodes.len() == NODES {
            return;
        }
        let (file, family) = (self.nodes[node].file(), self.nodes[node].family);
        self.add_node(file);
        self.nodes.last_mut().expect("it was just added").family = family;
        self.disturb(node, false);
        let copy = self.nodes.len() - 1;
        for process in self.processes.iter_mut().filter(|process| moves && process.home == Some(node)) {
            (process.home, process.last_home) = (Some(copy), Some(copy));
        }
    }

    /// A file is not the only one of its kind any more.
    fn disturb(&mut self, node: usize, is_put_back: bool) {
        for process in &mut self.processes {
            // What was observed in the file may be gone, or be told twice.
            process.observed = None;
            if process.last_home == Some(node) {
                process.is_disturbed = true;
                process.is_put_back |= is_put_back;
            }
        }
    }

    async fn restore_centre(&mut self, sink: Sink, renumbered: bool) {
        match sink {
            Sink::Redis => {
                let Some((copy, then)) = self.redis_copy.clone() else { return };
                self.hang_up(sink).await;
                self.centre.restore_redis(&copy, self.now - then);
            }
            Sink::Postgres => {
                if !self.has_postgres_copy {
                    return;
                }
                self.hang_up(sink).await;
                self.centre.restore_postgres(renumbered).await;
                self.forget_lost().await;
            }
        }
    }
}

/// The events of a transaction that a node shows.
pub fn held(engine: &Engine, transaction: usize) -> Vec<EventId> {
    match engine.events(&transaction_of(transaction)) {
        Ok(events) => events.into_iter().map(|event| event.event_id).collect(),
        Err(Error::Refused(_)) => Vec::new(),
        Err(error) => panic!("{error}"),
    }
}

pub fn id_of(agent: usize) -> AgentId {
    agent_id(&format!("agent-{agent}"))
}

pub fn transaction_of(transaction: usize) -> TransactionId {
    transaction_id(&format!("order-{transaction}"))
}
