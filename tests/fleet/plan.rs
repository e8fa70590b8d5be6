//! What is done to a fleet: a list of steps, drawn from a seed and nothing else.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::wire::Break;

/// How many agents there are at most.
pub const AGENTS: usize = 4;
/// How many transactions there are at most.
pub const TRANSACTIONS: usize = 12;
/// How many steps a fleet takes.
const STEPS: std::ops::RangeInclusive<usize> = 15..=60;

const MINUTE: i64 = 60;
const DAY: i64 = 24 * 3_600;
const YEAR: i64 = 365 * DAY;

/// A central system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    Redis,
    Postgres,
}

/// What a party does to a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Settle,
    Cancel,
    Dispute,
    AddEvidence,
    ResolveSettled,
    ResolveCancelled,
}

/// One step. Nodes are counted as there are at the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// An agent's process starts at a node, or moves there, and registers.
    Register { agent: usize, node: usize },
    /// It changes what it says of itself.
    Update { agent: usize },
    /// It unregisters and ends.
    Unregister { agent: usize },
    /// Somebody says at a node how an agent did.
    Observe { agent: usize, node: usize, success: bool },
    /// A transaction is recorded at a node; the same one may be at another.
    Record { transaction: usize, node: usize },
    /// It is decided about at a node, if that holds it.
    Decide { transaction: usize, node: usize, verdict: Verdict },
    /// A node works with a central system.
    Round { node: usize, sink: Sink },
    /// The same, and the wire breaks after so many exchanges.
    Break { node: usize, sink: Sink, after: u32, how: Break },
    /// A node is parted from a central system.
    Part { node: usize, sink: Sink },
    /// It is parted no more.
    Rejoin { node: usize, sink: Sink },
    /// What was said when a node's wire to Redis broke reaches it once more.
    Late { node: usize },
    /// A node is killed and started again.
    Crash { node: usize },
    /// Its file is copied for later.
    BackUp { node: usize },
    /// The copy is put in the place of its file.
    Restore { node: usize },
    /// A copy of its file goes on beside it; with `moves`, its agents' processes go along.
    Clone { node: usize, moves: bool },
    /// A central system is copied for later.
    BackUpCentre { sink: Sink },
    /// It is put back to that; `renumbered` as a dump is.
    RestoreCentre { sink: Sink, renumbered: bool },
    /// Redis loses everything.
    EmptyRedis,
    /// A node's wall clock is set so many seconds ahead of the true time, or behind it.
    SetClock { node: usize, ahead: i64 },
    /// Time passes, and agents give signs of life.
    Pass { seconds: u64 },
    /// A node stalls for ten leases while the others go on.
    Stall { node: usize },
}

/// A fleet and what is done to it.
#[derive(Debug, Clone)]
pub struct Plan {
    pub nodes: usize,
    pub steps: Vec<Step>,
}

impl Plan {
    pub fn of(seed: u64) -> Self {
        let random = &mut StdRng::seed_from_u64(seed);
        let nodes = random.random_range(2..=4);
        let length = random.random_range(STEPS);
        // Some fleets have true clocks, some one copy of each file, some lasting centres: what one kind of trouble does
        // alone must show.
        let troubles = Troubles {
            clocks: random.random_bool(0.4),
            files: random.random_bool(0.5),
            centres: random.random_bool(0.4),
            wires: random.random_bool(0.7),
            ends: random.random_bool(0.3),
        };
        let mut steps = Vec::new();
        for agent in 0..random.random_range(1..=AGENTS) {
            steps.push(Step::Register { agent, node: agent % nodes });
        }
        while steps.len() < length {
            if troubles.centres && random.random_bool(0.02) {
                steps.extend(forgotten_end(random.random_range(0..AGENTS), nodes));
            }
            steps.extend(troubles.draw(random));
        }
        Self { nodes, steps }
    }
}

/// An agent ends, every node hears of it, and then Redis is put back to what it held before.
fn forgotten_end(agent: usize, nodes: usize) -> Vec<Step> {
    let sink = Sink::Redis;
    let rounds = || (0..nodes).map(|node| Step::Round { node, sink });
    let mut steps = vec![Step::BackUpCentre { sink }, Step::Unregister { agent }];
    // Whoever comes before the agent's own node hears of it the second time.
    steps.extend(rounds().chain(rounds()));
    steps.push(Step::RestoreCentre { sink, renumbered: false });
    steps.extend(rounds());
    steps
}

struct Troubles {
    clocks: bool,
    files: bool,
    centres: bool,
    wires: bool,
    /// Agents end more often.
    ends: bool,
}

impl Troubles {
    /// A step, unless it is of a kind that this fleet is spared.
    fn draw(&self, random: &mut StdRng) -> Option<Step> {
        let (node, agent, transaction) =
            (random.random_range(0..60), random.random_range(0..AGENTS), random.random_range(0..TRANSACTIONS));
        let sink = if random.random_bool(0.5) { Sink::Redis } else { Sink::Postgres };
        if self.centres && random.random_bool(0.1) {
            return Some(match random.random_range(0..5) {
                0 | 1 => Step::BackUpCentre { sink },
                2 | 3 => Step::RestoreCentre { sink, renumbered: random.random_bool(0.5) },
                _ => Step::EmptyRedis,
            });
        }
        if self.ends && random.random_bool(0.1) {
            return Some(if random.random_bool(0.6) {
                Step::Unregister { agent }
            } else {
                Step::Register { agent, node }
            });
        }
        Some(match random.random_range(0..100) {
            0..4 => Step::Register { agent, node },
            4..7 => Step::Update { agent },
            7..9 => Step::Unregister { agent },
            9..13 => Step::Observe { agent, node, success: random.random_bool(0.7) },
            13..23 => Step::Record { transaction, node },
            23..36 => Step::Decide { transaction, node, verdict: verdict(random) },
            36..62 => Step::Round { node, sink },
            62..69 if self.wires => {
                let how = [Break::Request, Break::Answer, Break::Held][random.random_range(0..3)];
                // A request that PostgreSQL is told later meets a connection that is gone.
                let how = if sink == Sink::Postgres && how == Break::Held { Break::Answer } else { how };
                Step::Break { node, sink, after: random.random_range(0..40), how }
            }
            69..72 if self.wires => Step::Part { node, sink },
            72..75 => Step::Rejoin { node, sink },
            75..77 if self.wires => Step::Late { node },
            77..80 => Step::Crash { node },
            80..82 if self.files => Step::BackUp { node },
            82..84 if self.files => Step::Restore { node },
            84..86 if self.files => Step::Clone { node, moves: random.random_bool(0.3) },
            86..90 if self.clocks => Step::SetClock { node, ahead: jump(random) },
            90..99 => Step::Pass { seconds: [1, 3, 10, 25][random.random_range(0..4)] },
            99 => Step::Stall { node },
            _ => return None,
        })
    }
}

fn verdict(random: &mut StdRng) -> Verdict {
    [
        Verdict::Settle,
        Verdict::Cancel,
        Verdict::Dispute,
        Verdict::AddEvidence,
        Verdict::ResolveSettled,
        Verdict::ResolveCancelled,
    ][random.random_range(0..6)]
}

fn jump(random: &mut StdRng) -> i64 {
    let sizes = [1, 30, 5 * MINUTE, 90 * MINUTE, DAY, 200 * DAY, YEAR, 2 * YEAR, 10 * YEAR];
    let size = sizes[random.random_range(0..sizes.len())];
    if random.random_bool(0.5) { size } else { -size }
}
