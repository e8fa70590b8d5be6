//! The scripts and the connection against a real Redis: what each step does there, and what each refusal means.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::authority::Authority;
use common::redis::RedisServer;
use redis::Pipeline;
use secrecy::SecretString;
use tradepost::domain::version::HIGHEST_TOLD;
use tradepost::domain::{AgentVersion, Capabilities, Counters, NodeId};
use tradepost::sync::redis::link::{Answer, Link};
use tradepost::sync::redis::scripts::Scripts;
use tradepost::sync::redis::told::Told;
use tradepost::sync::state::{Failure, FailureClass};

const LEASE: Duration = Duration::from_secs(60);

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(work)
}

async fn connect(url: &str) -> Result<Link, Failure> {
    Link::connect(&SecretString::from(url), &Scripts::default(), |_| {}).await
}

async fn failure(url: &str) -> Failure {
    match connect(url).await {
        Ok(_) => panic!("connected to {url}"),
        Err(failure) => failure,
    }
}

fn version(epoch: u64, node: u8) -> AgentVersion {
    AgentVersion { epoch, seq: 1, node_id: NodeId::from_bytes([node; 16]) }
}

fn document(version: AgentVersion, capabilities: &[&str], more: &str) -> String {
    let version = version.to_wire();
    format!(
        r#"{{"agent_id":"a","capabilities":{capabilities:?},"more":"{more}","tradepost":{{"version":"{version}"}}}}"#
    )
}

struct Bench {
    server: RedisServer,
    link: Link,
    scripts: Scripts,
}

impl Bench {
    async fn new() -> Self {
        let server = RedisServer::start();
        let link = connect(&server.url()).await.expect("a connection");
        Self { server, link, scripts: Scripts::default() }
    }

    async fn run(&self, command: redis::Cmd) -> Told {
        let mut pipeline = Pipeline::new();
        pipeline.add_command(command);
        let mut answers = self.link.run(&self.scripts, &pipeline).await.expect("an answer");
        Told::read(answers.remove(0))
    }

    async fn push(&self, version: AgentVersion, capabilities: &[&str], more: &str) -> Told {
        let parsed = Capabilities::parse(capabilities.iter().copied()).expect("a test's own");
        let document = document(version, capabilities, more);
        self.run(self.scripts.push("a", version, &document, LEASE, &parsed, false)).await
    }

    fn members(&self, set: &str) -> BTreeSet<String> {
        self.server.command(&["SMEMBERS", set])
    }

    fn pttl(&self, key: &str) -> i64 {
        self.server.command(&["PTTL", key])
    }

    fn stream_length(&self) -> usize {
        self.server.command(&["XLEN", "tradepost:changes"])
    }
}

#[test]
fn a_push_writes_document_index_version_and_stream_and_leaves_no_old_capability() {
    block_on(async {
        let bench = Bench::new().await;
        assert_eq!(bench.push(version(5, 1), &["python", "rust"], "").await, Told::Done);
        assert_eq!(bench.push(version(6, 1), &["rust", "zig"], "").await, Told::Done);
        let one = BTreeSet::from(["a".to_owned()]);
        assert_eq!(bench.members("agents:all"), one);
        assert_eq!(bench.members("agents:capabilities:zig"), one);
        assert_eq!(bench.members("agents:capabilities:rust"), one);
        assert!(bench.members("agents:capabilities:python").is_empty());
        assert_eq!(bench.server.command::<String>(&["GET", "agent:a"]), document(version(6, 1), &["rust", "zig"], ""));
        let lease = bench.pttl("agent:a");
        assert!((50_000..=60_000).contains(&lease), "{lease}");
        let outlives = bench.pttl("tradepost:version:a") - lease;
        assert!((2_591_990_000..=2_592_010_000).contains(&outlives), "{outlives}");
        assert_eq!(bench.stream_length(), 2);
        assert_eq!(bench.push(version(6, 1), &["rust", "zig"], "").await, Told::Done);
        assert_eq!(bench.stream_length(), 2, "the same again is no news");
    });
}

