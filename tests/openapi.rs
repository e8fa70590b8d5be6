//! `openapi.json` and the running server agree: every route and method of one is in the other, and every answer of a
//! tour over all of them is as described.

mod common;

use std::collections::BTreeSet;

use common::http::{Answer, Client, Request};
use common::routes::ROUTES;
use common::sidecar::{Home, Setup, Sidecar};
use serde_json::{Value, json};

/// The document and what the tour has seen of it.
struct Described {
    document: Value,
    /// Pattern, method, status.
    seen: BTreeSet<(String, String, u16)>,
}

impl Described {
    fn of(sidecar: &Sidecar) -> Self {
        let answer = sidecar.client().get("/openapi.json").expect(200);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        Self { document: answer.json(), seen: BTreeSet::new() }
    }

    /// Pattern and method of every operation.
    fn operations(&self) -> BTreeSet<(String, String)> {
        let paths = self.document["paths"].as_object().expect("paths");
        let methods = |item: &Value| item.as_object().expect("a path item").keys().cloned().collect::<Vec<_>>();
        paths
            .iter()
            .flat_map(|(path, item)| methods(item).into_iter().map(|method| (path.clone(), method.to_uppercase())))
            .collect()
    }

    /// Asserts that a body is what the document says of this answer.
    fn check(&mut self, pattern: &str, request: &Request, answer: &Answer) {
        let told =
            format!("{} {pattern} -> {}: {}", request.method, answer.status, String::from_utf8_lossy(&answer.body));
        let operation = &self.document["paths"][pattern][request.method.to_lowercase()];
        let response = &operation["responses"][answer.status.to_string()];
        assert!(response.is_object(), "the status is not described: {told}");
        self.seen.insert((pattern.to_owned(), request.method.clone(), answer.status));
        let Some(content) =
            response.get("content").filter(|content| content.as_object().is_some_and(|all| !all.is_empty()))
        else {
            assert!(answer.body.is_empty(), "a body is not described: {told}");
            return;
        };
        let media_type = answer.header("content-type").unwrap_or_else(|| panic!("no media type: {told}"));
        let schema = &content[media_type]["schema"];
        assert!(schema.is_object(), "{media_type} is not described: {told}");
        let bodies = match media_type {
            "application/x-ndjson" => answer.lines(),
            "application/json" | "application/problem+json" => vec![answer.json()],
            _ => vec![json!(answer.text())],
        };
        let validator = self.validator(schema);
        for body in bodies {
            if let Err(error) = validator.validate(&body) {
                panic!("{}: {error}: {told}", error.instance_path());
            }
        }
    }

    /// References lead into the document, so it is put around the schema.
    fn validator(&self, schema: &Value) -> jsonschema::Validator {
        let mut root = json!({"components": self.document["components"], "allOf": [schema]});
        root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
        jsonschema::validator_for(&root).unwrap_or_else(|error| panic!("{schema} is no schema: {error}"))
    }
}

#[test]
fn every_documented_route_exists_and_every_route_is_documented() {
    let home = Home::new();
    let sidecar = home.setup().start();
    let described = Described::of(&sidecar);
    assert_eq!(described.document["openapi"], "3.1.0");
    let known: BTreeSet<(String, String)> = ROUTES
        .iter()
        .flat_map(|route| route.methods.iter().map(|method| (route.pattern.to_owned(), (*method).to_owned())))
        .collect();
    assert_eq!(described.operations(), known);
    let mut client = sidecar.client();
    for (pattern, method) in described.operations() {
        let path = pattern.replace("{id}", "x").replace("{sink}", "redis");
        let answer = client.call(&Request::new(&method, &path));
        let is_routed = answer.status != 405
            && (answer.status < 400 || answer.json()["code"] != "not_found" || path.contains("/sync/"));
        assert!(is_routed, "{method} {pattern}: {}", answer.text());
    }
}

/// Sends a request, checks its status, and its answer against the document.
fn visit(described: &mut Described, client: &mut Client, pattern: &str, request: Request, status: u16) -> Answer {
    let answer = client.call(&request).expect(status);
    described.check(pattern, &request, &answer);
    answer
}

