//! The directory: every agent, ranked, in memory.
//!
//! It is derived from the store and rebuilt at start. The writer changes its own copy and publishes a clone after each
//! commit; the maps share structure, so a clone costs a few reference counts, and readers need no lock. Ranks hold only
//! what ranking looks at; full profiles are read from the store.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{self, AtomicU64};

use imbl::{HashMap, OrdMap, OrdSet, Vector};

use super::lease::Lease;
use crate::domain::ranking::{RankBy, Standing};
use crate::domain::{Agent, AgentId, AgentVersion, AvailabilityStatus, Capabilities, Capability, NodeId, Ttl};

/// What the directory keeps of an agent.
#[derive(Debug)]
pub struct Entry {
    /// What rankings look at.
    pub standing: Standing,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Its lease time.
    pub ttl: Ttl,
    /// Its lease.
    pub lease: Arc<Lease>,
    /// Whether its expiry is committed.
    pub expired: bool,
    /// Whether this node owns it.
    pub local: bool,
    /// Whether this node claims it; see [`Agent::claimed`].
    pub claimed: bool,
    /// Its version.
    pub version: AgentVersion,
    /// No other entry of this process has it: an agent that is written anew has a new entry.
    pub number: u64,
}

/// The number of the next entry.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

impl Entry {
    /// The entry of a stored agent.
    pub fn new(agent: &Agent, lease: Arc<Lease>, local: bool) -> Self {
        Self {
            standing: Standing {
                agent_id: agent.agent_id.clone(),
                cost_per_task: agent.cost_per_task,
                currency: agent.currency.clone(),
                // As it is shown: what looks equal ranks as equal.
                score: agent.reputation.shown_score(),
                availability: agent.availability,
                capacity_per_hour: agent.capacity_per_hour,
            },
            capabilities: agent.capabilities.clone(),
            ttl: agent.ttl,
            lease,
            expired: agent.expired,
            local,
            claimed: agent.claimed,
            version: agent.version,
            number: NEXT_NUMBER.fetch_add(1, atomic::Ordering::Relaxed),
        }
    }
}

/// Every agent, by id and by rank.
#[derive(Debug, Clone, Default)]
pub struct Directory {
    by_id: HashMap<AgentId, Arc<Entry>>,
    live: Section,
    expired: Section,
    online: u64,
    local_live: u64,
    local_score_sum: f64,
    capability_memberships: u64,
}

/// The live agents, or the expired ones.
#[derive(Debug, Clone, Default)]
pub struct Section {
    all: Ranks,
    by_capability: OrdMap<Capability, Ranks>,
}

/// Some agents, in every order that is asked for.
#[derive(Debug, Clone, Default)]
pub struct Ranks {
    by_id: OrdSet<Ranked<BY_ID>>,
    by_score: OrdSet<Ranked<BY_SCORE>>,
    by_cost: OrdSet<Ranked<BY_COST>>,
    by_search: OrdSet<Ranked<BY_SEARCH>>,
    by_availability: OrdSet<Ranked<BY_AVAILABILITY>>,
    lot: Lot,
}

/// The same agents in no order, to draw from.
#[derive(Debug, Clone, Default)]
struct Lot {
    entries: Vector<Arc<Entry>>,
    places: HashMap<AgentId, usize>,
}

const BY_ID: u8 = 0;
pub const BY_SCORE: u8 = 1;
const BY_COST: u8 = 2;
const BY_SEARCH: u8 = 3;
const BY_AVAILABILITY: u8 = 4;

/// An entry that sorts by one rank.
#[derive(Debug, Clone)]
pub struct Ranked<const RANK: u8>(Arc<Entry>);

/// Entries by score, as recommendations use them up.
pub type ByScore = OrdSet<Ranked<BY_SCORE>>;

const fn rank_by(rank: u8) -> RankBy {
    match rank {
        BY_SCORE => RankBy::Score,
        BY_COST => RankBy::Cost,
        BY_SEARCH => RankBy::Search,
        BY_AVAILABILITY => RankBy::Availability,
        _ => RankBy::AgentId,
    }
}

impl<const RANK: u8> Ranked<RANK> {
    /// The entry.
    pub fn entry(&self) -> &Arc<Entry> {
        &self.0
    }
}

