//! `cargo bench --bench sync`: what replication costs and how fast it is, on real servers.
//!
//! - `unmoved`: writes over HTTP while neither central system can be reached, against a sidecar that has none.
//! - `lag`: from an acknowledged write to its being seen in PostgreSQL, and by another node.
//! - `backlog`: a long time offline, drained: memory, speed against `COPY` and against the bare push script.
//! - `poison`: the same while one transaction in a hundred is refused.
//! - `many`: a fleet that returns after an outage, and what it asks when it is idle.
//! - `offline`: a month of heartbeats and changes without a link.
//!
//! An argument picks one part; `TRADEPOST_BENCH_QUICK=1` makes a short run. The servers are those of the tests.

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../common/mod.rs"]
mod report;

#[path = "../../tests/sync_scale/days.rs"]
mod days;
#[path = "../../tests/sync_scale/fleet.rs"]
mod fleet;
#[path = "../../tests/sync_scale/node.rs"]
mod node;

mod agents;
mod backlog;
mod lag;
mod load;
mod many;
mod poison;
mod unmoved;

use std::process::ExitCode;

use report::{Bound, Report};

/// One part of the bench: whether it is to be quick, and where it reports to.
type Part = fn(bool, &mut Report);

fn main() -> ExitCode {
    if !report::is_bench_run() {
        return ExitCode::SUCCESS;
    }
    let quick = report::is_quick();
    let mut report = Report::default();
    let parts: [(&str, Part); 6] = [
        ("unmoved", unmoved::run),
        ("lag", lag::run),
        ("backlog", backlog::run),
        ("poison", poison::run),
        ("many", many::run),
        ("offline", offline),
    ];
    for (name, part) in parts {
        if report::is_wanted(name) {
            eprintln!("{name}:");
            part(quick, &mut report);
        }
    }
    report.finish()
}

fn offline(quick: bool, report: &mut Report) {
    let days = if quick { 5 } else { 30 };
    let home = tempfile::tempdir().expect("there is room for a temporary directory");
    let growth = days::offline(&home.path().join("tradepost.redb"), days);
    eprintln!("{days} days offline: from {} bytes to {}, {} changes wait", growth.before, growth.after, growth.backlog);
    let what = format!("size of the file after {days} days offline / before");
    report.ratio(what, growth.after as f64 / growth.before as f64, Bound::AtMost(1.1));
}
