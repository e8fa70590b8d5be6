//! The power goes at any moment: every acknowledged command is there afterwards, of the others a first part at most, each
//! batch as a whole or not at all, and nothing that nobody asked for.
//!
//! The disk is a model. Whatever was written since the last sync may be there or not after a cut, sector by sector; and the
//! power may go again while the store recovers. Each trial goes on with what the one before has left, until a new store
//! begins.
//!
//! Syncs fail as well, now and then: a kernel that could not write a page says so once, and holds it for written.
//!
//! `TRADEPOST_POWER_LOSSES` says how many cuts there are, `TRADEPOST_POWER_LOSSES_SEED` which: a failure names the seed, the
//! course and the trial.

mod common;

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::trials::Trials;
use common::{agent_id, registration, transaction_id};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use redb::StorageBackend;
use tradepost::domain::{AgentId, Capability, Currency, Facts, JsonObject, Money, NewTransaction};
use tradepost::store::verify;
use tradepost::{Engine, Location, Options, Pending};

const CUTS: u64 = 5_000;
/// Trials that follow from each other are a course; so many run side by side, however many processors there are.
const COURSES: u64 = 4;
/// One in so many recovered stores is verified whole.
const VERIFIED: u64 = 20;
const SECTOR: usize = 512;
/// A larger file is not gone on with, since every trial copies it.
const MAX_FILE: usize = 4 * 1024 * 1024;

/// What a disk does until the power goes.
#[derive(Debug)]
struct Power {
    operations: AtomicU64,
    /// The operation that is the first not to happen.
    cut_at: u64,
}

impl Power {
    fn until(cut_at: u64) -> Arc<Self> {
        Arc::new(Self { operations: AtomicU64::new(0), cut_at })
    }

    fn step(&self) -> io::Result<()> {
        let number = self.operations.fetch_add(1, Ordering::SeqCst);
        if number < self.cut_at { Ok(()) } else { Err(io::Error::other("the power is gone")) }
    }
}

/// One file on the disk.
#[derive(Debug)]
struct Disk {
    power: Arc<Power>,
    content: Mutex<Content>,
    /// Of the next sync, which fails: what of it gets through all the same.
    failing: Mutex<Option<StdRng>>,
}

#[derive(Debug, Default)]
struct Content {
    /// What reads see.
    now: Vec<u8>,
    /// What is on the disk for sure.
    synced: Vec<u8>,
    /// What was done since.
    since: Vec<Step>,
}

#[derive(Debug)]
enum Step {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

impl Step {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => {
                let end = offset + data.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*offset..end].copy_from_slice(data);
            }
            Self::SetLen(len) => content.resize(*len, 0),
        }
    }
}

impl Disk {
    fn with(content: &[u8], power: &Arc<Power>) -> Arc<Self> {
        let content = Content { now: content.to_vec(), synced: content.to_vec(), since: Vec::new() };
        Arc::new(Self { power: Arc::clone(power), content: Mutex::new(content), failing: Mutex::default() })
    }

    fn fail_next_sync(&self, random: StdRng) {
        *self.failing.lock().unwrap() = Some(random);
    }

    /// What is found on the disk after the cut.
    fn after_cut(&self, random: &mut impl Rng) -> Vec<u8> {
        let content = self.content.lock().unwrap();
        let mut found = content.synced.clone();
        // Now and then all of it, or nothing, got through.
        let share = [0.0, 0.2, 0.5, 0.9, 1.0][random.random_range(0..5)];
        for step in &content.since {
            match step {
                Step::SetLen(_) if random.random_bool(share) => step.apply(&mut found),
                Step::SetLen(_) => {}
                Step::Write(offset, data) if random.random_bool(0.3) => {
                    let mut place = *offset;
                    for sector in data.chunks(SECTOR) {
                        if random.random_bool(share) {
                            Step::Write(place, sector.to_vec()).apply(&mut found);
                        }
                        place += sector.len();
                    }
                }
                Step::Write(..) if random.random_bool(share) => step.apply(&mut found),
                Step::Write(..) => {}
            }
        }
        found
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.content.lock().unwrap().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let content = self.content.lock().unwrap();
        let offset = usize::try_from(offset).unwrap();
        let read = content.now.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(read);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.power.step()?;
        let mut content = self.content.lock().unwrap();
        let step = Step::SetLen(usize::try_from(len).unwrap());
        step.apply(&mut content.now);
        content.since.push(step);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.power.step()?;
        let mut content = self.content.lock().unwrap();
        let since = std::mem::take(&mut content.since);
        if let Some(mut random) = self.failing.lock().unwrap().take() {
            for step in since {
                if matches!(step, Step::SetLen(_)) || random.random_bool(0.5) {
                    step.apply(&mut content.synced);
                }
            }
            return Err(io::Error::other("a page could not be written"));
        }
        since.iter().for_each(|step| step.apply(&mut content.synced));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.power.step()?;
        let mut content = self.content.lock().unwrap();
        let step = Step::Write(usize::try_from(offset).unwrap(), data.to_vec());
        step.apply(&mut content.now);
        content.since.push(step);
        Ok(())
    }
}

