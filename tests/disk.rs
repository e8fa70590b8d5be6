//! The real binary on bad disks: syncs that fail, a disk that is full, a file system that takes no writes.
//!
//! Nothing is acknowledged that does not last. The process goes on and answers reads, says what is wrong everywhere where
//! somebody may look, and takes writes again once the fault is gone, without a restart.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::Duration;

use common::central::{Central, record, register, sink, wait_until_central};
use common::disk::Disk;
use common::http::{Answer, Client};
use common::sidecar::{Home, Sidecar, wait_for, wait_within};
use serde_json::json;

/// It takes writes again so soon once the fault is gone.
const HEALED_WITHIN: Duration = Duration::from_secs(30);

/// What was asked of a sidecar, and what it has promised to keep.
#[derive(Default)]
struct Books {
    asked: BTreeSet<String>,
    acknowledged: BTreeSet<String>,
}

impl Books {
    /// Asks for one more transaction, of so many bytes.
    fn record(&mut self, client: &mut Client, bytes: usize) -> Answer {
        let id = format!("t{}", self.asked.len());
        let answer = client.post(
            "/v1/transactions",
            &json!({"payer_agent": "a", "provider_agent": "b", "capability": "c", "amount": "1", "transaction_id": id,
                "context": {"padding": "x".repeat(bytes)}}),
        );
        if answer.status == 201 {
            self.acknowledged.insert(id.clone());
        }
        self.asked.insert(id);
        answer
    }

    /// What the sidecar has is all that was acknowledged, and nothing that was not asked for.
    #[track_caller]
    fn check(&self, sidecar: &Sidecar) {
        let lines = sidecar.client().get("/v1/export/transactions").expect(200).lines();
        let stored: BTreeSet<String> =
            lines.iter().map(|line| line["transaction_id"].as_str().expect("an id").to_owned()).collect();
        let lost: Vec<_> = self.acknowledged.difference(&stored).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        let invented: Vec<_> = stored.difference(&self.asked).collect();
        assert!(invented.is_empty(), "nobody asked for {invented:?}");
    }
}

#[track_caller]
fn assert_refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.json()["code"].as_str()), (status, Some(code)), "{}", answer.text());
}

fn store_ready(client: &mut Client) -> bool {
    let metrics = client.get("/metrics").expect(200);
    let line = metrics.text().lines().find_map(|line| line.strip_prefix("tradepost_store_ready "));
    line.expect("it is always there") == "1"
}

/// Wherever somebody may look, it is said that the store takes no writes, and why.
#[track_caller]
fn assert_shown(sidecar: &Sidecar, words: &str) {
    let mut client = sidecar.client();
    let ready = client.get("/readyz");
    assert!(ready.status >= 500 && ready.text().contains(words), "{}", ready.text());
    let status = client.get("/v1/status").expect(200).json();
    assert!(status["store"]["last_error"].as_str().is_some_and(|error| error.contains(words)), "{status}");
    assert!(!store_ready(&mut client));
    let line = sidecar.log_line("a commit failed; nothing is acknowledged until the store is sound again");
    assert!(line["error"].as_str().is_some_and(|error| error.contains(words)), "{line}");
}

/// It takes writes again, and nothing is said to be wrong.
#[track_caller]
fn wait_until_healed(sidecar: &Sidecar, books: &mut Books) {
    let mut client = sidecar.client();
    wait_within(HEALED_WITHIN, "it to heal", || (client.get("/readyz").status == 200).then_some(()));
    assert_eq!(client.get("/v1/status").expect(200).json()["store"]["last_error"], json!(null));
    assert!(store_ready(&mut client));
    books.record(&mut client, 10).expect(201);
}

/// How often it has looked whether the fault is gone.
fn attempts(sidecar: &Sidecar) -> usize {
    sidecar.log().matches("the store is not sound yet").count()
}

