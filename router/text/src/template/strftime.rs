//! `strftime` over UTC, for the directives that dates in prompts are made of.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment, taken apart. The year is in the Gregorian calendar; months and days count from 1.
struct Moment {
    year: i64,
    month: usize,
    day: u32,
    /// Monday is 0.
    weekday: usize,
    /// January 1st is 1.
    day_of_year: u32,
    hour: u32,
    minute: u32,
    second: u32,
    microsecond: u32,
}

/// Writes `now` as `format` says. The error names a directive that is not known.
pub(super) fn format(now: SystemTime, format: &str) -> Result<String, String> {
    let moment = Moment::new(now);
    let mut output = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            output.push(character);
            continue;
        }
        let mut directive = characters.next().unwrap_or('%');
        // `%-d` is `%d` without its leading zeros.
        let padded = directive != '-';
        if !padded {
            directive = characters.next().unwrap_or('%');
        }
        moment.write(&mut output, directive, padded)?;
    }
    Ok(output)
}

impl Moment {
    fn new(now: SystemTime) -> Self {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = since.as_secs();
        let days = i64::try_from(seconds / 86_400).unwrap_or(0);
        let second_of_day = u32::try_from(seconds % 86_400).unwrap_or(0);
        let (year, month, day) = civil_from_days(days);
        let first = days_from_civil(year);
        Self {
            year,
            month,
            day,
            // 1970-01-01 was a Thursday.
            weekday: usize::try_from((days + 3).rem_euclid(7)).unwrap_or(0),
            day_of_year: u32::try_from(days - first + 1).unwrap_or(1),
            hour: second_of_day / 3600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
            microsecond: since.subsec_micros(),
        }
    }

    fn write(&self, output: &mut String, directive: char, padded: bool) -> Result<(), String> {
        let two = if padded { 2 } else { 1 };
        let three = if padded { 3 } else { 1 };
        let hour12 = (self.hour + 11) % 12 + 1;
        let (date, time) = ((self.year, self.month, self.day), (self.hour, self.minute, self.second));
        let _ = match directive {
            'Y' => write!(output, "{}", self.year),
            'y' => write!(output, "{:0two$}", self.year % 100),
            'm' => write!(output, "{:0two$}", self.month),
            'B' => write!(output, "{}", MONTHS[self.month - 1]),
            'b' | 'h' => write!(output, "{}", &MONTHS[self.month - 1][..3]),
            'd' => write!(output, "{:0two$}", self.day),
            'e' => write!(output, "{:>two$}", self.day),
            'j' => write!(output, "{:0three$}", self.day_of_year),
            'A' => write!(output, "{}", DAYS[self.weekday]),
            'a' => write!(output, "{}", &DAYS[self.weekday][..3]),
            'u' => write!(output, "{}", self.weekday + 1),
            'w' => write!(output, "{}", (self.weekday + 1) % 7),
            'H' => write!(output, "{:0two$}", self.hour),
            'I' => write!(output, "{hour12:0two$}"),
            'M' => write!(output, "{:0two$}", self.minute),
            'S' => write!(output, "{:0two$}", self.second),
            'f' => write!(output, "{:06}", self.microsecond),
            'p' => write!(output, "{}", if self.hour < 12 { "AM" } else { "PM" }),
            'F' => write!(output, "{}-{:02}-{:02}", date.0, date.1, date.2),
            'D' => write!(output, "{:02}/{:02}/{:02}", date.1, date.2, date.0 % 100),
            'T' => write!(output, "{:02}:{:02}:{:02}", time.0, time.1, time.2),
            'R' => write!(output, "{:02}:{:02}", time.0, time.1),
            // Python's naive time has no zone to show.
            'Z' | 'z' => Ok(()),
            'n' => writeln!(output),
            't' => write!(output, "\t"),
            '%' => write!(output, "%"),
            other => return Err(format!("strftime_now does not know %{other}")),
        };
        Ok(())
    }
}

/// Year, month and day of a day counted from 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil_from_days(days: i64) -> (i64, usize, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, usize::try_from(month).unwrap_or(1), u32::try_from(day).unwrap_or(1))
}

/// The day of January 1st of a year, counted from 1970-01-01.
fn days_from_civil(year: i64) -> i64 {
    let before = year - 1;
    365 * before + before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400) - 719_162
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn moments_are_written_as_python_writes_them() {
        let all = "%Y-%m-%d %H:%M:%S.%f %j %A %a %B %b %y %I %p %-d %-m %e|%u %w %F %D %T %R %%";
        // Printed by datetime.fromtimestamp(seconds, timezone.utc).strftime(all).
        let cases = [
            (
                0,
                "1970-01-01 00:00:00.000000 001 Thursday Thu January Jan 70 12 AM 1 1  1|4 4 1970-01-01 01/01/70 00:00:00 00:00 %",
            ),
            (
                951_782_400,
                "2000-02-29 00:00:00.000000 060 Tuesday Tue February Feb 00 12 AM 29 2 29|2 2 2000-02-29 02/29/00 00:00:00 00:00 %",
            ),
            (
                1_735_689_599,
                "2024-12-31 23:59:59.000000 366 Tuesday Tue December Dec 24 11 PM 31 12 31|2 2 2024-12-31 12/31/24 23:59:59 23:59 %",
            ),
            (
                4_102_455_845,
                "2100-01-01 03:04:05.000000 001 Friday Fri January Jan 00 03 AM 1 1  1|5 5 2100-01-01 01/01/00 03:04:05 03:04 %",
            ),
        ];
        for (seconds, expected) in cases {
            assert_eq!(format(UNIX_EPOCH + Duration::from_secs(seconds), all).as_deref(), Ok(expected));
        }
        assert!(format(UNIX_EPOCH, "%Q").is_err());
    }
}