/// What is on the disk while the power is off.
#[derive(Debug, Default, Clone)]
struct Left {
    file: Vec<u8>,
    /// Every command that was acknowledged.
    acknowledged: HashSet<String>,
    /// Everything that was submitted, in order.
    submitted: Vec<Submitted>,
}

/// An agent or a transaction that a command was to make.
#[derive(Debug, Clone)]
struct Submitted {
    name: String,
    /// The place of what its batch begins with; its own if it came alone.
    first: usize,
}

impl Submitted {
    fn is_agent(&self) -> bool {
        self.name.starts_with("agent-")
    }
}

impl Left {
    /// One more command, which is to make these.
    fn submit(&mut self, names: &[String]) {
        let first = self.submitted.len();
        self.submitted.extend(names.iter().map(|name| Submitted { name: name.clone(), first }));
    }

    /// A new store. A file gets its name only when it is whole, so the power does not go before.
    fn created() -> Self {
        let file = Disk::with(&[], &Power::until(u64::MAX));
        Engine::open(Options::new(Location::Backend(file.clone()))).expect("there is power").close();
        let file = file.content.lock().unwrap().synced.clone();
        Self { file, ..Self::default() }
    }

    /// Runs until the power goes, and keeps what is on the disk then.
    fn run(&mut self, random: &mut StdRng, work: impl FnOnce(&Engine, &mut Self, &mut StdRng)) {
        let power = Power::until(if random.random_bool(0.4) {
            random.random_range(0..60)
        } else {
            random.random_range(0..1_000)
        });
        let file = Disk::with(&self.file, &power);
        // While there is no power, nothing comes of opening it.
        if let Ok(engine) = Engine::open(Options::new(Location::Backend(file.clone()))) {
            work(&engine, self, random);
        }
        self.file = file.after_cut(random);
    }

    /// Opens what is left with the power on, and looks whether it is what it must be.
    fn check(&mut self, trial: &str, is_verified: bool) {
        let file = Disk::with(&self.file, &Power::until(u64::MAX));
        let options = Options::new(Location::Backend(file.clone()));
        let engine = Engine::open(options).unwrap_or_else(|error| panic!("{trial}: {error}"));
        let is_there = |submitted: &Submitted| {
            if submitted.is_agent() {
                engine.agent(&agent_id(&submitted.name)).is_ok()
            } else {
                engine.transaction(&transaction_id(&submitted.name)).is_ok()
            }
        };
        let there: Vec<bool> = self.submitted.iter().map(is_there).collect();
        let first_lost = there.iter().position(|there| !there).unwrap_or(there.len());
        for (Submitted { name, .. }, there) in self.submitted.iter().zip(&there) {
            assert!(*there || !self.acknowledged.contains(name), "{trial}: {name} was acknowledged and is lost");
        }
        if let Some(later) = there[first_lost..].iter().position(|there| *there) {
            let (lost, later) = (&self.submitted[first_lost], &self.submitted[first_lost + later]);
            panic!("{trial}: {lost:?} is lost, but {later:?} behind it is there");
        }
        if let Some(lost) = self.submitted.get(first_lost) {
            assert_eq!(lost.first, first_lost, "{trial}: {lost:?} is lost, but what its batch begins with is there");
        }
        // What is lost was never acknowledged, and may be asked for again.
        self.submitted.truncate(first_lost);
        let agents = self.submitted.iter().filter(|submitted| submitted.is_agent()).count();
        let status = engine.status().unwrap_or_else(|error| panic!("{trial}: {error}"));
        assert_eq!(
            [status.agents, status.transactions],
            [agents, first_lost - agents].map(|count| count as u64),
            "{trial}: as many agents and transactions as are left of those that were asked for"
        );
        engine.close();
        drop(engine);
        self.file = file.content.lock().unwrap().now.clone();
        if is_verified {
            let home = tempfile::tempdir().unwrap();
            let path = home.path().join("tradepost.redb");
            std::fs::write(&path, &self.file).unwrap();
            let report = verify(&path, &mut |_, _, _| {}).unwrap_or_else(|error| panic!("{trial}: {error}"));
            assert!(report.is_clean(), "{trial}: {:#?}", report.findings);
        }
    }
}

/// Waits for an answer, and says whether it was done.
type Answer = Box<dyn FnOnce() -> bool>;

fn answer<T: Send + 'static>(pending: Pending<T>) -> Answer {
    Box::new(move || pending.wait().is_ok())
}

