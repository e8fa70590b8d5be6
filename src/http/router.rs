//! Which handler answers which route. One list serves the routes, and describes them in the test that makes the document.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;

use super::Api;
use super::call::Call;
use super::handlers::{agents, batch, discovery, export, ledger, operations};
use super::problem::{Code, Problem};
use super::reply::Answer;

/// A handler at work.
type Running = Pin<Box<dyn Future<Output = Answer> + Send>>;
/// What is begun for a request.
type Handler = fn(Arc<Api>, Call) -> Running;

/// What a path is for.
#[derive(Debug)]
pub(crate) struct Route {
    /// The path, its parameter in braces. No route has more than one.
    pub(crate) pattern: &'static str,
    handlers: &'static [(Method, Handler)],
}

/// The route of a path, and the path's parameter, decoded: empty where there is none, `None` for one that is not UTF-8.
pub(crate) type Found = (&'static Route, Option<String>);

/// One list of routes, for serving them and for describing them.
macro_rules! api {
    ($($path:literal: $($method:ident $room:ident::$handler:ident),+;)*) => {
        static ROUTES: &[Route] = &[$(Route {
            pattern: $path,
            handlers: &[$((Method::$method, |api, call| Box::pin($room::$handler(api, call)))),+],
        }),*];

        /// Every route as the attribute of its handler describes it.
        #[cfg(test)]
        #[derive(utoipa::OpenApi)]
        #[openapi(paths($($($room::$handler),+),*))]
        pub(crate) struct Described;
    };
}

api! {
    "/v1/agents": POST agents::register_agent, GET agents::list_agents;
    "/v1/agents/{id}":
        PUT agents::replace_agent, GET agents::get_agent, PATCH agents::update_agent, DELETE agents::unregister_agent;
    "/v1/agents/{id}/heartbeat": POST agents::heartbeat_agent;
    "/v1/agents/{id}/outcomes": POST agents::observe_outcome;
    "/v1/agents/{id}/reputation": POST agents::adjust_reputation;
    "/v1/agents/{id}/balance": GET agents::agent_balance;
    "/v1/capabilities": GET agents::count_capabilities;
    "/v1/transactions": POST ledger::record_transaction, GET ledger::list_transactions;
    "/v1/transactions/batch": POST batch::record_batch;
    "/v1/transactions/{id}": GET ledger::get_transaction;
    "/v1/transactions/{id}/settle": POST ledger::settle_transaction;
    "/v1/transactions/{id}/cancel": POST ledger::cancel_transaction;
    "/v1/transactions/{id}/dispute": POST ledger::dispute_transaction;
    "/v1/transactions/{id}/evidence": POST ledger::add_evidence;
    "/v1/transactions/{id}/resolve": POST ledger::resolve_transaction;
    "/v1/transactions/{id}/events": GET ledger::transaction_events;
    "/v1/transactions/{id}/settlement": GET ledger::transaction_settlement;
    "/v1/export/transactions": GET export::export_transactions;
    "/v1/discovery/search": GET discovery::search_agents;
    "/v1/discovery/recommend": GET discovery::recommend_agents;
    "/v1/discovery/least-loaded": GET discovery::least_loaded_agent;
    "/v1/discovery/random": GET discovery::random_agent;
    "/livez": GET operations::livez;
    "/readyz": GET operations::readyz;
    "/metrics": GET operations::metrics;
    "/v1/status": GET operations::status;
    "/v1/sync/{sink}/retry": POST operations::retry_sink;
    "/v1/sync/{sink}/resync": POST operations::resync_sink;
    "/v1/sync/{sink}/parked": GET operations::parked_entries;
    "/openapi.json": GET operations::openapi_document;
}

/// Finds the route of a path.
#[derive(Debug)]
pub(crate) struct Router {
    paths: matchit::Router<&'static Route>,
}

impl Router {
    pub(crate) fn new() -> Self {
        let mut paths = matchit::Router::new();
        for route in ROUTES {
            paths.insert(route.pattern, route).expect("patterns are well formed, and none is there twice");
        }
        Self { paths }
    }

    /// The route of a path.
    pub(crate) fn find(&self, path: &str) -> Option<Found> {
        let found = self.paths.at(path).ok()?;
        let parameter = found.params.iter().next().map_or("", |(_, parameter)| parameter);
        Some((found.value, percent_decode_str(parameter).decode_utf8().ok().map(Cow::into_owned)))
    }
}

impl Route {
    /// Has a request handled. HEAD is answered as GET, but for the body.
    pub(crate) async fn handle(&self, api: Arc<Api>, call: Call) -> Response {
        let is_head = *call.method() == Method::HEAD;
        let wanted = if is_head { &Method::GET } else { call.method() };
        let response = match self.handlers.iter().find(|(method, _)| method == wanted) {
            Some((_, handler)) => handler(api, call).await.into_response(),
            None => self.refuse(call.method()),
        };
        if is_head { without_body(response) } else { response }
    }

    fn refuse(&self, method: &Method) -> Response {
        let detail = format!("this path does not take {method}; see Allow");
        let mut response = Problem::new(Code::MethodNotAllowed, detail).into_response();
        let mut allowed = Vec::new();
        for (method, _) in self.handlers {
            allowed.push(method.as_str());
            if *method == Method::GET {
                allowed.push(Method::HEAD.as_str());
            }
        }
        let allowed = HeaderValue::from_str(&allowed.join(",")).expect("names of methods are header values");
        response.headers_mut().insert(header::ALLOW, allowed);
        response
    }
}

/// An answer that says how long its body would have been. One that does not know has hyper leave the body out.
fn without_body(mut response: Response) -> Response {
    if let Some(length @ 1..) = response.body().size_hint().exact() {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        *response.body_mut() = Body::empty();
    }
    response
}

/// What to say where there is no route.
pub(crate) fn no_route() -> Problem {
    Problem::new(Code::NotFound, "there is nothing at this path; a trailing slash makes it another one")
}

#[cfg(test)]
mod tests {
    use utoipa::OpenApi;

    use super::*;

    #[test]
    fn every_route_is_described_as_what_it_is() {
        let mut described: Vec<(String, String)> = Vec::new();
        for (path, item) in &Described::openapi().paths.paths {
            for (method, operation) in [
                ("GET", &item.get),
                ("POST", &item.post),
                ("PUT", &item.put),
                ("PATCH", &item.patch),
                ("DELETE", &item.delete),
            ] {
                described.extend(operation.as_ref().map(|_| (method.to_owned(), path.clone())));
            }
        }
        described.sort();
        let handled = |route: &'static Route| {
            route.handlers.iter().map(|(method, _)| (method.to_string(), route.pattern.to_owned()))
        };
        let mut listed: Vec<_> = ROUTES.iter().flat_map(handled).collect();
        listed.sort();
        assert_eq!(described, listed);
    }

    #[test]
    fn a_path_is_found_with_its_parameter() {
        let router = Router::new();
        let find = |path| router.find(path).map(|(route, parameter)| (route.pattern, parameter));
        assert_eq!(find("/v1/agents/a%2Fb"), Some(("/v1/agents/{id}", Some("a/b".to_owned()))));
        assert_eq!(find("/v1/agents/%ff/heartbeat"), Some(("/v1/agents/{id}/heartbeat", None)));
        assert_eq!(find("/v1/transactions/batch"), Some(("/v1/transactions/batch", Some(String::new()))));
        for none in ["", "*", "/", "/v1/agents/", "/v1/agents/a/", "/V1/agents"] {
            assert_eq!(find(none), None, "{none:?}");
        }
    }
}
