//! The registry between engines that tell each other of their agents: takeovers, leases nobody confirms, observations,
//! and a file that was copied.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::clock::ManualClock;
use common::{agent_id, capability, facts, registration};
use tradepost::clock::Clock;
use tradepost::domain::ranking::{RankBy, SearchQuery};
use tradepost::domain::{
    Agent, AgentPatch, AgentVersion, Baseline, Counters, NewTransaction, Registration, Reputation, Ttl, Weight,
};
use tradepost::engine::replica::{AgentChange, ForkReason, RegistryLink, RemoteAgent};
use tradepost::store::verify;
use tradepost::{AgentFilter, Engine, LeaseState, Location, Options, PageRequest, Precondition};
use tradepost::{Error, domain::Refusal};

const START: i64 = 1_795_391_431_000_000;
const HOUR: Duration = Duration::from_secs(3_600);

struct Node {
    engine: Engine,
    clock: Arc<ManualClock>,
}

impl Node {
    fn open(location: Location) -> Self {
        let clock = ManualClock::at(START);
        let options = Options { clock: Arc::clone(&clock) as _, ..Options::new(location) };
        Self { engine: Engine::open(options).expect("the store opens"), clock }
    }

    fn new() -> Self {
        Self::open(Location::Memory)
    }

    /// What Redis would be told of this node's agents, and what it would tell others.
    fn tell(&self, other: &Node) -> Vec<tradepost::domain::AgentId> {
        let mut superseded = Vec::new();
        for change in self.engine.changes_after(0, usize::MAX).unwrap() {
            match change {
                AgentChange::Put { agent, remaining, .. } => {
                    let remote = RemoteAgent { agent: *agent, remaining };
                    superseded.extend(other.engine.absorb_agents(vec![remote]).wait().unwrap().superseded);
                }
                AgentChange::Removed { agent_id, version, .. } => {
                    other.engine.drop_remote(vec![(agent_id, version)]).wait().unwrap();
                }
            }
        }
        superseded
    }

    fn register(&self, id: &str) {
        self.engine.register(registration(id, &["python"]), None).wait().unwrap();
    }

    fn lease(&self, id: &str) -> LeaseState {
        self.engine.agent(&agent_id(id)).unwrap().lease
    }

    fn is_local(&self, id: &str) -> bool {
        self.engine.agent(&agent_id(id)).unwrap().local
    }

    fn version(&self, id: &str) -> AgentVersion {
        self.engine.agent(&agent_id(id)).unwrap().agent.version
    }

    fn reputation(&self, id: &str) -> Reputation {
        self.engine.agent(&agent_id(id)).unwrap().agent.reputation
    }

    fn observe(&self, id: &str, success: bool) -> Reputation {
        self.engine.observe_outcome(agent_id(id), success, Weight::default(), None).wait().unwrap().value
    }

    fn discovers(&self, id: &str) -> bool {
        let query = SearchQuery { capabilities: vec![capability("python")], ..SearchQuery::default() };
        let found = self.engine.search(&query, 100).unwrap();
        found.iter().any(|profile| profile.agent.agent_id == agent_id(id))
    }

    /// Time passes, and the writer has seen it.
    fn pass(&self, by: Duration) {
        self.clock.advance(by);
        self.engine.renew_remote(&[(agent_id("nobody"), Duration::ZERO)]);
        self.engine.drop_remote(Vec::new()).wait().unwrap();
    }

    /// The owner's side of the observations that other nodes hold.
    fn fold_of(&self, other: &Node) {
        let observations = other.engine.observations().unwrap();
        let totals: Vec<_> = observations.into_iter().map(|seen| (seen.agent_id, seen.observer, seen.total)).collect();
        self.engine.fold_observations(totals.clone()).wait().unwrap();
        other.engine.ack_observations(totals).wait().unwrap();
    }
}

fn assert_clean(path: &Path) {
    let report = verify(path, &mut |_, _, _| {}).expect("the file opens");
    assert!(report.is_clean(), "{:#?}", report.findings);
}