fn new(name: &str, bytes: usize) -> NewTransaction {
    let context = JsonObject::parse(&format!(r#"{{"x":"{}"}}"#, "x".repeat(bytes))).unwrap();
    let facts = Facts {
        payer_agent: AgentId::parse("payer_agent", "genesis").unwrap(),
        provider_agent: AgentId::parse("provider_agent", "thon").unwrap(),
        capability: Capability::parse("capability", "python").unwrap(),
        amount: Money::parse("0.1").unwrap(),
        currency: Currency::default(),
        context,
    };
    NewTransaction { transaction_id: Some(transaction_id(name)), facts }
}

/// Submits commands, a few at a time before their answers are in, until one fails.
fn work(engine: &Engine, left: &mut Left, random: &mut StdRng) {
    let at_once = [1, 1, 3, 16][random.random_range(0..4)];
    let largest = if random.random_bool(0.02) { 60_000 } else { [10, 10, 10, 3_000][random.random_range(0..4)] };
    for _ in 0..400 {
        let mut asked = Vec::new();
        for _ in 0..random.random_range(1..=at_once) {
            let number = left.submitted.len();
            let (names, is_done) = match random.random_range(0..40) {
                0..4 => {
                    let name = format!("agent-{number}");
                    let pending = engine.register(registration(&name, &["python"]), None);
                    (vec![name], answer(pending))
                }
                4 if largest > 10 => {
                    let names: Vec<String> =
                        (0..random.random_range(1..150)).map(|more| format!("t{}", number + more)).collect();
                    let pending = engine.record_batch(names.iter().map(|name| new(name, largest)).collect());
                    (names, answer(pending))
                }
                _ => {
                    let name = format!("t{number}");
                    let pending = engine.record(new(&name, random.random_range(0..largest)), None);
                    (vec![name], answer(pending))
                }
            };
            left.submit(&names);
            asked.push((names, is_done));
        }
        for (names, is_done) in asked {
            if !is_done() {
                return;
            }
            left.acknowledged.extend(names);
        }
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// Makes `count` trials of one kind, in courses side by side. Each begins with what the one before has left, or anew.
fn in_courses(kind: &str, count: u64, try_once: impl Fn(&mut Left, &mut StdRng, &str) + Sync) {
    let seed = setting("TRADEPOST_POWER_LOSSES_SEED", rand::random::<u32>().into());
    let trials = Trials::of("power_loss", seed);
    let run = |course: u64| {
        let mut random = StdRng::seed_from_u64(seed + (course << 32));
        let mut left = Left::created();
        for number in (course..count).step_by(COURSES as usize) {
            trials.ran(1);
            let trial = format!("seed {seed}, {kind} {number} of course {course}");
            if random.random_bool(0.1) || left.file.len() > MAX_FILE {
                left = Left::created();
            }
            try_once(&mut left, &mut random, &trial);
            left.check(&trial, (number / COURSES).is_multiple_of(VERIFIED));
        }
    };
    thread::scope(|scope| {
        for course in 0..COURSES {
            let run = &run;
            scope.spawn(move || run(course));
        }
    });
}

#[test]
fn whatever_was_acknowledged_outlasts_the_power() {
    in_courses("cut", setting("TRADEPOST_POWER_LOSSES", CUTS), |left, random, _| {
        left.run(random, work);
        while random.random_bool(0.3) {
            left.run(random, |_, _, _| {});
        }
    });
}

/// One sync fails for so many cuts.
const CUTS_PER_BAD_SYNC: u64 = 10;

#[test]
fn what_a_failed_sync_did_not_write_is_written_later() {
    let failures = setting("TRADEPOST_POWER_LOSSES", CUTS) / CUTS_PER_BAD_SYNC;
    in_courses("failed sync", failures, |left, random, trial| {
        let file = Disk::with(&left.file, &Power::until(u64::MAX));
        let engine = Engine::open(Options::new(Location::Backend(file.clone()))).expect("there is power");
        for _ in 0..random.random_range(0..10) {
            record_next(&engine, left);
        }
        file.fail_next_sync(StdRng::seed_from_u64(random.random()));
        // So many that what comes later leaves most of their pages as they are.
        let (first, count) = (left.submitted.len(), random.random_range(1..100));
        let names: Vec<String> = (first..first + count).map(|number| format!("t{number}")).collect();
        let batch = || engine.record_batch(names.iter().map(|name| new(name, 3_000)).collect());
        assert!(batch().wait().is_err(), "{trial}: its sync failed");
        wait_until_ready(&engine, trial);
        // They may be there or not; asked for again they are acknowledged.
        batch().wait().expect("nothing fails");
        left.submit(&names);
        left.acknowledged.extend(names);
        for _ in 0..random.random_range(1..10) {
            record_next(&engine, left);
        }
        left.file = file.after_cut(random);
        drop(engine);
    });
}

fn record_next(engine: &Engine, left: &mut Left) {
    let name = format!("t{}", left.submitted.len());
    left.submit(std::slice::from_ref(&name));
    engine.record(new(&name, 10), None).wait().expect("nothing fails");
    left.acknowledged.insert(name);
}

fn wait_until_ready(engine: &Engine, trial: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = engine.ready() {
        assert!(Instant::now() < deadline, "{trial}: it did not heal: {error}");
        thread::sleep(Duration::from_millis(1));
    }
}
