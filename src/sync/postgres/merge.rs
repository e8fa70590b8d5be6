//! One group of events into the tables: rows made or locked, what older clients did adopted, events added, rows brought
//! to the fold of their events. Within a transaction that the caller began.
//!
//! Invariants at its end: every row that it touched shows the fold of all its events; no event is there whose
//! transaction has no row; all events of a transaction that count have the facts of its row.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::adopt::{CentralRow, adopt, recorder};
use super::checks::Checks;
use super::ensure;
use super::errors::Trouble;
use super::rows::{self, NewRow, Shown};
use super::session::Session;
use crate::domain::event::FactsHash;
use crate::domain::fold::{Fold, fold};
use crate::domain::sink::TRANSACTION_ID_CONFLICT;
use crate::domain::{AgentId, EventBody, Facts, LedgerEntry, Money, ParkedKey, Timestamp, TransactionId};

/// The code of an amount that a column would have to round.
pub const INEXACT_AMOUNT: &str = "inexact_amount";
/// The code of an event whose transaction is recorded nowhere.
pub const NOT_RECORDED: &str = "not_recorded";
/// The code of an event that was to join events or a row that this version cannot read.
pub const UNREADABLE: &str = "unreadable";

/// The code of an event that vanished on its way into its table.
pub const NOT_TAKEN: &str = "not_taken";

/// An event that is offered to PostgreSQL, and under which key it would be parked.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// The key.
    pub key: ParkedKey,
    /// The event.
    pub entry: LedgerEntry,
}

/// An event that PostgreSQL does not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Which.
    pub key: ParkedKey,
    /// An SQLSTATE, or a name of ours.
    pub code: String,
    /// The constraint, if one refused.
    pub constraint: Option<String>,
    /// Why, in words.
    pub reason: String,
}

/// A transaction id that other facts have in PostgreSQL.
#[derive(Debug, Clone, PartialEq)]
pub struct Conflict {
    /// The id.
    pub transaction_id: TransactionId,
    /// Whose facts stay.
    pub facts: FactsHash,
    /// What is central of it.
    pub central: Vec<LedgerEntry>,
}

/// What came of a group.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Merged {
    /// What was not taken, while the rest was.
    pub refused: Vec<Refused>,
    /// Ids that are taken.
    pub conflicts: Vec<Conflict>,
    /// How many events were made for what older clients did.
    pub adopted: usize,
    /// Who pays in transactions of ours that another node recorded before us. It is told of all that becomes of them, so
    /// that we have to follow somebody to be told as well.
    pub shared: Vec<AgentId>,
    /// Rows that were visited and stay as they are, for no event can say what they say; by id, and why.
    pub unadoptable: Vec<(String, String)>,
}

/// Why a group was not merged: the caller undoes it.
#[derive(Debug)]
pub enum Undo {
    /// Something failed.
    Trouble(Trouble),
    /// These are to be left out.
    Without(Vec<Refused>),
    /// These transactions would be refused, as far as their constraints tell: each is to be tried by itself.
    Suspects(HashSet<String>),
}

impl From<Trouble> for Undo {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

/// The `recorded` event of a transaction, as this node holds it.
pub type Recall<'a> = dyn Fn(&TransactionId) -> Result<Option<LedgerEntry>, Trouble> + Sync + 'a;

/// What is offered of one transaction, in its order.
#[derive(Default)]
struct Group<'a> {
    offers: Vec<&'a Offer>,
    recalled: Option<LedgerEntry>,
}

impl Group<'_> {
    fn entries(&self) -> impl Iterator<Item = &LedgerEntry> {
        self.recalled.iter().chain(self.offers.iter().map(|offer| &offer.entry))
    }

    fn facts(&self) -> Option<&Arc<Facts>> {
        self.entries().find_map(|entry| match &entry.event.body {
            EventBody::Recorded(facts) => Some(facts),
            _ => None,
        })
    }

    fn refuse(&self, code: &str, reason: &str, out: &mut Vec<Refused>) {
        out.extend(self.offers.iter().map(|offer| refusal(offer, code, reason)));
    }
}

/// The refusal of an offer by PostgreSQL itself.
pub fn refused_by(trouble: &Trouble, offer: &Offer) -> Refused {
    Refused {
        key: offer.key.clone(),
        code: trouble.code.clone().unwrap_or_default(),
        constraint: trouble.constraint.clone(),
        reason: trouble.words.clone(),
    }
}

