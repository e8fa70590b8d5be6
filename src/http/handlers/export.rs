//! All matching transactions of one snapshot, streamed as NDJSON.
//!
//! The stream ends cleanly only after the last match. A failure becomes an error of the body, which closes the
//! connection without the final chunk, so that no client takes half an export for a whole one.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::HeaderValue;
use futures_util::stream;

use super::ledger::parse_filter;
use crate::domain::Transaction;
use crate::engine::{self, Export};
use crate::http::Api;
use crate::http::call::{Call, NDJSON};
use crate::http::dto::schema;
use crate::http::dto::transactions::TransactionShown;
use crate::http::reply::{Answer, Reply, read_aside};

/// How many transactions are read and sent at a time.
const CHUNK: usize = 256;

/// Every matching transaction, as one snapshot.
#[utoipa::path(
    get, path = "/v1/export/transactions", tag = "ledger",
    description = "One JSON transaction a line. A failure breaks the stream off: without the final chunk it is not whole.",
    params(
        ("agent" = Option<schema::AgentId>, Query),
        ("role" = Option<String>, Query, pattern = "^(payer|provider)$", description = "Which side `agent` is on"),
        ("status" = Option<schema::Status>, Query),
        ("capability" = Option<schema::Capability>, Query),
        ("since" = Option<schema::TimeInput>, Query, description = "Inclusive"),
        ("until" = Option<schema::TimeInput>, Query, description = "Exclusive"),
        ("order" = Option<String>, Query, pattern = "^(asc|desc)$", description = "`asc` when absent"),
    ),
    responses((status = 200, description = "The transactions", body = TransactionShown, content_type = "application/x-ndjson"))
)]
pub(crate) async fn export_transactions(api: Arc<Api>, call: Call) -> Answer {
    let filter = parse_filter(call.query()?)?;

    let export = read_aside(move || api.engine.export(&filter)).await?;
    let chunks = stream::try_unfold(export, |mut export| async move {
        match tokio::task::spawn_blocking(move || (next_lines(&mut export), export)).await {
            Ok((Ok(lines), export)) => Ok(lines.map(|lines| (lines, export))),
            Ok((Err(error), _)) => {
                tracing::error!(%error, "an export broke off");
                Err(std::io::Error::other(error))
            }
            Err(error) => {
                tracing::error!(%error, "an export broke off");
                Err(std::io::Error::other(error))
            }
        }
    });
    Reply::text(Body::from_stream(chunks), HeaderValue::from_static(NDJSON)).into()
}

fn next_lines(export: &mut Export) -> Result<Option<Bytes>, engine::Error> {
    Ok(export.next_chunk(CHUNK)?.map(|transactions| lines(&transactions)))
}

fn lines(transactions: &[Transaction]) -> Bytes {
    let mut text = Vec::new();
    for transaction in transactions {
        serde_json::to_writer(&mut text, &TransactionShown::from(transaction))
            .expect("a transaction is strings and lists, and memory takes any write");
        text.push(b'\n');
    }
    text.into()
}
