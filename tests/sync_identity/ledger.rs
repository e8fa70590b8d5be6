//! A PostgreSQL that is put back to an older state, replaced, emptied or failed over.

use std::time::Duration;

use super::common::central::{record, register, sink, view, wait_until_central};
use super::common::postgres::Postgres;
use super::common::proxy::{Link, Proxy};
use super::common::sidecar::{Home, Sidecar, wait_for};
use super::market::Market;

#[test]
fn a_server_put_back_to_a_base_backup_is_filled_up_again() {
    let mut market = Market::open();
    let mut parties = market.parties();
    parties.trade("early");
    let backup = market.postgres.base_backup();
    parties.trade("late");
    parties.heal(&mut market, "late-Dispute", "PostgreSQL", |market| {
        market.postgres.stop();
        market.postgres.put_back(&backup);
        market.postgres.resume();
    });
    parties.end();
}

#[test]
fn a_new_cluster_made_of_a_dump_is_read_and_filled_from_the_beginning() {
    let mut market = Market::open();
    let mut parties = market.parties();
    parties.trade("early");
    let dump = market.postgres.dump("market");
    parties.trade("late");
    let new = Postgres::start();
    new.restore(&dump, "market");
    parties.heal(&mut market, "early-Settle", "PostgreSQL is not the one that this node knew", |market| {
        market.to_postgres.aim(new.port());
        market.to_postgres.set(Link::Cut);
        market.to_postgres.set(Link::Slow(Duration::from_millis(20)));
    });
    parties.end();
}

#[test]
fn emptied_tables_are_filled_again() {
    let mut market = Market::open();
    let mut parties = market.parties();
    parties.trade("early");
    parties.trade("late");
    parties.heal(&mut market, "early-Cancel", "PostgreSQL is not the one that this node knew", |market| {
        market.sql("TRUNCATE marketplace_transactions, marketplace_transaction_events, marketplace_nodes");
    });
    parties.end();
}

#[test]
fn a_standby_that_lagged_behind_when_it_took_over_is_filled_up() {
    let mut market = Market::open();
    let mut parties = market.parties();
    let to_primary = Proxy::before(market.postgres.port());
    let standby = market.postgres.standby_through(to_primary.port());
    parties.trade("early");
    let count = "SELECT count(*) FROM marketplace_transaction_events";
    let all = market.sql(count);
    wait_for("the standby to have it", || standby.try_sql("market", count).ok().filter(|there| *there == all));
    to_primary.set(Link::Cut);
    parties.trade("late");
    let mut standby = Some(standby);
    parties.heal(&mut market, "late-Settle", "PostgreSQL is not the one that this node knew", |market| {
        let standby = standby.take().expect("it takes over once");
        market.postgres.crash();
        market.to_postgres.aim(standby.port());
        standby.promote();
        market.postgres = standby;
    });
    parties.end();
}

/// The transaction that comes next will have this number.
fn next_number(server: &Postgres) -> u64 {
    let taken: u64 = server.sql("postgres", "SELECT pg_current_xact_id()").parse().expect("a number");
    taken + 1
}

/// Takes numbers until this one comes next, or a later one if others take some too.
fn take_numbers_until(server: &Postgres, next: u64) {
    let count = next.saturating_sub(next_number(server));
    let many = format!("DO $$BEGIN FOR i IN 1..{count} LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END$$");
    server.sql("postgres", &many);
}

/// Waits until a sidecar that is busy has looked into PostgreSQL several times.
fn looks_again(sidecar: &Sidecar) {
    for _ in 0..3 {
        let before = sink(sidecar, "postgres")["last_success_at"].clone();
        wait_for("a look at PostgreSQL", || {
            let now = sink(sidecar, "postgres");
            (now["state"] == "live" && now["last_success_at"] != before).then_some(())
        });
    }
}

