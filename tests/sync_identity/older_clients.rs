//! Clients that know nothing of us beside real sidecars: what they write is seen, what we write they can read.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::common::central::{Decision, decide, record, register, view, wait_until_ready};
use super::common::http::Request;
use super::common::sidecar::{Home, wait_for};
use super::market::Market;

/// The table as the older client makes it.
const TABLE: &str = "CREATE TABLE marketplace_transactions (
    transaction_id VARCHAR(32) PRIMARY KEY, created_at TIMESTAMP NOT NULL, payer_agent VARCHAR(255) NOT NULL,
    provider_agent VARCHAR(255) NOT NULL, capability VARCHAR(255) NOT NULL, amount DECIMAL(10,2) NOT NULL,
    currency VARCHAR(10) NOT NULL, status VARCHAR(20) NOT NULL, context JSONB, evidence JSONB);
CREATE INDEX idx_payer ON marketplace_transactions (payer_agent);
CREATE INDEX idx_provider ON marketplace_transactions (provider_agent);
CREATE INDEX idx_status ON marketplace_transactions (status);
CREATE INDEX idx_created_at ON marketplace_transactions (created_at)";

/// The names and types of the table's columns, in their order.
const COLUMNS: &str = "SELECT column_name, data_type, numeric_precision, numeric_scale FROM information_schema.columns
    WHERE table_name = 'marketplace_transactions' ORDER BY ordinal_position";

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// Reads a profile as strictly as a client does that hands these members on as keyword arguments.
#[track_caller]
fn parses_strictly(document: &Value) {
    assert_eq!(
        keys(document),
        ["agent_id", "availability", "capabilities", "metadata", "name", "pricing", "reputation", "tradepost"]
    );
    assert_eq!(keys(&document["pricing"]), ["billing_notes", "cost_per_task", "currency"]);
    assert_eq!(keys(&document["availability"]), ["capacity_per_hour", "last_updated", "status"]);
    assert_eq!(keys(&document["reputation"]), ["failed_tasks", "score", "successful_tasks", "total_feedback"]);
    assert!(document["pricing"]["cost_per_task"].is_number() && document["reputation"]["score"].is_number());
    assert!(document["metadata"].is_object());
    let capabilities: Vec<&str> = document["capabilities"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|name| name.as_str().expect("a text"))
        .collect();
    assert!(capabilities.is_sorted(), "{capabilities:?}");
    let updated = document["availability"]["last_updated"].as_str().expect("a text");
    let shape: String = updated.chars().map(|sign| if sign.is_ascii_digit() { '9' } else { sign }).collect();
    assert!(shape.starts_with("9999-99-99T99:99:99"), "{updated}");
}

