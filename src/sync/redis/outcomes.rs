//! Outcomes on their way from whoever observed an agent to the node that owns it: cumulative counters, so that saying
//! them twice changes nothing.

use std::str;

use redis::{Cmd, Pipeline};

use super::keys;
use super::link::Link;
use super::push;
use super::scripts::Scripts;
use super::told::Told;
use crate::domain::{AgentId, Counters, MAX_OBSERVERS, ObserverId};
use crate::engine::replica::Observation;
use crate::sync::state::Failure;

/// How many agents one pipeline asks about, or tells of.
const PIPELINE_AGENTS: usize = 256;
/// How many observers one answer holds about at most.
const PAGE: usize = 512;
/// How many observers of one agent are looked at: more than are folded, so that a full hash hides none of those.
const LOOKED_AT: usize = 4 * MAX_OBSERVERS;

/// Tells what is offered of what was observed here; what became of each, in their order.
pub async fn offer(link: &Link, scripts: &Scripts, observations: &[Observation]) -> Result<Vec<Told>, Failure> {
    let pipelines = observations.chunks(PIPELINE_AGENTS).map(|chunk| {
        let mut pipeline = Pipeline::with_capacity(chunk.len());
        for seen in chunk {
            let (acked, offered) = (write(seen.acked), write(seen.offered));
            pipeline.add_command(scripts.observe(seen.agent_id.as_str(), &seen.observer.to_string(), &acked, &offered));
        }
        pipeline
    });
    push::run(link, scripts, pipelines).await
}

/// What all observers have seen of these agents, some of it perhaps twice. What cannot be read is left out, and what
/// somebody added beyond all measure.
pub async fn read(link: &Link, agent_ids: &[AgentId]) -> Result<Vec<(AgentId, ObserverId, Counters)>, Failure> {
    let mut seen = Vec::new();
    for chunk in agent_ids.chunks(PIPELINE_AGENTS) {
        let mut pipeline = Pipeline::with_capacity(chunk.len());
        for agent_id in chunk {
            pipeline.add_command(page(agent_id, 0));
        }
        for (agent_id, value) in chunk.iter().zip(link.values(&pipeline).await?) {
            // A key of another type, which somebody else made, is as good as none.
            let Ok((mut cursor, mut fields)) = redis::from_redis_value::<Page>(value) else { continue };
            let mut looked_at = 0;
            loop {
                looked_at += fields.len();
                seen.extend(fields.iter().filter_map(|(observer, counters)| {
                    let observer = ObserverId::parse(str::from_utf8(observer).ok()?)?;
                    Some((agent_id.clone(), observer, parse(counters)?))
                }));
                if cursor == 0 || looked_at >= LOOKED_AT {
                    break;
                }
                (cursor, fields) = link.query(&page(agent_id, cursor)).await?;
            }
        }
    }
    Ok(seen)
}

/// Where to go on, and fields with their values.
type Page = (u64, Vec<(Vec<u8>, Vec<u8>)>);

fn page(agent_id: &AgentId, cursor: u64) -> Cmd {
    let mut command = redis::cmd("HSCAN");
    command.arg(keys::outcomes(agent_id.as_str())).arg(cursor).arg("COUNT").arg(PAGE);
    command
}

/// Successes, failures, and by how much the score was to move, to the last digit: equal counters are equal texts.
fn write(counters: Counters) -> String {
    format!("{}:{}:{:?}", counters.successes, counters.failures, counters.score)
}

/// What [`write`] writes.
pub fn parse(bytes: &[u8]) -> Option<Counters> {
    let mut parts = str::from_utf8(bytes).ok()?.split(':');
    let (successes, failures, score) = (parts.next()?, parts.next()?, parts.next()?);
    let score: f64 = score.parse().ok().filter(|score: &f64| score.is_finite())?;
    let counters = Counters { successes: successes.parse().ok()?, failures: failures.parse().ok()?, score };
    parts.next().is_none().then_some(counters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_read_back_to_the_last_digit_and_strangers_do_not() {
        for score in [0.0, -0.5, 0.1 + 0.2, 1e300, f64::MIN_POSITIVE] {
            let counters = Counters { successes: u64::MAX, failures: 0, score };
            assert_eq!(parse(write(counters).as_bytes()), Some(counters));
        }
        for bad in ["", "1", "1:2", "1:2:NaN", "1:2:inf", "-1:2:0", "1:2:3:4", "a:b:c", "18446744073709551616:0:0"] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