#[test]
fn an_agent_is_found_on_the_other_node_and_belongs_to_its_own() {
    let (a, b) = (Node::new(), Node::new());
    a.register("thon");
    a.tell(&b);
    assert!(b.discovers("thon") && !b.is_local("thon"));
    assert_eq!(b.engine.agent(&agent_id("thon")).unwrap().agent.node_id(), a.engine.node_id());
    assert!(b.engine.changes_after(0, 10).unwrap().is_empty(), "others' agents are not told on");
    let refused = |result: Result<_, Error>| {
        assert!(matches!(result, Err(Error::Refused(Refusal::AgentNotLocal(_)))), "{result:?}");
    };
    refused(b.engine.heartbeat(&agent_id("thon")).wait().map(drop));
    refused(b.engine.update(agent_id("thon"), AgentPatch::default(), Precondition::None).wait().map(drop));
    refused(b.engine.unregister(agent_id("thon"), Precondition::None).wait());
    let taken = b.engine.register(registration("thon", &[]), None).wait();
    assert!(matches!(taken, Err(Error::Refused(Refusal::AgentAlreadyRegistered(_)))));

    let rename = AgentPatch { name: Some("T".into()), ..AgentPatch::default() };
    a.engine.update(agent_id("thon"), rename, Precondition::None).wait().unwrap();
    a.tell(&b);
    assert_eq!(b.engine.agent(&agent_id("thon")).unwrap().agent.name, "T");
    a.engine.unregister(agent_id("thon"), Precondition::None).wait().unwrap();
    a.tell(&b);
    assert!(matches!(b.engine.agent(&agent_id("thon")), Err(Error::Refused(Refusal::AgentNotFound(_)))));
}

#[test]
fn the_newest_registration_wins_whatever_the_clocks_say() {
    let (a, b) = (Node::new(), Node::new());
    a.clock.jump_wall(HOUR * 24 * 365);
    a.register("thon");
    a.tell(&b);
    b.engine.replace(registration("thon", &["sql"]), Precondition::None).wait().unwrap();
    assert!(b.is_local("thon") && b.version("thon") > a.version("thon"));
    assert_eq!(b.tell(&a), [agent_id("thon")], "the old host learns it");
    assert!(!a.is_local("thon"));
    assert_eq!(b.tell(&a), [], "once");
    assert!(a.tell(&b).is_empty() && b.is_local("thon"), "nothing of the old host's is told any more");

    // The epoch of a deleted agent is remembered too, for as long as it lies ahead of the clock.
    b.engine.unregister(agent_id("thon"), Precondition::None).wait().unwrap();
    b.tell(&a);
    let far = a.engine.absorb_agents(Vec::new());
    far.wait().unwrap();
    b.pass(HOUR * 24 * 31);
    b.register("thon");
    assert!(b.version("thon").epoch > u64::try_from(START).unwrap() + 364 * 24 * 3_600 * 1_000_000);
}

/// So far ahead that nobody believes it.
const FAR: Duration = Duration::from_secs(2 * 365 * 24 * 3_600);

#[test]
fn an_agent_that_was_registered_by_a_clock_far_ahead_is_dated_anew_and_believed() {
    let a = Node::new();
    a.clock.jump_wall(FAR);
    a.register("ahead");
    a.clock.jump_wall_back(FAR);
    a.register("sound");
    let before = a.version("sound");
    assert!(!a.version("ahead").is_believed_at(a.clock.now()));
    a.engine.redate(["ahead", "sound", "nobody"].map(agent_id).to_vec()).wait().unwrap();
    assert!(a.version("ahead").is_believed_at(a.clock.now()));
    assert_eq!(a.version("sound"), before);
    assert_eq!((a.lease("ahead"), a.is_local("ahead")), (LeaseState::Live, true));
    let told = a.engine.changes_after(0, 10).unwrap();
    let is_told =
        |change: &AgentChange| matches!(change, AgentChange::Put { agent, .. } if agent.version == a.version("ahead"));
    assert!(told.iter().any(is_told));
}

