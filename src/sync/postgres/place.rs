//! Finding our place in PostgreSQL, and what follows when it is not where we left it.
//!
//! | PostgreSQL | means | so |
//! | --- | --- | --- |
//! | has no row of ours | it is new, or was emptied | offer everything, others' events too |
//! | is ahead of us | an acknowledgement was lost | take note of it |
//! | is behind us | it was restored from a backup | offer again from there, others' events too |
//! | holds another log | this file is a copy | go on as another node, and offer everything |
//! | has another history | its numbers mean nothing here | read all again, offer everything again |

use super::errors::Trouble;
use super::fence::{Standing, judge};
use super::link::Link;
use super::pull::{Glance, break_in_history, glance, shared_payers};
use super::session::{Access, Limits};
use super::worker::Postgres;
use crate::domain::{LogPosition, NodeId, PostgresState};
use crate::engine::replica::{ForkReason, Saved};

impl Postgres {
    /// Looks where we stand and sets the cursors by it.
    pub(super) async fn take_place(&mut self, link: &mut Link) -> Result<(), Trouble> {
        let (node_id, state) = self.cursors()?;
        let may_identify = link.may_identify;
        let session = link.session().await?;
        session.begin(Access::Snapshot, Limits::default()).await?;
        let seen = glance(session, node_id, state.canary, may_identify).await?;
        session.commit().await?;
        link.meet(seen.server);
        link.fence = Some(self.settle(link, node_id, state, &seen).await?);
        Ok(())
    }

    /// Sets the cursors by what was seen of `node_id`; where the fence stands. Nothing is written where all is as it was.
    pub(super) async fn settle(
        &mut self,
        link: &mut Link,
        node_id: NodeId,
        state: PostgresState,
        seen: &Glance,
    ) -> Result<LogPosition, Trouble> {
        let mut new = state.clone();
        if let Some(reason) = break_in_history(&state, seen) {
            self.note(format!(
                "PostgreSQL is not the one that this node knew: {reason}; all is read and offered again"
            ));
            new = begun_anew();
            self.follow.forget();
        }
        let hash_at = match seen.fence {
            Some(central) => self.engine.log_hash(central.seq)?,
            None => None,
        };
        let fence = match judge(seen.fence, new.acked_seq, hash_at) {
            Standing::Same => seen.fence.unwrap_or_default(),
            // While all is offered again, how far that has come is not to be read off the fence.
            Standing::Ahead(fence) if new.restarted => fence,
            Standing::Ahead(fence) => {
                self.learn_shared(link, new.acked_seq, fence.seq).await?;
                (new.acked_seq, new.fence_hash) = (fence.seq, fence.hash);
                fence
            }
            Standing::Behind(fence) => {
                self.note(format!(
                    "PostgreSQL holds this node's events up to {} only, not up to {}; the rest is offered again",
                    fence.seq, new.acked_seq
                ));
                (new.acked_seq, new.fence_hash, new.acked_copies) = (fence.seq, fence.hash, 0);
                fence
            }
            Standing::Unknown => {
                (new.acked_seq, new.fence_hash, new.acked_copies) = (0, [0; 32], 0);
                LogPosition::default()
            }
            Standing::Forked => {
                let now = self.engine.fork(node_id, ForkReason::Ledger).await?;
                self.follow.forget();
                self.note(format!(
                    "PostgreSQL holds another ledger log under the id of this node, {node_id}: this file is a copy, or an \
                     old backup; it goes on as {now}"
                ));
                return Ok(LogPosition::default());
            }
        };
        if new != state {
            self.save(node_id, new).await?;
        }
        Ok(fence)
    }

    /// Whoever pushed these of our events, this file before it was put back or another copy of it, has learned then which
    /// transactions of ours another node recorded before us. This file learns it now.
    async fn learn_shared(&mut self, link: &mut Link, after: u64, upto: u64) -> Result<(), Trouble> {
        let identity = self.engine.identity();
        let session = link.session().await?;
        session.begin(Access::Snapshot, Limits::default()).await?;
        let payers = shared_payers(session, &identity, after, upto).await?;
        session.commit().await?;
        self.follow_payers(session, payers).await
    }

    /// Compares everything anew, as somebody asks.
    pub(super) async fn start_over(&mut self) -> Result<(), Trouble> {
        self.follow.forget();
        // To begin anew is right whatever this node is called.
        while self.engine.save_postgres(self.engine.node_id(), begun_anew()).await? == Saved::Outdated {}
        Ok(())
    }
}

/// Nothing is known to be there, and nothing was read.
fn begun_anew() -> PostgresState {
    PostgresState {
        acked_seq: 0,
        fence_hash: [0; 32],
        acked_copies: 0,
        snapshot: None,
        canary: None,
        system_identifier: None,
        restarted: true,
    }
}