/// Every read is answered while the store finds out some more times that the fault is still there, and every write is
/// refused.
#[track_caller]
fn assert_only_reads_go_on(sidecar: &Sidecar, books: &mut Books, status: u16, code: &str) {
    let mut client = sidecar.client();
    // Until it has reopened the file there are moments without.
    let before = wait_for("it to reopen the file", || Some(attempts(sidecar)).filter(|attempts| *attempts > 0));
    wait_for("some attempts", || {
        client.get("/v1/transactions/t0").expect(200);
        client.get("/v1/transactions?limit=3").expect(200);
        client.get("/v1/agents/b/balance").expect(200);
        client.post_nothing("/v1/agents/keeper/heartbeat").expect(200);
        assert_refused(&books.record(&mut client, 10), status, code);
        (attempts(sidecar) > before + 2).then_some(())
    });
}

fn started(disk: &Disk, books: &mut Books) -> Sidecar {
    let sidecar = disk.setup().start();
    let mut client = sidecar.client();
    register(&mut client, "keeper", "c");
    for _ in 0..5 {
        books.record(&mut client, 10).expect(201);
    }
    sidecar
}

/// Killed and started again, it has what it acknowledged.
fn assert_survives(sidecar: Sidecar, disk: &Disk, books: &Books) {
    sidecar.kill();
    disk.assert_sound();
    let sidecar = disk.setup().start();
    books.check(&sidecar);
    sidecar.stop();
    disk.assert_sound();
}

#[test]
fn one_failed_sync_refuses_its_write_and_heals_by_itself() {
    let disk = Disk::of_mib(32);
    let mut books = Books::default();
    let sidecar = started(&disk, &mut books);
    let mut client = sidecar.client();
    let injection = disk.inject(&sidecar, "fdatasync", "error=EIO:when=3");
    let refused = (0..10).map(|_| books.record(&mut client, 10)).find(|answer| answer.status != 201);
    assert_refused(&refused.expect("the third sync is that of the third write"), 503, "store_unavailable");
    // It heals while it is still traced.
    wait_until_healed(&sidecar, &mut books);
    books.check(&sidecar);
    drop(injection);
    assert_survives(sidecar, &disk, &books);
}

#[test]
fn while_every_sync_fails_reads_go_on_and_nothing_is_acknowledged() {
    for when in ["", ":when=3+"] {
        let disk = Disk::of_mib(32);
        let mut books = Books::default();
        let sidecar = started(&disk, &mut books);
        let mut client = sidecar.client();
        let injection = disk.inject(&sidecar, "fdatasync", &format!("error=EIO{when}"));
        let refused = (0..10).map(|_| books.record(&mut client, 10)).find(|answer| answer.status != 201);
        assert_refused(&refused.expect("no later than with the third write"), 503, "store_unavailable");
        assert_shown(&sidecar, "Input/output error");
        assert_only_reads_go_on(&sidecar, &mut books, 503, "store_unavailable");
        books.check(&sidecar);
        drop(injection);
        wait_until_healed(&sidecar, &mut books);
        books.check(&sidecar);
        assert_survives(sidecar, &disk, &books);
    }
}

/// A disk that does not answer gives nobody an error. It is in the log also where nobody asks for anything.
#[test]
fn a_sync_that_hangs_is_shown_while_reads_go_on() {
    let disk = Disk::of_mib(32);
    let mut books = Books::default();
    let sidecar = started(&disk, &mut books);
    let injection = disk.inject(&sidecar, "fdatasync", "delay_enter=18000000:when=1");
    thread::scope(|scope| {
        let mut slow = Books { asked: books.asked.clone(), ..Books::default() };
        let waiting = scope.spawn(|| {
            let answer = slow.record(&mut sidecar.client(), 10);
            (answer, slow)
        });
        sidecar.log_line("the disk does not answer a commit; nothing more is taken until it does");
        let mut client = sidecar.client();
        let words = "the disk has not answered a commit";
        let ready = client.get("/readyz");
        assert!(ready.status == 503 && ready.text().contains(words), "{}", ready.text());
        let status = client.get("/v1/status").expect(200).json();
        assert!(status["store"]["last_error"].as_str().is_some_and(|error| error.contains(words)), "{status}");
        assert!(!store_ready(&mut client));
        client.get("/v1/transactions/t0").expect(200);
        client.post_nothing("/v1/agents/keeper/heartbeat").expect(200);
        client.get("/livez").expect(200);
        // It has the id of the one that waits, and is not that one.
        assert_refused(&books.record(&mut client, 10), 503, "store_unavailable");
        let (answer, slow) = waiting.join().expect("it is answered");
        answer.expect(201);
        books.acknowledged.extend(slow.acknowledged);
    });
    wait_until_healed(&sidecar, &mut books);
    books.check(&sidecar);
    drop(injection);
    assert_survives(sidecar, &disk, &books);
}

