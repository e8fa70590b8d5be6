//! Bad input, row by row: each gets the status, code and field of the contract, and nothing of it is stored.

mod common;
#[path = "refusals/fields.rs"]
mod fields;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;

use common::http::{Answer, Client, Request};
use common::routes::ROUTES;
use common::sidecar::{Home, Setup};
use fields::field_rows;
use serde_json::{Value, json};

/// One bad request and its answer.
#[derive(Debug, Clone)]
pub struct Row {
    pub request: Request,
    pub status: u16,
    pub code: String,
    pub field: Expected,
}

/// What `field` must be.
#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    Nothing,
    Named(String),
    /// The JSON breaks off somewhere; whichever field it was reading may be named.
    Whatever,
}

pub fn row(request: Request, status: u16, code: &str, field: Expected) -> Row {
    Row { request, status, code: code.to_owned(), field }
}

/// 400, naming the culprit.
pub fn malformed(request: Request, field: &str) -> Row {
    row(request, 400, "invalid_request", Expected::Named(field.to_owned()))
}

/// 422, naming the value.
pub fn invalid(request: Request, field: &str) -> Row {
    let code = format!("invalid_{}", field.to_lowercase().replace('-', "_"));
    row(request, 422, &code, Expected::Named(field.to_owned()))
}

/// A refusal that is nobody's field's fault.
pub fn plain(request: Request, status: u16, code: &str) -> Row {
    row(request, status, code, Expected::Nothing)
}

fn problem(answer: &Answer, row: &Row) -> Value {
    let seen = || format!("{row:?}\n{:?} {}", answer.headers, answer.text());
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{}", seen());
    let problem = answer.json();
    for member in ["type", "title", "detail", "code"] {
        assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{member}: {}", seen());
    }
    assert_eq!(problem["status"].as_u64(), Some(u64::from(answer.status)), "{}", seen());
    problem
}

/// What is wrong with the answer to a row, if anything.
fn check(client: &mut Client, row: &Row) -> Result<(), String> {
    let answer = client.call(&row.request);
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    let shown = || {
        let sent = row.request.body.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        let sent: String = sent.chars().take(200).collect();
        let (target, headers): (String, _) = (row.request.target.chars().take(200).collect(), &row.request.headers);
        let headers: String = format!("{headers:?}").chars().take(300).collect();
        format!("{} {target} {headers} {sent}\n  -> {} {body}", row.request.method, answer.status)
    };
    if answer.status != row.status {
        return Err(format!("expected {} {}: {}", row.status, row.code, shown()));
    }
    let problem = problem(&answer, row);
    let field = problem.get("field").map(|field| field.as_str().expect("a field is a text").to_owned());
    let field_is_right = match &row.field {
        Expected::Nothing => field.is_none(),
        Expected::Named(name) => field.as_ref() == Some(name),
        Expected::Whatever => true,
    };
    if problem["code"] != row.code.as_str() || !field_is_right {
        return Err(format!("expected code {} and field {:?}: {}", row.code, row.field, shown()));
    }
    Ok(())
}

