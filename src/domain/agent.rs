//! A registered agent, and the rules for registering, replacing and changing one.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ids::{AgentId, Capability, Currency, NodeId, ObserverId};
use super::json::JsonObject;
use super::money::Money;
use super::observation::{self, Baseline, Counters, MAX_OBSERVERS};
use super::refusal::{Invalid, Refusal};
use super::registration::{AgentPatch, Registration};
use super::reputation::Reputation;
use super::time::Timestamp;
use super::version::AgentVersion;

/// The most capabilities one agent may name.
pub const MAX_CAPABILITIES: usize = 256;

/// An agent as the store keeps it. What it offers is its owner's word; its reputation is others'.
#[derive(Debug, Clone, PartialEq)]
pub struct Agent {
    /// Its id.
    pub agent_id: AgentId,
    /// Its name: 1 to 255 characters.
    pub name: String,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Price of one task, 0 or more.
    pub cost_per_task: Money,
    /// The currency of that price.
    pub currency: Currency,
    /// Anything else about billing, up to 4 KiB.
    pub billing_notes: Option<String>,
    /// Whether it takes work.
    pub availability: AvailabilityStatus,
    /// How many tasks an hour it takes, 1 or more.
    pub capacity_per_hour: Capacity,
    /// When registration, PUT or PATCH last changed it.
    pub last_updated: Timestamp,
    /// What others made of it.
    pub reputation: Reputation,
    /// Its own data.
    pub metadata: JsonObject,
    /// Rises with register, PUT and PATCH; never reused for an id.
    pub revision: u64,
    /// How long it lives without a sign of life.
    pub ttl: Ttl,
    /// When its lease was due when this record was written; heartbeats since then live in memory only.
    pub expires_at: Timestamp,
    /// Whether its expiry has been committed.
    pub expired: bool,
    /// Which of several copies is the newest, and whose it is.
    pub version: AgentVersion,
    /// False for an agent that this file owned before it took another node id, until its next sign of life here: it may
    /// live beside the other file now. True for all others, remote ones too.
    pub claimed: bool,
    /// What of other observers' counters `reputation` holds already.
    pub baseline: Baseline,
}

impl Agent {
    /// The node that owns it.
    pub fn node_id(&self) -> NodeId {
        self.version.node_id
    }

    /// Whether the file of `node_id` owns it.
    pub fn is_local(&self, node_id: NodeId) -> bool {
        self.version.node_id == node_id || !self.claimed
    }

    /// The version of its next change: the next one of its owner, or a new claim to it where it is not claimed.
    fn next_version(&self, context: &AgentContext) -> AgentVersion {
        if self.claimed { self.version.next() } else { context.begin(Some(self.version)) }
    }
}

/// Whether an agent takes work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AvailabilityStatus {
    /// Takes work.
    Online,
    /// Works, and may take more.
    Busy,
    /// Takes no work for now.
    Maintenance,
    /// Takes no work.
    Offline,
}

impl AvailabilityStatus {
    /// All of them, best first: the order in which rankings prefer them.
    pub const ALL: [Self; 4] = [Self::Online, Self::Busy, Self::Maintenance, Self::Offline];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Busy => "busy",
            Self::Maintenance => "maintenance",
            Self::Offline => "offline",
        }
    }

    /// Reads the name on the wire.
    pub fn parse(field: &'static str, text: &str) -> Result<Self, Invalid> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| Invalid::new(field, "must be one of online, busy, offline, maintenance"))
    }
}

impl fmt::Display for AvailabilityStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set of capabilities, sorted, each once; may be empty.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Capabilities(Vec<Capability>);

impl Capabilities {
    /// Parses each, sorts, and drops repetitions.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, Invalid> {
        let field = "capabilities";
        let mut parsed =
            texts.into_iter().map(|text| Capability::parse(field, text)).collect::<Result<Vec<_>, Invalid>>()?;
        parsed.sort();
        parsed.dedup();
        if parsed.len() > MAX_CAPABILITIES {
            return Err(Invalid::new(field, format!("must be at most {MAX_CAPABILITIES} capabilities")));
        }
        Ok(Self(parsed))
    }

    /// In order.
    pub fn iter(&self) -> std::slice::Iter<'_, Capability> {
        self.0.iter()
    }

    /// Whether `capability` is among them.
    pub fn contains(&self, capability: &Capability) -> bool {
        self.0.binary_search(capability).is_ok()
    }
}

/// Tasks an hour: 1 or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Capacity(u32);