/// One that dies while its disk fails leaves what it has acknowledged, and is not started on that disk.
#[test]
fn killed_while_syncs_fail_it_has_what_it_acknowledged() {
    let disk = Disk::of_mib(32);
    let mut books = Books::default();
    let sidecar = started(&disk, &mut books);
    let _injection = disk.inject(&sidecar, "fdatasync", "error=EIO");
    assert_refused(&books.record(&mut sidecar.client(), 10), 503, "store_unavailable");
    assert_survives(sidecar, &disk, &books);
}

/// A file system that turned read-only, as one does after an error of its own, answers writes to open files this way. (It
/// cannot be told to do so: the kernel refuses while a file is open for writing.)
#[test]
fn a_file_system_that_turns_read_only_is_read_from_until_it_takes_writes_again() {
    let disk = Disk::of_mib(32);
    let mut books = Books::default();
    let sidecar = started(&disk, &mut books);
    let injection = disk.inject(&sidecar, "pwrite64,ftruncate,fdatasync", "error=EROFS");
    assert_refused(&books.record(&mut sidecar.client(), 10), 503, "store_unavailable");
    assert_shown(&sidecar, "Read-only file system");
    assert_only_reads_go_on(&sidecar, &mut books, 503, "store_unavailable");
    drop(injection);
    wait_until_healed(&sidecar, &mut books);
    books.check(&sidecar);
    assert_survives(sidecar, &disk, &books);
}

#[test]
fn on_a_read_only_file_system_it_does_not_start_and_changes_nothing() {
    let disk = Disk::of_mib(32);
    let mut books = Books::default();
    started(&disk, &mut books).stop();
    let file = disk.seen(&disk.data().join("tradepost.redb"));
    let before = fs::read(&file).expect("it can be read");
    disk.make_read_only();
    let refused = disk.setup().refused();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(74), "{said}");
    assert!(said.contains("Read-only file system"), "{said}");
    disk.make_writable();
    assert!(fs::read(&file).expect("it can be read") == before, "the file was changed");
    let sidecar = disk.setup().start();
    books.check(&sidecar);
    sidecar.stop();
}

/// Asks for transactions until one is refused, which it is for lack of room.
#[track_caller]
fn write_until_full(client: &mut Client, books: &mut Books) {
    let refused = (0..20_000).map(|_| books.record(client, 10)).find(|answer| answer.status != 201);
    assert_refused(&refused.expect("the disk is small"), 507, "storage_full");
}

