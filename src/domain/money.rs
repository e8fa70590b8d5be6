//! Exact money: decimals with at most 18 integer and 9 fraction digits, held as whole billionths.
//!
//! Read by their digits, never through a binary float. [`Total`] is a sum of amounts: an `i128` of billionths holds
//! 1.7 × 10¹¹ times the largest amount, more transactions than one file can hold, so sums are exact.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::digits::write_digits;

const NANOS_PER_UNIT: i128 = 1_000_000_000;
const INTEGER_DIGITS: i64 = 18;
const FRACTION_DIGITS: i64 = 9;

/// One exact amount, in billionths of its currency's unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Money(i128);

/// A sum of amounts, exact beyond any number of them that a store can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Total(i128);

/// Why a text is not an amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MoneyError {
    /// Not in JSON's number grammar.
    #[error("must be a decimal number such as 12.5")]
    NotADecimal,
    /// More digits than an amount can hold without rounding.
    #[error("must have at most 18 integer and 9 fraction digits")]
    TooManyDigits,
}

impl Money {
    /// Nothing.
    pub const ZERO: Money = Money(0);

    /// Reads a decimal in JSON's number grammar, by its digits: `0.1` is 0.1, `1e2` is 100.
    pub fn parse(text: &str) -> Result<Self, MoneyError> {
        let Decimal { negative, digits, scale } = Decimal::split(text).ok_or(MoneyError::NotADecimal)?;
        // `digits` has neither leading nor trailing zeros; the value is digits × 10^-scale.
        let length = i64::try_from(digits.len()).map_err(|_| MoneyError::TooManyDigits)?;
        if length == 0 {
            return Ok(Self::ZERO);
        }
        if scale > FRACTION_DIGITS || length.saturating_sub(scale) > INTEGER_DIGITS {
            return Err(MoneyError::TooManyDigits);
        }
        let mantissa = digits.iter().fold(0_i128, |value, digit| value * 10 + i128::from(digit - b'0'));
        let exponent = u32::try_from(FRACTION_DIGITS - scale).map_err(|_| MoneyError::TooManyDigits)?;
        let nanos = mantissa * 10_i128.pow(exponent);
        Ok(Self(if negative { -nanos } else { nanos }))
    }

    /// The amount in billionths.
    pub fn nanos(self) -> i128 {
        self.0
    }

    /// Takes an amount in billionths that was checked before it was stored.
    pub fn from_nanos(nanos: i128) -> Self {
        Self(nanos)
    }

    /// Whether the amount is above zero.
    pub fn is_positive(self) -> bool {
        self.0 > 0
    }

    /// Whether the amount is below zero.
    pub fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// The nearest double, for metrics only.
    pub fn to_f64(self) -> f64 {
        nanos_to_f64(self.0)
    }
}

impl Total {
    /// Adds one amount.
    pub fn add(&mut self, amount: Money) {
        self.0 = self.0.checked_add(amount.0).expect("a file cannot hold enough transactions to overflow 127 bits");
    }

    /// Takes one amount away.
    pub fn subtract(&mut self, amount: Money) {
        self.0 = self.0.checked_sub(amount.0).expect("a file cannot hold enough transactions to overflow 127 bits");
    }

    /// Whether nothing is left.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum in billionths.
    pub fn nanos(self) -> i128 {
        self.0
    }

    /// The nearest double, for metrics only.
    pub fn to_f64(self) -> f64 {
        nanos_to_f64(self.0)
    }

    /// Takes a sum in billionths.
    pub fn from_nanos(nanos: i128) -> Self {
        Self(nanos)
    }
}

/// A JSON number taken apart: sign, significant digits, and how many of them are fraction digits.
struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    scale: i64,
}

