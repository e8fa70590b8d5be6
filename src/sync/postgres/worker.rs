//! The ledger's side of the driver: what a round with PostgreSQL is.
//!
//! A round looks where we stand if that is in doubt ([`place`](super::place)), pushes one batch
//! ([`drain`](super::drain)), and reads what others wrote if it is time to ([`follow`](super::follow)). How often it reads
//! follows the traffic: every second for a minute after events of our own or for us, then less and less often, and then
//! the connection is closed in between.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use secrecy::ExposeSecret;
use tokio::time::Instant;

use super::config::Target;
use super::drain::Drain;
use super::errors::{Kind, Trouble};
use super::follow::Follow;
use super::pull;
use super::schema;
use super::session::Session;
use super::sweep::Sweeping;
use crate::clock::Clock;
use crate::domain::{CopyNumber, LedgerEntry, LogPosition, NodeId, PostgresState};
use crate::engine::Engine;
use crate::engine::replica::{CommitMark, Saved, Sink, SinkRequest};
use crate::sync::driver::{Backlog, Destination, Round};
use crate::sync::state::{Failure, FailureClass};
use crate::sync::{CurrentUrl, Ring};

/// How long after traffic others are looked for often.
const BUSY_FOR: Duration = Duration::from_secs(60);
/// How often then.
const BUSY_PAUSE: Duration = Duration::from_secs(1);
/// How often at first when there is no traffic, and at last.
const IDLE_PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));
/// The shortest time between two reads, however much is pushed.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
/// How often the marks of older clients are looked for where they are said to write, and again where that failed.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// For how long at once: less than what makes a round count as slow.
const SWEEP_TIME: Duration = Duration::from_secs(4);
/// The most notes for the operator; older ones go.
const MAX_NOTES: usize = 5;

/// PostgreSQL as a [`Destination`].
pub struct Postgres {
    pub(super) engine: Engine,
    pub(super) clock: Arc<dyn Clock>,
    url: CurrentUrl,
    pub(super) drain: Drain,
    pub(super) follow: Follow,
    rhythm: Rhythm,
    ring: Option<Ring>,
    notes: Vec<String>,
}

/// A connection, and what was learned over it.
pub struct Link {
    target: Target,
    session: Option<Session>,
    /// The tables are there.
    is_prepared: bool,
    pub(super) may_identify: bool,
    /// Where the fence stands; `None` while that is in doubt.
    pub(super) fence: Option<LogPosition>,
    /// From where the fence would not move the last time.
    refused_at: Option<LogPosition>,
}

impl Postgres {
    /// Replicates the ledger of `engine` to what `url` says at the time. With `legacy_writers`, what programs do there
    /// that know nothing of events is looked for every minute.
    pub fn new(engine: Engine, clock: Arc<dyn Clock>, url: CurrentUrl, legacy_writers: bool) -> Self {
        Self {
            engine,
            clock,
            url,
            drain: Drain::new(),
            follow: Follow::new(Sweeping {
                every: legacy_writers.then_some(SWEEP_EVERY),
                retry_after: SWEEP_EVERY,
                time: SWEEP_TIME,
            }),
            rhythm: Rhythm::new(),
            ring: None,
            notes: Vec::new(),
        }
    }

    /// Looks for what older clients did at other times.
    #[must_use]
    pub fn sweeping(self, sweeping: Sweeping) -> Self {
        Self { follow: Follow::new(sweeping), ..self }
    }

    /// Rings at the parties of what is delivered, so that their nodes look for it at once.
    #[must_use]
    pub fn with_ring(self, ring: Ring) -> Self {
        Self { ring: Some(ring), ..self }
    }

