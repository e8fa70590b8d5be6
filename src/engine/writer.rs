//! The one thread that writes.
//!
//! It runs all commands that are waiting in one write transaction, and those that come in meanwhile, commits once, then
//! answers: commits cost the same whatever is in them, so the busier it is, the more a commit carries. Between commands
//! it ends leases that ran out and forgets what has aged.
//!
//! After a failed commit nothing is acknowledged until the store has been reopened, every page's checksum checked, and
//! a probe written and synced. Until then reads go on where the file allows, and writes are answered with the cause. On a
//! full disk a reserve is given up for the bookkeeping of sinks, so that what central systems hold is known to be there.
//! After it commits stay small for a while: what there was no room for may be what waits to be put in its place.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use rand::rngs::StdRng;

use super::agents::Expire;
use super::command::{Effect, Job, Session, job};
use super::core::{Core, View};
use super::directory::{Directory, Entry};
use super::error::Error;
use super::intake::{Intake, Message};
use super::lease::{Lease, LeaseQueue, Moment};
use super::loads::{LoadMinutes, Loads, WINDOW_MINUTES};
use super::recorded::Recorded;
use super::replica::CommitMark;
use crate::domain::AgentId;
use crate::store::{Head, StoreAge, StoreError, minute_of};

/// The most leases that one batch ends.
const MAX_EXPIRIES: usize = 1_000;
/// The most aged records of one kind that one batch forgets.
const MAX_PURGE: usize = 1_000;
/// How often an idle writer looks whether the file is still there and can be read.
const LOOK_EVERY: Duration = Duration::from_secs(3);
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(60);
const RECEIPTS_KEPT: Duration = Duration::from_secs(7 * 24 * 3_600);
const EXPIRED_AGENTS_KEPT: Duration = Duration::from_secs(30 * 24 * 3_600);
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(5);
const LONGEST_CHECK_RETRY: Duration = Duration::from_secs(20);
/// For how long after a full disk commits carry no more than they must.
const SETTLING_PUT_OFF: Duration = Duration::from_secs(600);

/// The writer's own state.
pub struct Writer {
    core: Arc<Core>,
    messages: Receiver<Message>,
    head: Head,
    random: StdRng,
    directory: Directory,
    loads: Loads,
    load_minutes: LoadMinutes,
    leases: LeaseQueue,
    next_housekeeping: Duration,
    /// Until when what waits in the store stays where it is.
    settling_put_off_until: Duration,
    /// How many commands the last batch had, and how long it took.
    last_batch: usize,
    last_commit: Duration,
    /// Monotonic time, and the store's age, when this writer started.
    started: Duration,
    opened_at_age: StoreAge,
    observation_seq: u64,
    /// Where to go on looking for expired agents to forget.
    next_purged_agent: Option<AgentId>,
}

impl Writer {
    /// Builds what is derived from the store, and publishes it.
    pub fn start(core: Arc<Core>, messages: Receiver<Message>, head: Head, random: StdRng) -> Result<Self, StoreError> {
        let started = core.clock.monotonic();
        let opened_at_age = StoreAge(head.totals().age_micros);
        let mut writer = Self {
            core,
            messages,
            head,
            random,
            directory: Directory::default(),
            loads: Loads::default(),
            load_minutes: LoadMinutes::default(),
            leases: LeaseQueue::default(),
            next_housekeeping: Duration::ZERO,
            settling_put_off_until: Duration::ZERO,
            last_batch: 0,
            last_commit: Duration::ZERO,
            started,
            opened_at_age,
            observation_seq: 0,
            next_purged_agent: None,
        };
        writer.rebuild()?;
        Ok(writer)
    }

    /// Runs until told to stop or until nobody is left who could, and closes the store.
    pub fn run(mut self) {
        if catch_unwind(AssertUnwindSafe(|| self.write_until_stopped())).is_err() {
            self.refuse_until_stopped();
        }
        self.core.close();
    }

    /// What was submitted before the engine is told to stop is still committed; since the core refuses commands from the
    /// moment it is closing, that comes to an end.
    fn write_until_stopped(&mut self) {
        loop {
            let first = match self.messages.recv_timeout(self.until_next_timer()) {
                Ok(Message::Run(job)) => Some(job),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => None,
            };
            if self.run_or_recover(first) {
                break;
            }
        }
        while let Some(job) = self.messages.try_iter().find_map(Message::job) {
            match self.core.failure() {
                None => drop(self.run_or_recover(Some(job))),
                // Whoever stops while the store is not sound leaves it as it is.
                Some(error) => job.finish(Some(&error), &self.core.metrics),
            }
        }
    }