#[test]
fn nobody_who_lives_elsewhere_is_dead_here_for_a_version_that_nobody_believes_or_has_heard_of() {
    let (a, b) = (Node::new(), Node::new());
    a.clock.jump_wall(FAR);
    a.register("unbelieved");
    a.clock.jump_wall_back(FAR);
    // Its host had no link while it lived, and a clock that was a little ahead.
    a.clock.jump_wall(HOUR);
    a.register("unheard");
    a.clock.jump_wall_back(HOUR);
    a.pass(HOUR * 2);
    for id in ["unbelieved", "unheard"] {
        b.register(id);
        assert_eq!(a.lease(id), LeaseState::Expired);
    }
    // Its own program may run on; it registers anew when it is told.
    a.engine.heartbeat(&agent_id("unbelieved")).wait().unwrap();
    assert!(b.version("unheard") < a.version("unheard") && b.version("unbelieved") < a.version("unbelieved"));
    b.tell(&a);
    for id in ["unbelieved", "unheard"] {
        assert_eq!((a.lease(id), a.is_local(id)), (LeaseState::Live, false), "{id}");
        assert_eq!(a.version(id), b.version(id));
    }
    // Who lives is not replaced by what is older.
    b.engine.replace(registration("unheard", &["sql"]), Precondition::None).wait().unwrap();
    let newest = a.version("unheard");
    assert!(b.version("unheard") > newest);
    b.tell(&a);
    let AgentChange::Put { agent, remaining, .. } = b.engine.changes_after(0, 10).unwrap().pop().unwrap() else {
        panic!("it was registered last")
    };
    let older = RemoteAgent { agent: Agent { version: newest, ..*agent }, remaining };
    assert_eq!(a.engine.absorb_agents(vec![older]).wait().unwrap().ignored, 1);
}

#[test]
fn a_file_does_not_go_back_to_its_own_past_because_its_clock_did() {
    let a = Node::new();
    a.register("thon");
    let AgentChange::Put { agent: past, remaining, .. } = a.engine.changes_after(0, 1).unwrap().remove(0) else {
        panic!("it is registered")
    };
    a.clock.jump_wall_back(FAR);
    a.engine
        .replace(Registration { name: "since".into(), ..registration("thon", &["sql"]) }, Precondition::None)
        .wait()
        .unwrap();
    a.clock.jump_wall(FAR);
    assert!(a.version("thon") < past.version, "its clock could not know");
    // What Redis holds looks as if another file had written it.
    a.engine.fork(a.engine.node_id(), ForkReason::Registry).wait().unwrap();
    a.engine.absorb_agents(vec![RemoteAgent { agent: *past, remaining }]).wait().unwrap();
    assert_eq!(a.engine.agent(&agent_id("thon")).unwrap().agent.name, "since");
    a.engine.heartbeat(&agent_id("thon")).wait().unwrap();
    let now = a.engine.agent(&agent_id("thon")).unwrap();
    assert_eq!((now.agent.name.as_str(), now.local, now.lease), ("since", true, LeaseState::Live));
}

#[test]
fn who_cannot_be_confirmed_is_stale_before_it_is_gone() {
    let (a, b) = (Node::new(), Node::new());
    for id in ["thon", "genesis"] {
        a.register(id);
    }
    a.tell(&b);
    assert_eq!(b.lease("thon"), LeaseState::Live);
    b.engine.registry_link(RegistryLink::Down { stale_for: HOUR * 24 });
    assert_eq!(b.lease("thon"), LeaseState::Stale);
    b.pass(HOUR * 24);
    assert!(b.discovers("thon"), "it stays discoverable while Redis is away");
    assert_eq!(b.lease("thon"), LeaseState::Stale);

    b.engine.registry_link(RegistryLink::Up);
    b.engine.renew_remote(&[(agent_id("thon"), HOUR)]);
    b.engine.registry_link(RegistryLink::Unconfirmed(vec![agent_id("genesis")]));
    assert_eq!((b.lease("thon"), b.lease("genesis")), (LeaseState::Live, LeaseState::Stale));
    b.pass(Duration::from_secs(3_590));
    assert_eq!(b.lease("genesis"), LeaseState::Stale, "for one lease time");
    b.engine.renew_remote(&[(agent_id("thon"), HOUR)]);
    b.pass(Duration::from_secs(20));
    assert_eq!((b.lease("thon"), b.lease("genesis")), (LeaseState::Live, LeaseState::Expired));
    assert_eq!(b.engine.capabilities().unwrap()[&capability("python")], 1);

    // It lives after all: the same document revives it.
    a.tell(&b);
    assert_eq!(b.lease("genesis"), LeaseState::Live);
    b.engine.registry_link(RegistryLink::Down { stale_for: HOUR });
    b.pass(HOUR * 3);
    assert_eq!(b.lease("genesis"), LeaseState::Expired, "not for ever");
    // An expired one may be registered anew by anybody.
    b.register("genesis");
    assert!(b.is_local("genesis"));
}

