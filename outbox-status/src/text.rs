//! How numbers are written for people.

use std::time::Duration;

/// A whole number, with a thin gap between thousands left to commas.
pub fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A length of time in its two largest units.
pub fn age(time: Duration) -> String {
    let (seconds, ms) = (time.as_secs(), time.subsec_millis());
    match seconds {
        0 => format!("{ms} ms"),
        1..=9 => format!("{seconds}.{} s", ms / 100),
        10..=59 => format!("{seconds} s"),
        60..=3_599 => format!("{} m {:02} s", seconds / 60, seconds % 60),
        3_600..=86_399 => format!("{} h {:02} m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {:02} h", number(seconds / 86_400), seconds / 3_600 % 24),
    }
}

/// A number of bytes in a unit that suits it.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1_000 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1_000.0, 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1_000.0;
        unit += 1;
    }
    if value < 9.95 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

/// Something a second.
pub fn rate(rate: f64) -> String {
    if rate > 0.0 && rate < 9.95 { format!("{rate:.1}") } else { number(rate.max(0.0).round() as u64) }
}

/// A line of bars, the highest of which is the largest value. What is not known is a gap.
pub fn sparkline(values: impl ExactSizeIterator<Item = Option<f64>> + Clone) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = values.clone().flatten().fold(0.0, f64::max);
    let bar = |value: Option<f64>| match value {
        None => ' ',
        Some(value) if most > 0.0 => BARS[((value.max(0.0) / most) * 7.0).round() as usize % 8],
        Some(_) => BARS[0],
    };
    values.map(bar).collect()
}

/// The error and its causes in one line. A cause that the text already has is not repeated.
pub fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut line = flat(&error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = flat(&error.to_string());
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = error.source();
    }
    line
}

fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
        let times = [0, 900, 1_550, 12_000, 61_000, 3_720_000, 90_000_000].map(Duration::from_millis);
        assert_eq!(times.map(age), ["0 ms", "900 ms", "1.5 s", "12 s", "1 m 01 s", "1 h 02 m", "1 d 01 h"]);
        assert_eq!(
            [0, 999, 1_500, 15_000, 999_600, 1 << 30].map(bytes),
            ["0 B", "999 B", "1.5 kB", "15 kB", "1.0 MB", "1.1 GB"]
        );
        assert_eq!(
            [0.0, 0.25, 9.94, 9.96, 1_499.6, f64::MAX].map(rate)[..5],
            ["0", "0.2", "9.9", "10", "1,500"]
        );
    }

    #[test]
    fn a_sparkline_is_as_high_as_its_largest_value() {
        let line = |values: &[Option<f64>]| sparkline(values.iter().copied());
        assert_eq!(line(&[Some(0.0), None, Some(5.0), Some(10.0)]), "▁ ▅█");
        assert_eq!(line(&[Some(0.0), Some(0.0)]), "▁▁");
        assert_eq!(line(&[]), "");
    }
}