#[test]
fn a_push_follows_what_is_stored_there_be_it_an_older_clients_or_no_json() {
    block_on(async {
        let bench = Bench::new().await;
        bench.server.command::<()>(&["SET", "agent:a", r#"{"agent_id":"a","capabilities":["Old",7]}"#]);
        bench.server.command::<()>(&["SADD", "agents:capabilities:Old", "a"]);
        assert_eq!(bench.push(version(5, 1), &["new"], "").await, Told::Done);
        assert!(bench.members("agents:capabilities:Old").is_empty());
        for text in ["", "{", "[[[[", "7", r#"{"capabilities":7}"#] {
            bench.server.command::<()>(&["SET", "agent:a", text]);
            assert_eq!(bench.push(version(5, 1), &["new"], "").await, Told::Done, "{text}");
        }
        let ours = version(9, 1).to_wire();
        let damaged = [
            "zzzz".to_owned(),
            format!("{}+", "z".repeat(74)),
            format!("{}+", "9".repeat(74)),
            format!("{}-", ours.replace("01010101", "ABABABAB")),
            format!("0{}+", ours.replacen('.', "", 1)),
            format!("{ours}*"),
            format!("{}+", version(u64::MAX, 1).to_wire()),
            format!("{}+", version(HIGHEST_TOLD, 1).to_wire()),
            format!("{}-", AgentVersion { seq: u64::MAX, ..version(9, 1) }.to_wire()),
        ];
        for damaged in damaged {
            bench.server.command::<()>(&["SET", "tradepost:version:a", &damaged]);
            assert_eq!(bench.push(version(5, 1), &["new"], "").await, Told::Done, "{damaged} is no version of ours");
        }
    });
}

#[test]
fn the_newer_version_stays_whoever_asks_and_its_lease_too() {
    block_on(async {
        let bench = Bench::new().await;
        assert_eq!(bench.push(version(6, 2), &["theirs"], "").await, Told::Done);
        let Told::Newer(theirs) = bench.push(version(5, 1), &["ours"], "").await else { panic!("written over") };
        assert_eq!(theirs.held.version(), version(6, 2));
        assert_eq!(theirs.document.as_deref(), Some(document(version(6, 2), &["theirs"], "").as_bytes()));
        assert!(theirs.remaining > Duration::from_secs(50));
        let renewal = bench.scripts.renew("a", version(5, 1), Duration::from_secs(1));
        assert!(matches!(bench.run(renewal).await, Told::Newer(_)));
        assert!(matches!(bench.run(bench.scripts.remove("a", version(5, 9), LEASE)).await, Told::Newer(_)));
        assert!(bench.pttl("agent:a") > 50_000);
        assert_eq!(bench.stream_length(), 1);
    });
}

#[test]
fn other_content_of_the_same_version_is_reported_unless_an_older_client_wrote_it() {
    block_on(async {
        let bench = Bench::new().await;
        assert_eq!(bench.push(version(5, 1), &["x"], "mine").await, Told::Done);
        let Told::Differs(theirs) = bench.push(version(5, 1), &["x"], "other").await else { panic!("not noticed") };
        assert_eq!(theirs.document.as_deref(), Some(document(version(5, 1), &["x"], "mine").as_bytes()));
        let capabilities = Capabilities::parse(["x"]).expect("a test's own");
        let text = document(version(5, 1), &["x"], "other");
        let over = bench.scripts.push("a", version(5, 1), &text, LEASE, &capabilities, true);
        assert_eq!(bench.run(over).await, Told::Done);
        bench.server.command::<()>(&["SET", "agent:a", r#"{"agent_id":"a"}"#]);
        assert_eq!(bench.run(bench.scripts.renew("a", version(5, 1), LEASE)).await, Told::Missing);
        assert_eq!(bench.push(version(5, 1), &["x"], "other").await, Told::Done);
    });
}

#[test]
fn a_deletion_is_remembered_and_only_what_it_meant_is_deleted() {
    block_on(async {
        let bench = Bench::new().await;
        bench.push(version(5, 1), &["x"], "").await;
        let deletion = AgentVersion { seq: 2, ..version(5, 1) };
        assert_eq!(bench.run(bench.scripts.remove("a", deletion, LEASE)).await, Told::Done);
        assert!(bench.members("agents:all").is_empty() && bench.members("agents:capabilities:x").is_empty());
        assert_eq!(bench.server.command::<i64>(&["EXISTS", "agent:a"]), 0);
        assert!(matches!(bench.push(version(5, 1), &["x"], "").await, Told::Newer(_)), "a late copy");

        // An older client takes the id since, and the deletion is told again: after a reconnect, and after Redis lost all.
        bench.server.command::<()>(&["SET", "agent:a", r#"{"agent_id":"a"}"#]);
        assert_eq!(bench.run(bench.scripts.remove("a", deletion, LEASE)).await, Told::Done);
        bench.server.command::<()>(&["DEL", "tradepost:version:a"]);
        assert_eq!(bench.run(bench.scripts.remove("a", deletion, LEASE)).await, Told::Done);
        assert_eq!(bench.server.command::<i64>(&["EXISTS", "agent:a"]), 1);

        // A failover brings an older state back.
        bench.server.command::<()>(&["SET", "agent:a", &document(version(5, 1), &["x"], "")]);
        bench.server.command::<()>(&["SET", "tradepost:version:a", &format!("{}+", version(5, 1).to_wire())]);
        assert_eq!(bench.run(bench.scripts.remove("a", deletion, LEASE)).await, Told::Done);
        assert_eq!(bench.server.command::<i64>(&["EXISTS", "agent:a"]), 0);
    });
}

#[test]
fn a_renewal_touches_times_only() {
    block_on(async {
        let bench = Bench::new().await;
        assert_eq!(bench.run(bench.scripts.renew("a", version(5, 1), LEASE)).await, Told::Missing);
        bench.push(version(5, 1), &["x"], "").await;
        let long = Duration::from_secs(600);
        assert_eq!(bench.run(bench.scripts.renew("a", version(5, 1), long)).await, Told::Renewed(Vec::new()));
        assert!(bench.pttl("agent:a") > 590_000);
        assert_eq!(bench.stream_length(), 1);
        assert_eq!(
            bench.run(bench.scripts.renew("a", version(6, 1), long)).await,
            Told::Missing,
            "an older one is there"
        );
        bench.server.command::<()>(&["DEL", "agent:a"]);
        assert_eq!(bench.run(bench.scripts.renew("a", version(5, 1), long)).await, Told::Missing);
    });
}

#[test]
fn counters_are_compared_before_they_are_set_and_a_lost_answer_does_no_harm() {
    block_on(async {
        let bench = Bench::new().await;
        bench.push(version(5, 1), &["x"], "").await;
        let observe = |acked: &str, total: &str| bench.scripts.observe("a", "observer", acked, total);
        assert_eq!(bench.run(observe("0:0:0.0", "1:0:1.0")).await, Told::Done);
        assert_eq!(bench.run(observe("0:0:0.0", "1:0:1.0")).await, Told::Done, "the answer was lost");
        assert_eq!(bench.run(observe("1:0:1.0", "2:0:2.0")).await, Told::Done);
        let there = Counters { successes: 2, failures: 0, score: 2.0 };
        assert_eq!(bench.run(observe("1:0:1.0", "1:1:0.0")).await, Told::Other(Some(there)), "from a copy of the file");
        let renewal = bench.run(bench.scripts.renew("a", version(5, 1), LEASE)).await;
        assert_eq!(renewal, Told::Renewed(b"2".to_vec()));
        bench.server.command::<()>(&["DEL", "tradepost:outcomes:a"]);
        assert_eq!(bench.run(observe("2:0:2.0", "3:0:3.0")).await, Told::Done, "Redis lost it");
        assert!(bench.pttl("tradepost:outcomes:a") > 2_591_000_000);
    });
}

#[test]
fn a_count_of_writes_that_is_none_begins_anew() {
    block_on(async {
        let bench = Bench::new().await;
        bench.push(version(5, 1), &["x"], "").await;
        let large = "9".repeat(1024 * 1024);
        for (number, written) in ["abc", "", "1.5", "9223372036854775807", &large].into_iter().enumerate() {
            bench.server.command::<()>(&["HSET", "tradepost:outcomes:a", "written", written]);
            let renewal = bench.run(bench.scripts.renew("a", version(5, 1), LEASE)).await;
            assert!(matches!(renewal, Told::Renewed(count) if count.len() <= 20));
            let (acked, total) = (format!("{number}:0:0.0"), format!("{}:0:0.0", number + 1));
            assert_eq!(bench.run(bench.scripts.observe("a", "observer", &acked, &total)).await, Told::Done);
            let renewal = bench.run(bench.scripts.renew("a", version(5, 1), LEASE)).await;
            assert_eq!(renewal, Told::Renewed(b"1".to_vec()), "after {} bytes", written.len());
        }
    });
}

#[test]
fn only_ids_without_document_are_taken_out_of_a_set() {
    block_on(async {
        let bench = Bench::new().await;
        bench.push(version(5, 1), &["x"], "").await;
        bench.server.command::<()>(&["SADD", "agents:all", "gone"]);
        let mut pipeline = Pipeline::new();
        pipeline.add_command(bench.scripts.unlist_gone("agents:all", &["a".into(), "gone".into()]));
        let answers = bench.link.run(&bench.scripts, &pipeline).await.expect("an answer");
        assert_eq!(answers, [Answer::Value(redis::Value::Int(1))]);
        assert_eq!(bench.members("agents:all"), BTreeSet::from(["a".to_owned()]));
    });
}

#[test]
fn forgotten_scripts_are_loaded_again_within_the_call() {
    block_on(async {
        let bench = Bench::new().await;
        for epoch in 1..5 {
            bench.server.command::<()>(&["SCRIPT", "FLUSH"]);
            assert_eq!(bench.push(version(epoch, 1), &["x"], "").await, Told::Done);
        }
    });
}

#[test]
fn a_key_of_another_type_refuses_its_own_agent_and_no_other() {
    block_on(async {
        let bench = Bench::new().await;
        bench.server.command::<()>(&["LPUSH", "agent:b", "x"]);
        let capabilities = Capabilities::default();
        let mut pipeline = Pipeline::new();
        for id in ["a", "b", "c"] {
            pipeline.add_command(bench.scripts.push(id, version(1, 1), "{}", LEASE, &capabilities, false));
        }
        let answers = bench.link.run(&bench.scripts, &pipeline).await.expect("answers");
        let told: Vec<Told> = answers.into_iter().map(Told::read).collect();
        assert!(
            matches!(&told[..], [Told::Done, Told::Refused { code, .. }, Told::Done] if code == "WRONGTYPE"),
            "{told:?}"
        );
    });
}

#[test]
fn each_refusal_says_who_must_act_and_none_says_the_password() {
    block_on(async {
        let server = RedisServer::start();
        let wrong = failure(&server.url_with("nobody:s3cr%65t@")).await;
        assert_eq!(wrong.class, FailureClass::Misconfigured, "{wrong:?}");
        assert!(wrong.reason.contains("WRONGPASS"), "{wrong:?}");

        server.set_user("reader", &["on", ">s3cret", "~*", "&*", "+@read", "+hello"]);
        let poor = failure(&server.url_with("reader:s3cret@")).await;
        assert_eq!(poor.class, FailureClass::Misconfigured, "{poor:?}");
        assert!(poor.reason.contains("NOPERM") && !poor.reason.contains("s3cret"), "{poor:?}");

        server.command::<()>(&["CONFIG", "SET", "requirepass", "s3cret"]);
        let none = failure(&server.url()).await;
        assert_eq!(none.class, FailureClass::Misconfigured, "{none:?}");

        let nobody = failure("redis://u:s3cret@127.0.0.1:1").await;
        assert_eq!(nobody.class, FailureClass::Unreachable, "{nobody:?}");
        for url in
            ["s3cret", "redis://u:s3cret@h:port", "rediss://u:s3cret@localhost/#insecure", "redis://u:s3cret@h/x"]
        {
            let failure = failure(url).await;
            assert_eq!(failure.class, FailureClass::Misconfigured, "{failure:?}");
            assert!(!failure.reason.contains("s3cret"), "{failure:?}");
        }
    });
}

#[test]
fn a_full_a_read_only_and_a_stalled_server_are_told_apart() {
    block_on(async {
        let bench = Bench::new().await;
        let attempt = async || {
            let mut pipeline = Pipeline::new();
            pipeline.add_command(bench.scripts.push("a", version(1, 1), "{}", LEASE, &Capabilities::default(), false));
            bench.link.run(&bench.scripts, &pipeline).await
        };
        bench.server.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
        let full = attempt().await.expect_err("no room");
        assert_eq!(full.class, FailureClass::Misconfigured, "{full:?}");
        bench.server.command::<()>(&["CONFIG", "SET", "maxmemory", "0"]);

        let leader = RedisServer::start();
        bench.server.follow(&leader);
        let read_only = attempt().await.expect_err("a replica");
        assert_eq!(read_only.class, FailureClass::Unreachable, "{read_only:?}");
        assert!(read_only.reason.contains("READONLY"), "{read_only:?}");
        bench.server.promote();
        attempt().await.expect("a primary again");

        bench.server.pause();
        let stalled = attempt().await.expect_err("a deadline");
        assert_eq!(stalled.class, FailureClass::Unreachable, "{stalled:?}");
        bench.server.resume();
    });
}

#[test]
fn tls_is_verified_against_the_authority_that_the_url_names_or_the_systems() {
    block_on(async {
        let directory = tempfile::tempdir().expect("there is room for a temporary directory");
        let server = RedisServer::start_with_tls(&Authority::new(directory.path(), "ours"));
        let link = connect(&server.url()).await.expect("a connection");
        assert_eq!(link.query::<String>(&redis::cmd("PING")).await.expect("an answer"), "PONG");

        let stranger = failure(&format!("rediss://localhost:{}", server.port())).await;
        assert_eq!(stranger.class, FailureClass::Misconfigured, "{stranger:?}");
        let other_name = failure(&server.url().replace("localhost", "127.0.0.1")).await;
        assert_eq!(other_name.class, FailureClass::Misconfigured, "{other_name:?}");
        let plain = failure(&format!("redis://localhost:{}", server.port())).await;
        assert_eq!(plain.class, FailureClass::Unreachable, "{plain:?}");
    });
}