pub(super) fn refusal(offer: &Offer, code: &str, reason: &str) -> Refused {
    Refused { key: offer.key.clone(), code: code.to_owned(), constraint: None, reason: reason.to_owned() }
}

/// Merges `offers`, and looks at the rows of `visits` whether somebody changed them. With `checks`, it is asked first what
/// would be refused.
///
/// # Errors
///
/// As [`Undo`] says; the transaction may be in a failed state.
pub async fn merge(
    session: &Session,
    offers: &[&Offer],
    visits: &[TransactionId],
    recall: &Recall<'_>,
    checks: Option<&Checks>,
    now: Timestamp,
) -> Result<Merged, Undo> {
    // Ordered by the bytes of the id, as `COLLATE "C"` orders.
    let mut groups: BTreeMap<&str, Group<'_>> = BTreeMap::new();
    for offer in offers {
        groups.entry(offer.entry.event.transaction_id.as_str()).or_default().offers.push(offer);
    }
    for id in visits {
        groups.entry(id.as_str()).or_default();
    }
    let mut merged = Merged::default();
    let all: Vec<&str> = groups.keys().copied().collect();
    let present: HashSet<String> = rows::present(session, &all).await?.into_iter().collect();
    recall_missing(&present, &mut groups, recall, &mut merged)?;

    let mut events: Vec<&LedgerEntry> = Vec::new();
    let fresh = insert_rows(session, &groups, &present, checks).await?;
    for (id, group) in groups.iter().filter(|(id, _)| fresh.contains(**id)) {
        let facts = group.facts().expect("only what is recorded was inserted").hash();
        let (fit, strange): (Vec<&Offer>, Vec<&Offer>) =
            group.offers.iter().copied().partition(|offer| offer.entry.event.facts == facts);
        events.extend(group.recalled.iter().chain(fit.iter().map(|offer| &offer.entry)));
        if !strange.is_empty() {
            let central = group.entries().filter(|entry| entry.event.facts == facts).cloned().collect();
            conflict(&TransactionId::from_stored(id), facts, &strange, central, &mut merged);
        }
    }

    let restored = restore(session, &fresh, &events).await?;
    let there: Vec<&str> = groups.keys().copied().filter(|id| !fresh.contains(*id)).collect();
    let joined = join(session, &groups, &there, &present, now, &mut merged).await?;
    events.extend(joined.iter().flat_map(|joined| &joined.new));
    ensure::insert_events(session, offers, &events).await?;
    let joined = joined.iter().filter_map(|joined| joined.shown.clone().map(|shown| (&joined.transaction_id, shown)));
    let changed: Vec<_> = joined.chain(restored.iter().map(|(id, shown)| (id, shown.clone()))).collect();
    ensure::update_rows(session, offers, &changed).await?;
    Ok(merged)
}

/// What rows have to show that were inserted anew although there are events of theirs: somebody deleted the row, or the
/// whole table. Without this, the next to come by would take the difference for an older client's doing.
async fn restore(
    session: &Session,
    fresh: &HashSet<String>,
    new: &[&LedgerEntry],
) -> Result<Vec<(TransactionId, Shown)>, Undo> {
    if fresh.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<&str> = fresh.iter().map(String::as_str).collect();
    let mut held: HashMap<String, Vec<LedgerEntry>> = HashMap::new();
    // Those that cannot be read are passed over here as everywhere.
    for event in rows::events_of(session, &ids).await?.into_iter().flatten() {
        held.entry(event.entry.event.transaction_id.to_string()).or_default().push(event.entry);
    }
    let restore = |(id, held): (String, Vec<LedgerEntry>)| {
        let new = new.iter().map(|entry| &entry.event).filter(|event| event.transaction_id.as_str() == id);
        let recorded = new.clone().find(|event| matches!(event.body, EventBody::Recorded(_)))?;
        let known: HashSet<_> = held.iter().map(|entry| entry.event.event_id).collect();
        let more = new.filter(|event| !known.contains(&event.event_id));
        let fold = fold(&recorded.facts, held.iter().map(|entry| &entry.event).chain(more))?;
        Some((TransactionId::from_stored(&id), shown(&fold)))
    };
    Ok(held.into_iter().filter_map(restore).collect())
}