fn check_all(client: &mut Client, rows: &[Row]) {
    let wrong: Vec<String> = rows.iter().filter_map(|row| check(client, row).err()).collect();
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

/// The agent `thon`, the transactions `t1` (pending), `settled`, `cancelled`, `disputed`, and a used idempotency key.
fn furnish(client: &mut Client) {
    let agent = json!({"agent_id": "thon", "name": "Thon", "capabilities": ["python"], "cost_per_task": "18.5"});
    client.post("/v1/agents", &agent).expect(201);
    for (id, step) in [("t1", ""), ("settled", "settle"), ("cancelled", "cancel"), ("disputed", "dispute")] {
        let transaction = json!({"transaction_id": id, "payer_agent": "a", "provider_agent": "thon", "capability": "python", "amount": 1});
        client.post("/v1/transactions", &transaction).expect(201);
        if !step.is_empty() {
            client.post_nothing(format!("/v1/transactions/{id}/{step}")).expect(200);
        }
    }
    let request =
        Request::post("/v1/agents/thon/outcomes", &json!({"success": true})).header("Idempotency-Key", "used");
    client.call(&request).expect(200);
}

/// All that a client can see of what is stored.
fn stored(client: &mut Client) -> Vec<String> {
    let status = client.get("/v1/status").expect(200).json()["store"].clone();
    let counts = ["agents", "transactions", "events"].map(|what| status[what].to_string());
    let mut seen = vec![counts.join(" ")];
    for path in
        ["/v1/export/transactions", "/v1/agents?include_expired=true", "/v1/agents/thon", "/v1/agents/a/balance"]
    {
        seen.push(client.get(path).expect(200).text().to_owned());
    }
    seen
}

#[test]
fn every_bad_request_is_refused_precisely_and_nothing_is_stored() {
    let home = Home::new();
    let sidecar = home.setup().start();
    let mut client = sidecar.client();
    furnish(&mut client);
    let before = stored(&mut client);

    for rows in [field_rows(), body_rows(), route_rows(), query_rows(), entity_rows(), header_rows(), precedence_rows()]
    {
        check_all(&mut client, &rows);
        assert_eq!(stored(&mut client), before);
    }
    // The socket refuses alike.
    check_all(&mut sidecar.socket_client(), &body_rows());
    check_raw(&client);
    check_batch(&mut client);
    assert_eq!(stored(&mut client), before);
    sidecar.stop();
    home.assert_sound();
}

fn with(method: &str, target: &str, body: &str) -> Request {
    Request::new(method, target).text("application/json", body)
}

/// Where a body is taken, and one that would be.
const BODIES: [(&str, &str, &str); 11] = [
    ("POST", "/v1/agents", r#"{"agent_id":"new","name":"n","capabilities":[],"cost_per_task":1}"#),
    ("PUT", "/v1/agents/new", r#"{"name":"n","capabilities":[],"cost_per_task":1}"#),
    ("PATCH", "/v1/agents/thon", r#"{"name":"n"}"#),
    ("POST", "/v1/agents/thon/outcomes", r#"{"success":true}"#),
    ("POST", "/v1/agents/thon/reputation", r#"{"delta":1}"#),
    ("POST", "/v1/transactions", r#"{"payer_agent":"a","provider_agent":"b","capability":"c","amount":1}"#),
    ("POST", "/v1/transactions/t1/cancel", r#"{"reason":"r"}"#),
    ("POST", "/v1/transactions/t1/dispute", r#"{"evidence":["e"]}"#),
    ("POST", "/v1/transactions/disputed/evidence", r#"{"evidence":["e"]}"#),
    ("POST", "/v1/transactions/disputed/resolve", r#"{"outcome":"settled"}"#),
    ("POST", "/v1/transactions/batch", r#"[{"payer_agent":"a","provider_agent":"b","capability":"c","amount":1}]"#),
];

/// Where none is taken.
const BODILESS: [(&str, &str); 4] = [
    ("POST", "/v1/agents/thon/heartbeat"),
    ("POST", "/v1/transactions/t1/settle"),
    ("POST", "/v1/sync/redis/retry"),
    ("POST", "/v1/sync/redis/resync"),
];

fn body_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let bodies = BODIES.into_iter().chain(BODILESS.into_iter().map(|(method, target)| (method, target, "{}")));
    for (method, target, good) in bodies {
        let is_batch = target.ends_with("/batch");
        let request = |body: &[u8]| Request::new(method, target).text("application/json", body);
        for text in [
            "{",
            "[",
            "nul",
            "{\"a\":1,}",
            "{'a':1}",
            "{\"a\":1} {}",
            "{\"a\":01}",
            "{\"a\":\"\\ud800\"}",
            "\u{feff}{}",
            "5",
            "\"{}\"",
            "null",
            "true",
        ] {
            rows.push(row(request(text.as_bytes()), 400, "invalid_request", Expected::Whatever));
        }
        rows.push(row(request(b"{\"a\":\"\xff\"}"), 400, "invalid_request", Expected::Whatever));
        rows.push(row(request(if is_batch { b"{}" } else { b"[]" }), 400, "invalid_request", Expected::Whatever));
        rows.push(row(request("[".repeat(100_000).as_bytes()), 400, "invalid_request", Expected::Whatever));
        if !is_batch {
            let joint = if good == "{}" { "" } else { "," };
            let surplus = format!("{},\"surplus\":1}}", &good[..good.len() - 1]).replacen("{,", "{", 1);
            rows.push(malformed(request(surplus.as_bytes()), "surplus"));
            rows.push(malformed(request(format!("{{\"Name\":1{joint}{}", &good[1..]).as_bytes()), "Name"));
        }
        for content_type in
            ["text/plain", "application/jsonx", "application/x-www-form-urlencoded", "multipart/form-data", "json", ""]
        {
            rows.push(plain(Request::new(method, target).text(content_type, good), 415, "unsupported_media_type"));
        }
        if !is_batch {
            rows.push(plain(
                Request::new(method, target).text("application/x-ndjson", good),
                415,
                "unsupported_media_type",
            ));
        }
        rows.push(plain(Request::new(method, target).body(good), 415, "unsupported_media_type"));
        rows.push(plain(request(good.as_bytes()).header("Content-Encoding", "gzip"), 415, "unsupported_media_type"));
        rows.push(plain(
            request(good.as_bytes()).header("Content-Type", "application/json"),
            415,
            "unsupported_media_type",
        ));
        // Right in every way but its size.
        let limit = if is_batch { 16 << 20 } else { 1 << 20 };
        let padded = format!("{good}{}", " ".repeat(limit + 1 - good.len()));
        rows.push(plain(request(padded.as_bytes()), 413, "body_too_large"));
        rows.push(malformed(Request { target: format!("{target}?surplus=1"), ..request(good.as_bytes()) }, "surplus"));
    }
    // An empty body is none, and where one is needed that is not enough.
    for (method, target, _) in BODIES {
        let empty = Request::new(method, target).text("application/json", "");
        if !target.ends_with("/cancel") && !target.ends_with("/dispute") {
            rows.push(row(empty, 400, "invalid_request", Expected::Whatever));
            rows.push(plain(Request::new(method, target), 415, "unsupported_media_type"));
        }
    }
    rows
}

fn route_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for route in ROUTES {
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"] {
            let asked = if method == "HEAD" { "GET" } else { method };
            // The answer to HEAD has no body that could be looked at.
            if !route.methods.contains(&asked) && method != "HEAD" {
                rows.push(plain(Request::new(method, route.path), 405, "method_not_allowed"));
            }
        }
        for method in route.methods {
            rows.push(plain(Request::new(method, format!("{}/", route.path)), 404, "not_found"));
        }
    }
    for path in [
        "/",
        "/v1",
        "/v2/agents",
        "/v1/agent",
        "/v1/agents/thon/unknown",
        "/V1/agents",
        "//v1/agents",
        "/v1//agents",
        "/v1/agents/thon/outcomes/1",
        "/index.html",
        "/openapi.yaml",
    ] {
        rows.push(plain(Request::get(path), 404, "not_found"));
        rows.push(plain(Request::post(path, &json!({})), 404, "not_found"));
    }
    rows
}

#[test]
fn a_wrong_method_is_told_the_right_ones() {
    let sidecar = Setup::in_memory().start();
    let mut client = sidecar.client();
    for route in ROUTES {
        let answer = client.call(&Request::new("BREW", route.path)).expect(405);
        let allowed: BTreeSet<String> =
            answer.header("allow").expect("Allow").split(',').map(|method| method.trim().to_owned()).collect();
        let mut expected: BTreeSet<String> = route.methods.iter().map(|method| (*method).to_owned()).collect();
        if expected.contains("GET") {
            expected.insert("HEAD".to_owned());
        } else {
            client.call(&Request::new("HEAD", route.path)).expect(405);
        }
        assert_eq!(allowed, expected, "{}", route.pattern);
    }
}

/// Query parameters, each with values that break its rule.
type Parameters<'a> = Vec<(&'a str, &'a [&'a str])>;

fn query_rows() -> Vec<Row> {
    let long = "x".repeat(256);
    let long = long.as_str();
    let limits = ["", "0", "1001", "-1", "+1", "1.0", "1e1", "ten", "99999999999999999999", "%31%00"];
    let cursors = ["", "x", "AAAA", "null", "%00", "////", long];
    let capabilities = ["", "%20", "%09", "a%00b", long];
    let agents = ["", "a.b", "a%20b", long];
    let currencies = ["", "US", "usd", "US%24", "TOOLONGCURRENCY"];
    let availabilities = ["", "Online", "away"];
    let flags = ["", "1", "yes", "TRUE"];
    let times = [
        "",
        "yesterday",
        "2026-11-22",
        "2026-11-22T23:50:31",
        "2026-13-01T00:00:00Z",
        "1764000000",
        "2026-11-22T25:00:00Z",
    ];
    let money = ["", "x", "1.", ".5", "0.0000000001", "1234567890123456789", "0x1", "NaN", "1_0", "%201"];
    let scores = ["", "x", "nan", "inf", "1e999", "%201"];
    let filters: &[(&str, &[&str])] = &[
        ("agent", &agents),
        ("role", &["", "both", "Payer"]),
        ("status", &["", "open", "Pending"]),
        ("capability", &capabilities),
        ("since", &times),
        ("until", &times),
        ("order", &["", "ascending", "ASC"]),
    ];
    let paging: &[(&str, &[&str])] = &[("limit", &limits), ("cursor", &cursors)];
    let lists: [(&str, Parameters<'_>); 8] = [
        ("/v1/transactions", [filters, paging].concat()),
        ("/v1/export/transactions", filters.to_vec()),
        (
            "/v1/agents",
            [
                &[
                    ("capability", &capabilities[..]),
                    ("availability", &availabilities),
                    ("sort_by", &["", "name", "Score"]),
                    ("include_expired", &flags),
                ],
                paging,
            ]
            .concat(),
        ),
        (
            "/v1/discovery/search",
            vec![
                ("capability", &capabilities[..]),
                ("max_cost", &money),
                ("currency", &currencies),
                ("availability", &availabilities),
                ("min_score", &scores),
                ("limit", &limits),
            ],
        ),
        (
            "/v1/discovery/recommend",
            vec![("capability", &capabilities[..]), ("top_n", &limits), ("include_busy", &flags)],
        ),
        ("/v1/discovery/least-loaded", vec![("capability", &capabilities[..])]),
        ("/v1/discovery/random", vec![("capability", &capabilities[..])]),
        ("/readyz", vec![("sync", &["", "2", "yes"])]),
    ];
    let mut rows = Vec::new();
    for (path, parameters) in lists {
        let needs_capability = matches!(path, "/v1/discovery/recommend" | "/v1/discovery/least-loaded");
        let target = |parameter: &str, value: &str| {
            let side = if parameter == "role" { "agent=a&" } else { "" };
            let needed = if needs_capability && parameter != "capability" { "capability=c&" } else { "" };
            format!("{path}?{needed}{side}{parameter}={value}")
        };
        for (parameter, values) in parameters {
            for value in values {
                rows.push(invalid(Request::get(target(parameter, value)), parameter));
            }
            for value in ["%zz", "%", "%ff"] {
                rows.push(malformed(Request::get(target(parameter, value)), parameter));
            }
            if !(path == "/v1/discovery/search" && parameter == "capability") {
                let twice = format!("{}&{parameter}=x", target(parameter, "x"));
                rows.push(malformed(Request::get(twice), parameter));
            }
        }
        if needs_capability {
            rows.push(malformed(Request::get(path), "capability"));
        }
    }
    rows.push(invalid(Request::get("/v1/transactions?role=payer"), "role"));
    rows.push(invalid(Request::get("/v1/sync/redis/parked?limit=0"), "limit"));
    rows.push(invalid(Request::get("/v1/sync/redis/parked?cursor=x"), "cursor"));
    rows.push(malformed(Request::get("/v1/export/transactions?limit=1"), "limit"));
    rows.push(malformed(Request::get("/v1/export/transactions?cursor=1"), "cursor"));
    for route in ROUTES.iter().filter(|route| route.methods.contains(&"GET")) {
        // Where a capability is needed its absence would be told first.
        let needed = if matches!(route.path, "/v1/discovery/recommend" | "/v1/discovery/least-loaded") {
            "capability=c&"
        } else {
            ""
        };
        rows.push(malformed(Request::get(format!("{}?{needed}surplus=1", route.path)), "surplus"));
        rows.push(malformed(Request::get(format!("{}?{needed}Limit", route.path)), "Limit"));
    }
    rows
}

fn entity_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let transaction = |id: &str, amount: &str| json!({"transaction_id": id, "payer_agent": "a", "provider_agent": "thon", "capability": "python", "amount": amount});
    let agent = json!({"agent_id": "thon", "name": "n", "capabilities": [], "cost_per_task": 1});
    let nameless = json!({"name": "n", "capabilities": [], "cost_per_task": 1});
    let long = "x".repeat(256);
    for id in ["nobody", "a.b", "a%20b", "%C3%A9", "%ff", "%00", "a%2Fb", &long] {
        let path = format!("/v1/agents/{id}");
        let missing = |request| plain(request, 404, "agent_not_found");
        rows.push(missing(Request::get(&path)));
        rows.push(missing(Request::new("PATCH", &path).json(&json!({"name": "n"}))));
        rows.push(missing(Request::new("DELETE", &path)));
        rows.push(missing(Request::new("POST", format!("{path}/heartbeat"))));
        rows.push(missing(Request::post(format!("{path}/outcomes"), &json!({"success": true}))));
        rows.push(missing(Request::post(format!("{path}/reputation"), &json!({"delta": 1}))));
        if id != "nobody" {
            rows.push(missing(Request::new("PUT", &path).json(&nameless)));
            rows.push(missing(Request::get(format!("{path}/balance"))));
        }
    }
    for id in ["none", "a.b", "%ff", "123456789012345678901234567890123", "a%2Fb"] {
        let path = format!("/v1/transactions/{id}");
        let missing = |request| plain(request, 404, "transaction_not_found");
        for what in ["", "/events", "/settlement"] {
            rows.push(missing(Request::get(format!("{path}{what}"))));
        }
        for (step, body) in [
            ("settle", json!({})),
            ("cancel", json!({})),
            ("dispute", json!({})),
            ("evidence", json!({"evidence": ["e"]})),
            ("resolve", json!({"outcome": "settled"})),
        ] {
            rows.push(missing(Request::post(format!("{path}/{step}"), &body)));
        }
    }
    for sink in ["nosink", "Redis", "%ff"] {
        rows.push(plain(Request::get(format!("/v1/sync/{sink}/parked")), 404, "not_found"));
        rows.push(plain(Request::new("POST", format!("/v1/sync/{sink}/retry")), 404, "not_found"));
        rows.push(plain(Request::new("POST", format!("/v1/sync/{sink}/resync")), 404, "not_found"));
    }
    rows.push(plain(Request::post("/v1/agents", &agent), 409, "agent_already_registered"));
    rows.push(invalid(Request::new("PUT", "/v1/agents/other").json(&agent), "agent_id"));
    rows.push(plain(Request::post("/v1/transactions", &transaction("t1", "2")), 409, "transaction_id_conflict"));
    for (id, refused) in [
        ("t1", &["evidence", "resolve"][..]),
        ("settled", &["settle", "cancel", "evidence", "resolve"]),
        ("cancelled", &["settle", "cancel", "dispute", "evidence", "resolve"]),
        ("disputed", &["settle", "cancel", "dispute"]),
    ] {
        for step in refused {
            let body = match *step {
                "evidence" => json!({"evidence": ["e"]}),
                "resolve" => json!({"outcome": "settled"}),
                _ => json!({}),
            };
            let request = Request::post(format!("/v1/transactions/{id}/{step}"), &body);
            rows.push(plain(request, 409, "invalid_transaction_state"));
        }
    }
    for id in ["cancelled", "disputed"] {
        rows.push(plain(Request::get(format!("/v1/transactions/{id}/settlement")), 409, "invalid_transaction_state"));
    }
    rows.push(plain(Request::get("/v1/discovery/least-loaded?capability=nothing"), 404, "no_match"));
    rows.push(plain(Request::get("/v1/discovery/random?capability=nothing"), 404, "no_match"));
    rows
}

fn header_rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let patch = || Request::new("PATCH", "/v1/agents/thon").json(&json!({"name": "n"}));
    let delete = || Request::new("DELETE", "/v1/agents/thon");
    for request in [patch(), delete()] {
        for tag in ["\"2\"", "\"0\"", "W/\"1\"", "\"x\"", "\"01\"", "\"2\", \"3\""] {
            rows.push(plain(request.clone().header("If-Match", tag), 412, "revision_mismatch"));
        }
        for tag in ["1", "\"1", "", "1\"", "*, \"1\""] {
            rows.push(malformed(request.clone().header("If-Match", tag), "If-Match"));
        }
    }
    let long = "k".repeat(256);
    for (method, target, good) in BODIES {
        if method != "POST" || target.ends_with("/batch") {
            continue;
        }
        for key in ["", long.as_str(), "tab\there", "é"] {
            rows.push(invalid(with(method, target, good).header("Idempotency-Key", key), "Idempotency-Key"));
        }
        let twice = with(method, target, good).header("Idempotency-Key", "a").header("Idempotency-Key", "a");
        rows.push(malformed(twice, "Idempotency-Key"));
        let reused = with(method, target, &format!("{good} ")).header("Idempotency-Key", "used");
        rows.push(row(reused, 422, "idempotency_key_reused", Expected::Named("Idempotency-Key".to_owned())));
    }
    let heartbeat = Request::new("POST", "/v1/agents/thon/heartbeat").header("Idempotency-Key", "k");
    rows.push(malformed(heartbeat, "Idempotency-Key"));
    let batch = with("POST", "/v1/transactions/batch", "[]").header("Idempotency-Key", "k");
    rows.push(malformed(batch, "Idempotency-Key"));
    for route in ROUTES {
        for method in route.methods {
            for host in [
                "evil.example",
                "evil.example:7700",
                "localhost.evil.example",
                "10.1.2.3",
                "127.0.0.1.evil.example",
                "[::2]",
            ] {
                rows.push(plain(Request::new(method, route.path).header("Host", host), 403, "forbidden_host"));
            }
            for origin in
                ["http://evil.example", "null", "http://localhost:1", "file://", "https://127.0.0.1.evil.example"]
            {
                rows.push(plain(Request::new(method, route.path).header("Origin", origin), 403, "forbidden_origin"));
            }
            for host in ["a b", "[::1", "localhost:port", "user@localhost", "localhost/x"] {
                rows.push(malformed(Request::new(method, route.path).header("Host", host), "Host"));
            }
            let absolute = format!("http://evil.example{}", route.path);
            rows.push(plain(Request::new(method, absolute).header("Host", "localhost"), 403, "forbidden_host"));
        }
    }
    rows
}

/// Of several faults the first of 403, 404 (route), 405, 415, 413, 400, 422, 404 (entity), 412, 409 is told.
fn precedence_rows() -> Vec<Row> {
    let large = "x".repeat((1 << 20) + 1);
    let evil = |request: Request| request.header("Host", "evil.example");
    let typed = |method: &str, target: &str, body: &str| Request::new(method, target).text("text/plain", body);
    let patch = |target: &str, body: &str| with("PATCH", target, body).header("If-Match", "\"9\"");
    vec![
        plain(evil(Request::get("/nowhere")), 403, "forbidden_host"),
        plain(evil(Request::new("BREW", "/v1/agents")), 403, "forbidden_host"),
        plain(evil(typed("POST", "/v1/agents", &large)).header("Origin", "http://evil.example"), 403, "forbidden_host"),
        plain(Request::new("BREW", "/nowhere"), 404, "not_found"),
        plain(typed("PUT", "/v1/agents", &large), 405, "method_not_allowed"),
        plain(typed("POST", "/v1/agents?surplus=1", &large), 415, "unsupported_media_type"),
        plain(with("POST", "/v1/agents?surplus=1", &large), 413, "body_too_large"),
        malformed(with("PATCH", "/v1/agents/nobody?surplus=1", r#"{"cost_per_task":-1}"#), "surplus"),
        malformed(with("PATCH", "/v1/agents/nobody", r#"{"cost_per_task":-1,"surplus":1}"#), "surplus"),
        malformed(with("PATCH", "/v1/agents/nobody", r#"{"cost_per_task":-1,"name":1}"#), "name"),
        malformed(
            with("POST", "/v1/transactions", r#"{"amount":0,"payer_agent":"a","provider_agent":"b"}"#),
            "capability",
        ),
        invalid(patch("/v1/agents/nobody", r#"{"cost_per_task":-1}"#), "cost_per_task"),
        plain(patch("/v1/agents/nobody", r#"{"name":"n"}"#), 404, "agent_not_found"),
        plain(patch("/v1/agents/thon", r#"{"name":"n"}"#), 412, "revision_mismatch"),
        malformed(Request::get("/v1/transactions/none?surplus=1"), "surplus"),
        invalid(with("POST", "/v1/transactions/none/resolve", r#"{"outcome":"pending"}"#), "outcome"),
        invalid(with("POST", "/v1/transactions/cancelled/evidence", r#"{"evidence":[]}"#), "evidence"),
        plain(with("POST", "/v1/transactions/none/evidence", r#"{"evidence":["e"]}"#), 404, "transaction_not_found"),
    ]
}

/// What no client library would send.
fn check_raw(client: &Client) {
    let many: String = (0..101).map(|number| format!("X-{number}: y\r\n")).collect();
    let chunked = "Transfer-Encoding: chunked\r\nContent-Type: application/json\r\n";
    let large_chunk = format!("{:x}\r\n{}\r\n0\r\n\r\n", (1 << 20) + 1, " ".repeat((1 << 20) + 1));
    for (bytes, status, code) in [
        ("GET /v1/status HTTP/1.1\r\n\r\n".to_owned(), 400, "invalid_request"),
        ("GET /v1/status HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n".to_owned(), 400, "invalid_request"),
        (format!("GET /v1/status HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"), 431, "headers_too_large"),
        (
            format!("GET /v1/status HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "y".repeat(70_000)),
            431,
            "headers_too_large",
        ),
        (format!("POST /v1/agents HTTP/1.1\r\nHost: localhost\r\n{chunked}\r\n{large_chunk}"), 413, "body_too_large"),
        (format!("POST /v1/agents HTTP/1.1\r\nHost: localhost\r\n{chunked}\r\nzz\r\n"), 400, "invalid_request"),
    ] {
        let start: String = bytes.chars().take(80).collect();
        let answer = client.raw(bytes.as_bytes()).unwrap_or_else(|error| panic!("{start:?}: {error}"));
        assert_eq!(answer.status, status, "{start:?}: {answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{start:?}");
        assert_eq!(answer.json()["code"], code, "{start:?}");
    }
    // Nothing that could be an HTTP request: whatever the answer is, it is a refusal.
    for bytes in
        [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..], b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"]
    {
        if let Ok(answer) = client.raw(bytes) {
            assert!((400..600).contains(&answer.status), "{answer:?}");
        }
    }
}

/// A batch's bad items are their own fault; none of these is good.
fn check_batch(client: &mut Client) {
    let items: [(&str, u64, &str, Option<&str>); 10] = [
        ("5", 400, "invalid_request", None),
        ("null", 400, "invalid_request", None),
        ("[]", 400, "invalid_request", None),
        ("{}", 400, "invalid_request", Some("payer_agent")),
        (r#"{"payer_agent":"a","provider_agent":"b","capability":"c"}"#, 400, "invalid_request", Some("amount")),
        (
            r#"{"payer_agent":"a","provider_agent":"b","capability":"c","amount":true}"#,
            400,
            "invalid_request",
            Some("amount"),
        ),
        (
            r#"{"payer_agent":"a","provider_agent":"b","capability":"c","amount":1,"surplus":1}"#,
            400,
            "invalid_request",
            Some("surplus"),
        ),
        (
            r#"{"payer_agent":"a","provider_agent":"b","capability":"c","amount":0}"#,
            422,
            "invalid_amount",
            Some("amount"),
        ),
        (
            r#"{"payer_agent":"a b","provider_agent":"b","capability":"c","amount":1}"#,
            422,
            "invalid_payer_agent",
            Some("payer_agent"),
        ),
        (
            r#"{"transaction_id":"t1","payer_agent":"a","provider_agent":"b","capability":"c","amount":1}"#,
            409,
            "transaction_id_conflict",
            None,
        ),
    ];
    let texts = items.map(|(text, ..)| text);
    for (content_type, body) in
        [("application/json", format!("[{}]", texts.join(","))), ("application/x-ndjson", texts.join("\n"))]
    {
        let request = Request::new("POST", "/v1/transactions/batch").text(content_type, body);
        let answer = client.call(&request).expect(200).json();
        let results = answer["results"].as_array().expect("results");
        assert_eq!(results.len(), items.len());
        for ((text, status, code, field), result) in items.iter().zip(results) {
            assert_eq!(result["status"].as_u64(), Some(*status), "{text}: {result}");
            assert_eq!(result["problem"]["code"], *code, "{text}: {result}");
            assert_eq!(result["problem"]["field"].as_str(), *field, "{text}: {result}");
        }
    }
    let many = format!("[{}5]", "5,".repeat(10_000));
    check_all(client, &[invalid(with("POST", "/v1/transactions/batch", &many), "batch")]);
}

#[test]
fn a_cursor_serves_only_the_list_that_gave_it() {
    let sidecar = Setup::in_memory().start();
    let mut client = sidecar.client();
    for id in ["a", "b"] {
        let agent = json!({"agent_id": id, "name": "n", "capabilities": ["python"], "cost_per_task": 1});
        client.post("/v1/agents", &agent).expect(201);
        client
            .post(
                "/v1/transactions",
                &json!({"payer_agent": "a", "provider_agent": "b", "capability": "c", "amount": 1}),
            )
            .expect(201);
    }
    let mut cursor =
        |path: &str| client.get(path).expect(200).json()["next_cursor"].as_str().expect("two pages").to_owned();
    let (agents, by_score, transactions) =
        (cursor("/v1/agents?limit=1"), cursor("/v1/agents?limit=1&sort_by=score"), cursor("/v1/transactions?limit=1"));
    let foreign = [
        format!("/v1/transactions?cursor={agents}"),
        format!("/v1/agents?cursor={transactions}"),
        format!("/v1/agents?sort_by=score&cursor={agents}"),
        format!("/v1/agents?cursor={by_score}"),
        format!("/v1/agents?cursor={}", &agents[..agents.len() - 1]),
    ];
    check_all(&mut client, &foreign.map(|target| invalid(Request::get(target), "cursor")));
    for path in [format!("/v1/agents?cursor={agents}"), format!("/v1/transactions?cursor={transactions}")] {
        assert_eq!(client.get(path).expect(200).json()["items"].as_array().map(Vec::len), Some(1));
    }
}

#[test]
fn with_a_token_every_route_but_the_probes_asks_for_it_on_both_listeners() {
    let home = Home::new();
    let file = home.path().join("token");
    std::fs::write(&file, "s3cret\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let sidecar = Setup::in_memory().metrics("127.0.0.1:0").flags(&["--token-file", file.to_str().unwrap()]);
    // Waiting for readiness needs no token: it would not start otherwise.
    let sidecar = sidecar.start();
    let (mut api, mut metrics) = (sidecar.client(), sidecar.metrics_client());
    let credentials = [
        None,
        Some("Bearer wrong"),
        Some("Bearer"),
        Some("Bearer "),
        Some("s3cret"),
        Some("Basic s3cret"),
        Some("Bearer s3cret x"),
        Some("Bearer S3CRET"),
    ];
    let given = |request: Request, credential: Option<&str>| match credential {
        Some(credential) => request.header("Authorization", credential),
        None => request,
    };
    for credential in credentials {
        for route in ROUTES.iter().filter(|route| !matches!(route.path, "/livez" | "/readyz")) {
            for method in route.methods.iter().chain(&["BREW"]) {
                let request = given(Request::new(method, route.path), credential);
                check(&mut api, &plain(request.clone(), 401, "unauthorized")).unwrap();
                assert_eq!(api.call(&request).header("www-authenticate"), Some("Bearer"));
            }
        }
        check(&mut api, &plain(given(Request::get("/nowhere"), credential), 401, "unauthorized")).unwrap();
        check(&mut metrics, &plain(given(Request::get("/metrics"), credential), 401, "unauthorized")).unwrap();
        let foreign = given(Request::get("/v1/status"), credential).header("Host", "evil.example");
        check(&mut api, &plain(foreign, 403, "forbidden_host")).unwrap();
    }
    let twice = given(given(Request::get("/v1/status"), Some("Bearer s3cret")), Some("Bearer s3cret"));
    check(&mut api, &plain(twice, 401, "unauthorized")).unwrap();
    for client in [&mut api, &mut metrics] {
        client.call(&given(Request::get("/metrics"), Some("Bearer s3cret"))).expect(200);
        client.call(&given(Request::get("/metrics"), Some("bearer s3cret"))).expect(200);
    }
    api.get("/livez").expect(200);
    api.get("/readyz").expect(200);
    // The file is read again on SIGHUP, and the old token is worth nothing then.
    std::fs::write(&file, "n3w\n").unwrap();
    sidecar.signal(rustix::process::Signal::HUP);
    sidecar.log_line("the token was reread");
    api.call(&given(Request::get("/v1/status"), Some("Bearer n3w"))).expect(200);
    check(&mut api, &plain(given(Request::get("/v1/status"), Some("Bearer s3cret")), 401, "unauthorized")).unwrap();
    assert!(!sidecar.log().contains("s3cret") && !sidecar.log().contains("n3w"), "{}", sidecar.log());
}

#[test]
fn foreign_hosts_and_origins_are_kept_from_the_metrics_listener_too() {
    let sidecar = Setup::in_memory().metrics("127.0.0.1:0").start();
    let mut metrics = sidecar.metrics_client();
    let get = || Request::get("/metrics");
    check_all(
        &mut metrics,
        &[
            plain(get().header("Host", "evil.example"), 403, "forbidden_host"),
            plain(get().header("Origin", "http://evil.example"), 403, "forbidden_origin"),
            malformed(get().header("Host", "a b"), "Host"),
            plain(Request::get("/nowhere"), 404, "not_found"),
        ],
    );
    for host in ["localhost", "127.0.0.1", "[::1]:9", "127.9.9.9", &sidecar.metrics_address().to_string()] {
        metrics.call(&get().header("Host", host)).expect(200);
    }
    let own = format!("http://{}", sidecar.metrics_address());
    metrics.call(&get().header("Origin", own)).expect(200);
}

#[test]
fn an_allowed_host_is_answered_and_only_it() {
    let sidecar =
        Setup::in_memory().flags(&["--allowed-host", "agents.example", "--allowed-host", "other.example:81"]).start();
    let mut client = sidecar.client();
    for host in ["agents.example", "AGENTS.example:9", "other.example:81", "localhost:1"] {
        let answer =
            client.call(&Request::get("/v1/status").header("Host", host).header("Origin", format!("https://{host}")));
        let answer = answer.expect(200);
        assert!(
            answer.header("access-control-allow-origin").is_none() && !format!("{answer:?}").contains("https://"),
            "{answer:?}"
        );
    }
    for host in ["other.example", "other.example:82", "x.agents.example"] {
        check(&mut client, &plain(Request::get("/v1/status").header("Host", host), 403, "forbidden_host")).unwrap();
    }
}

#[test]
fn amounts_are_exact_at_the_edges_of_what_is_taken() {
    let sidecar = Setup::in_memory().start();
    let mut client = sidecar.client();
    let mut record = |payer: &str, amount: &str| {
        let body = format!(r#"{{"payer_agent":"{payer}","provider_agent":"b","capability":"c","amount":{amount}}}"#);
        client.call(&with("POST", "/v1/transactions", &body)).expect(201).json()["amount"].as_str().unwrap().to_owned()
    };
    for (written, kept) in [
        ("1e-7", "0.0000001"),
        ("\"1e-7\"", "0.0000001"),
        ("\"1E-9\"", "0.000000001"),
        ("0.000000001", "0.000000001"),
        ("999999999999999999.999999999", "999999999999999999.999999999"),
        ("\"999999999999999999.999999999\"", "999999999999999999.999999999"),
        ("123456789012345678", "123456789012345678"),
        ("12.500", "12.5"),
        ("\"12.50000000000000000000\"", "12.5"),
        ("1e2", "100"),
        ("1.5e+1", "15"),
        ("0.1", "0.1"),
        ("9007199254740993", "9007199254740993"),
        ("0.30000000000000000", "0.3"),
        ("123456789012345678.0000000000", "123456789012345678"),
    ] {
        assert_eq!(record("edges", written), kept, "{written}");
    }
    for amount in ["0.1", "\"0.2\""] {
        record("sums", amount);
    }
    for _ in 0..3 {
        record("large", "999999999999999999.999999999");
    }
    let mut paid = |agent: &str| {
        client.get(format!("/v1/agents/{agent}/balance")).expect(200).json()["USD"]["paid"]["pending"].clone()
    };
    assert_eq!(paid("sums"), "0.3");
    assert_eq!(paid("large"), "2999999999999999999.999999997");
}
