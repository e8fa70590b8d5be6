//! A disk that fails: nothing is acknowledged that does not last, reads go on, and it heals by itself.

mod common;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{facts, transaction_id};
use redb::StorageBackend;
use redb::backends::FileBackend;
use tradepost::domain::{NewTransaction, TransactionId};
use tradepost::store::verify;
use tradepost::{Engine, Error, Location, Options};

const SOUND: u8 = 0;
const SYNC_FAILS: u8 = 1;
const FULL: u8 = 2;

/// A file that can be told to fail.
#[derive(Debug)]
struct FragileFile {
    file: FileBackend,
    fault: AtomicU8,
    /// How many more operations go well before one fails; negative: never.
    countdown: AtomicI64,
}

impl FragileFile {
    fn create(path: &Path) -> Arc<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        let file = FileBackend::new(file).unwrap();
        Arc::new(Self { file, fault: AtomicU8::new(SOUND), countdown: AtomicI64::new(-1) })
    }

    fn set(&self, fault: u8) {
        self.fault.store(fault, Ordering::SeqCst);
    }

    fn step(&self) -> io::Result<()> {
        let failed = self
            .countdown
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| (left >= 0).then(|| left - 1))
            .is_ok_and(|left| left == 0);
        if failed { Err(io::Error::other("injected")) } else { Ok(()) }
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
        }
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.step()?;
        match self.fault.load(Ordering::SeqCst) {
            SYNC_FAILS => Err(io::Error::other("injected")),
            _ => self.file.sync_data(),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.step()?;
        self.file.write(offset, data)
    }
}

fn new(number: usize) -> NewTransaction {
    // Large enough that the file has to grow now and then.
    let context = format!(r#"{{"padding":"{}"}}"#, "x".repeat(8_000));
    let mut facts = facts("a", "b", "python", "1");
    facts.context = tradepost::domain::JsonObject::parse(&context).unwrap();
    NewTransaction { transaction_id: Some(id(number)), facts }
}

fn id(number: usize) -> TransactionId {
    transaction_id(&format!("t{number}"))
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
    for number in acknowledged {
        assert!(engine.transaction(&id(number)).is_ok(), "t{number} was acknowledged");
    }
    engine.record(new(5_000), None).wait().unwrap();
    drop((engine, file));
    assert_clean(&path);
}

/// One operation of a workload fails, whichever it is.
#[test]
fn whichever_operation_fails_no_acknowledged_write_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    for countdown in (0..).step_by(7) {
        let path = directory.path().join(format!("{countdown}.redb"));
        let file = FragileFile::create(&path);
        let engine = Engine::open(Options::new(Location::Backend(file.clone()))).unwrap();
        file.countdown.store(countdown, Ordering::SeqCst);
        let mut acknowledged = Vec::new();
        for number in 0..12 {
            match engine.record(new(number), None).wait() {
                Ok(_) => acknowledged.push(number),
                Err(Error::Unavailable(_)) => wait_until_ready(&engine),
                Err(other) => panic!("operation {countdown}: {other}"),
            }
        }
        let reached = file.countdown.swap(-1, Ordering::SeqCst) < 0;
        for number in &acknowledged {
            assert!(engine.transaction(&id(*number)).is_ok(), "operation {countdown}: t{number} was acknowledged");
        }
        drop((engine, file));
        assert_clean(&path);
        if !reached {
            assert!(countdown > 50, "the workload is too small: {countdown} operations");
            return;
        }
    }
}
