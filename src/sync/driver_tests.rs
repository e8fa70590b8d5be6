//! The driver against a scripted destination, in time that nobody waits for.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use rand::SeedableRng;
use tokio::task::{JoinHandle, LocalSet};

use super::*;
use crate::clock::SystemClock;
use crate::domain::{AgentId, Capability, Currency, Facts, JsonObject, Money, NewTransaction};
use crate::{Location, Options};

/// What a scripted destination does next.
#[derive(Debug, Clone, PartialEq)]
enum Act {
    Connect,
    ConnectFails(FailureClass),
    ConnectHangs,
    Round(Round),
    RoundFails(FailureClass),
    RoundHangs,
}

/// What was done to it, and when (since the test began).
#[derive(Debug, Clone, PartialEq)]
enum Seen {
    Connect(Duration),
    Round(Duration, Vec<SinkRequest>),
    Lost(Duration),
}

#[derive(Clone)]
struct Scripted {
    script: Rc<RefCell<VecDeque<Act>>>,
    seen: Rc<RefCell<Vec<Seen>>>,
    began: Instant,
}

const IDLE: Round = Round { pushed: 0, pulled: 0, more: false, pause: Duration::from_secs(3_600) };

impl Scripted {
    fn new(script: impl IntoIterator<Item = Act>) -> Self {
        Self { script: Rc::new(RefCell::new(script.into_iter().collect())), seen: Rc::default(), began: Instant::now() }
    }

    fn next(&self, connecting: bool) -> Act {
        let rest = if connecting { Act::Connect } else { Act::Round(IDLE) };
        self.script.borrow_mut().pop_front().unwrap_or(rest)
    }

    fn connects(&self) -> Vec<Duration> {
        self.seen
            .borrow()
            .iter()
            .filter_map(|seen| if let Seen::Connect(at) = seen { Some(*at) } else { None })
            .collect()
    }

    fn rounds(&self) -> usize {
        self.seen.borrow().iter().filter(|seen| matches!(seen, Seen::Round(..))).count()
    }
}

impl Destination for Scripted {
    type Session = ();

    const SINK: Sink = Sink::Postgres;

    fn backlog(engine: &Engine) -> Result<Backlog, Failure> {
        let status = engine.status().map_err(|error| Failure::new(FailureClass::Store, error.to_string()))?;
        Ok(Backlog { entries: status.events, oldest: None, parked: 0 })
    }

    fn mark(commit: &CommitMark) -> u64 {
        commit.log_seq
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        self.seen.borrow_mut().push(Seen::Connect(self.began.elapsed()));
        match self.next(true) {
            Act::Connect => Ok(()),
            Act::ConnectFails(class) => Err(Failure::new(class, "refused by the script")),
            Act::ConnectHangs => std::future::pending().await,
            other => panic!("{other:?} while connecting"),
        }
    }

    async fn round(&mut self, (): &mut (), requests: &[SinkRequest]) -> Result<Round, Failure> {
        self.seen.borrow_mut().push(Seen::Round(self.began.elapsed(), requests.to_vec()));
        match self.next(false) {
            Act::Round(round) => Ok(round),
            Act::RoundFails(class) => Err(Failure::new(class, "broken off by the script")),
            Act::RoundHangs => std::future::pending().await,
            other => panic!("{other:?} in a round"),
        }
    }

    fn lost(&mut self) {
        self.seen.borrow_mut().push(Seen::Lost(self.began.elapsed()));
    }
}

struct Stage {
    engine: Engine,
    commit: watch::Sender<CommitMark>,
    stop: watch::Sender<bool>,
    reload: watch::Sender<u64>,
    bell: Arc<Notify>,
    scripted: Scripted,
    driver: JoinHandle<()>,
}

impl Stage {
    fn set(script: impl IntoIterator<Item = Act>) -> Self {
        let engine = Engine::open(Options::new(Location::Memory)).expect("a store in memory opens");
        let (stop, stopped) = watch::channel(false);
        let (reload, reloaded) = watch::channel(0);
        let (commit, commits) = watch::channel(CommitMark::default());
        let bell = Arc::new(Notify::new());
        let scripted = Scripted::new(script);
        let surroundings = Surroundings {
            engine: engine.clone(),
            metrics: Metrics::default(),
            clock: Arc::new(SystemClock::default()),
            random: StdRng::seed_from_u64(7),
            commits,
            stopped,
            reloaded,
            bell: Arc::clone(&bell),
        };
        let driver = tokio::task::spawn_local(drive(scripted.clone(), surroundings));
        Self { engine, commit, stop, reload, bell, scripted, driver }
    }

