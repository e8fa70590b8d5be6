//! The load: so many callers at once, each with one call under way, for so long.
//!
//! All callers are tasks of one thread. They take their share of the processors, the same from whatever they call.

use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

use super::p99;

/// One connection, or whatever else makes one call after the other.
pub trait Caller: Send + 'static {
    /// Makes a call and waits for its answer; false when there is nothing left to do.
    fn call(&mut self) -> impl Future<Output = bool> + Send;
}

/// What came of a spell of calls.
#[derive(Debug, Clone, Default)]
pub struct Spell {
    pub per_second: f64,
    took: Vec<Duration>,
}

impl Spell {
    /// How many calls there were.
    pub fn calls(&self) -> usize {
        self.took.len()
    }

    /// All but one in a hundred took no longer.
    pub fn p99(&self) -> Duration {
        p99(&mut self.took.clone())
    }
}

/// The thread that callers run on.
pub fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime starts")
}

/// The first `count` callers call for so long; those who then still wait for an answer get it.
pub fn run<C: Caller>(runtime: &Runtime, callers: &mut Vec<C>, count: usize, time: Duration) -> Spell {
    runtime.block_on(async {
        let began = Instant::now();
        let tasks: Vec<_> = callers
            .drain(..count)
            .map(|mut caller| {
                tokio::spawn(async move {
                    let mut took = Vec::new();
                    let mut now = Instant::now();
                    while now.duration_since(began) < time && caller.call().await {
                        let answered = Instant::now();
                        took.push(answered - now);
                        now = answered;
                    }
                    (caller, took, now)
                })
            })
            .collect();
        let (mut all, mut ended) = (Vec::new(), began);
        for task in tasks {
            let (caller, took, end) = task.await.expect("a caller ends");
            callers.push(caller);
            all.extend(took);
            ended = ended.max(end);
        }
        Spell { per_second: all.len() as f64 / (ended - began).as_secs_f64(), took: all }
    })
}
