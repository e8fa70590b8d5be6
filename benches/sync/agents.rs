//! Many agents registered offline: how fast they get into Redis, against the bare push script pipelined by hand.

use std::thread;
use std::time::{Duration, Instant};

use redis::Pipeline;
use secrecy::SecretString;
use tradepost::domain::Agent;
use tradepost::sync::redis::document;
use tradepost::sync::redis::link::Link;
use tradepost::sync::redis::scripts::Scripts;
use tradepost::{Engine, Location, Options};

use crate::common::redis::RedisServer;
use crate::node::{Node, Urls};
use crate::report::{Bound, Report, local_agents, median, note, register_agents};

const ROUNDS: usize = 3;
/// How many commands are sent at once.
const PIPELINED: usize = 256;
const LEASE: Duration = Duration::from_secs(3_600);
const PATIENCE: Duration = Duration::from_secs(300);

pub fn run(agents: usize, report: &mut Report) {
    let server = RedisServer::start_with(&[]);
    let urls = Urls { redis: Some(server.url()), postgres: None };
    let [mut plain, mut bare, mut real] = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let engine = Engine::open(Options::new(Location::Memory)).expect("a store in memory opens");
        register_agents(&engine, agents);
        let told = local_agents(&engine);
        server.flush_all();
        plain.push(plain_sets(&server, &told));
        server.flush_all();
        bare.push(by_hand(&server, &told));
        server.flush_all();
        drop(told);
        real.push(by_a_node(engine, &urls));
        assert_eq!(server.command::<usize>(&["SCARD", "agents:all"]), agents);
    }
    let [plain, bare, real] = [plain, bare, real].map(median);
    for (what, took) in [("plain SET", plain), ("bare push script", bare), ("a node", real)] {
        note(&format!("{agents} agents to Redis, {what}"), agents, Duration::from_secs_f64(took));
    }
    eprintln!("the script costs as much as {:.1} plain SETs", bare / plain);
    report.ratio(format!("rate of {agents} agents to Redis / bare script"), bare / real, Bound::AtLeast(0.7));
}

/// Seconds that plain SETs of the documents take.
fn plain_sets(server: &RedisServer, agents: &[Agent]) -> f64 {
    let pipelines = agents.chunks(PIPELINED).map(|chunk| {
        let mut pipeline = Pipeline::with_capacity(chunk.len());
        for agent in chunk {
            pipeline.cmd("SET").arg(format!("agent:{}", agent.agent_id)).arg(document::write(agent)).ignore();
        }
        pipeline
    });
    let pipelines: Vec<_> = pipelines.collect();
    let mut connection = server.connection();
    let began = Instant::now();
    for pipeline in &pipelines {
        pipeline.exec(&mut connection).expect("the server answers");
    }
    began.elapsed().as_secs_f64()
}

/// Seconds that the script takes with everything prepared, and two pipelines on their way.
fn by_hand(server: &RedisServer, agents: &[Agent]) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    runtime.block_on(async {
        let scripts = Scripts::default();
        let link = Link::connect(&SecretString::from(server.url()), &scripts, |_| {}).await.expect("a connection");
        let pipelines = agents.chunks(PIPELINED).map(|chunk| {
            let mut pipeline = Pipeline::with_capacity(chunk.len());
            for agent in chunk {
                let (id, text) = (agent.agent_id.as_str(), document::write(agent));
                pipeline.add_command(scripts.push(id, agent.version, &text, LEASE, &agent.capabilities, false));
            }
            pipeline
        });
        let pipelines: Vec<_> = pipelines.collect();
        let began = Instant::now();
        for pair in pipelines.chunks(2) {
            let sent = pair.iter().map(|pipeline| link.values(pipeline));
            for answers in futures_util::future::join_all(sent).await {
                assert!(
                    answers.expect("the server answers").iter().all(|value| matches!(value, redis::Value::Array(_)))
                );
            }
        }
        began.elapsed().as_secs_f64()
    })
}

/// Seconds that a node takes, from its start.
fn by_a_node(engine: Engine, urls: &Urls) -> f64 {
    let newest = engine.commits().borrow().change_seq;
    let began = Instant::now();
    let node = Node::replicate(engine, std::sync::Arc::new(tradepost::clock::SystemClock::default()), urls);
    while node.engine.redis_state().expect("the store can be read").acked_change_seq < newest {
        assert!(began.elapsed() < PATIENCE, "the agents do not get through");
        thread::sleep(Duration::from_millis(5));
    }
    began.elapsed().as_secs_f64()
}
