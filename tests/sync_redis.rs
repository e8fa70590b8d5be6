//! Nodes that share a registry over a real Redis: what one does, the others see, and whatever happens to Redis heals.

mod common;
#[path = "sync_redis/node.rs"]
mod node;

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::clock::ManualClock;
use common::proxy::{Link, Moment, Proxy};
use common::redis::RedisServer;
use common::{agent_id, capability, money, registration};
use node::{Node, wait};
use serde_json::Value;
use tempfile::TempDir;
use tradepost::clock::{Clock, SystemClock};
use tradepost::domain::ranking::SearchQuery;
use tradepost::domain::version::{HIGHEST_TOLD, highest_believed};
use tradepost::domain::{Agent, AgentPatch, AgentVersion, Delta, JsonObject, NodeId, Registration};
use tradepost::engine::replica::{Sink, SinkRequest, SinkState};
use tradepost::sync::redis::document;
use tradepost::{Engine, LeaseState, Location, Options, PageRequest, Precondition};

fn discovers(node: &Node, id: &str) -> bool {
    let query = SearchQuery { capabilities: vec![capability("python")], ..SearchQuery::default() };
    node.engine.search(&query, 100).expect("a search").iter().any(|profile| profile.agent.agent_id == agent_id(id))
}

fn exists(server: &RedisServer, key: &str) -> bool {
    server.command::<i64>(&["EXISTS", key]) == 1
}

fn is_member(server: &RedisServer, set: &str, id: &str) -> bool {
    server.command::<i64>(&["SISMEMBER", set, id]) == 1
}

