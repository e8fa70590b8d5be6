//! Decimal digits in a place of a fixed width.

/// Fills `digits` with the last ones of a number. The library's own formatting of padded numbers takes ten times as long,
/// and hardly an answer is without a time.
pub(super) fn write_digits(digits: &mut [u8], mut number: u32) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789"[number as usize % 10];
        number /= 10;
    }
}
