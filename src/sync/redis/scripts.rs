//! The scripts: each step that must be whole, in the one place where all nodes meet.
//!
//! They run by their hash; a server that has forgotten them is told again and asked again. Versions are compared as
//! texts of one width made of digits, points and lower-case hex, an order that no locale changes. What a key holds that
//! no script of ours wrote counts as no version at all.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Pipeline, Script};

use super::keys;
use crate::clock::{Clock, SystemClock};
use crate::domain::version::highest_believed;
use crate::domain::{AgentVersion, Capabilities};

/// `v` if it is a version that a script of ours wrote. What passes here is read by every node: one key that was not
/// would stop all that want to tell of its agent. Of 75 bytes with these two points the three parts have their widths.
///
/// And `document`, unless it is longer than any that is read: many such answers would break the connection.
///
/// The highest sequence number is the one that [`AgentVersion::parse_wire`] reads. The last argument of every script that
/// compares versions is the highest epoch that is believed, by the clock of the node that asks, as with all that it reads.
const VERSION: &str = r#"
local highest, believed = '00253402300799999999', table.remove(ARGV)
local function version(v)
  if v and #v == 75 and string.sub(v, 21, 21) == '.' and string.sub(v, 42, 42) == '.'
    and string.find(v, '^[0-9]+%.[0-9]+%.[0-9a-f]+[+-]$')
    and string.sub(v, 1, 20) <= believed and string.sub(v, 22, 41) <= highest then return v end
  return false
end
local function brief(document)
  if document and #document <= 1048576 then return document end
  return ''
end
"#;

/// Takes an agent out of the sets of the capabilities that a document names.
const UNLIST: &str = r#"
local function unlist(document, id)
  local read, old = pcall(cjson.decode, document)
  if not read or type(old) ~= 'table' or type(old.capabilities) ~= 'table' then return end
  for _, capability in ipairs(old.capabilities) do
    if type(capability) == 'string' then redis.call('SREM', 'agents:capabilities:' .. capability, id) end
  end
end
"#;

/// KEYS: document, version, all, changes, outcomes. ARGV: id, version, document, lease, how much longer the version
/// lives, length of the stream, whether to write over other content of the same version, capabilities.
const PUSH: &str = r#"
local id, mine, text = ARGV[1], ARGV[2] .. '+', ARGV[3]
local held = version(redis.call('GET', KEYS[2]))
local there = redis.call('GET', KEYS[1])
if held and held ~= mine and string.sub(held, 1, 74) >= ARGV[2] then
  return {'newer', held, brief(there), redis.call('PTTL', KEYS[1])}
end
local same = there == text
if held == mine and there and not same and ARGV[7] == '0' and string.find(there, ARGV[2], 1, true) then
  return {'differs', held, brief(there), redis.call('PTTL', KEYS[1])}
end
if there and not same then unlist(there, id) end
redis.call('SADD', KEYS[3], id)
for i = 8, #ARGV do redis.call('SADD', 'agents:capabilities:' .. ARGV[i], id) end
local keep = tonumber(ARGV[4]) + tonumber(ARGV[5])
if held ~= mine or not same then
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[6], '*', 'agent_id', id, 'version', ARGV[2], 'kind', 'put')
end
redis.call('SET', KEYS[1], text, 'PX', ARGV[4])
redis.call('SET', KEYS[2], mine, 'PX', keep)
redis.pcall('PEXPIRE', KEYS[5], keep)
return {'pushed'}
"#;

/// KEYS as for a push. ARGV: id, version, how long it lives, length of the stream.
const REMOVE: &str = r#"
local id, mine = ARGV[1], ARGV[2] .. '-'
local held = version(redis.call('GET', KEYS[2]))
if held == mine then return {'pushed'} end
local there = redis.call('GET', KEYS[1])
if held and string.sub(held, 1, 74) >= ARGV[2] then
  return {'newer', held, brief(there), redis.call('PTTL', KEYS[1])}