    /// After a panic nothing that this writer holds can be relied on: it says so to everybody, and writes no more. Reads go
    /// on.
    fn refuse_until_stopped(&self) {
        tracing::error!("the writer panicked; nothing is written until the engine is opened again");
        let error = Error::Unavailable("the writer panicked, and writes again only after a restart".into());
        self.core.set_failed(error.clone(), false);
        loop {
            // Nobody says so again to a writer that has taken the word to stop already.
            let next = if self.core.is_closing() { self.messages.try_recv().ok() } else { self.messages.recv().ok() };
            match next {
                Some(Message::Run(job)) => job.finish(Some(&error), &self.core.metrics),
                Some(Message::Stop) => {}
                None => break,
            }
        }
    }

    /// Runs a batch that begins with `first`; whether the engine is to stop.
    fn run_or_recover(&mut self, first: Option<Box<dyn Job>>) -> bool {
        let mut intake = Intake::begin(&self.messages, first.is_some(), self.last_batch, self.last_commit);
        match self.run_batch(first, &mut intake) {
            Ok(()) => intake.stopped,
            Err(cause) => self.recover(cause) || intake.stopped,
        }
    }

    fn until_next_timer(&self) -> Duration {
        let monotonic = self.core.clock.monotonic();
        let housekeeping = self.next_housekeeping.saturating_sub(monotonic);
        self.leases.until_next(monotonic).map_or(housekeeping, |lease| lease.min(housekeeping)).min(LOOK_EVERY)
    }

    /// Runs, commits, applies the effects and answers. After an error all have been answered: with it, or well, where
    /// what was committed cannot be read.
    fn run_batch(&mut self, first: Option<Box<dyn Job>>, intake: &mut Intake) -> Result<(), StoreError> {
        let moment = self.core.moment();
        let ended =
            self.leases.end_due(moment.monotonic, MAX_EXPIRIES, |id| self.directory.get(id).map(|entry| &*entry.lease));
        // Expiries come first, so that a command in the same batch may revive.
        let mut jobs: Vec<Box<dyn Job>> = ended.into_iter().map(|id| job(Expire(id)).0).collect();
        let expiries = jobs.len();
        jobs.reserve(self.last_batch + 1);
        jobs.extend(first);
        let housekeeping = moment.monotonic >= self.next_housekeeping;
        if jobs.is_empty() && !housekeeping {
            let store = &self.core.store;
            let checked = store.check_place().and_then(|()| store.check_access());
            return checked.inspect_err(|cause| self.core.set_failed(cause.clone().into(), false));
        }
        let began = self.core.clock.monotonic();
        let commit_began = Instant::now();
        let effects = match self.commit(&mut jobs, Some(intake), moment, housekeeping) {
            Ok(effects) => effects,
            Err(cause) => {
                let error = Error::from(cause.clone());
                for job in jobs {
                    job.finish(Some(&error), &self.core.metrics);
                }
                return Err(cause);
            }
        };
        let commands = jobs.len() - expiries;
        (self.last_batch, self.last_commit) = (commands, commit_began.elapsed());
        if commands > 0 {
            self.core.metrics.committed(commands, self.core.clock.monotonic().saturating_sub(began));
        }
        let published = self.apply(effects);
        for job in jobs {
            job.finish(None, &self.core.metrics);
        }
        published?;
        if housekeeping {
            // Writing it may take a while, for which neither what was committed nor its answers wait.
            self.keep_reserve();
        }
        // One call of the system beside the sync of a commit, and only while there is an export.
        self.core.exports.break_off_slow(|| self.core.store.bytes());
        Ok(())
    }

    fn keep_reserve(&self) {
        if let Err(error) = self.core.store.keep_reserve() {
            tracing::warn!(%error, "no room could be kept back for what sinks acknowledge on a full disk");
        }
    }

