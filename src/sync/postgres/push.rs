//! One batch of events to PostgreSQL, in one transaction with the fence.
//!
//! What the batch holds is merged as a whole. If an entry is refused for its own content, the batch is taken apart in
//! ever smaller pieces, each behind a savepoint, until the culprits stand alone, or constraints tell which they are
//! ([`checks`](super::checks)); the rest goes through. The transaction is left open: what was refused must be set aside in the local file *before* it is committed, or a crash between the
//! two would lose it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use super::checks::Checks;
use super::errors::{Kind, Trouble};
use super::fence;
use super::merge::{Conflict, Merged, NOT_TAKEN, Offer, Recall, Refused, Undo, merge, refused_by};
use super::rows;
use super::session::{Access, Limits, Session};
use crate::domain::{AgentId, LogPosition, NodeId, ParkedKey, Timestamp};

/// The most events of one batch.
pub const MAX_EVENTS: usize = 5_000;
/// The most bytes of one batch.
pub const MAX_BYTES: usize = 8 * 1024 * 1024;
/// The sizes of the pieces into which a refused batch is taken apart, one after the other.
const PIECES: [usize; 3] = [100, 10, 1];
/// Among how many entries in a row one and the same refusal of more than half means that not they are at fault.
const WINDOW: usize = 200;

/// A batch.
pub struct Push<'a> {
    /// Whose log it is.
    pub node_id: NodeId,
    /// Where the fence stands.
    pub from: LogPosition,
    /// Where it will stand; the same where the batch holds nothing new of the log.
    pub to: LogPosition,
    /// The events, in their order.
    pub offers: &'a [Offer],
    /// Finds the `recorded` of a transaction that has no row.
    pub recall: &'a Recall<'a>,
    /// The time, for what is adopted.
    pub now: Timestamp,
    /// Whether to take it apart at once, as the last one had to be.
    pub in_pieces: bool,
}

/// What came of a batch whose transaction waits for its commit.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Pushed {
    /// The id of the transaction.
    pub xid: u64,
    /// What PostgreSQL does not take.
    pub refused: Vec<Refused>,
    /// Ids that other facts have there.
    pub conflicts: Vec<Conflict>,
    /// Whom this node has to follow: see [`Merged::shared`].
    pub shared: Vec<AgentId>,
    /// How many events were made for what older clients did.
    pub adopted: usize,
    /// Whether it had to be taken apart.
    pub in_pieces: bool,
}

/// How the last entries fared, to tell bad entries from a table that takes none.
#[derive(Debug, Default)]
pub struct Window {
    last: VecDeque<Option<Cause>>,
    is_blind: bool,
}

type Cause = (String, Option<String>);

impl Window {
    /// One that sees nothing: that entries are refused which were refused before says nothing about the table.
    pub fn blind() -> Self {
        Self { is_blind: true, ..Self::default() }
    }

    /// Takes in what came of a piece. Whatever there was less of counts as earlier, for they were mixed.
    ///
    /// # Errors
    ///
    /// [`Kind::Misconfigured`] when one cause refuses more than half of the last entries.
    fn saw(&mut self, taken: usize, refused: &[Refused]) -> Result<(), Trouble> {
        if self.is_blind {
            return Ok(());
        }
        let taken_last = taken >= refused.len();
        let none = |is_their_turn| std::iter::repeat_n(None, if is_their_turn { taken.min(WINDOW) } else { 0 });
        self.last.extend(none(!taken_last));
        self.last.extend(refused.iter().map(|refused| Some((refused.code.clone(), refused.constraint.clone()))));
        self.last.extend(none(taken_last));
        while self.last.len() > WINDOW {
            self.last.pop_front();
        }
        if self.last.len() < WINDOW {
            return Ok(());
        }
        let mut counts: HashMap<&Cause, usize> = HashMap::new();
        for cause in self.last.iter().flatten() {
            *counts.entry(cause).or_default() += 1;
        }
        let Some((cause, count)) = counts.into_iter().max_by_key(|(_, count)| *count) else { return Ok(()) };
        if count * 2 <= WINDOW || !may_be_the_tables(&cause.0) {
            return Ok(());
        }
        let of = cause.1.as_ref().map(|constraint| format!(" of {constraint}")).unwrap_or_default();
        let with = if cause.0 == NOT_TAKEN {
            "by letting them vanish".to_owned()
        } else {
            format!("with SQLSTATE {}", cause.0)
        };
        let words = format!(
            "PostgreSQL refused {count} of the last {WINDOW} entries {with}{of}; it seems to be the table, not the \
             entries, that has to change"
        );
        let (code, constraint) = (Some(cause.0.clone()), cause.1.clone());
        self.last.clear();
        Err(Trouble { kind: Kind::Misconfigured, code, constraint, culprit: None, words })
    }
}