    /// Rings for those parties of these events that live elsewhere.
    pub(super) fn ring_for<'a>(&self, delivered: impl Iterator<Item = &'a LedgerEntry>) {
        let Some(ring) = &self.ring else { return };
        for entry in delivered {
            for party in [&entry.payer_agent, &entry.provider_agent] {
                if !self.engine.is_local(party) {
                    ring(party);
                }
            }
        }
    }

    /// Tells the operator something that is not an error, here and in the log.
    pub(super) fn note(&mut self, words: String) {
        tracing::warn!(sink = Sink::Postgres.as_str(), "{words}");
        if self.notes.len() == MAX_NOTES {
            self.notes.remove(0);
        }
        self.notes.push(words);
    }

    /// The cursors, with the id of this node that they are for.
    pub(super) fn cursors(&self) -> Result<(NodeId, PostgresState), Trouble> {
        // First whose: if they are set back in between, they count as those of the earlier id, and are not written again.
        let node_id = self.engine.node_id();
        Ok((node_id, self.engine.postgres_state()?))
    }

    /// Writes cursors down.
    ///
    /// # Errors
    ///
    /// [`Kind::FenceMoved`] when this node goes by another id meanwhile: its place has to be looked for anew.
    pub(super) async fn save(&self, node_id: NodeId, state: PostgresState) -> Result<(), Trouble> {
        match self.engine.save_postgres(node_id, state).await? {
            Saved::Yes => Ok(()),
            Saved::Outdated => Err(renamed()),
        }
    }

    /// Takes in what PostgreSQL holds; how many events were new.
    ///
    /// # Errors
    ///
    /// As for [`save`](Self::save); the events are taken in all the same.
    pub(super) async fn absorb(
        &self,
        entries: Vec<LedgerEntry>,
        node_id: NodeId,
        state: PostgresState,
    ) -> Result<u64, Trouble> {
        let absorbed = self.engine.absorb(entries, Some((node_id, state))).await?;
        if absorbed.outdated { Err(renamed()) } else { Ok(absorbed.new_events as u64) }
    }

    /// A round of work. Where our place comes into doubt, the next one looks for it.
    async fn work(&mut self, link: &mut Link) -> Result<Round, Trouble> {
        match self.work_from(link).await {
            Err(trouble) if trouble.kind == Kind::FenceMoved => {
                self.follow.forget();
                link.lose_place()?;
                Ok(Round { more: true, ..Round::default() })
            }
            other => other,
        }
    }

    async fn work_from(&mut self, link: &mut Link) -> Result<Round, Trouble> {
        link.prepare().await?;
        if link.fence.is_none() {
            self.take_place(link).await?;
        }
        let drained = self.push_some(link).await?;
        if drained.pushed > 0 {
            self.rhythm.traffic();
            link.refused_at = None;
        }
        let mut round = Round { pushed: drained.pushed, more: drained.more, ..Round::default() };
        // A round that was called early and found nothing to push was called by a bell.
        let is_called = drained.pushed == 0 && !drained.more || self.follow.sweeps.until_due().is_zero();
        if self.rhythm.is_due(is_called) && link.fence.is_some() && !self.engine.postgres_state()?.restarted {
            let followed = self.read_some(link).await?;
            round.pulled = followed.pulled;
            round.more |= followed.more;
            self.rhythm.read(followed.pulled > 0);
        }
        let due = self.rhythm.pause().min(self.drain.until_retry()).min(self.follow.sweeps.until_due());
        // Whatever is due and cannot be done yet must not spin.
        round.pause = due.max(SHORTEST_PAUSE / 4);
        if !round.more && round.pause >= IDLE_PAUSES.0 / 2 {
            // Thousands of idle nodes are cheap for a server that does not hold a process for each.
            link.session = None;
        }
        Ok(round)
    }
}

impl Destination for Postgres {
    type Session = Link;

    const SINK: Sink = Sink::Postgres;

    fn backlog(engine: &Engine) -> Result<Backlog, Failure> {
        count_backlog(engine).map_err(|error| Trouble::store(&error).into())
    }

    fn mark(commit: &CommitMark) -> u64 {
        commit.log_seq
    }

    async fn connect(&mut self) -> Result<Link, Failure> {
        let target = Target::parse(self.url.load().expose_secret())
            .map_err(|error| Failure::new(FailureClass::Misconfigured, error.to_string()))?;
        let session = target.connect().await?;
        self.drain.retry_all();
        self.rhythm.traffic();
        Ok(Link {
            target,
            session: Some(session),
            is_prepared: false,
            may_identify: false,
            fence: None,
            refused_at: None,
        })
    }

    async fn round(&mut self, link: &mut Link, requests: &[SinkRequest]) -> Result<Round, Failure> {
        for request in requests {
            self.drain.retry_all();
            self.rhythm.traffic();
            if *request == SinkRequest::Resync {
                self.start_over().await.map_err(Failure::from)?;
                link.fence = None;
            }
        }
        Ok(self.work(link).await?)
    }

    fn notes(&self) -> Vec<String> {
        self.notes.iter().cloned().chain(self.follow.notes()).collect()
    }
}

/// What stands in the way of writing cursors of an earlier id.
fn renamed() -> Trouble {
    Trouble::new(Kind::FenceMoved, "this node goes by another id meanwhile")
}

fn count_backlog(engine: &Engine) -> Result<Backlog, crate::engine::Error> {
    let state = engine.postgres_state()?;
    let own = engine.log_position().seq.saturating_sub(state.acked_seq);
    let copies = engine.copy_position()?.0.saturating_sub(state.acked_copies);
    let oldest = match engine.log_after(state.acked_seq, 1, 1)?.first() {
        Some(entry) => Some(entry.event.at),
        None => engine.copies_after(CopyNumber(state.acked_copies), 1, 1)?.first().map(|(_, entry)| entry.event.at),
    };
    Ok(Backlog { entries: own + copies, oldest, parked: engine.parked_count(Sink::Postgres) })
}