#[test]
fn what_one_node_registers_changes_and_deletes_the_other_sees() {
    let server = RedisServer::start();
    let (a, b) = (Node::start(&server.url()), Node::start(&server.url()));
    let metadata = JsonObject::parse(r#"{"price":1.10,"n":123456789012345678901234567890}"#).expect("a test's own");
    let cost_per_task = money("0.000000001");
    let thon = Registration { cost_per_task, metadata, ..registration("thon", &["python", "rust"]) };
    let told = a.engine.register(thon, None).wait().expect("registered").value.agent;
    wait("the agent at B", || discovers(&b, "thon"));
    let seen = b.profile("thon").expect("discovered");
    assert!(!seen.local && seen.lease == LeaseState::Live);
    let expires_at = seen.agent.expires_at;
    assert_eq!(tradepost::domain::Agent { expires_at, ..told }, seen.agent);

    let patch = AgentPatch { name: Some("Thon II".into()), ..AgentPatch::default() };
    a.engine.update(agent_id("thon"), patch, Precondition::default()).wait().expect("changed");
    wait("the change at B", || b.profile("thon").is_some_and(|profile| profile.agent.name == "Thon II"));

    a.engine.unregister(agent_id("thon"), Precondition::default()).wait().expect("deleted");
    wait("the deletion at B", || b.profile("thon").is_none());
    assert!(!exists(&server, "agent:thon") && !is_member(&server, "agents:capabilities:rust", "thon"));
}

#[test]
fn a_lease_ends_everywhere_with_its_heartbeats_and_not_before() {
    let server = RedisServer::start();
    let (a, b) = (Node::start(&server.url()), Node::start(&server.url()));
    a.register("thon", 3);
    a.register("other", 3);
    wait("the agents at B", || discovers(&b, "thon") && discovers(&b, "other"));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(8) {
        a.engine.heartbeat(&agent_id("thon")).wait().expect("alive");
        assert!(discovers(&b, "thon"), "lost after {:?}", begun.elapsed());
        thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(b.waits_for_lease("other", LeaseState::Expired).agent.name, "OTHER");
    b.waits_for_lease("thon", LeaseState::Expired);
    wait("the index to be cleaned", || !is_member(&server, "agents:all", "thon"));
    wait("the sets to be cleaned", || !is_member(&server, "agents:capabilities:python", "thon"));
}

#[test]
fn a_heartbeat_in_the_last_moment_of_a_lease_reaches_redis_in_time() {
    let server = RedisServer::start();
    let (a, b) = (Node::start(&server.url()), Node::start(&server.url()));
    let mut last = Instant::now();
    a.register("late", 4);
    wait("the agent at B", || discovers(&b, "late"));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(13) {
        if last.elapsed() > Duration::from_millis(3_400) {
            a.engine.heartbeat(&agent_id("late")).wait().expect("alive");
            last = Instant::now();
        }
        assert!(exists(&server, "agent:late") && discovers(&b, "late"), "lost after {:?}", begun.elapsed());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_stream_that_was_cut_or_deleted_hides_nothing() {
    let server = RedisServer::start();
    let (a, b) = (Node::start(&server.url()), Node::start(&server.url()));
    a.register("first", 3_600);
    wait("the first at B", || discovers(&b, "first"));
    let b_engine = b.stop();
    for number in 0..50 {
        a.register(&format!("cut{number}"), 3_600);
    }
    a.engine.unregister(agent_id("first"), Precondition::default()).wait().expect("deleted");
    a.settled();
    server.command::<()>(&["XTRIM", "tradepost:changes", "MAXLEN", "1"]);
    let b = Node::start_with(b_engine, &server.url());
    wait("all that was cut off", || (0..50).all(|number| discovers(&b, &format!("cut{number}"))));
    wait("the deletion", || !discovers(&b, "first"));

    server.command::<()>(&["DEL", "tradepost:changes"]);
    a.register("after", 3_600);
    wait("what came after", || discovers(&b, "after"));
}

#[test]
fn the_newest_registration_wins_and_the_old_host_learns_it() {
    let server = RedisServer::start();
    let (a, b) = (Node::start(&server.url()), Node::start(&server.url()));
    a.register("thon", 3_600);
    wait("the agent at B", || discovers(&b, "thon"));
    let moved = Registration { name: "moved".into(), ..registration("thon", &["python"]) };
    assert!(b.engine.replace(moved, Precondition::default()).wait().expect("taken over").value.local);
    wait("A to learn it", || a.profile("thon").is_some_and(|seen| !seen.local && seen.agent.name == "moved"));
    wait("a note", || a.status().notes.iter().any(|note| note.contains("thon")));
    assert!(a.engine.heartbeat(&agent_id("thon")).wait().is_err());

    // The old host was away meanwhile and comes back with a change of its own.
    let engine = a.stop();
    let newest = Registration { name: "newest".into(), ..registration("thon", &["python"]) };
    b.engine.replace(newest, Precondition::default()).wait().expect("registered anew");
    b.settled();
    let a = Node::start_with(engine, &server.url());
    wait("A to follow", || a.profile("thon").is_some_and(|seen| seen.agent.name == "newest"));
}

#[test]
fn what_others_observe_is_folded_once_across_a_takeover_restarts_and_a_loss_of_all_data() {
    let server = RedisServer::start();
    let directory = TempDir::new().expect("a directory");
    let place = || Location::File(directory.path().join("a.redb"));
    let a = Node::start_at(place(), &server.url());
    let b = Node::start(&server.url());
    let c = Node::start(&server.url());
    a.register("thon", 3_600);
    wait("the agent at B and C", || discovers(&b, "thon") && discovers(&c, "thon"));
    for _ in 0..3 {
        b.observe("thon", true);
    }
    c.observe("thon", false);
    a.observe("thon", true);
    for (node, name) in [(&a, "A"), (&b, "B"), (&c, "C")] {
        wait(&format!("all outcomes at {name}"), || node.counts("thon") == Some((5, 4, 1)));
    }

    let engine = a.stop();
    engine.close();
    drop(engine);
    let a = Node::start_at(place(), &server.url());
    b.observe("thon", true);
    wait("one more after A's restart", || a.counts("thon") == Some((6, 5, 1)));

    c.engine.replace(registration("thon", &["python"]), Precondition::default()).wait().expect("taken over");
    wait("A to learn it", || a.profile("thon").is_some_and(|seen| !seen.local));
    a.observe("thon", false);
    b.observe("thon", false);
    for (node, name) in [(&a, "A"), (&b, "B"), (&c, "C")] {
        wait(&format!("all outcomes at {name} after the takeover"), || node.counts("thon") == Some((8, 5, 3)));
    }

    server.flush_all();
    wait("the agent to be back", || exists(&server, "agent:thon"));
    b.observe("thon", true);
    for (node, name) in [(&a, "A"), (&b, "B"), (&c, "C")] {
        wait(&format!("all outcomes at {name} after the loss"), || node.counts("thon") == Some((9, 6, 3)));
        node.settled();
    }
    // Three observers, and how often they wrote.
    wait("everybody's counters", || server.command::<i64>(&["HLEN", "tradepost:outcomes:thon"]) == 4);
    assert_eq!(a.counts("thon"), Some((9, 6, 3)));
}

#[test]
fn whoever_takes_an_agent_over_folds_what_was_observed_while_nobody_owned_it() {
    let server = RedisServer::start();
    let (a, b, c) = (Node::start(&server.url()), Node::start(&server.url()), Node::start(&server.url()));
    a.register("thon", 3_600);
    wait("the agent at B and C", || discovers(&b, "thon") && discovers(&c, "thon"));
    drop(a.stop());
    b.observe("thon", true);
    b.observe("thon", false);
    b.settled();
    c.engine.replace(registration("thon", &["python"]), Precondition::default()).wait().expect("taken over");
    wait("the outcomes at C", || c.counts("thon") == Some((2, 1, 1)));
}

#[test]
fn idle_nodes_refill_a_redis_that_was_emptied_or_replaced() {
    let mut server = RedisServer::start();
    let (a, b) = (Node::start(&server.url()), Node::start(&server.url()));
    a.register("thon", 3_600);
    b.register("other", 3_600);
    wait("both at both", || discovers(&a, "other") && discovers(&b, "thon"));
    a.engine.register(registration("deleted", &["python"]), None).wait().expect("registered");
    a.engine.unregister(agent_id("deleted"), Precondition::default()).wait().expect("deleted");
    a.settled();
    for loss in ["flush", "restart"] {
        match loss {
            "flush" => server.flush_all(),
            _ => server.restart_empty(),
        }
        wait(loss, || exists(&server, "agent:thon") && exists(&server, "agent:other"));
        assert!(is_member(&server, "agents:capabilities:python", "other"));
        wait("the deletion", || exists(&server, "tradepost:version:deleted"));
        for (node, id) in [(&a, "other"), (&b, "thon")] {
            node.waits_for_lease(id, LeaseState::Live);
            node.waits_for_state(SinkState::Live);
        }
    }
}

#[test]
fn a_document_or_an_index_entry_that_vanishes_is_told_again_without_a_write() {
    let server = RedisServer::start();
    let (a, b) = (Node::start(&server.url()), Node::start(&server.url()));
    for id in ["deleted", "unlisted"] {
        a.register(id, 3_600);
        wait("the agent at B", || discovers(&b, id));
    }
    a.settled();
    server.command::<()>(&["DEL", "agent:deleted"]);
    server.command::<()>(&["SREM", "agents:all", "unlisted"]);
    server.command::<()>(&["SREM", "agents:capabilities:python", "unlisted"]);
    wait("the document", || exists(&server, "agent:deleted"));
    for id in ["deleted", "unlisted"] {
        for set in ["agents:all", "agents:capabilities:python"] {
            wait(set, || is_member(&server, set, id));
        }
        wait("the agent at B", || discovers(&b, id));
    }
    wait("a note", || a.status().notes.iter().any(|note| note.contains("vanished")));
}

#[test]
fn absence_is_not_death_while_redis_is_away_or_has_lost_everything() {
    let mut server = RedisServer::start();
    let (a, b) = (Node::start(&server.url()), Node::start(&server.url()));
    a.register("thon", 5);
    wait("the agent at B", || discovers(&b, "thon"));
    let a_engine = a.stop();
    server.kill();
    b.waits_for_lease("thon", LeaseState::Stale);
    thread::sleep(Duration::from_secs(7));
    assert!(discovers(&b, "thon"), "past its lease, while Redis is away");
    server.start_empty();
    b.waits_for_state(SinkState::Live);
    assert_eq!(b.profile("thon").expect("held").lease, LeaseState::Stale, "unconfirmed for one lease time");
    b.waits_for_lease("thon", LeaseState::Expired);
    // It was there all the time.
    drop(a_engine.heartbeat(&agent_id("thon")).wait());
    let _a = Node::start_with(a_engine, &server.url());
    b.waits_for_lease("thon", LeaseState::Live);
}

#[test]
fn an_older_clients_agent_is_discovered_followed_and_may_be_taken_over() {
    let server = RedisServer::start();
    let a = Node::start(&server.url());
    a.settled();
    let profile = |status: &str| {
        format!(
            r#"{{"agent_id": "old", "name": "Old", "capabilities": ["python"],
            "pricing": {{"cost_per_task": 18.5, "currency": "USD", "billing_notes": null}},
            "availability": {{"status": "{status}", "capacity_per_hour": 30, "last_updated": "2026-01-01T00:00:00"}},
            "reputation": {{"score": 4.5, "total_feedback": 1, "successful_tasks": 1, "failed_tasks": 0}},
            "metadata": {{}}}}"#
        )
    };
    let write = |status: &str| {
        server.command::<()>(&["SET", "agent:old", &profile(status), "EX", "600"]);
        server.command::<()>(&["SADD", "agents:all", "old"]);
        server.command::<()>(&["SADD", "agents:capabilities:python", "old"]);
    };
    write("online");
    wait("the agent", || discovers(&a, "old"));
    let seen = a.profile("old").expect("discovered");
    assert!(!seen.local);
    assert_eq!((seen.agent.cost_per_task, seen.agent.reputation.score), (money("18.5"), 4.5));
    write("busy");
    wait("its change", || a.profile("old").is_some_and(|seen| seen.agent.availability.as_str() == "busy"));
    a.engine.replace(registration("old", &["python"]), Precondition::default()).wait().expect("taken over");
    a.settled();
    let text: String = server.command(&["GET", "agent:old"]);
    assert!(text.contains("tradepost"));

    // It writes over ours, not knowing better: ours is put back when its lease is renewed, at the latest.
    let b = Node::start(&server.url());
    write("offline");
    a.engine.sinks().request(Sink::Redis, SinkRequest::Resync);
    wait("ours again", || server.command::<String>(&["GET", "agent:old"]).contains("tradepost"));
    wait("ours at B", || b.profile("old").is_some_and(|seen| seen.agent.version.node_id == a.engine.node_id()));

    // Nor does one that keeps what it does not know, and writes the JSON down in its own manner.
    let (ours, node_id) = (server.command::<String>(&["GET", "agent:old"]), a.engine.node_id());
    let changed = ours.replace("\"online\"", "\"busy\"").replace("\":", "\": ");
    assert_ne!(ours, changed);
    server.command::<()>(&["SET", "agent:old", &changed, "EX", "600"]);
    a.engine.sinks().request(Sink::Redis, SinkRequest::Resync);
    wait("ours once more", || server.command::<String>(&["GET", "agent:old"]) == ours);
    assert_eq!(a.engine.node_id(), node_id, "that is no fork");

    server.command::<()>(&["DEL", "agent:gone"]);
    write("online");
    server.command::<()>(&["SADD", "agents:all", "gone"]);
    wait("an id without a document to go", || !is_member(&server, "agents:all", "gone"));
}

#[test]
fn hostile_documents_and_entries_are_noted_and_nothing_of_them_is_taken() {
    let server = RedisServer::start();
    let a = Node::start(&server.url());
    for (id, text) in [("x", "{"), ("y", r#"{"agent_id":"z","name":"Z"}"#), ("w", r#"{"agent_id":"w","name":""}"#)] {
        server.command::<()>(&["SET", &format!("agent:{id}"), text]);
        server.command::<()>(&["SADD", "agents:all", id]);
    }
    server.command::<()>(&["SADD", "agents:all", "a\u{0}b", ""]);
    server.command::<String>(&["XADD", "tradepost:changes", "*", "agent_id", "x", "version", "9", "kind", "put"]);
    server.command::<String>(&["XADD", "tradepost:changes", "*", "nothing", "of", "ours", "at"]);
    server.command::<()>(&["LPUSH", "agents:capabilities:list", "x"]);
    wait("notes", || a.status().notes.iter().any(|note| note.contains("3 documents")));
    a.register("thon", 3_600);
    a.settled();
    for id in ["w", "x", "y", "z"] {
        assert!(a.profile(id).is_none(), "{id}");
    }
}

#[test]
fn an_unreadable_document_of_a_newer_version_parks_the_agent_until_it_is_gone() {
    let server = RedisServer::start();
    let (a, b) = (Node::start(&server.url()), Node::start(&server.url()));
    let in_a_while = SystemClock::default().now().after(Duration::from_secs(1_000));
    let theirs = AgentVersion::begin(in_a_while, 0, NodeId::from_bytes([9; 16]));
    let large = "x".repeat(2 * 1024 * 1024);
    for (id, text) in [("damaged", "garbage"), ("large", &large)] {
        server.command::<()>(&["SET", &format!("agent:{id}"), text]);
        server.command::<()>(&["SET", &format!("tradepost:version:{id}"), &format!("{}+", theirs.to_wire())]);
        server.command::<()>(&["SADD", "agents:all", id]);
        a.register(id, 3_600);
    }
    wait("both parked", || a.status().parked == 2);
    let page = a.engine.parked(Sink::Redis, PageRequest { limit: 10, cursor: None }).expect("the store can be read");
    for entry in page.items {
        assert!(entry.reason.contains("a newer version, whose document cannot be taken"), "{entry:?}");
    }
    for id in ["damaged", "large"] {
        server.command::<()>(&["DEL", &format!("agent:{id}"), &format!("tradepost:version:{id}")]);
    }
    a.engine.sinks().request(Sink::Redis, SinkRequest::Retry);
    wait("both at B", || discovers(&b, "damaged") && discovers(&b, "large"));
    assert_eq!(a.status().parked, 0);
}

/// Tells of an agent of a node that is not there, as itself did.
fn scribble(server: &RedisServer, a: &Node, id: &str, version: AgentVersion) {
    let donor = a.profile("donor").expect("registered").agent;
    let forged = Agent { agent_id: agent_id(id), version, ..donor };
    server.command::<()>(&["SET", &format!("agent:{id}"), &document::write(&forged), "EX", "3600"]);
    server.command::<()>(&["SET", &format!("tradepost:version:{id}"), &format!("{}+", version.to_wire())]);
    server.command::<()>(&["SADD", "agents:all", id]);
}

#[test]
fn no_version_from_elsewhere_keeps_an_agent_from_its_next_owner() {
    let server = RedisServer::start();
    let (a, b) = (Node::start(&server.url()), Node::start(&server.url()));
    a.register("donor", 3_600);
    a.register("mine", 3_600);
    wait("the agents at B", || discovers(&b, "donor") && discovers(&b, "mine"));
    a.settled();
    let theirs = |epoch| AgentVersion { epoch, seq: HIGHEST_TOLD, node_id: NodeId::from_bytes([9; 16]) };
    scribble(&server, &a, "highest", theirs(highest_believed(SystemClock::default().now())));
    scribble(&server, &a, "beyond", theirs(HIGHEST_TOLD));
    wait("the believed one", || discovers(&a, "highest") && discovers(&b, "highest"));
    wait("a note", || a.status().notes.iter().any(|note| note.contains("ahead of this node's clock")));
    scribble(&server, &a, "mine", theirs(HIGHEST_TOLD));
    for id in ["highest", "beyond", "mine"] {
        let profile = Registration { name: "back".into(), ..registration(id, &["python"]) };
        assert!(a.engine.replace(profile, Precondition::default()).wait().expect("registered").value.local);
        wait(&format!("{id} at B"), || b.profile(id).is_some_and(|seen| seen.agent.name == "back"));
        assert!(a.profile(id).is_some_and(|seen| seen.local), "{id}");
    }
    assert_eq!(a.status().parked, 0);
}

#[test]
fn an_agent_that_was_registered_by_a_clock_far_ahead_is_seen_once_the_clock_is_right() {
    let server = RedisServer::start();
    let b = Node::start(&server.url());
    let far = Duration::from_secs(10 * 365 * 24 * 3_600);
    let clock = ManualClock::at(SystemClock::default().now().after(far).as_micros());
    let options = Options { clock: Arc::clone(&clock) as _, ..Options::new(Location::Memory) };
    let engine = Engine::open(options).expect("the store opens");
    engine.register(registration("thon", &["python"]), None).wait().expect("registered");
    let a = Node::start_on(engine, Arc::clone(&clock) as _, &server.url());
    wait("the document", || exists(&server, "agent:thon"));
    a.settled();
    clock.jump_wall_back(far);
    let engine = a.stop();
    assert!(!discovers(&b, "thon"), "nobody believes it");
    // What was told is not news; the next renewal, or the next connection, finds out.
    let _a = Node::start_on(engine, clock, &server.url());
    wait("the agent at B", || discovers(&b, "thon"));
}

#[test]
fn what_ended_here_unseen_shows_what_it_says_of_itself_when_it_comes_back() {
    let server = RedisServer::start();
    let (a, b) = (Node::start(&server.url()), Node::start(&server.url()));
    a.register("thon", 3_600);
    wait("the agent at B", || discovers(&b, "thon"));
    let engine = a.stop();
    let moved = Registration { name: "moved".into(), ..registration("thon", &["python"]) };
    b.engine.replace(moved, Precondition::default()).wait().expect("taken over");
    b.settled();
    drop(b.stop());
    let document: String = server.command(&["GET", "agent:thon"]);
    server.command::<()>(&["DEL", "agent:thon"]);
    engine.update(agent_id("thon"), AgentPatch::default(), Precondition::default()).wait().expect("it is local");
    let a = Node::start_with(engine, &server.url());
    wait("the old host to learn it", || a.profile("thon").is_some_and(|seen| !seen.local));
    server.command::<()>(&["SET", "agent:thon", &document, "EX", "3600"]);
    a.engine.sinks().request(Sink::Redis, SinkRequest::Resync);
    wait("the agent as it is", || {
        a.profile("thon").is_some_and(|seen| seen.lease == LeaseState::Live && seen.agent.name == "moved")
    });
}

/// Two nodes: an agent's own, and one that has observed one outcome of it, which Redis and the first have taken in.
fn owner_and_observer(server: &RedisServer) -> (Node, Node) {
    let (a, b) = (Node::start(&server.url()), Node::start(&server.url()));
    a.register("thon", 3_600);
    wait("the agent at B", || discovers(&b, "thon"));
    b.observe("thon", true);
    wait("the first outcome at its owner", || a.counts("thon") == Some((1, 1, 0)));
    b.settled();
    (a, b)
}

#[test]
fn what_was_observed_is_told_again_to_a_redis_that_went_back() {
    let server = RedisServer::start();
    let (a, b) = owner_and_observer(&server);
    let key = "tradepost:outcomes:thon";
    let (observer, before): (String, String) = {
        let fields: Vec<String> = server.command(&["HGETALL", key]);
        let pairs = fields.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone()));
        pairs.into_iter().find(|(field, _)| field != "written").expect("it is stored")
    };
    // Its owner hears nothing of what comes next before it is gone.
    let engine = a.stop();
    b.observe("thon", true);
    b.observe("thon", false);
    b.settled();
    server.command::<()>(&["HSET", key, &observer, &before]);
    let other = b.stop();
    let (a, b) = (Node::start_with(engine, &server.url()), Node::start_with(other, &server.url()));
    wait("all outcomes at the owner", || a.counts("thon") == Some((3, 2, 1)));
    wait("all outcomes at B", || b.counts("thon") == Some((3, 2, 1)));
}

/// A correction moves the score and no count, so nothing but the score tells that Redis is behind.
#[test]
fn a_correction_is_told_again_to_a_redis_that_went_back() {
    let server = RedisServer::start();
    let (a, b) = owner_and_observer(&server);
    let key = "tradepost:outcomes:thon";
    let before: Vec<String> = server.command(&["HGETALL", key]);
    let score = |node: &Node| node.profile("thon").map(|profile| profile.agent.reputation.shown_score());
    let first = score(&a).expect("it is there");
    b.engine.adjust_reputation(agent_id("thon"), Delta::parse(1.5).unwrap(), None).wait().unwrap();
    wait("the correction at its owner", || score(&a) == Some(first + 1.5));
    b.settled();
    let (engine, other) = (a.stop(), b.stop());
    for pair in before.chunks(2) {
        server.command::<()>(&["HSET", key, &pair[0], &pair[1]]);
    }
    let (a, b) = (Node::start_with(engine, &server.url()), Node::start_with(other, &server.url()));
    let told = format!(":{:?}", b.engine.all_observations().unwrap()[0].total.score);
    wait("the correction in Redis", || {
        server.command::<Vec<String>>(&["HVALS", key]).iter().any(|counters| counters.ends_with(&told))
    });
    // Its owner cannot tell a correction that is gone from one that takes it back, until it is told once more.
    wait("the correction at both", || (score(&a), score(&b)) == (Some(first + 1.5), Some(first + 1.5)));
}

/// The link breaks just when Redis has taken an outcome, and its observer goes on without having heard of that, through a
/// restart too.
#[test]
fn outcomes_whose_acknowledgement_was_lost_count_once() {
    let server = RedisServer::start();
    let proxy = Proxy::before(server.port());
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let (a, b) = (Node::start(&server.url()), Node::start(&url));
    a.register("thon", 3_600);
    wait("the agent at B", || discovers(&b, "thon"));
    b.settled();
    proxy.set(Link::CutAt { word: "tradepost:bell:thon", moment: Moment::After });
    b.observe("thon", true);
    wait("the cut", || proxy.cuts() == 1);
    proxy.set(Link::Cut);
    wait("the first at its owner", || a.counts("thon") == Some((1, 1, 0)));
    b.observe("thon", true);
    let b = Node::start_with(b.stop(), &url);
    b.observe("thon", false);
    proxy.set(Link::Up);
    wait("all of them at its owner", || a.counts("thon").is_some_and(|(count, ..)| count >= 3));
    b.settled();
    wait("all of them at B", || b.counts("thon") == Some((3, 2, 1)));
    assert_eq!(a.counts("thon"), Some((3, 2, 1)));
    let observers = server.command::<Vec<String>>(&["HKEYS", "tradepost:outcomes:thon"]);
    assert_eq!(observers.iter().filter(|field| *field != "written").count(), 1, "{observers:?}");
}

#[test]
fn whatever_lies_in_the_place_of_the_nonce_stops_nobody() {
    let server = RedisServer::start();
    let a = Node::start(&server.url());
    a.settled();
    let large = "x".repeat(8 * 1024 * 1024);
    let scribbles: [&[&str]; 4] = [
        &["EVAL", r"return redis.call('SET', KEYS[1], '\255\254')", "1", "tradepost:epoch"],
        &["SET", "tradepost:epoch", &large],
        &["SET", "tradepost:epoch", ""],
        &["LPUSH", "tradepost:epoch", "x"],
    ];
    for (number, scribble) in scribbles.into_iter().enumerate() {
        let id = format!("after{number}");
        server.command::<()>(&["DEL", "tradepost:epoch"]);
        server.command::<redis::Value>(scribble);
        let b = Node::start(&server.url());
        a.register(&id, 3_600);
        wait(&format!("the agent at B after {:?}", scribble[0]), || discovers(&b, &id));
        b.register(&format!("{id}b"), 3_600);
        wait("the other agent at A", || discovers(&a, &format!("{id}b")));
        b.waits_for_state(SinkState::Live);
    }
    wait("A to notice", || a.status().notes.iter().any(|note| note.contains("replaced")));
    a.waits_for_state(SinkState::Live);
}

#[test]
fn documents_beyond_all_measure_stop_nothing() {
    let server = RedisServer::start();
    let large = "x".repeat(2 * 1024 * 1024);
    for number in 0..40 {
        let id = format!("large{number}");
        server.command::<()>(&["SET", &format!("agent:{id}"), &large]);
        server.command::<()>(&["SADD", "agents:all", &id]);
    }
    let (a, b) = (Node::start(&server.url()), Node::start(&server.url()));
    a.register("thon", 3_600);
    wait("the agent at B", || discovers(&b, "thon"));
    wait("notes", || b.status().notes.iter().any(|note| note.contains("40 documents")));
    b.waits_for_state(SinkState::Live);
}

#[test]
fn every_refusal_shows_its_state_and_heals_by_itself() {
    let server = RedisServer::start();
    let a = Node::start(&server.url());
    a.settled();
    server.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    a.register("full", 3_600);
    let status = a.waits_for_state(SinkState::Halted);
    assert!(status.last_error.as_ref().is_some_and(|error| error.contains("OOM")), "{status:?}");
    wait("what waits to show", || a.status().backlog == 1);
    server.command::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    wait("the agent", || exists(&server, "agent:full"));

    let leader = RedisServer::start();
    server.follow(&leader);
    a.register("read-only", 3_600);
    let status = a.waits_for_state(SinkState::Backoff);
    assert!(status.last_error.as_ref().is_some_and(|error| error.contains("READONLY")), "{status:?}");
    server.promote();
    wait("both agents", || exists(&server, "agent:full") && exists(&server, "agent:read-only"));

    server.pause();
    a.register("stalled", 3_600);
    a.waits_for_state(SinkState::Backoff);
    server.resume();
    wait("the third agent", || exists(&server, "agent:stalled"));

    server.command::<()>(&["LPUSH", "agent:list", "x"]);
    a.register("list", 3_600);
    a.register("after", 3_600);
    wait("a parked agent, and the next one", || a.status().parked == 1 && exists(&server, "agent:after"));
    server.command::<()>(&["DEL", "agent:list"]);
    a.engine.sinks().request(Sink::Redis, SinkRequest::Retry);
    wait("the parked agent", || {
        a.status().parked == 0 && server.command::<String>(&["TYPE", "agent:list"]) == "string"
    });

    server.command::<()>(&["DEL", "agents:all"]);
    server.command::<()>(&["SET", "agents:all", "x"]);
    a.register("shared", 3_600);
    let status = a.waits_for_state(SinkState::Halted);
    assert!(status.last_error.as_ref().is_some_and(|error| error.contains("agents:all")), "{status:?}");
    assert_eq!(status.parked, 0);
    server.command::<()>(&["DEL", "agents:all"]);
    wait("the shared index", || is_member(&server, "agents:all", "shared"));
}

#[test]
fn a_user_with_the_least_rights_and_a_password_serves_and_a_wrong_password_halts_without_telling_it() {
    let server = RedisServer::start();
    server.set_user("tradepost", LEAST_RIGHTS);
    let a = Node::start(&server.url_with("tradepost:s3cret@"));
    let b = Node::start(&server.url_with("tradepost:s3cret@"));
    a.register("thon", 3_600);
    wait("the agent at B", || discovers(&b, "thon"));
    b.observe("thon", true);
    wait("the outcome at A", || a.counts("thon") == Some((1, 1, 0)));
    a.engine.unregister(agent_id("thon"), Precondition::default()).wait().expect("deleted");
    wait("the deletion at B", || b.profile("thon").is_none());

    let wrong = Node::start(&server.url_with("tradepost:wr0ng@"));
    let status = wrong.waits_for_state(SinkState::Halted);
    let told = status.last_error.clone().unwrap_or_default();
    assert!(told.contains("WRONGPASS") && !told.contains("wr0ng"), "{told}");
}

/// What the operations page grants.
const LEAST_RIGHTS: &[&str] = &[
    "on",
    ">s3cret",
    "~agent:*",
    "~agents:*",
    "~tradepost:*",
    "&tradepost:bell:*",
    "+@connection",
    "+info",
    "+script|load",
    "+evalsha",
    "+get",
    "+mget",
    "+set",
    "+setnx",
    "+del",
    "+exists",
    "+type",
    "+pttl",
    "+pexpire",
    "+sadd",
    "+srem",
    "+sscan",
    "+scan",
    "+hget",
    "+hscan",
    "+strlen",
    "+getrange",
    "+hset",
    "+hincrby",
    "+xadd",
    "+xread",
    "+xinfo|stream",
    "+publish",
    "+subscribe",
    "+unsubscribe",
];

#[test]
fn what_is_written_parses_under_the_older_clients_strict_rules() {
    let server = RedisServer::start();
    let a = Node::start(&server.url());
    a.register("thon", 3_600);
    a.settled();
    let text: String = server.command(&["GET", "agent:thon"]);
    let document: Value = serde_json::from_str(&text).expect("JSON");
    let names = |value: &Value| -> Vec<String> {
        let mut names: Vec<String> = value.as_object().expect("an object").keys().cloned().collect();
        names.sort();
        names
    };
    assert_eq!(names(&document["pricing"]), ["billing_notes", "cost_per_task", "currency"]);
    assert_eq!(names(&document["availability"]), ["capacity_per_hour", "last_updated", "status"]);
    assert_eq!(names(&document["reputation"]), ["failed_tasks", "score", "successful_tasks", "total_feedback"]);
    assert!(is_member(&server, "agents:all", "thon") && is_member(&server, "agents:capabilities:python", "thon"));
    let pttl: i64 = server.command(&["PTTL", "agent:thon"]);
    assert!((3_500_000..=3_600_000).contains(&pttl), "{pttl}");
}

/// The file of a node that has told of its agent, and a copy of it.
fn original_and_copy(directory: &TempDir, server: &RedisServer, agent: &str) -> [Location; 2] {
    let files = ["a.redb", "b.redb"].map(|name| directory.path().join(name));
    let node = Node::start_at(Location::File(files[0].clone()), &server.url());
    node.register(agent, 3_600);
    node.settled();
    node.stop().close();
    fs::copy(&files[0], &files[1]).expect("a copy");
    files.map(Location::File)
}

#[test]
fn a_copy_of_a_file_becomes_a_node_of_its_own_and_steals_no_agent() {
    let server = RedisServer::start();
    let directory = TempDir::new().expect("a directory");
    let [original, copy] = original_and_copy(&directory, &server, "thon");
    let a = Node::start_at(original, &server.url());
    let patch = AgentPatch { name: Some("of the original".into()), ..AgentPatch::default() };
    a.engine.update(agent_id("thon"), patch, Precondition::default()).wait().expect("changed");
    a.settled();
    let b = Node::start_at(copy, &server.url());
    wait("the copy to fork", || b.engine.node_id() != a.engine.node_id());
    wait("the copy to see the original's agent", || {
        b.profile("thon").is_some_and(|seen| seen.agent.name == "of the original")
    });
    b.settled();
    let text: String = server.command(&["GET", "agent:thon"]);
    assert!(text.contains("of the original") && a.profile("thon").is_some_and(|seen| seen.local));
    wait("it to be told", || b.status().notes.iter().any(|note| note.contains("went on as a new node")));
}

#[test]
fn a_copy_that_finds_the_originals_new_agent_only_by_searching_becomes_a_node_of_its_own() {
    let server = RedisServer::start();
    let directory = TempDir::new().expect("a directory");
    let [original, copy] = original_and_copy(&directory, &server, "old");
    let a = Node::start_at(original, &server.url());
    a.register("new", 3_600);
    a.settled();
    server.command::<()>(&["XTRIM", "tradepost:changes", "MAXLEN", "0"]);
    let b = Node::start_at(copy, &server.url());
    wait("the copy to fork", || b.engine.node_id() != a.engine.node_id());
    wait("the copy to see the new agent", || b.profile("new").is_some_and(|seen| !seen.local));
    b.register("copied", 3_600);
    wait("the copy's agent at the original", || discovers(&a, "copied"));
    b.settled();
    for id in ["old", "new"] {
        assert!(a.profile(id).is_some_and(|seen| seen.local), "{id}");
        assert!(exists(&server, &format!("agent:{id}")) && discovers(&a, id) && discovers(&b, id), "{id}");
    }
}

#[test]
fn a_failover_to_an_older_replica_brings_nothing_back_and_loses_nothing() {
    let mut server = RedisServer::start();
    let (a, b) = (Node::start(&server.url()), Node::start(&server.url()));
    a.register("deleted", 3_600);
    a.register("changed", 3_600);
    wait("both at B", || discovers(&b, "deleted") && discovers(&b, "changed"));
    let dump = |key: &str| -> Vec<u8> { server.command(&["GET", key]) };
    let keys = ["agent:deleted", "agent:changed", "tradepost:version:deleted", "tradepost:version:changed"];
    let old: Vec<String> = keys.iter().map(|key| String::from_utf8(dump(key)).expect("text")).collect();
    a.engine.unregister(agent_id("deleted"), Precondition::default()).wait().expect("deleted");
    let patch = AgentPatch { name: Some("new".into()), ..AgentPatch::default() };
    a.engine.update(agent_id("changed"), patch, Precondition::default()).wait().expect("changed");
    wait("both changes at B", || {
        b.profile("deleted").is_none() && b.profile("changed").is_some_and(|seen| seen.agent.name == "new")
    });
    // What an older replica would hold, under the same nonce.
    for (key, text) in keys.iter().zip(&old) {
        server.command::<()>(&["SET", key, text, "EX", "3600"]);
    }
    server.command::<()>(&["SADD", "agents:all", "deleted"]);
    server.restart();
    wait("the deletion", || !exists(&server, "agent:deleted"));
    wait("the change", || server.command::<String>(&["GET", "agent:changed"]).contains("\"new\""));
    assert!(b.profile("deleted").is_none());
    b.waits_for_lease("changed", LeaseState::Live);
}

#[test]
fn scripts_may_be_flushed_at_any_time() {
    let server = RedisServer::start();
    let (a, b) = (Node::start(&server.url()), Node::start(&server.url()));
    for round in 0..20 {
        server.command::<()>(&["SCRIPT", "FLUSH"]);
        a.register(&format!("a{round}"), 3_600);
    }
    wait("all at B", || (0..20).all(|round| discovers(&b, &format!("a{round}"))));
}

#[test]
fn a_bell_reaches_the_owner_at_once() {
    let server = RedisServer::start();
    let (a, b) = (Node::start(&server.url()), Node::start(&server.url()));
    a.register("thon", 3_600);
    wait("the agent at B", || discovers(&b, "thon"));
    a.settled();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for _ in 0..20 {
        b.ringer.ring(&agent_id("thon"));
        runtime.block_on(async {
            tokio::time::timeout(node::PATIENCE, a.rung.notified()).await.expect("the bell rings");
        });
    }
}

#[test]
fn an_idle_node_asks_little() {
    const WATCHED: Duration = Duration::from_secs(12);
    let server = RedisServer::start();
    let (a, b) = (Node::start(&server.url()), Node::start(&server.url()));
    a.register("thon", 3_600);
    wait("the agent at B", || discovers(&b, "thon"));
    a.settled();
    b.settled();
    let commands = || -> u64 {
        let info: String = server.command(&["INFO", "stats"]);
        let line = info.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
        line.expect("it is counted").trim().parse().expect("a number")
    };
    let before = commands();
    thread::sleep(WATCHED);
    let per_minute = (commands() - before) as f64 / 2.0 * 60.0 / WATCHED.as_secs_f64();
    println!("an idle node sends {per_minute:.0} commands a minute");
    assert!(per_minute < 400.0, "{per_minute}");
}