end
-- With no version there, a document without `tradepost` is the registration of an older client since.
if there and (held or string.find(there, '"tradepost"', 1, true)) then
  unlist(there, id)
  redis.call('DEL', KEYS[1])
  redis.call('SREM', KEYS[3], id)
end
redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[4], '*', 'agent_id', id, 'version', ARGV[2], 'kind', 'removed')
redis.call('SET', KEYS[2], mine, 'PX', ARGV[3])
redis.pcall('PEXPIRE', KEYS[5], ARGV[3])
return {'pushed'}
"#;

/// KEYS: document, version, outcomes. ARGV: version, lease, how much longer the version lives.
const RENEW: &str = r#"
local mine = ARGV[1] .. '+'
local held = version(redis.call('GET', KEYS[2]))
local there = redis.call('GET', KEYS[1])
if held and held ~= mine and string.sub(held, 1, 74) >= ARGV[1] then
  return {'newer', held, brief(there), redis.call('PTTL', KEYS[1])}
end
if held ~= mine or not there or not string.find(there, ARGV[1], 1, true) then return {'missing'} end
local keep = tonumber(ARGV[2]) + tonumber(ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], keep)
redis.pcall('PEXPIRE', KEYS[3], keep)
local written = redis.pcall('HGET', KEYS[3], 'written')
return {'renewed', type(written) == 'string' and #written <= 20 and written or ''}
"#;

/// KEYS: outcomes, version. ARGV: observer, the counters acknowledged last, all counters, the least time to keep them,
/// channel.
const OBSERVE: &str = r#"
local there = redis.call('HGET', KEYS[1], ARGV[1])
if there and there ~= ARGV[2] and there ~= ARGV[3] then return {'other', there} end
if there ~= ARGV[3] then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
  -- What is no number there, or the highest one, was not written by us.
  local counted = redis.pcall('HINCRBY', KEYS[1], 'written', 1)
  if type(counted) == 'table' then redis.call('HSET', KEYS[1], 'written', 1) end
end
redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[2]), tonumber(ARGV[4])))
redis.call('PUBLISH', ARGV[5], 'outcomes')
return {'stored'}
"#;

/// KEYS: a set of agent ids. ARGV: ids that seemed to have no document.
const UNLIST_GONE: &str = r#"
local gone = 0
for _, id in ipairs(ARGV) do
  if redis.call('EXISTS', 'agent:' .. id) == 0 then gone = gone + redis.call('SREM', KEYS[1], id) end
end
return gone
"#;

/// One script: its text, and what it goes by.
struct Source {
    text: String,
    hash: String,
}

impl Source {
    fn new(parts: &[&str]) -> Self {
        let text = parts.concat();
        let hash = Script::new(&text).get_hash().to_owned();
        Self { text, hash }
    }
}

/// The scripts of one program.
pub struct Scripts {
    clock: Arc<dyn Clock>,
    push: Source,
    remove: Source,
    renew: Source,
    observe: Source,
    unlist_gone: Source,
}

impl Default for Scripts {
    fn default() -> Self {
        Self::new(Arc::new(SystemClock::default()))
    }
}

