//! Days without a link, on a clock that is turned by hand: agents that send heartbeats and change now and then, and
//! central systems that nobody reaches.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use tradepost::domain::{AgentPatch, AvailabilityStatus};
use tradepost::{Engine, Location, Options, Precondition};

use super::node::{Node, Urls};
use crate::common::clock::ManualClock;
use crate::common::{agent_id, registration};

/// How many agents live there.
pub const AGENTS: usize = 10;
/// How often each sends a heartbeat; its lease is three times as long.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(20 * 60);
/// After how many heartbeats it changes.
const UPDATE_EVERY: u64 = 3;

/// How large the file was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    /// When the agents had registered.
    pub before: u64,
    /// At the end.
    pub after: u64,
    /// How many changes wait for Redis, at the end.
    pub backlog: u64,
}

/// So many days on a new file.
pub fn offline(file: &Path, days: u64) -> Growth {
    let clock = ManualClock::at(1_795_000_000_000_000);
    let options = Options { clock: clock.clone(), ..Options::new(Location::File(file.to_owned())) };
    let engine = Engine::open(options).expect("a new store opens");
    let nowhere = closed_port();
    let urls = Urls {
        redis: Some(format!("redis://127.0.0.1:{nowhere}")),
        postgres: Some(format!("postgres://nobody@127.0.0.1:{nowhere}/market")),
    };
    let node = Node::replicate(engine.clone(), clock.clone(), &urls);
    let agents: Vec<String> = (0..AGENTS).map(|number| format!("agent-{number}")).collect();
    for agent in &agents {
        engine.register(registration(agent, &["sql"]), None).wait().expect("the id is free");
    }
    let before = length(file);
    for beat in 1..=days * 24 * 3_600 / HEARTBEAT_EVERY.as_secs() {
        clock.advance(HEARTBEAT_EVERY);
        for agent in &agents {
            engine.heartbeat(&agent_id(agent)).wait().expect("the lease runs");
        }
        if beat.is_multiple_of(UPDATE_EVERY) {
            let availability = Some(if beat % 2 == 0 { AvailabilityStatus::Online } else { AvailabilityStatus::Busy });
            let update = |agent: &String| {
                let patch = AgentPatch { availability, ..AgentPatch::default() };
                engine.update(agent_id(agent), patch, Precondition::Exists)
            };
            let updates: Vec<_> = agents.iter().map(update).collect();
            updates.into_iter().for_each(|updated| drop(updated.wait().expect("the agent is there")));
        }
    }
    let backlog = engine.changes_len(0).expect("the store can be read");
    let after = length(file);
    drop(node);
    engine.close();
    Growth { before, after, backlog }
}

fn length(file: &Path) -> u64 {
    fs::metadata(file).expect("the file is there").len()
}

/// A port that nobody listens on.
fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    listener.local_addr().expect("it is bound").port()
}
