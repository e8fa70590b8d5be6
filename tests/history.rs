//! Clients that work on the same few agents and transactions at once, while the sidecar is killed again and again: what
//! they saw is what one client could have seen. `TRADEPOST_HISTORIES` sets how many rounds there are.

#[path = "history/checker.rs"]
mod checker;
mod common;

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use checker::{Model, Operation, is_linearizable};
use common::http::{Address, Answer, Client, Request};
use common::sidecar::{Home, Sidecar, wait_for};
use common::trials::Trials;

const ROUNDS: usize = 1_000;
const CLIENTS: usize = 4;
/// What each client does in a round.
const ACTIONS: usize = 10;
/// How long the sidecar lives at least and at most.
const LIFE: std::ops::Range<u64> = 40..400;

/// One transaction of given facts.
#[derive(Debug)]
struct Deal;

#[derive(Debug, Clone, Copy)]
enum Act {
    Record,
    Settle,
    Cancel,
    Look,
}

/// A status code, and what the body says of the object.
type Seen = (u16, String);

impl Model for Deal {
    type State = Option<&'static str>;
    type Action = Act;
    type Answer = Seen;

    fn begin() -> Self::State {
        None
    }

    fn step(state: &Self::State, action: &Act) -> (Self::State, Seen) {
        let shown = |code, status: &'static str| (Some(status), (code, status.to_owned()));
        match (state, action) {
            (None, Act::Record) => shown(201, "pending"),
            (None, _) => (None, (404, String::new())),
            (Some(status), Act::Record | Act::Look) => shown(200, status),
            (Some("pending"), Act::Settle) => shown(200, "settled"),
            (Some("pending"), Act::Cancel) => shown(200, "cancelled"),
            (Some(status), _) => (Some(status), (409, String::new())),
        }
    }
}

fn ask_deal(id: &str, act: Act) -> Request {
    match act {
        Act::Record => {
            let facts = json!({
                "transaction_id": id, "payer_agent": "genesis", "provider_agent": "thon", "capability": "sql", "amount": "1",
            });
            Request::post("/v1/transactions", &facts)
        }
        Act::Settle => Request::new("POST", format!("/v1/transactions/{id}/settle")),
        Act::Cancel => Request::new("POST", format!("/v1/transactions/{id}/cancel")),
        Act::Look => Request::get(format!("/v1/transactions/{id}")),
    }
}

/// One agent, of which nothing but the price and its lease changes.
#[derive(Debug)]
struct Offer;

#[derive(Debug, Clone, Copy)]
enum Move {
    Register(u32),
    Reprice(u32),
    Remove,
    Beat,
    Look,
}

impl Model for Offer {
    type State = Option<u32>;
    type Action = Move;
    type Answer = Seen;

    fn begin() -> Self::State {
        None
    }

    fn step(state: &Self::State, action: &Move) -> (Self::State, Seen) {
        let shown = |code, price: u32| (Some(price), (code, price.to_string()));
        match (state, action) {
            (None, Move::Register(price)) => shown(201, *price),
            (None, _) => (None, (404, String::new())),
            (Some(price), Move::Register(_)) => (Some(*price), (409, String::new())),
            (Some(_), Move::Reprice(price)) => shown(200, *price),
            (Some(_), Move::Remove) => (None, (204, String::new())),
            (Some(price), Move::Beat) => (Some(*price), (200, String::new())),
            (Some(price), Move::Look) => shown(200, *price),
        }
    }
}

fn ask_offer(id: &str, step: Move) -> Request {
    match step {
        Move::Register(price) => {
            let body = json!({"agent_id": id, "name": id, "capabilities": ["sql"], "cost_per_task": price});
            Request::post("/v1/agents", &body)
        }
        Move::Reprice(price) => {
            Request::new("PATCH", format!("/v1/agents/{id}")).json(&json!({ "cost_per_task": price }))
        }
        Move::Remove => Request::new("DELETE", format!("/v1/agents/{id}")),
        Move::Beat => Request::new("POST", format!("/v1/agents/{id}/heartbeat")),
        Move::Look => Request::get(format!("/v1/agents/{id}")),
    }
}

fn deal_seen(answer: &Answer) -> Seen {
    let status = if answer.status < 300 {
        answer.json()["status"].as_str().expect("a status").to_owned()
    } else {
        String::new()
    };
    (answer.status, status)
}

fn offer_seen(answer: &Answer) -> Seen {
    let price = if matches!(answer.status, 200 | 201) {
        answer.json()["pricing"]["cost_per_task"].as_str().expect("a price").to_owned()
    } else {
        String::new()
    };
    (answer.status, price)
}

/// A heartbeat tells of the lease alone.
fn beat_seen(answer: &Answer) -> Seen {
    (answer.status, String::new())
}

/// A client and its watch.
struct Worker {
    client: Client,
    began: Instant,
    unanswered: usize,
}

