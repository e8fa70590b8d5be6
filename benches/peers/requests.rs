//! Look-ups and heartbeats over HTTP, against the constant server; and heartbeats against what the peers have for them:
//! leases kept alive in etcd, keys whose time is renewed in Redis. None of these waits for a disk.

use std::time::Duration;

use tokio::runtime::Runtime;

use crate::callers::{Call, Command, Doing, EtcdUser, RedisUser, User};
use crate::common::{self, Bound, compare, load, note, process};
use crate::constant::ConstantServer;
use crate::results::Results;
use crate::servers;
use crate::servers_of_tests::sidecar::{Home, Sidecar};

const CONNECTIONS: usize = 64;

pub fn run(quick: bool, results: &mut Results) {
    let agents = if quick { 1_000 } else { 10_000 };
    let (rounds, round) = if quick { (5, Duration::from_millis(100)) } else { (11, Duration::from_millis(300)) };
    let field = Field::start(agents, round);
    let redis = servers::forgetful_redis();
    let mut pipeline = redis::Pipeline::new();
    for agent in 0..agents {
        pipeline.cmd("SET").arg(format!("agent:agent-{agent:06}")).arg([b'v'; 600].as_slice()).ignore();
    }
    pipeline.exec(&mut redis.connection()).expect("Redis answers");
    let etcd = servers::Etcd::start();
    field.runtime.block_on(EtcdUser::grant(etcd.address, agents.min(1_000)));
    let keep_alive = Call::KeepAlive { leases: agents.min(1_000) };
    let mut keepers = field.runtime.block_on(EtcdUser::connect_many(etcd.address, CONNECTIONS, keep_alive));
    let mut renewers =
        field.runtime.block_on(RedisUser::connect_many(redis.port(), CONNECTIONS, Command::Renew { agents }));

    let (mut gets, mut heartbeats) = (Vec::new(), Vec::new());
    let (mut beats, mut commits, mut written) = (0.0, 0.0, 0);
    let mut works = [[Fared::default(); 2]; 2];
    for number in 0..=rounds {
        let get = field.both(Doing::Get, number);
        let before = (field.commits(), field.written());
        let heartbeat = field.both(Doing::Heartbeat, number);
        let after = (field.commits(), field.written());
        let etcd = load::run(&field.runtime, &mut keepers, CONNECTIONS, round).per_second;
        let redis = load::run(&field.runtime, &mut renewers, CONNECTIONS, round).per_second;
        // The first round warms everybody up.
        if number > 0 {
            gets.push(get.map(|side| side.rate));
            heartbeats.push([heartbeat[0].rate, heartbeat[1].rate, etcd, redis]);
            for (sums, fared) in works.iter_mut().flatten().zip(get.into_iter().chain(heartbeat)) {
                sums.calls += fared.calls;
                sums.worked += fared.worked;
            }
            beats += heartbeat[0].calls;
            commits += after.0 - before.0;
            written += after.1 - before.1;
        }
    }
    let (get_rates, get_ratios) = compare(&gets);
    let (rates, ratios) = compare(&heartbeats);
    for (what, rate) in [
        ("get an agent over HTTP", get_rates[0]),
        ("the constant server, look-up", get_rates[1]),
        ("heartbeat over HTTP", rates[0]),
        ("the constant server, heartbeat", rates[1]),
        ("etcd lease keep-alive", rates[2]),
        ("Redis PEXPIRE", rates[3]),
    ] {
        note(&format!("{what}, {CONNECTIONS} connections"), rate as usize, Duration::from_secs(1));
    }
    for (what, sides) in ["a look-up", "a heartbeat"].into_iter().zip(works) {
        let [ours, constant] = sides.map(|side| side.worked * 1e6 / side.calls);
        eprintln!("{what}: the sidecar works {ours:.1} µs for it, the constant server {constant:.1} µs");
    }
    eprintln!("{beats:.0} heartbeats: {commits} commits, {written} bytes written");
    let ours = format!("get an agent over HTTP, {CONNECTIONS} connections");
    results.against(&ours, "the constant server", get_ratios[1], Some(Bound::AtLeast(0.8)));
    let ours = format!("heartbeat over HTTP, {CONNECTIONS} connections");
    let bound = Some(Bound::AtLeast(0.8));
    results.against(&ours, "the constant server", ratios[1], bound);
    results.against(&ours, "etcd lease keep-alive", ratios[2], None);
    results.against(&ours, "Redis PEXPIRE, no disk", ratios[3], None);
    results.report.figure("durable commits per heartbeat", commits / beats, Bound::AtMost(0.0));
    field.sidecar.stop();
}

/// What came of a round at one server.
#[derive(Debug, Clone, Copy, Default)]
struct Fared {
    rate: f64,
    calls: f64,
    /// Seconds that the server's threads took for it.
    worked: f64,
}

/// The sidecar, and the constant server that answers as it does.
struct Field {
    runtime: Runtime,
    sidecar: Sidecar,
    constant: ConstantServer,
    agents: usize,
    round: Duration,
    _home: Home,
}

impl Field {
    fn start(agents: usize, round: Duration) -> Self {
        let home = Home::new();
        let (engine, _) = common::open_file(&home.data());
        common::register_agents(&engine, agents);
        engine.close();
        drop(engine);
        let sidecar = home.setup().start();
        let mut client = sidecar.client();
        let profile = client.get("/v1/agents/agent-000007").expect(200);
        let heartbeat = client.post_nothing("/v1/agents/agent-000007/heartbeat").expect(200);
        let constant = ConstantServer::start(profile.text(), heartbeat.text());
        Self { runtime: load::runtime(), sidecar, constant, agents, round, _home: home }
    }

    /// How the sidecar and the constant server fare; they take turns at being first.
    fn both(&self, doing: Doing, number: u64) -> [Fared; 2] {
        let sides = [
            (self.sidecar.address, self.sidecar.pid().as_raw_nonzero().get().unsigned_abs()),
            (self.constant.address, self.constant.pid()),
        ];
        let mut fared = [Fared::default(); 2];
        for turn in 0..2 {
            let side = (turn + number as usize) % 2;
            let (address, pid) = sides[side];
            let users = User::connect_many(address, CONNECTIONS, doing, self.agents, number);
            let mut users = self.runtime.block_on(users);
            let before = process::worked(pid);
            let spell = load::run(&self.runtime, &mut users, CONNECTIONS, self.round);
            let worked = process::worked(pid) - before;
            fared[side] = Fared { rate: spell.per_second, calls: spell.calls() as f64, worked: worked.as_secs_f64() };
        }
        fared
    }

    /// Durable commits so far.
    fn commits(&self) -> f64 {
        let page = self.sidecar.client().get("/metrics").expect(200);
        let name = "tradepost_store_commit_batch_size_count";
        let line = page.text().lines().find_map(|line| line.strip_prefix(name)).expect("the family is on the page");
        line.trim().parse().expect("a sample is a number")
    }

    /// Bytes that the sidecar has had written to a disk.
    fn written(&self) -> u64 {
        let io = std::fs::read_to_string(format!("/proc/{}/io", self.sidecar.pid().as_raw_nonzero()));
        let io = io.expect("it is our own child");
        let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).expect("the kernel counts bytes");
        line.parse().expect("a number")
    }
}