impl Capacity {
    /// Checks the range, 1 to 4 294 967 295.
    pub fn parse(value: i128) -> Result<Self, Invalid> {
        match u32::try_from(value) {
            Ok(capacity @ 1..) => Ok(Self(capacity)),
            _ => Err(Invalid::new("capacity_per_hour", "must be 1 to 4294967295")),
        }
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for Capacity {
    /// 30 an hour.
    fn default() -> Self {
        Self(30)
    }
}

/// How long a lease lasts: 1 second to 30 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ttl(u32);

impl Ttl {
    /// 30 days.
    pub const LONGEST_SECONDS: u32 = 2_592_000;

    /// Checks the range.
    pub fn parse(seconds: i128) -> Result<Self, Invalid> {
        match u32::try_from(seconds) {
            Ok(seconds @ 1..=Self::LONGEST_SECONDS) => Ok(Self(seconds)),
            _ => Err(Invalid::new("ttl_seconds", "must be 1 to 2592000 seconds")),
        }
    }

    /// In seconds.
    pub fn seconds(self) -> u32 {
        self.0
    }

    /// As a duration.
    pub fn duration(self) -> Duration {
        Duration::from_secs(u64::from(self.0))
    }
}

impl Default for Ttl {
    /// One hour.
    fn default() -> Self {
        Self(3_600)
    }
}

/// What is remembered of an agent that was deleted.
#[derive(Debug, Clone, PartialEq)]
pub struct Departed {
    /// The version of its deletion.
    pub version: AgentVersion,
    /// What of its observers' counters was folded before: whoever has the id next is not given it again.
    pub baseline: Baseline,
}

/// What a rule needs to know besides the agent itself.
#[derive(Debug, Clone)]
pub struct AgentContext {
    /// The wall clock.
    pub now: Timestamp,
    /// This node.
    pub node_id: NodeId,
    /// The lease of an agent that names none.
    pub default_ttl: Ttl,
    /// A revision that no deleted agent has passed.
    pub revision_floor: u64,
    /// The last agent of this id, if it was deleted and is still remembered.
    pub departed: Option<Departed>,
}

impl AgentContext {
    /// A version that begins anew, above all that is known of the id.
    fn begin(&self, existing: Option<AgentVersion>) -> AgentVersion {
        let departed = self.departed.as_ref().map(|departed| departed.version);
        let last_epoch = existing.max(departed).map_or(0, |version| version.epoch);
        AgentVersion::begin(self.now, last_epoch, self.node_id)
    }
}

/// An agent that is stored, and whether its lease runs.
#[derive(Debug, Clone)]
pub struct Existing {
    /// The stored agent.
    pub agent: Agent,
    /// Whether its lease runs.
    pub live: bool,
}

/// Registers: refused while a live agent has the id; an expired one is replaced and keeps its reputation.
pub fn register(
    existing: Option<Existing>,
    registration: Registration,
    context: AgentContext,
) -> Result<Agent, Refusal> {
    match existing {
        Some(existing) if existing.live => Err(Refusal::AgentAlreadyRegistered(existing.agent.agent_id)),
        existing => Ok(replace(existing.map(|existing| existing.agent), registration, context)),
    }
}

/// Registers or replaces, whoever has the id; reputation is kept and the lease starts again.
pub fn replace(existing: Option<Agent>, registration: Registration, context: AgentContext) -> Agent {
    let ttl = registration.ttl.unwrap_or(context.default_ttl);
    let previous_revision = existing.as_ref().map_or(0, |agent| agent.revision).max(context.revision_floor);
    let version = context.begin(existing.as_ref().map(|agent| agent.version));
    let (reputation, baseline) = match existing {
        Some(agent) => (agent.reputation, agent.baseline),
        None => (Reputation::default(), context.departed.map(|departed| departed.baseline).unwrap_or_default()),
    };
    Agent {
        agent_id: registration.agent_id,
        name: registration.name,
        capabilities: registration.capabilities,
        cost_per_task: registration.cost_per_task,
        currency: registration.currency,
        billing_notes: registration.billing_notes,
        availability: registration.availability,
        capacity_per_hour: registration.capacity_per_hour,
        last_updated: context.now,
        reputation,
        metadata: registration.metadata,
        revision: previous_revision.saturating_add(1),
        ttl,
        expires_at: context.now.after(ttl.duration()),
        expired: false,
        version,
        claimed: true,
        baseline,
    }
}

/// Changes what the patch names and renews the lease, of an expired agent too.
pub fn update(agent: Agent, patch: AgentPatch, context: AgentContext) -> Result<Agent, Refusal> {
    require_local(&agent, context.node_id)?;
    let ttl = patch.ttl.unwrap_or(agent.ttl);
    let version = agent.next_version(&context);
    Ok(Agent {
        name: patch.name.unwrap_or(agent.name),
        cost_per_task: patch.cost_per_task.unwrap_or(agent.cost_per_task),
        currency: patch.currency.unwrap_or(agent.currency),
        billing_notes: patch.billing_notes.unwrap_or(agent.billing_notes),
        availability: patch.availability.unwrap_or(agent.availability),
        capacity_per_hour: patch.capacity_per_hour.unwrap_or(agent.capacity_per_hour),
        capabilities: patch.capabilities.unwrap_or(agent.capabilities),
        metadata: patch.metadata.unwrap_or(agent.metadata),
        last_updated: context.now,
        revision: agent.revision.saturating_add(1),
        ttl,
        expires_at: context.now.after(ttl.duration()),
        expired: false,
        version,
        claimed: true,
        ..agent
    })
}

/// Begins a new lease after the last one ended, or lays claim to an agent that is not claimed.
pub fn revive(agent: Agent, context: AgentContext) -> Result<Agent, Refusal> {
    require_local(&agent, context.node_id)?;
    let expires_at = context.now.after(agent.ttl.duration());
    let version = agent.next_version(&context);
    Ok(Agent { expires_at, expired: false, version, claimed: true, ..agent })
}

/// A version that others believe, for an agent whose registration was dated further ahead than anybody believes. `None` for
/// all others.
pub fn redate(agent: Agent, context: &AgentContext) -> Option<Agent> {
    let is_ours = agent.claimed && agent.is_local(context.node_id);
    let version = context.begin(Some(agent.version));
    (is_ours && !agent.version.is_kept_at(context.now)).then_some(Agent { version, ..agent })
}

/// Deletes; the version of the deletion.
pub fn unregister(agent: &Agent, context: &AgentContext) -> Result<AgentVersion, Refusal> {
    require_local(agent, context.node_id)?;
    Ok(agent.next_version(context))
}

/// An agent after `counters` of its work were observed here, where they now stand at `total` in all. Its owner tells
/// others, who must not fold it again; anybody else keeps it as its own view, and the owner hears of it as an
/// observation.
pub fn observe(agent: Agent, counters: Counters, observer: ObserverId, total: Counters, node_id: NodeId) -> Agent {
    let reputation = agent.reputation.folded(counters);
    let local = agent.is_local(node_id);
    let mut seen = Agent { reputation, ..agent };
    if local {
        observation::hold(&mut seen.baseline, observer, total);
        seen.version = if seen.claimed { seen.version.next() } else { seen.version };
    }
    seen
}

/// An agent after its owner folded what the observers' counters hold above the baseline, `None` if that is nothing; and
/// how many observers were left out because the baseline is full.
pub fn fold_observations(
    agent: &Agent,
    totals: impl IntoIterator<Item = (ObserverId, Counters)>,
) -> (Option<Agent>, usize) {
    let mut folded = agent.clone();
    let mut left_out = 0;
    for (observer, total) in totals {
        let known = folded.baseline.get(&observer);
        let is_new = known.is_none();
        let Some(above) = total.above(known) else { continue };
        if is_new && folded.baseline.len() >= MAX_OBSERVERS {
            left_out += 1;
            continue;
        }
        folded.reputation = folded.reputation.folded(above);
        folded.baseline.insert(observer, total);
    }
    let folded = (folded.baseline != agent.baseline).then(|| Agent { version: agent.version.next(), ..folded });
    (folded, left_out)
}

/// Refuses unless `node_id` owns the agent.
pub fn require_local(agent: &Agent, node_id: NodeId) -> Result<(), Refusal> {
    if agent.is_local(node_id) { Ok(()) } else { Err(Refusal::AgentNotLocal(agent.agent_id.clone())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::reputation::Weight;

    fn context(now: i64) -> AgentContext {
        AgentContext {
            now: Timestamp::from_micros(now),
            node_id: NodeId::from_bytes([1; 16]),
            default_ttl: Ttl::default(),
            revision_floor: 0,
            departed: None,
        }
    }

    fn registration() -> Registration {
        Registration {
            agent_id: AgentId::from_stored("thon"),
            name: "Thon".into(),
            capabilities: Capabilities::parse(["Python", "backend", "python "]).unwrap(),
            cost_per_task: Money::parse("18.5").unwrap(),
            currency: Currency::default(),
            capacity_per_hour: Capacity::default(),
            availability: AvailabilityStatus::Online,
            billing_notes: None,
            metadata: JsonObject::default(),
            ttl: None,
        }
    }

    #[test]
    fn capabilities_are_sorted_and_unique() {
        let registered = register(None, registration(), context(0)).unwrap();
        let names: Vec<&str> = registered.capabilities.iter().map(Capability::as_str).collect();
        assert_eq!(names, ["backend", "python"]);
    }

    #[test]
    fn a_live_agent_holds_its_id_and_an_expired_one_hands_on_its_reputation() {
        let mut agent = register(None, registration(), context(0)).unwrap();
        agent.reputation = agent.reputation.observed(true, Weight::default());
        let live = Existing { agent: agent.clone(), live: true };
        assert_eq!(
            register(Some(live), registration(), context(1)),
            Err(Refusal::AgentAlreadyRegistered(agent.agent_id.clone()))
        );
        let expired = Existing { agent: agent.clone(), live: false };
        let again = register(Some(expired), registration(), context(2)).unwrap();
        assert_eq!(again.reputation, agent.reputation);
        assert_eq!(again.revision, agent.revision + 1);
    }

    #[test]
    fn a_revision_is_above_every_deleted_one() {
        let floor = AgentContext { revision_floor: 41, ..context(0) };
        assert_eq!(register(None, registration(), floor).unwrap().revision, 42);
    }

    #[test]
    fn a_patch_changes_what_it_names_and_renews_the_lease() {
        let agent = register(None, registration(), context(0)).unwrap();
        let patch = AgentPatch { name: Some("T".into()), ttl: Some(Ttl::parse(60).unwrap()), ..AgentPatch::default() };
        let changed = update(Agent { expired: true, ..agent.clone() }, patch, context(5)).unwrap();
        assert_eq!(changed.name, "T");
        assert_eq!(changed.capabilities, agent.capabilities);
        assert_eq!(changed.revision, 2);
        assert_eq!(changed.expires_at, Timestamp::from_micros(60_000_005));
        assert!(!changed.expired);
    }

    #[test]
    fn only_its_node_changes_an_agent_but_anyone_may_replace_it() {
        let elsewhere = AgentContext { node_id: NodeId::from_bytes([9; 16]), ..context(700) };
        let foreign = register(None, registration(), elsewhere).unwrap();
        assert!(matches!(update(foreign.clone(), AgentPatch::default(), context(1)), Err(Refusal::AgentNotLocal(_))));
        let taken = replace(Some(foreign.clone()), registration(), context(1));
        assert_eq!(taken.node_id(), NodeId::from_bytes([1; 16]));
        assert_eq!(taken.version.epoch, 701, "the newest registration wins, whatever its clock says");
    }

    #[test]
    fn a_full_baseline_folds_the_observers_that_it_holds_and_no_new_ones() {
        let agent = register(None, registration(), context(0)).unwrap();
        let observer = |number: u128| ObserverId::from_bytes(number.to_be_bytes());
        let totals = |times: f64| {
            let total = Counters { successes: times as u64, failures: 0, score: 0.0 };
            (0..MAX_OBSERVERS as u128 + 5).map(move |number| (observer(number), total))
        };
        let (folded, left_out) = fold_observations(&agent, totals(1.0));
        let folded = folded.expect("it is new");
        assert_eq!((folded.baseline.len(), left_out), (MAX_OBSERVERS, 5));
        assert_eq!(folded.reputation.successful_tasks, MAX_OBSERVERS as u64);
        let (again, left_out) = fold_observations(&folded, totals(2.0));
        assert_eq!(again.expect("it is more").reputation.successful_tasks, 2 * MAX_OBSERVERS as u64);
        assert_eq!(left_out, 5);
    }

    #[test]
    fn a_change_is_the_next_version_and_a_claim_a_new_epoch() {
        let agent = register(None, registration(), context(50)).unwrap();
        let changed = update(agent.clone(), AgentPatch::default(), context(60)).unwrap();
        assert_eq!(changed.version, AgentVersion { seq: 2, ..agent.version });
        let renamed = AgentContext { node_id: NodeId::from_bytes([2; 16]), ..context(60) };
        let inherited = Agent { claimed: false, ..agent };
        let patch = AgentPatch::default();
        for claim in [update(inherited.clone(), patch, renamed.clone()), revive(inherited, renamed.clone())] {
            let claim = claim.unwrap();
            assert_eq!(claim.version, AgentVersion { epoch: 60, seq: 1, node_id: renamed.node_id });
            assert!(claim.claimed);
        }
    }
}
