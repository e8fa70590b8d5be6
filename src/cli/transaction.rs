//! `tradepost tx`: the ledger's calls, flag by field.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::agent::{Once, body, json_text};
use super::api::{Query, path};
use super::args::wire_name;
use super::client::{Call, Client};
use super::failure::Failure;
use super::list::{self, Range};
use super::output::{Field, Output, number, text};
use super::{batch, export};

const TRANSACTIONS: &str = "/v1/transactions";

const TRANSACTION: &[Field] = &[
    text("transaction", "/transaction_id"),
    text("status", "/status"),
    text("payer", "/payer_agent"),
    text("provider", "/provider_agent"),
    text("capability", "/capability"),
    text("amount", "/amount"),
    text("currency", "/currency"),
    text("context", "/context"),
    text("evidence", "/evidence"),
    text("created at", "/created_at"),
    text("updated at", "/updated_at"),
    text("settled at", "/settled_at"),
    text("finality", "/finality"),
];

const ROWS: &[Field] = &[
    text("transaction", "/transaction_id"),
    text("created at", "/created_at"),
    text("payer", "/payer_agent"),
    text("provider", "/provider_agent"),
    text("capability", "/capability"),
    number("amount", "/amount"),
    text("currency", "/currency"),
    text("status", "/status"),
    text("finality", "/finality"),
];

const SETTLEMENT: &[Field] = &[
    text("transaction", "/transaction_id"),
    text("payer", "/payer"),
    text("provider", "/provider"),
    text("capability", "/capability"),
    text("amount", "/amount"),
    text("currency", "/currency"),
    text("status", "/status"),
    text("created at", "/created_at"),
    text("context", "/context"),
];

const EVENTS: &[Field] = &[
    text("at", "/at"),
    text("kind", "/kind"),
    number("round", "/round"),
    text("node", "/node_id"),
    text("event", "/event_id"),
    text("payload", "/payload"),
];

/// The ledger's commands.
#[derive(Debug, Subcommand)]
pub enum TransactionCommand {
    /// Record one transaction, or a file of them
    Record(Record),
    /// Show a transaction
    Get(TransactionName),
    /// List transactions
    List(List),
    /// Settle a pending transaction
    Settle(Settle),
    /// Cancel a pending transaction
    Cancel(Cancel),
    /// Dispute a pending or settled transaction
    Dispute(Dispute),
    /// Add evidence to a disputed transaction
    Evidence(Evidence),
    /// Resolve a disputed transaction
    Resolve(Resolve),
    /// Show everything that happened to a transaction
    Events(TransactionName),
    /// Show what a payment system needs to settle a transaction
    Settlement(TransactionName),
    /// Write all transactions that match as NDJSON, all of one moment
    Export(Export),
}

/// Which transaction.
#[derive(Debug, Args)]
pub struct TransactionName {
    /// Its id
    #[arg(value_name = "ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    id: String,
}

impl TransactionName {
    fn path(&self, suffix: &str) -> String {
        path(TRANSACTIONS, &self.id, suffix)
    }
}

#[derive(Debug, Args)]
pub struct Record {
    /// Who pays
    #[arg(long, value_name = "AGENT", required_unless_present = "file")]
    payer: Option<String>,
    /// Who did the work
    #[arg(long, value_name = "AGENT", required_unless_present = "file")]
    provider: Option<String>,
    /// For what
    #[arg(long, required_unless_present = "file")]
    capability: Option<String>,
    /// How much, exact to 9 digits behind the point
    #[arg(long, required_unless_present = "file", allow_negative_numbers = true)]
    amount: Option<String>,
    /// In which currency [default: USD]
    #[arg(long)]
    currency: Option<String>,
    /// Anything else about it, a JSON object
    #[arg(long, value_name = "JSON", value_parser = json_text)]
    context: Option<Box<RawValue>>,
    /// Its id; recording the same again changes nothing [default: a new one]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    #[command(flatten)]
    once: Once,
    /// Record a file of transactions instead, one JSON object a line with the API's fields; `-` is standard input
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["payer", "provider", "capability", "amount", "currency", "context", "id", "idempotency_key"]
    )]
    file: Option<PathBuf>,
}

#[derive(Serialize)]
struct RecordBody {
    payer_agent: Option<String>,
    provider_agent: Option<String>,
    capability: Option<String>,
    amount: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    currency: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    transaction_id: Option<String>,
}

/// Which transactions.
#[derive(Debug, Args)]
pub struct Filter {
    /// Only those of this agent
    #[arg(long)]
    agent: Option<String>,
    /// Only those in which it has this role
    #[arg(long)]
    role: Option<Role>,
    /// Only those with this status
    #[arg(long)]
    status: Option<Status>,
    /// Only those for this capability
    #[arg(long)]
    capability: Option<String>,
    /// Only those created at or after this time, such as 2026-11-22T23:50:31Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only those created before this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Oldest or newest first [default: asc]
    #[arg(long)]
    order: Option<Order>,
}

