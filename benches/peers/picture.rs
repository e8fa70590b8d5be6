//! The picture: a bar for each peer, on a logarithmic scale, to the right of the line where ours is faster and to its
//! left where the peer is.

use std::fmt::Write;

/// How many times as fast ours is as a peer.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    pub ours: String,
    pub peer: String,
    pub ratio: f64,
}

const WIDTH: f64 = 860.0;
/// Where the scale begins and ends.
const SCALE: (f64, f64) = (330.0, 790.0);
const ROW: f64 = 22.0;
const HEADING: f64 = 34.0;
const TOP: f64 = 56.0;

/// Readers' own preference decides between light and dark; both are checked against the background that they have there.
const STYLE: &str = "
    text { font: 13px system-ui, sans-serif; fill: #1f2328 }
    .title { font-weight: 600; font-size: 15px } .ours { font-weight: 600 } .mark { fill: #59636e; font-size: 11px }
    .grid { stroke: #d1d9e0 } .even { stroke: #59636e; stroke-width: 1.5 }
    .faster { fill: #1a7f64 } .slower { fill: #bc6c25 }
    @media (prefers-color-scheme: dark) {
        text { fill: #e6edf3 } .mark { fill: #9198a1 } .grid { stroke: #3d444d } .even { stroke: #9198a1 }
        .faster { fill: #3fb68b } .slower { fill: #e0954f }
    }
";

/// The picture as SVG; bars with the same `ours` stand under one heading, in the order in which they came.
pub fn draw(bars: &[Bar]) -> String {
    let scale = Scale::of(bars);
    let headings = bars.chunk_by(|a, b| a.ours == b.ours).count();
    let bottom = TOP + headings as f64 * HEADING + bars.len() as f64 * ROW;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n<title>How many times as fast as others</title>\n<style>{STYLE}</style>\n\
         <text class=\"title\" x=\"16\" y=\"26\">How many times as fast as others, in one run on one machine</text>\n",
        height = bottom + 16.0,
    );
    for mark in scale.marks() {
        let (x, class) = (scale.place(mark), if mark == 1.0 { "even" } else { "grid" });
        line(&mut svg, &format!("<text class=\"mark\" x=\"{x:.1}\" y=\"46\" text-anchor=\"middle\">{mark}×</text>"));
        line(&mut svg, &format!("<line class=\"{class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>"));
    }
    let mut y = TOP;
    for group in bars.chunk_by(|a, b| a.ours == b.ours) {
        y += HEADING;
        line(
            &mut svg,
            &format!("<text class=\"ours\" x=\"16\" y=\"{:.1}\">{}</text>", y - 8.0, escape(&group[0].ours)),
        );
        for bar in group {
            row(&mut svg, bar, &scale, y);
            y += ROW;
        }
    }
    svg + "</svg>\n"
}

fn row(svg: &mut String, bar: &Bar, scale: &Scale, y: f64) {
    let (even, end, text) = (scale.place(1.0), scale.place(bar.ratio), y + 14.0);
    let (left, width) = (even.min(end), (even - end).abs().max(1.0));
    let class = if bar.ratio < 1.0 { "slower" } else { "faster" };
    let peer = escape(&bar.peer);
    line(svg, &format!("<text x=\"32\" y=\"{text:.1}\">÷ {peer}</text>"));
    let top = y + 3.0;
    line(
        svg,
        &format!(
            "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"14\" rx=\"2\"/>"
        ),
    );
    // Behind the bar or, where it points to the left, behind the line.
    let behind = even.max(end) + 6.0;
    line(svg, &format!("<text x=\"{behind:.1}\" y=\"{text:.1}\">{}×</text>", rounded(bar.ratio)));
}

/// Powers of ten, from the one below the smallest ratio to the one above the greatest.
struct Scale {
    from: i32,
    to: i32,
}

impl Scale {
    fn of(bars: &[Bar]) -> Self {
        let logs = || bars.iter().map(|bar| bar.ratio.log10());
        Self { from: logs().fold(-0.5, f64::min).floor() as i32, to: logs().fold(1.0, f64::max).ceil() as i32 }
    }

    fn marks(&self) -> impl Iterator<Item = f64> {
        (self.from..=self.to).map(|power| 10_f64.powi(power))
    }

    fn place(&self, ratio: f64) -> f64 {
        let share = (ratio.log10() - f64::from(self.from)) / f64::from(self.to - self.from);
        SCALE.0 + share * (SCALE.1 - SCALE.0)
    }
}

/// Two digits that say something, and none behind those of whole numbers.
fn rounded(ratio: f64) -> String {
    match ratio {
        ..1.0 => format!("{ratio:.2}"),
        1.0..10.0 => format!("{ratio:.1}"),
        _ => format!("{ratio:.0}"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn line(svg: &mut String, element: &str) {
    writeln!(svg, "{element}").expect("writing to a string");
}