impl Scripts {
    /// The scripts of a node, by whose clock it is judged which versions are believed.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            push: Source::new(&[VERSION, UNLIST, PUSH]),
            remove: Source::new(&[VERSION, UNLIST, REMOVE]),
            renew: Source::new(&[VERSION, RENEW]),
            observe: Source::new(&[OBSERVE]),
            unlist_gone: Source::new(&[UNLIST_GONE]),
        }
    }

    /// Loads all of them.
    pub fn load(&self) -> Pipeline {
        let mut pipeline = Pipeline::new();
        for script in [&self.push, &self.remove, &self.renew, &self.observe, &self.unlist_gone] {
            pipeline.cmd("SCRIPT").arg("LOAD").arg(&script.text);
        }
        pipeline
    }

    /// Writes an agent's document, unless a newer version is there. With `over`, also over other content that has the
    /// same version.
    ///
    /// Answers `pushed`; or `newer` or `differs`, then the version, the document and its time to live.
    pub fn push(
        &self,
        agent_id: &str,
        version: AgentVersion,
        document: &str,
        lease: Duration,
        capabilities: &Capabilities,
        over: bool,
    ) -> Cmd {
        let mut command = evalsha(&self.push, 5);
        agent_keys(&mut command, agent_id);
        command.arg(agent_id).arg(version.to_wire()).arg(document).arg(millis(lease));
        command.arg(millis(keys::VERSION_OUTLIVES)).arg(keys::CHANGES_LENGTH).arg(i32::from(over));
        for capability in capabilities.iter() {
            command.arg(capability.as_str());
        }
        command.arg(self.believed());
        command
    }

    /// Removes an agent and remembers its deletion, unless a newer version is there. Answers as for a push.
    pub fn remove(&self, agent_id: &str, version: AgentVersion, keep: Duration) -> Cmd {
        let mut command = evalsha(&self.remove, 5);
        agent_keys(&mut command, agent_id);
        command.arg(agent_id).arg(version.to_wire()).arg(millis(keep + keys::VERSION_OUTLIVES));
        command.arg(keys::CHANGES_LENGTH).arg(self.believed());
        command
    }

    /// Renews the lease of a document if it is there in this version; touches nothing but times to live.
    ///
    /// Answers `renewed` and how often outcomes were written; or `missing`; or `newer` as for a push.
    pub fn renew(&self, agent_id: &str, version: AgentVersion, lease: Duration) -> Cmd {
        let mut command = evalsha(&self.renew, 3);
        command.arg(keys::document(agent_id)).arg(keys::version(agent_id)).arg(keys::outcomes(agent_id));
        command.arg(version.to_wire()).arg(millis(lease)).arg(millis(keys::VERSION_OUTLIVES)).arg(self.believed());
        command
    }

    fn believed(&self) -> String {
        format!("{:020}", highest_believed(self.clock.now()))
    }

    /// Stores an observer's counters if those are there that it last knew of, or none, or these. Answers `stored` or
    /// `other`.
    pub fn observe(&self, agent_id: &str, observer: &str, acked: &str, offered: &str) -> Cmd {
        let mut command = evalsha(&self.observe, 2);
        command.arg(keys::outcomes(agent_id)).arg(keys::version(agent_id));
        command.arg(observer).arg(acked).arg(offered).arg(millis(keys::VERSION_OUTLIVES)).arg(keys::bell(agent_id));
        command
    }

    /// Takes out of a set those of the agents that have no document. Answers how many.
    pub fn unlist_gone(&self, set: &str, agent_ids: &[String]) -> Cmd {
        let mut command = evalsha(&self.unlist_gone, 1);
        command.arg(set).arg(agent_ids);
        command
    }
}

fn evalsha(script: &Source, keys: usize) -> Cmd {
    let mut command = redis::cmd("EVALSHA");
    command.arg(&script.hash).arg(keys);
    command
}

fn agent_keys(command: &mut Cmd, agent_id: &str) {
    command.arg(keys::document(agent_id)).arg(keys::version(agent_id)).arg(keys::ALL).arg(keys::CHANGES);
    command.arg(keys::outcomes(agent_id));
}

/// Whole milliseconds, at least one: Redis refuses a time to live of none.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::version::HIGHEST_TOLD;
    use crate::sync::redis::document::MAX_DOCUMENT_BYTES;

    #[test]
    fn the_scripts_know_the_highest_version_and_the_longest_document_that_are_read() {
        assert!(VERSION.contains(&format!("'{HIGHEST_TOLD:020}'")));
        assert!(VERSION.contains(&format!("#document <= {MAX_DOCUMENT_BYTES} ")));
    }
}