#[test]
fn a_node_that_only_listens_skips_nothing_that_takes_the_numbers_of_what_was_lost() {
    let mut market = Market::open();
    let (payer_home, provider_home) = (Home::new(), Home::new());
    let payer = market.setup_through(&payer_home, market.postgres.port()).start();
    let provider = market.setup(&provider_home).start();
    register(&mut payer.client(), "genesis", "planning");
    register(&mut provider.client(), "thon", "sql");
    record(&mut payer.client(), "seen", "genesis", "thon");
    wait_for("the transaction at the provider", || view(&mut provider.client(), "seen"));
    wait_until_central(&payer);
    market.postgres.stop();
    let copy = market.postgres.cold_copy();
    market.postgres.resume();
    wait_until_central(&provider);

    // What others do with the database takes more numbers than are read again after a restart, and the listener sees it.
    let passed = next_number(&market.postgres) + 12_000;
    take_numbers_until(&market.postgres, passed);
    looks_again(&provider);

    market.to_postgres.set(Link::Cut);
    market.postgres.stop();
    market.postgres.put_back(&copy);
    market.postgres.resume();
    record(&mut payer.client(), "in-their-place", "genesis", "thon");
    wait_until_central(&payer);
    let number = "SELECT max(xid::text::bigint) FROM marketplace_transaction_events";
    let number: u64 = market.postgres.sql("market", number).parse().expect("a number");
    assert!(number < passed, "the number was another's before: {number}");
    take_numbers_until(&market.postgres, passed + 10);
    market.to_postgres.set(Link::Up);
    wait_for("the transaction at the provider", || view(&mut provider.client(), "in-their-place"));
}

#[test]
fn an_event_that_comes_again_under_its_old_number_hides_nothing_before_it() {
    let mut market = Market::open();
    let homes = [Home::new(), Home::new(), Home::new()];
    let to_author = Proxy::before(market.postgres.port());
    let author = market.setup_through(&homes[0], to_author.port()).start();
    let other = market.setup_through(&homes[1], market.postgres.port()).start();
    let listener = market.setup(&homes[2]).start();
    register(&mut author.client(), "genesis", "planning");
    register(&mut other.client(), "mira", "planning");
    register(&mut listener.client(), "thon", "sql");
    for (sidecar, id, payer) in [(&author, "first", "genesis"), (&other, "second", "mira")] {
        record(&mut sidecar.client(), id, payer, "thon");
        wait_for("the transaction at the listener", || view(&mut listener.client(), id));
        wait_until_central(sidecar);
    }
    market.postgres.stop();
    let copy = market.postgres.cold_copy();
    market.postgres.resume();
    for sidecar in [&author, &other, &listener] {
        wait_until_central(sidecar);
    }
    let before = next_number(&market.postgres);
    take_numbers_until(&market.postgres, before + 100);
    record(&mut author.client(), "lost", "genesis", "thon");
    wait_for("the transaction at the listener", || view(&mut listener.client(), "lost"));
    wait_until_central(&author);
    looks_again(&listener);
    let event = "FROM marketplace_transaction_events WHERE transaction_id = 'lost'";
    let lost: u64 = market.sql(&format!("SELECT xid {event}")).parse().expect("a number");
    let event = market.sql(&format!("SELECT row_to_json(marketplace_transaction_events) {event}"));
    let row = "SELECT row_to_json(t) FROM marketplace_transactions t WHERE transaction_id = 'lost'";
    let row = market.sql(row);

    for link in [&market.to_postgres, &to_author] {
        link.set(Link::Cut);
    }
    market.postgres.stop();
    market.postgres.put_back(&copy);
    market.postgres.resume();
    record(&mut other.client(), "in-its-place", "mira", "thon");
    wait_until_central(&other);
    // As its author would offer it again, could the test choose the number.
    take_numbers_until(&market.postgres, lost + 1);
    let columns =
        "event_id, transaction_id, payer_agent, provider_agent, recorded_by, facts, kind, round, payload, occurred_at,
                   node_id, node_seq, hash, xid";
    let again = format!(
        "INSERT INTO marketplace_transactions
         SELECT * FROM json_populate_record(NULL::marketplace_transactions, $it${row}$it$);
         INSERT INTO marketplace_transaction_events ({columns})
         SELECT {columns} FROM json_populate_record(NULL::marketplace_transaction_events, $it${event}$it$)"
    );
    market.postgres.sql("market", &again);
    market.to_postgres.set(Link::Up);
    wait_for("the transaction at the listener", || view(&mut listener.client(), "in-its-place"));
    to_author.set(Link::Up);
    wait_until_central(&author);
}