impl<const RANK: u8> PartialEq for Ranked<RANK> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<const RANK: u8> Eq for Ranked<RANK> {}

impl<const RANK: u8> PartialOrd for Ranked<RANK> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<const RANK: u8> Ord for Ranked<RANK> {
    fn cmp(&self, other: &Self) -> Ordering {
        rank_by(RANK).compare(&self.0.standing, &other.0.standing)
    }
}

impl Directory {
    /// The entry of an agent.
    pub fn get(&self, id: &AgentId) -> Option<&Arc<Entry>> {
        self.by_id.get(id)
    }

    /// Every agent, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_id.values()
    }

    /// The agents whose leases run, but for those whose expiry is about to be committed.
    pub fn live(&self) -> &Section {
        &self.live
    }

    /// The agents whose expiry is committed.
    pub fn expired(&self) -> &Section {
        &self.expired
    }

    /// Adds or replaces an agent.
    pub fn put(&mut self, entry: Entry) {
        let entry = Arc::new(entry);
        self.remove(&entry.standing.agent_id);
        self.count(&entry, true);
        self.section_of(&entry).insert(&entry);
        self.by_id.insert(entry.standing.agent_id.clone(), entry);
    }

    /// Removes an agent.
    pub fn remove(&mut self, id: &AgentId) {
        if let Some(entry) = self.by_id.remove(id) {
            self.count(&entry, false);
            self.section_of(&entry).remove(&entry);
        }
    }

    /// Live agents that are online.
    pub fn online(&self) -> u64 {
        self.online
    }

    /// Live agents of this node, and the sum of their scores.
    pub fn local_scores(&self) -> (u64, f64) {
        (self.local_live, self.local_score_sum)
    }

    /// The sum over all capabilities of the live agents that have it.
    pub fn capability_memberships(&self) -> u64 {
        self.capability_memberships
    }

    fn section_of(&mut self, entry: &Entry) -> &mut Section {
        if entry.expired { &mut self.expired } else { &mut self.live }
    }

    fn count(&mut self, entry: &Entry, add: bool) {
        if entry.expired {
            return;
        }
        let step = |counter: &mut u64, by: u64| *counter = if add { *counter + by } else { *counter - by };
        if entry.standing.availability == AvailabilityStatus::Online {
            step(&mut self.online, 1);
        }
        step(&mut self.capability_memberships, entry.capabilities.iter().len() as u64);
        if entry.local {
            step(&mut self.local_live, 1);
            self.local_score_sum += if add { entry.standing.score } else { -entry.standing.score };
        }
    }
}

impl Section {
    /// Those with a capability, or all.
    pub fn ranks(&self, capability: Option<&Capability>) -> Option<&Ranks> {
        match capability {
            None => Some(&self.all),
            Some(capability) => self.by_capability.get(capability),
        }
    }

    /// Every capability that any of them has, and how many have it.
    pub fn capabilities(&self) -> impl Iterator<Item = (&Capability, u64)> {
        self.by_capability.iter().map(|(capability, ranks)| (capability, ranks.len()))
    }

    fn insert(&mut self, entry: &Arc<Entry>) {
        self.all.insert(entry);
        for capability in entry.capabilities.iter() {
            self.by_capability.entry(capability.clone()).or_default().insert(entry);
        }
    }

    fn remove(&mut self, entry: &Arc<Entry>) {
        self.all.remove(entry);
        for capability in entry.capabilities.iter() {
            if let Some(ranks) = self.by_capability.get_mut(capability) {
                ranks.remove(entry);
                if ranks.len() == 0 {
                    self.by_capability.remove(capability);
                }
            }
        }
    }
}

impl Ranks {
    /// How many they are.
    pub fn len(&self) -> u64 {
        self.lot.entries.len() as u64
    }

    /// By score, to be used up by recommendations.
    pub fn by_score(&self) -> &ByScore {
        &self.by_score
    }

