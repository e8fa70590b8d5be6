//! What was set aside, tried again: all of it when somebody asks or the connection is new, and every twenty seconds what
//! something was in the way of.
//!
//! A round tries so much as a batch may hold, for as long as a round may take; the next one goes on behind it. Between two
//! rounds the entries of a page that were not tried yet are kept, so that a run comes by each.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::drain::{Drained, in_the_way};
use super::errors::{Kind, Trouble};
use super::link::Link;
use super::merge::{Offer, Refused};
use super::payload;
use super::push::{MAX_BYTES, Window, waiting_for_locks};
use super::worker::Postgres;
use crate::domain::{CopyNumber, LedgerEntry, LogPosition, ParkedEntry, ParkedKey, Sink};
use crate::engine::{Engine, PageRequest};

/// How often what somebody was in the way of is tried again: it is to be delivered within half a minute of being free.
const RETRY_EVERY: Duration = Duration::from_secs(20);
/// How many parked entries are tried at once.
const AT_ONCE: usize = 500;
/// When a round begins no further piece. Less than what makes a round count as slow.
const ROUND_TIME: Duration = Duration::from_secs(4);
/// The SQLSTATEs of what was in the way, and may not be any more.
const PASSING: [&str; 4] = ["40001", "40P01", "55P03", "57014"];

/// A run through the parked entries.
pub struct ParkedRun {
    /// When it begins.
    due: Instant,
    /// Whether all of them are tried, or only those that something was in the way of.
    all: bool,
    /// What comes behind the entries that are at hand.
    rest: Rest,
    /// The entries at hand that were not tried yet.
    untried: VecDeque<ParkedEntry>,
}

enum Rest {
    All,
    After(String),
    Nothing,
}

impl ParkedRun {
    /// Through all of them, at once.
    pub fn through_all() -> Self {
        Self { due: Instant::now(), all: true, rest: Rest::All, untried: VecDeque::new() }
    }

    /// Some time from now, through those that something was in the way of.
    fn next() -> Self {
        Self { due: Instant::now() + RETRY_EVERY, all: false, ..Self::through_all() }
    }

    /// How long until something is to be tried.
    pub fn until_due(&self) -> Duration {
        self.due.saturating_duration_since(Instant::now())
    }

    fn is_done(&self) -> bool {
        self.untried.is_empty() && matches!(self.rest, Rest::Nothing)
    }

    /// Takes the next page to hand, if there is nothing at hand.
    fn fill(&mut self, engine: &Engine) -> Result<(), Trouble> {
        let cursor = match &self.rest {
            Rest::Nothing => return Ok(()),
            _ if !self.untried.is_empty() => return Ok(()),
            Rest::All => None,
            Rest::After(cursor) => Some(cursor.as_str()),
        };
        let page = engine.parked(Sink::Postgres, PageRequest { limit: AT_ONCE, cursor })?;
        self.rest = page.next_cursor.map_or(Rest::Nothing, Rest::After);
        let is_tried = |entry: &ParkedEntry| self.all || is_passing(entry);
        self.untried.extend(page.items.into_iter().filter(is_tried));
        Ok(())
    }

    /// Takes so many entries that their events make one batch.
    fn take(&mut self, engine: &Engine) -> Result<(BTreeMap<ParkedKey, ParkedEntry>, Vec<Offer>), Trouble> {
        let (mut taken, mut offers, mut bytes) = (BTreeMap::new(), Vec::new(), 0);
        while bytes < MAX_BYTES
            && let Some(parked) = self.untried.pop_front()
        {
            if let Some(entry) = find(engine, &parked.key)? {
                bytes += payload::encode(&entry.event.body).len();
                offers.push(Offer { key: parked.key.clone(), entry });
                taken.insert(parked.key.clone(), parked);
            }
        }
        Ok((taken, offers))
    }
}

impl Postgres {
    /// Tries some of what was set aside, if it is time to.
    pub(super) async fn push_parked(&mut self, link: &mut Link, fence: LogPosition) -> Result<Drained, Trouble> {
        if !self.drain.parked.until_due().is_zero() {
            return Ok(Drained::default());
        }
        self.drain.parked.fill(&self.engine)?;
        let (mut untried, offers) = self.drain.parked.take(&self.engine)?;
        let tried = if offers.is_empty() { Ok(0) } else { self.try_parked(link, fence, offers, &mut untried).await };
        let run = &mut self.drain.parked;
        untried.into_values().rev().for_each(|entry| run.untried.push_front(entry));
        let more = !run.is_done();
        if !more {
            *run = ParkedRun::next();
        }
        Ok(Drained { pushed: tried?, more })
    }