#[test]
fn a_lease_that_runs_out_is_asked_about_first() {
    let (a, b) = (Node::new(), Node::new());
    a.register("thon");
    a.tell(&b);
    b.pass(HOUR);
    assert_eq!(b.lease("thon"), LeaseState::Stale);
    let (id, _, remaining) = b.engine.remote_agents().pop().unwrap();
    assert_eq!((id, remaining), (agent_id("thon"), Duration::ZERO));
    b.pass(Duration::from_secs(6));
    assert_eq!(b.lease("thon"), LeaseState::Expired);
    assert!(b.engine.remote_agents().is_empty());
}

#[test]
fn remote_agents_unseen_for_thirty_days_are_forgotten() {
    let (a, b) = (Node::new(), Node::new());
    a.register("thon");
    b.register("own");
    a.tell(&b);
    b.pass(HOUR * 2);
    b.engine.heartbeat(&agent_id("own")).wait().unwrap();
    assert_eq!(b.engine.status().unwrap().agents, 2);
    b.pass(HOUR * 24 * 31);
    b.pass(Duration::from_secs(61));
    assert_eq!(b.engine.status().unwrap().agents, 1);
    let filter = AgentFilter { capability: None, availability: None, sort_by: RankBy::AgentId, include_expired: true };
    let left = b.engine.agents(&filter, PageRequest { limit: 10, cursor: None }).unwrap();
    assert_eq!(left.items.len(), 1);
}

/// Of an agent that has been gone for so long nothing is told either, and whoever has its id next begins anew.
#[test]
fn local_agents_that_expired_thirty_days_ago_are_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.redb");
    let node = Node::open(Location::File(path.clone()));
    for id in ["brief", "payer", "observed"] {
        node.register(id);
    }
    node.observe("brief", true);
    node.engine
        .record(NewTransaction { transaction_id: None, facts: facts("payer", "brief", "x", "1") }, None)
        .wait()
        .unwrap();
    node.pass(HOUR * 2);
    let before = node.engine.agent(&agent_id("brief")).unwrap();
    assert_eq!(before.lease, LeaseState::Expired);
    node.pass(HOUR * 24 * 29);
    assert_eq!(node.engine.status().unwrap().agents, 3);
    node.observe("observed", true);
    node.pass(HOUR * 24 * 2);
    node.pass(Duration::from_secs(61));
    assert_eq!(node.engine.status().unwrap().agents, 1);
    assert_eq!(node.lease("observed"), LeaseState::Expired);
    assert!(matches!(node.engine.agent(&agent_id("brief")), Err(Error::Refused(Refusal::AgentNotFound(_)))));
    assert!(matches!(node.engine.heartbeat(&agent_id("brief")).wait(), Err(Error::Refused(Refusal::AgentNotFound(_)))));
    let told: Vec<_> = node.engine.changes_after(0, usize::MAX).unwrap();
    assert_eq!((told.len() as u64, node.engine.changes_len(0).unwrap()), (1, 1));
    let again = node.engine.register(registration("brief", &["python"]), None).wait().unwrap();
    assert!(again.created && again.value.agent.revision > before.agent.revision);
    assert!(again.value.agent.version > before.agent.version);
    assert_eq!(again.value.agent.reputation, Reputation::default());
    node.engine.close();
    assert_clean(&path);
}