    /// In an order, from the beginning or after a standing.
    pub fn iter<'a>(&'a self, by: RankBy, after: Option<&Standing>) -> Box<dyn Iterator<Item = &'a Arc<Entry>> + 'a> {
        match by {
            RankBy::AgentId => walk(&self.by_id, after),
            RankBy::Score => walk(&self.by_score, after),
            RankBy::Cost => walk(&self.by_cost, after),
            RankBy::Search => walk(&self.by_search, after),
            RankBy::Availability => walk(&self.by_availability, after),
        }
    }

    /// The `index`th of them in no order; `index` is below [`len`](Self::len).
    pub fn draw(&self, index: usize) -> Option<&Arc<Entry>> {
        self.lot.entries.get(index)
    }

    fn insert(&mut self, entry: &Arc<Entry>) {
        self.by_id.insert(Ranked(Arc::clone(entry)));
        self.by_score.insert(Ranked(Arc::clone(entry)));
        self.by_cost.insert(Ranked(Arc::clone(entry)));
        self.by_search.insert(Ranked(Arc::clone(entry)));
        self.by_availability.insert(Ranked(Arc::clone(entry)));
        self.lot.insert(entry);
    }

    fn remove(&mut self, entry: &Arc<Entry>) {
        self.by_id.remove(&Ranked(Arc::clone(entry)));
        self.by_score.remove(&Ranked(Arc::clone(entry)));
        self.by_cost.remove(&Ranked(Arc::clone(entry)));
        self.by_search.remove(&Ranked(Arc::clone(entry)));
        self.by_availability.remove(&Ranked(Arc::clone(entry)));
        self.lot.remove(&entry.standing.agent_id);
    }
}

impl Lot {
    fn insert(&mut self, entry: &Arc<Entry>) {
        self.places.insert(entry.standing.agent_id.clone(), self.entries.len());
        self.entries.push_back(Arc::clone(entry));
    }

    /// Fills the gap with the last one.
    fn remove(&mut self, id: &AgentId) {
        let Some(place) = self.places.remove(id) else { return };
        let last = self.entries.pop_back().expect("a place in the lot is taken by an entry");
        if place < self.entries.len() {
            self.places.insert(last.standing.agent_id.clone(), place);
            self.entries.set(place, last);
        }
    }
}

fn walk<'a, const RANK: u8>(
    set: &'a OrdSet<Ranked<RANK>>,
    after: Option<&Standing>,
) -> Box<dyn Iterator<Item = &'a Arc<Entry>> + 'a> {
    match after {
        None => Box::new(set.iter().map(Ranked::entry)),
        Some(standing) => {
            let start = Ranked::<RANK>(Arc::new(placeholder(standing)));
            let from = (std::ops::Bound::Excluded(start), std::ops::Bound::Unbounded);
            Box::new(set.range(from).map(Ranked::entry))
        }
    }
}

/// An entry that only marks a place in an order.
fn placeholder(standing: &Standing) -> Entry {
    Entry {
        standing: standing.clone(),
        capabilities: Capabilities::default(),
        ttl: Ttl::default(),
        lease: Arc::new(Lease::ended(crate::domain::Timestamp::default())),
        expired: true,
        local: false,
        claimed: true,
        version: AgentVersion { epoch: 0, seq: 0, node_id: NodeId::NIL },
        number: 0,
    }
}

/// Walks several ranks as one, in order; an agent that stands in more than one comes once.
pub fn merged<'a>(
    ranks: impl IntoIterator<Item = &'a Ranks>,
    by: RankBy,
    after: Option<&Standing>,
) -> impl Iterator<Item = &'a Arc<Entry>> {
    let mut heads = BinaryHeap::new();
    for ranks in ranks {
        let mut rest = ranks.iter(by, after);
        heads.extend(rest.next().map(|entry| MergeHead { by, entry, rest }));
    }
    let mut previous: Option<&'a Arc<Entry>> = None;
    std::iter::from_fn(move || {
        loop {
            let MergeHead { entry, mut rest, .. } = heads.pop()?;
            heads.extend(rest.next().map(|entry| MergeHead { by, entry, rest }));
            if previous.is_none_or(|previous| previous.standing.agent_id != entry.standing.agent_id) {
                previous = Some(entry);
                return Some(entry);
            }
        }
    })
}

struct MergeHead<'a> {
    by: RankBy,
    entry: &'a Arc<Entry>,
    rest: Box<dyn Iterator<Item = &'a Arc<Entry>> + 'a>,
}

impl PartialEq for MergeHead<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for MergeHead<'_> {}

impl PartialOrd for MergeHead<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for MergeHead<'_> {
    /// Reversed, since the heap gives its greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        self.by.compare(&other.entry.standing, &self.entry.standing)
    }
}
