//! `tradepost discover`: who can do something, and who should.

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use super::agent::{Availability, PROFILE, PROFILES};
use super::api::{Query, parse};
use super::args::wire_name;
use super::client::{Call, Client};
use super::failure::Failure;
use super::output::Output;

/// Discovery's commands.
#[derive(Debug, Subcommand)]
pub enum DiscoverCommand {
    /// List agents that have any of the capabilities, cheapest first
    Search(Search),
    /// List the best agents for a capability, taking turns
    Recommend(Recommend),
    /// Show the agent with the fewest transactions for a capability in the last hour
    LeastLoaded(LeastLoaded),
    /// Show any agent that takes work
    Random(Random),
    /// List the capabilities that agents have now, and how many have each
    Capabilities,
}

#[derive(Debug, Args)]
pub struct Search {
    /// A capability (may be repeated; any of them will do)
    #[arg(long, required = true)]
    capability: Vec<String>,
    /// Only those that cost at most this much
    #[arg(long, value_name = "AMOUNT", allow_negative_numbers = true)]
    max_cost: Option<String>,
    /// Only those with prices in this currency
    #[arg(long)]
    currency: Option<String>,
    /// Only those with this availability
    #[arg(long)]
    availability: Option<Availability>,
    /// Only those with at least this score
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true)]
    min_score: Option<String>,
    /// At most this many
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

#[derive(Debug, Args)]
pub struct Recommend {
    /// The capability
    #[arg(long)]
    capability: String,
    /// This many [default: 3]
    #[arg(long, value_name = "N")]
    top_n: Option<u64>,
    /// Busy ones too
    #[arg(long)]
    include_busy: bool,
}

#[derive(Debug, Args)]
pub struct LeastLoaded {
    /// The capability
    #[arg(long)]
    capability: String,
}

#[derive(Debug, Args)]
pub struct Random {
    /// Only with this capability
    #[arg(long)]
    capability: Option<String>,
}

/// Runs one of them.
pub fn run(command: DiscoverCommand, client: &Client, output: &mut Output) -> Result<(), Failure> {
    let get = |query: Query, what: &str| Call::get(query.on(&format!("/v1/discovery/{what}")));
    match command {
        DiscoverCommand::Search(args) => {
            let query = args
                .capability
                .iter()
                .fold(Query::default(), |query, capability| query.with("capability", Some(capability)))
                .with("max_cost", args.max_cost)
                .with("currency", args.currency)
                .with("availability", args.availability.as_ref().map(wire_name))
                .with("min_score", args.min_score)
                .with("limit", args.limit);
            client.show_items(&get(query, "search"), PROFILES, output)
        }
        DiscoverCommand::Recommend(args) => {
            let query = Query::default()
                .with("capability", Some(args.capability))
                .with("top_n", args.top_n)
                .flag("include_busy", args.include_busy);
            client.show_items(&get(query, "recommend"), PROFILES, output)
        }
        DiscoverCommand::LeastLoaded(args) => {
            let query = Query::default().with("capability", Some(args.capability));
            client.show(&get(query, "least-loaded"), PROFILE, output)
        }
        DiscoverCommand::Random(args) => {
            client.show(&get(Query::default().with("capability", args.capability), "random"), PROFILE, output)
        }
        DiscoverCommand::Capabilities => {
            let answer = client.ask(&Call::get("/v1/capabilities"))?;
            if output.is_json() {
                return output.json(&answer.body);
            }
            let counts: Map<String, Value> = parse(&answer)?;
            let rows = counts.iter().map(|(capability, count)| vec![capability.clone(), count.to_string()]);
            output.table(&["capability", "agents"], &[false, true], rows.collect())
        }
    }
}
