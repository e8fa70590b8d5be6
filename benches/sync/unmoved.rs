//! Central down, local unmoved: two sidecars of the same making, one of which is to replicate to servers that are
//! stopped, stalled, or refuse its passwords. They take turns, and whoever has not its turn is held.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use rustix::process::Signal;

use crate::common::central::{Central, register, sink};
use crate::common::sidecar::{Home, Setup, Sidecar, wait_for};
use crate::load::{self, Outcome};
use crate::report::{Bound, Report, agent_id, median};

const AGENTS: usize = 100;
const CONNECTIONS: usize = 32;
const PAIRS: u64 = 5;
/// What the servers have, and the sidecar has not.
const PASSWORD: &str = "another-one";

pub fn run(quick: bool, report: &mut Report) {
    let time = if quick { Duration::from_secs(1) } else { Duration::from_secs(4) };
    for outage in [Outage::Stopped, Outage::Stalled, Outage::Refusing] {
        let mut central = Central::start();
        outage.begin(&mut central);
        let homes = [Home::new(), Home::new()];
        let with = start(&outage.setup(&central, &homes[0]));
        let without = start(&homes[1].setup());
        wait_for("both sinks to notice", || {
            ["redis", "postgres"].iter().all(|name| !sink(&with, name)["last_error"].is_null()).then_some(())
        });
        without.signal(Signal::STOP);
        let (mut rates, mut tails) = (Vec::new(), Vec::new());
        for pair in 0..=PAIRS {
            let with_first = pair % 2 == 0;
            let first = measure(if with_first { [&with, &without] } else { [&without, &with] }, time, pair);
            let [with, without] = if with_first { first } else { [first[1], first[0]] };
            // The first pair warms both up.
            if pair > 0 {
                let word = outage.word();
                eprintln!(
                    "{word}: {:.0} per s, p99 {:?}; without sync {:.0} per s, p99 {:?}",
                    with.per_second, with.p99, without.per_second, without.p99
                );
                rates.push(with.per_second / without.per_second);
                tails.push(with.p99.as_secs_f64() / without.p99.as_secs_f64());
            }
        }
        without.signal(Signal::CONT);
        outage.end(&central);
        let word = outage.word();
        report.ratio(format!("writes, both sinks {word} / without sync"), median(rates), Bound::AtLeast(0.95));
        report.ratio(format!("p99 of a write, both sinks {word} / without sync"), median(tails), Bound::AtMost(1.25));
    }
}

/// One after the other, in this order.
fn measure(sidecars: [&Sidecar; 2], time: Duration, pair: u64) -> [Outcome; 2] {
    sidecars.map(|sidecar| {
        sidecar.signal(Signal::CONT);
        let outcome = load::record(sidecar.address, CONNECTIONS, AGENTS, time, pair);
        sidecar.signal(Signal::STOP);
        outcome
    })
}

fn start(setup: &Setup) -> Sidecar {
    let sidecar = setup.start();
    let mut client = sidecar.client();
    for number in 0..AGENTS {
        register(&mut client, agent_id(number).as_str(), "capability-01");
    }
    sidecar
}

/// How the central systems are away.
#[derive(Debug, Clone, Copy)]
enum Outage {
    /// Nobody listens.
    Stopped,
    /// Connections are taken, and nobody answers.
    Stalled,
    /// The passwords are wrong.
    Refusing,
}

impl Outage {
    fn word(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Stalled => "stalled",
            Self::Refusing => "refusing the password",
        }
    }

    fn begin(self, central: &mut Central) {
        match self {
            Self::Stopped => {
                central.redis.kill();
                central.postgres.stop();
            }
            Self::Stalled => {
                central.redis.pause();
                central.postgres.freeze();
            }
            Self::Refusing => {
                central.redis.command::<()>(&["CONFIG", "SET", "requirepass", PASSWORD]);
                let role = format!("CREATE ROLE somebody LOGIN PASSWORD '{PASSWORD}'");
                central.postgres.sql("postgres", &role);
            }
        }
    }

    fn end(self, central: &Central) {
        if matches!(self, Self::Stalled) {
            central.redis.resume();
            central.postgres.thaw();
        }
    }

    fn setup(self, central: &Central, home: &Home) -> Setup {
        match self {
            Self::Stopped | Self::Stalled => central.setup(home),
            Self::Refusing => {
                // A password belongs into a file that nobody else reads.
                let file = |name: &str, url: String| {
                    let path = home.path().join(name);
                    fs::write(&path, url).expect("it is our own directory");
                    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("it is our own file");
                    path.to_str().expect("a temporary directory has a plain name").to_owned()
                };
                let redis = file("redis", central.redis.url_with(":wrong@"));
                let postgres = file("postgres", central.postgres.url("market").replace("postgres@", "somebody:wrong@"));
                home.setup().flags(&["--redis-url-file", &redis, "--postgres-url-file", &postgres])
            }
        }
    }
}