/// An event whose transaction has no row brings along the `recorded` that this node holds, so that it has one.
fn recall_missing(
    present: &HashSet<String>,
    groups: &mut BTreeMap<&str, Group<'_>>,
    recall: &Recall<'_>,
    merged: &mut Merged,
) -> Result<(), Undo> {
    let unrecorded: Vec<&str> = groups
        .iter()
        .filter(|(_, group)| !group.offers.is_empty() && group.facts().is_none())
        .map(|(id, _)| *id)
        .collect();
    for id in unrecorded.into_iter().filter(|id| !present.contains(*id)) {
        let group = groups.get_mut(id).expect("it is one of them");
        group.recalled = recall(&TransactionId::from_stored(id))?;
        if group.recalled.is_none() {
            let group = groups.remove(id).expect("it is one of them");
            group.refuse(
                NOT_RECORDED,
                "its transaction is recorded neither here nor in PostgreSQL",
                &mut merged.refused,
            );
        }
    }
    Ok(())
}

/// Inserts a row for everything that is recorded in the groups and has none; the ids that were not there before.
///
/// Not for what has one: its constraints and triggers would be asked before it is seen that there is nothing to insert,
/// and need not take what is there already.
async fn insert_rows(
    session: &Session,
    groups: &BTreeMap<&str, Group<'_>>,
    present: &HashSet<String>,
    checks: Option<&Checks>,
) -> Result<HashSet<String>, Undo> {
    let ids: Vec<TransactionId> = groups.keys().map(|id| TransactionId::from_stored(id)).collect();
    let mut new = Vec::new();
    for (transaction_id, group) in ids.iter().zip(groups.values()) {
        if let Some(facts) = group.facts().filter(|_| !present.contains(transaction_id.as_str())) {
            let fold = fold(&facts.hash(), group.entries().map(|entry| &entry.event)).expect("it is recorded");
            new.push(NewRow { transaction_id, facts, shown: shown(&fold) });
        }
    }
    if new.is_empty() {
        return Ok(HashSet::new());
    }
    if let Some(checks) = checks {
        let suspects = checks.suspects(session, &new).await?;
        if !suspects.is_empty() {
            return Err(Undo::Suspects(suspects));
        }
    }
    let inserted = rows::insert(session, &new).await?;
    let mut inexact = Vec::new();
    let statuses: HashMap<&str, &str> = new.iter().map(|row| (row.transaction_id.as_str(), row.shown.status)).collect();
    for row in &inserted {
        let group = &groups[row.transaction_id.as_str()];
        if statuses[row.transaction_id.as_str()] != row.status {
            let reason = format!("a trigger of PostgreSQL made its status {:?}", row.status);
            group.refuse(NOT_TAKEN, &reason, &mut inexact);
            continue;
        }
        let amount = group.facts().expect("it was inserted from them").amount;
        if Money::parse(&row.amount) != Ok(amount) {
            let reason = format!(
                "the column would make {} of the amount {amount}; `tradepost central migrate` widens it",
                row.amount
            );
            group.refuse(INEXACT_AMOUNT, &reason, &mut inexact);
        }
    }
    if inexact.is_empty() {
        Ok(inserted.into_iter().map(|row| row.transaction_id).collect())
    } else {
        Err(Undo::Without(inexact))
    }
}

/// What joins a row that was there before.
struct Joined {
    transaction_id: TransactionId,
    /// Events that were not there.
    new: Vec<LedgerEntry>,
    /// What the row has to show, if it does not.
    shown: Option<Shown>,
}