/// Most names of our own say what is wrong with an entry; PostgreSQL can refuse all for a reason of its own.
fn may_be_the_tables(code: &str) -> bool {
    let is_sqlstate = code.len() == 5 && code.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
    is_sqlstate || code == NOT_TAKEN
}

impl Push<'_> {
    /// Does everything but the commit. After an error nothing is left of it.
    ///
    /// # Errors
    ///
    /// [`Kind::FenceMoved`] when the fence is not where the batch begins; else see [`Trouble`].
    pub async fn run(
        &self,
        session: &mut Session,
        window: &mut Window,
        checks: &mut Checks,
    ) -> Result<Pushed, Trouble> {
        session.begin(Access::ReadWrite, Limits::default()).await?;
        match self.work(session, window, checks).await {
            Ok(pushed) => Ok(pushed),
            Err(trouble) => {
                if trouble.kind != Kind::Lost {
                    session.rollback().await?;
                }
                Err(trouble)
            }
        }
    }

    async fn work(&self, session: &Session, window: &mut Window, checks: &mut Checks) -> Result<Pushed, Trouble> {
        let xid = fence::advance(session, self.node_id, self.from, self.to).await?;
        let mut pushed = Pushed { xid, ..Pushed::default() };
        let whole = Piece { offers: self.offers.iter().collect(), next: 0, asks: true, is_suspect: false };
        let mut pieces: VecDeque<Piece<'_>> = VecDeque::new();
        if self.in_pieces && whole.offers.len() > PIECES[0] {
            whole.split(&mut pieces);
        } else {
            pieces.push_back(whole);
        }
        let mut savepoint = Savepoint::None;
        // What was refused while it was among others counts with them.
        let mut uncounted: Vec<Refused> = Vec::new();
        while let Some(piece) = pieces.pop_front() {
            if piece.offers.is_empty() {
                continue;
            }
            // After a rollback to it the savepoint is still there.
            match savepoint {
                Savepoint::None => session.batch("SAVEPOINT piece").await?,
                Savepoint::Used => session.batch("RELEASE SAVEPOINT piece; SAVEPOINT piece").await?,
                Savepoint::Fresh => {}
            }
            let asked = piece.asks.then_some(&*checks);
            let undo = match merge(session, &piece.offers, &[], self.recall, asked, self.now).await {
                Ok(merged) => {
                    savepoint = Savepoint::Used;
                    if piece.is_suspect {
                        checks.give_up();
                    }
                    uncounted.extend(merged.refused.iter().cloned());
                    window.saw(piece.offers.len() - merged.refused.len(), &std::mem::take(&mut uncounted))?;
                    pushed.add(merged);
                    continue;
                }
                Err(undo) => undo,
            };
            if let Undo::Trouble(trouble) = &undo
                && !matches!(trouble.kind, Kind::Entry | Kind::Unasked)
            {
                return Err(trouble.clone());
            }
            session.batch("ROLLBACK TO SAVEPOINT piece").await?;
            savepoint = Savepoint::Fresh;
            match undo {
                Undo::Suspects(ids) => piece.part(&ids, &mut pieces),
                Undo::Trouble(trouble) if trouble.kind == Kind::Unasked => {
                    tracing::debug!(reason = %trouble, "constraints of PostgreSQL cannot be asked");
                    checks.give_up();
                    pieces.push_front(piece);
                }
                Undo::Trouble(trouble) if piece.is_suspect && checks.explain(&trouble) => {
                    let refused = piece.offers.iter().map(|offer| refused_by(&trouble, offer));
                    uncounted.extend(refused.clone());
                    pushed.refused.extend(refused);
                }
                Undo::Trouble(trouble) if piece.offers.len() > 1 && checks.learn(session, &trouble).await? => {
                    pieces.push_front(Piece { asks: true, ..piece });
                }
                Undo::Trouble(trouble) => {
                    pushed.in_pieces = true;
                    if let [culprit] = piece.offers.as_slice() {
                        let refused = refused_by(&trouble, culprit);
                        window.saw(0, std::slice::from_ref(&refused))?;
                        pushed.refused.push(refused);
                    } else if piece.offers.len() > PIECES[0] || !piece.single_out(&trouble, &mut pieces) {
                        piece.split(&mut pieces);
                    }
                }
                Undo::Without(culprits) => {
                    let keys: HashSet<&ParkedKey> = culprits.iter().map(|culprit| &culprit.key).collect();
                    let offers = piece.offers.iter().copied().filter(|offer| !keys.contains(&offer.key)).collect();
                    pieces.push_front(Piece { offers, ..piece });
                    uncounted.extend(culprits.iter().cloned());
                    pushed.refused.extend(culprits);
                }
            }
        }
        window.saw(0, &uncounted)?;
        Ok(pushed)
    }
}

impl Pushed {
    fn add(&mut self, merged: Merged) {
        self.refused.extend(merged.refused);
        self.conflicts.extend(merged.conflicts);
        self.shared.extend(merged.shared);
        self.adopted += merged.adopted;
    }
}