#[test]
fn what_others_observe_is_folded_once_and_no_takeover_counts_it_twice() {
    let (a, b, c) = (Node::new(), Node::new(), Node::new());
    a.register("thon");
    a.observe("thon", true);
    a.tell(&b);
    a.tell(&c);
    assert_eq!(b.observe("thon", true).successful_tasks, 2, "as seen from there");
    c.observe("thon", false);
    a.fold_of(&b);
    // What is not acknowledged is told again.
    for _ in 0..2 {
        let seen = c.engine.observations().unwrap().pop().unwrap();
        a.engine.fold_observations(vec![(seen.agent_id, seen.observer, seen.total)]).wait().unwrap();
    }
    let folded = a.reputation("thon");
    assert_eq!((folded.successful_tasks, folded.failed_tasks, folded.total_feedback), (2, 1, 3));
    a.tell(&b);
    a.tell(&c);
    assert_eq!(b.reputation("thon"), folded, "its own part is in the document now");

    b.observe("thon", true);
    c.observe("thon", true);
    c.engine.replace(registration("thon", &["python"]), Precondition::None).wait().unwrap();
    c.fold_of(&a);
    c.fold_of(&b);
    c.tell(&a);
    c.tell(&b);
    for node in [&a, &b, &c] {
        let reputation = node.reputation("thon");
        assert_eq!((reputation.successful_tasks, reputation.failed_tasks), (4, 1));
    }
    // Whoever takes it over next finds that the last owner's own counters are folded.
    let own: Vec<_> =
        c.engine.observations().unwrap().into_iter().map(|own| (own.agent_id, own.observer, own.total)).collect();
    assert!(!own.is_empty());
    b.engine.replace(registration("thon", &["python"]), Precondition::None).wait().unwrap();
    b.engine.fold_observations(own).wait().unwrap();
    b.tell(&a);
    b.tell(&c);
    for node in [&a, &b, &c] {
        assert_eq!((node.reputation("thon").successful_tasks, node.reputation("thon").failed_tasks), (4, 1));
    }
    c.engine.replace(registration("thon", &["python"]), Precondition::None).wait().unwrap();
    c.tell(&b);

    // Deleted and registered anew, it begins anew: old counters are not folded into it.
    c.engine.unregister(agent_id("thon"), Precondition::None).wait().unwrap();
    c.register("thon");
    let seen = b.engine.observations().unwrap();
    assert!(seen.is_empty(), "all of it was acknowledged: {seen:?}");
    assert_eq!(c.reputation("thon"), Reputation::default());
}

#[test]
fn an_observer_that_is_not_alone_under_its_id_goes_on_under_another_with_what_is_not_acknowledged() {
    let (a, b) = (Node::new(), Node::new());
    a.register("thon");
    a.tell(&b);
    b.observe("thon", true);
    a.fold_of(&b);
    b.observe("thon", true);
    let before = b.engine.observations().unwrap().pop().unwrap();
    b.engine.split_observer(agent_id("thon")).wait().unwrap();
    let after = b.engine.observations().unwrap().pop().unwrap();
    assert_ne!(after.observer, before.observer);
    assert_eq!(after.total, Counters { successes: 1, failures: 0, score: 1.0 });
    a.fold_of(&b);
    assert_eq!(a.reputation("thon").successful_tasks, 2);

    // The owner's own part was folded when it was observed, whatever it is called later.
    a.observe("thon", true);
    a.engine.split_observer(agent_id("thon")).wait().unwrap();
    let own = a.engine.observations().unwrap().pop().unwrap();
    a.engine.fold_observations(vec![(own.agent_id, own.observer, own.total)]).wait().unwrap();
    assert_eq!(a.reputation("thon").successful_tasks, 3);
    let baseline: Baseline = a.engine.agent(&agent_id("thon")).unwrap().agent.baseline;
    let counted: u64 = baseline.values().map(|counters| counters.successes).sum();
    assert_eq!(counted, 3);
}

#[test]
fn a_copied_file_steals_no_agents_and_claims_those_that_speak_up() {
    let directory = tempfile::tempdir().unwrap();
    let (original, copy) = (directory.path().join("original.redb"), directory.path().join("copy.redb"));
    {
        let first = Node::open(Location::File(original.clone()));
        for id in ["stays", "moves"] {
            first.register(id);
            first.observe(id, true);
        }
    }
    std::fs::copy(&original, &copy).unwrap();
    let (a, b) = (Node::open(Location::File(original.clone())), Node::open(Location::File(copy.clone())));
    assert_eq!(a.engine.node_id(), b.engine.node_id());
    let minted = b.engine.fork(b.engine.node_id(), ForkReason::Registry).wait().unwrap();
    let identity = b.engine.identity();
    assert_eq!((identity.node_id, identity.earlier), (minted, vec![a.engine.node_id()]));
    assert!(b.is_local("stays") && b.is_local("moves"));
    assert!(b.engine.changes_after(0, 10).unwrap().is_empty() && b.engine.local_leases().is_empty());

    // The original's later word is taken, and does not yet take the agent away.
    a.engine.update(agent_id("moves"), AgentPatch::default(), Precondition::None).wait().unwrap();
    assert!(a.tell(&b).is_empty());
    assert!(b.is_local("moves") && b.version("moves") == a.version("moves"));

    b.engine.heartbeat(&agent_id("moves")).wait().unwrap();
    assert_eq!(b.tell(&a), [agent_id("moves")]);
    assert!(!a.is_local("moves") && a.is_local("stays"));
    b.clock.advance(HOUR * 2);
    b.pass(Duration::from_secs(1));
    a.tell(&b);
    assert!(!b.is_local("stays"), "nobody spoke up here, and it lives there");

    b.observe("moves", true);
    a.engine.close();
    b.engine.close();
    assert_clean(&original);
    assert_clean(&copy);
    let again = Node::open(Location::File(copy));
    assert_eq!(again.engine.identity().node_id, minted);
    assert!(again.is_local("moves") && !again.is_local("stays"));
}

