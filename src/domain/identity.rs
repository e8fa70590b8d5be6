//! Who a node is: the id that it writes under, and those that it wrote under before.
//!
//! A file that was copied, or restored from a backup, goes on under a new id once it finds that another file goes by its
//! own. What it wrote before stays its own.

use super::ids::NodeId;

/// Who a node is, and who it was before it found that another file goes by the same id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its id.
    pub node_id: NodeId,
    /// Its earlier ids, newest first.
    pub earlier: Vec<NodeId>,
}

impl Identity {
    /// Whether this file writes, or once wrote, under an id.
    pub fn is_own(&self, node_id: NodeId) -> bool {
        self.node_id == node_id || self.earlier.contains(&node_id)
    }
}
