//! `tradepost agent`: the registry's calls, flag by field.

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Number, json};

use super::api::{Query, path};
use super::args::wire_name;
use super::client::{Call, Client};
use super::failure::Failure;
use super::list::{self, Range};
use super::output::{Field, Output, number, text};

const AGENTS: &str = "/v1/agents";

/// One agent, everything about it.
pub const PROFILE: &[Field] = &[
    text("agent", "/agent_id"),
    text("name", "/name"),
    text("capabilities", "/capabilities"),
    text("availability", "/availability/status"),
    text("capacity per hour", "/availability/capacity_per_hour"),
    text("cost per task", "/pricing/cost_per_task"),
    text("currency", "/pricing/currency"),
    text("billing notes", "/pricing/billing_notes"),
    text("score", "/reputation/score"),
    text("feedback", "/reputation/total_feedback"),
    text("successful tasks", "/reputation/successful_tasks"),
    text("failed tasks", "/reputation/failed_tasks"),
    text("metadata", "/metadata"),
    text("revision", "/revision"),
    text("last updated", "/availability/last_updated"),
    text("lease", "/lease/state"),
    text("expires at", "/lease/expires_at"),
    text("ttl seconds", "/lease/ttl_seconds"),
    text("local", "/origin/local"),
    text("node", "/origin/node_id"),
];

/// Agents, one a line.
pub const PROFILES: &[Field] = &[
    text("agent", "/agent_id"),
    text("name", "/name"),
    text("status", "/availability/status"),
    number("cost", "/pricing/cost_per_task"),
    text("currency", "/pricing/currency"),
    number("per hour", "/availability/capacity_per_hour"),
    number("score", "/reputation/score"),
    text("lease", "/lease/state"),
    text("local", "/origin/local"),
    text("capabilities", "/capabilities"),
];

const LEASE: &[Field] = &[text("expires at", "/expires_at")];

const REPUTATION: &[Field] = &[
    text("score", "/score"),
    text("feedback", "/total_feedback"),
    text("successful tasks", "/successful_tasks"),
    text("failed tasks", "/failed_tasks"),
];

/// The registry's commands.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Register an agent
    Register(Register),
    /// Show an agent, even an expired one
    Get(AgentName),
    /// List agents
    List(List),
    /// Change some of what an agent says of itself
    Update(Update),
    /// Renew an agent's lease
    Heartbeat(AgentName),
    /// Say how a task went that an agent did
    Outcome(Outcome),
    /// Remove an agent
    Unregister(Unregister),
}

/// Which agent.
#[derive(Debug, Args)]
pub struct AgentName {
    /// Its id
    #[arg(value_name = "ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    id: String,
}

impl AgentName {
    fn path(&self, suffix: &str) -> String {
        path(AGENTS, &self.id, suffix)
    }
}

/// A key under which a request is done once, however often it is sent.
#[derive(Debug, Args)]
pub struct Once {
    /// Do it once for this key, however often it is sent [default: a new key for each command]
    #[arg(long, value_name = "K", value_parser = idempotency_key)]
    pub idempotency_key: Option<String>,
}

#[derive(Debug, Args)]
pub struct Register {
    /// Its id: letters, digits, _ and -
    #[arg(long, value_name = "ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    id: String,
    /// Its name
    #[arg(long)]
    name: String,
    /// Something that it can do (may be repeated)
    #[arg(long, value_name = "CAPABILITY")]
    capability: Vec<String>,
    /// Price of a task, exact to 9 digits behind the point
    #[arg(long, value_name = "AMOUNT", allow_negative_numbers = true)]
    cost: String,
    /// Currency of that price [default: USD]
    #[arg(long)]
    currency: Option<String>,
    /// How many tasks an hour it takes [default: 30]
    #[arg(long, value_name = "N")]
    capacity: Option<u64>,
    /// Whether it takes work [default: online]
    #[arg(long)]
    availability: Option<Availability>,
    /// Anything else about billing
    #[arg(long)]
    notes: Option<String>,
    /// Its own data, a JSON object
    #[arg(long, value_name = "JSON", value_parser = json_text)]
    metadata: Option<Box<RawValue>>,
    /// How long it lives without a sign of life, in seconds
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u64>,
    /// Replace an agent of this id, as one that restarts does
    #[arg(long, conflicts_with = "idempotency_key")]
    replace: bool,
    #[command(flatten)]
    once: Once,
}

