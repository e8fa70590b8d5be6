//! Every route and method of the API, written out by hand, so that neither the server nor its description is asked.

/// A route: its pattern, a path that matches it, and its methods. GET stands for HEAD too.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    pub pattern: &'static str,
    pub path: &'static str,
    pub methods: &'static [&'static str],
}

const fn route(pattern: &'static str, path: &'static str, methods: &'static [&'static str]) -> Route {
    Route { pattern, path, methods }
}

/// All of them. The paths name the agent `thon` and the transaction `t1`.
pub const ROUTES: [Route; 33] = [
    route("/v1/agents", "/v1/agents", &["GET", "POST"]),
    route("/v1/agents/{id}", "/v1/agents/thon", &["GET", "PUT", "PATCH", "DELETE"]),
    route("/v1/agents/{id}/heartbeat", "/v1/agents/thon/heartbeat", &["POST"]),
    route("/v1/agents/{id}/outcomes", "/v1/agents/thon/outcomes", &["POST"]),
    route("/v1/agents/{id}/reputation", "/v1/agents/thon/reputation", &["POST"]),
    route("/v1/agents/{id}/balance", "/v1/agents/thon/balance", &["GET"]),
    route("/v1/capabilities", "/v1/capabilities", &["GET"]),
    route("/v1/transactions", "/v1/transactions", &["GET", "POST"]),
    route("/v1/transactions/batch", "/v1/transactions/batch", &["POST"]),
    route("/v1/transactions/{id}", "/v1/transactions/t1", &["GET"]),
    route("/v1/transactions/{id}/settle", "/v1/transactions/t1/settle", &["POST"]),
    route("/v1/transactions/{id}/cancel", "/v1/transactions/t1/cancel", &["POST"]),
    route("/v1/transactions/{id}/dispute", "/v1/transactions/t1/dispute", &["POST"]),
    route("/v1/transactions/{id}/evidence", "/v1/transactions/t1/evidence", &["POST"]),
    route("/v1/transactions/{id}/resolve", "/v1/transactions/t1/resolve", &["POST"]),
    route("/v1/transactions/{id}/events", "/v1/transactions/t1/events", &["GET"]),
    route("/v1/transactions/{id}/settlement", "/v1/transactions/t1/settlement", &["GET"]),
    route("/v1/export/transactions", "/v1/export/transactions", &["GET"]),
    route("/v1/discovery/search", "/v1/discovery/search", &["GET"]),
    route("/v1/discovery/recommend", "/v1/discovery/recommend", &["GET"]),
    route("/v1/discovery/least-loaded", "/v1/discovery/least-loaded", &["GET"]),
    route("/v1/discovery/random", "/v1/discovery/random", &["GET"]),
    route("/livez", "/livez", &["GET"]),
    route("/readyz", "/readyz", &["GET"]),
    route("/metrics", "/metrics", &["GET"]),
    route("/v1/status", "/v1/status", &["GET"]),
    route("/v1/sync/{sink}/retry", "/v1/sync/redis/retry", &["POST"]),
    route("/v1/sync/{sink}/resync", "/v1/sync/redis/resync", &["POST"]),
    route("/v1/sync/{sink}/parked", "/v1/sync/redis/parked", &["GET"]),
    route("/openapi.json", "/openapi.json", &["GET"]),
    // The same routes for what is not there.
    route("/v1/agents/{id}", "/v1/agents/nobody", &["GET", "PUT", "PATCH", "DELETE"]),
    route("/v1/transactions/{id}", "/v1/transactions/none", &["GET"]),
    route("/v1/sync/{sink}/parked", "/v1/sync/nosink/parked", &["GET"]),
];
