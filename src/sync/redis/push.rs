//! Telling Redis what became of local agents: one script each, many in a pipeline, and the next pipeline made while the
//! last one is on its way.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use redis::Pipeline;

use super::document;
use super::link::Link;
use super::scripts::Scripts;
use super::told::Told;
use crate::domain::AgentId;
use crate::engine::replica::{AgentChange, LocalLease};
use crate::sync::state::Failure;

/// How many agents one pipeline tells of at most.
const PIPELINE_AGENTS: usize = 256;
/// How many bytes of documents one pipeline holds about at most.
const PIPELINE_BYTES: usize = 1024 * 1024;
/// How many pipelines are on their way at once.
pub const IN_FLIGHT: usize = 3;

/// Tells of changes; what became of each, in their order.
pub async fn changes(link: &Link, scripts: &Scripts, changes: &[AgentChange]) -> Result<Vec<Told>, Failure> {
    let mut rest = changes;
    let pipelines = std::iter::from_fn(|| {
        let (pipeline, taken) = pipeline_of(scripts, rest);
        rest = &rest[taken..];
        (taken > 0).then_some(pipeline)
    });
    run(link, scripts, pipelines).await
}

/// Tells of one agent, over whatever other content has its version.
pub async fn over(link: &Link, scripts: &Scripts, change: &AgentChange) -> Result<Vec<Told>, Failure> {
    let mut pipeline = Pipeline::with_capacity(1);
    add(&mut pipeline, scripts, change, true);
    run(link, scripts, [pipeline]).await
}

/// Renews leases; what became of each, in their order.
pub async fn leases(link: &Link, scripts: &Scripts, leases: &[&LocalLease]) -> Result<Vec<Told>, Failure> {
    let pipelines = leases.chunks(PIPELINE_AGENTS).map(|chunk| {
        let mut pipeline = Pipeline::with_capacity(chunk.len());
        for lease in chunk {
            pipeline.add_command(scripts.renew(lease.agent_id.as_str(), lease.version, lease.remaining));
        }
        pipeline
    });
    run(link, scripts, pipelines).await
}

/// Runs pipelines of scripts one after the other, the next one on its way before the last one is answered.
pub async fn run(
    link: &Link,
    scripts: &Scripts,
    pipelines: impl IntoIterator<Item = Pipeline>,
) -> Result<Vec<Told>, Failure> {
    let answers: Vec<Vec<Told>> = stream::iter(pipelines)
        .map(|pipeline| async move {
            Ok::<Vec<Told>, Failure>(link.run(scripts, &pipeline).await?.into_iter().map(Told::read).collect())
        })
        .buffered(IN_FLIGHT)
        .try_collect()
        .await?;
    Ok(answers.into_iter().flatten().collect())
}

/// Which agent a change is about.
pub fn agent_id(change: &AgentChange) -> &AgentId {
    match change {
        AgentChange::Put { agent, .. } => &agent.agent_id,
        AgentChange::Removed { agent_id, .. } => agent_id,
    }
}

fn pipeline_of(scripts: &Scripts, changes: &[AgentChange]) -> (Pipeline, usize) {
    let mut pipeline = Pipeline::with_capacity(changes.len().min(PIPELINE_AGENTS));
    let (mut taken, mut bytes) = (0, 0);
    for change in changes.iter().take(PIPELINE_AGENTS) {
        bytes += add(&mut pipeline, scripts, change, false);
        taken += 1;
        if bytes >= PIPELINE_BYTES {
            break;
        }
    }
    (pipeline, taken)
}

/// Returns how long the document is.
fn add(pipeline: &mut Pipeline, scripts: &Scripts, change: &AgentChange, over: bool) -> usize {
    match change {
        AgentChange::Put { agent, remaining, .. } => {
            let text = document::write(agent);
            let id = agent.agent_id.as_str();
            pipeline.add_command(scripts.push(id, agent.version, &text, *remaining, &agent.capabilities, over));
            text.len()
        }
        AgentChange::Removed { agent_id, version, keep, .. } => {
            pipeline.add_command(scripts.remove(agent_id.as_str(), *version, *keep));
            0
        }
    }
}

/// Whether there is anything to tell of a change: an agent whose lease has run out dies in Redis by itself.
pub fn is_news(change: &AgentChange) -> bool {
    match change {
        AgentChange::Put { remaining, .. } => *remaining > Duration::ZERO,
        AgentChange::Removed { .. } => true,
    }
}
