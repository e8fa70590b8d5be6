//! The real binary killed, refused, stopped and started again: what was acknowledged is there, and no file is touched
//! that is not a sound store of ours.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::http::{Client, Request};
use common::sidecar::{Home, Setup, Sidecar, tradepost, wait_for};
use common::trials::Trials;
use redb::{Database, ReadableDatabase, TableDefinition};
use rustix::process::Signal;
use serde_json::{Value, json};

/// One write, which is either answered or of unknown outcome, and then sent again just as it is.
#[derive(Debug, Clone)]
struct Write {
    request: Request,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    /// A transaction with an id of its own, of so many cents.
    Record {
        id: String,
        cents: u64,
    },
    /// A transaction whose id the server mints, told apart by its idempotency key.
    RecordOnce {
        key: String,
        cents: u64,
    },
    Settle {
        id: String,
    },
    Register {
        id: String,
    },
    Outcome,
}

/// What one client did in one round.
#[derive(Default)]
struct Diary {
    acknowledged: Vec<(Write, Value)>,
    unanswered: Vec<Write>,
}

/// What must be true, added up over all rounds.
#[derive(Default)]
struct Books {
    /// Status by transaction id.
    transactions: BTreeMap<String, &'static str>,
    /// Minted id by idempotency key.
    minted: BTreeMap<String, String>,
    agents: Vec<String>,
    /// Cents by status.
    pending: u64,
    settled: u64,
    outcomes: u64,
    cents: BTreeMap<String, u64>,
}

impl Books {
    fn enter(&mut self, write: &Write, answer: &Value) {
        match &write.what {
            What::Record { id, cents } => self.recorded(id.clone(), *cents),
            What::RecordOnce { key, cents } => {
                let id = answer["transaction_id"].as_str().expect("an id").to_owned();
                assert!(self.minted.insert(key.clone(), id.clone()).is_none(), "{key} was entered before");
                self.recorded(id, *cents);
            }
            What::Settle { id } => {
                let cents = self.cents[id];
                assert_eq!(self.transactions.insert(id.clone(), "settled"), Some("pending"), "{id}");
                self.pending -= cents;
                self.settled += cents;
            }
            What::Register { id } => self.agents.push(id.clone()),
            What::Outcome => self.outcomes += 1,
        }
    }

    fn recorded(&mut self, id: String, cents: u64) {
        assert!(self.transactions.insert(id.clone(), "pending").is_none(), "{id} was entered before");
        self.cents.insert(id, cents);
        self.pending += cents;
    }
}

fn keyed(request: Request, key: &str) -> Request {
    request.header("Idempotency-Key", key)
}

fn transaction(cents: u64) -> Value {
    json!({"payer_agent": "payer", "provider_agent": "provider", "capability": "python",
        "amount": format!("{}.{:02}", cents / 100, cents % 100)})
}

/// The next writes of a client: transactions, settlements of some, an agent, an outcome.
fn turn(prefix: &str, turn: u64) -> Vec<Write> {
    let id = format!("{prefix}-{turn}");
    let cents = turn % 97 + 1;
    let mut own = transaction(cents);
    own["transaction_id"] = json!(id);
    let write = |what: What, request: Request| Write { request, what };
    let mut writes = vec![
        write(What::Record { id: id.clone(), cents }, Request::post("/v1/transactions", &own)),
        write(
            What::RecordOnce { key: format!("{id}-r"), cents },
            keyed(Request::post("/v1/transactions", &transaction(cents)), &format!("{id}-r")),
        ),
        write(
            What::Outcome,
            keyed(Request::post("/v1/agents/worker/outcomes", &json!({"success": true})), &format!("{id}-o")),
        ),
    ];
    if turn.is_multiple_of(2) {
        let request = Request::new("POST", format!("/v1/transactions/{id}/settle"));
        writes.push(write(What::Settle { id: id.clone() }, keyed(request, &format!("{id}-s"))));
    }
    if turn.is_multiple_of(5) {
        let agent = json!({"agent_id": id, "name": "n", "capabilities": ["sql"], "cost_per_task": 1});
        writes.push(write(
            What::Register { id: id.clone() },
            keyed(Request::post("/v1/agents", &agent), &format!("{id}-a")),
        ));
    }
    writes
}

/// Writes until the server is gone.
fn work(client: &mut Client, prefix: &str, stop: &AtomicBool) -> Diary {
    let mut diary = Diary::default();
    for number in 0.. {
        for write in turn(prefix, number) {
            if stop.load(Ordering::Relaxed) {
                return diary;
            }
            match client.try_call(&write.request) {
                Ok(answer) => {
                    assert!(matches!(answer.status, 200 | 201), "{write:?}: {answer:?}");
                    diary.acknowledged.push((write, answer.json()));
                }
                Err(_) => {
                    diary.unanswered.push(write);
                    return diary;
                }
            }
        }
    }
    diary
}

