//! Discovery: which agent to use.

use std::sync::Arc;

use crate::engine;
use crate::http::Api;
use crate::http::call::Call;
use crate::http::dto::agents::Profile;
use crate::http::dto::discovery::{Recommendation, Search};
use crate::http::dto::{Items, schema};
use crate::http::problem::{Code, Problem};
use crate::http::reply::{Answer, Reply, read_aside};

/// Live agents with any of the capabilities: cost up, score down, availability, id.
#[utoipa::path(
    get, path = "/v1/discovery/search", tag = "discovery",
    params(
        ("capability" = Option<Vec<schema::Capability>>, Query, description = "Any of these; none given finds nobody"),
        ("max_cost" = Option<String>, Query, pattern = r"^(0|[1-9]\d{0,17})(\.\d{1,9})?$"),
        ("currency" = Option<schema::Currency>, Query),
        ("availability" = Option<schema::Availability>, Query),
        ("min_score" = Option<f64>, Query),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "100 when absent"),
    ),
    responses((status = 200, description = "The agents", body = Items<Profile>))
)]
pub(crate) async fn search_agents(api: Arc<Api>, call: Call) -> Answer {
    let search = Search::parse(call.query()?)?;

    let found = read_aside(move || api.engine.search(&search.query, search.limit)).await?;
    show_all(&found)
}

/// The best agents for a capability, taking turns.
#[utoipa::path(
    get, path = "/v1/discovery/recommend", tag = "discovery",
    params(
        ("capability" = schema::Capability, Query),
        ("top_n" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "3 when absent"),
        ("include_busy" = Option<bool>, Query, description = "false when absent"),
    ),
    responses((status = 200, description = "The agents, in the order of their rank", body = Items<Profile>))
)]
pub(crate) async fn recommend_agents(api: Arc<Api>, call: Call) -> Answer {
    let asked = Recommendation::parse(call.query()?)?;

    let found = read_aside(move || api.engine.recommend(&asked.capability, asked.top_n, asked.include_busy)).await?;
    show_all(&found)
}

/// The agent with the fewest transactions for a capability in the last hour.
#[utoipa::path(
    get, path = "/v1/discovery/least-loaded", tag = "discovery",
    params(("capability" = schema::Capability, Query)),
    responses(
        (status = 200, description = "The agent", body = Profile),
        (status = 404, description = "`no_match`"),
    )
)]
pub(crate) async fn least_loaded_agent(api: Arc<Api>, call: Call) -> Answer {
    let mut parameters = call.query()?;
    let capability = parameters.required("capability")?;
    parameters.finish()?;
    let capability = capability.capability()?;

    let found = read_aside(move || api.engine.least_loaded(&capability)).await?;
    show_one(found)
}

/// Any online or busy agent.
#[utoipa::path(
    get, path = "/v1/discovery/random", tag = "discovery",
    params(("capability" = Option<schema::Capability>, Query)),
    responses(
        (status = 200, description = "The agent", body = Profile),
        (status = 404, description = "`no_match`"),
    )
)]
pub(crate) async fn random_agent(api: Arc<Api>, call: Call) -> Answer {
    let mut parameters = call.query()?;
    let capability = parameters.optional("capability")?;
    parameters.finish()?;
    let capability = capability.map(|value| value.capability()).transpose()?;

    show_one(api.engine.random(capability.as_ref())?)
}

fn show_all(profiles: &[engine::Profile]) -> Answer {
    Reply::json(&Items { items: profiles.iter().map(Profile::from).collect() }).into()
}

fn show_one(profile: Option<engine::Profile>) -> Answer {
    match profile {
        Some(profile) => Reply::json(&Profile::from(&profile)).into(),
        None => Err(Problem::new(Code::NoMatch, "no live agent matches")),
    }
}