    fn commit(
        &mut self,
        jobs: &mut Vec<Box<dyn Job>>,
        mut intake: Option<&mut Intake>,
        moment: Moment,
        housekeeping: bool,
    ) -> Result<(Vec<Effect>, Recorded), StoreError> {
        let (directory, random, default_ttl) = (&self.directory, &mut self.random, self.core.default_ttl);
        let age = self.opened_at_age.after(moment.monotonic.saturating_sub(self.started));
        let is_settling_put_off = moment.monotonic < self.settling_put_off_until;
        let next_purged_agent = &mut self.next_purged_agent;
        let progress = &self.core.progress;
        progress.made();
        let committed = self.core.store.write(&mut self.head, |batch| {
            let mut purged = 0;
            let mut forgotten = Vec::new();
            batch.grow_to(age);
            if is_settling_put_off {
                batch.put_off_settling();
            }
            let oldest_minute = minute_of(moment.now).saturating_sub(WINDOW_MINUTES + 1);
            batch.count_loads_from(oldest_minute);
            // What it takes away makes no room at once, and may lie anywhere in the file.
            if housekeeping && !is_settling_put_off {
                purged = purged.max(batch.purge_receipts(age.before(RECEIPTS_KEPT), MAX_PURGE)?);
                purged = purged.max(batch.purge_loads(oldest_minute, MAX_PURGE)?);
                purged = purged.max(batch.purge_tombstones(moment.now, MAX_PURGE)?);
                let kept_from = age.before(EXPIRED_AGENTS_KEPT);
                let expired = batch.purge_expired(kept_from, moment.now, next_purged_agent.as_ref(), MAX_PURGE)?;
                *next_purged_agent = expired.next;
                forgotten = expired.forgotten;
            }
            let mut session = Session::new(batch, directory, moment, default_ttl, random);
            for job in jobs.iter_mut() {
                job.run(&mut session)?;
                progress.made();
            }
            while let Some(job) = intake.as_mut().and_then(|intake| intake.next(jobs.len())) {
                jobs.push(job);
                jobs.last_mut().expect("one was pushed").run(&mut session)?;
                progress.made();
            }
            let (mut effects, recorded) = session.into_effects();
            effects.splice(0..0, forgotten.into_iter().map(Effect::Remove));
            Ok(((effects, recorded), purged))
        });
        // Before anybody is answered: who is told of the failure must not then find us ready.
        let committed = committed.inspect_err(|cause| self.core.set_failed(cause.clone().into(), false));
        self.core.progress.ended();
        let (effects, purged) = committed?;
        if housekeeping {
            // When there was more to forget than one batch may, the next one goes on.
            let pause = if purged < MAX_PURGE { HOUSEKEEPING_EVERY } else { Duration::ZERO };
            self.next_housekeeping = moment.monotonic + pause;
            self.loads.drop_before_window(&mut self.load_minutes, minute_of(moment.now));
        }
        Ok(effects)
    }

    /// Takes over what a commit has changed, and publishes it.
    fn apply(&mut self, (effects, recorded): (Vec<Effect>, Recorded)) -> Result<(), StoreError> {
        let metrics = &self.core.metrics;
        let mut replaced = Vec::new();
        recorded.count(metrics, &mut self.loads, &mut self.load_minutes);
        for effect in effects {
            match effect {
                Effect::Put(entry) => {
                    if entry.expired {
                        self.leases.forget(&entry.standing.agent_id);
                    } else {
                        self.leases.watch(&entry.standing.agent_id, &entry.lease);
                        let before = self.directory.get(&entry.standing.agent_id);
                        let is_replaced = |before: &&Arc<Entry>| {
                            entry.local && before.local && !Arc::ptr_eq(&before.lease, &entry.lease)
                        };
                        if let Some(before) = before.filter(is_replaced) {
                            let lease = |entry: &Entry| (Arc::clone(&entry.lease), entry.ttl);
                            replaced.push((lease(before), lease(&entry)));
                        }
                    }
                    self.directory.put(entry);
                }
                Effect::Remove(id) => {
                    self.leases.forget(&id);
                    self.directory.remove(&id);
                }
                Effect::Rewatch(id) => {
                    if let Some(entry) = self.directory.get(&id).filter(|entry| !entry.expired) {
                        self.leases.watch(&id, &entry.lease);
                    }
                }
                Effect::ObservationsMoved => self.observation_seq += 1,
                Effect::Outcome { agent_id, success } => metrics.outcome_observed(agent_id.as_str(), success),
                Effect::LoadMoved { provider, capability, at, counts } => {
                    let (minute, now) = (minute_of(at), minute_of(self.core.clock.now()));
                    if counts {
                        self.loads.add_from_elsewhere(&mut self.load_minutes, &provider, &capability, minute, now);
                    } else {
                        self.loads.remove(&provider, &capability, minute);
                    }
                }
                Effect::Conflicted { reason, times } => metrics.ledger_conflict(reason, times),
                Effect::Transitioned { from, to, capability, settled_after } => {
                    metrics.transitioned(from, to);
                    if to == crate::domain::TransactionStatus::Disputed {
                        metrics.disputed(capability.as_str());
                    }
                    if let Some(duration) = settled_after {
                        metrics.settled_after(duration);
                    }
                }
            }
        }
        let published = self.publish();
        // A heartbeat that came after the batch had begun has renewed the lease that the agent had before. It counts for the
        // new one; what has ended needs no more. One that comes from here on sees the new one.
        fence(Ordering::SeqCst);
        for ((before, ttl_before), (lease, ttl)) in replaced {
            if before.renewed_at(ttl_before) > lease.renewed_at(ttl) {
                lease.renew(self.core.moment(), ttl).ok();
            }
        }
        published
    }