    fn status(&self) -> Arc<SinkStatus> {
        self.engine.sinks().status(Sink::Postgres)
    }

    async fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(3_600);
        while !holds(self) {
            assert!(Instant::now() < deadline, "waited in vain for {what}: {:?}", self.scripted.seen.borrow());
            sleep(Duration::from_millis(10)).await;
        }
    }
}

fn test(stage: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime starts");
    LocalSet::new().block_on(&runtime, stage());
}

async fn record(engine: &Engine) {
    let facts = Facts {
        payer_agent: AgentId::from_stored("a"),
        provider_agent: AgentId::from_stored("b"),
        capability: Capability::from_stored("sql"),
        amount: Money::parse("1").expect("a decimal"),
        currency: Currency::default(),
        context: JsonObject::default(),
    };
    engine.record(NewTransaction { transaction_id: None, facts }, None).await.expect("it is recorded");
}

#[test]
fn a_sink_that_was_away_for_a_day_comes_back_by_itself_within_seconds() {
    test(async || {
        let stage = Stage::set(vec![Act::ConnectFails(FailureClass::Unreachable); 100_000]);
        sleep(Duration::from_secs(24 * 3_600)).await;
        let status = stage.status();
        assert!(matches!(status.state, SinkState::Backoff | SinkState::Connecting), "{status:?}");
        assert_eq!(status.last_error.as_deref(), Some("refused by the script"));
        let connects = stage.scripted.connects();
        let gaps = connects.windows(2).map(|pair| pair[1] - pair[0]).max().expect("there were many attempts");
        assert!(gaps <= crate::sync::state::LONGEST_PAUSE + Duration::from_millis(5), "{gaps:?} between two attempts");
        stage.scripted.script.borrow_mut().clear();
        let back = Instant::now();
        stage.until("the sink to be live", |stage| stage.status().state == SinkState::Live).await;
        assert!(back.elapsed() <= Duration::from_secs(16), "{:?}", back.elapsed());
        assert!(stage.status().last_success_at.is_some());
    });
}

#[test]
fn a_connection_that_never_comes_about_is_given_up_after_ten_seconds() {
    test(async || {
        let stage = Stage::set([Act::ConnectHangs]);
        sleep(Duration::from_millis(10_100)).await;
        assert_eq!(stage.status().last_error.as_deref(), Some("no connection within 10 seconds"));
        stage.until("the next attempt", |stage| stage.scripted.connects().len() == 2).await;
    });
}

#[test]
fn what_a_round_broke_is_connected_anew_and_what_is_misconfigured_is_halted() {
    test(async || {
        let broken = [Act::Connect, Act::Round(IDLE), Act::RoundFails(FailureClass::Unreachable)];
        let stage = Stage::set(broken);
        stage.until("a first round", |stage| stage.scripted.rounds() == 1).await;
        stage.bell.notify_one();
        stage.until("the broken round", |stage| stage.status().last_error.is_some()).await;
        assert!(matches!(stage.scripted.seen.borrow().last(), Some(Seen::Lost(_))));
        stage.until("a new connection", |stage| stage.status().state == SinkState::Live).await;
        stage.scripted.script.borrow_mut().push_back(Act::RoundFails(FailureClass::Misconfigured));
        stage.bell.notify_one();
        stage.until("the halt", |stage| stage.status().state == SinkState::Halted).await;
        let (halted, attempts) = (Instant::now(), stage.scripted.connects().len());
        stage.until("the next attempt", |stage| stage.scripted.connects().len() > attempts).await;
        assert!(halted.elapsed() <= Duration::from_millis(15_100), "{:?}", halted.elapsed());
    });
}

#[test]
fn new_credentials_are_used_at_once_by_a_halted_sink_and_by_a_live_one() {
    test(async || {
        let stage = Stage::set([Act::ConnectFails(FailureClass::Misconfigured)]);
        stage.until("the halt", |stage| stage.status().state == SinkState::Halted).await;
        let told = Instant::now();
        stage.reload.send_modify(|times| *times += 1);
        stage.until("the sink to be live", |stage| stage.status().state == SinkState::Live).await;
        assert!(told.elapsed() < Duration::from_secs(1));
        stage.reload.send_modify(|times| *times += 1);
        stage.until("a third connection", |stage| stage.scripted.connects().len() == 3).await;
        assert!(told.elapsed() < Duration::from_secs(1));
    });
}