#[test]
fn a_full_disk_is_said_to_be_full_and_read_from_until_there_is_room() {
    let disk = Disk::of_mib(6);
    let mut books = Books::default();
    let sidecar = started(&disk, &mut books);
    let mut client = sidecar.client();
    disk.fill();
    write_until_full(&mut client, &mut books);
    assert_shown(&sidecar, "No space left on device");
    assert_only_reads_go_on(&sidecar, &mut books, 507, "storage_full");
    for (target, body) in [
        ("/v1/transactions/t0/settle", json!({})),
        ("/v1/agents/keeper/outcomes", json!({"success": true})),
        ("/v1/agents", json!({"agent_id": "more", "name": "m", "capabilities": [], "cost_per_task": 1})),
    ] {
        assert_refused(&client.post(target, &body), 507, "storage_full");
    }
    books.check(&sidecar);

    // It starts on a full disk as well.
    sidecar.kill();
    disk.assert_sound();
    let sidecar = disk.setup().start();
    let mut client = sidecar.client();
    books.check(&sidecar);
    write_until_full(&mut client, &mut books);
    assert_only_reads_go_on(&sidecar, &mut books, 507, "storage_full");

    disk.make_room();
    wait_until_healed(&sidecar, &mut books);
    books.check(&sidecar);
    let reserve = fs::metadata(disk.seen(&disk.data().join(".tradepost.redb.reserve"))).expect("it was taken again");
    assert!(reserve.len() <= 1024 * 1024);
    assert_survives(sidecar, &disk, &books);
}

/// What central systems hold is known to be there, however full the disk is: else it would be sent again and again.
#[test]
fn what_central_systems_acknowledge_still_fits_on_a_full_disk() {
    let mut central = Central::start();
    let disk = Disk::of_mib(6);
    let mut books = Books::default();
    let setup = disk.setup().flags(&central.flags().each_ref().map(String::as_str));
    let sidecar = setup.start();
    let mut client = sidecar.client();
    register(&mut client, "keeper", "c");
    books.record(&mut client, 10).expect(201);
    wait_until_central(&sidecar);
    let held = |central: &Central| central.sql("SELECT count(*) FROM marketplace_transactions");
    assert_eq!(held(&central), "1");

    central.postgres.stop();
    central.redis.kill();
    for number in 0..20 {
        register(&mut client, &format!("late-{number}"), "c");
    }
    for _ in 0..200 {
        books.record(&mut client, 10).expect(201);
    }
    // A store that was closed in order has next to no room within its file.
    sidecar.stop();
    disk.fill();
    let sidecar = setup.start();
    let mut client = sidecar.client();
    central.postgres.launch();
    central.redis.start_again();
    // Somebody else writes for those who live here: there is no room for that, and it must not stand in the way.
    let home = Home::new();
    let other = central.setup(&home).start();
    record(&mut other.client(), "from-elsewhere", "elsewhere", "keeper");
    register(&mut other.client(), "elsewhere", "c");
    wait_for("all that was acknowledged to be central, and known to be", || {
        let known = ["redis", "postgres"].iter().all(|name| sink(&sidecar, name)["backlog"] == 0);
        known.then_some(())
    });
    // However that went: for more than that there is no room.
    write_until_full(&mut client, &mut books);
    wait_for("that to be central as well", || {
        let known = ["redis", "postgres"].iter().all(|name| sink(&sidecar, name)["backlog"] == 0);
        assert_refused(&books.record(&mut client, 10), 507, "storage_full");
        known.then_some(())
    });
    let acknowledged = books.acknowledged.len();
    wait_for("the other's", || (held(&central) == (acknowledged + 1).to_string()).then_some(()));
    assert!(fs::metadata(disk.seen(&disk.data().join(".tradepost.redb.reserve"))).is_err(), "the reserve is in use");

    // That was durable.
    sidecar.kill();
    central.postgres.stop();
    central.redis.kill();
    let sidecar = setup.start();
    for name in ["redis", "postgres"] {
        assert_eq!(sink(&sidecar, name)["backlog"], 0, "{name}");
    }

    central.postgres.launch();
    central.redis.start_again();
    disk.make_room();
    wait_until_healed(&sidecar, &mut books);
    let mut client = sidecar.client();
    wait_for("what the other wrote", || (client.get("/v1/transactions/from-elsewhere").status == 200).then_some(()));
    wait_for("who registered there", || (client.get("/v1/agents/elsewhere").status == 200).then_some(()));
    wait_until_central(&sidecar);
    assert_eq!(held(&central), (books.acknowledged.len() + 1).to_string());
    other.stop();
    sidecar.stop();
    disk.assert_sound();
}