    /// Shows everybody what is committed.
    ///
    /// # Errors
    ///
    /// When it cannot be read, which is shown as well.
    fn publish(&self) -> Result<(), StoreError> {
        let (totals, log) = (*self.head.totals(), self.head.log_position());
        let mark =
            CommitMark { log_seq: log.seq, change_seq: totals.change_seq, observation_seq: self.observation_seq };
        let (directory, loads) = (self.directory.clone(), self.loads.clone());
        let (identity, acknowledged) = (Arc::clone(self.head.identity()), self.head.acknowledged());
        let snapshot = self.core.store.snapshot().map(Arc::new);
        let readable = snapshot.as_ref().map(drop).map_err(Clone::clone);
        if let Err(cause) = &readable {
            self.core.set_failed(cause.clone().into(), false);
        }
        self.core.publish(View { snapshot, identity, directory, loads, totals, log, acknowledged }, mark);
        readable
    }

    /// Derives directory and loads from the store. Leases that run go on; an agent without one that is not marked
    /// expired gets a fresh one, and is stale with it if it is remote.
    fn rebuild(&mut self) -> Result<(), StoreError> {
        let moment = self.core.moment();
        let snapshot = self.core.store.snapshot()?;
        let mut directory = Directory::default();
        let mut leases = LeaseQueue::default();
        let node_id = self.head.identity().node_id;
        snapshot.for_each_agent(|agent| {
            let running = self.directory.get(&agent.agent_id).map(|entry| Arc::clone(&entry.lease));
            let lease = match running {
                _ if agent.expired => Arc::new(Lease::ended(agent.expires_at)),
                Some(lease) => lease,
                None if agent.is_local(node_id) => Arc::new(Lease::begin(moment, agent.ttl)),
                None => Arc::new(Lease::unconfirmed(moment, agent.ttl)),
            };
            if !agent.expired {
                leases.watch(&agent.agent_id, &lease);
            }
            let local = agent.is_local(node_id);
            directory.put(Entry::new(&agent, lease, local));
        })?;
        let (mut loads, mut minutes) = (Loads::default(), LoadMinutes::default());
        snapshot.for_each_load(minute_of(moment.now).saturating_sub(WINDOW_MINUTES), |load| {
            loads.add(&mut minutes, &load.provider, &load.capability, load.minute, load.count);
        })?;
        (self.directory, self.leases, self.loads, self.load_minutes) = (directory, leases, loads, minutes);
        self.publish()
    }

