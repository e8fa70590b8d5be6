//! A disk that fails: nothing is acknowledged that does not last, reads go on, and it heals by itself.

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::clock::ManualClock;
use common::trials::Trials;
use common::{agent_id, capability, facts, registration, transaction_id};
use futures_util::FutureExt;
use redb::StorageBackend;
use redb::backends::FileBackend;
use tradepost::clock::Clock;
use tradepost::domain::ranking::RankBy;
use tradepost::domain::{
    Identity, JsonObject, NewTransaction, PostgresState, RedisState, Refusal, Registration, Timestamp, TransactionId,
    Ttl,
};
use tradepost::engine::replica::{ForkReason, Saved};
use tradepost::engine::{Idempotency, Profile};
use tradepost::store::verify;
use tradepost::{
    AgentFilter, Engine, Error, LeaseState, Location, OpenError, Options, PageRequest, Precondition, TransactionFilter,
};

/// A countdown that is none, and one that has ended.
const NEVER: i64 = -1;
const DONE: i64 = -2;

const SOUND: u8 = 0;
const SYNC_FAILS: u8 = 1;
const FULL: u8 = 2;
/// Syncs wait until the fault is another one.
const SYNC_HANGS: u8 = 3;
/// The same for what makes the file longer.
const GROWTH_HANGS: u8 = 4;

const TELLS_TIME: u8 = 0;
/// The writer panics when it asks for the time, as it does between commands, commits and answers.
const PANICS: u8 = 1;
/// From behind the next sync the writer waits for the time.
const HOLDS_BEHIND_SYNC: u8 = 2;
/// From when anybody else asks for it the disk fails for good.
const FAILS_DISK: u8 = 3;
/// Whoever else asks for the time waits for it.
const HOLDS_OTHERS: u8 = 4;

/// A clock that can be told to do more than to tell the time.
#[derive(Debug)]
struct FragileClock {
    clock: Arc<ManualClock>,
    file: Arc<FragileFile>,
    fault: AtomicU8,
    /// Whether somebody has begun to wait.
    holding: AtomicBool,
}

impl FragileClock {
    fn of(file: &Arc<FragileFile>) -> Arc<Self> {
        let clock = ManualClock::at(1_795_391_431_767_109);
        Arc::new(Self { clock, file: file.clone(), fault: AtomicU8::new(TELLS_TIME), holding: AtomicBool::new(false) })
    }

    fn set(&self, fault: u8) {
        self.file.has_synced.store(false, Ordering::SeqCst);
        self.holding.store(false, Ordering::SeqCst);
        self.fault.store(fault, Ordering::SeqCst);
    }

    fn wait_until_it_holds(&self) {
        wait_until("nobody asked for the time", || self.holding.load(Ordering::SeqCst));
    }

