//! A file that was altered while nobody served it: bits flipped, ranges zeroed or overwritten, ends cut off or added. It
//! is refused, or, where nothing that counts was hit, answers as before. It never panics and never looks empty.
//!
//! `TRADEPOST_DAMAGES` says how often, `TRADEPOST_DAMAGES_SEED` how.

mod common;

use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use common::trials::Trials;
use common::{agent_id, facts, registration, transaction_id};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use tradepost::domain::{Decision, Event, NewTransaction, Transaction};
use tradepost::{Engine, Location, OpenError, Options, PageRequest, Profile, TransactionFilter};

const DAMAGES: u64 = 20_000;

fn backend_with(bytes: &[u8]) -> Arc<InMemoryBackend> {
    let backend = InMemoryBackend::new();
    backend.set_len(bytes.len() as u64).unwrap();
    backend.write(0, bytes).unwrap();
    Arc::new(backend)
}

fn bytes_of(backend: &InMemoryBackend) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(backend.len().unwrap()).unwrap()];
    backend.read(0, &mut bytes).unwrap();
    bytes
}

/// Everything that can be asked.
#[derive(Debug, PartialEq)]
struct Answers {
    agents: Vec<Profile>,
    transactions: Vec<Transaction>,
    events: Vec<Vec<Event>>,
}

fn ask(engine: &Engine) -> Result<Answers, tradepost::Error> {
    let page = PageRequest { limit: 1_000, cursor: None };
    let transactions = engine.transactions(&TransactionFilter::default(), page)?.items;
    let events = transactions.iter().map(|transaction| engine.events(&transaction.transaction_id));
    let agents = ["thon", "genesis"].iter().map(|id| engine.agent(&agent_id(id)));
    Ok(Answers { events: events.collect::<Result<_, _>>()?, agents: agents.collect::<Result<_, _>>()?, transactions })
}

/// A store that was closed in order, and what it answers.
fn build() -> (Vec<u8>, Answers) {
    let backend = backend_with(&[]);
    let engine = Engine::open(Options::new(Location::Backend(backend.clone()))).unwrap();
    for id in ["thon", "genesis"] {
        engine.register(registration(id, &["python", "sql"]), None).wait().unwrap();
    }
    for number in 0..200 {
        let id = transaction_id(&format!("t{number}"));
        let new = NewTransaction {
            transaction_id: Some(id.clone()),
            facts: facts("genesis", "thon", "python", &format!("{number}.5")),
        };
        engine.record(new, None).wait().unwrap();
        if number % 3 == 0 {
            let evidence = vec![format!("sha256:{number}")];
            engine.decide(id, Decision::Dispute { reason: Some("late".into()), evidence }, None).wait().unwrap();
        }
    }
    engine.close();
    drop(engine);
    // Opened once more: an agent's lease begins anew with every start.
    let engine = Engine::open(Options::new(Location::Backend(backend.clone()))).unwrap();
    let answers = ask(&engine).unwrap();
    engine.close();
    (bytes_of(&backend), answers)
}

/// Does damage, mostly where there is something: `used` are places of bytes that are not zero.
fn damage(bytes: &mut Vec<u8>, used: &[usize], random: &mut StdRng) -> String {
    let place = random.random_range(0..bytes.len());
    let length = random.random_range(1..=4_096).min(bytes.len() - place);
    match random.random_range(0..10) {
        0..5 => {
            let place = used[random.random_range(0..used.len())];
            bytes[place] ^= 1 << random.random_range(0..8);
            format!("a bit of byte {place} flipped")
        }
        5 => {
            bytes[place..place + length].fill(0);
            format!("{length} bytes from {place} zeroed")
        }
        6 => {
            random.fill(&mut bytes[place..place + length]);
            format!("{length} bytes from {place} overwritten")
        }
        7 => {
            let from = random.random_range(0..bytes.len() - length);
            bytes.copy_within(from..from + length, place);
            format!("{length} bytes copied from {from} over {place}")
        }
        8 => {
            bytes.truncate(place);
            format!("cut off at {place}")
        }
        _ => {
            bytes.extend(std::iter::repeat_n(0xa5, length));
            format!("{length} bytes added")
        }
    }
}

