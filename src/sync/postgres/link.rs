//! A connection of a node, what was learned over it, and whether it stays open while there is nothing to do.
//!
//! An idle connection shows at once that its server is gone, and costs the server a process. It stays where the server
//! has room for more. It does not where a pooler is in between: that may share a few connections among any number of
//! clients, and what it has room for cannot be asked.

use super::config::Target;
use super::errors::{Kind, Trouble};
use super::pull::{self, Server};
use super::rhythm::Company;
use super::schema;
use super::session::Session;
use crate::domain::LogPosition;

/// A connection, and what was learned over it.
pub struct Link {
    target: Target,
    session: Option<Session>,
    /// The tables are there.
    is_prepared: bool,
    /// Whether this role may ask for the cluster's identifier.
    pub may_identify: bool,
    /// Where the fence stands; `None` while that is in doubt.
    pub fence: Option<LogPosition>,
    /// From where the fence would not move the last time.
    refused_at: Option<LogPosition>,
    /// What served the connection from its beginning, as far as it was looked at.
    server: Option<Server>,
}

impl Link {
    pub fn new(target: Target, session: Option<Session>) -> Self {
        Self { target, session, is_prepared: false, may_identify: false, fence: None, refused_at: None, server: None }
    }

    /// The fence moved.
    pub fn advanced(&mut self) {
        self.refused_at = None;
    }

    /// The fence is not where it was left, and has to be looked up.
    ///
    /// # Errors
    ///
    /// When it was looked up, and would not move from there either: that is nobody else's doing.
    pub fn lose_place(&mut self) -> Result<(), Trouble> {
        let at = self.fence.take();
        if at.is_some() && self.refused_at == at {
            self.refused_at = None;
            return Err(Trouble::new(
                Kind::Misconfigured,
                "marketplace_nodes is where this node left it, and does not take its update: a row policy or a trigger is in \
                 the way",
            ));
        }
        self.refused_at = at;
        Ok(())
    }

    /// Takes note of what serves the connection at present.
    pub fn meet(&mut self, now: Server) {
        let is_ours = match self.server {
            None => now.is_new,
            // A pooler that gave us a new one gives us another sooner or later.
            Some(before) => before.is_new && before.backend == now.backend,
        };
        self.server = Some(Server { is_new: is_ours, ..now });
    }

    /// Closes the connection; the next who asks for it makes another.
    pub fn close(&mut self) {
        self.session = None;
    }

    /// With how many others the server is shared: it decides whether the connection stays, and how often to look.
    pub fn company(&self) -> Company {
        match self.server {
            Some(server) if !server.has_room => Company::Crowd,
            Some(server) if server.is_new => Company::Few,
            _ => Company::Unknown,
        }
    }

    /// The connection, made anew if it was closed or broke off while it was not used.
    ///
    /// # Errors
    ///
    /// See [`Trouble`].
    pub async fn session(&mut self) -> Result<&mut Session, Trouble> {
        if self.session.as_ref().is_none_or(Session::is_closed) {
            self.session = Some(self.target.connect().await?);
            self.server = None;
            // Meanwhile another file may have come here under our name, or another server to this address.
            self.fence = None;
        }
        Ok(self.session.as_mut().expect("it was just made, or stands"))
    }

    /// Makes what is missing in the database, once.
    ///
    /// # Errors
    ///
    /// See [`Trouble`].
    pub async fn prepare(&mut self) -> Result<(), Trouble> {
        let is_prepared = self.is_prepared;
        let session = self.session().await?;
        if !is_prepared {
            schema::ensure(session, false).await?;
            let may_identify = pull::may_identify(session).await?;
            (self.is_prepared, self.may_identify) = (true, may_identify);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_stays_where_there_is_room_and_no_pooler() {
        let server = |backend, is_new, has_room| Server { backend, is_new, has_room };
        for (what, met, stays) in [
            ("nobody has looked yet", vec![], false),
            ("of our own", vec![server(1, true, true)], true),
            ("of our own for long", vec![server(1, true, true), server(1, false, true)], true),
            ("there are many others", vec![server(1, true, false)], false),
            ("the others have gone", vec![server(1, true, false), server(1, false, true)], true),
            ("it has served others before", vec![server(1, false, true)], false),
            ("another each time", vec![server(1, true, true), server(2, true, true)], false),
            ("the first one again", vec![server(1, true, true), server(2, true, true), server(2, true, true)], false),
        ] {
            let target = Target::parse("postgres://u@h/db").expect("sound");
            let mut link = Link::new(target, None);
            met.into_iter().for_each(|server| link.meet(server));
            assert_eq!(link.company() == Company::Few, stays, "{what}");
        }
    }
}
