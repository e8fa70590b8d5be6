//! The ledger's side of the driver: what a round with PostgreSQL is.
//!
//! A round looks where we stand if that is in doubt ([`place`](super::place)), pushes one batch
//! ([`drain`](super::drain)), and reads what others wrote if it is time to ([`follow`](super::follow)). How often it reads
//! is the [`rhythm`](super::rhythm)'s to say; whether the connection stays meanwhile, the [`link`](super::link)'s.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use secrecy::ExposeSecret;

use super::config::Target;
use super::drain::Drain;
use super::errors::{Kind, Trouble};
use super::follow::Follow;
use super::link::Link;
use super::rhythm::{Company, LONG_PAUSE, Rhythm, SHORTEST_PAUSE};
use super::sweep::Sweeping;
use crate::clock::Clock;
use crate::domain::{CopyNumber, LedgerEntry, NodeId, PostgresState};
use crate::engine::Engine;
use crate::engine::replica::{CommitMark, Saved, Sink, SinkRequest};
use crate::sync::driver::{Backlog, Destination, Round};
use crate::sync::state::{Failure, FailureClass};
use crate::sync::{CurrentUrl, Ring};

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

impl Postgres {
    /// Replicates the ledger of `engine` to what `url` says at the time. With `legacy_writers`, what programs do there
    /// that know nothing of events is looked for every minute.
    pub fn new(engine: Engine, clock: Arc<dyn Clock>, random: StdRng, url: CurrentUrl, legacy_writers: bool) -> Self {
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
            rhythm: Rhythm::new(random),
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
            link.advanced();
        }
        let mut round = Round { pushed: drained.pushed, more: drained.more, ..Round::default() };
        // A round that was called early and found nothing to push was called by a bell.
        let is_called = drained.pushed == 0 && !drained.more || self.follow.sweeps.until_due().is_zero();
        if self.rhythm.is_due(is_called) && link.fence.is_some() && !self.engine.postgres_state()?.restarted {
            let followed = self.read_some(link).await?;
            round.pulled = followed.pulled;
            round.more |= followed.more;
            self.rhythm.read(followed.pulled > 0, link.company());
        }
        let due = self.rhythm.pause().min(self.drain.until_retry()).min(self.follow.sweeps.until_due());
        // Whatever is due and cannot be done yet must not spin.
        round.pause = due.max(SHORTEST_PAUSE / 4);
        // Thousands of idle nodes are cheap for a server that does not hold a process for each; and where there are fewer
        // connections than nodes, each has its turn.
        let gives_up = match link.company() {
            Company::Few => false,
            Company::Crowd => true,
            Company::Unknown => round.pause >= LONG_PAUSE,
        };
        if gives_up && !round.more {
            link.close();
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
        self.rhythm.soon();
        Ok(Link::new(target, Some(session)))
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