    /// Reopens and verifies until the store takes writes again; whether the engine is to stop instead. Meanwhile every
    /// command is answered with the cause, and reads go on from each reopening to the next probe.
    fn recover(&mut self, mut cause: StoreError) -> bool {
        tracing::error!(error = %cause, "a commit failed; nothing is acknowledged until the store is sound again");
        let mut retry = Duration::ZERO;
        let mut condition = Condition::Latched;
        loop {
            if matches!(cause, StoreError::NoSpace(_)) {
                self.settling_put_off_until = self.core.clock.monotonic() + SETTLING_PUT_OFF;
                // Later ones began on the full disk, where what they hold is all that there is to be read.
                if condition == Condition::Latched {
                    self.core.exports.break_off_on_full_disk();
                }
            }
            self.core.set_failed(Error::from(cause.clone()), condition == Condition::OnReserve);
            let began = self.core.clock.monotonic();
            let attempt = self.try_recover(&cause, &mut condition);
            let took = self.core.clock.monotonic().saturating_sub(began);
            match attempt {
                Ok(()) => {
                    // It may be what there was no room for: what was asked for comes first.
                    self.next_housekeeping = self.core.clock.monotonic() + HOUSEKEEPING_EVERY;
                    self.core.set_sound();
                    tracing::info!("the store was reopened and verified; writes are taken again");
                    return false;
                }
                Err(error) => {
                    tracing::warn!(%error, "the store is not sound yet");
                    cause = error;
                }
            }
            // A large file takes a while to check, and cannot be read meanwhile: the larger, the rarer.
            retry = (retry * 2).clamp(FIRST_RETRY, LONGEST_RETRY).max((took * 10).min(LONGEST_CHECK_RETRY));
            self.core.set_failed(Error::from(cause.clone()), condition == Condition::OnReserve);
            if self.core.is_closing() || self.answer_with_failure(&cause, retry, &mut condition) {
                return true;
            }
        }
    }

    /// Reopens where redb has latched an error, and finds out whether the disk takes writes: first without the store,
    /// since a failed write would latch it again and take it from its readers.
    fn try_recover(&mut self, cause: &StoreError, condition: &mut Condition) -> Result<(), StoreError> {
        self.core.store.check_place()?;
        if *condition == Condition::Latched {
            // Whoever reads meanwhile asks for no room.
            self.core.withdraw_snapshot(match cause {
                StoreError::NoSpace(source) => StoreError::Io(Arc::clone(source)),
                other => other.clone(),
            });
            sound(|| self.reopen())?;
            *condition = Condition::Readable;
        }
        let tried = self.core.store.try_disk();
        if matches!(tried, Err(StoreError::NoSpace(_))) {
            self.core.store.release_reserve()?;
            if *condition == Condition::Readable {
                *condition = Condition::Latched;
                sound(|| self.core.store.resume())?;
                *condition = Condition::OnReserve;
            }
        }
        tried?;
        *condition = Condition::Latched;
        sound(|| self.core.store.resume())?;
        sound(|| self.core.store.probe())?;
        // Else the pages of the probe would be held for as long as nothing else is written.
        self.publish()
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        self.head = self.core.store.reopen(self.head.identity().node_id)?;
        self.rebuild()
    }

    /// Answers commands for a while; whether the engine is to stop. Bookkeeping is done where there is a reserve for it.
    fn answer_with_failure(&mut self, cause: &StoreError, pause: Duration, condition: &mut Condition) -> bool {
        let error = Error::from(cause.clone());
        let until = Instant::now() + pause;
        loop {
            match self.messages.recv_deadline(until) {
                Ok(Message::Run(job)) if *condition == Condition::OnReserve && job.is_bookkeeping() => {
                    if let Err(error) = self.run_alone(job) {
                        tracing::warn!(%error, "what a sink has acknowledged could not be noted on a full disk");
                        *condition = Condition::Latched;
                        return false;
                    }
                }
                Ok(Message::Run(job)) => job.finish(Some(&error), &self.core.metrics),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return true,
                Err(RecvTimeoutError::Timeout) => return false,
            }
        }
    }

    /// Runs one command and nothing besides.
    fn run_alone(&mut self, job: Box<dyn Job>) -> Result<(), StoreError> {
        let mut jobs = vec![job];
        let moment = self.core.moment();
        let committed = self.commit(&mut jobs, None, moment, false);
        let failure = committed.as_ref().err().map(|cause| Error::from(cause.clone()));
        let committed = committed.and_then(|effects| self.apply(effects));
        for job in jobs {
            job.finish(failure.as_ref(), &self.core.metrics);
        }
        committed
    }
}

/// What can be done with a store of which a commit has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    /// redb refuses everything until it is reopened.
    Latched,
    /// It can be read.
    Readable,
    /// It can be read, and there is room for bookkeeping.
    OnReserve,
}

/// A file that makes no sense to redb may make it panic; that is damage like any other.
fn sound<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(StoreError::Damaged("reading the file panicked".to_owned())))
}