#[derive(Serialize)]
struct RegisterBody {
    agent_id: String,
    name: String,
    capabilities: Vec<String>,
    cost_per_task: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    currency: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capacity_per_hour: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    availability: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    billing_notes: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_seconds: Option<u64>,
}

#[derive(Debug, Args)]
pub struct List {
    /// Only those that can do this
    #[arg(long)]
    capability: Option<String>,
    /// Only those with this availability
    #[arg(long)]
    availability: Option<Availability>,
    /// Best first by this, instead of by id
    #[arg(long, value_name = "RANK")]
    sort_by: Option<SortBy>,
    /// Expired ones too
    #[arg(long)]
    include_expired: bool,
    #[command(flatten)]
    range: Range,
}

#[derive(Debug, Args)]
pub struct Update {
    #[command(flatten)]
    agent: AgentName,
    #[command(flatten)]
    changes: Changes,
    /// Only if it still has this revision
    #[arg(long, value_name = "REVISION")]
    if_match: Option<u64>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Changes {
    /// Its name
    #[arg(long)]
    name: Option<String>,
    /// Something that it can do; all of them together replace those it had (may be repeated)
    #[arg(long, value_name = "CAPABILITY")]
    capability: Vec<String>,
    /// It can do nothing any more
    #[arg(long, conflicts_with = "capability")]
    no_capabilities: bool,
    /// Price of a task
    #[arg(long, value_name = "AMOUNT", allow_negative_numbers = true)]
    cost: Option<String>,
    /// Currency of that price
    #[arg(long)]
    currency: Option<String>,
    /// How many tasks an hour it takes
    #[arg(long, value_name = "N")]
    capacity: Option<u64>,
    /// Whether it takes work
    #[arg(long)]
    availability: Option<Availability>,
    /// Anything else about billing
    #[arg(long)]
    notes: Option<String>,
    /// Nothing else about billing
    #[arg(long, conflicts_with = "notes")]
    no_notes: bool,
    /// Its own data, a JSON object that replaces the one it had
    #[arg(long, value_name = "JSON", value_parser = json_text)]
    metadata: Option<Box<RawValue>>,
    /// How long it lives without a sign of life, in seconds
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u64>,
}

#[derive(Serialize)]
struct UpdateBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_per_task: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    currency: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capacity_per_hour: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    availability: Option<String>,
    /// Absent, null, or a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    billing_notes: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_seconds: Option<u64>,
}

