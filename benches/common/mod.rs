//! What the benches share: a report of ratios and figures with their bounds, the agents and transactions that they work
//! on, and the load on servers.

#![allow(dead_code, reason = "every bench compiles this module and uses a part of it")]

pub mod http;
pub mod load;
pub mod process;

use std::collections::VecDeque;
use std::fmt;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use tradepost::domain::{
    Agent, AgentId, AvailabilityStatus, Capabilities, Capability, Capacity, Currency, Facts, JsonObject, Money,
    NewTransaction, Registration, Ttl,
};
use tradepost::engine::replica::AgentChange;
use tradepost::metrics::Metrics;
use tradepost::{Engine, Location, Options, Pending};

/// How many kinds of work the agents share.
pub const CAPABILITIES: usize = 100;

/// Whether the run is to be short: fewer rounds, and less data.
pub fn is_quick() -> bool {
    std::env::var_os("TRADEPOST_BENCH_QUICK").is_some_and(|value| value != "0")
}

/// Whether this is `cargo bench`; a test run over all targets only shows that the bench starts.
pub fn is_bench_run() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

/// Whether a part of the bench is to run: all are, unless arguments name some.
pub fn is_wanted(part: &str) -> bool {
    let mut named = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
    named.peek().is_none() || named.any(|name| name == part)
}

/// What a ratio must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn holds(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(bound) => ratio >= bound,
            Self::AtMost(bound) => ratio <= bound,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, "≥ {bound}"),
            Self::AtMost(bound) => write!(f, "≤ {bound}"),
        }
    }
}

/// Ratios and figures with their bounds. What was measured goes to stderr as it comes; mostly ratios travel to other
/// machines.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<(String, f64, Option<Bound>)>,
}

impl Report {
    pub fn ratio(&mut self, what: impl Into<String>, ratio: f64, bound: Bound) {
        self.rows.push((what.into(), ratio, Some(bound)));
    }

    /// A ratio that is worth knowing, whatever it is.
    pub fn shown(&mut self, what: impl Into<String>, ratio: f64) {
        self.rows.push((what.into(), ratio, None));
    }

    /// A number that means the same on every machine that is not overloaded, with its unit in `what`.
    pub fn figure(&mut self, what: impl Into<String>, value: f64, bound: Bound) {
        self.rows.push((what.into(), value, Some(bound)));
    }

    /// Prints the table; a failure if a bound was missed.
    pub fn finish(self) -> ExitCode {
        let mut table = String::from("\n| what | measured | required | |\n| --- | ---: | ---: | --- |\n");
        let mut missed = 0;
        for (what, ratio, bound) in &self.rows {
            let (bound, verdict) = match bound {
                None => (String::new(), ""),
                Some(bound) if bound.holds(*ratio) => (bound.to_string(), "ok"),
                Some(bound) => {
                    missed += 1;
                    (bound.to_string(), "MISSED")
                }
            };
            table += &format!("| {what} | {ratio:.2} | {bound} | {verdict} |\n");
        }
        std::io::stdout().write_all(table.as_bytes()).expect("stdout takes the table");
        if missed == 0 {
            return ExitCode::SUCCESS;
        }
        let bounds = self.rows.iter().filter(|(_, _, bound)| bound.is_some()).count();
        eprintln!("{missed} of {bounds} bounds were missed");
        ExitCode::FAILURE
    }
}

/// Says what was measured.
pub fn note(what: &str, operations: usize, took: Duration) {
    let each = took.as_secs_f64() * 1e6 / operations.max(1) as f64;
    eprintln!("{what:<52} {:>10.0} per s {each:>10.1} µs each", operations as f64 / took.as_secs_f64());
}

/// The middle one; other work on the machine disturbs some rounds, not most.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The rates of all sides, which take turns for some rounds: the middle one of each, and by how much the first surpasses
/// the others, which is the middle one of what each round says. So a slow spell of the disk that falls into one round
/// and not into the next does not count.
pub fn compare<const SIDES: usize>(rounds: &[[f64; SIDES]]) -> ([f64; SIDES], [f64; SIDES]) {
    let middle = |of: &dyn Fn(&[f64; SIDES]) -> f64| median(rounds.iter().map(of).collect());
    let rates = std::array::from_fn(|side| middle(&|round| round[side]));
    (rates, std::array::from_fn(|side| middle(&|round| round[0] / round[side])))
}