    /// Tries these until time is up; how many were delivered. Those that were tried leave `untried`.
    async fn try_parked(
        &mut self,
        link: &mut Link,
        fence: LogPosition,
        mut offers: Vec<Offer>,
        untried: &mut BTreeMap<ParkedKey, ParkedEntry>,
    ) -> Result<u64, Trouble> {
        let until = Instant::now() + ROUND_TIME;
        let session = link.session().await?;
        let waiting = waiting_for_locks(session, &offers).await?;
        offers.retain(|offer| !waiting.contains(&offer.key));
        self.leave(&waiting, untried).await?;
        let mut pushed = 0;
        let mut groups = vec![offers];
        while Instant::now() < until
            && let Some(group) = groups.pop()
        {
            if group.is_empty() {
                continue;
            }
            let window = std::mem::replace(&mut self.drain.window, Window::blind());
            let outcome = self.push_offers(session, &group, fence, fence).await;
            self.drain.window = window;
            let outcome = match outcome {
                Err(trouble) if trouble.kind == Kind::Contention && group.len() > 1 => {
                    groups.extend(group.chunks(group.len().div_ceil(2)).rev().map(<[Offer]>::to_vec));
                    continue;
                }
                Err(trouble) if trouble.kind == Kind::Contention => {
                    self.leave(&[group[0].key.clone()], untried).await?;
                    continue;
                }
                other => other?,
            };
            self.follow_payers(session, outcome.shared).await?;
            session.commit().await?;
            let refused: HashMap<&ParkedKey, &Refused> =
                outcome.refused.iter().map(|refused| (&refused.key, refused)).collect();
            let (mut delivered, mut again) = (Vec::new(), Vec::new());
            for Offer { key, .. } in &group {
                match (untried.remove(key), refused.get(key)) {
                    (Some(entry), Some(refused)) => again.push(refused_again(entry, refused)),
                    _ => delivered.push(key.clone()),
                }
            }
            pushed += delivered.len() as u64;
            if !delivered.is_empty() {
                self.engine.unpark(Sink::Postgres, delivered).await?;
            }
            if !again.is_empty() {
                self.engine.park(Sink::Postgres, again).await?;
            }
            self.report_conflicts(outcome.conflicts).await?;
        }
        Ok(pushed)
    }

    /// Somebody is in the way of these just now: they count as tried, and are again in a short while, whatever they were
    /// set aside for.
    async fn leave(
        &mut self,
        keys: &[ParkedKey],
        untried: &mut BTreeMap<ParkedKey, ParkedEntry>,
    ) -> Result<(), Trouble> {
        let left = keys.iter().filter_map(|key| untried.remove(key));
        let news: Vec<_> = left
            .filter(|entry| !is_passing(entry))
            .map(|entry| {
                let refused = in_the_way(&entry.key);
                refused_again(entry, &refused)
            })
            .collect();
        if !news.is_empty() {
            self.engine.park(Sink::Postgres, news).await?;
        }
        Ok(())
    }
}

fn is_passing(entry: &ParkedEntry) -> bool {
    PASSING.contains(&entry.code.as_str())
}

fn refused_again(entry: ParkedEntry, refused: &Refused) -> ParkedEntry {
    let (reason, code) = (refused.reason.clone(), refused.code.clone());
    ParkedEntry { reason, code, attempts: entry.attempts.saturating_add(1), ..entry }
}

/// The event that is parked under a key.
fn find(engine: &Engine, key: &ParkedKey) -> Result<Option<LedgerEntry>, Trouble> {
    Ok(match key {
        ParkedKey::Seq(seq) => engine.log_after(seq.saturating_sub(1), 1, 1)?.pop(),
        ParkedKey::Copy(number) => {
            let before = CopyNumber(number.saturating_sub(1));
            engine.copies_after(before, 1, 1)?.pop().map(|(_, entry)| entry)
        }
        ParkedKey::Agent(_) => None,
    })
}