/// Where the savepoint of the current piece stands.
enum Savepoint {
    None,
    Fresh,
    Used,
}

/// Some of a batch that are tried together.
struct Piece<'a> {
    offers: Vec<&'a Offer>,
    /// Which of [`PIECES`] it is taken apart into.
    next: usize,
    /// Whether constraints are to be asked first.
    asks: bool,
    /// It is one transaction that a constraint would refuse, as it says.
    is_suspect: bool,
}

impl<'a> Piece<'a> {
    fn of(&self, offers: Vec<&'a Offer>) -> Self {
        // What constraints could tell of it, they have told.
        Self { offers, next: self.next, asks: false, is_suspect: false }
    }

    /// Puts each transaction that is suspected by itself before the rest. Where most are, it is for the table to say so.
    fn part(self, suspects: &HashSet<String>, pieces: &mut VecDeque<Self>) {
        let mut by_id: BTreeMap<&str, Vec<&'a Offer>> = BTreeMap::new();
        let mut rest = Vec::new();
        for offer in &self.offers {
            let id = offer.entry.event.transaction_id.as_str();
            if suspects.contains(id) { by_id.entry(id).or_default().push(*offer) } else { rest.push(*offer) }
        }
        if rest.len() < self.offers.len() / 2 {
            pieces.push_front(self.of(self.offers.clone()));
            return;
        }
        pieces.push_front(self.of(rest));
        for offers in by_id.into_values() {
            pieces.push_front(Piece { is_suspect: true, ..self.of(offers) });
        }
    }

    /// Puts what PostgreSQL names as the culprit before the rest, each a piece; whether it named one. Whether it is one
    /// shows when it stands alone.
    fn single_out(&self, trouble: &Trouble, pieces: &mut VecDeque<Self>) -> bool {
        let Some(id) = &trouble.culprit else { return false };
        let is_culprit = |offer: &&&Offer| offer.entry.event.transaction_id.as_str() == id;
        let (culprits, rest): (Vec<&Offer>, Vec<&Offer>) = self.offers.iter().partition(is_culprit);
        if culprits.is_empty() || rest.is_empty() {
            return false;
        }
        pieces.push_front(self.of(rest));
        pieces.push_front(self.of(culprits));
        true
    }

    /// Puts its parts first, in their order, each of the largest size that is smaller than it.
    fn split(&self, pieces: &mut VecDeque<Self>) {
        let mut next = self.next;
        while PIECES[next] >= self.offers.len() && next + 1 < PIECES.len() {
            next += 1;
        }
        for part in self.offers.chunks(PIECES[next]).rev() {
            pieces.push_front(Piece { next: (next + 1).min(PIECES.len() - 1), ..self.of(part.to_vec()) });
        }
    }
}

/// Which offers wait for rows that somebody else keeps locked just now.
///
/// # Errors
///
/// See [`Trouble`].
pub async fn waiting_for_locks(session: &mut Session, offers: &[Offer]) -> Result<Vec<ParkedKey>, Trouble> {
    let mut ids: Vec<&str> = offers.iter().map(|offer| offer.entry.event.transaction_id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    session.begin(Access::ReadWrite, Limits::default()).await?;
    let locked = rows::locked_by_others(session, &ids).await;
    session.rollback().await?;
    let locked: HashSet<String> = locked?.into_iter().collect();
    let waits = |offer: &&Offer| locked.contains(offer.entry.event.transaction_id.as_str());
    Ok(offers.iter().filter(waits).map(|offer| offer.key.clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(count: usize, code: &str) -> Vec<Refused> {
        (0..count as u64)
            .map(|seq| Refused {
                key: ParkedKey::Seq(seq),
                code: code.to_owned(),
                constraint: Some("positive".to_owned()),
                reason: String::new(),
            })
            .collect()
    }

    #[test]
    fn one_cause_for_more_than_half_of_200_entries_is_no_fault_of_theirs() {
        let mut window = Window::default();
        assert_eq!(window.saw(0, &refused(199, "23514")), Ok(()), "too few to tell");
        let halted = window.saw(1, &[]).unwrap_err();
        assert_eq!(halted.kind, Kind::Misconfigured);
        assert!(halted.words.contains("23514 of positive"), "{halted}");
        assert_eq!(window.saw(0, &refused(150, "23514")), Ok(()), "it begins anew");

        let mut window = Window::default();
        assert_eq!(window.saw(0, &refused(60, "23514")), Ok(()));
        assert_eq!(window.saw(0, &refused(60, "22003")), Ok(()));
        assert_eq!(window.saw(5_000, &refused(90, "23514")), Ok(()), "bad luck, not a bad table");
        assert_eq!(window.saw(4_700, &refused(300, "23514")), Ok(()), "one in sixteen");
        assert!(window.saw(2_000, &refused(3_000, "23514")).is_err(), "three of five");
        assert_eq!(Window::default().saw(0, &refused(300, "inexact_amount")), Ok(()));
    }
}
