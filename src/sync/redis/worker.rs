//! Redis as a sink: what a connection begins with, and what one round of work is.
//!
//! A round tells Redis what changed here, renews what is due, reads what changed elsewhere, and looks through one page of
//! all ids if that is under way. Everything that a round does may be done again, so a round that fails is simply left.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use redis::{PushInfo, PushKind, Value};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::bells::{OUTCOMES, Ringer};
use super::intake::{Intake, store_failure};
use super::keys;
use super::leases::Leases;
use super::link::Link;
use super::scan::{Scan, Why};
use super::scripts::Scripts;
use super::stream::{self, Origin, Position};
use crate::clock::Clock;
use crate::domain::{AgentId, AgentVersion, MAX_OBSERVERS, NodeId, Timestamp};
use crate::engine::Engine;
use crate::engine::PageRequest;
use crate::engine::replica::{
    AgentChange, CommitMark, ForkReason, ParkedKey, RedisState, RegistryLink, Saved, Sink, SinkRequest,
};
use crate::sync::CurrentUrl;
use crate::sync::driver::{Backlog, Destination, Round};
use crate::sync::state::Failure;

/// How often it is asked whether this is still the same data on the same server.
const ORIGIN_EVERY: Duration = Duration::from_secs(5);
/// How long a backlog may drain before the rest of a round has its turn. What has just been pushed has its whole lease.
const REST_EVERY: Duration = Duration::from_secs(10);
/// What is told when the nonce is another.
const LOST: &str = "Redis was emptied or replaced; this node tells it everything again";
/// How many bells of observers may wait; one more is found when the lease is renewed.
const HEARD: usize = 1_024;
/// How far a clock may be off that counts as about right: little beside the year that versions are believed ahead.
const ABOUT: Duration = Duration::from_secs(30 * 24 * 3_600);
/// Among so many changes the oldest is looked for that says when it was made; deletions do not.
const LOOKED_AT: usize = 16;

/// The registry in Redis.
pub struct Redis {
    pub(super) engine: Engine,
    url: CurrentUrl,
    stale_for: Duration,
    /// Rung when another node says that PostgreSQL has something for us.
    rung: Arc<Notify>,
    ringer: Ringer,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) scripts: Arc<Scripts>,
    pub(super) intake: Intake,
    pub(super) random: StdRng,
    forked: bool,
    /// How many observers had no room in a baseline when that last happened.
    pub(super) left_out: AtomicUsize,
    /// Whether Redis came without what it had been told.
    lost: bool,
    /// How many agents of this node had vanished from Redis, and the last of them.
    pub(super) vanished: (usize, Option<AgentId>),
}

/// A connection, and what is known over it.
pub struct Session {
    pub(super) link: Link,
    /// Whose cursors `state` holds: this node's, as long as it goes by that id.
    node_id: NodeId,
    pub(super) state: RedisState,
    /// What of `state` is not stored yet.
    pub(super) unsaved: bool,
    pub(super) cursor: Position,
    pub(super) origin: Origin,
    /// What time it was there when it was asked last.
    time: (Option<Timestamp>, Instant),
    origin_due: Instant,
    /// When the rest of a round is done even while a backlog drains.
    rest_due: Instant,
    pub(super) leases: Leases,
    /// The changes up to which leases and channels are those of the agents that live here.
    pub(super) leased_seq: Option<u64>,
    /// How often outcomes of each local agent were written when they were read last.
    pub(super) written: HashMap<AgentId, Vec<u8>>,
    /// Local agents of which observers rang.
    pub(super) heard: mpsc::Receiver<AgentId>,
    pub(super) listening: HashSet<AgentId>,
    /// The observations that have been offered.
    pub(super) offered_seq: Option<u64>,
    /// Whether all of them are to be offered, acknowledged ones too: Redis may have gone back to what it held before.
    pub(super) offers_all: bool,
    pub(super) parked: HashSet<AgentId>,
    pub(super) scan: Option<Scan>,
    pub(super) scan_due: Instant,
    pub(super) scans: u32,
    /// Agents that Redis had lost when it was looked through after a break.
    pub(super) unconfirmed: HashMap<AgentId, AgentVersion>,
    pub(super) expiry_due: Instant,
    pub(super) extent_due: Instant,
    /// How many nodes there seem to be, and remote agents.
    pub(super) fleet: (usize, usize),
    /// Up to where deletions have been told again, while that goes on.
    pub(super) sweep: Option<u64>,
    pub(super) sweep_due: Option<Instant>,
    pub(super) sweep_found: bool,
    ringing: JoinHandle<Failure>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.ringing.abort();
    }
}