impl Worker {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).expect("some minutes")
    }

    fn act<M: Model<Answer = Seen>>(
        &mut self,
        action: M::Action,
        request: &Request,
        seen: fn(&Answer) -> Seen,
    ) -> Operation<M> {
        let called = self.now();
        match self.client.try_call(request) {
            // A store that stops answers so, and whether the write was done nobody knows.
            Ok(answer) if answer.status != 503 => {
                Operation { action, called, answered: Some((self.now(), seen(&answer))) }
            }
            _ => {
                self.unanswered += 1;
                let client = &mut self.client;
                wait_for("the sidecar", || client.try_call(&Request::get("/livez")).ok());
                Operation { action, called, answered: None }
            }
        }
    }
}

/// What all clients did to the objects of one round.
#[derive(Default)]
struct Round {
    deals: [Mutex<Vec<Operation<Deal>>>; 2],
    offer: Mutex<Vec<Operation<Offer>>>,
}

fn work(round: usize, seed: u64, worker: &mut Worker, histories: &Round) {
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..ACTIONS {
        match random.random_range(0..4) {
            which @ 0..2 => {
                let act = [Act::Record, Act::Settle, Act::Cancel, Act::Look][random.random_range(0..4)];
                let done = worker.act(act, &ask_deal(&format!("r{round}-{which}"), act), deal_seen);
                histories.deals[which].lock().expect("nobody panics with it").push(done);
            }
            _ => {
                let price = random.random_range(1..1_000);
                let moves = [Move::Register(price), Move::Reprice(price), Move::Remove, Move::Beat, Move::Look];
                let step = moves[random.random_range(0..moves.len())];
                let seen = if matches!(step, Move::Beat) { beat_seen } else { offer_seen };
                let done = worker.act(step, &ask_offer(&format!("r{round}"), step), seen);
                histories.offer.lock().expect("nobody panics with it").push(done);
            }
        }
    }
}

/// Kills the sidecar and starts it again until all rounds are done; how often.
fn kill_and_start(mut sidecar: Sidecar, seed: u64, is_done: &AtomicBool) -> (Sidecar, usize) {
    let (mut random, mut kills) = (StdRng::seed_from_u64(seed), 0);
    while !is_done.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(random.random_range(LIFE)));
        let setup = sidecar.setup().clone();
        sidecar.kill();
        sidecar = setup.start();
        kills += 1;
    }
    (sidecar, kills)
}

/// The last client to leave, for whatever reason, ends it all.
struct Leaving<'a> {
    left: &'a AtomicUsize,
    is_done: &'a AtomicBool,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.is_done.store(true, Ordering::SeqCst);
        }
    }
}

#[test]
fn what_clients_see_of_a_sidecar_that_is_killed_all_the_time_is_what_one_could_have_seen() {
    let given = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let rounds = given("TRADEPOST_HISTORIES").map_or(ROUNDS, |count| usize::try_from(count).expect("it fits"));
    let seed = given("TRADEPOST_HISTORIES_SEED").unwrap_or_else(rand::random);
    println!("TRADEPOST_HISTORIES={rounds} TRADEPOST_HISTORIES_SEED={seed}");
    let trials = Trials::of("history", seed);
    let home = Home::new();
    let sidecar = home.setup().start();
    let socket = sidecar.socket.clone().expect("it has a socket");
    let histories: Vec<Round> = (0..rounds).map(|_| Round::default()).collect();
    let (is_done, left, began) = (AtomicBool::new(false), AtomicUsize::new(CLIENTS), Instant::now());
    let (sidecar, kills, unanswered) = thread::scope(|scope| {
        let killer = scope.spawn(|| kill_and_start(sidecar, seed, &is_done));
        let clients: Vec<_> = (0..CLIENTS as u64)
            .map(|number| {
                let (histories, is_done, left) = (&histories, &is_done, &left);
                let mut worker = Worker { client: client(&socket), began, unanswered: 0 };
                scope.spawn(move || {
                    let _leaving = Leaving { left, is_done };
                    for (round, history) in histories.iter().enumerate() {
                        let seed = seed ^ (round as u64) << 8 ^ number << 56;
                        work(round, seed, &mut worker, history);
                    }
                    worker.unanswered
                })
            })
            .collect();
        let unanswered: usize = clients.into_iter().map(|client| client.join().expect("no client panics")).sum();
        let (sidecar, kills) = killer.join().expect("the killer does not panic");
        (sidecar, kills, unanswered)
    });
    let mut operations = 0;
    for (round, history) in histories.into_iter().enumerate() {
        for deal in history.deals {
            let deal = deal.into_inner().expect("nobody panicked with it");
            operations += deal.len();
            trials.ran(deal.len() as u64);
            assert!(is_linearizable(&deal), "round {round}, seed {seed}: {deal:#?}");
        }
        let offer = history.offer.into_inner().expect("nobody panicked with it");
        operations += offer.len();
        trials.ran(offer.len() as u64);
        assert!(is_linearizable(&offer), "round {round}, seed {seed}: {offer:#?}");
    }
    println!("{operations} operations, {unanswered} of them unanswered, {kills} kills");
    assert!(kills > 0 && unanswered < operations / 2, "neither idle nor dead all the time");
    sidecar.stop();
    home.assert_sound();
}

fn client(socket: &Path) -> Client {
    Client::new(Address::Unix(socket.to_owned()))
}