impl Link {
    /// The fence is not where it was left, and has to be looked up.
    ///
    /// # Errors
    ///
    /// When it was looked up, and would not move from there either: that is nobody else's doing.
    fn lose_place(&mut self) -> Result<(), Trouble> {
        let at = self.fence.take();
        if at.is_some() && self.refused_at == at {
            self.refused_at = None;
            return Err(Trouble::new(
                Kind::Misconfigured,
                "marketplace_nodes is where this node left it, and does not take its update: a row policy or a trigger is in \
                 the way",
            ));
        }
        self.refused_at = at;
        Ok(())
    }

    /// The connection, made anew if it was closed or broke off while it was not used.
    pub(super) async fn session(&mut self) -> Result<&mut Session, Trouble> {
        if self.session.as_ref().is_none_or(Session::is_closed) {
            self.session = Some(self.target.connect().await?);
            // Meanwhile another file may have come here under our name, or another server to this address.
            self.fence = None;
        }
        Ok(self.session.as_mut().expect("it was just made, or stands"))
    }

    async fn prepare(&mut self) -> Result<(), Trouble> {
        let is_prepared = self.is_prepared;
        let session = self.session().await?;
        if !is_prepared {
            schema::ensure(session, false).await?;
            let may_identify = pull::may_identify(session).await?;
            (self.is_prepared, self.may_identify) = (true, may_identify);
        }
        Ok(())
    }
}

/// When to read what others wrote.
struct Rhythm {
    random: StdRng,
    last_traffic: Instant,
    last_read: Option<Instant>,
    pause: Duration,
    /// Somebody called too soon after the last read; the next one makes up for it.
    is_called: bool,
}

impl Rhythm {
    fn new() -> Self {
        Self {
            random: rand::make_rng(),
            last_traffic: Instant::now(),
            last_read: None,
            pause: Duration::ZERO,
            is_called: false,
        }
    }

    /// There were events of ours, or somebody asked: others may answer soon.
    fn traffic(&mut self) {
        self.last_traffic = Instant::now();
        self.pause = Duration::ZERO;
    }

    /// Whether it is time to; `is_called`: whether somebody says so.
    fn is_due(&mut self, is_called: bool) -> bool {
        self.is_called |= is_called;
        self.pause().is_zero()
    }

    /// A read is done; whether there was anything.
    fn read(&mut self, found: bool) {
        let now = Instant::now();
        if found {
            self.last_traffic = now;
        }
        self.last_read = Some(now);
        self.is_called = false;
        let base = if now.duration_since(self.last_traffic) < BUSY_FOR {
            BUSY_PAUSE
        } else {
            (self.pause * 3 / 2).clamp(IDLE_PAUSES.0, IDLE_PAUSES.1)
        };
        self.pause = base.mul_f64(self.random.random_range(0.8..=1.2));
    }

    /// How long to wait now.
    fn pause(&self) -> Duration {
        let pause = if self.is_called { SHORTEST_PAUSE } else { self.pause.max(SHORTEST_PAUSE) };
        self.last_read.map_or(Duration::ZERO, |last_read| pause.saturating_sub(last_read.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn reads_often_for_a_minute_after_traffic_then_ever_less_often() {
        let mut rhythm = Rhythm::new();
        assert!(rhythm.is_due(false), "the first read waits for nothing");
        rhythm.read(false);
        assert!(!rhythm.is_due(false), "not twice at once");
        let started = Instant::now();
        let mut pauses = Vec::new();
        while started.elapsed() < Duration::from_secs(600) {
            let pause = rhythm.pause();
            pauses.push((started.elapsed(), pause));
            tokio::time::advance(pause).await;
            assert!(rhythm.is_due(false));
            rhythm.read(false);
        }
        for (at, pause) in &pauses {
            let range = if *at < BUSY_FOR { 0.8..=1.2 } else { 4.0..=36.0 };
            assert!(range.contains(&pause.as_secs_f64()), "{at:?}: {pause:?}");
        }
        assert!(pauses.last().expect("there were some").1 > Duration::from_secs(20));

        rhythm.traffic();
        assert!(rhythm.is_due(false) || rhythm.pause() <= SHORTEST_PAUSE, "traffic wakes at once");
        tokio::time::advance(SHORTEST_PAUSE).await;
        rhythm.read(true);
        assert!(rhythm.pause() < Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_bell_that_rings_just_after_a_read_is_answered_soon_and_once() {
        let mut rhythm = Rhythm::new();
        tokio::time::advance(BUSY_FOR).await;
        rhythm.read(false);
        assert!(rhythm.pause() > Duration::from_secs(3), "an idle node does not look again for long");
        tokio::time::advance(SHORTEST_PAUSE / 2).await;
        assert!(!rhythm.is_due(true), "just now it looked");
        assert_eq!(rhythm.pause(), SHORTEST_PAUSE / 2);
        tokio::time::advance(SHORTEST_PAUSE / 2).await;
        assert!(rhythm.is_due(false), "it was called, if some time ago");
        rhythm.read(false);
        assert!(rhythm.pause() > Duration::from_secs(3));
    }
}
