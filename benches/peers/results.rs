//! What came of the comparisons: the table, and the picture of those that count.

use std::path::Path;
use std::process::ExitCode;

use crate::common::{Bound, Report};
use crate::picture::{self, Bar};

/// The table and the picture.
#[derive(Debug, Default)]
pub struct Results {
    pub report: Report,
    bars: Vec<Bar>,
}

impl Results {
    /// How many times as fast ours is as a peer.
    pub fn against(&mut self, ours: &str, peer: &str, ratio: f64, bound: Option<Bound>) {
        let what = format!("{ours} / {peer}");
        match bound {
            Some(bound) => self.report.ratio(what, ratio, bound),
            None => self.report.shown(what, ratio),
        }
        self.bars.push(Bar { ours: ours.to_owned(), peer: peer.to_owned(), ratio });
    }

    /// Prints the table, and draws the picture if there is to be one; a failure if a bound was missed.
    pub fn finish(self, picture: Option<&Path>) -> ExitCode {
        if let Some(path) = picture {
            std::fs::write(path, picture::draw(&self.bars)).expect("the picture can be written");
            eprintln!("{} shows it", path.display());
        }
        self.report.finish()
    }
}