#[test]
fn older_clients_and_sidecars_trade_over_the_older_tables_and_documents() {
    let market = Market::open();
    market.sql(TABLE);
    let columns = market.sql(COLUMNS);
    market.sql(
        "INSERT INTO marketplace_transactions VALUES
         ('old order #1', '2024-01-02 03:04:05', 'legacy agent', 'thon', 'Python', 18.50, 'USD', 'pending',
          '{\"a\": 1.0}', '[]'),
         ('old order #2', '2024-01-02 03:04:06', 'legacy agent', 'thon', 'Python', 0.07, 'USD', 'disputed', NULL,
          '[\"late\"]')",
    );
    let status_of = |id: &str| {
        market.sql(&format!("SELECT status, evidence FROM marketplace_transactions WHERE transaction_id = '{id}'"))
    };
    let older = |status: &str| {
        let profile = json!({
            "agent_id": "legacy", "name": "Legacy", "capabilities": ["python"],
            "pricing": {"cost_per_task": 18.5, "currency": "USD", "billing_notes": null},
            "availability": {"status": status, "capacity_per_hour": 30, "last_updated": "2026-01-01T00:00:00"},
            "reputation": {"score": 4.5, "total_feedback": 1, "successful_tasks": 1, "failed_tasks": 0},
            "metadata": {},
        });
        market.redis.command::<()>(&["SET", "agent:legacy", &profile.to_string(), "EX", "600"]);
        market.redis.command::<()>(&["SADD", "agents:all", "legacy"]);
        market.redis.command::<()>(&["SADD", "agents:capabilities:python", "legacy"]);
    };
    older("online");

    let home = Home::new();
    let sidecar = market.setup(&home).flags(&["--legacy-writers"]).start();
    let mut client = sidecar.client();
    register(&mut client, "thon", "sql");
    let found = wait_for("the older client's agent", || {
        let found = client.get("/v1/discovery/search?capability=python").expect(200).json();
        found["items"].get(0).cloned()
    });
    assert_eq!((&found["agent_id"], &found["pricing"]["cost_per_task"]), (&json!("legacy"), &json!("18.5")));
    let one = wait_for("its transaction", || view(&mut client, "old%20order%20%231"));
    assert_eq!((&one["amount"], &one["payer_agent"]), (&json!("18.5"), &json!("legacy agent")));
    let two = wait_for("the other", || view(&mut client, "old%20order%20%232"));
    assert_eq!(
        (&two["status"], &two["evidence"], &two["amount"]),
        (&json!("disputed"), &json!(["late"]), &json!("0.07"))
    );
    assert_eq!(market.sql(COLUMNS), columns, "its table is left as it is");

    // What a sidecar decides lands in the row; what the older client does to the row later lands in the sidecar.
    assert_eq!(decide(&mut client, "old%20order%20%231", &Decision::Settle), 200);
    wait_for("the row to be settled", || (status_of("old order #1") == "settled|[]").then_some(()));
    record(&mut client, "ours", "thon", "legacy");
    wait_for("our row", || (status_of("ours") == "pending|[]").then_some(()));
    let fine = json!({
        "transaction_id": "fine", "payer_agent": "thon", "provider_agent": "legacy", "capability": "python",
        "amount": "0.001",
    });
    client.post("/v1/transactions", &fine).expect(201);
    wait_for("what the column cannot hold to be set aside", || {
        let parked = client.get("/v1/sync/postgres/parked");
        (parked.status == 200 && parked.text().contains("inexact_amount")).then_some(())
    });
    assert_eq!(status_of("fine"), "", "it is not rounded");

    market.sql("UPDATE marketplace_transactions SET status = 'settled' WHERE transaction_id = 'ours'");
    market.sql(
        "UPDATE marketplace_transactions SET status = 'disputed', evidence = '[\"broken\"]'
          WHERE transaction_id = 'old order #1'",
    );
    market.sql(
        "INSERT INTO marketplace_transactions VALUES
         ('old order #3', now(), 'legacy agent', 'thon', 'Python', 1.00, 'USD', 'pending', '{}', '[]')",
    );
    older("busy");
    // They are looked for once a minute.
    let deadline = Instant::now() + Duration::from_secs(90);
    let mut is_all_seen = || {
        let ours = view(&mut client, "ours")?;
        let one = view(&mut client, "old%20order%20%231")?;
        let agent = client.get("/v1/agents/legacy").expect(200).json();
        let is_seen = ours["status"] == "settled"
            && one["status"] == "disputed"
            && one["evidence"] == json!(["broken"])
            && agent["availability"]["status"] == "busy";
        view(&mut client, "old%20order%20%233").filter(|_| is_seen)
    };
    while is_all_seen().is_none() {
        assert!(Instant::now() < deadline, "what the older client did is not seen");
        std::thread::sleep(Duration::from_millis(200));
    }

    // What we write, as such a client reads it.
    parses_strictly(&market.document("thon").expect("it lives"));
    assert_eq!(market.sql(COLUMNS), columns);
    let row: Value = serde_json::from_str(
        &market.sql("SELECT row_to_json(t) FROM marketplace_transactions t WHERE transaction_id = 'ours'"),
    )
    .expect("JSON");
    assert_eq!(
        keys(&row),
        [
            "amount",
            "capability",
            "context",
            "created_at",
            "currency",
            "evidence",
            "payer_agent",
            "provider_agent",
            "status",
            "transaction_id"
        ]
    );
    assert_eq!(row["amount"].to_string(), "2.50");
    assert_eq!((&row["currency"], &row["status"]), (&json!("USD"), &json!("settled")));
    assert_eq!((&row["context"], &row["evidence"]), (&json!({"n": 1}), &json!([])));
    client.call(&Request::new("DELETE", "/v1/agents/thon")).expect(204);
    wait_for("the deletion", || market.document("thon").is_none().then_some(()));
    let listed: Vec<String> = market.redis.command(&["SMEMBERS", "agents:all"]);
    assert_eq!(listed, ["legacy"], "an older client lists no agent that is gone");
    wait_until_ready(&sidecar);
    sidecar.stop();
    home.assert_sound();
}