#[test]
fn every_answer_of_a_tour_is_as_described() {
    let home = Home::new();
    let sidecar = home.setup().start();
    let mut described = Described::of(&sidecar);
    let described = &mut described;
    let client = &mut sidecar.client();
    tour_the_registry(described, client);
    tour_the_ledger(described, client);
    tour_discovery_and_operations(described, client);

    let visited: BTreeSet<(String, String)> = described
        .seen
        .iter()
        .filter(|(_, _, status)| *status < 300)
        .map(|(pattern, method, _)| (pattern.clone(), method.clone()))
        .collect();
    let mut missed: BTreeSet<(String, String)> = described.operations().difference(&visited).cloned().collect();
    // Without a sink these can only say so.
    for what in ["retry", "resync"] {
        assert!(missed.remove(&(format!("/v1/sync/{{sink}}/{what}"), "POST".to_owned())), "{what} had a success");
    }
    assert!(missed.is_empty(), "the tour left out {missed:?}");
    check_common_problems(described, client);
}

fn tour_the_registry(described: &mut Described, client: &mut Client) {
    let (agents, one) = ("/v1/agents", "/v1/agents/{id}");
    let full = json!({"agent_id": "thon", "name": "Thon", "capabilities": ["Python", "sql"], "cost_per_task": "18.50",
        "currency": "EUR", "capacity_per_hour": 5, "availability": "busy", "billing_notes": "net 30",
        "metadata": {"deep": [{"n": 1.10}, null]}, "ttl_seconds": 60});
    let least = json!({"agent_id": "least", "name": "L", "capabilities": [], "cost_per_task": 0});
    let created = visit(described, client, agents, Request::post(agents, &full), 201);
    assert_eq!(created.header("location"), Some("/v1/agents/thon"));
    visit(described, client, agents, Request::post(agents, &least), 201);
    visit(described, client, agents, Request::post(agents, &full), 409);
    visit(described, client, agents, Request::post(agents, &json!({})), 400);
    visit(
        described,
        client,
        agents,
        Request::post(agents, &json!({"agent_id": "", "name": "", "capabilities": [], "cost_per_task": -1})),
        422,
    );
    visit(described, client, agents, Request::get("/v1/agents?sort_by=score&limit=1"), 200);
    visit(described, client, agents, Request::get("/v1/agents"), 200);
    visit(described, client, agents, Request::get("/v1/agents?limit=0"), 422);
    visit(described, client, agents, Request::get("/v1/agents?surplus"), 400);
    visit(described, client, one, Request::new("PUT", "/v1/agents/thon").json(&full), 200);
    let mut other = full.clone();
    other["agent_id"] = json!("other");
    visit(described, client, one, Request::new("PUT", "/v1/agents/other").json(&other), 201);
    visit(described, client, one, Request::new("PUT", "/v1/agents/a.b").json(&least), 404);
    let profile = visit(described, client, one, Request::get("/v1/agents/thon"), 200);
    let tag = profile.header("etag").expect("an entity tag").to_owned();
    visit(described, client, one, Request::get("/v1/agents/thon").header("If-None-Match", &tag), 304);
    visit(described, client, one, Request::get("/v1/agents/nobody"), 404);
    let patch = |body: Value| Request::new("PATCH", "/v1/agents/thon").json(&body);
    visit(
        described,
        client,
        one,
        patch(json!({"billing_notes": null, "status": "online"})).header("If-Match", tag),
        200,
    );
    visit(described, client, one, patch(json!({"name": "n"})).header("If-Match", "\"99\""), 412);
    visit(described, client, one, Request::new("PATCH", "/v1/agents/nobody").json(&json!({})), 404);
    visit(described, client, "/v1/agents/{id}/heartbeat", Request::new("POST", "/v1/agents/thon/heartbeat"), 200);
    visit(described, client, "/v1/agents/{id}/heartbeat", Request::new("POST", "/v1/agents/nobody/heartbeat"), 404);
    let outcomes = "/v1/agents/{id}/outcomes";
    visit(
        described,
        client,
        outcomes,
        Request::post("/v1/agents/thon/outcomes", &json!({"success": true, "weight": 1.234})),
        200,
    );
    visit(described, client, outcomes, Request::post("/v1/agents/nobody/outcomes", &json!({"success": true})), 404);
    let reputation = "/v1/agents/{id}/reputation";
    visit(described, client, reputation, Request::post("/v1/agents/thon/reputation", &json!({"delta": -0.1})), 200);
    visit(described, client, reputation, Request::post("/v1/agents/nobody/reputation", &json!({"delta": 1})), 404);
    visit(described, client, one, Request::new("DELETE", "/v1/agents/other"), 204);
    visit(described, client, one, Request::new("DELETE", "/v1/agents/other"), 404);
    visit(described, client, "/v1/capabilities", Request::get("/v1/capabilities"), 200);
}