/// What a client can see agrees with the books.
#[track_caller]
fn check(client: &mut Client, books: &Books) {
    let stored: BTreeMap<String, String> = client
        .get("/v1/export/transactions")
        .expect(200)
        .lines()
        .iter()
        .map(|line| (line["transaction_id"].as_str().unwrap().to_owned(), line["status"].as_str().unwrap().to_owned()))
        .collect();
    let lost: Vec<_> = books
        .transactions
        .iter()
        .filter(|(id, status)| stored.get(*id).is_none_or(|stored| stored != *status))
        .collect();
    assert!(lost.is_empty(), "lost or changed: {lost:?}");
    assert_eq!(stored.len(), books.transactions.len(), "there are transactions that nobody recorded");
    for agent in &books.agents {
        client.get(format!("/v1/agents/{agent}")).expect(200);
    }
    let worker = client.get("/v1/agents/worker").expect(200).json();
    assert_eq!(worker["reputation"]["successful_tasks"].as_u64(), Some(books.outcomes));
    let decimal = |cents: u64| {
        let text = format!("{}.{:02}", cents / 100, cents % 100);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let sums = json!({"pending": decimal(books.pending), "settled": decimal(books.settled), "disputed": "0"});
    assert_eq!(client.get("/v1/agents/payer/balance").expect(200).json()["USD"]["paid"], sums);
    assert_eq!(client.get("/v1/agents/provider/balance").expect(200).json()["USD"]["earned"], sums);
}

fn rounds() -> u32 {
    match std::env::var("TRADEPOST_CRASH_ROUNDS") {
        Ok(rounds) => rounds.parse().expect("TRADEPOST_CRASH_ROUNDS is a number"),
        Err(_) => 20,
    }
}

#[test]
fn what_was_acknowledged_survives_kill_9_and_a_retry_does_nothing_twice() {
    let home = Home::new();
    let sidecar = home.setup().start();
    sidecar
        .client()
        .post("/v1/agents", &json!({"agent_id": "worker", "name": "w", "capabilities": [], "cost_per_task": 0}))
        .expect(201);
    let mut books = Books::default();
    let mut sidecar = Some(sidecar);
    let (mut acknowledged, mut unanswered) = (0, 0);
    let trials = Trials::of("crash", None);
    for round in 0..rounds() {
        trials.ran(1);
        let running = sidecar.take().expect("one is running");
        let stop = AtomicBool::new(false);
        let diaries: Vec<Diary> = thread::scope(|scope| {
            let stop = &stop;
            let workers: Vec<_> = (0..6)
                .map(|worker| {
                    let mut client = if worker % 2 == 0 { running.client() } else { running.socket_client() };
                    scope.spawn(move || work(&mut client, &format!("r{round}w{worker}"), stop))
                })
                .collect();
            // Not a wait for a condition: how long there is load, never the same, so that kills meet every phase.
            thread::sleep(Duration::from_millis(300 + u64::from(round * 37 % 200)));
            running.kill();
            stop.store(true, Ordering::Relaxed);
            workers.into_iter().map(|worker| worker.join().expect("its assertions hold")).collect()
        });
        // On the file just as the kill left it.
        home.assert_sound();

        for diary in &diaries {
            acknowledged += diary.acknowledged.len();
            for (write, answer) in &diary.acknowledged {
                books.enter(write, answer);
            }
        }
        let next = home.setup().start();
        let mut client = next.client();
        for write in diaries.iter().flat_map(|diary| &diary.unanswered) {
            unanswered += 1;
            let answer = client.call(&write.request);
            assert!(matches!(answer.status, 200 | 201), "{write:?}: {answer:?}");
            books.enter(write, &answer.json());
        }
        // And once more what was answered last: it is known to have been done.
        for (write, answer) in diaries.iter().filter_map(|diary| diary.acknowledged.last()) {
            let again = client.call(&write.request);
            assert!(matches!(again.status, 200 | 201), "{write:?}: {again:?}");
            assert_eq!(again.json()["transaction_id"], answer["transaction_id"], "{write:?}");
        }
        check(&mut client, &books);
        sidecar = Some(next);
    }
    assert!(
        acknowledged > 0 && unanswered > 0,
        "{acknowledged} acknowledged, {unanswered} unanswered: no load, no proof"
    );
    sidecar.expect("one is running").stop();
    home.assert_sound();
}

#[test]
fn a_second_process_on_the_same_directory_is_refused_and_changes_nothing() {
    let home = Home::new();
    let sidecar = home.setup().start();
    let mut client = sidecar.client();
    let mut with_id = transaction(100);
    with_id["transaction_id"] = json!("t1");
    client.post("/v1/transactions", &with_id).expect(201);
    let second = home.setup().refused();
    assert_eq!(second.status.code(), Some(75), "{}", String::from_utf8_lossy(&second.stderr));
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use by another process"));
    for command in ["verify", "compact"] {
        let output = tradepost().arg(command).arg("--data-dir").arg(home.data()).output().unwrap();
        assert_eq!(output.status.code(), Some(75), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // The first goes on, on its socket too.
    client.get("/v1/transactions/t1").expect(200);
    sidecar.socket_client().post_nothing("/v1/transactions/t1/settle").expect(200);
    sidecar.stop();
}

/// A store with something in it, closed in order.
fn closed_store() -> Home {
    let home = Home::new();
    let sidecar = home.setup().start();
    let batch: Vec<Value> = (1..200).map(transaction).collect();
    sidecar.client().post("/v1/transactions/batch", &json!(batch)).expect(200);
    sidecar.stop();
    home
}

/// `serve`, `verify` and `compact` refuse the file with this code and leave every byte of it.
#[track_caller]
fn assert_refused_untouched(home: &Home, code: i32, words: &str, case: &str) {
    let before = fs::read(home.file()).unwrap();
    let entries = || {
        let mut names: Vec<_> = fs::read_dir(home.data()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let names = entries();
    let served = home.setup().refused();
    let offline = ["verify", "compact"].map(|command| {
        (command, tradepost().arg(command).arg("--data-dir").arg(home.data()).output().expect("it runs"))
    });
    for (command, output) in [("serve", served)].into_iter().chain(offline) {
        let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{case}, {command}: {said}");
        assert!(said.contains(words), "{case}, {command}: {said}");
        assert!(fs::read(home.file()).unwrap() == before, "{case}: {command} changed the file");
    }
    assert_eq!(entries(), names, "{case}: another file appeared");
}

#[test]
fn a_damaged_or_foreign_file_is_refused_and_left_as_it_is() {
    let home = closed_store();
    let sound = fs::read(home.file()).unwrap();
    let flipped = |places: std::ops::Range<usize>| {
        let mut bytes = sound.clone();
        bytes[places].iter_mut().for_each(|byte| *byte ^= 0xff);
        bytes
    };
    for (case, bytes) in [
        ("magic number flipped", flipped(0..4)),
        ("header flipped", flipped(0..300)),
        ("commit slots flipped", flipped(64..320)),
        ("truncated to a page", sound[..4_096].to_vec()),
        ("truncated to half", sound[..sound.len() / 2].to_vec()),
        ("truncated to a few bytes", sound[..10].to_vec()),
        ("zero length", Vec::new()),
        ("all zeros", vec![0; sound.len()]),
        ("a text", b"this is no database".to_vec()),
        ("another database", [b"SQLite format 3\0".as_slice(), &[7; 8_176]].concat()),
    ] {
        fs::write(home.file(), &bytes).unwrap();
        assert_refused_untouched(&home, 65, "", case);
    }
    fs::write(home.file(), &sound).unwrap();
    home.assert_sound();

    // redb's own, but none of ours.
    fs::remove_file(home.file()).unwrap();
    let foreign = Database::create(home.file()).unwrap();
    let write = foreign.begin_write().unwrap();
    write.open_table(TableDefinition::<u64, u64>::new("numbers")).unwrap().insert(1, 2).unwrap();
    write.commit().unwrap();
    drop(foreign);
    assert_refused_untouched(&home, 65, "", "a foreign redb file");
}

#[test]
fn a_flipped_page_that_matters_is_told_by_verify() {
    let home = closed_store();
    let sound = fs::read(home.file()).unwrap();
    let used: Vec<usize> =
        (1..sound.len() / 4_096).filter(|page| sound[page * 4_096..][..4_096].iter().any(|b| *b != 0)).collect();
    let mut told = 0;
    for page in used.into_iter().step_by(3) {
        let mut bytes = sound.clone();
        bytes[page * 4_096..][..64].iter_mut().for_each(|byte| *byte ^= 0x5a);
        fs::write(home.file(), &bytes).unwrap();
        let output = tradepost().args(["verify", "--data-dir"]).arg(home.data()).output().unwrap();
        // Pages that are free now may still hold old bytes, which matter to nobody.
        match output.status.code() {
            Some(0) => {}
            Some(65) => told += 1,
            other => panic!("page {page}: exit {other:?}: {}", String::from_utf8_lossy(&output.stderr)),
        }
    }
    assert!(told > 0, "no page mattered");
}

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

#[test]
fn a_file_of_a_newer_or_an_older_format_is_refused_by_name() {
    for change in [1, -1] {
        let home = closed_store();
        let database = Database::open(home.file()).unwrap();
        let known =
            database.begin_read().unwrap().open_table(META).unwrap().get("format").unwrap().unwrap().value().to_vec();
        let other = u32::from_le_bytes(known.try_into().unwrap()).checked_add_signed(change).unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(META).unwrap().insert("format", other.to_le_bytes().as_slice()).unwrap();
        write.commit().unwrap();
        drop(database);
        assert_refused_untouched(&home, 65, &format!("file format {other}"), "another format");
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn directory_file_and_socket_are_private_and_the_socket_goes_with_the_process() {
    let home = Home::new();
    // Whatever the umask: the widest one would show.
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "umask 000; exec \"$@\"", "sh"]).arg(env!("CARGO_BIN_EXE_tradepost"));
    let setup = home.setup();
    command.args(setup.command().get_args()).stderr(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    let socket = home.data().join("tradepost.sock");
    let mut client = Client::new(common::http::Address::Unix(socket.clone()));
    wait_for("readiness", || client.try_call(&Request::get("/readyz")).ok());
    let modes = [mode(&home.data()), mode(&home.file()), mode(&socket)];
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(modes, [0o700, 0o600, 0o600], "{modes:?}");
    assert_eq!(status.code(), Some(0));
    assert!(!socket.exists(), "the socket is still there");
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_or_another_file_is_not() {
    let home = Home::new();
    let sidecar = home.setup().start();
    let socket = sidecar.socket.clone().unwrap();
    sidecar.kill();
    assert!(socket.exists(), "kill -9 leaves the socket behind, or this test shows nothing");
    let sidecar = home.setup().start();
    assert_eq!(sidecar.socket.as_ref(), Some(&socket));
    sidecar.socket_client().get("/livez").expect(200);
    sidecar.stop();

    let elsewhere = home.path().join("other.sock");
    let flags = ["--socket", elsewhere.to_str().unwrap()];
    let live = UnixListener::bind(&elsewhere).unwrap();
    assert_eq!(home.setup().flags(&flags).refused().status.code(), Some(74));
    assert!(elsewhere.exists());
    drop(live);
    fs::remove_file(&elsewhere).unwrap();
    fs::write(&elsewhere, "precious").unwrap();
    assert_eq!(home.setup().flags(&flags).refused().status.code(), Some(74));
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "precious");
}

#[test]
fn the_api_port_taken_is_an_io_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let home = Home::new();
    let listen = taken.local_addr().unwrap().to_string();
    let mut command = tradepost();
    command.args(["serve", "--metrics-listen", "none", "--listen", &listen, "--data-dir"]).arg(home.data());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(74), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Sends the head of a request and waits until the server asks for the body: from here on it is in flight.
fn begun(sidecar: &Sidecar, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(sidecar.address).unwrap();
    stream.set_read_timeout(Some(common::sidecar::PATIENCE)).unwrap();
    let head = format!(
        "POST /v1/transactions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Expect: 100-continue\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let expected = "HTTP/1.1 100 Continue\r\n\r\n";
    let mut answer = vec![0; expected.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), expected);
    stream
}

#[test]
fn sigterm_answers_what_is_in_flight_and_exits_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let home = Home::new();
        let mut sidecar = home.setup().start();
        let mut with_id = transaction(1_234);
        with_id["transaction_id"] = json!("in-flight");
        let body = with_id.to_string();
        let mut stream = begun(&sidecar, &body);
        sidecar.signal(signal);
        sidecar.log_line("stopping");
        stream.write_all(body.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 201 Created\r\n"), "{answer}");
        assert_eq!(sidecar.wait().code(), Some(0), "{}", sidecar.log());
        home.setup().start().client().get("/v1/transactions/in-flight").expect(200);
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut sidecar = Setup::in_memory().start();
    let _stream = begun(&sidecar, &transaction(1).to_string());
    sidecar.signal(Signal::TERM);
    sidecar.log_line("stopping");
    sidecar.signal(Signal::TERM);
    let status = sidecar.wait();
    assert_ne!(status.code(), Some(0), "{status}");
}
