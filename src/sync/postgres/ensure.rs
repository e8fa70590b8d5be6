//! Whether PostgreSQL did what it was told: a trigger, a rule or a row policy may swallow a statement, or change what it
//! writes, without an error. What was not done counts as refused.

use std::collections::HashSet;

use uuid::Uuid;

use super::adopt;
use super::errors::{Kind, Trouble};
use super::merge::{NOT_TAKEN, Offer, Refused, Undo, refusal};
use super::payload::uuid;
use super::rows::{self, Shown};
use super::session::Session;
use crate::domain::{LedgerEntry, TransactionId};

/// Writes what rows have to show, and sees to it that they do: a trigger may keep them as they were, or change what is
/// written.
pub async fn update_rows(
    session: &Session,
    offers: &[&Offer],
    changed: &[(&TransactionId, Shown)],
) -> Result<(), Undo> {
    if changed.is_empty() {
        return Ok(());
    }
    let written = rows::update(session, changed).await?;
    let stands = |(id, shown): &&(&TransactionId, Shown)| {
        written.get(id.as_str()).is_some_and(|(status, evidence)| {
            *status == shown.status && adopt::evidence_of(evidence.as_deref()) == shown.evidence
        })
    };
    let differ: HashSet<&TransactionId> = changed.iter().filter(|row| !stands(row)).map(|(id, _)| *id).collect();
    if differ.is_empty() {
        return Ok(());
    }
    Err(not_taken(offers, |entry| differ.contains(&entry.event.transaction_id), "an update of its row"))
}

/// What these come to that were taken without an error, and are not there.
fn not_taken(offers: &[&Offer], is_concerned: impl Fn(&LedgerEntry) -> bool, what: &str) -> Undo {
    let reason = format!(
        "PostgreSQL took {what} without an error and did not do it: a trigger, a rule or a row policy is in the way"
    );
    let culprits: Vec<Refused> = offers
        .iter()
        .filter(|offer| is_concerned(&offer.entry))
        .map(|offer| refusal(offer, NOT_TAKEN, &reason))
        .collect();
    // What was adopted, nobody offered.
    if culprits.is_empty() { Trouble::new(Kind::Entry, reason).into() } else { Undo::Without(culprits) }
}

/// Inserts events, and sees to it that they are there: a trigger may let an event vanish without a word.
pub async fn insert_events(session: &Session, offers: &[&Offer], events: &[&LedgerEntry]) -> Result<(), Undo> {
    if rows::insert_events(session, events).await? == events.len() as u64 {
        return Ok(());
    }
    // Some were there already, as those of a row that somebody deleted are, or they were not taken.
    let ids: Vec<Uuid> = events.iter().map(|entry| uuid(entry.event.event_id.as_bytes())).collect();
    let absent = rows::absent(session, &ids).await?;
    if absent.is_empty() {
        return Ok(());
    }
    let is_absent = |entry: &LedgerEntry| absent.contains(&uuid(entry.event.event_id.as_bytes()));
    let offered: HashSet<_> = offers.iter().map(|offer| offer.entry.event.event_id).collect();
    // One that nobody offered, adopted or recalled, takes along what is offered of its transaction.
    let bereft: HashSet<&TransactionId> = events
        .iter()
        .filter(|entry| is_absent(entry) && !offered.contains(&entry.event.event_id))
        .map(|entry| &entry.event.transaction_id)
        .collect();
    let is_concerned = |entry: &LedgerEntry| is_absent(entry) || bereft.contains(&entry.event.transaction_id);
    Err(not_taken(offers, is_concerned, "an event"))
}

/// Of rows that were inserted, or were `present` before, and cannot be locked now: why not.
///
/// # Errors
///
/// [`Kind::Contention`] when somebody deleted one meanwhile.
pub async fn absent_rows<'a>(
    session: &Session,
    missing: &[&'a str],
    present: &HashSet<String>,
) -> Result<Vec<(&'a str, &'static str)>, Undo> {
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let seen: HashSet<String> = rows::present(session, missing).await?.into_iter().collect();
    let mut absent = Vec::new();
    for id in missing {
        let reason = match (present.contains(*id), seen.contains(*id)) {
            (_, true) => "its row is there, and cannot be locked: a row policy is in the way",
            (false, false) => "PostgreSQL took its row without an error, and does not hold it: a trigger is in the way",
            (true, false) => {
                let words = "a row of marketplace_transactions was deleted meanwhile";
                return Err(Trouble::new(Kind::Contention, words).into());
            }
        };
        absent.push((*id, reason));
    }
    Ok(absent)
}
