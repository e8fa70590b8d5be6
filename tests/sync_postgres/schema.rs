//! The tables: printed, created once by many at once, by hand for a role that may create nothing, and widened.

use std::process::Output;
use std::thread;

use super::common::postgres::{PASSWORD, Postgres, psql};
use super::common::sidecar::tradepost;

/// Runs `tradepost central`, with the URL where it may hold a password.
fn central(words: &[&str], url: &str) -> Output {
    tradepost().arg("central").args(words).env("TRADEPOST_POSTGRES_URL", url).output().expect("the binary runs")
}

#[track_caller]
fn done(output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    out.into_owned()
}

#[track_caller]
fn refused(output: Output, code: i32) -> String {
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{err}");
    assert!(!err.contains(PASSWORD), "{err}");
    err
}

/// What the catalog says of our tables: columns with their types, and indexes with their columns.
fn shape(server: &Postgres, database: &str) -> String {
    server.sql(
        database,
        "SELECT c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull
           FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
          WHERE c.relkind = 'r' AND c.relname LIKE 'marketplace%'
         UNION ALL
         SELECT 'index', 0, indexdef, '', true FROM pg_indexes WHERE tablename LIKE 'marketplace%' ORDER BY 1, 2, 3",
    )
}

const SEED_TABLE: &str = "CREATE TABLE marketplace_transactions (
    transaction_id VARCHAR(32) PRIMARY KEY, created_at TIMESTAMP NOT NULL, payer_agent VARCHAR(255) NOT NULL,
    provider_agent VARCHAR(255) NOT NULL, capability VARCHAR(255) NOT NULL, amount DECIMAL(10,2) NOT NULL,
    currency VARCHAR(10) NOT NULL, status VARCHAR(20) NOT NULL, context JSONB, evidence JSONB)";

#[test]
fn the_printed_script_and_the_migration_make_the_same_tables() {
    let server = Postgres::start();
    let (by_hand, by_us) = (server.database("by_hand"), server.database("by_us"));
    let script = done(tradepost().args(["central", "schema"]).output().expect("it runs"));
    psql(&by_hand, &script).expect("the script is sound");
    let words = done(central(&["migrate", "--postgres-url", &by_us], ""));
    assert!(
        words.contains("created marketplace_transactions\n") && words.contains("created idx_event_node"),
        "{words}"
    );
    assert_eq!(shape(&server, "by_hand"), shape(&server, "by_us"));
    assert_eq!(shape(&server, "by_us").lines().filter(|line| line.starts_with("index")).count(), 12);

    assert_eq!(done(central(&["schema"], &by_us)), "-- nothing is missing\n");
    assert_eq!(done(central(&["migrate"], &by_us)), "nothing had to be done\n");
    assert_eq!(done(central(&["migrate", "--json"], &by_us)), "{\"created\":[],\"widened\":false}\n");
}

#[test]
fn an_older_table_is_left_as_it_is_until_somebody_asks_to_widen_it() {
    let server = Postgres::start();
    let url = server.database("market");
    // The name of an index is taken by another table; an index over the payer exists under another name.
    server.sql("market", SEED_TABLE);
    server.sql("market", "CREATE INDEX by_payer ON marketplace_transactions (payer_agent, created_at)");
    server.sql("market", "CREATE TABLE other (status TEXT); CREATE INDEX idx_status ON other (status)");
    server.sql(
        "market",
        "INSERT INTO marketplace_transactions VALUES ('t1', now(), 'a', 'b', 'c', 12.34, 'USD', 'pending')",
    );

    let missing = done(central(&["schema"], &url));
    assert!(!missing.contains("idx_payer") && missing.contains("idx_provider"), "{missing}");
    assert!(!missing.contains("CREATE TABLE marketplace_transactions "), "{missing}");
    assert!(server.sql("market", "SELECT to_regclass('marketplace_nodes') IS NULL") == "t", "printing changes nothing");

    let words = done(central(&["migrate"], &url));
    assert!(words.contains("NUMERIC(28,9)") && words.contains("created idx_status"), "{words}");
    assert_eq!(server.sql("market", "SELECT amount FROM marketplace_transactions"), "12.340000000");
    assert_eq!(done(central(&["schema"], &url)), "-- nothing is missing\n");
}

#[test]
fn a_role_without_the_right_to_create_needs_it_only_where_a_table_is_missing() {
    let server = Postgres::start();
    server.role("app");
    server.database("market");
    let url = server.url_of("app", "market");
    let words = refused(central(&["migrate"], &url), 1);
    assert!(words.contains("marketplace_transactions is missing") && words.contains("central schema"), "{words}");

    let script = done(tradepost().args(["central", "schema"]).output().expect("it runs"));
    server.sql("market", &script);
    server.sql("market", "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO app");
    server.sql("market", "DROP INDEX idx_created_at");
    assert_eq!(done(central(&["migrate"], &url)), "nothing had to be done\n", "an index less is slow, not wrong");
}

#[test]
fn many_that_create_at_once_do_not_get_in_each_others_way() {
    let server = Postgres::start();
    let url = server.database("market");
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| done(central(&["migrate"], &url)));
        }
    });
    assert_eq!(done(central(&["schema"], &url)), "-- nothing is missing\n");
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

#[test]
fn a_flag_that_holds_a_password_is_refused_and_so_is_no_url_at_all() {
    let typed = format!("postgres://app:{PASSWORD}@127.0.0.1/market");
    for command in ["schema", "migrate"] {
        let words = refused(central(&[command, "--postgres-url", &typed], ""), 78);
        assert!(words.contains("TRADEPOST_POSTGRES_URL"), "{words}");
        refused(central(&[command], "postgres://app@h/db?sslmode=sometimes"), 78);
    }
    refused(central(&["migrate"], ""), 64);
    refused(central(&["migrate"], &format!("postgres://app:{PASSWORD}@127.0.0.1:1/market")), 69);
}
