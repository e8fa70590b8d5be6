//! Recording many transactions in one durable commit.

use std::sync::Arc;

use crate::domain::{NewTransaction, Refusal, Transaction};
use crate::engine::Receipt;
use crate::http::Api;
use crate::http::body::Buffered;
use crate::http::call::{BatchForm, Call};
use crate::http::dto::schema;
use crate::http::dto::transactions::{BatchResult, BatchResults, RecordBody, TransactionShown};
use crate::http::headers;
use crate::http::json::{parse_array, parse_object};
use crate::http::problem::Problem;
use crate::http::reply::{Answer, Reply, read_aside};

/// The most transactions in one batch.
const MAX_ITEMS: usize = 10_000;

type Item = Result<NewTransaction, Problem>;

/// Record up to 10 000 transactions in one durable commit.
#[utoipa::path(
    post, path = "/v1/transactions/batch", tag = "ledger",
    description = "An `Idempotency-Key` is refused: give each item a `transaction_id` instead. A malformed item or line is \
        that item's own 400; blank lines are skipped.",
    request_body(content(
        (schema::Batch = "application/json"),
        (RecordBody = "application/x-ndjson"),
    )),
    responses((status = 200, description = "What became of each, in order", body = BatchResults))
)]
pub(crate) async fn record_batch(api: Arc<Api>, mut call: Call) -> Answer {
    let (body, form) = call.batch_body().await?;
    call.no_query()?;
    headers::no_idempotency_key(call.headers(), "give each item a transaction_id instead")?;
    // Up to 16 MiB of JSON takes long enough to hold up others.
    let parsed = read_aside(move || parse_items(&body, form).map(|items| (items, body.into_share())));
    // What waits for the engine counts as the body that it came from.
    let (items, share) = parsed.await?;

    let mut transactions = Vec::new();
    let refused: Vec<Option<Problem>> = items
        .into_iter()
        .map(|item| match item {
            Ok(transaction) => {
                transactions.push(transaction);
                None
            }
            Err(problem) => Some(problem),
        })
        .collect();
    let recorded = if transactions.is_empty() { Vec::new() } else { api.engine.record_batch(transactions).await? };
    drop(share);

    let reply = read_aside(move || Ok::<_, Problem>(show(refused, recorded))).await?;
    reply.into()
}

fn parse_items(body: &Buffered, form: BatchForm) -> Result<Vec<Item>, Problem> {
    let parse = |bytes: &[u8]| parse_object::<RecordBody>(bytes).and_then(RecordBody::transaction);
    match form {
        BatchForm::Array => {
            let items = parse_array(body.bytes())?;
            require_room(items.len())?;
            Ok(items.into_iter().map(|item| parse(item.get().as_bytes())).collect())
        }
        BatchForm::Lines => {
            let lines: Vec<&[u8]> =
                body.bytes().split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).collect();
            require_room(lines.len())?;
            Ok(lines.into_iter().map(parse).collect())
        }
    }
}

fn require_room(items: usize) -> Result<(), Problem> {
    if items > MAX_ITEMS {
        return Err(Problem::invalid("batch", format!("a batch holds at most {MAX_ITEMS} transactions")));
    }
    Ok(())
}

/// Puts the answers back into the order of the items: those refused here, and those that the engine was given.
fn show(refused: Vec<Option<Problem>>, recorded: Vec<Result<Receipt<Transaction>, Refusal>>) -> Reply {
    let recorded: Vec<Result<Receipt<Transaction>, Problem>> =
        recorded.into_iter().map(|result| result.map_err(Problem::from)).collect();
    let mut recorded = recorded.iter();
    let refusal =
        |problem: Problem| BatchResult::Refused { status: problem.status().as_u16(), problem: problem.document() };
    let results = refused
        .into_iter()
        .map(|refused| match refused {
            Some(problem) => refusal(problem),
            None => match recorded.next().expect("the engine answers every transaction of a batch") {
                Ok(receipt) => BatchResult::Recorded {
                    status: if receipt.created { 201 } else { 200 },
                    transaction: TransactionShown::from(&receipt.value),
                },
                Err(problem) => refusal(problem.clone()),
            },
        })
        .collect();
    Reply::json(&BatchResults { results })
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;
    use crate::http::body::{self, Budget};

    async fn items(text: &str, form: BatchForm) -> Result<Vec<u16>, u16> {
        let budget = Budget::new(body::BATCH_LIMIT);
        let read = body::read(Body::from(text.to_owned()), body::BATCH_LIMIT, &budget).await.unwrap();
        match parse_items(&read, form) {
            Ok(items) => Ok(items.into_iter().map(|item| item.map_or_else(|p| p.status().as_u16(), |_| 201)).collect()),
            Err(problem) => Err(problem.status().as_u16()),
        }
    }

    const GOOD: &str = r#"{"payer_agent":"a","provider_agent":"b","capability":"c","amount":1}"#;
    const ZERO: &str = r#"{"payer_agent":"a","provider_agent":"b","capability":"c","amount":0}"#;

    #[tokio::test]
    async fn a_malformed_item_is_that_items_own_fault() {
        let array = format!("[{GOOD},5,{{}},{ZERO},{GOOD}]");
        assert_eq!(items(&array, BatchForm::Array).await, Ok(vec![201, 400, 400, 422, 201]));
        let lines = format!("{GOOD}\r\n\n  \n{{\n[1]\n{ZERO}\n{GOOD}");
        assert_eq!(items(&lines, BatchForm::Lines).await, Ok(vec![201, 400, 400, 422, 201]));
        assert_eq!(items("[]", BatchForm::Array).await, Ok(vec![]));
        assert_eq!(items("", BatchForm::Lines).await, Ok(vec![]));
        for bad in ["", "{}", "[", "[1,]", "[1] 2"] {
            assert_eq!(items(bad, BatchForm::Array).await, Err(400), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_batch_has_at_most_10_000_items() {
        let lines = "{}\n".repeat(MAX_ITEMS);
        assert_eq!(items(&lines, BatchForm::Lines).await.unwrap().len(), MAX_ITEMS);
        assert_eq!(items(&format!("{lines}{{}}"), BatchForm::Lines).await, Err(422));
        let array = format!("[{}0]", "0,".repeat(MAX_ITEMS));
        assert_eq!(items(&array, BatchForm::Array).await, Err(422));
    }
}