#[test]
fn a_request_ends_a_pause_and_reaches_the_next_round() {
    test(async || {
        let stage = Stage::set([Act::ConnectFails(FailureClass::Misconfigured)]);
        stage.until("the halt", |stage| stage.status().state == SinkState::Halted).await;
        stage.engine.sinks().request(Sink::Postgres, SinkRequest::Retry);
        stage.until("the round", |stage| stage.scripted.rounds() == 1).await;
        let seen = stage.scripted.seen.borrow().clone();
        assert!(
            matches!(seen.last(), Some(Seen::Round(at, asked)) if *at < Duration::from_secs(1) && *asked == [SinkRequest::Retry]),
            "{seen:?}"
        );
    });
}

#[test]
fn a_commit_wakes_the_sink_and_nothing_else_does() {
    test(async || {
        let stage = Stage::set([]);
        stage.until("the first round", |stage| stage.scripted.rounds() == 1).await;
        sleep(Duration::from_secs(1_800)).await;
        assert_eq!(stage.scripted.rounds(), 1);
        stage.commit.send_modify(|mark| mark.change_seq += 1);
        sleep(Duration::from_secs(600)).await;
        assert_eq!(stage.scripted.rounds(), 1, "an agent's change is nothing to this sink");
        record(&stage.engine).await;
        stage.commit.send_modify(|mark| mark.log_seq += 1);
        stage.until("the second round", |stage| stage.scripted.rounds() == 2).await;
        // The backlog that people see was counted anew.
        stage.until("the backlog", |stage| stage.status().backlog == 1).await;
    });
}

#[test]
fn a_backlog_that_grows_while_the_sink_is_away_is_seen() {
    test(async || {
        let stage = Stage::set([Act::Connect, Act::RoundHangs]);
        stage.until("the round that hangs", |stage| stage.scripted.rounds() == 1).await;
        record(&stage.engine).await;
        stage.until("the backlog", |stage| stage.status().backlog == 1).await;
    });
}

/// A frozen PostgreSQL was shown as live for the fifteen seconds that a statement may take.
#[test]
fn a_round_that_does_not_end_is_shown_while_it_lasts() {
    test(async || {
        let stage = Stage::set([Act::Connect, Act::Round(IDLE), Act::RoundHangs]);
        stage.until("the first round", |stage| stage.status().state == SinkState::Live).await;
        stage.bell.notify_one();
        sleep(Duration::from_millis(6_100)).await;
        let status = stage.status();
        assert_eq!(status.state, SinkState::CatchingUp);
        assert_eq!(status.last_error.as_deref(), Some("a round of work is not done after 5 seconds"));
    });
}

#[test]
fn stopping_waits_two_seconds_for_a_round_and_flushes_what_is_left() {
    test(async || {
        let stage = Stage::set([Act::Connect, Act::RoundHangs]);
        stage.until("the round that hangs", |stage| stage.scripted.rounds() == 1).await;
        let told = Instant::now();
        stage.stop.send_replace(true);
        stage.driver.await.expect("the driver ends");
        assert!(told.elapsed() <= Duration::from_millis(2_100), "{:?}", told.elapsed());

        let more = Round { more: true, ..IDLE };
        let stage = Stage::set([Act::Connect, Act::Round(IDLE), Act::Round(more), Act::Round(more), Act::Round(IDLE)]);
        stage.until("the first round", |stage| stage.scripted.rounds() == 1).await;
        stage.stop.send_replace(true);
        let scripted = stage.scripted.clone();
        stage.driver.await.expect("the driver ends");
        assert!(scripted.rounds() >= 4, "{:?}", scripted.seen.borrow());
    });
}

#[test]
fn stopping_does_not_wait_for_a_pause() {
    test(async || {
        let stage = Stage::set(vec![Act::ConnectFails(FailureClass::Misconfigured); 3]);
        stage.until("the halt", |stage| stage.status().state == SinkState::Halted).await;
        let told = Instant::now();
        stage.stop.send_replace(true);
        stage.driver.await.expect("the driver ends");
        assert!(told.elapsed() < Duration::from_millis(50));
    });
}
