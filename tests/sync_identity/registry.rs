//! A Redis that is emptied, replaced or failed over to an older replica.

use serde_json::{Value, json};

use super::common::central::{register, wait_until_central};
use super::common::http::Request;
use super::common::proxy::Link;
use super::common::redis::RedisServer;
use super::common::sidecar::{Sidecar, wait_for};
use super::market::{Market, Parties, told};

/// What a sidecar shows of an agent: the state of its lease, and its name; nothing if it is gone.
fn shown(sidecar: &Sidecar, agent_id: &str) -> Option<(String, String)> {
    let answer = sidecar.client().get(format!("/v1/agents/{agent_id}"));
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let profile = (answer.status == 200).then(|| answer.json())?;
    Some((text(&profile["lease"]["state"]), text(&profile["name"])))
}

#[track_caller]
fn waits_for(sidecar: &Sidecar, agent_id: &str, state: &str) {
    let mut last = None;
    let what = format!("{agent_id} to be {state}");
    wait_for(&what, || {
        last = shown(sidecar, agent_id);
        assert!(last.is_some(), "{agent_id} is gone");
        last.as_ref().is_some_and(|(shown, _)| shown == state).then_some(())
    });
}

/// Everything that Redis knows of agents, but for how long it lives.
fn contents(redis: &RedisServer) -> Vec<(String, Value)> {
    let mut keys: Vec<String> = redis.command(&["KEYS", "agent*"]);
    keys.extend(redis.command::<Vec<String>>(&["KEYS", "tradepost:version:*"]));
    keys.sort();
    let read = |key: String| {
        let value = if key.starts_with("agents:") {
            let mut members: Vec<String> = redis.command(&["SMEMBERS", &key]);
            members.sort();
            json!(members)
        } else {
            // It may have gone since it was listed.
            json!(redis.command::<Option<String>>(&["GET", &key]))
        };
        (key, value)
    };
    keys.into_iter().map(read).collect()
}

/// Two sidecars that know each other's agent, and the deletion of a third.
fn two_parties(market: &Market) -> Parties {
    let parties = market.parties();
    register(&mut parties.payer.client(), "deleted", "planning");
    wait_for("the agent at the provider", || shown(&parties.provider, "deleted"));
    parties.payer.client().call(&Request::new("DELETE", "/v1/agents/deleted")).expect(204);
    wait_for("the deletion", || shown(&parties.provider, "deleted").is_none().then_some(()));
    waits_for(&parties.payer, "thon", "live");
    waits_for(&parties.provider, "genesis", "live");
    parties
}

/// Waits until Redis holds what it held, and both sidecars say what happened.
#[track_caller]
fn heals(redis: &RedisServer, parties: &Parties, before: &[(String, Value)]) {
    wait_for("Redis to hold all of it again", || (contents(redis) == before).then_some(()));
    for (sidecar, remote) in [(&parties.payer, "thon"), (&parties.provider, "genesis")] {
        waits_for(sidecar, remote, "live");
        wait_for("the fault to be told", || told(sidecar, "redis", "Redis was emptied or replaced"));
        wait_for("it to be logged", || sidecar.log().contains("Redis was emptied or replaced").then_some(()));
        wait_until_central(sidecar);
    }
    // What is written afterwards gets through.
    register(&mut parties.provider.client(), "later", "sql");
    wait_for("the agent at the payer", || shown(&parties.payer, "later"));
}

#[test]
fn an_emptied_redis_is_filled_again_by_nodes_that_do_nothing_else() {
    let market = Market::open();
    let parties = two_parties(&market);
    let before = contents(&market.redis);
    market.redis.flush_all();
    heals(&market.redis, &parties, &before);
    parties.end();
}

#[test]
fn another_server_at_the_same_address_is_filled() {
    let market = Market::open();
    let parties = two_parties(&market);
    let before = contents(&market.redis);
    let other = RedisServer::start();
    market.to_redis.set(Link::Cut);
    for (sidecar, remote) in [(&parties.payer, "thon"), (&parties.provider, "genesis")] {
        waits_for(sidecar, remote, "stale");
        let found = sidecar.client().get("/v1/discovery/search?capability=sql").expect(200).json();
        assert_eq!(found["items"][0]["agent_id"], "thon", "it stays discoverable: {found}");
    }
    market.to_redis.aim(other.port());
    market.to_redis.set(Link::Up);
    heals(&other, &parties, &before);
    parties.end();
}

#[test]
fn whoever_is_not_there_to_fill_it_is_stale_and_not_gone() {
    let market = Market::open();
    let Parties { payer_home, provider_home, payer, provider, .. } = two_parties(&market);
    provider.kill();
    market.redis.flush_all();
    waits_for(&payer, "thon", "stale");
    wait_for("its own agent", || market.document("genesis"));
    assert!(market.document("thon").is_none(), "only its own node may tell of it");
    waits_for(&payer, "thon", "stale");
    let provider = market.setup(&provider_home).start();
    waits_for(&payer, "thon", "live");
    let parties = Parties { payer_home, provider_home, payer, provider, all: Vec::new() };
    parties.end();
}

#[test]
fn an_older_replica_that_takes_over_brings_nothing_back() {
    let mut market = Market::open();
    let replica = RedisServer::start();
    let parties = market.parties();
    register(&mut parties.provider.client(), "deleted", "sql");
    wait_for("the agent at the payer", || shown(&parties.payer, "deleted"));
    replica.follow(&market.redis);
    wait_for("the replica to have it", || replica.command::<Option<String>>(&["GET", "agent:deleted"]));
    // From here on it lags.
    replica.promote();
    parties.provider.client().call(&Request::new("DELETE", "/v1/agents/deleted")).expect(204);
    let patch = Request::new("PATCH", "/v1/agents/thon").json(&json!({"name": "renamed", "capabilities": ["python"]}));
    parties.provider.client().call(&patch).expect(200);
    register(&mut parties.payer.client(), "new", "planning");
    wait_for("all of it elsewhere", || {
        let is_renamed = shown(&parties.payer, "thon").is_some_and(|(_, name)| name == "renamed");
        let there =
            is_renamed && shown(&parties.payer, "deleted").is_none() && shown(&parties.provider, "new").is_some();
        there.then_some(())
    });
    let before = contents(&market.redis);
    market.redis.kill();
    market.to_redis.aim(replica.port());
    wait_for("the replica to hold all of it", || {
        for (sidecar, remote) in [(&parties.payer, "thon"), (&parties.provider, "new")] {
            assert!(shown(sidecar, remote).is_some(), "{remote} is gone");
        }
        (contents(&replica) == before).then_some(())
    });
    for (sidecar, remote) in [(&parties.payer, "thon"), (&parties.provider, "new")] {
        waits_for(sidecar, remote, "live");
        assert_eq!(shown(sidecar, "deleted"), None);
    }
    assert_eq!(shown(&parties.payer, "thon"), Some(("live".to_owned(), "renamed".to_owned())));
    parties.end();
}
