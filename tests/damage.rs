//! A file that was altered while nobody served it: bits flipped, ranges zeroed or overwritten, ends cut off or added. It
//! is refused, or, where nothing that counts was hit, answers as before. It never panics and never looks empty.
//!
//! `TRADEPOST_DAMAGES` says how often, `TRADEPOST_DAMAGES_SEED` how.

mod common;
#[path = "damage/mod.rs"]
mod damage;

use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use common::trials::Trials;
use damage::{Altered, Sound};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tradepost::{Engine, Location, OpenError, Options};

const DAMAGES: u64 = 20_000;

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

#[test]
fn an_altered_file_is_refused_or_answers_as_before() {
    let seed = std::env::var("TRADEPOST_DAMAGES_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    let damages = std::env::var("TRADEPOST_DAMAGES").map_or(DAMAGES, |damages| damages.parse().unwrap());
    let sound = Sound::build();
    // Most of a file is room that is not used yet.
    let used: Vec<usize> = (0..sound.bytes.len()).filter(|place| sound.bytes[*place] != 0).collect();
    let mut random = StdRng::seed_from_u64(seed);
    let (mut refused, mut answered) = (0, 0);
    let trials = Trials::of("damage", seed);
    for number in 0..damages {
        let mut bytes = sound.bytes.clone();
        let what = damage(&mut bytes, &used, &mut random);
        if bytes == sound.bytes || bytes.is_empty() {
            continue;
        }
        trials.ran(1);
        match catch_unwind(AssertUnwindSafe(|| sound.open_altered(&bytes))) {
            Ok(Ok(Altered::Refused)) => refused += 1,
            Ok(Ok(Altered::AnswersAsBefore)) => answered += 1,
            Ok(Err(wrong)) => panic!("seed {seed}, damage {number}: {what}: {wrong}"),
            Err(_) => panic!("seed {seed}, damage {number}: {what}: it panicked"),
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
    std::fs::write(&path, Sound::build().bytes).unwrap();
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
    let mut backup = Sound::build().bytes;
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
