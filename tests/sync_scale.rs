//! Many nodes, and many days: small versions of what `cargo bench --bench sync` measures.

mod common;

#[path = "sync_scale/days.rs"]
mod days;
#[path = "sync_scale/fleet.rs"]
mod fleet;
#[path = "sync_scale/node.rs"]
mod node;

use std::time::Duration;

use common::central::{Central, wait_until_central};
use common::http::Request;
use common::sidecar::Home;
use fleet::Fleet;
use node::Urls;

#[test]
fn nodes_that_return_together_get_everything_in_without_a_deadlock() {
    let mut central = Central::start();
    let urls = Urls { redis: Some(central.redis.url()), postgres: Some(central.postgres.url("market")) };
    central.redis.kill();
    central.postgres.stop();
    let fleet = Fleet::offline(12, 40, &urls);
    central.redis.start_again();
    central.postgres.resume();
    fleet.settle(Duration::from_secs(60)).unwrap_or_else(|| panic!("{} nodes are not settled", fleet.unsettled()));

    let count = |table: &str| central.sql(&format!("SELECT count(*) FROM {table}"));
    assert_eq!(count("marketplace_transactions"), fleet.transactions().to_string());
    assert_eq!(count("marketplace_transaction_events"), fleet.events().to_string());
    assert!(!central.postgres.log().contains("deadlock detected"), "{}", central.postgres.log());
    assert_eq!(central.redis.command::<usize>(&["SCARD", "agents:all"]), fleet.nodes.len());
}

#[test]
fn days_offline_leave_one_change_an_agent_and_the_file_as_large_as_it_was() {
    let home = tempfile::tempdir().expect("there is room");
    let growth = days::offline(&home.path().join("tradepost.redb"), 2);
    assert_eq!(growth.backlog, days::AGENTS as u64, "a later change takes the place of an earlier one");
    assert!(growth.after <= growth.before + growth.before / 10, "{growth:?}");
}

/// A number of eight characters has sixteen thousand digits in JSONB, and so a context a hundred MiB as text.
#[test]
fn a_context_that_is_immense_in_postgresql_costs_a_sidecar_nothing() {
    let central = Central::start();
    let home = Home::new();
    let sidecar = central.setup(&home).start();
    let mut client = sidecar.client();
    let numbers = vec!["1e-16383"; 7_000].join(",");
    for number in 0..5 {
        let body = format!(
            r#"{{"transaction_id":"t{number}","payer_agent":"a","provider_agent":"b","capability":"c","amount":"1",
                "context":{{"x":[{numbers}]}}}}"#
        );
        client.call(&Request::new("POST", "/v1/transactions").text("application/json", body)).expect(201);
    }
    wait_until_central(&sidecar);
    for number in 0..5 {
        client.call(&Request::new("POST", format!("/v1/transactions/t{number}/settle"))).expect(200);
    }
    wait_until_central(&sidecar);
    assert!(sidecar.peak_mib() < 200, "{} MiB", sidecar.peak_mib());
    sidecar.stop();
}