impl Decimal {
    fn split(text: &str) -> Option<Self> {
        let (negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (number, exponent) = match rest.find(['e', 'E']) {
            Some(at) => (&rest[..at], parse_exponent(&rest[at + 1..])?),
            None => (rest, 0),
        };
        let (integer, fraction) = match number.split_once('.') {
            Some((integer, fraction)) if !fraction.is_empty() => (integer, fraction),
            Some(_) => return None,
            None => (number, ""),
        };
        let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let leading_zero = integer.len() > 1 && integer.starts_with('0');
        if integer.is_empty() || leading_zero || !all_digits(integer) || !all_digits(fraction) {
            return None;
        }
        let mut digits: Vec<u8> = integer.bytes().chain(fraction.bytes()).skip_while(|byte| *byte == b'0').collect();
        let fraction_length = i64::try_from(fraction.len()).ok()?;
        let mut scale = fraction_length.saturating_sub(exponent);
        while digits.last() == Some(&b'0') {
            digits.pop();
            scale = scale.saturating_sub(1);
        }
        Some(Self { negative, digits, scale })
    }
}

/// An exponent's value; one too long for an `i64` saturates, which the digit limits then refuse.
fn parse_exponent(text: &str) -> Option<i64> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let magnitude =
        digits.bytes().fold(0_i64, |value, digit| value.saturating_mul(10).saturating_add(i64::from(digit - b'0')));
    Some(sign * magnitude.min(i64::MAX / 2))
}

fn nanos_to_f64(nanos: i128) -> f64 {
    // Dividing the parts keeps whole units exact up to 2^53, where one division of the whole would round twice.
    let (units, rest) = (nanos / NANOS_PER_UNIT, nanos % NANOS_PER_UNIT);
    units as f64 + rest as f64 / NANOS_PER_UNIT as f64
}

/// Writes the canonical form: no exponent, no needless zeros.
fn write_nanos(nanos: i128, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let sign = if nanos < 0 { "-" } else { "" };
    let magnitude = nanos.unsigned_abs();
    let per_unit = NANOS_PER_UNIT.unsigned_abs();
    let (units, rest) = (magnitude / per_unit, magnitude % per_unit);
    write!(f, "{sign}{units}")?;
    if rest == 0 {
        return Ok(());
    }
    let mut fraction = *b".000000000";
    write_digits(&mut fraction[1..], u32::try_from(rest).map_err(|_| fmt::Error)?);
    let fraction = std::str::from_utf8(&fraction).map_err(|_| fmt::Error)?;
    f.write_str(fraction.trim_end_matches('0'))
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_nanos(self.0, f)
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_nanos(self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(text: &str) -> Result<String, MoneyError> {
        Money::parse(text).map(|money| money.to_string())
    }

    #[test]
    fn reads_digits_and_writes_the_canonical_form() {
        for (text, expected) in [
            ("0", "0"),
            ("-0", "0"),
            ("0.1", "0.1"),
            ("12.50", "12.5"),
            ("1e2", "100"),
            ("1E+2", "100"),
            ("1e-7", "0.0000001"),
            ("1.5e-1", "0.15"),
            ("100e-2", "1"),
            ("0.000000001", "0.000000001"),
            ("0.0000000010000", "0.000000001"),
            ("999999999999999999.999999999", "999999999999999999.999999999"),
            ("-3.25", "-3.25"),
            ("0e999999999999999999999", "0"),
            ("1000000000000000000e-1", "100000000000000000"),
            ("0.1e18", "100000000000000000"),
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refuses_what_it_would_have_to_round() {
        for text in
            ["1000000000000000000", "1e18", "0.0000000001", "1e-10", "1.0000000001", "1e99999999999999999999", "1e-99"]
        {
            assert_eq!(canonical(text), Err(MoneyError::TooManyDigits), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_not_a_json_number() {
        for text in
            ["", " 1", "1 ", "+1", "01", ".5", "1.", "1e", "1e+", "--1", "0x1", "1_0", "NaN", "inf", "1,5", "١", "1.e2"]
        {
            assert_eq!(canonical(text), Err(MoneyError::NotADecimal), "{text:?}");
        }
    }

    #[test]
    fn sums_are_exact_where_floats_are_not() {
        let mut total = Total::default();
        for text in ["0.1", "0.2"] {
            total.add(Money::parse(text).unwrap());
        }
        assert_eq!(total.to_string(), "0.3");
        let largest = Money::parse("999999999999999999.999999999").unwrap();
        let mut total = Total::default();
        for _ in 0..1_000_000 {
            total.add(largest);
        }
        assert_eq!(total.to_string(), "999999999999999999999999.999");
    }

    proptest! {
        #[test]
        fn canonical_text_reads_back_as_the_same_amount(nanos in -999_999_999_999_999_999_999_999_999_i128..=999_999_999_999_999_999_999_999_999) {
            let money = Money(nanos);
            prop_assert_eq!(Money::parse(&money.to_string()), Ok(money));
        }
    }
}