    fn hold_while(&self, is_to_wait: impl Fn() -> bool) {
        while is_to_wait() {
            self.holding.store(true, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Clock for FragileClock {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn monotonic(&self) -> Duration {
        if thread::current().name() == Some("writer") {
            assert_ne!(self.fault.load(Ordering::SeqCst), PANICS, "injected");
            let has_synced = || self.file.has_synced.load(Ordering::SeqCst);
            self.hold_while(|| self.fault.load(Ordering::SeqCst) == HOLDS_BEHIND_SYNC && has_synced());
        } else if self.fault.load(Ordering::SeqCst) == FAILS_DISK {
            self.file.fail_at(0, true);
        } else {
            self.hold_while(|| self.fault.load(Ordering::SeqCst) == HOLDS_OTHERS);
        }
        self.clock.monotonic()
    }
}

/// A file that can be told to fail.
#[derive(Debug)]
struct FragileFile {
    file: FileBackend,
    fault: AtomicU8,
    /// How many more operations go well before one fails; negative: never.
    countdown: AtomicI64,
    /// Whether all that come after it fail as well.
    fails_for_good: AtomicBool,
    /// Whether a sync, or whatever is to hang, has begun to wait.
    hanging: AtomicBool,
    /// Whether it has waited for so long that it does no more.
    gave_up: AtomicBool,
    /// Whether a sync has ended well.
    has_synced: AtomicBool,
    /// How much there is room for between two syncs, and how much of that is taken.
    commit_bytes: AtomicI64,
    written: AtomicI64,
}

impl FragileFile {
    fn create(path: &Path) -> Arc<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        let file = FileBackend::new(file).unwrap();
        let (fault, countdown) = (AtomicU8::new(SOUND), AtomicI64::new(NEVER));
        let (fails_for_good, hanging) = (AtomicBool::new(false), AtomicBool::new(false));
        let (commit_bytes, written) = (AtomicI64::new(i64::MAX), AtomicI64::new(0));
        let (has_synced, gave_up) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { file, fault, countdown, fails_for_good, hanging, gave_up, has_synced, commit_bytes, written })
    }

    fn set(&self, fault: u8) {
        self.fault.store(fault, Ordering::SeqCst);
    }

    /// The operations from `number` on fail, or only that one.
    fn fail_at(&self, number: i64, for_good: bool) {
        self.fails_for_good.store(for_good, Ordering::SeqCst);
        self.countdown.store(number, Ordering::SeqCst);
    }

    /// Whether an operation has failed; from here on none does.
    fn heal(&self) -> bool {
        self.countdown.swap(NEVER, Ordering::SeqCst) == DONE
    }

    fn wait_until_it_hangs(&self) {
        wait_until("it did not begin to commit", || self.hanging.load(Ordering::SeqCst));
    }

    fn step(&self) -> io::Result<()> {
        let for_good = self.fails_for_good.load(Ordering::SeqCst);
        let before = self.countdown.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| match left {
            0 => Some(DONE),
            1.. => Some(left - 1),
            _ => None,
        });
        match before {
            Ok(0) => Err(io::Error::other("injected")),
            Err(DONE) if for_good => Err(io::Error::other("injected, and for good")),
            _ => Ok(()),
        }
    }

    /// Waits while the fault is this one; not for ever, or a test that fails meanwhile would never end.
    fn hang_while(&self, fault: u8) {
        let began = Instant::now();
        while self.fault.load(Ordering::SeqCst) == fault {
            if self.gave_up.load(Ordering::SeqCst) || began.elapsed() > Duration::from_secs(30) {
                return self.gave_up.store(true, Ordering::SeqCst);
            }
            self.hanging.store(true, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn room(&self) -> io::Result<()> {
        match self.fault.load(Ordering::SeqCst) {
            FULL => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }
}

impl StorageBackend for FragileFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.step()?;
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.step()?;
        if len > self.file.len()? {
            self.room()?;
            self.hang_while(GROWTH_HANGS);
        }
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.step()?;
        self.hang_while(SYNC_HANGS);
        match self.fault.load(Ordering::SeqCst) {
            SYNC_FAILS => Err(io::Error::other("injected")),
            _ => {
                self.written.store(0, Ordering::SeqCst);
                self.file.sync_data()?;
                self.has_synced.store(true, Ordering::SeqCst);
                Ok(())
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.step()?;
        let written = self.written.fetch_add(data.len() as i64, Ordering::SeqCst) + data.len() as i64;
        if written > self.commit_bytes.load(Ordering::SeqCst) {
            self.written.store(0, Ordering::SeqCst);
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write(offset, data)
    }
}

fn new(number: usize) -> NewTransaction {
    // Large enough that the file has to grow now and then.
    let context = format!(r#"{{"padding":"{}"}}"#, "x".repeat(8_000));
    let mut facts = facts("a", "b", "python", "1");
    facts.context = JsonObject::parse(&context).unwrap();
    NewTransaction { transaction_id: Some(id(number)), facts }
}

fn id(number: usize) -> TransactionId {
    transaction_id(&format!("t{number}"))
}

const PAGE: PageRequest<'_> = PageRequest { limit: 10, cursor: None };

fn all_agents() -> AgentFilter {
    AgentFilter { capability: None, availability: None, sort_by: RankBy::AgentId, include_expired: true }
}

fn wait_until(what: &str, is_true: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_true() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn wait_until_ready(engine: &Engine) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = engine.ready() {
        assert!(Instant::now() < deadline, "it did not heal: {error}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn assert_clean(path: &Path) {
    let report = verify(path, &mut |_, _, _| {}).expect("the file opens");
    assert!(report.is_clean(), "{:#?}", report.findings);
}

#[test]
fn a_failed_sync_is_never_acknowledged_and_heals_without_a_new_write() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.redb");
    let file = FragileFile::create(&path);
    let engine = Engine::open(Options::new(Location::Backend(file.clone()))).unwrap();
    engine.record(new(0), None).wait().unwrap();
    file.set(SYNC_FAILS);
    assert!(matches!(engine.record(new(1), None).wait(), Err(Error::Unavailable(_))));
    assert!(engine.ready().is_err());
    assert!(matches!(engine.record(new(2), None).wait(), Err(Error::Unavailable(_))));
    file.set(SOUND);
    wait_until_ready(&engine);
    assert!(engine.transaction(&id(0)).is_ok());
    assert!(engine.transaction(&id(2)).is_err(), "refused while the store was unsound");
    engine.record(new(2), None).wait().unwrap();
    // The one that failed may be there or not, but is never there twice.
    engine.record(new(1), None).wait().unwrap();
    assert_eq!(engine.status().unwrap().transactions, 3);
    drop((engine, file));
    assert_clean(&path);
}

#[test]
fn a_full_disk_is_said_to_be_full_while_reads_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.redb");
    let file = FragileFile::create(&path);
    let engine = Engine::open(Options::new(Location::Backend(file.clone()))).unwrap();
    engine.record(new(0), None).wait().unwrap();
    let mut export = engine.export(&TransactionFilter::default()).unwrap();
    file.set(FULL);
    let mut acknowledged = vec![0];
    let full = (1..2_000).find(|number| match engine.record(new(*number), None).wait() {
        Ok(_) => {
            acknowledged.push(*number);
            false
        }
        Err(Error::StorageFull(_)) => true,
        Err(other) => panic!("{other}"),
    });
    assert!(full.is_some(), "the file never had to grow");
    assert!(matches!(engine.ready(), Err(Error::StorageFull(_))));
    let deadline = Instant::now() + Duration::from_secs(60);
    while engine.transaction(&id(0)).is_err() {
        assert!(Instant::now() < deadline, "reads did not come back while the disk was full");
        thread::sleep(Duration::from_millis(5));
    }
    file.set(SOUND);
    wait_until_ready(&engine);
    let broken_off = export.next_chunk(1).expect_err("what it held may have been the room that was missing");
    assert!(broken_off.to_string().contains("the export was broken off: the disk is full"), "{broken_off}");
    for number in acknowledged {
        assert!(engine.transaction(&id(number)).is_ok(), "t{number} was acknowledged");
    }
    engine.record(new(5_000), None).wait().unwrap();
    drop((engine, file));
    assert_clean(&path);
}

/// An engine on a disk that fails as it is told, with a clock that is turned by hand.
fn turned_by_hand(path: &Path) -> (Arc<FragileFile>, Arc<ManualClock>, Engine) {
    let file = FragileFile::create(path);
    let clock = ManualClock::at(1_795_391_431_767_109);
    let options = Options { clock: clock.clone(), ..Options::new(Location::Backend(file.clone())) };
    let engine = Engine::open(options).unwrap();
    (file, clock, engine)
}

/// A transaction between two agents that no other number has.
fn of_new_agents(number: usize) -> NewTransaction {
    let agent = |kind: &str| format!("{kind}-{number:05}");
    NewTransaction { transaction_id: None, facts: facts(&agent("a"), &agent("b"), "python", "1") }
}

/// A disk with room for a small commit only. What waits to be put in place is put off, and small writes go on.
#[test]
fn where_there_is_no_room_to_put_lists_in_place_small_writes_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.redb");
    let (file, clock, engine) = turned_by_hand(&path);
    engine.record(new(0), None).wait().unwrap();
    for batch in 0..40 {
        engine.record_batch((batch * 100..).take(100).map(of_new_agents).collect()).wait().unwrap();
    }
    file.commit_bytes.store(700 * 1024, Ordering::SeqCst);
    // Loads of more than an hour ago are to be forgotten, and for that everything is put in its place.
    clock.advance(Duration::from_secs(2 * 3_600));
    // The first finds out; those that come behind it are small.
    let refused = engine.record(new(1), None).wait();
    assert!(matches!(refused, Err(Error::StorageFull(_))), "{refused:?}");
    wait_until_ready(&engine);
    for number in 2..20 {
        engine.record(new(number), None).wait().unwrap();
    }
    file.commit_bytes.store(i64::MAX, Ordering::SeqCst);
    clock.advance(Duration::from_secs(61));
    engine.record(new(20), None).wait().unwrap();
    drop((engine, file));
    assert_clean(&path);
}

/// What is to be forgotten makes no room at once: after a full disk it stays, and is forgotten once that is long ago.
#[test]
fn after_a_full_disk_nothing_is_forgotten_for_a_while() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.redb");
    let (file, clock, engine) = turned_by_hand(&path);
    let is_known = |engine: &Engine| {
        let once = Some(Idempotency { key: "k".into(), request: [1; 32] });
        engine.record(of_new_agents(0), once).wait().unwrap().replayed
    };
    assert!(!is_known(&engine) && is_known(&engine));
    for batch in 0..40 {
        engine.record_batch((batch * 100..).take(100).map(of_new_agents).collect()).wait().unwrap();
    }
    file.commit_bytes.store(700 * 1024, Ordering::SeqCst);
    clock.advance(Duration::from_secs(8 * 24 * 3_600));
    assert!(matches!(engine.record(new(1), None).wait(), Err(Error::StorageFull(_))));
    wait_until_ready(&engine);
    for number in 2..8 {
        clock.advance(Duration::from_secs(61));
        engine.record(new(number), None).wait().unwrap();
        assert!(is_known(&engine), "the answer of a week ago was forgotten on a full disk");
    }
    file.commit_bytes.store(i64::MAX, Ordering::SeqCst);
    clock.advance(Duration::from_secs(5 * 60));
    engine.record(new(8), None).wait().unwrap();
    assert!(!is_known(&engine), "the answer of a week ago is still there");
    drop((engine, file));
    assert_clean(&path);
}

/// The same where as much waits as may. More of it waits then, and is put in its place once there is room.
#[test]
fn where_there_is_no_room_to_put_much_in_place_more_of_it_waits() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.redb");
    let (file, clock, engine) = turned_by_hand(&path);
    // A transaction of two new agents leaves five changes: an entry and a balance of each, and a load.
    let mut agents = 0..;
    let mut record = |transactions: usize| {
        engine.record_batch(agents.by_ref().take(transactions).map(of_new_agents).collect()).wait()
    };
    for _ in 0..65 {
        record(100).unwrap();
    }
    let small = 700 * 1024;
    file.commit_bytes.store(small, Ordering::SeqCst);
    // Whoever comes first when it is too much finds out.
    let refused = (0..10).find_map(|_| record(20).err());
    assert!(matches!(refused, Some(Error::StorageFull(_))), "{refused:?}");
    wait_until_ready(&engine);
    for _ in 0..100 {
        record(20).unwrap();
    }
    file.commit_bytes.store(i64::MAX, Ordering::SeqCst);
    clock.advance(Duration::from_secs(11 * 60));
    record(20).unwrap();
    // Had it not been put in its place, it would be now, for which there is no room again.
    file.commit_bytes.store(small, Ordering::SeqCst);
    record(20).unwrap();
    drop((engine, file));
    assert_clean(&path);
}

/// redb grows its file under a lock that whoever begins to read waits for: nobody but the writer does.
#[test]
fn while_the_file_grows_for_long_nobody_waits_to_read() {
    let directory = tempfile::tempdir().unwrap();
    let file = FragileFile::create(&directory.path().join("f.redb"));
    let engine = Engine::open(Options::new(Location::Backend(file.clone()))).unwrap();
    engine.register(registration("a", &["sql"]), None).wait().unwrap();
    engine.record(new(0), None).wait().unwrap();
    file.set(GROWTH_HANGS);
    let pending = engine.record_batch((1..1_000).map(new).collect());
    file.wait_until_it_hangs();
    let (sql, a) = (capability("sql"), agent_id("a"));
    engine.ready().unwrap();
    engine.status().unwrap();
    assert_eq!(engine.agent(&a).unwrap().lease, LeaseState::Live);
    assert!(engine.least_loaded(&sql).unwrap().is_some());
    assert!(engine.random(None).unwrap().is_some());
    assert_eq!(engine.recommend(&sql, 1, true).unwrap().len(), 1);
    engine.heartbeat(&a).wait().unwrap();
    assert!(engine.glimpse(&a).is_some());
    assert_eq!(engine.agents(&all_agents(), PAGE).unwrap().items.len(), 1);
    assert!(engine.transaction(&id(0)).is_ok());
    assert_eq!(engine.transactions(&TransactionFilter::default(), PAGE).unwrap().items.len(), 1);
    assert_eq!(engine.events(&id(0)).unwrap().len(), 1);
    assert_eq!(engine.balance(&a).unwrap().len(), 1);
    let mut export = engine.export(&TransactionFilter::default()).unwrap();
    assert_eq!(export.next_chunk(10).unwrap().map(|chunk| chunk.len()), Some(1));
    assert_eq!(engine.log_after(0, 10, usize::MAX).unwrap().len(), 1);
    assert_eq!(engine.changes_after(0, 10).unwrap().len(), 1);
    engine.postgres_state().unwrap();
    engine.redis_state().unwrap();
    assert!(!file.gave_up.load(Ordering::SeqCst), "somebody waited until the file had grown");
    file.set(SOUND);
    assert_eq!(pending.wait().unwrap().len(), 999);
}

/// A commit shows everywhere at once, however long it takes from the disk until it is published.
#[test]
fn until_a_commit_is_published_everything_shows_what_was_before_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = FragileFile::create(&directory.path().join("f.redb"));
    let clock = FragileClock::of(&file);
    let options = Options { clock: clock.clone(), ..Options::new(Location::Backend(file.clone())) };
    let engine = Engine::open(options).unwrap();
    let (sql, deleted, other) = (capability("sql"), agent_id("a"), agent_id("b"));
    for id in [&deleted, &other] {
        engine.register(registration(id.as_str(), &["sql"]), None).wait().unwrap();
    }
    let shown = || {
        let id_of = |profile: Profile| profile.agent.agent_id.to_string();
        let ids = |profiles: Vec<Profile>| profiles.into_iter().map(id_of).collect::<Vec<_>>();
        [
            ids(engine.agents(&all_agents(), PAGE).unwrap().items),
            ids(engine.recommend(&sql, 10, true).unwrap()),
            ids([&deleted, &other].into_iter().filter_map(|id| engine.agent(id).ok()).collect()),
            ids(engine.least_loaded(&sql).unwrap().into_iter().collect()),
            // Of so many draws each agent has one.
            ids((0..100).filter_map(|_| engine.random(Some(&sql)).unwrap()).collect::<Vec<_>>())
                .into_iter()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            [&deleted, &other].into_iter().filter(|id| engine.glimpse(id).is_some()).map(ToString::to_string).collect(),
            (0..engine.status().unwrap().agents).map(|_| "an agent".to_owned()).collect(),
        ]
    };
    let before = shown();
    clock.set(HOLDS_BEHIND_SYNC);
    let pending = engine.unregister(deleted.clone(), Precondition::None);
    clock.wait_until_it_holds();
    let meanwhile = shown();
    clock.set(TELLS_TIME);
    pending.wait().unwrap();
    assert_eq!(before, meanwhile);
    let after = shown();
    assert_eq!(after.clone().map(|list| list.len()), [1; 7], "{after:?}");
}

/// Whoever goes by the new id must not take the cursors of the earlier one for its own.
#[test]
fn a_node_goes_by_its_new_id_from_when_its_cursors_are_set_back() {
    let directory = tempfile::tempdir().unwrap();
    let file = FragileFile::create(&directory.path().join("f.redb"));
    let clock = FragileClock::of(&file);
    let options = Options { clock: clock.clone(), ..Options::new(Location::Backend(file.clone())) };
    let engine = Engine::open(options).unwrap();
    engine.register(registration("a", &[]), None).wait().unwrap();
    let earlier = engine.node_id();
    let (postgres, redis) = (
        PostgresState { acked_seq: 7, ..PostgresState::default() },
        RedisState { acked_change_seq: 1, ..RedisState::default() },
    );
    assert_eq!(engine.save_postgres(earlier, postgres).wait().unwrap(), Saved::Yes);
    assert_eq!(engine.save_redis(earlier, redis).wait().unwrap(), Saved::Yes);
    let seen = || {
        let profile = engine.agent(&agent_id("a")).unwrap();
        let cursors = (engine.postgres_state().unwrap().acked_seq, engine.redis_state().unwrap().acked_change_seq);
        (engine.node_id(), engine.identity(), engine.status().unwrap().node_id, profile.local, profile.lease, cursors)
    };
    let before = seen();
    assert_eq!(before.5, (7, 1));
    clock.set(HOLDS_BEHIND_SYNC);
    let pending = engine.fork(earlier, ForkReason::Registry);
    clock.wait_until_it_holds();
    let meanwhile = seen();
    clock.set(TELLS_TIME);
    let now = pending.wait().unwrap();
    assert_eq!(before, meanwhile);
    let identity = Identity { node_id: now, earlier: vec![earlier] };
    assert_eq!(seen(), (now, identity, now, true, LeaseState::Live, (0, 0)));
}

/// A heartbeat has found its agent's lease when a commit replaces it.
#[test]
fn no_heartbeat_is_lost_whose_lease_is_replaced_before_it_is_renewed() {
    let directory = tempfile::tempdir().unwrap();
    let file = FragileFile::create(&directory.path().join("f.redb"));
    let clock = FragileClock::of(&file);
    let options = Options { clock: clock.clone(), ..Options::new(Location::Backend(file.clone())) };
    let engine = Engine::open(options).unwrap();
    let short = Registration { ttl: Some(Ttl::parse(60).unwrap()), ..registration("a", &[]) };
    engine.register(short.clone(), None).wait().unwrap();
    clock.set(HOLDS_OTHERS);
    let heartbeat = thread::spawn({
        let engine = engine.clone();
        move || engine.heartbeat(&agent_id("a")).wait().unwrap()
    });
    clock.wait_until_it_holds();
    engine.replace(short, Precondition::None).wait().unwrap();
    clock.clock.advance(Duration::from_secs(50));
    clock.set(TELLS_TIME);
    let expires_at = heartbeat.join().unwrap();
    clock.clock.advance(Duration::from_secs(20));
    let profile = engine.agent(&agent_id("a")).unwrap();
    assert_eq!((profile.lease, profile.expires_at), (LeaseState::Live, expires_at));
}

/// A read that fails takes the file from all that come after it, and nobody writes who would notice.
#[test]
fn an_idle_store_heals_from_a_read_that_failed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.redb");
    // Time stands still, so that nothing is forgotten either.
    let (file, _, engine) = turned_by_hand(&path);
    // More than is kept in memory.
    for first in (0..8_000).step_by(1_000) {
        engine.record_batch((first..first + 1_000).map(new).collect()).wait().unwrap();
    }
    let read = |number| engine.transaction(&id(number)).map(drop);
    file.fail_at(0, false);
    let failed = (0..8_000).find_map(|number| read(number).err());
    assert!(matches!(failed, Some(Error::Unavailable(_))), "{failed:?}");
    wait_until("it did not heal", || (0..8_000).all(|number| read(number).is_ok()));
    assert!(engine.ready().is_ok());
    drop((engine, file));
    assert_clean(&path);
}

/// A heartbeat comes while a commit takes long that replaces its agent's lease. Before the commit that registers it there is
/// no such agent to anybody.
#[test]
fn no_heartbeat_is_lost_on_an_agent_that_is_being_written() {
    let directory = tempfile::tempdir().unwrap();
    let (file, clock, engine) = turned_by_hand(&directory.path().join("f.redb"));
    let ttl = Some(Ttl::parse(60).unwrap());
    let write = |name: &str| engine.replace(Registration { ttl, ..registration(name, &[]) }, Precondition::None);
    write("old").wait().unwrap();
    file.set(SYNC_HANGS);
    let written = [write("old"), write("new")];
    file.wait_until_it_hangs();
    clock.advance(Duration::from_secs(50));
    let heartbeat = engine.heartbeat(&agent_id("old"));
    assert!(engine.agent(&agent_id("new")).is_err());
    assert!(matches!(engine.heartbeat(&agent_id("new")).wait(), Err(Error::Refused(Refusal::AgentNotFound(_)))));
    file.set(SOUND);
    for pending in written {
        pending.wait().unwrap();
    }
    let expires_at = heartbeat.wait().unwrap();
    clock.advance(Duration::from_secs(20));
    let profile = engine.agent(&agent_id("old")).unwrap();
    assert_eq!((profile.lease, profile.expires_at), (LeaseState::Live, expires_at));
    engine.heartbeat(&agent_id("new")).wait().unwrap();
}

/// Nobody gets an error from a disk that does not answer, and whoever waits for it waits in vain.
#[test]
fn a_commit_that_hangs_is_seen_and_nothing_more_is_taken_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.redb");
    let file = FragileFile::create(&path);
    let engine = Engine::open(Options::new(Location::Backend(file.clone()))).unwrap();
    engine.record(new(0), None).wait().unwrap();
    file.set(SYNC_HANGS);
    let pending = engine.record(new(1), None);
    file.wait_until_it_hangs();
    engine.ready().expect("a commit may take a while");
    wait_until("nobody notices", || engine.ready().is_err());
    let failure = engine.ready().unwrap_err().to_string();
    assert!(failure.contains("the disk has not answered a commit"), "{failure}");
    assert_eq!(engine.status().unwrap().failure, Some(failure.clone()));
    assert_eq!(engine.record(new(2), None).wait().unwrap_err().to_string(), failure);
    assert!(engine.transaction(&id(0)).is_ok(), "it is read from all the same");
    file.set(SOUND);
    pending.wait().unwrap();
    engine.ready().unwrap();
    engine.record(new(3), None).wait().unwrap();
    assert!(engine.transaction(&id(2)).is_err(), "it was refused");
    drop((engine, file));
    assert_clean(&path);
}

/// A panic where none was thought of ends the writer, but not unseen: whoever asks is told, and reads go on.
#[test]
fn a_writer_that_panicked_is_seen_to_have_failed_and_can_be_closed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f.redb");
    let file = FragileFile::create(&path);
    let clock = FragileClock::of(&file);
    let options = Options { clock: clock.clone(), ..Options::new(Location::Backend(file.clone())) };
    let engine = Engine::open(options).unwrap();
    engine.record(new(0), None).wait().unwrap();
    clock.set(PANICS);
    assert!(matches!(engine.record(new(1), None).wait(), Err(Error::Unavailable(_))));
    let deadline = Instant::now() + Duration::from_secs(10);
    let failure = loop {
        match engine.ready() {
            Err(failure) => break failure.to_string(),
            Ok(()) => assert!(Instant::now() < deadline, "it says that it takes writes"),
        }
        thread::sleep(Duration::from_millis(1));
    };
    assert!(failure.contains("the writer panicked"), "{failure}");
    assert_eq!(engine.status().unwrap().failure, Some(failure.clone()));
    assert_eq!(engine.record(new(1), None).wait().unwrap_err().to_string(), failure);
    assert!(engine.transaction(&id(0)).is_ok());
    engine.close();
    assert!(matches!(engine.transaction(&id(0)), Err(Error::Unavailable(_))));
    drop((engine, clock, file));
    assert_clean(&path);
}

