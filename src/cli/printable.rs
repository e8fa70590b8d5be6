//! Text from outside, made safe to look at: what could steer a terminal or reorder a line is shown escaped.

use std::borrow::Cow;
use std::fmt::Write as _;

/// C0 and C1 controls and DEL; whatever breaks lines; what changes the direction of text; invisible characters that
/// make different texts look alike. Joiners stay: scripts and emoji need them.
fn is_hazard(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// One line of plain text: hazards as Rust writes them, `\n` or `\u{202e}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, |_| false, |c, out| out.extend(c.escape_default()))
}

/// JSON text in which hazards are JSON's own escapes: the same JSON. Line feeds stay, since well-formed JSON has them
/// only between values.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    escape(
        json,
        |c| c == '\n',
        |c, out| {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}").expect("a String takes all that is written");
            }
        },
    )
}

fn escape(text: &str, keep: impl Fn(char) -> bool, write_escaped: impl Fn(char, &mut String)) -> Cow<'_, str> {
    let unsafe_here = |c: char| is_hazard(c) && !keep(c);
    if !text.contains(unsafe_here) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if unsafe_here(c) {
            write_escaped(c, &mut out);
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_gets_through() {
        for (raw, shown) in [
            ("plain, ünïcode, 日本 👩\u{200d}🚀", "plain, ünïcode, 日本 👩\u{200d}🚀"),
            ("\x1b[2J\x07", "\\u{1b}[2J\\u{7}"),
            ("a\r\nb\tc\0", "a\\r\\nb\\tc\\u{0}"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            ("abc\u{202e}fed\u{2066}\u{200f}", "abc\\u{202e}fed\\u{2066}\\u{200f}"),
            ("a\u{2028}b\u{feff}\u{e0041}", "a\\u{2028}b\\u{feff}\\u{e0041}"),
        ] {
            assert_eq!(printable(raw), shown);
            assert!(!printable(raw).chars().any(is_hazard));
        }
    }

    #[test]
    fn json_stays_the_same_json() {
        let value = serde_json::json!({"k\u{9b}": "a\u{202e}b\u{7f}\u{e0041}\n\u{1b}"});
        let raw = format!("{value}\n");
        let safe = printable_json(&raw);
        assert!(!safe.trim_end().chars().any(is_hazard), "{safe}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
    }
}
