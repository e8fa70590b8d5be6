//! A data directory that is not the only one of its node: a copy beside the original, and an old backup in its place.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::common::central::{Decision, decide, record, register, view, wait_until_central};
use super::common::http::Request;
use super::common::sidecar::{Home, Sidecar, wait_for};
use super::market::{Market, agree, told};

fn copy_directory(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("it is a basic program");
    assert!(copied.success(), "{} to {}", from.display(), to.display());
}

fn node_id(sidecar: &Sidecar) -> String {
    sidecar.client().get("/v1/status").expect(200).json()["node_id"].as_str().expect("it has one").to_owned()
}

/// The node that owns an agent, as a sidecar shows it.
fn owner(sidecar: &Sidecar, agent_id: &str) -> Option<String> {
    let answer = sidecar.client().get(format!("/v1/agents/{agent_id}"));
    let profile: Value = (answer.status == 200).then(|| answer.json())?;
    profile["origin"]["node_id"].as_str().map(ToOwned::to_owned)
}

/// No event of central is there twice under different ids, none is missing of those that the sidecars show, and each
/// transaction has one row.
#[track_caller]
fn holds_exactly(market: &Market, sidecars: &[&Sidecar], ids: &[String]) {
    agree(sidecars, ids);
    let mut expected = Vec::new();
    for id in ids {
        let events = sidecars[0].client().get(format!("/v1/transactions/{id}/events")).expect(200).json();
        let events = events["items"].as_array().expect("a list").clone();
        expected.extend(events.iter().map(|event| event["event_id"].as_str().expect("an id").to_owned()));
    }
    expected.sort();
    let events =
        market.sql("SELECT event_id FROM marketplace_transaction_events ORDER BY event_id::text COLLATE \"C\"");
    assert_eq!(events.lines().collect::<Vec<_>>(), expected);
    let mut rows: Vec<_> = ids.to_vec();
    rows.sort();
    let held = market.sql("SELECT transaction_id FROM marketplace_transactions ORDER BY transaction_id COLLATE \"C\"");
    assert_eq!(held.lines().collect::<Vec<_>>(), rows);
    for id in ids {
        let shown = view(&mut sidecars[0].client(), id).expect("it was just seen");
        let row = market.sql(&format!(
            "SELECT status, amount = 2.5, evidence FROM marketplace_transactions WHERE transaction_id = '{id}'"
        ));
        let evidence = serde_json::to_string(&shown["evidence"]).expect("JSON").replace("\",\"", "\", \"");
        assert_eq!(row, format!("{}|t|{evidence}", shown["status"].as_str().expect("a status")));
    }
}

#[track_caller]
fn has_become_another(sidecar: &Sidecar, before: &str) -> String {
    let now = wait_for("a new id", || Some(node_id(sidecar)).filter(|now| now != before));
    let is_told =
        || told(sidecar, "postgres", "this file is a copy").or_else(|| told(sidecar, "redis", "went on as a new node"));
    wait_for("it to be told", is_told);
    wait_for("it to be logged", || sidecar.log().contains(&now).then_some(()));
    now
}