impl Session {
    /// Whether a clock that shows `now` is about right, by the clock of Redis.
    pub(super) fn is_about_right(&self, now: Timestamp) -> bool {
        let (Some(time), asked) = self.time else { return false };
        let there = time.after(asked.elapsed());
        now.since(there).max(there.since(now)) <= ABOUT
    }

    /// Has it asked again, at once, which data and which server this is.
    pub(super) fn origin_is_due(&mut self, now: Instant) {
        self.origin_due = now;
    }
}

impl Redis {
    /// Replicates `engine`'s registry to where `url` says. `rung` is notified when another node has put something into
    /// PostgreSQL that concerns an agent of this one.
    pub fn new(
        engine: Engine,
        clock: Arc<dyn Clock>,
        random: StdRng,
        url: CurrentUrl,
        stale_for: Duration,
        rung: Arc<Notify>,
    ) -> Self {
        engine.registry_link(RegistryLink::Down { stale_for });
        Self {
            intake: Intake::new(engine.clone(), Arc::clone(&clock)),
            engine,
            url,
            stale_for,
            rung,
            ringer: Ringer::default(),
            scripts: Arc::new(Scripts::new(Arc::clone(&clock))),
            clock,
            random,
            forked: false,
            left_out: AtomicUsize::new(0),
            lost: false,
            vanished: (0, None),
        }
    }

    /// Sends on the rings for agents of other nodes that come by this rope.
    #[must_use]
    pub fn with_ringer(self, ringer: Ringer) -> Self {
        Self { ringer, ..self }
    }

    async fn session(&mut self) -> Result<Session, Failure> {
        let (said, heard) = mpsc::channel(HEARD);
        let rung = Arc::clone(&self.rung);
        let url = self.url.load_full();
        let link = Link::connect(&url, &self.scripts, move |info| {
            match bell_of(info) {
                // A full queue loses nothing for good: renewing the lease tells that outcomes were written.
                Some((agent_id, true)) => drop(said.try_send(agent_id)),
                Some((_, false)) => rung.notify_one(),
                None => {}
            }
        })
        .await?;
        let (origin, time) = stream::origin(&link, &fresh_nonce(&mut self.random)).await?;
        let extent = stream::extent(&link).await?;
        let node_id = self.engine.node_id();
        let mut state = self.engine.redis_state().map_err(store_failure)?;
        if state.nonce.as_ref() != Some(&origin.nonce) {
            if state.nonce.is_some() {
                self.report_loss();
            }
            state = RedisState::default();
        }
        let cursor = state.stream_cursor.as_deref().and_then(Position::parse);
        let now = Instant::now();
        let ringing = tokio::spawn(self.ringer.clone().ring_over(link.clone()));
        let mut session = Session {
            link,
            node_id,
            state,
            unsaved: true,
            cursor: cursor.filter(|cursor| extent.continues(*cursor)).unwrap_or(extent.last),
            origin,
            time: (time, now),
            origin_due: now + ORIGIN_EVERY,
            rest_due: now + REST_EVERY,
            leases: Leases::default(),
            leased_seq: None,
            written: HashMap::new(),
            heard,
            listening: HashSet::new(),
            offered_seq: None,
            offers_all: true,
            parked: self.parked()?,
            scan: None,
            scan_due: now,
            scans: 0,
            unconfirmed: HashMap::new(),
            expiry_due: now,
            extent_due: now,
            fleet: (1, 0),
            sweep: None,
            sweep_due: None,
            sweep_found: false,
            ringing,
        };
        self.after_break(&mut session);
        Ok(session)
    }

