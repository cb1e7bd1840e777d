//! Durations, sizes and times, as people write and read them.

use std::time::Duration;

use crate::api::args::{Patience, integer};
use crate::types::block::BLOCK_BYTES_MAX;

/// `500ms`, `5s`, `10m`, `2h`, `1d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let count: u64 =
        text[..digits].parse().map_err(|_| format!("`{text}` is no duration like 500ms, 5s or 10m"))?;
    let millis = match text[digits..].trim() {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(format!("`{text}` is no duration like 500ms, 5s or 10m")),
    };
    count.checked_mul(millis).map(Duration::from_millis).ok_or_else(|| format!("`{text}` is too long"))
}

/// What a node takes for `timeoutMs`.
const WAIT_MAX: Duration = Duration::from_millis(Patience::MS_MAX);

/// What a node takes for `forMs`.
const FOR_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);

/// How long a node is to wait, within its bound.
pub(crate) fn parse_wait(text: &str) -> Result<Duration, String> {
    within(text, WAIT_MAX, "30s")
}

/// How long a log filter is to stay, within the node's bound.
pub(crate) fn parse_for(text: &str) -> Result<Duration, String> {
    within(text, FOR_MAX, "7d")
}

fn within(text: &str, max: Duration, max_text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        span if span.is_zero() || max < span => Err(format!("`{text}` is not from 1ms to {max_text}")),
        span => Ok(span),
    }
}

/// By eye: a run of more than a week is a mistake, and no sum of two such overflows.
const SPAN_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);

/// How long something is measured, zero too.
pub(crate) fn parse_span(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        span if SPAN_MAX < span => Err(format!("`{text}` is above 7d")),
        span => Ok(span),
    }
}

/// A height or an index: decimal, or hex after `0x`, as the API takes it.
pub(crate) fn parse_integer(text: &str) -> Result<u64, String> {
    integer(text).ok_or_else(|| format!("`{text}` is no integer, decimal or 0x hex"))
}

/// `256`, `16KiB`, `1MiB`.
pub(crate) fn parse_size(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let count: usize =
        text[..digits].parse().map_err(|_| format!("`{text}` is no size like 256, 16KiB or 1MiB"))?;
    let unit = match text[digits..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(format!("`{text}` is no size like 256, 16KiB or 1MiB")),
    };
    count.checked_mul(unit).ok_or_else(|| format!("`{text}` is too large"))
}

/// Header and data of a block, within the greatest `chain.max_block_bytes`.
pub(crate) fn parse_block_size(text: &str) -> Result<usize, String> {
    match parse_size(text)? {
        bytes if BLOCK_BYTES_MAX < bytes as u64 => {
            Err(format!("`{text}` is above {} MiB, which no block exceeds", BLOCK_BYTES_MAX >> 20))
        }
        bytes => Ok(bytes),
    }
}

/// Two figures that matter: `0.26 ms`, `14 ms`, `1.2 s`, `3 min 4 s`, `2 d 3 h`.
pub(crate) fn duration(d: Duration) -> String {
    let ms = d.as_secs_f64() * 1e3;
    let s = d.as_secs();
    match s {
        0 if ms < 10.0 => format!("{ms:.2} ms"),
        0 => format!("{ms:.0} ms"),
        1..60 => format!("{:.1} s", d.as_secs_f64()),
        60..3_600 => format!("{} min {} s", s / 60, s % 60),
        3_600..86_400 => format!("{} h {} min", s / 3_600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3_600 % 24),
    }
}

pub(crate) fn duration_ms(ms: u64) -> String {
    if ms < 1_000 { format!("{ms} ms") } else { duration(Duration::from_millis(ms)) }
}

/// `812 B`, `16.0 KiB`, `1.5 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// Unix milliseconds as `2026-11-28 05:41:07.123Z`.
pub(crate) fn time_ms(ms: u64) -> String {
    let s = ms / 1_000;
    let (year, month, day) = civil(s / 86_400);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{:03}Z",
        s / 3_600 % 24,
        s / 60 % 60,
        s % 60,
        ms % 1_000
    )
}

/// The date of a day since 1970 (Howard Hinnant's `civil_from_days`, for days from 1970 on).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_that_people_write() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration(" 10m "), Ok(Duration::from_secs(600)));
        for wrong in
            ["", "5", "s", "-5s", "1.5s", "5 parsecs", "99999999999999999999s", "18446744073709551615d"]
        {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn waits_that_a_node_takes() {
        assert_eq!(parse_wait("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_wait("1ms"), Ok(Duration::from_millis(1)));
        for wrong in ["0s", "31s", "30001ms", "soon"] {
            assert!(parse_wait(wrong).is_err(), "{wrong}");
        }
        assert!(parse_for("7d").is_ok() && parse_for("8d").is_err());
    }

    #[test]
    fn what_a_run_is_given_has_bounds() {
        assert_eq!((parse_span("0s"), parse_span("7d")), (Ok(Duration::ZERO), Ok(SPAN_MAX)));
        let told = parse_span("18446744073709551615ms").expect_err("too long");
        assert!(told.contains("7d"), "{told}");
        assert_eq!((parse_block_size("0"), parse_block_size("32MiB")), (Ok(0), Ok(32 << 20)));
        for text in ["33554433", "9223372036854775808"] {
            let told = parse_block_size(text).expect_err("too large");
            assert!(told.contains("32 MiB"), "{told}");
        }
    }

    #[test]
    fn integers_in_both_forms_of_the_api() {
        assert_eq!(
            (parse_integer("26"), parse_integer("0x1a"), parse_integer("0x1A")),
            (Ok(26), Ok(26), Ok(26))
        );
        for wrong in ["", "0x", "1a", "+1", "0x+1", "-1", "0X1", "0xg", "18446744073709551616"] {
            assert!(parse_integer(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_that_people_write() {
        assert_eq!(parse_size("256"), Ok(256));
        assert_eq!(parse_size("16KiB"), Ok(16 << 10));
        assert!(parse_size("16kb").is_err());
        assert!(parse_size("18446744073709551615GiB").is_err());
    }

    #[test]
    fn figures_are_short() {
        for (ms, want) in [
            (0.26, "0.26 ms"),
            (14.4, "14 ms"),
            (1_240.0, "1.2 s"),
            (184_000.0, "3 min 4 s"),
            (7_380_000.0, "2 h 3 min"),
            (183_600_000.0, "2 d 3 h"),
        ] {
            assert_eq!(duration(Duration::from_secs_f64(ms / 1e3)), want);
        }
        for (bytes, want) in
            [(812, "812 B"), (16 << 10, "16.0 KiB"), (3 << 29, "1.5 GiB"), (1 << 50, "1024.0 TiB")]
        {
            assert_eq!(size(bytes), want);
        }
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(time_ms(0), "1970-01-01 00:00:00.000Z");
        assert_eq!(time_ms(951_782_400_001), "2000-02-29 00:00:00.001Z");
        assert_eq!(time_ms(1_795_844_467_123), "2026-11-28 05:41:07.123Z");
    }
}
