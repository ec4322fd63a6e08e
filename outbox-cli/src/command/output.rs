//! What a command prints.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indicatif::ProgressStyle;

use super::failure::Failure;

/// Writes to standard output. If its reader has left, that is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    print_to_reader(text).map(drop)
}

/// Writes to standard output, and returns whether anybody reads it.
pub(crate) fn print_to_reader(text: &str) -> Result<bool, Failure> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Output(error)),
    }
}

/// Writes a line to standard error, if anybody reads that.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "outbox: {line}");
}

/// A number of things, in words.
pub(crate) fn counted(number: u64, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

/// How many columns a line has at most.
pub(crate) const WIDTH: usize = 80;

/// The text from this column on behind what begins its line, with later lines below it. A word that is longer than a line is not broken,
/// because somebody may copy it.
pub(crate) fn hanging(begin: &str, first: usize, text: &str) -> String {
    let mut lines = format!("{begin:width$}", width = first - 1);
    let mut column = first - 1;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column + 1 + length > WIDTH && column > first - 1 {
            lines.push('\n');
            lines.push_str(&" ".repeat(first - 1));
            column = first - 1;
        }
        lines.push(' ');
        lines.push_str(word);
        column += 1 + length;
    }
    lines.push('\n');
    lines
}

/// In UTC, to the millisecond.
pub(crate) fn moment(moment: SystemTime) -> String {
    if in_range(&moment) {
        humantime::format_rfc3339_millis(moment).to_string()
    } else {
        format!("{moment:?}")
    }
}

/// Whether the year has four digits, as the format wants.
fn in_range(moment: &SystemTime) -> bool {
    const YEAR_10_000: Duration = Duration::from_secs(253_402_300_800);
    moment.duration_since(UNIX_EPOCH).is_ok_and(|since_1970| since_1970 < YEAR_10_000)
}

/// How progress is shown. Only a terminal sees it.
pub(crate) fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{bar:30} {human_pos}/{human_len} {msg}, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_moment_can_be_printed() {
        let after = |ms| UNIX_EPOCH + Duration::from_millis(ms);
        assert_eq!(moment(after(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(moment(after(1_700_000_000_123)), "2023-11-14T22:13:20.123Z");
        for odd in [UNIX_EPOCH - Duration::from_millis(1), after(253_402_300_800_000)] {
            assert_eq!(moment(odd), format!("{odd:?}"));
        }
    }
}
