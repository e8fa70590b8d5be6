//! What reaches the writer, and how much of it goes into one commit.

use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::command::Job;

/// The most commands in one batch.
const MAX_BATCH: usize = 4_096;
/// Which part of a commit's time may be spent on waiting for more to commit.
const GATHERING_SHARE: u32 = 8;

/// What reaches the writer.
pub enum Message {
    /// A command.
    Run(Box<dyn Job>),
    /// Finish what is waiting, close the store, end.
    Stop,
}

impl Message {
    /// The command, if it is one.
    pub fn job(self) -> Option<Box<dyn Job>> {
        match self {
            Self::Run(job) => Some(job),
            Self::Stop => None,
        }
    }
}

/// The commands of one batch as they come in.
///
/// Callers that were answered together come back together, but not at once, and a commit costs its sync however little it
/// carries. So while there are fewer than last time, a part of what the last commit took is spent on waiting for the
/// rest. A caller that is alone never waits.
pub struct Intake {
    messages: Receiver<Message>,
    /// How many the last batch had.
    expected: usize,
    /// How much waiting is left for all of this batch.
    patience: Duration,
    /// Whether the engine is to stop.
    pub stopped: bool,
}

impl Intake {
    /// Of the next batch; `is_busy` says that it has a command already.
    pub fn begin(messages: &Receiver<Message>, is_busy: bool, last_batch: usize, last_commit: Duration) -> Self {
        let expected = if is_busy { last_batch } else { 0 };
        Self { messages: messages.clone(), expected, patience: last_commit / GATHERING_SHARE, stopped: false }
    }

    /// The next command of a batch that has so many.
    pub fn next(&mut self, taken: usize) -> Option<Box<dyn Job>> {
        if taken >= MAX_BATCH {
            return None;
        }
        let mut waiting_since = None;
        let job = loop {
            match self.messages.try_recv() {
                Ok(Message::Run(job)) => break Some(job),
                Ok(Message::Stop) => self.stopped = true,
                Err(_) if self.stopped || taken >= self.expected => break None,
                Err(_) => {
                    let since = *waiting_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= self.patience {
                        break None;
                    }
                    std::thread::yield_now();
                }
            }
        };
        let waited = waiting_since.map_or(Duration::ZERO, |since: Instant| since.elapsed());
        self.patience = self.patience.saturating_sub(waited);
        job
    }
}