#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    range: Range,
}

#[derive(Debug, Args)]
pub struct Settle {
    #[command(flatten)]
    transaction: TransactionName,
    #[command(flatten)]
    once: Once,
}

#[derive(Debug, Args)]
pub struct Cancel {
    #[command(flatten)]
    transaction: TransactionName,
    /// Why
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    once: Once,
}

#[derive(Debug, Args)]
pub struct Dispute {
    #[command(flatten)]
    transaction: TransactionName,
    /// A piece of evidence (may be repeated)
    #[arg(long, value_name = "TEXT")]
    evidence: Vec<String>,
    /// Why
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    once: Once,
}

#[derive(Debug, Args)]
pub struct Evidence {
    #[command(flatten)]
    transaction: TransactionName,
    /// A piece of evidence (may be repeated)
    #[arg(long, value_name = "TEXT", required = true)]
    evidence: Vec<String>,
    #[command(flatten)]
    once: Once,
}

#[derive(Debug, Args)]
pub struct Resolve {
    #[command(flatten)]
    transaction: TransactionName,
    /// How it ends
    #[arg(long)]
    outcome: Resolution,
    /// Why
    #[arg(long)]
    note: Option<String>,
    #[command(flatten)]
    once: Once,
}

#[derive(Debug, Args)]
pub struct Export {
    #[command(flatten)]
    filter: Filter,
    /// Write to this file instead, which appears once it is complete
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    Payer,
    Provider,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Status {
    Pending,
    Settled,
    Cancelled,
    Disputed,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Order {
    Asc,
    Desc,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Resolution {
    Settled,
    Cancelled,
}

impl Filter {
    fn into_query(self) -> Query {
        Query::default()
            .with("agent", self.agent)
            .with("role", self.role.as_ref().map(wire_name))
            .with("status", self.status.as_ref().map(wire_name))
            .with("capability", self.capability)
            .with("since", self.since)
            .with("until", self.until)
            .with("order", self.order.as_ref().map(wire_name))
    }
}

/// Runs one of them.
pub fn run(command: TransactionCommand, client: &Client, output: &mut Output) -> Result<(), Failure> {
    let decide =
        |transaction: &TransactionName, step: &str, once: Once, words: serde_json::Value, output: &mut Output| {
            let call = Call::post_once(transaction.path(step), once.idempotency_key).json(body(&words));
            client.show(&call, TRANSACTION, output)
        };
    match command {
        TransactionCommand::Record(args) => record(args, client, output),
        TransactionCommand::Get(name) => client.show(&Call::get(name.path("")), TRANSACTION, output),
        TransactionCommand::List(args) => {
            list::show(client, TRANSACTIONS, &args.filter.into_query(), &args.range, ROWS, output)
        }
        TransactionCommand::Settle(args) => decide(&args.transaction, "/settle", args.once, json!({}), output),
        TransactionCommand::Cancel(args) => {
            let words = with_text(json!({}), "reason", args.reason);
            decide(&args.transaction, "/cancel", args.once, words, output)
        }
        TransactionCommand::Dispute(args) => {
            let words = with_text(json!({ "evidence": args.evidence }), "reason", args.reason);
            decide(&args.transaction, "/dispute", args.once, words, output)
        }
        TransactionCommand::Evidence(args) => {
            decide(&args.transaction, "/evidence", args.once, json!({ "evidence": args.evidence }), output)
        }
        TransactionCommand::Resolve(args) => {
            let words = with_text(json!({ "outcome": wire_name(&args.outcome) }), "note", args.note);
            decide(&args.transaction, "/resolve", args.once, words, output)
        }
        TransactionCommand::Events(name) => client.show_items(&Call::get(name.path("/events")), EVENTS, output),
        TransactionCommand::Settlement(name) => client.show(&Call::get(name.path("/settlement")), SETTLEMENT, output),
        TransactionCommand::Export(args) => {
            let call = Call::get(args.filter.into_query().on("/v1/export/transactions"));
            match args.output {
                Some(file) => export::to_file(client, &call, &file),
                None => export::to_stdout(client, &call, output),
            }
        }
    }
}

fn record(args: Record, client: &Client, output: &mut Output) -> Result<(), Failure> {
    if let Some(file) = args.file {
        return batch::record(client, &file, output);
    }
    let transaction = RecordBody {
        payer_agent: args.payer,
        provider_agent: args.provider,
        capability: args.capability,
        amount: args.amount,
        currency: args.currency,
        context: args.context,
        transaction_id: args.id,
    };
    let call = Call::post_once(TRANSACTIONS, args.once.idempotency_key).json(body(&transaction));
    client.show(&call, TRANSACTION, output)
}

fn with_text(mut body: serde_json::Value, field: &str, text: Option<String>) -> serde_json::Value {
    if let Some(text) = text {
        body[field] = text.into();
    }
    body
}