fn tour_the_ledger(described: &mut Described, client: &mut Client) {
    let (all, batch) = ("/v1/transactions", "/v1/transactions/batch");
    let transaction = |id: &str, amount: &str| {
        json!({"transaction_id": id, "payer_agent": "a", "provider_agent": "thon", "capability": "python", "amount": amount,
            "currency": "EUR", "context": {"task_id": "t"}})
    };
    visit(described, client, all, Request::post(all, &transaction("t1", "1e-7")), 201);
    visit(described, client, all, Request::post(all, &transaction("t1", "0.0000001")), 200);
    visit(described, client, all, Request::post(all, &transaction("t1", "2")), 409);
    visit(described, client, all, Request::post(all, &transaction("t2", "0")), 422);
    let minted =
        json!({"payer_agent": "a", "provider_agent": "a", "capability": "c", "amount": 123456789012345678_u64});
    let keyed = Request::post(all, &minted).header("Idempotency-Key", "k");
    visit(described, client, all, keyed.clone(), 201);
    let replayed = visit(described, client, all, keyed, 201);
    assert_eq!(replayed.header("idempotent-replayed"), Some("true"));
    let lines = format!("{}\n{{\n{}\n{}\n", transaction("t2", "2"), transaction("t1", "3"), transaction("t3", "3"));
    let request = Request::new("POST", batch).text("application/x-ndjson", lines);
    visit(described, client, batch, request, 200);
    visit(described, client, batch, Request::post(batch, &json!([])), 200);
    visit(described, client, batch, Request::post(batch, &json!({})), 400);
    visit(described, client, all, Request::get("/v1/transactions?limit=2"), 200);
    visit(described, client, all, Request::get("/v1/transactions?agent=a&role=payer&status=pending&order=desc"), 200);
    visit(described, client, all, Request::get("/v1/transactions?since=x"), 422);

    let step = |id: &str, step: &str, body: &Value| Request::post(format!("/v1/transactions/{id}/{step}"), body);
    let at = |step: &str| format!("/v1/transactions/{{id}}/{step}");
    let evidence = json!({"evidence": ["e1", "e2"]});
    visit(described, client, &at("settle"), step("t1", "settle", &json!({})), 200);
    visit(described, client, &at("settle"), step("t1", "settle", &json!({})), 409);
    visit(described, client, &at("settle"), step("none", "settle", &json!({})), 404);
    visit(described, client, &at("cancel"), step("t2", "cancel", &json!({"reason": "r"})), 200);
    visit(described, client, &at("cancel"), step("t2", "cancel", &json!({})), 409);
    visit(described, client, &at("dispute"), step("t1", "dispute", &json!({"reason": "r", "evidence": ["e0"]})), 200);
    visit(described, client, &at("dispute"), step("t2", "dispute", &json!({})), 409);
    visit(described, client, &at("evidence"), step("t1", "evidence", &evidence), 200);
    visit(described, client, &at("evidence"), step("t2", "evidence", &evidence), 409);
    visit(described, client, &at("evidence"), step("t1", "evidence", &json!({"evidence": []})), 422);
    let settlement = |id: &str| Request::get(format!("/v1/transactions/{id}/settlement"));
    visit(described, client, &at("settlement"), settlement("t1"), 409);
    visit(described, client, &at("resolve"), step("t1", "resolve", &json!({"outcome": "settled", "note": "n"})), 200);
    visit(described, client, &at("resolve"), step("t1", "resolve", &json!({"outcome": "settled"})), 409);
    visit(described, client, &at("settlement"), settlement("t1"), 200);
    visit(described, client, &at("settlement"), settlement("none"), 404);
    for id in ["t1", "t2", "t3"] {
        visit(described, client, &at("events"), Request::get(format!("/v1/transactions/{id}/events")), 200);
        visit(described, client, "/v1/transactions/{id}", Request::get(format!("/v1/transactions/{id}")), 200);
    }
    visit(described, client, &at("events"), Request::get("/v1/transactions/none/events"), 404);
    visit(described, client, "/v1/transactions/{id}", Request::get("/v1/transactions/none"), 404);
    let export = "/v1/export/transactions";
    let exported = visit(described, client, export, Request::get(export), 200);
    assert_eq!(exported.lines().len(), 4);
    visit(described, client, export, Request::get("/v1/export/transactions?order=up"), 422);
    visit(described, client, "/v1/agents/{id}/balance", Request::get("/v1/agents/a/balance"), 200);
    visit(described, client, "/v1/agents/{id}/balance", Request::get("/v1/agents/nobody/balance"), 200);
}

