//! One transaction in a hundred that a constraint refuses: how fast the others drain.

use crate::backlog::{Drain, write_offline};
use crate::common::central::sink;
use crate::common::postgres::Postgres;
use crate::common::sidecar::{Home, wait_for};
use crate::report::{Bound, Report};

/// Of the amounts that are recorded, one in a hundred ends so.
const REFUSED: &str = "CHECK ((amount * 100000)::bigint % 1000 <> 371)";

pub fn run(quick: bool, report: &mut Report) {
    let events = if quick { 40_000 } else { 200_000 };
    let mut ratios: Vec<f64> = (0..if quick { 1 } else { 3 })
        .map(|_| {
            let [sound, poisoned] = [None, Some(REFUSED)].map(|constraint| rate(events, constraint));
            poisoned / sound
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let ratio = ratios[ratios.len() / 2];
    report.ratio("rate of draining while 1 % is refused / while nothing is", ratio, Bound::AtLeast(0.6));
}

/// Events a second, those that are set aside among them.
fn rate(events: usize, constraint: Option<&str>) -> f64 {
    let home = Home::new();
    write_offline(&home, events);
    let postgres = Postgres::start_with(&["max_wal_size=4GB", "shared_buffers=128MB"]);
    let url = postgres.database("market");
    let mut schema = crate::common::sidecar::tradepost();
    let schema = schema.args(["central", "migrate", "--postgres-url", &url]).output().expect("the binary runs");
    assert!(schema.status.success(), "{}", String::from_utf8_lossy(&schema.stderr));
    if let Some(constraint) = constraint {
        postgres.sql("market", &format!("ALTER TABLE marketplace_transactions ADD {constraint}"));
    }
    let sidecar = home.setup().flags(&["--postgres-url", &url]).start();
    let drain = Drain::watch(&sidecar, events as u64);
    let expected = if constraint.is_some() { events / 100 } else { 0 };
    let parked = wait_for("the count of what is parked", || sink(&sidecar, "postgres")["parked"].as_u64());
    assert_eq!(parked, expected as u64, "events of one transaction in a hundred");
    let rate = drain.rate(0.0, 1.0);
    eprintln!("{events} events drained at {rate:.0} per s, {parked} of them set aside");
    sidecar.stop();
    rate
}
