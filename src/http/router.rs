//! Which handler answers which route; registering a handler describes it too.

use std::sync::LazyLock;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answers::{Answers, bound};
use super::call::Progress;
use super::gate::Gate;
use super::handlers::{agents, batch, discovery, export, ledger, operations};
use super::openapi;
use super::problem::{Code, Problem};
use super::{Api, Limits};

/// The API as a service that can be called without a connection.
///
/// A connection tells it its local address by the `Peer` extension; without one, requests are taken as coming over
/// loopback.
pub fn router(api: Api) -> Router {
    router_within(api, &Limits::default())
}

/// [`router`] with other limits.
pub(crate) fn router_within(api: Api, limits: &Limits) -> Router {
    let (routes, _) = described_routes().split_for_parts();
    let routes = routes
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(Answers::default(), bound))
        .layer(from_fn(note_route))
        .with_state(api.clone());
    // The gate stands before routing, so that a stranger does not learn which routes there are.
    Gate::new(api, routes, limits).into_router()
}

/// Every route with its description.
pub(crate) fn described_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(openapi::preamble())
        .routes(routes!(agents::register_agent, agents::list_agents))
        .routes(routes!(agents::replace_agent, agents::get_agent, agents::update_agent, agents::unregister_agent))
        .routes(routes!(agents::heartbeat_agent))
        .routes(routes!(agents::observe_outcome))
        .routes(routes!(agents::adjust_reputation))
        .routes(routes!(agents::agent_balance))
        .routes(routes!(agents::count_capabilities))
        .routes(routes!(ledger::record_transaction, ledger::list_transactions))
        .routes(routes!(batch::record_batch))
        .routes(routes!(ledger::get_transaction))
        .routes(routes!(ledger::settle_transaction))
        .routes(routes!(ledger::cancel_transaction))
        .routes(routes!(ledger::dispute_transaction))
        .routes(routes!(ledger::add_evidence))
        .routes(routes!(ledger::resolve_transaction))
        .routes(routes!(ledger::transaction_events))
        .routes(routes!(ledger::transaction_settlement))
        .routes(routes!(export::export_transactions))
        .routes(routes!(discovery::search_agents))
        .routes(routes!(discovery::recommend_agents))
        .routes(routes!(discovery::least_loaded_agent))
        .routes(routes!(discovery::random_agent))
        .routes(routes!(operations::livez))
        .routes(routes!(operations::readyz))
        .routes(routes!(operations::metrics))
        .routes(routes!(operations::status))
        .routes(routes!(operations::retry_sink))
        .routes(routes!(operations::resync_sink))
        .routes(routes!(operations::parked_entries))
        .routes(routes!(operations::openapi_document))
}

/// The patterns of all routes, as labels: made once, and as many as there are routes.
static PATTERNS: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| openapi::document().paths.paths.keys().map(|path| &*path.clone().leak()).collect());

/// Tells the gate which route was found.
async fn note_route(matched: Option<MatchedPath>, request: Request, next: Next) -> Response {
    if let (Some(matched), Some(progress)) = (matched, request.extensions().get::<std::sync::Arc<Progress>>())
        && let Ok(at) = PATTERNS.binary_search(&matched.as_str())
    {
        // Set here only, once a request.
        progress.route.get_or_init(|| PATTERNS[at]);
    }
    next.run(request).await
}

async fn no_route() -> Problem {
    Problem::new(Code::NotFound, "there is nothing at this path; a trailing slash makes it another one")
}

async fn no_method(method: Method) -> Problem {
    Problem::new(Code::MethodNotAllowed, format!("this path does not take {method}; see Allow"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_sorted_for_lookup() {
        assert!(PATTERNS.is_sorted());
        assert!(PATTERNS.contains(&"/v1/agents/{id}"));
    }
}