#[derive(Debug, Args)]
pub struct Outcome {
    #[command(flatten)]
    agent: AgentName,
    #[command(flatten)]
    result: TaskResult,
    /// How much it counts [default: 1.0]
    #[arg(long, allow_negative_numbers = true)]
    weight: Option<Number>,
    #[command(flatten)]
    once: Once,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct TaskResult {
    /// It went well
    #[arg(long)]
    success: bool,
    /// It did not
    #[arg(long)]
    failure: bool,
}

#[derive(Debug, Args)]
pub struct Unregister {
    #[command(flatten)]
    agent: AgentName,
    /// Only if it still has this revision
    #[arg(long, value_name = "REVISION")]
    if_match: Option<u64>,
}

/// Whether an agent takes work.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[allow(missing_docs, reason = "the words of the API")]
pub enum Availability {
    Online,
    Busy,
    Offline,
    Maintenance,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SortBy {
    Score,
    Cost,
    Availability,
}

/// A flag's value that is JSON. What it must hold is the server's to say; here it must only not break the body that it
/// becomes a part of.
pub fn json_text(text: &str) -> Result<Box<RawValue>, String> {
    serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}"))
}

fn idempotency_key(text: &str) -> Result<String, String> {
    if (1..=255).contains(&text.len())
        && text.trim() == text
        && text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
    {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 255 printable ASCII characters, none of them a space at an end".to_owned())
    }
}

/// Serialises a body of ours.
pub fn body(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("text keys and values that are JSON already")
}

/// Runs one of them.
pub fn run(command: AgentCommand, client: &Client, output: &mut Output) -> Result<(), Failure> {
    match command {
        AgentCommand::Register(args) => register(args, client, output),
        AgentCommand::Get(agent) => client.show(&Call::get(agent.path("")), PROFILE, output),
        AgentCommand::List(args) => {
            let query = Query::default()
                .with("capability", args.capability)
                .with("availability", args.availability.as_ref().map(wire_name))
                .with("sort_by", args.sort_by.as_ref().map(wire_name))
                .flag("include_expired", args.include_expired);
            list::show(client, AGENTS, &query, &args.range, PROFILES, output)
        }
        AgentCommand::Update(args) => {
            let call = Call::patch(args.agent.path("")).json(body(&args.changes.into_body())).if_match(args.if_match);
            client.show(&call, PROFILE, output)
        }
        AgentCommand::Heartbeat(agent) => client.show(&Call::post_repeatable(agent.path("/heartbeat")), LEASE, output),
        AgentCommand::Outcome(args) => {
            let mut outcome = json!({ "success": args.result.success });
            if let Some(weight) = args.weight {
                outcome["weight"] = weight.into();
            }
            let call = Call::post_once(args.agent.path("/outcomes"), args.once.idempotency_key).json(body(&outcome));
            client.show(&call, REPUTATION, output)
        }
        AgentCommand::Unregister(args) => {
            client.ask(&Call::delete(args.agent.path("")).if_match(args.if_match))?;
            if output.is_json() { Ok(()) } else { output.line(&format!("unregistered {}", args.agent.id)) }
        }
    }
}

fn register(args: Register, client: &Client, output: &mut Output) -> Result<(), Failure> {
    let call = match args.replace {
        true => Call::put(path(AGENTS, &args.id, "")),
        false => Call::post_once(AGENTS, args.once.idempotency_key),
    };
    let registration = RegisterBody {
        agent_id: args.id,
        name: args.name,
        capabilities: args.capability,
        cost_per_task: args.cost,
        currency: args.currency,
        capacity_per_hour: args.capacity,
        availability: args.availability.as_ref().map(wire_name),
        billing_notes: args.notes,
        metadata: args.metadata,
        ttl_seconds: args.ttl,
    };
    client.show(&call.json(body(&registration)), PROFILE, output)
}

impl Changes {
    fn into_body(self) -> UpdateBody {
        let renames_capabilities = self.no_capabilities || !self.capability.is_empty();
        UpdateBody {
            name: self.name,
            capabilities: renames_capabilities.then_some(self.capability),
            cost_per_task: self.cost,
            currency: self.currency,
            capacity_per_hour: self.capacity,
            availability: self.availability.as_ref().map(wire_name),
            billing_notes: if self.no_notes { Some(None) } else { self.notes.map(Some) },
            metadata: self.metadata,
            ttl_seconds: self.ttl,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        changes: Changes,
    }

    #[test]
    fn an_update_says_only_what_changes() {
        for (line, expected) in [
            ("--name Thon", r#"{"name":"Thon"}"#),
            ("--capability sql --capability go", r#"{"capabilities":["sql","go"]}"#),
            ("--no-capabilities --no-notes", r#"{"capabilities":[],"billing_notes":null}"#),
            ("--cost 0.10 --notes x", r#"{"cost_per_task":"0.10","billing_notes":"x"}"#),
            (r#"--metadata {"n":1.10,"n":2}"#, r#"{"metadata":{"n":1.10,"n":2}}"#),
        ] {
            let parsed = Line::try_parse_from(["x"].into_iter().chain(line.split(' '))).expect(line);
            assert_eq!(String::from_utf8(body(&parsed.changes.into_body())).unwrap(), expected);
        }
    }
}