#[test]
fn of_two_files_that_go_on_beside_each_other_one_becomes_another_node() {
    let market = Market::open();
    let mut parties = market.parties();
    parties.trade("before");
    let mut ids = parties.all.clone();
    let copy_home = Home::new();
    parties.provider.stop();
    copy_directory(&parties.provider_home.data(), &copy_home.data());
    let files = [&parties.provider_home, &copy_home].map(|home| market.setup(home).start());
    let id = node_id(&files[0]);
    assert_eq!(node_id(&files[1]), id, "nothing tells them apart yet");
    for file in &files {
        wait_until_central(file);
    }

    // Both go on to the same sequence number.
    for (file, name) in files.iter().zip(["at-one", "at-other"]) {
        record(&mut file.client(), name, "genesis", "thon");
        ids.push(name.to_owned());
    }
    assert_eq!(decide(&mut files[0].client(), "before-Nothing", &Decision::Settle), 200);
    assert_eq!(decide(&mut files[1].client(), "before-Nothing", &Decision::Cancel), 200);
    wait_for("one of them to become another node", || (node_id(&files[0]) != node_id(&files[1])).then_some(()));
    let stray = usize::from(node_id(&files[0]) == id);
    let new_id = has_become_another(&files[stray], &id);
    assert_eq!(node_id(&files[1 - stray]), id, "only one of them");
    for file in &files {
        wait_until_central(file);
    }
    holds_exactly(&market, &[&parties.payer, &files[0], &files[1]], &ids);
    let contested = view(&mut parties.payer.client(), "before-Nothing").expect("it is held");
    assert_eq!(contested["status"], "disputed", "both decisions count");
    assert_eq!(owner(&parties.payer, "thon").as_ref(), Some(&id), "a stray copy takes no agent");

    // Its agent speaks up where the copy runs: then it lives there.
    files[stray].client().post_nothing("/v1/agents/thon/heartbeat").expect(200);
    for sidecar in [&parties.payer, &files[1 - stray], &files[stray]] {
        wait_for("the agent to move", || (owner(sidecar, "thon").as_ref() == Some(&new_id)).then_some(()));
    }
    wait_for("the old host to tell of it", || told(&files[1 - stray], "redis", "registered anew"));
    for file in files {
        file.stop();
    }
    copy_home.assert_sound();
    parties.payer.stop();
    parties.payer_home.assert_sound();
    parties.provider_home.assert_sound();
}

#[test]
fn a_copy_started_after_the_original_went_on_notices_by_itself() {
    let market = Market::open();
    let mut parties = market.parties();
    parties.trade("before");
    let copy_home = Home::new();
    parties.provider.stop();
    copy_directory(&parties.provider_home.data(), &copy_home.data());
    parties.provider = market.setup(&parties.provider_home).start();
    parties.trade("meanwhile");
    let patch = Request::new("PATCH", "/v1/agents/thon").json(&json!({"name": "of the original"}));
    parties.provider.client().call(&patch).expect(200);
    register(&mut parties.provider.client(), "newer", "sql");
    wait_until_central(&parties.provider);
    let before = market.picture();

    let copy = market.setup(&copy_home).start();
    let id = node_id(&parties.provider);
    has_become_another(&copy, &id);
    wait_until_central(&copy);
    assert_eq!(market.picture(), before, "a copy adds nothing");
    holds_exactly(&market, &[&parties.payer, &parties.provider, &copy], &parties.all.clone());
    for agent_id in ["thon", "newer"] {
        for sidecar in [&parties.payer, &parties.provider, &copy] {
            wait_for("the agent of the original", || (owner(sidecar, agent_id).as_ref() == Some(&id)).then_some(()));
        }
    }
    assert_eq!(copy.client().get("/v1/agents/thon").expect(200).json()["name"], "of the original");
    assert_eq!(node_id(&parties.provider), id);
    copy.stop();
    copy_home.assert_sound();
    parties.end();
}

#[test]
fn an_old_backup_in_place_of_the_newer_file_learns_what_it_had_sent() {
    let market = Market::open();
    let mut parties = market.parties();
    parties.trade("before");
    let backup = Home::new();
    parties.provider.stop();
    copy_directory(&parties.provider_home.data(), &backup.data());
    parties.provider = market.setup(&parties.provider_home).start();
    parties.trade("meanwhile");
    let patch = Request::new("PATCH", "/v1/agents/thon").json(&json!({"name": "of late"}));
    parties.provider.client().call(&patch).expect(200);
    wait_until_central(&parties.provider);
    let id = node_id(&parties.provider);
    let before = market.picture();
    parties.provider.kill();

    std::fs::remove_dir_all(parties.provider_home.data()).expect("it is ours");
    copy_directory(&backup.data(), &parties.provider_home.data());
    parties.provider = market.setup(&parties.provider_home).start();
    let new_id = has_become_another(&parties.provider, &id);
    wait_until_central(&parties.provider);
    holds_exactly(&market, &[&parties.payer, &parties.provider], &parties.all.clone());
    assert_eq!(market.picture(), before, "nothing is lost or doubled");
    assert_eq!(owner(&parties.payer, "thon"), Some(id), "nobody has asked for it yet");
    parties.provider.client().post_nothing("/v1/agents/thon/heartbeat").expect(200);
    wait_for("the agent to live here again", || {
        (owner(&parties.payer, "thon").as_ref() == Some(&new_id)).then_some(())
    });
    parties.trade("after");
    parties.end();
}