/// Leases are not of the file.
fn without_leases(mut answers: Answers) -> Answers {
    for profile in &mut answers.agents {
        profile.expires_at = tradepost::domain::Timestamp::default();
    }
    answers
}

#[test]
fn an_altered_file_is_refused_or_answers_as_before() {
    let seed = std::env::var("TRADEPOST_DAMAGES_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    let damages = std::env::var("TRADEPOST_DAMAGES").map_or(DAMAGES, |damages| damages.parse().unwrap());
    let (sound, expected) = build();
    let expected = without_leases(expected);
    // Most of a file is room that is not used yet.
    let used: Vec<usize> = (0..sound.len()).filter(|place| sound[*place] != 0).collect();
    let mut random = StdRng::seed_from_u64(seed);
    let (mut refused, mut answered) = (0, 0);
    let trials = Trials::of("damage", seed);
    for number in 0..damages {
        let mut bytes = sound.clone();
        let what = damage(&mut bytes, &used, &mut random);
        let trial = format!("seed {seed}, damage {number}: {what}");
        if bytes == sound || bytes.is_empty() {
            continue;
        }
        trials.ran(1);
        let backend = backend_with(&bytes);
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let engine = Engine::open(Options::new(Location::Backend(backend.clone())))?;
            let answers = ask(&engine);
            engine.close();
            Ok::<_, OpenError>(answers)
        }));
        match opened.unwrap_or_else(|_| panic!("{trial}: it panicked")) {
            Err(OpenError::Damaged { .. } | OpenError::Newer { .. } | OpenError::Older { .. }) => {
                refused += 1;
                assert!(bytes_of(&backend) == bytes, "{trial}: it was refused, and changed");
            }
            Err(other) => panic!("{trial}: {other}"),
            Ok(answers) => {
                answered += 1;
                let answers = answers.unwrap_or_else(|error| panic!("{trial}: {error}"));
                assert_eq!(without_leases(answers), expected, "{trial}");
            }
        }
    }
    eprintln!("{refused} were refused, {answered} answered as before");
    assert!(refused > 0 && answered > 0, "only one of both: {refused} refused, {answered} answered");
}

#[test]
fn a_file_that_was_altered_behind_its_seal_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sealed.redb");
    let seal = directory.path().join(".sealed.redb.closed");
    std::fs::write(&path, build().0).unwrap();
    let open = || Engine::open(Options::new(Location::File(path.clone())));
    for _ in 0..2 {
        let engine = open().unwrap();
        assert!(!seal.exists(), "it is broken while the store is served");
        engine.close();
        assert!(seal.exists(), "it is put there when the store is closed");
    }
    // All but the first page, so that the file still looks like a store, and with the time of writing put back.
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let before = file.metadata().unwrap();
    file.write_all_at(&vec![0x55; usize::try_from(before.len()).unwrap() - 4_096], 4_096).unwrap();
    file.set_times(std::fs::FileTimes::new().set_modified(before.modified().unwrap())).unwrap();
    assert!(matches!(open(), Err(OpenError::Damaged { .. })));
}

/// Somebody puts a backup in the file's place while the store is served. Closing it must not vouch for that.
#[test]
fn a_file_that_took_the_place_of_the_one_that_was_served_is_checked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("served.redb");
    let mut backup = build().0;
    std::fs::write(&path, &backup).unwrap();
    let engine = Engine::open(Options::new(Location::File(path.clone()))).unwrap();
    backup[4_096..].fill(0x55);
    let other = directory.path().join("backup");
    std::fs::write(&other, &backup).unwrap();
    std::fs::rename(&other, &path).unwrap();
    engine.close();
    drop(engine);
    assert!(!directory.path().join(".served.redb.closed").exists(), "a file was sealed that nobody has looked at");
    let opened = Engine::open(Options::new(Location::File(path)));
    assert!(matches!(opened, Err(OpenError::Damaged { .. })));
}
