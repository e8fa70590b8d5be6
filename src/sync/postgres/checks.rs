//! Which rows a CHECK constraint would refuse, asked rather than tried.
//!
//! A batch that is refused has to be taken apart until the culprits stand alone, which takes as many statements as a
//! hundred batches. Once a constraint has refused, its own expression is asked of all rows of a batch at once, in the
//! database that keeps it, and those that it would refuse are tried one by one. The table has the last word: where it takes
//! one, the constraint is not asked any more. What no expression tells, a trigger or a type, is found by taking apart.

use std::collections::HashSet;

use tokio_postgres::types::Type;

use super::errors::{Kind, Trouble};
use super::rows::{NewRow, Rows};
use super::session::{Session, column};

/// A constraint that is violated.
const CHECK_VIOLATION: &str = "23514";
/// How many constraints are asked; a table hardly ever has as many.
const MAX_CHECKS: usize = 16;

/// The constraints that have refused something.
#[derive(Debug, Default)]
pub struct Checks {
    known: Vec<Check>,
    /// Those that cannot be asked.
    unasked: Vec<String>,
}

#[derive(Debug)]
struct Check {
    oid: u32,
    /// Of `marketplace_transactions`, in SQL.
    expression: String,
    /// What was refused with.
    trouble: Trouble,
}

impl Checks {
    /// Takes note of the constraint that refused, if one did that is not known yet; whether so. Within a transaction that
    /// is not failed.
    ///
    /// # Errors
    ///
    /// See [`Trouble`].
    pub async fn learn(&mut self, session: &Session, trouble: &Trouble) -> Result<bool, Trouble> {
        let (Some(CHECK_VIOLATION), Some(name)) = (trouble.code.as_deref(), &trouble.constraint) else {
            return Ok(false);
        };
        let is_old = self.known.iter().any(|check| check.trouble.constraint.as_ref() == Some(name));
        if is_old || self.unasked.contains(name) || self.known.len() + self.unasked.len() >= MAX_CHECKS {
            // What was asked and refuses all the same is another table's, or has changed.
            self.known.retain(|check| check.trouble.constraint.as_ref() != Some(name));
            return Ok(false);
        }
        let sql = "SELECT oid, pg_get_expr(conbin, conrelid) FROM pg_constraint
                    WHERE conname = $1 AND contype = 'c' AND conrelid = 'marketplace_transactions'::regclass";
        let rows = session.query(sql, &[(name, Type::TEXT)]).await?;
        let Some(row) = rows.first() else { return Ok(false) };
        self.known.push(Check { oid: column(row, 0)?, expression: column(row, 1)?, trouble: trouble.clone() });
        Ok(true)
    }

    /// Stops asking: an expression could not be evaluated outside of its table, or the table took what it refuses.
    pub fn give_up(&mut self) {
        self.unasked.extend(self.known.drain(..).filter_map(|check| check.trouble.constraint));
    }

    /// Whether this is the refusal of a constraint that is asked.
    pub fn explain(&self, trouble: &Trouble) -> bool {
        self.known.iter().any(|check| check.trouble.constraint == trouble.constraint && trouble.constraint.is_some())
    }

    /// Which of these rows would be refused, by id: a guess, as a column may be of another type than what is asked, and a
    /// trigger may change what is inserted.
    ///
    /// # Errors
    ///
    /// [`Kind::Unasked`] when they cannot be asked; [`Kind::Lost`] when the connection is.
    pub async fn suspects(&self, session: &Session, rows: &[NewRow<'_>]) -> Result<HashSet<String>, Trouble> {
        let mut suspects = HashSet::new();
        if self.known.is_empty() {
            return Ok(suspects);
        }
        let rows = Rows::new(rows);
        for check in &self.known {
            let sql = format!(
                "SELECT transaction_id FROM ({}) AS marketplace_transactions
                  WHERE ({}) IS FALSE
                    AND EXISTS (SELECT FROM pg_constraint
                                 WHERE oid = $11 AND conrelid = 'marketplace_transactions'::regclass)",
                Rows::SQL,
                check.expression
            );
            let mut parameters = rows.parameters().to_vec();
            parameters.push((&check.oid, Type::OID));
            let culprits = session.query(&sql, &parameters).await.map_err(|trouble| match trouble.kind {
                Kind::Lost => trouble,
                _ => Trouble { kind: Kind::Unasked, ..trouble },
            })?;
            for row in &culprits {
                suspects.insert(column(row, 0)?);
            }
        }
        Ok(suspects)
    }
}