#[test]
fn an_agent_told_again_moves_to_the_end_of_the_changes_and_a_short_lease_is_told_as_it_is() {
    let a = Node::new();
    let mut short = registration("short", &[]);
    short.ttl = Some(Ttl::parse(60).unwrap());
    a.engine.register(short, None).wait().unwrap();
    a.register("long");
    let mut commits = a.engine.commits();
    let before = *commits.borrow_and_update();
    a.engine.touch(agent_id("short"));
    a.engine.drop_remote(Vec::new()).wait().unwrap();
    assert!(commits.has_changed().unwrap() && commits.borrow().change_seq == before.change_seq + 1);
    a.pass(Duration::from_secs(50));
    let changes = a.engine.changes_after(0, 10).unwrap();
    let told: Vec<_> = changes
        .iter()
        .map(|change| match change {
            AgentChange::Put { agent, remaining, .. } => (agent.agent_id.as_str(), remaining.as_secs()),
            AgentChange::Removed { agent_id, .. } => (agent_id.as_str(), 0),
        })
        .collect();
    assert_eq!(told, [("long", 3_550), ("short", 10)]);
    assert_eq!(a.engine.changes_after(changes[0].change_seq(), 10).unwrap(), changes[1..]);
    let shortest = a.engine.local_leases().into_iter().map(|lease| lease.remaining.as_secs()).min();
    assert_eq!(shortest, Some(10));
}

/// Many expired agents of one host give signs of life together, while Redis is told of what changes.
#[test]
fn who_comes_back_is_told_of_as_alive() {
    let node = Node::new();
    let ids: Vec<_> = (0..1_000).map(|number| agent_id(&format!("agent-{number}"))).collect();
    let of_a_minute = |id: &tradepost::domain::AgentId| Registration {
        ttl: Some(Ttl::parse(60).unwrap()),
        ..registration(id.as_str(), &["python"])
    };
    let registered: Vec<_> = ids.iter().map(|id| node.engine.register(of_a_minute(id), None)).collect();
    registered.into_iter().for_each(|pending| drop(pending.wait().unwrap()));
    for round in 0..5 {
        node.clock.advance(2 * Duration::from_secs(60));
        // The writer ends leases between commands.
        while !ids.iter().all(|id| node.engine.agent(id).unwrap().agent.expired) {
            node.engine.observe_outcome(ids[0].clone(), true, Weight::default(), None).wait().unwrap();
        }
        let commits = node.engine.commits();
        let mut told = commits.borrow().change_seq;
        std::thread::scope(|scope| {
            let reviving = scope.spawn(|| {
                for wave in ids.chunks(50) {
                    let heartbeats: Vec<_> = wave.iter().map(|id| node.engine.heartbeat(id)).collect();
                    for heartbeat in heartbeats {
                        heartbeat.wait().unwrap();
                    }
                }
            });
            loop {
                let is_last = reviving.is_finished();
                let changes = node.engine.changes_after(told, usize::MAX).unwrap();
                told = changes.last().map_or(told, AgentChange::change_seq);
                for change in changes {
                    if let AgentChange::Put { agent, remaining, .. } = change {
                        assert!(!remaining.is_zero() || agent.expired, "round {round}: {}", agent.agent_id);
                    }
                }
                if is_last {
                    break;
                }
            }
        });
    }
}
