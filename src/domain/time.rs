//! Points in time: whole microseconds since 1970 in UTC, written and read as RFC 3339.

use std::fmt;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::digits::write_digits;

/// A point in time, in microseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

/// The text is not an RFC 3339 time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("must be an RFC 3339 time such as 2026-11-22T23:50:31.767109+00:00")]
pub struct NotATime;

/// 9999-12-30, the last day whose every offset is still a year of four digits.
const LATEST_MICROS: i64 = 253_402_207_200_000_000;

impl Timestamp {
    /// The beginning of the year 0.
    pub const MIN: Self = Self(-62_167_219_200_000_000);
    /// 9999-12-30.
    pub const MAX: Self = Self(LATEST_MICROS);

    /// From microseconds since 1970; what lies outside the years 0 to 9999 is moved to the nearest end.
    pub fn from_micros(micros: i64) -> Self {
        Self(micros.clamp(Self::MIN.0, Self::MAX.0))
    }

    /// Microseconds since 1970.
    pub fn as_micros(self) -> i64 {
        self.0
    }

    /// This time and a while.
    pub fn after(self, duration: Duration) -> Self {
        Self::from_micros(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// How long `earlier` was before this; zero if it was not.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Reads RFC 3339 with any offset or `Z`. A space where the offset's `+` belongs is read as that `+`: it is what an
    /// unescaped one becomes in a query string. Digits beyond the microsecond are cut off, and the last two days of the
    /// year 9999, which many take for the end of time, count as the latest moment that we can name.
    pub fn parse(text: &str) -> Result<Self, NotATime> {
        let mut text = text.to_owned();
        if let Some(sign) = text.len().checked_sub(6).filter(|at| text.as_bytes()[*at] == b' ') {
            text.replace_range(sign..=sign, "+");
        }
        if !has_rfc3339_shape(text.as_bytes()) {
            return Err(NotATime);
        }
        let is_at_the_end =
            || text.starts_with("9999-12-3") && text[..19].replace(' ', "T").parse::<jiff::civil::DateTime>().is_ok();
        let parsed = match text.parse::<jiff::Timestamp>() {
            Err(_) if is_at_the_end() => jiff::Timestamp::MAX,
            parsed => parsed.map_err(|_| NotATime)?,
        };
        Ok(Self::from_micros(parsed.as_nanosecond().div_euclid(1_000).try_into().map_err(|_| NotATime)?))
    }
}

/// jiff reads more than RFC 3339 allows (missing seconds, zone annotations); this is the RFC's shape.
fn has_rfc3339_shape(text: &[u8]) -> bool {
    let Some((head, tail)) = text.split_at_checked(19) else { return false };
    let shaped = head.iter().zip(b"dddd-dd-ddTdd:dd:dd").all(|(byte, shape)| match shape {
        b'd' => byte.is_ascii_digit(),
        b'T' => matches!(byte, b'T' | b't' | b' '),
        other => byte == other,
    });
    let offset = match tail.strip_prefix(b".") {
        None => tail,
        Some(fraction) => {
            let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if !(1..=9).contains(&digits) {
                return false;
            }
            &fraction[digits..]
        }
    };
    let zoned = match offset {
        b"Z" | b"z" => true,
        [b'+' | b'-', h1, h2, b':', m1, m2] => [h1, h2, m1, m2].iter().all(|byte| byte.is_ascii_digit()),
        _ => false,
    };
    shaped && zoned
}

impl fmt::Display for Timestamp {
    /// `2026-11-22T23:50:31.767109+00:00`: always UTC, always microseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let timestamp = jiff::Timestamp::from_microsecond(self.0).map_err(|_| fmt::Error)?;
        let civil = TimeZone::UTC.to_datetime(timestamp);
        let mut text = *b"0000-00-00T00:00:00.000000+00:00";
        let fields: [(_, u32); 7] = [
            (0..4, civil.year().unsigned_abs().into()),
            (5..7, civil.month().unsigned_abs().into()),
            (8..10, civil.day().unsigned_abs().into()),
            (11..13, civil.hour().unsigned_abs().into()),
            (14..16, civil.minute().unsigned_abs().into()),
            (17..19, civil.second().unsigned_abs().into()),
            (20..26, civil.subsec_nanosecond().unsigned_abs() / 1_000),
        ];
        for (place, number) in fields {
            write_digits(&mut text[place], number);
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_time_is_a_time_however_people_write_it() {
        let latest = Timestamp::parse("9999-12-30T21:59:59.999999Z").unwrap();
        for text in ["9999-12-31T23:59:59.999999Z", "9999-12-31t23:59:59Z", "9999-12-31 23:59:59-12:00"] {
            let end = Timestamp::parse(text).unwrap_or_else(|_| panic!("{text}"));
            assert!(end > latest, "{text}");
            assert_eq!(Timestamp::parse(&end.to_string()), Ok(end), "{text}");
        }
        assert!(Timestamp::parse("9999-12-39T00:00:00Z").is_err());
    }

    #[test]
    fn writes_utc_with_microseconds_and_reads_it_back() {
        let time = Timestamp::from_micros(1_795_391_431_767_109);
        assert_eq!(time.to_string(), "2026-11-22T23:50:31.767109+00:00");
        assert_eq!(Timestamp::parse(&time.to_string()), Ok(time));
        for micros in [Timestamp::MIN.0, -62_135_596_800_000_001, -1, 0, 951_782_400_000_001, LATEST_MICROS] {
            let time = Timestamp::from_micros(micros);
            let civil = TimeZone::UTC.to_datetime(jiff::Timestamp::from_microsecond(micros).unwrap());
            assert_eq!(time.to_string(), format!("{civil:.6}+00:00"));
        }
        let before_1970 = Timestamp::from_micros(-1);
        assert_eq!(Timestamp::parse(&before_1970.to_string()), Ok(before_1970));
    }

    #[test]
    fn reads_any_offset_and_a_space_for_an_unescaped_plus() {
        let expected = Timestamp::parse("2026-11-22T23:50:31Z").unwrap();
        for text in [
            "2026-11-22T23:50:31 00:00",
            "2026-11-23T01:50:31+02:00",
            "2026-11-22T18:20:31-05:30",
            "2026-11-22t23:50:31z",
        ] {
            assert_eq!(Timestamp::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_not_rfc_3339() {
        for text in [
            "",
            "now",
            "2026-11-22",
            "2026-11-22T23:50Z",
            "2026-11-22T23:50:31",
            "2026-11-22T23:50:31+0000",
            "2026-13-01T00:00:00Z",
            "2026-02-30T00:00:00Z",
            "2026-11-22T23:50:31.Z",
            "2026-11-22T23:50:31Z[UTC]",
            "1795391431",
            "ééééééééééééééééééé",
        ] {
            assert_eq!(Timestamp::parse(text), Err(NotATime), "{text:?}");
        }
    }
}