    /// What may have been missed is looked for, and what Redis may have lost is told again.
    pub(super) fn after_break(&self, session: &mut Session) {
        session.scan = Some(Scan::new(Why::Break, false, &self.engine));
        // Told anew, every document begins with its lease.
        if session.state.acked_change_seq > 0 {
            session.leases.renew_all(&self.engine.local_leases(), Instant::now());
        }
        session.leased_seq = None;
        session.sweep = Some(0);
        session.written.clear();
        (session.offered_seq, session.offers_all) = (None, true);
        session.state.run_id = Some(session.origin.run_id.clone());
        session.state.stream_cursor = Some(session.cursor.to_string());
        session.unsaved = true;
    }

    /// Asks, every few seconds, whether this is still the same data on the same server.
    pub(super) async fn check_origin(&mut self, session: &mut Session, now: Instant) -> Result<(), Failure> {
        if now < session.origin_due {
            return Ok(());
        }
        let (origin, time) = stream::origin(&session.link, &fresh_nonce(&mut self.random)).await?;
        session.origin_due = now + ORIGIN_EVERY;
        session.time = (time, now);
        if origin == session.origin {
            return Ok(());
        }
        if origin.nonce == session.origin.nonce {
            tracing::info!("Redis was restarted, or another took over; what it may have lost is told again");
        } else {
            self.report_loss();
            session.state = RedisState::default();
        }
        session.origin = origin;
        session.cursor = stream::extent(&session.link).await?.last;
        self.after_break(session);
        Ok(())
    }

    /// Tells that this is not the data that was there.
    fn report_loss(&mut self) {
        tracing::warn!(sink = Sink::Redis.as_str(), "{LOST}");
        self.lost = true;
    }

    /// Goes on as a new node, for another file goes by this one's id.
    pub(super) async fn fork(&mut self, session: &mut Session) -> Result<(), Failure> {
        let node_id = self.engine.fork(session.node_id, ForkReason::Registry).await.map_err(store_failure)?;
        tracing::warn!(%node_id, "{}; this file goes on as a new node", ForkReason::Registry);
        self.forked = true;
        self.begin_as_renamed(session)
    }

    /// Takes up what this node's new id begins with: the cursors were set back when it got it.
    fn begin_as_renamed(&self, session: &mut Session) -> Result<(), Failure> {
        session.node_id = self.engine.node_id();
        session.state = self.engine.redis_state().map_err(store_failure)?;
        self.after_break(session);
        Ok(())
    }

    /// Writes the cursors down, unless they are [`Outdated`](Saved::Outdated): then it begins with what the new id has.
    pub(super) async fn save(&self, session: &mut Session) -> Result<Saved, Failure> {
        if !session.unsaved {
            return Ok(Saved::Yes);
        }
        let saved = self.engine.save_redis(session.node_id, session.state.clone()).await.map_err(store_failure)?;
        match saved {
            Saved::Yes => session.unsaved = false,
            Saved::Outdated => self.begin_as_renamed(session)?,
        }
        Ok(saved)
    }

    fn parked(&self) -> Result<HashSet<AgentId>, Failure> {
        let mut parked = HashSet::new();
        let mut cursor: Option<String> = None;
        loop {
            let request = PageRequest { limit: 1_000, cursor: cursor.as_deref() };
            let page = self.engine.parked(Sink::Redis, request).map_err(store_failure)?;
            parked.extend(page.items.into_iter().filter_map(|entry| match entry.key {
                ParkedKey::Agent(agent_id) => Some(agent_id),
                ParkedKey::Seq(_) | ParkedKey::Copy(_) => None,
            }));
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(parked);
            }
        }
    }

    /// How long nothing needs to be looked at: longer in a large fleet, which shares one Redis.
    fn pause(&mut self, session: &Session, now: Instant) -> Duration {
        let fleet = (1.0 + session.fleet.0 as f64 / 100.0).min(5.0);
        let poll = Duration::from_millis(self.random.random_range(500..1_000)).mul_f64(fleet);
        let lease = session.leases.next_due().map_or(poll, |due| due.saturating_duration_since(now));
        poll.min(lease)
    }
}