/// Which of the two it is decides what an operator does: look at the disk, or put a copy in the place of the file.
#[test]
fn a_disk_that_fails_while_the_directory_is_built_is_not_called_damage() {
    let directory = tempfile::tempdir().unwrap();
    let file = FragileFile::create(&directory.path().join("f.redb"));
    let engine = Engine::open(Options::new(Location::Backend(file.clone()))).unwrap();
    // More than is kept in memory.
    let metadata = format!(r#"{{"padding":"{}"}}"#, "x".repeat(60_000));
    let padded = |number: usize| Registration {
        metadata: JsonObject::parse(&metadata).unwrap(),
        ..registration(&format!("agent-{number}"), &[])
    };
    let registered: Vec<_> = (0..800).map(|number| engine.register(padded(number), None)).collect();
    for pending in registered {
        pending.wait().unwrap();
    }
    engine.close();
    let clock = FragileClock::of(&file);
    clock.set(FAILS_DISK);
    let opened = Engine::open(Options { clock, ..Options::new(Location::Backend(file.clone())) });
    file.heal();
    assert!(matches!(opened, Err(OpenError::Io { .. })), "{:?}", opened.err());
}

/// A program that is told to stop while its disk fails says of every command that was waiting why it was not done.
#[test]
fn what_waits_when_an_engine_on_a_bad_disk_is_closed_is_answered_with_the_cause() {
    let directory = tempfile::tempdir().unwrap();
    let file = FragileFile::create(&directory.path().join("f.redb"));
    let engine = Engine::open(Options::new(Location::Backend(file.clone()))).unwrap();
    engine.record(new(0), None).wait().unwrap();
    file.set(SYNC_HANGS);
    let failing = engine.record(new(1), None);
    file.wait_until_it_hangs();
    let waiting = [2, 3].map(|number| engine.record(new(number), None));
    let closer = thread::spawn({
        let engine = engine.clone();
        move || engine.close()
    });
    wait_until("it did not begin to close", || engine.record(new(4), None).now_or_never().is_some());
    file.set(SYNC_FAILS);
    for pending in [failing].into_iter().chain(waiting) {
        let error = pending.wait().unwrap_err();
        assert!(error.to_string().contains("injected"), "{error}");
    }
    closer.join().unwrap();
}

/// One operation fails while a store is opened, worked with and closed, whichever it is, or all from that one on until the
/// disk is mended.
#[test]
fn whichever_operation_fails_no_acknowledged_write_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    for for_good in [false, true] {
        let trials = Trials::of("faults", None);
        let try_at = |number: &i64| {
            trials.ran(1);
            fail_at(directory.path(), *number, for_good)
        };
        let tried = (0..).take_while(try_at).count();
        assert!(tried > 50, "the workload is too small: {tried} operations");
    }
}

