//! Which handler answers which route; the list that routes them describes them too.

use std::sync::Arc;

use axum::Router;
use axum::routing::MethodRouter;

use super::Api;
use super::call::Call;
use super::handlers::{agents, batch, discovery, export, ledger, operations};
use super::problem::{Code, Problem};

/// One list of routes, for serving them and for describing them.
macro_rules! api {
    ($($path:literal: $($method:ident $room:ident::$handler:ident),+;)*) => {
        fn listed() -> Router<Arc<Api>> {
            Router::new()$(.route($path, MethodRouter::new()$(.$method($room::$handler))+))*
        }

        /// Every route with its description, behind `preamble`.
        #[cfg(test)]
        pub(crate) fn described_routes(preamble: utoipa::openapi::OpenApi) -> utoipa_axum::router::OpenApiRouter<Arc<Api>> {
            utoipa_axum::router::OpenApiRouter::with_openapi(preamble)
                $(.routes(utoipa_axum::routes!($($room::$handler),+)))*
        }

        /// The methods and patterns.
        #[cfg(test)]
        const LISTED: &[(&str, &str)] = &[$($((stringify!($method), $path)),+),*];
    };
}

api! {
    "/v1/agents": post agents::register_agent, get agents::list_agents;
    "/v1/agents/{id}":
        put agents::replace_agent, get agents::get_agent, patch agents::update_agent, delete agents::unregister_agent;
    "/v1/agents/{id}/heartbeat": post agents::heartbeat_agent;
    "/v1/agents/{id}/outcomes": post agents::observe_outcome;
    "/v1/agents/{id}/reputation": post agents::adjust_reputation;
    "/v1/agents/{id}/balance": get agents::agent_balance;
    "/v1/capabilities": get agents::count_capabilities;
    "/v1/transactions": post ledger::record_transaction, get ledger::list_transactions;
    "/v1/transactions/batch": post batch::record_batch;
    "/v1/transactions/{id}": get ledger::get_transaction;
    "/v1/transactions/{id}/settle": post ledger::settle_transaction;
    "/v1/transactions/{id}/cancel": post ledger::cancel_transaction;
    "/v1/transactions/{id}/dispute": post ledger::dispute_transaction;
    "/v1/transactions/{id}/evidence": post ledger::add_evidence;
    "/v1/transactions/{id}/resolve": post ledger::resolve_transaction;
    "/v1/transactions/{id}/events": get ledger::transaction_events;
    "/v1/transactions/{id}/settlement": get ledger::transaction_settlement;
    "/v1/export/transactions": get export::export_transactions;
    "/v1/discovery/search": get discovery::search_agents;
    "/v1/discovery/recommend": get discovery::recommend_agents;
    "/v1/discovery/least-loaded": get discovery::least_loaded_agent;
    "/v1/discovery/random": get discovery::random_agent;
    "/livez": get operations::livez;
    "/readyz": get operations::readyz;
    "/metrics": get operations::metrics;
    "/v1/status": get operations::status;
    "/v1/sync/{sink}/retry": post operations::retry_sink;
    "/v1/sync/{sink}/resync": post operations::resync_sink;
    "/v1/sync/{sink}/parked": get operations::parked_entries;
    "/openapi.json": get operations::openapi_document;
}

/// The routes, without what every request passes before them.
pub(crate) fn routes(api: Api) -> Router {
    listed().fallback(no_route).method_not_allowed_fallback(no_method).with_state(Arc::new(api))
}

async fn no_route() -> Problem {
    Problem::new(Code::NotFound, "there is nothing at this path; a trailing slash makes it another one")
}

async fn no_method(call: Call) -> Problem {
    Problem::new(Code::MethodNotAllowed, format!("this path does not take {}; see Allow", call.method()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_described_as_what_it_is() {
        let mut described: Vec<(String, String)> = Vec::new();
        for (path, item) in &described_routes(Default::default()).into_openapi().paths.paths {
            for (method, operation) in [
                ("get", &item.get),
                ("post", &item.post),
                ("put", &item.put),
                ("patch", &item.patch),
                ("delete", &item.delete),
            ] {
                described.extend(operation.as_ref().map(|_| (method.to_owned(), path.clone())));
            }
        }
        described.sort();
        let mut listed: Vec<_> = LISTED.iter().map(|(method, path)| (method.to_string(), path.to_string())).collect();
        listed.sort();
        assert_eq!(described, listed);
    }
}
