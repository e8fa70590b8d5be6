//! `cargo bench --bench peers`: the same work by others, as durable, over as many connections, in the same run.
//!
//! - `record`: a durable write over HTTP, against Redis, etcd, PostgreSQL and SQLite.
//! - `engine`: batches in process, against SQLite.
//! - `floor`: one submitter in process, against redb's own commit.
//! - `directory`: looking up and searching in process, against Redis and SQLite.
//! - `requests`: look-ups and heartbeats over HTTP, against a server that answers a constant, etcd and Redis.
//! - `growth`: what the file, the memory and a start come to with many transactions.
//!
//! An argument picks one part; `TRADEPOST_BENCH_QUICK=1` makes a short run, and `TRADEPOST_BENCH_GROWTH=10000000` adds a
//! size to the last part. `--picture` draws `docs/speed.svg`. Everybody takes turns, so that a slow spell of the disk
//! meets all of them, and the middle round counts. `tests/install-servers.sh --bench` installs the servers.

#[path = "../common/mod.rs"]
mod common;
#[path = "../../tests/common/mod.rs"]
mod servers_of_tests;
#[path = "../engine/sqlite.rs"]
mod sqlite;

mod callers;
mod constant;
mod directory;
mod engine;
mod floor;
mod growth;
mod grpc;
mod picture;
mod record;
mod requests;
mod results;
mod servers;

use std::path::Path;
use std::process::ExitCode;

use results::Results;

/// One part of the bench: whether it is to be quick, and where it reports to.
type Part = fn(bool, &mut Results);

/// The parts, and whether they need the servers.
const PARTS: [(&str, Part, bool); 6] = [
    ("record", record::run, true),
    ("engine", engine::run, false),
    ("floor", floor::run, false),
    ("directory", directory::run, true),
    ("requests", requests::run, true),
    ("growth", growth::run, false),
];

fn main() -> ExitCode {
    if !common::is_bench_run() {
        return ExitCode::SUCCESS;
    }
    constant::serve_if_asked();
    let wanted = || PARTS.into_iter().filter(|(name, ..)| common::is_wanted(name));
    let missing = servers::missing();
    if wanted().any(|(.., needs_servers)| needs_servers) && !missing.is_empty() {
        let missing = missing.join(", ");
        eprintln!("needed and missing: {missing}; `tests/install-servers.sh --bench` installs what this bench needs");
        return ExitCode::FAILURE;
    }
    let mut results = Results::default();
    for (name, part, _) in wanted() {
        eprintln!("{name}:");
        part(common::is_quick(), &mut results);
    }
    let wants_picture = std::env::args().any(|argument| argument == "--picture");
    results.finish(wants_picture.then_some(Path::new("docs/speed.svg")))
}
