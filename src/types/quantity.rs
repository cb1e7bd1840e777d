//! Durations and sizes as text: `"350ms"`, `"32MiB"`.
//!
//! What is printed can be read back, to the same value.

use std::{fmt::Write, time::Duration};

/// Longest duration taken: a year. Far below what adding to an instant can overflow.
pub(crate) const DURATION_MAX: Duration = Duration::from_secs(365 * 86_400);

const UNITS_OF_TIME: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3_600 * 1_000_000_000),
    ("d", 86_400 * 1_000_000_000),
];

const UNITS_OF_SIZE: [(&str, u64); 5] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// Reads `350ms`, `1.5s`, `1m 30s`. The text of an error is a rule: what would have been right.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    const RULE: &str = r#"a number with its unit (ns, us, ms, s, m, h, d), such as "350ms""#;
    let nanos = parse(text, &UNITS_OF_TIME).ok_or(RULE)?;
    let value = Duration::from_nanos(u64::try_from(nanos).map_err(|_| "at most 365d")?);
    if DURATION_MAX < value { Err("at most 365d") } else { Ok(value) }
}

/// Reads `32MiB`, `1.5GiB`, `4096` (bytes).
pub(crate) fn parse_size(text: &str) -> Result<u64, &'static str> {
    const RULE: &str = r#"bytes, or a number with its unit (B, KiB, MiB, GiB, TiB), such as "32MiB""#;
    if let Ok(bytes) = text.parse::<u64>() {
        return Ok(bytes);
    }
    u64::try_from(parse(text, &UNITS_OF_SIZE).ok_or(RULE)?).map_err(|_| "below 2^64 bytes")
}

/// The sum of `number unit` pairs in the smallest unit; a fraction that is no whole number of it is refused.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u128> {
    let mut rest = text.trim();
    let mut sum = 0_u128;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let after = after.trim_start();
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == ' ').unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let scale = u128::from(units.iter().find(|(name, _)| *name == unit)?.1);
        sum = sum.checked_add(scaled(number, scale)?)?;
        rest = next.trim_start();
    }
    Some(sum)
}

fn scaled(number: &str, scale: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    // Eighteen digits of a fraction: beyond any unit here, and the product below cannot overflow.
    if whole.is_empty() || fraction.is_empty() || 18 < fraction.len() {
        return None;
    }
    let whole = whole.parse::<u128>().ok()?.checked_mul(scale)?;
    let tenths = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let part = fraction.parse::<u128>().ok()?.checked_mul(scale)?;
    if part % tenths != 0 {
        return None;
    }
    whole.checked_add(part / tenths)
}

/// In the largest unit that divides the value: `350ms`, `90s`, `2m`.
pub(crate) fn format_duration(value: Duration) -> String {
    let nanos = value.as_nanos();
    if nanos == 0 {
        return "0s".into();
    }
    // "µs" is only read, never written.
    let mut units = UNITS_OF_TIME.iter().rev().filter(|(name, _)| name.is_ascii());
    let (name, scale) = units
        .find(|(_, scale)| nanos.is_multiple_of(u128::from(*scale)))
        .expect("every value is a multiple of 1 ns");
    format!("{}{name}", nanos / u128::from(*scale))
}

/// In the largest unit that divides the value: `32MiB`, `1000B`.
pub(crate) fn format_size(bytes: u64) -> String {
    let mut units = UNITS_OF_SIZE.iter().rev();
    let (name, scale) =
        units.find(|(_, scale)| bytes != 0 && bytes.is_multiple_of(*scale)).copied().unwrap_or(("B", 1));
    let mut text = (bytes / scale).to_string();
    let _ = text.write_str(name);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        for (text, nanos) in [
            ("350ms", 350_000_000),
            ("1s", 1_000_000_000),
            ("2m", 120_000_000_000),
            ("1.5s", 1_500_000_000),
            ("1m 30s", 90_000_000_000),
            ("1m30s", 90_000_000_000),
            ("10 us", 10_000),
            ("7µs", 7_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
        for text in ["", "fast", "150 parsecs", "1", "-1s", "s", "1.s", ".5s", "1s s", "0.1ns", "366d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(parse_duration(&format!("{}d", u128::MAX)).is_err());
    }

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("32MiB", 32 << 20),
            ("1.5GiB", 3 << 29),
            ("4096", 4096),
            ("1000B", 1000),
            ("8 GiB", 8 << 30),
            ("0B", 0),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "32MB", "32mib", "MiB", "-1", "0.3B", "20000000TiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_printed_is_read_back() {
        for nanos in [0, 1, 999, 1_000, 350_000_000, 1_500_000_000, 90_000_000_000, 3_600_000_000_000] {
            let value = Duration::from_nanos(nanos);
            assert_eq!(parse_duration(&format_duration(value)), Ok(value));
        }
        assert_eq!(format_duration(Duration::from_secs(120)), "2m");
        for bytes in [0, 1, 1000, 1024, 32 << 20, (15 << 20) + 1, 8 << 30] {
            assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }
        assert_eq!(format_size(15 << 20), "15MiB");
    }
}