impl Destination for Redis {
    type Session = Session;

    const SINK: Sink = Sink::Redis;

    fn backlog(engine: &Engine) -> Result<Backlog, Failure> {
        let state = engine.redis_state().map_err(store_failure)?;
        let parked = engine.parked_count(Sink::Redis);
        if engine.commits().borrow().change_seq <= state.acked_change_seq {
            return Ok(Backlog { parked, ..Backlog::default() });
        }
        let entries = engine.changes_len(state.acked_change_seq).map_err(store_failure)?;
        let first = engine.changes_after(state.acked_change_seq, LOOKED_AT).map_err(store_failure)?;
        let oldest = first.iter().find_map(|change| match change {
            AgentChange::Put { agent, .. } => Some(agent.last_updated),
            AgentChange::Removed { .. } => None,
        });
        Ok(Backlog { entries, oldest, parked })
    }

    fn mark(commit: &CommitMark) -> u64 {
        // Either moves only forward, so their sum does when one does.
        commit.change_seq.wrapping_add(commit.observation_seq)
    }

    async fn connect(&mut self) -> Result<Session, Failure> {
        self.session().await
    }

    async fn round(&mut self, session: &mut Session, requests: &[SinkRequest]) -> Result<Round, Failure> {
        for request in requests {
            match request {
                SinkRequest::Retry => self.retry_parked(session).await?,
                SinkRequest::Resync => {
                    session.state.acked_change_seq = 0;
                    self.after_break(session);
                }
            }
        }
        if self.engine.node_id() != session.node_id {
            self.begin_as_renamed(session)?;
        }
        let now = Instant::now();
        self.check_origin(session, now).await?;
        let (pushed, more_to_push) = self.push(session).await?;
        if more_to_push && now < session.rest_due {
            return Ok(Round { pushed, pulled: 0, more: true, pause: Duration::ZERO });
        }
        session.rest_due = now + REST_EVERY;
        self.renew(session, now).await?;
        self.offer(session).await?;
        self.fold(session).await?;
        self.sweep(session, now).await?;
        let (pulled, more_to_pull) = self.pull(session, now).await?;
        let scanned = self.scan(session, now).await?;
        self.ask_for_expiring(session, now).await?;
        let is_renamed = self.save(session).await? == Saved::Outdated;
        let searching = session.scan.as_ref().is_some_and(|scan| scan.why() == Why::Break && !scan.has_seen_all());
        let more = more_to_push || more_to_pull || searching || is_renamed;
        Ok(Round { pushed, pulled: pulled + scanned, more, pause: self.pause(session, now) })
    }

    fn lost(&mut self) {
        self.engine.registry_link(RegistryLink::Down { stale_for: self.stale_for });
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = self.intake.notes();
        if self.lost {
            notes.push(LOST.to_owned());
        }
        if let (count, Some(last)) = &self.vanished {
            notes.push(format!(
                "{count} agents of this node vanished from Redis and were told again, the last one {last}"
            ));
        }
        let left_out = self.left_out.load(Ordering::Relaxed);
        if left_out > 0 {
            notes.push(format!("{left_out} observers are not folded: an agent has at most {MAX_OBSERVERS}"));
        }
        if self.forked {
            notes.push(format!("{}; it went on as a new node", ForkReason::Registry));
        }
        notes
    }
}

/// The agent whose bell was rung, and whether an observer rang.
fn bell_of(info: PushInfo) -> Option<(AgentId, bool)> {
    if info.kind != PushKind::Message {
        return None;
    }
    let mut words = info.data.into_iter();
    let (Some(Value::BulkString(channel)), Some(Value::BulkString(said))) = (words.next(), words.next()) else {
        return None;
    };
    let agent_id = std::str::from_utf8(&channel).ok()?.strip_prefix(keys::BELL)?;
    Some((AgentId::from_stored(agent_id), said == OUTCOMES))
}

fn fresh_nonce(random: &mut dyn Rng) -> String {
    format!("{:032x}", random.random::<u128>())
}