/// Whether the workload has so many operations.
fn fail_at(directory: &Path, number: i64, for_good: bool) -> bool {
    let path = directory.join(format!("{number}-{for_good}.redb"));
    let file = FragileFile::create(&path);
    let open = || Engine::open(Options::new(Location::Backend(file.clone())));
    // A file gets its name only when the store in it is whole, and until then there is nothing to lose.
    let engine = open().unwrap();
    engine.record(new(0), None).wait().unwrap();
    engine.close();
    file.fail_at(number, for_good);
    let mut acknowledged = vec![0];
    let mut is_reached = false;
    let engine = open().unwrap_or_else(|error| {
        assert!(matches!(error, OpenError::Io { .. }), "operation {number}: {error}");
        is_reached |= file.heal();
        open().unwrap()
    });
    for transaction in 1..12 {
        match engine.record(new(transaction), None).wait() {
            Ok(_) => acknowledged.push(transaction),
            Err(Error::Unavailable(_)) => {
                if for_good {
                    assert!(engine.ready().is_err(), "it knows that it is not sound");
                    is_reached |= file.heal();
                }
                wait_until_ready(&engine);
            }
            Err(other) => panic!("operation {number}: {other}"),
        }
    }
    // What fails now fails with nobody left to tell, and the next opening has to make up for it.
    drop(engine);
    is_reached |= file.heal();
    let engine = open().unwrap();
    for transaction in acknowledged {
        assert!(engine.transaction(&id(transaction)).is_ok(), "operation {number}: t{transaction} was acknowledged");
    }
    drop((engine, file));
    assert_clean(&path);
    std::fs::remove_file(&path).unwrap();
    is_reached
}