/// Locks the rows that were there and reads their events, both after whoever held them let go, and adds what is offered.
async fn join(
    session: &Session,
    groups: &BTreeMap<&str, Group<'_>>,
    there: &[&str],
    present: &HashSet<String>,
    now: Timestamp,
    merged: &mut Merged,
) -> Result<Vec<Joined>, Undo> {
    if there.is_empty() {
        return Ok(Vec::new());
    }
    let (mut locked, mut unreadable) = (Vec::new(), Vec::new());
    for row in rows::lock(session, there).await? {
        match row {
            Ok(row) => locked.push(row),
            Err(row) => unreadable.push(row),
        }
    }
    let mut held: HashMap<String, Result<Vec<LedgerEntry>, String>> = HashMap::new();
    for event in rows::events_of(session, there).await? {
        match event {
            Ok(event) => {
                let list = held.entry(event.entry.event.transaction_id.to_string()).or_insert_with(|| Ok(Vec::new()));
                if let Ok(list) = list {
                    list.push(event.entry);
                }
            }
            Err(unreadable) => {
                let reason = unreadable.to_string();
                held.insert(unreadable.transaction_id, Err(reason));
            }
        }
    }
    let found: HashSet<&str> = locked
        .iter()
        .map(|row| row.transaction_id.as_str())
        .chain(unreadable.iter().map(|row| row.transaction_id.as_str()))
        .collect();
    let missing: Vec<&str> =
        there.iter().copied().filter(|id| !found.contains(id) && !groups[id].offers.is_empty()).collect();
    let absent = ensure::absent_rows(session, &missing, present).await?;
    if !absent.is_empty() {
        let mut culprits = Vec::new();
        absent.iter().for_each(|(id, reason)| groups[id].refuse(NOT_TAKEN, reason, &mut culprits));
        return Err(Undo::Without(culprits));
    }
    for row in &unreadable {
        cannot_join(&row.transaction_id, &groups[row.transaction_id.as_str()], &row.reason, merged);
    }
    let mut joined = Vec::new();
    for row in &locked {
        let id = row.transaction_id.as_str();
        let group = &groups[id];
        let held = held.remove(id).unwrap_or_else(|| Ok(Vec::new()));
        match held.and_then(|held| join_one(row, group, held, now, merged)) {
            Ok(one) => joined.push(one),
            Err(reason) => cannot_join(id, group, &reason, merged),
        }
    }
    Ok(joined)
}

fn cannot_join(id: &str, group: &Group<'_>, reason: &str, merged: &mut Merged) {
    if group.offers.is_empty() {
        merged.unadoptable.push((id.to_owned(), reason.to_owned()));
    } else {
        let reason = format!("PostgreSQL holds the transaction in a form that cannot be joined: {reason}");
        group.refuse(UNREADABLE, &reason, &mut merged.refused);
    }
}

fn join_one(
    row: &CentralRow,
    group: &Group<'_>,
    held: Vec<LedgerEntry>,
    now: Timestamp,
    merged: &mut Merged,
) -> Result<Joined, String> {
    let mut new = adopt(row, &held, group.facts(), now)?;
    merged.adopted += new.len();
    let facts = held
        .iter()
        .chain(&new)
        .find(|entry| matches!(entry.event.body, EventBody::Recorded(_)))
        .map(|entry| entry.event.facts)
        .expect("it is held, or was just adopted");
    let known: HashSet<_> = held.iter().map(|entry| entry.event.event_id).collect();
    let (fit, strange): (Vec<&Offer>, Vec<&Offer>) =
        group.offers.iter().copied().partition(|offer| offer.entry.event.facts == facts);
    if !strange.is_empty() {
        let central = held.iter().chain(&new).cloned().collect();
        conflict(&row.transaction_id, facts, &strange, central, merged);
    }
    let recorder = recorder(&held);
    for Offer { key, entry } in fit {
        let recorded_by = recorder.unwrap_or(entry.recorded_by);
        let is_our_record = matches!((key, &entry.event.body), (ParkedKey::Seq(_), EventBody::Recorded(_)));
        if is_our_record && recorded_by != entry.recorded_by {
            merged.shared.push(entry.payer_agent.clone());
        }
        if !known.contains(&entry.event.event_id) {
            new.push(LedgerEntry { recorded_by, ..entry.clone() });
        }
    }
    let fold = fold(&facts, held.iter().chain(&new).map(|entry| &entry.event)).expect("it is recorded");
    let should = shown(&fold);
    let is = should.status == row.status && should.created_at == row.created_at && should.evidence == row.evidence();
    Ok(Joined { transaction_id: row.transaction_id.clone(), new, shown: (!is).then_some(should) })
}

fn conflict(
    transaction_id: &TransactionId,
    facts: FactsHash,
    strange: &[&Offer],
    central: Vec<LedgerEntry>,
    merged: &mut Merged,
) {
    let reason = "PostgreSQL holds other facts under this transaction id, and they stay";
    merged.refused.extend(strange.iter().map(|offer| refusal(offer, TRANSACTION_ID_CONFLICT, reason)));
    merged.conflicts.push(Conflict { transaction_id: transaction_id.clone(), facts, central });
}

fn shown(fold: &Fold) -> Shown {
    Shown { created_at: fold.created_at, status: fold.status.as_str(), evidence: fold.evidence.clone() }
}