/// The duration that all but one in a hundred do not exceed.
pub fn p99(durations: &mut [Duration]) -> Duration {
    durations.sort_unstable();
    let index = (durations.len() * 99).div_ceil(100).saturating_sub(1);
    durations.get(index).copied().unwrap_or_default()
}

/// Seconds that some work took.
pub fn seconds(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64()
}

/// An engine on a file in `directory`, with the metrics that it counts into.
pub fn open_file(directory: &Path) -> (Engine, Metrics) {
    let metrics = Metrics::default();
    let location = Location::File(directory.join("tradepost.redb"));
    let options = Options { metrics: metrics.clone(), agent_ttl: longest_ttl(), ..Options::new(location) };
    (Engine::open(options).expect("a new store opens"), metrics)
}

fn longest_ttl() -> Ttl {
    Ttl::parse(i128::from(Ttl::LONGEST_SECONDS)).expect("the longest lease is one")
}

/// Registers agents `0..count`, many in one commit.
pub fn register_agents(engine: &Engine, count: usize) {
    submit_all((0..count).map(|number| engine.register(registration(number), None)));
}

/// The agents that an engine owns.
pub fn local_agents(engine: &Engine) -> Vec<Agent> {
    let changes = engine.changes_after(0, usize::MAX).expect("the store can be read");
    let agent = |change| match change {
        AgentChange::Put { agent, .. } => Some(*agent),
        AgentChange::Removed { .. } => None,
    };
    changes.into_iter().filter_map(agent).collect()
}

/// Waits for every answer, with at most some thousands under way.
pub fn submit_all<T>(pending: impl Iterator<Item = Pending<T>>) {
    let mut waiting = VecDeque::new();
    for answer in pending {
        waiting.push_back(answer);
        if waiting.len() == 4_096 {
            waiting.pop_front().map(|oldest| oldest.wait().map(drop)).transpose().expect("a write is acknowledged");
        }
    }
    for answer in waiting {
        answer.wait().map(drop).expect("a write is acknowledged");
    }
}

/// Transactions per second, where so many callers at a time record batches of so many.
pub fn record_in_batches(engine: &Engine, batch: usize, callers: usize, agents: usize, time: Duration) -> f64 {
    let began = Instant::now();
    let mut numbers = Numbers::seeded(1);
    let (mut done, mut waiting) = (0, VecDeque::new());
    while began.elapsed() < time {
        let batch = (0..batch).map(|_| new_transaction(numbers.below(agents), numbers.below(agents))).collect();
        waiting.push_back(engine.record_batch(batch));
        if waiting.len() == callers {
            let answers = waiting.pop_front().expect("there are as many as callers").wait().expect("it is durable");
            done += answers.into_iter().filter(Result::is_ok).count();
        }
    }
    done as f64 / began.elapsed().as_secs_f64()
}

pub fn agent_id(number: usize) -> AgentId {
    AgentId::parse("agent_id", &format!("agent-{number:06}")).expect("digits and letters")
}

pub fn capability(number: usize) -> Capability {
    Capability::parse("capability", &format!("capability-{:02}", number % CAPABILITIES)).expect("digits and letters")
}

pub fn registration(number: usize) -> Registration {
    let capabilities = [capability(number), capability(number / CAPABILITIES)];
    Registration {
        agent_id: agent_id(number),
        name: format!("Agent {number}"),
        capabilities: Capabilities::parse(capabilities.iter().map(Capability::as_str)).expect("two capabilities"),
        cost_per_task: Money::parse(&format!("{}.5", number % 97)).expect("a decimal"),
        currency: Currency::default(),
        capacity_per_hour: Capacity::default(),
        availability: AvailabilityStatus::Online,
        billing_notes: None,
        metadata: JsonObject::default(),
        ttl: None,
    }
}

pub fn new_transaction(payer: usize, provider: usize) -> NewTransaction {
    NewTransaction {
        transaction_id: None,
        facts: Facts {
            payer_agent: agent_id(payer),
            provider_agent: agent_id(provider),
            capability: capability(provider),
            amount: Money::parse("18.50").expect("a decimal"),
            currency: Currency::default(),
            context: JsonObject::default(),
        },
    }
}

/// What a transaction is about, as the members of a JSON object.
pub fn facts_as_json(payer: usize, provider: usize) -> String {
    format!(
        r#""payer_agent":"agent-{payer:06}","provider_agent":"agent-{provider:06}","capability":"capability-01","amount":"18.5""#
    )
}

/// Numbers that look drawn by chance, the same in every run (Marsaglia's xorshift64).
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    pub fn seeded(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }
}