fn tour_discovery_and_operations(described: &mut Described, client: &mut Client) {
    for (path, query, none) in [
        ("/v1/discovery/search", "?capability=python&capability=sql&max_cost=100", "?capability=nothing"),
        ("/v1/discovery/recommend", "?capability=python", "?capability=nothing"),
        ("/v1/discovery/least-loaded", "?capability=python", "?capability=nothing"),
        ("/v1/discovery/random", "?capability=python", "?capability=nothing"),
    ] {
        let found = visit(described, client, path, Request::get(format!("{path}{query}")), 200);
        assert!(found.text().contains("\"thon\""), "{path} found nobody");
        let is_list = !matches!(path, "/v1/discovery/least-loaded" | "/v1/discovery/random");
        visit(described, client, path, Request::get(format!("{path}{none}")), if is_list { 200 } else { 404 });
        visit(described, client, path, Request::get(format!("{path}?capability=%00")), 422);
    }
    visit(described, client, "/v1/discovery/random", Request::get("/v1/discovery/random"), 200);
    for path in ["/livez", "/readyz", "/metrics", "/v1/status", "/openapi.json"] {
        visit(described, client, path, Request::get(path), 200);
        visit(described, client, path, Request::get(format!("{path}?surplus=1")), 400);
    }
    visit(described, client, "/readyz", Request::get("/readyz?sync=1"), 200);
    visit(described, client, "/v1/sync/{sink}/parked", Request::get("/v1/sync/postgres/parked"), 200);
    for what in ["parked", "retry", "resync"] {
        let method = if what == "parked" { "GET" } else { "POST" };
        let request = Request::new(method, format!("/v1/sync/nosink/{what}"));
        visit(described, client, &format!("/v1/sync/{{sink}}/{what}"), request, 404);
    }
}

#[test]
fn a_body_is_described_as_required_exactly_where_it_is() {
    let sidecar = Setup::in_memory().start();
    let mut client = sidecar.client();
    let document = client.get("/openapi.json").expect(200).json();
    for route in ROUTES {
        for method in route.methods {
            let body = &document["paths"][route.pattern][method.to_ascii_lowercase()]["requestBody"];
            if body.is_null() {
                continue;
            }
            let answer = client.call(&Request::new(method, route.path));
            let is_required = answer.status == 415;
            assert_eq!(body["required"], json!(is_required), "{method} {}: {}", route.pattern, answer.text());
        }
    }
    sidecar.stop();
}

/// What every operation may answer is described for every one of them.
fn check_common_problems(described: &mut Described, client: &mut Client) {
    for route in ROUTES {
        for method in route.methods {
            let evil = Request::new(method, route.path).header("Host", "evil.example");
            visit(described, client, route.pattern, evil, 403);
            let surplus = Request::new(method, format!("{}?surplus=1", route.path)).text("application/json", "{}");
            visit(described, client, route.pattern, surplus, 400);
            if *method != "GET" && *method != "DELETE" {
                let typed = Request::new(method, route.path).text("text/plain", "{}");
                visit(described, client, route.pattern, typed, 415);
                let large = Request::new(method, route.path).text("application/json", " ".repeat((16 << 20) + 1));
                visit(described, client, route.pattern, large, 413);
            }
        }
    }
}
