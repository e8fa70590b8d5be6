//! Sizes and time spans as people read them.

/// Bytes as people read them.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A time span as people read it: its two largest units.
pub fn span(seconds: f64) -> String {
    if seconds < 10.0 {
        return format!("{seconds:.1} s");
    }
    let seconds = seconds as u64;
    let units = [("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)];
    let largest = units.iter().position(|(_, length)| seconds >= *length).unwrap_or(3);
    let parts = units[largest..].iter().take(2).scan(seconds, |rest, (unit, length)| {
        let count = *rest / length;
        *rest %= length;
        Some((count, unit))
    });
    parts.filter(|(count, _)| *count > 0).map(|(count, unit)| format!("{count} {unit}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit() {
        for (bytes, shown) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (u64::MAX, "16384.0 PiB")]
        {
            assert_eq!(size(bytes), shown);
        }
    }

    #[test]
    fn spans_show_their_two_largest_units() {
        for (seconds, shown) in [
            (0.0, "0.0 s"),
            (9.94, "9.9 s"),
            (59.9, "59 s"),
            (60.0, "1 min"),
            (3_661.0, "1 h 1 min"),
            (86_400.0 * 3.0 + 4.0 * 3_600.0 + 5.0, "3 d 4 h"),
            (86_405.0, "1 d"),
        ] {
            assert_eq!(span(seconds), shown);
        }
    }
}
