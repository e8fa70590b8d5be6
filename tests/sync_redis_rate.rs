//! How fast a backlog of agents drains into Redis, against the bare script with the same documents pipelined by hand.
//!
//! `cargo test --release --test sync_redis_rate -- --nocapture` prints the figures. The number of agents is
//! `TRADEPOST_TEST_AGENTS`, by default small enough for every run of the tests; the ratio that is required is the same.

mod common;
#[path = "sync_redis/node.rs"]
mod node;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use common::redis::RedisServer;
use common::registration;
use node::{Node, wait};
use redis::Pipeline;
use secrecy::SecretString;
use tradepost::domain::{Agent, JsonObject, Registration};
use tradepost::engine::replica::AgentChange;
use tradepost::sync::redis::document;
use tradepost::sync::redis::link::Link;
use tradepost::sync::redis::scripts::Scripts;
use tradepost::{Engine, Location, Options};

/// How many rounds are timed; the best of each side counts, which leaves out what else the machine does.
const ROUNDS: usize = 3;
const REQUIRED: f64 = 0.7;
const LEASE: Duration = Duration::from_secs(3_600);

fn agents() -> usize {
    std::env::var("TRADEPOST_TEST_AGENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(40_000)
}

/// An engine with a backlog, and what it has to tell.
fn backlog(count: usize) -> (Engine, Vec<Agent>) {
    let engine = Engine::open(Options::new(Location::Memory)).expect("the store opens");
    let metadata = JsonObject::parse(r#"{"region":"eu","model":"large","tags":["a","b","c"]}"#).expect("a test's own");
    let mut pending = VecDeque::new();
    for number in 0..count {
        let capabilities = ["python".to_owned(), format!("c{}", number % 50)];
        let capabilities: Vec<&str> = capabilities.iter().map(String::as_str).collect();
        let agent =
            Registration { metadata: metadata.clone(), ..registration(&format!("agent-{number}"), &capabilities) };
        pending.push_back(engine.register(agent, None));
        if pending.len() > 4_000 {
            pending.pop_front().expect("not empty").wait().expect("registered");
        }
    }
    pending.into_iter().for_each(|registered| drop(registered.wait().expect("registered")));
    let changes = engine.changes_after(0, usize::MAX).expect("the store can be read");
    let told = changes.into_iter().filter_map(|change| match change {
        AgentChange::Put { agent, .. } => Some(*agent),
        AgentChange::Removed { .. } => None,
    });
    (engine, told.collect())
}

/// The script alone: everything prepared, pipelines of a size that suits Redis, two on their way.
fn by_hand(server: &RedisServer, agents: &[Agent]) -> Duration {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let scripts = Scripts::default();
        let link = Link::connect(&SecretString::from(server.url()), &scripts, |_| {}).await.expect("a connection");
        let pipelines: Vec<Pipeline> = agents
            .chunks(256)
            .map(|chunk| {
                let mut pipeline = Pipeline::with_capacity(chunk.len());
                for agent in chunk {
                    let text = document::write(agent);
                    let id = agent.agent_id.as_str();
                    pipeline.add_command(scripts.push(id, agent.version, &text, LEASE, &agent.capabilities, false));
                }
                pipeline
            })
            .collect();
        let begun = Instant::now();
        for pair in pipelines.chunks(2) {
            let sent = pair.iter().map(|pipeline| link.values(pipeline));
            for answers in futures_util::future::join_all(sent).await {
                assert!(answers.expect("answers").iter().all(|value| matches!(value, redis::Value::Array(_))));
            }
        }
        begun.elapsed()
    })
}

/// Plain SETs of the same documents, for the price of the script.
fn plain_sets(server: &RedisServer, agents: &[Agent]) -> Duration {
    let pipelines: Vec<Pipeline> = agents
        .chunks(256)
        .map(|chunk| {
            let mut pipeline = Pipeline::with_capacity(chunk.len());
            for agent in chunk {
                pipeline.cmd("SET").arg(format!("agent:{}", agent.agent_id)).arg(document::write(agent)).ignore();
            }
            pipeline
        })
        .collect();
    let mut connection = server.connection();
    let begun = Instant::now();
    for pipeline in &pipelines {
        pipeline.exec(&mut connection).expect("answers");
    }
    begun.elapsed()
}

#[test]
fn a_backlog_of_agents_drains_at_seven_tenths_of_the_bare_script_or_better() {
    let count = agents();
    let server = RedisServer::start_with(&[]);
    let (mut bare, mut plain, mut real) = (Duration::MAX, Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        let (engine, told) = backlog(count);
        server.flush_all();
        plain = plain.min(plain_sets(&server, &told));
        server.flush_all();
        bare = bare.min(by_hand(&server, &told));
        server.flush_all();
        drop(told);
        let newest = engine.commits().borrow().change_seq;
        let begun = Instant::now();
        let node = Node::start_with(engine, &server.url());
        wait("the backlog to drain", || {
            node.engine.redis_state().expect("the store can be read").acked_change_seq >= newest
        });
        real = real.min(begun.elapsed());
        assert_eq!(server.command::<usize>(&["SCARD", "agents:all"]), count);
    }
    let rate = |took: Duration| count as f64 / took.as_secs_f64();
    let ratio = rate(real) / rate(bare);
    println!(
        "{count} agents: plain SET {:.0}/s, bare script {:.0}/s, a node {:.0}/s, {ratio:.2} of the script",
        rate(plain),
        rate(bare),
        rate(real)
    );
    assert!(ratio >= REQUIRED, "{ratio:.2}");
}
