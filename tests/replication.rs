//! Sidecars around a real Redis and a real PostgreSQL: two parties, apart and together, and with the centre gone.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::central::{Central, Decision, decide, record, register, sink, view, wait_until_central, wait_until_ready};
use common::http::Request;
use common::sidecar::{Home, Sidecar, wait_for};
use serde_json::{Value, json};

/// A sidecar for the payer and one for the provider, each with its agent.
fn two_parties(central: &Central) -> (Home, Home, Sidecar, Sidecar) {
    let (payer_home, provider_home) = (Home::new(), Home::new());
    let payer = central.setup(&payer_home).start();
    let provider = central.setup(&provider_home).start();
    register(&mut payer.client(), "genesis", "planning");
    register(&mut provider.client(), "thon", "sql");
    (payer_home, provider_home, payer, provider)
}

/// Waits until both sidecars show the same of a transaction, PostgreSQL's row agrees, and `holds`.
#[track_caller]
fn wait_for_agreement(central: &Central, sidecars: [&Sidecar; 2], id: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let mut last = Vec::new();
    let mut ask = || {
        let mut views: Vec<_> = sidecars.iter().map(|sidecar| view(&mut sidecar.client(), id)).collect();
        last = views.clone();
        let one = views.pop()??;
        let other = views.pop()??;
        let agreed =
            one == other && one["finality"] == "central" && central.row_status(id) == one["status"].as_str()?;
        (agreed && holds(&one)).then_some(one)
    };
    let deadline = std::time::Instant::now() + common::sidecar::PATIENCE;
    while std::time::Instant::now() < deadline {
        if let Some(agreed) = ask() {
            return agreed;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let statuses = sidecars.map(|sidecar| sidecar.client().get("/v1/status").json()["sinks"].clone());
    panic!("no agreement about {id}: {last:#?}\nrow: {}\n{statuses:#?}", central.row_status(id));
}

#[test]
fn two_parties_trade_across_two_sidecars() {
    let central = Central::start();
    let (payer_home, provider_home, payer, provider) = two_parties(&central);
    let (mut at_payer, mut at_provider) = (payer.client(), provider.client());

    let found = wait_for("the provider's agent at the payer", || {
        let found = at_payer.get("/v1/discovery/search?capability=sql").expect(200).json();
        found["items"].as_array().filter(|items| !items.is_empty()).map(|items| items[0].clone())
    });
    assert_eq!(found["agent_id"], "thon");
    assert_eq!(found["origin"]["local"], false);
    assert_eq!(found["pricing"]["cost_per_task"], "2.5");
    assert_eq!(found["lease"]["state"], "live");

    record(&mut at_payer, "order-1", "genesis", "thon");
    wait_for("the transaction at the provider", || view(&mut at_provider, "order-1"));
    assert_eq!(decide(&mut at_provider, "order-1", &Decision::Settle), 200);
    wait_for_agreement(&central, [&payer, &provider], "order-1", |shown| shown["status"] == "settled");

    let dispute = json!({"reason": "half is missing", "evidence": ["sha256:9f86d081", "see the log"]});
    at_payer.post("/v1/transactions/order-1/dispute", &dispute).expect(200);
    let agreed = wait_for_agreement(&central, [&payer, &provider], "order-1", |shown| shown["status"] == "disputed");
    assert_eq!(agreed["evidence"], json!(["sha256:9f86d081", "see the log"]));
    let row = central.sql(
        "SELECT status, amount, currency, evidence, context FROM marketplace_transactions WHERE transaction_id = 'order-1'",
    );
    assert_eq!(row, "disputed|2.500000000|USD|[\"sha256:9f86d081\", \"see the log\"]|{\"n\": 1}");
    let events = [&payer, &provider].map(|sidecar| sidecar.client().get("/v1/transactions/order-1/events").json());
    assert_eq!(events[0], events[1], "the history is the same on both sides");
    for (agent, side) in [("genesis", "paid"), ("thon", "earned")] {
        for sidecar in [&payer, &provider] {
            let balance = sidecar.client().get(format!("/v1/agents/{agent}/balance")).expect(200).json();
            assert_eq!(balance["USD"][side]["disputed"], "2.5", "{balance}");
            assert_eq!(balance["USD"][side]["settled"], "0", "{balance}");
        }
    }

    at_payer.post("/v1/agents/thon/outcomes", &json!({"success": true, "weight": 2.0})).expect(200);
    wait_for("the outcome at the provider", || {
        let profile = at_provider.get("/v1/agents/thon").expect(200).json();
        (profile["reputation"]["total_feedback"] == 1).then(|| assert_eq!(profile["reputation"]["score"], 2.0))
    });

    wait_until_central(&payer);
    payer.stop();
    provider.stop();
    payer_home.assert_sound();
    provider_home.assert_sound();
}

#[test]
fn whatever_two_parties_decide_while_apart_is_joined_when_they_meet() {
    let mut central = Central::start();
    let (payer_home, provider_home, payer, provider) = two_parties(&central);
    let (mut at_payer, mut at_provider) = (payer.client(), provider.client());
    let pairs: Vec<(String, Decision, Decision)> = Decision::ALL
        .into_iter()
        .flat_map(|one| Decision::ALL.map(|other| (one, other)))
        .map(|(one, other)| (format!("{one:?}-{other:?}"), one, other))
        .collect();
    for (id, ..) in &pairs {
        record(&mut at_payer, id, "genesis", "thon");
    }
    for (id, ..) in &pairs {
        wait_for("the transaction at the provider", || view(&mut at_provider, id));
    }
    central.postgres.stop();
    central.redis.kill();

    for (id, at_one, at_other) in &pairs {
        for (client, decision) in [(&mut at_payer, at_one), (&mut at_provider, at_other)] {
            if *decision != Decision::Nothing {
                assert_eq!(decide(client, id, decision), 200, "{id}");
            }
        }
    }
    for sidecar in [&payer, &provider] {
        wait_for("the fault and what waits to show", || {
            let fails = ["redis", "postgres"].iter().all(|name| sink(sidecar, name)["last_error"].is_string());
            (fails && sink(sidecar, "postgres")["backlog"].as_u64() > Some(0)).then_some(())
        });
    }

    central.postgres.launch();
    central.redis.start_again();
    for (id, one, other) in &pairs {
        let expected = match (one, other) {
            (Decision::Nothing, Decision::Nothing) => "pending",
            (Decision::Dispute, _) | (_, Decision::Dispute) => "disputed",
            (Decision::Settle, Decision::Cancel) | (Decision::Cancel, Decision::Settle) => "disputed",
            (Decision::Settle, _) | (_, Decision::Settle) => "settled",
            (Decision::Cancel, _) | (_, Decision::Cancel) => "cancelled",
        };
        let disputes = [one, other].into_iter().filter(|decision| **decision == Decision::Dispute).count();
        let agreed = wait_for_agreement(&central, [&payer, &provider], id, |shown| {
            shown["status"] == expected && shown["evidence"].as_array().map(Vec::len) == Some(disputes)
        });
        assert_eq!(agreed["evidence"], json!(vec!["sha256:1"; disputes]), "{id}");
    }
    payer.stop();
    provider.stop();
    payer_home.assert_sound();
    provider_home.assert_sound();
}

#[test]
fn with_both_sinks_down_frozen_or_refusing_every_call_works() {
    let mut central = Central::start();
    let home = Home::new();
    let sidecar = central.setup(&home).start();
    let mut client = sidecar.client();
    let mut trade = |round: &str| {
        let agent = format!("agent-{round}");
        register(&mut client, &agent, "sql");
        client
            .call(&Request::new("PATCH", format!("/v1/agents/{agent}")).json(&json!({"cost_per_task": "3"})))
            .expect(200);
        client.post_nothing(format!("/v1/agents/{agent}/heartbeat")).expect(200);
        client.post(format!("/v1/agents/{agent}/outcomes"), &json!({"success": true})).expect(200);
        let id = format!("tx-{round}");
        record(&mut client, &id, "someone", &agent);
        assert_eq!(decide(&mut client, &id, &Decision::Settle), 200);
        assert_eq!(decide(&mut client, &id, &Decision::Dispute), 200);
        client.post(format!("/v1/transactions/{id}/resolve"), &json!({"outcome": "cancelled"})).expect(200);
        client.get("/v1/discovery/search?capability=sql").expect(200);
        client.get("/v1/discovery/least-loaded?capability=sql").expect(200);
        client.get("/v1/transactions?agent=someone").expect(200);
        client.get("/readyz").expect(200);
        client.get("/metrics").expect(200);
        let events = client.get(format!("/v1/transactions/{id}/events")).expect(200).json();
        assert_eq!(events["items"].as_array().map(Vec::len), Some(4));
    };
    trade("live");
    wait_until_central(&sidecar);
    wait_until_ready(&sidecar);

    central.postgres.freeze();
    central.redis.pause();
    trade("frozen");
    wait_for("the fault to show", || {
        ["redis", "postgres"].iter().all(|name| sink(&sidecar, name)["last_error"].is_string()).then_some(())
    });
    sidecar.client().get("/readyz?sync=1").expect(503);
    central.postgres.thaw();
    central.redis.resume();
    wait_until_central(&sidecar);

    central.postgres.stop();
    central.redis.kill();
    trade("stopped");
    central.postgres.launch();
    central.redis.start_again();
    wait_until_central(&sidecar);
    wait_until_ready(&sidecar);
    for round in ["live", "frozen", "stopped"] {
        assert_eq!(central.row_status(&format!("tx-{round}")), "cancelled");
    }
    sidecar.stop();
    home.assert_sound();
}

#[test]
fn a_wrong_password_halts_both_sinks_by_name_and_a_reread_file_heals_them() {
    const WRONG: &str = "not-the-password";
    let central = Central::start();
    central.postgres.role("node");
    central.sql("GRANT CREATE, USAGE ON SCHEMA public TO node");
    central.redis.set_user("node", &["on", ">right-password", "~*", "&*", "+@all"]);
    let home = Home::new();
    let right = [
        ("redis", central.redis.url_with("node:right-password@")),
        ("postgres", central.postgres.url_of("node", "market")),
    ];
    let files = right.each_ref().map(|(name, _)| home.path().join(name));
    let write = |urls: [String; 2]| {
        for (file, url) in files.iter().zip(urls) {
            fs::write(file, url).expect("a temporary directory takes a file");
            fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("it is our own");
        }
    };
    let wrong = right.each_ref().map(|(_, url)| {
        let (before, after) = url.split_once('@').expect("it has credentials");
        let (user, _) = before.rsplit_once(':').expect("it has a password");
        format!("{user}:{WRONG}@{after}")
    });
    write(wrong);
    let [redis, postgres] = files.each_ref().map(|file| file.to_str().expect("an ASCII path"));
    let sidecar = home.setup().flags(&["--redis-url-file", redis, "--postgres-url-file", postgres]).start();
    register(&mut sidecar.client(), "thon", "sql");
    for name in ["redis", "postgres"] {
        wait_for("the halt", || (sink(&sidecar, name)["state"] == "halted").then_some(()));
    }
    let shown = [
        sidecar.client().get("/v1/status").text().to_owned(),
        sidecar.client().get("/metrics").text().to_owned(),
        sidecar.client().get("/readyz?sync=1").expect(503).text().to_owned(),
        fs::read_to_string(format!("/proc/{}/cmdline", sidecar.pid().as_raw_nonzero())).expect("our own process"),
    ];
    write(right.map(|(_, url)| url));
    sidecar.signal(rustix::process::Signal::HUP);
    wait_until_central(&sidecar);
    let log = sidecar.log();
    for text in shown.iter().chain([&log]) {
        assert!(!text.contains(WRONG) && !text.contains("right-password"), "a secret is shown: {text}");
    }
    sidecar.stop();
}

/// The marked blocks of the operations page.
fn operations_page(mark: &str) -> Vec<String> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let page = fs::read_to_string(path).expect("the page");
    let blocks = page.split("```").skip(1).step_by(2);
    let found: Vec<String> = blocks.filter_map(|block| block.strip_prefix(mark)).map(str::to_owned).collect();
    assert!(!found.is_empty(), "{mark}");
    found
}

#[test]
fn a_password_that_is_asked_for_and_not_there_halts_the_sink() {
    let central = Central::start();
    central.postgres.role("node");
    let home = Home::new();
    let url = central.postgres.url("market").replacen("postgres@", "node@", 1);
    let sidecar = home.setup().flags(&["--postgres-url", &url]).start();
    let halted = wait_for("the halt", || Some(sink(&sidecar, "postgres")).filter(|sink| sink["state"] == "halted"));
    assert!(halted["last_error"].as_str().is_some_and(|error| error.contains("password missing")), "{halted}");
    assert_eq!(sink(&sidecar, "redis")["state"], "off");
    sidecar.stop();
}

#[test]
fn the_rights_that_the_operations_page_grants_are_enough_and_no_more_than_that() {
    let central = Central::start();
    let made = common::sidecar::tradepost()
        .args(["central", "migrate", "--postgres-url", &central.postgres.url("market")])
        .output()
        .expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for grants in operations_page("sql grants") {
        central.sql(&grants);
    }
    let [acl] = <[String; 1]>::try_from(operations_page("text acl")).expect("one block");
    let acl = acl.replace("\\\n", " ").replace("PASSWORD", "s3cret");
    central.redis.command::<()>(&acl.split_whitespace().collect::<Vec<_>>());

    for role in ["sidecar", "finance"] {
        central.sql(&format!("ALTER ROLE {role} PASSWORD '{}'", common::postgres::PASSWORD));
    }
    let redis = central.redis.url_with("sidecar:s3cret@");
    let as_role = |role: &str| central.postgres.url_of(role, "market");

    let homes = [Home::new(), Home::new()];
    let [payer, provider] = homes.each_ref().map(|home| {
        let [redis, postgres] = [("redis", &redis), ("postgres", &as_role("sidecar"))].map(|(name, url)| {
            let file = home.path().join(name);
            fs::write(&file, url).expect("a temporary directory takes a file");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("it is our own");
            file.to_str().expect("an ASCII path").to_owned()
        });
        home.setup().flags(&["--redis-url-file", &redis, "--postgres-url-file", &postgres]).start()
    });
    register(&mut payer.client(), "genesis", "planning");
    register(&mut provider.client(), "thon", "sql");
    record(&mut payer.client(), "order-1", "genesis", "thon");
    for sidecar in [&payer, &provider] {
        wait_until_central(sidecar);
    }
    wait_for("the transaction at the provider", || view(&mut provider.client(), "order-1"));
    assert_eq!(decide(&mut provider.client(), "order-1", &Decision::Dispute), 200);
    wait_for_agreement(&central, [&payer, &provider], "order-1", |shown| shown["status"] == "disputed");
    payer.client().post("/v1/agents/thon/outcomes", &json!({"success": false})).expect(200);
    wait_for("the outcome at the provider", || {
        let profile = provider.client().get("/v1/agents/thon").expect(200).json();
        (profile["reputation"]["failed_tasks"] == 1).then_some(())
    });
    provider.client().call(&Request::new("DELETE", "/v1/agents/thon")).expect(204);
    wait_for("the deletion at the payer", || (payer.client().get("/v1/agents/thon").status == 404).then_some(()));
    for sidecar in [&payer, &provider] {
        wait_until_central(sidecar);
    }

    for question in operations_page("sql finance") {
        let answer = common::postgres::psql(&as_role("finance"), &question).expect("finance may ask");
        assert!(answer.contains("order-1"), "{answer}");
    }
    for (role, refused) in [
        ("sidecar", "DELETE FROM marketplace_transaction_events"),
        ("sidecar", "UPDATE marketplace_transaction_events SET kind = 'settled'"),
        ("sidecar", "DELETE FROM marketplace_transactions"),
        ("finance", "UPDATE marketplace_transactions SET status = 'settled'"),
    ] {
        let error = common::postgres::psql(&as_role(role), refused).expect_err(refused);
        assert!(error.contains("permission denied"), "{error}");
    }
}
